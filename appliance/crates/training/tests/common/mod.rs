//! What the integration tests share.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "each test binary uses a part of it")]

use medinet_model::{
    Augmentation, Body, ClassBalance, InputShape, Intensity, ModelParameters, NetworkManifest, Normalisation,
    Preprocessing, Resize, Slices, Stem, TaskSpec, TrainingPlan,
};
use medinet_training::{InMemoryData, TrainingJob};

pub const SHAPE: InputShape = InputShape { channels: 1, height: 28, width: 28 };

/// 64 chest X-rays, see fixtures/README.md, normalised per image.
pub fn chest_x_rays() -> (Vec<f32>, Vec<usize>) {
    let bytes = include_bytes!("../fixtures/pneumoniamnist_64.bin");
    let (pixels, labels) = bytes.split_at(64 * 784);
    let mut inputs: Vec<f32> = pixels.iter().map(|&v| f32::from(v) / 255.0).collect();
    for image in inputs.chunks_exact_mut(784) {
        let mean = image.iter().sum::<f32>() / 784.0;
        let deviation = (image.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / 784.0).sqrt().max(1e-3);
        image.iter_mut().for_each(|v| *v = (*v - mean) / deviation);
    }
    (inputs, labels.iter().map(|&label| usize::from(label)).collect())
}

/// The images `range` of the 64.
pub fn data(range: std::ops::Range<usize>) -> InMemoryData {
    let (inputs, classes) = chest_x_rays();
    InMemoryData::new(SHAPE, inputs[range.start * 784..range.end * 784].to_vec(), classes[range].to_vec())
}

/// A network of about 7,000 parameters.
pub fn tiny() -> NetworkManifest {
    let body = Body::ResNet {
        stem: Stem::Stride1,
        stage_channels: vec![8, 16],
        stage_blocks: vec![1, 1],
        groups: 4,
    };
    NetworkManifest { input: SHAPE, classes: vec!["normal".into(), "pneumonia".into()], body }
}

pub fn plan() -> TrainingPlan {
    TrainingPlan {
        local_epochs: 3,
        batch_size: 10,
        learning_rate: 0.05,
        momentum: 0.9,
        weight_decay: 1e-3,
        proximal_mu: 0.0,
        augmentation: Augmentation { brightness: 0.2, ..Augmentation::none() },
        class_balance: ClassBalance::WeightedLoss,
        early_stopping_epochs: 0,
        seed: 11,
        privacy: None,
    }
}

pub fn job(network: NetworkManifest, plan: TrainingPlan) -> TrainingJob {
    let base = ModelParameters::initial(&network, 1).unwrap();
    TrainingJob { network, base, plan, site_seed: 5 }
}

pub fn spec(network: NetworkManifest) -> TaskSpec {
    TaskSpec {
        task: "chest-xray".parse().unwrap(),
        purpose: "Tells pneumonia from a normal chest.".into(),
        network,
        preprocessing: Preprocessing {
            slices: Slices::Single,
            intensity: Intensity::Percentile { low: 0.0, high: 100.0 },
            denoise: false,
            spacing_mm: None,
            resize: Resize::Stretch,
            normalisation: Normalisation::PerImage,
        },
    }
}
