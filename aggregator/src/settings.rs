//! The aggregator's settings: one TOML file, sample in `config/aggregator.toml`, and one file for each task's
//! specification, sample in `config/task-pneumonia.toml`.

use medinet_identity::IdentityFiles;
use medinet_link::SessionSettings;
use medinet_model::{NetworkManifest, ParameterLayout, TaskSpec, TrainingPlan};
use medinet_privacy::{Delta, Epsilon, NoiseMultiplier};
use medinet_rounds::{
    GroupRule, InitialModel, NormLimit, ReleaseRule, Rule, ServerOptimizer, TaskPlan, TaskPlanError,
    Weiszfeld,
};
use medinet_secagg::{Adversary, Assumptions};
use medinet_settings::{Check, FilePath, Rules};
use medinet_telemetry::{LogFilter, LogFormat};
use medinet_types::{FederationId, HumanDuration, SiteId};
use medinet_update::{CodecPlan, NoiseError, NoisePlan, SecureCodecPlan};
use medinet_wire::message::Aggregation;
use medinet_wire::secure::SecurePlan;
use medinet_wire::vote::Quorum;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Everything that the aggregator can be told.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AggregatorSettings {
    /// The federation, as it stands in topics and in the ledger's origin.
    pub(crate) federation: FederationId,
    /// State, blobs, ledger and released models.
    pub(crate) data_dir: FilePath,
    /// Which log lines are written.
    #[serde(default)]
    pub(crate) log: LogFilter,
    /// How log lines look.
    #[serde(default)]
    pub(crate) log_format: LogFormat,
    /// The aggregator's certificate and key, the authorities and their revocation lists.
    pub(crate) identity: IdentityFiles,
    /// How to reach the broker.
    pub(crate) broker: SessionSettings,
    /// The ledger.
    pub(crate) ledger: LedgerSettings,
    /// The tasks.
    #[serde(rename = "task")]
    pub(crate) tasks: Vec<TaskSettings>,
}

/// The ledger's settings.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LedgerSettings {
    /// The secret seed that signs checkpoints; made at the first start.
    pub(crate) key_file: FilePath,
}

/// One task and the rules of its rounds; see [`TaskPlan`].
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TaskSettings {
    spec_file: FilePath,
    members: Vec<SiteId>,
    rounds: u32,
    min_sites: u32,
    max_sites: u32,
    #[serde(default = "default_round_deadline")]
    round_deadline: HumanDuration,
    #[serde(default = "default_join_grace")]
    join_grace: HumanDuration,
    #[serde(default = "default_max_extensions")]
    max_extensions: u32,
    #[serde(default = "default_max_repeats")]
    max_repeats: u32,
    #[serde(default = "default_max_examples")]
    max_examples: u64,
    #[serde(default = "default_initial_seed")]
    initial_seed: u64,
    #[serde(default)]
    evaluate_every: Option<u32>,
    #[serde(default)]
    optimizer: ServerOptimizer,
    #[serde(default = "default_downlink_bits")]
    downlink_bits: u8,
    training: TrainingPlan,
    #[serde(default = "default_final_learning_rate")]
    final_learning_rate: f32,
    aggregation: AggregationSettings,
    release: ReleaseSettings,
}

/// See [`ReleaseRule`]. The sites' votes decide unless that is written off: a model that the sites reject is released nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct ReleaseSettings {
    min_median_auroc: f64,
    max_regression: f64,
    min_reporting_sites: u32,
    #[serde(default = "yes")]
    go_back: bool,
    #[serde(default = "yes")]
    votes_decide: bool,
    votes: Option<Quorum>,
}

const fn yes() -> bool {
    true
}

/// A majority of the task's members: who abstains counts for neither side, so that with a smaller number a few sites that work together could
/// carry a candidate on which honest ones, for want of images, do not decide.
fn default_votes(members: usize, max_sites: u32) -> Result<Quorum, Fault> {
    let min_accepting = u32::try_from(members / 2 + 1).unwrap_or(u32::MAX);
    if max_sites < min_accepting {
        // Nothing would ever be released.
        let message = format!(
            "expected at least {min_accepting}, the majority of the {members} members that must accept a candidate where release.votes is \
             left out, got {max_sites}: write that table, or let a round take more sites"
        );
        return Err(Fault { key: "max_sites", message });
    }
    Ok(Quorum { min_accepting, min_accept_permille: 500 })
}

