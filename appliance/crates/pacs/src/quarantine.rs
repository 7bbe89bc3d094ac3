//! What was set aside: with which reason, where it is, and how it is offered again.
//!
//! For the hospital's own staff. It opens the intake ledger beside a running intake, or without one: what is offered again
//! here, the intake takes up within seconds (files that it keeps) or with its next look at the PACS.

use crate::error::{IntakeError, LedgerError};
use crate::ledger::{Ledger, as_i64, origin_of};
use crate::spool::Spool;
use medinet_deident::Origin;
use medinet_types::UnixMillis;
use rusqlite::{Transaction, params};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// How many objects are quarantined for one reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuarantineCount {
    /// The reason's short, stable name.
    pub code: String,
    /// The reason for a person to read; holds nothing of any object.
    pub reason: String,
    /// How many.
    pub count: u64,
}

/// The number of an object in the intake ledger: it says nothing of the object, and stays the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QuarantineId(i64);

impl fmt::Display for QuarantineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for QuarantineId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// An object that was set aside. Its UIDs and its file's name identify an examination: they are for the hospital's own
/// staff, and the value does not print.
pub struct QuarantinedObject {
    /// Its number.
    pub id: QuarantineId,
    /// How it came.
    pub origin: Origin,
    /// StudyInstanceUID and SeriesInstanceUID, as the PACS listed them; empty where the object came by itself.
    pub study_uid: String,
    /// See `study_uid`.
    pub series_uid: String,
    /// SOPInstanceUID; empty where the object came by itself and it could not be read.
    pub sop_instance_uid: String,
    /// The file that is kept: its path where a peer pushed it, its name below the watched folder where it was found there.
    /// None where it was pulled: the PACS has it.
    pub file: Option<PathBuf>,
    /// The reason's short, stable name.
    pub code: String,
    /// The reason for a person to read; holds nothing of the object.
    pub reason: String,
    /// When it was set aside; none where that was before the ledger kept it.
    pub at: Option<UnixMillis>,
}

/// Which quarantined objects are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QuarantineSelection {
    /// All.
    All,
    /// Those with this code.
    Code(String),
    /// One.
    Object(QuarantineId),
}

/// How many objects are offered again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Retried {
    /// Those whose files are kept.
    pub files: u64,
    /// Those that are fetched from the PACS once more.
    pub fetches: u64,
}

/// The quarantine of one intake.
pub struct QuarantineRecords {
    ledger: Ledger,
    data_dir: PathBuf,
}

impl fmt::Debug for QuarantineRecords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuarantineRecords").field("data_dir", &self.data_dir).finish_non_exhaustive()
    }
}

impl QuarantineRecords {
    /// Opens the records of the intake whose data lie in `data_dir`. The intake may be running.
    ///
    /// # Errors
    /// When there are none, or they cannot be read.
    pub fn open(data_dir: &Path) -> Result<Self, IntakeError> {
        let path = data_dir.join(Ledger::FILE);
        if !path.is_file() {
            return Err(IntakeError::NoLedger { path });
        }
        Ok(Self { ledger: Ledger::open(&path)?, data_dir: data_dir.to_owned() })
    }

    /// How many objects are quarantined, by reason.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn reasons(&self) -> Result<Vec<QuarantineCount>, IntakeError> {
        Ok(self.ledger.quarantine_reasons()?)
    }

    /// At most `limit` of the objects that are quarantined, with the reason `code` or with any, the newest first.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn list(&self, code: Option<&str>, limit: u32) -> Result<Vec<QuarantinedObject>, IntakeError> {
        let mut objects = self.ledger.quarantine(code, limit)?;
        for object in objects.iter_mut().filter(|object| object.origin == Origin::CStore) {
            let path = |name: &PathBuf| Spool::set_aside_in(&self.data_dir).join(name);
            object.file = object.file.as_ref().map(path);
        }
        Ok(objects)
    }

    /// Offers quarantined objects once more, as after an update or a change of the settings. One that fails again is set aside
    /// again.
    ///
    /// # Errors
    /// When the ledger cannot be written.
    pub fn retry(&self, selection: &QuarantineSelection) -> Result<Retried, IntakeError> {
        Ok(self.ledger.retry(selection)?)
    }
}

