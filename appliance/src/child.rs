//! The trainer's side of the child process: reads the data set, trains, measures, leaves files.

use crate::files;
use crate::trainer::{CHECKPOINTS, Errand, Job, JobResult, ProgressLine, RESULT, TRAINED, UsedDevice};
use anyhow::{Context as _, Result, bail};
use medinet_dataset::{Dataset, DatasetSettings, Split};
use medinet_model::{
    Augmentation, InputShape, ModelParameters, ParameterLayout, TaskSpec, decode_parameters,
    encode_parameters,
};
use medinet_training::{
    Checkpoints, ComputeDevice, DeviceChoice, InMemoryData, Trainer, Training, TrainingData as _,
    TrainingJob, evaluate,
};
use rand_chacha::ChaCha12Rng;
use std::io::{Read as _, Write as _};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// Runs the errand in a file.
///
/// # Errors
/// When anything of it fails; the text goes to the parent's log and names no patient.
pub(crate) fn run(errand: &Path) -> Result<()> {
    end_with_parent();
    let errand = std::fs::read(errand).context("the job cannot be read")?;
    match serde_json::from_slice(&errand)? {
        Errand::Device(choice) => {
            let opened = ComputeDevice::open(choice).map(|device| UsedDevice::of(&device));
            let line = serde_json::to_string(&opened.map_err(|error| error.to_string()))?;
            Ok(writeln!(std::io::stdout(), "{line}")?)
        }
        Errand::Job(job) => train_or_measure(&job),
    }
}

fn train_or_measure(job: &Job) -> Result<()> {
    let private = job.training.as_ref().is_some_and(|plan| plan.privacy.is_some());
    // Private training computes on the CPU only, whatever else the machine has.
    let choice = if private { DeviceChoice::Cpu } else { job.device };
    let device = ComputeDevice::open(choice)?;
    let network = &job.spec.network;
    let layout = ParameterLayout::of(network)?;
    let base = files::read(&job.base)?.with_context(|| {
        let path = job.base.display();
        format!("expected the base model in {path}, found none: does another program remove files there?")
    })?;
    let base = ModelParameters::new(network, decode_parameters(&base, layout.len())?)?;
    let validation = load(&job.spec, &job.datasets, &job.dataset, Split::Validation)?;
    let measured = |parameters: &ModelParameters| -> Result<_> {
        if validation.is_empty() {
            return Ok(None);
        }
        Ok(Some(evaluate(network, parameters, &validation, &device)?))
    };
    let base_figures = measured(&base)?;
    let mut result =
        JobResult { base: base_figures, trained: None, images: 0, device: UsedDevice::of(&device) };
    if let Some(plan) = &job.training {
        let training = load(&job.spec, &job.datasets, &job.dataset, Split::Training)?;
        let folder = job.folder.join(CHECKPOINTS);
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let checkpoints = Checkpoints::new(&folder).every(job.checkpoint_every);
        let mut trainer = Trainer::new(device, checkpoints).with_augmentation(&augment);
        if let Some(count) = job.public_patients {
            trainer = trainer.with_public_patients(count);
        } else if private {
            // The split's own number would follow the data, outside of what epsilon and delta promise.
            bail!("private training: expected a number of patients that is fixed for the task, got none");
        }
        let training_job =
            TrainingJob { network: network.clone(), base, plan: plan.clone(), site_seed: job.site_seed };
        let mut stdout = std::io::stdout();
        let mut report = |progress: &medinet_training::Progress| {
            let steps = f32::from(u16::try_from(progress.steps.max(1)).unwrap_or(u16::MAX));
            let step = f32::from(u16::try_from(progress.step).unwrap_or(u16::MAX));
            let epochs = f32::from(u16::try_from(progress.epochs.max(1)).unwrap_or(u16::MAX));
            let epoch = f32::from(u16::try_from(progress.epoch).unwrap_or(u16::MAX));
            let line = ProgressLine { fraction: ((epoch + step / steps) / epochs).min(1.0) };
            let text = serde_json::to_string(&line).unwrap_or_default();
            match writeln!(stdout, "{text}") {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        };
        match trainer.train(&training_job, &training, &validation, &mut report)? {
            Training::Paused => bail!("the appliance has gone"),
            Training::Finished(outcome) => {
                files::replace(&job.folder.join(TRAINED), &encode_parameters(outcome.parameters.as_slice()))?;
                result.images = outcome.images;
                result.trained = outcome.validation;
            }
        }
    }
    files::replace(&job.folder.join(RESULT), &serde_json::to_vec_pretty(&result)?)?;
    // Only now: until the result lies on the disk, the last checkpoint is what a restart would go on from.
    let _ = std::fs::remove_dir_all(job.folder.join(CHECKPOINTS));
    Ok(())
}

/// Augmentation with the random source that training uses.
pub(crate) fn augment(values: &mut [f32], shape: InputShape, settings: &Augmentation, rng: &mut ChaCha12Rng) {
    medinet_imaging::augment(values, shape, settings, rng);
}

/// The images of one split of one or more data sets, in memory.
///
/// # Errors
/// When a data set cannot be read.
pub(crate) fn load(
    spec: &TaskSpec,
    folders: &[PathBuf],
    settings: &DatasetSettings,
    split: Split,
) -> Result<InMemoryData> {
    let mut inputs = Vec::new();
    let mut classes = Vec::new();
    let mut patients = Vec::new();
    for (number, folder) in (0u64..).zip(folders) {
        let dataset = Dataset::open(folder, spec, settings)?;
        let mut images = dataset.images(split)?;
        for image in images.iter() {
            let image = image?;
            inputs.extend_from_slice(&image.input);
            classes.push(usize::try_from(image.class)?);
            // Patients are numbered within a data set.
            patients.push(number << 32 | u64::from(image.patient));
        }
    }
    Ok(InMemoryData::new(spec.network.input, inputs, classes).with_patients(patients))
}

/// Ends this process when the parent's end of standard input closes, as it does when the parent is killed: two
/// trainers on one data set would only slow each other down.
fn end_with_parent() {
    std::thread::spawn(|| {
        let mut rest = Vec::new();
        let _ = std::io::stdin().read_to_end(&mut rest);
        std::process::exit(3);
    });
}
