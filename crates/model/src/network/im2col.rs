//! Convolution as matrix multiplication over unfolded patches (im2col, Chellapilla et al. 2006), on plain slices.
//!
//! Work is cut into lanes and tiles by the shape alone, never by the number of threads, and partial sums are added
//! in a fixed order: the same bits on one thread and on many.

use std::ops::Range;

/// Columns below which a matrix product spends more on packing than on multiplying.
const COLUMNS: usize = 256;
/// Columns above which unfolded patches leave the second-level cache.
const MOST_COLUMNS: usize = 1024;
/// Most pieces of a batch that are worked on side by side; each holds its own sum of weight gradients.
const LANES: usize = 8;

/// Sizes of a square convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ConvShape {
    pub(super) batch: usize,
    pub(super) inputs: usize,
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) outputs: usize,
    pub(super) kernel: usize,
    pub(super) stride: usize,
    pub(super) padding: usize,
}

/// A part of a batch whose patches are unfolded at once: some rows of some neighbouring images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tile {
    pub(super) images: Range<usize>,
    /// Rows of the output.
    pub(super) rows: Range<usize>,
}

impl ConvShape {
    pub(super) fn out_height(&self) -> usize {
        (self.height + 2 * self.padding - self.kernel) / self.stride + 1
    }

    pub(super) fn out_width(&self) -> usize {
        (self.width + 2 * self.padding - self.kernel) / self.stride + 1
    }

    /// Pixels of one output channel of one image.
    pub(super) fn out_pixels(&self) -> usize {
        self.out_height() * self.out_width()
    }

    /// Values of one input image.
    pub(super) fn in_image(&self) -> usize {
        self.inputs * self.height * self.width
    }

    /// Values of one output image.
    pub(super) fn out_image(&self) -> usize {
        self.outputs * self.out_pixels()
    }

    /// Values of one patch: rows of the unfolded matrix.
    pub(super) fn patch(&self) -> usize {
        self.inputs * self.kernel * self.kernel
    }

    /// Images of each lane but the last.
    pub(super) fn lane(&self) -> usize {
        let lanes = (self.batch * self.out_pixels() / COLUMNS).clamp(1, LANES);
        self.batch.div_ceil(lanes).max(1)
    }

    /// The tiles of the images `first..first + count`, image by image and row by row.
    pub(super) fn tiles(&self, first: usize, count: usize) -> impl Iterator<Item = Tile> {
        let (rows, width, end) = (self.out_height(), self.out_width(), first + count);
        let images = COLUMNS.div_ceil(rows * width);
        let height = if rows * width <= MOST_COLUMNS { rows } else { (MOST_COLUMNS / width).max(1) };
        (first..end).step_by(images).flat_map(move |image| {
            (0..rows).step_by(height).map(move |row| Tile {
                images: image..(image + images).min(end),
                rows: row..(row + height).min(rows),
            })
        })
    }

    /// Columns of a tile's unfolded matrix.
    pub(super) fn columns(&self, tile: &Tile) -> usize {
        tile.images.len() * tile.rows.len() * self.out_width()
    }

    /// The rows of the output, within `rows`, whose patch row `ky` lies inside the input.
    fn valid_rows(&self, rows: &Range<usize>, ky: usize) -> Range<usize> {
        let first = self.padding.saturating_sub(ky).div_ceil(self.stride);
        let end = (self.height + self.padding).saturating_sub(ky).div_ceil(self.stride);
        rows.start.max(first)..rows.end.min(end).max(rows.start.max(first))
    }

    /// The columns of the output whose patch column `kx` lies inside the input.
    fn valid_columns(&self, kx: usize) -> Range<usize> {
        let first = self.padding.saturating_sub(kx).div_ceil(self.stride);
        let end = (self.width + self.padding).saturating_sub(kx).div_ceil(self.stride);
        first..end.min(self.out_width()).max(first)
    }

    /// Whether output and input planes have the same size, so that a patch element of neighbouring outputs is a
    /// run of neighbouring inputs.
    fn is_same(&self) -> bool {
        self.stride == 1 && self.kernel == 2 * self.padding + 1
    }
}

/// Calls `run(k, image, column, source)` for each patch element `k = (channel, ky, kx)` and image of a tile: `column`
/// is where the image's part starts in the unfolded row, `source` where its channel's plane starts in `x`.
fn for_each_plane(s: &ConvShape, tile: &Tile, mut run: impl FnMut(usize, [usize; 2], usize, usize)) {
    let per_image = tile.rows.len() * s.out_width();
    for channel in 0..s.inputs {
        for (ky, kx) in (0..s.kernel).flat_map(|ky| (0..s.kernel).map(move |kx| (ky, kx))) {
            let k = (channel * s.kernel + ky) * s.kernel + kx;
            for (i, image) in tile.images.clone().enumerate() {
                let plane = image * s.in_image() + channel * s.height * s.width;
                run(k, [ky, kx], i * per_image, plane);
            }
        }
    }
}

