//! What a site may still give away about its patients for a task.
//!
//! The budget is the site's own: its appliance keeps it, asks it before every round and refuses a round that does not
//! fit. It is a log of entries, from which everything else follows; costs are composed by the accountant, not added.
//!
//! **Reserve, then run.** [`PrivacyBudget::reserve`] charges a round in full and must be persisted
//! ([`PrivacyBudget::encode`]) before the first step touches data. [`PrivacyBudget::settle`] then says how many steps
//! really ran. The [`Reservation`] that this takes cannot be copied or stored, so after a crash nobody can settle:
//! the charge stays, whether or not the steps ran. How many steps run must not depend on the data (a deadline may end
//! a round, a loss that no longer falls may not).
//!
//! **Integrity.** Every entry is chained to the one before by SHA-256: a log that was cut short inside, reordered or
//! edited does not restore. A whole older log does, so keep the newest [`BudgetCheckpoint`] somewhere else too (a
//! TPM, the ledger, the aggregator) and give it to [`PrivacyBudget::restore`].
//!
//! **Adaptive rounds.** The accountant's bounds hold for rounds whose outputs depend on earlier outputs. They are
//! stated for parameters (rate, noise, steps) that were not chosen by looking at earlier outputs; for parameters that
//! are, with a limit set in advance, [`Accounting::Renyi`] at one fixed order is a valid filter (Feldman, Zrnic
//! 2021). So the host charges rounds of one mechanism only ([`PrivacyBudget::newest_mechanism`], [`Event::same_mechanism`])
//! unless its site decides otherwise. How many runs a round has may follow from earlier outputs: with one mechanism, as
//! many runs fit into the limit as were known in advance, and whoever stops earlier has seen a part of them.

mod log;

pub use log::{BudgetCheckpoint, BudgetEntry, BudgetRecord, RestoreError};

use crate::accountant::{Accounting, Composition};
use crate::calibrate::runs_within;
use crate::event::Event;
use crate::units::{Delta, Epsilon, PrivacyLimit};
use medinet_types::{Digest, RoundNumber, SiteId, TaskId, UnixMillis};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A site's budget for one task.
#[derive(Debug, Clone, PartialEq)]
pub struct PrivacyBudget {
    site: SiteId,
    task: TaskId,
    limit: PrivacyLimit,
    accounting: Accounting,
    records: Vec<BudgetRecord>,
    head: Digest,
    /// Events that were settled, as they ran.
    settled: Composition,
    /// Reservations that were not settled, by entry number, charged in full.
    open: BTreeMap<u64, Event>,
    /// Epsilon of all of them.
    spent: f64,
    /// Whether a round without noise trained on the same patients.
    unprotected: bool,
    /// The number of patients that private training counts on.
    patients: Option<u64>,
}

/// Permission to run an event once; it names an entry of one budget's log.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a reservation that is dropped stays charged in full"]
pub struct Reservation {
    entry: u64,
    digest: Digest,
}

/// What an event would cost now.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Price {
    /// Epsilon spent so far, open reservations included.
    pub before: f64,
    /// Epsilon spent with the event; infinite where no bound is found.
    pub after: f64,
    /// The limit.
    pub limit: PrivacyLimit,
}

impl Price {
    /// What the event adds to epsilon.
    #[must_use]
    pub fn added(&self) -> f64 {
        (self.after - self.before).max(0.0)
    }

    /// Whether it fits.
    #[must_use]
    pub fn fits(&self) -> bool {
        self.after <= self.limit.epsilon.get()
    }

    /// Epsilon that would be left; 0 when it does not fit.
    #[must_use]
    pub fn left(&self) -> f64 {
        (self.limit.epsilon.get() - self.after).max(0.0)
    }
}

