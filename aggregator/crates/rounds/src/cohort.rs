//! Which sites take part in a round, how far each is, and when the round may close. The same for training and
//! evaluation; `T` is what a site delivers.

use crate::effect::{Effect, Outbox};
use crate::phase::Turn;
use crate::record::{PauseReason, RoundRecord};
use medinet_types::{RoundNumber, SiteId, TaskId, UnixMillis};
use medinet_wire::message::{
    FromAggregatorToAll, RefusalReason, RoundKind, RoundPlan, SiteDecline, ToSite, clean_reason,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// How often a site's joining or declining one round goes on record, at most: records stay for good, and no site may fill the disk with them.
const MAX_CHANGES: u8 = 16;

/// How far a site is in a round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Standing<T> {
    /// It takes part and has delivered nothing yet.
    Joined,
    /// Its policy refuses the round, and why.
    Declined(String),
    /// Its contribution breaks the rules; the round goes on without it.
    Failed(RefusalReason),
    /// Its contribution counts.
    Delivered(T),
}

/// How many members of a round are where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Tally {
    /// Sites that take part: outstanding and delivered.
    pub joined: u32,
    /// Sites whose contribution counts.
    pub delivered: u32,
    /// Sites that declined.
    pub declined: u32,
    /// Sites whose contribution was refused.
    pub failed: u32,
}

/// What time and deliveries say about an open round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outlook {
    /// Nothing to do until then.
    WaitUntil(UnixMillis),
    /// It has what it needs.
    Close,
    /// The deadline is here and contributions are too few.
    TooFew,
}

/// A round that is open, as it is persisted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct OpenRound<T> {
    pub(crate) plan: RoundPlan,
    pub(crate) extensions: u32,
    pub(crate) sites: BTreeMap<SiteId, Standing<T>>,
    /// How often each site has joined or declined since the round was opened, or opened again.
    pub(crate) changes: BTreeMap<SiteId, u8>,
}

impl<T> OpenRound<T> {
    /// Opens the next round on the newest model.
    pub(crate) fn open(kind: RoundKind, turn: &mut Turn<'_>) -> Self {
        let plan = turn.plan;
        turn.task.rounds_opened = turn.task.rounds_opened.saturating_add(1);
        let mut round = RoundPlan {
            spec: turn.task.spec.clone(),
            round: RoundNumber(turn.task.rounds_opened),
            kind,
            base: turn.task.model.clone(),
            steps: turn.task.downlink.steps().to_vec(),
            made_by: turn.task.made_by.clone(),
            training: plan.training_from(turn.task.trained),
            privacy_total: None,
            aggregation: plan.aggregation_with(turn.task.clip_norm),
            min_sites: plan.min_sites,
            max_sites: plan.most_sites(),
            opened_at: turn.now,
            deadline: turn.now.after(plan.round_deadline),
        };
        round.privacy_total = turn.task.announced.announce(&round);
        turn.out.record(RoundRecord::RoundOpened { plan: Box::new(round.clone()) });
        let open = Self { plan: round, extensions: 0, sites: BTreeMap::new(), changes: BTreeMap::new() };
        open.announce(&mut turn.out);
        open
    }

    pub(crate) fn number(&self) -> RoundNumber {
        self.plan.round
    }

    fn task(&self) -> &TaskId {
        &self.plan.spec.task
    }

    /// Serves the base and the ways to it, and tells everyone that the round is open.
    pub(crate) fn announce(&self, out: &mut Outbox) {
        for step in &self.plan.steps {
            out.then(Effect::Serve { blob: step.delta.digest });
        }
        out.then(Effect::Serve { blob: self.plan.base.parameters.digest });
        out.then(Effect::Broadcast(FromAggregatorToAll::Announce(self.plan.clone())));
    }

    pub(crate) fn accept(&self, out: &mut Outbox, site: &SiteId) {
        out.send(site, ToSite::Accepted { task: self.task().clone(), round: self.number() });
    }

