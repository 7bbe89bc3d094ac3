//! The intake ledger: what was seen, what became of it, and how far the search has come.
//!
//! An SQLite database in the site's data folder. It holds UIDs, which identify examinations: it belongs to the
//! hospital's records, never leaves the site, and its content is never logged (counts and [`ObjectKey`]s are).
//!
//! Journal mode WAL with `synchronous = FULL`: a commit is on the disk when it returns. `NORMAL` would survive
//! kill -9 as well, but a power cut could take back the last commits after the files that they speak of were deleted
//! from the spool, and an object that was pushed over C-STORE would then be known only to its sender.

use crate::error::LedgerError;
use crate::quarantine::Retried;
use crate::sink::ObjectKey;
use hmac::{Hmac, KeyInit as _, Mac as _};
use medinet_deident::Origin;
use rusqlite::{Connection, OptionalExtension as _, Transaction, TransactionBehavior, params};
use sha2::Sha256;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What `PRAGMA user_version` says of the tables below.
const VERSION: i64 = 2;

/// The tables of version 1.
const TABLES: &str = "
CREATE TABLE site (one INTEGER PRIMARY KEY CHECK (one = 1), object_key BLOB NOT NULL);
CREATE TABLE object (
    id INTEGER PRIMARY KEY,
    origin TEXT NOT NULL CHECK (origin IN ('dicomweb', 'cstore', 'folder')),
    origin_key TEXT NOT NULL,
    study_uid TEXT NOT NULL DEFAULT '',
    series_uid TEXT NOT NULL DEFAULT '',
    sop_instance_uid TEXT NOT NULL DEFAULT '',
    state TEXT NOT NULL CHECK (state IN ('discovered', 'fetched', 'ingested', 'quarantined')),
    location TEXT NOT NULL DEFAULT '',
    file_sha256 BLOB NOT NULL DEFAULT x'',
    bytes INTEGER NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0,
    is_repeat INTEGER NOT NULL DEFAULT 0,
    reason_code TEXT NOT NULL DEFAULT '',
    reason TEXT NOT NULL DEFAULT '',
    UNIQUE (origin, origin_key)
);
CREATE INDEX object_series ON object (study_uid, series_uid);
CREATE INDEX object_location ON object (location) WHERE origin IN ('dicomweb', 'cstore');
CREATE INDEX object_waiting ON object (state, id) WHERE state IN ('discovered', 'fetched');
CREATE TABLE instance (
    sop_instance_uid TEXT PRIMARY KEY,
    data_set_sha256 BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE study (study_uid TEXT PRIMARY KEY, listed_as TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE scan (
    search TEXT PRIMARY KEY,
    newest_study_date TEXT NOT NULL,
    last_full_scan_ms INTEGER NOT NULL,
    full_scan_pages INTEGER NOT NULL
) WITHOUT ROWID;
";

/// What version 2 adds: when an object was set aside (0: before that was written down), how many of them were offered
/// again from outside the running intake, whose counts follow these two, and whether the sources were ever gone through.
const SINCE_VERSION_2: &str = "
ALTER TABLE object ADD COLUMN quarantined_ms INTEGER NOT NULL DEFAULT 0;
ALTER TABLE site ADD COLUMN retried_files INTEGER NOT NULL DEFAULT 0;
ALTER TABLE site ADD COLUMN retried_fetches INTEGER NOT NULL DEFAULT 0;
ALTER TABLE site ADD COLUMN has_passed INTEGER NOT NULL DEFAULT 0;
UPDATE site SET has_passed = EXISTS (SELECT 1 FROM scan);
CREATE INDEX object_quarantined ON object (quarantined_ms, id) WHERE state = 'quarantined';
";

/// The SHA-256 of some bytes.
pub(crate) type Sha256Digest = [u8; 32];

/// The identity of an object on the PACS.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Discovered {
    pub(crate) study: String,
    pub(crate) series: String,
    pub(crate) sop_instance: String,
}

/// An object that is known to be on the PACS and was not fetched yet.
#[derive(Clone)]
pub(crate) struct Pending {
    pub(crate) id: i64,
    pub(crate) sop_instance: String,
}

/// Pending objects of one series.
#[derive(Clone)]
pub(crate) struct PendingSeries {
    pub(crate) study: String,
    pub(crate) series: String,
    pub(crate) objects: Vec<Pending>,
}

/// An object whose file waits for the sink.
#[derive(Clone)]
pub(crate) struct Fetched {
    pub(crate) id: i64,
    pub(crate) origin: Origin,
    /// The instance that was asked for, where the PACS was asked; else empty.
    pub(crate) sop_instance: String,
    /// Where its file is: a name in the spool, or a path in the watched folder.
    pub(crate) location: String,
    pub(crate) file_sha256: Sha256Digest,
}

/// What the ledger knows of an object that arrives by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// Never seen before: it waits for the sink now.
    New,
    /// Waits for the sink already.
    Waiting,
    /// Dealt with before, as ingested.
    Ingested,
    /// Dealt with before, as quarantined.
    Quarantined,
}

