//! What the task's announced rounds cost patients together, by their plans alone.

use medinet_privacy::{Composition, Event};
use medinet_wire::message::{RoundKind, RoundPlan};
use medinet_wire::privacy::PrivacyTotal;
use serde::{Deserialize, Serialize};

/// The mechanisms that rounds were announced with.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct AnnouncedPrivacy {
    /// Each mechanism once with how often it runs, in the order in which they were first announced.
    events: Vec<Event>,
    /// Whether a round of training was announced whose noise is none, or cannot be counted.
    without_noise: bool,
    /// What they cost together; `None` before the first private round. Kept, as it takes a tenth of a second to compute.
    total: Option<PrivacyTotal>,
}

impl AnnouncedPrivacy {
    /// Counts a round that is about to be announced for the first time, and gives the total with it.
    pub(crate) fn announce(&mut self, plan: &RoundPlan) -> Option<PrivacyTotal> {
        match plan.private_round() {
            Ok(Some(round)) => {
                let mut composition = Composition::new();
                for event in self.events.iter().chain([&round.event]) {
                    composition.add(event);
                }
                let rounds = self.total.map_or(0, |total| total.rounds).saturating_add(1);
                self.total = Some(PrivacyTotal::of(rounds, &composition, round.delta));
                self.events = composition.events().to_vec();
            }
            Ok(None) if plan.kind == RoundKind::Evaluate => {}
            // The task's plan was checked, so that its noise is never one that cannot be counted. If it were, it would bound nothing.
            Ok(None) | Err(_) => self.without_noise = true,
        }
        if let Some(total) = self.total.as_mut().filter(|_| self.without_noise) {
            total.epsilon = None;
        }
        self.total
    }

    /// The newest total.
    pub(crate) fn total(&self) -> Option<PrivacyTotal> {
        self.total
    }
}
