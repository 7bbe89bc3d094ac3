//! The tight accountant: privacy loss distributions, composed by FFT, with every error on the safe side.
//!
//! **Definitions** (Sommer, Meiser, Mohammadi 2019; Koskela, Jälkö, Honkela 2020). For a pair of distributions P, Q
//! the privacy loss is L = ln(P/Q)(z) for z from P, and delta(epsilon) = E[(1 - e^(epsilon - L))_+] + P(L =
//! infinity). Under composition, also adaptive, of mechanisms each dominated by its pair, losses add up, so their
//! distributions convolve (Zhu, Dong, Wang 2022, theorem 10). One step of the Poisson-subsampled Gaussian is
//! dominated (same, theorem 11) by P = (1 - q) N(0, sigma²) + q N(1, sigma²), Q = N(0, sigma²) when a patient is
//! removed, and by the two exchanged when one is added; epsilon is the larger of both.
//!
//! **Grid** (`grid`). Each point of loss l between the multiples kh and (k+1)h is split between the two so that both
//! its P-mass and its Q-mass stay what they were: weight (1 - e^-(l - kh)) / (1 - e^-h) goes up. That is the
//! connect-the-dots discretisation (Doroshenko, Ghazi, Kamath, Kumar, Manurangsi 2022, algorithm 1): its delta curve
//! is the chord through the exact one at the grid's points, hence never below it, and pairs so made compose to an
//! upper bound. Loss that would pass the grid's upper end counts as infinite; what would fall below its lower end is
//! raised to it.
//!
//! **Composition** (`compose`). A convolution in floating point has an absolute error, which drowns a delta of 1e-9
//! after 1e5 steps. So the distribution is first tilted by e^(theta l) (Cramér; as the saddle-point accountant of
//! Alghamdi et al. 2023 does), with theta where the Chernoff bound is least: the region that decides delta becomes
//! the centre, errors become relative to delta, and the window can be a few standard deviations wide instead of the
//! whole range. The result adds, to be an upper bound: the Chernoff bound of what lies above the window; a bound of
//! the FFT's rounding errors, whose Euclidean norm follows from the spectrum (Parseval) and which delta, a weighted
//! sum of the points, feels by at most that norm times the norm of the weights (Cauchy, Schwarz); and the infinite
//! mass. What the cyclic convolution folds into the window only adds.
//!
//! **Step width.** Chosen so that the growth of the log moment at theta by the grid changes epsilon by less than
//! `PRECISION`, relative; where that would need more than `compose::MAX_POINTS` points, the bound is looser, never
//! wrong.

mod compose;
mod grid;
mod step;

use compose::Composed;
use grid::Grid;
use step::{Direction, Nodes, Step};

/// Relative error of epsilon that the grid may cause (upward).
const PRECISION: f64 = 5e-4;
/// Largest step of the grid over epsilon.
const COARSEST: f64 = 0.02;
/// Share of delta that may be given to losses beyond the grid.
const INFINITE_SHARE: f64 = 1e-5;
/// Initial grid step over the standard deviation of the tilted loss of a step.
const FIRST_STEP: f64 = 0.04;

/// Sampling rates below are taken for this one.
const SMALLEST_RATE: f64 = 1e-8;
/// Noise multipliers above are taken for this one.
const LARGEST_NOISE: f64 = 1e6;
/// Epsilons above are not refined.
const LARGEST_EPSILON: f64 = 1e3;
/// Epsilons below are not told apart more finely than this one.
const FINEST: f64 = 1e-4;
/// The most steps of one mechanism; of more, nothing is certified.
const MAX_STEPS: u64 = 100_000_000;

/// Poisson-subsampled Gaussians with their number of steps: (sampling rate, noise multiplier, steps).
pub(crate) type Steps = [(f64, f64, u64)];

/// What is known of a composition in one direction before any grid: its moments.
struct Composition {
    parts: Vec<(Nodes, u64)>,
}

impl Composition {
    /// Prepares `steps`; losses whose total probability is at most `infinite` become infinite.
    fn new(steps: &Steps, direction: Direction, infinite: f64) -> Self {
        let count: u64 = steps.iter().map(|s| s.2).sum();
        let per_step = infinite / count.max(1) as f64;
        let parts = steps
            .iter()
            .map(|&(q, sigma, times)| (Nodes::new(Step::new(q, sigma, direction, per_step)), times))
            .collect();
        Self { parts }
    }

