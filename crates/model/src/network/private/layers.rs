//! What a layer keeps until the patients' factors are known, and the norms on the way.

use super::super::flex::{tensor, values};
use burn::backend::Flex;
use burn::backend::ops::FloatTensorOps;
use medinet_kernels::{self as kernels, BLOCK, ConvShape, Cpu, Maps};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

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
    /// Gradients of each patient, `[patients, len]`.
    Each { len: usize, gradients: Vec<f32> },
    /// A convolution's input and the gradient of its output.
    Recorded(Layer),
}

/// Sum of squares.
pub(super) fn square(values: &[f32]) -> f64 {
    values.iter().map(|&value| f64::from(value) * f64::from(value)).sum()
}

impl Kept {
    /// Gradients of each patient, `[patients, len]`.
    pub(super) fn each(offset: usize, len: usize, gradients: Vec<f32>) -> Self {
        Self { offset, what: What::Each { len, gradients } }
    }

    /// A convolution's weight. Adds its part to each patient's squared norm.
    ///
    /// The gradient of each patient is kept where that is cheap: then the weighted sum costs no product. Else input and
    /// gradient of the output are kept, and the norm comes from their Gram matrices or from a gradient that is made for it
    /// alone, whichever takes fewer products.
    pub(super) fn conv(offset: usize, layer: Layer, patients: &[Range<usize>], squares: &mut [f64]) -> Self {
        let weights = layer.s.weights();
        let norms: usize =
            patients.iter().map(|images| layer.gram_cost(images).min(layer.cost(images))).sum();
        let kept = patients.len() * weights;
        let what = if kept <= MOST_KEPT && kept * TOUCHED <= norms {
            let mut gradients = vec![0.0f32; kept];
            let each = gradients.par_chunks_exact_mut(weights).zip(patients).zip(&mut *squares);
            each.for_each(|((gradient, images), sum)| {
                gradient.copy_from_slice(&layer.gradient(images));
                *sum += square(gradient);
            });
            What::Each { len: weights, gradients }
        } else {
            squares.par_iter_mut().zip(patients).for_each(|(square, images)| *square += layer.square(images));
            What::Recorded(layer)
        };
        Self { offset, what }
    }

    /// Adds the patients' gradients, each times its factor.
    pub(super) fn add_weighted(self, patients: &[Range<usize>], factors: &[f32], sum: &mut [f32]) {
        match self.what {
            What::Each { len, gradients } => {
                let sum = &mut sum[self.offset..self.offset + len];
                sum.par_chunks_mut(4096).enumerate().for_each(|(chunk, sum)| {
                    for (gradient, &factor) in gradients.chunks_exact(len).zip(factors) {
                        // Zero times what is no number would be none.
                        if factor != 0.0 {
                            let gradient = &gradient[chunk * 4096..][..sum.len()];
                            sum.iter_mut().zip(gradient).for_each(|(sum, value)| *sum += factor * value);
                        }
                    }
                });
            }
            What::Recorded(layer) => {
                let total = layer.weighted(patients, factors);
                let sum = &mut sum[self.offset..self.offset + total.len()];
                sum.par_chunks_mut(4096).zip(total.par_chunks(4096)).for_each(|(sum, total)| {
                    sum.iter_mut().zip(total).for_each(|(sum, value)| *sum += value);
                });
            }
        }
    }
}

/// How a convolution's input lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// `[N, inputs, H, W]`.
    Planes,
    /// As [`Maps`].
    Maps,
}

/// A convolution's input and the gradient of its output, which is in maps.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) order: Order,
    pub(super) x: Arc<Vec<f32>>,
    pub(super) dy: Vec<f32>,
    pub(super) s: ConvShape,
}

impl Layer {
    /// The shape of a convolution of some images.
    fn part(&self, images: &Range<usize>) -> ConvShape {
        ConvShape { batch: images.len(), ..self.s }
    }

    /// Products of a gradient.
    fn cost(&self, images: &Range<usize>) -> usize {
        self.part(images).products()
    }

    /// Products of the Gram matrices: over pairs of the input's pixels, then over pairs of positions.
    fn gram_cost(&self, images: &Range<usize>) -> usize {
        let s = self.part(images);
        s.input().pixels().pow(2) * s.inputs + s.output().pixels().pow(2) * (s.outputs + s.kernel * s.kernel)
    }

