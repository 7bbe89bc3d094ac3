//! Studies in: from the PACS through the de-identifier into the data set.

use crate::settings::ApplianceSettings;
use anyhow::{Context as _, Result};
use medinet_dataset::{Added, Dataset, DatasetError};
use medinet_deident::Deidentifier;
use medinet_model::TaskSpec;
use medinet_pacs::{Accepted, Delivery, Intake, IntakeProgress, Rejected};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Pause before the PACS is tried again when a whole pass failed.
const PAUSE: Duration = Duration::from_secs(5);

/// What the rest of the appliance sees of the intake.
#[derive(Debug, Clone)]
pub(crate) struct IntakeView {
    /// Counts, as they change.
    pub(crate) progress: watch::Receiver<IntakeProgress>,
    /// True once a whole pass over the sources has ended, so that the data set is what the hospital has.
    pub(crate) ready: watch::Receiver<bool>,
}

/// Opens the intake and lets it run in the background.
///
/// # Errors
/// When a folder, database or address cannot be used.
pub(crate) fn start(
    settings: &ApplianceSettings,
    spec: &TaskSpec,
    shutdown: CancellationToken,
) -> Result<IntakeView> {
    let deidentifier = Deidentifier::open(settings.deident.clone(), &settings.deident_dir())
        .context("the de-identifier cannot be opened")?;
    let mut dataset = Dataset::open(&settings.dataset_dir(spec), spec, &settings.dataset)
        .context("the data set cannot be opened")?;
    let sink = move |delivery: Delivery| -> Result<Accepted, Rejected> {
        let cleaned = deidentifier.apply(delivery.object).map_err(|quarantine| {
            if quarantine.is_retryable() {
                Rejected::Unavailable { reason: quarantine.to_string() }
            } else {
                Rejected::Quarantine { code: quarantine.reason.code(), reason: quarantine.to_string() }
            }
        })?;
        match dataset.add(&cleaned, medinet_link::now()) {
            Ok(Added::Unchanged) => Ok(Accepted::AlreadyStored),
            Ok(_) => Ok(Accepted::Stored),
            Err(error @ (DatasetError::Image(_) | DatasetError::MissingAttribute { .. })) => {
                Err(Rejected::Quarantine { code: "not-usable", reason: error.to_string() })
            }
            Err(error @ DatasetError::TooLarge { .. }) => {
                Err(Rejected::Quarantine { code: "too-large", reason: error.to_string() })
            }
            Err(error) => Err(Rejected::Unavailable { reason: error.to_string() }),
        }
    };
    let mut intake = Intake::open(settings.pacs.clone(), &settings.data_dir.join("intake"), sink)
        .context("the intake cannot be opened")?;
    let progress = intake.progress();
    let (ready_tx, ready) = watch::channel(false);
    tokio::spawn(async move {
        while !shutdown.is_cancelled() {
            match intake.run_once().await {
                Ok(counts) => {
                    tracing::info!(
                        ingested = counts.ingested,
                        quarantined = counts.quarantined,
                        "a whole pass over the sources has ended"
                    );
                    break;
                }
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "the sources cannot be read, trying again"
                    );
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        ready_tx.send_replace(true);
        if let Err(error) = intake.run(shutdown).await {
            tracing::error!(error = &error as &dyn std::error::Error, "the intake has ended");
        }
    });
    Ok(IntakeView { progress, ready })
}

/// Reads the hospital's label files into the data set.
///
/// # Errors
/// When a file has a fault, naming its lines.
pub(crate) fn import_labels(settings: &ApplianceSettings, spec: &TaskSpec) -> Result<()> {
    if settings.dataset.labels_csv.is_empty() {
        return Ok(());
    }
    let deidentifier = Deidentifier::open(settings.deident.clone(), &settings.deident_dir())?;
    let mut dataset = Dataset::open(&settings.dataset_dir(spec), spec, &settings.dataset)?;
    let import = dataset
        .import_configured_labels(|accession| deidentifier.accession_key(accession), medinet_link::now())?;
    tracing::info!(lines = import.lines, changed = import.changed, "labels imported");
    Ok(())
}
