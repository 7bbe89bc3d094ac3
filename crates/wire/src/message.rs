//! What the parties say to each other.
//!
//! All messages are idempotent: a repeated one changes nothing, so senders repeat until they see an answer.

use crate::blob::{BlobManifest, BlobWant};
use crate::privacy::PrivacyTotal;
pub use crate::secure::Aggregation;
use crate::secure::{AggregatorStep, SiteStep};
use crate::vote::SignedVote;
use medinet_model::{TaskSpec, TrainingPlan};
use medinet_privacy::PrivacyReport;
use medinet_types::{
    DatasetDigest, Digest, ModelDigest, ModelVersion, RecordDigest, RoundNumber, SiteId, TaskId, UnixMillis,
};
use serde::{Deserialize, Serialize};

/// A model that the aggregator serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelRef {
    /// Digest of network manifest and parameters.
    pub digest: ModelDigest,
    /// Version within the task.
    pub version: ModelVersion,
    /// The encoded parameter vector (see `medinet_update::parameters`).
    pub parameters: BlobManifest,
}

/// The most steps that one announcement lists. More deltas than these are seldom shorter than the model.
pub const MAX_MODEL_STEPS: usize = 16;

/// The most chunks that the deltas of one announcement have together, so that it stays well below
/// [`MAX_MESSAGE_BYTES`](crate::MAX_MESSAGE_BYTES) beside the largest model: 32 KiB of hashes, 256 MiB of deltas.
pub const MAX_STEP_CHUNKS: usize = 1024;

/// A step from one model of a task to the next, as a delta that the aggregator serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelStep {
    /// The model that the delta is added to.
    pub from: ModelDigest,
    /// The delta (see `medinet_update::apply_model_delta`).
    pub delta: BlobManifest,
}

/// What a round is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RoundKind {
    /// Sites train from the base model and send updates.
    Train,
    /// Sites measure the base model, which is a candidate for release, and send metrics.
    Evaluate,
}

/// The plan of a round, announced to everyone; a site checks it against its own policy before anything starts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoundPlan {
    /// The task, its network and preprocessing.
    pub spec: TaskSpec,
    /// The round's number within the task.
    pub round: RoundNumber,
    /// What the round is for.
    pub kind: RoundKind,
    /// The model to start from, or to measure.
    pub base: ModelRef,
    /// Ways to the base model for a site that has an earlier one: each step leads to where the next one starts, the last to the base. Oldest first,
    /// at most [`MAX_MODEL_STEPS`], together shorter than the base's parameters; empty where there are none.
    #[serde(default)]
    pub steps: Vec<ModelStep>,
    /// The training round that made it; `None` for a task's first model.
    pub made_by: Option<MakingRound>,
    /// How sites train. With privacy: what the round costs each site that takes part, before it says whether it does.
    pub training: TrainingPlan,
    /// What all private rounds of the task that were announced so far, this one included, cost together by their plans; `None` before the first.
    #[serde(default)]
    pub privacy_total: Option<PrivacyTotal>,
    /// How updates are encoded and become one.
    pub aggregation: Aggregation,
    /// The round aggregates only with at least this many sites.
    pub min_sites: u32,
    /// The round takes no more than this many sites.
    pub max_sites: u32,
    /// When the round opened, by the aggregator's clock.
    pub opened_at: UnixMillis,
    /// Updates after this moment are refused, by the aggregator's clock.
    pub deadline: UnixMillis,
}

/// Broadcast, retained, signed by the aggregator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(clippy::large_enum_variant, reason = "decoded one at a time and moved at once")]
pub enum FromAggregatorToAll {
    /// A round is open.
    Announce(RoundPlan),
    /// No round of this task is open.
    Idle {
        /// The task.
        task: TaskId,
    },
    /// A model has been released.
    Release(ModelRelease),
    /// The newest ledger checkpoint: a signed note (C2SP tlog-checkpoint), text.
    Checkpoint(String),
}

