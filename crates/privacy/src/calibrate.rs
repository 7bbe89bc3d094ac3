//! The accountant backwards: noise for a target, steps for a budget.

use crate::accountant::{Accounting, Composition};
use crate::event::Event;
use crate::units::{NoiseMultiplier, PrivacyLimit, SamplingRate};

/// No noise in the range, or not a single step, stays within the limit.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error(
    "no noise multiplier up to {LARGEST_NOISE} keeps {steps} steps at sampling rate {sampling_rate} within epsilon \
     {} at delta {}: lower the rate or the steps, or raise the limit",
    limit.epsilon, limit.delta
)]
pub struct CalibrationError {
    steps: u64,
    sampling_rate: SamplingRate,
    limit: PrivacyLimit,
}

/// The largest noise multiplier that calibration tries.
const LARGEST_NOISE: f64 = 1e4;
/// Relative precision of the noise multiplier.
const PRECISION: f64 = 1e-3;

/// The smallest noise multiplier, to about 0.1% and rounded up to four decimals, with which `steps` steps after what
/// is already `spent` stay within the limit.
///
/// # Errors
/// When even a noise multiplier of 10,000 does not.
pub fn noise_multiplier_for(
    limit: &PrivacyLimit,
    sampling_rate: SamplingRate,
    steps: u64,
    spent: &Composition,
    accounting: Accounting,
) -> Result<NoiseMultiplier, CalibrationError> {
    let fits = |sigma: f64, accounting| {
        NoiseMultiplier::new(sigma).is_ok_and(|noise_multiplier| {
            let event = Event::Gaussian { sampling_rate, noise_multiplier, steps };
            spent.with(&event).epsilon(limit.delta, accounting) <= limit.epsilon.get()
        })
    };
    // The fast bound first; the tight one then searches below it, in doubling strides so that few evaluations are
    // needed.
    let by_renyi = least(0.05, LARGEST_NOISE, |sigma| fits(sigma, Accounting::Renyi));
    let found = match accounting {
        Accounting::Renyi => by_renyi,
        Accounting::Tight => {
            let known = by_renyi.or_else(|| fits(LARGEST_NOISE, Accounting::Tight).then_some(LARGEST_NOISE));
            known.and_then(|high| {
                let mut low = 0.85 * high;
                while low > 0.05 && fits(low, Accounting::Tight) {
                    low *= 0.7;
                }
                least(low, high, |sigma| fits(sigma, Accounting::Tight)).or(by_renyi)
            })
        }
    };
    // Four decimals, rounded up: the same in every text format. A step more where the accountant's own precision shows.
    let rounded = |sigma: f64| (sigma * 1e4).ceil() / 1e4;
    found
        .map(rounded)
        .map(|sigma| if fits(sigma, accounting) { sigma } else { rounded(sigma * (1.0 + PRECISION)) })
        .filter(|sigma| fits(*sigma, accounting))
        .and_then(|sigma| NoiseMultiplier::new(sigma).ok())
        .ok_or(CalibrationError { steps, sampling_rate, limit: *limit })
}

/// The least value, to [`PRECISION`], from `low` to `high` that fits; `None` when `high` does not.
fn least(mut low: f64, mut high: f64, fits: impl Fn(f64) -> bool) -> Option<f64> {
    if !fits(high) {
        return None;
    }
    while high > low * (1.0 + PRECISION) {
        let middle = (low * high).sqrt();
        if fits(middle) { high = middle } else { low = middle }
    }
    Some(high)
}

/// How many more runs of `event`'s mechanism (its own count does not matter), after what is already `spent`, stay
/// within the limit.
#[must_use]
pub fn runs_within(limit: &PrivacyLimit, event: &Event, spent: &Composition, accounting: Accounting) -> u64 {
    /// More is never asked for.
    const MOST: u64 = 1 << 32;
    let fits = |count: u64, accounting| {
        spent.with(&event.with_count(count)).epsilon(limit.delta, accounting) <= limit.epsilon.get()
    };
    let search = |mut low: u64, mut high: u64, accounting| {
        // `low` fits, `high` does not.
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if fits(middle, accounting) { low = middle } else { high = middle }
        }
        low
    };
    let grow = |from: u64, accounting| {
        let mut high = from.max(1);
        while high < MOST && fits(high, accounting) {
            high *= 2;
        }
        high
    };
    if !fits(0, accounting) {
        return 0;
    }
    let by_renyi = if fits(0, Accounting::Renyi) {
        let high = grow(1, Accounting::Renyi);
        search(high / 2, high, Accounting::Renyi)
    } else {
        0
    };
    match accounting {
        Accounting::Renyi => by_renyi,
        Accounting::Tight => {
            let high = grow(by_renyi + by_renyi / 8 + 1, Accounting::Tight);
            search(by_renyi, high, Accounting::Tight)
        }
    }
}
