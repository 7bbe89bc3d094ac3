//! Noise inside the sum, encoder to mean: what it costs, what it does to the mean, what no site's vector exceeds.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use medinet_privacy::noise::Variance;
use medinet_privacy::{
    Accounting, Composition, Delta, DistributedPlan, Epsilon, Event, NoiseMultiplier, Protected,
};
use medinet_types::{Digest, ModelDigest, RoundNumber};
use medinet_update::{
    ErrorFeedback, ModelDelta, NoiseError, NoisePlan, Origin, SecureCodecPlan, SecureExpected, SecureMean,
    SecureUpdate, UpdateError, decode_sum,
};
use proptest::prelude::*;
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

const ORIGIN: Origin = Origin { base: ModelDigest(Digest([1; 32])), round: RoundNumber(1) };

/// The reach of the grid at 4 bits, in standard deviations, and its largest code.
const REACH: f64 = 3.0;
const LARGEST: f64 = 15.0;

fn noise(variance: Variance) -> NoisePlan {
    NoisePlan {
        epsilon: Epsilon::new(1e6).unwrap(),
        delta: Delta::new(1e-5).unwrap(),
        variance,
        honest_survivors: 2,
    }
}

fn plan(variance: Variance, kept_permille: u16) -> SecureCodecPlan {
    SecureCodecPlan {
        bits: 4,
        clip_norm: 1.0,
        error_feedback: false,
        kept_permille,
        reference_examples: 1,
        noise: Some(noise(variance)),
    }
}

/// The least noise that a plan may have: so little that rounding shows.
fn least() -> Variance {
    Variance::new(1, 4).unwrap()
}

fn delta(length: usize, norm: f64, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let values: Vec<f64> = (0..length)
        .map(|i| (f64::from(rng.next_u32()) / f64::from(u32::MAX) - 0.5) * f64::from(1 + i as u32 / 100 % 4))
        .collect();
    let now = values.iter().map(|v| v * v).sum::<f64>().sqrt().max(1e-300);
    values.into_iter().map(|v| (v * norm / now) as f32).collect()
}

fn encode(values: &[f32], plan: &SecureCodecPlan, n: u64) -> SecureUpdate {
    let mut seed = [7; 32];
    seed[..8].copy_from_slice(&n.to_le_bytes());
    let delta = ModelDelta::new(values.to_vec()).unwrap();
    let mut feedback = ErrorFeedback::new(values.len());
    let update = SecureUpdate::encode(delta, plan, ORIGIN, 1 + n % 1000, seed, &mut feedback).unwrap();
    assert_eq!(feedback, ErrorFeedback::new(values.len()), "nothing is carried on");
    update
}

/// The sum in the ring, as under masks.
fn sum(updates: &[SecureUpdate], ring_bits: u8) -> Vec<u32> {
    let mut total = vec![0u32; updates[0].coordinates()];
    for update in updates {
        total.iter_mut().zip(update.values()).for_each(|(sum, value)| *sum = sum.wrapping_add(value));
    }
    let mask = u32::MAX >> (32 - u32::from(ring_bits));
    total.iter_mut().for_each(|value| *value &= mask);
    total
}

fn mean(updates: &[SecureUpdate], plan: &SecureCodecPlan, parameters: usize) -> SecureMean {
    let contributors = updates.len() as u32;
    let ring_bits = plan.noisy_ring_bits(parameters, contributors).unwrap();
    let expected = SecureExpected { parameters, plan, origin: ORIGIN, contributors, ring_bits };
    decode_sum(sum(updates, ring_bits), &expected).unwrap()
}

/// s of the module: the clip norm in steps.
fn steps(kept: usize) -> f64 {
    (kept as f64).sqrt() * LARGEST / (2.0 * REACH)
}

