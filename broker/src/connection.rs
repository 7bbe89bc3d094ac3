//! One client's connection, from its first CONNECT to its end.

use crate::acl::Refusal;
use crate::counters::Counter;
use crate::engine::{EngineGone, FromRouter, OpenError, Opened, Said, ToRouter};
use crate::flow::{Flow, Subscribed};
use crate::inbound::Inbound;
use crate::limits::{Full, Place};
use crate::packet::{self, Connect, ConnectReturn, Kind, PacketError, QoS, Will};
use crate::reader::{PacketReader, ReadError};
use crate::server::Shared;
use crate::sessions::{Claim, Granted, SessionState};
use bytes::Bytes;
use medinet_types::{Principal, UnixMillis};
use rustls::pki_types::CertificateDer;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, BufWriter, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;

/// Packets that wait for the network; further ones wait in the router's queues.
const OUTGOING: usize = 8;
/// The longest client identifier, in bytes.
const MAX_CLIENT_ID: usize = 256;
/// How long the farewell of a connection may take.
const FAREWELL: Duration = Duration::from_secs(1);

/// How a connection ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum End {
    #[error("the client said goodbye")]
    Goodbye,
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("writing failed")]
    Write(#[source] io::Error),
    #[error("the client took nothing for {} s", .0.as_secs())]
    Slow(Duration),
    #[error("publish to {topic} refused: {refusal}")]
    Refused { topic: String, refusal: Refusal },
    #[error("a second CONNECT")]
    SecondConnect,
    #[error("another connection of the same client took its place")]
    Superseded,
    #[error("{0}")]
    Revoked(String),
    #[error("the broker shuts down")]
    Shutdown,
    #[error(transparent)]
    Engine(#[from] EngineGone),
}

impl From<PacketError> for End {
    fn from(error: PacketError) -> Self {
        Self::Read(error.into())
    }
}

/// Why a CONNECT is answered with a refusal.
#[derive(Debug, thiserror::Error)]
enum Rejection {
    #[error(
        "no federation names this party: add it to [[federation]] in the broker's settings if it should be"
    )]
    Unknown,
    #[error("last will on {topic} refused: {refusal}")]
    Will { topic: String, refusal: Refusal },
    #[error("client identifier: expected at most 256 bytes, and some where the session is not clean")]
    Identifier,
    #[error(transparent)]
    Full(#[from] Full),
    #[error(transparent)]
    Open(#[from] OpenError),
}

impl Rejection {
    fn code(&self) -> ConnectReturn {
        match self {
            Self::Unknown | Self::Will { .. } => ConnectReturn::NotAuthorized,
            Self::Identifier => ConnectReturn::IdentifierRejected,
            Self::Full(_) | Self::Open(_) => ConnectReturn::ServerUnavailable,
        }
    }
}

fn now() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

pub(crate) type Reader = PacketReader<ReadHalf<TlsStream<TcpStream>>>;
type Writer = BufWriter<WriteHalf<TlsStream<TcpStream>>>;

/// Serves a client whose TLS handshake is done. `handshake_place` is held until its CONNECT has come.
pub(crate) async fn serve<K: std::hash::Hash + Eq>(
    shared: Arc<Shared>,
    stream: TlsStream<TcpStream>,
    peer: SocketAddr,
    handshake_place: Place<K>,
) {
    let certificate = match stream.get_ref().1.peer_certificates() {
        Some([certificate, ..]) => certificate.clone().into_owned(),
        _ => return,
    };
    let limits = &shared.settings.connections;
    let (read, write) = tokio::io::split(stream);
    let mut reader = PacketReader::new(read, limits.max_packet.as_usize(), limits.packet_timeout.get());
    let mut writer = BufWriter::new(write);
    let principal = match shared.prove(&certificate, now()) {
        Ok(principal) => principal,
        Err(error) => {
            shared.counters.handshakes_failed.add();
            tracing::info!(%peer, %error, "refused");
            return;
        }
    };

    let connecting = timeout(limits.connect_timeout.get(), read_connect(&mut reader));
    let connect = match shared.unless_stopped(connecting).await {
        Some(Ok(Ok(connect))) => connect,
        Some(Ok(Err(error))) => {
            match &error {
                ReadError::Packet(PacketError::ProtocolLevel(level)) => {
                    shared.counters.connects_refused.add();
                    answer(&mut writer, packet::unacceptable_protocol(*level)).await;
                }
                ReadError::Packet(_) => shared.counters.malformed.add(),
                ReadError::Silence(_) | ReadError::Unfinished(_) => shared.counters.timeouts.add(),
                ReadError::Closed | ReadError::Io(_) => {}
            }
            tracing::info!(%peer, %principal, %error, "no usable CONNECT");
            return;
        }
        Some(Err(_)) => {
            shared.counters.timeouts.add();
            tracing::info!(%peer, %principal, "no CONNECT in time");
            return;
        }
        None => return,
    };
    drop(handshake_place);

    match admit(&shared, &principal, &connect).await {
        Ok(Some(admitted)) => {
            shared.counters.connections.add();
            tracing::info!(%peer, %principal, session = admitted.claim.router_id, "connected");
            let connection = Connection { shared, principal, certificate, peer };
            connection.run(admitted, connect, reader, writer).await;
        }
        Ok(None) => {}
        Err(rejection) => {
            shared.counters.connects_refused.add();
            tracing::warn!(%peer, %principal, reason = %rejection, "connection refused");
            answer(&mut writer, packet::connack(false, rejection.code())).await;
            if let Rejection::Open(OpenError::Gone(gone)) = rejection {
                shared.fail(gone);
            }
        }
    }
}

async fn read_connect<R: AsyncRead + Unpin>(reader: &mut PacketReader<R>) -> Result<Connect, ReadError> {
    // The caller's time limit is the shorter one.
    let (header, frame) = reader.next(Duration::from_secs(86_400)).await?;
    match header.kind {
        Kind::Connect => Ok(Connect::parse(&frame[header.length..])?),
        _ => Err(PacketError::Value { field: "first packet", expected: "CONNECT" }.into()),
    }
}

/// Sends one last packet.
async fn answer<W: AsyncWrite + Unpin>(writer: &mut W, packet: Bytes) {
    let farewell = async {
        writer.write_all(&packet).await?;
        writer.shutdown().await
    };
    let _ = timeout(FAREWELL, farewell).await;
}

struct Admitted {
    opened: Opened,
    place: Place<Principal>,
    state: tokio::sync::OwnedMutexGuard<SessionState>,
    claim: Claim,
}

/// Lets a client in: `None` when another connection of the same client came while this one waited.
async fn admit(
    shared: &Arc<Shared>,
    principal: &Principal,
    connect: &Connect,
) -> Result<Option<Admitted>, Rejection> {
    if !shared.membership.knows(principal) {
        return Err(Rejection::Unknown);
    }
    if let Some(will) = &connect.will {
        shared
            .membership
            .will(principal, &will.topic)
            .map_err(|refusal| Rejection::Will { topic: shown(&will.topic, &refusal), refusal })?;
    }
    let client_id = &connect.client_id;
    if client_id.len() > MAX_CLIENT_ID || (client_id.is_empty() && !connect.clean_session) {
        return Err(Rejection::Identifier);
    }
    let limits = shared.settings.limits.of(principal.role);
    // No client's own identifier holds a NUL, so an assigned one is nobody else's.
    let assigned;
    let client_id = if client_id.is_empty() {
        assigned = format!("\0{}", shared.next_number());
        &assigned
    } else {
        client_id
    };
    let mut claim = shared.sessions.claim(principal, client_id, limits, Instant::now());
    let state = tokio::select! {
        biased;
        () = claim.superseded() => return Ok(None),
        state = claim.enter() => state,
    };
    // Only now: the connection that gave way had a place, and a client that reconnects must not need two.
    let place = shared.places.take(principal, limits.max_connections)?;
    claim.keep = !connect.clean_session;

    let fresh = !state.started;
    let (engine, id, clean) = (Arc::clone(shared), claim.router_id.clone(), connect.clean_session);
    let opening = tokio::task::spawn_blocking(move || {
        if fresh && !clean {
            // The number may have been an older session's.
            engine.engine.discard(&id)?;
        }
        engine.engine.open(&id, clean)
    });
    let opened = opening.await.map_err(|_| OpenError::Refused)??;
    Ok(Some(Admitted { opened, place, state, claim }))
}

pub(crate) struct Connection {
    pub(crate) shared: Arc<Shared>,
    pub(crate) principal: Principal,
    certificate: CertificateDer<'static>,
    peer: SocketAddr,
}

impl Connection {
    async fn run(self, admitted: Admitted, connect: Connect, mut reader: Reader, mut writer: Writer) {
        let Admitted { opened, place, mut state, claim } = admitted;
        let Opened { to, mut from, session_present } = opened;
        let mut session = std::mem::take(&mut *state);
        if !session_present {
            session = SessionState::default();
        }
        session.started = true;
        let (out, outgoing) = mpsc::channel(OUTGOING);
        let half =
            Half { connection: &self, flow: Mutex::new(Flow::new(session)), progress: Notify::new(), out };
        let silence = self.silence(connect.keep_alive_seconds);
        let mut inbound = Inbound { half: &half, to };
        let end = tokio::select! {
            end = write(&mut writer, outgoing, self.shared.settings.connections.write_timeout.get()) => end,
            end = inbound.run(&mut reader, silence, &claim) => end,
            end = half.outbound(&mut from, session_present) => end,
            () = claim.superseded() => End::Superseded,
            reason = self.revoked() => End::Revoked(reason),
            () = self.shared.stopped() => End::Shutdown,
        };
        self.ended(&end);
        // Before the farewell, so that nothing waits for a client that takes its time over it.
        let mut to = inbound.to;
        let will = connect.will.filter(|_| !matches!(end, End::Goodbye | End::Shutdown));
        let closed = async {
            if let Some(will) = will {
                self.publish_will(&mut to, will).await?;
            }
            to.disconnect().await
        };
        if let Err(gone) = closed.await {
            self.shared.fail(gone);
        }
        *state = half.flow.into_inner().unwrap_or_else(PoisonError::into_inner).session;
        // Whoever waits for the session finds the place free.
        drop(place);
        drop(state);
        drop(claim);
        let _ = timeout(FAREWELL, writer.shutdown()).await;
    }

    /// One and a half times the keep-alive (3.1.2.10), and never longer than the broker's own limit.
    fn silence(&self, keep_alive_seconds: u16) -> Duration {
        let longest = self.shared.settings.connections.max_silence.get();
        match keep_alive_seconds {
            0 => longest,
            seconds => longest.min(Duration::from_millis(u64::from(seconds) * 1500)),
        }
    }

    /// Returns why the certificate no longer holds, once it does not.
    async fn revoked(&self) -> String {
        let mut checks = self.shared.checks();
        loop {
            if checks.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            match self.shared.prove(&self.certificate, now()) {
                Ok(principal) if principal == self.principal => {}
                Ok(_) => return "the certificate names another party".to_owned(),
                Err(error) => return error.to_string(),
            }
        }
    }

    async fn publish_will(&self, to: &mut ToRouter, will: Will) -> Result<(), EngineGone> {
        let Will { topic, payload, qos, retain } = will;
        let frame = packet::publish(&topic, &payload, qos.min(QoS::AtLeastOnce), 1, false);
        if retain {
            self.shared.retained.set(&topic, payload, qos);
        }
        self.shared.counters.messages_in.add();
        to.publish(frame).await
    }

    fn ended(&self, end: &End) {
        let counters = &self.shared.counters;
        let counter: Option<&Counter> = match end {
            End::Goodbye | End::Shutdown | End::Write(_) | End::Engine(_) => None,
            End::Read(ReadError::Closed | ReadError::Io(_)) => None,
            End::Read(ReadError::Packet(_)) | End::SecondConnect => Some(&counters.malformed),
            End::Read(ReadError::Silence(_) | ReadError::Unfinished(_)) => Some(&counters.timeouts),
            End::Slow(_) => Some(&counters.slow),
            End::Refused { .. } => Some(&counters.publishes_refused),
            End::Superseded => Some(&counters.superseded),
            End::Revoked(_) => Some(&counters.revoked),
        };
        let (peer, principal) = (self.peer, &self.principal);
        match counter {
            Some(counter) => {
                counter.add();
                tracing::warn!(%peer, %principal, reason = %end, "disconnected");
            }
            None => tracing::info!(%peer, %principal, reason = %end, "disconnected"),
        }
        if let End::Engine(gone) = end {
            self.shared.fail(*gone);
        }
    }
}

/// What both directions of a connection use.
pub(crate) struct Half<'a> {
    pub(crate) connection: &'a Connection,
    flow: Mutex<Flow>,
    /// Woken when the router has taken a publish.
    pub(crate) progress: Notify,
    out: mpsc::Sender<Bytes>,
}

