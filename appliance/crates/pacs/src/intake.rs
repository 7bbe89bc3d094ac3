//! The whole intake: its sources, its spool, its ledger, and the sink at its end.

use crate::deliver::Deliverer;
use crate::error::{DicomWebError, IntakeError, LedgerError};
use crate::folder::{WatchedFolder, Watcher};
use crate::ledger::{Arrival, Ledger, SpoolFileState};
use crate::progress::{IntakeProgress, Reporter};
use crate::pull::Puller;
use crate::quarantine::Retried;
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
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How often the delivery looks for waiting files although nobody woke it: those that another process offers again, and
/// whether it is to stop.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// The longest pause between two tries of a sink that cannot take objects.
const MAX_SINK_PAUSE: Duration = Duration::from_secs(60);
/// The first pause after a pass over the PACS that failed; each further one is twice as long, up to the usual interval.
const FIRST_PULL_PAUSE: Duration = Duration::from_secs(5);

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
    /// What the counts of `progress` take account of.
    retried: Retried,
    first_pass: watch::Sender<bool>,
    gate: Gate,
    /// Held for as long as the intake lives; the kernel lets go of it when the process dies.
    _lock: fs::File,
}

impl<S> std::fmt::Debug for Intake<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Intake").field("progress", &*self.progress.borrow()).finish_non_exhaustive()
    }
}

