//! Pulling from Orthanc: everything, once, incrementally.

use super::folder::folder_settings;
use super::support::{
    FolderSink, Orthanc, corpus, drop_into, files_under, pass, pull_settings, store_all, store_each,
    wait_until,
};
use medinet_pacs::{Intake, QuarantineRecords, QuarantineSelection, Rejected, Sink as _, StudyDate};
use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use tokio_util::sync::CancellationToken;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_file_is_taken_in_once_or_set_aside_and_the_next_pass_finds_nothing_new() {
    let orthanc = Orthanc::start();
    let dir = tempfile::tempdir().unwrap();
    let files = [corpus().synthetic.clone(), corpus().real.clone()].concat();
    let (taken, left) = store_each(&orthanc, &files).await;
    assert!(taken.len() >= corpus().synthetic.len(), "{}", taken.len());
    assert_eq!(orthanc.instances(), taken.len() as u64);
    // Some real files are malformed on purpose, and some are the same instance as others: what the PACS does not take comes by
    // the folder.
    let watched = dir.path().join("watched");
    fs::create_dir_all(&watched).unwrap();
    let names: BTreeSet<String> = (0..left.len()).map(|index| format!("{index:03}")).collect();
    left.iter().zip(&names).for_each(|(file, name)| drop_into(&watched, file, name));
    assert!(left.len() >= 20, "{}", left.len());

    let mut settings = pull_settings(orthanc.settings());
    settings.folder = Some(folder_settings(&watched));
    let web = settings.dicomweb.as_mut().unwrap();
    web.page_size = 100;
    web.max_concurrent = 4;
    let (data, sink) = (dir.path().join("data"), FolderSink::new(dir.path().join("sink")));
    let (progress, reasons) = pass(settings.clone(), &data, sink.clone()).await;
    println!("{} on the PACS, {} left\n{progress:?}\n{reasons:#?}", taken.len(), left.len());
    assert_eq!(
        (progress.discovered, progress.open()),
        (files.len() as u64, 0),
        "every file has a verdict, none has two"
    );
    assert_eq!(progress.ingested + progress.quarantined, files.len() as u64);
    assert_eq!(progress.ingested - progress.repeats, sink.objects().len() as u64);
    assert_eq!(sink.calls(), (sink.objects().len(), 0), "each came once");
    assert!(progress.ingested >= corpus().synthetic.len() as u64);
    let (done, set_aside) = (files_under(&watched.join("done")), files_under(&watched.join("quarantine")));
    assert!(set_aside.len() as u64 <= progress.quarantined);
    let name = |path: &std::path::PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
    assert_eq!(done.len() + set_aside.len(), left.len(), "none is lost");
    assert_eq!(done.iter().chain(&set_aside).map(name).collect::<BTreeSet<_>>(), names);

    let (again, _) = pass(settings, &data, sink.clone()).await;
    assert_eq!(again, progress);
    assert_eq!(sink.calls().0, sink.objects().len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_arrives_later_is_found_in_pages_of_three() {
    let orthanc = Orthanc::start();
    let dir = tempfile::tempdir().unwrap();
    let settings = orthanc.settings();
    let (early, late) = corpus().synthetic.split_at(corpus().synthetic.len() / 2);
    let sink = FolderSink::new(dir.path().join("sink"));
    let data = dir.path().join("data");
    let intake = Intake::open(pull_settings(settings.clone()), &data, sink.clone()).unwrap();
    assert!(!intake.has_passed().unwrap());
    let (progress, mut first_pass) = (intake.progress(), intake.first_pass());
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(intake.run(shutdown.clone()));
    first_pass.wait_for(|done| *done).await.unwrap();
    assert_eq!(progress.borrow().discovered, 0, "an empty PACS is no error");
    for files in [early, late] {
        store_all(&settings, files).await;
        let there = orthanc.instances();
        wait_until("all are taken in", || progress.borrow().ingested == there);
        assert_eq!((progress.borrow().discovered, progress.borrow().open()), (there, 0));
    }
    assert_eq!(sink.objects().len(), corpus().synthetic.len());
    shutdown.cancel();
    running.await.unwrap().unwrap();
    // Another process on the same data folder goes on, and knows everything already.
    let intake = Intake::open(pull_settings(settings.clone()), &data, sink.clone()).unwrap();
    assert!(intake.has_passed().unwrap() && !*intake.first_pass().borrow());
    drop(intake);
    let (progress, _) = pass(pull_settings(settings), &data, sink.clone()).await;
    assert_eq!(progress.ingested as usize, corpus().synthetic.len());
    assert_eq!(sink.calls(), (corpus().synthetic.len(), 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_the_query_asks_for_is_taken() {
    let orthanc = Orthanc::start();
    let dir = tempfile::tempdir().unwrap();
    let mut settings = orthanc.settings();
    store_all(&settings, &corpus().synthetic).await;
    let mut take = async |name: &str, modalities: &[&str], from: Option<&str>, to: Option<&str>| {
        settings.query.modalities = modalities.iter().map(|code| (*code).to_owned()).collect();
        settings.query.study_date_from = from.and_then(StudyDate::from_dicom);
        settings.query.study_date_to = to.and_then(StudyDate::from_dicom);
        let sink = FolderSink::new(dir.path().join(name).join("sink"));
        let (progress, _) = pass(pull_settings(settings.clone()), &dir.path().join(name), sink.clone()).await;
        assert_eq!(progress.open(), 0);
        sink.objects().len()
    };
    assert_eq!(take("mr", &["MR"], None, None).await, 6);
    assert_eq!(take("x", &["CR", "DX"], None, None).await, 6);
    assert_eq!(take("dates", &[], Some("20260201"), Some("20260302")).await, 8);
    assert_eq!(take("old", &[], None, Some("19991231")).await, 1, "1997.04.24 is a date too");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_that_is_too_large_or_that_the_sink_refuses_is_set_aside_and_the_rest_goes_on() {
    let orthanc = Orthanc::start();
    let dir = tempfile::tempdir().unwrap();
    let mut settings = pull_settings(orthanc.settings());
    store_all(settings.dicomweb.as_ref().unwrap(), &corpus().synthetic).await;
    // Everything but the RLE images (noise, which RLE makes larger than 3,000 bytes) and the film is below.
    settings.max_object_bytes = medinet_types::ByteCount(2_900);
    let mut seen = BTreeSet::new();
    let mut calls = 0;
    let sink = move |delivery: medinet_pacs::Delivery| {
        assert!(seen.insert(delivery.key), "each object comes once");
        calls += 1;
        match calls {
            3 => Err(medinet_pacs::Rejected::Quarantine {
                code: "test",
                reason: "the third is refused".into(),
            }),
            5 => panic!("a fault in the sink"),
            _ => Ok(medinet_pacs::Accepted::Stored),
        }
    };
    let data = dir.path().join("data");
    let (progress, reasons) = pass(settings.clone(), &data, sink).await;
    let count =
        |code: &str| reasons.iter().filter(|count| count.code == code).map(|count| count.count).sum::<u64>();
    assert_eq!((count("test"), count("sink-broke")), (1, 1));
    assert!(count("too-large") >= 1, "{reasons:?}");
    assert_eq!(progress.open(), 0);
    assert_eq!(progress.ingested + 2 + count("too-large"), corpus().synthetic.len() as u64);

    // With a higher limit the PACS is asked again for what it still has.
    let records = QuarantineRecords::open(&data).unwrap();
    let retried = records.retry(&QuarantineSelection::Code("too-large".into())).unwrap();
    assert_eq!((retried.files, retried.fetches), (0, count("too-large")));
    settings.max_object_bytes = medinet_types::ByteCount(1 << 20);
    let (progress, _) = pass(settings, &data, FolderSink::new(dir.path().join("sink"))).await;
    assert_eq!((progress.ingested + 2, progress.quarantined), (corpus().synthetic.len() as u64, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sink_that_cannot_work_holds_the_first_pass_up_and_loses_nothing() {
    let orthanc = Orthanc::start();
    let dir = tempfile::tempdir().unwrap();
    let (settings, data) = (pull_settings(orthanc.settings()), dir.path().join("data"));
    store_all(settings.dicomweb.as_ref().unwrap(), &corpus().synthetic).await;
    let sink = FolderSink::new(dir.path().join("sink"));
    let (has_room, refused) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let (mut inner, room, count) = (sink.clone(), Arc::clone(&has_room), Arc::clone(&refused));
    let full = move |delivery: medinet_pacs::Delivery| {
        if room.load(Ordering::SeqCst) {
            return inner.accept(delivery);
        }
        count.fetch_add(1, Ordering::SeqCst);
        Err(Rejected::Unavailable { reason: "the disk is full".into() })
    };
    let intake = Intake::open(settings, &data, full).unwrap();
    let (progress, mut first_pass) = (intake.progress(), intake.first_pass());
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(intake.run(shutdown.clone()));
    wait_until("everything is fetched, and offered twice", || {
        progress.borrow().waiting as usize == corpus().synthetic.len() && refused.load(Ordering::SeqCst) >= 2
    });
    assert!(!*first_pass.borrow() && sink.objects().is_empty());
    has_room.store(true, Ordering::SeqCst);
    first_pass.wait_for(|done| *done).await.unwrap();
    assert_eq!(sink.objects().len(), corpus().synthetic.len());
    shutdown.cancel();
    running.await.unwrap().unwrap();
}

#[test]
fn two_intakes_on_one_folder_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let open = || {
        let sink = FolderSink::new(dir.path().join("sink"));
        Intake::open(medinet_pacs::PacsSettings::empty(), &dir.path().join("data"), sink)
    };
    let first = open().unwrap();
    assert!(matches!(open().unwrap_err(), medinet_pacs::IntakeError::Locked { .. }));
    drop(first);
    open().unwrap();
}
