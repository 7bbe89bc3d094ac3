//! Objects that are held back, and why.

use medinet_objects::ObjectError;

/// Why an object was held back. No text of it holds anything that the object said.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuarantineReason {
    /// The bytes are no DICOM file that can be read.
    #[error("the file cannot be read as DICOM: {0}")]
    Unreadable(ObjectError),
    /// An attribute without which the object cannot be told from others is missing or has no value.
    #[error("expected a value in {0}, the object has none")]
    MissingAttribute(&'static str),
    /// The object wraps a document (PDF, CDA, STL, ...) whose content is not cleaned.
    #[error("the object wraps a document, which is not cleaned")]
    EncapsulatedDocument,
    /// The object holds sound or other recordings that are not cleaned.
    #[error("the object holds {0}, which is not cleaned")]
    UncleanableContent(&'static str),
    /// Sequences are nested deeper than is reasonable.
    #[error("sequences are nested deeper than {0} levels")]
    TooDeep(usize),
    /// The pixels could not be decoded, so nobody can say what is written in them.
    #[error("the pixels could not be decoded ({0}), so burned-in text cannot be ruled out")]
    PixelsUndecodable(&'static str),
    /// The object says that text is burned in, and none was found to blank.
    #[error("the object says that text is burned in, but none was found to blank")]
    BurnedInTextNotFound,
    /// So much of the picture looks like text that blanking it would leave nothing to learn from.
    #[error("{0} % of the picture looks like text; blanking it would leave too little")]
    MostlyText(u32),
    /// The object says that a face or other features can be recognised.
    #[error("the object says that the person can be recognised in the picture")]
    RecognizableVisualFeatures,
    /// An identifier was still there after cleaning.
    #[error("an identifier was still in {0} after cleaning")]
    ResidualIdentifier(&'static str),
    /// The re-link table could not be written; the object itself may be fine.
    #[error("the re-link table could not be written; check the disk, then try the object again")]
    RelinkUnavailable,
    /// The de-identifier broke on the object.
    #[error("the de-identifier failed on this object ({0})")]
    Internal(&'static str),
}

impl QuarantineReason {
    /// A short, stable name for counting and filtering.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unreadable(_) => "unreadable",
            Self::MissingAttribute(_) => "missing-attribute",
            Self::EncapsulatedDocument => "encapsulated-document",
            Self::UncleanableContent(_) => "uncleanable-content",
            Self::TooDeep(_) => "too-deep",
            Self::PixelsUndecodable(_) => "pixels-undecodable",
            Self::BurnedInTextNotFound => "burned-in-text-not-found",
            Self::MostlyText(_) => "mostly-text",
            Self::RecognizableVisualFeatures => "recognizable-visual-features",
            Self::ResidualIdentifier(_) => "residual-identifier",
            Self::RelinkUnavailable => "relink-unavailable",
            Self::Internal(_) => "internal",
        }
    }
}

/// An object that was held back: it stays at the hospital as it is, and nothing of it goes on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("held back: {reason}")]
pub struct Quarantine {
    /// Why.
    pub reason: QuarantineReason,
}

impl Quarantine {
    /// Whether the same object may pass when tried again without change.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self.reason, QuarantineReason::RelinkUnavailable)
    }
}

impl From<ObjectError> for QuarantineReason {
    fn from(error: ObjectError) -> Self {
        match error {
            ObjectError::TooDeep { limit } => Self::TooDeep(limit),
            error => Self::Unreadable(error),
        }
    }
}

impl From<QuarantineReason> for Quarantine {
    fn from(reason: QuarantineReason) -> Self {
        Self { reason }
    }
}
