//! `medinet bench secagg`: secure aggregation beside the functions that Flower's SecAgg+ is made of, at the same sizes.

use super::child::{Child, Figures, Request};
use super::peers::Peer;
use super::report::{Better, Figure, Report, Row};
use super::secagg_server::{self, ServerLink};
use super::secagg_session::{self, Cohort};
use super::{Output, child, progress};
use anyhow::{Context as _, Result, bail, ensure};
use medinet_secagg::{Assumptions, Topology};
use std::io::Write;
use std::process::{Command, Stdio};

const RUNS: u32 = 3;
const COORDINATES: u32 = 1_000_000;
/// Sites, neighbours, threshold and quorum of the comparison.
const SITES: u16 = 100;
const NEIGHBOURS: u16 = 21;
const THRESHOLD: u16 = 12;
const QUORUM: u16 = 51;
/// Sites lost after sharing their keys.
const LOST: [u16; 2] = [0, 10];
/// Ring widths: room for the sum of 100 codes of 8 bits and, as updates are sent by default, of 4 bits.
const WIDTHS: [(u8, &str); 2] = [(15, "8-bit codes, 15-bit ring"), (11, "4-bit codes, 11-bit ring")];
/// How often Flower repeats what a site does, in each run: it is short.
const REPEATS: u32 = 5;
/// Ours alone: what no peer does in reasonable time; with as few neighbours as hold without colluders, and then with those of the default policy.
const LARGE: Cohort = Cohort {
    sites: 1000,
    neighbours: 60,
    threshold: 34,
    quorum: 551,
    bits: 14,
    coordinates: COORDINATES,
    lost: 100,
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Coordinates of a site's vector.
    #[arg(long, default_value_t = COORDINATES, value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    pub(crate) coordinates: u32,
    /// Sessions on each side, in turns.
    #[arg(long, default_value_t = RUNS, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) runs: u32,
    /// Leaves out the two sessions of 1,000 sites, which take some minutes each.
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    pub(crate) output: Output,
}

impl Default for Args {
    fn default() -> Self {
        Self { coordinates: COORDINATES, runs: RUNS, quick: false, output: Output::default() }
    }
}

/// What our side is started with.
#[derive(clap::Args)]
pub(crate) struct ChildArgs {
    #[command(flatten)]
    cohort: Cohort,
}

/// Our side: runs sessions on request.
///
/// # Errors
/// When requests cannot be read or answered.
pub(crate) fn serve(args: &ChildArgs, out: &mut dyn Write) -> Result<()> {
    child::serve("medinet-secagg", std::io::stdin().lock(), out, &mut |request| match request.task.as_str() {
        "session" => session(&args.cohort),
        other => bail!("no such task: {other:?}"),
    })
}

/// Runs a session's sites here and its server in a process that is started for it.
fn session(cohort: &Cohort) -> Result<Figures> {
    let mut server =
        command("secagg-server", cohort)?.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let (replies, requests) = (server.stdout.take(), server.stdin.take());
    let mut link = ServerLink::new(
        replies.context("a piped output is there")?,
        requests.context("a piped input is there")?,
    );
    let figures = secagg_session::run(cohort, &mut link);
    // Without its input a server that still waits for messages ends.
    drop(link);
    let ended = server.wait()?;
    let figures = figures?;
    ensure!(ended.success(), "the server ended with {ended}; see above");
    Ok(figures)
}

/// The server's side: one session.
///
/// # Errors
/// When the session fails.
pub(crate) fn serve_session(args: &ChildArgs, mut out: &mut dyn Write) -> Result<()> {
    secagg_server::serve(&args.cohort, &mut std::io::stdin().lock(), &mut out)
}

fn start(cohort: &Cohort) -> Result<Child> {
    Child::start("our side", &mut command("secagg-child", cohort)?)
}

