//! The hospital's appliance: takes studies in, de-identifies them, trains and measures models on them, and sends
//! nothing out but what `medinet-uplink` has a method for: updates, masked by default, figures that the site's policy releases, votes, counts, reasons
//! for declining, the privacy budget spent and health.

mod base_model;
mod child;
mod consent;
mod files;
mod ingest;
mod lab;
mod participation;
mod policy;
mod privacy_budget;
mod release;
mod round;
mod round_cost;
mod secure_round;
mod settings;
mod staff;
mod task_memory;
mod throughput;
mod trainer;
mod vote;
mod witness;
mod work;

use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "medinet-appliance", version, about = "MediNet's appliance beside a hospital's PACS")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the appliance.
    Run {
        /// The settings file; config/appliance.toml is a sample.
        #[arg(long)]
        config: PathBuf,
        /// Only checks the settings.
        #[arg(long)]
        check: bool,
    },
    /// What was set aside, and why: lists it, or offers it once more.
    #[command(subcommand)]
    Quarantine(staff::Quarantine),
    /// What the de-identifier did to a study.
    Report {
        /// The appliance's settings file.
        #[arg(long)]
        config: PathBuf,
        /// The study: its StudyInstanceUID in the PACS, or its pseudonym.
        study: String,
    },
    /// Whom or what a pseudonym stands for, for the hospital's own staff.
    Relink {
        /// The appliance's settings file.
        #[arg(long)]
        config: PathBuf,
        /// A patient's or a study's pseudonym, or a SOPInstanceUID of the data set.
        pseudonym: String,
    },
    /// Studies on one machine: train without a federation, score a folder of DICOM files.
    Lab(lab::Arguments),
    /// Trains or measures one round; started by `run`.
    #[command(hide = true)]
    TrainChild {
        /// The job's file.
        #[arg(long)]
        job: PathBuf,
    },
}

fn main() -> ExitCode {
    medinet_telemetry::hide_panic_messages();
    let result = match Arguments::parse().command {
        Command::Run { config, check } => run(&config, check),
        Command::Quarantine(command) => staff::quarantine(command),
        Command::Report { config, study } => staff::report(&config, &study),
        Command::Relink { config, pseudonym } => staff::relink(&config, &pseudonym),
        Command::Lab(arguments) => lab::run(&arguments),
        Command::TrainChild { job } => child::run(&job),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Written by hand: the log may be in JSON, or not set up yet.
            let _ = std::io::Write::write_all(
                &mut std::io::stderr(),
                format!("medinet-appliance: {error:#}\n").as_bytes(),
            );
            ExitCode::FAILURE
        }
    }
}

fn run(config: &std::path::Path, check: bool) -> anyhow::Result<()> {
    let settings: settings::ApplianceSettings = medinet_settings::load(config)?;
    let spec = settings.task_spec()?;
    if check {
        std::io::Write::write_all(
            &mut std::io::stdout(),
            format!("{}: no mistakes\n", config.display()).as_bytes(),
        )?;
        return Ok(());
    }
    let _telemetry = medinet_telemetry::init("medinet-appliance", settings.log_format, &settings.log)?;
    medinet_identity::install_default_provider();
    for warning in settings.policy.warnings() {
        tracing::warn!("{warning}");
    }
    let runtime = tokio::runtime::Runtime::new()?;
    let result = runtime.block_on(participation::run(settings, spec));
    // The intake's threads may sit in a decoder; what they hold is taken in again at the next start.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    result
}
