//! How long a decoded mean may be: liars never pass the ceiling, honest sites never reach it.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use medinet_types::{Digest, ModelDigest, RoundNumber};
use medinet_update::{
    ErrorFeedback, ModelDelta, Origin, SecureCodecPlan, SecureExpected, SecureMean, SecureUpdate, decode_sum,
};
use proptest::prelude::*;
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

fn origin(round: u32) -> Origin {
    Origin { base: ModelDigest(Digest::of(b"base")), round: RoundNumber(round) }
}

fn plan(bits: u8, kept_permille: u16, reference_examples: u32) -> SecureCodecPlan {
    SecureCodecPlan {
        bits,
        clip_norm: 1.0,
        error_feedback: false,
        kept_permille,
        reference_examples,
        noise: None,
    }
}

fn norm(values: &[f32]) -> f64 {
    values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt()
}

/// A delta of this norm; those of other seeds point elsewhere.
fn delta(length: usize, wanted: f64, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let values: Vec<f64> = (0..length)
        .map(|i| (f64::from(rng.next_u32()) / f64::from(u32::MAX) - 0.5) * f64::from(1 + i as u32 / 50 % 7))
        .collect();
    let now = values.iter().map(|v| v * v).sum::<f64>().sqrt().max(1e-300);
    values.into_iter().map(|v| (v * wanted / now) as f32).collect()
}

fn encode(values: &[f32], plan: &SecureCodecPlan, round: u32, examples: u64, n: u64) -> SecureUpdate {
    let mut seed = [9; 32];
    seed[..8].copy_from_slice(&n.to_le_bytes());
    let delta = ModelDelta::new(values.to_vec()).unwrap();
    let mut feedback = ErrorFeedback::new(values.len());
    SecureUpdate::encode(delta, plan, origin(round), examples, seed, &mut feedback).unwrap()
}

/// What a hostile appliance sends for `values`: the grid's ends, on the side on which they are, and a count of 1.
fn corner(values: &[f32], plan: &SecureCodecPlan, round: u32, n: u64) -> Vec<u32> {
    let full = encode(values, plan, round, u64::MAX, n);
    let least = encode(values, plan, round, 1, n);
    let kept = plan.kept(values.len());
    let ends =
        full.values().take(kept).map(|code| if 2 * code > plan.largest() { plan.largest() } else { 0 });
    ends.chain(least.values().skip(kept)).collect()
}

fn open(vectors: &[Vec<u32>], plan: &SecureCodecPlan, parameters: usize, round: u32) -> SecureMean {
    let mut sum = vec![0u32; plan.coordinates(parameters)];
    for vector in vectors {
        sum.iter_mut().zip(vector).for_each(|(sum, value)| *sum += value);
    }
    let contributors = vectors.len() as u32;
    let expected = SecureExpected { parameters, plan, origin: origin(round), contributors, ring_bits: 32 };
    decode_sum(sum, &expected).unwrap()
}

/// The length before a mean was shortened, if it was.
fn before(mean: &SecureMean) -> f64 {
    mean.shortened.map_or_else(|| norm(&mean.delta), |shortened| shortened.norm.into())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    /// Whatever liars send and state, and however many they are.
    #[test]
    fn no_corner_passes_the_limit(
        bits in 1u8..=8, kept_permille in 1u16..=1000, parameters in 1usize..4000, honest in 0usize..8, liars in 1usize..4,
        reference in 1u32..6000, examples in 1u64..3000, error_feedback in any::<bool>(), first in any::<u32>(),
    ) {
        let plan = SecureCodecPlan { error_feedback, ..plan(bits, kept_permille, reference) };
        let first = u64::from(first);
        let mut vectors: Vec<Vec<u32>> = (0..honest as u64)
            .map(|n| encode(&delta(parameters, 0.9, first + n), &plan, 3, examples, n).values().collect())
            .collect();
        vectors.extend((0..liars as u64).map(|n| corner(&delta(parameters, 1.0, first ^ 99), &plan, 3, n)));
        let mean = open(&vectors, &plan, parameters, 3);
        let limit = plan.mean_norm_limit(parameters, vectors.len() as u32, mean.examples);
        prop_assert!(norm(&mean.delta) <= limit * 1.000_01, "{} above {limit}", norm(&mean.delta));
        if let Some(shortened) = mean.shortened {
            prop_assert!(f64::from(shortened.norm) > limit);
            prop_assert!((norm(&mean.delta) / limit - 1.0).abs() < 1e-3, "shortened to less than the limit");
        }
    }
}

