//! What the hospital's own staff asks of an appliance on its machine: what was set aside and why, once more please, what was
//! done to a study, and whom a pseudonym stands for.
//!
//! Everything is read from the data folder, beside a running appliance or without one, and said on standard output alone.
//! Nothing here is logged or sent.

use crate::ingest::intake_dir;
use crate::settings::ApplianceSettings;
use anyhow::{Context as _, Result, bail};
use medinet_deident::{Deidentifier, Origin, PatientKey, StudyKey};
use medinet_pacs::{QuarantineId, QuarantineRecords, QuarantineSelection, QuarantinedObject, Retried};
use medinet_types::UnixMillis;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use time::OffsetDateTime;

/// `medinet-appliance quarantine`.
#[derive(clap::Subcommand)]
pub(crate) enum Quarantine {
    /// Lists what is set aside: how many for which reason, then each object, the newest first.
    List {
        /// The appliance's settings file.
        #[arg(long)]
        config: PathBuf,
        /// Only objects that were set aside with this code.
        #[arg(long)]
        code: Option<String>,
        /// The most objects to list.
        #[arg(long, default_value_t = 100)]
        limit: u32,
    },
    /// Offers what is set aside once more, as after an update or a change of the settings: all, those with a code, or one.
    Retry {
        /// The appliance's settings file.
        #[arg(long)]
        config: PathBuf,
        /// Only objects that were set aside with this code.
        #[arg(long)]
        code: Option<String>,
        /// Only the object with this number, which `list` shows.
        #[arg(long, conflicts_with = "code")]
        id: Option<QuarantineId>,
    },
}

/// Runs `medinet-appliance quarantine`.
///
/// # Errors
/// When settings or records cannot be read, or nothing is meant.
pub(crate) fn quarantine(command: Quarantine) -> Result<()> {
    match command {
        Quarantine::List { config, code, limit } => list(&config, code.as_deref(), limit),
        Quarantine::Retry { config, code, id } => {
            let selection = match (code, id) {
                (Some(code), _) => QuarantineSelection::Code(code),
                (None, Some(id)) => QuarantineSelection::Object(id),
                (None, None) => QuarantineSelection::All,
            };
            retry(&config, &selection)
        }
    }
}

fn list(config: &Path, code: Option<&str>, limit: u32) -> Result<()> {
    let settings: ApplianceSettings = medinet_settings::load(config)?;
    let records = QuarantineRecords::open(&intake_dir(&settings))?;
    let mut reasons = records.reasons()?;
    reasons.retain(|reason| code.is_none_or(|code| reason.code == code));
    let count: u64 = reasons.iter().map(|reason| reason.count).sum();
    let with_code = code.map(|code| format!(" with the code {code}")).unwrap_or_default();
    let mut text = format!("{}{with_code}\n", objects(count, "set aside"));
    for reason in &reasons {
        writeln!(text, "{:>7}  {}: {}", reason.count, reason.code, reason.reason)?;
    }
    let listed = records.list(code, limit)?;
    for object in &listed {
        text.push('\n');
        describe(&mut text, object)?;
    }
    let more = count.saturating_sub(listed.len() as u64);
    if more > 0 {
        writeln!(text, "\nand {more} more: --limit sets how many are listed")?;
    }
    print(&text)
}

fn describe(text: &mut String, object: &QuarantinedObject) -> std::fmt::Result {
    let QuarantinedObject { id, origin, study_uid, series_uid, sop_instance_uid, file, code, reason, at } =
        object;
    let came = match origin {
        Origin::DicomWeb => "pulled from the PACS",
        Origin::CStore => "pushed by a peer",
        Origin::WatchedFolder => "found in the watched folder",
    };
    writeln!(text, "{id}  {code}  {}  {came}", at.map_or_else(|| "at an unknown time".into(), moment))?;
    for (name, uid) in [("study", study_uid), ("series", series_uid), ("object", sop_instance_uid)] {
        if !uid.is_empty() {
            writeln!(text, "    {name} {}", printable(uid))?;
        }
    }
    if let Some(file) = file {
        let place = if *origin == Origin::WatchedFolder { ", now in quarantine/ of that folder" } else { "" };
        writeln!(text, "    file {}{place}", printable(&file.to_string_lossy()))?;
    }
    writeln!(text, "    {}", printable(reason))
}

fn retry(config: &Path, selection: &QuarantineSelection) -> Result<()> {
    let settings: ApplianceSettings = medinet_settings::load(config)?;
    let records = QuarantineRecords::open(&intake_dir(&settings))?;
    let Retried { files, fetches } = records.retry(selection)?;
    if files + fetches == 0 {
        return match selection {
            QuarantineSelection::All => print("nothing is set aside\n"),
            QuarantineSelection::Code(code) => {
                let codes: BTreeSet<String> =
                    records.reasons()?.into_iter().map(|reason| reason.code).collect();
                let codes: Vec<String> = codes.into_iter().collect();
                let known = if codes.is_empty() { "none is".to_owned() } else { codes.join(", ") };
                bail!("expected the code of an object that is set aside ({known}), got {code}")
            }
            QuarantineSelection::Object(id) => {
                bail!(
                    "expected the number of an object that is set aside, as `quarantine list` shows it, got {id}"
                )
            }
        };
    }
    let mut text = format!("{}\n", objects(files + fetches, "offered once more"));
    if files > 0 {
        writeln!(text, "{files} kept here: a running appliance takes them within seconds")?;
    }
    if fetches > 0 {
        let when = match &settings.pacs.dicomweb {
            Some(web) => {
                format!("a running appliance fetches them at its next look (every {})", web.poll_interval)
            }
            None => "the settings name no PACS now, so they wait until one is named".to_owned(),
        };
        writeln!(text, "{fetches} on the PACS: {when}")?;
    }
    text.push_str(
        "An appliance that does not run does so when it is started. It reads its settings at its start: restart it \
         first where they were changed.\nWhat fails again is set aside again.\n",
    );
    print(&text)
}

