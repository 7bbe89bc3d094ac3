//! Study: bytes that a site sends up against AUROC, and what quantized models cost on the way down.

use crate::data::Dataset;
use crate::federation::{Channel, ClipRule, Downlink, Mean, Run, Sgd, in_parallel};
use crate::plots::{self, Point};
use crate::setup::{Setup, Source};
use anyhow::{Context as _, Result, ensure};
use medinet_model::ParameterLayout;
use medinet_secagg::Width;
use medinet_update::{CodecPlan, SecureCodecPlan};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// What is studied.
#[derive(Debug, Clone, Serialize)]
pub struct CodecStudy {
    /// Data sets.
    pub sources: Vec<Source>,
    /// Numbers of sites.
    pub cohorts: Vec<usize>,
    /// Seeds, of split, initial model, training and rounding together.
    pub seeds: Vec<u64>,
    /// Which codecs.
    pub cases: Vec<Case>,
    /// Rounds of each federation.
    pub rounds: u32,
    /// Channels of the network's first stage.
    pub width: u32,
    /// The first round's clip norm under masks; later ones follow from the sites' mean norm.
    pub first_clip_norm: f32,
    /// The limit of the clip norm.
    pub largest_clip_norm: f32,
    /// Most images that are trained on and tested on, for tests.
    pub head: Option<usize>,
}

/// A way up and a way down.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Case {
    /// The way up.
    pub up: Up,
    /// Bits per parameter on the way down; none for float32.
    pub down_bits: Option<u8>,
}

/// A way up, before the cohort is known.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Up {
    /// float32, seen by the server.
    Float32,
    /// The plain codec.
    Plain {
        /// Bits per coordinate.
        bits: u8,
    },
    /// The codec for secure aggregation.
    Secure {
        /// Bits per coordinate before the sum.
        bits: u8,
        /// How many times smaller than float32 the upload has to be; none keeps all coordinates.
        times: Option<u16>,
        /// Whether what is lost is repaid.
        error_feedback: bool,
        /// Whether the clip norm follows the sites' norms after the first round.
        tracked: bool,
    },
}

impl Up {
    /// Secure without error feedback, with a clip norm that follows, `times` smaller than float32.
    #[must_use]
    pub fn smaller(bits: u8, times: u16) -> Self {
        Self::Secure { bits, times: Some(times), error_feedback: false, tracked: true }
    }

    fn name(self) -> String {
        match self {
            Self::Float32 => "float32".to_owned(),
            Self::Plain { bits } => format!("plain, {bits} bits"),
            Self::Secure { bits, times, error_feedback, tracked } => {
                let times = times.map_or_else(String::new, |times| format!(", 1/{times}"));
                let feedback = if error_feedback { ", error feedback" } else { "" };
                let fixed = if tracked { "" } else { ", fixed clip norm" };
                format!("secure, {bits} bit{}{times}{feedback}{fixed}", if bits == 1 { "" } else { "s" })
            }
        }
    }

    /// The channel for a cohort of `sites`, of which the largest has `reference` images, and a network of `parameters`.
    fn channel(self, sites: usize, parameters: usize, reference: u32, clip_norm: f32) -> Result<Channel> {
        Ok(match self {
            Self::Float32 => Channel::float32(),
            Self::Plain { bits } => Channel::Plain(CodecPlan { bits, clip_norm: 1e6, error_feedback: false }),
            Self::Secure { bits, times, error_feedback, .. } => {
                let mut plan = SecureCodecPlan {
                    bits,
                    clip_norm,
                    error_feedback,
                    kept_permille: 1000,
                    reference_examples: reference,
                    noise: None,
                };
                if let Some(times) = times {
                    plan.kept_permille = kept_permille(plan, sites, parameters, times)
                        .with_context(|| format!("{bits} bits cannot be {times} times smaller"))?;
                }
                Channel::Secure(plan)
            }
        })
    }
}

impl Case {
    /// As tables name it.
    #[must_use]
    pub fn name(self) -> String {
        let down = self.down_bits.map_or_else(String::new, |bits| format!("; down {bits} bits"));
        format!("{}{down}", self.up.name())
    }
}