/// No vector is held to the grid by its mask: all that is known of a sum is that it is one of `sites` codes. The longest of these.
#[test]
fn no_sum_at_all_passes_the_limit() {
    let parameters = 3000;
    for bits in 1..=8 {
        for (kept_permille, error_feedback) in [(1000, false), (300, false), (1000, true), (50, true)] {
            for sites in [2u32, 3, 10, 100] {
                let plan = SecureCodecPlan { error_feedback, ..plan(bits, kept_permille, 500) };
                let top = sites * plan.largest();
                let mut sum: Vec<u32> =
                    (0..plan.kept(parameters)).map(|i| if i % 3 == 0 { 0 } else { top }).collect();
                // A count of one image for each site, and norms of nothing.
                sum.push(sites);
                sum.resize(plan.coordinates(parameters), 0);
                let expected = SecureExpected {
                    parameters,
                    plan: &plan,
                    origin: origin(5),
                    contributors: sites,
                    ring_bits: 32,
                };
                let mean = decode_sum(sum, &expected).unwrap();
                let limit = plan.mean_norm_limit(parameters, sites, sites.into());
                assert!(norm(&mean.delta) <= limit * 1.000_01, "{plan:?}, {sites} sites");
                assert!(error_feedback || mean.shortened.is_some(), "{plan:?}, {sites} sites: {limit}");
            }
        }
    }
}

/// Equation (7), and what the ceiling leaves of it: sites of 262 images, 2 bits of 495 in 1,000 coordinates.
#[test]
fn one_liar_moves_the_mean_by_the_documented_factor_and_then_by_the_limit() {
    let (parameters, round) = (20_000, 1);
    println!("reference  liar alone, C   limit, C");
    for (reference, factor, most) in [(5000, 30.5, 19.8), (500, 3.05, 2.71), (262, 1.60, 1.97)] {
        let plan = plan(2, 495, reference);
        // Two that say nothing, so that what is seen is the liar's.
        let silent: Vec<f32> = vec![0.0; parameters];
        let mut alone = 0.0;
        let repeats = 3;
        for n in 0..repeats {
            let wanted = delta(parameters, 1.0, 100 + n);
            let mut vectors = vec![corner(&wanted, &plan, round, n)];
            vectors.extend((1..3).map(|m| encode(&silent, &plan, round, 262, 10 * n + m).values().collect()));
            let mean = open(&vectors, &plan, parameters, round);
            let limit = plan.mean_norm_limit(parameters, 3, mean.examples);
            assert!(limit < most, "{reference}: {limit}");
            assert!(norm(&mean.delta) <= limit * 1.000_01);
            // The rest of the length is what the two silent sites' rounding adds.
            let weight = mean.examples as f64 / f64::from(reference);
            let rounding = 2.0 * (2.25f64 / 3.0).powi(2) / 0.495 / (weight * weight);
            alone += (before(&mean).powi(2) - rounding).sqrt() / repeats as f64;
            assert_eq!(mean.shortened.is_some(), before(&mean) > limit);
        }
        println!("{reference:9} {alone:14.2} {:10.2}", plan.mean_norm_limit(parameters, 3, 525));
        assert!((alone / factor - 1.0).abs() < 0.02, "{reference}: {alone}, documented {factor}");
    }
    // Of ten equal sites at 8 bits, all coordinates: 4.25 / 9 of the clip norm instead of a tenth of it.
    let plan = plan(8, 1000, 300);
    let wanted = delta(parameters, 1.0, 7);
    let mut vectors = vec![corner(&wanted, &plan, round, 0)];
    vectors.extend((1..10).map(|n| encode(&vec![0.0; parameters], &plan, round, 300, n).values().collect()));
    let length = before(&open(&vectors, &plan, parameters, round));
    assert!((length / (4.25 / 9.0) - 1.0).abs() < 0.01, "{length}");
    // With the others against it, it is the ceiling that holds.
    let mut vectors: Vec<Vec<u32>> =
        (1..10).map(|n| encode(&wanted, &plan, round, 300, n).values().collect()).collect();
    vectors.push(corner(&wanted, &plan, round, 0));
    let mean = open(&vectors, &plan, parameters, round);
    let shortened = mean.shortened.unwrap();
    assert!(shortened.norm > 1.4 && shortened.limit < 1.01, "{shortened:?}");
    assert!((norm(&mean.delta) - f64::from(shortened.limit)).abs() < 1e-3);
}

/// The worst that honest sites do: all at the clip norm and all in one direction, thousands of sums of them. None is touched, and the limit is not
/// idle.
#[test]
fn no_honest_sum_is_shortened() {
    let mut sums = 0u32;
    let mut nearest: f64 = 0.0;
    for (parameters, draws) in [(37, 60u32), (1000, 25), (8000, 2)] {
        for bits in [1, 2, 4, 8] {
            for kept_permille in [1000, 495] {
                for (sites, examples) in [(2, 1000u64), (3, 1000), (10, 1000), (3, 50), (10, 10)] {
                    let plan = plan(bits, kept_permille, 1000);
                    for draw in 0..draws {
                        let values = delta(parameters, 5.0, draw.into());
                        let vectors: Vec<Vec<u32>> = (0..sites)
                            // One of full weight among smaller ones, too.
                            .map(|n| (n, if n == 0 && draw % 3 == 0 { 1000 } else { examples }))
                            .map(|(n, examples)| {
                                let seed = u64::from(draw) * 64 + n;
                                encode(&values, &plan, draw, examples, seed).values().collect()
                            })
                            .collect();
                        let mean = open(&vectors, &plan, parameters, draw);
                        let limit = plan.mean_norm_limit(parameters, sites as u32, mean.examples);
                        assert_eq!(mean.shortened, None, "{plan:?}, {sites} sites, {parameters}: {limit}");
                        nearest = nearest.max(norm(&mean.delta) / limit);
                        sums += 1;
                    }
                }
            }
        }
    }
    println!("{sums} sums, the nearest at {nearest:.4} of the limit");
    assert!(sums >= 3000 && nearest > 0.99, "{sums} sums, the nearest at {nearest}");
}

