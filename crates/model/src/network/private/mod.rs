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
//! ||g_p||² = sum over positions t, u of (A^T A)_tu (S^T S)_tu      (patch + outputs) * positions² products
//! sum_p f_p g_p = A diag(f) S^T                          over the whole batch, positions weighted by their patient's factor
//! ```
//!
//! What a layer keeps is chosen by its sizes ([`layers`]). Scales, offsets and the last layer are small: their gradients are
//! kept patient by patient.
//!
//! No layer mixes images (group normalisation works within one), so a patient's gradient depends on no other patient.

mod layers;
mod ops;

use super::Network;
use super::flex::{plain, tensor, values};
use super::norm::{NormShape, Statistics};
use crate::architecture::{Block, ConvNorm};
use crate::network::im2col::ConvShape;
use burn::tensor::Tensor;
use burn_flex::FlexTensor;
use layers::Kept;
use std::ops::Range;

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
        let x = plain(images.without_autodiff());
        let patients = ranges(batch.images);
        assert_eq!(batch.classes.len(), patients.last().map_or(0, |last| last.end), "a class for each image");
        assert_eq!(batch.classes.len(), x.layout().shape()[0], "a class for each image");
        let parameters: Vec<FlexTensor> =
            self.parameters.iter().map(|parameter| plain(parameter.clone().without_autodiff())).collect();
        let mut pass =
            Pass { network: self, parameters: &parameters, next: 0, tape: Vec::new(), blocks: Vec::new() };
        let (features, pooled) = pass.forward(x);
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
    /// L2 norm of each patient's gradient over all parameters, at least the true one up to rounding: where a norm does not
    /// come from the very numbers that will be summed, what rounding may make of the difference is added to it. Not
    /// finite for a patient whose gradient overflowed.
    #[must_use]
    pub fn norms(&self) -> &[f64] {
        &self.norms
    }

    /// Each patient's loss.
    #[must_use]
    pub fn losses(&self) -> &[f64] {
        &self.losses
    }

    /// Adds every patient's gradient times its factor to `sum`, in the layout's order. A factor of 0 leaves a patient out,
    /// whatever their gradient is.
    ///
    /// # Panics
    /// When there is not a factor for each patient, or `sum` has another length than the layout: the caller's contract.
    pub fn add_weighted(self, factors: &[f32], sum: &mut [f32]) {
        assert_eq!(factors.len(), self.patients.len(), "a factor for each patient");
        for kept in self.kept {
            kept.add_weighted(&self.patients, factors, sum);
        }
    }
}

/// What the forward pass keeps of a convolution and its normalisation.
struct Step {
    /// Index of the convolution's weight among the tensors; scale and offset follow.
    tensor: usize,
    conv: ConvShape,
    norm: NormShape,
    x: FlexTensor,
    /// The convolution's output.
    between: FlexTensor,
    y: FlexTensor,
    statistics: Statistics,
}

struct Pass<'a> {
    network: &'a Network,
    parameters: &'a [FlexTensor],
    next: usize,
    tape: Vec<Step>,
    /// Outputs of the blocks.
    blocks: Vec<FlexTensor>,
}

/// A max pooling: its input's sizes and where each output was taken.
struct Pooled {
    dims: [usize; 4],
    taken: Vec<u32>,
}

fn dims(x: &FlexTensor) -> [usize; 4] {
    let shape = x.layout().shape();
    [shape[0], shape[1], shape[2], shape[3]]
}

