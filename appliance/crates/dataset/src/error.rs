//! What can go wrong with a data set, and whose fault it is.

use medinet_imaging::ImagingError;
use std::fmt;
use std::path::PathBuf;

/// An operation on the data set failed. No text here holds an accession number, a UID or a patient's key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DatasetError {
    /// The image cannot be used: the sender's fault, quarantine it.
    #[error("the image cannot be used for training")]
    Image(#[from] ImagingError),
    /// The object lacks what the data set needs.
    #[error("expected {keyword} in the de-identified object, found none; quarantine it")]
    MissingAttribute {
        /// DICOM keyword.
        keyword: &'static str,
    },
    /// The object is larger than the site allows.
    #[error("the object has {bytes} bytes, the limit is {limit}; raise max_object_bytes if it is genuine")]
    TooLarge {
        /// Encoded size.
        bytes: u64,
        /// The setting.
        limit: u64,
    },
    /// The data set is full.
    #[error("the data set holds {limit} objects, the limit; raise max_objects or start another data set")]
    Full {
        /// The setting.
        limit: u64,
    },
    /// The folder or a file in it cannot be used: the environment's fault.
    #[error("{action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// The database cannot be used: the environment's fault.
    #[error("the data set's database failed while {action}")]
    Database {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: rusqlite::Error,
    },
    /// A stored object cannot be read back: the disk's or an operator's fault.
    #[error("a stored object is damaged ({reason}); remove the data set and fetch its studies again")]
    Damaged {
        /// What is wrong.
        reason: String,
    },
    /// The folder belongs to another task or to a newer program.
    #[error("{what}: expected {expected}, found {found}; use another folder or another program version")]
    WrongFolder {
        /// What was compared.
        what: &'static str,
        /// What this program needs.
        expected: String,
        /// What the folder holds.
        found: String,
    },
    /// The settings contradict the task or themselves.
    #[error("data set setting {setting}: expected {expected}, got {got}")]
    Settings {
        /// The setting's key.
        setting: &'static str,
        /// What it may be.
        expected: String,
        /// What it is.
        got: String,
    },
    /// A label file has faults; nothing of it was imported.
    #[error("{}: {}", path.display(), ProblemList(problems))]
    LabelFile {
        /// The file.
        path: PathBuf,
        /// What is wrong, by line.
        problems: Vec<LabelProblem>,
    },
    /// Our caller named a class that the task does not have.
    #[error("the task has no class {class:?}")]
    UnknownClass {
        /// The name.
        class: String,
    },
}

/// A fault in a line of a label file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelProblem {
    /// Line in the file, from 1.
    pub line: u64,
    /// What is wrong.
    pub kind: LabelProblemKind,
}

/// What is wrong with a line of a label file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LabelProblemKind {
    /// A column of the settings is not in the header.
    #[error("expected a column {column:?} in the header")]
    MissingColumn {
        /// The column.
        column: String,
    },
    /// The line is no CSV record of the header's length.
    #[error("expected {expected} fields, got {got}")]
    FieldCount {
        /// Columns of the header.
        expected: u64,
        /// Fields of the line.
        got: u64,
    },
    /// The line is not UTF-8 or breaks the rules of quoting.
    #[error("not a CSV record in UTF-8")]
    Malformed,
    /// The accession number is empty.
    #[error("the accession number is empty")]
    AccessionNumber,
    /// The label is no class of the task and stands not in the settings' label names.
    ///
    /// The text withholds it: with the wrong label_column it would be whatever stands there, a name for example.
    #[error("its label, of {} characters, is no class of the task; add it to label_names, set label_column to the right column, or leave the line out", label.chars().count())]
    UnknownLabel {
        /// The label, at most 40 characters. Not for logs.
        label: String,
    },
    /// The same accession number has another label on an earlier line.
    #[error("the accession number of line {earlier} again, with another label")]
    Contradiction {
        /// The earlier line.
        earlier: u64,
    },
}

/// Shows the first problems and how many more there are.
struct ProblemList<'a>(&'a [LabelProblem]);

impl fmt::Display for ProblemList<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 10;
        write!(f, "nothing was imported")?;
        for problem in self.0.iter().take(SHOWN) {
            write!(f, "; line {}: {}", problem.line, problem.kind)?;
        }
        match self.0.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, "; and {more} more lines"),
        }
    }
}

impl DatasetError {
    pub(crate) fn database(action: &'static str) -> impl FnOnce(rusqlite::Error) -> Self {
        move |source| Self::Database { action, source }
    }

    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}
