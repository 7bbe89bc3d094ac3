//! The budget's log: its entries, their chain, their bytes.

use super::PrivacyBudget;
use crate::accountant::{Accounting, Composition};
use crate::event::Event;
use crate::units::PrivacyLimit;
use medinet_types::{Digest, RoundNumber, SiteId, TaskId, UnixMillis};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The longest log, in bytes: some 300,000 rounds.
const MAX_BYTES: usize = 64 << 20;
const VERSION: u8 = 3;
/// Still read: it knew no [`BudgetEntry::Unprotected`], and version 2 no [`BudgetEntry::PublicPatients`].
const FIRST_VERSION: u8 = 1;

/// What happened to a budget.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum BudgetEntry {
    /// It was opened; the first entry and no other.
    Opened {
        /// The site.
        site: SiteId,
        /// The task.
        task: TaskId,
        /// The limit.
        limit: PrivacyLimit,
        /// How costs are composed.
        accounting: Accounting,
    },
    /// The site set another limit.
    LimitSet {
        /// The limit from here on.
        limit: PrivacyLimit,
    },
    /// An event was charged in full.
    Reserved {
        /// The round that it is for.
        round: RoundNumber,
        /// The event.
        event: Event,
    },
    /// A reserved event ended.
    Settled {
        /// Number of the entry that reserved it, from 0.
        reservation: u64,
        /// How many of its runs happened.
        ran: u64,
    },
    /// A round trains on the same patients without noise: nothing bounds any more what has left in all.
    Unprotected {
        /// The first such round.
        round: RoundNumber,
    },
    /// Private training counts on this number of patients from here on; at most once.
    PublicPatients {
        /// N', rounded so that it may be known.
        count: u64,
    },
}

/// An entry, when it was made, and the digest of the log up to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BudgetRecord {
    /// When, by the site's clock.
    pub at: UnixMillis,
    /// What happened.
    pub entry: BudgetEntry,
    /// SHA-256 over the digest before, `at` and `entry`.
    pub digest: Digest,
}

impl BudgetRecord {
    pub(super) fn after(before: &Digest, at: UnixMillis, entry: BudgetEntry) -> Self {
        let digest = chained(before, at, &entry);
        Self { at, entry, digest }
    }
}

/// A log's length and head: a log that continues it has the same record there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BudgetCheckpoint {
    /// Number of entries, from 1.
    pub entries: u64,
    /// Digest of the last of them.
    pub head: Digest,
}

/// Bytes that are not this budget; nothing may be spent until someone has found out why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// Written by another version.
    #[error("expected privacy budget version {VERSION}, got {0}: update this program")]
    Version(u8),
    /// Do not decode.
    #[error("expected a privacy budget, got bytes that do not decode: restore it from a backup")]
    Malformed,
    /// An entry was changed, removed or put elsewhere.
    #[error(
        "entry {0} of the privacy budget does not continue the one before: the file was damaged or edited"
    )]
    Chain(u64),
    /// An entry that no budget writes there.
    #[error("entry {0} of the privacy budget breaks its rules: the file was not written by this program")]
    Rules(u64),
    /// Older than, or another than, what is known to have existed.
    #[error(
        "expected a privacy budget that continues entry {entries}, got one of {got} entries that does not: an old copy was put back"
    )]
    RolledBack {
        /// Entries of the checkpoint.
        entries: u64,
        /// Entries of the log.
        got: u64,
    },
}

/// What the first entry is chained to.
pub(super) fn genesis() -> Digest {
    Digest::of(b"medinet privacy budget 1")
}

fn chained(before: &Digest, at: UnixMillis, entry: &BudgetEntry) -> Digest {
    // Entries hold no maps and no sequences of unknown length, so postcard cannot fail.
    let bytes = postcard::to_stdvec(entry).expect("entries always encode");
    Digest::of_parts(&[before.as_bytes(), &at.0.to_le_bytes(), &bytes])
}

