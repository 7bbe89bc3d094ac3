//! Rules that look at each coordinate on its own (Yin et al. 2018).

use crate::{Means, RobustError};

/// Coordinates that are turned at a time: groups times this many values stay in the cache.
const BLOCK: usize = 1024;

impl Means {
    /// The coordinate-wise median (Yin et al. 2018, definition 1), weighted: with the values of a coordinate in ascending
    /// order, the least one up to which there is more than half of the weight, or the middle between two where one of them
    /// ends exactly at half. With equal weights that is the usual median.
    ///
    /// Breakdown: while bad groups have less than half of the weight, every coordinate is within the range of the good
    /// groups' values.
    #[must_use]
    pub fn median(&self) -> Vec<f32> {
        let half = self.groups().iter().map(|group| group.weight).sum::<f64>() / 2.0;
        self.by_coordinate(|column| median_of(column, half))
    }

    /// The coordinate-wise trimmed mean (Yin et al. 2018, definition 2): of each coordinate the `trim` largest and the
    /// `trim` smallest values are dropped, and the rest is averaged by weight. `trim` is the paper's beta m.
    ///
    /// Trimming counts groups, not weight: while at most `trim` groups are bad, every coordinate is within the range of the
    /// good groups' values, whatever weights the bad ones claim.
    ///
    /// # Errors
    /// When nothing would be left: with fewer than `2 trim + 1` groups.
    pub fn trimmed_mean(&self, trim: usize) -> Result<Vec<f32>, RobustError> {
        let needed = trim.saturating_mul(2).saturating_add(1);
        if self.count() < needed {
            let rule = "trimmed mean";
            return Err(RobustError::TooFewGroups { rule, faulty: trim, needed, got: self.count() });
        }
        Ok(self.by_coordinate(|column| {
            let kept = &column[trim..column.len() - trim];
            let largest = kept.iter().map(|(_, weight)| *weight).fold(f64::MIN_POSITIVE, f64::max);
            let (sum, total) = kept.iter().fold((0.0, 0.0), |(sum, total), (value, weight)| {
                let weight = weight / largest;
                (sum + f64::from(*value) * weight, total + weight)
            });
            // Rounding may not lead out of the range of what is left.
            ((sum / total) as f32).clamp(kept[0].0, kept[kept.len() - 1].0)
        }))
    }

    /// Applies `rule` to each coordinate's values in ascending order, with their weights.
    fn by_coordinate(&self, rule: impl Fn(&[(f32, f64)]) -> f32) -> Vec<f32> {
        let groups = self.groups();
        let mut result = Vec::with_capacity(self.parameters());
        let mut column: Vec<(f32, f64)> = Vec::with_capacity(groups.len());
        let mut block: Vec<(f32, f64)> = Vec::with_capacity(groups.len() * BLOCK);
        for start in (0..self.parameters()).step_by(BLOCK) {
            let end = (start + BLOCK).min(self.parameters());
            block.clear();
            for group in groups {
                block.extend(group.values[start..end].iter().map(|&value| (value, group.weight)));
            }
            for offset in 0..end - start {
                column.clear();
                column.extend(block.iter().skip(offset).step_by(end - start));
                column.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
                result.push(rule(&column));
            }
        }
        result
    }
}

/// The weighted median of ascending values; `half` is half of all weight.
fn median_of(column: &[(f32, f64)], half: f64) -> f32 {
    let mut below = 0.0;
    for (index, &(value, weight)) in column.iter().enumerate() {
        below += weight;
        if below > half {
            return value;
        }
        if below == half {
            let next = column.get(index + 1).map_or(value, |next| next.0);
            return (f64::midpoint(f64::from(value), f64::from(next))) as f32;
        }
    }
    // Reached only when rounding has made the running sum end below half of itself.
    column[column.len() - 1].0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(values: &[f32]) -> Means {
        Means::equal(values.iter().map(|&value| vec![value]).collect()).unwrap()
    }

    #[test]
    fn the_median_of_odd_and_even_numbers() {
        assert_eq!(column(&[3.0, 1.0, 2.0]).median(), [2.0]);
        assert_eq!(column(&[3.0, 1.0, 2.0, 10.0]).median(), [2.5]);
        assert_eq!(column(&[7.0]).median(), [7.0]);
    }

    #[test]
    fn the_weighted_median_splits_the_weight() {
        let of = |weights: &[f64]| {
            Means::weighted(vec![vec![1.0], vec![2.0], vec![3.0]], weights).unwrap().median()[0]
        };
        assert_eq!([of(&[1.0, 1.0, 1.0]), of(&[5.0, 1.0, 1.0]), of(&[1.0, 1.0, 5.0])], [2.0, 1.0, 3.0]);
        assert_eq!([of(&[2.0, 1.0, 1.0]), of(&[1.0, 1.0, 2.0])], [1.5, 2.5]);
    }

    #[test]
    fn the_trimmed_mean_drops_both_ends() {
        // Definition 2 with m = 5 and beta = 1/5.
        let means = column(&[100.0, 2.0, 4.0, 6.0, -50.0]);
        assert_eq!(means.trimmed_mean(1).unwrap(), [4.0]);
        assert_eq!(means.trimmed_mean(0).unwrap(), means.mean());
        assert_eq!(means.trimmed_mean(2).unwrap(), means.median());
        let few = means.trimmed_mean(3).unwrap_err();
        assert_eq!(few, RobustError::TooFewGroups { rule: "trimmed mean", faulty: 3, needed: 7, got: 5 });
        assert!(few.to_string().contains("at least 7 groups, got 5"));
    }

    #[test]
    fn blocks_do_not_show() {
        let group = |shift: f32| (0..2 * BLOCK + 7).map(|index| index as f32 + shift).collect::<Vec<f32>>();
        let means = Means::equal(vec![group(1.0), group(-1.0), group(0.0)]).unwrap();
        assert_eq!(means.median(), group(0.0));
        assert_eq!(means.trimmed_mean(1).unwrap(), group(0.0));
    }
}
