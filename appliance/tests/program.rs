//! The program as a hospital starts it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn sample() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/appliance.toml")
}

fn check(config: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_medinet-appliance"))
        .args(["run", "--check", "--config"])
        .arg(config)
        .output()
        .unwrap()
}

#[test]
fn the_sample_passes_its_check() {
    let output = check(&sample());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_mistake_is_named_with_its_line() {
    // Beside the sample's other files, which it names by relative paths.
    let folder = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(sample()).unwrap();
    std::fs::copy(sample().with_file_name("task-pneumonia.toml"), folder.path().join("task-pneumonia.toml"))
        .unwrap();
    let config = folder.path().join("appliance.toml");
    std::fs::write(&config, format!("colour = \"red\"\n{text}")).unwrap();
    let output = check(&config);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(error.contains("appliance.toml:1:") && error.contains("colour"), "{error}");
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let output = check(Path::new("/nonexistent/appliance.toml"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains("/nonexistent/appliance.toml"), "{error}");
}

/// Starts the appliance with the sample's settings, of which `device` replaces the one line, where no Vulkan driver is found. It
/// ends by itself, for the sample's ledger key is not there.
fn run_without_vulkan(device: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(sample()).unwrap();
    assert_eq!(text.matches("\ndevice = \"auto\"").count(), 1);
    std::fs::copy(sample().with_file_name("task-pneumonia.toml"), folder.path().join("task-pneumonia.toml"))
        .unwrap();
    let config = folder.path().join("appliance.toml");
    std::fs::write(&config, text.replace("\ndevice = \"auto\"", &format!("\ndevice = {device}"))).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_medinet-appliance"))
        .args(["run", "--config"])
        .arg(config)
        .env("VK_ICD_FILENAMES", "/nonexistent/icd.json")
        .env("VK_DRIVER_FILES", "/nonexistent/icd.json")
        .env_remove("MEDINET_LOG")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success(), "{text}");
    text
}

#[test]
fn a_missing_gpu_is_told_at_the_start_with_what_to_install() {
    let log = run_without_vulkan("\"auto\"");
    let warning = log.lines().find(|line| line.contains("WARN")).unwrap_or_else(|| panic!("{log}"));
    for part in ["no hardware GPU found", "libvulkan1", "CPU (2 threads)"] {
        assert!(warning.contains(part), "{part}: {log}");
    }
    // It has gone on.
    assert!(log.contains("ledger.pub"), "{log}");
}

#[test]
fn a_gpu_that_is_configured_and_missing_ends_the_start() {
    let log = run_without_vulkan("{ gpu = { index = 99 } }");
    let error = log.lines().last().unwrap();
    for part in ["training.device cannot be used: GPU 99 was configured", "libvulkan1", "device = \"cpu\""] {
        assert!(error.contains(part), "{part}: {log}");
    }
    assert!(!log.contains("ledger.pub"), "it has gone on: {log}");
}

#[test]
fn a_configured_cpu_needs_no_search() {
    let log = run_without_vulkan("\"cpu\"");
    assert!(!log.contains("WARN") && !log.contains("GPU") && log.contains("ledger.pub"), "{log}");
}
