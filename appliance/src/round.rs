//! One round at this site, as files: whatever was reached before a kill is found again.

use crate::files;
use crate::settings::ApplianceSettings;
use crate::trainer::{Job, JobResult, TRAINED};
use anyhow::{Context as _, Result};
use medinet_model::{ParameterLayout, decode_parameters, encode_parameters, model_digest};
use medinet_types::{Digest, SiteId};
use medinet_update::{ErrorFeedback, ModelDelta, Origin, SealedUpdate};
use medinet_wire::message::{RoundKind, RoundPlan, SiteMetrics};
use ring::rand::{SecureRandom as _, SystemRandom};
use std::fs;
use std::path::{Path, PathBuf};

/// Name of the sealed update within a round's folder.
const UPDATE: &str = "update.bin";
/// Name of what the update lost, within a round's folder.
const RESIDUAL: &str = "residual.bin";

/// A round's folder.
#[derive(Debug, Clone)]
pub(crate) struct RoundFolder {
    task_folder: PathBuf,
    folder: PathBuf,
}

impl RoundFolder {
    /// Opens or makes the folder of a round. A round with another base model or plan gets another folder.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(crate) fn open(data_dir: &Path, plan: &RoundPlan) -> Result<Self> {
        let task_folder = data_dir.join("rounds").join(plan.spec.task.as_str());
        // The deadline may be extended; everything else decides what is computed.
        let settled = RoundPlan { deadline: plan.opened_at, ..plan.clone() };
        let digest = Digest::of(&serde_json::to_vec(&settled).context("a round plan always encodes")?);
        let folder = task_folder.join(format!("{:06}-{}", plan.round.0, digest.short()));
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(Self { task_folder, folder })
    }

    /// Keeps the base model and describes the job that the trainer is to run.
    ///
    /// # Errors
    /// When the base model is not what the plan names, or the disk refuses.
    pub(crate) fn job(
        &self,
        settings: &ApplianceSettings,
        site: &SiteId,
        plan: &RoundPlan,
        base: &[u8],
    ) -> Result<Job> {
        let layout = ParameterLayout::of(&plan.spec.network)?;
        let parameters = decode_parameters(base, layout.len()).context("the base model cannot be read")?;
        anyhow::ensure!(
            model_digest(&plan.spec.network, &parameters) == plan.base.digest,
            "the base model is not the one that the plan names"
        );
        let path = self.folder.join("base.bin");
        files::replace(&path, &encode_parameters(&parameters))?;
        let seed = Digest::of_parts(&[
            b"medinet site seed",
            site.as_str().as_bytes(),
            plan.spec.task.as_str().as_bytes(),
            &plan.round.0.to_le_bytes(),
        ]);
        let mut site_seed = [0; 8];
        site_seed.copy_from_slice(&seed.0[..8]);
        Ok(Job {
            spec: plan.spec.clone(),
            training: (plan.kind == RoundKind::Train).then(|| plan.training.clone()),
            site_seed: u64::from_le_bytes(site_seed),
            base: path,
            datasets: vec![settings.dataset_dir(&plan.spec)],
            dataset: settings.dataset.clone(),
            device: settings.training.device,
            folder: self.folder.clone(),
        })
    }

    /// The sealed update of a finished job: made once, then read from disk.
    ///
    /// # Errors
    /// When the trained model cannot be read or sealed.
    pub(crate) fn update(
        &self,
        settings: &ApplianceSettings,
        plan: &RoundPlan,
        result: &JobResult,
    ) -> Result<Vec<u8>> {
        let path = self.folder.join(UPDATE);
        if let Some(update) = files::read(&path)? {
            return Ok(update);
        }
        let parameters = ParameterLayout::of(&plan.spec.network)?.len();
        let read = |name: &str| -> Result<Vec<f32>> {
            let bytes =
                files::read(&self.folder.join(name))?.with_context(|| format!("{name} is not there"))?;
            Ok(decode_parameters(&bytes, parameters)?)
        };
        let delta = ModelDelta::between(&read("base.bin")?, &read(TRAINED)?)?;
        let origin = Origin { base: plan.base.digest, round: plan.round };
        let mut feedback = self.feedback_before(parameters)?;
        let seed = sealing_seed(&settings.data_dir, plan)?;
        let codec = plan.aggregation.plain().context("the round takes updates under masks only")?;
        let sealed = SealedUpdate::encode(delta, codec, origin, result.images, seed, &mut feedback)?;
        // The residual first: an update without it would be offered, and its loss forgotten.
        files::replace(&self.folder.join(RESIDUAL), &feedback.to_bytes())?;
        files::replace(&path, sealed.as_bytes())?;
        Ok(sealed.into_bytes())
    }

    /// What the update of the last round before this one lost.
    fn feedback_before(&self, parameters: usize) -> Result<ErrorFeedback> {
        let mut earlier = self.earlier_folders()?;
        earlier.retain(|folder| folder.join(UPDATE).exists());
        let Some(last) = earlier.last() else { return Ok(ErrorFeedback::new(parameters)) };
        match files::read(&last.join(RESIDUAL))? {
            Some(bytes) => Ok(ErrorFeedback::from_bytes(&bytes, parameters)
                .unwrap_or_else(|_| ErrorFeedback::new(parameters))),
            None => Ok(ErrorFeedback::new(parameters)),
        }
    }

    /// Folders of rounds with a lower number, the oldest first. Another attempt at this round is none of them: what an
    /// abandoned update lost was never missed.
    fn earlier_folders(&self) -> Result<Vec<PathBuf>> {
        let own = round_prefix(&self.folder);
        let mut earlier: Vec<PathBuf> = fs::read_dir(&self.task_folder)?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|folder| round_prefix(folder) < own)
            .collect();
        earlier.sort();
        Ok(earlier)
    }

    /// Removes what earlier rounds left, all but the last one's residual.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(crate) fn clear_earlier(&self) -> Result<()> {
        let earlier = self.earlier_folders()?;
        let with_update = earlier.iter().rposition(|folder| folder.join(UPDATE).exists());
        for (index, folder) in earlier.iter().enumerate() {
            if Some(index) == with_update {
                for name in ["base.bin", TRAINED] {
                    let _ = fs::remove_file(folder.join(name));
                }
                let _ = fs::remove_dir_all(folder.join("checkpoints"));
            } else {
                fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
            }
        }
        Ok(())
    }
}

