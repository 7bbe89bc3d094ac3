//! What the aggregator says of itself on its retained status topic, for operators and dashboards.

use crate::host::Task;
use medinet_rounds::Stage;
use medinet_types::{RoundNumber, UnixMillis};
use medinet_wire::message::{AggregatorStatus, MAX_STATUS_BUDGETS, PresenceState, SitePrivacy, TaskStage};

/// The status over all tasks: of the first that is not finished, or else of the last.
pub(crate) fn of(tasks: &[Task], state: PresenceState, at: UnixMillis) -> AggregatorStatus {
    let progress: Vec<_> = tasks.iter().map(|task| (task.id(), task.progress())).collect();
    let finished = !progress.is_empty() && progress.iter().all(|(_, p)| p.stage == Stage::Finished);
    let shown = progress.iter().find(|(_, p)| p.stage != Stage::Finished).or(progress.last());
    let open = shown.filter(|(_, p)| !matches!(p.stage, Stage::Unstarted | Stage::Finished));
    AggregatorStatus {
        state,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        task: shown.map(|(task, _)| (*task).clone()),
        stage: shown.map_or(TaskStage::Idle, |(_, p)| stage_of(&p.stage)),
        round: open.map_or(RoundNumber(0), |(_, p)| p.round),
        rounds: shown.map_or(0, |(_, p)| p.rounds),
        joined: open.map_or(0, |(_, p)| p.tally.joined),
        complete: open.map_or(0, |(_, p)| p.tally.delivered),
        auroc: shown.and_then(|(_, p)| p.auroc),
        finished,
        declines: shown.map(|(_, p)| p.declines.clone()).unwrap_or_default(),
        privacy: shown.map(|(_, p)| dearest(&p.privacy)).unwrap_or_default(),
        privacy_total: shown.and_then(|(_, p)| p.privacy_total),
        at,
    }
}

/// Of the sites' budgets those that are spent the most, so that a status stays small in a large federation; by site.
fn dearest(budgets: &[SitePrivacy]) -> Vec<SitePrivacy> {
    // A limit of zero is spent whole.
    let share =
        |budget: &SitePrivacy| budget.report.spent.get() / budget.report.limit.epsilon.get().max(1e-9);
    let mut shown = budgets.to_vec();
    shown.sort_by(|a, b| share(b).total_cmp(&share(a)));
    shown.truncate(MAX_STATUS_BUDGETS);
    shown.sort_by(|a, b| a.site.cmp(&b.site));
    shown
}

fn stage_of(stage: &Stage) -> TaskStage {
    match stage {
        Stage::Unstarted => TaskStage::Idle,
        Stage::Rebuilding => TaskStage::Rebuilding,
        Stage::Training => TaskStage::Training,
        Stage::Aggregating => TaskStage::Aggregating,
        Stage::Evaluating => TaskStage::Evaluating,
        Stage::Paused(_) => TaskStage::Paused,
        Stage::Finished => TaskStage::Finished,
    }
}

/// The status as it is published.
pub(crate) fn json(status: &AggregatorStatus) -> Vec<u8> {
    serde_json::to_vec(status).expect("numbers, names and finite fractions have a JSON form")
}

#[cfg(test)]
mod tests {
    use super::*;
    use medinet_privacy::{Delta, Epsilon, PrivacyLimit, PrivacyReport};
    use medinet_types::SiteId;

    #[test]
    fn a_large_federation_is_shown_by_the_budgets_that_are_spent_the_most() {
        let budget = |n: usize, limit: f64| SitePrivacy {
            site: SiteId::new(format!("site-{n:03}")).unwrap(),
            round: RoundNumber(1),
            report: PrivacyReport {
                spent: Epsilon::new(1.0).unwrap(),
                limit: PrivacyLimit {
                    epsilon: Epsilon::new(limit).unwrap(),
                    delta: Delta::new(1e-5).unwrap(),
                },
                unbounded: false,
                rounds: 1,
            },
        };
        // Every other one has spent all that it gives, one of them of a limit of nothing.
        let all: Vec<_> = (0..2 * MAX_STATUS_BUDGETS)
            .map(|n| {
                budget(
                    n,
                    if n == 0 {
                        0.0
                    } else if n % 2 == 0 {
                        1.0
                    } else {
                        8.0
                    },
                )
            })
            .collect();
        let spent: Vec<_> = all.iter().step_by(2).cloned().collect();
        assert_eq!(dearest(&all), spent);
        assert_eq!(dearest(&all[..3]), all[..3]);
    }
}