/// The round that made a model, and whose updates are in it. A site learns from it that its update counted, and so what error
/// feedback is to repay, also where the word that said so at once was lost or late.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MakingRound {
    /// The round.
    pub round: RoundNumber,
    /// The sites, in order.
    pub sites: Vec<SiteId>,
}

/// A released model with everything that lets a site run it without trusting the sender.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelRelease {
    /// The task, its network and preprocessing.
    pub spec: TaskSpec,
    /// The model.
    pub model: ModelRef,
    /// The model bundle: ONNX graph, manifest, ledger record, checkpoint and inclusion proof in one blob
    /// (see `medinet_ledger::bundle`).
    pub bundle: BlobManifest,
}

/// From a site to the aggregator, signed by the site.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum FromSite {
    /// The site registers a data set for a task: digest and counts, no data.
    RegisterDataset(DatasetRegistration),
    /// The site takes part in the round.
    Join {
        /// The task.
        task: TaskId,
        /// The round.
        round: RoundNumber,
    },
    /// The site's policy refuses the round.
    Decline {
        /// The task.
        task: TaskId,
        /// The round.
        round: RoundNumber,
        /// Why, for the operator; at most [`MAX_REASON_CHARS`].
        reason: String,
    },
    /// The site's update is ready to be pulled.
    OfferUpdate(UpdateOffer),
    /// The site's measurement of a candidate model.
    Evaluation {
        /// The task.
        task: TaskId,
        /// The round.
        round: RoundNumber,
        /// What was measured; `None` when the site's policy keeps metrics at the site.
        metrics: Option<SiteMetrics>,
        /// What the site makes of it, signed apart from this message, so that others can be shown it. A site whose metrics stay at
        /// home votes too.
        vote: Option<SignedVote>,
    },
    /// The site asks for chunks of a blob that the aggregator serves.
    Want(BlobWant),
    /// The site asks for the newest checkpoint of the ledger, with proof that it continues the one that it has seen.
    WantCheckpoint {
        /// Entries in the checkpoint that the site has seen; 0 when none.
        seen: u64,
    },
    /// A word in a round with secure aggregation.
    Secure {
        /// The task.
        task: TaskId,
        /// The round.
        round: RoundNumber,
        /// The word.
        step: SiteStep,
    },
}

/// From the aggregator to one site, signed by the aggregator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ToSite {
    /// The data set is on the ledger.
    DatasetRegistered {
        /// The manifest's digest.
        manifest: DatasetDigest,
        /// Leaf hash of its record.
        record: RecordDigest,
    },
    /// The aggregator asks for chunks of an update that the site offered.
    Want(BlobWant),
    /// The round has all it needs from the site.
    Accepted {
        /// The task.
        task: TaskId,
        /// The round.
        round: RoundNumber,
    },
    /// What the site sent does not count, and why.
    Refused {
        /// The task.
        task: TaskId,
        /// The round.
        round: RoundNumber,
        /// The reason.
        reason: RefusalReason,
    },
    /// A word in a round with secure aggregation.
    Secure {
        /// The task.
        task: TaskId,
        /// The round.
        round: RoundNumber,
        /// The word.
        step: AggregatorStep,
    },
    /// The ledger's newest checkpoint.
    Checkpoint {
        /// The signed note.
        note: String,
        /// Entries in the checkpoint that the site has seen, by its own word.
        seen: u64,
        /// The consistency proof from there (RFC 9162, section 2.1.4); empty where there is none.
        proof: Vec<Digest>,
    },
}

/// Why the aggregator refuses a site's contribution.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum RefusalReason {
    /// No such round is open: it is over, or was never announced.
    #[error("round is not open (the open one is {open:?}): fetch the newest announcement")]
    NotOpen {
        /// The open round, if any.
        open: Option<RoundNumber>,
    },
    /// It came after the deadline.
    #[error("came {late_ms} ms after the deadline")]
    Late {
        /// How late, in milliseconds.
        late_ms: u64,
    },
    /// The round has as many sites as it takes.
    #[error("the round is full")]
    Full,
    /// It starts from another model.
    #[error("starts from model {got}, the round's base is {expected}")]
    OtherBase {
        /// The round's base model.
        expected: ModelDigest,
        /// The contribution's.
        got: ModelDigest,
    },
    /// The update breaks the plan: wrong length, bits, norm or framing.
    #[error("the update breaks the round's plan: {0}")]
    Malformed(String),
    /// The site is not a member of the federation.
    #[error("the site is not a member of this federation")]
    NotMember,
}

