//! The hospitals' archives: studies made from public pictures, and a PACS for each hospital filled over STOW-RS.

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use medinet_lab::orthanc::Orthanc;
use medinet_pacs::dicomweb::{DicomWebClient, StoreOutcome};
use medinet_pacs::{DicomWebAuth, DicomWebSettings};
use medinet_settings::{RedactedUrl, SecretFile};
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Objects in one call of the client, which splits them into requests itself.
const BATCH: usize = 20;
const SCRIPT: &str = "demo/make_studies.py";

/// The checkout that holds the demo's pictures: around the working folder, or around this program.
pub(crate) fn repository() -> Result<PathBuf> {
    let starts = [std::env::current_dir().ok(), std::env::current_exe().ok()];
    starts
        .iter()
        .flatten()
        .flat_map(|start| start.ancestors())
        .find(|folder| folder.join(SCRIPT).is_file())
        .map(Path::to_owned)
        .with_context(|| {
            format!("expected {SCRIPT} around the working folder: run the demo inside a checkout")
        })
}

fn python(repository: &Path) -> Result<PathBuf> {
    let venv = std::env::var_os("MEDINET_VENV").map_or_else(|| repository.join(".venv"), PathBuf::from);
    let python = venv.join("bin/python");
    ensure!(python.exists(), "expected Python at {}: `cargo xtask setup` makes it", python.display());
    Ok(python)
}

/// Makes every hospital's studies and the common test set under `folder`.
pub(crate) fn make(folder: &Path, sites: usize, seed: u64, log: &Path) -> Result<()> {
    let repository = repository()?;
    let file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let status = Command::new(python(&repository)?)
        .arg(repository.join(SCRIPT))
        .arg("--out")
        .arg(folder)
        .args(["--sites", &sites.to_string(), "--seed", &seed.to_string()])
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .status()
        .with_context(|| format!("cannot run {SCRIPT}"))?;
    ensure!(status.success(), "{SCRIPT} ended with {status}: see {}", log.display());
    Ok(())
}

/// The DICOM files of a folder, in order of their names.
pub(crate) fn dicom_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "dcm") {
            files.push(path);
        }
    }
    files.sort();
    ensure!(!files.is_empty(), "expected DICOM files in {}, found none", folder.display());
    Ok(files)
}

/// A password that nobody needs to know.
fn password() -> Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .context("the operating system gave no random bytes: check /dev/urandom")?;
    Ok(hex::encode(bytes))
}

/// Starts a PACS for each hospital and stores its studies there.
pub(crate) fn archives(out: &Path, names: &[String]) -> Result<Vec<Orthanc>> {
    let bars = MultiProgress::new();
    let style = ProgressStyle::with_template("{prefix:12} {bar:40} {pos}/{len} stored in the PACS")?;
    let mut archives = Vec::new();
    let mut work = Vec::new();
    for (index, name) in names.iter().enumerate() {
        let folder = out.join("pacs").join(name);
        let orthanc = Orthanc::start(&folder, name, &password()?).with_context(|| {
            format!("the PACS of {name} (its log: {})", folder.join("orthanc.log").display())
        })?;
        let files = dicom_files(&out.join(format!("studies/site-{}", index + 1)))?;
        let url: RedactedUrl = orthanc.url.parse()?;
        let mut settings = DicomWebSettings::new(url);
        settings.auth = DicomWebAuth::Basic {
            user: orthanc.user.clone(),
            password_file: SecretFile::new(&orthanc.password_file),
        };
        let bar = bars.add(ProgressBar::new(files.len() as u64).with_style(style.clone()));
        bar.set_prefix(name.clone());
        work.push((name.clone(), DicomWebClient::new(&settings)?, files, bar, folder.join("orthanc.log")));
        archives.push(orthanc);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for (name, client, files, bar, log) in work {
            tasks.spawn(async move {
                fill(&client, &files, &bar)
                    .await
                    .with_context(|| format!("filling the PACS of {name} (its log: {})", log.display()))
            });
        }
        while let Some(done) = tasks.join_next().await {
            done??;
        }
        anyhow::Ok(())
    })?;
    Ok(archives)
}

async fn fill(client: &DicomWebClient, files: &[PathBuf], bar: &ProgressBar) -> Result<()> {
    for batch in files.chunks(BATCH) {
        let mut objects = Vec::with_capacity(batch.len());
        for path in batch {
            let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            objects.push(Bytes::from(bytes));
        }
        let outcomes = client.store(&objects).await?;
        ensure!(outcomes.len() == batch.len(), "{} outcomes of {} objects", outcomes.len(), batch.len());
        for (path, outcome) in batch.iter().zip(outcomes) {
            if let StoreOutcome::Failed(failure) = outcome {
                bail!("{}: {failure}", path.display());
            }
        }
        bar.inc(batch.len() as u64);
    }
    bar.finish();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_dicom_files_are_listed_in_order() {
        let folder = tempfile::tempdir().unwrap();
        assert!(dicom_files(folder.path()).is_err());
        for name in ["b.dcm", "a.dcm", "labels.csv"] {
            fs::write(folder.path().join(name), b"").unwrap();
        }
        let names: Vec<_> = dicom_files(folder.path()).unwrap();
        assert_eq!(names, [folder.path().join("a.dcm"), folder.path().join("b.dcm")]);
    }

    #[test]
    fn passwords_differ() {
        assert_ne!(password().unwrap(), password().unwrap());
    }
}
