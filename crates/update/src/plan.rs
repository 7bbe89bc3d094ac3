//! What a round asks of the codec.

use serde::{Deserialize, Serialize};

/// How each site turns its model delta into an update.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CodecPlan {
    /// Bits per quantized coordinate, 1 to 8; 32 sends float32.
    pub bits: u8,
    /// Largest L2 norm of a delta, above 0; a longer one is scaled down to it.
    pub clip_norm: f32,
    /// Whether a site adds what quantization lost in the last round to this round's delta
    /// (error feedback, Seide et al. 2014).
    pub error_feedback: bool,
}

/// A codec plan that breaks the rules; whoever wrote it is at fault.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("codec plan: {field}: expected {expected}, got {got}")]
pub struct PlanError {
    field: &'static str,
    expected: &'static str,
    got: f32,
}

impl PlanError {
    pub(crate) fn new(field: &'static str, expected: &'static str, got: f32) -> Self {
        Self { field, expected, got }
    }
}

/// Room for rounding between what a sender and a receiver compute, relative.
const ROUNDING: f32 = 1e-3;

impl CodecPlan {
    /// Checks every field against its range.
    ///
    /// # Errors
    /// Names the field, its range and what it holds.
    pub fn check(&self) -> Result<(), PlanError> {
        if !matches!(self.bits, 1..=8 | 32) {
            let (field, got) = ("bits", f32::from(self.bits));
            return Err(PlanError { field, expected: "1 to 8, or 32 for float32", got });
        }
        // The upper limit keeps squares of coordinates far from overflow in single precision.
        if !(self.clip_norm > 0.0 && self.clip_norm <= 1e9) {
            let expected = "above 0 and at most 1e9";
            return Err(PlanError { field: "clip_norm", expected, got: self.clip_norm });
        }
        Ok(())
    }

    /// The largest L2 norm that a sender lets an encoded delta have. Above the clip norm only for stochastic rounding,
    /// which lengthens a vector: on a grid that reaches to five standard deviations, by at most a quarter of the squared
    /// step per coordinate in the mean. The rare delta that would pass it is scaled down.
    #[must_use]
    pub fn encoded_norm_limit(&self) -> f32 {
        if self.bits == 32 || self.error_feedback {
            return self.clip_norm;
        }
        let step = 10.0 / ((1u32 << self.bits) - 1) as f32;
        self.clip_norm * (1.0 + step * step / 4.0).sqrt()
    }

    /// The L2 norm above which a receiver refuses a decoded delta.
    #[must_use]
    pub fn decoded_norm_limit(&self) -> f32 {
        self.encoded_norm_limit() * (1.0 + ROUNDING)
    }
}
