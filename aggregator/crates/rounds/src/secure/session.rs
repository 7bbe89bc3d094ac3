//! One session of secure aggregation, from its beginning to a sum or a failure.

use crate::effect::{Effect, Outbox};
use medinet_secagg::server::{Advertising, Agreeing, Collecting, Opening, Sharing};
use medinet_secagg::{
    Advertisement, Agreement, Assumptions, Error, Fault, KeyShares, Message, Problem, RingVector, SessionId,
    SessionParameters, Unmasking,
};
use medinet_types::{BlobDigest, RoundNumber, SiteId, TaskId, UnixMillis};
use medinet_wire::blob::BlobManifest;
use medinet_wire::message::{RoundPlan, ToSite};
use medinet_wire::secure::{
    AbandonmentCertificate, AggregatorStep, EnrolledSites, KEYS_PART_BYTES, SiteStep,
};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// An opened sum.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) sum: RingVector,
    /// Whose inputs are in it, and as what they came.
    pub(crate) contributors: BTreeMap<SiteId, BlobManifest>,
}

#[derive(Debug)]
pub(crate) struct Session {
    task: TaskId,
    round: RoundNumber,
    parameters: SessionParameters,
    id: SessionId,
    assumptions: Assumptions,
    message_time: Duration,
    input_time: Duration,
    group: u16,
    /// What each site needs to see before it enters.
    proofs: BTreeMap<SiteId, Vec<AbandonmentCertificate>>,
    cohort: BTreeSet<SiteId>,
    /// When the phase closes without those who are missing.
    until: UnixMillis,
    phase: Phase,
    /// Who is not waited for.
    gone: BTreeSet<SiteId>,
    /// Who holds whom at fault.
    complaints: BTreeMap<SiteId, BTreeSet<SiteId>>,
    advertised: BTreeSet<SiteId>,
    /// What was last said, to be said again to those who ask again.
    keys: Vec<AggregatorStep>,
    /// The sites whose keys are shared, and what each was given of the others' until it has it: sealed shares are most of what a session of many
    /// sites keeps.
    deliveries: BTreeMap<SiteId, Option<AggregatorStep>>,
    /// Masked inputs that are being pulled.
    offers: BTreeMap<SiteId, BlobManifest>,
    counted: BTreeMap<SiteId, BlobManifest>,
    survivors: Option<AggregatorStep>,
    agreed: BTreeSet<SiteId>,
    agreements: Option<AggregatorStep>,
}

#[derive(Debug, Default)]
enum Phase {
    #[default]
    Over,
    Advertising(Advertising),
    Sharing(Sharing),
    Collecting(Collecting),
    Agreeing(Agreeing),
    Opening(Opening),
}

/// Why a session failed, and whose fault that is.
pub(crate) type Failure = (String, Option<SiteId>);

/// What to answer a site, and what it did wrong.
type Answer = (Vec<AggregatorStep>, Option<String>);

impl Session {
    pub(crate) fn begin(
        plan: &RoundPlan,
        group: u16,
        parameters: SessionParameters,
        proofs: BTreeMap<SiteId, Vec<AbandonmentCertificate>>,
        now: UnixMillis,
    ) -> Result<Self, String> {
        let secure = plan.aggregation.secure().ok_or("the round does not ask for secure aggregation")?;
        let phase = Advertising::new(parameters.clone()).map_err(|error| error.to_string())?;
        let message_time = Duration::from_secs(secure.message_seconds.into());
        Ok(Self {
            task: plan.spec.task.clone(),
            round: plan.round,
            id: parameters.id(),
            parameters,
            assumptions: secure.assumptions,
            message_time,
            input_time: Duration::from_secs(secure.input_seconds.into()),
            group,
            cohort: proofs.keys().cloned().collect(),
            proofs,
            until: now.after(message_time),
            phase: Phase::Advertising(phase),
            gone: BTreeSet::new(),
            complaints: BTreeMap::new(),
            advertised: BTreeSet::new(),
            keys: Vec::new(),
            deliveries: BTreeMap::new(),
            offers: BTreeMap::new(),
            counted: BTreeMap::new(),
            survivors: None,
            agreed: BTreeSet::new(),
            agreements: None,
        })
    }

