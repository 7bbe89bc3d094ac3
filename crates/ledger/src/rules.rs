//! The rules: which record may follow which. The same code runs in the embedded ledger, in every verifier, and in a
//! contract; a sequence of records gives the same [`LedgerState::state_hash`] in all of them.

use crate::record::{Participant, Record, RecordBody, ReportedMetrics, RoundKind, SiteReport};
use crate::vote::VoteTally;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
// thiserror's derive names `std` as soon as any crate of the build has its `std` feature on; `core` has all that it uses.
#[cfg(not(feature = "std"))]
#[allow(unused_imports, reason = "not named when thiserror is built without `std`")]
use core as std;
use medinet_types::{
    DatasetDigest, Digest, ModelDigest, ModelVersion, RoundNumber, SiteId, TaskId, UnixMillis,
};
use serde::{Deserialize, Serialize};

/// What the records so far add up to.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LedgerState {
    records: u64,
    last_at: UnixMillis,
    tasks: BTreeMap<TaskId, TaskState>,
    datasets: BTreeMap<(TaskId, SiteId), Dataset>,
}

/// A task on the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskState {
    /// Digest of the task's specification.
    pub spec: Digest,
    /// The models by version; version 0 is the initial one.
    pub models: BTreeMap<ModelVersion, ModelState>,
    /// The round that is open.
    pub open: Option<OpenRound>,
    /// The newest round's number, 0 before the first.
    pub last_round: RoundNumber,
    /// The version released last.
    pub released: Option<ModelVersion>,
    /// The version that training goes on from: the newest, or the one that it went back to.
    pub trains_from: ModelVersion,
}

/// A model on the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelState {
    /// The model.
    pub digest: ModelDigest,
    /// The round that made it; `None` for the initial model.
    pub round: Option<RoundNumber>,
    /// The version that it was made from; `None` for the initial model.
    pub base: Option<ModelVersion>,
    /// What the newest evaluation said; `None` before the first.
    pub accepted: Option<bool>,
}

/// A round that is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenRound {
    /// Its number.
    pub round: RoundNumber,
    /// What for.
    pub kind: RoundKind,
    /// The model to train from or to measure.
    pub base: ModelVersion,
    /// Least number of sites.
    pub min_sites: u32,
    /// Largest number of sites.
    pub max_sites: u32,
    /// Once the votes are counted: whether they allow the model.
    pub votes_allow: Option<bool>,
}

/// A site's data set on the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dataset {
    /// Digest of its manifest.
    pub manifest: DatasetDigest,
    /// Images per class, rounded down to tens.
    pub images_per_class: Vec<u64>,
}

