//! What becomes of the sums of groups: a rule over their means that withstands bad ones.

use medinet_robust::{Means, NormLimit, RobustError, Rule};
use serde::{Deserialize, Serialize};

/// How the groups' means become the round's mean delta, and how many there must be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct GroupRule {
    /// The rule. Under [`Rule::Mean`] groups weigh by their training images, as in one sum of all. Under every other rule they
    /// weigh the same: what a group claims to have is the word of its sites, and a bad one would claim the most.
    pub rule: Rule,
    /// The largest norm of a group's mean before the rule.
    pub norm_limit: NormLimit,
    /// Bad groups that the rule must withstand; a round without sums of enough groups for that gives no model. 0 for the mean.
    pub faulty: usize,
}

impl Default for GroupRule {
    /// The mean of all groups.
    fn default() -> Self {
        Self { rule: Rule::Mean, norm_limit: NormLimit::Unlimited, faulty: 0 }
    }
}

/// The mean of one group.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct GroupMean {
    /// The mean delta, in canonical order.
    pub(crate) delta: Vec<f32>,
    /// Training images behind it, as its sites say.
    pub(crate) examples: u64,
}

impl GroupRule {
    /// The least number of groups with which the rule withstands `faulty` bad ones; `None` when it never does.
    #[must_use]
    pub fn least_groups(&self) -> Option<usize> {
        // All rules but the mean withstand f of 2 f + 3 groups.
        let most = self.faulty.checked_mul(2)?.checked_add(3)?;
        (1..=most).find(|groups| self.rule.withstands(*groups).is_some_and(|bad| bad >= self.faulty))
    }

    /// The round's mean delta.
    ///
    /// # Errors
    /// When there are too few groups for the rule, or a mean holds what no rule can order.
    pub(crate) fn combine(&self, groups: Vec<GroupMean>) -> Result<Vec<f32>, RobustError> {
        let weights: Vec<f64> = groups.iter().map(|group| group.examples as f64).collect();
        let deltas = groups.into_iter().map(|group| group.delta).collect();
        let means = match self.rule {
            Rule::Mean => Means::weighted(deltas, &weights)?,
            _ => Means::equal(deltas)?,
        };
        self.rule.combine(means, self.norm_limit)
    }
}

/// The median of the groups' mean norms; of an even number the lower one, and none of none. As long as fewer than half of the groups are bad
/// they cannot raise it above what a good one says.
pub(crate) fn median_norm(mut norms: Vec<f32>) -> Option<f32> {
    norms.sort_by(f32::total_cmp);
    norms.get(norms.len().saturating_sub(1) / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(rule: Rule, faulty: usize) -> GroupRule {
        GroupRule { rule, norm_limit: NormLimit::Unlimited, faulty }
    }

    fn groups(values: &[(f32, u64)]) -> Vec<GroupMean> {
        values.iter().map(|&(value, examples)| GroupMean { delta: vec![value], examples }).collect()
    }

    #[test]
    fn a_rule_needs_as_many_groups_as_it_takes_to_withstand_the_bad_ones() {
        assert_eq!(rule(Rule::Mean, 0).least_groups(), Some(1));
        assert_eq!(rule(Rule::Mean, 1).least_groups(), None);
        assert_eq!(rule(Rule::Median, 1).least_groups(), Some(3));
        assert_eq!(rule(Rule::TrimmedMean { faulty: 2 }, 2).least_groups(), Some(5));
        assert_eq!(rule(Rule::Krum { faulty: 1 }, 1).least_groups(), Some(5));
        assert_eq!(rule(Rule::Krum { faulty: 1 }, 2).least_groups(), None);
    }

    #[test]
    fn groups_weigh_by_images_in_the_mean_only() {
        let given = || groups(&[(1.0, 1), (2.0, 3), (300.0, 1_000_000)]);
        assert_eq!(rule(Rule::Mean, 0).combine(groups(&[(1.0, 1), (2.0, 3)])).unwrap(), [1.75]);
        assert_eq!(rule(Rule::Median, 1).combine(given()).unwrap(), [2.0]);
        assert!(rule(Rule::TrimmedMean { faulty: 2 }, 2).combine(given()).is_err());
    }

    #[test]
    fn the_median_norm_is_the_lower_one_of_two() {
        assert_eq!(median_norm(vec![3.0, 1.0, 100.0, 2.0]), Some(2.0));
        assert_eq!(median_norm(vec![3.0]), Some(3.0));
        assert_eq!(median_norm(vec![]), None);
    }
}
