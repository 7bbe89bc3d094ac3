//! What leaves the de-identifier.

use crate::report::ObjectReport;
use dicom_object::{FileDicomObject, InMemDicomObject};
use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! pseudonym {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        ///
        /// 32 lower-case hexadecimal digits, computed with the site's secret key (HMAC-SHA256, first 128
        /// bits): equal for equal originals within a site, meaningless and unlinkable outside it.
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub(crate) String);

        impl $name {
            /// The pseudonym as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// Takes a pseudonym that was stored as text; `None` when it is not 32 lower-case hexadecimal digits.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                let good = text.len() == 32
                    && text.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c));
                good.then(|| Self(text.to_owned()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

pseudonym! {
    /// Stands for a patient: splits by patient and dates of one patient hang on it. It is also the
    /// cleaned object's `PatientID`.
    PatientKey
}
pseudonym! {
    /// Stands for a study.
    StudyKey
}
pseudonym! {
    /// Stands for an accession number, so that labels listed by accession number find their studies while
    /// the number itself is stored nowhere.
    AccessionKey
}

/// A DICOM object without identifiers. Only [`Deidentifier::apply`](crate::Deidentifier::apply) makes one.
pub struct Deidentified {
    pub(crate) object: FileDicomObject<InMemDicomObject>,
    pub(crate) instance_uid: String,
    pub(crate) patient_key: PatientKey,
    pub(crate) study_key: StudyKey,
    pub(crate) accession_key: Option<AccessionKey>,
    pub(crate) report: ObjectReport,
}

impl Deidentified {
    /// The cleaned object, in Explicit VR Little Endian: pixel data, if any, is uncompressed, and
    /// what compressed streams carry beside the picture has been left behind.
    #[must_use]
    pub fn object(&self) -> &FileDicomObject<InMemDicomObject> {
        &self.object
    }

    /// Takes the cleaned object out.
    #[must_use]
    pub fn into_object(self) -> FileDicomObject<InMemDicomObject> {
        self.object
    }

    /// The object as a DICOM file (PS3.10) with an empty preamble.
    ///
    /// # Errors
    /// When the object cannot be encoded, which is a fault of this program.
    pub fn to_bytes(&self) -> Result<Vec<u8>, EncodeError> {
        let mut out = Vec::new();
        self.object.write_all(&mut out).map_err(|source| EncodeError { source: Box::new(source) })?;
        Ok(out)
    }

    /// The remapped `SOPInstanceUID`.
    #[must_use]
    pub fn instance_uid(&self) -> &str {
        &self.instance_uid
    }

    /// The patient's pseudonym.
    #[must_use]
    pub fn patient_key(&self) -> &PatientKey {
        &self.patient_key
    }

    /// The study's pseudonym.
    #[must_use]
    pub fn study_key(&self) -> &StudyKey {
        &self.study_key
    }

    /// The keyed hash of the accession number; `None` where the object had none.
    #[must_use]
    pub fn accession_key(&self) -> Option<&AccessionKey> {
        self.accession_key.as_ref()
    }

    /// What was done to this object; holds no identifier.
    #[must_use]
    pub fn report(&self) -> &ObjectReport {
        &self.report
    }
}

impl fmt::Debug for Deidentified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deidentified")
            .field("instance_uid", &self.instance_uid)
            .field("patient_key", &self.patient_key)
            .finish_non_exhaustive()
    }
}

/// A cleaned object could not be written as a file.
#[derive(Debug, thiserror::Error)]
#[error("a cleaned object could not be encoded as a DICOM file; this is a fault of the de-identifier")]
pub struct EncodeError {
    #[source]
    source: Box<dicom_object::WriteError>,
}
