//! The data set of one task at one site.

use crate::files::ObjectFiles;
use crate::report::{Statement, Target, statements};
use crate::series::{ImageRow, load_rows};
use crate::{DatasetError, DatasetManifest, DatasetSettings, ManifestEntry, Split, database};
use dicom_core::Tag;
use dicom_dictionary_std::tags;
use dicom_object::{FileDicomObject, InMemDicomObject};
use medinet_deident::Deidentified;
use medinet_imaging::{DecodeLimits, DecodedImage, ImagingError, SampleFormat, decode_within, prepare};
use medinet_model::{Slices, TaskSpec};
use medinet_types::{Digest, UnixMillis};
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use std::collections::BTreeMap;
use std::path::Path;

/// The data set of one task: de-identified objects, prepared inputs, labels and the split, in one folder.
///
/// Several processes may open the same folder: a trainer reads while studies arrive.
pub struct Dataset {
    pub(crate) connection: Connection,
    pub(crate) files: ObjectFiles,
    pub(crate) task: TaskSpec,
    pub(crate) settings: DatasetSettings,
}

/// What became of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Added {
    /// An image with this many frames is in the data set now.
    Image {
        /// Frames.
        frames: u32,
    },
    /// A structured report; it made this many statements about classes.
    Report {
        /// Statements that the code map knows.
        labels: u32,
    },
    /// It was there already, with the same content.
    Unchanged,
    /// It replaced an object with the same instance UID and other content.
    Replaced,
    /// It is neither an image of a wanted modality nor a report: nothing was stored.
    Ignored,
}

/// An object in parts, as the tests of this crate make it without a de-identifier.
pub(crate) struct Parts<'a> {
    pub(crate) object: &'a FileDicomObject<InMemDicomObject>,
    pub(crate) instance_uid: &'a str,
    pub(crate) patient: &'a str,
    pub(crate) study: &'a str,
    pub(crate) accession: Option<&'a str>,
}

/// What the operator sees of a data set; stays at the site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatasetSummary {
    /// Images, counting each frame, after the settings' choice.
    pub images: u64,
    /// Those without a label.
    pub unlabelled: u64,
    /// Those about which equally ranked sources disagree; they count as unlabelled.
    pub contradicted: u64,
    /// Patients with a labelled image, by part.
    pub patients: BTreeMap<Split, u64>,
    /// Labelled images by part and class.
    pub images_per_class: BTreeMap<Split, Vec<u64>>,
    /// Structured reports.
    pub reports: u64,
}

impl Dataset {
    /// Opens or creates the data set of a task in a folder of its own.
    ///
    /// # Errors
    /// When the settings do not fit the task, the folder cannot be used, or it belongs to another task.
    pub fn open(folder: &Path, task: &TaskSpec, settings: &DatasetSettings) -> Result<Self, DatasetError> {
        settings.check(&task.network.classes)?;
        let connection = database::open(folder, task.task.as_str())?;
        let files = ObjectFiles::open(folder)?;
        Ok(Self { connection, files, task: task.clone(), settings: settings.clone() })
    }

    /// Adds a de-identified object; durable when it returns. Adding the same object again changes nothing, so a
    /// caller that does not know whether it was killed before or after adds again.
    ///
    /// # Errors
    /// When the image cannot be decoded or is malformed (quarantine it), the data set is full, or storing failed.
    pub fn add(&mut self, object: &Deidentified, now: UnixMillis) -> Result<Added, DatasetError> {
        self.add_parts(
            &Parts {
                object: object.object(),
                instance_uid: object.instance_uid(),
                patient: object.patient_key().as_str(),
                study: object.study_key().as_str(),
                accession: object.accession_key().map(|key| key.as_str()),
            },
            now,
        )
    }

