//! The de-identified objects as compressed files, named by the digest of their content.

use crate::DatasetError;
use medinet_types::Digest;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// zstd's fastest ordinary level: a third off grey images at the speed of a disk.
const LEVEL: i32 = 1;

pub(crate) struct ObjectFiles {
    folder: PathBuf,
}

impl ObjectFiles {
    /// Opens the folder and clears what a killed process left half written.
    pub(crate) fn open(dataset: &Path) -> Result<Self, DatasetError> {
        let folder = dataset.join("objects");
        let fail = || DatasetError::io("could not open the folder", &folder);
        fs::create_dir_all(&folder).map_err(fail())?;
        for entry in fs::read_dir(&folder).map_err(fail())? {
            let path = entry.map_err(fail())?.path();
            // A process that still writes has its own id in the name.
            let abandoned = path.extension().is_some_and(|extension| extension == "part")
                && !path.file_stem().is_some_and(|stem| stem.to_string_lossy().ends_with(&own_suffix()))
                && is_old(&path);
            if abandoned {
                let _ = fs::remove_file(&path);
            }
        }
        Ok(Self { folder })
    }

    fn path(&self, content: Digest) -> PathBuf {
        let name = content.to_string();
        self.folder.join(&name[..2]).join(format!("{name}.dcm.zst"))
    }

    /// Writes an object durably; the same content again is the same file.
    pub(crate) fn write(&self, content: Digest, encoded: &[u8]) -> Result<(), DatasetError> {
        let path = self.path(content);
        let folder = path.parent().unwrap_or(&self.folder).to_owned();
        fs::create_dir_all(&folder).map_err(DatasetError::io("could not create", &folder))?;
        let part = self.folder.join(format!("{}-{}.part", content, own_suffix()));
        let write = || -> std::io::Result<()> {
            let mut file = File::create(&part)?;
            file.write_all(&zstd::bulk::compress(encoded, LEVEL)?)?;
            file.sync_all()?;
            fs::rename(&part, &path)?;
            // The names are durable only when their folders are.
            File::open(&folder)?.sync_all()?;
            File::open(&self.folder)?.sync_all()
        };
        write().map_err(|source| {
            let _ = fs::remove_file(&part);
            DatasetError::Io { action: "could not write", path, source }
        })
    }

    /// Reads an object's encoding back.
    pub(crate) fn read(&self, content: Digest, limit: u64) -> Result<Vec<u8>, DatasetError> {
        let path = self.path(content);
        let file = File::open(&path).map_err(DatasetError::io("could not read", &path))?;
        let decoder = zstd::Decoder::new(file).map_err(DatasetError::io("could not read", &path))?;
        let mut encoded = Vec::new();
        decoder
            .take(limit + 1)
            .read_to_end(&mut encoded)
            .map_err(DatasetError::io("could not read", &path))?;
        if Digest::of(&encoded) != content {
            return Err(DatasetError::Damaged { reason: "its digest does not match".into() });
        }
        Ok(encoded)
    }

    /// Removes the file of a replaced object. A file that stays costs only its space.
    pub(crate) fn remove(&self, content: &[u8]) {
        if let Ok(digest) = <[u8; 32]>::try_from(content) {
            let _ = fs::remove_file(self.path(Digest(digest)));
        }
    }
}

fn own_suffix() -> String {
    std::process::id().to_string()
}

/// Whether a part file has not been written to for an hour: its writer is gone.
fn is_old(path: &Path) -> bool {
    let age = fs::metadata(path).and_then(|data| data.modified()).map(|time| time.elapsed());
    matches!(age, Ok(Ok(age)) if age.as_secs() > 3600)
}
