//! Membership inference: given a model and an image with its label, was the patient among those it was trained on?
//!
//! The attacker has the model, the patient's images and labels, other patients of the same kind, and knows how the model was trained.
//!
//! - **Loss threshold** (Yeom et al. 2018, section 3.2): members have less loss. The score is the negative loss.
//! - **LiRA**, the likelihood ratio attack (Carlini et al. 2022, algorithm 1, online): shadow models are trained as the model was, each on a random half
//!   of the patients. An image's logit-scaled confidence, phi = ln(p / (1 - p)) with p the probability of its class, is close to normal over
//!   shadow models; the score is how much likelier the model's own phi is under the models that had the image than under those that had not. With few
//!   shadow models each image has means of its own, and all share the variances (section VI.C there).
//!
//! A patient's score is the mean over their images, and an image's over the queries: the image itself, and shifted by a pixel.

use super::statistics::{Assignment, AttackFigures};
use crate::data::Images;
use crate::random;
use anyhow::{Context as _, Result, ensure};
use medinet_model::{ModelParameters, NetworkManifest};
use medinet_training::{ComputeDevice, InMemoryData, logits};
use rand_core::Rng as _;
use serde::Serialize;
use std::collections::BTreeMap;

/// The patients among whom members are looked for, and who of them is in which training.
#[derive(Debug, Clone)]
pub struct Pool {
    /// All images.
    pub images: Images,
    /// Indices of each patient's images.
    pub patients: Vec<Vec<usize>>,
    /// Who is a member of the model that is attacked, a flag for each patient.
    pub member: Vec<bool>,
    /// Who is in each shadow model, as `member`.
    pub shadows: Vec<Vec<bool>>,
    /// How `member` came about.
    pub assignment: Assignment,
}

impl Pool {
    /// Makes each patient of `images` a member by a fair coin, and puts each into each of `shadows` models by another.
    ///
    /// # Errors
    /// When there are fewer than 2 shadow models.
    pub fn by_coin(images: Images, shadows: usize, seed: u64) -> Result<Self> {
        let mut by_patient: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for (index, patient) in images.patients().iter().enumerate() {
            by_patient.entry(*patient).or_default().push(index);
        }
        let patients: Vec<Vec<usize>> = by_patient.into_values().collect();
        let mut coins = random(seed, "audit members", &[]);
        let member = patients.iter().map(|_| coins.next_u32() & 1 == 1).collect();
        Self::new(images, patients, member, Assignment::FairCoins, shadows, seed)
    }

    /// Members and others as they are given; no patient may be in both. Their numbers of patients are kept apart.
    ///
    /// # Errors
    /// As [`Self::by_coin`], and when the images' shapes differ or one of the sets is empty.
    pub fn given(members: &Images, others: &Images, shadows: usize, seed: u64) -> Result<Self> {
        ensure!(!members.is_empty() && !others.is_empty(), "expected members and others, got none of one");
        let images = members.followed_by(others)?;
        let mut patients: Vec<Vec<usize>> = Vec::new();
        let mut member = Vec::new();
        for (set, first, is_member) in [(members, 0, true), (others, members.len(), false)] {
            let mut by_patient: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
            for (index, patient) in set.patients().iter().enumerate() {
                by_patient.entry(*patient).or_default().push(first + index);
            }
            member.extend(by_patient.iter().map(|_| is_member));
            patients.extend(by_patient.into_values());
        }
        Self::new(images, patients, member, Assignment::Given, shadows, seed)
    }

    fn new(
        images: Images,
        patients: Vec<Vec<usize>>,
        member: Vec<bool>,
        assignment: Assignment,
        shadows: usize,
        seed: u64,
    ) -> Result<Self> {
        ensure!(shadows >= 2, "expected at least 2 shadow models, got {shadows}");
        // A coin for each patient and model: were each patient in just half of them, the others would tell who is in one.
        let drawn = (0..shadows)
            .map(|shadow| {
                let mut coins = random(seed, "audit shadows", &[shadow as u64]);
                patients.iter().map(|_| coins.next_u32() & 1 == 1).collect()
            })
            .collect();
        Ok(Self { images, patients, member, shadows: drawn, assignment })
    }

