//! The data set of a task at a site: de-identified images, their labels, the split by patient, and the manifest
//! whose digest goes on the ledger.
//!
//! Objects come in as [`Deidentified`](medinet_deident::Deidentified) only. Their rows live in SQLite (WAL, every
//! commit synced), the objects themselves in files named by their digest, and the prepared inputs beside the rows, so
//! that training reads them at the speed of the disk. A row exists only after its file is durable, so a process that is
//! killed at any moment leaves each object whole or absent, and adding it again is always right.
//!
//! Nothing here holds an accession number or an original UID: keys and remapped UIDs come from the de-identifier.

mod database;
mod dataset;
mod error;
mod files;
mod labels;
mod manifest;
mod read;
mod report;
mod series;
mod settings;
mod split;
#[cfg(test)]
mod tests;

pub use dataset::{Added, Dataset, DatasetSummary};
pub use error::{DatasetError, LabelProblem, LabelProblemKind};
pub use labels::{LabelImport, Reviewed};
pub use manifest::{DatasetManifest, ManifestEntry};
pub use read::{LabelledImage, LabelledImages};
pub use settings::{CodePattern, DatasetSettings, SrCode};
pub use split::Split;
