//! What a round costs the site's patients, by the site's own accountant, whatever the announcement claims.

use crate::round::UNMASKED;
use crate::trainer::RESULT;
use medinet_privacy::{Accounting, Composition, Event, PrivacyLimit};
use medinet_wire::message::RoundPlan;

/// What a private round is charged, and which file one charge pays for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct RoundCost {
    /// What the accountant composes.
    pub(crate) event: Event,
    /// The file, in the round's folder, of what has got its noise. Made a second time it would have other noise and be another release.
    pub(crate) product: &'static str,
}

impl RoundCost {
    /// The cost of a round; `None` for one that is not private, or in which nothing is trained.
    ///
    /// # Errors
    /// When the announcement asks for two kinds of noise at once, or for noise that cannot be.
    pub(crate) fn of(plan: &RoundPlan) -> Result<Option<Self>, String> {
        let round = plan.private_round().map_err(|error| error.to_string())?;
        Ok(round.map(|round| Self {
            event: round.event,
            product: match round.event {
                // The noise of private training is in the trained model.
                Event::Gaussian { .. } => RESULT,
                // The noise goes onto the update when it is encoded, after a training without any.
                Event::DistributedGaussian { .. } => UNMASKED,
            },
        }))
    }

    /// What is run at each step or round, in words.
    #[must_use]
    pub(crate) fn mechanism(event: &Event) -> String {
        match event {
            Event::Gaussian { sampling_rate, noise_multiplier, .. } => {
                format!("noise multiplier {noise_multiplier} at sampling rate {sampling_rate} in training")
            }
            Event::DistributedGaussian { mechanism, .. } => {
                let (variance, sites) = (mechanism.variance().get(), mechanism.plan().honest_survivors);
                format!("noise of variance {variance} of {sites} sites inside the sum")
            }
        }
    }

    /// Epsilon of the round alone, at the limit's delta.
    #[must_use]
    pub(crate) fn alone(&self, limit: &PrivacyLimit) -> f64 {
        Composition::new().with(&self.event).epsilon(limit.delta, Accounting::Tight)
    }
}
