//! The layers from burn's own operations, for every device.

use crate::architecture::NORM_EPSILON;
use burn::tensor::Tensor;
use burn::tensor::activation::relu;
use burn::tensor::module;
use burn::tensor::ops::ConvOptions;
use medinet_kernels::Descent;

/// Convolution of `[N, inputs, H, W]` with `[outputs, inputs, k, k]`, without bias.
pub(super) fn conv2d(x: Tensor<4>, weight: Tensor<4>, stride: usize, padding: usize) -> Tensor<4> {
    module::conv2d(x, weight, None, ConvOptions::new([stride; 2], [padding; 2], [1; 2], 1))
}

/// Group normalisation (Wu & He 2018) of `[N, C, H, W]` with one scale and offset per channel, and
/// `max(0, .)` after it where `activate` is set.
pub(super) fn group_norm(
    x: Tensor<4>,
    scale: Tensor<1>,
    offset: Tensor<1>,
    groups: usize,
    activate: bool,
) -> Tensor<4> {
    let [batch, channels, height, width] = x.dims();
    let size = channels / groups * height * width;
    let grouped = x.reshape([batch, groups, size]);
    let mean = grouped.clone().sum_dim(2) / size as f32;
    let centred = grouped - mean;
    let variance = (centred.clone() * centred.clone()).sum_dim(2) / size as f32;
    let normalised = centred / (variance + NORM_EPSILON).sqrt();
    let per_channel = |t: Tensor<1>| t.reshape([1, channels, 1, 1]);
    let y = normalised.reshape([batch, channels, height, width]) * per_channel(scale) + per_channel(offset);
    if activate { relu(y) } else { y }
}

/// `max(0, a + b)`.
pub(super) fn add_relu(a: Tensor<4>, b: Tensor<4>) -> Tensor<4> {
    relu(a + b)
}

/// A step of gradient descent; returns value and velocity.
pub(super) fn descend(
    value: Tensor<1>,
    velocity: Tensor<1>,
    mut gradient: Tensor<1>,
    base: Option<&Tensor<1>>,
    step: &Descent,
) -> (Tensor<1>, Tensor<1>) {
    if let Some(base) = base {
        gradient = gradient + (value.clone() - base.clone()) * step.proximal_mu;
    }
    let velocity = velocity * step.momentum + gradient;
    let mut change = velocity.clone();
    if step.weight_decay > 0.0 {
        change = change + value.clone() * step.weight_decay;
    }
    (value - change * step.learning_rate, velocity)
}
