//! An evaluation round: sites measure a candidate, and the release rule decides about it.

use crate::cohort::{OpenRound, Outlook, Standing};
use crate::effect::{Effect, Release};
use crate::phase::{Paused, Phase, Suspended, Turn};
use crate::plan::ReleaseRule;
use crate::record::{Measured, Outcome, RejectionReason, RoundRecord, Verdict};
use crate::snapshot::Released;
use medinet_secagg::Verifier as _;
use medinet_types::SiteId;
use medinet_wire::message::{FromSite, ModelRef, RefusalReason, RoundKind, SiteMetrics};
use medinet_wire::vote::{SignedVote, VoteTally};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a site says of a candidate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measurement {
    /// `None` when its policy keeps metrics at the site.
    pub(crate) metrics: Option<SiteMetrics>,
    /// Its vote, whose signature holds; `None` when it gave none.
    pub(crate) vote: Option<SignedVote>,
}

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
            FromSite::Decline { reason, .. } => self.open.decline(turn, from, &reason),
            FromSite::Evaluation { metrics, vote, .. } => self.on_measurement(turn, from, metrics, vote),
            FromSite::OfferUpdate(_) | FromSite::Secure { .. } => {
                let reason = RefusalReason::Malformed("this is an evaluation round".into());
                self.open.refuse(&mut turn.out, from, reason);
            }
            FromSite::RegisterDataset(_) | FromSite::Want(_) | FromSite::WantCheckpoint { .. } => {}
        }
    }

    fn on_measurement(
        &mut self,
        turn: &mut Turn<'_>,
        from: &SiteId,
        metrics: Option<SiteMetrics>,
        vote: Option<SignedVote>,
    ) {
        if !self.open.admit(&mut turn.out, from) {
            return;
        }
        if let Some(fault) = metrics.as_ref().and_then(|m| metrics_fault(m, turn.plan.max_examples)) {
            self.open.fail(&mut turn.out, from, RefusalReason::Malformed(fault));
            return;
        }
        if let Some(fault) = vote.as_ref().and_then(|vote| self.vote_fault(turn, from, vote)) {
            self.open.fail(&mut turn.out, from, RefusalReason::Malformed(fault));
            return;
        }
        let ballot = vote.as_ref().map(|signed| signed.vote.ballot);
        self.open.sites.insert(from.clone(), Standing::Delivered(Measurement { metrics, vote }));
        let (round, model) = (self.open.number(), self.open.plan.base.digest);
        turn.out.record(RoundRecord::Evaluated { round, site: from.clone(), model, metrics, ballot });
        self.open.accept(&mut turn.out, from);
    }

    /// What is wrong with a vote: it is shown to others, who count only what proves itself and is about this model.
    fn vote_fault(&self, turn: &Turn<'_>, from: &SiteId, signed: &SignedVote) -> Option<String> {
        let SignedVote { vote, credential, signature } = signed;
        let plan = &self.open.plan;
        if !signed.is_bounded() {
            return Some("vote: expected a certificate and a signature of bounded length".into());
        }
        let same = vote.task == plan.spec.task
            && vote.round == plan.round
            && vote.model == plan.base.digest
            && vote.version == plan.base.version;
        if !same {
            return Some("vote: expected one on this round's candidate, got one on something else".into());
        }
        let holds = turn.trust.at(turn.now).verify(from, credential, &vote.signed_bytes(), signature);
        (!holds).then(|| "vote: the signature is not by this site's enrolled key".into())
    }

    /// Closes, extends or pauses the round when it is time.
    pub(crate) fn advance(mut self, turn: &mut Turn<'_>) -> Phase {
        match self.open.outlook(turn) {
            Outlook::WaitUntil(when) => {
                turn.wake = Some(when);
                Phase::Evaluating(self)
            }
            Outlook::Close if self.waits_for_votes(turn) => {
                turn.wake = Some(self.open.plan.deadline);
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

    /// Whether members that are late could still make up the quorum: a candidate is judged once.
    fn waits_for_votes(&self, turn: &Turn<'_>) -> bool {
        let Some(quorum) = turn.plan.release.votes else { return false };
        let votes = self.open.delivered().filter_map(|(_, measured)| measured.vote.as_ref());
        let accepting = VoteTally::of(votes.map(|signed| signed.vote.ballot)).accepting;
        accepting < quorum.min_accepting
            && accepting.saturating_add(self.open.may_still_deliver(turn)) >= quorum.min_accepting
            && turn.now < self.open.plan.deadline
    }

    fn close(self, turn: &mut Turn<'_>) -> Phase {
        let open = self.open;
        let reports = || open.delivered().map(|(_, measurement)| measurement.metrics.as_ref());
        let votes = || open.delivered().filter_map(|(site, measured)| Some((site, measured.vote.as_ref()?)));
        let tally = VoteTally::of(votes().map(|(_, signed)| signed.vote.ballot));
        let aurocs = || {
            open.delivered().filter_map(|(site, measured)| Some((site, measured.metrics.as_ref()?.auroc?)))
        };
        let released = turn.task.released.as_ref();
        let drop = released.and_then(|released| median_drop(&released.aurocs, aurocs()));
        let verdict = judge(&turn.plan.release, open.plan.base.clone(), reports(), tally, drop);
        let measurements = open
            .delivered()
            .map(|(site, measurement)| Measured { site: site.clone(), metrics: measurement.metrics })
            .collect();
        let quorum = turn.plan.release.votes;
        if quorum.is_some() || votes().next().is_some() {
            turn.out.record(RoundRecord::VotesCounted {
                round: open.number(),
                model: open.plan.base.digest,
                quorum,
                votes: votes().map(|(site, signed)| (site.clone(), signed.clone())).collect(),
            });
        }
        let judged =
            RoundRecord::ModelJudged { round: open.number(), verdict: verdict.clone(), measurements };
        turn.out.record(judged);
        turn.task.auroc = verdict.median_auroc.or(turn.task.auroc);
        turn.task.evaluated = Some(open.plan.base.version);
        turn.task.closed(&open, turn.now);
        if verdict.outcome == Outcome::Released {
            let votes: Vec<SignedVote> = votes().map(|(_, signed)| signed.clone()).collect();
            turn.task.released = Some(Released {
                verdict: verdict.clone(),
                votes: votes.clone(),
                made_by: turn.task.made_by.clone(),
                clip_norm: turn.task.clip_norm,
                aurocs: aurocs().map(|(site, auroc)| (site.clone(), auroc)).collect(),
            });
            *turn.released = Some(turn.parameters.clone());
            turn.out.then(Effect::Publish(Release { verdict, votes }));
        } else if turn.plan.release.go_back && is_set_back(&turn.plan.release, &verdict, drop) {
            turn.go_back(open.number());
        }
        Phase::next(turn)
    }

    /// Median AUROC over the measurements so far.
    pub(crate) fn auroc(&self) -> Option<f64> {
        median_auroc(self.open.delivered().filter_map(|(_, measurement)| measurement.metrics.as_ref()))
    }
}

/// Median over sites of the AUROC that they report. Each site counts the same, whatever number of images it claims: the figures are their own
/// word, and less than half of the sites cannot move a median beyond what the others say.
pub(crate) fn median_auroc<'a>(metrics: impl Iterator<Item = &'a SiteMetrics>) -> Option<f64> {
    median(metrics.filter_map(|metrics| metrics.auroc).collect())
}

/// The middle value, or the mean of the two in the middle; `None` of nothing. The values are numbers.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    let lower = values[(values.len() - 1) / 2];
    Some(f64::midpoint(lower, upper))
}

