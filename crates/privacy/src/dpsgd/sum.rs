//! Clipping, and sums of clipped gradients whose sensitivity is exact.

use crate::noise::GaussianNoise;
use rand_core::CryptoRng;

/// min(1, C / norm), rounded down in single precision; 0 for a norm that is no number or infinite, so that a
/// patient whose gradient overflowed contributes nothing. `clip_norm` above 0.
#[must_use]
pub fn clip_factor(norm: f32, clip_norm: f64) -> f32 {
    if !norm.is_finite() {
        return 0.0;
    }
    let factor = (clip_norm / f64::from(norm)).min(1.0);
    let rounded = factor as f32;
    if f64::from(rounded) > factor { rounded.next_down() } else { rounded }
}

/// A vector that was not added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SumError {
    /// Of another length.
    #[error("expected a gradient of {expected} parameters, got {got}")]
    Length {
        /// Of the sum.
        expected: usize,
        /// Of the gradient.
        got: usize,
    },
    /// As many as can be added without overflow.
    #[error("expected at most {0} gradients in one step, got one more: lower the sampling rate")]
    Full(u32),
}

/// A sum of clipped gradients in integers, so that adding or removing a patient changes it by a vector of L2 norm at
/// most C, exactly: a sum in floating point changes by more, because every later rounding depends on what came before
/// (Casacuberta, Shoemate, Vadhan, Wagaman 2022).
///
/// Each gradient is clipped in double precision and rounded towards zero to the grid of the noise, which never
/// lengthens it.
#[derive(Debug, Clone)]
pub struct GradientSum {
    noise: GaussianNoise,
    clip_norm: f64,
    counts: Vec<i64>,
    added: u32,
}

/// Gradients per step. Each coordinate of one is at most C = sigma / z <= 2^20 g / 0.01 < 2^27 g; 2^31 of them fit 63
/// bits.
const MOST: u32 = 1 << 31;

impl GradientSum {
    /// The empty sum of gradients with `parameters` coordinates, to be released with `noise`.
    #[must_use]
    pub fn new(noise: GaussianNoise, clip_norm: f64, parameters: usize) -> Self {
        Self { noise, clip_norm, counts: vec![0; parameters], added: 0 }
    }

    /// Clips and adds one patient's gradient. Coordinates that are no number make it count as zero.
    ///
    /// # Errors
    /// See [`SumError`].
    pub fn add(&mut self, gradient: &[f32]) -> Result<(), SumError> {
        if gradient.len() != self.counts.len() {
            return Err(SumError::Length { expected: self.counts.len(), got: gradient.len() });
        }
        if self.added == MOST {
            return Err(SumError::Full(MOST));
        }
        self.added += 1;
        let norm = gradient.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt();
        if !norm.is_finite() {
            return Ok(());
        }
        // The sum's relative error is below 2^-53 times the length; 2^-20 covers vectors of 2^32.
        let factor = (self.clip_norm / norm * (1.0 - f64::powi(2.0, -20))).min(1.0);
        let factor = if norm <= self.clip_norm * (1.0 - f64::powi(2.0, -20)) { 1.0 } else { factor };
        let scale = factor / self.noise.grid();
        for (count, value) in self.counts.iter_mut().zip(gradient) {
            // The cast rounds towards zero.
            *count += (f64::from(*value) * scale) as i64;
        }
        Ok(())
    }

    /// Adds the noise and gives the noisy sum, in units of the gradient.
    pub fn release(self, rng: &mut impl CryptoRng) -> Vec<f32> {
        self.noise.release(&self.counts, rng)
    }

    /// The exact squared L2 norm of the difference to another sum, in multiples of the squared grid.
    #[cfg(test)]
    fn distance_squared(&self, other: &Self) -> i128 {
        self.counts.iter().zip(&other.counts).map(|(a, b)| i128::from(a - b).pow(2)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand_chacha::ChaCha12Rng;
    use rand_core::SeedableRng;

    #[test]
    fn factors_clip_and_never_lengthen() {
        assert_eq!(clip_factor(0.0, 1.0), 1.0);
        assert_eq!(clip_factor(0.5, 1.0), 1.0);
        assert_eq!(clip_factor(4.0, 1.0), 0.25);
        assert_eq!(clip_factor(f32::NAN, 1.0), 0.0);
        assert_eq!(clip_factor(f32::INFINITY, 1.0), 0.0);
        for norm in (1..2000).map(|i| i as f32 * 0.7) {
            assert!(f64::from(clip_factor(norm, 1.3)) * f64::from(norm) <= 1.3 + 1e-300);
        }
    }

    proptest! {
        #[test]
        fn one_patient_moves_the_sum_by_at_most_the_clip_norm(
            base in prop::collection::vec(prop::collection::vec(-1e3f32..1e3, 16), 0..6),
            patient in prop::collection::vec(prop::num::f32::ANY, 16),
            clip_norm in 0.01f64..10.0,
            multiplier in 0.3f64..20.0,
        ) {
            let noise = GaussianNoise::new(multiplier * clip_norm).unwrap();
            let mut without = GradientSum::new(noise, clip_norm, 16);
            for gradient in &base {
                without.add(gradient).unwrap();
            }
            let mut with = without.clone();
            with.add(&patient).unwrap();
            let limit = (clip_norm / noise.grid()).powi(2);
            prop_assert!(with.distance_squared(&without) as f64 <= limit);
        }
    }

    #[test]
    fn release_is_the_sum_plus_noise() {
        let noise = GaussianNoise::new(0.5).unwrap();
        let mut sum = GradientSum::new(noise, 1.0, 20_000);
        let gradient = vec![0.005f32; 20_000];
        for _ in 0..100 {
            sum.add(&gradient).unwrap();
        }
        assert_eq!(sum.add(&[1.0]), Err(SumError::Length { expected: 20_000, got: 1 }));
        let released = sum.release(&mut ChaCha12Rng::from_seed([3; 32]));
        let mean = released.iter().map(|v| f64::from(*v)).sum::<f64>() / 20_000.0;
        let variance = released.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / 20_000.0;
        assert!((mean - 0.5).abs() < 5.0 * 0.5 / 20_000f64.sqrt(), "{mean}");
        assert!((variance - 0.25).abs() < 5.0 * 0.25 * (2.0 / 20_000f64).sqrt(), "{variance}");
    }
}
