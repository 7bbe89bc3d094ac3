//! Private training: DP-SGD over patients (Abadi et al. 2016, algorithm 1), as `medinet_privacy`'s [`DpSgdPlan`] has it.
//!
//! Each of the plan's steps takes every patient with probability q, on its own and with all images; of each patient's gradient,
//! that of the mean loss of their images, the part beyond the norm C is cut off; the sum gets Gaussian noise of standard
//! deviation z C and is divided by the number of patients that is expected in a step, q N' with one N' for all rounds of a task. The optimizer's momentum, decay and
//! proximal term work on what comes out, and so does everything after: post-processing.
//!
//! **What depends on patients and is not counted by the accountant, does not happen**: no class weights from their counts, no
//! choice of an epoch by their loss, no end before the last step; a patient whose gradient overflows counts as zero, and a step
//! that takes nobody is a step. A step's images are computed `batch_size` at a time, in whole patients where they fit;
//! that changes rounding and nothing else.
//!
//! **Randomness.** Sampling, augmentation and noise come from ChaCha12 under a key that the operating system gives to each process and
//! that is kept nowhere; key and generators are overwritten when dropped, but for the augmentation's generators. A training that is resumed goes on under another key: what leaves the site is still the end of one
//! run of each step, and the lost steps have left no trace outside of it.
//!
//! **Floating point.** A patient's gradient is in single precision and follows from the model and the patient's images alone, as augmentation draws
//! them under the secret key, bit by bit: not from who else is taken. (An image's place in the data set chooses its draws; between neighbouring data
//! sets these have the same distribution.) Its norm is that of these very numbers or an upper bound of it. Sums over patients are in double precision until the noise is
//! in them; what they round is what [`DpSgdPlan::noise`] adds its 2^-12 for.

use crate::checkpoint::State;
use crate::compute::DeviceKind;
use crate::data::TrainingData;
use crate::evaluate::{figures, network_logits, read_batch};
use crate::optimizer::Optimizer;
use crate::schedule::learning_rate;
use crate::trainer::{
    EpochReport, Progress, Trainer, Training, TrainingError, TrainingJob, TrainingOutcome, class_weights,
    fingerprint, weighted_log_loss,
};
use medinet_model::ModelParameters;
use medinet_model::network::{Network, PatientImages, split};
use medinet_privacy::noise::GaussianNoise;
use medinet_privacy::{DpSgdPlan, PatientGroups, SamplingThreshold, clip_factor};
use medinet_types::Digest;
use rand_core::SeedableRng;
use rayon::prelude::*;
use ring::rand::{SecureRandom as _, SystemRandom};
use std::num::NonZeroU64;
use std::ops::ControlFlow;
use std::time::Instant;
use zeroize::Zeroizing;

/// The generator of sampling and noise: ChaCha12 as in `rand_chacha`, number by number, which does not overwrite its state.
type SecretStream = chacha20::ChaCha12Rng;

/// Coordinates that draw their noise from one stream of the generator.
const NOISE_CHUNK: usize = 1 << 16;

/// A count of patients or images as it may be known: rounded down to tens, at least ten.
#[must_use]
pub fn published_count(count: u64) -> u64 {
    (count / 10 * 10).max(10)
}

/// Ways around the rules of private training, for tests.
pub struct DangerousTrainer<'a>(Trainer<'a>);

impl<'a> Trainer<'a> {
    /// What only tests may do.
    #[must_use]
    pub fn dangerous(self) -> DangerousTrainer<'a> {
        DangerousTrainer(self)
    }
}

impl<'a> DangerousTrainer<'a> {
    /// Takes sampling and noise from a seed. Whoever knows it can take the noise away.
    #[must_use]
    pub fn with_noise_seed(self, seed: [u8; 32]) -> Trainer<'a> {
        Trainer { noise_seed: Some(seed), ..self.0 }
    }
}

/// The secret randomness of a process's steps: a stream for sampling and one for each part of the noise.
struct Secret {
    key: Zeroizing<[u8; 32]>,
}

impl Secret {
    fn new(seed: Option<[u8; 32]>) -> Result<Self, TrainingError> {
        if let Some(key) = seed {
            return Ok(Self { key: Zeroizing::new(key) });
        }
        let mut key = Zeroizing::new([0; 32]);
        SystemRandom::new().fill(&mut *key).map_err(|_| TrainingError::NoRandomness)?;
        Ok(Self { key })
    }

    /// Streams of two steps, or of two parts of one, are never the same: a step has fewer than 2^24 of them.
    fn stream(&self, step: u32, part: usize) -> SecretStream {
        let mut random = SecretStream::from_seed(*self.key);
        random.set_stream(u64::from(step) << 24 | part as u64 & 0xff_ffff);
        random
    }

