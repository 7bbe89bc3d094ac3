//! `medinet-study`: method studies on public images.

mod audit_command;

use anyhow::{Context as _, Result};
use clap::Parser;
use medinet_study::codec::{self, CodecStudy};
use medinet_study::poisoning::{self, Attack, PoisoningStudy};
use medinet_study::privacy::{self, Kind, PrivacyStudy};
use medinet_study::setup::{Setup, Source};
use medinet_study::{Channel, ClipRule, Downlink, Mean, Sgd};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Whole federations in one process, on public images: for studies of methods, never at a hospital.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Folder of a checkout, with the images.
    #[arg(long, default_value = ".")]
    repository: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// One federation, round by round.
    Run(RunArguments),
    /// Bytes that a site sends up against AUROC, codec by codec.
    Codec(CodecArguments),
    /// Attacks against defences: AUROC, accuracy and success of backdoors.
    Poisoning(PoisoningArguments),
    /// Epsilon against AUROC, for private training and for noise inside the sum.
    Privacy(PrivacyArguments),
    /// What attacks get out of models and updates; `medinet audit` starts it.
    #[command(subcommand)]
    Audit(audit_command::Command),
}

#[derive(clap::Args)]
struct PrivacyArguments {
    /// Folder for privacy.json, privacy.md and epsilon-auroc.svg. What privacy.jsonl there already holds is not run again.
    #[arg(long)]
    out: PathBuf,
    /// A minute's worth, to see that everything works.
    #[arg(long)]
    quick: bool,
    /// Runs nothing and reports what privacy.jsonl holds.
    #[arg(long)]
    report: bool,
    /// Federations at a time, each on one thread; set RAYON_NUM_THREADS=1 with it.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Data sets; all without it.
    #[arg(long, value_enum)]
    data: Vec<Source>,
    /// Seeds; 1 without it.
    #[arg(long)]
    seed: Vec<u64>,
    /// Only these mechanisms; all without it.
    #[arg(long, value_enum)]
    mechanism: Vec<Kind>,
    /// Epsilons of private training; 1, 2, 4 and 8 without it.
    #[arg(long)]
    epsilon: Vec<f64>,
    /// Only cohorts of these sizes.
    #[arg(long)]
    cohort: Vec<usize>,
    /// Measures on the validation split, to choose settings by.
    #[arg(long)]
    on_validation: bool,
    /// Learning rate of private training.
    #[arg(long)]
    private_rate: Option<f32>,
    /// Clip norm of a patient's gradient in private training.
    #[arg(long)]
    private_clip: Option<f64>,
    /// Probability with which a step of private training takes a patient.
    #[arg(long)]
    sampling_rate: Option<f64>,
    /// Steps of a round of private training.
    #[arg(long)]
    steps: Option<u64>,
    /// Rounds of private training.
    #[arg(long)]
    private_rounds: Option<u32>,
    /// Momentum of private training.
    #[arg(long)]
    private_momentum: Option<f32>,
    /// Clip norm of a site's delta under noise inside the sum.
    #[arg(long)]
    sum_clip: Option<f32>,
    /// Learning rate with noise inside the sum.
    #[arg(long)]
    sum_rate: Option<f32>,
    /// Passes over a site's images in each round with noise inside the sum.
    #[arg(long)]
    sum_epochs: Option<u32>,
    /// Rounds with noise inside the sum, and without privacy.
    #[arg(long)]
    sum_rounds: Option<u32>,
}

#[derive(clap::Args)]
struct PoisoningArguments {
    /// Folder for poisoning.json, poisoning.md and an SVG for each data set. What poisoning.jsonl there already holds is not
    /// run again.
    #[arg(long)]
    out: PathBuf,
    /// A minute's worth, to see that everything works.
    #[arg(long)]
    quick: bool,
    /// Runs nothing and reports what poisoning.jsonl holds.
    #[arg(long)]
    report: bool,
    /// Federations at a time, each on one thread; set RAYON_NUM_THREADS=1 with it.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Data sets; all without it.
    #[arg(long, value_enum)]
    data: Vec<Source>,
    /// Seeds; 1, 2 and 3 without it.
    #[arg(long)]
    seed: Vec<u64>,
    /// Only these attacks; all without it.
    #[arg(long, value_enum)]
    attack: Vec<Attack>,
    /// Numbers of attackers among ten sites; 3, 2 and 1 without it.
    #[arg(long)]
    attackers: Vec<usize>,
    /// Only defences with this name; all without it.
    #[arg(long)]
    defence: Vec<String>,
    /// Rounds; 12 without it.
    #[arg(long)]
    rounds: Option<u32>,
    /// Most images that are trained on, and tested on; all without it.
    #[arg(long)]
    head: Option<usize>,
}

