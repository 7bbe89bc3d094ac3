//! Decoders of this crate on damaged, cut, extended and random bytes: they refuse or accept, and never panic.
//! The same entry points as the targets in `fuzz/`.

use medinet_types::{Digest, ModelDigest, RoundNumber};
use medinet_update::{
    Accumulator, CodecPlan, ErrorFeedback, Expected, ModelDelta, Origin, SealedUpdate, apply_model_delta,
    decode, encode_model_delta,
};
use proptest::prelude::*;

const PARAMETERS: usize = 1100;

fn origin() -> Origin {
    Origin { base: ModelDigest(Digest::of(b"base")), round: RoundNumber(3) }
}

fn vector() -> Vec<f32> {
    (0..PARAMETERS).map(|i| (i as f32 * 0.37).sin() * 0.01).collect()
}

fn plan(bits: u8, error_feedback: bool) -> CodecPlan {
    CodecPlan { bits, clip_norm: 1.0, error_feedback }
}

fn sealed(plan: &CodecPlan) -> Vec<u8> {
    let delta = ModelDelta::new(vector()).unwrap();
    let mut feedback = ErrorFeedback::new(PARAMETERS);
    SealedUpdate::encode(delta, plan, origin(), 10, [5; 32], &mut feedback).unwrap().into_bytes()
}

/// Feeds every decoder; what they accept must hold to its contract.
fn decode_everything(bytes: &[u8]) {
    for (bits, error_feedback) in [(1, true), (4, true), (5, false), (8, false), (32, false)] {
        let plan = plan(bits, error_feedback);
        let expected = Expected { parameters: PARAMETERS, plan: &plan, origin: origin(), max_examples: 1000 };
        if let Ok(update) = decode(bytes, &expected) {
            assert_eq!(update.delta().len(), PARAMETERS);
            assert!(update.delta().iter().all(|v| v.is_finite()));
            assert!((1..=1000).contains(&update.examples()));
            Accumulator::new(PARAMETERS).add(&update).unwrap();
        }
    }
    if let Ok(feedback) = ErrorFeedback::from_bytes(bytes, PARAMETERS) {
        assert!(!feedback.norm().is_nan());
    }
    if let Ok(sum) = Accumulator::from_bytes(bytes, PARAMETERS) {
        assert_eq!(sum.parameters(), PARAMETERS);
    }
    let _ = apply_model_delta(&vector(), bytes);
}

fn valid_messages() -> Vec<Vec<u8>> {
    let base = vector();
    let new: Vec<f32> = base.iter().map(|v| v * 1.01).collect();
    let mut sum = Accumulator::new(PARAMETERS);
    let plan4 = plan(4, true);
    let expected = Expected { parameters: PARAMETERS, plan: &plan4, origin: origin(), max_examples: 1000 };
    sum.add(&decode(&sealed(&plan4), &expected).unwrap()).unwrap();
    vec![
        sealed(&plan4),
        sealed(&plan(1, true)),
        sealed(&plan(5, false)),
        sealed(&plan(8, false)),
        sealed(&plan(32, false)),
        ErrorFeedback::new(PARAMETERS).to_bytes(),
        sum.to_bytes(),
        encode_model_delta(&base, &new, 4).unwrap().bytes,
    ]
}

#[test]
fn every_flipped_header_bit_and_every_cut_is_survived() {
    for message in valid_messages() {
        for position in 0..message.len().min(120) {
            for bit in 0..8 {
                let mut damaged = message.clone();
                damaged[position] ^= 1 << bit;
                decode_everything(&damaged);
            }
        }
        for cut in (0..message.len()).step_by(13) {
            decode_everything(&message[..cut]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn damaged_messages_are_survived(
        which in 0usize..8,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        tail in prop::collection::vec(any::<u8>(), 0..20),
    ) {
        let mut message = valid_messages().swap_remove(which);
        for (index, byte) in edits {
            let position = index.index(message.len());
            message[position] = byte;
        }
        message.extend(tail);
        decode_everything(&message);
    }

    #[test]
    fn random_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        decode_everything(&bytes);
        decode_everything(&[&[1], bytes.as_slice()].concat());
    }
}
