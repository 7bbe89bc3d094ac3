//! The ROC curve and its area.

use crate::interval::Interval;
use crate::normal::{Z_95, two_sided_p};
use crate::{MetricsError, all_finite, at_least, same_length};
use serde::{Deserialize, Serialize};

/// A point of the ROC curve: what calling every score at or above `threshold` positive gives.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RocPoint {
    /// The threshold; infinite for the first point, where nothing is positive.
    pub threshold: f64,
    /// False positive rate, 1 - specificity.
    pub false_positive_rate: f64,
    /// True positive rate, the sensitivity.
    pub true_positive_rate: f64,
}

/// The comparison of two models' AUROC on the same images (DeLong, DeLong & Clarke-Pearson 1988).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct DelongTest {
    /// AUROC of the first model.
    pub auroc_a: f64,
    /// AUROC of the second model.
    pub auroc_b: f64,
    /// `auroc_a - auroc_b` with its 95% interval.
    pub difference: Interval,
    /// Difference in standard errors; 0 when both models rank alike.
    pub z: f64,
    /// Two-sided p-value of the hypothesis that both AUROCs are equal.
    pub p_value: f64,
}

/// Area under the ROC curve: the probability that a positive scores above a negative, ties counting one half
/// (the Mann-Whitney statistic), exact, O(n log n).
///
/// # Errors
/// When lengths differ, a score is not finite, or one class is absent.
pub fn auroc(scores: &[f64], positive: &[bool]) -> Result<f64, MetricsError> {
    Ok(Placements::of(scores, positive, 1)?.auroc)
}

/// AUROC with DeLong's 95% interval (1988), cut to 0..1.
///
/// With few images, or an AUROC near 1, the normal approximation is rough; at 1 the interval has no width.
///
/// # Errors
/// When lengths differ, a score is not finite, or there are fewer than two images of a class.
pub fn auroc_interval(scores: &[f64], positive: &[bool]) -> Result<Interval, MetricsError> {
    let placements = Placements::of(scores, positive, 2)?;
    let half = Z_95 * placements.covariance(&placements).sqrt();
    let estimate = placements.auroc;
    Ok(Interval { estimate, low: (estimate - half).max(0.0), high: (estimate + half).min(1.0) })
}

/// DeLong's paired test of two models that scored the same images.
///
/// # Errors
/// When lengths differ, a score is not finite, or there are fewer than two images of a class.
pub fn delong_test(
    scores_a: &[f64],
    scores_b: &[f64],
    positive: &[bool],
) -> Result<DelongTest, MetricsError> {
    let a = Placements::of(scores_a, positive, 2)?;
    let b = Placements::of(scores_b, positive, 2)?;
    let variance = a.covariance(&a) + b.covariance(&b) - 2.0 * a.covariance(&b);
    let difference = a.auroc - b.auroc;
    // Rounding can leave a variance a hair below zero when both rank alike.
    let standard_error = variance.max(0.0).sqrt();
    let z = if difference == 0.0 { 0.0 } else { difference / standard_error };
    let half = Z_95 * standard_error;
    Ok(DelongTest {
        auroc_a: a.auroc,
        auroc_b: b.auroc,
        difference: Interval { estimate: difference, low: difference - half, high: difference + half },
        z,
        p_value: two_sided_p(z),
    })
}

/// The ROC curve: one point per distinct score, from (0, 0) to (1, 1).
///
/// # Errors
/// When lengths differ, a score is not finite, or one class is absent.
pub fn roc_curve(scores: &[f64], positive: &[bool]) -> Result<Vec<RocPoint>, MetricsError> {
    let (positives, negatives) = class_sizes(scores, positive, 1)?;
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    let mut points =
        vec![RocPoint { threshold: f64::INFINITY, false_positive_rate: 0.0, true_positive_rate: 0.0 }];
    let (mut true_positives, mut false_positives) = (0u64, 0u64);
    for (position, &index) in order.iter().enumerate() {
        if positive[index] {
            true_positives += 1;
        } else {
            false_positives += 1;
        }
        // Only after the last of a group of equal scores: a threshold cannot fall between ties.
        if order.get(position + 1).is_none_or(|&next| scores[next] != scores[index]) {
            points.push(RocPoint {
                threshold: scores[index],
                false_positive_rate: false_positives as f64 / negatives as f64,
                true_positive_rate: true_positives as f64 / positives as f64,
            });
        }
    }
    Ok(points)
}

