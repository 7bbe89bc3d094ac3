//! Why the store could not do what was asked.

use medinet_types::{ModelVersion, TaskId};
use std::path::PathBuf;

/// The store failed; after any error the program stops and opens the store anew.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Environment: the folder cannot be made or opened.
    #[error("state folder {folder}: {action} failed: check that it exists, is writable and has space")]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// Another process writes here.
    #[error(
        "state folder {folder} is in use by another aggregator: stop it first, or give this one its own folder"
    )]
    InUse {
        /// The folder.
        folder: PathBuf,
    },
    /// The database was written by a newer program.
    #[error("the database has schema version {got}, this program knows up to {known}: run the newer program")]
    NewerSchema {
        /// Version found.
        got: u32,
        /// Newest version known.
        known: u32,
    },
    /// The database is not there or has an older schema, and was opened for reading only.
    #[error(
        "no database of schema version {known} in {folder}: start the aggregator once, it makes or updates it"
    )]
    NotReady {
        /// The folder.
        folder: PathBuf,
        /// The version needed.
        known: u32,
    },
    /// SQLite refused: environment (disk full, damaged file) or a fault in our statements.
    #[error("database: {action} failed")]
    Database {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: rusqlite::Error,
    },
    /// A row holds what this program did not write: damage, or a hand at work.
    #[error("database: {column} holds {got:?}, which is no {expected}: restore the database from a backup")]
    Row {
        /// Table and column.
        column: &'static str,
        /// What it should hold.
        expected: &'static str,
        /// What it holds, shortened.
        got: String,
    },
    /// The snapshot cannot be read.
    #[error(transparent)]
    Snapshot(#[from] medinet_rounds::SnapshotError),
    /// Asked for a model that was never made.
    #[error("task {task} has no model of version {version}: see `medinet model list` for those there are")]
    NoSuchModel {
        /// The task.
        task: TaskId,
        /// The version.
        version: ModelVersion,
    },
    /// The ledger is not the one that this store has fed: our API misused, or a file was exchanged.
    #[error(
        "the ledger holds {log} entries, the store expects {appended} to {queued}: were files of another installation mixed in?"
    )]
    ForeignLedger {
        /// Entries in the log.
        log: u64,
        /// Entries known to be appended.
        appended: u64,
        /// Entries ever queued.
        queued: u64,
    },
}

/// Names what was tried when SQLite fails.
pub(crate) trait Context<T> {
    fn context(self, action: &'static str) -> Result<T, StoreError>;
}

impl<T> Context<T> for rusqlite::Result<T> {
    fn context(self, action: &'static str) -> Result<T, StoreError> {
        self.map_err(|source| StoreError::Database { action, source })
    }
}

pub(crate) fn bad_row(column: &'static str, expected: &'static str, got: &str) -> StoreError {
    StoreError::Row { column, expected, got: got.chars().take(80).collect() }
}
