//! Where a value of a feature map lies.

use crate::buffers;
use rayon::prelude::*;

/// Channels that lie side by side.
pub const BLOCK: usize = 16;

/// One pixel's values in one block of channels: a cache line, and a register of the widest instructions.
pub type Pixel = [f32; BLOCK];

/// Feature maps of a batch. Their values lie as `[blocks, batch, height, width, 16]`: the pixels of all images follow each
/// other within a block of 16 channels, so that a row of pixels is one run of memory in every product, and small maps of
/// neighbouring images share a tile. Channels that fill up the last block are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Maps {
    /// Images.
    pub batch: usize,
    /// Channels that exist.
    pub channels: usize,
    /// Rows of pixels.
    pub height: usize,
    /// Pixels of a row.
    pub width: usize,
}

impl Maps {
    /// Blocks of channels.
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.channels.div_ceil(BLOCK)
    }

    /// Pixels of one image.
    #[must_use]
    pub fn image(&self) -> usize {
        self.height * self.width
    }

    /// Pixels of all images.
    #[must_use]
    pub fn pixels(&self) -> usize {
        self.batch * self.image()
    }

    /// Values, those of channels that fill up included.
    #[must_use]
    pub fn values(&self) -> usize {
        self.blocks() * self.pixels() * BLOCK
    }

    /// From `[batch, channels, height, width]`.
    #[must_use]
    pub fn from_planes(&self, planes: &[f32]) -> Vec<f32> {
        let mut values = buffers::take(self.values());
        let image = self.image();
        let chunks = pixels_mut(&mut values).par_chunks_mut(image.max(1)).enumerate();
        chunks.for_each(|(at, pixels)| {
            let (block, n) = (at / self.batch, at % self.batch);
            for lane in 0..BLOCK {
                let channel = block * BLOCK + lane;
                if channel < self.channels {
                    let plane = &planes[(n * self.channels + channel) * image..][..image];
                    pixels.iter_mut().zip(plane).for_each(|(pixel, &value)| pixel[lane] = value);
                } else {
                    pixels.iter_mut().for_each(|pixel| pixel[lane] = 0.0);
                }
            }
        });
        values
    }

    /// To `[batch, channels, height, width]`.
    #[must_use]
    pub fn to_planes(&self, values: &[f32]) -> Vec<f32> {
        let mut planes = buffers::take(self.batch * self.channels * self.image());
        let (image, pixels) = (self.image(), pixels(values));
        planes.par_chunks_mut(image.max(1)).enumerate().for_each(|(at, plane)| {
            let (n, channel) = (at / self.channels, at % self.channels);
            let (block, lane) = (channel / BLOCK, channel % BLOCK);
            let pixels = &pixels[(block * self.batch + n) * image..][..image];
            plane.iter_mut().zip(pixels).for_each(|(value, pixel)| *value = pixel[lane]);
        });
        planes
    }
}

/// Values as pixels.
pub(crate) fn pixels(values: &[f32]) -> &[Pixel] {
    values.as_chunks().0
}

/// Values as pixels.
pub(crate) fn pixels_mut(values: &mut [f32]) -> &mut [Pixel] {
    values.as_chunks_mut().0
}
