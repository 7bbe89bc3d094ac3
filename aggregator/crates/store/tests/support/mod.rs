//! A task with a network of 37 parameters, and sites that answer at once and always the same.

use medinet_fixtures::{task_spec, training_plan};
use medinet_rounds::{GroupRule, InitialModel, ReleaseRule, ServerOptimizer, TaskPlan};
use medinet_types::{SiteId, TaskId};
use medinet_update::{CodecPlan, ErrorFeedback, ModelDelta, Origin, SealedUpdate};
use medinet_wire::blob::BlobManifest;
use medinet_wire::message::{Aggregation, FromSite, RoundKind, RoundPlan, SiteMetrics, UpdateOffer};
use std::time::Duration;

pub(crate) const SITES: usize = 3;
const PARAMETERS: usize = 37;

pub(crate) fn site(n: usize) -> SiteId {
    SiteId::new(format!("site-{n}")).unwrap()
}

pub(crate) fn task() -> TaskId {
    TaskId::new("pneumonia").unwrap()
}

pub(crate) fn plan() -> TaskPlan {
    TaskPlan {
        spec: task_spec(),
        members: (0..SITES).map(site).collect(),
        rounds: 4,
        min_sites: SITES as u32,
        max_sites: SITES as u32,
        round_deadline: Duration::from_secs(86_400),
        join_grace: Duration::from_secs(3_600),
        max_extensions: 1,
        max_repeats: 0,
        training: training_plan(),
        final_learning_rate: 1.0,
        max_clip_norm: None,
        groups: GroupRule::default(),
        aggregation: Aggregation::Plain(CodecPlan { bits: 4, clip_norm: 10.0, error_feedback: false }),
        max_examples: 1_000,
        initial: InitialModel::Seed(7),
        optimizer: ServerOptimizer::FedAvg,
        downlink_bits: 4,
        evaluate_every: Some(2),
        release: ReleaseRule {
            min_median_auroc: 0.5,
            max_regression: 0.1,
            min_reporting_sites: 1,
            votes: None,
            go_back: true,
        },
    }
}

/// A site's update: a function of site and round plan alone.
pub(crate) fn update(n: usize, round: &RoundPlan) -> (UpdateOffer, Vec<u8>) {
    let mix = |i: usize| (i * 31 + n * 17 + round.round.0 as usize * 7) % 23;
    let delta = (0..PARAMETERS).map(|i| mix(i) as f32 / 23.0 - 0.4).collect();
    let origin = Origin { base: round.base.digest, round: round.round };
    let examples = 100 * (n as u64 + 1);
    let mut feedback = ErrorFeedback::new(PARAMETERS);
    let delta = ModelDelta::new(delta).unwrap();
    let codec = round.aggregation.plain().unwrap();
    let update = SealedUpdate::encode(delta, codec, origin, examples, [n as u8; 32], &mut feedback).unwrap();
    let offer = UpdateOffer {
        task: task(),
        round: round.round,
        base: round.base.digest,
        update: BlobManifest::of(update.as_bytes()),
        examples,
        base_metrics: (n == 0).then(|| metrics(0.6)),
        privacy: None,
    };
    (offer, update.into_bytes())
}

pub(crate) fn metrics(auroc: f64) -> SiteMetrics {
    SiteMetrics { images: 50, auroc: Some(auroc), accuracy: 0.75, loss: 0.5, calibration_error: 0.125 }
}

/// What a site answers to an announcement.
pub(crate) fn answer(n: usize, round: &RoundPlan) -> FromSite {
    match round.kind {
        RoundKind::Train => FromSite::OfferUpdate(update(n, round).0),
        RoundKind::Evaluate => {
            let metrics = (n != 2).then(|| metrics(0.75));
            FromSite::Evaluation { task: task(), round: round.round, metrics, vote: None }
        }
    }
}
