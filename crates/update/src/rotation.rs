//! The shared random rotation: signs and Walsh-Hadamard transforms in blocks.

use medinet_types::{Digest, ModelDigest, RoundNumber};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use std::ops::Range;

/// The longest block, in coordinates: long enough that rotated coordinates look Gaussian and that a float32 step
/// per block costs little (1/32 bit per coordinate), short enough to stay in the first-level cache.
pub(crate) const MAX_BLOCK: usize = 1024;

/// A seeded random orthonormal rotation x -> H D x / sqrt(block) in each block (Suresh et al. 2017, section 3), where D
/// holds random signs and H is the Walsh-Hadamard matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rotation {
    seed: [u8; 32],
}

impl Rotation {
    /// The rotation that all sites of a round share; another one in every round, so that what a
    /// rotation suits badly is not hit again.
    pub(crate) fn of_round(base: &ModelDigest, round: RoundNumber) -> Self {
        let parts: [&[u8]; 3] = [b"medinet update rotation 1", base.0.as_bytes(), &round.0.to_le_bytes()];
        Self { seed: Digest::of_parts(&parts).0 }
    }

    /// The rotation of a model delta that starts from parameters with this digest.
    pub(crate) fn of_base(parameters: &Digest) -> Self {
        let parts: [&[u8]; 2] = [b"medinet downlink rotation 1", parameters.as_bytes()];
        Self { seed: Digest::of_parts(&parts).0 }
    }

    /// Rotates in place.
    pub(crate) fn apply(&self, values: &mut [f32]) {
        let mut rng = ChaCha8Rng::from_seed(self.seed);
        for range in blocks(values.len()) {
            let block = &mut values[range];
            flip_signs(&mut rng, block);
            walsh_hadamard(block);
        }
    }

    /// Undoes [`Rotation::apply`], up to rounding.
    pub(crate) fn undo(&self, values: &mut [f32]) {
        let mut rng = ChaCha8Rng::from_seed(self.seed);
        for range in blocks(values.len()) {
            let block = &mut values[range];
            walsh_hadamard(block);
            flip_signs(&mut rng, block);
        }
    }
}

/// Two passes of [`Rotation`] with a fixed permutation between them, so that what lies in one block, up to a whole layer, is
/// spread over the whole vector: for grids that know no blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SpreadRotation {
    passes: [Rotation; 2],
    stride: usize,
}

impl SpreadRotation {
    /// The rotation that all sites of a round share.
    pub(crate) fn of_round(base: &ModelDigest, round: RoundNumber, length: usize) -> Self {
        let pass = |pass: &[u8]| {
            let parts: [&[u8]; 3] = [pass, base.0.as_bytes(), &round.0.to_le_bytes()];
            Rotation { seed: Digest::of_parts(&parts).0 }
        };
        let passes = [pass(b"medinet secure rotation 1 a"), pass(b"medinet secure rotation 1 b")];
        Self { passes, stride: stride(length) }
    }

    /// The rotation that all rounds of an era share.
    pub(crate) fn of_era(era: u32, length: usize) -> Self {
        let pass = |pass: &[u8]| Rotation { seed: Digest::of_parts(&[pass, &era.to_le_bytes()]).0 };
        let passes = [pass(b"medinet secure era rotation 1 a"), pass(b"medinet secure era rotation 1 b")];
        Self { passes, stride: stride(length) }
    }

    /// Rotates in place.
    pub(crate) fn apply(&self, values: &mut Vec<f32>) {
        self.passes[0].apply(values);
        *values = self.places(values.len()).map(|place| values[place]).collect();
        self.passes[1].apply(values);
    }

    /// Undoes [`SpreadRotation::apply`], up to rounding.
    pub(crate) fn undo(&self, values: &mut Vec<f32>) {
        self.passes[1].undo(values);
        let mut original = vec![0.0; values.len()];
        for (place, value) in self.places(values.len()).zip(values.iter()) {
            original[place] = *value;
        }
        self.passes[0].undo(&mut original);
        *values = original;
    }

    /// 0, stride, 2 stride, ... modulo the length.
    fn places(&self, length: usize) -> impl Iterator<Item = usize> + use<> {
        let (mut next, stride) = (0, self.stride);
        (0..length).map(move |_| {
            let place = next;
            next += stride;
            if next >= length {
                next -= length;
            }
            place
        })
    }
}

