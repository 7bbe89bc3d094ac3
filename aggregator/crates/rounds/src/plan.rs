//! What the operator decides about a task before it starts.

use crate::downlink::is_downlink;
use crate::groups::GroupRule;
use crate::optimizer::ServerOptimizer;
use medinet_model::{
    ManifestError, ModelParameters, ParameterError, ParameterLayout, TaskSpec, TrainingPlan,
};
use medinet_robust::NormLimit;
use medinet_types::{ModelVersion, SiteId};
use medinet_wire::message::Aggregation;
use medinet_wire::secure::SecurePlanError;
use medinet_wire::vote::Quorum;
use std::collections::BTreeSet;
use std::time::Duration;

/// One task of one federation: its network, its members, and the rules of its rounds.
///
/// Between restarts it may change, except for the task's specification; an open round keeps the plan that it
/// was announced with.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskPlan {
    /// The task, its network and preprocessing.
    pub spec: TaskSpec,
    /// The sites that may take part.
    pub members: BTreeSet<SiteId>,
    /// Training rounds, at least 1.
    pub rounds: u32,
    /// A round closes only with this many contributions, at least 1.
    pub min_sites: u32,
    /// A round takes no more than this many sites, at least `min_sites`.
    pub max_sites: u32,
    /// From a round's opening to its deadline; also by how much a round with too few contributions is extended.
    pub round_deadline: Duration,
    /// How long a round waits for members that have neither joined nor declined, when all who joined have delivered.
    /// Also the least time that a round stays open after a restart of the aggregator.
    pub join_grace: Duration,
    /// How often a round with too few contributions at its deadline is extended before the task pauses.
    pub max_extensions: u32,
    /// Under secure aggregation: how many rounds in a row may end without a sum and be followed at once by another on the same model, before the
    /// task pauses. A kill of the aggregator in a session's last moments leaves no site that may enter another in the same round.
    pub max_repeats: u32,
    /// How sites train.
    pub training: TrainingPlan,
    /// The learning rate of the last round as a fraction of the first's, above 0 to 1; it falls by half a cosine over the rounds. Without a
    /// fall, federated averaging ends at a distance from the optimum where sites differ (Li et al. 2020, theorem 4).
    pub final_learning_rate: f32,
    /// How updates are encoded and become one.
    pub aggregation: Aggregation,
    /// Under secure aggregation: the clip norm of each round follows the norms that the last sum reports, up to this; `None` keeps the
    /// announced one in all rounds (`SecureCodecPlan::next_clip_norm`).
    pub max_clip_norm: Option<f32>,
    /// Under secure aggregation in groups ([`SecurePlan::group_sites`](medinet_wire::secure::SecurePlan::group_sites)): how their
    /// means become one.
    pub groups: GroupRule,
    /// The most training images, in private rounds patients, that one site may claim: bounds its weight in the mean.
    pub max_examples: u64,
    /// Where the task starts.
    pub initial: InitialModel,
    /// How the mean delta moves the model.
    pub optimizer: ServerOptimizer,
    /// How new models go down: as deltas of 1 to 8 bits per parameter to the model before, or whole with 32.
    pub downlink_bits: u8,
    /// Evaluate, and release or reject, after every so many training rounds; always after the last one.
    pub evaluate_every: Option<u32>,
    /// When a candidate is released.
    pub release: ReleaseRule,
}

/// Where a task starts.
#[derive(Debug, Clone, PartialEq)]
pub enum InitialModel {
    /// Random parameters, the same for the same seed.
    Seed(u64),
    /// Given parameters, of the network's length.
    Parameters(Vec<f32>),
}

/// When a candidate model is released to all sites.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReleaseRule {
    /// Least median over sites of the AUROC on their validation splits, 0 to 1.
    pub min_median_auroc: f64,
    /// How much lower a site may measure it than the previous release, in the median over sites, 0 to 1.
    pub max_regression: f64,
    /// Least number of sites whose policy lets their AUROC out, at least 1; with fewer nothing is released.
    pub min_reporting_sites: u32,
    /// The sites' votes that a candidate needs besides; `None` leaves the decision to the figures above. Sites may ask for votes by
    /// their own policy all the same.
    pub votes: Option<Quorum>,
    /// Whether training goes back to the newest release when sites reject a candidate, or measure it as further below that release than
    /// `max_regression` allows; otherwise it goes on from what was rejected. Before the first release there is nothing to go back to.
    pub go_back: bool,
}

