//! The trainer as a child process: a driver that crashes, or memory that runs out, costs one attempt and not the
//! appliance.

use crate::settings::{ApplianceSettings, TrainingSettings};
use anyhow::{Context as _, Result, bail};
use medinet_dataset::DatasetSettings;
use medinet_model::{TaskSpec, TrainingPlan};
use medinet_training::{ComputeDevice, DeviceChoice, Evaluation};
use serde::{Deserialize, Serialize};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;
use tokio::sync::watch;

/// How long a driver may take to open a device.
const OPENING: Duration = Duration::from_secs(60);

/// What the child is sent for; a JSON file.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Errand {
    /// Opens a device and prints a `Result<UsedDevice, String>` in one line.
    Device(DeviceChoice),
    /// Trains or measures.
    Job(Box<Job>),
}

/// What the child is to train or measure.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Job {
    /// The task.
    pub(crate) spec: TaskSpec,
    /// How to train; `None` only measures the base model.
    pub(crate) training: Option<TrainingPlan>,
    /// Distinguishes this site in this round.
    pub(crate) site_seed: u64,
    /// In private training the number of patients to count on, the task's for good.
    pub(crate) public_patients: Option<NonZeroU64>,
    /// The base model's parameters, encoded.
    pub(crate) base: PathBuf,
    /// Folders of the data sets; one at a hospital, several in studies on one machine.
    pub(crate) datasets: Vec<PathBuf>,
    /// Their settings.
    pub(crate) dataset: DatasetSettings,
    /// What to compute on.
    pub(crate) device: DeviceChoice,
    /// Time between two checkpoints: the most work that a kill costs.
    pub(crate) checkpoint_every: Duration,
    /// Where checkpoints, trained parameters and result go.
    pub(crate) folder: PathBuf,
}

/// What the child leaves behind; a JSON file, written last.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct JobResult {
    /// Figures of the base model on the validation split; none without that split.
    pub(crate) base: Option<Evaluation>,
    /// Figures of the trained model there.
    pub(crate) trained: Option<Evaluation>,
    /// The site's weight: images trained on, after private training the task's number of patients.
    pub(crate) images: u64,
    /// What computed.
    pub(crate) device: UsedDevice,
}

/// What the child computes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UsedDevice {
    /// The device as it names itself.
    pub(crate) name: String,
    /// Why it is the CPU although a GPU was wanted, and what to do about it.
    pub(crate) note: Option<String>,
}

impl UsedDevice {
    pub(crate) fn of(device: &ComputeDevice) -> Self {
        Self { name: device.name().to_owned(), note: device.note().map(str::to_owned) }
    }

    /// Tells the operator.
    pub(crate) fn log(&self) {
        match &self.note {
            None => tracing::info!(device = self.name, "the trainer's device"),
            Some(note) => tracing::warn!(device = self.name, note, "the trainer's device is no GPU"),
        }
    }
}

/// Name of the folder of checkpoints within a round's.
pub(crate) const CHECKPOINTS: &str = "checkpoints";
/// Name of the result within a job's folder.
pub(crate) const RESULT: &str = "result.json";
/// Name of the trained parameters within a job's folder.
pub(crate) const TRAINED: &str = "trained.bin";
/// Name of the job within its folder.
pub(crate) const JOB: &str = "job.json";
/// Name, within the appliance's folder, of the errand that asks for the device.
const DEVICE: &str = "device.json";

/// One line of the child's progress.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct ProgressLine {
    /// 0 to 1.
    pub(crate) fraction: f32,
}

/// A child that is killed when this is dropped, or when the appliance dies.
pub(crate) struct Trainer;

