//! `medinet model`: what an aggregator's registry knows of its models; also while the aggregator runs.

use crate::common::day;
use clap::Subcommand;
use medinet_store::{ModelCard, Store};
use medinet_types::{ModelVersion, TaskId};
use medinet_wire::message::SiteMetrics;
use std::io::Write;
use std::path::PathBuf;

#[derive(Subcommand)]
pub(crate) enum Command {
    /// All models of all tasks: versions, where they come from, and what sites measured of them.
    List(ListArgs),
    /// Everything that is known of one model.
    Show(ShowArgs),
}

#[derive(clap::Args)]
pub(crate) struct ListArgs {
    /// The aggregator's data folder (`data_dir` of its configuration).
    #[arg(long)]
    aggregator_data: PathBuf,
    /// Only this task.
    #[arg(long)]
    task: Option<TaskId>,
}

#[derive(clap::Args)]
pub(crate) struct ShowArgs {
    /// The aggregator's data folder (`data_dir` of its configuration).
    #[arg(long)]
    aggregator_data: PathBuf,
    /// The task.
    #[arg(long)]
    task: TaskId,
    /// The version; the newest one unless given.
    #[arg(long)]
    version: Option<u32>,
    /// Prints one JSON object in place of lines.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(command: Command, out: &mut dyn Write) -> anyhow::Result<()> {
    match command {
        Command::List(args) => list(&args, out),
        Command::Show(args) => show(&args, out),
    }
}

fn list(args: &ListArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let store = Store::open_read_only(&args.aggregator_data)?;
    let mut tasks = store.tasks()?;
    if let Some(wanted) = &args.task {
        tasks.retain(|row| row.task == *wanted);
        anyhow::ensure!(!tasks.is_empty(), "expected a task of this aggregator, got {wanted}");
    }
    for task in tasks {
        let models = store.models(&task.task)?;
        writeln!(out, "{}: {} models", task.task, models.len())?;
        for model in models {
            let card = store.model_card(&task.task, model.model.version)?;
            write!(out, "{}", lines(&card))?;
        }
    }
    Ok(())
}

fn show(args: &ShowArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let store = Store::open_read_only(&args.aggregator_data)?;
    let newest =
        || anyhow::Ok(store.models(&args.task)?.last().map_or(ModelVersion(0), |row| row.model.version));
    let version = args.version.map_or_else(newest, |version| Ok(ModelVersion(version)))?;
    let card = store.model_card(&args.task, version)?;
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&card)?)?;
        return Ok(());
    }
    write!(out, "{}\n{}", card.task, lines(&card))?;
    writeln!(out, "    digest {}", card.model.model.digest)?;
    let lineage: Vec<String> = card.lineage.iter().map(|step| step.model.model.version.to_string()).collect();
    writeln!(out, "    lineage: {}", lineage.join(" from "))?;
    if let Some(release) = &card.release {
        let index =
            release.ledger_index.map_or("not yet on the ledger".to_owned(), |i| format!("ledger record {i}"));
        writeln!(out, "    released {}, {index}", day(release.released_at))?;
    }
    Ok(())
}

/// A model in one line, and one line for each site that measured it.
fn lines(card: &ModelCard) -> String {
    let row = &card.model;
    let origin = match (&row.base, card.lineage.first()) {
        (Some(base), Some(step)) => {
            let examples: u64 = step.contributions.iter().map(|c| c.examples).sum();
            let sites: Vec<&str> = step.contributions.iter().map(|c| c.site.as_str()).collect();
            // Secure aggregation keeps each site's number from the aggregator.
            let examples = if examples == 0 { String::new() } else { format!(" ({examples} examples)") };
            format!("round {} from {} by {}{examples}", row.round, base.short(), sites.join(", "))
        }
        _ => "initial".to_owned(),
    };
    let released = if row.released { ", released" } else { "" };
    let (version, digest) = (row.model.version, row.model.digest.short());
    let mut text = format!("  version {version}  {digest}  {}  {origin}{released}\n", day(row.created_at));
    for measurement in &card.measurements {
        let metrics = measurement.metrics.as_ref().map_or("measured, kept at the site".to_owned(), metrics);
        text.push_str(&format!("    {}: {metrics}\n", measurement.site));
    }
    text
}

fn metrics(metrics: &SiteMetrics) -> String {
    let auroc = metrics.auroc.map_or("no AUROC (one class)".to_owned(), |auroc| format!("AUROC {auroc:.4}"));
    format!(
        "{auroc}, accuracy {:.4}, loss {:.4}, calibration error {:.4} on {} images",
        metrics.accuracy, metrics.loss, metrics.calibration_error, metrics.images
    )
}
