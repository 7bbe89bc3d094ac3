//! The trainer's process, as the appliance starts it for a round.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use dicom_core::value::PrimitiveValue;
use dicom_core::{DataElement, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::{FileMetaTableBuilder, InMemDicomObject};
use medinet_dataset::{Dataset, DatasetSettings, Split};
use medinet_deident::{DeidentSettings, Deidentifier, Identified, Origin};
use medinet_model::{
    Augmentation, ClassBalance, InputShape, Intensity, ModelParameters, NetworkManifest, Normalisation,
    Preprocessing, Resize, Slices, TaskSpec, TrainingPlan, encode_parameters,
};
use medinet_training::Checkpoints;
use medinet_types::{TaskId, UnixMillis};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const BATCH: usize = 4;
const PATIENTS: u32 = 12;
const FRAMES: u32 = 120;
const SIDE: u32 = 32;
/// What a round has; no training here takes that long.
const SELDOM: Duration = Checkpoints::EVERY;

fn spec() -> TaskSpec {
    let input = InputShape { channels: 1, height: 28, width: 28 };
    TaskSpec {
        task: TaskId::new("vessels").unwrap(),
        purpose: "tells narrow from wide".into(),
        network: NetworkManifest::small(input, vec!["narrow".into(), "wide".into()]),
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

fn plan() -> TrainingPlan {
    TrainingPlan {
        local_epochs: 1,
        batch_size: u32::try_from(BATCH).unwrap(),
        learning_rate: 0.02,
        momentum: 0.9,
        weight_decay: 1e-4,
        proximal_mu: 0.0,
        augmentation: Augmentation { brightness: 0.2, shift_fraction: 0.05, ..Augmentation::none() },
        class_balance: ClassBalance::WeightedLoss,
        early_stopping_epochs: 0,
        seed: 3,
        privacy: None,
    }
}

/// A multi-frame image of one patient: in each frame a smooth bump, wide or narrow by the patient's class.
fn study(patient: u32) -> Vec<u8> {
    let mut object = InMemDicomObject::new_empty();
    let mut put = |tag, vr, value: PrimitiveValue| {
        object.put(DataElement::new(tag, vr, value));
    };
    let uid = format!("2.25.31{patient:03}");
    put(tags::SOP_CLASS_UID, VR::UI, uids::X_RAY_ANGIOGRAPHIC_IMAGE_STORAGE.into());
    put(tags::SOP_INSTANCE_UID, VR::UI, uid.as_str().into());
    put(tags::STUDY_INSTANCE_UID, VR::UI, format!("{uid}.1").into());
    put(tags::SERIES_INSTANCE_UID, VR::UI, format!("{uid}.2").into());
    put(tags::MODALITY, VR::CS, "XA".into());
    put(tags::PATIENT_ID, VR::LO, format!("P{patient}").into());
    put(tags::ACCESSION_NUMBER, VR::SH, format!("A{patient}").into());
    put(tags::STUDY_DATE, VR::DA, "20240101".into());
    put(tags::ROWS, VR::US, 32u16.into());
    put(tags::COLUMNS, VR::US, 32u16.into());
    put(tags::NUMBER_OF_FRAMES, VR::IS, FRAMES.to_string().into());
    put(tags::SAMPLES_PER_PIXEL, VR::US, 1u16.into());
    put(tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "MONOCHROME2".into());
    put(tags::BITS_ALLOCATED, VR::US, 16u16.into());
    put(tags::BITS_STORED, VR::US, 12u16.into());
    put(tags::HIGH_BIT, VR::US, 11u16.into());
    put(tags::PIXEL_REPRESENTATION, VR::US, 0u16.into());
    let width = if patient.is_multiple_of(2) { 4.0 } else { 7.0 };
    let samples: Vec<u16> = (0..FRAMES)
        .flat_map(|frame| (0..SIDE * SIDE).map(move |pixel| (frame, pixel)))
        .map(|(frame, pixel)| {
            let (x, y) = (f64::from(pixel % SIDE), f64::from(pixel / SIDE));
            let (at_x, at_y) = (12.0 + f64::from(frame % 9), 10.0 + f64::from((frame + patient) % 13));
            let distance = (x - at_x).powi(2) + (y - at_y).powi(2);
            (400.0 + 40.0 * y + 1500.0 * (-distance / (2.0 * width * width)).exp()) as u16
        })
        .collect();
    put(tags::PIXEL_DATA, VR::OW, PrimitiveValue::U16(samples.into()));
    let meta = FileMetaTableBuilder::new()
        .transfer_syntax(uids::EXPLICIT_VR_LITTLE_ENDIAN)
        .media_storage_sop_class_uid(uids::X_RAY_ANGIOGRAPHIC_IMAGE_STORAGE)
        .media_storage_sop_instance_uid(uid.as_str());
    let mut file = Vec::new();
    object.with_meta(meta).unwrap().write_all(&mut file).unwrap();
    file
}

/// A site's data set, as the appliance makes it, and the base model of a round.
struct Site {
    folder: tempfile::TempDir,
    settings: DatasetSettings,
    training_images: usize,
}

impl Site {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let labels = folder.path().join("labels.csv");
        let lines = (0..PATIENTS).map(|p| format!("A{p},{}\n", if p % 2 == 0 { "narrow" } else { "wide" }));
        fs::write(&labels, format!("accession_number,label\n{}", lines.collect::<String>())).unwrap();
        let settings = DatasetSettings {
            validation_fraction: 0.3,
            test_fraction: 0.0,
            labels_csv: vec![labels],
            ..DatasetSettings::default()
        };
        let deidentifier =
            Deidentifier::open(DeidentSettings::default(), &folder.path().join("deident")).unwrap();
        let mut dataset = Dataset::open(&folder.path().join("data"), &spec(), &settings).unwrap();
        let now = UnixMillis(1_700_000_000_000);
        for patient in 0..PATIENTS {
            let clean = deidentifier.apply(Identified::new(study(patient), Origin::WatchedFolder)).unwrap();
            dataset.add(&clean, now).unwrap();
        }
        dataset.import_configured_labels(|text| deidentifier.accession_key(text), now).unwrap();
        let training_images = dataset.images(Split::Training).unwrap().len();
        assert!(!dataset.images(Split::Validation).unwrap().is_empty());
        let base = ModelParameters::initial(&spec().network, 1).unwrap();
        fs::write(folder.path().join("base.bin"), encode_parameters(base.as_slice())).unwrap();
        Self { folder, settings, training_images }
    }

    fn steps(&self) -> usize {
        self.training_images.div_ceil(BATCH)
    }

    /// A job in a folder of its own, as the appliance writes it.
    fn job(&self, name: &str, device: &Value, training: Option<TrainingPlan>, every: Duration) -> Job {
        let folder = self.folder.path().join(name);
        fs::create_dir_all(&folder).unwrap();
        let job = json!({ "job": {
            "spec": spec(),
            "training": training,
            "site_seed": 5,
            "base": self.folder.path().join("base.bin"),
            "datasets": [self.folder.path().join("data")],
            "dataset": self.settings,
            "device": device,
            "checkpoint_every": every,
            "folder": folder,
        }});
        fs::write(folder.join("job.json"), job.to_string()).unwrap();
        Job { folder, steps: self.steps() }
    }

    fn training(&self, name: &str, every: Duration) -> Job {
        self.job(name, &json!("cpu"), Some(plan()), every)
    }
}

struct Job {
    folder: PathBuf,
    steps: usize,
}

/// Finished steps of the training and when their words came, in order; the first is the one after the state that was gone on from.
type Timeline = Vec<(usize, Instant)>;

impl Job {
    fn start(&self) -> Child {
        Command::new(env!("CARGO_BIN_EXE_medinet-appliance"))
            .args(["train-child", "--job"])
            .arg(self.folder.join("job.json"))
            .env("RAYON_NUM_THREADS", "1")
            .env("VK_ICD_FILENAMES", "/nonexistent/icd.json")
            .env("VK_DRIVER_FILES", "/nonexistent/icd.json")
            // It ends when this pipe closes.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap()
    }

    /// Runs the trainer to its end, or to a SIGKILL when it says that `kill_at` steps are finished.
    fn run(&self, kill_at: Option<usize>) -> Timeline {
        let mut child = self.start();
        let mut timeline = Timeline::new();
        let mut killed = false;
        let stdout = child.stdout.take().unwrap();
        for line in BufReader::new(stdout).lines() {
            let line = line.unwrap();
            // The kill may have cut the last line.
            let Ok(word) = serde_json::from_str::<Value>(&line) else { break };
            let step = (word["fraction"].as_f64().unwrap() * self.steps as f64).round() as usize;
            timeline.push((step, Instant::now()));
            if !killed && kill_at.is_some_and(|at| step >= at) {
                child.kill().unwrap();
                killed = true;
            }
        }
        let status = child.wait().unwrap();
        if killed {
            assert_eq!(status.signal(), Some(9), "it ended before it was killed: {status}");
        } else {
            assert!(status.success() && kill_at.is_none(), "{status}");
        }
        timeline
    }

    fn trained(&self) -> Vec<u8> {
        fs::read(self.folder.join("trained.bin")).unwrap()
    }

    fn result(&self) -> Value {
        serde_json::from_slice(&fs::read(self.folder.join("result.json")).unwrap()).unwrap()
    }

    fn checkpoint(&self) -> PathBuf {
        self.folder.join("checkpoints/training.checkpoint")
    }
}

fn gaps(timeline: &[(usize, Instant)]) -> Vec<Duration> {
    let mut gaps: Vec<Duration> = timeline.windows(2).map(|pair| pair[1].1 - pair[0].1).collect();
    gaps.sort_unstable();
    gaps
}

/// The time that the killed run had worked in all, that of it which was lost, and the longest pause between two of its words.
fn lost(killed: &[(usize, Instant)], resumed: &[(usize, Instant)]) -> (Duration, Duration, Duration) {
    let kept = resumed[0].0 - 1;
    let (first, last) = (killed[0], killed[killed.len() - 1]);
    assert!(kept + 1 >= first.0 && kept <= last.0, "it went on from step {kept} of {first:?} to {last:?}");
    let since = killed.iter().find(|(step, _)| *step == kept).unwrap_or(&first).1;
    (last.1 - first.1, last.1 - since, gaps(killed).pop().unwrap())
}

#[test]
fn a_killed_trainer_loses_the_time_between_two_checkpoints_and_not_a_bit_of_the_result() {
    let site = Site::new();
    let whole = site.training("whole", SELDOM);
    let undisturbed = whole.run(None);
    assert_eq!((undisturbed[0].0, undisturbed.last().unwrap().0), (1, site.steps()));
    assert!(whole.result()["trained"]["images"].as_u64().unwrap() > 0);
    assert!(!whole.checkpoint().exists(), "a finished job leaves no checkpoint");

    // About eight steps on this machine, so that an interval is a small part of the training on any.
    let typical = gaps(&undisturbed)[undisturbed.len() / 2];
    let every = (8 * typical).max(Duration::from_millis(1));
    // A machine that is busy with other things can hold a process up for longer than the training takes: then nothing can be told
    // from times, and it is tried again.
    let told = (0..10).any(|attempt| {
        let job = site.training(&format!("killed-{attempt}"), every);
        let first = job.run(Some(site.steps() / 3));
        assert!(!job.folder.join("result.json").exists());
        let second = job.run(Some(2 * site.steps() / 3));
        let third = job.run(None);
        assert!(job.trained() == whole.trained(), "the killed training has another result");
        assert_eq!(job.result(), whole.result());
        [(&first, &second), (&second, &third)].into_iter().all(|(killed, resumed)| {
            let (worked, lost, longest) = lost(killed, resumed);
            // A checkpoint begins with the first step after the interval and is written before the next: its own time, that of the
            // step, and what the kill and these readings are late add to the interval.
            let most = every + 4 * longest;
            assert!(lost <= most, "{lost:?} of {worked:?} were lost with a checkpoint every {every:?}");
            2 * most < worked
        })
    });
    assert!(told, "the machine was too busy ten times over");

    // The same measure on a trainer that saves too seldom: it can tell.
    let seldom = site.training("seldom", SELDOM);
    let killed = seldom.run(Some(site.steps() / 3));
    assert!(!seldom.checkpoint().exists());
    let resumed = seldom.run(None);
    let (worked, lost, _) = lost(&killed, &resumed);
    assert_eq!(lost, worked);
    assert!(seldom.trained() == whole.trained());
}

#[test]
fn the_trainer_says_what_it_computed_on_and_why_not_on_a_gpu() {
    let site = Site::new();
    let result = |name: &str, device: &Value| {
        let job = site.job(name, device, None, SELDOM);
        assert!(job.run(None).is_empty(), "a measurement takes no steps");
        job.result()
    };
    let automatic = result("automatic", &json!("auto"));
    assert_eq!(automatic["device"]["name"], "CPU (1 thread)");
    let note = automatic["device"]["note"].as_str().unwrap();
    assert!(note.contains("no hardware GPU found") && note.contains("libvulkan1"), "{note}");
    let chosen = result("chosen", &json!("cpu"));
    assert_eq!(chosen["device"], json!({ "name": "CPU (1 thread)", "note": null }));
    assert_eq!(chosen["base"], automatic["base"]);
}

#[test]
fn a_trainer_ends_with_the_appliance_that_started_it() {
    let site = Site::new();
    let mut child = site.training("orphan", SELDOM).start();
    drop(child.stdin.take());
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(3), "{status}");
    assert!(!site.folder.path().join("orphan/result.json").exists());
}
