//! Random changes of training images.

use medinet_model::{Augmentation, InputShape};
use rand_core::Rng;

/// Changes an input image at random, in place: one affine warp for mirror, shift, rotation and scale, with bilinear
/// interpolation and edge pixels repeated outside, then contrast about the image's mean and brightness.
///
/// The random source determines the result: every call draws the same number of values, whatever the settings.
/// `values` is `[channels, height, width]`; a buffer of another length is left as it is.
pub fn augment(values: &mut [f32], shape: InputShape, settings: &Augmentation, rng: &mut impl Rng) {
    let flip = rng.next_u32() & 1 == 1 && settings.flip_horizontal;
    let mut symmetric = |limit: f32| (unit(rng.next_u32()) * 2.0 - 1.0) * limit;
    let shift_x = symmetric(settings.shift_fraction);
    let shift_y = symmetric(settings.shift_fraction);
    let angle = symmetric(settings.rotate_degrees).to_radians();
    let scale = 1.0 + symmetric(settings.scale_fraction);
    let brightness = symmetric(settings.brightness);
    let contrast = 1.0 + symmetric(settings.contrast);

    let (width, height) = (shape.width as usize, shape.height as usize);
    if width == 0 || height == 0 || values.len() != shape.channels as usize * width * height {
        return;
    }
    let still = !flip && shift_x == 0.0 && shift_y == 0.0 && angle == 0.0 && scale == 1.0;
    if !still {
        let (sin, cos) = angle.sin_cos();
        let mirror = if flip { -1.0 } else { 1.0 };
        let affine = Affine {
            // From target to source, about the centre: the inverse of shift after scale after rotation after mirror.
            xx: mirror * cos / scale,
            xy: mirror * sin / scale,
            yx: -sin / scale,
            yy: cos / scale,
            shift_x: shift_x * width as f32,
            shift_y: shift_y * height as f32,
        };
        // One more column and row, copies of the last ones, so that every pixel has a right and a lower neighbour.
        let stride = width + 1;
        let mut source = vec![0.0; stride * (height + 1)];
        for plane in values.chunks_exact_mut(width * height) {
            let last = plane[(height - 1) * width..].to_vec();
            let rows = plane.chunks_exact(width).chain([&last[..]]);
            for (padded, row) in source.chunks_exact_mut(stride).zip(rows) {
                padded[..width].copy_from_slice(row);
                padded[width] = row[width - 1];
            }
            affine.warp(&source, plane, width, height);
        }
    }
    if brightness != 0.0 || contrast != 1.0 {
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        let offset = mean * (1.0 - contrast) + brightness;
        values.iter_mut().for_each(|value| *value = *value * contrast + offset);
    }
}

/// A number of `[0, 1)` from the upper 24 bits, which single precision holds exactly.
fn unit(bits: u32) -> f32 {
    (bits >> 8) as f32 / (1 << 24) as f32
}

struct Affine {
    xx: f32,
    xy: f32,
    yx: f32,
    yy: f32,
    shift_x: f32,
    shift_y: f32,
}

