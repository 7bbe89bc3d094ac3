//! Tests on synthetic de-identified objects; those with a real de-identifier and Python's SR writer are in `tests/`.

use crate::dataset::Parts;
use crate::{Added, CodePattern, Dataset, DatasetError, DatasetSettings, LabelProblemKind, Split, SrCode};
use dicom_core::value::{DataSetSequence, PrimitiveValue};
use dicom_core::{DataElement, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::{FileDicomObject, FileMetaTableBuilder, InMemDicomObject};
use medinet_model::{
    InputShape, Intensity, NetworkManifest, Normalisation, Preprocessing, Resize, Slices, TaskSpec,
};
use medinet_types::{TaskId, UnixMillis};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

const NOW: UnixMillis = UnixMillis(1_700_000_000_000);

fn task(channels: u32) -> TaskSpec {
    let input = InputShape { channels, height: 28, width: 28 };
    TaskSpec {
        task: TaskId::new("chest").unwrap(),
        purpose: "tells pneumonia from normal chest X-rays".into(),
        network: NetworkManifest::small(input, vec!["normal".into(), "pneumonia".into()]),
        preprocessing: Preprocessing {
            slices: Slices::Single,
            intensity: Intensity::Percentile { low: 0.0, high: 100.0 },
            denoise: false,
            spacing_mm: None,
            resize: Resize::Stretch,
            normalisation: Normalisation::PerImage,
        },
    }
}

fn settings() -> DatasetSettings {
    let code = |value: &str, class: &str| SrCode {
        concept: None,
        value: CodePattern { scheme: Some("SCT".into()), value: Some(value.into()), meaning: None },
        class: class.into(),
    };
    DatasetSettings {
        validation_fraction: 0.25,
        test_fraction: 0.25,
        sr_codes: vec![code("233604007", "pneumonia"), code("17621005", "normal")],
        label_names: [("BACTERIAL".into(), "pneumonia".into())].into(),
        ..DatasetSettings::default()
    }
}

fn file(object: InMemDicomObject, uid: &str) -> FileDicomObject<InMemDicomObject> {
    let meta = FileMetaTableBuilder::new()
        .transfer_syntax(uids::EXPLICIT_VR_LITTLE_ENDIAN)
        .media_storage_sop_class_uid(uids::DIGITAL_X_RAY_IMAGE_STORAGE_FOR_PRESENTATION)
        .media_storage_sop_instance_uid(uid)
        .build()
        .unwrap();
    object.with_exact_meta(meta)
}

fn put(object: &mut InMemDicomObject, tag: dicom_core::Tag, vr: VR, value: impl Into<PrimitiveValue>) {
    object.put(DataElement::new(tag, vr, value.into()));
}

/// A synthetic object and the keys that a de-identifier would give.
struct Case {
    object: FileDicomObject<InMemDicomObject>,
    uid: String,
    patient: String,
    study: String,
    accession: Option<String>,
}

impl Case {
    fn image(number: u32) -> Self {
        let uid = format!("2.25.1{number:06}");
        let mut object = InMemDicomObject::new_empty();
        put(&mut object, tags::SOP_INSTANCE_UID, VR::UI, uid.as_str());
        put(&mut object, tags::SERIES_INSTANCE_UID, VR::UI, format!("2.25.2{number:06}"));
        put(&mut object, tags::MODALITY, VR::CS, "DX");
        put(&mut object, tags::ROWS, VR::US, 40u16);
        put(&mut object, tags::COLUMNS, VR::US, 30u16);
        put(&mut object, tags::SAMPLES_PER_PIXEL, VR::US, 1u16);
        put(&mut object, tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "MONOCHROME2");
        put(&mut object, tags::BITS_ALLOCATED, VR::US, 16u16);
        put(&mut object, tags::BITS_STORED, VR::US, 12u16);
        put(&mut object, tags::HIGH_BIT, VR::US, 11u16);
        put(&mut object, tags::PIXEL_REPRESENTATION, VR::US, 0u16);
        let pixels: Vec<u16> = (0..1200u32)
            .map(|i| ((i * 31 + number * 977).wrapping_mul(2_654_435_761) >> 20) as u16)
            .collect();
        object.put(DataElement::new(tags::PIXEL_DATA, VR::OW, PrimitiveValue::U16(pixels.into())));
        Self {
            object: file(object, &uid),
            uid,
            patient: format!("{:032x}", number / 2),
            study: format!("{number:032x}"),
            accession: Some(key(&format!("A{number}"))),
        }
    }

    fn slice(number: u32, position: f64) -> Self {
        let mut case = Self::image(number);
        put(&mut case.object, tags::SERIES_INSTANCE_UID, VR::UI, "2.25.77");
        put(&mut case.object, tags::MODALITY, VR::CS, "CT");
        let position = format!("0\\0\\{position}");
        case.object.put(DataElement::new(tags::IMAGE_POSITION_PATIENT, VR::DS, multi(&position)));
        case.object.put(DataElement::new(tags::IMAGE_ORIENTATION_PATIENT, VR::DS, multi("1\\0\\0\\0\\1\\0")));
        case.patient = format!("{:032x}", 9);
        case.accession = Some(key("A0"));
        case
    }

    /// A report that states `code`; about `images` where there are any, else about its study.
    fn report(number: u32, code: &str, images: &[&Self], date: &str) -> Self {
        let uid = format!("2.25.5{number:06}");
        let mut item = InMemDicomObject::new_empty();
        put(&mut item, tags::VALUE_TYPE, VR::CS, "CODE");
        let mut value = InMemDicomObject::new_empty();
        put(&mut value, tags::CODE_VALUE, VR::SH, code);
        put(&mut value, tags::CODING_SCHEME_DESIGNATOR, VR::SH, "SCT");
        put(&mut value, tags::CODE_MEANING, VR::LO, "a finding");
        item.put(DataElement::new(tags::CONCEPT_CODE_SEQUENCE, VR::SQ, sequence(vec![value])));
        let mut object = InMemDicomObject::new_empty();
        put(&mut object, tags::SOP_INSTANCE_UID, VR::UI, uid.as_str());
        put(&mut object, tags::SERIES_INSTANCE_UID, VR::UI, "2.25.88");
        put(&mut object, tags::MODALITY, VR::CS, "SR");
        put(&mut object, tags::CONTENT_DATE, VR::DA, date);
        object.put(DataElement::new(tags::CONTENT_SEQUENCE, VR::SQ, sequence(vec![item])));
        let references = images.iter().map(|image| {
            let mut reference = InMemDicomObject::new_empty();
            put(&mut reference, tags::REFERENCED_SOP_INSTANCE_UID, VR::UI, image.uid.as_str());
            reference
        });
        let mut series = InMemDicomObject::new_empty();
        series.put(DataElement::new(tags::REFERENCED_SOP_SEQUENCE, VR::SQ, sequence(references.collect())));
        let mut study = InMemDicomObject::new_empty();
        study.put(DataElement::new(tags::REFERENCED_SERIES_SEQUENCE, VR::SQ, sequence(vec![series])));
        object.put(DataElement::new(
            tags::CURRENT_REQUESTED_PROCEDURE_EVIDENCE_SEQUENCE,
            VR::SQ,
            sequence(vec![study]),
        ));
        let study = images.first().map_or_else(|| format!("{number:032x}"), |image| image.study.clone());
        Self { object: file(object, &uid), uid, patient: "0".repeat(32), study, accession: None }
    }

    fn add(&self, dataset: &mut Dataset) -> Result<Added, DatasetError> {
        let parts = Parts {
            object: &self.object,
            instance_uid: &self.uid,
            patient: &self.patient,
            study: &self.study,
            accession: self.accession.as_deref(),
        };
        dataset.add_parts(&parts, NOW)
    }
}

fn sequence(items: Vec<InMemDicomObject>) -> DataSetSequence<InMemDicomObject> {
    DataSetSequence::from(items)
}

fn multi(text: &str) -> PrimitiveValue {
    PrimitiveValue::Strs(text.split('\\').map(str::to_owned).collect())
}

/// Stands for the de-identifier's accession key.
fn key(accession: &str) -> String {
    medinet_types::Digest::of(accession.as_bytes()).to_string()[..32].to_owned()
}

fn label(dataset: &mut Dataset, csv: &str) {
    let (labels, problems) = dataset.read_labels(csv.as_bytes(), key);
    assert_eq!(problems, []);
    dataset.store_labels(&labels, NOW).unwrap();
}

fn labels_for(count: u32) -> String {
    let class = |i| if i % 3 == 0 { "pneumonia" } else { "Normal" };
    (0..count).fold("accession_number,label\n".to_owned(), |csv, i| csv + &format!("A{i},{}\n", class(i)))
}

fn open(folder: &Path) -> Dataset {
    Dataset::open(folder, &task(1), &settings()).unwrap()
}

#[test]
fn adding_again_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut dataset = open(folder.path());
    assert_eq!(Case::image(1).add(&mut dataset).unwrap(), Added::Image { frames: 1 });
    label(&mut dataset, &labels_for(2));
    let digest = dataset.manifest().unwrap().digest();
    for _ in 0..3 {
        assert_eq!(Case::image(1).add(&mut dataset).unwrap(), Added::Unchanged);
        dataset = open(folder.path());
    }
    assert_eq!(dataset.manifest().unwrap().digest(), digest);
    assert_eq!(dataset.summary().unwrap().images, 1);

    let mut corrected = Case::image(1);
    put(&mut corrected.object, tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "MONOCHROME1");
    assert_eq!(corrected.add(&mut dataset).unwrap(), Added::Replaced);
    assert_ne!(dataset.manifest().unwrap().digest(), digest);
    assert_eq!(dataset.summary().unwrap().images, 1);
    let objects = walk(&folder.path().join("objects"));
    assert_eq!(objects.len(), 1, "the replaced file is gone");
}

