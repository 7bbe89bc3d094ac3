//! From logits to class probabilities.

use crate::InferenceError;
use serde::Serialize;

/// What the model says about one image.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Prediction {
    /// Probability of each class, 0 to 1, in the order of the task's classes; they add up to 1.
    pub probabilities: Vec<f32>,
    /// Index of the most probable class; the first of them on a tie.
    pub class: usize,
    /// Shannon entropy of the probabilities in nats, 0 (certain) to the logarithm of the number of classes.
    pub entropy: f64,
}

impl Prediction {
    /// Softmax of `logits / temperature`, computed in double precision.
    ///
    /// # Errors
    /// When a logit is not finite.
    pub(crate) fn from_logits(logits: &[f32], temperature: f32) -> Result<Self, InferenceError> {
        if let Some(class) = logits.iter().position(|logit| !logit.is_finite()) {
            return Err(InferenceError::OutputNotFinite { class });
        }
        let temperature = f64::from(temperature);
        let mut class = 0;
        for (index, logit) in logits.iter().enumerate() {
            if *logit > logits[class] {
                class = index;
            }
        }
        // The largest is subtracted first, so that no power overflows.
        let top = logits.get(class).copied().map_or(0.0, f64::from);
        let powers: Vec<f64> =
            logits.iter().map(|&logit| ((f64::from(logit) - top) / temperature).exp()).collect();
        let sum: f64 = powers.iter().sum();
        let probabilities: Vec<f64> = powers.iter().map(|power| power / sum).collect();
        // 0 ln 0 is 0 here, its limit; the other terms are not negative and an empty sum of them is -0.
        let entropy = probabilities.iter().filter(|p| **p > 0.0).map(|p| -p * p.ln()).sum::<f64>().max(0.0);
        // Narrowed on purpose: four bytes hold more digits than any probability here has.
        let probabilities = probabilities.into_iter().map(|p| p as f32).collect();
        Ok(Self { probabilities, class, entropy })
    }

    /// Probability of the most probable class, 0 to 1.
    #[must_use]
    pub fn confidence(&self) -> f32 {
        self.probabilities.get(self.class).copied().unwrap_or(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_logits_give_the_logistic_function() {
        let prediction = Prediction::from_logits(&[0.0, 3.0_f32.ln()], 1.0).unwrap();
        assert!((prediction.probabilities[0] - 0.25).abs() < 1e-7);
        assert_eq!((prediction.class, prediction.confidence()), (1, prediction.probabilities[1]));
        let expected = -(0.25_f64 * 0.25_f64.ln() + 0.75 * 0.75_f64.ln());
        assert!((prediction.entropy - expected).abs() < 1e-7, "{}", prediction.entropy);
    }

    #[test]
    fn extreme_logits_neither_overflow_nor_lose_the_sum() {
        let prediction = Prediction::from_logits(&[f32::MAX, f32::MIN, 0.0], 1.0).unwrap();
        assert_eq!((prediction.probabilities, prediction.entropy), (vec![1.0, 0.0, 0.0], 0.0));
        let even = Prediction::from_logits(&[-1e30; 4], 1.0).unwrap();
        assert_eq!((even.probabilities, even.class), (vec![0.25; 4], 0));
        assert!((even.entropy - 4.0_f64.ln()).abs() < 1e-12);
    }

    #[test]
    fn a_temperature_divides_the_logits() {
        let warm = Prediction::from_logits(&[0.0, 4.0], 2.0).unwrap();
        assert_eq!(warm.probabilities, Prediction::from_logits(&[0.0, 2.0], 1.0).unwrap().probabilities);
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let refused = Prediction::from_logits(&[0.0, bad], 1.0).unwrap_err();
            assert_eq!(refused, InferenceError::OutputNotFinite { class: 1 });
        }
    }
}
