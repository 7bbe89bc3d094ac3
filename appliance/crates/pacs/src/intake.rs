//! The whole intake: its sources, its spool, its ledger, and the sink at its end.

use crate::deliver::Deliverer;
use crate::error::{IntakeError, LedgerError};
use crate::folder::{WatchedFolder, Watcher};
use crate::ledger::{Arrival, Ledger, SpoolFileState};
use crate::progress::{IntakeProgress, Reporter};
use crate::pull::Puller;
use crate::scp::StoreService;
use crate::settings::PacsSettings;
use crate::sink::Sink;
use crate::spool::{Spool, private_file};
use medinet_deident::Origin;
use medinet_types::UnixMillis;
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

/// How often the delivery looks for waiting files although nobody woke it.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// The longest pause between two tries of a sink that cannot take objects.
const MAX_SINK_PAUSE: Duration = Duration::from_secs(60);

/// How many objects are quarantined for one reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuarantineCount {
    /// The reason's short, stable name.
    pub code: String,
    /// The reason for a person to read; holds nothing of any object.
    pub reason: String,
    /// How many.
    pub count: u64,
}

/// Decides whether the PACS may be asked now; see [`Intake::only_when`].
type Gate = Arc<dyn Fn() -> bool + Send + Sync>;

/// Takes images in from all sources of the settings and hands them to a sink.
pub struct Intake<S> {
    settings: PacsSettings,
    ledger: Ledger,
    spool: Spool,
    folder: Option<WatchedFolder>,
    /// None while a delivery thread has it.
    sink: Option<S>,
    listener: Option<TcpListener>,
    progress: watch::Sender<IntakeProgress>,
    gate: Gate,
    /// Held for as long as the intake lives; the kernel lets go of it when the process dies.
    _lock: fs::File,
}

impl<S> std::fmt::Debug for Intake<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Intake").field("progress", &*self.progress.borrow()).finish_non_exhaustive()
    }
}

fn now() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