fn walk(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(walk(&path)) } else { found.push(path) }
    }
    found
}

#[test]
fn arrival_order_changes_neither_manifest_nor_split_nor_inputs() {
    let run = |order: &[u32], labels_first: bool| {
        let folder = tempfile::tempdir().unwrap();
        let mut dataset = open(folder.path());
        if labels_first {
            label(&mut dataset, &labels_for(40));
        }
        for &number in order {
            Case::image(number).add(&mut dataset).unwrap();
        }
        if !labels_first {
            label(&mut dataset, &labels_for(40));
        }
        let images: Vec<_> = Split::ALL
            .map(|split| dataset.images(split).unwrap().iter().map(Result::unwrap).collect())
            .into();
        (dataset.manifest().unwrap(), images)
    };
    let forward: Vec<u32> = (0..40).collect();
    let mixed: Vec<u32> = (0..40).map(|i| (i * 17 + 5) % 40).collect();
    let (manifest, images): (_, Vec<Vec<crate::LabelledImage>>) = run(&forward, true);
    let (again, images_again) = run(&mixed, false);
    assert_eq!(manifest, again);
    assert_eq!(manifest.digest(), again.digest());
    assert_eq!(images, images_again);
    assert!(images.iter().all(|part| !part.is_empty()));
    assert_eq!(manifest.images_per_class(), [26, 14]);
    assert_eq!(manifest.published_images_per_class(), [20, 10]);
    let input = &images[0][0].input;
    assert_eq!(input.len(), 28 * 28);
    assert!(input.iter().sum::<f32>().abs() < 1e-2, "normalised per image");
}

