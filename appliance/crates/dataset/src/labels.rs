//! What is known about the class of an image, and which source is believed.
//!
//! Precedence: a reviewer's decision on this task over a structured report over a label file. Within a source a
//! statement about the image over one about its study; within that the later one, where "later" is a report's own
//! date and time, and the time of import for files and decisions. Reports of the same time that disagree leave the
//! image without a label.

use crate::dataset::millis;
use crate::{Dataset, DatasetError, DatasetSettings, LabelProblem, LabelProblemKind};
use medinet_deident::{AccessionKey, StudyKey};
use medinet_model::ClassLabel;
use medinet_types::{Digest, UnixMillis};
use rusqlite::{Connection, TransactionBehavior, params};
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Most problems of one file that are kept for the message.
const MAX_PROBLEMS: usize = 1000;

/// What an import of a label file did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LabelImport {
    /// Lines with a label.
    pub lines: u64,
    /// Accession numbers whose label is new or another one now.
    pub changed: u64,
    /// Accession numbers of the file for which an image is in the data set already.
    pub with_images: u64,
}

/// What the sources say about an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    Class(u32),
    None,
    Contradiction,
}

/// All labels in memory, by target.
pub(crate) struct LabelTable {
    by_target: HashMap<String, Vec<LabelRow>>,
}

struct LabelRow {
    scope: String,
    source: String,
    /// `None` where a report contradicts itself.
    class: Option<u32>,
    rank: String,
}

impl LabelTable {
    pub(crate) fn load(connection: &Connection, classes: &[ClassLabel]) -> Result<Self, DatasetError> {
        let fail = DatasetError::database;
        let mut statement = connection
            .prepare("SELECT scope, target, source, class, rank FROM labels")
            .map_err(fail("reading labels"))?;
        let rows = statement
            .query_map([], |row| {
                let class: String = row.get(3)?;
                let index = classes.iter().position(|known| *known == class);
                let parsed = LabelRow {
                    scope: row.get(0)?,
                    source: row.get(2)?,
                    class: index.and_then(|index| u32::try_from(index).ok()),
                    rank: row.get(4)?,
                };
                Ok((row.get::<_, String>(1)?, parsed, class.is_empty() || index.is_some()))
            })
            .map_err(fail("reading labels"))?;
        let mut by_target: HashMap<String, Vec<LabelRow>> = HashMap::new();
        for row in rows {
            let (target, label, known) = row.map_err(fail("reading labels"))?;
            // A class that the task no longer has says nothing.
            if known {
                by_target.entry(target).or_default().push(label);
            }
        }
        Ok(Self { by_target })
    }

    pub(crate) fn decide(&self, instance: Digest, study: &str, accession: Option<&str>) -> Decision {
        let instance = instance.to_string();
        for source in ["reviewer", "report", "csv"] {
            for (scope, target) in
                [("instance", Some(&instance[..])), ("study", Some(study)), ("accession", accession)]
            {
                let rows = target.and_then(|target| self.by_target.get(target)).into_iter().flatten();
                let rows: Vec<_> = rows.filter(|row| row.source == source && row.scope == scope).collect();
                let Some(latest) = rows.iter().map(|row| &row.rank).max() else { continue };
                let mut classes = rows.iter().filter(|row| row.rank == *latest).map(|row| row.class);
                let first = classes.next().flatten();
                return match first {
                    Some(class) if classes.all(|other| other == Some(class)) => Decision::Class(class),
                    _ => Decision::Contradiction,
                };
            }
        }
        Decision::None
    }
}

