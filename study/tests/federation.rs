//! Federations of a few seconds, on the carried images.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use anyhow::Result;
use medinet_model::{Augmentation, Body, ClassBalance, ModelParameters, NetworkManifest, Stem, TrainingPlan};
use medinet_rounds::ServerOptimizer;
use medinet_study::codec::{CodecStudy, curve, markdown};
use medinet_study::{
    Aggregation, Behaviour, Channel, ClipRule, Dataset, Downlink, Federation, GroupMean, Images, LocalTask,
    LocalTraining, LocalUpdate, Mean, Run, Sgd, Site, SplitPlan, View,
};
use medinet_update::{CodecPlan, SecureCodecPlan};
use rand_core::Rng as _;
use std::path::Path;
use std::sync::Arc;

fn repository(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn mnist() -> Dataset {
    Dataset::pneumonia_mnist(&repository("study/data/pneumoniamnist.npz")).unwrap()
}

fn network(images: &Images) -> NetworkManifest {
    let classes = vec!["normal".to_owned(), "pneumonia".to_owned()];
    let body = Body::ResNet {
        stem: Stem::Stride2,
        stage_channels: vec![8, 16],
        stage_blocks: vec![1, 1],
        groups: 8,
    };
    NetworkManifest { input: images.shape(), classes, body }
}

fn plan(learning_rate: f32) -> TrainingPlan {
    TrainingPlan {
        local_epochs: 2,
        batch_size: 16,
        learning_rate,
        momentum: 0.9,
        weight_decay: 0.0,
        proximal_mu: 0.0,
        augmentation: Augmentation::none(),
        class_balance: ClassBalance::WeightedLoss,
        early_stopping_epochs: 0,
        privacy: None,
        seed: 1,
    }
}

fn federation<'a>(set: &'a Dataset, sites: usize, training: &'a dyn LocalTraining) -> Federation<'a> {
    let dealt = SplitPlan::even(sites, 1).deal(&set.training).unwrap();
    Federation {
        network: network(&set.test),
        sites: dealt.into_iter().map(Site::honest).collect(),
        test: &set.test,
        training,
        channel: Channel::float32(),
        clip: ClipRule::Fixed,
        aggregation: &Mean,
        optimizer: ServerOptimizer::FedAvg,
        voting: None,
        downlink: Downlink::Float32,
        rounds: 2,
        seed: 1,
        threads: 2,
    }
}

fn run(federation: &Federation<'_>) -> Run {
    federation.run(&mut |_| {}).unwrap()
}

/// Training that costs nothing: a made-up delta of norm 1 for each site and round.
struct Fake;

impl LocalTraining for Fake {
    fn train(&self, task: &LocalTask<'_>) -> Result<LocalUpdate> {
        let count = task.base.as_slice().len();
        let mut random = medinet_study::random(9, "fake", &[task.site as u64, task.round.into()]);
        // Uniform between -1/2 and 1/2: variance 1/12.
        let mut value = || (f64::from(random.next_u32()) / f64::from(u32::MAX) - 0.5) as f32;
        let scale = (12.0 / count as f32).sqrt();
        Ok(LocalUpdate {
            delta: (0..count).map(|_| value() * scale).collect(),
            examples: task.images.len() as u64,
            loss: 1.0,
        })
    }
}

fn distance(a: &ModelParameters, b: &ModelParameters) -> f64 {
    let pairs = a.as_slice().iter().zip(b.as_slice());
    pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
}

#[test]
fn the_carried_sets_are_whole() {
    let mnist = mnist();
    assert_eq!([mnist.training.len(), mnist.validation.len(), mnist.test.len()], [4708, 524, 624]);
    // As published: 1,214 and 3,494 to train on, 234 and 390 to test on.
    assert_eq!(mnist.training.classes().iter().sum::<usize>(), 3494);
    assert_eq!(mnist.test.classes().iter().sum::<usize>(), 390);
    let kermany = Dataset::kermany(&repository("demo/images"), 28).unwrap();
    assert_eq!([kermany.training.len(), kermany.test.len()], [1500, 500]);
    assert_eq!(kermany.training.classes().iter().sum::<usize>(), 750);
    assert_eq!(kermany.test.classes().iter().sum::<usize>(), 280);
    assert!(kermany.training.patients().iter().all(|patient| !kermany.test.patients().contains(patient)));
}

#[test]
fn a_federation_learns_and_does_not_depend_on_threads() {
    let set = mnist().head(400, 200);
    let training = Sgd::new(plan(0.1));
    let mut federation = federation(&set, 3, &training);
    federation.rounds = 3;
    let first = run(&federation);
    federation.threads = 1;
    assert_eq!(first, run(&federation));
    let figures = first.rounds[2].figures;
    assert!(figures.auroc.estimate > 0.75, "{figures:?}");
    assert!(figures.auroc.low < figures.auroc.estimate && figures.auroc.estimate < figures.auroc.high);
    federation.seed = 2;
    assert_ne!(first.model, run(&federation).model);
}

#[test]
fn every_channel_brings_the_mean_and_counts_its_bytes() {
    let set = mnist().head(64, 32);
    let mut federation = federation(&set, 4, &Fake);
    federation.rounds = 1;
    let exact = run(&federation);
    let parameters = exact.model.as_slice().len();
    let plain = |bits| Channel::Plain(CodecPlan { bits, clip_norm: 2.0, error_feedback: false });
    let secure = |bits| {
        Channel::Secure(SecureCodecPlan {
            bits,
            clip_norm: 1.01,
            error_feedback: false,
            kept_permille: 1000,
            reference_examples: 16,
            noise: None,
        })
    };
    // The largest error of the mean, and bits per coordinate on the way: four sums of 255 fit 10 bits, of 15 fit 6.
    for (channel, error, bits) in
        [(plain(8), 0.02, 8.0), (plain(4), 0.2, 4.0), (secure(8), 0.02, 10.0), (secure(4), 0.15, 6.0)]
    {
        federation.channel = channel;
        let run = run(&federation);
        assert!(distance(&run.model, &exact.model) < error, "{channel:?}");
        let bytes = run.rounds[0].bytes_up as f64;
        let expected = parameters as f64 * bits / 8.0;
        assert!((0.7 * expected..1.1 * expected + 300.0).contains(&bytes), "{channel:?}: {bytes}");
    }
    assert!(exact.rounds[0].bytes_up as f64 > 3.5 * parameters as f64);
    assert!(exact.rounds[0].delta_norms.iter().all(|norm| (norm - 1.0).abs() < 0.05));
}

#[test]
fn a_delta_downlink_carries_on_what_it_loses() {
    let set = mnist().head(64, 32);
    let mut federation = federation(&set, 2, &Fake);
    federation.rounds = 6;
    let exact = run(&federation);
    federation.downlink = Downlink::Delta { bits: 4 };
    let quantized = run(&federation);
    // Eight on a network of usual size; this one is so small that the header counts.
    assert!(quantized.rounds[0].bytes_down * 7 < exact.rounds[0].bytes_down);
    // What is lost does not pile up: after six rounds no more is missing than one delta loses, about a tenth of its norm.
    assert!(distance(&quantized.model, &exact.model) < 0.2, "{}", distance(&quantized.model, &exact.model));
}

/// Sends the opposite, claims twice the images, and learns from its accomplices.
struct Opposite;

impl Behaviour for Opposite {
    fn poison(&self, images: &mut Images) {
        images.classes_mut().iter_mut().for_each(|class| *class = 1 - *class);
    }

    fn tamper(&self, view: &View<'_>, delta: Vec<f32>) -> Vec<f32> {
        assert_eq!((view.accomplices.len(), view.sites), (1, 3));
        delta.into_iter().map(|value| -value).collect()
    }

    fn claim(&self, examples: u64) -> u64 {
        2 * examples
    }
}

/// Each site on its own, and the first alone counts.
struct First;

impl Aggregation for First {
    fn name(&self) -> String {
        "first".to_owned()
    }

    fn groups(&self, sites: usize, _: u32, _: u64) -> Vec<Vec<usize>> {
        (0..sites).map(|site| vec![site]).collect()
    }

    fn combine(&self, groups: &[GroupMean]) -> Result<Vec<f32>> {
        assert_eq!((groups.len(), groups[2].sites[0]), (3, 2));
        Ok(groups[0].delta.clone())
    }
}

#[test]
fn behaviours_and_aggregations_are_asked() {
    let set = mnist().head(60, 32);
    let mut federation = federation(&set, 3, &Fake);
    federation.rounds = 1;
    let honest = run(&federation);
    federation.sites[2].behaviour = Some(Arc::new(Opposite));
    let attacked = run(&federation);
    assert!(distance(&honest.model, &attacked.model) > 0.3);
    federation.aggregation = &First;
    let first = run(&federation);
    federation.sites[2].behaviour = None;
    assert_eq!(first.model, run(&federation).model);
}

#[test]
fn the_quick_codec_study_reports_every_case_and_resumes() {
    let study = CodecStudy { rounds: 1, ..CodecStudy::quick() };
    let repository = repository(".");
    let outcomes = study.run(&repository, 2, &[], &|_| {}).unwrap();
    assert_eq!(outcomes.len(), study.federations());
    let secure = &outcomes[1];
    assert!(4.0 * secure.parameters as f64 / secure.bytes_up >= 16.0, "{secure:?}");
    assert!(4.0 * secure.parameters as f64 / secure.bytes_down >= 8.0, "{secure:?}");
    let table = markdown(&outcomes);
    assert!(study.cases.iter().all(|case| table.contains(&case.name())), "{table}");
    assert!(curve(&outcomes).unwrap().contains("PneumoniaMNIST, 3 sites"));
    // What is done is not run again: nothing is watched.
    let again = study.run(&repository, 2, &outcomes, &|_| panic!("run again")).unwrap();
    assert_eq!(again, outcomes);
}