#[test]
fn patients_are_never_in_two_parts_and_stay_as_data_arrive() {
    let folder = tempfile::tempdir().unwrap();
    let mut dataset = open(folder.path());
    label(&mut dataset, &labels_for(60));
    let mut before = std::collections::HashMap::new();
    for number in 0..60 {
        Case::image(number).add(&mut dataset).unwrap();
        if number % 20 != 19 {
            continue;
        }
        let manifest = dataset.manifest().unwrap();
        for entry in manifest.entries() {
            assert_eq!(*before.entry(entry.instance).or_insert(entry.split), entry.split);
        }
    }
    // Images 2k and 2k+1 are of one patient.
    for pair in 0..30 {
        let split_of = |number: u32| before[&medinet_types::Digest::of(Case::image(number).uid.as_bytes())];
        assert_eq!(split_of(2 * pair), split_of(2 * pair + 1));
    }
}

#[test]
fn a_changed_label_changes_the_manifest_and_a_repeated_one_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let mut dataset = open(folder.path());
    for number in 0..4 {
        Case::image(number).add(&mut dataset).unwrap();
    }
    assert_eq!(dataset.manifest().unwrap().entries(), []);
    assert_eq!(dataset.summary().unwrap().unlabelled, 4);
    label(&mut dataset, &labels_for(4));
    let digest = dataset.manifest().unwrap().digest();
    label(&mut dataset, &labels_for(4));
    assert_eq!(dataset.manifest().unwrap().digest(), digest);
    label(&mut dataset, "label,accession_number\nbacterial,A1\n");
    assert_ne!(dataset.manifest().unwrap().digest(), digest);
    assert_eq!(dataset.manifest().unwrap().images_per_class(), [1, 3]);
}

