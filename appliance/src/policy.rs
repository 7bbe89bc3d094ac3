//! The site's own policy: which rounds it takes part in, decided at the site before anything starts.

use crate::privacy_budget::BudgetKeeper;
use crate::round_cost::RoundCost;
use crate::vote::{ReleasePolicy, VotePolicy};
use medinet_privacy::{Delta, Epsilon, PrivacyLimit};
use medinet_secagg::{Adversary, Assumptions};
use medinet_types::{ModelDigest, TaskId, UnixMillis};
use medinet_wire::message::{RoundKind, RoundPlan};
use serde::{Deserialize, Serialize};

/// What the hospital accepts. Everything that a round asks beyond it is refused, and the operator reads why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SitePolicy {
    /// Tasks that the site trains and measures; any other is refused.
    pub(crate) tasks: Vec<TaskId>,
    /// The smallest cohort: a round that aggregates with fewer sites is refused. In rounds with groups it is a minimum for the
    /// group.
    #[serde(default = "default_min_sites")]
    pub(crate) min_sites: u32,
    /// The most passes over the data that a round may ask for.
    pub(crate) max_local_epochs: u32,
    /// The largest L2 norm that an update may have.
    pub(crate) max_update_norm: f32,
    /// Whether measurements (counts, AUROC, loss) may leave the site. What leaves all the same: the exact numbers of instances taken in and quarantined,
    /// in the status; images per class, in tens, when the data set is registered; votes.
    pub(crate) metrics_may_leave: bool,
    /// Base models that the site begins a task with; what rounds that it has heard of make of them is accepted too. An empty list accepts any.
    #[serde(default)]
    pub(crate) base_models: Vec<ModelDigest>,
    /// Whether an update may leave under the aggregator's eyes; false accepts only rounds with secure aggregation.
    #[serde(default)]
    pub(crate) plain_updates_may_leave: bool,
    /// Whether the site trains only in rounds with differential privacy for its patients.
    #[serde(default)]
    pub(crate) require_differential_privacy: bool,
    /// The most that one round may cost a patient, as epsilon at `delta`.
    #[serde(default = "default_epsilon_per_round")]
    pub(crate) max_epsilon_per_round: Epsilon,
    /// The most that all rounds of the task may cost together, as epsilon at `delta`.
    #[serde(default = "default_epsilon_total")]
    pub(crate) max_epsilon_total: Epsilon,
    /// The probability with which epsilon may not hold.
    #[serde(default = "default_delta")]
    pub(crate) delta: Delta,
    /// Whether the site trains a task without differential privacy after it has trained it with: then its budget bounds nothing any more.
    #[serde(default)]
    pub(crate) plain_training_after_private: bool,
    /// Whether private rounds of a task may have other noise or another sampling rate than the one before.
    #[serde(default)]
    pub(crate) privacy_parameters_may_change: bool,
    /// What secure aggregation must withstand.
    #[serde(default)]
    pub(crate) secure_aggregation: SecurePolicy,
    /// How it votes on candidates.
    #[serde(default)]
    pub(crate) vote: VotePolicy,
    /// Which votes of others a release needs to be kept here.
    #[serde(default)]
    pub(crate) release: ReleasePolicy,
    /// When the site trains, in UTC, such as `["22:00-06:00"]`; an empty list is always.
    #[serde(default)]
    pub(crate) training_hours: Vec<Hours>,
}

/// Of a sum of two each site knows the other's update.
fn default_min_sites() -> u32 {
    3
}

fn default_epsilon_per_round() -> Epsilon {
    Epsilon::new(1.0).expect("in range")
}

fn default_epsilon_total() -> Epsilon {
    Epsilon::new(8.0).expect("in range")
}

fn default_delta() -> Delta {
    Delta::new(1e-5).expect("in range")
}

