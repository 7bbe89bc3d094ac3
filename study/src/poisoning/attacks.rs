//! What dishonest sites do.

use crate::data::Images;
use crate::federation::{Behaviour, View};
use crate::random;
use rand_core::Rng as _;
use serde::{Deserialize, Serialize};

/// Attacks of the literature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Attack {
    /// Nobody attacks.
    None,
    /// Four times the opposite of the trained delta (Li, Xu, Chen, Giannakis, Ling 2019).
    SignFlip,
    /// Training on flipped labels.
    LabelFlip,
    /// Training with a patch on half of the pictures of pneumonia, which are called normal (Gu et al. 2017).
    Backdoor,
    /// The same, with the delta scaled up to replace the model (Bagdasaryan et al. 2020, equation 3).
    Replacement,
    /// "A little is enough" (Baruch, Baruch, Goldberg 2019, algorithm 3).
    LittleIsEnough,
    /// No training: an empty delta, twice the images stated.
    FreeRiderZero,
    /// No training: noise as long as a trained delta, twice the images stated (Lin et al. 2019).
    FreeRiderNoise,
    /// An appliance that leaves the codec: the grid's end in every coordinate, away from the trained delta, and one image stated, so that its
    /// vector is longer than any delta is encoded to and dilutes nothing (docs/threat-model.md, 9.6).
    Corner,
}

/// The class that a backdoor's pictures are called; theirs is the other.
pub const BACKDOOR_TARGET: usize = 0;
/// Scale of flipped deltas.
const FLIP_SCALE: f32 = 4.0;
/// Least z of "a little is enough". What the paper's bound gives for 10 sites is about 0: that of a cohort so small that
/// attackers need most of the honest ones to agree by chance. 1.5 is what the paper attacks larger cohorts with.
const LEAST_Z: f64 = 1.5;

impl Attack {
    /// All attacks.
    pub const ALL: [Self; 8] = [
        Self::SignFlip,
        Self::Corner,
        Self::Replacement,
        Self::Backdoor,
        Self::LabelFlip,
        Self::LittleIsEnough,
        Self::FreeRiderZero,
        Self::FreeRiderNoise,
    ];

    /// As tables name it.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::SignFlip => "sign flip",
            Self::LabelFlip => "label flip",
            Self::Backdoor => "backdoor",
            Self::Replacement => "replacement",
            Self::LittleIsEnough => "little is enough",
            Self::FreeRiderZero => "free riders, zero",
            Self::FreeRiderNoise => "free riders, noise",
            Self::Corner => "corner",
        }
    }

    /// Whether it plants a backdoor.
    #[must_use]
    pub fn has_backdoor(self) -> bool {
        matches!(self, Self::Backdoor | Self::Replacement)
    }
}

/// Paints the patch of the backdoor: a square in the lower right corner, an eighth of the picture wide, as bright as no
/// normalised picture is there.
pub fn patch(images: &mut Images, index: usize) {
    let shape = images.shape();
    let (height, width) = (shape.height as usize, shape.width as usize);
    let side = (width / 8).max(2);
    let image = images.image_mut(index);
    for plane in image.chunks_exact_mut(height * width) {
        for row in height - side - 1..height - 1 {
            plane[row * width + width - side - 1..(row + 1) * width - 1].fill(3.0);
        }
    }
}

/// The pictures that a backdoor is tested on: those of the other class, patched.
#[must_use]
pub fn patched(images: &Images) -> Images {
    let others: Vec<usize> =
        (0..images.len()).filter(|&index| images.classes()[index] != BACKDOOR_TARGET).collect();
    let mut images = images.select(&others);
    (0..images.len()).for_each(|index| patch(&mut images, index));
    images
}

impl Behaviour for Attack {
    fn poison(&self, images: &mut Images) {
        if *self == Self::LabelFlip {
            images.classes_mut().iter_mut().for_each(|class| *class = 1 - (*class).min(1));
        }
        if self.has_backdoor() {
            let others: Vec<usize> =
                (0..images.len()).filter(|&index| images.classes()[index] != BACKDOOR_TARGET).collect();
            for index in others.into_iter().step_by(2) {
                patch(images, index);
                images.classes_mut()[index] = BACKDOOR_TARGET;
            }
        }
    }

    fn tamper(&self, view: &View<'_>, delta: Vec<f32>) -> Vec<f32> {
        match self {
            Self::None | Self::LabelFlip | Self::Backdoor => delta,
            Self::SignFlip | Self::Corner => scaled(delta, -FLIP_SCALE),
            // n / eta of the paper, shared among the attackers.
            Self::Replacement => scaled(delta, view.sites as f32 / view.accomplices.len().max(1) as f32),
            Self::LittleIsEnough => little(view),
            Self::FreeRiderZero => vec![0.0; delta.len()],
            Self::FreeRiderNoise => noise(view, &delta),
        }
    }

    fn claim(&self, examples: u64) -> u64 {
        if matches!(self, Self::FreeRiderZero | Self::FreeRiderNoise) { 2 * examples } else { examples }
    }

    fn leaves_codec(&self) -> bool {
        *self == Self::Corner
    }
}

fn scaled(mut delta: Vec<f32>, factor: f32) -> Vec<f32> {
    delta.iter_mut().for_each(|value| *value *= factor);
    delta
}

