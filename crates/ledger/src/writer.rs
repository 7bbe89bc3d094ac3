//! The log as files, and the one who writes them.
//!
//! | file | content |
//! | --- | --- |
//! | `entries.log` | each record behind its length (four bytes, little end first) |
//! | `leaves` | the leaf hash of each record, 32 bytes |
//! | `checkpoint` | the newest signed checkpoint |
//! | `checkpoints/<size>` | every signed checkpoint |
//!
//! Entries are on the disk before their leaf hashes, and both before the checkpoint that covers them. Whatever a kill
//! leaves beyond the newest checkpoint was promised to nobody: whole entries are kept, a torn tail is cut.

use crate::checkpoint::{
    Checkpoint, CheckpointError, CheckpointSigner, LedgerPublicKey, SignedCheckpoint, SigningError,
};
use crate::merkle::{MerkleTree, leaf_hash};
use crate::record::{MAX_RECORD_BYTES, Record, RecordError};
use crate::rules::{LedgerState, RuleViolation};
use medinet_types::{Digest, RecordDigest};
use std::io;

/// Name of the file of records.
pub const ENTRIES: &str = "entries.log";
/// Name of the file of leaf hashes.
pub const LEAVES: &str = "leaves";
/// Name of the file of the newest checkpoint.
pub const CHECKPOINT: &str = "checkpoint";
/// Name of the folder of all checkpoints.
pub const HISTORY: &str = "checkpoints";

/// Where the files are. [`crate::directory::Directory`] is one; tests have one that fails at chosen moments.
pub trait LogStorage {
    /// The file's content; empty when there is no such file.
    ///
    /// # Errors
    /// Passed on.
    fn read(&self, name: &str) -> io::Result<Vec<u8>>;
    /// Appends and waits until it is durable.
    ///
    /// # Errors
    /// Passed on.
    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()>;
    /// Cuts the file to `length` bytes and waits until that is durable.
    ///
    /// # Errors
    /// Passed on.
    fn truncate(&mut self, name: &str, length: u64) -> io::Result<()>;
    /// Puts `bytes` in the place of the file's content, all or nothing, and waits until that is durable.
    ///
    /// # Errors
    /// Passed on.
    fn replace(&mut self, name: &str, bytes: &[u8]) -> io::Result<()>;
}