    fn count(&self) -> u64 {
        self.parts.iter().map(|p| p.1).sum()
    }

    /// Upper bound of the probability that the composed loss is infinite.
    fn infinite(&self) -> f64 {
        self.parts.iter().map(|(nodes, times)| *times as f64 * nodes.step().infinite_mass()).sum()
    }

    /// The widest range of finite losses of a step.
    fn range(&self) -> f64 {
        self.parts.iter().map(|(nodes, _)| nodes.range()).fold(0.0, f64::max)
    }

    /// ln E[e^(theta L)] of the finite part of the composed loss, and its first two derivatives in theta: mean and
    /// variance of the tilted loss.
    fn moments(&self, theta: f64) -> (f64, f64, f64) {
        let mut total = (0.0, 0.0, 0.0);
        for (nodes, times) in &self.parts {
            let (k, mean, variance) = nodes.moments(theta);
            let times = *times as f64;
            total.0 += times * k;
            total.1 += times * mean;
            total.2 += times * variance;
        }
        total
    }

    /// The tilt at which the Chernoff bound ln delta <= K(theta) - theta epsilon is least for the epsilon that it gives
    /// `delta`: where theta K' - K + ln delta = 0, which grows with theta.
    fn tilt_for_delta(&self, delta: f64) -> f64 {
        self.moderate(bisect(|theta| {
            let (k, mean, _) = self.moments(theta);
            theta * mean - k + delta.ln()
        }))
    }

    /// The tilt at which the Chernoff bound of P(L > epsilon) is least: where K' = epsilon.
    fn tilt_for_epsilon(&self, epsilon: f64) -> f64 {
        self.moderate(bisect(|theta| self.moments(theta).1 - epsilon))
    }

    /// The tilt, or a smaller one where all of the tilted loss would sit at its upper bound, which a loss that is
    /// bounded (when a patient is added) reaches for large epsilon.
    fn moderate(&self, mut theta: f64) -> f64 {
        let floor = 1e-6 * self.range();
        while theta > 1e-6 && self.moments(theta).2 < self.count() as f64 * floor * floor {
            theta *= 0.5;
        }
        theta
    }
}

/// The zero of an increasing function on the positive axis, or the end of it that is nearer, by bisection in the
/// logarithm.
fn bisect(f: impl Fn(f64) -> f64) -> f64 {
    let (mut low, mut high) = (1e-6f64.ln(), 1e18f64.ln());
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if f(middle.exp()) < 0.0 { low = middle } else { high = middle }
    }
    (0.5 * (low + high)).exp()
}

/// Upper bound of the composition's epsilon at `delta`.
pub(crate) fn epsilon(steps: &Steps, delta: f64) -> f64 {
    if steps.iter().any(|s| s.2 > MAX_STEPS) {
        return f64::INFINITY;
    }
    if let Some(sigma) = single_gaussian(steps) {
        return crate::gaussian::epsilon(sigma, delta);
    }
    let steps = merged(steps);
    // The statistical distance of one step, delta at epsilon 0, is q (2 Phi(1 / 2 sigma) - 1); distances add up at
    // most.
    let distance = |&(q, sigma, times): &(f64, f64, u64)| {
        times as f64 * q * (1.0 - 2.0 * crate::numeric::upper_tail(0.5 / sigma))
    };
    if steps.iter().map(distance).sum::<f64>() <= delta {
        return 0.0;
    }
    Direction::BOTH.into_iter().fold(0.0, |so_far, direction| {
        let composition = Composition::new(&steps, direction, INFINITE_SHARE * delta);
        let theta = composition.tilt_for_delta(delta);
        let chernoff = (composition.moments(theta).0 - ((1.0 - 2.0 * INFINITE_SHARE) * delta).ln()) / theta;
        if chernoff <= so_far {
            return so_far;
        }
        // Beyond use anyway: the Chernoff bound as it stands.
        if chernoff > LARGEST_EPSILON {
            return largest(so_far, chernoff);
        }
        let value = converge(&composition, theta, |shift, width, compose| {
            if shift > PRECISION * chernoff.max(FINEST) {
                return Err(PRECISION * chernoff.max(FINEST));
            }
            let value = compose().epsilon(delta);
            // What does not exceed the other direction needs no precision.
            let scale = value.max(FINEST);
            if value <= so_far || (shift <= PRECISION * scale && width <= COARSEST * scale) {
                return Ok(value);
            }
            Err((PRECISION * scale).min(shift * (COARSEST * scale / width).powi(2)))
        });
        largest(so_far, value)
    })
}

