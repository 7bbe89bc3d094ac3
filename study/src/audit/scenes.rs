//! Where inversion is tried: against one site's update, and against what the aggregator sees of several.

use super::federations::Recipe;
use super::inversion::{Effort, Evidence, class_of_one, invert, paired};
use super::membership::Pool;
use super::pictures::{Likeness, data_uri, normalised, similarity};
use crate::data::Images;
use crate::federation::in_parallel;
use crate::random;
use crate::split::SplitPlan;
use anyhow::{Context as _, Result, ensure};
use medinet_model::ModelParameters;
use serde::Serialize;
use std::collections::HashSet;

/// Pictures that are searched for where an update is of more images than can be.
const FEW: usize = 6;

/// What the attacker sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum View {
    /// One site's update as trained: what nobody sees in a secure round.
    Update,
    /// What the aggregator decodes from the sum of this many sites' updates.
    SumOf(usize),
}

/// Which model an update was trained from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Base {
    /// The initial one: the first round.
    Initial,
    /// The promoted one: a round more.
    Promoted,
}

/// One kind of attack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Scene {
    /// What the attacker sees.
    pub view: View,
    /// Images of each site in the round; none for all that it has, in the product's local epochs. With few images the round is one step.
    pub images: Option<usize>,
    /// The model before.
    pub base: Base,
    /// How often it is tried, with other images each time.
    pub times: usize,
}

impl Scene {
    /// The scenes of a report, from the attacker's best case to the product's rounds.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let scene = |view, images, base, times| Self { view, images, base, times };
        vec![
            scene(View::Update, Some(1), Base::Initial, 4),
            scene(View::Update, Some(1), Base::Promoted, 4),
            scene(View::Update, Some(8), Base::Initial, 1),
            scene(View::Update, None, Base::Initial, 1),
            scene(View::SumOf(3), Some(1), Base::Initial, 2),
            scene(View::SumOf(10), Some(1), Base::Initial, 1),
            scene(View::SumOf(3), None, Base::Initial, 1),
            scene(View::SumOf(10), None, Base::Initial, 1),
        ]
    }

    /// As people call it.
    #[must_use]
    pub fn title(&self) -> String {
        let seen = match self.view {
            View::Update => "one site's raw update".to_owned(),
            View::SumOf(sites) => format!("aggregator's view of {sites} sites"),
        };
        let content = match (self.images, self.view) {
            (Some(1), View::Update) => "of a step on 1 image".to_owned(),
            (Some(1), View::SumOf(_)) => "a step on 1 image each".to_owned(),
            (Some(images), View::Update) => format!("of a step on {images} images"),
            (Some(images), View::SumOf(_)) => format!("a step on {images} images each"),
            (None, View::Update) => "after a local epoch".to_owned(),
            (None, View::SumOf(_)) => "a local epoch each".to_owned(),
        };
        let base = match self.base {
            Base::Initial => "first round",
            Base::Promoted => "promoted model",
        };
        format!("{seen}, {content}, {base}")
    }
}

/// A picture that the attacker made.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Reconstruction {
    /// Likeness to the image it is compared with: the one in the round, or where the round had hundreds, the one of them most like it.
    pub likeness: Likeness,
    /// Likeness of what costs no attack: of the mean image of the class and a random image of it, the one more alike. Where the round had hundreds: of the
    /// image most like it among as many that were not in the round.
    pub baseline: Likeness,
    /// How many images of the pool are as much like the picture as the true one; 1 means that it points at the very image. None where the round had hundreds.
    pub rank: Option<usize>,
    /// The picture, as PNG in a data URI.
    #[serde(skip)]
    pub picture: String,
    /// The image it is compared with.
    #[serde(skip)]
    pub truth: String,
    /// The baseline.
    #[serde(skip)]
    pub other: String,
}

impl Reconstruction {
    /// Whether it is more like the true image than what costs no attack.
    #[must_use]
    pub fn beats_baseline(&self) -> bool {
        self.likeness.correlation > self.baseline.correlation
    }
}

/// What came of a scene.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SceneOutcome {
    /// The scene.
    pub scene: Scene,
    /// The same for people.
    pub title: String,
    /// Images behind what the attacker saw.
    pub behind: usize,
    /// Images among which a picture may point at the true one.
    pub candidates: usize,
    /// 1 - cos at the end of the search, mean over the tries.
    pub distance: f64,
    /// Of updates of a single image: how often the attacker inferred its class rightly.
    pub classes_right: Option<usize>,
    /// The pictures.
    pub pictures: Vec<Reconstruction>,
}

impl SceneOutcome {
    /// Mean of a figure over the pictures.
    #[must_use]
    pub fn mean(&self, of: impl Fn(&Reconstruction) -> f64) -> f64 {
        self.pictures.iter().map(of).sum::<f64>() / self.pictures.len().max(1) as f64
    }

