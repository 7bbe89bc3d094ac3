//! What the rules promise, for arbitrary groups.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use medinet_robust::{Means, NormLimit, Rule, Weiszfeld, partition};
use proptest::prelude::*;

const LENGTH: usize = 3;

fn vector(range: f32) -> impl Strategy<Value = Vec<f32>> {
    prop::collection::vec(-range..range, LENGTH)
}

/// Good groups within 1 of a common point, bad ones anywhere, fewer than the good.
#[derive(Debug, Clone)]
struct Scene {
    good: Vec<Vec<f32>>,
    bad: Vec<Vec<f32>>,
    bad_weights: Vec<f64>,
}

impl Scene {
    fn all(&self) -> Vec<Vec<f32>> {
        self.good.iter().chain(&self.bad).cloned().collect()
    }

    /// Least and largest value of the good groups at a coordinate.
    fn range(&self, index: usize) -> (f32, f32) {
        let values = self.good.iter().map(|group| group[index]);
        (values.clone().fold(f32::INFINITY, f32::min), values.fold(f32::NEG_INFINITY, f32::max))
    }

    fn inside(&self, result: &[f32]) -> bool {
        result.iter().enumerate().all(|(index, value)| {
            let (low, high) = self.range(index);
            (low..=high).contains(value)
        })
    }

    fn centre(&self) -> Vec<f64> {
        let mean = |index: usize| {
            self.good.iter().map(|group| f64::from(group[index])).sum::<f64>() / self.good.len() as f64
        };
        (0..LENGTH).map(mean).collect()
    }

    /// Largest distance of a good group from their centre.
    fn radius(&self) -> f64 {
        self.good.iter().map(|group| distance(&self.centre(), group)).fold(0.0, f64::max)
    }
}

fn distance(a: &[f64], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, &b)| (a - f64::from(b)).powi(2)).sum::<f64>().sqrt()
}

/// `margin`: good groups are at least as many as bad ones and this many.
fn scene(margin: usize) -> impl Strategy<Value = Scene> {
    (0usize..5, 0usize..4).prop_flat_map(move |(bad, more)| {
        let anything = prop_oneof![vector(2.0), vector(1e3), vector(1e30)];
        (
            vector(5.0),
            prop::collection::vec(vector(1.0), bad + margin + more),
            prop::collection::vec(anything, bad),
            prop::collection::vec(1e-6f64..1e12, bad),
        )
            .prop_map(|(centre, spread, bad, bad_weights)| {
                let good = spread
                    .into_iter()
                    .map(|group| group.iter().zip(&centre).map(|(a, b)| a + b).collect())
                    .collect();
                Scene { good, bad, bad_weights }
            })
    })
}

fn rules(faulty: usize) -> Vec<Rule> {
    vec![
        Rule::Mean,
        Rule::Median,
        Rule::TrimmedMean { faulty },
        Rule::GeometricMedian(Weiszfeld::default()),
        Rule::Krum { faulty },
        Rule::MultiKrum { faulty },
    ]
}

