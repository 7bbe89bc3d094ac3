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

    /// Whether both run one mechanism, however often each; its numbers may differ in the last digits, as they do between machines that
    /// compute them.
    #[must_use]
    pub fn same_mechanism(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::Gaussian { sampling_rate, noise_multiplier, .. },
                Self::Gaussian { sampling_rate: other_rate, noise_multiplier: other_multiplier, .. },
            ) => {
                close(sampling_rate.get(), other_rate.get())
                    && close(noise_multiplier.get(), other_multiplier.get())
            }
            (
                Self::DistributedGaussian { mechanism, .. },
                Self::DistributedGaussian { mechanism: other, .. },
            ) => mechanism.is_close_to(other),
            _ => false,
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

/// Whether two positive numbers are the same but for their last digits.
pub(crate) fn close(one: f64, other: f64) -> bool {
    (one - other).abs() <= 1e-6 * one.abs().max(other.abs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::distributed::{DistributedPlan, Protected};

    fn gaussian(rate: f64, multiplier: f64, steps: u64) -> Event {
        Event::Gaussian {
            sampling_rate: SamplingRate::new(rate).unwrap(),
            noise_multiplier: NoiseMultiplier::new(multiplier).unwrap(),
            steps,
        }
    }

    fn distributed(multiplier: f64, honest_survivors: u32) -> Event {
        let plan = DistributedPlan {
            clip_norm: 10.0,
            granularity: 1.0,
            dimensions: 1000,
            honest_survivors,
            rounding_beta: 0.6,
            protected: Protected::Patient,
        };
        let variance = plan.site_variance(NoiseMultiplier::new(multiplier).unwrap()).unwrap();
        Event::DistributedGaussian { mechanism: plan.mechanism(variance).unwrap(), rounds: 1 }
    }

    #[test]
    fn a_mechanism_is_its_noise_and_not_how_often_it_runs() {
        let (one, inside) = (gaussian(0.05, 1.1, 20), distributed(4.0, 5));
        assert!(one.same_mechanism(&gaussian(0.05, 1.1 * (1.0 + 1e-12), 300)));
        assert!(inside.same_mechanism(&inside.with_count(7)));
        for other in [gaussian(0.05, 1.1001, 20), gaussian(0.0501, 1.1, 20), inside] {
            assert!(!one.same_mechanism(&other) && !other.same_mechanism(&one), "{other:?}");
        }
        for other in [distributed(4.01, 5), distributed(4.0, 6)] {
            assert!(!inside.same_mechanism(&other), "{other:?}");
        }
    }
}
