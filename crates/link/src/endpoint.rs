//! Envelopes, blobs and the session, tied together.

use crate::blobs::{BlobStore, BlobStoreError, Incoming as IncomingBlob};
use crate::session::{Arrival, Presence, Session, SessionSettings, Traffic};
use crate::transfer::{Fetches, Peer, Serving};
use bytes::Bytes;
use medinet_identity::Identity;
use medinet_types::{BlobDigest, Digest, FederationId, Principal, Role, SiteId};
use medinet_wire::blob::{BlobManifest, BlobWant, Chunk};
use medinet_wire::envelope::{Header, SignError, Verifier, open, seal};
use medinet_wire::message::{FromAggregatorToAll, FromSite, ToSite};
use medinet_wire::topic::{Broadcast, Filter, Lane, Topic};
use serde::Serialize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, watch};

/// Events that may wait for the program.
const QUEUE: usize = 64;
/// How often silent fetches are looked at.
const TICK: Duration = Duration::from_millis(500);

/// What a link needs.
pub struct LinkOptions {
    /// How to reach the broker.
    pub session: SessionSettings,
    /// Who we are.
    pub identity: Arc<Identity>,
    /// Whom we believe.
    pub verifier: Arc<dyn Verifier>,
    /// The federation.
    pub federation: FederationId,
    /// Where blobs are kept.
    pub blobs: BlobStore,
    /// JSON that the broker publishes on our status topic when we vanish; operators, who have no such topic, leave
    /// it out.
    pub last_will: Option<Vec<u8>>,
}

/// What comes from the other side, its sender proven.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "decoded one at a time and moved at once")]
pub enum Incoming {
    /// At the aggregator: a site's message, and the digest of the envelope that the site signed.
    FromSite(SiteId, FromSite, Digest),
    /// At a site: a message of the aggregator to it.
    ToSite(ToSite),
    /// At a site: a broadcast of the aggregator.
    ToAll(FromAggregatorToAll),
    /// A party's status, plain JSON as published; unsigned, for people only.
    Status(Topic, Bytes),
}

/// What a program gets from its link.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "handled one at a time")]
pub enum LinkEvent {
    /// The connection stands and subscriptions are made; repeat what is unanswered.
    Connected,
    /// The connection is lost; it is being restored.
    Disconnected,
    /// A proven message.
    Message(Incoming),
    /// A blob that was asked for is whole in the store.
    Fetched(BlobDigest),
    /// A blob that was asked for cannot be had: its manifest is false.
    FetchFailed(BlobDigest),
}

/// The link could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The session was closed.
    #[error("the session with the broker has ended")]
    Ended,
    /// The identity key refused.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// The blob store refused.
    #[error(transparent)]
    Blobs(#[from] BlobStoreError),
}

struct Shared {
    options: LinkOptions,
    me: Principal,
    session: Session,
    serving: Mutex<Serving>,
    serve: Notify,
    fetches: Mutex<Fetches<IncomingBlob>>,
    look: Notify,
}

/// A party's end of the bus. Clones share one connection.
#[derive(Clone)]
pub struct Link {
    shared: Arc<Shared>,
}

impl Link {
    /// Connects, and keeps connecting, in the background. The role in our certificate decides what is subscribed.
    #[must_use]
    pub fn start(options: LinkOptions) -> (Self, mpsc::Receiver<LinkEvent>) {
        let me = options.identity.principal().clone();
        let federation = options.federation.clone();
        let subscriptions = match me.role {
            Role::Site => {
                vec![Filter::Broadcasts(federation.clone()), Filter::Down(federation, me.name.clone())]
            }
            Role::Aggregator => {
                vec![Filter::AllUp(federation.clone()), Filter::AllSiteStatus(federation)]
            }
            Role::Operator | Role::Broker => {
                vec![Filter::Broadcasts(federation.clone()), Filter::AllSiteStatus(federation)]
            }
        };
        let will = options.last_will.clone().map(|payload| (status_topic(&options.federation, &me), payload));
        let (session, arrivals, presence) =
            Session::start(&options.session, &options.identity, subscriptions, will);
        let shared = Arc::new(Shared {
            options,
            me,
            session,
            serving: Mutex::default(),
            serve: Notify::new(),
            fetches: Mutex::default(),
            look: Notify::new(),
        });
        let (events_tx, events) = mpsc::channel(QUEUE);
        tokio::spawn(receive(Arc::clone(&shared), arrivals, presence, events_tx));
        tokio::spawn(serve(Arc::clone(&shared)));
        (Self { shared }, events)
    }

