//! One round at this site, as files: whatever was reached before a kill is found again.

use crate::files;
use crate::settings::ApplianceSettings;
use crate::task_memory::TaskMemory;
use crate::trainer::{CHECKPOINTS, Job, JobResult, RESULT, TRAINED};
use anyhow::{Context as _, Result};
use medinet_model::{ParameterLayout, decode_parameters, encode_parameters, model_digest};
use medinet_training::{Checkpoints, published_count};
use medinet_types::{BlobDigest, Digest, SiteId};
use medinet_update::{ErrorFeedback, ModelDelta, Origin, SealedUpdate, SecureUpdate};
use medinet_wire::message::{MakingRound, RoundKind, RoundPlan, SiteMetrics};
use ring::rand::{SecureRandom as _, SystemRandom};
use std::fs;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Name of the sealed update within a round's folder.
const UPDATE: &str = "update.bin";
/// Name of what the update lost, within a round's folder.
const RESIDUAL: &str = "residual.bin";
/// Name of the update for secure aggregation, which never leaves the site as it is.
pub(crate) const UNMASKED: &str = "unmasked.bin";
/// Name of what that update loses if the round counts it.
const RESIDUAL_IF_COUNTED: &str = "residual-if-counted.bin";
/// Name of what it has lost, as the round has counted it.
const RESIDUAL_COUNTED: &str = "residual-counted.bin";
/// Name of what the site remembers of sessions.
const MEMORY: &str = "sessions.bin";
/// Name of the file with the digest of the masked update that is ready to be pulled.
const HELD: &str = "held";
/// Name, within a task's folder, of the file with the name of the newest round's folder that entered a session.
const NEWEST_SECURE: &str = "newest-secure-round";

