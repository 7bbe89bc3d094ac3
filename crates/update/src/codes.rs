//! Numbers as bytes: bit packing, byte planes, zstd where it gains.

use crate::error::UpdateError;
use crate::quantizer::Quantized;
use crate::rotation::block_count;

/// Level 3 already finds all that there is in codes and mantissas (entropy, no matches); higher ones only take longer.
const ZSTD_LEVEL: i32 = 3;

/// How a payload lies in its bytes. The encoder keeps the shortest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    /// Bits packed, or plain float32.
    Plain,
    /// As `Plain`, then zstd.
    Compressed,
    /// A byte per code or four byte planes of float32, then zstd, whose entropy coder then sees the numbers' structure.
    BytesCompressed,
}

impl Packing {
    pub(crate) fn flag(self) -> u8 {
        match self {
            Self::Plain => 0,
            Self::Compressed => 1,
            Self::BytesCompressed => 2,
        }
    }

    pub(crate) fn from_flag(flag: u8) -> Result<Self, UpdateError> {
        match flag {
            0 => Ok(Self::Plain),
            1 => Ok(Self::Compressed),
            2 => Ok(Self::BytesCompressed),
            _ => Err(UpdateError::Malformed { what: "a packing flag of 0 to 2" }),
        }
    }
}

/// The shortest of the packings of a quantized vector.
pub(crate) fn write_quantized(quantized: &Quantized) -> (Packing, Vec<u8>) {
    let steps: Vec<u8> = quantized.steps.iter().flat_map(|step| step.to_le_bytes()).collect();
    let plain = [steps.as_slice(), &pack(&quantized.codes, quantized.bits)].concat();
    let bytes = match quantized.bits {
        8 => None,
        _ => Some([steps.as_slice(), &quantized.codes].concat()),
    };
    shortest(plain, bytes)
}

/// Reads what [`write_quantized`] wrote; allocates for `parameters`, whatever the bytes hold.
pub(crate) fn read_quantized(
    packing: Packing,
    payload: &[u8],
    bits: u8,
    parameters: usize,
) -> Result<Quantized, UpdateError> {
    let step_bytes = 4 * block_count(parameters);
    let packed_bytes = step_bytes + (parameters * usize::from(bits)).div_ceil(8);
    let content = match packing {
        Packing::Plain => exactly(payload, packed_bytes)?.to_vec(),
        Packing::Compressed => decompress(payload, packed_bytes)?,
        Packing::BytesCompressed => decompress(payload, step_bytes + parameters)?,
    };
    let (steps, codes) = content.split_at(step_bytes);
    let steps = read_floats(steps);
    if steps.iter().any(|step| !step.is_finite() || step.is_sign_negative()) {
        return Err(UpdateError::Malformed { what: "finite quantization steps" });
    }
    let codes = match packing {
        Packing::Plain | Packing::Compressed => unpack(codes, bits, parameters)?,
        Packing::BytesCompressed => codes.to_vec(),
    };
    let top = ((1u32 << bits) - 1) as u8;
    if codes.iter().any(|&code| code > top) {
        return Err(UpdateError::Malformed { what: "codes of the plan's bits" });
    }
    Ok(Quantized { bits, steps, codes })
}

/// The shortest of the packings of float32 values.
pub(crate) fn write_floats(values: &[f32]) -> (Packing, Vec<u8>) {
    let plain: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let mut planes = Vec::with_capacity(plain.len());
    for plane in 0..4 {
        planes.extend(plain.iter().skip(plane).step_by(4));
    }
    shortest(plain, Some(planes))
}

/// Reads what [`write_floats`] wrote; every value is finite.
pub(crate) fn read_packed_floats(
    packing: Packing,
    payload: &[u8],
    parameters: usize,
) -> Result<Vec<f32>, UpdateError> {
    let length = 4 * parameters;
    let values: Vec<f32> = match packing {
        Packing::Plain => read_floats(exactly(payload, length)?),
        Packing::Compressed => read_floats(&decompress(payload, length)?),
        Packing::BytesCompressed => {
            let planes = decompress(payload, length)?;
            let byte = |plane: usize, i: usize| planes[plane * parameters + i];
            (0..parameters)
                .map(|i| f32::from_le_bytes([byte(0, i), byte(1, i), byte(2, i), byte(3, i)]))
                .collect()
        }
    };
    check_finite(&values)?;
    Ok(values)
}

pub(crate) fn check_finite(values: &[f32]) -> Result<(), UpdateError> {
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(index) => Err(UpdateError::NotFinite { index }),
    }
}

