//! A released model in one blob: what verifies comes out, and nothing else does.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use common::{
    Disk, Enrolled, federation, key, model, onnx, released, signed, signer, spec, story, vote, written,
};
use medinet_ledger::vote::{Ballot, Objection, Quorum, SignedVote, VoteError};
use medinet_ledger::{
    BundleError, CheckpointSigner as _, Ed25519Signer, LedgerPublicKey, LogWriter, ModelBundle, TrustedKeys,
    VerifiedModel, VoteDemand,
};
use medinet_types::{ModelVersion, RoundNumber};

fn trusted() -> TrustedKeys {
    TrustedKeys { ledger: key() }
}

fn bundle() -> ModelBundle {
    let log = written();
    let record = story().pop().unwrap();
    let index = log.find(&record.digest().unwrap()).unwrap();
    let proof = log.inclusion_proof(index).unwrap();
    ModelBundle::new(&spec(), &onnx(), &record, index, proof, log.signed().unwrap()).unwrap()
}

#[test]
fn a_released_model_comes_out_as_it_went_in() {
    let bytes = bundle().encode();
    let model = ModelBundle::decode(&bytes).unwrap().verify(&trusted()).unwrap();
    assert_eq!((model.onnx(), model.spec()), (onnx().as_slice(), &spec()));
    assert_eq!((model.version(), model.digest()), (ModelVersion(3), common::model(3)));
    assert_eq!(model.index(), story().len() as u64 - 1);
    assert!(bytes.len() < onnx().len(), "the graph is compressed");
}

#[test]
fn no_altered_byte_gets_through() {
    let bytes = bundle().encode();
    for position in 0..bytes.len() {
        for mask in [0x01, 0x80] {
            let mut altered = bytes.clone();
            altered[position] ^= mask;
            if let Ok(bundle) = ModelBundle::decode(&altered)
                && let Ok(model) = bundle.verify(&trusted())
            {
                // zstd ignores a few bits of its own framing; the content is what was signed all the same.
                assert_eq!((model.onnx(), model.spec()), (onnx().as_slice(), &spec()), "byte {position}");
            }
        }
        assert!(
            ModelBundle::decode(&bytes[..position]).is_err_and(|_| true)
                || ModelBundle::decode(&bytes[..position]).unwrap().verify(&trusted()).is_err()
        );
    }
}

#[test]
fn another_ledger_is_not_trusted() {
    let stranger = Ed25519Signer::from_seed(&[1; 32]).unwrap();
    let other = TrustedKeys { ledger: LedgerPublicKey::new(&federation(), stranger.public_key()) };
    assert!(matches!(bundle().verify(&other), Err(BundleError::Checkpoint(_))));
}

#[test]
fn parts_that_do_not_belong_together_are_refused() {
    let log = written();
    let record = story().pop().unwrap();
    let index = log.find(&record.digest().unwrap()).unwrap();
    let proof = log.inclusion_proof(index).unwrap();
    let signed = log.signed().unwrap();
    let new = |spec: &_, onnx: &[u8], record: &_, index| {
        ModelBundle::new(spec, onnx, record, index, proof.clone(), signed)
    };
    assert!(matches!(new(&spec(), &onnx()[1..], &record, index), Err(BundleError::Onnx)));
    assert!(matches!(new(&spec(), &onnx(), &record, index - 1), Err(BundleError::Proof(_))));
    let mut other = spec();
    other.purpose.push('!');
    assert!(matches!(new(&other, &onnx(), &record, index), Err(BundleError::Spec)));
    let first = &story()[0];
    let proof = log.inclusion_proof(0).unwrap();
    assert!(matches!(
        ModelBundle::new(&spec(), &onnx(), first, 0, proof, signed),
        Err(BundleError::NotARelease("task started"))
    ));
    let mut forged = record.clone();
    if let medinet_ledger::RecordBody::ModelReleased { version, .. } = &mut forged.body {
        *version = ModelVersion(9);
    }
    assert!(matches!(new(&spec(), &onnx(), &forged, index), Err(BundleError::Proof(_))));
}

