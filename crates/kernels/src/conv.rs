//! Convolution and its gradient with respect to the input, as products of gathered panels and packed weights.
//!
//! Work is cut into strips of rows and groups of blocks by the shape alone, and each value is summed by one task in one
//! order: the same bits on one thread and on many.

use crate::buffers::{self, with_scratch};
use crate::cpu::{Cpu, Kernel};
use crate::layout::{BLOCK, Maps, Pixel, pixels, pixels_mut};
use crate::patches::{gather, unfold};
use crate::product::{Panel, Slab, multiply};
use crate::shape::{ConvShape, Walk};
use crate::weights::{Sum, pack};
use pulp::Simd;
use rayon::prelude::*;
use std::ops::Range;

/// Pixels of a strip, about: enough that weights that come from memory are used often.
pub(crate) const STRIP: usize = 112;
/// Slabs of a panel: with [`STRIP`] pixels they and their weights fill the second-level cache to a third.
const SLABS: usize = 36;
/// Tasks that a convolution is cut into at least, where it can be.
const TASKS: usize = 8;

/// `[outputs]` maps of `[inputs]` maps `x`; `weight` is `[outputs, inputs, kernel, kernel]`.
#[must_use]
pub fn forward(cpu: Cpu, x: &[f32], weight: &[f32], s: &ConvShape) -> Vec<f32> {
    let walk = s.forward();
    let weights = pack(weight, s, &walk, Sum::Inputs);
    correlate(cpu, Source::Maps(pixels(x)), vec![(walk, weights)], &s.input(), &s.output())
}

/// [`forward`] of plain planes `[batch, inputs, height, width]`: for images, whose few channels would fill a block with zeros.
#[must_use]
pub fn forward_planes(cpu: Cpu, planes: &[f32], weight: &[f32], s: &ConvShape) -> Vec<f32> {
    let walk = s.forward();
    let weights = pack(weight, s, &walk, Sum::Patch);
    correlate(cpu, Source::Planes(planes, s), vec![(walk, weights)], &s.input(), &s.output())
}

/// The gradient with respect to the input, of the gradient `dy` with respect to the output.
#[must_use]
pub fn backward_input(cpu: Cpu, dy: &[f32], weight: &[f32], s: &ConvShape) -> Vec<f32> {
    let walks = s.backward().into_iter().map(|walk| {
        let weights = pack(weight, s, &walk, Sum::Outputs);
        (walk, weights)
    });
    correlate(cpu, Source::Maps(pixels(dy)), walks.collect(), &s.output(), &s.input())
}

/// What panels are gathered from.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a> {
    /// Maps in blocks.
    Maps(&'a [Pixel]),
    /// Planes, unfolded as one block.
    Planes(&'a [f32], &'a ConvShape),
}

impl Source<'_> {
    /// Slabs that one block of the source gives.
    pub(crate) fn slabs(&self, walk: &Walk) -> usize {
        match self {
            Source::Maps(_) => walk.taps.len(),
            Source::Planes(_, s) => s.unfolded_slabs(),
        }
    }

    /// Blocks of the source.
    pub(crate) fn blocks(&self, maps: &Maps) -> usize {
        match self {
            Source::Maps(_) => maps.blocks(),
            Source::Planes(..) => 1,
        }
    }

    /// Fills the panel of one block, `[slabs, pixels]`.
    #[inline(always)]
    pub(crate) fn fill(
        &self,
        block: usize,
        maps: &Maps,
        walk: &Walk,
        rows: &Range<usize>,
        panel: &mut [Pixel],
    ) {
        match self {
            Source::Maps(source) => {
                gather(&source[block * maps.pixels()..][..maps.pixels()], walk, rows, panel);
            }
            Source::Planes(planes, s) => unfold(planes, s, walk, rows, panel),
        }
    }
}

/// Grid rows of a strip.
pub(crate) fn strip_rows(walk: &Walk, pixels: usize) -> usize {
    (pixels / walk.grid[1].max(1)).max(1)
}

/// One strip of some target blocks.
struct Task<'a> {
    rows: Range<usize>,
    /// The first of the blocks.
    block: usize,
    /// The strip's pixels in each of the blocks.
    out: Vec<&'a mut [Pixel]>,
}

