//! Runs a released model on prepared images, on the processor, through tract.
//!
//! Only a [`medinet_ledger::VerifiedModel`] gives a [`Model`]: what runs here stands on the ledger, byte for byte. The one
//! way around that is called [`dangerous`] and is for tests and measurements.
//!
//! The input is what `medinet-imaging` prepares by the model's own specification ([`Model::spec`]); the output are class
//! probabilities. Nothing here does I/O or reads a clock.

mod error;
mod model;
mod prediction;

pub use error::InferenceError;
pub use model::{Dangerous, Model, dangerous};
pub use prediction::Prediction;
