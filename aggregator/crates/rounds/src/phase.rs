//! Where a task stands, and how it gets from one standing to the next.

use crate::cohort::OpenRound;
use crate::effect::{Effect, Outbox, Release};
use crate::evaluate::EvaluateRound;
use crate::plan::{Next, TaskPlan};
use crate::record::{PauseReason, RoundRecord};
use crate::secure::{Dealer, SecureRound, Trust};
use crate::snapshot::{ClosedRound, Released, TaskState};
use crate::train::{Rebuilding, TrainRound};
use medinet_types::{RoundNumber, SiteId, UnixMillis};
use medinet_update::Owed;
use medinet_wire::message::{FromAggregatorToAll, RefusalReason, ToSite};

/// What one input may read and change, and what it brings about.
pub(crate) struct Turn<'a> {
    pub(crate) plan: &'a TaskPlan,
    pub(crate) task: &'a mut TaskState,
    /// The parameters of the model that training goes on from.
    pub(crate) parameters: &'a mut Vec<f32>,
    /// Those of the newest release, if there is one.
    pub(crate) released: &'a mut Option<Vec<f32>>,
    /// What the way down has lost, where models go down as deltas.
    pub(crate) owed: &'a mut Option<Owed>,
    pub(crate) now: UnixMillis,
    pub(crate) wake: Option<UnixMillis>,
    /// Whose signatures hold inside sessions.
    pub(crate) trust: &'a Trust,
    /// Who is in which group.
    pub(crate) dealer: &'a Dealer,
    pub(crate) out: Outbox,
}

/// One struct per standing; each is consumed by what leads on from it.
#[derive(Debug, Default)]
pub(crate) enum Phase {
    /// Nothing has been announced.
    #[default]
    Unstarted,
    /// A training round after a restart.
    Rebuilding(Rebuilding),
    /// A training round is open.
    Training(TrainRound),
    /// An evaluation round is open.
    Evaluating(EvaluateRound),
    /// A training round with secure aggregation is open.
    Securing(Box<SecureRound>),
    /// An open round waits for the operator.
    Paused(Paused),
    /// All planned rounds are over.
    Finished,
}

/// A round that waits for the operator.
#[derive(Debug)]
pub(crate) struct Paused {
    pub(crate) round: Suspended,
    pub(crate) reason: PauseReason,
}

/// The round that is on hold; what it has counts on.
#[derive(Debug)]
pub(crate) enum Suspended {
    Training(TrainRound),
    Evaluating(EvaluateRound),
    Securing(Box<SecureRound>),
    /// It ended without a result: a new one follows.
    Abandoned(RoundNumber),
}

impl Phase {
    /// Opens what comes after a round, or ends the task.
    pub(crate) fn next(turn: &mut Turn<'_>) -> Self {
        match turn.plan.next(turn.task.trained, turn.task.evaluated) {
            Next::Train if turn.plan.aggregation.secure().is_some() => {
                let round = SecureRound::open(turn);
                turn.wake = Some(round.deadline());
                Self::Securing(Box::new(round))
            }
            Next::Train => {
                let round = TrainRound::open(turn);
                turn.wake = Some(round.open.plan.deadline);
                Self::Training(round)
            }
            Next::Evaluate => {
                let round = EvaluateRound::open(turn);
                turn.wake = Some(round.open.plan.deadline);
                Self::Evaluating(round)
            }
            Next::Finish => {
                turn.out.record(RoundRecord::TaskFinished { released: turn.task.released_model().cloned() });
                turn.rest();
                turn.finished();
                Self::Finished
            }
        }
    }

    /// Does what is due at this time.
    pub(crate) fn advance(self, turn: &mut Turn<'_>) -> Self {
        match self {
            Self::Training(round) => round.advance(turn),
            Self::Evaluating(round) => round.advance(turn),
            Self::Securing(round) => round.advance(turn),
            other => other,
        }
    }

    /// The operator starts or continues the task.
    pub(crate) fn start(self, turn: &mut Turn<'_>) -> Self {
        match self {
            Self::Unstarted => Self::next(turn),
            Self::Paused(paused) => paused.resume(turn),
            // The operator may have planned more rounds since.
            Self::Finished if turn.plan.next(turn.task.trained, turn.task.evaluated) != Next::Finish => {
                Self::next(turn)
            }
            other => other,
        }
    }

    /// Repeats what a kill may have swallowed.
    pub(crate) fn restarted(self, turn: &mut Turn<'_>) -> Self {
        if let Some(Released { verdict, votes, .. }) = turn.task.released.clone() {
            turn.out.then(Effect::Publish(Release { verdict, votes }));
        }
        match self {
            Self::Unstarted => self,
            Self::Rebuilding(Rebuilding { mut round }) | Self::Training(mut round) => {
                // Loading comes before the announcement, which sites answer.
                round.load(&mut turn.out);
                round.open.restarted(turn);
                round.enter()
            }
            Self::Evaluating(mut round) => {
                round.open.restarted(turn);
                Self::Evaluating(round)
            }
            Self::Securing(round) => round.restarted(turn),
            Self::Paused(_) => {
                turn.rest();
                self
            }
            Self::Finished => {
                turn.rest();
                turn.finished();
                self
            }
        }
    }