impl ReleaseSettings {
    /// The rule in a task of so many members, whose rounds take at most `max_sites`.
    fn rule(self, members: usize, max_sites: u32) -> Result<ReleaseRule, Fault> {
        let Self { min_median_auroc, max_regression, min_reporting_sites, go_back, votes_decide, votes } =
            self;
        let votes = match (votes_decide, votes) {
            (true, Some(votes)) => Some(votes),
            (true, None) => Some(default_votes(members, max_sites)?),
            (false, None) => None,
            // Whoever wrote down what a candidate needs does not expect that nothing asks for it.
            (false, Some(_)) => {
                let message = "expected no such table beside votes_decide = false: take one of the two out";
                return Err(Fault { key: "release.votes", message: message.to_owned() });
            }
        };
        Ok(ReleaseRule { min_median_auroc, max_regression, min_reporting_sites, votes, go_back })
    }
}

/// How the sites' updates become one; see [`Aggregation`].
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum AggregationSettings {
    /// The aggregator reads every update.
    Plain(CodecPlan),
    /// The aggregator learns the sum of the updates, the number of images and the mean norm.
    Secure(SecureSettings),
}

/// See [`SecurePlan`].
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct SecureSettings {
    bits: u8,
    clip_norm: f32,
    #[serde(default = "default_max_clip_norm")]
    max_clip_norm: f32,
    #[serde(default)]
    error_feedback: bool,
    #[serde(default = "default_kept_permille")]
    kept_permille: u16,
    reference_examples: u32,
    #[serde(default)]
    noise: Option<NoiseSettings>,
    #[serde(default = "default_max_attempts")]
    max_attempts: u32,
    #[serde(default = "default_message_deadline")]
    message_deadline: HumanDuration,
    #[serde(default = "default_input_deadline")]
    input_deadline: HumanDuration,
    #[serde(default)]
    assumptions: AssumptionSettings,
    #[serde(default)]
    groups: Option<GroupSettings>,
}

/// Random groups and the rule over their means; see [`GroupRule`].
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct GroupSettings {
    min_sites: u32,
    rule: RuleSetting,
    faulty: usize,
    #[serde(default = "default_norm_limit")]
    norm_limit: NormLimit,
}

/// The rules by name; how many bad groups they are to withstand is a setting of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum RuleSetting {
    Mean,
    Median,
    TrimmedMean,
    GeometricMedian,
    Krum,
    MultiKrum,
}

impl GroupSettings {
    fn rule(&self) -> GroupRule {
        let Self { min_sites: _, rule, faulty, norm_limit } = *self;
        let rule = match rule {
            RuleSetting::Mean => Rule::Mean,
            RuleSetting::Median => Rule::Median,
            RuleSetting::TrimmedMean => Rule::TrimmedMean { faulty },
            RuleSetting::GeometricMedian => Rule::GeometricMedian(Weiszfeld::default()),
            RuleSetting::Krum => Rule::Krum { faulty },
            RuleSetting::MultiKrum => Rule::MultiKrum { faulty },
        };
        GroupRule { rule, norm_limit, faulty }
    }
}

/// See [`NoisePlan`].
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct NoiseSettings {
    epsilon: Epsilon,
    delta: Delta,
    noise_multiplier: NoiseMultiplier,
    honest_survivors: u32,
}

/// See [`Assumptions`]; what is left out is as there.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct AssumptionSettings {
    adversary: Adversary,
    corrupt_permille: u16,
    colluders: u16,
    dropout_permille: u16,
    security_bits: u8,
    correctness_bits: u8,
    grinding_bits: u8,
}

impl Default for AssumptionSettings {
    fn default() -> Self {
        let Assumptions {
            adversary,
            corrupt_permille,
            dropout_permille,
            security_bits,
            correctness_bits,
            grinding_bits,
            colluders,
        } = Assumptions::default();
        Self {
            adversary,
            corrupt_permille,
            colluders,
            dropout_permille,
            security_bits,
            correctness_bits,
            grinding_bits,
        }
    }
}

impl AggregationSettings {
    fn plan(&self, federation: &FederationId, network: &NetworkManifest) -> Result<Aggregation, Fault> {
        let fault = |key, message| Fault { key, message };
        match self {
            Self::Plain(codec) => Ok(Aggregation::Plain(*codec)),
            Self::Secure(settings) => {
                let layout =
                    ParameterLayout::of(network).map_err(|error| fault("spec_file", error.to_string()))?;
                // A codec out of its ranges has no grid on which noise could be set.
                let ranges = settings.codec().check();
                ranges.map_err(|error| fault(self.key(), error.to_string()))?;
                let plan = settings.plan(federation, layout.len());
                plan.map(Aggregation::Secure)
                    .map_err(|error| fault("aggregation.secure.noise", error.to_string()))
            }
        }
    }

