//! Study: attacks against defences.
//!
//! Ten sites, of which the first few attack in every round, each attack against each defence. All deltas go through the codec
//! for secure aggregation, fine enough not to matter (8 bits, all coordinates), whose clip norm follows what sites say of
//! their norms: attackers say whatever is worst within the sum's limits.

mod attacks;
mod defences;
mod report;

pub use attacks::{Attack, BACKDOOR_TARGET, patch, patched};
pub use defences::{Aggregated, Defence, RuleKind};
pub use report::{heat_map, markdown};

use crate::data::Dataset;
use crate::federation::{Channel, ClipRule, Sgd, Voting, in_parallel};
use crate::setup::{Setup, Source};
use anyhow::{Context as _, Result, ensure};
use defences::{Validators, with_validation};
use medinet_metrics::{Interval, wilson_interval};
use medinet_training::{ComputeDevice, logits};
use medinet_update::SecureCodecPlan;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What is studied.
#[derive(Debug, Clone, Serialize)]
pub struct PoisoningStudy {
    /// Data sets.
    pub sources: Vec<Source>,
    /// Seeds, of split, initial model, training, groups and attacks together.
    pub seeds: Vec<u64>,
    /// Attacks; each defence is measured without any, too.
    pub attacks: Vec<Attack>,
    /// Numbers of attackers, each at least 1.
    pub attackers: Vec<usize>,
    /// Defences.
    pub defences: Vec<Defence>,
    /// Bad sites that rules are set against, however many there are.
    pub feared: usize,
    /// Number of sites.
    pub sites: usize,
    /// Rounds of each federation.
    pub rounds: u32,
    /// Channels of the network's first stage.
    pub width: u32,
    /// The first round's clip norm; later ones follow from the sites' norms.
    pub first_clip_norm: f32,
    /// The limit of the clip norm.
    pub largest_clip_norm: f32,
    /// Most images that are trained on and tested on.
    pub head: Option<usize>,
}

/// Which federation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Case {
    /// The data set.
    pub source: Source,
    /// The attack.
    pub attack: Attack,
    /// Number of attackers.
    pub attackers: usize,
    /// The defence.
    pub defence: Defence,
    /// The seed.
    pub seed: u64,
}

/// A federation of the study.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Which.
    pub case: Case,
    /// Number of sites.
    pub sites: usize,
    /// Most images that were trained on.
    pub head: Option<usize>,
    /// Mean AUROC over the last three rounds.
    pub auroc: f64,
    /// Mean accuracy over the last three rounds.
    pub accuracy: f64,
    /// Share of the patched test pictures of the other class that the last model takes for the backdoor's target.
    pub backdoor: Interval,
    /// Rounds whose model the sites rejected.
    pub rejected: u32,
    /// Rounds in which the server scaled down a mean that was longer than honest sites make one.
    #[serde(default)]
    pub shortened: u32,
    /// AUROC after every round.
    pub by_round: Vec<f64>,
    /// Clip norm of every round.
    pub clip_norms: Vec<f32>,
    /// The last model's AUROC with its 95% interval.
    pub last: Interval,
}

