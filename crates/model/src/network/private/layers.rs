//! What a layer keeps until the patients' factors are known, and the norms on the way.

use super::super::flex::{matmul, tensor, values};
use super::super::im2col::{ConvShape, Tile, im2col};
use super::ops::gathered;
use burn_flex::FlexTensor;
use rayon::prelude::*;
use std::ops::Range;

/// Most numbers that a layer keeps as gradients of patients: 64 MB.
const MOST_KEPT: usize = 16 << 20;
/// What it costs to write a number and to read it twice, in multiplications of a matrix product.
const TOUCHED: usize = 64;
/// The unit roundoff of single precision.
const UNIT: f64 = f64::EPSILON * 268_435_456.0; // 2^-52 * 2^28 = 2^-24

/// What is kept of a tensor of parameters.
#[derive(Debug)]
pub(super) struct Kept {
    /// First element in the flat vector.
    offset: usize,
    what: What,
}

#[derive(Debug)]
enum What {
    /// Gradients of each patient, `[patients, len]`; of a convolution each `[patch, outputs]`.
    Each { len: usize, gradients: Vec<f32>, outputs: Option<usize> },
    /// A convolution's input and the gradient of its output.
    Recorded { x: FlexTensor, dy: FlexTensor, shape: ConvShape },
}

/// Sum of squares.
pub(super) fn square(values: &[f32]) -> f64 {
    values.iter().map(|&value| f64::from(value) * f64::from(value)).sum()
}

impl Kept {
    /// Gradients of each patient, `[patients, len]`.
    pub(super) fn each(offset: usize, len: usize, gradients: Vec<f32>) -> Self {
        Self { offset, what: What::Each { len, gradients, outputs: None } }
    }

    /// A convolution's weight. Adds its part to each patient's squared norm.
    ///
    /// The gradient of each patient is kept where that is cheap: then the weighted sum costs no product. Else input and
    /// gradient of the output are kept, and the norm comes from their Gram matrices or from a gradient that is made for it
    /// alone, whichever takes fewer products.
    pub(super) fn conv(
        offset: usize,
        x: FlexTensor,
        dy: FlexTensor,
        shape: ConvShape,
        patients: &[Range<usize>],
        squares: &mut [f64],
    ) -> Self {
        let layer = Layer { x: values(&x), dy: values(&dy), s: &shape };
        let weights = shape.patch() * shape.outputs;
        let norms: usize =
            patients.iter().map(|images| layer.gram_cost(images).min(layer.cost(images))).sum();
        let what = if patients.len() * weights <= MOST_KEPT && patients.len() * weights * TOUCHED <= norms {
            let mut gradients = vec![0.0f32; patients.len() * weights];
            let each = gradients.par_chunks_exact_mut(weights).zip(patients).zip(&mut *squares);
            each.for_each(|((gradient, images), square_sum)| {
                layer.gradient(images, gradient);
                *square_sum += square(gradient);
            });
            What::Each { len: weights, gradients, outputs: Some(shape.outputs) }
        } else {
            squares.par_iter_mut().zip(patients).for_each(|(square, images)| *square += layer.square(images));
            What::Recorded { x, dy, shape }
        };
        Self { offset, what }
    }

    /// Adds the patients' gradients, each times its factor.
    pub(super) fn add_weighted(self, patients: &[Range<usize>], factors: &[f32], sum: &mut [f32]) {
        match self.what {
            What::Each { len, gradients, outputs } => {
                let sum = &mut sum[self.offset..self.offset + len];
                let mut total = vec![0.0f32; len];
                total.par_chunks_mut(4096).enumerate().for_each(|(chunk, total)| {
                    for (gradient, &factor) in gradients.chunks_exact(len).zip(factors) {
                        if factor != 0.0 {
                            let gradient = &gradient[chunk * 4096..][..total.len()];
                            total.iter_mut().zip(gradient).for_each(|(sum, value)| *sum += factor * value);
                        }
                    }
                });
                match outputs {
                    Some(outputs) => add_transposed(&total, outputs, sum),
                    None => sum.iter_mut().zip(&total).for_each(|(sum, value)| *sum += value),
                }
            }
            What::Recorded { x, dy, shape } => {
                let len = shape.patch() * shape.outputs;
                let total = weighted(x, dy, &shape, patients, factors);
                add_transposed(&total, shape.outputs, &mut sum[self.offset..self.offset + len]);
            }
        }
    }
}

/// Adds `[patch, outputs]` to `[outputs, patch]`.
fn add_transposed(from: &[f32], outputs: usize, to: &mut [f32]) {
    let patch = from.len() / outputs;
    to.par_chunks_exact_mut(patch).enumerate().for_each(|(output, row)| {
        row.iter_mut().zip(from[output..].iter().step_by(outputs)).for_each(|(sum, value)| *sum += value);
    });
}