impl Half<'_> {
    pub(crate) fn flow(&self) -> MutexGuard<'_, Flow> {
        self.flow.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) async fn send(&self, packet: Bytes) {
        // The receiver outlives this: both are parts of one future.
        let _ = self.out.send(packet).await;
    }

    /// Router to client.
    async fn outbound(&self, from: &mut FromRouter, session_present: bool) -> End {
        self.send(packet::connack(session_present, ConnectReturn::Accepted)).await;
        self.repeat_retained().await;
        loop {
            match from.next().await {
                Err(gone) => return gone.into(),
                Ok(Said::Nothing) => {}
                Ok(Said::Publish { frame, qos, packet_id }) => {
                    self.flow().message_sent(packet_id, qos);
                    self.connection.shared.counters.messages_out.add();
                    self.send(frame).await;
                }
                Ok(Said::PubAck(packet_id)) => {
                    let answer = self.flow().publish_taken(packet_id);
                    self.progress.notify_one();
                    if let Some(answer) = answer {
                        self.send(answer).await;
                    }
                }
                Ok(Said::PubRel(packet_id)) => {
                    self.flow().release_sent(packet_id);
                    self.send(packet::pubrel(packet_id)).await;
                }
                Ok(Said::SubAck) => {
                    let subscribed = self.flow().subscriptions.pop_front().flatten();
                    if let Some(subscribed) = subscribed {
                        self.subscribed(subscribed).await;
                    }
                }
            }
        }
    }

    /// Answers a SUBSCRIBE that is in force, and sends what is retained (3.8.4). What is published meanwhile comes
    /// through the subscription, so nothing falls between the two.
    pub(crate) async fn subscribed(&self, subscribed: Subscribed) {
        self.send(packet::suback(subscribed.packet_id, &subscribed.granted)).await;
        for Granted { qos, expanded } in subscribed.filters {
            for message in self.connection.shared.retained.matching(&expanded) {
                self.send_retained(&message.topic, &message.payload, message.qos.min(qos)).await;
            }
        }
    }

    async fn send_retained(&self, topic: &str, payload: &[u8], qos: QoS) {
        let packet_id = self.flow().retained_sent(topic, qos);
        self.connection.shared.counters.messages_out.add();
        self.send(packet::publish(topic, payload, qos, packet_id, true)).await;
    }

    /// Sends again what a resumed session has not acknowledged, in its newest version.
    async fn repeat_retained(&self) {
        let unacknowledged = std::mem::take(&mut self.flow().session.retained);
        for (topic, qos) in unacknowledged.into_values() {
            if let Some(message) = self.connection.shared.retained.get(&topic) {
                self.send_retained(&topic, &message.payload, qos).await;
            }
        }
    }
}

/// A topic or filter for the log: one of MediNet's holds names only, any other may hold anything.
pub(crate) fn shown(topic: &str, refusal: &Refusal) -> String {
    match refusal {
        Refusal::NotATopic => "a topic that is not MediNet's".to_owned(),
        Refusal::NotAMember(_) | Refusal::Role(_) | Refusal::Retained => topic.to_owned(),
    }
}

/// Sends what comes, for as long as the client takes it.
async fn write<W: AsyncWrite + Unpin>(
    writer: &mut W,
    mut outgoing: mpsc::Receiver<Bytes>,
    patience: Duration,
) -> End {
    while let Some(mut packet) = outgoing.recv().await {
        while !packet.is_empty() {
            match timeout(patience, writer.write_buf(&mut packet)).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return End::Write(error),
                Err(_) => return End::Slow(patience),
            }
        }
        if outgoing.is_empty() {
            match timeout(patience, writer.flush()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return End::Write(error),
                Err(_) => return End::Slow(patience),
            }
        }
    }
    // The sender lives as long as this future does.
    End::Goodbye
}
