//! The training loop.

use crate::checkpoint::{Best, CheckpointError, Checkpoints, State};
use crate::compute::ComputeDevice;
use crate::data::{DataError, TrainingData};
use crate::evaluate::{Evaluation, EvaluationError, figures, network_logits, read_batch};
use crate::optimizer::Optimizer;
use crate::private::PrivateRun;
use crate::schedule::{Randomness, learning_rate};
use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Tensor, TensorData, TensorReadError};
use medinet_model::network::Network;
use medinet_model::{
    Augmentation, ClassBalance, InputShape, ModelParameters, NetworkManifest, ParameterError, PlanError,
    TrainingPlan,
};
use medinet_types::Digest;
use rand_chacha::ChaCha12Rng;
use serde::{Deserialize, Serialize};
use std::num::NonZeroU64;
use std::ops::ControlFlow;
use std::time::Instant;

/// Changes one training image, `[channels, height, width]` row-major, as the plan asks, drawing from the random
/// source alone.
pub type Augment<'a> = dyn Fn(&mut [f32], InputShape, &Augmentation, &mut ChaCha12Rng) + Sync + 'a;

/// What one site trains in one round.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainingJob {
    /// The network.
    pub network: NetworkManifest,
    /// The round's base model.
    pub base: ModelParameters,
    /// How to train.
    pub plan: TrainingPlan,
    /// Distinguishes this site in this round from all others; mixed with the plan's seed.
    pub site_seed: u64,
}

/// What one epoch gave.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct EpochReport {
    /// Epoch, from 0.
    pub epoch: u32,
    /// Mean loss over the epoch's images while training, class weights applied.
    pub training_loss: f64,
    /// Mean loss on the validation split after the epoch, class weights applied; none without that split.
    pub validation_loss: Option<f64>,
}

/// How far a training is; reported after each step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// Epoch of the finished step, from 0.
    pub epoch: u32,
    /// Epochs that the plan asks for.
    pub epochs: u32,
    /// Finished steps of the epoch.
    pub step: u32,
    /// Steps of an epoch.
    pub steps: u32,
    /// The last finished epoch.
    pub last_epoch: Option<EpochReport>,
}

/// A finished training.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainingOutcome {
    /// The trained parameters: of the best epoch when the plan stops early, else of the last.
    pub parameters: ModelParameters,
    /// Every epoch that ran.
    pub epochs: Vec<EpochReport>,
    /// The epoch that the parameters are of.
    pub chosen_epoch: u32,
    /// The weight of this site in the average: images in the training split. After private training it is N' instead, the number of patients that
    /// the training counted on ([`Trainer::with_public_patients`]): a number of images would follow the data.
    pub images: u64,
    /// Figures on the validation split; none without that split.
    pub validation: Option<Evaluation>,
}

/// How a training ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Training {
    /// To its end.
    Finished(TrainingOutcome),
    /// At the wish of the progress callback. The state is saved: the same call goes on from there.
    Paused,
}

/// A training that could not be run.
#[derive(Debug, thiserror::Error)]
pub enum TrainingError {
    /// The round's plan is outside its ranges.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The base model is not this network's.
    #[error(transparent)]
    Parameters(#[from] ParameterError),
    /// The site has no training images.
    #[error("the training split is empty: expected at least one labelled image")]
    NoImages,
    /// A label is no class of the network.
    #[error("an image has class {class}; the network has {classes} classes")]
    UnknownClass {
        /// Class index of the image.
        class: usize,
        /// Classes of the network.
        classes: usize,
    },
    /// An image could not be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A checkpoint could not be written or read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The loss is not finite any more.
    #[error(
        "training diverged in epoch {epoch}: the loss is not finite; the plan's learning rate is too high for these data"
    )]
    Diverged {
        /// Epoch, from 0.
        epoch: u32,
    },
    /// The validation split could not be evaluated.
    #[error(transparent)]
    Evaluation(#[from] EvaluationError),
    /// The device failed.
    #[error("the device failed while training: {0}")]
    Device(String),
    /// Private training computes on the CPU.
    #[error(
        "private training computes on the CPU, got {0}: open the CPU for rounds whose plan asks for privacy"
    )]
    PrivateOnGpu(String),
    /// Private training protects patients, and the data do not say who they are.
    #[error("private training needs to know whose image each is: image {0} has no patient")]
    NoPatient(usize),
    /// The noise that the plan asks for cannot be made.
    #[error("private training's noise")]
    Noise(#[from] medinet_privacy::ParameterError),
    /// The operating system gives no random numbers.
    #[error("the operating system's random source failed: nothing is trained privately without it")]
    NoRandomness,
}

