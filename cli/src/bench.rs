//! `medinet bench`: what MediNet's parts cost, beside the foreign programs that people use for the same work.
//!
//! Both sides run on the same machine in one run, in processes of their own and in turns, so that whatever else the
//! machine does hits both. Medians are compared; the ratio says more than either figure.

mod child;
mod inference;
mod machine;
mod peers;
mod private_training;
mod report;
mod secagg;
mod secagg_server;
mod secagg_session;
mod training;
mod update;

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use machine::Machine;
use report::{Document, Report};
use std::io::Write;
use std::path::{Path, PathBuf};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Inference: latency, loading time and memory of tract beside onnxruntime, one thread, one image at a time.
    Inference(inference::Args),
    /// Training: images per second and memory of the appliance's trainer beside PyTorch on the same network.
    Training(training::Args),
    /// Private training (DP-SGD): its slow-down against plain training, beside that of Opacus on the same network.
    PrivateTraining(private_training::Args),
    /// The update codec: bytes and time beside float32, and beside zstd of float32.
    Update(update::Args),
    /// Secure aggregation: masking, unmasking and bytes beside Flower's SecAgg+ functions.
    Secagg(secagg::Args),
    /// All of them, one after the other.
    All(Output),
    /// Our side of `inference`; started by it.
    #[command(hide = true)]
    InferenceChild(inference::ChildArgs),
    /// The server of a session of `secagg`; started by our side.
    #[command(hide = true)]
    SecaggServer(secagg::ChildArgs),
    /// Our side of `secagg`; started by it.
    #[command(hide = true)]
    SecaggChild(secagg::ChildArgs),
}

/// Where results go beside standard output.
#[derive(Args, Clone, Default)]
pub(crate) struct Output {
    /// Also writes the result to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs a bench and prints its tables to `out`.
///
/// # Errors
/// When a side fails. A peer that is not installed is none: ours is measured alone then.
pub(crate) fn run(command: Command, out: &mut dyn Write) -> Result<()> {
    let machine = Machine::here();
    match command {
        Command::InferenceChild(args) => inference::serve(&args, out),
        Command::SecaggChild(args) => secagg::serve(&args, out),
        Command::SecaggServer(args) => secagg::serve_session(&args, out),
        Command::Inference(args) => {
            let mut sheet = Sheet::begin(&machine, out)?;
            sheet.add_all(inference::run(&args)?)?;
            sheet.keep(args.output.json.as_deref())
        }
        Command::Training(args) => {
            let mut sheet = Sheet::begin(&machine, out)?;
            sheet.add_all(training::run(&args)?)?;
            sheet.keep(args.output.json.as_deref())
        }
        Command::PrivateTraining(args) => {
            let mut sheet = Sheet::begin(&machine, out)?;
            sheet.add_all(private_training::run(&args)?)?;
            sheet.keep(args.output.json.as_deref())
        }
        Command::Update(args) => {
            let mut sheet = Sheet::begin(&machine, out)?;
            sheet.add_all(update::run(&args)?)?;
            sheet.keep(args.output.json.as_deref())
        }
        Command::Secagg(args) => {
            let mut sheet = Sheet::begin(&machine, out)?;
            secagg::run(&args, &mut |report| sheet.add(report))?;
            sheet.keep(args.output.json.as_deref())
        }
        Command::All(output) => {
            let mut sheet = Sheet::begin(&machine, out)?;
            sheet.add_all(inference::run(&inference::Args::default())?)?;
            sheet.add_all(training::run(&training::Args::default())?)?;
            sheet.add_all(private_training::run(&private_training::Args::default())?)?;
            sheet.add_all(update::run(&update::Args::default())?)?;
            secagg::run(&secagg::Args::default(), &mut |report| sheet.add(report))?;
            sheet.keep(output.json.as_deref())
        }
    }
}

/// What has been measured; each part is shown as it comes, since the whole can take an hour.
struct Sheet<'a> {
    machine: &'a Machine,
    out: &'a mut dyn Write,
    reports: Vec<Report>,
}

