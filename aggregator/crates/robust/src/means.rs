//! The groups' means, checked and in an order of their own.

use crate::RobustError;
use std::cmp::Ordering;

/// Means of groups: at least one vector, all of one length and finite, each with a weight above 0.
///
/// They are kept in an order that depends on their content alone (first by values, then by weight), so that no rule's
/// result depends on the order in which groups are given: not even by rounding, nor by the way ties are broken.
#[derive(Debug, Clone, PartialEq)]
pub struct Means {
    /// In canonical order.
    groups: Vec<Group>,
    length: usize,
}

/// The mean of one group.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Group {
    pub(crate) values: Vec<f32>,
    pub(crate) weight: f64,
    /// Its place in what the caller gave.
    pub(crate) index: usize,
}

impl Means {
    /// Takes means that all count the same; `groups[i]` is the mean delta of group i, `[parameters]`.
    ///
    /// This is the constructor for rules that have to withstand poisoning: a weight is what sites say of themselves, and a
    /// weighted rule withstands less than half of the *weight*, which one liar can claim.
    ///
    /// # Errors
    /// When there is no group, lengths differ, or a value is not finite.
    pub fn equal(groups: Vec<Vec<f32>>) -> Result<Self, RobustError> {
        let weights = vec![1.0; groups.len()];
        Self::weighted(groups, &weights)
    }

    /// Takes means with weights, of any unit (examples, as a rule), one a group.
    ///
    /// # Errors
    /// As [`Means::equal`], and when a weight is missing, not finite, or not above 0.
    pub fn weighted(groups: Vec<Vec<f32>>, weights: &[f64]) -> Result<Self, RobustError> {
        let length = groups.first().ok_or(RobustError::NoGroups)?.len();
        if groups.len() != weights.len() {
            return Err(RobustError::Weights { groups: groups.len(), weights: weights.len() });
        }
        let mut checked = Vec::with_capacity(groups.len());
        for (index, (values, &weight)) in groups.into_iter().zip(weights).enumerate() {
            if values.len() != length {
                return Err(RobustError::Length { group: index, expected: length, got: values.len() });
            }
            if let Some(at) = values.iter().position(|value| !value.is_finite()) {
                return Err(RobustError::NotFinite { group: index, index: at, got: values[at] });
            }
            if !(weight.is_finite() && weight > 0.0) {
                return Err(RobustError::Weight { group: index, got: weight });
            }
            checked.push(Group { values, weight, index });
        }
        checked.sort_by(canonical);
        Ok(Self { groups: checked, length })
    }

    /// Number of groups, at least 1.
    #[must_use]
    pub fn count(&self) -> usize {
        self.groups.len()
    }

    /// Length of each vector.
    #[must_use]
    pub fn parameters(&self) -> usize {
        self.length
    }

    pub(crate) fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// L2 norms of the groups, in ascending order.
    #[must_use]
    pub fn norms(&self) -> Vec<f64> {
        let mut norms: Vec<f64> = self.groups.iter().map(|group| norm(&group.values)).collect();
        norms.sort_by(f64::total_cmp);
        norms
    }

    /// The median of the groups' L2 norms; of an even number the lower one. As long as fewer than half of the groups are
    /// bad it is at most the largest norm of a good one.
    #[must_use]
    pub fn median_norm(&self) -> f64 {
        self.norms()[(self.count() - 1) / 2]
    }

    /// The same means, each scaled down to an L2 norm of at most `limit` (Sun et al. 2019, section 5.1):
    ///
    /// ```text
    /// v_i <- v_i min(1, limit / |v_i|)
    /// ```
    ///
    /// Of a group under secure aggregation it is the mean that is bounded, not the sites: one of `k` sites can put
    /// `k limit` into it, less what the others cancel.
    ///
    /// # Errors
    /// When `limit` is not finite or not above 0.
    pub fn clipped(self, limit: f64) -> Result<Self, RobustError> {
        if !(limit.is_finite() && limit > 0.0) {
            let setting = "norm limit";
            return Err(RobustError::Setting { setting, expected: "a finite number above 0", got: limit });
        }
        let mut groups = self.groups;
        for group in &mut groups {
            let norm = norm(&group.values);
            if norm > limit {
                let factor = limit / norm;
                group.values.iter_mut().for_each(|value| *value = (f64::from(*value) * factor) as f32);
            }
        }
        groups.sort_by(canonical);
        Ok(Self { groups, length: self.length })
    }

