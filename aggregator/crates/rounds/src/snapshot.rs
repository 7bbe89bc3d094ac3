//! What a coordinator must remember, and its form on disk.

use crate::cohort::OpenRound;
use crate::downlink::Downlink;
use crate::evaluate::{EvaluateRound, Measurement};
use crate::phase::{Paused, Phase, Suspended};
use crate::plan::TaskPlanError;
use crate::privacy::AnnouncedPrivacy;
use crate::record::{PauseReason, Verdict};
use crate::secure::{SavedSecure, SecureRound};
use crate::train::{CountedUpdate, TrainRound};
use medinet_model::{ParameterBlobError, TaskSpec};
use medinet_privacy::PrivacyReport;
use medinet_types::{BlobDigest, ModelDigest, ModelVersion, RoundNumber, SiteId, TaskId, UnixMillis};
use medinet_wire::message::{MAX_STATUS_DECLINES, MakingRound, ModelRef, SiteDecline};
use medinet_wire::vote::SignedVote;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Version of the form below.
const VERSION: u8 = 8;

/// A task's state between two inputs: a few hundred bytes and one small entry per site of the open round.
/// Parameters and updates are named by digest; their bytes are in the blob store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    pub(crate) task: TaskState,
    pub(crate) phase: SavedPhase,
}

/// What outlives a round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct TaskState {
    pub(crate) spec: TaskSpec,
    /// The global model that training goes on from: the newest, or the one that it went back to.
    pub(crate) model: ModelRef,
    /// The newest version's number: how many training rounds have given a model.
    pub(crate) trained: ModelVersion,
    /// How it goes down.
    pub(crate) downlink: Downlink,
    /// The training round that made it.
    pub(crate) made_by: Option<MakingRound>,
    /// The clip norm that the last sum under masks asks for.
    pub(crate) clip_norm: Option<f32>,
    pub(crate) rounds_opened: u32,
    /// What the rounds opened so far cost patients by their plans.
    pub(crate) announced: AnnouncedPrivacy,
    /// Rounds in a row that ended without a sum.
    pub(crate) without_sum: u32,
    /// The version that an evaluation round last judged.
    pub(crate) evaluated: Option<ModelVersion>,
    /// The newest release.
    pub(crate) released: Option<Released>,
    /// Newest median AUROC that sites reported.
    pub(crate) auroc: Option<f64>,
    pub(crate) previous: Option<ClosedRound>,
    /// Who declined last, each site once, the newest last; at most [`MAX_STATUS_DECLINES`].
    pub(crate) declines: Vec<SiteDecline>,
    /// What sites said of their privacy budgets with their newest contribution to a round of training.
    pub(crate) privacy: BTreeMap<SiteId, (RoundNumber, PrivacyReport)>,
}

/// A release, and what is needed to train from it again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Released {
    /// The verdict that released it.
    pub(crate) verdict: Verdict,
    /// The votes that carry it.
    pub(crate) votes: Vec<SignedVote>,
    /// The training round that made it.
    pub(crate) made_by: Option<MakingRound>,
    /// The clip norm of the round that followed it.
    pub(crate) clip_norm: Option<f32>,
    /// What each site measured of it that lets its AUROC leave.
    pub(crate) aurocs: BTreeMap<SiteId, f64>,
}

/// The round before the open one, to answer those who come late or did not hear that they count.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ClosedRound {
    pub(crate) round: RoundNumber,
    pub(crate) closed_at: UnixMillis,
    pub(crate) deadline: UnixMillis,
    pub(crate) delivered: BTreeSet<SiteId>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum SavedPhase {
    Training(OpenRound<CountedUpdate>),
    Evaluating(OpenRound<Measurement>),
    PausedTraining(OpenRound<CountedUpdate>, PauseReason),
    PausedEvaluating(OpenRound<Measurement>, PauseReason),
    Finished,
    Securing(SavedSecure),
    PausedSecuring(SavedSecure, PauseReason),
    PausedAbandoned(RoundNumber, PauseReason),
}

/// Bytes that are no snapshot of this build.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// Written by another version of the program.
    #[error(
        "expected a task snapshot of version {VERSION}, got {got:?}: finish the task with the program that wrote it, or \
         plan it under another name, which starts the sites' privacy budgets and memories anew: ask them first"
    )]
    Version {
        /// The version found; `None` for no bytes at all.
        got: Option<u8>,
    },
    /// Damaged.
    #[error("expected a task snapshot, got bytes that do not decode: restore the database from a backup")]
    Malformed,
}

