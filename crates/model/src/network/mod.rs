//! The networks in burn.

mod flex;
mod generic;
mod private;

use crate::architecture::{Architecture, Block, ConvNorm};
use crate::layout::{ParameterLayout, TensorRole};
use crate::manifest::NetworkManifest;
use crate::parameters::{ModelParameters, ParameterError};
use burn::tensor::module::max_pool2d;
use burn::tensor::ops::MaxPoolOptions;
use burn::tensor::{Device, Gradients, Tensor, TensorData, TensorReadError};
pub use medinet_kernels::Descent;
pub use private::{PatientGradients, PatientImages};

/// A manifest's network on a device. Its parameters are one flat tensor each, in the canonical order of
/// [`ParameterLayout`], so that an optimizer treats them alike and they leave as they came.
///
/// On a device with autodiff the parameters are leaves that keep their gradients.
pub struct Network {
    architecture: Architecture,
    layout: ParameterLayout,
    device: Device,
    layers: Layers,
    parameters: Vec<Tensor<1>>,
}

/// Which implementation of the layers a device gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layers {
    /// Operations of our own on the CPU.
    Flex,
    /// burn's operations, on any device.
    Generic,
}

impl Network {
    /// Puts a network's parameters on a device.
    ///
    /// # Errors
    /// When the manifest describes no network or the parameters are another network's.
    pub fn new(
        manifest: &NetworkManifest,
        parameters: &ModelParameters,
        device: &Device,
    ) -> Result<Self, ParameterError> {
        let layout = ParameterLayout::of(manifest)?;
        let values = parameters.as_slice();
        if values.len() != layout.len() {
            return Err(ParameterError::Length { expected: layout.len(), got: values.len() });
        }
        let architecture = Architecture::of(manifest);
        let layers = if *device == Device::flex() { Layers::Flex } else { Layers::Generic };
        let mut network =
            Self { architecture, layout, device: device.clone(), layers, parameters: Vec::new() };
        network.set_parameters(split(&network.layout, values, device));
        Ok(network)
    }

    /// The device that the network computes on.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The order and the names of [`Self::parameters`].
    #[must_use]
    pub fn layout(&self) -> &ParameterLayout {
        &self.layout
    }

    /// The parameters, one flat tensor for each tensor of the layout.
    #[must_use]
    pub fn parameters(&self) -> &[Tensor<1>] {
        &self.parameters
    }

    /// Replaces all parameters.
    ///
    /// # Panics
    /// When the tensors are not the layout's: their number and sizes are the caller's contract.
    pub fn set_parameters(&mut self, parameters: Vec<Tensor<1>>) {
        assert_eq!(parameters.len(), self.layout.tensors().len(), "one tensor for each of the layout");
        for (tensor, slot) in parameters.iter().zip(self.layout.tensors()) {
            assert_eq!(tensor.dims(), [slot.len()], "{}", slot.name);
        }
        let autodiff = self.device.is_autodiff();
        let leaf = |tensor: Tensor<1>| if autodiff { tensor.autodiff().require_grad() } else { tensor };
        self.parameters = parameters.into_iter().map(leaf).collect();
    }

    /// Reads all parameters back as one flat vector.
    ///
    /// # Errors
    /// When the device fails.
    pub fn read_parameters(&self) -> Result<Vec<f32>, TensorReadError> {
        join(&self.parameters)
    }

    /// The same network computed with burn's own operations instead of those made for the CPU: the
    /// reference that these are tested and measured against.
    #[must_use]
    pub fn with_generic_layers(self) -> Self {
        Self { layers: Layers::Generic, ..self }
    }

    /// The same network with parameters that keep no gradients: on a device with autodiff only those of the images are computed.
    #[must_use]
    pub fn frozen(self) -> Self {
        let constant = |parameter: Tensor<1>| match self.device.is_autodiff() {
            true => parameter.without_autodiff().autodiff(),
            false => parameter,
        };
        Self { parameters: self.parameters.into_iter().map(constant).collect(), ..self }
    }

    /// One step of gradient descent on the device, with a velocity for each parameter and, for the proximal term, a base.
    /// A parameter without a gradient stays. Weight decay applies to matrices and kernels only: pulling normalisations
    /// towards zero serves nothing.
    ///
    /// # Panics
    /// When there is not one velocity for each parameter.
    pub fn descend(
        &mut self,
        mut gradients: Gradients,
        velocity: &mut Vec<Tensor<1>>,
        base: Option<&[Tensor<1>]>,
        step: &Descent,
    ) {
        let each = self.parameters.iter().map(|parameter| parameter.grad_remove(&mut gradients)).collect();
        self.descend_along(each, velocity, base, step);
    }

    /// [`Self::descend`] along a gradient for each parameter.
    ///
    /// # Panics
    /// When there is not one gradient, if none, and one velocity for each parameter.
    pub fn descend_along(
        &mut self,
        gradients: Vec<Option<Tensor<1>>>,
        velocity: &mut Vec<Tensor<1>>,
        base: Option<&[Tensor<1>]>,
        step: &Descent,
    ) {
        assert_eq!(gradients.len(), self.parameters.len(), "one gradient for each parameter, if none");
        assert_eq!(velocity.len(), self.parameters.len(), "one velocity for each parameter");
        let mut parameters = Vec::with_capacity(self.parameters.len());
        let moving = std::mem::take(&mut self.parameters).into_iter().zip(std::mem::take(velocity));
        for (index, ((parameter, at_speed), gradient)) in moving.zip(gradients).enumerate() {
            let value = parameter.without_autodiff();
            let role = self.layout.tensors()[index].role;
            let decays = matches!(role, TensorRole::ConvWeight | TensorRole::LinearWeight);
            let step = Descent { weight_decay: if decays { step.weight_decay } else { 0.0 }, ..*step };
            let (value, at_speed) = match gradient {
                None => (value, at_speed),
                Some(gradient) => {
                    let base = base.map(|base| &base[index]);
                    match self.layers {
                        Layers::Flex => flex::descend(value, at_speed, gradient, base, &step),
                        Layers::Generic => generic::descend(value, at_speed, gradient, base, &step),
                    }
                }
            };
            parameters.push(value);
            velocity.push(at_speed);
        }
        self.set_parameters(parameters);
    }

