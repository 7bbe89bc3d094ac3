//! Group normalisation (Wu & He 2018, eq. 1 to 3) with what follows it in a residual network, and its gradient.
//!
//! A task is one image's channels of as many blocks as hold whole groups: what it needs several times stays in the cache.

use crate::buffers;
use crate::cpu::{Cpu, Kernel, load, store};
use crate::layout::{BLOCK, Maps, Pixel, pixels, pixels_mut};
use pulp::Simd;
use rayon::prelude::*;
use std::sync::Arc;

/// What is normalised, and what follows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormShape {
    /// The maps.
    pub maps: Maps,
    /// Groups that the channels are cut into, of the same size each.
    pub groups: usize,
    /// Added to the variance.
    pub epsilon: f32,
    /// Whether `max(0, .)` follows.
    pub relu: bool,
}

impl NormShape {
    fn group_channels(&self) -> usize {
        self.maps.channels / self.groups
    }

    /// Values of a group in one image.
    fn group(&self) -> f32 {
        (self.group_channels() * self.maps.image()) as f32
    }

    /// The fewest neighbouring blocks that hold whole groups.
    fn unit(&self) -> usize {
        let channels = self.group_channels();
        if BLOCK.is_multiple_of(channels) {
            1
        } else if channels.is_multiple_of(BLOCK) {
            channels / BLOCK
        } else {
            self.maps.blocks()
        }
    }

    /// Values of maps by units and images: `[unit][image][block of the unit]` of pixels.
    fn tasks<'a>(&self, values: &'a mut [f32]) -> Vec<Vec<&'a mut [Pixel]>> {
        let image = self.maps.image();
        let mut tasks = Vec::new();
        for unit in pixels_mut(values).chunks_mut(self.unit() * self.maps.pixels()) {
            let mut blocks: Vec<_> =
                unit.chunks_mut(self.maps.pixels()).map(|b| b.chunks_mut(image)).collect();
            tasks
                .extend((0..self.maps.batch).map(|_| blocks.iter_mut().filter_map(Iterator::next).collect()));
        }
        tasks
    }

    /// An image's pixels of a block.
    fn image<'a>(&self, values: &'a [f32], block: usize, n: usize) -> &'a [Pixel] {
        let image = self.maps.image();
        &pixels(values)[block * self.maps.pixels() + n * image..][..image]
    }

    /// Replaces each channel's sum by that of its group; `sums` are the channels of a unit, whose first is the first of a
    /// group.
    fn sum_groups(&self, sums: &mut [Pixel], first: usize) {
        let channels = (self.maps.channels - first).min(sums.len() * BLOCK);
        for group in sums.as_flattened_mut()[..channels].chunks_mut(self.group_channels()) {
            let sum: f32 = group.iter().sum();
            group.fill(sum);
        }
    }

    /// Whether all of these are there.
    fn empty(&self) -> bool {
        self.maps.values() == 0
    }
}

/// Mean and inverse standard deviation of each channel's group: `[units][images][blocks of a unit]` of both.
pub type Statistics = Arc<[[Pixel; 2]]>;

/// Normalises `x`, scales and moves each channel, adds `shortcut` where there is one, and cuts at zero where the shape says so.
/// `scale` and `offset` have a value for each channel.
#[must_use]
pub fn group_norm(
    cpu: Cpu,
    x: &[f32],
    scale: &[f32],
    offset: &[f32],
    shortcut: Option<&[f32]>,
    s: &NormShape,
) -> (Vec<f32>, Statistics) {
    let mut y = buffers::take(s.maps.values());
    if s.empty() {
        return (y, Arc::new([]));
    }
    let (scale, offset) = (padded(scale, &s.maps), padded(offset, &s.maps));
    let tasks = s.tasks(&mut y).into_par_iter().enumerate();
    let statistics: Vec<Vec<[Pixel; 2]>> = tasks
        .map(|(at, out)| {
            let (block, n) = (at / s.maps.batch * s.unit(), at % s.maps.batch);
            cpu.run(Forward { s, x, scale: &scale, offset: &offset, shortcut, block, n, out })
        })
        .collect();
    (y, statistics.concat().into())
}

/// Gradients of the arguments of [`group_norm`].
#[derive(Debug)]
pub struct NormGradient {
    /// Of the input, its maps.
    pub x: Vec<f32>,
    /// Of each channel's scale.
    pub scale: Vec<f32>,
    /// Of each channel's offset.
    pub offset: Vec<f32>,
    /// Of the shortcut, its maps, where it was asked for.
    pub shortcut: Option<Vec<f32>>,
}