    /// The input of some images, in its order.
    fn input(&self, images: &Range<usize>) -> Vec<f32> {
        match self.order {
            Order::Planes => {
                let image = self.s.inputs * self.s.height * self.s.width;
                self.x[images.start * image..images.end * image].to_vec()
            }
            Order::Maps => cut(&self.x, &self.s.input(), images),
        }
    }

    /// The gradient of some images, `A S^T`, as `[outputs, inputs, kernel, kernel]`.
    fn gradient(&self, images: &Range<usize>) -> Vec<f32> {
        let dy = cut(&self.dy, &self.s.output(), images);
        weight_gradient(self.order, &self.input(images), &dy, &self.part(images))
    }

    /// `A diag(f) S^T` over the batch.
    fn weighted(mut self, patients: &[Range<usize>], factors: &[f32]) -> Vec<f32> {
        let (from, to) = (self.s.input(), self.s.output());
        if factors.contains(&0.0) {
            let x = Arc::make_mut(&mut self.x);
            for (images, _) in patients.iter().zip(factors).filter(|(_, factor)| **factor == 0.0) {
                // Zero times what is no number would be none.
                match self.order {
                    Order::Planes => {
                        let image = from.channels * from.image();
                        x[images.start * image..images.end * image].fill(0.0);
                    }
                    Order::Maps => each_run(&from, images, |run| x[run].fill(0.0)),
                }
            }
        }
        for (images, &factor) in patients.iter().zip(factors) {
            each_run(&to, images, |run| {
                let part = self.dy[run].iter_mut();
                part.for_each(|value| *value = if factor == 0.0 { 0.0 } else { *value * factor });
            });
        }
        weight_gradient(self.order, &self.x, &self.dy, &self.s)
    }

    /// An upper bound, up to rounding, of the squared norm of what [`Self::weighted`] adds of a patient at factor 1.
    ///
    /// Both ways of computing it round differently from the sum itself. With `B = sum over positions of |a_t| |s_t|`, inner
    /// products of length n err by about `sqrt(n) u` of it (Higham & Mary 2019), u being the unit roundoff: the Gram form by
    /// `u sqrt(patch + outputs) B²` in the square, the sum by `u sqrt(positions) B` in the norm. Both are added, so that
    /// a gradient whose terms cancel is not taken for shorter than what is added of it.
    fn square(&self, images: &Range<usize>) -> f64 {
        let s = self.part(images);
        let (square, bound) = if self.gram_cost(images) <= self.cost(images) {
            let (square, bound) = self.gram(images);
            let length = s.inputs * s.kernel * s.kernel + s.outputs;
            (square + UNIT * (length as f64).sqrt() * bound * bound, bound)
        } else {
            (square(&self.gradient(images)), self.bound(images))
        };
        // Not `max`, which would take what is no number for 0.
        let square = if square < 0.0 { 0.0 } else { square };
        (square.sqrt() + UNIT * (s.output().pixels() as f64).sqrt() * bound).powi(2)
    }

    /// The squared norm from Gram matrices, and B.
    ///
    /// Patches need not be unfolded: a patch's elements at one place of the kernel are a pixel, so that the inner product of two
    /// patches is a sum of inner products of pixels, one for each place.
    fn gram(&self, images: &Range<usize>) -> (f64, f64) {
        let s = self.part(images);
        let inputs = gram(self.pixels(images), &s.input());
        let outputs = gram(pixels(&cut(&self.dy, &self.s.output(), images), &s.output()), &s.output());
        let places = places(&s);
        let (count, positions) = (s.input().pixels(), s.output().pixels());
        let (mut square, mut bound) = (0.0, 0.0);
        let mut patches = vec![0.0f64; positions];
        for t in 0..positions {
            patches.fill(0.0);
            for place in &places {
                let Some(first) = place[t] else { continue };
                let row = &inputs[first * count..][..count];
                for (sum, second) in patches.iter_mut().zip(place) {
                    *sum += second.map_or(0.0, |second| f64::from(row[second]));
                }
            }
            let row = &outputs[t * positions..][..positions];
            square += patches.iter().zip(row).map(|(a, &b)| a * f64::from(b)).sum::<f64>();
            // Squares of lengths, never below 0.
            bound += (patches[t] * f64::from(row[t])).sqrt();
        }
        (square, bound)
    }

