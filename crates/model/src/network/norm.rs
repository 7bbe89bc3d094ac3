//! Group normalisation (Wu & He 2018, eq. 1 to 3) and its gradient on plain slices, one image per task.

use crate::architecture::NORM_EPSILON;
use rayon::prelude::*;
use std::sync::Arc;

/// Values added side by side in a sum: vector registers, and a fixed order of additions.
const SUMS: usize = 16;

/// Sizes of a normalisation of `[N, channels, pixels]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NormShape {
    pub(super) channels: usize,
    pub(super) groups: usize,
    /// Height times width.
    pub(super) pixels: usize,
    /// Whether `max(0, .)` follows.
    pub(super) relu: bool,
}

impl NormShape {
    fn image(&self) -> usize {
        self.channels * self.pixels
    }

    fn group_channels(&self) -> usize {
        self.channels / self.groups
    }

    fn group(&self) -> usize {
        self.group_channels() * self.pixels
    }
}

/// Mean and inverse standard deviation of each group of each image, `[N, groups]`.
pub(super) type Statistics = Arc<[[f32; 2]]>;

/// Gradients of the three arguments.
pub(super) struct NormGradient {
    pub(super) x: Vec<f32>,
    pub(super) scale: Vec<f32>,
    pub(super) offset: Vec<f32>,
}

pub(super) fn forward(x: &[f32], scale: &[f32], offset: &[f32], s: &NormShape) -> (Vec<f32>, Statistics) {
    let mut y = vec![0.0f32; x.len()];
    let statistics: Vec<Vec<[f32; 2]>> = y
        .par_chunks_mut(s.image())
        .zip(x.par_chunks(s.image()))
        .map(|(y, x)| {
            let groups = y.chunks_exact_mut(s.group()).zip(x.chunks_exact(s.group())).enumerate();
            groups
                .map(|(group, (y, x))| {
                    let [mean, inverse] = group_statistics(x);
                    let first = group * s.group_channels();
                    let channels = y.chunks_exact_mut(s.pixels).zip(x.chunks_exact(s.pixels)).enumerate();
                    for (channel, (y, x)) in channels {
                        let factor = scale[first + channel] * inverse;
                        let term = offset[first + channel] - mean * factor;
                        let floor = if s.relu { 0.0 } else { f32::NEG_INFINITY };
                        for (y, &x) in y.iter_mut().zip(x) {
                            *y = (x * factor + term).max(floor);
                        }
                    }
                    [mean, inverse]
                })
                .collect()
        })
        .collect();
    (y, statistics.concat().into())
}

/// `y` is the output of [`forward`]; where `relu` is set, the gradient passes where it is above 0.
pub(super) fn backward(
    x: &[f32],
    scale: &[f32],
    y: &[f32],
    dy: &[f32],
    statistics: &Statistics,
    s: &NormShape,
) -> NormGradient {
    let (dx, sums) = backward_images(x, scale, y, dy, statistics, s);
    // Image by image in order, so that the number of threads does not change the sums.
    let mut gradient = NormGradient { x: dx, scale: vec![0.0; s.channels], offset: vec![0.0; s.channels] };
    for image in &sums {
        for (channel, [normalised, plain]) in image.iter().enumerate() {
            gradient.scale[channel] += normalised;
            gradient.offset[channel] += plain;
        }
    }
    gradient
}

/// As [`backward`], with the gradients of scale and offset image by image: `[N][channels]` of both.
pub(super) fn backward_images(
    x: &[f32],
    scale: &[f32],
    y: &[f32],
    dy: &[f32],
    statistics: &Statistics,
    s: &NormShape,
) -> (Vec<f32>, Vec<Vec<[f32; 2]>>) {
    let mut dx = vec![0.0f32; x.len()];
    let image = s.image();
    let sums = dx
        .par_chunks_mut(image)
        .enumerate()
        .map(|(i, dx)| {
            let at = i * image..(i + 1) * image;
            let statistics = &statistics[i * s.groups..(i + 1) * s.groups];
            image_gradient([&x[at.clone()], &y[at.clone()], &dy[at]], scale, statistics, s, dx)
        })
        .collect();
    (dx, sums)
}

