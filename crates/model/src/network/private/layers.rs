//! What a layer keeps until the patients' factors are known, and the norms on the way.

use super::super::flex::{tensor, values};
use burn::backend::Flex;
use burn::backend::ops::FloatTensorOps;
use medinet_kernels::{self as kernels, BLOCK, ConvShape, Cpu, Maps, Share};
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
    /// Gradients of the patients for whom they are kept, and for the others a convolution's input and the gradient of its output.
    Conv { len: usize, gradients: Vec<Option<Vec<f32>>>, layer: Option<Layer> },
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
    /// The norm comes from the gradient, made for it, or from Gram matrices, whichever takes less. Which of them follows from the layer and the
    /// patient's number of images alone: if it followed from the batch, one patient more could change the factors of all others. A gradient that
    /// was made is kept where that is cheap, which saves its product in the sum and changes no bit of it.
    pub(super) fn conv(offset: usize, layer: Layer, patients: &[Range<usize>], squares: &mut [f64]) -> Self {
        let len = layer.s.weights();
        let worth = |images: &Range<usize>| !layer.takes_gram(images) && len * TOUCHED <= layer.cost(images);
        let room = patients.iter().filter(|&images| worth(images)).count() * len <= MOST_KEPT;
        let mut gradients: Vec<Option<Vec<f32>>> = patients.iter().map(|_| None).collect();
        let each = gradients.par_iter_mut().zip(patients).zip(&mut *squares);
        each.for_each(|((kept, images), square)| {
            if layer.takes_gram(images) {
                *square += layer.square(images);
                return;
            }
            let gradient = layer.gradient(images);
            *square += gradient.iter().map(|value| value * value).sum::<f64>();
            if room && worth(images) {
                // Exact: these are numbers of single precision.
                *kept = Some(gradient.iter().map(|&value| value as f32).collect());
            }
        });
        let layer = gradients.iter().any(Option::is_none).then_some(layer);
        Self { offset, what: What::Conv { len, gradients, layer } }
    }

    /// Adds the patients' gradients, each times its factor. A patient's gradient is in single precision and has the same bits whoever else is in
    /// the batch; factors and sums are in double precision.
    pub(super) fn add_weighted(&self, patients: &[Range<usize>], factors: &[f32], sum: &mut [f64]) {
        match &self.what {
            What::Each { len, gradients } => {
                let rows: Vec<_> = gradients
                    .chunks_exact(*len)
                    .zip(factors.iter().copied())
                    // Zero times what is no number would be none.
                    .filter(|(_, factor)| *factor != 0.0)
                    .collect();
                add_rows(&rows, &mut sum[self.offset..self.offset + len]);
            }
            What::Conv { len, gradients, layer } => {
                let (mut rows, mut shares) = (Vec::new(), Vec::new());
                for ((gradient, images), &factor) in gradients.iter().zip(patients).zip(factors) {
                    match gradient {
                        _ if factor == 0.0 => {}
                        Some(gradient) => rows.push((gradient.as_slice(), factor)),
                        None => shares.push(Share { images: images.clone(), factor }),
                    }
                }
                let sum = &mut sum[self.offset..self.offset + len];
                add_rows(&rows, sum);
                if let Some(layer) = layer {
                    layer.add(&shares, sum);
                }
            }
        }
    }
}

/// Adds rows as long as `sum`, each times its factor.
fn add_rows(rows: &[(&[f32], f32)], sum: &mut [f64]) {
    sum.par_chunks_mut(4096).enumerate().for_each(|(chunk, sum)| {
        for (row, factor) in rows {
            let factor = f64::from(*factor);
            let row = &row[chunk * 4096..][..sum.len()];
            sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += factor * f64::from(*value));
        }
    });
}

