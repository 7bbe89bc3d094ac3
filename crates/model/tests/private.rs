//! Patients' gradients from one backward pass, against one backward pass for each patient.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
#![cfg(feature = "burn")]

use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Tensor, TensorData};
use medinet_model::network::{Network, PatientImages, join};
use medinet_model::{Body, InputShape, ModelParameters, NetworkManifest, Stem};
use proptest::prelude::*;
use rand_chacha::ChaCha12Rng;
use rand_core::{Rng, SeedableRng};

const CLASS_WEIGHTS: [f32; 3] = [1.0, 0.5, 2.0];

fn resnet(stem: Stem, channels: u32, side: u32) -> NetworkManifest {
    let body = Body::ResNet { stem, stage_channels: vec![8, 16, 24], stage_blocks: vec![1, 2, 1], groups: 4 };
    let input = InputShape { channels, height: side, width: side + 3 };
    NetworkManifest { input, classes: vec!["a".into(), "b".into(), "c".into()], body }
}

fn small() -> NetworkManifest {
    let input = InputShape { channels: 1, height: 28, width: 28 };
    NetworkManifest::small(input, vec!["a".into(), "b".into(), "c".into()])
}

/// Narrow at the front, wide at the end: its last layers take the Gram form.
fn wide_end() -> NetworkManifest {
    let body = Body::ResNet {
        stem: Stem::Stride2,
        stage_channels: vec![8, 64, 128],
        stage_blocks: vec![1, 1, 1],
        groups: 8,
    };
    let input = InputShape { channels: 1, height: 28, width: 28 };
    NetworkManifest { input, classes: vec!["a".into(), "b".into(), "c".into()], body }
}

fn uniform(random: &mut ChaCha12Rng) -> f32 {
    (random.next_u32() >> 8) as f32 / 8_388_608.0 - 1.0
}

struct Case {
    manifest: NetworkManifest,
    parameters: ModelParameters,
    /// Images of each patient.
    patients: Vec<usize>,
    values: Vec<f32>,
    classes: Vec<usize>,
}

impl Case {
    fn new(manifest: NetworkManifest, patients: &[usize], seed: u64) -> Self {
        let mut random = ChaCha12Rng::seed_from_u64(seed);
        let InputShape { channels, height, width } = manifest.input;
        let images = patients.iter().sum::<usize>();
        let size = (channels * height * width) as usize;
        let values = (0..images * size).map(|_| uniform(&mut random)).collect();
        let mut parameters = ModelParameters::initial(&manifest, 3).unwrap().into_vec();
        parameters.iter_mut().for_each(|value| *value += 0.05 * uniform(&mut random));
        let parameters = ModelParameters::new(&manifest, parameters).unwrap();
        let classes = (0..images).map(|image| image % 3).collect();
        Self { manifest, parameters, patients: patients.to_vec(), values, classes }
    }

    fn images(&self, images: std::ops::Range<usize>, device: &Device) -> Tensor<4> {
        let InputShape { channels, height, width } = self.manifest.input;
        let size = (channels * height * width) as usize;
        let shape = [images.len(), channels as usize, height as usize, width as usize];
        let values = self.values[images.start * size..images.end * size].to_vec();
        Tensor::from_data(TensorData::new(values, shape), device)
    }

    /// Each patient's loss and gradient by a backward pass of its own.
    fn reference(&self) -> Vec<(f64, Vec<f32>)> {
        let device = Device::flex().autodiff();
        let network = Network::new(&self.manifest, &self.parameters, &device).unwrap();
        let mut first = 0;
        let mut each = Vec::new();
        for &count in &self.patients {
            let images = first..first + count;
            first += count;
            let mut targets = vec![0.0f32; count * 3];
            for (row, &class) in targets.chunks_exact_mut(3).zip(&self.classes[images.clone()]) {
                row[class] = -CLASS_WEIGHTS[class] / count as f32;
            }
            let targets = Tensor::<2>::from_data(TensorData::new(targets, [count, 3]), &device);
            let loss = (log_softmax(network.forward(self.images(images, &device)), 1) * targets).sum();
            let value = f64::from(loss.clone().try_into_scalar::<f32>().unwrap());
            let mut gradients = loss.backward();
            let gradients: Vec<Tensor<1>> = network
                .parameters()
                .iter()
                .map(|p| p.grad_remove(&mut gradients).expect("every parameter is used"))
                .collect();
            each.push((value, join(&gradients).unwrap()));
        }
        each
    }

