//! Private training as a site runs it: clips, adds noise, samples, learns.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod common;

use common::{chest_x_rays, data, job, plan, tiny};
use medinet_model::{Augmentation, ClassBalance, ModelParameters, TrainingPlan};
use medinet_privacy::{Delta, DpSgdPlan, Epsilon, NoiseMultiplier, SamplingRate};
use medinet_training::{
    Checkpoints, ComputeDevice, InMemoryData, Progress, Trainer, Training, TrainingError, TrainingJob,
    TrainingOutcome, published_count,
};
use std::ops::ControlFlow;
use std::time::Duration;

fn privacy(noise: f64, rate: f64, steps: u64) -> DpSgdPlan {
    DpSgdPlan {
        // Whatever it costs: these tests are about the training.
        epsilon: Epsilon::new(1e9).unwrap(),
        delta: Delta::new(1e-5).unwrap(),
        noise_multiplier: NoiseMultiplier::new(noise).unwrap(),
        clip_norm: 1.0,
        sampling_rate: SamplingRate::new(rate).unwrap(),
        steps,
    }
}

/// Plain steps: no momentum, no decay, no augmentation.
fn private_plan(privacy: DpSgdPlan) -> TrainingPlan {
    TrainingPlan {
        local_epochs: 1,
        momentum: 0.0,
        weight_decay: 0.0,
        learning_rate: 1.0,
        augmentation: Augmentation::none(),
        class_balance: ClassBalance::None,
        privacy: Some(privacy),
        ..plan()
    }
}

/// 32 chest X-rays of 16 patients with one to four images.
fn patients() -> InMemoryData {
    let of_image = [0, 0, 1, 2, 2, 2, 3, 4, 4, 4, 4, 5, 6, 6, 7, 8, 8, 9, 9, 9, 10, 11, 11, 11, 12, 12, 13];
    let of_image = of_image.into_iter().chain([14, 14, 15, 15, 15]).collect::<Vec<u64>>();
    assert_eq!(of_image.len(), 32);
    data(0..32).with_patients(of_image)
}

fn trainer(folder: &std::path::Path, seed: u8) -> Trainer<'static> {
    let checkpoints = Checkpoints::new(folder).every(Duration::ZERO);
    Trainer::new(ComputeDevice::cpu(), checkpoints).dangerous().with_noise_seed([seed; 32])
}

fn train_with(job: &TrainingJob, training: &InMemoryData, seed: u8) -> Result<Training, TrainingError> {
    let folder = tempfile::tempdir().unwrap();
    trainer(folder.path(), seed).train(job, training, &data(32..64), &mut |_| ControlFlow::Continue(()))
}

fn train(job: &TrainingJob, training: &InMemoryData, seed: u8) -> TrainingOutcome {
    match train_with(job, training, seed) {
        Ok(Training::Finished(outcome)) => outcome,
        other => panic!("expected a finished training, got {other:?}"),
    }
}

/// What the training moved the model by.
fn moved(job: &TrainingJob, parameters: &ModelParameters) -> Vec<f64> {
    let each = parameters.as_slice().iter().zip(job.base.as_slice());
    each.map(|(after, before)| f64::from(*after) - f64::from(*before)).collect()
}

fn norm(values: &[f64]) -> f64 {
    values.iter().map(|v| v * v).sum::<f64>().sqrt()
}

#[test]
fn the_noise_has_the_standard_deviation_that_the_plan_says() {
    // Large noise hides the gradients, whose sum has a norm of at most 16 C: one step, divided by q N' = 0.5 * 10.
    let (z, q) = (20.0, 0.5);
    let privacy = privacy(z, q, 1);
    let job = job(tiny(), private_plan(privacy));
    let change = moved(&job, &train(&job, &patients(), 1).parameters);
    let drawn = privacy.noise(change.len()).unwrap().standard_deviation();
    // At least what the accountant counts, and hardly more.
    assert!((z..z * 1.01).contains(&drawn), "{drawn}");
    let expected = drawn / (q * 10.0);
    let n = change.len() as f64;
    let deviation = norm(&change) / n.sqrt();
    assert!((deviation / expected - 1.0).abs() < 5.0 / (2.0 * n).sqrt() + 0.002, "{deviation} {expected}");
    let mean = change.iter().sum::<f64>() / n;
    assert!(mean.abs() < 5.0 * expected / n.sqrt() + 0.01 * expected, "{mean}");
    // Another seed is other noise, independent of it.
    let other = moved(&job, &train(&job, &patients(), 2).parameters);
    let product: f64 = change.iter().zip(&other).map(|(a, b)| a * b).sum();
    assert!((product / (norm(&change) * norm(&other))).abs() < 5.0 / n.sqrt() + 0.01);
}