/// Upper bound of the composition's delta at `epsilon`.
pub(crate) fn delta(steps: &Steps, epsilon: f64) -> f64 {
    if steps.iter().any(|s| s.2 > MAX_STEPS) {
        return 1.0;
    }
    if let Some(sigma) = single_gaussian(steps) {
        return crate::gaussian::delta(sigma, epsilon);
    }
    let steps = merged(steps);
    let both = Direction::BOTH.into_iter().fold(0.0, |so_far, direction| {
        // The Chernoff bound tells the order of magnitude of delta, hence what may be called infinite.
        let rough = Composition::new(&steps, direction, 1e-30);
        let theta = rough.tilt_for_epsilon(epsilon);
        let bound = (rough.moments(theta).0 - theta * epsilon).min(0.0).exp().max(1e-30);
        let composition = Composition::new(&steps, direction, INFINITE_SHARE * 0.01 * bound);
        let theta = composition.tilt_for_epsilon(epsilon);
        let chernoff = (composition.moments(theta).0 - theta * epsilon).exp() + composition.infinite();
        if chernoff <= so_far {
            return so_far;
        }
        let value = converge(&composition, theta, |shift, width, compose| {
            let coarsest = COARSEST * epsilon.max(FINEST);
            if shift > 2e-3 / theta || width > coarsest {
                return Err((2e-3 / theta).min(shift * (coarsest / width).powi(2)));
            }
            Ok(compose().delta(epsilon))
        });
        largest(so_far, value)
    });
    both.min(1.0)
}

/// The larger one; infinite where either is no number, so that no failed computation passes for privacy.
fn largest(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::INFINITY } else { a.max(b) }
}

/// Tries finer and finer grids until `evaluate(shift, width, compose)` is content, where `shift` is how far the grid
/// moves epsilon in first order: the growth of the log moment over theta. An error names the shift that would do; on
/// the finest grid that fits, the bound is taken as it is.
fn converge(
    composition: &Composition,
    theta: f64,
    evaluate: impl Fn(f64, f64, &dyn Fn() -> Composed) -> Result<f64, f64>,
) -> f64 {
    let (exact, _, variance) = composition.moments(theta);
    // The window is some thirty standard deviations wide.
    let narrowest =
        (40.0 * variance.sqrt() / compose::MAX_POINTS as f64).max(composition.range() / grid::MAX_CELLS);
    let mut width = (FIRST_STEP * (variance / composition.count() as f64).sqrt()).max(narrowest);
    loop {
        let grids: Vec<(Grid, u64)> =
            composition.parts.iter().map(|(nodes, times)| (Grid::new(nodes.step(), width), *times)).collect();
        let shift = (compose::log_moment(&grids, theta, width) - exact).max(0.0) / theta;
        let compose = || Composed::new(&grids, composition, theta, width);
        if width <= narrowest {
            // Whatever the shift is called, it is taken.
            return evaluate(0.0, 0.0, &compose).unwrap_or(f64::INFINITY);
        }
        match evaluate(shift, width, &compose) {
            Ok(value) => return value,
            // The shift falls with the square of the width, or slower while the grid is coarse.
            Err(wanted) => {
                let factor = if shift > 0.0 { 0.8 * (wanted / shift).sqrt() } else { 0.1 };
                width = (width * factor.clamp(0.1, 0.7)).max(narrowest);
            }
        }
    }
}

/// The noise multiplier of the one Gaussian mechanism that steps without sampling amount to; `None` when any step
/// samples.
fn single_gaussian(steps: &Steps) -> Option<f64> {
    let all = steps.iter().all(|s| s.0 >= 1.0);
    all.then(|| steps.iter().map(|&(_, sigma, times)| times as f64 / (sigma * sigma)).sum::<f64>().powf(-0.5))
}