impl PoisoningStudy {
    /// The whole study.
    #[must_use]
    pub fn full() -> Self {
        let group = |sites, rule, vote| Defence { rule: Aggregated::Groups { sites, rule }, vote };
        let mut defences = vec![
            Defence { rule: Aggregated::Unbounded, vote: false },
            Defence { rule: Aggregated::SitesBounded, vote: false },
            Defence { rule: Aggregated::Bounded, vote: false },
            Defence { rule: Aggregated::Bounded, vote: true },
        ];
        for sites in [1, 2, 3] {
            defences.extend(RuleKind::ALL.map(|rule| group(sites, rule, false)));
            defences.push(group(sites, RuleKind::Median, true));
        }
        // Three groups are too few for Krum against one, and leave of a trimmed mean the median.
        let few = |rule| matches!(rule, RuleKind::Krum | RuleKind::MultiKrum | RuleKind::TrimmedMean);
        defences
            .retain(|defence| !matches!(defence.rule, Aggregated::Groups { sites: 3, rule } if few(rule)));
        Self {
            sources: vec![Source::PneumoniaMnist, Source::Kermany28],
            seeds: vec![1, 2, 3],
            attacks: Attack::ALL.to_vec(),
            attackers: vec![3, 2, 1],
            defences,
            feared: 3,
            sites: 10,
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
        let full = Self::full();
        let mut defences = full.defences.clone();
        defences
            .retain(|defence| ["mean, no bound", "median of 2 + vote"].contains(&defence.name().as_str()));
        Self {
            sources: vec![Source::PneumoniaMnist],
            seeds: vec![1],
            attacks: vec![Attack::SignFlip, Attack::Backdoor],
            attackers: vec![3],
            defences,
            rounds: 2,
            head: Some(240),
            ..full
        }
    }

    /// All cases, those first that say most: all attackers on one seed before the next.
    #[must_use]
    pub fn cases(&self) -> Vec<Case> {
        let mut cases = Vec::new();
        for &seed in &self.seeds {
            for &source in &self.sources {
                let case = |attack, attackers, defence| Case { source, attack, attackers, defence, seed };
                cases.extend(self.defences.iter().map(|&defence| case(Attack::None, 0, defence)));
                for &attackers in &self.attackers {
                    for &attack in &self.attacks {
                        cases.extend(self.defences.iter().map(|&defence| case(attack, attackers, defence)));
                    }
                }
            }
        }
        cases
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
        let cases = self.cases();
        ensure!(!cases.is_empty(), "nothing to study");
        let mut data: BTreeMap<Source, Dataset> = BTreeMap::new();
        for source in &self.sources {
            let whole = with_validation(&source.read(repository)?);
            data.insert(*source, self.head.map_or_else(|| whole.clone(), |count| whole.head(count, count)));
        }
        in_parallel(threads, cases.len(), |index| {
            let case = cases[index];
            if let Some(outcome) = self.found(&case, done) {
                return Ok(outcome.clone());
            }
            let outcome = self.one(&case, &data[&case.source]).with_context(|| case.title())?;
            watch(&outcome);
            Ok(outcome)
        })
    }

    /// What `done` holds of the study's cases.
    #[must_use]
    pub fn of<'a>(&self, done: &'a [Outcome]) -> Vec<&'a Outcome> {
        self.cases().iter().filter_map(|case| self.found(case, done)).collect()
    }

    fn found<'a>(&self, case: &Case, done: &'a [Outcome]) -> Option<&'a Outcome> {
        done.iter().find(|outcome| {
            (outcome.case, outcome.sites, outcome.head) == (*case, self.sites, self.head)
                && outcome.by_round.len() == self.rounds as usize
        })
    }

    fn one(&self, case: &Case, data: &Dataset) -> Result<Outcome> {
        ensure!(case.attackers < self.sites, "expected at least one honest site");
        let network = Setup::network(data.test.shape(), self.width);
        let mut plan = Setup::plan(0.05);
        if case.source != Source::PneumoniaMnist {
            // A third of the images: two passes for the same order of steps.
            plan.local_epochs = 2;
        }
        let (sites, seed) = (self.sites, case.seed);
        let setup = Setup { network, plan: plan.clone(), sites, label_skew: None, rounds: self.rounds, seed };
        let training = Sgd { plan, decay_rounds: self.rounds };
        let aggregation = case.defence.aggregation(self.sites, self.feared)?;
        let validators = Validators::new(&data.validation, self.sites, case.attackers, case.seed)?;
        let mut federation = setup.federation(data, &training, &aggregation)?;
        if case.attack != Attack::None {
            for site in &mut federation.sites[..case.attackers] {
                site.behaviour = Some(Arc::new(case.attack));
            }
        }
        let reference = federation.sites.iter().map(|site| site.images.len()).max().unwrap_or(1);
        if case.defence.rule != Aggregated::Unbounded {
            federation.channel = Channel::Secure(SecureCodecPlan {
                bits: 8,
                clip_norm: self.first_clip_norm,
                error_feedback: false,
                kept_permille: 1000,
                reference_examples: u32::try_from(reference).context("a site of too many images")?,
                noise: None,
            });
            let largest = self.largest_clip_norm;
            federation.clip = match case.defence.rule {
                Aggregated::Groups { .. } => ClipRule::TrackingMedian { largest },
                Aggregated::Bounded | Aggregated::SitesBounded | Aggregated::Unbounded => {
                    ClipRule::Tracking { largest }
                }
            };
        }
        federation.voting = case.defence.vote.then_some(&validators as &dyn Voting);
        let run = federation.run(&mut |_| {})?;
        let last = run.rounds.last().context("no round")?;
        let tail = &run.rounds[run.rounds.len().saturating_sub(3)..];
        let accuracy =
            tail.iter().map(|round| round.figures.accuracy.estimate).sum::<f64>() / tail.len() as f64;
        Ok(Outcome {
            case: *case,
            sites: self.sites,
            head: self.head,
            auroc: run.auroc(3),
            accuracy,
            backdoor: backdoor(&setup.network, &run.model, data)?,
            rejected: run.rounds.iter().map(|round| u32::from(!round.accepted)).sum(),
            shortened: run.rounds.iter().map(|round| u32::from(round.shortened)).sum(),
            by_round: run.rounds.iter().map(|round| round.figures.auroc.estimate).collect(),
            clip_norms: run.rounds.iter().map(|round| round.clip_norm).collect(),
            last: last.figures.auroc,
        })
    }
}

impl Case {
    /// For people.
    #[must_use]
    pub fn title(&self) -> String {
        let (source, attack, defence) = (self.source.title(), self.attack.title(), self.defence.name());
        format!("{source}, seed {}, {attack} by {}, {defence}", self.seed, self.attackers)
    }
}

/// Share of patched pictures that are taken for the target.
fn backdoor(
    network: &medinet_model::NetworkManifest,
    model: &medinet_model::ModelParameters,
    data: &Dataset,
) -> Result<Interval> {
    let images = patched(&data.test).to_training_data();
    let logits = logits(network, model, &images, &ComputeDevice::cpu())?;
    let classes = network.classes.len();
    let is_target = |row: &&[f32]| {
        row.iter()
            .enumerate()
            .all(|(class, logit)| class == BACKDOOR_TARGET || *logit <= row[BACKDOOR_TARGET])
    };
    let hits = logits.chunks_exact(classes).filter(is_target).count();
    Ok(wilson_interval(hits as u64, (logits.len() / classes) as u64)?)
}