/// Fills one image's `dx`; returns per channel the sums of `dy` times the normalised value and of `dy`.
fn image_gradient(
    [x, y, dy]: [&[f32]; 3],
    scale: &[f32],
    statistics: &[[f32; 2]],
    s: &NormShape,
    dx: &mut [f32],
) -> Vec<[f32; 2]> {
    let mut sums = Vec::with_capacity(s.channels);
    for (group, &[mean, inverse]) in statistics.iter().enumerate() {
        let channels = group * s.group_channels()..(group + 1) * s.group_channels();
        let mut group_sums = [0.0f32; 2];
        for (channel, scale) in channels.clone().zip(&scale[channels.clone()]) {
            let at = channel * s.pixels..(channel + 1) * s.pixels;
            let masked = &mut dx[at.clone()];
            mask(masked, &dy[at.clone()], &y[at.clone()], s.relu);
            let [product, plain] = product_sums(masked, &x[at], mean);
            let normalised = product * inverse;
            sums.push([normalised, plain]);
            group_sums[0] += scale * normalised;
            group_sums[1] += scale * plain;
        }
        // dx = inverse * (scale * dy - mean(scale * dy) - x_normalised * mean(scale * dy * x_normalised))
        let size = s.group() as f32;
        let slope = -inverse * inverse * group_sums[0] / size;
        let constant = -inverse * group_sums[1] / size - slope * mean;
        for (channel, scale) in channels.clone().zip(&scale[channels]) {
            let at = channel * s.pixels..(channel + 1) * s.pixels;
            let factor = scale * inverse;
            for (dx, &x) in dx[at.clone()].iter_mut().zip(&x[at]) {
                *dx = *dx * factor + x * slope + constant;
            }
        }
    }
    sums
}

fn mask(masked: &mut [f32], dy: &[f32], y: &[f32], relu: bool) {
    if relu {
        for ((masked, &dy), &y) in masked.iter_mut().zip(dy).zip(y) {
            *masked = if y > 0.0 { dy } else { 0.0 };
        }
    } else {
        masked.copy_from_slice(dy);
    }
}

/// Mean and inverse standard deviation, from two passes: the difference of large sums would lose digits.
fn group_statistics(x: &[f32]) -> [f32; 2] {
    let size = x.len() as f32;
    let mean = sum(x, |v| v) / size;
    let variance = sum(x, |v| (v - mean) * (v - mean)) / size;
    [mean, 1.0 / (variance + NORM_EPSILON).sqrt()]
}

#[inline(always)]
fn sum(x: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0.0f32; SUMS];
    let (chunks, rest) = x.as_chunks::<SUMS>();
    for chunk in chunks {
        for (sum, &value) in sums.iter_mut().zip(chunk) {
            *sum += term(value);
        }
    }
    sums.iter().sum::<f32>() + rest.iter().map(|&value| term(value)).sum::<f32>()
}

/// Sums of `dy * (x - mean)` and of `dy`.
fn product_sums(dy: &[f32], x: &[f32], mean: f32) -> [f32; 2] {
    let (mut products, mut plain) = ([0.0f32; SUMS], [0.0f32; SUMS]);
    let ((dy, dy_rest), (x, x_rest)) = (dy.as_chunks::<SUMS>(), x.as_chunks::<SUMS>());
    for (dy, x) in dy.iter().zip(x) {
        for i in 0..SUMS {
            products[i] += dy[i] * (x[i] - mean);
            plain[i] += dy[i];
        }
    }
    let rest = dy_rest.iter().zip(x_rest);
    let rest: f32 = rest.map(|(&dy, &x)| dy * (x - mean)).sum();
    [products.iter().sum::<f32>() + rest, plain.iter().sum::<f32>() + dy_rest.iter().sum::<f32>()]
}
