//! Shamir's secret sharing over Z/l, l = 2^252 + 27742317777372353535851937790883648493 (RFC 8032, section 5.1).
//!
//! Why this field: it is prime, so that sharing is perfectly hiding with every threshold and up to l - 1 shares; an
//! element holds a whole secret of 252 bits, so that a secret is one polynomial and not a list of chunks; and
//! curve25519-dalek's arithmetic in it is vetted and constant-time. Fields of 61 or 127 bits need several polynomials a
//! secret, and GF(2^128) has no arithmetic without secret-dependent tables that is as well examined.

use crate::secret::SecretScalar;
use curve25519_dalek::scalar::Scalar;
use rand_core::CryptoRng;
use zeroize::Zeroize;

/// Shares of `secret` for the recipients at `points` (non-zero, distinct): any `threshold` of them determine it, fewer say
/// nothing about it. Shamir 1979; SS.share of Bonawitz et al. 2017, section 3.1.
pub(crate) fn share(
    secret: &SecretScalar,
    threshold: usize,
    points: impl Iterator<Item = u16>,
    rng: &mut impl CryptoRng,
) -> Vec<SecretScalar> {
    let mut coefficients: Vec<SecretScalar> = (1..threshold).map(|_| SecretScalar::random(rng)).collect();
    // Horner's rule runs from the highest coefficient; the secret is the lowest.
    coefficients.reverse();
    points
        .map(|point| {
            let x = Scalar::from(point);
            let mut y = Scalar::ZERO;
            for coefficient in &coefficients {
                y = (y + coefficient.scalar()) * x;
            }
            let value = SecretScalar::new(y + secret.scalar());
            y.zeroize();
            value
        })
        .collect()
}

/// The secret behind `shares` (point and value), which must be exactly as many as the threshold, at distinct points.
/// Lagrange interpolation at zero; SS.recon of Bonawitz et al. 2017, section 3.1.
pub(crate) fn reconstruct(shares: &[(u16, SecretScalar)]) -> SecretScalar {
    let points: Vec<Scalar> = shares.iter().map(|(point, _)| Scalar::from(*point)).collect();
    let mut denominators: Vec<Scalar> = points
        .iter()
        .enumerate()
        .map(|(i, xi)| {
            let others = points.iter().enumerate().filter(|(j, _)| *j != i);
            // The last factor turns prod(xj) / xi into the product over the others.
            others.map(|(_, xj)| xj - xi).product::<Scalar>() * xi
        })
        .collect();
    Scalar::invert_batch_alloc(&mut denominators);
    let all: Scalar = points.iter().product();
    let mut sum = Scalar::ZERO;
    for ((_, value), inverse) in shares.iter().zip(&denominators) {
        sum += value.scalar() * inverse;
    }
    SecretScalar::new(sum * all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng;

    #[test]
    fn a_worked_example_over_the_integers_holds() {
        // f(x) = 1234 + 166 x + 94 x^2, Wikipedia's example, whose shares stay below any modulus: f(1), f(3), f(6).
        let shares =
            [(1, 1494u64), (3, 2578), (6, 5614)].map(|(x, y)| (x, SecretScalar::new(Scalar::from(y))));
        assert_eq!(reconstruct(&shares).scalar(), &Scalar::from(1234u64));
    }

    #[test]
    fn one_share_less_than_the_threshold_fits_every_secret() {
        let mut rng = ChaCha20Rng::from_seed([1; 32]);
        let secret = SecretScalar::random(&mut rng);
        let shares = share(&secret, 3, [5, 9].into_iter(), &mut rng);
        for other in 0..20u64 {
            // The missing third share that would make any wanted secret exists: interpolate through (0, wanted).
            let wanted = Scalar::from(other);
            let (x1, x2, x3) = (Scalar::from(5u64), Scalar::from(9u64), Scalar::from(7u64));
            let line = |x: Scalar| {
                let l0 = (x - x1) * (x - x2) * (x1 * x2).invert();
                let l1 = x * (x - x2) * (x1 * (x1 - x2)).invert();
                let l2 = x * (x - x1) * (x2 * (x2 - x1)).invert();
                wanted * l0 + shares[0].scalar() * l1 + shares[1].scalar() * l2
            };
            let third = SecretScalar::new(line(x3));
            let all = [(5, shares[0].clone()), (9, shares[1].clone()), (7, third)];
            assert_eq!(reconstruct(&all).scalar(), &wanted);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn any_threshold_of_shares_gives_the_secret(n in 1u16..40, t in 1usize..40, seed in any::<[u8; 32]>()) {
            let t = t.min(usize::from(n));
            let mut rng = ChaCha20Rng::from_seed(seed);
            let secret = SecretScalar::random(&mut rng);
            let shares = share(&secret, t, 1..=n, &mut rng);
            for start in 0..usize::from(n) {
                let some: Vec<_> = (0..t)
                    .map(|i| (start + i) % usize::from(n))
                    .map(|i| (i as u16 + 1, shares[i].clone()))
                    .collect();
                prop_assert!(reconstruct(&some).scalar() == secret.scalar());
                if t > 1 {
                    prop_assert!(reconstruct(&some[1..]).scalar() != secret.scalar());
                }
            }
        }
    }
}
