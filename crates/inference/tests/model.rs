//! Released models through tract: against onnxruntime, and what is refused.
//!
//! onnxruntime comes from the Python environment that `MEDINET_VENV` names (default `.venv` in the repository), made
//! from `requirements-test.txt`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a step that fails fails the test")]

mod common;

use common::{bundle, key, noise, onnx, parameters, spec, trusted};
use medinet_inference::{InferenceError, Model, Prediction, dangerous};
use medinet_ledger::{BundleError, Ed25519Signer, LedgerPublicKey, ModelBundle, TrustedKeys};
use medinet_model::InputShape;
use medinet_types::ModelVersion;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs a model file on images and prints the logits, one per line.
const SCRIPT: &str = r"
import sys, numpy as np, onnxruntime
model, images, channels, height, width = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
session = onnxruntime.InferenceSession(model, providers=['CPUExecutionProvider'])
batch = np.fromfile(images, dtype='<f4').reshape(-1, channels, height, width)
print('\n'.join(repr(float(v)) for v in session.run(['logits'], {'image': batch})[0].ravel()))
";

const GREY: InputShape = InputShape { channels: 1, height: 28, width: 28 };

fn python() -> PathBuf {
    let venv = std::env::var_os("MEDINET_VENV")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.venv"), PathBuf::from);
    venv.join("bin/python")
}

fn onnxruntime(model: &[u8], inputs: &[f32], shape: InputShape) -> Vec<f32> {
    let folder = tempfile::tempdir().unwrap();
    let (model_file, images_file) = (folder.path().join("model.onnx"), folder.path().join("images.f32"));
    fs::write(&model_file, model).unwrap();
    fs::write(&images_file, inputs.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>()).unwrap();
    let output = Command::new(python())
        .args(["-c", SCRIPT])
        .args([&model_file, &images_file])
        .args([shape.channels, shape.height, shape.width].map(|v| v.to_string()))
        .output()
        .expect("the Python environment of the tests is set up: requirements-test.txt in MEDINET_VENV");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(|line| line.parse().unwrap()).collect()
}

fn size(shape: InputShape) -> usize {
    (shape.channels * shape.height * shape.width) as usize
}

fn released(shape: InputShape, classes: &[&str]) -> (ModelBundle, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let spec = spec(shape, classes);
    let parameters = parameters(&spec, 11);
    let onnx = onnx(&spec, &parameters, false);
    (bundle(folder.path(), &spec, parameters.digest(&spec.network), &onnx), onnx)
}

#[test]
fn tract_and_onnxruntime_agree_on_every_stem_and_odd_sides() {
    let shapes = [
        GREY,
        InputShape { channels: 3, height: 65, width: 50 },
        InputShape { channels: 1, height: 128, width: 113 },
    ];
    for shape in shapes {
        let (bundle, onnx) = released(shape, &["normal", "bacterial", "viral"]);
        let model = Model::load(&bundle.verify(&trusted()).unwrap()).unwrap();
        let inputs = noise(3 * size(shape), 5);
        let expected = onnxruntime(&onnx, &inputs, shape);
        let got: Vec<f32> =
            inputs.chunks(size(shape)).flat_map(|input| model.logits(input).unwrap()).collect();
        assert_eq!(got.len(), expected.len());
        for (got, expected) in got.iter().zip(&expected) {
            assert!((got - expected).abs() < 1e-4, "{shape:?}: tract {got}, onnxruntime {expected}");
        }
        // Three images that all gave the same would prove little.
        assert!((got[0] - got[3]).abs() > 1e-4, "{got:?}");
        for (prediction, logits) in model.predict_batch(&inputs).unwrap().iter().zip(expected.chunks(3)) {
            assert_softmax(prediction, logits);
        }
    }
}

fn assert_softmax(prediction: &Prediction, logits: &[f32]) {
    let sum: f64 = logits.iter().map(|z| f64::from(*z).exp()).sum();
    for (p, z) in prediction.probabilities.iter().zip(logits) {
        assert!((f64::from(*p) - f64::from(*z).exp() / sum).abs() < 1e-4, "{prediction:?} {logits:?}");
    }
    assert!((prediction.probabilities.iter().sum::<f32>() - 1.0).abs() < 1e-6);
    assert!((0.0..=3.0_f64.ln() + 1e-9).contains(&prediction.entropy));
    assert!(prediction.probabilities.iter().all(|p| *p <= prediction.confidence()));
}

#[test]
fn a_graph_with_a_feature_map_gives_the_same() {
    let spec = spec(GREY, &["normal", "pneumonia"]);
    let parameters = parameters(&spec, 11);
    let load = |features| dangerous().from_onnx(&spec, &onnx(&spec, &parameters, features)).unwrap();
    let input = noise(size(GREY), 3);
    assert_eq!(load(true).predict(&input).unwrap(), load(false).predict(&input).unwrap());
}

#[test]
fn a_model_tells_where_it_comes_from() {
    let (bundle, onnx) = released(GREY, &["normal", "pneumonia"]);
    let verified = bundle.verify(&trusted()).unwrap();
    let model = Model::load(&verified).unwrap();
    assert_eq!(
        (model.version(), model.digest(), model.ledger_index()),
        (Some(ModelVersion(1)), Some(verified.digest()), Some(6))
    );
    assert_eq!((model.spec(), model.input_shape()), (verified.spec(), GREY));
    assert_eq!(model.classes(), ["normal", "pneumonia"]);
    assert_eq!(model.preprocessing(), &verified.spec().preprocessing);
    let stranger = dangerous().from_onnx(verified.spec(), &onnx).unwrap();
    assert_eq!((stranger.version(), stranger.digest(), stranger.ledger_index()), (None, None, None));
}

