//! Who has been seen, and what data sets sites registered.

use crate::commit::{integer, json, millis};
use crate::error::{Context as _, StoreError};
use crate::outbox;
use crate::registry::{from_json, name, parsed};
use crate::store::Store;
use medinet_types::{DatasetDigest, SiteId, TaskId, UnixMillis};
use medinet_wire::message::DatasetRegistration;
use rusqlite::{OptionalExtension as _, TransactionBehavior, params};
use serde::Serialize;

/// A site that has spoken to the aggregator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SiteRow {
    /// The site.
    pub site: SiteId,
    /// First message.
    pub first_seen: UnixMillis,
    /// Newest message noted.
    pub last_seen: UnixMillis,
}

/// A registered data set: counts and a digest, no data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DatasetRow {
    /// The site that holds it.
    pub site: SiteId,
    /// The task it is for.
    pub task: TaskId,
    /// Digest of the manifest, which stays at the site.
    pub manifest: DatasetDigest,
    /// Images per class, in the order of the task's classes.
    pub images_per_class: Vec<u64>,
    /// When.
    pub registered_at: UnixMillis,
    /// Index of its record in the ledger.
    pub ledger_index: u64,
}

impl Store {
    /// Notes that a site's message came. Not worth a write per message: call it about once a minute and site.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn site_seen(&mut self, site: &SiteId, at: UnixMillis) -> Result<(), StoreError> {
        self.connection
            .prepare_cached(
                "INSERT INTO sites VALUES (?1, ?2, ?2)
                 ON CONFLICT (site) DO UPDATE SET last_seen_ms = max(last_seen_ms, ?2)",
            )
            .and_then(|mut s| s.execute(params![site.as_str(), millis(at)]))
            .context("noting a site")
            .map(|_| ())
    }

    /// All sites that have been seen, by name.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn sites(&self) -> Result<Vec<SiteRow>, StoreError> {
        let rows: Vec<(String, i64, i64)> =
            self.rows("SELECT site, first_seen_ms, last_seen_ms FROM sites ORDER BY site", [], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })?;
        rows.into_iter()
            .map(|(site, first, last)| {
                Ok(SiteRow {
                    site: name("sites.site", &site)?,
                    first_seen: UnixMillis(first.unsigned_abs()),
                    last_seen: UnixMillis(last.unsigned_abs()),
                })
            })
            .collect()
    }

    /// Keeps a registration and queues its ledger entry in one transaction; returns the entry's index in the ledger. A repeated
    /// registration of the same manifest changes nothing and returns the index of the first.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn register_dataset(
        &mut self,
        site: &SiteId,
        registration: &DatasetRegistration,
        at: UnixMillis,
        ledger_entry: impl FnOnce() -> Vec<u8>,
    ) -> Result<u64, StoreError> {
        let tx = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .context("registering a data set")?;
        let DatasetRegistration { task, manifest, images_per_class } = registration;
        let manifest = manifest.to_string();
        let earlier: Option<i64> = tx
            .query_row(
                "SELECT ledger_index FROM datasets WHERE site = ?1 AND task = ?2 AND manifest = ?3",
                params![site.as_str(), task.as_str(), manifest],
                |row| row.get(0),
            )
            .optional()
            .context("registering a data set")?;
        if let Some(index) = earlier {
            return Ok(index.unsigned_abs());
        }
        let index = outbox::queue(&tx, &[ledger_entry()])?;
        tx.execute(
            "INSERT OR REPLACE INTO datasets VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![
                site.as_str(),
                task.as_str(),
                manifest,
                json(images_per_class),
                millis(at),
                integer(index)
            ],
        )
        .context("registering a data set")?;
        tx.commit().context("registering a data set")?;
        Ok(index)
    }

    /// The newest data set of each site for a task, by site.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn datasets(&self, task: &TaskId) -> Result<Vec<DatasetRow>, StoreError> {
        let rows: Vec<(String, String, String, i64, i64)> = self.rows(
            "SELECT site, manifest, images_per_class, registered_at_ms, ledger_index
             FROM datasets WHERE task = ?1 ORDER BY site",
            [task.as_str()],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?)),
        )?;
        rows.into_iter()
            .map(|(site, manifest, images, at, index)| {
                Ok(DatasetRow {
                    site: name("datasets.site", &site)?,
                    task: task.clone(),
                    manifest: parsed("datasets.manifest", "digest", &manifest)?,
                    images_per_class: from_json("datasets.images_per_class", "list of counts", &images)?,
                    registered_at: UnixMillis(at.unsigned_abs()),
                    ledger_index: index.unsigned_abs(),
                })
            })
            .collect()
    }
}
