//! Class probabilities and labels of a set of images.

use crate::calibration::{ReliabilityBin, reliability, softmax};
use crate::roc::auroc;
use crate::{MetricsError, all_finite, at_least, same_length};

/// Bins of [`Predictions::expected_calibration_error`] in reports (Guo et al. 2017).
pub const CALIBRATION_BINS: usize = 15;

/// What a model said about a set of images, and what they are: `[images, classes]` probabilities and a label each.
#[derive(Debug, Clone, PartialEq)]
pub struct Predictions {
    classes: usize,
    probabilities: Vec<f64>,
    labels: Vec<usize>,
}

impl Predictions {
    /// Takes probabilities, row by row `[images, classes]`, each row summing to 1 within 1e-3, and labels below `classes`.
    ///
    /// # Errors
    /// When there are fewer than two classes, no images, lengths that do not fit, a probability outside 0..1, a
    /// row that does not sum to 1, or a label that is no class.
    pub fn from_probabilities(
        classes: usize,
        probabilities: Vec<f64>,
        labels: Vec<usize>,
    ) -> Result<Self, MetricsError> {
        check_shape(classes, &probabilities, &labels)?;
        for (index, &got) in probabilities.iter().enumerate() {
            if !(0.0..=1.0).contains(&got) {
                return Err(MetricsError::Value { what: "probabilities", index, expected: "0 to 1", got });
            }
        }
        for (index, row) in probabilities.chunks_exact(classes).enumerate() {
            let got: f64 = row.iter().sum();
            if (got - 1.0).abs() > 1e-3 {
                let what = "sums of an image's probabilities";
                return Err(MetricsError::Value { what, index, expected: "1", got });
            }
        }
        Ok(Self { classes, probabilities, labels })
    }

    /// Takes a network's logits, row by row `[images, classes]`, divides them by `temperature` (1 leaves them as
    /// they are, see [`crate::fit_temperature`]) and applies the softmax.
    ///
    /// # Errors
    /// As [`Predictions::from_probabilities`], and when a logit is not finite or the temperature is not above 0.
    pub fn from_logits(
        classes: usize,
        logits: &[f64],
        labels: Vec<usize>,
        temperature: f64,
    ) -> Result<Self, MetricsError> {
        check_shape(classes, logits, &labels)?;
        if !(temperature > 0.0 && temperature.is_finite()) {
            let (what, expected) = ("temperature", "above 0");
            return Err(MetricsError::Value { what, index: 0, expected, got: temperature });
        }
        let probabilities =
            logits.chunks_exact(classes).flat_map(|row| softmax(row, 1.0 / temperature)).collect();
        Ok(Self { classes, probabilities, labels })
    }

    /// Number of images.
    #[must_use]
    pub fn images(&self) -> usize {
        self.labels.len()
    }

    /// Number of classes.
    #[must_use]
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// The probability of `class` for each image.
    ///
    /// # Errors
    /// When there is no such class.
    pub fn scores_of(&self, class: usize) -> Result<Vec<f64>, MetricsError> {
        at_least("classes", class + 1, self.classes)?;
        Ok(self.rows().map(|row| row[class]).collect())
    }

    /// Whether each image is of `class`.
    #[must_use]
    pub fn is_class(&self, class: usize) -> Vec<bool> {
        self.labels.iter().map(|&label| label == class).collect()
    }

    /// Whether the most probable class (the first of equals) of each image is right.
    #[must_use]
    pub fn correct(&self) -> Vec<bool> {
        self.rows().zip(&self.labels).map(|(row, &label)| most_probable(row).0 == label).collect()
    }

    /// Images whose most probable class is right.
    #[must_use]
    pub fn correct_count(&self) -> u64 {
        self.correct().into_iter().filter(|&right| right).count() as u64
    }

    /// Fraction of images whose most probable class is right.
    #[must_use]
    pub fn accuracy(&self) -> f64 {
        self.correct_count() as f64 / self.images() as f64
    }

