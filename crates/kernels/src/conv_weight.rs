//! The gradient of a convolution with respect to its weights: the product of gathered panels and the output's gradient, summed
//! over the pixels of the batch.

use crate::buffers::{self, with_scratch};
use crate::conv::{Source, strip_rows};
use crate::cpu::{Cpu, Kernel};
use crate::layout::{BLOCK, Maps, Pixel, pixels, pixels_mut};
use crate::product::{Slab, outer};
use crate::shape::{ConvShape, Walk};
use crate::weights::{SLAB, Sum, add_unpacked, unpack};
use pulp::Simd;
use rayon::prelude::*;
use std::ops::Range;

/// Pixels of a strip, about: sums are fetched and put back once in it.
const STRIP: usize = 224;
/// Tasks that the work is cut into at least, where it can be.
const TASKS: usize = 8;
/// Slabs of a tile: with their sums in double precision they fill a fifth of a second-level cache of 1 MB.
const TILE: usize = 72;

/// Some images of a batch, and what their gradient counts for.
#[derive(Debug, Clone, PartialEq)]
pub struct Share {
    /// The images, which follow each other in the batch.
    pub images: Range<usize>,
    /// What their gradient is multiplied by.
    pub factor: f32,
}

/// The gradient `[outputs, inputs, kernel, kernel]`, of the input `x` and the gradient `dy` with respect to the output.
#[must_use]
pub fn backward_weight(cpu: Cpu, x: &[f32], dy: &[f32], s: &ConvShape) -> Vec<f32> {
    gradient(cpu, Source::Maps(pixels(x)), pixels(dy), s)
}

/// [`backward_weight`] of plain planes `[batch, inputs, height, width]`.
#[must_use]
pub fn backward_weight_planes(cpu: Cpu, planes: &[f32], dy: &[f32], s: &ConvShape) -> Vec<f32> {
    gradient(cpu, Source::Planes(planes, s), pixels(dy), s)
}

/// Adds each share's gradient with respect to the weights, times its factor, to `sum`, `[outputs, inputs, kernel, kernel]`.
///
/// A share's gradient is summed in single precision, by itself: position after position, in an order that the share's number of images alone
/// decides, so that it has the same bits whatever else is in the batch. Factor and sum over the shares are in double precision.
/// Each tile of weights takes all shares in turn, so that no share's gradient as a whole is ever in memory.
///
/// # Panics
/// When `sum` has another length than the weights: the caller's contract.
pub fn add_backward_weight(
    cpu: Cpu,
    x: &[f32],
    dy: &[f32],
    s: &ConvShape,
    shares: &[Share],
    sum: &mut [f64],
) {
    add_shares(cpu, Source::Maps(pixels(x)), pixels(dy), s, shares, sum);
}

/// [`add_backward_weight`] of plain planes `[batch, inputs, height, width]`.
///
/// # Panics
/// As [`add_backward_weight`].
pub fn add_backward_weight_planes(
    cpu: Cpu,
    planes: &[f32],
    dy: &[f32],
    s: &ConvShape,
    shares: &[Share],
    sum: &mut [f64],
) {
    add_shares(cpu, Source::Planes(planes, s), pixels(dy), s, shares, sum);
}

fn add_shares(cpu: Cpu, source: Source<'_>, dy: &[Pixel], s: &ConvShape, shares: &[Share], sum: &mut [f64]) {
    assert_eq!(sum.len(), s.weights(), "a sum for each weight");
    let (walk, from, to) = (s.forward(), s.input(), s.output());
    let (blocks, slabs) = (source.blocks(&from), source.slabs(&walk));
    let height = strip_rows(&walk, STRIP);
    // An even number, as blocks are worked on in pairs.
    let group = (TILE / slabs.max(1)).max(2).next_multiple_of(2);
    let lines = slabs * BLOCK;
    // `[source blocks][target blocks][slabs]`, as weights are packed.
    let mut totals = vec![[0.0f64; BLOCK]; blocks * to.blocks() * lines];
    let mut tasks = Vec::new();
    for (block, totals) in totals.chunks_mut((to.blocks() * lines).max(1)).enumerate() {
        for (at, totals) in totals.chunks_mut((group * lines).max(1)).enumerate() {
            tasks.push((block, at * group, totals));
        }
    }
    tasks.into_par_iter().with_max_len(1).for_each(|(block, first, totals)| {
        cpu.run(Tile { source, block, first, walk: &walk, from: &from, to: &to, dy, height, shares, totals });
    });
    let order = if matches!(source, Source::Planes(..)) { Sum::Patch } else { Sum::Inputs };
    add_unpacked(&totals, s, order, sum);
}

