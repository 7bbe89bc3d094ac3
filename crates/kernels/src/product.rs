//! The innermost loops: sums of products of a few pixels and a few channels, held in registers.
//!
//! Each is a function of its own for its size, so that the compiler keeps the sums in registers; sizes are chosen so that
//! there are enough of them to hide the latency of a multiplication and few enough for the registers there are.

use crate::cpu::{load, store};
use crate::layout::{BLOCK, Pixel};
use pulp::{NullaryFnOnce, Simd};

/// The weights that one source block and tap have for one target block.
pub(crate) type Slab = [Pixel; BLOCK];

/// Where a panel's slabs lie in memory: slab `k`'s pixel `p` is `values[first + k * pitch + p]`.
#[derive(Clone, Copy)]
pub(crate) struct Panel<'a> {
    pub(crate) values: &'a [Pixel],
    pub(crate) first: usize,
    pub(crate) pitch: usize,
}

/// `out[b][p] = sum_k panel[k][p] * weights[b][k]`, or that added to `out`, for all pixels of `B` target blocks.
#[inline(always)]
pub(crate) fn multiply<S: Simd, const V: usize, const B: usize>(
    simd: S,
    panel: Panel<'_>,
    weights: [&[Slab]; B],
    mut out: [&mut [Pixel]; B],
    add: bool,
) {
    let pixels = out[0].len();
    let mut at = 0;
    while at < pixels {
        let left = pixels - at;
        macro_rules! tile {
            ($M:literal) => {{
                let out = out.each_mut().map(|out| {
                    <&mut [Pixel; $M]>::try_from(&mut out[at..at + $M]).expect("cut to this length")
                });
                let panel = Panel { values: panel.values, first: panel.first + at, pitch: panel.pitch };
                simd.vectorize(Tile::<S, V, B, $M> { simd, panel, weights, out, add });
                at += $M;
            }};
        }
        match V {
            1 if left >= 14 => tile!(14),
            1 if left >= 8 => tile!(8),
            2 if B == 1 && left >= 6 => tile!(6),
            _ if left >= 4 && V <= 4 => tile!(4),
            _ if left >= 2 => tile!(2),
            _ => tile!(1),
        }
    }
}

struct Tile<'a, 'o, S, const V: usize, const B: usize, const M: usize> {
    simd: S,
    panel: Panel<'a>,
    weights: [&'a [Slab]; B],
    out: [&'o mut [Pixel; M]; B],
    add: bool,
}

impl<S: Simd, const V: usize, const B: usize, const M: usize> NullaryFnOnce for Tile<'_, '_, S, V, B, M> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { simd, panel, weights, out, add } = self;
        let zero = simd.splat_f32s(0.0);
        let mut sums = [[[zero; V]; B]; M];
        if add {
            for (m, sums) in sums.iter_mut().enumerate() {
                for (b, sums) in sums.iter_mut().enumerate() {
                    *sums = load(simd, &out[b][m]);
                }
            }
        }
        let count = weights[0].len();
        let weights = weights.map(|slabs| &slabs[..count]);
        for k in 0..count {
            let from = panel.first + k * panel.pitch;
            let source: &[Pixel; M] = panel.values[from..from + M].try_into().expect("cut to this length");
            for c in 0..BLOCK {
                let mut lines = [[zero; V]; B];
                for b in 0..B {
                    lines[b] = load(simd, &weights[b][k][c]);
                }
                for m in 0..M {
                    let value = simd.splat_f32s(source[m][c]);
                    for b in 0..B {
                        for v in 0..V {
                            sums[m][b][v] = simd.mul_add_e_f32s(value, lines[b][v], sums[m][b][v]);
                        }
                    }
                }
            }
        }
        for (m, sums) in sums.iter().enumerate() {
            for (b, sums) in sums.iter().enumerate() {
                store(simd, &mut out[b][m], *sums);
            }
        }
    }
}

/// `sums[b][c] += sum_p slab[p][c] * out[b][p]` for the 16 channels `c` of a source block and `B` target blocks.
#[inline(always)]
pub(crate) fn outer<S: Simd, const V: usize, const B: usize>(
    simd: S,
    slab: &[Pixel],
    out: [&[Pixel]; B],
    mut sums: [&mut Slab; B],
) {
    macro_rules! halves {
        ($C:literal) => {
            for first in (0..BLOCK).step_by($C) {
                let sums = sums.each_mut().map(|sums| {
                    <&mut [Pixel; $C]>::try_from(&mut sums[first..first + $C]).expect("cut to this length")
                });
                simd.vectorize(Outer::<S, V, B, $C> { simd, slab, first, out, sums });
            }
        };
    }
    match V {
        1 => halves!(8),
        2 | 4 => halves!(4),
        _ => halves!(2),
    }
}

struct Outer<'a, 's, S, const V: usize, const B: usize, const C: usize> {
    simd: S,
    slab: &'a [Pixel],
    first: usize,
    out: [&'a [Pixel]; B],
    sums: [&'s mut [Pixel; C]; B],
}

impl<S: Simd, const V: usize, const B: usize, const C: usize> NullaryFnOnce for Outer<'_, '_, S, V, B, C> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { simd, slab, first, out, sums: to } = self;
        assert!(first + C <= BLOCK, "channels of one block");
        let zero = simd.splat_f32s(0.0);
        let mut sums = [[[zero; V]; B]; C];
        for (c, sums) in sums.iter_mut().enumerate() {
            for (b, sums) in sums.iter_mut().enumerate() {
                *sums = load(simd, &to[b][c]);
            }
        }
        let out = out.map(|out| &out[..slab.len()]);
        for (p, pixel) in slab.iter().enumerate() {
            let mut lines = [[zero; V]; B];
            for b in 0..B {
                lines[b] = load(simd, &out[b][p]);
            }
            for c in 0..C {
                let value = simd.splat_f32s(pixel[first + c]);
                for b in 0..B {
                    for v in 0..V {
                        sums[c][b][v] = simd.mul_add_e_f32s(value, lines[b][v], sums[c][b][v]);
                    }
                }
            }
        }
        for (c, sums) in sums.iter().enumerate() {
            for (b, sums) in sums.iter().enumerate() {
                store(simd, &mut to[b][c], *sums);
            }
        }
    }
}