    pub(crate) fn add_parts(&mut self, parts: &Parts<'_>, now: UnixMillis) -> Result<Added, DatasetError> {
        let modality = text(parts.object, tags::MODALITY).unwrap_or_default();
        let is_report = parts.object.get(tags::CONTENT_SEQUENCE).is_some();
        let wanted = self.settings.modalities.is_empty() || self.settings.modalities.contains(&modality);
        let has_pixels = [tags::PIXEL_DATA, tags::FLOAT_PIXEL_DATA, tags::DOUBLE_FLOAT_PIXEL_DATA]
            .iter()
            .any(|&tag| parts.object.get(tag).is_some());
        // Segmentations and presentation overlays have pixels that are no picture of a patient.
        let is_image = has_pixels && wanted && !is_report && modality != "SEG";
        if !is_report && !is_image {
            return Ok(Added::Ignored);
        }

        let instance = Digest::of(parts.instance_uid.as_bytes());
        let encoded = encode(parts.object)?;
        if encoded.len() as u64 > self.settings.max_object_bytes {
            return Err(DatasetError::TooLarge {
                bytes: encoded.len() as u64,
                limit: self.settings.max_object_bytes,
            });
        }
        let content = Digest::of(&encoded);
        let known: Option<Vec<u8>> = self
            .connection
            .query_row("SELECT content FROM objects WHERE instance = ?1", [&instance.0[..]], |row| row.get(0))
            .optional()
            .map_err(DatasetError::database("looking an object up"))?;
        if known.as_deref() == Some(&content.0[..]) {
            return Ok(Added::Unchanged);
        }
        if known.is_none() {
            self.check_room()?;
        }

        // Everything that can fail on the object itself comes before anything is written.
        let image = if is_image { Some(self.decode(parts.object)?) } else { None };
        let inputs = match &image {
            Some(image) if self.task.preprocessing.slices == Slices::Single => self.prepare_all(image)?,
            _ => Vec::new(),
        };
        let series = text(parts.object, tags::SERIES_INSTANCE_UID)
            .ok_or(DatasetError::MissingAttribute { keyword: "SeriesInstanceUID" })?;
        let found = if is_report { statements(parts.object, &self.settings.sr_codes) } else { Vec::new() };
        // The file goes first: without its row it does not exist for anyone.
        self.files.write(content, &encoded)?;

        let recipe = self.recipe(&[]);
        let fail = DatasetError::database;
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(fail("adding an object"))?;
        remove_object(&transaction, instance).map_err(fail("adding an object"))?;
        transaction
            .execute(
                "INSERT INTO objects VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                params![
                    &instance.0[..],
                    &content.0[..],
                    if is_image { "image" } else { "report" },
                    parts.patient,
                    parts.study,
                    parts.accession,
                    Digest::of(series.as_bytes()).to_string(),
                    millis(now),
                ],
            )
            .map_err(fail("adding an object"))?;
        if let Some(image) = &image {
            insert_images(&transaction, instance, image, &inputs, recipe).map_err(fail("adding an image"))?;
        }
        for statement in &found {
            insert_statement(&transaction, instance, parts, statement, now)
                .map_err(fail("adding a report"))?;
        }
        transaction.commit().map_err(fail("adding an object"))?;
        if let Some(old) = known {
            self.files.remove(&old);
            return Ok(Added::Replaced);
        }
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        Ok(match &image {
            Some(image) => Added::Image { frames: count(image.frame_count()) },
            None => Added::Report { labels: count(found.len()) },
        })
    }

    fn check_room(&self) -> Result<(), DatasetError> {
        let held: i64 = self
            .connection
            .query_row("SELECT COUNT(*) FROM objects", [], |row| row.get(0))
            .map_err(DatasetError::database("counting objects"))?;
        let limit = self.settings.max_objects;
        if held.unsigned_abs() >= limit { Err(DatasetError::Full { limit }) } else { Ok(()) }
    }

    pub(crate) fn decode(
        &self,
        object: &FileDicomObject<InMemDicomObject>,
    ) -> Result<DecodedImage, ImagingError> {
        decode_within(object, &DecodeLimits { max_bytes: self.settings.max_object_bytes })
    }

    fn prepare_all(&self, image: &DecodedImage) -> Result<Vec<Vec<f32>>, ImagingError> {
        let shape = self.task.network.input;
        (0..image.frame_count())
            .map(|frame| Ok(prepare(image, frame, &self.task.preprocessing, shape)?.values))
            .collect()
    }

    /// The digest of all that a prepared input depends on besides its own pixels: the preprocessing, the shape, and the
    /// neighbours where the task takes them along.
    pub(crate) fn recipe(&self, neighbours: &[Digest]) -> Digest {
        // The debug form writes every field; a float's shortest form is exact.
        let settings = format!("medinet input 2 {:?} {:?}", self.task.preprocessing, self.task.network.input);
        let mut parts = vec![settings.as_bytes()];
        parts.extend(neighbours.iter().map(|digest| &digest.0[..]));
        Digest::of_parts(&parts)
    }

    /// Whether any image is in the data set, labelled or not.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn has_images(&self) -> Result<bool, DatasetError> {
        self.connection
            .query_row("SELECT EXISTS (SELECT 1 FROM images)", [], |row| row.get(0))
            .map_err(DatasetError::database("looking for images"))
    }

    /// The labelled images in canonical order.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn manifest(&self) -> Result<DatasetManifest, DatasetError> {
        let rows = load_rows(self)?;
        let entries = rows.images.iter().filter_map(|row| {
            Some(ManifestEntry {
                instance: row.instance,
                frame: row.frame,
                image: row.image,
                class: row.class?,
                split: self.split_of(row),
            })
        });
        Ok(DatasetManifest::new(self.task.task.clone(), self.task.network.classes.clone(), entries.collect()))
    }

    /// Counts for the operator.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn summary(&self) -> Result<DatasetSummary, DatasetError> {
        let rows = load_rows(self)?;
        let mut patients: BTreeMap<Split, std::collections::BTreeSet<&str>> = BTreeMap::new();
        let classes = self.task.network.classes.len();
        let mut images_per_class: BTreeMap<Split, Vec<u64>> =
            Split::ALL.into_iter().map(|split| (split, vec![0; classes])).collect();
        let mut unlabelled = 0;
        for row in &rows.images {
            let split = self.split_of(row);
            match row.class {
                Some(class) => {
                    patients.entry(split).or_default().insert(&row.patient);
                    if let Some(counts) = images_per_class.get_mut(&split) {
                        counts[class as usize] += 1;
                    }
                }
                None => unlabelled += 1,
            }
        }
        let reports: i64 = self
            .connection
            .query_row("SELECT COUNT(*) FROM objects WHERE kind = 'report'", [], |row| row.get(0))
            .map_err(DatasetError::database("counting reports"))?;
        Ok(DatasetSummary {
            images: rows.images.len() as u64,
            unlabelled,
            contradicted: rows.contradicted,
            patients: patients.into_iter().map(|(split, set)| (split, set.len() as u64)).collect(),
            images_per_class,
            reports: reports.unsigned_abs(),
        })
    }

    pub(crate) fn split_of(&self, row: &ImageRow) -> Split {
        Split::of_patient(&row.patient, &self.task.task, &self.settings)
    }
}