    /// Logits `[N, classes]` of preprocessed images `[N, channels, height, width]`.
    #[must_use]
    pub fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        let mut pass = Pass { parameters: self.parameters.iter(), groups: self.architecture.groups };
        let pooled = match self.layers {
            Layers::Flex => pass.on_flex(&self.architecture, images),
            Layers::Generic => pass.anywhere(&self.architecture, images),
        };
        let weight = pass.next().reshape([self.architecture.classes, self.architecture.features]);
        let bias = pass.next().reshape([1, self.architecture.classes]);
        pooled.matmul(weight.transpose()) + bias
    }
}

/// One forward pass, which takes the parameters in the layout's order.
struct Pass<'a> {
    parameters: std::slice::Iter<'a, Tensor<1>>,
    groups: usize,
}

impl Pass<'_> {
    fn next(&mut self) -> Tensor<1> {
        self.parameters.next().expect("layout and network come from one architecture").clone()
    }

    /// The means of the last block's maps, `[N, features]`, from the layers for the CPU.
    fn on_flex(&mut self, architecture: &Architecture, images: Tensor<4>) -> Tensor<2> {
        let conv = &architecture.stem.conv;
        let x = flex::stem(images, self.next(), conv.outputs, conv.kernel, conv.stride);
        let mut x = flex::group_norm(x, self.next(), self.next(), None, self.groups, true);
        if architecture.stem_pool {
            x = flex::max_pool(x);
        }
        for block in &architecture.blocks {
            let first = self.conv_norm_on_flex(&block.first, x.clone(), true);
            let conv = &block.second.conv;
            let second = flex::conv2d(first, self.next(), conv.outputs, conv.kernel, conv.stride);
            let (scale, offset) = (self.next(), self.next());
            let shortcut = match &block.shortcut {
                Some(layer) => self.conv_norm_on_flex(layer, x, false),
                None => x,
            };
            x = flex::group_norm(second, scale, offset, Some(shortcut), self.groups, true);
        }
        flex::mean(x)
    }

    fn conv_norm_on_flex(&mut self, layer: &ConvNorm, x: flex::Features, relu: bool) -> flex::Features {
        let conv = &layer.conv;
        let x = flex::conv2d(x, self.next(), conv.outputs, conv.kernel, conv.stride);
        flex::group_norm(x, self.next(), self.next(), None, self.groups, relu)
    }

    /// The means of the last block's maps, `[N, features]`, from burn's own operations.
    fn anywhere(&mut self, architecture: &Architecture, images: Tensor<4>) -> Tensor<2> {
        let mut x = self.conv_norm(&architecture.stem, images, true);
        if architecture.stem_pool {
            let options = MaxPoolOptions::new([3, 3]).with_stride([2, 2]).with_padding([1, 1]);
            x = max_pool2d(x, options);
        }
        for block in &architecture.blocks {
            x = self.block(block, x);
        }
        let [batch, features, height, width] = x.dims();
        let pooled = x.reshape([batch, features, height * width]).sum_dim(2) / (height * width) as f32;
        pooled.reshape([batch, features])
    }

    fn conv_norm(&mut self, layer: &ConvNorm, x: Tensor<4>, relu: bool) -> Tensor<4> {
        let conv = &layer.conv;
        let weight = self.next().reshape([conv.outputs, conv.inputs, conv.kernel, conv.kernel]);
        let y = generic::conv2d(x, weight, conv.stride, conv.padding());
        generic::group_norm(y, self.next(), self.next(), self.groups, relu)
    }

    fn block(&mut self, block: &Block, x: Tensor<4>) -> Tensor<4> {
        let first = self.conv_norm(&block.first, x.clone(), true);
        let second = self.conv_norm(&block.second, first, false);
        let shortcut = match &block.shortcut {
            Some(layer) => self.conv_norm(layer, x, false),
            None => x,
        };
        generic::add_relu(second, shortcut)
    }
}

/// A flat vector as one tensor per entry of the layout.
///
/// # Panics
/// When the vector is shorter than the layout.
#[must_use]
pub fn split(layout: &ParameterLayout, values: &[f32], device: &Device) -> Vec<Tensor<1>> {
    let tensor = |range: std::ops::Range<usize>| {
        let shape = [range.len()];
        Tensor::from_data(TensorData::new(values[range].to_vec(), shape), device)
    };
    layout.tensors().iter().map(|slot| tensor(slot.range())).collect()
}

/// The inverse of [`split`].
///
/// # Errors
/// When the device fails.
pub fn join(tensors: &[Tensor<1>]) -> Result<Vec<f32>, TensorReadError> {
    let mut values = Vec::new();
    for tensor in tensors {
        values.extend(tensor.clone().try_into_vec_as::<f32>()?);
    }
    Ok(values)
}
