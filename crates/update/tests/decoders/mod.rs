//! One function per decoder of untrusted bytes; tests and the targets in `fuzz/` both call them. Each panics only when
//! a decoder breaks its contract.
#![allow(dead_code, reason = "each fuzz target calls one")]

use medinet_types::{Digest, ModelDigest, RoundNumber};
use medinet_update::{
    Accumulator, CodecPlan, ErrorFeedback, Expected, Origin, Owed, SecureCodecPlan, SecureExpected,
    apply_model_delta, decode, decode_sum,
};

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

pub(crate) fn owed(bytes: &[u8]) {
    if let Ok(owed) = Owed::from_bytes(bytes, PARAMETERS) {
        let again = Owed::from_bytes(&owed.to_bytes(), PARAMETERS);
        assert_eq!(again.as_ref(), Ok(&owed), "what was read can be written and read again");
        assert!(owed.repay(&vector()).is_ok_and(|model| model.len() == PARAMETERS));
    }
}

/// A sum as the sites' masked inputs open to one: its coordinates are the bytes, four each, over and over.
pub(crate) fn sums(bytes: &[u8]) {
    let Some((&choice, rest)) = bytes.split_first() else { return };
    let plan = SecureCodecPlan {
        bits: 1 + (choice & 7),
        clip_norm: 2.0,
        error_feedback: false,
        kept_permille: if choice & 8 == 0 { 1000 } else { 300 },
        reference_examples: 1 + u32::from(choice >> 4) * 300,
        noise: None,
    };
    let (parameters, contributors) = (40, 1 + u32::from(choice) % 9);
    let words: Vec<u32> =
        rest.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect();
    let sum = words.into_iter().cycle().take(plan.coordinates(parameters));
    let expected = SecureExpected { parameters, plan: &plan, origin: origin(), contributors, ring_bits: 32 };
    if let Ok(mean) = decode_sum(sum, &expected) {
        assert!(mean.delta.len() == parameters && mean.delta.iter().all(|v| v.is_finite()));
        let most = u64::from(contributors) * u64::from(plan.reference_examples);
        assert!((u64::from(contributors)..=most).contains(&mean.examples), "{}", mean.examples);
        // Each site's norm counts up to almost twice the clip norm.
        assert!(mean.norm.is_some_and(|norm| (0.0..2.0 * plan.clip_norm).contains(&norm)), "{:?}", mean.norm);
    }
}

pub(crate) fn all(bytes: &[u8]) {
    updates(bytes);
    feedback(bytes);
    accumulators(bytes);
    model_deltas(bytes);
    owed(bytes);
    sums(bytes);
}
