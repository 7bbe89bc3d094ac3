//! The way down over several rounds, on networks of some hundred parameters and on the demo's.

use super::*;
use crate::tests::{Host, plan};
use crate::{Coordinator, ResumeError, TaskPlan};
use medinet_model::{Body, InputShape, NetworkManifest, Stem, decode_parameters, model_digest};
use medinet_types::{Digest, ModelDigest, ModelVersion, RoundNumber};
use medinet_update::{CodecPlan, follow};
use medinet_wire::message::Aggregation;
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use std::collections::BTreeMap;

/// Twelve rounds of two sites on a network of some hundred parameters. Updates are float32, so that only the way down loses something.
fn longer(downlink_bits: u8) -> TaskPlan {
    let mut plan = plan(2);
    plan.spec.network.body =
        Body::ResNet { stem: Stem::Stride1, stage_channels: vec![8], stage_blocks: vec![1], groups: 2 };
    let codec = CodecPlan { bits: 32, clip_norm: 10.0, error_feedback: false };
    TaskPlan { rounds: 12, downlink_bits, aggregation: Aggregation::Plain(codec), ..plan }
}

/// A site's delta: of the round and the site alone, near a Gaussian, as trained ones are after rotation.
fn delta(round: RoundNumber, site: usize, parameters: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(u64::from(round.0) * 100 + site as u64);
    let mut draw = move || rng.next_u32() as f32 / u32::MAX as f32 - 0.5;
    (0..parameters).map(|_| (draw() + draw() + draw()) * 1e-2).collect()
}

/// Both sites train and deliver.
fn train(host: &mut Host) {
    let (round, parameters) = (host.round().round, host.coordinator.parameters().len());
    for n in 0..2 {
        host.deliver_delta(n, 10, delta(round, n, parameters));
    }
}

fn base_of(host: &Host) -> (ModelDigest, Vec<f32>) {
    let base = &host.round().base;
    let parameters = &host.blobs[&base.parameters.digest];
    (base.digest, decode_parameters(parameters, host.coordinator.parameters().len()).unwrap())
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
}

#[test]
fn whoever_has_an_announced_base_follows_to_the_model_that_is_recorded() {
    let mut host = Host::start(longer(4));
    let mut models = BTreeMap::from([base_of(&host)]);
    assert!(host.round().steps.is_empty(), "the first model goes down whole");
    for trained in 1..=10 {
        let before = host.round().base.digest;
        train(&mut host);
        let (digest, whole) = base_of(&host);
        let steps = host.round().steps.clone();
        assert_eq!(steps.last().map(|step| step.from), Some(before));
        for (n, step) in steps.iter().enumerate() {
            let deltas = steps[n..].iter().map(|step| host.blobs[&step.delta.digest].as_slice());
            let followed = follow(&models[&step.from], deltas).unwrap();
            assert_eq!(followed, whole, "from {} steps back", steps.len() - n);
            assert_eq!(model_digest(&host.round().spec.network, &followed), digest);
        }
        assert!(steps.len() == trained || steps.len() >= 5, "{} steps to model {trained}", steps.len());
        models.insert(digest, whole);
    }
}

#[test]
fn what_is_listed_is_kept_and_served_and_all_else_is_gone() {
    let mut host = Host::start(longer(4));
    let mut dropped = 0;
    for _ in 0..11 {
        let before = host.round().steps.len();
        train(&mut host);
        let round = host.round();
        dropped += before + 1 - round.steps.len();
        let listed: u64 = round.steps.iter().map(|step| step.delta.length_bytes).sum();
        assert!(listed < round.base.parameters.length_bytes && round.steps.len() <= MAX_MODEL_STEPS);
        let deltas: BTreeSet<BlobDigest> = round.steps.iter().map(|step| step.delta.digest).collect();
        let base = round.base.parameters.digest;
        assert_eq!(host.served, deltas.iter().copied().chain([base]).collect());
        // What the host has beside all models, which the registry keeps.
        let models: BTreeSet<_> = host.models().into_iter().collect();
        let owed = host.saved.as_ref().unwrap().owed().unwrap();
        let rest = host.blobs.keys().filter(|blob| !models.contains(blob)).copied().collect::<BTreeSet<_>>();
        assert_eq!(rest, deltas.into_iter().chain([owed]).collect());
        assert!(host.coordinator.blobs().is_superset(&rest));
    }
    assert!(dropped > 0, "twelve deltas are longer than the model");
}

#[test]
fn a_restart_before_every_input_changes_no_bit() {
    let models = |restarts: bool| {
        let mut host = Host::start(longer(2));
        let mut models = vec![host.round().base.digest];
        for _ in 0..6 {
            if restarts {
                host.restart(longer(2));
            }
            train(&mut host);
            models.push(host.round().base.digest);
        }
        models
    };
    assert_eq!(models(true), models(false));
}

