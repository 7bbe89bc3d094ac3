//! Masks: AES-256 in counter mode, expanded into Z/2^w.
//!
//! The pseudorandom generator of Bonawitz et al. 2017, section 3.4. A mask key is used for one vector of one session, so
//! the counter starts at zero and needs no nonce. AES-256 because it was the fastest vetted cipher measured with a
//! 256-bit key: the `aes` crate picks VAES, AES-NI or the ARMv8 instructions at run time and falls back to constant-time
//! code.

use crate::ring::{BLOCK, Lane, Lanes, RingVector, Width, add_blocks, overwrite};
use aes::Aes256;
use aes::cipher::{BlockCipherEncrypt, KeyInit, array::Array, consts::U16};
use zeroize::Zeroizing;

/// Key stream made at once: it and the sums that it goes into stay in the first-level cache.
const STREAM_BYTES: usize = 8 * 1024;

type AesBlock = Array<u8, U16>;

/// A 256-bit mask key.
pub(crate) type MaskKey = Zeroizing<[u8; 32]>;

/// A mask, ready to expand; the key schedule is overwritten on drop.
pub(crate) struct Mask {
    cipher: Aes256,
    subtract: bool,
}

impl Mask {
    /// The mask of `key`, to be added or subtracted.
    pub(crate) fn new(key: &MaskKey, subtract: bool) -> Self {
        Self { cipher: Aes256::new(&Array::from(**key)), subtract }
    }

    /// Fills `stream` with the key stream of `counters`, a block of 16 bytes each.
    fn key_stream(&self, counters: &[AesBlock], stream: &mut [u8]) {
        let (blocks, _) = Array::slice_as_chunks_mut(stream);
        let filled = self.cipher.encrypt_blocks_b2b(counters, blocks);
        filled.expect("there are as many counters as blocks of the stream");
    }
}

/// Writes the counters of the key stream's `bytes` bytes from byte `offset`; both are multiples of 16. They are the same for
/// every mask, so they are written once for all.
fn count(counters: &mut [u8], offset: usize, bytes: usize) -> &[AesBlock] {
    let (blocks, _) = Array::slice_as_chunks_mut(&mut counters[..bytes]);
    for (counter, block) in (offset as u128 / 16..).zip(blocks.iter_mut()) {
        *block = Array(counter.to_le_bytes());
    }
    blocks
}

/// `len` zeros that start at a cache line, in `buffer`: vector loads that straddle two lines take twice as long.
fn aligned<T: Default + Clone>(buffer: &mut Vec<T>, len: usize) -> &mut [T] {
    const LINE: usize = 64;
    buffer.resize(len + LINE, T::default());
    let skip = buffer.as_ptr().align_offset(LINE).min(LINE);
    &mut buffer[skip..skip + len]
}

/// Expands every mask over `lanes`, whose first coordinate is number `first` (a multiple of [`BLOCK`]).
fn apply<L: Lane>(lanes: &mut [L], first: usize, width: Width, masks: &[Mask]) {
    let (arch, width) = (pulp::Arch::new(), width.stream());
    let blocks_at_once = (STREAM_BYTES / width.block_bytes()).max(1);
    let (mut stream, mut counters, mut sums) = (Vec::new(), Vec::new(), Vec::new());
    let stream = aligned(&mut stream, blocks_at_once * width.block_bytes());
    let counters = aligned(&mut counters, stream.len());
    let sums = aligned(&mut sums, blocks_at_once * BLOCK);
    for (chunk, lanes) in lanes.chunks_mut(sums.len()).enumerate() {
        // What the last chunk lacks to whole blocks is masked too, and not kept.
        let blocks = lanes.len().div_ceil(BLOCK);
        let (stream, sums) = (&mut stream[..blocks * width.block_bytes()], &mut sums[..blocks * BLOCK]);
        sums[..lanes.len()].copy_from_slice(lanes);
        let block = first / BLOCK + chunk * blocks_at_once;
        let counters = count(counters, block * width.block_bytes(), stream.len());
        for mask in masks {
            mask.key_stream(counters, stream);
            add_blocks(arch, sums, stream, width, mask.subtract);
        }
        lanes.copy_from_slice(&sums[..lanes.len()]);
    }
    overwrite(stream);
    overwrite(sums);
}

/// Adds or subtracts all `masks`, on the calling thread.
pub(crate) fn apply_masks(vector: &mut RingVector, masks: &[Mask]) {
    let width = vector.width();
    match &mut vector.lanes {
        Lanes::Narrow(lanes) => apply(lanes, 0, width, masks),
        Lanes::Wide(lanes) => apply(lanes, 0, width, masks),
    }
}

