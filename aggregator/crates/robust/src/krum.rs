//! Krum and multi-Krum (Blanchard, El Mhamdi, Guerraoui, Stainer 2017).

use crate::{Means, RobustError};

/// What multi-Krum chose and made of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Selection {
    /// Indices of the chosen groups, as they were given, best score first.
    pub groups: Vec<usize>,
    /// Their weighted mean, `[parameters]`.
    pub mean: Vec<f32>,
}

impl Means {
    /// Krum (Blanchard et al. 2017, section 4): the group's mean with the least score
    ///
    /// ```text
    /// s(i) = sum over the n - f - 2 groups j closest to i of |v_i - v_j|^2
    /// ```
    ///
    /// Weights have no part in it.
    ///
    /// # Errors
    /// When there are fewer than `2 faulty + 3` groups, below which proposition 1 promises nothing.
    pub fn krum(&self, faulty: usize) -> Result<Selection, RobustError> {
        self.multi_krum(faulty, 1)
    }

    /// Multi-Krum (section 4, "m-Krum"): the weighted mean of the `selected` groups with the least scores. Among equal
    /// scores the order is that of the values, so that it does not depend on how groups are numbered.
    ///
    /// # Errors
    /// When there are fewer than `2 faulty + 3` groups, or `selected` is not 1 to n - `faulty`: among more there are bad
    /// ones for certain, if there are as many as feared.
    pub fn multi_krum(&self, faulty: usize, selected: usize) -> Result<Selection, RobustError> {
        let needed = faulty.saturating_mul(2).saturating_add(3);
        if self.count() < needed {
            return Err(RobustError::TooFewGroups { rule: "Krum", faulty, needed, got: self.count() });
        }
        if !(1..=self.count() - faulty).contains(&selected) {
            let expected = "1 to the number of groups less the bad ones";
            return Err(RobustError::Setting { setting: "selected groups", expected, got: selected as f64 });
        }
        let scores = self.krum_scores(self.count() - faulty - 2);
        let mut order: Vec<usize> = (0..self.count()).collect();
        order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]).then(a.cmp(&b)));
        order.truncate(selected);
        let groups = order.iter().map(|&index| self.groups()[index].index).collect();
        // Summed in canonical order.
        order.sort_unstable();
        Ok(Selection { groups, mean: self.mean_of(&order) })
    }

    /// Sum of the squared distances to the `closest` other groups, of each group in canonical order.
    fn krum_scores(&self, closest: usize) -> Vec<f64> {
        let groups = self.groups();
        // In the same order of coordinates both ways, so that the distance is the same both ways, bit by bit.
        let square = |a: usize, b: usize| -> f64 {
            let pairs = groups[a].values.iter().zip(&groups[b].values);
            pairs.map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum()
        };
        let mut others: Vec<Vec<f64>> = vec![Vec::new(); groups.len()];
        for (a, b) in (0..groups.len()).flat_map(|b| (0..b).map(move |a| (a, b))) {
            let square = square(a, b);
            others[a].push(square);
            others[b].push(square);
        }
        let score = |mut squares: Vec<f64>| {
            squares.sort_by(f64::total_cmp);
            squares.iter().take(closest).sum()
        };
        others.into_iter().map(score).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(points: &[[f32; 2]]) -> Means {
        Means::equal(points.iter().map(|point| point.to_vec()).collect()).unwrap()
    }

    #[test]
    fn krum_takes_the_least_sum_of_squares() {
        // n = 5, f = 1: two closest neighbours. Scores: (1,0): 1 + 1; (0,0): 1 + 1.21; (0,1.1) has 1.21 + 2.21; far ones more.
        let means = points(&[[0.0, 1.1], [0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [50.0, 50.0]]);
        let krum = means.krum(1).unwrap();
        assert_eq!((krum.groups, krum.mean), (vec![2], vec![1.0, 0.0]));
        let three = means.multi_krum(1, 2).unwrap();
        assert_eq!((three.groups, three.mean), (vec![2, 1], vec![0.5, 0.0]));
    }

    #[test]
    fn all_good_groups_of_multi_krum_are_averaged_by_weight() {
        let groups = vec![vec![1.0f32], vec![2.0], vec![3.0], vec![2.5], vec![1000.0]];
        let means = Means::weighted(groups, &[1.0, 1.0, 1.0, 5.0, 100.0]).unwrap();
        let selection = means.multi_krum(1, 4).unwrap();
        assert!(!selection.groups.contains(&4));
        assert!((selection.mean[0] - (1.0 + 2.0 + 3.0 + 12.5) / 8.0).abs() < 1e-6);
    }

    #[test]
    fn too_few_groups_and_too_many_selected_are_refused() {
        let means = points(&[[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]);
        let few = means.krum(1).unwrap_err();
        assert_eq!(few, RobustError::TooFewGroups { rule: "Krum", faulty: 1, needed: 5, got: 4 });
        assert!(means.krum(0).is_ok());
        assert!(matches!(means.multi_krum(0, 5), Err(RobustError::Setting { .. })));
        assert!(matches!(means.multi_krum(0, 0), Err(RobustError::Setting { .. })));
        assert!(matches!(means.krum(usize::MAX), Err(RobustError::TooFewGroups { .. })));
    }
}
