//! The program itself.

use crate::clients::Running;
use crate::fixture::{Parties, settings, topic};
use crate::raw::Raw;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

const PROGRAM: &str = env!("CARGO_BIN_EXE_medinet-broker");

fn settings_file(parties: &Parties) -> PathBuf {
    let path = parties.path().join("broker.toml");
    std::fs::write(&path, toml::to_string(&settings(parties)).unwrap()).unwrap();
    path
}

#[tokio::test]
async fn it_runs_from_one_file_serves_and_ends_on_sigterm() {
    let parties = Parties::new();
    let child = Command::new(PROGRAM)
        .arg("--config")
        .arg(settings_file(&parties))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut running = Running(child);
    let mut line = String::new();
    let mut out = BufReader::new(running.0.stdout.take().unwrap());
    out.read_line(&mut line).unwrap();
    let address: SocketAddr = line.trim().strip_prefix("listening on ").unwrap().parse().unwrap();
    let mut client = Raw::open(address, &parties.identity("site:north")).await.unwrap();
    client.connect("c", true).await;
    client.publish(&topic("C/site/north/up/msg"), b"secret payload").await;

    let pid = running.0.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    client.closed().await;
    assert!(running.0.wait().unwrap().success());
    let mut log = String::new();
    running.0.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    assert!(log.contains("site:north") && log.contains("shut down"), "{log}");
    assert!(!log.contains("secret payload"), "{log}");
}

#[test]
fn check_reads_the_file_and_starts_nothing() {
    let parties = Parties::new();
    let path = settings_file(&parties);
    let check = || Command::new(PROGRAM).arg("--check").arg("--config").arg(&path).output().unwrap();
    assert!(check().status.success());
    let mut text = std::fs::read_to_string(&path).unwrap();
    text = text.replace("write_timeout = \"30 s\"", "write_timeout = \"30 parsecs\"");
    let line = 1 + text.lines().position(|l| l.starts_with("write_timeout")).unwrap();
    std::fs::write(&path, text).unwrap();
    let output = check();
    assert!(!output.status.success());
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains(&format!("broker.toml:{line}:")) && error.contains("30 parsecs"), "{error}");
}

#[test]
fn it_writes_mosquittos_files() {
    let parties = Parties::new();
    let path = settings_file(&parties);
    let folder = parties.path().join("out");
    std::fs::create_dir(&folder).unwrap();
    let output =
        Command::new(PROGRAM).arg("--config").arg(&path).arg("--mosquitto").arg(&folder).output().unwrap();
    assert!(output.status.success());
    let acl = std::fs::read_to_string(folder.join("acl")).unwrap();
    assert!(acl.contains("user north\n") && acl.contains(&topic("topic read C/site/+/up/+\n")), "{acl}");
    assert!(std::fs::read_to_string(folder.join("mosquitto.conf")).unwrap().contains("acl_file"));
}