/// A data set that a site holds for a task: what goes on the ledger, not the data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetRegistration {
    /// The task.
    pub task: TaskId,
    /// Digest of the site's data-set manifest, which stays at the site.
    pub manifest: DatasetDigest,
    /// Images per class, in the order of the task's classes, over all splits; rounded down to tens, so that the
    /// arrival of one patient cannot be read from two registrations.
    pub images_per_class: Vec<u64>,
}

/// An update is ready to be pulled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UpdateOffer {
    /// The task.
    pub task: TaskId,
    /// The round.
    pub round: RoundNumber,
    /// The model it starts from.
    pub base: ModelDigest,
    /// The sealed update.
    pub update: BlobManifest,
    /// Training images behind it, in private rounds the site's number of patients: the weight in the average.
    pub examples: u64,
    /// What the site measured of the base model on its validation split, where its policy lets metrics leave.
    pub base_metrics: Option<SiteMetrics>,
    /// What the site has spent of its privacy budget for the task, this round included; none until a private round was charged.
    pub privacy: Option<PrivacyReport>,
}

/// The longest reason that a site gives for declining a round, in characters.
pub const MAX_REASON_CHARS: usize = 500;

/// A reason as it may stand in a status, a log or the registry: its first [`MAX_REASON_CHARS`] characters that are neither control characters nor
/// marks that nobody sees (Unicode's Default_Ignorable_Code_Point, and line and annotation marks), such as those that turn the direction of writing.
#[must_use]
pub fn clean_reason(reason: &str) -> String {
    let unseen = |c: char| {
        matches!(
            c,
            '\u{AD}'
                | '\u{34F}'
                | '\u{61C}'
                | '\u{115F}'..='\u{1160}'
                | '\u{17B4}'..='\u{17B5}'
                | '\u{180B}'..='\u{180F}'
                | '\u{200B}'..='\u{200F}'
                | '\u{2028}'..='\u{202E}'
                | '\u{2060}'..='\u{206F}'
                | '\u{3164}'
                | '\u{FE00}'..='\u{FE0F}'
                | '\u{FEFF}'
                | '\u{FFA0}'
                | '\u{FFF0}'..='\u{FFFB}'
                | '\u{1BCA0}'..='\u{1BCA3}'
                | '\u{1D173}'..='\u{1D17A}'
                | '\u{E0000}'..='\u{E0FFF}'
        )
    };
    reason.chars().filter(|&c| !c.is_control() && !unseen(c)).take(MAX_REASON_CHARS).collect()
}

/// What a site measured on its validation split.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SiteMetrics {
    /// Images measured.
    pub images: u64,
    /// Area under the ROC curve (macro average for more than two classes), 0 to 1; `None` when one class is absent.
    pub auroc: Option<f64>,
    /// Fraction classified rightly at threshold one half (largest logit), 0 to 1.
    pub accuracy: f64,
    /// Mean cross entropy, in nats.
    pub loss: f64,
    /// Expected calibration error with 15 bins, 0 to 1.
    pub calibration_error: f64,
}

