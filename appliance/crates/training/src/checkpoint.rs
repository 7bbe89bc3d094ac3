//! Saved training state, so that a kill costs at most the time between two checkpoints.

use crate::trainer::EpochReport;
use medinet_types::Digest;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const VERSION: u16 = 1;
const FILE: &str = "training.checkpoint";
const TEMPORARY: &str = "training.checkpoint.part";

/// Everything that a resumed training needs beside its job. What is random needs no state: it is keyed by
/// epoch and image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct State {
    /// Version of this structure.
    pub(crate) version: u16,
    /// Identifies the job and its data.
    pub(crate) fingerprint: Digest,
    /// The epoch that the next step belongs to.
    pub(crate) epoch: u32,
    /// The next step within the epoch.
    pub(crate) step: u32,
    /// Sum of the losses of the epoch's images so far, as the device adds them up.
    pub(crate) loss_sum: f32,
    /// Finished epochs.
    pub(crate) epochs: Vec<EpochReport>,
    /// Network parameters.
    pub(crate) parameters: Vec<f32>,
    /// The optimizer's velocity.
    pub(crate) velocity: Vec<f32>,
    /// The best epoch so far by validation loss.
    pub(crate) best: Option<Best>,
}

/// The parameters after the epoch with the lowest validation loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Best {
    pub(crate) epoch: u32,
    pub(crate) validation_loss: f64,
    pub(crate) parameters: Vec<f32>,
}

impl State {
    pub(crate) fn start(fingerprint: Digest, parameters: Vec<f32>) -> Self {
        let velocity = vec![0.0; parameters.len()];
        Self {
            version: VERSION,
            fingerprint,
            epoch: 0,
            step: 0,
            loss_sum: 0.0,
            epochs: Vec::new(),
            parameters,
            velocity,
            best: None,
        }
    }
}

/// A checkpoint could not be written or read: the environment is at fault, most often a full disk.
#[derive(Debug, thiserror::Error)]
#[error("checkpoint: could not {action} in the training folder")]
pub struct CheckpointError {
    action: &'static str,
    source: io::Error,
}

fn failed(action: &'static str) -> impl FnOnce(io::Error) -> CheckpointError {
    move |source| CheckpointError { action, source }
}

/// Where and how often a training saves its state. One training at a time uses a folder.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    folder: PathBuf,
    every: Duration,
}

impl Checkpoints {
    /// The usual time between two checkpoints.
    pub const EVERY: Duration = Duration::from_secs(30);

    /// Checkpoints in an existing folder every [`Self::EVERY`] and at the end of each epoch.
    #[must_use]
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), every: Self::EVERY }
    }

    /// Another time between checkpoints; zero writes one after each step.
    #[must_use]
    pub fn every(self, every: Duration) -> Self {
        Self { every, ..self }
    }

    /// Removes the checkpoint, once its outcome is safe elsewhere.
    ///
    /// # Errors
    /// When the file is there and cannot be removed.
    pub fn clear(&self) -> Result<(), CheckpointError> {
        for file in [FILE, TEMPORARY] {
            match fs::remove_file(self.folder.join(file)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed("remove a checkpoint")(error));
                }
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// Whether the last checkpoint is old enough for another.
    pub(crate) fn due(&self, last: Instant) -> bool {
        last.elapsed() >= self.every
    }

    /// Replaces the checkpoint: at any moment either the old or the new one is there, whole.
    pub(crate) fn save(&self, state: &State) -> Result<(), CheckpointError> {
        let content = postcard::to_allocvec(state).expect("numbers and vectors serialise");
        let temporary = self.folder.join(TEMPORARY);
        let mut file = create_private(&temporary).map_err(failed("create a checkpoint"))?;
        let written = file.write_all(Digest::of(&content).as_bytes()).and_then(|()| file.write_all(&content));
        written.and_then(|()| file.sync_all()).map_err(failed("write a checkpoint"))?;
        fs::rename(&temporary, self.folder.join(FILE)).map_err(failed("replace a checkpoint"))?;
        File::open(&self.folder).and_then(|folder| folder.sync_all()).map_err(failed("sync a checkpoint"))
    }

    /// The saved state of the job with this fingerprint; none when there is no checkpoint, it is
    /// another job's, or it is damaged.
    pub(crate) fn load(&self, fingerprint: Digest) -> Result<Option<State>, CheckpointError> {
        let bytes = match fs::read(self.folder.join(FILE)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("read a checkpoint")(error)),
        };
        let intact = bytes.split_first_chunk::<32>().filter(|(digest, rest)| Digest::of(rest).0 == **digest);
        let Some((_, content)) = intact else {
            tracing::warn!("the training checkpoint is damaged; starting over");
            return Ok(None);
        };
        // The version comes first, so that an old file is told apart before its fields are read.
        let version = postcard::take_from_bytes::<u16>(content).map(|(version, _)| version);
        if version != Ok(VERSION) {
            tracing::warn!("the training checkpoint is of another version; starting over");
            return Ok(None);
        }
        match postcard::from_bytes::<State>(content) {
            Ok(state) if state.fingerprint == fingerprint => Ok(Some(state)),
            Ok(_) => {
                tracing::info!("the training checkpoint is of another job or data; starting over");
                Ok(None)
            }
            Err(_) => {
                tracing::warn!("the training checkpoint cannot be read; starting over");
                Ok(None)
            }
        }
    }
}

/// Parameters trained on patients' images are for the service's own account alone.
#[cfg(unix)]
fn create_private(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

#[cfg(not(unix))]
fn create_private(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        let mut state = State::start(Digest::of(b"job"), vec![1.0, 2.0]);
        state.best = Some(Best { epoch: 0, validation_loss: 0.5, parameters: vec![3.0, 4.0] });
        state
    }

    #[test]
    fn a_saved_state_is_loaded_for_its_own_job_only() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(folder.path());
        assert_eq!(checkpoints.load(state().fingerprint).unwrap(), None);
        checkpoints.save(&state()).unwrap();
        assert_eq!(checkpoints.load(state().fingerprint).unwrap(), Some(state()));
        assert_eq!(checkpoints.load(Digest::of(b"other")).unwrap(), None);
        checkpoints.clear().unwrap();
        assert_eq!(checkpoints.load(state().fingerprint).unwrap(), None);
        checkpoints.clear().unwrap();
    }

    #[test]
    fn a_damaged_checkpoint_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(folder.path());
        checkpoints.save(&state()).unwrap();
        let path = folder.path().join(FILE);
        let whole = fs::read(&path).unwrap();
        for damaged in [&whole[..10], &whole[..whole.len() - 1], &[&whole[..], b"x"].concat()] {
            fs::write(&path, damaged).unwrap();
            assert_eq!(checkpoints.load(state().fingerprint).unwrap(), None);
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_checkpoint_is_readable_by_its_owner_only() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        Checkpoints::new(folder.path()).save(&state()).unwrap();
        let mode = fs::metadata(folder.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
