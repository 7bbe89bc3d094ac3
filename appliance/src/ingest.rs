//! Studies in: from the PACS through the de-identifier into the data set.

use crate::settings::ApplianceSettings;
use anyhow::{Context as _, Result};
use medinet_dataset::{Added, Dataset, DatasetError};
use medinet_deident::Deidentifier;
use medinet_model::TaskSpec;
use medinet_pacs::{Accepted, Delivery, Intake, IntakeProgress, Rejected};
use std::path::PathBuf;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What the rest of the appliance sees of the intake.
#[derive(Debug, Clone)]
pub(crate) struct IntakeView {
    /// Counts, as they change.
    pub(crate) progress: watch::Receiver<IntakeProgress>,
    /// True once a whole pass over the sources has ended, so that the data set is what the hospital has; from the start where
    /// an earlier run came that far and left images: a PACS that is away for a while does not keep the site out of rounds.
    /// Images that a broken-off first pass has left are no reason: the site would train on whatever came first.
    pub(crate) ready: watch::Receiver<bool>,
}

/// Folder of the intake: its ledger and its spool.
pub(crate) fn intake_dir(settings: &ApplianceSettings) -> PathBuf {
    settings.data_dir.join("intake")
}

/// An error with what caused it, for the operator: the cause is what tells what to do.
fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
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
    let has_images = dataset.has_images()?;
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
                Err(Rejected::Quarantine { code: "not-usable", reason: with_causes(&error) })
            }
            Err(error @ DatasetError::TooLarge { .. }) => {
                Err(Rejected::Quarantine { code: "too-large", reason: with_causes(&error) })
            }
            Err(error) => Err(Rejected::Unavailable { reason: with_causes(&error) }),
        }
    };
    let intake = Intake::open(settings.pacs.clone(), &intake_dir(settings), sink)
        .context("the intake cannot be opened")?;
    let (ready_tx, ready) = watch::channel(has_images && intake.has_passed()?);
    let (progress, mut first_pass) = (intake.progress(), intake.first_pass());
    let counts = progress.clone();
    tokio::spawn(async move {
        // An error: the intake has ended before, and says so below.
        if first_pass.wait_for(|done| *done).await.is_ok() {
            let counts = *counts.borrow();
            tracing::info!(
                ingested = counts.ingested,
                quarantined = counts.quarantined,
                "a whole pass over the sources has ended"
            );
            ready_tx.send_replace(true);
        }
    });
    tokio::spawn(async move {
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
