//! What must hold whatever happens, checked from outside on every message.

use crate::plan::{PARAMETERS, assumptions, budget_of, examples, number, update};
use medinet_model::{ModelParameters, model_digest};
use medinet_robust::Means;
use medinet_rounds::{InitialModel, RoundRecord, Rule, TaskPlan};
use medinet_secagg::{Agreement, KeyList, MaskedInput, Message, RingVector, SessionId};
use medinet_types::{RoundNumber, SiteId};
use medinet_update::{Origin, SecureExpected, SecureMean, decode_sum, encode_model_delta};
use medinet_wire::message::{FromSite, RoundPlan, ToSite};
use medinet_wire::secure::{AggregatorStep, SiteStep, session_parameters};
use std::collections::{BTreeMap, BTreeSet};

pub(crate) struct Audit {
    plan: TaskPlan,
    parameters: Vec<f32>,
    owed: Vec<f32>,
    open: Option<RoundPlan>,
    pub(crate) models: usize,
    pub(crate) corrupt: BTreeSet<SiteId>,
    pub(crate) sessions: usize,
    pub(crate) failed: Vec<String>,
    pub(crate) excluded: BTreeSet<SiteId>,
    pub(crate) abandoned: usize,
    /// Norms and limits of means that were shortened.
    pub(crate) shortened: Vec<(f32, f32)>,
    /// Calls to a session that came with proof that earlier ones are dead.
    pub(crate) proofs: usize,
    violation: Option<String>,
    /// The means of groups whose sums the open round keeps.
    groups: Vec<(Vec<SiteId>, SecureMean)>,
    /// Every site that was in a sum of a group, also where the sum was lost since.
    summed: BTreeSet<(RoundNumber, SiteId)>,
    /// Sums that were lost in restarts.
    pub(crate) lost_sums: usize,
    /// Models of which some group is missing.
    pub(crate) without_a_group: usize,
    /// Groups of the newest model, and how it moved.
    pub(crate) newest: (Vec<(Vec<SiteId>, SecureMean)>, Vec<f32>),
    /// Who is in the model of each round.
    members: BTreeMap<RoundNumber, BTreeSet<SiteId>>,
    /// Sites of each session's key list.
    lists: BTreeMap<SessionId, usize>,
    parts: BTreeMap<SessionId, BTreeMap<u16, Vec<u8>>>,
    agreed: BTreeMap<SessionId, BTreeSet<SiteId>>,
    gave_up: BTreeMap<SessionId, BTreeSet<SiteId>>,
    committed: BTreeMap<(SiteId, RoundNumber), BTreeSet<SessionId>>,
    /// Coordinates of masked inputs that are as in the plain vector, and all, and how many were to be expected.
    pub(crate) alike: f64,
    pub(crate) by_chance: f64,
}

impl Audit {
    pub(crate) fn new(plan: &TaskPlan) -> Self {
        let InitialModel::Seed(seed) = plan.initial else { unreachable!("the test's plan") };
        Self {
            parameters: ModelParameters::initial(&plan.spec.network, seed).unwrap().into_vec(),
            owed: vec![0.0; PARAMETERS],
            plan: plan.clone(),
            open: None,
            models: 0,
            corrupt: BTreeSet::new(),
            sessions: 0,
            failed: Vec::new(),
            excluded: BTreeSet::new(),
            abandoned: 0,
            shortened: Vec::new(),
            proofs: 0,
            violation: None,
            groups: Vec::new(),
            summed: BTreeSet::new(),
            lost_sums: 0,
            without_a_group: 0,
            newest: (Vec::new(), Vec::new()),
            members: BTreeMap::new(),
            lists: BTreeMap::new(),
            parts: BTreeMap::new(),
            agreed: BTreeMap::new(),
            gave_up: BTreeMap::new(),
            committed: BTreeMap::new(),
            alike: 0.0,
            by_chance: 0.0,
        }
    }

    pub(crate) fn check(&mut self) -> Result<(), String> {
        self.violation.take().map_or(Ok(()), Err)
    }

    fn need(&mut self, good: bool, what: impl FnOnce() -> String) {
        if !good && self.violation.is_none() {
            self.violation = Some(what());
        }
    }

