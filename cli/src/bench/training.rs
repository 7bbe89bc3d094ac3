//! `medinet bench training`: the appliance's trainer beside PyTorch. The same network, batch and number of threads; data
//! and optimizer are in it on both sides.

use super::child::{Child, Request};
use super::peers::{Missing, Peer};
use super::report::{Better, Figure, Report, Row};
use super::{Output, in_turns, progress};
use anyhow::{Context as _, Result};
use medinet_lab::federation::program;
use std::process::Command;
use std::str::FromStr;

const STEPS: u32 = 12;
/// Steps in a turn of one side.
const STEPS_A_TURN: u32 = 2;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// What is trained: small or resnet18, pixels of a side, images in a batch; repeat it for several
    /// [default: small:28:32, resnet18:28:32 and resnet18:224:4].
    #[arg(long = "case", value_name = "NETWORK:SIDE:BATCH")]
    cases: Vec<Case>,
    /// Threads of either side; repeat it for several [default: 1, and 2 where there are two cores].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=256))]
    threads: Vec<u32>,
    /// Training steps of either side in each case.
    #[arg(long, default_value_t = STEPS, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) steps: u32,
    #[command(flatten)]
    pub(crate) output: Output,
}

impl Default for Args {
    fn default() -> Self {
        Self { cases: Vec::new(), threads: Vec::new(), steps: STEPS, output: Output::default() }
    }
}

impl Args {
    /// What is to be trained.
    pub(crate) fn cases(&self) -> Vec<Case> {
        if !self.cases.is_empty() {
            return self.cases.clone();
        }
        vec![Case::new("small", 28, 32), Case::new("resnet18", 28, 32), Case::new("resnet18", 224, 4)]
    }

    /// With how many threads.
    pub(crate) fn threads(&self) -> Vec<u32> {
        if self.threads.is_empty() { default_threads() } else { self.threads.clone() }
    }
}

/// One, and two where there are two cores.
pub(super) fn default_threads() -> Vec<u32> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if cores > 1 { vec![1, 2] } else { vec![1] }
}

/// A network, its input and its batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Case {
    network: String,
    side: u32,
    pub(super) batch: u32,
}

impl Case {
    /// One of the defaults.
    pub(super) fn new(network: &str, side: u32, batch: u32) -> Self {
        Self { network: network.to_owned(), side, batch }
    }

    /// As a table's rows are named.
    pub(super) fn name(&self, threads: u32) -> String {
        let Self { network, side, batch } = self;
        let s = if threads == 1 { "" } else { "s" };
        format!("{network}, {side} px, batch {batch}, {threads} thread{s}")
    }
}

impl FromStr for Case {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let [network, side, batch] = text.split(':').collect::<Vec<_>>()[..] else {
            return Err(format!("expected NETWORK:SIDE:BATCH, got {text:?}"));
        };
        if !["small", "resnet18"].contains(&network) {
            return Err(format!("expected small or resnet18, got {network:?}"));
        }
        let number = |text: &str, name: &str, most: u32| match text.parse() {
            Ok(number) if (1..=most).contains(&number) => Ok(number),
            _ => Err(format!("expected a {name} of 1 to {most}, got {text:?}")),
        };
        let (side, batch) = (number(side, "side", 512)?, number(batch, "batch", 4096)?);
        if side < 28 {
            Err(format!("expected a side of 28 to 512, got {side}"))
        } else {
            Ok(Self { network: network.to_owned(), side, batch })
        }
    }
}

/// Measures every case with every number of threads.
///
/// # Errors
/// When the appliance's program is not beside this one, or a side fails.
pub(crate) fn run(args: &Args) -> Result<Vec<Report>> {
    let peer = Peer::Torch;
    let missing: Option<Missing> = peer.command().err();
    let (mut rows, mut peer_runtime) = (Vec::new(), None);
    for case in args.cases() {
        for threads in args.threads() {
            let name = case.name(threads);
            progress(format_args!("{name}: {} steps on each side", args.steps));
            let ours = Side::start("our side", &mut ours(&case, args.steps, threads)?)?;
            let theirs = match peer.command() {
                Ok(command) if missing.is_none() => {
                    Some(Side::start(peer.name(), &mut theirs(command, &case, args.steps, threads))?)
                }
                _ => None,
            };
            if let Some(side) = &theirs {
                peer_runtime = Some(side.child.runtime().to_owned());
            }
            rows.extend(measure(&name, f64::from(case.batch), args.steps, ours, theirs)?);
        }
    }
    let mut notes = vec![
        "images per second: of the median step, with reading the batch, loss, gradients and optimizer"
            .to_owned(),
    ];
    notes.extend(missing.map(|missing| missing.reason));
    Ok(vec![Report {
        bench: "training",
        title: format!("Training, {} steps on each side in turns of {STEPS_A_TURN}", args.steps),
        ours: "medinet-training".to_owned(),
        peer: peer_runtime,
        rows,
        notes,
    }])
}

