//! What is announced, and what follows from it: the grid, the coordinates that are kept, the digits of the count.

use super::noise::NoisePlan;
use crate::plan::{CodecPlan, PlanError};
use crate::rotation::SpreadRotation;
use crate::sealed::Origin;
use medinet_types::Digest;
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

/// How each site turns its model delta into integers that are summed under masks.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecureCodecPlan {
    /// Bits per coordinate before the sum, 1 to 8.
    pub bits: u8,
    /// Largest L2 norm of a delta, above 0; a longer one is scaled down to it.
    pub clip_norm: f32,
    /// Whether a site adds what the codec lost in the last round to this round's delta.
    pub error_feedback: bool,
    /// How many of 1,000 rotated coordinates are sent, 1 to 1,000.
    pub kept_permille: u16,
    /// n_ref: training images at which a site has full weight; more do not count. At best what a typical site has. A site of a tenth of it uses a
    /// tenth of the grid and has ten times the rounding error, and who lies moves the mean by n_ref over the images of all; a site of ten times as
    /// many counts for a tenth of them. In rounds of private training, patients. 1 with noise: all sites weigh the same.
    pub reference_examples: u32,
    /// The noise that each site adds before the sum; `None` for none.
    #[serde(default)]
    pub noise: Option<NoisePlan>,
}

/// Half the grid's width in standard deviations of a coordinate of the full norm, by bits: near the least sum of a tenth
/// of the rounding variance and the square of the clipping bias, which is the error of the mean of ten sites; wider at
/// 1 and 2 bits, where that minimum would be more bias than variance.
const REACH: [f64; 8] = [2.0, 2.25, 2.6, 3.0, 3.3, 3.65, 4.0, 4.25];

/// A norm is reported in 64ths of the clip norm, up to almost twice the clip norm.
pub(crate) const NORM_UNIT: u32 = 64;
pub(crate) const NORM_TOP: u32 = 127;

/// h of equation (2).
const HEADROOM: f32 = 1.25;

/// The step in standard deviations that loses least of a Gaussian rounded to nearest (see the plain quantizer).
const NEAREST_STEP: [f64; 8] = [1.5958, 0.9957, 0.5860, 0.3352, 0.1881, 0.1041, 0.05687, 0.03076];

impl SecureCodecPlan {
    /// Checks every field against its range.
    ///
    /// # Errors
    /// Names the field, its range and what it holds.
    pub fn check(&self) -> Result<(), PlanError> {
        CodecPlan { bits: 32, clip_norm: self.clip_norm, error_feedback: false }.check()?;
        let need = |good: bool, field, expected, got: f32| {
            if good { Ok(()) } else { Err(PlanError::new(field, expected, got)) }
        };
        need((1..=8).contains(&self.bits), "bits", "1 to 8", self.bits.into())?;
        let kept = self.kept_permille;
        need((1..=1000).contains(&kept), "kept_permille", "1 to 1000", kept.into())?;
        let reference = self.reference_examples;
        need(reference >= 1, "reference_examples", "at least 1", reference as f32)?;
        let Some(noise) = &self.noise else { return Ok(()) };
        need(
            !self.error_feedback,
            "error_feedback",
            "0 (off) with noise: what it carries on is not noised",
            1.0,
        )?;
        let expected = "1 with noise: all sites weigh the same, since counts would tell more";
        need(reference == 1, "reference_examples", expected, reference as f32)?;
        let survivors = noise.honest_survivors;
        need((1..=1 << 20).contains(&survivors), "honest_survivors", "1 to 2^20", survivors as f32)?;
        let variance = noise.variance.get();
        need(variance >= 0.25, "variance", "at least 1/4", variance as f32)
    }

    /// L: the largest value that an honest site has in any coordinate, 2^bits - 1.
    #[must_use]
    pub fn largest(&self) -> u32 {
        u32::MAX >> (32 - u32::from(self.bits.clamp(1, 32)))
    }

    /// Coordinates of a site's vector for a network of `parameters`: those kept and, without noise, the digits of the count and those of the
    /// norm.
    #[must_use]
    pub fn coordinates(&self, parameters: usize) -> usize {
        if self.noise.is_some() {
            return self.kept(parameters);
        }
        self.kept(parameters) + self.count_digits() + self.norm_digits()
    }