impl PrivacyBudget {
    /// The log's length and head, to be kept elsewhere.
    #[must_use]
    pub fn checkpoint(&self) -> BudgetCheckpoint {
        BudgetCheckpoint { entries: self.records.len() as u64, head: self.head }
    }

    /// The bytes to keep: a version byte and the records in postcard.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        bytes.extend(postcard::to_stdvec(&self.records).expect("records always encode"));
        bytes
    }

    /// Reads what [`PrivacyBudget::encode`] wrote and replays it. Reservations that were open stay charged
    /// in full. `newest` is the newest checkpoint that is known from elsewhere.
    ///
    /// # Errors
    /// See [`RestoreError`].
    pub fn restore(bytes: &[u8], newest: Option<&BudgetCheckpoint>) -> Result<Self, RestoreError> {
        let (version, rest) = bytes.split_first().ok_or(RestoreError::Malformed)?;
        if !(FIRST_VERSION..=VERSION).contains(version) {
            return Err(RestoreError::Version(*version));
        }
        if rest.len() > MAX_BYTES {
            return Err(RestoreError::Malformed);
        }
        let (records, left): (Vec<BudgetRecord>, &[u8]) =
            postcard::take_from_bytes(rest).map_err(|_| RestoreError::Malformed)?;
        if !left.is_empty() {
            return Err(RestoreError::Malformed);
        }
        let mut head = genesis();
        for (number, record) in (0u64..).zip(&records) {
            if chained(&head, record.at, &record.entry) != record.digest {
                return Err(RestoreError::Chain(number));
            }
            head = record.digest;
        }
        if let Some(BudgetCheckpoint { entries, head }) = newest {
            let there =
                usize::try_from(*entries).ok().and_then(|n| n.checked_sub(1)).and_then(|at| records.get(at));
            if there.is_none_or(|record| record.digest != *head) {
                return Err(RestoreError::RolledBack { entries: *entries, got: records.len() as u64 });
            }
        }
        replay(records, head)
    }
}

fn replay(records: Vec<BudgetRecord>, head: Digest) -> Result<PrivacyBudget, RestoreError> {
    let mut numbered = (0u64..).zip(&records);
    let Some((_, BudgetRecord { entry: BudgetEntry::Opened { site, task, limit, accounting }, .. })) =
        numbered.next()
    else {
        return Err(RestoreError::Rules(0));
    };
    let (mut limit, mut open, mut settled) = (*limit, BTreeMap::new(), Composition::new());
    let (mut unprotected, mut patients) = (false, None);
    for (number, record) in numbered {
        match &record.entry {
            BudgetEntry::Opened { .. } => return Err(RestoreError::Rules(number)),
            BudgetEntry::LimitSet { limit: new } if new.delta == limit.delta => limit = *new,
            BudgetEntry::LimitSet { .. } => return Err(RestoreError::Rules(number)),
            BudgetEntry::Reserved { event, .. } => {
                open.insert(number, *event);
            }
            BudgetEntry::Settled { reservation, ran } => {
                let event: Event = open.remove(reservation).ok_or(RestoreError::Rules(number))?;
                settled.add(&event.with_count(*ran));
            }
            BudgetEntry::Unprotected { .. } if unprotected => return Err(RestoreError::Rules(number)),
            BudgetEntry::Unprotected { .. } => unprotected = true,
            BudgetEntry::PublicPatients { .. } if patients.is_some() => {
                return Err(RestoreError::Rules(number));
            }
            BudgetEntry::PublicPatients { count } => patients = Some(*count),
        }
    }
    let (site, task, accounting) = (site.clone(), task.clone(), *accounting);
    let mut budget = PrivacyBudget {
        site,
        task,
        limit,
        accounting,
        records,
        head,
        settled,
        open,
        spent: 0.0,
        unprotected,
        patients,
    };
    budget.spent = budget.epsilon_of(&budget.charged());
    Ok(budget)
}
