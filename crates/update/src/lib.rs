//! The update codec: what stands between a trained model and the bytes that leave a site.
//!
//! A type for each step, and only the last one can be sent:
//!
//! ```text
//! ModelDelta --clip--> ClippedDelta --quantize--> QuantizedDelta --seal--> SealedUpdate == decode ==> DecodedUpdate --> Accumulator
//! ```
//!
//! * **Clip**: the delta's L2 norm is brought to the plan's limit, so that no site moves the model further than agreed.
//! * **Rotate**: a random Hadamard rotation in blocks, the same for all sites of a round (Suresh et al. 2017, section 3;
//!   Vargaftik et al. 2021, DRIVE). It spreads a few large coordinates over all of their block, so that
//!   every coordinate looks Gaussian and few bits serve well, whatever the layer.
//! * **Quantize**: `bits` per coordinate on a uniform grid, one step per block. Uniform, though Lloyd-Max levels lose
//!   a sixth less at four bits, because sums of uniform codes stay codes: masked aggregation needs that.
//!   *Without* error feedback, rounding is stochastic and so unbiased: errors of different sites cancel in the mean. One step is biased: an update that rounding
//!   makes longer than [`CodecPlan::encoded_norm_limit`], as happens to few and hardly to any but those near the clip norm, is scaled down to it as a whole, towards zero.
//!   *With* error feedback, rounding is to the nearest level of the grid that is best for a Gaussian (Max 1960), with the
//!   step that fits best in least squares. It loses a third of what stochastic rounding loses, never lengthens the vector,
//!   and contracts at every bit width, which is what error feedback needs to converge (Karimireddy et al. 2019,
//!   assumption A); its bias is what the feedback repays in the next round (Seide et al. 2014).
//! * **Seal**: postcard header, codes packed, zstd where it gains.
//!
//! **Error, beside DRIVE and EDEN** (Vargaftik et al. 2021 and 2022): one vector's squared error over its squared norm, below the clip norm, on
//! nearly Gaussian layers of different scale. EDEN is D/(1 - D) unbiased and D biased, with D the distortion of the best 2^b levels for a Gaussian
//! (Max 1960, table I; 8 bits by the same iteration); at one bit that is DRIVE's pi/2 - 1 and 1 - 2/pi. `one_vectors_error_beside_drive_and_eden`
//! in `tests/codec.rs` prints and checks it:
//!
//! | bits | EDEN, unbiased | ours without error feedback, unbiased | EDEN, biased | ours with error feedback, in one round |
//! | ---: | ---: | ---: | ---: | ---: |
//! | 1 | 0.571 | 10.9 | 0.363 | 0.362 |
//! | 2 | 0.133 | 0.896 | 0.118 | 0.118 |
//! | 4 | 0.00959 | 0.0354 | 0.00950 | 0.0115 |
//! | 8 | 0.0000412 | 0.000122 | 0.0000412 | 0.0000825 |
//!
//! At 1 and 2 bits the unbiased codec is 19 and 7 times worse, since stochastic rounding needs a grid up to the block's maximum, 3.4 standard
//! deviations, of which one or three steps are coarse: use error feedback there, or the grid of [`secure`] (3.1 and 0.37 for one site), or 4 bits
//! and more.
//!
//! Rounds with secure aggregation take another way, [`secure`]: integers on one grid for all sites, which are summed under masks. A
//! [`SecureUpdate`] is no [`SealedUpdate`] and cannot become one.
//!
//! Decoders take untrusted bytes: they return errors, never panic, and allocate what the expected parameter count
//! asks for, whatever the bytes claim. All arithmetic is IEEE 754 in a fixed order: the same bytes decode to the same bits
//! on every machine.

mod accumulator;
mod chain;
mod codes;
mod delta;
mod downlink;
mod error;
mod parameters;
mod plan;
mod quantizer;
mod rotation;
mod sealed;
pub mod secure;

pub use accumulator::{Accumulator, AccumulatorError};
pub use chain::{Owed, follow};
pub use delta::{ClippedDelta, ErrorFeedback, ModelDelta, QuantizedDelta};
pub use downlink::{EncodedModelDelta, apply_model_delta, encode_model_delta};
pub use error::UpdateError;
pub use plan::{CodecPlan, PlanError};
pub use sealed::{DecodedUpdate, Expected, Origin, SealedUpdate, decode};
pub use secure::{
    NoiseError, NoisePlan, SecureCodecPlan, SecureExpected, SecureMean, SecureUpdate, Shortened, decode_sum,
};