    pub(crate) fn record(&mut self, record: RoundRecord) {
        match record {
            RoundRecord::RoundOpened { plan } => {
                self.open = Some(*plan);
                self.groups.clear();
            }
            RoundRecord::GroupSummed { round, sites, examples, .. } => {
                let open = self.open.clone().expect("a round is open");
                let least = open.aggregation.least_in_sum(open.min_sites) as usize;
                self.need(sites.len() >= least, || format!("a sum of {} sites", sites.len()));
                for site in &sites {
                    let first = self.summed.insert((round, site.clone()));
                    self.need(first, || format!("{site} is in two sums of round {round}"));
                }
                if sites.iter().all(|site| !self.corrupt.contains(site)) {
                    let mean = self.plain_mean(&open, &sites, examples);
                    self.groups.push((sites, mean));
                }
            }
            RoundRecord::InputCounted { round, site, privacy, .. } => {
                let said = Some(budget_of(&site, round));
                // Whoever broke the protocol after its input was in has lost its standing, and with it what it said.
                let lost = privacy.is_none() && self.corrupt.contains(&site);
                self.need(privacy == said || lost, || {
                    format!("{site} said {said:?}, on record is {privacy:?}")
                });
            }
            RoundRecord::SessionBegan { .. } => self.sessions += 1,
            RoundRecord::SessionFailed { group, reason, excluded, .. } => {
                if group.is_none() {
                    self.lost_sums += self.groups.len();
                    self.groups.clear();
                }
                self.failed.push(reason);
                self.excluded.extend(excluded);
            }
            RoundRecord::ContributionRefused { site, .. } => {
                self.excluded.insert(site);
            }
            RoundRecord::RoundAbandoned { .. } => self.abandoned += 1,
            RoundRecord::MeanShortened { norm, limit, .. } => {
                self.need(!self.corrupt.is_empty(), || format!("an honest mean of {norm} is cut to {limit}"));
                self.shortened.push((norm, limit));
            }
            RoundRecord::ModelAggregated { round, model, contributions, examples: total, .. } => {
                let open = self.open.take().expect("a round is open");
                let sites: Vec<SiteId> = contributions.iter().map(|c| c.site.clone()).collect();
                self.models += 1;
                let enough = sites.len() >= open.min_sites as usize;
                self.need(enough, || format!("round {round}: a sum of {} sites", sites.len()));
                self.members.insert(round, sites.iter().cloned().collect());
                // The plain sum of the very integers that the sites would have masked.
                if sites.iter().all(|site| !self.corrupt.contains(site)) {
                    self.is_the_plain_sum(&open, &sites, total);
                }
                let all = sites.len() == open.max_sites as usize;
                self.without_a_group +=
                    usize::from(open.aggregation.secure().unwrap().group_sites.is_some() && !all);
                let got = model.digest;
                let expected = model_digest(&self.plan.spec.network, &self.parameters);
                if sites.iter().all(|site| !self.corrupt.contains(site)) {
                    self.need(got == expected, || format!("round {round}: not the mean of its sites"));
                }
            }
            _ => {}
        }
    }

    fn is_the_plain_sum(&mut self, open: &RoundPlan, sites: &[SiteId], total: u64) {
        let groups = std::mem::take(&mut self.groups);
        let delta = if open.aggregation.secure().unwrap().group_sites.is_none() {
            self.plain_mean(open, sites, total).delta
        } else {
            let mut members: Vec<SiteId> = groups.iter().flat_map(|(sites, _)| sites.clone()).collect();
            members.sort();
            self.need(members == sites, || "the model is not of the groups that were summed".into());
            let counted: u64 = groups.iter().map(|(_, mean)| mean.examples).sum();
            self.need(total == counted, || format!("{total} examples instead of {counted}"));
            let deltas = groups.iter().map(|(_, mean)| mean.delta.clone()).collect();
            let weights: Vec<f64> = groups.iter().map(|(_, mean)| mean.examples as f64).collect();
            let rule = self.plan.groups.rule;
            let means = match rule {
                Rule::Mean => Means::weighted(deltas, &weights),
                _ => Means::equal(deltas),
            };
            rule.combine(means.unwrap(), self.plan.groups.norm_limit).unwrap()
        };
        // What the server's step makes of the model, and what goes down of it.
        let wanted = self.parameters.iter().zip(&delta).zip(&self.owed);
        let wanted: Vec<f32> = wanted.map(|((parameter, delta), owed)| parameter + delta + owed).collect();
        let sent = encode_model_delta(&self.parameters, &wanted, self.plan.downlink_bits).unwrap().parameters;
        self.owed = wanted.iter().zip(&sent).map(|(wanted, sent)| wanted - sent).collect();
        self.parameters = sent;
        self.newest = (groups, delta);
    }

    fn plain_mean(&mut self, open: &RoundPlan, sites: &[SiteId], total: u64) -> SecureMean {
        let secure = open.aggregation.secure().unwrap();
        let reference = u64::from(secure.codec.reference_examples);
        let counted: u64 = sites.iter().map(|site| examples(number(site)).min(reference)).sum();
        self.need(total == counted, || format!("{total} examples instead of {counted}"));
        let mut sum = vec![0u32; secure.codec.coordinates(PARAMETERS)];
        for site in sites {
            let update = update(number(site), open);
            sum.iter_mut().zip(update.values()).for_each(|(sum, value)| *sum = sum.wrapping_add(value));
        }
        let expected = SecureExpected {
            parameters: PARAMETERS,
            plan: &secure.codec,
            origin: Origin { base: open.base.digest, round: open.round },
            contributors: sites.len() as u32,
            ring_bits: session_parameters(open, 1, 0).unwrap().width.bits(),
        };
        decode_sum(sum, &expected).unwrap()
    }