pub(crate) fn now() -> UnixMillis {
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
        let database = data_dir.join(Ledger::FILE);
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
        let totals = ledger.totals()?;
        Ok(Self {
            settings,
            ledger,
            spool,
            folder,
            sink: Some(sink),
            listener,
            progress: watch::Sender::new(totals.into()),
            retried: totals.retried,
            first_pass: watch::Sender::new(false),
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

    /// Turns true once the PACS and the folder have been gone through and all that they had is ingested or quarantined. What
    /// peers push is not waited for: nobody knows what they have. Stays false while the PACS cannot be reached.
    #[must_use]
    pub fn first_pass(&self) -> watch::Receiver<bool> {
        self.first_pass.subscribe()
    }

    /// Whether the first pass has ended in an earlier run on this folder, or in this one.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn has_passed(&self) -> Result<bool, IntakeError> {
        Ok(self.ledger.has_passed()?)
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
            self.retried,
            self.settings.max_object_bytes.0,
        );
        Ok((deliverer, Reporter::new(self.progress.clone(), wake), woken))
    }

    /// Makes the puller, where there is a PACS. Its settings name files, which may come back or be mended while the intake runs.
    fn puller(
        &self,
        reporter: &Reporter,
    ) -> Option<impl Fn() -> Result<Puller, DicomWebError> + Send + Sync + use<S>> {
        let settings = self.settings.dicomweb.clone()?;
        let (ledger, spool, reporter) = (self.ledger.clone(), self.spool.clone(), reporter.clone());
        let limit = self.settings.max_object_bytes.0;
        Some(move || Puller::new(&settings, ledger.clone(), spool.clone(), reporter.clone(), limit))
    }

    fn watcher(&self) -> Option<Watcher> {
        let (folder, settings) = (self.folder.clone()?, self.settings.folder.as_ref()?);
        Some(Watcher::new(folder, settings, self.settings.max_object_bytes.0))
    }

    /// Takes images in from all sources at once until `shutdown`. A source that fails is tried again at its next turn and holds
    /// up none of the others; a sink that cannot take objects is tried again after a pause.
    ///
    /// # Errors
    /// When the ledger, the disk or the program itself is at fault, so that trying again cannot help.
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), IntakeError> {
        let (mut deliverer, reporter, woken) = self.deliverer()?;
        let puller = self.puller(&reporter);
        // Ends the sources too when the delivery has failed.
        let stop = shutdown.child_token();
        let watcher = self.watcher();
        let unseen = Unseen(Arc::new(AtomicUsize::new(
            usize::from(puller.is_some()) + usize::from(watcher.is_some()),
        )));
        let delivery = {
            let (stop, unseen, first_pass) = (stop.clone(), unseen.clone(), self.first_pass.clone());
            tokio::task::spawn_blocking(move || {
                let outcome = deliver_until_stopped(&mut deliverer, &woken, &unseen, &first_pass, &stop);
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
            sources.spawn(pull_often(
                puller,
                web.poll_interval.get(),
                Arc::clone(&self.gate),
                unseen.clone(),
                reporter.clone(),
                stop.clone(),
            ));
        }
        if let (Some(watcher), Some(folder)) = (watcher, &self.settings.folder) {
            sources.spawn(watch_often(
                watcher,
                self.ledger.clone(),
                folder.poll_interval.get(),
                unseen,
                reporter.clone(),
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

/// How many of the sources that are asked, and not waited for, have yet to be gone through once.
#[derive(Clone)]
struct Unseen(Arc<AtomicUsize>);

impl Unseen {
    /// One more source has been gone through.
    fn seen(&self, reporter: &Reporter) {
        self.0.fetch_sub(1, Ordering::AcqRel);
        reporter.wake();
    }

    fn is_none(&self) -> bool {
        self.0.load(Ordering::Acquire) == 0
    }
}

fn deliver_until_stopped<S: Sink>(
    deliverer: &mut Deliverer<S>,
    woken: &Receiver<()>,
    unseen: &Unseen,
    first_pass: &watch::Sender<bool>,
    stop: &CancellationToken,
) -> Result<(), IntakeError> {
    let mut pause = Duration::from_secs(1);
    while !stop.is_cancelled() {
        // Asked before: what comes in while this delivers may be left for the next time.
        let all_came = unseen.is_none();
        match deliverer.drain(&|| stop.is_cancelled()) {
            Ok(()) => {
                pause = Duration::from_secs(1);
                if all_came && !stop.is_cancelled() && !*first_pass.borrow() {
                    deliverer.ledger.passed()?;
                    first_pass.send_replace(true);
                }
                let _ = woken.recv_timeout(LOOK_AGAIN);
            }
            Err(error @ IntakeError::SinkUnavailable { .. }) => {
                tracing::warn!(%error, pause_s = pause.as_secs(), "objects wait");
                let until = Instant::now() + pause;
                while Instant::now() < until && !stop.is_cancelled() {
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
    make: impl Fn() -> Result<Puller, DicomWebError> + Sync,
    interval: Duration,
    gate: Gate,
    unseen: Unseen,
    reporter: Reporter,
    stop: CancellationToken,
) -> Result<(), IntakeError> {
    let mut puller = None;
    let mut is_first = true;
    let mut after_failure = FIRST_PULL_PAUSE;
    loop {
        let mut pause = interval;
        if gate() {
            let pass = async {
                let puller = match &mut puller {
                    Some(puller) => puller,
                    none => none.insert(make()?),
                };
                puller.pass(now()).await
            };
            let passed = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                passed = pass => passed,
            };
            match passed {
                Ok(()) => {
                    after_failure = FIRST_PULL_PAUSE;
                    if std::mem::take(&mut is_first) {
                        unseen.seen(&reporter);
                    }
                }
                Err(IntakeError::DicomWeb(error)) => {
                    tracing::warn!(%error, cause = std::error::Error::source(&error), "the PACS could not be pulled from");
                    pause = after_failure.min(interval);
                    after_failure = pause * 2;
                }
                Err(error) => return Err(error),
            }
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn watch_often(
    mut watcher: Watcher,
    ledger: Ledger,
    interval: Duration,
    unseen: Unseen,
    reporter: Reporter,
    stop: CancellationToken,
) -> Result<(), IntakeError> {
    let settle = watcher.settle();
    let mut is_first = true;
    let mut begun: Option<Instant> = None;
    while !stop.is_cancelled() {
        let (its_ledger, its_reporter) = (ledger.clone(), reporter.clone());
        let looked = tokio::task::spawn_blocking(move || {
            let looked = watcher.look(&its_ledger, &its_reporter);
            (watcher, looked)
        });
        let (back, looked) = looked.await.map_err(|_| IntakeError::Broken { part: "watcher" })?;
        watcher = back;
        let mut pause = interval;
        match looked {
            Ok(unsettled) if is_first => {
                // A file is taken at the second look that finds it unchanged. One that changes for longer is not waited for.
                let too_long = begun.is_some_and(|begun| begun.elapsed() >= 2 * settle);
                begun.get_or_insert_with(Instant::now);
                if unsettled == 0 || too_long {
                    is_first = false;
                    unseen.seen(&reporter);
                } else {
                    pause = interval.min(settle);
                }
            }
            Ok(_) => {}
            // A share that is away comes back.
            Err(IntakeError::Folder { source, .. }) => {
                tracing::warn!(kind = %source.kind(), "the watched folder cannot be read");
            }
            Err(error) => return Err(error),
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
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