/// This program, with a cohort.
fn command(subcommand: &str, cohort: &Cohort) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("this program's own file is gone")?);
    command.args(["bench", subcommand]);
    for (name, value) in [
        ("--sites", u32::from(cohort.sites)),
        ("--neighbours", cohort.neighbours.into()),
        ("--threshold", cohort.threshold.into()),
        ("--quorum", cohort.quorum.into()),
        ("--bits", cohort.bits.into()),
        ("--coordinates", cohort.coordinates),
        ("--lost", cohort.lost.into()),
    ] {
        command.arg(name).arg(value.to_string());
    }
    Ok(command)
}

/// Adds the figures of one more run.
fn gather(all: &mut Figures, suffix: &str, figures: Figures) {
    for (name, mut values) in figures {
        all.entry(format!("{name}{suffix}")).or_default().append(&mut values);
    }
}

/// The same cohort in the shape that sites ask for unless their policy says otherwise: a tenth may collude with a server that lies, a fifth be lost.
fn by_default(cohort: Cohort) -> Result<Cohort> {
    let Topology { neighbours, threshold, quorum } = Topology::choose(cohort.sites, &Assumptions::default())?;
    Ok(Cohort { neighbours, threshold, quorum, ..cohort })
}

/// Measures both sides, and then ours alone at 1,000 sites; gives each part to `done` when it is measured.
///
/// # Errors
/// When a session, the peer or `done` fails.
pub(crate) fn run(args: &Args, done: &mut dyn FnMut(Report) -> Result<()>) -> Result<()> {
    done(comparison(args)?)?;
    if !args.quick {
        let cohort = Cohort { coordinates: args.coordinates, ..LARGE };
        done(large(&cohort)?)?;
        done(large(&by_default(cohort)?)?)?;
    }
    Ok(())
}

fn comparison(args: &Args) -> Result<Report> {
    let (mut flower, missing) = match Peer::Flower.command() {
        Ok(mut command) => {
            command.args(
                [args.coordinates, SITES.into(), NEIGHBOURS.into(), THRESHOLD.into()].map(|n| n.to_string()),
            );
            (Some(Child::start(Peer::Flower.name(), &mut command)?), None)
        }
        Err(missing) => (None, Some(missing)),
    };
    let cohort = |bits, lost| Cohort {
        sites: SITES,
        neighbours: NEIGHBOURS,
        threshold: THRESHOLD,
        quorum: QUORUM,
        bits,
        coordinates: args.coordinates,
        lost,
    };
    let mut theirs = Figures::new();
    let mut ours: Vec<Figures> = vec![Figures::new(); WIDTHS.len()];
    let usual = by_default(cohort(WIDTHS[0].0, 0))?;
    let mut by_policy = Figures::new();
    for run in 1..=args.runs {
        progress(format_args!("{SITES} sites, {} coordinates: run {run} of {}", args.coordinates, args.runs));
        for lost in LOST {
            for ((bits, _), figures) in WIDTHS.iter().zip(&mut ours) {
                let mut child = start(&cohort(*bits, lost))?;
                gather(figures, &format!(".{lost}"), child.ask(&Request::new("session", 1))?);
            }
            let mut child = start(&Cohort { lost, ..usual })?;
            gather(&mut by_policy, &format!(".{lost}"), child.ask(&Request::new("session", 1))?);
            if let Some(flower) = &mut flower {
                // What a site does is the same whoever is lost later.
                gather(&mut theirs, ".0", flower.ask(&Request::new("share-keys", REPEATS))?);
                gather(&mut theirs, ".0", flower.ask(&Request::new("mask", REPEATS))?);
                let unmask = Request { lost: lost.into(), ..Request::new("unmask", 1) };
                gather(&mut theirs, &format!(".{lost}"), flower.ask(&unmask)?);
            }
        }
    }
    let mut rows = Vec::new();
    for ((_, name), figures) in WIDTHS.iter().zip(&ours) {
        rows.extend(compare(name, figures, flower.as_ref().map(|_| &theirs)));
    }
    rows.extend(compare(
        &format!("{}, default policy: {} neighbours", WIDTHS[0].1, usual.neighbours),
        &by_policy,
        None,
    ));
    let mut notes = vec![
        "a site's steps run on one thread on either side; the server's unmasking on all cores here, on one at Flower's: compare CPU times".to_owned(),
        "of the cipher's speed: CPU time that AES-256 alone would take for the same masks, as a share of what the step took".to_owned(),
        "neither side signs here; ours signs in use, at the price of the identity key".to_owned(),
        format!(
            "{NEIGHBOURS} neighbours stand against a server that lies and no colluders; the default policy takes a tenth of the sites for colluders and a fifth \
             for lost"
        ),
    ];
    notes.extend(missing.map(|missing| missing.reason));
    Ok(Report {
        bench: "secagg",
        title: format!(
            "Secure aggregation, {} coordinates, {SITES} sites, {NEIGHBOURS} neighbours, {} runs in turns",
            args.coordinates, args.runs
        ),
        ours: "medinet-secagg".to_owned(),
        peer: flower.as_ref().map(|child| child.runtime().to_owned()),
        rows,
        notes,
    })
}

