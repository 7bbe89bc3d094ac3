//! Real DICOM files of other authors, for the tests of every crate that takes some in.
//!
//! Most come with pydicom: its package, which `requirements-test.txt` installs at one version, holds its own test files (their
//! sources are in `test_files/README.txt` there). So they are at hand wherever tests run, and this repository carries no file whose
//! licence nobody has settled. The larger ones, of pydicom-data and cornerstone, are taken from the folder shared/data/dicom beside
//! the checkout if there is one; a test that does not find them says so past the harness, which hides what a test that passes prints.
#![allow(dead_code, reason = "each test uses a part")]
#![allow(clippy::unwrap_used, reason = "a helper that fails fails the test")]

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Once;

/// The fewest files that pydicom's package holds; version 3.0.2 has 167.
const LEAST: usize = 160;

pub(crate) struct RealFiles {
    /// Those of pydicom's package, sorted: always there.
    pub(crate) carried: Vec<PathBuf>,
    /// The larger ones, sorted; none where they do not lie beside the checkout.
    pub(crate) beside: Vec<PathBuf>,
}

impl RealFiles {
    pub(crate) fn find() -> Self {
        let folder = carried_folder();
        let mut carried = files_below(&folder);
        carried.retain(|path| is_dicom(path));
        assert!(
            carried.len() >= LEAST,
            "expected at least {LEAST} DICOM files below {}, got {}: install requirements-test.txt anew",
            folder.display(),
            carried.len()
        );
        let beside = repository().join("../shared/data/dicom");
        let found: Vec<PathBuf> = ["cornerstone", "pydicom_data"]
            .iter()
            .map(|name| beside.join(name))
            .filter(|folder| folder.is_dir())
            .flat_map(|folder| files_below(&folder))
            .collect();
        if found.is_empty() {
            static SAID: Once = Once::new();
            SAID.call_once(|| {
                let (count, at) = (carried.len(), beside.display());
                let _ = writeln!(
                    std::io::stderr(),
                    "NOTICE: no larger DICOM files at {at}: tested on the {count} of pydicom alone"
                );
            });
        }
        Self { carried, beside: found }
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &PathBuf> {
        self.carried.iter().chain(&self.beside)
    }
}

/// The folder of pydicom's own test files.
pub(crate) fn carried_folder() -> PathBuf {
    let venv = std::env::var_os("MEDINET_VENV").map_or_else(|| repository().join(".venv"), PathBuf::from);
    let versions = fs::read_dir(venv.join("lib")).into_iter().flatten().filter_map(Result::ok);
    versions
        .map(|version| version.path().join("site-packages/pydicom/data/test_files"))
        .find(|folder| folder.is_dir())
        .unwrap_or_else(|| {
            panic!("expected pydicom in {}, got none: `cargo xtask test` installs it", venv.display())
        })
}

/// Every crate that includes this file lies three folders below the repository's root.
fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..")
}

/// Between the objects lie notes, dumps and a colour profile.
fn is_dicom(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "dcm")
        || fs::read(path).unwrap().get(128..132) == Some(b"DICM")
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    files
}
