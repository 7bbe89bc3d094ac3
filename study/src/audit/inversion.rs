//! Gradient inversion: pictures from an update.
//!
//! The attacker has the model that an update was trained from and the update, and looks for images whose gradient points the same way (Geiping et al. 2020,
//! equation 4): it minimises `1 - cos(g(x), u) + alpha TV(x)` over x, where u is the update turned round. Three things are made for these networks, each because
//! without it the search finds nothing:
//!
//! - **Tensors weigh alike.** The last layer's gradient is a hundred times longer than any other and says least of the image. Each parameter tensor is
//!   divided by its norm in u before the cosine is taken.
//! - **Smooth first.** x is searched in its cosine transform by Adam (Kingma and Ba 2015), low frequencies moving most: X-rays are smooth.
//! - **A start that looks like an X-ray**: the mean of public images of the class, with smooth noise on it where several are searched for. What counts as success must then be more than that mean.
//!
//! **The second derivative.** With g(x) the gradient of the loss L by the parameters w and v the derivative of the cosine distance by g, the derivative by x is
//! that of `<g(x), v>` with v held fixed, which is the slope along v of the loss's derivative by x:
//!
//! ```text
//! d/dx <g(x), v> = d/dh grad_x L(w + h v, x) at h = 0 = (grad_x L(w + h v, x) - grad_x L(w - h v, x)) / 2h + O(h²)      (1)
//! ```
//!
//! Two first-order passes instead of one of second order. With ReLU, g jumps wherever an activation changes its sign, and the exact derivative knows nothing of
//! the jumps: a search along it gets stuck. The difference over a distance h |v| takes in those that it passes, and so follows a smoothed objective. [`RADIUS`] is
//! the distance that worked best of 0.01 to 2 on PneumoniaMNIST; parameters have a norm of 20 to 30.
//!
//! **The class of a single image** needs no search: the last layer's bias has the gradient p - y, which is negative for the image's class alone (Zhao et al. 2020).
//! For more images than one the attacker is given the classes. Each image is normalised to mean 0 and deviation 1, as everyone in the federation knows, and so are
//! the attacker's after each step.

use super::pictures::{normalised, similarity};
use crate::data::Images;
use crate::random;
use anyhow::{Context as _, Result, ensure};
use medinet_model::{InputShape, ModelParameters, NetworkManifest, ParameterLayout};
use medinet_training::{ProbeBatch, image_gradient, parameter_gradient};
use serde::Serialize;

/// How far equation (1) moves the parameters, as an L2 norm.
const RADIUS: f64 = 0.5;
/// Deviation of the noise on the start, where more images than one are searched for: from one start they would stay one.
const NOISE: f32 = 0.4;

/// How hard an attacker tries.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Effort {
    /// Steps of the search, at least 1.
    pub steps: u32,
    /// Searches from different starts, at least 1; the one with the least distance counts, which the attacker sees.
    pub restarts: u32,
    /// Size of the first steps, in deviations of the image, at frequency 0; it falls to a thousandth by tens (Geiping et al. 2020).
    pub step_size: f32,
    /// alpha: weight of the total variation.
    pub smoothness: f32,
}

impl Effort {
    /// What the reported attacks use.
    pub const FULL: Self = Self { steps: 600, restarts: 1, step_size: 0.3, smoothness: 0.03 };
    /// A few seconds.
    pub const QUICK: Self = Self { steps: 60, restarts: 1, step_size: 0.3, smoothness: 0.03 };
}

/// What the attacker starts from.
#[derive(Debug, Clone, Copy)]
pub struct Evidence<'a> {
    /// The network.
    pub network: &'a NetworkManifest,
    /// The model that the update was trained from.
    pub base: &'a ModelParameters,
    /// The update, or what the attacker has of it: parameters after less parameters before.
    pub update: &'a [f32],
    /// What images of each class look like in the mean, normalised: from public images.
    pub typical: &'a [Vec<f32>],
}

/// What the attacker found.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// The images, normalised.
    pub images: Vec<Vec<f32>>,
    /// The class that the attacker took each to be of.
    pub classes: Vec<usize>,
    /// 1 - cos at the end.
    pub distance: f64,
}

/// The class of the only image behind an update, from the gradient of the last layer's bias.
///
/// # Errors
/// When the update is shorter than a layer.
pub fn class_of_one(evidence: &Evidence<'_>) -> Result<usize> {
    let classes = evidence.network.classes.len();
    let first = evidence.update.len().checked_sub(classes).context("an update without a last layer")?;
    // The update is minus the gradient: the only class whose bias grows.
    let bias = &evidence.update[first..];
    (0..classes).max_by(|a, b| bias[*a].total_cmp(&bias[*b])).context("expected a network of some classes")
}