/// The budget refuses.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum BudgetError {
    /// The event does not fit.
    #[error(
        "privacy budget of task {task}: expected to stay within epsilon {} at delta {}; {before:.4} is spent and the \
         round would bring it to {after:.4}; {runs_left} of its {asked} runs fit: the plan asks for less, or the site \
         raises its limit", limit.epsilon, limit.delta
    )]
    Exhausted {
        /// The task.
        task: TaskId,
        /// The limit.
        limit: PrivacyLimit,
        /// Epsilon spent so far.
        before: f64,
        /// Epsilon with the event.
        after: f64,
        /// Steps or rounds of the event.
        asked: u64,
        /// How many of them certainly fit.
        runs_left: u64,
    },
    /// A reservation of another budget, or of a state of this one that was not kept.
    #[error(
        "expected a reservation of this budget that is open, got entry {0}: reservations do not survive a restart"
    )]
    NotReserved(u64),
    /// A limit that its log cannot hold: another delta.
    #[error("expected delta {expected} as before, got {got}: epsilons at different deltas do not compare")]
    OtherDelta {
        /// As before.
        expected: Delta,
        /// As asked.
        got: Delta,
    },
}

impl PrivacyBudget {
    /// A fresh budget.
    #[must_use]
    pub fn open(
        site: SiteId,
        task: TaskId,
        limit: PrivacyLimit,
        accounting: Accounting,
        at: UnixMillis,
    ) -> Self {
        let mut budget = Self {
            site: site.clone(),
            task: task.clone(),
            limit,
            accounting,
            records: Vec::new(),
            head: log::genesis(),
            settled: Composition::new(),
            open: BTreeMap::new(),
            spent: 0.0,
            unprotected: false,
            patients: None,
        };
        budget.append(at, BudgetEntry::Opened { site, task, limit, accounting });
        budget
    }

    /// The site.
    #[must_use]
    pub fn site(&self) -> &SiteId {
        &self.site
    }

    /// The task.
    #[must_use]
    pub fn task(&self) -> &TaskId {
        &self.task
    }

    /// The limit.
    #[must_use]
    pub fn limit(&self) -> PrivacyLimit {
        self.limit
    }

    /// Epsilon spent so far at the limit's delta, open reservations in full.
    #[must_use]
    pub fn spent(&self) -> f64 {
        self.spent
    }

    /// Epsilon that is left.
    #[must_use]
    pub fn left(&self) -> f64 {
        (self.limit.epsilon.get() - self.spent).max(0.0)
    }

    /// Everything that is charged, open reservations in full.
    #[must_use]
    pub fn charged(&self) -> Composition {
        self.open.values().fold(self.settled.clone(), |sum, event| sum.with(event))
    }

    /// Whether a round without noise trained on the same patients: then what is spent bounds nothing but the private rounds.
    #[must_use]
    pub fn is_unbounded(&self) -> bool {
        self.unprotected
    }

    /// The mechanism that was charged last, as one run; none before the first charge.
    #[must_use]
    pub fn newest_mechanism(&self) -> Option<Event> {
        self.records.iter().rev().find_map(|record| match &record.entry {
            BudgetEntry::Reserved { event, .. } => Some(event.with_count(1)),
            _ => None,
        })
    }

    /// The log, oldest first.
    #[must_use]
    pub fn records(&self) -> &[BudgetRecord] {
        &self.records
    }

    /// What an event would cost now. Changes nothing.
    #[must_use]
    pub fn price(&self, event: &Event) -> Price {
        let after = self.epsilon_of(&self.charged().with(event)).max(self.spent);
        Price { before: self.spent, after, limit: self.limit }
    }

    /// How many more runs of an event's mechanism fit.
    #[must_use]
    pub fn runs_left(&self, event: &Event) -> u64 {
        runs_within(&self.limit, event, &self.charged(), self.accounting)
    }

    /// Charges an event in full. Persist the budget before running it.
    ///
    /// # Errors
    /// When it does not fit; then nothing is charged.
    pub fn reserve(
        &mut self,
        round: RoundNumber,
        event: &Event,
        at: UnixMillis,
    ) -> Result<Reservation, BudgetError> {
        let price = self.price(event);
        if !price.fits() {
            return Err(BudgetError::Exhausted {
                task: self.task.clone(),
                limit: self.limit,
                before: price.before,
                after: price.after,
                asked: event.count(),
                // The fast bound: an error should not take seconds.
                runs_left: runs_within(&self.limit, event, &self.charged(), Accounting::Renyi)
                    .min(event.count()),
            });
        }
        let entry = self.records.len() as u64;
        self.append(at, BudgetEntry::Reserved { round, event: *event });
        self.open.insert(entry, *event);
        self.spent = price.after;
        Ok(Reservation { entry, digest: self.head })
    }

