//! The distributed discrete Gaussian mechanism (Kairouz, Liu, Steinke 2021, arXiv 2102.06387, "KLS" below): every
//! site adds discrete Gaussian noise to its integers before they are masked, so that the sum, all that secure
//! aggregation opens, is private even against the server.
//!
//! A site (KLS, algorithm 1) clips its vector to the L2 norm c, scales it by 1/gamma, rotates it (the codec's shared
//! rotation), rounds each coordinate up or down at random so that the mean is right, repeats the rounding until the
//! norm is at most the bound below, and adds N_Z(0, sigma²) to each coordinate. With s = c / gamma and d coordinates:
//!
//! * norm after rounding: D² = min( (s + sqrt d)², s² + d/4 + sqrt(2 ln(1/beta)) (s + sqrt(d)/2) ); the condition
//!   fails with probability at most beta per try (KLS, theorem 1);
//! * a sum of n discrete Gaussians is not one, but near: tau = 10 sum_{k=1}^{n-1} e^(-2 pi² sigma² k/(k+1)), for
//!   sigma >= 1/2;
//! * Rényi divergence of order alpha between neighbours (KLS, proposition 14), with a = D₂ / (sqrt(n) sigma) and b =
//!   D₁ / (sqrt(n) sigma): min( alpha a²/2 + tau d, alpha/2 (a² + 2 b tau + tau² d), alpha/2 (a + tau sqrt d)² );
//! * D₁ <= min(sqrt(d) D₂, D₂²) for integer vectors.
//!
//! **Dropouts.** n is the least number of honest sites whose noise is in the sum: each site's sigma is set so that n
//! of them suffice; more survivors only add independent noise, which is post-processing. A round that opens a sum of
//! fewer must not happen: the threshold of secure aggregation has to be at least n plus the number of sites that may
//! collude.
//!
//! **Wrapping** of the sum in the ring Z/2^w is post-processing too: it costs accuracy, never privacy.

use crate::event::close;
use crate::noise::{
    ExactGaussian, MAX_TABLE_STANDARD_DEVIATION, TableGaussian, Variance, table_distance_bound,
};
use crate::units::{NoiseMultiplier, ParameterError};
use rand_core::CryptoRng;
use serde::{Deserialize, Serialize};

/// What may differ between neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protected {
    /// Everything that a site contributes: its vector becomes zero. Sensitivity D.
    Site,
    /// One patient of a site: the site's vector becomes any other of norm at most D, since nothing bounds what one
    /// patient does to a site's training. Sensitivity 2 D. The unit of `PrivacyBudget`.
    Patient,
}

/// The privacy of one sum to which every site adds discrete Gaussian noise. Serialised as the plan and the variance,
/// from which everything follows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Agreed", into = "Agreed")]
pub struct DistributedGaussian {
    agreed: Agreed,
    /// D₂ / (sqrt(n) sigma).
    l2_ratio: f64,
    /// D₁ / (sqrt(n) sigma).
    l1_ratio: f64,
    tau: f64,
    /// Upper bound of the statistical distance of a round's noise from the ideal one.
    distance: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Agreed {
    plan: DistributedPlan,
    variance: Variance,
}

impl TryFrom<Agreed> for DistributedGaussian {
    type Error = ParameterError;

    fn try_from(agreed: Agreed) -> Result<Self, Self::Error> {
        agreed.plan.mechanism(agreed.variance)
    }
}

impl From<DistributedGaussian> for Agreed {
    fn from(mechanism: DistributedGaussian) -> Self {
        mechanism.agreed
    }
}

impl DistributedGaussian {
    /// Rényi divergence of order `alpha` above 1 of one round (KLS, proposition 14).
    #[must_use]
    pub fn divergence(&self, alpha: f64) -> f64 {
        let Self { l2_ratio, l1_ratio, tau, .. } = *self;
        let d = self.agreed.plan.dimensions as f64;
        let square = l2_ratio * l2_ratio;
        let by_gaussian = 0.5 * alpha * square + tau * d;
        let by_l1 = 0.5 * alpha * (square + 2.0 * l1_ratio * tau + tau * tau * d);
        let by_l2 = 0.5 * alpha * (l2_ratio + tau * d.sqrt()).powi(2);
        by_gaussian.min(by_l1).min(by_l2)
    }

    /// The plan.
    #[must_use]
    pub fn plan(&self) -> &DistributedPlan {
        &self.agreed.plan
    }

