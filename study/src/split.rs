//! Dealing a data set out among sites: by patient, reproducibly, evenly or not.

use crate::data::Images;
use crate::random;
use anyhow::{Result, ensure};
use rand_core::Rng;
use std::collections::BTreeMap;

/// How images are dealt out among sites. The same plan and images give the same sites.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SplitPlan {
    /// Number of sites, 1 to 1,000.
    pub sites: usize,
    /// Skew of labels: each class is shared out by a draw from a symmetric Dirichlet distribution of this concentration, above 0 (Hsu, Qi, Brown 2019).
    /// 0.3 is strong, 10 is weak. None: every site gets the set's mix.
    pub label_skew: Option<f64>,
    /// Skew of sizes: site i gets a share in proportion to `(i + 1)^-size_skew`, 0 to 3. 0 is even.
    pub size_skew: f64,
    /// Seed.
    pub seed: u64,
}

impl SplitPlan {
    /// Even shares of the set's mix.
    #[must_use]
    pub fn even(sites: usize, seed: u64) -> Self {
        Self { sites, label_skew: None, size_skew: 0.0, seed }
    }

    /// Deals the images out; each patient goes to one site, whole. A site that would be left without any gets one patient of the largest site.
    ///
    /// # Errors
    /// When the plan is outside its ranges, or there are fewer patients than sites.
    pub fn deal(&self, images: &Images) -> Result<Vec<Images>> {
        ensure!((1..=1000).contains(&self.sites), "expected 1 to 1000 sites, got {}", self.sites);
        ensure!(
            (0.0..=3.0).contains(&self.size_skew),
            "expected a size skew of 0 to 3, got {}",
            self.size_skew
        );
        ensure!(
            self.label_skew.is_none_or(|alpha| (1e-3..=1e6).contains(&alpha)),
            "expected a label skew of 0.001 to 1000000, got {:?}",
            self.label_skew
        );
        let mut dealt: Vec<Vec<Vec<usize>>> = vec![Vec::new(); self.sites];
        for (class, mut patients) in patients_by_class(images) {
            let mut random = random(self.seed, "deal", &[class as u64]);
            shuffle(&mut random, &mut patients);
            let shares = self.shares(&mut random);
            // Each patient goes to the site that is furthest below its share of this class.
            let mut have = vec![0.0f64; self.sites];
            for patient in patients {
                let size = patient.len() as f64;
                let need = |site: usize| (have[site] + size) / shares[site].max(1e-12);
                let site = (0..self.sites).min_by(|a, b| need(*a).total_cmp(&need(*b))).unwrap_or(0);
                have[site] += size;
                dealt[site].push(patient);
            }
        }
        while let Some(empty) = dealt.iter().position(Vec::is_empty) {
            let largest = (0..self.sites).max_by_key(|site| dealt[*site].len()).unwrap_or(0);
            ensure!(dealt[largest].len() > 1, "fewer patients than {} sites", self.sites);
            let moved = dealt[largest].pop().into_iter();
            dealt[empty].extend(moved);
        }
        Ok(dealt
            .into_iter()
            .map(|patients| {
                let mut indices: Vec<usize> = patients.into_iter().flatten().collect();
                indices.sort_unstable();
                images.select(&indices)
            })
            .collect())
    }

    /// Shares of a class, not scaled to any sum.
    fn shares(&self, random: &mut impl Rng) -> Vec<f64> {
        let size = |site: usize| ((site + 1) as f64).powf(-self.size_skew);
        (0..self.sites)
            .map(|site| size(site) * self.label_skew.map_or(1.0, |alpha| gamma(random, alpha)))
            .collect()
    }
}

/// Indices of each patient's images, by the class of the first.
fn patients_by_class(images: &Images) -> BTreeMap<usize, Vec<Vec<usize>>> {
    let mut by_patient: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for (index, patient) in images.patients().iter().enumerate() {
        by_patient.entry(*patient).or_default().push(index);
    }
    let mut by_class: BTreeMap<usize, Vec<Vec<usize>>> = BTreeMap::new();
    for indices in by_patient.into_values() {
        by_class.entry(images.classes()[indices[0]]).or_default().push(indices);
    }
    by_class
}

fn shuffle<T>(random: &mut impl Rng, items: &mut [T]) {
    for last in (1..items.len()).rev() {
        let pick = (u128::from(random.next_u64()) * (last as u128 + 1)) >> 64;
        items.swap(last, pick as usize);
    }
}