    /// The random source of an image's augmentation. It is secret too: an image's index depends on who else is there, so under
    /// a key that is known one patient more would change the pictures of all others; under a secret one each picture is
    /// changed at random whatever its index.
    fn augmentation(&self, step: u32, image: usize) -> rand_chacha::ChaCha12Rng {
        let key = Digest::of_parts(&[
            b"medinet private augmentation",
            &*self.key,
            &step.to_le_bytes(),
            &(image as u64).to_le_bytes(),
        ]);
        rand_chacha::ChaCha12Rng::from_seed(*Zeroizing::new(key.0))
    }
}

/// A private training under way.
pub(crate) struct PrivateRun<'a> {
    trainer: &'a Trainer<'a>,
    job: &'a TrainingJob,
    training: &'a dyn TrainingData,
    validation: &'a dyn TrainingData,
    secret: Secret,
    class_weights: Vec<f32>,
    patients: PatientGroups,
    threshold: SamplingThreshold,
    noise: GaussianNoise,
    clip_norm: f64,
    /// N': the number of patients that the task counts on, and the site's weight.
    counted: u64,
    /// q N': what a sum is divided by.
    expected: f64,
    network: Network,
    optimizer: Optimizer,
    state: State,
    steps: u32,
    /// Sum of the patients' losses, and how many they are; for the site's own log.
    loss: (f64, u64),
    saved: Instant,
}

impl<'a> PrivateRun<'a> {
    pub(crate) fn start(
        trainer: &'a Trainer<'a>,
        job: &'a TrainingJob,
        privacy: &DpSgdPlan,
        training: &'a dyn TrainingData,
        validation: &'a dyn TrainingData,
    ) -> Result<Self, TrainingError> {
        job.plan.check()?;
        if trainer.device.kind() != DeviceKind::Cpu {
            return Err(TrainingError::PrivateOnGpu(trainer.device.name().to_owned()));
        }
        // Without class balance all weights are one; labels are checked on the way.
        let class_weights = class_weights(job, training, validation)?;
        let patient = |image| training.patient(image).ok_or(TrainingError::NoPatient(image));
        let patients = (0..training.len()).map(patient).collect::<Result<Vec<u64>, _>>()?;
        let patients = PatientGroups::new(patients);
        let counted =
            trainer.public_patients.map_or_else(|| published_count(patients.len() as u64), NonZeroU64::get);
        let fingerprint = fingerprint(job, training, validation);
        let state = match trainer.checkpoints.load(fingerprint)? {
            Some(state) => state,
            None => State::start(fingerprint, job.base.as_slice().to_vec()),
        };
        let device = trainer.device.burn();
        let parameters = ModelParameters::new(&job.network, state.parameters.clone())?;
        let network = Network::new(&job.network, &parameters, device)?;
        let optimizer = Optimizer::new(&job.plan, &network, &job.base, Some(&state.velocity));
        let run = Self {
            secret: Secret::new(trainer.noise_seed)?,
            class_weights,
            threshold: SamplingThreshold::new(privacy.sampling_rate),
            noise: privacy.noise(network.layout().len())?,
            clip_norm: privacy.clip_norm,
            counted,
            expected: privacy.expected_patients(counted),
            // The plan's check allows at most 10^8.
            steps: u32::try_from(privacy.steps).unwrap_or(u32::MAX),
            loss: (0.0, 0),
            saved: Instant::now(),
            trainer,
            job,
            training,
            validation,
            patients,
            network,
            optimizer,
            state,
        };
        tracing::info!(
            images = training.len(),
            patients = run.patients.len(),
            counted,
            epsilon = privacy.epsilon.get(),
            delta = privacy.delta.get(),
            noise_multiplier = privacy.noise_multiplier.get(),
            clip_norm = privacy.clip_norm,
            sampling_rate = privacy.sampling_rate.get(),
            steps = run.steps,
            step = run.state.step,
            "training privately"
        );
        Ok(run)
    }

    /// Runs all steps.
    pub(crate) fn run(
        mut self,
        progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
    ) -> Result<Training, TrainingError> {
        while self.state.step < self.steps && self.state.epoch == 0 {
            self.step()?;
            let pause = progress(&self.progress()).is_break();
            if pause || self.trainer.checkpoints.due(self.saved) {
                self.save()?;
            }
            if pause {
                return Ok(Training::Paused);
            }
        }
        if self.state.epoch == 0 {
            self.finish()?;
            self.save()?;
        }
        self.outcome().map(Training::Finished)
    }