    pub(crate) fn attempt(&self) -> u32 {
        self.parameters.attempt
    }

    pub(crate) fn until(&self) -> UnixMillis {
        self.until
    }

    pub(crate) fn begin_step(&self, site: &SiteId) -> AggregatorStep {
        let abandoned = self.proofs.get(site).cloned().unwrap_or_default();
        AggregatorStep::Begin { attempt: self.attempt(), group: self.group, abandoned }
    }

    pub(crate) fn blobs(&self) -> impl Iterator<Item = BlobDigest> {
        self.offers.values().map(|offer| offer.digest)
    }

    pub(crate) fn gone(&mut self, site: &SiteId) {
        if self.cohort.contains(site) {
            self.gone.insert(site.clone());
        }
    }

    pub(crate) fn complaint(&mut self, from: &SiteId, blames: Option<SiteId>) {
        if self.cohort.contains(from) {
            self.gone.insert(from.clone());
            if let Some(site) = blames.filter(|site| self.cohort.contains(site)) {
                self.complaints.entry(site).or_default().insert(from.clone());
            }
        }
    }

    /// Sites blamed by more others than can be lying: a share that does not open may be its dealer's fault or the
    /// complainer's (docs/threat-model.md, section 8).
    pub(crate) fn blamed(&self, assumptions: &Assumptions) -> Vec<SiteId> {
        let n = u16::try_from(self.cohort.len()).unwrap_or(u16::MAX);
        let liars = usize::from(assumptions.corrupt(n));
        let blamed = self.complaints.iter().filter(|(_, by)| by.len() > liars.max(1));
        blamed.map(|(site, _)| site.clone()).collect()
    }

    /// A site of the cohort says that it is ready: it has not heard of the session, or has left it.
    pub(crate) fn on_ready(&mut self, from: &SiteId, left: u32) -> Option<AggregatorStep> {
        if !self.cohort.contains(from) {
            return None;
        }
        if left >= self.attempt() {
            self.gone.insert(from.clone());
            return None;
        }
        if matches!(self.phase, Phase::Advertising(_)) && !self.advertised.contains(from) {
            return Some(self.begin_step(from));
        }
        // It has lost its secrets in a restart, or was too late.
        self.gone.insert(from.clone());
        Some(AggregatorStep::Abandon { attempt: self.attempt() })
    }

    /// Takes a site's word in the session.
    pub(crate) fn on_step(
        &mut self,
        out: &mut Outbox,
        from: &SiteId,
        step: SiteStep,
        trust: &EnrolledSites<'_>,
    ) -> Answer {
        let abandon = AggregatorStep::Abandon { attempt: self.attempt() };
        let earlier = AggregatorStep::Abandon { attempt: self.attempt() - 1 };
        if !self.cohort.contains(from) {
            return (vec![earlier], None);
        }
        let result = match step {
            SiteStep::Advertisement(bytes) => match read::<Advertisement>(self.id, &bytes) {
                Ok(message) => self.on_advertisement(from, message, trust),
                other => other.map(|_| Vec::new()),
            },
            SiteStep::KeyShares(bytes) => match read::<KeyShares>(self.id, &bytes) {
                Ok(message) => self.on_key_shares(from, message),
                other => other.map(|_| Vec::new()),
            },
            SiteStep::MaskedInput { session, input } => {
                if session == self.id {
                    self.on_offer(out, from, input)
                } else {
                    Err(Refusal::Stale)
                }
            }
            SiteStep::Agreement(bytes) => match read::<Agreement>(self.id, &bytes) {
                Ok(message) => self.on_agreement(from, message, trust),
                other => other.map(|_| Vec::new()),
            },
            SiteStep::Unmasking(bytes) => match read::<Unmasking>(self.id, &bytes) {
                Ok(message) => self.on_unmasking(from, message),
                other => other.map(|_| Vec::new()),
            },
            SiteStep::Ready { .. } | SiteStep::Failed { .. } | SiteStep::Spent => Ok(Vec::new()),
        };
        match result {
            Ok(said) => (said, None),
            Err(Refusal::Stale) => (vec![earlier], None),
            Err(Refusal::Late) => {
                self.gone.insert(from.clone());
                (vec![abandon], None)
            }
            Err(Refusal::Harmless) => (Vec::new(), None),
            Err(Refusal::Fault(reason)) => (Vec::new(), Some(reason)),
        }
    }