impl<S: Sink> Intake<S> {
    /// Opens the intake in `data_dir` (made where there is none), makes up for what an earlier run could not finish,
    /// and begins to listen for C-STORE peers, who are served once [`Intake::run`] is called.
    ///
    /// # Errors
    /// When the folder, the ledger or the address cannot be used, or another intake uses the folder.
    pub fn open(settings: PacsSettings, data_dir: &Path, sink: S) -> Result<Self, IntakeError> {
        let failed = |source| IntakeError::Folder { path: data_dir.to_owned(), source };
        fs::create_dir_all(data_dir).map_err(failed)?;
        let lock = private_file(&data_dir.join("intake.lock")).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                return Err(IntakeError::Locked { path: data_dir.to_owned() });
            }
            Err(fs::TryLockError::Error(source)) => return Err(failed(source)),
        }
        let database = data_dir.join("intake.sqlite");
        // Made with the right mode before SQLite opens it; its journal files take the same.
        private_file(&database).map_err(failed)?;
        let ledger = Ledger::open(&database)?;
        let spool = Spool::open(data_dir, settings.max_spool_bytes.0)?;
        let folder = settings.folder.as_ref().map(WatchedFolder::open).transpose()?;
        let listener = match &settings.cstore {
            Some(cstore) => {
                let listening = TcpListener::bind(cstore.listen).and_then(|listener| {
                    listener.set_nonblocking(true)?;
                    Ok(listener)
                });
                Some(listening.map_err(|source| IntakeError::Listen { address: cstore.listen, source })?)
            }
            None => None,
        };
        make_up(&ledger, &spool).map_err(|error| match error {
            MakeUpError::Ledger(error) => error.into(),
            MakeUpError::Io(source) => failed(source),
        })?;
        let (progress, _) = watch::channel(ledger.totals()?.into());
        Ok(Self {
            settings,
            ledger,
            spool,
            folder,
            sink: Some(sink),
            listener,
            progress,
            gate: Arc::new(|| true),
            _lock: lock,
        })
    }

    /// Asks the PACS only while `gate` says so, as in the hours that the site allows. Pushes and the folder are the
    /// hospital's own doing and are taken at any time.
    #[must_use]
    pub fn only_when(mut self, gate: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        self.gate = Arc::new(gate);
        self
    }

    /// The counts, as they change.
    #[must_use]
    pub fn progress(&self) -> watch::Receiver<IntakeProgress> {
        self.progress.subscribe()
    }

    /// Where C-STORE peers are listened for; with port 0 in the settings, the port that was chosen.
    #[must_use]
    pub fn cstore_address(&self) -> Option<SocketAddr> {
        self.listener.as_ref()?.local_addr().ok()
    }

    /// How many objects are quarantined, by reason.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn quarantine_reasons(&self) -> Result<Vec<QuarantineCount>, IntakeError> {
        let reasons = self.ledger.quarantine_reasons()?;
        let count = |((code, reason), count)| QuarantineCount { code, reason, count };
        Ok(reasons.into_iter().map(count).collect())
    }

    /// Offers quarantined objects with the reason `code` (or all) once more, as after an update; answers how many.
    ///
    /// # Errors
    /// When the ledger cannot be written.
    pub fn retry_quarantined(&self, code: Option<&str>) -> Result<u64, IntakeError> {
        let count = self.ledger.retry_quarantined(code)?;
        self.progress.send_replace(self.ledger.totals()?.into());
        Ok(count)
    }

    fn deliverer(&mut self) -> Result<(Deliverer<S>, Reporter, Receiver<()>), IntakeError> {
        let sink = self.sink.take().ok_or(IntakeError::Broken { part: "sink" })?;
        let (wake, woken) = sync_channel(1);
        let deliverer = Deliverer::new(
            self.ledger.clone(),
            self.spool.clone(),
            self.folder.clone(),
            sink,
            self.progress.clone(),
            self.settings.max_object_bytes.0,
        );
        Ok((deliverer, Reporter::new(self.progress.clone(), wake), woken))
    }

    fn puller(&self, reporter: &Reporter) -> Result<Option<Puller>, IntakeError> {
        let Some(settings) = &self.settings.dicomweb else { return Ok(None) };
        let (ledger, spool) = (self.ledger.clone(), self.spool.clone());
        let limit = self.settings.max_object_bytes.0;
        Ok(Some(Puller::new(settings, ledger, spool, reporter.clone(), limit)?))
    }

    fn watcher(&self) -> Option<Watcher> {
        let (folder, settings) = (self.folder.clone()?, self.settings.folder.as_ref()?);
        Some(Watcher::new(folder, settings, self.settings.max_object_bytes.0))
    }

    /// One pass: everything that the PACS and the folder have now, and everything that waits in the spool, ends as
    /// ingested or quarantined. C-STORE peers are not served.
    ///
    /// # Errors
    /// When the PACS, the disk or the sink fails as a whole. What was taken in is safe; the next pass goes on from
    /// there.
    pub async fn run_once(&mut self) -> Result<IntakeProgress, IntakeError> {
        let (mut deliverer, reporter, woken) = self.deliverer()?;
        let puller = self.puller(&reporter);
        let watcher = self.watcher();
        let mut delivery: JoinHandle<(Deliverer<S>, Result<(), IntakeError>)> =
            tokio::task::spawn_blocking(move || {
                let outcome = deliver_until_closed(&mut deliverer, &woken);
                (deliverer, outcome)
            });
        let ledger = self.ledger.clone();
        let sources = async move {
            let pull = async {
                match puller? {
                    Some(puller) => puller.pass(now()).await,
                    None => Ok(()),
                }
            };
            let watch = async {
                let Some(mut watcher) = watcher else { return Ok(()) };
                let settle = watcher.settle();
                // A file is taken at the second look that finds it unchanged. One that is still being written is
                // left for the next pass.
                for _ in 0..3 {
                    let (ledger, reporter) = (ledger.clone(), reporter.clone());
                    let looked = tokio::task::spawn_blocking(move || {
                        let unsettled = watcher.look(&ledger, &reporter);
                        (watcher, unsettled)
                    });
                    let (back, unsettled) =
                        looked.await.map_err(|_| IntakeError::Broken { part: "watcher" })?;
                    watcher = back;
                    if unsettled? == 0 {
                        break;
                    }
                    tokio::time::sleep(settle).await;
                }
                Ok(())
            };
            let (pulled, watched) = tokio::join!(pull, watch);
            pulled.and(watched)
        };
        // With the sources the last waker goes, which tells the delivery to finish. When the delivery ends first, it
        // has failed, and the sources would wait for room for ever.
        let (ended, sourced) = tokio::select! {
            sourced = sources => ((&mut delivery).await, sourced),
            ended = &mut delivery => (ended, Ok(())),
        };
        let (deliverer, delivered) = ended.map_err(|_| IntakeError::Broken { part: "delivery" })?;
        self.sink = Some(deliverer.sink);
        delivered?;
        sourced?;
        Ok(*self.progress.borrow())
    }

    /// Takes images in until `shutdown`. A source that fails is tried again at its next turn; a sink that cannot take
    /// objects is tried again after a pause.
    ///
    /// # Errors
    /// When the settings, the ledger or the program itself is at fault, so that trying again cannot help.
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), IntakeError> {
        let (mut deliverer, reporter, woken) = self.deliverer()?;
        let puller = self.puller(&reporter)?;
        // Ends the sources too when the delivery has failed.
        let stop = shutdown.child_token();
        let delivery = {
            let stop = stop.clone();
            tokio::task::spawn_blocking(move || {
                let outcome = deliver_until_stopped(&mut deliverer, &woken, &stop);
                stop.cancel();
                outcome
            })
        };
        let mut sources: JoinSet<Result<(), IntakeError>> = JoinSet::new();
        if let (Some(listener), Some(cstore)) = (self.listener.take(), self.settings.cstore.clone()) {
            let address = cstore.listen;
            let listener = tokio::net::TcpListener::from_std(listener)
                .map_err(|source| IntakeError::Listen { address, source })?;
            let limit = self.settings.max_object_bytes.0;
            let service =
                StoreService::new(cstore, self.ledger.clone(), self.spool.clone(), reporter.clone(), limit);
            let stop = stop.clone();
            sources.spawn(async move {
                service.serve(listener, stop).await;
                Ok(())
            });
        }
        if let (Some(puller), Some(web)) = (puller, &self.settings.dicomweb) {
            sources.spawn(pull_often(puller, web.poll_interval.get(), Arc::clone(&self.gate), stop.clone()));
        }
        if let (Some(watcher), Some(folder)) = (self.watcher(), &self.settings.folder) {
            let interval = folder.poll_interval.get();
            sources.spawn(watch_often(
                watcher,
                self.ledger.clone(),
                reporter.clone(),
                interval,
                stop.clone(),
            ));
        }
        drop(reporter);
        let mut outcome = Ok(());
        while let Some(ended) = sources.join_next().await {
            let ended = ended.unwrap_or(Err(IntakeError::Broken { part: "source" }));
            if ended.is_err() {
                stop.cancel();
                outcome = outcome.and(ended);
            }
        }
        stop.cancel();
        let delivered = delivery.await.unwrap_or(Err(IntakeError::Broken { part: "delivery" }));
        delivered.and(outcome)
    }
}

