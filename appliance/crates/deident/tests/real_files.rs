//! Real and malformed files of many kinds: each ends cleaned or held back with a reason, and what is cleaned reads again.

use medinet_deident::{DeidentSettings, Deidentifier, Identified, Origin};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

#[path = "../../objects/tests/real/mod.rs"]
mod real;

#[test]
fn every_file_is_cleaned_or_held_back() {
    let files: Vec<PathBuf> = real::RealFiles::find().all().cloned().collect();
    let scratch = tempfile::tempdir().expect("a temporary folder");
    let deidentifier = Deidentifier::open(DeidentSettings::default(), scratch.path()).expect("opens");
    let outputs = scratch.path().join("cleaned");
    fs::create_dir(&outputs).expect("a temporary folder");
    let mut held = BTreeMap::<String, Vec<String>>::new();
    let mut cleaned = 0;
    for path in &files {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let bytes = fs::read(path).expect("a readable file");
        match deidentifier.apply(Identified::new(bytes, Origin::DicomWeb)) {
            Ok(object) => {
                let written = object.to_bytes().unwrap_or_else(|error| panic!("{name}: {error}"));
                assert!(written[..128].iter().all(|&byte| byte == 0), "{name}: preamble");
                let again = dicom_object::from_reader(written.as_slice());
                let again = again.unwrap_or_else(|error| panic!("{name}: {error}"));
                let want = object.instance_uid();
                assert_eq!(again.meta().media_storage_sop_instance_uid(), want, "{name}");
                cleaned += 1;
                if let Some(pixels) = object.report().pixels.as_ref().filter(|p| !p.blanked.is_empty()) {
                    println!(
                        "blanked {} in {} frames of {name} {:?}",
                        pixels.blanked.len(),
                        pixels.frames,
                        pixels.suspicions
                    );
                }
                fs::write(outputs.join(format!("{cleaned}.dcm")), written).expect("writable");
            }
            Err(quarantine) => {
                held.entry(quarantine.reason.to_string()).or_default().push(name);
            }
        }
    }
    for (reason, names) in &held {
        println!("{:4} {reason}: {}", names.len(), names.join(" "));
    }
    let held_count: usize = held.values().map(Vec::len).sum();
    println!("{cleaned} cleaned, {held_count} held back of {}", files.len());
    assert_eq!(cleaned + held_count, files.len());
    assert!(cleaned * 2 > files.len(), "most of these files are sound");
    assert!(held.keys().all(|reason| !reason.contains("the de-identifier failed")), "{held:?}");

    // A foreign reader opens each, down to its pixels, and finds it marked.
    let venv = std::env::var_os("MEDINET_VENV")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../.venv"), PathBuf::from);
    let read =
        Command::new(venv.join("bin/python")).args(["-W", "ignore", "-c", READER]).arg(&outputs).output();
    let read = read.expect("python runs; `cargo xtask test` makes its environment");
    assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
    assert_eq!(String::from_utf8_lossy(&read.stdout).trim(), cleaned.to_string());
}

const READER: &str = "
import pathlib, sys
from pydicom import config, dcmread
config.settings.reading_validation_mode = config.IGNORE
count = 0
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    data = dcmread(path)
    assert data.PatientIdentityRemoved == 'YES', path
    assert data.file_meta.TransferSyntaxUID == '1.2.840.10008.1.2.1', path
    assert 'SourceApplicationEntityTitle' not in data.file_meta, path
    assert not [e for e in data.iterall() if e.tag.group in range(0x6000, 0x6020, 2)], path
    if 'PixelData' in data:
        data.pixel_array
    count += 1
print(count)
";
