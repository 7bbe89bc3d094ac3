//! The models of a task on their way down: each a small delta to the one before, and whoever missed some catches up.
//!
//! The aggregator quantizes `stepped + owed - held` (see [`encode_model_delta`]), where `held` is the model that all parties have, `stepped` what the
//! server's step made of it, and `owed` what the last delta lost. The new model *is* `held` plus the decoded delta: every party, the aggregator
//! first, computes it from the same bytes to the same bits, and it is this model that is named, signed, recorded, trained from and released.
//! What the delta lost is owed to the next one, so losses do not add up (Seide et al. 2014; for both directions at once Tang et al. 2019,
//! DoubleSqueeze): after any number of rounds all models together are off by what one delta loses, a hundredth of its energy at 4 bits.
//!
//! The first model of a chain goes down whole, and so does the newest to a site that the deltas at hand do not reach, or that would need more bytes in deltas.

use crate::downlink::{EncodedModelDelta, apply_model_delta, encode_model_delta};
use crate::error::UpdateError;
use crate::parameters;

/// What the deltas so far have lost together, and the next model repays: a vector of the network's length.
#[derive(Debug, Clone, PartialEq)]
pub struct Owed(Vec<f32>);

impl Owed {
    /// Nothing: a chain begins, with a model of so many parameters that all get whole.
    #[must_use]
    pub fn nothing(parameters: usize) -> Self {
        Self(vec![0.0; parameters])
    }

    /// The next model: what the server's step made of `held`, as far as `bits`, 1 to 8 per parameter, let through. Gives the delta that goes
    /// down; its `parameters` are the model that all hold from then on.
    ///
    /// # Errors
    /// When a length differs, a value is not finite or `bits` is not 1 to 8; what is owed is then as it was.
    pub fn advance(
        &mut self,
        held: &[f32],
        stepped: &[f32],
        bits: u8,
    ) -> Result<EncodedModelDelta, UpdateError> {
        let wanted = self.with(stepped)?;
        let encoded = encode_model_delta(held, &wanted, bits)?;
        self.0 = wanted.iter().zip(&encoded.parameters).map(|(wanted, got)| wanted - got).collect();
        Ok(encoded)
    }

    /// The next model where it goes down whole: what the server's step made, and all that is owed, at once.
    ///
    /// # Errors
    /// When the lengths differ.
    pub fn repay(self, stepped: &[f32]) -> Result<Vec<f32>, UpdateError> {
        self.with(stepped)
    }

    fn with(&self, stepped: &[f32]) -> Result<Vec<f32>, UpdateError> {
        if stepped.len() != self.0.len() {
            return Err(UpdateError::Length { expected: self.0.len(), got: stepped.len() });
        }
        Ok(stepped.iter().zip(&self.0).map(|(new, owed)| new + owed).collect())
    }

    /// For the aggregator's disk, bit for bit. With the newest model it is all that is needed to go on after a restart.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        parameters::encode(&self.0)
    }

    /// Reads what [`Self::to_bytes`] wrote for a network of so many parameters; allocates for these, whatever the bytes claim.
    ///
    /// # Errors
    /// When it is damaged, of another length, or holds a value that is not finite.
    pub fn from_bytes(bytes: &[u8], parameters: usize) -> Result<Self, UpdateError> {
        parameters::decode(bytes, parameters).map(Self)
    }
}

