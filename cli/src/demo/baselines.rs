//! What each hospital alone, and all data in one place, would have given, with as many passes over the data as the
//! federation made; and the scores of all models on the common test set.

use super::outcome::{FEDERATION, POOLED, alone};
use anyhow::{Context as _, Result, bail, ensure};
use indicatif::ProgressBar;
use medinet_lab::Federation;
use medinet_lab::federation::program;
use medinet_lab::process::Running;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Trainings at the same time: more than one, for a single one leaves cores idle; few, for each needs memory.
const AT_ONCE: usize = 2;

/// Trained parameters under the name by which they are scored.
pub(crate) struct Baseline {
    /// The name.
    pub(crate) name: String,
    /// The parameters.
    pub(crate) file: PathBuf,
}

fn appliance_lab(command: &str) -> Result<Command> {
    let mut lab = Command::new(program("medinet-appliance")?);
    // Several run side by side; one thread each also gives the same bits on every machine.
    lab.args(["lab", command]).env("RAYON_NUM_THREADS", "1");
    Ok(lab)
}

/// Trains every hospital alone and all pooled; the federation's processes must have ended.
pub(crate) fn train(federation: &Federation, folder: &Path, logs: &Path) -> Result<Vec<Baseline>> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let plan = federation.plan();
    let plan_file = folder.join("plan.toml");
    let training = federation.training_plan(plan.rounds * plan.local_epochs);
    fs::write(&plan_file, toml::to_string(&training)?)?;
    let sites = plan.sites.len();
    // The pooled one first: it takes the longest.
    let mut jobs = vec![(POOLED.to_owned(), (0..sites).collect::<Vec<_>>())];
    jobs.extend((0..sites).map(|index| (alone(index), vec![index])));
    jobs.reverse();
    let bar = ProgressBar::new_spinner();
    bar.enable_steady_tick(Duration::from_millis(200));
    let mut running: Vec<(Running, PathBuf)> = Vec::new();
    let mut baselines = Vec::new();
    while !jobs.is_empty() || !running.is_empty() {
        while running.len() < AT_ONCE
            && let Some((name, members)) = jobs.pop()
        {
            let file = folder.join(format!("{name}.params"));
            let log = logs.join(format!("train-{name}.log"));
            let mut command = appliance_lab("train")?;
            for &index in &members {
                command.arg("--config").arg(federation.site_settings(index));
            }
            command.arg("--plan").arg(&plan_file);
            command.args(["--base-seed", &plan.seed.to_string()]).arg("--out").arg(&file);
            running.push((Running::start(&name, command, &log)?, log));
            baselines.push(Baseline { name, file });
        }
        let names: Vec<&str> = running.iter().map(|(process, _)| process.name()).collect();
        bar.set_message(format!("training {}; {} waiting", names.join(" and "), jobs.len()));
        let mut still = Vec::new();
        for (mut process, log) in running {
            match process.has_ended()? {
                None => still.push((process, log)),
                Some(status) if status.success() => {}
                Some(status) => {
                    bail!("the training of {} ended with {status}: see {}", process.name(), log.display())
                }
            }
        }
        running = still;
        std::thread::sleep(Duration::from_millis(100));
    }
    bar.finish_and_clear();
    Ok(baselines)
}

/// What is scored, and where.
pub(crate) struct Scoring<'a> {
    /// Folder with the common test set and its `labels.csv`.
    pub(crate) test_set: &'a Path,
    /// The hospitals' own models and the pooled one.
    pub(crate) baselines: &'a [Baseline],
    /// The released model.
    pub(crate) bundle: &'a Path,
    /// Where the scores go.
    pub(crate) out: &'a Path,
    /// The log.
    pub(crate) log: &'a Path,
}

/// Scores all models on the common test set.
pub(crate) fn score(federation: &Federation, scoring: &Scoring<'_>) -> Result<()> {
    let mut command = appliance_lab("score")?;
    command.arg("--config").arg(federation.site_settings(0));
    command.arg("--dicom").arg(scoring.test_set);
    command.arg("--labels").arg(scoring.test_set.join("labels.csv"));
    for Baseline { name, file } in scoring.baselines {
        command.arg("--params").arg(format!("{name}={}", file.display()));
    }
    command.arg("--bundle").arg(format!("{FEDERATION}={}", scoring.bundle.display()));
    command.arg("--out").arg(scoring.out);
    let mut process = Running::start("lab score", command, scoring.log)?;
    let bar = ProgressBar::new_spinner().with_message("scoring the common test set");
    bar.enable_steady_tick(Duration::from_millis(200));
    let status = loop {
        if let Some(status) = process.has_ended()? {
            break status;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    bar.finish_and_clear();
    ensure!(status.success(), "the scoring ended with {status}: see {}", scoring.log.display());
    Ok(())
}
