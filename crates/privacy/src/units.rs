//! The parameters of differential privacy, each its own type and checked once.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A parameter is outside of its range; whoever gave it is at fault.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{name}: expected {expected}, got {got}")]
pub struct ParameterError {
    name: &'static str,
    expected: &'static str,
    got: f64,
}

impl ParameterError {
    pub(crate) fn new(name: &'static str, expected: &'static str, got: f64) -> Self {
        Self { name, expected, got }
    }
}

macro_rules! parameter {
    ($(#[$doc:meta])* $name:ident, $label:literal, $expected:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, Deserialize)]
        #[serde(try_from = "f64", into = "f64")]
        pub struct $name(f64);

        impl $name {
            /// Checks and takes a value.
            ///
            /// # Errors
            /// When the value is outside of the range.
            pub fn new(value: f64) -> Result<Self, ParameterError> {
                let good: fn(f64) -> bool = $check;
                if good(value) { Ok(Self(value)) } else { Err(ParameterError::new($label, $expected, value)) }
            }

            /// The value.
            #[must_use]
            pub fn get(self) -> f64 {
                self.0
            }
        }

        impl TryFrom<f64> for $name {
            type Error = ParameterError;

            fn try_from(value: f64) -> Result<Self, Self::Error> {
                Self::new(value)
            }
        }

        impl From<$name> for f64 {
            fn from(value: $name) -> f64 {
                value.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

parameter! {
    /// The epsilon of (epsilon, delta)-differential privacy, natural logarithm: finite and not negative.
    Epsilon, "epsilon", "0 or more, finite", |value| value >= 0.0 && value.is_finite()
}
parameter! {
    /// The delta of (epsilon, delta)-differential privacy: a probability above 0 and below 1; it should be far below
    /// one over the number of patients.
    Delta, "delta", "above 0 and below 1", |value| value > 0.0 && value < 1.0
}
parameter! {
    /// The probability with which a step takes a patient, independently of all others: above 0, at most 1.
    SamplingRate, "sampling rate", "above 0 and at most 1", |value| value > 0.0 && value <= 1.0
}
parameter! {
    /// Standard deviation of the noise over the L2 sensitivity of what it is added to: 0.01 to 1e6. Below, nothing is
    /// private; above, nothing is learned.
    NoiseMultiplier, "noise multiplier", "0.01 to 1e6", |value| (0.01..=1e6).contains(&value)
}

/// What may be spent: the mechanism as a whole is to be (epsilon, delta)-differentially private.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrivacyLimit {
    /// Epsilon in all.
    pub epsilon: Epsilon,
    /// Delta in all.
    pub delta: Delta,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_kept_also_by_decoding() {
        for bad in [-1.0, f64::NAN, f64::INFINITY] {
            assert!(Epsilon::new(bad).is_err());
            assert!(Delta::new(bad).is_err() && SamplingRate::new(bad).is_err());
            assert!(NoiseMultiplier::new(bad).is_err());
        }
        assert!(Delta::new(0.0).is_err() && Delta::new(1.0).is_err() && SamplingRate::new(0.0).is_err());
        assert!(serde_json::from_str::<SamplingRate>("1.5").is_err());
        assert!(serde_json::from_str::<PrivacyLimit>(r#"{"epsilon": -2.0, "delta": 1e-5}"#).is_err());
        let error = Delta::new(2.0).unwrap_err().to_string();
        assert_eq!(error, "delta: expected above 0 and below 1, got 2");
    }
}