/// A task plan that cannot work; whoever wrote it is at fault.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TaskPlanError {
    /// A setting lies outside its range.
    #[error("task plan: {field}: expected {expected}, got {got}")]
    Field {
        /// The setting.
        field: &'static str,
        /// Its range.
        expected: String,
        /// What it holds.
        got: String,
    },
    /// The network cannot be built, or the preprocessing makes no input for it.
    #[error(transparent)]
    Network(#[from] ManifestError),
    /// The given initial parameters are not the network's.
    #[error(transparent)]
    Parameters(#[from] ParameterError),
    /// The codec plan breaks its rules.
    #[error(transparent)]
    Codec(#[from] medinet_update::PlanError),
    /// The noise inside secure aggregation breaks its rules.
    #[error(transparent)]
    Noise(#[from] medinet_update::NoiseError),
}

impl From<SecurePlanError> for TaskPlanError {
    fn from(error: SecurePlanError) -> Self {
        match error {
            SecurePlanError::Codec(error) => Self::Codec(error),
            SecurePlanError::Noise(error) => Self::Noise(error),
            SecurePlanError::Field { field, expected, got } => {
                Self::Field { field, expected, got: got.to_string() }
            }
            SecurePlanError::Session(why) => {
                let expected = "a plan that makes a session of secure aggregation".to_owned();
                Self::Field { field: "aggregation", expected, got: why }
            }
        }
    }
}

/// What comes after a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    Train,
    Evaluate,
    Finish,
}

impl TaskPlan {
    /// Checks every setting against its range and the others.
    ///
    /// # Errors
    /// Names the setting, its range and what it holds.
    pub fn check(&self) -> Result<(), TaskPlanError> {
        fn need(
            good: bool,
            field: &'static str,
            expected: impl Into<String>,
            got: impl ToString,
        ) -> Result<(), TaskPlanError> {
            if good {
                return Ok(());
            }
            Err(TaskPlanError::Field { field, expected: expected.into(), got: got.to_string() })
        }
        self.spec.check()?;
        match &self.aggregation {
            Aggregation::Plain(codec) => codec.check()?,
            Aggregation::Secure(secure) => {
                let parameters = ParameterLayout::of(&self.spec.network)?.len();
                secure.check(self.min_sites, self.most_sites(), parameters)?;
                let twice = secure.codec.noise.is_some() && self.training.privacy.is_some();
                let expected =
                    "either training.privacy or aggregation.secure.noise, which would be charged twice";
                need(!twice, "aggregation", expected, "both")?;
                // The sum tells no norm, and a clip norm that followed patients' data would not be accounted for.
                let moves = self.max_clip_norm.filter(|_| secure.codec.noise.is_some());
                let clip = secure.codec.clip_norm;
                let good = moves.is_none_or(|most| most == clip);
                need(good, "max_clip_norm", format!("clip_norm ({clip}) with noise"), moves.unwrap_or(clip))?;
            }
        }
        let members = self.members.len();
        need(self.rounds >= 1, "rounds", "at least 1", self.rounds)?;
        need(
            self.min_sites >= 1 && self.min_sites as usize <= members,
            "min_sites",
            format!("1 to the number of members ({members})"),
            self.min_sites,
        )?;
        need(
            self.max_sites >= self.min_sites,
            "max_sites",
            format!("at least min_sites ({})", self.min_sites),
            self.max_sites,
        )?;
        let deadline = self.round_deadline.as_millis();
        need(deadline >= 1, "round_deadline", "at least 1 ms", format!("{deadline} ms"))?;
        need(
            self.join_grace <= self.round_deadline,
            "join_grace",
            format!("at most round_deadline ({deadline} ms)"),
            format!("{} ms", self.join_grace.as_millis()),
        )?;
        if let Some(least) = self.aggregation.secure().and_then(|secure| secure.group_sites) {
            let (rule, faulty) = (self.groups.rule, self.groups.faulty);
            let Some(groups) = self.groups.least_groups() else {
                let expected = format!("a number of bad groups that {rule:?} withstands");
                return Err(TaskPlanError::Field {
                    field: "aggregation.secure.groups.faulty",
                    expected,
                    got: faulty.to_string(),
                });
            };
            need(
                self.min_sites as usize / least.max(1) as usize >= groups,
                "min_sites",
                format!(
                    "sites for {groups} groups of {least}, which {rule:?} needs against {faulty} bad ones"
                ),
                self.min_sites,
            )?;
            if let NormLimit::Fixed(limit) | NormLimit::MedianTimes(limit) = self.groups.norm_limit {
                let good = limit.is_finite() && limit > 0.0;
                need(good, "aggregation.secure.groups.norm_limit", "a finite number above 0", limit)?;
            }
        }
        if let Some(most) = self.max_clip_norm {
            let least = self.aggregation.clip_norm();
            let good = most.is_finite() && most >= least;
            need(good, "max_clip_norm", format!("a number of at least clip_norm ({least})"), most)?;
        }
        let end = self.final_learning_rate;
        need(end > 0.0 && end <= 1.0, "final_learning_rate", "above 0, at most 1", end)?;
        need(self.max_examples >= 1, "max_examples", "at least 1", self.max_examples)?;
        let bits = self.downlink_bits;
        need(is_downlink(bits), "downlink_bits", "1 to 8, or 32 for whole models", bits)?;
        need(self.evaluate_every != Some(0), "evaluate_every", "at least 1", 0)?;
        let rule = &self.release;
        for (field, value) in [
            ("release.min_median_auroc", rule.min_median_auroc),
            ("release.max_regression", rule.max_regression),
        ] {
            need((0.0..=1.0).contains(&value), field, "0 to 1", value)?;
        }
        if let Some(Quorum { min_accepting, min_accept_permille }) = rule.votes {
            need(
                min_accepting >= 1 && min_accepting as usize <= members,
                "release.votes.min_accepting",
                format!("1 to the number of members ({members})"),
                min_accepting,
            )?;
            need(
                min_accept_permille <= 1000,
                "release.votes.min_accept_permille",
                "0 to 1000",
                min_accept_permille,
            )?;
        }
        need(
            rule.min_reporting_sites >= 1 && rule.min_reporting_sites as usize <= members,
            "release.min_reporting_sites",
            format!("1 to the number of members ({members})"),
            rule.min_reporting_sites,
        )
    }

    /// `max_sites`; with secure aggregation no more than there are members, as every site more makes all inputs longer.
    pub(crate) fn most_sites(&self) -> u32 {
        match &self.aggregation {
            Aggregation::Plain(_) => self.max_sites,
            Aggregation::Secure(_) => {
                self.max_sites.min(u32::try_from(self.members.len()).unwrap_or(u32::MAX))
            }
        }
    }

    /// How a round's updates are encoded, where the last sum asks for another clip norm than the plan's.
    pub(crate) fn aggregation_with(&self, clip_norm: Option<f32>) -> Aggregation {
        let mut aggregation = self.aggregation.clone();
        if let (Aggregation::Secure(secure), Some(clip_norm), Some(most)) =
            (&mut aggregation, clip_norm, self.max_clip_norm)
        {
            secure.codec.clip_norm = clip_norm.min(most);
        }
        aggregation
    }

    /// How sites train on a model of version `trained`, one per training round.
    pub(crate) fn training_from(&self, trained: ModelVersion) -> TrainingPlan {
        let progress = f64::from(trained.0) / f64::from(self.rounds.saturating_sub(1).max(1));
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * progress.min(1.0)).cos());
        let end = f64::from(self.final_learning_rate);
        let learning_rate = f64::from(self.training.learning_rate) * (end + (1.0 - end) * cosine);
        TrainingPlan { learning_rate: learning_rate as f32, ..self.training.clone() }
    }

    pub(crate) fn initial_parameters(&self) -> Result<Vec<f32>, TaskPlanError> {
        let network = &self.spec.network;
        let parameters = match &self.initial {
            InitialModel::Seed(seed) => ModelParameters::initial(network, *seed)?,
            InitialModel::Parameters(values) => ModelParameters::new(network, values.clone())?,
        };
        Ok(parameters.into_vec())
    }

    /// What to do with a model of version `trained` (one per training round), given the version that was last evaluated.
    pub(crate) fn next(&self, trained: ModelVersion, evaluated: Option<ModelVersion>) -> Next {
        let due =
            trained.0 >= self.rounds || self.evaluate_every.is_some_and(|k| trained.0.is_multiple_of(k));
        if trained.0 > 0 && due && evaluated != Some(trained) {
            Next::Evaluate
        } else if trained.0 < self.rounds {
            Next::Train
        } else {
            Next::Finish
        }
    }

    /// Rounds that the task takes in all, evaluation rounds included.
    #[must_use]
    pub fn total_rounds(&self) -> u32 {
        let evaluations = match self.evaluate_every {
            Some(k) if k > 0 => self.rounds.div_ceil(k),
            _ => 1,
        };
        self.rounds.saturating_add(evaluations)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::plan;

    #[test]
    fn the_schedule_evaluates_where_it_should() {
        let mut plan = plan(3);
        plan.rounds = 5;
        plan.evaluate_every = Some(2);
        let (mut trained, mut evaluated, mut steps) = (ModelVersion(0), None, Vec::new());
        loop {
            let next = plan.next(trained, evaluated);
            steps.push(next);
            match next {
                Next::Train => trained.0 += 1,
                Next::Evaluate => evaluated = Some(trained),
                Next::Finish => break,
            }
        }
        use Next::{Evaluate, Finish, Train};
        assert_eq!(steps, [Train, Train, Evaluate, Train, Train, Evaluate, Train, Evaluate, Finish]);
        assert_eq!(plan.total_rounds() as usize, steps.len() - 1);
    }

    #[test]
    fn the_learning_rate_falls_from_the_first_round_to_the_last() {
        let mut plan = plan(3);
        plan.rounds = 5;
        plan.training.learning_rate = 0.2;
        plan.final_learning_rate = 0.1;
        let rates: Vec<f32> = (0..7).map(|v| plan.training_from(ModelVersion(v)).learning_rate).collect();
        assert_eq!(rates[0], 0.2);
        assert!((rates[2] - 0.11).abs() < 1e-6 && (rates[4] - 0.02).abs() < 1e-6, "{rates:?}");
        assert!(rates.windows(2).all(|pair| pair[0] >= pair[1]), "{rates:?}");
        plan.rounds = 1;
        assert_eq!(plan.training_from(ModelVersion(0)).learning_rate, 0.2);
    }

    #[test]
    fn impossible_plans_are_refused_by_name() {
        type Change = fn(&mut TaskPlan);
        let cases: [(&str, Change); 13] = [
            ("rounds", |p| p.rounds = 0),
            ("min_sites", |p| p.min_sites = 4),
            ("min_sites", |p| p.min_sites = 0),
            ("max_sites", |p| p.max_sites = 1),
            ("join_grace", |p| p.join_grace = p.round_deadline * 2),
            ("evaluate_every", |p| p.evaluate_every = Some(0)),
            ("downlink_bits", |p| p.downlink_bits = 0),
            ("downlink_bits", |p| p.downlink_bits = 9),
            ("final_learning_rate", |p| p.final_learning_rate = f32::NAN),
            ("release.min_median_auroc", |p| p.release.min_median_auroc = f64::NAN),
            ("release.min_reporting_sites", |p| p.release.min_reporting_sites = 9),
            ("release.votes.min_accepting", |p| {
                p.release.votes = Some(Quorum { min_accepting: 4, min_accept_permille: 0 });
            }),
            ("release.votes.min_accept_permille", |p| {
                p.release.votes = Some(Quorum { min_accepting: 1, min_accept_permille: 1001 });
            }),
        ];
        plan(3).check().unwrap();
        for (field, change) in cases {
            let mut plan = plan(3);
            change(&mut plan);
            let error = plan.check().unwrap_err().to_string();
            assert!(error.contains(field), "{field}: {error}");
        }
    }
}