    fn on_advertisement(
        &mut self,
        from: &SiteId,
        message: Advertisement,
        trust: &EnrolledSites<'_>,
    ) -> Result<Vec<AggregatorStep>, Refusal> {
        match &mut self.phase {
            Phase::Advertising(phase) => {
                phase.receive(from, message, trust)?;
                self.advertised.insert(from.clone());
                Ok(Vec::new())
            }
            _ if self.advertised.contains(from) => Ok(self.keys.clone()),
            _ => Err(Refusal::Late),
        }
    }

    fn on_key_shares(&mut self, from: &SiteId, message: KeyShares) -> Result<Vec<AggregatorStep>, Refusal> {
        match &mut self.phase {
            Phase::Advertising(_) => Err(Refusal::Harmless),
            Phase::Sharing(phase) => {
                phase.receive(from, message)?;
                Ok(Vec::new())
            }
            Phase::Collecting(_) => {
                self.deliveries.get(from).map(|step| step.iter().cloned().collect()).ok_or(Refusal::Late)
            }
            _ if self.counted.contains_key(from) => Err(Refusal::Harmless),
            _ => Err(Refusal::Late),
        }
    }

    fn on_offer(
        &mut self,
        out: &mut Outbox,
        from: &SiteId,
        input: BlobManifest,
    ) -> Result<Vec<AggregatorStep>, Refusal> {
        match &self.phase {
            Phase::Collecting(_) if !self.deliveries.contains_key(from) => Err(Refusal::Late),
            Phase::Collecting(_) if self.counted.get(from).is_some_and(|counted| *counted == input) => {
                Ok(Vec::new())
            }
            Phase::Collecting(_) => {
                input.check().map_err(|error| Refusal::Fault(error.to_string()))?;
                // The header is the version, the kind and the session.
                let limit = self.parameters.payload_bytes() as u64 + 64;
                if input.length_bytes > limit {
                    let got = input.length_bytes;
                    return Err(Refusal::Fault(format!(
                        "masked input: expected at most {limit} bytes, got {got}"
                    )));
                }
                let earlier = self.offers.get(from).or_else(|| self.counted.get(from));
                if earlier.is_some_and(|earlier| earlier.digest != input.digest) {
                    return Err(Refusal::Fault("a second, other masked input in one session".into()));
                }
                // Its vector is masked, so it has its shares.
                self.deliveries.insert(from.clone(), None);
                self.offers.insert(from.clone(), input.clone());
                out.then(Effect::Fetch { site: from.clone(), manifest: input });
                Ok(Vec::new())
            }
            Phase::Advertising(_) | Phase::Sharing(_) => Err(Refusal::Harmless),
            _ if self.counted.contains_key(from) => Ok(self.survivors.iter().cloned().collect()),
            _ => Err(Refusal::Late),
        }
    }

