//! The re-link table: which pseudonym stands for whom. It never leaves the site, not even in part: no function
//! gives out more than one entry, and only this crate reads the file.

use crate::deidentified::{PatientKey, StudyKey};
use crate::quarantine::QuarantineReason;
use crate::report::{ObjectReport, StudyReport};
use rusqlite::{Connection, OptionalExtension as _, params};
use std::fs;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS patient (
    patient_key TEXT PRIMARY KEY,
    issuer TEXT NOT NULL,
    patient_id TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS study (
    study_key TEXT PRIMARY KEY,
    patient_key TEXT NOT NULL,
    study_instance_uid TEXT NOT NULL,
    new_study_instance_uid TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS instance (
    new_sop_instance_uid TEXT PRIMARY KEY,
    study_key TEXT NOT NULL,
    sop_instance_uid TEXT NOT NULL,
    series_instance_uid TEXT NOT NULL,
    report TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS instance_study ON instance (study_key);
CREATE TABLE IF NOT EXISTS quarantined (
    sop_instance_uid TEXT PRIMARY KEY,
    study_key TEXT NOT NULL,
    code TEXT NOT NULL,
    reason TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS quarantined_study ON quarantined (study_key);
";

/// The re-link table could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error(
    "the re-link table could not be used; check that its disk has room and that only one appliance uses it"
)]
pub struct RelinkError(#[from] rusqlite::Error);

/// Who a pseudonym stands for. For the site's own staff; it prints nothing of itself.
pub struct OriginalPatient {
    /// `IssuerOfPatientID`; empty where the object named none.
    pub issuer: String,
    /// `PatientID`; what stood in for it where the object had none.
    pub patient_id: String,
}

/// Which study a pseudonym stands for. For the site's own staff; it prints nothing of itself.
pub struct OriginalStudy {
    /// The original `StudyInstanceUID`.
    pub study_instance_uid: String,
    /// The `StudyInstanceUID` of the cleaned objects.
    pub new_study_instance_uid: String,
    /// The pseudonym of its patient.
    pub patient_key: PatientKey,
}

/// Which instance a remapped UID stands for, so that results can refer to the original in the PACS.
pub struct OriginalInstance {
    /// The original `SOPInstanceUID`.
    pub sop_instance_uid: String,
    /// The original `SeriesInstanceUID`; empty where the object had none.
    pub series_instance_uid: String,
    /// The study's pseudonym.
    pub study_key: StudyKey,
}

/// An object that was held back. For the site's own staff; it prints nothing of itself.
pub struct QuarantinedInstance {
    /// The original `SOPInstanceUID`, by which staff find it in the PACS.
    pub sop_instance_uid: String,
    /// [`QuarantineReason::code`].
    pub code: String,
    /// Why, in words.
    pub reason: String,
}

/// The originals of one object.
pub(crate) struct Originals<'a> {
    pub(crate) issuer: &'a str,
    pub(crate) patient_id: &'a str,
    pub(crate) study_instance_uid: &'a str,
    pub(crate) series_instance_uid: &'a str,
    pub(crate) sop_instance_uid: &'a str,
}

pub(crate) struct RelinkTable(Mutex<Connection>);

impl RelinkTable {
    pub(crate) fn open(path: &Path) -> Result<Self, RelinkError> {
        // SQLite would make the file with the process's mask; it has to be private from its first byte.
        let file = fs::OpenOptions::new().append(true).create(true).mode(0o600).open(path);
        if let Ok(file) = file {
            // A file system without modes keeps its own; SQLite reports one that cannot be opened.
            drop(file.set_permissions(fs::Permissions::from_mode(0o600)));
        }
        let connection = Connection::open(path)?;
        connection.busy_timeout(Duration::from_secs(5))?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        connection.execute_batch(SCHEMA)?;
        Ok(Self(Mutex::new(connection)))
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        // Every write is one transaction, so a panic elsewhere leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn record(
        &self,
        originals: &Originals<'_>,
        patient: &PatientKey,
        study: &StudyKey,
        new_study_uid: &str,
        new_instance_uid: &str,
        report: &ObjectReport,
    ) -> Result<(), RelinkError> {
        let report = serde_json::to_string(report).expect("a report has only string keys and plain values");
        let mut connection = self.lock();
        let transaction = connection.transaction()?;
        transaction.prepare_cached("INSERT OR IGNORE INTO patient VALUES (?1, ?2, ?3)")?.execute(params![
            patient.as_str(),
            originals.issuer,
            originals.patient_id
        ])?;
        transaction.prepare_cached("INSERT OR IGNORE INTO study VALUES (?1, ?2, ?3, ?4)")?.execute(
            params![study.as_str(), patient.as_str(), originals.study_instance_uid, new_study_uid],
        )?;
        transaction.prepare_cached("INSERT OR REPLACE INTO instance VALUES (?1, ?2, ?3, ?4, ?5)")?.execute(
            params![
                new_instance_uid,
                study.as_str(),
                originals.sop_instance_uid,
                originals.series_instance_uid,
                report
            ],
        )?;
        transaction
            .prepare_cached("DELETE FROM quarantined WHERE sop_instance_uid = ?1")?
            .execute([originals.sop_instance_uid])?;
        transaction.commit()?;
        Ok(())
    }

    pub(crate) fn record_quarantined(
        &self,
        sop_instance_uid: &str,
        study: &StudyKey,
        reason: &QuarantineReason,
    ) -> Result<(), RelinkError> {
        self.lock()
            .prepare_cached("INSERT OR REPLACE INTO quarantined VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![sop_instance_uid, study.as_str(), reason.code(), reason.to_string()])?;
        Ok(())
    }

    pub(crate) fn patient(&self, key: &PatientKey) -> Result<Option<OriginalPatient>, RelinkError> {
        let connection = self.lock();
        let row = connection
            .query_row(
                "SELECT issuer, patient_id FROM patient WHERE patient_key = ?1",
                [key.as_str()],
                |row| Ok(OriginalPatient { issuer: row.get(0)?, patient_id: row.get(1)? }),
            )
            .optional()?;
        Ok(row)
    }

    pub(crate) fn study(&self, key: &StudyKey) -> Result<Option<OriginalStudy>, RelinkError> {
        let connection = self.lock();
        let row = connection
            .query_row(
                "SELECT study_instance_uid, new_study_instance_uid, patient_key FROM study WHERE study_key = ?1",
                [key.as_str()],
                |row| {
                    Ok(OriginalStudy {
                        study_instance_uid: row.get(0)?,
                        new_study_instance_uid: row.get(1)?,
                        patient_key: PatientKey(row.get(2)?),
                    })
                },
            )
            .optional()?;
        Ok(row)
    }

    pub(crate) fn instance(&self, new_uid: &str) -> Result<Option<OriginalInstance>, RelinkError> {
        let connection = self.lock();
        let row = connection
            .query_row(
                "SELECT sop_instance_uid, series_instance_uid, study_key FROM instance
                 WHERE new_sop_instance_uid = ?1",
                [new_uid],
                |row| {
                    Ok(OriginalInstance {
                        sop_instance_uid: row.get(0)?,
                        series_instance_uid: row.get(1)?,
                        study_key: StudyKey(row.get(2)?),
                    })
                },
            )
            .optional()?;
        Ok(row)
    }

    pub(crate) fn quarantined(&self, study: &StudyKey) -> Result<Vec<QuarantinedInstance>, RelinkError> {
        let connection = self.lock();
        let mut statement = connection.prepare_cached(
            "SELECT sop_instance_uid, code, reason FROM quarantined WHERE study_key = ?1 ORDER BY sop_instance_uid",
        )?;
        let rows = statement.query_map([study.as_str()], |row| {
            Ok(QuarantinedInstance { sop_instance_uid: row.get(0)?, code: row.get(1)?, reason: row.get(2)? })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The report on a study; `None` where no object of it was seen.
    pub(crate) fn study_report(&self, key: &StudyKey) -> Result<Option<StudyReport>, RelinkError> {
        let connection = self.lock();
        let mut report = StudyReport::new(key.clone());
        let mut statement = connection.prepare_cached("SELECT report FROM instance WHERE study_key = ?1")?;
        for row in statement.query_map([key.as_str()], |row| row.get::<_, String>(0))? {
            // A report of an older version that cannot be read any more still counts as an object.
            report.add(&serde_json::from_str::<ObjectReport>(&row?).unwrap_or_default());
        }
        let mut statement = connection
            .prepare_cached("SELECT code, count(*) FROM quarantined WHERE study_key = ?1 GROUP BY code")?;
        for row in statement.query_map([key.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))? {
            let (code, count): (String, u32) = row?;
            report.quarantined.insert(code, count);
        }
        Ok((report.deidentified > 0 || !report.quarantined.is_empty()).then_some(report))
    }
}
