//! Vectors over Z/2^w and their form on the wire.
//!
//! A vector is cut into blocks of [`BLOCK`] coordinates. A full block is packed *vertically*: it is 128 (or 64)
//! columns of 16 (or 32) coordinates, and each column's coordinates lie one after another in the column's w words of 16
//! (or 32) bits. So one shift and one add serve all columns at once whatever w is, on vector registers of any length, and
//! a block of n coordinates takes exactly n w bits. The same layout turns key stream into masks ([`Width::stream`]): uniform words
//! make uniform coordinates, none reduced with a bias. What is left after the last full block is packed as plain little-endian bits.

use crate::error::{Error, Problem};
use pulp::NullaryFnOnce;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, optimization_barrier};

/// Coordinates of a block.
pub(crate) const BLOCK: usize = 2048;
/// Bytes of a row of words across all columns: 128 words of 16 bits or 64 of 32.
const ROW_BYTES: usize = 256;

/// The width w of the ring Z/2^w in bits, 1 to 32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct Width(u8);

impl Width {
    /// A width of `bits`.
    ///
    /// # Errors
    /// When `bits` is not 1 to 32; the caller is at fault.
    pub fn new(bits: u8) -> Result<Self, Error> {
        if (1..=32).contains(&bits) {
            return Ok(Self(bits));
        }
        Err(Error::caller(Problem::Parameters {
            field: "width",
            expected: "1 to 32 bits".to_owned(),
            got: bits.into(),
        }))
    }

    /// The least width at which `sites` values of 0 to `largest` sum without wrapping.
    ///
    /// # Errors
    /// When that is more than 32 bits; the caller is at fault.
    pub fn for_sum(largest: u32, sites: u16) -> Result<Self, Error> {
        let top = u64::from(largest) * u64::from(sites);
        let bits = (u64::BITS - top.leading_zeros()).max(1);
        Self::new(u8::try_from(bits).unwrap_or(u8::MAX))
    }

    /// The width in bits.
    #[must_use]
    pub fn bits(self) -> u8 {
        self.0
    }

    /// 2^w - 1, the largest element.
    #[must_use]
    pub fn max_value(self) -> u32 {
        u32::MAX >> (32 - self.0)
    }

    /// Bytes that `len` coordinates take when packed.
    #[must_use]
    pub fn packed_bytes(self, len: usize) -> usize {
        len / BLOCK * self.block_bytes() + (len % BLOCK * usize::from(self.0)).div_ceil(8)
    }

    pub(crate) fn block_bytes(self) -> usize {
        BLOCK / 8 * usize::from(self.0)
    }

    /// Bits of key stream that a coordinate's mask takes: w, 16 or 32.
    #[must_use]
    pub fn mask_bits(self) -> u8 {
        self.stream().0
    }

    /// The width of the words of key stream that a coordinate's mask is made of: w bits, or a whole word where w is more than three quarters of it. Of a
    /// uniform word the low w bits are uniform and the others never leave the sum's word, which is cut to w bits when it is packed or
    /// read. From there on adding whole words costs less than shifting saves on the cipher.
    pub(crate) fn stream(self) -> Self {
        match self.0 {
            13..=16 => Self(16),
            25..=32 => Self(32),
            bits => Self(bits),
        }
    }
}

impl TryFrom<u8> for Width {
    type Error = Error;

    fn try_from(bits: u8) -> Result<Self, Error> {
        Self::new(bits)
    }
}

impl From<Width> for u8 {
    fn from(width: Width) -> Self {
        width.0
    }
}

/// Overwrites values with zeros that the compiler must write, as `zeroize` does, and at the speed of `memset`: `zeroize` itself writes one
/// element after the other, which for a million coordinates takes as long as three masks.
pub(crate) fn overwrite<T: Copy + Default>(values: &mut [T]) {
    values.fill(T::default());
    optimization_barrier(values);
}

/// A word that holds one coordinate in memory.
pub(crate) trait Lane: Copy + Default + Send + Sync {
    const BITS: usize;
    /// The word's bytes, an array: the loops below must know their length to become vector instructions.
    type Bytes;
    fn words(bytes: &[u8]) -> &[Self::Bytes];
    fn words_mut(bytes: &mut [u8]) -> &mut [Self::Bytes];
    fn read(bytes: &Self::Bytes) -> Self;
    fn or_into(self, bytes: &mut Self::Bytes);
    fn plus(self, other: Self) -> Self;
    fn minus(self, other: Self) -> Self;
    fn join(low: Self, high: Self, shift: u32) -> Self;
    fn right(self, shift: u32) -> Self;
    fn left(self, shift: u32) -> Self;
    fn low_bits(self, width: Width) -> Self;
    fn to_u32(self) -> u32;
    fn from_u32(value: u32) -> Self;
}

