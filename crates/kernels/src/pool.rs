//! Pooling: the largest of a window, and the mean of a map.

use crate::buffers;
use crate::cpu::{Cpu, Kernel};
use crate::layout::{BLOCK, Maps, Pixel, pixels, pixels_mut};
use pulp::Simd;
use rayon::prelude::*;

/// Side of a window, pixels from one to the next, and what lies outside on each side.
const WINDOW: usize = 3;
const STRIDE: usize = 2;
const PADDING: usize = 1;

/// The maps that [`max_pool`] makes.
#[must_use]
pub fn max_pooled(maps: &Maps) -> Maps {
    let side = |length: usize| (length + 2 * PADDING).saturating_sub(WINDOW) / STRIDE + 1;
    Maps { height: side(maps.height), width: side(maps.width), ..*maps }
}

/// The largest value of each 3x3 window, 2 pixels apart, with 1 pixel outside on each side.
#[must_use]
pub fn max_pool(cpu: Cpu, x: &[f32], maps: &Maps) -> Vec<f32> {
    let to = max_pooled(maps);
    let mut y = buffers::take(to.values());
    let images = pixels_mut(&mut y).par_chunks_mut(to.image().max(1));
    images.zip(pixels(x).par_chunks(maps.image().max(1))).for_each(|(y, x)| {
        cpu.run(Largest { x, y, maps, to: &to });
    });
    y
}

/// The gradient of [`max_pool`] with respect to `x`: each window's goes to the first of its largest values.
#[must_use]
pub fn max_pool_backward(cpu: Cpu, x: &[f32], y: &[f32], dy: &[f32], maps: &Maps) -> Vec<f32> {
    let to = max_pooled(maps);
    let mut dx = buffers::take(maps.values());
    let (image, windows) = (maps.image().max(1), to.image().max(1));
    let images = pixels_mut(&mut dx).par_chunks_mut(image).zip(pixels(x).par_chunks(image));
    let windows = pixels(y).par_chunks(windows).zip(pixels(dy).par_chunks(windows));
    images.zip(windows).for_each(|((dx, x), (y, dy))| {
        cpu.run(LargestGradient { x, y, dy, dx, maps, to: &to });
    });
    dx
}

/// Calls `run` with the window's pixels inside the image, row by row.
#[inline(always)]
fn each_pixel(maps: &Maps, row: usize, column: usize, mut run: impl FnMut(usize)) {
    let range = |at: usize, length: usize| {
        (at * STRIDE).saturating_sub(PADDING)..(at * STRIDE + WINDOW - PADDING).min(length)
    };
    for y in range(row, maps.height) {
        for x in range(column, maps.width) {
            run(y * maps.width + x);
        }
    }
}

struct Largest<'a> {
    x: &'a [Pixel],
    y: &'a mut [Pixel],
    maps: &'a Maps,
    to: &'a Maps,
}

impl Kernel for Largest<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, const V: usize>(self, _: S) {
        for (row, line) in self.y.chunks_exact_mut(self.to.width).enumerate() {
            for (column, y) in line.iter_mut().enumerate() {
                let mut largest = [f32::NEG_INFINITY; BLOCK];
                each_pixel(self.maps, row, column, |at| {
                    for (largest, &x) in largest.iter_mut().zip(&self.x[at]) {
                        *largest = if x > *largest { x } else { *largest };
                    }
                });
                *y = largest;
            }
        }
    }
}

struct LargestGradient<'a> {
    x: &'a [Pixel],
    y: &'a [Pixel],
    dy: &'a [Pixel],
    dx: &'a mut [Pixel],
    maps: &'a Maps,
    to: &'a Maps,
}

impl Kernel for LargestGradient<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, const V: usize>(self, _: S) {
        self.dx.fill([0.0; BLOCK]);
        for row in 0..self.to.height {
            for column in 0..self.to.width {
                let window = row * self.to.width + column;
                // What is still to be given away.
                let mut left = self.dy[window];
                let y = &self.y[window];
                each_pixel(self.maps, row, column, |at| {
                    let (x, dx) = (&self.x[at], &mut self.dx[at]);
                    for lane in 0..BLOCK {
                        let (given, kept) =
                            if x[lane] == y[lane] { (left[lane], 0.0) } else { (0.0, left[lane]) };
                        dx[lane] += given;
                        left[lane] = kept;
                    }
                });
            }
        }
    }
}

/// The mean of each map, `[batch, channels]`.
#[must_use]
pub fn mean(x: &[f32], maps: &Maps) -> Vec<f32> {
    let mut means = vec![0.0; maps.batch * maps.channels];
    let image = maps.image();
    for (at, pixels) in pixels(x).chunks_exact(image.max(1)).enumerate() {
        let (block, n) = (at / maps.batch, at % maps.batch);
        let mut sums = [0.0f32; BLOCK];
        for pixel in pixels {
            sums.iter_mut().zip(pixel).for_each(|(sum, value)| *sum += value);
        }
        let row = &mut means[n * maps.channels..][..maps.channels];
        let to = row.iter_mut().skip(block * BLOCK);
        to.zip(sums).for_each(|(mean, sum)| *mean = sum / image as f32);
    }
    means
}

/// The gradient of [`mean`] with respect to `x`.
#[must_use]
pub fn mean_backward(dy: &[f32], maps: &Maps) -> Vec<f32> {
    let mut dx = buffers::take(maps.values());
    let image = maps.image();
    for (at, pixels) in pixels_mut(&mut dx).chunks_exact_mut(image.max(1)).enumerate() {
        let (block, n) = (at / maps.batch, at % maps.batch);
        let mut value = [0.0f32; BLOCK];
        let row = &dy[n * maps.channels..][..maps.channels];
        let from = row.iter().skip(block * BLOCK);
        value.iter_mut().zip(from).for_each(|(value, dy)| *value = dy / image as f32);
        pixels.fill(value);
    }
    dx
}
