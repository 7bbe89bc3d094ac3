//! The Vulkan path on a software adapter (lavapipe), which every machine can have.
//!
//! The Vulkan loader reads its environment when the first device is looked for, so each case runs in a process of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod common;

use common::{data, job, plan, tiny};
use medinet_model::TrainingPlan;
use medinet_training::{
    Checkpoints, ComputeDevice, DeviceChoice, DeviceKind, Trainer, Training, TrainingOutcome, logits,
};
use std::ops::ControlFlow;
use std::process::Command;

const CASE: &str = "MEDINET_GPU_TEST_CASE";
const LAVAPIPE: &str = "/usr/share/vulkan/icd.d/lvp_icd.x86_64.json";

/// Runs this test again as the only one of a process whose Vulkan loader sees the given drivers.
/// True in that process.
fn in_own_process(name: &str, drivers: &str) -> bool {
    if std::env::var(CASE).as_deref() == Ok(name) {
        return true;
    }
    let status = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture"])
        .env(CASE, name)
        .env("VK_ICD_FILENAMES", drivers)
        .env("VK_DRIVER_FILES", drivers)
        // Trying out every variant of a kernel takes minutes on a software adapter.
        .env("CUBECL_AUTOTUNE_LEVEL", "minimal")
        .status()
        .unwrap();
    assert!(status.success(), "{name} failed in its own process");
    false
}

fn lavapipe() -> String {
    let driver = std::env::var("MEDINET_LAVAPIPE_ICD").unwrap_or_else(|_| {
        let folder = std::fs::read_dir("/usr/share/vulkan/icd.d").into_iter().flatten().flatten();
        let found = folder.map(|entry| entry.path()).find(|path| path.to_string_lossy().contains("lvp_icd"));
        found.map_or_else(|| LAVAPIPE.to_owned(), |path| path.to_string_lossy().into_owned())
    });
    assert!(
        std::path::Path::new(&driver).exists(),
        "install lavapipe (mesa-vulkan-drivers): {driver} is missing"
    );
    driver
}

fn one_epoch(device: ComputeDevice) -> TrainingOutcome {
    let folder = tempfile::tempdir().unwrap();
    let plan = TrainingPlan { local_epochs: 1, batch_size: 8, proximal_mu: 0.1, ..plan() };
    let trainer = Trainer::new(device, Checkpoints::new(folder.path()));
    let mut go_on = |_: &_| ControlFlow::Continue(());
    match trainer.train(&job(tiny(), plan), &data(0..16), &data(16..24), &mut go_on).unwrap() {
        Training::Finished(outcome) => outcome,
        Training::Paused => panic!("nobody paused it"),
    }
}

#[test]
fn training_on_vulkan_agrees_with_the_cpu() {
    if !in_own_process("training_on_vulkan_agrees_with_the_cpu", &lavapipe()) {
        return;
    }
    let gpu = ComputeDevice::open(DeviceChoice::Gpu { index: 0 }).unwrap();
    assert_eq!(gpu.kind(), DeviceKind::Gpu);
    assert!(gpu.name().contains("llvmpipe"), "{}", gpu.name());

    let job = job(tiny(), plan());
    let (a, b) = (
        logits(&job.network, &job.base, &data(0..16), &gpu).unwrap(),
        logits(&job.network, &job.base, &data(0..16), &ComputeDevice::cpu()).unwrap(),
    );
    for (a, b) in a.iter().zip(&b) {
        assert!((a - b).abs() < 1e-4, "{a} {b}");
    }

    let (gpu, cpu) = (one_epoch(gpu), one_epoch(ComputeDevice::cpu()));
    let moved: f32 =
        cpu.parameters.as_slice().iter().zip(job.base.as_slice()).map(|(a, b)| (a - b).powi(2)).sum();
    let pairs = gpu.parameters.as_slice().iter().zip(cpu.parameters.as_slice());
    let apart: f32 = pairs.map(|(a, b)| (a - b).powi(2)).sum();
    assert!(apart.sqrt() < 1e-2 * moved.sqrt(), "{} of {}", apart.sqrt(), moved.sqrt());
}

#[test]
fn without_an_adapter_auto_takes_the_cpu_and_says_so() {
    if !in_own_process("without_an_adapter_auto_takes_the_cpu_and_says_so", "/nonexistent/icd.json") {
        return;
    }
    let device = ComputeDevice::open(DeviceChoice::Auto).unwrap();
    assert_eq!(device.kind(), DeviceKind::Cpu);
    let note = device.note().unwrap();
    assert!(
        note.starts_with("no hardware GPU found, so the CPU computes; to use one, install")
            && note.contains("libvulkan1"),
        "{note}"
    );

    // Without Vulkan a software adapter of OpenGL may be left.
    let index = ComputeDevice::adapters().len();
    let error = ComputeDevice::open(DeviceChoice::Gpu { index }).unwrap_err().to_string();
    assert!(
        error.contains(&format!("{index} GPU adapters"))
            && error.contains("libvulkan1")
            && error.contains("configure the CPU"),
        "{error}"
    );
}

#[test]
fn the_cpu_names_the_threads_that_it_computes_with() {
    const NAME: &str = "the_cpu_names_the_threads_that_it_computes_with";
    if std::env::var(CASE).as_deref() == Ok(NAME) {
        println!("{}", ComputeDevice::cpu().name());
        return;
    }
    for (threads, name) in [("1", "CPU (1 thread)"), ("3", "CPU (3 threads)")] {
        let output = Command::new(std::env::current_exe().unwrap())
            .args([NAME, "--exact", "--nocapture"])
            .env(CASE, NAME)
            .env("RAYON_NUM_THREADS", threads)
            .output()
            .unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && printed.contains(name), "{printed}");
    }
}

#[test]
fn auto_passes_over_a_software_adapter() {
    if !in_own_process("auto_passes_over_a_software_adapter", &lavapipe()) {
        return;
    }
    let device = ComputeDevice::open(DeviceChoice::Auto).unwrap();
    assert_eq!((device.kind(), device.note().is_some()), (DeviceKind::Cpu, true));
}
