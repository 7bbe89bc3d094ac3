//! Public labelled images, carried in the repository.

mod kermany;
mod npz;

use anyhow::{Result, ensure};
use medinet_model::InputShape;
use medinet_training::InMemoryData;
use std::path::Path;

/// Class names of both data sets, in the order of their indices.
pub const CLASSES: [&str; 2] = ["normal", "pneumonia"];

/// Images with class and patient, normalised as the network takes them.
#[derive(Debug, Clone, PartialEq)]
pub struct Images {
    shape: InputShape,
    values: Vec<f32>,
    classes: Vec<usize>,
    patients: Vec<u32>,
}

impl Images {
    /// Takes images one after another, each `[channels, height, width]` row-major, with the class index and the patient of each.
    ///
    /// # Errors
    /// When the lengths do not fit.
    pub fn new(shape: InputShape, values: Vec<f32>, classes: Vec<usize>, patients: Vec<u32>) -> Result<Self> {
        let images = Self { shape, values, classes, patients };
        let (count, size) = (images.len(), images.size());
        ensure!(
            images.values.len() == count * size,
            "expected {count} images of {size} values, got {}",
            images.values.len()
        );
        ensure!(
            images.patients.len() == count,
            "expected {count} patients, one an image, got {}",
            images.patients.len()
        );
        Ok(images)
    }

    /// Number of images.
    #[must_use]
    pub fn len(&self) -> usize {
        self.classes.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.classes.is_empty()
    }

    /// Shape of each.
    #[must_use]
    pub fn shape(&self) -> InputShape {
        self.shape
    }

    fn size(&self) -> usize {
        (self.shape.channels * self.shape.height * self.shape.width) as usize
    }

    /// Class indices, one an image.
    #[must_use]
    pub fn classes(&self) -> &[usize] {
        &self.classes
    }

    /// Class indices, to be changed: what a label-flipping site does.
    pub fn classes_mut(&mut self) -> &mut [usize] {
        &mut self.classes
    }

    /// Patients, one an image: images of the same number belong together.
    #[must_use]
    pub fn patients(&self) -> &[u32] {
        &self.patients
    }

    /// Normalised values of one image, `[channels, height, width]`.
    ///
    /// # Panics
    /// When there is no such image.
    #[must_use]
    pub fn image(&self, index: usize) -> &[f32] {
        &self.values[index * self.size()..(index + 1) * self.size()]
    }

    /// Values of one image, to be changed: what a backdoor does.
    ///
    /// # Panics
    /// When there is no such image.
    pub fn image_mut(&mut self, index: usize) -> &mut [f32] {
        let size = self.size();
        &mut self.values[index * size..(index + 1) * size]
    }

    /// Some of the images, in the order of `indices`.
    ///
    /// # Panics
    /// When there is no such image.
    #[must_use]
    pub fn select(&self, indices: &[usize]) -> Self {
        Self {
            shape: self.shape,
            values: indices.iter().flat_map(|&index| self.image(index)).copied().collect(),
            classes: indices.iter().map(|&index| self.classes[index]).collect(),
            patients: indices.iter().map(|&index| self.patients[index]).collect(),
        }
    }

    /// These images and then those of `more`. Patients keep their numbers.
    ///
    /// # Errors
    /// When the shapes differ.
    pub fn followed_by(&self, more: &Self) -> Result<Self> {
        ensure!(
            self.shape == more.shape,
            "expected images of one shape, got {:?} and {:?}",
            self.shape,
            more.shape
        );
        Ok(Self {
            shape: self.shape,
            values: [self.values.as_slice(), &more.values].concat(),
            classes: [self.classes.as_slice(), &more.classes].concat(),
            patients: [self.patients.as_slice(), &more.patients].concat(),
        })
    }

    /// What the trainer takes.
    #[must_use]
    pub fn to_training_data(&self) -> InMemoryData {
        InMemoryData::new(self.shape, self.values.clone(), self.classes.clone())
            .with_patients(self.patients.iter().map(|&patient| patient.into()).collect())
    }
}

/// A data set: images to deal out among sites, and a test set of other patients that no site trains on.
#[derive(Debug, Clone, PartialEq)]
pub struct Dataset {
    /// Short name, as in reports.
    pub name: &'static str,
    /// To train on.
    pub training: Images,
    /// To choose settings on; may be empty.
    pub validation: Images,
    /// To measure on.
    pub test: Images,
}

impl Dataset {
    /// PneumoniaMNIST (Yang et al. 2023), 28 px: 4,708 images to train on, 524 and 624 to validate and to test on. Its file names no patients,
    /// so each image counts as one.
    ///
    /// `file` is the published `pneumoniamnist.npz`.
    ///
    /// # Errors
    /// When the file cannot be read, or is another one.
    pub fn pneumonia_mnist(file: &Path) -> Result<Self> {
        npz::pneumonia_mnist(file)
    }

    /// The carried subset of Kermany et al. 2018, scaled to `side` pixels: 1,500 images to train on, 500 to test on, of 960 patients or so, none in
    /// both. There is no validation split.
    ///
    /// `folder` is `demo/images`.
    ///
    /// # Errors
    /// When a file cannot be read or its name does not say the patient.
    pub fn kermany(folder: &Path, side: u32) -> Result<Self> {
        kermany::read(folder, side)
    }

    /// The first of the images of each split, alternating between the classes, for tests.
    #[must_use]
    pub fn head(&self, training: usize, test: usize) -> Self {
        let some = |images: &Images, count: usize| {
            let mut of = [Vec::new(), Vec::new()];
            for (index, &class) in images.classes().iter().enumerate() {
                of[class.min(1)].push(index);
            }
            let mut indices: Vec<usize> =
                of.iter().flat_map(|all| all.iter().take(count.div_ceil(2)).copied()).collect();
            indices.sort_unstable();
            images.select(&indices)
        };
        Self {
            name: self.name,
            training: some(&self.training, training),
            validation: some(&self.validation, test),
            test: some(&self.test, test),
        }
    }
}

/// Subtracts an image's mean and divides by its standard deviation, at least 1e-3: `Normalisation::PerImage` of the tasks.
fn normalise(pixels: &[u8]) -> impl Iterator<Item = f32> {
    let count = pixels.len().max(1) as f32;
    let mean = pixels.iter().map(|&pixel| f32::from(pixel)).sum::<f32>() / count;
    let variance = pixels.iter().map(|&pixel| (f32::from(pixel) - mean).powi(2)).sum::<f32>() / count;
    let deviation = variance.sqrt().max(255.0 * 1e-3);
    pixels.iter().map(move |&pixel| (f32::from(pixel) - mean) / deviation)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_normalised_one_by_one() {
        let values: Vec<f32> = normalise(&[0, 100, 200, 100]).collect();
        let square: f32 = values.iter().map(|value| value * value).sum();
        assert!(values.iter().sum::<f32>().abs() < 1e-5 && (square - 4.0).abs() < 1e-4, "{values:?}");
        assert!(normalise(&[7; 9]).all(|value| value == 0.0));
    }

    #[test]
    fn lengths_that_do_not_fit_are_refused() {
        let shape = InputShape { channels: 1, height: 28, width: 28 };
        assert!(Images::new(shape, vec![0.0; 784], vec![0], vec![1]).is_ok());
        assert!(Images::new(shape, vec![0.0; 783], vec![0], vec![1]).is_err());
        assert!(Images::new(shape, vec![0.0; 784], vec![0], vec![]).is_err());
    }
}
