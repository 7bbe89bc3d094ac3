//! A model that is loaded and ready to run.

use crate::{InferenceError, Prediction};
use medinet_ledger::VerifiedModel;
use medinet_model::onnx::LOGITS_NAME;
use medinet_model::{ClassLabel, InputShape, Preprocessing, TaskSpec};
use medinet_types::{ModelDigest, ModelVersion};
use std::sync::Arc;
use tract_onnx::prelude::*;

/// A network, optimised for one image at a time, with its task's specification.
///
/// Cloning is cheap; clones and references may predict in several threads at once.
#[derive(Debug, Clone)]
pub struct Model {
    plan: Arc<TypedRunnableModel>,
    spec: TaskSpec,
    release: Option<Release>,
    /// Above 0 and finite.
    temperature: f32,
}

/// Where the model stands on the ledger.
#[derive(Debug, Clone, Copy)]
struct Release {
    digest: ModelDigest,
    version: ModelVersion,
    index: u64,
}

impl Model {
    /// Loads a model that was released on the ledger, and checks that its graph fits its task.
    ///
    /// # Errors
    /// When the graph does not load, or its output is not one logit per class.
    pub fn load(verified: &VerifiedModel) -> Result<Self, InferenceError> {
        let release =
            Release { digest: verified.digest(), version: verified.version(), index: verified.index() };
        Self::from_graph(verified.spec(), verified.onnx(), Some(release))
    }

    fn from_graph(spec: &TaskSpec, onnx: &[u8], release: Option<Release>) -> Result<Self, InferenceError> {
        let InputShape { channels, height, width } = spec.network.input;
        let shape = [1, channels as usize, height as usize, width as usize];
        let graph = |error: TractError| InferenceError::Graph { reason: format!("{error:#}") };
        let mut bytes = onnx;
        let model = tract_onnx::onnx().model_for_read(&mut bytes).map_err(graph)?;
        let inputs = model.inputs.len();
        if inputs != 1 {
            let reason = format!("expected one input, got {inputs}");
            return Err(InferenceError::Graph { reason });
        }
        let model = model
            // A graph may have a feature map as a second output; what is not asked for is not computed.
            .with_outputs_by_name([LOGITS_NAME])
            .and_then(|model| model.with_input_fact(0, f32::fact(shape).into()))
            .and_then(|model| model.into_optimized())
            .map_err(graph)?;
        let expected = [1, spec.network.classes.len()];
        let fact = model.output_fact(0).map_err(graph)?;
        let fits = fact.datum_type == f32::datum_type() && fact.shape.as_concrete() == Some(&expected[..]);
        if !fits {
            return Err(InferenceError::Output { expected, got: format!("{fact:?}") });
        }
        let plan = model.into_runnable().map_err(graph)?;
        Ok(Self { plan, spec: spec.clone(), release, temperature: 1.0 })
    }

    /// Divides logits by `temperature` before the softmax (Guo et al. 2017, section 4.2), as it was fitted on a
    /// validation split by `medinet_metrics::fit_temperature`. 1, which is where a model starts, changes nothing; above 1
    /// lowers confidence. The most probable class stays the same.
    ///
    /// # Errors
    /// When it is not above 0 and finite.
    pub fn with_temperature(mut self, temperature: f32) -> Result<Self, InferenceError> {
        if !temperature.is_finite() || temperature <= 0.0 {
            return Err(InferenceError::Temperature { got: temperature.to_string() });
        }
        self.temperature = temperature;
        Ok(self)
    }

    /// What the model says about one image.
    ///
    /// `input` holds `[channels, height, width]` values, row by row, as `medinet_imaging::prepare` makes them.
    ///
    /// # Errors
    /// When the input's length or a value does not fit, or the model gives no numbers.
    pub fn predict(&self, input: &[f32]) -> Result<Prediction, InferenceError> {
        Prediction::from_logits(&self.logits(input)?, self.temperature)
    }

    /// What the model says about each of several images, whose values stand one after the other in `inputs`.
    ///
    /// # Errors
    /// As [`Model::predict`]; also when the values do not make whole images.
    pub fn predict_batch(&self, inputs: &[f32]) -> Result<Vec<Prediction>, InferenceError> {
        inputs.chunks(self.input_len()).map(|input| self.predict(input)).collect()
    }

    /// The network's output before temperature and softmax, one value per class; for fitting a temperature.
    ///
    /// # Errors
    /// When the input's length or a value does not fit. The logits themselves are not checked.
    pub fn logits(&self, input: &[f32]) -> Result<Vec<f32>, InferenceError> {
        let expected = self.input_len();
        if input.len() != expected {
            return Err(InferenceError::InputLength { expected, got: input.len() });
        }
        if let Some(position) = input.iter().position(|value| !value.is_finite()) {
            return Err(InferenceError::InputNotFinite { position });
        }
        self.run(input).map_err(|error| InferenceError::Run { reason: format!("{error:#}") })
    }

    fn run(&self, input: &[f32]) -> TractResult<Vec<f32>> {
        let InputShape { channels, height, width } = self.spec.network.input;
        let shape = [1, channels as usize, height as usize, width as usize];
        let image = Tensor::from_shape(&shape, input)?;
        let outputs = self.plan.run(tvec!(image.into()))?;
        Ok(outputs[0].to_plain_array_view::<f32>()?.iter().copied().collect())
    }

    fn input_len(&self) -> usize {
        let InputShape { channels, height, width } = self.spec.network.input;
        channels as usize * height as usize * width as usize
    }

    /// The task, as it was released with the model.
    #[must_use]
    pub fn spec(&self) -> &TaskSpec {
        &self.spec
    }

    /// Shape of one image.
    #[must_use]
    pub fn input_shape(&self) -> InputShape {
        self.spec.network.input
    }

    /// The classes, in the order of the probabilities.
    #[must_use]
    pub fn classes(&self) -> &[ClassLabel] {
        &self.spec.network.classes
    }

    /// How an image becomes the input.
    #[must_use]
    pub fn preprocessing(&self) -> &Preprocessing {
        &self.spec.preprocessing
    }

    /// The model's digest on the ledger; `None` for one that did not come from there.
    #[must_use]
    pub fn digest(&self) -> Option<ModelDigest> {
        self.release.map(|release| release.digest)
    }

    /// The model's version within its task; `None` for one that did not come from the ledger.
    #[must_use]
    pub fn version(&self) -> Option<ModelVersion> {
        self.release.map(|release| release.version)
    }

    /// Index of the release's record on the ledger; `None` for one that did not come from there.
    #[must_use]
    pub fn ledger_index(&self) -> Option<u64> {
        self.release.map(|release| release.index)
    }

    /// What logits are divided by before the softmax.
    #[must_use]
    pub fn temperature(&self) -> f32 {
        self.temperature
    }
}

/// Loads what no ledger vouches for; see [`dangerous`].
#[derive(Debug, Clone, Copy)]
pub struct Dangerous(());

/// The way around the ledger, for tests and measurements of models that were never released. Nothing that reaches a
/// patient may go through it.
#[must_use]
pub fn dangerous() -> Dangerous {
    Dangerous(())
}

impl Dangerous {
    /// Loads a graph of unknown origin.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn from_onnx(self, spec: &TaskSpec, onnx: &[u8]) -> Result<Model, InferenceError> {
        Model::from_graph(spec, onnx, None)
    }
}
