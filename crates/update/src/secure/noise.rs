//! Discrete Gaussian noise of each site's own, so that the opened sum is differentially private. With s = sqrt(K) L / (2 k(b)), which is
//! the clip norm in steps of the grid:
//!
//! 1. u_i = (R clip(delta_i, C)) on the K kept coordinates, in steps gamma = 2 k C / (sqrt(d) L), **not** multiplied by d/K. Its norm
//!    is near C sqrt(K/d), which is s steps, and is clipped to that: no vector is longer, whatever the rotation does to it.
//! 2. v_i = u_i rounded at random to integers, again until |v_i| <= D (conditional rounding, Kairouz, Liu, Steinke 2021, "KLS",
//!    algorithm 1 and proposition 26), with
//!
//! ```text
//! D² = min( (s + sqrt K)², s² + K/4 + sqrt(2 ln(1/beta)) (s + sqrt(K)/2) ),   beta = e^(-1/2)                     (4)
//! ```
//!
//!    and then cut to -T..=T, T = ceil(4 L / k), eight standard deviations of a coordinate of full norm. That makes no vector longer.
//! 3. v_i + Z_i goes under the mask, modulo 2^w, with Z_i of K independent samples of the discrete Gaussian N_Z(0, sigma²) (Canonne,
//!    Kamath, Steinke 2020, "CKS"). The sum is read centred, from -2^(w-1) to 2^(w-1) - 1.
//! 4. `mean = R^T (d/K) gamma sum (v_i + Z_i) / m`. Every site weighs the same and m is public. **No count and no norm follow**: each would be one more
//!    release. C stays the same in all rounds, and there is no error feedback, whose residual carries one round's patients into the next.
//!
//! **Sensitivity.** One patient of a site may change v_i to any other vector of norm at most D, since nothing bounds what one patient does to a
//! site's training: the sum moves by at most 2 D. It is as much for a whole site's data, so this is privacy of sites too, replaced by another's. Of the sum's noise only that of
//! n honest sites is counted (`honest_survivors`), variance n sigma²; z = sqrt(n) sigma / (2 D) is the noise multiplier.
//! `medinet_privacy::DistributedPlan` has the divergence, with what a sum of discrete Gaussians is short of one (KLS, proposition 14).
//!
//! **Ring.** A sum over m sites stays within m T and the noise. That is sub-Gaussian with variance proxy m sigma² (CKS, corollary 17), so that
//!
//! ```text
//! 2^(w-1) > m T + sqrt( 2 m sigma² (ceil(log2 2K) + 40) ln 2 )                                                    (5)
//! ```
//!
//! lets any of the K coordinates wrap with probability at most 2^-40 a round. A wrap costs accuracy, never privacy.
//!
//! **Error.** Noise adds K m sigma² (d/K)² gamma² / m² to the mean's squared error: with m = n and a fine grid (2 z C)² d / n², whatever K is. Beside the
//! mean's own norm, at most C, that is 2 z sqrt(d) / n, spread evenly over all directions: **large unless n is of the order of z sqrt(d)**. What a model bears of it is measured
//! (`medinet-study privacy`, docs/measurements.md).
//!
//! **Liars** are no longer held to codes of at most L. A sum whose norm no honest sites reach is refused:
//!
//! ```text
//! |sum| <= m D + sqrt( m sigma² (K + 2 sqrt(K t) + 2 t) ),   t = 40 ln 2                                          (6)
//! ```
//!
//! (Hsu, Kakade, Zhang 2012, for the noise; wrong for honest sites with probability 2^-40), so that liars move the mean by as much as noise does, and no further.

use super::grid::SecureCodecPlan;
use medinet_privacy::noise::Variance;
use medinet_privacy::{
    Accounting, Composition, Delta, DistributedGaussian, DistributedPlan, Epsilon, Event, NoiseMultiplier,
    ParameterError, Protected,
};
use serde::{Deserialize, Serialize};

/// beta of equation (4), e^(-1/2): sqrt(2 ln(1/beta)) is 1 then. A literal, so that it is the same on all machines.
const ROUNDING_BETA: f64 = 0.606_530_659_712_633_4;
/// A wrap, or an honest sum beyond (6) or mean beyond (8), has a probability of at most 2^-this.
pub(super) const FAILURE_BITS: f64 = 40.0;
/// T in standard deviations of a coordinate of full norm.
const CUT: f64 = 8.0;

/// The noise that each site adds to its integers, and what a round with it costs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoisePlan {
    /// What one round costs, alone, at `delta`, a patient of any site; at least what the accountant says.
    pub epsilon: Epsilon,
    /// The delta for which `epsilon` holds.
    pub delta: Delta,
    /// sigma²: the variance of each site's noise, in squares of the grid's step, at least 1/4.
    pub variance: Variance,
    /// n: the least number of honest sites whose noise is in an opened sum, 1 to 2^20. The rest of a cohort's minimum may collude.
    pub honest_survivors: u32,
}

