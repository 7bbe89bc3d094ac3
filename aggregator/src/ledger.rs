//! From what happened in the rounds to records of the ledger, and from the store's queue to signed checkpoints.

use anyhow::{Context as _, Result, ensure};
use medinet_identity::{read_private, write_private, write_public};
use medinet_ledger::bundle::spec_digest;
use medinet_ledger::directory::Directory;
use medinet_ledger::{
    CheckpointSigner as _, Ed25519Signer, LedgerPublicKey, LedgerState, LogWriter, ModelBundle, Participant,
    Record, RecordBody, ReportedMetrics, RoundKind, RuleViolation, SiteReport, SiteVote,
};
use medinet_model::TaskSpec;
use medinet_rounds::{Outcome, RoundRecord};
use medinet_store::Store;
use medinet_types::{Digest, FederationId, RecordDigest, SiteId, UnixMillis};
use medinet_wire::message::{DatasetRegistration, FromAggregatorToAll, ModelRef, SiteMetrics};
use medinet_wire::vote::SignedVote;
use ring::rand::{SecureRandom as _, SystemRandom};
use std::fs;
use std::path::Path;
use zeroize::Zeroizing;

/// Entries taken from the queue at a time.
const BATCH: u32 = 64;

/// The log and the key that signs it.
pub(crate) struct Ledger {
    log: LogWriter<Directory>,
    signer: Ed25519Signer,
}

/// Loads the key that signs checkpoints, 64 hexadecimal digits; makes it when there is none. Writes the public key
/// beside it, with the extension `pub`, for the sites.
///
/// # Errors
/// When a file cannot be read or written, others may read it, or it holds something else.
pub(crate) fn load_or_make_key(path: &Path) -> Result<Ed25519Signer> {
    if !path.exists() {
        let mut seed = Zeroizing::new([0; 32]);
        SystemRandom::new()
            .fill(&mut *seed)
            .map_err(|_| anyhow::anyhow!("the system gives no randomness"))?;
        // Under another name first: a kill must not leave half a key.
        let unfinished = path.with_extension("new");
        match fs::remove_file(&unfinished) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", unfinished.display()));
            }
            _ => {}
        }
        write_private(&unfinished, &Zeroizing::new(hex::encode(*seed)))?;
        fs::rename(&unfinished, path).with_context(|| format!("cannot create {}", path.display()))?;
        tracing::info!(path = %path.display(), "made the ledger's key: keep a copy of it in a safe place");
    }
    let text = read_private(path)?;
    let mut seed = Zeroizing::new([0; 32]);
    hex::decode_to_slice(text.trim(), &mut *seed)
        .map_err(|_| anyhow::anyhow!("expected 64 hexadecimal digits in {}", path.display()))?;
    let signer = Ed25519Signer::from_seed(&seed)?;
    write_public(&path.with_extension("pub"), &format!("{}\n", hex::encode(signer.public_key())))?;
    Ok(signer)
}

impl Ledger {
    /// Opens the log, a new one included, and checks all of it.
    ///
    /// # Errors
    /// When the log is damaged, of another key, or the disk fails.
    pub(crate) fn open(folder: &Path, federation: &FederationId, signer: Ed25519Signer) -> Result<Self> {
        let directory = Directory::create(folder)?;
        let log = LogWriter::open(directory, LedgerPublicKey::new(federation, signer.public_key()))?;
        Ok(Self { log, signer })
    }

    /// What the records add up to.
    pub(crate) fn state(&self) -> &LedgerState {
        self.log.state()
    }

    /// The newest signed checkpoint.
    pub(crate) fn note(&self) -> Option<&str> {
        self.log.signed().map(|signed| signed.note())
    }

    /// Proof that the newest checkpoint continues the one of `seen` entries; empty where none is needed, or none can be given.
    pub(crate) fn proof_from(&self, seen: u64) -> Vec<Digest> {
        self.log.consistency_proof(seen).unwrap_or_default()
    }

    /// The leaf hash of an entry.
    pub(crate) fn leaf(&self, index: u64) -> Option<RecordDigest> {
        self.log.tree().leaf(index)
    }

    /// Whether the records may follow, in this order. Asked before they are queued: what is queued must be appended.
    ///
    /// # Errors
    /// Names the rule that the first bad one breaks.
    pub(crate) fn admits<'a>(
        &self,
        records: impl IntoIterator<Item = &'a Record>,
    ) -> Result<(), RuleViolation> {
        let mut state = self.log.state().clone();
        records.into_iter().try_for_each(|record| state.apply(record))
    }

    /// Appends all that waits in the store's queue, signs, and notes it there; true when a new checkpoint was signed. Killed
    /// at any point, the next call goes on from the log's own size, so that each entry is appended once.
    ///
    /// # Errors
    /// When the log is not the one that the store feeds, or a disk fails; open both again then.
    pub(crate) fn append_waiting(&mut self, store: &mut Store) -> Result<bool> {
        loop {
            let waiting = store.pending_ledger_entries(self.log.tree().size(), BATCH)?;
            if waiting.is_empty() {
                break;
            }
            for entry in waiting {
                let record = Record::decode(&entry.entry)?;
                let (index, _) = self.log.append(&record)?;
                ensure!(
                    index == entry.index,
                    "expected entry {} of the queue next on the ledger, appended {index}",
                    entry.index
                );
                tracing::info!(index, "ledger: {}", record.summary());
            }
        }
        let size = self.log.tree().size();
        if size == 0 {
            return Ok(false);
        }
        let before = self.log.signed().map(|signed| signed.checkpoint().size);
        self.log.sign(&self.signer)?;
        store.ledger_appended(size)?;
        Ok(before != Some(size))
    }

    /// The bundle of the release that stands at `index`.
    ///
    /// # Errors
    /// When it does not stand there, or is of another model or graph.
    pub(crate) fn bundle(&self, spec: &TaskSpec, onnx: &[u8], index: u64) -> Result<ModelBundle> {
        let record = self.log.record(index)?.context("the ledger has no entry for the release")?;
        let proof = self.log.inclusion_proof(index).context("the release is not covered by a checkpoint")?;
        let signed = self.log.signed().context("the ledger has no checkpoint")?;
        Ok(ModelBundle::new(spec, onnx, &record, index, proof, signed)?)
    }
}

