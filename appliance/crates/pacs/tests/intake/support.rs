//! Peers, files and a sink for the tests.

use medinet_pacs::{
    Accepted, Delivery, DicomWebAuth, DicomWebSettings, Intake, IntakeProgress, PacsSettings,
    QuarantineCount, QuarantineRecords, Rejected, Sink,
};
use medinet_types::HumanDuration;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// Names the folder of further real DICOM files; `none` says that there is none.
const REAL_FILES: &str = "MEDINET_REAL_DICOM";

/// A process that ends with the value.
pub(crate) struct Process(pub(crate) Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(3).unwrap().to_owned()
}

/// A program of the test's virtual environment.
pub(crate) fn venv(program: &str) -> PathBuf {
    let venv = std::env::var_os("MEDINET_VENV").map_or_else(|| repository().join(".venv"), PathBuf::from);
    venv.join("bin").join(program)
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Waits until `ready`; fails with `what` after a generous time.
pub(crate) fn wait_until(what: &str, mut ready: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !ready() {
        assert!(begin.elapsed() < Duration::from_secs(60), "{what}: not within 60 s");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A GET over plain HTTP, with a ready `Authorization` header; status and body.
pub(crate) fn http_get(port: u16, path: &str, authorization: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    let request = format!(
        "GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\nAuthorization: {authorization}\r\nAccept: */*\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.split(' ').nth(1)?.parse().ok()?;
    Some((status, answer.split_once("\r\n\r\n")?.1.to_owned()))
}

/// `alice:secret`, as a header.
pub(crate) const BASIC: &str = "Basic YWxpY2U6c2VjcmV0";

/// A running Orthanc with DICOMweb, empty, user `alice` with password `secret`.
pub(crate) struct Orthanc {
    pub(crate) dir: TempDir,
    pub(crate) port: u16,
    _process: Process,
}

impl Orthanc {
    pub(crate) fn start() -> Self {
        Self::start_at(free_port())
    }

    pub(crate) fn start_at(port: u16) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let dimse = free_port();
        let db = dir.path().join("db");
        let config = format!(
            r#"{{"Name": "TEST", "StorageDirectory": "{db}", "IndexDirectory": "{db}",
            "Plugins": ["/usr/share/orthanc/plugins/libOrthancDicomWeb.so"],
            "HttpPort": {port}, "HttpBindAddresses": ["127.0.0.1"], "RemoteAccessAllowed": false, "WebDavEnabled": false,
            "OrthancExplorerEnabled": false, "HttpThreadsCount": 16, "StableAge": 1, "SyncStorageArea": false,
            "DicomAet": "TEST", "DicomPort": {dimse}, "AuthenticationEnabled": true,
            "RegisteredUsers": {{"alice": "secret"}}, "OverwriteInstances": false,
            "DicomWeb": {{"Enable": true, "Root": "/dicom-web/", "StudiesMetadata": "Full", "SeriesMetadata": "Full"}}}}"#,
            db = db.display()
        );
        let file = dir.path().join("orthanc.json");
        fs::write(&file, config).unwrap();
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let child = Command::new("/usr/sbin/Orthanc")
            .arg("--no-jobs")
            .arg(&file)
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("Orthanc is installed (apt-get install orthanc orthanc-dicomweb)");
        let process = Process(child);
        wait_until("Orthanc", || {
            http_get(port, "/dicom-web/studies?limit=1", BASIC).is_some_and(|(status, _)| status == 200)
        });
        Self { dir, port, _process: process }
    }

    /// How many instances it says that it has.
    pub(crate) fn instances(&self) -> u64 {
        let (_, statistics) = http_get(self.port, "/statistics", BASIC).unwrap();
        let statistics: serde_json::Value = serde_json::from_str(&statistics).unwrap();
        statistics["CountInstances"].as_u64().unwrap()
    }

    pub(crate) fn settings(&self) -> DicomWebSettings {
        settings_for(&format!("http://127.0.0.1:{}/dicom-web", self.port), self.dir.path())
    }
}

/// Settings with the test user, short pauses, and small pages so that paging is used.
pub(crate) fn settings_for(url: &str, dir: &Path) -> DicomWebSettings {
    let password_file = dir.join("password");
    fs::write(&password_file, "secret\n").unwrap();
    fs::set_permissions(&password_file, fs::Permissions::from_mode(0o600)).unwrap();
    let mut settings = DicomWebSettings::new(url.parse().unwrap());
    settings.auth = DicomWebAuth::Basic {
        user: "alice".into(),
        password_file: medinet_settings::SecretFile::new(password_file),
    };
    settings.page_size = 3;
    settings.max_attempts = 3;
    settings.max_backoff = HumanDuration(Duration::from_millis(200));
    settings.poll_interval = HumanDuration(Duration::from_millis(100));
    settings
}

pub(crate) fn pull_settings(dicomweb: DicomWebSettings) -> PacsSettings {
    PacsSettings { dicomweb: Some(dicomweb), ..PacsSettings::empty() }
}

/// One whole pass over the sources of the settings, by an intake that is started for it and stopped after it; the counts
/// and what is quarantined.
pub(crate) async fn pass(
    settings: PacsSettings,
    data: &Path,
    sink: impl Sink,
) -> (IntakeProgress, Vec<QuarantineCount>) {
    let intake = Intake::open(settings, data, sink).unwrap();
    let (progress, mut first_pass) = (intake.progress(), intake.first_pass());
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(intake.run(shutdown.clone()));
    let passed = tokio::time::timeout(Duration::from_secs(300), first_pass.wait_for(|done| *done)).await;
    passed.expect("the pass ends within 300 s").expect("the intake does not end before");
    shutdown.cancel();
    running.await.unwrap().unwrap();
    let progress = *progress.borrow();
    let reasons = QuarantineRecords::open(data).unwrap().reasons().unwrap();
    assert_eq!(reasons.iter().map(|reason| reason.count).sum::<u64>(), progress.quarantined);
    assert!(reasons.iter().all(|reason| !reason.code.is_empty() && !reason.reason.is_empty()));
    (progress, reasons)
}

/// All test files, each with content of its own.
pub(crate) struct Corpus {
    _dir: TempDir,
    /// Synthetic objects; all good, each with its own SOPInstanceUID.
    pub(crate) synthetic: Vec<PathBuf>,
    /// Synthetic files that are no good objects.
    pub(crate) broken: Vec<PathBuf>,
    /// Real files of many makers and encodings, some malformed on purpose: those that pydicom brings along, and those of
    /// the folder that `MEDINET_REAL_DICOM` names.
    pub(crate) real: Vec<PathBuf>,
}

/// Made once per test process.
pub(crate) fn corpus() -> &'static Corpus {
    static CORPUS: OnceLock<Corpus> = OnceLock::new();
    CORPUS.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let made = Command::new(venv("python"))
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/intake/fixtures.py"))
            .arg(dir.path())
            .output()
            .expect("the virtual environment has Python with pydicom");
        assert!(made.status.success(), "fixtures.py failed: {}", String::from_utf8_lossy(&made.stderr));
        let with_pydicom = PathBuf::from(String::from_utf8(made.stdout).unwrap().trim());
        let mut real = [files_under(&with_pydicom), further_files()].concat();
        assert!(real.len() >= 100, "{} brings too few files along: {}", with_pydicom.display(), real.len());
        let mut seen = BTreeSet::new();
        real.retain(|path| seen.insert(Sha256::digest(fs::read(path).unwrap()).to_vec()));
        let (synthetic, broken) =
            (files_under(&dir.path().join("good")), files_under(&dir.path().join("broken")));
        assert!(synthetic.len() >= 30 && broken.len() >= 5);
        Corpus { _dir: dir, synthetic, broken, real }
    })
}

