//! Gradients of patients for private training, without a backward pass for each patient.
//!
//! DP-SGD (Abadi et al. 2016, algorithm 1) needs, of a batch P of patients, the norms `||g_p||` and then the sum of `f_p g_p`,
//! where `g_p` is the gradient of patient p's loss and `f_p = min(1, C / ||g_p||)`. Both follow from one forward and one
//! backward pass that computes no gradients of weights but keeps, of every layer, its input `a` and the gradient `s` of its
//! output (Bu, Wang, Zha, Karypis 2023, book-keeping; Bu, Mao, Xu 2022, mixed ghost clipping). For a convolution, with
//! `A` the unfolded patches `[patch, positions]` and `S` `[outputs, positions]` of **all positions of all images of one
//! patient**:
//!
//! ```text
//! g_p     = A S^T                                        the gradient itself: patch * outputs * positions products
//! ||g_p||² = sum over positions t, u of (A^T A)_tu (S^T S)_tu      inputs * pixels² + outputs * positions² products
//! sum_p f_p g_p                                          each g_p by itself, then the sum over patients
//! ```
//!
//! The sum could be one product over the whole batch, `A diag(f) S^T` (their book-keeping); in single precision a patient more would then change
//! the rounding of all others' terms. Here each patient's `g_p` is rounded by itself, to the same bits whoever else is in the batch, and the
//! sum over patients is in double precision: a patient more moves it by `f_p g_p`, up to about 2^-53 of it for each patient there.
//!
//! What a layer keeps is chosen by its sizes ([`layers`]). Scales, offsets and the last layer are small: their gradients are
//! kept patient by patient.
//!
//! No layer mixes images (group normalisation works within one), so a patient's gradient depends on no other patient.

mod layers;

use super::Network;
use super::flex::{plain, values};
use crate::architecture::{Block, ConvNorm, NORM_EPSILON};
use burn::tensor::Tensor;
use burn_flex::FlexTensor;
use layers::{Kept, Layer, Order};
use medinet_kernels::{self as kernels, ConvShape, Cpu, Maps, NormShape, Statistics, buffers};
use std::ops::Range;
use std::sync::Arc;

/// A batch's images, patient by patient.
#[derive(Debug, Clone, Copy)]
pub struct PatientImages<'a> {
    /// Class index of each image.
    pub classes: &'a [usize],
    /// Images of each patient: the first patient's come first. Their sum is the number of images; none is 0.
    pub images: &'a [usize],
    /// Weight of each class in the loss, which may not depend on the patients.
    pub class_weights: &'a [f32],
    /// Images of each patient in all, where those in the batch are a part of them; in the batch's order. The loss is the mean
    /// over all of them. None means that `images` are all.
    pub all_images: Option<&'a [usize]>,
}

/// What a batch's two passes gave: norms of the patients' gradients, and what makes their weighted sum.
#[derive(Debug)]
pub struct PatientGradients {
    losses: Vec<f64>,
    norms: Vec<f64>,
    patients: Vec<Range<usize>>,
    kept: Vec<Kept>,
}

impl Network {
    /// Runs a batch forward and backward. A patient's loss is the mean, over all images of the patient, of the class weight
    /// times the cross entropy.
    ///
    /// # Panics
    /// When the network is not on the flex backend, or numbers of images, classes and patients do not fit each other: the
    /// caller's contract.
    #[must_use]
    pub fn patient_gradients(&self, images: Tensor<4>, batch: &PatientImages<'_>) -> PatientGradients {
        let [count, channels, height, width] = images.dims();
        let images = plain(images.without_autodiff());
        let patients = ranges(batch.images);
        assert_eq!(patients.last().map_or(0, |last| last.end), count, "every image is a patient's");
        assert_eq!(batch.classes.len(), count, "a class for each image");
        let parameters: Vec<FlexTensor> =
            self.parameters.iter().map(|parameter| plain(parameter.clone().without_autodiff())).collect();
        let mut pass =
            Pass { network: self, parameters: &parameters, cpu: Cpu::detect(), next: 0, tape: Vec::new() };
        let images = Features {
            order: Order::Planes,
            values: Arc::new(values(&images).to_vec()),
            maps: Maps { batch: count, channels, height, width },
        };
        let (features, pooled) = pass.forward(images);
        pass.backward(&features, pooled, batch, patients)
    }
}

