//! Gaussian noise for gradients, on a grid.
//!
//! **The ideal.** Let g be a power of two, x a value that is a multiple of g, and G a real Gaussian. Then round_g(x +
//! G) = x + round_g(G): the Gaussian mechanism followed by rounding is the same as adding a rounded Gaussian.
//! Rounding is post-processing, so every theorem about the (subsampled) Gaussian mechanism holds for it as it stands.
//! Values that are not multiples of g are rounded to it first, which lengthens the difference of two neighbours by at
//! most g sqrt(d) in d dimensions (each coordinate moves by at most g/2 in either); with sums of integers
//! (`GradientSum`) by nothing.
//!
//! **The sampler.** Box and Muller 1958 in double precision gives G up to a relative error near 2^-51, hence moves
//! the borders between grid points by that; the radius comes from a uniform number that keeps its full relative
//! precision down to 2^-128, so that the tail has no holes. With sigma / g between 2^19 and 2^20 the probability of
//! each grid point is off by a factor 1 + r with |r| below about 2^-28. By Prest 2017 (the lemma on relative error),
//! N such samples change a Rényi divergence of order a by at most about a N r² / 2: for 1e10 samples (1e6 parameters,
//! 1e4 steps) and a = 30 less than 3e-6. This is argued, where summing several samples (Holohan, Braghin 2021) only
//! makes Mironov's search longer.

use crate::units::ParameterError;
use rand_core::CryptoRng;

/// Grid points per standard deviation lie between 2^19 and 2^20: sixteen deviations are still exact in float32.
const GRID_BITS: i32 = 19;

/// Gaussian noise rounded to multiples of a power of two.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GaussianNoise {
    deviation: f64,
    grid: f64,
    grid_per_unit: f64,
    scale: f64,
}

impl GaussianNoise {
    /// With a standard deviation (before rounding) of 1e-25 to 1e25.
    ///
    /// # Errors
    /// Outside of that range.
    pub fn new(standard_deviation: f64) -> Result<Self, ParameterError> {
        if !(1e-25..=1e25).contains(&standard_deviation) {
            return Err(ParameterError::new("standard deviation", "1e-25 to 1e25", standard_deviation));
        }
        let exponent = libm::ilogb(standard_deviation) - GRID_BITS;
        let (grid, grid_per_unit) = (libm::ldexp(1.0, exponent), libm::ldexp(1.0, -exponent));
        Ok(Self {
            deviation: standard_deviation,
            grid,
            grid_per_unit,
            scale: standard_deviation * grid_per_unit,
        })
    }

    /// Standard deviation before rounding.
    #[must_use]
    pub fn standard_deviation(&self) -> f64 {
        self.deviation
    }

    /// The grid: a power of two.
    #[must_use]
    pub fn grid(&self) -> f64 {
        self.grid
    }

    /// Two independent samples, in multiples of the grid.
    fn pair(&self, rng: &mut impl CryptoRng) -> (f64, f64) {
        let radius = self.scale * (-2.0 * ln_uniform(rng)).sqrt();
        // The middle of one of 2^53 arcs.
        let turn = ((rng.next_u64() >> 11) as f64 + 0.5) * f64::powi(2.0, -53);
        let (sine, cosine) = libm::sincos(turn * (2.0 * std::f64::consts::PI));
        (libm::rint(radius * cosine), libm::rint(radius * sine))
    }

    fn for_each<T>(&self, values: &mut [T], rng: &mut impl CryptoRng, mut each: impl FnMut(&mut T, f64)) {
        let mut pairs = values.chunks_exact_mut(2);
        for pair in &mut pairs {
            let (first, second) = self.pair(rng);
            each(&mut pair[0], first);
            each(&mut pair[1], second);
        }
        for value in pairs.into_remainder() {
            each(value, self.pair(rng).0);
        }
    }

    /// Replaces every value by noise.
    pub fn fill(&self, values: &mut [f32], rng: &mut impl CryptoRng) {
        self.for_each(values, rng, |value, noise| *value = (noise * self.grid) as f32);
    }

    /// Rounds every value to the grid and adds noise. A value that is no number becomes zero plus noise, so that its
    /// coordinate does not tell. In double precision: rounded to single precision before the noise, neighbouring sums would differ by more.
    pub fn add_to(&self, values: &mut [f64], rng: &mut impl CryptoRng) {
        self.for_each(values, rng, |value, noise| {
            let rounded = libm::rint(*value * self.grid_per_unit);
            let rounded = if rounded.is_finite() { rounded } else { 0.0 };
            *value = (rounded + noise) * self.grid;
        });
    }

    /// Adds noise to integers that count multiples of the grid, and returns the sums in units of the data.
    pub fn release(&self, counts: &[i64], rng: &mut impl CryptoRng) -> Vec<f32> {
        let mut pairs: Vec<(i64, f32)> = counts.iter().map(|count| (*count, 0.0)).collect();
        self.for_each(&mut pairs, rng, |(count, out), noise| {
            // Both are whole numbers below 2^63; their sum is exact before it is rounded to float32.
            *out = (count.saturating_add(noise as i64) as f64 * self.grid) as f32;
        });
        pairs.into_iter().map(|(_, out)| out).collect()
    }
}

/// ln u for u uniform on (0, 1), with the full relative precision of u down to 2^-129.
fn ln_uniform(rng: &mut impl CryptoRng) -> f64 {
    let high = rng.next_u64();
    if high >= 1 << 53 {
        // 64 bits, of which at least 53 count; the rest is rounded.
        return libm::log((high as f64 + 0.5) * f64::powi(2.0, -64));
    }
    let wide = u128::from(high) << 64 | u128::from(rng.next_u64());
    libm::log((wide as f64 + 0.5) * f64::powi(2.0, -128))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::ChaCha12Rng;
    use rand_core::SeedableRng;

    #[test]
    fn all_noise_lies_on_the_grid_whatever_the_value() {
        let mut rng = ChaCha12Rng::from_seed([1; 32]);
        for deviation in [1e-12, 0.003, 1.0, 77.7, 1e9] {
            let noise = GaussianNoise::new(deviation).unwrap();
            let points = deviation / noise.grid();
            assert!((524_288.0..1_048_576.0).contains(&points));
            let mut values = vec![0.0f32; 1001];
            noise.fill(&mut values, &mut rng);
            assert!(values.iter().all(|v| (f64::from(*v) / noise.grid()).fract() == 0.0));
            // Neighbouring inputs reach the same outputs: the set of possible results is the grid for both.
            let mut shifted = vec![0.1 * deviation; 1001];
            noise.add_to(&mut shifted, &mut rng);
            assert!(shifted.iter().all(|v| (*v / noise.grid()).fract() == 0.0));
        }
    }

    #[test]
    fn no_number_goes_in_but_numbers_come_out() {
        let mut rng = ChaCha12Rng::from_seed([2; 32]);
        let mut values = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MAX];
        GaussianNoise::new(1.0).unwrap().add_to(&mut values, &mut rng);
        assert!(values.iter().all(|v| !v.is_nan()), "{values:?}");
    }

    #[test]
    fn deviations_out_of_range_are_refused() {
        for bad in [0.0, -1.0, 1e30, f64::NAN] {
            assert!(GaussianNoise::new(bad).is_err());
        }
    }
}