#[derive(clap::Args)]
struct CodecArguments {
    /// Folder for codec.json, codec.md and codec.svg. What codec.jsonl there already holds is not run again.
    #[arg(long)]
    out: PathBuf,
    /// A minute's worth, to see that everything works.
    #[arg(long)]
    quick: bool,
    /// Runs nothing and reports what codec.jsonl holds.
    #[arg(long)]
    report: bool,
    /// Federations at a time, each on one thread; set RAYON_NUM_THREADS=1 with it.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Data sets; all without it.
    #[arg(long, value_enum)]
    data: Vec<Source>,
    /// Numbers of sites; 3 and 10 without it.
    #[arg(long)]
    cohort: Vec<usize>,
    /// Seeds; 1, 2 and 3 without it.
    #[arg(long)]
    seed: Vec<u64>,
    /// Only codecs with this name; all without it.
    #[arg(long)]
    case: Vec<String>,
}

#[derive(clap::Args)]
struct RunArguments {
    /// The data set.
    #[arg(long, value_enum, default_value = "pneumonia-mnist")]
    data: Source,
    /// Number of sites.
    #[arg(long, default_value_t = 3)]
    sites: usize,
    /// Rounds.
    #[arg(long, default_value_t = 10)]
    rounds: u32,
    /// Learning rate at the start of each round.
    #[arg(long, default_value_t = 0.03)]
    learning_rate: f32,
    /// Passes over a site's images in each round.
    #[arg(long, default_value_t = 1)]
    local_epochs: u32,
    /// float32, plain:BITS[:ef] or secure:BITS:KEPT_PERMILLE[:ef].
    #[arg(long, default_value = "float32")]
    channel: Channel,
    /// Largest L2 norm of a delta.
    #[arg(long, default_value_t = 1e6)]
    clip_norm: f32,
    /// After the first round takes the clip norm from the sites' mean norm; `clip_norm` is the first one then, and this the limit.
    #[arg(long)]
    track_clip_norm: Option<f32>,
    /// Images of a training step.
    #[arg(long, default_value_t = 16)]
    batch_size: u32,
    /// Concentration of the label skew; even shares without it.
    #[arg(long)]
    label_skew: Option<f64>,
    /// Bits of a parameter on the way down; float32 without it.
    #[arg(long)]
    downlink_bits: Option<u8>,
    /// Announces the same learning rate in every round, rather than one that falls to a tenth.
    #[arg(long)]
    constant_rate: bool,
    /// Channels of the network's first stage, a multiple of 8.
    #[arg(long, default_value_t = 16)]
    width: u32,
    /// Seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Sites that train at the same time.
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    match &arguments.command {
        Command::Run(run) => one(&arguments.repository, run),
        Command::Codec(study) => codec(&arguments.repository, study),
        Command::Poisoning(study) => poisoning(&arguments.repository, study),
        Command::Privacy(study) => privacy(&arguments.repository, study),
        Command::Audit(audit) => audit_command::run(&arguments.repository, audit),
    }
}

fn one(repository: &Path, arguments: &RunArguments) -> Result<()> {
    let data = arguments.data.read(repository)?;
    let mut plan = Setup::plan(arguments.learning_rate);
    plan.local_epochs = arguments.local_epochs;
    plan.batch_size = arguments.batch_size;
    let setup = Setup {
        network: Setup::network(data.test.shape(), arguments.width),
        plan: plan.clone(),
        sites: arguments.sites,
        label_skew: arguments.label_skew,
        rounds: arguments.rounds,
        seed: arguments.seed,
    };
    let training = Sgd { plan, decay_rounds: if arguments.constant_rate { 0 } else { arguments.rounds } };
    let mut federation = setup.federation(&data, &training, &Mean)?;
    let largest = federation.sites.iter().map(|site| site.images.len()).max().unwrap_or(1);
    federation.channel =
        arguments.channel.with_clip_norm(arguments.clip_norm).with_reference(u32::try_from(largest)?);
    federation.threads = arguments.threads;
    if let Some(largest) = arguments.track_clip_norm {
        federation.clip = ClipRule::Tracking { largest };
    }
    if let Some(bits) = arguments.downlink_bits {
        federation.downlink = Downlink::Delta { bits };
    }
    let mut out = std::io::stdout().lock();
    let mut written = Ok(());
    federation.run(&mut |round| {
        let largest = round.delta_norms.iter().copied().fold(0.0f32, f32::max);
        let mean = round.delta_norms.iter().sum::<f32>() / round.delta_norms.len() as f32;
        let line = writeln!(
            out,
            "round {:>3}  AUROC {:.4} ({:.4} to {:.4})  accuracy {:.3}  loss {:.4}  norm mean {mean:.3} largest {largest:.3} \
             of the mean {:.3}  clip {:.3}  owed {:.3}  up {} B  down {} B",
            round.round,
            round.figures.auroc.estimate,
            round.figures.auroc.low,
            round.figures.auroc.high,
            round.figures.accuracy.estimate,
            round.training_loss,
            round.mean_norm,
            round.clip_norm,
            round.residual_norm,
            round.bytes_up,
            round.bytes_down,
        );
        if written.is_ok() {
            written = line;
        }
    })?;
    Ok(written?)
}

