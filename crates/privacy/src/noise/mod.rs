//! Noise: exact discrete samplers, and Gaussian noise for gradients.
//!
//! | sampler | for | method | constant time |
//! |---|---|---|---|
//! | [`DiscreteLaplace`] | integers | rejection, exact rational arithmetic (Canonne, Kamath, Steinke 2020, algorithm 2) | no |
//! | [`ExactGaussian`] | integers, any variance | the same, algorithm 3 | no |
//! | [`TableGaussian`] | integers, standard deviation up to 64 | cumulative table of 127 bits, scanned whole | yes, in source |
//! | [`GaussianNoise`] | gradients | Box-Muller, rounded to a grid | nearly |
//!
//! **Timing.** The rejection samplers run longer for some results than for others, so a party that can time single
//! samples learns something of the noise (Jin, McMurtry, Rubinstein, Ohrimenko 2022). At a site a vector is sampled
//! at once, in a process that no other party can call, and is sent when the round's schedule says, which hides all
//! but the vector's total time; even so the table is the default wherever its standard deviation allows.
//!
//! **Floating point.** A textbook Gaussian in floating point lands on some numbers and misses their neighbours, in a
//! pattern that shifts with the value that is hidden (Mironov 2012). Nothing here adds such noise: integers are added
//! to integers, and [`GaussianNoise`] is rounded to a grid that does not depend on the data, to which the value is
//! rounded first.

mod exact;
mod rounded;
mod table;

pub use exact::{DiscreteLaplace, ExactGaussian};
pub use rounded::GaussianNoise;
pub(crate) use table::distance_bound as table_distance_bound;
pub use table::{MAX_TABLE_STANDARD_DEVIATION, TableGaussian};

use crate::units::ParameterError;
use serde::{Deserialize, Serialize};

/// A variance as an exact fraction: numerator from 1 to 2^44, denominator from 1 to 2^20, at least 1/16.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "(u64, u32)", into = "(u64, u32)")]
pub struct Variance {
    numerator: u64,
    denominator: u32,
}

impl Variance {
    /// The variance `numerator / denominator`.
    ///
    /// # Errors
    /// Outside of the ranges.
    pub fn new(numerator: u64, denominator: u32) -> Result<Self, ParameterError> {
        if !(1..=1 << 20).contains(&denominator) {
            let expected = "1 to 2^20";
            return Err(ParameterError::new("denominator of a variance", expected, f64::from(denominator)));
        }
        if numerator > 1 << 44 || numerator.saturating_mul(16) < u64::from(denominator) {
            let expected = "at most 2^44, and a variance of at least 1/16";
            return Err(ParameterError::new("numerator of a variance", expected, numerator as f64));
        }
        Ok(Self { numerator, denominator })
    }

    /// The least multiple of 2^-16 that is not below the square of a standard deviation: 0.25 to 16,000.
    ///
    /// # Errors
    /// Outside of that range.
    pub fn of_standard_deviation(deviation: f64) -> Result<Self, ParameterError> {
        if !(0.25..=16_000.0).contains(&deviation) {
            return Err(ParameterError::new("standard deviation", "0.25 to 16000", deviation));
        }
        Self::new((deviation * deviation * 65_536.0).ceil() as u64, 65_536)
    }

    /// The variance, rounded to double precision.
    #[must_use]
    pub fn get(self) -> f64 {
        self.numerator as f64 / f64::from(self.denominator)
    }

    /// Its root.
    #[must_use]
    pub fn standard_deviation(self) -> f64 {
        self.get().sqrt()
    }
}

impl TryFrom<(u64, u32)> for Variance {
    type Error = ParameterError;

    fn try_from((numerator, denominator): (u64, u32)) -> Result<Self, Self::Error> {
        Self::new(numerator, denominator)
    }
}

impl From<Variance> for (u64, u32) {
    fn from(variance: Variance) -> Self {
        (variance.numerator, variance.denominator)
    }
}
