//! Resampling of grey planes by a separable triangle filter that widens with the reduction, so that detail finer
//! than the target's pixels is averaged and not aliased. Enlarging, it is bilinear interpolation.

/// One plane of intensities, row by row.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Plane {
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) values: Vec<f32>,
}

/// A part of a plane in pixel coordinates; pixel `i` covers `i..i + 1`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Region {
    pub(crate) left: f64,
    pub(crate) top: f64,
    pub(crate) width: f64,
    pub(crate) height: f64,
}

impl Plane {
    pub(crate) fn whole(&self) -> Region {
        Region { left: 0.0, top: 0.0, width: self.width as f64, height: self.height as f64 }
    }

    /// Brings a region of the plane to `width` by `height` pixels.
    pub(crate) fn resample(&self, region: Region, width: usize, height: usize) -> Self {
        if region == self.whole() && (width, height) == (self.width, self.height) {
            return self.clone();
        }
        let horizontal = Weights::new(self.width, region.left, region.width, width);
        let vertical = Weights::new(self.height, region.top, region.height, height);
        // Only the rows that the vertical pass reads.
        let (first, last) = vertical.span();
        let mut narrow = Vec::with_capacity(width * (last - first));
        for row in self.values[first * self.width..last * self.width].chunks_exact(self.width) {
            narrow.extend(horizontal.taps.iter().map(|tap| {
                let source = &row[tap.start..tap.start + tap.weights.len()];
                source.iter().zip(&tap.weights).map(|(v, w)| v * w).sum::<f32>()
            }));
        }
        let mut values = vec![0.0f32; width * height];
        for (target, tap) in values.chunks_exact_mut(width.max(1)).zip(&vertical.taps) {
            for (row, &weight) in
                narrow[(tap.start - first) * width..].chunks_exact(width.max(1)).zip(&tap.weights)
            {
                for (value, &source) in target.iter_mut().zip(row) {
                    *value += source * weight;
                }
            }
        }
        Self { width, height, values }
    }
}

/// The source pixels of one target pixel along one axis.
struct Tap {
    start: usize,
    weights: Vec<f32>,
}

struct Weights {
    taps: Vec<Tap>,
}

impl Weights {
    fn new(source: usize, offset: f64, length: f64, target: usize) -> Self {
        let scale = length / target as f64;
        let support = scale.max(1.0);
        let taps = (0..target)
            .map(|index| {
                let center = offset + (index as f64 + 0.5) * scale;
                let start = ((center - support + 0.5).floor().max(0.0) as usize).min(source - 1);
                let end = ((center + support + 0.5).floor().max(0.0) as usize).clamp(start + 1, source);
                let mut weights: Vec<f64> = (start..end)
                    .map(|pixel| (1.0 - ((pixel as f64 + 0.5 - center) / support).abs()).max(0.0))
                    .collect();
                let total: f64 = weights.iter().sum();
                if total > 0.0 {
                    weights.iter_mut().for_each(|weight| *weight /= total);
                } else {
                    // The centre lies outside of the source: its edge pixel.
                    weights.fill(0.0);
                    weights[0] = 1.0;
                }
                Tap { start, weights: weights.into_iter().map(|weight| weight as f32).collect() }
            })
            .collect();
        Self { taps }
    }

    fn span(&self) -> (usize, usize) {
        let first = self.taps.iter().map(|tap| tap.start).min().unwrap_or(0);
        let last = self.taps.iter().map(|tap| tap.start + tap.weights.len()).max().unwrap_or(0);
        (first, last)
    }
}

/// Replaces each pixel by the median of its 3 x 3 neighbourhood; at the border the edge pixels are repeated.
pub(crate) fn median3(plane: &Plane) -> Plane {
    let Plane { width, height, ref values } = *plane;
    let mut out = vec![0.0; values.len()];
    // Each row with its edge pixels repeated, and room for whole groups of lanes.
    let padded = |y: usize| {
        let row = &values[y * width..(y + 1) * width];
        let mut padded = Vec::with_capacity(width + 2 + LANES);
        padded.push(row[0]);
        padded.extend_from_slice(row);
        padded.resize(width + 2 + LANES, row[width - 1]);
        padded
    };
    let mut rows = [padded(0), padded(0), padded(1.min(height - 1))];
    for (y, target) in out.chunks_exact_mut(width).enumerate() {
        for (group, target) in target.chunks_mut(LANES).enumerate() {
            let mut window = [[0.0f32; LANES]; 9];
            for (index, lanes) in window.iter_mut().enumerate() {
                lanes.copy_from_slice(&rows[index / 3][group * LANES + index % 3..][..LANES]);
            }
            target.copy_from_slice(&median9(window)[..target.len()]);
        }
        rows.rotate_left(1);
        rows[2] = padded((y + 2).min(height - 1));
    }
    Plane { width, height, values: out }
}

