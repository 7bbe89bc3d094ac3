//! The distributed discrete Gaussian mechanism: its bound against divergences computed from the distributions
//! themselves, its rounding, its calibration.

#![allow(clippy::unwrap_used, reason = "tests")]

use medinet_privacy::noise::Variance;
use medinet_privacy::*;
use rand_chacha::ChaCha12Rng;
use rand_core::{Rng, SeedableRng};

fn plan(dimensions: u64, honest_survivors: u32) -> DistributedPlan {
    DistributedPlan {
        clip_norm: 1.0,
        granularity: 0.02,
        dimensions,
        honest_survivors,
        rounding_beta: (-0.5f64).exp(),
        protected: Protected::Patient,
    }
}

/// The discrete Gaussian's probabilities on -reach..=reach.
fn pmf(variance: f64, reach: i64) -> Vec<f64> {
    let weights: Vec<f64> = (-reach..=reach).map(|k| (-((k * k) as f64) / (2.0 * variance)).exp()).collect();
    let total: f64 = weights.iter().sum();
    weights.iter().map(|w| w / total).collect()
}

fn convolve(a: &[f64], b: &[f64]) -> Vec<f64> {
    let mut sum = vec![0.0; a.len() + b.len() - 1];
    for (i, x) in a.iter().enumerate() {
        for (j, y) in b.iter().enumerate() {
            sum[i + j] += x * y;
        }
    }
    sum
}

#[test]
fn the_bound_holds_for_the_exact_sum() {
    // One coordinate, n sites, integers: the divergence between the sum of noises and the same moved by the
    // sensitivity, straight from its definition, against the bound of the mechanism with that sensitivity.
    for (n, variance) in [(1u32, (1u64, 2u32)), (2, (1, 2)), (4, (1, 2)), (3, (1, 1)), (8, (4, 1))] {
        let exact = Variance::new(variance.0, variance.1).unwrap();
        let one = pmf(exact.get(), 60);
        let noise = (1..n).fold(one.clone(), |sum, _| convolve(&sum, &one));
        // Site-level, one coordinate: D² = min((s + 1)², ...) with s = 0.5, so that D < 2 and integers move by 1.
        let plan = DistributedPlan {
            clip_norm: 0.5,
            granularity: 1.0,
            dimensions: 1,
            honest_survivors: n,
            rounding_beta: 0.999,
            protected: Protected::Site,
        };
        let moved = plan.rounded_norm_squared().sqrt().floor() as usize;
        assert_eq!(moved, 0, "the bound rounds away: {}", plan.rounded_norm_squared());
        let plan = DistributedPlan { clip_norm: 2.0, ..plan };
        let moved = plan.rounded_norm_squared().sqrt().floor() as usize;
        assert_eq!(moved, 2);
        let mechanism = plan.mechanism(exact).unwrap();
        for alpha in [1.5, 2.0, 4.0, 8.0] {
            let sum: f64 = (moved..noise.len())
                .filter(|i| noise[*i] > 1e-280 && noise[*i - moved] > 1e-280)
                .map(|i| (alpha * noise[i].ln() + (1.0 - alpha) * noise[i - moved].ln()).exp())
                .sum();
            let divergence = sum.ln() / (alpha - 1.0);
            let bound = mechanism.divergence(alpha);
            assert!(divergence <= bound * (1.0 + 1e-9), "n {n} order {alpha}: {divergence} above {bound}");
            assert!(divergence > 0.2 * bound || n > 1, "n {n} order {alpha}: {divergence} far below {bound}");
        }
    }
}

#[test]
fn bounds_of_the_paper_by_hand() {
    let mut plan = plan(1_000_000, 10);
    // s = 50, sqrt d = 1000: s² + d/4 + 1 (s + 500) = 2500 + 250000 + 550.
    assert!((plan.rounded_norm_squared() - 253_050.0).abs() < 1e-6);
    plan.rounding_beta = 1e-300;
    assert!(plan.rounded_norm_squared() <= 1050.0f64.powi(2));
    // tau for two sites with sigma = 1/2: 10 e^(-2 pi² / 4 / 2), which makes the bound of order 2 in one dimension
    // min(a² + tau, ...) for a = D / (sqrt 2 / 2).
    let two = DistributedPlan { dimensions: 1, honest_survivors: 2, protected: Protected::Site, ..plan };
    let mechanism = two.mechanism(Variance::new(1, 4).unwrap()).unwrap();
    let tau = 10.0 * (-std::f64::consts::PI.powi(2) / 4.0).exp();
    let square = two.rounded_norm_squared() / 0.5;
    let (root, l1) = (square.sqrt(), two.rounded_norm_squared().sqrt() / 0.5f64.sqrt());
    let expected = (square + tau).min(square + 2.0 * l1 * tau + tau * tau).min((root + tau).powi(2));
    assert!((mechanism.divergence(2.0) / expected - 1.0).abs() < 1e-12);
}