    /// The number of the round that takes contributions.
    pub(crate) fn open_round(&self) -> Option<RoundNumber> {
        match self {
            Self::Rebuilding(rebuilding) => Some(rebuilding.round.open.number()),
            Self::Training(round) => Some(round.open.number()),
            Self::Evaluating(round) => Some(round.open.number()),
            Self::Securing(round) => Some(round.number()),
            Self::Unstarted | Self::Paused(_) | Self::Finished => None,
        }
    }

    /// Whether the site's contribution to this round, which is on hold, counts.
    pub(crate) fn counts_on_hold(&self, round: RoundNumber, site: &SiteId) -> bool {
        match self {
            Self::Paused(Paused { round: Suspended::Training(r), .. }) => {
                r.open.number() == round && r.open.has_delivered(site)
            }
            Self::Paused(Paused { round: Suspended::Evaluating(r), .. }) => {
                r.open.number() == round && r.open.has_delivered(site)
            }
            _ => false,
        }
    }
}

impl Paused {
    /// Puts a round on hold.
    pub(crate) fn enter(turn: &mut Turn<'_>, round: Suspended, reason: PauseReason) -> Self {
        let number = match &round {
            Suspended::Training(round) => round.open.number(),
            Suspended::Evaluating(round) => round.open.number(),
            Suspended::Securing(round) => round.number(),
            Suspended::Abandoned(round) => *round,
        };
        turn.out.record(RoundRecord::TaskPaused { round: number, reason: reason.clone() });
        turn.rest();
        Self { round, reason }
    }

    fn resume(self, turn: &mut Turn<'_>) -> Phase {
        match self.round {
            Suspended::Training(mut round) => {
                round.load(&mut turn.out);
                round.open.resume(turn);
                round.enter()
            }
            Suspended::Evaluating(mut round) => {
                round.open.resume(turn);
                Phase::Evaluating(round)
            }
            Suspended::Securing(round) => round.resume(turn),
            Suspended::Abandoned(round) => {
                turn.out.record(RoundRecord::TaskResumed { round });
                turn.task.without_sum = 0;
                Phase::next(turn)
            }
        }
    }
}

impl Turn<'_> {
    /// Tells everyone that no round is open.
    pub(crate) fn rest(&mut self) {
        let task = self.task.spec.task.clone();
        self.out.then(Effect::Broadcast(FromAggregatorToAll::Idle { task }));
    }

    fn finished(&mut self) {
        let (model, released) = (self.task.model.clone(), self.task.released_model().cloned());
        self.out.then(Effect::Finished { model, released });
    }

    /// Training goes on from the newest release. Its version stays what it was; the next model's follows on the newest.
    pub(crate) fn go_back(&mut self, round: RoundNumber) {
        let (Some(released), Some(parameters)) = (&self.task.released, &*self.released) else { return };
        let to = released.verdict.model.clone();
        if to.digest == self.task.model.digest {
            return;
        }
        self.task.made_by.clone_from(&released.made_by);
        self.task.clip_norm = released.clip_norm;
        self.parameters.clone_from(parameters);
        *self.owed = None;
        self.task.downlink.go_back(&mut self.out, &to);
        let from = std::mem::replace(&mut self.task.model, to.clone());
        if from.parameters.digest != to.parameters.digest {
            self.out.then(Effect::StopServing { blob: from.parameters.digest });
        }
        self.out.record(RoundRecord::WentBack { round, from, to });
    }

    pub(crate) fn refuse(&mut self, site: &SiteId, round: RoundNumber, reason: RefusalReason) {
        let task = self.task.spec.task.clone();
        self.out.send(site, ToSite::Refused { task, round, reason });
    }

    /// Answers a contribution to a round that is not open. A site that was counted and did not hear so is told so.
    pub(crate) fn answer_closed(&mut self, site: &SiteId, round: RoundNumber, phase: &Phase) {
        let closed = self.task.previous.as_ref().filter(|closed| closed.round == round);
        if closed.is_some_and(|closed| closed.delivered.contains(site)) || phase.counts_on_hold(round, site) {
            let task = self.task.spec.task.clone();
            self.out.send(site, ToSite::Accepted { task, round });
            return;
        }
        let reason = match closed {
            Some(closed) if closed.closed_at >= closed.deadline => {
                let late = self.now.since(closed.deadline).as_millis();
                RefusalReason::Late { late_ms: u64::try_from(late).unwrap_or(u64::MAX) }
            }
            _ => RefusalReason::NotOpen { open: phase.open_round() },
        };
        self.refuse(site, round, reason);
    }
}

impl TaskState {
    /// Remembers who is in a round that closes.
    pub(crate) fn closed<T>(&mut self, open: &OpenRound<T>, now: UnixMillis) {
        self.previous = Some(ClosedRound {
            round: open.number(),
            closed_at: now,
            deadline: open.plan.deadline,
            delivered: open.delivered().map(|(site, _)| site.clone()).collect(),
        });
    }
}