    /// Pictures that point at the very image.
    #[must_use]
    pub fn recognised(&self) -> usize {
        self.pictures.iter().filter(|picture| picture.rank == Some(1)).count()
    }

    /// Pictures that beat the baseline.
    #[must_use]
    pub fn better(&self) -> usize {
        self.pictures.iter().filter(|picture| picture.beats_baseline()).count()
    }
}

/// All scenes.
pub(super) fn run(
    recipe: &Recipe,
    pool: &Pool,
    promoted: &ModelParameters,
    effort: &Effort,
    seed: u64,
    threads: usize,
    watch: &(dyn Fn(&str) + Sync),
) -> Result<Vec<SceneOutcome>> {
    ensure!(pool.images.shape().channels == 1, "expected images of one map to invert");
    let initial = ModelParameters::initial(&recipe.network, seed)?;
    let scenes = Scene::all();
    in_parallel(threads, scenes.len(), |index| {
        let scene = scenes[index];
        let base = match scene.base {
            Base::Initial => &initial,
            Base::Promoted => promoted,
        };
        let stage = Stage { recipe, pool, base, effort, seed: seed.wrapping_add(index as u64) };
        let outcome = stage.play(&scene).with_context(|| scene.title())?;
        watch(&format!("inversion: {}: {} pictures", outcome.title, outcome.pictures.len()));
        Ok(outcome)
    })
}

/// What a scene is played on.
struct Stage<'a> {
    recipe: &'a Recipe,
    pool: &'a Pool,
    base: &'a ModelParameters,
    effort: &'a Effort,
    seed: u64,
}