#[test]
fn faults_of_label_files_are_listed_by_line_and_nothing_is_imported() {
    let folder = tempfile::tempdir().unwrap();
    let mut dataset = open(folder.path());
    Case::image(1).add(&mut dataset).unwrap();
    let path = folder.path().join("labels.csv");
    let csv = "accession_number,label\nA1,pneumonia\n,normal\nA3,cat\nA1,normal\nA4\nA1,PNEUMONIA\n";
    std::fs::File::create(&path).unwrap().write_all(csv.as_bytes()).unwrap();
    let (labels, problems) = dataset.read_labels(csv.as_bytes(), key);
    let found: Vec<_> = problems.iter().map(|problem| (problem.line, &problem.kind)).collect();
    assert_eq!(
        found,
        [
            (3, &LabelProblemKind::AccessionNumber),
            (4, &LabelProblemKind::UnknownLabel { label: "cat".into() }),
            (5, &LabelProblemKind::Contradiction { earlier: 2 }),
            (6, &LabelProblemKind::FieldCount { expected: 2, got: 1 }),
        ]
    );
    assert_eq!(labels.len(), 1);
    let parse = |text: &str| medinet_deident::AccessionKey::parse(&key(text)).unwrap();
    let error = dataset.import_labels_csv(&path, parse, NOW).unwrap_err();
    assert!(error.to_string().contains("line 4: its label, of 3 characters, is no class"), "{error}");
    assert!(!error.to_string().contains("cat"), "with the wrong column it could be a name: {error}");
    assert!(!error.to_string().contains("A1"), "an accession number identifies a patient: {error}");
    assert_eq!(dataset.summary().unwrap().unlabelled, 1);

    let (_, problems) = dataset.read_labels(&b"patient,label\nA1,normal\n"[..], key);
    assert_eq!(problems[0].kind, LabelProblemKind::MissingColumn { column: "accession_number".into() });
    let (_, problems) = dataset.read_labels(&b"accession_number,label\n\xff\xfe,normal\n"[..], key);
    assert_eq!(problems[0].line, 2);
    assert_eq!(problems[0].kind, LabelProblemKind::Malformed);

    let error = settings().read_labels(&path, &task(1).network.classes).unwrap_err();
    assert!(error.to_string().contains("line 4: "), "{error}");

    std::fs::write(&path, "\u{feff}Accession_Number,Label\r\n\"A1\", Bacterial \r\n").unwrap();
    let import = dataset.import_labels_csv(&path, parse, NOW).unwrap();
    assert_eq!((import.lines, import.changed, import.with_images), (1, 1, 1));
    assert_eq!(dataset.manifest().unwrap().images_per_class(), [0, 1]);
    // The same without a data set, by the numbers themselves.
    let labels = settings().read_labels(&path, &task(1).network.classes).unwrap();
    assert_eq!(labels, [("A1".to_owned(), 1)].into());
}