    /// The weighted mean of all groups, with sums in double precision.
    #[must_use]
    pub fn mean(&self) -> Vec<f32> {
        self.mean_of(&(0..self.count()).collect::<Vec<_>>())
    }

    /// The weighted mean of some groups, by their canonical indices; at least one.
    pub(crate) fn mean_of(&self, chosen: &[usize]) -> Vec<f32> {
        let coefficients: Vec<(usize, f64)> =
            chosen.iter().map(|&index| (index, self.groups[index].weight)).collect();
        self.combination(&coefficients).into_iter().map(|value| value as f32).collect()
    }

    /// `sum_i c_i v_i / sum_i c_i`; coefficients above 0, by canonical index. Coefficients are scaled by their sum first,
    /// so that large ones do not overflow.
    pub(crate) fn combination(&self, coefficients: &[(usize, f64)]) -> Vec<f64> {
        let largest = coefficients.iter().map(|(_, c)| *c).fold(f64::MIN_POSITIVE, f64::max);
        let total: f64 = coefficients.iter().map(|(_, c)| c / largest).sum();
        let mut sum = vec![0.0f64; self.length];
        for &(index, coefficient) in coefficients {
            let share = coefficient / largest / total;
            for (sum, &value) in sum.iter_mut().zip(&self.groups[index].values) {
                *sum += share * f64::from(value);
            }
        }
        sum
    }
}

fn canonical(a: &Group, b: &Group) -> Ordering {
    let by_values = a.values.iter().zip(&b.values).map(|(a, b)| a.total_cmp(b)).find(|order| order.is_ne());
    by_values.unwrap_or(Ordering::Equal).then(a.weight.total_cmp(&b.weight)).then(a.index.cmp(&b.index))
}

/// L2 norm, summed in double precision.
pub(crate) fn norm(values: &[f32]) -> f64 {
    values.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_combined_is_refused() {
        assert_eq!(Means::equal(vec![]), Err(RobustError::NoGroups));
        let lengths = Means::equal(vec![vec![1.0], vec![1.0, 2.0]]);
        assert_eq!(lengths, Err(RobustError::Length { group: 1, expected: 1, got: 2 }));
        let infinite = Means::equal(vec![vec![1.0, 1.0], vec![1.0, f32::INFINITY]]);
        assert_eq!(infinite, Err(RobustError::NotFinite { group: 1, index: 1, got: f32::INFINITY }));
        assert!(matches!(Means::equal(vec![vec![f32::NAN]]), Err(RobustError::NotFinite { .. })));
        let missing = Means::weighted(vec![vec![1.0]], &[]);
        assert_eq!(missing, Err(RobustError::Weights { groups: 1, weights: 0 }));
        for weight in [0.0, -1.0, f64::INFINITY, f64::NAN] {
            assert!(matches!(Means::weighted(vec![vec![1.0]], &[weight]), Err(RobustError::Weight { .. })));
        }
        assert!(Means::equal(vec![vec![1.0]]).unwrap().clipped(0.0).is_err());
    }

    #[test]
    fn the_mean_is_weighted_and_norms_are_bounded() {
        let means = Means::weighted(vec![vec![4.0, 1.0], vec![0.0, 1.0]], &[1.0, 3.0]).unwrap();
        assert_eq!(means.mean(), [1.0, 1.0]);
        let means = Means::equal(vec![vec![3.0, 4.0], vec![0.3, 0.4], vec![0.0, 100.0]]).unwrap();
        assert!((means.median_norm() - 5.0).abs() < 1e-6);
        let clipped = means.clipped(1.0).unwrap();
        let expected = [0.5, 1.0, 1.0];
        assert!(clipped.norms().iter().zip(expected).all(|(norm, expected)| (norm - expected).abs() < 1e-6));
        let huge = Means::weighted(vec![vec![1.0], vec![3.0]], &[f64::MAX, f64::MAX]).unwrap();
        assert_eq!(huge.mean(), [2.0]);
    }
}
