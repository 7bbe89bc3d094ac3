//! The layers for the CPU, as operations of their own in burn's autodiff graph.
//!
//! burn's flex backend computes a convolution's gradients by further convolutions on transposed copies, and a group
//! normalisation as a dozen passes over memory. Here both gradients of a convolution share one walk over the batch
//! with two matrix products per tile, and normalisation and activation are one pass.

use super::im2col::{ConvShape, col2im, im2col};
use super::norm;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Flex};
use burn::tensor::{Tensor, TensorData};
use burn_flex::FlexTensor;
use rayon::prelude::*;

type Tracked = FloatTensor<Autodiff<Flex>>;

const ON_FLEX: &str = "the network chose these layers because its tensors are on the flex backend";

/// Convolution of `[N, inputs, H, W]` with `[outputs, inputs, k, k]`, without bias.
pub(super) fn conv2d(x: Tensor<4>, weight: Tensor<4>, stride: usize, padding: usize) -> Tensor<4> {
    let [batch, inputs, height, width] = x.dims();
    let [outputs, _, kernel, _] = weight.dims();
    let shape = ConvShape { batch, inputs, height, width, outputs, kernel, stride, padding };
    if !x.is_autodiff() && !weight.is_autodiff() {
        return untracked(conv_forward(&plain(x), &plain(weight), &shape));
    }
    let (x, weight) = (lifted(x), lifted(weight));
    let prepared = Conv2d.prepare::<NoCheckpointing>([x.node(), weight.node()]).compute_bound().stateful();
    let (x, weight) = (x.primitive().to_contiguous(), weight.primitive().to_contiguous());
    let y = conv_forward(&x, &weight, &shape);
    tracked(match prepared {
        OpsKind::Tracked(prepared) => prepared.finish((x, weight, shape), y),
        OpsKind::UnTracked(prepared) => prepared.finish(y),
    })
}

/// Group normalisation of `[N, C, H, W]`, and `max(0, .)` after it where `relu` is set.
pub(super) fn group_norm(
    x: Tensor<4>,
    scale: Tensor<1>,
    offset: Tensor<1>,
    groups: usize,
    relu: bool,
) -> Tensor<4> {
    let [_, channels, height, width] = x.dims();
    let shape = norm::NormShape { channels, groups, pixels: height * width, relu };
    if !x.is_autodiff() && !scale.is_autodiff() {
        let (y, _) = norm_forward(&plain(x), &plain(scale), &plain(offset), &shape);
        return untracked(y);
    }
    let (x, scale, offset) = (lifted(x), lifted(scale), lifted(offset));
    let nodes = [x.node(), scale.node(), offset.node()];
    let prepared = GroupNorm.prepare::<NoCheckpointing>(nodes).compute_bound().stateful();
    let [x, scale, offset] = [x, scale, offset].map(|t| t.primitive().to_contiguous());
    let (y, statistics) = norm_forward(&x, &scale, &offset, &shape);
    tracked(match prepared {
        OpsKind::Tracked(prepared) => prepared.finish((x, scale, y.clone(), statistics, shape), y),
        OpsKind::UnTracked(prepared) => prepared.finish(y),
    })
}

/// `max(0, a + b)`.
pub(super) fn add_relu(a: Tensor<4>, b: Tensor<4>) -> Tensor<4> {
    if !a.is_autodiff() && !b.is_autodiff() {
        return untracked(add_relu_forward(&plain(a), &plain(b)));
    }
    let (a, b) = (lifted(a), lifted(b));
    let prepared = AddRelu.prepare::<NoCheckpointing>([a.node(), b.node()]).compute_bound().stateful();
    let y = add_relu_forward(&a.primitive().to_contiguous(), &b.primitive().to_contiguous());
    tracked(match prepared {
        OpsKind::Tracked(prepared) => prepared.finish(y.clone(), y),
        OpsKind::UnTracked(prepared) => prepared.finish(y),
    })
}

pub(super) fn plain<const D: usize>(tensor: Tensor<D>) -> FlexTensor {
    tensor.try_into_primitive::<Flex>().expect(ON_FLEX).to_contiguous()
}

