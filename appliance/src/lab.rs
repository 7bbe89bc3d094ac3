//! Studies on one machine: what a hospital alone, or all hospitals' data pooled, would have given, through the same
//! pipeline as in a federation. Pooling needs the data of all sites in one place, so it exists for demos and for
//! method studies on public data, never at a hospital.

use crate::child::{augment, load};
use crate::files;
use crate::settings::ApplianceSettings;
use crate::throughput;
use anyhow::{Context as _, Result, bail};
use dicom_dictionary_std::tags;
use medinet_dataset::Split;
use medinet_inference::Model;
use medinet_ledger::{ModelBundle, TrustedKeys};
use medinet_model::{ModelParameters, ParameterLayout, TrainingPlan, decode_parameters, encode_parameters};
use medinet_settings::{Check, Rules};
use medinet_training::{
    Checkpoints, ComputeDevice, DeviceChoice, InMemoryData, Trainer, Training, TrainingJob, logits,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// `medinet-appliance lab`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Trains on the union of one or more sites' training splits.
    Train {
        /// Settings of a site; repeat it to pool.
        #[arg(long, required = true)]
        config: Vec<PathBuf>,
        /// The training plan, TOML.
        #[arg(long)]
        plan: PathBuf,
        /// Seed of the initial parameters.
        #[arg(long)]
        base_seed: u64,
        /// Where the trained parameters go.
        #[arg(long)]
        out: PathBuf,
    },
    /// Scores a folder of DICOM files with several models.
    Score {
        /// Settings of a site.
        #[arg(long)]
        config: PathBuf,
        /// Folder of DICOM files.
        #[arg(long)]
        dicom: PathBuf,
        /// Labels by accession number, CSV.
        #[arg(long)]
        labels: PathBuf,
        /// Trained parameters, as NAME=FILE.
        #[arg(long)]
        params: Vec<NamedFile>,
        /// A released model, as NAME=FILE; verified, and run by the edge runtime.
        #[arg(long)]
        bundle: Vec<NamedFile>,
        /// Where the scores go, JSON.
        #[arg(long)]
        out: PathBuf,
    },
    /// Measures the trainer's speed.
    Throughput(throughput::Arguments),
}

/// `NAME=FILE` on the command line.
#[derive(Debug, Clone)]
struct NamedFile {
    name: String,
    file: PathBuf,
}

impl std::str::FromStr for NamedFile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('=') {
            Some((name, file)) if !name.is_empty() && !file.is_empty() => {
                Ok(Self { name: name.to_owned(), file: file.into() })
            }
            _ => Err(format!("expected NAME=FILE, got {text:?}")),
        }
    }
}

/// Scores of several models on one set of images.
#[derive(Debug, Serialize)]
struct Scores {
    classes: Vec<String>,
    labels: Vec<usize>,
    models: BTreeMap<String, Vec<Vec<f32>>>,
}

#[derive(Debug, Deserialize)]
#[serde(transparent)]
struct PlanFile {
    plan: TrainingPlan,
}

impl Check for PlanFile {
    fn check(&self, rules: &mut Rules) {
        if let Err(error) = self.plan.check() {
            rules.refuse("local_epochs", error.to_string());
        }
    }
}

/// Runs a lab command.
///
/// # Errors
/// When settings, data or models cannot be read.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.command {
        Command::Train { config, plan, base_seed, out } => train(config, plan, *base_seed, out),
        Command::Score { config, dicom, labels, params, bundle, out } => {
            score(config, dicom, labels, params, bundle, out)
        }
        Command::Throughput(arguments) => throughput::run(arguments),
    }
}

