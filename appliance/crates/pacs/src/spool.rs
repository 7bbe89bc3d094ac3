//! Files on their way from a source to the sink, in the site's data folder.
//!
//! ```text
//! spool/incoming    being written; removed at the start of the next run
//! spool/ready       complete, waiting for the sink
//! spool/quarantine  pushed by a peer and set aside; kept for the hospital to look at
//! ```

use crate::error::IntakeError;
use crate::ledger::Sha256Digest;
use sha2::{Digest as _, Sha256};
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::Notify;

/// The spool's folders and how full they are.
#[derive(Clone)]
pub(crate) struct Spool {
    shared: Arc<Shared>,
}

struct Shared {
    incoming: PathBuf,
    ready: PathBuf,
    quarantine: PathBuf,
    max_bytes: u64,
    used_bytes: AtomicU64,
    next_name: AtomicU64,
    freed: Notify,
}

/// A file that was put into the spool.
pub(crate) struct Stored {
    /// Its name there.
    pub(crate) location: String,
    pub(crate) sha256: Sha256Digest,
    pub(crate) bytes: u64,
}

impl Spool {
    /// Where the spool under `data_dir` keeps what was set aside.
    pub(crate) fn set_aside_in(data_dir: &Path) -> PathBuf {
        data_dir.join("spool").join("quarantine")
    }

    /// Opens the spool under `data_dir`, makes its folders, and clears what an earlier run left half written.
    pub(crate) fn open(data_dir: &Path, max_bytes: u64) -> Result<Self, IntakeError> {
        let root = data_dir.join("spool");
        let [incoming, ready] = ["incoming", "ready"].map(|name| root.join(name));
        let quarantine = Self::set_aside_in(data_dir);
        for path in [&incoming, &ready, &quarantine] {
            // What lies here is identifiable: for the appliance's own user alone.
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
            made.map_err(|source| IntakeError::Folder { path: path.clone(), source })?;
        }
        let failed = |source| IntakeError::Folder { path: root.clone(), source };
        for entry in fs::read_dir(&incoming).map_err(failed)? {
            fs::remove_file(entry.map_err(failed)?.path()).map_err(failed)?;
        }
        let mut used = 0;
        for entry in fs::read_dir(&ready).map_err(failed)? {
            used += entry.and_then(|entry| entry.metadata()).map_err(failed)?.len();
        }
        let shared = Shared {
            incoming,
            ready,
            quarantine,
            max_bytes,
            used_bytes: AtomicU64::new(used),
            next_name: AtomicU64::new(0),
            freed: Notify::new(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Whether another object may be begun.
    pub(crate) fn has_room(&self) -> bool {
        self.shared.used_bytes.load(Ordering::Acquire) < self.shared.max_bytes
    }

    /// Waits until another object may be begun.
    pub(crate) async fn room(&self) {
        loop {
            let freed = self.shared.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            if self.has_room() {
                return;
            }
            freed.await;
        }
    }

    /// Begins a file.
    pub(crate) async fn begin(&self) -> io::Result<Incoming> {
        let number = self.shared.next_name.fetch_add(1, Ordering::Relaxed);
        let path = self.shared.incoming.join(number.to_string());
        let file = tokio::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).await?;
        Ok(Incoming {
            spool: self.clone(),
            file: tokio::io::BufWriter::with_capacity(256 << 10, file),
            path: Some(path),
            hasher: Sha256::new(),
            bytes: 0,
        })
    }

    fn release(&self, bytes: u64) {
        self.shared.used_bytes.fetch_sub(bytes, Ordering::AcqRel);
        self.shared.freed.notify_waiters();
    }

    /// The names of all files that wait for the sink.
    pub(crate) fn ready_files(&self) -> io::Result<Vec<(String, u64)>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.shared.ready)? {
            let entry = entry?;
            if let Ok(name) = entry.file_name().into_string() {
                files.push((name, entry.metadata()?.len()));
            }
        }
        Ok(files)
    }

    /// Whether a file waits for the sink.
    pub(crate) fn holds(&self, location: &str) -> bool {
        self.shared.ready.join(location).is_file()
    }

