//! What a threshold on a score gives.

use crate::roc::roc_curve;
use crate::{MetricsError, all_finite, same_length};
use serde::{Deserialize, Serialize};

/// Counts of right and wrong calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confusion {
    /// Positives called positive.
    pub true_positives: u64,
    /// Negatives called positive.
    pub false_positives: u64,
    /// Negatives called negative.
    pub true_negatives: u64,
    /// Positives called negative.
    pub false_negatives: u64,
}

fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

impl Confusion {
    /// Fraction of positives called positive; `None` without positives.
    #[must_use]
    pub fn sensitivity(&self) -> Option<f64> {
        ratio(self.true_positives, self.true_positives + self.false_negatives)
    }

    /// Fraction of negatives called negative; `None` without negatives.
    #[must_use]
    pub fn specificity(&self) -> Option<f64> {
        ratio(self.true_negatives, self.true_negatives + self.false_positives)
    }

    /// Fraction of positive calls that are right; `None` without positive calls.
    #[must_use]
    pub fn positive_predictive_value(&self) -> Option<f64> {
        ratio(self.true_positives, self.true_positives + self.false_positives)
    }

    /// Fraction of negative calls that are right; `None` without negative calls.
    #[must_use]
    pub fn negative_predictive_value(&self) -> Option<f64> {
        ratio(self.true_negatives, self.true_negatives + self.false_negatives)
    }

    /// Fraction of right calls; `None` without images.
    #[must_use]
    pub fn accuracy(&self) -> Option<f64> {
        let right = self.true_positives + self.true_negatives;
        ratio(right, right + self.false_positives + self.false_negatives)
    }
}

/// Calls every score at or above `threshold` positive.
///
/// # Errors
/// When lengths differ or a score is not finite.
pub fn confusion_at(scores: &[f64], positive: &[bool], threshold: f64) -> Result<Confusion, MetricsError> {
    same_length("labels", scores.len(), positive.len())?;
    all_finite("scores", scores)?;
    let mut counts =
        Confusion { true_positives: 0, false_positives: 0, true_negatives: 0, false_negatives: 0 };
    for (score, positive) in scores.iter().zip(positive) {
        let count = match (*score >= threshold, *positive) {
            (true, true) => &mut counts.true_positives,
            (true, false) => &mut counts.false_positives,
            (false, false) => &mut counts.true_negatives,
            (false, true) => &mut counts.false_negatives,
        };
        *count += 1;
    }
    Ok(counts)
}

/// The threshold with the largest sensitivity + specificity - 1 (Youden 1950); the highest such threshold.
/// Choose it on a validation split, never on the test set.
///
/// # Errors
/// When lengths differ, a score is not finite, or one class is absent.
pub fn youden_threshold(scores: &[f64], positive: &[bool]) -> Result<f64, MetricsError> {
    let mut best = (f64::NEG_INFINITY, f64::INFINITY);
    for point in roc_curve(scores, positive)?.into_iter().skip(1) {
        let index = point.true_positive_rate - point.false_positive_rate;
        if index > best.0 {
            best = (index, point.threshold);
        }
    }
    Ok(best.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_ratios() {
        let scores = [0.1, 0.4, 0.5, 0.5, 0.9];
        let positive = [false, true, false, true, true];
        let got = confusion_at(&scores, &positive, 0.5).unwrap();
        let expected =
            Confusion { true_positives: 2, false_positives: 1, true_negatives: 1, false_negatives: 1 };
        assert_eq!(got, expected);
        assert_eq!(got.sensitivity(), Some(2.0 / 3.0));
        assert_eq!(got.specificity(), Some(0.5));
        assert_eq!(got.positive_predictive_value(), Some(2.0 / 3.0));
        assert_eq!(got.negative_predictive_value(), Some(0.5));
        assert_eq!(got.accuracy(), Some(0.6));
        assert_eq!(confusion_at(&[0.1], &[false], 0.5).unwrap().sensitivity(), None);
    }

    #[test]
    fn youden_separates_what_can_be_separated() {
        let threshold = youden_threshold(&[0.1, 0.2, 0.7, 0.8], &[false, false, true, true]).unwrap();
        assert_eq!(threshold, 0.7);
        assert!(youden_threshold(&[0.1, 0.2], &[true, true]).is_err());
    }
}
