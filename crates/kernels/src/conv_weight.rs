//! The gradient of a convolution with respect to its weights: the product of gathered panels and the output's gradient, summed
//! over the pixels of the batch.

use crate::buffers::{self, with_scratch};
use crate::conv::{Source, strip_rows};
use crate::cpu::{Cpu, Kernel};
use crate::layout::{BLOCK, Maps, Pixel, pixels, pixels_mut};
use crate::product::{Slab, outer};
use crate::shape::{ConvShape, Walk};
use crate::weights::{SLAB, Sum, unpack};
use pulp::Simd;
use rayon::prelude::*;
use std::ops::Range;

/// Pixels of a strip, about: sums are fetched and put back once in it.
const STRIP: usize = 224;
/// Tasks that the work is cut into at least, where it can be.
const TASKS: usize = 8;

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
        let Self { source, block, walk, from, to, dy, rows, height, sums } = self;
        let (slabs, columns) = (source.slabs(walk), walk.grid[1]);
        with_scratch(slabs * height * columns * BLOCK, |scratch| {
            for start in rows.clone().step_by(height) {
                let strip = start..(start + height).min(rows.end);
                let count = strip.len() * columns;
                let panel = &mut pixels_mut(scratch)[..slabs * count];
                source.fill(block, from, walk, &strip, panel);
                let line = |target: usize| &dy[target * to.pixels() + strip.start * columns..][..count];
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