macro_rules! lane {
    ($word:ty, $bytes:literal) => {
        impl Lane for $word {
            const BITS: usize = $bytes * 8;
            type Bytes = [u8; $bytes];
            #[inline(always)]
            fn words(bytes: &[u8]) -> &[Self::Bytes] {
                bytes.as_chunks().0
            }
            #[inline(always)]
            fn words_mut(bytes: &mut [u8]) -> &mut [Self::Bytes] {
                bytes.as_chunks_mut().0
            }
            #[inline(always)]
            fn read(bytes: &Self::Bytes) -> Self {
                Self::from_le_bytes(*bytes)
            }
            #[inline(always)]
            fn or_into(self, bytes: &mut Self::Bytes) {
                *bytes = (Self::from_le_bytes(*bytes) | self).to_le_bytes();
            }
            #[inline(always)]
            fn plus(self, other: Self) -> Self {
                self.wrapping_add(other)
            }
            #[inline(always)]
            fn minus(self, other: Self) -> Self {
                self.wrapping_sub(other)
            }
            #[inline(always)]
            fn join(low: Self, high: Self, shift: u32) -> Self {
                (low >> shift) | (high << (Self::BITS as u32 - shift))
            }
            #[inline(always)]
            fn right(self, shift: u32) -> Self {
                self >> shift
            }
            #[inline(always)]
            fn left(self, shift: u32) -> Self {
                self << shift
            }
            #[inline(always)]
            fn low_bits(self, width: Width) -> Self {
                self & (width.max_value() as Self)
            }
            #[inline(always)]
            fn to_u32(self) -> u32 {
                self.into()
            }
            #[inline(always)]
            fn from_u32(value: u32) -> Self {
                value as Self
            }
        }
    };
}
lane!(u16, 2);
lane!(u32, 4);

/// Adds (or subtracts) a packed block to `sums`. Only the low w bits of a sum mean anything: what lies above is left
/// to overflow, since carries never move down.
#[inline(always)]
fn add_block<L: Lane, const SUBTRACT: bool>(sums: &mut [L], packed: &[u8], width: usize) {
    let apply = |sum: &mut L, word: L| *sum = if SUBTRACT { sum.minus(word) } else { sum.plus(word) };
    for (row, sums) in sums.chunks_exact_mut(BLOCK / L::BITS).enumerate() {
        let (word, shift) = (row * width / L::BITS, row * width % L::BITS);
        let low = &packed[word * ROW_BYTES..][..ROW_BYTES];
        if shift + width <= L::BITS {
            for (sum, low) in sums.iter_mut().zip(L::words(low)) {
                apply(sum, L::read(low).right(shift as u32));
            }
        } else {
            let high = &packed[(word + 1) * ROW_BYTES..][..ROW_BYTES];
            let words = L::words(low).iter().zip(L::words(high));
            for (sum, (low, high)) in sums.iter_mut().zip(words) {
                apply(sum, L::join(L::read(low), L::read(high), shift as u32));
            }
        }
    }
}

#[inline(always)]
fn pack_block<L: Lane>(values: &[L], packed: &mut [u8], width: Width) {
    let bits = usize::from(width.0);
    for (row, values) in values.chunks_exact(BLOCK / L::BITS).enumerate() {
        let (word, shift) = (row * bits / L::BITS, row * bits % L::BITS);
        let low = &mut packed[word * ROW_BYTES..][..ROW_BYTES];
        for (low, value) in L::words_mut(low).iter_mut().zip(values) {
            value.low_bits(width).left(shift as u32).or_into(low);
        }
        if shift + bits > L::BITS {
            let high = &mut packed[(word + 1) * ROW_BYTES..][..ROW_BYTES];
            for (high, value) in L::words_mut(high).iter_mut().zip(values) {
                value.low_bits(width).right((L::BITS - shift) as u32).or_into(high);
            }
        }
    }
}

/// Packed full blocks that go to full blocks of sums. A struct with a method, and not a closure, as only a method can be told to be inlined into
/// the code for the wider vector instructions; a closure was called there, and compiled without them.
struct AddBlocks<'a, L> {
    sums: &'a mut [L],
    packed: &'a [u8],
    width: Width,
    subtract: bool,
}

