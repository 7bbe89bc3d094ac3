//! `medinet demo`: hospitals with a PACS each, a federation between them, and an honest comparison with what each
//! hospital alone would have reached. The real programs as separate processes, on this machine and on loopback alone.

mod baselines;
mod follow;
mod loss;
mod outcome;
mod studies;
mod table;

pub(crate) use outcome::{LedgerCheck, ModelResult, Outcome};
pub(crate) use studies::repository;
pub(crate) use table::{
    device_notes, devices as device_rows, ledger as ledger_line, loss as loss_line, megabytes,
    models as model_rows, phases as phase_rows, traffic as traffic_rows,
};

use crate::report;
use anyhow::{Context as _, Result, bail, ensure};
use baselines::Scoring;
use loss::Loss;
use medinet_lab::orthanc::Orthanc;
use medinet_lab::{BrokerKind, Federation, FederationPlan, SiteDevice, SitePlan, Source, TaskKind, Updates};
use medinet_ledger::directory::read_log;
use medinet_ledger::{ModelBundle, TrustedKeys, verify_log};
use medinet_model::ParameterLayout;
use medinet_types::{ModelDigest, SiteId};
use outcome::SiteCompute;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A folder that holds this file is ours to remove.
const MARKER: &str = ".medinet-demo";
/// Passes over the data in each round.
const LOCAL_EPOCHS: u32 = 2;

/// Arguments of `medinet demo`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Hospitals.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
    sites: u32,
    /// Training rounds.
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Decides studies, initial parameters and shuffling: the same seed gives the same model on CPUs with the same vector instructions.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u64).range(..=1_000_000_000))]
    seed: u64,
    /// Let the aggregator read each hospital's update; by default it learns their sum, the number of images and the mean norm.
    #[arg(long)]
    plain: bool,
    /// Bits of each coordinate that a hospital sends, before the sum: 1 to 8; with --plain 32 sends float32
    /// [default: 2 of every second coordinate, with --plain 8 of each].
    #[arg(long, value_parser = bits)]
    bits: Option<u8>,
    /// Kill the last hospital's appliance in the middle of a round's secure aggregation, and start it again when the round is over; needs
    /// four hospitals or more. The model then also depends on the moment.
    #[arg(long, conflicts_with = "plain")]
    lose_site: bool,
    /// Train on a GPU where one is there.
    #[arg(long)]
    gpu: bool,
    /// Keep studies, archives and the hospitals' data; they are removed at the end otherwise.
    #[arg(long)]
    keep: bool,
    /// Where everything goes; an earlier demo there is replaced.
    #[arg(long, default_value = ".medinet/demo")]
    out: PathBuf,
}

fn bits(text: &str) -> Result<u8, String> {
    match text.parse() {
        Ok(bits @ (1..=8 | 32)) => Ok(bits),
        _ => Err("expected 1 to 8, or 32".to_owned()),
    }
}

/// The phases, with their times.
struct Clock {
    phases: Vec<(&'static str, Duration)>,
    since: Instant,
}

impl Clock {
    fn start() -> Self {
        Self { phases: Vec::new(), since: Instant::now() }
    }

