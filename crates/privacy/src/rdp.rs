//! Rényi differential privacy.

use std::sync::LazyLock;

use crate::numeric::{ln_binomials, log_sum_exp};

/// The orders at which divergences are tracked: dense where epsilons of a few units have their minimum, and up to 4096
/// for very small losses.
pub(crate) fn default_orders() -> &'static [f64] {
    static ORDERS: LazyLock<Vec<f64>> = LazyLock::new(orders);
    &ORDERS
}

fn orders() -> Vec<f64> {
    let mut orders: Vec<f64> = vec![1.02, 1.05];
    orders.extend((1..100).map(|tenth| 1.0 + f64::from(tenth) / 10.0));
    orders.extend((11..64).map(f64::from));
    orders.extend((64..128).step_by(4).map(f64::from));
    orders.extend((128..=512).step_by(32).map(f64::from));
    orders.extend([640.0, 768.0, 1024.0, 1536.0, 2048.0, 4096.0]);
    orders
}

/// Rényi divergences of one step of the Poisson-subsampled Gaussian mechanism, one per order, for both directions of
/// adjacency (Mironov, Talwar, Zhang 2019, theorem 5): ln A_alpha / (alpha - 1), where (section 3.3) A_alpha = E[((1
/// - q) + q mu_1(z) / mu_0(z))^alpha] for z from mu_0 = N(0, sigma²), and mu_1 = N(1, sigma²).
pub(crate) fn sampled_gaussian(q: f64, sigma: f64, orders: &[f64]) -> Vec<f64> {
    if q >= 1.0 {
        return orders.iter().map(|alpha| alpha / (2.0 * sigma * sigma)).collect();
    }
    let integral =
        Integral::new(q, sigma, orders.iter().copied().filter(|a| a.fract() != 0.0).fold(1.0, f64::max));
    let ln_a =
        |alpha: f64| if alpha.fract() == 0.0 { ln_a_integer(q, sigma, alpha) } else { integral.ln_a(alpha) };
    orders.iter().map(|&alpha| (ln_a(alpha) / (alpha - 1.0)).max(0.0)).collect()
}

/// Section 3.3, integer alpha: the binomial sum over k of C(alpha, k) (1 - q)^(alpha - k) q^k e^((k² - k) / 2 sigma²).
fn ln_a_integer(q: f64, sigma: f64, alpha: f64) -> f64 {
    let (ln_q, ln_rest) = (q.ln(), (-q).ln_1p());
    let terms: Vec<f64> = (0u32..)
        .map(f64::from)
        .zip(ln_binomials(alpha as u32))
        .map(|(k, binomial)| {
            binomial + (alpha - k) * ln_rest + k * ln_q + (k * k - k) / (2.0 * sigma * sigma)
        })
        .collect();
    log_sum_exp(&terms)
}

/// The defining integral by the trapezoidal rule, for any order. The paper's series for fractional alpha shrinks only
/// as i^(-alpha - 2), so that small orders need very many terms; the integrand however is analytic in the strip
/// |Im z| < pi sigma² (its base vanishes where e^(i Im z / sigma²) = -1), where the rule's error with step h
/// is about e^(-2 pi d / h) for any d inside the strip: below e^-39 for the step taken here.
struct Integral {
    /// ln of the density ratio, and z² / 2 sigma², at the rule's points.
    points: Vec<(f64, f64)>,
    ln_weight: f64,
}

impl Integral {
    /// For orders up to `largest`.
    fn new(q: f64, sigma: f64, largest: f64) -> Self {
        let step = (sigma / 8.0).min(sigma * sigma / 2.0);
        // The integrand's humps stand at 0 and alpha, each sigma wide; beyond 12 sigma there is less than 1e-31 of
        // them.
        let (low, high) = (-12.0 * sigma, largest + 12.0 * sigma);
        let count = ((high - low) / step).ceil() as u64;
        let step = (high - low) / count as f64;
        let at = |z: f64| (ln_ratio(q, sigma, z), z * z / (2.0 * sigma * sigma));
        let points = (0..=count).map(|i| at(low + step * i as f64)).collect();
        Self { points, ln_weight: (step / (sigma * (2.0 * std::f64::consts::PI).sqrt())).ln() }
    }

    fn ln_a(&self, alpha: f64) -> f64 {
        let exponent = |(ratio, square): &(f64, f64)| alpha * ratio - square;
        let top = self.points.iter().map(exponent).fold(f64::NEG_INFINITY, f64::max);
        top + self.points.iter().map(|p| (exponent(p) - top).exp()).sum::<f64>().ln() + self.ln_weight
    }
}

/// ln((1 - q) + q e^((2 z - 1) / 2 sigma²)), the log density ratio of the mixture over N(0, sigma²) at z.
pub(crate) fn ln_ratio(q: f64, sigma: f64, z: f64) -> f64 {
    let u = (2.0 * z - 1.0) / (2.0 * sigma * sigma);
    if u < 30.0 { (q * u.exp_m1()).ln_1p() } else { u + (q + (1.0 - q) * (-u).exp()).ln() }
}