fn compare(name: &str, ours: &Figures, theirs: Option<&Figures>) -> Vec<Row> {
    let figure = |figures: &Figures, key: &str| figures.get(key).and_then(|values| Figure::of(values));
    let row = |quantity: &str, key: &str, unit, factor: f64| {
        let ours = figure(ours, key).map(|f| f.times(factor));
        let theirs = theirs.and_then(|theirs| figure(theirs, key)).map(|f| f.times(factor));
        Row::new(name, quantity, unit, Better::Lower, ours, theirs)
    };
    let mut rows = vec![
        row("site: share keys", "share-keys.wall.0", "ms", 1e3),
        row("site: share keys, CPU", "share-keys.cpu.0", "ms", 1e3),
        row("site: mask", "mask.wall.0", "ms", 1e3),
        row("site: mask, CPU", "mask.cpu.0", "ms", 1e3),
    ];
    // Flower agrees on the pairs' keys when it masks, ours when it shares: both steps together are the same work.
    for (quantity, clock) in
        [("site: share keys and mask", "wall"), ("site: share keys and mask, CPU", "cpu")]
    {
        let both = |figures: &Figures| {
            let of = |step: &str| figure(figures, &format!("{step}.{clock}.0")).map(|f| f.median);
            Some(Figure::one(1e3 * (of("share-keys")? + of("mask")?)))
        };
        rows.push(Row::new(name, quantity, "ms", Better::Lower, both(ours), theirs.and_then(both)));
    }
    rows.push(row("site: upload", "upload.0", "bytes", 1.0));
    for lost in LOST {
        rows.push(row(&format!("server: unmask, {lost} lost"), &format!("unmask.wall.{lost}"), "s", 1.0));
        rows.push(row(&format!("server: unmask, {lost} lost, CPU"), &format!("unmask.cpu.{lost}"), "s", 1.0));
    }
    rows.extend(server_memory(name, ours, ".0"));
    rows.extend(of_cipher(name, ours, ".0"));
    rows
}

/// What the server's process held at most, and what of that is the program.
fn server_memory(name: &str, ours: &Figures, suffix: &str) -> [Row; 2] {
    [("peak memory of its process", "server.memory"), ("of that before the session", "server.memory.before")]
        .map(|(quantity, key)| {
            let figure = ours.get(&format!("{key}{suffix}")).and_then(|values| Figure::of(values));
            let figure = figure.map(|bytes| bytes.times(1e-6));
            Row::new(name, &format!("server: {quantity}"), "MB", Better::Lower, figure, None)
        })
}

