//! The log's files in a directory: the only module of this crate that touches a disk, under a path that it is given.

use crate::verify::LogFiles;
use crate::writer::{CHECKPOINT, ENTRIES, HISTORY, LEAVES, LogStorage};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

/// A directory that holds one log. Give it to one writer at a time.
#[derive(Debug, Clone)]
pub struct Directory {
    path: PathBuf,
}

impl Directory {
    /// Takes the directory at `path`; makes it when it is not there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        fs::create_dir_all(path.join(HISTORY))?;
        Ok(Self { path })
    }

    fn sync_folder_of(path: &Path) -> io::Result<()> {
        // A new name is durable only once its folder is.
        match path.parent() {
            Some(folder) => File::open(folder)?.sync_all(),
            None => Ok(()),
        }
    }
}

/// Reads the files of a log for [`crate::verify_log`]; changes nothing.
///
/// # Errors
/// When the directory, `entries.log`, `leaves` or `checkpoint` cannot be read.
pub fn read_log(path: &Path) -> io::Result<LogFiles> {
    let mut history = Vec::new();
    match fs::read_dir(path.join(HISTORY)) {
        Ok(entries) => {
            for entry in entries {
                let entry = entry?;
                let name = entry.file_name().to_string_lossy().into_owned();
                // What a kill left of an unfinished write.
                if !name.ends_with(UNFINISHED) {
                    history.push((name, fs::read(entry.path())?));
                }
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(LogFiles {
        entries: fs::read(path.join(ENTRIES))?,
        leaves: fs::read(path.join(LEAVES))?,
        checkpoint: fs::read(path.join(CHECKPOINT))?,
        history,
    })
}

const UNFINISHED: &str = ".new";

impl LogStorage for Directory {
    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        match File::open(self.path.join(name)) {
            Ok(mut file) => {
                let mut bytes = Vec::new();
                file.read_to_end(&mut bytes)?;
                Ok(bytes)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let path = self.path.join(name);
        let is_new = !path.exists();
        let mut file = OpenOptions::new().append(true).create(true).open(&path)?;
        file.write_all(bytes)?;
        file.sync_data()?;
        if is_new { Self::sync_folder_of(&path) } else { Ok(()) }
    }

    fn truncate(&mut self, name: &str, length: u64) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(self.path.join(name))?;
        file.set_len(length)?;
        file.sync_all()
    }

    fn replace(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let path = self.path.join(name);
        let unfinished = self.path.join(format!("{name}{UNFINISHED}"));
        let mut file = File::create(&unfinished)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&unfinished, &path)?;
        Self::sync_folder_of(&path)
    }
}
