//! Convolution of tilted grids by FFT.

use super::Composition;
use super::grid::Grid;
use rustfft::FftPlanner;
use rustfft::num_complex::Complex64;

/// The most points of the window.
pub(super) const MAX_POINTS: usize = 1 << 21;
/// Tilted probability that may lie on either side of the window.
const OUTSIDE: f64 = 1e-13;

/// The composed loss on a window of the grid, tilted; with everything that makes its results upper bounds.
pub(super) struct Composed {
    width: f64,
    theta: f64,
    /// Index of the window's first point: its loss is `first * width`.
    first: i64,
    /// Tilted probabilities.
    tilted: Vec<f64>,
    /// ln E[e^(theta L)].
    log_moment: f64,
    /// Upper bound of the Euclidean norm of the tilted probabilities' rounding errors.
    rounding: f64,
    /// Mass of infinite loss, and of what lies above the window.
    infinite: f64,
}

/// Sum over the parts of times * ln E[e^(theta L)].
pub(super) fn log_moment(parts: &[(Grid, u64)], theta: f64, width: f64) -> f64 {
    parts.iter().map(|(grid, times)| *times as f64 * grid.log_moment(theta, width)).sum()
}

impl Composed {
    /// Convolves the grids, each as often as its number says, after a tilt by e^(theta L). `composition` is what
    /// the grids are of; it only helps to choose the window.
    pub(super) fn new(parts: &[(Grid, u64)], composition: &Composition, theta: f64, width: f64) -> Self {
        let k = |theta: f64| log_moment(parts, theta, width);
        let at_theta = k(theta);
        // All but a tilted probability of OUTSIDE lies within, by the Chernoff bound of the grids.
        let (down, up) = best_tilts(composition, theta);
        let at_up = k(theta + up);
        let low = (at_theta - k(theta - down) + OUTSIDE.ln()) / down;
        let high = (at_up - at_theta - OUTSIDE.ln()) / up;
        let first = (low / width).floor() as i64;
        let wanted = usize::try_from((high / width).ceil() as i64 - first + 1).unwrap_or(8);
        let points = fast_length(wanted.min(MAX_POINTS));
        // The untilted probability above the window counts as infinite, by the better of two Chernoff bounds.
        let top = (first + points as i64) as f64 * width;
        let above = (at_theta - theta * top).min(at_up - (theta + up) * top).min(0.0).exp();
        let infinite: f64 = parts.iter().map(|(grid, times)| *times as f64 * grid.infinite).sum();

        let mut planner = FftPlanner::new();
        let forward = planner.plan_fft_forward(points);
        let mut product = vec![Complex64::new(1.0, 0.0); points];
        // Per frequency: an upper bound of the product's absolute value, and of its relative error in first order.
        // Each spectrum's absolute error is at most log2(points) roundings times a small constant (Higham 2002,
        // theorem 24.2); a power multiplies the relative error.
        let error = 8.0 * f64::EPSILON * ((points as f64).log2() + 2.0);
        let mut bounds = vec![(1.0f64, 0.0f64); points];
        for (grid, times) in parts {
            let mut spectrum = vec![Complex64::default(); points];
            let moment = grid.log_moment(theta, width);
            for (at, mass) in grid.masses.iter().enumerate().filter(|(_, mass)| **mass > 0.0) {
                let index = grid.first + at as i64;
                let tilted = (theta * index as f64 * width - moment + mass.ln()).exp();
                spectrum[index.rem_euclid(points as i64) as usize].re += tilted;
            }
            forward.process(&mut spectrum);
            let power = u32::try_from(*times).expect("callers refuse more than MAX_STEPS steps");
            for ((total, bound), value) in product.iter_mut().zip(&mut bounds).zip(&spectrum) {
                *total *= value.powu(power);
                let size = value.norm() + error;
                bound.0 *= size.powf(f64::from(power));
                bound.1 += f64::from(power) * error / size;
            }
        }
        planner.plan_fft_inverse(points).process(&mut product);
        let scale = 1.0 / points as f64;
        let start = first.rem_euclid(points as i64) as usize;
        let tilted = (0..points).map(|at| product[(start + at) % points].re * scale).collect();
        // Parseval: the errors' norm is that of the spectrum's over sqrt(points); the inverse transform adds its own.
        let of_frequency = |&(size, relative): &(f64, f64)| (size * (relative + error)).powi(2);
        let rounding = (bounds.iter().map(of_frequency).sum::<f64>() * scale).sqrt();
        Self { width, theta, first, tilted, log_moment: at_theta, rounding, infinite: infinite + above }
    }

