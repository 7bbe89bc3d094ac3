//! The burn network: its two implementations of the layers against each other and against finite differences.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
#![cfg(feature = "burn")]

use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Tensor, TensorData};
use medinet_model::network::{Network, join};
use medinet_model::{Body, InputShape, ModelParameters, NetworkManifest, ParameterLayout, Stem};
use rand_chacha::ChaCha12Rng;
use rand_core::{Rng, SeedableRng};

fn manifest(stem: Stem, channels: u32, side: u32) -> NetworkManifest {
    let body = Body::ResNet { stem, stage_channels: vec![8, 16, 24], stage_blocks: vec![1, 2, 1], groups: 4 };
    let input = InputShape { channels, height: side, width: side + 3 };
    NetworkManifest { input, classes: vec!["a".into(), "b".into(), "c".into()], body }
}

fn uniform(random: &mut ChaCha12Rng) -> f32 {
    (random.next_u32() >> 8) as f32 / 8_388_608.0 - 1.0
}

/// Images of noise, and parameters that are all away from their starting values.
fn setup(manifest: &NetworkManifest, batch: usize) -> (Vec<f32>, ModelParameters) {
    let mut random = ChaCha12Rng::seed_from_u64(5);
    let InputShape { channels, height, width } = manifest.input;
    let images = (0..batch * (channels * height * width) as usize).map(|_| uniform(&mut random)).collect();
    let mut values = ModelParameters::initial(manifest, 3).unwrap().into_vec();
    for value in &mut values {
        *value += 0.05 * uniform(&mut random);
    }
    (images, ModelParameters::new(manifest, values).unwrap())
}

fn network(
    manifest: &NetworkManifest,
    parameters: &ModelParameters,
    device: &Device,
    generic: bool,
) -> Network {
    let network = Network::new(manifest, parameters, device).unwrap();
    if generic { network.with_generic_layers() } else { network }
}

fn images(manifest: &NetworkManifest, values: &[f32], device: &Device) -> Tensor<4> {
    let InputShape { channels, height, width } = manifest.input;
    let image = (channels * height * width) as usize;
    let shape = [values.len() / image, channels as usize, height as usize, width as usize];
    Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
}

/// Cross entropy with target class `i % 3` for image `i`.
fn loss(logits: Tensor<2>) -> Tensor<1> {
    let [batch, classes] = logits.dims();
    let mut targets = vec![0.0f32; batch * classes];
    for (i, row) in targets.chunks_exact_mut(classes).enumerate() {
        row[i % classes] = -1.0 / batch as f32;
    }
    let targets = Tensor::<2>::from_data(TensorData::new(targets, [batch, classes]), &logits.device());
    (log_softmax(logits, 1) * targets).sum()
}

fn loss_and_gradient(
    manifest: &NetworkManifest,
    parameters: &ModelParameters,
    inputs: &[f32],
    generic: bool,
) -> (f32, Vec<f32>) {
    let device = Device::flex().autodiff();
    let network = network(manifest, parameters, &device, generic);
    let loss = loss(network.forward(images(manifest, inputs, &device)));
    let value = loss.clone().try_into_scalar::<f32>().unwrap();
    let mut gradients = loss.backward();
    let gradients: Vec<Tensor<1>> = network
        .parameters()
        .iter()
        .map(|p| p.grad_remove(&mut gradients).expect("every parameter is used"))
        .collect();
    (value, join(&gradients).unwrap())
}

#[test]
fn both_implementations_agree_in_value_and_gradient() {
    // Seven images leave the last lane shorter; the sides are odd so that strides round.
    for (stem, channels, side) in
        [(Stem::Stride1, 1, 28), (Stem::Stride2, 3, 45), (Stem::Stride4, 1, 65), (Stem::Stride1, 1, 40)]
    {
        let manifest = manifest(stem, channels, side);
        let (inputs, parameters) = setup(&manifest, 7);
        let (value, gradient) = loss_and_gradient(&manifest, &parameters, &inputs, false);
        let (reference, reference_gradient) = loss_and_gradient(&manifest, &parameters, &inputs, true);
        assert!((value - reference).abs() < 1e-5, "{stem:?} {value} {reference}");
        let layout = ParameterLayout::of(&manifest).unwrap();
        for slot in layout.tensors() {
            let (a, b) = (&gradient[slot.range()], &reference_gradient[slot.range()]);
            let norm = b.iter().map(|v| v * v).sum::<f32>().sqrt();
            let error = a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f32>().sqrt();
            assert!(error <= 1e-4 * norm + 1e-6, "{stem:?} {}: {error} of {norm}", slot.name);
        }
    }
}

#[test]
fn gradients_are_finite_differences() {
    let manifest = manifest(Stem::Stride1, 1, 28);
    let (inputs, parameters) = setup(&manifest, 6);
    let (_, gradient) = loss_and_gradient(&manifest, &parameters, &inputs, false);
    let layout = ParameterLayout::of(&manifest).unwrap();
    // Along the gradient of each tensor the loss rises by its norm; a step of 1e-2 keeps rounding small.
    for slot in layout.tensors() {
        let direction = &gradient[slot.range()];
        let norm = direction.iter().map(|v| v * v).sum::<f32>().sqrt();
        let step = 1e-2;
        let moved = |sign: f32| {
            let mut values = parameters.as_slice().to_vec();
            for (value, d) in values[slot.range()].iter_mut().zip(direction) {
                *value += sign * step * d / norm;
            }
            let moved = ModelParameters::new(&manifest, values).unwrap();
            let device = Device::flex();
            let network = network(&manifest, &moved, &device, false);
            loss(network.forward(images(&manifest, &inputs, &device))).try_into_scalar::<f32>().unwrap()
        };
        let slope = (moved(1.0) - moved(-1.0)) / (2.0 * step);
        assert!((slope - norm).abs() < 0.03 * norm + 2e-4, "{}: {slope} against {norm}", slot.name);
    }
}

#[test]
fn parameters_leave_as_they_came() {
    let manifest = manifest(Stem::Stride2, 3, 50);
    let (_, parameters) = setup(&manifest, 1);
    for device in [Device::flex(), Device::flex().autodiff()] {
        let network = Network::new(&manifest, &parameters, &device).unwrap();
        assert_eq!(network.read_parameters().unwrap(), parameters.as_slice());
    }
}

#[test]
fn images_do_not_influence_each_other() {
    let manifest = manifest(Stem::Stride1, 1, 28);
    let (inputs, parameters) = setup(&manifest, 5);
    let network = Network::new(&manifest, &parameters, &Device::flex()).unwrap();
    let together =
        network.forward(images(&manifest, &inputs, &Device::flex())).try_into_vec_as::<f32>().unwrap();
    let size = inputs.len() / 5;
    for (i, one) in inputs.chunks_exact(size).enumerate() {
        let alone =
            network.forward(images(&manifest, one, &Device::flex())).try_into_vec_as::<f32>().unwrap();
        for (a, b) in alone.iter().zip(&together[i * 3..]) {
            assert!((a - b).abs() < 1e-5, "{a} {b}");
        }
    }
}
