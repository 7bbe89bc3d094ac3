//! Content-addressed blobs on disk, whole and half received.
//!
//! A whole blob is a file named by its digest; a half-received one is `<digest>.part`, and what of it is good is
//! found again after a restart by hashing its chunks: there is no second file that could disagree.

use medinet_types::{BlobDigest, Digest};
use medinet_wire::blob::{BlobError, BlobManifest, BlobProgress, Chunk, MAX_CHUNK_BYTES};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// A folder of blobs.
#[derive(Debug, Clone)]
pub struct BlobStore {
    folder: PathBuf,
}

/// The blob folder could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum BlobStoreError {
    /// Environment: disk or permissions.
    #[error("blob folder {folder}: {action} failed")]
    Io {
        /// The folder.
        folder: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The peer misbehaved.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// All chunks match their hashes, yet the whole does not match the digest: the manifest is false.
    #[error("blob {0}: the manifest's chunks do not make up the digest it names")]
    FalseManifest(BlobDigest),
}

/// A blob that is being received.
#[derive(Debug)]
pub(crate) struct Incoming {
    file: File,
    progress: BlobProgress,
}

impl BlobStore {
    /// Opens a folder, making it when it is not there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(folder: impl Into<PathBuf>) -> Result<Self, BlobStoreError> {
        let store = Self { folder: folder.into() };
        fs::create_dir_all(&store.folder).map_err(|e| store.io("creation", e))?;
        Ok(store)
    }

    /// Keeps `content` durably and returns its manifest.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn put(&self, content: &[u8]) -> Result<BlobManifest, BlobStoreError> {
        let manifest = BlobManifest::of(content);
        let path = self.whole(manifest.digest);
        if !path.exists() {
            let temporary = self.folder.join(format!("{}.{}.tmp", manifest.digest, std::process::id()));
            let mut file = File::create(&temporary).map_err(|e| self.io("writing", e))?;
            file.write_all(content).map_err(|e| self.io("writing", e))?;
            file.sync_all().map_err(|e| self.io("syncing", e))?;
            fs::rename(&temporary, &path).map_err(|e| self.io("renaming", e))?;
            self.sync_folder()?;
        }
        Ok(manifest)
    }

    /// The whole blob, or `None` when it is not (wholly) here or its content has rotted.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn get(&self, digest: BlobDigest) -> Result<Option<Vec<u8>>, BlobStoreError> {
        match fs::read(self.whole(digest)) {
            Ok(content) if Digest::of(&content) == digest.0 => Ok(Some(content)),
            Ok(_) => {
                tracing::error!(%digest, "a stored blob has changed on disk: removed, it will be fetched again");
                self.remove(digest)?;
                Ok(None)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.io("reading", error)),
        }
    }

    /// Whether the whole blob is here.
    #[must_use]
    pub fn has(&self, digest: BlobDigest) -> bool {
        self.whole(digest).exists()
    }

    /// Forgets a blob, whole or half.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn remove(&self, digest: BlobDigest) -> Result<(), BlobStoreError> {
        for path in [self.whole(digest), self.part(digest)] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(self.io("removal", error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Forgets every blob that `keep` does not name.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn retain(&self, keep: impl Fn(BlobDigest) -> bool) -> Result<(), BlobStoreError> {
        for entry in fs::read_dir(&self.folder).map_err(|e| self.io("listing", e))? {
            let entry = entry.map_err(|e| self.io("listing", e))?;
            let name = entry.file_name();
            let stem = name.to_str().and_then(|n| n.split('.').next()).unwrap_or_default();
            if let Ok(digest) = stem.parse::<BlobDigest>()
                && !keep(digest)
            {
                self.remove(digest)?;
            }
        }
        Ok(())
    }

    /// One chunk of a whole blob that was stored by [`Self::put`], or `None` when it is not here.
    pub(crate) fn chunk(&self, blob: BlobDigest, index: u32) -> Result<Option<Chunk>, BlobStoreError> {
        let file = match File::open(self.whole(blob)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.io("reading", error)),
        };
        let length = file.metadata().map_err(|e| self.io("reading", e))?.len();
        let start = u64::from(index) * u64::from(MAX_CHUNK_BYTES);
        if start >= length {
            return Ok(None);
        }
        let size = (length - start).min(u64::from(MAX_CHUNK_BYTES));
        let mut data = vec![0; usize::try_from(size).expect("at most MAX_CHUNK_BYTES")];
        file.read_exact_at(&mut data, start).map_err(|e| self.io("reading", e))?;
        Ok(Some(Chunk { blob, index, data }))
    }

    /// Begins or resumes receiving a blob.
    pub(crate) fn receive(&self, manifest: BlobManifest) -> Result<Incoming, BlobStoreError> {
        let path = self.part(manifest.digest);
        let mut progress = BlobProgress::new(manifest)?;
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|e| self.io("opening", e))?;
        let held = file.metadata().map_err(|e| self.io("reading", e))?.len();
        let manifest = progress.manifest().clone();
        let mut buffer = vec![0; manifest.chunk_bytes as usize];
        for index in 0..manifest.chunks() {
            let range = manifest.range(index);
            if range.end > held {
                continue;
            }
            let size = usize::try_from(range.end - range.start).expect("at most MAX_CHUNK_BYTES");
            let data = &mut buffer[..size];
            file.read_exact_at(data, range.start).map_err(|e| self.io("reading", e))?;
            if Digest::of(data) == manifest.chunk_hashes[index as usize] {
                progress.note(index);
            }
        }
        Ok(Incoming { file, progress })
    }

    /// Takes a chunk; true when the blob is now whole and stored.
    pub(crate) fn accept(&self, incoming: &mut Incoming, chunk: &Chunk) -> Result<bool, BlobStoreError> {
        incoming.progress.manifest().verify(chunk)?;
        let start = incoming.progress.manifest().range(chunk.index).start;
        incoming.file.write_all_at(&chunk.data, start).map_err(|e| self.io("writing", e))?;
        incoming.progress.note(chunk.index);
        Ok(incoming.progress.missing() == 0)
    }

    /// Moves a wholly received blob to its place.
    pub(crate) fn finish(&self, incoming: &Incoming) -> Result<(), BlobStoreError> {
        let digest = incoming.progress.manifest().digest;
        incoming.file.sync_all().map_err(|e| self.io("syncing", e))?;
        let mut content = Vec::new();
        let part = self.part(digest);
        File::open(&part)
            .and_then(|mut file| file.read_to_end(&mut content))
            .map_err(|e| self.io("reading", e))?;
        if Digest::of(&content) != digest.0 {
            self.remove(digest)?;
            return Err(BlobStoreError::FalseManifest(digest));
        }
        fs::rename(part, self.whole(digest)).map_err(|e| self.io("renaming", e))?;
        self.sync_folder()
    }

    fn whole(&self, digest: BlobDigest) -> PathBuf {
        self.folder.join(digest.to_string())
    }

    fn part(&self, digest: BlobDigest) -> PathBuf {
        self.folder.join(format!("{digest}.part"))
    }

    fn sync_folder(&self) -> Result<(), BlobStoreError> {
        File::open(&self.folder).and_then(|folder| folder.sync_all()).map_err(|e| self.io("syncing", e))
    }

    fn io(&self, action: &'static str, source: io::Error) -> BlobStoreError {
        BlobStoreError::Io { folder: self.folder.clone(), action, source }
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Incoming {
    pub(crate) fn progress(&self) -> &BlobProgress {
        &self.progress
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(length: usize) -> Vec<u8> {
        (0..length).map(|i| (i * 131 % 253) as u8).collect()
    }

    #[test]
    fn a_blob_survives_a_restart_halfway() {
        let sender_folder = tempfile::tempdir().unwrap();
        let receiver_folder = tempfile::tempdir().unwrap();
        let sender = BlobStore::open(sender_folder.path()).unwrap();
        let data = content(MAX_CHUNK_BYTES as usize * 5 + 99);
        let manifest = sender.put(&data).unwrap();

        let receiver = BlobStore::open(receiver_folder.path()).unwrap();
        let mut incoming = receiver.receive(manifest.clone()).unwrap();
        for index in [4, 1, 5] {
            let chunk = sender.chunk(manifest.digest, index).unwrap().unwrap();
            assert!(!receiver.accept(&mut incoming, &chunk).unwrap());
        }
        drop(incoming);

        let mut incoming = receiver.receive(manifest.clone()).unwrap();
        let want = incoming.progress().want().unwrap();
        assert_eq!(want.chunks, [0, 2, 3]);
        let mut whole = false;
        for index in want.chunks {
            let chunk = sender.chunk(manifest.digest, index).unwrap().unwrap();
            whole = receiver.accept(&mut incoming, &chunk).unwrap();
        }
        assert!(whole);
        receiver.finish(&incoming).unwrap();
        assert_eq!(receiver.get(manifest.digest).unwrap().unwrap(), data);
    }

    #[test]
    fn a_false_manifest_is_found_out() {
        let folder = tempfile::tempdir().unwrap();
        let store = BlobStore::open(folder.path()).unwrap();
        let data = content(100);
        let mut manifest = BlobManifest::of(&data);
        manifest.digest = BlobDigest(Digest::of(b"something else"));
        let mut incoming = store.receive(manifest.clone()).unwrap();
        let chunk = Chunk { blob: manifest.digest, index: 0, data };
        assert!(store.accept(&mut incoming, &chunk).unwrap());
        assert!(matches!(store.finish(&incoming), Err(BlobStoreError::FalseManifest(_))));
        assert!(!store.has(manifest.digest));
    }

    #[test]
    fn a_rotten_blob_is_not_handed_out() {
        let folder = tempfile::tempdir().unwrap();
        let store = BlobStore::open(folder.path()).unwrap();
        let manifest = store.put(&content(5000)).unwrap();
        let path = folder.path().join(manifest.digest.to_string());
        let mut bytes = fs::read(&path).unwrap();
        bytes[2500] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert!(store.get(manifest.digest).unwrap().is_none());
        assert!(!store.has(manifest.digest));
    }
}
