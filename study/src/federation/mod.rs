//! A federation: sites, and the rounds that they go through together.

mod channel;
mod parts;
mod vote;

pub use channel::{Channel, ClipRule, Downlink};
pub use parts::{
    Aggregation, Behaviour, GroupMean, LocalTask, LocalTraining, LocalUpdate, Mean, Sgd, Site, View,
};
pub use vote::{Council, Voting};

use crate::data::Images;
use crate::key;
use anyhow::{Context as _, Result, anyhow, ensure};
use channel::{Letter, Sent};
use medinet_metrics::{Interval, Predictions, auroc_interval, wilson_interval};
use medinet_model::{ModelParameters, NetworkManifest, encode_parameters, model_digest};
use medinet_rounds::ServerOptimizer;
use medinet_training::{ComputeDevice, InMemoryData, logits};
use medinet_types::RoundNumber;
use medinet_update::{ErrorFeedback, Origin, Owed};
use serde::Serialize;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A federation that is about to run.
pub struct Federation<'a> {
    /// The network, of two classes at least; class 1 is the one that AUROC is of.
    pub network: NetworkManifest,
    /// The sites; all take part in every round.
    pub sites: Vec<Site>,
    /// What every round's model is measured on; no site trains on it.
    pub test: &'a Images,
    /// How sites train.
    pub training: &'a dyn LocalTraining,
    /// How updates go up.
    pub channel: Channel,
    /// Where each round's clip norm comes from.
    pub clip: ClipRule,
    /// How groups are made and combined.
    pub aggregation: &'a dyn Aggregation,
    /// The server's step.
    pub optimizer: ServerOptimizer,
    /// Who decides about each round's model; nobody where there is none.
    pub voting: Option<&'a dyn Voting>,
    /// How models come down.
    pub downlink: Downlink,
    /// Rounds, at least 1.
    pub rounds: u32,
    /// Seed of the initial model and of everything random.
    pub seed: u64,
    /// Sites that train at the same time, at least 1. The result does not depend on it.
    pub threads: usize,
}

/// Figures of a model on the test set, with 95% intervals.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Figures {
    /// Area under the ROC curve of class 1 (DeLong's interval).
    pub auroc: Interval,
    /// Share of images whose more probable class is theirs (Wilson's interval).
    pub accuracy: Interval,
}

/// What one round did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RoundFigures {
    /// Round, from 1.
    pub round: u32,
    /// The model after it.
    pub figures: Figures,
    /// Clip norm that the round announced.
    pub clip_norm: f32,
    /// L2 norm of each site's delta as trained, before clipping.
    pub delta_norms: Vec<f32>,
    /// L2 norm of the mean delta.
    pub mean_norm: f32,
    /// Whether the server has scaled down the mean of some group.
    pub shortened: bool,
    /// Mean over the sites of the L2 norm of what error feedback carries on; 0 without.
    pub residual_norm: f32,
    /// Mean over the sites of the loss in the last local epoch.
    pub training_loss: f64,
    /// Mean bytes that a site sent up.
    pub bytes_up: u64,
    /// Bytes that a site received of the new model.
    pub bytes_down: u64,
    /// Whether the sites took the new model; if not, the old one stayed.
    pub accepted: bool,
}

/// A federation that has run.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// Every round.
    pub rounds: Vec<RoundFigures>,
    /// The last model.
    pub model: ModelParameters,
}

impl Run {
    /// Mean AUROC after the last `count` rounds: steadier than that of the last alone.
    #[must_use]
    pub fn auroc(&self, count: usize) -> f64 {
        let last = &self.rounds[self.rounds.len().saturating_sub(count)..];
        last.iter().map(|round| round.figures.auroc.estimate).sum::<f64>() / last.len().max(1) as f64
    }

    /// Mean bytes per site and round.
    #[must_use]
    pub fn bytes_up(&self) -> f64 {
        self.rounds.iter().map(|round| round.bytes_up as f64).sum::<f64>() / self.rounds.len().max(1) as f64
    }

    /// Mean bytes per site and round.
    #[must_use]
    pub fn bytes_down(&self) -> f64 {
        self.rounds.iter().map(|round| round.bytes_down as f64).sum::<f64>() / self.rounds.len().max(1) as f64
    }
}

