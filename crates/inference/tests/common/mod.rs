//! A model on a ledger: the shortest story that ends with a release, and the bundle of it.
#![allow(dead_code, reason = "each test file uses its part")]

use medinet_ledger::bundle::spec_digest;
use medinet_ledger::directory::Directory;
use medinet_ledger::{
    CheckpointSigner as _, Ed25519Signer, LedgerPublicKey, LogWriter, ModelBundle, Participant, Record,
    RecordBody, ReportedMetrics, RoundKind, SiteReport, TrustedKeys,
};
use medinet_model::onnx::{OnnxOptions, to_onnx};
use medinet_model::{
    InputShape, Intensity, ModelParameters, NetworkManifest, Normalisation, Preprocessing, Resize, Slices,
    TaskSpec,
};
use medinet_types::{
    BlobDigest, DatasetDigest, Digest, FederationId, ModelDigest, ModelVersion, RoundNumber, SiteId, TaskId,
    UnixMillis,
};
use std::path::Path;

/// A task for the small network.
pub(crate) fn spec(input: InputShape, classes: &[&str]) -> TaskSpec {
    TaskSpec {
        task: TaskId::new("pneumonia").unwrap(),
        purpose: "Tells pneumonia from normal chest X-rays".to_owned(),
        network: NetworkManifest::small(input, classes.iter().map(|class| (*class).to_owned()).collect()),
        preprocessing: Preprocessing {
            slices: Slices::Single,
            intensity: Intensity::Voi,
            denoise: false,
            spacing_mm: None,
            resize: Resize::Letterbox,
            normalisation: Normalisation::PerImage,
        },
    }
}

pub(crate) fn parameters(spec: &TaskSpec, seed: u64) -> ModelParameters {
    ModelParameters::initial(&spec.network, seed).unwrap()
}

pub(crate) fn onnx(spec: &TaskSpec, parameters: &ModelParameters, features: bool) -> Vec<u8> {
    to_onnx(spec, parameters, OnnxOptions { features }).unwrap()
}

pub(crate) fn signer() -> Ed25519Signer {
    Ed25519Signer::from_seed(&[7; 32]).unwrap()
}

pub(crate) fn federation() -> FederationId {
    FederationId::new("chest").unwrap()
}

pub(crate) fn key() -> LedgerPublicKey {
    LedgerPublicKey::new(&federation(), signer().public_key())
}

pub(crate) fn trusted() -> TrustedKeys {
    TrustedKeys { ledger: key() }
}

/// One training round, its evaluation and the release of `model` with the graph `onnx`.
fn records(spec: &TaskSpec, model: ModelDigest, onnx: &[u8]) -> Vec<Record> {
    let (task, site) = (spec.task.clone(), SiteId::new("north").unwrap());
    let (initial, digest) = (ModelDigest(Digest::of(b"initial")), Digest::of);
    let opened = |round, kind, base, version| RecordBody::RoundOpened {
        task: task.clone(),
        round: RoundNumber(round),
        kind,
        base,
        version: ModelVersion(version),
        plan: digest(b"plan"),
        min_sites: 1,
        max_sites: 1,
    };
    let metrics = ReportedMetrics {
        images: 80,
        auroc: Some(0.93),
        accuracy: 0.88,
        loss: 0.31,
        calibration_error: 0.04,
    };
    let bodies = [
        RecordBody::TaskStarted { task: task.clone(), spec: spec_digest(spec), model: initial },
        RecordBody::DatasetRegistered {
            task: task.clone(),
            site: site.clone(),
            manifest: DatasetDigest(digest(b"manifest")),
            images_per_class: vec![120; spec.network.classes.len()],
            envelope: digest(b"envelope"),
        },
        opened(1, RoundKind::Train, initial, 0),
        RecordBody::RoundClosed {
            task: task.clone(),
            round: RoundNumber(1),
            base: initial,
            result: model,
            version: ModelVersion(1),
            participants: vec![Participant { site: site.clone(), update: BlobDigest(digest(b"update")) }],
            examples: 240,
        },
        opened(2, RoundKind::Evaluate, model, 1),
        RecordBody::ModelEvaluated {
            task: task.clone(),
            round: RoundNumber(2),
            model,
            reports: vec![SiteReport { site, metrics: Some(metrics) }],
            accepted: true,
        },
        RecordBody::ModelReleased {
            task: task.clone(),
            model,
            version: ModelVersion(1),
            spec: spec_digest(spec),
            onnx: digest(onnx),
            onnx_bytes: onnx.len() as u64,
        },
    ];
    (1_700_000_000_000..).map(UnixMillis).zip(bodies).map(|(at, body)| Record { at, body }).collect()
}

/// Writes the ledger to `folder` and makes the bundle of its release. The graph may be anything.
pub(crate) fn bundle(folder: &Path, spec: &TaskSpec, model: ModelDigest, onnx: &[u8]) -> ModelBundle {
    let mut log = LogWriter::open(Directory::create(folder).unwrap(), key()).unwrap();
    let records = records(spec, model, onnx);
    for record in &records {
        log.append(record).unwrap();
    }
    log.sign(&signer()).unwrap();
    let index = records.len() as u64 - 1;
    let (record, proof) = (records.last().unwrap(), log.inclusion_proof(index).unwrap());
    ModelBundle::new(spec, onnx, record, index, proof, log.signed().unwrap()).unwrap()
}

/// Values from -2 to 2 that are the same in every run (xorshift, Marsaglia 2003).
pub(crate) fn noise(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 22) as f32 - 2.0
    };
    std::iter::repeat_with(next).take(count).collect()
}