/// A task cannot be continued.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ResumeError {
    /// The plan breaks its rules; the operator is at fault.
    #[error(transparent)]
    Plan(#[from] TaskPlanError),
    /// The plan describes another network or input than the task began with; the operator is at fault.
    #[error(
        "task {task} began with another network or preprocessing than the plan's: plan a new task instead"
    )]
    OtherSpec {
        /// The task.
        task: TaskId,
    },
    /// A blob given is not the parameters of a model of the network.
    #[error(transparent)]
    Parameters(#[from] ParameterBlobError),
    /// A blob that the task goes on from is not given; the disk is at fault.
    #[error(
        "expected blob {blob}, the parameters of version {version}, in the blob store: restore it from a backup"
    )]
    Missing {
        /// Its name.
        blob: BlobDigest,
        /// The model's version.
        version: ModelVersion,
    },
    /// What the way down owes is not given, or not the bytes that were kept; the disk is at fault.
    #[error(
        "expected blob {blob}, what the downlink owes the next model, and got other bytes or none: restore the blob from a backup"
    )]
    Owed {
        /// Its name.
        blob: BlobDigest,
    },
    /// The blob given holds another model.
    #[error(
        "expected the parameters of model {expected}, got those of {got}: restore the blob from a backup"
    )]
    OtherModel {
        /// The model that the blob's name stands for.
        expected: ModelDigest,
        /// What the parameters make.
        got: ModelDigest,
    },
}

impl Snapshot {
    /// The snapshot as bytes: a version byte and postcard.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_extend(self, vec![VERSION])
            .expect("sequences and maps here know their length, so postcard encodes")
    }

    /// Reads what [`Self::encode`] wrote.
    ///
    /// # Errors
    /// When another version wrote it or it is damaged.
    pub fn decode(bytes: &[u8]) -> Result<Self, SnapshotError> {
        match bytes.split_first() {
            Some((&VERSION, body)) => postcard::from_bytes(body).map_err(|_| SnapshotError::Malformed),
            other => Err(SnapshotError::Version { got: other.map(|(version, _)| *version) }),
        }
    }

    /// The task.
    #[must_use]
    pub fn task(&self) -> &TaskId {
        &self.task.spec.task
    }

    /// The global model that training goes on from.
    #[must_use]
    pub fn model(&self) -> &ModelRef {
        &self.task.model
    }

    /// The blob with what the way down owes, if anything.
    #[must_use]
    pub fn owed(&self) -> Option<BlobDigest> {
        self.task.downlink.owed()
    }

    /// The blobs that are needed to resume.
    #[must_use]
    pub fn blobs(&self) -> BTreeSet<BlobDigest> {
        let models = [Some(&self.task.model), self.task.released_model()].into_iter().flatten();
        models.map(|model| model.parameters.digest).chain(self.owed()).collect()
    }

    pub(crate) fn of(task: &TaskState, phase: &Phase) -> Option<Self> {
        let phase = match phase {
            Phase::Unstarted => return None,
            Phase::Rebuilding(rebuilding) => SavedPhase::Training(rebuilding.round.open.clone()),
            Phase::Training(round) => SavedPhase::Training(round.open.clone()),
            Phase::Evaluating(round) => SavedPhase::Evaluating(round.open.clone()),
            Phase::Securing(round) => SavedPhase::Securing(round.saved().clone()),
            Phase::Paused(Paused { round, reason }) => match round {
                Suspended::Training(round) => SavedPhase::PausedTraining(round.open.clone(), reason.clone()),
                Suspended::Evaluating(round) => {
                    SavedPhase::PausedEvaluating(round.open.clone(), reason.clone())
                }
                Suspended::Securing(round) => {
                    SavedPhase::PausedSecuring(round.saved().clone(), reason.clone())
                }
                Suspended::Abandoned(round) => SavedPhase::PausedAbandoned(*round, reason.clone()),
            },
            Phase::Finished => SavedPhase::Finished,
        };
        Some(Self { task: task.clone(), phase })
    }

    pub(crate) fn restore(self) -> (TaskState, Phase) {
        let paused = |round, reason| Phase::Paused(Paused { round, reason });
        let phase = match self.phase {
            SavedPhase::Training(open) => Phase::Training(TrainRound::restored(open)),
            SavedPhase::Evaluating(open) => Phase::Evaluating(EvaluateRound { open }),
            SavedPhase::PausedTraining(open, reason) => {
                paused(Suspended::Training(TrainRound::restored(open)), reason)
            }
            SavedPhase::PausedEvaluating(open, reason) => {
                paused(Suspended::Evaluating(EvaluateRound { open }), reason)
            }
            SavedPhase::Finished => Phase::Finished,
            SavedPhase::Securing(saved) => Phase::Securing(Box::new(SecureRound::restored(saved))),
            SavedPhase::PausedSecuring(saved, reason) => {
                paused(Suspended::Securing(Box::new(SecureRound::restored(saved))), reason)
            }
            SavedPhase::PausedAbandoned(round, reason) => paused(Suspended::Abandoned(round), reason),
        };
        (self.task, phase)
    }
}

impl TaskState {
    pub(crate) fn note_decline(&mut self, decline: SiteDecline) {
        self.declines.retain(|before| before.site != decline.site);
        self.declines.push(decline);
        let forgotten = self.declines.len().saturating_sub(MAX_STATUS_DECLINES);
        self.declines.drain(..forgotten);
    }

    pub(crate) fn note_privacy(&mut self, site: &SiteId, round: RoundNumber, report: Option<PrivacyReport>) {
        if let Some(report) = report {
            self.privacy.insert(site.clone(), (round, report));
        }
    }

    pub(crate) fn released_model(&self) -> Option<&ModelRef> {
        self.released.as_ref().map(|released| &released.verdict.model)
    }
}
