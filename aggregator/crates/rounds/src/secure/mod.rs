//! A training round with secure aggregation: sites train and say that they are ready; sessions are held among those who
//! are, until one gives a sum.
//!
//! ```text
//! gather --enough are ready--> session --sum--> model
//!   ^                             |
//!   \------ failed, restarted ----/          at most max_attempts sessions, then the round ends without a model
//! ```
//!
//! What is persisted: who is ready, how many attempts there were, whom the round goes on without. Nothing of a session is:
//! a restart ends it, and a new one has new keys. A session that has failed is never resumed; that it can never open
//! either is what the next one's certificates prove to its sites (`medinet_wire::secure`).

mod abandoned;
mod session;
#[cfg(test)]
mod tests;
mod trust;

pub(crate) use trust::Trust;

use crate::cohort::{OpenRound, Outlook, Standing, Tally};
use crate::effect::{Effect, Outbox};
use crate::evaluate::{mean_auroc, metrics_fault};
use crate::phase::{Paused, Phase, Suspended, Turn};
use crate::record::{Contribution, PauseReason, RoundRecord};
use crate::train::{adopt, next_parameters};
use abandoned::Abandonments;
use medinet_types::{BlobDigest, RoundNumber, SiteId, UnixMillis};
use medinet_update::{Origin, SecureExpected, decode_sum};
use medinet_wire::message::{FromSite, RefusalReason, RoundKind, SiteMetrics, ToSite};
use medinet_wire::secure::{AggregatorStep, SecurePlan, SiteStep, session_parameters};
use serde::{Deserialize, Serialize};
use session::{Opened, Session};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A site that has trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ReadySite {
    base_metrics: Option<SiteMetrics>,
}

/// What is persisted of the round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct SavedSecure {
    open: OpenRound<ReadySite>,
    /// Sessions that were begun.
    attempt: u32,
    /// Whether the last of them has not ended.
    in_session: bool,
    /// Sites that were at fault in a session.
    excluded: BTreeSet<SiteId>,
    /// Sites that have agreed to a sum in an attempt that failed, and so enter no other.
    spent: BTreeSet<SiteId>,
    /// Why the last session failed.
    last_failure: Option<String>,
}

#[derive(Debug)]
pub(crate) struct SecureRound {
    saved: SavedSecure,
    /// The newest attempt that each ready site has left, from its own word since the program started.
    left: BTreeMap<SiteId, u32>,
    abandonments: Abandonments,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// The first session waits for the round's minimum and deadline rules.
    Training,
    /// The next session waits for those who were in the last one.
    Gathering {
        until: UnixMillis,
    },
    Session(Box<Session>),
}

impl SecureRound {
    pub(crate) fn open(turn: &mut Turn<'_>) -> Self {
        let open = OpenRound::open(RoundKind::Train, turn);
        let (excluded, spent) = (BTreeSet::new(), BTreeSet::new());
        let last_failure = None;
        Self::restored(SavedSecure { open, attempt: 0, in_session: false, excluded, spent, last_failure })
    }

    pub(crate) fn restored(saved: SavedSecure) -> Self {
        let (left, abandonments) = (BTreeMap::new(), Abandonments::default());
        Self { saved, left, abandonments, stage: Stage::Training }
    }

    pub(crate) fn saved(&self) -> &SavedSecure {
        &self.saved
    }

    pub(crate) fn number(&self) -> RoundNumber {
        self.saved.open.number()
    }

    pub(crate) fn deadline(&self) -> UnixMillis {
        self.saved.open.plan.deadline
    }

    pub(crate) fn tally(&self) -> Tally {
        self.saved.open.tally()
    }

    pub(crate) fn in_session(&self) -> bool {
        matches!(self.stage, Stage::Session(_))
    }

    /// Mean AUROC of the base model over the sites that are ready.
    pub(crate) fn auroc(&self) -> Option<f64> {
        mean_auroc(self.saved.open.delivered().filter_map(|(_, ready)| ready.base_metrics.as_ref()))
    }