    /// A masked input is whole: it is added to the sum and forgotten. Returns who broke the rules, and how.
    pub(crate) fn on_input(&mut self, blob: BlobDigest, bytes: &[u8]) -> Vec<(SiteId, String)> {
        let Phase::Collecting(phase) = &mut self.phase else { return Vec::new() };
        let offering = self.offers.iter().filter(|(_, offer)| offer.digest == blob);
        let sites: Vec<SiteId> = offering.map(|(site, _)| site.clone()).collect();
        let mut faults = Vec::new();
        for site in sites {
            let Some(offer) = self.offers.remove(&site) else { continue };
            match phase.receive(&site, bytes).map_err(Refusal::from) {
                Ok(()) => {
                    self.counted.insert(site, offer);
                }
                Err(Refusal::Fault(reason)) => faults.push((site, reason)),
                Err(_) => {}
            }
        }
        faults
    }

    /// The site offers again what it has; if it cannot, its time runs out.
    pub(crate) fn on_input_failed(&mut self, blob: BlobDigest) {
        self.offers.retain(|_, offer| offer.digest != blob);
    }

    fn on_agreement(
        &mut self,
        from: &SiteId,
        message: Agreement,
        trust: &EnrolledSites<'_>,
    ) -> Result<Vec<AggregatorStep>, Refusal> {
        match &mut self.phase {
            Phase::Agreeing(phase) => {
                phase.receive(from, message, trust)?;
                self.agreed.insert(from.clone());
                Ok(Vec::new())
            }
            Phase::Opening(_) if self.agreed.contains(from) => Ok(self.agreements.iter().cloned().collect()),
            // One that came late has nothing more to do, and hears when the sum is open.
            _ => Err(Refusal::Harmless),
        }
    }

    fn on_unmasking(&mut self, from: &SiteId, message: Unmasking) -> Result<Vec<AggregatorStep>, Refusal> {
        if let Phase::Opening(phase) = &mut self.phase {
            phase.receive(from, message)?;
        }
        Ok(Vec::new())
    }

    /// Closes phases that have all they wait for, or whose time is over.
    pub(crate) fn advance(&mut self, out: &mut Outbox, now: UnixMillis) -> Result<Option<Opened>, Failure> {
        loop {
            let due = now >= self.until;
            let missing = match &self.phase {
                Phase::Over => return Err(("the session is over".into(), None)),
                Phase::Advertising(_) => self.cohort.difference(&self.advertised).cloned().collect(),
                Phase::Sharing(phase) => phase.missing(),
                Phase::Collecting(phase) => phase.missing(),
                Phase::Agreeing(phase) => phase.missing(),
                Phase::Opening(phase) if phase.is_ready() => Vec::new(),
                Phase::Opening(phase) => phase.missing(),
            };
            if !due && missing.iter().any(|site| !self.gone.contains(site)) {
                return Ok(None);
            }
            if let Some(opened) = self.close_phase(out, now).map_err(failure)? {
                return Ok(Some(opened));
            }
        }
    }

