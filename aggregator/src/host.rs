//! Carries out what the coordinators decide: one after the other, and if one thing fails, the program stops.

use crate::ledger::{Ledger, dataset_record, record_of};
use crate::{release, status};
use anyhow::{Context as _, Result, ensure};
use medinet_link::{BlobStore, BlobStoreError, Incoming, Link, LinkError, LinkEvent};
use medinet_privacy::{Epsilon, PrivacyReport};
use medinet_rounds::{Commit, Coordinator, Effect, Input, Progress, Release, RoundRecord, Stage, TaskPlan};
use medinet_store::Store;
use medinet_types::{BlobDigest, Digest, RoundNumber, SiteId, TaskId, UnixMillis};
use medinet_wire::blob::BlobManifest;
use medinet_wire::envelope::Verifier;
use medinet_wire::message::{
    AggregatorStatus, DatasetRegistration, FromAggregatorToAll, FromSite, ModelRelease, PresenceState,
    RoundPlan, ToSite,
};
use medinet_wire::privacy::PrivacyTotal;
use medinet_wire::topic::Broadcast;
use ring::rand::{SecureRandom as _, SystemRandom};
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How long an answer may wait for room in the send queue. One that finds none is lost; sites repeat what is unanswered.
const SEND_PATIENCE: Duration = Duration::from_secs(5);
/// How often a site's sign of life is noted in the registry.
const SEEN_EVERY: Duration = Duration::from_secs(60);

/// A task and its coordinator.
pub(crate) struct Task {
    coordinator: Coordinator,
    members: BTreeSet<SiteId>,
    begins: Due,
    wake: Option<UnixMillis>,
    /// What was last said to everyone. With several tasks each is said again, as the topics' retained messages are the
    /// last task's only.
    announced: Option<FromAggregatorToAll>,
    released: Option<FromAggregatorToAll>,
}

impl Task {
    /// The task's name.
    pub(crate) fn id(&self) -> &TaskId {
        self.coordinator.task()
    }

    /// Where it stands.
    pub(crate) fn progress(&self) -> Progress {
        self.coordinator.progress()
    }
}

/// An input that waits for its turn. Blobs are read when it comes, so that one is in memory at a time.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "few wait, and not for long")]
enum Due {
    Start,
    Restarted,
    Tick,
    Site(SiteId, FromSite),
    /// Read a counted update again.
    Load(BlobDigest),
    /// A transfer ended.
    Fetched(BlobDigest),
    /// A transfer ended with bytes that are not what was promised.
    Failed(BlobDigest),
}

/// Makes each plan's coordinator, from its newest snapshot where it has one.
///
/// # Errors
/// When plan, snapshot and parameters do not belong together, or a disk fails.
pub(crate) fn open_tasks(
    plans: Vec<TaskPlan>,
    store: &Store,
    blobs: &BlobStore,
    trust: &Arc<dyn Verifier>,
) -> Result<Vec<Task>> {
    plans.into_iter().map(|plan| open_task(plan, store, blobs, trust)).collect()
}

fn open_task(plan: TaskPlan, store: &Store, blobs: &BlobStore, trust: &Arc<dyn Verifier>) -> Result<Task> {
    let (task, members) = (plan.spec.task.clone(), plan.members.clone());
    let (coordinator, begins) = match store.snapshot(&task)? {
        None => (Coordinator::new(plan)?, Due::Start),
        Some(snapshot) => {
            let mut kept = HashMap::new();
            for blob in snapshot.blobs() {
                kept.extend(blobs.get(blob)?.map(|bytes| (blob, bytes)));
            }
            let resumed = Coordinator::resume(plan, snapshot, |blob| kept.get(&blob).cloned());
            (resumed.with_context(|| format!("task {task}"))?, Due::Restarted)
        }
    };
    let coordinator = coordinator.trusting(Arc::clone(trust)).dealing(fresh_secret()?);
    Ok(Task { coordinator, members, begins, wake: None, announced: None, released: None })
}