#[test]
fn reports_override_files_and_reviewers_override_reports() {
    let folder = tempfile::tempdir().unwrap();
    let mut dataset = open(folder.path());
    let image = Case::image(1);
    // The report may come before its image.
    let added = Case::report(1, "233604007", &[&image], "20240102").add(&mut dataset).unwrap();
    assert_eq!(added, Added::Report { labels: 1 });
    image.add(&mut dataset).unwrap();
    label(&mut dataset, "accession_number,label\nA1,normal\n");
    let class = |dataset: &Dataset| dataset.manifest().unwrap().entries().first().map(|entry| entry.class);
    assert_eq!(class(&dataset), Some(1), "the report before the file");

    // An earlier report that arrives later is still the earlier one.
    Case::report(2, "17621005", &[&image], "20240101").add(&mut dataset).unwrap();
    assert_eq!(class(&dataset), Some(1));
    Case::report(3, "17621005", &[&image], "20240103").add(&mut dataset).unwrap();
    assert_eq!(class(&dataset), Some(0));
    Case::report(4, "233604007", &[&image], "20240103").add(&mut dataset).unwrap();
    assert_eq!(class(&dataset), None, "two reports of the same time disagree");
    assert_eq!(dataset.summary().unwrap().contradicted, 1);

    dataset.set_reviewed(crate::Reviewed::Instance(&image.uid), "pneumonia", NOW).unwrap();
    assert_eq!(class(&dataset), Some(1));
    assert!(dataset.set_reviewed(crate::Reviewed::Instance(&image.uid), "cat", NOW).is_err());
}

#[test]
fn a_report_without_references_speaks_about_its_study() {
    let folder = tempfile::tempdir().unwrap();
    let mut dataset = open(folder.path());
    Case::image(5).add(&mut dataset).unwrap();
    Case::image(6).add(&mut dataset).unwrap();
    // Its study key is that of image 5.
    Case::report(5, "233604007", &[], "20240101").add(&mut dataset).unwrap();
    assert_eq!(dataset.manifest().unwrap().images_per_class(), [0, 1]);
    let unknown = Case::report(6, "999", &[], "20240101").add(&mut dataset).unwrap();
    assert_eq!(unknown, Added::Report { labels: 0 });
}

#[test]
fn slices_take_their_neighbours_by_position_even_when_these_arrive_later() {
    let folder = tempfile::tempdir().unwrap();
    let single = TaskSpec { task: TaskId::new("single").unwrap(), ..task(3) };
    let preprocessing = Preprocessing { slices: Slices::Neighbours, ..task(3).preprocessing };
    let neighbours = TaskSpec { preprocessing, ..task(3) };
    let mut dataset = Dataset::open(&folder.path().join("a"), &neighbours, &settings()).unwrap();
    let mut plain = Dataset::open(&folder.path().join("b"), &single, &settings()).unwrap();
    let collect = |dataset: &Dataset| -> Vec<Vec<f32>> {
        Split::ALL
            .into_iter()
            .flat_map(|split| {
                let mut images = dataset.images(split).unwrap();
                images.iter().map(|image| image.unwrap().input).collect::<Vec<_>>()
            })
            .collect()
    };
    label(&mut dataset, "accession_number,label\nA0,normal\n");
    label(&mut plain, "accession_number,label\nA0,normal\n");
    for (number, position) in [(1, 10.0), (2, 0.0)] {
        Case::slice(number, position).add(&mut dataset).unwrap();
        Case::slice(number, position).add(&mut plain).unwrap();
    }
    let two = collect(&dataset);
    assert_eq!((two.len(), two[0].len()), (2, 3 * 28 * 28));
    assert_eq!(collect(&dataset), two, "kept inputs equal fresh ones");
    Case::slice(3, 5.0).add(&mut dataset).unwrap();
    Case::slice(3, 5.0).add(&mut plain).unwrap();
    let three = collect(&dataset);
    let planes: Vec<&[f32]> = three.iter().flat_map(|input| input.chunks_exact(28 * 28)).collect();
    assert_eq!(three.len(), 3);
    assert!(three.iter().all(|input| !two.contains(input)), "each slice has a new neighbour");
    assert_eq!(planes.len(), 9);
    // The lowest slice repeats itself below, the highest above; the one in the middle has three different planes.
    let distinct = |input: &[f32]| {
        let planes: Vec<&[f32]> = input.chunks_exact(28 * 28).collect();
        (planes[0] == planes[1], planes[1] == planes[2])
    };
    let mut kinds: Vec<_> = three.iter().map(|input| distinct(input)).collect();
    kinds.sort_unstable();
    assert_eq!(kinds, [(false, false), (false, true), (true, false)]);
    assert!(collect(&plain).iter().all(|input| distinct(input) == (true, true)));
}

