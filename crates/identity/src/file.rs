//! Reading and writing certificate and key files.

use std::fs::{self, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// The largest certificate, key, request or revocation list that is read, in bytes.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// A file could not be read or written, or is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The operating system refused; environment.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A private file that others can read or write; the operator's mistake.
    #[error(
        "expected {} to be readable by its owner alone, got mode {mode:04o}: run chmod 600 on it, and if others \
         may have read it, make a new key",
        path.display()
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The content is not what the file should hold.
    #[error("expected {expected} in {}, got {got}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
        /// What it holds; never the content of a key.
        got: String,
    },
}

impl FileError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }

    pub(crate) fn content(path: &Path, expected: &'static str, got: impl Into<String>) -> Self {
        Self::Content { path: path.to_owned(), expected, got: got.into() }
    }
}

fn read_bounded(file: &mut fs::File, path: &Path) -> Result<Zeroizing<String>, FileError> {
    let mut text = Zeroizing::new(String::new());
    file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text).map_err(FileError::io("read", path))?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(FileError::content(path, "at most 16 MiB", "more"));
    }
    Ok(text)
}

/// Reads a text file that need not be secret.
pub(crate) fn read_public(path: &Path) -> Result<String, FileError> {
    let mut file = fs::File::open(path).map_err(FileError::io("open", path))?;
    Ok(std::mem::take(&mut *read_bounded(&mut file, path)?))
}

/// Reads a text file that only its owner may read, such as a private key.
///
/// # Errors
/// When it cannot be read, or when group or others have any right on it (mode & 0o077).
pub fn read_private(path: &Path) -> Result<Zeroizing<String>, FileError> {
    let mut file = fs::File::open(path).map_err(FileError::io("open", path))?;
    // The mode is asked of the open file, so that it cannot be exchanged in between.
    let mode = file.metadata().map_err(FileError::io("read", path))?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(FileError::Exposed { path: path.to_owned(), mode });
    }
    read_bounded(&mut file, path)
}

/// Writes a new file that only its owner may read; refuses to overwrite one.
///
/// # Errors
/// When the file exists or cannot be written.
pub fn write_private(path: &Path, content: &str) -> Result<(), FileError> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(FileError::io("create", path))?;
    file.write_all(content.as_bytes()).and_then(|()| file.sync_all()).map_err(FileError::io("write", path))
}

/// Writes or replaces a file that everyone may read; a reader sees the old content or the new, also after a power cut.
///
/// # Errors
/// When the file cannot be written.
pub fn write_public(path: &Path, content: &str) -> Result<(), FileError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    let write = || -> io::Result<()> {
        let mut file = fs::File::create(&temporary)?;
        file.write_all(content.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        // The rename itself is durable once the folder is.
        match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            Some(parent) => fs::File::open(parent)?.sync_all(),
            None => fs::File::open(".")?.sync_all(),
        }
    };
    write().map_err(FileError::io("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_file_is_made_for_its_owner_alone_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        write_private(&path, "first").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(write_private(&path, "second"), Err(FileError::Io { .. })));
        assert_eq!(*read_private(&path).unwrap(), "first");
    }

    #[test]
    fn a_private_file_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        write_private(&path, "secret").unwrap();
        for mode in [0o640, 0o604, 0o622, 0o644] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = read_private(&path).unwrap_err().to_string();
            assert!(error.contains(&format!("{mode:04o}")) && error.contains("chmod 600"), "{error}");
            assert!(!error.contains("secret"));
        }
    }

    #[test]
    fn a_public_file_is_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("crl.pem");
        write_public(&path, "a long first content").unwrap();
        write_public(&path, "short").unwrap();
        assert_eq!(read_public(&path).unwrap(), "short");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
    }
}
