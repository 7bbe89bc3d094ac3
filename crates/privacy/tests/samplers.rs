//! The samplers against the distributions that they are to have, with fixed seeds.

#![allow(clippy::unwrap_used, reason = "tests")]

use medinet_privacy::noise::{DiscreteLaplace, ExactGaussian, GaussianNoise, TableGaussian, Variance};
use rand_chacha::ChaCha12Rng;
use rand_core::SeedableRng;

fn rng(seed: u8) -> ChaCha12Rng {
    ChaCha12Rng::from_seed([seed; 32])
}

/// Pearson's statistic over the integers from -reach to reach, tails in the outer cells, merged until each cell
/// expects 10; returned in standard deviations of its chi-square distribution.
fn chi_square(samples: &[i64], pmf: impl Fn(i64) -> f64, reach: i64) -> f64 {
    let cells = (2 * reach + 1) as usize;
    let mut counts = vec![0.0; cells];
    for sample in samples {
        counts[(sample.clamp(&-reach, &reach) + reach) as usize] += 1.0;
    }
    let mut expected: Vec<f64> = (-reach..=reach).map(|k| pmf(k) * samples.len() as f64).collect();
    let missing = samples.len() as f64 - expected.iter().sum::<f64>();
    expected[0] += missing / 2.0;
    expected[cells - 1] += missing / 2.0;
    let (mut statistic, mut freedom) = (0.0, -1.0);
    let (mut seen, mut wanted) = (0.0, 0.0);
    let mut left: f64 = expected.iter().sum();
    for (count, expected) in counts.iter().zip(&expected) {
        seen += count;
        wanted += expected;
        left -= expected;
        if wanted >= 10.0 && left >= 10.0 || left < 1e-9 {
            statistic += (seen - wanted) * (seen - wanted) / wanted;
            freedom += 1.0;
            (seen, wanted) = (0.0, 0.0);
        }
    }
    (statistic - freedom) / (2.0 * freedom).sqrt()
}

fn gaussian_pmf(variance: Variance) -> impl Fn(i64) -> f64 {
    let weight = move |k: i64| (-((k * k) as f64) / (2.0 * variance.get())).exp();
    let total: f64 = (-20_000..=20_000).map(weight).sum();
    move |k| weight(k) / total
}

const VARIANCES: [(u64, u32); 7] = [(1, 4), (1, 1), (5, 2), (9, 1), (777, 10), (4096, 1), (250_000, 1)];

#[test]
fn exact_gaussian_has_its_distribution() {
    for (n, d) in VARIANCES {
        let variance = Variance::new(n, d).unwrap();
        let (sampler, mut rng) = (ExactGaussian::new(variance), rng(3));
        let samples: Vec<i64> = (0..100_000).map(|_| sampler.sample(&mut rng)).collect();
        let reach = (6.0 * variance.standard_deviation()).ceil() as i64;
        let z = chi_square(&samples, gaussian_pmf(variance), reach);
        assert!(z < 4.5, "{n}/{d}: {z} standard deviations");
    }
}

#[test]
fn table_gaussian_has_its_distribution() {
    for (n, d) in &VARIANCES[..6] {
        let variance = Variance::new(*n, *d).unwrap();
        let (sampler, mut rng) = (TableGaussian::new(variance).unwrap(), rng(4));
        let samples: Vec<i64> = (0..200_000).map(|_| sampler.sample(&mut rng)).collect();
        let reach = (6.0 * variance.standard_deviation()).ceil() as i64;
        let z = chi_square(&samples, gaussian_pmf(variance), reach);
        assert!(z < 4.5, "{n}/{d}: {z} standard deviations");
    }
}

#[test]
fn discrete_laplace_has_its_distribution() {
    for (t, s) in [(1u64, 1u64), (1, 3), (7, 2), (100, 1)] {
        let (sampler, mut rng) = (DiscreteLaplace::new(t, s).unwrap(), rng(5));
        let samples: Vec<i64> = (0..100_000).map(|_| sampler.sample(&mut rng)).collect();
        let decay = (-(s as f64) / t as f64).exp();
        let pmf = |k: i64| (1.0 - decay) / (1.0 + decay) * decay.powi(k.unsigned_abs() as i32);
        let z = chi_square(&samples, pmf, (10.0 * t as f64 / s as f64).ceil() as i64 + 1);
        assert!(z < 4.5, "{t}/{s}: {z} standard deviations");
    }
}

