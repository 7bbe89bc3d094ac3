//! A training round: updates are pulled, checked and added as they come.

use crate::cohort::{OpenRound, Outlook, Standing};
use crate::downlink::NextModel;
use crate::effect::{Effect, Outbox};
use crate::evaluate::metrics_fault;
use crate::phase::{Paused, Phase, Suspended, Turn};
use crate::record::{Contribution, PauseReason, RoundRecord};
use crate::sum::{Claim, Sum};
use medinet_model::{encode_parameters, model_digest};
use medinet_privacy::PrivacyReport;
use medinet_types::{BlobDigest, ModelVersion, SiteId};
use medinet_wire::blob::BlobManifest;
use medinet_wire::message::{
    FromSite, MakingRound, ModelRef, RefusalReason, RoundKind, SiteMetrics, UpdateOffer,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// An update that counts; its bytes are in the blob store until the round closes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct CountedUpdate {
    pub(crate) update: BlobDigest,
    pub(crate) examples: u64,
    pub(crate) base_metrics: Option<SiteMetrics>,
    pub(crate) privacy: Option<PrivacyReport>,
}

/// A training round that takes updates.
#[derive(Debug)]
pub(crate) struct TrainRound {
    pub(crate) open: OpenRound<CountedUpdate>,
    /// Offers whose updates are being pulled. Not persisted: sites repeat them.
    offers: BTreeMap<SiteId, UpdateOffer>,
    sum: Sum,
}

/// A training round after a restart, until every counted update is in the sum again. Sites' messages are ignored
/// meanwhile; they are repeated.
#[derive(Debug)]
pub(crate) struct Rebuilding {
    pub(crate) round: TrainRound,
}

impl TrainRound {
    pub(crate) fn open(turn: &mut Turn<'_>) -> Self {
        Self::restored(OpenRound::open(RoundKind::Train, turn))
    }

    pub(crate) fn restored(open: OpenRound<CountedUpdate>) -> Self {
        Self { open, offers: BTreeMap::new(), sum: Sum::default() }
    }

    /// Asks for the updates that count and are not in the sum.
    pub(crate) fn load(&self, out: &mut Outbox) {
        let blobs: BTreeSet<BlobDigest> = self.missing().map(|(_, counted)| counted.update).collect();
        for blob in blobs {
            out.then(Effect::LoadUpdate { blob });
        }
    }

    /// Enters the round: at once, or by way of summing again what counts.
    pub(crate) fn enter(self) -> Phase {
        if self.missing().next().is_none() {
            Phase::Training(self)
        } else {
            Phase::Rebuilding(Rebuilding { round: self })
        }
    }

    fn missing(&self) -> impl Iterator<Item = (&SiteId, &CountedUpdate)> {
        self.open.delivered().filter(|(site, _)| !self.sum.has(site))
    }

    pub(crate) fn on_site(&mut self, turn: &mut Turn<'_>, from: &SiteId, message: FromSite) {
        match message {
            FromSite::Join { .. } => {
                self.open.admit(&mut turn.out, from);
            }
            FromSite::Decline { reason, .. } => {
                self.drop_offer(&mut turn.out, from);
                self.open.decline(turn, from, &reason);
            }
            FromSite::OfferUpdate(offer) => self.on_offer(turn, from, offer),
            FromSite::Evaluation { .. } => {
                let reason = RefusalReason::Malformed("this is a training round".into());
                self.open.refuse(&mut turn.out, from, reason);
            }
            FromSite::Secure { .. } => {
                let reason = RefusalReason::Malformed("this round does not use secure aggregation".into());
                self.open.refuse(&mut turn.out, from, reason);
            }
            FromSite::RegisterDataset(_) | FromSite::Want(_) | FromSite::WantCheckpoint { .. } => {}
        }
    }

    fn on_offer(&mut self, turn: &mut Turn<'_>, from: &SiteId, offer: UpdateOffer) {
        if !self.open.admit(&mut turn.out, from) {
            return;
        }
        let expected = self.open.plan.base.digest;
        if offer.base != expected {
            // The round's number is this round's, so the site is at fault, and must not hold a place.
            self.drop_offer(&mut turn.out, from);
            self.open.fail(&mut turn.out, from, RefusalReason::OtherBase { expected, got: offer.base });
            return;
        }
        if let Some(fault) = offer_fault(&offer, turn.plan.max_examples, turn.parameters.len()) {
            self.drop_offer(&mut turn.out, from);
            self.open.fail(&mut turn.out, from, RefusalReason::Malformed(fault));
            return;
        }
        let manifest = offer.update.clone();
        if self.offers.get(from).is_some_and(|earlier| earlier.update.digest != manifest.digest) {
            self.drop_offer(&mut turn.out, from);
        }
        self.offers.insert(from.clone(), offer);
        turn.out.then(Effect::Fetch { site: from.clone(), manifest });
    }

