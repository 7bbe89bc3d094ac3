//! Study: epsilon against AUROC, for noise in each site's training and for noise inside the sum.
//!
//! Both are the product's own: `medinet_training`'s private steps, and `medinet_update`'s noise under secure aggregation. Private training takes its randomness
//! from the operating system, as at a hospital, so its figures differ from run to run.

use crate::data::Dataset;
use crate::federation::{Channel, Federation, Mean, Sgd, figures, in_parallel};
use crate::plots::{self, Curve};
use crate::setup::{Setup, Source};
use anyhow::{Context as _, Result, ensure};
use medinet_model::{ClassBalance, ModelParameters, ParameterLayout, TrainingPlan};
use medinet_privacy::{
    Accounting, Composition, Delta, DpSgdPlan, Epsilon, NoiseMultiplier, PrivacyLimit, SamplingRate,
};
use medinet_update::{CodecPlan, NoisePlan, SecureCodecPlan};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// What is studied.
#[derive(Debug, Clone, Serialize)]
pub struct PrivacyStudy {
    /// Data sets.
    pub sources: Vec<Source>,
    /// Seeds, of split, initial model, order of images and noise inside the sum together.
    pub seeds: Vec<u64>,
    /// Which mechanisms, with which cohorts.
    pub cases: Vec<Case>,
    /// The probability with which epsilon may not hold.
    pub delta: f64,
    /// Channels of the network's first stage.
    pub width: u32,
    /// How sites train in private rounds.
    pub private: PrivateTraining,
    /// How sites train in rounds with noise inside the sum.
    pub noisy: NoisySums,
    /// Measures on the validation split, to choose settings by; sets without one are refused.
    pub on_validation: bool,
    /// Most images that are trained on and tested on, for tests.
    pub head: Option<usize>,
}

/// Private training's settings.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct PrivateTraining {
    /// Rounds.
    pub rounds: u32,
    /// Steps of each round.
    pub steps: u64,
    /// Probability with which a step takes a patient.
    pub sampling_rate: f64,
    /// Largest norm of a patient's gradient.
    pub clip_norm: f64,
    /// Learning rate of the first round; it falls to a tenth.
    pub learning_rate: f32,
    /// Momentum.
    pub momentum: f32,
}

/// Settings of rounds with noise inside the sum, and of the same rounds without noise.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct NoisySums {
    /// Rounds.
    pub rounds: u32,
    /// Learning rate of the first round; it falls to a tenth.
    pub learning_rate: f32,
    /// Passes over a site's images in each round.
    pub local_epochs: u32,
    /// Largest norm of a site's delta.
    pub clip_norm: f32,
    /// Fineness of the grid.
    pub bits: u8,
}

/// A mechanism and a cohort.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Case {
    /// Number of sites.
    pub sites: usize,
    /// What protects patients.
    pub mechanism: Mechanism,
}

/// What protects patients.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mechanism {
    /// Nothing: epsilon is infinite. The rounds are those of noise inside the sum, clipping and all.
    None,
    /// Private training at each site.
    Training {
        /// Epsilon of all rounds together.
        epsilon: f64,
    },
    /// Discrete Gaussian noise inside the sum; nine tenths of the sites are counted on.
    Sum {
        /// Standard deviation of the noise over what one patient can move the sum by, in each round.
        noise_multiplier: f64,
    },
}

/// Kinds of [`Mechanism`], to choose from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// Nothing.
    None,
    /// Private training.
    Training,
    /// Noise inside the sum.
    Sum,
}

impl Mechanism {
    /// Its kind.
    #[must_use]
    pub fn kind(self) -> Kind {
        match self {
            Self::None => Kind::None,
            Self::Training { .. } => Kind::Training,
            Self::Sum { .. } => Kind::Sum,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::None => "no noise",
            Self::Training { .. } => "private training",
            Self::Sum { .. } => "noise inside the sum",
        }
    }
}

