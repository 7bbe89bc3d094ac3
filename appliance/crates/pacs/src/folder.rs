//! A watched folder: files that are wholly written enter the pipe and are moved to `done` or `quarantine`.
//!
//! Nothing that the hospital put there is ever deleted, and symbolic links are not followed.

use crate::error::IntakeError;
use crate::ledger::{Arrival, Ledger, Sha256Digest};
use crate::progress::Reporter;
use crate::settings::FolderSettings;
use crate::spool::sha256;
use medinet_deident::Origin;
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

const DONE: &str = "done";
const QUARANTINE: &str = "quarantine";

/// The deepest subfolder that is looked into.
const MAX_DEPTH: usize = 16;

/// A file that entered the pipe and still lies there waits for the sink, or could not be moved: it is not read again
/// before this time.
const TAKE_AGAIN: Duration = Duration::from_secs(300);

/// Stands for the digest of a file that cannot be read: the delivery meets the same error and gives it as the reason.
const UNREADABLE: Sha256Digest = [0; 32];

/// The folder, and the names within it. A location is a path relative to it.
#[derive(Debug, Clone)]
pub(crate) struct WatchedFolder {
    path: PathBuf,
}

/// What tells whether a file is still being written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Look {
    bytes: u64,
    modified: Option<SystemTime>,
}

/// Looks at the folder again and again, and remembers what it saw.
pub(crate) struct Watcher {
    folder: WatchedFolder,
    settle: Duration,
    max_object_bytes: u64,
    seen: HashMap<String, Seen>,
}

/// What is remembered of a file from one look to the next.
#[derive(Debug, Clone, Copy)]
struct Seen {
    look: Look,
    /// Since when it has looked like that.
    since: Instant,
    /// When it entered the pipe.
    taken: Option<Instant>,
}

impl WatchedFolder {
    /// The folder of the settings, with its two subfolders made.
    pub(crate) fn open(settings: &FolderSettings) -> Result<Self, IntakeError> {
        let path = settings.path.to_path_buf();
        for name in [DONE, QUARANTINE] {
            let made = fs::create_dir_all(path.join(name));
            made.map_err(|source| IntakeError::Folder { path: path.clone(), source })?;
        }
        Ok(Self { path })
    }

    /// Finds and reads the file that entered the pipe from `location` with this digest: where it was put, or among those that
    /// were set aside, where files of one name have numbers. None when it was taken away or has become another one.
    pub(crate) fn find(
        &self,
        location: &str,
        digest: &Sha256Digest,
        max_bytes: u64,
    ) -> Option<(PathBuf, io::Result<Vec<u8>>)> {
        let aside = numbered(self.path.join(QUARANTINE).join(location));
        let mut places = std::iter::once(self.path.join(location)).chain(aside);
        places.find_map(|path| {
            let size = path.symlink_metadata().ok().filter(fs::Metadata::is_file)?.len();
            let bytes = read(&path, max_bytes);
            // What was too large or could not be read may be within the limit, or readable, by now.
            let stands_for_any = *digest == UNREADABLE || *digest == of_size(size);
            let is_it = stands_for_any || bytes.as_ref().is_ok_and(|bytes| sha256(bytes) == *digest);
            is_it.then_some((path, bytes))
        })
    }

    pub(crate) fn done(&self, from: &Path, location: &str) {
        self.move_to(DONE, from, location);
    }

    pub(crate) fn set_aside(&self, from: &Path, location: &str) {
        self.move_to(QUARANTINE, from, location);
    }