    fn gradients(&self) -> medinet_model::network::PatientGradients {
        let device = Device::flex();
        let network = Network::new(&self.manifest, &self.parameters, &device).unwrap();
        network.patient_gradients(
            self.images(0..self.classes.len(), &device),
            &PatientImages {
                classes: &self.classes,
                images: &self.patients,
                class_weights: &CLASS_WEIGHTS,
                all_images: None,
            },
        )
    }
}

fn norm(values: &[f32]) -> f64 {
    values.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt()
}

#[test]
fn losses_norms_and_weighted_sums_are_those_of_a_pass_for_each_patient() {
    let cases = [
        Case::new(small(), &[1, 2, 3, 4, 5], 1),
        Case::new(resnet(Stem::Stride1, 1, 28), &[3, 1, 1, 2], 2),
        Case::new(resnet(Stem::Stride2, 3, 45), &[1, 5, 1], 3),
        Case::new(resnet(Stem::Stride4, 1, 65), &[2, 1], 4),
        Case::new(wide_end(), &[1, 2, 1, 5], 5),
        Case::new(small(), &[1; 20], 6),
    ];
    for case in &cases {
        let reference = case.reference();
        let gradients = case.gradients();
        let norms: Vec<f64> = reference.iter().map(|(_, gradient)| norm(gradient)).collect();
        for (patient, (ours, (loss, _))) in gradients.norms().iter().zip(&reference).enumerate() {
            let expected = norms[patient];
            // From above: what rounding may do is in it.
            assert!(
                (-1e-5..1e-2).contains(&(ours / expected - 1.0)),
                "patient {patient}: {ours} for {expected}"
            );
            assert!((gradients.losses()[patient] - loss).abs() < 1e-5);
        }
        // Half of the patients are clipped.
        let mut sorted = norms.clone();
        sorted.sort_by(f64::total_cmp);
        let clip = sorted[sorted.len() / 2];
        let factors: Vec<f32> = norms.iter().map(|norm| (clip / norm).min(1.0) as f32).collect();
        let mut expected = vec![0.0f64; case.parameters.as_slice().len()];
        for ((_, gradient), &factor) in reference.iter().zip(&factors) {
            expected.iter_mut().zip(gradient).for_each(|(sum, &v)| *sum += f64::from(factor) * f64::from(v));
        }
        let mut sum = vec![0.0f64; expected.len()];
        gradients.add_weighted(&factors, &mut sum);
        let layout = medinet_model::ParameterLayout::of(&case.manifest).unwrap();
        for slot in layout.tensors() {
            let (a, b) = (&sum[slot.range()], &expected[slot.range()]);
            let size = b.iter().map(|v| v * v).sum::<f64>().sqrt();
            let error = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
            assert!(error <= 1e-4 * size + 1e-6, "{}: {error} of {size}", slot.name);
        }
    }
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    let case = Case::new(wide_end(), &[1, 2, 3, 1], 7);
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let gradients = case.gradients();
            let norms = gradients.norms().to_vec();
            let mut sum = vec![0.0f64; case.parameters.as_slice().len()];
            gradients.add_weighted(&[1.0, 0.5, 0.25, 1.0], &mut sum);
            (norms, sum)
        })
    };
    assert_eq!(run(1), run(3));
}

#[test]
fn a_patient_that_overflows_is_seen_and_left_out() {
    for manifest in [small(), wide_end()] {
        let mut case = Case::new(manifest, &[2, 1, 2], 8);
        let size = 28 * 28;
        case.values[2 * size + 5] = f32::NAN;
        let gradients = case.gradients();
        let finite: Vec<bool> = gradients.norms().iter().map(|norm| norm.is_finite()).collect();
        assert_eq!(finite, [true, false, true]);
        let mut sum = vec![0.0f64; case.parameters.as_slice().len()];
        gradients.add_weighted(&[1.0, 0.0, 1.0], &mut sum);
        assert!(sum.iter().all(|value| value.is_finite()));
        case.values[2 * size + 5] = 0.0;
        let mut without = vec![0.0f64; sum.len()];
        case.gradients().add_weighted(&[1.0, 0.0, 1.0], &mut without);
        assert_eq!(sum, without);
    }
}

