//! How a site trains in a round.

use serde::{Deserialize, Serialize};

/// The local training that a round asks of each site. With the site's data and the base model it
/// determines the result bit by bit on the CPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingPlan {
    /// Passes over the site's training split, 1 to 100.
    pub local_epochs: u32,
    /// Images per step, 1 to 1024.
    pub batch_size: u32,
    /// Step size of stochastic gradient descent at the start of the round; falls to a tenth by a cosine over it.
    pub learning_rate: f32,
    /// Momentum, 0 to below 1.
    pub momentum: f32,
    /// Decoupled weight decay per step, relative to the learning rate.
    pub weight_decay: f32,
    /// Weight of FedProx's proximal term (Li et al. 2020, eq. 2); 0 is plain FedAvg.
    pub proximal_mu: f32,
    /// Random changes of each training image.
    pub augmentation: Augmentation,
    /// What is done about classes of unequal size.
    pub class_balance: ClassBalance,
    /// Epochs without a better validation loss after which a site stops and keeps its best; 0 never stops early.
    pub early_stopping_epochs: u32,
    /// Seeds shuffling and augmentation, mixed with site, round and epoch.
    pub seed: u64,
}

/// Random changes of training images; each range is symmetric and drawn uniformly.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Augmentation {
    /// Mirror left and right with probability one half. Off where sides matter, as in chest X-rays.
    pub flip_horizontal: bool,
    /// Largest shift as a fraction of the side, 0 to 0.5.
    pub shift_fraction: f32,
    /// Largest rotation in degrees, 0 to 180.
    pub rotate_degrees: f32,
    /// Largest change of scale as a fraction, 0 to 0.5.
    pub scale_fraction: f32,
    /// Largest change of brightness, in units of the normalised image.
    pub brightness: f32,
    /// Largest relative change of contrast, 0 to below 1.
    pub contrast: f32,
}

/// What is done about classes of unequal size in a site's training split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClassBalance {
    /// Nothing.
    None,
    /// The loss of each class is weighted by the inverse of its share.
    WeightedLoss,
}

impl Augmentation {
    /// No change at all.
    #[must_use]
    pub fn none() -> Self {
        Self {
            flip_horizontal: false,
            shift_fraction: 0.0,
            rotate_degrees: 0.0,
            scale_fraction: 0.0,
            brightness: 0.0,
            contrast: 0.0,
        }
    }
}
