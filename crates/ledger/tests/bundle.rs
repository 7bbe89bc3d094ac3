//! A released model in one blob: what verifies comes out, and nothing else does.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use common::{Disk, federation, key, onnx, released, signer, spec, story, written};
use medinet_ledger::{
    BundleError, CheckpointSigner as _, Ed25519Signer, LedgerPublicKey, LogWriter, ModelBundle, TrustedKeys,
};
use medinet_types::ModelVersion;

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