#[test]
fn a_tampered_bundle_gives_no_model() {
    let (bundle, onnx) = released(GREY, &["normal", "pneumonia"]);
    let bytes = bundle.encode();
    // The packed graph fills most of the bundle; every region of it is hit.
    let mut refused = 0;
    for position in (0..bytes.len()).step_by(bytes.len() / 64) {
        let mut altered = bytes.clone();
        altered[position] ^= 0x10;
        match ModelBundle::decode(&altered).and_then(|bundle| bundle.verify(&trusted())) {
            Err(_) => refused += 1,
            // A few bits of zstd's own framing mean nothing; what came out is what was signed.
            Ok(verified) => assert_eq!(verified.onnx(), onnx),
        }
    }
    assert!(refused > 60, "{refused}");
    let mut altered = bytes.clone();
    let last = altered.len() - 1000;
    altered[last] ^= 1;
    let error = ModelBundle::decode(&altered).and_then(|bundle| bundle.verify(&trusted())).unwrap_err();
    assert_eq!(error, BundleError::Onnx);
}

#[test]
fn another_ledgers_key_gives_no_model() {
    use medinet_ledger::CheckpointSigner as _;
    let (bundle, _) = released(GREY, &["normal", "pneumonia"]);
    let stranger = Ed25519Signer::from_seed(&[1; 32]).unwrap();
    let other = TrustedKeys { ledger: LedgerPublicKey::new(&common::federation(), stranger.public_key()) };
    assert_ne!(other.ledger, key());
    assert!(matches!(bundle.verify(&other), Err(BundleError::Checkpoint(_))));
}

/// Verified means released, not sound: a graph may still be nonsense or of another task.
#[test]
fn a_released_graph_that_does_not_fit_its_task_does_not_load() {
    let folder = tempfile::tempdir().unwrap();
    let (two, three) = (spec(GREY, &["normal", "pneumonia"]), spec(GREY, &["normal", "bacterial", "viral"]));
    let parameters = parameters(&three, 1);
    let graph = onnx(&three, &parameters, false);
    let verified =
        bundle(folder.path(), &two, parameters.digest(&three.network), &graph).verify(&trusted()).unwrap();
    let error = Model::load(&verified).unwrap_err();
    assert!(matches!(error, InferenceError::Output { expected: [1, 2], .. }), "{error}");

    let wide = spec(InputShape { width: 40, ..GREY }, &["normal", "bacterial", "viral"]);
    assert!(dangerous().from_onnx(&wide, &graph).is_err(), "the graph is for 28 by 28 pixels");
    let error = dangerous().from_onnx(&two, b"not an ONNX file").unwrap_err();
    assert!(matches!(error, InferenceError::Graph { .. }), "{error}");
    assert!(matches!(dangerous().from_onnx(&two, b""), Err(InferenceError::Graph { .. })));
}

#[test]
fn inputs_that_do_not_fit_are_refused() {
    let (bundle, _) = released(GREY, &["normal", "pneumonia"]);
    let model = Model::load(&bundle.verify(&trusted()).unwrap()).unwrap();
    let mut input = noise(784, 1);
    assert_eq!(
        model.predict(&input[1..]).unwrap_err(),
        InferenceError::InputLength { expected: 784, got: 783 }
    );
    let one_and_a_bit = [input.as_slice(), &[0.0]].concat();
    assert_eq!(
        model.predict_batch(&one_and_a_bit).unwrap_err(),
        InferenceError::InputLength { expected: 784, got: 1 }
    );
    assert_eq!(model.predict_batch(&[]).unwrap(), []);
    input[9] = f32::NAN;
    assert_eq!(model.predict(&input).unwrap_err(), InferenceError::InputNotFinite { position: 9 });
}

#[test]
fn a_temperature_changes_confidence_and_not_the_class() {
    let (bundle, _) = released(GREY, &["normal", "pneumonia"]);
    let model = Model::load(&bundle.verify(&trusted()).unwrap()).unwrap();
    assert_eq!(model.temperature().to_bits(), 1.0_f32.to_bits());
    let input = noise(784, 2);
    let plain = model.predict(&input).unwrap();
    let warm = model.clone().with_temperature(3.0).unwrap().predict(&input).unwrap();
    assert_eq!(warm.class, plain.class);
    assert!(warm.confidence() < plain.confidence() && warm.entropy > plain.entropy);
    for bad in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        assert!(matches!(model.clone().with_temperature(bad), Err(InferenceError::Temperature { .. })));
    }
}

#[test]
fn several_threads_share_a_model() {
    let (bundle, _) = released(GREY, &["normal", "pneumonia"]);
    let model = Model::load(&bundle.verify(&trusted()).unwrap()).unwrap();
    let inputs: Vec<Vec<f32>> = (0..4).map(|seed| noise(784, seed)).collect();
    let alone: Vec<Prediction> = inputs.iter().map(|input| model.predict(input).unwrap()).collect();
    let together: Vec<Prediction> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            inputs.iter().map(|input| scope.spawn(|| model.predict(input).unwrap())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(together, alone);
}