/// Uniform between 0 and 1, never 0.
fn uniform(random: &mut impl Rng) -> f64 {
    ((random.next_u64() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
}

fn normal(random: &mut impl Rng) -> f64 {
    (-2.0 * uniform(random).ln()).sqrt() * (2.0 * std::f64::consts::PI * uniform(random)).cos()
}

/// A draw from the gamma distribution of shape `alpha` and scale 1 (Marsaglia and Tsang 2000).
fn gamma(random: &mut impl Rng, alpha: f64) -> f64 {
    if alpha < 1.0 {
        return gamma(random, alpha + 1.0) * uniform(random).powf(1.0 / alpha);
    }
    let d = alpha - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let x = normal(random);
        let v = (1.0 + c * x).powi(3);
        if v > 0.0 && uniform(random).ln() < 0.5 * x * x + d - d * v + d * v.ln() {
            return d * v;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use medinet_model::InputShape;
    use std::collections::BTreeSet;

    /// Patients of one to three images; a third of the patients are of class 0.
    fn images(patients: u32) -> Images {
        let shape = InputShape { channels: 1, height: 28, width: 28 };
        let of: Vec<u32> =
            (0..patients).flat_map(|patient| (0..=patient % 3).map(move |_| patient)).collect();
        let classes = of.iter().map(|patient| usize::from(patient % 3 != 0)).collect();
        Images::new(shape, vec![0.0; 784 * of.len()], classes, of).unwrap()
    }

    #[test]
    fn every_image_is_dealt_once_and_no_patient_twice() {
        let all = images(300);
        for label_skew in [None, Some(0.3)] {
            let plan = SplitPlan { sites: 7, label_skew, size_skew: 0.5, seed: 3 };
            let sites = plan.deal(&all).unwrap();
            assert_eq!(sites, plan.deal(&all).unwrap());
            assert_ne!(sites, SplitPlan { seed: 4, ..plan }.deal(&all).unwrap());
            assert_eq!(sites.iter().map(Images::len).sum::<usize>(), all.len());
            let mut seen = BTreeSet::new();
            for site in &sites {
                let own: BTreeSet<u32> = site.patients().iter().copied().collect();
                assert!(!own.is_empty() && own.iter().all(|patient| seen.insert(*patient)));
            }
        }
    }

    #[test]
    fn even_shares_are_even_and_skewed_ones_are_not() {
        let all = images(3000);
        let share = |site: &Images| site.classes().iter().sum::<usize>() as f64 / site.len() as f64;
        let even = SplitPlan::even(10, 1).deal(&all).unwrap();
        let whole = share(&all);
        assert!(
            even.iter().all(|site| (share(site) - whole).abs() < 0.02 && (590..=610).contains(&site.len()))
        );
        let skewed = SplitPlan { label_skew: Some(0.3), ..SplitPlan::even(10, 1) }.deal(&all).unwrap();
        assert!(skewed.iter().any(|site| (share(site) - whole).abs() > 0.15));
        let sizes = SplitPlan { size_skew: 1.0, ..SplitPlan::even(10, 1) }.deal(&all).unwrap();
        let ratio = sizes[0].len() as f64 / sizes[9].len() as f64;
        assert!((9.0..11.0).contains(&ratio), "{ratio}");
    }

    #[test]
    fn no_site_stays_empty_and_impossible_plans_are_refused() {
        let strong = SplitPlan { label_skew: Some(0.01), ..SplitPlan::even(10, 1) };
        assert!(strong.deal(&images(40)).unwrap().iter().all(|site| !site.is_empty()));
        assert!(SplitPlan::even(10, 1).deal(&images(9)).is_err());
        assert!(SplitPlan::even(0, 1).deal(&images(9)).is_err());
        let negative = SplitPlan { label_skew: Some(-1.0), ..SplitPlan::even(2, 1) };
        assert!(negative.deal(&images(9)).is_err());
    }

    #[test]
    fn gamma_draws_have_the_mean_and_the_variance_of_their_shape() {
        let mut random = random(1, "test", &[]);
        for alpha in [0.3, 1.0, 5.0] {
            let draws: Vec<f64> = (0..20_000).map(|_| gamma(&mut random, alpha)).collect();
            let mean = draws.iter().sum::<f64>() / 20_000.0;
            let variance = draws.iter().map(|draw| (draw - mean).powi(2)).sum::<f64>() / 20_000.0;
            assert!((mean / alpha - 1.0).abs() < 0.06, "{alpha}: {mean}");
            assert!((variance / alpha - 1.0).abs() < 0.15, "{alpha}: {variance}");
        }
    }
}