    /// Masked inputs that are being pulled.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = BlobDigest> {
        let session = match &self.stage {
            Stage::Session(session) => Some(session),
            _ => None,
        };
        session.into_iter().flat_map(|session| session.blobs())
    }

    fn secure(&self) -> &SecurePlan {
        // A round's plan never changes, and only plans that ask for secure aggregation open such a round.
        self.saved.open.plan.aggregation.secure().expect("opened by a plan for secure aggregation")
    }

    fn message_time(&self) -> Duration {
        Duration::from_secs(self.secure().message_seconds.into())
    }

    fn say(&self, out: &mut Outbox, site: &SiteId, step: AggregatorStep) {
        let task = self.saved.open.plan.spec.task.clone();
        out.send(site, ToSite::Secure { task, round: self.number(), step });
    }

    pub(crate) fn on_site(&mut self, turn: &mut Turn<'_>, from: &SiteId, message: FromSite) {
        let standing = self.saved.open.sites.get(from);
        match message {
            FromSite::Join { .. } => {
                if !matches!(standing, Some(Standing::Delivered(_))) {
                    self.saved.open.admit(&mut turn.out, from);
                }
            }
            FromSite::Decline { reason, .. } => {
                if matches!(standing, Some(Standing::Delivered(_))) {
                    self.saved.open.sites.remove(from);
                    self.left.remove(from);
                    self.gone(from);
                }
                self.saved.open.decline(&mut turn.out, from, &reason);
            }
            FromSite::OfferUpdate(_) | FromSite::Evaluation { .. } => {
                let reason = RefusalReason::Malformed("this round takes updates under masks only".into());
                self.saved.open.refuse(&mut turn.out, from, reason);
            }
            FromSite::Secure { step, .. } => self.on_step(turn, from, step),
            FromSite::RegisterDataset(_) | FromSite::Want(_) | FromSite::WantCheckpoint { .. } => {}
        }
    }

    /// Whoever is said to be gone is not waited for.
    fn gone(&mut self, site: &SiteId) {
        if let Stage::Session(session) = &mut self.stage {
            session.gone(site);
        }
    }

    fn on_step(&mut self, turn: &mut Turn<'_>, from: &SiteId, step: SiteStep) {
        if self.saved.excluded.contains(from) {
            let reason = RefusalReason::Malformed("it broke the protocol of secure aggregation".into());
            self.saved.open.refuse(&mut turn.out, from, reason);
            return;
        }
        match step {
            SiteStep::Ready { base_metrics, left, abandonments } => {
                if !self.on_ready(turn, from, base_metrics) {
                    return;
                }
                self.left.insert(from.clone(), left);
                for abandonment in abandonments {
                    self.abandonments.add(&turn.trust.at(turn.now), from, abandonment);
                }
                let said = match &mut self.stage {
                    Stage::Session(session) => session.on_ready(from, left),
                    // It has not heard that the last attempt is over, or was in none.
                    _ if left < self.saved.attempt => {
                        Some(AggregatorStep::Abandon { attempt: self.saved.attempt })
                    }
                    _ => None,
                };
                if let Some(step) = said {
                    self.say(&mut turn.out, from, step);
                }
            }
            SiteStep::Spent => {
                self.gone(from);
                if self.saved.open.has_delivered(from) && self.saved.spent.insert(from.clone()) {
                    turn.out.changed = true;
                }
            }
            SiteStep::Failed { attempt, blames, .. } => {
                if let Stage::Session(session) = &mut self.stage
                    && session.attempt() == attempt
                {
                    session.complaint(from, blames);
                }
            }
            step => {
                let trust = turn.trust.at(turn.now);
                let (said, fault) = match &mut self.stage {
                    Stage::Session(session) => session.on_step(&mut turn.out, from, step, &trust),
                    // What is still said in a session that is over.
                    _ => (vec![AggregatorStep::Abandon { attempt: self.saved.attempt }], None),
                };
                for step in said {
                    self.say(&mut turn.out, from, step);
                }
                if let Some(reason) = fault {
                    self.exclude(turn, from, reason);
                }
            }
        }
    }

    /// Whether the site counts as ready.
    fn on_ready(&mut self, turn: &mut Turn<'_>, from: &SiteId, base_metrics: Option<SiteMetrics>) -> bool {
        let open = &mut self.saved.open;
        if open.has_delivered(from) {
            return true;
        }
        if !open.admit(&mut turn.out, from) {
            return false;
        }
        if let Some(fault) = base_metrics.as_ref().and_then(|m| metrics_fault(m, turn.plan.max_examples)) {
            open.fail(&mut turn.out, from, RefusalReason::Malformed(fault));
            return false;
        }
        open.sites.insert(from.clone(), Standing::Delivered(ReadySite { base_metrics }));
        turn.out.changed = true;
        true
    }

    /// The round goes on without a site that broke the protocol.
    fn exclude(&mut self, turn: &mut Turn<'_>, site: &SiteId, reason: String) {
        self.gone(site);
        if self.saved.excluded.insert(site.clone()) {
            self.saved.open.fail(&mut turn.out, site, RefusalReason::Malformed(reason));
        }
    }

    /// A masked input is whole.
    pub(crate) fn on_input(&mut self, turn: &mut Turn<'_>, blob: BlobDigest, bytes: &[u8]) {
        let faults = match &mut self.stage {
            Stage::Session(session) => session.on_input(blob, bytes),
            _ => Vec::new(),
        };
        for (site, reason) in faults {
            self.exclude(turn, &site, reason);
        }
        // It is in the sum, and a restart begins another session: nobody needs it again.
        turn.out.then(Effect::Discard { blobs: vec![blob] });
    }

    /// What was pulled is not what the site promised.
    pub(crate) fn on_input_failed(&mut self, blob: BlobDigest) {
        if let Stage::Session(session) = &mut self.stage {
            session.on_input_failed(blob);
        }
    }

    /// Does what is due.
    pub(crate) fn advance(mut self: Box<Self>, turn: &mut Turn<'_>) -> Phase {
        loop {
            match &mut self.stage {
                Stage::Training => match self.saved.open.outlook(turn) {
                    Outlook::WaitUntil(when) => {
                        turn.wake = Some(when);
                        return Phase::Securing(self);
                    }
                    Outlook::Close => {
                        if let Err(why) = self.begin(turn) {
                            return self.abandon(turn, why);
                        }
                    }
                    Outlook::TooFew => match self.saved.open.extend(turn) {
                        Ok(()) => {
                            turn.wake = Some(self.deadline());
                            return Phase::Securing(self);
                        }
                        Err(reason) => {
                            return Phase::Paused(Paused::enter(turn, Suspended::Securing(self), reason));
                        }
                    },
                },
                Stage::Gathering { until } => {
                    let (due, until) = (turn.now >= *until, *until);
                    if self.saved.attempt >= self.secure().max_attempts {
                        return self.abandon(turn, "no more attempts are planned".into());
                    }
                    let everyone = self.unanswered().next().is_none();
                    if (due || everyone) && self.begin(turn).is_ok() {
                        continue;
                    }
                    if due {
                        let ready = self.candidates().len();
                        let why = format!(
                            "{ready} sites could enter another attempt and {} are needed",
                            self.saved.open.plan.min_sites
                        );
                        return self.abandon(turn, why);
                    }
                    turn.wake = Some(until);
                    return Phase::Securing(self);
                }
                Stage::Session(session) => match session.advance(&mut turn.out, turn.now) {
                    Ok(None) => {
                        turn.wake = Some(session.until());
                        return Phase::Securing(self);
                    }
                    Ok(Some(opened)) => match self.close(turn, opened) {
                        Ok(phase) => return phase,
                        Err((round, why)) => {
                            self = round;
                            self.fail(turn, why, None);
                        }
                    },
                    Err((why, fault)) => self.fail(turn, why, fault),
                },
            }
        }
    }

    /// Who could enter a session now.
    fn candidates(&self) -> BTreeSet<SiteId> {
        let SavedSecure { open, attempt, excluded, spent, .. } = &self.saved;
        let assumptions = &self.secure().assumptions;
        let ready = open.delivered().map(|(site, _)| site).filter(|site| {
            let heard = *attempt == 0 || self.left.get(*site).is_some_and(|left| left >= attempt);
            heard && !excluded.contains(*site) && !spent.contains(*site)
        });
        ready.filter(|site| self.abandonments.may_enter(site, assumptions)).cloned().collect()
    }

    /// Who has not said yet whether it can enter another session.
    fn unanswered(&self) -> impl Iterator<Item = &SiteId> {
        let SavedSecure { open, attempt, excluded, spent, .. } = &self.saved;
        let everyone = open.delivered().map(|(site, _)| site);
        everyone.filter(|site| {
            let answered = self.left.get(*site).is_some_and(|left| left >= attempt);
            !answered && !excluded.contains(*site) && !spent.contains(*site)
        })
    }

    /// Begins a session among those who can enter one.
    fn begin(&mut self, turn: &mut Turn<'_>) -> Result<(), String> {
        let cohort = self.candidates();
        let needed = self.saved.open.plan.min_sites;
        if cohort.len() < needed as usize {
            return Err(format!("{} sites are ready and {needed} are needed", cohort.len()));
        }
        let attempt = self.saved.attempt + 1;
        let parameters =
            session_parameters(&self.saved.open.plan, attempt).map_err(|error| error.to_string())?;
        let proofs = self.abandonments.certificates(&self.secure().assumptions);
        let session = Session::begin(&self.saved.open.plan, parameters, cohort.clone(), proofs, turn.now)?;
        (self.saved.attempt, self.saved.in_session) = (attempt, true);
        let sites = cohort.iter().cloned().collect();
        turn.out.record(RoundRecord::SessionBegan { round: self.number(), attempt, sites });
        for site in &cohort {
            self.say(&mut turn.out, site, session.begin_step());
        }
        self.stage = Stage::Session(Box::new(session));
        Ok(())
    }

    /// The session ends without a sum, and the round looks for another one.
    fn fail(&mut self, turn: &mut Turn<'_>, reason: String, fault: Option<SiteId>) {
        let gathering = self.gathering(turn.now);
        let stage = std::mem::replace(&mut self.stage, gathering);
        self.saved.in_session = false;
        let (round, attempt) = (self.number(), self.saved.attempt);
        let (mut excluded, mut cohort) = (Vec::from_iter(fault), BTreeSet::new());
        if let Stage::Session(session) = stage {
            excluded.extend(session.blamed(&self.secure().assumptions));
            cohort = session.end(&mut turn.out);
        }
        excluded.sort();
        excluded.dedup();
        for site in &excluded {
            self.exclude(turn, site, "it was at fault in secure aggregation".into());
        }
        self.saved.last_failure = Some(reason.clone());
        turn.out.record(RoundRecord::SessionFailed { round, attempt, reason, excluded });
        for site in &cohort {
            self.say(&mut turn.out, site, AggregatorStep::Abandon { attempt });
        }
    }

    fn gathering(&self, now: UnixMillis) -> Stage {
        Stage::Gathering { until: now.after(self.message_time() * 4) }
    }

    /// The sum becomes the next model, as a plain round's mean does.
    #[allow(clippy::type_complexity, reason = "the round comes back when it goes on")]
    fn close(mut self: Box<Self>, turn: &mut Turn<'_>, opened: Opened) -> Result<Phase, (Box<Self>, String)> {
        let plan = &self.saved.open.plan;
        let expected = SecureExpected {
            parameters: turn.parameters.len(),
            plan: &self.secure().codec,
            origin: Origin { base: plan.base.digest, round: plan.round },
            contributors: u32::try_from(opened.contributors.len()).unwrap_or(u32::MAX),
            ring_bits: opened.sum.width().bits(),
        };
        let mean = match decode_sum(opened.sum.iter(), &expected) {
            Ok(mean) => mean,
            Err(error) => return Err((self, error.to_string())),
        };
        let Some(parameters) = next_parameters(turn, &mean.delta) else {
            let reason = PauseReason::Diverged { round: self.number() };
            return Ok(self.end_without_model(turn, reason));
        };
        // Without a norm in the sum the plan's own stays.
        let next = |norm, most| self.secure().codec.next_clip_norm(norm, most);
        turn.task.clip_norm = mean.norm.zip(turn.plan.max_clip_norm).map(|(norm, most)| next(norm, most));
        let counted = |site: &SiteId| opened.contributors.contains_key(site);
        let open = &mut self.saved.open;
        open.sites.retain(|site, standing| !matches!(standing, Standing::Delivered(_)) || counted(site));
        let (round, mut contributions) = (open.number(), Vec::new());
        for (site, input) in &opened.contributors {
            let base_metrics = match open.sites.get(site) {
                Some(Standing::Delivered(ready)) => ready.base_metrics,
                _ => None,
            };
            turn.out.record(RoundRecord::InputCounted {
                round,
                site: site.clone(),
                input: input.digest,
                input_bytes: input.length_bytes,
                base_metrics,
            });
            contributions.push(Contribution { site: site.clone(), examples: None, update: input.digest });
            open.accept(&mut turn.out, site);
        }
        turn.task.auroc = self.auroc().or(turn.task.auroc);
        adopt(turn, &self.saved.open, parameters, contributions, mean.examples);
        Ok(Phase::next(turn))
    }

    /// No session gave a sum and there will be no other.
    fn abandon(self: Box<Self>, turn: &mut Turn<'_>, why: String) -> Phase {
        let why = match &self.saved.last_failure {
            Some(failure) => format!("{why}; the last one failed because of this: {failure}"),
            None => why,
        };
        let reason = PauseReason::NoSum { round: self.number(), attempts: self.saved.attempt, why };
        self.end_without_model(turn, reason)
    }

    fn end_without_model(self: Box<Self>, turn: &mut Turn<'_>, reason: PauseReason) -> Phase {
        let round = self.number();
        turn.out.record(RoundRecord::RoundAbandoned { round, reason: reason.clone() });
        Phase::Paused(Paused::enter(turn, Suspended::Abandoned(round), reason))
    }

    /// After a restart of the program. A session that was under way is over: its secrets were never written down.
    pub(crate) fn restarted(mut self: Box<Self>, turn: &mut Turn<'_>) -> Phase {
        self.saved.open.restarted(turn);
        if self.saved.attempt > 0 {
            let attempt = self.saved.attempt;
            if self.saved.in_session {
                self.fail(turn, "the aggregator was restarted".into(), None);
            }
            // Sites may come back later than the aggregator does.
            let longer = self.message_time() * 4;
            let until = turn.now.after(longer.max(turn.plan.join_grace));
            self.stage = Stage::Gathering { until };
            let sites: Vec<SiteId> = self.saved.open.delivered().map(|(site, _)| site.clone()).collect();
            for site in &sites {
                self.say(&mut turn.out, site, AggregatorStep::Abandon { attempt });
            }
        }
        Phase::Securing(self)
    }

    /// The operator goes on after a pause, which only a round without a session has.
    pub(crate) fn resume(mut self: Box<Self>, turn: &mut Turn<'_>) -> Phase {
        self.saved.open.resume(turn);
        Phase::Securing(self)
    }
}
