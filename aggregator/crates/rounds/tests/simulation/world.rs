//! One federation: an aggregator, sites, a network and a clock, all driven by one queue of events.

use crate::chance::Chance;
use crate::site::{Character, PARAMETERS, Site, site_id};
use crate::votes;
use medinet_fixtures::NamesAuthority;
use medinet_model::{decode_parameters, model_digest};
use medinet_rounds::{Coordinator, Effect, Input, RoundRecord, Snapshot, Stage, TaskPlan};
use medinet_types::{BlobDigest, ModelDigest, UnixMillis};
use medinet_update::follow;
use medinet_wire::blob::BlobManifest;
use medinet_wire::message::{FromAggregatorToAll, FromSite, RoundPlan, ToSite};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;

/// How bad things are until `until_ms`; after that nothing goes wrong.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Faults {
    pub(crate) until_ms: u64,
    pub(crate) lose_percent: u64,
    pub(crate) duplicate_percent: u64,
    pub(crate) longest_delay_ms: u64,
    /// Between any two effects.
    pub(crate) kill_aggregator_per_mille: u64,
    /// At each of a site's repeats.
    pub(crate) kill_site_percent: u64,
    pub(crate) longest_downtime_ms: u64,
    pub(crate) longest_training_ms: u64,
    /// Chance that a kept update is gone after a restart of the aggregator: a disk that loses what it had confirmed.
    pub(crate) rot_percent: u64,
}

impl Faults {
    pub(crate) fn none() -> Self {
        Self {
            until_ms: 0,
            lose_percent: 0,
            duplicate_percent: 0,
            longest_delay_ms: 1,
            kill_aggregator_per_mille: 0,
            kill_site_percent: 0,
            longest_downtime_ms: 1,
            longest_training_ms: 1_000,
            rot_percent: 0,
        }
    }
}

const REPEAT_MS: u64 = 2_000;

#[derive(Debug, Clone, PartialEq)]
enum Event {
    Up(usize, Box<FromSite>),
    Down(usize, Box<ToSite>),
    /// The retained announcement reaches a site.
    Announced(usize),
    SiteRepeats(usize, u64),
    SiteTrained(usize, u64),
    SiteStarts(usize),
    Pulled(usize, Box<BlobManifest>, u64),
    Wake(u64),
    AggregatorStarts,
    OperatorStarts,
}

pub(crate) struct World {
    pub(crate) plan: TaskPlan,
    faults: Faults,
    chance: Chance,
    now: u64,
    sequence: u64,
    queue: BinaryHeap<Reverse<(u64, u64, usize)>>,
    events: Vec<Option<Event>>,
    sites: Vec<Site>,
    /// Counts a site's lives; events of an earlier life are void. Odd while it is down.
    lives: Vec<u64>,
    coordinator: Option<Coordinator>,
    /// The same for the aggregator.
    life: u64,
    saved: Option<Vec<u8>>,
    pub(crate) records: Vec<RoundRecord>,
    blobs: BTreeMap<BlobDigest, Vec<u8>>,
    /// Which of these were pulled from a site.
    updates: BTreeSet<BlobDigest>,
    retained: Option<FromAggregatorToAll>,
    /// All models that were announced.
    models: BTreeMap<ModelDigest, Vec<f32>>,
    /// Ways to a base that were checked.
    pub(crate) followed: u32,
    pub(crate) kills: u32,
    /// Releases that the host was told to publish, repetitions included.
    pub(crate) published: u32,
    pub(crate) largest_snapshot: usize,
    pub(crate) finished: bool,
    pub(crate) refusals: Vec<(usize, ToSite)>,
}

impl World {
    pub(crate) fn new(plan: TaskPlan, characters: &[Character], faults: Faults, seed: u64) -> Self {
        let task = plan.spec.task.clone();
        let sites = characters.iter().enumerate().map(|(n, c)| Site::new(n, *c, task.clone())).collect();
        let coordinator = Coordinator::new(plan.clone()).unwrap().trusting(Arc::new(NamesAuthority));
        let mut world = Self {
            plan,
            faults,
            chance: Chance::new(seed),
            now: 1_000_000,
            sequence: 0,
            queue: BinaryHeap::new(),
            events: Vec::new(),
            sites,
            lives: vec![0; characters.len()],
            coordinator: Some(coordinator),
            life: 0,
            saved: None,
            records: Vec::new(),
            blobs: BTreeMap::new(),
            updates: BTreeSet::new(),
            retained: None,
            models: BTreeMap::new(),
            followed: 0,
            kills: 0,
            published: 0,
            largest_snapshot: 0,
            finished: false,
            refusals: Vec::new(),
        };
        world.at(0, Event::OperatorStarts);
        for n in 0..characters.len() {
            world.at(0, Event::SiteRepeats(n, 0));
        }
        world
    }

