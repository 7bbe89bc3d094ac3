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
