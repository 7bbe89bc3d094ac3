//! Gradients of the loss of one batch, at any parameters: what audits of privacy work on. Training does not use it.

use crate::compute::ComputeDevice;
use burn::tensor::activation::log_softmax;
use burn::tensor::{Tensor, TensorData, TensorReadError};
use medinet_model::network::{Network, join};
use medinet_model::{ModelParameters, NetworkManifest, ParameterError};

/// A few images with their classes.
#[derive(Debug, Clone, Copy)]
pub struct ProbeBatch<'a> {
    /// Normalised images one after another, each `[channels, height, width]` row-major.
    pub images: &'a [f32],
    /// The class of each.
    pub classes: &'a [usize],
}

/// A gradient could not be computed.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The parameters are not this network's.
    #[error(transparent)]
    Parameters(#[from] ParameterError),
    /// Images and classes do not fit together or not the network.
    #[error(
        "expected at least one image, each of {size} values and of a class below {classes}, got {values} values for {images} images"
    )]
    Batch {
        /// Values of an image.
        size: usize,
        /// Classes of the network.
        classes: usize,
        /// Values that came.
        values: usize,
        /// Class indices that came.
        images: usize,
    },
    /// The device failed.
    #[error("the device failed while computing a gradient: {0}")]
    Device(String),
}

impl From<TensorReadError> for ProbeError {
    fn from(error: TensorReadError) -> Self {
        Self::Device(error.to_string())
    }
}

/// The gradient of the batch's mean cross entropy with respect to all parameters, in canonical order.
///
/// # Errors
/// See [`ProbeError`].
pub fn parameter_gradient(
    manifest: &NetworkManifest,
    parameters: &ModelParameters,
    batch: ProbeBatch<'_>,
) -> Result<Vec<f32>, ProbeError> {
    let network = network(manifest, parameters)?;
    let images = images(manifest, batch, &network)?;
    let mut gradients = loss(&network, images, batch.classes).backward();
    let each: Option<Vec<Tensor<1>>> =
        network.parameters().iter().map(|parameter| parameter.grad_remove(&mut gradients)).collect();
    // Every parameter is on the way from the images to the loss.
    let each = each.ok_or_else(|| ProbeError::Device("a parameter got no gradient".to_owned()))?;
    Ok(join(&each)?)
}

/// The gradient of the batch's mean cross entropy with respect to the images' values, in their order.
///
/// # Errors
/// See [`ProbeError`].
pub fn image_gradient(
    manifest: &NetworkManifest,
    parameters: &ModelParameters,
    batch: ProbeBatch<'_>,
) -> Result<Vec<f32>, ProbeError> {
    let network = network(manifest, parameters)?.frozen();
    let images = images(manifest, batch, &network)?.autodiff().require_grad();
    let mut gradients = loss(&network, images.clone(), batch.classes).backward();
    let gradient = images.grad_remove(&mut gradients);
    let gradient = gradient.ok_or_else(|| ProbeError::Device("the images got no gradient".to_owned()))?;
    Ok(gradient.try_into_vec_as::<f32>()?)
}

fn network(manifest: &NetworkManifest, parameters: &ModelParameters) -> Result<Network, ProbeError> {
    // The CPU, so that an audit repeats bit by bit.
    Ok(Network::new(manifest, parameters, &ComputeDevice::cpu().burn().clone().autodiff())?)
}

fn images(
    manifest: &NetworkManifest,
    batch: ProbeBatch<'_>,
    network: &Network,
) -> Result<Tensor<4>, ProbeError> {
    let shape = manifest.input;
    let dims = [shape.channels as usize, shape.height as usize, shape.width as usize];
    let (size, classes) = (dims.iter().product::<usize>(), manifest.classes.len());
    let (values, count) = (batch.images.len(), batch.classes.len());
    if count == 0 || values != size * count || batch.classes.iter().any(|&class| class >= classes) {
        return Err(ProbeError::Batch { size, classes, values, images: count });
    }
    let data = TensorData::new(batch.images.to_vec(), [count, dims[0], dims[1], dims[2]]);
    Ok(Tensor::from_data(data, network.device()))
}

