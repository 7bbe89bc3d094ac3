//! `medinet infer`: a released model on DICOM files, on this machine alone.
//!
//! Nothing is sent anywhere, and nothing of a file's header is printed: files are named as they were on the command line.

mod input;

use crate::common::{Refused, day, ledger_key};
use anyhow::Context as _;
use input::{FileOutcome, Group};
use medinet_identity::Trust;
use medinet_inference::{Model, Prediction};
use medinet_ledger::vote::{Quorum, VoteTally};
use medinet_ledger::{ModelBundle, TrustedKeys, VerifiedModel, VoteDemand};
use medinet_types::FederationId;
use medinet_wire::secure::EnrolledVoters;
use serde_json::{Map, Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Below this probability of the most probable class a result is marked as uncertain.
const UNCERTAIN_BELOW: f32 = 0.65;

/// Runs a released model on DICOM images, on this machine alone.
///
/// The model runs only if its bundle proves, against the federation's ledger key, that this very model was released. Exit
/// status: 0 when every file was read, 1 when one was not (the others are still done), 2 when the model is refused.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// DICOM files with images, or folders with such files right in them; one line is printed for each frame. Where the model
    /// takes each slice with its neighbours, give the folder of a whole series; a multi-frame file is taken for a whole series.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// The bundle of a released model.
    #[arg(long)]
    model: PathBuf,
    /// The public key of the federation's ledger, as the aggregator writes it to ledger.pub.
    #[arg(long)]
    ledger_key: PathBuf,
    /// The federation's name.
    #[arg(long)]
    federation: FederationId,
    /// The certificates of the authorities that enrol the federation's sites (PEM): the model runs only if its bundle holds
    /// enough signed votes of enrolled sites that accept this very model.
    #[arg(long, required_unless_present = "without_votes")]
    ca: Option<PathBuf>,
    /// Takes the ledger's word for it that the model was accepted, and looks at no votes: what an aggregator that lies, or is set to let no votes decide,
    /// releases against the sites would run.
    #[arg(long, conflicts_with = "ca")]
    without_votes: bool,
    /// The authorities' revocation lists (PEM): a vote of a revoked site does not count.
    #[arg(long, requires = "ca")]
    crl: Option<PathBuf>,
    /// The least number of sites that must have accepted the model.
    #[arg(long, requires = "ca", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    min_accepting: u32,
    /// Of 1,000 sites whose votes come with the model and that accept or reject it, how many must accept.
    #[arg(long, requires = "ca", default_value_t = 500, value_parser = clap::value_parser!(u16).range(..=1000))]
    min_accept_permille: u16,
    /// Prints one JSON object in place of lines.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args, out: &mut dyn Write) -> anyhow::Result<()> {
    medinet_telemetry::hide_panic_messages();
    let trusted = TrustedKeys { ledger: ledger_key(&args.ledger_key, &args.federation)? };
    let bytes =
        std::fs::read(&args.model).with_context(|| format!("cannot read {}", args.model.display()))?;
    let refused = || Refused { bundle: args.model.clone() };
    let bundle = ModelBundle::decode(&bytes).with_context(refused)?;
    let verified = match &args.ca {
        None => bundle.verify(&trusted),
        Some(ca) => {
            let trust = Trust::load(ca, args.crl.as_deref())?;
            let voters = EnrolledVoters(trust.as_ref());
            let (min_accepting, min_accept_permille) = (args.min_accepting, args.min_accept_permille);
            let quorum = Quorum { min_accepting, min_accept_permille };
            bundle.verify_voted(&trusted, &VoteDemand { quorum, voters: &voters })
        }
    };
    let verified = verified.with_context(refused)?;
    let model = Model::load(&verified).with_context(refused)?;

    let (mut images, mut errors, mut files) = (Vec::new(), Vec::new(), 0);
    if !args.json {
        write!(out, "{}", heading(&verified))?;
    }
    for path in &args.files {
        for FileOutcome { file, frames, results, error } in predict(&model, path) {
            files += 1;
            for (index, prediction) in &results {
                if args.json {
                    images.push(image_json(&model, &file, *index, prediction));
                } else {
                    let frame =
                        if frames > 1 { format!(" frame {} of {frames}", index + 1) } else { String::new() };
                    writeln!(out, "{}{frame}: {}", file.display(), line(&model, prediction))?;
                }
            }
            errors.extend(error.map(|error| (file, error, results.is_empty())));
        }
    }
    if args.json {
        let failed: Vec<Value> = errors
            .iter()
            .map(|(file, error, _)| json!({ "file": file.to_string_lossy(), "error": error.to_string() }))
            .collect();
        let report = json!({ "model": model_json(&verified), "images": images, "errors": failed });
        writeln!(out, "{report:#}")?;
    }
    if errors.is_empty() {
        return Ok(());
    }
    // What was found must stand before what was not.
    out.flush()?;
    let list: String =
        errors.iter().map(|(file, error, _)| format!("\n  {}: {error}", file.display())).collect();
    let in_part = if errors.iter().all(|(_, _, nothing)| *nothing) { "" } else { ", or not for each frame" };
    anyhow::bail!("{} of {files} files gave no result{in_part}:{list}", errors.len())
}

