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

/// The rotation for grids that know no blocks: passes of signs and Walsh-Hadamard transforms over **full** blocks, with a transposition before
/// each pass but the first, so that what lies in one place, one block or one layer is spread over the whole vector.
///
/// With d parameters, B = min(1024, the largest power of two <= d) and S = ceil(d/B):
///
/// 1. *Pass.* Blocks 0..B, B..2B, ... are transformed. Where d is no multiple of B, one more block follows, the last B coordinates of all; it
///    overlaps the one before it. Each step is orthogonal, so all of them are, and undone in the opposite order.
/// 2. *Transposition.* The vector is written in rows of S, each row is turned by a random offset, and it is read by columns. A run of B coordinates
///    has B/S in each column, up to one at its ends; and a column is about a block.
///
/// There are two passes, and as many more as it takes until 1024^passes >= d: three above 2^20 parameters.
///
/// *What it is for.* With blocks from the binary digits of d instead, those at the end are short: d = 77,490 ends in one of 2, which is the bias of
/// a layer of two classes. Its deltas are opposite, so the first pass leaves a single coordinate, and the second spreads that over 1,024: each is
/// C/32, where a grid of two bits ends at C/124. Of a delta that is this bias alone three quarters are cut off then, at every site in every round,
/// which no mean brings back; of a bias that is less than a quarter of the clip norm nothing, but for what lies beside it.
///
/// *What it guarantees.* Of a vector that is one parameter of size 1, wherever it is, each rotated coordinate is a sum of terms with random signs.
/// Its expected square is 1/d in the mean over coordinates and at most 3/d in any; the largest belong to the few blocks in which two columns have
/// the run in common, and to lengths just below 2^20, where a column has one or two of a run (a test works this out for lengths of all kinds). So
/// no coordinate is above 8/sqrt(d) but for one seed in a thousand at most (Hoeffding 1963). Of more parameters some are unlucky within the first
/// block: two equal ones leave half of its coordinates zero, k equal ones down to 1024/k, which takes signs of a probability of about k 2^(1-k).
/// Offsets and the other passes spread these as well; tests have the largest coordinate, and what a coarse grid cuts of them: as much as of a
/// Gaussian.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SpreadRotation {
    /// A seed for each pass.
    passes: Vec<[u8; 32]>,
}

/// Parts of a pass's random numbers: none depends on how many another one takes.
const SIGNS: u64 = 0;
const LAST_SIGNS: u64 = 1;
const OFFSETS: u64 = 2;

impl SpreadRotation {
    /// The rotation that all sites of a round share.
    pub(crate) fn of_round(base: &ModelDigest, round: RoundNumber, length: usize) -> Self {
        Self::of(length, |pass| {
            Digest::of_parts(&[
                b"medinet secure rotation 2",
                base.0.as_bytes(),
                &round.0.to_le_bytes(),
                &[pass],
            ])
        })
    }

    /// The rotation that all rounds of an era share.
    pub(crate) fn of_era(era: u32, length: usize) -> Self {
        Self::of(length, |pass| {
            Digest::of_parts(&[b"medinet secure era rotation 2", &era.to_le_bytes(), &[pass]])
        })
    }

    fn of(length: usize, seed: impl Fn(u8) -> Digest) -> Self {
        let (mut reached, mut passes) = (MAX_BLOCK, vec![seed(0).0, seed(1).0]);
        for pass in 2.. {
            reached = reached.saturating_mul(MAX_BLOCK);
            if reached >= length {
                break;
            }
            passes.push(seed(pass).0);
        }
        Self { passes }
    }

    /// Rotates in place.
    pub(crate) fn apply(&self, values: &mut Vec<f32>) {
        let Some(block) = full_block(values.len()) else { return };
        for (pass, seed) in self.passes.iter().enumerate() {
            if pass > 0 {
                transpose(seed, block, values);
            }
            let mut rng = part(seed, SIGNS);
            for block in values.chunks_exact_mut(block) {
                flip_signs(&mut rng, block);
                walsh_hadamard(block);
            }
            if let Some(last) = last_block(block, values) {
                flip_signs(&mut part(seed, LAST_SIGNS), last);
                walsh_hadamard(last);
            }
        }
    }