/// One federation of the study.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The data set.
    pub source: Source,
    /// Mechanism and cohort.
    pub case: Case,
    /// The seed.
    pub seed: u64,
    /// What was measured on: the validation split, else the test split.
    pub on_validation: bool,
    /// AUROC of the model that the rounds begin with: what remains where noise drowns everything is about as good.
    #[serde(default)]
    pub untrained: Option<f64>,
    /// Epsilon of all rounds together at the study's delta; `None` without privacy.
    pub epsilon: Option<f64>,
    /// Noise multiplier of a step, or of a sum.
    pub noise_multiplier: Option<f64>,
    /// Parameters of the network.
    pub parameters: usize,
    /// Mean AUROC over the last three rounds.
    pub auroc: f64,
    /// AUROC after every round.
    pub by_round: Vec<f64>,
    /// The last model's AUROC with its 95% interval.
    pub last: medinet_metrics::Interval,
    /// Mean norm of the sites' deltas, in every round.
    pub delta_norms: Vec<f32>,
    /// Norm of the mean that the server opened, noise and all, in every round.
    pub mean_norms: Vec<f32>,
    /// Mean bytes that a site sent per round.
    pub bytes_up: f64,
}

impl PrivacyStudy {
    /// The whole study.
    #[must_use]
    pub fn full() -> Self {
        let mut cases = [10, 100].map(|sites| Case { sites, mechanism: Mechanism::None }).to_vec();
        for sites in [3, 10] {
            let training = |epsilon| Case { sites, mechanism: Mechanism::Training { epsilon } };
            cases.extend([1.0, 2.0, 4.0, 8.0].map(training));
        }
        for sites in [10, 100] {
            let sum = |noise_multiplier| Case { sites, mechanism: Mechanism::Sum { noise_multiplier } };
            cases.extend([3.0, 1.0, 0.3, 0.1].map(sum));
        }
        Self {
            sources: vec![Source::PneumoniaMnist, Source::Kermany28],
            seeds: vec![1],
            cases,
            delta: 1e-5,
            width: 8,
            private: PrivateTraining {
                rounds: 10,
                steps: 5,
                sampling_rate: 0.2,
                clip_norm: 1.0,
                learning_rate: 4.0,
                momentum: 0.0,
            },
            noisy: NoisySums { rounds: 6, learning_rate: 0.2, local_epochs: 3, clip_norm: 0.5, bits: 4 },
            on_validation: false,
            head: None,
        }
    }

    /// A minute's worth, to see that everything works: figures of it mean nothing.
    #[must_use]
    pub fn quick() -> Self {
        let full = Self::full();
        let mechanisms =
            [Mechanism::None, Mechanism::Training { epsilon: 8.0 }, Mechanism::Sum { noise_multiplier: 0.1 }];
        Self {
            sources: vec![Source::PneumoniaMnist],
            cases: mechanisms.map(|mechanism| Case { sites: 3, mechanism }).to_vec(),
            private: PrivateTraining { rounds: 2, steps: 2, ..full.private },
            noisy: NoisySums { rounds: 2, ..full.noisy },
            head: Some(240),
            ..full
        }
    }

    /// Sets the epsilons of private training, for the cohorts that it has.
    pub fn train_at(&mut self, epsilons: &[f64]) {
        let (training, mut cases): (Vec<Case>, Vec<Case>) =
            self.cases.iter().partition(|case| case.mechanism.kind() == Kind::Training);
        let mut cohorts: Vec<usize> = training.iter().map(|case| case.sites).collect();
        cohorts.dedup();
        for sites in cohorts {
            let case = |&epsilon| Case { sites, mechanism: Mechanism::Training { epsilon } };
            cases.extend(epsilons.iter().map(case));
        }
        self.cases = cases;
    }

    /// Number of federations.
    #[must_use]
    pub fn federations(&self) -> usize {
        self.sources.len() * self.seeds.len() * self.cases.len()
    }