fn codec(repository: &Path, arguments: &CodecArguments) -> Result<()> {
    let mut study = if arguments.quick { CodecStudy::quick() } else { CodecStudy::full() };
    if !arguments.data.is_empty() {
        study.sources.clone_from(&arguments.data);
    }
    if !arguments.cohort.is_empty() {
        study.cohorts.clone_from(&arguments.cohort);
    }
    if !arguments.seed.is_empty() {
        study.seeds.clone_from(&arguments.seed);
    }
    if !arguments.case.is_empty() {
        study.cases.retain(|case| arguments.case.contains(&case.name()));
    }
    let out = &arguments.out;
    let (done, log) = kept::<codec::Outcome>(out, "codec.jsonl")?;
    let total = study.federations();
    if arguments.report {
        return report(out, &study, &done);
    }
    let outcomes = study.run(repository, arguments.threads, &done, &|outcome| {
        keep(
            &log,
            outcome,
            &format!(
                "of {total}: {}, {} sites, seed {}, {}: AUROC {:.4}, {:.1} times smaller up",
                outcome.source.title(),
                outcome.sites,
                outcome.seed,
                outcome.case.name(),
                outcome.auroc,
                4.0 * outcome.parameters as f64 / outcome.bytes_up,
            ),
        );
    })?;
    report(out, &study, &outcomes)
}

/// Writes what the study gave, and shows its tables.
fn report(out: &Path, study: &CodecStudy, outcomes: &[codec::Outcome]) -> Result<()> {
    std::fs::write(
        out.join("codec.json"),
        serde_json::to_vec_pretty(&serde_json::json!({ "study": study, "outcomes": outcomes }))?,
    )?;
    std::fs::write(out.join("codec.svg"), codec::curve(outcomes)?)?;
    let tables = codec::markdown(outcomes);
    std::fs::write(out.join("codec.md"), &tables)?;
    Ok(write!(std::io::stdout().lock(), "{tables}")?)
}

fn poisoning(repository: &Path, arguments: &PoisoningArguments) -> Result<()> {
    let mut study = if arguments.quick { PoisoningStudy::quick() } else { PoisoningStudy::full() };
    if !arguments.data.is_empty() {
        study.sources.clone_from(&arguments.data);
    }
    if !arguments.seed.is_empty() {
        study.seeds.clone_from(&arguments.seed);
    }
    if !arguments.attack.is_empty() {
        study.attacks = arguments.attack.iter().copied().filter(|attack| *attack != Attack::None).collect();
    }
    if !arguments.attackers.is_empty() {
        study.attackers.clone_from(&arguments.attackers);
    }
    if !arguments.defence.is_empty() {
        study.defences.retain(|defence| arguments.defence.contains(&defence.name()));
    }
    study.rounds = arguments.rounds.unwrap_or(study.rounds);
    study.head = arguments.head.or(study.head);
    let out = &arguments.out;
    let (mut outcomes, log) = kept::<poisoning::Outcome>(out, "poisoning.jsonl")?;
    let total = study.cases().len();
    if !arguments.report {
        outcomes = study.run(repository, arguments.threads, &outcomes, &|outcome| {
            let title = outcome.case.title();
            let backdoor = 100.0 * outcome.backdoor.estimate;
            keep(
                &log,
                outcome,
                &format!("of {total}: {title}: AUROC {:.4}, backdoor {backdoor:.0}%", outcome.auroc),
            );
        })?;
    }
    let outcomes = study.of(&outcomes);
    std::fs::write(
        out.join("poisoning.json"),
        serde_json::to_vec_pretty(&serde_json::json!({ "study": study, "outcomes": outcomes }))?,
    )?;
    for &source in &study.sources {
        if outcomes.iter().any(|outcome| outcome.case.source == source) {
            let name =
                format!("poisoning-{}.svg", serde_json::to_value(source)?.as_str().unwrap_or_default());
            std::fs::write(out.join(name), poisoning::heat_map(&outcomes, source)?)?;
        }
    }
    let tables = poisoning::markdown(&outcomes);
    std::fs::write(out.join("poisoning.md"), &tables)?;
    Ok(write!(std::io::stdout().lock(), "{tables}")?)
}

