//! From a model that passed the rule to what sites run: an ONNX graph, on the ledger, bundled with its proof.

use crate::ledger::{Ledger, release_record};
use anyhow::{Context as _, Result};
use medinet_link::BlobStore;
use medinet_model::onnx::{OnnxOptions, to_onnx};
use medinet_model::{ModelParameters, ParameterLayout, TaskSpec, decode_parameters};
use medinet_store::Store;
use medinet_types::{ModelVersion, TaskId, UnixMillis};
use medinet_wire::blob::BlobManifest;
use medinet_wire::message::ModelRef;
use medinet_wire::vote::SignedVote;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Where a released model's graph is written for people and other programs.
pub(crate) fn onnx_path(models: &Path, task: &TaskId, version: ModelVersion) -> PathBuf {
    models.join(format!("{task}-v{version}.onnx"))
}

/// The release's bundle, made unless an earlier run has made it. Killed at any point, the next call goes on: the record
/// is queued once, and whatever it says is what the bundle proves.
///
/// # Errors
/// When the model's parameters are not here, the ledger refuses the release, or a disk fails.
#[allow(clippy::too_many_arguments, reason = "everything that a release is made of, once")]
pub(crate) fn complete(
    store: &mut Store,
    ledger: &mut Ledger,
    blobs: &BlobStore,
    models: &Path,
    spec: &TaskSpec,
    model: &ModelRef,
    votes: Vec<SignedVote>,
    now: UnixMillis,
) -> Result<BlobManifest> {
    let (task, version) = (&spec.task, model.version);
    let row = store.releases(task)?.into_iter().find(|row| row.version == version);
    let row = row.with_context(|| format!("the registry has no release of version {version}"))?;
    let path = onnx_path(models, task, version);
    if let Some(bundle) = row.bundle
        && blobs.has(bundle.digest)
        && path.exists()
    {
        return Ok(bundle);
    }
    let onnx = export(blobs, spec, model)?;
    let mut entry = Vec::new();
    if row.ledger_index.is_none() {
        let record = release_record(now, spec, model, &onnx);
        ledger.admits([&record]).context("the ledger refuses the release")?;
        entry = record.encode()?;
    }
    let index = store.queue_release_entry(task, version, || entry)?;
    ledger.append_waiting(store)?;
    let bundle = ledger.bundle(spec, &onnx, index).context("cannot bundle the release")?;
    let bundle = bundle.with_votes(votes).context("cannot bundle the votes")?;
    let manifest = blobs.put(&bundle.encode())?;
    write_whole(&path, &onnx).with_context(|| format!("cannot write {}", path.display()))?;
    store.release_bundled(task, version, &manifest)?;
    tracing::info!(%task, %version, index, onnx = %path.display(), "model released");
    Ok(manifest)
}

fn export(blobs: &BlobStore, spec: &TaskSpec, model: &ModelRef) -> Result<Vec<u8>> {
    let blob = blobs.get(model.parameters.digest)?;
    let blob = blob.context("the released model's parameters are not in the blob store")?;
    let length = ParameterLayout::of(&spec.network)?.len();
    let parameters = ModelParameters::new(&spec.network, decode_parameters(&blob, length)?)?;
    let got = parameters.digest(&spec.network);
    anyhow::ensure!(got == model.digest, "expected the parameters of model {}, got {got}", model.digest);
    Ok(to_onnx(spec, &parameters, OnnxOptions::default())?)
}

/// Readers see the whole file or none.
fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let unfinished = path.with_extension("onnx.new");
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut file = File::create(&unfinished)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(unfinished, path)
}