/// The most coordinates per 1,000 that bring the packed vector of a cohort to `1/times` of float32 or less; none where not even one does.
#[must_use]
pub fn kept_permille(plan: SecureCodecPlan, sites: usize, parameters: usize, times: u16) -> Option<u16> {
    let width = Width::for_sum(plan.largest(), u16::try_from(sites).ok()?).ok()?;
    (1..=1000).rev().find(|&kept_permille| {
        let coordinates = SecureCodecPlan { kept_permille, ..plan }.coordinates(parameters);
        width.packed_bytes(coordinates) * usize::from(times) <= 4 * parameters
    })
}

/// One federation of the study.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The data set.
    pub source: Source,
    /// Number of sites.
    pub sites: usize,
    /// The codec.
    pub case: Case,
    /// The channel that came of it, with the first clip norm.
    pub channel: Channel,
    /// The seed.
    pub seed: u64,
    /// Parameters of the network.
    pub parameters: usize,
    /// Mean AUROC over the last three rounds.
    pub auroc: f64,
    /// Mean bytes that a site sent per round.
    pub bytes_up: f64,
    /// Mean bytes that a site received per round.
    pub bytes_down: f64,
    /// AUROC after every round.
    pub by_round: Vec<f64>,
    /// Mean norm of the sites' deltas in every round.
    pub delta_norms: Vec<f32>,
    /// Clip norm of every round.
    pub clip_norms: Vec<f32>,
    /// Mean norm of what error feedback carried, in every round.
    pub residual_norms: Vec<f32>,
    /// The last model's AUROC with its 95% interval.
    pub last: medinet_metrics::Interval,
}

impl CodecStudy {
    /// The whole study.
    #[must_use]
    pub fn full() -> Self {
        let secure = |bits, error_feedback| Up::Secure { bits, times: None, error_feedback, tracked: true };
        let ups = [Up::Float32, Up::Plain { bits: 8 }, Up::Plain { bits: 4 }]
            .into_iter()
            .chain([8, 4, 2, 1].into_iter().flat_map(|bits| [secure(bits, false), secure(bits, true)]))
            .chain([
                Up::smaller(1, 16),
                Up::smaller(2, 16),
                Up::Secure { bits: 2, times: Some(16), error_feedback: false, tracked: false },
                Up::Secure { bits: 1, times: Some(16), error_feedback: true, tracked: true },
                Up::Secure { bits: 2, times: Some(16), error_feedback: true, tracked: true },
                Up::smaller(1, 32),
                Up::smaller(2, 32),
                Up::Secure { bits: 2, times: Some(32), error_feedback: true, tracked: true },
            ]);
        let mut cases: Vec<Case> = ups.map(|up| Case { up, down_bits: None }).collect();
        cases.push(Case { up: Up::Float32, down_bits: Some(4) });
        cases.push(Case { up: Up::smaller(2, 16), down_bits: Some(4) });
        Self {
            sources: vec![Source::PneumoniaMnist, Source::Kermany28],
            cohorts: vec![3, 10],
            seeds: vec![1, 2, 3],
            cases,
            rounds: 12,
            width: 8,
            first_clip_norm: 2.0,
            largest_clip_norm: 16.0,
            head: None,
        }
    }

    /// A minute's worth, to see that everything works: figures of it mean nothing.
    #[must_use]
    pub fn quick() -> Self {
        let cases = [(Up::Float32, None), (Up::smaller(2, 16), Some(4))]
            .map(|(up, down_bits)| Case { up, down_bits });
        Self {
            sources: vec![Source::PneumoniaMnist],
            cohorts: vec![3],
            seeds: vec![1],
            cases: cases.to_vec(),
            rounds: 2,
            head: Some(240),
            ..Self::full()
        }
    }

    /// Number of federations.
    #[must_use]
    pub fn federations(&self) -> usize {
        self.sources.len() * self.cohorts.len() * self.seeds.len() * self.cases.len()
    }

