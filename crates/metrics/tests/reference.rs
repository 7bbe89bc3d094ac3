//! Against reference values, computed once with numpy 2.4.6, scipy 1.17.1 and scikit-learn 1.9.1.
//!
//! DeLong's covariances were computed by the definition, from the full matrix of pairwise comparisons
//! (numpy), not by midranks.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use medinet_metrics::{
    CALIBRATION_BINS, Predictions, auroc, auroc_interval, brier_score, delong_test, fit_temperature,
    roc_curve,
};

/// numpy.random.default_rng(7).normal(y * 1.2, 1) and normal(y * 0.5, 1), rounded to one decimal so that ties occur.
const A: [f64; 40] = [
    1.2, 1.5, -0.3, -0.9, -0.5, 0.2, 1.3, 1.3, -0.5, -0.6, 1.7, 1.6, 0.1, -0.9, -0.0, 1.9, -0.1, -0.5, -1.9,
    -1.3, -0.6, 1.0, -1.3, 0.3, 0.2, 1.0, -1.3, -0.5, -0.0, 0.1, -0.3, 0.7, -1.0, -0.8, 1.1, 0.4, 1.2, 0.9,
    -0.6, -0.1,
];
const B: [f64; 40] = [
    0.6, 0.6, -1.2, 0.1, 1.4, -1.0, 1.4, 0.1, -0.6, 2.0, 1.3, -0.7, 0.1, 0.6, -0.2, 1.2, 0.4, 0.7, 1.4, -0.7,
    0.7, 0.0, 0.1, -1.2, -0.6, 0.3, 1.4, 1.1, -1.3, -0.8, 1.1, -1.5, -0.5, -0.1, 1.3, 1.2, 0.2, -0.4, -0.3,
    1.5,
];

fn positive() -> Vec<bool> {
    (0..40).map(|i| i % 5 < 2).collect()
}

/// 24 images of 3 classes.
const LOGITS: [f64; 72] = [
    0.36, -0.46, 0.53, -0.18, 0.7, -1.67, -0.02, -0.67, 2.75, 1.98, -0.04, 1.0, -0.51, 2.58, -0.01, 0.88,
    -1.94, 1.52, -1.53, -3.05, -0.46, -1.35, 1.25, 3.37, -1.25, -0.94, 1.31, 1.74, -0.26, -0.31, 1.05, 1.78,
    -1.55, -0.12, 0.05, -0.58, 1.39, -1.29, 1.46, 0.29, 1.13, -0.89, -0.18, -3.0, -0.7, 1.54, -3.19, 1.27,
    -2.62, 2.14, -1.27, 1.17, 0.2, -1.31, 2.87, 2.16, -0.1, -0.41, 0.76, -1.46, 1.65, -0.81, 0.92, -0.19,
    -0.94, -1.92, 1.89, 0.77, 1.45, 0.02, -1.04, 0.51,
];

fn labels() -> Vec<usize> {
    (0..24).map(|i| i % 3).collect()
}

fn close(got: f64, expected: f64) {
    assert!((got - expected).abs() < 1e-9, "got {got}, expected {expected}");
}

#[test]
fn auroc_with_ties_matches_scikit_learn() {
    // sklearn.metrics.roc_auc_score
    close(auroc(&A, &positive()).unwrap(), 0.804_687_5);
    close(auroc(&B, &positive()).unwrap(), 0.614_583_333_333_333_4);
}

#[test]
fn delong_matches_the_definition() {
    let interval = auroc_interval(&A, &positive()).unwrap();
    close(interval.low, 0.654_276_474_179_889_3);
    close(interval.high, 0.955_098_525_820_110_7);
    let test = delong_test(&A, &B, &positive()).unwrap();
    close(test.difference.estimate, 0.190_104_166_666_666_63);
    close(test.difference.low, 0.190_104_166_666_666_63 - 1.959_963_984_540_054 * 0.132_808_133_749_390_4);
    close(test.z, 1.431_419_607_366_775_5);
    close(test.p_value, 0.152_309_992_255_878_85);
    let same = delong_test(&A, &A, &positive()).unwrap();
    assert_eq!((same.z, same.p_value), (0.0, 1.0));
}