impl<'a> Sheet<'a> {
    fn begin(machine: &'a Machine, out: &'a mut dyn Write) -> Result<Self> {
        writeln!(out, "{}", machine.line())?;
        Ok(Self { machine, out, reports: Vec::new() })
    }

    fn add(&mut self, report: Report) -> Result<()> {
        write!(self.out, "{}", report.text())?;
        self.out.flush()?;
        self.reports.push(report);
        Ok(())
    }

    fn add_all(&mut self, reports: Vec<Report>) -> Result<()> {
        reports.into_iter().try_for_each(|report| self.add(report))
    }

    fn keep(&self, json: Option<&Path>) -> Result<()> {
        let Some(path) = json else { return Ok(()) };
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        let command = format!("medinet {}", arguments.join(" "));
        let document = Document { command, machine: self.machine, reports: &self.reports };
        let text = serde_json::to_string_pretty(&document)?;
        std::fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Says on standard error what is being measured: some of it takes minutes.
fn progress(what: impl std::fmt::Display) {
    // There is nobody to tell when standard error itself fails.
    let _ = writeln!(std::io::stderr(), "measuring {what}");
}

/// How many in each of `turns` turns, so that they make `total` in all; no turn is empty.
fn in_turns(total: u32, turns: u32) -> Vec<u32> {
    let turns = turns.clamp(1, total.max(1));
    (0..turns)
        .map(|turn| total / turns + u32::from(turn < total % turns))
        .filter(|count| *count > 0)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(subcommand)]
        command: Command,
    }

    fn parse(line: &str) -> Result<Command, String> {
        Cli::try_parse_from(std::iter::once("bench").chain(line.split_whitespace()))
            .map(|cli| cli.command)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn arguments_are_read() {
        let Ok(Command::Inference(args)) = parse("inference --runs 3 --model a.onnx --json b.json") else {
            panic!("inference")
        };
        assert_eq!((args.runs, args.model.as_deref()), (3, Some(Path::new("a.onnx"))));
        assert_eq!(args.output.json.as_deref(), Some(Path::new("b.json")));
        let Ok(Command::Training(args)) =
            parse("training --case small:64:8 --case resnet18:28:32 --threads 2")
        else {
            panic!("training")
        };
        assert_eq!(args.cases().len(), 2);
        assert_eq!(args.threads(), [2]);
        assert!(matches!(parse("all"), Ok(Command::All(_))));
    }

    #[test]
    fn what_left_out_is_as_the_whole_run_has_it() {
        let Ok(Command::Inference(args)) = parse("inference") else { panic!("inference") };
        assert_eq!(args.runs, inference::Args::default().runs);
        let Ok(Command::Training(args)) = parse("training") else { panic!("training") };
        let default = training::Args::default();
        assert_eq!((args.steps, args.cases()), (default.steps, default.cases()));
        let Ok(Command::Update(args)) = parse("update") else { panic!("update") };
        assert_eq!(
            (args.runs, args.parameters),
            (update::Args::default().runs, update::Args::default().parameters)
        );
        let Ok(Command::Secagg(args)) = parse("secagg") else { panic!("secagg") };
        assert_eq!(
            (args.runs, args.coordinates),
            (secagg::Args::default().runs, secagg::Args::default().coordinates)
        );
    }

    #[test]
    fn bad_arguments_are_refused() {
        for (line, why) in [
            ("inference --runs 0", "0 is not in"),
            ("training --case large:28:32", "expected small or resnet18"),
            ("training --case small:28", "expected NETWORK:SIDE:BATCH"),
            ("training --threads 0", "0 is not in"),
            ("secagg --coordinates 0", "0 is not in"),
            ("", "Usage"),
        ] {
            let error = parse(line).err().expect(line);
            assert!(error.contains(why), "{line}: {error}");
        }
    }

    #[test]
    fn turns_make_the_total() {
        assert_eq!(in_turns(10, 4), [3, 3, 2, 2]);
        assert_eq!(in_turns(2, 5), [1, 1]);
        assert_eq!(in_turns(7, 0), [7]);
        assert_eq!(in_turns(0, 3), [] as [u32; 0]);
    }
}