/// What stays between rounds.
struct State {
    /// What all parties hold.
    model: ModelParameters,
    /// What the deltas on the way down have lost.
    owed: Owed,
    feedback: Vec<ErrorFeedback>,
    clip_norm: f32,
}

impl Federation<'_> {
    /// Runs all rounds; `watch` sees each when it is done.
    ///
    /// # Errors
    /// When a part is outside its ranges, a training fails, or an update is refused.
    pub fn run(&self, watch: &mut dyn FnMut(&RoundFigures)) -> Result<Run> {
        ensure!(self.rounds > 0 && self.threads > 0, "expected at least one round and one thread");
        ensure!(!self.sites.is_empty(), "expected at least one site");
        let model = ModelParameters::initial(&self.network, self.seed)?;
        let parameters = model.as_slice().len();
        let images: Vec<Images> = self.sites.iter().map(Self::images_of).collect();
        let data: Vec<InMemoryData> = images.iter().map(Images::to_training_data).collect();
        let test = self.test.to_training_data();
        let mut state = State {
            model,
            owed: Owed::nothing(parameters),
            feedback: vec![ErrorFeedback::new(parameters); self.sites.len()],
            clip_norm: self.channel.clip_norm(),
        };
        let mut council = self.voting.map(|voting| voting.council(&self.network));
        if let Some(council) = &mut council {
            council.accepts(&state.model)?;
        }
        let mut rounds = Vec::new();
        for round in 1..=self.rounds {
            let figures = self
                .round(round, &mut state, (&images, &data, &test), council.as_deref_mut())
                .with_context(|| format!("round {round} failed"))?;
            watch(&figures);
            rounds.push(figures);
        }
        Ok(Run { rounds, model: state.model })
    }

    fn images_of(site: &Site) -> Images {
        let mut images = site.images.clone();
        if let Some(behaviour) = &site.behaviour {
            behaviour.poison(&mut images);
        }
        images
    }

    fn round(
        &self,
        round: u32,
        state: &mut State,
        (images, data, test): (&[Images], &[InMemoryData], &InMemoryData),
        council: Option<&mut (dyn Council + '_)>,
    ) -> Result<RoundFigures> {
        let channel = self.channel.with_clip_norm(state.clip_norm);
        let base = &state.model;
        let updates = in_parallel(self.threads, self.sites.len(), |site| {
            let [a, b, c, d, e, f, g, h, ..] = key(self.seed, "site", &[site as u64, round.into()]);
            self.training.train(&LocalTask {
                site,
                round,
                network: &self.network,
                base,
                images: &images[site],
                data: &data[site],
                site_seed: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            })
        })?;
        let delta_norms: Vec<f32> = updates.iter().map(|update| norm(&update.delta)).collect();
        let training_loss = updates.iter().map(|update| update.loss).sum::<f64>() / updates.len() as f64;
        let updates = self.tampered(round, state, updates);

        let origin = Origin { base: model_digest(&self.network, base.as_slice()), round: RoundNumber(round) };
        let mut sent: Vec<Sent> = Vec::new();
        for (site, (update, feedback)) in updates.into_iter().zip(&mut state.feedback).enumerate() {
            let seed = key(self.seed, "rounding", &[site as u64, round.into()]);
            let letter = Letter { origin, examples: update.examples, seed };
            let behaviour = self.sites[site].behaviour.as_ref();
            sent.push(if behaviour.is_some_and(|behaviour| behaviour.leaves_codec()) {
                channel.corner(update.delta, letter, feedback)?
            } else {
                channel.encode(update.delta, letter, feedback)?
            });
        }
        let mut bytes_up = Vec::new();
        let mut means = Vec::new();
        for group in self.aggregation.groups(self.sites.len(), round, self.seed) {
            let of_group: Vec<&Sent> = group
                .iter()
                .map(|site| sent.get(*site).context("a group of sites that are not there"))
                .collect::<Result<_>>()?;
            for sent in &of_group {
                bytes_up.push(channel.bytes(sent, of_group.len(), base.as_slice().len())?);
            }
            means.push(channel.open(group, &of_group, origin, base.as_slice().len())?);
        }
        let residual: f32 = state.feedback.iter().map(ErrorFeedback::norm).sum();
        let mean = self.aggregation.combine(&means)?;
        let mean_norm = norm(&mean);
        let stepped = self.optimizer.step(base.as_slice(), &mean);
        let before = council.is_some().then(|| (state.model.clone(), state.owed.clone()));
        let bytes_down = self.send_down(state, stepped)?;
        let accepted = council.map_or(Ok(true), |council| council.accepts(&state.model))?;
        if let (false, Some((model, owed))) = (accepted, before) {
            (state.model, state.owed) = (model, owed);
        }
        let clip_norm = std::mem::replace(&mut state.clip_norm, self.clip.next(&channel, &means));
        Ok(RoundFigures {
            round,
            figures: figures(&self.network, &state.model, test)?,
            clip_norm,
            delta_norms,
            mean_norm,
            shortened: means.iter().any(|mean| mean.shortened.is_some()),
            residual_norm: residual / state.feedback.len() as f32,
            training_loss,
            bytes_up: bytes_up.iter().sum::<u64>() / (bytes_up.len() as u64).max(1),
            bytes_down,
            accepted,
        })
    }

    /// What dishonest sites make of what they have trained.
    fn tampered(&self, round: u32, state: &State, updates: Vec<LocalUpdate>) -> Vec<LocalUpdate> {
        let trained: Vec<Vec<f32>> = updates
            .iter()
            .zip(&self.sites)
            .filter(|(_, site)| site.behaviour.is_some())
            .map(|(update, _)| update.delta.clone())
            .collect();
        let accomplices: Vec<&[f32]> = trained.iter().map(Vec::as_slice).collect();
        let change = |(site, update): (usize, LocalUpdate)| {
            let Some(behaviour) = &self.sites[site].behaviour else { return update };
            let view = View {
                site,
                round,
                sites: self.sites.len(),
                base: state.model.as_slice(),
                clip_norm: state.clip_norm,
                accomplices: &accomplices,
                seed: self.seed,
            };
            LocalUpdate {
                delta: behaviour.tamper(&view, update.delta),
                examples: behaviour.claim(update.examples),
                loss: update.loss,
            }
        };
        updates.into_iter().enumerate().map(change).collect()
    }

    /// Makes `stepped` the model that all hold, as far as the downlink lets through; gives the bytes of it.
    fn send_down(&self, state: &mut State, stepped: Vec<f32>) -> Result<u64> {
        let (parameters, bytes) = match self.downlink {
            Downlink::Float32 => {
                let bytes = encode_parameters(&stepped).len();
                (stepped, bytes)
            }
            Downlink::Delta { bits } => {
                let encoded = state.owed.advance(state.model.as_slice(), &stepped, bits)?;
                (encoded.parameters, encoded.bytes.len())
            }
        };
        state.model = ModelParameters::new(&self.network, parameters)?;
        Ok(bytes as u64)
    }
}

