//! How good a model is: discrimination, accuracy and calibration, each with its uncertainty.
//!
//! Scores and probabilities are `f64`; an `f32` from a network converts without loss, so ties stay ties.
//! Everything is a pure function of its arguments; the bootstrap takes its seed.
//!
//! * [`auroc`], [`auroc_interval`], [`delong_test`]: area under the ROC curve, exact with ties, with DeLong's interval and paired test.
//! * [`Predictions`]: class probabilities and labels of a whole set; accuracy, macro AUROC, calibration.
//! * [`fit_temperature`]: temperature scaling on a validation split.
//! * [`wilson_interval`], [`bootstrap_interval`]: intervals for proportions and for anything else.

mod calibration;
mod interval;
mod normal;
mod predictions;
mod roc;
mod threshold;

pub use calibration::{ReliabilityBin, TemperatureFit, brier_score, fit_temperature};
pub use interval::{Interval, bootstrap_interval, wilson_interval};
pub use predictions::{CALIBRATION_BINS, Predictions};
pub use roc::{DelongTest, RocPoint, auroc, auroc_interval, delong_test, roc_curve};
pub use threshold::{Confusion, confusion_at, youden_threshold};

/// Why a figure cannot be computed from the given values; the caller passed what has no such figure.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum MetricsError {
    /// Two arguments that must have the same length do not.
    #[error("expected {expected} values of {what}, got {got}")]
    Length {
        /// What is counted.
        what: &'static str,
        /// The length that was needed.
        expected: usize,
        /// The length that came.
        got: usize,
    },
    /// There is too little of something.
    #[error("expected at least {needed} {what}, got {got}")]
    TooFew {
        /// What there is too little of.
        what: &'static str,
        /// How many are needed.
        needed: usize,
        /// How many there are.
        got: usize,
    },
    /// A value lies outside its range.
    #[error("value {index} of {what}: expected {expected}, got {got}")]
    Value {
        /// Which argument.
        what: &'static str,
        /// Position within it.
        index: usize,
        /// The allowed range.
        expected: &'static str,
        /// The value.
        got: f64,
    },
}

fn same_length(what: &'static str, expected: usize, got: usize) -> Result<(), MetricsError> {
    if expected == got { Ok(()) } else { Err(MetricsError::Length { what, expected, got }) }
}

fn at_least(what: &'static str, needed: usize, got: usize) -> Result<(), MetricsError> {
    if got >= needed { Ok(()) } else { Err(MetricsError::TooFew { what, needed, got }) }
}

fn all_finite(what: &'static str, values: &[f64]) -> Result<(), MetricsError> {
    match values.iter().position(|v| !v.is_finite()) {
        None => Ok(()),
        Some(index) => {
            Err(MetricsError::Value { what, index, expected: "a finite number", got: values[index] })
        }
    }
}