/// As [`apply_masks`], over rayon's threads where that feature is on.
pub(crate) fn apply_masks_at_server(vector: &mut RingVector, masks: &[Mask]) {
    #[cfg(not(feature = "rayon"))]
    apply_masks(vector, masks);
    #[cfg(feature = "rayon")]
    {
        use rayon::prelude::*;
        const PIECE: usize = 32 * BLOCK;
        fn pieces<L: Lane>(lanes: &mut [L], width: Width, masks: &[Mask]) {
            let pieces = lanes.par_chunks_mut(PIECE).enumerate();
            pieces.for_each(|(piece, lanes)| apply(lanes, piece * PIECE, width, masks));
        }
        let width = vector.width();
        match &mut vector.lanes {
            Lanes::Narrow(lanes) => pieces(lanes, width, masks),
            Lanes::Wide(lanes) => pieces(lanes, width, masks),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// NIST SP 800-38A, F.5.5 (AES-256 in counter mode) fixes the cipher; our counter is little-endian from zero.
    #[test]
    fn the_key_stream_is_aes_256_of_a_counter() {
        let key: [u8; 32] = (0..32u8).collect::<Vec<_>>().try_into().unwrap();
        let mut stream = [0; 64];
        let mut counters = [0; 64];
        let counters = count(&mut counters, 32, stream.len());
        Mask::new(&Zeroizing::new(key), false).key_stream(counters, &mut stream);
        for (i, block) in stream.chunks(16).enumerate() {
            let mut expected = Array::from((2 + i as u128).to_le_bytes());
            Aes256::new(&Array::from(key)).encrypt_block(&mut expected);
            assert_eq!(block, &expected[..]);
        }
        // FIPS 197, appendix C.3.
        let mut block = Array([
            0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff,
        ]);
        Aes256::new(&Array::from(key)).encrypt_block(&mut block);
        assert_eq!(hex::encode(block), "8ea2b7ca516745bfeafc49904b496089");
    }

    #[test]
    fn a_mask_added_and_subtracted_leaves_nothing_and_the_server_path_agrees() {
        for bits in [1, 5, 8, 11, 12, 16, 17, 20, 31, 32] {
            let width = Width::new(bits).unwrap();
            for len in [1, BLOCK, 70_000] {
                let input = RingVector::from_values(width, (0..len as u32).map(|i| i.wrapping_mul(77)));
                let keys = [[1; 32], [2; 32], [3; 32]].map(Zeroizing::new);
                let masks: Vec<Mask> = keys.iter().map(|k| Mask::new(k, false)).collect();
                let mut masked = input.clone();
                apply_masks(&mut masked, &masks);
                assert!(len < 100 || masked != input);
                let back: Vec<Mask> = keys.iter().map(|k| Mask::new(k, true)).collect();
                apply_masks_at_server(&mut masked, &back);
                assert_eq!(masked, input);
            }
        }
    }

    #[test]
    fn a_mask_is_the_key_stream_packed_or_in_whole_words() {
        let key = Zeroizing::new([9; 32]);
        let mask_of = |bits, len| {
            let mut vector = RingVector::zeros(Width::new(bits).unwrap(), len);
            apply_masks(&mut vector, &[Mask::new(&key, false)]);
            vector
        };
        let len = 3 * BLOCK;
        for bits in 1..=32u8 {
            let mut counters = vec![0; len * 4];
            let counters = count(&mut counters, 0, len * 4);
            let mut stream = vec![0; len * 4];
            Mask::new(&key, false).key_stream(counters, &mut stream);
            let mask = mask_of(bits, len);
            match bits {
                13..=16 => {
                    let words = stream.chunks(2).map(|b| u32::from(u16::from_le_bytes([b[0], b[1]])));
                    assert!(mask.iter().eq(words.take(len).map(|word| word & mask.width().max_value())));
                }
                25..=32 => {
                    let words = stream.chunks(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
                    assert!(mask.iter().eq(words.map(|word| word & mask.width().max_value())));
                }
                _ => {
                    let mut packed = RingVector::zeros(mask.width(), len);
                    assert!(packed.add_packed(&stream[..mask.width().packed_bytes(len)]));
                    assert_eq!(mask, packed);
                }
            }
        }
    }

    #[test]
    fn a_mask_looks_uniform_at_every_width() {
        for bits in 1..=32 {
            let width = Width::new(bits).unwrap();
            let mut vector = RingVector::zeros(width, 40_000);
            apply_masks(&mut vector, &[Mask::new(&Zeroizing::new([bits; 32]), false)]);
            for bit in 0..bits {
                let ones = vector.iter().filter(|v| v >> bit & 1 == 1).count();
                // Six standard deviations of a fair coin: 20,000 +- 600.
                assert!((19_400..20_600).contains(&ones), "bit {bit} of {bits}: {ones} ones in 40,000");
            }
        }
    }
}
