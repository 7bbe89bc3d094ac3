//! One released model on real chest X-rays: burn, which trained it, tract, which runs it at the edge, and onnxruntime, a stranger.
//!
//! onnxruntime comes from the Python environment that `MEDINET_VENV` names (default `.venv` in the repository), made from
//! `requirements-test.txt`. The pictures are the demo's; see demo/images/LICENSE.md.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a step that fails fails the test"
)]

#[path = "../../crates/inference/tests/common/mod.rs"]
mod common;

use dicom_core::value::{PixelFragmentSequence, PrimitiveValue};
use dicom_core::{DataElement, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::{FileMetaTableBuilder, InMemDicomObject};
use medinet_inference::Model;
use medinet_lab::TaskKind;
use medinet_ledger::CheckpointSigner as _;
use medinet_model::{InputShape, ModelParameters, TaskSpec, TrainingPlan};
use medinet_training::{Checkpoints, ComputeDevice, InMemoryData, Trainer, Training, TrainingJob, logits};
use serde_json::Value;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;

const CLASSES: [&str; 2] = ["normal", "pneumonia"];
/// The most by which two runtimes may differ in a logit.
const TOLERANCE: f32 = 1e-4;

/// Runs a model file on images and prints the logits, one per line.
const SCRIPT: &str = r"
import sys, numpy as np, onnxruntime
model, images, channels, height, width = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
session = onnxruntime.InferenceSession(model, providers=['CPUExecutionProvider'])
batch = np.fromfile(images, dtype='<f4').reshape(-1, channels, height, width)
print('\n'.join(repr(float(v)) for v in session.run(['logits'], {'image': batch})[0].ravel()))
";

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn onnxruntime(folder: &Path, model: &[u8], inputs: &[f32], shape: InputShape) -> Vec<f32> {
    let venv = std::env::var_os("MEDINET_VENV").map_or_else(|| repository().join(".venv"), PathBuf::from);
    let (model_file, images_file) = (folder.join("model.onnx"), folder.join("images.f32"));
    fs::write(&model_file, model).unwrap();
    fs::write(&images_file, inputs.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>()).unwrap();
    let output = Command::new(venv.join("bin/python"))
        .args(["-c", SCRIPT])
        .args([&model_file, &images_file])
        .args([shape.channels, shape.height, shape.width].map(|v| v.to_string()))
        .output()
        .expect("the Python environment of the tests is set up: requirements-test.txt in MEDINET_VENV");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(|line| line.parse().unwrap()).collect()
}

/// Wraps a JPEG file of the demo into DICOM as it is: JPEG Baseline, 224 by 224 pixels in colour.
fn to_dicom(picture: &Path, uid: &str, to: &Path) {
    let mut jpeg = fs::read(picture).unwrap();
    // A fragment is of even length (PS3.5 A.4).
    jpeg.resize(jpeg.len().next_multiple_of(2), 0);
    let mut object = InMemDicomObject::new_empty();
    let mut put = |tag, vr, value: PrimitiveValue| {
        object.put(DataElement::new(tag, vr, value));
    };
    put(tags::SOP_CLASS_UID, VR::UI, uids::SECONDARY_CAPTURE_IMAGE_STORAGE.into());
    put(tags::SOP_INSTANCE_UID, VR::UI, uid.into());
    put(tags::ROWS, VR::US, 224u16.into());
    put(tags::COLUMNS, VR::US, 224u16.into());
    put(tags::SAMPLES_PER_PIXEL, VR::US, 3u16.into());
    put(tags::PLANAR_CONFIGURATION, VR::US, 0u16.into());
    put(tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "YBR_FULL_422".into());
    put(tags::BITS_ALLOCATED, VR::US, 8u16.into());
    put(tags::BITS_STORED, VR::US, 8u16.into());
    put(tags::HIGH_BIT, VR::US, 7u16.into());
    put(tags::PIXEL_REPRESENTATION, VR::US, 0u16.into());
    object.put(DataElement::new(tags::PIXEL_DATA, VR::OB, PixelFragmentSequence::new_fragments(vec![jpeg])));
    let meta = FileMetaTableBuilder::new()
        .transfer_syntax(uids::JPEG_BASELINE8_BIT)
        .media_storage_sop_class_uid(uids::SECONDARY_CAPTURE_IMAGE_STORAGE)
        .media_storage_sop_instance_uid(uid);
    object.with_meta(meta).unwrap().write_to_file(to).unwrap();
}

/// Real X-rays as DICOM files and as inputs of the task.
struct Images {
    files: Vec<PathBuf>,
    inputs: Vec<f32>,
    classes: Vec<usize>,
}

/// The first `each` pictures of each class in a part of the demo's, through what training and inference share.
fn images(part: &str, each: usize, spec: &TaskSpec, to: &Path) -> Images {
    fs::create_dir(to).unwrap();
    let mut images = Images { files: Vec::new(), inputs: Vec::new(), classes: Vec::new() };
    for (class, name) in CLASSES.iter().enumerate() {
        let folder = repository().join("demo/images").join(part).join(name);
        let mut pictures: Vec<PathBuf> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        pictures.sort();
        for (number, picture) in pictures.iter().take(each).enumerate() {
            let file = to.join(format!("{name}-{number:02}.dcm"));
            to_dicom(picture, &format!("2.25.{class}{number:03}1"), &file);
            let object = medinet_objects::read(&fs::read(&file).unwrap()).unwrap();
            let image = medinet_imaging::decode(&object).unwrap();
            let input = medinet_imaging::prepare(&image, 0, &spec.preprocessing, spec.network.input).unwrap();
            images.inputs.extend(input.values);
            images.classes.push(class);
            images.files.push(file);
        }
    }
    images
}

impl Images {
    fn data(&self, spec: &TaskSpec) -> InMemoryData {
        InMemoryData::new(spec.network.input, self.inputs.clone(), self.classes.clone())
    }
}

/// A model whose logits are far enough apart that a runtime could be wrong about them.
fn trained(spec: &TaskSpec, images: &Images, folder: &Path) -> ModelParameters {
    let plan = TrainingPlan { batch_size: 8, ..TaskKind::Demo.training(20, 7) };
    let base = ModelParameters::initial(&spec.network, 7).unwrap();
    let job = TrainingJob { network: spec.network.clone(), base, plan, site_seed: 1 };
    fs::create_dir(folder).unwrap();
    let trainer = Trainer::new(ComputeDevice::cpu(), Checkpoints::new(folder));
    let nothing = InMemoryData::new(spec.network.input, Vec::new(), Vec::new());
    let mut go_on = |_: &_| ControlFlow::Continue(());
    match trainer.train(&job, &images.data(spec), &nothing, &mut go_on).unwrap() {
        Training::Finished(outcome) => outcome.parameters,
        Training::Paused => panic!("nobody paused it"),
    }
}

#[track_caller]
fn assert_close(what: &str, got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let apart = got.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(apart < TOLERANCE, "{what} differ by {apart}");
}

#[test]
fn burn_tract_and_onnxruntime_agree_on_real_x_rays() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let spec = TaskKind::Demo.spec();
    let parameters =
        trained(&spec, &images("train", 24, &spec, &dir.join("training")), &dir.join("checkpoints"));
    let onnx = common::onnx(&spec, &parameters, false);
    let bundle = common::bundle(&dir.join("ledger"), &spec, parameters.digest(&spec.network), &onnx);
    fs::write(dir.join("model.bundle"), bundle.encode()).unwrap();
    let key = common::signer().public_key().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    fs::write(dir.join("ledger.pub"), key).unwrap();
    let model = Model::load(&bundle.verify(&common::trusted()).unwrap()).unwrap();

    let seen = images("test", 12, &spec, &dir.join("x-rays"));
    let size = seen.inputs.len() / seen.files.len();
    let tract: Vec<f32> = seen.inputs.chunks(size).flat_map(|input| model.logits(input).unwrap()).collect();
    let burn = logits(&spec.network, &parameters, &seen.data(&spec), &ComputeDevice::cpu()).unwrap();
    let stranger = onnxruntime(dir, &onnx, &seen.inputs, spec.network.input);
    assert_eq!(tract.len(), 2 * 24);
    assert_close("tract and burn", &tract, &burn);
    assert_close("tract and onnxruntime", &tract, &stranger);
    assert_close("burn and onnxruntime", &burn, &stranger);
    let margins: Vec<f32> = stranger.chunks(2).map(|row| row[1] - row[0]).collect();
    let spread =
        margins.iter().copied().fold(f32::MIN, f32::max) - margins.iter().copied().fold(f32::MAX, f32::min);
    assert!(spread > 0.3, "the model says the same of every image, which proves little: {margins:?}");

    // And the program, from the files.
    let output = Command::new(env!("CARGO_BIN_EXE_medinet"))
        .args(["infer", "x-rays", "--json", "--model", "model.bundle", "--ledger-key", "ledger.pub"])
        .args(["--federation", "chest", "--without-votes"])
        .current_dir(dir)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    let printed = printed["images"].as_array().unwrap();
    assert_eq!(printed.len(), margins.len());
    for ((image, file), margin) in printed.iter().zip(&seen.files).zip(&margins) {
        assert_eq!(image["file"], Value::from(file.strip_prefix(dir).unwrap().to_string_lossy()));
        let expected = 1.0 / (1.0 + f64::from(-margin).exp());
        let probability = image["probabilities"]["pneumonia"].as_f64().unwrap();
        assert!((probability - expected).abs() < f64::from(TOLERANCE), "{image}, expected {expected}");
    }
}