fn lifted<const D: usize>(tensor: Tensor<D>) -> Tracked {
    tensor.autodiff().try_into_primitive::<Autodiff<Flex>>().expect(ON_FLEX)
}

fn untracked(primitive: FlexTensor) -> Tensor<4> {
    Tensor::from_primitive::<Flex>(primitive)
}

fn tracked(primitive: Tracked) -> Tensor<4> {
    Tensor::from_primitive::<Autodiff<Flex>>(primitive)
}

/// The values of a contiguous tensor.
pub(super) fn values(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice().expect("made contiguous before")
}

pub(super) fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape))
}

pub(super) fn matmul(a: FlexTensor, b: FlexTensor) -> FlexTensor {
    Flex::float_matmul(a, b)
}

pub(super) fn conv_forward(x: &FlexTensor, weight: &FlexTensor, s: &ConvShape) -> FlexTensor {
    let kernel = weight.reshape([s.outputs, s.patch()].into());
    let x = values(x);
    let mut y = vec![0.0f32; s.batch * s.out_image()];
    y.par_chunks_mut(s.lane() * s.out_image()).enumerate().for_each(|(lane, y)| {
        let first = lane * s.lane();
        for tile in s.tiles(first, y.len() / s.out_image()) {
            let columns = s.columns(&tile);
            let unfolded = tensor(im2col(x, s, &tile), [s.patch(), columns]);
            let product = matmul(kernel.clone(), unfolded);
            let product = values(&product);
            for_each_line(s, &tile, first, |line, at| y[at.clone()].copy_from_slice(&product[line]));
        }
    });
    tensor(y, [s.batch, s.outputs, s.out_height(), s.out_width()])
}

/// Gradients with respect to the input, where asked for, and to the weight.
fn conv_backward(
    x: &FlexTensor,
    weight: &FlexTensor,
    dy: &FlexTensor,
    s: &ConvShape,
    wants_dx: bool,
) -> (Option<FlexTensor>, FlexTensor) {
    let transposed = weight.reshape([s.outputs, s.patch()].into()).transpose(0, 1);
    let (x, dy_values) = (values(x), values(dy));
    let lane_images = s.lane();
    let mut dx = vec![0.0f32; if wants_dx { s.batch * s.in_image() } else { 0 }];
    let lane_gradient = |first: usize, mut dx: Option<&mut [f32]>| {
        let mut dw = vec![0.0f32; s.outputs * s.patch()];
        for tile in s.tiles(first, lane_images.min(s.batch - first)) {
            let columns = s.columns(&tile);
            let gathered = if tile.images.len() == 1 && columns == s.out_pixels() {
                // A whole image already is `[outputs, columns]`.
                dy.narrow(0, tile.images.start, 1).reshape([s.outputs, columns].into())
            } else {
                let mut gathered = Vec::with_capacity(s.outputs * columns);
                for_each_line(s, &tile, 0, |_, at| gathered.extend_from_slice(&dy_values[at]));
                tensor(gathered, [s.outputs, columns])
            };
            if let Some(dx) = &mut dx {
                let mut unfolded = matmul(transposed.clone(), gathered.clone());
                col2im(unfolded.storage_mut(), s, &tile, dx, first);
            }
            let unfolded = tensor(im2col(x, s, &tile), [s.patch(), columns]);
            // `[patch, outputs]`: this way round the product packs the smaller of its factors.
            let product = matmul(unfolded, gathered.transpose(0, 1));
            dw.iter_mut().zip(values(&product)).for_each(|(sum, value)| *sum += value);
        }
        dw
    };
    let lanes: Vec<Vec<f32>> = if wants_dx {
        let chunks = dx.par_chunks_mut(lane_images * s.in_image()).enumerate();
        chunks.map(|(lane, dx)| lane_gradient(lane * lane_images, Some(dx))).collect()
    } else {
        let lanes = (0..s.batch.div_ceil(lane_images)).into_par_iter();
        lanes.map(|lane| lane_gradient(lane * lane_images, None)).collect()
    };
    let sum = |mut sum: Vec<f32>, lane: Vec<f32>| {
        sum.iter_mut().zip(&lane).for_each(|(sum, value)| *sum += value);
        sum
    };
    let dw = lanes.into_iter().reduce(sum).unwrap_or_else(|| vec![0.0; s.outputs * s.patch()]);
    let dx = wants_dx.then(|| tensor(dx, [s.batch, s.inputs, s.height, s.width]));
    let dw = tensor(dw, [s.patch(), s.outputs]).transpose(0, 1).to_contiguous();
    (dx, dw.reshape([s.outputs, s.inputs, s.kernel, s.kernel].into()))
}

