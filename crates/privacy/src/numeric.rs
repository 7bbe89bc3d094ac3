//! Sums of exponentials and Gaussian tails, without overflow or cancellation.

/// ln of the sum of e^term.
pub(crate) fn log_sum_exp(terms: &[f64]) -> f64 {
    let top = terms.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if top.is_infinite() {
        return top;
    }
    top + terms.iter().map(|term| (term - top).exp()).sum::<f64>().ln()
}

/// ln of the binomial coefficients C(n, 0), ..., C(n, n).
pub(crate) fn ln_binomials(n: u32) -> impl Iterator<Item = f64> {
    let ln_factorial = |k: u32| libm::lgamma(f64::from(k) + 1.0);
    // By C(n, k + 1) = C(n, k) (n - k) / (k + 1) up to the middle, then mirrored; started afresh from the
    // gamma function every 64 terms, so that rounding does not build up.
    let mut values = Vec::with_capacity(n as usize + 1);
    for k in 0..=n / 2 {
        let value = match values.last() {
            Some(last) if k % 64 != 0 => last + (f64::from(n - k + 1) / f64::from(k)).ln(),
            _ => ln_factorial(n) - ln_factorial(k) - ln_factorial(n - k),
        };
        values.push(value);
    }
    (0..=n).map(move |k| values[k.min(n - k) as usize])
}

/// P(Z > z) for a standard Gaussian Z.
pub(crate) fn upper_tail(z: f64) -> f64 {
    0.5 * libm::erfc(z * std::f64::consts::FRAC_1_SQRT_2)
}

/// e^(z²/2) P(Z > z) for z >= 0: the tail without the factor that underflows. By erfc where that is accurate, else by
/// Laplace's continued fraction 1/(z + 1/(z + 2/(z + 3/(z + ...)))) / sqrt(2 pi).
pub(crate) fn scaled_upper_tail(z: f64) -> f64 {
    if z < 8.0 {
        return upper_tail(z) * (0.5 * z * z).exp();
    }
    let fraction = (1..=40).rev().map(f64::from).fold(z, |below, k| z + k / below);
    1.0 / (fraction * (2.0 * std::f64::consts::PI).sqrt())
}

/// The z at which P(Z > z) is at most `mass`: from P(Z > z) <= e^(-z²/2) / 2 for z >= 0.
pub(crate) fn tail_bound(mass: f64) -> f64 {
    (-2.0 * (2.0 * mass).ln()).max(1.0).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tails_agree_with_tables() {
        // P(Z > z), Abramowitz and Stegun, table 26.1 and 26.2.
        for (z, tail) in [(0.0, 0.5), (1.0, 0.158655253931457), (3.0, 1.349898031630e-3), (8.0, 6.22096e-16)]
        {
            assert!((upper_tail(z) / tail - 1.0).abs() < 1e-5, "{z}");
            assert!(upper_tail(tail_bound(tail)) <= tail * (1.0 + 1e-12), "{z}");
        }
        // Both branches of the scaled tail meet.
        let (below, above) = (scaled_upper_tail(8.0 - 1e-9), scaled_upper_tail(8.0));
        assert!((below / above - 1.0).abs() < 1e-8);
        assert!(scaled_upper_tail(1e4) > 3.98e-5 && scaled_upper_tail(1e4) < 3.99e-5);
    }

    #[test]
    fn sums_of_exponentials_do_not_overflow() {
        assert!((log_sum_exp(&[1000.0, 1000.0]) - 1000.0 - 2f64.ln()).abs() < 1e-12);
        let row: Vec<f64> = ln_binomials(5).map(|v| v.exp().round()).collect();
        assert_eq!(row, [1.0, 5.0, 10.0, 10.0, 5.0, 1.0]);
        assert!((log_sum_exp(&ln_binomials(1000).collect::<Vec<_>>()) - 1000.0 * 2f64.ln()).abs() < 1e-10);
    }
}
