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

/// Makes a key stream of `bytes` bytes, rounded up to 16, `times` times over, in one buffer and without adding it to anything: the least that
/// masks can cost. For measurements, which must use the cipher as this crate's build has it.
#[doc(hidden)]
pub fn key_stream_alone(bytes: usize, times: u32) {
    let bytes = bytes.next_multiple_of(16);
    let (mut counters, mut stream) = (Vec::new(), Vec::new());
    let (counters, stream) = (aligned(&mut counters, bytes), aligned(&mut stream, bytes));
    let mask = Mask::new(&Zeroizing::new([7; 32]), false);
    let counters = count(counters, 0, bytes);
    for _ in 0..times {
        mask.key_stream(counters, stream);
        std::hint::black_box(&*stream);
    }
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

    /// Every machine of a federation must make the same masks. The digests, SHA-256 of the coordinates as little-endian words of 32 bits, come from a
    /// few lines of Python with OpenSSL's AES-256, written from the description in `ring.rs`.
    #[test]
    fn masks_are_those_of_another_implementation() {
        let key: [u8; 32] = std::array::from_fn(|i| i as u8);
        for (bits, expected) in [
            (1, "6ed67834a87e5754d60ec151ed77fcaca6b1458c7c63bd0b8950ce78d7923521"),
            (11, "50cb557b7f39d567d1781d5aea5b84c137aa1b491fb34c58a86ec0a5f6fbe007"),
            (12, "16154fc6cc6fe09c04ddd217d488be46c5a0bbc1050c9891cf7c0d7695be3a59"),
            (13, "8dec9e743dfe10acc776e26cd7a5c633f5f7a773b3d0c82fd10c89797c3f32cc"),
            (14, "626b9b0ae803545c2db25c07d2f602824a309ee7f9189336968d07ac258d12dd"),
            (16, "ca7c8b2632f314077d074dea546c4a445d4f8c98af59b9f243d35fb5796fbde7"),
            (17, "5e11dc81c8b73e576abf3d8641eb43d4f0af0ec6b3538d2b94f0b92789665e7d"),
            (20, "1833b8a47b7f82fb91435e01019ebfdddb77427f72c811a77f06fa0c1645b412"),
            (24, "79f0a91793bb3886ce93481333d5afe801b8d784934aeea250bf562cf90c13f0"),
            (25, "f4fe43682e8f11060806554d8500ab7a85ac66f6d21a6c47d072fdd1fc7382be"),
            (29, "e11a0679d89b42e1fc7c7d90883643f3c40011ad3aa06b42343e8d6623f9ffa3"),
            (32, "04e4ecdd09fac32f56929a7254ddeda7a4bde5819e00c8e0370eee431faeb762"),
        ] {
            let mut vector = RingVector::zeros(Width::new(bits).unwrap(), 2 * BLOCK + 77);
            apply_masks(&mut vector, &[Mask::new(&Zeroizing::new(key), false)]);
            let bytes: Vec<u8> = vector.iter().flat_map(u32::to_le_bytes).collect();
            assert_eq!(medinet_types::Digest::of(&bytes).to_string(), expected, "{bits} bits");
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
