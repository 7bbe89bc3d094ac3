//! The appliance's only way out.
//!
//! What can be said is what the methods take: that the site joins or declines a round, a [`SealedUpdate`], a [`MaskedUpdate`] and the
//! [`Word`]s of its protocol, metrics that the site's policy released, what is spent of its privacy budget, a [`Vote`] on a candidate, the registration of a data set by digest, and health. There is no method that
//! takes an image, a tensor, a parameter vector or free bytes, so nothing of that kind can leave by accident.

use medinet_link::{Incoming, Link, LinkError, LinkEvent, LinkOptions, Traffic};
use medinet_privacy::PrivacyReport;
use medinet_secure::{MaskedUpdate, Word};
use medinet_types::{BlobDigest, DatasetDigest, Digest, ModelDigest, RecordDigest, RoundNumber, TaskId};
use medinet_update::SealedUpdate;
use medinet_wire::blob::BlobManifest;
use medinet_wire::envelope::Signer;
use medinet_wire::message::{
    DatasetRegistration, FromAggregatorToAll, FromSite, ModelRelease, RefusalReason, RoundPlan, SiteMetrics,
    SiteStatus, ToSite, UpdateOffer, clean_reason,
};
use medinet_wire::secure::{AggregatorStep, sign_vote};
use medinet_wire::vote::Vote;
use std::sync::Arc;
use tokio::sync::mpsc;

/// What the aggregator tells a site.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "handled one at a time")]
pub enum UplinkEvent {
    /// The connection stands: repeat what is unanswered.
    Connected,
    /// The connection is lost and being restored.
    Disconnected,
    /// A round is open.
    Announced(RoundPlan),
    /// No round of the task is open.
    Idle(TaskId),
    /// A model has been released.
    Released(ModelRelease),
    /// The newest ledger checkpoint, a signed note.
    Checkpoint(String),
    /// The newest ledger checkpoint, as asked for.
    CheckpointProof {
        /// The signed note.
        note: String,
        /// Entries in the checkpoint that this site said it had seen.
        seen: u64,
        /// The consistency proof from there.
        proof: Vec<Digest>,
    },
    /// A data set is on the ledger.
    DatasetRegistered {
        /// The manifest's digest.
        manifest: DatasetDigest,
        /// Leaf hash of the record.
        record: RecordDigest,
    },
    /// The round has all it needs from us.
    Accepted {
        /// The task.
        task: TaskId,
        /// The round.
        round: RoundNumber,
    },
    /// What we sent does not count.
    Refused {
        /// The task.
        task: TaskId,
        /// The round.
        round: RoundNumber,
        /// Why.
        reason: RefusalReason,
    },
    /// A word in a round with secure aggregation.
    Secure {
        /// The task.
        task: TaskId,
        /// The round.
        round: RoundNumber,
        /// The word.
        step: AggregatorStep,
    },
    /// A blob that was asked for is in the store.
    Fetched(BlobDigest),
    /// A blob that was asked for cannot be had.
    FetchFailed(BlobDigest),
}

/// What belongs to an offered update beside its bytes.
#[derive(Debug, Clone)]
pub struct OfferDetails {
    /// The task.
    pub task: TaskId,
    /// The round.
    pub round: RoundNumber,
    /// The model that training started from.
    pub base: ModelDigest,
    /// Training images.
    pub examples: u64,
    /// What was measured of the base model; `None` when the policy keeps metrics at the site.
    pub base_metrics: Option<SiteMetrics>,
    /// What the site has spent of its privacy budget for the task, this round included; `None` until a private round was charged.
    pub privacy: Option<PrivacyReport>,
}

/// The way out.
#[derive(Clone)]
pub struct Uplink {
    link: Link,
    /// Votes are signed here, so that no method takes bytes that somebody else calls a signature.
    signer: Arc<dyn Signer>,
}

/// Events still to be handled.
pub struct UplinkEvents {
    events: mpsc::Receiver<LinkEvent>,
}

impl Uplink {
    /// Connects in the background.
    #[must_use]
    pub fn start(options: LinkOptions) -> (Self, UplinkEvents) {
        let signer = Arc::clone(&options.identity) as Arc<dyn Signer>;
        let (link, events) = Link::start(options);
        (Self { link, signer }, UplinkEvents { events })
    }

    /// Takes part in a round.
    ///
    /// # Errors
    /// When the session has ended or the key refuses.
    pub async fn join(&self, task: TaskId, round: RoundNumber) -> Result<(), LinkError> {
        self.link.send_up(&FromSite::Join { task, round }).await
    }

    /// Refuses a round, saying why, as [`clean_reason`] makes it.
    ///
    /// # Errors
    /// When the session has ended or the key refuses.
    pub async fn decline(&self, task: TaskId, round: RoundNumber, reason: &str) -> Result<(), LinkError> {
        let reason = clean_reason(reason);
        self.link.send_up(&FromSite::Decline { task, round, reason }).await
    }

    /// Registers a data set by digest and rounded counts.
    ///
    /// # Errors
    /// When the session has ended or the key refuses.
    pub async fn register_dataset(&self, registration: DatasetRegistration) -> Result<(), LinkError> {
        self.link.send_up(&FromSite::RegisterDataset(registration)).await
    }

    /// Asks for the ledger's newest checkpoint and for proof that it continues the one of `seen` entries; 0 when none was seen.
    ///
    /// # Errors
    /// When the session has ended or the key refuses.
    pub async fn want_checkpoint(&self, seen: u64) -> Result<(), LinkError> {
        self.link.send_up(&FromSite::WantCheckpoint { seen }).await
    }

