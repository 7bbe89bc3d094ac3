//! The canonical order of a network's parameters in one flat vector.

use crate::architecture::{Architecture, HEAD};
use crate::manifest::{ManifestError, NetworkManifest};

/// Most parameters that a network may have: 64 million, 256 MB as float32, about five times ResNet-18.
pub const MAX_PARAMETERS: usize = 64_000_000;

/// What a tensor of parameters does, which decides how it starts and whether weight decay applies to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TensorRole {
    /// A convolution's kernel, `[outputs, inputs, height, width]`.
    ConvWeight,
    /// The scale of a group normalisation, `[channels]`.
    NormWeight,
    /// The offset of a group normalisation, `[channels]`.
    NormBias,
    /// The last layer's matrix, `[classes, features]`.
    LinearWeight,
    /// The last layer's offset, `[classes]`.
    LinearBias,
}

/// One tensor's place in the flat vector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSlot {
    /// The name that torchvision's ResNet gives the same tensor, so that its weights can be matched.
    pub name: String,
    /// Sizes, outermost first; row-major.
    pub shape: Vec<usize>,
    /// Index of the first element in the flat vector.
    pub offset: usize,
    /// What the tensor does.
    pub role: TensorRole,
}

impl TensorSlot {
    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Never true: no tensor of a checked manifest is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The tensor's elements in the flat vector.
    #[must_use]
    pub fn range(&self) -> std::ops::Range<usize> {
        self.offset..self.offset + self.len()
    }
}

/// The canonical order of a network's parameters: a function of the manifest alone. Digests, deltas and
/// released models depend on it, so a change needs a new [`ParameterLayout::VERSION`].
///
/// Stem, then the blocks stage by stage (first convolution and its normalisation, second, shortcut), then
/// the last layer; within a layer the weight before the bias.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParameterLayout {
    tensors: Vec<TensorSlot>,
    len: usize,
}

impl ParameterLayout {
    /// Version of the order and of the names; part of every model digest.
    pub const VERSION: u32 = 1;

    /// The layout of a manifest's network.
    ///
    /// # Errors
    /// When the manifest describes no network that can be built or one of more than
    /// [`MAX_PARAMETERS`].
    pub fn of(manifest: &NetworkManifest) -> Result<Self, ManifestError> {
        manifest.check()?;
        let architecture = Architecture::of(manifest);
        let mut layout = Self { tensors: Vec::new(), len: 0 };
        for layer in architecture.conv_norms() {
            let conv = &layer.conv;
            let kernel = vec![conv.outputs, conv.inputs, conv.kernel, conv.kernel];
            layout.push(format!("{}.weight", conv.name), kernel, TensorRole::ConvWeight);
            layout.push(format!("{}.weight", layer.norm), vec![conv.outputs], TensorRole::NormWeight);
            layout.push(format!("{}.bias", layer.norm), vec![conv.outputs], TensorRole::NormBias);
        }
        let matrix = vec![architecture.classes, architecture.features];
        layout.push(format!("{HEAD}.weight"), matrix, TensorRole::LinearWeight);
        layout.push(format!("{HEAD}.bias"), vec![architecture.classes], TensorRole::LinearBias);
        if layout.len > MAX_PARAMETERS {
            return Err(ManifestError::new("body", "a network of at most 64 million parameters", layout.len));
        }
        Ok(layout)
    }

    fn push(&mut self, name: String, shape: Vec<usize>, role: TensorRole) {
        let slot = TensorSlot { name, shape, offset: self.len, role };
        self.len += slot.len();
        self.tensors.push(slot);
    }

    /// The tensors in canonical order, without gaps.
    #[must_use]
    pub fn tensors(&self) -> &[TensorSlot] {
        &self.tensors
    }

    /// Elements of the flat vector.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never true: every network has parameters.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{Body, InputShape, Stem};

    fn classes() -> Vec<String> {
        vec!["normal".into(), "pneumonia".into()]
    }

    fn input(side: u32) -> InputShape {
        InputShape { channels: 3, height: side, width: side }
    }

    #[test]
    fn resnet18_has_torchvisions_tensors() {
        // torchvision.models.resnet18(num_classes=1000) has 11,689,512 parameters; two classes need
        // 998 * 513 fewer. Group normalisation has as many parameters as batch normalisation.
        let layout = ParameterLayout::of(&NetworkManifest::resnet18(input(224), classes())).unwrap();
        assert_eq!(layout.len(), 11_689_512 - 998 * 513);
        assert_eq!(layout.tensors().len(), 62);
        let find = |name: &str| layout.tensors().iter().find(|t| t.name == name).map(|t| t.shape.clone());
        assert_eq!(find("conv1.weight"), Some(vec![64, 3, 7, 7]));
        assert_eq!(find("layer2.0.downsample.0.weight"), Some(vec![128, 64, 1, 1]));
        assert_eq!(find("layer4.1.bn2.bias"), Some(vec![512]));
        assert_eq!(find("fc.weight"), Some(vec![2, 512]));
        assert_eq!(find("layer1.0.downsample.0.weight"), None);
    }

    #[test]
    fn tensors_fill_the_vector_without_gaps() {
        let layout = ParameterLayout::of(&NetworkManifest::small(input(28), classes())).unwrap();
        let mut next = 0;
        for tensor in layout.tensors() {
            assert_eq!(tensor.offset, next, "{}", tensor.name);
            next = tensor.range().end;
        }
        assert_eq!(next, layout.len());
        assert_eq!(layout.tensors().last().map(|t| t.name.as_str()), Some("fc.bias"));
    }

    #[test]
    fn a_network_too_large_for_an_appliance_is_refused() {
        let body = Body::ResNet {
            stem: Stem::Stride4,
            stage_channels: vec![1024; 6],
            stage_blocks: vec![8; 6],
            groups: 32,
        };
        let manifest = NetworkManifest { input: input(224), classes: classes(), body };
        let error = ParameterLayout::of(&manifest).unwrap_err().to_string();
        assert!(error.contains("64 million"), "{error}");
    }
}