impl From<TensorReadError> for TrainingError {
    fn from(error: TensorReadError) -> Self {
        Self::Device(error.to_string())
    }
}

/// Trains jobs on one device.
pub struct Trainer<'a> {
    pub(crate) device: ComputeDevice,
    pub(crate) checkpoints: Checkpoints,
    pub(crate) augment: Option<&'a Augment<'a>>,
    pub(crate) generic_layers: bool,
    pub(crate) noise_seed: Option<[u8; 32]>,
    pub(crate) public_patients: Option<NonZeroU64>,
}

impl<'a> Trainer<'a> {
    /// A trainer that saves its state in `checkpoints` and does not augment.
    #[must_use]
    pub fn new(device: ComputeDevice, checkpoints: Checkpoints) -> Self {
        Self {
            device,
            checkpoints,
            augment: None,
            generic_layers: false,
            noise_seed: None,
            public_patients: None,
        }
    }

    /// Changes training images by `augment`, which gets the plan's [`Augmentation`].
    #[must_use]
    pub fn with_augmentation(self, augment: &'a Augment<'a>) -> Self {
        Self { augment: Some(augment), ..self }
    }

    /// Computes with burn's own layers on the CPU too, to measure those made for it against them.
    #[must_use]
    pub fn with_generic_layers(self) -> Self {
        Self { generic_layers: true, ..self }
    }

    /// Private training counts on this number of patients, whoever is in the training split: N', which a step's noisy sum is divided by together
    /// with the sampling rate. A site gives the same one in all rounds of a task: the scale of the noise shows it. Without it, it is the split's
    /// own number of patients, as [`published_count`](crate::published_count) rounds it.
    #[must_use]
    pub fn with_public_patients(self, count: NonZeroU64) -> Self {
        Self { public_patients: Some(count), ..self }
    }

    /// Trains a job to its end, from its checkpoint if one is there. On the CPU the result is a function of
    /// job and data, bit by bit, however often the training was killed or paused and resumed.
    ///
    /// With privacy in its plan the training is DP-SGD: see the crate's module `private`. It computes on the CPU only, whom it takes
    /// and its noise are new in every process, and a resumed one goes on with new ones.
    ///
    /// The checkpoint of a finished training stays until [`Checkpoints::clear`], so that a kill before the
    /// outcome is stored costs nothing.
    ///
    /// # Errors
    /// See [`TrainingError`].
    pub fn train(
        &self,
        job: &TrainingJob,
        training: &dyn TrainingData,
        validation: &dyn TrainingData,
        progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
    ) -> Result<Training, TrainingError> {
        if let Some(privacy) = &job.plan.privacy {
            return PrivateRun::start(self, job, privacy, training, validation)?.run(progress);
        }
        let mut run = Run::start(self, job, training, validation)?;
        while !run.is_finished() {
            while run.state.step < run.steps {
                run.train_step()?;
                let pause = progress(&run.progress()).is_break();
                if pause || self.checkpoints.due(run.saved) {
                    run.save()?;
                }
                if pause {
                    return Ok(Training::Paused);
                }
            }
            run.finish_epoch()?;
            run.save()?;
        }
        run.outcome().map(Training::Finished)
    }
}

struct Run<'a> {
    trainer: &'a Trainer<'a>,
    job: &'a TrainingJob,
    training: &'a dyn TrainingData,
    validation: &'a dyn TrainingData,
    randomness: Randomness,
    class_weights: Vec<f32>,
    network: Network,
    optimizer: Optimizer,
    /// Parameters and velocity in it are those of the last checkpoint, the rest is current.
    state: State,
    /// Sum of the epoch's losses, on the device so that no step waits for it.
    loss_sum: Tensor<1>,
    order: Vec<usize>,
    steps: u32,
    saved: Instant,
}

