//! The log as files: writing, power cuts, and naming what was altered.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use common::{Disk, federation, key, registered, signer, story, written};
use medinet_ledger::directory::{Directory, read_log};
use medinet_ledger::verify::NotePart;
use medinet_ledger::{
    Checkpoint, CheckpointError, CheckpointSigner as _, Ed25519Signer, Finding, LedgerPublicKey, LogFiles,
    LogWriter, MerkleTree, Record, WriteError, leaf_hash, verify_inclusion, verify_log,
};
use medinet_types::{Digest, UnixMillis};

#[test]
fn an_untouched_log_verifies() {
    let log = written();
    let files = log.storage().log_files();
    let report = verify_log(&files, &key(), None);
    assert!(report.is_verified(), "{report}");
    assert_eq!((report.entries, report.unsigned_tail), (story().len() as u64, 0));
    assert_eq!(report.state.state_hash(), log.state().state_hash());
    assert_eq!(report.checkpoints, files.history.len() as u64 + 1);
    assert!(report.to_string().ends_with("verified") && !report.to_string().contains("NOT"));
    let signed = log.signed().unwrap().checkpoint().clone();
    for (index, record) in (0u64..).zip(story()) {
        assert_eq!(log.record(index).unwrap().unwrap(), record);
        let proof = log.inclusion_proof(index).unwrap();
        verify_inclusion(&record.digest().unwrap(), index, signed.size, &proof, &signed.root).unwrap();
        assert_eq!(log.find(&record.digest().unwrap()), Some(index));
    }
}

/// Start and end of each entry's content in `entries.log`.
fn spans(files: &LogFiles) -> Vec<(usize, usize)> {
    let (mut spans, mut offset) = (Vec::new(), 0);
    while offset < files.entries.len() {
        let length = u32::from_le_bytes(files.entries[offset..offset + 4].try_into().unwrap()) as usize;
        spans.push((offset + 4, offset + 4 + length));
        offset += 4 + length;
    }
    spans
}

fn only_finding(files: &LogFiles) -> Finding {
    let report = verify_log(files, &key(), None);
    assert!(!report.is_verified());
    assert_eq!(report.findings.len(), 1, "{report}");
    report.findings[0].clone()
}

#[test]
fn every_altered_byte_of_the_entries_is_named() {
    let files = written().storage().log_files();
    for (index, (start, end)) in (0u64..).zip(spans(&files)) {
        for position in start - 4..end {
            for mask in [0x01, 0x80] {
                let mut altered = files.clone();
                altered.entries[position] ^= mask;
                match only_finding(&altered) {
                    Finding::LengthAltered { index: got, kind, start: at } => {
                        assert!(position < start && got == index && at == start - 4, "{position}");
                        assert_eq!(kind, Some(story()[index as usize].kind()));
                    }
                    Finding::EntryAltered { index: got, start: from, end: to, .. } => {
                        assert!(
                            position >= start && got == index && (from, to) == (start, end),
                            "{position}"
                        );
                    }
                    other => panic!("byte {position} of entry {index}: {other}"),
                }
            }
        }
    }
}

#[test]
fn every_altered_byte_of_the_leaf_hashes_is_named() {
    let files = written().storage().log_files();
    for position in 0..files.leaves.len() {
        let mut altered = files.clone();
        altered.leaves[position] ^= 0x10;
        let index = position as u64 / 32;
        let kind = Some(story()[index as usize].kind());
        assert_eq!(only_finding(&altered), Finding::LeafAltered { index, kind });
    }
}

/// The line of a note that a byte belongs to; a line's own newline belongs to it.
fn part_of(note: &[u8], position: usize) -> NotePart {
    match note[..position].iter().filter(|b| **b == b'\n').count() {
        0 => NotePart::Origin,
        1 => NotePart::Size,
        2 => NotePart::Root,
        3 => NotePart::Separator,
        _ => NotePart::Signature,
    }
}