/// Looks for images of these classes whose gradient is like the update.
///
/// # Errors
/// When update, parameters and network do not fit, or the effort is none.
pub fn invert(evidence: &Evidence<'_>, classes: &[usize], effort: &Effort, seed: u64) -> Result<Found> {
    ensure!(
        effort.steps > 0 && effort.restarts > 0,
        "expected at least one step of one search, got {} of {}",
        effort.steps,
        effort.restarts
    );
    let matching = Matching::new(evidence, classes, effort.smoothness)?;
    let mut best: Option<Found> = None;
    for restart in 0..effort.restarts {
        let found = matching.search(effort, seed, restart)?;
        if best.as_ref().is_none_or(|best| found.distance < best.distance) {
            best = Some(found);
        }
    }
    best.context("at least one search was made")
}

/// The objective of one attack.
struct Matching<'a> {
    network: &'a NetworkManifest,
    base: &'a ModelParameters,
    /// What each parameter's gradient is multiplied by.
    weights: Vec<f32>,
    /// u times the weights, of norm 1.
    target: Vec<f32>,
    typical: &'a [Vec<f32>],
    classes: &'a [usize],
    smoothness: f32,
}

impl<'a> Matching<'a> {
    fn new(evidence: &Evidence<'a>, classes: &'a [usize], smoothness: f32) -> Result<Self> {
        let Evidence { network, base, update, typical } = *evidence;
        let shape = network.input;
        let size = (shape.channels * shape.height * shape.width) as usize;
        ensure!(
            update.len() == base.as_slice().len(),
            "expected an update of {} parameters, got {}",
            base.as_slice().len(),
            update.len()
        );
        ensure!(
            typical.len() == network.classes.len() && typical.iter().all(|image| image.len() == size),
            "expected an image of {size} values for each of {} classes",
            network.classes.len()
        );
        ensure!(
            !classes.is_empty() && classes.iter().all(|class| *class < typical.len()),
            "expected classes below {}, got {classes:?}",
            typical.len()
        );
        ensure!(norm(update) > 0.0, "expected an update that is not zero");
        let mut weights = vec![0.0f32; update.len()];
        for tensor in ParameterLayout::of(network)?.tensors() {
            let length = norm(&update[tensor.range()]);
            if length > 0.0 {
                weights[tensor.range()].fill((1.0 / length) as f32);
            }
        }
        let mut target: Vec<f32> =
            update.iter().zip(&weights).map(|(value, weight)| -value * weight).collect();
        let length = norm(&target);
        target.iter_mut().for_each(|value| *value = (f64::from(*value) / length) as f32);
        Ok(Self { network, base, weights, target, typical, classes, smoothness })
    }

    /// 1 - cos(g(x), u), and its derivative by x, equation (1) over a distance of `radius`.
    fn distance(&self, images: &[f32], radius: f64) -> Result<(f64, Vec<f32>)> {
        let batch = ProbeBatch { images, classes: self.classes };
        let mut gradient = parameter_gradient(self.network, self.base, batch)?;
        gradient.iter_mut().zip(&self.weights).for_each(|(value, weight)| *value *= weight);
        let length = norm(&gradient).max(1e-20);
        let cosine = dot(&gradient, &self.target) / length;
        // v, the derivative of -cos by g.
        let direction: Vec<f64> = gradient
            .iter()
            .zip(self.target.iter().zip(&self.weights))
            .map(|(&g, (&t, &w))| (cosine * f64::from(g) / length - f64::from(t)) / length * f64::from(w))
            .collect();
        let size = direction.iter().map(|v| v * v).sum::<f64>().sqrt();
        if size < 1e-12 {
            return Ok((1.0 - cosine, vec![0.0; images.len()]));
        }
        let at = |sign: f64| -> Result<Vec<f32>> {
            let moved = self.base.as_slice().iter().zip(&direction);
            let moved = moved.map(|(&w, v)| (f64::from(w) + sign * radius * v / size) as f32).collect();
            Ok(image_gradient(self.network, &ModelParameters::new(self.network, moved)?, batch)?)
        };
        let scale = size / (2.0 * radius);
        let slope = at(1.0)?.iter().zip(&at(-1.0)?).map(|(a, b)| (f64::from(a - b) * scale) as f32).collect();
        Ok((1.0 - cosine, slope))
    }

