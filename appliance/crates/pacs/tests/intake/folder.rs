//! The watched folder.

use super::support::{FolderSink, corpus, files_under};
use medinet_pacs::{FolderSettings, Intake, PacsSettings};
use medinet_types::HumanDuration;
use std::fs;
use std::path::Path;
use std::time::Duration;

pub(crate) fn folder_settings(path: &Path) -> FolderSettings {
    let mut folder = FolderSettings::new(path);
    folder.settle = HumanDuration(Duration::from_millis(20));
    folder.poll_interval = HumanDuration(Duration::from_millis(30));
    folder
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_file_ends_in_done_or_in_quarantine_with_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    let watched = dir.path().join("watched");
    let all = [corpus().synthetic.clone(), corpus().broken.clone(), corpus().shared.clone()].concat();
    for (index, path) in all.iter().enumerate() {
        // Into subfolders, as exports have them; ct-1 before its twin.
        let folder = watched.join(format!("{:03}", index / 10));
        fs::create_dir_all(&folder).unwrap();
        fs::copy(path, folder.join(format!("{index:03}"))).unwrap();
    }
    fs::write(watched.join(".hidden"), "not ours").unwrap();
    std::os::unix::fs::symlink("/etc/hostname", watched.join("link")).unwrap();
    let settings = PacsSettings { folder: Some(folder_settings(&watched)), ..PacsSettings::empty() };
    let sink = FolderSink::new(dir.path().join("sink"));
    let mut intake = Intake::open(settings, &dir.path().join("data"), sink.clone()).unwrap();
    let progress = intake.run_once().await.unwrap();
    let reasons = intake.quarantine_reasons().unwrap();
    println!("{progress:?}\n{reasons:#?}");
    assert_eq!((progress.discovered as usize, progress.open()), (all.len(), 0));
    let (done, set_aside) = (files_under(&watched.join("done")), files_under(&watched.join("quarantine")));
    assert_eq!((done.len() as u64, set_aside.len() as u64), (progress.ingested, progress.quarantined));
    assert_eq!(done.len() + set_aside.len(), all.len(), "no file is lost");
    assert_eq!(progress.ingested - progress.repeats, sink.objects().len() as u64);
    assert_eq!(sink.calls(), (sink.objects().len(), 0));
    for code in ["not-dicom", "empty", "unreadable", "no-sop-instance-uid", "duplicate-uid"] {
        assert!(reasons.iter().any(|count| count.code == code), "{code}");
    }
    for path in &corpus().synthetic {
        let content = fs::read(path).unwrap();
        assert!(done.iter().any(|path| fs::read(path).unwrap() == content));
    }
    assert!(watched.join(".hidden").exists() && watched.join("link").symlink_metadata().is_ok());

    // The same files again are the same objects: dealt with, and not twice.
    fs::copy(&corpus().synthetic[0], watched.join("000/000")).unwrap();
    fs::copy(&corpus().synthetic[0], watched.join("another name")).unwrap();
    let again = intake.run_once().await.unwrap();
    assert_eq!((again.discovered, again.repeats), (progress.discovered + 1, progress.repeats + 1));
    assert_eq!(sink.calls().0, sink.objects().len());
    let left: Vec<_> = files_under(&watched);
    assert_eq!(left.len(), all.len() + 2 + 2, "two copies in done, the hidden file and the link");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_grows_is_left_until_it_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let watched = dir.path().join("watched");
    fs::create_dir_all(&watched).unwrap();
    let mut folder = folder_settings(&watched);
    folder.settle = HumanDuration(Duration::from_secs(3600));
    let settings = PacsSettings { folder: Some(folder), ..PacsSettings::empty() };
    fs::copy(&corpus().synthetic[0], watched.join("fresh.dcm")).unwrap();
    let sink = FolderSink::new(dir.path().join("sink"));
    let intake = Intake::open(settings, &dir.path().join("data"), sink.clone()).unwrap();
    let progress = intake.progress();
    let shutdown = tokio_util::sync::CancellationToken::new();
    let running = tokio::spawn(intake.run(shutdown.clone()));
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(progress.borrow().discovered, 0, "it has not been the same for an hour");
    shutdown.cancel();
    running.await.unwrap().unwrap();
    assert!(watched.join("fresh.dcm").exists());
}
