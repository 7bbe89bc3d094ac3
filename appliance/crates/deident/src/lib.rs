//! De-identification of DICOM objects at the hospital (PS3.15 Annex E, edition 2026d).
//!
//! [`Identified`] goes in, [`Deidentified`] or a [`Quarantine`] comes out, and nothing else in the product can make a
//! [`Deidentified`]. What happens to an attribute is data, not code: `data/table_e_1_1.tsv` is the whole of Table E.1-1 with its
//! option columns, `data/table_e_3_4_1.tsv` the actions on content items of structured reports, `data/safe_private.tsv` the
//! private attributes that may stay, `data/vocabulary.txt` the words that descriptions keep.
//!
//! Choices that the standard leaves open are made for safety: a combined action code takes the replacement that is
//! valid for every attribute type; an attribute that neither the table nor the dictionary knows goes; descriptions
//! keep known words rather than lose known identifiers; pixels always leave decoded, because compressed
//! streams carry comments; and an object about which any doubt stays is held back with a reason.
//!
//! Pseudonyms, new UIDs and date shifts come from a secret key of the site. The re-link table stays beside it.

mod clean;
mod dates;
mod deidentified;
mod deidentifier;
mod detect;
mod identified;
mod identifiers;
mod keys;
mod pixels;
mod quarantine;
mod relink;
mod report;
mod settings;
mod table;
mod text;

pub use deidentified::{AccessionKey, Deidentified, EncodeError, PatientKey, StudyKey};
pub use deidentifier::{Deidentifier, OpenError};
pub use detect::{GreyImage, find_text};
pub use identified::{Identified, Origin};
pub use quarantine::{Quarantine, QuarantineReason};
pub use relink::{OriginalInstance, OriginalPatient, OriginalStudy, QuarantinedInstance, RelinkError};
pub use report::{ObjectReport, PixelReport, Region, StudyReport, Suspicion};
pub use settings::{DateShift, DeidentSettings, ProfileOptions, SettingsError};