fn shortest(plain: Vec<u8>, bytes: Option<Vec<u8>>) -> (Packing, Vec<u8>) {
    let mut best = (Packing::Plain, plain);
    let compressed = compress(&best.1);
    let from_bytes = bytes.and_then(|bytes| compress(&bytes));
    for (packing, candidate) in [(Packing::Compressed, compressed), (Packing::BytesCompressed, from_bytes)] {
        if let Some(candidate) = candidate.filter(|candidate| candidate.len() < best.1.len()) {
            best = (packing, candidate);
        }
    }
    best
}

/// `None` when zstd cannot allocate; the plain packing serves then.
fn compress(bytes: &[u8]) -> Option<Vec<u8>> {
    zstd::bulk::compress(bytes, ZSTD_LEVEL).ok()
}

/// Decompresses to exactly `length` bytes; allocates no more, whatever the frame's header claims.
fn decompress(bytes: &[u8], length: usize) -> Result<Vec<u8>, UpdateError> {
    let malformed = UpdateError::Malformed { what: "a zstd frame of the expected length" };
    let content = zstd::bulk::decompress(bytes, length).map_err(|_| malformed.clone())?;
    if content.len() == length { Ok(content) } else { Err(malformed) }
}

fn exactly(bytes: &[u8], length: usize) -> Result<&[u8], UpdateError> {
    if bytes.len() == length {
        Ok(bytes)
    } else {
        Err(UpdateError::Malformed { what: "a payload of the expected length" })
    }
}

fn read_floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// Packs codes little end first: code 0 is in the lowest bits of byte 0. Unused bits of the last byte are 0.
fn pack(codes: &[u8], bits: u8) -> Vec<u8> {
    let mut packed = Vec::with_capacity((codes.len() * usize::from(bits)).div_ceil(8));
    let (mut window, mut filled) = (0u32, 0u32);
    for &code in codes {
        window |= u32::from(code) << filled;
        filled += u32::from(bits);
        if filled >= 8 {
            packed.push(window as u8);
            window >>= 8;
            filled -= 8;
        }
    }
    if filled > 0 {
        packed.push(window as u8);
    }
    packed
}

fn unpack(packed: &[u8], bits: u8, count: usize) -> Result<Vec<u8>, UpdateError> {
    let mask = (1u32 << bits) - 1;
    let mut codes = Vec::with_capacity(count);
    let (mut window, mut filled) = (0u32, 0u32);
    let mut bytes = packed.iter();
    for _ in 0..count {
        if filled < u32::from(bits) {
            let byte = bytes.next().ok_or(UpdateError::Malformed { what: "a code for each parameter" })?;
            window |= u32::from(*byte) << filled;
            filled += 8;
        }
        codes.push((window & mask) as u8);
        window >>= bits;
        filled -= u32::from(bits);
    }
    if window != 0 || bytes.next().is_some() {
        return Err(UpdateError::Malformed { what: "nothing after the last code" });
    }
    Ok(codes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn codes_read_back(bits in 1u8..=8, codes in prop::collection::vec(any::<u8>(), 0..200)) {
            let codes: Vec<u8> = codes.into_iter().map(|c| c & ((1u32 << bits) - 1) as u8).collect();
            let packed = pack(&codes, bits);
            prop_assert_eq!(packed.len(), (codes.len() * usize::from(bits)).div_ceil(8));
            prop_assert_eq!(unpack(&packed, bits, codes.len()).unwrap(), codes);
        }
    }

    #[test]
    fn bits_after_the_last_code_are_refused() {
        assert!(unpack(&[0b0001_0101], 3, 2).is_ok());
        assert!(unpack(&[0b1001_0101], 3, 2).is_err());
        assert!(unpack(&[0b0001_0101, 0], 3, 2).is_err());
        assert!(unpack(&[0b0001_0101], 3, 3).is_err());
    }

    #[test]
    fn floats_read_back_in_every_packing() {
        let values: Vec<f32> = (0..1000).map(|i| (i as f32 * 0.7).sin() * 1e-3).collect();
        let plain: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(read_packed_floats(Packing::Plain, &plain, 1000).unwrap(), values);
        let (packing, bytes) = write_floats(&values);
        assert_eq!(packing, Packing::BytesCompressed);
        assert!(bytes.len() < 4000);
        assert_eq!(read_packed_floats(packing, &bytes, 1000).unwrap(), values);
        assert!(read_packed_floats(packing, &bytes, 999).is_err());
        assert!(read_packed_floats(packing, &bytes, 1001).is_err());
    }

    #[test]
    fn a_frame_that_claims_a_huge_length_allocates_nothing_of_it() {
        let bomb = zstd::bulk::compress(&vec![0u8; 50_000_000], 3).unwrap();
        assert!(bomb.len() < 10_000);
        assert!(decompress(&bomb, 100).is_err());
    }
}
