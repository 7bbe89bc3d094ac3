//! The site's part in rounds: hears of a round, checks it against the policy, has it trained, offers the update.
//!
//! All state that matters lies in files ([`crate::round`]); what is in memory here is found again from the retained
//! announcement after a restart. What is unanswered is repeated.

mod elsewhere;
mod status;

use crate::base_model::{self, KeptModel, Pull};
use crate::consent::Announced;
use crate::ingest::{self, IntakeView};
use crate::privacy_budget::BudgetKeeper;
use crate::round::RoundFolder;
use crate::secure_round::{Outcome, SecureRound};
use crate::settings::ApplianceSettings;
use crate::trainer::Trainer;
use crate::witness::Witness;
use crate::work::{JobOutcome, Work};
use crate::{files, release};
use anyhow::{Context as _, Result};
use elsewhere::Elsewhere;
use medinet_dataset::{Dataset, Split};
use medinet_identity::Identity;
use medinet_ledger::{LedgerPublicKey, VoteDemand};
use medinet_link::{BlobStore, LinkOptions, now};
use medinet_model::TaskSpec;
use medinet_secure::{Input, Setup};
use medinet_types::{BlobDigest, DatasetDigest, Role, RoundNumber, SiteId, TaskId, UnixMillis};
use medinet_uplink::{OfferDetails, Uplink, UplinkEvent};
use medinet_wire::blob::BlobManifest;
use medinet_wire::envelope::Signer;
use medinet_wire::message::{
    DatasetRegistration, ModelRelease, RefusalReason, RoundKind, RoundPlan, SiteMetrics,
};
use medinet_wire::secure::EnrolledVoters;
use medinet_wire::vote::Vote;
use status::{Shown, offline_status};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// How often everything that waits is looked at.
const TICK: Duration = Duration::from_secs(1);
/// How long an unanswered message waits before it is said again.
const REPEAT_AFTER: Duration = Duration::from_secs(8);
/// How often the revocation lists are looked at; they count from the next message on.
const RELOAD_REVOCATIONS: Duration = Duration::from_secs(30);
/// How often the data set is read again between rounds, for new studies or labels.
const REREAD_DATASET: Duration = Duration::from_secs(600);
/// Pause after a failed attempt at a round, or at reading the data set.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// Runs the appliance until it is told to stop.
///
/// # Errors
/// When it cannot start.
pub(crate) async fn run(settings: ApplianceSettings, spec: TaskSpec) -> Result<()> {
    files::private_folder(&settings.data_dir)?;
    Trainer::look_at_device(&settings).await?;
    let settings = Arc::new(settings);
    let ledger_key = settings.ledger_key()?;
    let identity = Arc::new(Identity::load(&settings.identity)?);
    anyhow::ensure!(
        identity.principal().role == Role::Site,
        "expected a site's certificate in {}, got that of {}: enrol this machine with the role site",
        settings.identity.certificate.display(),
        identity.principal()
    );
    let site = identity.principal().name.clone();
    let budget =
        BudgetKeeper::open(&settings.data_dir, &site, &spec.task, settings.policy.privacy_limit(), now())?;
    let shutdown = CancellationToken::new();
    let intake = ingest::start(&settings, &spec, shutdown.clone())?;
    let will = serde_json::to_vec(&offline_status())?;
    let trust = identity.trust().clone();
    let (uplink, mut events) = Uplink::start(LinkOptions {
        session: settings.broker.clone(),
        verifier: trust.clone(),
        identity: Arc::clone(&identity),
        federation: settings.federation.clone(),
        blobs: BlobStore::open(settings.data_dir.join("blobs"))?,
        last_will: Some(will),
    });
    let (progress, training_progress) = watch::channel(0.0);
    let (worked, mut results) = mpsc::channel(4);
    let witness = Witness::open(&settings.data_dir, ledger_key.clone())?;
    let mut site = Site {
        settings,
        spec,
        site,
        identity,
        witness,
        ledger_key,
        budget: Arc::new(Mutex::new(budget)),
        intake,
        uplink,
        progress: Arc::new(progress),
        training_progress,
        worked,
        registration: Registration::Unknown,
        read_at: UnixMillis(0),
        registered: false,
        round: None,
        postponed: None,
        elsewhere: Elsewhere::default(),
        release: None,
        status_at: UnixMillis(0),
        status_shown: None,
    };
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut revocations = tokio::time::interval(RELOAD_REVOCATIONS);
    revocations.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(event) => site.heard(event).await,
                None => anyhow::bail!("the session with the broker has ended"),
            },
            Some(worked) = results.recv() => site.worked(worked).await,
            _ = tick.tick() => {
                site.take_up_postponed().await;
                site.tick().await;
            }
            _ = revocations.tick() => match trust.reload_crl() {
                Ok(true) => tracing::info!("new revocation lists in use"),
                Ok(false) => {}
                Err(error) => tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "the revocation lists cannot be read again: those in use stay in use until they end"
                ),
            },
            _ = terminate.recv() => break,
            _ = tokio::signal::ctrl_c() => break,
        }
        site.show_status();
    }
    tracing::info!("stopping");
    shutdown.cancel();
    site.uplink.publish_status(&offline_status());
    site.uplink.close().await;
    Ok(())
}

