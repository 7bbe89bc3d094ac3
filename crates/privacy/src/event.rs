//! What the accountant composes.

use crate::distributed::DistributedGaussian;
use crate::units::{NoiseMultiplier, SamplingRate};
use serde::{Deserialize, Serialize};

/// A number of runs of one mechanism on the same patients.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Event {
    /// Steps of the Poisson-subsampled Gaussian mechanism: each step takes every patient independently with the
    /// sampling rate, sums vectors of L2 norm at most C over the patients taken, and adds N(0, (sigma C)²) to each
    /// coordinate. A rate of 1 is the plain Gaussian mechanism.
    Gaussian {
        /// Probability that a step takes a given patient.
        sampling_rate: SamplingRate,
        /// sigma: standard deviation of the noise over C.
        noise_multiplier: NoiseMultiplier,
        /// Number of steps.
        steps: u64,
    },
    /// Rounds of the distributed discrete Gaussian mechanism, in which every site's whole contribution takes part.
    DistributedGaussian {
        /// Its parameters.
        mechanism: DistributedGaussian,
        /// Number of rounds.
        rounds: u64,
    },
}

impl Event {
    /// How often the mechanism runs.
    #[must_use]
    pub fn count(&self) -> u64 {
        match self {
            Self::Gaussian { steps, .. } => *steps,
            Self::DistributedGaussian { rounds, .. } => *rounds,
        }
    }

    /// The same mechanism, run `count` times.
    #[must_use]
    pub fn with_count(mut self, count: u64) -> Self {
        match &mut self {
            Self::Gaussian { steps, .. } => *steps = count,
            Self::DistributedGaussian { rounds, .. } => *rounds = count,
        }
        self
    }
}
