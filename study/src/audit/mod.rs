//! Audit of privacy: what attacks of the literature get out of a released model and out of updates.
//!
//! ```text
//! Pool --coin--> members --federation--> model --+
//!      --coins--> shadow federations --> models +--> membership: scores --> ROC, rates, bounds on epsilon
//! sites --local training--> updates --+--> inversion of one update
//!                                     +--codec, sum--> what the aggregator sees --> inversion
//! ```
//!
//! An audit measures attacks, not safety: a better attack finds more. Everything is a function of the seed, bit by bit, but for private
//! training, whose sampling and noise come from the operating system, as the product has it.

mod federations;
mod inversion;
mod membership;
mod pictures;
mod released;
mod report;
mod scenes;
mod statistics;
mod verdict;

pub use federations::{KEPT_PERMILLE, Recipe, SECURE_BITS, Variant};
pub use inversion::{Effort, Evidence, Found, class_of_one, invert, paired};
pub use membership::{Answers, Attack, AttackOutcome, Pool, attack, scores};
pub use pictures::{Likeness, normalised, similarity};
pub use released::{Released, folder_of_images};
pub use report::{html, text};
pub use scenes::{Reconstruction, Scene, SceneOutcome, View};
pub use statistics::{
    Assignment, AttackFigures, EpsilonBound, FALSE_ALARMS, FAMILY_WISE_ERROR, Found as FoundMembers, Point,
    chance_of_finding, clopper_pearson, epsilon_of_rates, one_run_epsilon, share_interval,
};
pub use verdict::{Verdict, verdicts};

use crate::data::{Dataset, Images};
use crate::federation::{Figures, in_parallel};
use crate::setup::{Setup, Source};
use anyhow::{Context as _, Result, ensure};
use medinet_model::ModelParameters;
use serde::Serialize;

/// What an audit does.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AuditStudy {
    /// The data set.
    pub source: Source,
    /// Sites of the federation.
    pub sites: usize,
    /// Its rounds.
    pub rounds: u32,
    /// Passes over a site's images in a round.
    pub local_epochs: u32,
    /// Channels of the network's first stage, a multiple of 8.
    pub width: u32,
    /// Shadow models of each variant, at least 2.
    pub shadows: usize,
    /// Queries of each image, 1 to 5.
    pub queries: usize,
    /// Epsilons of private training to compare with.
    pub private: Vec<f64>,
    /// Whether the attacks are also shown a model that leaks for certain.
    pub control: bool,
    /// Whether membership is inferred.
    pub membership: bool,
    /// How hard updates are inverted; none leaves it out.
    pub inversion: Option<Effort>,
    /// Most images; all without it.
    pub head: Option<usize>,
    /// Seed of everything but private training's noise.
    pub seed: u64,
}

impl AuditStudy {
    /// What is reported by default: some ten minutes on one core.
    #[must_use]
    pub fn full() -> Self {
        Self {
            source: Source::PneumoniaMnist,
            sites: 3,
            rounds: 12,
            local_epochs: 1,
            width: 16,
            shadows: 16,
            queries: 3,
            private: vec![8.0],
            control: true,
            membership: true,
            inversion: Some(Effort::FULL),
            head: None,
            seed: 1,
        }
    }

    /// Half a minute's worth, to see that everything works: figures of it mean little.
    #[must_use]
    pub fn quick() -> Self {
        Self {
            rounds: 2,
            width: 8,
            shadows: 4,
            queries: 1,
            control: false,
            inversion: Some(Effort::QUICK),
            head: Some(240),
            ..Self::full()
        }
    }

    /// What all federations of this audit share, for images of `shape`.
    fn recipe(&self, images: &Images) -> Recipe {
        Recipe {
            network: Setup::network(images.shape(), self.width),
            sites: self.sites,
            rounds: self.rounds,
            local_epochs: self.local_epochs,
            learning_rate: 0.05,
            private_learning_rate: 0.2,
            private_clip_norm: 1.0,
            private_batch: 64.0,
            delta: 1e-5,
        }
    }

    fn variants(&self) -> Vec<Variant> {
        let private = self.private.iter().map(|&epsilon| Variant::Private { epsilon });
        std::iter::once(Variant::Plain)
            .chain(private)
            .chain(self.control.then_some(Variant::Control))
            .collect()
    }

    /// Runs the audit, with `threads` trainings or inversions at a time, which the result does not depend on; `watch` hears of each step.
    ///
    /// # Errors
    /// When the data cannot be read, a part is outside its ranges, or a training fails.
    pub fn run(
        &self,
        repository: &std::path::Path,
        threads: usize,
        watch: &(dyn Fn(&str) + Sync),
    ) -> Result<Outcome> {
        let whole = self.source.read(repository)?;
        let data = self.head.map_or_else(|| whole.clone(), |count| whole.head(count, count));
        ensure!(self.membership || self.inversion.is_some(), "nothing to audit");
        let recipe = self.recipe(&data.training);
        let pool = Pool::by_coin(data.training.clone(), self.shadows, self.seed)?;
        let mut membership = Vec::new();
        let mut promoted = None;
        for variant in self.variants() {
            let wanted = self.membership || (variant == Variant::Plain && self.inversion.is_some());
            if !wanted {
                continue;
            }
            let (outcome, model) = self
                .variant(variant, &recipe, &pool, &data, (threads, watch))
                .with_context(|| variant.title())?;
            membership.extend(outcome);
            if variant == Variant::Plain {
                promoted = Some(model);
            }
        }
        let inversion = match (self.inversion, promoted) {
            (Some(effort), Some(promoted)) => {
                scenes::run(&recipe, &pool, &promoted, &effort, self.seed, threads, watch)?
            }
            _ => Vec::new(),
        };
        let verdicts = verdicts(&membership, &inversion);
        Ok(Outcome {
            source: self.source.title().to_owned(),
            unit: unit(&pool).to_owned(),
            parameters: ModelParameters::initial(&recipe.network, 1)?.as_slice().len(),
            images: pool.images.len(),
            study: Some(self.clone()),
            released: None,
            membership,
            inversion,
            verdicts,
        })
    }

