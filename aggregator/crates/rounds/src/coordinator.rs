//! The whole of a task: one [`Coordinator`] per task and federation.

use crate::cohort::Tally;
use crate::downlink::Downlink;
use crate::effect::{Commit, Effect, Input, Outbox};
use crate::phase::{Paused, Phase, Suspended, Turn};
use crate::plan::{TaskPlan, TaskPlanError};
use crate::privacy::AnnouncedPrivacy;
use crate::record::{PauseReason, RoundRecord};
use crate::secure::{Dealer, SecureRound, Trust};
use crate::snapshot::{ResumeError, Snapshot, TaskState};
use medinet_model::{TaskSpec, decode_parameters, encode_parameters, model_digest};
use medinet_privacy::PrivacyReport;
use medinet_types::{BlobDigest, Digest, ModelVersion, RoundNumber, SiteId, TaskId, UnixMillis};
use medinet_update::Owed;
use medinet_wire::blob::BlobManifest;
use medinet_wire::envelope::Verifier;
use medinet_wire::message::{FromSite, ModelRef, RefusalReason, SiteDecline, SitePrivacy};
use medinet_wire::privacy::PrivacyTotal;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A task's rounds. See the crate's documentation for the contract with its host.
#[derive(Debug)]
pub struct Coordinator {
    pub(crate) plan: TaskPlan,
    task: TaskState,
    parameters: Vec<f32>,
    released: Option<Vec<f32>>,
    owed: Option<Owed>,
    phase: Phase,
    wake: Option<UnixMillis>,
    trust: Trust,
    dealer: Dealer,
}

/// Where a task stands, for people and dashboards.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// What is going on.
    pub stage: Stage,
    /// The newest round, 0 before the first.
    pub round: RoundNumber,
    /// Rounds in all, evaluation rounds included.
    pub rounds: u32,
    /// Who takes part in the open round.
    pub tally: Tally,
    /// The global model that training goes on from.
    pub model: ModelRef,
    /// The newest release.
    pub released: Option<ModelRef>,
    /// Median AUROC that sites reported of the newest measured model, 0 to 1.
    pub auroc: Option<f64>,
    /// The open round's deadline.
    pub deadline: Option<UnixMillis>,
    /// Which sites declined a round last and why, each once, the newest last.
    pub declines: Vec<SiteDecline>,
    /// What each site said of its privacy budget with its newest contribution that counts, by site.
    pub privacy: Vec<SitePrivacy>,
    /// What the private rounds announced so far cost together by their plans; `None` before the first.
    pub privacy_total: Option<PrivacyTotal>,
}

/// What a task is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    /// Not started.
    Unstarted,
    /// Summing kept updates again after a restart.
    Rebuilding,
    /// Sites train.
    Training,
    /// A session of secure aggregation is under way.
    Aggregating,
    /// Sites measure a candidate.
    Evaluating,
    /// Waits for the operator.
    Paused(PauseReason),
    /// All rounds are over.
    Finished,
}

impl Coordinator {
    /// A task that has not started.
    ///
    /// # Errors
    /// When the plan breaks its rules or gives parameters of another network.
    pub fn new(plan: TaskPlan) -> Result<Self, TaskPlanError> {
        plan.check()?;
        let parameters = plan.initial_parameters()?;
        let model = ModelRef {
            digest: model_digest(&plan.spec.network, &parameters),
            version: ModelVersion(0),
            parameters: BlobManifest::of(&encode_parameters(&parameters)),
        };
        let task = TaskState {
            spec: plan.spec.clone(),
            model,
            trained: ModelVersion(0),
            downlink: Downlink::default(),
            made_by: None,
            clip_norm: None,
            rounds_opened: 0,
            announced: AnnouncedPrivacy::default(),
            without_sum: 0,
            evaluated: None,
            released: None,
            auroc: None,
            previous: None,
            declines: Vec::new(),
            privacy: BTreeMap::new(),
        };
        let (phase, trust, dealer) = (Phase::Unstarted, Trust::default(), Dealer::default());
        Ok(Self { plan, task, parameters, released: None, owed: None, phase, wake: None, trust, dealer })
    }

