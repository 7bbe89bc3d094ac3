//! Differential privacy between real processes: what rounds cost, and what a site still gives.

use crate::fixture::{SITES, federation_with};
use anyhow::ensure;
use medinet_lab::{BrokerKind, Member, Noise, Privacy, Updates};
use medinet_privacy::{Delta, DpSgdPlan, Epsilon, PrivacyLimit, SamplingRate};
use medinet_wire::message::{Activity, SiteStatus, TaskStage};
use std::time::Duration;

/// Longer than it takes on a slow machine.
const LONGEST: Duration = Duration::from_secs(600);

/// Two rounds of private training fit into the sites' budgets, the third does not. Every site is killed and started again in the
/// middle of the first, which costs nothing and forgets nothing.
#[test]
fn sites_train_until_their_budgets_are_spent_and_forget_nothing_when_killed() {
    let limit = PrivacyLimit { epsilon: epsilon(1.0), delta: Delta::new(1e-5).unwrap() };
    let plan = DpSgdPlan::for_target(&limit, 1.0, SamplingRate::new(0.3).unwrap(), 8).unwrap();
    trains_for_two_rounds("privacy", Noise::Training(plan));
}

/// The same with noise inside the sum: what a kill must not lose then is the update that has it.
#[test]
fn noise_inside_the_sum_is_charged_until_the_budgets_are_spent() {
    let limit = PrivacyLimit { epsilon: epsilon(1.0), delta: Delta::new(1e-5).unwrap() };
    // Two sites of three may make up a sum, and none of three is taken to collude. Alone a round costs 0.94, two rounds 1.4, three 1.7.
    trains_for_two_rounds("noise", Noise::Sum { limit, noise_multiplier: 4.3, honest_survivors: 2 });
}

fn epsilon(value: f64) -> Epsilon {
    Epsilon::new(value).unwrap()
}

fn trains_for_two_rounds(name: &str, noise: Noise) {
    // Composed, a second round of this kind adds less than the first.
    let privacy = Privacy { noise, max_epsilon_total: epsilon(1.6) };
    let mut federation = federation_with(
        name,
        BrokerKind::Own,
        4,
        Updates::Secure { bits: 8, kept_permille: 1000, losses: 1 },
        Some(privacy),
    );
    for member in federation.members() {
        federation.start(member).unwrap();
    }
    let mut killed = false;
    let mut spent = Vec::new();
    let status = federation
        .follow(LONGEST, |federation, status| {
            federation.check_alive()?;
            if let Some(aggregator) = &status.aggregator {
                let early = aggregator.stage == TaskStage::Paused && aggregator.round.0 < 3;
                ensure!(!early, "the task has paused before the budgets were spent");
            }
            for site in status.sites.values() {
                if let Some(report) = &site.privacy {
                    ensure!(report.spent.get() <= 1.6 && report.limit.epsilon.get() == 1.6, "{report:?}");
                    spent.push(report.spent.get());
                }
            }
            if !killed && status.sites.values().any(|site| site.activity == Activity::Training) {
                killed = true;
                for site in (0..SITES).map(Member::Site) {
                    federation.kill(site)?;
                    federation.start(site)?;
                }
            }
            for site in status.sites.values() {
                ensure!(site.activity != Activity::Declined || site.declined.is_some(), "{site:?}");
            }
            // Why, at each site's own topic, and at the aggregator's: that is all that an operator sees.
            let declined = |site: &SiteStatus| {
                site.activity == Activity::Declined
                    && site.round.0 == 3
                    && site.declined.as_deref().is_some_and(names_the_budget)
            };
            let heard = status.aggregator.as_ref().is_some_and(|aggregator| {
                let third = aggregator.declines.iter().filter(|decline| decline.round.0 == 3);
                third.filter(|decline| names_the_budget(&decline.reason)).count() == SITES
            });
            Ok(heard && status.sites.len() == SITES && status.sites.values().all(declined))
        })
        .unwrap();
    assert!(killed);
    spent.sort_by(f64::total_cmp);
    spent.dedup();
    // One charge for each of the two rounds at every site, the first of them within what the plan says.
    assert_eq!(spent.len(), 2, "{spent:?}");
    assert!(spent[0] <= 1.0 && spent[1] > spent[0], "{spent:?}");
    let log = std::fs::read_to_string(federation.log(Member::Site(0))).unwrap();
    assert!(log.contains("declining a round") && log.contains("privacy budget of task"), "{log}");
    // What sites said of their budgets with what they contributed to the second round, which two of them at least are in.
    let budgets = status.aggregator.unwrap().privacy;
    for budget in &budgets {
        let report = &budget.report;
        let known = spent.contains(&report.spent.get()) && report.limit.epsilon.get() == 1.6;
        assert!(known && report.limit.delta.get() == 1e-5 && report.rounds == budget.round.0, "{budget:?}");
    }
    assert!(budgets.iter().filter(|budget| budget.round.0 == 2).count() >= 2, "{budgets:?}");
    let log = std::fs::read_to_string(federation.log(Member::Aggregator)).unwrap();
    let declines = log.lines().filter(|line| line.contains("site declined") && names_the_budget(line));
    assert!(declines.count() >= SITES, "{log}");
    assert!(log.contains("privacy budget of the site after this round"), "{log}");
    federation.stop().unwrap();
}

fn names_the_budget(reason: &str) -> bool {
    reason.contains("privacy budget of task")
}