fn ranges(images: &[usize]) -> Vec<Range<usize>> {
    let mut next = 0;
    images
        .iter()
        .map(|&count| {
            assert!(count > 0, "every patient has images");
            next += count;
            next - count..next
        })
        .collect()
}

impl PatientGradients {
    /// L2 norm of each patient's gradient over all parameters, as [`Self::add_weighted`] adds it: of these very numbers, or where it comes from
    /// others, an upper bound with all that rounding may make of the difference at worst. Exact up to rounding in double precision. It follows
    /// from the model and the patient's images, whoever else is in the batch. Not finite for a patient whose gradient overflowed.
    #[must_use]
    pub fn norms(&self) -> &[f64] {
        &self.norms
    }

    /// Each patient's loss.
    #[must_use]
    pub fn losses(&self) -> &[f64] {
        &self.losses
    }

    /// Adds every patient's gradient times its factor to `sum`, in the layout's order. The gradient is in single precision and has the same
    /// bits whoever else is in the batch; the sum over patients is in double precision. A factor of 0 leaves a patient out, whatever their
    /// gradient is.
    ///
    /// # Panics
    /// When there is not a factor for each patient, or `sum` has another length than the layout: the caller's contract.
    pub fn add_weighted(self, factors: &[f32], sum: &mut [f64]) {
        assert_eq!(factors.len(), self.patients.len(), "a factor for each patient");
        for kept in self.kept {
            kept.add_weighted(&self.patients, factors, sum);
        }
    }
}

/// A batch's feature maps.
#[derive(Debug, Clone)]
struct Features {
    order: Order,
    values: Arc<Vec<f32>>,
    maps: Maps,
}

/// What the forward pass keeps of a convolution and its normalisation.
struct Step {
    /// Index of the convolution's weight among the tensors; scale and offset follow.
    tensor: usize,
    conv: ConvShape,
    norm: NormShape,
    x: Features,
    /// The convolution's output.
    between: Vec<f32>,
    y: Features,
    statistics: Statistics,
}

/// A convolution whose normalisation is still to come.
struct Begun {
    tensor: usize,
    conv: ConvShape,
    x: Features,
    between: Vec<f32>,
}

struct Pass<'a> {
    network: &'a Network,
    parameters: &'a [FlexTensor],
    cpu: Cpu,
    next: usize,
    tape: Vec<Step>,
}

/// A max pooling: its input and output.
struct Pooled {
    x: Features,
    y: Features,
}

