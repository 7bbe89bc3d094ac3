//! `medinet audit`: what attacks get out of a model and of updates. The work is `medinet-study`'s, which has the training framework and this
//! program has not; it lies beside this one.

use crate::demo::repository;
use anyhow::{Context as _, Result, ensure};
use clap::Subcommand;
use medinet_lab::federation::program;
use medinet_types::FederationId;
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};

/// The program that does the work.
const STUDY: &str = "medinet-study";

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Membership inference (loss threshold, LiRA) against a promoted model, and gradient inversion against updates.
    ///
    /// Without --model a federation on public chest X-rays is trained as the product does, and attacked: this says what the method gives away, on data
    /// of that kind. With --model a released model is attacked with a site's own images: this says what that model gives away of these patients.
    ///
    /// A bundle does not say how its model was trained: give --rounds and --local-epochs as they were. Even so shadow models are trained by
    /// another recipe than the model (in one place, on half of the images, in float32, without augmentation or weight decay), so a leak may be
    /// missed, also where the control's is found.
    Privacy(Box<Privacy>),
}

#[derive(clap::Args)]
pub(crate) struct Privacy {
    /// Folder for the report, audit.html, and all figures, audit.json.
    #[arg(long, default_value = ".medinet/audit")]
    out: PathBuf,
    /// Half a minute's worth, to see that everything works: its figures mean little.
    #[arg(long)]
    quick: bool,
    /// Trainings and inversions at a time; the result does not depend on it.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    threads: u32,
    /// Compares with private training (DP-SGD) of this epsilon over all rounds at delta 1e-5; repeat it for several [default: 8; 0: none].
    #[arg(long, value_name = "EPSILON")]
    private: Vec<f64>,
    /// Shadow models of each variant [default: 16].
    #[arg(long, value_parser = clap::value_parser!(u32).range(2..=256))]
    shadows: Option<u32>,
    /// Queries of each image: as it is, and shifted by a pixel [default: 3].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=5))]
    queries: Option<u32>,
    /// Public images: pneumonia-mnist, kermany28 or kermany64 [default: pneumonia-mnist].
    #[arg(long, conflicts_with = "model")]
    data: Option<String>,
    /// Sites of the federation that is attacked [default: 3].
    #[arg(long, conflicts_with = "model", value_parser = clap::value_parser!(u32).range(1..=100))]
    sites: Option<u32>,
    /// Its rounds; with --model those of the shadow models, best as many as the model's [default: 12].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,
    /// Passes over the images in a round; with --model those of the shadow models, best as many as the model's [default: 1].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=25))]
    local_epochs: Option<u32>,
    /// Leaves out membership inference.
    #[arg(long, conflicts_with_all = ["no_inversion", "model"])]
    no_membership: bool,
    /// Leaves out inversion of updates.
    #[arg(long)]
    no_inversion: bool,
    /// Seed of everything but private training's noise, which nobody may foretell [default: 1].
    #[arg(long)]
    seed: Option<u64>,
    /// Attacks this released model: its bundle.
    #[arg(long, requires_all = ["ledger_key", "federation", "members", "others"])]
    model: Option<PathBuf>,
    /// The public key of the federation's ledger, as the aggregator writes it to ledger.pub.
    #[arg(long, requires = "model")]
    ledger_key: Option<PathBuf>,
    /// The federation's name.
    #[arg(long, requires = "model")]
    federation: Option<FederationId>,
    /// Folder with a folder for each class, with DICOM files of patients whom the model was trained on.
    #[arg(long, requires = "model", value_name = "FOLDER")]
    members: Option<PathBuf>,
    /// The same of patients whom it was not trained on; best of the same scanners and the same years, or differences of these will look like a leak.
    #[arg(long, requires = "model", value_name = "FOLDER")]
    others: Option<PathBuf>,
}