/// What the hospital asks of secure aggregation; see [`medinet_secagg::Assumptions`]. A round that withstands less is declined.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct SecurePolicy {
    /// The fewest sites, this one included, whose updates make up an opened sum; `None` for [`SitePolicy::min_sites`].
    pub(crate) min_survivors: Option<u16>,
    /// Whether the aggregator must be assumed to lie.
    pub(crate) adversary: Adversary,
    /// Of 1,000 sites, how many may collude with the aggregator.
    pub(crate) corrupt_permille: u16,
    /// How many may collude however few the aggregator names for a session: the share above is one of a list that it chooses.
    pub(crate) colluders: u16,
    /// The graph of masks is insecure with probability at most 2^-this.
    pub(crate) security_bits: u8,
    /// How many graphs the aggregator can try, as a power of two.
    pub(crate) grinding_bits: u8,
    /// In how many rounds without differential privacy that start from one base model the site's update may be in a sum, at least 1.
    pub(crate) max_rounds_per_base: u32,
}

impl Default for SecurePolicy {
    fn default() -> Self {
        let Assumptions { adversary, corrupt_permille, colluders, security_bits, grinding_bits, .. } =
            Assumptions::default();
        Self {
            min_survivors: None,
            adversary,
            corrupt_permille,
            colluders,
            security_bits,
            grinding_bits,
            max_rounds_per_base: 8,
        }
    }
}

/// A span of the day in UTC; it may pass midnight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Hours {
    from_minute: u16,
    to_minute: u16,
}

/// Text that is no span of the day.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected a span of the day in UTC such as \"22:00-06:00\", got {got:?}")]
pub(crate) struct ParseHoursError {
    got: String,
}

impl Hours {
    fn contains(self, minute: u16) -> bool {
        if self.from_minute <= self.to_minute {
            (self.from_minute..self.to_minute).contains(&minute)
        } else {
            minute >= self.from_minute || minute < self.to_minute
        }
    }
}

impl TryFrom<String> for Hours {
    type Error = ParseHoursError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let minute = |part: &str| -> Option<u16> {
            let (hours, minutes) = part.trim().split_once(':')?;
            let (hours, minutes): (u16, u16) = (hours.parse().ok()?, minutes.parse().ok()?);
            (hours < 24 && minutes < 60 || hours == 24 && minutes == 0).then_some(hours * 60 + minutes)
        };
        let parsed = text.split_once('-').and_then(|(from, to)| Some((minute(from)?, minute(to)?)));
        match parsed {
            Some((from_minute, to_minute)) if from_minute != to_minute => Ok(Self { from_minute, to_minute }),
            _ => Err(ParseHoursError { got: text.chars().take(80).collect() }),
        }
    }
}

impl From<Hours> for String {
    fn from(hours: Hours) -> Self {
        let text = |minute: u16| format!("{:02}:{:02}", minute / 60, minute % 60);
        format!("{}-{}", text(hours.from_minute), text(hours.to_minute))
    }
}

