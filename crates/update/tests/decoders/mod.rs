//! One function per decoder of untrusted bytes; tests and the targets in `fuzz/` both call them. Each panics only when
//! a decoder breaks its contract.
#![allow(dead_code, reason = "each fuzz target calls one")]

use medinet_types::{Digest, ModelDigest, RoundNumber};
use medinet_update::{Accumulator, CodecPlan, ErrorFeedback, Expected, Origin, apply_model_delta, decode};

pub(crate) const PARAMETERS: usize = 1100;

pub(crate) fn origin() -> Origin {
    Origin { base: ModelDigest(Digest::of(b"base")), round: RoundNumber(3) }
}

pub(crate) fn vector() -> Vec<f32> {
    (0..PARAMETERS).map(|i| (i as f32 * 0.37).sin() * 0.01).collect()
}

pub(crate) fn plan(bits: u8, error_feedback: bool) -> CodecPlan {
    CodecPlan { bits, clip_norm: 1.0, error_feedback }
}

pub(crate) fn updates(bytes: &[u8]) {
    for (bits, error_feedback) in [(1, true), (4, true), (5, false), (8, false), (32, false)] {
        let plan = plan(bits, error_feedback);
        let expected = Expected { parameters: PARAMETERS, plan: &plan, origin: origin(), max_examples: 1000 };
        if let Ok(update) = decode(bytes, &expected) {
            assert_eq!(update.delta().len(), PARAMETERS);
            assert!(update.delta().iter().all(|v| v.is_finite()));
            assert!((1..=1000).contains(&update.examples()));
            assert!(Accumulator::new(PARAMETERS).add(&update).is_ok());
        }
    }
}

pub(crate) fn feedback(bytes: &[u8]) {
    if let Ok(feedback) = ErrorFeedback::from_bytes(bytes, PARAMETERS) {
        assert!(!feedback.norm().is_nan());
    }
}

pub(crate) fn accumulators(bytes: &[u8]) {
    if let Ok(sum) = Accumulator::from_bytes(bytes, PARAMETERS) {
        assert_eq!(sum.parameters(), PARAMETERS);
        let _ = sum.mean();
    }
}

pub(crate) fn model_deltas(bytes: &[u8]) {
    if let Ok(parameters) = apply_model_delta(&vector(), bytes) {
        assert!(parameters.len() == PARAMETERS && parameters.iter().all(|v| v.is_finite()));
    }
}

pub(crate) fn all(bytes: &[u8]) {
    updates(bytes);
    feedback(bytes);
    accumulators(bytes);
    model_deltas(bytes);
}