/// What groups are dealt by. Nobody else may foretell them, and no run needs those of an earlier one.
fn fresh_secret() -> Result<[u8; 32]> {
    let mut secret = [0; 32];
    SystemRandom::new().fill(&mut secret).map_err(|_| anyhow::anyhow!("the system gives no randomness"))?;
    Ok(secret)
}

/// Everything that a running aggregator holds.
pub(crate) struct Host {
    link: Link,
    store: Store,
    ledger: Ledger,
    models: PathBuf,
    tasks: Vec<Task>,
    /// Which tasks wait for a transfer.
    fetching: HashMap<BlobDigest, BTreeSet<usize>>,
    /// Models and bundles. No update may take them along, not even one of the same content.
    kept: HashSet<BlobDigest>,
    /// The newest time that was used; time never runs backwards for rounds and ledger, whatever the clock does.
    newest: UnixMillis,
    seen: HashMap<SiteId, UnixMillis>,
    /// Who was told that a data set is missing, so that a repeated message is not logged again.
    without_dataset: BTreeSet<(usize, SiteId)>,
    reported: Option<AggregatorStatus>,
}

impl Host {
    /// Takes over everything. `ledger` has been completed from `store`.
    ///
    /// # Errors
    /// When the registry cannot be read.
    pub(crate) fn new(
        link: Link,
        store: Store,
        ledger: Ledger,
        models: PathBuf,
        tasks: Vec<Task>,
    ) -> Result<Self> {
        let mut kept = HashSet::new();
        for task in &tasks {
            kept.extend(store.models(task.id())?.into_iter().map(|row| row.model.parameters.digest));
            let releases = store.releases(task.id())?;
            kept.extend(releases.into_iter().filter_map(|release| Some(release.bundle?.digest)));
        }
        let newest = ledger.state().last_at();
        Ok(Self {
            link,
            store,
            ledger,
            models,
            tasks,
            fetching: HashMap::new(),
            kept,
            newest,
            seen: HashMap::new(),
            without_dataset: BTreeSet::new(),
            reported: None,
        })
    }

    /// The link.
    pub(crate) fn link(&self) -> &Link {
        &self.link
    }

    fn now(&mut self) -> UnixMillis {
        self.newest = self.newest.max(medinet_link::now());
        self.newest
    }

    /// Starts new tasks, goes on with the others, and repeats what a kill may have swallowed.
    ///
    /// # Errors
    /// When something cannot be carried out.
    pub(crate) async fn begin(&mut self) -> Result<()> {
        self.broadcast_checkpoint()?;
        for task in 0..self.tasks.len() {
            let begins = self.tasks[task].begins.clone();
            self.give(task, begins).await?;
        }
        // Whoever starts the program wants its tasks to go on: one that paused, or for which more rounds are planned now.
        self.continue_tasks().await?;
        self.clear_blobs()
    }

    /// Continues tasks that are paused, and finished ones that have more rounds planned by now.
    ///
    /// # Errors
    /// When something cannot be carried out.
    pub(crate) async fn continue_tasks(&mut self) -> Result<()> {
        for task in 0..self.tasks.len() {
            if matches!(self.tasks[task].progress().stage, Stage::Paused(_) | Stage::Finished) {
                self.give(task, Due::Start).await?;
            }
        }
        Ok(())
    }

    /// Reacts to what the link tells.
    ///
    /// # Errors
    /// When something cannot be carried out.
    pub(crate) async fn on_event(&mut self, event: LinkEvent) -> Result<()> {
        match event {
            LinkEvent::Connected => {
                self.reported = None;
                self.repeat_broadcasts()
            }
            LinkEvent::Disconnected => Ok(()),
            LinkEvent::Message(Incoming::FromSite(site, message, envelope)) => {
                self.on_message(site, message, envelope).await
            }
            LinkEvent::Message(Incoming::Status(..) | Incoming::ToSite(_) | Incoming::ToAll(_)) => Ok(()),
            LinkEvent::Fetched(blob) => self.on_transfer(blob, Due::Fetched(blob)).await,
            LinkEvent::FetchFailed(blob) => self.on_transfer(blob, Due::Failed(blob)).await,
        }
    }