impl Trainer {
    /// Runs a job to its end; finds the result of an earlier run if there is one.
    ///
    /// # Errors
    /// When the child cannot be started or fails; what it said is in the error.
    pub(crate) async fn run(job: &Job, threads: u32, progress: &watch::Sender<f32>) -> Result<JobResult> {
        if let Some(result) = read_result(&job.folder)? {
            return Ok(result);
        }
        let (errand, path) = (Errand::Job(Box::new(job.clone())), job.folder.join(JOB));
        send(&errand, &path, threads, |line| {
            if let Ok(ProgressLine { fraction }) = serde_json::from_str(line) {
                progress.send_replace(fraction);
            }
        })
        .await?;
        read_result(&job.folder)?.with_context(|| {
            format!(
                "expected the trainer's result in {}, found none although it ended without an error: does another program remove files there?",
                job.folder.join(RESULT).display()
            )
        })
    }

    /// Has a child open the device that rounds are to compute on, and tells the operator what it is: one that was configured
    /// and is not there is known at the start, and not in the middle of a round.
    ///
    /// # Errors
    /// When a GPU was configured and cannot be used.
    pub(crate) async fn look_at_device(settings: &ApplianceSettings) -> Result<()> {
        let TrainingSettings { device, threads } = settings.training;
        if device == DeviceChoice::Cpu {
            return Ok(());
        }
        match opened(device, threads, &settings.data_dir.join(DEVICE)).await {
            Ok(used) => used.log(),
            // A round falls back to the CPU, or tries again.
            Err(error) if device == DeviceChoice::Auto => {
                tracing::warn!(error = format!("{error:#}"), "the machine was not searched for a GPU");
            }
            Err(error) => return Err(error.context("training.device cannot be used")),
        }
        Ok(())
    }
}

/// What a child says of a device.
async fn opened(device: DeviceChoice, threads: u32, path: &Path) -> Result<UsedDevice> {
    let mut found = None;
    let errand = Errand::Device(device);
    let asked = send(&errand, path, threads, |line| {
        found = serde_json::from_str::<Result<UsedDevice, String>>(line).ok();
    });
    tokio::time::timeout(OPENING, asked)
        .await
        .with_context(|| format!("its driver did not answer within {} s", OPENING.as_secs()))??;
    found.context("the trainer ended without a word on its device")?.map_err(anyhow::Error::msg)
}

/// Runs a child to its end; `heard` gets each line that it prints.
async fn send(errand: &Errand, path: &Path, threads: u32, mut heard: impl FnMut(&str)) -> Result<()> {
    crate::files::replace(path, &serde_json::to_vec_pretty(errand)?)?;
    let program = std::env::current_exe().context("the appliance's own program cannot be found")?;
    let mut child = Command::new(program)
        .arg("train-child")
        .arg("--job")
        .arg(path)
        .env("RAYON_NUM_THREADS", threads.to_string())
        // The child ends when this pipe closes, as it does when the appliance is killed.
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("the trainer cannot be started")?;
    let stdout = child.stdout.take().context("the trainer has no output")?;
    let stderr = child.stderr.take().context("the trainer has no error output")?;
    let complaints = tokio::spawn(last_lines(stderr));
    let mut lines = BufReader::new(stdout).lines();
    while let Some(line) = lines.next_line().await? {
        heard(&line);
    }
    let status = child.wait().await?;
    if !status.success() {
        bail!("the trainer ended with {status}: {}", complaints.await.unwrap_or_default());
    }
    Ok(())
}

async fn last_lines(stderr: tokio::process::ChildStderr) -> String {
    let mut lines = BufReader::new(stderr).lines();
    let mut last = std::collections::VecDeque::new();
    while let Ok(Some(line)) = lines.next_line().await {
        tracing::debug!(line, "trainer");
        last.push_back(line.chars().take(500).collect::<String>());
        if last.len() > 5 {
            last.pop_front();
        }
    }
    Vec::from(last).join("; ")
}

fn read_result(folder: &Path) -> Result<Option<JobResult>> {
    let Some(bytes) = crate::files::read(&folder.join(RESULT))? else { return Ok(None) };
    Ok(Some(serde_json::from_slice(&bytes).context("the trainer's result cannot be read")?))
}
