//! What a round costs the site's patients, by the site's own accountant, whatever the announcement claims.

use crate::round::UNMASKED;
use crate::trainer::RESULT;
use medinet_model::ParameterLayout;
use medinet_privacy::{Accounting, Composition, DpSgdPlan, Event, PrivacyLimit};
use medinet_wire::message::{RoundKind, RoundPlan};

/// What a private round is charged, and which file one charge pays for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct RoundCost {
    /// What the accountant composes.
    pub(crate) event: Event,
    /// The file, in the round's folder, of what has got its noise. Made a second time it would have other noise and be another release.
    pub(crate) product: &'static str,
}

impl RoundCost {
    /// The cost of private training: its noise is in the trained model.
    #[must_use]
    pub(crate) fn of_training(plan: &DpSgdPlan) -> Self {
        Self { event: plan.event(), product: RESULT }
    }

    /// The cost of a round; `None` for one that is not private, or in which nothing is trained.
    ///
    /// # Errors
    /// When the announcement asks for two kinds of noise at once, or for noise that cannot be.
    pub(crate) fn of(plan: &RoundPlan) -> Result<Option<Self>, String> {
        if plan.kind != RoundKind::Train {
            return Ok(None);
        }
        let codec = plan.aggregation.secure().map(|secure| &secure.codec);
        match (&plan.training.privacy, codec.filter(|codec| codec.noise.is_some())) {
            (None, None) => Ok(None),
            (Some(privacy), None) => Ok(Some(Self::of_training(privacy))),
            (Some(_), Some(_)) => {
                Err("expected noise either in training or inside the sum, got both".to_owned())
            }
            (None, Some(codec)) => {
                let layout = ParameterLayout::of(&plan.spec.network).map_err(|error| error.to_string())?;
                codec.check().map_err(|error| error.to_string())?;
                codec.check_noise(layout.len()).map_err(|error| error.to_string())?;
                let event = codec.noise_event(layout.len()).map_err(|error| error.to_string())?;
                // The noise goes onto the update when it is encoded, after a training without any.
                Ok(event.map(|event| Self { event, product: UNMASKED }))
            }
        }
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