    fn groups(&self) -> GroupRule {
        match self {
            Self::Plain(_) => GroupRule::default(),
            Self::Secure(settings) => settings.groups.as_ref().map(GroupSettings::rule).unwrap_or_default(),
        }
    }

    /// The table's key, relative to the task.
    fn key(&self) -> &'static str {
        match self {
            Self::Plain(_) => "aggregation.plain",
            Self::Secure(_) => "aggregation.secure",
        }
    }
}

impl SecureSettings {
    /// The codec without noise.
    fn codec(&self) -> SecureCodecPlan {
        SecureCodecPlan {
            bits: self.bits,
            clip_norm: self.clip_norm,
            error_feedback: self.error_feedback,
            kept_permille: self.kept_permille,
            reference_examples: self.reference_examples,
            noise: None,
        }
    }

    fn plan(&self, federation: &FederationId, parameters: usize) -> Result<SecurePlan, NoiseError> {
        let codec = self.codec();
        let noise = self.noise.as_ref().map(|noise| noise.plan(&codec, parameters)).transpose()?;
        let codec = SecureCodecPlan { noise, ..codec };
        // Up to a second more, never less; the plan's check refuses 0.
        let seconds =
            |time: HumanDuration| u32::try_from(time.get().as_millis().div_ceil(1000)).unwrap_or(u32::MAX);
        Ok(SecurePlan {
            federation: federation.clone(),
            codec,
            assumptions: self.assumptions.get(),
            group_sites: self.groups.map(|groups| groups.min_sites),
            max_attempts: self.max_attempts,
            message_seconds: seconds(self.message_deadline),
            input_seconds: seconds(self.input_deadline),
        })
    }
}

impl NoiseSettings {
    fn plan(&self, codec: &SecureCodecPlan, parameters: usize) -> Result<NoisePlan, NoiseError> {
        let Self { epsilon, delta, noise_multiplier, honest_survivors } = *self;
        let variance = codec.noise_variance(noise_multiplier, honest_survivors, parameters)?;
        Ok(NoisePlan { epsilon, delta, variance, honest_survivors })
    }
}

impl AssumptionSettings {
    fn get(self) -> Assumptions {
        let Self {
            adversary,
            corrupt_permille,
            dropout_permille,
            security_bits,
            correctness_bits,
            grinding_bits,
            colluders,
        } = self;
        Assumptions {
            adversary,
            corrupt_permille,
            dropout_permille,
            security_bits,
            correctness_bits,
            grinding_bits,
            colluders,
        }
    }
}

fn default_final_learning_rate() -> f32 {
    0.1
}

fn default_downlink_bits() -> u8 {
    4
}

fn default_max_clip_norm() -> f32 {
    16.0
}

fn default_norm_limit() -> NormLimit {
    NormLimit::Unlimited
}

fn default_kept_permille() -> u16 {
    1000
}

fn default_max_attempts() -> u32 {
    3
}

fn default_message_deadline() -> HumanDuration {
    HumanDuration(Duration::from_secs(60))
}

fn default_input_deadline() -> HumanDuration {
    HumanDuration(Duration::from_secs(10 * 60))
}

fn default_round_deadline() -> HumanDuration {
    HumanDuration(Duration::from_secs(2 * 3600))
}

fn default_join_grace() -> HumanDuration {
    HumanDuration(Duration::from_secs(60))
}

fn default_max_repeats() -> u32 {
    2
}

fn default_max_extensions() -> u32 {
    3
}

fn default_max_examples() -> u64 {
    1_000_000
}

fn default_initial_seed() -> u64 {
    1
}

/// A specification as a file of its own.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
struct SpecFile(TaskSpec);

impl Check for SpecFile {
    fn check(&self, rules: &mut Rules) {
        if let Err(error) = self.0.network.check() {
            rules.refuse("network", error.to_string());
        } else if let Err(error) = self.0.check() {
            rules.refuse("preprocessing.slices", error.to_string());
        }
    }
}

/// What is wrong with a task's settings: the key, relative to the task, and what was expected and what came.
#[derive(Debug)]
struct Fault {
    key: &'static str,
    message: String,
}

impl AggregatorSettings {
    /// The plans of all tasks.
    ///
    /// # Errors
    /// When a task's file changed since the settings were checked.
    pub(crate) fn plans(&self) -> anyhow::Result<Vec<TaskPlan>> {
        let plan = |task: &TaskSettings| {
            task.plan(&self.federation)
                .map_err(|Fault { key, message }| anyhow::anyhow!("task: {key}: {message}"))
        };
        self.tasks.iter().map(plan).collect()
    }

