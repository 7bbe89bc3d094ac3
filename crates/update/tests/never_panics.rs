//! Decoders of this crate on damaged, cut, extended and random bytes: they refuse or accept, and never panic.
//! The same entry points as the targets in `fuzz/`.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod decoders;

use decoders::{PARAMETERS, all, origin, plan, vector};
use medinet_update::{
    Accumulator, CodecPlan, ErrorFeedback, Expected, ModelDelta, Owed, SealedUpdate, decode,
    encode_model_delta,
};
use proptest::prelude::*;

fn sealed(plan: &CodecPlan) -> Vec<u8> {
    let delta = ModelDelta::new(vector()).unwrap();
    let mut feedback = ErrorFeedback::new(PARAMETERS);
    SealedUpdate::encode(delta, plan, origin(), 10, [5; 32], &mut feedback).unwrap().into_bytes()
}

fn valid_messages() -> Vec<Vec<u8>> {
    let base = vector();
    let new: Vec<f32> = base.iter().map(|v| v * 1.01).collect();
    let mut sum = Accumulator::new(PARAMETERS);
    let mut owed = Owed::nothing(PARAMETERS);
    let delta = owed.advance(&base, &new, 4).unwrap();
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
        delta.bytes,
        owed.to_bytes(),
        // One site's sum at one bit: every code, count and norm digit is 1.
        vec![0, 1, 0, 0, 0],
    ]
}

#[test]
fn every_flipped_header_bit_and_every_cut_is_survived() {
    for message in valid_messages() {
        for position in 0..message.len().min(120) {
            for bit in 0..8 {
                let mut damaged = message.clone();
                damaged[position] ^= 1 << bit;
                all(&damaged);
            }
        }
        for cut in (0..message.len()).step_by(13) {
            all(&message[..cut]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn damaged_messages_are_survived(
        which: prop::sample::Index,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        tail in prop::collection::vec(any::<u8>(), 0..20),
    ) {
        let mut messages = valid_messages();
        let mut message = messages.swap_remove(which.index(messages.len()));
        for (index, byte) in edits {
            let position = index.index(message.len());
            message[position] = byte;
        }
        message.extend(tail);
        all(&message);
    }

    #[test]
    fn random_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        all(&bytes);
        all(&[&[1], bytes.as_slice()].concat());
    }
}