#[test]
fn a_round_costs_what_the_privacy_crate_says_of_its_mechanism() {
    let parameters = 5000;
    let plan = plan(Variance::new(90_000, 1).unwrap(), 400);
    let by_hand = DistributedPlan {
        clip_norm: steps(2000),
        granularity: 1.0,
        dimensions: 2000,
        honest_survivors: 2,
        rounding_beta: (-0.5f64).exp(),
        protected: Protected::Patient,
    };
    let variance = plan.noise.unwrap().variance;
    let expected = Event::DistributedGaussian { mechanism: by_hand.mechanism(variance).unwrap(), rounds: 1 };
    let got = plan.noise_event(parameters).unwrap().unwrap();
    let delta = Delta::new(1e-5).unwrap();
    let epsilon = |event: &Event| Composition::new().with(event).epsilon(delta, Accounting::Tight);
    assert!((epsilon(&got) / epsilon(&expected) - 1.0).abs() < 1e-9);
    // Another clip norm changes nothing: noise is in steps, and steps follow it.
    let other = SecureCodecPlan { clip_norm: 7.0, ..plan };
    assert_eq!(other.noise_event(parameters).unwrap(), Some(got));
    assert_eq!(SecureCodecPlan { noise: None, ..plan }.noise_event(parameters).unwrap(), None);
    // What a multiplier asks for is what comes out: z = sqrt(n) sigma / 2 D.
    let wanted = NoiseMultiplier::new(1.5).unwrap();
    let variance = plan.noise_variance(wanted, 8, parameters).unwrap();
    let multiplier = (8.0 * variance.get() / (4.0 * by_hand.rounded_norm_squared())).sqrt();
    assert!((multiplier / 1.5 - 1.0).abs() < 1e-6, "{multiplier}");
}

#[test]
fn plans_that_cost_more_than_they_say_are_refused() {
    let parameters = 5000;
    let mut plan = plan(Variance::new(90_000, 1).unwrap(), 1000);
    plan.check().unwrap();
    plan.check_noise(parameters).unwrap();
    let cost = Composition::new()
        .with(&plan.noise_event(parameters).unwrap().unwrap())
        .epsilon(Delta::new(1e-5).unwrap(), Accounting::Tight);
    let claim = |epsilon: f64| NoisePlan { epsilon: Epsilon::new(epsilon).unwrap(), ..plan.noise.unwrap() };
    let claims = [claim(cost), claim(cost * 0.99)];
    plan.noise = Some(claims[0]);
    plan.check_noise(parameters).unwrap();
    plan.noise = Some(claims[1]);
    assert!(matches!(plan.check_noise(parameters), Err(NoiseError::Understated { .. })));
}

#[test]
fn what_would_be_one_more_release_is_refused() {
    let good = plan(least(), 1000);
    let cases: [(&str, SecureCodecPlan); 3] = [
        ("error_feedback", SecureCodecPlan { error_feedback: true, ..good }),
        ("reference_examples", SecureCodecPlan { reference_examples: 2, ..good }),
        (
            "honest_survivors",
            SecureCodecPlan { noise: Some(NoisePlan { honest_survivors: 0, ..noise(least()) }), ..good },
        ),
    ];
    for (field, plan) in cases {
        let error = plan.check().unwrap_err().to_string();
        assert!(error.contains(field), "{field}: {error}");
    }
    assert!(plan(Variance::new(1, 5).unwrap(), 1000).check().is_err());
    // Neither count nor norm: as many coordinates as are kept.
    assert_eq!((good.coordinates(1000), plan(least(), 250).coordinates(1000)), (1000, 250));
    assert_ne!(good.digest(), SecureCodecPlan { noise: None, ..good }.digest());
    assert_ne!(good.digest(), plan(Variance::new(1, 3).unwrap(), 1000).digest());
}