/// The real files that nobody but their makers may hand on: of the folder that `MEDINET_REAL_DICOM` names; where it is not set, of the
/// folder shared/data/dicom beside the checkout if there is one. Without them the tests say less, so their absence has to be meant.
fn further_files() -> Vec<PathBuf> {
    let folder = match std::env::var_os(REAL_FILES) {
        Some(none) if none == "none" => {
            println!("NOTICE: {REAL_FILES}=none: no real files but those that pydicom brings along");
            return Vec::new();
        }
        Some(folder) => folder.into(),
        None => repository().join("../shared/data/dicom"),
    };
    assert!(
        folder.is_dir(),
        "expected a folder of real DICOM files at {}, found none: name one in {REAL_FILES}, or set it to \"none\" to \
         test with the files that pydicom brings along alone",
        folder.display()
    );
    let files = files_under(&folder);
    assert!(files.len() >= 100, "{} holds only {} files", folder.display(), files.len());
    files
}

/// All files below a folder, sorted.
pub(crate) fn files_under(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    found
}

/// Reads the files and sends them to a PACS; answers how many the PACS took.
pub(crate) async fn store_all(settings: &DicomWebSettings, files: &[PathBuf]) -> usize {
    let client = medinet_pacs::dicomweb::DicomWebClient::new(settings).unwrap();
    let bytes: Vec<bytes::Bytes> = files.iter().map(|path| fs::read(path).unwrap().into()).collect();
    let outcomes = client.store(&bytes).await.unwrap();
    assert_eq!(outcomes.len(), files.len());
    outcomes.iter().filter(|outcome| **outcome == medinet_pacs::dicomweb::StoreOutcome::Stored).count()
}

