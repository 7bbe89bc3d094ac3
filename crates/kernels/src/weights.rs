//! Weights in the order in which the products read them.
//!
//! A slab is what one tap needs of one source block and one target block: `[16 source channels][16 target channels]`. Packed
//! weights are `[target blocks][source blocks][taps]` of slabs, zero where a block is filled up.

use crate::buffers;
use crate::layout::{BLOCK, pixels, pixels_mut};
use crate::shape::{ConvShape, Walk};
use rayon::prelude::*;

/// Values of a slab.
pub(crate) const SLAB: usize = BLOCK * BLOCK;

/// Which channels of a weight tensor `[outputs, inputs, kernel, kernel]` are summed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sum {
    /// The inputs: the forward pass.
    Inputs,
    /// The outputs: the gradient with respect to the input.
    Outputs,
    /// All elements of a patch in one: the forward pass over unfolded patches.
    Patch,
}

/// Packs weights for a walk.
pub(crate) fn pack(weight: &[f32], s: &ConvShape, walk: &Walk, sum: Sum) -> Vec<f32> {
    let (targets, slabs) = match sum {
        Sum::Inputs => (s.outputs, s.inputs.div_ceil(BLOCK) * walk.taps.len()),
        Sum::Outputs => (s.inputs, s.outputs.div_ceil(BLOCK) * walk.taps.len()),
        Sum::Patch => (s.outputs, s.unfolded_slabs()),
    };
    let mut packed = buffers::take(targets.div_ceil(BLOCK) * slabs * SLAB);
    packed.par_chunks_mut((slabs * SLAB).max(1)).enumerate().for_each(|(target, packed)| match sum {
        Sum::Inputs => pack_inputs(weight, s, walk, target, packed),
        Sum::Outputs => pack_outputs(weight, s, walk, target, packed),
        Sum::Patch => pack_patch(weight, s, target, packed),
    });
    packed
}

/// The channels of a block.
fn channels(block: usize, all: usize) -> std::ops::Range<usize> {
    block * BLOCK..(block * BLOCK + BLOCK).min(all)
}

fn pack_inputs(weight: &[f32], s: &ConvShape, walk: &Walk, target: usize, packed: &mut [f32]) {
    let (area, taps) = (s.area(), walk.taps.len());
    let outputs = channels(target, s.outputs);
    for (block, packed) in packed.chunks_exact_mut(taps * SLAB).enumerate() {
        let inputs = channels(block, s.inputs);
        if inputs.len() < BLOCK || outputs.len() < BLOCK {
            packed.fill(0.0);
        }
        let packed = pixels_mut(packed);
        for (o, output) in outputs.clone().enumerate() {
            let row = &weight[output * s.patch()..][inputs.start * area..inputs.end * area];
            for (c, kernel) in row.chunks_exact(area).enumerate() {
                for (t, tap) in walk.taps.iter().enumerate() {
                    packed[t * BLOCK + c][o] = kernel[tap.index];
                }
            }
        }
    }
}

fn pack_outputs(weight: &[f32], s: &ConvShape, walk: &Walk, target: usize, packed: &mut [f32]) {
    let (area, taps) = (s.area(), walk.taps.len());
    if taps == 0 {
        return;
    }
    let inputs = channels(target, s.inputs);
    for (block, packed) in packed.chunks_exact_mut(taps * SLAB).enumerate() {
        let outputs = channels(block, s.outputs);
        if inputs.len() < BLOCK || outputs.len() < BLOCK {
            packed.fill(0.0);
        }
        let packed = pixels_mut(packed);
        for (o, output) in outputs.clone().enumerate() {
            let row = &weight[output * s.patch()..][inputs.start * area..inputs.end * area];
            for (t, tap) in walk.taps.iter().enumerate() {
                let line = &mut packed[t * BLOCK + o];
                for (value, kernel) in line.iter_mut().zip(row.chunks_exact(area)) {
                    *value = kernel[tap.index];
                }
            }
        }
    }
}

fn pack_patch(weight: &[f32], s: &ConvShape, target: usize, packed: &mut [f32]) {
    packed.fill(0.0);
    let packed = pixels_mut(packed);
    for (o, output) in channels(target, s.outputs).enumerate() {
        let row = &weight[output * s.patch()..][..s.patch()];
        row.iter().zip(packed.iter_mut()).for_each(|(&value, line)| line[o] = value);
    }
}

/// Weight gradients that the products left as `[lanes][source blocks][target blocks][taps]` of slabs, summed over the lanes in
/// their order, as `[outputs, inputs, kernel, kernel]`. Overwrites the first lane.
pub(crate) fn unpack(packed: &mut [f32], lanes: usize, s: &ConvShape, sum: Sum) -> Vec<f32> {
    let lane = packed.len() / lanes;
    let (first, others) = packed.split_at_mut(lane);
    let chunk = lane.div_ceil(64).max(1024);
    first.par_chunks_mut(chunk).enumerate().for_each(|(at, first)| {
        for other in others.chunks_exact(lane) {
            let other = &other[at * chunk..][..first.len()];
            first.iter_mut().zip(other).for_each(|(sum, value)| *sum += value);
        }
    });
    let mut weight = buffers::take(s.weights());
    each_weight(pixels(first), s, sum, &mut weight, |weight, value| *weight = value);
    weight
}

/// Adds weight gradients in double precision, packed as [`unpack`] takes one lane, to `weight`, `[outputs, inputs, kernel, kernel]`.
pub(crate) fn add_unpacked(packed: &[[f64; BLOCK]], s: &ConvShape, sum: Sum, weight: &mut [f64]) {
    each_weight(packed, s, sum, weight, |weight, value| *weight += value);
}

/// Calls `put` for each weight, with its value among the packed ones.
fn each_weight<T: Copy + Send + Sync>(
    slabs: &[[T; BLOCK]],
    s: &ConvShape,
    sum: Sum,
    weight: &mut [T],
    put: impl Fn(&mut T, T) + Sync,
) {
    let (area, targets) = (s.area(), s.outputs.div_ceil(BLOCK));
    weight.par_chunks_mut(BLOCK * s.patch()).enumerate().for_each(|(target, weight)| {
        for (block, inputs) in (0..s.inputs.div_ceil(BLOCK)).map(|block| (block, channels(block, s.inputs))) {
            if sum == Sum::Patch {
                break;
            }
            let slabs = &slabs[(block * targets + target) * area * BLOCK..][..area * BLOCK];
            for (o, row) in weight.chunks_exact_mut(s.patch()).enumerate() {
                let row = &mut row[inputs.start * area..inputs.end * area];
                for (c, kernel) in row.chunks_exact_mut(area).enumerate() {
                    kernel.iter_mut().enumerate().for_each(|(t, value)| put(value, slabs[t * BLOCK + c][o]));
                }
            }
        }
        if sum == Sum::Patch {
            let slabs = &slabs[target * s.unfolded_slabs() * BLOCK..];
            for (o, row) in weight.chunks_exact_mut(s.patch()).enumerate() {
                row.iter_mut().zip(slabs).for_each(|(value, line)| put(value, line[o]));
            }
        }
    });
}
