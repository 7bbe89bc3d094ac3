//! Rounds of tasks that this appliance is not set up for: declined with a reason, beside the round that it is at. A federation's tasks are announced
//! one after the other on one topic, so another task's round must not end the work on the own one.

use super::REPEAT_AFTER;
use crate::policy::{Refusal, SitePolicy};
use medinet_types::{RoundNumber, TaskId, UnixMillis};
use std::collections::BTreeMap;

/// Tasks whose open round is remembered; of more some are declined again with every announcement.
const MAX_TASKS: usize = 16;

/// What is declined of other tasks.
#[derive(Debug, Default)]
pub(super) struct Elsewhere {
    declined: BTreeMap<TaskId, Declined>,
}

#[derive(Debug)]
struct Declined {
    round: RoundNumber,
    reason: String,
    /// When it was said last; none where that is to be said at once.
    said_at: Option<UnixMillis>,
    answered: bool,
}

/// Why this appliance takes no part in the rounds of a task that is not its own.
pub(super) fn reason(own: &TaskId, task: &TaskId, policy: &SitePolicy) -> String {
    if policy.tasks.contains(task) {
        format!(
            "this appliance is set up for task {own} and not for {task}, although the site's policy allows it: it needs an appliance with that \
             task's file"
        )
    } else {
        Refusal::Task(task.clone()).to_string()
    }
}

impl Elsewhere {
    /// A round of another task is open. Whether it is a new one.
    pub(super) fn announced(&mut self, task: &TaskId, round: RoundNumber, reason: String) -> bool {
        if self.declined.get(task).is_some_and(|declined| declined.round == round) {
            return false;
        }
        if !self.declined.contains_key(task) && self.declined.len() >= MAX_TASKS {
            self.declined.pop_first();
        }
        self.declined.insert(task.clone(), Declined { round, reason, said_at: None, answered: false });
        true
    }

    /// No round of the task is open.
    pub(super) fn idle(&mut self, task: &TaskId) {
        self.declined.remove(task);
    }

    /// The aggregator has heard that the site declines, or wants no word of it.
    pub(super) fn answered(&mut self, task: &TaskId, round: RoundNumber) {
        if let Some(declined) = self.declined.get_mut(task).filter(|declined| declined.round == round) {
            declined.answered = true;
        }
    }

    /// Forgets when things were said, so that what is unanswered is said again at once.
    pub(super) fn repeat_all(&mut self) {
        self.declined.values_mut().for_each(|declined| declined.said_at = None);
    }

    /// What is to be said now, and counts as said.
    pub(super) fn due(&mut self, now: UnixMillis) -> Vec<(TaskId, RoundNumber, String)> {
        let unsaid = |declined: &Declined| {
            !declined.answered && declined.said_at.is_none_or(|at| now.since(at) >= REPEAT_AFTER)
        };
        let due = self.declined.iter_mut().filter(|(_, declined)| unsaid(declined));
        due.map(|(task, declined)| {
            declined.said_at = Some(now);
            (task.clone(), declined.round, declined.reason.clone())
        })
        .collect()
    }

    /// A round that is declined, and why, for the site's status.
    pub(super) fn newest(&self) -> Option<(RoundNumber, &str)> {
        let (_, declined) = self.declined.last_key_value()?;
        Some((declined.round, &declined.reason))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::tests::policy;

    fn task(name: &str) -> TaskId {
        TaskId::new(name).unwrap()
    }

    #[test]
    fn a_task_that_is_allowed_and_not_set_up_is_declined_with_the_reason_until_somebody_hears() {
        let (own, other) = (task("pneumonia"), task("fractures"));
        let allowed = SitePolicy { tasks: vec![own.clone(), other.clone()], ..policy() };
        let why = reason(&own, &other, &allowed);
        assert!(why.contains("set up for task pneumonia and not for fractures"), "{why}");
        assert!(reason(&own, &other, &policy()).contains("not among the tasks"));
        let mut elsewhere = Elsewhere::default();
        assert!(elsewhere.newest().is_none());
        assert!(elsewhere.announced(&other, RoundNumber(1), why.clone()));
        assert!(!elsewhere.announced(&other, RoundNumber(1), why.clone()));
        let said = [(other.clone(), RoundNumber(1), why.clone())];
        let now = UnixMillis(100_000);
        assert_eq!(elsewhere.due(now), said);
        assert_eq!(elsewhere.due(now), []);
        assert_eq!(elsewhere.due(now.after(REPEAT_AFTER)), said);
        elsewhere.repeat_all();
        assert_eq!(elsewhere.due(now), said);
        elsewhere.answered(&other, RoundNumber(9));
        assert_eq!(elsewhere.due(now.after(REPEAT_AFTER)), said);
        elsewhere.answered(&other, RoundNumber(1));
        assert_eq!(elsewhere.due(now.after(REPEAT_AFTER * 9)), []);
        assert_eq!(elsewhere.newest(), Some((RoundNumber(1), why.as_str())));
        // The next round of it is another one; one that is over is none.
        assert!(elsewhere.announced(&other, RoundNumber(2), why));
        assert_eq!(elsewhere.due(now).len(), 1);
        elsewhere.idle(&other);
        assert!(elsewhere.newest().is_none() && elsewhere.due(now.after(REPEAT_AFTER)).is_empty());
    }

    #[test]
    fn no_number_of_tasks_fills_the_memory() {
        let mut elsewhere = Elsewhere::default();
        for n in 0..100 {
            elsewhere.announced(&task(&format!("task-{n}")), RoundNumber(1), "no".to_owned());
        }
        assert_eq!(elsewhere.declined.len(), MAX_TASKS);
    }
}
