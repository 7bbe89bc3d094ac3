//! Every parser of this crate on damaged, cut and random bytes: it refuses or accepts, and never panics. The same entry
//! points as the targets in `fuzz/`.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;
mod decoders;

use common::{key, onnx, spec, story, written};
use medinet_ledger::vote::{Ballot, Quorum};
use medinet_ledger::{LogFiles, ModelBundle, Record, RecordBody, verify_log};
use medinet_types::{ModelVersion, RoundNumber, UnixMillis};
use proptest::prelude::*;
use std::sync::OnceLock;

fn samples() -> &'static (LogFiles, Vec<Vec<u8>>) {
    static SAMPLES: OnceLock<(LogFiles, Vec<Vec<u8>>)> = OnceLock::new();
    SAMPLES.get_or_init(|| {
        let log = written();
        let mut samples: Vec<Vec<u8>> = story().iter().map(|r| r.encode().unwrap()).collect();
        let record = story().pop().unwrap();
        let index = story().len() as u64 - 1;
        let proof = log.inclusion_proof(index).unwrap();
        let signed = log.signed().unwrap();
        samples.push(signed.note().as_bytes().to_vec());
        samples.push(key().to_string().into_bytes());
        let bundle = ModelBundle::new(&spec(), &onnx(), &record, index, proof, signed).unwrap();
        let votes = vec![common::vote("east", Ballot::Accept), common::vote("west", Ballot::Accept)];
        samples.push(bundle.with_votes(votes).unwrap().encode());
        let quorum = Some(Quorum { min_accepting: 1, min_accept_permille: 500 });
        let counted = common::votes_counted(quorum, &[("east", Ballot::Accept)]);
        let back = RecordBody::WentBack {
            task: common::task(),
            round: RoundNumber(4),
            model: common::model(1),
            version: ModelVersion(1),
        };
        for body in [counted, back] {
            samples.push(Record { at: UnixMillis(1), body }.encode().unwrap());
        }
        (log.storage().log_files(), samples)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn damaged_messages_are_survived(
        which: prop::sample::Index,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
        cut: Option<prop::sample::Index>,
        tail in prop::collection::vec(any::<u8>(), 0..8),
    ) {
        let samples = &samples().1;
        let mut bytes = samples[which.index(samples.len())].clone();
        for (index, byte) in edits {
            let position = index.index(bytes.len());
            bytes[position] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        bytes.extend(tail);
        decoders::all(&bytes);
    }

    #[test]
    fn random_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        decoders::all(&bytes);
        decoders::all(&[&[1], bytes.as_slice()].concat());
    }

    #[test]
    fn damaged_logs_are_reported(
        file in 0usize..3,
        edits in prop::collection::vec((any::<prop::sample::Index>(), 1u8..), 1..5),
        cut: Option<prop::sample::Index>,
    ) {
        let mut files = samples().0.clone();
        let untouched = files.clone();
        let target = match file {
            0 => &mut files.entries,
            1 => &mut files.leaves,
            _ => &mut files.checkpoint,
        };
        for (index, mask) in edits {
            let position = index.index(target.len());
            target[position] ^= mask;
        }
        if let Some(cut) = cut {
            target.truncate(cut.index(target.len()));
        }
        prop_assert_eq!(verify_log(&files, &key(), None).is_verified(), files == untouched);
    }

    #[test]
    fn random_logs_are_survived(
        entries in prop::collection::vec(any::<u8>(), 0..200),
        leaves in prop::collection::vec(any::<u8>(), 0..100),
        checkpoint in prop::collection::vec(any::<u8>(), 0..100),
    ) {
        let files = LogFiles { entries, leaves, checkpoint, history: vec![] };
        prop_assert!(!verify_log(&files, &key(), None).is_verified());
    }
}