#[test]
fn enough_noise_survives_the_dropouts() {
    // Calibrated for 20 of up to 30 sites: 20 sites give the promised noise multiplier, 30 more.
    let wanted = NoiseMultiplier::new(2.0).unwrap();
    let plan = plan(10_000, 20);
    let variance = plan.site_variance(wanted).unwrap();
    let sensitivity = 2.0 * plan.rounded_norm_squared().sqrt();
    assert!((20.0 * variance.get()).sqrt() >= 2.0 * sensitivity);
    assert!((20.0 * variance.get()).sqrt() < 2.0 * sensitivity * 1.001);
    // For sigma far above 1/2, the mechanism is the Gaussian one.
    let rounds = 30;
    let mut discrete = Composition::new();
    discrete.add(&Event::DistributedGaussian { mechanism: plan.mechanism(variance).unwrap(), rounds });
    let mut continuous = Composition::new();
    continuous.add(&Event::Gaussian {
        sampling_rate: SamplingRate::new(1.0).unwrap(),
        noise_multiplier: wanted,
        steps: rounds,
    });
    let delta = Delta::new(1e-6).unwrap();
    let of = |c: &Composition| c.epsilon(delta, Accounting::Renyi);
    assert!((of(&discrete) / of(&continuous) - 1.0).abs() < 1e-2, "{} {}", of(&discrete), of(&continuous));
    // Patients cost twice the sensitivity of the site's absence.
    let site = DistributedPlan { protected: Protected::Site, ..plan };
    let ratio = plan.site_variance(wanted).unwrap().get() / site.site_variance(wanted).unwrap().get();
    assert!((ratio - 4.0).abs() < 1e-3);
    // Mixed with private training, the two compose.
    let both = discrete.with(&continuous.events()[0]);
    let tight = both.epsilon(delta, Accounting::Tight);
    assert!(tight > of(&discrete) && tight <= both.epsilon(delta, Accounting::Renyi));
    let back = both.delta(Epsilon::new(tight).unwrap(), Accounting::Tight);
    assert!(back <= 1.5e-6, "{back}");
}

/// Rounding again until the norm fits biases the mean. With q the share of roundings that do not fit, its L2 norm is at most gamma/2 sqrt(q) / (1 -
/// q): for each direction u, |E[u·(R - x); fits]| = |E[u·(R - x); does not]| <= sqrt(Var(u·R) q) (Cauchy-Schwarz), and a coordinate's variance is
/// at most gamma²/4.
#[test]
fn rounding_is_bounded_and_right_in_the_mean_but_for_the_conditional_bias() {
    let draws = 20_000;
    let mut rng = ChaCha12Rng::from_seed([4; 32]);
    let vector: Vec<f32> = (0..64).map(|i| ((i * 37 % 64) as f32 / 64.0 - 0.5) * 0.432).collect();
    let norm = vector.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    assert!(norm < 1.0 && norm > 0.99, "{norm}");
    // The usual beta, at which next to nothing is rejected, and one that leaves the bound no room.
    for (rounding_beta, rejects) in [((-0.5f64).exp(), 0.0..0.01), (0.999, 0.03..0.3)] {
        let plan = DistributedPlan { granularity: 0.3, rounding_beta, ..plan(64, 5) };
        let (mut sums, mut squares, mut rejected) = (vec![0.0; 64], 0.0, 0u32);
        for _ in 0..draws {
            let rounded = plan.round(&vector, &mut rng);
            let square: i64 = rounded.iter().map(|v| v * v).sum();
            assert!(square as f64 <= plan.rounded_norm_squared());
            squares += square as f64 * 0.09;
            for (sum, value) in sums.iter_mut().zip(rounded) {
                *sum += value as f64 * 0.3;
            }
            // The same without the condition.
            let free: f64 = vector
                .iter()
                .map(|value| {
                    let position = f64::from(*value) / 0.3;
                    let up = f64::from(rng.next_u32()) / f64::from(u32::MAX) < position - position.floor();
                    (position.floor() + f64::from(u8::from(up))).powi(2)
                })
                .sum();
            rejected += u32::from(free > plan.rounded_norm_squared().floor());
        }
        let share = f64::from(rejected) / f64::from(draws);
        assert!(rejects.contains(&share), "{share}");
        let means: Vec<f64> = sums.iter().map(|sum| sum / f64::from(draws)).collect();
        let off: f64 = means.iter().zip(&vector).map(|(m, v)| (m - f64::from(*v)).powi(2)).sum();
        // Less what a mean of so many scatters by.
        let scatter =
            (squares / f64::from(draws) - means.iter().map(|m| m * m).sum::<f64>()) / f64::from(draws);
        let bound = 0.15 * share.sqrt() / (1.0 - share);
        let bias = (off - scatter).max(0.0).sqrt();
        println!("beta {rounding_beta:.3}: {share} rejected, bias {bias:.4} of at most {bound:.4}");
        // Five standard deviations of the difference of squares: 5 sqrt(2/64) of the scatter, and what the bias itself adds.
        let noise = 5.0 * (scatter * (2.0f64 / 64.0).sqrt() + 2.0 * bound * (scatter / 64.0).sqrt());
        assert!(off - scatter <= bound * bound + noise, "{off} {scatter} {bound}");
        // Where much is rejected there is a bias to be seen, or the bound would not be tested.
        assert!(share < 0.01 || off - scatter > noise, "{off} {scatter} {noise}");
    }
    // A vector that is too long, or holds no numbers, is brought within the bound.
    let plan = DistributedPlan { granularity: 0.3, ..plan(64, 5) };
    let long = plan.round(&[100.0f32; 64], &mut rng);
    assert!(long.iter().map(|v| v * v).sum::<i64>() as f64 <= plan.rounded_norm_squared());
    assert_eq!(plan.round(&[f32::NAN; 64], &mut rng), vec![0; 64]);
}