/// Pixels that the median network handles at once.
const LANES: usize = 16;

/// The median of nine by a fixed network of 19 exchanges (Paeth, "Median finding on a 3x3 grid", Graphics Gems, 1990).
fn median9(mut p: [[f32; LANES]; 9]) -> [f32; LANES] {
    const EXCHANGES: [(usize, usize); 19] = [
        (1, 2),
        (4, 5),
        (7, 8),
        (0, 1),
        (3, 4),
        (6, 7),
        (1, 2),
        (4, 5),
        (7, 8),
        (0, 3),
        (5, 8),
        (4, 7),
        (3, 6),
        (1, 4),
        (2, 5),
        (4, 7),
        (4, 2),
        (6, 4),
        (4, 2),
    ];
    for (low, high) in EXCHANGES {
        let (a, b) = (p[low], p[high]);
        // Comparisons, not f32::min: there is no NaN here, and this is one instruction each.
        p[low] = std::array::from_fn(|lane| if a[lane] < b[lane] { a[lane] } else { b[lane] });
        p[high] = std::array::from_fn(|lane| if a[lane] < b[lane] { b[lane] } else { a[lane] });
    }
    p[4]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn plane(width: usize, height: usize, value: impl Fn(usize, usize) -> f32) -> Plane {
        let values = (0..width * height).map(|i| value(i % width, i / width)).collect();
        Plane { width, height, values }
    }

    proptest! {
        #[test]
        fn the_median_network_finds_the_middle(values in prop::array::uniform9(-1e3f32..1e3)) {
            let mut sorted = values;
            sorted.sort_by(f32::total_cmp);
            let lanes = values.map(|value| [value; LANES]);
            prop_assert_eq!(median9(lanes), [sorted[4]; LANES]);
        }

        #[test]
        fn resampling_keeps_constants_and_stays_in_range(
            width in 1usize..40, height in 1usize..40, to_width in 1usize..40, to_height in 1usize..40, seed in 0u32..1000,
        ) {
            let noise = plane(width, height, |x, y| {
                ((x as u32 * 7919 + y as u32 * 104_729 + seed).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 24) as f32
            });
            let out = noise.resample(noise.whole(), to_width, to_height);
            prop_assert_eq!(out.values.len(), to_width * to_height);
            prop_assert!(out.values.iter().all(|v| (-1e-5..=1.0 + 1e-5).contains(v)));
            let flat = plane(width, height, |_, _| 0.25);
            let out = flat.resample(flat.whole(), to_width, to_height);
            prop_assert!(out.values.iter().all(|v| (v - 0.25).abs() < 1e-5));
        }
    }

    #[test]
    fn reduction_averages_instead_of_aliasing() {
        // A checkerboard of single pixels has a mean of one half at any coarser resolution.
        let board = plane(64, 64, |x, y| ((x + y) % 2) as f32);
        let out = board.resample(board.whole(), 9, 13);
        assert!(out.values.iter().all(|v| (v - 0.5).abs() < 0.02), "{:?}", &out.values[..9]);
    }

    #[test]
    fn enlarging_a_ramp_stays_a_ramp() {
        let ramp = plane(8, 1, |x, _| x as f32);
        let out = ramp.resample(ramp.whole(), 16, 1);
        for (index, value) in out.values.iter().enumerate().skip(1).take(14) {
            assert!((value - (index as f32 / 2.0 - 0.25)).abs() < 1e-5, "{index} {value}");
        }
    }

    #[test]
    fn the_filter_equals_a_sorted_neighbourhood() {
        for (width, height) in [(1, 1), (1, 5), (3, 2), (16, 3), (37, 11)] {
            let noise = plane(width, height, |x, y| ((x * 7919 + y * 104_729) % 251) as f32);
            let filtered = median3(&noise);
            for (index, value) in filtered.values.iter().enumerate() {
                let near = |at: usize, step: isize, end: usize| at.saturating_add_signed(step).min(end - 1);
                let mut window: Vec<f32> = (-1..=1)
                    .flat_map(|dy| (-1..=1).map(move |dx| (dx, dy)))
                    .map(|(dx, dy)| near(index / width, dy, height) * width + near(index % width, dx, width))
                    .map(|at| noise.values[at])
                    .collect();
                window.sort_by(f32::total_cmp);
                assert_eq!(*value, window[4], "{width}x{height} {index}");
            }
        }
    }

    #[test]
    fn median_removes_single_specks() {
        let mut speck = plane(9, 9, |_, _| 0.5);
        speck.values[40] = 1.0;
        speck.values[0] = 0.0;
        assert!(median3(&speck).values.iter().all(|&v| v == 0.5));
    }
}