fn norm(values: &[f32]) -> f32 {
    values.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt() as f32
}

/// Figures of a model on labelled images; class 1 is the one that AUROC is of.
///
/// # Errors
/// When parameters and network do not fit, or one of the classes is absent.
pub fn figures(network: &NetworkManifest, model: &ModelParameters, data: &InMemoryData) -> Result<Figures> {
    use medinet_training::TrainingData as _;
    let classes = network.classes.len();
    let logits = logits(network, model, data, &ComputeDevice::cpu())?;
    let logits: Vec<f64> = logits.into_iter().map(f64::from).collect();
    let labels = (0..data.len()).map(|index| data.class(index)).collect();
    let predictions = Predictions::from_logits(classes, &logits, labels, 1.0)?;
    Ok(Figures {
        auroc: auroc_interval(&predictions.scores_of(1)?, &predictions.is_class(1))?,
        accuracy: wilson_interval(predictions.correct_count(), data.len() as u64)?,
    })
}

/// Runs `work(0..count)` on a few threads; the results are in order, and the first error in order is the one that comes back.
pub(crate) fn in_parallel<T: Send>(
    threads: usize,
    count: usize,
    work: impl Fn(usize) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<Option<Result<T>>>> = Mutex::new((0..count).map(|_| None).collect());
    std::thread::scope(|scope| {
        for _ in 0..threads.min(count) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        break;
                    }
                    let result = work(index);
                    if let Ok(mut done) = done.lock() {
                        done[index] = Some(result);
                    }
                }
            });
        }
    });
    let done = done.into_inner().map_err(|_| anyhow!("a thread of the study panicked"))?;
    done.into_iter().map(|result| result.context("a thread of the study ended early")?).collect()
}