    fn step(&mut self) -> Result<(), TrainingError> {
        let step = self.state.step;
        let taken = self.patients.sample(self.threshold, &mut self.secret.stream(step, 0));
        let mut sum = vec![0.0f64; self.network.layout().len()];
        for batch in batches(&self.patients, &taken, self.job.plan.batch_size as usize) {
            self.add(&batch, &mut sum)?;
        }
        let sum = self.release(sum);
        let device = self.trainer.device.burn();
        let gradients = split(self.network.layout(), &sum, device).into_iter().map(Some).collect();
        let rate = learning_rate(self.job.plan.learning_rate, step.into(), self.steps.into());
        self.optimizer.step_along(&mut self.network, gradients, rate);
        self.state.step += 1;
        Ok(())
    }

    /// Adds the clipped gradients of some patients, or of one who has more images than are computed at once.
    fn add(&mut self, patients: &[usize], sum: &mut [f64]) -> Result<(), TrainingError> {
        let size = self.job.plan.batch_size as usize;
        if let [patient] = patients
            && self.patients.images(*patient).len() > size
        {
            return self.add_large(*patient, size, sum);
        }
        let images: Vec<usize> =
            patients.iter().flat_map(|&patient| self.patients.images(patient)).copied().collect();
        let counts: Vec<usize> =
            patients.iter().map(|&patient| self.patients.images(patient).len()).collect();
        let gradients = self.gradients(&images, &counts, None)?;
        let factors: Vec<f32> =
            gradients.norms().iter().map(|&norm| clip_factor(upward(norm), self.clip_norm)).collect();
        self.note(gradients.losses());
        gradients.add_weighted(&factors, sum);
        Ok(())
    }

    /// The gradient of a patient with many images, summed part by part and then clipped.
    fn add_large(&mut self, patient: usize, size: usize, sum: &mut [f64]) -> Result<(), TrainingError> {
        let images = self.patients.images(patient).to_vec();
        let mut gradient = vec![0.0f64; sum.len()];
        let mut loss = 0.0;
        for part in images.chunks(size) {
            let gradients = self.gradients(part, &[part.len()], Some(&[images.len()]))?;
            loss += gradients.losses()[0];
            gradients.add_weighted(&[1.0], &mut gradient);
        }
        self.note(&[loss]);
        let norm = gradient.iter().map(|v| v * v).sum::<f64>().sqrt();
        let factor = f64::from(clip_factor(upward(norm), self.clip_norm));
        if factor > 0.0 {
            sum.iter_mut().zip(&gradient).for_each(|(sum, value)| *sum += factor * value);
        }
        Ok(())
    }

    fn gradients(
        &self,
        images: &[usize],
        counts: &[usize],
        all: Option<&[usize]>,
    ) -> Result<medinet_model::network::PatientGradients, TrainingError> {
        let shape = self.job.network.input;
        let classes: Vec<usize> = images.iter().map(|&image| self.training.class(image)).collect();
        let tensor = read_batch(self.training, images, shape, self.trainer.device.burn(), |index, image| {
            if let Some(augment) = self.trainer.augment {
                let mut random = self.secret.augmentation(self.state.step, index);
                augment(image, shape, &self.job.plan.augmentation, &mut random);
            }
        })?;
        Ok(self.network.patient_gradients(
            tensor,
            &PatientImages {
                classes: &classes,
                images: counts,
                class_weights: &self.class_weights,
                all_images: all,
            },
        ))
    }

    fn note(&mut self, losses: &[f64]) {
        self.loss.0 += losses.iter().sum::<f64>();
        self.loss.1 += losses.len() as u64;
    }

    /// Noise on the sum, and its division. Single precision comes after the noise.
    fn release(&self, mut sum: Vec<f64>) -> Vec<f32> {
        let step = self.state.step;
        sum.par_chunks_mut(NOISE_CHUNK).enumerate().for_each(|(part, chunk)| {
            self.noise.add_to(chunk, &mut self.secret.stream(step, part + 1));
        });
        sum.into_iter().map(|value| (value / self.expected) as f32).collect()
    }

    fn progress(&self) -> Progress {
        Progress { epoch: 0, epochs: 1, step: self.state.step, steps: self.steps, last_epoch: None }
    }

    fn finish(&mut self) -> Result<(), TrainingError> {
        self.keep_finite()?;
        let validation_loss = if self.validation.is_empty() {
            None
        } else {
            let logits = network_logits(&self.network, self.job.network.input, self.validation)?;
            Some(weighted_log_loss(&logits, &self.class_weights, self.validation))
        };
        let training_loss = self.loss.0 / self.loss.1.max(1) as f64;
        tracing::info!(training_loss, validation_loss, "trained privately");
        self.state.epochs.push(EpochReport { epoch: 0, training_loss, validation_loss });
        self.state.epoch = 1;
        Ok(())
    }