/// A record that may not follow those before it; whoever appends it is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleViolation {
    /// Time ran backwards.
    #[error("expected a time not before {} ms, got {} ms", last.0, got.0)]
    Time {
        /// The record before.
        last: UnixMillis,
        /// This record.
        got: UnixMillis,
    },
    /// The task has not started.
    #[error("task {0} has not started")]
    UnknownTask(TaskId),
    /// The task started before.
    #[error("task {0} has started before")]
    TaskStartedTwice(TaskId),
    /// The same data set stands there already.
    #[error("site {0} has registered this data set before")]
    DatasetRepeated(SiteId),
    /// Counts that could tell of single patients, or that are none.
    #[error("expected 2 to 64 counts of images per class, each a multiple of ten")]
    DatasetCounts,
    /// A round is open.
    #[error("round {0} is still open")]
    RoundStillOpen(RoundNumber),
    /// Another round, or none, is open.
    #[error("round {got} is not open for this (open: {open:?})")]
    RoundNotOpen {
        /// The round that the record names.
        got: RoundNumber,
        /// The open round.
        open: Option<RoundNumber>,
    },
    /// Round numbers go up.
    #[error("expected a round number above {last}, got {got}")]
    RoundNumber {
        /// The newest round.
        last: RoundNumber,
        /// The record's.
        got: RoundNumber,
    },
    /// The model's version or digest is not the one that the ledger knows.
    #[error("model {digest} is not version {version} of the task on the ledger")]
    UnknownModel {
        /// The version that the record names.
        version: ModelVersion,
        /// The digest that the record names.
        digest: ModelDigest,
    },
    /// The round's base is another model.
    #[error("model {0} is not the base of the open round")]
    OtherBase(ModelDigest),
    /// Training goes on from the newest model, or from the one that it went back to.
    #[error("expected a round that trains from version {expected}, got version {got}")]
    OtherVersion {
        /// The newest version, or the one gone back to.
        expected: ModelVersion,
        /// The record's.
        got: ModelVersion,
    },
    /// Versions go up by one.
    #[error("expected version {expected}, got {got}")]
    Version {
        /// The version that is next.
        expected: ModelVersion,
        /// The record's.
        got: ModelVersion,
    },
    /// Limits on sites contradict each other.
    #[error("expected 1 <= min_sites <= max_sites")]
    SiteLimits,
    /// Too few or too many sites.
    #[error("expected {min} to {max} sites, got {got}")]
    SiteCount {
        /// The round's minimum.
        min: u32,
        /// The round's maximum.
        max: u32,
        /// How many there are.
        got: usize,
    },
    /// Sites are not in order, or one is there twice.
    #[error("expected sites in the order of their names, each once")]
    SiteOrder,
    /// The site has no data set for the task.
    #[error("site {0} has registered no data set for the task")]
    NoDataset(SiteId),
    /// Fewer examples than sites.
    #[error("expected at least one example per site")]
    Examples,
    /// A reported figure is out of its range.
    #[error("site {0} reports a figure that is out of range")]
    Metrics(SiteId),
    /// A model is accepted though nobody measured it.
    #[error("expected at least one site's metrics for a model that is accepted")]
    AcceptedUnmeasured,
    /// Released before sites measured and accepted it.
    #[error("version {0} has not been evaluated and accepted")]
    NotAccepted(ModelVersion),
    /// The initial model is no round's result.
    #[error("version {0} is not the result of a round")]
    NotARoundResult(ModelVersion),
    /// A round's votes are counted once.
    #[error("the votes of round {0} have been counted before")]
    VotesTwice(RoundNumber),
    /// The sites have not accepted it.
    #[error("a model cannot be accepted against the sites' votes")]
    AcceptedAgainstVotes,
    /// Training goes back only right after the newest model was rejected.
    #[error("version {newest} has not just been rejected in round {got}")]
    NotRejected {
        /// The newest version.
        newest: ModelVersion,
        /// The round that the record names.
        got: RoundNumber,
    },
    /// It is the release already.
    #[error("version {0} is released already")]
    ReleasedTwice(ModelVersion),
    /// Made for another specification of the task.
    #[error("the release is for another specification than the task's")]
    OtherSpec,
    /// The digest of an ONNX graph that is empty.
    #[error("expected an ONNX graph of at least one byte")]
    EmptyModel,
}

