//! Pushing with dcmtk's storescu and echoscu.

use super::support::{FolderSink, corpus, files_under, wait_until};
use medinet_pacs::{CStoreSettings, Intake, IntakeError, IntakeProgress, PacsSettings};
use medinet_types::{ByteCount, HumanDuration};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

struct Running {
    address: SocketAddr,
    progress: watch::Receiver<IntakeProgress>,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), IntakeError>>,
}

impl Running {
    fn start(settings: PacsSettings, dir: &Path) -> (Self, FolderSink) {
        let sink = FolderSink::new(dir.join("sink"));
        let intake = Intake::open(settings, &dir.join("data"), sink.clone()).unwrap();
        let (address, progress) = (intake.cstore_address().unwrap(), intake.progress());
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(intake.run(shutdown.clone()));
        (Self { address, progress, shutdown, task }, sink)
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
    }
}

pub(crate) fn cstore_settings() -> PacsSettings {
    let mut cstore = CStoreSettings::new("127.0.0.1:0".parse().unwrap(), "MEDINET", vec!["PACS".into()]);
    cstore.max_associations = 2;
    cstore.idle_timeout = HumanDuration(Duration::from_secs(20));
    PacsSettings { cstore: Some(cstore), ..PacsSettings::empty() }
}

/// storescu, for uncompressed files.
pub(crate) fn storescu(address: SocketAddr, calling: &str, called: &str, files: &[PathBuf]) -> Output {
    Command::new("storescu")
        .args(["-v", "-R", "-aet", calling, "-aec", called, "127.0.0.1", &address.port().to_string()])
        .args(files)
        .output()
        .expect("dcmtk is installed (apt-get install dcmtk)")
}

