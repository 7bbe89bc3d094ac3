//! From the spool to the sink, one object at a time, each with a verdict that is written down before its file goes.

use crate::error::IntakeError;
use crate::folder::WatchedFolder;
use crate::identify::{data_set, identify};
use crate::intake::now;
use crate::ledger::{Fetched, Ledger, Sha256Digest};
use crate::progress::IntakeProgress;
use crate::quarantine::Retried;
use crate::sink::{Accepted, Delivery, Rejected, Sink};
use crate::spool::{Spool, sha256};
use medinet_deident::{Identified, Origin};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use tokio::sync::watch;

/// After so many panics of the sink in a row the fault is not in the objects.
const MAX_PANICS: u32 = 3;

/// Hands waiting objects to the sink. Lives on a thread of its own, for sinks block.
pub(crate) struct Deliverer<S> {
    pub(crate) ledger: Ledger,
    pub(crate) spool: Spool,
    pub(crate) folder: Option<WatchedFolder>,
    pub(crate) sink: S,
    pub(crate) progress: watch::Sender<IntakeProgress>,
    /// What was offered again by other processes, as far as `progress` takes account of it.
    retried: Retried,
    pub(crate) max_object_bytes: u64,
    panics: u32,
}

/// An object's file, read.
struct Content {
    bytes: io::Result<Vec<u8>>,
    /// Where it was found, if in the watched folder.
    path: Option<PathBuf>,
}

/// What became of an object, and why.
enum Verdict {
    Ingested {
        sop_instance: String,
        data_set_sha256: Sha256Digest,
        is_repeat: bool,
        bytes: u64,
    },
    Quarantined {
        code: &'static str,
        reason: String,
        /// Empty where it could not be read.
        sop_instance: String,
    },
    /// Its file is gone or damaged, and can be fetched again.
    FetchAgain,
    /// Its file in the watched folder was taken away or changed; the folder is looked through again anyway.
    Forget,
}

fn quarantined(code: &'static str, reason: impl Into<String>) -> Verdict {
    Verdict::Quarantined { code, reason: reason.into(), sop_instance: String::new() }
}

impl<S: Sink> Deliverer<S> {
    pub(crate) fn new(
        ledger: Ledger,
        spool: Spool,
        folder: Option<WatchedFolder>,
        sink: S,
        progress: watch::Sender<IntakeProgress>,
        retried: Retried,
        max_object_bytes: u64,
    ) -> Self {
        Self { ledger, spool, folder, sink, progress, retried, max_object_bytes, panics: 0 }
    }

    /// Delivers everything that waits, or what can be delivered until `stop`.
    pub(crate) fn drain(&mut self, stop: &dyn Fn() -> bool) -> Result<(), IntakeError> {
        let mut after = 0;
        while !stop() {
            let next = self.ledger.next_fetched(after)?;
            // Not earlier: an object that was offered again is counted as waiting before it is counted as dealt with.
            self.count_retried()?;
            let Some(fetched) = next else { break };
            after = fetched.id;
            let Content { bytes, path } = self.read(&fetched);
            let verdict = self.judge(&fetched, bytes, path.is_some())?;
            self.settle(&fetched, path.as_deref(), verdict)?;
        }
        Ok(())
    }

    /// Takes account of what other processes have offered again.
    fn count_retried(&mut self) -> Result<(), IntakeError> {
        let now = self.ledger.retried()?;
        let new = Retried {
            files: now.files.saturating_sub(self.retried.files),
            fetches: now.fetches.saturating_sub(self.retried.fetches),
        };
        if new != Retried::default() {
            self.retried = now;
            self.progress.send_modify(|progress| {
                progress.quarantined = progress.quarantined.saturating_sub(new.files + new.fetches);
                progress.waiting += new.files;
            });
            tracing::info!(files = new.files, fetches = new.fetches, "quarantined objects are offered again");
        }
        Ok(())
    }

    fn read(&self, fetched: &Fetched) -> Content {
        if fetched.origin != Origin::WatchedFolder {
            return Content { bytes: self.spool.read(&fetched.location), path: None };
        }
        // Where the folder was taken out of the settings, its files are where they were.
        let folder = self.folder.as_ref();
        let found = folder
            .and_then(|folder| folder.find(&fetched.location, &fetched.file_sha256, self.max_object_bytes));
        match found {
            Some((path, bytes)) => Content { bytes, path: Some(path) },
            None => Content { bytes: Err(io::ErrorKind::NotFound.into()), path: None },
        }
    }