#[test]
fn noise_is_added_and_sums_fit_the_ring() {
    let plan = plan(4096, 4);
    let variance = plan.site_variance(NoiseMultiplier::new(1.0).unwrap()).unwrap();
    let noise = SiteNoise::new(variance);
    assert!(noise.statistical_distance() < 1e-34);
    let bits = plan.ring_bits(4, variance, 6.0);
    let mut rng = ChaCha12Rng::from_seed([5; 32]);
    let vector = vec![1.0f32 / 64.0; 4096];
    let mut total = vec![0i64; 4096];
    for _ in 0..4 {
        let mut values = plan.round(&vector, &mut rng);
        noise.add_to(&mut values, &mut rng);
        total.iter_mut().zip(values).for_each(|(t, v)| *t += v);
    }
    assert!(total.iter().all(|t| t.unsigned_abs() < 1 << (bits - 1)));
    let mean = total.iter().sum::<i64>() as f64 / 4096.0;
    let expected = 4.0 / 64.0 / 0.02;
    let spread = (4.0 * (variance.get() + 0.25)).sqrt();
    assert!((mean - expected).abs() < 5.0 * spread / 64.0, "{mean} {expected}");
    let square = total.iter().map(|t| (*t as f64 - mean).powi(2)).sum::<f64>() / 4096.0;
    assert!((square / (spread * spread) - 1.0).abs() < 5.0 * (2.0f64 / 4096.0).sqrt() + 0.02);
}

#[test]
fn plans_out_of_range_are_refused() {
    let good = plan(100, 3);
    let bad = [
        DistributedPlan { clip_norm: 0.0, ..good },
        DistributedPlan { granularity: f64::NAN, ..good },
        DistributedPlan { dimensions: 0, ..good },
        DistributedPlan { honest_survivors: 0, ..good },
        DistributedPlan { rounding_beta: 1.0, ..good },
        DistributedPlan { granularity: 1e-12, ..good },
    ];
    for plan in bad {
        assert!(plan.check().is_err() && plan.site_variance(NoiseMultiplier::new(1.0).unwrap()).is_err());
    }
    // A granularity so coarse that noise would fall below half of it.
    let coarse = DistributedPlan { granularity: 1.0, dimensions: 1, honest_survivors: 1000, ..good };
    assert!(coarse.site_variance(NoiseMultiplier::new(1.0).unwrap()).is_err());
    assert!(good.mechanism(Variance::new(1, 5).unwrap()).is_err());
    let mechanism = good.mechanism(Variance::new(9, 1).unwrap()).unwrap();
    let json = serde_json::to_string(&mechanism).unwrap();
    assert_eq!(serde_json::from_str::<DistributedGaussian>(&json).unwrap(), mechanism);
    assert!(
        serde_json::from_str::<DistributedGaussian>(&json.replace("\"dimensions\":100", "\"dimensions\":0"))
            .is_err()
    );
}