/// A ledger that was signed and claims a graph of a terabyte must not make a site allocate it.
#[test]
fn a_signed_absurd_length_is_refused_before_it_is_allocated() {
    let mut records = story();
    let mut body = released(3);
    if let medinet_ledger::RecordBody::ModelReleased { onnx_bytes, .. } = &mut body {
        *onnx_bytes = 1 << 40;
    }
    records.last_mut().unwrap().body = body;
    let mut log = LogWriter::open(Disk::default(), key()).unwrap();
    for record in &records {
        log.append(record).unwrap();
    }
    log.sign(&signer()).unwrap();
    let record = records.pop().unwrap();
    let index = records.len() as u64;
    let proof = log.inclusion_proof(index).unwrap();
    let made = ModelBundle::new(&spec(), &onnx(), &record, index, proof, log.signed().unwrap());
    assert_eq!(made.unwrap_err(), BundleError::Onnx);
}

/// What a bundle with these votes is to a user who asks for two accepting sites and two thirds.
fn voted(votes: Vec<SignedVote>) -> Result<VerifiedModel, BundleError> {
    let bytes = bundle().with_votes(votes)?.encode();
    let quorum = Quorum { min_accepting: 2, min_accept_permille: 667 };
    let demand = VoteDemand { quorum, voters: &Enrolled };
    ModelBundle::decode(&bytes).unwrap().verify_voted(&trusted(), &demand)
}

#[test]
fn a_quorum_of_sites_carries_a_model() {
    let model = voted(vec![vote("east", Ballot::Accept), vote("west", Ballot::Accept)]).unwrap();
    let tally = model.votes().unwrap();
    assert_eq!((tally.accepting, tally.rejecting, tally.abstaining), (2, 0, 0));
    assert_eq!(model.onnx(), onnx());
    // Whoever does not ask is not told that there are votes.
    assert_eq!(bundle().verify(&trusted()).unwrap().votes(), None);
}

#[test]
fn a_model_without_a_quorum_of_proven_votes_is_refused() {
    let east = || vote("east", Ballot::Accept);
    let refused = |votes: Vec<SignedVote>| match voted(votes) {
        Err(BundleError::Votes(error)) => error,
        other => panic!("{other:?}"),
    };
    let no_quorum = |votes, expected: (u32, u32, u32)| match refused(votes) {
        VoteError::NoQuorum { tally, unproven, .. } => {
            assert_eq!((tally.accepting, tally.rejecting, unproven), expected);
        }
        other => panic!("{other}"),
    };
    // Missing.
    no_quorum(vec![], (0, 0, 0));
    no_quorum(vec![east()], (1, 0, 0));
    // Against it.
    let against = vote("north", Ballot::Reject(Objection::AurocDrop));
    no_quorum(vec![east(), vote("west", Ballot::Accept), against], (2, 1, 0));
    // Forged: a signature that was altered, a ballot that was, one of somebody who is not enrolled, one under another's name.
    let mut altered = vote("west", Ballot::Accept);
    altered.signature[0] ^= 1;
    no_quorum(vec![east(), altered], (1, 0, 1));
    let mut turned = vote("west", Ballot::Reject(Objection::LowAuroc));
    turned.vote.ballot = Ballot::Accept;
    no_quorum(vec![east(), turned], (1, 0, 1));
    no_quorum(vec![east(), vote("south", Ballot::Accept)], (1, 0, 1));
    let borrowed = SignedVote { credential: b"west".to_vec(), ..east() };
    no_quorum(vec![east(), borrowed], (1, 0, 1));
    // Twice.
    assert_eq!(refused(vec![east(), east()]), VoteError::Twice(common::site("east")));
    // Of another model, version, round or task, each signed well.
    let other = |change: fn(&mut medinet_ledger::vote::Vote)| {
        let mut vote = vote("west", Ballot::Accept).vote;
        change(&mut vote);
        refused(vec![east(), signed("west", vote)])
    };
    let model = other(|vote| vote.model = model(2));
    assert!(matches!(model, VoteError::OtherModel { .. }), "{model}");
    assert_eq!(other(|vote| vote.version = ModelVersion(2)), VoteError::OtherRound);
    assert_eq!(other(|vote| vote.round = RoundNumber(3)), VoteError::OtherRound);
    assert_eq!(other(|vote| vote.task = "other".parse().unwrap()), VoteError::OtherRound);
}