    /// The first images: typical ones, with noise where there are several or it is not the first search.
    fn start(&self, waves: &Cosines, seed: u64, restart: u32) -> Vec<f32> {
        let mut random = random(seed, "audit inversion", &[u64::from(restart)]);
        let noise = if self.classes.len() > 1 || restart > 0 { NOISE } else { 0.0 };
        let mut images = Vec::new();
        for &class in self.classes {
            let mut image = self.typical[class].clone();
            for map in image.chunks_exact_mut(waves.size()) {
                let mut rough: Vec<f32> =
                    waves.speeds.iter().map(|speed| normal(&mut random) * speed * speed).collect();
                rough[0] = 0.0;
                let mut rough = waves.image(&rough);
                normalised(&mut rough);
                map.iter_mut().zip(&rough).for_each(|(value, rough)| *value += noise * rough);
            }
            normalised(&mut image);
            images.extend(image);
        }
        images
    }

    fn search(&self, effort: &Effort, seed: u64, restart: u32) -> Result<Found> {
        let shape = self.network.input;
        let size = (shape.channels * shape.height * shape.width) as usize;
        let waves = Cosines::new(shape);
        let mut images = self.start(&waves, seed, restart);
        let (mut mean, mut square) = (vec![0.0f32; images.len()], vec![0.0f32; images.len()]);
        for step in 0..effort.steps {
            let (_, mut slope) = self.distance(&images, RADIUS)?;
            for (image, slope) in images.chunks_exact(size).zip(slope.chunks_exact_mut(size)) {
                add_variation(image, slope, shape, self.smoothness);
            }
            let rate = effort.step_size * step_scale(step, effort.steps);
            let maps = images.chunks_exact_mut(waves.size()).zip(slope.chunks_exact(waves.size()));
            let moments = mean.chunks_exact_mut(waves.size()).zip(square.chunks_exact_mut(waves.size()));
            for ((map, slope), moments) in maps.zip(moments) {
                let change = waves.image(&adam(&waves, slope, moments, step, rate));
                map.iter_mut().zip(&change).for_each(|(value, change)| *value -= change);
            }
            images.chunks_exact_mut(size).for_each(normalised);
        }
        let (distance, _) = self.distance(&images, RADIUS)?;
        let images = images.chunks_exact(size).map(<[f32]>::to_vec).collect();
        Ok(Found { images, classes: self.classes.to_vec(), distance })
    }
}

/// The orthonormal cosine transform of maps of one shape.
struct Cosines {
    /// Rows and columns: a frequency a row.
    vertical: Vec<f32>,
    horizontal: Vec<f32>,
    height: usize,
    width: usize,
    /// How far each coefficient moves beside that of frequency 0: (1 + |k|²)^(-1/4).
    speeds: Vec<f32>,
}

impl Cosines {
    fn new(shape: InputShape) -> Self {
        let (height, width) = (shape.height as usize, shape.width as usize);
        let basis = |side: usize| -> Vec<f32> {
            let at = |place: usize| {
                let (frequency, position) = (place / side, place % side);
                let scale: f64 = if frequency == 0 { 1.0 } else { 2.0 };
                let angle = std::f64::consts::PI * (position as f64 + 0.5) * frequency as f64 / side as f64;
                ((scale / side as f64).sqrt() * angle.cos()) as f32
            };
            (0..side * side).map(at).collect()
        };
        let speed = |place: usize| {
            let (row, column) = ((place / width) as f64, (place % width) as f64);
            (1.0 + row * row + column * column).powf(-0.25) as f32
        };
        Self {
            vertical: basis(height),
            horizontal: basis(width),
            height,
            width,
            speeds: (0..height * width).map(speed).collect(),
        }
    }

    fn size(&self) -> usize {
        self.height * self.width
    }

    /// The map of these coefficients.
    fn image(&self, coefficients: &[f32]) -> Vec<f32> {
        let (height, width) = (self.height, self.width);
        let mut rows = vec![0.0f32; height * width];
        for (row, of) in rows.chunks_exact_mut(width).zip(coefficients.chunks_exact(width)) {
            for (wave, coefficient) in self.horizontal.chunks_exact(width).zip(of) {
                row.iter_mut().zip(wave).for_each(|(value, wave)| *value += coefficient * wave);
            }
        }
        let mut image = vec![0.0f32; height * width];
        for (wave, row) in self.vertical.chunks_exact(height).zip(rows.chunks_exact(width)) {
            for (to, wave) in image.chunks_exact_mut(width).zip(wave) {
                to.iter_mut().zip(row).for_each(|(value, from)| *value += wave * from);
            }
        }
        image
    }

