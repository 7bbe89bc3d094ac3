//! kill -9 at random moments: nothing lost, nothing twice.

use super::cstore::{cstore_settings, storescu};
use super::folder::folder_settings;
use super::support::{
    FolderSink, Orthanc, Process, corpus, drop_into, files_under, free_port, pass, settings_for, store_each,
    wait_until,
};
use medinet_pacs::{Delivery, Intake, PacsSettings, Sink as _};
use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

const KILLS: u32 = 25;

/// The same settings in the child and in the test, from what both know.
fn settings(dir: &Path, pacs_port: u16, cstore_port: u16) -> PacsSettings {
    let mut settings = cstore_settings();
    settings.cstore.as_mut().unwrap().listen = SocketAddr::from(([127, 0, 0, 1], cstore_port));
    settings.dicomweb = Some(settings_for(&format!("http://127.0.0.1:{pacs_port}/dicom-web"), dir));
    settings.folder = Some(folder_settings(&dir.join("watched")));
    settings
}

#[test]
#[ignore = "the process that the kill test starts and kills; does nothing by itself"]
fn child() {
    let Ok(arguments) = std::env::var("MEDINET_PACS_CHILD") else { return };
    let (dir, ports) = arguments.split_once('|').unwrap();
    let (pacs_port, cstore_port) = ports.split_once('|').unwrap();
    let dir = Path::new(dir);
    let settings = settings(dir, pacs_port.parse().unwrap(), cstore_port.parse().unwrap());
    // Dies by itself just after it stored so many objects, before the intake hears of it: the moment that makes an
    // object come twice.
    let die_after = std::env::var("MEDINET_PACS_DIE_AFTER").ok().and_then(|count| count.parse::<u32>().ok());
    let mut folder = FolderSink::new(dir.join("sink"));
    let mut stored = 0;
    let sink = move |delivery: Delivery| {
        std::thread::sleep(Duration::from_millis(5));
        let outcome = folder.accept(delivery);
        stored += 1;
        if Some(stored) == die_after {
            std::process::abort();
        }
        outcome
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let intake = Intake::open(settings, &dir.join("data"), sink).unwrap();
        intake.run(CancellationToken::new()).await.unwrap();
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_random_moments_it_loses_nothing_and_takes_nothing_twice() {
    let orthanc = Orthanc::start();
    let dir = tempfile::tempdir().unwrap();
    let watched = dir.path().join("watched");
    fs::create_dir_all(&watched).unwrap();
    let cstore_port = free_port();

    // Three sources with objects of their own.
    let synthetic = &corpus().synthetic;
    let named = |prefixes: &[&str]| -> Vec<PathBuf> {
        let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        synthetic
            .iter()
            .filter(|path| prefixes.iter().any(|prefix| name(path).starts_with(prefix)))
            .cloned()
            .collect()
    };
    let (pulled, pushed, dropped) = (named(&["long", "mr", "sc"]), named(&["ct"]), named(&["x"]));
    assert_eq!(pulled.len() + pushed.len() + dropped.len(), synthetic.len());
    let (pulled, left) = store_each(&orthanc, &[pulled, corpus().real.clone()].concat()).await;
    assert!(left.len() >= 20, "{}", left.len());
    // What the PACS refuses, or holds to be an object that it has, comes by the folder: every file has a way in.
    let dropped = [dropped, corpus().broken.clone(), left].concat();
    let files = pulled.len() + pushed.len() + dropped.len();
    assert_eq!(files, synthetic.len() + corpus().broken.len() + corpus().real.len());

    let start = |die_after: u32| {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["kill::child", "--exact", "--ignored", "--nocapture"])
            .env("MEDINET_PACS_CHILD", format!("{}|{}|{cstore_port}", dir.path().display(), orthanc.port))
            .env("MEDINET_PACS_DIE_AFTER", die_after.to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Process(child)
    };

    // Peers push, and push again what was not acknowledged, while files come into the folder one by one.
    let (kills, child) = std::thread::scope(|scope| {
        scope.spawn(|| {
            let address = SocketAddr::from(([127, 0, 0, 1], cstore_port));
            for file in &pushed {
                wait_until("a peer's object gets through", || {
                    storescu(address, "PACS", "MEDINET", std::slice::from_ref(file)).status.success()
                });
            }
        });
        scope.spawn(|| {
            for (index, file) in dropped.iter().enumerate() {
                drop_into(&watched, file, &format!("{index}.dcm"));
                std::thread::sleep(Duration::from_millis(40));
            }
        });
        let mut kills = 0;
        let sink = FolderSink::new(dir.path().join("sink"));
        let mut stages = BTreeSet::new();
        for round in 0..KILLS {
            // Every third dies by itself in the middle of a delivery.
            let mut child = start(if round % 3 == 2 { 1 + round / 3 } else { u32::MAX });
            if round == 2 || round == 5 {
                // Early, while there is work: these get the time that they need to die.
                // On a slow machine the objects that it needs may come late; it is killed like the others then.
                let given_up = Instant::now() + Duration::from_secs(20);
                while child.0.try_wait().unwrap().is_none() && Instant::now() < given_up {
                    std::thread::sleep(Duration::from_millis(20));
                }
            } else {
                // From before the ledger is open to well into the work.
                let pause = 15 + (u64::from(round) * 7919 + u64::from(rand::random::<u16>())) % 400;
                std::thread::sleep(Duration::from_millis(pause));
            }
            // std's kill is SIGKILL.
            child.0.kill().unwrap();
            child.0.wait().unwrap();
            kills += 1;
            stages.insert(sink.objects().len());
        }
        assert!(stages.len() >= 8, "the kills fell into the work: {stages:?}");
        // Left alone, it finishes what is left of the folder; the peer that was cut off gets its objects through.
        let child = start(u32::MAX);
        wait_until("the folder is empty", || {
            files_under(&watched).iter().all(|path| {
                path.starts_with(watched.join("done")) || path.starts_with(watched.join("quarantine"))
            })
        });
        (kills, child)
    });
    drop(child);

    let sink = FolderSink::new(dir.path().join("sink"));
    let settings = settings(dir.path(), orthanc.port, cstore_port);
    let (progress, reasons) = pass(settings.clone(), &dir.path().join("data"), sink.clone()).await;
    println!("{kills} kills: {progress:?}, calls {:?}\n{reasons:#?}", sink.calls());
    assert_eq!(
        (progress.discovered, progress.ingested + progress.quarantined),
        (files as u64, files as u64),
        "every file has a verdict, none has two"
    );
    assert_eq!(
        progress.ingested - progress.repeats,
        sink.objects().len() as u64,
        "the sink has what the ledger says"
    );
    assert!(sink.objects().len() >= synthetic.len());
    let (calls, repeats) = sink.calls();
    // A death between storing and counting leaves one uncounted.
    assert!(calls - repeats <= sink.objects().len(), "no object was stored twice");
    assert!(repeats >= 1, "a death between the sink's storing and the ledger's noting was among them");
    assert!(repeats <= kills as usize, "an object is offered again only when a kill came between");
    let (done, set_aside) = (files_under(&watched.join("done")), files_under(&watched.join("quarantine")));
    let names: BTreeSet<_> =
        done.iter().chain(&set_aside).map(|path| path.file_name().unwrap().to_owned()).collect();
    assert_eq!(
        (done.len() + set_aside.len(), names.len()),
        (dropped.len(), dropped.len()),
        "no file is lost"
    );

    // What an undisturbed run over the same files gives is what the killed one gave. Of several files that claim one
    // SOPInstanceUID the first to come is taken, so it is the instances that are compared.
    let calm = tempfile::tempdir().unwrap();
    fs::create_dir_all(calm.path().join("watched")).unwrap();
    for (index, file) in pushed.iter().chain(&dropped).enumerate() {
        drop_into(&calm.path().join("watched"), file, &format!("{index}.dcm"));
    }
    let calm_sink = FolderSink::new(calm.path().join("sink"));
    let mut calm_settings = settings;
    calm_settings.folder = Some(folder_settings(&calm.path().join("watched")));
    let (calm, _) = pass(calm_settings, &calm.path().join("data"), calm_sink.clone()).await;
    assert_eq!(calm.ingested + calm.quarantined, files as u64);
    assert_eq!(sink.objects().len(), calm_sink.objects().len());
}