/// The number that a round's folder begins with.
fn round_prefix(folder: &Path) -> String {
    folder
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .chars()
        .take_while(char::is_ascii_digit)
        .collect()
}

/// The seed of this round's stochastic rounding: fresh for each round, secret, and the same after a restart.
fn sealing_seed(data_dir: &Path, plan: &RoundPlan) -> Result<[u8; 32]> {
    let path = data_dir.join("sealing.key");
    let key = match files::read(&path)? {
        Some(key) if key.len() == 32 => key,
        Some(key) => anyhow::bail!("{}: expected 32 bytes, got {}", path.display(), key.len()),
        None => {
            let mut key = vec![0; 32];
            SystemRandom::new()
                .fill(&mut key)
                .map_err(|_| anyhow::anyhow!("the system's random source failed"))?;
            files::replace(&path, &key)?;
            key
        }
    };
    let task = plan.spec.task.as_str().as_bytes();
    Ok(Digest::of_parts(&[
        b"medinet sealing",
        &key,
        task,
        &plan.round.0.to_le_bytes(),
        &plan.base.digest.0.0,
    ])
    .0)
}

/// A measurement as it may leave the site.
#[must_use]
pub(crate) fn metrics_of(evaluation: &medinet_training::Evaluation) -> SiteMetrics {
    SiteMetrics {
        images: evaluation.images,
        auroc: evaluation.auroc,
        accuracy: evaluation.accuracy,
        loss: evaluation.log_loss,
        calibration_error: evaluation.calibration_error,
    }
}