    /// Continues from the newest durable snapshot; give [`Input::Restarted`] next. `read` gives the contents of the blobs that
    /// [`Snapshot::blobs`] names.
    ///
    /// # Errors
    /// When plan, snapshot and blobs do not belong together.
    pub fn resume(
        plan: TaskPlan,
        snapshot: Snapshot,
        mut read: impl FnMut(BlobDigest) -> Option<Vec<u8>>,
    ) -> Result<Self, ResumeError> {
        plan.check()?;
        let (task, phase) = snapshot.restore();
        if !same_spec(&task.spec, &plan.spec) {
            return Err(ResumeError::OtherSpec { task: task.spec.task });
        }
        let layout = medinet_model::ParameterLayout::of(&plan.spec.network).map_err(TaskPlanError::from)?;
        let mut parameters_of = |model: &ModelRef| {
            let (blob, version) = (model.parameters.digest, model.version);
            let bytes = read(blob).ok_or(ResumeError::Missing { blob, version })?;
            let parameters = decode_parameters(&bytes, layout.len())?;
            let got = model_digest(&task.spec.network, &parameters);
            if got != model.digest {
                return Err(ResumeError::OtherModel { expected: model.digest, got });
            }
            Ok(parameters)
        };
        let parameters = parameters_of(&task.model)?;
        let released = task.released_model().map(&mut parameters_of).transpose()?;
        let owed = match task.downlink.owed() {
            None => None,
            Some(blob) => {
                let bytes = read(blob).filter(|bytes| BlobDigest(Digest::of(bytes)) == blob);
                let owed = bytes.and_then(|bytes| Owed::from_bytes(&bytes, parameters.len()).ok());
                Some(owed.ok_or(ResumeError::Owed { blob })?)
            }
        };
        let (trust, dealer) = (Trust::default(), Dealer::default());
        Ok(Self { plan, task, parameters, released, owed, phase, wake: None, trust, dealer })
    }

    /// Names who verifies sites' signatures inside sessions of secure aggregation. Without it none holds, and such rounds give no sum.
    #[must_use]
    pub fn trusting(self, verifier: Arc<dyn Verifier>) -> Self {
        Self { trust: Trust::in_sites_of(verifier), ..self }
    }

    /// Gives the secret by which sites are dealt out into groups, from the system's randomness and known to nobody else: who knows it
    /// can choose with whom it will be. It need not be the same after a restart. Rounds with groups give no model without it.
    #[must_use]
    pub fn dealing(self, secret: [u8; 32]) -> Self {
        Self { dealer: Dealer::with(secret), ..self }
    }