/// Why the site refuses a round; the text goes to the aggregator's operator.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub(crate) enum Refusal {
    /// The task is not on the site's list.
    #[error("task {0} is not among the tasks that this site accepts: ask the site to add it to policy.tasks")]
    Task(TaskId),
    /// The round would aggregate too few sites.
    #[error(
        "the round aggregates with {asked} sites, this site asks for at least {least}: plan {least} or more, or ask the site to lower \
         policy.min_sites"
    )]
    Cohort {
        /// The round's minimum.
        asked: u32,
        /// The site's minimum.
        least: u32,
    },
    /// The round asks for too much training.
    #[error(
        "the round asks for {asked} local epochs, this site does at most {most}: plan at most {most}, or ask the site to raise \
         policy.max_local_epochs"
    )]
    Epochs {
        /// The round's epochs.
        asked: u32,
        /// The site's limit.
        most: u32,
    },
    /// The round allows updates that are too long.
    #[error(
        "the round's update norm {asked} is above this site's limit {most}: plan a clip norm of at most {most}, or ask the site to raise \
         policy.max_update_norm"
    )]
    Norm {
        /// The round's clip norm.
        asked: f32,
        /// The site's limit.
        most: f32,
    },
    /// The aggregator would read the site's update.
    #[error(
        "the round asks for updates that the aggregator can read, this site takes part in secure aggregation only: plan that, or ask the site \
         to set policy.plain_updates_may_leave"
    )]
    PlainUpdate,
    /// Nothing would protect the site's patients.
    #[error(
        "the round trains without differential privacy, this site trains with it only: plan that, or ask the site to lift \
         policy.require_differential_privacy"
    )]
    NotPrivate,
    /// Rounds before this one were private, and their cost would bound nothing.
    #[error(
        "the round trains without differential privacy, and this site has spent epsilon {spent:.4} on rounds of this task with it, which \
         would bound nothing any more: go on with training.privacy or noise inside the sum, or end the task"
    )]
    NotPrivateAfterPrivate {
        /// Epsilon spent so far.
        spent: f64,
    },
    /// The private rounds before this one had other noise.
    #[error(
        "the round has {got}, the task's private rounds before it had {expected}: what they cost together is counted for noise that was not \
         chosen by what came out of earlier ones"
    )]
    OtherNoise {
        /// As before.
        expected: String,
        /// As asked.
        got: String,
    },
    /// The round costs too much privacy.
    #[error(
        "the round costs epsilon {asked:.4} at delta {delta}, this site gives at most {most} for one: plan more noise, or ask the site to \
         raise policy.max_epsilon_per_round"
    )]
    RoundEpsilon {
        /// What the site's accountant says.
        asked: f64,
        /// The site's limit.
        most: Epsilon,
        /// At which delta.
        delta: Delta,
    },
    /// The round's noise is none that could be charged.
    #[error("the round's noise is refused: {0}")]
    Noise(String),
    /// Nobody could follow the training plan.
    #[error("the round's training cannot be followed: {0}")]
    Training(String),
    /// The base model is not on the site's list, nor does it follow from one that is.
    #[error(
        "base model {0} is not in this site's policy.base_models, nor is it what rounds of training that this site heard of made of such a model: \
         if the site was away, look up on the ledger which round made the model and from what, and add it to policy.base_models"
    )]
    BaseModel(ModelDigest),
    /// The network cannot be built.
    #[error("the round's network cannot be built: {0}")]
    Network(String),
    /// The round is over before the site trains again.
    #[error(
        "the round ends before the hours in which this site works on rounds ({0}, UTC) begin: give it a longer deadline, or open it later"
    )]
    Hours(String),
    /// The deadline has passed.
    #[error("the round's deadline has passed")]
    Over,
}

impl SitePolicy {
    /// Checks a round; gives every reason that this policy alone has against it at once.
    #[must_use]
    pub(crate) fn refusals(&self, plan: &RoundPlan, now: UnixMillis) -> Vec<Refusal> {
        let mut refusals = Vec::new();
        if !self.tasks.contains(&plan.spec.task) {
            refusals.push(Refusal::Task(plan.spec.task.clone()));
        }
        if plan.kind == RoundKind::Train {
            // Where the cohort is dealt out into groups, the group is what the site hides in.
            let asked = plan.aggregation.least_in_sum(plan.min_sites);
            if asked < self.min_sites {
                refusals.push(Refusal::Cohort { asked, least: self.min_sites });
            }
            if plan.training.local_epochs > self.max_local_epochs {
                let (asked, most) = (plan.training.local_epochs, self.max_local_epochs);
                refusals.push(Refusal::Epochs { asked, most });
            }
            if let Err(error) = plan.training.check() {
                refusals.push(Refusal::Training(error.to_string()));
            }
            match RoundCost::of(plan) {
                Ok(Some(cost)) => {
                    let asked = cost.alone(&self.privacy_limit());
                    let (most, delta) = (self.max_epsilon_per_round, self.delta);
                    // Logarithms differ in their last digits between machines.
                    if asked > most.get() * (1.0 + 1e-6) {
                        refusals.push(Refusal::RoundEpsilon { asked, most, delta });
                    }
                }
                Ok(None) if self.require_differential_privacy => refusals.push(Refusal::NotPrivate),
                Ok(None) => {}
                Err(why) => refusals.push(Refusal::Noise(why)),
            }
            if plan.aggregation.secure().is_none() && !self.plain_updates_may_leave {
                refusals.push(Refusal::PlainUpdate);
            }
            let asked = plan.aggregation.clip_norm();
            // Written so that a clip norm that is not a number is refused too.
            let within = asked <= self.max_update_norm;
            if !within {
                refusals.push(Refusal::Norm { asked, most: self.max_update_norm });
            }
        }
        if let Err(error) = plan.spec.check() {
            refusals.push(Refusal::Network(error.to_string()));
        }
        if now > plan.deadline {
            refusals.push(Refusal::Over);
        } else if !self.may_train_within(now, plan.deadline) {
            let hours: Vec<String> = self.training_hours.iter().map(|&hours| hours.into()).collect();
            refusals.push(Refusal::Hours(hours.join(" and ")));
        }
        refusals
    }

