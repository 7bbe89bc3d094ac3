//! A manifest's layers spelled out, so that the parameter layout, the burn module and the ONNX graph are
//! three readings of one description.

use crate::manifest::{Body, NetworkManifest, Stem};

/// Added to the variance of each group before the square root (Wu & He 2018, eq. 2).
pub(crate) const NORM_EPSILON: f32 = 1e-5;

/// A convolution without bias, its padding `kernel / 2` on each side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Conv {
    /// Name of the layer; its one parameter is `<name>.weight`, `[outputs, inputs, kernel, kernel]`.
    pub(crate) name: String,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) kernel: usize,
    pub(crate) stride: usize,
}

impl Conv {
    pub(crate) fn padding(&self) -> usize {
        self.kernel / 2
    }
}

/// A convolution and the group normalisation after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConvNorm {
    pub(crate) conv: Conv,
    /// Name of the normalisation; its parameters are `<name>.weight` and `<name>.bias`, `[outputs]` each.
    pub(crate) norm: String,
}

/// `relu(second(relu(first(x))) + shortcut(x))`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) first: ConvNorm,
    pub(crate) second: ConvNorm,
    /// None is the identity.
    pub(crate) shortcut: Option<ConvNorm>,
}

/// All layers in the order of the forward pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Architecture {
    pub(crate) stem: ConvNorm,
    /// A 3x3 max pooling with stride 2 and padding 1 after the stem.
    pub(crate) stem_pool: bool,
    pub(crate) blocks: Vec<Block>,
    /// Groups of each normalisation.
    pub(crate) groups: usize,
    /// Channels of the last block.
    pub(crate) features: usize,
    pub(crate) classes: usize,
}

/// Name of the last, linear layer: `<name>.weight` is `[classes, features]`, `<name>.bias` is `[classes]`.
pub(crate) const HEAD: &str = "fc";

fn conv_norm(name: String, norm: String, shape: [usize; 2], kernel: usize, stride: usize) -> ConvNorm {
    let [inputs, outputs] = shape;
    ConvNorm { conv: Conv { name, inputs, outputs, kernel, stride }, norm }
}

impl Architecture {
    /// The layers of a manifest that has passed [`NetworkManifest::check`].
    pub(crate) fn of(manifest: &NetworkManifest) -> Self {
        let Body::ResNet { stem, stage_channels, stage_blocks, groups } = &manifest.body;
        let (kernel, stride, stem_pool) = match stem {
            Stem::Stride1 => (3, 1, false),
            Stem::Stride2 => (5, 2, false),
            Stem::Stride4 => (7, 2, true),
        };
        let mut inputs = stage_channels.first().map_or(0, |&c| c as usize);
        let stem = conv_norm(
            "conv1".into(),
            "bn1".into(),
            [manifest.input.channels as usize, inputs],
            kernel,
            stride,
        );
        let mut blocks = Vec::new();
        for (stage, (&outputs, &count)) in stage_channels.iter().zip(stage_blocks).enumerate() {
            let outputs = outputs as usize;
            for block in 0..count {
                let stride = if stage > 0 && block == 0 { 2 } else { 1 };
                let prefix = format!("layer{}.{block}", stage + 1);
                let layer = |n: u32| (format!("{prefix}.conv{n}"), format!("{prefix}.bn{n}"));
                let ((conv1, norm1), (conv2, norm2)) = (layer(1), layer(2));
                let shortcut = (stride != 1 || inputs != outputs).then(|| {
                    let name = format!("{prefix}.downsample");
                    conv_norm(format!("{name}.0"), format!("{name}.1"), [inputs, outputs], 1, stride)
                });
                blocks.push(Block {
                    first: conv_norm(conv1, norm1, [inputs, outputs], 3, stride),
                    second: conv_norm(conv2, norm2, [outputs, outputs], 3, 1),
                    shortcut,
                });
                inputs = outputs;
            }
        }
        Self {
            stem,
            stem_pool,
            blocks,
            groups: *groups as usize,
            features: inputs,
            classes: manifest.classes.len(),
        }
    }

    /// Every convolution with its normalisation, in the order of the parameter layout.
    pub(crate) fn conv_norms(&self) -> impl Iterator<Item = &ConvNorm> {
        let blocks = self.blocks.iter().flat_map(|b| [&b.first, &b.second].into_iter().chain(&b.shortcut));
        std::iter::once(&self.stem).chain(blocks)
    }
}
