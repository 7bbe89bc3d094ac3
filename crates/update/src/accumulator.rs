//! The weighted mean of updates, exact and independent of their order.

use crate::UpdateError;
use crate::parameters::{check_length, split_header, with_header};
use crate::sealed::DecodedUpdate;
use medinet_types::Digest;
use serde::{Deserialize, Serialize};

const FORMAT: u8 = 1;

/// Fraction bits of a summand: a resolution of 2^-36 = 1.5e-11 per parameter, finer than float32 resolves any weight
/// above 2.4e-4, and room for 2^27 = 134 million examples that all move the same parameter by 1.
const FRACTION_BITS: i32 = 36;

/// Sums `examples * delta` in 64-bit fixed point. Integer addition has no rounding, so the mean is the same bit by bit
/// in whatever order updates arrive and however often the aggregator restarts between them. Memory is one vector,
/// not one per site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accumulator {
    sums: Vec<i64>,
    examples: u64,
    updates: u32,
    /// Sum over updates of examples times the largest absolute value: no element of `sums` is larger.
    bound: u64,
}

/// An update cannot be added, or there is no mean.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AccumulatorError {
    /// The update has another length; our API misused, since decoding checks the length.
    #[error("expected an update of {expected} parameters, got {got}")]
    Length {
        /// Parameters of the sum.
        expected: usize,
        /// Parameters of the update.
        got: usize,
    },
    /// The sum would not fit: too many examples times too large a delta. The sum is left as it was.
    #[error("the sum would overflow: lower clip_norm or the examples that a site may claim")]
    Overflow,
    /// Nothing has been added.
    #[error("expected at least one update before the mean is taken")]
    Empty,
}

#[derive(Serialize, Deserialize)]
struct Header {
    parameters: u64,
    examples: u64,
    updates: u32,
    bound: u64,
    digest: Digest,
}

impl Accumulator {
    /// An empty sum.
    #[must_use]
    pub fn new(parameters: usize) -> Self {
        Self { sums: vec![0; parameters], examples: 0, updates: 0, bound: 0 }
    }

    /// Adds an update, weighted by its examples.
    ///
    /// # Errors
    /// When the length differs or the sum would overflow; the sum is then left as it was.
    pub fn add(&mut self, update: &DecodedUpdate) -> Result<(), AccumulatorError> {
        if update.delta.len() != self.sums.len() {
            let (expected, got) = (self.sums.len(), update.delta.len());
            return Err(AccumulatorError::Length { expected, got });
        }
        let largest = update.delta.iter().fold(0.0f32, |top, v| top.max(v.abs()));
        let bound = f64::from(largest) * f64::from(FRACTION_BITS).exp2();
        // Above 2^62 the conversion below would saturate silently.
        if bound >= 62f64.exp2() {
            return Err(AccumulatorError::Overflow);
        }
        let overflow = AccumulatorError::Overflow;
        let added = (bound.ceil() as u64).checked_mul(update.examples).ok_or(overflow.clone())?;
        let bound =
            self.bound.checked_add(added).filter(|&b| i64::try_from(b).is_ok()).ok_or(overflow.clone())?;
        let examples = self.examples.checked_add(update.examples).ok_or(overflow.clone())?;
        let updates = self.updates.checked_add(1).ok_or(overflow)?;
        // `added` fits i64, so the examples do whenever anything but zeros is added; zeros need no weight.
        let weight = i64::try_from(update.examples).unwrap_or(0);
        for (sum, value) in self.sums.iter_mut().zip(&update.delta) {
            *sum += fixed(*value) * weight;
        }
        (self.examples, self.updates, self.bound) = (examples, updates, bound);
        Ok(())
    }

    /// Updates added so far.
    #[must_use]
    pub fn updates(&self) -> u32 {
        self.updates
    }

    /// Examples behind them.
    #[must_use]
    pub fn examples(&self) -> u64 {
        self.examples
    }

    /// Parameters of the vector.
    #[must_use]
    pub fn parameters(&self) -> usize {
        self.sums.len()
    }

