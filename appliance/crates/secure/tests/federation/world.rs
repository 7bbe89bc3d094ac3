//! A federation in one thread: a coordinator, sites, and a network between them that delays, loses, repeats and reorders.

use crate::audit::Audit;
use crate::identity::{Authority, Identity};
use crate::malice::Malice;
use crate::plan::{budget_of, federation, number, policy, site_id, update};
use medinet_rounds::{Coordinator, Effect, Input, Snapshot, Stage, TaskPlan};
use medinet_secure::{self as secure, Memory, Output, Participant, Setup};
use medinet_types::{BlobDigest, SiteId, UnixMillis};
use medinet_wire::message::{FromAggregatorToAll, FromSite, RoundKind, RoundPlan, SiteMetrics, ToSite};
use rand_chacha::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;
use std::time::Duration;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Faults {
    /// After this moment, in ms, nothing goes wrong any more.
    pub(crate) until: u64,
    pub(crate) lose_percent: u64,
    pub(crate) duplicate_percent: u64,
    pub(crate) longest_delay_ms: u64,
    /// Of 1,000 messages that reach it, how many find a site killed.
    pub(crate) kill_site_per_mille: u64,
    pub(crate) kill_aggregator_per_mille: u64,
    pub(crate) longest_downtime_ms: u64,
}

impl Faults {
    pub(crate) const NONE: Self = Self {
        until: 0,
        lose_percent: 0,
        duplicate_percent: 0,
        longest_delay_ms: 20,
        kill_site_per_mille: 0,
        kill_aggregator_per_mille: 0,
        longest_downtime_ms: 1,
    };
}

#[derive(Debug, Clone)]
enum Event {
    ToAggregator(usize, FromSite),
    ToSite(usize, ToSite),
    Pull(usize, BlobDigest),
    Site(usize),
    SiteUp(usize),
    Aggregator,
    AggregatorUp,
}

struct Round {
    plan: RoundPlan,
    /// On disk.
    memory: Vec<u8>,
    held: BTreeMap<BlobDigest, Vec<u8>>,
    trained_at: u64,
    /// In memory.
    participant: Option<Participant>,
    answered: bool,
}

struct Site {
    up: bool,
    round: Option<Round>,
    malice: Option<Malice>,
    rng: ChaCha20Rng,
}

pub(crate) struct World {
    pub(crate) plan: TaskPlan,
    pub(crate) audit: Audit,
    pub(crate) now: u64,
    faults: Faults,
    chance: ChaCha20Rng,
    coordinator: Option<Coordinator>,
    saved: Option<Snapshot>,
    blobs: BTreeMap<BlobDigest, Vec<u8>>,
    announced: Option<FromAggregatorToAll>,
    wake: u64,
    sites: Vec<Site>,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    events: BTreeMap<u64, Event>,
    next: u64,
    pub(crate) finished: bool,
    /// Sites that never come back once they have sent this many words in a session.
    pub(crate) dies_after: BTreeMap<usize, usize>,
    words: BTreeMap<usize, usize>,
}

impl World {
    pub(crate) fn new(plan: TaskPlan, faults: Faults, seed: u64) -> Self {
        let sites = (0..plan.members.len())
            .map(|n| Site {
                up: true,
                round: None,
                malice: None,
                rng: ChaCha20Rng::seed_from_u64(seed.wrapping_mul(1000).wrapping_add(n as u64)),
            })
            .collect();
        let coordinator = Coordinator::new(plan.clone()).unwrap();
        let coordinator = coordinator.trusting(Arc::new(Authority)).dealing([seed as u8; 32]);
        let mut world = Self {
            audit: Audit::new(&plan),
            plan,
            now: 1_000_000,
            faults: Faults { until: faults.until + 1_000_000, ..faults },
            chance: ChaCha20Rng::seed_from_u64(seed),
            coordinator: Some(coordinator),
            saved: None,
            blobs: BTreeMap::new(),
            announced: None,
            wake: u64::MAX,
            sites,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            next: 0,
            finished: false,
            dies_after: BTreeMap::new(),
            words: BTreeMap::new(),
        };
        world.give(Input::Start);
        for n in 0..world.sites.len() {
            let delay = world.below(1000);
            world.schedule(delay, Event::Site(n));
        }
        world.schedule(500, Event::Aggregator);
        world
    }