    /// K: how many coordinates of a network of `parameters` are sent. They come first in a site's vector.
    #[must_use]
    pub fn kept(&self, parameters: usize) -> usize {
        let kept = (parameters as u128 * u128::from(self.kept_permille)).div_ceil(1000);
        usize::try_from(kept).unwrap_or(parameters).min(parameters)
    }

    /// Base-2^bits digits of [`Self::reference_examples`], the largest count.
    pub(crate) fn count_digits(&self) -> usize {
        let bits = u32::BITS - self.reference_examples.leading_zeros();
        bits.div_ceil(u32::from(self.bits.max(1))) as usize
    }

    /// Base-2^bits digits of [`NORM_TOP`].
    pub(crate) fn norm_digits(&self) -> usize {
        (u32::BITS - NORM_TOP.leading_zeros()).div_ceil(u32::from(self.bits.max(1))) as usize
    }

    /// nu of this norm: rounded up, so that none but zero counts as zero.
    pub(crate) fn norm_code(&self, norm: f64) -> u32 {
        let units = norm / f64::from(self.clip_norm) * f64::from(NORM_UNIT);
        // A number within 0 to 127, so the conversion is exact.
        units.ceil().clamp(0.0, f64::from(NORM_TOP)) as u32
    }

    /// The clip norm to announce for the next round, equation (2), from the mean norm that this round's sum holds
    /// ([`super::SecureMean::norm`]). `largest` is the federation's limit, which no report moves.
    #[must_use]
    pub fn next_clip_norm(&self, norm: f32, largest: f32) -> f32 {
        if norm > 0.0 { (HEADROOM * norm).min(largest) } else { self.clip_norm.min(largest) }
    }

    /// Delta, the grid's step, in the units of the delta. For `parameters` above 0.
    pub(crate) fn step(&self, parameters: usize) -> f64 {
        let deviation = f64::from(self.clip_norm) / (parameters.max(1) as f64).sqrt();
        if self.error_feedback {
            let bits = usize::from(self.bits.clamp(1, 8)) - 1;
            // Of a vector whose residual makes up for the coordinates that are not sent.
            return NEAREST_STEP[bits] * deviation / self.fraction(parameters).sqrt();
        }
        2.0 * self.reach() * deviation * self.gain(parameters) / f64::from(self.largest())
    }

    /// k(b).
    pub(super) fn reach(&self) -> f64 {
        // A plan that nobody has checked must not panic.
        REACH[usize::from(self.bits.clamp(1, 8)) - 1]
    }

    /// What kept coordinates are multiplied by: d/K, or 1 with error feedback.
    pub(crate) fn gain(&self, parameters: usize) -> f64 {
        if self.error_feedback { 1.0 } else { 1.0 / self.fraction(parameters) }
    }

    /// K/d.
    pub(crate) fn fraction(&self, parameters: usize) -> f64 {
        self.kept(parameters).max(1) as f64 / parameters.max(1) as f64
    }

    /// The upper bound (1), or (10) where a part is kept, of the mean squared error of the mean of `sites` vectors, in units of the clip norm's
    /// square; for plans without error feedback and noise. `weight` is the mean of the sites' weights w_i = min(n_i, n_ref) / n_ref, above 0 and at
    /// most 1. Of infinitely many sites it is beta², what the grid's ends cost, and d/K - 1, what the subset costs. The parts of rounding and
    /// subset hold whatever the vectors are; beta² is that of rotated coordinates that are Gaussian, which the rotation makes them nearly (see the
    /// module).
    #[must_use]
    pub fn error_bound(&self, sites: u32, weight: f64) -> f64 {
        self.error_bound_at(sites, weight, 1.0)
    }

    /// The same for vectors whose mean has the norm `mean_norm`, in units of the clip norm, 0 to 1: equation (10) with |a| = `mean_norm` C. Where the
    /// grid's ends clip much, it is their mean after clipping that counts.
    #[must_use]
    pub fn error_bound_at(&self, sites: u32, weight: f64, mean_norm: f64) -> f64 {
        let (reach, levels) = (self.reach(), f64::from(self.largest()));
        // d/K is at most this, as K is rounded up.
        let gain = 1000.0 / f64::from(self.kept_permille.clamp(1, 1000));
        let rounding = gain * (reach / (levels * weight)).powi(2) / f64::from(sites.max(1));
        rounding + (gain - 1.0) * mean_norm * mean_norm + clipping_bias_squared(reach)
    }