fn class_sizes(scores: &[f64], positive: &[bool], needed: usize) -> Result<(usize, usize), MetricsError> {
    same_length("labels", scores.len(), positive.len())?;
    all_finite("scores", scores)?;
    let positives = positive.iter().filter(|&&p| p).count();
    let negatives = positive.len() - positives;
    at_least("positive images", needed, positives)?;
    at_least("negative images", needed, negatives)?;
    Ok((positives, negatives))
}

/// The structural components V10 and V01 of DeLong (1988), by midranks (Sun & Xu 2014, algorithm 2).
struct Placements {
    auroc: f64,
    of_positives: Vec<f64>,
    of_negatives: Vec<f64>,
}

impl Placements {
    fn of(scores: &[f64], positive: &[bool], needed: usize) -> Result<Self, MetricsError> {
        let (m, n) = class_sizes(scores, positive, needed)?;
        let select = |class: bool| -> Vec<f64> {
            scores.iter().zip(positive).filter(|(_, p)| **p == class).map(|(s, _)| *s).collect()
        };
        let all = midranks(scores);
        let all_of =
            |class: bool| all.iter().zip(positive).filter(move |(_, p)| **p == class).map(|(r, _)| *r);
        // In half ranks everything is a whole number, so the sum below is exact.
        let of_positives: Vec<f64> = all_of(true)
            .zip(midranks(&select(true)))
            .map(|(among_all, among_own)| (among_all - among_own) as f64 / 2.0 / n as f64)
            .collect();
        let of_negatives: Vec<f64> = all_of(false)
            .zip(midranks(&select(false)))
            .map(|(among_all, among_own)| 1.0 - (among_all - among_own) as f64 / 2.0 / m as f64)
            .collect();
        let rank_sum: u128 = all_of(true).map(u128::from).sum();
        // Twice the Mann-Whitney U: twice the rank sum less m (m + 1).
        let twice_u = rank_sum - (m as u128) * (m as u128 + 1);
        let auroc = twice_u as f64 / (2.0 * m as f64 * n as f64);
        Ok(Self { auroc, of_positives, of_negatives })
    }

    /// Covariance of two AUROC estimates on the same images (DeLong 1988, eq. 5).
    fn covariance(&self, other: &Self) -> f64 {
        covariance(&self.of_positives, &other.of_positives) / self.of_positives.len() as f64
            + covariance(&self.of_negatives, &other.of_negatives) / self.of_negatives.len() as f64
    }
}

/// Twice the midrank (from 1) of each value, equal values sharing their mean rank.
fn midranks(values: &[f64]) -> Vec<u64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0; values.len()];
    let mut start = 0;
    while start < order.len() {
        // -0.0 sorts before 0.0 but equals it: group by value.
        let mut end = start + 1;
        while end < order.len() && values[order[end]] == values[order[start]] {
            end += 1;
        }
        for &index in &order[start..end] {
            ranks[index] = (start + 1 + end) as u64;
        }
        start = end;
    }
    ranks
}

/// Sample covariance with denominator n - 1.
fn covariance(a: &[f64], b: &[f64]) -> f64 {
    let n = a.len() as f64;
    let (mean_a, mean_b) = (a.iter().sum::<f64>() / n, b.iter().sum::<f64>() / n);
    a.iter().zip(b).map(|(x, y)| (x - mean_a) * (y - mean_b)).sum::<f64>() / (n - 1.0)
}
