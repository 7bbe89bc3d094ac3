//! What happened, for the ledger and the registry; the host maps each onto its ledger's record.

use medinet_privacy::PrivacyReport;
use medinet_types::{BlobDigest, ModelDigest, RoundNumber, SiteId, UnixMillis};
use medinet_wire::message::{ModelRef, RefusalReason, RoundPlan, SiteMetrics};
use medinet_wire::vote::{Ballot, Quorum, SignedVote, VoteTally};
use serde::{Deserialize, Serialize};

/// One thing that happened in a task, in order; holds no patient data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum RoundRecord {
    /// The task began with this model.
    TaskStarted {
        /// The initial model, version 0.
        model: ModelRef,
    },
    /// A round was opened.
    RoundOpened {
        /// The plan as it was announced; an extension later moves its deadline.
        plan: Box<RoundPlan>,
    },
    /// A site takes part.
    SiteJoined {
        /// The round.
        round: RoundNumber,
        /// The site.
        site: SiteId,
    },
    /// A site's policy refuses the round; again where it has another reason than before.
    SiteDeclined {
        /// The round.
        round: RoundNumber,
        /// The site.
        site: SiteId,
        /// What it says, for the operator, at most 500 characters. Free text of the site: it does not belong on a public ledger.
        reason: String,
    },
    /// A site's update counts.
    UpdateAccepted {
        /// The round.
        round: RoundNumber,
        /// The site.
        site: SiteId,
        /// The sealed update.
        update: BlobDigest,
        /// Its length in bytes.
        update_bytes: u64,
        /// Training images behind it.
        examples: u64,
        /// What the site measured of the base model, where its policy lets metrics leave.
        base_metrics: Option<SiteMetrics>,
        /// What the site says that it has spent of its privacy budget; none where it was never charged.
        #[serde(default)]
        privacy: Option<PrivacyReport>,
    },
    /// A site's contribution is refused for this round and the site is at fault.
    ContributionRefused {
        /// The round.
        round: RoundNumber,
        /// The site.
        site: SiteId,
        /// Why.
        reason: RefusalReason,
    },
    /// An update that had counted is no longer in the aggregator's store; the site is asked again.
    UpdateLost {
        /// The round.
        round: RoundNumber,
        /// The site.
        site: SiteId,
        /// The sealed update.
        update: BlobDigest,
    },
    /// A site's measurement of a candidate arrived.
    Evaluated {
        /// The round.
        round: RoundNumber,
        /// The site.
        site: SiteId,
        /// The candidate.
        model: ModelDigest,
        /// What was measured; `None` when the site's policy keeps it.
        metrics: Option<SiteMetrics>,
        /// What the site makes of it; `None` when it does not vote.
        #[serde(default)]
        ballot: Option<Ballot>,
    },
    /// The sites' votes on a candidate were counted; [`RoundRecord::ModelJudged`] follows in the same commit.
    VotesCounted {
        /// The round.
        round: RoundNumber,
        /// The candidate.
        model: ModelDigest,
        /// What the task asks for; `None` when votes do not decide.
        quorum: Option<Quorum>,
        /// The votes, by site.
        votes: Vec<(SiteId, SignedVote)>,
    },
    /// A round had too few contributions at its deadline and stays open.
    RoundExtended {
        /// The round.
        round: RoundNumber,
        /// Why.
        reason: PauseReason,
        /// The new deadline.
        deadline: UnixMillis,
    },
    /// A training round closed with a new model.
    ModelAggregated {
        /// The round.
        round: RoundNumber,
        /// The model that its updates started from.
        base: ModelDigest,
        /// The new model.
        model: ModelRef,
        /// Whose updates it is the mean of, by site.
        contributions: Vec<Contribution>,
        /// Training images behind it, all sites together.
        #[serde(default)]
        examples: u64,
    },
    /// A session of secure aggregation begins.
    SessionBegan {
        /// The round.
        round: RoundNumber,
        /// The attempt, from 1.
        attempt: u32,
        /// The group, in rounds with groups.
        #[serde(default)]
        group: Option<u16>,
        /// Who is asked to take part.
        sites: Vec<SiteId>,
    },
    /// A session of secure aggregation ended without a sum; nothing of it is used again.
    SessionFailed {
        /// The round.
        round: RoundNumber,
        /// The attempt.
        attempt: u32,
        /// The group, in rounds with groups; `None` when all of the attempt failed, with the sums that were kept.
        #[serde(default)]
        group: Option<u16>,
        /// Why.
        reason: String,
        /// Sites at fault, which the round goes on without.
        excluded: Vec<SiteId>,
    },
    /// A group's sum was opened and is kept until the round closes: its sites enter no other session of the round.
    GroupSummed {
        /// The round.
        round: RoundNumber,
        /// The attempt.
        attempt: u32,
        /// The group.
        group: u16,
        /// Who is in the sum.
        sites: Vec<SiteId>,
        /// Training images behind it, as the sites say.
        examples: u64,
    },
    /// A sum opened to a mean that is longer than honest sites make one, and was scaled down: somebody in it did not follow the codec, and the
    /// masks do not tell who.
    MeanShortened {
        /// The round.
        round: RoundNumber,
        /// The attempt.
        attempt: u32,
        /// The group, in rounds with groups.
        group: Option<u16>,
        /// The mean's L2 norm before.
        norm: f32,
        /// The largest that honest sites reach, which it has now.
        limit: f32,
    },
    /// A site's masked update is in a sum that a model was made of.
    InputCounted {
        /// The round.
        round: RoundNumber,
        /// The site.
        site: SiteId,
        /// The masked update.
        input: BlobDigest,
        /// Its length in bytes.
        input_bytes: u64,
        /// What the site measured of the base model, where its policy lets metrics leave.
        base_metrics: Option<SiteMetrics>,
        /// What the site says that it has spent of its privacy budget; none where it was never charged.
        #[serde(default)]
        privacy: Option<PrivacyReport>,
    },
    /// A round ended without a result and is not taken up again.
    RoundAbandoned {
        /// The round.
        round: RoundNumber,
        /// Why.
        reason: PauseReason,
    },
    /// An evaluation round closed.
    ModelJudged {
        /// The round.
        round: RoundNumber,
        /// The candidate and what became of it.
        verdict: Verdict,
        /// What each site said, by site.
        measurements: Vec<Measured>,
    },
    /// Training goes back to the newest release, as the sites have rejected what was made of it.
    WentBack {
        /// The evaluation round.
        round: RoundNumber,
        /// The rejected candidate.
        from: ModelRef,
        /// The model that training goes on from.
        to: ModelRef,
    },
    /// The task waits for the operator.
    TaskPaused {
        /// The open round.
        round: RoundNumber,
        /// Why.
        reason: PauseReason,
    },
    /// The operator started it again.
    TaskResumed {
        /// The open round.
        round: RoundNumber,
    },
    /// All planned rounds are over.
    TaskFinished {
        /// The newest released model, if any passed the rule.
        released: Option<ModelRef>,
    },
}

