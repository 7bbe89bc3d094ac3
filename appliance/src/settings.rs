//! The appliance's settings file.

use crate::policy::SitePolicy;
use anyhow::{Context as _, Result};
use medinet_dataset::DatasetSettings;
use medinet_deident::DeidentSettings;
use medinet_identity::IdentityFiles;
use medinet_ledger::LedgerPublicKey;
use medinet_link::SessionSettings;
use medinet_model::TaskSpec;
use medinet_pacs::PacsSettings;
use medinet_settings::{Check, Rules};
use medinet_telemetry::LogFormat;
use medinet_training::DeviceChoice;
use medinet_types::FederationId;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Everything that a hospital decides about its appliance.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplianceSettings {
    /// The federation.
    pub federation: FederationId,
    /// Where everything is kept; identifiable data lies only under it.
    #[serde(deserialize_with = "medinet_settings::resolved")]
    pub data_dir: PathBuf,
    /// Which log lines are written: a level, or filters such as `info,medinet_link=debug`.
    #[serde(default = "default_log")]
    pub log: String,
    /// How log lines look.
    #[serde(default)]
    pub log_format: LogFormat,
    /// Public key of the federation's ledger: 64 hexadecimal digits.
    #[serde(deserialize_with = "medinet_settings::resolved")]
    pub ledger_key_file: PathBuf,
    /// The task that this hospital approved; an announcement with another specification is refused.
    #[serde(deserialize_with = "medinet_settings::resolved")]
    pub task_file: PathBuf,
    /// Who we are.
    pub identity: IdentityFiles,
    /// How to reach the broker.
    pub broker: SessionSettings,
    /// Where studies come from.
    pub pacs: PacsSettings,
    /// How they are de-identified.
    #[serde(default)]
    pub deident: DeidentSettings,
    /// How they become a data set.
    #[serde(default)]
    pub dataset: DatasetSettings,
    /// Which rounds are accepted.
    pub policy: SitePolicy,
    /// How training computes.
    #[serde(default)]
    pub training: TrainingSettings,
}

/// How training computes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainingSettings {
    /// `"auto"`, `"cpu"`, or `{ gpu = { index = 0 } }`. Only the CPU gives the same bits in every run.
    pub device: DeviceChoice,
    /// Processor threads that training may use, 1 to 256.
    pub threads: u32,
}

impl Default for TrainingSettings {
    fn default() -> Self {
        Self { device: DeviceChoice::Auto, threads: 2 }
    }
}

fn default_log() -> String {
    "info".to_owned()
}

impl Check for ApplianceSettings {
    fn check(&self, rules: &mut Rules) {
        let sources = [self.pacs.dicomweb.is_some(), self.pacs.cstore.is_some(), self.pacs.folder.is_some()];
        rules.expect(
            sources.contains(&true),
            "pacs",
            "at least one of dicomweb, cstore and folder",
            "none",
        );
        rules.within("pacs", &self.pacs);
        rules.expect(
            (1..=256).contains(&self.training.threads),
            "training.threads",
            "1 to 256",
            self.training.threads,
        );
        rules.expect(!self.policy.tasks.is_empty(), "policy.tasks", "at least one task", "none");
        rules.expect(self.policy.min_sites >= 1, "policy.min_sites", "at least 1", self.policy.min_sites);
        let norm = self.policy.max_update_norm;
        rules.expect(norm > 0.0 && norm.is_finite(), "policy.max_update_norm", "a number above 0", norm);
        if let Err(error) = self.deident.check() {
            rules.refuse("deident", error.to_string());
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
        }
    }
}

impl ApplianceSettings {
    /// Reads the approved task.
    ///
    /// # Errors
    /// When the file cannot be read or describes no network.
    pub fn task_spec(&self) -> Result<TaskSpec> {
        let file: TaskFile = medinet_settings::load(&self.task_file)?;
        Ok(file.spec)
    }

    /// Reads the ledger's public key.
    ///
    /// # Errors
    /// When the file does not hold one.
    pub fn ledger_key(&self) -> Result<LedgerPublicKey> {
        let path = self.ledger_key_file.display();
        let text = std::fs::read_to_string(&self.ledger_key_file).with_context(|| format!("cannot read {path}"))?;
        let mut key = [0; 32];
        hex::decode_to_slice(text.trim(), &mut key)
            .with_context(|| format!("{path}: expected the ledger's public key, 64 hexadecimal digits"))?;
        Ok(LedgerPublicKey::new(&self.federation, key))
    }

    /// Folder of the de-identifier: its key and the re-link table.
    #[must_use]
    pub fn deident_dir(&self) -> PathBuf {
        self.data_dir.join("deident")
    }

    /// Folder of the task's data set.
    #[must_use]
    pub fn dataset_dir(&self, spec: &TaskSpec) -> PathBuf {
        self.data_dir.join("dataset").join(spec.task.as_str())
    }
}