fn privacy(repository: &Path, arguments: &PrivacyArguments) -> Result<()> {
    let mut study = if arguments.quick { PrivacyStudy::quick() } else { PrivacyStudy::full() };
    if !arguments.data.is_empty() {
        study.sources.clone_from(&arguments.data);
    }
    if !arguments.seed.is_empty() {
        study.seeds.clone_from(&arguments.seed);
    }
    let wanted = |case: &privacy::Case| {
        let kind = arguments.mechanism.is_empty() || arguments.mechanism.contains(&case.mechanism.kind());
        let cohort = arguments.cohort.is_empty() || arguments.cohort.contains(&case.sites);
        kind && cohort
    };
    if !arguments.epsilon.is_empty() {
        study.train_at(&arguments.epsilon);
    }
    study.cases.retain(wanted);
    study.on_validation = arguments.on_validation;
    let private = &mut study.private;
    private.learning_rate = arguments.private_rate.unwrap_or(private.learning_rate);
    private.clip_norm = arguments.private_clip.unwrap_or(private.clip_norm);
    private.sampling_rate = arguments.sampling_rate.unwrap_or(private.sampling_rate);
    private.steps = arguments.steps.unwrap_or(private.steps);
    private.rounds = arguments.private_rounds.unwrap_or(private.rounds);
    private.momentum = arguments.private_momentum.unwrap_or(private.momentum);
    study.noisy.clip_norm = arguments.sum_clip.unwrap_or(study.noisy.clip_norm);
    study.noisy.learning_rate = arguments.sum_rate.unwrap_or(study.noisy.learning_rate);
    study.noisy.local_epochs = arguments.sum_epochs.unwrap_or(study.noisy.local_epochs);
    study.noisy.rounds = arguments.sum_rounds.unwrap_or(study.noisy.rounds);
    let out = &arguments.out;
    let (mut outcomes, log) = kept::<privacy::Outcome>(out, "privacy.jsonl")?;
    let total = study.federations();
    if !arguments.report {
        outcomes = study.run(repository, arguments.threads, &outcomes, &|outcome| {
            let epsilon = outcome.epsilon.map_or("infinite".to_owned(), |epsilon| format!("{epsilon:.3}"));
            keep(
                &log,
                outcome,
                &format!(
                    "of {total}: {}, {:?}, seed {}: epsilon {epsilon}, AUROC {:.4}",
                    outcome.source.title(),
                    outcome.case,
                    outcome.seed,
                    outcome.auroc
                ),
            );
        })?;
    }
    std::fs::write(
        out.join("privacy.json"),
        serde_json::to_vec_pretty(&serde_json::json!({ "study": study, "outcomes": outcomes }))?,
    )?;
    std::fs::write(out.join("epsilon-auroc.svg"), privacy::curve(&outcomes)?)?;
    let tables = privacy::markdown(&outcomes);
    std::fs::write(out.join("privacy.md"), &tables)?;
    Ok(write!(std::io::stdout().lock(), "{tables}")?)
}

type Log = Mutex<std::fs::File>;

/// What the file of lines in `out` holds, and the file, to go on with.
fn kept<T: DeserializeOwned>(out: &Path, name: &str) -> Result<(Vec<T>, Log)> {
    std::fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    let path = out.join(name);
    let text = if path.exists() {
        std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?
    } else {
        String::new()
    };
    let log = OpenOptions::new().create(true).append(true).open(&path)?;
    // A line that was cut off by the end of the program is run again.
    Ok((text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect(), Mutex::new(log)))
}

/// Adds an outcome to the file of lines, and says so.
fn keep(log: &Log, outcome: &impl Serialize, said: &str) {
    let line = serde_json::to_string(outcome).unwrap_or_default();
    if let Ok(mut log) = log.lock() {
        // What cannot be kept is run again; what cannot be shown is in the report.
        let _ = writeln!(log, "{line}");
        let _ = writeln!(std::io::stderr(), "{said}");
    }
}