    /// Reacts to one input at time `now` and says what to do, in order.
    #[must_use = "effects must be carried out, in order"]
    pub fn handle(&mut self, now: UnixMillis, input: Input<'_>) -> Vec<Effect> {
        let mut turn = Turn {
            plan: &self.plan,
            task: &mut self.task,
            parameters: &mut self.parameters,
            released: &mut self.released,
            owed: &mut self.owed,
            now,
            wake: None,
            trust: &self.trust,
            dealer: &self.dealer,
            out: Outbox::default(),
        };
        let mut phase = std::mem::take(&mut self.phase);
        // What is due comes first, so that a message after the deadline finds the round closed. Not after a restart,
        // where sites get time to deliver what they could not.
        if !matches!(input, Input::Restarted) {
            phase = phase.advance(&mut turn);
        }
        phase = match input {
            Input::Tick => phase,
            Input::Start => {
                if matches!(phase, Phase::Unstarted) {
                    turn.begin();
                }
                phase.start(&mut turn)
            }
            Input::Restarted => phase.restarted(&mut turn),
            Input::Site { from, message } => on_site(phase, &mut turn, &from, message),
            Input::UpdateArrived { blob, bytes } => match phase {
                Phase::Rebuilding(rebuilding) => rebuilding.on_update(&mut turn, blob, bytes),
                Phase::Training(mut round) => {
                    round.on_update(&mut turn, blob, bytes);
                    Phase::Training(round)
                }
                Phase::Securing(mut round) => {
                    round.on_input(&mut turn, blob, bytes);
                    Phase::Securing(round)
                }
                other => {
                    turn.discard_stray(&other, blob);
                    other
                }
            },
            Input::UpdateFailed { blob } => match phase {
                Phase::Rebuilding(rebuilding) => rebuilding.on_failed(&mut turn, blob),
                Phase::Training(mut round) => {
                    round.on_failed(&mut turn, blob);
                    Phase::Training(round)
                }
                Phase::Securing(mut round) => {
                    round.on_input_failed(blob);
                    Phase::Securing(round)
                }
                other => other,
            },
        };
        phase = phase.advance(&mut turn);
        let Turn { out, wake, .. } = turn;
        self.phase = phase;
        self.effects(now, out, wake)
    }

    fn effects(&mut self, now: UnixMillis, out: Outbox, wake: Option<UnixMillis>) -> Vec<Effect> {
        let Outbox { before: mut effects, changed, records, after } = out;
        if changed && let Some(snapshot) = Snapshot::of(&self.task, &self.phase) {
            effects.push(Effect::Persist(Commit { snapshot, at: now, records }));
        }
        effects.extend(after);
        if let Some(when) = wake
            && self.wake != Some(when)
        {
            effects.push(Effect::WakeAt(when));
        }
        self.wake = wake;
        effects
    }

    /// The task.
    #[must_use]
    pub fn task(&self) -> &TaskId {
        &self.task.spec.task
    }

    /// The specification that the task began with; the plan's may have its purpose reworded since.
    #[must_use]
    pub fn spec(&self) -> &TaskSpec {
        &self.task.spec
    }

    /// Where the task stands.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let training = |r: &crate::train::TrainRound| (r.open.tally(), r.auroc(), Some(r.open.plan.deadline));
        let evaluating =
            |r: &crate::evaluate::EvaluateRound| (r.open.tally(), r.auroc(), Some(r.open.plan.deadline));
        let securing = |r: &SecureRound| (r.tally(), r.auroc(), Some(r.deadline()));
        let (stage, (tally, auroc, deadline)) = match &self.phase {
            Phase::Unstarted => (Stage::Unstarted, (Tally::default(), None, None)),
            Phase::Rebuilding(r) => (Stage::Rebuilding, training(&r.round)),
            Phase::Training(r) => (Stage::Training, training(r)),
            Phase::Evaluating(r) => (Stage::Evaluating, evaluating(r)),
            Phase::Securing(r) if r.in_session() => (Stage::Aggregating, securing(r)),
            Phase::Securing(r) => (Stage::Training, securing(r)),
            Phase::Paused(Paused { round, reason }) => {
                let (tally, auroc, _) = match round {
                    Suspended::Training(r) => training(r),
                    Suspended::Evaluating(r) => evaluating(r),
                    Suspended::Securing(r) => securing(r),
                    Suspended::Abandoned(_) => (Tally::default(), None, None),
                };
                (Stage::Paused(reason.clone()), (tally, auroc, None))
            }
            Phase::Finished => (Stage::Finished, (Tally::default(), None, None)),
        };
        Progress {
            stage,
            round: RoundNumber(self.task.rounds_opened),
            rounds: self.plan.total_rounds(),
            tally,
            model: self.task.model.clone(),
            released: self.task.released_model().cloned(),
            auroc: auroc.or(self.task.auroc),
            deadline,
            declines: self.task.declines.clone(),
            privacy: self.task.privacy.iter().map(said).collect(),
            privacy_total: self.task.announced.total(),
        }
    }

    /// Blobs that this task still needs, for a host that clears its blob store of what a kill left behind. The
    /// parameters of earlier models are in the registry's care.
    #[must_use]
    pub fn blobs(&self) -> BTreeSet<BlobDigest> {
        let mut blobs: BTreeSet<BlobDigest> = match &self.phase {
            Phase::Rebuilding(rebuilding) => rebuilding.round.blobs().collect(),
            Phase::Training(round) | Phase::Paused(Paused { round: Suspended::Training(round), .. }) => {
                round.blobs().collect()
            }
            Phase::Securing(round) => round.blobs().collect(),
            Phase::Unstarted | Phase::Evaluating(_) | Phase::Paused(_) | Phase::Finished => BTreeSet::new(),
        };
        blobs.extend(self.task.downlink.blobs());
        blobs.insert(self.task.model.parameters.digest);
        blobs.extend(self.task.released_model().map(|model| model.parameters.digest));
        blobs
    }

    /// The parameters of the model that training goes on from, in the layout's order.
    #[must_use]
    pub fn parameters(&self) -> &[f32] {
        &self.parameters
    }
}

