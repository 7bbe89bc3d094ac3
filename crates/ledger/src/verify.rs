//! Verifying a log from its files and a public key alone, and saying exactly what was altered.
//!
//! The files say everything twice: a record's content is in `entries.log`, its hash in `leaves`, all hashes in each signed
//! root. So one altered byte leaves the other witnesses agreeing, and the odd one out is named. Only who rewrites a
//! record, its leaf hash and every later checkpoint, for which it takes the ledger's key, leaves files that agree; that is
//! what an older checkpoint, kept elsewhere, shows.

use crate::checkpoint::{Checkpoint, CheckpointError, LedgerPublicKey};
use crate::merkle::{MerkleTree, leaf_hash};
use crate::record::{MAX_RECORD_BYTES, Record, RecordError};
use crate::rules::{LedgerState, RuleViolation};
use crate::writer::{CHECKPOINT, ENTRIES, HISTORY, LEAVES, next_entry};
use medinet_types::{Digest, RecordDigest};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fmt;

/// How many damaged entries are searched for their true length; each search may hash 256 KiB byte by byte.
const MAX_LENGTH_SEARCHES: usize = 16;

/// The content of a log's files.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogFiles {
    /// `entries.log`.
    pub entries: Vec<u8>,
    /// `leaves`.
    pub leaves: Vec<u8>,
    /// `checkpoint`.
    pub checkpoint: Vec<u8>,
    /// Name and content of each file in `checkpoints/`; may be empty.
    pub history: Vec<(String, Vec<u8>)>,
}

impl LogFiles {
    /// The entries in order, up to where the file ends or no whole entry is; nothing is verified.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut offset = 0;
        std::iter::from_fn(move || {
            let entry = next_entry(&self.entries, offset)?;
            offset += 4 + entry.len();
            Some(entry)
        })
    }
}

/// One thing that is wrong with a log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Finding {
    /// An entry's content differs from what was signed.
    #[error("{ENTRIES}: entry {index} ({}), bytes {start} to {end}: its content was altered; the signed root confirms its leaf hash", kind.unwrap_or("no longer readable"))]
    EntryAltered {
        /// Which entry, from 0.
        index: u64,
        /// The kind of record that it decodes to now.
        kind: Option<&'static str>,
        /// Where its content starts in the file.
        start: usize,
        /// Where it ends.
        end: usize,
    },
    /// The length before an entry differs from the length of the content that was signed.
    #[error("{ENTRIES}: entry {index} ({}), bytes {start} to {}: the length before it was altered; its content is whole", kind.unwrap_or("no longer readable"), start + 4)]
    LengthAltered {
        /// Which entry, from 0.
        index: u64,
        /// Its kind of record.
        kind: Option<&'static str>,
        /// Where the length stands in the file.
        start: usize,
    },
    /// A leaf hash differs from what was signed.
    #[error("{LEAVES}: hash {index}, bytes {} to {}: altered; entry {index} ({}) is whole, the signed root confirms it", 32 * index, 32 * index + 32, kind.unwrap_or("not readable"))]
    LeafAltered {
        /// Of which entry, from 0.
        index: u64,
        /// The entry's kind of record.
        kind: Option<&'static str>,
    },
    /// An entry and its leaf hash differ and nothing signed decides between them.
    #[error("entry {index} ({}) and its leaf hash differ; no signed root tells which was altered, or several were", kind.unwrap_or("not readable"))]
    EntryOrLeaf {
        /// Which entry, from 0.
        index: u64,
        /// The kind of record that it decodes to now.
        kind: Option<&'static str>,
    },
    /// Entries and leaf hashes agree with each other and not with what was signed.
    #[error(
        "entries {from} to {to}: at least one was rewritten together with its leaf hash; the signed root at {to} entries does not match"
    )]
    Rewritten {
        /// All entries before this one match a signed root.
        from: u64,
        /// The size of the first signed checkpoint that does not match.
        to: u64,
    },
    /// Entries that were signed are not there.
    #[error("{ENTRIES}: entries {from} to {to} (exclusive) were signed and are missing")]
    EntriesMissing {
        /// The first missing.
        from: u64,
        /// One past the last missing.
        to: u64,
    },
    /// Bytes that are no entry.
    #[error(
        "{ENTRIES}: {bytes} bytes from byte {start} on are no entry: the length of entry {index} or what follows was damaged"
    )]
    NoEntry {
        /// Which entry should be there.
        index: u64,
        /// Where.
        start: usize,
        /// How many bytes are left.
        bytes: usize,
    },
    /// The number of leaf hashes does not fit.
    #[error("{LEAVES}: expected 32 bytes for each of {expected} signed entries, got {got} bytes")]
    LeafCount {
        /// Entries that were signed.
        expected: u64,
        /// Length of the file.
        got: usize,
    },
    /// An entry, covered by the signed root, does not decode.
    #[error("{ENTRIES}: entry {index} is as it was signed and yet no record: {error}")]
    NoRecord {
        /// Which entry.
        index: u64,
        /// Why.
        error: RecordError,
    },
    /// A record breaks a rule.
    #[error("entry {index} ({kind}) breaks a rule of the ledger: {violation}")]
    Rule {
        /// Which entry.
        index: u64,
        /// Its kind.
        kind: &'static str,
        /// Which rule.
        violation: RuleViolation,
    },
    /// A checkpoint's note does not hold.
    #[error("{file}: {part} was altered: {error}")]
    CheckpointAltered {
        /// Which file.
        file: String,
        /// Which part of it.
        part: NotePart,
        /// What does not hold.
        error: CheckpointError,
    },
    /// A checkpoint is signed and its size is not the one in its name.
    #[error("{file}: holds the checkpoint at {size} entries: the file was renamed or exchanged")]
    CheckpointMisplaced {
        /// Which file.
        file: String,
        /// The size that it states.
        size: u64,
    },
    /// The newest checkpoint is older than others that are there.
    #[error(
        "{CHECKPOINT}: is the one at {size} entries, though one at {newest} was signed: an old file was put back"
    )]
    CheckpointOld {
        /// Its size.
        size: u64,
        /// The largest size of a checkpoint in `checkpoints/`.
        newest: u64,
    },
    /// The log is not a continuation of what the auditor saw before.
    #[error("the checkpoint seen before, at {size} entries, does not match this log: its past was rewritten")]
    NotAContinuation {
        /// The older checkpoint's size.
        size: u64,
    },
}

