//! What rounds cost patients by their announcements alone: one function for sites, which charge rounds, and for the aggregator, which adds up
//! what it has announced.

use crate::message::{RoundKind, RoundPlan};
use medinet_model::{ManifestError, ParameterLayout};
use medinet_privacy::{Accounting, Composition, Delta, Epsilon, Event, ParameterError};
use medinet_update::{NoiseError, PlanError};
use serde::{Deserialize, Serialize};

/// What the private rounds of a task cost together by their plans, in an announcement. It is the aggregator's word about its own rounds: the most
/// that a patient has paid at a site that took part in all of them. A site's own budget says what its patients really paid, and decides.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrivacyTotal {
    /// Private rounds that were announced, at least 1; one that ended without a model counts, and so does another in its place.
    pub rounds: u32,
    /// Epsilon of all of them together at `delta`. `None` where nothing bounds what has left: rounds of training without noise were announced too,
    /// or the accountant finds no bound.
    pub epsilon: Option<Epsilon>,
    /// The delta of the newest private round's plan.
    pub delta: Delta,
}

impl PrivacyTotal {
    /// The total of so many private rounds that compose to this.
    #[must_use]
    pub fn of(rounds: u32, composition: &Composition, delta: Delta) -> Self {
        // Infinite, which no epsilon can be, where there is no bound.
        let epsilon = Epsilon::new(composition.epsilon(delta, Accounting::Tight)).ok();
        Self { rounds, epsilon, delta }
    }

    /// Whether it claims less than `epsilon` at its delta.
    #[must_use]
    pub fn is_below(&self, epsilon: f64) -> bool {
        // Both are numerical bounds, which need not grow from round to round by the last thousandth.
        self.epsilon.is_some_and(|total| total.get() * (1.0 + 1e-3) < epsilon)
    }
}

/// What a private round of training runs on patients' data.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PrivateRound {
    /// What the accountant composes.
    pub event: Event,
    /// The delta at which the plan states its cost.
    pub delta: Delta,
}

/// An announcement whose noise cannot be charged; whoever made the plan is at fault.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PrivateRoundError {
    /// Two kinds of noise at once.
    #[error("expected noise either in training or inside the sum, got both")]
    Both,
    /// The network cannot be built.
    #[error(transparent)]
    Network(#[from] ManifestError),
    /// The codec breaks its rules.
    #[error(transparent)]
    Codec(#[from] PlanError),
    /// The noise breaks its rules, or costs more than it says.
    #[error(transparent)]
    Noise(#[from] NoiseError),
    /// The noise is out of its ranges.
    #[error(transparent)]
    Range(#[from] ParameterError),
}

impl RoundPlan {
    /// What the round runs on patients' data, whatever the plan claims that it costs; `None` for a round that is not private, or in which nothing is
    /// trained.
    ///
    /// # Errors
    /// When the announcement asks for two kinds of noise at once, or for noise that cannot be.
    pub fn private_round(&self) -> Result<Option<PrivateRound>, PrivateRoundError> {
        if self.kind != RoundKind::Train {
            return Ok(None);
        }
        let codec = self.aggregation.secure().map(|secure| &secure.codec);
        let inside = codec.and_then(|codec| codec.noise.map(|noise| (codec, noise.delta)));
        match (&self.training.privacy, inside) {
            (None, None) => Ok(None),
            (Some(training), None) => {
                Ok(Some(PrivateRound { event: training.event(), delta: training.delta }))
            }
            (Some(_), Some(_)) => Err(PrivateRoundError::Both),
            (None, Some((codec, delta))) => {
                let layout = ParameterLayout::of(&self.spec.network)?;
                codec.check()?;
                codec.check_noise(layout.len())?;
                let event = codec.noise_event(layout.len())?;
                Ok(event.map(|event| PrivateRound { event, delta }))
            }
        }
    }
}