/// With error feedback residuals come on top, and are largest after the clip norm has shrunk; small sites keep nearly all of them.
#[test]
fn no_honest_sum_with_error_feedback_is_shortened() {
    let (parameters, rounds) = (500, 40u32);
    let (mut sums, mut nearest) = (0u32, 0.0f64);
    for bits in [1, 2, 4, 8] {
        for kept_permille in [1000, 400, 100] {
            for weights in [[1000u64, 1000, 1000], [1000, 50, 50], [20, 20, 20]] {
                let mut plan = SecureCodecPlan { error_feedback: true, ..plan(bits, kept_permille, 1000) };
                let mut feedback: Vec<ErrorFeedback> =
                    weights.iter().map(|_| ErrorFeedback::new(parameters)).collect();
                for round in 1..=rounds {
                    let vectors: Vec<Vec<u32>> = weights
                        .iter()
                        .zip(&mut feedback)
                        .map(|(examples, feedback)| {
                            // One direction for long, which is what piles up.
                            let delta =
                                ModelDelta::new(delta(parameters, 9.0, u64::from(round / 10))).unwrap();
                            let update = SecureUpdate::encode(
                                delta,
                                &plan,
                                origin(round),
                                *examples,
                                [1; 32],
                                feedback,
                            );
                            update.unwrap().values().collect()
                        })
                        .collect();
                    let mean = open(&vectors, &plan, parameters, round);
                    let limit = plan.mean_norm_limit(parameters, 3, mean.examples);
                    assert_eq!(mean.shortened, None, "{plan:?}, {weights:?}, round {round}: {limit}");
                    nearest = nearest.max(norm(&mean.delta) / limit);
                    sums += 1;
                    // As it does while a model converges, and faster.
                    plan.clip_norm *= if round % 8 == 0 { 0.3 } else { 0.97 };
                }
            }
        }
    }
    println!("{sums} sums, the nearest at {nearest:.4} of the limit");
    assert!(sums >= 1400 && nearest > 0.5, "{sums} sums, the nearest at {nearest}");
}

#[test]
fn a_residual_of_a_larger_clip_norm_does_not_come_all_at_once() {
    let parameters = 2000;
    let large = SecureCodecPlan { error_feedback: true, clip_norm: 10.0, ..plan(8, 100, 1000) };
    let small = SecureCodecPlan { clip_norm: 0.1, ..large };
    let mut feedback = ErrorFeedback::new(parameters);
    let mut send = |plan: &SecureCodecPlan, round: u32, values: Vec<f32>| {
        let delta = ModelDelta::new(values).unwrap();
        let update = SecureUpdate::encode(delta, plan, origin(round), 1000, [1; 32], &mut feedback).unwrap();
        let mean = open(&[update.values().collect()], plan, parameters, round);
        (mean, feedback.norm())
    };
    let (_, owed) = send(&large, 1, delta(parameters, 10.0, 1));
    // Half of what nine of ten coordinates have waits: a tenth of it alone is 15 times the new clip norm.
    assert!((owed - 4.74).abs() < 0.2, "{owed}");
    let (mean, owed) = send(&small, 2, vec![0.0; parameters]);
    assert_eq!(mean.shortened, None);
    // The grid's ends, at four deviations of a vector of the clip norm and two of one twice as long, clip a little of it.
    assert!((0.18..0.201).contains(&norm(&mean.delta)), "{}", norm(&mean.delta));
    // What is left is cut to 2 C sqrt(d/K), and comes in its turn.
    assert!((owed - 0.632).abs() < 0.01, "{owed}");
}

#[test]
fn with_noise_the_sum_has_its_own_limit() {
    use medinet_privacy::noise::Variance;
    use medinet_privacy::{Delta, Epsilon};
    let noise = medinet_update::NoisePlan {
        epsilon: Epsilon::new(1.0).unwrap(),
        delta: Delta::new(1e-5).unwrap(),
        variance: Variance::new(100, 1).unwrap(),
        honest_survivors: 2,
    };
    let noisy = SecureCodecPlan { noise: Some(noise), ..plan(4, 1000, 1) };
    assert_eq!(noisy.mean_norm_limit(1000, 3, 3), f64::INFINITY);
}
