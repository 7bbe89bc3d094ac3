//! A new model as a small delta against the one that a site on a thin link already has.

use crate::codes::{Packing, check_finite, read_quantized, write_quantized};
use crate::delta::ModelDelta;
use crate::error::UpdateError;
use crate::parameters::{check_length, fingerprint, split_header, with_header};
use crate::quantizer::{Quantized, Rounding};
use crate::rotation::Rotation;
use medinet_types::Digest;
use serde::{Deserialize, Serialize};

const FORMAT: u8 = 1;

#[derive(Serialize, Deserialize)]
struct Header {
    parameters: u64,
    bits: u8,
    packing: u8,
    base: Digest,
    result: Digest,
}

/// A model delta and the model that it makes.
#[derive(Debug, Clone, PartialEq)]
pub struct EncodedModelDelta {
    /// What goes down.
    pub bytes: Vec<u8>,
    /// Base plus decoded delta: *this* is the new model, whose digest is signed and recorded. It has the same bits at
    /// every site.
    pub parameters: Vec<f32>,
}

/// Encodes `new` as a delta to `base` with 1 to 8 bits per parameter, rounded to nearest. At 4 bits it is more than
/// eight times smaller than float32. What is lost
/// (`new - parameters`) is to be carried into the next round's model: see [`Owed`](crate::Owed).
///
/// # Errors
/// When the lengths differ, a difference is not finite, or `bits` is not 1 to 8.
pub fn encode_model_delta(base: &[f32], new: &[f32], bits: u8) -> Result<EncodedModelDelta, UpdateError> {
    if !(1..=8).contains(&bits) {
        return Err(UpdateError::Malformed { what: "1 to 8 bits" });
    }
    let delta = ModelDelta::between(base, new)?;
    let base_digest = fingerprint(base);
    let rotation = Rotation::of_base(&base_digest);
    let quantized = Quantized::of(delta.into_values(), bits, &rotation, Rounding::Nearest);
    let parameters = apply(base, &quantized, &rotation)?;
    let (packing, payload) = write_quantized(&quantized);
    let header = Header {
        parameters: base.len() as u64,
        bits,
        packing: packing.flag(),
        base: base_digest,
        result: fingerprint(&parameters),
    };
    Ok(EncodedModelDelta { bytes: with_header(FORMAT, &header, &payload), parameters })
}

/// The new model, from the base and what [`encode_model_delta`] made.
///
/// # Errors
/// When the bytes are damaged, `base` is not the delta's base ([`UpdateError::OtherParameters`]), or the result is not
/// the model that the delta names. Never panics; allocates a small multiple of `base`.
pub fn apply_model_delta(base: &[f32], bytes: &[u8]) -> Result<Vec<f32>, UpdateError> {
    let (header, payload): (Header, _) = split_header(FORMAT, bytes)?;
    check_length(base.len(), header.parameters)?;
    if !(1..=8).contains(&header.bits) {
        return Err(UpdateError::Malformed { what: "1 to 8 bits" });
    }
    if fingerprint(base) != header.base {
        return Err(UpdateError::OtherParameters);
    }
    let quantized = read_quantized(Packing::from_flag(header.packing)?, payload, header.bits, base.len())?;
    let parameters = apply(base, &quantized, &Rotation::of_base(&header.base))?;
    if fingerprint(&parameters) == header.result {
        Ok(parameters)
    } else {
        Err(UpdateError::Malformed { what: "a delta that makes the model it names" })
    }
}

fn apply(base: &[f32], quantized: &Quantized, rotation: &Rotation) -> Result<Vec<f32>, UpdateError> {
    let mut parameters = quantized.values(rotation);
    for (delta, base) in parameters.iter_mut().zip(base) {
        *delta += base;
    }
    check_finite(&parameters)?;
    Ok(parameters)
}