    /// The images of the patients with a flag.
    #[must_use]
    pub fn images_of(&self, flags: &[bool]) -> Images {
        let mut indices: Vec<usize> = self
            .patients
            .iter()
            .zip(flags)
            .filter(|(_, flag)| **flag)
            .flat_map(|(images, _)| images.iter().copied())
            .collect();
        indices.sort_unstable();
        self.images.select(&indices)
    }
}

/// What one model says of every image of a pool.
#[derive(Debug, Clone, PartialEq)]
pub struct Answers {
    /// Cross entropy of each image's class.
    loss: Vec<f64>,
    /// phi for each query of each image: `queries` values an image.
    phi: Vec<f64>,
    queries: usize,
}

impl Answers {
    /// Asks a model about all images, each as it is and, with `queries` up to 5, shifted by a pixel to the left, right, top and bottom.
    ///
    /// # Errors
    /// When the parameters are not the network's, or `queries` is not 1 to 5.
    pub fn ask(
        network: &NetworkManifest,
        model: &ModelParameters,
        images: &Images,
        queries: usize,
    ) -> Result<Self> {
        Self::of(network.classes.len(), images, queries, |data| {
            Ok(logits(network, model, data, &ComputeDevice::cpu())?)
        })
    }

    /// The same of any model that gives the logits `[images, classes]` of a data set.
    ///
    /// # Errors
    /// As [`Self::ask`], and when the model fails.
    pub fn of(
        classes: usize,
        images: &Images,
        queries: usize,
        logits: impl Fn(&InMemoryData) -> Result<Vec<f32>>,
    ) -> Result<Self> {
        ensure!((1..=SHIFTS.len()).contains(&queries), "expected 1 to 5 queries, got {queries}");
        let mut phi = vec![0.0; images.len() * queries];
        let mut loss = Vec::new();
        for (query, shift) in SHIFTS[..queries].iter().enumerate() {
            let all = logits(&shifted(images, *shift))?;
            for (index, row) in all.chunks_exact(classes.max(1)).enumerate() {
                let value = confidence(row, images.classes()[index]);
                phi[index * queries + query] = value;
                if query == 0 {
                    // -ln p with p = 1 / (1 + e^-phi), without overflow.
                    loss.push((-value).max(0.0) + (-value.abs()).exp().ln_1p());
                }
            }
        }
        Ok(Self { loss, phi, queries })
    }
}

const SHIFTS: [(isize, isize); 5] = [(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)];

/// phi = ln(p / (1 - p)) of a class: its logit less the logarithm of the sum of the others' exponentials.
fn confidence(logits: &[f32], class: usize) -> f64 {
    let others = logits.iter().enumerate().filter(|(index, _)| *index != class);
    let others: Vec<f64> = others.map(|(_, logit)| f64::from(*logit)).collect();
    let highest = others.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = others.iter().map(|logit| (logit - highest).exp()).sum();
    f64::from(logits[class]) - highest - sum.ln()
}

/// All images moved by `x` to the right and `y` down; the edge repeats.
fn shifted(images: &Images, (x, y): (isize, isize)) -> InMemoryData {
    let shape = images.shape();
    let (height, width) = (shape.height as isize, shape.width as isize);
    let mut values =
        Vec::with_capacity(images.len() * (shape.channels * shape.height * shape.width) as usize);
    for index in 0..images.len() {
        for map in images.image(index).chunks_exact((height * width) as usize) {
            for row in 0..height {
                let from = (row - y).clamp(0, height - 1) * width;
                values
                    .extend((0..width).map(|column| map[(from + (column - x).clamp(0, width - 1)) as usize]));
            }
        }
    }
    InMemoryData::new(shape, values, images.classes().to_vec())
}

/// An attack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Attack {
    /// Yeom et al. 2018.
    LossThreshold,
    /// Carlini et al. 2022.
    Lira,
}

impl Attack {
    /// Both, in the order of reports.
    pub const ALL: [Self; 2] = [Self::LossThreshold, Self::Lira];

    /// As people call it.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::LossThreshold => "loss threshold",
            Self::Lira => "LiRA",
        }
    }
}