    /// B: the sum over positions of the product of the lengths of patch and gradient.
    fn bound(&self, images: &Range<usize>) -> f64 {
        let s = self.part(images);
        let lengths = |pixels: &[f32], channels: usize| -> Vec<f64> {
            pixels.chunks_exact(channels).map(square).collect()
        };
        let inputs = lengths(&self.pixels(images), s.inputs);
        let outputs = pixels(&cut(&self.dy, &self.s.output(), images), &s.output());
        let outputs = lengths(&outputs, s.outputs);
        let mut patches = vec![0.0f64; outputs.len()];
        for place in places(&s) {
            for (sum, pixel) in patches.iter_mut().zip(place) {
                *sum += pixel.map_or(0.0, |pixel| inputs[pixel]);
            }
        }
        patches.iter().zip(&outputs).map(|(a, b)| (a * b).sqrt()).sum()
    }

    /// The input of some images as `[pixels, channels]`.
    fn pixels(&self, images: &Range<usize>) -> Vec<f32> {
        let (x, s) = (self.input(images), self.part(images));
        match self.order {
            Order::Planes => pixels(&s.input().from_planes(&x), &s.input()),
            Order::Maps => pixels(&x, &s.input()),
        }
    }
}

fn weight_gradient(order: Order, x: &[f32], dy: &[f32], s: &ConvShape) -> Vec<f32> {
    match order {
        Order::Planes => kernels::backward_weight_planes(Cpu::detect(), x, dy, s),
        Order::Maps => kernels::backward_weight(Cpu::detect(), x, dy, s),
    }
}

/// Calls `run` with the values of some images, block by block.
fn each_run(maps: &Maps, images: &Range<usize>, mut run: impl FnMut(Range<usize>)) {
    for block in 0..maps.blocks() {
        let at = |image: usize| (block * maps.batch + image) * maps.image() * BLOCK;
        run(at(images.start)..at(images.end));
    }
}

/// Some images of maps, as maps.
fn cut(values: &[f32], maps: &Maps, images: &Range<usize>) -> Vec<f32> {
    let part = Maps { batch: images.len(), ..*maps };
    let mut cut = Vec::with_capacity(part.values());
    each_run(maps, images, |run| cut.extend_from_slice(&values[run]));
    cut
}

/// Maps as `[pixels, channels]`.
fn pixels(values: &[f32], maps: &Maps) -> Vec<f32> {
    let mut rows = vec![0.0f32; maps.pixels() * maps.channels];
    for (block, pixels) in values.chunks_exact(maps.pixels() * BLOCK).enumerate() {
        let first = block * BLOCK;
        let channels = (maps.channels - first).min(BLOCK);
        for (row, pixel) in rows.chunks_exact_mut(maps.channels).zip(pixels.chunks_exact(BLOCK)) {
            row[first..first + channels].copy_from_slice(&pixel[..channels]);
        }
    }
    rows
}

/// Inner products of all pairs of rows of `[pixels, channels]`.
fn gram(rows: Vec<f32>, maps: &Maps) -> Vec<f32> {
    let rows = tensor(rows, [maps.pixels(), maps.channels]);
    let product = Flex::float_matmul(rows.clone(), rows.transpose(0, 1));
    values(&product).to_vec()
}

/// For each place of the kernel: the input's pixel there, for each position of the output; none outside of the image.
fn places(s: &ConvShape) -> Vec<Vec<Option<usize>>> {
    let to = s.output();
    let place = |ky: usize, kx: usize| {
        let mut pixels = Vec::with_capacity(to.pixels());
        for image in 0..s.batch {
            for (row, column) in (0..to.height).flat_map(|row| (0..to.width).map(move |column| (row, column)))
            {
                let y = (row * s.stride + ky).checked_sub(s.padding).filter(|&y| y < s.height);
                let x = (column * s.stride + kx).checked_sub(s.padding).filter(|&x| x < s.width);
                pixels.push(y.zip(x).map(|(y, x)| (image * s.height + y) * s.width + x));
            }
        }
        pixels
    };
    (0..s.kernel).flat_map(|ky| (0..s.kernel).map(move |kx| (ky, kx))).map(|(ky, kx)| place(ky, kx)).collect()
}