/// The opened sum less the sum of the deltas has the variance of m sites' noise and rounding, coordinate by coordinate, in steps.
#[test]
fn the_opened_sum_has_the_noise_of_all_its_sites() {
    let parameters = 4096;
    for (sites, variance) in [(2u64, 400u64), (5, 40_000)] {
        let plan = plan(Variance::new(variance, 1).unwrap(), 1000);
        let updates: Vec<_> = (0..sites).map(|n| encode(&vec![0.0; parameters], &plan, n)).collect();
        let ring_bits = plan.noisy_ring_bits(parameters, sites as u32).unwrap();
        let unused = 32 - u32::from(ring_bits);
        let values: Vec<f64> =
            sum(&updates, ring_bits).iter().map(|v| f64::from((v << unused) as i32 >> unused)).collect();
        let mean = values.iter().sum::<f64>() / parameters as f64;
        let square = values.iter().map(|v| v * v).sum::<f64>() / parameters as f64;
        let expected = (sites * variance) as f64;
        // Standard errors: sqrt(expected / d) and expected sqrt(2 / d); five of each.
        assert!(mean.abs() < 5.0 * (expected / parameters as f64).sqrt(), "{sites} sites: mean {mean}");
        let error = expected * (2.0 / parameters as f64).sqrt();
        assert!((square - expected).abs() < 5.0 * error, "{sites} sites: {square} instead of {expected}");
        // Another seed, other noise; the same, the same.
        assert_ne!(encode(&vec![0.0; parameters], &plan, 1), encode(&vec![0.0; parameters], &plan, 2));
        assert_eq!(encode(&vec![0.0; parameters], &plan, 1), updates[1]);
    }
}

/// The mean over many rounds of one input is that input, within five standard errors, also where coordinates are left out.
#[test]
fn the_decoded_mean_is_right_in_the_mean() {
    let (parameters, tries) = (256, 600);
    let plan = plan(Variance::new(9, 1).unwrap(), 1000);
    let deltas = [delta(parameters, 0.9, 1), delta(parameters, 0.5, 2)];
    let mut total = vec![0.0f64; parameters];
    for n in 0..tries {
        let updates: Vec<_> =
            (0..).zip(&deltas).map(|(site, delta)| encode(delta, &plan, 2 * n + site)).collect();
        let mean = mean(&updates, &plan, parameters);
        assert_eq!((mean.examples, mean.norm), (2, None), "every site weighs the same");
        total.iter_mut().zip(&mean.delta).for_each(|(total, value)| *total += f64::from(*value));
    }
    // A step is C over s; the mean of two sites has noise of variance (2 · 9 + 2 · at most 1/4) / 4 steps².
    let error = (18.5f64 / 4.0 / tries as f64).sqrt() / steps(parameters);
    for (index, total) in total.iter().enumerate() {
        let truth = f64::from(deltas[0][index] + deltas[1][index]) / 2.0;
        let got = total / tries as f64;
        assert!((got - truth).abs() < 5.0 * error, "{index}: {got} instead of {truth}, error {error}");
    }
}

#[test]
fn the_ring_holds_the_sum_and_its_noise() {
    let (parameters, sites) = (3000, 10);
    let plan = plan(Variance::new(2500, 1).unwrap(), 1000);
    let bits = plan.noisy_ring_bits(parameters, sites).unwrap();
    // 10 sites of at most 20, and sqrt(2 · 10 · 2500 · (13 + 40) ln 2) = 1355.4: above 1024, below 2048.
    assert_eq!(bits, 12);
    assert_eq!(plan.noisy_ring_bits(parameters, 1), Some(10));
    assert_eq!(SecureCodecPlan { noise: None, ..plan }.noisy_ring_bits(parameters, sites), None);
    let truth = delta(parameters, 0.8, 3);
    let updates: Vec<_> = (0..u64::from(sites)).map(|n| encode(&truth, &plan, n)).collect();
    let mean = mean(&updates, &plan, parameters);
    let off = mean.delta.iter().zip(&truth).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
    // Noise of variance 2500 / 10 and rounding, over all coordinates, in steps of 1/s; a wrap of one would add 4096² / 100.
    let expected = parameters as f64 * 250.0 / steps(parameters).powi(2);
    assert!((off / expected - 1.0).abs() < 0.15, "{off} instead of {expected}");
}

