//! What a task's model is: its network, its input preprocessing, its training plan, and the canonical
//! flat parameter vector that every other crate works on.
//!
//! The pure part (manifests, layout, digest, initial parameters, ONNX out) builds without burn, so that the
//! aggregator can make, digest and export models without a training framework. The networks as burn
//! modules are behind the `burn` feature.
//!
//! One description of the layers, derived from a [`NetworkManifest`], gives the [`ParameterLayout`], the
//! burn module and the ONNX graph, so that they cannot drift apart.

mod architecture;
mod layout;
mod manifest;
#[cfg(feature = "burn")]
pub mod network;
pub mod onnx;
mod parameters;
mod plan;

pub use layout::{MAX_PARAMETERS, ParameterLayout, TensorRole, TensorSlot};
pub use manifest::{
    Body, ClassLabel, InputShape, Intensity, ManifestError, NetworkManifest, Normalisation, Preprocessing,
    Resize, Slices, Stem, TaskSpec,
};
pub use parameters::{
    ModelParameters, ParameterBlobError, ParameterError, decode_parameters, encode_parameters, model_digest,
};
pub use plan::{Augmentation, ClassBalance, PlanError, TrainingPlan};