    /// The inverse of [`Self::image`], and its transpose.
    fn coefficients(&self, image: &[f32]) -> Vec<f32> {
        let (height, width) = (self.height, self.width);
        let mut rows = vec![0.0f32; height * width];
        for (to, wave) in rows.chunks_exact_mut(width).zip(self.vertical.chunks_exact(height)) {
            for (from, wave) in image.chunks_exact(width).zip(wave) {
                to.iter_mut().zip(from).for_each(|(value, from)| *value += wave * from);
            }
        }
        let mut all = Vec::with_capacity(height * width);
        for row in rows.chunks_exact(width) {
            let of = |wave: &[f32]| wave.iter().zip(row).map(|(a, b)| a * b).sum::<f32>();
            all.extend(self.horizontal.chunks_exact(width).map(of));
        }
        all
    }
}

/// A tenth after 3/8, 5/8 and 7/8 of the steps each.
fn step_scale(step: u32, steps: u32) -> f32 {
    let passed =
        [3, 5, 7].into_iter().filter(|eighth| 8 * u64::from(step) >= eighth * u64::from(steps)).count();
    0.1f32.powi(i32::try_from(passed).unwrap_or(0))
}

/// A step of Adam (Kingma and Ba 2015, algorithm 1) on the coefficients of a map: what to subtract from each.
fn adam(
    waves: &Cosines,
    slope: &[f32],
    (mean, square): (&mut [f32], &mut [f32]),
    step: u32,
    rate: f32,
) -> Vec<f32> {
    let power = i32::try_from(step).unwrap_or(i32::MAX - 1) + 1;
    let (first, second) = (1.0 - 0.9f32.powi(power), 1.0 - 0.99f32.powi(power));
    let slopes = waves.coefficients(slope);
    let moments = mean.iter_mut().zip(square);
    slopes
        .iter()
        .zip(&waves.speeds)
        .zip(moments)
        .map(|((slope, speed), (mean, square))| {
            let slope = slope * speed;
            *mean = 0.9 * *mean + 0.1 * slope;
            *square = 0.99 * *square + 0.01 * slope * slope;
            speed * rate * (*mean / first) / ((*square / second).sqrt() + 1e-12)
        })
        .collect()
}

/// Adds `weight` times the derivative of the total variation, the mean over pixels of the distance to the neighbours on the right and below.
fn add_variation(image: &[f32], slope: &mut [f32], shape: InputShape, weight: f32) {
    let (height, width) = (shape.height as usize, shape.width as usize);
    let weight = weight / (height * width) as f32;
    for (map, slope) in image.chunks_exact(height * width).zip(slope.chunks_exact_mut(height * width)) {
        let mut pull = |a: usize, b: usize| {
            let difference = map[a] - map[b];
            let by = weight * difference / (difference * difference + 1e-6).sqrt();
            slope[a] += by;
            slope[b] -= by;
        };
        for row in 0..height {
            for column in 0..width {
                let at = row * width + column;
                if column + 1 < width {
                    pull(at, at + 1);
                }
                if row + 1 < height {
                    pull(at, at + width);
                }
            }
        }
    }
}

/// Gives each of `truths` the found image that is most like it; each found image is given once, the likeliest pair first.
#[must_use]
pub fn paired(found: &[Vec<f32>], truths: &Images) -> Vec<Option<usize>> {
    let mut pairs: Vec<(f64, usize, usize)> = Vec::new();
    for (index, image) in found.iter().enumerate() {
        for truth in 0..truths.len() {
            pairs.push((similarity(image, truths.image(truth)), truth, index));
        }
    }
    pairs.sort_by(|a, b| b.0.total_cmp(&a.0));
    let (mut given, mut taken) = (vec![None; truths.len()], vec![false; found.len()]);
    for (_, truth, index) in pairs {
        if given[truth].is_none() && !taken[index] {
            given[truth] = Some(index);
            taken[index] = true;
        }
    }
    given
}