    /// Tells every coordinator whose time has come.
    ///
    /// # Errors
    /// When something cannot be carried out.
    pub(crate) async fn wake(&mut self) -> Result<()> {
        let now = self.now();
        for task in 0..self.tasks.len() {
            if self.tasks[task].wake.is_some_and(|when| when <= now) {
                self.tasks[task].wake = None;
                self.give(task, Due::Tick).await?;
            }
        }
        Ok(())
    }

    /// How long until the next coordinator is to be woken, at most `longest`.
    pub(crate) fn until_wake(&mut self, longest: Duration) -> Duration {
        let now = self.now();
        let wakes = self.tasks.iter().filter_map(|task| task.wake);
        wakes.min().map_or(longest, |when| when.since(now).min(longest))
    }

    /// What is done at every heartbeat: the clock may have been set, a message to everyone may have been lost.
    ///
    /// # Errors
    /// When something cannot be carried out.
    pub(crate) async fn heartbeat(&mut self) -> Result<()> {
        self.reported = None;
        for task in 0..self.tasks.len() {
            self.give(task, Due::Tick).await?;
        }
        if self.tasks.len() > 1 { self.repeat_broadcasts() } else { Ok(()) }
    }

    /// Publishes the status if it has changed.
    pub(crate) fn report(&mut self) {
        let now = self.now();
        let mut status = status::of(&self.tasks, PresenceState::Online, now);
        if let Some(reported) = &self.reported {
            status.at = reported.at;
            if status == *reported {
                return;
            }
            status.at = now;
        }
        self.link.publish_status(status::json(&status));
        self.reported = Some(status);
    }

    /// Publishes that we are going.
    pub(crate) fn say_goodbye(&mut self) {
        let now = self.now();
        let status = status::of(&self.tasks, PresenceState::Offline, now);
        self.link.publish_status(status::json(&status));
    }

    async fn on_message(&mut self, site: SiteId, message: FromSite, envelope: Digest) -> Result<()> {
        let task = match &message {
            FromSite::RegisterDataset(registration) => &registration.task,
            FromSite::OfferUpdate(offer) => &offer.task,
            FromSite::Join { task, .. }
            | FromSite::Decline { task, .. }
            | FromSite::Evaluation { task, .. }
            | FromSite::Secure { task, .. } => task,
            // The link serves blobs.
            FromSite::Want(_) => return Ok(()),
            &FromSite::WantCheckpoint { seen } => return self.show_checkpoint(&site, seen).await,
        };
        let Some(index) = self.tasks.iter().position(|known| known.id() == task) else {
            tracing::debug!(%site, %task, "a message about a task that is not ours: ignored");
            return Ok(());
        };
        let member = self.tasks[index].members.contains(&site);
        if member {
            self.note_seen(&site)?;
        }
        let contributes = match message {
            FromSite::RegisterDataset(registration) if member => {
                return self.register(index, &site, &registration, envelope).await;
            }
            FromSite::RegisterDataset(_) => {
                tracing::warn!(%site, %task, "a data set of a site that is no member of the task: ignored");
                return Ok(());
            }
            FromSite::Decline { .. } => false,
            _ => true,
        };
        // The ledger takes no model of a site without a data set. Who has none registered first, and repeats.
        if member && contributes && self.ledger.state().dataset(task, &site).is_none() {
            if self.without_dataset.insert((index, site.clone())) {
                tracing::warn!(%site, %task, "the site has registered no data set for the task: ignored until it has");
            }
            return Ok(());
        }
        self.give(index, Due::Site(site, message)).await
    }

