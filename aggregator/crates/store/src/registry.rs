//! Questions about models: versions, lineage, who contributed, what was measured, what was released.

use crate::commit::{integer, json};
use crate::error::{Context as _, StoreError, bad_row};
use crate::sites::DatasetRow;
use crate::store::Store;
use medinet_rounds::{RoundRecord, Verdict};
use medinet_types::{BlobDigest, ModelDigest, ModelVersion, RoundNumber, SiteId, TaskId, UnixMillis};
use medinet_wire::blob::BlobManifest;
use medinet_wire::message::{ModelRef, SiteMetrics};
use rusqlite::{Params, Row, params};
use serde::{Serialize, de::DeserializeOwned};
use std::str::FromStr;

/// A task that has been started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TaskRow {
    /// The task.
    pub task: TaskId,
    /// Newest change.
    pub committed_at: UnixMillis,
    /// Newest model version.
    pub newest: ModelVersion,
    /// Newest released version.
    pub released: Option<ModelVersion>,
}

/// A global model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ModelRow {
    /// Digest, version and the blob of its parameters.
    pub model: ModelRef,
    /// The model that it was trained from; `None` for the initial one.
    pub base: Option<ModelDigest>,
    /// The round that made it, 0 for the initial one.
    pub round: RoundNumber,
    /// When.
    pub created_at: UnixMillis,
    /// Whether it was released.
    pub released: bool,
}

/// A site's update that counts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ContributionRow {
    /// The round.
    pub round: RoundNumber,
    /// The site.
    pub site: SiteId,
    /// The sealed update.
    pub update: BlobDigest,
    /// Its length in bytes.
    pub update_bytes: u64,
    /// Training images behind it.
    pub examples: u64,
    /// What the site measured of the base model, where its policy lets metrics leave.
    pub base_metrics: Option<SiteMetrics>,
    /// When it counted.
    pub at: UnixMillis,
}

/// A site's measurement of a candidate.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MeasurementRow {
    /// The round.
    pub round: RoundNumber,
    /// The site.
    pub site: SiteId,
    /// The candidate.
    pub model: ModelDigest,
    /// What was measured; `None` when the site's policy keeps it.
    pub metrics: Option<SiteMetrics>,
    /// When.
    pub at: UnixMillis,
}

/// What became of a candidate.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VerdictRow {
    /// The evaluation round.
    pub round: RoundNumber,
    /// The verdict.
    pub verdict: Verdict,
    /// When.
    pub at: UnixMillis,
}

/// A released model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReleaseRow {
    /// Its version.
    pub version: ModelVersion,
    /// When it passed the rule.
    pub released_at: UnixMillis,
    /// The bundle that sites run; `None` until it has been made.
    pub bundle: Option<BlobManifest>,
    /// Index of its record in the ledger; `None` until the bundle has been made.
    pub ledger_index: Option<u64>,
}

/// One model of a line of descent, with those who made it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LineageStep {
    /// The model.
    pub model: ModelRow,
    /// Whose updates it is the mean of; none for the initial model.
    pub contributions: Vec<ContributionRow>,
}

/// Everything that the registry knows of a model, for its card.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelCard {
    /// The task.
    pub task: TaskId,
    /// The model.
    pub model: ModelRow,
    /// From this model back to the initial one.
    pub lineage: Vec<LineageStep>,
    /// What sites measured of it.
    pub measurements: Vec<MeasurementRow>,
    /// What became of it, if it was a candidate.
    pub verdict: Option<VerdictRow>,
    /// Data sets registered for the task.
    pub datasets: Vec<DatasetRow>,
    /// Its release.
    pub release: Option<ReleaseRow>,
}

/// One line of a task's history.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HistoryRow {
    /// When.
    pub at: UnixMillis,
    /// What.
    pub record: RoundRecord,
}

pub(crate) fn parsed<T: FromStr>(
    column: &'static str,
    expected: &'static str,
    text: &str,
) -> Result<T, StoreError> {
    text.parse().map_err(|_| bad_row(column, expected, text))
}

pub(crate) fn name<T: FromStr>(column: &'static str, text: &str) -> Result<T, StoreError> {
    parsed(column, "name", text)
}

pub(crate) fn from_json<T: DeserializeOwned>(
    column: &'static str,
    expected: &'static str,
    text: &str,
) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|_| bad_row(column, expected, text))
}

fn metrics(column: &'static str, text: Option<String>) -> Result<Option<SiteMetrics>, StoreError> {
    text.map(|text| from_json(column, "site metrics", &text)).transpose()
}

fn time(millis: i64) -> UnixMillis {
    UnixMillis(millis.unsigned_abs())
}

