//! A site as a pure state machine: it trains for a while, repeats what is unanswered, and forgets everything in a kill.

use crate::chance::Chance;
use medinet_types::{ModelDigest, RoundNumber, SiteId, TaskId, UnixMillis};
use medinet_update::{ErrorFeedback, ModelDelta, Origin, SealedUpdate};
use medinet_wire::blob::BlobManifest;
use medinet_wire::message::{
    FromSite, RefusalReason, RoundKind, RoundPlan, SiteMetrics, ToSite, UpdateOffer,
};

pub(crate) const PARAMETERS: usize = 37;

/// How a site is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Character {
    /// Trains and delivers.
    Honest,
    /// Its policy refuses every round.
    Declines,
    /// Its policy keeps metrics at the site.
    Secretive,
    /// Sends updates that do not decode.
    Garbled,
    /// Claims more examples in its offer than in its update.
    Boastful,
    /// Names another base model.
    Confused,
    /// Is not a member of the task.
    Stranger,
}

/// A site between two events.
pub(crate) struct Site {
    pub(crate) n: usize,
    pub(crate) character: Character,
    task: TaskId,
    work: Work,
}

/// What a site is about; volatile.
enum Work {
    Nothing,
    Training(Box<RoundPlan>),
    Repeating(Box<RoundPlan>),
    /// Answered, until the round's deadline moves.
    Done(RoundNumber, UnixMillis),
}

pub(crate) fn site_id(n: usize) -> SiteId {
    SiteId::new(format!("site-{n}")).unwrap()
}

/// Images behind a site's update.
pub(crate) fn examples(n: usize) -> u64 {
    10 + 37 * n as u64 % 91
}

/// A site's sealed update: a function of site, base and round, as training is on the CPU.
pub(crate) fn sealed_update(n: usize, base: ModelDigest, plan: &RoundPlan) -> Vec<u8> {
    let origin = Origin { base, round: plan.round };
    let byte = |i: usize| base.0.as_bytes()[i % 32].wrapping_mul(7).wrapping_add((n * 31 + i) as u8);
    let delta = (0..PARAMETERS).map(|i| (f32::from(byte(i)) - 127.5) / 300.0).collect();
    let mut feedback = ErrorFeedback::new(PARAMETERS);
    let delta = ModelDelta::new(delta).unwrap();
    SealedUpdate::encode(
        delta,
        plan.aggregation.plain().unwrap(),
        origin,
        examples(n),
        [n as u8; 32],
        &mut feedback,
    )
    .unwrap()
    .into_bytes()
}

fn metrics(n: usize, model: ModelDigest) -> SiteMetrics {
    let auroc = 0.6 + f64::from(model.0.as_bytes()[n % 32]) / 1000.0;
    SiteMetrics { images: examples(n), auroc: Some(auroc), accuracy: 0.7, loss: 0.6, calibration_error: 0.1 }
}

impl Site {
    pub(crate) fn new(n: usize, character: Character, task: TaskId) -> Self {
        Self { n, character, task, work: Work::Nothing }
    }

    /// A kill: nothing volatile is left.
    pub(crate) fn forget(&mut self) {
        self.work = Work::Nothing;
    }

    /// Takes an announcement; true when training begins with it.
    pub(crate) fn announced(&mut self, plan: &RoundPlan) -> bool {
        let known = match &self.work {
            Work::Nothing => RoundNumber(0),
            Work::Training(plan) | Work::Repeating(plan) => plan.round,
            // A later deadline has every site repeat itself; who counts is told so at once.
            Work::Done(round, deadline) if plan.round == *round && plan.deadline > *deadline => {
                RoundNumber(round.0 - 1)
            }
            Work::Done(round, _) => *round,
        };
        if plan.round <= known {
            return false;
        }
        self.work = Work::Training(Box::new(plan.clone()));
        true
    }

    /// No round is open: what was under way is moot.
    pub(crate) fn idle(&mut self) {
        if !matches!(self.work, Work::Done(..)) {
            self.work = Work::Nothing;
        }
    }

    /// Training is over.
    pub(crate) fn trained(&mut self) {
        self.work = match std::mem::replace(&mut self.work, Work::Nothing) {
            Work::Training(plan) => Work::Repeating(plan),
            other => other,
        };
    }

    /// What the site says now, and says again until it is answered.
    pub(crate) fn says(&self, chance: &mut Chance) -> Option<FromSite> {
        let task = self.task.clone();
        match &self.work {
            Work::Nothing | Work::Done(..) => None,
            Work::Training(plan) | Work::Repeating(plan) if self.character == Character::Declines => {
                Some(FromSite::Decline { task, round: plan.round, reason: "policy".into() })
            }
            // A site that has just started may deliver without having joined.
            Work::Training(plan) => {
                (!chance.percent(20)).then_some(FromSite::Join { task, round: plan.round })
            }
            Work::Repeating(plan) => Some(self.contribution(plan)),
        }
    }

    fn contribution(&self, plan: &RoundPlan) -> FromSite {
        match plan.kind {
            RoundKind::Evaluate => FromSite::Evaluation {
                task: self.task.clone(),
                round: plan.round,
                metrics: (self.character != Character::Secretive).then(|| metrics(self.n, plan.base.digest)),
                // Who keeps figures to itself votes all the same.
                vote: (self.character != Character::Declines).then(|| crate::votes::vote(self.n, plan)),
            },
            RoundKind::Train => {
                let claimed = examples(self.n) + u64::from(self.character == Character::Boastful);
                let base = match self.character {
                    Character::Confused => ModelDigest(medinet_types::Digest::of(b"another model")),
                    _ => plan.base.digest,
                };
                FromSite::OfferUpdate(UpdateOffer {
                    task: self.task.clone(),
                    round: plan.round,
                    base,
                    update: BlobManifest::of(&self.bytes(plan)),
                    examples: claimed,
                    base_metrics: (self.character == Character::Honest)
                        .then(|| metrics(self.n, plan.base.digest)),
                    privacy: None,
                })
            }
        }
    }

    /// The bytes behind the site's offer, when it still has them.
    pub(crate) fn serves(&self) -> Option<Vec<u8>> {
        match &self.work {
            Work::Repeating(plan) => Some(self.bytes(plan)),
            _ => None,
        }
    }

    fn bytes(&self, plan: &RoundPlan) -> Vec<u8> {
        let mut bytes = sealed_update(self.n, plan.base.digest, plan);
        if self.character == Character::Garbled {
            let middle = bytes.len() / 2;
            bytes.truncate(middle);
        }
        bytes
    }

    /// Takes an answer; true when the newest announcement is to be read again.
    pub(crate) fn answered(&mut self, message: &ToSite) -> bool {
        let about = |round: RoundNumber, work: &Work| match work {
            Work::Training(plan) | Work::Repeating(plan) => plan.round == round,
            Work::Done(done, _) => *done == round,
            Work::Nothing => false,
        };
        match message {
            ToSite::Accepted { round, .. } if about(*round, &self.work) => {
                self.done();
                false
            }
            ToSite::Refused { round, reason: RefusalReason::NotOpen { .. }, .. }
                if about(*round, &self.work) =>
            {
                self.work = Work::Nothing;
                true
            }
            ToSite::Refused { round, .. } if about(*round, &self.work) => {
                self.done();
                false
            }
            _ => false,
        }
    }

    fn done(&mut self) {
        self.work = match std::mem::replace(&mut self.work, Work::Nothing) {
            Work::Training(plan) | Work::Repeating(plan) => Work::Done(plan.round, plan.deadline),
            other => other,
        };
    }
}
