//! How images come from a hospital's systems into the appliance.
//!
//! Three sources feed one pipe: a PACS that is asked over DICOMweb, peers that push over C-STORE, and a watched folder.
//!
//! ```text
//! PACS -- QIDO-RS, WADO-RS --> spool --+
//! peers ------- C-STORE -----> spool --+--> identify --> Sink (the de-identifier)
//! files ------------------> folder ----+        \-----> quarantine, with a reason
//!                intake ledger (SQLite): discovered, fetched, ingested | quarantined; how far the search has come
//! ```
//!
//! **What holds, however often the process is killed:** every object that was listed, pushed (and acknowledged) or
//! put into the folder ends as ingested or as quarantined with a reason; none is lost. The sink gets an object again
//! only when the process died between its storing the object and the ledger's noting that; [`Sink`] says how it makes
//! the repeat harmless. Each step is on the disk before the one that relies on it.
//!
//! **What stays here:** objects travel as [`medinet_deident::Identified`], which only the de-identifier can open.
//! UIDs identify examinations, so ledger and spool belong to the hospital's records in its data folder (readable by
//! the appliance's user alone), and no log line, error or progress figure holds one; the world outside knows an
//! object by its [`ObjectKey`].
//!
//! **What is bounded:** requests at a time and per second, object size, files waiting on the disk (pulls pause, pushes
//! are told to come back), associations, PDU length, silence. Memory holds one object at a time.

mod deliver;
pub mod dicomweb;
mod error;
mod folder;
#[doc(hidden)]
pub mod fuzzing;
mod identify;
mod intake;
mod ledger;
mod progress;
mod pull;
mod quarantine;
mod scp;
mod settings;
mod sink;
mod spool;

pub use error::{DicomWebError, IntakeError, LedgerError};
pub use intake::Intake;
pub use progress::IntakeProgress;
pub use quarantine::{
    QuarantineCount, QuarantineId, QuarantineRecords, QuarantineSelection, QuarantinedObject, Retried,
};
pub use settings::{
    CStoreSettings, ClientIdentity, DicomWebAuth, DicomWebSettings, FolderSettings, PacsSettings,
    ParseDateError, StudyDate, StudyQuery,
};
pub use sink::{Accepted, Delivery, ObjectKey, Rejected, Sink};