struct Site {
    settings: Arc<ApplianceSettings>,
    spec: TaskSpec,
    site: SiteId,
    identity: Arc<Identity>,
    ledger_key: LedgerPublicKey,
    witness: Witness,
    budget: Arc<Mutex<BudgetKeeper>>,
    intake: IntakeView,
    uplink: Uplink,
    progress: Arc<watch::Sender<f32>>,
    training_progress: watch::Receiver<f32>,
    worked: mpsc::Sender<Worked>,
    registration: Registration,
    read_at: UnixMillis,
    /// Whether the ledger holds a data set of ours, if not the newest: rounds need one.
    registered: bool,
    round: Option<Round>,
    /// An announcement that the disk kept from being decided about, and when.
    postponed: Option<(RoundPlan, UnixMillis)>,
    /// Rounds of other tasks.
    elsewhere: Elsewhere,
    release: Option<ModelRelease>,
    status_at: UnixMillis,
    status_shown: Option<Shown>,
}

/// Whether the aggregator knows our data set.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Registration {
    /// Labels and manifest have not been read yet.
    Unknown,
    /// They are being read; what the aggregator knows already.
    Reading(Option<DatasetDigest>),
    /// Said, not answered yet.
    Said { registration: DatasetRegistration, at: UnixMillis },
    /// On the ledger.
    Confirmed(DatasetDigest),
}

struct Round {
    plan: RoundPlan,
    folder: RoundFolder,
    /// Deltas did not lead to the base model: it is pulled whole.
    whole: bool,
    phase: Phase,
}

/// How far a round is at this site.
enum Phase {
    /// The policy refuses it.
    Declined { reason: String, said_at: UnixMillis },
    /// It waits for data, for the hours that the site allows, or after a failed attempt.
    Waiting { not_before: UnixMillis, joined_at: UnixMillis },
    /// The base model is being fetched.
    Fetching { joined_at: UnixMillis, pull: Pull },
    /// The trainer is at work; it stops when the round is left.
    Working { _job: JobGuard },
    /// The site is in sessions of secure aggregation, or ready for one.
    Secure(Box<SecureRound>),
    /// The update is offered.
    Offered { update: BlobManifest, details: OfferDetails, said_at: UnixMillis },
    /// The measurement is reported, and the vote cast.
    Measured { metrics: Option<SiteMetrics>, vote: Vote, said_at: UnixMillis },
    /// The aggregator has all it needs from us, or wants nothing more.
    Done,
}

/// Ends a job when nobody waits for it any more, and the trainer's process with it.
struct JobGuard(tokio::task::JoinHandle<()>);