    /// Moves a file into a subfolder, under its own name, or one with a number where that is taken. A file that
    /// cannot be moved stays: its verdict is in the ledger, and the next look tries to move it again.
    fn move_to(&self, subfolder: &str, from: &Path, location: &str) {
        let folder = self.path.join(subfolder);
        if from.starts_with(&folder) || from.symlink_metadata().is_err() {
            return;
        }
        let free = numbered(folder.join(location)).find(|path| path.symlink_metadata().is_err());
        let Some(target) = free else { return };
        let moved =
            target.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::rename(from, &target));
        if let Err(error) = moved {
            // The name may hold a patient's, so it is not logged.
            tracing::warn!(kind = %error.kind(), subfolder, "a file of the watched folder cannot be moved; check its rights");
        }
    }

    /// All files, by relative path.
    fn files(&self) -> io::Result<Vec<(String, Look)>> {
        let mut found = Vec::new();
        let mut folders = vec![(self.path.clone(), 0)];
        while let Some((folder, depth)) = folders.pop() {
            let entries = match fs::read_dir(&folder) {
                Ok(entries) => entries,
                Err(_) if depth > 0 => continue,
                Err(error) => return Err(error),
            };
            for entry in entries {
                let entry = entry?;
                let name = entry.file_name();
                let hidden = name.as_encoded_bytes().starts_with(b".");
                let ours = depth == 0 && (name == DONE || name == QUARANTINE);
                // Taken away between listing and looking: it is no longer ours.
                let Ok(kind) = entry.file_type() else { continue };
                if hidden || ours || kind.is_symlink() {
                    continue;
                }
                if kind.is_dir() {
                    if depth < MAX_DEPTH {
                        folders.push((entry.path(), depth + 1));
                    }
                    continue;
                }
                let Ok(metadata) = entry.metadata() else { continue };
                let path = entry.path();
                let Ok(relative) = path.strip_prefix(&self.path) else { continue };
                let Some(relative) = relative.to_str() else {
                    tracing::warn!(
                        "a file of the watched folder has a name that is no UTF-8 text; rename it"
                    );
                    continue;
                };
                let look = Look { bytes: metadata.len(), modified: metadata.modified().ok() };
                found.push((relative.to_owned(), look));
            }
        }
        found.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(found)
    }
}

impl Watcher {
    pub(crate) fn new(folder: WatchedFolder, settings: &FolderSettings, max_object_bytes: u64) -> Self {
        Self { folder, settle: settings.settle.get(), max_object_bytes, seen: HashMap::new() }
    }

    /// How long a file must stay the same.
    pub(crate) fn settle(&self) -> Duration {
        self.settle
    }

    /// Looks once: files that have stayed the same for long enough enter the pipe. Answers how many others there
    /// are, which need another look.
    pub(crate) fn look(&mut self, ledger: &Ledger, reporter: &Reporter) -> Result<u64, IntakeError> {
        let failed = |source| IntakeError::Folder { path: self.folder.path.clone(), source };
        let now = Instant::now();
        let files = self.folder.files().map_err(failed)?;
        let mut unsettled = 0;
        let mut seen = HashMap::with_capacity(files.len());
        for (location, look) in files {
            let before = self.seen.get(&location).filter(|seen| seen.look == look);
            let mut now_seen = before.copied().unwrap_or(Seen { look, since: now, taken: None });
            let waits = now_seen.taken.is_some_and(|taken| now.duration_since(taken) < TAKE_AGAIN);
            if before.is_none() || now.duration_since(now_seen.since) < self.settle {
                unsettled += 1;
            } else if !waits {
                self.take(&location, look, ledger, reporter)?;
                now_seen.taken = Some(now);
            }
            seen.insert(location, now_seen);
        }
        self.seen = seen;
        Ok(unsettled)
    }

    fn take(
        &self,
        location: &str,
        look: Look,
        ledger: &Ledger,
        reporter: &Reporter,
    ) -> Result<(), IntakeError> {
        let too_large = look.bytes > self.max_object_bytes;
        let path = self.folder.path.join(location);
        let digest = if too_large {
            of_size(look.bytes)
        } else {
            match hash(&path) {
                Ok(digest) => digest,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(_) => UNREADABLE,
            }
        };
        let key = format!("{location}\0{}", hex::encode(digest));
        match ledger.arrived(Origin::WatchedFolder, &key, location, &digest, look.bytes)? {
            Arrival::New => {
                reporter.change(|progress| progress.discovered += 1);
                reporter.file_waits();
            }
            Arrival::Waiting => {}
            // Dealt with, and killed before the file was moved; or the same file was put there again.
            Arrival::Ingested => self.folder.done(&path, location),
            Arrival::Quarantined => self.folder.set_aside(&path, location),
        }
        Ok(())
    }
}

/// Stands for the digest of a file that is too large: its content does not matter; its name and size tell it from others.
fn of_size(bytes: u64) -> Sha256Digest {
    sha256(&bytes.to_le_bytes())
}

/// A path, and the names that further files take where it is taken.
fn numbered(path: PathBuf) -> impl Iterator<Item = PathBuf> {
    (0..10_000).map(move |number| match number {
        0 => path.clone(),
        _ => {
            let mut name = path.clone().into_os_string();
            name.push(format!(".{number}"));
            PathBuf::from(name)
        }
    })
}

fn read(path: &Path, max_bytes: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(max_bytes.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max_bytes { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(bytes) }
}

fn hash(path: &Path) -> io::Result<Sha256Digest> {
    let mut file = fs::File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finalize().into()),
            count => hasher.update(&buffer[..count]),
        }
    }
}