impl Pass<'_> {
    /// The last block's output, and the pooling after the stem.
    fn forward(&mut self, images: FlexTensor) -> (FlexTensor, Option<Pooled>) {
        let architecture = &self.network.architecture;
        let mut x = self.conv_norm(&architecture.stem, images, true);
        let mut pooled = None;
        if architecture.stem_pool {
            let dims = dims(&x);
            let (y, taken) = ops::max_pool(&x);
            (x, pooled) = (y, Some(Pooled { dims, taken }));
        }
        for block in &architecture.blocks {
            x = self.block(block, x);
        }
        (x, pooled)
    }

    fn conv_norm(&mut self, layer: &ConvNorm, x: FlexTensor, relu: bool) -> FlexTensor {
        let [batch, inputs, height, width] = dims(&x);
        let at = self.next;
        self.next += 3;
        let (outputs, kernel, stride) = (layer.conv.outputs, layer.conv.kernel, layer.conv.stride);
        let padding = layer.conv.padding();
        let conv = ConvShape { batch, inputs, height, width, outputs, kernel, stride, padding };
        let between = super::flex::conv_forward(&x, &self.parameters[at], &conv);
        let groups = self.network.architecture.groups;
        let norm = NormShape { channels: outputs, groups, pixels: conv.out_pixels(), relu };
        let [_, scale, offset] = [0, 1, 2].map(|i| &self.parameters[at + i]);
        let (y, statistics) = super::flex::norm_forward(&between, scale, offset, &norm);
        self.tape.push(Step { tensor: at, conv, norm, x, between, y: y.clone(), statistics });
        y
    }

    fn block(&mut self, block: &Block, x: FlexTensor) -> FlexTensor {
        let first = self.conv_norm(&block.first, x.clone(), true);
        let second = self.conv_norm(&block.second, first, false);
        let shortcut = match &block.shortcut {
            Some(layer) => self.conv_norm(layer, x, false),
            None => x,
        };
        let y = super::flex::add_relu_forward(&second, &shortcut);
        self.blocks.push(y.clone());
        y
    }

    fn backward(
        mut self,
        features: &FlexTensor,
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
            let y = self.blocks.pop().expect("one output for each block");
            ops::mask(&mut dy, values(&y));
            let beside = block.shortcut.is_some().then(|| self.step_back(dy.clone(), true, &mut books));
            let straight = if beside.is_none() { Some(dy.clone()) } else { None };
            let inner = self.step_back(dy, true, &mut books);
            dy = self.step_back(inner, true, &mut books);
            let other = beside.or(straight).expect("a shortcut of either kind");
            dy.iter_mut().zip(&other).for_each(|(sum, value)| *sum += value);
        }
        if let Some(Pooled { dims, taken }) = pooled {
            dy = ops::max_pool_gradient(&dy, &taken, dims);
        }
        self.step_back(dy, false, &mut books);
        let Books { squares, kept, .. } = books;
        PatientGradients { losses, norms: squares.into_iter().map(f64::sqrt).collect(), patients, kept }
    }

    /// The last convolution with its normalisation of the tape, backwards: from the gradient of its output to that of its
    /// input, where it is wanted.
    fn step_back(&mut self, dy: Vec<f32>, wants_dx: bool, books: &mut Books<'_>) -> Vec<f32> {
        let Step { tensor: at, conv, norm, x, between, y, statistics } =
            self.tape.pop().expect("as many steps back as forward");
        let scale = values(&self.parameters[at + 1]);
        let (dy, sums) =
            super::norm::backward_images(values(&between), scale, values(&y), &dy, &statistics, &norm);
        drop((between, y));
        for i in [0, 1] {
            let each = sums.iter().map(|image| image.iter().map(|both| both[i]).collect::<Vec<_>>());
            books.sum_images(at + 1 + i, norm.channels, each);
        }
        let dy = tensor(dy, [conv.batch, conv.outputs, conv.out_height(), conv.out_width()]);
        let dx =
            if wants_dx { ops::conv_input_gradient(&self.parameters[at], &dy, &conv) } else { Vec::new() };
        let kept = Kept::conv(books.offsets[at], x, dy, conv, books.patients, &mut books.squares);
        books.kept.push(kept);
        dx
    }

    /// Mean, last layer and loss: each patient's loss, and the gradient of the last block's output.
    fn head(
        &self,
        features: &FlexTensor,
        batch: &PatientImages<'_>,
        books: &mut Books<'_>,
    ) -> (Vec<f64>, Vec<f32>) {
        let [_, channels, height, width] = dims(features);
        let classes = self.network.architecture.classes;
        let [weight, bias] = [0, 1].map(|i| values(&self.parameters[self.next + i]));
        let pixels = height * width;
        let means: Vec<f32> = values(features)
            .chunks_exact(pixels)
            .map(|map| map.iter().sum::<f32>() / pixels as f32)
            .collect();
        let mut dy = Vec::with_capacity(values(features).len());
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
                let (cross_entropy, gradient) = ops::cross_entropy(&logits, class);
                loss += f64::from(share) * cross_entropy;
                let gradient: Vec<f32> = gradient.iter().map(|value| value * share).collect();
                weights
                    .push(gradient.iter().flat_map(|g| mean.iter().map(move |x| g * x)).collect::<Vec<_>>());
                for channel in 0..channels {
                    let sum: f32 =
                        (0..classes).map(|class| gradient[class] * weight[class * channels + channel]).sum();
                    dy.resize(dy.len() + pixels, sum / pixels as f32);
                }
                biases.push(gradient);
            }
            losses.push(loss);
        }
        books.sum_images(self.next, classes * channels, weights.into_iter());
        books.sum_images(self.next + 1, classes, biases.into_iter());
        (losses, dy)
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