/// Delivers until no waker is left and nothing waits.
fn deliver_until_closed<S: Sink>(
    deliverer: &mut Deliverer<S>,
    woken: &Receiver<()>,
) -> Result<(), IntakeError> {
    loop {
        deliverer.drain(&|| false)?;
        if woken.recv_timeout(LOOK_AGAIN) == Err(RecvTimeoutError::Disconnected) {
            return deliverer.drain(&|| false);
        }
    }
}

fn deliver_until_stopped<S: Sink>(
    deliverer: &mut Deliverer<S>,
    woken: &Receiver<()>,
    stop: &CancellationToken,
) -> Result<(), IntakeError> {
    let mut pause = Duration::from_secs(1);
    while !stop.is_cancelled() {
        match deliverer.drain(&|| stop.is_cancelled()) {
            Ok(()) => {
                pause = Duration::from_secs(1);
                // A short wait, so that a stop is noticed soon.
                let _ = woken.recv_timeout(Duration::from_millis(500));
            }
            Err(error @ IntakeError::SinkUnavailable { .. }) => {
                tracing::warn!(%error, pause_s = pause.as_secs(), "objects wait");
                let until = std::time::Instant::now() + pause;
                while std::time::Instant::now() < until && !stop.is_cancelled() {
                    std::thread::sleep(Duration::from_millis(100));
                }
                pause = (pause * 2).min(MAX_SINK_PAUSE);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

async fn pull_often(
    puller: Puller,
    interval: Duration,
    gate: Gate,
    stop: CancellationToken,
) -> Result<(), IntakeError> {
    loop {
        if gate() {
            let passed = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                passed = puller.pass(now()) => passed,
            };
            match passed {
                Ok(()) => {}
                Err(IntakeError::DicomWeb(error)) => {
                    tracing::warn!(%error, cause = std::error::Error::source(&error), "the PACS could not be pulled from");
                }
                Err(error) => return Err(error),
            }
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(interval) => {}
        }
    }
}

async fn watch_often(
    mut watcher: Watcher,
    ledger: Ledger,
    reporter: Reporter,
    interval: Duration,
    stop: CancellationToken,
) -> Result<(), IntakeError> {
    while !stop.is_cancelled() {
        let (ledger, reporter) = (ledger.clone(), reporter.clone());
        let looked = tokio::task::spawn_blocking(move || {
            let looked = watcher.look(&ledger, &reporter);
            (watcher, looked)
        });
        let (back, looked) = looked.await.map_err(|_| IntakeError::Broken { part: "watcher" })?;
        watcher = back;
        match looked {
            Ok(_) => {}
            // A share that is away comes back.
            Err(IntakeError::Folder { source, .. }) => {
                tracing::warn!(kind = %source.kind(), "the watched folder cannot be read");
            }
            Err(error) => return Err(error),
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(interval) => {}
        }
    }
    Ok(())
}

enum MakeUpError {
    Ledger(LedgerError),
    Io(io::Error),
}

impl From<LedgerError> for MakeUpError {
    fn from(error: LedgerError) -> Self {
        Self::Ledger(error)
    }
}

impl From<io::Error> for MakeUpError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Brings spool and ledger together after a kill between a file's move and its entry, or an entry and its file's
/// removal.
fn make_up(ledger: &Ledger, spool: &Spool) -> Result<(), MakeUpError> {
    for (location, bytes) in spool.ready_files()? {
        match ledger.state_of_spool_file(&location)? {
            Some(SpoolFileState::Waiting) => {}
            Some(SpoolFileState::SetAside) => spool.set_aside(&location)?,
            Some(SpoolFileState::Done) => spool.remove(&location)?,
            // Pushed, and killed before the entry: its sender may or may not have heard "success", so it counts.
            None => {
                match location.strip_prefix("c-").and_then(|name| hex::decode(name).ok()?.try_into().ok()) {
                    Some(sha256) => {
                        let key = hex::encode(sha256);
                        if ledger.arrived(Origin::CStore, &key, &location, &sha256, bytes)? != Arrival::New {
                            spool.remove_ready(&location)?;
                        }
                    }
                    // Pulled, and killed before the entry: it is fetched again.
                    None => spool.remove(&location)?,
                }
            }
        }
    }
    // Entries whose file is gone, as a power cut may have it.
    let mut after = 0;
    while let Some(fetched) = ledger.next_fetched(after)? {
        after = fetched.id;
        if fetched.origin == Origin::DicomWeb && !spool.holds(&fetched.location) {
            ledger.fetch_again(fetched.id)?;
        }
    }
    Ok(())
}