    /// Two classes: AUROC of class 1. More: the mean over classes of the AUROC of each against the rest (macro
    /// average, one versus rest), over the classes that can be measured. `None` when a single class is present.
    #[must_use]
    pub fn macro_auroc(&self) -> Option<f64> {
        let first = if self.classes == 2 { 1 } else { 0 };
        let each: Vec<f64> = (first..self.classes)
            .filter_map(|class| auroc(&self.scores_of(class).ok()?, &self.is_class(class)).ok())
            .collect();
        (!each.is_empty()).then(|| each.iter().sum::<f64>() / each.len() as f64)
    }

    /// Mean cross entropy in nats; probabilities are raised to 1e-15 at least, so that it stays finite.
    #[must_use]
    pub fn log_loss(&self) -> f64 {
        let sum: f64 = self.rows().zip(&self.labels).map(|(row, &label)| -row[label].max(1e-15).ln()).sum();
        sum / self.images() as f64
    }

    /// Brier's score (1950): squared distance between probabilities and the one-hot label, summed over classes, mean
    /// over images; 0 to 2. For two classes it is twice [`crate::brier_score`].
    #[must_use]
    pub fn brier(&self) -> f64 {
        let of_image = |(row, &label): (&[f64], &usize)| -> f64 {
            row.iter().enumerate().map(|(class, p)| (p - f64::from(u8::from(class == label))).powi(2)).sum()
        };
        self.rows().zip(&self.labels).map(of_image).sum::<f64>() / self.images() as f64
    }

    /// Confidence against accuracy in `bins` equal-width bins of the most probable class's probability; the points
    /// of the reliability curve.
    #[must_use]
    pub fn reliability(&self, bins: usize) -> Vec<ReliabilityBin> {
        let confidence: Vec<f64> = self.rows().map(|row| most_probable(row).1).collect();
        reliability(&confidence, &self.correct(), bins)
    }

    /// Expected calibration error (Guo et al. 2017, eq. 3): the mean over images of their bin's distance between
    /// confidence and accuracy; 0 to 1.
    #[must_use]
    pub fn expected_calibration_error(&self, bins: usize) -> f64 {
        let weighted = |bin: &ReliabilityBin| bin.images as f64 * (bin.confidence - bin.accuracy).abs();
        self.reliability(bins).iter().map(weighted).sum::<f64>() / self.images() as f64
    }

    /// The images at `indices`, in that order, repeats allowed; for [`crate::bootstrap_interval`].
    ///
    /// # Errors
    /// When `indices` is empty or one is beyond the last image.
    pub fn select(&self, indices: &[usize]) -> Result<Self, MetricsError> {
        at_least("indices", 1, indices.len())?;
        if let Some(&beyond) = indices.iter().find(|&&i| i >= self.images()) {
            return Err(MetricsError::TooFew { what: "images", needed: beyond + 1, got: self.images() });
        }
        let row = |&i: &usize| &self.probabilities[i * self.classes..(i + 1) * self.classes];
        Ok(Self {
            classes: self.classes,
            probabilities: indices.iter().flat_map(row).copied().collect(),
            labels: indices.iter().map(|&i| self.labels[i]).collect(),
        })
    }

    fn rows(&self) -> impl Iterator<Item = &[f64]> {
        self.probabilities.chunks_exact(self.classes)
    }
}

pub(crate) fn check_shape(classes: usize, values: &[f64], labels: &[usize]) -> Result<(), MetricsError> {
    at_least("classes", 2, classes)?;
    at_least("images", 1, labels.len())?;
    same_length("logits or probabilities", labels.len().saturating_mul(classes), values.len())?;
    all_finite("logits or probabilities", values)?;
    match labels.iter().position(|&label| label >= classes) {
        None => Ok(()),
        Some(index) => {
            let (expected, got) = ("below the number of classes", labels[index] as f64);
            Err(MetricsError::Value { what: "labels", index, expected, got })
        }
    }
}

fn most_probable(row: &[f64]) -> (usize, f64) {
    let mut best = (0, row[0]);
    for (class, &p) in row.iter().enumerate().skip(1) {
        if p > best.1 {
            best = (class, p);
        }
    }
    best
}
