//! The listener, what connections share, and the checks that run beside them.

use crate::acl::Membership;
use crate::connection;
use crate::counters::{CounterValues, Counters};
use crate::engine::{Engine, EngineGone};
use crate::limits::Places;
use crate::retained::Retained;
use crate::sessions::Sessions;
use crate::settings::BrokerSettings;
use medinet_identity::{Identity, IdentityError, IdentityFiles, Trust};
use medinet_settings::{Rules, Violation};
use medinet_types::{Principal, Role, UnixMillis};
use medinet_wire::envelope::VerifyError;
use rustls::ServerConfig;
use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long connections may take to say goodbye when the broker shuts down.
const GOODBYES: Duration = Duration::from_secs(5);

/// The broker could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The settings contradict themselves.
    #[error("settings: {key}: {message}", key = .0.key, message = .0.message)]
    Settings(Violation),
    /// The identity is unusable.
    #[error("the broker's identity cannot be used")]
    Identity(#[from] IdentityError),
    /// The certificate is somebody else's.
    #[error("expected the certificate of a broker, got that of {0}: enrol the broker with the role broker")]
    Role(Principal),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: is another program using it?")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// No runtime; environment.
    #[error("cannot start the runtime")]
    Runtime(#[source] io::Error),
}

/// What proves the broker, and whom it trusts.
struct Tls {
    config: Arc<ServerConfig>,
    trust: Arc<Trust>,
}

/// What all connections share.
pub(crate) struct Shared {
    pub(crate) settings: BrokerSettings,
    pub(crate) membership: Membership,
    pub(crate) engine: Engine,
    pub(crate) retained: Retained,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) places: Arc<Places<Principal>>,
    pub(crate) counters: Counters,
    handshakes: Arc<Places<IpAddr>>,
    tls: RwLock<Tls>,
    checks: watch::Sender<()>,
    stop: CancellationToken,
    failed: watch::Sender<Option<EngineGone>>,
    numbers: AtomicU64,
}

impl Shared {
    /// Whose the certificate is, if it holds at `now`.
    pub(crate) fn prove(&self, certificate: &[u8], now: UnixMillis) -> Result<Principal, VerifyError> {
        let trust = Arc::clone(&self.tls.read().unwrap_or_else(PoisonError::into_inner).trust);
        trust.prove(certificate, now)
    }

    fn acceptor(&self) -> TlsAcceptor {
        Arc::clone(&self.tls.read().unwrap_or_else(PoisonError::into_inner).config).into()
    }

    /// Changes each time that standing certificates are to be proven again.
    pub(crate) fn checks(&self) -> watch::Receiver<()> {
        self.checks.subscribe()
    }

    /// Returns when the broker shuts down.
    pub(crate) async fn stopped(&self) {
        self.stop.cancelled().await;
    }

    /// The outcome of `work`, or nothing when the broker shuts down first.
    pub(crate) async fn unless_stopped<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            () = self.stopped() => None,
            outcome = work => Some(outcome),
        }
    }

    /// The router has stopped: so does the broker.
    pub(crate) fn fail(&self, gone: EngineGone) {
        self.failed.send_replace(Some(gone));
        self.stop.cancel();
    }

    pub(crate) fn next_number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }
}

/// A broker that runs until it is shut down or dropped.
pub struct RunningBroker {
    address: SocketAddr,
    shared: Arc<Shared>,
    tasks: TaskTracker,
    failed: watch::Receiver<Option<EngineGone>>,
    runtime: Option<Runtime>,
}

/// Starts a broker, on threads of its own; it can be called from within an asynchronous runtime or without one.
///
/// # Errors
/// See [`StartError`].
pub fn start(settings: BrokerSettings) -> Result<RunningBroker, StartError> {
    if let Some(violation) = Rules::violations_of(&settings).into_iter().next() {
        return Err(StartError::Settings(violation));
    }
    let tls = load(&settings.identity)?;
    let address = settings.listen;
    let listen = |source| StartError::Listen { address, source };
    let listener = std::net::TcpListener::bind(address).map_err(listen)?;
    listener.set_nonblocking(true).map_err(listen)?;
    let address = listener.local_addr().map_err(listen)?;

    let runtime = tokio::runtime::Builder::new_multi_thread()
        .thread_name("broker")
        .enable_all()
        .build()
        .map_err(StartError::Runtime)?;
    let (failed_tx, failed) = watch::channel(None);
    let connections = &settings.connections;
    tracing::info!(%address, queues = %settings.queue_memory(), "listening; full queues take this much memory");
    let shared = Arc::new(Shared {
        membership: Membership::new(&settings.federations),
        engine: Engine::start(connections.max_connections, &settings.queues),
        retained: Retained::default(),
        sessions: Arc::default(),
        places: Places::new(connections.max_connections),
        handshakes: Places::new(connections.max_handshakes),
        counters: Counters::default(),
        tls: RwLock::new(tls),
        checks: watch::Sender::new(()),
        stop: CancellationToken::new(),
        failed: failed_tx,
        numbers: AtomicU64::new(0),
        settings,
    });
    let tasks = TaskTracker::new();
    let listener = {
        let _within = runtime.enter();
        TcpListener::from_std(listener).map_err(listen)?
    };
    runtime.spawn(accept(Arc::clone(&shared), listener, tasks.clone()));
    runtime.spawn(watch_certificates(Arc::clone(&shared)));
    Ok(RunningBroker { address, shared, tasks, failed, runtime: Some(runtime) })
}