#[derive(serde::Deserialize)]
struct Foreign {
    gaussian: Vec<ForeignTable>,
    laplace: Vec<ForeignTable>,
}

/// Probabilities of the integers from -n to n.
#[derive(serde::Deserialize)]
struct ForeignTable {
    numerator: u64,
    denominator: u64,
    probabilities: Vec<f64>,
}

impl ForeignTable {
    fn check(&self, samples: &[i64], name: &str) {
        let reach = (self.probabilities.len() / 2) as i64;
        let z = chi_square(samples, |k| self.probabilities[(k + reach) as usize], reach);
        assert!(z < 4.5, "{name} {}/{}: {z} standard deviations", self.numerator, self.denominator);
    }
}

#[test]
fn samplers_have_the_probabilities_that_others_compute() {
    let foreign: Foreign = serde_json::from_str(include_str!("reference/noise.json")).unwrap();
    let mut rng = rng(11);
    for table in &foreign.gaussian {
        let variance = Variance::new(table.numerator, table.denominator as u32).unwrap();
        let (exact, by_table) = (ExactGaussian::new(variance), TableGaussian::new(variance).unwrap());
        table.check(&(0..100_000).map(|_| exact.sample(&mut rng)).collect::<Vec<_>>(), "exact");
        table.check(&(0..100_000).map(|_| by_table.sample(&mut rng)).collect::<Vec<_>>(), "table");
    }
    for table in &foreign.laplace {
        let laplace = DiscreteLaplace::new(table.numerator, table.denominator).unwrap();
        table.check(&(0..100_000).map(|_| laplace.sample(&mut rng)).collect::<Vec<_>>(), "laplace");
    }
}

#[test]
fn the_test_itself_can_fail() {
    // Noise of variance 9 is not taken for noise of variance 9.5.
    let (sampler, mut rng) = (ExactGaussian::new(Variance::new(9, 1).unwrap()), rng(3));
    let samples: Vec<i64> = (0..100_000).map(|_| sampler.sample(&mut rng)).collect();
    assert!(chi_square(&samples, gaussian_pmf(Variance::new(19, 2).unwrap()), 18) > 4.5);
}

#[test]
fn gradient_noise_is_gaussian() {
    for deviation in [0.01, 1.0, 300.0] {
        let mut values = vec![0.0f32; 400_000];
        GaussianNoise::new(deviation).unwrap().fill(&mut values, &mut rng(6));
        let mut scaled: Vec<f64> = values.iter().map(|v| f64::from(*v) / deviation).collect();
        let n = scaled.len() as f64;
        // Kolmogorov and Smirnov: sqrt(n) D passes 1.95 with probability 0.001.
        scaled.sort_by(f64::total_cmp);
        let distance = scaled
            .iter()
            .enumerate()
            .map(|(i, x)| (0.5 * libm::erfc(-x / std::f64::consts::SQRT_2) - (i as f64 + 0.5) / n).abs())
            .fold(0.0, f64::max);
        assert!(distance * n.sqrt() < 1.95, "{deviation}: {}", distance * n.sqrt());
        // Moments to 5 standard errors, and the tails beyond 4 deviations (expected 25.3).
        let moment = |k: i32| scaled.iter().map(|x| x.powi(k)).sum::<f64>() / n;
        assert!(moment(1).abs() < 5.0 / n.sqrt());
        assert!((moment(2) - 1.0).abs() < 5.0 * (2.0 / n).sqrt());
        assert!((moment(4) - 3.0).abs() < 5.0 * (96.0 / n).sqrt());
        let far = scaled.iter().filter(|x| x.abs() > 4.0).count();
        assert!((5..55).contains(&far), "{far}");
        // The two of a pair are uncorrelated.
        let pairs: f64 = values.chunks_exact(2).map(|p| f64::from(p[0]) * f64::from(p[1])).sum();
        assert!(pairs.abs() / (deviation * deviation * n / 2.0) < 5.0 / (n / 2.0).sqrt());
    }
}

#[test]
fn the_same_seed_gives_the_same_noise() {
    let draw = || {
        let mut values = vec![0.0f32; 9];
        GaussianNoise::new(2.0).unwrap().fill(&mut values, &mut rng(9));
        values
    };
    assert_eq!(draw(), draw());
}
