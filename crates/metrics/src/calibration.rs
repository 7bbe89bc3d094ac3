//! Whether probabilities mean what they say.

use crate::predictions::check_shape;
use crate::{MetricsError, at_least, same_length};
use serde::{Deserialize, Serialize};

/// One bin of a reliability curve.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ReliabilityBin {
    /// Lower edge, exclusive (inclusive for the first bin).
    pub low: f64,
    /// Upper edge, inclusive.
    pub high: f64,
    /// Images in the bin.
    pub images: u64,
    /// Mean confidence of these images; 0 when there are none.
    pub confidence: f64,
    /// Fraction of these images that are right; 0 when there are none.
    pub accuracy: f64,
}

/// A fitted temperature (Guo et al. 2017, section 4.2).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TemperatureFit {
    /// Divide logits by this before the softmax; 1 changes nothing, above 1 lowers confidence. 0.05 to 20.
    pub temperature: f64,
    /// Mean cross entropy in nats before.
    pub loss_before: f64,
    /// Mean cross entropy in nats after; never above `loss_before` by more than rounding.
    pub loss_after: f64,
}

/// The softmax of `logits * inverse_temperature`.
pub(crate) fn softmax(logits: &[f64], inverse_temperature: f64) -> Vec<f64> {
    let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let powers: Vec<f64> = logits.iter().map(|z| ((z - top) * inverse_temperature).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|p| p / sum).collect()
}

/// Bins ((b-1)/B, b/B] of confidence (Guo et al. 2017, section 2); a confidence of exactly 0 joins the first.
pub(crate) fn reliability(confidence: &[f64], correct: &[bool], bins: usize) -> Vec<ReliabilityBin> {
    let bins = bins.max(1);
    let mut sums = vec![(0u64, 0.0f64, 0u64); bins];
    for (&c, &right) in confidence.iter().zip(correct) {
        let bin = ((c * bins as f64).ceil() as usize).clamp(1, bins) - 1;
        sums[bin].0 += 1;
        sums[bin].1 += c;
        sums[bin].2 += u64::from(right);
    }
    let mean = |sum: f64, count: u64| if count == 0 { 0.0 } else { sum / count as f64 };
    sums.into_iter()
        .enumerate()
        .map(|(b, (images, confidence, right))| ReliabilityBin {
            low: b as f64 / bins as f64,
            high: (b + 1) as f64 / bins as f64,
            images,
            confidence: mean(confidence, images),
            accuracy: mean(right as f64, images),
        })
        .collect()
}

/// Brier's score for a yes-or-no question: mean squared distance between the probability of yes and the answer, 0 to 1.
///
/// # Errors
/// When lengths differ, there are no images, or a probability lies outside 0..1.
pub fn brier_score(probabilities: &[f64], positive: &[bool]) -> Result<f64, MetricsError> {
    same_length("labels", probabilities.len(), positive.len())?;
    at_least("images", 1, probabilities.len())?;
    if let Some(index) = probabilities.iter().position(|p| !(0.0..=1.0).contains(p)) {
        let got = probabilities[index];
        return Err(MetricsError::Value { what: "probabilities", index, expected: "0 to 1", got });
    }
    let squared = |(p, y): (&f64, &bool)| (p - f64::from(u8::from(*y))).powi(2);
    Ok(probabilities.iter().zip(positive).map(squared).sum::<f64>() / probabilities.len() as f64)
}

/// Fits one temperature to logits, row by row `[images, classes]`, of a validation split, so that the cross entropy
/// is least. Ranking, and so AUROC and accuracy, do not change.
///
/// The cross entropy is convex in the inverse temperature, so its derivative is bisected; the result is exact to
/// about 1e-12 and the same everywhere.
///
/// # Errors
/// When shapes do not fit, a logit is not finite, or a label is no class.
pub fn fit_temperature(
    classes: usize,
    logits: &[f64],
    labels: &[usize],
) -> Result<TemperatureFit, MetricsError> {
    check_shape(classes, logits, labels)?;
    let slope = |inverse: f64| -> f64 {
        let of_image = |(row, &label): (&[f64], &usize)| -> f64 {
            let expected: f64 = softmax(row, inverse).iter().zip(row).map(|(p, z)| p * z).sum();
            expected - row[label]
        };
        logits.chunks_exact(classes).zip(labels).map(of_image).sum()
    };
    let loss = |inverse: f64| -> f64 {
        let of_image = |(row, &label): (&[f64], &usize)| -> f64 {
            let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = row.iter().map(|z| ((z - top) * inverse).exp()).sum();
            sum.ln() - (row[label] - top) * inverse
        };
        logits.chunks_exact(classes).zip(labels).map(of_image).sum::<f64>() / labels.len() as f64
    };
    let (mut low, mut high) = (0.05, 20.0);
    let inverse = if slope(low) >= 0.0 {
        low
    } else if slope(high) <= 0.0 {
        high
    } else {
        for _ in 0..60 {
            let middle = f64::midpoint(low, high);
            if slope(middle) < 0.0 {
                low = middle;
            } else {
                high = middle;
            }
        }
        f64::midpoint(low, high)
    };
    Ok(TemperatureFit { temperature: 1.0 / inverse, loss_before: loss(1.0), loss_after: loss(inverse) })
}
