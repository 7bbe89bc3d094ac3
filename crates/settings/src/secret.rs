//! Passwords and tokens: in files of their own, never in a log.

use crate::path::FilePath;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

/// The longest secret, in bytes.
const MAX_BYTES: u64 = 64 * 1024;

/// A password or token: it does not print, compares in constant time, and is wiped from memory when dropped.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes a secret.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The secret itself; what is done with it is the caller's responsibility.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(hidden)")
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }
}

impl Eq for Secret {}

/// A secret's file could not be used; the messages never hold its content.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The operating system refused; environment.
    #[error("cannot read the secret in {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Others can read it; the operator's mistake.
    #[error(
        "expected {} to be readable by its owner alone, got mode {mode:04o}: run chmod 600 on it, and if others \
         may have read it, change the secret",
        path.display()
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Not one line of text.
    #[error("expected one line of text, of at most 64 KiB, in {}, got {got}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What came instead, without content.
        got: &'static str,
    },
}

/// Names the file in which a secret stands, as in `password_file = "pacs.password"`. The file is read when the
/// secret is used, so a changed password takes effect without a change of settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SecretFile(FilePath);

impl SecretFile {
    /// The secret in the file at `path`.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(FilePath::from(path.into()))
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0.as_path()
    }

    /// Reads the secret: the file's one line, without the line end.
    ///
    /// # Errors
    /// When the file cannot be read, others have any right on it (mode & 0o077), or it is not one line of text.
    pub fn read(&self) -> Result<Secret, SecretError> {
        let path = || self.path().to_owned();
        let read = |source| SecretError::Read { path: path(), source };
        let file = std::fs::File::open(self.path()).map_err(read)?;
        let mode = file.metadata().map_err(read)?.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(SecretError::Exposed { path: path(), mode });
        }
        let mut bytes = Zeroizing::new(Vec::new());
        file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(read)?;
        let refused = |got| SecretError::Content { path: path(), got };
        if bytes.len() as u64 > MAX_BYTES {
            return Err(refused("more"));
        }
        let text = std::str::from_utf8(&bytes).map_err(|_| refused("other bytes"))?;
        let line = text.strip_suffix('\n').unwrap_or(text);
        let line = line.strip_suffix('\r').unwrap_or(line);
        if line.is_empty() {
            return Err(refused("nothing"));
        }
        if line.contains(['\n', '\r', '\0']) {
            return Err(refused("several lines"));
        }
        Ok(Secret::new(line.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};

    fn file(content: &[u8], mode: u32) -> (tempfile::TempDir, SecretFile) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        (dir, SecretFile::new(path))
    }

    #[test]
    fn a_secret_is_the_line_without_its_end_and_never_prints() {
        for content in [&b"hunter2"[..], b"hunter2\n", b"hunter2\r\n"] {
            let (_dir, file) = file(content, 0o600);
            let secret = file.read().unwrap();
            assert_eq!(secret.expose(), "hunter2");
            assert!(!format!("{secret:?} {file:?}").contains("hunter2"));
            assert_eq!(secret, Secret::new("hunter2".into()));
            assert_ne!(secret, Secret::new("hunter3".into()));
        }
    }

    #[test]
    fn a_secret_that_others_can_read_is_refused() {
        for mode in [0o640, 0o604, 0o644] {
            let (_dir, file) = file(b"hunter2", mode);
            let error = file.read().unwrap_err().to_string();
            assert!(error.contains(&format!("{mode:04o}")) && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_file_that_is_not_one_line_of_text_is_refused() {
        for content in [&b""[..], b"\n", b"two\nlines", b"\xff\xfe", &[b'a'; 70_000]] {
            let (_dir, file) = file(content, 0o600);
            assert!(matches!(file.read(), Err(SecretError::Content { .. })));
        }
        let missing = SecretFile::new("/nonexistent/password").read().unwrap_err();
        assert!(matches!(missing, SecretError::Read { .. }));
    }
}