    fn close_phase(&mut self, out: &mut Outbox, now: UnixMillis) -> Result<Option<Opened>, Error> {
        self.until = now.after(self.message_time);
        match std::mem::take(&mut self.phase) {
            Phase::Over => {}
            Phase::Advertising(phase) => {
                let (list, phase) = phase.close(&self.assumptions)?;
                let bytes = list.encode();
                let parts = u16::try_from(bytes.chunks(KEYS_PART_BYTES).count()).unwrap_or(u16::MAX);
                let session = self.id;
                let part = |(part, bytes): (u16, &[u8])| AggregatorStep::Keys {
                    session,
                    part,
                    parts,
                    bytes: bytes.to_vec(),
                };
                self.keys = (0..).zip(bytes.chunks(KEYS_PART_BYTES)).map(part).collect();
                self.advertised = list.members.iter().map(|member| member.site.clone()).collect();
                for step in &self.keys {
                    self.say_all(out, self.advertised.iter(), step.clone());
                }
                for site in self.cohort.difference(&self.advertised) {
                    self.drop_site(out, site);
                }
                self.phase = Phase::Sharing(phase);
            }
            Phase::Sharing(phase) => {
                let (deliveries, phase) = phase.close()?;
                for (site, delivery) in deliveries {
                    let step = AggregatorStep::Shares(delivery.encode());
                    self.say(out, &site, step.clone());
                    self.deliveries.insert(site, Some(step));
                }
                for site in &self.advertised {
                    if !self.deliveries.contains_key(site) {
                        self.drop_site(out, site);
                    }
                }
                self.until = now.after(self.input_time);
                self.phase = Phase::Collecting(phase);
            }
            Phase::Collecting(phase) => {
                self.stop_fetching(out);
                self.deliveries.values_mut().for_each(|step| *step = None);
                let (survivors, phase) = phase.close()?;
                let step = AggregatorStep::Survivors(survivors.encode());
                self.say_all(out, self.counted.keys(), step.clone());
                for site in self.deliveries.keys().filter(|site| !self.counted.contains_key(*site)) {
                    self.drop_site(out, site);
                }
                self.survivors = Some(step);
                self.phase = Phase::Agreeing(phase);
            }
            Phase::Agreeing(phase) => {
                let (list, phase) = phase.close()?;
                let step = AggregatorStep::Agreements(list.encode());
                self.say_all(out, self.agreed.iter(), step.clone());
                self.agreements = Some(step);
                self.phase = Phase::Opening(phase);
            }
            Phase::Opening(phase) => {
                let aggregate = phase.finish()?;
                let counted = std::mem::take(&mut self.counted);
                return Ok(Some(Opened { sum: aggregate.sum, contributors: counted }));
            }
        }
        Ok(None)
    }

    fn say(&self, out: &mut Outbox, site: &SiteId, step: AggregatorStep) {
        out.send(site, ToSite::Secure { task: self.task.clone(), round: self.round, step });
    }

    fn say_all<'a>(&self, out: &mut Outbox, sites: impl Iterator<Item = &'a SiteId>, step: AggregatorStep) {
        let message = ToSite::Secure { task: self.task.clone(), round: self.round, step };
        out.send_all(sites.cloned().collect(), message);
    }

    /// The session goes on without a site that was too slow.
    fn drop_site(&self, out: &mut Outbox, site: &SiteId) {
        self.say(out, site, AggregatorStep::Abandon { attempt: self.attempt() });
    }

    fn stop_fetching(&mut self, out: &mut Outbox) {
        for offer in std::mem::take(&mut self.offers).into_values() {
            out.then(Effect::StopFetching { blob: offer.digest });
        }
    }

    /// Ends the session, and returns who was asked to take part.
    pub(crate) fn end(mut self: Box<Self>, out: &mut Outbox) -> BTreeSet<SiteId> {
        self.stop_fetching(out);
        self.cohort
    }
}

/// Reads a message of this session.
fn read<M: Message>(session: SessionId, bytes: &[u8]) -> Result<M, Refusal> {
    let message = M::decode(bytes).map_err(|error| Refusal::Fault(error.to_string()))?;
    if message.session() == session { Ok(message) } else { Err(Refusal::Stale) }
}

/// Why a word is not taken.
enum Refusal {
    /// Of an earlier session.
    Stale,
    /// The phase was closed without the site.
    Late,
    /// A repetition, or out of place in a way that delays and duplicates bring about.
    Harmless,
    /// The sender broke the protocol.
    Fault(String),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        match (error.fault(), error.problem()) {
            (_, Problem::Duplicate { .. }) => Self::Harmless,
            (_, Problem::NotMember { .. }) => Self::Late,
            (Fault::Site(_), _) => Self::Fault(error.to_string()),
            _ => Self::Harmless,
        }
    }
}

fn failure(error: Error) -> Failure {
    let fault = match error.fault() {
        Fault::Site(site) => Some(site.clone()),
        _ => None,
    };
    (error.to_string(), fault)
}
