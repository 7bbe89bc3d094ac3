//! The codec for secure aggregation: integers on one grid that all sites share, so that their sum means something.
//!
//! ```text
//! ModelDelta --clip, weight, spread, keep, round--> SecureUpdate == sum over Z/2^w of the sites ==> SecureMean
//! ```
//!
//! With d parameters, b bits, K coordinates kept, clip norm C, and for site i its delta delta_i, its training images n_i, and n_ref images
//! announced as the reference:
//!
//! 1. **Clip and weight.** x_i = w_i clip(delta_i, C) with w_i = min(n_i, n_ref) / n_ref <= 1, so that |x_i| <= C whatever a site
//!    says of itself. FedAvg's weights are inside the sum: `sum x_i / sum w_i`.
//! 2. **Spread.** y_i = R x_i with R the same random orthonormal rotation for all: two passes of the codec's block Hadamard
//!    rotation with a fixed permutation between them. One grid for all coordinates wants energy to be even over all of the
//!    vector, not only within blocks. Each coordinate is then close to N(0, |x_i|²/d) (Suresh et al. 2017, section 3;
//!    Vargaftik et al. 2021, DRIVE).
//! 3. **Keep** K coordinates, drawn from the round's seed, the same for all. Without error feedback they are multiplied by
//!    d/K, which keeps the mean right (random-k, Stich et al. 2018).
//! 4. **Round** to codes 0..=L, L = 2^b - 1, on the grid over \[-t, t\] with t = k(b) C/sqrt(d) and step Delta = 2t/L. Rounding is stochastic,
//!    so it is right in the mean for every coordinate within the grid. Outside, a coordinate is **clipped**, as in the
//!    distributed-DP literature (Kairouz, Liu, Steinke 2021); there it may wrap, here it never does: codes are at most L, so
//!    n of them stay below 2^w with w from `Width::for_sum(L, n)`. What clipping costs is bounded: for Gaussian coordinates of the
//!    full norm, beta²(k) = 2 ((1 + k²) Q(k) - k phi(k)) of the vector's square; for shorter vectors far less.
//! 5. **Count.** min(n_i, n_ref) follows in base-2^b digits, a coordinate each: the sum opens to `sum n_i`, and no site's own number
//!    does.
//!
//! The server turns the code sums S_j of m sites into `mean_j = (2 S_j - m L) (Delta/2) n_ref / sum n_i`; the bracket is an exact integer.
//!
//! **Error.** One rounding is off by at most Delta²/4 per coordinate in the mean square (Suresh et al. 2017, lemma 2 for L + 1 levels), and
//! errors of sites are independent, so with equal weights and K = d the mean is off by
//!
//! ```text
//! E|mean - truth|² <= C² (k²/L²)/m + beta²(k) C²                                                        (1)
//! ```
//!
//! EDEN (Vargaftik et al. 2022) has less at one bit (pi/2 - 1 instead of k²), with a scale of each site's own: under masks nobody could
//! apply it. That is the price of one grid; it falls with the number of sites like every rounding error, and with 2 bits or more it is small.
//!
//! **With error feedback** rounding is to the nearest level, on the grid that is best for a Gaussian (Max 1960), nothing is
//! multiplied by d/K, and what was lost (dropped coordinates, rounding, clipping at the grid) is repaid in the next round.
//! The residual never grows beyond C sqrt(d/K) in norm: what is above is dropped.
//!
//! **Liars.** Whatever a site sends, no coordinate moves by more than its ring element says, and the server refuses sums that no
//! honest sites could make (a code sum above m L, a count outside m..=m n_ref). Within these, a site that states too many images dilutes the mean
//! as far as a site of n_ref images would; one that sends full codes and a count of 1 adds at most what one honest site of n_ref images adds.

mod encode;
mod grid;
mod sum;

pub use encode::SecureUpdate;
pub use grid::SecureCodecPlan;
pub use sum::{SecureExpected, SecureMean, decode_sum};
