//! The layers for the CPU: the kernels of `medinet-kernels` as operations in burn's autodiff graph.
//!
//! Between these layers a batch's feature maps are in the kernels' own order, so that no layer rearranges them. What an
//! operation keeps for its backward pass goes back to the kernels' buffers after it, for the next step.

use crate::architecture::NORM_EPSILON;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Flex};
use burn::tensor::{Tensor, TensorData};
use burn_flex::FlexTensor;
use medinet_kernels::{
    self as kernels, BLOCK, ConvShape, Cpu, Descent, Maps, NormShape, Statistics, buffers,
};

type Tracked = FloatTensor<Autodiff<Flex>>;

const ON_FLEX: &str = "the network chose these layers because its tensors are on the flex backend";

/// Feature maps of a batch, in the order of [`Maps`].
#[derive(Debug, Clone)]
pub(super) struct Features {
    /// `[blocks, batch, pixels, 16]`.
    values: Tensor<4>,
    maps: Maps,
}

/// Convolution of images `[N, inputs, H, W]` with `[outputs, inputs, k, k]`, without bias.
pub(super) fn stem(
    images: Tensor<4>,
    weight: Tensor<1>,
    outputs: usize,
    kernel: usize,
    stride: usize,
) -> Features {
    let [batch, inputs, height, width] = images.dims();
    let padding = kernel / 2;
    let s = ConvShape { batch, inputs, height, width, outputs, kernel, stride, padding };
    convolution(images, weight, ConvInput::Images, s)
}

/// Convolution with `[outputs, inputs, k, k]`, without bias.
pub(super) fn conv2d(
    x: Features,
    weight: Tensor<1>,
    outputs: usize,
    kernel: usize,
    stride: usize,
) -> Features {
    let Maps { batch, channels: inputs, height, width } = x.maps;
    let padding = kernel / 2;
    let s = ConvShape { batch, inputs, height, width, outputs, kernel, stride, padding };
    convolution(x.values, weight, ConvInput::Features, s)
}

/// What a convolution's input is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ConvInput {
    /// `[N, inputs, H, W]`.
    Images,
    Features,
}

fn convolution(x: Tensor<4>, weight: Tensor<1>, input: ConvInput, s: ConvShape) -> Features {
    let forward = |x: &FlexTensor, weight: &FlexTensor| {
        let run = match input {
            ConvInput::Images => kernels::forward_planes,
            ConvInput::Features => kernels::forward,
        };
        features(run(Cpu::detect(), values(x), values(weight), &s), &s.output())
    };
    if !x.is_autodiff() && !weight.is_autodiff() {
        let (x, weight) = (plain(x), plain(weight));
        let y = forward(&x, &weight);
        recycle(x);
        return Features { values: untracked(y), maps: s.output() };
    }
    let (x, weight) = (lifted(x), lifted(weight));
    let prepared = Conv2d.prepare::<NoCheckpointing>([x.node(), weight.node()]).compute_bound().stateful();
    let (x, weight) = (x.primitive().to_contiguous(), weight.primitive().to_contiguous());
    let y = forward(&x, &weight);
    let y = match prepared {
        OpsKind::Tracked(prepared) => prepared.finish((x, weight, input, s), y),
        OpsKind::UnTracked(prepared) => prepared.finish(y),
    };
    Features { values: tracked(y), maps: s.output() }
}

