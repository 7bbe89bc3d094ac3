//! The images that a site trains on.

use medinet_model::InputShape;
use medinet_types::Digest;
use sha2::{Digest as _, Sha256};

/// An image could not be read; the message names no patient and no file.
#[derive(Debug, thiserror::Error)]
#[error("image {index} of the data set could not be read")]
pub struct DataError {
    /// Index of the image.
    pub index: usize,
    /// Why.
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// Preprocessed, labelled images of one split, in an order that stays the same while a training runs
/// or is resumed.
pub trait TrainingData: Sync {
    /// Number of images.
    fn len(&self) -> usize;

    /// Whether there are no images.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Index of an image's class in the network's class list.
    fn class(&self, index: usize) -> usize;

    /// Writes an image, normalised, `[channels, height, width]` row-major, into `input`.
    ///
    /// # Errors
    /// When the image cannot be read.
    fn read(&self, index: usize, input: &mut [f32]) -> Result<(), DataError>;

    /// Identifies images, classes and their order: a checkpoint is resumed only with the data that it was
    /// written with.
    fn fingerprint(&self) -> Digest;
}

/// Images held in memory.
#[derive(Debug, Clone)]
pub struct InMemoryData {
    size: usize,
    inputs: Vec<f32>,
    classes: Vec<usize>,
    fingerprint: Digest,
}

impl InMemoryData {
    /// Takes images one after another, each `[channels, height, width]` row-major, and a class index for each.
    ///
    /// # Panics
    /// When the number of values is not the number of classes times the size of an image.
    #[must_use]
    pub fn new(shape: InputShape, inputs: Vec<f32>, classes: Vec<usize>) -> Self {
        let size = (shape.channels * shape.height * shape.width) as usize;
        assert_eq!(inputs.len(), size * classes.len(), "one image of {size} values per class index");
        let mut hasher = Sha256::new();
        hasher.update((size as u64).to_le_bytes());
        classes.iter().for_each(|&class| hasher.update((class as u64).to_le_bytes()));
        inputs.iter().for_each(|value| hasher.update(value.to_le_bytes()));
        Self { size, inputs, classes, fingerprint: Digest(hasher.finalize().into()) }
    }
}

impl TrainingData for InMemoryData {
    fn len(&self) -> usize {
        self.classes.len()
    }

    fn class(&self, index: usize) -> usize {
        self.classes[index]
    }

    fn read(&self, index: usize, input: &mut [f32]) -> Result<(), DataError> {
        input.copy_from_slice(&self.inputs[index * self.size..(index + 1) * self.size]);
        Ok(())
    }

    fn fingerprint(&self) -> Digest {
        self.fingerprint
    }
}