    /// Reads a file, also one that was set aside.
    pub(crate) fn read(&self, location: &str) -> io::Result<Vec<u8>> {
        match fs::read(self.shared.ready.join(location)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::read(self.shared.quarantine.join(location))
            }
            other => other,
        }
    }

    /// Removes a file that is done with.
    pub(crate) fn remove(&self, location: &str) -> io::Result<()> {
        let path = self.shared.ready.join(location);
        let bytes = match fs::metadata(&path) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // It was set aside once and has passed now.
                return ignore_missing(fs::remove_file(self.shared.quarantine.join(location)));
            }
            Err(error) => return Err(error),
        };
        ignore_missing(fs::remove_file(path))?;
        self.release(bytes);
        Ok(())
    }

    /// Removes a file that waits, and leaves a copy that was set aside before.
    pub(crate) fn remove_ready(&self, location: &str) -> io::Result<()> {
        let path = self.shared.ready.join(location);
        let Ok(metadata) = fs::metadata(&path) else { return Ok(()) };
        fs::remove_file(path)?;
        self.release(metadata.len());
        Ok(())
    }

    /// Moves a file to those that are set aside; it no longer counts as waiting.
    pub(crate) fn set_aside(&self, location: &str) -> io::Result<()> {
        let path = self.shared.ready.join(location);
        let Ok(metadata) = fs::metadata(&path) else { return Ok(()) };
        fs::rename(path, self.shared.quarantine.join(location))?;
        self.release(metadata.len());
        Ok(())
    }
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// A file that is being written. Dropped before it is finished, it is removed.
pub(crate) struct Incoming {
    spool: Spool,
    file: tokio::io::BufWriter<tokio::fs::File>,
    /// None once the file is finished.
    path: Option<PathBuf>,
    hasher: Sha256,
    bytes: u64,
}

impl Incoming {
    /// Appends to the file.
    pub(crate) async fn write(&mut self, piece: &[u8]) -> io::Result<()> {
        self.hasher.update(piece);
        self.bytes += piece.len() as u64;
        self.spool.shared.used_bytes.fetch_add(piece.len() as u64, Ordering::AcqRel);
        self.file.write_all(piece).await
    }

    /// The bytes written so far.
    pub(crate) fn len(&self) -> u64 {
        self.bytes
    }

    /// Completes the file under the name `<prefix>-<sha256>`. With `durable` it is on the disk when this returns, so
    /// that it may be acknowledged; without, a power cut may take it (a kill does not).
    pub(crate) async fn finish(mut self, prefix: &str, durable: bool) -> io::Result<Stored> {
        self.file.flush().await?;
        if durable {
            self.file.get_ref().sync_all().await?;
        }
        let sha256: Sha256Digest = std::mem::take(&mut self.hasher).finalize().into();
        let location = format!("{prefix}-{}", hex::encode(sha256));
        let Some(from) = self.path.as_ref() else { return Err(io::ErrorKind::NotFound.into()) };
        let to = self.spool.shared.ready.join(&location);
        let replaced = tokio::fs::metadata(&to).await.map(|metadata| metadata.len()).unwrap_or(0);
        tokio::fs::rename(from, &to).await?;
        if durable {
            let ready = self.spool.shared.ready.clone();
            let synced = tokio::task::spawn_blocking(move || fs::File::open(ready)?.sync_all()).await;
            synced.map_err(io::Error::other)??;
        }
        self.path = None;
        self.spool.release(replaced);
        Ok(Stored { location, sha256, bytes: self.bytes })
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if let Some(path) = self.path.take() {
            // Nothing refers to it, and the next start clears what is left.
            let _ = fs::remove_file(path);
            self.spool.release(self.bytes);
        }
    }
}

/// The SHA-256 of some bytes.
pub(crate) fn sha256(bytes: &[u8]) -> Sha256Digest {
    Sha256::digest(bytes).into()
}

/// Makes a file that only the appliance's own user may read or write, or opens it.
pub(crate) fn private_file(path: &Path) -> io::Result<fs::File> {
    fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_unfinished_file_leaves_nothing_and_a_finished_one_its_content() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path(), 10).unwrap();
        let mut file = spool.begin().await.unwrap();
        file.write(b"0123456789ab").await.unwrap();
        assert!(!spool.has_room());
        drop(file);
        assert!(spool.has_room());
        assert_eq!(fs::read_dir(dir.path().join("spool/incoming")).unwrap().count(), 0);

        let mut file = spool.begin().await.unwrap();
        file.write(b"0123456789ab").await.unwrap();
        let stored = file.finish("c", true).await.unwrap();
        assert_eq!(stored.sha256, sha256(b"0123456789ab"));
        assert_eq!(spool.read(&stored.location).unwrap(), b"0123456789ab");
        assert!(!spool.has_room());
        let waiting = spool.clone();
        let room = tokio::spawn(async move { waiting.room().await });
        tokio::task::yield_now().await;
        spool.set_aside(&stored.location).unwrap();
        room.await.unwrap();
        assert_eq!(spool.read(&stored.location).unwrap(), b"0123456789ab", "set aside, and still there");

        let again = Spool::open(dir.path(), 10).unwrap();
        assert!(again.has_room() && again.ready_files().unwrap().is_empty());
    }
}
