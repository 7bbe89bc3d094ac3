//! The program as central operations start it.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn sample() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/aggregator.toml")
}

fn check(config: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_medinet-aggregator"))
        .args(["--check", "--config"])
        .arg(config)
        .output()
        .unwrap()
}

#[test]
fn the_sample_passes_its_check() {
    let output = check(&sample());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_mistake_is_named_with_its_line() {
    // Beside the sample's other files, which it names by relative paths.
    let folder = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(sample()).unwrap();
    std::fs::copy(sample().with_file_name("task-pneumonia.toml"), folder.path().join("task-pneumonia.toml"))
        .unwrap();
    let config = folder.path().join("aggregator.toml");
    std::fs::write(&config, format!("colour = \"red\"\n{text}")).unwrap();
    let output = check(&config);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(error.contains("aggregator.toml:1:") && error.contains("colour"), "{error}");
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let output = check(Path::new("/nonexistent/aggregator.toml"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains("/nonexistent/aggregator.toml"), "{error}");
}