/// How much lower sites measure a candidate than each of them measured the release, in the median: a site's images are easier or
/// harder than another's, and other sites may have come. `None` where no site measured both.
fn median_drop<'a>(
    released: &BTreeMap<SiteId, f64>,
    measured: impl Iterator<Item = (&'a SiteId, f64)>,
) -> Option<f64> {
    median(measured.filter_map(|(site, auroc)| Some(released.get(site)? - auroc)).collect())
}

/// Applies the release rule; `drop` is how far sites measure the candidate below the newest release, in the median.
fn judge<'a>(
    rule: &ReleaseRule,
    model: ModelRef,
    measurements: impl Iterator<Item = Option<&'a SiteMetrics>>,
    votes: VoteTally,
    drop: Option<f64>,
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
    let median_auroc = median_auroc(reports.into_iter());
    let outcome = match median_auroc {
        Some(got) if reporting >= rule.min_reporting_sites => {
            if got < rule.min_median_auroc {
                let needed = rule.min_median_auroc;
                Outcome::Rejected(RejectionReason::BelowMinimum { needed, got })
            } else if let Some(drop) = drop
                && drop > rule.max_regression
            {
                let allowed = rule.max_regression;
                Outcome::Rejected(RejectionReason::Regression { drop, allowed })
            } else if let Some(quorum) = rule.votes
                && !quorum.accepts(votes)
            {
                Outcome::Rejected(RejectionReason::NoQuorum { quorum, votes })
            } else {
                Outcome::Released
            }
        }
        _ => {
            let needed = rule.min_reporting_sites;
            Outcome::Rejected(RejectionReason::TooFewReports { needed, got: reporting })
        }
    };
    Verdict { model, median_auroc, reporting, withheld, one_class, votes, outcome }
}