impl<L: Lane> AddBlocks<'_, L> {
    #[inline(always)]
    fn add<const SUBTRACT: bool>(self) {
        let Self { sums, packed, width, .. } = self;
        let bits = usize::from(width.0);
        if bits == L::BITS {
            // Whole words lie in the order of the coordinates.
            for (sum, word) in sums.iter_mut().zip(L::words(packed)) {
                let word = L::read(word);
                *sum = if SUBTRACT { sum.minus(word) } else { sum.plus(word) };
            }
            return;
        }
        for (sums, packed) in sums.chunks_exact_mut(BLOCK).zip(packed.chunks_exact(width.block_bytes())) {
            add_block::<L, SUBTRACT>(sums, packed, bits);
        }
    }
}

impl<L: Lane> NullaryFnOnce for AddBlocks<'_, L> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        if self.subtract { self.add::<true>() } else { self.add::<false>() }
    }
}

/// Adds packed full blocks to full blocks of sums, with the widest vector instructions that this processor has.
pub(crate) fn add_blocks<L: Lane>(
    arch: pulp::Arch,
    sums: &mut [L],
    packed: &[u8],
    width: Width,
    subtract: bool,
) {
    arch.dispatch(AddBlocks { sums, packed, width, subtract });
}

/// Full blocks of values to pack; as [`AddBlocks`].
struct PackBlocks<'a, L> {
    values: &'a [L],
    packed: &'a mut [u8],
    width: Width,
}

impl<L: Lane> NullaryFnOnce for PackBlocks<'_, L> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { values, packed, width } = self;
        for (values, packed) in values.chunks_exact(BLOCK).zip(packed.chunks_exact_mut(width.block_bytes())) {
            pack_block(values, packed, width);
        }
    }
}

fn pack<L: Lane>(values: &[L], width: Width, out: &mut Vec<u8>) {
    let start = out.len();
    let (full, rest) = values.split_at(values.len() / BLOCK * BLOCK);
    out.resize(start + width.packed_bytes(values.len()), 0);
    let (packed, tail) = out[start..].split_at_mut(full.len() / BLOCK * width.block_bytes());
    pulp::Arch::new().dispatch(PackBlocks { values: full, packed, width });
    let mut position = 0;
    for value in rest {
        let value = value.low_bits(width).to_u32();
        for bit in 0..usize::from(width.0) {
            tail[position / 8] |= ((value >> bit & 1) as u8) << (position % 8);
            position += 1;
        }
    }
}

/// Adds a packed vector; the caller has checked its length and its last bits.
fn add_packed<L: Lane>(sums: &mut [L], packed: &[u8], width: Width) {
    let full = sums.len() / BLOCK * BLOCK;
    let (blocks, rest) = sums.split_at_mut(full);
    let (packed, tail) = packed.split_at(full / BLOCK * width.block_bytes());
    add_blocks(pulp::Arch::new(), blocks, packed, width, false);
    let mut position = 0;
    for sum in rest {
        let mut value = 0;
        for bit in 0..usize::from(width.0) {
            value |= u32::from(tail[position / 8] >> (position % 8) & 1) << bit;
            position += 1;
        }
        *sum = sum.plus(L::from_u32(value));
    }
}

/// The coordinates: 16-bit words up to w = 16, which halves the memory that every addition moves.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Lanes {
    Narrow(Vec<u16>),
    Wide(Vec<u32>),
}

/// Both are made at their length, so that nothing was ever written beyond it.
impl Zeroize for Lanes {
    fn zeroize(&mut self) {
        match self {
            Self::Narrow(lanes) => overwrite(lanes),
            Self::Wide(lanes) => overwrite(lanes),
        }
    }
}

/// A vector over Z/2^w. It may hold a site's update, so it prints nothing and is overwritten when dropped.
#[derive(Clone, ZeroizeOnDrop)]
pub struct RingVector {
    #[zeroize(skip)]
    width: Width,
    pub(crate) lanes: Lanes,
}

impl std::fmt::Debug for RingVector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RingVector({} coordinates of {} bits)", self.len(), self.width.0)
    }
}

impl PartialEq for RingVector {
    fn eq(&self, other: &Self) -> bool {
        self.width == other.width && self.len() == other.len() && self.iter().eq(other.iter())
    }
}

impl Eq for RingVector {}

impl RingVector {
    /// Zeros.
    #[must_use]
    pub fn zeros(width: Width, len: usize) -> Self {
        let lanes = if width.0 <= 16 { Lanes::Narrow(vec![0; len]) } else { Lanes::Wide(vec![0; len]) };
        Self { width, lanes }
    }

    /// Takes values, each modulo 2^w.
    #[must_use]
    pub fn from_values(
        width: Width,
        values: impl IntoIterator<IntoIter: ExactSizeIterator<Item = u32>>,
    ) -> Self {
        let lanes = if width.0 <= 16 {
            Lanes::Narrow(values.into_iter().map(|v| v as u16).collect())
        } else {
            Lanes::Wide(values.into_iter().collect())
        };
        Self { width, lanes }
    }

