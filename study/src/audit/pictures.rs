//! How alike two images are, and images as PNG.

use anyhow::Result;
use base64::Engine as _;
use image::{DynamicImage, GrayImage, ImageFormat};
use medinet_model::InputShape;
use serde::Serialize;
use std::io::Cursor;

/// How well an image is met.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Likeness {
    /// Pearson's correlation of the pixels.
    pub correlation: f64,
    /// Peak signal to noise ratio in decibels, the peak being the true image's range.
    pub psnr: f64,
    /// Structural similarity (Wang et al. 2004), windows of 7 x 7 pixels of even weight.
    pub ssim: f64,
}

impl Likeness {
    /// Of an image to the true one, both normalised, of one map.
    #[must_use]
    pub fn of(image: &[f32], truth: &[f32], shape: InputShape) -> Self {
        let mean_square = image.iter().zip(truth).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>()
            / truth.len().max(1) as f64;
        let (low, high) = range(truth);
        let peak = f64::from(high - low).max(1e-6);
        Self {
            correlation: similarity(image, truth),
            // An exact copy has no noise; single precision leaves some 140 dB.
            psnr: 10.0 * (peak * peak / mean_square.max(1e-14)).log10(),
            ssim: ssim(image, truth, shape, peak),
        }
    }
}

/// Pearson's correlation.
#[must_use]
pub fn similarity(a: &[f32], b: &[f32]) -> f64 {
    let n = a.len().max(1) as f64;
    let mean = |values: &[f32]| values.iter().map(|&value| f64::from(value)).sum::<f64>() / n;
    let (mean_a, mean_b) = (mean(a), mean(b));
    let (mut ab, mut aa, mut bb) = (0.0, 0.0, 0.0);
    for (a, b) in a.iter().zip(b) {
        let (a, b) = (f64::from(*a) - mean_a, f64::from(*b) - mean_b);
        ab += a * b;
        aa += a * a;
        bb += b * b;
    }
    ab / (aa * bb).sqrt().max(1e-12)
}

/// Brings an image to mean 0 and deviation 1, as those of the data sets are.
pub fn normalised(image: &mut [f32]) {
    let n = image.len().max(1) as f64;
    let mean = image.iter().map(|&value| f64::from(value)).sum::<f64>() / n;
    let variance = image.iter().map(|&value| (f64::from(value) - mean).powi(2)).sum::<f64>() / n;
    let deviation = variance.sqrt().max(1e-6);
    image.iter_mut().for_each(|value| *value = ((f64::from(*value) - mean) / deviation) as f32);
}

fn range(values: &[f32]) -> (f32, f32) {
    values
        .iter()
        .fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), &value| (low.min(value), high.max(value)))
}

fn ssim(a: &[f32], b: &[f32], shape: InputShape, peak: f64) -> f64 {
    const WINDOW: usize = 7;
    let (height, width) = (shape.height as usize, shape.width as usize);
    let (c1, c2) = ((0.01 * peak).powi(2), (0.03 * peak).powi(2));
    let (mut total, mut windows) = (0.0, 0.0);
    for top in 0..=height.saturating_sub(WINDOW) {
        for left in 0..=width.saturating_sub(WINDOW) {
            let (mut n, mut sa, mut sb, mut saa, mut sbb, mut sab) = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0);
            for row in top..(top + WINDOW).min(height) {
                for column in left..(left + WINDOW).min(width) {
                    let (x, y) = (f64::from(a[row * width + column]), f64::from(b[row * width + column]));
                    n += 1.0;
                    sa += x;
                    sb += y;
                    saa += x * x;
                    sbb += y * y;
                    sab += x * y;
                }
            }
            let (ma, mb) = (sa / n, sb / n);
            let (va, vb, cov) = (saa / n - ma * ma, sbb / n - mb * mb, sab / n - ma * mb);
            total += (2.0 * ma * mb + c1) * (2.0 * cov + c2) / ((ma * ma + mb * mb + c1) * (va + vb + c2));
            windows += 1.0;
        }
    }
    total / windows
}

/// An image of one map as a PNG in a data URI, in the shades of `truth`: what is darkest and brightest there is black and white.
///
/// # Errors
/// When the encoder fails.
pub(super) fn data_uri(image: &[f32], truth: &[f32], shape: InputShape) -> Result<String> {
    let (low, high) = range(truth);
    let shade =
        |value: &f32| (255.0 * (value - low) / (high - low).max(1e-6)).round().clamp(0.0, 255.0) as u8;
    let pixels = image.iter().take((shape.height * shape.width) as usize).map(shade).collect();
    let picture = GrayImage::from_raw(shape.width, shape.height, pixels).unwrap_or_default();
    let mut bytes = Cursor::new(Vec::new());
    DynamicImage::ImageLuma8(picture).write_to(&mut bytes, ImageFormat::Png)?;
    let text = base64::engine::general_purpose::STANDARD.encode(bytes.into_inner());
    Ok(format!("data:image/png;base64,{text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: InputShape = InputShape { channels: 1, height: 28, width: 28 };

    fn picture(seed: usize) -> Vec<f32> {
        let mut image: Vec<f32> =
            (0..784).map(|i| ((i * (seed + 3) % 101) as f32 / 50.0) + (i / 28) as f32 / 14.0).collect();
        normalised(&mut image);
        image
    }

    #[test]
    fn a_copy_is_alike_in_every_measure_and_another_picture_is_not() {
        let (a, b) = (picture(1), picture(8));
        let same = Likeness::of(&a, &a, SHAPE);
        assert!((same.correlation - 1.0).abs() < 1e-9 && (same.ssim - 1.0).abs() < 1e-9 && same.psnr > 100.0);
        let other = Likeness::of(&b, &a, SHAPE);
        assert!(other.correlation < 0.8 && other.ssim < 0.8 && other.psnr < 20.0, "{other:?}");
        // Of normalised images the mean square follows from the correlation.
        let mean_square = 2.0 * (1.0 - other.correlation);
        let (low, high) = range(&a);
        let psnr = 10.0 * (f64::from(high - low).powi(2) / mean_square).log10();
        assert!((psnr - other.psnr).abs() < 1e-3);
    }

    #[test]
    fn a_png_holds_the_shades() {
        let a = picture(2);
        let uri = data_uri(&a, &a, SHAPE).unwrap();
        let bytes = base64::engine::general_purpose::STANDARD
            .decode(uri.strip_prefix("data:image/png;base64,").unwrap())
            .unwrap();
        let read = image::load_from_memory(&bytes).unwrap().to_luma8();
        assert_eq!(read.dimensions(), (28, 28));
        assert_eq!((read.iter().min(), read.iter().max()), (Some(&0), Some(&255)));
    }
}