    pub(crate) fn refuse(&self, out: &mut Outbox, site: &SiteId, reason: RefusalReason) {
        out.send(site, ToSite::Refused { task: self.task().clone(), round: self.number(), reason });
    }

    /// Leaves a site out of the round for what it sent.
    pub(crate) fn fail(&mut self, out: &mut Outbox, site: &SiteId, reason: RefusalReason) {
        let (round, record_site) = (self.number(), site.clone());
        out.record(RoundRecord::ContributionRefused { round, site: record_site, reason: reason.clone() });
        self.sites.insert(site.clone(), Standing::Failed(reason.clone()));
        self.refuse(out, site, reason);
    }

    /// Whether a contribution of the site may be looked at; joins it when it has not joined, and answers when not.
    pub(crate) fn admit(&mut self, out: &mut Outbox, site: &SiteId) -> bool {
        match self.sites.get(site) {
            Some(Standing::Joined) => true,
            Some(Standing::Delivered(_)) => {
                self.accept(out, site);
                false
            }
            Some(Standing::Failed(reason)) => {
                self.refuse(out, site, reason.clone());
                false
            }
            Some(Standing::Declined(_)) | None => {
                if self.tally().joined >= self.plan.max_sites {
                    self.refuse(out, site, RefusalReason::Full);
                    return false;
                }
                if !self.may_change(site) {
                    let reason = format!("the site has joined and declined the round {MAX_CHANGES} times");
                    self.refuse(out, site, RefusalReason::Malformed(reason));
                    return false;
                }
                self.sites.insert(site.clone(), Standing::Joined);
                out.record(RoundRecord::SiteJoined { round: self.number(), site: site.clone() });
                true
            }
        }
    }

    /// The site's policy refuses the round. What it has delivered stays. A site repeats its word; another reason, which it has after an extension or
    /// a change of its policy, goes on record too.
    pub(crate) fn decline(&mut self, turn: &mut Turn<'_>, site: &SiteId, reason: &str) {
        let reason = clean_reason(reason);
        let known = match self.sites.get(site) {
            // What was refused stays refused: a site must not begin anew by declining.
            Some(Standing::Delivered(_) | Standing::Failed(_)) => true,
            Some(Standing::Declined(before)) => *before == reason || self.is_spent(site),
            Some(Standing::Joined) | None => false,
        };
        if !known {
            let round = self.number();
            let on_record = self.may_change(site);
            self.sites.insert(site.clone(), Standing::Declined(reason.clone()));
            turn.out.changed = true;
            if on_record {
                turn.task.note_decline(SiteDecline { site: site.clone(), round, reason: reason.clone() });
                turn.out.record(RoundRecord::SiteDeclined { round, site: site.clone(), reason });
            }
        }
        self.accept(&mut turn.out, site);
    }

    /// Whether the site has changed its mind as often as goes on record.
    fn is_spent(&self, site: &SiteId) -> bool {
        self.changes.get(site).is_some_and(|changes| *changes >= MAX_CHANGES)
    }

    /// Whether another change of the site's mind goes on record, and counts it.
    fn may_change(&mut self, site: &SiteId) -> bool {
        let changes = self.changes.entry(site.clone()).or_default();
        let may = *changes < MAX_CHANGES;
        *changes = changes.saturating_add(1);
        may
    }

    pub(crate) fn delivered(&self) -> impl Iterator<Item = (&SiteId, &T)> {
        self.sites.iter().filter_map(|(site, standing)| match standing {
            Standing::Delivered(what) => Some((site, what)),
            _ => None,
        })
    }

    pub(crate) fn has_delivered(&self, site: &SiteId) -> bool {
        matches!(self.sites.get(site), Some(Standing::Delivered(_)))
    }