/// dcmsend reads each file's encoding and proposes it.
fn dcmsend(address: SocketAddr, files: &[PathBuf]) -> Output {
    Command::new("dcmsend")
        .args([
            "-v",
            "-nh",
            "-dn",
            "-aet",
            "PACS",
            "-aec",
            "MEDINET",
            "127.0.0.1",
            &address.port().to_string(),
        ])
        .args(files)
        .output()
        .expect("dcmtk is installed (apt-get install dcmtk)")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_pushed_object_that_was_acknowledged_is_taken_in_once() {
    let dir = tempfile::tempdir().unwrap();
    let (running, sink) = Running::start(cstore_settings(), dir.path());
    let address = running.address;
    let echo = Command::new("echoscu")
        .args(["-aet", "PACS", "-aec", "MEDINET", "127.0.0.1", &address.port().to_string()])
        .status();
    assert!(echo.unwrap().success(), "C-ECHO");
    let mut acknowledged = 0;
    for files in [&corpus().synthetic, &corpus().real, &corpus().synthetic] {
        let files = files.clone();
        let output = tokio::task::spawn_blocking(move || dcmsend(address, &files)).await.unwrap();
        let output = text(&output);
        acknowledged += output.matches("Received C-STORE Response (Success)").count();
        assert!(!output.contains("Aborting Association"), "{output}");
    }
    assert!(acknowledged >= 2 * corpus().synthetic.len(), "{acknowledged}");
    let progress = running.progress.clone();
    wait_until("all objects dealt with", || progress.borrow().open() == 0);
    let totals = *progress.borrow();
    println!("{acknowledged} acknowledged, {totals:?}");
    // The second push of the synthetic files is the same bytes and leaves no trace.
    assert!(totals.ingested >= corpus().synthetic.len() as u64);
    assert!(totals.discovered as usize <= acknowledged - corpus().synthetic.len());
    assert_eq!(totals.ingested - totals.repeats, sink.objects().len() as u64);
    assert_eq!(sink.calls(), (sink.objects().len(), 0));
    running.stop().await;
    let left = files_under(&dir.path().join("data/spool"));
    let quarantined = left.iter().filter(|path| path.to_string_lossy().contains("/quarantine/")).count();
    assert_eq!(
        (left.len(), quarantined as u64),
        (quarantined, totals.quarantined),
        "what is ingested is removed"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_wrong_names_and_wrong_addresses_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (running, sink) = Running::start(cstore_settings(), dir.path());
    let address = running.address;
    for (calling, called, word) in [
        ("STRANGER", "MEDINET", "Calling AE Title Not Recognized"),
        ("PACS", "OTHER", "Called AE Title Not Recognized"),
    ] {
        let files = corpus().synthetic[..1].to_vec();
        let output =
            tokio::task::spawn_blocking(move || storescu(address, calling, called, &files)).await.unwrap();
        assert!(!output.status.success());
        assert!(text(&output).contains(word), "{}", text(&output));
    }
    assert!(sink.objects().is_empty());
    running.stop().await;

    let dir = tempfile::tempdir().unwrap();
    let mut settings = cstore_settings();
    settings.cstore.as_mut().unwrap().allowed_addresses = vec!["192.0.2.7".parse().unwrap()];
    let (running, sink) = Running::start(settings, dir.path());
    let (address, files) = (running.address, corpus().synthetic[..1].to_vec());
    let output =
        tokio::task::spawn_blocking(move || storescu(address, "PACS", "MEDINET", &files)).await.unwrap();
    assert!(!output.status.success() && sink.objects().is_empty());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_spool_and_an_object_that_is_too_large_are_answered_out_of_resources() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = cstore_settings();
    settings.max_object_bytes = ByteCount(5_000);
    let (running, sink) = Running::start(settings, dir.path());
    let address = running.address;
    // The film is too large; what comes after it on the same association is taken.
    let pick = |name: &str| corpus().synthetic.iter().find(|path| path.ends_with(name)).unwrap().clone();
    let files = vec![pick("sc-multi.dcm"), pick("mr-1.dcm")];
    let output = text(&tokio::task::spawn_blocking(move || dcmsend(address, &files)).await.unwrap());
    assert!(output.contains("Refused: OutOfResources"), "{output}");
    wait_until("the small one", || sink.objects().len() == 1);
    running.stop().await;

    let dir = tempfile::tempdir().unwrap();
    let mut settings = cstore_settings();
    settings.max_spool_bytes = ByteCount(0);
    let (running, sink) = Running::start(settings, dir.path());
    let (address, files) = (running.address, corpus().synthetic[..1].to_vec());
    let output = text(&tokio::task::spawn_blocking(move || dcmsend(address, &files)).await.unwrap());
    assert!(output.contains("Refused: OutOfResources"), "{output}");
    assert!(sink.objects().is_empty());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_that_stall_or_talk_nonsense_disturb_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let (running, sink) = Running::start(cstore_settings(), dir.path());
    let address = running.address;
    for nonsense in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[1, 0, 0xff, 0xff, 0xff, 0xff, 0, 0],
        &[4, 0, 0, 0, 0, 10, 0, 0, 0, 6, 1, 3, 0, 0, 0, 0],
        &[1, 0, 0, 0, 0, 4, 1, 2, 3, 4],
    ] {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(nonsense).unwrap();
        let mut answer = Vec::new();
        // The service says "abort" or nothing, and hangs up.
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.is_empty() || answer[0] == 7, "{answer:?}");
    }
    // Both places are taken by peers that say nothing; a third is told to come back, not left waiting.
    let stalled: Vec<TcpStream> = (0..2).map(|_| TcpStream::connect(address).unwrap()).collect();
    let files = corpus().synthetic[..1].to_vec();
    let again = files.clone();
    wait_until("a rejection while all places are taken", || {
        text(&storescu(address, "PACS", "MEDINET", &files)).contains("Local Limit Exceeded")
    });
    drop(stalled);
    wait_until("a place once they are gone", || {
        storescu(address, "PACS", "MEDINET", &again).status.success()
    });
    wait_until("the object", || sink.objects().len() == 1);
    running.stop().await;
}