    /// Runs all federations, `threads` at a time; `watch` sees each when it is done. Those in `done` are not run again.
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
            let mut whole = source.read(repository)?;
            if let Some(count) = self.head {
                whole = whole.head(count, count);
            }
            if self.on_validation {
                ensure!(!whole.validation.is_empty(), "{} has no validation split", source.title());
                whole.test = whole.validation.clone();
            }
            data.insert(*source, whole);
        }
        let mut jobs = Vec::new();
        for &seed in &self.seeds {
            for &source in &self.sources {
                jobs.extend(self.cases.iter().map(|&case| (source, case, seed)));
            }
        }
        in_parallel(threads, jobs.len(), |job| {
            let (source, case, seed) = jobs[job];
            let known = done.iter().find(|outcome| {
                (outcome.source, outcome.case, outcome.seed, outcome.on_validation)
                    == (source, case, seed, self.on_validation)
                    && outcome.by_round.len() == self.rounds(case.mechanism) as usize
            });
            if let Some(outcome) = known {
                return Ok(outcome.clone());
            }
            let outcome = self.one(source, &data[&source], case, seed).with_context(|| {
                format!("{}, {} sites, {}, seed {seed}", source.title(), case.sites, case.mechanism.name())
            })?;
            watch(&outcome);
            Ok(outcome)
        })
    }

    fn rounds(&self, mechanism: Mechanism) -> u32 {
        match mechanism {
            Mechanism::Training { .. } => self.private.rounds,
            Mechanism::None | Mechanism::Sum { .. } => self.noisy.rounds,
        }
    }

    fn one(&self, source: Source, data: &Dataset, case: Case, seed: u64) -> Result<Outcome> {
        let network = Setup::network(data.test.shape(), self.width);
        let parameters = ParameterLayout::of(&network)?.len();
        let rounds = self.rounds(case.mechanism);
        let (mut epsilon, mut noise_multiplier) = (None, None);
        let mut plan = Setup::plan(self.noisy.learning_rate);
        plan.local_epochs = self.noisy.local_epochs;
        if source != Source::PneumoniaMnist {
            // A third of the images: twice the passes for the same order of steps.
            plan.local_epochs *= 2;
        }
        if let Mechanism::Training { epsilon: total } = case.mechanism {
            let (private, alone) = self.private_plan(total)?;
            (epsilon, noise_multiplier) = (Some(alone), private.privacy.map(|p| p.noise_multiplier.get()));
            plan = private;
        }
        let initial = ModelParameters::initial(&network, seed)?;
        let untrained = figures(&network, &initial, &data.test.to_training_data())?.auroc.estimate;
        let setup = Setup { network, plan: plan.clone(), sites: case.sites, label_skew: None, rounds, seed };
        let training = Sgd { plan, decay_rounds: rounds };
        let mut federation: Federation<'_> = setup.federation(data, &training, &Mean)?;
        match case.mechanism {
            Mechanism::None => {
                // Clipped too: what noise costs, and nothing else.
                let (bits, clip_norm) = (32, self.noisy.clip_norm);
                federation.channel = Channel::Plain(CodecPlan { bits, clip_norm, error_feedback: false });
            }
            Mechanism::Training { .. } => {}
            Mechanism::Sum { noise_multiplier: wanted } => {
                let (codec, spent) = self.noisy_codec(wanted, case.sites, parameters)?;
                (epsilon, noise_multiplier) = (Some(spent), Some(wanted));
                federation.channel = Channel::Secure(codec);
            }
        }
        let run = federation.run(&mut |_| {})?;
        let mean = |values: &[f32]| values.iter().sum::<f32>() / values.len().max(1) as f32;
        Ok(Outcome {
            source,
            case,
            seed,
            on_validation: self.on_validation,
            untrained: Some(untrained),
            epsilon,
            noise_multiplier,
            parameters,
            auroc: run.auroc(3),
            by_round: run.rounds.iter().map(|round| round.figures.auroc.estimate).collect(),
            last: run.rounds.last().context("no round")?.figures.auroc,
            delta_norms: run.rounds.iter().map(|round| mean(&round.delta_norms)).collect(),
            mean_norms: run.rounds.iter().map(|round| round.mean_norm).collect(),
            bytes_up: run.bytes_up(),
        })
    }

    /// A round's plan whose steps cost `total` over all rounds, and what they cost by the accountant.
    fn private_plan(&self, total: f64) -> Result<(TrainingPlan, f64)> {
        let settings = &self.private;
        let limit = PrivacyLimit { epsilon: Epsilon::new(total)?, delta: Delta::new(self.delta)? };
        let rate = SamplingRate::new(settings.sampling_rate)?;
        let all_steps = settings.steps * u64::from(settings.rounds);
        let all = DpSgdPlan::for_target(&limit, settings.clip_norm, rate, all_steps)?;
        let spent = Composition::new().with(&all.event()).epsilon(limit.delta, Accounting::Tight);
        // What one round claims is what it costs alone; it has to be no less by the faster bound either.
        let round = DpSgdPlan { steps: settings.steps, ..all };
        let alone = Composition::new().with(&round.event()).epsilon(limit.delta, Accounting::Tight);
        let round = DpSgdPlan { epsilon: Epsilon::new(alone * (1.0 + 1e-9))?, ..round };
        let plan = TrainingPlan {
            // How many images are computed at once, and nothing else.
            batch_size: 64,
            momentum: settings.momentum,
            class_balance: ClassBalance::None,
            privacy: Some(round),
            ..Setup::plan(settings.learning_rate)
        };
        Ok((plan, spent))
    }

    /// A codec with noise, and what all rounds cost together. Above an epsilon of 30 the accountant certifies nothing for noise from tables; the figure is that of the divergences alone.
    fn noisy_codec(&self, wanted: f64, sites: usize, parameters: usize) -> Result<(SecureCodecPlan, f64)> {
        let settings = &self.noisy;
        let codec = SecureCodecPlan {
            bits: settings.bits,
            clip_norm: settings.clip_norm,
            error_feedback: false,
            kept_permille: 1000,
            reference_examples: 1,
            noise: None,
        };
        // A tenth may collude, as the product's assumptions have it.
        let honest_survivors = u32::try_from(sites - sites / 10).context("too many sites")?;
        let variance = codec.noise_variance(NoiseMultiplier::new(wanted)?, honest_survivors, parameters)?;
        let (epsilon, delta) = (Epsilon::new(f64::MAX)?, Delta::new(self.delta)?);
        let codec = SecureCodecPlan {
            noise: Some(NoisePlan { epsilon, delta, variance, honest_survivors }),
            ..codec
        };
        let event = codec.noise_event(parameters)?.context("a codec with noise")?;
        let all = Composition::new().with(&event.with_count(settings.rounds.into()));
        let certified = all.epsilon(delta, Accounting::Tight);
        if certified.is_finite() {
            return Ok((codec, certified));
        }
        let orders: Vec<f64> = (1..400).map(|step| 1.0 + 0.005 * 1.03f64.powi(step)).collect();
        Ok((codec, all.renyi(&orders).epsilon(self.delta)))
    }
}

