//! How a site trains in a round.

use medinet_privacy::DpSgdPlan;
use serde::{Deserialize, Serialize};

/// The local training that a round asks of each site. Without privacy it determines, with the site's data and the base
/// model, the result bit by bit on CPUs with the same vector instructions.
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
    /// Private training (DP-SGD): its sampling, clipping and noise, in place of shuffled epochs; none trains without
    /// noise. With it `local_epochs` is 1, for its steps say how long the round is; `batch_size` is how many images are
    /// computed at once, and nothing else; the learning rate falls over its steps; and neither `class_balance` nor
    /// `early_stopping_epochs` may look at the site's images.
    #[serde(default)]
    pub privacy: Option<DpSgdPlan>,
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

/// A training plan that no site could follow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("training plan: {field}: expected {expected}, got {got}")]
pub struct PlanError {
    field: &'static str,
    expected: &'static str,
    got: String,
}

impl TrainingPlan {
    /// Checks every field against the range that its documentation states.
    ///
    /// # Errors
    /// Names the field, what was expected and what it holds.
    pub fn check(&self) -> Result<(), PlanError> {
        let count = |field, expected, value: u32, range: std::ops::RangeInclusive<u32>| {
            let error = PlanError { field, expected, got: value.to_string() };
            if range.contains(&value) { Ok(()) } else { Err(error) }
        };
        let real = |field, expected, value: f32, good: bool| {
            let error = PlanError { field, expected, got: value.to_string() };
            if value.is_finite() && good { Ok(()) } else { Err(error) }
        };
        count("local_epochs", "1 to 100", self.local_epochs, 1..=100)?;
        count("batch_size", "1 to 1024", self.batch_size, 1..=1024)?;
        let (rate, decay, mu) = (self.learning_rate, self.weight_decay, self.proximal_mu);
        real("learning_rate", "above 0, at most 10", rate, rate > 0.0 && rate <= 10.0)?;
        real("momentum", "0 to below 1", self.momentum, (0.0..1.0).contains(&self.momentum))?;
        real("weight_decay", "0 to 1", decay, (0.0..=1.0).contains(&decay))?;
        real("proximal_mu", "0 to 1000", mu, (0.0..=1000.0).contains(&mu))?;
        let change = &self.augmentation;
        let half = 0.0..=0.5;
        real(
            "augmentation.shift_fraction",
            "0 to 0.5",
            change.shift_fraction,
            half.contains(&change.shift_fraction),
        )?;
        real(
            "augmentation.rotate_degrees",
            "0 to 180",
            change.rotate_degrees,
            (0.0..=180.0).contains(&change.rotate_degrees),
        )?;
        real(
            "augmentation.scale_fraction",
            "0 to 0.5",
            change.scale_fraction,
            half.contains(&change.scale_fraction),
        )?;
        real(
            "augmentation.brightness",
            "0 to 10",
            change.brightness,
            (0.0..=10.0).contains(&change.brightness),
        )?;
        real(
            "augmentation.contrast",
            "0 to below 1",
            change.contrast,
            (0.0..1.0).contains(&change.contrast),
        )?;
        match &self.privacy {
            Some(privacy) => self.check_private(privacy),
            None => Ok(()),
        }
    }

    /// What would make the result depend on patients beyond what the accountant counts.
    fn check_private(&self, privacy: &DpSgdPlan) -> Result<(), PlanError> {
        let refused = |field, expected, got: String| Err(PlanError { field, expected, got });
        if self.local_epochs != 1 {
            let expected = "1 with privacy, whose steps say how long a round is";
            return refused("local_epochs", expected, self.local_epochs.to_string());
        }
        if self.class_balance != ClassBalance::None {
            let expected = "none with privacy, for the weights would be counts of the site's patients";
            return refused("class_balance", expected, "weighted-loss".to_owned());
        }
        if self.early_stopping_epochs != 0 {
            let expected = "0 with privacy, for the epoch that is kept would depend on the site's patients";
            return refused("early_stopping_epochs", expected, self.early_stopping_epochs.to_string());
        }
        match privacy.check() {
            Ok(()) => Ok(()),
            Err(error) => {
                let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
                let got = format!("{error}{}", source.unwrap_or_default());
                refused("privacy", "steps that cost what the plan says", got)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use medinet_privacy::{Delta, Epsilon, NoiseMultiplier, SamplingRate};

    fn plan() -> TrainingPlan {
        TrainingPlan {
            local_epochs: 1,
            batch_size: 32,
            learning_rate: 0.05,
            momentum: 0.9,
            weight_decay: 1e-4,
            proximal_mu: 0.0,
            augmentation: Augmentation::none(),
            class_balance: ClassBalance::None,
            early_stopping_epochs: 0,
            seed: 1,
            privacy: None,
        }
    }

    #[test]
    fn a_plan_outside_its_ranges_is_refused_by_field() {
        let plan = plan();
        assert_eq!(plan.check(), Ok(()));
        let refused = |change: fn(&mut TrainingPlan)| {
            let mut bad = plan.clone();
            change(&mut bad);
            bad.check().unwrap_err().to_string()
        };
        assert_eq!(refused(|p| p.local_epochs = 0), "training plan: local_epochs: expected 1 to 100, got 0");
        assert!(refused(|p| p.batch_size = 1025).contains("batch_size"));
        assert!(refused(|p| p.learning_rate = f32::NAN).contains("learning_rate"));
        assert!(refused(|p| p.momentum = 1.0).contains("momentum"));
        assert!(refused(|p| p.weight_decay = -0.1).contains("weight_decay"));
        assert!(refused(|p| p.proximal_mu = f32::INFINITY).contains("proximal_mu"));
        assert!(refused(|p| p.augmentation.contrast = 1.0).contains("contrast"));
    }

    #[test]
    fn a_private_plan_may_not_look_at_patients_beside_its_steps() {
        let privacy = DpSgdPlan {
            epsilon: Epsilon::new(2.0).unwrap(),
            delta: Delta::new(1e-5).unwrap(),
            noise_multiplier: NoiseMultiplier::new(1.0).unwrap(),
            clip_norm: 1.0,
            sampling_rate: SamplingRate::new(0.01).unwrap(),
            steps: 100,
        };
        let plan = TrainingPlan { privacy: Some(privacy), ..plan() };
        assert_eq!(plan.check(), Ok(()));
        let refused = |change: fn(&mut TrainingPlan)| {
            let mut bad = plan.clone();
            change(&mut bad);
            bad.check().unwrap_err().to_string()
        };
        assert!(refused(|p| p.local_epochs = 2).contains("local_epochs"));
        assert!(refused(|p| p.class_balance = ClassBalance::WeightedLoss).contains("class_balance"));
        assert!(refused(|p| p.early_stopping_epochs = 1).contains("early_stopping_epochs"));
        let understated = refused(|p| {
            p.privacy.as_mut().unwrap().epsilon = Epsilon::new(0.1).unwrap();
        });
        assert!(understated.contains("privacy") && understated.contains("epsilon"), "{understated}");
        assert!(refused(|p| p.privacy.as_mut().unwrap().clip_norm = 0.0).contains("clip norm"));
    }
}