/// A site's end: the newest model, from one that it has and the deltas that lead from there, oldest first. None of them can be left out or taken
/// twice: each names the model that it starts from and the one that it makes, bit by bit.
///
/// # Errors
/// As [`apply_model_delta`] at the first delta that does not fit; fetch the model whole then.
pub fn follow<'a>(base: &[f32], deltas: impl IntoIterator<Item = &'a [u8]>) -> Result<Vec<f32>, UpdateError> {
    deltas.into_iter().try_fold(base.to_vec(), |model, delta| apply_model_delta(&model, delta))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::ChaCha8Rng;
    use rand_core::{Rng, SeedableRng};

    const LENGTH: usize = 20_000;

    fn step(model: &[f32], round: u64) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(round);
        let mut draw = || (f64::from(rng.next_u32()) / f64::from(u32::MAX) - 0.5) as f32 * 1e-2;
        model.iter().map(|value| value + draw()).collect()
    }

    fn distance(a: &[f32], b: &[f32]) -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
    }

    /// Ten rounds at 4 bits: all models, the deltas between them, what is owed, and the model that no bits would have cost.
    struct Chain {
        models: Vec<Vec<f32>>,
        deltas: Vec<Vec<u8>>,
        owed: Owed,
        exact: Vec<f32>,
    }

    fn chain() -> Chain {
        let start = step(&vec![0.0; LENGTH], 0);
        let mut chain = Chain {
            models: vec![start.clone()],
            deltas: vec![],
            owed: Owed::nothing(LENGTH),
            exact: start.clone(),
        };
        let mut held = start;
        for round in 1..=10 {
            chain.exact = step(&chain.exact, round);
            let encoded = chain.owed.advance(&held, &step(&held, round), 4).unwrap();
            assert!(encoded.bytes.len() * 8 < 4 * LENGTH, "{}", encoded.bytes.len());
            held = encoded.parameters;
            chain.models.push(held.clone());
            chain.deltas.push(encoded.bytes);
        }
        chain
    }

    #[test]
    fn what_is_lost_is_owed_and_does_not_add_up() {
        let Chain { models, owed, exact, .. } = chain();
        let (newest, next) = (&models[10], step(&models[10], 11));
        let one_step = distance(&step(&exact, 11), &exact);
        // A tenth of a step's length is lost in one delta of 4 bits; without what is owed it would be sqrt(10) times that.
        let missing = distance(newest, &exact);
        assert!(missing < 0.16 * one_step, "{missing} of {one_step}");
        assert!((missing - distance(&owed.0, &vec![0.0; LENGTH])).abs() < 1e-4);
        // A model that goes down whole repays all of it.
        let repaid = owed.repay(&next).unwrap();
        assert!(distance(&repaid, &step(&exact, 11)) < 1e-4 * one_step);
    }

    #[test]
    fn sites_follow_to_the_same_bits_from_wherever_they_are() {
        let Chain { models, deltas, .. } = chain();
        for (missed, model) in models.iter().rev().enumerate() {
            let needed = deltas[deltas.len() - missed..].iter().map(Vec::as_slice);
            assert_eq!(&follow(model, needed).unwrap(), &models[10]);
        }
    }

    #[test]
    fn deltas_on_the_wrong_model_or_in_the_wrong_order_are_refused() {
        let Chain { models, deltas, .. } = chain();
        let two: Vec<&[u8]> = deltas[8..].iter().map(Vec::as_slice).collect();
        let refused = Err(UpdateError::OtherParameters);
        assert_eq!(follow(&models[8], two.iter().rev().copied()), refused);
        assert_eq!(follow(&models[7], two.iter().copied()), refused);
        assert_eq!(follow(&models[8], two[1..].iter().copied()), refused, "one was left out");
        assert_eq!(follow(&models[8], [two[0], two[0], two[1]]), refused, "one was taken twice");
    }

    #[test]
    fn a_chain_goes_on_after_a_restart_to_the_same_bits() {
        let Chain { models, mut owed, .. } = chain();
        let (held, next) = (&models[10], step(&models[10], 11));
        let mut resumed = Owed::from_bytes(&owed.to_bytes(), LENGTH).unwrap();
        assert_eq!(resumed.advance(held, &next, 4).unwrap(), owed.advance(held, &next, 4).unwrap());
        assert_eq!(resumed, owed);
        assert!(Owed::from_bytes(&owed.to_bytes(), 3).is_err());
    }

    #[test]
    fn what_does_not_fit_leaves_what_is_owed_as_it_was() {
        let mut owed = Owed(vec![0.5; 4]);
        let (before, held) = (owed.clone(), [0.0; 4]);
        assert!(owed.advance(&held, &[0.0; 3], 4).is_err());
        assert!(owed.advance(&held, &[0.0, f32::NAN, 0.0, 0.0], 4).is_err());
        assert!(owed.advance(&held, &[0.0; 4], 0).is_err() && owed.advance(&held, &[0.0; 4], 9).is_err());
        assert!(owed.clone().repay(&[0.0; 5]).is_err());
        assert_eq!(owed, before);
    }
}
