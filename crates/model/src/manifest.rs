//! The description of a task: its network, its input and its classes.

use medinet_types::TaskId;
use serde::{Deserialize, Serialize};

/// Everything that training and inference must agree on about a task. Travels in each round's
/// announcement, and with each released model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskSpec {
    /// The task.
    pub task: TaskId,
    /// One sentence for people: what the model tells.
    pub purpose: String,
    /// The network and its input shape.
    pub network: NetworkManifest,
    /// How an image becomes the network's input.
    pub preprocessing: Preprocessing,
}

/// A network, from which layout, burn module and ONNX graph are all derived.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkManifest {
    /// The input tensor's shape.
    pub input: InputShape,
    /// The classes, in the order of the output logits; at least two.
    pub classes: Vec<ClassLabel>,
    /// The layers.
    pub body: Body,
}

/// A class's name, as it stands in label files and reports.
pub type ClassLabel = String;

/// Shape of one input image; the network takes `[batch, channels, height, width]`, float32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputShape {
    /// 1 (grey) or 3 (colour, or three neighbouring slices).
    pub channels: u32,
    /// Pixels, 28 to 512.
    pub height: u32,
    /// Pixels, 28 to 512.
    pub width: u32,
}

/// The layers between input and logits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Body {
    /// A residual network (He et al. 2016, basic blocks) with group normalisation (Wu & He 2018):
    /// stem, stages of two-convolution blocks with a projection shortcut where the shape changes,
    /// global average pooling, one linear layer. The first stage keeps the resolution, each later one halves it.
    ResNet {
        /// The layer before the first stage.
        stem: Stem,
        /// Channels of each stage; multiples of `groups`.
        stage_channels: Vec<u32>,
        /// Blocks in each stage; as long as `stage_channels`.
        stage_blocks: Vec<u32>,
        /// Groups of each normalisation.
        groups: u32,
    },
}

/// The layer before the first residual stage; its output has the first stage's channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stem {
    /// A 3x3 convolution with stride 1: inputs of about 28 to 48 pixels.
    Stride1,
    /// A 5x5 convolution with stride 2: inputs of about 48 to 112 pixels.
    Stride2,
    /// A 7x7 convolution with stride 2 and a 3x3 max pooling with stride 2: inputs of 112 pixels and more.
    Stride4,
}

/// How a decoded image becomes the network's input. Applied by the same code in training and inference,
/// in the order of the fields.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preprocessing {
    /// What one input holds of a series.
    pub slices: Slices,
    /// How stored values become display intensities in 0 to 1.
    pub intensity: Intensity,
    /// 3x3 median filter before resizing, against salt-and-pepper noise.
    pub denoise: bool,
    /// Millimetres per pixel to resample to before resizing, where the image states its spacing.
    pub spacing_mm: Option<f32>,
    /// How the image is brought to the input's height and width.
    pub resize: Resize,
    /// What is done to the resized intensities.
    pub normalisation: Normalisation,
}

/// What one input holds of a series of slices or frames. Part of the task and no site's choice: networks trained on single
/// slices and on stacks of them read the same channels differently, and their updates would not add up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Slices {
    /// One slice or frame.
    Single,
    /// The slice and its two neighbours by position as three channels (2.5D); a slice without a neighbour repeats itself in
    /// its place. Colour images are taken alone.
    Neighbours,
}

/// Mapping of modality values to 0 to 1. MONOCHROME1 is inverted after it, always.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Intensity {
    /// The image's own first VOI LUT or window (PS3.3 C.11.2); percentiles 0.5 and 99.5 where it has none.
    Voi,
    /// A fixed window on modality values, for example Hounsfield units.
    Window {
        /// Window centre in modality units.
        center: f32,
        /// Window width in modality units, above 0.
        width: f32,
    },
    /// From one percentile of the image to another.
    Percentile {
        /// 0 to 100.
        low: f32,
        /// 0 to 100, above `low`.
        high: f32,
    },
}

/// How an image is brought to the input size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resize {
    /// Keeps the aspect ratio and fills the rest with black.
    Letterbox,
    /// Fills the input, changing the aspect ratio.
    Stretch,
    /// Keeps the aspect ratio and cuts the longer side about its centre.
    CenterCrop,
}