    /// Checks a round against what was charged for rounds of its task before it; `cost` is what this one is charged.
    #[must_use]
    pub(crate) fn refusal_after(
        &self,
        plan: &RoundPlan,
        cost: Option<&RoundCost>,
        budget: &BudgetKeeper,
    ) -> Option<Refusal> {
        match cost {
            None if plan.kind == RoundKind::Train
                && budget.is_charged()
                && !self.plain_training_after_private =>
            {
                Some(Refusal::NotPrivateAfterPrivate { spent: budget.spent() })
            }
            None => None,
            Some(_) if self.privacy_parameters_may_change => None,
            Some(cost) => {
                let before = budget.newest_mechanism()?;
                let (expected, got) = (RoundCost::mechanism(&before), RoundCost::mechanism(&cost.event));
                (!before.same_mechanism(&cost.event)).then_some(Refusal::OtherNoise { expected, got })
            }
        }
    }

    /// What all rounds of the task may cost the site's patients together.
    #[must_use]
    pub(crate) fn privacy_limit(&self) -> PrivacyLimit {
        PrivacyLimit { epsilon: self.max_epsilon_total, delta: self.delta }
    }

    /// What the site insists on in sessions of secure aggregation.
    #[must_use]
    pub(crate) fn sessions(&self) -> medinet_secagg::SitePolicy {
        let SecurePolicy {
            min_survivors,
            adversary,
            corrupt_permille,
            colluders,
            security_bits,
            grinding_bits,
            max_rounds_per_base: _,
        } = self.secure_aggregation;
        let minimum_cohort = u16::try_from(self.min_sites).unwrap_or(u16::MAX);
        medinet_secagg::SitePolicy {
            minimum_cohort,
            minimum_survivors: min_survivors.unwrap_or(minimum_cohort),
            assumptions: Assumptions {
                adversary,
                corrupt_permille,
                colluders,
                security_bits,
                grinding_bits,
                ..Assumptions::default()
            },
        }
    }

    /// What an operator should know of this policy before any round. What it allows is done all the same.
    #[must_use]
    pub(crate) fn warnings(&self) -> Vec<String> {
        let sessions = self.sessions();
        let least = sessions.minimum_cohort.max(sessions.minimum_survivors);
        // The share is of the sites there are; the number holds beyond them.
        let colluders = sessions.assumptions.corrupt(least).max(sessions.assumptions.colluders);
        let enough = colluders.saturating_add(3);
        if least >= enough {
            return Vec::new();
        }
        vec![format!(
            "policy.min_sites: expected at least {enough}, three sites besides the {colluders} that may collude with the \
             aggregator, got {least}: of a sum of two a site, or the aggregator with one of them, can take one update away \
             and has the other; raise it"
        )]
    }

    /// What an operator should know of this policy at a site that trains on so many patients: with a delta that is not below one over their number,
    /// giving one of them away whole would keep the promise.
    #[must_use]
    pub(crate) fn delta_warning(&self, patients: u64) -> Option<String> {
        let delta = self.delta.get();
        (delta * patients as f64 >= 1.0).then(|| {
            format!(
                "policy.delta: expected far below one over the {patients} patients of the training split, got {delta}: so large a delta allows that \
                 one of them is given away; lower it before the task's first private round"
            )
        })
    }

    /// Whether there is a moment between these two, both included, at which the site trains.
    fn may_train_within(&self, from: UnixMillis, to: UnixMillis) -> bool {
        let minute = from.0 / 60_000;
        let begins = |hours: &Hours| {
            let until = (1440 + u64::from(hours.from_minute) - minute % 1440) % 1440;
            (minute + until) * 60_000 <= to.0
        };
        self.may_train_at(from) || self.training_hours.iter().any(begins)
    }