impl Pass<'_> {
    /// The last block's output, and the pooling after the stem.
    fn forward(&mut self, images: Features) -> (Features, Option<Pooled>) {
        let architecture = &self.network.architecture;
        let mut x = self.conv_norm(&architecture.stem, images, true);
        let mut pooled = None;
        if architecture.stem_pool {
            let values = Arc::new(kernels::max_pool(self.cpu, &x.values, &x.maps));
            let y = Features { order: Order::Maps, values, maps: kernels::max_pooled(&x.maps) };
            pooled = Some(Pooled { x, y: y.clone() });
            x = y;
        }
        for block in &architecture.blocks {
            x = self.block(block, x);
        }
        (x, pooled)
    }

    fn conv_norm(&mut self, layer: &ConvNorm, x: Features, relu: bool) -> Features {
        let begun = self.conv(layer, x);
        self.norm(begun, None, relu)
    }

    fn conv(&mut self, layer: &ConvNorm, x: Features) -> Begun {
        let Maps { batch, channels: inputs, height, width } = x.maps;
        let (outputs, kernel, stride) = (layer.conv.outputs, layer.conv.kernel, layer.conv.stride);
        let padding = layer.conv.padding();
        let conv = ConvShape { batch, inputs, height, width, outputs, kernel, stride, padding };
        let weight = values(&self.parameters[self.next]);
        let between = match x.order {
            Order::Planes => kernels::forward_planes(self.cpu, &x.values, weight, &conv),
            Order::Maps => kernels::forward(self.cpu, &x.values, weight, &conv),
        };
        self.next += 3;
        Begun { tensor: self.next - 3, conv, x, between }
    }

    fn norm(&mut self, begun: Begun, shortcut: Option<&Features>, relu: bool) -> Features {
        let Begun { tensor, conv, x, between } = begun;
        let (maps, groups) = (conv.output(), self.network.architecture.groups);
        let norm = NormShape { maps, groups, epsilon: NORM_EPSILON, relu };
        let [scale, offset] = [1, 2].map(|i| values(&self.parameters[tensor + i]));
        let shortcut = shortcut.map(|shortcut| shortcut.values.as_slice());
        let (y, statistics) = kernels::group_norm(self.cpu, &between, scale, offset, shortcut, &norm);
        let y = Features { order: Order::Maps, values: Arc::new(y), maps };
        self.tape.push(Step { tensor, conv, norm, x, between, y: y.clone(), statistics });
        y
    }

    fn block(&mut self, block: &Block, x: Features) -> Features {
        let first = self.conv_norm(&block.first, x.clone(), true);
        let second = self.conv(&block.second, first);
        let shortcut = match &block.shortcut {
            Some(layer) => self.conv_norm(layer, x, false),
            None => x,
        };
        self.norm(second, Some(&shortcut), true)
    }

    fn backward(
        mut self,
        features: &Features,
        pooled: Option<Pooled>,
        batch: &PatientImages<'_>,
        patients: Vec<Range<usize>>,
    ) -> PatientGradients {
        let mut books = Books {
            squares: vec![0.0; patients.len()],
            patients: &patients,
            kept: Vec::new(),
            offsets: self.network.layout.tensors().iter().map(|slot| slot.offset).collect(),
        };
        let (losses, mut dy) = self.head(features, batch, &mut books);
        let architecture = &self.network.architecture;
        for block in architecture.blocks.iter().rev() {
            let (inner, beside) = self.step_back(dy, true, true, &mut books);
            let mut beside = beside.expect("was wanted");
            if block.shortcut.is_some() {
                beside = self.step_back(beside, true, false, &mut books).0;
            }
            dy = self.step_back(inner, true, false, &mut books).0;
            dy.iter_mut().zip(&beside).for_each(|(sum, value)| *sum += value);
            buffers::give(beside);
        }
        if let Some(Pooled { x, y }) = pooled {
            dy = kernels::max_pool_backward(self.cpu, &x.values, &y.values, &dy, &x.maps);
        }
        self.step_back(dy, false, false, &mut books);
        let Books { squares, kept, .. } = books;
        PatientGradients { losses, norms: squares.into_iter().map(f64::sqrt).collect(), patients, kept }
    }

    /// The last convolution with its normalisation of the tape, backwards: from the gradient of its output to those of its
    /// input and its shortcut, where they are wanted.
    fn step_back(
        &mut self,
        dy: Vec<f32>,
        wants_dx: bool,
        wants_shortcut: bool,
        books: &mut Books<'_>,
    ) -> (Vec<f32>, Option<Vec<f32>>) {
        let Step { tensor, conv, norm, x, between, y, statistics } =
            self.tape.pop().expect("as many steps back as forward");
        let [weight, scale] = [0, 1].map(|i| values(&self.parameters[tensor + i]));
        let gradient = kernels::group_norm_backward_images(
            self.cpu,
            &between,
            scale,
            &y.values,
            &dy,
            &statistics,
            wants_shortcut,
            &norm,
        );
        [between, dy].into_iter().for_each(buffers::give);
        let channels = norm.maps.channels;
        for (i, each) in [gradient.scale, gradient.offset].into_iter().enumerate() {
            books.sum_images(tensor + 1 + i, channels, each.chunks_exact(channels).map(<[f32]>::to_vec));
        }
        let dx =
            if wants_dx { kernels::backward_input(self.cpu, &gradient.x, weight, &conv) } else { Vec::new() };
        let layer = Layer { order: x.order, x: x.values, dy: gradient.x, s: conv };
        let kept = Kept::conv(books.offsets[tensor], layer, books.patients, &mut books.squares);
        books.kept.push(kept);
        (dx, gradient.shortcut)
    }

    /// Mean, last layer and loss: each patient's loss, and the gradient of the last block's output.
    fn head(
        &self,
        features: &Features,
        batch: &PatientImages<'_>,
        books: &mut Books<'_>,
    ) -> (Vec<f64>, Vec<f32>) {
        let (classes, channels) = (self.network.architecture.classes, features.maps.channels);
        let [weight, bias] = [0, 1].map(|i| values(&self.parameters[self.next + i]));
        let means = kernels::mean(&features.values, &features.maps);
        let mut dy = Vec::with_capacity(means.len());
        let (mut weights, mut biases, mut losses) = (Vec::new(), Vec::new(), Vec::new());
        for (patient, images) in books.patients.iter().enumerate() {
            let all = batch.all_images.map_or(images.len(), |all| all[patient]);
            let mut loss = 0.0;
            for image in images.clone() {
                let mean = &means[image * channels..(image + 1) * channels];
                let logit = |(row, bias): (&[f32], &f32)| {
                    row.iter().zip(mean).map(|(w, x)| w * x).sum::<f32>() + bias
                };
                let logits: Vec<f32> = weight.chunks_exact(channels).zip(bias).map(logit).collect();
                let class = batch.classes[image];
                let share = batch.class_weights[class] / all as f32;
                let (cross_entropy, gradient) = cross_entropy(&logits, class);
                loss += f64::from(share) * cross_entropy;
                let gradient: Vec<f32> = gradient.iter().map(|value| value * share).collect();
                weights
                    .push(gradient.iter().flat_map(|g| mean.iter().map(move |x| g * x)).collect::<Vec<_>>());
                dy.extend((0..channels).map(|channel| {
                    let each = gradient.iter().enumerate();
                    each.map(|(class, value)| value * weight[class * channels + channel]).sum::<f32>()
                }));
                biases.push(gradient);
            }
            losses.push(loss);
        }
        books.sum_images(self.next, classes * channels, weights.into_iter());
        books.sum_images(self.next + 1, classes, biases.into_iter());
        (losses, kernels::mean_backward(&dy, &features.maps))
    }
}