fn said((site, &(round, report)): (&SiteId, &(RoundNumber, PrivacyReport))) -> SitePrivacy {
    SitePrivacy { site: site.clone(), round, report }
}

/// The purpose is a sentence for people and may be reworded.
fn same_spec(began: &TaskSpec, planned: &TaskSpec) -> bool {
    began.task == planned.task
        && began.network == planned.network
        && began.preprocessing == planned.preprocessing
}

fn address(message: &FromSite) -> Option<(&TaskId, RoundNumber)> {
    match message {
        FromSite::Join { task, round }
        | FromSite::Decline { task, round, .. }
        | FromSite::Evaluation { task, round, .. }
        | FromSite::Secure { task, round, .. } => Some((task, *round)),
        FromSite::OfferUpdate(offer) => Some((&offer.task, offer.round)),
        FromSite::RegisterDataset(_) | FromSite::Want(_) | FromSite::WantCheckpoint { .. } => None,
    }
}

fn on_site(phase: Phase, turn: &mut Turn<'_>, from: &SiteId, message: FromSite) -> Phase {
    let Some((task, round)) = address(&message) else { return phase };
    if *task != turn.task.spec.task {
        // Another coordinator's.
        return phase;
    }
    if !turn.plan.members.contains(from) {
        turn.refuse(from, round, RefusalReason::NotMember);
        return phase;
    }
    match phase {
        Phase::Rebuilding(rebuilding) => Phase::Rebuilding(rebuilding),
        Phase::Training(mut open) if open.open.number() == round => {
            open.on_site(turn, from, message);
            Phase::Training(open)
        }
        Phase::Evaluating(mut open) if open.open.number() == round => {
            open.on_site(turn, from, message);
            Phase::Evaluating(open)
        }
        Phase::Securing(mut open) if open.number() == round => {
            open.on_site(turn, from, message);
            Phase::Securing(open)
        }
        other => {
            turn.answer_closed(from, round, &other);
            other
        }
    }
}

impl Turn<'_> {
    /// The initial model becomes version 0.
    fn begin(&mut self) {
        let bytes = encode_parameters(self.parameters);
        let model = self.task.model.clone();
        self.out.before.push(Effect::StoreBlob { manifest: model.parameters.clone(), bytes });
        self.out.record(RoundRecord::TaskStarted { model });
    }

    /// A transfer ended after its round did.
    fn discard_stray(&mut self, phase: &Phase, blob: BlobDigest) {
        let kept = match phase {
            Phase::Paused(Paused { round: Suspended::Training(round), .. }) => {
                round.blobs().any(|kept| kept == blob)
            }
            _ => false,
        };
        if !kept {
            self.out.then(Effect::Discard { blobs: vec![blob] });
        }
    }
}
