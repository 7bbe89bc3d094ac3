//! The discrete Gaussian from a cumulative table.

use super::Variance;
use crate::units::ParameterError;
use num_bigint::BigUint;
use rand_core::CryptoRng;

/// The largest standard deviation for which a table is made: the whole table is read for every sample.
pub const MAX_TABLE_STANDARD_DEVIATION: f64 = 64.0;

/// Fractional bits of the table's construction.
const WORKING_BITS: u32 = 320;
/// Fractional bits of the table.
const TABLE_BITS: u32 = 127;

/// The discrete Gaussian distribution to within a statistical distance of about 2^-117, sampled by comparing 127
/// uniform bits with every entry of a cumulative table, without a branch or an address that depends on them (on
/// x86-64 the comparison compiles to a subtraction with borrow).
///
/// What the distance costs is counted by the accountant: see [`TableGaussian::statistical_distance`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableGaussian {
    variance: Variance,
    /// Entry k is P(|X| <= k) * 2^127, rounded down; the last that is below 2^127 is left out.
    cumulative: Vec<u128>,
}

impl TableGaussian {
    /// Makes the table for the parameter sigma² = `variance`.
    ///
    /// # Errors
    /// When the standard deviation passes [`MAX_TABLE_STANDARD_DEVIATION`].
    pub fn new(variance: Variance) -> Result<Self, ParameterError> {
        let deviation = variance.standard_deviation();
        if deviation > MAX_TABLE_STANDARD_DEVIATION {
            return Err(ParameterError::new("standard deviation", "at most 64 for a table", deviation));
        }
        let weights = weights(variance);
        let total: BigUint = weights.iter().sum();
        let mut sum = BigUint::ZERO;
        let mut cumulative: Vec<u128> = Vec::with_capacity(weights.len());
        for weight in &weights[..weights.len() - 1] {
            sum += weight;
            let entry: BigUint = (&sum << TABLE_BITS) / &total;
            cumulative.push(u128::try_from(entry).expect("a share of the total is below 2^127"));
        }
        Ok(Self { variance, cumulative })
    }

    /// Its parameter.
    #[must_use]
    pub fn variance(&self) -> Variance {
        self.variance
    }

    /// Upper bound of the statistical (total variation) distance of one sample from the discrete Gaussian. Every entry
    /// is off by less than 2^-127, and what lies beyond the table weighs less than 2^-128.
    #[must_use]
    pub fn statistical_distance(&self) -> f64 {
        (self.cumulative.len() as f64 + 2.0) * f64::powi(2.0, -(TABLE_BITS as i32))
    }

    /// A sample.
    pub fn sample(&self, rng: &mut impl CryptoRng) -> i64 {
        let bits = u128::from(rng.next_u64()) << 64 | u128::from(rng.next_u64());
        let (negative, draw) = ((bits >> TABLE_BITS) as i64, bits & ((1 << TABLE_BITS) - 1));
        let mut magnitude = 0i64;
        for entry in &self.cumulative {
            magnitude = magnitude.wrapping_add(i64::from(draw >= *entry));
        }
        // Negates when `negative` is 1.
        (magnitude ^ negative.wrapping_neg()).wrapping_add(negative)
    }

    /// Adds a sample to every value, wrapping.
    pub fn add_to(&self, values: &mut [i64], rng: &mut impl CryptoRng) {
        for value in values {
            *value = value.wrapping_add(self.sample(rng));
        }
    }
}

/// What [`TableGaussian::statistical_distance`] does not exceed: a table has at most 15 sigma + 2 entries, since
/// e^(-(15 sigma)² / 2 sigma²) < 2^-160.
pub(crate) fn distance_bound(variance: Variance) -> f64 {
    (15.0 * variance.standard_deviation() + 4.0) * f64::powi(2.0, -(TABLE_BITS as i32))
}

/// e^(-k² / 2 sigma²) times 2^320 for k = 0, and twice that for k = 1, 2, ... until nothing above 2^-140 of the
/// total is left.
fn weights(variance: Variance) -> Vec<BigUint> {
    let one = BigUint::from(1u8) << WORKING_BITS;
    // e^x by its series for x = 1 / 2 sigma² <= 8, then r = e^-x. The series stops where its terms vanish.
    let (n, d) = (variance.numerator, variance.denominator);
    let (mut term, mut exponential) = (one.clone(), one.clone());
    for k in 1u32.. {
        term = term * d / (2 * u128::from(n) * u128::from(k));
        if term == BigUint::ZERO {
            break;
        }
        exponential += &term;
    }
    let r = (&one * &one) / exponential;
    let r_squared = (&r * &r) >> WORKING_BITS;
    // r^((k+1)²) = r^(k²) r^(2k+1).
    let mut weights = vec![one.clone()];
    let (mut weight, mut ratio) = (one.clone(), r);
    let least = one >> 160u32;
    loop {
        weight = (&weight * &ratio) >> WORKING_BITS;
        ratio = (&ratio * &r_squared) >> WORKING_BITS;
        weights.push(&weight << 1u32);
        if weight < least {
            return weights;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_holds_the_distribution() {
        for (n, d) in [(1u64, 4u32), (1, 1), (9, 1), (1001, 10), (4096, 1)] {
            let variance = Variance::new(n, d).unwrap();
            let table = TableGaussian::new(variance).unwrap();
            let weight = |k: i32| (-f64::from(k * k) / (2.0 * variance.get())).exp();
            let total = 1.0 + 2.0 * (1..2000).map(weight).sum::<f64>();
            let mut sum = 1.0;
            for (k, entry) in table.cumulative.iter().enumerate() {
                if k > 0 {
                    sum += 2.0 * weight(k as i32);
                }
                let share = *entry as f64 / f64::powi(2.0, 127);
                assert!((share - sum / total).abs() < 1e-14, "{n}/{d} at {k}");
            }
            assert!(table.cumulative.windows(2).all(|w| w[0] <= w[1]));
            assert!(table.statistical_distance() < f64::powi(2.0, -116));
            assert!(table.statistical_distance() <= distance_bound(variance));
        }
    }

    #[test]
    fn digits_of_the_exponential_are_right() {
        // e^-(1/2) to 60 digits, from OEIS A092605.
        let digits = "606530659712633423603799534991180453441918135487186955682892";
        let weights = weights(Variance::new(1, 1).unwrap());
        let scaled: BigUint = ((&weights[1] >> 1u32) * BigUint::from(10u8).pow(60)) >> WORKING_BITS;
        assert_eq!(scaled.to_string(), digits);
    }

    #[test]
    fn wide_tables_are_refused() {
        assert!(TableGaussian::new(Variance::new(4097, 1).unwrap()).is_err());
    }
}
