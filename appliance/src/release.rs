//! Released models: kept only when proven.

use crate::{files, vote};
use anyhow::{Context as _, Result};
use medinet_ledger::{LedgerPublicKey, ModelBundle, TrustedKeys, VoteDemand};
use medinet_types::ModelVersion;
use medinet_types::TaskId;
use std::path::{Path, PathBuf};

/// Where the newest proven release of a task lies.
#[must_use]
pub(crate) fn path(data_dir: &Path, task: &TaskId) -> PathBuf {
    data_dir.join("models").join(format!("{task}.bundle"))
}

/// Verifies a bundle, with the votes that the site's policy asks for, and puts it in the place of the former one; an older version is not put there.
///
/// # Errors
/// When its signature, its proof, its votes or its content does not hold, this site has voted against it, or the disk refuses.
pub(crate) fn keep(
    data_dir: &Path,
    task: &TaskId,
    key: LedgerPublicKey,
    demand: &VoteDemand<'_>,
    keep_rejected: bool,
    bundle: &[u8],
) -> Result<ModelVersion> {
    let trusted = TrustedKeys { ledger: key };
    let verified = ModelBundle::decode(bundle)
        .and_then(|bundle| bundle.verify_voted(&trusted, demand))
        .context("the released model is refused")?;
    anyhow::ensure!(verified.spec().task == *task, "the released model is refused: it is of another task");
    // Others' votes may carry it, and a bundle cannot show which were left out; what this site said itself it knows.
    anyhow::ensure!(
        keep_rejected || !vote::has_rejected(data_dir, task, verified.digest())?,
        "the released model is refused: this site has voted against it"
    );
    let path = path(data_dir, task);
    if let Some(held) = files::read(&path)?
        && let Ok(held) = ModelBundle::decode(&held).and_then(|held| held.verify(&trusted))
        && held.version() > verified.version()
    {
        anyhow::bail!(
            "the released model is refused: version {} is older than version {}, which is here",
            verified.version(),
            held.version()
        );
    }
    std::fs::create_dir_all(data_dir.join("models"))?;
    files::replace(&path, bundle)?;
    Ok(verified.version())
}

#[cfg(test)]
#[path = "release_tests.rs"]
mod tests;
