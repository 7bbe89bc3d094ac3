//! Confidence intervals.

use crate::normal::Z_95;
use crate::{MetricsError, at_least};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

/// An estimate with its 95% confidence interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The point estimate.
    pub estimate: f64,
    /// Lower end of the 95% interval.
    pub low: f64,
    /// Upper end of the 95% interval.
    pub high: f64,
}

/// Wilson's score interval (Wilson 1927) of a proportion: `successes` of `trials`, such as images classified rightly.
///
/// # Errors
/// When there are no trials, or more successes than trials.
pub fn wilson_interval(successes: u64, trials: u64) -> Result<Interval, MetricsError> {
    if trials == 0 {
        return Err(MetricsError::TooFew { what: "trials", needed: 1, got: 0 });
    }
    if successes > trials {
        let got = successes as f64;
        return Err(MetricsError::Value { what: "successes", index: 0, expected: "at most the trials", got });
    }
    let (n, z2) = (trials as f64, Z_95 * Z_95);
    let p = successes as f64 / n;
    let centre = (p + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = Z_95 / (1.0 + z2 / n) * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt();
    Ok(Interval { estimate: p, low: (centre - half).max(0.0), high: (centre + half).min(1.0) })
}

/// Percentile bootstrap (Efron 1979): resamples `0..items` with replacement `replicates` times and takes the
/// 2.5th and 97.5th percentile of `statistic`. Replicates for which the statistic does not exist (a class is
/// absent, say) are left out. The same seed gives the same interval everywhere.
///
/// # Errors
/// When there are no items, fewer than 40 usable replicates (a 2.5th percentile needs them), or the statistic of
/// the whole set does not exist.
pub fn bootstrap_interval(
    items: usize,
    replicates: usize,
    seed: [u8; 32],
    mut statistic: impl FnMut(&[usize]) -> Option<f64>,
) -> Result<Interval, MetricsError> {
    at_least("items", 1, items)?;
    let mut indices: Vec<usize> = (0..items).collect();
    let estimate = statistic(&indices).ok_or(MetricsError::TooFew {
        what: "items for which the statistic exists",
        needed: 1,
        got: 0,
    })?;
    let mut rng = ChaCha8Rng::from_seed(seed);
    let mut values = Vec::with_capacity(replicates);
    for _ in 0..replicates {
        for index in &mut indices {
            // Multiply-shift; its bias, items / 2^64, is far below the bootstrap's own error.
            *index = ((u128::from(rng.next_u64()) * items as u128) >> 64) as usize;
        }
        values.extend(statistic(&indices).filter(|value| value.is_finite()));
    }
    at_least("usable bootstrap replicates", 40, values.len())?;
    values.sort_by(f64::total_cmp);
    Ok(Interval { estimate, low: percentile(&values, 0.025), high: percentile(&values, 0.975) })
}

/// Linear interpolation between order statistics (Hyndman & Fan 1996, type 7, the default of numpy and R).
fn percentile(sorted: &[f64], fraction: f64) -> f64 {
    let position = fraction * (sorted.len() - 1) as f64;
    let below = position.floor() as usize;
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + (position - below as f64) * (sorted[above] - sorted[below])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wilson_matches_scipy() {
        // scipy.stats.binomtest(8, 10).proportion_ci(method="wilson"); (0, 20); (50, 100)
        for (successes, trials, low, high) in [
            (8, 10, 0.490_162_471_536_641_8, 0.943_317_848_545_624_8),
            (0, 20, 0.0, 0.161_125_158_052_819_35),
            (50, 100, 0.403_831_530_365_995_6, 0.596_168_469_634_004_4),
        ] {
            let got = wilson_interval(successes, trials).unwrap();
            assert!((got.low - low).abs() < 1e-9 && (got.high - high).abs() < 1e-9, "{got:?}");
        }
        assert!(wilson_interval(3, 2).is_err());
        assert!(wilson_interval(0, 0).is_err());
    }

    #[test]
    fn bootstrap_of_a_mean_agrees_with_theory_and_repeats() {
        let values: Vec<f64> = (0..400).map(|i| f64::from(i) / 399.0).collect();
        let mean = |indices: &[usize]| Some(indices.iter().map(|&i| values[i]).sum::<f64>() / 400.0);
        let got = bootstrap_interval(400, 2000, [7; 32], mean).unwrap();
        assert_eq!(got, bootstrap_interval(400, 2000, [7; 32], mean).unwrap());
        assert_ne!(got, bootstrap_interval(400, 2000, [8; 32], mean).unwrap());
        // Standard error of the mean of 400 uniform values: sqrt(1/12/400) = 0.01443.
        assert!((got.estimate - 0.5).abs() < 1e-12);
        assert!((got.low - (0.5 - 1.96 * 0.01443)).abs() < 0.003, "{got:?}");
        assert!((got.high - (0.5 + 1.96 * 0.01443)).abs() < 0.003, "{got:?}");
    }

    #[test]
    fn bootstrap_says_when_it_cannot() {
        assert!(bootstrap_interval(0, 100, [0; 32], |_| Some(1.0)).is_err());
        assert!(bootstrap_interval(5, 10, [0; 32], |_| Some(1.0)).is_err());
        assert!(bootstrap_interval(5, 100, [0; 32], |_| None).is_err());
    }
}
