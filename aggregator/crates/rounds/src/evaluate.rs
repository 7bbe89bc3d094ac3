//! An evaluation round: sites measure a candidate, and the release rule decides about it.

use crate::cohort::{OpenRound, Outlook, Standing};
use crate::effect::{Effect, Release};
use crate::phase::{Paused, Phase, Suspended, Turn};
use crate::plan::ReleaseRule;
use crate::record::{Measured, Outcome, RejectionReason, RoundRecord, Verdict};
use medinet_types::SiteId;
use medinet_wire::message::{FromSite, ModelRef, RefusalReason, RoundKind, SiteMetrics};
use serde::{Deserialize, Serialize};

/// What a site says of a candidate; `None` when its policy keeps metrics at the site.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measurement(pub(crate) Option<SiteMetrics>);

/// An evaluation round that takes measurements.
#[derive(Debug)]
pub(crate) struct EvaluateRound {
    pub(crate) open: OpenRound<Measurement>,
}

impl EvaluateRound {
    pub(crate) fn open(turn: &mut Turn<'_>) -> Self {
        Self { open: OpenRound::open(RoundKind::Evaluate, turn) }
    }

    pub(crate) fn on_site(&mut self, turn: &mut Turn<'_>, from: &SiteId, message: FromSite) {
        match message {
            FromSite::Join { .. } => {
                self.open.admit(&mut turn.out, from);
            }
            FromSite::Decline { reason, .. } => self.open.decline(&mut turn.out, from, &reason),
            FromSite::Evaluation { metrics, .. } => self.on_measurement(turn, from, metrics),
            FromSite::OfferUpdate(_) | FromSite::Secure { .. } => {
                let reason = RefusalReason::Malformed("this is an evaluation round".into());
                self.open.refuse(&mut turn.out, from, reason);
            }
            FromSite::RegisterDataset(_) | FromSite::Want(_) | FromSite::WantCheckpoint { .. } => {}
        }
    }

    fn on_measurement(&mut self, turn: &mut Turn<'_>, from: &SiteId, metrics: Option<SiteMetrics>) {
        if !self.open.admit(&mut turn.out, from) {
            return;
        }
        if let Some(fault) = metrics.as_ref().and_then(|m| metrics_fault(m, turn.plan.max_examples)) {
            self.open.fail(&mut turn.out, from, RefusalReason::Malformed(fault));
            return;
        }
        self.open.sites.insert(from.clone(), Standing::Delivered(Measurement(metrics)));
        let (round, model) = (self.open.number(), self.open.plan.base.digest);
        turn.out.record(RoundRecord::Evaluated { round, site: from.clone(), model, metrics });
        self.open.accept(&mut turn.out, from);
    }

    /// Closes, extends or pauses the round when it is time.
    pub(crate) fn advance(mut self, turn: &mut Turn<'_>) -> Phase {
        match self.open.outlook(turn) {
            Outlook::WaitUntil(when) => {
                turn.wake = Some(when);
                Phase::Evaluating(self)
            }
            Outlook::Close => self.close(turn),
            Outlook::TooFew => match self.open.extend(turn) {
                Ok(()) => {
                    turn.wake = Some(self.open.plan.deadline);
                    Phase::Evaluating(self)
                }
                Err(reason) => Phase::Paused(Paused::enter(turn, Suspended::Evaluating(self), reason)),
            },
        }
    }

    fn close(self, turn: &mut Turn<'_>) -> Phase {
        let open = self.open;
        let reports = || open.delivered().map(|(_, measurement)| measurement.0.as_ref());
        let released = turn.task.released.as_ref().and_then(|verdict| verdict.mean_auroc);
        let verdict = judge(&turn.plan.release, open.plan.base.clone(), reports(), released);
        let measurements = open
            .delivered()
            .map(|(site, measurement)| Measured { site: site.clone(), metrics: measurement.0 })
            .collect();
        let judged =
            RoundRecord::ModelJudged { round: open.number(), verdict: verdict.clone(), measurements };
        turn.out.record(judged);
        turn.task.auroc = verdict.mean_auroc.or(turn.task.auroc);
        turn.task.evaluated = Some(open.plan.base.version);
        turn.task.closed(&open, turn.now);
        if verdict.outcome == Outcome::Released {
            turn.task.released = Some(verdict.clone());
            turn.out.then(Effect::Publish(Release { verdict }));
        }
        Phase::next(turn)
    }

    /// Mean AUROC over the measurements so far.
    pub(crate) fn auroc(&self) -> Option<f64> {
        mean_auroc(self.open.delivered().filter_map(|(_, measurement)| measurement.0.as_ref()))
    }
}

/// Mean AUROC weighted by images, in the order given (by site, so that it is the same in every run).
pub(crate) fn mean_auroc<'a>(metrics: impl Iterator<Item = &'a SiteMetrics>) -> Option<f64> {
    let (mut sum, mut images) = (0.0, 0.0);
    for metrics in metrics {
        if let Some(auroc) = metrics.auroc {
            sum += auroc * metrics.images as f64;
            images += metrics.images as f64;
        }
    }
    (images > 0.0).then(|| sum / images)
}

