//! The geometric median (Pillutla, Kakade, Harchaoui 2022).

use crate::{Means, RobustError};
use serde::{Deserialize, Serialize};

/// How exactly the geometric median is found.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Weiszfeld {
    /// Smoothing nu, an L2 distance above 0: within it of a group's mean the distance is replaced by a parabola.
    pub smoothing: f64,
    /// Most iterations, at least 1. The paper finds 3 enough; more cost little on the server.
    pub iterations: u32,
    /// Ends when a step is shorter than this part of the distance to the nearest group (or of `smoothing`); 0 or more.
    pub tolerance: f64,
}

impl Default for Weiszfeld {
    /// The paper's smoothing of 1e-6, to six digits or so.
    fn default() -> Self {
        Self { smoothing: 1e-6, iterations: 200, tolerance: 1e-6 }
    }
}

impl Weiszfeld {
    fn check(&self) -> Result<(), RobustError> {
        let wrong = |setting, expected, got| Err(RobustError::Setting { setting, expected, got });
        if !(self.smoothing.is_finite() && self.smoothing > 0.0) {
            return wrong("smoothing", "a finite number above 0", self.smoothing);
        }
        if self.iterations == 0 {
            return wrong("iterations", "at least 1", 0.0);
        }
        if !(self.tolerance.is_finite() && self.tolerance >= 0.0) {
            return wrong("tolerance", "a finite number of at least 0", self.tolerance);
        }
        Ok(())
    }
}

impl Means {
    /// The geometric median, `argmin_v sum_i a_i |v - v_i|` with weights `a_i`, by the smoothed Weiszfeld algorithm
    /// (Pillutla et al. 2022, algorithm 2):
    ///
    /// ```text
    /// b_i = a_i / max(nu, |v - v_i|),   v <- sum_i b_i v_i / sum_i b_i
    /// ```
    ///
    /// from the coordinate-wise median, so that far outliers do not have to be walked back from.
    ///
    /// Breakdown: while bad groups have a share e < 1/2 of the weight and good ones are within r of some point c, the
    /// minimiser is within `r 2 (1 - e) / (1 - 2 e)` of c (Lopuhaä and Rousseeuw 1991, theorem 2.2; the paper's lemma 2).
    ///
    /// # Errors
    /// When a setting is outside its range.
    pub fn geometric_median(&self, settings: &Weiszfeld) -> Result<Vec<f32>, RobustError> {
        settings.check()?;
        let mut point: Vec<f64> = self.median().into_iter().map(f64::from).collect();
        for _ in 0..settings.iterations {
            let mut nearest = f64::INFINITY;
            let mut coefficients = Vec::with_capacity(self.count());
            for (index, group) in self.groups().iter().enumerate() {
                let distance = distance(&point, &group.values).max(settings.smoothing);
                nearest = nearest.min(distance);
                coefficients.push((index, group.weight / distance));
            }
            let next = self.combination(&coefficients);
            let step = next.iter().zip(&point).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
            point = next;
            if step <= settings.tolerance * nearest {
                break;
            }
        }
        Ok(point.into_iter().map(|value| value as f32).collect())
    }
}

fn distance(point: &[f64], values: &[f32]) -> f64 {
    point.iter().zip(values).map(|(a, &b)| (a - f64::from(b)).powi(2)).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometric(groups: Vec<Vec<f32>>, weights: &[f64]) -> Vec<f32> {
        Means::weighted(groups, weights).unwrap().geometric_median(&Weiszfeld::default()).unwrap()
    }

    #[test]
    fn of_a_triangle_it_is_the_fermat_point() {
        // All angles of a triangle below 120 degrees: the sides are seen from it under 120 degrees each.
        let triangle = [[0.0f32, 0.0], [4.0, 0.0], [1.0, 3.0]];
        let point = geometric(triangle.iter().map(|corner| corner.to_vec()).collect(), &[1.0; 3]);
        let towards = |corner: &[f32; 2]| {
            let (x, y) = (corner[0] - point[0], corner[1] - point[1]);
            let length = x.hypot(y);
            (x / length, y / length)
        };
        let sum = triangle.iter().map(towards).fold((0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1));
        assert!(sum.0.hypot(sum.1) < 1e-4, "{sum:?}");
    }

    #[test]
    fn on_a_line_it_is_the_median_and_at_a_heavy_point_that_point() {
        let line = geometric(vec![vec![0.0, 0.0], vec![1.0, 1.0], vec![50.0, 50.0]], &[1.0; 3]);
        assert!(line.iter().all(|value| (value - 1.0).abs() < 1e-3), "{line:?}");
        let heavy = geometric(vec![vec![0.0, 5.0], vec![1.0, 0.0], vec![3.0, 3.0]], &[5.0, 1.0, 1.0]);
        assert!(heavy[0].abs() < 1e-3 && (heavy[1] - 5.0).abs() < 1e-3, "{heavy:?}");
        assert_eq!(geometric(vec![vec![2.0, 3.0]], &[1.0]), [2.0, 3.0]);
    }

    #[test]
    fn settings_outside_their_ranges_are_refused() {
        let means = Means::equal(vec![vec![1.0]]).unwrap();
        let good = Weiszfeld::default();
        for wrong in [
            Weiszfeld { smoothing: 0.0, ..good },
            Weiszfeld { iterations: 0, ..good },
            Weiszfeld { tolerance: f64::NAN, ..good },
        ] {
            assert!(matches!(means.geometric_median(&wrong), Err(RobustError::Setting { .. })));
        }
    }
}
