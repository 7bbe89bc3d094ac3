//! Training as a site runs it: learns, stops, resumes, repeats itself bit by bit.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod common;

use common::{data, job, plan, tiny};
use medinet_model::{Augmentation, ClassBalance, InputShape, NetworkManifest, TrainingPlan};
use medinet_training::{
    Checkpoints, ComputeDevice, InMemoryData, Progress, Trainer, Training, TrainingError, TrainingJob,
    TrainingOutcome, evaluate,
};
use rand_chacha::ChaCha12Rng;
use rand_core::Rng;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Duration;

fn brighten(image: &mut [f32], _: InputShape, plan: &Augmentation, random: &mut ChaCha12Rng) {
    let change = plan.brightness * (random.next_u32() as f32 / u32::MAX as f32 * 2.0 - 1.0);
    image.iter_mut().for_each(|v| *v += change);
}

fn trainer(folder: &Path) -> Trainer<'static> {
    let checkpoints = Checkpoints::new(folder).every(Duration::ZERO);
    Trainer::new(ComputeDevice::cpu(), checkpoints).with_augmentation(&brighten)
}

fn go_on(_: &Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn finished(result: Result<Training, TrainingError>) -> TrainingOutcome {
    match result {
        Ok(Training::Finished(outcome)) => outcome,
        other => panic!("expected a finished training, got {other:?}"),
    }
}

fn train(job: &TrainingJob, training: &InMemoryData, validation: &InMemoryData) -> TrainingOutcome {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::new(folder.path());
    let trainer = Trainer::new(ComputeDevice::cpu(), checkpoints).with_augmentation(&brighten);
    finished(trainer.train(job, training, validation, &mut go_on))
}

#[test]
fn a_small_set_is_learnt() {
    let plan = TrainingPlan {
        local_epochs: 60,
        batch_size: 8,
        learning_rate: 0.1,
        augmentation: Augmentation::none(),
        ..plan()
    };
    let outcome = train(&job(tiny(), plan), &data(0..32), &data(0..32));
    let validation = outcome.validation.unwrap();
    // The base model is right on half of them.
    assert!(validation.accuracy > 0.95, "{:?}", outcome.epochs);
    assert!(validation.log_loss < 0.2, "{validation:?}");
    assert!(outcome.epochs.last().unwrap().training_loss < 0.2 * outcome.epochs[0].training_loss);
    assert_eq!((outcome.images, outcome.chosen_epoch), (32, 59));
}

#[test]
fn the_same_job_gives_the_same_bits_and_another_seed_others() {
    let run = |site_seed| {
        let job = TrainingJob { site_seed, ..job(tiny(), plan()) };
        train(&job, &data(0..32), &data(32..64))
    };
    let first = run(1);
    assert_eq!(first, run(1));
    assert_ne!(first.parameters, run(2).parameters);
}

#[test]
fn a_training_killed_at_any_step_resumes_to_the_same_bits() {
    let plan = TrainingPlan { early_stopping_epochs: 1, ..plan() };
    let job = job(tiny(), plan);
    let undisturbed = train(&job, &data(0..32), &data(32..64));

    let folder = tempfile::tempdir().unwrap();
    let mut kills = 0;
    let outcome = loop {
        // Each life finishes two steps; the second is lost, because the callback runs before its checkpoint.
        let mut steps = 0;
        let life = catch_unwind(AssertUnwindSafe(|| {
            trainer(folder.path()).train(&job, &data(0..32), &data(32..64), &mut |_| {
                steps += 1;
                assert!(steps < 2, "killed");
                ControlFlow::Continue(())
            })
        }));
        match life {
            Ok(result) => break finished(result),
            Err(_) => kills += 1,
        }
        assert!(kills < 100, "the training does not get on");
    };
    assert!(kills >= 8, "{kills}");
    assert_eq!(outcome, undisturbed);
}

#[test]
fn a_paused_training_goes_on_where_it_stopped() {
    let job = job(tiny(), plan());
    let undisturbed = train(&job, &data(0..32), &data(32..64));

    let folder = tempfile::tempdir().unwrap();
    let trainer =
        Trainer::new(ComputeDevice::cpu(), Checkpoints::new(folder.path())).with_augmentation(&brighten);
    let mut pause = |progress: &Progress| match (progress.epoch, progress.step) {
        (1, 2) => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    };
    let paused = trainer.train(&job, &data(0..32), &data(32..64), &mut pause).unwrap();
    assert_eq!(paused, Training::Paused);
    let mut first = None;
    let mut watch = |progress: &Progress| {
        first.get_or_insert((progress.epoch, progress.step));
        ControlFlow::Continue(())
    };
    let outcome = finished(trainer.train(&job, &data(0..32), &data(32..64), &mut watch));
    assert_eq!(outcome, undisturbed);
    assert_eq!(first, Some((1, 3)));
    // A finished training is not run again.
    let mut none = |_: &Progress| -> ControlFlow<()> { panic!("no step is left") };
    assert_eq!(finished(trainer.train(&job, &data(0..32), &data(32..64), &mut none)), undisturbed);
}

#[test]
fn another_jobs_checkpoint_is_not_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let first = job(tiny(), plan());
    finished(trainer(folder.path()).train(&first, &data(0..32), &data(32..64), &mut go_on));
    let second = job(tiny(), TrainingPlan { learning_rate: 0.01, ..plan() });
    let outcome = finished(trainer(folder.path()).train(&second, &data(0..32), &data(32..64), &mut go_on));
    assert_eq!(outcome, train(&second, &data(0..32), &data(32..64)));
}