/// What the ledger knows of a file in the spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SpoolFileState {
    /// The sink is still to get it.
    Waiting,
    /// Its object is quarantined.
    SetAside,
    /// Its object is ingested.
    Done,
}

/// How far the search of a PACS has come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Scan {
    /// The newest study date seen, `YYYYMMDD`; empty before the first.
    pub(crate) newest_study_date: String,
    /// When all dates were looked through last, in milliseconds since 1970.
    pub(crate) last_full_scan_ms: u64,
    /// How many pages that took.
    pub(crate) full_scan_pages: u32,
}

/// How many objects are in which state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) discovered: u64,
    pub(crate) fetched: u64,
    pub(crate) ingested: u64,
    pub(crate) repeats: u64,
    pub(crate) quarantined: u64,
    pub(crate) bytes: u64,
    pub(crate) retried: Retried,
}

fn origin_name(origin: Origin) -> &'static str {
    match origin {
        Origin::DicomWeb => "dicomweb",
        Origin::CStore => "cstore",
        Origin::WatchedFolder => "folder",
    }
}

pub(crate) fn origin_of(name: &str) -> Origin {
    match name {
        "cstore" => Origin::CStore,
        "folder" => Origin::WatchedFolder,
        _ => Origin::DicomWeb,
    }
}

/// The intake ledger; clones share one connection.
#[derive(Clone)]
pub(crate) struct Ledger {
    connection: Arc<Mutex<Connection>>,
    object_key: [u8; 32],
}

impl Ledger {
    /// The ledger's name in the intake's data folder.
    pub(crate) const FILE: &str = "intake.sqlite";