/// What the backward pass notes down.
struct Books<'a> {
    patients: &'a [Range<usize>],
    /// Squared norms so far.
    squares: Vec<f64>,
    kept: Vec<Kept>,
    /// First element of each tensor in the flat vector.
    offsets: Vec<usize>,
}

impl Books<'_> {
    /// Keeps a small tensor's gradients, from those of each image.
    fn sum_images(&mut self, tensor: usize, len: usize, each: impl Iterator<Item = Vec<f32>>) {
        let mut each = each;
        let mut sums = vec![0.0f32; self.patients.len() * len];
        for ((patient, sum), square) in
            self.patients.iter().zip(sums.chunks_exact_mut(len)).zip(&mut self.squares)
        {
            for image in each.by_ref().take(patient.len()) {
                sum.iter_mut().zip(&image).for_each(|(sum, value)| *sum += value);
            }
            *square += layers::square(sum);
        }
        self.kept.push(Kept::each(self.offsets[tensor], len, sums));
    }
}

/// Negative logarithm of a class's probability, and its gradient with respect to the logits.
fn cross_entropy(logits: &[f32], class: usize) -> (f64, Vec<f32>) {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f64> = logits.iter().map(|&v| f64::from(v - highest).exp()).collect();
    let sum: f64 = powers.iter().sum();
    let mut gradient: Vec<f32> = powers.iter().map(|power| (power / sum) as f32).collect();
    gradient[class] -= 1.0;
    (sum.ln() - f64::from(logits[class] - highest), gradient)
}
