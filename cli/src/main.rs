//! `medinet`: the command line of a federation's operators, data scientists and auditors.
//!
//! One module per subcommand; each has its arguments and a `run` that writes its result to `out`. Results go to
//! standard output, errors to standard error, and the exit status is 0 only when all was done.

mod audit;
mod bench;
mod ca;
mod common;
mod demo;
mod enrol;
mod identity;
mod infer;
mod ledger;
mod model;
mod report;

use clap::{Parser, Subcommand};
use std::io::Write;
use std::process::ExitCode;

/// Federated learning between hospitals: certificates, models, ledger.
#[derive(Parser)]
#[command(name = "medinet", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The federation's certificate authority.
    #[command(subcommand)]
    Ca(ca::Command),
    /// This machine's identity: a key that stays here and a request for a certificate.
    #[command(subcommand)]
    Identity(identity::Command),
    /// Makes key and certificate of a party at once, where the authority is on the same machine.
    Enrol(enrol::Args),
    Infer(infer::Args),
    /// A copy of the federation's ledger.
    #[command(subcommand)]
    Ledger(ledger::Command),
    /// The models in an aggregator's registry.
    #[command(subcommand)]
    Model(model::Command),
    /// Runs a whole federation on this machine, and compares it with what each hospital alone would have reached.
    Demo(demo::Args),
    /// What inference, training, updates and secure aggregation cost here, beside the foreign programs that do the same.
    #[command(subcommand)]
    Bench(bench::Command),
    /// What attackers get out of models and updates, measured with attacks of the literature.
    #[command(subcommand)]
    Audit(audit::Command),
}

fn run(cli: Cli, out: &mut dyn Write) -> anyhow::Result<()> {
    match cli.command {
        Command::Ca(command) => ca::run(command, out),
        Command::Identity(command) => identity::run(command, out),
        Command::Enrol(args) => enrol::run(&args, out),
        Command::Infer(args) => infer::run(&args, out),
        Command::Ledger(command) => ledger::run(command, out),
        Command::Model(command) => model::run(command, out),
        Command::Demo(args) => demo::run(&args, out),
        Command::Bench(command) => bench::run(command, out),
        Command::Audit(command) => audit::run(&command, out),
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

fn main() -> ExitCode {
    let mut out = std::io::stdout().lock();
    let result = run(Cli::parse(), &mut out).and_then(|()| Ok(out.flush()?));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads the result has seen enough, as in `medinet ca list | head`.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Each cause on its own line; there is nobody to tell when standard error itself fails.
            let mut text = format!("error: {error}\n");
            for cause in error.chain().skip(1) {
                text.push_str(&format!("  because: {cause}\n"));
            }
            let _ = std::io::stderr().write_all(text.as_bytes());
            if error.is::<common::Refused>() { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}
