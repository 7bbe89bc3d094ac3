//! Local training: from a round's base model and a site's own images to trained parameters.
//!
//! A [`Trainer`] follows a [`TrainingPlan`](medinet_model::TrainingPlan) on the CPU or on a Vulkan GPU, writes
//! checkpoints from which a killed training resumes to the same bits (on the CPU), and stops early on the
//! site's validation split. It reads images through [`TrainingData`] and changes them through an augmentation
//! that the caller passes, so it knows nothing about DICOM, files of images, or patients.
//!
//! All randomness comes from ChaCha keyed by the plan, the site, the epoch and the image: no state is
//! global to the process, and none needs to be saved. Private training (the module `private`) is the exception: whom a step takes
//! and the noise come from the operating system, so that nobody can foretell or repeat them.

mod checkpoint;
mod compute;
mod data;
mod evaluate;
mod optimizer;
mod private;
mod probe;
mod schedule;
mod trainer;

pub use checkpoint::{CheckpointError, Checkpoints};
pub use compute::{ComputeDevice, DeviceChoice, DeviceError, DeviceKind};
pub use data::{DataError, InMemoryData, TrainingData};
pub use evaluate::{Evaluation, EvaluationError, evaluate, logits};
pub use private::{DangerousTrainer, published_count};
pub use probe::{ProbeBatch, ProbeError, image_gradient, parameter_gradient};
pub use trainer::{
    Augment, EpochReport, Progress, Trainer, Training, TrainingError, TrainingJob, TrainingOutcome,
};