    /// Whether the site trains at this moment.
    #[must_use]
    pub(crate) fn may_train_at(&self, now: UnixMillis) -> bool {
        let minute = u16::try_from(now.0 / 60_000 % 1440).expect("below 1440");
        self.training_hours.is_empty() || self.training_hours.iter().any(|hours| hours.contains(minute))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use medinet_model::{
        Augmentation, ClassBalance, InputShape, Intensity, NetworkManifest, Normalisation, Preprocessing,
        Resize, Slices, TaskSpec, TrainingPlan,
    };
    use medinet_privacy::{DpSgdPlan, NoiseMultiplier, SamplingRate};
    use medinet_types::{Digest, FederationId, ModelVersion, RoundNumber};
    use medinet_update::{CodecPlan, NoisePlan, SecureCodecPlan};
    use medinet_wire::blob::BlobManifest;
    use medinet_wire::message::{Aggregation, ModelRef};
    use medinet_wire::secure::SecurePlan;

    pub(crate) fn plan() -> RoundPlan {
        let input = InputShape { channels: 1, height: 28, width: 28 };
        RoundPlan {
            spec: TaskSpec {
                task: TaskId::new("pneumonia").unwrap(),
                purpose: "tells pneumonia from normal".into(),
                network: NetworkManifest::small(input, vec!["normal".into(), "pneumonia".into()]),
                preprocessing: Preprocessing {
                    slices: Slices::Single,
                    intensity: Intensity::Voi,
                    denoise: false,
                    spacing_mm: None,
                    resize: Resize::Letterbox,
                    normalisation: Normalisation::PerImage,
                },
            },
            round: RoundNumber(1),
            kind: RoundKind::Train,
            base: ModelRef {
                digest: ModelDigest(Digest([1; 32])),
                version: ModelVersion(0),
                parameters: BlobManifest::of(b"parameters"),
            },
            steps: vec![],
            made_by: None,
            training: TrainingPlan {
                local_epochs: 2,
                batch_size: 16,
                learning_rate: 0.05,
                momentum: 0.9,
                weight_decay: 1e-4,
                proximal_mu: 0.0,
                augmentation: Augmentation::none(),
                class_balance: ClassBalance::None,
                early_stopping_epochs: 0,
                seed: 1,
                privacy: None,
            },
            privacy_total: None,
            aggregation: Aggregation::Plain(CodecPlan { bits: 8, clip_norm: 10.0, error_feedback: true }),
            min_sites: 3,
            max_sites: 10,
            opened_at: UnixMillis(0),
            deadline: UnixMillis(1000),
        }
    }

    pub(crate) fn policy() -> SitePolicy {
        SitePolicy {
            tasks: vec![TaskId::new("pneumonia").unwrap()],
            min_sites: 3,
            max_local_epochs: 5,
            max_update_norm: 20.0,
            metrics_may_leave: true,
            base_models: vec![],
            plain_updates_may_leave: true,
            require_differential_privacy: false,
            max_epsilon_per_round: default_epsilon_per_round(),
            max_epsilon_total: default_epsilon_total(),
            delta: default_delta(),
            plain_training_after_private: false,
            privacy_parameters_may_change: false,
            secure_aggregation: SecurePolicy::default(),
            vote: VotePolicy::default(),
            release: ReleasePolicy::default(),
            training_hours: vec![],
        }
    }

    #[test]
    fn updates_leave_in_the_open_only_where_the_hospital_says_so() {
        let policy = SitePolicy { plain_updates_may_leave: false, ..policy() };
        assert_eq!(policy.refusals(&plan(), UnixMillis(500)), [Refusal::PlainUpdate]);
        let mut secure = plan();
        secure.aggregation = Aggregation::Secure(SecurePlan {
            federation: FederationId::new("chest").unwrap(),
            codec: SecureCodecPlan {
                bits: 4,
                clip_norm: 10.0,
                error_feedback: true,
                kept_permille: 1000,
                reference_examples: 100,
                noise: None,
            },
            assumptions: Assumptions::default(),
            group_sites: None,
            max_attempts: 3,
            message_seconds: 60,
            input_seconds: 600,
        });
        assert_eq!(policy.refusals(&secure, UnixMillis(500)), []);
        // The site's minimum is one for its group, not for all groups together.
        let Aggregation::Secure(plan) = &mut secure.aggregation else { unreachable!() };
        plan.group_sites = Some(2);
        let refused = [Refusal::Cohort { asked: 2, least: 3 }];
        assert_eq!(policy.refusals(&secure, UnixMillis(500)), refused);
        let Aggregation::Secure(plan) = &mut secure.aggregation else { unreachable!() };
        plan.group_sites = Some(3);
        assert_eq!(policy.refusals(&secure, UnixMillis(500)), []);
    }

    #[test]
    fn a_policy_under_which_a_sum_may_be_of_two_is_warned_of() {
        let warnings = |min_sites, min_survivors, corrupt_permille| {
            let secure_aggregation =
                SecurePolicy { min_survivors, corrupt_permille, ..SecurePolicy::default() };
            SitePolicy { min_sites, secure_aggregation, ..policy() }.warnings()
        };
        let told = warnings(2, None, 100);
        assert!(
            told.len() == 1 && told[0].contains("expected at least 3") && told[0].contains("got 2"),
            "{told:?}"
        );
        // What counts is the larger of both: no round with fewer in its sum is entered.
        assert_eq!(warnings(2, Some(3), 100), [""; 0]);
        assert_eq!(warnings(default_min_sites(), None, 100), [""; 0]);
        // Of four sites one may collude, of five two where the hospital says so, by a share or by a number.
        let fixed = SecurePolicy { colluders: 2, ..SecurePolicy::default() };
        let told = SitePolicy { min_sites: 4, secure_aggregation: fixed, ..policy() }.warnings();
        assert!(told[0].contains("expected at least 5"), "{told:?}");
        assert_eq!(warnings(4, None, 100), [""; 0]);
        assert!(warnings(4, None, 500)[0].contains("expected at least 5"));
        let sessions = SitePolicy { min_sites: 4, ..policy() }.sessions();
        assert_eq!((sessions.minimum_cohort, sessions.minimum_survivors), (4, 4));
    }

    #[test]
    fn a_round_within_the_policy_is_accepted() {
        assert_eq!(policy().refusals(&plan(), UnixMillis(500)), []);
    }

    #[test]
    fn each_limit_refuses_and_all_reasons_are_given() {
        let mut plan = plan();
        plan.min_sites = 2;
        plan.training.local_epochs = 6;
        plan.aggregation =
            Aggregation::Plain(CodecPlan { bits: 8, clip_norm: f32::NAN, error_feedback: true });
        plan.spec.network.classes.clear();
        let mut policy = SitePolicy { plain_updates_may_leave: false, ..policy() };
        policy.require_differential_privacy = true;
        policy.tasks.clear();
        let refusals = policy.refusals(&plan, UnixMillis(1001));
        assert!(
            matches!(
                &refusals[..],
                [
                    Refusal::Task(task),
                    Refusal::Cohort { asked: 2, least: 3 },
                    Refusal::Epochs { asked: 6, most: 5 },
                    Refusal::NotPrivate,
                    Refusal::PlainUpdate,
                    Refusal::Norm { asked, most: 20.0 },
                    Refusal::Network(_),
                    Refusal::Over,
                ] if *task == plan.spec.task && asked.is_nan()
            ),
            "{refusals:?}"
        );
        // Each of them alone, so that none stands for another.
        policy.tasks.push(plan.spec.task.clone());
        let left = policy.refusals(&plan, UnixMillis(1000));
        assert_eq!(left.len(), 6, "{left:?}");
        assert!(!left.iter().any(|refusal| matches!(refusal, Refusal::Task(_) | Refusal::Over)), "{left:?}");
    }

    #[test]
    fn a_delta_that_gives_a_patient_away_is_warned_of() {
        let policy = SitePolicy { delta: Delta::new(1e-3).unwrap(), ..policy() };
        assert_eq!(policy.delta_warning(999), None);
        let told = policy.delta_warning(1000).unwrap();
        assert!(
            told.contains("policy.delta") && told.contains("1000 patients") && told.contains("0.001"),
            "{told}"
        );
        assert_eq!(policy.delta_warning(0), None);
    }

    #[test]
    fn a_round_costs_no_more_privacy_than_the_site_gives() {
        let policy = SitePolicy { require_differential_privacy: true, ..policy() };
        let mut plan = plan();
        plan.training.local_epochs = 1;
        assert_eq!(policy.refusals(&plan, UnixMillis(500)), [Refusal::NotPrivate]);
        let epsilon = |value| Epsilon::new(value).unwrap();
        let privacy = |value| {
            let target = PrivacyLimit { epsilon: epsilon(value), delta: default_delta() };
            DpSgdPlan::for_target(&target, 1.0, SamplingRate::new(0.05).unwrap(), 20).unwrap()
        };
        plan.training.privacy = Some(privacy(1.0));
        assert_eq!(policy.refusals(&plan, UnixMillis(500)), []);
        // At a delta of its own a plan may say less; the site counts at the site's.
        let dear = SitePolicy { delta: Delta::new(1e-9).unwrap(), ..policy.clone() };
        let refusals = dear.refusals(&plan, UnixMillis(500));
        assert!(matches!(refusals[..], [Refusal::RoundEpsilon { asked, .. }] if asked > 1.0), "{refusals:?}");
        plan.training.privacy = Some(privacy(1.5));
        assert!(matches!(policy.refusals(&plan, UnixMillis(500))[..], [Refusal::RoundEpsilon { .. }]));
        // One that says less than it costs.
        plan.training.privacy = Some(DpSgdPlan { epsilon: epsilon(0.1), ..privacy(1.0) });
        assert!(matches!(policy.refusals(&plan, UnixMillis(500))[..], [Refusal::Training(_)]));
        plan.kind = RoundKind::Evaluate;
        assert_eq!(policy.refusals(&plan, UnixMillis(500)), []);
    }

    /// A round of three sites or more, of ten at most, with noise of this multiplier inside the sum.
    pub(crate) fn noisy(multiplier: f64) -> RoundPlan {
        let codec = SecureCodecPlan {
            bits: 4,
            clip_norm: 10.0,
            error_feedback: false,
            kept_permille: 1000,
            reference_examples: 1,
            noise: None,
        };
        let (mut plan, survivors) = (plan(), 2);
        let parameters = medinet_model::ParameterLayout::of(&plan.spec.network).unwrap().len();
        let variance =
            codec.noise_variance(NoiseMultiplier::new(multiplier).unwrap(), survivors, parameters).unwrap();
        let (epsilon, delta) = (Epsilon::new(1000.0).unwrap(), default_delta());
        let noise = NoisePlan { epsilon, delta, variance, honest_survivors: survivors };
        plan.aggregation = Aggregation::Secure(SecurePlan {
            federation: FederationId::new("chest").unwrap(),
            codec: SecureCodecPlan { noise: Some(noise), ..codec },
            assumptions: Assumptions::default(),
            group_sites: None,
            max_attempts: 3,
            message_seconds: 60,
            input_seconds: 600,
        });
        plan
    }

    #[test]
    fn noise_inside_the_sum_is_counted_by_the_site_itself() {
        let policy = SitePolicy { require_differential_privacy: true, ..policy() };
        assert_eq!(policy.refusals(&noisy(6.0), UnixMillis(500)), []);
        let refusals = policy.refusals(&noisy(3.0), UnixMillis(500));
        assert!(matches!(refusals[..], [Refusal::RoundEpsilon { asked, .. }] if asked > 1.0), "{refusals:?}");
        let lax = SitePolicy { max_epsilon_per_round: Epsilon::new(2.0).unwrap(), ..policy.clone() };
        assert_eq!(lax.refusals(&noisy(3.0), UnixMillis(500)), []);
        // One that claims less than it costs, and one with noise of both kinds.
        let mut understated = noisy(6.0);
        let Aggregation::Secure(secure) = &mut understated.aggregation else { unreachable!() };
        secure.codec.noise.as_mut().unwrap().epsilon = Epsilon::new(0.1).unwrap();
        let refusals = policy.refusals(&understated, UnixMillis(500));
        assert!(matches!(&refusals[..], [Refusal::Noise(why)] if why.contains("at least")), "{refusals:?}");
        let mut both = noisy(6.0);
        let target = PrivacyLimit { epsilon: Epsilon::new(1.0).unwrap(), delta: default_delta() };
        both.training.privacy =
            Some(DpSgdPlan::for_target(&target, 1.0, SamplingRate::new(0.05).unwrap(), 20).unwrap());
        both.training.local_epochs = 1;
        let refusals = policy.refusals(&both, UnixMillis(500));
        assert!(matches!(&refusals[..], [Refusal::Noise(why)] if why.contains("both")), "{refusals:?}");
    }

    /// Every round of it fits alone; composed they do not, and the budget refuses the first that is too many.
    #[test]
    fn rounds_with_noise_inside_the_sum_are_charged_until_the_budget_is_spent() {
        let data = tempfile::tempdir().unwrap();
        let (site, task) = (medinet_types::SiteId::new("north").unwrap(), TaskId::new("pneumonia").unwrap());
        let limit = PrivacyLimit { epsilon: Epsilon::new(1.6).unwrap(), delta: default_delta() };
        let mut budget =
            crate::privacy_budget::BudgetKeeper::open(data.path(), &site, &task, limit, UnixMillis(1))
                .unwrap();
        let cost = RoundCost::of(&noisy(6.0)).unwrap().unwrap();
        let alone = cost.alone(&limit);
        assert!(alone > 0.5 && alone < 1.0, "{alone}");
        let mut paid = 0;
        loop {
            let folder = data.path().join(paid.to_string());
            std::fs::create_dir(&folder).unwrap();
            match budget.charge(RoundNumber(paid + 1), &cost, &folder, UnixMillis(2)).unwrap() {
                crate::privacy_budget::Charge::Paid => paid += 1,
                crate::privacy_budget::Charge::Refused(why) => {
                    assert!(why.contains("privacy budget of task pneumonia"), "{why}");
                    assert_eq!(budget.refusal(&cost, &folder).unwrap(), Some(why));
                    break;
                }
            }
        }
        let composed = medinet_privacy::Composition::new().with(&cost.event.with_count(paid.into()));
        let expected = composed.epsilon(limit.delta, medinet_privacy::Accounting::Tight);
        let spent = budget.report().unwrap().spent.get();
        assert!(paid >= 2 && (spent / expected - 1.0).abs() < 1e-9, "{paid} rounds, {spent}, {expected}");
    }

    #[test]
    fn training_hours_may_pass_midnight() {
        let mut policy = policy();
        policy.training_hours = vec![Hours::try_from("22:00-06:00".to_owned()).unwrap()];
        let at = |hour: u64, minute: u64| UnixMillis((hour * 60 + minute) * 60_000);
        assert!(policy.may_train_at(at(23, 0)));
        assert!(policy.may_train_at(at(5, 59)));
        assert!(!policy.may_train_at(at(6, 0)));
        assert!(!policy.may_train_at(at(12, 0)));
        // A round that is over before they begin is declined, with the hours; one that reaches into them waits.
        let ends = |deadline| {
            let plan = RoundPlan { deadline, ..plan() };
            policy.refusals(&plan, at(12, 0))
        };
        let day = UnixMillis(24 * 60 * 60_000);
        let refusals = ends(at(21, 59));
        assert!(matches!(&refusals[..], [Refusal::Hours(_)]), "{refusals:?}");
        assert!(refusals[0].to_string().contains("22:00-06:00"), "{}", refusals[0]);
        assert_eq!(ends(at(22, 0)), vec![]);
        assert_eq!(ends(UnixMillis(day.0 + at(12, 0).0)), vec![]);
        // Tomorrow's hours, asked for on the evening of the day before, a minute after they closed.
        policy.training_hours = vec![Hours::try_from("06:00-07:00".to_owned()).unwrap()];
        let late = RoundPlan { deadline: UnixMillis(day.0 + at(5, 59).0), ..plan() };
        assert_eq!(policy.refusals(&late, at(7, 0)).len(), 1);
        let enough = RoundPlan { deadline: UnixMillis(day.0 + at(6, 0).0), ..plan() };
        assert_eq!(policy.refusals(&enough, at(7, 0)), vec![]);
        for bad in ["", "22:00", "25:00-06:00", "22:61-06:00", "06:00-06:00"] {
            assert!(Hours::try_from(bad.to_owned()).is_err(), "{bad:?}");
        }
    }
}