    /// The variance of each site's noise, in units of gamma².
    #[must_use]
    pub fn variance(&self) -> Variance {
        self.agreed.variance
    }

    /// Whether both are the same but for the last digits of their numbers.
    pub(crate) fn is_close_to(&self, other: &Self) -> bool {
        let DistributedPlan {
            clip_norm,
            granularity,
            dimensions,
            honest_survivors,
            rounding_beta,
            protected,
        } = self.agreed.plan;
        let plan = &other.agreed.plan;
        let agrees = dimensions == plan.dimensions
            && honest_survivors == plan.honest_survivors
            && protected == plan.protected;
        agrees
            && close(clip_norm / granularity, plan.clip_norm / plan.granularity)
            && close(rounding_beta, plan.rounding_beta)
            && close(self.variance().get(), other.variance().get())
    }

    pub(crate) fn distance(&self) -> f64 {
        self.distance
    }
}

/// What a federation agrees on for noise inside secure aggregation; checked.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DistributedPlan {
    /// Largest L2 norm of a site's vector before rounding: c, above 0.
    pub clip_norm: f64,
    /// Width of the integer grid: gamma, above 0.
    pub granularity: f64,
    /// Coordinates per vector: d, 1 to 2^32.
    pub dimensions: u64,
    /// Least number of honest sites whose noise is in an opened sum: n, 1 to 2^20.
    pub honest_survivors: u32,
    /// Probability beta that a rounding is repeated: above 0, below 1; e^-1/2 is usual.
    pub rounding_beta: f64,
    /// What is protected.
    pub protected: Protected,
}

impl DistributedPlan {
    /// Checks every field.
    ///
    /// # Errors
    /// Names the field, its range and what it holds.
    pub fn check(&self) -> Result<(), ParameterError> {
        let test = |name, good: bool, expected, got| {
            if good { Ok(()) } else { Err(ParameterError::new(name, expected, got)) }
        };
        let usable = |value: f64| value > 0.0 && value.is_finite();
        test("clip norm", usable(self.clip_norm), "above 0, finite", self.clip_norm)?;
        test("granularity", usable(self.granularity), "above 0, finite", self.granularity)?;
        let steps = self.clip_norm / self.granularity;
        test("clip norm over granularity", steps <= 1e9, "at most 1e9", steps)?;
        let d = self.dimensions;
        test("dimensions", (1..=1 << 32).contains(&d), "1 to 2^32", d as f64)?;
        let n = self.honest_survivors;
        test("honest survivors", (1..=1 << 20).contains(&n), "1 to 2^20", f64::from(n))?;
        let beta = self.rounding_beta;
        test("rounding beta", beta > 0.0 && beta < 1.0, "above 0 and below 1", beta)
    }

    /// D²: the largest squared L2 norm of a rounded vector, in units of gamma².
    #[must_use]
    pub fn rounded_norm_squared(&self) -> f64 {
        let (s, root) = (self.clip_norm / self.granularity, (self.dimensions as f64).sqrt());
        let always = (s + root).powi(2);
        let conditional =
            s * s + 0.25 * root * root + (-2.0 * self.rounding_beta.ln()).sqrt() * (s + 0.5 * root);
        always.min(conditional)
    }

    /// L2 sensitivity in units of gamma.
    fn sensitivity(&self) -> f64 {
        let factor = match self.protected {
            Protected::Site => 1.0,
            Protected::Patient => 2.0,
        };
        factor * self.rounded_norm_squared().sqrt()
    }

    /// The variance, in units of gamma², that each site's noise must have for the sum over the least number of
    /// survivors to have the noise multiplier `wanted`; at least that, rounded up to a fraction.
    ///
    /// # Errors
    /// When the plan breaks a rule, or the standard deviation is outside of 0.5 to 16,000: then the granularity is
    /// too coarse or too fine.
    pub fn site_variance(&self, wanted: NoiseMultiplier) -> Result<Variance, ParameterError> {
        self.check()?;
        let deviation = wanted.get() * self.sensitivity() / f64::from(self.honest_survivors).sqrt();
        if !(0.5..=16_000.0).contains(&deviation) {
            let expected = "0.5 to 16000 granularities: choose another granularity";
            return Err(ParameterError::new("standard deviation of a site's noise", expected, deviation));
        }
        Variance::of_standard_deviation(deviation)
    }

