//! Sizes of a convolution, and the walks over source pixels that it consists of.

use crate::layout::{BLOCK, Maps};

/// A square convolution of `batch` images without bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvShape {
    /// Images.
    pub batch: usize,
    /// Channels of the input.
    pub inputs: usize,
    /// Rows of the input.
    pub height: usize,
    /// Columns of the input.
    pub width: usize,
    /// Channels of the output.
    pub outputs: usize,
    /// Side of the kernel.
    pub kernel: usize,
    /// Pixels from one patch to the next.
    pub stride: usize,
    /// Zeros on each side of the input.
    pub padding: usize,
}

impl ConvShape {
    /// The input's maps.
    #[must_use]
    pub fn input(&self) -> Maps {
        Maps { batch: self.batch, channels: self.inputs, height: self.height, width: self.width }
    }

    /// The output's maps.
    #[must_use]
    pub fn output(&self) -> Maps {
        let side = |length: usize| (length + 2 * self.padding - self.kernel) / self.stride + 1;
        Maps { batch: self.batch, channels: self.outputs, height: side(self.height), width: side(self.width) }
    }

    /// Elements of a kernel's plane.
    pub(crate) fn area(&self) -> usize {
        self.kernel * self.kernel
    }

    /// Weights of one output channel.
    pub(crate) fn patch(&self) -> usize {
        self.inputs * self.area()
    }

    /// Weights, `[outputs, inputs, kernel, kernel]`.
    #[must_use]
    pub fn weights(&self) -> usize {
        self.outputs * self.patch()
    }

    /// Multiplications of the forward pass; each of the two gradients takes as many.
    #[must_use]
    pub fn products(&self) -> usize {
        self.output().pixels() * self.weights()
    }

    /// The walk of the forward pass: each output pixel takes the input pixels of its patch.
    pub(crate) fn forward(&self) -> Walk {
        let (from, to) = (self.input(), self.output());
        let taps = (0..self.area())
            .map(|index| Tap {
                index,
                dy: (index / self.kernel) as isize - self.padding as isize,
                dx: (index % self.kernel) as isize - self.padding as isize,
            })
            .collect();
        Walk {
            source: [from.height, from.width],
            target: [to.height, to.width],
            grid: [to.height, to.width],
            step: self.stride,
            spread: 1,
            phase: [0, 0],
            taps,
        }
    }

    /// The walks of the backward pass with respect to the input. With a stride, input pixels of different remainders take
    /// different elements of the kernel: a walk for each pair of remainders, and no product with a zero between.
    pub(crate) fn backward(&self) -> Vec<Walk> {
        let (from, to, stride) = (self.output(), self.input(), self.stride);
        let phases = (0..stride).flat_map(|a| (0..stride).map(move |b| [a, b]));
        let reach = |phase: usize, k: usize| {
            let distance = (phase + self.padding) as isize - k as isize;
            (distance % stride as isize == 0).then_some(distance / stride as isize)
        };
        phases
            .map(|phase| Walk {
                source: [from.height, from.width],
                target: [to.height, to.width],
                grid: [to.height.div_ceil(stride), to.width.saturating_sub(phase[1]).div_ceil(stride)],
                step: 1,
                spread: stride,
                phase,
                taps: (0..self.area())
                    .filter_map(|index| {
                        let dy = reach(phase[0], index / self.kernel)?;
                        let dx = reach(phase[1], index % self.kernel)?;
                        Some(Tap { index, dy, dx })
                    })
                    .collect(),
            })
            .collect()
    }

    /// Slabs of 16 that the weights of one output channel fill when they are taken as they lie.
    pub(crate) fn unfolded_slabs(&self) -> usize {
        self.patch().div_ceil(BLOCK)
    }
}

/// An element of the kernel, and how far from a grid point's own source pixel it looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tap {
    /// `ky * kernel + kx`.
    pub(crate) index: usize,
    pub(crate) dy: isize,
    pub(crate) dx: isize,
}

/// Grid point `(g, h)` of an image sums over taps the source pixel `(g * step + dy, h * step + dx)`, zero outside, and is
/// target pixel `(g * spread + phase[0], h * spread + phase[1])`, if that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Walk {
    /// Rows and columns of a source image.
    pub(crate) source: [usize; 2],
    /// Rows and columns of a target image.
    pub(crate) target: [usize; 2],
    /// Rows and columns of the grid.
    pub(crate) grid: [usize; 2],
    pub(crate) step: usize,
    pub(crate) spread: usize,
    pub(crate) phase: [usize; 2],
    pub(crate) taps: Vec<Tap>,
}

impl Walk {
    /// Whether grid points are the source's pixels, one by one.
    pub(crate) fn is_identity(&self) -> bool {
        self.step == 1
            && self.spread == 1
            && self.source == self.grid
            && matches!(self.taps[..], [Tap { dy: 0, dx: 0, .. }])
    }

    /// The first target pixel of a row of the grid, the rows of all images counted through.
    pub(crate) fn target_start(&self, row: usize) -> usize {
        let [height, width] = self.target;
        let (image, row) = (row / self.grid[0], row % self.grid[0]);
        (image * height + (row * self.spread).min(height)) * width
    }
}
