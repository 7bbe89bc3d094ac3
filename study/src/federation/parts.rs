//! What a study can exchange: how a site trains, how it misbehaves, and how the server makes one step of many.

use crate::data::Images;
use anyhow::{Context as _, Result, bail, ensure};
use medinet_model::{InputShape, ModelParameters, NetworkManifest, TrainingPlan};
use medinet_training::{Checkpoints, ComputeDevice, InMemoryData, Trainer, Training, TrainingJob};
use medinet_update::Shortened;
use std::ops::ControlFlow;
use std::sync::Arc;

/// A site of the federation.
#[derive(Clone)]
pub struct Site {
    /// What it trains on.
    pub images: Images,
    /// What it does instead of following the protocol; none for an honest site.
    pub behaviour: Option<Arc<dyn Behaviour>>,
}

impl Site {
    /// A site that follows the protocol.
    #[must_use]
    pub fn honest(images: Images) -> Self {
        Self { images, behaviour: None }
    }
}

/// What a site does that does not follow the protocol. Each method stands for one way out and does nothing unless a study says so.
///
/// What the codec does to a delta afterwards (clipping above all) is done to a dishonest site's delta too, unless it leaves the codec as well.
pub trait Behaviour: Send + Sync {
    /// Changes the images before the first round, as label flips and backdoors do.
    fn poison(&self, _images: &mut Images) {}

    /// The delta to send instead of the trained one; `delta` is what honest training of [`Behaviour::poison`]ed images gave.
    fn tamper(&self, _view: &View<'_>, delta: Vec<f32>) -> Vec<f32> {
        delta
    }

    /// The number of training images to state instead of the true one; at least 1.
    fn claim(&self, examples: u64) -> u64 {
        examples
    }

    /// Whether it sends what no delta is encoded to: the grid's end in each coordinate, on the side of its delta, and a count of one image. Only
    /// sums under masks take that; elsewhere the delta is encoded.
    fn leaves_codec(&self) -> bool {
        false
    }
}

/// What a dishonest site knows when it makes its delta.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// Index of the site.
    pub site: usize,
    /// Round, from 1.
    pub round: u32,
    /// Number of sites in the federation.
    pub sites: usize,
    /// The round's base model, in canonical order.
    pub base: &'a [f32],
    /// The clip norm that the round announces.
    pub clip_norm: f32,
    /// Trained deltas of all dishonest sites, this one's among them, before any is changed: what colluding sites can share.
    pub accomplices: &'a [&'a [f32]],
    /// The federation's seed.
    pub seed: u64,
}

/// How one site trains in one round.
pub trait LocalTraining: Sync {
    /// Trains.
    ///
    /// # Errors
    /// When the training cannot be run; the study ends.
    fn train(&self, task: &LocalTask<'_>) -> Result<LocalUpdate>;
}

/// What one site trains in one round.
pub struct LocalTask<'a> {
    /// Index of the site.
    pub site: usize,
    /// Round, from 1.
    pub round: u32,
    /// The network.
    pub network: &'a NetworkManifest,
    /// The round's base model.
    pub base: &'a ModelParameters,
    /// The site's images, with patients.
    pub images: &'a Images,
    /// The same images, as the trainer takes them.
    pub data: &'a InMemoryData,
    /// Distinguishes this site in this round from all others.
    pub site_seed: u64,
}

/// What local training gives.
#[derive(Debug, Clone, PartialEq)]
pub struct LocalUpdate {
    /// Trained parameters less base parameters, in canonical order.
    pub delta: Vec<f32>,
    /// Training images behind it.
    pub examples: u64,
    /// Mean loss over the last epoch.
    pub loss: f64,
}

/// The product's trainer, on the CPU: stochastic gradient descent by the plan.
pub struct Sgd {
    /// The plan that the first round announces; it must not stop early, since sites of a study have no validation split.
    pub plan: TrainingPlan,
    /// Rounds over which the announced learning rate falls to a tenth by half a cosine, as it does within each round; 0 for the same in
    /// every round.
    pub decay_rounds: u32,
}

impl Sgd {
    /// Trains by the same plan in every round.
    #[must_use]
    pub fn new(plan: TrainingPlan) -> Self {
        Self { plan, decay_rounds: 0 }
    }

