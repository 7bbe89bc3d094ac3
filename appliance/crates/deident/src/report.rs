//! What was done, told without identifiers.

use crate::deidentified::StudyKey;
use crate::quarantine::QuarantineReason;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A rectangle of pixels that was overwritten, in columns and rows of the image from its top left corner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Region {
    /// Leftmost column, from 0.
    pub x: u32,
    /// Topmost row, from 0.
    pub y: u32,
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

/// Why the picture was thought able to hold burned-in text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Suspicion {
    /// `BurnedInAnnotation` says YES.
    Annotated,
    /// The modality or SOP class habitually burns text in (ultrasound, secondary capture, photographs, ...).
    Modality,
    /// `ImageType` or the conversion attributes tell of a screen capture, a derived or a digitised picture.
    Capture,
}

/// What was found and done in the pixels.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PixelReport {
    /// Frames that were decoded and looked at.
    pub frames: u32,
    /// Why text was expected, if it was.
    pub suspicions: Vec<Suspicion>,
    /// Rectangles overwritten in every frame.
    pub blanked: Vec<Region>,
    /// The transfer syntax that the pixels came in.
    pub received_transfer_syntax: String,
}

/// What was done to one object.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectReport {
    /// Attributes by what was done to them: `remove`, `empty`, `dummy`, `remap-uid`, `shift-date`,
    /// `clean-text`, `clean-sequence`, `remove-private`, `keep-private`, `remove-unknown`,
    /// `scrub` (an identifier known from elsewhere in the object stood in an attribute that is otherwise kept).
    pub actions: BTreeMap<String, u32>,
    /// Codes of the profile and options applied (PS3.16 CID 7050).
    pub method_codes: Vec<String>,
    /// The pixels, where the object has any.
    pub pixels: Option<PixelReport>,
}

/// What was done to the objects of one study so far.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StudyReport {
    /// The study's pseudonym.
    pub study_key: StudyKey,
    /// Objects cleaned.
    pub deidentified: u32,
    /// Objects held back, by reason.
    pub quarantined: BTreeMap<String, u32>,
    /// Attributes by what was done to them, over all objects.
    pub actions: BTreeMap<String, u32>,
    /// Codes of the profile and options applied (PS3.16 CID 7050).
    pub method_codes: Vec<String>,
    /// Frames looked at for burned-in text.
    pub frames_checked: u64,
    /// Objects in which regions were overwritten, and how many regions in all.
    pub objects_blanked: u32,
    /// Regions overwritten, over all objects.
    pub regions_blanked: u32,
}

impl StudyReport {
    /// A report on nothing yet.
    #[must_use]
    pub fn new(study_key: StudyKey) -> Self {
        Self {
            study_key,
            deidentified: 0,
            quarantined: BTreeMap::new(),
            actions: BTreeMap::new(),
            method_codes: Vec::new(),
            frames_checked: 0,
            objects_blanked: 0,
            regions_blanked: 0,
        }
    }

    /// Adds a cleaned object.
    pub fn add(&mut self, object: &ObjectReport) {
        self.deidentified += 1;
        for (action, count) in &object.actions {
            *self.actions.entry(action.clone()).or_default() += count;
        }
        for code in &object.method_codes {
            if !self.method_codes.contains(code) {
                self.method_codes.push(code.clone());
            }
        }
        if let Some(pixels) = &object.pixels {
            self.frames_checked += u64::from(pixels.frames);
            self.objects_blanked += u32::from(!pixels.blanked.is_empty());
            self.regions_blanked += u32::try_from(pixels.blanked.len()).unwrap_or(u32::MAX);
        }
    }

    /// Adds an object that was held back.
    pub fn add_quarantined(&mut self, reason: &QuarantineReason) {
        *self.quarantined.entry(reason.code().to_owned()).or_default() += 1;
    }
}