/// A site's state on its retained status topic: plain JSON that operators and dashboards read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SiteStatus {
    /// `online` or `offline` (the last will).
    pub state: PresenceState,
    /// Program version.
    pub version: String,
    /// What the site is doing.
    pub activity: Activity,
    /// Why it declined the open round, as [`clean_reason`] makes it; none once it takes part in one, or none is open.
    #[serde(default)]
    pub declined: Option<String>,
    /// The round it is about, 0 when none.
    pub round: RoundNumber,
    /// Progress of the activity, 0 to 1.
    pub progress: f32,
    /// Instances ingested from the PACS since installation.
    pub instances: u64,
    /// Objects in quarantine.
    pub quarantined: u64,
    /// Bytes sent since the program started.
    pub sent_bytes: u64,
    /// Bytes received since the program started.
    pub received_bytes: u64,
    /// What the site has spent of its privacy budget for the task, and its limit; none until a private round was charged.
    #[serde(default)]
    pub privacy: Option<PrivacyReport>,
    /// When, by the site's clock.
    pub at: UnixMillis,
}

/// Whether a party is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PresenceState {
    /// Connected.
    Online,
    /// Gone; said by itself or by its last will.
    Offline,
}

/// What a site is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activity {
    /// Nothing.
    Idle,
    /// Pulling from the PACS and de-identifying.
    Ingesting,
    /// Fetching a model.
    Fetching,
    /// Training.
    Training,
    /// Measuring a candidate.
    Evaluating,
    /// Sending an update.
    Sending,
    /// In a session of secure aggregation, or waiting for one.
    Aggregating,
    /// It has joined a round and waits for the hours in which its policy lets it work.
    OutsideHours,
    /// The site's policy refused the open round.
    Declined,
}

/// What the aggregator does about a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TaskStage {
    /// It has no task, or has not begun it.
    #[default]
    Idle,
    /// After a restart it sums again what it had.
    Rebuilding,
    /// Sites train.
    Training,
    /// A session of secure aggregation is under way.
    Aggregating,
    /// Sites measure a candidate.
    Evaluating,
    /// It waits for the operator; its log says why.
    Paused,
    /// All rounds are over.
    Finished,
}

/// Declined rounds that an aggregator's status tells of at most.
pub const MAX_STATUS_DECLINES: usize = 16;

/// Sites' privacy budgets that an aggregator's status tells of at most.
pub const MAX_STATUS_BUDGETS: usize = 64;

/// That a site declined a round.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteDecline {
    /// The site.
    pub site: SiteId,
    /// The round.
    pub round: RoundNumber,
    /// Why, as [`clean_reason`] makes it of the site's own words.
    pub reason: String,
}

/// What a site says of its privacy budget.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SitePrivacy {
    /// The site.
    pub site: SiteId,
    /// The newest round of training with a contribution of the site that counts.
    pub round: RoundNumber,
    /// What it said with it.
    pub report: PrivacyReport,
}

/// The aggregator's state on its retained status topic, plain JSON. Every member of the federation may read it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AggregatorStatus {
    /// `online` or `offline` (the last will).
    pub state: PresenceState,
    /// Program version.
    pub version: String,
    /// The task that is being worked on.
    pub task: Option<TaskId>,
    /// What the task is at.
    pub stage: TaskStage,
    /// The open round, 0 when none.
    pub round: RoundNumber,
    /// Rounds planned.
    pub rounds: u32,
    /// Sites that joined the open round.
    pub joined: u32,
    /// Updates or evaluations complete.
    pub complete: u32,
    /// Median AUROC that sites reported of the newest measured model.
    pub auroc: Option<f64>,
    /// Whether all planned rounds are over and the model is released.
    pub finished: bool,
    /// Which sites declined a round of the task last and why, each site once, the newest last; at most [`MAX_STATUS_DECLINES`].
    #[serde(default)]
    pub declines: Vec<SiteDecline>,
    /// What sites have spent of their privacy budgets for the task, by site; of more than [`MAX_STATUS_BUDGETS`] those that have spent the largest share
    /// of their limit.
    #[serde(default)]
    pub privacy: Vec<SitePrivacy>,
    /// What all private rounds of the task that were announced so far cost together by their plans, as the newest announcement says it.
    #[serde(default)]
    pub privacy_total: Option<PrivacyTotal>,
    /// When, by the aggregator's clock.
    pub at: UnixMillis,
}