/// Whether the sites have voted against the candidate, or measured it as further below the newest release than the rule allows: by `drop`.
/// That too few came, or that it is not good enough yet, says nothing against training from it.
fn is_set_back(rule: &ReleaseRule, verdict: &Verdict, drop: Option<f64>) -> bool {
    let against = rule.votes.is_some_and(|quorum| quorum.is_against(verdict.votes));
    let counts = verdict.reporting >= rule.min_reporting_sites;
    against || counts && drop.is_some_and(|drop| drop > rule.max_regression)
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
    use medinet_wire::vote::Quorum;

    fn metrics(images: u64, auroc: Option<f64>) -> SiteMetrics {
        SiteMetrics { images, auroc, accuracy: 0.5, loss: 1.0, calibration_error: 0.1 }
    }

    fn verdict(reports: &[Option<SiteMetrics>], drop: Option<f64>) -> Verdict {
        voted(reports, drop, None, VoteTally::default())
    }

    fn voted(
        reports: &[Option<SiteMetrics>],
        drop: Option<f64>,
        votes: Option<Quorum>,
        tally: VoteTally,
    ) -> Verdict {
        let (min_median_auroc, max_regression, min_reporting_sites) = (0.7, 0.01, 2);
        let rule =
            ReleaseRule { min_median_auroc, max_regression, min_reporting_sites, votes, go_back: true };
        let blob = BlobDigest(Digest::of(b""));
        let manifest =
            BlobManifest { digest: blob, length_bytes: 1, chunk_bytes: 1024, chunk_hashes: vec![] };
        let model = ModelRef { digest: ModelDigest(blob.0), version: ModelVersion(1), parameters: manifest };
        judge(&rule, model, reports.iter().map(Option::as_ref), tally, drop)
    }

    #[test]
    fn good_figures_do_not_release_what_the_sites_reject() {
        let quorum = Quorum { min_accepting: 2, min_accept_permille: 667 };
        let good = [Some(metrics(100, Some(0.9))); 3];
        let outcome = |accepting, rejecting| {
            let tally = VoteTally { accepting, rejecting, abstaining: 0 };
            voted(&good, None, Some(quorum), tally).outcome
        };
        assert_eq!(outcome(3, 0), Outcome::Released);
        for (accepting, rejecting) in [(0, 0), (1, 0), (2, 1), (0, 3)] {
            let rejected = outcome(accepting, rejecting);
            assert!(matches!(rejected, Outcome::Rejected(RejectionReason::NoQuorum { .. })), "{rejected:?}");
        }
    }

    #[test]
    fn one_site_of_three_moves_no_figure_beyond_what_the_others_say() {
        let honest = [metrics(100, Some(0.9)), metrics(300, Some(0.7))];
        for claimed in [0.0, 0.8, 1.0] {
            let liar = metrics(1_000_000, Some(claimed));
            let got = verdict(&[Some(honest[0]), Some(honest[1]), Some(liar)], None).median_auroc.unwrap();
            assert!((0.7..=0.9).contains(&got), "{got}");
        }
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![0.25, 1.0, 0.75, 0.0]), Some(0.5));
    }

    #[test]
    fn each_site_compares_with_what_it_measured_of_the_release() {
        let site = |n: u32| SiteId::new(format!("site-{n}")).unwrap();
        let released = BTreeMap::from([(site(0), 0.95), (site(1), 0.75), (site(2), 1.0)]);
        let drop = |measured: &[(u32, f64)]| {
            let measured: Vec<_> = measured.iter().map(|(n, auroc)| (site(*n), *auroc)).collect();
            median_drop(&released, measured.iter().map(|(site, auroc)| (site, *auroc)))
        };
        // The best of the sites stays away, and a new one comes: that is no regression.
        assert!(drop(&[(1, 0.75), (3, 0.5)]).unwrap().abs() < 1e-12);
        // The third claimed too much once, and freezes nothing by it.
        assert!(drop(&[(0, 0.95), (1, 0.76), (2, 0.8)]).unwrap() <= 1e-12);
        assert!((drop(&[(0, 0.90), (1, 0.70), (2, 1.0)]).unwrap() - 0.05).abs() < 1e-12);
        assert_eq!(drop(&[(3, 0.9)]), None);
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
        let worse = verdict(&[report(0.8); 2], Some(0.02));
        assert!(matches!(rejected(worse), RejectionReason::Regression { .. }));
        assert_eq!(verdict(&[report(0.8); 2], Some(0.005)).outcome, Outcome::Released);
        assert!(verdict(&[], None).median_auroc.is_none());
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