    /// Undoes [`SpreadRotation::apply`], up to rounding.
    pub(crate) fn undo(&self, values: &mut Vec<f32>) {
        let Some(block) = full_block(values.len()) else { return };
        for (pass, seed) in self.passes.iter().enumerate().rev() {
            if let Some(last) = last_block(block, values) {
                walsh_hadamard(last);
                flip_signs(&mut part(seed, LAST_SIGNS), last);
            }
            let mut rng = part(seed, SIGNS);
            for block in values.chunks_exact_mut(block) {
                walsh_hadamard(block);
                flip_signs(&mut rng, block);
            }
            if pass > 0 {
                transpose_back(seed, block, values);
            }
        }
    }
}

fn part(seed: &[u8; 32], part: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::from_seed(*seed);
    rng.set_stream(part);
    rng
}

/// B: how long all blocks of a [`SpreadRotation`] are; `None` for no coordinates.
fn full_block(length: usize) -> Option<usize> {
    length.checked_ilog2().map(|digits| MAX_BLOCK.min(1 << digits))
}

/// The last B coordinates, where blocks from the start leave some over.
fn last_block(block: usize, values: &mut [f32]) -> Option<&mut [f32]> {
    let start = values.len() - block;
    (!values.len().is_multiple_of(block)).then(|| &mut values[start..])
}

/// Rows of S coordinates, the last one maybe shorter, each turned by its offset and then read by columns.
fn transpose(seed: &[u8; 32], block: usize, values: &mut Vec<f32>) {
    let width = values.len().div_ceil(block);
    let mut rng = part(seed, OFFSETS);
    for row in values.chunks_mut(width) {
        row.rotate_left(rng.next_u32() as usize % row.len());
    }
    let mut columns = Vec::with_capacity(values.len());
    for column in 0..width {
        columns.extend(values[column..].iter().step_by(width));
    }
    *values = columns;
}