impl LedgerState {
    /// Before the first record.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Records applied so far.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.records
    }

    /// The newest record's time; the next record must not be before it.
    #[must_use]
    pub fn last_at(&self) -> UnixMillis {
        self.last_at
    }

    /// A task, if it has started.
    #[must_use]
    pub fn task(&self, task: &TaskId) -> Option<&TaskState> {
        self.tasks.get(task)
    }

    /// All tasks that have started.
    pub fn tasks(&self) -> impl Iterator<Item = (&TaskId, &TaskState)> {
        self.tasks.iter()
    }

    /// The data set that a site registered last for a task.
    #[must_use]
    pub fn dataset(&self, task: &TaskId, site: &SiteId) -> Option<&Dataset> {
        self.datasets.get(&(task.clone(), site.clone()))
    }

    /// SHA-256 over a domain tag and the state in postcard (maps in key order): the same wherever the same records
    /// were applied.
    #[must_use]
    pub fn state_hash(&self) -> Digest {
        // Maps have known lengths and nothing else can fail to encode.
        let bytes = postcard::to_allocvec(self).expect("the state always encodes");
        Digest::of_parts(&[b"medinet ledger state 2", &bytes])
    }

    /// Applies a record, or leaves the state as it is.
    ///
    /// # Errors
    /// Says which rule the record breaks.
    pub fn apply(&mut self, record: &Record) -> Result<(), RuleViolation> {
        if record.at < self.last_at {
            return Err(RuleViolation::Time { last: self.last_at, got: record.at });
        }
        // Each arm checks everything before it changes anything.
        match &record.body {
            RecordBody::TaskStarted { task, spec, model } => self.start_task(task, *spec, *model)?,
            RecordBody::DatasetRegistered { task, site, manifest, images_per_class, .. } => {
                self.register(task, site, *manifest, images_per_class)?;
            }
            RecordBody::RoundOpened { task, round, kind, base, version, min_sites, max_sites, .. } => {
                let open = OpenRound {
                    round: *round,
                    kind: *kind,
                    base: *version,
                    min_sites: *min_sites,
                    max_sites: *max_sites,
                    votes_allow: None,
                };
                self.started(task)?.open_round(open, base)?;
            }
            RecordBody::RoundClosed { task, round, base, result, version, participants, examples } => {
                self.check_participants(task, participants, *examples)?;
                self.started(task)?.close_round(*round, base, *result, *version, participants.len())?;
            }
            RecordBody::RoundAbandoned { task, round } => {
                let task = self.started(task)?;
                task.opened(*round, None)?;
                task.open = None;
            }
            RecordBody::ModelEvaluated { task, round, model, reports, accepted } => {
                self.check_reports(task, reports, *accepted)?;
                self.started(task)?.evaluate(*round, model, reports.len(), *accepted)?;
            }
            RecordBody::ModelReleased { task, model, version, spec, onnx_bytes, .. } => {
                self.started(task)?.release(*model, *version, spec, *onnx_bytes)?;
            }
            RecordBody::VotesCounted { task, round, model, quorum, votes } => {
                self.check_sites(task, votes.iter().map(|vote| &vote.site))?;
                let tally = VoteTally::of(votes.iter().map(|vote| vote.ballot));
                let allow = quorum.is_none_or(|quorum| quorum.accepts(tally));
                self.started(task)?.count_votes(*round, model, votes.len(), allow)?;
            }
            RecordBody::WentBack { task, round, model, version } => {
                self.started(task)?.go_back(*round, model, *version)?;
            }
        }
        self.records += 1;
        self.last_at = record.at;
        Ok(())
    }

    fn started(&mut self, task: &TaskId) -> Result<&mut TaskState, RuleViolation> {
        self.tasks.get_mut(task).ok_or_else(|| RuleViolation::UnknownTask(task.clone()))
    }

    fn start_task(&mut self, task: &TaskId, spec: Digest, digest: ModelDigest) -> Result<(), RuleViolation> {
        if self.tasks.contains_key(task) {
            return Err(RuleViolation::TaskStartedTwice(task.clone()));
        }
        let initial = ModelState { digest, round: None, base: None, accepted: None };
        let state = TaskState {
            spec,
            models: BTreeMap::from([(ModelVersion(0), initial)]),
            open: None,
            last_round: RoundNumber(0),
            released: None,
            trains_from: ModelVersion(0),
        };
        self.tasks.insert(task.clone(), state);
        Ok(())
    }

    fn register(
        &mut self,
        task: &TaskId,
        site: &SiteId,
        manifest: DatasetDigest,
        images_per_class: &[u64],
    ) -> Result<(), RuleViolation> {
        if !(2..=64).contains(&images_per_class.len()) || images_per_class.iter().any(|n| n % 10 != 0) {
            return Err(RuleViolation::DatasetCounts);
        }
        let key = (task.clone(), site.clone());
        if self.datasets.get(&key).is_some_and(|old| old.manifest == manifest) {
            return Err(RuleViolation::DatasetRepeated(site.clone()));
        }
        self.datasets.insert(key, Dataset { manifest, images_per_class: images_per_class.to_vec() });
        Ok(())
    }

    fn check_sites<'a>(
        &self,
        task: &TaskId,
        sites: impl Iterator<Item = &'a SiteId>,
    ) -> Result<(), RuleViolation> {
        let mut before: Option<&SiteId> = None;
        for site in sites {
            if before.is_some_and(|before| before >= site) {
                return Err(RuleViolation::SiteOrder);
            }
            if self.dataset(task, site).is_none() {
                return Err(RuleViolation::NoDataset(site.clone()));
            }
            before = Some(site);
        }
        Ok(())
    }

    fn check_participants(
        &self,
        task: &TaskId,
        participants: &[Participant],
        examples: u64,
    ) -> Result<(), RuleViolation> {
        self.check_sites(task, participants.iter().map(|p| &p.site))?;
        if examples < participants.len() as u64 { Err(RuleViolation::Examples) } else { Ok(()) }
    }

    fn check_reports(
        &self,
        task: &TaskId,
        reports: &[SiteReport],
        accepted: bool,
    ) -> Result<(), RuleViolation> {
        self.check_sites(task, reports.iter().map(|r| &r.site))?;
        for report in reports {
            if report.metrics.is_some_and(|metrics| !in_range(&metrics)) {
                return Err(RuleViolation::Metrics(report.site.clone()));
            }
        }
        if accepted && reports.iter().all(|r| r.metrics.is_none()) {
            return Err(RuleViolation::AcceptedUnmeasured);
        }
        Ok(())
    }
}

