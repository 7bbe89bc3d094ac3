//! The watched folder.

use super::support::{FolderSink, corpus, drop_into, files_under, pass, wait_until};
use medinet_pacs::{
    Accepted, Delivery, FolderSettings, Intake, PacsSettings, QuarantineRecords, QuarantineSelection,
    Rejected, Retried, Sink as _,
};
use medinet_types::{ByteCount, HumanDuration};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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
    let all = [corpus().synthetic.clone(), corpus().broken.clone(), corpus().real.clone()].concat();
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
    let data = dir.path().join("data");
    let (progress, reasons) = pass(settings.clone(), &data, sink.clone()).await;
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
    let (again, _) = pass(settings, &data, sink.clone()).await;
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

// Files of one name that are set aside lie side by side, and each is found again; one that was too large is too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_offered_again_beside_a_running_intake_is_taken_or_set_aside_again() {
    let dir = tempfile::tempdir().unwrap();
    let (watched, data) = (dir.path().join("watched"), dir.path().join("data"));
    fs::create_dir_all(&watched).unwrap();
    let mut settings = PacsSettings { folder: Some(folder_settings(&watched)), ..PacsSettings::empty() };
    let pick = |name: &str| corpus().synthetic.iter().find(|path| path.ends_with(name)).unwrap();
    let large = fs::metadata(pick("sc-multi.dcm")).unwrap().len();
    settings.max_object_bytes = ByteCount(large - 1);

    let stored = FolderSink::new(dir.path().join("sink"));
    let is_usable = Arc::new(AtomicBool::new(false));
    let (mut inner, usable) = (stored.clone(), Arc::clone(&is_usable));
    let sink = move |delivery: Delivery| -> Result<Accepted, Rejected> {
        if usable.load(Ordering::SeqCst) {
            inner.accept(delivery)
        } else {
            Err(Rejected::Quarantine { code: "not-usable", reason: "not yet".into() })
        }
    };
    let intake = Intake::open(settings.clone(), &data, sink).unwrap();
    let (progress, shutdown) = (intake.progress(), tokio_util::sync::CancellationToken::new());
    let running = tokio::spawn(intake.run(shutdown.clone()));
    // The same name again and again; the last one is too large.
    for (count, name) in ["ct-1.dcm", "mr-1.dcm", "x-10.dcm", "sc-multi.dcm"].into_iter().enumerate() {
        drop_into(&watched, pick(name), "image.dcm");
        wait_until("it is set aside", || progress.borrow().quarantined == count as u64 + 1);
        wait_until("it is moved away", || !watched.join("image.dcm").exists());
    }
    let aside = || files_under(&watched.join("quarantine")).len();
    assert_eq!(aside(), 4);

    let records = QuarantineRecords::open(&data).unwrap();
    let not_usable = QuarantineSelection::Code("not-usable".into());
    let before = records.list(Some("not-usable"), 10).unwrap();
    assert_eq!(records.retry(&not_usable).unwrap(), Retried { files: 3, fetches: 0 });
    wait_until("all three are set aside again", || {
        records.list(Some("not-usable"), 10).unwrap().iter().filter(|object| object.at > before[0].at).count()
            == 3
    });
    wait_until("they are counted once", || progress.borrow().quarantined == 4);
    assert_eq!((aside(), progress.borrow().open(), progress.borrow().waiting), (4, 0, 0));

    is_usable.store(true, Ordering::SeqCst);
    // The second of its name alone, then the rest.
    let second = QuarantineSelection::Object(before[1].id);
    assert_eq!(records.retry(&second).unwrap(), Retried { files: 1, fetches: 0 });
    wait_until("the second is taken", || watched.join("done/image.dcm").exists());
    assert_eq!((stored.objects().len(), progress.borrow().quarantined), (1, 3));
    assert_eq!(fs::read(watched.join("done/image.dcm")).unwrap(), fs::read(pick("mr-1.dcm")).unwrap());
    assert_eq!(records.retry(&not_usable).unwrap(), Retried { files: 2, fetches: 0 });
    wait_until("all are taken", || aside() == 1);
    assert_eq!((stored.calls(), progress.borrow().quarantined), ((3, 0), 1));
    assert_eq!((progress.borrow().open(), progress.borrow().waiting), (0, 0));
    shutdown.cancel();
    running.await.unwrap().unwrap();

    // Offered while no intake runs, within a higher limit: the next run takes it.
    settings.max_object_bytes = ByteCount(large);
    assert_eq!(records.retry(&QuarantineSelection::All).unwrap(), Retried { files: 1, fetches: 0 });
    let (progress, reasons) = pass(settings, &data, stored.clone()).await;
    assert_eq!((progress.ingested, progress.quarantined, progress.open(), reasons.len()), (4, 0, 0, 0));
    assert_eq!((aside(), files_under(&watched.join("done")).len()), (0, 4));
}