/// The record of what happened; `None` for what does not belong on the ledger: who joined, declined or delivered late is
/// the federation's own business, and a model's record names everyone whose update is in it.
pub(crate) fn record_of(spec: &TaskSpec, at: UnixMillis, what: &RoundRecord) -> Option<Record> {
    let task = spec.task.clone();
    let body = match what {
        RoundRecord::TaskStarted { model } => {
            RecordBody::TaskStarted { task, spec: spec_digest(spec), model: model.digest }
        }
        RoundRecord::RoundOpened { plan } => {
            let announcement = FromAggregatorToAll::Announce((**plan).clone());
            RecordBody::RoundOpened {
                task,
                round: plan.round,
                kind: match plan.kind {
                    medinet_wire::message::RoundKind::Train => RoundKind::Train,
                    medinet_wire::message::RoundKind::Evaluate => RoundKind::Evaluate,
                },
                base: plan.base.digest,
                version: plan.base.version,
                plan: Digest::of(&medinet_wire::encode(&announcement)),
                min_sites: plan.min_sites,
                max_sites: plan.max_sites,
            }
        }
        RoundRecord::ModelAggregated { round, base, model, contributions, examples } => {
            let participant =
                |c: &medinet_rounds::Contribution| Participant { site: c.site.clone(), update: c.update };
            RecordBody::RoundClosed {
                task,
                round: *round,
                base: *base,
                result: model.digest,
                version: model.version,
                participants: contributions.iter().map(participant).collect(),
                examples: *examples,
            }
        }
        RoundRecord::ModelJudged { round, verdict, measurements } => {
            let report = |m: &medinet_rounds::Measured| SiteReport {
                site: m.site.clone(),
                metrics: m.metrics.as_ref().map(reported),
            };
            RecordBody::ModelEvaluated {
                task,
                round: *round,
                model: verdict.model.digest,
                reports: measurements.iter().map(report).collect(),
                accepted: verdict.outcome == Outcome::Released,
            }
        }
        RoundRecord::VotesCounted { round, model, quorum, votes } => {
            let vote = |(site, signed): &(SiteId, SignedVote)| SiteVote {
                site: site.clone(),
                ballot: signed.vote.ballot,
                vote: signed.digest(),
            };
            RecordBody::VotesCounted {
                task,
                round: *round,
                model: *model,
                quorum: *quorum,
                votes: votes.iter().map(vote).collect(),
            }
        }
        RoundRecord::WentBack { round, from: _, to } => {
            RecordBody::WentBack { task, round: *round, model: to.digest, version: to.version }
        }
        RoundRecord::RoundAbandoned { round, .. } => RecordBody::RoundAbandoned { task, round: *round },
        RoundRecord::SessionBegan { .. }
        | RoundRecord::SessionFailed { .. }
        | RoundRecord::GroupSummed { .. }
        | RoundRecord::MeanShortened { .. }
        | RoundRecord::InputCounted { .. }
        | RoundRecord::SiteJoined { .. }
        | RoundRecord::SiteDeclined { .. }
        | RoundRecord::UpdateAccepted { .. }
        | RoundRecord::ContributionRefused { .. }
        | RoundRecord::UpdateLost { .. }
        | RoundRecord::Evaluated { .. }
        | RoundRecord::RoundExtended { .. }
        | RoundRecord::TaskPaused { .. }
        | RoundRecord::TaskResumed { .. }
        | RoundRecord::TaskFinished { .. } => return None,
    };
    Some(Record { at, body })
}

fn reported(metrics: &SiteMetrics) -> ReportedMetrics {
    let SiteMetrics { images, auroc, accuracy, loss, calibration_error } = *metrics;
    ReportedMetrics { images, auroc, accuracy, loss, calibration_error }
}

/// The record of a data set; `envelope` is the digest of what the site signed.
pub(crate) fn dataset_record(
    at: UnixMillis,
    site: &SiteId,
    registration: &DatasetRegistration,
    envelope: Digest,
) -> Record {
    let DatasetRegistration { task, manifest, images_per_class } = registration.clone();
    let site = site.clone();
    Record { at, body: RecordBody::DatasetRegistered { task, site, manifest, images_per_class, envelope } }
}

/// The record of a release.
pub(crate) fn release_record(at: UnixMillis, spec: &TaskSpec, model: &ModelRef, onnx: &[u8]) -> Record {
    let body = RecordBody::ModelReleased {
        task: spec.task.clone(),
        model: model.digest,
        version: model.version,
        spec: spec_digest(spec),
        onnx: Digest::of(onnx),
        onnx_bytes: onnx.len() as u64,
    };
    Record { at, body }
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