    /// Everything that the coordinator is given by sites.
    pub(crate) fn given(&mut self, _: &SiteId, message: &FromSite) -> Result<(), String> {
        match message {
            FromSite::Secure { .. } | FromSite::Join { .. } | FromSite::Evaluation { .. } => Ok(()),
            other => Err(format!("a site of a secure round says {other:?}")),
        }
    }

    /// A vector that the coordinator is given: it is masked, of the open round, and tells nothing by itself.
    pub(crate) fn blob(&mut self, site: &SiteId, bytes: &[u8]) -> Result<(), String> {
        if self.corrupt.contains(site) {
            return Ok(());
        }
        let input = MaskedInput::decode(bytes).map_err(|error| error.to_string())?;
        let Some(open) = &self.open else { return Ok(()) };
        let groups = open.aggregation.secure().unwrap().most_groups(open.max_sites) as u16;
        let mut sessions = (1..=4)
            .flat_map(|attempt| (0..groups).map(move |group| (attempt, group)))
            .map(|(attempt, group)| session_parameters(open, attempt, group).unwrap());
        let Some(session) = sessions.find(|session| session.id() == input.session) else {
            return Ok(());
        };
        let mut masked = RingVector::zeros(session.width, session.coordinates as usize);
        if !masked.add_packed(input.payload) {
            return Err(format!("{site} sent no vector of the session"));
        }
        let plain = update(number(site), open);
        let plain = plain.values().map(|value| value & session.width.max_value());
        let alike = masked.iter().zip(plain).filter(|(masked, plain)| masked == plain).count();
        self.alike += alike as f64;
        self.by_chance += f64::from(session.coordinates) / f64::from(1u32 << session.width.bits());
        // Of some 40 coordinates of at least 6 bits, 12 by chance is less than 1 in 10^11.
        if alike >= 12 {
            return Err(format!("{alike} coordinates of {site} are as they are without a mask"));
        }
        Ok(())
    }

    pub(crate) fn told(&mut self, message: &ToSite) {
        if let ToSite::Secure { step: AggregatorStep::Begin { abandoned, .. }, .. } = message {
            self.proofs += usize::from(!abandoned.is_empty());
        }
        if let ToSite::Secure { step: AggregatorStep::Keys { session, part, parts, bytes }, .. } = message {
            let known = self.parts.entry(*session).or_default();
            known.insert(*part, bytes.clone());
            if known.len() == usize::from(*parts) {
                let bytes: Vec<u8> = known.values().flatten().copied().collect();
                let list = KeyList::decode(&bytes).expect("an honest aggregator's list decodes");
                self.lists.insert(*session, list.members.len());
            }
        }
    }

    /// Everything that a site says, before anything is made of it.
    pub(crate) fn said(&mut self, site: &SiteId, round: RoundNumber, step: &SiteStep) -> Result<(), String> {
        match step {
            SiteStep::MaskedInput { session, .. } => {
                self.committed.entry((site.clone(), round)).or_default().insert(*session);
            }
            SiteStep::Agreement(bytes) => {
                let session = Agreement::decode(bytes).map_err(|e| e.to_string())?.session();
                self.agreed.entry(session).or_default().insert(site.clone());
            }
            SiteStep::Ready { abandonments, .. } => {
                for abandonment in abandonments {
                    self.gave_up.entry(abandonment.session).or_default().insert(site.clone());
                }
            }
            _ => {}
        }
        for (session, agreed) in &self.agreed {
            if self.gave_up.get(session).is_some_and(|gave_up| !gave_up.is_disjoint(agreed)) {
                return Err(format!("somebody agreed to and abandoned session {session}"));
            }
        }
        Ok(())
    }

    pub(crate) fn counted(&mut self, site: &SiteId, round: RoundNumber) {
        let right = self.members.get(&round).is_some_and(|members| members.contains(site));
        self.need(right, || format!("{site} believes to be in round {round}'s sum and is not"));
    }

    /// Of all sessions into which a site has put one update, at most one had a quorum.
    pub(crate) fn finish(&mut self) -> Result<(), String> {
        for ((site, round), sessions) in &self.committed {
            let could_open = sessions.iter().filter(|session| {
                let n = u16::try_from(self.lists[session]).unwrap();
                let quorum = usize::from(assumptions().least_quorum(n));
                self.agreed.get(session).is_some_and(|agreed| agreed.len() >= quorum)
            });
            let count = could_open.count();
            if count > 1 {
                return Err(format!(
                    "{count} sessions with {site}'s update of round {round} could be opened"
                ));
            }
        }
        Ok(())
    }
}
