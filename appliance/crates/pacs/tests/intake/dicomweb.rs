//! The client against Orthanc, Orthanc behind nginx (TLS, client certificates, limits), and tiny-pacs (bearer token).

use super::cstore::{cstore_settings, storescu};
use super::folder::folder_settings;
use super::support::{
    FolderSink, Orthanc, Process, corpus, drop_into, free_port, http_get, pass, pull_settings, settings_for,
    store_all, venv, wait_until,
};
use bytes::Bytes;
use dicom_dictionary_std::tags;
use medinet_pacs::dicomweb::{DicomWebClient, StoreFailure, StoreOutcome};
use medinet_pacs::{ClientIdentity, DicomWebAuth, DicomWebError, DicomWebSettings, Intake};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

const STUDY: &str = "1.2.826.0.1.3680043.10.1611.30";

fn synthetic(name: &str) -> Bytes {
    let path = corpus().synthetic.iter().find(|path| path.ends_with(name)).unwrap();
    fs::read(path).unwrap().into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn searching_metadata_objects_and_frames_from_orthanc() {
    let orthanc = Orthanc::start();
    let settings = orthanc.settings();
    let client = DicomWebClient::new(&settings).unwrap();
    let reader = client.dangerous();
    assert!(reader.search_studies(&[]).await.unwrap().matches.is_empty(), "an empty archive");
    store_all(&settings, &corpus().synthetic).await;

    // Pages of 3: every study once, although several pages were needed.
    let studies = reader.search_studies(&[]).await.unwrap();
    assert_eq!((studies.matches.len(), studies.nameless), (10, 0));
    assert!(studies.pages >= 4, "{} pages", studies.pages);
    let series = reader.search_series(STUDY).await.unwrap().matches.remove(0);
    assert_eq!(series.attributes.text(tags::MODALITY).as_deref(), Some("CT"));
    let expected = series.attributes.number(tags::NUMBER_OF_SERIES_RELATED_INSTANCES);
    assert_eq!(expected, Some(11));
    let instances = reader.search_instances(STUDY, series.uid(), expected).await.unwrap();
    assert_eq!((instances.matches.len(), instances.pages), (11, 4));

    // Metadata keep what searching spoils.
    let mr = "1.2.826.0.1.3680043.10.1611.2";
    let metadata = reader.series_metadata(mr, &format!("{mr}.1")).await.unwrap();
    assert_eq!(metadata.len(), 6);
    let object = metadata[0].to_object().unwrap();
    let name = object.element(tags::PATIENT_NAME).unwrap().to_str().unwrap().into_owned();
    assert!(name.contains("Yamada^Tarou"), "metadata hold the name");

    // Objects come as they were stored: the same data set, in the same encoding.
    let sent = synthetic("mr-1.dcm");
    let parts = reader.retrieve_instance(mr, &format!("{mr}.1"), &format!("{mr}.1.1")).await.unwrap();
    let parts = parts.collect(1 << 20).await.unwrap();
    assert_eq!(parts.len(), 1);
    let (sent, got) =
        [&sent, &parts[0].bytes].map(|file| dicom_object::from_reader(&file[..]).unwrap()).into();
    assert_eq!(sent.meta().transfer_syntax(), got.meta().transfer_syntax());
    let pixels = |object: &dicom_object::DefaultDicomObject| {
        object.element(tags::PIXEL_DATA).unwrap().value().fragments().unwrap().to_vec()
    };
    assert!(pixels(&sent) == pixels(&got));
    let whole = reader.retrieve_study(STUDY).await.unwrap().collect(1 << 20).await.unwrap();
    assert_eq!(whole.len(), 11);
    let too_large = reader.retrieve_study(STUDY).await.unwrap().collect(1000).await.unwrap_err();
    assert!(matches!(too_large, DicomWebError::AnswerTooLarge { limit_bytes: 1000 }));

    // Frames of the film; RLE, so what comes is one fragment each, or the plain pixels.
    let film = "1.2.826.0.1.3680043.10.1611.20";
    let frames =
        reader.retrieve_frames(film, &format!("{film}.1"), &format!("{film}.1.1"), &[1, 4]).await.unwrap();
    let frames = frames.collect(1 << 20).await.unwrap();
    assert_eq!(frames.len(), 2);
    assert!(frames.iter().all(|frame| frame.bytes.len() > 1000) && frames[0].bytes != frames[1].bytes);
    let missing = reader.retrieve_instance("1.2.3", "1.2.3.4", "1.2.3.4.5").await.err().unwrap();
    assert!(missing.concerns_one_object(), "{missing}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn storing_believes_only_what_the_answer_names() {
    let orthanc = Orthanc::start();
    let client = DicomWebClient::new(&orthanc.settings()).unwrap();
    let good = synthetic("x-10.dcm");
    // A header that names an object, and a body that is cut in the middle of an element.
    let cut = synthetic("x-11.dcm").slice(..600);
    let files = [good.clone(), Bytes::from_static(b"no DICOM"), cut, synthetic("x-12.dcm"), good.clone()];
    let outcomes = client.store(&files).await.unwrap();
    assert_eq!(outcomes[0], StoreOutcome::Stored);
    assert_eq!(outcomes[1], StoreOutcome::Failed(StoreFailure::NotAnObject));
    assert_eq!(outcomes[3], StoreOutcome::Stored, "the good one after the bad one");
    assert_eq!(outcomes[4], StoreOutcome::Stored, "once more is no fault");
    let stored = outcomes.iter().filter(|outcome| **outcome == StoreOutcome::Stored).count() as u64;
    assert_eq!(orthanc.instances(), stored - 1, "what is called stored is there");
}

/// nginx before a PACS.
struct Front {
    dir: TempDir,
    port: u16,
    _process: Process,
}

impl Front {
    /// `http` and `location` are nginx directives; `tls` brings certificates.
    fn start(upstream: u16, tls: bool, http: &str, location: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        let here = dir.path().display();
        if tls {
            certificates(dir.path());
        }
        let (listen, certificate) = if tls {
            (" ssl", format!("ssl_certificate {here}/server.crt; ssl_certificate_key {here}/server.key;"))
        } else {
            ("", String::new())
        };
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|name| format!("{name}_temp_path {here}/{name};"))
            .concat();
        let config = format!(
            "daemon off; worker_processes 1; pid {here}/pid; error_log {here}/error.log;
            events {{ worker_connections 64; }}
            http {{ access_log off; {temporary} {http}
              server {{ listen 127.0.0.1:{port}{listen}; {certificate}
                location / {{ {location} proxy_pass http://127.0.0.1:{upstream}; proxy_http_version 1.1;
                  proxy_set_header Host $http_host; }} }} }}"
        );
        fs::write(dir.path().join("nginx.conf"), config).unwrap();
        let child = Command::new("/usr/sbin/nginx")
            .arg("-c")
            .arg(dir.path().join("nginx.conf"))
            .arg("-e")
            .arg(dir.path().join("error.log"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nginx is installed (apt-get install nginx-light)");
        let process = Process(child);
        wait_until("nginx", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
        Self { dir, port, _process: process }
    }

    fn settings(&self, scheme: &str) -> DicomWebSettings {
        let mut settings =
            settings_for(&format!("{scheme}://127.0.0.1:{}/dicom-web", self.port), self.dir.path());
        if scheme == "https" {
            settings.ca_file = Some(self.dir.path().join("ca.crt").into());
        }
        settings
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        // The master, when told so, ends its worker; a killed one leaves it behind.
        let pid = fs::read_to_string(self.dir.path().join("pid")).unwrap_or_default();
        let _ = Command::new("kill").arg(pid.trim()).status();
        let _ = self._process.0.wait();
    }
}

/// A CA and two leaves, by openssl.
fn certificates(dir: &Path) {
    let script = r#"set -e
        openssl ecparam -name prime256v1 -genkey -noout -out ca.key
        openssl req -x509 -new -key ca.key -days 2 -subj "/CN=test CA" -out ca.crt -addext keyUsage=critical,keyCertSign
        for n in server client; do
          openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out $n.key
          openssl req -new -key $n.key -subj "/CN=$n" -out $n.csr
          printf 'basicConstraints=critical,CA:FALSE\nextendedKeyUsage=serverAuth,clientAuth\nsubjectAltName=IP:127.0.0.1\n' > ext
          openssl x509 -req -in $n.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -out $n.crt -extfile ext
        done"#;
    let made = Command::new("bash").args(["-c", script]).current_dir(dir).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_with_the_sites_own_authority_and_a_client_certificate() {
    let orthanc = Orthanc::start();
    store_all(&orthanc.settings(), &corpus().synthetic[..2]).await;
    let front = Front::start(orthanc.port, true, "", "");
    let client = DicomWebClient::new(&front.settings("https")).unwrap();
    assert_eq!(client.dangerous().search_studies(&[]).await.unwrap().matches.len(), 1);

    // Another authority: the connection is refused, by us.
    let other = tempfile::tempdir().unwrap();
    certificates(other.path());
    let mut stranger = front.settings("https");
    stranger.ca_file = Some(other.path().join("ca.crt").into());
    stranger.max_attempts = 1;
    let error = DicomWebClient::new(&stranger).unwrap().dangerous().search_studies(&[]).await.unwrap_err();
    assert!(matches!(error, DicomWebError::Connection { .. }), "{error}");

    // The server asks for a certificate: with one it works, without it does not.
    let here = front.dir.path().display().to_string();
    let mutual = Front::start(
        orthanc.port,
        true,
        &format!("ssl_client_certificate {here}/ca.crt; ssl_verify_client on;"),
        "",
    );
    let mut settings = mutual.settings("https");
    settings.max_attempts = 1;
    let without = DicomWebClient::new(&settings).unwrap().dangerous().search_studies(&[]).await;
    assert!(without.is_err());
    settings.client_identity = Some(ClientIdentity {
        certificate_file: front.dir.path().join("client.crt").into(),
        key_file: front.dir.path().join("client.key").into(),
    });
    settings.ca_file = Some(mutual.dir.path().join("ca.crt").into());
    let client = DicomWebClient::new(&settings).unwrap();
    assert_eq!(client.dangerous().search_studies(&[]).await.unwrap().matches.len(), 1);
    let (dir, sink_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let sink = FolderSink::new(sink_dir.path());
    assert_eq!(pass(pull_settings(settings), dir.path(), sink).await.0.ingested, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_credentials_are_told_as_such_and_new_ones_are_read() {
    let orthanc = Orthanc::start();
    let settings = orthanc.settings();
    let DicomWebAuth::Basic { password_file, .. } = settings.auth.clone() else { unreachable!() };
    fs::write(password_file.path(), "wrong").unwrap();
    let client = DicomWebClient::new(&settings).unwrap();
    let error = client.dangerous().search_studies(&[]).await.unwrap_err();
    assert!(matches!(error, DicomWebError::Unauthorized { status: 401 }), "{error}");
    // Somebody corrects the file; the program need not be started again.
    fs::write(password_file.path(), "secret").unwrap();
    assert!(client.dangerous().search_studies(&[]).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_says_too_many_is_asked_more_slowly() {
    let orthanc = Orthanc::start();
    let files: Vec<PathBuf> = corpus().synthetic.clone();
    store_all(&orthanc.settings(), &files).await;
    let limit = "limit_req_zone $binary_remote_addr zone=r:1m rate=20r/s; limit_req_status 429;";
    let front = Front::start(orthanc.port, false, limit, "limit_req zone=r burst=2 nodelay;");
    let (dir, sink_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut settings = front.settings("http");
    settings.max_attempts = 8;
    let sink = FolderSink::new(sink_dir.path());
    let (progress, _) = pass(pull_settings(settings.clone()), dir.path(), sink).await;
    assert_eq!((progress.ingested as usize, progress.quarantined), (files.len(), 0));
    // Without a second try the limit shows.
    settings.max_attempts = 1;
    let client = DicomWebClient::new(&settings).unwrap();
    let mut refused = false;
    for _ in 0..20 {
        refused |= matches!(
            client.dangerous().search_studies(&[]).await,
            Err(DicomWebError::Busy { status: 429, .. })
        );
    }
    assert!(refused);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_refuses_the_size_hits_only_what_is_too_large() {
    let orthanc = Orthanc::start();
    let front = Front::start(orthanc.port, false, "client_max_body_size 4k;", "");
    let client = DicomWebClient::new(&front.settings("http")).unwrap();
    let outcomes = client.store(&[synthetic("sc-multi.dcm"), synthetic("x-10.dcm")]).await.unwrap();
    assert_eq!(outcomes, [StoreOutcome::Failed(StoreFailure::Status(413)), StoreOutcome::Stored]);
    assert_eq!(orthanc.instances(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pacs_that_is_down_holds_up_neither_peers_nor_the_folder_and_is_pulled_from_when_it_is_back() {
    let dir = tempfile::tempdir().unwrap();
    let (port, watched) = (free_port(), dir.path().join("watched"));
    fs::create_dir_all(&watched).unwrap();
    let web = settings_for(&format!("http://127.0.0.1:{port}/dicom-web"), dir.path());
    let down = DicomWebClient::new(&web).unwrap().dangerous().search_studies(&[]).await.unwrap_err();
    assert!(matches!(down, DicomWebError::Connection { .. }) && !down.concerns_one_object(), "{down}");

    let mut settings = cstore_settings();
    settings.dicomweb = Some(web.clone());
    settings.folder = Some(folder_settings(&watched));
    let sink = FolderSink::new(dir.path().join("sink"));
    let intake = Intake::open(settings, &dir.path().join("data"), sink.clone()).unwrap();
    let (address, mut first_pass) = (intake.cstore_address().unwrap(), intake.first_pass());
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(intake.run(shutdown.clone()));
    let pushed = corpus().synthetic[..1].to_vec();
    let output =
        tokio::task::spawn_blocking(move || storescu(address, "PACS", "MEDINET", &pushed)).await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    drop_into(&watched, &corpus().synthetic[1], "dropped.dcm");
    wait_until("what was pushed and what was dropped", || sink.objects().len() == 2);
    assert!(!*first_pass.borrow(), "nobody knows what the PACS has");

    let orthanc = Orthanc::start_at(port);
    store_all(&web, &corpus().synthetic[2..5]).await;
    wait_until("what the PACS has", || sink.objects().len() == 5);
    first_pass.wait_for(|done| *done).await.unwrap();
    shutdown.cancel();
    running.await.unwrap().unwrap();
    drop(orthanc);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_make_of_server_with_a_bearer_token() {
    let dir = tempfile::tempdir().unwrap();
    let (port, dimse) = (free_port(), free_port());
    let here = dir.path().display();
    fs::create_dir(dir.path().join("store")).unwrap();
    let config = format!(
        "ae: {{ae_title: [TINY_PACS], port: {dimse}, dump_ds: false}}
components:
  Database: {{on: true, db_name: {here}/db.sqlite}}
  Devices: {{on: true, auto_add: true}}
  PACS: {{on: true}}
  FileStorage: {{on: true, storage_dir: {here}/store}}
  InMemoryStorage: {{on: false}}
  HttpServer: {{on: true, host: 127.0.0.1, port: {port}}}
  DICOMWeb: {{on: true, prefix: /dicomweb, auth: token, tokens: [\"s3cret\"]}}
"
    );
    fs::write(dir.path().join("config.yaml"), config).unwrap();
    let child = Command::new(venv("tiny-pacs"))
        .args(["run", "-c"])
        .arg(dir.path().join("config.yaml"))
        .stdout(Stdio::null())
        .stderr(fs::File::create(dir.path().join("log")).unwrap())
        .spawn()
        .expect("tiny-pacs is in the virtual environment (pip install -r requirements-test.txt)");
    let _process = Process(child);
    wait_until("tiny-pacs", || {
        http_get(port, "/dicomweb/studies", "Bearer s3cret")
            .is_some_and(|(status, _)| matches!(status, 200 | 204))
    });
    let token_file = dir.path().join("token");
    fs::write(&token_file, "s3cret\n").unwrap();
    fs::set_permissions(&token_file, fs::Permissions::from_mode(0o600)).unwrap();
    let mut settings = settings_for(&format!("http://127.0.0.1:{port}/dicomweb"), dir.path());
    settings.auth = DicomWebAuth::Bearer { token_file: medinet_settings::SecretFile::new(token_file) };
    let stored = store_all(&settings, &corpus().synthetic).await;
    assert!(stored > 0);
    let sink = FolderSink::new(dir.path().join("sink"));
    let (progress, reasons) = pass(pull_settings(settings), &dir.path().join("data"), sink.clone()).await;
    println!("tiny-pacs: {stored} stored, {progress:?} {reasons:?}");
    assert_eq!((progress.ingested as usize, progress.open()), (stored, 0));
    assert_eq!(sink.calls(), (stored, 0));
}