/// Calls `run(line, at)` for each output channel and image of a tile: `line` is its range in the tile's
/// `[outputs, columns]` matrix, `at` its range in `[batch, outputs, height, width]` counted from image `first`.
pub(super) fn for_each_line(
    s: &ConvShape,
    tile: &super::im2col::Tile,
    first: usize,
    mut run: impl FnMut(std::ops::Range<usize>, std::ops::Range<usize>),
) {
    let columns = s.columns(tile);
    let len = tile.rows.len() * s.out_width();
    for channel in 0..s.outputs {
        for (i, image) in tile.images.clone().enumerate() {
            let line = channel * columns + i * len;
            let at =
                (image - first) * s.out_image() + channel * s.out_pixels() + tile.rows.start * s.out_width();
            run(line..line + len, at..at + len);
        }
    }
}

pub(super) fn norm_forward(
    x: &FlexTensor,
    scale: &FlexTensor,
    offset: &FlexTensor,
    shape: &norm::NormShape,
) -> (FlexTensor, norm::Statistics) {
    let (y, statistics) = norm::forward(values(x), values(scale), values(offset), shape);
    (FlexTensor::from_data(TensorData::new(y, x.layout().shape().clone())), statistics)
}

pub(super) fn add_relu_forward(a: &FlexTensor, b: &FlexTensor) -> FlexTensor {
    let shape = a.layout().shape().clone();
    let y: Vec<f32> = values(a).iter().zip(values(b)).map(|(a, b)| (a + b).max(0.0)).collect();
    FlexTensor::from_data(TensorData::new(y, shape))
}

#[derive(Debug)]
struct Conv2d;

impl Backward<Flex, 2> for Conv2d {
    type State = (FlexTensor, FlexTensor, ConvShape);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [x_node, weight_node] = ops.parents;
        let (x, weight, shape) = ops.state;
        let dy = grads.consume::<Flex>(&ops.node).to_contiguous();
        let (dx, dw) = conv_backward(&x, &weight, &dy, &shape, x_node.is_some());
        if let (Some(node), Some(dx)) = (x_node, dx) {
            grads.register::<Flex>(node.id, dx);
        }
        if let Some(node) = weight_node {
            grads.register::<Flex>(node.id, dw);
        }
    }
}

#[derive(Debug)]
struct GroupNorm;

impl Backward<Flex, 3> for GroupNorm {
    type State = (FlexTensor, FlexTensor, FlexTensor, norm::Statistics, norm::NormShape);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (x, scale, y, statistics, shape) = ops.state;
        let dy = grads.consume::<Flex>(&ops.node).to_contiguous();
        let gradient =
            norm::backward(values(&x), values(&scale), values(&y), values(&dy), &statistics, &shape);
        let dx = FlexTensor::from_data(TensorData::new(gradient.x, x.layout().shape().clone()));
        let channels = [shape.channels];
        let all = [dx, tensor(gradient.scale, channels), tensor(gradient.offset, channels)];
        for (node, gradient) in ops.parents.into_iter().zip(all) {
            if let Some(node) = node {
                grads.register::<Flex>(node.id, gradient);
            }
        }
    }
}

#[derive(Debug)]
struct AddRelu;

impl Backward<Flex, 2> for AddRelu {
    type State = FlexTensor;

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<Flex>(&ops.node).to_contiguous();
        let shape = dy.layout().shape().clone();
        let masked = values(&dy).iter().zip(values(&ops.state));
        let masked: Vec<f32> = masked.map(|(dy, &y)| if y > 0.0 { *dy } else { 0.0 }).collect();
        let gradient = FlexTensor::from_data(TensorData::new(masked, shape));
        for node in ops.parents.into_iter().flatten() {
            grads.register::<Flex>(node.id, gradient.clone());
        }
    }
}