    /// The privacy of one round in which every site's noise has `variance`.
    ///
    /// # Errors
    /// When the plan breaks a rule or the variance is below 1/4.
    pub fn mechanism(&self, variance: Variance) -> Result<DistributedGaussian, ParameterError> {
        self.check()?;
        if variance.get() < 0.25 {
            return Err(ParameterError::new("variance of a site's noise", "1/4 or more", variance.get()));
        }
        let (n, d) = (f64::from(self.honest_survivors), self.dimensions as f64);
        let sensitivity = self.sensitivity();
        let noise = (n * variance.get()).sqrt();
        let exponent = -2.0 * std::f64::consts::PI.powi(2) * variance.get();
        let tau = 10.0
            * (1..self.honest_survivors)
                .map(f64::from)
                .map(|k| (exponent * k / (k + 1.0)).exp())
                .sum::<f64>();
        let l1 = (d.sqrt() * sensitivity).min(sensitivity * sensitivity);
        Ok(DistributedGaussian {
            agreed: Agreed { plan: *self, variance },
            l2_ratio: sensitivity / noise,
            l1_ratio: l1 / noise,
            tau,
            distance: table_distance_bound(variance) * n * d,
        })
    }

    /// A site's integers without noise: the vector, clipped to c if it is longer, on the grid, each coordinate
    /// rounded at random so that its mean is right, repeatedly until the norm is within the bound. Coordinates that
    /// are no number count as zero.
    pub fn round(&self, vector: &[f32], rng: &mut impl CryptoRng) -> Vec<i64> {
        let clean = |value: &f32| if value.is_finite() { f64::from(*value) } else { 0.0 };
        let norm = vector.iter().map(|value| clean(value).powi(2)).sum::<f64>().sqrt();
        // A little below one, so that rounding in double precision does not leave the vector longer than c.
        let factor = if norm > self.clip_norm { self.clip_norm / norm * (1.0 - 1e-12) } else { 1.0 };
        let limit = self.rounded_norm_squared().floor() as u128;
        loop {
            let rounded: Vec<i64> = vector
                .iter()
                .map(|value| {
                    let position = clean(value) * factor / self.granularity;
                    let below = position.floor();
                    let draw = (rng.next_u64() >> 11) as f64 * f64::powi(2.0, -53);
                    below as i64 + i64::from(draw < position - below)
                })
                .collect();
            let square: u128 = rounded.iter().map(|v| u128::from(v.unsigned_abs()).pow(2)).sum();
            if square <= limit {
                return rounded;
            }
        }
    }

    /// The least ring width w, in bits, for which a coordinate of the sum over `sites` sites stays in
    /// [-2^(w-1), 2^(w-1)) for `deviations` standard deviations, taking rotated coordinates as Gaussian.
    #[must_use]
    pub fn ring_bits(&self, sites: u32, variance: Variance, deviations: f64) -> u32 {
        let (n, s) = (f64::from(sites), self.clip_norm / self.granularity);
        let spread = n * n * s * s / self.dimensions as f64 + n * (0.25 + variance.get());
        ((2.0 * deviations * spread.sqrt() + 1.0).log2().ceil()).max(1.0) as u32
    }
}

/// A site's noise: from a table in constant time where the variance allows, else by exact rejection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SiteNoise(Sampler);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Sampler {
    Table(TableGaussian),
    Exact(ExactGaussian),
}

impl SiteNoise {
    /// Discrete Gaussian noise with parameter `variance`.
    #[must_use]
    pub fn new(variance: Variance) -> Self {
        let sampler = if variance.standard_deviation() <= MAX_TABLE_STANDARD_DEVIATION {
            TableGaussian::new(variance).map(Sampler::Table)
        } else {
            Ok(Sampler::Exact(ExactGaussian::new(variance)))
        };
        Self(sampler.unwrap_or_else(|_| Sampler::Exact(ExactGaussian::new(variance))))
    }

    /// Adds a sample to every value, wrapping.
    pub fn add_to(&self, values: &mut [i64], rng: &mut impl CryptoRng) {
        match &self.0 {
            Sampler::Table(table) => table.add_to(values, rng),
            Sampler::Exact(exact) => exact.add_to(values, rng),
        }
    }

    /// Upper bound of a sample's statistical distance from the discrete Gaussian.
    #[must_use]
    pub fn statistical_distance(&self) -> f64 {
        match &self.0 {
            Sampler::Table(table) => table.statistical_distance(),
            // Counters that would pass 2^20 in the rejection sampler.
            Sampler::Exact(_) => 0.0,
        }
    }
}