/// A part of a checkpoint's note.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotePart {
    /// Line 1, the log's origin.
    Origin,
    /// Line 2, the number of entries.
    Size,
    /// Line 3, the root.
    Root,
    /// The empty line before the signatures.
    Separator,
    /// A signature line; the text above it matches the entries.
    Signature,
}

impl fmt::Display for NotePart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Origin => "line 1 (origin)",
            Self::Size => "line 2 (size)",
            Self::Root => "line 3 (root)",
            Self::Separator => "line 4 (empty)",
            Self::Signature => "the signature line",
        })
    }
}

/// What verification of a log found.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// Whole entries in the file.
    pub entries: u64,
    /// The newest checkpoint whose signature holds.
    pub checkpoint: Option<Checkpoint>,
    /// Entries after that checkpoint: written, and not yet signed.
    pub unsigned_tail: u64,
    /// How many records of each kind there are.
    pub kinds: BTreeMap<&'static str, u64>,
    /// Signed checkpoints that were checked.
    pub checkpoints: u64,
    /// What the records add up to; up to the first record that is damaged.
    pub state: LedgerState,
    /// What is wrong, in the order of entries.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether a signed checkpoint covers the log and nothing is wrong.
    #[must_use]
    pub fn is_verified(&self) -> bool {
        self.checkpoint.is_some() && self.findings.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.checkpoint {
            Some(c) => writeln!(f, "log {} of {} entries, root {}", c.origin, c.size, c.root)?,
            None => writeln!(f, "no checkpoint with a signature that holds")?,
        }
        for (kind, count) in &self.kinds {
            writeln!(f, "  {count:>6} {kind}")?;
        }
        writeln!(f, "{} signed checkpoints checked, state {}", self.checkpoints, self.state.state_hash())?;
        if self.unsigned_tail > 0 {
            writeln!(f, "{} entries are not yet covered by a signed checkpoint", self.unsigned_tail)?;
        }
        for finding in &self.findings {
            writeln!(f, "ALTERED: {finding}")?;
        }
        f.write_str(if self.is_verified() { "verified" } else { "NOT VERIFIED" })
    }
}

struct Entry {
    start: usize,
    end: usize,
    leaf: RecordDigest,
    record: Result<Record, RecordError>,
}

impl Entry {
    fn kind(&self) -> Option<&'static str> {
        self.record.as_ref().ok().map(Record::kind)
    }
}