/// A score for each patient of the pool, higher for likely members; `shadows` are the answers of the pool's shadow models, in order.
///
/// # Errors
/// When the answers are not all of the pool's images.
pub fn scores(attack: Attack, pool: &Pool, model: &Answers, shadows: &[Answers]) -> Result<Vec<f64>> {
    let count = pool.images.len();
    ensure!(model.loss.len() == count, "expected answers on {count} images, got {}", model.loss.len());
    let of_images: Vec<f64> = match attack {
        Attack::LossThreshold => model.loss.iter().map(|loss| -loss).collect(),
        Attack::Lira => lira(pool, model, shadows)?,
    };
    let mean = |images: &Vec<usize>| images.iter().map(|i| of_images[*i]).sum::<f64>() / images.len() as f64;
    Ok(pool.patients.iter().map(mean).collect())
}

/// Sums of one image's phi over the shadow models with it, or without it.
#[derive(Default, Clone, Copy)]
struct Sums {
    count: f64,
    sum: f64,
    squares: f64,
}

impl Sums {
    fn add(&mut self, value: f64) {
        self.count += 1.0;
        self.sum += value;
        self.squares += value * value;
    }

    fn mean(&self) -> f64 {
        self.sum / self.count
    }

    /// Sum of squared distances from the mean.
    fn scatter(&self) -> f64 {
        if self.count == 0.0 {
            return 0.0;
        }
        (self.squares - self.sum * self.sum / self.count).max(0.0)
    }
}

fn lira(pool: &Pool, model: &Answers, shadows: &[Answers]) -> Result<Vec<f64>> {
    ensure!(
        shadows.len() == pool.shadows.len() && !shadows.is_empty(),
        "expected the answers of {} shadow models, got {}",
        pool.shadows.len(),
        shadows.len()
    );
    let values = model.phi.len();
    ensure!(
        shadows.iter().all(|answers| answers.phi.len() == values && answers.queries == model.queries),
        "expected as many queries of each shadow model as of the model"
    );
    // [without, with] for each query of each image.
    let mut sums = vec![[Sums::default(); 2]; values];
    for (flags, answers) in pool.shadows.iter().zip(shadows) {
        for (images, flag) in pool.patients.iter().zip(flags) {
            for place in images.iter().flat_map(|image| image * model.queries..(image + 1) * model.queries) {
                sums[place][usize::from(*flag)].add(answers.phi[place]);
            }
        }
    }
    let variance = |side: usize| {
        let scatter: f64 = sums.iter().map(|sums| sums[side].scatter()).sum();
        let freedom: f64 = sums.iter().map(|sums| (sums[side].count - 1.0).max(0.0)).sum();
        // Models that all say the same would have none.
        (scatter / freedom.max(1.0)).max(1e-9)
    };
    let variances = [variance(0), variance(1)];
    let at = |place: usize| {
        if sums[place].iter().any(|side| side.count == 0.0) {
            // All shadow models had it, or none: nothing to compare.
            return 0.0;
        }
        let likelihood = |side: usize| {
            let distance = model.phi[place] - sums[place][side].mean();
            -0.5 * distance * distance / variances[side] - 0.5 * variances[side].ln()
        };
        likelihood(1) - likelihood(0)
    };
    let mean = |image: usize| {
        (image * model.queries..(image + 1) * model.queries).map(at).sum::<f64>() / model.queries as f64
    };
    Ok((0..pool.images.len()).map(mean).collect())
}

/// An attack on one model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AttackOutcome {
    /// Which.
    pub attack: Attack,
    /// What it found.
    pub figures: AttackFigures,
}