/// What the ledger does about quarantined objects.
impl Ledger {
    /// The object is set aside, for this reason. What was pulled stays on the PACS, so its file is not kept.
    pub(crate) fn quarantined(
        &self,
        id: i64,
        code: &str,
        reason: &str,
        sop_instance_uid: &str,
        now: UnixMillis,
    ) -> Result<(), LedgerError> {
        self.write(|transaction| {
            // What the PACS listed stays, also where it then gave another object.
            transaction.execute(
                "UPDATE object SET state = 'quarantined', reason_code = ?2, reason = ?3, quarantined_ms = ?5,
                 sop_instance_uid = CASE sop_instance_uid WHEN '' THEN ?4 ELSE sop_instance_uid END,
                 location = CASE origin WHEN 'dicomweb' THEN '' ELSE location END
                 WHERE id = ?1 AND state IN ('discovered', 'fetched')",
                params![id, code, reason, sop_instance_uid, as_i64(now.0)],
            )
        })?;
        Ok(())
    }

    /// Fetches again what the PACS failed to give; answers how many. For the intake itself, which keeps count.
    pub(crate) fn retry_failed_fetches(&self) -> Result<u64, LedgerError> {
        let failed = QuarantineSelection::Code("retrieve-failed".into());
        let retried = self.write(|transaction| offer_again(transaction, &failed))?;
        Ok(retried.files + retried.fetches)
    }

    /// Offers quarantined objects again, and writes down how many, for an intake in another process to count.
    pub(crate) fn retry(&self, selection: &QuarantineSelection) -> Result<Retried, LedgerError> {
        self.write(|transaction| {
            let retried = offer_again(transaction, selection)?;
            transaction.execute(
                "UPDATE site SET retried_files = retried_files + ?1, retried_fetches = retried_fetches + ?2",
                params![as_i64(retried.files), as_i64(retried.fetches)],
            )?;
            Ok(retried)
        })
    }

    /// How many objects were ever offered again by [`Ledger::retry`].
    pub(crate) fn retried(&self) -> Result<Retried, LedgerError> {
        let connection = self.lock();
        let mut query = connection.prepare_cached("SELECT retried_files, retried_fetches FROM site")?;
        let retried = query
            .query_row([], |row| Ok(Retried { files: as_u64(row.get(0)?), fetches: as_u64(row.get(1)?) }));
        Ok(retried?)
    }

