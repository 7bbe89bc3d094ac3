//! What the site says of itself on its retained status topic.

use super::{Phase, Round, Site};
use crate::work::locked;
use medinet_link::now;
use medinet_secure::Standing;
use medinet_types::RoundNumber;
use medinet_wire::message::{Activity, PresenceState, RoundKind, SiteStatus, clean_reason};
use std::time::Duration;

/// How often the status is published while nothing of it changes but numbers.
const SHOW_EVERY: Duration = Duration::from_secs(2);

/// What of the status is published as soon as it changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shown {
    activity: Activity,
    round: RoundNumber,
    declined: Option<String>,
}

impl Round {
    /// Why the site takes no part in it.
    fn declined(&self) -> Option<&str> {
        match &self.phase {
            Phase::Declined { reason, .. } => Some(reason),
            _ => None,
        }
    }
}

impl Site {
    /// Publishes the status when the activity changes, and every few seconds while something goes on.
    pub(super) fn show_status(&mut self) {
        let shown = self.shown();
        let at = now();
        if self.status_shown.as_ref() == Some(&shown) && at.since(self.status_at) < SHOW_EVERY {
            return;
        }
        let counts = *self.intake.progress.borrow();
        let progress = match shown.activity {
            Activity::Training => *self.training_progress.borrow(),
            Activity::Ingesting if counts.discovered > 0 => {
                1.0 - (counts.open() as f64 / counts.discovered as f64) as f32
            }
            _ => 0.0,
        };
        let traffic = self.uplink.traffic();
        let Shown { activity, round, declined } = shown.clone();
        self.uplink.publish_status(&SiteStatus {
            state: PresenceState::Online,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            activity,
            declined,
            round,
            progress,
            instances: counts.ingested,
            quarantined: counts.quarantined,
            sent_bytes: traffic.sent_bytes(),
            received_bytes: traffic.received_bytes(),
            privacy: locked(&self.budget).report(),
            at,
        });
        self.status_at = at;
        self.status_shown = Some(shown);
    }

    fn shown(&self) -> Shown {
        let ready = *self.intake.ready.borrow();
        let Some(round) = &self.round else {
            // With no round of the own task, one of another that is declined is what there is to tell.
            let elsewhere = self.elsewhere.newest();
            let activity = match elsewhere {
                _ if !ready => Activity::Ingesting,
                Some(_) => Activity::Declined,
                None => Activity::Idle,
            };
            let declined = elsewhere.map(|(_, reason)| clean_reason(reason));
            let round = elsewhere.map(|(round, _)| round).unwrap_or_default();
            return Shown { activity, round, declined };
        };
        let activity = match &round.phase {
            _ if !ready => Activity::Ingesting,
            Phase::Waiting { .. } if !self.settings.policy.may_train_at(now()) => Activity::OutsideHours,
            Phase::Done | Phase::Waiting { .. } => Activity::Idle,
            Phase::Declined { .. } => Activity::Declined,
            Phase::Fetching { .. } => Activity::Fetching,
            Phase::Working { .. } => match round.plan.kind {
                RoundKind::Evaluate => Activity::Evaluating,
                RoundKind::Train => Activity::Training,
            },
            Phase::Offered { .. } | Phase::Measured { .. } => Activity::Sending,
            Phase::Secure(secure) => match secure.standing() {
                Standing::Counted | Standing::Spent | Standing::Stopped => Activity::Idle,
                Standing::Ready | Standing::InSession { .. } => Activity::Aggregating,
            },
        };
        let declined = round.declined().map(clean_reason);
        Shown { activity, round: round.plan.round, declined }
    }
}

/// The status of a site that is gone: its last will, and its last word.
pub(super) fn offline_status() -> SiteStatus {
    SiteStatus {
        state: PresenceState::Offline,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        activity: Activity::Idle,
        declined: None,
        round: RoundNumber(0),
        progress: 0.0,
        instances: 0,
        quarantined: 0,
        sent_bytes: 0,
        received_bytes: 0,
        privacy: None,
        at: now(),
    }
}
