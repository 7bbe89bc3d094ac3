//! The aggregator's program: `medinet-aggregator --config aggregator.toml`.
//!
//! Ties one [`Coordinator`](medinet_rounds::Coordinator) per task to the bus, the state folder and the ledger. It stops
//! at the first thing it cannot do; whoever supervises it starts it again, and it goes on from its state folder.

mod host;
mod ledger;
mod release;
mod settings;
mod status;

use anyhow::Context as _;
use clap::Parser;
use host::Host;
use ledger::Ledger;
use medinet_identity::Identity;
use medinet_link::{BlobStore, Link, LinkEvent, LinkOptions};
use medinet_store::Store;
use medinet_types::Role;
use medinet_wire::envelope::Verifier;
use medinet_wire::message::PresenceState;
use settings::AggregatorSettings;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// How often the status is published though nothing changed, and everything that time may have changed is looked at.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// How long the last words may take to reach the broker.
const FAREWELL: Duration = Duration::from_secs(1);

/// MediNet's aggregator: opens rounds, sums the sites' updates, keeps the ledger and releases models.
///
/// SIGTERM and SIGINT end it; SIGHUP continues tasks that are paused.
#[derive(Parser)]
#[command(name = "medinet-aggregator", version)]
struct Arguments {
    /// The settings file; see config/aggregator.toml for every setting.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Only checks the settings file and the task files that it names, and says what is wrong with them.
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The last resort when standard error is closed is the exit code.
            let _ = writeln!(std::io::stderr(), "medinet-aggregator: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let settings: AggregatorSettings = medinet_settings::load(&arguments.config)?;
    if arguments.check {
        writeln!(std::io::stdout(), "{}: no mistakes", arguments.config.display())?;
        return Ok(());
    }
    let _telemetry = medinet_telemetry::init("medinet-aggregator", settings.log_format, &settings.log)?;
    // The rounds run on this thread, sums and disk included; the bus has the runtime's threads to itself.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(serve(settings))
}

async fn serve(settings: AggregatorSettings) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;

    let identity = Arc::new(Identity::load(&settings.identity)?);
    let principal = identity.principal();
    anyhow::ensure!(
        principal.role == Role::Aggregator,
        "expected an aggregator's certificate in {}, got that of {principal}",
        settings.identity.certificate.display()
    );
    identity.check_time(medinet_link::now())?;

    let mut store = Store::open(settings.data_dir.as_path())?;
    let blobs = BlobStore::open(store.blob_folder())?;
    let signer = ledger::load_or_make_key(&settings.ledger.key_file)?;
    let mut ledger = Ledger::open(&settings.ledger_folder(), &settings.federation, signer)
        .context("cannot open the ledger")?;
    ledger.append_waiting(&mut store).context("cannot complete the ledger")?;
    let trust: Arc<dyn Verifier> = identity.trust().clone();
    let tasks = host::open_tasks(settings.plans()?, &store, &blobs, &trust)?;

    let now = medinet_link::now();
    let (link, mut events) = Link::start(LinkOptions {
        session: settings.broker.clone(),
        identity: Arc::clone(&identity),
        verifier: identity.trust().clone(),
        federation: settings.federation.clone(),
        blobs,
        last_will: Some(status::json(&status::of(&tasks, PresenceState::Offline, now))),
    });
    let mut host = Host::new(link, store, ledger, settings.models_folder(), tasks)?;
    host.begin().await?;

    let mut heartbeat = tokio::time::interval(HEARTBEAT);
    heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        host.wake().await?;
        host.report();
        tokio::select! {
            event = events.recv() => host.on_event(event.context("the link to the broker has ended")?).await?,
            () = tokio::time::sleep(host.until_wake(HEARTBEAT)) => {}
            _ = heartbeat.tick() => {
                reload_revocations(&identity);
                host.heartbeat().await?;
            }
            _ = hang_up.recv() => host.continue_tasks().await?,
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    tracing::info!("ending");
    host.say_goodbye();
    host.link().close().await;
    // The goodbye is only queued; without it the last will says the same, so it is not worth waiting long.
    let _ = tokio::time::timeout(FAREWELL, disconnected(&mut events)).await;
    Ok(())
}

/// Revocations count from the next message on.
fn reload_revocations(identity: &Identity) {
    match identity.trust().reload_crl() {
        Ok(true) => tracing::info!("new revocation lists in use"),
        Ok(false) => {}
        Err(error) => tracing::error!(
            error = &error as &dyn std::error::Error,
            "cannot reload the revocation lists: those in use stay in use until they end"
        ),
    }
}

async fn disconnected(events: &mut mpsc::Receiver<LinkEvent>) {
    while let Some(event) = events.recv().await {
        if matches!(event, LinkEvent::Disconnected) {
            return;
        }
    }
}