/// The cipher's own speed, and how near the masks come to it.
fn of_cipher(name: &str, ours: &Figures, suffix: &str) -> Vec<Row> {
    let figure = |key: &str| ours.get(&format!("{key}{suffix}")).and_then(|values| Figure::of(values));
    let alone = |quantity: &str, unit, figure| Row::new(name, quantity, unit, Better::Higher, figure, None);
    let share = |step: &str| {
        let (limit, took) = (figure(&format!("{step}.limit"))?, figure(&format!("{step}.cpu"))?);
        Some(Figure::one(100.0 * limit.median / took.median))
    };
    vec![
        alone("cipher alone, one thread", "GB/s", figure("cipher").map(|f| f.times(1e-9))),
        alone("site: mask, of the cipher's speed", "%", share("mask")),
        alone("server: unmask, of the cipher's speed", "%", share("unmask")),
    ]
}

fn large(cohort: &Cohort) -> Result<Report> {
    progress(format_args!("{} sites, {} neighbours, {} lost", cohort.sites, cohort.neighbours, cohort.lost));
    let mut child = start(cohort)?;
    let mut ours = Figures::new();
    gather(&mut ours, "", child.ask(&Request::new("session", 1))?);
    let name = "4-bit codes, 14-bit ring";
    let row = |quantity: &str, unit, figure| Row::new(name, quantity, unit, Better::Lower, figure, None);
    let seconds = |key: &str, factor: f64| ours.get(key).and_then(|v| Figure::of(v)).map(|f| f.times(factor));
    let mut rows = vec![
        row("site: mask", "ms", seconds("mask.wall", 1e3)),
        row("site: upload", "bytes", seconds("upload", 1.0)),
        row("server: all of its work", "s", seconds("server.wall", 1.0)),
        row("server: all of its work, CPU", "s", seconds("server.cpu", 1.0)),
        row("server: unmask", "s", seconds("unmask.wall", 1.0)),
        row("server: unmask, CPU", "s", seconds("unmask.cpu", 1.0)),
    ];
    rows.extend(server_memory(name, &ours, ""));
    rows.extend(of_cipher(name, &ours, ""));
    Ok(Report {
        bench: "secagg",
        title: format!(
            "Secure aggregation, {} coordinates, {} sites, {} neighbours, {} lost",
            cohort.coordinates, cohort.sites, cohort.neighbours, cohort.lost
        ),
        ours: "medinet-secagg".to_owned(),
        peer: None,
        rows,
        notes: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_hold_the_sum() {
        for ((width, _), code) in WIDTHS.iter().zip([255u32, 15]) {
            assert!(code * u32::from(SITES) < 1 << width && code * u32::from(SITES) >= 1 << (width - 1));
        }
        assert!(15 * u32::from(LARGE.sites) < 1 << LARGE.bits);
    }

    #[test]
    fn the_default_policy_has_the_shape_of_the_threat_model() {
        let shape = |sites| {
            let cohort = by_default(Cohort { sites, ..LARGE }).expect("there is one");
            (cohort.neighbours, cohort.threshold, cohort.quorum, cohort.lost)
        };
        assert_eq!(shape(SITES), (62, 42, 56, LARGE.lost));
        assert_eq!(shape(LARGE.sites), (328, 226, 551, LARGE.lost));
    }

    #[test]
    fn both_sides_meet_in_a_row() {
        let ours = Figures::from([("mask.wall.0".to_owned(), vec![0.001, 0.003, 0.002])]);
        let theirs = Figures::from([("mask.wall.0".to_owned(), vec![0.1])]);
        let rows = compare("a ring", &ours, Some(&theirs));
        let row = |quantity: &str| rows.iter().find(|row| row.quantity == quantity).expect("a row");
        assert_eq!(row("site: mask").ours.expect("ours").median, 2.0);
        assert!((row("site: mask").ratio.expect("both") - 50.0).abs() < 1e-9);
        // Half of the two is not measured.
        assert!(row("site: share keys and mask").ours.is_none());
        assert!(compare("a ring", &ours, None).iter().all(|row| row.peer.is_none()));
    }
}