/// Name, within a task's folder, of the newest model that was a round's base here.
const KEPT_MODEL: &str = "model.bin";

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
        let folder = task_folder.join(format!("{:06}-{digest}", plan.round.0));
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(Self { task_folder, folder })
    }

    /// Where everything of the round lies.
    #[must_use]
    pub(crate) fn path(&self) -> &Path {
        &self.folder
    }

    /// Whether the trainer has done its part.
    #[must_use]
    pub(crate) fn has_result(&self) -> bool {
        self.folder.join(RESULT).exists()
    }

    /// Whether the round's job was at work before.
    #[must_use]
    pub(crate) fn has_begun(&self) -> bool {
        self.has_result() || self.folder.join(CHECKPOINTS).exists()
    }

    /// What the site remembers of the round's task.
    #[must_use]
    pub(crate) fn task_memory(&self) -> TaskMemory {
        TaskMemory::of(&self.task_folder)
    }

    /// Where the newest model of the task lies, whatever the round.
    #[must_use]
    pub(crate) fn kept_model(&self) -> PathBuf {
        self.task_folder.join(KEPT_MODEL)
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
            public_patients: None,
            base: path,
            datasets: vec![settings.dataset_dir(&plan.spec)],
            dataset: settings.dataset.clone(),
            device: settings.training.device,
            checkpoint_every: Checkpoints::EVERY,
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
        let (delta, origin) = self.delta(plan, parameters)?;
        let mut feedback = self.feedback_for(plan, parameters)?;
        let seed = sealing_seed(&settings.data_dir, plan)?;
        let codec = plan.aggregation.plain().context("the round takes updates under masks only")?;
        let sealed = SealedUpdate::encode(delta, codec, origin, result.images, *seed, &mut feedback)?;
        // The residual first: an update without it would be offered, and its loss forgotten.
        files::replace(&self.folder.join(RESIDUAL), &feedback.to_bytes())?;
        files::replace(&path, sealed.as_bytes())?;
        Ok(sealed.into_bytes())
    }

    /// The update of a finished job for secure aggregation: made once, the same for all sessions of the round.
    ///
    /// # Errors
    /// When the trained model cannot be read or encoded.
    pub(crate) fn secure_update(
        &self,
        settings: &ApplianceSettings,
        plan: &RoundPlan,
        result: &JobResult,
    ) -> Result<SecureUpdate> {
        let secure = plan.aggregation.secure().context("the round takes sealed updates only")?;
        let parameters = ParameterLayout::of(&plan.spec.network)?.len();
        let path = self.folder.join(UNMASKED);
        if let Some(update) = files::read(&path)? {
            return Ok(SecureUpdate::from_site_bytes(&update, &secure.codec, parameters)?);
        }
        let (delta, origin) = self.delta(plan, parameters)?;
        let mut feedback = self.feedback_for(plan, parameters)?;
        let seed = match secure.codec.noise {
            // Never used twice: under one noise, two updates would differ by what they hold.
            Some(_) => fresh_seed()?,
            None => sealing_seed(&settings.data_dir, plan)?,
        };
        let update = SecureUpdate::encode(delta, &secure.codec, origin, result.images, *seed, &mut feedback)?;
        files::replace(&self.folder.join(RESIDUAL_IF_COUNTED), &feedback.to_bytes())?;
        files::replace(&path, &update.to_site_bytes())?;
        Ok(update)
    }

    fn delta(&self, plan: &RoundPlan, parameters: usize) -> Result<(ModelDelta, Origin)> {
        let read = |name: &str| -> Result<Vec<f32>> {
            let bytes =
                files::read(&self.folder.join(name))?.with_context(|| format!("{name} is not there"))?;
            Ok(decode_parameters(&bytes, parameters)?)
        };
        let delta = ModelDelta::between(&read("base.bin")?, &read(TRAINED)?)?;
        // What the federation's clip norm is to be chosen by; it stays in the hospital's log.
        tracing::info!(round = %plan.round, norm = delta.norm(), clip = plan.aggregation.clip_norm(), "trained");
        Ok((delta, Origin { base: plan.base.digest, round: plan.round }))
    }

    /// What the site remembers of the round's sessions, as [`Self::keep_memory`] kept it.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(crate) fn memory(&self) -> Result<Option<Vec<u8>>> {
        files::read(&self.folder.join(MEMORY))
    }

    /// Keeps what the site must not forget of the round's sessions.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(crate) fn keep_memory(&self, memory: &[u8]) -> Result<()> {
        files::replace(&self.folder.join(MEMORY), memory)?;
        // From here on the round cannot be entered without that memory. Nothing is said before both are on disk.
        files::replace(&self.task_folder.join(NEWEST_SECURE), self.name().as_bytes())
    }

    /// Why the site may not take part in this round with secure aggregation, if so: it has been in sessions of a later one, of another one of
    /// this number, or of this very one and no longer knows which. Training on the same model gives nearly the same update again, and two sums
    /// with it could be told apart.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(crate) fn superseded(&self) -> Result<Option<String>> {
        let Some(newest) = files::read(&self.task_folder.join(NEWEST_SECURE))? else { return Ok(None) };
        let newest = String::from_utf8(newest).context("the name of the newest secure round is no text")?;
        let number =
            round_number(Path::new(&newest)).context("the name of the newest secure round has no number")?;
        let remembered = newest == self.name() && self.folder.join(MEMORY).exists();
        let entered_before = round_number(&self.folder).is_none_or(|own| number >= own) && !remembered;
        Ok(entered_before.then(|| {
            format!(
                "this site has been in secure aggregation of round {number} and takes part in later rounds only; if the aggregator has \
                 lost its state, begin a task of another name"
            )
        }))
    }

    /// The masked update that was made ready last.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(crate) fn held(&self) -> Result<Option<BlobDigest>> {
        let held = files::read(&self.folder.join(HELD))?;
        Ok(held.and_then(|text| String::from_utf8(text).ok()?.parse().ok()))
    }

    /// Notes which masked update is made ready.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(crate) fn keep_held(&self, blob: BlobDigest) -> Result<()> {
        files::replace(&self.folder.join(HELD), blob.to_string().as_bytes())
    }

    /// Learns from this round's announcement whether the last one counted this site, where its own word did not come.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(crate) fn settle_earlier(&self, site: &SiteId, made_by: Option<&MakingRound>) -> Result<()> {
        let Some(made_by) = made_by.filter(|round| round.sites.contains(site)) else { return Ok(()) };
        let Some(newest) = files::read(&self.task_folder.join(NEWEST_SECURE))? else { return Ok(()) };
        let newest = String::from_utf8(newest).context("the name of the newest secure round is no text")?;
        if round_number(Path::new(&newest)) != Some(made_by.round.0) {
            return Ok(());
        }
        let earlier = Self { task_folder: self.task_folder.clone(), folder: self.task_folder.join(newest) };
        earlier.count_feedback()
    }

    /// The round counts the update: what it lost is repaid in the next one.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(crate) fn count_feedback(&self) -> Result<()> {
        match files::read(&self.folder.join(RESIDUAL_IF_COUNTED))? {
            Some(residual) => files::replace(&self.folder.join(RESIDUAL_COUNTED), &residual),
            None => Ok(()),
        }
    }

    /// The folder's name: the round's number and the digest of its plan, but for the deadline.
    pub(crate) fn name(&self) -> String {
        self.folder.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// What this round repays. Nothing in a private one: what an earlier update lost may be of rounds that were not private.
    fn feedback_for(&self, plan: &RoundPlan, parameters: usize) -> Result<ErrorFeedback> {
        let noisy = plan.aggregation.secure().is_some_and(|secure| secure.codec.noise.is_some());
        if plan.training.privacy.is_some() || noisy {
            return Ok(ErrorFeedback::new(parameters));
        }
        self.feedback_before(parameters)
    }

    /// What the update of the last round before this one lost.
    fn feedback_before(&self, parameters: usize) -> Result<ErrorFeedback> {
        let earlier = self.earlier_folders()?;
        let Some(residual) = earlier.iter().rev().find_map(|folder| residual_of(folder)) else {
            return Ok(ErrorFeedback::new(parameters));
        };
        match files::read(&residual)? {
            Some(bytes) => Ok(ErrorFeedback::from_bytes(&bytes, parameters)
                .unwrap_or_else(|_| ErrorFeedback::new(parameters))),
            None => Ok(ErrorFeedback::new(parameters)),
        }
    }

    /// Folders of rounds with a lower number, the oldest first. Another attempt at this round is none of them: what an
    /// abandoned update lost was never missed.
    fn earlier_folders(&self) -> Result<Vec<PathBuf>> {
        let own = round_number(&self.folder);
        let mut earlier: Vec<PathBuf> = fs::read_dir(&self.task_folder)?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            // Files beside the folders have no number.
            .filter(|folder| round_number(folder) < own && round_number(folder).is_some())
            .collect();
        earlier.sort_by_key(|folder| (round_number(folder), folder.clone()));
        Ok(earlier)
    }

    /// Removes what earlier rounds left, all but the last one's residual.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(crate) fn clear_earlier(&self) -> Result<()> {
        let earlier = self.earlier_folders()?;
        let with_residual = earlier.iter().rposition(|folder| residual_of(folder).is_some());
        for (index, folder) in earlier.iter().enumerate() {
            if Some(index) == with_residual {
                for name in ["base.bin", TRAINED, UNMASKED, RESIDUAL_IF_COUNTED] {
                    let _ = fs::remove_file(folder.join(name));
                }
                let _ = fs::remove_dir_all(folder.join(CHECKPOINTS));
            } else {
                fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
            }
        }
        Ok(())
    }
}