/// Applies the release rule.
fn judge<'a>(
    rule: &ReleaseRule,
    model: ModelRef,
    measurements: impl Iterator<Item = Option<&'a SiteMetrics>>,
    released: Option<f64>,
) -> Verdict {
    let (mut reports, mut withheld, mut one_class) = (Vec::new(), 0, 0);
    for measurement in measurements {
        match measurement {
            None => withheld += 1,
            Some(metrics) if metrics.auroc.is_none() => one_class += 1,
            Some(metrics) => reports.push(metrics),
        }
    }
    let reporting = u32::try_from(reports.len()).unwrap_or(u32::MAX);
    let mean = mean_auroc(reports.into_iter());
    let outcome = match mean {
        Some(got) if reporting >= rule.min_reporting_sites => {
            if got < rule.min_mean_auroc {
                let needed = rule.min_mean_auroc;
                Outcome::Rejected(RejectionReason::BelowMinimum { needed, got })
            } else if let Some(released) = released
                && got < released - rule.max_regression
            {
                let allowed = rule.max_regression;
                Outcome::Rejected(RejectionReason::Regression { released, got, allowed })
            } else {
                Outcome::Released
            }
        }
        _ => {
            let needed = rule.min_reporting_sites;
            Outcome::Rejected(RejectionReason::TooFewReports { needed, got: reporting })
        }
    };
    Verdict { model, mean_auroc: mean, reporting, withheld, one_class, outcome }
}

/// What is wrong with a site's figures.
pub(crate) fn metrics_fault(metrics: &SiteMetrics, max_images: u64) -> Option<String> {
    let SiteMetrics { images, auroc, accuracy, loss, calibration_error } = *metrics;
    if !(1..=max_images).contains(&images) {
        return Some(format!("metrics: expected 1 to {max_images} images, got {images}"));
    }
    let fractions =
        [("auroc", auroc.unwrap_or(0.0)), ("accuracy", accuracy), ("calibration error", calibration_error)];
    for (name, value) in fractions {
        if !(0.0..=1.0).contains(&value) {
            return Some(format!("metrics: expected {name} of 0 to 1, got {value}"));
        }
    }
    (!loss.is_finite() || loss < 0.0).then(|| format!("metrics: expected a loss of at least 0, got {loss}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use medinet_types::{BlobDigest, Digest, ModelDigest, ModelVersion};
    use medinet_wire::blob::BlobManifest;

    fn metrics(images: u64, auroc: Option<f64>) -> SiteMetrics {
        SiteMetrics { images, auroc, accuracy: 0.5, loss: 1.0, calibration_error: 0.1 }
    }

    fn verdict(reports: &[Option<SiteMetrics>], released: Option<f64>) -> Verdict {
        let rule = ReleaseRule { min_mean_auroc: 0.7, max_regression: 0.01, min_reporting_sites: 2 };
        let blob = BlobDigest(Digest::of(b""));
        let manifest =
            BlobManifest { digest: blob, length_bytes: 1, chunk_bytes: 1024, chunk_hashes: vec![] };
        let model = ModelRef { digest: ModelDigest(blob.0), version: ModelVersion(1), parameters: manifest };
        judge(&rule, model, reports.iter().map(Option::as_ref), released)
    }

    #[test]
    fn the_mean_is_weighted_by_images() {
        let got = verdict(&[Some(metrics(100, Some(0.9))), Some(metrics(300, Some(0.7)))], None);
        assert!((got.mean_auroc.unwrap() - 0.75).abs() < 1e-12);
        assert_eq!(got.outcome, Outcome::Released);
    }

    #[test]
    fn each_clause_of_the_rule_rejects() {
        let report = |auroc| Some(metrics(10, Some(auroc)));
        let rejected = |v: Verdict| match v.outcome {
            Outcome::Rejected(reason) => reason,
            Outcome::Released => panic!("released"),
        };
        let few = verdict(&[report(0.9), None, Some(metrics(5, None))], None);
        assert_eq!((few.reporting, few.withheld, few.one_class), (1, 1, 1));
        assert_eq!(rejected(few), RejectionReason::TooFewReports { needed: 2, got: 1 });
        assert!(matches!(rejected(verdict(&[report(0.6); 2], None)), RejectionReason::BelowMinimum { .. }));
        let worse = verdict(&[report(0.8); 2], Some(0.82));
        assert!(matches!(rejected(worse), RejectionReason::Regression { .. }));
        assert_eq!(verdict(&[report(0.8); 2], Some(0.805)).outcome, Outcome::Released);
        assert!(verdict(&[], None).mean_auroc.is_none());
    }

    #[test]
    fn figures_that_cannot_be_are_found() {
        assert_eq!(metrics_fault(&metrics(10, Some(0.5)), 10), None);
        let bad = [
            metrics(0, None),
            metrics(11, None),
            metrics(1, Some(1.1)),
            metrics(1, Some(f64::NAN)),
            SiteMetrics { accuracy: -0.1, ..metrics(1, None) },
            SiteMetrics { loss: f64::INFINITY, ..metrics(1, None) },
            SiteMetrics { calibration_error: f64::NAN, ..metrics(1, None) },
        ];
        assert!(bad.iter().all(|m| metrics_fault(m, 10).is_some()));
    }
}
