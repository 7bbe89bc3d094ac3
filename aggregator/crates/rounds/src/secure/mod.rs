//! A training round with secure aggregation: sites train and say that they are ready; those who are, are dealt out into
//! groups (one, unless the plan asks for more), and each group holds a session, until there are sums of enough groups.
//!
//! ```text
//! gather --enough are ready--> attempt: a session a group --sums of enough groups--> model
//!   ^                             |
//!   \--- too few, restarted ------/          at most max_attempts, then the round ends without a model
//! ```
//!
//! A group that fails does not fail the others: their sums are kept in memory, and the next attempt is held among those who
//! are in none. **No site is in two sums of a round**, or their difference could tell of it: whoever is in a sum is spent, here
//! at once and durably, and by its own rule, which holds without ours (`medinet_wire::secure`).
//!
//! What is persisted: who is ready, how many attempts there were, whom the round goes on without. Nothing of a session is,
//! and no sum: a restart ends sessions and loses sums, and those who are in one sit the round out. A session that has failed
//! is never resumed; that it can never open either is what the next one's certificates prove to its sites.

mod abandoned;
mod attempt;
mod dealer;
mod session;
mod sums;
#[cfg(test)]
mod tests;
mod trust;

pub(crate) use dealer::Dealer;
pub(crate) use trust::Trust;

use crate::cohort::{OpenRound, Outlook, Standing, Tally};
use crate::effect::{Effect, Outbox};
use crate::evaluate::{median_auroc, metrics_fault};
use crate::phase::{Paused, Phase, Suspended, Turn};
use crate::record::{PauseReason, RoundRecord};
use abandoned::Abandonments;
use attempt::{Attempt, Ended, Place};
use medinet_privacy::PrivacyReport;
use medinet_types::{BlobDigest, RoundNumber, SiteId, UnixMillis};
use medinet_wire::message::{FromSite, RefusalReason, RoundKind, SiteMetrics, ToSite};
use medinet_wire::secure::{AggregatorStep, SecurePlan, SiteStep};
use serde::{Deserialize, Serialize};
use session::Session;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use sums::GroupSum;

/// A site that has trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ReadySite {
    base_metrics: Option<SiteMetrics>,
    privacy: Option<PrivacyReport>,
}

/// What is persisted of the round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct SavedSecure {
    open: OpenRound<ReadySite>,
    /// Attempts that were begun.
    attempt: u32,
    /// Whether the last of them has not ended.
    in_session: bool,
    /// Sites that were at fault in a session.
    excluded: BTreeSet<SiteId>,
    /// Sites that are in a sum, or have agreed to one that did not open, and so enter no other session.
    spent: BTreeSet<SiteId>,
    /// Sums that are in memory, and lost in a restart.
    sums: u32,
    /// Why the last session failed.
    last_failure: Option<String>,
}

#[derive(Debug)]
pub(crate) struct SecureRound {
    saved: SavedSecure,
    /// The newest attempt that each ready site has left, from its own word since the program started.
    left: BTreeMap<SiteId, u32>,
    abandonments: Abandonments,
    sums: Vec<GroupSum>,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// The first attempt waits for the round's minimum and deadline rules.
    Training,
    /// The next attempt waits for those who were in the last one.
    Gathering {
        until: UnixMillis,
    },
    Attempt(Attempt),
}

impl SecureRound {
    pub(crate) fn open(turn: &mut Turn<'_>) -> Self {
        let open = OpenRound::open(RoundKind::Train, turn);
        let (excluded, spent) = (BTreeSet::new(), BTreeSet::new());
        let last_failure = None;
        let (attempt, in_session, sums) = (0, false, 0);
        Self::restored(SavedSecure { open, attempt, in_session, excluded, spent, sums, last_failure })
    }

    pub(crate) fn restored(saved: SavedSecure) -> Self {
        let (left, abandonments) = (BTreeMap::new(), Abandonments::default());
        Self { saved, left, abandonments, sums: Vec::new(), stage: Stage::Training }
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
        matches!(self.stage, Stage::Attempt(_))
    }

    /// Median AUROC of the base model over the sites that are ready.
    pub(crate) fn auroc(&self) -> Option<f64> {
        median_auroc(self.saved.open.delivered().filter_map(|(_, ready)| ready.base_metrics.as_ref()))
    }

