//! Pulling from Orthanc: everything, once, incrementally.

use super::support::{FolderSink, Orthanc, corpus, pull_settings, store_all};
use medinet_pacs::{Intake, StudyDate};
use std::collections::BTreeSet;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_object_of_an_archive_is_taken_in_once_and_the_next_pass_finds_nothing_new() {
    let orthanc = Orthanc::start();
    let dir = tempfile::tempdir().unwrap();
    let mut settings = orthanc.settings();
    settings.page_size = 100;
    settings.max_concurrent = 4;
    let files = [corpus().synthetic.clone(), corpus().shared.clone()].concat();
    let stored = store_all(&settings, &files).await;
    // Some of the shared files are malformed on purpose, and some are the same instance twice.
    assert!(stored >= corpus().synthetic.len());
    let on_the_pacs = orthanc.instances();
    assert!(on_the_pacs as usize >= corpus().synthetic.len() && on_the_pacs as usize <= stored);

    let sink = FolderSink::new(dir.path().join("sink"));
    let mut intake = Intake::open(pull_settings(settings), &dir.path().join("data"), sink.clone()).unwrap();
    let progress = intake.run_once().await.unwrap();
    println!("{progress:?}\n{:#?}", intake.quarantine_reasons().unwrap());
    assert_eq!(progress.open(), 0, "every object has a verdict");
    assert_eq!(progress.discovered, on_the_pacs, "every object on the PACS was found");
    assert_eq!(progress.ingested - progress.repeats, sink.objects().len() as u64);
    assert_eq!(sink.calls(), (sink.objects().len(), 0), "each came once");
    assert!(progress.ingested >= corpus().synthetic.len() as u64);
    for count in intake.quarantine_reasons().unwrap() {
        assert!(!count.code.is_empty() && !count.reason.is_empty());
    }

    let again = intake.run_once().await.unwrap();
    assert_eq!((again.discovered, again.ingested), (progress.discovered, progress.ingested));
    assert_eq!(sink.calls().0, sink.objects().len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_arrives_later_is_found_in_pages_of_three() {
    let orthanc = Orthanc::start();
    let dir = tempfile::tempdir().unwrap();
    let settings = orthanc.settings();
    let (early, late) = corpus().synthetic.split_at(corpus().synthetic.len() / 2);
    let sink = FolderSink::new(dir.path().join("sink"));
    let mut intake =
        Intake::open(pull_settings(settings.clone()), &dir.path().join("data"), sink.clone()).unwrap();
    let empty = intake.run_once().await.unwrap();
    assert_eq!(empty.discovered, 0, "an empty PACS is no error");
    for files in [early, late] {
        store_all(&settings, files).await;
        let progress = intake.run_once().await.unwrap();
        assert_eq!((progress.discovered, progress.open()), (orthanc.instances(), 0));
    }
    assert_eq!(sink.objects().len(), corpus().synthetic.len());
    drop(intake);
    // Another process on the same data folder goes on, and knows everything already.
    let mut intake = Intake::open(pull_settings(settings), &dir.path().join("data"), sink.clone()).unwrap();
    let progress = intake.run_once().await.unwrap();
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
        let mut intake =
            Intake::open(pull_settings(settings.clone()), &dir.path().join(name), sink.clone()).unwrap();
        let progress = intake.run_once().await.unwrap();
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
    let mut intake = Intake::open(settings, &dir.path().join("data"), sink).unwrap();
    let progress = intake.run_once().await.unwrap();
    let reasons = intake.quarantine_reasons().unwrap();
    let count =
        |code: &str| reasons.iter().filter(|count| count.code == code).map(|count| count.count).sum::<u64>();
    assert_eq!((count("test"), count("sink-broke")), (1, 1));
    assert!(count("too-large") >= 1, "{reasons:?}");
    assert_eq!(progress.open(), 0);
    assert_eq!(progress.ingested + 2 + count("too-large"), corpus().synthetic.len() as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sink_that_cannot_work_stops_the_pass_and_loses_nothing() {
    let orthanc = Orthanc::start();
    let dir = tempfile::tempdir().unwrap();
    let settings = pull_settings(orthanc.settings());
    store_all(settings.dicomweb.as_ref().unwrap(), &corpus().synthetic).await;
    let full = |_: medinet_pacs::Delivery| {
        Err(medinet_pacs::Rejected::Unavailable { reason: "the disk is full".into() })
    };
    let mut intake = Intake::open(settings.clone(), &dir.path().join("data"), full).unwrap();
    let error = intake.run_once().await.unwrap_err().to_string();
    assert!(error.contains("the disk is full"), "{error}");
    drop(intake);
    let sink = FolderSink::new(dir.path().join("sink"));
    let mut intake = Intake::open(settings, &dir.path().join("data"), sink.clone()).unwrap();
    intake.run_once().await.unwrap();
    assert_eq!(sink.objects().len(), corpus().synthetic.len());
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