#[test]
fn early_stopping_keeps_the_best_epoch() {
    // Validation labels are the opposite of the training's: every epoch that learns makes them worse.
    let (inputs, classes) = common::chest_x_rays();
    let contrary = classes[..32].iter().map(|class| 1 - class).collect();
    let validation = InMemoryData::new(common::SHAPE, inputs[..32 * 784].to_vec(), contrary);
    let plan = TrainingPlan { local_epochs: 30, early_stopping_epochs: 2, ..plan() };
    let job = job(tiny(), plan);
    let outcome = train(&job, &data(0..32), &validation);
    assert!(outcome.epochs.len() < 30, "{:?}", outcome.epochs);
    let losses: Vec<f64> = outcome.epochs.iter().map(|e| e.validation_loss.unwrap()).collect();
    let best = (0..losses.len()).min_by(|&a, &b| losses[a].total_cmp(&losses[b])).unwrap();
    assert_eq!(outcome.chosen_epoch as usize, best);
    assert_eq!(losses.len(), best + 1 + 2);
    let figures = evaluate(&job.network, &outcome.parameters, &validation, &ComputeDevice::cpu()).unwrap();
    assert_eq!(Some(figures), outcome.validation);
}

#[test]
fn the_proximal_term_holds_the_model_near_its_base() {
    let distance = |proximal_mu| {
        let job = job(tiny(), TrainingPlan { proximal_mu, ..plan() });
        let outcome = train(&job, &data(0..32), &data(32..64));
        let pairs = outcome.parameters.as_slice().iter().zip(job.base.as_slice());
        pairs.map(|(a, b)| (a - b) * (a - b)).sum::<f32>().sqrt()
    };
    let (free, held) = (distance(0.0), distance(5.0));
    assert!(held < 0.6 * free, "{held} {free}");
}

#[test]
fn weights_balance_classes_of_unequal_size() {
    // 24 normal images and 4 of pneumonia, all noise-free repetitions: without weights the rare class is worth less.
    let (inputs, classes) = common::chest_x_rays();
    let of = |class, count| (0..64).filter(move |&i: &usize| classes_of(i) == class).take(count);
    fn classes_of(i: usize) -> usize {
        common::chest_x_rays().1[i]
    }
    let chosen: Vec<usize> = of(0, 24).chain(of(1, 4)).collect();
    let images = chosen.iter().flat_map(|&i| inputs[i * 784..(i + 1) * 784].to_vec()).collect();
    let data = InMemoryData::new(common::SHAPE, images, chosen.iter().map(|&i| classes[i]).collect());
    let first_loss = |class_balance| {
        let plan = TrainingPlan { local_epochs: 1, batch_size: 28, class_balance, ..plan() };
        train(&job(tiny(), plan), &data, &data).epochs[0].training_loss
    };
    // The first step's loss is that of the base model: a weighted mean with weights 28/48 and 28/8.
    let job = job(tiny(), plan());
    let logits = medinet_training::logits(&job.network, &job.base, &data, &ComputeDevice::cpu()).unwrap();
    let loss = |i: usize| {
        let row = [f64::from(logits[2 * i]), f64::from(logits[2 * i + 1])];
        (row[0].exp() + row[1].exp()).ln() - row[usize::from(i >= 24)]
    };
    let (common, rare): (f64, f64) = ((0..24).map(loss).sum(), (24..28).map(loss).sum());
    let no_augmentation =
        |value: f64, expected: f64| assert!((value - expected).abs() < 0.05, "{value} {expected}");
    no_augmentation(first_loss(ClassBalance::None), (common + rare) / 28.0);
    no_augmentation(first_loss(ClassBalance::WeightedLoss), common / 48.0 + rare / 8.0);
}

#[test]
fn a_training_without_validation_images_takes_the_last_epoch() {
    let plan = TrainingPlan { early_stopping_epochs: 1, ..plan() };
    let outcome = train(&job(tiny(), plan), &data(0..32), &data(0..0));
    assert_eq!((outcome.chosen_epoch, outcome.validation), (2, None));
}

#[test]
fn what_cannot_be_trained_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let attempt = |job: &TrainingJob, training: &InMemoryData| {
        trainer(folder.path()).train(job, training, &data(0..0), &mut go_on).unwrap_err()
    };
    let good = job(tiny(), plan());
    assert!(matches!(attempt(&good, &data(0..0)), TrainingError::NoImages));

    let one = InMemoryData::new(common::SHAPE, vec![0.0; 784], vec![2]);
    assert!(matches!(attempt(&good, &one), TrainingError::UnknownClass { class: 2, classes: 2 }));

    let bad_plan = job(tiny(), TrainingPlan { batch_size: 0, ..plan() });
    assert!(matches!(attempt(&bad_plan, &data(0..8)), TrainingError::Plan(_)));

    let other = NetworkManifest { classes: vec!["a".into(), "b".into(), "c".into()], ..tiny() };
    let mismatched = TrainingJob { network: other, ..good };
    assert!(matches!(attempt(&mismatched, &data(0..8)), TrainingError::Parameters(_)));

    let wild = TrainingPlan { learning_rate: 10.0, momentum: 0.99, local_epochs: 40, ..plan() };
    let wild = job(tiny(), wild);
    let huge = InMemoryData::new(common::SHAPE, vec![f32::MAX; 784 * 4], vec![0, 1, 0, 1]);
    assert!(matches!(attempt(&wild, &huge), TrainingError::Diverged { .. }));
}