/// The file with what a round's update lost, if it has sent one that counts.
fn residual_of(folder: &Path) -> Option<PathBuf> {
    let counted = folder.join(RESIDUAL_COUNTED);
    if counted.exists() {
        return Some(counted);
    }
    folder.join(UPDATE).exists().then(|| folder.join(RESIDUAL))
}

/// The number that a round's folder begins with.
fn round_number(folder: &Path) -> Option<u32> {
    let name = folder.file_name()?.to_str()?;
    name.split_once('-')?.0.parse().ok()
}

/// A seed from the operating system, kept nowhere.
fn fresh_seed() -> Result<Zeroizing<[u8; 32]>> {
    let mut seed = Zeroizing::new([0; 32]);
    let filled = SystemRandom::new().fill(&mut *seed);
    filled.map_err(|_| anyhow::anyhow!("the system's random source failed"))?;
    Ok(seed)
}

/// The seed of this round's stochastic rounding: fresh for each round, secret, and the same after a restart.
fn sealing_seed(data_dir: &Path, plan: &RoundPlan) -> Result<Zeroizing<[u8; 32]>> {
    let path = data_dir.join("sealing.key");
    let key = match files::read(&path)?.map(Zeroizing::new) {
        Some(key) if key.len() == 32 => key,
        Some(key) => anyhow::bail!(
            "{}: expected 32 bytes, got {}: restore it from a backup, or remove it and a new one is made",
            path.display(),
            key.len()
        ),
        None => {
            let key = Zeroizing::new(fresh_seed()?.to_vec());
            files::replace(&path, &key)?;
            key
        }
    };
    let task = plan.spec.task.as_str().as_bytes();
    let parts: [&[u8]; 5] =
        [b"medinet sealing", &key, task, &plan.round.0.to_le_bytes(), &plan.base.digest.0.0];
    Ok(Zeroizing::new(Digest::of_parts(&parts).0))
}

