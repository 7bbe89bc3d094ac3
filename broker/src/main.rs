//! The broker's program: `medinet-broker --config broker.toml`.

use anyhow::Context as _;
use clap::Parser;
use medinet_broker::{BrokerSettings, mosquitto};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

/// MediNet's MQTT broker: MQTT 3.1.1 over mutual TLS, with topic rules by role and federation.
#[derive(Parser)]
#[command(name = "medinet-broker", version)]
struct Arguments {
    /// The settings file; see config/broker.toml for every setting.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Only checks the settings file, and says what is wrong with it.
    #[arg(long)]
    check: bool,
    /// Only writes mosquitto.conf and acl into this folder: the same rules for Mosquitto 2.
    #[arg(long, value_name = "FOLDER", conflicts_with = "check")]
    mosquitto: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The last resort when standard error is closed is the exit code.
            let _ = writeln!(std::io::stderr(), "medinet-broker: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let settings: BrokerSettings = medinet_settings::load(&arguments.config)?;
    if arguments.check {
        writeln!(std::io::stdout(), "{}: no mistakes", arguments.config.display())?;
        return Ok(());
    }
    if let Some(folder) = &arguments.mosquitto {
        return write_mosquitto(&settings, folder);
    }
    let log = &settings.log;
    let _telemetry = medinet_telemetry::init("medinet-broker", log.format, &log.filter)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(settings))
}

async fn serve(settings: BrokerSettings) -> anyhow::Result<()> {
    // Before the address is printed: whoever reads it may send a signal at once.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let broker = medinet_broker::start(settings)?;
    let mut out = std::io::stdout();
    writeln!(out, "listening on {}", broker.local_addr())?;
    out.flush()?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        error = broker.failed() => return Err(error.into()),
    }
    broker.shutdown().await;
    Ok(())
}

fn write_mosquitto(settings: &BrokerSettings, folder: &Path) -> anyhow::Result<()> {
    let acl = folder.join("acl");
    let files = mosquitto::files(settings, &acl.display().to_string());
    for (path, text) in [(folder.join("mosquitto.conf"), &files.conf), (acl, &files.acl)] {
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        writeln!(std::io::stdout(), "wrote {}", path.display())?;
    }
    Ok(())
}