/// A noise plan that breaks the rules; whoever wrote it is at fault.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum NoiseError {
    /// A field is out of range.
    #[error(transparent)]
    Field(#[from] ParameterError),
    /// The plan claims less than it costs.
    #[error(
        "noise inside the sum: expected an epsilon of at least {cost:.4} at delta {delta} for what a round costs, got {claimed}: more noise, \
         more honest survivors, or a larger epsilon"
    )]
    Understated {
        /// What the accountant says.
        cost: f64,
        /// The plan's delta.
        delta: Delta,
        /// The plan's epsilon.
        claimed: Epsilon,
    },
}

impl SecureCodecPlan {
    /// What one round's noise makes of one patient's influence on the sum, for a network of `parameters`; `None` without noise.
    ///
    /// # Errors
    /// When the plan's noise is out of its ranges.
    pub fn noise_mechanism(&self, parameters: usize) -> Result<Option<DistributedGaussian>, ParameterError> {
        let Some(noise) = &self.noise else { return Ok(None) };
        self.distributed(parameters, noise.honest_survivors).mechanism(noise.variance).map(Some)
    }

    /// What the accountant composes for one round; `None` without noise.
    ///
    /// # Errors
    /// When the plan's noise is out of its ranges.
    pub fn noise_event(&self, parameters: usize) -> Result<Option<Event>, ParameterError> {
        let event = |mechanism| Event::DistributedGaussian { mechanism, rounds: 1 };
        Ok(self.noise_mechanism(parameters)?.map(event))
    }

    /// Checks that a round costs no more than its noise says, for a network of `parameters`. Nothing to check without noise.
    ///
    /// # Errors
    /// See [`NoiseError`].
    pub fn check_noise(&self, parameters: usize) -> Result<(), NoiseError> {
        let (Some(noise), Some(event)) = (&self.noise, self.noise_event(parameters)?) else { return Ok(()) };
        let cost = Composition::new().with(&event).epsilon(noise.delta, Accounting::Tight);
        // Logarithms differ in their last digits between machines: a plan that was made to fit on one fits on all.
        if cost <= noise.epsilon.get() * (1.0 + 1e-6) {
            return Ok(());
        }
        Err(NoiseError::Understated { cost, delta: noise.delta, claimed: noise.epsilon })
    }

    /// The variance of each site's noise, in squares of the grid's step, at which the noise of `honest_survivors` sites together has the standard
    /// deviation `wanted` times what one patient can move the sum by.
    ///
    /// # Errors
    /// When a site's standard deviation would be outside 0.5 to 16,000 steps: more bits make steps finer, fewer make them coarser.
    pub fn noise_variance(
        &self,
        wanted: NoiseMultiplier,
        honest_survivors: u32,
        parameters: usize,
    ) -> Result<Variance, ParameterError> {
        self.distributed(parameters, honest_survivors).site_variance(wanted)
    }

    /// The least width in bits of a ring in which a noisy sum over `sites` wraps with probability at most 2^-40, equation (5); `None` without noise.
    #[must_use]
    pub fn noisy_ring_bits(&self, parameters: usize, sites: u32) -> Option<u8> {
        let noise = self.noise.as_ref()?;
        let (m, kept) = (f64::from(sites), self.kept(parameters).max(1) as u64);
        // ceil(log2 2K) in integers: both sides must come to the same width.
        let union_bits = f64::from(u64::BITS - (2 * kept - 1).leading_zeros());
        let tail = 2.0 * m * noise.variance.get() * (union_bits + FAILURE_BITS) * std::f64::consts::LN_2;
        let reach = m * self.cut() as f64 + tail.sqrt();
        // The least w with 2^(w-1) above the reach; one that fits no ring is refused where the ring is made.
        (1..=u8::MAX).find(|width| f64::powi(2.0, i32::from(*width) - 1) > reach)
    }

    /// The mechanism of the privacy crate in units of the grid's step, in which neither C nor d appears.
    pub(super) fn distributed(&self, parameters: usize, honest_survivors: u32) -> DistributedPlan {
        let kept = self.kept(parameters).max(1);
        DistributedPlan {
            clip_norm: (kept as f64).sqrt() / self.deviation_steps(),
            granularity: 1.0,
            dimensions: kept as u64,
            honest_survivors,
            rounding_beta: ROUNDING_BETA,
            protected: Protected::Patient,
        }
    }

    /// One over the standard deviation of a coordinate of full norm, in steps: 2 k / L.
    fn deviation_steps(&self) -> f64 {
        2.0 * self.reach() / f64::from(self.largest())
    }

    /// T: the largest magnitude of an honest site's integer before noise.
    pub(super) fn cut(&self) -> i64 {
        (CUT / self.deviation_steps()).ceil() as i64
    }

    /// The squared norm (6) that a sum over `sites` does not pass; infinite without noise.
    pub(super) fn noisy_sum_limit(&self, parameters: usize, sites: u32) -> f64 {
        let Some(noise) = &self.noise else { return f64::INFINITY };
        let (m, kept) = (f64::from(sites), self.kept(parameters) as f64);
        let longest = m * self.distributed(parameters, noise.honest_survivors).rounded_norm_squared().sqrt();
        let t = FAILURE_BITS * std::f64::consts::LN_2;
        let noise = (m * noise.variance.get() * (kept + 2.0 * (kept * t).sqrt() + 2.0 * t)).sqrt();
        (longest + noise).powi(2)
    }
}
