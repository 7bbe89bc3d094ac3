//! Federations that are dealt out into groups: each is summed by itself, and a rule over the groups makes the model.

use crate::malice::Malice;
use crate::plan::{grouped, plan, poisoned, site_id};
use crate::world::{Faults, World};
use crate::{run, unruly};
use medinet_rounds::{GroupRule, NormLimit, Rule};
use medinet_types::SiteId;
use medinet_update::SecureMean;

fn rule(rule: Rule, faulty: usize) -> GroupRule {
    GroupRule { rule, norm_limit: NormLimit::Unlimited, faulty }
}

#[test]
fn undisturbed_federations_take_one_session_a_group() {
    for (sites, group_sites, groups) in [(4, 2, 2), (9, 3, 3), (20, 3, 6), (50, 5, 10)] {
        let plan = grouped(plan(sites, sites as u32, 2), group_sites, rule(Rule::Median, 0));
        let mut world = World::new(plan, Faults::NONE, sites as u64);
        run(&mut world, sites as u64);
        assert_eq!((world.models(), world.audit.sessions), (2, 2 * groups), "{sites} sites");
        assert!(world.audit.failed.is_empty());
    }
}

/// The audit checks with every record that no site is in two sums of a round, restarts or not, and with every model that it is
/// what the rule makes of the plain means of its groups.
#[test]
fn whatever_the_network_does_no_site_is_in_two_sums_and_every_model_is_the_rule_over_its_groups() {
    let (mut models, mut failed, mut proofs, mut lost, mut without) = (0, 0, 0, 0, 0);
    for seed in 20_000..20_400u64 {
        let sites = 6 + seed as usize % 5;
        let group_sites = 2 + (seed / 5) as u32 % 2;
        let groups = match seed % 3 {
            0 => rule(Rule::Mean, 0),
            1 => rule(Rule::Median, 0),
            _ => rule(Rule::TrimmedMean { faulty: 1 }, 1),
        };
        let least = group_sites * groups.least_groups().unwrap() as u32;
        let min_sites = least.max(group_sites).min(sites as u32);
        if least > min_sites {
            continue;
        }
        let plan = grouped(plan(sites, min_sites, 1), group_sites, groups);
        let mut world = World::new(plan, unruly(seed), seed);
        run(&mut world, seed);
        models += world.models();
        failed += world.audit.failed.len();
        proofs += world.audit.proofs;
        lost += world.audit.lost_sums;
        without += world.audit.without_a_group;
    }
    println!(
        "{models} models, {failed} failed, {proofs} proofs, {lost} sums lost, {without} models without some site"
    );
    // The schedules are unruly enough to mean something.
    assert!(models > 200 && failed > 200 && proofs > 100 && lost > 5 && without > 50);
}

/// One group cannot open; the others' sums stand, and its sites cost the round nothing but themselves.
#[test]
fn a_group_that_fails_does_not_fail_the_others() {
    for words in 1..6 {
        let plan = grouped(plan(9, 6, 1), 3, rule(Rule::Mean, 0));
        let mut world = World::new(plan, Faults::NONE, 300 + words as u64);
        world.dies_after.insert(2, words);
        run(&mut world, words as u64);
        assert_eq!(world.models(), 1, "after {words} words");
        assert_eq!(world.audit.abandoned, 0, "after {words} words: {:?}", world.audit.failed);
        assert!(world.audit.sessions <= 4, "the sums of groups that opened are not made again");
    }
}

#[test]
fn misbehaviour_stays_in_its_group() {
    for (kind, malice) in Malice::ALL.into_iter().enumerate() {
        let plan = grouped(plan(9, 6, 1), 3, rule(Rule::Mean, 0));
        let mut world = World::new(plan, Faults::NONE, 700 + kind as u64);
        world.corrupt(4, malice);
        if let Err(error) = world.run() {
            panic!("{malice:?}: {error}");
        }
        assert_eq!((world.models(), world.audit.abandoned), (1, 0), "{malice:?}");
        let honest = world.members().into_iter().filter(|site| !world.audit.corrupt.contains(site));
        honest.for_each(|site| assert!(!world.audit.excluded.contains(&site), "{malice:?}: {site}"));
    }
}

/// Coordinates in which a vector is outside what the groups without the poisoner say.
fn outside(groups: &[(Vec<SiteId>, SecureMean)], poisoner: &SiteId, delta: &[f32]) -> usize {
    let good: Vec<_> = groups.iter().filter(|(sites, _)| !sites.contains(poisoner)).collect();
    assert_eq!(good.len() + 1, groups.len(), "the poisoner is in one group");
    let is_outside = |(i, value): (usize, &f32)| {
        let said = || good.iter().map(|(_, mean)| mean.delta[i]);
        *value < said().fold(f32::INFINITY, f32::min) || *value > said().fold(f32::NEG_INFINITY, f32::max)
    };
    delta.iter().enumerate().filter(|(i, value)| is_outside((*i, value))).count()
}

#[test]
fn the_median_withstands_a_poisoned_group_and_the_mean_does_not() {
    let moved = |groups, seed| {
        let plan = poisoned(grouped(plan(9, 9, 1), 3, groups), 4);
        let mut world = World::new(plan, Faults::NONE, seed);
        run(&mut world, seed);
        world.audit.newest
    };
    let (mut by_mean, mut coordinates) = (0, 0);
    for seed in 0..10 {
        let (groups, delta) = moved(rule(Rule::Median, 1), seed);
        assert_eq!(outside(&groups, &site_id(4), &delta), 0, "seed {seed}");
        let (groups, delta) = moved(rule(Rule::Mean, 0), seed);
        by_mean += outside(&groups, &site_id(4), &delta);
        coordinates += delta.len();
    }
    assert!(by_mean > coordinates / 2, "{by_mean} of {coordinates}: the attack is too tame for this test");
}