/// Milliseconds as SQLite holds them.
pub(crate) fn millis(time: UnixMillis) -> i64 {
    i64::try_from(time.0).unwrap_or(i64::MAX)
}

pub(crate) fn text(item: &InMemDicomObject, tag: Tag) -> Option<String> {
    let text = item.get(tag)?.to_str().ok()?;
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
    (!text.is_empty()).then(|| text.to_owned())
}

fn encode(object: &FileDicomObject<InMemDicomObject>) -> Result<Vec<u8>, DatasetError> {
    let mut encoded = Vec::new();
    object
        .write_all(&mut encoded)
        .map_err(|error| DatasetError::Damaged { reason: format!("it cannot be encoded: {error}") })?;
    Ok(encoded)
}

fn remove_object(transaction: &Transaction<'_>, instance: Digest) -> rusqlite::Result<()> {
    transaction.execute("DELETE FROM objects WHERE instance = ?1", [&instance.0[..]])?;
    // What a replaced report stated goes with it.
    transaction.execute("DELETE FROM labels WHERE source = 'report' AND origin = ?1", [&instance.0[..]])?;
    Ok(())
}

fn insert_images(
    transaction: &Transaction<'_>,
    instance: Digest,
    image: &DecodedImage,
    inputs: &[Vec<f32>],
    recipe: Digest,
) -> rusqlite::Result<()> {
    let mut insert = transaction.prepare(
        "INSERT INTO images (instance, frame, image, pixel_rows, pixel_columns, instance_number, geometry)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?;
    let mut insert_input = transaction.prepare("INSERT INTO inputs VALUES (?1, ?2, ?3)")?;
    for frame in 0..image.frame_count() {
        let geometry = image.transforms(frame).ok().and_then(|transforms| {
            let (position, orientation) = (transforms.geometry.position?, transforms.geometry.orientation?);
            let numbers = position.into_iter().chain(orientation);
            Some(numbers.flat_map(f64::to_le_bytes).collect::<Vec<u8>>())
        });
        let id = insert.insert(params![
            &instance.0[..],
            i64::try_from(frame).unwrap_or(i64::MAX),
            &image_digest(image, frame).0[..],
            image.rows(),
            image.columns(),
            image.instance_number(),
            geometry,
        ])?;
        if let Some(input) = inputs.get(frame) {
            insert_input.execute(params![id, &recipe.0[..], floats_to_bytes(input)])?;
        }
    }
    Ok(())
}

/// SHA-256 of a frame's size, format and stored samples.
fn image_digest(image: &DecodedImage, frame: usize) -> Digest {
    let stored = image.stored();
    let format = match stored.format {
        SampleFormat::Unsigned => 0u32,
        SampleFormat::Signed => 1,
        SampleFormat::Float => 2,
    };
    let header = [
        stored.rows,
        stored.columns,
        u32::from(stored.samples_per_pixel),
        u32::from(stored.bits_allocated),
        format,
        u32::from(image.inverted()),
    ];
    let header: Vec<u8> = header.iter().flat_map(|value| value.to_le_bytes()).collect();
    Digest::of_parts(&[&header, &stored.frames[frame]])
}

fn insert_statement(
    transaction: &Transaction<'_>,
    report: Digest,
    parts: &Parts<'_>,
    statement: &Statement,
    now: UnixMillis,
) -> rusqlite::Result<()> {
    let (scope, target) = match &statement.target {
        Target::Instance(uid) => ("instance", Digest::of(uid.as_bytes()).to_string()),
        Target::Study => ("study", parts.study.to_owned()),
    };
    transaction.execute(
        "INSERT OR REPLACE INTO labels VALUES (?1, ?2, 'report', ?3, ?4, ?5, ?6)",
        params![scope, target, &report.0[..], statement.class, statement.rank, millis(now)],
    )?;
    Ok(())
}

pub(crate) fn floats_to_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

pub(crate) fn floats_from_bytes(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}
