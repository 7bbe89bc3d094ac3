//! Parts of the two passes that the layers for plain training do not have by themselves.

use super::super::flex::{for_each_line, matmul, tensor, values};
use super::super::im2col::{ConvShape, Tile, col2im};
use super::dims;
use burn_flex::FlexTensor;
use rayon::prelude::*;

/// Zeroes the gradient where `max(0, .)` gave 0.
pub(super) fn mask(dy: &mut [f32], y: &[f32]) {
    for (dy, &y) in dy.iter_mut().zip(y) {
        *dy = if y > 0.0 { *dy } else { 0.0 };
    }
}

/// A tile of `[batch, outputs, height, width]` as `[outputs, columns]`.
pub(super) fn gathered(dy: &[f32], s: &ConvShape, tile: &Tile) -> FlexTensor {
    let columns = s.columns(tile);
    let mut gathered = Vec::with_capacity(s.outputs * columns);
    for_each_line(s, tile, 0, |_, at| gathered.extend_from_slice(&dy[at]));
    tensor(gathered, [s.outputs, columns])
}

/// Gradient of a convolution with respect to its input.
pub(super) fn conv_input_gradient(weight: &FlexTensor, dy: &FlexTensor, s: &ConvShape) -> Vec<f32> {
    let transposed = weight.reshape([s.outputs, s.patch()].into()).transpose(0, 1);
    let dy = values(dy);
    let mut dx = vec![0.0f32; s.batch * s.in_image()];
    dx.par_chunks_mut(s.lane() * s.in_image()).enumerate().for_each(|(lane, dx)| {
        let first = lane * s.lane();
        for tile in s.tiles(first, s.lane().min(s.batch - first)) {
            let mut unfolded = matmul(transposed.clone(), gathered(dy, s, &tile));
            col2im(unfolded.storage_mut(), s, &tile, dx, first);
        }
    });
    dx
}

/// The largest value of each 3x3 window with stride 2 and padding 1, and where in its plane each was taken.
pub(super) fn max_pool(x: &FlexTensor) -> (FlexTensor, Vec<u32>) {
    let [batch, channels, height, width] = dims(x);
    let [rows, columns] = [height, width].map(|side| side.div_ceil(2));
    let mut y = vec![0.0f32; batch * channels * rows * columns];
    let mut taken = vec![0u32; y.len()];
    let planes = values(x).par_chunks_exact(height * width);
    let out = y.par_chunks_exact_mut(rows * columns).zip(taken.par_chunks_exact_mut(rows * columns));
    planes.zip(out).for_each(|(x, (y, taken))| {
        for (at, (y, taken)) in y.iter_mut().zip(taken).enumerate() {
            let (row, column) = (at / columns * 2, at % columns * 2);
            let mut best = (f32::NEG_INFINITY, row * width + column);
            for i in row.saturating_sub(1)..(row + 2).min(height) {
                for j in column.saturating_sub(1)..(column + 2).min(width) {
                    // A value that is no number is passed on, and not passed over.
                    let value = x[i * width + j];
                    if value > best.0 || value.is_nan() {
                        best = (value, i * width + j);
                    }
                }
            }
            // A plane has far fewer than 2^32 pixels.
            (*y, *taken) = (best.0, u32::try_from(best.1).unwrap_or(u32::MAX));
        }
    });
    (tensor(y, [batch, channels, rows, columns]), taken)
}

/// Gradient of [`max_pool`] with respect to its input, whose sizes are `dims`.
pub(super) fn max_pool_gradient(dy: &[f32], taken: &[u32], dims: [usize; 4]) -> Vec<f32> {
    let [batch, channels, height, width] = dims;
    let mut dx = vec![0.0f32; batch * channels * height * width];
    let pooled = height.div_ceil(2) * width.div_ceil(2);
    let from = dy.par_chunks_exact(pooled).zip(taken.par_chunks_exact(pooled));
    dx.par_chunks_exact_mut(height * width).zip(from).for_each(|(dx, (dy, taken))| {
        for (dy, &at) in dy.iter().zip(taken) {
            dx[at as usize] += dy;
        }
    });
    dx
}

/// Negative logarithm of a class's probability, and its gradient with respect to the logits.
pub(super) fn cross_entropy(logits: &[f32], class: usize) -> (f64, Vec<f32>) {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f64> = logits.iter().map(|&v| f64::from(v - highest).exp()).collect();
    let sum: f64 = powers.iter().sum();
    let mut gradient: Vec<f32> = powers.iter().map(|power| (power / sum) as f32).collect();
    gradient[class] -= 1.0;
    (sum.ln() - f64::from(logits[class] - highest), gradient)
}
