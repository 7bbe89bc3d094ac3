//! What goes into the coordinator and what comes out.

use crate::record::{RoundRecord, Verdict};
use crate::snapshot::Snapshot;
use medinet_types::{BlobDigest, SiteId, UnixMillis};
use medinet_wire::blob::BlobManifest;
use medinet_wire::message::{FromAggregatorToAll, FromSite, ModelRef, ToSite};
use medinet_wire::vote::SignedVote;

/// Something that the coordinator reacts to.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "handled one at a time")]
pub enum Input<'a> {
    /// The operator starts the task, or continues a paused one. Changes nothing while it runs.
    Start,
    /// Time has passed; due at the last [`Effect::WakeAt`], harmless at any moment.
    Tick,
    /// A site's message whose signature has been verified.
    Site {
        /// The signer.
        from: SiteId,
        /// What it says.
        message: FromSite,
    },
    /// A blob asked for by [`Effect::Fetch`] or [`Effect::LoadUpdate`] is whole in the blob store.
    UpdateArrived {
        /// Which.
        blob: BlobDigest,
        /// Its content.
        bytes: &'a [u8],
    },
    /// A fetched blob turned out not to be what its manifest says, or a blob to load is not in the store any more.
    UpdateFailed {
        /// Which.
        blob: BlobDigest,
    },
    /// First after [`Coordinator::resume`](crate::Coordinator::resume): repeats what a kill may have swallowed.
    Restarted,
}

/// Something for the host to do. Effects are carried out in order, each before the next one starts; a host that
/// cannot carry one out stops and resumes from its store.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "carried out one at a time")]
pub enum Effect {
    /// Keep a blob durably. It is named by its content, so doing it twice is harmless.
    StoreBlob {
        /// Its name and chunks.
        manifest: BlobManifest,
        /// Its content.
        bytes: Vec<u8>,
    },
    /// Make state and records durable in one transaction.
    Persist(Commit),
    /// Offer a stored blob to all sites.
    Serve {
        /// Which.
        blob: BlobDigest,
    },
    /// Offer it no longer.
    StopServing {
        /// Which.
        blob: BlobDigest,
    },
    /// Publish to everyone, retained.
    Broadcast(FromAggregatorToAll),
    /// Send to one site.
    Send {
        /// The site.
        site: SiteId,
        /// What.
        message: ToSite,
    },
    /// Send the same to several sites: of a large cohort's key list one copy is enough.
    SendAll {
        /// The sites.
        sites: Vec<SiteId>,
        /// What.
        message: ToSite,
    },
    /// Pull an update from a site, then [`Input::UpdateArrived`]. May be asked for again while it is under way.
    Fetch {
        /// The site.
        site: SiteId,
        /// What.
        manifest: BlobManifest,
    },
    /// Give up pulling a blob and forget the chunks that came.
    StopFetching {
        /// Which.
        blob: BlobDigest,
    },
    /// Read a counted update from the blob store again; once all effects of this input are carried out, [`Input::UpdateArrived`] or
    /// [`Input::UpdateFailed`].
    LoadUpdate {
        /// Which.
        blob: BlobDigest,
    },
    /// Delete blobs that are needed no more.
    Discard {
        /// Which.
        blobs: Vec<BlobDigest>,
    },
    /// A model passed the rule: see to it that it is signed, bundled, on the ledger and announced. Comes again after
    /// each restart, so a host that has done it does nothing.
    Publish(Release),
    /// Give [`Input::Tick`] at this moment; replaces the earlier request.
    WakeAt(UnixMillis),
    /// The task is over.
    Finished {
        /// The last global model, released or not.
        model: ModelRef,
        /// The newest released model, if any passed the rule.
        released: Option<ModelRef>,
    },
}

/// A change of state that must be durable as a whole before anything follows from it.
#[derive(Debug, Clone, PartialEq)]
pub struct Commit {
    /// The state to resume from; replaces the previous one.
    pub snapshot: Snapshot,
    /// When.
    pub at: UnixMillis,
    /// What happened with this change, in order, to be appended to the ledger exactly once.
    pub records: Vec<RoundRecord>,
}

/// A model that passed the rule.
#[derive(Debug, Clone, PartialEq)]
pub struct Release {
    /// What the sites measured.
    pub verdict: Verdict,
    /// Their signed votes, by site: what shows to others that they have accepted it.
    pub votes: Vec<SignedVote>,
}

/// Collects the effects of one input: what must precede the commit, the commit's records, and what follows from it.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    pub(crate) before: Vec<Effect>,
    pub(crate) changed: bool,
    pub(crate) records: Vec<RoundRecord>,
    pub(crate) after: Vec<Effect>,
}

impl Outbox {
    /// Notes a change of state together with its record.
    pub(crate) fn record(&mut self, record: RoundRecord) {
        self.changed = true;
        self.records.push(record);
    }

    pub(crate) fn then(&mut self, effect: Effect) {
        self.after.push(effect);
    }

    pub(crate) fn send(&mut self, site: &SiteId, message: ToSite) {
        self.after.push(Effect::Send { site: site.clone(), message });
    }

    pub(crate) fn send_all(&mut self, sites: Vec<SiteId>, message: ToSite) {
        if !sites.is_empty() {
            self.after.push(Effect::SendAll { sites, message });
        }
    }
}