    pub(crate) fn quarantine_reasons(&self) -> Result<Vec<QuarantineCount>, LedgerError> {
        let connection = self.lock();
        let mut query = connection.prepare_cached(
            "SELECT reason_code, reason, count(*) FROM object WHERE state = 'quarantined'
             GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2",
        )?;
        let rows = query.query_map([], |row| {
            Ok(QuarantineCount { code: row.get(0)?, reason: row.get(1)?, count: as_u64(row.get(2)?) })
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// The newest quarantined objects; `file` is what the ledger knows as the object's location.
    pub(crate) fn quarantine(
        &self,
        code: Option<&str>,
        limit: u32,
    ) -> Result<Vec<QuarantinedObject>, LedgerError> {
        let connection = self.lock();
        let mut query = connection.prepare_cached(
            "SELECT id, origin, study_uid, series_uid, sop_instance_uid, location, reason_code, reason,
             quarantined_ms FROM object WHERE state = 'quarantined' AND (?1 IS NULL OR reason_code = ?1)
             ORDER BY quarantined_ms DESC, id DESC LIMIT ?2",
        )?;
        let rows = query.query_map(params![code, limit], |row| {
            let (location, at): (String, i64) = (row.get(5)?, row.get(8)?);
            Ok(QuarantinedObject {
                id: QuarantineId(row.get(0)?),
                origin: origin_of(&row.get::<_, String>(1)?),
                study_uid: row.get(2)?,
                series_uid: row.get(3)?,
                sop_instance_uid: row.get(4)?,
                file: (!location.is_empty()).then(|| location.into()),
                code: row.get(6)?,
                reason: row.get(7)?,
                at: (at > 0).then(|| UnixMillis(as_u64(at))),
            })
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }
}

fn offer_again(transaction: &Transaction<'_>, selection: &QuarantineSelection) -> rusqlite::Result<Retried> {
    let (code, id) = match selection {
        QuarantineSelection::All => (None, None),
        QuarantineSelection::Code(code) => (Some(code), None),
        QuarantineSelection::Object(QuarantineId(id)) => (None, Some(id)),
    };
    let turn_to = |state: &str, kept: bool| {
        transaction.execute(
            "UPDATE object SET state = ?1, attempts = 0, reason_code = '', reason = '', quarantined_ms = 0
             WHERE state = 'quarantined' AND (location <> '') = ?2
             AND (?3 IS NULL OR reason_code = ?3) AND (?4 IS NULL OR id = ?4)",
            params![state, kept, code, id],
        )
    };
    Ok(Retried { files: turn_to("fetched", true)? as u64, fetches: turn_to("discovered", false)? as u64 })
}

fn as_u64(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{Arrival, Discovered};

    #[test]
    fn what_was_quarantined_is_listed_with_all_that_is_known_and_can_be_offered_again() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(QuarantineRecords::open(dir.path()).unwrap_err(), IntakeError::NoLedger { .. }));
        let ledger = Ledger::open(&dir.path().join(Ledger::FILE)).unwrap();
        let pushed = |key: &str| ledger.arrived(Origin::CStore, key, "c-file", &[0; 32], 5).unwrap();
        assert_eq!(pushed("k"), Arrival::New);
        assert_eq!(pushed("k"), Arrival::Waiting);
        let first = ledger.next_fetched(0).unwrap().unwrap().id;
        ledger.quarantined(first, "not-usable", "because", "1.2.3", UnixMillis(7)).unwrap();
        assert_eq!(pushed("k"), Arrival::Quarantined);
        let listed = Discovered { study: "1".into(), series: "2".into(), sop_instance: "3".into() };
        ledger.list_study("1", "", &[listed]).unwrap();
        let second = ledger.pending(0, 10).unwrap()[0].objects[0].id;
        ledger.quarantined(second, "wrong-object", "another", "4", UnixMillis(8)).unwrap();

        // Another process, while the intake is open.
        let records = QuarantineRecords::open(dir.path()).unwrap();
        let all = records.list(None, 10).unwrap();
        assert_eq!(all.len(), 2);
        let [newest, oldest] = &all[..] else { unreachable!() };
        assert_eq!((newest.id.0, oldest.id.0), (second, first));
        assert_eq!((newest.study_uid.as_str(), newest.series_uid.as_str()), ("1", "2"));
        assert_eq!((newest.sop_instance_uid.as_str(), newest.file.as_ref()), ("3", None));
        assert_eq!((oldest.sop_instance_uid.as_str(), oldest.at), ("1.2.3", Some(UnixMillis(7))));
        assert!(oldest.file.as_ref().unwrap().ends_with("spool/quarantine/c-file"));
        assert_eq!((oldest.code.as_str(), oldest.reason.as_str()), ("not-usable", "because"));
        assert_eq!(records.list(Some("not-usable"), 10).unwrap().len(), 1);
        assert_eq!(records.list(None, 1).unwrap().len(), 1);
        assert_eq!(records.reasons().unwrap().iter().map(|reason| reason.count).sum::<u64>(), 2);

        let code = |code: &str| QuarantineSelection::Code(code.into());
        assert_eq!(records.retry(&code("other")).unwrap(), Retried::default());
        assert_eq!(records.retry(&code("not-usable")).unwrap(), Retried { files: 1, fetches: 0 });
        assert_eq!(ledger.next_fetched(0).unwrap().unwrap().id, first, "the intake gets it again");
        let object = QuarantineSelection::Object(QuarantineId(second));
        assert_eq!(records.retry(&object).unwrap(), Retried { files: 0, fetches: 1 });
        assert_eq!(records.retry(&object).unwrap(), Retried::default(), "it is quarantined no longer");
        assert_eq!(ledger.pending(0, 10).unwrap().len(), 1, "and the PACS is asked again");
        assert_eq!(ledger.retried().unwrap(), Retried { files: 1, fetches: 1 });
        assert_eq!(ledger.totals().unwrap().retried, ledger.retried().unwrap());
    }

    #[test]
    fn the_intakes_own_second_try_is_for_what_the_pacs_failed_on_and_counts_apart() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(&dir.path().join(Ledger::FILE)).unwrap();
        for (number, code) in ["retrieve-failed", "too-large"].into_iter().enumerate() {
            let key = number.to_string();
            ledger.arrived(Origin::CStore, &key, &key, &[0; 32], 5).unwrap();
            let id = ledger.next_fetched(0).unwrap().unwrap().id;
            ledger.quarantined(id, code, "because", "", UnixMillis(1)).unwrap();
        }
        assert_eq!(ledger.retry_failed_fetches().unwrap(), 1);
        assert_eq!(ledger.retried().unwrap(), Retried::default());
        assert_eq!(ledger.quarantine_reasons().unwrap()[0].code, "too-large");
    }
}
