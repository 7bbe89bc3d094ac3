//! The server's side: from the opened sum to the mean delta.

use super::grid::{NORM_TOP, NORM_UNIT, SecureCodecPlan, Shared};
use crate::codes::check_finite;
use crate::error::UpdateError;
use crate::sealed::Origin;

/// What the server knows of a sum beforehand.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SecureExpected<'a> {
    /// Parameters of the task's network.
    pub parameters: usize,
    /// The round's plan.
    pub plan: &'a SecureCodecPlan,
    /// The round's base model and number.
    pub origin: Origin,
    /// How many sites' vectors are in the sum, at least 1.
    pub contributors: u32,
}

/// What a sum says.
#[derive(Debug, Clone, PartialEq)]
pub struct SecureMean {
    /// The mean delta, weighted by training images, in canonical order.
    pub delta: Vec<f32>,
    /// Training images behind it, each site's counted up to the plan's reference.
    pub examples: u64,
    /// Mean over the sites of r (see the module): the L2 norm of the delta before clipping, or that which error feedback makes the grid carry; each counted
    /// up to almost twice the clip norm and rounded up to a 64th of it. What [`SecureCodecPlan::next_clip_norm`] takes.
    pub norm: f32,
}

/// Turns an opened sum into the mean delta. `sum` are its coordinates, as integers and not modulo anything: the ring is wide
/// enough for the cohort.
///
/// The result depends on the integers alone, so that whoever holds the same sum has the same model bit by bit.
///
/// # Errors
/// When the plan breaks the rules, the sum has another length, or holds what no honest sites could have added up to
/// ([`UpdateError::Sum`]): somebody's input was not made by the plan, and the masks do not tell whose.
pub fn decode_sum(
    sum: impl IntoIterator<Item = u32>,
    expected: &SecureExpected<'_>,
) -> Result<SecureMean, UpdateError> {
    let SecureExpected { parameters, plan, origin, contributors } = *expected;
    plan.check()?;
    let sum: Vec<u32> = sum.into_iter().collect();
    let coordinates = plan.coordinates(parameters);
    if sum.len() != coordinates {
        return Err(UpdateError::Length { expected: coordinates, got: sum.len() });
    }
    let largest = u64::from(plan.largest()) * u64::from(contributors);
    if sum.iter().any(|value| u64::from(*value) > largest) {
        return Err(UpdateError::Sum { what: "values of at most the largest code times the sites" });
    }
    let (codes, digits) = sum.split_at(plan.kept(parameters));
    let (count, norm_digits) = digits.split_at(plan.count_digits());
    let (examples, norms) = (number(count, plan), number(norm_digits, plan));
    let contributors = u64::from(contributors);
    if !(contributors.max(1)..=contributors * u64::from(plan.reference_examples)).contains(&examples) {
        return Err(UpdateError::Sum { what: "a count of 1 to the reference for each site" });
    }
    if norms > contributors * u64::from(NORM_TOP) {
        return Err(UpdateError::Sum { what: "a norm of at most 127 for each site" });
    }
    let norm = f64::from(plan.clip_norm) * norms as f64 / (f64::from(NORM_UNIT) * contributors as f64);
    let shared = Shared::of_round(plan, &origin, parameters);
    let scale = plan.step(parameters) / 2.0 * f64::from(plan.reference_examples) / examples as f64;
    let mut delta = vec![0.0f32; parameters];
    for (&index, &code) in shared.kept.iter().zip(codes) {
        // 2 S - m L: both fit, as S <= m L and m L < 2^40.
        let centred = 2 * i64::from(code) - largest as i64;
        delta[index] = (centred as f64 * scale) as f32;
    }
    shared.rotation.undo(&mut delta);
    check_finite(&delta)?;
    Ok(SecureMean { delta, examples, norm: norm as f32 })
}

/// What summed digits in base 2^bits amount to: at most 32 bits of digits of at most 40 bits each.
fn number(digits: &[u32], plan: &SecureCodecPlan) -> u64 {
    (0u32..).zip(digits).map(|(i, digit)| u64::from(*digit) << (i * u32::from(plan.bits))).sum()
}
