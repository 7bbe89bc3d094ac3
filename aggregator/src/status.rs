//! What the aggregator says of itself on its retained status topic, for operators and dashboards.

use crate::host::Task;
use medinet_rounds::Stage;
use medinet_types::{RoundNumber, UnixMillis};
use medinet_wire::message::{AggregatorStatus, PresenceState, TaskStage};

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
        at,
    }
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
