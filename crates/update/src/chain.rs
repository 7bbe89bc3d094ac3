//! The models of a task on their way down: each a small delta to the one before, and whoever missed some catches up.
//!
//! The aggregator quantizes `stepped + owed - held` (see [`encode_model_delta`]), where `held` is the model that all parties have, `stepped` what the
//! server's step made of it, and `owed` what the last delta lost. The new model *is* `held` plus the decoded delta: every party, the aggregator
//! first, computes it from the same bytes to the same bits, and it is this model that is named, signed, recorded, trained from and released.
//! What the delta lost is owed to the next one, so losses do not add up (Seide et al. 2014; for both directions at once Tang et al. 2019,
//! DoubleSqueeze): after any number of rounds all models together are off by what one delta loses, a hundredth of its energy at 4 bits.
//!
//! The first model of a chain goes down whole, and so does the newest to a site that the chain no longer reaches, or that would need more bytes in deltas.

use crate::downlink::{EncodedModelDelta, apply_model_delta, encode_model_delta};
use crate::error::UpdateError;
use crate::parameters::{self, fingerprint};
use medinet_types::Digest;
use std::collections::VecDeque;

/// The aggregator's end of the way down. Holds two vectors of the network's length, and deltas of less than one.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelChain {
    bits: u8,
    held: Vec<f32>,
    owed: Vec<f32>,
    /// Oldest first: the fingerprint of the base, and the delta.
    links: VecDeque<(Digest, Vec<u8>)>,
}

/// What a site needs to have the newest model.
#[derive(Debug, Clone, PartialEq)]
pub enum CatchUp<'a> {
    /// Nothing.
    Nothing,
    /// These deltas, in this order, for [`follow`].
    Deltas(Vec<&'a [u8]>),
    /// The model, whole.
    Snapshot(&'a [f32]),
}

impl ModelChain {
    /// Starts with a model that all get whole.
    ///
    /// # Errors
    /// When `bits` is not 1 to 8.
    pub fn start(model: Vec<f32>, bits: u8) -> Result<Self, UpdateError> {
        if !(1..=8).contains(&bits) {
            return Err(UpdateError::Malformed { what: "1 to 8 bits" });
        }
        Ok(Self { bits, owed: vec![0.0; model.len()], held: model, links: VecDeque::new() })
    }

    /// The newest model, as every party holds it.
    #[must_use]
    pub fn held(&self) -> &[f32] {
        &self.held
    }

    /// Adds a model: what the server's step made of [`Self::held`], as far as the bits let through. Gives the delta that goes down; its
    /// `parameters` are the new [`Self::held`].
    ///
    /// # Errors
    /// When the length differs or a value is not finite; the chain is then as it was.
    pub fn advance(&mut self, stepped: &[f32]) -> Result<EncodedModelDelta, UpdateError> {
        if stepped.len() != self.held.len() {
            return Err(UpdateError::Length { expected: self.held.len(), got: stepped.len() });
        }
        let wanted: Vec<f32> = stepped.iter().zip(&self.owed).map(|(new, owed)| new + owed).collect();
        let encoded = encode_model_delta(&self.held, &wanted, self.bits)?;
        self.owed = wanted.iter().zip(&encoded.parameters).map(|(wanted, got)| wanted - got).collect();
        self.links.push_back((fingerprint(&self.held), encoded.bytes.clone()));
        self.held.clone_from(&encoded.parameters);
        // Deltas that are together no shorter than the model are never sent.
        let mut bytes: usize = self.links.iter().map(|(_, delta)| delta.len()).sum();
        while bytes >= 4 * self.held.len()
            && let Some((_, dropped)) = self.links.pop_front()
        {
            bytes -= dropped.len();
        }
        Ok(encoded)
    }

    /// What a site needs that has a model of this [`model_fingerprint`], or none.
    #[must_use]
    pub fn catch_up(&self, has: Option<&Digest>) -> CatchUp<'_> {
        let Some(has) = has else { return CatchUp::Snapshot(&self.held) };
        if *has == fingerprint(&self.held) {
            return CatchUp::Nothing;
        }
        match self.links.iter().rposition(|(base, _)| base == has) {
            Some(first) => {
                CatchUp::Deltas(self.links.iter().skip(first).map(|(_, delta)| delta.as_slice()).collect())
            }
            None => CatchUp::Snapshot(&self.held),
        }
    }

    /// What the last delta lost, for the aggregator's disk; with the newest model it is enough to go on by [`Self::resume`].
    #[must_use]
    pub fn owed_bytes(&self) -> Vec<u8> {
        parameters::encode(&self.owed)
    }

    /// Goes on after a restart. Sites that missed deltas from before it get the model whole.
    ///
    /// # Errors
    /// When `owed` is damaged or of another length than the model, or `bits` is not 1 to 8.
    pub fn resume(held: Vec<f32>, owed: &[u8], bits: u8) -> Result<Self, UpdateError> {
        let owed = parameters::decode(owed, held.len())?;
        Ok(Self { owed, ..Self::start(held, bits)? })
    }
}