/// A stride that visits every place: coprime to the length, and near its golden section, whose multiples are spread most evenly.
fn stride(length: usize) -> usize {
    let gcd = |mut a: usize, mut b: usize| {
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    // 1 is coprime to everything, so the search ends.
    let mut stride = (length as f64 * 0.618_033_988_749_894_9) as usize;
    while stride > 1 && gcd(stride, length) != 1 {
        stride -= 1;
    }
    stride.max(1)
}

/// Cuts `0..length` into blocks whose lengths are powers of two: as many of [`MAX_BLOCK`] as fit, then the binary
/// digits of the rest, so that nothing is padded.
pub(crate) fn blocks(length: usize) -> impl Iterator<Item = Range<usize>> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let left = length - start;
        let size = match left {
            0 => return None,
            MAX_BLOCK.. => MAX_BLOCK,
            _ => 1 << left.ilog2(),
        };
        start += size;
        Some(start - size..start)
    })
}

/// How many blocks [`blocks`] gives.
pub(crate) fn block_count(length: usize) -> usize {
    length / MAX_BLOCK + (length % MAX_BLOCK).count_ones() as usize
}

fn flip_signs(rng: &mut ChaCha8Rng, block: &mut [f32]) {
    for run in block.chunks_mut(64) {
        let bits = rng.next_u64();
        for (position, value) in run.iter_mut().enumerate() {
            let sign = ((bits >> position) & 1) as u32;
            *value = f32::from_bits(value.to_bits() ^ (sign << 31));
        }
    }
}

/// The orthonormal fast Walsh-Hadamard transform; its own inverse.
fn walsh_hadamard(block: &mut [f32]) {
    let mut half = 1;
    while half < block.len() {
        for pair in block.chunks_exact_mut(2 * half) {
            let (left, right) = pair.split_at_mut(half);
            for (a, b) in left.iter_mut().zip(right) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
    let scale = 1.0 / (block.len() as f32).sqrt();
    for value in block {
        *value *= scale;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_everything_once() {
        for length in [0, 1, 2, 3, 1023, 1024, 1025, 5000, 80_037] {
            let mut next = 0;
            let mut count = 0;
            for range in blocks(length) {
                assert_eq!(range.start, next);
                assert!(range.len().is_power_of_two() && range.len() <= MAX_BLOCK);
                next = range.end;
                count += 1;
            }
            assert_eq!((next, count), (length, block_count(length)));
        }
    }

    #[test]
    fn transform_matches_the_matrix() {
        let mut got = [1.0, 2.0, 3.0, 4.0];
        walsh_hadamard(&mut got);
        // H4 / 2 with rows ++++, +-+-, ++--, +--+.
        assert_eq!(got, [5.0, -1.0, -2.0, 0.0]);
    }

    #[test]
    fn rotation_keeps_the_norm_spreads_a_spike_and_can_be_undone() {
        let rotation = Rotation::of_base(&Digest::of(b"x"));
        let mut values = vec![0.0f32; 2500];
        values[7] = 3.0;
        values[2499] = -1.0;
        let original = values.clone();
        rotation.apply(&mut values);
        let norm: f32 = values.iter().map(|v| v * v).sum::<f32>().sqrt();
        assert!((norm - 10.0f32.sqrt()).abs() < 1e-4);
        assert!(values[..1024].iter().all(|v| (v.abs() - 3.0 / 32.0).abs() < 1e-6));
        rotation.undo(&mut values);
        assert!(values.iter().zip(&original).all(|(a, b)| (a - b).abs() < 1e-6));
    }

    #[test]
    fn the_spread_rotation_keeps_the_norm_spreads_a_layer_and_can_be_undone() {
        for length in [0, 1, 2, 3, 1000, 4096, 50_001] {
            let rotation =
                SpreadRotation::of_round(&ModelDigest(Digest::of(b"base")), RoundNumber(1), length);
            // All of the energy in the first hundredth.
            let original: Vec<f32> =
                (0..length).map(|i| if i <= length / 100 { (i % 7) as f32 - 2.5 } else { 0.0 }).collect();
            let norm = |v: &[f32]| v.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
            let mut values = original.clone();
            rotation.apply(&mut values);
            assert!((norm(&values) - norm(&original)).abs() <= 1e-4 * norm(&original));
            if length == 50_001 {
                let tenth = norm(&values[..length / 10]) / norm(&values);
                assert!((0.08..0.12).contains(&tenth), "{tenth}");
            }
            rotation.undo(&mut values);
            assert!(values.iter().zip(&original).all(|(a, b)| (a - b).abs() < 1e-5));
        }
    }

    #[test]
    fn each_round_has_its_own_rotation() {
        let base = ModelDigest(Digest::of(b"base"));
        assert_eq!(Rotation::of_round(&base, RoundNumber(1)), Rotation::of_round(&base, RoundNumber(1)));
        assert_ne!(Rotation::of_round(&base, RoundNumber(1)), Rotation::of_round(&base, RoundNumber(2)));
    }
}
