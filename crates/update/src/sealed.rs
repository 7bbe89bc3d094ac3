//! The form in which an update leaves a site in plain rounds, and its reading at the aggregator. The default way out is a masked update
//! ([`crate::secure`]).

use crate::codes::{
    Packing, check_finite, read_packed_floats, read_quantized, write_floats, write_quantized,
};
use crate::delta::{ClippedDelta, ErrorFeedback, ModelDelta, QuantizedDelta, Values, norm_of};
use crate::error::UpdateError;
use crate::parameters::{check_length, split_header, with_header};
use crate::plan::CodecPlan;
use crate::rotation::Rotation;
use medinet_types::{ModelDigest, RoundNumber};
use serde::{Deserialize, Serialize};

/// The format's version, the first byte.
const FORMAT: u8 = 1;

/// Where an update belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Origin {
    /// The model that training started from.
    pub base: ModelDigest,
    /// The round.
    pub round: RoundNumber,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Header {
    plan: CodecPlan,
    origin: Origin,
    parameters: u64,
    examples: u64,
    packing: u8,
}

/// An encoded update, which the aggregator reads in plain rounds. It is neither encrypted nor signed: the signed offer names its digest. The default
/// way out is the `MaskedUpdate` of `medinet-secure`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedUpdate(Vec<u8>);

/// What the receiver of an update knows beforehand.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Expected<'a> {
    /// Parameters of the task's network.
    pub parameters: usize,
    /// The round's codec plan.
    pub plan: &'a CodecPlan,
    /// The round's base model and number.
    pub origin: Origin,
    /// The most examples that one site may claim, so that none outweighs all others by a claim.
    pub max_examples: u64,
}

/// An update that passed every check.
#[derive(Debug, Clone, PartialEq)]
pub struct DecodedUpdate {
    pub(crate) delta: Vec<f32>,
    pub(crate) examples: u64,
}

impl SealedUpdate {
    /// Clips, quantizes and seals in one go; see the steps for what each does. `examples` is the number of training
    /// images behind the delta, the weight in the average.
    ///
    /// # Errors
    /// When the plan breaks the rules, `examples` is 0, or `feedback` has another length than the delta.
    pub fn encode(
        delta: ModelDelta,
        plan: &CodecPlan,
        origin: Origin,
        examples: u64,
        seed: [u8; 32],
        feedback: &mut ErrorFeedback,
    ) -> Result<Self, UpdateError> {
        if examples == 0 {
            return Err(UpdateError::Examples { max: u64::MAX, got: 0 });
        }
        let clipped: ClippedDelta = delta.clip(plan)?;
        clipped.quantize(origin, seed, feedback)?.seal(examples)
    }

    /// Takes a sealed update that was kept on disk, after checking it as the aggregator will.
    ///
    /// # Errors
    /// When the bytes are not an update of this plan.
    pub fn parse(bytes: Vec<u8>, expected: &Expected<'_>) -> Result<Self, UpdateError> {
        decode(&bytes, expected)?;
        Ok(Self(bytes))
    }

    /// The bytes to send.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes to send.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

impl QuantizedDelta {
    /// Packs and frames the delta. `examples` is the number of training images behind it, at least 1.
    ///
    /// # Errors
    /// When `examples` is 0.
    pub fn seal(&self, examples: u64) -> Result<SealedUpdate, UpdateError> {
        if examples == 0 {
            return Err(UpdateError::Examples { max: u64::MAX, got: 0 });
        }
        let (parameters, (packing, payload)) = match &self.values {
            Values::Raw(values) => (values.len(), write_floats(values)),
            Values::Quantized(quantized) => (quantized.codes.len(), write_quantized(quantized)),
        };
        let header = Header {
            plan: self.plan,
            origin: self.origin,
            parameters: parameters as u64,
            examples,
            packing: packing.flag(),
        };
        Ok(SealedUpdate(with_header(FORMAT, &header, &payload)))
    }
}

impl DecodedUpdate {
    /// The delta, in canonical order.
    #[must_use]
    pub fn delta(&self) -> &[f32] {
        &self.delta
    }

    /// Training images behind it.
    #[must_use]
    pub fn examples(&self) -> u64 {
        self.examples
    }
}

/// Decodes an update and checks every field of it against what the round expects.
///
/// # Errors
/// See [`UpdateError`]. Never panics; allocates a small multiple of `expected.parameters`, whatever the bytes claim.
pub fn decode(bytes: &[u8], expected: &Expected<'_>) -> Result<DecodedUpdate, UpdateError> {
    expected.plan.check()?;
    let (header, payload): (Header, _) = split_header(FORMAT, bytes)?;
    same_plan(expected.plan, &header.plan)?;
    if header.origin.base != expected.origin.base {
        return Err(UpdateError::OtherBase { expected: expected.origin.base, got: header.origin.base });
    }
    if header.origin.round != expected.origin.round {
        return Err(UpdateError::OtherRound { expected: expected.origin.round, got: header.origin.round });
    }
    check_length(expected.parameters, header.parameters)?;
    if !(1..=expected.max_examples).contains(&header.examples) {
        return Err(UpdateError::Examples { max: expected.max_examples, got: header.examples });
    }
    let packing = Packing::from_flag(header.packing)?;
    let delta = if expected.plan.bits == 32 {
        read_packed_floats(packing, payload, expected.parameters)?
    } else {
        let quantized = read_quantized(packing, payload, expected.plan.bits, expected.parameters)?;
        let values = quantized.values(&Rotation::of_round(&expected.origin.base, expected.origin.round));
        // Finite steps can still overflow in the rotation.
        check_finite(&values)?;
        values
    };
    let (norm, limit) = (norm_of(&delta), expected.plan.decoded_norm_limit());
    if norm > f64::from(limit) {
        return Err(UpdateError::Norm { limit, got: norm as f32 });
    }
    Ok(DecodedUpdate { delta, examples: header.examples })
}

fn same_plan(expected: &CodecPlan, got: &CodecPlan) -> Result<(), UpdateError> {
    let field = if expected.bits != got.bits {
        "bits"
    } else if expected.clip_norm.to_bits() != got.clip_norm.to_bits() {
        "clip_norm"
    } else if expected.error_feedback != got.error_feedback {
        "error_feedback"
    } else {
        return Ok(());
    };
    Err(UpdateError::OtherPlan { field })
}
