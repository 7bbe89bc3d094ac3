//! Uniform quantization in blocks, after rotation.

use crate::rotation::{Rotation, block_count, blocks};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

/// How a coordinate that lies between two levels is rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rounding {
    /// Up or down at random so that the mean is right; the grid reaches from the block's least to its largest value.
    Stochastic([u8; 32]),
    /// To the nearest level of the grid with the least squared error for Gaussian coordinates.
    Nearest,
}

/// A rotated vector on its grid: coordinate i of a block is `step * (code - (2^bits - 1) / 2)`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Quantized {
    /// Bits per code, 1 to 8.
    pub(crate) bits: u8,
    /// One step per block, finite and not negative.
    pub(crate) steps: Vec<f32>,
    /// One code per coordinate, below 2^bits.
    pub(crate) codes: Vec<u8>,
}

/// The step, in standard deviations, of the uniform quantizer with 2^bits levels that loses least of a Gaussian
/// (Max 1960, table II, to 5 bits; 6 to 8 by minimising the same integral numerically).
const GAUSSIAN_STEP: [f32; 8] = [1.5958, 0.9957, 0.5860, 0.3352, 0.1881, 0.1041, 0.05687, 0.03076];

impl Quantized {
    /// Rotates and quantizes; `values` must be finite with squares that do not overflow, and 1 <= `bits` <= 8.
    pub(crate) fn of(mut values: Vec<f32>, bits: u8, rotation: &Rotation, rounding: Rounding) -> Self {
        rotation.apply(&mut values);
        let mut quantized = Self {
            bits,
            steps: Vec::with_capacity(block_count(values.len())),
            codes: Vec::with_capacity(values.len()),
        };
        let mut rng = match rounding {
            Rounding::Stochastic(seed) => Some(ChaCha8Rng::from_seed(seed)),
            Rounding::Nearest => None,
        };
        for range in blocks(values.len()) {
            let block = &values[range];
            let step = match &mut rng {
                Some(rng) => stochastic(block, bits, rng, &mut quantized.codes),
                None => nearest(block, bits, &mut quantized.codes),
            };
            quantized.steps.push(step);
        }
        quantized
    }

    /// The vector that the codes stand for, in the original coordinates. Needs as many steps as blocks.
    pub(crate) fn values(&self, rotation: &Rotation) -> Vec<f32> {
        let centre = centre(self.bits);
        let mut values = Vec::with_capacity(self.codes.len());
        for (range, step) in blocks(self.codes.len()).zip(&self.steps) {
            values.extend(self.codes[range].iter().map(|&code| step * (f32::from(code) - centre)));
        }
        rotation.undo(&mut values);
        values
    }

    /// The L2 norm of the vector that the codes stand for; the rotation does not change it.
    pub(crate) fn norm(&self) -> f64 {
        let centre = f64::from(centre(self.bits));
        let of_block = |(range, step): (std::ops::Range<usize>, &f32)| -> f64 {
            let squares: f64 = self.codes[range].iter().map(|&code| (f64::from(code) - centre).powi(2)).sum();
            f64::from(*step).powi(2) * squares
        };
        blocks(self.codes.len()).zip(&self.steps).map(of_block).sum::<f64>().sqrt()
    }

    /// Multiplies the vector by `factor`.
    pub(crate) fn scale(&mut self, factor: f32) {
        for step in &mut self.steps {
            *step *= factor;
        }
    }
}

/// The code, between two codes, that stands for zero.
fn centre(bits: u8) -> f32 {
    ((1u32 << bits) - 1) as f32 / 2.0
}

/// A block that is zero, or so small that its step would not be a normal number.
fn zero(block: &[f32], bits: u8, codes: &mut Vec<u8>) -> f32 {
    // Two codes lie next to zero; with a step of 0 either stands for it.
    codes.extend(block.iter().map(|_| 1u8 << (bits - 1)));
    0.0
}

fn stochastic(block: &[f32], bits: u8, rng: &mut ChaCha8Rng, codes: &mut Vec<u8>) -> f32 {
    let largest = block.iter().fold(0.0f32, |top, v| top.max(v.abs()));
    let step = largest / centre(bits);
    if step < f32::MIN_POSITIVE {
        return zero(block, bits, codes);
    }
    let (top, centre) = (2.0 * centre(bits), centre(bits));
    codes.extend(block.iter().map(|value| {
        let position = (value / step + centre).clamp(0.0, top);
        let below = position.floor();
        let draw = (rng.next_u32() >> 8) as f32 * (1.0 / (1u32 << 24) as f32);
        (below + if draw < position - below { 1.0 } else { 0.0 }) as u8
    }));
    step
}