fn normal(random: &mut impl rand_core::Rng) -> f32 {
    let mut uniform = || ((random.next_u64() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    let (a, b) = (uniform(), uniform());
    ((-2.0 * a.ln()).sqrt() * (2.0 * std::f64::consts::PI * b).cos()) as f32
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

fn norm(values: &[f32]) -> f64 {
    dot(values, values).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setup::Setup;
    use medinet_model::TensorRole;

    fn setting() -> (NetworkManifest, ModelParameters, Vec<f32>) {
        let network = Setup::network(InputShape { channels: 1, height: 28, width: 28 }, 8);
        let base = ModelParameters::initial(&network, 4).unwrap();
        let mut image: Vec<f32> = (0..784)
            .map(|i| {
                ((i / 28) as f32 / 5.0).sin() + ((i % 28) as f32 / 4.0).cos() + (i * 7 % 11) as f32 / 20.0
            })
            .collect();
        normalised(&mut image);
        (network, base, image)
    }

    #[test]
    fn the_slope_is_that_of_the_distance() {
        let (network, base, image) = setting();
        // Normalisations that add 8 keep every activation above zero: without kinks equation (1) is exact but for h².
        let mut values = base.into_vec();
        for tensor in ParameterLayout::of(&network).unwrap().tensors() {
            if tensor.role == TensorRole::NormBias {
                values[tensor.range()].fill(8.0);
            }
        }
        let base = ModelParameters::new(&network, values).unwrap();
        let batch = ProbeBatch { images: &image, classes: &[1] };
        let update: Vec<f32> =
            parameter_gradient(&network, &base, batch).unwrap().iter().map(|g| -g).collect();
        let typical = vec![image.clone(); 2];
        let evidence = Evidence { network: &network, base: &base, update: &update, typical: &typical };
        let matching = Matching::new(&evidence, &[1], 0.0).unwrap();
        assert!(matching.distance(&image, RADIUS).unwrap().0 < 1e-6);
        let mut random = random(3, "test", &[]);
        let start: Vec<f32> = image.iter().map(|value| value + 0.3 * normal(&mut random)).collect();
        let (_, slope) = matching.distance(&start, 0.1).unwrap();
        let length = norm(&slope);
        let step = (0.1 / length) as f32;
        let at = |step: f32| {
            let moved: Vec<f32> = start.iter().zip(&slope).map(|(x, s)| x + step * s).collect();
            matching.distance(&moved, RADIUS).unwrap().0
        };
        let measured = (at(step) - at(-step)) / (2.0 * f64::from(step));
        let ratio = measured / (length * length);
        assert!((0.9..1.1).contains(&ratio), "{ratio}");
        assert_eq!(class_of_one(&evidence).unwrap(), 1);
    }

    #[test]
    fn updates_that_do_not_fit_are_refused() {
        let (network, base, image) = setting();
        let zero = vec![0.0; base.as_slice().len()];
        let one = vec![1.0; base.as_slice().len()];
        let typical = vec![image; 2];
        for (update, typical, classes) in [
            (&zero[..], &typical[..], &[1][..]),
            (&one[1..], &typical, &[1]),
            (&one, &typical[1..], &[1]),
            (&one, &typical, &[2]),
            (&one, &typical, &[]),
        ] {
            let evidence = Evidence { network: &network, base: &base, update, typical };
            assert!(invert(&evidence, classes, &Effort::QUICK, 1).is_err());
        }
    }

    #[test]
    fn the_cosine_transform_is_orthonormal() {
        let waves = Cosines::new(InputShape { channels: 1, height: 5, width: 7 });
        let image: Vec<f32> = (0..35).map(|i| ((i * i) % 11) as f32 - 4.0).collect();
        let coefficients = waves.coefficients(&image);
        assert!((norm(&coefficients) - norm(&image)).abs() < 1e-4);
        let back = waves.image(&coefficients);
        assert!(back.iter().zip(&image).all(|(a, b)| (a - b).abs() < 1e-4));
        // The first coefficient is the mean's.
        let mean = image.iter().sum::<f32>() / 35.0;
        assert!((coefficients[0] - mean * 35f32.sqrt()).abs() < 1e-4);
    }

    #[test]
    fn steps_shrink_three_times() {
        let scales: Vec<f32> = (0..8).map(|step| step_scale(step, 8)).collect();
        assert_eq!(scales[..3], [1.0; 3]);
        assert!(
            (scales[3] - 0.1).abs() < 1e-6
                && (scales[5] - 0.01).abs() < 1e-6
                && (scales[7] - 1e-3).abs() < 1e-6
        );
    }

    #[test]
    fn pairs_are_those_most_alike() {
        let shape = InputShape { channels: 1, height: 1, width: 3 };
        let truths =
            Images::new(shape, vec![1.0, 0.0, -1.0, -1.0, 1.0, 0.0], vec![0, 0], vec![0, 1]).unwrap();
        let found = vec![vec![-1.0, 1.1, -0.1], vec![0.9, 0.1, -1.0], vec![0.0, 0.0, 1.0]];
        assert_eq!(paired(&found, &truths), [Some(1), Some(0)]);
    }
}