/// What a reviewer decided about.
#[derive(Debug, Clone, Copy)]
pub enum Reviewed<'a> {
    /// One image object, by its remapped SOP Instance UID.
    Instance(&'a str),
    /// A whole study.
    Study(&'a StudyKey),
}

impl Dataset {
    /// Imports all label files of the settings; see [`Dataset::import_labels_csv`].
    ///
    /// # Errors
    /// As [`Dataset::import_labels_csv`], for the first file that fails.
    pub fn import_configured_labels(
        &mut self,
        key: impl Fn(&str) -> AccessionKey,
        now: UnixMillis,
    ) -> Result<LabelImport, DatasetError> {
        let mut total = LabelImport::default();
        for path in self.settings.labels_csv.clone() {
            let import = self.import_labels_csv(&path, &key, now)?;
            total.lines += import.lines;
            total.changed += import.changed;
            total.with_images += import.with_images;
        }
        Ok(total)
    }

    /// Imports a CSV file with a header, an accession number and a label per line. `key` is the de-identifier's: only
    /// its result is stored, never the accession number. Labels of an earlier import stay unless this file names
    /// their accession number.
    ///
    /// # Errors
    /// When the file cannot be read, or any line has a fault: all faults are listed by line, and nothing is imported.
    pub fn import_labels_csv(
        &mut self,
        path: &Path,
        key: impl Fn(&str) -> AccessionKey,
        now: UnixMillis,
    ) -> Result<LabelImport, DatasetError> {
        let (labels, problems) = self.read_labels(open(path)?, |accession| key(accession).to_string());
        if !problems.is_empty() {
            return Err(DatasetError::LabelFile { path: path.to_owned(), problems });
        }
        self.store_labels(&labels, now)
    }

    /// Reads label lines into accession keys and classes.
    pub(crate) fn read_labels(
        &self,
        file: impl Read,
        key: impl Fn(&str) -> String,
    ) -> (HashMap<String, (String, u64)>, Vec<LabelProblem>) {
        self.settings.read_lines(&self.task.network.classes, file, key)
    }
}

impl DatasetSettings {
    /// The class that a label means: one of `classes` (the task's) or a name in `label_names`, without regard to case.
    #[must_use]
    pub fn class_named<'a>(&'a self, label: &str, classes: &'a [ClassLabel]) -> Option<&'a ClassLabel> {
        let wanted = label.to_lowercase();
        classes
            .iter()
            .map(|class| (class, class))
            .chain(&self.label_names)
            .find(|(name, _)| name.to_lowercase() == wanted)
            .map(|(_, class)| class)
    }

    /// Reads a label file as [`Dataset::import_labels_csv`] does, without a data set: accession number, as it stands in
    /// the file, to index in `classes`. Who calls this holds accession numbers; a data set does not.
    ///
    /// # Errors
    /// When the file cannot be read, or any line has a fault: all faults are listed by line.
    pub fn read_labels(
        &self,
        path: &Path,
        classes: &[ClassLabel],
    ) -> Result<HashMap<String, usize>, DatasetError> {
        let (labels, problems) = self.read_lines(classes, open(path)?, str::to_owned);
        if !problems.is_empty() {
            return Err(DatasetError::LabelFile { path: path.to_owned(), problems });
        }
        let index = |class: &str| classes.iter().position(|known| known == class);
        Ok(labels.into_iter().filter_map(|(number, (class, _))| Some((number, index(&class)?))).collect())
    }

    /// Label lines by what `key` makes of an accession number, each with its class and line; and what is wrong.
    fn read_lines(
        &self,
        classes: &[ClassLabel],
        file: impl Read,
        key: impl Fn(&str) -> String,
    ) -> (HashMap<String, (String, u64)>, Vec<LabelProblem>) {
        let mut problems = Vec::new();
        let mut labels: HashMap<String, (String, u64)> = HashMap::new();
        let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(file);
        let header: Vec<String> = match reader.headers() {
            // Spreadsheets begin their files with a byte order mark.
            Ok(header) => {
                header.iter().map(|name| name.trim_start_matches('\u{feff}').to_lowercase()).collect()
            }
            Err(error) => return (labels, vec![problem_of(&error, 1)]),
        };
        let mut column = |name: &str| {
            let found = header.iter().position(|column| *column == name.to_lowercase());
            if found.is_none() {
                let kind = LabelProblemKind::MissingColumn { column: name.to_owned() };
                problems.push(LabelProblem { line: 1, kind });
            }
            found
        };
        let columns = (column(&self.accession_column), column(&self.label_column));
        let (Some(accession_column), Some(label_column)) = columns else { return (labels, problems) };

        let mut last_line = 1;
        for record in reader.records() {
            let mut fault = |line, kind| problems.push(LabelProblem { line, kind });
            let record = match record {
                Ok(record) => record,
                Err(error) => {
                    let problem = problem_of(&error, last_line + 1);
                    last_line = problem.line;
                    fault(problem.line, problem.kind);
                    if problems.len() >= MAX_PROBLEMS {
                        break;
                    }
                    continue;
                }
            };
            let line = record.position().map_or(last_line + 1, csv::Position::line);
            last_line = line;
            let (accession, label) = (&record[accession_column], &record[label_column]);
            let class = self.class_named(label, classes);
            let target = Some(accession).filter(|text| !text.is_empty()).map(&key);
            match (target, class) {
                (None, _) => fault(line, LabelProblemKind::AccessionNumber),
                (_, None) => {
                    let label = label.chars().take(40).collect();
                    fault(line, LabelProblemKind::UnknownLabel { label });
                }
                (Some(target), Some(class)) => match labels.get(&target) {
                    Some((other, earlier)) if other != class => {
                        fault(line, LabelProblemKind::Contradiction { earlier: *earlier });
                    }
                    Some(_) => {}
                    None => {
                        labels.insert(target, (class.clone(), line));
                    }
                },
            }
            if problems.len() >= MAX_PROBLEMS {
                break;
            }
        }
        (labels, problems)
    }
}

impl Dataset {
    pub(crate) fn store_labels(
        &mut self,
        labels: &HashMap<String, (String, u64)>,
        now: UnixMillis,
    ) -> Result<LabelImport, DatasetError> {
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(DatasetError::database("importing labels"))?;
        let mut import = LabelImport { lines: labels.len() as u64, ..LabelImport::default() };
        let mut store = || -> rusqlite::Result<()> {
            let mut set = transaction.prepare(
                "INSERT INTO labels VALUES ('accession', ?1, 'csv', x'', ?2, '', ?3)
                 ON CONFLICT DO UPDATE SET class = excluded.class, set_ms = excluded.set_ms
                 WHERE class <> excluded.class",
            )?;
            let mut held =
                transaction.prepare("SELECT EXISTS (SELECT 1 FROM objects WHERE accession = ?1)")?;
            for (target, (class, _)) in labels {
                import.changed += set.execute(params![target, class, millis(now)])? as u64;
                import.with_images += u64::from(held.query_row([target], |row| row.get::<_, bool>(0))?);
            }
            Ok(())
        };
        store().map_err(DatasetError::database("importing labels"))?;
        transaction.commit().map_err(DatasetError::database("importing labels"))?;
        Ok(import)
    }

    /// Records a reviewer's decision, which overrides every other source and the reviewer's earlier decisions about
    /// the same.
    ///
    /// # Errors
    /// When the task has no such class, or storing failed.
    pub fn set_reviewed(
        &mut self,
        target: Reviewed<'_>,
        class: &str,
        now: UnixMillis,
    ) -> Result<(), DatasetError> {
        if !self.task.network.classes.iter().any(|known| known == class) {
            return Err(DatasetError::UnknownClass { class: class.chars().take(40).collect() });
        }
        let (scope, target) = match target {
            Reviewed::Instance(uid) => ("instance", Digest::of(uid.as_bytes()).to_string()),
            Reviewed::Study(key) => ("study", key.to_string()),
        };
        self.connection
            .execute(
                "INSERT OR REPLACE INTO labels VALUES (?1, ?2, 'reviewer', x'', ?3, '', ?4)",
                params![scope, target, class, millis(now)],
            )
            .map_err(DatasetError::database("storing a decision"))?;
        Ok(())
    }
}

fn open(path: &Path) -> Result<File, DatasetError> {
    File::open(path).map_err(DatasetError::io("could not read the label file", path))
}

fn problem_of(error: &csv::Error, fallback: u64) -> LabelProblem {
    let line = error.position().map_or(fallback, csv::Position::line);
    let kind = match error.kind() {
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            LabelProblemKind::FieldCount { expected: *expected_len, got: *len }
        }
        _ => LabelProblemKind::Malformed,
    };
    LabelProblem { line, kind }
}
