//! Paths in a settings file, relative to that file.

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use std::cell::RefCell;
use std::fmt;
use std::ops::Deref;
use std::path::{Path, PathBuf};

thread_local! {
    /// The folder of the file that is being read on this thread. Serde hands no context to a value, and a path that
    /// must be resolved in a second step is one that somebody forgets.
    static BASE: RefCell<PathBuf> = const { RefCell::new(PathBuf::new()) };
}

/// Runs `read` with `folder` as what relative paths are relative to.
pub(crate) fn with_base<R>(folder: &Path, read: impl FnOnce() -> R) -> R {
    struct Restore(PathBuf);
    impl Drop for Restore {
        fn drop(&mut self) {
            BASE.set(std::mem::take(&mut self.0));
        }
    }
    let _restore = Restore(BASE.replace(folder.to_owned()));
    read()
}

/// A path as it stands in a settings file, resolved against that file's folder while the file is read; elsewhere
/// relative to the working directory.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct FilePath(PathBuf);

impl FilePath {
    /// The path.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

impl<'de> Deserialize<'de> for FilePath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        resolved(deserializer).map(Self)
    }
}

/// For `#[serde(deserialize_with = "medinet_settings::resolved")]` on a `PathBuf`: as [`FilePath`].
///
/// # Errors
/// When the value is not a path.
pub fn resolved<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    let written = PathBuf::deserialize(deserializer)?;
    if written.as_os_str().is_empty() {
        return Err(D::Error::custom("expected a path, got an empty text"));
    }
    Ok(BASE.with_borrow(|base| base.join(written)))
}

/// For `#[serde(default, deserialize_with = "medinet_settings::resolved_option")]` on an `Option<PathBuf>`: as
/// [`FilePath`].
///
/// # Errors
/// When the value is not a path.
pub fn resolved_option<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
    Ok(Option::<FilePath>::deserialize(deserializer)?.map(PathBuf::from))
}

/// For `#[serde(deserialize_with = "medinet_settings::resolved_all")]` on a `Vec<PathBuf>`: each as [`FilePath`].
///
/// # Errors
/// When a value is not a path.
pub fn resolved_all<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<PathBuf>, D::Error> {
    Ok(Vec::<FilePath>::deserialize(deserializer)?.into_iter().map(PathBuf::from).collect())
}

impl Deref for FilePath {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl AsRef<Path> for FilePath {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

impl fmt::Display for FilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

impl From<PathBuf> for FilePath {
    fn from(path: PathBuf) -> Self {
        Self(path)
    }
}

impl From<&Path> for FilePath {
    fn from(path: &Path) -> Self {
        Self(path.to_owned())
    }
}

impl From<FilePath> for PathBuf {
    fn from(path: FilePath) -> Self {
        path.0
    }
}