#[test]
fn what_is_no_image_and_no_report_is_left_out_and_broken_images_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let only_ct = DatasetSettings { modalities: vec!["CT".into()], ..settings() };
    let mut dataset = Dataset::open(folder.path(), &task(1), &only_ct).unwrap();
    assert_eq!(Case::image(1).add(&mut dataset).unwrap(), Added::Ignored);
    assert_eq!(Case::slice(1, 0.0).add(&mut dataset).unwrap(), Added::Image { frames: 1 });
    let mut cut = Case::slice(2, 1.0);
    put(&mut cut.object, tags::ROWS, VR::US, 400u16);
    assert!(matches!(cut.add(&mut dataset), Err(DatasetError::Image(_))));
    let mut plan = Case::slice(3, 1.0);
    plan.object.remove_element(tags::PIXEL_DATA);
    assert_eq!(plan.add(&mut dataset).unwrap(), Added::Ignored);
    assert_eq!(dataset.summary().unwrap().images, 1);
}

#[test]
fn limits_and_foreign_folders_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let full = DatasetSettings { max_objects: 1, ..settings() };
    let mut dataset = Dataset::open(folder.path(), &task(1), &full).unwrap();
    Case::image(1).add(&mut dataset).unwrap();
    assert!(matches!(Case::image(2).add(&mut dataset), Err(DatasetError::Full { limit: 1 })));
    assert_eq!(Case::image(1).add(&mut dataset).unwrap(), Added::Unchanged);
    let small = DatasetSettings { max_object_bytes: 100, ..settings() };
    let mut dataset = Dataset::open(folder.path(), &task(1), &small).unwrap();
    assert!(matches!(Case::image(3).add(&mut dataset), Err(DatasetError::TooLarge { limit: 100, .. })));
    let other = TaskSpec { task: TaskId::new("other").unwrap(), ..task(1) };
    assert!(matches!(
        Dataset::open(folder.path(), &other, &settings()),
        Err(DatasetError::WrongFolder { what: "task of the data set", .. })
    ));
}

#[test]
fn changed_preprocessing_prepares_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut dataset = open(folder.path());
    label(&mut dataset, &labels_for(10));
    for number in 0..10 {
        Case::image(number).add(&mut dataset).unwrap();
    }
    let first = |task: &TaskSpec| {
        let dataset = Dataset::open(folder.path(), task, &settings()).unwrap();
        let mut images = dataset.images(Split::Training).unwrap();
        images.get(0).unwrap().unwrap().input
    };
    let changed = TaskSpec {
        preprocessing: Preprocessing {
            normalisation: Normalisation::Fixed { mean: 0.0, std: 1.0 },
            ..task(1).preprocessing
        },
        ..task(1)
    };
    let (before, after) = (first(&task(1)), first(&changed));
    assert_ne!(before, after);
    assert!(after.iter().all(|v| (0.0..=1.0).contains(v)));
    assert_eq!(first(&task(1)), before);
}