    /// A digest of all that decides what a value means, for the session's purpose.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let Self { bits, clip_norm, error_feedback, kept_permille, reference_examples, noise } = *self;
        let noise = noise.map(|NoisePlan { epsilon, delta, variance, honest_survivors }| {
            let (numerator, denominator) = variance.into();
            [
                &epsilon.get().to_bits().to_le_bytes()[..],
                &delta.get().to_bits().to_le_bytes(),
                &numerator.to_le_bytes(),
                &denominator.to_le_bytes(),
                &honest_survivors.to_le_bytes(),
            ]
            .concat()
        });
        Digest::of_parts(&[
            b"medinet secure codec 4",
            &[bits, u8::from(error_feedback)],
            &clip_norm.to_bits().to_le_bytes(),
            &kept_permille.to_le_bytes(),
            &reference_examples.to_le_bytes(),
            // Nothing where there is no noise.
            &noise.unwrap_or_default(),
        ])
    }
}

/// beta²(k) = 2 ((1 + k²) Q(k) - k phi(k)), bounded from above by Q(k) <= phi(k) (k² + 2) / (k (k² + 3)) (Birnbaum-type
/// continued fraction, for k > 0).
fn clipping_bias_squared(k: f64) -> f64 {
    let density = (-k * k / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
    let tail = density * (k * k + 2.0) / (k * (k * k + 3.0));
    2.0 * ((1.0 + k * k) * tail - k * density)
}

/// What the seed of a round decides, the same for all sites.
pub(crate) struct Shared {
    pub(crate) rotation: SpreadRotation,
    /// Ascending.
    pub(crate) kept: Vec<usize>,
}

impl Shared {
    pub(crate) fn of_round(plan: &SecureCodecPlan, origin: &Origin, parameters: usize) -> Self {
        let kept = plan.kept(parameters);
        if plan.error_feedback {
            let rotation = SpreadRotation::of_era(origin.round.0 / ERA, parameters);
            return Self { rotation, kept: window(origin.round.0, parameters, kept) };
        }
        let rotation = SpreadRotation::of_round(&origin.base, origin.round, parameters);
        let seed: [&[u8]; 3] =
            [b"medinet secure subset 1", origin.base.0.as_bytes(), &origin.round.0.to_le_bytes()];
        Self { rotation, kept: subset(Digest::of_parts(&seed).0, parameters, kept) }
    }
}

/// Rounds that share a rotation under error feedback: many turns of the window, and not for ever, so that what a rotation suits badly passes.
const ERA: u32 = 64;

/// The coordinates whose turn it is: `kept` of them from `round * kept` on, modulo `length`. Each comes once in every `length / kept` rounds.
fn window(round: u32, length: usize, kept: usize) -> Vec<usize> {
    let start = u128::from(round) * kept as u128 % length.max(1) as u128;
    // Below the length, so it fits.
    let start = start as usize;
    let mut window: Vec<usize> = (start..start + kept).map(|index| index % length.max(1)).collect();
    window.sort_unstable();
    window
}

/// `kept` of `0..length`, each subset with the same probability: selection sampling (Knuth, TAOCP 2, 3.4.2, algorithm S).
fn subset(seed: [u8; 32], length: usize, kept: usize) -> Vec<usize> {
    if kept >= length {
        return (0..length).collect();
    }
    let mut rng = ChaCha8Rng::from_seed(seed);
    let mut chosen = Vec::with_capacity(kept);
    for index in 0..length {
        // Uniform below what is left, up to 2^-64 of it.
        let left = (length - index) as u128;
        let draw = (u128::from(rng.next_u64()) * left) >> 64;
        if draw < (kept - chosen.len()) as u128 {
            chosen.push(index);
            if chosen.len() == kept {
                break;
            }
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subsets_are_ascending_of_the_wanted_size_and_even() {
        let mut hits = vec![0u32; 50];
        for seed in 0..4000u32 {
            let mut bytes = [0; 32];
            bytes[..4].copy_from_slice(&seed.to_le_bytes());
            let chosen = subset(bytes, 50, 10);
            assert_eq!(chosen.len(), 10);
            assert!(chosen.windows(2).all(|pair| pair[0] < pair[1]));
            chosen.into_iter().for_each(|i| hits[i] += 1);
        }
        // Binomial(4000, 0.2): 800 with a standard deviation of 25.
        assert!(hits.iter().all(|hit| (675..=925).contains(hit)), "{hits:?}");
        assert_eq!(subset([0; 32], 3, 3), [0, 1, 2]);
        assert!(subset([0; 32], 0, 0).is_empty());
    }

    #[test]
    fn every_coordinate_has_its_turn() {
        for (length, kept) in [(100usize, 39usize), (7, 7), (5, 1), (1000, 333)] {
            let turns = length.div_ceil(kept) as u32;
            for first in [0, 1, 17, u32::MAX - turns] {
                let mut seen = vec![0; length];
                for round in first..first + turns {
                    let window = window(round, length, kept);
                    assert!(window.len() == kept && window.windows(2).all(|pair| pair[0] < pair[1]));
                    window.into_iter().for_each(|index| seen[index] += 1);
                }
                assert!(seen.iter().all(|count| (1..=2).contains(count)), "{length} {kept} {first}");
            }
        }
        assert!(window(3, 0, 0).is_empty());
    }

    #[test]
    fn the_clipping_bias_is_bounded_from_above() {
        // 2 ((1 + k²) Q(k) - k phi(k)) with Q from a table of the normal distribution to 9 digits.
        for (k, tail) in [(2.0f64, 0.022_750_132), (2.6, 0.004_661_188), (3.0, 0.001_349_898)] {
            let density = (-k * k / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
            let exact = 2.0 * ((1.0 + k * k) * tail - k * density);
            let bound = clipping_bias_squared(k);
            assert!(bound >= exact * 0.999 && bound < exact * 2.0, "{k}: {exact} {bound}");
        }
    }

    #[test]
    fn norms_are_reported_in_steps_and_the_next_clip_norm_follows() {
        let plan = SecureCodecPlan {
            bits: 2,
            clip_norm: 2.0,
            error_feedback: true,
            kept_permille: 500,
            reference_examples: 9,
            noise: None,
        };
        assert_eq!([0.0, 1e-9, 1.0, 2.0, 1e9].map(|norm| plan.norm_code(norm)), [0, 1, 32, 64, 127]);
        assert_eq!(plan.norm_digits(), 4);
        assert_eq!(plan.next_clip_norm(1.0, 10.0), 1.25);
        assert_eq!(plan.next_clip_norm(4.0, 3.0), 3.0);
        assert_eq!(plan.next_clip_norm(0.0, 10.0), 2.0);
    }

    #[test]
    fn plans_out_of_range_are_refused_by_name() {
        let good = SecureCodecPlan {
            bits: 4,
            clip_norm: 1.0,
            error_feedback: false,
            kept_permille: 1000,
            reference_examples: 100,
            noise: None,
        };
        good.check().unwrap();
        let cases: [(&str, SecureCodecPlan); 6] = [
            ("bits", SecureCodecPlan { bits: 0, ..good }),
            ("bits", SecureCodecPlan { bits: 9, ..good }),
            ("clip_norm", SecureCodecPlan { clip_norm: f32::NAN, ..good }),
            ("kept_permille", SecureCodecPlan { kept_permille: 0, ..good }),
            ("kept_permille", SecureCodecPlan { kept_permille: 1001, ..good }),
            ("reference_examples", SecureCodecPlan { reference_examples: 0, ..good }),
        ];
        for (field, plan) in cases {
            let error = plan.check().unwrap_err().to_string();
            assert!(error.contains(field), "{field}: {error}");
        }
        assert_ne!(good.digest(), SecureCodecPlan { bits: 5, ..good }.digest());
    }

    #[test]
    fn the_count_has_as_many_digits_as_it_needs() {
        let plan = |bits, reference_examples| SecureCodecPlan {
            bits,
            clip_norm: 1.0,
            error_feedback: false,
            kept_permille: 500,
            reference_examples,
            noise: None,
        };
        assert_eq!(plan(1, 1).count_digits(), 1);
        assert_eq!(plan(4, 15).count_digits(), 1);
        assert_eq!(plan(4, 16).count_digits(), 2);
        assert_eq!(plan(8, u32::MAX).count_digits(), 4);
        assert_eq!(plan(1, u32::MAX).coordinates(11), 6 + 32 + 7);
    }
}