    /// The mean delta, weighted by examples (FedAvg, McMahan et al. 2017, algorithm 1).
    ///
    /// # Errors
    /// When nothing has been added.
    pub fn mean(&self) -> Result<Vec<f32>, AccumulatorError> {
        if self.examples == 0 {
            return Err(AccumulatorError::Empty);
        }
        let scale = f64::from(-FRACTION_BITS).exp2() / self.examples as f64;
        Ok(self.sums.iter().map(|&sum| (sum as f64 * scale) as f32).collect())
    }

    /// The state, for the aggregator's disk.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let payload: Vec<u8> = self.sums.iter().flat_map(|sum| sum.to_le_bytes()).collect();
        let header = Header {
            parameters: self.sums.len() as u64,
            examples: self.examples,
            updates: self.updates,
            bound: self.bound,
            digest: Digest::of(&payload),
        };
        with_header(FORMAT, &header, &payload)
    }

    /// Reads what [`Accumulator::to_bytes`] wrote.
    ///
    /// # Errors
    /// When the bytes are damaged, contradict themselves, or hold another number of parameters.
    pub fn from_bytes(bytes: &[u8], parameters: usize) -> Result<Self, UpdateError> {
        let (header, payload): (Header, _) = split_header(FORMAT, bytes)?;
        check_length(parameters, header.parameters)?;
        if payload.len() != parameters.saturating_mul(8) || Digest::of(payload) != header.digest {
            return Err(UpdateError::Malformed { what: "the sums that the state's digest names" });
        }
        let sums: Vec<i64> = payload
            .chunks_exact(8)
            .map(|b| i64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
            .collect();
        let consistent = i64::try_from(header.bound).is_ok()
            && sums.iter().all(|sum| sum.unsigned_abs() <= header.bound)
            && (header.updates == 0) == (header.examples == 0)
            && u64::from(header.updates) <= header.examples;
        if !consistent {
            return Err(UpdateError::Malformed { what: "sums within the state's bound" });
        }
        Ok(Self { sums, examples: header.examples, updates: header.updates, bound: header.bound })
    }
}

/// To fixed point, to nearest; `add` has checked that it fits.
fn fixed(value: f32) -> i64 {
    // 2^36 exactly; the product of a float32 and a power of two is exact in float64.
    (f64::from(value) * (1u64 << FRACTION_BITS) as f64).round_ties_even() as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(delta: Vec<f32>, examples: u64) -> DecodedUpdate {
        DecodedUpdate { delta, examples }
    }

    #[test]
    fn the_mean_is_weighted_by_examples() {
        let mut sum = Accumulator::new(2);
        assert_eq!(sum.mean(), Err(AccumulatorError::Empty));
        sum.add(&update(vec![1.0, -2.0], 3)).unwrap();
        sum.add(&update(vec![5.0, 2.0], 1)).unwrap();
        assert_eq!(sum.mean().unwrap(), [2.0, -1.0]);
        assert_eq!((sum.updates(), sum.examples()), (2, 4));
    }

    #[test]
    fn overflow_is_refused_and_changes_nothing() {
        let mut sum = Accumulator::new(1);
        sum.add(&update(vec![1.0], 1 << 26)).unwrap();
        let before = sum.clone();
        for bad in [update(vec![1.0], 1 << 27), update(vec![-1e9], 1), update(vec![1e-9], u64::MAX)] {
            assert_eq!(sum.add(&bad), Err(AccumulatorError::Overflow));
            assert_eq!(sum, before);
        }
        assert!(sum.add(&update(vec![0.0, 0.0], 1)).is_err());
        assert_eq!(sum, before);
    }

    #[test]
    fn the_state_reads_back_and_damage_is_noticed() {
        let mut sum = Accumulator::new(3);
        sum.add(&update(vec![0.25, -0.5, 1e-4], 17)).unwrap();
        let bytes = sum.to_bytes();
        assert_eq!(Accumulator::from_bytes(&bytes, 3).unwrap(), sum);
        assert!(Accumulator::from_bytes(&bytes, 4).is_err());
        for position in bytes.len() - 24..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[position] ^= 1;
            assert!(Accumulator::from_bytes(&damaged, 3).is_err());
        }
        for cut in 0..bytes.len() {
            assert!(Accumulator::from_bytes(&bytes[..cut], 3).is_err());
        }
    }
}