/// Recomputes everything: the hash of each record, every signed root, the rules, and, if the auditor kept an older
/// checkpoint, that the log continues it. Needs no server and no trust in whoever holds the files.
#[must_use]
pub fn verify_log(files: &LogFiles, key: &LedgerPublicKey, older: Option<&Checkpoint>) -> Report {
    let mut findings = Vec::new();
    let (leaves, leaves_rest) = files.leaves.as_chunks::<32>();
    let leaves: Vec<RecordDigest> = leaves.iter().map(|leaf| RecordDigest(Digest(*leaf))).collect();
    let entries = read_entries(&files.entries, &leaves, &mut findings);
    let from_entries = MerkleTree::from_leaves(&entries.iter().map(|e| e.leaf).collect::<Vec<_>>());
    let from_leaves = MerkleTree::from_leaves(&leaves);

    let notes = read_notes(files, key, &from_entries, &from_leaves, &mut findings);
    let newest = notes.iter().max_by_key(|note| note.size).cloned();
    let covered = newest.as_ref().map_or(0, |c| c.size);

    compare_leaves(&entries, &leaves, newest.as_ref(), (&from_entries, &from_leaves), &mut findings);
    if from_entries.size() < covered && !findings.iter().any(|f| matches!(f, Finding::NoEntry { .. })) {
        findings.push(Finding::EntriesMissing { from: from_entries.size(), to: covered });
    }
    let too_many = leaves.len() > entries.len().max(usize::try_from(covered).unwrap_or(usize::MAX));
    if (leaves.len() as u64) < covered || !leaves_rest.is_empty() || too_many {
        findings.push(Finding::LeafCount { expected: covered, got: files.leaves.len() });
    }
    if findings.is_empty() {
        check_roots(&notes, &from_entries, &mut findings);
    }
    if let Some(older) = older {
        let matches = [&from_entries, &from_leaves].iter().any(|t| t.root_at(older.size) == Some(older.root));
        if !matches || older.origin != key.origin() {
            findings.push(Finding::NotAContinuation { size: older.size });
        }
    }
    let (state, kinds) = replay(&entries, &mut findings);
    Report {
        entries: entries.len() as u64,
        checkpoint: newest,
        unsigned_tail: (entries.len() as u64).saturating_sub(covered),
        kinds,
        checkpoints: notes.len() as u64,
        state,
        findings,
    }
}

/// Cuts the file into entries. Where a length leads astray, the leaf hash tells how long the entry was.
fn read_entries(bytes: &[u8], leaves: &[RecordDigest], findings: &mut Vec<Finding>) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    let (mut offset, mut searches) = (0, 0);
    while offset < bytes.len() {
        let index = entries.len() as u64;
        let stated = next_entry(bytes, offset);
        let leaf = leaves.get(entries.len());
        let matches = |entry: &[u8]| leaf.is_none_or(|leaf| *leaf == leaf_hash(entry));
        let mut content = stated.filter(|entry| matches(entry));
        if let (None, Some(leaf)) = (content, leaf)
            && searches < MAX_LENGTH_SEARCHES
        {
            searches += 1;
            content = bytes.get(offset + 4..).and_then(|rest| find_prefix(rest, leaf));
            if let Some(content) = content {
                let kind = Record::decode(content).ok().map(|record| record.kind());
                findings.push(Finding::LengthAltered { index, kind, start: offset });
            }
        }
        let Some(content) = content.or(stated) else {
            findings.push(Finding::NoEntry { index, start: offset, bytes: bytes.len() - offset });
            break;
        };
        let (start, end) = (offset + 4, offset + 4 + content.len());
        entries.push(Entry { start, end, leaf: leaf_hash(content), record: Record::decode(content) });
        offset = end;
    }
    entries
}

/// The prefix of `bytes` that has this leaf hash.
fn find_prefix<'a>(bytes: &'a [u8], leaf: &RecordDigest) -> Option<&'a [u8]> {
    let mut hasher = Sha256::new().chain_update([0]);
    for (index, byte) in bytes.iter().take(MAX_RECORD_BYTES).enumerate() {
        hasher.update([*byte]);
        if leaf.0.0 == <[u8; 32]>::from(hasher.clone().finalize()) {
            return Some(&bytes[..=index]);
        }
    }
    None
}

/// Verifies every checkpoint's note; gives those that are signed.
fn read_notes(
    files: &LogFiles,
    key: &LedgerPublicKey,
    from_entries: &MerkleTree,
    from_leaves: &MerkleTree,
    findings: &mut Vec<Finding>,
) -> Vec<Checkpoint> {
    let mut notes = Vec::new();
    for (name, bytes) in &files.history {
        let file = format!("{HISTORY}/{name}");
        let named = name.parse::<u64>().ok();
        match verify_note(bytes, key) {
            Ok(checkpoint) if named == Some(checkpoint.size) => notes.push(checkpoint),
            Ok(checkpoint) => findings.push(Finding::CheckpointMisplaced { file, size: checkpoint.size }),
            Err(error) => {
                let size = named.unwrap_or(0);
                let part = altered_part(bytes, key, &[(from_entries, size), (from_leaves, size)]);
                findings.push(Finding::CheckpointAltered { file, part, error });
            }
        }
    }
    notes.sort_by_key(|checkpoint| checkpoint.size);
    match verify_note(&files.checkpoint, key) {
        Ok(checkpoint) => {
            if let Some(newest) = notes.last().filter(|newest| newest.size > checkpoint.size) {
                findings.push(Finding::CheckpointOld { size: checkpoint.size, newest: newest.size });
            }
            notes.push(checkpoint);
        }
        Err(error) => {
            // The newest in the history is the same note; without one, all entries are taken to be signed.
            let size = notes.last().map_or(from_entries.size(), |newest| newest.size);
            let part = altered_part(&files.checkpoint, key, &[(from_entries, size), (from_leaves, size)]);
            findings.push(Finding::CheckpointAltered { file: CHECKPOINT.to_owned(), part, error });
        }
    }
    notes
}