/// What is done to resized intensities before the network.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Normalisation {
    /// Per image: subtract the mean and divide by the standard deviation (at least 1e-3).
    PerImage,
    /// The same mean and standard deviation for all images.
    Fixed {
        /// Mean of intensities, 0 to 1.
        mean: f32,
        /// Standard deviation, above 0.
        std: f32,
    },
    /// Per image: each value is replaced by its rank, spread evenly about 0 with variance 1 (histogram equalisation).
    /// Any two scanners whose responses differ by an increasing curve give the same input.
    Equalised,
}

/// A specification that describes no network that can be built, or no input for it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("task specification: {field}: expected {expected}, got {got}")]
pub struct ManifestError {
    field: &'static str,
    expected: &'static str,
    got: String,
}

impl ManifestError {
    pub(crate) fn new(field: &'static str, expected: &'static str, got: impl ToString) -> Self {
        Self { field, expected, got: got.to_string() }
    }
}

impl TaskSpec {
    /// Checks the network, and that the preprocessing makes an input for it.
    ///
    /// # Errors
    /// Names the field, what was expected and what it holds.
    pub fn check(&self) -> Result<(), ManifestError> {
        self.network.check()?;
        let channels = self.network.input.channels;
        if self.preprocessing.slices == Slices::Neighbours && channels != 3 {
            let got = format!("\"neighbours\" for {channels}");
            let expected = "\"single\", for \"neighbours\" needs 3 input channels";
            return Err(ManifestError::new("preprocessing.slices", expected, got));
        }
        Ok(())
    }
}

impl NetworkManifest {
    /// The small network for weak boards: about 80,000 parameters.
    #[must_use]
    pub fn small(input: InputShape, classes: Vec<ClassLabel>) -> Self {
        let stem = Stem::for_input(input);
        let body =
            Body::ResNet { stem, stage_channels: vec![16, 32, 64], stage_blocks: vec![1, 1, 1], groups: 8 };
        Self { input, classes, body }
    }

    /// The standard network: ResNet-18's blocks (He et al. 2016, table 1), about 11 million parameters.
    #[must_use]
    pub fn resnet18(input: InputShape, classes: Vec<ClassLabel>) -> Self {
        let stem = Stem::for_input(input);
        let body = Body::ResNet {
            stem,
            stage_channels: vec![64, 128, 256, 512],
            stage_blocks: vec![2, 2, 2, 2],
            groups: 32,
        };
        Self { input, classes, body }
    }

    /// Checks that the manifest describes a network that can be built, within limits that keep a hostile
    /// announcement from asking for more memory than an appliance has.
    ///
    /// # Errors
    /// Names the field, what was expected and what it holds.
    pub fn check(&self) -> Result<(), ManifestError> {
        let InputShape { channels, height, width } = self.input;
        if channels != 1 && channels != 3 {
            return Err(ManifestError::new("input.channels", "1 or 3", channels));
        }
        for (field, side) in [("input.height", height), ("input.width", width)] {
            if !(28..=512).contains(&side) {
                return Err(ManifestError::new(field, "28 to 512 pixels", side));
            }
        }
        if !(2..=64).contains(&self.classes.len()) {
            return Err(ManifestError::new("classes", "2 to 64 classes", self.classes.len()));
        }
        let Body::ResNet { stage_channels, stage_blocks, groups, .. } = &self.body;
        if !(1..=6).contains(&stage_channels.len()) {
            return Err(ManifestError::new("stage_channels", "1 to 6 stages", stage_channels.len()));
        }
        if stage_blocks.len() != stage_channels.len() {
            return Err(ManifestError::new("stage_blocks", "one entry per stage", stage_blocks.len()));
        }
        if let Some(blocks) = stage_blocks.iter().find(|&&b| !(1..=8).contains(&b)) {
            return Err(ManifestError::new("stage_blocks", "1 to 8 blocks per stage", blocks));
        }
        if !(1..=64).contains(groups) {
            return Err(ManifestError::new("groups", "1 to 64", groups));
        }
        if let Some(bad) = stage_channels.iter().find(|&&c| !(1..=1024).contains(&c) || c % groups != 0) {
            return Err(ManifestError::new("stage_channels", "multiples of groups, at most 1024", bad));
        }
        Ok(())
    }
}

impl Stem {
    /// The stem that suits an input's shorter side.
    #[must_use]
    pub fn for_input(input: InputShape) -> Self {
        match input.height.min(input.width) {
            0..48 => Self::Stride1,
            48..112 => Self::Stride2,
            _ => Self::Stride4,
        }
    }
}