impl Store {
    pub(crate) fn rows<T>(
        &self,
        sql: &str,
        params: impl Params,
        of: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, StoreError> {
        let mut statement = self.connection.prepare_cached(sql).context("a query")?;
        statement.query_map(params, of).and_then(Iterator::collect).context("a query")
    }

    /// All tasks that were ever started, by name.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn tasks(&self) -> Result<Vec<TaskRow>, StoreError> {
        let rows: Vec<(String, i64, u32, Option<u32>)> = self.rows(
            "SELECT task, committed_at_ms,
                (SELECT coalesce(max(version), 0) FROM models m WHERE m.task = t.task),
                (SELECT max(version) FROM releases r WHERE r.task = t.task)
             FROM tasks t ORDER BY task",
            [],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)),
        )?;
        rows.into_iter()
            .map(|(task, at, newest, released)| {
                Ok(TaskRow {
                    task: name("tasks.task", &task)?,
                    committed_at: time(at),
                    newest: ModelVersion(newest),
                    released: released.map(ModelVersion),
                })
            })
            .collect()
    }

    /// All models of a task, oldest first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn models(&self, task: &TaskId) -> Result<Vec<ModelRow>, StoreError> {
        type Columns = (u32, String, Option<String>, u32, String, i64, bool);
        let rows: Vec<Columns> = self.rows(
            "SELECT version, digest, base, round, parameters, created_at_ms,
                EXISTS (SELECT 1 FROM releases r WHERE r.task = m.task AND r.version = m.version)
             FROM models m WHERE task = ?1 ORDER BY version",
            [task.as_str()],
            |row| {
                Ok((
                    row.get(0)?,
                    row.get(1)?,
                    row.get(2)?,
                    row.get(3)?,
                    row.get(4)?,
                    row.get(5)?,
                    row.get(6)?,
                ))
            },
        )?;
        rows.into_iter()
            .map(|(version, digest, base, round, parameters, at, released)| {
                Ok(ModelRow {
                    model: ModelRef {
                        digest: parsed("models.digest", "digest", &digest)?,
                        version: ModelVersion(version),
                        parameters: from_json("models.parameters", "blob manifest", &parameters)?,
                    },
                    base: base.map(|base| parsed("models.base", "digest", &base)).transpose()?,
                    round: RoundNumber(round),
                    created_at: time(at),
                    released,
                })
            })
            .collect()
    }

    /// Updates that count, of one round or of all, by round and site.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn contributions(
        &self,
        task: &TaskId,
        round: Option<RoundNumber>,
    ) -> Result<Vec<ContributionRow>, StoreError> {
        type Columns = (u32, String, String, i64, i64, Option<String>, i64);
        let rows: Vec<Columns> = self.rows(
            "SELECT round, site, update_digest, update_bytes, examples, base_metrics, at_ms
             FROM contributions WHERE task = ?1 AND (?2 IS NULL OR round = ?2) ORDER BY round, site",
            params![task.as_str(), round.map(|r| r.0)],
            |row| {
                Ok((
                    row.get(0)?,
                    row.get(1)?,
                    row.get(2)?,
                    row.get(3)?,
                    row.get(4)?,
                    row.get(5)?,
                    row.get(6)?,
                ))
            },
        )?;
        rows.into_iter()
            .map(|(round, site, update, bytes, examples, base_metrics, at)| {
                Ok(ContributionRow {
                    round: RoundNumber(round),
                    site: name("contributions.site", &site)?,
                    update: parsed("contributions.update_digest", "digest", &update)?,
                    update_bytes: bytes.unsigned_abs(),
                    examples: examples.unsigned_abs(),
                    base_metrics: metrics("contributions.base_metrics", base_metrics)?,
                    at: time(at),
                })
            })
            .collect()
    }

    /// What sites measured of candidates, of one round or of all, by round and site.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn measurements(
        &self,
        task: &TaskId,
        round: Option<RoundNumber>,
    ) -> Result<Vec<MeasurementRow>, StoreError> {
        let rows: Vec<(u32, String, String, Option<String>, i64)> = self.rows(
            "SELECT round, site, model, metrics, at_ms
             FROM measurements WHERE task = ?1 AND (?2 IS NULL OR round = ?2) ORDER BY round, site",
            params![task.as_str(), round.map(|r| r.0)],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?)),
        )?;
        rows.into_iter()
            .map(|(round, site, model, text, at)| {
                Ok(MeasurementRow {
                    round: RoundNumber(round),
                    site: name("measurements.site", &site)?,
                    model: parsed("measurements.model", "digest", &model)?,
                    metrics: metrics("measurements.metrics", text)?,
                    at: time(at),
                })
            })
            .collect()
    }

    /// Verdicts on a task's candidates, oldest first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn verdicts(&self, task: &TaskId) -> Result<Vec<VerdictRow>, StoreError> {
        let rows: Vec<(u32, String, i64)> = self.rows(
            "SELECT round, verdict, at_ms FROM verdicts WHERE task = ?1 ORDER BY round",
            [task.as_str()],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
        )?;
        rows.into_iter()
            .map(|(round, verdict, at)| {
                let verdict = from_json("verdicts.verdict", "verdict", &verdict)?;
                Ok(VerdictRow { round: RoundNumber(round), verdict, at: time(at) })
            })
            .collect()
    }

    /// Released models of a task, oldest first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn releases(&self, task: &TaskId) -> Result<Vec<ReleaseRow>, StoreError> {
        let rows: Vec<(u32, i64, Option<String>, Option<i64>)> = self.rows(
            "SELECT version, released_at_ms, bundle, ledger_index FROM releases WHERE task = ?1 ORDER BY version",
            [task.as_str()],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)),
        )?;
        rows.into_iter()
            .map(|(version, at, bundle, index)| {
                let bundle = bundle.map(|b| from_json("releases.bundle", "blob manifest", &b)).transpose()?;
                Ok(ReleaseRow {
                    version: ModelVersion(version),
                    released_at: time(at),
                    bundle,
                    ledger_index: index.map(i64::unsigned_abs),
                })
            })
            .collect()
    }

    /// Queues the release's ledger entry once; returns its index, also when it was queued before a restart.
    ///
    /// # Errors
    /// When the model was not released or the disk refuses.
    pub fn queue_release_entry(
        &mut self,
        task: &TaskId,
        version: ModelVersion,
        entry: impl FnOnce() -> Vec<u8>,
    ) -> Result<u64, StoreError> {
        let release = self.release(task, version)?;
        if let Some(index) = release.ledger_index {
            return Ok(index);
        }
        let tx = self.connection.transaction().context("queueing a release")?;
        let index = crate::outbox::queue(&tx, &[entry()])?;
        tx.execute(
            "UPDATE releases SET ledger_index = ?3 WHERE task = ?1 AND version = ?2",
            params![task.as_str(), version.0, integer(index)],
        )
        .context("queueing a release")?;
        tx.commit().context("queueing a release")?;
        Ok(index)
    }

    /// Notes the bundle that has been made for a release; before that the release is to be completed after a restart.
    ///
    /// # Errors
    /// When the model was not released or the disk refuses.
    pub fn release_bundled(
        &mut self,
        task: &TaskId,
        version: ModelVersion,
        bundle: &BlobManifest,
    ) -> Result<(), StoreError> {
        self.release(task, version)?;
        self.connection
            .execute(
                "UPDATE releases SET bundle = ?3 WHERE task = ?1 AND version = ?2",
                params![task.as_str(), version.0, json(bundle)],
            )
            .context("noting a bundle")
            .map(|_| ())
    }

    fn release(&self, task: &TaskId, version: ModelVersion) -> Result<ReleaseRow, StoreError> {
        let no_such = StoreError::NoSuchModel { task: task.clone(), version };
        self.releases(task)?.into_iter().find(|row| row.version == version).ok_or(no_such)
    }

    /// The line of descent of a model, from it back to the initial one.
    ///
    /// # Errors
    /// When there is no such model or the database cannot be read.
    pub fn lineage(&self, task: &TaskId, version: ModelVersion) -> Result<Vec<LineageStep>, StoreError> {
        let mut models = self.models(task)?;
        let no_such = StoreError::NoSuchModel { task: task.clone(), version };
        if !models.iter().any(|row| row.model.version == version) {
            return Err(no_such);
        }
        models.retain(|row| row.model.version <= version);
        let mut wanted = models.last().map(|row| row.model.digest);
        let mut steps = Vec::new();
        for model in models.into_iter().rev() {
            if wanted == Some(model.model.digest) {
                wanted = model.base;
                let contributions = match model.base {
                    Some(_) => self.contributions(task, Some(model.round))?,
                    None => Vec::new(),
                };
                steps.push(LineageStep { model, contributions });
            }
        }
        Ok(steps)
    }

    /// Everything for a model's card.
    ///
    /// # Errors
    /// When there is no such model or the database cannot be read.
    pub fn model_card(&self, task: &TaskId, version: ModelVersion) -> Result<ModelCard, StoreError> {
        let lineage = self.lineage(task, version)?;
        let no_such = StoreError::NoSuchModel { task: task.clone(), version };
        let model = lineage.first().map(|step| step.model.clone()).ok_or(no_such)?;
        let mut measurements = self.measurements(task, None)?;
        measurements.retain(|row| row.model == model.model.digest);
        let verdict = self.verdicts(task)?.into_iter().rfind(|row| row.verdict.model.version == version);
        let release = self.releases(task)?.into_iter().find(|row| row.version == version);
        let datasets = self.datasets(task)?;
        Ok(ModelCard { task: task.clone(), model, lineage, measurements, verdict, datasets, release })
    }

    /// The newest `limit` lines of a task's history, oldest first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn history(&self, task: &TaskId, limit: u32) -> Result<Vec<HistoryRow>, StoreError> {
        let mut rows: Vec<(i64, String)> = self.rows(
            "SELECT at_ms, record FROM history WHERE task = ?1 ORDER BY id DESC LIMIT ?2",
            params![task.as_str(), limit],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?;
        rows.reverse();
        rows.into_iter()
            .map(|(at, record)| {
                Ok(HistoryRow { at: time(at), record: from_json("history.record", "round record", &record)? })
            })
            .collect()
    }
}