/// At most this, relative to the sum of the terms' sizes, a sum of `terms` products in single precision is off, in any order: gamma_n of Higham
/// 2002, section 3.1, a bound for the worst case. Infinite where there is none.
fn worst(terms: usize) -> f64 {
    let relative = terms as f64 * UNIT;
    if relative < 1.0 { relative / (1.0 - relative) } else { f64::INFINITY }
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

    /// Whether the norm of some images' gradient comes from Gram matrices. Follows from the shape and the number of images, and from nothing else.
    fn takes_gram(&self, images: &Range<usize>) -> bool {
        let gram = self.gram_cost(images);
        gram <= self.cost(images) && gram < self.s.weights() * TOUCHED
    }

    /// Adds the shares' gradients, `A S^T` each, as `[outputs, inputs, kernel, kernel]`.
    fn add(&self, shares: &[Share], sum: &mut [f64]) {
        let add = match self.order {
            Order::Planes => kernels::add_backward_weight_planes,
            Order::Maps => kernels::add_backward_weight,
        };
        add(Cpu::detect(), &self.x, &self.dy, &self.s, shares, sum);
    }

    /// The gradient of some images: numbers of single precision, the very ones that [`Self::add`] multiplies by a factor and adds.
    fn gradient(&self, images: &Range<usize>) -> Vec<f64> {
        let mut gradient = vec![0.0f64; self.s.weights()];
        self.add(&[Share { images: images.clone(), factor: 1.0 }], &mut gradient);
        gradient
    }

    /// An upper bound of the squared norm of [`Self::gradient`], from Gram matrices.
    ///
    /// They round differently from the gradient, at worst (Higham 2002; u the unit roundoff) as follows. Over positions t, with patches
    /// `a_t` and gradients `s_t` of the output, let `B = sum |a_t| |s_t|`. With `g(n) = n u / (1 - n u)`:
    ///
    /// ```text
    /// inner product of patches     g(inputs) |a_t| |a_u|     places of the kernel are summed in double precision
    /// inner product of gradients   g(outputs) |s_t| |s_u|
    /// squared norm                 (g(inputs) + g(outputs) + g(inputs) g(outputs)) B²
    /// gradient, as it is added     g(positions) B            in the norm
    /// ```
    ///
    /// A model may make `a` huge and `s` tiny so that products underflow: that has a bound of its own, from the sums of `|a_t|` and `|s_t|`.
    /// All are added, so that a gradient whose terms cancel is not taken for shorter than what is added of it.
    fn square(&self, images: &Range<usize>) -> f64 {
        let s = self.part(images);
        let inputs = self.pixels(images);
        let outputs = pixels(&cut(&self.dy, &self.s.output(), images), &s.output());
        let places = places(&s);
        let lengths = lengths(&inputs, &outputs, &places, &s);
        // A partial sum of the gradient may be beyond single precision, whatever its norm.
        if lengths.products > f64::from(f32::MAX) / 2.0 {
            return f64::INFINITY;
        }
        let square = gram_square(inputs, outputs, &places, &s);
        let positions = s.output().pixels();
        let (of_inputs, of_outputs) = (worst(s.inputs), worst(s.outputs));
        // More than what a product and its sum can lose by underflow, also where it is cut to zero.
        let tiny = 4.0 * f64::from(f32::MIN_POSITIVE);
        let (tiny_inputs, tiny_outputs) = (tiny * (s.inputs * places.len()) as f64, tiny * s.outputs as f64);
        // The sums in double precision, and all further roundings of this bound.
        let double = f64::EPSILON * (2 * positions + places.len() + 16) as f64;
        let error = (of_inputs + of_outputs + of_inputs * of_outputs + double) * lengths.products.powi(2)
            + (1.0 + of_outputs) * tiny_inputs * lengths.outputs.powi(2)
            + (1.0 + of_inputs) * tiny_outputs * lengths.patches.powi(2)
            + tiny_inputs * tiny_outputs * (positions as f64).powi(2);
        let square = square + error;
        // Not `max`, which would take what is no number for 0.
        let square = if square < 0.0 { 0.0 } else { square };
        let rounding =
            worst(positions) * lengths.products + tiny * positions as f64 * (s.weights() as f64).sqrt();
        (square.sqrt() + rounding).powi(2)
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

/// Sums over positions, of the lengths of patches and gradients.
struct Lengths {
    /// Of patches.
    patches: f64,
    /// Of gradients of the output.
    outputs: f64,
    /// Of their products: B.
    products: f64,
}

/// Of `[pixels, channels]` of the input and of the gradient of the output.
fn lengths(inputs: &[f32], outputs: &[f32], places: &[Vec<Option<usize>>], s: &ConvShape) -> Lengths {
    let squares =
        |rows: &[f32], channels: usize| -> Vec<f64> { rows.chunks_exact(channels).map(square).collect() };
    let (inputs, outputs) = (squares(inputs, s.inputs), squares(outputs, s.outputs));
    let mut patches = vec![0.0f64; outputs.len()];
    for place in places {
        for (sum, pixel) in patches.iter_mut().zip(place) {
            *sum += pixel.map_or(0.0, |pixel| inputs[pixel]);
        }
    }
    let roots = |squares: &[f64]| squares.iter().map(|square| square.sqrt()).sum::<f64>();
    Lengths {
        patches: roots(&patches),
        outputs: roots(&outputs),
        products: patches.iter().zip(&outputs).map(|(a, b)| a.sqrt() * b.sqrt()).sum(),
    }
}

/// The squared norm from Gram matrices, of `[pixels, channels]` of the input and of the gradient of the output.
///
/// Patches need not be unfolded: a patch's elements at one place of the kernel are a pixel, so that the inner product of two
/// patches is a sum of inner products of pixels, one for each place.
fn gram_square(inputs: Vec<f32>, outputs: Vec<f32>, places: &[Vec<Option<usize>>], s: &ConvShape) -> f64 {
    let (inputs, outputs) = (gram(inputs, &s.input()), gram(outputs, &s.output()));
    let (count, positions) = (s.input().pixels(), s.output().pixels());
    let mut square = 0.0;
    let mut patches = vec![0.0f64; positions];
    for t in 0..positions {
        patches.fill(0.0);
        for place in places {
            let Some(first) = place[t] else { continue };
            let row = &inputs[first * count..][..count];
            for (sum, second) in patches.iter_mut().zip(place) {
                *sum += second.map_or(0.0, |second| f64::from(row[second]));
            }
        }
        let row = &outputs[t * positions..][..positions];
        square += patches.iter().zip(row).map(|(a, &b)| a * f64::from(b)).sum::<f64>();
    }
    square
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
