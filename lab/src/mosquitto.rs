//! Debian's Mosquitto in the broker's place, with the files that operators are given for it: `medinet-broker --mosquitto` makes them
//! from the broker's settings, as it made those in `config/mosquitto` from `config/broker.toml`.

use crate::federation::program;
use anyhow::{Context as _, Result, ensure};
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

/// Debian's Mosquitto.
const PROGRAM: &str = "/usr/sbin/mosquitto";
const CONFIGURATION: &str = "mosquitto.conf";

/// Writes Mosquitto's files into `folder`, made from the broker's settings file.
pub(crate) fn write(settings: &Path, folder: &Path) -> Result<()> {
    let mut broker = Command::new(program("medinet-broker")?);
    broker.arg("--config").arg(settings).arg("--mosquitto").arg(folder);
    let made = broker.output().context("cannot run medinet-broker")?;
    ensure!(
        made.status.success(),
        "medinet-broker --mosquitto ended with {}: {}",
        made.status,
        String::from_utf8_lossy(&made.stderr)
    );
    let configuration = folder.join(CONFIGURATION);
    let mut file = OpenOptions::new()
        .append(true)
        .open(&configuration)
        .with_context(|| format!("cannot open {}", configuration.display()))?;
    // The one thing that is this machine's: started by root, as in containers, it would become a user who cannot read the key.
    // Nobody else can change users, and to them the line says nothing.
    Ok(file.write_all(b"user root\n")?)
}

/// How to start Mosquitto with the files in `folder`.
pub(crate) fn command(folder: &Path) -> Result<Command> {
    ensure!(Path::new(PROGRAM).exists(), "expected Mosquitto at {PROGRAM}: `cargo xtask setup` installs it");
    let mut command = Command::new(PROGRAM);
    command.arg("-c").arg(folder.join(CONFIGURATION));
    Ok(command)
}