    /// Trains one variant and its shadows, and attacks it.
    fn variant(
        &self,
        variant: Variant,
        recipe: &Recipe,
        pool: &Pool,
        data: &Dataset,
        (threads, watch): (usize, &(dyn Fn(&str) + Sync)),
    ) -> Result<(Option<VariantOutcome>, ModelParameters)> {
        /// Images of the control: few enough to be known by heart.
        const CONTROL: usize = 300;
        let few = match variant {
            Variant::Control => {
                // Spread over the set, which may be sorted.
                let count = data.training.len().min(CONTROL);
                let spread: Vec<usize> =
                    (0..count).map(|place| place * data.training.len() / count).collect();
                Some(Pool::by_coin(data.training.select(&spread), self.shadows, self.seed)?)
            }
            _ => None,
        };
        let pool = few.as_ref().unwrap_or(pool);
        let title = variant.title();
        watch(&format!("{title}: training the federation that is attacked"));
        // The initial model is public: shadow models start from it too, which makes the attacker stronger.
        let train = |flags: &[bool]| -> Result<ModelParameters> {
            Ok(recipe.train(variant, pool.images_of(flags), &data.test, self.seed, 1)?.model)
        };
        let model = train(&pool.member)?;
        if !self.membership {
            return Ok((None, model));
        }
        let shadows = in_parallel(threads, self.shadows, |shadow| {
            let model = train(&pool.shadows[shadow])?;
            watch(&format!("{title}: shadow model {} of {} trained", shadow + 1, self.shadows));
            Answers::ask(&recipe.network, &model, &pool.images, self.queries)
        })?;
        let answers = Answers::ask(&recipe.network, &model, &pool.images, self.queries)?;
        let attacks = attack(pool, &answers, &shadows, recipe.delta, self.seed)?;
        let others: Vec<bool> = pool.member.iter().map(|member| !member).collect();
        let outcome = VariantOutcome {
            variant,
            title,
            test: recipe.figures(&model, &data.test).ok(),
            members: recipe.figures(&model, &pool.images_of(&pool.member)).ok(),
            others: recipe.figures(&model, &pool.images_of(&others)).ok(),
            in_turn: in_turn(pool, &answers, &shadows)?,
            attacks,
        };
        Ok((Some(outcome), model))
    }
}

/// The attacks on each shadow model too, as if it were the one, with all others as its shadows: how much of a figure is chance.
fn in_turn(pool: &Pool, answers: &Answers, shadows: &[Answers]) -> Result<Vec<InTurn>> {
    let mut all = Vec::new();
    for attack in Attack::ALL {
        let mut aucs = Vec::new();
        for turn in 0..shadows.len() {
            let mut turned = pool.clone();
            turned.member = std::mem::replace(&mut turned.shadows[turn], pool.member.clone());
            let mut others = shadows.to_vec();
            let model = std::mem::replace(&mut others[turn], answers.clone());
            let scores = scores(attack, &turned, &model, &others)?;
            aucs.push(medinet_metrics::auroc(&scores, &turned.member)?);
        }
        let mean = aucs.iter().sum::<f64>() / aucs.len().max(1) as f64;
        let low = aucs.iter().copied().fold(f64::INFINITY, f64::min);
        let high = aucs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        all.push(InTurn { attack, mean, low, high });
    }
    Ok(all)
}

/// What a score is of.
fn unit(pool: &Pool) -> &'static str {
    if pool.patients.len() == pool.images.len() { "image" } else { "patient" }
}

/// An audit's figures.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// What the images are.
    pub source: String,
    /// What a score is of, image or patient.
    pub unit: String,
    /// Parameters of the network.
    pub parameters: usize,
    /// Images of the pool.
    pub images: usize,
    /// What was done, where the audit made its own federation.
    pub study: Option<AuditStudy>,
    /// The model that was attacked, where it was given.
    pub released: Option<String>,
    /// Membership inference, by variant.
    pub membership: Vec<VariantOutcome>,
    /// Gradient inversion, by what the attacker sees.
    pub inversion: Vec<SceneOutcome>,
    /// What it shows, in words.
    pub verdicts: Vec<Verdict>,
}

/// Membership inference against one model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VariantOutcome {
    /// How it was trained.
    pub variant: Variant,
    /// The same for people.
    pub title: String,
    /// Its figures on the data set's test images, which may be of another kind; none where there is no such set or it lacks a class.
    pub test: Option<Figures>,
    /// Its figures on the members; none where a class is absent.
    pub members: Option<Figures>,
    /// Its figures on the others; none where a class is absent.
    pub others: Option<Figures>,
    /// The attacks.
    pub attacks: Vec<AttackOutcome>,
    /// The same attacks on each shadow model.
    pub in_turn: Vec<InTurn>,
}

/// AUC of an attack over all shadow models, each attacked in turn.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct InTurn {
    /// The attack.
    pub attack: Attack,
    /// Mean.
    pub mean: f64,
    /// Lowest.
    pub low: f64,
    /// Highest.
    pub high: f64,
}