    fn end(&mut self, phase: &'static str) {
        self.phases.push((phase, self.since.elapsed()));
        self.since = Instant::now();
    }
}

/// Runs the demo.
pub(crate) fn run(args: &Args, out: &mut dyn Write) -> Result<()> {
    medinet_identity::install_default_provider();
    let folder = fresh_folder(&args.out)?;
    let logs = folder.join("logs");
    fs::create_dir(&logs).with_context(|| format!("cannot make {}", logs.display()))?;
    let outcome = federate(args, &folder, &logs, out);
    // Also of a demo that failed, so that what the error names can be read.
    let gathered = gather_logs(&folder, &logs);
    let outcome = outcome?;
    gathered?;
    write!(out, "{}", table::text(&outcome))?;
    let page = folder.join("report.html");
    fs::write(&page, report::html(&outcome)?).with_context(|| format!("cannot write {}", page.display()))?;
    if !args.keep {
        for part in ["studies", "pacs", "federation", "baselines"] {
            let part = folder.join(part);
            fs::remove_dir_all(&part).with_context(|| format!("cannot remove {}", part.display()))?;
        }
    }
    farewell(&folder, &page, out)?;
    ensure!(outcome.ledger.verified, "the ledger does not verify:\n{}", outcome.ledger.text);
    Ok(())
}

fn say(out: &mut dyn Write, text: &str) -> Result<()> {
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}

fn federate(args: &Args, folder: &Path, logs: &Path, out: &mut dyn Write) -> Result<Outcome> {
    let mut clock = Clock::start();
    let count = usize::try_from(args.sites)?;
    let names: Vec<String> = (1..=count).map(|number| format!("hospital-{number}")).collect();
    say(out, &format!("making the studies of {count} hospitals from public chest X-rays"))?;
    studies::make(&folder.join("studies"), count, args.seed, &logs.join("make-studies.log"))?;
    clock.end("making the studies");
    say(out, "filling a PACS for each hospital over DICOMweb (STOW-RS)")?;
    let archives = studies::archives(folder, &names)?;
    clock.end("filling the archives");
    say(
        out,
        if args.plain {
            "starting broker, aggregator and one appliance per hospital; a hospital sends updates, rounded figures, votes, counts and health, and the aggregator reads each update"
        } else {
            "starting broker, aggregator and one appliance per hospital; a hospital sends masked updates, rounded figures, votes, counts and health, and from the updates the aggregator learns their sum, the number of images and the mean norm"
        },
    )?;
    let mut federation = Federation::prepare(plan(args, folder, &names, &archives)?)?;
    let mut loss = args.lose_site.then(|| Loss::of(count, args.rounds));
    let seen = follow::run(&mut federation, loss.as_mut(), out)?;
    federation.stop()?;
    drop(archives);
    clock.phases.push(("pulling, de-identifying, preparing", seen.intake));
    clock.phases.push(("training rounds", seen.rounds));
    clock.phases.push(("proving the released model", seen.release));
    clock.since = Instant::now();

    say(out, "verifying the ledger")?;
    let ledger = keep_results(&federation, folder)?;
    clock.end("verifying the ledger");
    say(out, "training each hospital alone, and all data pooled, with as many passes over the data")?;
    let trained = baselines::train(&federation, &folder.join("baselines"), logs)?;
    clock.end("training the baselines");
    let scores = folder.join("scores.json");
    let scoring = Scoring {
        test_set: &folder.join("studies/common-test"),
        baselines: &trained,
        bundle: &folder.join("model.bundle"),
        out: &scores,
        log: &logs.join("score.log"),
    };
    baselines::score(&federation, &scoring)?;
    clock.end("scoring the common test set");
    let (models, images) = outcome::measure(&scores, &names)?;
    let lost = loss.as_ref().map(|loss| loss.told_by_ledger(&federation)).transpose()?.flatten();
    Ok(Outcome {
        rounds: args.rounds,
        seed: args.seed,
        digest: released_model(&federation)?,
        images,
        models,
        traffic: seen.traffic,
        compute: compute(&federation, &names)?,
        parameters: ParameterLayout::of(&TaskKind::Demo.spec().network)?.len(),
        auroc_by_round: seen.auroc_by_round,
        lost,
        phases: clock.phases,
        ledger,
    })
}

fn plan(args: &Args, folder: &Path, names: &[String], archives: &[Orthanc]) -> Result<FederationPlan> {
    let sites = names.iter().zip(archives).enumerate().map(|(index, (name, archive))| {
        Ok(SitePlan {
            id: SiteId::new(name.as_str())?,
            source: Source::Dicomweb {
                url: archive.url.clone(),
                user: archive.user.clone(),
                password_file: archive.password_file.clone(),
            },
            labels_csv: folder.join(format!("studies/site-{}/labels.csv", index + 1)),
        })
    });
    Ok(FederationPlan {
        folder: folder.join("federation"),
        seed: args.seed,
        rounds: args.rounds,
        local_epochs: LOCAL_EPOCHS,
        updates: updates(args, names.len())?,
        sites: sites.collect::<Result<_>>()?,
        task: TaskKind::Demo,
        broker: BrokerKind::Own,
        gpu: args.gpu,
        privacy: None,
    })
}

/// What each hospital computed on.
fn compute(federation: &Federation, names: &[String]) -> Result<Vec<SiteCompute>> {
    let of = |(index, name): (usize, &String)| {
        let SiteDevice { name: device, note } = federation.site_device(index)?;
        Ok(SiteCompute { site: name.clone(), device, note })
    };
    names.iter().enumerate().map(of).collect()
}

/// How updates become one.
fn updates(args: &Args, sites: usize) -> Result<Updates> {
    // Where every hospital stays in all rounds the same seed gives the same model.
    let losses = u16::from(args.lose_site);
    match (args.plain, args.bits) {
        (false, _) if args.lose_site && sites < loss::FEWEST => {
            bail!(
                "--lose-site needs {} hospitals or more, got {sites}: give --sites {}",
                loss::FEWEST,
                loss::FEWEST
            )
        }
        (true, bits) => Ok(Updates::Plain { bits: bits.unwrap_or(8) }),
        (false, Some(32)) => bail!("secure aggregation sums 1 to 8 bits; float32 needs --plain"),
        (false, _) if sites < 2 => {
            bail!("secure aggregation needs two hospitals or more: give --sites 2, or --plain")
        }
        (false, Some(bits)) => Ok(Updates::Secure { bits, kept_permille: 1000, losses }),
        // A sixteenth of float32 for three hospitals; more of them need a wider sum.
        (false, None) => {
            let kept_permille = if sites <= 3 { 495 } else { 390 };
            Ok(Updates::Secure { bits: 2, kept_permille, losses })
        }
    }
}

/// Copies what outlives the demo out of the parties' folders, and verifies the copy of the ledger.
fn keep_results(federation: &Federation, folder: &Path) -> Result<LedgerCheck> {
    let ledger = folder.join("ledger");
    copy_folder(&federation.aggregator_data().join("ledger"), &ledger)?;
    copy(&federation.plan().folder.join("aggregator/ledger.pub"), &folder.join("ledger.pub"))?;
    copy(&federation.site_release(0), &folder.join("model.bundle"))?;
    copy(&federation.site_folder(0).join("ca.pem"), &folder.join("ca.pem"))?;
    let example = studies::dicom_files(&folder.join("studies/common-test"))?;
    let example = example.first().context("the common test set is empty")?;
    copy(example, &folder.join("example.dcm"))?;
    let files =
        read_log(&ledger).with_context(|| format!("cannot read the ledger at {}", ledger.display()))?;
    let report = verify_log(&files, federation.ledger_key(), None);
    Ok(LedgerCheck { verified: report.is_verified(), entries: report.entries, text: report.to_string() })
}

/// Digest of the model that the hospitals proved and kept.
fn released_model(federation: &Federation) -> Result<ModelDigest> {
    let bundle = fs::read(federation.site_release(0)).context("cannot read the released model")?;
    let trusted = TrustedKeys { ledger: federation.ledger_key().clone() };
    Ok(ModelBundle::decode(&bundle)?.verify(&trusted)?.digest())
}

/// Makes the folder, after removing an earlier demo of ours; gives its absolute path.
fn fresh_folder(path: &Path) -> Result<PathBuf> {
    if path.exists() {
        let empty =
            fs::read_dir(path).with_context(|| format!("cannot list {}", path.display()))?.next().is_none();
        if path.join(MARKER).exists() {
            fs::remove_dir_all(path).with_context(|| format!("cannot remove {}", path.display()))?;
        } else if !empty {
            bail!(
                "{} holds something other than an earlier demo: name another folder with --out",
                path.display()
            );
        }
    }
    crate::common::private_folder(path)?;
    fs::write(path.join(MARKER), "made by `medinet demo`, which removes this folder when it runs again\n")?;
    fs::canonicalize(path).with_context(|| format!("cannot find {}", path.display()))
}

/// Copies the logs of the federation and of the archives beside those of the demo's own steps.
fn gather_logs(folder: &Path, logs: &Path) -> Result<()> {
    let federation = folder.join("federation");
    if federation.exists() {
        for entry in fs::read_dir(&federation)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "log")
                && let Some(name) = path.file_name()
            {
                copy(&path, &logs.join(name))?;
            }
        }
    }
    let archives = folder.join("pacs");
    if archives.exists() {
        for entry in fs::read_dir(&archives)? {
            let entry = entry?;
            let log = entry.path().join("orthanc.log");
            if log.exists() {
                copy(&log, &logs.join(format!("pacs-{}.log", entry.file_name().to_string_lossy())))?;
            }
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot list {}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else {
            copy(&entry.path(), &target)?;
        }
    }
    Ok(())
}