impl<'a> Run<'a> {
    fn start(
        trainer: &'a Trainer<'a>,
        job: &'a TrainingJob,
        training: &'a dyn TrainingData,
        validation: &'a dyn TrainingData,
    ) -> Result<Self, TrainingError> {
        job.plan.check()?;
        let class_weights = class_weights(job, training, validation)?;
        let fingerprint = fingerprint(job, training, validation);
        let state = match trainer.checkpoints.load(fingerprint)? {
            Some(state) => state,
            None => State::start(fingerprint, job.base.as_slice().to_vec()),
        };
        let device = trainer.device.burn();
        let parameters = ModelParameters::new(&job.network, state.parameters.clone())?;
        let network = Network::new(&job.network, &parameters, &device.clone().autodiff())?;
        let network = if trainer.generic_layers { network.with_generic_layers() } else { network };
        let optimizer = Optimizer::new(&job.plan, &network, &job.base, Some(&state.velocity));
        let randomness = Randomness { plan_seed: job.plan.seed, site_seed: job.site_seed };
        let steps = training.len().div_ceil(job.plan.batch_size as usize);
        let run = Self {
            loss_sum: scalar(state.loss_sum, device),
            order: randomness.order(state.epoch, training.len()),
            // A data set has far fewer than 2^32 images.
            steps: u32::try_from(steps).unwrap_or(u32::MAX),
            saved: Instant::now(),
            trainer,
            job,
            training,
            validation,
            randomness,
            class_weights,
            network,
            optimizer,
            state,
        };
        tracing::info!(
            device = trainer.device.name(),
            images = training.len(),
            validation_images = validation.len(),
            epoch = run.state.epoch,
            step = run.state.step,
            "training"
        );
        Ok(run)
    }

    fn is_finished(&self) -> bool {
        let patience = self.job.plan.early_stopping_epochs;
        let stopped = patience > 0
            && self.state.best.as_ref().is_some_and(|best| self.state.epoch - best.epoch > patience);
        stopped || self.state.epoch >= self.job.plan.local_epochs
    }

    fn train_step(&mut self) -> Result<(), TrainingError> {
        let plan = &self.job.plan;
        let size = plan.batch_size as usize;
        let first = self.state.step as usize * size;
        let batch = &self.order[first..(first + size).min(self.order.len())];
        let (epoch, shape) = (self.state.epoch, self.job.network.input);
        let device = self.network.device();
        let images = read_batch(self.training, batch, shape, device, |index, image| {
            if let Some(augment) = self.trainer.augment {
                let mut random = self.randomness.augmentation(epoch, index);
                augment(image, shape, &plan.augmentation, &mut random);
            }
        })?;
        let targets = self.targets(batch, device);
        let logits = self.network.forward(images);
        let loss = (log_softmax(logits, 1) * targets).sum();
        self.loss_sum = self.loss_sum.clone() + loss.clone().without_autodiff() * batch.len() as f32;
        let gradients = loss.backward();
        let steps = u64::from(self.steps);
        let step = u64::from(epoch) * steps + u64::from(self.state.step);
        let rate = learning_rate(plan.learning_rate, step, steps * u64::from(plan.local_epochs));
        self.optimizer.step(&mut self.network, gradients, rate);
        self.state.step += 1;
        Ok(())
    }

    /// `[batch, classes]` so that the mean weighted cross entropy is the sum of its product with the logarithms
    /// of the probabilities.
    fn targets(&self, batch: &[usize], device: &Device) -> Tensor<2> {
        let classes = self.class_weights.len();
        let mut values = vec![0.0f32; batch.len() * classes];
        for (row, &index) in values.chunks_exact_mut(classes).zip(batch) {
            let class = self.training.class(index);
            row[class] = -self.class_weights[class] / batch.len() as f32;
        }
        Tensor::from_data(TensorData::new(values, [batch.len(), classes]), device)
    }

    fn finish_epoch(&mut self) -> Result<(), TrainingError> {
        let epoch = self.state.epoch;
        let training_loss = f64::from(read_scalar(&self.loss_sum)?) / self.training.len() as f64;
        let parameters = self.network.read_parameters()?;
        if !training_loss.is_finite() || parameters.iter().any(|v| !v.is_finite()) {
            return Err(TrainingError::Diverged { epoch });
        }
        let validation_loss = if self.validation.is_empty() {
            None
        } else {
            let logits = self.validation_logits(&parameters)?;
            Some(weighted_log_loss(&logits, &self.class_weights, self.validation))
        };
        if let Some(loss) = validation_loss
            && self.state.best.as_ref().is_none_or(|best| loss < best.validation_loss)
        {
            self.state.best = Some(Best { epoch, validation_loss: loss, parameters });
        }
        let report = EpochReport { epoch, training_loss, validation_loss };
        tracing::info!(epoch, training_loss, validation_loss, "epoch");
        self.state.epochs.push(report);
        self.state.epoch += 1;
        self.state.step = 0;
        self.loss_sum = scalar(0.0, self.trainer.device.burn());
        self.order = self.randomness.order(self.state.epoch, self.training.len());
        Ok(())
    }