    /// Shows a site the newest checkpoint, and that it continues the one that the site has seen. Where it does not, the site will notice.
    async fn show_checkpoint(&self, site: &SiteId, seen: u64) -> Result<()> {
        let Some(note) = self.ledger.note().map(ToOwned::to_owned) else { return Ok(()) };
        let proof = self.ledger.proof_from(seen);
        self.send(site, &ToSite::Checkpoint { note, seen, proof }).await
    }

    fn note_seen(&mut self, site: &SiteId) -> Result<()> {
        let now = self.now();
        if self.seen.get(site).is_none_or(|before| now.since(*before) >= SEEN_EVERY) {
            self.store.site_seen(site, now)?;
            self.seen.insert(site.clone(), now);
        }
        Ok(())
    }

    async fn register(
        &mut self,
        index: usize,
        site: &SiteId,
        registration: &DatasetRegistration,
        envelope: Digest,
    ) -> Result<()> {
        let (task, counts) = (&registration.task, &registration.images_per_class);
        let classes = self.tasks[index].coordinator.spec().network.classes.len();
        let now = self.now();
        let record = dataset_record(now, site, registration, envelope);
        let known = self.ledger.state().dataset(task, site);
        if known.is_none_or(|known| known.manifest != registration.manifest) {
            if counts.len() != classes {
                tracing::warn!(%site, %task, expected = classes, got = counts.len(), "a data set with another number of classes: ignored");
                return Ok(());
            }
            if let Err(error) = self.ledger.admits([&record]) {
                tracing::warn!(%site, %task, %error, "a data set that the ledger refuses: ignored");
                return Ok(());
            }
        }
        let entry = record.encode()?;
        let at = self.store.register_dataset(site, registration, now, || entry)?;
        self.append_waiting()?;
        self.without_dataset.remove(&(index, site.clone()));
        let record = self.ledger.leaf(at).context("the ledger lacks a registration that was queued")?;
        self.send(site, &ToSite::DatasetRegistered { manifest: registration.manifest, record }).await
    }

    async fn on_transfer(&mut self, blob: BlobDigest, due: Due) -> Result<()> {
        // One task after the other leaves, so that none forgets a blob that the next still waits for.
        while let Some(task) = self.fetching.get_mut(&blob).and_then(BTreeSet::pop_first) {
            if self.fetching.get(&blob).is_some_and(BTreeSet::is_empty) {
                self.fetching.remove(&blob);
            }
            self.give(task, due.clone()).await?;
        }
        self.forget(blob)
    }

    /// Gives one input to a coordinator and carries out what it decides, and what follows from that.
    async fn give(&mut self, task: usize, due: Due) -> Result<()> {
        let mut waiting = VecDeque::from([due]);
        while let Some(due) = waiting.pop_front() {
            let now = self.now();
            let bytes = match due {
                Due::Load(blob) | Due::Fetched(blob) => self.link.blobs().get(blob)?,
                _ => None,
            };
            let input = match (due, &bytes) {
                (Due::Start, _) => Input::Start,
                (Due::Restarted, _) => Input::Restarted,
                (Due::Tick, _) => Input::Tick,
                (Due::Site(from, message), _) => Input::Site { from, message },
                (Due::Load(blob) | Due::Fetched(blob), Some(bytes)) => Input::UpdateArrived { blob, bytes },
                (Due::Load(blob) | Due::Failed(blob), _) => Input::UpdateFailed { blob },
                // Gone again before it was read. The site is not to blame; it repeats its offer.
                (Due::Fetched(_), None) => continue,
            };
            let effects = self.tasks[task].coordinator.handle(now, input);
            drop(bytes);
            for effect in effects {
                self.carry_out(task, effect, &mut waiting).await?;
            }
        }
        Ok(())
    }

