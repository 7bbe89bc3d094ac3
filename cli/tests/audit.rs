//! `medinet audit privacy` as it is run: it starts `medinet-study`, which lies beside it.
#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

fn audit(out: &Path, line: &str) -> Output {
    // In the package's folder, from which the checkout is found.
    Command::new(env!("CARGO_BIN_EXE_medinet"))
        .args(["audit", "privacy", "--out"])
        .arg(out)
        .args(line.split_whitespace())
        .output()
        .unwrap()
}

#[test]
fn a_quick_audit_writes_a_report_and_says_what_it_found() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("audit");
    let Output { status, stdout, stderr } =
        audit(&out, "--quick --rounds 1 --private 0 --no-inversion --seed 5");
    let (shown, progress) = (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
    assert!(status.success(), "{progress}");
    assert!(progress.contains("shadow model 4 of 4 trained"), "{progress}");
    assert!(shown.contains("LiRA, plain training") && shown.contains("audit.html"), "{shown}");
    let figures: Value = serde_json::from_slice(&std::fs::read(out.join("audit.json")).unwrap()).unwrap();
    assert_eq!(figures["study"]["seed"], 5);
    assert_eq!(figures["membership"][0]["attacks"].as_array().unwrap().len(), 2);
    let page = std::fs::read_to_string(out.join("audit.html")).unwrap();
    assert!(page.starts_with("<!doctype html>") && page.contains("<svg"));
}

#[test]
fn a_model_that_cannot_be_read_is_named_and_the_status_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let line = "--model /nowhere/model.bundle --ledger-key /nowhere/ledger.pub --federation demo --members a --others b";
    let Output { status, stderr, .. } = audit(folder.path(), line);
    let error = String::from_utf8(stderr).unwrap();
    assert!(!status.success() && error.contains("/nowhere/ledger.pub"), "{error}");
    assert!(!folder.path().join("audit.html").exists());
}