    /// The plan that a round announces; rounds count from 1.
    #[must_use]
    pub fn plan_of(&self, round: u32) -> TrainingPlan {
        let mut plan = self.plan.clone();
        if self.decay_rounds > 0 {
            let progress = f64::from(round.saturating_sub(1)) / f64::from((self.decay_rounds - 1).max(1));
            let cosine = 0.5 * (1.0 + (std::f64::consts::PI * progress.min(1.0)).cos());
            plan.learning_rate = (f64::from(plan.learning_rate) * (0.1 + 0.9 * cosine)) as f32;
        }
        plan
    }
}

impl LocalTraining for Sgd {
    fn train(&self, task: &LocalTask<'_>) -> Result<LocalUpdate> {
        let folder = tempfile::tempdir().context("cannot make a folder for checkpoints")?;
        let trainer =
            Trainer::new(ComputeDevice::cpu(), Checkpoints::new(folder.path())).with_augmentation(&augment);
        let job = TrainingJob {
            network: task.network.clone(),
            base: task.base.clone(),
            plan: self.plan_of(task.round),
            site_seed: task.site_seed,
        };
        let none = InMemoryData::new(task.network.input, Vec::new(), Vec::new());
        let training = trainer.train(&job, task.data, &none, &mut |_| ControlFlow::Continue(()))?;
        let Training::Finished(outcome) = training else { bail!("nobody asked the training to pause") };
        let trained = outcome.parameters.as_slice().iter();
        Ok(LocalUpdate {
            delta: trained.zip(task.base.as_slice()).map(|(trained, base)| trained - base).collect(),
            examples: outcome.images,
            loss: outcome.epochs.last().map_or(f64::NAN, |epoch| epoch.training_loss),
        })
    }
}

fn augment(
    values: &mut [f32],
    shape: InputShape,
    settings: &medinet_model::Augmentation,
    random: &mut rand_chacha::ChaCha12Rng,
) {
    medinet_imaging::augment(values, shape, settings, random);
}

/// How sites are grouped and how the groups' means become the round's mean delta. Within a group only the sum is seen.
pub trait Aggregation: Sync {
    /// Short name, as in reports.
    fn name(&self) -> String;

    /// The groups of a round, each aggregated on its own: indices below `sites`, each in one group at most. One group of all unless a
    /// rule says otherwise.
    fn groups(&self, sites: usize, _round: u32, _seed: u64) -> Vec<Vec<usize>> {
        vec![(0..sites).collect()]
    }

    /// The round's mean delta, from at least one group; all of one length.
    ///
    /// # Errors
    /// When the rule cannot be applied to these groups.
    fn combine(&self, groups: &[GroupMean]) -> Result<Vec<f32>>;
}

/// What the server learns of one group.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupMean {
    /// Indices of its sites.
    pub sites: Vec<usize>,
    /// Mean delta, weighted by examples, in canonical order.
    pub delta: Vec<f32>,
    /// Training images behind it, as stated by the sites.
    pub examples: u64,
    /// Mean of the norms that its sites state for the next round's clip norm; none where updates do not say it.
    pub norm: Option<f32>,
    /// How long the mean was, where the server has scaled it down.
    pub shortened: Option<Shortened>,
}

/// The mean over all groups, weighted by examples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mean;

impl Aggregation for Mean {
    fn name(&self) -> String {
        "mean".to_owned()
    }

    fn combine(&self, groups: &[GroupMean]) -> Result<Vec<f32>> {
        ensure!(!groups.is_empty(), "expected at least one group");
        if let [only] = groups {
            return Ok(only.delta.clone());
        }
        let total: f64 = groups.iter().map(|group| group.examples as f64).sum();
        let at = |index: usize| -> f64 {
            groups.iter().map(|group| f64::from(group.delta[index]) * group.examples as f64).sum()
        };
        Ok((0..groups[0].delta.len()).map(|index| (at(index) / total) as f32).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_over_groups_is_weighted_by_examples() {
        let group = |delta: f32, examples| GroupMean {
            sites: vec![],
            delta: vec![delta, 1.0],
            examples,
            norm: None,
            shortened: None,
        };
        assert_eq!(Mean.combine(&[group(4.0, 1), group(0.0, 3)]).unwrap(), [1.0, 1.0]);
        assert_eq!(Mean.combine(&[group(4.0, 1)]).unwrap(), [4.0, 1.0]);
        assert!(Mean.combine(&[]).is_err());
        assert_eq!(Mean.groups(3, 1, 1), [[0, 1, 2]]);
    }
}