impl RunningBroker {
    /// The address that clients reach, its port the real one.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// What was counted since the start.
    #[must_use]
    pub fn counters(&self) -> CounterValues {
        self.shared.counters.values()
    }

    /// Connections that stand now.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.places.taken()
    }

    /// Returns an explanation when the broker has stopped by itself, which it does only when its message router has
    /// failed; the program should then end and be started again.
    pub async fn failed(&self) -> EngineGone {
        let mut failed = self.failed.clone();
        loop {
            if let Some(gone) = *failed.borrow_and_update() {
                return gone;
            }
            if failed.changed().await.is_err() {
                return EngineGone;
            }
        }
    }

    /// Closes the listener and every connection.
    pub async fn shutdown(mut self) {
        self.shared.stop.cancel();
        self.tasks.close();
        let _ = timeout(GOODBYES, self.tasks.wait()).await;
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        tracing::info!(counters = ?self.counters(), "shut down");
    }
}

impl Drop for RunningBroker {
    fn drop(&mut self) {
        self.shared.stop.cancel();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn load(files: &IdentityFiles) -> Result<Tls, StartError> {
    let identity = Identity::load(files)?;
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    identity.check_time(UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX)))?;
    if identity.principal().role != Role::Broker {
        return Err(StartError::Role(identity.principal().clone()));
    }
    Ok(Tls { config: identity.server_config(), trust: Arc::clone(identity.trust()) })
}

async fn accept(shared: Arc<Shared>, listener: TcpListener, tasks: TaskTracker) {
    while let Some(accepted) = shared.unless_stopped(listener.accept()).await {
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, most likely: those who are connected must be able to leave.
                tracing::error!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let per_address = shared.settings.connections.max_handshakes_per_address;
        match shared.handshakes.take(&peer.ip(), per_address) {
            Ok(place) => {
                let shared = Arc::clone(&shared);
                tasks.spawn(async move {
                    if let Some(stream) = handshake(&shared, stream, peer).await {
                        connection::serve(shared, stream, peer, place).await;
                    }
                });
            }
            Err(full) => {
                shared.counters.handshakes_crowded.add();
                tracing::debug!(%peer, reason = %full, "too many handshakes at a time");
            }
        }
    }
}

async fn handshake(
    shared: &Shared,
    stream: TcpStream,
    peer: SocketAddr,
) -> Option<tokio_rustls::server::TlsStream<TcpStream>> {
    // Small packets are answers that somebody waits for. Where the option is unknown, they wait a little longer.
    let _ = stream.set_nodelay(true);
    let patience = shared.settings.connections.handshake_timeout.get();
    let outcome = shared.unless_stopped(timeout(patience, shared.acceptor().accept(stream))).await?;
    match outcome {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err(error)) => {
            shared.counters.handshakes_failed.add();
            tracing::info!(%peer, %error, "TLS handshake failed");
            None
        }
        Err(_) => {
            shared.counters.handshakes_failed.add();
            tracing::info!(%peer, "TLS handshake took longer than {} s", patience.as_secs());
            None
        }
    }
}

/// What tells that a file was replaced: when it was changed, and its length.
type Fingerprint = Vec<Option<(SystemTime, u64)>>;

fn fingerprint(files: &IdentityFiles) -> Fingerprint {
    [&files.certificate, &files.key, &files.ca]
        .into_iter()
        .map(|path| fs::metadata(path).ok().and_then(|m| Some((m.modified().ok()?, m.len()))))
        .collect()
}

/// Reads the revocation list and, where it was renewed, the broker's own certificate again, and has every standing
/// connection's certificate proven again: revoked ones, and ones whose time is over, are disconnected.
async fn watch_certificates(shared: Arc<Shared>) {
    let files = shared.settings.identity.clone();
    let mut seen = fingerprint(&files);
    let mut complaints = HashMap::new();
    let mut ticks = tokio::time::interval(shared.settings.connections.revocation_check.get());
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        if shared.unless_stopped(ticks.tick()).await.is_none() {
            return;
        }
        let work = {
            let (shared, files, seen) = (Arc::clone(&shared), files.clone(), seen.clone());
            move || {
                let now = fingerprint(&files);
                let renewed = (now != seen).then(|| load(&files).map_err(|error| chain(&error)));
                if let Some(Ok(_)) = &renewed {
                    return (now, renewed, Ok(true));
                }
                let trust = Arc::clone(&shared.tls.read().unwrap_or_else(PoisonError::into_inner).trust);
                let reloaded = trust.reload_crl().map_err(|error| chain(&error));
                (now, renewed, reloaded)
            }
        };
        let Ok((now, renewed, reloaded)) = tokio::task::spawn_blocking(work).await else { continue };
        match renewed {
            Some(Ok(tls)) => {
                *shared.tls.write().unwrap_or_else(PoisonError::into_inner) = tls;
                seen = now;
                complaints.clear();
                tracing::info!("the broker's certificate files have changed and are in use");
            }
            // Perhaps only half of them is written: they are tried again at the next look.
            Some(Err(error)) => complain(&mut complaints, "the broker's changed certificate files", error),
            None => {}
        }
        match reloaded {
            Ok(true) => tracing::info!("the revocation list is read again"),
            Ok(false) => {}
            Err(error) => complain(&mut complaints, "the revocation list", error),
        }
        shared.checks.send_replace(());
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// Says it once, not at every look.
fn complain(complaints: &mut HashMap<&'static str, String>, what: &'static str, error: String) {
    if complaints.get(what) != Some(&error) {
        tracing::error!(error, "cannot use {what}; what was read before stays in use");
        complaints.insert(what, error);
    }
}
