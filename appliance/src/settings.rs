//! The appliance's settings: one TOML file, sample in `config/appliance.toml`, and the approved task's specification, sample
//! in `config/task-pneumonia.toml`.

use crate::policy::SitePolicy;
use anyhow::{Context as _, Result};
use medinet_dataset::{DatasetError, DatasetSettings};
use medinet_deident::DeidentSettings;
use medinet_identity::IdentityFiles;
use medinet_ledger::LedgerPublicKey;
use medinet_link::SessionSettings;
use medinet_model::TaskSpec;
use medinet_pacs::PacsSettings;
use medinet_settings::{Check, Rules};
use medinet_telemetry::{LogFilter, LogFormat};
use medinet_training::DeviceChoice;
use medinet_types::{FederationId, TaskId};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Everything that a hospital decides about its appliance.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ApplianceSettings {
    /// The federation.
    pub(crate) federation: FederationId,
    /// Where everything is kept; identifiable data lies only under it.
    #[serde(deserialize_with = "medinet_settings::resolved")]
    pub(crate) data_dir: PathBuf,
    /// Which log lines are written: a level, or filters such as `info,medinet_link=debug`.
    #[serde(default)]
    pub(crate) log: LogFilter,
    /// How log lines look.
    #[serde(default)]
    pub(crate) log_format: LogFormat,
    /// Public key of the federation's ledger: 64 hexadecimal digits.
    #[serde(deserialize_with = "medinet_settings::resolved")]
    pub(crate) ledger_key_file: PathBuf,
    /// The task that this hospital approved; an announcement with another specification is refused.
    #[serde(deserialize_with = "medinet_settings::resolved")]
    pub(crate) task_file: PathBuf,
    /// Who we are.
    pub(crate) identity: IdentityFiles,
    /// How to reach the broker.
    pub(crate) broker: SessionSettings,
    /// Where studies come from.
    pub(crate) pacs: PacsSettings,
    /// How they are de-identified.
    #[serde(default)]
    pub(crate) deident: DeidentSettings,
    /// How they become a data set.
    #[serde(default)]
    pub(crate) dataset: DatasetSettings,
    /// Which rounds are accepted.
    pub(crate) policy: SitePolicy,
    /// How training computes.
    #[serde(default)]
    pub(crate) training: TrainingSettings,
}

/// How training computes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct TrainingSettings {
    /// `"auto"`, `"cpu"`, or `{ gpu = { index = 0 } }`. Only the CPU gives the same bits in every run.
    pub(crate) device: DeviceChoice,
    /// Processor threads that training may use, 1 to 256.
    pub(crate) threads: u32,
}

impl Default for TrainingSettings {
    fn default() -> Self {
        Self { device: DeviceChoice::Auto, threads: 2 }
    }
}