impl Drop for JobGuard {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What came out of work in the background.
enum Worked {
    /// The data set has been read.
    Registration(Result<DatasetRegistration>),
    /// A round's job has ended.
    Job { folder: PathBuf, outcome: Result<JobOutcome> },
}

impl Site {
    async fn heard(&mut self, event: UplinkEvent) {
        match event {
            UplinkEvent::Connected => {
                self.witness.connected();
                self.repeat_all();
                self.tick().await;
            }
            UplinkEvent::Disconnected => {}
            UplinkEvent::Checkpoint(note) => {
                let heard = self.witness.announced(&note);
                self.watch_ledger(heard).await;
            }
            UplinkEvent::CheckpointProof { note, seen, proof } => {
                let heard = self.witness.answered(&note, seen, &proof);
                self.watch_ledger(heard).await;
            }
            UplinkEvent::Announced(plan) => self.announced(plan).await,
            UplinkEvent::Idle(task) => {
                self.elsewhere.idle(&task);
                self.postponed = self.postponed.take().filter(|(plan, _)| plan.spec.task != task);
                if self.round.as_ref().is_some_and(|round| round.plan.spec.task == task) {
                    self.forget_pulled(None);
                    self.round = None;
                }
            }
            UplinkEvent::Released(release) => {
                if release.spec.task == self.spec.task && self.witness.alarm().is_none() {
                    self.fetch_or_log(release.bundle.clone());
                    self.release = Some(release);
                }
            }
            UplinkEvent::DatasetRegistered { manifest, .. } => {
                if let Registration::Said { registration, .. } = &self.registration
                    && registration.manifest == manifest
                {
                    tracing::info!("the data set is on the ledger");
                    self.registration = Registration::Confirmed(manifest);
                    self.registered = true;
                }
            }
            UplinkEvent::Accepted { task, round } => {
                self.elsewhere.answered(&task, round);
                if let Some(current) = self.current(&task, round) {
                    match current.phase {
                        Phase::Offered { .. } | Phase::Measured { .. } => {
                            current.phase = Phase::Done;
                            tracing::info!(%round, "the aggregator has our contribution");
                        }
                        Phase::Secure(_) => self.secure(Input::Accepted).await,
                        _ => {}
                    }
                }
            }
            UplinkEvent::Secure { task, round, step } => {
                if self.current(&task, round).is_some() {
                    self.secure(Input::Heard(step)).await;
                }
            }
            UplinkEvent::Refused { task, round, reason } => {
                self.elsewhere.answered(&task, round);
                self.refused(&task, round, &reason);
            }
            UplinkEvent::Fetched(blob) => self.fetched(blob),
            UplinkEvent::FetchFailed(blob) => {
                tracing::warn!(blob = %blob.short(), "the aggregator offers a blob that is not what it says");
                if let Some(Round { plan, whole, phase: Phase::Fetching { pull, .. }, .. }) = &mut self.round
                    && plan.steps.iter().any(|step| step.delta.digest == blob)
                {
                    *whole = true;
                    *pull = Pull::whole(now());
                    self.pull();
                }
            }
        }
    }

    /// Asks for what is needed to follow the ledger; after a contradiction leaves the open round.
    async fn watch_ledger(&mut self, heard: Result<()>) {
        if let Err(error) = heard {
            tracing::error!(error = format!("{error:#}"), "the ledger cannot be followed");
        }
        if let Some(reason) = self.witness.refusal()
            && let Some(round) = &mut self.round
            && !matches!(round.phase, Phase::Declined { .. })
        {
            round.phase = Phase::Declined { reason: reason.to_owned(), said_at: UnixMillis(0) };
        }
        if let Some(seen) = self.witness.question(now())
            && let Err(error) = self.uplink.want_checkpoint(seen).await
        {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "cannot ask for the ledger's checkpoint"
            );
        }
    }

    fn current(&mut self, task: &TaskId, number: RoundNumber) -> Option<&mut Round> {
        self.round.as_mut().filter(|round| round.plan.spec.task == *task && round.plan.round == number)
    }

    fn refused(&mut self, task: &TaskId, number: RoundNumber, reason: &RefusalReason) {
        let Some(round) = self.current(task, number) else { return };
        tracing::warn!(round = %number, %reason, "the aggregator refuses our contribution");
        // Nothing that a repeat of the same could mend; a new announcement starts afresh.
        round.phase = Phase::Done;
    }

