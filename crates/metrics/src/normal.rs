//! The normal distribution's tails.

/// The 97.5th percentile of the standard normal distribution: half the width of a 95% interval in standard errors.
pub(crate) const Z_95: f64 = 1.959_963_984_540_054;

/// Two-sided tail probability of a standard normal variable: P(|Z| >= |z|) = erfc(|z| / sqrt 2).
pub(crate) fn two_sided_p(z: f64) -> f64 {
    erfc(z.abs() / std::f64::consts::SQRT_2)
}

/// The complementary error function for `x >= 0`: Maclaurin series of erf (Abramowitz & Stegun 7.1.6) below 3,
/// the continued fraction 7.1.14 above, where the series would cancel.
fn erfc(x: f64) -> f64 {
    let gauss = (-x * x).exp();
    if x < 3.0 {
        let (mut term, mut sum, mut n) = (x, x, 0.0);
        while term > sum * 1e-17 {
            n += 1.0;
            term *= 2.0 * x * x / (2.0 * n + 1.0);
            sum += term;
        }
        1.0 - 2.0 / std::f64::consts::PI.sqrt() * gauss * sum
    } else {
        let fraction = (1..=60).rev().fold(x, |tail, k| x + f64::from(k) / 2.0 / tail);
        gauss / (std::f64::consts::PI.sqrt() * fraction)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erfc_matches_scipy() {
        // scipy.special.erfc
        for (x, expected) in [
            (0.0, 1.0),
            (0.5, 0.479_500_122_186_953_5),
            (1.0, 0.157_299_207_050_285_13),
            (2.0, 0.004_677_734_981_047_266),
            (2.9, 4.109_787_809_945_8e-5),
            (3.5, 7.430_983_723_414_128e-7),
            (6.0, 2.151_973_671_249_891_3e-17),
        ] {
            let got = erfc(x);
            assert!(
                (got - expected).abs() <= 1e-11 * expected.max(1e-4),
                "erfc({x}) = {got}, expected {expected}"
            );
        }
        assert!((two_sided_p(Z_95) - 0.05).abs() < 1e-12);
    }
}