impl Check for ApplianceSettings {
    fn check(&self, rules: &mut Rules) {
        rules.within("broker", &self.broker);
        rules.within("pacs", &self.pacs);
        if let Err(error) = self.deident.check() {
            rules.refuse("deident", error.to_string());
        }
        let SitePolicy { tasks, min_sites, max_local_epochs, max_update_norm: norm, .. } = &self.policy;
        rules.expect(!tasks.is_empty(), "policy.tasks", "at least one task", "none");
        rules.expect(*min_sites >= 1, "policy.min_sites", "at least 1", min_sites);
        rules.expect(*max_local_epochs >= 1, "policy.max_local_epochs", "at least 1", max_local_epochs);
        let positive = *norm > 0.0 && norm.is_finite();
        rules.expect(positive, "policy.max_update_norm", "a number above 0", norm);
        let corrupt = self.policy.secure_aggregation.corrupt_permille;
        let key = "policy.secure_aggregation.corrupt_permille";
        rules.expect(corrupt < 1000, key, "0 to 999", corrupt);
        let bases = self.policy.secure_aggregation.max_rounds_per_base;
        rules.expect(bases >= 1, "policy.secure_aggregation.max_rounds_per_base", "at least 1", bases);
        let vote = &self.policy.vote;
        for (key, fraction) in [
            ("policy.vote.min_auroc", vote.min_auroc),
            ("policy.vote.max_auroc_drop", vote.max_auroc_drop),
            ("policy.vote.max_accuracy_drop", vote.max_accuracy_drop),
        ] {
            rules.expect((0.0..=1.0).contains(&fraction), key, "0 to 1", fraction);
        }
        let images = vote.min_validation_images;
        rules.expect(images >= 1, "policy.vote.min_validation_images", "at least 1", images);
        let release = &self.policy.release;
        let accepting = release.min_accepting;
        rules.expect(accepting >= 1, "policy.release.min_accepting", "at least 1", accepting);
        let (key, permille) = ("policy.release.min_accept_permille", release.min_accept_permille);
        rules.expect(permille <= 1000, key, "0 to 1000", permille);
        let threads = self.training.threads;
        rules.expect((1..=256).contains(&threads), "training.threads", "1 to 256", threads);
        match self.task_spec() {
            Ok(spec) => self.check_against(&spec, rules),
            Err(error) => rules.refuse("task_file", format!("{error:#}")),
        }
    }
}

/// A task specification as a file of its own.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
struct TaskFile {
    spec: TaskSpec,
}

impl Check for TaskFile {
    fn check(&self, rules: &mut Rules) {
        if let Err(error) = self.spec.network.check() {
            rules.refuse("network", error.to_string());
        } else if let Err(error) = self.spec.check() {
            rules.refuse("preprocessing.slices", error.to_string());
        }
    }
}

impl ApplianceSettings {
    /// What must agree with the approved task.
    fn check_against(&self, spec: &TaskSpec, rules: &mut Rules) {
        let tasks = &self.policy.tasks;
        if !tasks.is_empty() && !tasks.contains(&spec.task) {
            let named: Vec<&str> = tasks.iter().map(TaskId::as_str).collect();
            let expected = format!("the task of task_file ({}) among them", spec.task);
            rules.expect(false, "policy.tasks", expected, named.join(", "));
        }
        let checked = self.dataset.check(&spec.network.classes);
        match checked {
            Ok(()) => {}
            Err(DatasetError::Settings { setting, expected, got }) => {
                rules.expect(false, &format!("dataset.{setting}"), expected, got);
            }
            Err(error) => rules.refuse("dataset", error.to_string()),
        }
    }

    /// Reads the approved task.
    ///
    /// # Errors
    /// When the file cannot be read or describes no network.
    pub(crate) fn task_spec(&self) -> Result<TaskSpec> {
        let file: TaskFile = medinet_settings::load(&self.task_file)?;
        Ok(file.spec)
    }

    /// Reads the ledger's public key.
    ///
    /// # Errors
    /// When the file does not hold one.
    pub(crate) fn ledger_key(&self) -> Result<LedgerPublicKey> {
        let path = self.ledger_key_file.display();
        let text =
            std::fs::read_to_string(&self.ledger_key_file).with_context(|| format!("cannot read {path}"))?;
        let mut key = [0; 32];
        hex::decode_to_slice(text.trim(), &mut key)
            .with_context(|| format!("{path}: expected the ledger's public key, 64 hexadecimal digits"))?;
        Ok(LedgerPublicKey::new(&self.federation, key))
    }

    /// Folder of the de-identifier: its key and the re-link table.
    #[must_use]
    pub(crate) fn deident_dir(&self) -> PathBuf {
        self.data_dir.join("deident")
    }

    /// Folder of the task's data set.
    #[must_use]
    pub(crate) fn dataset_dir(&self, spec: &TaskSpec) -> PathBuf {
        self.data_dir.join("dataset").join(spec.task.as_str())
    }
}

#[cfg(test)]
#[path = "settings_tests.rs"]
mod tests;
