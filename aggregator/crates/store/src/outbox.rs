//! Entries on their way to the ledger.

use crate::commit::integer;
use crate::error::{Context as _, StoreError};
use crate::store::Store;
use rusqlite::{Connection, Transaction, TransactionBehavior, params};

/// An entry that waits to be appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueuedEntry {
    /// Its number, which is its index in the ledger.
    pub index: u64,
    /// The encoded record.
    pub entry: Vec<u8>,
}

/// Adds entries at the end of the queue; returns the number of the first.
pub(crate) fn queue(tx: &Transaction<'_>, entries: &[Vec<u8>]) -> Result<u64, StoreError> {
    let (_, first) = cursor(tx)?;
    let mut next = first;
    for entry in entries {
        tx.prepare_cached("INSERT INTO ledger_outbox VALUES (?1, ?2)")
            .and_then(|mut s| s.execute(params![integer(next), entry]))
            .context("queueing a ledger entry")?;
        next += 1;
    }
    if next > first {
        tx.execute("UPDATE ledger_cursor SET queued = ?1", [integer(next)])
            .context("queueing a ledger entry")?;
    }
    Ok(first)
}

/// Entries known to be appended, and entries ever queued.
fn cursor(connection: &Connection) -> Result<(u64, u64), StoreError> {
    let of = |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?));
    let (appended, queued) = connection
        .query_row("SELECT appended, queued FROM ledger_cursor", [], of)
        .context("reading the ledger cursor")?;
    Ok((appended.unsigned_abs(), queued.unsigned_abs()))
}

impl Store {
    /// Queues an entry that belongs to no commit and returns its index in the ledger.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn queue_ledger_entry(&mut self, entry: Vec<u8>) -> Result<u64, StoreError> {
        let tx = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .context("queueing a ledger entry")?;
        let index = queue(&tx, &[entry])?;
        tx.commit().context("queueing a ledger entry")?;
        Ok(index)
    }

    /// The next entries to append to a ledger that holds `log_size` entries, at most `limit`, in order. Ask again after
    /// appending, and after a restart with the size that the log then has.
    ///
    /// # Errors
    /// When the log cannot be the one that this store feeds.
    pub fn pending_ledger_entries(&self, log_size: u64, limit: u32) -> Result<Vec<QueuedEntry>, StoreError> {
        let (appended, queued) = cursor(&self.connection)?;
        if !(appended..=queued).contains(&log_size) {
            return Err(StoreError::ForeignLedger { log: log_size, appended, queued });
        }
        let mut statement = self
            .connection
            .prepare_cached("SELECT idx, entry FROM ledger_outbox WHERE idx >= ?1 ORDER BY idx LIMIT ?2")
            .context("reading the ledger queue")?;
        statement
            .query_map(params![integer(log_size), limit], |row| {
                Ok(QueuedEntry { index: row.get::<_, i64>(0)?.unsigned_abs(), entry: row.get(1)? })
            })
            .and_then(Iterator::collect)
            .context("reading the ledger queue")
    }

    /// Notes that the ledger durably holds `log_size` entries, and forgets them here.
    ///
    /// # Errors
    /// When the log cannot be the one that this store feeds, or the disk refuses.
    pub fn ledger_appended(&mut self, log_size: u64) -> Result<(), StoreError> {
        let tx = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .context("noting the ledger's size")?;
        let (appended, queued) = cursor(&tx)?;
        if !(appended..=queued).contains(&log_size) {
            return Err(StoreError::ForeignLedger { log: log_size, appended, queued });
        }
        tx.execute("DELETE FROM ledger_outbox WHERE idx < ?1", [integer(log_size)])
            .and_then(|_| tx.execute("UPDATE ledger_cursor SET appended = ?1", [integer(log_size)]))
            .context("noting the ledger's size")?;
        tx.commit().context("noting the ledger's size")
    }
}
