//! The tables, and how an older database becomes a newer one.

use crate::error::{Context as _, StoreError};
use rusqlite::{Connection, TransactionBehavior};

/// The schema that this program writes.
pub const SCHEMA_VERSION: u32 = MIGRATIONS.len() as u32;

/// Each brings the database from the version that is its index to the next; never changed once released.
const MIGRATIONS: &[&str] = &["
    CREATE TABLE tasks (
        task TEXT PRIMARY KEY,
        snapshot BLOB NOT NULL,
        committed_at_ms INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE history (
        id INTEGER PRIMARY KEY,
        task TEXT NOT NULL REFERENCES tasks,
        at_ms INTEGER NOT NULL,
        record TEXT NOT NULL
    ) STRICT;
    CREATE INDEX history_of_task ON history (task, id);
    CREATE TABLE models (
        task TEXT NOT NULL REFERENCES tasks,
        version INTEGER NOT NULL,
        digest TEXT NOT NULL,
        base TEXT,
        round INTEGER NOT NULL,
        parameters TEXT NOT NULL,
        created_at_ms INTEGER NOT NULL,
        PRIMARY KEY (task, version)
    ) STRICT;
    CREATE INDEX models_by_digest ON models (digest);
    CREATE TABLE contributions (
        task TEXT NOT NULL REFERENCES tasks,
        round INTEGER NOT NULL,
        site TEXT NOT NULL,
        update_digest TEXT NOT NULL,
        update_bytes INTEGER NOT NULL,
        examples INTEGER NOT NULL,
        base_metrics TEXT,
        at_ms INTEGER NOT NULL,
        PRIMARY KEY (task, round, site)
    ) STRICT;
    CREATE TABLE measurements (
        task TEXT NOT NULL REFERENCES tasks,
        round INTEGER NOT NULL,
        site TEXT NOT NULL,
        model TEXT NOT NULL,
        metrics TEXT,
        at_ms INTEGER NOT NULL,
        PRIMARY KEY (task, round, site)
    ) STRICT;
    CREATE TABLE verdicts (
        task TEXT NOT NULL REFERENCES tasks,
        round INTEGER NOT NULL,
        version INTEGER NOT NULL,
        verdict TEXT NOT NULL,
        at_ms INTEGER NOT NULL,
        PRIMARY KEY (task, round)
    ) STRICT;
    CREATE TABLE releases (
        task TEXT NOT NULL REFERENCES tasks,
        version INTEGER NOT NULL,
        released_at_ms INTEGER NOT NULL,
        bundle TEXT,
        ledger_index INTEGER,
        PRIMARY KEY (task, version)
    ) STRICT;
    CREATE TABLE sites (
        site TEXT PRIMARY KEY,
        first_seen_ms INTEGER NOT NULL,
        last_seen_ms INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE datasets (
        site TEXT NOT NULL,
        task TEXT NOT NULL,
        manifest TEXT NOT NULL,
        images_per_class TEXT NOT NULL,
        registered_at_ms INTEGER NOT NULL,
        ledger_index INTEGER NOT NULL,
        PRIMARY KEY (site, task)
    ) STRICT;
    CREATE TABLE ledger_outbox (
        idx INTEGER PRIMARY KEY,
        entry BLOB NOT NULL
    ) STRICT;
    CREATE TABLE ledger_cursor (
        only INTEGER PRIMARY KEY CHECK (only = 0),
        appended INTEGER NOT NULL,
        queued INTEGER NOT NULL
    ) STRICT;
    INSERT INTO ledger_cursor VALUES (0, 0, 0);
"];

/// The version that a database has; 0 when it is new.
pub(crate) fn version(connection: &Connection) -> Result<u32, StoreError> {
    connection
        .query_row("SELECT count(*) FROM sqlite_schema WHERE name = 'migrations'", [], |row| {
            row.get::<_, u32>(0)
        })
        .and_then(|tables| match tables {
            0 => Ok(0),
            _ => {
                connection.query_row("SELECT coalesce(max(version), 0) FROM migrations", [], |row| row.get(0))
            }
        })
        .context("reading the schema version")
}

/// Brings a database to [`SCHEMA_VERSION`]; each step is a transaction with its note in `migrations`.
pub(crate) fn migrate(connection: &mut Connection) -> Result<(), StoreError> {
    let found = version(connection)?;
    if found > SCHEMA_VERSION {
        return Err(StoreError::NewerSchema { got: found, known: SCHEMA_VERSION });
    }
    for (done, statements) in (0..).zip(MIGRATIONS).skip(found as usize) {
        let transaction =
            connection.transaction_with_behavior(TransactionBehavior::Immediate).context("a migration")?;
        transaction
            .execute_batch(
                "CREATE TABLE IF NOT EXISTS migrations (
                    version INTEGER PRIMARY KEY,
                    applied_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%SZ', 'now'))
                ) STRICT",
            )
            .and_then(|()| transaction.execute_batch(statements))
            .and_then(|()| transaction.execute("INSERT INTO migrations (version) VALUES (?1)", [done + 1u32]))
            .context("a migration")?;
        transaction.commit().context("a migration")?;
    }
    Ok(())
}