    /// Keeps a sealed update ready to be pulled and returns its manifest.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn hold_update(&self, update: &SealedUpdate) -> Result<BlobManifest, LinkError> {
        let manifest = self.link.blobs().put(update.as_bytes())?;
        self.link.serve(manifest.digest);
        Ok(manifest)
    }

    /// Keeps a masked update ready to be pulled.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn hold_masked(&self, update: &MaskedUpdate) -> Result<(), LinkError> {
        let manifest = self.link.blobs().put(update.as_bytes())?;
        self.link.serve(manifest.digest);
        Ok(())
    }

    /// Says a word in a round with secure aggregation.
    ///
    /// # Errors
    /// When the session has ended or the key refuses.
    pub async fn say(&self, task: TaskId, round: RoundNumber, word: Word) -> Result<(), LinkError> {
        self.link.send_up(&FromSite::Secure { task, round, step: word.into_step() }).await
    }

    /// Offers an update that is held. Repeat it until [`UplinkEvent::Accepted`] or [`UplinkEvent::Refused`].
    ///
    /// # Errors
    /// When the session has ended or the key refuses.
    pub async fn offer_update(&self, update: BlobManifest, details: OfferDetails) -> Result<(), LinkError> {
        let OfferDetails { task, round, base, examples, base_metrics, privacy } = details;
        let offer = UpdateOffer { task, round, base, update, examples, base_metrics, privacy };
        self.link.send_up(&FromSite::OfferUpdate(offer)).await
    }

    /// Drops an update, sealed or masked, that is no longer wanted.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn drop_update(&self, update: BlobDigest) -> Result<(), LinkError> {
        self.link.stop_serving(update);
        Ok(self.link.blobs().remove(update)?)
    }

    /// Reports a measurement of a candidate model and votes on it. Repeat it until accepted or refused.
    ///
    /// # Errors
    /// When the session has ended or the key refuses.
    pub async fn report_evaluation(
        &self,
        task: TaskId,
        round: RoundNumber,
        metrics: Option<SiteMetrics>,
        vote: Vote,
    ) -> Result<(), LinkError> {
        let vote = Some(sign_vote(self.signer.as_ref(), vote)?);
        self.link.send_up(&FromSite::Evaluation { task, round, metrics, vote }).await
    }

    /// Publishes the site's health.
    pub fn publish_status(&self, status: &SiteStatus) {
        match serde_json::to_vec(status) {
            Ok(json) => self.link.publish_status(json),
            Err(error) => tracing::error!(%error, "cannot encode the site's status"),
        }
    }

    /// Pulls a blob of the aggregator; [`UplinkEvent::Fetched`] follows.
    ///
    /// # Errors
    /// When its manifest breaks the rules or the disk refuses.
    pub fn fetch(&self, manifest: BlobManifest) -> Result<(), LinkError> {
        self.link.fetch(None, manifest)
    }

    /// A fetched blob's content.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn fetched(&self, blob: BlobDigest) -> Result<Option<Vec<u8>>, LinkError> {
        Ok(self.link.blobs().get(blob)?)
    }

    /// Whether a blob is here, whole.
    #[must_use]
    pub fn has(&self, blob: BlobDigest) -> bool {
        self.link.blobs().has(blob)
    }

    /// Pulls a blob no longer, and removes what has come of it.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn forget(&self, blob: BlobDigest) -> Result<(), LinkError> {
        self.link.stop_fetching(blob);
        Ok(self.link.blobs().remove(blob)?)
    }

    /// Removes every blob but those named: call when a round is over.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn keep_only(&self, blobs: &[BlobDigest]) -> Result<(), LinkError> {
        Ok(self.link.blobs().retain(|blob| blobs.contains(&blob))?)
    }

    /// Bytes sent and received.
    #[must_use]
    pub fn traffic(&self) -> Arc<Traffic> {
        self.link.traffic()
    }

    /// Says goodbye.
    pub async fn close(&self) {
        self.link.close().await;
    }
}

impl UplinkEvents {
    /// The next event; `None` when the session has ended.
    pub async fn next(&mut self) -> Option<UplinkEvent> {
        loop {
            let event = match self.events.recv().await? {
                LinkEvent::Connected => UplinkEvent::Connected,
                LinkEvent::Disconnected => UplinkEvent::Disconnected,
                LinkEvent::Fetched(blob) => UplinkEvent::Fetched(blob),
                LinkEvent::FetchFailed(blob) => UplinkEvent::FetchFailed(blob),
                LinkEvent::Message(Incoming::ToAll(message)) => match message {
                    FromAggregatorToAll::Announce(plan) => UplinkEvent::Announced(plan),
                    FromAggregatorToAll::Idle { task } => UplinkEvent::Idle(task),
                    FromAggregatorToAll::Release(release) => UplinkEvent::Released(release),
                    FromAggregatorToAll::Checkpoint(note) => UplinkEvent::Checkpoint(note),
                },
                LinkEvent::Message(Incoming::ToSite(message)) => match message {
                    ToSite::DatasetRegistered { manifest, record } => {
                        UplinkEvent::DatasetRegistered { manifest, record }
                    }
                    ToSite::Accepted { task, round } => UplinkEvent::Accepted { task, round },
                    ToSite::Refused { task, round, reason } => UplinkEvent::Refused { task, round, reason },
                    ToSite::Checkpoint { note, seen, proof } => {
                        UplinkEvent::CheckpointProof { note, seen, proof }
                    }
                    ToSite::Secure { task, round, step } => UplinkEvent::Secure { task, round, step },
                    ToSite::Want(_) => continue,
                },
                LinkEvent::Message(Incoming::FromSite(..) | Incoming::Status(..)) => continue,
            };
            return Some(event);
        }
    }
}