#[test]
fn a_step_moves_by_the_clipped_sum_over_the_expected_number() {
    // Hardly any noise, everybody taken, a clip norm below every gradient: each patient counts with a norm of C.
    let small = DpSgdPlan { clip_norm: 1e-3, ..privacy(0.01, 1.0, 1) };
    let all = job(tiny(), private_plan(small));
    let change = moved(&all, &train(&all, &patients(), 1).parameters);
    let noise = 0.01 * 1e-3 / 10.0 * (change.len() as f64).sqrt();
    let length = norm(&change);
    assert!(length > 10.0 * noise, "{length} {noise}");
    assert!(length <= 16.0 * 1e-3 / 10.0 + noise * 1.1, "{length}");

    // One patient alone, clipped: exactly C over the expected ten.
    let one = data(0..5).with_patients(vec![3; 5]);
    let change = moved(&all, &train(&all, &one, 1).parameters);
    let expected = (1e-3f64 / 10.0).hypot(noise);
    assert!((norm(&change) / expected - 1.0).abs() < 0.05, "{} {expected}", norm(&change));
}

#[test]
fn how_images_are_split_into_batches_changes_rounding_alone() {
    // Batches of 3 split the sample, and a patient with four images.
    let run = |batch_size| {
        let plan = TrainingPlan { batch_size, learning_rate: 0.1, ..private_plan(privacy(0.01, 1.0, 3)) };
        let job = job(tiny(), plan);
        moved(&job, &train(&job, &patients(), 4).parameters)
    };
    let (whole, parts) = (run(32), run(3));
    let difference: Vec<f64> = whole.iter().zip(&parts).map(|(a, b)| a - b).collect();
    assert!(norm(&difference) < 1e-3 * norm(&whole), "{} {}", norm(&difference), norm(&whole));
}

#[test]
fn patients_are_taken_at_the_plans_rate() {
    // A step that takes nobody moves by noise alone; with hardly any noise the others are counted apart.
    let (z, q, clip_norm) = (0.01, 0.3, 1e-3);
    let plan = private_plan(DpSgdPlan { clip_norm, ..privacy(z, q, 1) });
    let one = data(0..1).with_patients(vec![0]);
    let nothing = data(0..0);
    let job = job(tiny(), plan);
    let mut taken = 0;
    for seed in 0..60 {
        let folder = tempfile::tempdir().unwrap();
        let result =
            trainer(folder.path(), seed).train(&job, &one, &nothing, &mut |_| ControlFlow::Continue(()));
        let Training::Finished(outcome) = result.unwrap() else { panic!("not paused") };
        // In units of C over q N': noise has a norm of 0.01 sqrt(5000), together with a patient 1.2.
        let change = norm(&moved(&job, &outcome.parameters)) / clip_norm * q * 10.0;
        assert!((0.6..1.5).contains(&change), "{change}");
        taken += u32::from(change > 0.98);
    }
    // Binomial of 60 at 0.3: mean 18, deviation 3.5.
    assert!((6..=32).contains(&taken), "{taken}");
}

#[test]
fn the_same_seed_gives_the_same_bits_and_the_system_others() {
    let job = job(tiny(), private_plan(privacy(1.0, 0.3, 3)));
    let first = train(&job, &patients(), 9);
    assert_eq!(first, train(&job, &patients(), 9));
    let undisturbed = |_: &Progress| ControlFlow::Continue(());
    let by_system = || {
        let folder = tempfile::tempdir().unwrap();
        let trainer = Trainer::new(ComputeDevice::cpu(), Checkpoints::new(folder.path()));
        match trainer.train(&job, &patients(), &data(32..64), &mut undisturbed.clone()) {
            Ok(Training::Finished(outcome)) => outcome.parameters,
            other => panic!("{other:?}"),
        }
    };
    let (one, other) = (by_system(), by_system());
    assert_ne!(one, other);
    assert_ne!(one, first.parameters);
}

#[test]
fn a_paused_training_runs_each_step_once() {
    let job = job(tiny(), private_plan(privacy(1.0, 0.5, 4)));
    let undisturbed = train(&job, &patients(), 5);
    let folder = tempfile::tempdir().unwrap();
    let mut steps = Vec::new();
    let outcome = loop {
        let result = trainer(folder.path(), 5).train(&job, &patients(), &data(32..64), &mut |progress| {
            steps.push(progress.step);
            ControlFlow::Break(())
        });
        match result.unwrap() {
            Training::Paused => {}
            Training::Finished(outcome) => break outcome,
        }
    };
    assert_eq!(steps, [1, 2, 3, 4]);
    assert_eq!(outcome.parameters, undisturbed.parameters);
}

