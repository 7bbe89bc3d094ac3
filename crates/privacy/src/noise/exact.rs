//! Exact samplers after Canonne, Kamath and Steinke 2020 ("The Discrete Gaussian for Differential Privacy", "CKS"), in
//! integers only.

use super::Variance;
use crate::units::ParameterError;
use rand_core::CryptoRng;

/// Uniform on 0..bound, by rejection; `bound` above 0.
fn below(bound: u128, rng: &mut impl CryptoRng) -> u128 {
    let mask = u128::MAX >> (bound - 1).leading_zeros().min(127);
    loop {
        let draw = if mask >> 64 == 0 {
            u128::from(rng.next_u64())
        } else {
            u128::from(rng.next_u64()) << 64 | u128::from(rng.next_u64())
        };
        if draw & mask < bound {
            return draw & mask;
        }
    }
}

/// True with probability exactly `numerator / denominator`.
fn bernoulli(numerator: u128, denominator: u128, rng: &mut impl CryptoRng) -> bool {
    below(denominator, rng) < numerator
}

/// True with probability exactly e^-(numerator / denominator) for a fraction of at most 1 (CKS, algorithm 1).
fn bernoulli_exp_fraction(numerator: u128, denominator: u128, rng: &mut impl CryptoRng) -> bool {
    let mut k = 1u128;
    // The product cannot overflow: it would take more than 2^20 rounds, the k-th of which is reached with probability
    // 1/k!.
    while bernoulli(numerator, denominator.saturating_mul(k), rng) {
        k += 1;
    }
    k % 2 == 1
}

/// True with probability exactly e^-(numerator / denominator) (CKS, algorithm 1).
fn bernoulli_exp(mut numerator: u128, denominator: u128, rng: &mut impl CryptoRng) -> bool {
    while numerator > denominator {
        if !bernoulli_exp_fraction(1, 1, rng) {
            return false;
        }
        numerator -= denominator;
    }
    bernoulli_exp_fraction(numerator, denominator, rng)
}

/// The discrete Laplace distribution: P(x) proportional to e^(-|x| / scale) on the integers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiscreteLaplace {
    /// The scale is t / s.
    t: u64,
    s: u64,
}

impl DiscreteLaplace {
    /// With scale `numerator / denominator`, each 1 to 2^32.
    ///
    /// # Errors
    /// Outside of the range.
    pub fn new(numerator: u64, denominator: u64) -> Result<Self, ParameterError> {
        for (name, value) in [("numerator of a scale", numerator), ("denominator of a scale", denominator)] {
            if !(1..=1 << 32).contains(&value) {
                return Err(ParameterError::new(name, "1 to 2^32", value as f64));
            }
        }
        Ok(Self { t: numerator, s: denominator })
    }

    /// A sample (CKS, algorithm 2).
    pub fn sample(&self, rng: &mut impl CryptoRng) -> i64 {
        loop {
            let u = below(u128::from(self.t), rng);
            if !bernoulli_exp_fraction(u, u128::from(self.t), rng) {
                continue;
            }
            let mut v = 0u64;
            while bernoulli_exp_fraction(1, 1, rng) {
                v += 1;
            }
            // v passes 2^20 with probability e^-(2^20).
            let magnitude = ((u + u128::from(self.t) * u128::from(v)) / u128::from(self.s)) as i64;
            let negative = rng.next_u32() & 1 == 1;
            if negative && magnitude == 0 {
                continue;
            }
            return if negative { -magnitude } else { magnitude };
        }
    }
}

/// The discrete Gaussian distribution: P(x) proportional to e^(-x² / 2 sigma²) on the integers, sampled exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExactGaussian {
    variance: Variance,
    laplace: DiscreteLaplace,
}

impl ExactGaussian {
    /// With parameter sigma² = `variance` (which the distribution's own variance never exceeds; CKS, corollary 9).
    #[must_use]
    pub fn new(variance: Variance) -> Self {
        let whole = variance.numerator / u64::from(variance.denominator);
        let laplace = DiscreteLaplace { t: whole.isqrt() + 1, s: 1 };
        Self { variance, laplace }
    }

    /// Its parameter.
    #[must_use]
    pub fn variance(&self) -> Variance {
        self.variance
    }

    /// A sample (CKS, algorithm 3).
    pub fn sample(&self, rng: &mut impl CryptoRng) -> i64 {
        let (n, d) = (u128::from(self.variance.numerator), u128::from(self.variance.denominator));
        let t = u128::from(self.laplace.t);
        loop {
            let y = self.laplace.sample(rng);
            // (|y| - sigma²/t)² / 2 sigma² = (|y| d t - n)² / 2 n d t² with sigma² = n/d. The numerator saturates
            // only for |y| beyond 2^20 scales, which comes with probability below e^-(2^20).
            let distance = (u128::from(y.unsigned_abs()) * d * t).abs_diff(n);
            if bernoulli_exp(distance.saturating_mul(distance), 2 * n * d * t * t, rng) {
                return y;
            }
        }
    }

    /// Adds a sample to every value, wrapping.
    pub fn add_to(&self, values: &mut [i64], rng: &mut impl CryptoRng) {
        for value in values {
            *value = value.wrapping_add(self.sample(rng));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::ChaCha12Rng;
    use rand_core::SeedableRng;

    #[test]
    fn uniform_integers_cover_their_range_evenly() {
        let mut rng = ChaCha12Rng::from_seed([7; 32]);
        for bound in [1u128, 2, 3, 10, 64] {
            let mut counts = vec![0u32; bound as usize];
            for _ in 0..20_000 {
                counts[below(bound, &mut rng) as usize] += 1;
            }
            let expected = 20_000.0 / bound as f64;
            assert!(counts.iter().all(|c| (f64::from(*c) - expected).abs() < 5.0 * expected.sqrt() + 1.0));
        }
        let wide = (1u128 << 100) + 12345;
        assert!((0..100).all(|_| below(wide, &mut rng) < wide));
    }

    #[test]
    fn coins_of_an_exponential_have_its_probability() {
        let mut rng = ChaCha12Rng::from_seed([8; 32]);
        for (numerator, denominator) in [(0u128, 1u128), (1, 3), (1, 1), (7, 3), (5, 1)] {
            let heads =
                (0..100_000).filter(|_| bernoulli_exp(numerator, denominator, &mut rng)).count() as f64;
            let p = (-(numerator as f64) / denominator as f64).exp();
            assert!(
                (heads - 1e5 * p).abs() <= 5.0 * (1e5 * p * (1.0 - p)).sqrt(),
                "{numerator}/{denominator}: {heads}"
            );
        }
    }
}
