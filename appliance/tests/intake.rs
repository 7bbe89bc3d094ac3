//! The program's intake and what staff asks of it, on real files: pushed by dcmtk's storescu, or put into the watched folder.
//!
//! The files come with pydicom, in the virtual environment that `MEDINET_VENV` names; `cargo xtask test` installs both.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests fail and tell as tests do")]

use medinet_dataset::{Dataset, DatasetSettings, DatasetSummary};
use medinet_identity::{Authority, Issue, new_key_and_csr, write_private};
use medinet_model::TaskSpec;
use medinet_types::{Principal, Role, SiteId};
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const DAY: Duration = Duration::from_secs(86_400);

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// A file that pydicom brings along.
fn real(name: &str) -> PathBuf {
    let venv = std::env::var_os("MEDINET_VENV").map_or_else(|| repository().join(".venv"), PathBuf::from);
    let found = Command::new(venv.join("bin/python"))
        .args([
            "-c",
            "import pathlib, pydicom; print(pathlib.Path(pydicom.__file__).parent / 'data/test_files')",
        ])
        .output()
        .expect("the virtual environment has Python with pydicom (pip install -r requirements-test.txt)");
    let path = PathBuf::from(String::from_utf8(found.stdout).unwrap().trim()).join(name);
    assert!(path.is_file(), "{}", path.display());
    path
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Waits until `ready`; fails with `what` after a generous time.
fn wait_until(what: &str, mut ready: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !ready() {
        assert!(begin.elapsed() < Duration::from_secs(120), "{what}: not within 120 s");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A hospital without its federation: no broker answers, and nothing here needs one.
struct Hospital {
    dir: TempDir,
    cstore_port: u16,
}

/// A running appliance; killed when it is dropped, which does it no harm.
struct Appliance(Child);

impl Drop for Appliance {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Hospital {
    fn new() -> Self {
        let this = Self { dir: tempfile::tempdir().unwrap(), cstore_port: free_port() };
        let now = medinet_link::now();
        let authority = Authority::create(&this.path("ca"), "Test CA", 30 * DAY, now).unwrap();
        let principal = Principal::new(Role::Site, SiteId::new("north").unwrap());
        let (key, request) = new_key_and_csr(&principal).unwrap();
        let issue = Issue { csr_pem: &request, principal: &principal, hosts: &[], validity: 7 * DAY };
        let (certificate, _) = authority.issue(&issue, now).unwrap();
        write_private(&this.path("key.pem"), &key).unwrap();
        fs::write(this.path("certificate.pem"), certificate).unwrap();
        fs::write(this.path("ledger.pub"), "11".repeat(32)).unwrap();
        fs::copy(repository().join("config/task-pneumonia.toml"), this.path("task.toml")).unwrap();
        fs::create_dir(this.path("incoming")).unwrap();
        this
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn config(&self) -> PathBuf {
        self.path("appliance.toml")
    }

    /// The watched folder and C-STORE, and what `further` adds.
    fn configure(&self, further: &str) {
        let text = format!(
            r#"federation = "chest"
data_dir = "data"
ledger_key_file = "ledger.pub"
task_file = "task.toml"
identity = {{ certificate = "certificate.pem", key = "key.pem", ca = "ca/ca.pem" }}
broker = {{ host = "localhost", port = {broker} }}
policy = {{ tasks = ["pneumonia"], min_sites = 2, max_local_epochs = 5, max_update_norm = 20.0, metrics_may_leave = false }}

[pacs.folder]
path = "incoming"
poll_interval = "50 ms"
settle = "100 ms"

[pacs.cstore]
listen = "127.0.0.1:{port}"
ae_title = "MEDINET"
allowed_calling_ae_titles = ["PACS"]

{further}
"#,
            broker = free_port(),
            port = self.cstore_port
        );
        fs::write(self.config(), text).unwrap();
    }

    fn start(&self, log: &str) -> Appliance {
        let child = Command::new(env!("CARGO_BIN_EXE_medinet-appliance"))
            .args(["run", "--config"])
            .arg(self.config())
            .stdout(Stdio::null())
            .stderr(fs::File::create(self.path(log)).unwrap())
            .spawn()
            .unwrap();
        Appliance(child)
    }

    fn log(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    fn put(&self, file: &Path, name: &str) {
        let hidden = self.path("incoming").join(format!(".{name}"));
        fs::copy(file, &hidden).unwrap();
        fs::rename(hidden, self.path("incoming").join(name)).unwrap();
    }

    /// Pushes a file; a peer that finds nobody listening yet comes again.
    fn push(&self, file: &Path) {
        wait_until("a peer's object is acknowledged", || {
            let port = self.cstore_port.to_string();
            let mut peer = Command::new("storescu")
                .args(["-R", "-to", "10", "-ta", "20", "-td", "20", "-aet", "PACS", "-aec", "MEDINET"])
                .args(["127.0.0.1", &port])
                .arg(file)
                .stderr(Stdio::null())
                .spawn()
                .expect("dcmtk is installed (apt-get install dcmtk)");
            peer.wait().unwrap().success()
        });
    }

    /// What staff asks; the words before the configuration, and those after it.
    fn ask(&self, command: &[&str], arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_medinet-appliance"))
            .args(command)
            .arg("--config")
            .arg(self.config())
            .args(arguments)
            .output()
            .unwrap()
    }

    fn answer(&self, command: &[&str], arguments: &[&str]) -> String {
        let output = self.ask(command, arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stderr.is_empty());
        String::from_utf8(output.stdout).unwrap()
    }

    fn refusal(&self, command: &[&str], arguments: &[&str]) -> String {
        let output = self.ask(command, arguments);
        assert!(!output.status.success() && output.stdout.is_empty());
        String::from_utf8(output.stderr).unwrap()
    }

    fn quarantine(&self) -> String {
        self.answer(&["quarantine", "list"], &[])
    }

    fn dataset(&self) -> DatasetSummary {
        let spec: TaskSpec = toml::from_str(&fs::read_to_string(self.path("task.toml")).unwrap()).unwrap();
        let folder = self.path("data/dataset/pneumonia");
        Dataset::open(&folder, &spec, &DatasetSettings::default()).unwrap().summary().unwrap()
    }

    fn images(&self) -> u64 {
        if self.path("data/dataset/pneumonia/dataset.sqlite").exists() { self.dataset().images } else { 0 }
    }
}

/// A PACS that is down: nobody listens there.
fn pacs_that_is_down() -> String {
    format!(
        "[pacs.dicomweb]\nbase_url = \"http://127.0.0.1:{}/dicom-web\"\nmax_attempts = 1\npoll_interval = \"1 s\"\n",
        free_port()
    )
}

const READY: &str = "the data set is ready";
const DOWN: &str = "the PACS could not be pulled from";

#[test]
fn peers_and_the_folder_are_served_while_the_pacs_is_down_and_a_whole_data_set_is_ready_at_once() {
    // A new hospital: nobody knows what its PACS has, so its data set is not ready, and grows.
    let hospital = Hospital::new();
    hospital.configure(&pacs_that_is_down());
    let appliance = hospital.start("first.log");
    hospital.push(&real("CT_small.dcm"));
    hospital.put(&real("README.txt"), "notes.txt");
    wait_until("the image is in the data set", || hospital.images() == 1);
    wait_until("the file is set aside", || hospital.path("incoming/quarantine/notes.txt").exists());
    wait_until("the PACS was asked again", || hospital.log("first.log").matches(DOWN).count() >= 2);
    assert!(!hospital.log("first.log").contains(READY), "{}", hospital.log("first.log"));
    drop(appliance);

    // The same after a restart: what a broken-off first pass has left is not what the hospital has.
    let appliance = hospital.start("second.log");
    wait_until("the PACS was asked again", || hospital.log("second.log").matches(DOWN).count() >= 2);
    assert!(!hospital.log("second.log").contains(READY), "{}", hospital.log("second.log"));
    drop(appliance);

    // Without that PACS the first pass ends. From then on a restart while it is down keeps the site from nothing.
    hospital.configure("");
    let appliance = hospital.start("third.log");
    wait_until("the data set is ready", || hospital.log("third.log").contains(READY));
    drop(appliance);
    hospital.configure(&pacs_that_is_down());
    let _appliance = hospital.start("fourth.log");
    wait_until("the data set is ready", || hospital.log("fourth.log").contains(READY));
    hospital.push(&real("MR_small.dcm"));
    wait_until("the second image", || hospital.images() == 2);
}

/// The number of the listed object whose entry holds `word`.
fn number_of(list: &str, word: &str) -> String {
    let entry =
        list.split("\n\n").skip(1).find(|entry| entry.contains(word)).unwrap_or_else(|| panic!("{list}"));
    entry.trim_start().split(' ').next().unwrap().to_owned()
}

#[test]
fn what_is_set_aside_is_listed_with_its_full_reason_and_taken_once_its_cause_is_gone() {
    const STUDY: &str = "1.3.46.670589.14.1000.210.4.199999.20110525182825.1.0";
    const OBJECT: &str = "1.3.46.670589.14.1000.210.2.199999.20110525185628.1.0";
    let hospital = Hospital::new();
    hospital.configure("");
    for command in [&["quarantine", "list"][..], &["quarantine", "retry"], &["report", STUDY]] {
        let refusal = hospital.refusal(command, &[]);
        assert!(refusal.contains("found none: no appliance has run with this data_dir yet"), "{refusal}");
    }
    assert!(!hospital.path("data").exists(), "asking makes nothing");

    // The palette image is within the limit, and its colours are not.
    hospital.configure("[dataset]\nmax_object_bytes = 400000\n");
    let appliance = hospital.start("first.log");
    hospital.push(&real("examples_palette.dcm"));
    hospital.put(&real("CT_small.dcm"), "ct.dcm");
    hospital.put(&real("MR_truncated.dcm"), "Doe^Jane\u{1b}[31m.dcm");
    hospital.put(&real("README.txt"), "notes.txt");
    wait_until("all four have a verdict", || {
        hospital.images() == 1 && hospital.quarantine().starts_with("3 objects are set aside\n")
    });
    let list = hospital.quarantine();
    println!("{list}");
    for words in [
        "      1  not-usable: the image cannot be used for training: the image declares ",
        "the limit is 400000; raise the limit if the image is genuine",
        ": held back: ",
        "not-dicom: the file does not begin as DICOM does",
        &format!(
            "pushed by a peer\n    object {OBJECT}\n    file {}",
            hospital.path("data/intake/spool/quarantine").display()
        ),
        "found in the watched folder\n    object 1.3.6.1.4.1.5962.1.1.4.1.1.20040826185059.5457\n    file Doe^Jane\u{fffd}[31m.dcm, now in",
        "found in the watched folder\n    file notes.txt, now in quarantine/ of that folder\n",
    ] {
        assert!(list.contains(words), "{words}\nin\n{list}");
    }
    // Whom an object is of stands in the PACS, not here.
    for identifier in ["11-05-25-142825", "CompressedSamples", "4MR1"] {
        assert!(!list.contains(identifier), "{list}");
    }
    let some = hospital.answer(&["quarantine", "list"], &["--code", "not-usable"]);
    assert!(
        some.starts_with("1 object is set aside with the code not-usable\n") && some.contains(OBJECT),
        "{some}"
    );
    let one = hospital.answer(&["quarantine", "list"], &["--limit", "1"]);
    assert!(one.ends_with("\nand 2 more: --limit sets how many are listed\n"), "{one}");

    // Beside the running appliance, with nothing changed: offered, and set aside again at another time.
    let number = number_of(&list, OBJECT);
    let dated = |list: &str| {
        let entry =
            list.lines().find(|line| line.starts_with(&format!("{number}  not-usable  "))).map(str::to_owned);
        entry.unwrap_or_default()
    };
    let before = dated(&list);
    assert!(before.ends_with(" UTC  pushed by a peer"), "{before}");
    // The list shows whole seconds.
    std::thread::sleep(Duration::from_millis(1100));
    let offered = hospital.answer(&["quarantine", "retry"], &["--code", "not-usable"]);
    assert!(offered.starts_with("1 object is offered once more\n1 kept here: "), "{offered}");
    wait_until("it is set aside again", || {
        let after = dated(&hospital.quarantine());
        !after.is_empty() && after != before
    });
    wait_until("the appliance says so", || {
        hospital.log("first.log").contains("quarantined objects are offered again")
    });
    let refusal = hospital.refusal(&["quarantine", "retry"], &["--code", "not-useable"]);
    assert!(refusal.contains("(not-dicom, not-usable, "), "{refusal}");
    let refusal = hospital.refusal(&["quarantine", "retry"], &["--id", "4711"]);
    assert!(refusal.contains("got 4711"), "{refusal}");
    drop(appliance);

    // The limit is raised; offered while no appliance runs, the image is taken at the next start, and nothing else is.
    hospital.configure("");
    hospital.answer(&["quarantine", "retry"], &["--id", &number]);
    let _appliance = hospital.start("second.log");
    wait_until("the image is in the data set", || hospital.images() == 2);
    wait_until("it is set aside no longer", || {
        hospital.quarantine().starts_with("2 objects are set aside\n")
    });
    assert!(!hospital.quarantine().contains(OBJECT));
    let aside = fs::read_dir(hospital.path("data/intake/spool/quarantine")).unwrap().count();
    assert_eq!((aside, fs::read_dir(hospital.path("incoming/quarantine")).unwrap().count()), (0, 2));

    // Everything else fails again, and nothing is lost.
    let offered = hospital.answer(&["quarantine", "retry"], &[]);
    assert!(offered.starts_with("2 objects are offered once more\n"), "{offered}");
    wait_until("both are set aside again", || hospital.quarantine().starts_with("2 objects are set aside\n"));
    assert_eq!(fs::read_dir(hospital.path("incoming/quarantine")).unwrap().count(), 2);
}

#[test]
fn a_studys_report_says_what_was_done_and_pseudonyms_lead_back_to_the_pacs() {
    const STUDY: &str = "1.3.6.1.4.1.5962.1.2.1.20040119072730.12322";
    let hospital = Hospital::new();
    hospital.configure("");
    let _appliance = hospital.start("log");
    hospital.push(&real("CT_small.dcm"));
    wait_until("it is in the data set", || hospital.images() == 1);
    let report = hospital.answer(&["report", STUDY], &[]);
    println!("{report}");
    let value = |text: &str, name: &str| {
        let line = text.lines().find_map(|line| line.trim_start().strip_prefix(name));
        line.unwrap_or_else(|| panic!("{name} in\n{text}")).trim().to_owned()
    };
    assert_eq!(value(&report, "in the PACS:"), STUDY);
    for words in [
        "1 object is de-identified\n",
        "113100, 113101",
        "remap-uid\n",
        "pixels: 1 frames looked at for burned-in text, ",
        "no object is held back\n",
    ] {
        assert!(report.contains(words), "{words}\nin\n{report}");
    }
    assert!(!report.contains("CompressedSamples") && !report.contains("1CT1"), "{report}");
    let (study, patient) = (value(&report, "study "), value(&report, "patient:"));
    assert_eq!(hospital.answer(&["report", &study], &[]), report, "by its pseudonym as by its UID");

    let refusal = hospital.refusal(&["report", "1.2.3"], &[]);
    assert!(refusal.contains("got 1.2.3: the de-identifier has seen nothing of it"), "{refusal}");

    assert_eq!(hospital.answer(&["relink", &study], &[]), format!("study {STUDY}\n"));
    assert!(hospital.answer(&["relink", &patient], &[]).starts_with("patient 1CT1\n"));
    let refusal = hospital.refusal(&["relink", &"0".repeat(32)], &[]);
    assert!(refusal.contains("expected a pseudonym"), "{refusal}");
}
