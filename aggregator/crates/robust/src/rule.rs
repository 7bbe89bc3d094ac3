//! The rules as a setting.

use crate::{Means, RobustError, Weiszfeld};
use serde::{Deserialize, Serialize};

/// How the groups' means become one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// The weighted mean. Withstands no bad group; a norm limit before it bounds what one can do.
    Mean,
    /// [`Means::median`].
    Median,
    /// [`Means::trimmed_mean`].
    TrimmedMean {
        /// Groups dropped at each end of each coordinate.
        faulty: usize,
    },
    /// [`Means::geometric_median`].
    GeometricMedian(Weiszfeld),
    /// [`Means::krum`].
    Krum {
        /// Bad groups that are feared.
        faulty: usize,
    },
    /// [`Means::multi_krum`] of all groups but the feared ones.
    MultiKrum {
        /// Bad groups that are feared.
        faulty: usize,
    },
}

/// The largest L2 norm that a group's mean may have before the rule; longer ones are scaled down.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NormLimit {
    /// None.
    Unlimited,
    /// A fixed norm, above 0.
    Fixed(f64),
    /// This many times the groups' median norm; above 0. Needs no setting per network; bad groups cannot raise it beyond a
    /// good one's norm while they are fewer than half.
    MedianTimes(f64),
}

impl Rule {
    /// Applies the norm limit, then the rule; the result is `[parameters]`.
    ///
    /// # Errors
    /// When there are too few groups for the rule, or a setting is outside its range.
    pub fn combine(&self, means: Means, limit: NormLimit) -> Result<Vec<f32>, RobustError> {
        let means = match limit {
            NormLimit::Unlimited => means,
            NormLimit::Fixed(limit) => means.clipped(limit)?,
            NormLimit::MedianTimes(times) => {
                if !(times.is_finite() && times > 0.0) {
                    let setting = "times the median norm";
                    let expected = "a finite number above 0";
                    return Err(RobustError::Setting { setting, expected, got: times });
                }
                // A median of 0 means that half of the groups learned nothing; then the others may not move the model either.
                let limit = means.median_norm() * times;
                means.clipped(limit.max(f64::from(f32::MIN_POSITIVE)))?
            }
        };
        match self {
            Self::Mean => Ok(means.mean()),
            Self::Median => Ok(means.median()),
            Self::TrimmedMean { faulty } => means.trimmed_mean(*faulty),
            Self::GeometricMedian(settings) => means.geometric_median(settings),
            Self::Krum { faulty } => Ok(means.krum(*faulty)?.mean),
            Self::MultiKrum { faulty } => {
                let selected = means.count().saturating_sub(*faulty).max(1);
                Ok(means.multi_krum(*faulty, selected)?.mean)
            }
        }
    }

    /// The most bad groups of `groups` equal ones that the rule withstands as set; none where it cannot be applied.
    #[must_use]
    pub fn withstands(&self, groups: usize) -> Option<usize> {
        match self {
            Self::Mean => (groups > 0).then_some(0),
            Self::Median | Self::GeometricMedian(_) => groups.checked_sub(1).map(|others| others / 2),
            Self::TrimmedMean { faulty } => (groups > faulty.saturating_mul(2)).then_some(*faulty),
            Self::Krum { faulty } | Self::MultiKrum { faulty } => {
                (groups >= faulty.saturating_mul(2).saturating_add(3)).then_some(*faulty)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_rule_withstands_is_what_it_accepts() {
        let groups = |count: usize| Means::equal(vec![vec![1.0]; count]).unwrap();
        for faulty in 0..4 {
            for rule in [Rule::TrimmedMean { faulty }, Rule::Krum { faulty }, Rule::MultiKrum { faulty }] {
                for count in 1..12 {
                    let combined = rule.combine(groups(count), NormLimit::Unlimited);
                    assert_eq!(combined.is_ok(), rule.withstands(count).is_some(), "{rule:?}, {count}");
                }
            }
        }
        assert_eq!(Rule::Median.withstands(5), Some(2));
        assert_eq!(Rule::GeometricMedian(Weiszfeld::default()).withstands(4), Some(1));
        assert_eq!((Rule::Mean.withstands(1), Rule::Median.withstands(0)), (Some(0), None));
    }

    #[test]
    fn norm_limits_come_first() {
        let means = || Means::equal(vec![vec![1.0], vec![2.0], vec![90.0]]).unwrap();
        let mean = |limit| Rule::Mean.combine(means(), limit);
        assert_eq!(mean(NormLimit::Unlimited).unwrap(), [31.0]);
        assert!((mean(NormLimit::Fixed(3.0)).unwrap()[0] - 2.0).abs() < 1e-6);
        assert!((mean(NormLimit::MedianTimes(1.5)).unwrap()[0] - 2.0).abs() < 1e-6);
        assert!(mean(NormLimit::MedianTimes(0.0)).is_err() && mean(NormLimit::Fixed(f64::NAN)).is_err());
        let zeros = Means::equal(vec![vec![0.0], vec![0.0], vec![90.0]]).unwrap();
        assert!(Rule::Mean.combine(zeros, NormLimit::MedianTimes(2.0)).unwrap()[0] < 1e-30);
    }
}
