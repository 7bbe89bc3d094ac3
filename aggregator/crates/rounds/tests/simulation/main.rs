//! Whole federations under faults, in one thread, by a mock clock. Each schedule follows from its seed, which a failure prints.

#![allow(clippy::unwrap_used, reason = "helpers of tests, outside test functions")]

mod arbitrary;
mod chance;
mod oracle;
mod site;
mod votes;
mod world;

use chance::Chance;
use medinet_fixtures::{task_spec, training_plan};
use medinet_model::ModelParameters;
use medinet_rounds::{
    GroupRule, InitialModel, Outcome, RejectionReason, ReleaseRule, RoundRecord, ServerOptimizer, TaskPlan,
};
use medinet_types::ModelDigest;
use medinet_update::CodecPlan;
use medinet_wire::message::{Aggregation, RefusalReason, ToSite};
use medinet_wire::vote::Quorum;
use site::{Character, site_id};
use std::collections::BTreeMap;
use std::time::Duration;
use world::{Faults, World};

fn plan(members: usize, min_sites: u32, rounds: u32) -> TaskPlan {
    TaskPlan {
        spec: task_spec(),
        members: (0..members).map(site_id).collect(),
        rounds,
        min_sites,
        max_sites: members as u32,
        round_deadline: Duration::from_secs(600),
        join_grace: Duration::from_secs(20),
        max_extensions: 3,
        max_repeats: 0,
        training: training_plan(),
        final_learning_rate: 1.0,
        max_clip_norm: None,
        groups: GroupRule::default(),
        aggregation: Aggregation::Plain(CodecPlan { bits: 8, clip_norm: 10.0, error_feedback: false }),
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

fn faults(chance: &mut Chance) -> Faults {
    Faults {
        until_ms: 20_000 + chance.below(200_000),
        lose_percent: chance.below(60),
        duplicate_percent: chance.below(40),
        longest_delay_ms: 1 + chance.below(8_000),
        kill_aggregator_per_mille: chance.below(120),
        kill_site_percent: chance.below(12),
        longest_downtime_ms: 1 + chance.below(15_000),
        longest_training_ms: 1 + chance.below(10_000),
        rot_percent: 0,
    }
}

fn initial(plan: &TaskPlan) -> Vec<f32> {
    let InitialModel::Seed(seed) = plan.initial else { unreachable!("the plan above") };
    ModelParameters::initial(&plan.spec.network, seed).unwrap().into_vec()
}

/// Runs a world to its end and audits its records.
fn finish(mut world: World, seed: u64) -> (World, Vec<ModelDigest>) {
    let outcome =
        world.run().and_then(|()| oracle::audit(&world.plan, &initial(&world.plan), &world.records));
    match outcome {
        Ok(models) => {
            assert_eq!(world.model(), Some(models.current), "seed {seed}");
            assert!(world.announced().is_none(), "seed {seed}: a round is announced after the end");
            (world, models.made)
        }
        Err(error) => {
            let tail: Vec<_> = world.records.iter().rev().take(12).collect();
            panic!("seed {seed}: {error}\nnewest records first: {tail:#?}");
        }
    }
}

/// Every member must count, so whatever happens the models are those of an undisturbed run.
fn same_model_as_undisturbed(seeds: std::ops::Range<u64>) -> u32 {
    let mut undisturbed: BTreeMap<(usize, u32, u8), Vec<ModelDigest>> = BTreeMap::new();
    let (mut kills, mut followed) = (0, 0);
    for seed in seeds {
        let mut chance = Chance::new(seed ^ 0x5eed);
        let (members, rounds) = (2 + chance.below(4) as usize, 1 + chance.below(3) as u32);
        let downlink_bits = [4, 1, 8, 32][seed as usize % 4];
        let plan = TaskPlan { downlink_bits, ..plan(members, members as u32, rounds) };
        let mut characters = vec![Character::Honest; members];
        characters[0] = Character::Secretive;
        let expected = undisturbed
            .entry((members, rounds, downlink_bits))
            .or_insert_with(|| finish(World::new(plan.clone(), &characters, Faults::none(), 0), 0).1);
        let faults = faults(&mut chance);
        let (world, models) = finish(World::new(plan, &characters, faults, seed), seed);
        assert_eq!(models, *expected, "seed {seed}: other models than undisturbed");
        kills += world.kills;
        followed += world.followed;
    }
    assert!(followed > 0, "no announcement had a step to follow");
    kills
}

#[test]
fn whatever_happens_the_models_are_those_of_an_undisturbed_run() {
    let kills = same_model_as_undisturbed(0..3_000);
    println!("3000 schedules, {kills} kills of the aggregator");
    assert!(kills > 3_000, "the schedules are too tame: {kills} kills");
}

/// Members that decline, garble, boast or confuse, strangers, short deadlines, disks that lose updates.
fn unruly(seed: u64) -> World {
    use Character::{Boastful, Confused, Declines, Garbled, Honest, Secretive, Stranger};
    let mut chance = Chance::new(seed ^ 0xbad);
    let honest = 2 + chance.below(4) as usize;
    let mut characters = vec![Honest; honest];
    for _ in 0..chance.below(4) {
        let all = [Declines, Garbled, Boastful, Confused, Secretive];
        characters.push(all[chance.below(all.len() as u64) as usize]);
    }
    let members = characters.len();
    let mut plan = plan(members, 1 + chance.below(honest as u64) as u32, 1 + chance.below(3) as u32);
    plan.max_sites = plan.min_sites + chance.below(4) as u32;
    plan.round_deadline = Duration::from_millis(5_000 + chance.below(60_000));
    plan.join_grace = plan.round_deadline / (1 + chance.below(10) as u32);
    plan.max_extensions = chance.below(3) as u32;
    plan.evaluate_every = chance.percent(50).then_some(1);
    if chance.percent(50) {
        let min_accepting = 1 + chance.below(honest as u64) as u32;
        plan.release.votes = Some(Quorum { min_accepting, min_accept_permille: 500 });
    }
    if chance.percent(30) {
        characters.push(Stranger);
    }
    let mut faults = faults(&mut chance);
    // Once faults stop, training fits the deadline; before that it may or may not.
    faults.longest_training_ms = faults.longest_training_ms.min(4_000);
    if chance.percent(30) {
        faults.rot_percent = 30;
    }
    World::new(plan, &characters, faults, seed)
}

#[test]
fn unruly_federations_finish_with_exactly_the_updates_that_were_accepted() {
    let (mut kills, mut reasons) = (0, BTreeMap::<&str, u32>::new());
    let mut happened = BTreeMap::<&str, u32>::new();
    let mut published = 0;
    for seed in 0..3_000 {
        let (world, _) = finish(unruly(seed), seed);
        kills += world.kills;
        published += world.published;
        for (_, refusal) in &world.refusals {
            let ToSite::Refused { reason, .. } = refusal else { continue };
            *reasons.entry(name(reason)).or_default() += 1;
        }
        for record in &world.records {
            let name = match record {
                RoundRecord::UpdateLost { .. } => "lost",
                RoundRecord::RoundExtended { .. } => "extended",
                RoundRecord::TaskPaused { .. } => "paused",
                RoundRecord::SiteDeclined { .. } => "declined",
                RoundRecord::WentBack { .. } => "taken back",
                RoundRecord::ModelJudged { verdict, .. } => match verdict.outcome {
                    Outcome::Rejected(RejectionReason::NoQuorum { .. }) => "outvoted",
                    _ => continue,
                },
                _ => continue,
            };
            *happened.entry(name).or_default() += 1;
        }
    }
    println!("3000 schedules, {kills} kills, refusals {reasons:?}, {happened:?}, {published} published");
    assert!(published > 300, "{published} published");
    for reason in ["NotOpen", "Late", "Full", "OtherBase", "Malformed", "NotMember"] {
        assert!(reasons.contains_key(reason), "no schedule led to {reason}: {reasons:?}");
    }
    for what in ["lost", "extended", "paused", "declined", "outvoted", "taken back"] {
        assert!(happened.contains_key(what), "in no schedule anything was {what}: {happened:?}");
    }
}

fn name(reason: &RefusalReason) -> &'static str {
    match reason {
        RefusalReason::NotOpen { .. } => "NotOpen",
        RefusalReason::Late { .. } => "Late",
        RefusalReason::Full => "Full",
        RefusalReason::OtherBase { .. } => "OtherBase",
        RefusalReason::Malformed(_) => "Malformed",
        RefusalReason::NotMember => "NotMember",
    }
}

#[test]
fn strangers_and_liars_are_refused_for_the_right_reason() {
    use Character::{Boastful, Confused, Garbled, Honest, Stranger};
    let characters = [Honest, Honest, Garbled, Boastful, Confused, Stranger];
    let (world, _) = finish(World::new(plan(5, 2, 2), &characters, Faults::none(), 1), 1);
    let reasons = |n: usize| -> Vec<&str> {
        let of = world.refusals.iter().filter(|(site, _)| *site == n);
        of.filter_map(|(_, message)| match message {
            ToSite::Refused { reason, .. } => Some(name(reason)),
            _ => None,
        })
        .collect()
    };
    assert!(reasons(0).is_empty() && reasons(1).is_empty());
    assert!(!reasons(2).is_empty() && reasons(2).iter().all(|r| *r == "Malformed"), "{:?}", reasons(2));
    assert!(!reasons(3).is_empty() && reasons(3).iter().all(|r| *r == "Malformed"), "{:?}", reasons(3));
    assert!(!reasons(4).is_empty() && reasons(4).iter().all(|r| ["OtherBase", "NotOpen"].contains(r)));
    assert!(!reasons(5).is_empty() && reasons(5).iter().all(|r| *r == "NotMember"));
}

/// A thousand sites: the state grows by a small entry per site and by nothing of the model.
#[test]
fn a_thousand_sites_cost_a_list_and_no_vectors() {
    let snapshot_of = |sites: usize| {
        let characters = vec![Character::Honest; sites];
        let world = World::new(plan(sites, sites as u32, 1), &characters, Faults::none(), 5);
        finish(world, 5).0.largest_snapshot
    };
    let (few, many) = (snapshot_of(10), snapshot_of(1_000));
    let per_site = (many - few) / 990;
    println!("snapshot: {few} bytes with 10 sites, {many} with 1000, {per_site} a site");
    // Name, digest of the update, examples, one set of metrics, and a vote with the test's short certificate and signature; a real
    // vote is some 700 bytes. Of the model there is nothing.
    assert!(per_site < 192, "{per_site} bytes a site");
}