/// A site's part in a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contribution {
    /// The site.
    pub site: SiteId,
    /// Its training images, in a private round its number of patients: its weight in the mean. `None` where only the sum is known.
    pub examples: Option<u64>,
    /// Its update, sealed or under masks.
    pub update: BlobDigest,
}

/// What a site said about a candidate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// The site.
    pub site: SiteId,
    /// What it measured; `None` when its policy keeps that at the site.
    pub metrics: Option<SiteMetrics>,
}

/// Why a round is extended or a task waits for the operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum PauseReason {
    /// Sites did not come.
    #[error(
        "round {round} needs contributions of {needed} sites and had {got} at its deadline: \
         see which sites are offline or decline, then start the task again"
    )]
    TooFewSites {
        /// The round.
        round: RoundNumber,
        /// The minimum.
        needed: u32,
        /// What had come.
        got: u32,
    },
    /// Secure aggregation gave no sum.
    #[error(
        "round {round} had {attempts} attempts at secure aggregation and no sum ({why}): \
         start the task again for a new round on the same model"
    )]
    NoSum {
        /// The round.
        round: RoundNumber,
        /// Sessions that were begun.
        attempts: u32,
        /// Why there is no other, and why the last one failed.
        why: String,
    },
    /// The aggregated model has values that are not finite.
    #[error(
        "round {round} gave a model with values that are not finite: lower the learning rate or the clip norm"
    )]
    Diverged {
        /// The round.
        round: RoundNumber,
    },
}

/// What the sites' measurements say about a candidate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// The candidate.
    pub model: ModelRef,
    /// Median over sites of their AUROC, 0 to 1; `None` when no site could or would say.
    pub median_auroc: Option<f64>,
    /// Sites whose AUROC is in the mean.
    pub reporting: u32,
    /// Sites that measured and whose policy keeps the result.
    pub withheld: u32,
    /// Sites that measured and hold only one class, so that there is no AUROC.
    pub one_class: u32,
    /// The sites' votes.
    #[serde(default)]
    pub votes: VoteTally,
    /// What becomes of it.
    pub outcome: Outcome,
}

/// What becomes of a candidate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Outcome {
    /// It is released.
    Released,
    /// It is not, and the previous release stays.
    Rejected(RejectionReason),
}

/// Why a candidate is not released.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, thiserror::Error)]
pub enum RejectionReason {
    /// Too few sites let their AUROC leave.
    #[error("needs the AUROC of {needed} sites, {got} gave one")]
    TooFewReports {
        /// What the rule asks for.
        needed: u32,
        /// What came.
        got: u32,
    },
    /// Not good enough.
    #[error("median AUROC {got:.4} is below the minimum of {needed:.4}")]
    BelowMinimum {
        /// What the rule asks for.
        needed: f64,
        /// The mean.
        got: f64,
    },
    /// The sites do not take it.
    #[error(
        "needs {} accepting sites and {} of 1,000 of those that decide; {} accept, {} reject, {} abstain",
        quorum.min_accepting, quorum.min_accept_permille, votes.accepting, votes.rejecting, votes.abstaining
    )]
    NoQuorum {
        /// What the rule asks for.
        quorum: Quorum,
        /// What came.
        votes: VoteTally,
    },
    /// Worse than what is in use.
    #[error(
        "the sites' AUROC is {drop:.4} below what they measured of the release in the median, {allowed:.4} is allowed"
    )]
    Regression {
        /// The median over sites of how much lower each measures it.
        drop: f64,
        /// What the rule allows.
        allowed: f64,
    },
}
