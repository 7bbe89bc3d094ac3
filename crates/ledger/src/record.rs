//! What goes on the ledger. Nothing in it identifies a patient.

use crate::vote::{Ballot, Quorum, VoteTally};
use alloc::string::String;
// thiserror's derive names `std` as soon as any crate of the build has its `std` feature on; `core` has all that it uses.
use alloc::vec::Vec;
#[cfg(not(feature = "std"))]
#[allow(unused_imports, reason = "not named when thiserror is built without `std`")]
use core as std;
use medinet_types::{
    BlobDigest, DatasetDigest, Digest, ModelDigest, ModelVersion, RecordDigest, RoundNumber, SiteId, TaskId,
    UnixMillis,
};
use serde::{Deserialize, Serialize};

/// The longest record, in bytes: a round of some two thousand sites.
pub const MAX_RECORD_BYTES: usize = 256 * 1024;

const VERSION: u8 = 1;

/// An entry of the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// When, by the aggregator's clock; never before the record before it.
    pub at: UnixMillis,
    /// What happened.
    pub body: RecordBody,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum RecordBody {
    /// A task began with an initial model, version 0.
    TaskStarted {
        /// The task.
        task: TaskId,
        /// Digest of the task's specification in postcard.
        spec: Digest,
        /// The initial model.
        model: ModelDigest,
    },
    /// A site registered a data set for a task; it replaces the site's former one.
    DatasetRegistered {
        /// The task.
        task: TaskId,
        /// The site.
        site: SiteId,
        /// Digest of the manifest, which stays at the site.
        manifest: DatasetDigest,
        /// Images per class in the order of the task's classes, rounded down to tens.
        images_per_class: Vec<u64>,
        /// Digest of the envelope that the site signed.
        envelope: Digest,
    },
    /// A round was opened.
    RoundOpened {
        /// The task.
        task: TaskId,
        /// Its number.
        round: RoundNumber,
        /// What for.
        kind: RoundKind,
        /// The model to train from, or to measure.
        base: ModelDigest,
        /// Its version.
        version: ModelVersion,
        /// Digest of the announcement that the aggregator signed.
        plan: Digest,
        /// Least number of sites.
        min_sites: u32,
        /// Largest number of sites.
        max_sites: u32,
    },
    /// A training round ended with a new model.
    RoundClosed {
        /// The task.
        task: TaskId,
        /// The round.
        round: RoundNumber,
        /// The model that updates started from.
        base: ModelDigest,
        /// The new model: the base plus the mean of the updates.
        result: ModelDigest,
        /// Its version.
        version: ModelVersion,
        /// Whose updates are in it, in the order of site names.
        participants: Vec<Participant>,
        /// Training images behind it, in private rounds patients, all sites together.
        examples: u64,
    },
    /// A round ended without a result.
    RoundAbandoned {
        /// The task.
        task: TaskId,
        /// The round.
        round: RoundNumber,
    },
    /// An evaluation round ended.
    ModelEvaluated {
        /// The task.
        task: TaskId,
        /// The round.
        round: RoundNumber,
        /// The model that was measured.
        model: ModelDigest,
        /// What the sites reported, in the order of site names.
        reports: Vec<SiteReport>,
        /// Whether the model may be released.
        accepted: bool,
    },
    /// A model was released for use.
    ModelReleased {
        /// The task.
        task: TaskId,
        /// The model.
        model: ModelDigest,
        /// Its version.
        version: ModelVersion,
        /// Digest of the task's specification in postcard.
        spec: Digest,
        /// Digest of the ONNX graph that runs.
        onnx: Digest,
        /// Length of the ONNX graph in bytes.
        onnx_bytes: u64,
    },
    /// The sites' votes on the model of an open evaluation round were counted; the round's [`RecordBody::ModelEvaluated`] follows.
    VotesCounted {
        /// The task.
        task: TaskId,
        /// The round.
        round: RoundNumber,
        /// The model that was voted on.
        model: ModelDigest,
        /// What the task asks for before a model is accepted; `None` when votes do not decide.
        quorum: Option<Quorum>,
        /// The votes, in the order of site names. The signed votes themselves are in the release's bundle.
        votes: Vec<SiteVote>,
    },
    /// After the evaluation round that rejected the newest model, training goes back to the one accepted before it.
    WentBack {
        /// The task.
        task: TaskId,
        /// The evaluation round.
        round: RoundNumber,
        /// The model that training goes on from.
        model: ModelDigest,
        /// Its version.
        version: ModelVersion,
    },
}

/// What a round is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RoundKind {
    /// Sites train from the base model.
    Train,
    /// Sites measure the base model.
    Evaluate,
}

/// A site's part in a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Participant {
    /// The site.
    pub site: SiteId,
    /// Its sealed update.
    pub update: BlobDigest,
}

/// A site's vote on a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteVote {
    /// The site.
    pub site: SiteId,
    /// What it made of the model.
    pub ballot: Ballot,
    /// Digest of the signed vote ([`SignedVote::digest`](crate::vote::SignedVote::digest)).
    pub vote: Digest,
}

/// What a site said about a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SiteReport {
    /// The site.
    pub site: SiteId,
    /// What it measured; `None` when its policy keeps that at the site.
    pub metrics: Option<ReportedMetrics>,
}

