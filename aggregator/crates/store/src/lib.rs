//! The aggregator's durable state: one SQLite database and, beside it, a folder of blobs.
//!
//! * [`Store::commit`] makes one [`medinet_rounds::Commit`] durable in a single transaction: the task's snapshot, the
//!   registry's rows that follow from its records, the history, and the ledger entries that wait to be appended.
//!   Write-ahead log, `synchronous = FULL`: what was committed survives `kill -9` and a power cut, and what was not leaves no trace.
//! * **Ledger outbox.** The ledger is a log of its own and cannot join the transaction. So entries are queued here, numbered
//!   without gaps from 0, and every entry of the ledger passes through the queue: an entry's number is its index in the log.
//!   After a kill between appending and [`Store::ledger_appended`] the log's own size says where to go on.
//! * **Registry** for people and programs: models with lineage, contributions, measurements, verdicts, releases, sites, data sets.
//!
//! One process writes (a lock file sees to it); others may read at the same time with [`Store::open_read_only`].

mod commit;
mod error;
mod outbox;
mod registry;
mod schema;
mod sites;
mod store;

pub use error::StoreError;
pub use outbox::QueuedEntry;
pub use registry::{
    ContributionRow, HistoryRow, LineageStep, MeasurementRow, ModelCard, ModelRow, ReleaseRow, TaskRow,
    VerdictRow,
};
pub use schema::SCHEMA_VERSION;
pub use sites::{DatasetRow, SiteRow};
pub use store::Store;
