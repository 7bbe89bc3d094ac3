//! The Gaussian mechanism without sampling, exactly.

use crate::numeric::{scaled_upper_tail, upper_tail};

/// The delta at `epsilon` of the Gaussian mechanism with noise multiplier `sigma` (Balle and Wang 2018, theorem 8):
/// delta = Phi(1 / 2 sigma - epsilon sigma) - e^epsilon Phi(-1 / 2 sigma - epsilon sigma).
pub(crate) fn delta(sigma: f64, epsilon: f64) -> f64 {
    let (near, far) = (epsilon * sigma - 0.5 / sigma, epsilon * sigma + 0.5 / sigma);
    if near < 0.0 {
        // e^epsilon P(Z > far) = e^(epsilon - far²/2) times the scaled tail; far² / 2 - epsilon = near² / 2.
        return (upper_tail(near) - (-0.5 * near * near).exp() * scaled_upper_tail(far)).clamp(0.0, 1.0);
    }
    ((-0.5 * near * near).exp() * (scaled_upper_tail(near) - scaled_upper_tail(far))).clamp(0.0, 1.0)
}

/// The smallest epsilon at which the Gaussian mechanism has at most `delta`; rounded up.
pub(crate) fn epsilon(sigma: f64, target: f64) -> f64 {
    if delta(sigma, 0.0) <= target {
        return 0.0;
    }
    let mut high = 1.0 / sigma;
    while delta(sigma, high) > target {
        high *= 2.0;
    }
    let mut low = 0.0;
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        if delta(sigma, middle) > target {
            low = middle;
        } else {
            high = middle;
        }
        if high - low <= 1e-12 * high {
            break;
        }
    }
    high
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_delta_agree() {
        for sigma in [0.3, 1.0, 4.0] {
            for epsilon in [0.0, 0.1, 1.0, 3.0] {
                let direct = upper_tail(epsilon * sigma - 0.5 / sigma)
                    - f64::exp(epsilon) * upper_tail(epsilon * sigma + 0.5 / sigma);
                assert!((delta(sigma, epsilon) - direct).abs() < 1e-13, "{sigma} {epsilon}");
            }
        }
    }

    #[test]
    fn epsilon_is_the_smallest() {
        for sigma in [0.01, 0.5, 1.0, 20.0] {
            for target in [1e-9, 1e-5, 1e-2] {
                let e = epsilon(sigma, target);
                assert!(delta(sigma, e) <= target);
                assert!(e == 0.0 || delta(sigma, e * (1.0 - 1e-6)) > target, "{sigma} {target}");
            }
        }
    }
}
