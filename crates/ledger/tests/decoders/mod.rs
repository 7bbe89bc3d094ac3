//! One function per parser of untrusted bytes; tests and the targets in `fuzz/` both call them. Each panics only when a
//! parser breaks its contract.
#![allow(dead_code, reason = "each fuzz target calls one")]

use medinet_ledger::vote::{Quorum, VoterTrust};
use medinet_ledger::{
    CheckpointSigner as _, Ed25519Signer, LedgerPublicKey, LogFiles, ModelBundle, Record, TrustedKeys,
    VoteDemand, verify_log,
};
use medinet_types::{FederationId, SiteId, UnixMillis};

pub(crate) fn key() -> LedgerPublicKey {
    let signer = Ed25519Signer::from_seed(&[42; 32]).expect("32 bytes are a seed");
    LedgerPublicKey::new(&FederationId::new("chest").expect("a good name"), signer.public_key())
}

struct Nobody;

impl VoterTrust for Nobody {
    fn voter(&self, _: &[u8], _: &[u8], _: &[u8], _: UnixMillis) -> Option<SiteId> {
        None
    }
}

pub(crate) fn records(bytes: &[u8]) {
    if let Ok(record) = Record::decode(bytes) {
        assert_eq!(record.encode().as_deref(), Ok(bytes), "a record has one encoding");
        let _ = record.summary();
    }
}

pub(crate) fn bundles(bytes: &[u8]) {
    let trusted = TrustedKeys { ledger: key() };
    if let Ok(bundle) = ModelBundle::decode(bytes)
        && let Ok(model) = bundle.verify(&trusted)
    {
        assert!(!model.onnx().is_empty());
        // Nobody's word counts here, so no votes carry it.
        let quorum = Quorum { min_accepting: 1, min_accept_permille: 0 };
        assert!(bundle.verify_voted(&trusted, &VoteDemand { quorum, voters: &Nobody }).is_err());
    }
}

pub(crate) fn checkpoints(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        if let Ok(signed) = key().verify(text) {
            assert_eq!(signed.note(), text);
        }
        if let Ok(key) = text.parse::<LedgerPublicKey>() {
            assert_eq!(key.to_string(), text, "a key has one spelling");
        }
    }
}

/// The bytes as entries, leaf hashes and checkpoint: cut at two places that its first two bytes choose.
pub(crate) fn logs(bytes: &[u8]) {
    let Some((&[first, second], rest)) = bytes.split_first_chunk::<2>() else {
        return;
    };
    let (entries, rest) = rest.split_at(rest.len() * usize::from(first) / 256);
    let (leaves, checkpoint) = rest.split_at(rest.len() * usize::from(second) / 256);
    let files = LogFiles {
        entries: entries.to_vec(),
        leaves: leaves.to_vec(),
        checkpoint: checkpoint.to_vec(),
        history: vec![("1".to_owned(), checkpoint.to_vec())],
    };
    let _ = verify_log(&files, &key(), None).to_string();
}

pub(crate) fn all(bytes: &[u8]) {
    records(bytes);
    bundles(bytes);
    checkpoints(bytes);
    logs(bytes);
}
