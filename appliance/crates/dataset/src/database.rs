//! The tables, and the ways in and out of them.

use crate::DatasetError;
use rusqlite::{Connection, OptionalExtension, TransactionBehavior};
use std::path::Path;
use std::time::Duration;

/// Raised when the tables change.
const SCHEMA_VERSION: i64 = 1;

/// How long one process waits for another's transaction.
const BUSY: Duration = Duration::from_secs(30);

const SCHEMA: &str = "
    CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
    -- One row per object that was added. instance is the SHA-256 of the remapped SOP Instance UID.
    CREATE TABLE objects (
        instance BLOB PRIMARY KEY,
        content BLOB NOT NULL,
        kind TEXT NOT NULL CHECK (kind IN ('image', 'report')),
        patient TEXT NOT NULL,
        study TEXT NOT NULL,
        accession TEXT,
        series TEXT NOT NULL,
        added_ms INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE images (
        id INTEGER PRIMARY KEY,
        instance BLOB NOT NULL REFERENCES objects (instance) ON DELETE CASCADE,
        frame INTEGER NOT NULL,
        image BLOB NOT NULL,
        pixel_rows INTEGER NOT NULL,
        pixel_columns INTEGER NOT NULL,
        instance_number INTEGER,
        -- Nine doubles in little endian: position, then orientation; NULL where the object has none.
        geometry BLOB,
        UNIQUE (instance, frame)
    ) STRICT;
    -- The prepared input of an image, and the digest of all that it was made from.
    CREATE TABLE inputs (
        image INTEGER PRIMARY KEY REFERENCES images (id) ON DELETE CASCADE,
        recipe BLOB NOT NULL,
        input BLOB NOT NULL
    ) STRICT;
    -- target is an accession key, a study key or the hexadecimal instance digest, as scope says; rank orders the
    -- statements of one source about one target.
    CREATE TABLE labels (
        scope TEXT NOT NULL CHECK (scope IN ('accession', 'study', 'instance')),
        target TEXT NOT NULL,
        source TEXT NOT NULL CHECK (source IN ('csv', 'report', 'reviewer')),
        origin BLOB NOT NULL,
        class TEXT NOT NULL,
        rank TEXT NOT NULL,
        set_ms INTEGER NOT NULL,
        PRIMARY KEY (scope, target, source, origin)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX objects_by_series ON objects (series);
";

pub(crate) fn open(folder: &Path, task: &str) -> Result<Connection, DatasetError> {
    std::fs::create_dir_all(folder)
        .map_err(DatasetError::io("could not create the data set's folder", folder))?;
    let fail = DatasetError::database;
    let mut connection = Connection::open(folder.join("dataset.sqlite")).map_err(fail("opening"))?;
    connection.busy_timeout(BUSY).map_err(fail("opening"))?;
    // FULL makes each commit durable; WAL lets a trainer read while studies arrive.
    connection
        .execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;")
        .map_err(fail("opening"))?;
    let transaction =
        connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(fail("opening"))?;
    let version: i64 =
        transaction.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(fail("opening"))?;
    match version {
        0 => {
            transaction.execute_batch(SCHEMA).map_err(fail("creating the tables"))?;
            transaction
                .pragma_update(None, "user_version", SCHEMA_VERSION)
                .map_err(fail("creating the tables"))?;
            transaction
                .execute("INSERT INTO facts VALUES ('task', ?1)", [task])
                .map_err(fail("creating the tables"))?;
        }
        SCHEMA_VERSION => {}
        other => {
            return Err(DatasetError::WrongFolder {
                what: "version of the data set's tables",
                expected: SCHEMA_VERSION.to_string(),
                found: other.to_string(),
            });
        }
    }
    let found: Option<String> = transaction
        .query_row("SELECT value FROM facts WHERE name = 'task'", [], |row| row.get(0))
        .optional()
        .map_err(fail("opening"))?;
    if found.as_deref() != Some(task) {
        return Err(DatasetError::WrongFolder {
            what: "task of the data set",
            expected: task.into(),
            found: found.unwrap_or_else(|| "none".into()),
        });
    }
    transaction.commit().map_err(fail("opening"))?;
    Ok(connection)
}
