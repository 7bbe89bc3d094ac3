//! What a task's model is: its network, its input preprocessing, its training plan, and the canonical
//! flat parameter vector that every other crate works on.
//!
//! The pure part (manifests, layout, digest, initial parameters, ONNX out) builds without burn, so that the
//! aggregator can make, digest and export models without a training framework. The networks as burn
//! modules are behind the `burn` feature.

mod manifest;
mod plan;

pub use manifest::{
    Body, ClassLabel, InputShape, Intensity, ManifestError, NetworkManifest, Normalisation, Preprocessing,
    Resize, Stem, TaskSpec,
};
pub use plan::{Augmentation, ClassBalance, TrainingPlan};