#[test]
fn reports_written_by_other_software_label_their_images() {
    let folder = tempfile::tempdir().unwrap();
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..");
    let venv =
        std::env::var_os("MEDINET_VENV").map_or_else(|| repository.join(".venv"), std::path::PathBuf::from);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/make_reports.py");
    let made = Command::new(venv.join("bin/python")).arg(script).arg(folder.path()).output();
    let made = made.expect("the virtual environment of requirements-test.txt");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let code =
        |value: &str| CodePattern { scheme: Some("SCT".into()), value: Some(value.into()), meaning: None };
    let settings = DatasetSettings {
        sr_codes: vec![
            SrCode { concept: None, value: code("233604007"), class: "pneumonia".into() },
            SrCode { concept: Some(code("233604007")), value: code("2667000"), class: "normal".into() },
        ],
        ..settings()
    };
    let mut dataset = Dataset::open(&folder.path().join("data"), &task(1), &settings).unwrap();
    let add = |dataset: &mut Dataset, name: &str| {
        let object = dicom_object::open_file(folder.path().join(name)).unwrap();
        let uid = object.meta().media_storage_sop_instance_uid().trim_end_matches('\0').to_owned();
        let case = Case { object, uid, patient: "0".repeat(32), study: "1".repeat(32), accession: None };
        (case.add(dataset).unwrap(), case.uid)
    };
    let (image, uid) = add(&mut dataset, "image.dcm");
    assert_eq!(image, Added::Image { frames: 1 });
    let class = |dataset: &Dataset| {
        let manifest = dataset.manifest().unwrap();
        let entry = *manifest.entries().first()?;
        assert_eq!(entry.instance, medinet_types::Digest::of(uid.as_bytes()));
        Some(entry.class)
    };
    assert_eq!(class(&dataset), None);
    assert_eq!(add(&mut dataset, "tid1500.dcm").0, Added::Report { labels: 1 });
    assert_eq!(class(&dataset), Some(1), "a qualitative evaluation of TID 1500");
    assert_eq!(add(&mut dataset, "presence.dcm").0, Added::Report { labels: 1 });
    assert_eq!(class(&dataset), Some(0), "a later report that says absent");
}

/// Set for the child process of the test below.
const CHILD_FOLDER: &str = "MEDINET_DATASET_TEST_FOLDER";

/// Not a test of its own: adds objects until it is killed.
#[test]
fn child_that_adds_until_it_is_killed() {
    let Some(folder) = std::env::var_os(CHILD_FOLDER) else { return };
    let mut dataset = open(Path::new(&folder));
    for number in 0.. {
        Case::image(number).add(&mut dataset).unwrap();
        println!("added {number}");
    }
}

#[test]
fn a_killed_process_leaves_each_object_whole_or_absent() {
    let folder = tempfile::tempdir().unwrap();
    let mut promised = 0;
    for round in 0..6 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "tests::child_that_adds_until_it_is_killed", "--nocapture"])
            .env(CHILD_FOLDER, folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // Kills at another moment of the loop each time: after other lines, mid-way through the next object.
        let wanted = 3 + round * 5;
        let added = lines.map(Result::unwrap).filter(|line| line.contains("added ")).take(wanted).count();
        for _ in 0..round * 1000 {
            std::hint::black_box(round);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        promised = promised.max(added as u64);

        let mut dataset = open(folder.path());
        let held = dataset.summary().unwrap().images;
        assert!(held >= promised, "what add had returned for is there: {held} of {promised}");
        label(&mut dataset, &labels_for(10_000));
        let mut read = 0;
        for split in Split::ALL {
            for image in dataset.images(split).unwrap().iter() {
                assert_eq!(image.unwrap().input.len(), 28 * 28);
                read += 1;
            }
        }
        assert_eq!(read, held, "every row has its input");
        for number in 0..held {
            let again = Case::image(u32::try_from(number).unwrap()).add(&mut dataset).unwrap();
            assert_eq!(again, Added::Unchanged);
        }
        for path in walk(&folder.path().join("objects"))
            .iter()
            .filter(|path| path.extension().is_some_and(|e| e == "zst"))
        {
            let encoded = zstd::decode_all(std::fs::File::open(path).unwrap()).unwrap();
            dicom_object::from_reader(&encoded[..]).unwrap();
        }
    }
}
