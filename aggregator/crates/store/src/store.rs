//! Opening the folder, and the settings that make commits durable.

use crate::error::{Context as _, StoreError};
use crate::schema::{self, SCHEMA_VERSION};
use rusqlite::{Connection, OpenFlags};
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a reader or writer waits for the other.
const BUSY: Duration = Duration::from_secs(5);

/// The aggregator's state folder.
#[derive(Debug)]
pub struct Store {
    pub(crate) connection: Connection,
    folder: PathBuf,
    /// Held while this process may write; the system releases it when the process ends, however it ends.
    _lock: Option<File>,
}

impl Store {
    /// Opens the folder for writing; makes it, or brings its database to this program's schema.
    ///
    /// # Errors
    /// When the disk refuses, another process writes there, or a newer program wrote it.
    pub fn open(folder: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let folder = folder.into();
        let failed = |action| {
            let folder = folder.clone();
            move |source| StoreError::Folder { folder, action, source }
        };
        fs::create_dir_all(blob_folder(&folder)).map_err(failed("creation"))?;
        let lock = File::create(folder.join("aggregator.lock")).map_err(failed("locking"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StoreError::InUse { folder }),
            Err(TryLockError::Error(source)) => return Err(failed("locking")(source)),
        }
        let mut connection = Connection::open(database(&folder)).context("opening")?;
        connection.busy_timeout(BUSY).context("opening")?;
        connection
            .execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;")
            .context("opening")?;
        schema::migrate(&mut connection)?;
        Ok(Self { connection, folder, _lock: Some(lock) })
    }

    /// Opens the folder for queries, also while an aggregator writes to it.
    ///
    /// # Errors
    /// When there is no database of this program's schema.
    pub fn open_read_only(folder: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let folder = folder.into();
        let path = database(&folder);
        if !path.exists() {
            return Err(StoreError::NotReady { folder, known: SCHEMA_VERSION });
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags).context("opening")?;
        connection.busy_timeout(BUSY).context("opening")?;
        match schema::version(&connection)? {
            SCHEMA_VERSION => Ok(Self { connection, folder, _lock: None }),
            got if got > SCHEMA_VERSION => Err(StoreError::NewerSchema { got, known: SCHEMA_VERSION }),
            _ => Err(StoreError::NotReady { folder, known: SCHEMA_VERSION }),
        }
    }

    /// The state folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where blobs are kept, for `medinet_link::BlobStore`: updates until their round closes, parameters of models, bundles.
    #[must_use]
    pub fn blob_folder(&self) -> PathBuf {
        blob_folder(&self.folder)
    }
}

fn database(folder: &Path) -> PathBuf {
    folder.join("aggregator.sqlite")
}

fn blob_folder(folder: &Path) -> PathBuf {
    folder.join("blobs")
}