pub(crate) fn run(command: &Command, out: &mut dyn Write) -> Result<()> {
    let Command::Privacy(args) = command;
    let folder = std::path::absolute(&args.out)
        .with_context(|| format!("expected a folder for the report, got {}", args.out.display()))?;
    let mut process = Process::new(program(STUDY)?);
    if args.model.is_none() {
        process.arg("--repository").arg(repository()?);
    }
    process.args(arguments(args, &folder));
    if std::env::var_os("RAYON_NUM_THREADS").is_none() {
        // Each of the trainings keeps to one core, so that --threads means cores.
        process.env("RAYON_NUM_THREADS", "1");
    }
    out.flush()?;
    // Its progress is ours: it goes to the same standard error.
    let mut child = process
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {STUDY}"))?;
    let shown = match child.stdout.take() {
        Some(mut from) => std::io::copy(&mut from, out).map(|_| ()),
        None => Ok(()),
    };
    // Waited for in any case: a child that nobody waits for stays in the table of processes.
    let status = child.wait().with_context(|| format!("{STUDY} is gone"))?;
    shown.context("cannot pass on the result")?;
    ensure!(status.success(), "{STUDY} ended with {status}; what it says stands above");
    writeln!(
        out,
        "\nreport   {}\nfigures  {}",
        folder.join("audit.html").display(),
        folder.join("audit.json").display()
    )?;
    Ok(())
}

/// What `medinet-study` is started with, `--repository` aside.
fn arguments(args: &Privacy, folder: &Path) -> Vec<OsString> {
    let mut all: Vec<OsString> = ["audit", "privacy", "--out"].map(OsString::from).to_vec();
    all.push(folder.into());
    all.extend(["--threads".into(), args.threads.to_string().into()]);
    let flags = [
        ("--quick", args.quick),
        ("--no-membership", args.no_membership),
        ("--no-inversion", args.no_inversion),
    ];
    all.extend(flags.into_iter().filter(|(_, set)| *set).map(|(flag, _)| flag.into()));
    let mut option = |name: &str, value: Option<OsString>| {
        if let Some(value) = value {
            all.extend([name.into(), value]);
        }
    };
    for epsilon in &args.private {
        option("--private", Some(epsilon.to_string().into()));
    }
    let number = |value: Option<u32>| value.map(|value| value.to_string().into());
    option("--shadows", number(args.shadows));
    option("--queries", number(args.queries));
    option("--data", args.data.clone().map(Into::into));
    option("--sites", number(args.sites));
    option("--rounds", number(args.rounds));
    option("--local-epochs", number(args.local_epochs));
    option("--seed", args.seed.map(|seed| seed.to_string().into()));
    let path = |path: &Option<PathBuf>| path.clone().map(PathBuf::into_os_string);
    option("--model", path(&args.model));
    option("--ledger-key", path(&args.ledger_key));
    option("--federation", args.federation.as_ref().map(|name| name.to_string().into()));
    option("--members", path(&args.members));
    option("--others", path(&args.others));
    all
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

    fn parse(line: &str) -> Result<String, String> {
        let cli = Cli::try_parse_from(std::iter::once("audit").chain(line.split_whitespace()))
            .map_err(|error| error.to_string())?;
        let Command::Privacy(args) = cli.command;
        let all = arguments(&args, Path::new("/out"));
        Ok(all.iter().map(|argument| argument.to_string_lossy()).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn arguments_are_passed_on() {
        assert_eq!(parse("privacy").unwrap(), "audit privacy --out /out --threads 1");
        assert_eq!(
            parse("privacy --quick --no-inversion --private 2 --private 8.5 --shadows 4 --seed 3").unwrap(),
            "audit privacy --out /out --threads 1 --quick --no-inversion --private 2 --private 8.5 --shadows 4 --seed 3"
        );
        let released = "--model m --ledger-key k --federation demo --members a --others b";
        assert_eq!(
            parse(&format!("privacy {released}")).unwrap(),
            format!("audit privacy --out /out --threads 1 {released}")
        );
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (line, why) in [
            ("privacy --shadows 1", "1 is not in"),
            ("privacy --model m", "--ledger-key"),
            ("privacy --members a", "--model"),
            ("privacy --no-membership --no-inversion", "cannot be used with"),
            ("privacy --queries 6", "6 is not in"),
        ] {
            let error = parse(line).expect_err(line);
            assert!(error.contains(why), "{line}: {error}");
        }
    }
}