    /// The newest model's.
    pub(crate) fn parameters(&self) -> &[f32] {
        self.coordinator.as_ref().expect("the aggregator is up").parameters()
    }

    pub(crate) fn corrupt(&mut self, n: usize, malice: Malice) {
        self.sites[n].malice = Some(malice);
        self.audit.corrupt.insert(site_id(n));
    }

    fn below(&mut self, limit: u64) -> u64 {
        if limit == 0 { 0 } else { self.chance.next_u64() % limit }
    }

    fn percent(&mut self, percent: u64) -> bool {
        self.now < self.faults.until && self.below(100) < percent
    }

    fn schedule(&mut self, delay: u64, event: Event) {
        self.next += 1;
        self.queue.push(Reverse((self.now + delay, self.next)));
        self.events.insert(self.next, event);
    }

    /// Puts a message on the network.
    fn carry(&mut self, event: Event) {
        if self.percent(self.faults.lose_percent) {
            return;
        }
        let longest = if self.now < self.faults.until { self.faults.longest_delay_ms } else { 20 };
        let copies = 1 + usize::from(self.percent(self.faults.duplicate_percent));
        for _ in 0..copies {
            let delay = 1 + self.below(longest);
            self.schedule(delay, event.clone());
        }
    }

    /// Runs until the task is finished; an error after a day of the mock clock.
    pub(crate) fn run(&mut self) -> Result<(), String> {
        let end = self.now + 86_400_000;
        while !self.finished {
            let Some(Reverse((at, id))) = self.queue.pop() else {
                return Err("nothing happens any more".into());
            };
            if at > end {
                let stage = self.coordinator.as_ref().map(|c| c.progress().stage);
                return Err(format!("not finished after a day: {stage:?}"));
            }
            self.now = at;
            let event = self.events.remove(&id).unwrap();
            self.step(event)?;
        }
        self.audit.finish()
    }

