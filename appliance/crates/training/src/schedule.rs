//! What is drawn or computed per epoch and step from the plan alone: order, augmentation seeds, learning rate.

use medinet_types::Digest;
use rand_chacha::ChaCha12Rng;
use rand_core::{Rng, SeedableRng};

/// Keys of everything random in one site's training.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Randomness {
    pub(crate) plan_seed: u64,
    pub(crate) site_seed: u64,
}

impl Randomness {
    fn key(self, purpose: &[u8], epoch: u32, image: u64) -> Digest {
        Digest::of_parts(&[
            b"medinet training 1",
            purpose,
            &self.plan_seed.to_le_bytes(),
            &self.site_seed.to_le_bytes(),
            &epoch.to_le_bytes(),
            &image.to_le_bytes(),
        ])
    }

    /// The order of an epoch: a uniform permutation of `0..len` (Fisher-Yates).
    pub(crate) fn order(self, epoch: u32, len: usize) -> Vec<usize> {
        let mut random = ChaCha12Rng::from_seed(self.key(b"order", epoch, 0).0);
        let mut order: Vec<usize> = (0..len).collect();
        for last in (1..len).rev() {
            // A 64-bit product instead of a remainder: the bias is below len / 2^64.
            let pick = (u128::from(random.next_u64()) * (last as u128 + 1)) >> 64;
            order.swap(last, pick as usize);
        }
        order
    }

    /// The random source of one image's augmentation in one epoch, whatever batch or thread it falls to.
    pub(crate) fn augmentation(self, epoch: u32, image: usize) -> ChaCha12Rng {
        ChaCha12Rng::from_seed(self.key(b"augmentation", epoch, image as u64).0)
    }
}

/// Learning rate of a step: half a cosine from `start` at step 0 to a tenth of it at the last step
/// (Loshchilov & Hutter 2017, eq. 5, without restarts).
pub(crate) fn learning_rate(start: f32, step: u64, steps: u64) -> f32 {
    let progress = step as f64 / steps.saturating_sub(1).max(1) as f64;
    let cosine = 0.5 * (1.0 + (std::f64::consts::PI * progress).cos());
    (f64::from(start) * (0.1 + 0.9 * cosine)) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANDOMNESS: Randomness = Randomness { plan_seed: 1, site_seed: 2 };

    #[test]
    fn an_epoch_visits_every_image_once_and_epochs_differ() {
        let mut first = RANDOMNESS.order(0, 1000);
        assert_ne!(first, RANDOMNESS.order(1, 1000));
        assert_eq!(first, RANDOMNESS.order(0, 1000));
        first.sort_unstable();
        assert_eq!(first, (0..1000).collect::<Vec<_>>());
        assert!(RANDOMNESS.order(0, 0).is_empty());
    }

    #[test]
    fn augmentation_depends_on_image_epoch_and_site() {
        let draw = |randomness: Randomness, epoch, image| randomness.augmentation(epoch, image).next_u64();
        let first = draw(RANDOMNESS, 0, 0);
        let other_site = Randomness { site_seed: 3, ..RANDOMNESS };
        for other in [draw(RANDOMNESS, 0, 1), draw(RANDOMNESS, 1, 0), draw(other_site, 0, 0)] {
            assert_ne!(first, other);
        }
    }

    #[test]
    fn the_learning_rate_falls_to_a_tenth() {
        assert_eq!(learning_rate(0.2, 0, 11), 0.2);
        assert!((learning_rate(0.2, 5, 11) - 0.11).abs() < 1e-7);
        assert!((learning_rate(0.2, 10, 11) - 0.02).abs() < 1e-8);
        assert_eq!(learning_rate(0.2, 0, 1), 0.2);
    }
}