    /// Runs all federations, `threads` at a time; `watch` sees each when it is done, in no particular order. Those in `done` are not run again.
    ///
    /// # Errors
    /// When the data cannot be read, or a federation fails.
    pub fn run(
        &self,
        repository: &std::path::Path,
        threads: usize,
        done: &[Outcome],
        watch: &(dyn Fn(&Outcome) + Sync),
    ) -> Result<Vec<Outcome>> {
        ensure!(self.federations() > 0, "nothing to study");
        let mut data: BTreeMap<Source, Dataset> = BTreeMap::new();
        for source in &self.sources {
            let whole = source.read(repository)?;
            data.insert(*source, self.head.map_or_else(|| whole.clone(), |count| whole.head(count, count)));
        }
        let mut jobs = Vec::new();
        for &seed in &self.seeds {
            for &source in &self.sources {
                for &sites in &self.cohorts {
                    jobs.extend(self.cases.iter().map(|&case| (source, sites, case, seed)));
                }
            }
        }
        in_parallel(threads, jobs.len(), |job| {
            let (source, sites, case, seed) = jobs[job];
            if let Some(outcome) = done.iter().find(|outcome| {
                (outcome.source, outcome.sites, outcome.case, outcome.seed) == (source, sites, case, seed)
                    && outcome.by_round.len() == self.rounds as usize
            }) {
                return Ok(outcome.clone());
            }
            let outcome = self.one(source, &data[&source], sites, case, seed).with_context(|| {
                format!("{}, {sites} sites, {}, seed {seed}", source.title(), case.name())
            })?;
            watch(&outcome);
            Ok(outcome)
        })
    }

    fn one(&self, source: Source, data: &Dataset, sites: usize, case: Case, seed: u64) -> Result<Outcome> {
        let network = Setup::network(data.test.shape(), self.width);
        let mut plan = Setup::plan(0.05);
        if source != Source::PneumoniaMnist {
            // A third of the images: two passes for the same order of steps.
            plan.local_epochs = 2;
        }
        let parameters = ParameterLayout::of(&network)?.len();
        let setup = Setup { network, plan: plan.clone(), sites, label_skew: None, rounds: self.rounds, seed };
        let training = Sgd { plan, decay_rounds: self.rounds };
        let mut federation = setup.federation(data, &training, &Mean)?;
        let reference = federation.sites.iter().map(|site| site.images.len()).max().unwrap_or(1);
        let reference = u32::try_from(reference).context("a site of too many images")?;
        federation.channel = case.up.channel(sites, parameters, reference, self.first_clip_norm)?;
        if !matches!(case.up, Up::Secure { tracked: false, .. }) {
            federation.clip = ClipRule::Tracking { largest: self.largest_clip_norm };
        }
        if let Some(bits) = case.down_bits {
            federation.downlink = Downlink::Delta { bits };
        }
        let channel = federation.channel;
        let run = federation.run(&mut |_| {})?;
        let mean = |values: &[f32]| values.iter().sum::<f32>() / values.len().max(1) as f32;
        Ok(Outcome {
            source,
            sites,
            case,
            channel,
            seed,
            parameters,
            auroc: run.auroc(3),
            bytes_up: run.bytes_up(),
            bytes_down: run.bytes_down(),
            by_round: run.rounds.iter().map(|round| round.figures.auroc.estimate).collect(),
            delta_norms: run.rounds.iter().map(|round| mean(&round.delta_norms)).collect(),
            clip_norms: run.rounds.iter().map(|round| round.clip_norm).collect(),
            residual_norms: run.rounds.iter().map(|round| round.residual_norm).collect(),
            last: last(&run)?,
        })
    }
}

fn last(run: &Run) -> Result<medinet_metrics::Interval> {
    Ok(run.rounds.last().context("no round")?.figures.auroc)
}

/// A case over all seeds of one data set and cohort.
struct Row {
    case: Case,
    channel: Channel,
    times_up: f64,
    times_down: f64,
    seeds: usize,
    auroc: f64,
    /// Mean and largest over the seeds of float32's AUROC less this one's.
    lost: Option<(f64, f64)>,
}