#[test]
fn fast_delong_agrees_with_the_quadratic_one_on_random_scores() {
    let mut state = 1u64;
    let mut draw = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u32
    };
    for _ in 0..50 {
        let positive: Vec<bool> = (0..60).map(|i| i < 2 || (i > 3 && draw() % 3 == 0)).collect();
        let scores: Vec<f64> =
            positive.iter().map(|&p| f64::from(draw() % 12) + f64::from(u8::from(p))).collect();
        let of = |class: bool| -> Vec<f64> {
            scores.iter().zip(&positive).filter(|(_, p)| **p == class).map(|(s, _)| *s).collect()
        };
        let (x, y) = (of(true), of(false));
        let psi = |x: f64, y: f64| if x > y { 1.0 } else { f64::from(u8::from(x == y)) / 2.0 };
        let v10: Vec<f64> =
            x.iter().map(|&x| y.iter().map(|&y| psi(x, y)).sum::<f64>() / y.len() as f64).collect();
        let v01: Vec<f64> =
            y.iter().map(|&y| x.iter().map(|&x| psi(x, y)).sum::<f64>() / x.len() as f64).collect();
        let variance_of_mean = |v: &[f64]| {
            let mean = v.iter().sum::<f64>() / v.len() as f64;
            v.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (v.len() - 1) as f64 / v.len() as f64
        };
        let expected = v10.iter().sum::<f64>() / v10.len() as f64;
        let half = 1.959_963_984_540_054 * (variance_of_mean(&v10) + variance_of_mean(&v01)).sqrt();
        let got = auroc_interval(&scores, &positive).unwrap();
        close(got.estimate, expected);
        close(got.low, (expected - half).max(0.0));
        close(got.high, (expected + half).min(1.0));
    }
}

#[test]
fn the_curve_has_the_area() {
    let points = roc_curve(&A, &positive()).unwrap();
    let area: f64 = points
        .windows(2)
        .map(|w| {
            (w[1].false_positive_rate - w[0].false_positive_rate)
                * f64::midpoint(w[0].true_positive_rate, w[1].true_positive_rate)
        })
        .sum();
    close(area, 0.804_687_5);
    let last = points.last().unwrap();
    assert_eq!((last.false_positive_rate, last.true_positive_rate), (1.0, 1.0));
}

#[test]
fn multiclass_figures_match() {
    let predictions = Predictions::from_logits(3, &LOGITS, labels(), 1.0).unwrap();
    close(predictions.macro_auroc().unwrap(), 0.809_895_833_333_333_4);
    close(predictions.accuracy(), 0.625);
    close(predictions.log_loss(), 0.790_831_582_386_025);
    close(predictions.brier(), 0.473_816_452_570_956_34);
    close(predictions.expected_calibration_error(CALIBRATION_BINS), 0.258_073_808_751_062_56);
    close(predictions.expected_calibration_error(5), 0.076_763_857_990_444_52);
    let bins = predictions.reliability(CALIBRATION_BINS);
    assert_eq!(bins.iter().map(|b| b.images).sum::<u64>(), 24);
}

#[test]
fn temperature_matches_a_bounded_minimisation() {
    // scipy.optimize.minimize_scalar(method="bounded", xatol=1e-12)
    let fit = fit_temperature(3, &LOGITS, &labels()).unwrap();
    assert!((fit.temperature - 1.149_153_771_638_162_6).abs() < 1e-6, "{fit:?}");
    close(fit.loss_before, 0.790_831_582_386_025);
    close(fit.loss_after, 0.786_948_998_530_993_2);
    let scaled = Predictions::from_logits(3, &LOGITS, labels(), fit.temperature).unwrap();
    close(scaled.log_loss(), fit.loss_after);
}

#[test]
fn temperature_stays_in_range_when_all_is_right_or_all_is_wrong() {
    let right = fit_temperature(2, &[5.0, -5.0, -5.0, 5.0], &[0, 1]).unwrap();
    let wrong = fit_temperature(2, &[5.0, -5.0, -5.0, 5.0], &[1, 0]).unwrap();
    assert_eq!((right.temperature, wrong.temperature), (0.05, 20.0));
}

#[test]
fn binary_brier_matches_scikit_learn() {
    // sklearn.metrics.brier_score_loss(y, expit(a - 0.5))
    let probabilities: Vec<f64> = A.iter().map(|a| 1.0 / (1.0 + (0.5 - a).exp())).collect();
    close(brier_score(&probabilities, &positive()).unwrap(), 0.172_796_885_435_417_1);
}

#[test]
fn what_has_no_figure_is_refused() {
    assert!(auroc(&[0.1, 0.2], &[true, true]).is_err(), "one class");
    assert!(auroc(&[0.1], &[true, false]).is_err(), "lengths");
    assert!(auroc(&[0.1, f64::NAN], &[true, false]).is_err(), "not a number");
    assert!(auroc_interval(&[0.1, 0.2, 0.3], &[true, false, false]).is_err(), "one positive has no variance");
    assert!(Predictions::from_probabilities(2, vec![0.5, 0.6], vec![0]).is_err(), "row sums to 1.1");
    assert!(Predictions::from_probabilities(2, vec![1.5, -0.5], vec![0]).is_err(), "outside 0..1");
    assert!(Predictions::from_probabilities(2, vec![0.5, 0.5], vec![2]).is_err(), "no such class");
    assert!(Predictions::from_probabilities(2, vec![], vec![]).is_err(), "no images");
    assert!(Predictions::from_logits(2, &[1.0, 2.0], vec![0], 0.0).is_err(), "temperature 0");
    let one = Predictions::from_probabilities(2, vec![0.5, 0.5], vec![0]).unwrap();
    assert_eq!(one.macro_auroc(), None);
    assert!(one.select(&[1]).is_err());
}