/// Names the parameters that a party holds, bit by bit.
#[must_use]
pub fn model_fingerprint(parameters: &[f32]) -> Digest {
    fingerprint(parameters)
}

/// A site's end: the newest model, from the one that it has and the deltas of [`ModelChain::catch_up`].
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

    /// Ten rounds at 4 bits, with the model that no bits would have cost beside them.
    fn chain() -> (ModelChain, Vec<Vec<f32>>, Vec<f32>) {
        let start = step(&vec![0.0; LENGTH], 0);
        let mut chain = ModelChain::start(start.clone(), 4).unwrap();
        let (mut models, mut exact) = (vec![start.clone()], start);
        for round in 1..=10 {
            exact = step(&exact, round);
            let encoded = chain.advance(&step(chain.held(), round)).unwrap();
            assert!(encoded.bytes.len() * 8 < 4 * LENGTH, "{}", encoded.bytes.len());
            models.push(encoded.parameters);
        }
        (chain, models, exact)
    }

    #[test]
    fn what_is_lost_is_owed_and_does_not_add_up() {
        let (chain, _, exact) = chain();
        let one_step = distance(&step(&exact, 11), &exact);
        // A tenth of a step's length is lost in one delta of 4 bits; without what is owed it would be sqrt(10) times that.
        let missing = distance(chain.held(), &exact);
        assert!(missing < 0.16 * one_step, "{missing} of {one_step}");
        assert!((missing - distance(&chain.owed, &vec![0.0; LENGTH])).abs() < 1e-4);
    }

    #[test]
    fn sites_catch_up_to_the_same_bits_from_wherever_they_are() {
        let (chain, models, _) = chain();
        let newest = models.last().unwrap();
        assert_eq!(chain.held(), newest);
        assert_eq!(chain.catch_up(Some(&model_fingerprint(newest))), CatchUp::Nothing);
        assert_eq!(chain.catch_up(None), CatchUp::Snapshot(newest));
        assert_eq!(chain.catch_up(Some(&Digest::of(b"other"))), CatchUp::Snapshot(newest));
        let mut whole = 0;
        for (missed, model) in (1..).zip(models.iter().rev().skip(1)) {
            match chain.catch_up(Some(&model_fingerprint(model))) {
                CatchUp::Deltas(deltas) => {
                    assert_eq!(deltas.len(), missed);
                    assert!(deltas.iter().map(|delta| delta.len()).sum::<usize>() < 4 * LENGTH);
                    assert_eq!(&follow(model, deltas).unwrap(), newest);
                }
                other => {
                    assert_eq!(other, CatchUp::Snapshot(newest));
                    whole += 1;
                }
            }
        }
        // Eight deltas or so are as long as the model: who missed more gets that.
        assert!((1..=3).contains(&whole), "{whole}");
    }

    #[test]
    fn deltas_on_the_wrong_model_or_in_the_wrong_order_are_refused() {
        let (chain, models, _) = chain();
        let model = &models[8];
        let CatchUp::Deltas(deltas) = chain.catch_up(Some(&model_fingerprint(model))) else {
            panic!("two deltas are shorter than the model")
        };
        assert_eq!(follow(model, deltas.iter().rev().copied()), Err(UpdateError::OtherParameters));
        assert_eq!(follow(&models[7], deltas), Err(UpdateError::OtherParameters));
    }

    #[test]
    fn a_chain_goes_on_after_a_restart_to_the_same_bits() {
        let (mut chain, _, _) = chain();
        let mut resumed = ModelChain::resume(chain.held().to_vec(), &chain.owed_bytes(), 4).unwrap();
        let next = step(chain.held(), 11);
        assert_eq!(resumed.advance(&next).unwrap(), chain.advance(&next).unwrap());
        assert!(ModelChain::resume(vec![0.0; 3], &chain.owed_bytes(), 4).is_err());
    }

    #[test]
    fn what_does_not_fit_leaves_the_chain_as_it_was() {
        let mut chain = ModelChain::start(vec![0.0; 4], 4).unwrap();
        let before = chain.clone();
        assert!(chain.advance(&[0.0; 3]).is_err());
        assert!(chain.advance(&[0.0, f32::NAN, 0.0, 0.0]).is_err());
        assert_eq!(chain, before);
        assert!(ModelChain::start(vec![], 0).is_err() && ModelChain::start(vec![], 9).is_err());
    }
}