    /// Gives the verdict on an object. `is_compared` says that its file's content was compared with the ledger's digest.
    fn judge(
        &mut self,
        fetched: &Fetched,
        file: io::Result<Vec<u8>>,
        is_compared: bool,
    ) -> Result<Verdict, IntakeError> {
        let file = match file {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(match fetched.origin {
                    Origin::DicomWeb => Verdict::FetchAgain,
                    Origin::CStore => quarantined("file-missing", "its file was removed from the spool"),
                    Origin::WatchedFolder => Verdict::Forget,
                });
            }
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                return Ok(quarantined("too-large", format!("larger than {} bytes", self.max_object_bytes)));
            }
            Err(error) if fetched.origin == Origin::WatchedFolder => {
                return Ok(quarantined(
                    "unreadable-file",
                    format!("the file cannot be read: {}", error.kind()),
                ));
            }
            Err(source) => return Err(IntakeError::Folder { path: "spool".into(), source }),
        };
        if !is_compared && sha256(&file) != fetched.file_sha256 {
            return Ok(match fetched.origin {
                Origin::DicomWeb => Verdict::FetchAgain,
                Origin::CStore => quarantined("damaged", "its file in the spool is damaged; check the disk"),
                Origin::WatchedFolder => Verdict::Forget,
            });
        }
        let uid = match identify(&file) {
            Ok(uid) => uid,
            Err(reason) => return Ok(quarantined(reason.code(), reason.to_string())),
        };
        Ok(match self.judge_object(fetched, uid.clone(), file)? {
            Verdict::Quarantined { code, reason, .. } => {
                Verdict::Quarantined { code, reason, sop_instance: uid }
            }
            other => other,
        })
    }

    fn judge_object(
        &mut self,
        fetched: &Fetched,
        sop_instance: String,
        file: Vec<u8>,
    ) -> Result<Verdict, IntakeError> {
        if fetched.origin == Origin::DicomWeb && fetched.sop_instance != sop_instance {
            return Ok(quarantined("wrong-object", "the PACS gave another object than the one asked for"));
        }
        let data_set_sha256 = sha256(data_set(&file));
        let bytes = file.len() as u64;
        match self.ledger.instance(&sop_instance)? {
            Some(known) if known == data_set_sha256 => {
                return Ok(Verdict::Ingested { sop_instance, data_set_sha256, is_repeat: true, bytes });
            }
            Some(_) => {
                let reason = "an object with the same SOPInstanceUID and other content was taken in before";
                return Ok(quarantined("duplicate-uid", reason));
            }
            None => {}
        }
        let key = self.ledger.key_of(&sop_instance);
        let delivery = Delivery { key, object: Identified::new(file, fetched.origin) };
        let taken = catch_unwind(AssertUnwindSafe(|| self.sink.accept(delivery)));
        let panicked = taken.is_err();
        self.panics = if panicked { self.panics + 1 } else { 0 };
        if self.panics >= MAX_PANICS {
            return Err(IntakeError::Broken { part: "sink" });
        }
        match taken {
            Ok(Ok(Accepted::Stored | Accepted::AlreadyStored)) => {
                Ok(Verdict::Ingested { sop_instance, data_set_sha256, is_repeat: false, bytes })
            }
            Ok(Err(Rejected::Quarantine { code, reason })) => Ok(quarantined(code, reason)),
            Ok(Err(Rejected::Unavailable { reason })) => Err(IntakeError::SinkUnavailable { reason }),
            Err(_) => Ok(quarantined(
                "sink-broke",
                "the program broke on this object; this is a fault of the program",
            )),
        }
    }

    /// Writes the verdict down, then puts the file where it says. A kill between the two is made up for at the next
    /// start (spool) or look (folder).
    fn settle(
        &mut self,
        fetched: &Fetched,
        path: Option<&Path>,
        verdict: Verdict,
    ) -> Result<(), IntakeError> {
        let id = fetched.id;
        let files = |source| IntakeError::Folder { path: "spool".into(), source };
        let pulled = fetched.origin == Origin::DicomWeb;
        match verdict {
            Verdict::Ingested { sop_instance, data_set_sha256, is_repeat, bytes } => {
                self.ledger.ingested(id, &sop_instance, &data_set_sha256, is_repeat)?;
                self.report(|progress| {
                    progress.ingested += 1;
                    progress.repeats += u64::from(is_repeat);
                    progress.bytes += bytes;
                });
                match (&self.folder, path) {
                    (Some(folder), Some(path)) => folder.done(path, &fetched.location),
                    _ => self.spool.remove(&fetched.location).map_err(files)?,
                }
            }
            Verdict::Quarantined { code, reason, sop_instance } => {
                self.ledger.quarantined(id, code, &reason, &sop_instance, now())?;
                self.report(|progress| progress.quarantined += 1);
                tracing::info!(code, origin = ?fetched.origin, "an object was set aside");
                match (&self.folder, path) {
                    (Some(folder), Some(path)) => folder.set_aside(path, &fetched.location),
                    _ if pulled => self.spool.remove(&fetched.location).map_err(files)?,
                    _ => self.spool.set_aside(&fetched.location).map_err(files)?,
                }
            }
            Verdict::FetchAgain => {
                self.ledger.fetch_again(id)?;
                self.spool.remove(&fetched.location).map_err(files)?;
                self.report(|_| ());
            }
            Verdict::Forget => {
                self.ledger.forget(id)?;
                self.report(|progress| progress.discovered = progress.discovered.saturating_sub(1));
            }
        }
        Ok(())
    }

    fn report(&self, change: impl FnOnce(&mut IntakeProgress)) {
        self.progress.send_modify(|progress| {
            progress.waiting = progress.waiting.saturating_sub(1);
            change(progress);
        });
    }
}