    /// Loss at the window's point `at`.
    fn loss(&self, at: usize) -> f64 {
        (self.first + at as i64) as f64 * self.width
    }

    /// What undoes the tilt at the window's point `at`.
    fn untilt(&self, at: usize) -> f64 {
        (self.log_moment - self.theta * self.loss(at)).min(340.0).exp()
    }

    /// Upper bound of delta at `epsilon`: the sum of (1 - e^(epsilon - loss)) over the masses above epsilon, plus
    /// what rounding can have taken from it by the Cauchy-Schwarz inequality.
    pub(super) fn delta(&self, epsilon: f64) -> f64 {
        let (mut delta, mut squares) = (self.infinite, 0.0);
        for at in (0..self.tilted.len()).rev() {
            let over = self.loss(at) - epsilon;
            if over <= 0.0 {
                break;
            }
            let weight = -(-over).exp_m1() * self.untilt(at);
            delta += weight * self.tilted[at];
            squares += weight * weight;
        }
        (delta + squares.sqrt() * self.rounding).min(1.0)
    }

    /// Upper bound of epsilon at `delta`; infinite when the mass at infinity is larger than that.
    pub(super) fn epsilon(&self, delta: f64) -> f64 {
        if self.infinite > delta {
            return f64::INFINITY;
        }
        // With A the mass from point k on and B the same weighted by e^-(loss - loss_k), delta at an
        // epsilon between points k - 1 and k is infinite + A - B e^(epsilon - loss_k), plus the rounding term. Likewise
        // with the squared weights, whose sum is S_0 - 2 S_1 + S_2 with S_i = sum of untilt² e^-i(loss - epsilon).
        let (mut mass, mut weighted, mut squares) = (0.0, 0.0, [0.0; 3]);
        let decay = (-self.width).exp();
        for at in (0..self.tilted.len()).rev() {
            let (untilt, loss) = (self.untilt(at), self.loss(at));
            mass += untilt * self.tilted[at];
            weighted = untilt * self.tilted[at] + decay * weighted;
            squares[0] += untilt * untilt;
            squares[1] = untilt * untilt + squares[1] * decay;
            squares[2] = untilt * untilt + squares[2] * decay * decay;
            let square = squares[0] - 2.0 * decay * squares[1] + decay * decay * squares[2];
            let fixed = self.infinite + square.max(0.0).sqrt() * self.rounding;
            if fixed + mass - decay * weighted > delta {
                let back = ((fixed + mass - delta) / weighted).ln();
                return if back.is_nan() { loss.max(0.0) } else { (loss + back.min(0.0)).max(0.0) };
            }
            if loss <= 0.0 {
                return 0.0;
            }
        }
        // All of the window fits: its lower end is an upper bound.
        (self.loss(0) - self.width).max(0.0)
    }
}

/// How far to change the tilt, down and up, for the tightest Chernoff bounds at [`OUTSIDE`] of the tilted loss.
fn best_tilts(composition: &Composition, theta: f64) -> (f64, f64) {
    let (at_theta, _, variance) = composition.moments(theta);
    let (mut down, mut up) = ((f64::NEG_INFINITY, 1.0), (f64::INFINITY, 1.0));
    for power in -4..=10 {
        let s = f64::powi(1.5, power) / variance.sqrt().max(1e-150);
        let low = (at_theta - composition.moments(theta - s).0 + OUTSIDE.ln()) / s;
        let high = (composition.moments(theta + s).0 - at_theta - OUTSIDE.ln()) / s;
        if low > down.0 {
            down = (low, s);
        }
        if high < up.0 {
            up = (high, s);
        }
    }
    (down.1, up.1)
}

/// The least length from `wanted` on that is 1, 3, 5 or 9 times a power of two, at most [`MAX_POINTS`].
fn fast_length(wanted: usize) -> usize {
    let candidates = [1usize, 3, 5, 9].into_iter().map(|odd| {
        let mut length = odd;
        while length < wanted {
            length *= 2;
        }
        length
    });
    candidates.filter(|length| *length >= 8).min().unwrap_or(8).min(MAX_POINTS)
}