/// Group normalisation with one scale and offset for each channel, plus `shortcut` where there is one, and `max(0, .)` after
/// it where `relu` is set.
pub(super) fn group_norm(
    x: Features,
    scale: Tensor<1>,
    offset: Tensor<1>,
    shortcut: Option<Features>,
    groups: usize,
    relu: bool,
) -> Features {
    let s = NormShape { maps: x.maps, groups, epsilon: NORM_EPSILON, relu };
    let forward = |x: &FlexTensor, scale: &FlexTensor, offset: &FlexTensor, shortcut: Option<&FlexTensor>| {
        let (scale, offset) = (values(scale), values(offset));
        let (y, statistics) =
            kernels::group_norm(Cpu::detect(), values(x), scale, offset, shortcut.map(values), &s);
        (features(y, &s.maps), statistics)
    };
    let (x, shortcut) = (x.values, shortcut.map(|shortcut| shortcut.values));
    if !x.is_autodiff() && !scale.is_autodiff() {
        let (x, shortcut) = (plain(x), shortcut.map(plain));
        let (y, _) = forward(&x, &plain(scale), &plain(offset), shortcut.as_ref());
        recycle(x);
        if let Some(shortcut) = shortcut {
            recycle(shortcut);
        }
        return Features { values: untracked(y), maps: s.maps };
    }
    let (x, scale, offset, shortcut) = (lifted(x), lifted(scale), lifted(offset), shortcut.map(lifted));
    let [x_values, scale_values, offset_values] =
        [&x, &scale, &offset].map(|t| t.primitive().to_contiguous());
    let shortcut_values = shortcut.as_ref().map(|t| t.primitive().to_contiguous());
    let (y, statistics) = forward(&x_values, &scale_values, &offset_values, shortcut_values.as_ref());
    let state = NormState { x: x_values, scale: scale_values, y: y.clone(), statistics, shape: s };
    let y = match shortcut {
        Some(shortcut) => {
            let nodes = [x.node(), scale.node(), offset.node(), shortcut.node()];
            match GroupNorm.prepare::<NoCheckpointing>(nodes).compute_bound().stateful() {
                OpsKind::Tracked(prepared) => prepared.finish(state, y),
                OpsKind::UnTracked(prepared) => prepared.finish(y),
            }
        }
        None => {
            let nodes = [x.node(), scale.node(), offset.node()];
            match GroupNorm.prepare::<NoCheckpointing>(nodes).compute_bound().stateful() {
                OpsKind::Tracked(prepared) => prepared.finish(state, y),
                OpsKind::UnTracked(prepared) => prepared.finish(y),
            }
        }
    };
    Features { values: tracked(y), maps: s.maps }
}

/// The largest value of each 3x3 window, with stride 2 and padding 1.
pub(super) fn max_pool(x: Features) -> Features {
    let (from, to) = (x.maps, kernels::max_pooled(&x.maps));
    let forward = |x: &FlexTensor| features(kernels::max_pool(Cpu::detect(), values(x), &from), &to);
    if !x.values.is_autodiff() {
        let x = plain(x.values);
        let y = forward(&x);
        recycle(x);
        return Features { values: untracked(y), maps: to };
    }
    let x = lifted(x.values);
    let prepared = MaxPool.prepare::<NoCheckpointing>([x.node()]).compute_bound().stateful();
    let x = x.primitive().to_contiguous();
    let y = forward(&x);
    let y = match prepared {
        OpsKind::Tracked(prepared) => prepared.finish((x, y.clone(), from), y),
        OpsKind::UnTracked(prepared) => prepared.finish(y),
    };
    Features { values: tracked(y), maps: to }
}

/// The mean of each map, `[N, channels]`.
pub(super) fn mean(x: Features) -> Tensor<2> {
    let maps = x.maps;
    let forward = |x: &FlexTensor| tensor(kernels::mean(values(x), &maps), [maps.batch, maps.channels]);
    if !x.values.is_autodiff() {
        let x = plain(x.values);
        let y = forward(&x);
        recycle(x);
        return Tensor::from_primitive::<Flex>(y);
    }
    let x = lifted(x.values);
    let prepared = Mean.prepare::<NoCheckpointing>([x.node()]).compute_bound().stateful();
    let y = forward(&x.primitive().to_contiguous());
    Tensor::from_primitive::<Autodiff<Flex>>(match prepared {
        OpsKind::Tracked(prepared) => prepared.finish(maps, y),
        OpsKind::UnTracked(prepared) => prepared.finish(y),
    })
}

