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

    /// Whose image it is: images of one patient have the same number, those of two never. None where nobody knows: then
    /// nothing can be trained privately on them.
    fn patient(&self, index: usize) -> Option<u64> {
        let _ = index;
        None
    }

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
    patients: Option<Vec<u64>>,
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
        Self { size, inputs, classes, patients: None, fingerprint: Digest(hasher.finalize().into()) }
    }

    /// Says whose image each is.
    ///
    /// # Panics
    /// When there is not a number for each image.
    #[must_use]
    pub fn with_patients(self, patients: Vec<u64>) -> Self {
        assert_eq!(patients.len(), self.classes.len(), "a patient for each image");
        let bytes: Vec<u8> = patients.iter().flat_map(|patient| patient.to_le_bytes()).collect();
        let fingerprint = Digest::of_parts(&[b"patients", self.fingerprint.as_bytes(), &bytes]);
        Self { patients: Some(patients), fingerprint, ..self }
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

    fn patient(&self, index: usize) -> Option<u64> {
        self.patients.as_ref().map(|patients| patients[index])
    }

    fn fingerprint(&self) -> Digest {
        self.fingerprint
    }
}
