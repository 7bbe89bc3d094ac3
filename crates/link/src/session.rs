//! One MQTT connection that heals itself.

use bytes::Bytes;
use medinet_identity::Identity;
use medinet_settings::{Check, Rules};
use medinet_types::HumanDuration;
use medinet_wire::topic::{Filter, Topic};
use rumqttc::{
    AsyncClient, Event, LastWill, MqttOptions, Packet, QoS, SubscribeFilter, TlsConfiguration, Transport,
};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Room for one packet of the protocol beside its MQTT header.
const MAX_PACKET_BYTES: usize = medinet_wire::MAX_MESSAGE_BYTES + 1024;
/// Packets that may wait for the network.
const QUEUE: usize = 64;
/// Messages that may wait for the program; more than all fetches together ask for at once.
const ARRIVALS: usize = 256;

/// How to reach the broker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionSettings {
    /// Host name or address; must stand in the broker's certificate.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Silence after which a ping is sent; the broker gives up after one and a half times this.
    #[serde(default = "default_keep_alive")]
    pub keep_alive: HumanDuration,
    /// Unacknowledged messages in flight.
    #[serde(default = "default_inflight")]
    pub max_inflight: u16,
    /// Longest pause between attempts to reconnect; the first is a quarter of a second, doubled each time.
    #[serde(default = "default_backoff")]
    pub max_backoff: HumanDuration,
}

impl Check for SessionSettings {
    fn check(&self, rules: &mut Rules) {
        rules.expect(!self.host.trim().is_empty(), "host", "a host name or address", "none");
        rules.expect(self.port != 0, "port", "1 to 65535", self.port);
        rules.expect(self.max_inflight != 0, "max_inflight", "1 to 65535", self.max_inflight);
        // MQTT 3.1.1, 3.1.2.10: whole seconds in 16 bits, and 0 would turn pings off.
        let pings =
            (Duration::from_secs(1)..=Duration::from_secs(18 * 3600)).contains(&self.keep_alive.get());
        rules.expect(pings, "keep_alive", "1 s to 18 h", self.keep_alive);
        rules.expect(!self.max_backoff.get().is_zero(), "max_backoff", "more than 0 s", self.max_backoff);
    }
}

fn default_keep_alive() -> HumanDuration {
    HumanDuration(Duration::from_secs(20))
}

fn default_inflight() -> u16 {
    16
}

fn default_backoff() -> HumanDuration {
    HumanDuration(Duration::from_secs(30))
}

/// Payload bytes that crossed the link since the program started.
#[derive(Debug, Default)]
pub struct Traffic {
    sent: AtomicU64,
    received: AtomicU64,
}

impl Traffic {
    /// Payload bytes sent, retained messages and chunks included, TLS and MQTT headers not.
    #[must_use]
    pub fn sent_bytes(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Payload bytes received, counted likewise.
    #[must_use]
    pub fn received_bytes(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

/// A message that arrived.
pub(crate) struct Arrival {
    pub(crate) topic: Topic,
    pub(crate) payload: Bytes,
}

/// The connection's state; `connections` tells a new connection from the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Presence {
    pub(crate) connected: bool,
    pub(crate) connections: u64,
}

#[derive(Clone)]
pub(crate) struct Session {
    client: AsyncClient,
    retained: Arc<Mutex<HashMap<String, Bytes>>>,
    traffic: Arc<Traffic>,
}

/// The session has been shut down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the session with the broker has ended")]
pub(crate) struct SessionEnded;

impl Session {
    pub(crate) fn start(
        settings: &SessionSettings,
        identity: &Identity,
        subscriptions: Vec<Filter>,
        will: Option<(Topic, Vec<u8>)>,
    ) -> (Self, mpsc::Receiver<Arrival>, watch::Receiver<Presence>) {
        let principal = identity.principal();
        let client_id = format!("{}-{}", principal.role, principal.name);
        let mut options = MqttOptions::new(client_id, settings.host.clone(), settings.port);
        options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(identity.client_config())));
        options.set_keep_alive(settings.keep_alive.get());
        options.set_max_packet_size(MAX_PACKET_BYTES, MAX_PACKET_BYTES);
        options.set_inflight(settings.max_inflight);
        // The protocol repeats what was not answered, so nothing needs to be kept at the broker for an absent
        // party; a broker that lost its memory is no different from one that did not.
        options.set_clean_session(true);
        if let Some((topic, payload)) = will {
            options.set_last_will(LastWill::new(topic.to_string(), payload, QoS::AtLeastOnce, true));
        }
        let (client, mut event_loop) = AsyncClient::new(options, QUEUE);
        // A message is small and waits for nothing: held back until the one before is acknowledged, each would be 40 ms late.
        let mut network = event_loop.network_options();
        network.set_tcp_nodelay(true);
        event_loop.set_network_options(network);
        let (arrivals_tx, arrivals) = mpsc::channel(ARRIVALS);
        let (presence_tx, presence) = watch::channel(Presence::default());
        let session = Self { client, retained: Arc::default(), traffic: Arc::default() };
        let runner = Runner {
            session: session.clone(),
            subscriptions,
            max_backoff: settings.max_backoff.get(),
            arrivals: arrivals_tx,
            presence: presence_tx,
        };
        tokio::spawn(runner.run(event_loop));
        (session, arrivals, presence)
    }