    fn step(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::ToAggregator(n, message) => {
                if self.coordinator.is_some() {
                    if self.below(1000) < self.faults.kill_aggregator_per_mille
                        && self.now < self.faults.until
                    {
                        self.kill_aggregator();
                        return Ok(());
                    }
                    self.audit.given(&site_id(n), &message)?;
                    self.give(Input::Site { from: site_id(n), message });
                }
            }
            Event::ToSite(n, message) => self.site_hears(n, message)?,
            Event::Pull(n, blob) => {
                let bytes = self.sites[n].round.as_ref().and_then(|round| round.held.get(&blob).cloned());
                if let (Some(bytes), true) = (bytes, self.coordinator.is_some()) {
                    self.audit.blob(&site_id(n), &bytes)?;
                    self.give(Input::UpdateArrived { blob, bytes: &bytes });
                }
            }
            Event::Site(n) => {
                self.schedule(1000, Event::Site(n));
                self.site_ticks(n)?;
            }
            Event::SiteUp(n) => self.sites[n].up = true,
            Event::Aggregator => {
                self.schedule(500, Event::Aggregator);
                if self.coordinator.is_some() && self.now >= self.wake {
                    self.wake = u64::MAX;
                    self.give(Input::Tick);
                }
                // The operator looks after it.
                if self.coordinator.as_ref().is_some_and(|c| matches!(c.progress().stage, Stage::Paused(_))) {
                    self.give(Input::Start);
                }
            }
            Event::AggregatorUp => {
                let snapshot = self.saved.clone().expect("a started task is saved");
                let read = |blob| self.blobs.get(&blob).cloned();
                let resumed = Coordinator::resume(self.plan.clone(), snapshot, read);
                let resumed = resumed.unwrap();
                // Another secret in each life, as a program has.
                let secret = [self.below(256) as u8; 32];
                self.coordinator = Some(resumed.trusting(Arc::new(Authority)).dealing(secret));
                self.give(Input::Restarted);
            }
        }
        self.audit.check()
    }

    fn kill_aggregator(&mut self) {
        self.coordinator = None;
        let delay = 1 + self.below(self.faults.longest_downtime_ms);
        self.schedule(delay, Event::AggregatorUp);
    }

    fn give(&mut self, input: Input<'_>) {
        let Some(coordinator) = &mut self.coordinator else { return };
        for effect in coordinator.handle(UnixMillis(self.now), input) {
            match effect {
                Effect::Persist(commit) => {
                    self.saved = Some(Snapshot::decode(&commit.snapshot.encode()).unwrap());
                    for record in commit.records {
                        self.audit.record(record);
                    }
                }
                Effect::StoreBlob { manifest, bytes } => {
                    self.blobs.insert(manifest.digest, bytes);
                }
                Effect::Broadcast(message) => self.announced = Some(message),
                Effect::Send { site, message } => {
                    self.audit.told(&message);
                    self.carry(Event::ToSite(number(&site), message));
                }
                Effect::SendAll { sites, message } => {
                    for site in sites {
                        self.audit.told(&message);
                        self.carry(Event::ToSite(number(&site), message.clone()));
                    }
                }
                Effect::Fetch { site, manifest } => self.carry(Event::Pull(number(&site), manifest.digest)),
                Effect::WakeAt(when) => self.wake = when.0,
                Effect::Finished { .. } => self.finished = true,
                Effect::Serve { .. }
                | Effect::StopServing { .. }
                | Effect::StopFetching { .. }
                | Effect::LoadUpdate { .. }
                | Effect::Discard { .. }
                | Effect::Publish(_) => {}
            }
        }
    }

    fn kill_site(&mut self, n: usize) {
        let delay = 1 + self.below(self.faults.longest_downtime_ms);
        let site = &mut self.sites[n];
        site.up = false;
        if let Some(round) = &mut site.round {
            round.participant = None;
        }
        self.schedule(delay, Event::SiteUp(n));
    }

    fn site_ticks(&mut self, n: usize) -> Result<(), String> {
        if !self.sites[n].up {
            return Ok(());
        }
        self.read_announcement(n);
        let now = self.now;
        let site = &mut self.sites[n];
        let Some(round) = &mut site.round else { return Ok(()) };
        if now < round.trained_at {
            let (task, round) = (round.plan.spec.task.clone(), round.plan.round);
            if self.below(5) == 0 {
                self.carry(Event::ToAggregator(n, FromSite::Join { task, round }));
            }
            return Ok(());
        }
        if round.plan.kind == RoundKind::Evaluate {
            if !round.answered {
                let (task, round) = (round.plan.spec.task.clone(), round.plan.round);
                let metrics = SiteMetrics {
                    images: 10,
                    auroc: Some(0.9),
                    accuracy: 0.9,
                    loss: 0.1,
                    calibration_error: 0.1,
                };
                let message = FromSite::Evaluation { task, round, metrics: Some(metrics), vote: None };
                self.carry(Event::ToAggregator(n, message));
            }
            return Ok(());
        }
        if round.participant.is_none() {
            let memory = if round.memory.is_empty() {
                Memory::default()
            } else {
                Memory::from_bytes(&round.memory).map_err(|e| e.to_string())?
            };
            let setup = Setup {
                plan: round.plan.clone(),
                federation: federation(),
                site: site_id(n),
                policy: policy(),
                signer: Arc::new(Identity::of(&site_id(n))),
                trust: Arc::new(Authority),
                repeat_after: Duration::from_secs(3),
            };
            let update = update(n, &round.plan);
            let said = budget_of(&site_id(n), round.plan.round);
            let participant = Participant::new(setup, update, None, memory);
            round.participant = Some(participant.map_err(|e| e.to_string())?.reporting(Some(said)));
        }
        self.site_does(n, secure::Input::Tick)
    }

    /// The announcement is retained: whoever is up has it, soon.
    fn read_announcement(&mut self, n: usize) {
        if self.percent(self.faults.lose_percent) {
            return;
        }
        let trained_at = self.now + self.below(5000);
        let site = &mut self.sites[n];
        match &self.announced {
            Some(FromAggregatorToAll::Announce(plan)) => {
                let known = site.round.as_ref().is_some_and(|round| round.plan.round == plan.round);
                if known {
                    let round = site.round.as_mut().expect("just seen");
                    if round.plan.deadline != plan.deadline {
                        round.plan.deadline = plan.deadline;
                        round.answered = false;
                    }
                } else {
                    site.round = Some(Round {
                        plan: plan.clone(),
                        memory: Vec::new(),
                        held: BTreeMap::new(),
                        trained_at,
                        participant: None,
                        answered: false,
                    });
                }
            }
            Some(FromAggregatorToAll::Idle { .. }) => site.round = None,
            _ => {}
        }
    }

    fn site_hears(&mut self, n: usize, message: ToSite) -> Result<(), String> {
        if !self.sites[n].up {
            return Ok(());
        }
        if self.now < self.faults.until && self.below(1000) < self.faults.kill_site_per_mille {
            self.kill_site(n);
            return Ok(());
        }
        let Some(round) = &mut self.sites[n].round else { return Ok(()) };
        match message {
            ToSite::Secure { round: number, step, .. } if number == round.plan.round => {
                self.site_does(n, secure::Input::Heard(step))
            }
            ToSite::Accepted { round: number, .. } if number == round.plan.round => {
                round.answered = true;
                self.site_does(n, secure::Input::Accepted)
            }
            _ => Ok(()),
        }
    }

    fn site_does(&mut self, n: usize, input: secure::Input) -> Result<(), String> {
        let now = UnixMillis(self.now);
        let site = &mut self.sites[n];
        let Some(round) = &mut site.round else { return Ok(()) };
        let Some(participant) = &mut round.participant else { return Ok(()) };
        let outputs = participant.handle(now, input, &mut site.rng);
        let (task, number) = (round.plan.spec.task.clone(), round.plan.round);
        for output in outputs {
            let Some(round) = &mut self.sites[n].round else { return Ok(()) };
            match output {
                Output::Persist(memory) => round.memory = memory,
                Output::Hold(masked) => {
                    let bytes = match &self.sites[n].malice {
                        Some(malice) => malice.input(masked.as_bytes()),
                        None => masked.as_bytes().to_vec(),
                    };
                    let digest = medinet_wire::blob::BlobManifest::of(&bytes).digest;
                    let round = self.sites[n].round.as_mut().expect("just seen");
                    round.held.insert(digest, bytes);
                }
                Output::Release(blob) => {
                    round.held.remove(&blob);
                }
                Output::Send(word) => {
                    let step = word.into_step();
                    let words = self.words.entry(n).or_default();
                    *words += 1;
                    if self.dies_after.get(&n).is_some_and(|limit| *words > *limit) {
                        self.sites[n].up = false;
                        return Ok(());
                    }
                    let held: Vec<_> = round.held.values().cloned().collect();
                    self.audit.said(&site_id(n), number, &step)?;
                    let steps = match &mut self.sites[n].malice {
                        Some(malice) => malice.step(step, &held),
                        None => vec![step],
                    };
                    for step in steps {
                        let message = FromSite::Secure { task: task.clone(), round: number, step };
                        self.carry(Event::ToAggregator(n, message));
                    }
                }
                Output::Counted => self.audit.counted(&site_id(n), number),
                Output::Stopped { reason } => {
                    return Err(format!("{} blames an honest aggregator: {reason}", site_id(n)));
                }
            }
        }
        Ok(())
    }

    pub(crate) fn models(&self) -> usize {
        self.audit.models
    }

    pub(crate) fn members(&self) -> Vec<SiteId> {
        self.plan.members.iter().cloned().collect()
    }
}