    /// Forgets a site's offer; the transfer is stopped unless another site offers the same bytes.
    fn drop_offer(&mut self, out: &mut Outbox, site: &SiteId) {
        let Some(offer) = self.offers.remove(site) else { return };
        let blob = offer.update.digest;
        if !self.offers.values().any(|other| other.update.digest == blob) {
            out.then(Effect::StopFetching { blob });
        }
    }

    /// Sites that offer a blob.
    fn offering(&self, blob: BlobDigest) -> Vec<SiteId> {
        let offers = self.offers.iter().filter(|(_, offer)| offer.update.digest == blob);
        offers.map(|(site, _)| site.clone()).collect()
    }

    pub(crate) fn on_update(&mut self, turn: &mut Turn<'_>, blob: BlobDigest, bytes: &[u8]) {
        let sites = self.offering(blob);
        let mut kept = self.open.delivered().any(|(_, counted)| counted.update == blob);
        for site in sites {
            let Some(offer) = self.offers.remove(&site) else { continue };
            let claim = Claim {
                site: &site,
                round: &self.open.plan,
                examples: offer.examples,
                parameters: turn.parameters.len(),
            };
            match self.sum.add(&claim, bytes) {
                Ok(()) => {
                    kept = true;
                    self.count(turn, &site, offer);
                }
                Err(reason) => self.open.fail(&mut turn.out, &site, reason),
            }
        }
        if !kept {
            turn.out.then(Effect::Discard { blobs: vec![blob] });
        }
    }

    fn count(&mut self, turn: &mut Turn<'_>, site: &SiteId, offer: UpdateOffer) {
        let UpdateOffer { update, examples, base_metrics, privacy, .. } = offer;
        turn.out.record(RoundRecord::UpdateAccepted {
            round: self.open.number(),
            site: site.clone(),
            update: update.digest,
            update_bytes: update.length_bytes,
            examples,
            base_metrics,
            privacy,
        });
        turn.task.note_privacy(site, self.open.number(), privacy);
        let counted = CountedUpdate { update: update.digest, examples, base_metrics, privacy };
        self.open.sites.insert(site.clone(), Standing::Delivered(counted));
        self.open.accept(&mut turn.out, site);
    }

    pub(crate) fn on_failed(&mut self, turn: &mut Turn<'_>, blob: BlobDigest) {
        for site in self.offering(blob) {
            self.offers.remove(&site);
            let fault = "the update's bytes are not what its manifest says".to_owned();
            self.open.fail(&mut turn.out, &site, RefusalReason::Malformed(fault));
        }
    }

    /// Closes, extends or pauses the round when it is time.
    pub(crate) fn advance(mut self, turn: &mut Turn<'_>) -> Phase {
        match self.open.outlook(turn) {
            Outlook::WaitUntil(when) => {
                turn.wake = Some(when);
                Phase::Training(self)
            }
            Outlook::Close => self.close(turn),
            Outlook::TooFew => match self.open.extend(turn) {
                Ok(()) => {
                    turn.wake = Some(self.open.plan.deadline);
                    Phase::Training(self)
                }
                Err(reason) => self.pause(turn, reason),
            },
        }
    }

    fn pause(mut self, turn: &mut Turn<'_>, reason: PauseReason) -> Phase {
        for offer in std::mem::take(&mut self.offers).into_values() {
            turn.out.then(Effect::StopFetching { blob: offer.update.digest });
        }
        Phase::Paused(Paused::enter(turn, Suspended::Training(self), reason))
    }

    fn close(self, turn: &mut Turn<'_>) -> Phase {
        let mean = self.sum.mean(turn.parameters.len());
        let Some(next) = NextModel::of(turn, &mean) else {
            let reason = PauseReason::Diverged { round: self.open.number() };
            return self.pause(turn, reason);
        };
        let Self { open, offers, sum: _ } = self;
        let contributions: Vec<Contribution> = open
            .delivered()
            .map(|(site, counted)| Contribution {
                site: site.clone(),
                examples: Some(counted.examples),
                update: counted.update,
            })
            .collect();
        for offer in offers.values() {
            turn.out.then(Effect::StopFetching { blob: offer.update.digest });
        }
        turn.out.then(Effect::Discard { blobs: contributions.iter().map(|c| c.update).collect() });
        turn.task.auroc = self_reported_auroc(&open).or(turn.task.auroc);
        let examples = open.delivered().map(|(_, counted)| counted.examples).sum();
        adopt(turn, &open, next, contributions, examples);
        Phase::next(turn)
    }