/// A measurement, exact: for the site's own decisions.
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

/// A measurement as it may leave the site: figures to three decimals, images in tens, so that one picture more or less shows in few of
/// them. The digits beyond would tell one model's output on single pictures from another's.
#[must_use]
pub(crate) fn published(metrics: SiteMetrics) -> SiteMetrics {
    let decimals = |value: f64| (value * 1000.0).round() / 1000.0;
    SiteMetrics {
        images: published_count(metrics.images),
        auroc: metrics.auroc.map(decimals),
        accuracy: decimals(metrics.accuracy),
        loss: decimals(metrics.loss),
        calibration_error: decimals(metrics.calibration_error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::tests::plan;
    use medinet_types::RoundNumber;

    fn round(data_dir: &Path, number: u32) -> RoundFolder {
        RoundFolder::open(data_dir, &RoundPlan { round: RoundNumber(number), ..plan() }).unwrap()
    }

    fn feedback(folder: &RoundFolder) -> Vec<u8> {
        folder.feedback_before(2).unwrap().to_bytes()
    }

    #[test]
    fn what_an_update_lost_is_repaid_once_the_round_is_known_to_count_it() {
        let data = tempfile::tempdir().unwrap();
        let (site, other) = (SiteId::new("north").unwrap(), SiteId::new("south").unwrap());
        let none = ErrorFeedback::new(2).to_bytes();
        let lost = {
            let mut bytes = none.clone();
            // The last byte of the last coordinate: any other vector of the form.
            *bytes.last_mut().unwrap() = 0x3f;
            bytes
        };
        let first = round(data.path(), 1);
        files::replace(&first.folder.join(RESIDUAL_IF_COUNTED), &lost).unwrap();
        first.keep_memory(b"sessions").unwrap();
        let second = round(data.path(), 2);
        let made_by = |round, sites: &[&SiteId]| MakingRound {
            round: RoundNumber(round),
            sites: sites.iter().map(|&site| site.clone()).collect(),
        };
        for uncounted in [made_by(1, &[&other]), made_by(0, &[&site])] {
            second.settle_earlier(&site, Some(&uncounted)).unwrap();
            assert_eq!(feedback(&second), none);
        }
        second.settle_earlier(&site, Some(&made_by(1, &[&site, &other]))).unwrap();
        assert_eq!(feedback(&second), lost);
        second.clear_earlier().unwrap();
        assert_eq!(feedback(&second), lost);
    }

    #[test]
    fn a_private_round_repays_nothing_of_a_round_without_noise() {
        let data = tempfile::tempdir().unwrap();
        let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/appliance.toml");
        let sample = include_str!("../../config/appliance.toml");
        let mut settings: ApplianceSettings = medinet_settings::parse(sample, beside).unwrap();
        settings.data_dir = data.path().to_owned();
        let parameters = ParameterLayout::of(&plan().spec.network).unwrap().len();
        let device = crate::trainer::UsedDevice { name: "test".to_owned(), note: None };
        let result = JobResult { base: None, trained: None, images: 20, device };
        let updated = |plan: &RoundPlan| {
            let folder = RoundFolder::open(data.path(), plan).unwrap();
            let trained: Vec<f32> = (0..parameters).map(|at| (at % 7) as f32 * 0.01).collect();
            files::replace(&folder.folder.join("base.bin"), &encode_parameters(&vec![0.0; parameters]))
                .unwrap();
            files::replace(&folder.folder.join(TRAINED), &encode_parameters(&trained)).unwrap();
            folder.update(&settings, plan, &result).unwrap()
        };
        // The update of a round, after another one without noise, whose update lost what its codec did not keep; or after none.
        let update = |next: &RoundPlan, after: Option<&RoundPlan>| {
            let _ = fs::remove_dir_all(data.path().join("rounds"));
            if let Some(after) = after {
                updated(after);
            }
            updated(next)
        };
        let first = plan();
        let plain = RoundPlan { round: RoundNumber(2), ..plan() };
        let mut private = plain.clone();
        let rate = medinet_privacy::SamplingRate::new(0.05).unwrap();
        let limit = crate::policy::tests::policy().privacy_limit();
        private.training.privacy =
            Some(medinet_privacy::DpSgdPlan::for_target(&limit, 1.0, rate, 20).unwrap());
        // The residual is one that is read and repaid where it may be.
        let repays = |next: &RoundPlan| update(next, Some(&first)) != update(next, None);
        assert!(repays(&plain) && !repays(&private));
    }

    #[test]
    fn what_leaves_of_a_measurement_is_rounded() {
        let exact = SiteMetrics {
            images: 137,
            auroc: Some(0.912_345),
            accuracy: 128.0 / 137.0,
            loss: 0.210_51,
            calibration_error: 0.000_49,
        };
        let expected = SiteMetrics {
            images: 130,
            auroc: Some(0.912),
            accuracy: 0.934,
            loss: 0.211,
            calibration_error: 0.0,
        };
        assert_eq!(published(exact), expected);
        assert_eq!(published(expected), expected);
        // No count is zero, which the aggregator would refuse; one class alone has no AUROC; what is no number stays none.
        let few = published(SiteMetrics { images: 3, auroc: None, loss: f64::INFINITY, ..exact });
        assert_eq!((few.images, few.auroc, few.loss), (10, None, f64::INFINITY));
    }

    #[test]
    fn a_round_number_is_used_for_one_plan_only() {
        let data = tempfile::tempdir().unwrap();
        let (first, second) = (round(data.path(), 1), round(data.path(), 2));
        assert_eq!(second.superseded().unwrap(), None);
        second.keep_memory(b"sessions").unwrap();
        assert_eq!(second.superseded().unwrap(), None);
        assert!(first.superseded().unwrap().unwrap().contains("round 2"));
        let other = RoundPlan { round: RoundNumber(2), min_sites: 9, ..plan() };
        let other = RoundFolder::open(data.path(), &other).unwrap();
        assert!(other.superseded().unwrap().is_some());
        let third = round(data.path(), 3);
        assert_eq!(third.superseded().unwrap(), None);
        // Once what it remembers is gone, the site does not enter the round again.
        third.clear_earlier().unwrap();
        assert!(round(data.path(), 2).superseded().unwrap().is_some());
        assert_eq!(third.superseded().unwrap(), None);
    }
}