#[test]
fn sums_beyond_what_noise_and_clipped_deltas_reach_are_refused() {
    let parameters = 2000;
    let plan = plan(Variance::new(400, 1).unwrap(), 1000);
    let updates =
        [encode(&delta(parameters, 5.0, 1), &plan, 1), encode(&delta(parameters, 5.0, 2), &plan, 2)];
    let ring_bits = plan.noisy_ring_bits(parameters, 2).unwrap();
    let expected = SecureExpected { parameters, plan: &plan, origin: ORIGIN, contributors: 2, ring_bits };
    let good = sum(&updates, ring_bits);
    decode_sum(good.clone(), &expected).unwrap();
    let far = 1 << (ring_bits - 2);
    let bad: Vec<u32> = good.iter().enumerate().map(|(i, v)| if i % 8 == 0 { far } else { *v }).collect();
    assert!(matches!(decode_sum(bad, &expected), Err(UpdateError::Sum { .. })));
    let short = good[1..].to_vec();
    assert!(matches!(decode_sum(short, &expected), Err(UpdateError::Length { .. })));
}

#[test]
fn it_reads_back_from_the_sites_disk_and_not_as_another_plans() {
    let plan = plan(Variance::new(100, 1).unwrap(), 500);
    let update = encode(&delta(500, 1.0, 1), &plan, 1);
    let bytes = update.to_site_bytes();
    assert_eq!(SecureUpdate::from_site_bytes(&bytes, &plan, 500).unwrap(), update);
    let without = SecureCodecPlan { noise: None, ..plan };
    assert!(SecureUpdate::from_site_bytes(&bytes, &without, 500).is_err());
    assert!(SecureUpdate::from_site_bytes(&bytes, &plan, 502).is_err());
    for cut in 0..bytes.len() {
        assert!(SecureUpdate::from_site_bytes(&bytes[..cut], &plan, 500).is_err());
    }
    let plain = SecureUpdate::encode(
        ModelDelta::new(vec![0.1; 500]).unwrap(),
        &without,
        ORIGIN,
        1,
        [1; 32],
        &mut ErrorFeedback::new(500),
    );
    assert!(SecureUpdate::from_site_bytes(&plain.unwrap().to_site_bytes(), &plan, 500).is_err());
    assert_eq!(format!("{update:?}"), "SecureUpdate(250 coordinates of 4 bits)");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Less its noise, no site's vector is longer than D, whatever was trained: with the least noise of all, whose norm has a bound of its own.
    #[test]
    fn no_vector_is_longer_than_the_sensitivity_that_is_charged(
        length in 20usize..1500,
        norm in 0.0f64..100.0,
        one in any::<bool>(),
        kept_permille in 50u16..=1000,
        bits in 1u8..=8,
        seed in any::<u64>(),
    ) {
        let plan = SecureCodecPlan { bits, ..plan(least(), kept_permille) };
        let mut values = delta(length, norm, seed);
        if one {
            values.fill(0.0);
            values[seed as usize % length] = norm as f32;
        }
        let with = encode(&values, &plan, seed);
        let kept = with.coordinates();
        let square: f64 = with.values().map(|v| f64::from(v as i32).powi(2)).sum();
        // D from its equation, with k(b) and L of the grid; noise of variance 1/4 is below sqrt((K + 2 sqrt(K t) + 2 t) / 4) but once in e^t.
        let reach = [2.0, 2.25, 2.6, 3.0, 3.3, 3.65, 4.0, 4.25][usize::from(bits) - 1];
        let (s, root) = ((kept as f64).sqrt() * f64::from((1u32 << bits) - 1) / (2.0 * reach), (kept as f64).sqrt());
        let longest = ((s + root).powi(2)).min(s * s + root * root / 4.0 + s + root / 2.0).sqrt();
        let t = 30.0;
        let noise = ((kept as f64 + 2.0 * (kept as f64 * t).sqrt() + 2.0 * t) / 4.0).sqrt();
        prop_assert!(square.sqrt() <= longest + noise, "{} above {longest} + {noise}", square.sqrt());
    }
}
