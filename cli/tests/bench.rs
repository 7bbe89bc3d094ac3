//! `medinet bench` as it is run: our side and the foreign one in processes of their own.
//!
//! onnxruntime comes from the Python environment that `MEDINET_VENV` names (default `.venv` in the repository), made
//! from `requirements-test.txt`. The larger peers are no part of the tests; what happens without them is.
#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

#[path = "../../crates/inference/tests/common/mod.rs"]
mod common;

use medinet_model::InputShape;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn bench(dir: &Path, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_medinet"));
    // In the package's folder, from which the checkout is found.
    command.arg("bench").args(line.split_whitespace()).arg("--json").arg(dir.join("result.json"));
    command
}

/// Without any of the foreign programs.
fn alone(mut command: Command) -> Command {
    command.env("MEDINET_VENV", "/nowhere").env("MEDINET_BENCH_VENV", "/nowhere");
    command
}

#[track_caller]
fn done(mut command: Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

fn result(dir: &Path) -> Value {
    serde_json::from_slice(&fs::read(dir.join("result.json")).unwrap()).unwrap()
}

fn row<'a>(report: &'a Value, quantity: &str) -> &'a Value {
    let rows = report["rows"].as_array().unwrap();
    rows.iter().find(|row| row["quantity"] == quantity).unwrap()
}

/// An exported model in `dir`.
fn model(dir: &Path) -> String {
    let spec = common::spec(InputShape { channels: 3, height: 32, width: 28 }, &["normal", "pneumonia"]);
    let path = dir.join("model.onnx");
    fs::write(&path, common::onnx(&spec, &common::parameters(&spec, 3), true)).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn both_runtimes_run_the_same_file_in_processes_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path());
    let text = done(bench(folder.path(), &format!("inference --runs 3 --model {model}")));
    assert!(text.contains("model.onnx") && text.contains("onnxruntime 1."), "{text}");
    let json = result(folder.path());
    let report = &json["reports"][0];
    assert_eq!(report["bench"], "inference");
    let latency = row(report, "latency");
    let (ours, peer) =
        (latency["ours"]["median"].as_f64().unwrap(), latency["peer"]["median"].as_f64().unwrap());
    assert_eq!((&latency["ours"]["count"], &latency["peer"]["count"]), (&3.into(), &3.into()));
    assert!(ours > 0.0 && (latency["ratio"].as_f64().unwrap() - peer / ours).abs() < 1e-9);
    // Both computed the same, and each side's memory is its own.
    assert!(row(report, "largest difference of a logit")["ours"]["median"].as_f64().unwrap() < 1e-4);
    let memory = row(report, "peak memory");
    assert!(memory["ours"]["median"].as_f64().unwrap() > 1.0);
    assert_ne!(memory["ours"]["median"], memory["peer"]["median"]);
    assert!(json["command"].as_str().unwrap().starts_with("medinet bench inference --runs 3"));
}

#[test]
fn without_the_peer_ours_is_measured_alone_and_says_how_to_get_it() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path());
    let text = done(alone(bench(folder.path(), &format!("inference --runs 2 --model {model}"))));
    assert!(text.contains("(ours alone)"), "{text}");
    assert!(text.contains("onnxruntime is not installed: `cargo xtask setup` does it"), "{text}");
    let json = result(folder.path());
    let latency = row(&json["reports"][0], "latency");
    assert!(latency["peer"].is_null() && latency["ratio"].is_null() && !latency["ours"].is_null());

    let text = done(alone(bench(folder.path(), "secagg --coordinates 2000 --runs 1 --quick")));
    assert!(text.contains("Flower is not installed: `cargo xtask setup --bench` does it"), "{text}");
    let json = result(folder.path());
    assert!(row(&json["reports"][0], "server: unmask, 10 lost")["ours"]["median"].as_f64().unwrap() > 0.0);
    let upload = row(&json["reports"][0], "site: upload")["ours"]["median"].as_f64().unwrap();
    assert!((3750.0..4000.0).contains(&upload), "2000 coordinates of 15 bits, got {upload} bytes");
}

#[test]
fn an_update_is_compared_with_both_encodings_of_float32() {
    let folder = tempfile::tempdir().unwrap();
    let text = done(bench(folder.path(), "update --parameters 10000 --runs 2"));
    assert!(text.contains("zstd 3 of float32"), "{text}");
    let json = result(folder.path());
    let bytes = row(&json["reports"][0], "bytes");
    assert_eq!((&bytes["subject"], &bytes["peer"]["median"]), (&"8 bits".into(), &40_000.0.into()));
    assert!(bytes["ratio"].as_f64().unwrap() > 3.5);
    assert_eq!(json["reports"].as_array().unwrap().len(), 2);
}

#[test]
fn a_file_that_cannot_be_measured_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let output = bench(folder.path(), "inference --model /nowhere/model.onnx").output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && error.contains("cannot read /nowhere/model.onnx"), "{error}");
    assert!(!folder.path().join("result.json").exists());
}
