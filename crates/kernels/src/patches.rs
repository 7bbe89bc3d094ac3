//! Gathers the source pixels of a strip into panels: the unfolded matrix (im2col, Chellapilla et al. 2006), never more of it
//! than fits the second-level cache.

use crate::layout::{BLOCK, Pixel};
use crate::shape::{ConvShape, Walk};
use std::ops::Range;

const ZERO: Pixel = [0.0; BLOCK];

/// Fills `panel`, `[taps, pixels]`, with what each tap of `walk` sees from each grid point of `rows`, which counts the grid
/// rows of all images. `source` is one block of channels of all images.
#[inline(always)]
pub(crate) fn gather(source: &[Pixel], walk: &Walk, rows: &Range<usize>, panel: &mut [Pixel]) {
    let [height, width] = walk.source;
    let [grid_rows, columns] = walk.grid;
    if columns == 0 || rows.is_empty() {
        return;
    }
    let slabs = panel.chunks_exact_mut(rows.len() * columns);
    for (tap, slab) in walk.taps.iter().zip(slabs) {
        let valid = valid(tap.dx, walk.step, columns, width);
        // Never negative: the first valid column is the first that is not.
        let first = (valid.start * walk.step).wrapping_add_signed(tap.dx);
        let (mut image, mut row) = (rows.start / grid_rows, rows.start % grid_rows);
        for line in slab.chunks_exact_mut(columns) {
            let y = (row * walk.step).wrapping_add_signed(tap.dy);
            if y < height && !valid.is_empty() {
                let from = &source[(image * height + y) * width + first..];
                line[..valid.start].fill(ZERO);
                let inside = &mut line[valid.clone()];
                if walk.step == 1 {
                    inside.copy_from_slice(&from[..inside.len()]);
                } else {
                    inside.iter_mut().zip(from.iter().step_by(walk.step)).for_each(|(to, from)| *to = *from);
                }
                line[valid.end..].fill(ZERO);
            } else {
                line.fill(ZERO);
            }
            row += 1;
            if row == grid_rows {
                (image, row) = (image + 1, 0);
            }
        }
    }
}

/// The grid columns whose source column `column * step + dx` exists.
#[inline(always)]
fn valid(dx: isize, step: usize, columns: usize, width: usize) -> Range<usize> {
    let start = (-dx).max(0).unsigned_abs().div_ceil(step).min(columns);
    let end = (width as isize - dx).max(0).unsigned_abs().div_ceil(step).min(columns);
    start..end.max(start)
}

/// Fills `panel`, `[slabs, pixels]`, with the patches of plain planes `[batch, inputs, height, width]`, 16 elements to a
/// slab in the order of the weights: for an input of few channels, whose blocks would be zeros mostly.
pub(crate) fn unfold(planes: &[f32], s: &ConvShape, walk: &Walk, rows: &Range<usize>, panel: &mut [Pixel]) {
    let [grid_rows, columns] = walk.grid;
    let pixels = rows.len() * columns;
    let area = s.area();
    for k in 0..s.unfolded_slabs() * BLOCK {
        let slab = &mut panel[k / BLOCK * pixels..][..pixels];
        let lane = k % BLOCK;
        if k >= s.patch() {
            slab.iter_mut().for_each(|pixel| pixel[lane] = 0.0);
            continue;
        }
        let (channel, tap) = (k / area, &walk.taps[k % area]);
        let valid = valid(tap.dx, walk.step, columns, s.width);
        for (line, row) in slab.chunks_exact_mut(columns).zip(rows.clone()) {
            let (image, row) = (row / grid_rows, row % grid_rows);
            let y = (row * walk.step).wrapping_add_signed(tap.dy);
            if y >= s.height || valid.is_empty() {
                line.iter_mut().for_each(|pixel| pixel[lane] = 0.0);
                continue;
            }
            let plane = ((image * s.inputs + channel) * s.height + y) * s.width;
            let first = (valid.start * walk.step).wrapping_add_signed(tap.dx);
            let from = &planes[plane + first..plane + s.width];
            line[..valid.start].iter_mut().for_each(|pixel| pixel[lane] = 0.0);
            let inside = line[valid.clone()].iter_mut().zip(from.iter().step_by(walk.step));
            inside.for_each(|(pixel, &value)| pixel[lane] = value);
            line[valid.end..].iter_mut().for_each(|pixel| pixel[lane] = 0.0);
        }
    }
}
