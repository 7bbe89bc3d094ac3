//! A model's figures on a data set.

use crate::compute::ComputeDevice;
use crate::data::{DataError, TrainingData};
use burn::tensor::{Device, Tensor, TensorData, TensorReadError};
use medinet_metrics::{CALIBRATION_BINS, MetricsError, Predictions};
use medinet_model::network::Network;
use medinet_model::{InputShape, ModelParameters, NetworkManifest, ParameterError};
use serde::{Deserialize, Serialize};

/// Images per forward pass where no gradients are kept.
const BATCH: usize = 64;

/// How good a model is on a set of images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Number of images.
    pub images: u64,
    /// Area under the ROC curve, averaged over the classes; none when a class is absent from the set.
    pub auroc: Option<f64>,
    /// Share of images whose most probable class is theirs.
    pub accuracy: f64,
    /// Mean negative logarithm of the probability given to the true class.
    pub log_loss: f64,
    /// Expected calibration error with 15 bins (Guo et al. 2017).
    pub calibration_error: f64,
}

/// A model could not be evaluated.
#[derive(Debug, thiserror::Error)]
pub enum EvaluationError {
    /// The parameters are not this network's.
    #[error(transparent)]
    Parameters(#[from] ParameterError),
    /// An image could not be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The device failed.
    #[error("the device failed while evaluating: {0}")]
    Device(String),
    /// The set has no such figures: no images, or a class index that the network does not have.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
}

impl From<TensorReadError> for EvaluationError {
    fn from(error: TensorReadError) -> Self {
        Self::Device(error.to_string())
    }
}

/// Logits `[images, classes]`, row by row, of every image of a data set.
///
/// # Errors
/// When parameters and manifest do not fit, an image cannot be read, or the device fails.
pub fn logits(
    manifest: &NetworkManifest,
    parameters: &ModelParameters,
    data: &dyn TrainingData,
    device: &ComputeDevice,
) -> Result<Vec<f32>, EvaluationError> {
    let network = Network::new(manifest, parameters, device.burn())?;
    network_logits(&network, manifest.input, data)
}

/// Logits with a network that is on its device already.
pub(crate) fn network_logits(
    network: &Network,
    shape: InputShape,
    data: &dyn TrainingData,
) -> Result<Vec<f32>, EvaluationError> {
    let mut all = Vec::new();
    let indices: Vec<usize> = (0..data.len()).collect();
    for batch in indices.chunks(BATCH) {
        let images = read_batch(data, batch, shape, network.device(), |_, _| ())?;
        all.extend(network.forward(images).try_into_vec_as::<f32>()?);
    }
    Ok(all)
}

/// A model's figures on a data set.
///
/// # Errors
/// As [`logits`], and when the set is empty or holds classes that the network does not have.
pub fn evaluate(
    manifest: &NetworkManifest,
    parameters: &ModelParameters,
    data: &dyn TrainingData,
    device: &ComputeDevice,
) -> Result<Evaluation, EvaluationError> {
    figures(manifest.classes.len(), &logits(manifest, parameters, data, device)?, data)
}

/// Figures from logits.
pub(crate) fn figures(
    classes: usize,
    logits: &[f32],
    data: &dyn TrainingData,
) -> Result<Evaluation, EvaluationError> {
    let logits: Vec<f64> = logits.iter().map(|&v| f64::from(v)).collect();
    let labels = (0..data.len()).map(|i| data.class(i)).collect();
    let predictions = Predictions::from_logits(classes, &logits, labels, 1.0)?;
    Ok(Evaluation {
        images: data.len() as u64,
        auroc: predictions.macro_auroc(),
        accuracy: predictions.accuracy(),
        log_loss: predictions.log_loss(),
        calibration_error: predictions.expected_calibration_error(CALIBRATION_BINS),
    })
}

/// Reads images into one tensor `[batch, channels, height, width]`, changing each by `change(index, image)`.
pub(crate) fn read_batch(
    data: &dyn TrainingData,
    batch: &[usize],
    shape: InputShape,
    device: &Device,
    change: impl Fn(usize, &mut [f32]),
) -> Result<Tensor<4>, DataError> {
    let dims = [shape.channels as usize, shape.height as usize, shape.width as usize];
    let size: usize = dims.iter().product();
    let mut values = vec![0.0f32; batch.len() * size];
    for (image, &index) in values.chunks_exact_mut(size).zip(batch) {
        data.read(index, image)?;
        change(index, image);
    }
    let shape = [batch.len(), dims[0], dims[1], dims[2]];
    Ok(Tensor::from_data(TensorData::new(values, shape), device))
}