/// Runs `medinet-appliance report`: what the de-identifier did to a study, named by its StudyInstanceUID or its pseudonym.
///
/// # Errors
/// When nothing of the study was seen, or the records cannot be read.
pub(crate) fn report(config: &Path, study: &str) -> Result<()> {
    let deidentifier = records_of(config)?;
    let by_uid = deidentifier.study_key(study.trim());
    let key = StudyKey::parse(study.trim()).unwrap_or(by_uid);
    let report = deidentifier.study_report(&key)?.with_context(|| {
        format!(
            "expected the StudyInstanceUID or the pseudonym of a study that has come in, got {}: the de-identifier \
             has seen nothing of it; `quarantine list` shows what did not get that far",
            printable(study)
        )
    })?;
    let mut text = format!("study {}\n", report.study_key);
    if let Some(original) = deidentifier.relink_study(&key)? {
        writeln!(text, "  in the PACS:    {}", printable(&original.study_instance_uid))?;
        writeln!(text, "  in the data set: {}", original.new_study_instance_uid)?;
        writeln!(text, "  patient:        {}", original.patient_key)?;
    }
    writeln!(text, "{}", objects(report.deidentified.into(), "de-identified"))?;
    if report.deidentified > 0 {
        writeln!(text, "  profile and options (PS3.16 CID 7050): {}", report.method_codes.join(", "))?;
        writeln!(text, "  attributes, by what was done to them (PS3.15 Annex E):")?;
        for (action, count) in &report.actions {
            writeln!(text, "{count:>9}  {action}")?;
        }
        writeln!(
            text,
            "  pixels: {} frames looked at for burned-in text, {} regions blanked in {} objects",
            report.frames_checked, report.regions_blanked, report.objects_blanked
        )?;
    }
    let held = deidentifier.quarantined(&key)?;
    writeln!(text, "{}", objects(held.len() as u64, "held back"))?;
    for object in held {
        writeln!(text, "  {}  {}: {}", printable(&object.sop_instance_uid), object.code, object.reason)?;
    }
    print(&text)
}

/// Runs `medinet-appliance relink`: whom or what a pseudonym or a UID of the data set stands for.
///
/// # Errors
/// When it stands for nothing that is known here, or the records cannot be read.
pub(crate) fn relink(config: &Path, pseudonym: &str) -> Result<()> {
    let deidentifier = records_of(config)?;
    let pseudonym = pseudonym.trim();
    let mut text = String::new();
    if let Some(key) = PatientKey::parse(pseudonym)
        && let Some(patient) = deidentifier.relink_patient(&key)?
    {
        writeln!(text, "patient {}", printable(&patient.patient_id))?;
        if !patient.issuer.is_empty() {
            writeln!(text, "  number given by {}", printable(&patient.issuer))?;
        }
    }
    if let Some(key) = StudyKey::parse(pseudonym)
        && let Some(study) = deidentifier.relink_study(&key)?
    {
        writeln!(text, "study {}", printable(&study.study_instance_uid))?;
    }
    if let Some(instance) = deidentifier.relink_instance(pseudonym)? {
        writeln!(text, "object {}", printable(&instance.sop_instance_uid))?;
        if !instance.series_instance_uid.is_empty() {
            writeln!(text, "  series {}", printable(&instance.series_instance_uid))?;
        }
        if let Some(study) = deidentifier.relink_study(&instance.study_key)? {
            writeln!(text, "  study {}", printable(&study.study_instance_uid))?;
        }
    }
    if text.is_empty() {
        bail!(
            "expected a pseudonym (32 hexadecimal digits) or a SOPInstanceUID of this site's data set, got {}",
            printable(pseudonym)
        );
    }
    print(&text)
}

/// The de-identifier's records. It would make them where there are none, which is not what was asked for.
fn records_of(config: &Path) -> Result<Deidentifier> {
    let settings: ApplianceSettings = medinet_settings::load(config)?;
    let folder = settings.deident_dir();
    if !folder.is_dir() {
        bail!(
            "expected the de-identifier's records in {}, found none: no appliance has run with this data_dir yet",
            folder.display()
        );
    }
    Ok(Deidentifier::open(settings.deident, &folder)?)
}

fn objects(count: u64, what: &str) -> String {
    match count {
        0 => format!("no object is {what}"),
        1 => format!("1 object is {what}"),
        _ => format!("{count} objects are {what}"),
    }
}

fn moment(at: UnixMillis) -> String {
    let seconds = i64::try_from(at.0 / 1000).unwrap_or(i64::MAX);
    match OffsetDateTime::from_unix_timestamp(seconds) {
        Ok(at) => format!("{} {:02}:{:02}:{:02} UTC", at.date(), at.hour(), at.minute(), at.second()),
        Err(_) => "at an unknown time".into(),
    }
}

/// A text that came from outside, fit for a terminal: UIDs and file names may hold anything.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

fn print(text: &str) -> Result<()> {
    std::io::stdout().write_all(text.as_bytes()).context("cannot write to standard output")
}