    /// Opens the ledger at `path`, and makes it where there is none.
    pub(crate) fn open(path: &Path) -> Result<Self, LedgerError> {
        let mut connection = Connection::open(path)?;
        connection.busy_timeout(Duration::from_secs(10))?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let version: i64 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        match version {
            0 => {
                transaction.execute_batch(TABLES)?;
                let key: [u8; 32] = rand::random();
                transaction.execute("INSERT INTO site (one, object_key) VALUES (1, ?1)", [key.as_slice()])?;
                transaction.execute_batch(SINCE_VERSION_2)?;
            }
            1 => transaction.execute_batch(SINCE_VERSION_2)?,
            VERSION => {}
            other => return Err(LedgerError::Version { expected: VERSION, got: other }),
        }
        if version != VERSION {
            transaction.pragma_update(None, "user_version", VERSION)?;
        }
        let object_key = transaction.query_row("SELECT object_key FROM site", [], |row| row.get(0))?;
        transaction.commit()?;
        Ok(Self { connection: Arc::new(Mutex::new(connection)), object_key })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Connection> {
        // A thread that panicked held a transaction that rolled back, so the connection is good.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write<T>(
        &self,
        change: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, LedgerError> {
        let mut connection = self.lock();
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let result = change(&transaction)?;
        transaction.commit()?;
        Ok(result)
    }

    /// The name under which the world outside the ledger knows an instance.
    pub(crate) fn key_of(&self, sop_instance_uid: &str) -> ObjectKey {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(&self.object_key).expect("HMAC takes keys of any length");
        mac.update(sop_instance_uid.as_bytes());
        let code = mac.finalize().into_bytes();
        let mut name = [0; 16];
        name.copy_from_slice(&code[..16]);
        ObjectKey::new(name)
    }

    /// How a study was listed last, as told by [`Ledger::list_study`].
    pub(crate) fn listed_as(&self, study: &str) -> Result<Option<String>, LedgerError> {
        let connection = self.lock();
        let mut query = connection.prepare_cached("SELECT listed_as FROM study WHERE study_uid = ?1")?;
        Ok(query.query_row([study], |row| row.get(0)).optional()?)
    }

    /// Takes the list of a study's objects in; answers how many of them are new.
    pub(crate) fn list_study(
        &self,
        study: &str,
        listed_as: &str,
        objects: &[Discovered],
    ) -> Result<u64, LedgerError> {
        self.write(|transaction| {
            let mut insert = transaction.prepare_cached(
                "INSERT INTO object (origin, origin_key, study_uid, series_uid, sop_instance_uid, state)
                 VALUES ('dicomweb', ?1, ?2, ?3, ?4, 'discovered') ON CONFLICT DO NOTHING",
            )?;
            let mut new = 0;
            for object in objects {
                let Discovered { study, series, sop_instance } = object;
                let key = format!("{study}/{series}/{sop_instance}");
                new += insert.execute(params![key, study, series, sop_instance])? as u64;
            }
            transaction.execute(
                "INSERT INTO study (study_uid, listed_as) VALUES (?1, ?2)
                 ON CONFLICT (study_uid) DO UPDATE SET listed_as = excluded.listed_as",
                [study, listed_as],
            )?;
            Ok(new)
        })
    }

    /// Up to `limit` objects that are to be fetched, after object `after`, by series.
    pub(crate) fn pending(&self, after: i64, limit: u32) -> Result<Vec<PendingSeries>, LedgerError> {
        let connection = self.lock();
        let mut query = connection.prepare_cached(
            "SELECT id, study_uid, series_uid, sop_instance_uid FROM object
             WHERE state = 'discovered' AND id > ?1 ORDER BY id LIMIT ?2",
        )?;
        let rows = query.query(params![after, limit])?;
        Ok(by_series(rows)?)
    }

    /// How many objects of a series are known.
    pub(crate) fn known_in_series(&self, study: &str, series: &str) -> Result<usize, LedgerError> {
        let connection = self.lock();
        let mut query = connection
            .prepare_cached("SELECT count(*) FROM object WHERE study_uid = ?1 AND series_uid = ?2")?;
        let count: i64 = query.query_row([study, series], |row| row.get(0))?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    /// The objects of one study that are to be fetched, by series.
    pub(crate) fn pending_of_study(&self, study: &str) -> Result<Vec<PendingSeries>, LedgerError> {
        let connection = self.lock();
        let mut query = connection.prepare_cached(
            "SELECT id, study_uid, series_uid, sop_instance_uid FROM object
             WHERE state = 'discovered' AND study_uid = ?1 ORDER BY id",
        )?;
        let rows = query.query([study])?;
        Ok(by_series(rows)?)
    }

    /// A file of a discovered object has been put at `location`.
    pub(crate) fn fetched(
        &self,
        id: i64,
        location: &str,
        file_sha256: &Sha256Digest,
        bytes: u64,
    ) -> Result<(), LedgerError> {
        self.write(|transaction| {
            transaction.execute(
                "UPDATE object SET state = 'fetched', location = ?2, file_sha256 = ?3, bytes = ?4
                 WHERE id = ?1 AND state = 'discovered'",
                params![id, location, file_sha256.as_slice(), as_i64(bytes)],
            )
        })?;
        Ok(())
    }

    /// The file of a fetched object is gone or damaged: fetch it again.
    pub(crate) fn fetch_again(&self, id: i64) -> Result<(), LedgerError> {
        self.write(|transaction| {
            transaction.execute(
                "UPDATE object SET state = 'discovered', location = '' WHERE id = ?1 AND state = 'fetched'",
                [id],
            )
        })?;
        Ok(())
    }

    /// The file of an object that came by itself is no longer there, or has become another one: forget the row.
    pub(crate) fn forget(&self, id: i64) -> Result<(), LedgerError> {
        self.write(|transaction| {
            transaction.execute("DELETE FROM object WHERE id = ?1 AND state = 'fetched'", [id])
        })?;
        Ok(())
    }

    /// An object came by itself and its file is at `location`.
    pub(crate) fn arrived(
        &self,
        origin: Origin,
        origin_key: &str,
        location: &str,
        file_sha256: &Sha256Digest,
        bytes: u64,
    ) -> Result<Arrival, LedgerError> {
        self.write(|transaction| {
            let new = transaction.execute(
                "INSERT INTO object (origin, origin_key, state, location, file_sha256, bytes)
                 VALUES (?1, ?2, 'fetched', ?3, ?4, ?5) ON CONFLICT DO NOTHING",
                params![origin_name(origin), origin_key, location, file_sha256.as_slice(), as_i64(bytes)],
            )?;
            if new == 1 {
                return Ok(Arrival::New);
            }
            let state: String = transaction.query_row(
                "SELECT state FROM object WHERE origin = ?1 AND origin_key = ?2",
                [origin_name(origin), origin_key],
                |row| row.get(0),
            )?;
            Ok(match state.as_str() {
                "ingested" => Arrival::Ingested,
                "quarantined" => Arrival::Quarantined,
                _ => Arrival::Waiting,
            })
        })
    }

    /// The next object that waits for the sink, after object `after`.
    pub(crate) fn next_fetched(&self, after: i64) -> Result<Option<Fetched>, LedgerError> {
        let connection = self.lock();
        let mut query = connection.prepare_cached(
            "SELECT id, origin, sop_instance_uid, location, file_sha256 FROM object
             WHERE state = 'fetched' AND id > ?1 ORDER BY id LIMIT 1",
        )?;
        let fetched = query.query_row([after], |row| {
            Ok(Fetched {
                id: row.get(0)?,
                origin: origin_of(&row.get::<_, String>(1)?),
                sop_instance: row.get(2)?,
                location: row.get(3)?,
                file_sha256: row.get(4)?,
            })
        });
        Ok(fetched.optional()?)
    }

    /// The data set's hash of an instance that was ingested before.
    pub(crate) fn instance(&self, sop_instance_uid: &str) -> Result<Option<Sha256Digest>, LedgerError> {
        let connection = self.lock();
        let mut query =
            connection.prepare_cached("SELECT data_set_sha256 FROM instance WHERE sop_instance_uid = ?1")?;
        Ok(query.query_row([sop_instance_uid], |row| row.get(0)).optional()?)
    }

    /// The sink has taken the object: it is done. Its instance is known from here on.
    pub(crate) fn ingested(
        &self,
        id: i64,
        sop_instance_uid: &str,
        data_set_sha256: &Sha256Digest,
        is_repeat: bool,
    ) -> Result<(), LedgerError> {
        self.write(|transaction| {
            transaction.execute(
                "INSERT INTO instance (sop_instance_uid, data_set_sha256) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
                params![sop_instance_uid, data_set_sha256.as_slice()],
            )?;
            transaction.execute(
                "UPDATE object SET state = 'ingested', sop_instance_uid = ?2, is_repeat = ?3,
                 reason_code = '', reason = '' WHERE id = ?1 AND state = 'fetched'",
                params![id, sop_instance_uid, is_repeat],
            )
        })?;
        Ok(())
    }

    /// One more failed try to fetch an object; answers how many there were.
    pub(crate) fn attempt_failed(&self, id: i64) -> Result<u32, LedgerError> {
        self.write(|transaction| {
            transaction.query_row(
                "UPDATE object SET attempts = attempts + 1 WHERE id = ?1 RETURNING attempts",
                [id],
                |row| row.get(0),
            )
        })
    }

    /// How far the search named `search` has come.
    pub(crate) fn scan(&self, search: &str) -> Result<Scan, LedgerError> {
        let connection = self.lock();
        let scan = connection
            .query_row(
                "SELECT newest_study_date, last_full_scan_ms, full_scan_pages FROM scan WHERE search = ?1",
                [search],
                |row| {
                    let last_full_scan_ms: i64 = row.get(1)?;
                    let last_full_scan_ms = u64::try_from(last_full_scan_ms).unwrap_or_default();
                    Ok(Scan {
                        newest_study_date: row.get(0)?,
                        last_full_scan_ms,
                        full_scan_pages: row.get(2)?,
                    })
                },
            )
            .optional()?;
        Ok(scan.unwrap_or_default())
    }

    /// Notes how far the search named `search` has come; other searches (of other settings) are forgotten.
    pub(crate) fn scanned(&self, search: &str, scan: &Scan) -> Result<(), LedgerError> {
        self.write(|transaction| {
            transaction.execute("DELETE FROM scan WHERE search <> ?1", [search])?;
            transaction.execute(
                "INSERT INTO scan (search, newest_study_date, last_full_scan_ms, full_scan_pages)
                 VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (search) DO UPDATE SET newest_study_date = excluded.newest_study_date,
                 last_full_scan_ms = excluded.last_full_scan_ms, full_scan_pages = excluded.full_scan_pages",
                params![search, scan.newest_study_date, as_i64(scan.last_full_scan_ms), scan.full_scan_pages],
            )
        })?;
        Ok(())
    }

    /// Whether the sources were gone through once, in this run or an earlier one.
    pub(crate) fn has_passed(&self) -> Result<bool, LedgerError> {
        let has_passed = self.lock().query_row("SELECT has_passed FROM site", [], |row| row.get(0));
        Ok(has_passed?)
    }

    /// The sources have been gone through.
    pub(crate) fn passed(&self) -> Result<(), LedgerError> {
        self.write(|transaction| transaction.execute("UPDATE site SET has_passed = 1", []))?;
        Ok(())
    }

    /// How many objects are in which state.
    pub(crate) fn totals(&self) -> Result<Totals, LedgerError> {
        let connection = self.lock();
        let mut query = connection.prepare_cached(
            "SELECT count(*), sum(state = 'fetched'), sum(state = 'ingested'), sum(is_repeat),
             sum(state = 'quarantined'), sum(CASE state WHEN 'ingested' THEN bytes ELSE 0 END),
             (SELECT retried_files FROM site), (SELECT retried_fetches FROM site) FROM object",
        )?;
        let totals = query.query_row([], |row| {
            let number =
                |index| row.get::<_, Option<i64>>(index).map(|n| u64::try_from(n.unwrap_or(0)).unwrap_or(0));
            Ok(Totals {
                discovered: number(0)?,
                fetched: number(1)?,
                ingested: number(2)?,
                repeats: number(3)?,
                quarantined: number(4)?,
                bytes: number(5)?,
                retried: Retried { files: number(6)?, fetches: number(7)? },
            })
        });
        Ok(totals?)
    }

    /// The state of the object whose file in the spool is called `location`.
    pub(crate) fn state_of_spool_file(&self, location: &str) -> Result<Option<SpoolFileState>, LedgerError> {
        let connection = self.lock();
        let mut query = connection.prepare_cached(
            "SELECT state FROM object WHERE location = ?1 AND origin IN ('dicomweb', 'cstore')",
        )?;
        let state: Option<String> = query.query_row([location], |row| row.get(0)).optional()?;
        Ok(state.map(|state| match state.as_str() {
            "fetched" => SpoolFileState::Waiting,
            "quarantined" => SpoolFileState::SetAside,
            _ => SpoolFileState::Done,
        }))
    }
}

fn by_series(mut rows: rusqlite::Rows<'_>) -> rusqlite::Result<Vec<PendingSeries>> {
    let mut series: BTreeMap<(String, String), Vec<Pending>> = BTreeMap::new();
    while let Some(row) = rows.next()? {
        let pending = Pending { id: row.get(0)?, sop_instance: row.get(3)? };
        series.entry((row.get(1)?, row.get(2)?)).or_default().push(pending);
    }
    let group = |((study, series), objects)| PendingSeries { study, series, objects };
    Ok(series.into_iter().map(group).collect())
}

pub(crate) fn as_i64(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use medinet_types::UnixMillis;

    fn ledger() -> (tempfile::TempDir, Ledger) {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(&dir.path().join("intake.sqlite")).unwrap();
        (dir, ledger)
    }

    fn object(sop_instance: &str) -> Discovered {
        Discovered { study: "1".into(), series: "2".into(), sop_instance: sop_instance.into() }
    }

    #[test]
    fn an_object_is_discovered_once_and_leaves_the_list_when_fetched() {
        let (_dir, ledger) = ledger();
        assert_eq!(ledger.list_study("1", "2", &[object("a"), object("b")]).unwrap(), 2);
        assert_eq!(ledger.list_study("1", "3", &[object("a"), object("b"), object("c")]).unwrap(), 1);
        assert_eq!(ledger.listed_as("1").unwrap().as_deref(), Some("3"));
        let pending = ledger.pending(0, 100).unwrap();
        assert_eq!((pending.len(), pending[0].objects.len()), (1, 3));
        let first = pending[0].objects[0].id;
        ledger.fetched(first, "file", &[1; 32], 10).unwrap();
        assert_eq!(ledger.pending(0, 100).unwrap()[0].objects.len(), 2);
        let waiting = ledger.next_fetched(0).unwrap().unwrap();
        assert_eq!((waiting.id, waiting.file_sha256), (first, [1; 32]));
        ledger.ingested(first, "a", &[2; 32], false).unwrap();
        assert!(ledger.next_fetched(0).unwrap().is_none());
        assert_eq!(ledger.instance("a").unwrap(), Some([2; 32]));
        // A verdict is final: a late message about the same object changes nothing.
        ledger.quarantined(first, "x", "y", "", UnixMillis(1)).unwrap();
        ledger.fetch_again(first).unwrap();
        let totals = ledger.totals().unwrap();
        assert_eq!((totals.discovered, totals.ingested, totals.quarantined, totals.bytes), (3, 1, 0, 10));
    }

    #[test]
    fn names_and_cursor_outlive_the_process() {
        let (dir, ledger) = ledger();
        let key = ledger.key_of("1.2.3");
        let scan = Scan { newest_study_date: "20261121".into(), last_full_scan_ms: 7, full_scan_pages: 3 };
        ledger.scanned("search", &scan).unwrap();
        drop(ledger);
        let again = Ledger::open(&dir.path().join("intake.sqlite")).unwrap();
        assert_eq!(again.key_of("1.2.3"), key);
        assert_ne!(again.key_of("1.2.4"), key);
        assert_eq!(again.scan("search").unwrap(), scan);
        assert_eq!(again.scan("other settings").unwrap(), Scan::default());
        let (_other, ledger) = super::tests::ledger();
        assert_ne!(ledger.key_of("1.2.3"), key, "another site, another key");
    }

    #[test]
    fn a_ledger_of_the_first_version_is_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("intake.sqlite");
        let connection = Connection::open(&path).unwrap();
        connection.execute_batch(TABLES).unwrap();
        connection
            .execute("INSERT INTO site (one, object_key) VALUES (1, ?1)", [[7u8; 32].as_slice()])
            .unwrap();
        connection
            .execute(
                "INSERT INTO object (origin, origin_key, state, location, reason_code, reason)
                 VALUES ('cstore', 'k', 'quarantined', 'file', 'not-usable', 'because')",
                [],
            )
            .unwrap();
        connection.execute("INSERT INTO scan VALUES ('search', '20261121', 7, 3)", []).unwrap();
        connection.pragma_update(None, "user_version", 1).unwrap();
        drop(connection);
        for _ in 0..2 {
            let ledger = Ledger::open(&path).unwrap();
            assert_eq!(ledger.object_key, [7; 32]);
            assert_eq!(ledger.totals().unwrap().quarantined, 1);
            assert!(ledger.has_passed().unwrap(), "a search had ended");
            assert!(ledger.quarantine(None, 10).unwrap()[0].at.is_none(), "nobody wrote down when");
        }
    }

    #[test]
    fn a_ledger_of_a_later_version_is_refused() {
        let (dir, ledger) = ledger();
        ledger.lock().pragma_update(None, "user_version", 99).unwrap();
        drop(ledger);
        let error = Ledger::open(&dir.path().join("intake.sqlite")).err().unwrap();
        assert!(matches!(error, LedgerError::Version { got: 99, .. }));
    }
}
