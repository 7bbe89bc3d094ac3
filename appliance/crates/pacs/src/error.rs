//! What can go wrong, and who is at fault. No text here holds a UID or anything else that an object says.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// The intake ledger could not be used; environment, unless said otherwise.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// SQLite failed.
    #[error("the intake ledger cannot be used; check the disk and the rights on the data folder")]
    Sqlite(#[from] rusqlite::Error),
    /// A later version of the appliance wrote it.
    #[error(
        "expected an intake ledger of version {expected}, got version {got}: a later appliance wrote it; update"
    )]
    Version {
        /// What this appliance writes.
        expected: i64,
        /// What is there.
        got: i64,
    },
}

/// A request to the PACS failed.
#[derive(Debug, thiserror::Error)]
pub enum DicomWebError {
    /// The settings do not make a client; the operator's mistake.
    #[error("the DICOMweb settings cannot be used: {reason}")]
    Settings {
        /// What is wrong, and what to do.
        reason: String,
    },
    /// The PACS cannot be reached, or breaks off; environment.
    #[error(
        "the PACS cannot be reached or broke off ({what}); check the address, the network and the certificates"
    )]
    Connection {
        /// What was tried.
        what: &'static str,
        /// The transport's own words.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The PACS refuses the credentials; the operator's or the PACS's mistake.
    #[error("the PACS refused the credentials (HTTP {status}); check user, password, token or certificate")]
    Unauthorized {
        /// 401 or 403.
        status: u16,
    },
    /// The PACS is too busy, also after waiting; environment.
    #[error("the PACS is too busy (HTTP {status}), also after waiting; lower the request rate")]
    Busy {
        /// 429 or 503.
        status: u16,
        /// How long the PACS asked to wait.
        retry_after: Option<Duration>,
    },
    /// What was asked for is not there.
    #[error("the PACS does not have what was asked for (HTTP {status})")]
    NotFound {
        /// 404 or 410.
        status: u16,
    },
    /// What was sent is too large for the PACS or something before it.
    #[error("the PACS, or a proxy before it, refused the size of what was sent (HTTP 413); raise its limit")]
    TooLarge,
    /// The PACS failed on this request, also when asked again; the PACS's mistake.
    #[error("the PACS failed on the request (HTTP {status}), also when asked again")]
    Server {
        /// 500 and above.
        status: u16,
    },
    /// The PACS refused the request; our mistake, or a PACS that lacks the service.
    #[error("the PACS refused the request (HTTP {status})")]
    Refused {
        /// The status, 300 to 499.
        status: u16,
    },
    /// The answer is not what PS3.18 says; the PACS's mistake.
    #[error("expected {expected} from the PACS, got {got}")]
    Answer {
        /// What PS3.18 asks for.
        expected: &'static str,
        /// What came.
        got: String,
    },
    /// The answer is larger than the limit.
    #[error(
        "expected an answer of at most {limit_bytes} bytes from the PACS, got more: where it answers a search, lower pacs.dicomweb.page_size"
    )]
    AnswerTooLarge {
        /// The limit.
        limit_bytes: u64,
    },
    /// A local file could not be written or read; environment.
    #[error("the spool cannot be written")]
    Spool(#[from] io::Error),
}

impl DicomWebError {
    /// Whether the fault lies in one object or request, while the PACS as a whole works.
    #[must_use]
    pub fn concerns_one_object(&self) -> bool {
        matches!(
            self,
            Self::NotFound { .. }
                | Self::TooLarge
                | Self::Server { .. }
                | Self::Refused { .. }
                | Self::Answer { .. }
                | Self::AnswerTooLarge { .. }
        )
    }

    /// A short, stable name for counting and filtering.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Settings { .. } => "settings",
            Self::Connection { .. } => "connection",
            Self::Unauthorized { .. } => "unauthorized",
            Self::Busy { .. } => "busy",
            Self::NotFound { .. } => "not-found",
            Self::TooLarge | Self::AnswerTooLarge { .. } => "too-large",
            Self::Server { .. } => "retrieve-failed",
            Self::Refused { .. } => "retrieve-refused",
            Self::Answer { .. } => "bad-answer",
            Self::Spool(_) => "spool",
        }
    }
}

/// The intake stopped. Everything that was taken in is safe; run it again when the cause is gone.
#[derive(Debug, thiserror::Error)]
pub enum IntakeError {
    /// The ledger failed.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The PACS failed as a whole.
    #[error(transparent)]
    DicomWeb(#[from] DicomWebError),
    /// The spool or a folder could not be used; environment.
    #[error("cannot use {}: check that it exists, its rights and the free space", path.display())]
    Folder {
        /// The file or folder of the appliance's own (never one that the hospital named).
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another process uses the same data folder; the operator's mistake.
    #[error("another intake runs on {}: stop it first", path.display())]
    Locked {
        /// The data folder.
        path: PathBuf,
    },
    /// There is no intake ledger; the operator's mistake.
    #[error("expected an intake ledger at {}, found none: no appliance has run with this data_dir yet", path.display())]
    NoLedger {
        /// Where it would be.
        path: PathBuf,
    },
    /// The C-STORE service could not listen; environment.
    #[error("cannot listen for C-STORE on {address}: is another program using it?")]
    Listen {
        /// The address in the settings.
        address: std::net::SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The sink cannot take objects; they wait in the spool.
    #[error("the sink cannot take objects at present ({reason}); they wait in the spool")]
    SinkUnavailable {
        /// The sink's own words.
        reason: String,
    },
    /// A task of the intake panicked; our mistake.
    #[error("a part of the intake broke ({part}); this is a fault of the program")]
    Broken {
        /// Which.
        part: &'static str,
    },
}