    /// Blobs that must stay: counted updates and those being pulled.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = BlobDigest> {
        let counted = self.open.delivered().map(|(_, counted)| counted.update);
        counted.chain(self.offers.values().map(|offer| offer.update.digest))
    }

    /// Median AUROC of the base model over the updates that count so far.
    pub(crate) fn auroc(&self) -> Option<f64> {
        self_reported_auroc(&self.open)
    }
}

fn self_reported_auroc(open: &OpenRound<CountedUpdate>) -> Option<f64> {
    crate::evaluate::median_auroc(open.delivered().filter_map(|(_, counted)| counted.base_metrics.as_ref()))
}

/// Makes the round's result the newest model, and remembers who is in it: `open.delivered()`.
pub(crate) fn adopt<T>(
    turn: &mut Turn<'_>,
    open: &OpenRound<T>,
    next: NextModel,
    contributions: Vec<Contribution>,
    examples: u64,
) {
    let bytes = encode_parameters(&next.parameters);
    let base = &open.plan.base;
    let model = ModelRef {
        digest: model_digest(&open.plan.spec.network, &next.parameters),
        // The base may be older than the newest version.
        version: ModelVersion(turn.task.trained.0 + 1),
        parameters: BlobManifest::of(&bytes),
    };
    turn.out.before.push(Effect::StoreBlob { manifest: model.parameters.clone(), bytes });
    // A round may, by chance or design, end in the model it began with: that blob is still to be served.
    if model.parameters.digest != base.parameters.digest {
        turn.out.then(Effect::StopServing { blob: base.parameters.digest });
    }
    let parameters = next.adopt(turn, base, &model);
    let mut sites: Vec<_> = contributions.iter().map(|contribution| contribution.site.clone()).collect();
    sites.sort();
    turn.task.made_by = Some(MakingRound { round: open.number(), sites });
    turn.out.record(RoundRecord::ModelAggregated {
        round: open.number(),
        base: base.digest,
        model: model.clone(),
        contributions,
        examples,
    });
    turn.task.closed(open, turn.now);
    turn.task.without_sum = 0;
    turn.task.trained = model.version;
    turn.task.model = model;
    *turn.parameters = parameters;
}

impl Rebuilding {
    pub(crate) fn on_update(mut self, turn: &mut Turn<'_>, blob: BlobDigest, bytes: &[u8]) -> Phase {
        for (site, counted) in self.missing(blob) {
            let round = &mut self.round;
            let claim = Claim {
                site: &site,
                round: &round.open.plan,
                examples: counted.examples,
                parameters: turn.parameters.len(),
            };
            if round.sum.add(&claim, bytes).is_err() {
                // It decoded when it was counted, so these are not those bytes.
                self.lose(turn, &site, blob);
            }
        }
        self.proceed()
    }

    pub(crate) fn on_failed(mut self, turn: &mut Turn<'_>, blob: BlobDigest) -> Phase {
        for (site, _) in self.missing(blob) {
            self.lose(turn, &site, blob);
        }
        self.proceed()
    }

    fn missing(&self, blob: BlobDigest) -> Vec<(SiteId, CountedUpdate)> {
        let missing = self.round.missing().filter(|(_, counted)| counted.update == blob);
        missing.map(|(site, counted)| (site.clone(), counted.clone())).collect()
    }

    /// The disk lost an accepted update: the site, which believes itself done, is sent back to the announcement.
    fn lose(&mut self, turn: &mut Turn<'_>, site: &SiteId, update: BlobDigest) {
        let open = &mut self.round.open;
        let round = open.number();
        open.sites.insert(site.clone(), Standing::Joined);
        turn.out.record(RoundRecord::UpdateLost { round, site: site.clone(), update });
        open.refuse(&mut turn.out, site, RefusalReason::NotOpen { open: Some(round) });
        open.recall(turn);
    }

    fn proceed(self) -> Phase {
        self.round.enter()
    }
}

/// What is wrong with an offer, before a byte of it is pulled.
fn offer_fault(offer: &UpdateOffer, max_examples: u64, parameters: usize) -> Option<String> {
    if let Err(error) = offer.update.check() {
        return Some(error.to_string());
    }
    let limit = Sum::max_update_bytes(parameters);
    if offer.update.length_bytes > limit {
        return Some(format!("expected at most {limit} bytes, got {}", offer.update.length_bytes));
    }
    if !(1..=max_examples).contains(&offer.examples) {
        return Some(format!("expected 1 to {max_examples} examples, got {}", offer.examples));
    }
    offer.base_metrics.as_ref().and_then(|metrics| metrics_fault(metrics, max_examples))
}