    async fn carry_out(&mut self, task: usize, effect: Effect, waiting: &mut VecDeque<Due>) -> Result<()> {
        match effect {
            Effect::StoreBlob { manifest, bytes } => {
                let stored = self.link.blobs().put(&bytes)?;
                ensure!(stored.digest == manifest.digest, "a blob's bytes are not those of its manifest");
                Ok(())
            }
            Effect::Persist(commit) => self.persist(task, &commit),
            Effect::Serve { blob } => {
                self.link.serve(blob);
                Ok(())
            }
            Effect::StopServing { blob } => {
                self.link.stop_serving(blob);
                Ok(())
            }
            Effect::Broadcast(message) => {
                self.broadcast(&message)?;
                self.tasks[task].announced = Some(message);
                Ok(())
            }
            Effect::Send { site, message } => self.send(&site, &message).await,
            Effect::SendAll { sites, message } => {
                for site in sites {
                    self.send(&site, &message).await?;
                }
                Ok(())
            }
            Effect::Fetch { site, manifest } => self.fetch(task, site, manifest, waiting),
            Effect::StopFetching { blob } => {
                if let Some(tasks) = self.fetching.get_mut(&blob) {
                    tasks.remove(&task);
                    if tasks.is_empty() {
                        self.fetching.remove(&blob);
                        self.link.stop_fetching(blob);
                    }
                }
                self.forget(blob)
            }
            Effect::LoadUpdate { blob } => {
                waiting.push_back(Due::Load(blob));
                Ok(())
            }
            Effect::Discard { blobs } => blobs.into_iter().try_for_each(|blob| self.forget(blob)),
            Effect::Publish(release) => self.publish(task, release),
            Effect::WakeAt(when) => {
                self.tasks[task].wake = Some(when);
                Ok(())
            }
            Effect::Finished { model, released } => {
                let released = released.map(|model| model.version.to_string());
                let (task, released) = (self.tasks[task].id(), released.as_deref().unwrap_or("none"));
                tracing::info!(%task, version = %model.version, released, "the task is finished");
                Ok(())
            }
        }
    }

    fn persist(&mut self, task: usize, commit: &Commit) -> Result<()> {
        let coordinator = &self.tasks[task].coordinator;
        let records: Vec<_> = commit
            .records
            .iter()
            .filter_map(|record| record_of(coordinator.spec(), commit.at, record))
            .collect();
        // What is queued must be appended, so a mistake is to be found before.
        self.ledger.admits(&records).context("the ledger refuses what the rounds decided")?;
        let entries: Vec<_> = records.iter().map(|record| record.encode()).collect::<Result<_, _>>()?;
        self.store.commit(commit, &entries)?;
        self.kept.extend(commit.records.iter().filter_map(made_model));
        for record in &commit.records {
            log(coordinator.task(), record);
        }
        if entries.is_empty() { Ok(()) } else { self.append_waiting() }
    }

    fn append_waiting(&mut self) -> Result<()> {
        if self.ledger.append_waiting(&mut self.store)? { self.broadcast_checkpoint() } else { Ok(()) }
    }

    fn broadcast_checkpoint(&self) -> Result<()> {
        match self.ledger.note() {
            Some(note) => self.broadcast(&FromAggregatorToAll::Checkpoint(note.to_owned())),
            None => Ok(()),
        }
    }

    fn broadcast(&self, message: &FromAggregatorToAll) -> Result<()> {
        let topic = match message {
            FromAggregatorToAll::Announce(_) | FromAggregatorToAll::Idle { .. } => Broadcast::Announce,
            FromAggregatorToAll::Release(_) => Broadcast::Release,
            FromAggregatorToAll::Checkpoint(_) => Broadcast::Checkpoint,
        };
        Ok(self.link.broadcast(topic, message)?)
    }

    fn repeat_broadcasts(&self) -> Result<()> {
        if self.tasks.len() > 1 {
            for message in self.tasks.iter().flat_map(|task| [&task.announced, &task.released]).flatten() {
                self.broadcast(message)?;
            }
        }
        Ok(())
    }