/// `A diag(f) S^T` over the batch, `[patch, outputs]`. Lanes are added in order, so that the number of threads does not
/// change the sum.
fn weighted(
    x: FlexTensor,
    dy: FlexTensor,
    s: &ConvShape,
    patients: &[Range<usize>],
    factors: &[f32],
) -> Vec<f32> {
    // Zero times what is no number would be none.
    let left_out: Vec<Range<usize>> = std::iter::zip(patients, factors)
        .filter(|(_, factor)| **factor == 0.0)
        .map(|(images, _)| images.clone())
        .collect();
    let x = if left_out.is_empty() { x } else { cleared(&x, &left_out, s.in_image(), s.batch) };
    let mut scaled = values(&dy).to_vec();
    drop(dy);
    for (images, &factor) in patients.iter().zip(factors) {
        let part = &mut scaled[images.start * s.out_image()..images.end * s.out_image()];
        part.iter_mut().for_each(|value| *value = if factor == 0.0 { 0.0 } else { *value * factor });
    }
    let layer = Layer { x: values(&x), dy: &scaled, s };
    let lanes: Vec<Vec<f32>> = (0..s.batch.div_ceil(s.lane()))
        .into_par_iter()
        .map(|lane| {
            let mut sum = vec![0.0f32; s.patch() * s.outputs];
            let first = lane * s.lane();
            layer.gradient(&(first..(first + s.lane()).min(s.batch)), &mut sum);
            sum
        })
        .collect();
    let add = |mut sum: Vec<f32>, lane: Vec<f32>| {
        sum.iter_mut().zip(&lane).for_each(|(sum, value)| *sum += value);
        sum
    };
    lanes.into_iter().reduce(add).unwrap_or_else(|| vec![0.0; s.patch() * s.outputs])
}

fn cleared(x: &FlexTensor, images: &[Range<usize>], image: usize, batch: usize) -> FlexTensor {
    let mut values = values(x).to_vec();
    for images in images {
        values[images.start * image..images.end * image].fill(0.0);
    }
    tensor(values, [batch, image])
}

/// A convolution's input and the gradient of its output.
struct Layer<'a> {
    x: &'a [f32],
    dy: &'a [f32],
    s: &'a ConvShape,
}

impl Layer<'_> {
    /// Products of a gradient.
    fn cost(&self, images: &Range<usize>) -> usize {
        images.len() * self.s.out_pixels() * self.s.patch() * self.s.outputs
    }

    /// Products of the Gram matrices.
    fn gram_cost(&self, images: &Range<usize>) -> usize {
        (images.len() * self.s.out_pixels()).pow(2) * (self.s.patch() + self.s.outputs)
    }

    /// Adds the gradient of some images, `A S^T`, to `[patch, outputs]`.
    fn gradient(&self, images: &Range<usize>, sum: &mut [f32]) {
        for tile in self.s.tiles(images.start, images.len()) {
            let product = matmul(self.unfolded(&tile), gathered(self.dy, self.s, &tile).transpose(0, 1));
            sum.iter_mut().zip(values(&product)).for_each(|(sum, value)| *sum += value);
        }
    }

    fn unfolded(&self, tile: &Tile) -> FlexTensor {
        tensor(im2col(self.x, self.s, tile), [self.s.patch(), self.s.columns(tile)])
    }

    /// An upper bound, up to rounding, of the squared norm of what [`weighted`] adds of a patient at factor 1.
    ///
    /// Both ways of computing it round differently from the sum itself. With `B = sum over positions of |a_t| |s_t|`, inner
    /// products of length n err by about `sqrt(n) u` of it (Higham & Mary 2019), u being the unit roundoff: the Gram form by
    /// `u sqrt(patch + outputs) B²` in the square, the sum by `u sqrt(positions) B` in the norm. Both are added, so that
    /// a gradient whose terms cancel is not taken for shorter than what is added of it.
    fn square(&self, images: &Range<usize>) -> f64 {
        let s = self.s;
        let positions = images.len() * s.out_pixels();
        let (square, bound) = if self.gram_cost(images) <= self.cost(images) {
            let (square, bound) = self.gram(images);
            (square + UNIT * ((s.patch() + s.outputs) as f64).sqrt() * bound * bound, bound)
        } else {
            let mut gradient = vec![0.0f32; s.patch() * s.outputs];
            self.gradient(images, &mut gradient);
            (square(&gradient), self.bound(images))
        };
        // Not `max`, which would take what is no number for 0.
        let square = if square < 0.0 { 0.0 } else { square };
        (square.sqrt() + UNIT * (positions as f64).sqrt() * bound).powi(2)
    }

    /// The squared norm from Gram matrices, and B.
    fn gram(&self, images: &Range<usize>) -> (f64, f64) {
        let tile = Tile { images: images.clone(), rows: 0..self.s.out_height() };
        let gram = |matrix: FlexTensor| matmul(matrix.transpose(0, 1), matrix);
        let (inputs, outputs) = (gram(self.unfolded(&tile)), gram(gathered(self.dy, self.s, &tile)));
        let (inputs, outputs) = (values(&inputs), values(&outputs));
        let positions = self.s.columns(&tile);
        let diagonal = inputs.iter().step_by(positions + 1).zip(outputs.iter().step_by(positions + 1));
        // Squares of lengths, never below 0.
        let bound = diagonal.map(|(&a, &b)| (f64::from(a) * f64::from(b)).sqrt()).sum();
        let square = inputs.iter().zip(outputs).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
        (square, bound)
    }

    /// B: the sum over positions of the product of the lengths of patch and gradient.
    fn bound(&self, images: &Range<usize>) -> f64 {
        let s = self.s;
        let mut sum = 0.0;
        for tile in s.tiles(images.start, images.len()) {
            let columns = s.columns(&tile);
            let squares = |matrix: &FlexTensor| {
                let mut squares = vec![0.0f32; columns];
                for row in values(matrix).chunks_exact(columns) {
                    squares.iter_mut().zip(row).for_each(|(sum, value)| *sum += value * value);
                }
                squares
            };
            let (a, b) = (squares(&self.unfolded(&tile)), squares(&gathered(self.dy, s, &tile)));
            sum += a.iter().zip(&b).map(|(&a, &b)| (f64::from(a) * f64::from(b)).sqrt()).sum::<f64>();
        }
        sum
    }
}