/// Sends the files to an empty Orthanc, one by one: those that it has taken as objects of their own, and the others, which it
/// refused or holds to be an object that it has.
pub(crate) async fn store_each(orthanc: &Orthanc, files: &[PathBuf]) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let (mut taken, mut left) = (Vec::new(), Vec::new());
    for path in files {
        store_all(&orthanc.settings(), std::slice::from_ref(path)).await;
        let is_taken = orthanc.instances() > taken.len() as u64;
        let list = if is_taken { &mut taken } else { &mut left };
        list.push(path.clone());
    }
    (taken, left)
}

/// Puts a file into a watched folder, whole from the first moment on: names with a dot in front are not looked at.
pub(crate) fn drop_into(watched: &Path, file: &Path, name: &str) {
    let hidden = watched.join(format!(".{name}"));
    fs::copy(file, &hidden).unwrap();
    fs::rename(hidden, watched.join(name)).unwrap();
}

/// Stores a file per object: what a sink does that survives kill -9.
#[derive(Debug, Clone)]
pub(crate) struct FolderSink {
    dir: PathBuf,
}

impl FolderSink {
    pub(crate) fn new(dir: impl Into<PathBuf>) -> Self {
        let dir = dir.into();
        fs::create_dir_all(dir.join("objects")).unwrap();
        Self { dir }
    }

    /// The names of the objects that are stored.
    pub(crate) fn objects(&self) -> BTreeSet<String> {
        let names = fs::read_dir(self.dir.join("objects")).unwrap();
        names
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.len() == 32)
            .collect()
    }

    /// How often `accept` was called, and how often for an object that was there.
    pub(crate) fn calls(&self) -> (usize, usize) {
        let log = fs::read_to_string(self.dir.join("calls")).unwrap_or_default();
        (log.lines().count(), log.lines().filter(|line| *line == "repeat").count())
    }
}

impl Sink for FolderSink {
    fn accept(&mut self, delivery: Delivery) -> Result<Accepted, Rejected> {
        let path = self.dir.join("objects").join(delivery.key.to_string());
        let mut calls =
            fs::OpenOptions::new().create(true).append(true).open(self.dir.join("calls")).unwrap();
        if path.exists() {
            calls.write_all(b"repeat\n").unwrap();
            return Ok(Accepted::AlreadyStored);
        }
        let written = path.with_extension("part");
        fs::write(&written, format!("{:?}", delivery.object)).unwrap();
        fs::rename(written, path).unwrap();
        calls.write_all(b"new\n").unwrap();
        Ok(Accepted::Stored)
    }
}