fn farewell(folder: &Path, page: &Path, out: &mut dyn Write) -> Result<()> {
    let at = |name: &str| folder.join(name).display().to_string();
    let program = std::env::current_exe()?.display().to_string();
    writeln!(out, "report: {}\n", page.display())?;
    writeln!(out, "Check the ledger yourself, from its files and the public key alone:")?;
    writeln!(
        out,
        "  {program} ledger verify --federation chest --key {} {}",
        at("ledger.pub"),
        at("ledger")
    )?;
    writeln!(out, "Run the released model on one X-ray; the model and the sites' votes are verified first:")?;
    writeln!(
        out,
        "  {program} infer --federation chest --ledger-key {} --ca {} --model {} {}",
        at("ledger.pub"),
        at("ca.pem"),
        at("model.bundle"),
        at("example.dcm")
    )?;
    Ok(out.flush()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_others_is_left_alone_and_an_earlier_demo_replaced() {
        let parent = tempfile::tempdir().unwrap();
        let foreign = parent.path().join("theirs");
        fs::create_dir(&foreign).unwrap();
        fs::write(foreign.join("thesis.tex"), b"years of work").unwrap();
        let error = fresh_folder(&foreign).unwrap_err();
        assert!(error.to_string().contains("--out"), "{error}");
        assert!(foreign.join("thesis.tex").exists());

        let ours = parent.path().join("new/demo");
        let made = fresh_folder(&ours).unwrap();
        assert!(made.is_absolute());
        fs::write(made.join("old"), b"").unwrap();
        fresh_folder(&ours).unwrap();
        assert!(!made.join("old").exists() && made.join(MARKER).exists());
    }

    #[test]
    fn folders_are_copied_whole() {
        let parent = tempfile::tempdir().unwrap();
        let from = parent.path().join("from");
        fs::create_dir_all(from.join("checkpoints")).unwrap();
        fs::write(from.join("checkpoints/1"), b"note").unwrap();
        copy_folder(&from, &parent.path().join("to")).unwrap();
        assert_eq!(fs::read(parent.path().join("to/checkpoints/1")).unwrap(), b"note");
    }
}