/// The gradient of [`group_norm`], of the gradient `dy` with respect to its output `y`.
#[must_use]
#[expect(clippy::too_many_arguments, reason = "what the forward pass took and gave")]
pub fn group_norm_backward(
    cpu: Cpu,
    x: &[f32],
    scale: &[f32],
    y: &[f32],
    dy: &[f32],
    statistics: &Statistics,
    wants_shortcut: bool,
    s: &NormShape,
) -> NormGradient {
    let each = group_norm_backward_images(cpu, x, scale, y, dy, statistics, wants_shortcut, s);
    // Image by image in order, so that the number of threads does not change the sums.
    let sum = |each: &[f32]| {
        let mut sum = vec![0.0f32; s.maps.channels];
        for image in each.chunks_exact(s.maps.channels.max(1)) {
            sum.iter_mut().zip(image).for_each(|(sum, value)| *sum += value);
        }
        sum
    };
    NormGradient { scale: sum(&each.scale), offset: sum(&each.offset), ..each }
}

/// [`group_norm_backward`], with the gradients of scale and offset for each image: `[batch, channels]`.
#[must_use]
#[expect(clippy::too_many_arguments, reason = "what the forward pass took and gave")]
pub fn group_norm_backward_images(
    cpu: Cpu,
    x: &[f32],
    scale: &[f32],
    y: &[f32],
    dy: &[f32],
    statistics: &Statistics,
    wants_shortcut: bool,
    s: &NormShape,
) -> NormGradient {
    let mut dx = buffers::take(s.maps.values());
    let mut shortcut = wants_shortcut.then(|| buffers::take(s.maps.values()));
    let channels = s.maps.channels;
    let mut gradient = [0, 1].map(|_| vec![0.0f32; s.maps.batch * channels]);
    if !s.empty() {
        let padded = padded(scale, &s.maps);
        let tasks = s.tasks(&mut dx).into_iter();
        let shortcuts: Vec<Option<Vec<&mut [Pixel]>>> = match &mut shortcut {
            Some(shortcut) => s.tasks(shortcut).into_iter().map(Some).collect(),
            None => tasks.as_slice().iter().map(|_| None).collect(),
        };
        let tasks: Vec<_> = tasks.zip(shortcuts).enumerate().collect();
        let sums: Vec<Vec<[Pixel; 2]>> = tasks
            .into_par_iter()
            .map(|(at, (dx, shortcut))| {
                let (block, n) = (at / s.maps.batch * s.unit(), at % s.maps.batch);
                let statistics = &statistics[at / s.maps.batch * s.unit() * s.maps.batch..];
                let unit = dx.len();
                let statistics = &statistics[n * unit..][..unit];
                cpu.run(Backward { s, x, scale: &padded, y, dy, statistics, block, n, dx, shortcut })
            })
            .collect();
        for (at, sums) in sums.iter().enumerate() {
            let (first, n) = (at / s.maps.batch * s.unit() * BLOCK, at % s.maps.batch);
            for (block, both) in sums.iter().enumerate() {
                for (gradient, values) in gradient.iter_mut().zip(both) {
                    let image = &mut gradient[n * channels..][..channels];
                    let to = image.iter_mut().skip(first + block * BLOCK);
                    to.zip(values).for_each(|(to, value)| *to = *value);
                }
            }
        }
    }
    let [scale, offset] = gradient;
    NormGradient { x: dx, scale, offset, shortcut }
}

/// A value for each channel as blocks; those that fill up are zero, and so their pixels stay zero.
fn padded(values: &[f32], maps: &Maps) -> Vec<Pixel> {
    let mut blocks = vec![[0.0; BLOCK]; maps.blocks()];
    blocks.as_flattened_mut()[..maps.channels].copy_from_slice(&values[..maps.channels]);
    blocks
}

struct Forward<'a> {
    s: &'a NormShape,
    x: &'a [f32],
    scale: &'a [Pixel],
    offset: &'a [Pixel],
    shortcut: Option<&'a [f32]>,
    block: usize,
    n: usize,
    out: Vec<&'a mut [Pixel]>,
}