#[test]
fn every_altered_byte_of_every_checkpoint_is_named() {
    let files = written().storage().log_files();
    let notes = files.history.len();
    for which in 0..=notes {
        let bytes = if which == notes { files.checkpoint.clone() } else { files.history[which].1.clone() };
        for position in 0..bytes.len() {
            for mask in [0x01, 0x20] {
                let mut altered = files.clone();
                let (target, name) = match altered.history.get_mut(which) {
                    Some((name, note)) => (note, format!("checkpoints/{name}")),
                    None => (&mut altered.checkpoint, "checkpoint".to_owned()),
                };
                target[position] ^= mask;
                match only_finding(&altered) {
                    Finding::CheckpointAltered { file, part, .. } => {
                        assert_eq!((file, part), (name, part_of(&bytes, position)), "byte {position}");
                    }
                    other => panic!("byte {position} of {name}: {other}"),
                }
            }
        }
    }
}

#[test]
fn cuts_and_additions_are_named() {
    let files = written().storage().log_files();
    let spans = spans(&files);
    let (last, total) = (spans.len() as u64 - 1, spans.len() as u64);
    for cut in 1..40 {
        let mut altered = files.clone();
        altered.entries.truncate(files.entries.len() - cut);
        assert!(
            matches!(only_finding(&altered), Finding::NoEntry { index, .. } if index == last),
            "{cut} bytes"
        );
    }
    let mut altered = files.clone();
    altered.entries.truncate(spans[spans.len() - 2].0 - 4);
    assert_eq!(only_finding(&altered), Finding::EntriesMissing { from: total - 2, to: total });
    for bytes in [0, 31, 32, 33] {
        let mut altered = files.clone();
        altered.leaves.truncate(bytes);
        assert_eq!(only_finding(&altered), Finding::LeafCount { expected: total, got: bytes });
    }
    let mut altered = files.clone();
    altered.leaves.extend([7; 32]);
    assert!(matches!(only_finding(&altered), Finding::LeafCount { .. }));
    let mut altered = files.clone();
    altered.entries.extend([9, 0]);
    assert!(matches!(only_finding(&altered), Finding::NoEntry { index, bytes: 2, .. } if index == total));
    let mut altered = files.clone();
    altered.checkpoint = files.history.iter().find(|(name, _)| name == "3").unwrap().1.clone();
    assert_eq!(only_finding(&altered), Finding::CheckpointOld { size: 3, newest: total });
    let mut altered = files.clone();
    altered.history[0].0 = "7".to_owned();
    assert!(matches!(only_finding(&altered), Finding::CheckpointMisplaced { .. }));
}

#[test]
fn entries_that_are_not_signed_yet_are_counted_and_no_alteration() {
    let mut log = written();
    let size = story().len() as u64;
    let at = log.state().last_at();
    log.append(&Record { at, body: registered("south") }).unwrap();
    assert_eq!(log.inclusion_proof(size), None, "no proof before a checkpoint covers it");
    let report = verify_log(&log.storage().log_files(), &key(), None);
    assert!(report.is_verified(), "{report}");
    assert_eq!((report.entries, report.unsigned_tail), (size + 1, 1));
}

/// Rewrites entry 1 and its leaf hash, and signs anew with the ledger's own key whatever `resign` asks for.
fn rewritten(resign: impl Fn(u64) -> bool) -> LogFiles {
    let files = written().storage().log_files();
    let mut records = story();
    records[1].body = registered("south");
    let mut tree = MerkleTree::new();
    let mut altered = LogFiles { entries: vec![], leaves: vec![], ..files.clone() };
    for record in &records {
        let entry = record.encode().unwrap();
        altered.entries.extend((entry.len() as u32).to_le_bytes());
        altered.entries.extend(&entry);
        altered.leaves.extend(leaf_hash(&entry).0.0);
        tree.push(leaf_hash(&entry));
    }
    let note = |size: u64| {
        let root = tree.root_at(size).unwrap();
        let checkpoint = Checkpoint { origin: key().origin().to_owned(), size, root };
        checkpoint.sign(&signer()).unwrap().note().as_bytes().to_vec()
    };
    for (name, bytes) in &mut altered.history {
        let size = name.parse().unwrap();
        if resign(size) {
            *bytes = note(size);
        }
    }
    if resign(tree.size()) {
        altered.checkpoint = note(tree.size());
    }
    altered
}

