//! How the mean of the sites' deltas moves the global model.

use serde::{Deserialize, Serialize};

/// The server's step from one global model to the next (Reddi et al. 2021, algorithm 1, `ServerOpt`).
///
/// Methods with momentum keep a vector between rounds; it would be stored as a blob beside the model and
/// named in the snapshot, as the base model is. They would keep it of the steps that they make, and not of what the way down lets
/// through of these (`crate::downlink`): what it does not is owed and comes with the next model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServerOptimizer {
    /// Federated averaging (McMahan et al. 2017, algorithm 1): the base plus the example-weighted mean delta.
    #[default]
    FedAvg,
}

impl ServerOptimizer {
    /// The next model's parameters; both vectors have the network's length.
    #[must_use]
    pub fn step(self, base: &[f32], mean_delta: &[f32]) -> Vec<f32> {
        match self {
            Self::FedAvg => base.iter().zip(mean_delta).map(|(parameter, delta)| parameter + delta).collect(),
        }
    }
}