    pub(crate) fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        for standing in self.sites.values() {
            match standing {
                Standing::Joined => tally.joined += 1,
                Standing::Declined(_) => tally.declined += 1,
                Standing::Failed(_) => tally.failed += 1,
                Standing::Delivered(_) => {
                    tally.joined += 1;
                    tally.delivered += 1;
                }
            }
        }
        tally
    }

    /// The minimum and deadline rules.
    pub(crate) fn outlook(&self, turn: &Turn<'_>) -> Outlook {
        let tally = self.tally();
        let enough = tally.delivered >= self.plan.min_sites;
        let outstanding = tally.joined > tally.delivered;
        let grace_over = self.plan.opened_at.after(turn.plan.join_grace);
        if enough {
            let full = tally.delivered >= self.plan.max_sites;
            let all_answered = || turn.plan.members.iter().all(|m| self.sites.contains_key(m));
            if full || turn.now >= self.plan.deadline {
                return Outlook::Close;
            }
            if !outstanding && (turn.now >= grace_over || all_answered()) {
                return Outlook::Close;
            }
        } else if turn.now >= self.plan.deadline {
            return Outlook::TooFew;
        }
        let deadline = self.plan.deadline;
        Outlook::WaitUntil(if turn.now < grace_over { grace_over.min(deadline) } else { deadline })
    }

    /// Members that may still deliver: that have neither delivered nor declined, as far as the round has room for them.
    pub(crate) fn may_still_deliver(&self, turn: &Turn<'_>) -> u32 {
        let silent = |member: &&SiteId| matches!(self.sites.get(*member), None | Some(Standing::Joined));
        let silent = turn.plan.members.iter().filter(silent).count();
        let room = self.plan.max_sites.saturating_sub(self.tally().delivered);
        u32::try_from(silent).unwrap_or(u32::MAX).min(room)
    }

    /// Keeps the round open past its deadline, a bounded number of times. What has been delivered stays. Everyone else may
    /// try again, and nobody holds a place that others could fill: sites that joined and did not deliver join anew.
    pub(crate) fn extend(&mut self, turn: &mut Turn<'_>) -> Result<(), PauseReason> {
        let (round, needed, got) = (self.number(), self.plan.min_sites, self.tally().delivered);
        let reason = PauseReason::TooFewSites { round, needed, got };
        if self.extensions >= turn.plan.max_extensions {
            return Err(reason);
        }
        self.extensions += 1;
        self.reopen(turn);
        let deadline = self.plan.deadline;
        turn.out.record(RoundRecord::RoundExtended { round, reason, deadline });
        self.announce(&mut turn.out);
        Ok(())
    }

    /// Continues after a pause.
    pub(crate) fn resume(&mut self, turn: &mut Turn<'_>) {
        self.extensions = 0;
        self.reopen(turn);
        turn.out.record(RoundRecord::TaskResumed { round: self.number() });
        self.announce(&mut turn.out);
    }

    fn reopen(&mut self, turn: &Turn<'_>) {
        self.plan.deadline = turn.now.after(turn.plan.round_deadline);
        self.changes.clear();
        self.sites.retain(|_, standing| matches!(standing, Standing::Delivered(_) | Standing::Declined(_)));
    }

    /// Calls everyone back to the round. The message to the one site that is meant may be lost and the site believes itself
    /// done, but the announcement is retained, and one with a later deadline has every site repeat its contribution.
    pub(crate) fn recall(&mut self, turn: &mut Turn<'_>) {
        let later = self.plan.deadline.after(Duration::from_millis(1));
        self.plan.deadline = later.max(turn.now.after(turn.plan.round_deadline));
        turn.out.changed = true;
        self.announce(&mut turn.out);
    }

    /// Repeats the announcement after a restart. Sites could not deliver while the aggregator was away, so they
    /// have at least the join grace from now.
    pub(crate) fn restarted(&mut self, turn: &mut Turn<'_>) {
        let earliest = turn.now.after(turn.plan.join_grace);
        if self.plan.deadline < earliest {
            self.plan.deadline = earliest;
            turn.out.changed = true;
        }
        self.announce(&mut turn.out);
    }
}
