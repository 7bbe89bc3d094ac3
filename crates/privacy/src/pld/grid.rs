//! The connect-the-dots discretisation of one step's privacy loss.

use super::step::Step;

/// The most points of a grid.
pub(super) const MAX_CELLS: f64 = 4e6;

/// Masses at multiples of a step width, and the mass at infinity.
pub(super) struct Grid {
    /// Index of the first mass: its loss is `first * width`.
    pub(super) first: i64,
    /// Masses at consecutive multiples of the width.
    pub(super) masses: Vec<f64>,
    /// Mass of infinite loss.
    pub(super) infinite: f64,
}

impl Grid {
    /// Discretises a step's loss to multiples of `width`.
    pub(super) fn new(step: &Step, width: f64) -> Self {
        let (low, high) = step.range();
        let index = |loss: f64| (loss / width).floor();
        let (first, last) = (index(step.loss(low)), index(step.loss(high)));
        let mut masses = vec![0.0; (last - first) as usize + 2];
        // The mass below the range goes to the grid point above the range's least loss.
        masses[1] += step.low_mass();
        let up_at_width = -(-width).exp_m1();
        let (mut from, mut cell) = (low, first);
        while from < high {
            let end = step.position((cell + 1.0) * width);
            let to = if end.is_nan() { high } else { end }.min(high).min(from + step.longest_piece());
            // Rounding can put a cell's end before its beginning: then the cell is empty.
            if to > from {
                let at = (cell - first) as usize;
                step.quadrature(from, to, |loss, mass| {
                    let above = (loss - cell * width).clamp(0.0, width);
                    let up = mass * (-(-above).exp_m1() / up_at_width);
                    masses[at + 1] += up;
                    masses[at] += mass - up;
                });
                from = to;
            }
            if end <= from {
                cell += 1.0;
                if cell > last {
                    break;
                }
            }
        }
        Self { first: first as i64, masses, infinite: step.infinite_mass() }
    }

    /// ln E[e^(theta L)] over finite losses.
    pub(super) fn log_moment(&self, theta: f64, width: f64) -> f64 {
        let loss = |at: usize| (self.first + at as i64) as f64 * width;
        let term = |at: usize, mass: f64| theta * loss(at) + mass.ln();
        let terms = || self.masses.iter().enumerate().filter(|(_, m)| **m > 0.0).map(|(at, m)| term(at, *m));
        let top = terms().fold(f64::NEG_INFINITY, f64::max);
        top + terms().map(|t| (t - top).exp()).sum::<f64>().ln()
    }
}

#[cfg(test)]
mod tests {
    use super::super::step::Direction;
    use super::*;

    #[test]
    fn both_masses_are_kept() {
        // P-mass 1 and Q-mass E[e^-L] = 1 where Q is absolutely continuous.
        for direction in Direction::BOTH {
            for (q, sigma) in [(0.01, 0.5), (0.3, 1.0), (0.9, 5.0), (1e-4, 20.0)] {
                let step = Step::new(q, sigma, direction, 1e-25);
                let width = 1e-3 * q / sigma;
                let grid = Grid::new(&step, width);
                let mass: f64 = grid.masses.iter().sum();
                assert!((mass - 1.0).abs() < 1e-12, "{direction:?} {q} {sigma}: P-mass {mass}");
                let other = grid.log_moment(-1.0, width).exp();
                assert!((other - 1.0).abs() < 1e-9, "{direction:?} {q} {sigma}: Q-mass {other}");
                assert!(grid.masses.iter().all(|m| *m >= 0.0));
            }
        }
    }
}
