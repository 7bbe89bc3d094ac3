//! A site's side: from a delta to integers.

use super::ceiling::REPAID;
use super::grid::{SecureCodecPlan, Shared};
use super::noise::NoisePlan;
use crate::delta::{ErrorFeedback, ModelDelta, norm_of, scale_to};
use crate::error::UpdateError;
use crate::sealed::Origin;
// The same numbers as of `rand_chacha`, from generators that overwrite their state when dropped.
use chacha20::{ChaCha8Rng, ChaCha20Rng};
use medinet_privacy::SiteNoise;
use rand_core::{Rng, SeedableRng};
use zeroize::Zeroizing;

/// A site's summand: codes below 2^bits or, with noise, signed integers. It is as telling as the delta itself and must not leave the site unmasked: there is
/// no way to bytes from here but the one to the site's own disk, and `Debug` prints nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub struct SecureUpdate {
    bits: u8,
    values: Values,
}

#[derive(Clone, PartialEq, Eq)]
enum Values {
    Codes(Vec<u8>),
    /// Modulo 2^32, of which every ring is a quotient.
    Noisy(Vec<i32>),
}

impl std::fmt::Debug for SecureUpdate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SecureUpdate({} coordinates of {} bits)", self.coordinates(), self.bits)
    }
}

/// Written before the values on the site's own disk: codes, a byte each, or integers with noise, four bytes each.
/// 1 and 2 were the same with the rotation of codec 3: what lies on a disk from then is no input of this one.
const FORMAT: u8 = 3;
const FORMAT_NOISY: u8 = 4;

impl SecureUpdate {
    /// Clips, weights, rotates and rounds a delta. `examples` is the number of training images behind it; what is above the
    /// plan's reference does not count. `seed` drives stochastic rounding: fresh and secret in each round, and **the same
    /// for every attempt at one round**, so that two attempts are of one and the same input. With noise it drives that too: it must come from a
    /// cryptographic source, be used once and be kept nowhere; the update itself is what attempts share.
    ///
    /// With error feedback `feedback` is replaced by what this update loses; keep the old state until the round is known to
    /// have counted this site.
    ///
    /// # Errors
    /// When the plan breaks the rules, `examples` is 0, or `feedback` has another length than the delta (it is left as it was).
    pub fn encode(
        delta: ModelDelta,
        plan: &SecureCodecPlan,
        origin: Origin,
        examples: u64,
        seed: [u8; 32],
        feedback: &mut ErrorFeedback,
    ) -> Result<Self, UpdateError> {
        let seed = Zeroizing::new(seed);
        plan.check()?;
        if examples == 0 {
            return Err(UpdateError::Examples { max: u64::MAX, got: 0 });
        }
        let count = u32::try_from(examples).unwrap_or(u32::MAX).min(plan.reference_examples);
        let mut values = delta.into_values();
        if plan.error_feedback {
            feedback.check_length(values.len())?;
        }
        let mut norm = norm_of(&values);
        scale_to(&mut values, norm, plan.clip_norm);
        let weight = f64::from(count) / f64::from(plan.reference_examples);
        values.iter_mut().for_each(|value| *value = (f64::from(*value) * weight) as f32);

        let parameters = values.len();
        let shared = Shared::of_round(plan, &origin, parameters);
        if let Some(noise) = &plan.noise {
            shared.rotation.apply(&mut values);
            return Ok(Self {
                bits: plan.bits,
                values: Values::Noisy(noisy(&shared, plan, noise, &values, &seed)),
            });
        }
        let mut codes = if plan.error_feedback {
            feedback.add_to(&mut values);
            norm = norm.max(norm_of(&values) * plan.fraction(parameters).sqrt());
            shared.rotation.apply(&mut values);
            let codes = nearest(&shared, plan, weight, &mut values);
            shared.rotation.undo(&mut values);
            // Far above what rounding and waiting leave (see the module).
            let limit = 2.0
                * f64::from(plan.clip_norm)
                * (parameters as f64 / shared.kept.len().max(1) as f64).sqrt();
            let lost = norm_of(&values);
            scale_to(&mut values, lost, limit as f32);
            feedback.replace(values);
            codes
        } else {
            shared.rotation.apply(&mut values);
            stochastic(&shared, plan, &values, &seed)
        };
        codes.extend(digits(count, plan.count_digits(), plan));
        codes.extend(digits(plan.norm_code(norm), plan.norm_digits(), plan));
        Ok(Self { bits: plan.bits, values: Values::Codes(codes) })
    }

    /// The integers, in order: the elements of the ring vector. Each is below 2^bits or, with noise, to be taken modulo the ring's 2^w.
    pub fn values(&self) -> impl ExactSizeIterator<Item = u32> + '_ {
        (0..self.coordinates()).map(|index| match &self.values {
            Values::Codes(codes) => u32::from(codes[index]),
            Values::Noisy(values) => values[index].cast_unsigned(),
        })
    }

    /// Bits per coordinate.
    #[must_use]
    pub fn bits(&self) -> u8 {
        self.bits
    }

    /// Coordinates.
    #[must_use]
    pub fn coordinates(&self) -> usize {
        match &self.values {
            Values::Codes(codes) => codes.len(),
            Values::Noisy(values) => values.len(),
        }
    }

    /// For the site's own disk; never leaves it.
    #[must_use]
    pub fn to_site_bytes(&self) -> Vec<u8> {
        match &self.values {
            Values::Codes(codes) => [&[FORMAT, self.bits], codes.as_slice()].concat(),
            Values::Noisy(values) => {
                let values = values.iter().flat_map(|value| value.to_le_bytes());
                [FORMAT_NOISY, self.bits].into_iter().chain(values).collect()
            }
        }
    }

    /// Reads what [`Self::to_site_bytes`] wrote.
    ///
    /// # Errors
    /// When the bytes are not an update of this plan for a network of `parameters`.
    pub fn from_site_bytes(
        bytes: &[u8],
        plan: &SecureCodecPlan,
        parameters: usize,
    ) -> Result<Self, UpdateError> {
        plan.check()?;
        match bytes {
            [FORMAT_NOISY, bits, values @ ..]
                if *bits == plan.bits
                    && plan.noise.is_some()
                    && Some(values.len()) == plan.coordinates(parameters).checked_mul(4) =>
            {
                let (values, _) = values.as_chunks();
                let values = values.iter().map(|bytes| i32::from_le_bytes(*bytes)).collect();
                Ok(Self { bits: plan.bits, values: Values::Noisy(values) })
            }
            [FORMAT, bits, values @ ..]
                if *bits == plan.bits
                    && plan.noise.is_none()
                    && values.len() == plan.coordinates(parameters)
                    && values.iter().all(|value| u32::from(*value) <= plan.largest()) =>
            {
                Ok(Self { bits: plan.bits, values: Values::Codes(values.to_vec()) })
            }
            _ => Err(UpdateError::Malformed { what: "an update of the round's plan" }),
        }
    }
}

