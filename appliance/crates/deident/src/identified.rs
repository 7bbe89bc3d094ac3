//! What comes out of the hospital's PACS: identifiable, and sealed until it has been cleaned.

use serde::{Deserialize, Serialize};
use std::fmt;

/// How an object reached the appliance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// Pulled over DICOMweb (WADO-RS, PS3.18).
    DicomWeb,
    /// Pushed by a peer over DIMSE (C-STORE, PS3.4 annex B).
    CStore,
    /// Found in the watched folder.
    WatchedFolder,
}

/// A DICOM Part 10 file as the hospital holds it, with everything that identifies the patient.
///
/// Anyone may seal bytes in it; only the de-identifier can look inside. It cannot be copied, and printing
/// it shows its size and nothing of its content, so it can travel through queues and error paths safely.
pub struct Identified {
    bytes: Vec<u8>,
    origin: Origin,
}

impl Identified {
    /// Seals `file_bytes`, a whole DICOM file (PS3.10) or, as some PACS and media hold them, a bare data set.
    #[must_use]
    pub fn new(file_bytes: Vec<u8>, origin: Origin) -> Self {
        Self { bytes: file_bytes, origin }
    }

    /// How the object reached the appliance.
    #[must_use]
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// The size of the sealed file, in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether the sealed file has no bytes at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl fmt::Debug for Identified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identified")
            .field("origin", &self.origin)
            .field("len", &self.bytes.len())
            .finish_non_exhaustive()
    }
}
