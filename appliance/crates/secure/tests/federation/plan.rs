//! A task of a network of 37 parameters, and what its sites would have trained.

use medinet_fixtures::{task_spec, training_plan};
use medinet_privacy::{Delta, Epsilon, NoiseMultiplier, PrivacyLimit, PrivacyReport};
use medinet_rounds::{GroupRule, InitialModel, ReleaseRule, ServerOptimizer, TaskPlan};
use medinet_secagg::{Adversary, Assumptions, SitePolicy};
use medinet_types::{FederationId, RoundNumber, SiteId};
use medinet_update::{ErrorFeedback, ModelDelta, NoisePlan, Origin, SecureCodecPlan, SecureUpdate};
use medinet_wire::message::{Aggregation, RoundPlan};
use medinet_wire::secure::SecurePlan;
use std::time::Duration;

pub(crate) const PARAMETERS: usize = 37;
pub(crate) const REFERENCE: u32 = 1000;

pub(crate) fn site_id(n: usize) -> SiteId {
    SiteId::new(format!("site-{n:03}")).unwrap()
}

pub(crate) fn number(site: &SiteId) -> usize {
    site.as_str()[5..].parse().unwrap()
}

pub(crate) fn federation() -> FederationId {
    FederationId::new("test").unwrap()
}

/// A malicious server, a tenth colluding, a third lost.
pub(crate) fn assumptions() -> Assumptions {
    Assumptions { adversary: Adversary::Malicious, dropout_permille: 334, ..Assumptions::default() }
}

pub(crate) fn policy() -> SitePolicy {
    SitePolicy { minimum_cohort: 2, minimum_survivors: 2, assumptions: assumptions() }
}

pub(crate) fn plan(members: usize, min_sites: u32, rounds: u32) -> TaskPlan {
    let codec = SecureCodecPlan {
        bits: 4,
        clip_norm: 10.0,
        error_feedback: false,
        kept_permille: 1000,
        reference_examples: REFERENCE,
        noise: None,
    };
    TaskPlan {
        spec: task_spec(),
        members: (0..members).map(site_id).collect(),
        rounds,
        min_sites,
        max_sites: members as u32,
        round_deadline: Duration::from_secs(300),
        join_grace: Duration::from_secs(30),
        max_extensions: 3,
        max_repeats: 0,
        training: training_plan(),
        final_learning_rate: 1.0,
        max_clip_norm: None,
        groups: GroupRule::default(),
        aggregation: Aggregation::Secure(SecurePlan {
            federation: federation(),
            codec,
            assumptions: assumptions(),
            group_sites: None,
            max_attempts: 4,
            message_seconds: 15,
            input_seconds: 25,
        }),
        max_examples: 10_000,
        initial: InitialModel::Seed(7),
        optimizer: ServerOptimizer::FedAvg,
        downlink_bits: 4,
        evaluate_every: None,
        release: ReleaseRule {
            min_median_auroc: 0.5,
            max_regression: 0.1,
            min_reporting_sites: 1,
            votes: None,
            go_back: true,
        },
    }
}

/// The same with noise inside the sum, counted on all but those of the fewest survivors who may collude.
pub(crate) fn noisy_plan(members: usize, min_sites: u32, rounds: u32) -> TaskPlan {
    let mut plan = plan(members, min_sites, rounds);
    let Aggregation::Secure(secure) = &mut plan.aggregation else {
        unreachable!("a plan for secure aggregation")
    };
    let honest_survivors = min_sites - u32::from(secure.assumptions.corrupt(members as u16));
    let codec = SecureCodecPlan { reference_examples: 1, ..secure.codec };
    let multiplier = NoiseMultiplier::new(1.0).unwrap();
    let variance = codec.noise_variance(multiplier, honest_survivors, PARAMETERS).unwrap();
    let (epsilon, delta) = (Epsilon::new(5.0).unwrap(), Delta::new(1e-5).unwrap());
    secure.codec =
        SecureCodecPlan { noise: Some(NoisePlan { epsilon, delta, variance, honest_survivors }), ..codec };
    plan
}

pub(crate) fn examples(n: usize) -> u64 {
    100 + 211 * n as u64 % 1200
}

/// The same federation, dealt out into groups of at least `group_sites`.
pub(crate) fn grouped(mut plan: TaskPlan, group_sites: u32, groups: GroupRule) -> TaskPlan {
    let Aggregation::Secure(secure) = &mut plan.aggregation else { unreachable!("the plan above") };
    secure.group_sites = Some(group_sites);
    plan.groups = groups;
    plan
}

/// A task in which one site poisons: what it claims to have trained is as long as the clip norm lets it be, and the same in all
/// coordinates.
pub(crate) fn poisoned(mut plan: TaskPlan, n: usize) -> TaskPlan {
    plan.spec.purpose = format!("poisoned by {n}");
    plan
}

/// A task in which one site leaves the codec: it sends the grid's ends, and states one image.
pub(crate) fn cornered(mut plan: TaskPlan, n: usize) -> TaskPlan {
    plan.spec.purpose = format!("cornered by {n}");
    plan
}

/// What a site would have trained: the same after a restart, another in every round.
pub(crate) fn update(n: usize, plan: &RoundPlan) -> SecureUpdate {
    let codec = &plan.aggregation.secure().unwrap().codec;
    if plan.spec.purpose == format!("cornered by {n}") {
        let zeros = ModelDelta::new(vec![0.0; PARAMETERS]).unwrap();
        let origin = Origin { base: plan.base.digest, round: plan.round };
        let mut feedback = ErrorFeedback::new(PARAMETERS);
        let least = SecureUpdate::encode(zeros, codec, origin, 1, [0; 32], &mut feedback).unwrap();
        let mut bytes = least.to_site_bytes();
        // Two bytes of header, then a byte for each coordinate.
        bytes[2..2 + PARAMETERS].iter_mut().step_by(2).for_each(|code| *code = 0);
        bytes[3..2 + PARAMETERS].iter_mut().step_by(2).for_each(|code| *code = codec.largest() as u8);
        return SecureUpdate::from_site_bytes(&bytes, codec, PARAMETERS).unwrap();
    }
    let mix = |i: usize| (i * 31 + n * 17 + plan.round.0 as usize * 7) % 23;
    let poisons = plan.spec.purpose == format!("poisoned by {n}");
    let value = |i| if poisons { 10.0 } else { mix(i) as f32 / 23.0 - 0.4 };
    let delta = (0..PARAMETERS).map(value).collect();
    let origin = Origin { base: plan.base.digest, round: plan.round };
    let delta = ModelDelta::new(delta).unwrap();
    let mut feedback = ErrorFeedback::new(PARAMETERS);
    SecureUpdate::encode(delta, codec, origin, examples(n), [n as u8; 32], &mut feedback).unwrap()
}

/// What a site says of its budget in a round; another site, or another round, says something else.
pub(crate) fn budget_of(site: &SiteId, round: RoundNumber) -> PrivacyReport {
    let limit = PrivacyLimit { epsilon: Epsilon::new(8.0).unwrap(), delta: Delta::new(1e-5).unwrap() };
    let spent = Epsilon::new(f64::from(round.0) + number(site) as f64 / 1000.0).unwrap();
    PrivacyReport { spent, limit, unbounded: false, rounds: round.0 }
}