/// A step of gradient descent, in the tensors' own memory; returns value and velocity.
pub(super) fn descend(
    value: Tensor<1>,
    velocity: Tensor<1>,
    gradient: Tensor<1>,
    base: Option<&Tensor<1>>,
    step: &Descent,
) -> (Tensor<1>, Tensor<1>) {
    let [mut value, mut velocity, gradient] = [value, velocity, gradient].map(plain);
    let base = base.map(|base| plain(base.clone()));
    let (to, speed) = (value.storage_mut::<f32>(), velocity.storage_mut::<f32>());
    kernels::descend(Cpu::detect(), to, speed, values(&gradient), base.as_ref().map(values), step);
    recycle(gradient);
    (Tensor::from_primitive::<Flex>(value), Tensor::from_primitive::<Flex>(velocity))
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

fn features(values: Vec<f32>, maps: &Maps) -> FlexTensor {
    tensor(values, [maps.blocks(), maps.batch, maps.image(), BLOCK])
}

/// Gives a tensor's memory back, if nobody else has it.
fn recycle(tensor: FlexTensor) {
    if tensor.is_unique()
        && let Ok(values) = tensor.into_data().try_into_vec::<f32>()
    {
        buffers::give(values);
    }
}

#[derive(Debug)]
struct Conv2d;

impl Backward<Flex, 2> for Conv2d {
    type State = (FlexTensor, FlexTensor, ConvInput, ConvShape);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [x_node, weight_node] = ops.parents;
        let (x, weight, input, s) = ops.state;
        let dy = grads.consume::<Flex>(&ops.node).to_contiguous();
        let cpu = Cpu::detect();
        if let Some(node) = weight_node {
            let run = match input {
                ConvInput::Images => kernels::backward_weight_planes,
                ConvInput::Features => kernels::backward_weight,
            };
            let dw = run(cpu, values(&x), values(&dy), &s);
            grads.register::<Flex>(node.id, tensor(dw, [s.weights()]));
        }
        recycle(x);
        if let Some(node) = x_node {
            let dx = kernels::backward_input(cpu, values(&dy), values(&weight), &s);
            let dx = match input {
                ConvInput::Images => tensor(s.input().to_planes(&dx), [s.batch, s.inputs, s.height, s.width]),
                ConvInput::Features => features(dx, &s.input()),
            };
            grads.register::<Flex>(node.id, dx);
        }
        recycle(dy);
    }
}

#[derive(Debug, Clone)]
struct NormState {
    x: FlexTensor,
    scale: FlexTensor,
    y: FlexTensor,
    statistics: Statistics,
    shape: NormShape,
}

#[derive(Debug)]
struct GroupNorm;

/// Of input, scale and offset, and with four parents of the shortcut.
impl<const N: usize> Backward<Flex, N> for GroupNorm {
    type State = NormState;

    fn backward(self, ops: Ops<NormState, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let NormState { x, scale, y, statistics, shape } = ops.state;
        let dy = grads.consume::<Flex>(&ops.node).to_contiguous();
        let wants_shortcut = ops.parents.get(3).is_some_and(Option::is_some);
        let gradient = kernels::group_norm_backward(
            Cpu::detect(),
            values(&x),
            values(&scale),
            values(&y),
            values(&dy),
            &statistics,
            wants_shortcut,
            &shape,
        );
        [x, y, dy].into_iter().for_each(recycle);
        let channels = [shape.maps.channels];
        let all = [
            Some(features(gradient.x, &shape.maps)),
            Some(tensor(gradient.scale, channels)),
            Some(tensor(gradient.offset, channels)),
            gradient.shortcut.map(|gradient| features(gradient, &shape.maps)),
        ];
        for (node, gradient) in ops.parents.into_iter().zip(all) {
            if let (Some(node), Some(gradient)) = (node, gradient) {
                grads.register::<Flex>(node.id, gradient);
            }
        }
    }
}

#[derive(Debug)]
struct MaxPool;

impl Backward<Flex, 1> for MaxPool {
    type State = (FlexTensor, FlexTensor, Maps);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (x, y, maps) = ops.state;
        let dy = grads.consume::<Flex>(&ops.node).to_contiguous();
        let dx = kernels::max_pool_backward(Cpu::detect(), values(&x), values(&y), values(&dy), &maps);
        [x, y, dy].into_iter().for_each(recycle);
        if let [Some(node)] = ops.parents {
            grads.register::<Flex>(node.id, features(dx, &maps));
        }
    }
}

#[derive(Debug)]
struct Mean;

impl Backward<Flex, 1> for Mean {
    type State = Maps;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<Flex>(&ops.node).to_contiguous();
        if let [Some(node)] = ops.parents {
            grads.register::<Flex>(
                node.id,
                features(kernels::mean_backward(values(&dy), &ops.state), &ops.state),
            );
        }
    }
}
