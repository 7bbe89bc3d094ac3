#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

#[path = "../../tests/support/slices.rs"]
mod slices;

use super::*;
use medinet_dataset::{Dataset, DatasetSettings, Split};
use medinet_deident::{DeidentSettings, Deidentifier, Identified, Origin};
use medinet_model::{Intensity, NetworkManifest, Normalisation, Resize, TaskSpec};
use medinet_types::{TaskId, UnixMillis};
use slices::{Object, write};
use std::fs;

fn spec(slices: Slices) -> TaskSpec {
    let input = InputShape { channels: 3, height: 28, width: 30 };
    TaskSpec {
        task: TaskId::new("nodules").unwrap(),
        purpose: "tells slices with nodules from others".into(),
        network: NetworkManifest::small(input, vec!["none".into(), "nodule".into()]),
        preprocessing: Preprocessing {
            slices,
            // Percentiles tell apart whether three slices were measured together, and one three times from once.
            intensity: Intensity::Percentile { low: 3.0, high: 96.0 },
            denoise: false,
            spacing_mm: None,
            resize: Resize::Letterbox,
            normalisation: Normalisation::PerImage,
        },
    }
}

/// Everything that a series can be, in files whose names say nothing of their order.
fn write_all(folder: &Path) {
    let mut number = 0;
    let mut add = |name: &str, series, instance, depths: &[Option<f64>], rows| {
        number += 1;
        write(&folder.join(name), &Object { number, series, instance, depths, rows });
    };
    // A stack; instance numbers run against the positions, one place is filled twice, one distance is a gap.
    add("q.dcm", 1, 9, &[Some(0.0)], 30);
    add("b.dcm", 1, 7, &[Some(5.0)], 30);
    add("z.dcm", 1, 5, &[Some(10.0)], 30);
    add("a.dcm", 1, 6, &[Some(10.0)], 30);
    add("c.dcm", 1, 3, &[Some(25.0)], 30);
    // Multi-frame: a stack in two objects, frames in disorder.
    add("m.dcm", 2, 1, &[Some(3.0), Some(0.0), Some(6.0)], 30);
    add("n.dcm", 2, 2, &[Some(9.0), Some(1.5)], 30);
    // No stacks: without positions, and of two sizes.
    add("e.dcm", 3, 1, &[None], 30);
    add("f.dcm", 3, 2, &[None, None], 30);
    add("g.dcm", 4, 1, &[Some(0.0)], 30);
    add("h.dcm", 4, 2, &[Some(2.0)], 26);
    // A series of one slice.
    add("s.dcm", 5, 1, &[Some(7.0)], 30);
}

/// What the appliance trains on when it has taken in the files of `folder`.
fn trained_on(folder: &Path, spec: &TaskSpec, site: &Path) -> Vec<Vec<u32>> {
    fs::create_dir_all(site).unwrap();
    let labels = site.join("labels.csv");
    fs::write(&labels, "accession_number,label\nA1,nodule\n").unwrap();
    let settings = DatasetSettings {
        validation_fraction: 0.0,
        test_fraction: 0.0,
        labels_csv: vec![labels],
        ..DatasetSettings::default()
    };
    let deidentifier = Deidentifier::open(DeidentSettings::default(), &site.join("deident")).unwrap();
    let mut dataset = Dataset::open(&site.join("data"), spec, &settings).unwrap();
    let now = UnixMillis(1_700_000_000_000);
    for file in Group::named(folder).unwrap().files {
        let object = Identified::new(fs::read(file).unwrap(), Origin::WatchedFolder);
        dataset.add(&deidentifier.apply(object).unwrap(), now).unwrap();
    }
    dataset.import_configured_labels(|text| deidentifier.accession_key(text), now).unwrap();
    let mut images = dataset.images(Split::Training).unwrap();
    sorted(images.iter().map(|image| image.unwrap().input))
}

/// Inputs bit by bit, in an order of their own: pseudonyms decide that of training.
fn sorted(inputs: impl Iterator<Item = Vec<f32>>) -> Vec<Vec<u32>> {
    let mut inputs: Vec<Vec<u32>> =
        inputs.map(|input| input.into_iter().map(f32::to_bits).collect()).collect();
    inputs.sort_unstable();
    inputs
}

fn run(path: &Path, spec: &TaskSpec) -> Vec<FileOutcome<Vec<f32>>> {
    let group = Group::named(path).unwrap();
    group.run(&spec.preprocessing, spec.network.input, &mut |input| Ok(input.values.clone()))
}

fn inputs(outcomes: Vec<FileOutcome<Vec<f32>>>) -> Vec<Vec<u32>> {
    sorted(outcomes.into_iter().flat_map(|outcome| outcome.results).map(|(_, input)| input))
}

