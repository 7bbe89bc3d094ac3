//! rumqttd's router, in this process and behind no socket.
//!
//! rumqttd routes messages, keeps queues and persistent sessions; everything that a client could use against it is
//! decided before ([`connection`](crate::connection)). Only what follows reaches the router, because more would harm it
//! (rumqttd 0.20):
//!
//! * no TLS, no listener: its accept loop waits for each handshake, and its authentication knows no topics;
//! * acknowledgements only in the order in which it expects them: others make it drop the connection, and an event of
//!   a connection that it has dropped ends its thread;
//! * no retained messages, QoS 2 publishes and repeated subscriptions: it sends retained messages at the first
//!   subscription of a session only and at most a hundred, forgets a QoS 2 publish between two connections, and
//!   leaves some UNSUBSCRIBEs unanswered. The front door does these itself.
//!
//! One thing is left as the router does it: a message is delivered with the QoS that the subscription was granted, even
//! where it was published with a lower one.
//!
//! The router's thread cannot be stopped; after a shutdown it sleeps until the process ends.

use crate::acl::QueueKind;
use crate::packet::{FixedHeader, QoS};
use crate::settings::Queues;
use bytes::{Bytes, BytesMut};
use rumqttd::local::{LinkBuilder, LinkError, LinkRx, LinkTx};
use rumqttd::protocol::v4::V4;
use rumqttd::protocol::{
    Disconnect, DisconnectReasonCode, Filter, Packet, Protocol as _, PubAck, PubAckReason, PubComp,
    PubCompReason, PubRec, PubRecReason, RetainForwardRule, Subscribe, Unsubscribe,
};
use rumqttd::{Notification, Router, RouterConfig, SegmentConfig};
use std::collections::HashMap;

/// Segments that a queue always holds; one more is being filled.
const SEGMENTS: usize = 8;
/// Messages that wait in a connection's way out before the router pauses it.
const OUTGOING: u64 = 100;

/// The router does not answer: its thread has ended, and the broker has to be started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the message router has stopped: restart the broker, and report this")]
pub struct EngineGone;

/// A session could not be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OpenError {
    /// The router has stopped.
    #[error(transparent)]
    Gone(#[from] EngineGone),
    /// The router takes no more.
    #[error("the message router takes no more connections")]
    Refused,
}

impl From<LinkError> for OpenError {
    fn from(error: LinkError) -> Self {
        match error {
            LinkError::Send(_) | LinkError::TrySend(_) => Self::Gone(EngineGone),
            _ => Self::Refused,
        }
    }
}

type Open = dyn Fn(&str, bool) -> Result<(LinkTx, LinkRx, Notification), OpenError> + Send + Sync;

pub(crate) struct Engine {
    // The type of the router's channel is private to rumqttd, so the function that uses it is kept.
    open: Box<Open>,
}

impl Engine {
    pub(crate) fn start(max_connections: usize, queues: &Queues) -> Self {
        let segment = |bytes: usize| SegmentConfig {
            max_segment_size: (bytes / SEGMENTS).max(1024),
            max_segment_count: SEGMENTS + 1,
        };
        let default = segment(queues.of(QueueKind::Status).as_usize());
        let custom: HashMap<String, SegmentConfig> = QueueKind::ALL
            .into_iter()
            .map(|kind| (kind.pattern(), segment(queues.of(kind).as_usize())))
            .collect();
        let router = Router::new(
            0,
            RouterConfig {
                // Sessions that are being discarded take a place for a moment.
                max_connections: max_connections + 64,
                max_outgoing_packet_count: OUTGOING,
                max_segment_size: default.max_segment_size,
                max_segment_count: default.max_segment_count,
                custom_segment: Some(custom),
                initialized_filters: None,
                ..RouterConfig::default()
            },
        )
        .spawn();
        let open = move |id: &str, clean: bool| {
            Ok(LinkBuilder::new(id, router.clone()).clean_session(clean).build()?)
        };
        Self { open: Box::new(open) }
    }

    /// Opens session `id`. Waits for the router's thread, so not for an asynchronous task.
    pub(crate) fn open(&self, id: &str, clean: bool) -> Result<Opened, OpenError> {
        let (tx, rx, notification) = (self.open)(id, clean)?;
        let session_present = match Option::<Packet>::from(notification) {
            Some(Packet::ConnAck(ack, _)) => ack.session_present,
            _ => false,
        };
        Ok(Opened { to: ToRouter { tx }, from: FromRouter { rx, buffer: BytesMut::new() }, session_present })
    }

    /// Forgets what session `id` left. Waits like [`Engine::open`].
    pub(crate) fn discard(&self, id: &str) -> Result<(), OpenError> {
        let (mut tx, _rx, _) = (self.open)(id, true)?;
        tx.buffer().push_back(goodbye());
        // The router ends the connection before it comes to this, which only makes it look at the buffer.
        Ok(tx.unsubscribe("").map(|_| ())?)
    }
}

fn goodbye() -> Packet {
    Packet::Disconnect(Disconnect { reason_code: DisconnectReasonCode::NormalDisconnection }, None)
}

pub(crate) struct Opened {
    pub(crate) to: ToRouter,
    pub(crate) from: FromRouter,
    pub(crate) session_present: bool,
}

/// What one connection tells the router.
pub(crate) struct ToRouter {
    tx: LinkTx,
}

impl ToRouter {
    /// Packets that the router has not looked at yet.
    pub(crate) fn backlog(&self) -> usize {
        self.tx.buffer().len()
    }