proptest! {
    #[test]
    fn median_and_trimmed_mean_stay_within_the_good_values(scene in scene(1)) {
        let means = Means::equal(scene.all()).unwrap();
        prop_assert!(scene.inside(&means.median()));
        let trimmed = means.trimmed_mean(scene.bad.len()).unwrap();
        prop_assert!(scene.inside(&trimmed), "{trimmed:?}");
    }

    #[test]
    fn claimed_weights_do_not_get_past_trimming(scene in scene(1)) {
        let weights: Vec<f64> = scene.good.iter().map(|_| 1.0).chain(scene.bad_weights.iter().copied()).collect();
        let means = Means::weighted(scene.all(), &weights).unwrap();
        prop_assert!(scene.inside(&means.trimmed_mean(scene.bad.len()).unwrap()));
    }

    #[test]
    fn the_geometric_median_breaks_down_at_a_half_only(scene in scene(1)) {
        let settings = Weiszfeld { iterations: 2000, ..Weiszfeld::default() };
        let means = Means::equal(scene.all()).unwrap();
        let result = means.geometric_median(&settings).unwrap();
        let share = scene.bad.len() as f64 / means.count() as f64;
        let bound = scene.radius() * 2.0 * (1.0 - share) / (1.0 - 2.0 * share);
        // Float32 and a finite number of iterations.
        prop_assert!(distance(&scene.centre(), &result) <= bound * 1.05 + 1e-3, "{result:?}, {bound}");
    }

    #[test]
    fn the_geometric_median_is_no_worse_than_any_group(scene in scene(1)) {
        let groups = scene.good.clone();
        let means = Means::equal(groups.clone()).unwrap();
        let result: Vec<f64> = means.geometric_median(&Weiszfeld::default()).unwrap().into_iter().map(f64::from).collect();
        let objective = |point: &[f64]| groups.iter().map(|group| distance(point, group)).sum::<f64>();
        for group in &groups {
            let group: Vec<f64> = group.iter().copied().map(f64::from).collect();
            prop_assert!(objective(&result) <= objective(&group) + 1e-4);
        }
    }

    #[test]
    fn what_krum_takes_has_as_many_neighbours_as_a_good_group(scene in scene(3)) {
        // The argument of proposition 1: a good group has n - f - 2 neighbours among the good, so the score of what is
        // chosen is at most its score, and at least one of its own neighbours is good: no further than that score allows.
        let faulty = scene.bad.len();
        let means = Means::equal(scene.all()).unwrap();
        let chosen = means.krum(faulty).unwrap();
        let neighbours = (means.count() - faulty - 2) as f64;
        let largest = neighbours * (2.0 * scene.radius()).powi(2);
        let chosen: Vec<f64> = chosen.mean.into_iter().map(f64::from).collect();
        let nearest = scene.good.iter().map(|group| distance(&chosen, group)).fold(f64::INFINITY, f64::min);
        prop_assert!(nearest.powi(2) <= largest * 1.001 + 1e-6, "{nearest}, {largest}");
    }

    #[test]
    fn far_groups_are_not_in_multi_krums_mean(scene in scene(3), far in prop::collection::vec(100f32..1e6, 5)) {
        // Bad groups apart from everybody, each other too: none is chosen, and the mean is the good ones'.
        let faulty = scene.bad.len();
        let outliers = far.iter().take(faulty).enumerate();
        let bad: Vec<Vec<f32>> = outliers.map(|(i, far)| vec![far * 10f32.powi(i as i32 + 1); LENGTH]).collect();
        let scene = Scene { bad, ..scene };
        let means = Means::equal(scene.all()).unwrap();
        let selection = means.multi_krum(faulty, scene.good.len()).unwrap();
        prop_assert!(selection.groups.iter().all(|group| *group < scene.good.len()));
        prop_assert!(distance(&scene.centre(), &selection.mean) < 1e-4);
    }

    #[test]
    fn no_rule_sees_the_order_of_groups(scene in scene(3), seed in any::<[u8; 32]>(), clip in 0.1f64..100.0) {
        let groups = scene.all();
        // A permutation: pairs of a partition, one after another.
        let order: Vec<usize> = partition(&seed, groups.len(), 2).unwrap().into_iter().flatten().collect();
        let weight = |index: usize| 1.0 + (index % 3) as f64;
        let of = |order: &[usize]| {
            let weights: Vec<f64> = order.iter().map(|&index| weight(index)).collect();
            Means::weighted(order.iter().map(|&index| groups[index].clone()).collect(), &weights).unwrap()
        };
        let straight: Vec<usize> = (0..groups.len()).collect();
        for rule in rules(scene.bad.len()) {
            for limit in [NormLimit::Unlimited, NormLimit::Fixed(clip), NormLimit::MedianTimes(2.0)] {
                let (a, b) = (rule.combine(of(&straight), limit), rule.combine(of(&order), limit));
                prop_assert_eq!(a.unwrap(), b.unwrap());
            }
        }
    }

    #[test]
    fn equal_groups_are_what_every_rule_gives(group in vector(10.0), count in 5usize..9) {
        for rule in rules(1) {
            let result = rule.combine(Means::equal(vec![group.clone(); count]).unwrap(), NormLimit::Unlimited).unwrap();
            for (value, expected) in result.iter().zip(&group) {
                prop_assert!((value - expected).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn a_norm_limit_bounds_what_bad_groups_move(scene in scene(1), limit in 0.1f64..10.0) {
        let moved = |groups: Vec<Vec<f32>>| Rule::Mean.combine(Means::equal(groups).unwrap(), NormLimit::Fixed(limit)).unwrap();
        let honest: Vec<Vec<f32>> = scene.good.iter().cloned().chain(scene.bad.iter().map(|_| vec![0.0; LENGTH])).collect();
        let base: Vec<f64> = moved(honest).into_iter().map(f64::from).collect();
        let share = scene.bad.len() as f64 / scene.all().len() as f64;
        prop_assert!(distance(&base, &moved(scene.all())) <= share * limit + 1e-4);
    }

    #[test]
    fn partitions_deal_out_every_site_once(seed in any::<[u8; 32]>(), sites in 1usize..200, least in 1usize..20) {
        prop_assume!(sites >= least);
        let groups = partition(&seed, sites, least).unwrap();
        prop_assert_eq!(groups.len(), sites / least);
        let sizes = groups.iter().map(Vec::len);
        prop_assert!(sizes.clone().min().unwrap() >= least);
        prop_assert!(sizes.clone().max().unwrap() - sizes.min().unwrap() <= 1);
        let mut all: Vec<usize> = groups.into_iter().flatten().collect();
        all.sort_unstable();
        prop_assert_eq!(all, (0..sites).collect::<Vec<_>>());
    }
}
