//! `medinet bench private-training`: what clipping each patient's gradient costs against plain training, and what it costs Opacus
//! on the same network. Four programs take turns: our trainer without and with privacy, PyTorch, and PyTorch with Opacus.
//! Every step has the same images on all sides: a patient is an example, and each is in every step.

use super::peers::{Missing, Peer};
use super::report::{Better, Figure, Report, Row};
use super::training::{Case, Side, default_threads, ours, theirs};
use super::{Output, in_turns, progress};
use anyhow::Result;
use clap::ValueEnum;
use std::process::Command;

const STEPS: u32 = 12;
/// Steps in a turn of one side.
const STEPS_A_TURN: u32 = 2;

/// How Opacus clips.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum Mode {
    /// Fast gradient clipping: norms first, then a second backward pass.
    Ghost,
    /// Gradients of every example. The faster of the two on convolutional networks.
    #[default]
    Hooks,
}

#[derive(clap::Args)]
pub(crate) struct Args {
    /// What is trained: small or resnet18, pixels of a side, images in a batch; repeat it for several
    /// [default: small:28:32 and resnet18:28:32].
    #[arg(long = "case", value_name = "NETWORK:SIDE:BATCH")]
    cases: Vec<Case>,
    /// Threads of each side; repeat it for several [default: 1, and 2 where there are two cores].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=256))]
    threads: Vec<u32>,
    /// Training steps of each side in each case.
    #[arg(long, default_value_t = STEPS, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    steps: u32,
    /// Images of each patient on our side; Opacus protects examples.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096))]
    images_per_patient: u32,
    /// How Opacus clips.
    #[arg(long, value_enum, default_value_t)]
    opacus: Mode,
    #[command(flatten)]
    pub(crate) output: Output,
}

impl Default for Args {
    fn default() -> Self {
        Self {
            cases: Vec::new(),
            threads: Vec::new(),
            steps: STEPS,
            images_per_patient: 1,
            opacus: Mode::default(),
            output: Output::default(),
        }
    }
}

impl Args {
    fn cases(&self) -> Vec<Case> {
        if self.cases.is_empty() {
            vec![Case::new("small", 28, 32), Case::new("resnet18", 28, 32)]
        } else {
            self.cases.clone()
        }
    }

    fn threads(&self) -> Vec<u32> {
        if self.threads.is_empty() { default_threads() } else { self.threads.clone() }
    }
}

/// A program without and with privacy.
struct Pair {
    plain: Side,
    private: Side,
}

impl Pair {
    fn take_turn(&mut self, steps: u32, turn: usize) -> Result<()> {
        if turn.is_multiple_of(2) {
            self.plain.take_turn(steps)?;
            self.private.take_turn(steps)
        } else {
            self.private.take_turn(steps)?;
            self.plain.take_turn(steps)
        }
    }

    /// How many times longer a step takes with privacy.
    fn slow_down(&self) -> Option<Figure> {
        let (private, plain) = (Figure::of(&self.private.wall)?, Figure::of(&self.plain.wall)?);
        Some(Figure::one(private.median / plain.median))
    }
}

/// Measures every case with every number of threads.
///
/// # Errors
/// When the appliance's program is not beside this one, or a side fails.
pub(crate) fn run(args: &Args) -> Result<Vec<Report>> {
    let missing: Option<Missing> = Peer::Opacus.command().err();
    let (mut rows, mut peer_runtime) = (Vec::new(), None);
    for case in args.cases() {
        for threads in args.threads() {
            let name = case.name(threads);
            progress(format_args!("{name}, private: {} steps on each side", args.steps));
            let mut private = ours(&case, args.steps, threads)?;
            private.args(["--private", "--images-per-patient", &args.images_per_patient.to_string()]);
            let ours = Pair {
                plain: Side::start("our side", &mut ours(&case, args.steps, threads)?)?,
                private: Side::start("our private side", &mut private)?,
            };
            let theirs = match (&missing, Peer::Opacus.command(), Peer::Opacus.command()) {
                (None, Ok(plain), Ok(private)) => Some(peer(&case, args, threads, plain, private)?),
                _ => None,
            };
            if let Some(pair) = &theirs {
                peer_runtime = Some(pair.private.child.runtime().to_owned());
            }
            rows.extend(measure(&name, f64::from(case.batch), args.steps, ours, theirs)?);
        }
    }
    let mut notes = vec![
        "slow-down: the median step with privacy over the median step without; a step has the same images in all".to_owned(),
        "our noise is rounded to a grid and comes from a cryptographic generator, Opacus' from PyTorch's".to_owned(),
    ];
    notes.extend(missing.map(|missing| missing.reason));
    Ok(vec![Report {
        bench: "private-training",
        title: format!(
            "Private training, {} steps on each side in turns of {STEPS_A_TURN}, {} image{} of a patient",
            args.steps,
            args.images_per_patient,
            if args.images_per_patient == 1 { "" } else { "s" }
        ),
        ours: "medinet-training".to_owned(),
        peer: peer_runtime,
        rows,
        notes,
    }])
}

fn peer(case: &Case, args: &Args, threads: u32, plain: Command, private: Command) -> Result<Pair> {
    let mode = match args.opacus {
        Mode::Ghost => "ghost",
        Mode::Hooks => "hooks",
    };
    let mut private = theirs(private, case, args.steps, threads);
    private.args(["--private", mode]).env("PYTHONWARNINGS", "ignore");
    Ok(Pair {
        plain: Side::start(Peer::Torch.name(), &mut theirs(plain, case, args.steps, threads))?,
        private: Side::start(Peer::Opacus.name(), &mut private)?,
    })
}

fn measure(name: &str, batch: f64, steps: u32, mut ours: Pair, mut theirs: Option<Pair>) -> Result<Vec<Row>> {
    for (turn, count) in in_turns(steps, steps.div_ceil(STEPS_A_TURN)).into_iter().enumerate() {
        ours.take_turn(count, turn)?;
        if let Some(theirs) = &mut theirs {
            theirs.take_turn(count, turn)?;
        }
    }
    let row = |quantity: &str, unit, better, figure: &dyn Fn(&Pair) -> Option<Figure>| {
        Row::new(name, quantity, unit, better, figure(&ours), theirs.as_ref().and_then(figure))
    };
    let rate = |side: &Side| Figure::of(&side.wall.iter().map(|seconds| batch / seconds).collect::<Vec<_>>());
    Ok(vec![
        row("slow-down", "", Better::Lower, &|pair| pair.slow_down()),
        row("slow-down, CPU time", "", Better::Lower, &|pair| {
            Some(Figure::one(pair.private.cpu / pair.plain.cpu))
        }),
        row("private images per second", "", Better::Higher, &|pair| rate(&pair.private)),
        row("plain images per second", "", Better::Higher, &|pair| rate(&pair.plain)),
        row("private peak memory", "MB", Better::Lower, &|pair| {
            pair.private.child.peak_memory().map(|bytes| Figure::one(bytes * 1e-6))
        }),
        row("plain peak memory", "MB", Better::Lower, &|pair| {
            pair.plain.child.peak_memory().map(|bytes| Figure::one(bytes * 1e-6))
        }),
    ])
}