/// Unfolds a tile of `x`, `[batch, inputs, height, width]`, into `[patch, columns]`.
pub(super) fn im2col(x: &[f32], s: &ConvShape, tile: &Tile) -> Vec<f32> {
    let width = s.out_width();
    let per_image = tile.rows.len() * width;
    // Filled from front to back, so that no page is touched twice.
    let mut unfolded = Vec::with_capacity(s.patch() * s.columns(tile));
    for_each_plane(s, tile, |_, [ky, kx], _, plane| {
        let source = &x[plane..plane + s.height * s.width];
        let rows = s.valid_rows(&tile.rows, ky);
        let valid = s.valid_columns(kx);
        let start = unfolded.len();
        let end = start + per_image;
        if rows.is_empty() || valid.is_empty() {
            unfolded.resize(end, 0.0);
        } else if s.is_same() {
            let (to, from, len) = same_run(s, tile, &rows, [ky, kx]);
            unfolded.resize(start + to, 0.0);
            unfolded.extend_from_slice(&source[from..from + len]);
            unfolded.resize(end, 0.0);
            clear_wrapped(&mut unfolded[start..], width, &valid);
        } else {
            unfolded.resize(start + (rows.start - tile.rows.start) * width, 0.0);
            for row in rows {
                let line = &source[(row * s.stride + ky - s.padding) * s.width..][..s.width];
                let next = unfolded.len() + width;
                unfolded.resize(next - width + valid.start, 0.0);
                let first = valid.start * s.stride + kx - s.padding;
                unfolded.extend(line[first..].iter().step_by(s.stride).take(valid.len()));
                unfolded.resize(next, 0.0);
            }
            unfolded.resize(end, 0.0);
        }
    });
    unfolded
}

/// Adds an unfolded gradient `[patch, columns]` back to the input pixels that it was taken from; the inverse of
/// [`im2col`] in the sense of its transpose. `dx` starts at image `first`.
pub(super) fn col2im(unfolded: &mut [f32], s: &ConvShape, tile: &Tile, dx: &mut [f32], first: usize) {
    let columns = s.columns(tile);
    let width = s.out_width();
    for_each_plane(s, tile, |k, [ky, kx], column, plane| {
        let part = &mut unfolded[k * columns + column..][..tile.rows.len() * width];
        let target = &mut dx[plane - first * s.in_image()..][..s.height * s.width];
        let rows = s.valid_rows(&tile.rows, ky);
        let valid = s.valid_columns(kx);
        if rows.is_empty() || valid.is_empty() {
            return;
        }
        if s.is_same() {
            let (from, to, len) = same_run(s, tile, &rows, [ky, kx]);
            clear_wrapped(part, width, &valid);
            for (sum, value) in target[to..to + len].iter_mut().zip(&part[from..from + len]) {
                *sum += value;
            }
        } else {
            for row in rows {
                let line = &mut target[(row * s.stride + ky - s.padding) * s.width..][..s.width];
                let part = &part[(row - tile.rows.start) * width..][..width];
                for column in valid.clone() {
                    line[column * s.stride + kx - s.padding] += part[column];
                }
            }
        }
    });
}

/// For planes of the same size: where valid rows start in a tile's part and in the plane, and how many values they
/// are. Values at the outer edges that would lie outside the plane are left out; they are wrapped ones.
fn same_run(s: &ConvShape, tile: &Tile, rows: &Range<usize>, [ky, kx]: [usize; 2]) -> (usize, usize, usize) {
    let part = (rows.start - tile.rows.start) * s.width;
    let before = s.padding.saturating_sub(kx);
    let after = kx.saturating_sub(s.padding);
    let plane = (rows.start + ky - s.padding) * s.width + after;
    (part + before, plane, rows.len() * s.width - before - after)
}

/// Zeroes the columns that a run across rows fills with the neighbouring row's pixels.
fn clear_wrapped(part: &mut [f32], width: usize, valid: &Range<usize>) {
    if valid.len() == width {
        return;
    }
    for line in part.chunks_exact_mut(width) {
        line[..valid.start].fill(0.0);
        line[valid.end..].fill(0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition, pixel by pixel.
    fn unfolded(x: &[f32], s: &ConvShape, tile: &Tile) -> Vec<f32> {
        let mut all = Vec::new();
        for channel in 0..s.inputs {
            for ky in 0..s.kernel {
                for kx in 0..s.kernel {
                    for image in tile.images.clone() {
                        for row in tile.rows.clone() {
                            for column in 0..s.out_width() {
                                let y = (row * s.stride + ky).wrapping_sub(s.padding);
                                let x_at = (column * s.stride + kx).wrapping_sub(s.padding);
                                let inside = y < s.height && x_at < s.width;
                                let plane = image * s.in_image() + channel * s.height * s.width;
                                all.push(if inside { x[plane + y * s.width + x_at] } else { 0.0 });
                            }
                        }
                    }
                }
            }
        }
        all
    }

    fn shapes() -> impl Strategy<Value = ConvShape> {
        let kernels = prop_oneof![Just(1usize), Just(3), Just(5), Just(7)];
        (1usize..7, 1usize..3, 1usize..40, 1usize..40, 1usize..3, kernels, 1usize..3).prop_map(
            |(batch, inputs, height, width, outputs, kernel, stride)| ConvShape {
                batch,
                inputs,
                height,
                width,
                outputs,
                kernel,
                stride,
                padding: kernel / 2,
            },
        )
    }

    proptest! {
        #[test]
        fn unfolding_is_its_definition_and_folding_its_transpose(s in shapes()) {
            let x: Vec<f32> = (0..s.batch * s.in_image()).map(|i| (i % 251) as f32 - 120.0).collect();
            let mut covered = 0;
            let mut dx = vec![0.0; x.len()];
            let mut inner = 0.0f64;
            for tile in s.tiles(0, s.batch) {
                covered += s.columns(&tile);
                let mut columns = im2col(&x, &s, &tile);
                prop_assert_eq!(&columns, &unfolded(&x, &s, &tile));
                // <unfold(x), unfold(x)> = <x, fold(unfold(x))>
                inner += columns.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>();
                col2im(&mut columns, &s, &tile, &mut dx, 0);
            }
            prop_assert_eq!(covered, s.batch * s.out_pixels());
            let outer: f64 = x.iter().zip(&dx).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
            prop_assert!((inner - outer).abs() <= 1e-6 * inner.abs(), "{} {}", inner, outer);
        }
    }
}
