//! Patients, their images, and Poisson sampling of patients.

use crate::units::SamplingRate;
use rand_core::CryptoRng;
use std::collections::BTreeMap;
use std::ops::Range;

/// The images of each patient, by position in a data set. Holds positions alone, no keys.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PatientGroups {
    images: Vec<usize>,
    ends: Vec<usize>,
}

/// A sampling rate as an integer t: a uniform 64-bit number is below t with probability t / 2^64, at most the rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SamplingThreshold(u128);

impl SamplingThreshold {
    /// Rounds the rate down to a multiple of 2^-64, so that no patient is taken more often than the accountant counts.
    #[must_use]
    pub fn new(rate: SamplingRate) -> Self {
        // Exact: scaling by a power of two loses nothing, and the cast truncates.
        Self((rate.get() * f64::powi(2.0, 64)) as u128)
    }

    /// True with exactly that probability.
    pub fn draw(self, rng: &mut impl CryptoRng) -> bool {
        u128::from(rng.next_u64()) < self.0
    }
}

impl PatientGroups {
    /// Groups images by patient: `patients` has one key per image, in the order of the data set. The patients' order is
    /// that of their keys.
    pub fn new<K: Ord>(patients: impl IntoIterator<Item = K>) -> Self {
        let mut by_patient: BTreeMap<K, Vec<usize>> = BTreeMap::new();
        for (image, patient) in patients.into_iter().enumerate() {
            by_patient.entry(patient).or_default().push(image);
        }
        let mut groups = Self::default();
        for images in by_patient.into_values() {
            groups.images.extend(images);
            groups.ends.push(groups.images.len());
        }
        groups
    }

    /// Number of patients.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is no patient.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    fn range(&self, patient: usize) -> Range<usize> {
        let start = if patient == 0 { 0 } else { self.ends[patient - 1] };
        start..self.ends[patient]
    }

    /// Positions of a patient's images; `patient` below [`PatientGroups::len`].
    #[must_use]
    pub fn images(&self, patient: usize) -> &[usize] {
        &self.images[self.range(patient)]
    }

    /// A Poisson sample: every patient independently with the threshold's probability, in the order of patients. One
    /// draw for each, whatever comes out.
    pub fn sample(&self, threshold: SamplingThreshold, rng: &mut impl CryptoRng) -> Vec<usize> {
        (0..self.len()).filter(|_| threshold.draw(rng)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::ChaCha12Rng;
    use rand_core::SeedableRng;

    #[test]
    fn images_of_a_patient_stay_together() {
        let groups = PatientGroups::new(["b", "a", "b", "c", "a", "b"]);
        assert_eq!(groups.len(), 3);
        assert_eq!(
            (groups.images(0), groups.images(1), groups.images(2)),
            (&[1, 4][..], &[0, 2, 5][..], &[3][..])
        );
        assert!(PatientGroups::new(Vec::<u32>::new()).is_empty());
    }

    #[test]
    fn rates_are_rounded_down_and_one_takes_all() {
        let threshold = |rate| SamplingThreshold::new(SamplingRate::new(rate).unwrap());
        assert_eq!(threshold(1.0).0, 1 << 64);
        assert_eq!(threshold(0.5).0, 1 << 63);
        assert_eq!(threshold(1e-30).0, 0);
        let mut rng = ChaCha12Rng::from_seed([1; 32]);
        let groups = PatientGroups::new(0..100u32);
        assert_eq!(groups.sample(threshold(1.0), &mut rng).len(), 100);
    }

    #[test]
    fn samples_have_the_binomials_mean_and_variance_and_are_independent() {
        let groups = PatientGroups::new(0..500u32);
        let threshold = SamplingThreshold::new(SamplingRate::new(0.1).unwrap());
        let mut rng = ChaCha12Rng::from_seed([2; 32]);
        let rounds = 4000;
        let (mut sum, mut square, mut both) = (0.0, 0.0, 0.0);
        for _ in 0..rounds {
            let sample = groups.sample(threshold, &mut rng);
            let n = sample.len() as f64;
            sum += n;
            square += n * n;
            both += f64::from(u8::from(sample.contains(&3) && sample.contains(&4)));
        }
        let (mean, rounds) = (sum / f64::from(rounds), f64::from(rounds));
        let variance = square / rounds - mean * mean;
        assert!((mean - 50.0).abs() < 5.0 * (45.0 / rounds).sqrt(), "{mean}");
        assert!((variance - 45.0).abs() < 5.0 * 45.0 * (2.0 / rounds).sqrt(), "{variance}");
        assert!((both / rounds - 0.01).abs() < 5.0 * (0.01 / rounds).sqrt(), "{both}");
    }
}
