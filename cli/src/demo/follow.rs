//! Watching the federation work, as an operator would: through the status topics.

use super::loss::Loss;
use super::outcome::Traffic;
use anyhow::{Context as _, Result, bail};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use medinet_lab::{Federation, FleetStatus, Member};
use medinet_privacy::PrivacyReport;
use medinet_types::SiteId;
use medinet_wire::message::{Activity, SiteStatus};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::time::{Duration, Instant};

/// Longer than any demo takes on a slow machine.
const LONGEST: Duration = Duration::from_secs(8 * 3600);
/// How long the hospitals may take to fetch and prove the released model.
const RELEASE: Duration = Duration::from_secs(180);
/// A site publishes its counters every two seconds; this long after the end they are complete.
const SETTLE: Duration = Duration::from_secs(5);

/// What was seen.
pub(crate) struct Seen {
    /// Median AUROC that the hospitals reported, by the number of rounds the model was trained.
    pub(crate) auroc_by_round: Vec<(u32, f64)>,
    /// Each hospital's traffic.
    pub(crate) traffic: Vec<Traffic>,
    /// From start to the first round at work: pulling, de-identifying, preparing.
    pub(crate) intake: Duration,
    /// From there to the end of the last round.
    pub(crate) rounds: Duration,
    /// From there until every hospital held the proven model.
    pub(crate) release: Duration,
}

struct Watch {
    started: Instant,
    working: Option<Instant>,
    finished: Option<Instant>,
    everywhere: Option<Instant>,
    auroc: BTreeMap<u32, f64>,
    sites: BTreeMap<SiteId, SiteStatus>,
    told: BTreeSet<String>,
    round: u32,
    rounds: u32,
}

/// Starts every member and follows them until each hospital holds the released model; loses one of them on the way if asked to.
pub(crate) fn run(
    federation: &mut Federation,
    mut loss: Option<&mut Loss>,
    out: &mut dyn Write,
) -> Result<Seen> {
    let logs = federation.plan().folder.display().to_string();
    for member in federation.members() {
        federation.start(member)?;
        // The others find their broker at once, and do not wait for a second try.
        if member == Member::Broker {
            std::thread::sleep(Duration::from_millis(500));
        }
    }
    let names: Vec<SiteId> = federation.plan().sites.iter().map(|site| site.id.clone()).collect();
    let bars = MultiProgress::new();
    let total = bars.add(ProgressBar::new(u64::from(federation.plan().rounds)));
    total.set_style(ProgressStyle::with_template("{prefix:12} {bar:30} {msg}")?);
    total.set_prefix("federation");
    let style = ProgressStyle::with_template("{prefix:12} {bar:30} {msg}")?;
    let site_bars: Vec<ProgressBar> = names
        .iter()
        .map(|name| {
            let bar = bars.add(ProgressBar::new(1000).with_style(style.clone()));
            bar.set_prefix(name.to_string());
            bar
        })
        .collect();
    let mut watch = Watch {
        started: Instant::now(),
        working: None,
        finished: None,
        everywhere: None,
        auroc: BTreeMap::new(),
        sites: BTreeMap::new(),
        told: BTreeSet::new(),
        round: 0,
        rounds: federation.plan().rounds,
    };
    federation
        .follow(LONGEST, |fed, status| {
            fed.check_alive()?;
            watch.note(fed, status)?;
            if let Some(loss) = &mut loss
                && let Some(line) = loss.watch(fed, status)?
            {
                // Above the bars, where they are shown.
                bars.suspend(|| writeln!(out, "  {line}").and_then(|()| out.flush()))?;
            }
            show(&watch, status, &total, &names, &site_bars);
            // Where bars are hidden, as in a log file, each round is a line.
            if let Some(line) = watch.new_round(status)
                && bars.is_hidden()
            {
                writeln!(out, "  {line}")?;
                out.flush()?;
            }
            for line in watch.new_words(status) {
                bars.suspend(|| writeln!(out, "  {line}").and_then(|()| out.flush()))?;
            }
            Ok(watch.everywhere.is_some_and(|at| at.elapsed() > SETTLE))
        })
        .with_context(|| format!("the federation did not get through: see the logs {logs}/*.log"))?;
    bars.clear()?;
    watch.seen(&names)
}

impl Watch {
    fn note(&mut self, federation: &Federation, status: &FleetStatus) -> Result<()> {
        for (site, newest) in &status.sites {
            // The last will says offline with counters at zero; what was seen before is the truth.
            if newest.sent_bytes > 0 || newest.received_bytes > 0 {
                self.sites.insert(site.clone(), newest.clone());
            }
            if matches!(newest.activity, Activity::Training | Activity::Fetching) {
                self.working.get_or_insert_with(Instant::now);
            }
        }
        let Some(aggregator) = &status.aggregator else { return Ok(()) };
        let rounds = self.rounds;
        if let Some(auroc) = aggregator.auroc {
            // In a round the hospitals measure the model that it starts from.
            if aggregator.finished {
                self.auroc.insert(rounds, auroc);
            } else if aggregator.complete > 0 && aggregator.round.0 > 0 {
                self.auroc.insert((aggregator.round.0 - 1).min(rounds), auroc);
            }
        }
        if !aggregator.finished {
            return Ok(());
        }
        let finished = *self.finished.get_or_insert_with(Instant::now);
        let sites = federation.plan().sites.len();
        let missing: Vec<usize> =
            (0..sites).filter(|&index| !federation.site_release(index).exists()).collect();
        match missing.first() {
            None => {
                self.everywhere.get_or_insert_with(Instant::now);
            }
            Some(&index) if finished.elapsed() > RELEASE => bail!(
                "all rounds are over, and {} has no released model after {} s: see {} and {}",
                federation.plan().sites[index].id,
                RELEASE.as_secs(),
                federation.log(Member::Site(index)).display(),
                federation.log(Member::Aggregator).display(),
            ),
            Some(_) => {}
        }
        Ok(())
    }