/// A number in base 2^bits, the least digit first.
fn digits(number: u32, digits: usize, plan: &SecureCodecPlan) -> impl Iterator<Item = u8> {
    let (bits, largest) = (u32::from(plan.bits), plan.largest());
    (0..digits as u32).map(move |i| ((number >> (i * bits)) & largest) as u8)
}

/// Kept coordinates on the grid, in the mean where they are.
fn stochastic(shared: &Shared, plan: &SecureCodecPlan, rotated: &[f32], seed: &[u8; 32]) -> Vec<u8> {
    let (top, scale) = scale(plan, rotated.len());
    let gain = plan.gain(rotated.len());
    let mut rng = ChaCha8Rng::from_seed(*seed);
    let codes = shared.kept.iter().map(|index| {
        let position = (f64::from(rotated[*index]) * gain * scale + top / 2.0).clamp(0.0, top);
        let below = position.floor();
        let draw = f64::from(rng.next_u32()) * (0.5f64).powi(32);
        (below + f64::from(draw < position - below)) as u8
    });
    codes.collect()
}

/// Kept coordinates in steps, rounded within the norm that [`super::noise`] has, with noise.
fn noisy(
    shared: &Shared,
    plan: &SecureCodecPlan,
    noise: &NoisePlan,
    rotated: &[f32],
    seed: &[u8; 32],
) -> Vec<i32> {
    let scale = plan.gain(rotated.len()) / plan.step(rotated.len());
    let steps: Vec<f32> =
        shared.kept.iter().map(|index| (f64::from(rotated[*index]) * scale) as f32).collect();
    // 20 rounds: what this generator gives protects patients, not only speed.
    let mut rng = ChaCha20Rng::from_seed(*seed);
    let mut integers = plan.distributed(rotated.len(), noise.honest_survivors).round(&steps, &mut rng);
    let cut = plan.cut();
    integers.iter_mut().for_each(|value| *value = (*value).clamp(-cut, cut));
    SiteNoise::new(noise.variance).add_to(&mut integers, &mut rng);
    // Modulo 2^32, as all of this is modulo a divisor of it.
    integers.into_iter().map(|value| value as i32).collect()
}

/// What a coordinate that is not sent keeps of its value for its next turn: see the module.
const MEMORY: f32 = 0.5;

/// Kept coordinates on the nearest level, of at most twice the norm that a site of this weight may have; `rotated` becomes the residual.
fn nearest(shared: &Shared, plan: &SecureCodecPlan, weight: f64, rotated: &mut [f32]) -> Vec<u8> {
    let (top, scale) = scale(plan, rotated.len());
    let norm = shared.kept.iter().map(|index| f64::from(rotated[*index]).powi(2)).sum::<f64>().sqrt();
    let most = REPAID * f64::from(plan.clip_norm) * weight;
    // What is cut stays in the residual and is sent later: after the clip norm has shrunk, a residual is of the larger one.
    let share = if norm > most { most / norm } else { 1.0 };
    let sent = shared.kept.iter().map(|index| {
        let value = f64::from(rotated[*index]);
        let code = (value * share * scale + top / 2.0).round().clamp(0.0, top);
        (code as u8, (value - (code - top / 2.0) / scale) as f32)
    });
    let (codes, lost): (Vec<u8>, Vec<f32>) = sent.unzip();
    rotated.iter_mut().for_each(|value| *value *= MEMORY);
    for (index, lost) in shared.kept.iter().zip(lost) {
        rotated[*index] = lost;
    }
    codes
}

/// L and 1/Delta.
fn scale(plan: &SecureCodecPlan, parameters: usize) -> (f64, f64) {
    (f64::from(plan.largest()), 1.0 / plan.step(parameters))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was measured with seeds stays as it was; and it compiles only while the generators' feature `zeroize` is on.
    #[test]
    fn generators_are_those_of_rand_chacha_and_overwritten() {
        fn overwritten<T: zeroize::ZeroizeOnDrop>() {}
        overwritten::<ChaCha8Rng>();
        overwritten::<ChaCha20Rng>();
        let seed = [9; 32];
        let mut eight = (ChaCha8Rng::from_seed(seed), rand_chacha::ChaCha8Rng::from_seed(seed));
        let mut twenty = (ChaCha20Rng::from_seed(seed), rand_chacha::ChaCha20Rng::from_seed(seed));
        for _ in 0..200 {
            assert_eq!(eight.0.next_u32(), eight.1.next_u32());
            assert_eq!(twenty.0.next_u64(), twenty.1.next_u64());
        }
    }
}