impl Stage<'_> {
    fn play(&self, scene: &Scene) -> Result<SceneOutcome> {
        let mut outcome = SceneOutcome {
            scene: *scene,
            title: scene.title(),
            behind: 0,
            candidates: self.pool.images.len(),
            distance: 0.0,
            classes_right: (scene.images == Some(1) && scene.view == View::Update).then_some(0),
            pictures: Vec::new(),
        };
        for time in 0..scene.times {
            let seed = self.seed.wrapping_mul(100).wrapping_add(time as u64);
            let sites = self.sites(scene, seed)?;
            let updates = self.recipe.updates(&sites, self.base, 1, seed)?;
            let seen = match scene.view {
                View::Update => updates.into_iter().next().context("a site")?.delta,
                View::SumOf(_) => self.recipe.seen_by_aggregator(updates, self.base, 1, seed)?,
            };
            let mut truths = sites[0].clone();
            for more in &sites[1..] {
                truths = truths.followed_by(more)?;
            }
            let typical = self.typical(&truths);
            let evidence =
                Evidence { network: &self.recipe.network, base: self.base, update: &seen, typical: &typical };
            outcome.behind = truths.len();
            let classes = if scene.images.is_none() {
                // As many of each class: what a site's classes are is not known to the image.
                (0..FEW).map(|place| place % self.recipe.network.classes.len()).collect()
            } else if let Some(right) = &mut outcome.classes_right {
                let class = class_of_one(&evidence)?;
                *right += usize::from(class == truths.classes()[0]);
                vec![class]
            } else {
                truths.classes().to_vec()
            };
            // A search for one image is cheap: it may take longer.
            let steps = self.effort.steps * if classes.len() == 1 { 2 } else { 1 };
            let found = invert(&evidence, &classes, &Effort { steps, ..*self.effort }, seed)?;
            outcome.distance += found.distance / scene.times as f64;
            let pictures = if scene.images.is_none() {
                self.among_many(&found.images, &truths, seed)?
            } else {
                self.one_by_one(&found.images, &truths, &typical, seed)?
            };
            outcome.pictures.extend(pictures);
        }
        Ok(outcome)
    }

    /// The images of each site of the round. Few are drawn from the pool, of both classes in turn; whole sites share the members.
    fn sites(&self, scene: &Scene, seed: u64) -> Result<Vec<Images>> {
        let count = match scene.view {
            View::Update => 1,
            View::SumOf(sites) => sites,
        };
        let Some(images) = scene.images else {
            // A raw update is of a site of the audit's federation.
            let among = if scene.view == View::Update { self.recipe.sites } else { count };
            let members = self.pool.images_of(&self.pool.member);
            let mut dealt = SplitPlan::even(among, self.seed).deal(&members)?;
            dealt.truncate(count);
            return Ok(dealt);
        };
        let mut random = random(seed, "audit scene", &[]);
        let mut drawn: Vec<usize> = Vec::new();
        let mut sites = Vec::new();
        for site in 0..count {
            let mut of_site = Vec::new();
            while of_site.len() < images {
                // Classes in turn, over the sites too; of single images over the tries.
                let class = (of_site.len() + site + seed as usize) % 2;
                let pick = below(&mut random, self.pool.images.len());
                if self.pool.images.classes()[pick] == class && !drawn.contains(&pick) {
                    drawn.push(pick);
                    of_site.push(pick);
                }
            }
            sites.push(self.pool.images.select(&of_site));
        }
        Ok(sites)
    }

    /// Each true image with the found one that is most like it.
    fn one_by_one(
        &self,
        found: &[Vec<f32>],
        truths: &Images,
        typical: &[Vec<f32>],
        seed: u64,
    ) -> Result<Vec<Reconstruction>> {
        let all = &self.pool.images;
        let mut random = random(seed, "audit baseline", &[]);
        let mut pictures = Vec::new();
        for (truth, index) in paired(found, truths).into_iter().enumerate() {
            let index = index.context("an image was found for each")?;
            let (image, truth_image) = (&found[index], truths.image(truth));
            let alike = similarity(image, truth_image);
            let rank = 1
                + (0..all.len()).filter(|other| similarity(image, all.image(*other)) > alike + 1e-9).count();
            let class = truths.classes()[truth];
            let baseline = self.without_attack(truth_image, class, &typical[class], &mut random);
            let shape = all.shape();
            pictures.push(Reconstruction {
                likeness: Likeness::of(image, truth_image, shape),
                baseline: Likeness::of(&baseline, truth_image, shape),
                rank: Some(rank),
                picture: data_uri(image, truth_image, shape)?,
                truth: data_uri(truth_image, truth_image, shape)?,
                other: data_uri(&baseline, truth_image, shape)?,
            });
        }
        Ok(pictures)
    }

    /// The mean image of each class, of all images but those of the round: what a public collection of X-rays would give.
    fn typical(&self, round: &Images) -> Vec<Vec<f32>> {
        let all = &self.pool.images;
        let bits = |image: &[f32]| -> Vec<u32> { image.iter().map(|value| value.to_bits()).collect() };
        let inside: HashSet<Vec<u32>> = (0..round.len()).map(|index| bits(round.image(index))).collect();
        let mut means = vec![vec![0.0f32; all.image(0).len()]; self.recipe.network.classes.len()];
        for index in 0..all.len() {
            if !inside.contains(&bits(all.image(index))) {
                let mean = &mut means[all.classes()[index]];
                mean.iter_mut().zip(all.image(index)).for_each(|(mean, value)| *mean += value);
            }
        }
        means.iter_mut().for_each(|mean| normalised(mean));
        means
    }

    /// The mean image of a class, or another image of it at random: whichever is more like the true one.
    fn without_attack(
        &self,
        truth: &[f32],
        class: usize,
        mean: &[f32],
        random: &mut impl rand_core::Rng,
    ) -> Vec<f32> {
        let all = &self.pool.images;
        let others: Vec<usize> = (0..all.len())
            .filter(|other| all.classes()[*other] == class && all.image(*other) != truth)
            .collect();
        let one = others.get(below(random, others.len().max(1))).map(|index| all.image(*index));
        let one = one.filter(|one| similarity(one, truth) > similarity(mean, truth));
        one.unwrap_or(mean).to_vec()
    }

    /// Each found image with the one most like it in the round, against the one most like it among as many that were not.
    fn among_many(&self, found: &[Vec<f32>], truths: &Images, seed: u64) -> Result<Vec<Reconstruction>> {
        let outside: Vec<bool> = self.pool.member.iter().map(|member| !member).collect();
        let others = self.pool.images_of(&outside);
        let mut random = random(seed, "audit control", &[]);
        let mut indices: Vec<usize> = (0..others.len()).collect();
        for last in (1..indices.len()).rev() {
            indices.swap(last, below(&mut random, last + 1));
        }
        indices.truncate(truths.len());
        let others = others.select(&indices);
        let most_alike = |image: &[f32], images: &Images| {
            (0..images.len())
                .max_by(|a, b| {
                    similarity(image, images.image(*a)).total_cmp(&similarity(image, images.image(*b)))
                })
                .context("expected images in the round and outside")
        };
        found
            .iter()
            .map(|image| {
                let truth = truths.image(most_alike(image, truths)?);
                let other = others.image(most_alike(image, &others)?);
                let shape = truths.shape();
                Ok(Reconstruction {
                    likeness: Likeness::of(image, truth, shape),
                    baseline: Likeness::of(image, other, shape),
                    rank: None,
                    picture: data_uri(image, truth, shape)?,
                    truth: data_uri(truth, truth, shape)?,
                    other: data_uri(other, other, shape)?,
                })
            })
            .collect()
    }
}

fn below(random: &mut impl rand_core::Rng, count: usize) -> usize {
    ((u128::from(random.next_u64()) * count as u128) >> 64) as usize
}