/// Mean cross entropy.
fn loss(network: &Network, images: Tensor<4>, classes: &[usize]) -> Tensor<1> {
    let device = network.device();
    let logits = network.forward(images);
    let [count, width] = logits.dims();
    let mut targets = vec![0.0f32; count * width];
    for (row, &class) in targets.chunks_exact_mut(width).zip(classes) {
        row[class] = -1.0 / count as f32;
    }
    (log_softmax(logits, 1) * Tensor::from_data(TensorData::new(targets, [count, width]), device)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use medinet_model::{Body, InputShape, Stem};

    fn manifest() -> NetworkManifest {
        let body = Body::ResNet {
            stem: Stem::Stride2,
            stage_channels: vec![8, 16],
            stage_blocks: vec![1, 1],
            groups: 8,
        };
        let input = InputShape { channels: 1, height: 28, width: 28 };
        NetworkManifest { input, classes: vec!["a".into(), "b".into()], body }
    }

    fn pictures(count: usize) -> Vec<f32> {
        (0..784 * count).map(|i| ((i * i % 97) as f32 / 48.0 - 1.0) * (1.0 + (i % 5) as f32)).collect()
    }

    fn loss_at(parameters: &ModelParameters, images: &[f32], classes: &[usize]) -> f64 {
        let manifest = manifest();
        let network = network(&manifest, parameters).unwrap();
        let batch = ProbeBatch { images, classes };
        let tensor = super::images(&manifest, batch, &network).unwrap();
        f64::from(loss(&network, tensor, classes).try_into_scalar::<f32>().unwrap())
    }

    #[test]
    fn both_gradients_are_slopes_of_the_loss() {
        let (manifest, classes) = (manifest(), [0usize, 1, 1]);
        let parameters = ModelParameters::initial(&manifest, 3).unwrap();
        let images = pictures(3);
        let batch = ProbeBatch { images: &images, classes: &classes };
        let of_parameters = parameter_gradient(&manifest, &parameters, batch).unwrap();
        let of_images = image_gradient(&manifest, &parameters, batch).unwrap();
        assert_eq!((of_parameters.len(), of_images.len()), (parameters.as_slice().len(), images.len()));
        // Along the gradient itself the slope is its squared norm.
        let check = |gradient: &[f32], at: &dyn Fn(f32) -> f64| {
            let square: f64 = gradient.iter().map(|&g| f64::from(g).powi(2)).sum();
            let step = (0.002 / square.sqrt()) as f32;
            let slope = (at(step) - at(-step)) / (2.0 * f64::from(step));
            assert!((slope / square - 1.0).abs() < 0.02, "{slope} {square}");
        };
        check(&of_parameters, &|step| {
            let moved = parameters.as_slice().iter().zip(&of_parameters).map(|(p, g)| p + step * g).collect();
            loss_at(&ModelParameters::new(&manifest, moved).unwrap(), &images, &classes)
        });
        check(&of_images, &|step| {
            let moved: Vec<f32> = images.iter().zip(&of_images).map(|(p, g)| p + step * g).collect();
            loss_at(&parameters, &moved, &classes)
        });
    }

    #[test]
    fn batches_that_do_not_fit_are_refused() {
        let manifest = manifest();
        let parameters = ModelParameters::initial(&manifest, 3).unwrap();
        let images = pictures(2);
        for (images, classes) in [(&images[..784], &[0usize, 1][..]), (&images, &[0, 2]), (&images[..0], &[])]
        {
            let refused = parameter_gradient(&manifest, &parameters, ProbeBatch { images, classes });
            assert!(matches!(refused, Err(ProbeError::Batch { size: 784, .. })), "{refused:?}");
            let refused = image_gradient(&manifest, &parameters, ProbeBatch { images, classes });
            assert!(matches!(refused, Err(ProbeError::Batch { .. })));
        }
    }
}
