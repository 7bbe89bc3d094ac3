//! The update codec: what stands between a trained model and the bytes that leave a site.

mod plan;

pub use plan::CodecPlan;