#[test]
fn an_entry_rewritten_with_its_leaf_hash_is_located_between_checkpoints() {
    assert_eq!(only_finding(&rewritten(|_| false)), Finding::Rewritten { from: 0, to: 3 });
    assert!(matches!(only_finding(&rewritten(|size| size > 3)), Finding::Rewritten { from: 0, to: 3 }));
}

#[test]
fn even_the_operator_cannot_rewrite_what_an_auditor_saw() {
    let honest = written();
    let seen = honest.signed().unwrap().checkpoint().clone();
    let files = rewritten(|_| true);
    // The operator broke a rule too (west never registered, but closed a round): without it only the checkpoint tells.
    let report = verify_log(&files, &key(), Some(&seen));
    assert!(report.findings.contains(&Finding::NotAContinuation { size: seen.size }), "{report}");
    assert!(verify_log(&honest.storage().log_files(), &key(), Some(&seen)).is_verified());
}

#[test]
fn a_record_that_breaks_a_rule_is_found_though_it_is_signed() {
    let report = verify_log(&rewritten(|_| true), &key(), None);
    assert!(matches!(report.findings[..], [Finding::Rule { .. }]), "{report}");
}

#[test]
fn another_key_verifies_nothing() {
    let stranger = Ed25519Signer::from_seed(&[1; 32]).unwrap();
    let other = LedgerPublicKey::new(&federation(), stranger.public_key());
    let report = verify_log(&written().storage().log_files(), &other, None);
    assert!(!report.is_verified() && report.checkpoint.is_none());
}

#[test]
fn a_power_cut_at_any_byte_loses_nothing_that_was_signed() {
    let total: usize = written().storage().files.values().map(Vec::len).sum::<usize>() + 2000;
    let records = story();
    for budget in (0..total).step_by(7) {
        let mut disk = Disk { budget: Some(budget), ..Disk::default() };
        let mut promised = 0;
        if let Ok(mut log) = LogWriter::open(disk.clone(), key()) {
            for record in &records {
                if log.append(record).is_err() {
                    assert!(matches!(log.append(record), Err(WriteError::Poisoned)));
                    break;
                }
                if log.sign(&signer()).is_err() {
                    break;
                }
                promised = log.state().records();
            }
            disk = log.into_storage();
        }
        disk.budget = None;
        let mut log = LogWriter::open(disk, key()).unwrap();
        assert!(log.state().records() >= promised, "budget {budget}");
        // Goes on where it stopped; what was appended before is noticed by its leaf hash.
        for record in &records {
            if log.find(&record.digest().unwrap()).is_none() {
                log.append(record).unwrap();
            }
        }
        log.sign(&signer()).unwrap();
        let report = verify_log(&log.storage().log_files(), &key(), None);
        assert!(report.is_verified() && report.entries == records.len() as u64, "budget {budget}: {report}");
        assert_eq!(log.state().state_hash(), written().state().state_hash());
    }
}

#[test]
fn opening_never_repairs_what_was_signed() {
    let disk = written().into_storage();
    for file in ["entries.log", "leaves", "checkpoint"] {
        for position in (0..disk.files[file].len()).step_by(11) {
            let mut altered = disk.clone();
            altered.files.get_mut(file).unwrap()[position] ^= 1;
            let result = LogWriter::open(altered, key());
            assert!(
                matches!(result, Err(WriteError::Damaged(_) | WriteError::Checkpoint(_))),
                "byte {position} of {file}"
            );
        }
    }
}