    /// Masked inputs that are being pulled.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = BlobDigest> {
        let attempt = match &self.stage {
            Stage::Attempt(attempt) => Some(attempt),
            _ => None,
        };
        attempt.into_iter().flat_map(Attempt::blobs)
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
                self.saved.open.decline(turn, from, &reason);
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
        if let Stage::Attempt(attempt) = &mut self.stage {
            attempt.gone(site);
        }
    }

    fn on_step(&mut self, turn: &mut Turn<'_>, from: &SiteId, step: SiteStep) {
        if self.saved.excluded.contains(from) {
            let reason = RefusalReason::Malformed("it broke the protocol of secure aggregation".into());
            self.saved.open.refuse(&mut turn.out, from, reason);
            return;
        }
        // Its update is in a sum: it hears when the round has a model, and nothing else can become of it.
        let in_sum = self.sums.iter().any(|sum| sum.contributors.contains_key(from));
        match step {
            SiteStep::Ready { base_metrics, privacy, left, abandonments } => {
                if !self.on_ready(turn, from, ReadySite { base_metrics, privacy }) {
                    return;
                }
                self.left.insert(from.clone(), left);
                for abandonment in abandonments {
                    self.abandonments.add(&turn.trust.at(turn.now), from, abandonment);
                }
                let place = match &mut self.stage {
                    Stage::Attempt(attempt) => attempt.place(from),
                    _ => Place::Over,
                };
                let said = match place {
                    Place::In(session) => session.on_ready(from, left),
                    // It has not heard that the last attempt is over.
                    Place::Over if left < self.saved.attempt && !in_sum => {
                        Some(AggregatorStep::Abandon { attempt: self.saved.attempt })
                    }
                    Place::Over | Place::Outside => None,
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
                if let Stage::Attempt(current) = &mut self.stage
                    && current.number() == attempt
                    && let Place::In(session) = current.place(from)
                {
                    session.complaint(from, blames);
                }
            }
            _ if in_sum => {}
            step => {
                let trust = turn.trust.at(turn.now);
                let over = |attempt| (vec![AggregatorStep::Abandon { attempt }], None);
                let place = match &mut self.stage {
                    Stage::Attempt(attempt) => attempt.place(from),
                    _ => Place::Over,
                };
                let (said, fault) = match place {
                    Place::In(session) => session.on_step(&mut turn.out, from, step, &trust),
                    // What is still said in a session that is over.
                    Place::Over => over(self.saved.attempt),
                    Place::Outside => over(self.saved.attempt.saturating_sub(1)),
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
    fn on_ready(&mut self, turn: &mut Turn<'_>, from: &SiteId, ready: ReadySite) -> bool {
        let open = &mut self.saved.open;
        if open.has_delivered(from) {
            return true;
        }
        if !open.admit(&mut turn.out, from) {
            return false;
        }
        if let Some(fault) =
            ready.base_metrics.as_ref().and_then(|m| metrics_fault(m, turn.plan.max_examples))
        {
            open.fail(&mut turn.out, from, RefusalReason::Malformed(fault));
            return false;
        }
        open.sites.insert(from.clone(), Standing::Delivered(ready));
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
            Stage::Attempt(attempt) => attempt.on_input(blob, bytes),
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
        if let Stage::Attempt(attempt) = &mut self.stage {
            attempt.on_input_failed(blob);
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
                        let why = match self.enough_to_begin(turn, self.candidates().len()) {
                            Err(why) => why,
                            Ok(()) => "no session could begin".to_owned(),
                        };
                        return self.abandon(turn, why);
                    }
                    turn.wake = Some(until);
                    return Phase::Securing(self);
                }
                Stage::Attempt(attempt) => match attempt.advance(&mut turn.out, turn.now) {
                    Some(Ended { group, result, session }) => match result {
                        Ok(opened) => {
                            if let Err(why) = self.keep(turn, group, opened) {
                                self.fail(turn, group, session, why, None);
                            }
                        }
                        Err((why, fault)) => self.fail(turn, group, session, why, fault),
                    },
                    None => match attempt.until() {
                        Some(until) => {
                            turn.wake = Some(until);
                            return Phase::Securing(self);
                        }
                        None => {
                            self.stage = self.gathering(turn.now);
                            self.saved.in_session = false;
                            turn.out.changed = true;
                            if self.enough_to_close(turn) {
                                return self.close(turn);
                            }
                        }
                    },
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

    /// Begins an attempt among those who can enter one.
    fn begin(&mut self, turn: &mut Turn<'_>) -> Result<(), String> {
        let cohort = self.candidates();
        self.enough_to_begin(turn, cohort.len())?;
        let number = self.saved.attempt + 1;
        let plan = &self.saved.open.plan;
        let grouped = self.secure().group_sites;
        let groups = turn.dealer.deal(&plan.spec.task, plan.round, number, &cohort, grouped)?;
        let assumptions = self.secure().assumptions;
        let proofs = |site: &SiteId| self.abandonments.certificates(site, &assumptions);
        let attempt = Attempt::begin(plan, number, groups, proofs, turn.now)?;
        (self.saved.attempt, self.saved.in_session) = (number, true);
        for (group, sites) in attempt.groups() {
            let (round, sites) = (self.number(), sites.iter().cloned().collect());
            let group = grouped.map(|_| group);
            turn.out.record(RoundRecord::SessionBegan { round, attempt: number, group, sites });
        }
        for (site, call) in attempt.calls() {
            self.say(&mut turn.out, site, call);
        }
        self.stage = Stage::Attempt(attempt);
        Ok(())
    }

    /// A group's session ends without a sum. Its sites may be in the next attempt.
    fn fail(
        &mut self,
        turn: &mut Turn<'_>,
        group: u16,
        session: Box<Session>,
        reason: String,
        fault: Option<SiteId>,
    ) {
        let (round, attempt) = (self.number(), self.saved.attempt);
        let group = self.secure().group_sites.map(|_| group);
        let mut excluded = Vec::from_iter(fault);
        excluded.extend(session.blamed(&self.secure().assumptions));
        let cohort = session.end(&mut turn.out);
        excluded.sort();
        excluded.dedup();
        for site in &excluded {
            self.exclude(turn, site, "it was at fault in secure aggregation".into());
        }
        self.saved.last_failure = Some(reason.clone());
        turn.out.record(RoundRecord::SessionFailed { round, attempt, group, reason, excluded });
        for site in &cohort {
            self.say(&mut turn.out, site, AggregatorStep::Abandon { attempt });
        }
    }

    fn gathering(&self, now: UnixMillis) -> Stage {
        Stage::Gathering { until: now.after(self.message_time() * 4) }
    }

    /// There are not sums of enough groups, and there will be no more.
    fn abandon(self: Box<Self>, turn: &mut Turn<'_>, why: String) -> Phase {
        let why = match &self.saved.last_failure {
            Some(failure) => format!("{why}; the last one failed because of this: {failure}"),
            None => why,
        };
        let reason = PauseReason::NoSum { round: self.number(), attempts: self.saved.attempt, why };
        if turn.task.without_sum < turn.plan.max_repeats {
            turn.task.without_sum += 1;
            turn.out.record(RoundRecord::RoundAbandoned { round: self.number(), reason });
            return Phase::next(turn);
        }
        self.end_without_model(turn, reason)
    }

    fn end_without_model(self: Box<Self>, turn: &mut Turn<'_>, reason: PauseReason) -> Phase {
        let round = self.number();
        turn.out.record(RoundRecord::RoundAbandoned { round, reason: reason.clone() });
        Phase::Paused(Paused::enter(turn, Suspended::Abandoned(round), reason))
    }

    /// After a restart of the program. Sessions that were under way are over: their secrets were never written down. Sums are
    /// lost.
    pub(crate) fn restarted(mut self: Box<Self>, turn: &mut Turn<'_>) -> Phase {
        self.saved.open.restarted(turn);
        if self.saved.attempt > 0 {
            let (round, attempt) = (self.number(), self.saved.attempt);
            if self.saved.in_session || self.saved.sums > 0 {
                (self.saved.in_session, self.saved.sums) = (false, 0);
                let reason = "the aggregator was restarted".to_owned();
                self.saved.last_failure = Some(reason.clone());
                let (group, excluded) = (None, Vec::new());
                turn.out.record(RoundRecord::SessionFailed { round, attempt, group, reason, excluded });
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