    fn at(&mut self, delay: u64, event: Event) {
        self.sequence += 1;
        self.queue.push(Reverse((self.now + delay, self.sequence, self.events.len())));
        self.events.push(Some(event));
    }

    fn faulty(&self) -> bool {
        self.now < 1_000_000 + self.faults.until_ms
    }

    fn delay(&mut self) -> u64 {
        let longest = if self.faulty() { self.faults.longest_delay_ms } else { 10 };
        1 + self.chance.below(longest)
    }

    /// Sends through the network: lost, once or twice, each after a time of its own, so in any order.
    fn send(&mut self, event: Event) {
        let faults = self.faults;
        if self.faulty() && self.chance.percent(faults.lose_percent) {
            return;
        }
        if self.faulty() && self.chance.percent(faults.duplicate_percent) {
            let delay = self.delay();
            self.at(delay, event.clone());
        }
        let delay = self.delay();
        self.at(delay, event);
    }

    /// Runs until the task is finished; an error when it does not end.
    pub(crate) fn run(&mut self) -> Result<(), String> {
        for _ in 0..200_000 {
            let Some(Reverse((now, _, index))) = self.queue.pop() else {
                return Err("nothing is left to happen and the task is not finished".into());
            };
            self.now = now;
            if let Some(event) = self.events[index].take() {
                self.happen(event)?;
            }
            if self.finished && !self.faulty() {
                return Ok(());
            }
        }
        Err(format!("no end: {:?}", self.coordinator.as_ref().map(Coordinator::progress)))
    }

    fn up(&self, n: usize) -> bool {
        self.lives[n].is_multiple_of(2)
    }