    /// A model with numbers that are none becomes the base model again. It is no error: one would be repeated with other noise until
    /// it goes well, and only runs that went well would leave, which is not what the accountant counts.
    fn keep_finite(&mut self) -> Result<(), TrainingError> {
        let parameters = self.network.read_parameters()?;
        if parameters.iter().any(|value| !value.is_finite()) {
            tracing::warn!(
                "private training diverged, nothing was learned: the plan's learning rate is too high"
            );
            let base = self.job.base.as_slice();
            self.network.set_parameters(split(self.network.layout(), base, self.trainer.device.burn()));
        }
        Ok(())
    }

    fn save(&mut self) -> Result<(), TrainingError> {
        self.state.parameters = self.network.read_parameters()?;
        self.state.velocity = self.optimizer.read_velocity()?;
        self.trainer.checkpoints.save(&self.state)?;
        self.saved = Instant::now();
        Ok(())
    }

    fn outcome(self) -> Result<TrainingOutcome, TrainingError> {
        let validation = if self.validation.is_empty() {
            None
        } else {
            let logits = network_logits(&self.network, self.job.network.input, self.validation)?;
            Some(figures(self.class_weights.len(), &logits, self.validation)?)
        };
        Ok(TrainingOutcome {
            parameters: ModelParameters::new(&self.job.network, self.network.read_parameters()?)?,
            epochs: self.state.epochs,
            chosen_epoch: 0,
            // Images of today would follow the data, and tell of one patient with certainty.
            images: self.counted,
            validation,
        })
    }
}

/// The smallest number in single precision that is not below.
fn upward(norm: f64) -> f32 {
    let rounded = norm as f32;
    if f64::from(rounded) < norm { rounded.next_up() } else { rounded }
}

/// Patients in batches of at most `size` images; one with more is alone.
fn batches(groups: &PatientGroups, taken: &[usize], size: usize) -> Vec<Vec<usize>> {
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut room = 0;
    for &patient in taken {
        let images = groups.images(patient).len();
        match batches.last_mut() {
            Some(batch) if images <= room => {
                batch.push(patient);
                room -= images;
            }
            _ => {
                batches.push(vec![patient]);
                room = size.saturating_sub(images);
            }
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn counts_are_published_in_tens() {
        let published = [0, 9, 10, 19, 234].map(published_count);
        assert_eq!(published, [10, 10, 10, 10, 230]);
    }

    #[test]
    fn no_norm_is_rounded_down() {
        for norm in (0..1000).map(|i| f64::from(i) * 0.123_456_789) {
            assert!(f64::from(upward(norm)) >= norm);
        }
        assert!(upward(f64::NAN).is_nan() && upward(f64::MAX).is_infinite());
    }

    #[test]
    fn streams_differ_and_no_two_processes_share_one() {
        use rand_core::Rng;
        let secret = Secret::new(Some([7; 32])).unwrap_or_else(|_| unreachable!());
        let draws = [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(step, part)| secret.stream(step, part).next_u64());
        for (at, draw) in draws.iter().enumerate() {
            assert!(!draws[..at].contains(draw));
        }
        let new = || Secret::new(None).map(|secret| secret.key.to_vec()).ok();
        assert!(new().is_some() && new() != new());
    }

    /// What was measured with seeds stays as it was; and it compiles only while the generator's feature `zeroize` is on.
    #[test]
    fn streams_are_those_of_rand_chacha_and_overwritten() {
        use rand_core::Rng;
        fn overwritten<T: zeroize::ZeroizeOnDrop>() {}
        overwritten::<SecretStream>();
        let secret = Secret::new(Some([7; 32])).unwrap_or_else(|_| unreachable!());
        let mut expected = rand_chacha::ChaCha12Rng::from_seed([7; 32]);
        expected.set_stream(5 << 24 | 2);
        let mut got = secret.stream(5, 2);
        // Past several refills of the buffers, of words and of pairs that lie across them.
        for _ in 0..200 {
            assert_eq!(got.next_u32(), expected.next_u32());
            assert_eq!(got.next_u64(), expected.next_u64());
        }
    }

    proptest! {
        #[test]
        fn every_patient_is_in_one_batch_with_all_images(
            counts in prop::collection::vec(1usize..7, 0..30),
            size in 1usize..9,
        ) {
            let keys = counts.iter().enumerate().flat_map(|(patient, &count)| vec![patient; count]);
            let groups = PatientGroups::new(keys);
            let taken: Vec<usize> = (0..counts.len()).collect();
            let batches = batches(&groups, &taken, size);
            prop_assert_eq!(batches.concat(), taken);
            for batch in &batches {
                let images: usize = batch.iter().map(|&patient| counts[patient]).sum();
                prop_assert!(!batch.is_empty() && (images <= size || batch.len() == 1));
            }
        }
    }
}