    pub(crate) fn traffic(&self) -> Arc<Traffic> {
        Arc::clone(&self.traffic)
    }

    /// Queues a message; waits while the queue is full.
    pub(crate) async fn publish(&self, topic: &Topic, payload: Vec<u8>) -> Result<(), SessionEnded> {
        self.traffic.sent.fetch_add(payload.len() as u64, Ordering::Relaxed);
        self.client
            .publish(topic.to_string(), QoS::AtLeastOnce, false, payload)
            .await
            .map_err(|_| SessionEnded)
    }

    /// Queues a message if there is room; for messages that are repeated anyway.
    pub(crate) fn publish_if_room(&self, topic: &Topic, payload: Vec<u8>) {
        let bytes = payload.len() as u64;
        if self.client.try_publish(topic.to_string(), QoS::AtLeastOnce, false, payload).is_ok() {
            self.traffic.sent.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// Queues a retained message and repeats it after each reconnect, since a broker may forget. Only the newest
    /// payload of a topic counts: one that finds the queue full is left to the next reconnect or the next call.
    pub(crate) fn publish_retained(&self, topic: &Topic, payload: Vec<u8>) {
        let topic = topic.to_string();
        let payload = Bytes::from(payload);
        self.traffic.sent.fetch_add(payload.len() as u64, Ordering::Relaxed);
        let mut retained = self.retained.lock().unwrap_or_else(PoisonError::into_inner);
        retained.insert(topic.clone(), payload.clone());
        drop(retained);
        if self.client.try_publish(topic, QoS::AtLeastOnce, true, payload).is_err() {
            tracing::debug!("send queue full: a retained message waits");
        }
    }

    pub(crate) async fn close(&self) {
        let _ = self.client.disconnect().await;
    }

    fn retained_now(&self) -> Vec<(String, Bytes)> {
        let retained = self.retained.lock().unwrap_or_else(PoisonError::into_inner);
        retained.iter().map(|(topic, payload)| (topic.clone(), payload.clone())).collect()
    }
}

struct Runner {
    session: Session,
    subscriptions: Vec<Filter>,
    max_backoff: Duration,
    arrivals: mpsc::Sender<Arrival>,
    presence: watch::Sender<Presence>,
}

impl Runner {
    async fn run(self, mut event_loop: rumqttc::EventLoop) {
        let first_backoff = Duration::from_millis(250);
        let mut backoff = first_backoff;
        while !self.arrivals.is_closed() {
            match event_loop.poll().await {
                Ok(Event::Incoming(packet)) => {
                    if matches!(packet, Packet::ConnAck(_)) {
                        backoff = first_backoff;
                    }
                    self.incoming(packet);
                }
                Ok(Event::Outgoing(_)) => {}
                Err(rumqttc::ConnectionError::RequestsDone) => return,
                Err(error) => {
                    if backoff == first_backoff {
                        tracing::warn!(%error, "no connection to the broker, trying again");
                    }
                    self.presence.send_modify(|p| p.connected = false);
                    tokio::time::sleep(backoff).await;
                    backoff = (backoff * 2).min(self.max_backoff);
                }
            }
        }
    }

    fn incoming(&self, packet: Packet) {
        match packet {
            // From a task of its own: the queue may be full, and only the event loop empties it.
            Packet::ConnAck(_) => {
                tokio::spawn(introduce(self.session.clone(), self.subscriptions.clone()));
            }
            Packet::SubAck(ack) => {
                if ack.return_codes.contains(&rumqttc::SubscribeReasonCode::Failure) {
                    tracing::error!(
                        "the broker refuses a subscription: is this party a member of the federation there?"
                    );
                }
                self.presence.send_modify(|p| {
                    p.connected = true;
                    p.connections += 1;
                });
            }
            Packet::Publish(publish) => self.arrived(publish),
            _ => {}
        }
    }

    fn arrived(&self, publish: rumqttc::Publish) {
        let bytes = publish.payload.len() as u64;
        self.session.traffic.received.fetch_add(bytes, Ordering::Relaxed);
        match publish.topic.parse() {
            // Never waits for the program: it may itself be waiting for this loop to send. What is dropped here is
            // asked for or said again, since every message of the protocol is repeated until answered.
            Ok(topic) => {
                let arrival = Arrival { topic, payload: publish.payload };
                if self.arrivals.try_send(arrival).is_err() {
                    tracing::warn!("the program is too busy to take a message: dropped, it will be repeated");
                }
            }
            Err(error) => tracing::warn!(%error, "ignored a message"),
        }
    }
}

async fn introduce(session: Session, subscriptions: Vec<Filter>) {
    let filters: Vec<SubscribeFilter> =
        subscriptions.iter().map(|f| SubscribeFilter::new(f.to_string(), QoS::AtLeastOnce)).collect();
    let _ = session.client.subscribe_many(filters).await;
    for (topic, payload) in session.retained_now() {
        session.traffic.sent.fetch_add(payload.len() as u64, Ordering::Relaxed);
        let _ = session.client.publish(topic, QoS::AtLeastOnce, true, payload).await;
    }
}