/// The log could not be opened or written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The disk; environment. Open the log again before going on.
    #[error("the ledger's file {file} could not be read or written")]
    Io {
        /// Which file.
        file: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The record breaks a rule; our API misused. Nothing was written.
    #[error("the record breaks a rule of the ledger")]
    Rule(#[source] RuleViolation),
    /// The record is too long; our API misused. Nothing was written.
    #[error("the record cannot be encoded")]
    Record(#[source] RecordError),
    /// The newest checkpoint does not hold.
    #[error("the ledger's newest checkpoint does not hold: run `medinet ledger verify`")]
    Checkpoint(#[source] CheckpointError),
    /// What the newest checkpoint covers is not all there, or altered. Never repaired silently.
    #[error("the ledger's files do not match its newest checkpoint ({0}): run `medinet ledger verify`")]
    Damaged(&'static str),
    /// The key refuses; environment.
    #[error(transparent)]
    Signing(#[from] SigningError),
    /// An earlier write failed half way; open the log again.
    #[error("an earlier write failed: open the ledger again")]
    Poisoned,
}

/// The one writer of a log.
#[derive(Debug)]
pub struct LogWriter<S> {
    storage: S,
    key: LedgerPublicKey,
    state: LedgerState,
    tree: MerkleTree,
    entries: Vec<u64>,
    entries_bytes: u64,
    signed: Option<SignedCheckpoint>,
    poisoned: bool,
}

impl<S: LogStorage> LogWriter<S> {
    /// Opens a log, a new one included, checks all of it and repairs what a kill left behind.
    ///
    /// # Errors
    /// When what the newest checkpoint covers is missing or altered, a record breaks a rule, or the disk fails.
    pub fn open(mut storage: S, key: LedgerPublicKey) -> Result<Self, WriteError> {
        let note = read(&storage, CHECKPOINT)?;
        let signed = if note.is_empty() {
            None
        } else {
            let note = String::from_utf8(note)
                .map_err(|_| WriteError::Checkpoint(CheckpointError::Malformed("UTF-8 text")))?;
            Some(key.verify(&note).map_err(WriteError::Checkpoint)?)
        };
        let covered = signed.as_ref().map_or(0, |s| s.checkpoint().size);
        let bytes = read(&storage, ENTRIES)?;
        let (mut state, mut tree, mut entries, mut offset) =
            (LedgerState::new(), MerkleTree::new(), Vec::new(), 0usize);
        while let Some(entry) = next_entry(&bytes, offset) {
            let applied = Record::decode(entry).is_ok_and(|record| state.apply(&record).is_ok());
            if !applied {
                break;
            }
            tree.push(leaf_hash(entry));
            entries.push(offset as u64);
            offset += 4 + entry.len();
        }
        if tree.size() < covered {
            return Err(WriteError::Damaged("an entry is missing or altered"));
        }
        if signed.as_ref().is_some_and(|s| tree.root_at(covered) != Some(s.checkpoint().root)) {
            return Err(WriteError::Damaged("another root"));
        }
        if offset < bytes.len() {
            truncate(&mut storage, ENTRIES, offset as u64)?;
        }
        let leaves: Vec<u8> = tree.leaves().flat_map(|leaf| leaf.0.0).collect();
        let stored = read(&storage, LEAVES)?;
        let covered_bytes = usize::try_from(covered).unwrap_or(usize::MAX).saturating_mul(32);
        if stored.get(..covered_bytes) != leaves.get(..covered_bytes) {
            return Err(WriteError::Damaged("a leaf hash is missing or altered"));
        }
        if stored != leaves {
            replace(&mut storage, LEAVES, &leaves)?;
        }
        let entries_bytes = offset as u64;
        Ok(Self { storage, key, state, tree, entries, entries_bytes, signed, poisoned: false })
    }

    /// What the records add up to.
    #[must_use]
    pub fn state(&self) -> &LedgerState {
        &self.state
    }

    /// The tree, for proofs.
    #[must_use]
    pub fn tree(&self) -> &MerkleTree {
        &self.tree
    }

    /// The newest signed checkpoint; older than the tree while entries wait for [`LogWriter::sign`].
    #[must_use]
    pub fn signed(&self) -> Option<&SignedCheckpoint> {
        self.signed.as_ref()
    }

    /// The key that checkpoints are verified with.
    #[must_use]
    pub fn key(&self) -> &LedgerPublicKey {
        &self.key
    }

    /// The files.
    #[must_use]
    pub fn storage(&self) -> &S {
        &self.storage
    }

    /// Gives the files back, as a process that ends does.
    #[must_use]
    pub fn into_storage(self) -> S {
        self.storage
    }

    /// The index of the entry with this leaf hash.
    #[must_use]
    pub fn find(&self, digest: &RecordDigest) -> Option<u64> {
        self.tree.leaves().position(|leaf| leaf == *digest).map(|index| index as u64)
    }

    /// The record at `index`.
    ///
    /// # Errors
    /// When the disk fails or no longer holds what was written.
    pub fn record(&self, index: u64) -> Result<Option<Record>, WriteError> {
        let Some(&offset) = usize::try_from(index).ok().and_then(|index| self.entries.get(index)) else {
            return Ok(None);
        };
        let bytes = read(&self.storage, ENTRIES)?;
        let damaged = WriteError::Damaged("an entry is missing or altered");
        let entry =
            usize::try_from(offset).ok().and_then(|offset| next_entry(&bytes, offset)).ok_or(damaged)?;
        Record::decode(entry).map(Some).map_err(WriteError::Record)
    }

    /// Appends a record; durable on return, and covered by a checkpoint after the next [`LogWriter::sign`]. The record's time
    /// must not be before [`LedgerState::last_at`]. Gives its index and leaf hash.
    ///
    /// # Errors
    /// When a rule forbids it (nothing is written then) or the disk fails (open the log again then).
    pub fn append(&mut self, record: &Record) -> Result<(u64, RecordDigest), WriteError> {
        if self.poisoned {
            return Err(WriteError::Poisoned);
        }
        let entry = record.encode().map_err(WriteError::Record)?;
        self.state.apply(record).map_err(WriteError::Rule)?;
        let leaf = leaf_hash(&entry);
        // encode() bounds the length by MAX_RECORD_BYTES, 2^18.
        let framed = [&(entry.len() as u32).to_le_bytes(), entry.as_slice()].concat();
        self.poisoned = true;
        io_of(ENTRIES, self.storage.append(ENTRIES, &framed))?;
        io_of(LEAVES, self.storage.append(LEAVES, &leaf.0.0))?;
        self.poisoned = false;
        let index = self.tree.size();
        self.tree.push(leaf);
        self.entries.push(self.entries_bytes);
        self.entries_bytes += framed.len() as u64;
        Ok((index, leaf))
    }

    /// Signs a checkpoint over all entries and stores it; does nothing when the newest covers them already.
    ///
    /// # Errors
    /// When the signer's key is not the log's, refuses, or the disk fails.
    pub fn sign(&mut self, signer: &dyn CheckpointSigner) -> Result<&SignedCheckpoint, WriteError> {
        if self.poisoned {
            return Err(WriteError::Poisoned);
        }
        let size = self.tree.size();
        let fresh = match self.signed.take() {
            Some(signed) if signed.checkpoint().size == size => signed,
            older => {
                self.signed = older;
                let checkpoint =
                    Checkpoint { origin: self.key.origin().to_owned(), size, root: self.tree.root() };
                let signed = checkpoint.sign(signer)?;
                self.key.verify(signed.note()).map_err(WriteError::Checkpoint)?;
                let history = format!("{HISTORY}/{size}");
                io_of(&history, self.storage.replace(&history, signed.note().as_bytes()))?;
                io_of(CHECKPOINT, self.storage.replace(CHECKPOINT, signed.note().as_bytes()))?;
                signed
            }
        };
        Ok(self.signed.insert(fresh))
    }

    /// The proof that entry `index` is in the log of the newest signed checkpoint; `None` while it is not covered.
    #[must_use]
    pub fn inclusion_proof(&self, index: u64) -> Option<Vec<Digest>> {
        self.tree.inclusion_proof(index, self.signed.as_ref()?.checkpoint().size)
    }

    /// The proof that the newest signed checkpoint continues the log of `old` entries.
    #[must_use]
    pub fn consistency_proof(&self, old: u64) -> Option<Vec<Digest>> {
        self.tree.consistency_proof(old, self.signed.as_ref()?.checkpoint().size)
    }
}

/// The entry that starts at `offset`; `None` at the end or where no whole entry is.
pub(crate) fn next_entry(bytes: &[u8], offset: usize) -> Option<&[u8]> {
    let (length, rest) = bytes.get(offset..)?.split_first_chunk::<4>()?;
    let length = u32::from_le_bytes(*length) as usize;
    if length > MAX_RECORD_BYTES { None } else { rest.get(..length) }
}

fn io_of<T>(file: &str, result: io::Result<T>) -> Result<T, WriteError> {
    result.map_err(|source| WriteError::Io { file: file.to_owned(), source })
}

fn read<S: LogStorage>(storage: &S, name: &str) -> Result<Vec<u8>, WriteError> {
    io_of(name, storage.read(name))
}

fn truncate<S: LogStorage>(storage: &mut S, name: &str, length: u64) -> Result<(), WriteError> {
    io_of(name, storage.truncate(name, length))
}

fn replace<S: LogStorage>(storage: &mut S, name: &str, bytes: &[u8]) -> Result<(), WriteError> {
    io_of(name, storage.replace(name, bytes))
}
