//! Trains on PneumoniaMNIST (`pneumoniamnist.npz` of MedMNIST) and measures on its test split, to hold against the published figures:
//!
//! ```text
//! cargo run -p medinet-training --example pneumonia -- FILE.npz [small|resnet18] [epochs]
//! ```
#![allow(clippy::print_stdout, reason = "a command that prints its result")]

use flate2::read::DeflateDecoder;
use medinet_model::{Augmentation, ClassBalance, InputShape, ModelParameters, NetworkManifest, TrainingPlan};
use medinet_training::{
    Checkpoints, ComputeDevice, InMemoryData, Trainer, Training, TrainingData as _, TrainingJob, evaluate,
};
use std::error::Error;
use std::io::Read as _;
use std::ops::ControlFlow;
use std::time::Instant;

const SIDE: u32 = 28;
const SHAPE: InputShape = InputShape { channels: 1, height: SIDE, width: SIDE };

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: pneumonia FILE.npz [small|resnet18] [epochs]")?;
    let archive = std::fs::read(path)?;
    let classes = vec!["normal".to_owned(), "pneumonia".to_owned()];
    let network = match arguments.next().as_deref() {
        Some("resnet18") => NetworkManifest::resnet18(SHAPE, classes),
        _ => NetworkManifest::small(SHAPE, classes),
    };
    let local_epochs = arguments.next().map_or(Ok(12), |text| text.parse())?;
    let (training, validation, test) =
        (split(&archive, "train")?, split(&archive, "val")?, split(&archive, "test")?);

    let plan = TrainingPlan {
        local_epochs,
        batch_size: 32,
        learning_rate: 0.05,
        momentum: 0.9,
        weight_decay: 5e-4,
        proximal_mu: 0.0,
        augmentation: Augmentation {
            shift_fraction: 0.08,
            rotate_degrees: 8.0,
            scale_fraction: 0.1,
            brightness: 0.1,
            contrast: 0.2,
            ..Augmentation::none()
        },
        class_balance: ClassBalance::WeightedLoss,
        early_stopping_epochs: 8,
        seed: 1,
        privacy: None,
    };
    let base = ModelParameters::initial(&network, 1)?;
    let job = TrainingJob { network, base, plan, site_seed: 1 };
    let folder = std::env::temp_dir().join(format!("medinet-pneumonia-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let augment = |image: &mut [f32], shape, plan: &_, random: &mut _| {
        medinet_imaging::augment(image, shape, plan, random);
    };
    let trainer = Trainer::new(ComputeDevice::cpu(), Checkpoints::new(&folder)).with_augmentation(&augment);
    let start = Instant::now();
    let mut epoch = 0;
    let outcome = trainer.train(&job, &training, &validation, &mut |progress| {
        if let Some(report) = progress.last_epoch.filter(|report| report.epoch >= epoch) {
            println!("{report:?}");
            epoch = report.epoch + 1;
        }
        ControlFlow::Continue(())
    })?;
    let seconds = start.elapsed().as_secs_f64();
    std::fs::remove_dir_all(&folder)?;
    let Training::Finished(outcome) = outcome else { return Err("paused".into()) };
    let epochs = outcome.epochs.len();
    println!(
        "{} parameters, {epochs} epochs, best epoch {}",
        job.base.as_slice().len(),
        outcome.chosen_epoch
    );
    println!("{seconds:.1} s, {:.0} images/s", (training.len() * epochs) as f64 / seconds);
    println!("validation: {:?}", outcome.validation);
    println!("test: {:?}", evaluate(&job.network, &outcome.parameters, &test, &ComputeDevice::cpu())?);
    println!("published (MedMNIST v2): ResNet-18 at 28 px AUC 0.944, accuracy 0.854");
    Ok(())
}

/// A split's images, normalised per image, with their labels.
fn split(archive: &[u8], name: &str) -> Result<InMemoryData, Box<dyn Error>> {
    let labels = array(archive, &format!("{name}_labels.npy"))?;
    let pixels = array(archive, &format!("{name}_images.npy"))?;
    let size = (SIDE * SIDE) as usize;
    let mut inputs: Vec<f32> = pixels.iter().map(|&v| f32::from(v) / 255.0).collect();
    for image in inputs.chunks_exact_mut(size) {
        let mean = image.iter().sum::<f32>() / size as f32;
        let deviation = (image.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / size as f32).sqrt();
        image.iter_mut().for_each(|v| *v = (*v - mean) / deviation.max(1e-3));
    }
    Ok(InMemoryData::new(SHAPE, inputs, labels.into_iter().map(usize::from).collect()))
}

/// The bytes of an array of bytes in an .npz archive (a zip file of .npy files), found by its central directory.
fn array(archive: &[u8], name: &str) -> Result<Vec<u8>, Box<dyn Error>> {
    let number = |at: usize, bytes: usize| -> Result<usize, Box<dyn Error>> {
        let field = archive.get(at..at + bytes).ok_or("truncated archive")?;
        Ok(field.iter().rev().fold(0, |value, &byte| value << 8 | usize::from(byte)))
    };
    let end = archive.windows(4).rposition(|w| w == b"PK\x05\x06").ok_or("not an .npz archive")?;
    let (entries, mut entry) = (number(end + 10, 2)?, number(end + 16, 4)?);
    for _ in 0..entries {
        let (method, packed, name_len) =
            (number(entry + 10, 2)?, number(entry + 20, 4)?, number(entry + 28, 2)?);
        if archive.get(entry + 46..entry + 46 + name_len) == Some(name.as_bytes()) {
            let local = number(entry + 42, 4)?;
            let start = local + 30 + number(local + 26, 2)? + number(local + 28, 2)?;
            let packed = archive.get(start..start + packed).ok_or("truncated archive")?;
            let mut file = Vec::new();
            match method {
                0 => file.extend_from_slice(packed),
                _ => drop(DeflateDecoder::new(packed).read_to_end(&mut file)?),
            }
            let header = usize::from(u16::from_le_bytes([file[8], file[9]]));
            return Ok(file.split_off(10 + header));
        }
        entry += 46 + name_len + number(entry + 30, 2)? + number(entry + 32, 2)?;
    }
    Err(format!("{name} is not in the archive").into())
}