    /// Hands over a whole PUBLISH that has been checked: QoS 0 or 1, not retained.
    pub(crate) async fn publish(&mut self, frame: Bytes) -> Result<(), EngineGone> {
        let mut stream = frame.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
        match V4.read_mut(&mut stream, usize::MAX) {
            Ok(packet @ Packet::Publish(..)) => self.send(packet).await,
            other => {
                tracing::error!(?other, "the router reads a publish otherwise than the front door: dropped");
                Ok(())
            }
        }
    }

    /// Subscribes; the router answers with one SUBACK.
    pub(crate) async fn subscribe(&mut self, filters: Vec<(String, QoS)>) -> Result<(), EngineGone> {
        self.send(subscription(filters)).await
    }

    /// Unsubscribes; the router answers with one SUBACK, and any number of UNSUBACKs.
    pub(crate) async fn unsubscribe(&mut self, filters: Vec<(String, QoS)>) -> Result<(), EngineGone> {
        let paths = filters.iter().map(|(path, _)| path.clone()).collect();
        // A resumed session's subscriptions are unknown to the router's UNSUBSCRIBE until they are made again, which
        // changes nothing else.
        self.tx.buffer().push_back(subscription(filters));
        self.send(Packet::Unsubscribe(Unsubscribe { pkid: 1, filters: paths }, None)).await
    }

    pub(crate) async fn puback(&mut self, pkid: u16) -> Result<(), EngineGone> {
        self.send(Packet::PubAck(PubAck { pkid, reason: PubAckReason::Success }, None)).await
    }

    pub(crate) async fn pubrec(&mut self, pkid: u16) -> Result<(), EngineGone> {
        self.send(Packet::PubRec(PubRec { pkid, reason: PubRecReason::Success }, None)).await
    }

    pub(crate) async fn pubcomp(&mut self, pkid: u16) -> Result<(), EngineGone> {
        self.send(Packet::PubComp(PubComp { pkid, reason: PubCompReason::Success }, None)).await
    }

    /// Ends the connection; nothing may be sent after it.
    pub(crate) async fn disconnect(mut self) -> Result<(), EngineGone> {
        self.send(goodbye()).await
    }

    async fn send(&mut self, packet: Packet) -> Result<(), EngineGone> {
        // Waits, without giving way, only while a thousand events are ahead, for a thread that waits for nobody.
        self.tx.send(packet).await.map(|_| ()).map_err(|_| EngineGone)
    }
}

fn subscription(filters: Vec<(String, QoS)>) -> Packet {
    let filter = |(path, qos): (String, QoS)| Filter {
        path,
        qos: match qos {
            QoS::AtMostOnce => rumqttd::protocol::QoS::AtMostOnce,
            QoS::AtLeastOnce => rumqttd::protocol::QoS::AtLeastOnce,
            QoS::ExactlyOnce => rumqttd::protocol::QoS::ExactlyOnce,
        },
        nolocal: false,
        preserve_retain: false,
        retain_forward_rule: RetainForwardRule::Never,
    };
    Packet::Subscribe(Subscribe { pkid: 1, filters: filters.into_iter().map(filter).collect() }, None)
}

/// What the router tells one connection.
pub(crate) struct FromRouter {
    rx: LinkRx,
    buffer: BytesMut,
}

/// One thing that the router says.
#[derive(Debug)]
pub(crate) enum Said {
    /// A message for the client, as a whole PUBLISH, its identifier 0 with QoS 0.
    Publish { frame: Bytes, qos: QoS, packet_id: u16 },
    /// The client's publish is queued for its subscribers.
    PubAck(u16),
    /// A subscription is made.
    SubAck,
    /// The next step of a QoS 2 message to the client.
    PubRel(u16),
    /// Nothing that concerns the client.
    Nothing,
}

impl FromRouter {
    pub(crate) async fn next(&mut self) -> Result<Said, EngineGone> {
        let Some(notification) = self.rx.next().await.map_err(|_| EngineGone)? else {
            return Ok(Said::Nothing);
        };
        let packet = match notification {
            Notification::Forward(forward) => Packet::Publish(forward.publish, None),
            Notification::Unschedule => {
                // The way out was full, and is being emptied: the router may go on.
                self.rx.wake().await.map_err(|_| EngineGone)?;
                return Ok(Said::Nothing);
            }
            other => match Option::<Packet>::from(other) {
                Some(packet) => packet,
                None => return Ok(Said::Nothing),
            },
        };
        Ok(match packet {
            Packet::Publish(..) => self.publish(packet),
            Packet::PubAck(ack, _) => Said::PubAck(ack.pkid),
            Packet::SubAck(..) => Said::SubAck,
            Packet::PubRel(release, _) => Said::PubRel(release.pkid),
            _ => Said::Nothing,
        })
    }

    fn publish(&mut self, packet: Packet) -> Said {
        self.buffer.clear();
        if let Err(error) = V4.write(packet, &mut self.buffer) {
            tracing::error!(%error, "the router's message cannot be written: dropped");
            return Said::Nothing;
        }
        let frame = self.buffer.split().freeze();
        let read = FixedHeader::parse(&frame, usize::MAX).ok().flatten().and_then(|header| {
            let body = frame.get(header.length..)?;
            crate::packet::Publish::parse(header.first, body).ok()
        });
        match read {
            Some(publish) => Said::Publish { qos: publish.qos, packet_id: publish.packet_id, frame },
            None => {
                tracing::error!("the router writes a publish otherwise than the standard says: dropped");
                Said::Nothing
            }
        }
    }
}