/// Outcomes of one data set, mechanism and cohort, by rising epsilon, over seeds.
struct Row {
    case: Case,
    epsilon: Option<f64>,
    noise_multiplier: Option<f64>,
    seeds: usize,
    auroc: f64,
    lowest: f64,
    highest: f64,
    /// Norm of the opened mean over the mean norm of the deltas in it, in the first round.
    length: f64,
}

fn rows(outcomes: &[&Outcome]) -> Vec<Row> {
    let mut cases: Vec<Case> = Vec::new();
    for outcome in outcomes {
        if !cases.contains(&outcome.case) {
            cases.push(outcome.case);
        }
    }
    let row = |case: Case| {
        let of: Vec<&&Outcome> = outcomes.iter().filter(|outcome| outcome.case == case).collect();
        let count = of.len().max(1) as f64;
        let ratio = |outcome: &Outcome| {
            let first = |values: &[f32]| values.first().copied().map_or(f64::NAN, f64::from);
            first(&outcome.mean_norms) / first(&outcome.delta_norms)
        };
        Row {
            case,
            epsilon: of[0].epsilon,
            noise_multiplier: of[0].noise_multiplier,
            seeds: of.len(),
            auroc: of.iter().map(|outcome| outcome.auroc).sum::<f64>() / count,
            lowest: of.iter().map(|outcome| outcome.auroc).fold(f64::INFINITY, f64::min),
            highest: of.iter().map(|outcome| outcome.auroc).fold(f64::NEG_INFINITY, f64::max),
            length: of.iter().map(|outcome| ratio(outcome)).sum::<f64>() / count,
        }
    };
    let mut rows: Vec<Row> = cases.into_iter().map(row).collect();
    let key = |row: &Row| (row.case.mechanism.kind() as u8, row.case.sites);
    rows.sort_by(|a, b| {
        let epsilon = |row: &Row| row.epsilon.unwrap_or(f64::INFINITY);
        key(a).cmp(&key(b)).then(epsilon(a).total_cmp(&epsilon(b)))
    });
    rows
}