#[test]
fn nothing_goes_on_without_what_is_owed() {
    let mut host = Host::start(longer(4));
    train(&mut host);
    let snapshot = host.saved.clone().unwrap();
    let blob = snapshot.owed().unwrap();
    let parameters = host.blobs[&snapshot.model().parameters.digest].clone();
    for bytes in [None, Some(parameters), Some(Vec::new())] {
        let read = |wanted| if wanted == blob { bytes.clone() } else { host.blobs.get(&wanted).cloned() };
        let resumed = Coordinator::resume(longer(4), snapshot.clone(), read);
        assert_eq!(resumed.unwrap_err(), ResumeError::Owed { blob });
    }
}

/// The model of exact sums, and how far it is from where it began.
fn exact(rounds: u32) -> (Vec<f32>, f64) {
    let mut host = Host::start(longer(32));
    let start = host.coordinator.parameters().to_vec();
    for _ in 0..rounds {
        train(&mut host);
        assert!(host.round().steps.is_empty() && host.saved.as_ref().unwrap().owed().is_none());
    }
    let model = host.coordinator.parameters().to_vec();
    let moved = distance(&model, &start);
    (model, moved)
}

#[test]
fn losses_do_not_add_up_and_whole_models_repay_them() {
    let (nine, moved) = exact(9);
    let mut host = Host::start(longer(2));
    for _ in 0..9 {
        train(&mut host);
    }
    let missing = distance(host.coordinator.parameters(), &nine) / moved;
    assert!((1e-3..0.2).contains(&missing), "{missing}");
    // From here on models go down whole, with all that is owed.
    host.restart(longer(32));
    assert!(!host.round().steps.is_empty(), "an open round keeps its plan");
    train(&mut host);
    assert!(host.round().steps.is_empty() && host.saved.as_ref().unwrap().owed().is_none());
    let missing = distance(host.coordinator.parameters(), &exact(10).0) / moved;
    assert!(missing < 1e-5, "{missing}");
    // And as deltas again.
    host.restart(longer(4));
    train(&mut host);
    assert_eq!(host.round().steps.len(), 1);
}

#[test]
fn a_round_that_moves_nothing_leaves_all_ways_as_they_were() {
    let mut host = Host::start(longer(4));
    let parameters = host.coordinator.parameters().len();
    let before = host.round().base.digest;
    for n in 0..2 {
        host.deliver_delta(n, 10, vec![0.0; parameters]);
    }
    assert_eq!(host.round().round, RoundNumber(2));
    assert_eq!((host.round().base.digest, host.round().steps.len()), (before, 0));
}

#[test]
fn a_delta_to_the_demos_network_is_eight_times_smaller_than_float32() {
    let mut plan = longer(4);
    plan.spec.network =
        NetworkManifest::small(InputShape { channels: 1, height: 64, width: 64 }, plan.spec.network.classes);
    let mut host = Host::start(plan);
    let float32 = 4 * host.coordinator.parameters().len() as u64;
    for _ in 0..3 {
        train(&mut host);
        let round = host.round();
        let (delta, whole) = (&round.steps.last().unwrap().delta, &round.base.parameters);
        let ratio = float32 as f64 / delta.length_bytes as f64;
        println!(
            "round {}: {} bytes down, whole {}, float32 {float32}: {ratio:.2} times smaller",
            round.round, delta.length_bytes, whole.length_bytes
        );
        assert!(ratio >= 8.0, "{ratio}");
    }
}

#[test]
fn going_back_keeps_the_ways_that_lead_there_and_nothing_of_what_came_after() {
    let model = |n: u8| ModelRef {
        digest: ModelDigest(Digest::of(&[n])),
        version: ModelVersion(n.into()),
        parameters: BlobManifest::of(&[n; 1000]),
    };
    let delta = |n: u8| BlobManifest::of(&[n; 10]);
    let step = |n: u8| ModelStep { from: model(n).digest, delta: delta(n) };
    let owed = BlobDigest(Digest::of(b"owed"));
    let gone_after = |to: u8| {
        let mut downlink = Downlink { owed: Some(owed), steps: vec![step(1), step(2), step(3)] };
        let mut out = Outbox::default();
        downlink.go_back(&mut out, &model(to));
        assert_eq!(downlink.owed, None);
        let gone = out.after.iter().find_map(|effect| match effect {
            Effect::Discard { blobs } => Some(blobs.iter().copied().collect::<BTreeSet<_>>()),
            _ => None,
        });
        (downlink.steps, gone.expect("what is owed is discarded at least"))
    };
    let blobs =
        |deltas: &[u8]| deltas.iter().map(|n| delta(*n).digest).chain([owed]).collect::<BTreeSet<_>>();
    assert_eq!(gone_after(3), (vec![step(1), step(2)], blobs(&[3])));
    assert_eq!(gone_after(2), (vec![step(1)], blobs(&[2, 3])));
    // To the oldest that has a way on, or an older one: nothing leads there.
    assert_eq!(gone_after(1), (vec![], blobs(&[1, 2, 3])));
    assert_eq!(gone_after(0), (vec![], blobs(&[1, 2, 3])));
}