    fn happen(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Up(n, message) => self.give(Input::Site { from: site_id(n), message: *message }),
            Event::Down(n, message) => {
                if self.up(n) && self.sites[n].answered(&message) {
                    let delay = self.delay();
                    self.at(delay, Event::Announced(n));
                }
                Ok(())
            }
            Event::Announced(n) => {
                self.read_announcement(n);
                Ok(())
            }
            Event::SiteRepeats(n, life) => {
                self.site_repeats(n, life);
                Ok(())
            }
            Event::SiteTrained(n, life) => {
                if self.lives[n] == life {
                    self.sites[n].trained();
                    self.site_says(n);
                }
                Ok(())
            }
            Event::SiteStarts(n) => {
                self.lives[n] += 1;
                let life = self.lives[n];
                self.at(0, Event::Announced(n));
                self.at(REPEAT_MS, Event::SiteRepeats(n, life));
                Ok(())
            }
            Event::Pulled(n, manifest, life) => self.pulled(n, &manifest, life),
            Event::Wake(life) if life == self.life => self.give(Input::Tick),
            Event::Wake(_) => Ok(()),
            Event::AggregatorStarts => self.aggregator_starts(),
            Event::OperatorStarts => self.give(Input::Start),
        }
    }

    fn read_announcement(&mut self, n: usize) {
        if !self.up(n) {
            return;
        }
        match self.retained.clone() {
            Some(FromAggregatorToAll::Announce(plan)) => {
                if !self.sites[n].announced(&plan) {
                    return;
                }
                let life = self.lives[n];
                let training = 1 + self.chance.below(self.faults.longest_training_ms);
                self.at(training, Event::SiteTrained(n, life));
                self.site_says(n);
            }
            Some(FromAggregatorToAll::Idle { .. }) => self.sites[n].idle(),
            _ => {}
        }
    }

    fn site_says(&mut self, n: usize) {
        if let Some(message) = self.sites[n].says(&mut self.chance) {
            self.send(Event::Up(n, Box::new(message)));
        }
    }

    fn site_repeats(&mut self, n: usize, life: u64) {
        if self.lives[n] != life {
            return;
        }
        if self.faulty() && self.chance.percent(self.faults.kill_site_percent) {
            self.lives[n] += 1;
            self.sites[n].forget();
            let downtime = 1 + self.chance.below(self.faults.longest_downtime_ms);
            self.at(downtime, Event::SiteStarts(n));
            return;
        }
        // The link repeats retained broadcasts at each reconnect; here at each repeat.
        self.read_announcement(n);
        self.site_says(n);
        self.at(REPEAT_MS, Event::SiteRepeats(n, life));
    }

    /// A transfer ends, when both sides are still there for it.
    fn pulled(&mut self, n: usize, manifest: &BlobManifest, life: u64) -> Result<(), String> {
        if self.life != life || self.coordinator.is_none() || !self.up(n) {
            return Ok(());
        }
        let Some(bytes) = self.sites[n].serves() else { return Ok(()) };
        if BlobManifest::of(&bytes) != *manifest {
            return Ok(());
        }
        let blob = manifest.digest;
        self.blobs.insert(blob, bytes.clone());
        self.updates.insert(blob);
        self.give(Input::UpdateArrived { blob, bytes: &bytes })
    }

    fn aggregator_starts(&mut self) -> Result<(), String> {
        self.life += 1;
        let Some(saved) = &self.saved else {
            let coordinator = Coordinator::new(self.plan.clone()).unwrap();
            self.coordinator = Some(coordinator.trusting(Arc::new(NamesAuthority)));
            self.at(1, Event::OperatorStarts);
            return Ok(());
        };
        let snapshot = Snapshot::decode(saved).map_err(|e| e.to_string())?;
        let read = |blob| self.blobs.get(&blob).cloned();
        let coordinator = Coordinator::resume(self.plan.clone(), snapshot, read);
        let coordinator = coordinator.map_err(|e| e.to_string())?.trusting(Arc::new(NamesAuthority));
        if self.chance.percent(self.faults.rot_percent) {
            let rotten = coordinator.blobs().into_iter().find(|blob| self.updates.contains(blob));
            rotten.map(|blob| self.blobs.remove(&blob));
        }
        self.coordinator = Some(coordinator);
        self.give(Input::Restarted)
    }

    /// Gives an input and carries the effects out one by one; a kill may come before, between and after them.
    fn give(&mut self, input: Input<'_>) -> Result<(), String> {
        let now = UnixMillis(self.now);
        let Some(coordinator) = &mut self.coordinator else { return Ok(()) };
        let mut effects = coordinator.handle(now, input);
        effects.reverse();
        let mut loads = Vec::new();
        while let Some(effect) = effects.pop() {
            if self.faulty() && self.chance.below(1000) < self.faults.kill_aggregator_per_mille {
                self.kills += 1;
                self.coordinator = None;
                let downtime = 1 + self.chance.below(self.faults.longest_downtime_ms);
                self.at(downtime, Event::AggregatorStarts);
                return Ok(());
            }
            match effect {
                Effect::LoadUpdate { blob } => loads.push(blob),
                effect => self.carry_out(effect)?,
            }
        }
        for blob in loads {
            let bytes = self.blobs.get(&blob).cloned();
            self.give(match &bytes {
                Some(bytes) => Input::UpdateArrived { blob, bytes },
                None => Input::UpdateFailed { blob },
            })?;
            if self.coordinator.is_none() {
                return Ok(());
            }
        }
        if let Some(coordinator) = &self.coordinator
            && matches!(coordinator.progress().stage, Stage::Paused(_))
        {
            let patience = 1 + self.chance.below(60_000);
            self.at(patience, Event::OperatorStarts);
        }
        Ok(())
    }

    fn carry_out(&mut self, effect: Effect) -> Result<(), String> {
        match effect {
            Effect::StoreBlob { manifest, bytes } => {
                if BlobManifest::of(&bytes) != manifest {
                    return Err("a blob under a false name".into());
                }
                self.blobs.insert(manifest.digest, bytes);
            }
            Effect::Persist(commit) => {
                let bytes = commit.snapshot.encode();
                self.largest_snapshot = self.largest_snapshot.max(bytes.len());
                self.saved = Some(bytes);
                self.records.extend(commit.records);
            }
            Effect::Broadcast(message) => {
                if let FromAggregatorToAll::Announce(plan) = &message {
                    self.follow(plan)?;
                }
                self.retained = Some(message);
                for n in 0..self.sites.len() {
                    self.send(Event::Announced(n));
                }
            }
            Effect::Send { site, message } => self.deliver(&site, message)?,
            Effect::SendAll { sites, message } => {
                sites.iter().try_for_each(|site| self.deliver(site, message.clone()))?;
            }
            Effect::Fetch { site, manifest } => {
                let n = self.number(&site);
                let life = self.life;
                self.send(Event::Pulled(n, Box::new(manifest), life));
            }
            Effect::WakeAt(when) => {
                let life = self.life;
                self.at(when.0.saturating_sub(self.now), Event::Wake(life));
            }
            Effect::Discard { blobs } => {
                let needed = self.coordinator.as_ref().map(Coordinator::blobs).unwrap_or_default();
                for blob in blobs {
                    if needed.contains(&blob) {
                        return Err("discards a blob that is needed".into());
                    }
                    self.blobs.remove(&blob);
                }
            }
            Effect::Serve { blob } => {
                if !self.blobs.contains_key(&blob) {
                    return Err("serves a blob that is not stored".into());
                }
            }
            Effect::Finished { .. } => self.finished = true,
            Effect::StopServing { .. } | Effect::StopFetching { .. } => {}
            Effect::Publish(release) => {
                votes::published(&self.plan, &self.records, &release)?;
                self.published += 1;
            }
            Effect::LoadUpdate { .. } => unreachable!("handled by the caller"),
        }
        Ok(())
    }

    /// From every model that an announcement lists its deltas lead to the base, bit for bit.
    fn follow(&mut self, plan: &RoundPlan) -> Result<(), String> {
        let stored = |blob| self.blobs.get(blob).ok_or("a round is announced on a blob that is not stored");
        let base = decode_parameters(stored(&plan.base.parameters.digest)?, PARAMETERS);
        let base = base.map_err(|e| e.to_string())?;
        for (n, step) in plan.steps.iter().enumerate() {
            let deltas = plan.steps[n..].iter().map(|step| stored(&step.delta.digest));
            let deltas = deltas.collect::<Result<Vec<_>, _>>()?;
            let from = self.models.get(&step.from).ok_or("a step from a model that was never announced")?;
            let followed = follow(from, deltas.into_iter().map(Vec::as_slice)).map_err(|e| e.to_string())?;
            if model_digest(&plan.spec.network, &followed) != plan.base.digest || followed != base {
                return Err(format!("round {}: the steps lead to another model than the base", plan.round));
            }
            self.followed += 1;
        }
        self.models.insert(plan.base.digest, base);
        Ok(())
    }

    fn number(&self, site: &medinet_types::SiteId) -> usize {
        (0..self.sites.len()).find(|n| site_id(*n) == *site).expect("a site of this world")
    }

    /// Sends an answer; what it promises must be durable by now.
    fn deliver(&mut self, site: &medinet_types::SiteId, message: ToSite) -> Result<(), String> {
        match &message {
            ToSite::Accepted { round, .. } => {
                let durable = self.records.iter().rev().any(|record| match record {
                    RoundRecord::UpdateAccepted { round: r, site: s, .. }
                    | RoundRecord::Evaluated { round: r, site: s, .. }
                    | RoundRecord::SiteDeclined { round: r, site: s, .. } => r == round && s == site,
                    _ => false,
                });
                if !durable {
                    return Err(format!("{site} was told that it counts before that was durable"));
                }
            }
            ToSite::Refused { .. } => {}
            other => return Err(format!("unexpected {other:?}")),
        }
        let n = self.number(site);
        if matches!(message, ToSite::Refused { .. }) {
            self.refusals.push((n, message.clone()));
        }
        self.send(Event::Down(n, Box::new(message)));
        Ok(())
    }

    pub(crate) fn model(&self) -> Option<ModelDigest> {
        let saved = self.saved.as_deref()?;
        Some(Snapshot::decode(saved).ok()?.model().digest)
    }

    /// The announced round, if one is open.
    pub(crate) fn announced(&self) -> Option<&RoundPlan> {
        match &self.retained {
            Some(FromAggregatorToAll::Announce(plan)) => Some(plan),
            _ => None,
        }
    }
}