fn train(configs: &[PathBuf], plan: &Path, base_seed: u64, out: &Path) -> Result<()> {
    let settings: Vec<ApplianceSettings> =
        configs.iter().map(|path| medinet_settings::load(path)).collect::<Result<_, _>>()?;
    let first = settings.first().context("no site is given")?;
    let spec = first.task_spec()?;
    let folders: Vec<PathBuf> = settings.iter().map(|settings| settings.dataset_dir(&spec)).collect();
    let training = load(&spec, &folders, &first.dataset, Split::Training)?;
    let validation = load(&spec, &folders, &first.dataset, Split::Validation)?;
    let PlanFile { plan } = medinet_settings::load(plan)?;
    let device = open(first.training.device)?;
    let checkpoints = out.with_extension("checkpoints");
    std::fs::create_dir_all(&checkpoints)
        .with_context(|| format!("cannot make {}", checkpoints.display()))?;
    let trainer = Trainer::new(device, Checkpoints::new(&checkpoints)).with_augmentation(&augment);
    let job = TrainingJob {
        network: spec.network.clone(),
        base: ModelParameters::initial(&spec.network, base_seed)?,
        plan,
        site_seed: 0,
    };
    let training = trainer.train(&job, &training, &validation, &mut |_| ControlFlow::Continue(()))?;
    let Training::Finished(outcome) = training else { bail!("the training was paused") };
    files::replace(out, &encode_parameters(outcome.parameters.as_slice()))?;
    let _ = std::fs::remove_dir_all(checkpoints);
    Ok(())
}

fn score(
    config: &Path,
    dicom: &Path,
    labels: &Path,
    params: &[NamedFile],
    bundles: &[NamedFile],
    out: &Path,
) -> Result<()> {
    let settings: ApplianceSettings = medinet_settings::load(config)?;
    let spec = settings.task_spec()?;
    let by_accession = settings.dataset.read_labels(labels, &spec.network.classes)?;
    let mut files: Vec<PathBuf> = std::fs::read_dir(dicom)
        .with_context(|| format!("cannot list {}", dicom.display()))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "dcm"))
        .collect();
    files.sort();
    let mut inputs = Vec::new();
    let mut classes = Vec::new();
    for path in &files {
        let unread = || format!("cannot read {}", path.display());
        let file = std::fs::read(path).with_context(unread)?;
        let object = medinet_objects::read(&file).with_context(unread)?;
        let accession = object
            .get(tags::ACCESSION_NUMBER)
            .and_then(|element| element.to_str().ok())
            .map(|text| text.trim().to_owned())
            .unwrap_or_default();
        // Without a label a file cannot be scored; the label file says which belong to the set.
        let Some(&class) = by_accession.get(&accession) else { continue };
        let decoded =
            medinet_imaging::decode(&object).with_context(|| format!("cannot decode {}", path.display()))?;
        let image = medinet_imaging::prepare(&decoded, 0, &spec.preprocessing, spec.network.input)?;
        inputs.extend_from_slice(&image.values);
        classes.push(class);
    }
    anyhow::ensure!(!classes.is_empty(), "{}: no labelled DICOM file", dicom.display());
    let size = inputs.len() / classes.len();
    let mut models = BTreeMap::new();
    for named in bundles {
        let trusted = TrustedKeys { ledger: settings.ledger_key()? };
        let verified = ModelBundle::decode(&std::fs::read(&named.file)?)?.verify(&trusted)?;
        let model = Model::load(&verified)?;
        let probabilities: Result<Vec<Vec<f32>>> =
            inputs.chunks(size).map(|input| Ok(model.predict(input)?.probabilities)).collect();
        models.insert(named.name.clone(), probabilities?);
    }
    if !params.is_empty() {
        let device = open(settings.training.device)?;
        let data = InMemoryData::new(spec.network.input, inputs, classes.clone());
        let layout = ParameterLayout::of(&spec.network)?;
        for named in params {
            let values = decode_parameters(&std::fs::read(&named.file)?, layout.len())?;
            let parameters = ModelParameters::new(&spec.network, values)?;
            let logits = logits(&spec.network, &parameters, &data, &device)?;
            let rows = logits.chunks(spec.network.classes.len()).map(softmax).collect();
            models.insert(named.name.clone(), rows);
        }
    }
    let scores = Scores { classes: spec.network.classes.clone(), labels: classes, models };
    files::replace(out, &serde_json::to_vec(&scores)?)
}

/// Opens a device and says in the log what it is.
fn open(choice: DeviceChoice) -> Result<ComputeDevice> {
    let device = ComputeDevice::open(choice)?;
    let note = device.note().map(|note| format!(": {note}")).unwrap_or_default();
    writeln!(std::io::stderr(), "computing on {}{note}", device.name())?;
    Ok(device)
}

fn softmax(logits: &[f32]) -> Vec<f32> {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f32> = logits.iter().map(|logit| (logit - highest).exp()).collect();
    let sum: f32 = weights.iter().sum();
    weights.iter().map(|weight| weight / sum).collect()
}