impl Kernel for Forward<'_> {
    type Output = Vec<[Pixel; 2]>;

    #[inline(always)]
    fn run<S: Simd, const V: usize>(self, simd: S) -> Self::Output {
        let Self { s, x, scale, offset, shortcut, block, n, out } = self;
        let first = block * BLOCK;
        let image = |i: usize| s.image(x, block + i, n);
        // In two passes: the difference of large sums would lose digits.
        let mut means = Vec::with_capacity(out.len());
        for i in 0..out.len() {
            let x = image(i);
            means.push(fold::<S, V, 1>(simd, x.len(), Values(x))[0]);
        }
        s.sum_groups(&mut means, first);
        means.as_flattened_mut().iter_mut().for_each(|sum| *sum /= s.group());
        let mut inverses = Vec::with_capacity(out.len());
        for (i, mean) in means.iter().enumerate() {
            let squares = Squares { x: image(i), mean: load::<S, V>(simd, mean) };
            inverses.push(fold::<S, V, 1>(simd, squares.x.len(), squares)[0]);
        }
        s.sum_groups(&mut inverses, first);
        let inverse = |sum: &mut f32| *sum = 1.0 / (*sum / s.group() + s.epsilon).sqrt();
        inverses.as_flattened_mut().iter_mut().for_each(inverse);
        let floor = simd.splat_f32s(if s.relu { 0.0 } else { f32::NEG_INFINITY });
        for (i, out) in out.into_iter().enumerate() {
            let factor: Pixel = std::array::from_fn(|c| scale[block + i][c] * inverses[i][c]);
            let term: Pixel = std::array::from_fn(|c| offset[block + i][c] - means[i][c] * factor[c]);
            let (factor, term) = (load::<S, V>(simd, &factor), load::<S, V>(simd, &term));
            if let Some(shortcut) = shortcut {
                let shortcut = s.image(shortcut, block + i, n);
                for ((y, x), shortcut) in out.iter_mut().zip(image(i)).zip(shortcut) {
                    let (mut x, shortcut) = (load::<S, V>(simd, x), load::<S, V>(simd, shortcut));
                    for v in 0..V {
                        let sum = simd.add_f32s(simd.mul_add_e_f32s(x[v], factor[v], term[v]), shortcut[v]);
                        x[v] = simd.max_f32s(sum, floor);
                    }
                    store::<S, V>(simd, y, x);
                }
            } else {
                for (y, x) in out.iter_mut().zip(image(i)) {
                    let mut x = load::<S, V>(simd, x);
                    for v in 0..V {
                        x[v] = simd.max_f32s(simd.mul_add_e_f32s(x[v], factor[v], term[v]), floor);
                    }
                    store::<S, V>(simd, y, x);
                }
            }
        }
        means.into_iter().zip(inverses).map(|(mean, inverse)| [mean, inverse]).collect()
    }
}

struct Backward<'a> {
    s: &'a NormShape,
    x: &'a [f32],
    scale: &'a [Pixel],
    y: &'a [f32],
    dy: &'a [f32],
    statistics: &'a [[Pixel; 2]],
    block: usize,
    n: usize,
    dx: Vec<&'a mut [Pixel]>,
    shortcut: Option<Vec<&'a mut [Pixel]>>,
}

impl Kernel for Backward<'_> {
    /// Of each channel: the sums of `dy` times the normalised value, and of `dy`.
    type Output = Vec<[Pixel; 2]>;

    #[inline(always)]
    fn run<S: Simd, const V: usize>(self, simd: S) -> Self::Output {
        let Self { s, x, scale, y, dy, statistics, block, n, mut dx, shortcut } = self;
        let mut sums = Vec::with_capacity(dx.len());
        for (i, ([mean, inverse], dx)) in statistics.iter().zip(dx.iter_mut()).enumerate() {
            let [x, y, dy] = [x, y, dy].map(|values| s.image(values, block + i, n));
            let mean = load::<S, V>(simd, mean);
            let masked = Masked::<S, V> { x, y, dy, mean, relu: s.relu, masked: dx };
            let [mut products, plain] = fold::<S, V, 2>(simd, x.len(), masked);
            products.iter_mut().zip(inverse).for_each(|(sum, inverse)| *sum *= inverse);
            sums.push([products, plain]);
        }
        if let Some(mut shortcut) = shortcut {
            shortcut.iter_mut().zip(&dx).for_each(|(to, masked)| to.copy_from_slice(masked));
        }
        // dx = inverse * (scale * dy - mean(scale * dy) - x_normalised * mean(scale * dy * x_normalised))
        let scaled = |which: usize| -> Vec<Pixel> {
            let mut all: Vec<Pixel> = sums
                .iter()
                .enumerate()
                .map(|(i, sums)| std::array::from_fn(|c| scale[block + i][c] * sums[which][c]))
                .collect();
            s.sum_groups(&mut all, block * BLOCK);
            all
        };
        let (products, plain) = (scaled(0), scaled(1));
        for (i, ([mean, inverse], dx)) in statistics.iter().zip(dx).enumerate() {
            let left = s.maps.channels - ((block + i) * BLOCK).min(s.maps.channels);
            let factor: Pixel = std::array::from_fn(|c| scale[block + i][c] * inverse[c]);
            let slope: Pixel = std::array::from_fn(|c| {
                let slope = -inverse[c] * inverse[c] * products[i][c] / s.group();
                if c < left { slope } else { 0.0 }
            });
            let constant: Pixel = std::array::from_fn(|c| {
                let constant = -inverse[c] * plain[i][c] / s.group() - slope[c] * mean[c];
                if c < left { constant } else { 0.0 }
            });
            let (factor, slope) = (load::<S, V>(simd, &factor), load::<S, V>(simd, &slope));
            let constant = load::<S, V>(simd, &constant);
            for (dx, x) in dx.iter_mut().zip(s.image(x, block + i, n)) {
                let (mut masked, x) = (load::<S, V>(simd, dx), load::<S, V>(simd, x));
                for v in 0..V {
                    let line = simd.mul_add_e_f32s(x[v], slope[v], constant[v]);
                    masked[v] = simd.mul_add_e_f32s(masked[v], factor[v], line);
                }
                store::<S, V>(simd, dx, masked);
            }
        }
        sums
    }
}