    /// Where the ledger's files are.
    pub(crate) fn ledger_folder(&self) -> PathBuf {
        self.data_dir.join("ledger")
    }

    /// Where released models are written as ONNX files, for people and other programs.
    pub(crate) fn models_folder(&self) -> PathBuf {
        self.data_dir.join("models")
    }
}

impl TaskSettings {
    fn plan(&self, federation: &FederationId) -> Result<TaskPlan, Fault> {
        let fault = |key, message| Fault { key, message };
        let spec = load_spec(&self.spec_file).map_err(|message| fault("spec_file", message))?;
        let members: BTreeSet<SiteId> = self.members.iter().cloned().collect();
        if members.len() < self.members.len() {
            return Err(fault("members", "expected each site once, got one twice".to_owned()));
        }
        self.training.check().map_err(|error| fault("training", error.to_string()))?;
        let aggregation = self.aggregation.plan(federation, &spec.network)?;
        let release = self.release.rule(members.len(), self.max_sites)?;
        let plan = TaskPlan {
            spec,
            members,
            rounds: self.rounds,
            min_sites: self.min_sites,
            max_sites: self.max_sites,
            round_deadline: self.round_deadline.get(),
            join_grace: self.join_grace.get(),
            max_extensions: self.max_extensions,
            max_repeats: self.max_repeats,
            training: self.training.clone(),
            final_learning_rate: self.final_learning_rate,
            max_clip_norm: match &self.aggregation {
                AggregationSettings::Plain(_) => None,
                // Without norms in the sum there is nothing for it to follow.
                AggregationSettings::Secure(secure) if secure.noise.is_some() => None,
                AggregationSettings::Secure(secure) => Some(secure.max_clip_norm),
            },
            groups: self.aggregation.groups(),
            aggregation,
            max_examples: self.max_examples,
            initial: InitialModel::Seed(self.initial_seed),
            optimizer: self.optimizer,
            downlink_bits: self.downlink_bits,
            evaluate_every: self.evaluate_every,
            release,
        };
        match plan.check() {
            Ok(()) => Ok(plan),
            Err(TaskPlanError::Field { field, expected, got }) => {
                let (key, unit) = place_of(field);
                Err(fault(key, format!("expected {expected}{unit}, got {got}{unit}")))
            }
            Err(TaskPlanError::Codec(error)) => Err(fault(self.aggregation.key(), error.to_string())),
            Err(TaskPlanError::Noise(error)) => Err(fault("aggregation.secure.noise", error.to_string())),
            Err(error @ (TaskPlanError::Network(_) | TaskPlanError::Parameters(_))) => {
                Err(fault("spec_file", error.to_string()))
            }
        }
    }
}

/// Where a field of a [`TaskPlan`] stands in a task's settings, and the unit that its name states and the setting's does not.
fn place_of(field: &'static str) -> (&'static str, &'static str) {
    match field {
        "max_clip_norm" => ("aggregation.secure.max_clip_norm", ""),
        "max_attempts" => ("aggregation.secure.max_attempts", ""),
        "message_seconds" => ("aggregation.secure.message_deadline", " s"),
        "input_seconds" => ("aggregation.secure.input_deadline", " s"),
        "honest_survivors" => ("aggregation.secure.noise.honest_survivors", ""),
        other => (other, ""),
    }
}

/// Reads a task's specification; the error is for people.
fn load_spec(path: &Path) -> Result<TaskSpec, String> {
    match medinet_settings::load::<SpecFile>(path) {
        Ok(SpecFile(spec)) => Ok(spec),
        Err(error) => match std::error::Error::source(&error) {
            Some(source) => Err(format!("{error}: {source}")),
            None => Err(error.to_string()),
        },
    }
}

impl Check for AggregatorSettings {
    fn check(&self, rules: &mut Rules) {
        rules.within("broker", &self.broker);
        rules.expect(!self.tasks.is_empty(), "task", "at least one [[task]]", "none");
        let mut first = BTreeMap::new();
        for (index, task) in self.tasks.iter().enumerate() {
            match task.plan(&self.federation) {
                Ok(plan) => {
                    let task = plan.spec.task;
                    if let Some(first) = first.insert(task.clone(), index) {
                        let message = format!("expected another task than [[task]] {first} has, got {task}");
                        rules.refuse(&format!("task[{index}].spec_file"), message);
                    }
                }
                Err(Fault { key, message }) => rules.refuse(&format!("task[{index}].{key}"), message),
            }
        }
    }
}

#[cfg(test)]
#[path = "settings_tests.rs"]
mod tests;