fn verify_note(bytes: &[u8], key: &LedgerPublicKey) -> Result<Checkpoint, CheckpointError> {
    let note = std::str::from_utf8(bytes).map_err(|_| CheckpointError::Malformed("UTF-8 text"))?;
    key.verify(note).map(|signed| signed.checkpoint().clone())
}

/// The first line that differs from what the log itself gives; the signature when none does.
fn altered_part(bytes: &[u8], key: &LedgerPublicKey, sources: &[(&MerkleTree, u64)]) -> NotePart {
    let lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
    let of_source = |(tree, size): &(&MerkleTree, u64)| {
        let root = tree.root_at(*size)?;
        let text = Checkpoint { origin: key.origin().to_owned(), size: *size, root }.text();
        let expected: Vec<&[u8]> = text.as_bytes().split(|byte| *byte == b'\n').collect();
        let parts = [NotePart::Origin, NotePart::Size, NotePart::Root, NotePart::Separator];
        let first = (0..4).find(|&line| lines.get(line) != expected.get(line));
        Some(first.map_or(NotePart::Signature, |line| parts[line]))
    };
    // When entries and leaf hashes disagree too, the source that explains more of the note is the right one.
    sources.iter().filter_map(of_source).max_by_key(|part| *part as u8).unwrap_or(NotePart::Signature)
}

/// Compares each entry with its leaf hash and lets the signed root decide who is right.
fn compare_leaves(
    entries: &[Entry],
    leaves: &[RecordDigest],
    newest: Option<&Checkpoint>,
    (from_entries, from_leaves): (&MerkleTree, &MerkleTree),
    findings: &mut Vec<Finding>,
) {
    let confirms = |tree: &MerkleTree| newest.is_some_and(|c| tree.root_at(c.size) == Some(c.root));
    let (entries_hold, leaves_hold) = (confirms(from_entries), confirms(from_leaves));
    for (index, (entry, leaf)) in (0u64..).zip(entries.iter().zip(leaves)) {
        if entry.leaf == *leaf {
            continue;
        }
        let kind = entry.kind();
        findings.push(match (entries_hold, leaves_hold) {
            (false, true) => Finding::EntryAltered { index, kind, start: entry.start, end: entry.end },
            (true, false) => Finding::LeafAltered { index, kind },
            _ => Finding::EntryOrLeaf { index, kind },
        });
    }
}

/// Entries and leaf hashes agree; now every signed root must too.
fn check_roots(notes: &[Checkpoint], tree: &MerkleTree, findings: &mut Vec<Finding>) {
    let mut sorted: Vec<&Checkpoint> = notes.iter().collect();
    sorted.sort_by_key(|checkpoint| checkpoint.size);
    let mut from = 0;
    for checkpoint in sorted {
        if tree.root_at(checkpoint.size) == Some(checkpoint.root) {
            from = checkpoint.size;
        } else {
            findings.push(Finding::Rewritten { from, to: checkpoint.size });
            return;
        }
    }
}

/// Applies the rules from the first record on; stops at the first that is damaged.
fn replay(entries: &[Entry], findings: &mut Vec<Finding>) -> (LedgerState, BTreeMap<&'static str, u64>) {
    let damaged = !findings.is_empty();
    let (mut state, mut kinds, mut sound) = (LedgerState::new(), BTreeMap::new(), true);
    for (index, entry) in (0u64..).zip(entries) {
        match &entry.record {
            Ok(record) => {
                *kinds.entry(record.kind()).or_insert(0) += 1;
                if sound && let Err(violation) = state.apply(record) {
                    sound = false;
                    // In a damaged log a broken rule may only follow from the damage, which is reported already.
                    if !damaged {
                        findings.push(Finding::Rule { index, kind: record.kind(), violation });
                    }
                }
            }
            Err(error) => {
                sound = false;
                if !damaged {
                    findings.push(Finding::NoRecord { index, error: error.clone() });
                }
            }
        }
    }
    (state, kinds)
}