    /// Sends a site's message to the aggregator.
    ///
    /// # Errors
    /// When the session has ended or the key refuses.
    pub async fn send_up(&self, message: &FromSite) -> Result<(), LinkError> {
        self.shared.send(None, message).await
    }

    /// Sends the aggregator's message to a site.
    ///
    /// # Errors
    /// When the session has ended or the key refuses.
    pub async fn send_to(&self, site: &SiteId, message: &ToSite) -> Result<(), LinkError> {
        self.shared.send(Some(site.clone()), message).await
    }

    /// Publishes the aggregator's retained broadcast.
    ///
    /// # Errors
    /// When the key refuses.
    pub fn broadcast(&self, kind: Broadcast, message: &FromAggregatorToAll) -> Result<(), LinkError> {
        let payload = self.shared.sealed(None, message)?;
        let topic = Topic::Broadcast(self.shared.options.federation.clone(), kind);
        self.shared.session.publish_retained(&topic, payload);
        Ok(())
    }

    /// Publishes our status, retained, as JSON for people and dashboards.
    pub fn publish_status(&self, json: Vec<u8>) {
        let topic = status_topic(&self.shared.options.federation, &self.shared.me);
        self.shared.session.publish_retained(&topic, json);
    }

    /// Offers a blob of the store to whoever asks for its chunks.
    pub fn serve(&self, blob: BlobDigest) {
        self.shared.serving().allow(blob);
    }

    /// Stops offering a blob.
    pub fn stop_serving(&self, blob: BlobDigest) {
        self.shared.serving().disallow(blob);
    }

    /// Pulls a blob from a site (`Some`) or the aggregator (`None`); [`LinkEvent::Fetched`] follows, at once when
    /// it is here already. Resumes what an earlier run left.
    ///
    /// # Errors
    /// When the manifest breaks the rules or the disk refuses.
    pub fn fetch(&self, peer: Option<SiteId>, manifest: BlobManifest) -> Result<(), LinkError> {
        let blob = manifest.digest;
        let mut fetches = self.shared.fetches();
        if !fetches.contains(blob) {
            let incoming = self.shared.options.blobs.receive(manifest)?;
            fetches.add(blob, peer, incoming);
        } else {
            manifest.check().map_err(BlobStoreError::from)?;
        }
        drop(fetches);
        self.shared.look.notify_one();
        Ok(())
    }

    /// Gives up a fetch.
    pub fn stop_fetching(&self, blob: BlobDigest) {
        self.shared.fetches().remove(blob);
    }

    /// The blob store.
    #[must_use]
    pub fn blobs(&self) -> &BlobStore {
        &self.shared.options.blobs
    }

    /// Bytes sent and received so far.
    #[must_use]
    pub fn traffic(&self) -> Arc<Traffic> {
        self.shared.session.traffic()
    }

    /// Says goodbye to the broker; the last will is not published.
    pub async fn close(&self) {
        self.shared.session.close().await;
    }
}

fn status_topic(federation: &FederationId, me: &Principal) -> Topic {
    match me.site() {
        Some(site) => Topic::SiteStatus(federation.clone(), site.clone()),
        None => Topic::Broadcast(federation.clone(), Broadcast::Status),
    }
}

impl Shared {
    fn serving(&self) -> std::sync::MutexGuard<'_, Serving> {
        self.serving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fetches(&self) -> std::sync::MutexGuard<'_, Fetches<IncomingBlob>> {
        self.fetches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sealed<M: Serialize>(&self, to: Option<Principal>, message: &M) -> Result<Vec<u8>, SignError> {
        let header = Header { federation: self.options.federation.clone(), to, signed_at: crate::now() };
        seal(&*self.options.identity, &header, message)
    }

    /// Sends to a site, or to the aggregator when `peer` is `None`.
    async fn send<M: Serialize>(&self, peer: Peer, message: &M) -> Result<(), LinkError> {
        let to = peer.clone().map(|site| Principal::new(Role::Site, site));
        let payload = self.sealed(to, message)?;
        self.session.publish(&self.lane(peer, Lane::Message), payload).await.map_err(|_| LinkError::Ended)
    }

