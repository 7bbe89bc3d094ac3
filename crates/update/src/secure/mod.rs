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
//! 2. **Spread.** y_i = R x_i with R the same random orthonormal rotation for all: two passes of Hadamard transforms in full blocks of 1,024, with
//!    a transposition between them, and a third above 2^20 parameters (`SpreadRotation` in `rotation.rs`). One grid for all coordinates wants
//!    energy to be even over all of the vector, not only within blocks, and wherever in the vector it was. Each coordinate is then close to N(0,
//!    |x_i|²/d) (Suresh et al. 2017, section 3; Vargaftik et al. 2021, DRIVE).
//! 3. **Keep** K coordinates, the same for all. Without error feedback they are drawn from the round's seed and multiplied by
//!    d/K, which keeps the mean right (random-k, Stich et al. 2018).
//! 4. **Round** to codes 0..=L, L = 2^b - 1, on the grid over \[-t, t\] with t = k(b) C/sqrt(d) and step Delta = 2t/L. Rounding is stochastic,
//!    so it is right in the mean for every coordinate within the grid. Outside, a coordinate is **clipped**, as in the
//!    distributed-DP literature (Kairouz, Liu, Steinke 2021); there it may wrap, here it never does: codes are at most L, so
//!    n of them stay below 2^w with w from `Width::for_sum(L, n)`. What clipping costs is, for Gaussian coordinates of the
//!    full norm, beta²(k) = 2 ((1 + k²) Q(k) - k phi(k)) of the vector's square; for shorter vectors far less. That coordinates are near
//!    Gaussian is the rotation's work, not a theorem about all vectors: `the_last_layers_bias_comes_through_a_coarse_grid` in
//!    `tests/secure.rs` measures it of the vectors that are hardest to spread, a few parameters at the end of all.
//! 5. **Count.** min(n_i, n_ref) follows in base-2^b digits, a coordinate each: the sum opens to `sum n_i`, and no site's own number
//!    does.
//!
//! 6. **Norm.** nu_i = min(ceil(64 r_i / C), 127) follows in the same way, where r_i = |delta_i| before clipping, and with error feedback at least
//!    sqrt(K/d) |x_i + e_i|, e_i being the residual: what the grid has to carry. The sum opens to the mean of the r_i, and no site's own does. A grid serves as well
//!    as C fits, and deltas shrink by an order of magnitude while a model converges, so the next round's clip norm follows from it:
//!
//! ```text
//! C' = min(h C sum nu_i / (64 m), C_max),   h = 1.25                                                     (2)
//! ```
//!
//!    C_max is the federation's limit. Andrew et al. 2021 track a quantile with a bit of each site, which moves by a few percent a round and
//!    knows m + 1 values: too slow and too coarse for cohorts of 3 to 10. A mean is open to liars instead; as nu is at most 127, a share a of them moves the fixed
//!    point of (2) from h r to h r (1 - a) / (1 - 2 a h): a fifth of all sites to 1.6 times, two fifths to C_max and no further. Under
//!    differential privacy that comes from noise inside the sum ([`noise`]) the norm would be one more release: it is left out, and C stays. Where
//!    training itself is private, the norm follows from its result and costs nothing.
//!
//! The server turns the code sums S_j of m sites into `mean_j = (2 S_j - m L) (Delta/2) n_ref / sum n_i`; the bracket is an exact integer.
//!
//! **Error.** One rounding is off by at most Delta²/4 per coordinate in the mean square (Suresh et al. 2017, lemma 2 for L + 1 levels), and
//! errors of sites are independent: the sum is off by at most m C² k²/L². It is divided by the sum of the weights, m w with w their mean, so with K
//! = d the mean is off by
//!
//! ```text
//! E|mean - truth|² <= C² k²/(L² m w²) + beta²(k) C²,   w = (w_1 + ... + w_m)/m <= 1                     (1)
//! ```
//!
//! where truth is `sum w_i clip(delta_i, C) / sum w_i`. **A site of little weight rounds on the same grid**, so its error grows as 1/w²: with a
//! tenth of n_ref images at every site it is a hundred times that of full weight. Of the grid's ends a shorter vector reaches less: beta²(k/w_i) <=
//! beta²(k). The tables below are of w = 1.
//!
//! **Error where a part is kept.** With K < d of the coordinates, drawn at random and the same for all sites, two things come to that. Let a be the mean of
//! what the grid's ends leave of the sites' vectors, before rounding, `sum a_i / (m w)`; |a| <= C, and a is the truth where no coordinate
//! is clipped. Over the draw of the subset and of the rounding,
//!
//! ```text
//! E|mean - truth|² = |a - truth|² + (d/K - 1) |a|² + (d/K) V/(m w²)                                     (10)
//!                 <= beta²(k) C² + (d/K - 1) |a|² + (d/K) C² k²/(L² m w²)
//! ```
//!
//! where V is the rounding error's mean square over all d coordinates, averaged over the sites, on the grid of step 2kC/(L sqrt(d)): at most C² k²/L², and C² k²/L² - |x|² for vectors x so
//! short that they stay between the two levels in the middle. *Proof.* A coordinate with truth y, a, and rounding error e of mean 0 is kept with probability K/d and decoded as (d/K)(a + e),
//! else as 0. So its expected squared error is (K/d)((d/K) a - y)² + (d/K) E e² + (1 - K/d) y², which is (a - y)² + (d/K - 1) a² + (d/K) E e². Errors of m sites are
//! independent, and their sum is divided by m w, so E e² is their mean over m w². (Without clipping and rounding: Stich et al. 2018, random-k.) ∎
//!
//! **What the subset costs does not fall with the number of sites**: all leave out the same coordinates, which masks ask for, so it is (d/K - 1) times the square of the mean itself. Of
//! sites that agree, with |a| near C, it is what a round loses; of sites whose deltas have nothing in common |a|² is C²/m, and it falls with them. And rounding grows by d/K, as each code carries more.
//! The bound at two bits, in units of C², with |a| = C and w = 1:
//!
//! | kept of 1,000 | 1 site | 10 sites | 100 sites |
//! | ---: | ---: | ---: | ---: |
//! | 1,000 | 0.569 | 0.0632 | 0.0126 |
//! | 495 | 2.16 | 1.14 | 1.04 |
//! | 390 | 3.01 | 1.72 | 1.59 |
//! | 63 | 23.8 | 15.8 | 15.0 |
//!
//! So a single round that keeps 495 of 1,000 is off by as much as the mean is long. It is right in the mean, over rounds whose subsets are drawn anew: training bears it as it bears the noise
//! of small batches (docs/measurements.md has what it costs). The direction is kept better than the length: the cosine to the truth is about sqrt(K/d), 0.7 for 495.
//!
//! **Beside DRIVE and EDEN** (Vargaftik et al. 2021 and 2022), whose rotation this is. Theirs is the error of one vector over its squared norm,
//! vNMSE: unbiased D/(1 - D), with D the distortion of the best 2^b levels for a Gaussian (Max 1960, table I); at one bit that is DRIVE's pi/2 - 1.
//! Ours is equation (1) for one vector of the full norm and weight, and what a test measures of one (`one_vectors_error_beside_drive_and_eden` in
//! `tests/secure.rs` prints this table):
//!
//! | bits | EDEN, unbiased | ours, bound (1) | ours, measured | ten sites' mean, bound (1) |
//! | ---: | ---: | ---: | ---: | ---: |
//! | 1 | 0.571 | 4.02 | 3.10 | 0.415 |
//! | 2 | 0.133 | 0.569 | 0.374 | 0.0632 |
//! | 3 | 0.0358 | 0.140 | 0.0934 | 0.0159 |
//! | 4 | 0.00959 | 0.0405 | 0.0270 | 0.00449 |
//!
//! A vector of half the norm has four times as much: the grid is that of the clip norm. 2.6 to 5.4 times EDEN's error, the most at one bit, is what one grid for all
//! costs: EDEN rounds each site's vector on a grid of that vector's own scale, with levels that are not evenly spaced, and under masks nobody could
//! apply the scales or add up such levels. It falls with the number of sites, like EDEN's.
//!
//! **With error feedback** a site keeps a residual e_i. Codes are of y = R (x_i + e_i), rounded to the nearest level of the grid that is best for a
//! Gaussian (Max 1960) of norm C sqrt(d/K), Q(y); nothing is multiplied by d/K; and
//!
//! ```text
//! (R e_i')_j = y_j - Q(y)_j  if j is kept,   beta y_j  if not,   beta = 1/2                              (3)
//! ```
//!
//! The rotation stays the same for an era of 64 rounds, and the kept coordinates are a window that moves on by K in every round, so that each coordinate is
//! sent once in s = d/K rounds. Drawn anew in every round, it would wait s - 1 rounds in the mean and could wait for ever.
//!
//! What rounding and the grid's ends lose is repaid in full (Seide et al. 2014; Karimireddy et al. 2019): with K = d, all that is sent in T rounds is the sum of all
//! deltas less the residual at the end. What waits for its turn is repaid by half in each round that it waits, for a delta of local training is no gradient: a
//! site that was not heard says most of it again. Along a direction in which local training goes all the way to its optimum, at distance
//! epsilon, each delta is -epsilon until one is applied; with beta = 1 the turn applies s of them, which leaves -(s - 1) epsilon: it oscillates at s = 2 and diverges above.
//! With beta < 1 it applies (1 - beta^s) / (1 - beta) < 2 for beta = 1/2 whatever s is, so the distance always shrinks. Along a direction in which one
//! delta does little, a round advances by (1 - beta^s) / (s (1 - beta)) of it, 0.65 for s = 2.5, against 1/s = 0.4 without memory.
//!
//! A residual is cut to 2 C sqrt(d/K) in norm, so that a site which comes back after a long time does not undo what happened meanwhile; and what is
//! sent of delta and residual together to 2 w_i C, which bounds honest means. What this holds back stays in the residual.
//!
//! **Liars.** Whatever a site sends, no coordinate moves by more than its ring element says, and the server refuses sums that no honest sites could
//! make (a code sum above m L, a count outside m..=m n_ref, a norm above 127 m). Within these, a site that states too many images dilutes the mean
//! as far as a site of n_ref images would. One that sends the grid's ends and a count of 1 moves the mean by k C sqrt(d/K) n_ref / sum n_i, and
//! further where the others' codes leave room for more. That is no honest site's share, and is bounded afterwards: a mean longer than honest sites
//! make one is scaled down to what they reach (`ceiling.rs`, equations 7 to 9).

mod ceiling;
mod encode;
mod grid;
pub mod noise;
mod sum;

pub use ceiling::Shortened;
pub use encode::SecureUpdate;
pub use grid::SecureCodecPlan;
pub use noise::{NoiseError, NoisePlan};
pub use sum::{SecureExpected, SecureMean, decode_sum};
