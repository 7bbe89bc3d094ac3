//! One commit, one transaction.

use crate::error::{Context as _, StoreError};
use crate::outbox;
use crate::store::Store;
use medinet_rounds::{Commit, Outcome, RoundRecord, Snapshot};
use medinet_types::{TaskId, UnixMillis};
use medinet_wire::message::ModelRef;
use rusqlite::{OptionalExtension as _, Transaction, TransactionBehavior, params};
use serde::Serialize;

impl Store {
    /// Makes a task's change durable, and queues the ledger entries that the caller made of its records, in order.
    /// Returns the number of the first entry: its index in the ledger.
    ///
    /// # Errors
    /// When the disk refuses; then nothing of the commit is kept.
    pub fn commit(&mut self, commit: &Commit, ledger_entries: &[Vec<u8>]) -> Result<u64, StoreError> {
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .context("beginning a commit")?;
        let task = commit.snapshot.task();
        transaction
            .prepare_cached(
                "INSERT INTO tasks VALUES (?1, ?2, ?3)
                 ON CONFLICT (task) DO UPDATE SET snapshot = ?2, committed_at_ms = ?3",
            )
            .and_then(|mut s| s.execute(params![task.as_str(), commit.snapshot.encode(), millis(commit.at)]))
            .context("keeping a snapshot")?;
        for record in &commit.records {
            keep(&transaction, task, commit.at, record).context("keeping a record")?;
        }
        let first = outbox::queue(&transaction, ledger_entries)?;
        transaction.commit().context("committing")?;
        Ok(first)
    }

    /// The newest durable state of a task.
    ///
    /// # Errors
    /// When it cannot be read or was written by another version.
    pub fn snapshot(&self, task: &TaskId) -> Result<Option<Snapshot>, StoreError> {
        let bytes: Option<Vec<u8>> = self
            .connection
            .query_row("SELECT snapshot FROM tasks WHERE task = ?1", [task.as_str()], |row| row.get(0))
            .optional()
            .context("reading a snapshot")?;
        bytes.map(|bytes| Snapshot::decode(&bytes).map_err(StoreError::from)).transpose()
    }
}

/// SQLite holds signed integers; every time this side of the year 292 million fits.
pub(crate) fn millis(at: UnixMillis) -> i64 {
    i64::try_from(at.0).unwrap_or(i64::MAX)
}

pub(crate) fn integer(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(crate) fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value)
        .expect("records have string keys and finite numbers, so they have a JSON form")
}

/// Derives the registry's rows from a record.
fn keep(tx: &Transaction<'_>, task: &TaskId, at: UnixMillis, record: &RoundRecord) -> rusqlite::Result<()> {
    let (name, at_ms) = (task.as_str(), millis(at));
    tx.prepare_cached("INSERT INTO history (task, at_ms, record) VALUES (?1, ?2, ?3)")?.execute(params![
        name,
        at_ms,
        json(record)
    ])?;
    match record {
        RoundRecord::TaskStarted { model } => keep_model(tx, task, at, model, None, 0)?,
        RoundRecord::ModelAggregated { round, base, model, contributions: _, examples: _ } => {
            keep_model(tx, task, at, model, Some(base.to_string()), round.0)?;
        }
        RoundRecord::UpdateAccepted {
            round,
            site,
            update,
            update_bytes,
            examples,
            base_metrics,
            privacy: _,
        } => {
            tx.prepare_cached("INSERT INTO contributions VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)")?.execute(
                params![
                    name,
                    round.0,
                    site.as_str(),
                    update.to_string(),
                    integer(*update_bytes),
                    integer(*examples),
                    base_metrics.as_ref().map(json),
                    at_ms
                ],
            )?;
        }
        RoundRecord::UpdateLost { round, site, update: _ } => {
            tx.prepare_cached("DELETE FROM contributions WHERE task = ?1 AND round = ?2 AND site = ?3")?
                .execute(params![name, round.0, site.as_str()])?;
        }
        RoundRecord::Evaluated { round, site, model, metrics, ballot: _ } => {
            tx.prepare_cached("INSERT INTO measurements VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?.execute(
                params![name, round.0, site.as_str(), model.to_string(), metrics.as_ref().map(json), at_ms],
            )?;
        }
        RoundRecord::ModelJudged { round, verdict, measurements: _ } => {
            let version = verdict.model.version.0;
            tx.prepare_cached("INSERT INTO verdicts VALUES (?1, ?2, ?3, ?4, ?5)")?.execute(params![
                name,
                round.0,
                version,
                json(verdict),
                at_ms
            ])?;
            if verdict.outcome == Outcome::Released {
                tx.prepare_cached("INSERT INTO releases VALUES (?1, ?2, ?3, NULL, NULL)")?
                    .execute(params![name, version, at_ms])?;
            }
        }
        // How many images a site has is known in the sum alone.
        RoundRecord::InputCounted { round, site, input, input_bytes, base_metrics, privacy: _ } => {
            tx.prepare_cached("INSERT INTO contributions VALUES (?1, ?2, ?3, ?4, ?5, 0, ?6, ?7)")?.execute(
                params![
                    name,
                    round.0,
                    site.as_str(),
                    input.to_string(),
                    integer(*input_bytes),
                    base_metrics.as_ref().map(json),
                    at_ms
                ],
            )?;
        }
        RoundRecord::RoundOpened { .. }
        | RoundRecord::SessionBegan { .. }
        | RoundRecord::SessionFailed { .. }
        | RoundRecord::GroupSummed { .. }
        | RoundRecord::MeanShortened { .. }
        | RoundRecord::VotesCounted { .. }
        | RoundRecord::RoundAbandoned { .. }
        | RoundRecord::SiteJoined { .. }
        | RoundRecord::SiteDeclined { .. }
        | RoundRecord::ContributionRefused { .. }
        | RoundRecord::RoundExtended { .. }
        | RoundRecord::WentBack { .. }
        | RoundRecord::TaskPaused { .. }
        | RoundRecord::TaskResumed { .. }
        | RoundRecord::TaskFinished { .. } => {}
    }
    Ok(())
}

fn keep_model(
    tx: &Transaction<'_>,
    task: &TaskId,
    at: UnixMillis,
    model: &ModelRef,
    base: Option<String>,
    round: u32,
) -> rusqlite::Result<()> {
    let (digest, parameters) = (model.digest.to_string(), json(&model.parameters));
    tx.prepare_cached("INSERT INTO models VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?
        .execute(params![task.as_str(), model.version.0, digest, base, round, parameters, millis(at)])
        .map(|_| ())
}