    fn lane(&self, peer: Peer, lane: Lane) -> Topic {
        let federation = self.options.federation.clone();
        match peer {
            Some(site) => Topic::Down(federation, site, lane),
            None => Topic::Up(federation, self.me.name.clone(), lane),
        }
    }

    /// Asks for chunks. Never waits: a request that finds no room is made again when its patience ends.
    fn send_want(&self, peer: Peer, want: BlobWant) -> Result<(), SignError> {
        let topic = self.lane(peer.clone(), Lane::Message);
        let payload = match peer {
            Some(site) => self.sealed(Some(Principal::new(Role::Site, site)), &ToSite::Want(want))?,
            None => self.sealed(None, &FromSite::Want(want))?,
        };
        self.session.publish_if_room(&topic, payload);
        Ok(())
    }

    /// Opens what arrived on a message lane or a broadcast topic; `None` when it is not to be believed.
    fn open(&self, topic: &Topic, payload: &[u8]) -> Option<Incoming> {
        let incoming = match topic {
            Topic::Up(_, site, Lane::Message) => {
                let (from, message) = self.opened::<FromSite>(payload)?;
                if from.site() != Some(site) {
                    tracing::warn!(%from, %site, "a message signed by another than its topic names: ignored");
                    return None;
                }
                Incoming::FromSite(site.clone(), message, Digest::of(payload))
            }
            Topic::Down(_, _, Lane::Message) => Incoming::ToSite(self.opened_of_aggregator(payload)?),
            Topic::Broadcast(_, Broadcast::Status) | Topic::SiteStatus(..) => {
                Incoming::Status(topic.clone(), Bytes::copy_from_slice(payload))
            }
            Topic::Broadcast(..) => Incoming::ToAll(self.opened_of_aggregator(payload)?),
            Topic::Up(_, _, Lane::Chunk) | Topic::Down(_, _, Lane::Chunk) => return None,
        };
        Some(incoming)
    }

    fn opened_of_aggregator<M: serde::de::DeserializeOwned>(&self, payload: &[u8]) -> Option<M> {
        let (from, message) = self.opened(payload)?;
        if from.role != Role::Aggregator {
            tracing::warn!(%from, "a message of the aggregator signed by another: ignored");
            return None;
        }
        Some(message)
    }

    fn opened<M: serde::de::DeserializeOwned>(&self, payload: &[u8]) -> Option<(Principal, M)> {
        let verifier = &*self.options.verifier;
        match open::<M>(payload, verifier, &self.options.federation, &self.me, crate::now()) {
            Ok(opened) => Some((opened.from, opened.message)),
            Err(error) => {
                tracing::warn!(%error, "ignored an envelope");
                None
            }
        }
    }

    /// Takes a chunk; says whether it completed, or spoilt, its blob.
    fn take_chunk(&self, topic: &Topic, payload: &[u8]) -> Option<LinkEvent> {
        let peer: Peer = match topic {
            Topic::Up(_, site, _) => Some(site.clone()),
            _ => None,
        };
        let chunk: Chunk = match medinet_wire::decode(payload) {
            Ok(chunk) => chunk,
            Err(error) => {
                tracing::warn!(%error, "ignored a chunk");
                return None;
            }
        };
        let mut fetches = self.fetches();
        let incoming = fetches.state_mut(chunk.blob, &peer)?;
        match self.options.blobs.accept(incoming, &chunk) {
            Ok(false) => {
                fetches.arrived(chunk.blob, chunk.index, crate::now());
                None
            }
            Ok(true) => {
                let event = self.finish(chunk.blob, incoming);
                if event.is_some() {
                    fetches.remove(chunk.blob);
                }
                event
            }
            Err(error) => {
                tracing::warn!(%error, "ignored a chunk");
                None
            }
        }
    }