/// Pixels summed side by side, to hide the latency of an addition.
const SIDE: usize = 4;

/// What is summed over pixels, `N` sums for each channel. A trait and no closure, which the compiler may leave outside the
/// function that has the vector instructions.
trait Terms<S: Simd, const V: usize, const N: usize> {
    /// Adds pixel `p`.
    fn add(&mut self, simd: S, p: usize, sums: &mut [[S::f32s; V]; N]);
}

/// Sums of `terms` over `count` pixels.
#[inline(always)]
fn fold<S: Simd, const V: usize, const N: usize>(
    simd: S,
    count: usize,
    mut terms: impl Terms<S, V, N>,
) -> [Pixel; N] {
    let mut sums = [[[simd.splat_f32s(0.0); V]; N]; SIDE];
    let whole = count / SIDE * SIDE;
    for first in (0..whole).step_by(SIDE) {
        for side in 0..SIDE {
            terms.add(simd, first + side, &mut sums[side]);
        }
    }
    for p in whole..count {
        terms.add(simd, p, &mut sums[0]);
    }
    let mut totals = [[0.0; BLOCK]; N];
    for n in 0..N {
        let mut total = sums[0][n];
        for v in 0..V {
            let halves =
                [simd.add_f32s(sums[0][n][v], sums[1][n][v]), simd.add_f32s(sums[2][n][v], sums[3][n][v])];
            total[v] = simd.add_f32s(halves[0], halves[1]);
        }
        store::<S, V>(simd, &mut totals[n], total);
    }
    totals
}

/// The values.
struct Values<'a>(&'a [Pixel]);

impl<S: Simd, const V: usize> Terms<S, V, 1> for Values<'_> {
    #[inline(always)]
    fn add(&mut self, simd: S, p: usize, [sums]: &mut [[S::f32s; V]; 1]) {
        let x = load::<S, V>(simd, &self.0[p]);
        for v in 0..V {
            sums[v] = simd.add_f32s(sums[v], x[v]);
        }
    }
}

/// Squared differences from the means.
struct Squares<'a, S: Simd, const V: usize> {
    x: &'a [Pixel],
    mean: [S::f32s; V],
}

impl<S: Simd, const V: usize> Terms<S, V, 1> for Squares<'_, S, V> {
    #[inline(always)]
    fn add(&mut self, simd: S, p: usize, [sums]: &mut [[S::f32s; V]; 1]) {
        let x = load::<S, V>(simd, &self.x[p]);
        for v in 0..V {
            let difference = simd.sub_f32s(x[v], self.mean[v]);
            sums[v] = simd.mul_add_e_f32s(difference, difference, sums[v]);
        }
    }
}

/// `dy` times `x - mean`, and `dy`. Writes `dy`, zero where `relu` is set and `y` is not above zero.
struct Masked<'a, S: Simd, const V: usize> {
    x: &'a [Pixel],
    y: &'a [Pixel],
    dy: &'a [Pixel],
    mean: [S::f32s; V],
    relu: bool,
    masked: &'a mut [Pixel],
}

impl<S: Simd, const V: usize> Terms<S, V, 2> for Masked<'_, S, V> {
    #[inline(always)]
    fn add(&mut self, simd: S, p: usize, [products, plain]: &mut [[S::f32s; V]; 2]) {
        let x = load::<S, V>(simd, &self.x[p]);
        let mut dy = load::<S, V>(simd, &self.dy[p]);
        if self.relu {
            let y = load::<S, V>(simd, &self.y[p]);
            let zero = simd.splat_f32s(0.0);
            for v in 0..V {
                dy[v] = simd.select_f32s(simd.greater_than_f32s(y[v], zero), dy[v], zero);
            }
        }
        store::<S, V>(simd, &mut self.masked[p], dy);
        for v in 0..V {
            products[v] = simd.mul_add_e_f32s(dy[v], simd.sub_f32s(x[v], self.mean[v]), products[v]);
            plain[v] = simd.add_f32s(plain[v], dy[v]);
        }
    }
}
