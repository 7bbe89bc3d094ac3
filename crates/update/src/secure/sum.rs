//! The server's side: from the opened sum to the mean delta.

use super::ceiling::Shortened;
use super::grid::{NORM_TOP, NORM_UNIT, SecureCodecPlan, Shared};
use crate::codes::check_finite;
use crate::delta::{norm_of, scale_to};
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
    /// Width in bits of the ring of the sum, 1 to 32. With noise, values are read as signed numbers of that width.
    pub ring_bits: u8,
}

/// What a sum says.
#[derive(Debug, Clone, PartialEq)]
pub struct SecureMean {
    /// The mean delta, weighted by training images, in canonical order.
    pub delta: Vec<f32>,
    /// Training images behind it, each site's counted up to the plan's reference, which is 1 with noise: then it is the number of sites.
    pub examples: u64,
    /// Mean over the sites of r (see the module): the L2 norm of the delta before clipping, or that which error feedback makes the grid carry; each counted
    /// up to almost twice the clip norm and rounded up to a 64th of it. What [`SecureCodecPlan::next_clip_norm`] takes. `None` with noise: no
    /// norm is said, and the clip norm stays.
    pub norm: Option<f32>,
    /// How long the mean was, where that is longer than honest sites make it: somebody in the sum did not follow the plan, and the masks do not
    /// tell who.
    pub shortened: Option<Shortened>,
}

/// Turns an opened sum into the mean delta. `sum` are its coordinates, as integers and not modulo anything: the ring is wide
/// enough for the cohort. With noise they are elements of the ring.
///
/// A mean that is longer than [`SecureCodecPlan::mean_norm_limit`] is scaled down to that, and the result says so. A sum is not refused for it:
/// anybody in it could then end every round.
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
    let SecureExpected { parameters, plan, origin, contributors, .. } = *expected;
    plan.check()?;
    let sum: Vec<u32> = sum.into_iter().collect();
    let coordinates = plan.coordinates(parameters);
    if sum.len() != coordinates {
        return Err(UpdateError::Length { expected: coordinates, got: sum.len() });
    }
    if plan.noise.is_some() {
        return decode_noisy(&sum, expected);
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
    let shortened = shorten(&mut delta, plan.mean_norm_limit(parameters, expected.contributors, examples));
    Ok(SecureMean { delta, examples, norm: Some(norm as f32), shortened })
}

/// Scales a mean down to `limit` if it is longer, and says so.
fn shorten(delta: &mut [f32], limit: f64) -> Option<Shortened> {
    let norm = norm_of(delta);
    if norm <= limit {
        return None;
    }
    let shortened = Shortened { norm: norm as f32, limit: limit as f32 };
    scale_to(delta, norm, shortened.limit);
    Some(shortened)
}

/// The mean of a sum with noise: steps 3 and 4 of [`super::noise`].
fn decode_noisy(sum: &[u32], expected: &SecureExpected<'_>) -> Result<SecureMean, UpdateError> {
    let SecureExpected { parameters, plan, origin, contributors, ring_bits } = *expected;
    let unused = u32::BITS - u32::from(ring_bits.clamp(1, 32));
    let signed: Vec<i32> = sum.iter().map(|value| (*value << unused) as i32 >> unused).collect();
    // Squares below 2^62 and fewer than 2^33 of them are near enough in double precision.
    let square: f64 = signed.iter().map(|&value| f64::from(value).powi(2)).sum();
    let within = square <= plan.noisy_sum_limit(parameters, contributors);
    if !within {
        return Err(UpdateError::Sum { what: "a norm that the sites' noise and clipped deltas reach" });
    }
    let shared = Shared::of_round(plan, &origin, parameters);
    let scale = plan.step(parameters) / f64::from(contributors.max(1));
    let mut delta = vec![0.0f32; parameters];
    for (&index, &value) in shared.kept.iter().zip(&signed) {
        delta[index] = (f64::from(value) * scale) as f32;
    }
    shared.rotation.undo(&mut delta);
    check_finite(&delta)?;
    Ok(SecureMean { delta, examples: contributors.into(), norm: None, shortened: None })
}

/// What summed digits in base 2^bits amount to: at most 32 bits of digits of at most 40 bits each.
fn number(digits: &[u32], plan: &SecureCodecPlan) -> u64 {
    (0u32..).zip(digits).map(|(i, digit)| u64::from(*digit) << (i * u32::from(plan.bits))).sum()
}
