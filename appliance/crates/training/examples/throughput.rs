//! Images per second in training, data and optimizer included, to hold against bench/torch_twin.py in the same run:
//!
//! ```text
//! RAYON_NUM_THREADS=1 cargo run -p medinet-training --example throughput -- resnet18 28 32 12
//! .venv/bin/python appliance/crates/training/bench/torch_twin.py resnet18 28 32 12 --threads 1
//! ```
//!
//! Arguments: network (`small` or `resnet18`), side in pixels, batch size, steps to measure, and optionally
//! `generic` for burn's own layers or `gpu` for the first GPU adapter.
#![allow(clippy::print_stdout, reason = "a command that prints its result")]

use medinet_model::{Augmentation, ClassBalance, InputShape, ModelParameters, NetworkManifest, TrainingPlan};
use medinet_training::{Checkpoints, ComputeDevice, DeviceChoice, InMemoryData, Trainer, TrainingJob};
use std::ops::ControlFlow;
use std::time::Instant;

const WARM_UP: u32 = 2;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |index: usize, default: u32| arguments.get(index).map_or(Ok(default), |text| text.parse());
    let (side, batch, steps) = (number(1, 28)?, number(2, 32)?, number(3, 12)?);
    let input = InputShape { channels: 1, height: side, width: side };
    let classes = vec!["normal".to_owned(), "pneumonia".to_owned()];
    let network = match arguments.first().map(String::as_str) {
        Some("small") => NetworkManifest::small(input, classes),
        _ => NetworkManifest::resnet18(input, classes),
    };
    let variant = arguments.get(4).map_or("", String::as_str);

    let images = (batch * (steps + WARM_UP)) as usize;
    let size = (side * side) as usize;
    let inputs =
        (0..images * size).map(|i| (i.wrapping_mul(2_654_435_761) % 1000) as f32 / 500.0 - 1.0).collect();
    let data = InMemoryData::new(input, inputs, (0..images).map(|i| i % 2).collect());
    let nothing = InMemoryData::new(input, Vec::new(), Vec::new());
    let plan = TrainingPlan {
        local_epochs: 1,
        batch_size: batch,
        learning_rate: 0.01,
        momentum: 0.9,
        weight_decay: 1e-4,
        proximal_mu: 0.0,
        augmentation: Augmentation::none(),
        class_balance: ClassBalance::None,
        early_stopping_epochs: 0,
        seed: 1,
    };
    let base = ModelParameters::initial(&network, 1)?;
    let job = TrainingJob { network, base, plan, site_seed: 1 };

    let device = match variant {
        "gpu" => ComputeDevice::open(DeviceChoice::Gpu { index: 0 })?,
        _ => ComputeDevice::cpu(),
    };
    let name = device.name().to_owned();
    let folder = std::env::temp_dir().join(format!("medinet-throughput-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let trainer = Trainer::new(device, Checkpoints::new(&folder));
    let trainer = if variant == "generic" { trainer.with_generic_layers() } else { trainer };
    let (mut times, mut cpu_seconds) = (Vec::new(), Vec::new());
    trainer.train(&job, &data, &nothing, &mut |_| {
        times.push(Instant::now());
        cpu_seconds.push(process_cpu_seconds());
        ControlFlow::Continue(())
    })?;
    std::fs::remove_dir_all(&folder)?;
    let first = WARM_UP as usize - 1;
    let mut each: Vec<f64> =
        times[first..].windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
    each.sort_by(f64::total_cmp);
    let cpu = cpu_seconds[cpu_seconds.len() - 1] - cpu_seconds[first];
    let threads = std::env::var("RAYON_NUM_THREADS").unwrap_or_else(|_| "all".into());
    println!(
        "medinet {} {side} px batch {batch} threads {threads} {variant} on {name}: {:.1} images/s (median step), {:.1} (best \
         step), {:.1} images per CPU second",
        arguments.first().map_or("resnet18", String::as_str),
        f64::from(batch) / each[each.len() / 2],
        f64::from(batch) / each[0],
        f64::from(batch * steps) / cpu,
    );
    Ok(())
}

/// CPU time of all threads so far, from Linux's process statistics in hundredths of a second; 0 elsewhere.
fn process_cpu_seconds() -> f64 {
    let statistics = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = statistics.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}
