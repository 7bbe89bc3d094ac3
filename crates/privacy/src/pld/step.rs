//! One step's privacy loss as a function on the line, and its moments.

use crate::numeric::{tail_bound, upper_tail};
use crate::rdp::ln_ratio;

/// Which neighbour the mechanism really runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// With the patient; the other is without.
    Remove,
    /// Without the patient; the other is with.
    Add,
}

impl Direction {
    /// Both.
    pub(super) const BOTH: [Self; 2] = [Self::Remove, Self::Add];
}

/// A step of the Poisson-subsampled Gaussian in one direction, on a line where the loss grows.
///
/// For [`Direction::Remove`] the line is that of the output z; for [`Direction::Add`] it is -z.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    q: f64,
    sigma: f64,
    direction: Direction,
    /// Ends of the part of the line that is integrated.
    low: f64,
    high: f64,
}

/// Nodes and weights of Gauss-Legendre quadrature of order 5 on [-1, 1].
const GAUSS_LEGENDRE: [(f64, f64); 5] = [
    (0.0, 0.568_888_888_888_888_9),
    (-0.538_469_310_105_683_1, 0.478_628_670_499_366_47),
    (0.538_469_310_105_683_1, 0.478_628_670_499_366_47),
    (-0.906_179_845_938_664, 0.236_926_885_056_189_08),
    (0.906_179_845_938_664, 0.236_926_885_056_189_08),
];

impl Step {
    /// A step of which an upper tail of at most `infinite` probability has, by definition, infinite loss.
    pub(super) fn new(q: f64, sigma: f64, direction: Direction, infinite: f64) -> Self {
        let reach = sigma * tail_bound(infinite.clamp(1e-300, 0.25));
        let high = if direction == Direction::Remove { 1.0 + reach } else { reach };
        Self { q, sigma, direction, low: -reach, high }
    }

    /// The loss at `x`; grows with x.
    pub(super) fn loss(&self, x: f64) -> f64 {
        match self.direction {
            Direction::Remove => ln_ratio(self.q, self.sigma, x),
            Direction::Add => -ln_ratio(self.q, self.sigma, -x),
        }
    }

    /// The x at which the loss is `loss`: minus or plus infinity where it never is as small or as large.
    pub(super) fn position(&self, loss: f64) -> f64 {
        // ln((e^l - 1 + q) / q), the exponent (2 z - 1) / 2 sigma² at which the ratio is e^l.
        let exponent = |l: f64| {
            let ratio =
                if l > 30.0 { l + ((1.0 - (1.0 - self.q) * (-l).exp()) / self.q).ln() } else { f64::NAN };
            if l > 30.0 { ratio } else { ((l.exp_m1() + self.q).max(0.0) / self.q).ln() }
        };
        match self.direction {
            Direction::Remove => self.sigma * self.sigma * exponent(loss) + 0.5,
            Direction::Add => -(self.sigma * self.sigma * exponent(-loss) + 0.5),
        }
    }

    fn density(&self, x: f64) -> f64 {
        let gaussian = |x: f64| {
            let z = x / self.sigma;
            (-0.5 * z * z).exp() / (self.sigma * (2.0 * std::f64::consts::PI).sqrt())
        };
        match self.direction {
            Direction::Remove => (1.0 - self.q) * gaussian(x) + self.q * gaussian(x - 1.0),
            Direction::Add => gaussian(x),
        }
    }

    fn tail(&self, x: f64) -> f64 {
        match self.direction {
            Direction::Remove => {
                (1.0 - self.q) * upper_tail(x / self.sigma) + self.q * upper_tail((x - 1.0) / self.sigma)
            }
            Direction::Add => upper_tail(x / self.sigma),
        }
    }

    /// Ends of the part of the line that is integrated.
    pub(super) fn range(&self) -> (f64, f64) {
        (self.low, self.high)
    }

    /// The probability that counts as infinite loss.
    pub(super) fn infinite_mass(&self) -> f64 {
        self.tail(self.high)
    }

    /// The probability below the range, whose loss is raised to that at the range's lower end.
    pub(super) fn low_mass(&self) -> f64 {
        match self.direction {
            Direction::Remove => {
                (1.0 - self.q) * upper_tail(-self.low / self.sigma)
                    + self.q * upper_tail((1.0 - self.low) / self.sigma)
            }
            Direction::Add => upper_tail(-self.low / self.sigma),
        }
    }

    /// The longest piece on which quadrature is good to rounding: short against the Gaussian's width and against
    /// the distance pi sigma² of the loss's singularities.
    pub(super) fn longest_piece(&self) -> f64 {
        (self.sigma / 8.0).min(self.sigma * self.sigma / 3.0)
    }

    /// Calls `visit(loss, probability)` for the quadrature nodes of a piece of the line.
    pub(super) fn quadrature(&self, from: f64, to: f64, mut visit: impl FnMut(f64, f64)) {
        let (middle, half) = (0.5 * (from + to), 0.5 * (to - from));
        for (node, weight) in GAUSS_LEGENDRE {
            let x = middle + half * node;
            visit(self.loss(x), weight * half * self.density(x));
        }
    }
}

/// The loss of a step as a sum of many point masses, exact to rounding for moments.
pub(super) struct Nodes {
    step: Step,
    points: Vec<(f64, f64)>,
}

impl Nodes {
    pub(super) fn new(step: Step) -> Self {
        let (low, high) = step.range();
        let pieces = ((high - low) / step.longest_piece()).ceil();
        let length = (high - low) / pieces;
        let mut points = vec![(step.loss(low), step.low_mass())];
        for piece in 0..pieces as u64 {
            let from = low + length * piece as f64;
            step.quadrature(from, from + length, |loss, mass| points.push((loss, mass)));
        }
        Self { step, points }
    }

    pub(super) fn step(&self) -> &Step {
        &self.step
    }

    /// From the least to the largest finite loss.
    pub(super) fn range(&self) -> f64 {
        let (low, high) = self.step.range();
        self.step.loss(high) - self.step.loss(low)
    }

    /// ln E[e^(theta L)] over finite losses, and mean and variance of the loss tilted by e^(theta L).
    pub(super) fn moments(&self, theta: f64) -> (f64, f64, f64) {
        let top = self.points.last().map_or(0.0, |p| theta * p.0);
        let (mut zeroth, mut first, mut second) = (0.0, 0.0, 0.0);
        for &(loss, mass) in &self.points {
            let weight = mass * (theta * loss - top).exp();
            zeroth += weight;
            first += weight * loss;
            second += weight * loss * loss;
        }
        if zeroth > 1e-280 && zeroth.is_finite() {
            let mean = first / zeroth;
            return (top + zeroth.ln(), mean, (second / zeroth - mean * mean).max(0.0));
        }
        // The top's own mass underflowed: take the largest term for reference instead.
        let terms: Vec<f64> = self.points.iter().map(|&(loss, mass)| theta * loss + mass.ln()).collect();
        let total = crate::numeric::log_sum_exp(&terms);
        let moment = |power: i32| -> f64 {
            self.points.iter().zip(&terms).map(|(p, term)| p.0.powi(power) * (term - total).exp()).sum()
        };
        let mean = moment(1);
        (total, mean, (moment(2) - mean * mean).max(0.0))
    }
}
