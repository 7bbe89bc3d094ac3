//! Writing files so that a reader sees all of one or nothing, also after a power cut, and nobody else sees any.

use anyhow::{Context as _, Result};
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

/// Makes a folder that only its owner may enter; one that is there with wider rights loses them.
///
/// What lies in it needs no rights of its own then: databases and decoders make files by the process's umask.
///
/// # Errors
/// When it cannot be made, or belongs to somebody else and is open to others.
pub(crate) fn private_folder(path: &Path) -> Result<()> {
    const OWNER_ONLY: u32 = 0o700;
    let make = || -> std::io::Result<()> {
        DirBuilder::new().recursive(true).mode(OWNER_ONLY).create(path)?;
        if fs::metadata(path)?.permissions().mode() & 0o077 != 0 {
            fs::set_permissions(path, Permissions::from_mode(OWNER_ONLY))?;
            tracing::warn!(folder = %path.display(), "was open to other users of this machine, no longer is");
        }
        Ok(())
    };
    make().with_context(|| format!("cannot make {} a folder for this user only", path.display()))
}

/// Replaces a file durably; only its owner may read it.
pub(crate) fn replace(path: &Path, content: &[u8]) -> Result<()> {
    let write = || -> std::io::Result<()> {
        let temporary = path.with_extension("new");
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        match path.parent() {
            Some(parent) => File::open(parent)?.sync_all(),
            None => Ok(()),
        }
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// Removes a file durably, if it is there.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let remove = || -> std::io::Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        match path.parent() {
            Some(parent) => File::open(parent)?.sync_all(),
            None => Ok(()),
        }
    };
    remove().with_context(|| format!("cannot remove {}", path.display()))
}

/// Reads a file; `None` when it is not there.
pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_private_folder_is_private_also_when_it_was_not() {
        let parent = tempfile::tempdir().unwrap();
        let fresh = parent.path().join("a/b");
        private_folder(&fresh).unwrap();
        assert_eq!(mode(&fresh), 0o700);
        let open = parent.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, Permissions::from_mode(0o755)).unwrap();
        private_folder(&open).unwrap();
        assert_eq!(mode(&open), 0o700);
        let file = parent.path().join("file");
        fs::write(&file, b"").unwrap();
        assert!(private_folder(&file).unwrap_err().to_string().contains("this user only"));
    }
}