/// Equal mechanisms together, all Gaussians without sampling as one, nothing with no steps.
fn merged(steps: &Steps) -> Vec<(f64, f64, u64)> {
    let mut merged: Vec<(f64, f64, u64)> = Vec::new();
    let unsampled: Vec<_> = steps.iter().copied().filter(|s| s.0 >= 1.0 && s.2 > 0).collect();
    if let (false, Some(sigma)) = (unsampled.is_empty(), single_gaussian(&unsampled)) {
        merged.push((1.0, sigma, 1));
    }
    for &(q, sigma, times) in steps.iter().filter(|s| s.0 < 1.0 && s.2 > 0) {
        // Taking patients more often, or adding less noise, only costs more: keeps losses within reach of double
        // precision.
        let (q, sigma) = (q.max(SMALLEST_RATE), sigma.min(LARGEST_NOISE));
        match merged.iter_mut().find(|m| m.0 == q && m.1 == sigma) {
            Some(same) => same.2 += times,
            None => merged.push((q, sigma, times)),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pretends that a Gaussian is sampled, so that it goes through the grid and the FFT.
    fn by_grid(sigma: f64, times: u64, delta: f64) -> f64 {
        let steps = [(1.0 - 1e-15, sigma, times)];
        epsilon(&steps, delta)
    }

    #[test]
    fn gaussians_compose_as_the_closed_form_says_and_never_below() {
        for (sigma, times) in [(1.0, 1), (5.0, 30), (40.0, 1000), (300.0, 100_000), (0.4, 3)] {
            for delta in [1e-3, 1e-6, 1e-10] {
                let exact = crate::gaussian::epsilon(sigma / (times as f64).sqrt(), delta);
                let grid = by_grid(sigma, times, delta);
                assert!(grid >= exact, "{sigma} {times} {delta}: {grid} below {exact}");
                assert!(grid <= exact * 1.003 + 1e-9, "{sigma} {times} {delta}: {grid} far above {exact}");
            }
        }
    }

    #[test]
    fn one_sampled_step_matches_its_hockey_stick() {
        // delta(epsilon) = q P(Z > (t - 1)/sigma) - (e^epsilon - 1 + q) P(Z > t/sigma) at the t where the loss is
        // epsilon.
        for (q, sigma) in [(0.01f64, 0.6f64), (0.2, 1.0), (0.5, 3.0), (1e-4, 0.4)] {
            for e in [0.1f64, 0.5, 1.0] {
                let t = sigma * sigma * ((e.exp_m1() + q) / q).ln() + 0.5;
                let exact = q * crate::numeric::upper_tail((t - 1.0) / sigma)
                    - (e.exp_m1() + q) * crate::numeric::upper_tail(t / sigma);
                if exact > 1e-12 {
                    let bound = delta(&[(q, sigma, 1)], e);
                    assert!(bound >= exact * (1.0 - 1e-9), "{q} {sigma} {e}: {bound} below {exact}");
                    assert!(bound <= exact * 1.02, "{q} {sigma} {e}: {bound} far above {exact}");
                }
            }
        }
    }

    #[test]
    fn epsilon_and_delta_are_each_others_inverse() {
        let steps = [(0.01, 0.9, 700), (0.1, 4.0, 50), (1.0, 30.0, 3)];
        for target in [1e-3, 1e-5, 1e-8] {
            let e = epsilon(&steps, target);
            let back = delta(&steps, e);
            assert!((back / target - 1.0).abs() < 0.02, "{target}: {e} {back}");
        }
    }

    #[test]
    fn equal_steps_are_merged() {
        let split = [(0.01, 1.0, 10), (1.0, 5.0, 2), (0.01, 1.0, 20), (1.0, 5.0, 2), (0.3, 2.0, 0)];
        let parts = merged(&split);
        assert_eq!(parts.len(), 2);
        assert_eq!(parts[1], (0.01, 1.0, 30));
        assert!((parts[0].1 - 2.5).abs() < 1e-12);
    }
}