fn by_source(outcomes: &[Outcome]) -> BTreeMap<Source, Vec<&Outcome>> {
    let mut groups: BTreeMap<Source, Vec<&Outcome>> = BTreeMap::new();
    for outcome in outcomes {
        groups.entry(outcome.source).or_default().push(outcome);
    }
    groups
}

/// Tables for people, one for each data set.
#[must_use]
pub fn markdown(outcomes: &[Outcome]) -> String {
    let mut text = String::new();
    for (source, of) in by_source(outcomes) {
        // Writing to a string does not fail.
        let _ = writeln!(text, "**{}**\n", source.title());
        let _ = writeln!(
            text,
            "| what protects patients | sites | epsilon, all rounds | noise multiplier | AUROC | seeds | lowest to highest | first mean's length |"
        );
        let _ = writeln!(text, "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
        if let Some(untrained) = of.iter().find_map(|outcome| outcome.untrained) {
            let _ = writeln!(text, "| the untrained model |  | 0 |  | {untrained:.4} |  |  |  |");
        }
        for row in rows(&of) {
            let epsilon = row.epsilon.map_or("infinite".to_owned(), |epsilon| {
                if epsilon < 30.0 { format!("{epsilon:.2}") } else { format!("({epsilon:.0})") }
            });
            let noise = row.noise_multiplier.map_or(String::new(), |noise| format!("{noise:.3}"));
            let _ = writeln!(
                text,
                "| {} | {} | {epsilon} | {noise} | {:.4} | {} | {:.4} to {:.4} | {:.2} |",
                row.case.mechanism.name(),
                row.case.sites,
                row.auroc,
                row.seeds,
                row.lowest,
                row.highest,
                row.length,
            );
        }
        text.push('\n');
    }
    text
}

/// Epsilon against AUROC, a panel for each data set.
///
/// # Errors
/// When the plot cannot be drawn.
pub fn curve(outcomes: &[Outcome]) -> Result<String> {
    let mut panels = Vec::new();
    for (source, of) in by_source(outcomes) {
        let rows = rows(&of);
        let none = Case { sites: 10, mechanism: Mechanism::None };
        let without = rows.iter().find(|row| row.case == none).map(|row| row.auroc);
        let mut curves: Vec<Curve> = Vec::new();
        for row in &rows {
            let Some(epsilon) = row.epsilon else { continue };
            let name = format!("{}, {} sites", row.case.mechanism.name(), row.case.sites);
            match curves.iter_mut().find(|curve| curve.name == name) {
                Some(curve) => curve.points.push((epsilon, row.auroc)),
                None => curves.push(Curve { name, points: vec![(epsilon, row.auroc)] }),
            }
        }
        panels.push((source.title().to_owned(), without, curves));
    }
    plots::epsilon_against_auroc(&panels)
}