    fn new_round(&mut self, status: &FleetStatus) -> Option<String> {
        let aggregator = status.aggregator.as_ref()?;
        let round = aggregator.round.0;
        if round <= self.round {
            return None;
        }
        self.round = round;
        let after = self.started.elapsed().as_secs();
        let rounds = self.rounds;
        Some(if round > rounds {
            format!("measuring the candidate for release, after {after} s")
        } else {
            format!("round {round} of {rounds}, after {after} s")
        })
    }

    /// What the aggregator tells of hospitals that decline, and of what they have spent of their privacy budgets, each once.
    fn new_words(&mut self, status: &FleetStatus) -> Vec<String> {
        let Some(aggregator) = &status.aggregator else { return Vec::new() };
        let declines = aggregator
            .declines
            .iter()
            .map(|decline| format!("{} declines round {}: {}", decline.site, decline.round, decline.reason));
        let budgets = aggregator
            .privacy
            .iter()
            .map(|budget| format!("{} is in round {}{}", budget.site, budget.round, privacy(&budget.report)));
        declines.chain(budgets).filter(|line| self.told.insert(line.clone())).collect()
    }

    fn seen(self, names: &[SiteId]) -> Result<Seen> {
        let finished = self.finished.context("the federation ended without having finished")?;
        let everywhere = self.everywhere.context("the federation ended without a released model")?;
        let working = self.working.unwrap_or(finished).min(finished);
        let traffic = names.iter().map(|name| {
            let status =
                self.sites.get(name).with_context(|| format!("{name} never published its status"))?;
            Ok(Traffic {
                site: name.to_string(),
                sent: status.sent_bytes,
                received: status.received_bytes,
                instances: status.instances,
                quarantined: status.quarantined,
            })
        });
        Ok(Seen {
            traffic: traffic.collect::<Result<_>>()?,
            auroc_by_round: self.auroc.into_iter().collect(),
            intake: working.duration_since(self.started),
            rounds: finished.duration_since(working),
            release: everywhere.duration_since(finished),
        })
    }
}

fn show(watch: &Watch, status: &FleetStatus, total: &ProgressBar, names: &[SiteId], bars: &[ProgressBar]) {
    if let Some(aggregator) = &status.aggregator {
        // The aggregator also counts the rounds in which a candidate is measured.
        let rounds = watch.rounds;
        let done =
            if aggregator.finished { rounds } else { aggregator.round.0.saturating_sub(1).min(rounds) };
        total.set_position(u64::from(done));
        let auroc =
            watch.auroc.last_key_value().map(|(_, auroc)| format!(", AUROC {auroc:.3}")).unwrap_or_default();
        total.set_message(if aggregator.finished {
            format!("finished{auroc}; waiting for the hospitals to prove the model")
        } else if aggregator.round.0 > rounds {
            format!(
                "measuring the candidate, {} of {} answered{auroc}",
                aggregator.complete, aggregator.joined
            )
        } else {
            format!(
                "round {} of {}, {} joined, {} complete{auroc}",
                aggregator.round, rounds, aggregator.joined, aggregator.complete
            )
        });
    }
    for (name, bar) in names.iter().zip(bars) {
        let Some(site) = status.sites.get(name) else { continue };
        bar.set_position((site.progress.clamp(0.0, 1.0) * 1000.0) as u64);
        bar.set_message(format!(
            "{}, round {}, {} instances, {:.2} MB up, {:.2} MB down{}{}",
            activity(site.activity),
            site.round,
            site.instances,
            site.sent_bytes as f64 / 1e6,
            site.received_bytes as f64 / 1e6,
            site.privacy.as_ref().map(privacy).unwrap_or_default(),
            site.declined.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default(),
        ));
    }
}

/// What a hospital has spent of its privacy budget.
fn privacy(report: &PrivacyReport) -> String {
    let PrivacyReport { spent, limit, unbounded, rounds: _ } = report;
    let (spent, of, delta) = (spent.get(), limit.epsilon, limit.delta);
    let bound = if *unbounded { ", and rounds without noise" } else { "" };
    format!(", epsilon {spent:.2} of {of} at delta {delta} spent{bound}")
}

fn activity(activity: Activity) -> &'static str {
    match activity {
        Activity::Idle => "idle",
        Activity::Ingesting => "pulling and de-identifying",
        Activity::Fetching => "fetching the model",
        Activity::Training => "training",
        Activity::Evaluating => "measuring",
        Activity::Sending => "sending",
        Activity::Aggregating => "in secure aggregation",
        Activity::OutsideHours => "waiting for its hours",
        Activity::Declined => "declined by policy",
    }
}