/// A prediction for each frame of a file, or of the files in a folder.
fn predict(model: &Model, path: &Path) -> Vec<FileOutcome<Prediction>> {
    match Group::named(path) {
        Ok(group) => {
            group.run(model.preprocessing(), model.input_shape(), &mut |input| model.predict(&input.values))
        }
        Err(error) => vec![FileOutcome::failed(path, error)],
    }
}

fn heading(verified: &VerifiedModel) -> String {
    let votes = verified.votes().map_or_else(String::new, |votes| {
        let VoteTally { accepting, rejecting, abstaining } = votes;
        format!("  votes of sites: {accepting} accept, {rejecting} reject, {abstaining} abstain (verified)\n")
    });
    format!(
        "model {} version {}: {}\n  digest {}\n  released {}, record {} of the ledger {} (verified)\n{votes}",
        verified.spec().task,
        verified.version(),
        verified.spec().purpose,
        verified.digest(),
        day(verified.released_at()),
        verified.index(),
        verified.checkpoint().checkpoint().origin,
    )
}

fn line(model: &Model, prediction: &Prediction) -> String {
    let probabilities: Vec<String> = model
        .classes()
        .iter()
        .zip(&prediction.probabilities)
        .map(|(class, probability)| format!("{class} {probability:.4}"))
        .collect();
    let hint = if uncertain(prediction) {
        format!("; uncertain: no class reaches {UNCERTAIN_BELOW}")
    } else {
        String::new()
    };
    format!("{} ({}){hint}", model.classes()[prediction.class], probabilities.join(", "))
}

fn uncertain(prediction: &Prediction) -> bool {
    prediction.confidence() < UNCERTAIN_BELOW
}

fn model_json(verified: &VerifiedModel) -> Value {
    let checkpoint = verified.checkpoint().checkpoint();
    json!({
        "task": verified.spec().task,
        "version": verified.version(),
        "digest": verified.digest(),
        "classes": verified.spec().network.classes,
        "released_at_ms": verified.released_at().0,
        "votes": verified.votes(),
        "ledger": {
            "origin": checkpoint.origin,
            "index": verified.index(),
            "checkpoint_size": checkpoint.size,
            "checkpoint_root": checkpoint.root,
        },
    })
}

fn image_json(model: &Model, file: &Path, frame: usize, prediction: &Prediction) -> Value {
    let probabilities: Map<String, Value> = model
        .classes()
        .iter()
        .zip(&prediction.probabilities)
        .map(|(class, probability)| (class.clone(), json!(probability)))
        .collect();
    json!({
        "file": file.to_string_lossy(),
        "frame": frame + 1,
        "class": model.classes()[prediction.class],
        "probabilities": probabilities,
        "entropy": prediction.entropy,
        "uncertain": uncertain(prediction),
    })
}