#[test]
fn patients_are_learnt_from_under_moderate_noise() {
    // 600 patients with the same 32 images, so that noise is small beside their sum.
    let (inputs, classes) = chest_x_rays();
    let images = 600;
    let many: Vec<f32> = (0..images).flat_map(|i| inputs[i % 32 * 784..][..784].to_vec()).collect();
    let data = InMemoryData::new(common::SHAPE, many, (0..images).map(|i| classes[i % 32]).collect())
        .with_patients((0..images as u64).collect());
    let plan = TrainingPlan { learning_rate: 0.5, batch_size: 64, ..private_plan(privacy(1.0, 0.1, 60)) };
    let job = job(tiny(), plan);
    let outcome = train(&job, &data, 1);
    let validation = outcome.validation.unwrap();
    assert!(validation.auroc.unwrap() > 0.75, "{validation:?}");
    assert_eq!(outcome.images, 600);
}

#[test]
fn counts_leave_in_tens() {
    // 16 patients with 32 images.
    let job = job(tiny(), private_plan(privacy(1.0, 0.5, 1)));
    assert_eq!(train(&job, &patients(), 1).images, 10);
    assert_eq!(published_count(16), 10);
}

/// The weight that leaves is the number that was fixed, however many images and patients there are by now.
#[test]
fn the_weight_follows_the_number_that_was_fixed_and_not_the_data() {
    let job = job(tiny(), private_plan(privacy(1.0, 0.5, 1)));
    let weight = |training: &InMemoryData, fixed: u64| {
        let folder = tempfile::tempdir().unwrap();
        let trainer = trainer(folder.path(), 1).with_public_patients(fixed.try_into().unwrap());
        match trainer.train(&job, training, &data(0..0), &mut |_| ControlFlow::Continue(())) {
            Ok(Training::Finished(outcome)) => outcome.images,
            other => panic!("{other:?}"),
        }
    };
    // The same patients with one image each and with two to three; then more patients.
    let few = data(0..9).with_patients((0..9).collect());
    let many = data(0..24).with_patients((0..24).map(|image| image % 9).collect());
    let grown = data(0..32).with_patients((0..32).collect());
    assert_eq!([&few, &many, &grown].map(|training| weight(training, 10)), [10; 3]);
    assert_eq!(weight(&many, 40), 40);
}

/// The noise that leaves is as large as before when the data set has grown or shrunk past a ten: its scale tells of nobody.
#[test]
fn the_scale_of_the_noise_follows_the_number_that_was_fixed_and_not_the_data() {
    // Noise alone: 50 times what all patients together can move a step by.
    let job = job(tiny(), private_plan(privacy(1000.0, 0.5, 1)));
    let of = |patients: usize| data(0..patients).with_patients((0..patients as u64).collect());
    let deviation = |training: &InMemoryData, fixed: Option<u64>| {
        let folder = tempfile::tempdir().unwrap();
        let mut trainer = trainer(folder.path(), 1);
        if let Some(fixed) = fixed {
            trainer = trainer.with_public_patients(fixed.try_into().unwrap());
        }
        match trainer.train(&job, training, &data(0..0), &mut |_| ControlFlow::Continue(())) {
            Ok(Training::Finished(outcome)) => norm(&moved(&job, &outcome.parameters)),
            other => panic!("{other:?}"),
        }
    };
    // Two rounds, with 19 patients and with 21.
    let (before, after) = (of(19), of(21));
    assert!((deviation(&before, Some(10)) / deviation(&after, Some(10)) - 1.0).abs() < 0.02);
    assert!((deviation(&before, Some(10)) / deviation(&after, Some(20)) / 2.0 - 1.0).abs() < 0.02);
    // What it was before it was fixed.
    assert!((deviation(&before, None) / deviation(&after, None) / 2.0 - 1.0).abs() < 0.02);
}

#[test]
fn what_is_not_private_is_refused() {
    let private = private_plan(privacy(1.0, 0.5, 1));
    let error = |plan: TrainingPlan, data: &InMemoryData| {
        train_with(&job(tiny(), plan), data, 1).unwrap_err().to_string()
    };
    assert!(error(private.clone(), &data(0..8)).contains("whose image"));
    let weighted = TrainingPlan { class_balance: ClassBalance::WeightedLoss, ..private.clone() };
    assert!(error(weighted, &patients()).contains("class_balance"));
    let stopping = TrainingPlan { early_stopping_epochs: 2, ..private.clone() };
    assert!(error(stopping, &patients()).contains("early_stopping_epochs"));
    let understated = DpSgdPlan { epsilon: Epsilon::new(0.01).unwrap(), ..privacy(1.0, 0.5, 10) };
    assert!(error(private_plan(understated), &patients()).contains("epsilon"));
}
