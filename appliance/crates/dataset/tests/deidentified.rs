//! The way of real objects: de-identified, added, labelled by accession number and by report.

#![allow(clippy::unwrap_used, reason = "tests")]

use medinet_dataset::{Added, CodePattern, Dataset, DatasetSettings, SrCode};
use medinet_deident::{DeidentSettings, Deidentified, Deidentifier, Identified, Origin};
use medinet_model::{
    InputShape, Intensity, NetworkManifest, Normalisation, Preprocessing, Resize, Slices, TaskSpec,
};
use medinet_types::{TaskId, UnixMillis};
use std::path::Path;
use std::process::Command;

fn task() -> TaskSpec {
    let input = InputShape { channels: 1, height: 32, width: 32 };
    TaskSpec {
        task: TaskId::new("chest").unwrap(),
        purpose: "tells pneumonia from normal chest X-rays".into(),
        network: NetworkManifest::small(input, vec!["normal".into(), "pneumonia".into()]),
        preprocessing: Preprocessing {
            slices: Slices::Single,
            intensity: Intensity::Voi,
            denoise: false,
            spacing_mm: None,
            resize: Resize::Letterbox,
            normalisation: Normalisation::PerImage,
        },
    }
}

#[test]
fn labels_meet_their_images_though_neither_keeps_an_identifier() {
    let folder = tempfile::tempdir().unwrap();
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..");
    let venv =
        std::env::var_os("MEDINET_VENV").map_or_else(|| repository.join(".venv"), std::path::PathBuf::from);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/make_reports.py");
    let made = Command::new(venv.join("bin/python")).arg(script).arg(folder.path()).output();
    let made = made.expect("the virtual environment of requirements-test.txt");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));

    let deidentifier =
        Deidentifier::open(DeidentSettings::default(), &folder.path().join("deident")).unwrap();
    let clean = |name: &str| -> Deidentified {
        let bytes = std::fs::read(folder.path().join(name)).unwrap();
        deidentifier.apply(Identified::new(bytes, Origin::WatchedFolder)).unwrap()
    };
    let code =
        |value: &str| CodePattern { scheme: Some("SCT".into()), value: Some(value.into()), meaning: None };
    let settings = DatasetSettings {
        labels_csv: vec![folder.path().join("labels.csv")],
        sr_codes: vec![SrCode {
            concept: Some(code("233604007")),
            value: code("2667000"),
            class: "normal".into(),
        }],
        ..DatasetSettings::default()
    };
    let data = folder.path().join("data");
    let mut dataset = Dataset::open(&data, &task(), &settings).unwrap();
    let now = UnixMillis(1_700_000_000_000);
    let image = clean("image.dcm");
    assert_eq!(dataset.add(&image, now).unwrap(), Added::Image { frames: 1 });
    assert_eq!(dataset.add(&clean("image.dcm"), now).unwrap(), Added::Unchanged, "cleaning is repeatable");

    std::fs::write(folder.path().join("labels.csv"), "accession_number,label\nACC-77,pneumonia\n").unwrap();
    let import = dataset.import_configured_labels(|text| deidentifier.accession_key(text), now).unwrap();
    assert_eq!((import.changed, import.with_images), (1, 1));
    assert_eq!(dataset.manifest().unwrap().images_per_class(), [0, 1]);

    assert_eq!(dataset.add(&clean("presence.dcm"), now).unwrap(), Added::Report { labels: 1 });
    assert_eq!(dataset.manifest().unwrap().images_per_class(), [1, 0], "a report overrides a file");

    drop(dataset);
    let mut stack = vec![data];
    while let Some(path) = stack.pop() {
        if path.is_dir() {
            stack.extend(std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        let raw = std::fs::read(&path).unwrap();
        let plain = zstd::decode_all(&raw[..]).unwrap_or(raw);
        let holds = |needle: &[u8]| plain.windows(needle.len()).any(|window| window == needle);
        assert!(!holds(b"ACC-77"), "{}", path.display());
    }
}
