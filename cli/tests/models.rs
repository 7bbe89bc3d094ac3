//! `medinet model` on the registry of a task that ran.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a step that fails fails the test")]

#[path = "../../aggregator/crates/store/tests/support/mod.rs"]
mod support;

use medinet_rounds::{Coordinator, Effect, Input};
use medinet_store::Store;
use medinet_types::{ModelVersion, UnixMillis};
use medinet_wire::message::{FromAggregatorToAll, RoundPlan};
use std::path::Path;
use std::process::{Command, Output};
use support::{SITES, answer, plan, site, task, update};

/// Runs a whole task into a store, without disturbance; the store stays open, as an aggregator's is.
fn ran(folder: &Path) -> Store {
    let mut store = Store::open(folder).unwrap();
    let mut coordinator = Coordinator::new(plan()).unwrap();
    let (mut now, mut round): (u64, Option<RoundPlan>) = (1_700_000_000_000, None);
    let mut effects = coordinator.handle(UnixMillis(now), Input::Start);
    loop {
        for effect in std::mem::take(&mut effects) {
            match effect {
                Effect::Persist(commit) => {
                    store.commit(&commit, &[]).unwrap();
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

fn medinet(folder: &Path, line: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_medinet"))
        .args(line.split_whitespace())
        .arg("--aggregator-data")
        .arg(folder)
        .output()
        .unwrap()
}

#[track_caller]
fn done(folder: &Path, line: &str) -> String {
    let output = medinet(folder, line);
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn versions_lineage_and_metrics_are_told_while_the_aggregator_runs() {
    let folder = tempfile::tempdir().unwrap();
    let store = ran(folder.path());
    let models = store.models(&task()).unwrap();

    let list = done(folder.path(), "model list");
    assert!(list.starts_with("pneumonia: 5 models\n  version 0  "), "{list}");
    let versions: Vec<&str> = list.lines().filter(|line| line.starts_with("  version")).collect();
    assert_eq!(versions.len(), 5, "{list}");
    assert!(versions[0].ends_with("2023-11-14  initial"), "{list}");
    let base = models[3].model.digest.short();
    assert!(
        versions[4].ends_with(&format!(" from {base} by site-0, site-1, site-2 (600 examples), released")),
        "{list}"
    );
    let released: Vec<usize> = (0..5).filter(|v| versions[*v].ends_with(", released")).collect();
    assert_eq!(released, [2, 4]);
    // Each measured candidate has a line for each site.
    assert_eq!(list.lines().filter(|line| line.starts_with("    site-")).count(), 2 * SITES, "{list}");

    let card = store.model_card(&task(), ModelVersion(2)).unwrap();
    let metrics = card.measurements[0].metrics.as_ref().unwrap();
    let shown = done(folder.path(), "model show --task pneumonia --version 2");
    assert!(shown.contains(&format!("accuracy {:.4}", metrics.accuracy)), "{shown}");
    assert!(shown.contains("\n    lineage: 2 from 1 from 0\n"), "{shown}");
    assert!(shown.contains(&format!("\n    digest {}\n", card.model.model.digest)), "{shown}");

    let newest = done(folder.path(), "model show --task pneumonia --json");
    let newest: serde_json::Value = serde_json::from_str(&newest).unwrap();
    assert_eq!(newest["model"]["model"]["version"], 4);
    assert_eq!(newest["lineage"].as_array().unwrap().len(), 5);
}

#[test]
fn what_is_not_there_is_said() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(medinet(folder.path(), "model list").status.code(), Some(1));
    let _store = ran(folder.path());
    for line in
        ["model show --task other", "model show --task pneumonia --version 9", "model list --task other"]
    {
        let output = medinet(folder.path(), line);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{line}");
    }
}