    /// Decides again about a round that the disk kept from being decided about.
    async fn take_up_postponed(&mut self) {
        let due = |&mut (_, at): &mut (RoundPlan, UnixMillis)| now().since(at) >= RETRY_AFTER;
        if let Some((plan, _)) = self.postponed.take_if(due) {
            self.announced(plan).await;
        }
    }

    async fn announced(&mut self, plan: RoundPlan) {
        if plan.spec.task != self.spec.task {
            let reason = elsewhere::reason(&self.spec.task, &plan.spec.task, &self.settings.policy);
            if self.elsewhere.announced(&plan.spec.task, plan.round, reason.clone()) {
                tracing::warn!(task = %plan.spec.task, round = %plan.round, reason, "declining a round");
                self.tick().await;
            }
            return;
        }
        self.postponed = None;
        if let Some(round) = &mut self.round
            && (RoundPlan { deadline: round.plan.deadline, ..plan.clone() }) == round.plan
        {
            if plan.deadline == round.plan.deadline {
                return;
            }
            // Extended, or opened again: what was answered before may not have counted.
            round.plan.deadline = plan.deadline;
            if !matches!(round.phase, Phase::Done | Phase::Declined { .. }) {
                return;
            }
        }
        let (folder, reasons) = match self.decide(&plan) {
            Ok(decided) => decided,
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "the round cannot begin: it is tried again");
                self.postponed = Some((plan, now()));
                return;
            }
        };
        let phase = if reasons.is_empty() {
            tracing::info!(round = %plan.round, kind = ?plan.kind, "taking part in a round");
            let settled = folder.settle_earlier(&self.site, plan.made_by.as_ref());
            if let Err(error) = settled.and_then(|()| folder.clear_earlier()) {
                tracing::warn!(error = format!("{error:#}"), "earlier rounds cannot be cleared");
            }
            Phase::Waiting { not_before: UnixMillis(0), joined_at: UnixMillis(0) }
        } else {
            let reason = reasons.join("; ");
            tracing::warn!(round = %plan.round, reason, "declining a round");
            Phase::Declined { reason, said_at: UnixMillis(0) }
        };
        self.forget_pulled(Some(&plan));
        self.round = Some(Round { plan, folder, whole: false, phase });
        self.tick().await;
    }

    /// Where an announced round lies, and all reasons against it; without any, that the site takes part is on disk.
    fn decide(&self, plan: &RoundPlan) -> Result<(RoundFolder, Vec<String>)> {
        let folder = RoundFolder::open(&self.settings.data_dir, plan)?;
        let announced = Announced {
            plan,
            folder: &folder,
            policy: &self.settings.policy,
            spec: &self.spec,
            budget: &self.budget,
        };
        let mut reasons = announced.reasons_against(now())?;
        reasons.extend(self.witness.refusal().map(str::to_owned));
        if plan.kind == RoundKind::Train && plan.aggregation.secure().is_some() {
            reasons.extend(self.setup(plan).check().err().map(|refusal| refusal.to_string()));
        }
        if reasons.is_empty() {
            announced.take_part()?;
        }
        Ok((folder, reasons))
    }

    /// This site's side of a round's sessions.
    fn setup(&self, plan: &RoundPlan) -> Setup {
        Setup {
            plan: plan.clone(),
            federation: self.settings.federation.clone(),
            site: self.site.clone(),
            policy: self.settings.policy.sessions(),
            signer: Arc::clone(&self.identity) as Arc<dyn Signer>,
            trust: self.identity.trust().clone(),
            repeat_after: REPEAT_AFTER,
        }
    }

    /// Gives an input to the open round's secure aggregation, if it is at that.
    async fn secure(&mut self, input: Input) {
        let Some(round) = &mut self.round else { return };
        let Phase::Secure(secure) = &mut round.phase else { return };
        match secure.handle(&self.uplink, input).await {
            Ok(Outcome::Open) => {}
            Ok(Outcome::Counted) => round.phase = Phase::Done,
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), round = %round.plan.round, "secure aggregation failed here, entering anew");
                round.phase = Phase::Waiting { not_before: now().after(RETRY_AFTER), joined_at: now() };
            }
        }
    }

    /// What follows from a round's finished job.
    fn phase_after(&self, round: &Round, outcome: JobOutcome) -> Result<Phase> {
        match outcome {
            JobOutcome::Secure { update, metrics, privacy } => {
                let (setup, folder) = (self.setup(&round.plan), round.folder.clone());
                let secure = SecureRound::open(setup, folder, update, (metrics, privacy), &self.uplink)?;
                Ok(Phase::Secure(Box::new(secure)))
            }
            JobOutcome::Measured { metrics, ballot } => {
                tracing::info!(round = %round.plan.round, ?ballot, "voting on a candidate");
                let vote = Vote {
                    task: round.plan.spec.task.clone(),
                    round: round.plan.round,
                    model: round.plan.base.digest,
                    version: round.plan.base.version,
                    ballot,
                };
                Ok(Phase::Measured { metrics, vote, said_at: UnixMillis(0) })
            }
            outcome => offer(&self.uplink, &round.plan, outcome),
        }
    }

    fn fetch_or_log(&self, manifest: BlobManifest) {
        if let Err(error) = self.uplink.fetch(manifest) {
            tracing::error!(error = &error as &dyn std::error::Error, "cannot fetch from the aggregator");
        }
    }

    /// Removes what was pulled for the round that is left, but for what the next one offers too.
    fn forget_pulled(&self, next: Option<&RoundPlan>) {
        let Some(round) = &self.round else { return };
        let needed = next.map(base_model::offered).unwrap_or_default();
        for blob in base_model::offered(&round.plan).difference(&needed) {
            if let Err(error) = self.uplink.forget(*blob) {
                tracing::warn!(error = &error as &dyn std::error::Error, "a pulled model cannot be removed");
            }
        }
    }

    /// Begins the round's work if its base model can be made of what is here, and asks for the rest otherwise.
    fn pull(&mut self) {
        self.work_if_pulled();
        if let Some(Round { plan, phase: Phase::Fetching { pull, .. }, .. }) = &self.round {
            for manifest in pull.wanted(plan, now()) {
                self.fetch_or_log(manifest.clone());
            }
        }
    }

    fn fetched(&mut self, blob: BlobDigest) {
        if let Some(release) = &self.release
            && release.bundle.digest == blob
        {
            let kept = self.uplink.fetched(blob).map_err(anyhow::Error::from).and_then(|bytes| {
                let bytes = bytes.context("the fetched bundle is gone")?;
                let voters = EnrolledVoters(self.identity.trust().as_ref());
                let policy = self.settings.policy.release;
                let demand = VoteDemand { quorum: policy.quorum(), voters: &voters };
                let (data_dir, key) = (&self.settings.data_dir, self.ledger_key.clone());
                release::keep(data_dir, &self.spec.task, key, &demand, policy.keep_rejected, &bytes)
            });
            match kept {
                Ok(version) => tracing::info!(%version, "a released model is proven and in place"),
                Err(error) => tracing::error!(error = format!("{error:#}"), "a released model is not kept"),
            }
            return;
        }
        self.work_if_pulled();
    }

    fn work_if_pulled(&mut self) {
        let Some(round) = &mut self.round else { return };
        let Phase::Fetching { pull, .. } = &round.phase else { return };
        let Some(arrived) = pull.arrived(&round.plan, |blob| self.uplink.has(blob)) else { return };
        let Some(base) = arrived.read(&self.uplink) else {
            // Rotten on this disk, and gone now: it is pulled again.
            round.phase = Phase::Waiting { not_before: now().after(TICK), joined_at: now() };
            return;
        };
        let work = Work {
            settings: Arc::clone(&self.settings),
            site: self.site.clone(),
            plan: round.plan.clone(),
            folder: round.folder.clone(),
            budget: Arc::clone(&self.budget),
            progress: Arc::clone(&self.progress),
        };
        let worked = self.worked.clone();
        self.progress.send_replace(0.0);
        let job = tokio::spawn(async move {
            let folder = work.folder.path().to_owned();
            let outcome = work.run(base).await;
            let _ = worked.send(Worked::Job { folder, outcome }).await;
        });
        round.phase = Phase::Working { _job: JobGuard(job) };
    }

    async fn worked(&mut self, worked: Worked) {
        match worked {
            Worked::Registration(Ok(registration)) => {
                self.registration = match self.registration {
                    Registration::Reading(Some(known)) if known == registration.manifest => {
                        Registration::Confirmed(known)
                    }
                    _ => Registration::Said { registration, at: UnixMillis(0) },
                };
            }
            Worked::Registration(Err(error)) => {
                tracing::error!(error = format!("{error:#}"), "the data set cannot be registered");
                self.registration = match self.registration {
                    Registration::Reading(Some(known)) => Registration::Confirmed(known),
                    _ => Registration::Unknown,
                };
            }
            Worked::Job { folder, outcome } => {
                let Some(round) = &self.round else { return };
                // The folder's name holds the plan's digest: a result of another plan is nothing to this round.
                if !matches!(round.phase, Phase::Working { .. }) || round.folder.path() != folder {
                    return;
                }
                let mut whole = round.whole;
                let outcome = match outcome {
                    Ok(JobOutcome::NotReached(error)) => {
                        whole = true;
                        Err(error.context(
                            "the announced deltas do not lead to the base model, which is pulled whole",
                        ))
                    }
                    outcome => outcome,
                };
                let phase = match outcome.and_then(|outcome| self.phase_after(round, outcome)) {
                    Ok(phase) => phase,
                    Err(error) => {
                        tracing::error!(error = format!("{error:#}"), round = %round.plan.round, "a round failed here, trying again");
                        Phase::Waiting { not_before: now().after(RETRY_AFTER), joined_at: now() }
                    }
                };
                if let Some(round) = &mut self.round {
                    round.whole = whole;
                    round.phase = phase;
                }
            }
        }
        self.tick().await;
    }

    /// Forgets when things were said, so that they are said again at once.
    fn repeat_all(&mut self) {
        if let Registration::Said { at, .. } = &mut self.registration {
            *at = UnixMillis(0);
        }
        self.elsewhere.repeat_all();
        if let Some(round) = &mut self.round {
            match &mut round.phase {
                Phase::Declined { said_at, .. }
                | Phase::Offered { said_at, .. }
                | Phase::Measured { said_at, .. } => *said_at = UnixMillis(0),
                Phase::Waiting { joined_at, .. } | Phase::Fetching { joined_at, .. } => {
                    *joined_at = UnixMillis(0)
                }
                // Sessions have their own repetition.
                Phase::Working { .. } | Phase::Secure(_) | Phase::Done => {}
            }
        }
    }

    async fn tick(&mut self) {
        if let Err(error) = self.tick_or_fail().await {
            tracing::warn!(error = format!("{error:#}"), "cannot reach the aggregator");
        }
    }

    async fn tick_or_fail(&mut self) -> Result<()> {
        let now = now();
        let due = |at: UnixMillis| now.since(at) >= REPEAT_AFTER;
        let between_rounds = self
            .round
            .as_ref()
            .is_none_or(|round| matches!(round.phase, Phase::Done | Phase::Declined { .. }));
        if let Registration::Confirmed(known) = self.registration
            && between_rounds
            && now.since(self.read_at) >= REREAD_DATASET
        {
            self.read_dataset(Some(known));
        }
        match &mut self.registration {
            Registration::Unknown
                if *self.intake.ready.borrow() && now.since(self.read_at) >= RETRY_AFTER =>
            {
                self.read_dataset(None);
            }
            Registration::Said { registration, at } if due(*at) => {
                *at = now;
                self.uplink.register_dataset(registration.clone()).await?;
            }
            _ => {}
        }
        self.watch_ledger(Ok(())).await;
        self.secure(Input::Tick).await;
        for (task, number, reason) in self.elsewhere.due(now) {
            self.uplink.decline(task, number, &reason).await?;
        }
        let registered = self.registered;
        let Some(round) = &mut self.round else { return Ok(()) };
        let (task, number) = (round.plan.spec.task.clone(), round.plan.round);
        match &mut round.phase {
            Phase::Declined { reason, said_at } if due(*said_at) => {
                *said_at = now;
                self.uplink.decline(task, number, reason).await?;
            }
            Phase::Waiting { not_before, joined_at } if registered => {
                if due(*joined_at) {
                    *joined_at = now;
                    self.uplink.join(task, number).await?;
                }
                let may_work = self.settings.policy.may_train_at(now) || round.folder.has_begun();
                if now >= *not_before && may_work {
                    let pull = if round.whole {
                        Pull::whole(now)
                    } else {
                        let kept = KeptModel::of(&round.folder).digest(&round.plan.spec.network);
                        Pull::from(kept, &round.plan, now)
                    };
                    round.phase = Phase::Fetching { joined_at: now, pull };
                    self.pull();
                }
            }
            Phase::Fetching { joined_at, .. } if due(*joined_at) => {
                *joined_at = now;
                self.uplink.join(task, number).await?;
                self.pull();
            }
            Phase::Offered { update, details, said_at } if due(*said_at) => {
                *said_at = now;
                self.uplink.offer_update(update.clone(), details.clone()).await?;
            }
            Phase::Measured { metrics, vote, said_at } if due(*said_at) => {
                *said_at = now;
                self.uplink.report_evaluation(task, number, *metrics, vote.clone()).await?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Imports labels and reads the data set's manifest in the background.
    fn read_dataset(&mut self, known: Option<DatasetDigest>) {
        self.registration = Registration::Reading(known);
        self.read_at = now();
        let (settings, spec, worked) = (Arc::clone(&self.settings), self.spec.clone(), self.worked.clone());
        tokio::task::spawn_blocking(move || {
            let _ = worked.blocking_send(Worked::Registration(registration(&settings, &spec)));
        });
    }
}

/// Imports labels and reads the data set's manifest.
fn registration(settings: &ApplianceSettings, spec: &TaskSpec) -> Result<DatasetRegistration> {
    ingest::import_labels(settings, spec)?;
    let dataset = Dataset::open(&settings.dataset_dir(spec), spec, &settings.dataset)?;
    let manifest = dataset.manifest()?;
    tracing::info!(images_per_class = ?manifest.images_per_class(), "the data set is ready");
    let patients = u64::from(dataset.images(Split::Training)?.patients());
    if let Some(warning) = settings.policy.delta_warning(patients) {
        tracing::warn!("{warning}");
    }
    Ok(DatasetRegistration {
        task: spec.task.clone(),
        manifest: manifest.digest(),
        images_per_class: manifest.published_images_per_class(),
    })
}

/// Keeps what a job gave ready for the aggregator.
fn offer(uplink: &Uplink, plan: &RoundPlan, outcome: JobOutcome) -> Result<Phase> {
    Ok(match outcome {
        JobOutcome::Secure { .. } => anyhow::bail!("an update for secure aggregation is never offered"),
        JobOutcome::Measured { .. } => anyhow::bail!("a measurement is no update"),
        JobOutcome::NotReached(error) => return Err(error),
        JobOutcome::Declined(reason) => {
            tracing::warn!(round = %plan.round, reason, "declining a round");
            Phase::Declined { reason, said_at: UnixMillis(0) }
        }
        JobOutcome::Update { sealed, examples, metrics, privacy } => {
            let update = uplink.hold_update(&sealed)?;
            let details = OfferDetails {
                task: plan.spec.task.clone(),
                round: plan.round,
                base: plan.base.digest,
                examples,
                base_metrics: metrics,
                privacy,
            };
            Phase::Offered { update, details, said_at: UnixMillis(0) }
        }
    })
}
