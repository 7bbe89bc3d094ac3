#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use super::*;
use medinet_types::{DatasetDigest, ModelDigest, TaskId};
use std::os::unix::fs::PermissionsExt as _;

fn federation() -> FederationId {
    FederationId::new("chest").unwrap()
}

fn signer() -> Ed25519Signer {
    Ed25519Signer::from_seed(&[3; 32]).unwrap()
}

fn records() -> Vec<Record> {
    let task = TaskId::new("pneumonia").unwrap();
    let started = RecordBody::TaskStarted {
        task: task.clone(),
        spec: Digest::of(b"spec"),
        model: ModelDigest(Digest::of(b"model")),
    };
    let dataset = |name: &str| RecordBody::DatasetRegistered {
        task: task.clone(),
        site: SiteId::new(name).unwrap(),
        manifest: DatasetDigest(Digest::of(name.as_bytes())),
        images_per_class: vec![10, 20],
        envelope: Digest::of(b"envelope"),
    };
    let bodies = [started, dataset("north"), dataset("south"), dataset("west")];
    (1..).zip(bodies).map(|(at, body)| Record { at: UnixMillis(at), body }).collect()
}

#[test]
fn a_kill_at_any_point_of_the_append_leaves_each_entry_there_once() {
    // How many entries an earlier run appended, whether it signed them, and whether it noted that.
    for appended in 0..=4 {
        for (signed, noted) in [(false, false), (true, false), (true, true)] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("ledger");
            let mut store = Store::open(folder.path().join("data")).unwrap();
            for record in records() {
                store.queue_ledger_entry(record.encode().unwrap()).unwrap();
            }
            {
                let directory = Directory::create(&path).unwrap();
                let key = LedgerPublicKey::new(&federation(), signer().public_key());
                let mut log = LogWriter::open(directory, key).unwrap();
                for record in &records()[..appended] {
                    log.append(record).unwrap();
                }
                if signed {
                    log.sign(&signer()).unwrap();
                }
                if noted {
                    store.ledger_appended(appended as u64).unwrap();
                }
            }
            let mut ledger = Ledger::open(&path, &federation(), signer()).unwrap();
            let fresh = ledger.append_waiting(&mut store).unwrap();
            assert_eq!(fresh, !(signed && appended == 4), "{appended} {signed} {noted}");
            let leaves: Vec<_> = records().iter().map(|record| record.digest().unwrap()).collect();
            assert_eq!((0..5).filter_map(|index| ledger.leaf(index)).collect::<Vec<_>>(), leaves);
            assert!(!ledger.append_waiting(&mut store).unwrap(), "nothing is left to do");
            assert!(store.pending_ledger_entries(4, 10).unwrap().is_empty());
        }
    }
}

#[test]
fn what_the_rules_forbid_is_found_before_it_is_queued() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(folder.path(), &federation(), signer()).unwrap();
    let records = records();
    ledger.admits(&records).unwrap();
    assert!(matches!(ledger.admits(&records[..1]), Ok(())), "asking changes nothing");
    let twice = [&records[0], &records[0]];
    assert!(matches!(ledger.admits(twice), Err(RuleViolation::TaskStartedTwice(_))));
}

#[test]
fn the_key_is_made_once_kept_private_and_published() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.key");
    // What a kill while the key was made may have left.
    fs::write(path.with_extension("new"), "half a k").unwrap();
    let made = load_or_make_key(&path).unwrap().public_key();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read_to_string(&path).unwrap().len(), 64);
    assert_eq!(load_or_make_key(&path).unwrap().public_key(), made);
    let published = fs::read_to_string(folder.path().join("ledger.pub")).unwrap();
    assert_eq!(published, format!("{}\n", hex::encode(made)));

    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let error = load_or_make_key(&path).err().unwrap().to_string();
    assert!(error.contains("readable by its owner alone"), "{error}");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&path, "no key").unwrap();
    let error = load_or_make_key(&path).err().unwrap().to_string();
    assert!(error.contains("64 hexadecimal digits") && !error.contains("no key"), "{error}");
}
