//! How long the mean of honest sites can be, and so how long a decoded one may be.
//!
//! Masks hide each vector, and with it whoever leaves the codec: an appliance can send the grid's ends in all coordinates, which is a vector of norm
//! k C sqrt(d/K), beside a count of 1. Divided by the count of the others, sum n_i, it moves the mean by
//!
//! ```text
//! k C sqrt(d/K) n_ref / sum n_i                                                                              (7)
//! ```
//!
//! where an honest site moves it by its share of C: as far as n_ref is above what sites have, and k sqrt(d/K) times further. It may leave the grid
//! as well, as far as the others' codes leave room below m L and above 0: in all no more than m times (7). What it does inside the sum cannot be
//! undone; how long the mean becomes can. With m sites, W = sum n_i / n_ref, Delta the step times d/K, and u = 42 ln 2, honest sites stay within
//!
//! ```text
//! W² |mean|² <= A² + 2 A s sqrt(2 u) + s² (K + 2 sqrt(K u) + 2 u),   s² = m Delta²/4                          (8)
//! A = C W                                         if all coordinates are kept,
//! A = C sqrt(d/K) (W + m k sqrt(2 u / (3 K)))     if K < d are,
//! ```
//!
//! but for a probability of 2^-40. A mean that is longer is scaled down to it, that of one group as that of all.
//!
//! *Proof.* W mean = a + e: a is the sum of what sites have on the kept coordinates of the grid, before rounding, and e what rounding adds.
//!
//! *Before rounding.* A coordinate that the grid clips only becomes smaller, so on all d coordinates sum_i |clip(y_i)| <= sum_i w_i C = C W. Kept
//! are K of them at random, times d/K: the kept squares of Y = sum_i clip(y_i), each at most b = (m k C)²/d, sum up to at most K |Y|²/d + sqrt(2 K
//! b u |Y|²/d) + (2/3) b u, but for e^-u (Bernstein; Hoeffding 1963, theorem 4, for draws without replacement). Completing the square gives A.
//! The subset follows from the round's seed, which honest deltas do not depend on.
//!
//! *Rounding.* In each coordinate e is a sum of m independent errors of mean 0 within an interval of length Delta, so it is sub-Gaussian with
//! variance proxy m Delta²/4 (Hoeffding's lemma: what equation (1) has as variance). Hence a·e <= |a| s sqrt(2 u) but for e^-u, and |e|² <= s² (K +
//! 2 sqrt(K u) + 2 u) but for e^-u (Hsu, Kakade, Zhang 2012, theorem 2.1). Three times 2^-42 is below 2^-40. ∎
//!
//! **With error feedback** nothing is random. A site brings what it sends to at most 2 w_i C before it rounds it to the nearest level, which moves
//! each coordinate by at most Delta/2 (one that the grid clips becomes smaller), and sqrt(K) Delta is the best step of a Gaussian times C. So,
//! always:
//!
//! ```text
//! W |mean| <= 2 C W + m sqrt(K) Delta/2                                                                       (9)
//! ```
//!
//! **With noise** equation (6) of [`super::noise`] has that part, and refuses.
//!
//! **What remains.** Within the limit a liar still turns the mean to where it wants: after it has sent the grid's ends, the mean of some few equal
//! sites is mostly its own. The more of the limit is rounding, the less it bounds: sites of a tenth of n_ref make W a tenth of m, and e ten times
//! as long. Groups and votes are for what remains (docs/threat-model.md, 9.6).

use super::grid::SecureCodecPlan;
use super::noise::FAILURE_BITS;

/// What a decoded mean may have in single precision beyond what it would in exact numbers, relative.
const FLOATS: f64 = 1e-3;

/// How many times its weight times C a site sends of its delta and residual together, at most, in the norm: what waits for its turn counts less than
/// twice what a round adds (see the module above).
pub(super) const REPAID: f64 = 2.0;

/// A mean that was longer than honest sites make one, and was scaled down.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shortened {
    /// Its L2 norm before.
    pub norm: f32,
    /// The largest that honest sites reach ([`SecureCodecPlan::mean_norm_limit`]), which it has now.
    pub limit: f32,
}

impl SecureCodecPlan {
    /// The L2 norm that a mean of honest sites does not pass, equations (8) and (9) of `ceiling.rs`; wrong with a probability of at most 2^-40.
    /// `contributors` are the sites in the sum, and `examples` is its count. Infinite with noise: such sums are refused by their own norm.
    #[must_use]
    pub fn mean_norm_limit(&self, parameters: usize, contributors: u32, examples: u64) -> f64 {
        if self.noise.is_some() {
            return f64::INFINITY;
        }
        let (clip, kept) = (f64::from(self.clip_norm), self.kept(parameters).max(1) as f64);
        let (sites, step) = (f64::from(contributors.max(1)), self.step(parameters));
        let weight = examples.max(1) as f64 / f64::from(self.reference_examples.max(1));
        let sum = if self.error_feedback {
            REPAID * clip * weight + sites * kept.sqrt() * step / 2.0
        } else {
            let u = (FAILURE_BITS + 2.0) * std::f64::consts::LN_2;
            // What a random subset may have beyond its share.
            let spread = if self.kept(parameters) < parameters {
                sites * self.reach() * (2.0 * u / (3.0 * kept)).sqrt()
            } else {
                0.0
            };
            let before = clip * self.gain(parameters).sqrt() * (weight + spread);
            let proxy = sites * step * step / 4.0;
            let rounding = proxy * (kept + 2.0 * (kept * u).sqrt() + 2.0 * u);
            (before * before + 2.0 * before * (2.0 * proxy * u).sqrt() + rounding).sqrt()
        };
        sum / weight * (1.0 + FLOATS)
    }
}