    async fn send(&self, site: &SiteId, message: &ToSite) -> Result<()> {
        match tokio::time::timeout(SEND_PATIENCE, self.link.send_to(site, message)).await {
            Ok(sent) => Ok(sent?),
            Err(_) => {
                tracing::debug!(%site, "no room to send an answer: dropped, the site asks again");
                Ok(())
            }
        }
    }

    fn fetch(
        &mut self,
        task: usize,
        site: SiteId,
        manifest: BlobManifest,
        waiting: &mut VecDeque<Due>,
    ) -> Result<()> {
        let blob = manifest.digest;
        match self.link.fetch(Some(site), manifest) {
            Ok(()) => {
                self.fetching.entry(blob).or_default().insert(task);
                Ok(())
            }
            Err(LinkError::Blobs(BlobStoreError::Blob(error))) => {
                tracing::warn!(%error, blob = %blob.short(), "an update's manifest breaks the rules");
                waiting.push_back(Due::Failed(blob));
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Deletes a blob unless somebody still needs it.
    fn forget(&self, blob: BlobDigest) -> Result<()> {
        let needed = self.kept.contains(&blob)
            || self.fetching.contains_key(&blob)
            || self.tasks.iter().any(|task| task.coordinator.blobs().contains(&blob));
        if !needed {
            self.link.blobs().remove(blob)?;
        }
        Ok(())
    }

    /// Deletes what kills left behind, when no round is open that half transfers could still serve.
    fn clear_blobs(&self) -> Result<()> {
        if self.tasks.iter().any(|task| task.progress().stage != Stage::Finished) {
            return Ok(());
        }
        let needed: BTreeSet<_> = self.tasks.iter().flat_map(|task| task.coordinator.blobs()).collect();
        Ok(self.link.blobs().retain(|blob| self.kept.contains(&blob) || needed.contains(&blob))?)
    }

    fn publish(&mut self, task: usize, Release { verdict, votes }: Release) -> Result<()> {
        let now = self.now();
        let (spec, model) = (self.tasks[task].coordinator.spec().clone(), verdict.model);
        let bundle = release::complete(
            &mut self.store,
            &mut self.ledger,
            self.link.blobs(),
            &self.models,
            &spec,
            &model,
            votes,
            now,
        )?;
        self.kept.insert(bundle.digest);
        self.broadcast_checkpoint()?;
        self.link.serve(bundle.digest);
        let message = FromAggregatorToAll::Release(ModelRelease { spec, model, bundle });
        self.broadcast(&message)?;
        self.tasks[task].released = Some(message);
        Ok(())
    }
}

/// The parameters of a model that the registry names from now on.
fn made_model(record: &RoundRecord) -> Option<BlobDigest> {
    match record {
        RoundRecord::TaskStarted { model } | RoundRecord::ModelAggregated { model, .. } => {
            Some(model.parameters.digest)
        }
        _ => None,
    }
}

/// One line for the operator. Of what a site wrote itself only why it declined, of which the coordinator has left one line of bounded length.
fn log(task: &TaskId, record: &RoundRecord) {
    match record {
        RoundRecord::SiteJoined { round, site } => tracing::info!(%task, %round, %site, "site joined"),
        RoundRecord::SiteDeclined { round, site, reason } => {
            tracing::warn!(%task, %round, %site, reason, "site declined");
        }
        RoundRecord::UpdateAccepted { round, site, update_bytes, examples, privacy, .. } => {
            tracing::info!(%task, %round, %site, update_bytes, examples, "update counts");
            log_privacy(task, *round, site, privacy.as_ref());
        }
        RoundRecord::SessionBegan { round, attempt, group, sites } => {
            tracing::info!(%task, %round, attempt, group, sites = sites.len(), "secure aggregation begins");
        }
        RoundRecord::SessionFailed { round, attempt, group, reason, excluded } => {
            tracing::warn!(%task, %round, attempt, group, reason, ?excluded, "secure aggregation failed");
        }
        RoundRecord::GroupSummed { round, attempt, group, sites, examples } => {
            tracing::info!(%task, %round, attempt, group, sites = sites.len(), examples, "a group's sum is open");
        }
        RoundRecord::MeanShortened { round, attempt, group, norm, limit } => {
            tracing::warn!(
                %task, %round, attempt, group, norm, limit,
                "the opened mean is longer than honest sites make one and was scaled down to what they reach: a site in it \
                 does not keep to the codec, and masks do not tell which"
            );
        }
        RoundRecord::InputCounted { round, site, input_bytes, privacy, .. } => {
            tracing::info!(%task, %round, %site, input_bytes, "masked update counts");
            log_privacy(task, *round, site, privacy.as_ref());
        }
        RoundRecord::RoundAbandoned { round, reason } => {
            tracing::error!(%task, %round, %reason, "the round ends without a model");
        }
        RoundRecord::ContributionRefused { round, site, reason } => {
            tracing::warn!(%task, %round, %site, %reason, "contribution refused");
        }
        RoundRecord::UpdateLost { round, site, .. } => {
            tracing::error!(%task, %round, %site, "the disk lost an update that counted: the site is asked again");
        }
        RoundRecord::Evaluated { round, site, ballot, .. } => {
            tracing::info!(%task, %round, %site, ?ballot, "measurement counts");
        }
        // The ledger's line and the verdict tell of these.
        RoundRecord::VotesCounted { .. } => {}
        RoundRecord::RoundExtended { round, reason, .. } => {
            tracing::warn!(%task, %round, %reason, "round extended");
        }
        RoundRecord::ModelJudged { round, verdict, .. } => {
            let auroc = verdict.median_auroc;
            match &verdict.outcome {
                medinet_rounds::Outcome::Released => tracing::info!(%task, %round, auroc, "model accepted"),
                medinet_rounds::Outcome::Rejected(reason) => {
                    tracing::warn!(%task, %round, %reason, "model rejected");
                }
            }
        }
        RoundRecord::WentBack { round, from, to } => {
            tracing::warn!(
                %task, %round, rejected = %from.version, version = %to.version,
                "training goes back to the newest release"
            );
        }
        RoundRecord::TaskPaused { round, reason } => {
            tracing::error!(%task, %round, %reason, "the task is paused: SIGHUP or a restart continues it");
        }
        RoundRecord::TaskResumed { round } => tracing::info!(%task, %round, "the task goes on"),
        RoundRecord::TaskFinished { .. } => tracing::info!(%task, "all planned rounds are over"),
        // That it is open says the ledger's own line.
        RoundRecord::RoundOpened { plan } => log_privacy_total(task, plan),
        // The ledger's own lines tell of these.
        RoundRecord::TaskStarted { .. } | RoundRecord::ModelAggregated { .. } => {}
    }
}

/// What the task's private rounds cost by their plans, where there are any.
fn log_privacy_total(task: &TaskId, plan: &RoundPlan) {
    let Some(PrivacyTotal { rounds, epsilon, delta }) = plan.privacy_total else { return };
    let (round, epsilon) = (plan.round, epsilon.map(Epsilon::get));
    tracing::info!(
        %task, %round, epsilon, delta = delta.get(), private_rounds = rounds, bounded = epsilon.is_some(),
        "what the private rounds announced so far cost a patient at most"
    );
}

/// What a site has spent, where it has a budget. It is the site's own word: nobody else can know.
fn log_privacy(task: &TaskId, round: RoundNumber, site: &SiteId, report: Option<&PrivacyReport>) {
    let Some(PrivacyReport { spent, limit, unbounded, rounds }) = report else { return };
    tracing::info!(
        %task, %round, %site, epsilon = spent.get(), of = limit.epsilon.get(), delta = limit.delta.get(),
        private_rounds = rounds, unbounded, "privacy budget of the site after this round"
    );
}

#[cfg(test)]
#[path = "host_tests.rs"]
mod tests;