/// Both attacks on a model, which is asked about every image of the pool with `queries` queries, as the shadow models were.
///
/// # Errors
/// When models, answers and pool do not fit.
pub fn attack(
    pool: &Pool,
    model: &Answers,
    shadows: &[Answers],
    delta: f64,
    seed: u64,
) -> Result<Vec<AttackOutcome>> {
    Attack::ALL
        .into_iter()
        .map(|attack| {
            let scores = scores(attack, pool, model, shadows)?;
            let figures = AttackFigures::of(&scores, &pool.member, pool.assignment, delta, seed)
                .with_context(|| format!("the figures of {}", attack.title()))?;
            Ok(AttackOutcome { attack, figures })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use medinet_model::InputShape;

    fn images(count: usize) -> Images {
        let shape = InputShape { channels: 1, height: 28, width: 28 };
        let values = (0..784 * count).map(|i| (i % 13) as f32).collect();
        let patients: Vec<u32> = (0..count as u32).map(|image| image / 2).collect();
        Images::new(shape, values, (0..count).map(|i| i % 2).collect(), patients).unwrap()
    }

    #[test]
    fn each_patient_is_whole_and_in_about_half_of_the_shadow_models() {
        let pool = Pool::by_coin(images(400), 6, 1).unwrap();
        assert_eq!(pool.patients.len(), 200);
        assert!(pool.patients.iter().all(|images| images.len() == 2));
        let members = pool.member.iter().filter(|member| **member).count();
        assert!((75..125).contains(&members), "{members}");
        for flags in &pool.shadows {
            let of = flags.iter().filter(|flag| **flag).count();
            assert!((70..130).contains(&of), "{of}");
        }
        assert_ne!(pool.shadows[0], pool.shadows[1]);
        let of = pool.images_of(&pool.member);
        assert_eq!(of.len(), 2 * members);
        assert_ne!(Pool::by_coin(images(400), 6, 2).unwrap().member, pool.member);
        assert!(Pool::by_coin(images(4), 1, 1).is_err());
    }

    #[test]
    fn given_members_keep_their_patients_apart_from_others() {
        let pool = Pool::given(&images(4), &images(6), 2, 1).unwrap();
        assert_eq!(pool.member, [true, true, false, false, false]);
        assert_eq!(pool.patients[2], [4, 5]);
        assert_eq!(pool.assignment, Assignment::Given);
        assert!(Pool::given(&images(4), &images(0), 2, 1).is_err());
    }

    #[test]
    fn confidence_is_the_logit_of_the_probability() {
        let logits = [1.0f32, -0.5, 2.0];
        let total: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
        let p = f64::from(logits[2]).exp() / total;
        assert!((confidence(&logits, 2) - (p / (1.0 - p)).ln()).abs() < 1e-12);
        assert!(confidence(&[500.0, -500.0], 1) == -1000.0);
    }

    #[test]
    fn a_shift_repeats_the_edge() {
        use medinet_training::TrainingData as _;
        let shape = InputShape { channels: 1, height: 2, width: 3 };
        let set = Images::new(shape, vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0], vec![0], vec![0]).unwrap();
        let mut moved = [0.0; 6];
        shifted(&set, (1, 0)).read(0, &mut moved).unwrap();
        assert_eq!(moved, [1.0, 1.0, 2.0, 4.0, 4.0, 5.0]);
        shifted(&set, (0, -1)).read(0, &mut moved).unwrap();
        assert_eq!(moved, [4.0, 5.0, 6.0, 4.0, 5.0, 6.0]);
    }

    #[test]
    fn lira_finds_what_is_planted_in_the_answers() {
        // Every model says 1 more of what it had been trained on, around levels that differ far more between images than that.
        let pool = Pool::by_coin(images(800), 8, 3).unwrap();
        let mut random = random(9, "test", &[]);
        let mut noise = || (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64 - 0.5;
        let levels: Vec<f64> = (0..800).map(|_| 20.0 * noise()).collect();
        let mut answers = |flags: &[bool]| {
            let mut phi = vec![0.0; 800];
            for (images, flag) in pool.patients.iter().zip(flags) {
                for &image in images {
                    phi[image] = levels[image] + f64::from(u8::from(*flag)) + noise();
                }
            }
            Answers { loss: phi.iter().map(|phi| -phi).collect(), phi, queries: 1 }
        };
        let model = answers(&pool.member);
        let shadows: Vec<Answers> = pool.shadows.iter().map(|flags| answers(flags)).collect();
        let outcomes = attack(&pool, &model, &shadows, 0.0, 1).unwrap();
        let auc = |attack: usize| outcomes[attack].figures.auc;
        // The levels hide it from a threshold on the loss.
        assert!(auc(0).estimate < 0.6 && auc(1).low > 0.95, "{:?} {:?}", auc(0), auc(1));
        assert!(outcomes[1].figures.epsilon.one_run.unwrap() > 1.0);
        assert!(attack(&pool, &model, &shadows[1..], 0.0, 1).is_err());
    }
}
