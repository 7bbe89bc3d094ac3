//! The steps from a model delta to a quantized one.

use crate::codes::check_finite;
use crate::error::UpdateError;
use crate::parameters;
use crate::plan::CodecPlan;
use crate::quantizer::{Quantized, Rounding};
use crate::rotation::Rotation;
use crate::sealed::Origin;

/// What training changed: trained parameters less base parameters, in canonical order, all finite. Never leaves a site.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelDelta(Vec<f32>);

/// A delta whose L2 norm is at most the plan's clip norm. Never leaves a site.
#[derive(Debug, Clone, PartialEq)]
pub struct ClippedDelta {
    values: Vec<f32>,
    plan: CodecPlan,
    norm_before: f32,
}

/// A delta on its grid, or plain float32 where the plan says so; ready to be sealed.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizedDelta {
    pub(crate) values: Values,
    pub(crate) plan: CodecPlan,
    pub(crate) origin: Origin,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Values {
    Raw(Vec<f32>),
    Quantized(Quantized),
}

/// What quantization lost so far and the next update repays (Seide et al. 2014); a site keeps one per task.
///
/// Keep the old state until the aggregator has accepted the update: when the update does not count, go on from the old state.
#[derive(Debug, Clone, PartialEq)]
pub struct ErrorFeedback {
    residual: Vec<f32>,
}

pub(crate) fn norm_of(values: &[f32]) -> f64 {
    values.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt()
}

/// Scales `values` so that their norm is at most `limit`.
pub(crate) fn scale_to(values: &mut [f32], norm: f64, limit: f32) {
    if norm > f64::from(limit) {
        let factor = f64::from(limit) / norm;
        for value in values {
            *value = (f64::from(*value) * factor) as f32;
        }
    }
}

impl ModelDelta {
    /// Takes a delta.
    ///
    /// # Errors
    /// When a value is not finite.
    pub fn new(values: Vec<f32>) -> Result<Self, UpdateError> {
        check_finite(&values)?;
        Ok(Self(values))
    }

    /// `trained - base`, parameter by parameter.
    ///
    /// # Errors
    /// When the lengths differ, or a difference is not finite.
    pub fn between(base: &[f32], trained: &[f32]) -> Result<Self, UpdateError> {
        if base.len() != trained.len() {
            return Err(UpdateError::Length { expected: base.len(), got: trained.len() });
        }
        Self::new(trained.iter().zip(base).map(|(t, b)| t - b).collect())
    }

    /// Number of parameters.
    #[must_use]
    pub fn parameters(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn into_values(self) -> Vec<f32> {
        self.0
    }

    /// The L2 norm.
    #[must_use]
    pub fn norm(&self) -> f32 {
        norm_of(&self.0) as f32
    }

    /// Scales the delta down to the plan's clip norm if it is longer.
    ///
    /// # Errors
    /// When the plan breaks the rules.
    pub fn clip(self, plan: &CodecPlan) -> Result<ClippedDelta, UpdateError> {
        plan.check()?;
        let mut values = self.0;
        let norm = norm_of(&values);
        scale_to(&mut values, norm, plan.clip_norm);
        Ok(ClippedDelta { values, plan: *plan, norm_before: norm as f32 })
    }
}

impl ClippedDelta {
    /// The L2 norm before clipping; for the site's own records.
    #[must_use]
    pub fn norm_before(&self) -> f32 {
        self.norm_before
    }

    /// Whether the delta was longer than the plan allows.
    #[must_use]
    pub fn was_clipped(&self) -> bool {
        self.norm_before > self.plan.clip_norm
    }

    /// Rotates and quantizes by the plan. `seed` drives stochastic rounding (plans without error feedback): fresh
    /// and secret in each round, since whoever knows it learns more of the delta than the codes tell.
    ///
    /// With error feedback the residual is added first and the sum clipped again; what that clipping takes is
    /// dropped, not carried on, so the residual stays bounded. `feedback` is replaced by what this update loses.
    ///
    /// # Errors
    /// When the plan uses error feedback and `feedback` has another length; it is left as it was.
    pub fn quantize(
        self,
        origin: Origin,
        seed: [u8; 32],
        feedback: &mut ErrorFeedback,
    ) -> Result<QuantizedDelta, UpdateError> {
        let Self { mut values, plan, .. } = self;
        if plan.bits == 32 {
            return Ok(QuantizedDelta { values: Values::Raw(values), plan, origin });
        }
        let rotation = Rotation::of_round(&origin.base, origin.round);
        let quantized = if plan.error_feedback {
            feedback.check_length(values.len())?;
            feedback.add_to(&mut values);
            let norm = norm_of(&values);
            scale_to(&mut values, norm, plan.clip_norm);
            let quantized = Quantized::of(values.clone(), plan.bits, &rotation, Rounding::Nearest);
            let decoded = quantized.values(&rotation);
            for (value, decoded) in values.iter_mut().zip(decoded) {
                *value -= decoded;
            }
            feedback.residual = values;
            quantized
        } else {
            let mut quantized = Quantized::of(values, plan.bits, &rotation, Rounding::Stochastic(seed));
            let (norm, limit) = (quantized.norm(), f64::from(plan.encoded_norm_limit()));
            if norm > limit {
                quantized.scale((limit / norm) as f32);
            }
            quantized
        };
        Ok(QuantizedDelta { values: Values::Quantized(quantized), plan, origin })
    }
}

impl ErrorFeedback {
    /// Nothing lost yet.
    #[must_use]
    pub fn new(parameters: usize) -> Self {
        Self { residual: vec![0.0; parameters] }
    }

    pub(crate) fn check_length(&self, parameters: usize) -> Result<(), UpdateError> {
        if self.residual.len() == parameters {
            return Ok(());
        }
        Err(UpdateError::Length { expected: parameters, got: self.residual.len() })
    }

    pub(crate) fn add_to(&self, values: &mut [f32]) {
        for (value, residual) in values.iter_mut().zip(&self.residual) {
            *value += residual;
        }
    }

    pub(crate) fn replace(&mut self, residual: Vec<f32>) {
        self.residual = residual;
    }

    /// The L2 norm of what is still to be repaid.
    #[must_use]
    pub fn norm(&self) -> f32 {
        norm_of(&self.residual) as f32
    }

    /// For the site's own disk; never leaves it.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        parameters::encode(&self.residual)
    }

    /// Reads what [`ErrorFeedback::to_bytes`] wrote.
    ///
    /// # Errors
    /// When the bytes are damaged or hold another number of parameters; start anew with [`ErrorFeedback::new`].
    pub fn from_bytes(bytes: &[u8], parameters: usize) -> Result<Self, UpdateError> {
        Ok(Self { residual: parameters::decode(bytes, parameters)? })
    }
}