/// The sums over all shares of one block of the source and some blocks of the target.
struct Tile<'a> {
    source: Source<'a>,
    block: usize,
    /// The first of the target's blocks.
    first: usize,
    walk: &'a Walk,
    from: &'a Maps,
    to: &'a Maps,
    dy: &'a [Pixel],
    /// Rows of a strip.
    height: usize,
    shares: &'a [Share],
    /// `[target blocks][slabs][16]`.
    totals: &'a mut [[f64; BLOCK]],
}

impl Kernel for Tile<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, const V: usize>(self, simd: S) {
        let Self { source, block, first, walk, from, to, dy, height, shares, totals } = self;
        let totals = totals.as_flattened_mut();
        let mut tile = buffers::take(totals.len());
        for Share { images, factor } in shares {
            tile.fill(0.0);
            let sums: &mut [Slab] = pixels_mut(&mut tile).as_chunks_mut().0;
            let rows = images.start * to.height..images.end * to.height;
            Block { source, block, first, walk, from, to, dy, rows, height, sums }.run::<S, V>(simd);
            let factor = f64::from(*factor);
            for (total, value) in totals.iter_mut().zip(&tile) {
                // The product of two numbers of single precision is exact.
                *total += factor * f64::from(*value);
            }
        }
        buffers::give(tile);
    }
}

fn gradient(cpu: Cpu, source: Source<'_>, dy: &[Pixel], s: &ConvShape) -> Vec<f32> {
    let (walk, from, to) = (s.forward(), s.input(), s.output());
    let (blocks, slabs) = (source.blocks(&from), source.slabs(&walk));
    let rows = to.batch * to.height;
    let height = strip_rows(&walk, STRIP);
    let strips = rows.div_ceil(height).max(1);
    // Each lane sums a part of the batch on its own; needed only where there are few blocks to share out.
    let lanes = TASKS.div_ceil(blocks).min(strips);
    let lane_rows = (strips.div_ceil(lanes) * height).max(1);
    let lanes = rows.div_ceil(lane_rows).max(1);
    let task = to.blocks() * slabs * SLAB;
    let mut sums = buffers::zeros(lanes * blocks * task);
    let chunks = sums.par_chunks_mut(task).enumerate().with_max_len(1);
    chunks.for_each(|(at, sums)| {
        let first = at / blocks * lane_rows;
        let rows = first.min(rows)..(first + lane_rows).min(rows);
        let sums: &mut [Slab] = pixels_mut(sums).as_chunks_mut().0;
        cpu.run(Block {
            source,
            block: at % blocks,
            first: 0,
            walk: &walk,
            from: &from,
            to: &to,
            dy,
            rows,
            height,
            sums,
        });
    });
    let sum = if matches!(source, Source::Planes(..)) { Sum::Patch } else { Sum::Inputs };
    let weight = unpack(&mut sums, lanes, s, sum);
    buffers::give(sums);
    weight
}

/// The sums of one block of the source and some rows.
struct Block<'a> {
    source: Source<'a>,
    block: usize,
    /// The first of the target's blocks.
    first: usize,
    walk: &'a Walk,
    from: &'a Maps,
    to: &'a Maps,
    dy: &'a [Pixel],
    rows: Range<usize>,
    /// Rows of a strip.
    height: usize,
    /// `[target blocks][slabs]`.
    sums: &'a mut [Slab],
}

impl Kernel for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, const V: usize>(self, simd: S) {
        let Self { source, block, first, walk, from, to, dy, rows, height, sums } = self;
        let (slabs, columns) = (source.slabs(walk), walk.grid[1]);
        with_scratch(slabs * height * columns * BLOCK, |scratch| {
            for start in rows.clone().step_by(height) {
                let strip = start..(start + height).min(rows.end);
                let count = strip.len() * columns;
                let panel = &mut pixels_mut(scratch)[..slabs * count];
                source.fill(block, from, walk, &strip, panel);
                let line =
                    |target: usize| &dy[(first + target) * to.pixels() + strip.start * columns..][..count];
                for (at, pair) in sums.chunks_mut(2 * slabs).enumerate() {
                    let target = 2 * at;
                    let (a, b) = pair.split_at_mut(slabs);
                    if V == 1 && !b.is_empty() {
                        for ((panel, a), b) in panel.chunks_exact(count).zip(a).zip(b) {
                            outer::<S, V, 2>(simd, panel, [line(target), line(target + 1)], [a, b]);
                        }
                    } else {
                        for (next, sums) in [a, b].into_iter().enumerate() {
                            for (panel, sums) in panel.chunks_exact(count).zip(sums) {
                                outer::<S, V, 1>(simd, panel, [line(target + next)], [sums]);
                            }
                        }
                    }
                }
            }
        });
    }
}