    fn validation_logits(&self, parameters: &[f32]) -> Result<Vec<f32>, TrainingError> {
        let parameters = ModelParameters::new(&self.job.network, parameters.to_vec())?;
        let network = Network::new(&self.job.network, &parameters, self.trainer.device.burn())?;
        Ok(network_logits(&network, self.job.network.input, self.validation)?)
    }

    fn progress(&self) -> Progress {
        Progress {
            epoch: self.state.epoch,
            epochs: self.job.plan.local_epochs,
            step: self.state.step,
            steps: self.steps,
            last_epoch: self.state.epochs.last().copied(),
        }
    }

    fn save(&mut self) -> Result<(), TrainingError> {
        self.state.parameters = self.network.read_parameters()?;
        self.state.velocity = self.optimizer.read_velocity()?;
        self.state.loss_sum = read_scalar(&self.loss_sum)?;
        self.trainer.checkpoints.save(&self.state)?;
        self.saved = Instant::now();
        Ok(())
    }

    fn outcome(self) -> Result<TrainingOutcome, TrainingError> {
        let last = self.state.epoch.saturating_sub(1);
        let keeps_best = self.job.plan.early_stopping_epochs > 0;
        let (chosen_epoch, parameters) = match self.state.best.clone().filter(|_| keeps_best) {
            Some(best) => (best.epoch, best.parameters),
            None => (last, self.network.read_parameters()?),
        };
        let validation = if self.validation.is_empty() {
            None
        } else {
            let logits = self.validation_logits(&parameters)?;
            Some(figures(self.class_weights.len(), &logits, self.validation)?)
        };
        Ok(TrainingOutcome {
            parameters: ModelParameters::new(&self.job.network, parameters)?,
            epochs: self.state.epochs,
            chosen_epoch,
            images: self.training.len() as u64,
            validation,
        })
    }
}

fn scalar(value: f32, device: &Device) -> Tensor<1> {
    Tensor::from_floats([value], device)
}

fn read_scalar(tensor: &Tensor<1>) -> Result<f32, TensorReadError> {
    tensor.clone().try_into_scalar::<f32>()
}

/// One weight per class: 1, or the inverse of its share of the training split, scaled so that the mean weight
/// over the split's images is 1. A class without images weighs nothing.
pub(crate) fn class_weights(
    job: &TrainingJob,
    training: &dyn TrainingData,
    validation: &dyn TrainingData,
) -> Result<Vec<f32>, TrainingError> {
    if training.is_empty() {
        return Err(TrainingError::NoImages);
    }
    let classes = job.network.classes.len();
    let mut counts = vec![0usize; classes];
    for class in (0..training.len()).map(|i| training.class(i)) {
        *counts.get_mut(class).ok_or(TrainingError::UnknownClass { class, classes })? += 1;
    }
    if let Some(class) = (0..validation.len()).map(|i| validation.class(i)).find(|&class| class >= classes) {
        return Err(TrainingError::UnknownClass { class, classes });
    }
    let present = counts.iter().filter(|&&count| count > 0).count();
    let weight = |&count: &usize| match (job.plan.class_balance, count) {
        (ClassBalance::None, _) => 1.0,
        (ClassBalance::WeightedLoss, 0) => 0.0,
        (ClassBalance::WeightedLoss, count) => training.len() as f32 / (present * count) as f32,
    };
    Ok(counts.iter().map(weight).collect())
}

/// Mean over the images of the class weight times the negative logarithm of the true class's probability.
pub(crate) fn weighted_log_loss(logits: &[f32], class_weights: &[f32], data: &dyn TrainingData) -> f64 {
    let rows = logits.chunks_exact(class_weights.len());
    let loss = |(index, row): (usize, &[f32])| {
        let class = data.class(index);
        let highest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|&v| f64::from(v - highest).exp()).sum();
        f64::from(class_weights[class]) * (sum.ln() - f64::from(row[class] - highest))
    };
    rows.enumerate().map(loss).sum::<f64>() / data.len() as f64
}

/// Identifies a job with its data: everything that its result depends on.
pub(crate) fn fingerprint(
    job: &TrainingJob,
    training: &dyn TrainingData,
    validation: &dyn TrainingData,
) -> Digest {
    let plan = postcard::to_allocvec(&job.plan).expect("numbers and enums serialise");
    Digest::of_parts(&[
        b"medinet training job 1",
        job.base.digest(&job.network).0.as_bytes(),
        &plan,
        &job.site_seed.to_le_bytes(),
        training.fingerprint().as_bytes(),
        validation.fingerprint().as_bytes(),
    ])
}