/// One patient more moves the sum by that patient's own vector: norms and vectors of the others stay as they are, bit by bit.
#[test]
fn a_patient_has_the_same_norm_and_gradient_whoever_else_is_in_the_batch() {
    // Gradients that are kept, that are made again, and norms from Gram matrices; numbers of images on both sides of the choices.
    for manifest in [small(), wide_end(), resnet(Stem::Stride2, 3, 45), resnet(Stem::Stride1, 1, 28)] {
        let all = Case::new(manifest, &[2, 1, 6, 1, 3], 10);
        let size = all.values.len() / all.classes.len();
        let norms = all.gradients().norms().to_vec();
        let mut next = 0;
        for (patient, &count) in all.patients.iter().enumerate() {
            let images = next..next + count;
            next += count;
            let alone = Case {
                manifest: all.manifest.clone(),
                parameters: all.parameters.clone(),
                patients: vec![count],
                values: all.values[images.start * size..images.end * size].to_vec(),
                classes: all.classes[images].to_vec(),
            };
            let mut factors = [0.0; 5];
            factors[patient] = 1.0;
            let [mut expected, mut sum] = [0, 1].map(|_| vec![0.0f64; all.parameters.as_slice().len()]);
            all.gradients().add_weighted(&factors, &mut sum);
            let gradients = alone.gradients();
            assert_eq!(gradients.norms()[0].to_bits(), norms[patient].to_bits());
            gradients.add_weighted(&[1.0], &mut expected);
            assert_eq!(sum, expected);
            let length = sum.iter().map(|v| v * v).sum::<f64>().sqrt();
            assert!(norms[patient] >= length * (1.0 - 1e-12), "{} {length}", norms[patient]);
        }
    }
}

#[test]
fn parts_of_a_patient_sum_to_the_whole() {
    let case = Case::new(small(), &[5], 9);
    let (_, expected) = case.reference().remove(0);
    let device = Device::flex();
    let network = Network::new(&case.manifest, &case.parameters, &device).unwrap();
    let mut sum = vec![0.0f64; expected.len()];
    for images in [0..2, 2..5] {
        let batch = PatientImages {
            classes: &case.classes[images.clone()],
            images: &[images.len()],
            class_weights: &CLASS_WEIGHTS,
            all_images: Some(&[5]),
        };
        network.patient_gradients(case.images(images, &device), &batch).add_weighted(&[1.0], &mut sum);
    }
    let error = sum.iter().zip(&expected).map(|(a, &b)| (a - f64::from(b)).powi(2)).sum::<f64>().sqrt();
    assert!(error < 1e-5 * norm(&expected), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Adding a patient moves the clipped sum by at most the clip norm, whatever the images.
    #[test]
    fn a_clipped_patient_is_never_longer_than_the_clip_norm(
        seed in any::<u64>(),
        images in 1usize..6,
        size in -6i32..20,
        clip in 0.001f64..10.0,
        wide in any::<bool>(),
    ) {
        let mut case = Case::new(if wide { wide_end() } else { small() }, &[images, 1], seed);
        case.values.iter_mut().for_each(|value| *value *= 2f32.powi(size));
        let gradients = case.gradients();
        let factor = |norm: &f64| if norm.is_finite() { (clip / norm).min(1.0) as f32 } else { 0.0 };
        let factors: Vec<f32> = gradients.norms().iter().map(factor).collect();
        let sum = |factors: &[f32]| {
            let mut sum = vec![0.0f64; case.parameters.as_slice().len()];
            case.gradients().add_weighted(factors, &mut sum);
            sum
        };
        let (with, without) = (sum(&factors), sum(&[0.0, factors[1]]));
        let moved = with.iter().zip(&without).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
        // Factors are rounded to single precision here, up or down; the sums are not.
        prop_assert!(moved <= clip * (1.0 + f64::powi(2.0, -22)), "{moved} {clip}");
    }
}
