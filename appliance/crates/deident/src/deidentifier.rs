//! The de-identifier: settings, the site's key and the re-link table, and the way of an object through them.

use crate::clean::{Cleaner, remapped_uid, text_of, texts};
use crate::deidentified::{AccessionKey, Deidentified, PatientKey, StudyKey};
use crate::identified::Identified;
use crate::identifiers::KnownIdentifiers;
use crate::keys::SiteKey;
use crate::pixels;
use crate::quarantine::{Quarantine, QuarantineReason};
use crate::relink::{
    OriginalInstance, OriginalPatient, OriginalStudy, Originals, QuarantinedInstance, RelinkError,
    RelinkTable,
};
use crate::report::{ObjectReport, StudyReport};
use crate::settings::{DeidentSettings, SettingsError};
use crate::table::EDITION;
use dicom_core::header::Header as _;
use dicom_core::value::DataSetSequence;
use dicom_core::{DataElement, Length, Tag, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::mem::InMemDicomObject;
use dicom_object::{FileDicomObject, FileMetaTableBuilder};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// `ImplementationClassUID` of what this program writes; UUID-derived (PS3.5 B.2).
const IMPLEMENTATION_CLASS_UID: &str = "2.25.208346205947239875238946017835520194817";
const IMPLEMENTATION_VERSION_NAME: &str = "MEDINET_0_1";

/// The de-identifier could not start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A setting is out of its range.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The site's key could not be read or made.
    #[error("the site key {path:?} could not be read or made; the appliance's user must own it, mode 0600", path = .path)]
    Key {
        /// Where the key belongs.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The re-link table could not be opened.
    #[error("the re-link table could not be opened")]
    Relink(#[from] RelinkError),
}

/// Cleans objects by PS3.15 Annex E with this site's key. Safe to share between threads.
pub struct Deidentifier {
    settings: DeidentSettings,
    key: SiteKey,
    relink: RelinkTable,
}

/// What identifies an object, taken before it is cleaned.
struct Identity {
    issuer: String,
    patient_id: String,
    study_instance_uid: String,
    series_instance_uid: String,
    sop_instance_uid: String,
    sop_class_uid: String,
    accession_number: Option<String>,
}

impl Deidentifier {
    /// Opens the de-identifier whose key (`site.key`) and re-link table (`relink.sqlite`) lie in `dir`, making both, and
    /// the folder, where they do not exist yet. Whoever loses the key loses the links between old and new objects:
    /// back both up together, at the site.
    ///
    /// # Errors
    /// When a setting is out of its range, or a file cannot be used.
    pub fn open(settings: DeidentSettings, dir: &Path) -> Result<Self, OpenError> {
        settings.check()?;
        let path = dir.join("site.key");
        let key = std::fs::create_dir_all(dir)
            .and_then(|()| SiteKey::open(&path))
            .map_err(|source| OpenError::Key { path, source })?;
        let relink = RelinkTable::open(&dir.join("relink.sqlite"))?;
        Ok(Self { settings, key, relink })
    }

    /// Cleans one object. The same object, key and settings give the same result, and cleaning it again changes nothing in
    /// the re-link table.
    ///
    /// # Errors
    /// When the object cannot be cleaned for certain; the reason names no identifier.
    pub fn apply(&self, object: Identified) -> Result<Deidentified, Quarantine> {
        // Decoders of untrusted bytes: one that breaks costs its object, not the appliance.
        let result = catch_unwind(AssertUnwindSafe(|| self.apply_inner(&object)));
        let result = result.unwrap_or(Err(QuarantineReason::Internal("it panicked")));
        if let Err(reason) = &result {
            tracing::info!(code = reason.code(), origin = ?object.origin(), "object held back");
        }
        Ok(result?)
    }

    fn apply_inner(&self, object: &Identified) -> Result<Deidentified, QuarantineReason> {
        let original = medinet_objects::read(object.bytes())?;
        let identity = Identity::of(&original)?;
        let study_key = self.key.study(&identity.study_instance_uid);
        let result = self.clean(original, &identity, &study_key);
        if let Err(reason) = &result {
            self.relink
                .record_quarantined(&identity.sop_instance_uid, &study_key, reason)
                .map_err(|_| QuarantineReason::RelinkUnavailable)?;
        }
        result
    }

    fn clean(
        &self,
        original: FileDicomObject<InMemDicomObject>,
        identity: &Identity,
        study_key: &StudyKey,
    ) -> Result<Deidentified, QuarantineReason> {
        refuse_uncleanable(&original, identity)?;
        let patient_key = self.key.patient(&identity.issuer, &identity.patient_id);
        let root = &self.settings.uid_root;
        let instance_uid = remapped_uid(&self.key, root, &identity.sop_instance_uid);
        let study_uid = remapped_uid(&self.key, root, &identity.study_instance_uid);
        let known = KnownIdentifiers::of(&original);
        let mut report = ObjectReport::default();
        let received = original.meta().transfer_syntax().trim_matches(['\0', ' ']).to_owned();
        let traits = pixels::Traits::of(&original);

        let mut cleaner = Cleaner {
            settings: &self.settings,
            key: &self.key,
            shift_days: self.key.shift_days(&patient_key, &self.settings.date_shift),
            known: &known,
            report: &mut report,
        };
        let mut data_set = cleaner.clean(original.into_inner())?;
        self.mark(&mut data_set, &patient_key, traits.has_pixels, &mut report);

        let meta = FileMetaTableBuilder::new()
            .media_storage_sop_class_uid(identity.sop_class_uid.as_str())
            .media_storage_sop_instance_uid(instance_uid.as_str())
            .transfer_syntax(received.as_str())
            .implementation_class_uid(IMPLEMENTATION_CLASS_UID)
            .implementation_version_name(IMPLEMENTATION_VERSION_NAME);
        let mut object =
            data_set.with_meta(meta).map_err(|_| QuarantineReason::Internal("no file meta could be made"))?;
        if traits.has_pixels {
            let done = pixels::clean(&mut object, &traits, &self.settings)?;
            report.pixels = Some(done);
        }
        object.update_meta(|meta| meta.transfer_syntax = uids::EXPLICIT_VR_LITTLE_ENDIAN.into());
        verify(&object, &known)?;

        let originals = Originals {
            issuer: &identity.issuer,
            patient_id: &identity.patient_id,
            study_instance_uid: &identity.study_instance_uid,
            series_instance_uid: &identity.series_instance_uid,
            sop_instance_uid: &identity.sop_instance_uid,
        };
        self.relink
            .record(&originals, &patient_key, study_key, &study_uid, &instance_uid, &report)
            .map_err(|_| QuarantineReason::RelinkUnavailable)?;
        Ok(Deidentified {
            object,
            instance_uid,
            patient_key,
            study_key: study_key.clone(),
            accession_key: identity.accession_number.as_deref().map(|number| self.accession_key(number)),
            report,
        })
    }

    /// Says in the object what was done to it (PS3.15 E.1.1 step 6, E.3.6).
    fn mark(
        &self,
        data_set: &mut InMemDicomObject,
        patient: &PatientKey,
        has_pixels: bool,
        report: &mut ObjectReport,
    ) {
        let options = self.settings.options;
        // PS3.16 CID 7050.
        let methods = [
            (true, "113100", "Basic Application Confidentiality Profile"),
            (has_pixels, "113101", "Clean Pixel Data Option"),
            (options.clean_structured_content, "113104", "Clean Structured Content Option"),
            (options.clean_descriptors, "113105", "Clean Descriptors Option"),
            (
                options.retain_longitudinal_modified_dates,
                "113107",
                "Retain Longitudinal Temporal Information Modified Dates Option",
            ),
            (options.retain_safe_private, "113111", "Retain Safe Private Option"),
        ];
        let items: Vec<InMemDicomObject> = methods
            .iter()
            .filter(|(on, ..)| *on)
            .map(|(_, code, meaning)| {
                InMemDicomObject::from_element_iter([
                    DataElement::new(tags::CODE_VALUE, VR::SH, *code),
                    DataElement::new(tags::CODING_SCHEME_DESIGNATOR, VR::SH, "DCM"),
                    DataElement::new(tags::CODE_MEANING, VR::LO, *meaning),
                ])
            })
            .collect();
        report.method_codes =
            methods.iter().filter(|(on, ..)| *on).map(|(_, code, _)| (*code).to_owned()).collect();
        let modified = if options.retain_longitudinal_modified_dates { "MODIFIED" } else { "REMOVED" };
        let method = format!("MediNet {}, PS3.15 {EDITION} Annex E", env!("CARGO_PKG_VERSION"));
        let mut put = |tag: Tag, vr, text: &str| {
            data_set.put_element(DataElement::new(tag, vr, text));
        };
        put(tags::SPECIFIC_CHARACTER_SET, VR::CS, "ISO_IR 192");
        put(tags::PATIENT_NAME, VR::PN, patient.as_str());
        put(tags::PATIENT_ID, VR::LO, patient.as_str());
        put(tags::PATIENT_IDENTITY_REMOVED, VR::CS, "YES");
        put(tags::DEIDENTIFICATION_METHOD, VR::LO, &method);
        put(tags::LONGITUDINAL_TEMPORAL_INFORMATION_MODIFIED, VR::CS, modified);
        data_set.put_element(DataElement::new(
            tags::DEIDENTIFICATION_METHOD_CODE_SEQUENCE,
            VR::SQ,
            DataSetSequence::new(items, Length::UNDEFINED),
        ));
    }

    /// The key under which a study with this accession number is found, for label lists that go by it.
    #[must_use]
    pub fn accession_key(&self, accession_number: &str) -> AccessionKey {
        self.key.accession(accession_number)
    }

    /// The pseudonym of a study, by its original `StudyInstanceUID`.
    #[must_use]
    pub fn study_key(&self, study_instance_uid: &str) -> StudyKey {
        self.key.study(study_instance_uid)
    }

    /// Who a pseudonym stands for. For the site's own staff, on the appliance; nothing may send the answer on.
    ///
    /// # Errors
    /// When the re-link table cannot be read.
    pub fn relink_patient(&self, key: &PatientKey) -> Result<Option<OriginalPatient>, RelinkError> {
        self.relink.patient(key)
    }

    /// Which study a pseudonym stands for. For the site's own staff, and to give results back to the PACS.
    ///
    /// # Errors
    /// When the re-link table cannot be read.
    pub fn relink_study(&self, key: &StudyKey) -> Result<Option<OriginalStudy>, RelinkError> {
        self.relink.study(key)
    }

    /// Which instance a remapped `SOPInstanceUID` stands for. To give results back to the PACS.
    ///
    /// # Errors
    /// When the re-link table cannot be read.
    pub fn relink_instance(
        &self,
        new_sop_instance_uid: &str,
    ) -> Result<Option<OriginalInstance>, RelinkError> {
        self.relink.instance(new_sop_instance_uid)
    }

    /// The objects of a study that were held back and not cleaned since. For the site's own staff.
    ///
    /// # Errors
    /// When the re-link table cannot be read.
    pub fn quarantined(&self, study: &StudyKey) -> Result<Vec<QuarantinedInstance>, RelinkError> {
        self.relink.quarantined(study)
    }

    /// What was done to the objects of a study so far; `None` where none was seen.
    ///
    /// # Errors
    /// When the re-link table cannot be read.
    pub fn study_report(&self, key: &StudyKey) -> Result<Option<StudyReport>, RelinkError> {
        self.relink.study_report(key)
    }
}

impl Identity {
    fn of(object: &FileDicomObject<InMemDicomObject>) -> Result<Self, QuarantineReason> {
        let required = |tag, keyword| text_of(object, tag).ok_or(QuarantineReason::MissingAttribute(keyword));
        let sop_class_uid = required(tags::SOP_CLASS_UID, "SOPClassUID")?;
        let sop_instance_uid = required(tags::SOP_INSTANCE_UID, "SOPInstanceUID")?;
        let study_instance_uid = required(tags::STUDY_INSTANCE_UID, "StudyInstanceUID")?;
        let (issuer, patient_id) = match text_of(object, tags::PATIENT_ID) {
            Some(id) => (text_of(object, tags::ISSUER_OF_PATIENT_ID).unwrap_or_default(), id),
            // Without a number, name and birth date tell patients apart; without those, each study is a patient of its own.
            None => match text_of(object, tags::PATIENT_NAME) {
                Some(name) => {
                    let born = text_of(object, tags::PATIENT_BIRTH_DATE).unwrap_or_default();
                    (String::new(), format!("{name} {born}"))
                }
                None => (String::new(), study_instance_uid.clone()),
            },
        };
        Ok(Self {
            issuer,
            patient_id,
            series_instance_uid: text_of(object, tags::SERIES_INSTANCE_UID).unwrap_or_default(),
            accession_number: text_of(object, tags::ACCESSION_NUMBER),
            study_instance_uid,
            sop_instance_uid,
            sop_class_uid,
        })
    }
}

/// Holds back what no rule here can clean.
fn refuse_uncleanable(
    object: &FileDicomObject<InMemDicomObject>,
    identity: &Identity,
) -> Result<(), QuarantineReason> {
    if object.get(tags::ENCAPSULATED_DOCUMENT).is_some() {
        return Err(QuarantineReason::EncapsulatedDocument);
    }
    match identity.sop_class_uid.as_str() {
        uids::MEDIA_STORAGE_DIRECTORY_STORAGE => {
            Err(QuarantineReason::UncleanableContent("a media directory"))
        }
        uids::RAW_DATA_STORAGE => {
            Err(QuarantineReason::UncleanableContent("raw data of the maker's own form"))
        }
        uids::BASIC_VOICE_AUDIO_WAVEFORM_STORAGE | uids::GENERAL_AUDIO_WAVEFORM_STORAGE => {
            Err(QuarantineReason::UncleanableContent("sound"))
        }
        _ if text_of(object, tags::RECOGNIZABLE_VISUAL_FEATURES).as_deref() == Some("YES") => {
            Err(QuarantineReason::RecognizableVisualFeatures)
        }
        _ => Ok(()),
    }
}

/// Looks through the finished object once more, whatever the rules were: no attribute may hold what the
/// original said about its patient.
fn verify(object: &InMemDicomObject, known: &KnownIdentifiers) -> Result<(), QuarantineReason> {
    for element in object {
        if let Some(items) = element.items() {
            items.iter().try_for_each(|item| verify(item, known))?;
            continue;
        }
        let text = match element.vr() {
            // Coded words and our own marks are everyday words; what they may hold was checked when they were kept.
            VR::CS | VR::UI | VR::DA | VR::DT | VR::TM | VR::DS | VR::IS | VR::AS => continue,
            VR::AE | VR::LO | VR::SH | VR::ST | VR::LT | VR::UT | VR::UC | VR::PN | VR::UR => {
                texts(element).join("\\")
            }
            _ => continue,
        };
        let ours = [tags::DEIDENTIFICATION_METHOD, tags::CODE_MEANING, tags::CODING_SCHEME_DESIGNATOR];
        if !ours.contains(&element.header().tag()) && text != "REMOVED" && known.is_in(&text) {
            return Err(QuarantineReason::ResidualIdentifier("a text attribute"));
        }
    }
    Ok(())
}