/// What a site measured on its own validation split.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ReportedMetrics {
    /// Images measured.
    pub images: u64,
    /// Area under the ROC curve, 0 to 1; `None` when a class is absent.
    pub auroc: Option<f64>,
    /// Fraction classified rightly, 0 to 1.
    pub accuracy: f64,
    /// Mean cross entropy in nats, not negative.
    pub loss: f64,
    /// Expected calibration error, 0 to 1.
    pub calibration_error: f64,
}

/// Bytes that are no record of this version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Written by another version.
    #[error("expected record version {VERSION}, got {0}: update this program")]
    Version(u8),
    /// Longer than any record.
    #[error("expected a record of at most {MAX_RECORD_BYTES} bytes, got {0}")]
    TooLong(usize),
    /// Does not parse, or parses to a record that is written otherwise.
    #[error("expected a record, got bytes that do not decode")]
    Malformed,
}

impl Record {
    /// The entry's bytes: a version byte and the record in postcard.
    ///
    /// # Errors
    /// When the record is longer than [`MAX_RECORD_BYTES`].
    pub fn encode(&self) -> Result<Vec<u8>, RecordError> {
        let mut bytes = Vec::from([VERSION]);
        // Records hold no maps and no sequences of unknown length, so postcard cannot fail.
        bytes.extend(postcard::to_allocvec(self).expect("records always encode"));
        if bytes.len() > MAX_RECORD_BYTES { Err(RecordError::TooLong(bytes.len())) } else { Ok(bytes) }
    }

    /// Reads an entry's bytes. Only the bytes that [`Record::encode`] writes are taken, so that a record has one
    /// leaf hash.
    ///
    /// # Errors
    /// See [`RecordError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        if bytes.len() > MAX_RECORD_BYTES {
            return Err(RecordError::TooLong(bytes.len()));
        }
        let (&version, body) = bytes.split_first().ok_or(RecordError::Malformed)?;
        if version != VERSION {
            return Err(RecordError::Version(version));
        }
        let record: Self = postcard::from_bytes(body).map_err(|_| RecordError::Malformed)?;
        if record.encode()? == bytes { Ok(record) } else { Err(RecordError::Malformed) }
    }

    /// The leaf hash under which the record stands in the log.
    ///
    /// # Errors
    /// As [`Record::encode`].
    pub fn digest(&self) -> Result<RecordDigest, RecordError> {
        Ok(crate::leaf_hash(&self.encode()?))
    }

    /// The record's kind, for people.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self.body {
            RecordBody::TaskStarted { .. } => "task started",
            RecordBody::DatasetRegistered { .. } => "data set registered",
            RecordBody::RoundOpened { .. } => "round opened",
            RecordBody::RoundClosed { .. } => "round closed",
            RecordBody::RoundAbandoned { .. } => "round abandoned",
            RecordBody::ModelEvaluated { .. } => "model evaluated",
            RecordBody::ModelReleased { .. } => "model released",
            RecordBody::VotesCounted { .. } => "votes counted",
            RecordBody::WentBack { .. } => "went back",
        }
    }

    /// One line for people: the kind and what it is about.
    #[must_use]
    pub fn summary(&self) -> String {
        use RecordBody as B;
        let kind = self.kind();
        match &self.body {
            B::TaskStarted { task, model, .. } => alloc::format!("{kind}: {task}, model {}", model.short()),
            B::DatasetRegistered { task, site, manifest, images_per_class, .. } => alloc::format!(
                "{kind}: {task}, site {site}, manifest {}, {images_per_class:?} images per class",
                manifest.short()
            ),
            B::RoundOpened { task, round, kind: what, base, .. } => {
                alloc::format!("{kind}: {task}, round {round} ({what:?}), base {}", base.short())
            }
            B::RoundClosed { task, round, result, participants, examples, .. } => alloc::format!(
                "{kind}: {task}, round {round}, {} sites, {examples} examples, model {}",
                participants.len(),
                result.short()
            ),
            B::RoundAbandoned { task, round } => alloc::format!("{kind}: {task}, round {round}"),
            B::ModelEvaluated { task, round, model, reports, accepted } => alloc::format!(
                "{kind}: {task}, round {round}, {} reports, model {} {}",
                reports.len(),
                model.short(),
                if *accepted { "accepted" } else { "rejected" }
            ),
            B::ModelReleased { task, model, version, .. } => {
                alloc::format!("{kind}: {task}, version {version}, model {}", model.short())
            }
            B::WentBack { task, round, model, version } => {
                alloc::format!("{kind}: {task}, round {round}, to version {version}, model {}", model.short())
            }
            B::VotesCounted { task, round, model, quorum, votes } => {
                let tally = VoteTally::of(votes.iter().map(|vote| vote.ballot));
                let decision = match quorum {
                    Some(quorum) if quorum.accepts(tally) => "a quorum",
                    Some(_) => "no quorum",
                    None => "no quorum asked for",
                };
                alloc::format!(
                    "{kind}: {task}, round {round}, model {}, {} accept, {} reject, {} abstain, {decision}",
                    model.short(),
                    tally.accepting,
                    tally.rejecting,
                    tally.abstaining
                )
            }
        }
    }
}
