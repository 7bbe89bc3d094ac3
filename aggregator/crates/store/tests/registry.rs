//! The registry, the ledger outbox and the rules of opening, on a task that ran.

#![allow(clippy::unwrap_used, reason = "helpers of tests, outside test functions")]

mod support;

use medinet_rounds::{Coordinator, Effect, Input, RoundRecord};
use medinet_store::{SCHEMA_VERSION, Store, StoreError};
use medinet_types::{DatasetDigest, Digest, ModelVersion, RoundNumber, TaskId, UnixMillis};
use medinet_wire::message::{DatasetRegistration, FromAggregatorToAll, RoundPlan};
use std::path::Path;
use support::{SITES, answer, plan, site, task, update};

/// Runs a whole task into a store, without disturbance.
fn ran(folder: &Path) -> Store {
    let mut store = Store::open(folder).unwrap();
    let mut coordinator = Coordinator::new(plan()).unwrap();
    let (mut now, mut round): (u64, Option<RoundPlan>) = (1_000, None);
    let mut effects = coordinator.handle(UnixMillis(now), Input::Start);
    loop {
        for effect in std::mem::take(&mut effects) {
            match effect {
                Effect::Persist(commit) => {
                    let entries: Vec<Vec<u8>> =
                        commit.records.iter().map(|r| format!("{r:?}").into_bytes()).collect();
                    store.commit(&commit, &entries).unwrap();
                }
                Effect::Broadcast(FromAggregatorToAll::Announce(plan)) => round = Some(plan),
                Effect::Finished { .. } => return store,
                _ => {}
            }
        }
        let open = round.clone().expect("a round is open until the task is finished");
        for n in 0..SITES {
            now += 1;
            let given = Input::Site { from: site(n), message: answer(n, &open) };
            for effect in coordinator.handle(UnixMillis(now), given) {
                if let Effect::Fetch { manifest, .. } = effect {
                    let (_, bytes) = update(n, &open);
                    let given = Input::UpdateArrived { blob: manifest.digest, bytes: &bytes };
                    effects.extend(coordinator.handle(UnixMillis(now), given));
                } else {
                    effects.push(effect);
                }
            }
        }
    }
}

#[test]
fn the_registry_tells_versions_lineage_and_metrics() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = ran(folder.path());
    let task = task();

    let tasks = store.tasks().unwrap();
    assert_eq!(
        (tasks.len(), tasks[0].newest, tasks[0].released),
        (1, ModelVersion(4), Some(ModelVersion(4)))
    );
    let models = store.models(&task).unwrap();
    assert_eq!(models.len(), 5);
    assert_eq!(models[0].base, None);
    for (parent, child) in models.iter().zip(&models[1..]) {
        assert_eq!(child.base, Some(parent.model.digest));
    }
    let released: Vec<u32> = models.iter().filter(|m| m.released).map(|m| m.model.version.0).collect();
    assert_eq!(released, [2, 4]);

    let contributions = store.contributions(&task, Some(RoundNumber(1))).unwrap();
    let by: Vec<(String, u64)> = contributions.iter().map(|c| (c.site.to_string(), c.examples)).collect();
    assert_eq!(by, [("site-0".into(), 100), ("site-1".into(), 200), ("site-2".into(), 300)]);
    assert_eq!(contributions[0].base_metrics, Some(support::metrics(0.6)));
    assert_eq!(contributions[1].base_metrics, None);
    assert!(contributions.iter().all(|c| c.update_bytes > 0));
    assert_eq!(store.contributions(&task, None).unwrap().len(), 4 * SITES);

    store.site_seen(&site(0), UnixMillis(5)).unwrap();
    store.site_seen(&site(0), UnixMillis(3)).unwrap();
    let sites = store.sites().unwrap();
    assert_eq!((sites[0].first_seen, sites[0].last_seen), (UnixMillis(5), UnixMillis(5)));

    let lineage = store.lineage(&task, ModelVersion(3)).unwrap();
    let versions: Vec<u32> = lineage.iter().map(|step| step.model.model.version.0).collect();
    assert_eq!(versions, [3, 2, 1, 0]);
    assert_eq!(lineage[0].contributions.len(), SITES);
    assert!(lineage[3].contributions.is_empty());

    let card = store.model_card(&task, ModelVersion(4)).unwrap();
    assert_eq!(card.measurements.len(), SITES);
    assert_eq!(
        card.measurements.iter().filter(|m| m.metrics.is_none()).count(),
        1,
        "one site keeps its metrics"
    );
    let verdict = card.verdict.unwrap().verdict;
    assert_eq!((verdict.median_auroc, verdict.reporting, verdict.withheld), (Some(0.75), 2, 1));
    assert!(card.release.unwrap().bundle.is_none());
    let unknown = store.model_card(&task, ModelVersion(9));
    assert!(matches!(unknown, Err(StoreError::NoSuchModel { .. })));
    let other = TaskId::new("other").unwrap();
    assert!(store.models(&other).unwrap().is_empty() && store.snapshot(&other).unwrap().is_none());

    let history = store.history(&task, 3).unwrap();
    assert_eq!(history.len(), 3);
    assert!(matches!(history[2].record, RoundRecord::TaskFinished { .. }));
    assert_eq!(store.snapshot(&task).unwrap().unwrap().model().version, ModelVersion(4));
}