/// Our side's command.
pub(super) fn ours(case: &Case, steps: u32, threads: u32) -> Result<Command> {
    let mut command = Command::new(program("medinet-appliance")?);
    command.args(["lab", "throughput", "--controlled", "--network", &case.network]);
    for (name, value) in [("--side", case.side), ("--batch", case.batch), ("--steps", steps)] {
        command.arg(name).arg(value.to_string());
    }
    command.env("RAYON_NUM_THREADS", threads.to_string());
    Ok(command)
}

/// PyTorch's command, from its program and script.
pub(super) fn theirs(mut command: Command, case: &Case, steps: u32, threads: u32) -> Command {
    command.arg(&case.network).args([case.side, case.batch, steps].map(|number| number.to_string()));
    command.args(["--threads", &threads.to_string(), "--controlled"]);
    command
}

/// A child that trains, and what its steps took.
pub(super) struct Side {
    pub(super) child: Child,
    /// Wall seconds of each step.
    pub(super) wall: Vec<f64>,
    /// CPU seconds of all.
    pub(super) cpu: f64,
}

impl Side {
    pub(super) fn start(name: &str, command: &mut Command) -> Result<Self> {
        Ok(Self { child: Child::start(name, command)?, wall: Vec::new(), cpu: 0.0 })
    }

    pub(super) fn take_turn(&mut self, steps: u32) -> Result<()> {
        let mut figures = self.child.ask(&Request::new("run", steps))?;
        self.wall.append(figures.get_mut("wall").context("a run has wall times")?);
        self.cpu += figures.get("cpu").and_then(|cpu| cpu.first()).context("a run has a CPU time")?;
        Ok(())
    }
}

fn measure(name: &str, batch: f64, steps: u32, mut ours: Side, mut theirs: Option<Side>) -> Result<Vec<Row>> {
    for (turn, count) in in_turns(steps, steps.div_ceil(STEPS_A_TURN)).into_iter().enumerate() {
        if turn % 2 == 1
            && let Some(theirs) = &mut theirs
        {
            theirs.take_turn(count)?;
        }
        ours.take_turn(count)?;
        if turn % 2 == 0
            && let Some(theirs) = &mut theirs
        {
            theirs.take_turn(count)?;
        }
    }
    let row = |quantity: &str, unit, better, figure: &dyn Fn(&Side) -> Option<Figure>| {
        Row::new(name, quantity, unit, better, figure(&ours), theirs.as_ref().and_then(figure))
    };
    let images = batch * f64::from(steps);
    Ok(vec![
        row("images per second", "", Better::Higher, &|side| {
            Figure::of(&side.wall.iter().map(|seconds| batch / seconds).collect::<Vec<_>>())
        }),
        row("images per CPU second", "", Better::Higher, &|side| Some(Figure::one(images / side.cpu))),
        row("CPU time, all steps", "s", Better::Lower, &|side| Some(Figure::one(side.cpu))),
        row("peak memory", "MB", Better::Lower, &|side| {
            side.child.peak_memory().map(|bytes| Figure::one(bytes * 1e-6))
        }),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_reads_as_it_is_written() {
        let case: Case = "resnet18:224:8".parse().expect("a case");
        assert_eq!((case.network.as_str(), case.side, case.batch), ("resnet18", 224, 8));
        for bad in ["resnet18:27:8", "resnet18:28:0", "small:28:32:1", "small:a:1", "small:1024:1"] {
            assert!(bad.parse::<Case>().is_err(), "{bad}");
        }
    }

    #[test]
    fn both_sides_are_asked_for_the_same() {
        let case: Case = "small:64:8".parse().expect("a case");
        let theirs = theirs(Command::new("python"), &case, 6, 2);
        let arguments: Vec<_> = theirs.get_args().map(|a| a.to_string_lossy().into_owned()).collect();
        assert_eq!(arguments, ["small", "64", "8", "6", "--threads", "2", "--controlled"]);
    }
}