impl TaskState {
    /// The newest model's version.
    #[must_use]
    pub fn newest(&self) -> ModelVersion {
        // Version 0 is there from the start.
        self.models.last_key_value().map_or(ModelVersion(0), |(version, _)| *version)
    }

    fn model(&self, version: ModelVersion, digest: &ModelDigest) -> Result<&ModelState, RuleViolation> {
        let unknown = RuleViolation::UnknownModel { version, digest: *digest };
        self.models.get(&version).filter(|model| model.digest == *digest).ok_or(unknown)
    }

    fn opened(&self, round: RoundNumber, kind: Option<RoundKind>) -> Result<&OpenRound, RuleViolation> {
        let open = self.open.as_ref();
        open.filter(|open| open.round == round && kind.is_none_or(|kind| kind == open.kind))
            .ok_or(RuleViolation::RoundNotOpen { got: round, open: open.map(|open| open.round) })
    }

    fn open_round(&mut self, open: OpenRound, base: &ModelDigest) -> Result<(), RuleViolation> {
        if let Some(still) = &self.open {
            return Err(RuleViolation::RoundStillOpen(still.round));
        }
        if open.round <= self.last_round {
            return Err(RuleViolation::RoundNumber { last: self.last_round, got: open.round });
        }
        if !(1..=open.max_sites).contains(&open.min_sites) {
            return Err(RuleViolation::SiteLimits);
        }
        self.model(open.base, base)?;
        if open.kind == RoundKind::Train && open.base != self.trains_from {
            return Err(RuleViolation::OtherVersion { expected: self.trains_from, got: open.base });
        }
        self.last_round = open.round;
        self.open = Some(open);
        Ok(())
    }

    fn close_round(
        &mut self,
        round: RoundNumber,
        base: &ModelDigest,
        result: ModelDigest,
        version: ModelVersion,
        sites: usize,
    ) -> Result<(), RuleViolation> {
        let open = self.opened(round, Some(RoundKind::Train))?;
        let from = open.base;
        self.model(from, base).map_err(|_| RuleViolation::OtherBase(*base))?;
        check_count(open, sites)?;
        let expected = ModelVersion(self.newest().0.saturating_add(1));
        if version != expected {
            return Err(RuleViolation::Version { expected, got: version });
        }
        let model = ModelState { digest: result, round: Some(round), base: Some(from), accepted: None };
        self.models.insert(version, model);
        self.trains_from = version;
        self.open = None;
        Ok(())
    }