/// Mean less z deviations of what the attackers themselves have trained, each coordinate away from where it would go. One
/// attacker alone has no deviation to measure and takes the size of its own values.
fn little(view: &View<'_>) -> Vec<f32> {
    let z = largest_z(view.sites, view.accomplices.len()).max(LEAST_Z);
    let count = view.accomplices.len() as f64;
    let of = |index: usize| {
        let values = view.accomplices.iter().map(|delta| f64::from(delta[index]));
        let mean = values.clone().sum::<f64>() / count;
        let deviation = if view.accomplices.len() < 2 {
            mean.abs()
        } else {
            (values.map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0)).sqrt()
        };
        (mean - z * deviation * mean.signum()) as f32
    };
    (0..view.base.len()).map(of).collect()
}

/// z of Baruch et al. 2019, equation 3: the largest at which enough honest sites are expected to be further from the mean,
/// `P(Z < z) = (n - m - s) / (n - m)` with `s = n / 2 + 1 - m`. At least 0.
fn largest_z(sites: usize, attackers: usize) -> f64 {
    let honest = sites.saturating_sub(attackers) as f64;
    let supporters = (sites / 2 + 1).saturating_sub(attackers) as f64;
    let share = (honest - supporters) / honest;
    if share <= 0.5 {
        return 0.0;
    }
    // By bisection; the error function by its series, good to 1e-7 (Abramowitz and Stegun 7.1.26).
    let below = |z: f64| {
        let x = z / std::f64::consts::SQRT_2;
        let t = 1.0 / (1.0 + 0.327_591_1 * x);
        let series = [1.061_405_429, -1.453_152_027, 1.421_413_741, -0.284_496_736, 0.254_829_592];
        let sum = series.iter().fold(0.0, |sum, c| (sum + c) * t);
        0.5 + 0.5 * (1.0 - sum * (-x * x).exp())
    };
    let (mut low, mut high) = (0.0, 6.0);
    for _ in 0..50 {
        let middle = f64::midpoint(low, high);
        if below(middle) < share { low = middle } else { high = middle }
    }
    low
}

fn noise(view: &View<'_>, delta: &[f32]) -> Vec<f32> {
    let length = |values: &[f32]| values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    let mut random = random(view.seed, "free rider", &[view.site as u64, view.round.into()]);
    // Sums of four uniform numbers: near enough to a bell.
    let mut draw =
        || (0..4).map(|_| f64::from(random.next_u32()) / f64::from(u32::MAX) - 0.5).sum::<f64>() as f32;
    let values: Vec<f32> = delta.iter().map(|_| draw()).collect();
    let factor = length(delta) / length(&values).max(f64::MIN_POSITIVE);
    scaled(values, factor as f32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use medinet_model::InputShape;

    fn images() -> Images {
        let shape = InputShape { channels: 1, height: 28, width: 28 };
        Images::new(shape, vec![0.0; 784 * 6], vec![0, 1, 1, 0, 1, 1], (0..6).collect()).unwrap()
    }

    #[test]
    fn backdoors_are_planted_in_half_of_the_other_class() {
        let mut images = images();
        Attack::Backdoor.poison(&mut images);
        assert_eq!(images.classes(), [0, 0, 1, 0, 0, 1]);
        let painted = |index: usize| images.image(index).iter().filter(|value| **value == 3.0).count();
        assert_eq!([0, 1, 2, 3, 4, 5].map(painted), [0, 9, 0, 0, 9, 0]);
        assert_eq!(patched(&images).len(), 2);
        let mut images = self::images();
        Attack::LabelFlip.poison(&mut images);
        assert_eq!(images.classes(), [1, 0, 0, 1, 0, 0]);
    }

    #[test]
    fn deltas_are_tampered_with_as_the_papers_say() {
        let trained: [&[f32]; 2] = [&[1.0, -2.0], &[3.0, -2.0]];
        let base = [0.0; 2];
        let view = View {
            site: 0,
            round: 1,
            sites: 10,
            base: &base,
            clip_norm: 1.0,
            accomplices: &trained,
            seed: 1,
        };
        let tamper = |attack: Attack| attack.tamper(&view, vec![1.0, -2.0]);
        assert_eq!((tamper(Attack::SignFlip), tamper(Attack::Corner)), (vec![-4.0, 8.0], vec![-4.0, 8.0]));
        assert!(Attack::Corner.leaves_codec() && !Attack::SignFlip.leaves_codec());
        assert_eq!(tamper(Attack::Replacement), [5.0, -10.0]);
        assert_eq!(tamper(Attack::FreeRiderZero), [0.0, 0.0]);
        // Mean 2, deviation sqrt(2); mean -2, deviation 0.
        let little = tamper(Attack::LittleIsEnough);
        assert!((little[0] - (2.0 - 1.5 * std::f32::consts::SQRT_2)).abs() < 1e-6 && little[1] == -2.0);
        let noise = tamper(Attack::FreeRiderNoise);
        assert!((noise[0].hypot(noise[1]) - 5f32.sqrt()).abs() < 1e-5);
        assert_eq!((Attack::FreeRiderNoise.claim(5), Attack::SignFlip.claim(5)), (10, 5));
    }

    #[test]
    fn z_is_the_papers() {
        // The paper's example: 50 sites of which 24 attack, s = 2, P = 24 / 26 = 0.923 and z = 1.43.
        assert!((largest_z(50, 24) - 1.426).abs() < 0.002, "{}", largest_z(50, 24));
        assert_eq!(largest_z(10, 1), 0.0);
    }
}