fn correlate(cpu: Cpu, source: Source<'_>, walks: Vec<(Walk, Vec<f32>)>, from: &Maps, to: &Maps) -> Vec<f32> {
    let mut out = buffers::take(to.values());
    if to.values() > 0 {
        let first = &walks[0].0;
        let rows = to.batch * first.grid[0];
        let height = strip_rows(first, STRIP).min(rows.div_ceil(2)).max(1);
        let strips = rows.div_ceil(height);
        let groups = TASKS.div_ceil(strips).min(to.blocks().div_ceil(2)).max(1);
        // An even number, as blocks are worked on in pairs.
        let group = to.blocks().div_ceil(groups).next_multiple_of(2);
        let mut tasks = Vec::new();
        for (at, blocks) in pixels_mut(&mut out).chunks_mut(group * to.pixels()).enumerate() {
            let mut blocks: Vec<&mut [Pixel]> = blocks.chunks_mut(to.pixels()).collect();
            for start in (0..rows).step_by(height) {
                let rows = start..(start + height).min(rows);
                let count = first.target_start(rows.end) - first.target_start(rows.start);
                let out = blocks
                    .iter_mut()
                    .map(|block| {
                        let (strip, rest) = std::mem::take(block).split_at_mut(count);
                        *block = rest;
                        strip
                    })
                    .collect();
                tasks.push(Task { rows, block: at * group, out });
            }
        }
        tasks.into_par_iter().with_max_len(1).for_each(|task| {
            cpu.run(Strip { source, walks: &walks, from, task });
        });
    }
    walks.into_iter().for_each(|(_, weights)| buffers::give(weights));
    out
}

struct Strip<'a> {
    source: Source<'a>,
    walks: &'a [(Walk, Vec<f32>)],
    from: &'a Maps,
    task: Task<'a>,
}

impl Kernel for Strip<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, const V: usize>(self, simd: S) {
        let Self { source, walks, from, task: Task { rows, block, mut out } } = self;
        for (walk, weights) in walks {
            let weights: &[Slab] = pixels(weights).as_chunks().0;
            let pixels = rows.len() * walk.grid[1];
            if walk.spread == 1 {
                let mut out: Vec<&mut [Pixel]> = out.iter_mut().map(|out| &mut **out).collect();
                accumulate::<S, V>(simd, source, walk, weights, from, &rows, block, &mut out);
                continue;
            }
            let mut scattered = buffers::take(out.len() * pixels * BLOCK);
            let mut parts: Vec<&mut [Pixel]> =
                pixels_mut(&mut scattered).chunks_exact_mut(pixels.max(1)).collect();
            accumulate::<S, V>(simd, source, walk, weights, from, &rows, block, &mut parts);
            for (out, part) in out.iter_mut().zip(&parts) {
                scatter(walk, &rows, part, out);
            }
            buffers::give(scattered);
        }
    }
}

/// Sums all blocks of the source over a strip, for the target blocks from `block`.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "the parts of one loop nest")]
fn accumulate<S: Simd, const V: usize>(
    simd: S,
    source: Source<'_>,
    walk: &Walk,
    weights: &[Slab],
    from: &Maps,
    rows: &Range<usize>,
    block: usize,
    out: &mut [&mut [Pixel]],
) {
    let (blocks, slabs) = (source.blocks(from), source.slabs(walk));
    let pixels = rows.len() * walk.grid[1];
    if slabs == 0 || pixels == 0 {
        out.iter_mut().for_each(|out| out.fill([0.0; BLOCK]));
        return;
    }
    let of_target = blocks * slabs;
    let chunk = (SLABS / slabs).max(1);
    let direct = match source {
        Source::Maps(values) if walk.is_identity() => Some(values),
        _ => None,
    };
    let panel_values = if direct.is_some() { 0 } else { chunk * slabs * pixels * BLOCK };
    with_scratch(panel_values, |scratch| {
        for first in (0..blocks).step_by(chunk) {
            let chunk = first..(first + chunk).min(blocks);
            let panel = if let Some(values) = direct {
                let start = first * from.pixels() + rows.start * walk.grid[1];
                Panel { values, first: start, pitch: from.pixels() }
            } else {
                let panels = pixels_mut(scratch).chunks_exact_mut(slabs * pixels);
                for (block, panel) in chunk.clone().zip(panels) {
                    source.fill(block, from, walk, rows, panel);
                }
                Panel { values: crate::layout::pixels(scratch), first: 0, pitch: pixels }
            };
            let of = |target: usize| &weights[target * of_target..][chunk.start * slabs..chunk.end * slabs];
            for (at, pair) in out.chunks_mut(2).enumerate() {
                let target = block + 2 * at;
                match pair {
                    [a, b] if V == 1 => {
                        multiply::<S, V, 2>(simd, panel, [of(target), of(target + 1)], [a, b], first > 0);
                    }
                    pair => {
                        for (next, out) in pair.iter_mut().enumerate() {
                            multiply::<S, V, 1>(simd, panel, [of(target + next)], [out], first > 0);
                        }
                    }
                }
            }
        }
    });
}

/// Writes a strip of grid points to the target pixels that they are.
fn scatter(walk: &Walk, rows: &Range<usize>, part: &[Pixel], out: &mut [Pixel]) {
    let [_, width] = walk.target;
    let start = walk.target_start(rows.start);
    for (row, line) in rows.clone().zip(part.chunks_exact(walk.grid[1].max(1))) {
        let y = row % walk.grid[0] * walk.spread + walk.phase[0];
        if y >= walk.target[0] {
            continue;
        }
        let at = (row / walk.grid[0] * walk.target[0] + y) * width - start;
        let to = out[at..at + width].iter_mut().skip(walk.phase[1]).step_by(walk.spread);
        to.zip(line).for_each(|(to, from)| *to = *from);
    }
}