/// Smallest epsilon over the orders for which the divergences give (epsilon, delta)-differential privacy:
/// epsilon = rho + ln(1 - 1/alpha) - ln(alpha delta) / (alpha - 1)
/// (Canonne, Kamath, Steinke 2020, proposition 12; the same as Balle et al. 2020, theorem 21).
/// Zero where the order-1 bound delta <= sqrt(1 - e^-KL) (Bretagnolle, Huber 1979) already suffices.
pub(crate) fn epsilon(orders: &[f64], divergences: &[f64], delta: f64) -> f64 {
    let at = |(&alpha, &rho): (&f64, &f64)| {
        if delta * delta + (-rho).exp_m1() > 0.0 {
            return 0.0;
        }
        rho + (-1.0 / alpha).ln_1p() - (alpha * delta).ln() / (alpha - 1.0)
    };
    orders.iter().zip(divergences).map(at).fold(f64::INFINITY, f64::min).max(0.0)
}

/// Smallest delta over the orders for which the divergences give (epsilon, delta)-differential privacy; the same
/// propositions solved for delta.
pub(crate) fn delta(orders: &[f64], divergences: &[f64], epsilon: f64) -> f64 {
    let at = |(&alpha, &rho): (&f64, &f64)| {
        let by_order = ((alpha - 1.0) * (rho - epsilon + (-1.0 / alpha).ln_1p()) - alpha.ln()).exp();
        let by_divergence = (-(-rho).exp_m1()).max(0.0).sqrt();
        by_order.min(by_divergence)
    };
    orders.iter().zip(divergences).map(at).fold(1.0, f64::min)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The series of section 3.3 for fractional alpha, with its signs, as the paper has it.
    fn series(q: f64, sigma: f64, alpha: f64) -> f64 {
        let z0 = sigma * sigma * (1.0 / q - 1.0).ln() + 0.5;
        let (mut sum, mut binomial) = (0.0, 1.0f64);
        for i in 0..4000 {
            let (i, j) = (f64::from(i), alpha - f64::from(i));
            let half = |x: f64| 0.5 * libm::erfc(x / (std::f64::consts::SQRT_2 * sigma));
            let lift = |k: f64, tail: f64| {
                if tail > 0.0 { ((k * k - k) / (2.0 * sigma * sigma) + tail.ln()).exp() } else { 0.0 }
            };
            let first = (1.0 - q).powf(j) * q.powf(i) * lift(i, half(i - z0));
            let second = (1.0 - q).powf(i) * q.powf(j) * lift(j, half(z0 - j));
            let term = binomial * (first + second);
            if !term.is_finite() {
                break;
            }
            sum += term;
            binomial *= (alpha - i) / (i + 1.0);
        }
        sum.ln()
    }

    #[test]
    fn integral_matches_the_series_of_the_paper() {
        for (q, sigma, alpha) in
            [(0.01, 1.1, 3.7), (0.1, 2.0, 2.5), (0.5, 4.0, 7.3), (0.2, 1.0, 1.9), (0.9, 0.8, 2.2)]
        {
            let (integral, series) = (Integral::new(q, sigma, alpha).ln_a(alpha), series(q, sigma, alpha));
            assert!((integral / series - 1.0).abs() < 1e-6, "{q} {sigma} {alpha}: {integral} {series}");
        }
    }

    #[test]
    fn integral_matches_the_binomial_sum_at_integers() {
        for q in [1e-4, 1e-2, 0.3, 0.99] {
            for sigma in [0.4, 1.0, 5.0, 20.0] {
                for alpha in [2.0, 3.0, 10.0, 40.0] {
                    let (sum, integral) =
                        (ln_a_integer(q, sigma, alpha), Integral::new(q, sigma, alpha).ln_a(alpha));
                    assert!(
                        (sum - integral).abs() <= 1e-9 * sum.abs() + 1e-13,
                        "{q} {sigma} {alpha}: {sum} {integral}"
                    );
                }
            }
        }
    }

    #[test]
    fn divergence_at_order_two_has_a_closed_form() {
        // A_2 = 1 + q² (e^(1/sigma²) - 1).
        let (q, sigma): (f64, f64) = (0.03, 0.9);
        let exact = (q * q * (1.0 / (sigma * sigma)).exp_m1()).ln_1p();
        assert!((sampled_gaussian(q, sigma, &[2.0])[0] / exact - 1.0).abs() < 1e-10);
    }

    #[test]
    fn epsilon_and_delta_are_each_others_inverse() {
        let orders = default_orders();
        let divergences: Vec<f64> =
            sampled_gaussian(0.02, 1.2, orders).iter().map(|step| 300.0 * step).collect();
        for d in [1e-3, 1e-6, 1e-9] {
            let e = epsilon(orders, &divergences, d);
            assert!((delta(orders, &divergences, e) / d - 1.0).abs() < 1e-9);
        }
    }
}
