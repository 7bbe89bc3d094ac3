//! A whole vector as bytes, lossless, and the header that every format of this crate starts with.

use crate::codes::{Packing, read_packed_floats, write_floats};
use crate::error::UpdateError;
use medinet_types::Digest;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

const FORMAT: u8 = 1;

#[derive(Serialize, Deserialize)]
struct Header {
    parameters: u64,
    packing: u8,
}

/// Encodes a parameter vector, bit for bit.
pub(crate) fn encode(parameters: &[f32]) -> Vec<u8> {
    let (packing, payload) = write_floats(parameters);
    with_header(FORMAT, &Header { parameters: parameters.len() as u64, packing: packing.flag() }, &payload)
}

/// Decodes a vector of exactly `parameters` finite numbers.
///
/// # Errors
/// When the bytes are damaged, hold another number of parameters or one that is not finite. Allocates for
/// `parameters`, whatever the bytes claim.
pub(crate) fn decode(bytes: &[u8], parameters: usize) -> Result<Vec<f32>, UpdateError> {
    let (header, payload): (Header, _) = split_header(FORMAT, bytes)?;
    check_length(parameters, header.parameters)?;
    read_packed_floats(Packing::from_flag(header.packing)?, payload, parameters)
}

/// Identifies a vector by its exact bits.
pub(crate) fn fingerprint(parameters: &[f32]) -> Digest {
    let mut hasher = Sha256::new();
    hasher.update(b"medinet parameters 1\0");
    for run in parameters.chunks(256) {
        let bytes: Vec<u8> = run.iter().flat_map(|value| value.to_le_bytes()).collect();
        hasher.update(&bytes);
    }
    Digest(hasher.finalize().into())
}

pub(crate) fn with_header<H: Serialize>(format: u8, header: &H, payload: &[u8]) -> Vec<u8> {
    // Headers are flat structs of numbers and digests, which postcard always encodes.
    let mut bytes = postcard::to_extend(header, vec![format]).expect("headers always encode");
    bytes.extend_from_slice(payload);
    bytes
}

pub(crate) fn split_header<'a, H: Deserialize<'a>>(
    format: u8,
    bytes: &'a [u8],
) -> Result<(H, &'a [u8]), UpdateError> {
    let (&got, rest) = bytes.split_first().ok_or(UpdateError::Malformed { what: "a format byte" })?;
    if got != format {
        return Err(UpdateError::Version { expected: format, got });
    }
    postcard::take_from_bytes(rest).map_err(|_| UpdateError::Malformed { what: "a header" })
}

pub(crate) fn check_length(expected: usize, got: u64) -> Result<(), UpdateError> {
    if got == expected as u64 {
        Ok(())
    } else {
        Err(UpdateError::Length { expected, got: usize::try_from(got).unwrap_or(usize::MAX) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_reads_back_bit_for_bit() {
        let values = vec![0.0, -0.0, f32::MIN_POSITIVE / 8.0, 1.5, f32::MAX, -1e-30];
        let back = decode(&encode(&values), 6).unwrap();
        assert!(values.iter().zip(&back).all(|(a, b)| a.to_bits() == b.to_bits()));
        assert_eq!(decode(&encode(&[]), 0).unwrap(), Vec::<f32>::new());
    }

    #[test]
    fn wrong_lengths_versions_and_infinities_are_refused() {
        let bytes = encode(&[1.0, 2.0]);
        assert_eq!(decode(&bytes, 3), Err(UpdateError::Length { expected: 3, got: 2 }));
        assert_eq!(decode(&encode(&[1.0, f32::NAN]), 2), Err(UpdateError::NotFinite { index: 1 }));
        assert_eq!(decode(&[9, 0, 0], 2), Err(UpdateError::Version { expected: 1, got: 9 }));
        for cut in 0..bytes.len() {
            assert!(decode(&bytes[..cut], 2).is_err());
        }
    }
}