    /// To the newest model that was accepted and no other: what the sites have rejected is not chosen among.
    fn go_back(
        &mut self,
        round: RoundNumber,
        digest: &ModelDigest,
        version: ModelVersion,
    ) -> Result<(), RuleViolation> {
        if let Some(still) = &self.open {
            return Err(RuleViolation::RoundStillOpen(still.round));
        }
        let newest = self.newest();
        let rejected = self.models.get(&newest).is_some_and(|model| model.accepted == Some(false));
        if !rejected || round != self.last_round || self.trains_from != newest {
            return Err(RuleViolation::NotRejected { newest, got: round });
        }
        self.model(version, digest)?;
        let accepted = self.models.iter().rfind(|(_, model)| model.accepted == Some(true));
        if accepted.is_none_or(|(accepted, _)| *accepted != version) {
            return Err(RuleViolation::NotAccepted(version));
        }
        self.trains_from = version;
        Ok(())
    }

    fn evaluate(
        &mut self,
        round: RoundNumber,
        model: &ModelDigest,
        sites: usize,
        accepted: bool,
    ) -> Result<(), RuleViolation> {
        let open = self.opened(round, Some(RoundKind::Evaluate))?;
        let version = open.base;
        self.model(version, model).map_err(|_| RuleViolation::OtherBase(*model))?;
        check_count(open, sites)?;
        if accepted && open.votes_allow == Some(false) {
            return Err(RuleViolation::AcceptedAgainstVotes);
        }
        if let Some(model) = self.models.get_mut(&version) {
            model.accepted = Some(accepted);
        }
        self.open = None;
        Ok(())
    }

    fn count_votes(
        &mut self,
        round: RoundNumber,
        model: &ModelDigest,
        votes: usize,
        allow: bool,
    ) -> Result<(), RuleViolation> {
        let open = self.opened(round, Some(RoundKind::Evaluate))?;
        self.model(open.base, model).map_err(|_| RuleViolation::OtherBase(*model))?;
        if votes as u64 > u64::from(open.max_sites) {
            return Err(RuleViolation::SiteCount { min: 0, max: open.max_sites, got: votes });
        }
        if open.votes_allow.is_some() {
            return Err(RuleViolation::VotesTwice(round));
        }
        if let Some(open) = &mut self.open {
            open.votes_allow = Some(allow);
        }
        Ok(())
    }

    fn release(
        &mut self,
        digest: ModelDigest,
        version: ModelVersion,
        spec: &Digest,
        onnx_bytes: u64,
    ) -> Result<(), RuleViolation> {
        let model = self.model(version, &digest)?;
        if model.round.is_none() {
            return Err(RuleViolation::NotARoundResult(version));
        }
        if model.accepted != Some(true) {
            return Err(RuleViolation::NotAccepted(version));
        }
        if self.released == Some(version) {
            return Err(RuleViolation::ReleasedTwice(version));
        }
        if *spec != self.spec {
            return Err(RuleViolation::OtherSpec);
        }
        if onnx_bytes == 0 {
            return Err(RuleViolation::EmptyModel);
        }
        self.released = Some(version);
        Ok(())
    }
}

fn check_count(open: &OpenRound, got: usize) -> Result<(), RuleViolation> {
    let (min, max) = (open.min_sites, open.max_sites);
    if (u64::from(min)..=u64::from(max)).contains(&(got as u64)) {
        Ok(())
    } else {
        Err(RuleViolation::SiteCount { min, max, got })
    }
}

fn in_range(metrics: &ReportedMetrics) -> bool {
    let fraction = |value: f64| (0.0..=1.0).contains(&value);
    metrics.auroc.is_none_or(fraction)
        && fraction(metrics.accuracy)
        && fraction(metrics.calibration_error)
        && metrics.loss >= 0.0
        && metrics.loss.is_finite()
}