#[test]
fn a_folder_of_series_gives_the_very_inputs_of_training() {
    let folder = tempfile::tempdir().unwrap();
    let files = folder.path().join("files");
    fs::create_dir(&files).unwrap();
    write_all(&files);
    let neighbours = spec(Slices::Neighbours);
    let outcomes = run(&files, &neighbours);
    let expected = trained_on(&files, &neighbours, &folder.path().join("neighbours"));
    // Sixteen frames, of which two lie in one place.
    assert_eq!(expected.len(), 15);
    let told: Vec<String> = outcomes
        .iter()
        .filter_map(|outcome| Some(format!("{}: {}", outcome.file.display(), outcome.error.as_ref()?)))
        .collect();
    // Of the two the one with the lower instance number counts.
    assert!(told.len() == 1 && told[0].contains("a.dcm: 1 of 1 frames lie where another slice"), "{told:?}");
    assert!(inputs(outcomes) == expected, "training and inference differ");

    let single = TaskSpec { task: TaskId::new("single").unwrap(), ..spec(Slices::Single) };
    let expected = trained_on(&files, &single, &folder.path().join("single"));
    // Alone, a slice of a place that another fills has an input too.
    let alone = inputs(run(&files, &single));
    assert_eq!((alone.len(), expected.len()), (16, 15));
    assert!(expected.iter().all(|input| alone.contains(input)));
    // The nine frames of the two stacks have neighbours.
    let stacked = inputs(run(&files, &neighbours)).iter().filter(|input| !alone.contains(input)).count();
    assert!(stacked >= 9, "{stacked}");
}

#[test]
fn a_file_alone_gives_what_training_had_of_its_series_or_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let files = folder.path().join("files");
    fs::create_dir(&files).unwrap();
    write_all(&files);
    let spec = spec(Slices::Neighbours);
    let whole = run(&files, &spec);
    let of = |name: &str| {
        let mut outcomes = run(&files.join(name), &spec);
        assert_eq!(outcomes.len(), 1);
        outcomes.remove(0)
    };
    for slice in ["b.dcm", "g.dcm", "s.dcm"] {
        let outcome = of(slice);
        assert!(
            outcome.results.is_empty() && matches!(outcome.error, Some(FileError::OneSlice)),
            "{outcome:?}"
        );
    }
    // What states no position has no neighbours in any series.
    for apart in ["e.dcm", "f.dcm"] {
        let outcome = of(apart);
        assert!(outcome.error.is_none(), "{outcome:?}");
        let expected = whole.iter().find(|other| other.file == outcome.file).unwrap();
        assert_eq!(outcome.results, expected.results);
    }
    // A multi-frame object is a series: the same as in a folder of its own.
    let own = folder.path().join("own");
    fs::create_dir(&own).unwrap();
    fs::copy(files.join("m.dcm"), own.join("m.dcm")).unwrap();
    let (outcome, mut expected) = (of("m.dcm"), run(&own, &spec));
    assert!(outcome.error.is_none() && outcome.results.len() == 3, "{outcome:?}");
    assert_eq!(outcome.results, expected.remove(0).results);
    let [low, middle, high] = [1, 0, 2].map(|frame| &outcome.results[frame].1);
    let planes = |input: &[f32]| {
        let [below, own, above] = [0, 1, 2].map(|plane| &input[plane * 840..][..840]);
        (below == own, own == above)
    };
    assert_eq!(
        [low, middle, high].map(|input| planes(input)),
        [(true, false), (false, false), (false, true)]
    );
}

#[test]
fn a_folder_with_an_unreadable_file_gives_no_neighbours() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    write(&dir.join("a.dcm"), &Object { number: 1, series: 1, instance: 1, depths: &[Some(0.0)], rows: 30 });
    write(&dir.join("b.dcm"), &Object { number: 2, series: 1, instance: 2, depths: &[Some(1.0)], rows: 30 });
    fs::write(dir.join("notes.txt"), "no DICOM").unwrap();
    let spec = spec(Slices::Neighbours);
    let outcomes = run(dir, &spec);
    let good =
        outcomes.iter().filter(|outcome| outcome.error.is_none() && outcome.results.len() == 1).count();
    assert_eq!((outcomes.len(), good), (3, 2), "what is no image is no slice: {outcomes:?}");

    std::os::unix::fs::symlink(dir.join("gone.dcm"), dir.join("c.dcm")).unwrap();
    let outcomes = run(dir, &spec);
    assert!(outcomes.iter().all(|outcome| outcome.results.is_empty() && outcome.error.is_some()));
    assert!(matches!(outcomes[0].error, Some(FileError::Incomplete)), "{outcomes:?}");
    // Where slices are taken alone the others are not concerned.
    let single =
        TaskSpec { preprocessing: Preprocessing { slices: Slices::Single, ..spec.preprocessing }, ..spec };
    assert_eq!(run(dir, &single).iter().filter(|outcome| outcome.error.is_none()).count(), 2);

    let empty = tempfile::tempdir().unwrap();
    assert!(matches!(Group::named(empty.path()), Err(FileError::EmptyFolder)));
}