    /// Puts a blob whose chunks are all here in its place; `None` when the disk refuses, and it is to be tried again.
    fn finish(&self, blob: BlobDigest, incoming: &IncomingBlob) -> Option<LinkEvent> {
        match self.options.blobs.finish(incoming) {
            Ok(()) => Some(LinkEvent::Fetched(blob)),
            Err(error @ BlobStoreError::FalseManifest(_)) => {
                tracing::warn!(%error, "a fetched blob is not what it claimed to be");
                Some(LinkEvent::FetchFailed(blob))
            }
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "cannot store a fetched blob, trying again"
                );
                None
            }
        }
    }

    /// Completes fetches whose blob, or whose every chunk, was here already, and asks for what is due.
    async fn look_after_fetches(&self, events: &mpsc::Sender<LinkEvent>) -> Result<(), LinkError> {
        let (complete, due) = {
            let mut fetches = self.fetches();
            let mut complete = Vec::new();
            for (blob, incoming) in fetches.iter() {
                if self.options.blobs.has(blob) {
                    complete.push((blob, LinkEvent::Fetched(blob)));
                } else if incoming.progress().missing() == 0 {
                    complete.extend(self.finish(blob, incoming).map(|event| (blob, event)));
                }
            }
            for (blob, _) in &complete {
                fetches.remove(*blob);
            }
            let due = fetches.due(crate::now(), |incoming| incoming.progress().want());
            (complete, due)
        };
        for (_, event) in complete {
            if events.send(event).await.is_err() {
                return Err(LinkError::Ended);
            }
        }
        for (peer, want) in due {
            self.send_want(peer, want)?;
        }
        Ok(())
    }
}

async fn receive(
    shared: Arc<Shared>,
    mut arrivals: mpsc::Receiver<Arrival>,
    mut presence: watch::Receiver<Presence>,
    events: mpsc::Sender<LinkEvent>,
) {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let event = tokio::select! {
            arrival = arrivals.recv() => match arrival {
                Some(arrival) => shared.arrived(arrival),
                None => return,
            },
            changed = presence.changed() => {
                if changed.is_err() {
                    return;
                }
                let Presence { connected, connections } = *presence.borrow_and_update();
                shared.fetches().forget_outstanding();
                shared.look.notify_one();
                tracing::info!(connected, connections, "connection to the broker");
                Some(if connected { LinkEvent::Connected } else { LinkEvent::Disconnected })
            }
            _ = tick.tick() => {
                shared.look.notify_one();
                None
            }
            () = shared.look.notified() => {
                if let Err(error) = shared.look_after_fetches(&events).await {
                    if matches!(error, LinkError::Ended) {
                        return;
                    }
                    tracing::error!(error = &error as &dyn std::error::Error, "cannot ask for chunks");
                }
                None
            }
        };
        if let Some(event) = event
            && events.send(event).await.is_err()
        {
            return;
        }
    }
}

impl Shared {
    /// Handles chunks and requests for chunks; passes everything else on.
    fn arrived(&self, arrival: Arrival) -> Option<LinkEvent> {
        let Arrival { topic, payload } = arrival;
        if matches!(topic, Topic::Up(_, _, Lane::Chunk) | Topic::Down(_, _, Lane::Chunk)) {
            self.look.notify_one();
            return self.take_chunk(&topic, &payload);
        }
        match self.open(&topic, &payload)? {
            Incoming::FromSite(site, FromSite::Want(want), _) => {
                self.wanted(Some(site), &want);
                None
            }
            Incoming::ToSite(ToSite::Want(want)) => {
                self.wanted(None, &want);
                None
            }
            other => Some(LinkEvent::Message(other)),
        }
    }

    fn wanted(&self, peer: Peer, want: &BlobWant) {
        if self.serving().want(peer, want) {
            self.serve.notify_one();
        } else {
            tracing::debug!(blob = %want.blob.short(), "asked for a blob that is not offered");
        }
    }
}

async fn serve(shared: Arc<Shared>) {
    loop {
        let next = shared.serving().next();
        let Some((peer, blob, index)) = next else {
            shared.serve.notified().await;
            continue;
        };
        match shared.options.blobs.chunk(blob, index) {
            Ok(Some(chunk)) => {
                let topic = shared.lane(peer, Lane::Chunk);
                if shared.session.publish(&topic, medinet_wire::encode(&chunk)).await.is_err() {
                    return;
                }
            }
            Ok(None) => tracing::warn!(blob = %blob.short(), index, "asked for a chunk that is not here"),
            Err(error) => tracing::error!(error = &error as &dyn std::error::Error, "cannot serve a chunk"),
        }
    }
}