fn nearest(block: &[f32], bits: u8, codes: &mut Vec<u8>) -> f32 {
    let power: f64 = block.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
    let deviation = (power / block.len() as f64).sqrt() as f32;
    let step = deviation * GAUSSIAN_STEP[usize::from(bits) - 1];
    if step < f32::MIN_POSITIVE {
        return zero(block, bits, codes);
    }
    let (top, centre) = (2.0 * centre(bits), centre(bits));
    // Least squares: with level q per coordinate, the best step is <x, q> / <q, q>. It makes the result the projection of
    // the block on its codes, which is never longer than the block.
    let (mut with_values, mut with_itself) = (0.0f64, 0.0f64);
    codes.extend(block.iter().map(|&value| {
        let code = (value / step + centre).round().clamp(0.0, top);
        let level = f64::from(code - centre);
        with_values += f64::from(value) * level;
        with_itself += level * level;
        code as u8
    }));
    (with_values / with_itself) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use medinet_types::Digest;

    fn rotation() -> Rotation {
        Rotation::of_base(&Digest::of(b"test"))
    }

    /// A heavy-tailed vector: layers of very different scale, a few spikes.
    fn vector(length: usize) -> Vec<f32> {
        let mut rng = ChaCha8Rng::from_seed([3; 32]);
        (0..length)
            .map(|i| {
                let u = f64::from(rng.next_u32()) / f64::from(u32::MAX) - 0.5;
                let scale = if i % 997 == 0 { 50.0 } else { f64::from(1 + i as u32 / 3000) };
                (u * scale * 1e-3) as f32
            })
            .collect()
    }

    fn relative_error(values: &[f32], decoded: &[f32]) -> f64 {
        let square = |v: f32| f64::from(v) * f64::from(v);
        let error: f64 = values.iter().zip(decoded).map(|(a, b)| square(a - b)).sum();
        error / values.iter().map(|v| square(*v)).sum::<f64>()
    }

    #[test]
    fn nearest_loses_what_the_theory_says() {
        // Mean squared error of the best uniform quantizer of a unit Gaussian (Max 1960, table II, to 5 bits; 6 to 8 by
        // numerical integration).
        let theory = [0.3634, 0.1188, 0.03744, 0.01154, 0.003495, 0.001040, 0.0003043, 0.0000877];
        let values = vector(50_000);
        for (bits, expected) in (1u8..=8).zip(theory) {
            let quantized = Quantized::of(values.clone(), bits, &rotation(), Rounding::Nearest);
            let lost = relative_error(&values, &quantized.values(&rotation()));
            assert!(lost < expected * 1.1, "{bits} bits lose {lost}, theory {expected}");
            let norm = values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
            assert!(quantized.norm() <= norm * (1.0 + 1e-6), "{bits} bits lengthen the vector");
        }
    }

    #[test]
    fn stochastic_stays_within_one_step() {
        let values = vector(5000);
        for bits in 1..=8 {
            let quantized = Quantized::of(values.clone(), bits, &rotation(), Rounding::Stochastic([1; 32]));
            let mut rotated = values.clone();
            rotation().apply(&mut rotated);
            for (range, step) in blocks(values.len()).zip(&quantized.steps) {
                for i in range {
                    let level = step * (f32::from(quantized.codes[i]) - centre(bits));
                    assert!((level - rotated[i]).abs() <= step * 1.001, "{bits} bits, coordinate {i}");
                }
            }
        }
    }

    #[test]
    fn stochastic_rounding_is_unbiased() {
        let values = vector(1500);
        let draws = 4000u32;
        for bits in [1, 2, 4] {
            let mut sums = vec![0.0f64; values.len()];
            let mut squares = vec![0.0f64; values.len()];
            for draw in 0..draws {
                let mut seed = [0; 32];
                seed[..4].copy_from_slice(&draw.to_le_bytes());
                let decoded = Quantized::of(values.clone(), bits, &rotation(), Rounding::Stochastic(seed))
                    .values(&rotation());
                for ((sum, square), value) in sums.iter_mut().zip(&mut squares).zip(decoded) {
                    *sum += f64::from(value);
                    *square += f64::from(value).powi(2);
                }
            }
            // Each coordinate's mean is within 5 standard errors of the truth: of 1500 about none should be outside.
            let n = f64::from(draws);
            for (i, value) in values.iter().enumerate() {
                let mean = sums[i] / n;
                let error = ((squares[i] / n - mean * mean).max(0.0) / n).sqrt();
                let off = (mean - f64::from(*value)).abs();
                assert!(
                    off <= 5.0 * error + 1e-7,
                    "{bits} bits, coordinate {i}: off by {off}, error {error}"
                );
            }
        }
    }

    #[test]
    fn zero_and_tiny_vectors_decode_to_zero() {
        for values in [vec![0.0; 1500], vec![1e-44; 1500], vec![]] {
            for rounding in [Rounding::Nearest, Rounding::Stochastic([0; 32])] {
                let quantized = Quantized::of(values.clone(), 4, &rotation(), rounding);
                assert_eq!(quantized.norm(), 0.0);
                assert!(quantized.values(&rotation()).iter().all(|v| v.abs() == 0.0));
            }
        }
    }
}
