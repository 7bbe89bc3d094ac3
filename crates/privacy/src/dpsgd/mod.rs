//! What differentially private stochastic gradient descent (Abadi et al. 2016, algorithm 1) needs around the network.
//!
//! One step, for a site with patients p = 1, ..., N, each with all of their images:
//!
//! 1. take every patient independently with probability q ([`PatientGroups::sample`]); the batch P may be empty, and
//!    then the step still happens;
//! 2. per patient p of P the gradient g_p of the mean loss of their images, and its L2 norm over all parameters
//!    together;
//! 3. clip: g_p min(1, C / ||g_p||) ([`clip_factor`]);
//! 4. S = sum over P of the clipped gradients. Sites make each in single precision, to the same bits whoever else is taken, and add them in
//!    double precision; [`GradientSum`] adds exactly;
//! 5. noise: S + N(0, (z C)² I) (`GaussianNoise`; [`DpSgdPlan::noise`] for sums in floating point, [`DpSgdPlan::exact_noise`] for exact
//!    ones);
//! 6. divide by the expected batch q N', never by the batch's size, which is private
//!    ([`DpSgdPlan::expected_patients`]). N' is one number for all rounds of a task: whoever sees what leaves can tell it from the
//!    scale of the noise. One that followed the number of patients would move with one patient, with certainty, and no accountant
//!    counts that; so it is fixed at the task's first private round ([`PrivacyBudget::fix_public_patients`](crate::PrivacyBudget::fix_public_patients)).
//!
//! Removing a patient changes S by at most C in L2 norm, so a step is the Poisson-subsampled Gaussian mechanism with
//! noise multiplier z = `noise_multiplier`; the accountant composes the steps.

mod groups;
mod sum;

pub use groups::{PatientGroups, SamplingThreshold};
pub use sum::{GradientSum, SumError, clip_factor};

use crate::accountant::{Accounting, Composition};
use crate::calibrate::{CalibrationError, noise_multiplier_for};
use crate::event::Event;
use crate::noise::GaussianNoise;
use crate::units::{Delta, Epsilon, NoiseMultiplier, ParameterError, PrivacyLimit, SamplingRate};
use serde::{Deserialize, Serialize};

/// How a site trains privately in one round, and what that costs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DpSgdPlan {
    /// What the steps cost, alone, at `delta`; at least what the accountant says.
    pub epsilon: Epsilon,
    /// The delta for which `epsilon` holds.
    pub delta: Delta,
    /// z: standard deviation of the noise over the clip norm.
    pub noise_multiplier: NoiseMultiplier,
    /// C: largest L2 norm of a patient's gradient, above 0, at most 1e6.
    pub clip_norm: f64,
    /// q: probability that a step takes a patient.
    pub sampling_rate: SamplingRate,
    /// Number of steps, 1 to 10^8.
    pub steps: u64,
}

/// A plan that breaks the rules; whoever wrote it is at fault.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// A field is out of range.
    #[error("private training plan")]
    Field(#[from] ParameterError),
    /// The plan claims less than it costs.
    #[error(
        "private training plan: expected an epsilon of at least {cost} at delta {delta} for what its steps cost, got {claimed}"
    )]
    Understated {
        /// What the accountant says, tight.
        cost: f64,
        /// The plan's delta.
        delta: Delta,
        /// The plan's epsilon.
        claimed: Epsilon,
    },
}

impl DpSgdPlan {
    /// The plan with the least noise that meets a target.
    ///
    /// # Errors
    /// When no noise does.
    pub fn for_target(
        target: &PrivacyLimit,
        clip_norm: f64,
        sampling_rate: SamplingRate,
        steps: u64,
    ) -> Result<Self, CalibrationError> {
        let noise_multiplier =
            noise_multiplier_for(target, sampling_rate, steps, &Composition::new(), Accounting::Tight)?;
        let PrivacyLimit { epsilon, delta } = *target;
        Ok(Self { epsilon, delta, noise_multiplier, clip_norm, sampling_rate, steps })
    }

    /// Checks every field, and that the steps cost no more than the plan says.
    ///
    /// # Errors
    /// See [`PlanError`].
    pub fn check(&self) -> Result<(), PlanError> {
        if !(self.clip_norm > 0.0 && self.clip_norm <= 1e6) {
            return Err(ParameterError::new("clip norm", "above 0 and at most 1e6", self.clip_norm).into());
        }
        if !(1..=100_000_000).contains(&self.steps) {
            return Err(ParameterError::new("steps", "1 to 10^8", self.steps as f64).into());
        }
        let mut alone = Composition::new();
        alone.add(&self.event());
        // Logarithms differ in their last digits between machines: a plan that was made to fit on one fits on all.
        let claimed = self.epsilon.get() * (1.0 + 1e-6);
        if alone.epsilon(self.delta, Accounting::Renyi) <= claimed {
            return Ok(());
        }
        let cost = alone.epsilon(self.delta, Accounting::Tight);
        if cost <= claimed {
            return Ok(());
        }
        Err(PlanError::Understated { cost, delta: self.delta, claimed: self.epsilon })
    }

    /// What the accountant composes.
    #[must_use]
    pub fn event(&self) -> Event {
        Event::Gaussian {
            sampling_rate: self.sampling_rate,
            noise_multiplier: self.noise_multiplier,
            steps: self.steps,
        }
    }

    /// The noise for sums of clipped gradients with `parameters` coordinates that were added in floating point. It is
    /// larger than z C by what rounding such a sum to the noise's grid g adds to the sensitivity, C + g sqrt(d), and
    /// by 2^-12 for rounding errors of the sum itself in double precision (Casacuberta et al. 2022): with the sums of
    /// [`GradientSum`] neither is needed.
    ///
    /// It is for sums of vectors that each follow from one patient alone and whose norms are at most C up to rounding in double precision (at most
    /// 2^-13 of it, for fewer than 2^38 parameters). Added in double precision with at most 2 B roundings on the way of any of them, B such vectors
    /// err by a vector of norm at most 2 B 2^-53 B C, and neighbouring sums by twice that, B² 2^-51 C: at most 2^-13 C for B up to 2^19 patients in
    /// a step.
    /// Sums in single precision are not covered: they err by B (B - 1) 2^-24 C where each vector is rounded once, and by more within products.
    ///
    /// # Errors
    /// When z C is outside of 1e-25 to 1e25, or there are so many parameters that no grid serves.
    pub fn noise(&self, parameters: usize) -> Result<GaussianNoise, ParameterError> {
        // sigma >= z (C + g sqrt d) with g <= sigma 2^-19.
        let lost = self.noise_multiplier.get() * (parameters as f64).sqrt() * f64::powi(2.0, -19);
        if lost > 0.5 {
            let expected = "fewer, so that rounding costs less than half of the noise";
            return Err(ParameterError::new("parameters", expected, parameters as f64));
        }
        let exact = self.noise_multiplier.get() * self.clip_norm;
        GaussianNoise::new(exact * (1.0 + f64::powi(2.0, -12)) / (1.0 - lost))
    }

    /// The noise for sums of [`GradientSum`]: standard deviation z C.
    ///
    /// # Errors
    /// When z C is outside of 1e-25 to 1e25.
    pub fn exact_noise(&self) -> Result<GaussianNoise, ParameterError> {
        GaussianNoise::new(self.noise_multiplier.get() * self.clip_norm)
    }

    /// q N': what a noisy sum is divided by; `public_patients` is a count that may be known.
    #[must_use]
    pub fn expected_patients(&self, public_patients: u64) -> f64 {
        self.sampling_rate.get() * public_patients as f64
    }
}
