//! Reading labelled inputs in a fixed order, one at a time.

use crate::dataset::{floats_from_bytes, floats_to_bytes};
use crate::series::{FrameRef, ImageRow, load_rows};
use crate::{Dataset, DatasetError, Split};
use medinet_imaging::{DecodedImage, prepare_slice};
use medinet_model::Slices;
use medinet_types::Digest;
use rusqlite::{OptionalExtension, params};
use std::collections::BTreeMap;

/// Decoded objects that are kept for the next input: one needs at most three.
const DECODED_KEPT: usize = 3;

/// One image ready for training.
#[derive(Debug, Clone, PartialEq)]
pub struct LabelledImage {
    /// The network's input, `[channels, height, width]`.
    pub input: Vec<f32>,
    /// Index of the class.
    pub class: u32,
    /// Number of the patient within the part, from 0; equal for images of one patient.
    pub patient: u32,
}

/// The labelled images of one part, in canonical order: by the digest of the instance UID, then by frame. Equal data
/// give an equal order at every reading. Inputs are read when asked for; the list itself is small.
pub struct LabelledImages<'a> {
    dataset: &'a Dataset,
    rows: Vec<Labelled>,
    patients: u32,
    frames: Vec<FrameRef>,
    decoded: Vec<(Digest, DecodedImage)>,
}

struct Labelled {
    row: ImageRow,
    class: u32,
    patient: u32,
}

impl Dataset {
    /// The labelled images of a part.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn images(&self, split: Split) -> Result<LabelledImages<'_>, DatasetError> {
        let loaded = load_rows(self)?;
        let chosen: Vec<(ImageRow, u32)> = loaded
            .images
            .into_iter()
            .filter(|row| self.split_of(row) == split)
            .filter_map(|row| row.class.map(|class| (row, class)))
            .collect();
        // Numbers by the order of pseudonyms, not of images: one more image of a patient renumbers nobody.
        let mut numbers: BTreeMap<String, u32> =
            chosen.iter().map(|(row, _)| (row.patient.clone(), 0)).collect();
        numbers.values_mut().zip(0..).for_each(|(number, next)| *number = next);
        let rows = chosen
            .into_iter()
            .map(|(row, class)| Labelled { class, patient: numbers[&row.patient], row })
            .collect();
        let patients = u32::try_from(numbers.len()).unwrap_or(u32::MAX);
        Ok(LabelledImages { dataset: self, rows, patients, frames: loaded.frames, decoded: Vec::new() })
    }
}

impl LabelledImages<'_> {
    /// Number of images.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Number of patients.
    #[must_use]
    pub fn patients(&self) -> u32 {
        self.patients
    }

    /// Class and patient of image `index`, without reading it; `None` past the end.
    #[must_use]
    pub fn label(&self, index: usize) -> Option<(u32, u32)> {
        self.rows.get(index).map(|labelled| (labelled.class, labelled.patient))
    }

    /// Reads image `index`; `None` past the end. Inputs that were prepared with other settings, or whose neighbours
    /// have changed, are prepared again and kept.
    ///
    /// # Errors
    /// When the database or a stored object cannot be read.
    pub fn get(&mut self, index: usize) -> Option<Result<LabelledImage, DatasetError>> {
        let labelled = self.rows.get(index)?;
        let (class, patient) = (labelled.class, labelled.patient);
        Some(self.input(index).map(|input| LabelledImage { input, class, patient }))
    }

    /// All images in order.
    pub fn iter(&mut self) -> impl Iterator<Item = Result<LabelledImage, DatasetError>> {
        (0..self.len()).filter_map(|index| self.get(index))
    }

    fn input(&mut self, index: usize) -> Result<Vec<f32>, DatasetError> {
        let row = &self.rows[index].row;
        let (id, own) = (row.id, row.index);
        let stacked = self.dataset.task.preprocessing.slices == Slices::Neighbours;
        let [below, above] = if stacked { row.neighbours } else { [own, own] };
        let neighbours = [below, above].map(|index| self.frames[index].image);
        let recipe = self.dataset.recipe(if stacked { &neighbours } else { &[] });
        let kept: Option<(Digest, Vec<u8>)> = self
            .dataset
            .connection
            .query_row("SELECT recipe, input FROM inputs WHERE image = ?1", [id], |row| {
                Ok((Digest(row.get(0)?), row.get(1)?))
            })
            .optional()
            .map_err(DatasetError::database("reading an input"))?;
        let shape = self.dataset.task.network.input;
        let values = shape.channels as usize * shape.height as usize * shape.width as usize;
        if let Some((found, bytes)) = kept
            && found == recipe
        {
            let input = floats_from_bytes(&bytes);
            if input.len() != values {
                return Err(DatasetError::Damaged { reason: "an input has another size".into() });
            }
            return Ok(input);
        }

        let wanted = [below, own, above];
        for &frame in &wanted {
            self.ensure_decoded(self.frames[frame].content, &wanted)?;
        }
        let slice = |index: usize| {
            let FrameRef { content, frame, .. } = self.frames[index];
            let image = self.decoded.iter().find(|(kept, _)| *kept == content).map(|(_, image)| image);
            let image =
                image.ok_or_else(|| DatasetError::Damaged { reason: "an object is missing".into() })?;
            Ok::<_, DatasetError>((image, frame as usize))
        };
        let preprocessing = &self.dataset.task.preprocessing;
        let input = prepare_slice(slice(own)?, [slice(below)?, slice(above)?], preprocessing, shape)?;
        let stored = self.dataset.connection.execute(
            "INSERT OR REPLACE INTO inputs VALUES (?1, ?2, ?3)",
            params![id, &recipe.0[..], floats_to_bytes(&input.values)],
        );
        if let Err(error) = stored {
            // The image may have been replaced meanwhile, or another process is writing: the next reading prepares again.
            tracing::debug!(%error, "a prepared input was not kept");
        }
        Ok(input.values)
    }

    fn ensure_decoded(&mut self, content: Digest, wanted: &[usize]) -> Result<(), DatasetError> {
        if self.decoded.iter().any(|(kept, _)| *kept == content) {
            return Ok(());
        }
        if self.decoded.len() >= DECODED_KEPT {
            let frames = &self.frames;
            self.decoded.retain(|(kept, _)| wanted.iter().any(|&index| frames[index].content == *kept));
        }
        let encoded = self.dataset.files.read(content, self.dataset.settings.max_object_bytes)?;
        let object = medinet_objects::read(&encoded)
            .map_err(|error| DatasetError::Damaged { reason: error.to_string() })?;
        self.decoded.push((content, self.dataset.decode(&object)?));
        Ok(())
    }
}
