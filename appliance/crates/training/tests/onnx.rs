//! The exported model against burn, run by onnxruntime on real images.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod common;

use common::{SHAPE, data, job, plan, spec};
use medinet_model::onnx::{OnnxOptions, to_onnx};
use medinet_model::{InputShape, ModelParameters, NetworkManifest};
use medinet_training::{Checkpoints, ComputeDevice, InMemoryData, Trainer, Training, logits};
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Checks a model file, runs it on images and prints the logits, one per line.
const SCRIPT: &str = r"
import sys, numpy as np, onnx, onnxruntime
model, images, channels, height, width = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
onnx.checker.check_model(onnx.load(model), full_check=True)
session = onnxruntime.InferenceSession(model, providers=['CPUExecutionProvider'])
batch = np.fromfile(images, dtype='<f4').reshape(-1, channels, height, width)
logits = session.run(['logits'], {'image': batch})[0]
assert np.array_equal(np.argmax(logits, 1), np.argmax(session.run(['logits'], {'image': batch})[0], 1))
print('\n'.join(repr(float(v)) for v in logits.ravel()))
";

fn python() -> PathBuf {
    let venv = std::env::var_os("MEDINET_VENV")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../.venv"), PathBuf::from);
    venv.join("bin/python")
}

fn onnxruntime(model: &[u8], inputs: &[f32], shape: InputShape) -> Vec<f32> {
    let folder = tempfile::tempdir().unwrap();
    let (model_file, images_file) = (folder.path().join("model.onnx"), folder.path().join("images.f32"));
    fs::write(&model_file, model).unwrap();
    fs::write(&images_file, inputs.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>()).unwrap();
    let shape = [shape.channels, shape.height, shape.width].map(|v| v.to_string());
    let output = Command::new(python())
        .args(["-c", SCRIPT])
        .args([&model_file, &images_file])
        .args(shape)
        .output()
        .expect("the Python environment of the tests is set up: requirements-test.txt in MEDINET_VENV");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(|line| line.parse().unwrap()).collect()
}

fn assert_agrees(network: &NetworkManifest, parameters: &ModelParameters, inputs: &[f32]) {
    let shape = network.input;
    let size = (shape.channels * shape.height * shape.width) as usize;
    let images = InMemoryData::new(shape, inputs.to_vec(), vec![0; inputs.len() / size]);
    let expected = logits(network, parameters, &images, &ComputeDevice::cpu()).unwrap();
    for features in [false, true] {
        let model = to_onnx(&spec(network.clone()), parameters, OnnxOptions { features }).unwrap();
        let got = onnxruntime(&model, inputs, shape);
        assert_eq!(got.len(), expected.len());
        for (got, expected) in got.iter().zip(&expected) {
            assert!((got - expected).abs() < 1e-4, "{got} {expected}");
        }
    }
}

#[test]
fn onnxruntime_agrees_with_burn_on_a_trained_model_and_real_images() {
    let network = NetworkManifest::small(SHAPE, vec!["normal".into(), "pneumonia".into()]);
    let job = job(network, plan());
    let folder = tempfile::tempdir().unwrap();
    let trainer = Trainer::new(ComputeDevice::cpu(), Checkpoints::new(folder.path()));
    let mut go_on = |_: &_| ControlFlow::Continue(());
    let Training::Finished(outcome) = trainer.train(&job, &data(0..64), &data(0..0), &mut go_on).unwrap()
    else {
        panic!("nobody paused it");
    };
    let (inputs, _) = common::chest_x_rays();
    assert_agrees(&job.network, &outcome.parameters, &inputs);
}

#[test]
fn onnxruntime_agrees_with_burn_on_every_stem_and_odd_sides() {
    for (side, channels) in [(61, 3), (115, 1)] {
        let input = InputShape { channels, height: side, width: side + 6 };
        let network = NetworkManifest::resnet18(input, vec!["a".into(), "b".into(), "c".into()]);
        let parameters = ModelParameters::initial(&network, 2).unwrap();
        let size = (channels * side * (side + 6)) as usize;
        // A chest X-ray stretched over the input, so that pixels are real and planes differ.
        let (pixels, _) = common::chest_x_rays();
        let inputs: Vec<f32> = (0..2 * size).map(|i| pixels[i * 7919 / 1000 % pixels.len()]).collect();
        assert_agrees(&network, &parameters, &inputs);
    }
}