/// Undoes [`transpose`].
fn transpose_back(seed: &[u8; 32], block: usize, values: &mut Vec<f32>) {
    let width = values.len().div_ceil(block);
    let mut rows = vec![0.0; values.len()];
    let mut next = values.iter();
    for column in 0..width {
        // The place first: where places end, no value is taken.
        for (place, value) in rows[column..].iter_mut().step_by(width).zip(&mut next) {
            *place = *value;
        }
    }
    let mut rng = part(seed, OFFSETS);
    for row in rows.chunks_mut(width) {
        row.rotate_right(rng.next_u32() as usize % row.len());
    }
    *values = rows;
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

    fn spread(round: u32, length: usize) -> SpreadRotation {
        SpreadRotation::of_round(&ModelDigest(Digest::of(b"base")), RoundNumber(round), length)
    }

    #[test]
    fn the_spread_rotation_keeps_the_norm_spreads_a_layer_and_can_be_undone() {
        let lengths = [0, 1, 2, 3, 5, 513, 1000, 1023, 1024, 1025, 1536, 4096, 50_001, 77_490, 1_048_579];
        for length in lengths {
            let rotation = spread(1, length);
            assert_eq!(rotation.passes.len(), if length > 1 << 20 { 3 } else { 2 });
            // All of the energy in the first hundredth.
            let original: Vec<f32> =
                (0..length).map(|i| if i <= length / 100 { (i % 7) as f32 - 2.5 } else { 0.0 }).collect();
            let norm = |v: &[f32]| v.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
            let mut values = original.clone();
            rotation.apply(&mut values);
            assert!((norm(&values) - norm(&original)).abs() <= 1e-4 * norm(&original));
            if length > 50_000 {
                // All of it began in one block, whose 1,024 coordinates are shared out in samples of 1024/S.
                for tenth in values.chunks(length.div_ceil(10)) {
                    let share = norm(tenth) / norm(&values) * length as f64 / tenth.len() as f64;
                    assert!((0.7..1.3).contains(&share), "{length}: {share}");
                }
            }
            rotation.undo(&mut values);
            assert!(values.iter().zip(&original).all(|(a, b)| (a - b).abs() < 2e-5), "{length}");
        }
    }

    /// The expected squares, over the signs, of what one parameter becomes: a transform shares a block's sum among its coordinates, and the
    /// transposition is that of the rotation.
    fn expected_squares(rotation: &SpreadRotation, length: usize, place: usize) -> Vec<f32> {
        let block = full_block(length).unwrap();
        let mut squares = vec![0.0; length];
        squares[place] = 1.0;
        let share = |block: &mut [f32]| {
            let mean = block.iter().sum::<f32>() / block.len() as f32;
            block.fill(mean);
        };
        for (pass, seed) in rotation.passes.iter().enumerate() {
            if pass > 0 {
                transpose(seed, block, &mut squares);
            }
            squares.chunks_exact_mut(block).for_each(share);
            last_block(block, &mut squares).into_iter().for_each(share);
        }
        squares
    }

    #[test]
    fn one_parameter_is_spread_evenly_wherever_it_is() {
        let mut largest: f32 = 0.0;
        let lengths = (1..40).chain([
            513, 767, 1000, 1023, 1024, 1025, 1400, 1536, 2047, 3000, 5001, 19_010, 77_490, 131_072, 131_073,
            300_001, 700_000, 1_000_000, 1_048_575, 1_048_576, 1_048_577, 1_100_000, 1_500_000,
        ]);
        for length in lengths {
            let most = (0..5).map(|eighth| length * (2 * eighth + 1) / 11).chain([
                0,
                length - 2.min(length),
                length - 1,
            ]);
            let most = most
                .flat_map(|place| expected_squares(&spread(3, length), length, place))
                .fold(0.0f32, f32::max);
            let most = most * length as f32;
            println!("{length:8}: {most:.3} / d");
            largest = largest.max(most);
        }
        assert!(largest <= 3.0, "{largest}");
    }

    /// What the documentation promises of the largest coordinate: the last two parameters, opposite, which were the end of this rotation's
    /// predecessor; one
    /// parameter anywhere; the last block.
    #[test]
    fn no_few_parameters_make_a_large_coordinate() {
        for (length, rounds) in [(1000, 20u32), (19_010, 20), (77_490, 20), (1_100_000, 3)] {
            let mut rng = ChaCha8Rng::from_seed([5; 32]);
            let short = length % 1024;
            let mut largest: f32 = 0.0;
            for round in 0..rounds {
                let place = rng.next_u32() as usize % length;
                let mut inputs = vec![vec![0.0f32; length]; 4];
                inputs[0][length - 2..].copy_from_slice(&[0.5f32.sqrt(), -(0.5f32.sqrt())]);
                inputs[1][place] = 1.0;
                inputs[2][length - 1] = 1.0;
                inputs[3][length - short..].fill((short as f32).sqrt().recip());
                for (input, values) in inputs.iter_mut().enumerate() {
                    spread(round, length).apply(values);
                    let most = values.iter().fold(0.0f32, |most, value| most.max(value.abs()));
                    let most = most * (length as f32).sqrt();
                    assert!(most <= 8.0, "{length}, round {round}, input {input}: {most} / sqrt(d)");
                    largest = largest.max(most);
                }
            }
            println!("{length:8}: {largest:.2} / sqrt(d)");
        }
    }

    #[test]
    fn each_round_has_its_own_rotation() {
        let base = ModelDigest(Digest::of(b"base"));
        assert_eq!(Rotation::of_round(&base, RoundNumber(1)), Rotation::of_round(&base, RoundNumber(1)));
        assert_ne!(Rotation::of_round(&base, RoundNumber(1)), Rotation::of_round(&base, RoundNumber(2)));
    }
}