    /// Says how many steps or rounds of a reserved event really ran, which may be none.
    ///
    /// # Errors
    /// When the reservation is not one of this budget.
    pub fn settle(&mut self, reservation: Reservation, ran: u64, at: UnixMillis) -> Result<(), BudgetError> {
        let Reservation { entry, digest } = reservation;
        let known = usize::try_from(entry).ok().and_then(|at| self.records.get(at));
        if known.is_none_or(|record| record.digest != digest) {
            return Err(BudgetError::NotReserved(entry));
        }
        let event = self.open.remove(&entry).ok_or(BudgetError::NotReserved(entry))?;
        self.append(at, BudgetEntry::Settled { reservation: entry, ran });
        self.settled.add(&event.with_count(ran));
        if ran != event.count() {
            self.spent = self.epsilon_of(&self.charged());
        }
        Ok(())
    }

    /// Sets another epsilon as limit, by decision of the site. A limit below what is spent refuses every further round.
    ///
    /// # Errors
    /// When delta differs.
    pub fn set_limit(&mut self, limit: PrivacyLimit, at: UnixMillis) -> Result<(), BudgetError> {
        if limit.delta != self.limit.delta {
            return Err(BudgetError::OtherDelta { expected: self.limit.delta, got: limit.delta });
        }
        self.append(at, BudgetEntry::LimitSet { limit });
        self.limit = limit;
        Ok(())
    }

    /// Puts on record that a round trains on the same patients without noise. What was spent stays spent, and bounds the private rounds alone
    /// from here on. Persist the budget before training; further such rounds change nothing.
    pub fn note_unprotected(&mut self, round: RoundNumber, at: UnixMillis) {
        if !self.unprotected {
            self.append(at, BudgetEntry::Unprotected { round });
            self.unprotected = true;
        }
    }

    /// The number of patients, N' in [`crate::DpSgdPlan`], that all private training of the task counts on; none before it was fixed.
    #[must_use]
    pub fn public_patients(&self) -> Option<u64> {
        self.patients
    }

    /// Fixes the number of patients that private training counts on, for good: one that is fixed already stays, and is what comes back. The
    /// noise that others see is scaled by it, so a number that followed the data would tell of single patients beside what is charged. Persist the
    /// budget before training.
    pub fn fix_public_patients(&mut self, count: u64, at: UnixMillis) -> u64 {
        if let Some(fixed) = self.patients {
            return fixed;
        }
        self.append(at, BudgetEntry::PublicPatients { count });
        self.patients = Some(count);
        count
    }

    fn epsilon_of(&self, composition: &Composition) -> f64 {
        composition.epsilon(self.limit.delta, self.accounting)
    }

    fn append(&mut self, at: UnixMillis, entry: BudgetEntry) {
        let record = BudgetRecord::after(&self.head, at, entry);
        self.head = record.digest;
        self.records.push(record);
    }
}

/// What a site says of its budget for a task: in its status, and, signed, with each contribution to a round of training. The aggregator keeps it with
/// the round's record.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrivacyReport {
    /// Epsilon spent in all, what a round under way was charged included.
    pub spent: Epsilon,
    /// The limit.
    pub limit: PrivacyLimit,
    /// Whether rounds without noise trained on the same patients too. Then nothing bounds what has left in all, and `spent` is what the private
    /// rounds cost alone.
    // Written in any case: postcard, which messages are encoded with, cannot leave fields out.
    #[serde(default)]
    pub unbounded: bool,
    /// How often a private round was charged; a round that was trained anew counts again.
    #[serde(default)]
    pub rounds: u32,
}

impl PrivacyBudget {
    /// For a round's report; `None` while no finite bound of what was charged is known.
    #[must_use]
    pub fn report(&self) -> Option<PrivacyReport> {
        let spent = Epsilon::new(self.spent).ok()?;
        let charges =
            self.records.iter().filter(|record| matches!(record.entry, BudgetEntry::Reserved { .. }));
        let rounds = u32::try_from(charges.count()).unwrap_or(u32::MAX);
        Some(PrivacyReport { spent, limit: self.limit, unbounded: self.unprotected, rounds })
    }
}