#[test]
fn a_forbidden_record_is_not_written() {
    let mut log = written();
    let before = log.storage().files.clone();
    let late = Record { at: UnixMillis(0), body: registered("south") };
    assert!(matches!(log.append(&late), Err(WriteError::Rule(_))));
    assert_eq!(log.storage().files, before);
    let stranger = Ed25519Signer::from_seed(&[1; 32]).unwrap();
    log.append(&Record { at: log.state().last_at(), body: registered("south") }).unwrap();
    assert!(matches!(log.sign(&stranger), Err(WriteError::Checkpoint(_))));
    log.sign(&signer()).unwrap();
}

#[test]
fn a_directory_on_a_real_disk() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger");
    for chunk in story().chunks(4) {
        let mut log = LogWriter::open(Directory::create(&path).unwrap(), key()).unwrap();
        for record in chunk {
            log.append(record).unwrap();
        }
        log.sign(&signer()).unwrap();
    }
    let files = read_log(&path).unwrap();
    let report = verify_log(&files, &key(), None);
    assert!(report.is_verified(), "{report}");
    assert_eq!(report.state.state_hash(), written().state().state_hash());
    assert!(read_log(&folder.path().join("none")).is_err());
}

#[test]
fn a_site_follows_the_log_and_notices_a_fork() {
    let mut log = LogWriter::open(Disk::default(), key()).unwrap();
    let mut seen: Option<Checkpoint> = None;
    for record in story() {
        log.append(&record).unwrap();
        log.sign(&signer()).unwrap();
        let proof = log.consistency_proof(seen.as_ref().map_or(0, |c| c.size)).unwrap();
        let note = log.signed().unwrap().note().to_owned();
        seen = Some(key().advance(seen.as_ref(), &note, &proof).unwrap().checkpoint().clone());
    }
    let seen = seen.unwrap();
    let note = log.signed().unwrap().note().to_owned();
    key().advance(Some(&seen), &note, &[]).unwrap();
    let early = log.storage().files["checkpoints/3"].clone();
    let early = String::from_utf8(early).unwrap();
    assert!(matches!(key().advance(Some(&seen), &early, &[]), Err(CheckpointError::Rollback { .. })));
    let forked = String::from_utf8(rewritten(|_| true).checkpoint).unwrap();
    assert!(matches!(key().advance(Some(&seen), &forked, &[]), Err(CheckpointError::Inconsistent(_))));
    let longer = Checkpoint { origin: seen.origin.clone(), size: seen.size + 1, root: Digest::of(b"x") };
    let longer = longer.sign(&signer()).unwrap();
    assert!(key().advance(Some(&seen), longer.note(), &[]).is_err());
}

#[test]
fn keys_and_notes_read_back() {
    let text = key().to_string();
    assert_eq!(text.parse::<LedgerPublicKey>().unwrap(), key());
    for position in 0..text.len() {
        let mut bytes = text.clone().into_bytes();
        bytes[position] = if bytes[position] == b'x' { b'y' } else { b'x' };
        assert!(
            String::from_utf8(bytes).unwrap().parse::<LedgerPublicKey>().is_err(),
            "character {position}"
        );
    }
    let log = written();
    let note = log.signed().unwrap().note();
    assert_eq!(&key().verify(note).unwrap(), log.signed().unwrap());
    let cosigned = format!("{note}\u{2014} witness.example AAAAAAECAwQ=\n");
    assert_eq!(key().verify(&cosigned).unwrap().checkpoint(), log.signed().unwrap().checkpoint());
    let unsigned = note.split_once("\n\n").unwrap().0;
    let witness_only = format!("{unsigned}\n\n\u{2014} witness.example AAAAAAECAwQ=\n");
    assert!(matches!(key().verify(&witness_only), Err(CheckpointError::Unsigned(_))));
    assert!(matches!(key().verify(&"x".repeat(20_000)), Err(CheckpointError::TooLong(_))));
}