#[test]
fn ledger_entries_are_numbered_without_gaps_and_handed_out_until_appended() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = ran(folder.path());
    let all = store.pending_ledger_entries(0, u32::MAX).unwrap();
    assert!(all.iter().zip(0..).all(|(entry, index)| entry.index == index));
    let size = all.len() as u64;

    let registration = |content: &[u8]| DatasetRegistration {
        task: task(),
        manifest: DatasetDigest(Digest::of(content)),
        images_per_class: vec![120, 80],
    };
    let mut register = |n, content: &[u8]| {
        store
            .register_dataset(&site(n), &registration(content), UnixMillis(9), || b"data set".to_vec())
            .unwrap()
    };
    assert_eq!(register(0, b"a"), size);
    assert_eq!(register(0, b"a"), size, "the same again queues nothing");
    assert_eq!(register(1, b"a"), size + 1);
    assert_eq!(register(0, b"b"), size + 2, "newer data");
    let rows = store.datasets(&task()).unwrap();
    assert_eq!((rows.len(), rows[0].ledger_index, rows[1].ledger_index), (2, size + 2, size + 1));
    assert_eq!(rows[0].images_per_class, [120, 80]);

    let version = ModelVersion(2);
    let entry = || b"release".to_vec();
    assert_eq!(store.queue_release_entry(&task(), version, entry).unwrap(), size + 3);
    assert_eq!(store.queue_release_entry(&task(), version, entry).unwrap(), size + 3);
    assert!(store.queue_release_entry(&task(), ModelVersion(1), entry).is_err(), "was not released");
    let bundle = store.models(&task()).unwrap()[2].model.parameters.clone();
    store.release_bundled(&task(), version, &bundle).unwrap();
    let release = &store.releases(&task()).unwrap()[0];
    assert_eq!((release.bundle.as_ref(), release.ledger_index), (Some(&bundle), Some(size + 3)));

    // A kill after appending three entries and before noting it: the log's size says where to go on.
    assert_eq!(store.pending_ledger_entries(3, 1).unwrap()[0].index, 3);
    store.ledger_appended(3).unwrap();
    drop(store);
    let mut store = Store::open(folder.path()).unwrap();
    assert!(matches!(store.pending_ledger_entries(2, 1), Err(StoreError::ForeignLedger { .. })));
    assert!(matches!(store.ledger_appended(size + 5), Err(StoreError::ForeignLedger { .. })));
    let total = size + 4;
    assert_eq!(store.pending_ledger_entries(3, u32::MAX).unwrap().len() as u64, total - 3);
    store.ledger_appended(total).unwrap();
    assert!(store.pending_ledger_entries(total, 9).unwrap().is_empty());
    assert_eq!(
        store.queue_ledger_entry(b"more".to_vec()).unwrap(),
        total,
        "numbers go on when the queue is empty"
    );
}

#[test]
fn one_writes_and_others_read() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(Store::open_read_only(folder.path()), Err(StoreError::NotReady { .. })));
    let mut writer = Store::open(folder.path()).unwrap();
    assert!(matches!(Store::open(folder.path()), Err(StoreError::InUse { .. })));
    let mut reader = Store::open_read_only(folder.path()).unwrap();
    writer.site_seen(&site(0), UnixMillis(1)).unwrap();
    assert_eq!(reader.sites().unwrap().len(), 1);
    assert!(reader.site_seen(&site(1), UnixMillis(1)).is_err(), "read only");
    drop(writer);
    Store::open(folder.path()).unwrap();
}

#[test]
fn a_newer_schema_is_not_touched() {
    let folder = tempfile::tempdir().unwrap();
    drop(Store::open(folder.path()).unwrap());
    let database = rusqlite::Connection::open(folder.path().join("aggregator.sqlite")).unwrap();
    database.execute("INSERT INTO migrations (version) VALUES (?1)", [SCHEMA_VERSION + 1]).unwrap();
    drop(database);
    for opened in [Store::open(folder.path()), Store::open_read_only(folder.path())] {
        let error = opened.unwrap_err();
        assert!(matches!(error, StoreError::NewerSchema { .. }), "{error}");
    }
}

#[test]
fn a_failed_commit_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Store::open(folder.path()).unwrap();
    let mut coordinator = Coordinator::new(plan()).unwrap();
    let effects = coordinator.handle(UnixMillis(1), Input::Start);
    let commit = effects.iter().find_map(|effect| match effect {
        Effect::Persist(commit) => Some(commit.clone()),
        _ => None,
    });
    let commit = commit.unwrap();
    store.commit(&commit, &[b"one".to_vec()]).unwrap();
    let before = store.history(&task(), 100).unwrap();
    // The same model again breaks the models' primary key in the middle of the transaction.
    assert!(matches!(store.commit(&commit, &[b"two".to_vec()]), Err(StoreError::Database { .. })));
    assert_eq!(store.history(&task(), 100).unwrap(), before);
    assert_eq!(store.pending_ledger_entries(0, 100).unwrap().len(), 1);
}

#[test]
fn damaged_rows_are_named() {
    let folder = tempfile::tempdir().unwrap();
    drop(ran(folder.path()));
    let database = rusqlite::Connection::open(folder.path().join("aggregator.sqlite")).unwrap();
    database.execute("UPDATE contributions SET base_metrics = '{}' WHERE site = 'site-0'", []).unwrap();
    database.execute("UPDATE tasks SET snapshot = x'01ff'", []).unwrap();
    drop(database);
    let store = Store::open_read_only(folder.path()).unwrap();
    let error = store.contributions(&task(), None).unwrap_err().to_string();
    assert!(error.contains("contributions.base_metrics"), "{error}");
    assert!(matches!(store.snapshot(&task()), Err(StoreError::Snapshot(_))));
}