impl Affine {
    /// `source` has a column and a row more than the target.
    fn warp(&self, source: &[f32], target: &mut [f32], width: usize, height: usize) {
        let stride = width + 1;
        let (center_x, center_y) = ((width - 1) as f32 / 2.0, (height - 1) as f32 / 2.0);
        let (last_x, last_y) = ((width - 1) as f32, (height - 1) as f32);
        for (y, row) in target.chunks_exact_mut(width).enumerate() {
            let dy = y as f32 - center_y - self.shift_y;
            let (start_x, start_y) = (self.xy * dy + center_x, self.yy * dy + center_y);
            for (x, value) in row.iter_mut().enumerate() {
                let dx = x as f32 - center_x - self.shift_x;
                let sx = (self.xx * dx + start_x).clamp(0.0, last_x);
                let sy = (self.yx * dx + start_y).clamp(0.0, last_y);
                // Through i32: conversions to 64 bits are several times slower.
                let (x0, y0) = (sx as i32, sy as i32);
                let (fx, fy) = (sx - x0 as f32, sy - y0 as f32);
                let at = y0 as usize * stride + x0 as usize;
                // One bounds check for the four neighbours.
                let near = &source[at..at + stride + 2];
                let above = near[0] + (near[1] - near[0]) * fx;
                let below = near[stride] + (near[stride + 1] - near[stride]) * fx;
                *value = above + (below - above) * fy;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::SeedableRng;

    const SHAPE: InputShape = InputShape { channels: 2, height: 6, width: 8 };

    fn image() -> Vec<f32> {
        (0..96).map(|v| (v * 37 % 101) as f32 / 10.0).collect()
    }

    fn strong() -> Augmentation {
        Augmentation {
            flip_horizontal: true,
            shift_fraction: 0.2,
            rotate_degrees: 30.0,
            scale_fraction: 0.3,
            brightness: 0.5,
            contrast: 0.4,
        }
    }

    fn run(settings: &Augmentation, seed: u64) -> Vec<f32> {
        let mut values = image();
        augment(&mut values, SHAPE, settings, &mut ChaCha8Rng::seed_from_u64(seed));
        values
    }

    #[test]
    fn the_seed_determines_the_result() {
        assert_eq!(run(&strong(), 7), run(&strong(), 7));
        assert_ne!(run(&strong(), 7), run(&strong(), 8));
    }

    #[test]
    fn no_settings_change_nothing() {
        for seed in 0..20 {
            assert_eq!(run(&Augmentation::none(), seed), image());
        }
    }

    #[test]
    fn every_call_draws_the_same_number_of_values() {
        let next = |settings: &Augmentation| {
            let mut rng = ChaCha8Rng::seed_from_u64(3);
            augment(&mut image(), SHAPE, settings, &mut rng);
            rng.next_u64()
        };
        assert_eq!(next(&strong()), next(&Augmentation::none()));
    }

    #[test]
    fn a_mirror_is_exact_and_happens_half_of_the_time() {
        let settings = Augmentation { flip_horizontal: true, ..Augmentation::none() };
        let mut mirrored = image();
        mirrored.chunks_exact_mut(8).for_each(<[f32]>::reverse);
        let mut flips = 0;
        for seed in 0..200 {
            let values = run(&settings, seed);
            let close = |to: &[f32]| values.iter().zip(to).all(|(a, b)| (a - b).abs() < 1e-4);
            assert!(close(&image()) || close(&mirrored));
            flips += u32::from(close(&mirrored));
        }
        assert!((70..130).contains(&flips), "{flips}");
    }

    #[test]
    fn a_quarter_turn_moves_rows_to_columns() {
        let affine = Affine { xx: 0.0, xy: 1.0, yx: -1.0, yy: 0.0, shift_x: 0.0, shift_y: 0.0 };
        let source = [1.0, 2.0, 2.0, 3.0, 4.0, 4.0, 3.0, 4.0, 4.0];
        let mut target = [0.0; 4];
        affine.warp(&source, &mut target, 2, 2);
        assert_eq!(target, [3.0, 1.0, 4.0, 2.0], "a rotation by 90 degrees clockwise on the screen");
    }

    #[test]
    fn values_stay_in_range_without_brightness_and_contrast() {
        let settings = Augmentation { brightness: 0.0, contrast: 0.0, ..strong() };
        for seed in 0..100 {
            assert!(run(&settings, seed).iter().all(|v| (0.0..=10.0).contains(v)));
        }
    }

    #[test]
    fn contrast_keeps_the_mean_and_brightness_moves_it() {
        let mean = |values: &[f32]| values.iter().sum::<f32>() / values.len() as f32;
        let contrast = Augmentation { contrast: 0.5, ..Augmentation::none() };
        let brightness = Augmentation { brightness: 0.5, ..Augmentation::none() };
        for seed in 0..20 {
            assert!((mean(&run(&contrast, seed)) - mean(&image())).abs() < 1e-3);
            let moved = mean(&run(&brightness, seed)) - mean(&image());
            assert!(moved.abs() <= 0.5 + 1e-3);
        }
    }
}