    /// The ring's width.
    #[must_use]
    pub fn width(&self) -> Width {
        self.width
    }

    /// Coordinates.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.lanes {
            Lanes::Narrow(lanes) => lanes.len(),
            Lanes::Wide(lanes) => lanes.len(),
        }
    }

    /// Whether there are no coordinates.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The coordinates, each below 2^w.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        let (narrow, wide): (&[u16], &[u32]) = match &self.lanes {
            Lanes::Narrow(lanes) => (lanes, &[]),
            Lanes::Wide(lanes) => (&[], lanes),
        };
        let mask = self.width.max_value();
        narrow.iter().map(|&v| u32::from(v)).chain(wide.iter().copied()).map(move |v| v & mask)
    }

    /// Appends the packed coordinates to `out`.
    pub fn pack_into(&self, out: &mut Vec<u8>) {
        match &self.lanes {
            Lanes::Narrow(lanes) => pack(lanes, self.width, out),
            Lanes::Wide(lanes) => pack(lanes, self.width, out),
        }
    }

    /// Adds a packed vector of the same width and length.
    ///
    /// Returns whether it was one: its length fits, and no bit is set after the last coordinate. If not, nothing is added.
    #[must_use]
    pub fn add_packed(&mut self, packed: &[u8]) -> bool {
        if packed.len() != self.width.packed_bytes(self.len()) {
            return false;
        }
        let used = self.len() % BLOCK * usize::from(self.width.0) % 8;
        if used != 0 && packed.last().is_some_and(|last| last >> used != 0) {
            return false;
        }
        match &mut self.lanes {
            Lanes::Narrow(lanes) => add_packed(lanes, packed, self.width),
            Lanes::Wide(lanes) => add_packed(lanes, packed, self.width),
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_least_width_holds_the_largest_sum() {
        assert_eq!(Width::for_sum(15, 100).unwrap().bits(), 11);
        assert_eq!(Width::for_sum(255, 257).unwrap().bits(), 16);
        assert_eq!(Width::for_sum(255, 258).unwrap().bits(), 17);
        assert_eq!(Width::for_sum(0, 3).unwrap().bits(), 1);
        assert!(Width::for_sum(u32::MAX, 2).is_err());
        assert!(Width::new(0).is_err() && Width::new(33).is_err());
    }

    #[test]
    fn every_width_and_length_packs_to_exactly_its_bits_and_reads_back() {
        for bits in 1..=32u8 {
            let width = Width::new(bits).unwrap();
            for len in [0, 1, 7, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 77] {
                let values: Vec<u32> = (0..len as u32).map(|i| i.wrapping_mul(0x9E37_79B9)).collect();
                let vector = RingVector::from_values(width, values.iter().copied());
                let mut packed = vec![0xEE];
                vector.pack_into(&mut packed);
                assert_eq!(packed.len() - 1, (len * usize::from(bits)).div_ceil(8));
                let mut sum = RingVector::zeros(width, len);
                assert!(sum.add_packed(&packed[1..]) && sum.add_packed(&packed[1..]));
                let twice = values.iter().map(|v| v.wrapping_mul(2) & width.max_value());
                assert!(sum.iter().eq(twice), "w = {bits}, {len} coordinates");
            }
        }
    }

    #[test]
    fn other_lengths_and_set_bits_at_the_end_are_refused() {
        let mut sum = RingVector::zeros(Width::new(3).unwrap(), 5);
        assert!(sum.add_packed(&[0xFF, 0x7F]));
        for bad in [&[0xFF, 0xFF][..], &[0xFF], &[0, 0, 0], &[]] {
            let before = sum.clone();
            assert!(!sum.add_packed(bad));
            assert_eq!(sum, before);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn packed_sums_are_sums_in_the_ring(bits in 1u8..=32, len in 0usize..5000, seed in any::<u32>()) {
            let width = Width::new(bits).unwrap();
            let value = |i: usize, k: u32| (i as u32 ^ seed).wrapping_mul(k | 1).rotate_left(k % 32);
            let mut sum = RingVector::zeros(width, len);
            for k in 1..4 {
                let mut packed = Vec::new();
                RingVector::from_values(width, (0..len).map(|i| value(i, k))).pack_into(&mut packed);
                prop_assert!(sum.add_packed(&packed));
            }
            let expected = (0..len).map(|i| (1..4).fold(0u32, |s, k| s.wrapping_add(value(i, k))) & width.max_value());
            prop_assert!(sum.iter().eq(expected));
        }
    }
}