fn rows(outcomes: &[&Outcome]) -> Vec<Row> {
    let mut cases: Vec<Case> = Vec::new();
    for outcome in outcomes {
        if !cases.contains(&outcome.case) {
            cases.push(outcome.case);
        }
    }
    let float32: BTreeMap<u64, f64> = outcomes
        .iter()
        .filter(|outcome| outcome.case == Case { up: Up::Float32, down_bits: None })
        .map(|outcome| (outcome.seed, outcome.auroc))
        .collect();
    let row = |case: Case| {
        let of: Vec<&&Outcome> = outcomes.iter().filter(|outcome| outcome.case == case).collect();
        let mean = |value: &dyn Fn(&Outcome) -> f64| {
            of.iter().map(|outcome| value(outcome)).sum::<f64>() / of.len().max(1) as f64
        };
        // Every seed beside float32 of the same seed: split, initial model and order of images are the same.
        let lost: Vec<f64> =
            of.iter().filter_map(|outcome| Some(float32.get(&outcome.seed)? - outcome.auroc)).collect();
        let largest = lost.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        Row {
            case,
            channel: of[0].channel,
            times_up: mean(&|outcome| 4.0 * outcome.parameters as f64 / outcome.bytes_up),
            times_down: mean(&|outcome| 4.0 * outcome.parameters as f64 / outcome.bytes_down),
            seeds: of.len(),
            auroc: mean(&|outcome| outcome.auroc),
            lost: (!lost.is_empty()).then(|| (lost.iter().sum::<f64>() / lost.len() as f64, largest)),
        }
    };
    cases.into_iter().map(row).collect()
}

/// Outcomes by data set and cohort.
fn groups(outcomes: &[Outcome]) -> BTreeMap<(Source, usize), Vec<&Outcome>> {
    let mut groups: BTreeMap<(Source, usize), Vec<&Outcome>> = BTreeMap::new();
    for outcome in outcomes {
        groups.entry((outcome.source, outcome.sites)).or_default().push(outcome);
    }
    groups
}

/// Tables for people: a case a line, a table for each data set and cohort.
#[must_use]
pub fn markdown(outcomes: &[Outcome]) -> String {
    let mut text = String::new();
    for ((source, sites), of) in groups(outcomes) {
        // Writing to a string does not fail.
        let _ = writeln!(text, "**{}, {sites} sites**\n", source.title());
        let _ = writeln!(
            text,
            "| codec | kept of 1,000 | up: times smaller | down: times smaller | seeds | AUROC | below float32 | at worst |"
        );
        let _ = writeln!(text, "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
        for row in rows(&of) {
            let kept = match row.channel {
                Channel::Secure(plan) => plan.kept_permille.to_string(),
                Channel::Plain(_) => String::new(),
            };
            let (lost, worst) = row.lost.map_or_else(
                || (String::new(), String::new()),
                |(mean, worst)| (format!("{mean:.4}"), format!("{worst:.4}")),
            );
            let _ = writeln!(
                text,
                "| {} | {kept} | {:.1} | {:.1} | {} | {:.4} | {lost} | {worst} |",
                row.case.name(),
                row.times_up,
                row.times_down,
                row.seeds,
                row.auroc,
            );
        }
        text.push('\n');
    }
    text
}

/// The curve, as SVG: bytes per site and round against AUROC below float32, mean over the seeds, a colour for each data set and cohort.
///
/// # Errors
/// When the plot cannot be drawn.
pub fn curve(outcomes: &[Outcome]) -> Result<String> {
    let mut series = Vec::new();
    for ((source, sites), of) in groups(outcomes) {
        let point = |row: Row| {
            let (lost, _) = row.lost?;
            let secure = match row.case.up {
                Up::Secure { error_feedback, .. } => Some(error_feedback),
                Up::Float32 | Up::Plain { .. } => None,
            };
            row.case.down_bits.is_none().then_some(Point { times: row.times_up, lost, secure })
        };
        let points = rows(&of).into_iter().filter_map(point).collect();
        series.push((format!("{}, {sites} sites", source.title()), points));
    }
    plots::bytes_against_auroc(&series)
}
