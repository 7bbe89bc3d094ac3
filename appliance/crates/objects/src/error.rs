//! Why bytes are no object that can be read.

/// Bytes that were refused: the sender's fault. No text here holds anything of the content, not even a stated length,
/// which may be four letters of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ObjectError {
    /// The bytes begin neither as a file nor as a data set.
    #[error("expected a DICOM file (PS3.10) or a bare data set, got something else")]
    NotDicom,
    /// The file meta information breaks off or breaks its rules.
    #[error("expected file meta information (PS3.10 7.1), got a damaged one; the file may be cut short")]
    Meta,
    /// The transfer syntax is none that this program knows.
    #[error("its transfer syntax is unknown; send it uncompressed, or in another syntax")]
    UnknownTransferSyntax,
    /// An element, item or fragment is longer than what it stands in.
    #[error("an element states more bytes than are left for it; the file is cut short or damaged")]
    LengthBeyondEnd,
    /// Sequences in sequences in sequences.
    #[error("sequences are nested deeper than {limit} levels")]
    TooDeep {
        /// The deepest that is read.
        limit: usize,
    },
    /// So many elements, items or values that holding them would take far more memory than their bytes.
    #[error("it has more than {limit} elements, items and values")]
    TooManyElements {
        /// The most that are read.
        limit: usize,
    },
    /// A deflated data set is too large.
    #[error("its data set inflates to more than {limit} bytes; send it in another transfer syntax")]
    InflatedTooLarge {
        /// The largest that is read, in bytes.
        limit: u64,
    },
    /// A deflated data set cannot be inflated.
    #[error("its deflated data set is damaged or cut short")]
    Deflate,
    /// The elements do not parse: a header breaks off, a delimiter is missing, text is not in its character set.
    #[error("its elements do not parse; the file is cut short or damaged")]
    Elements,
    /// Where the data set should name the object or its class stands something else.
    #[error("expected text in SOPClassUID and SOPInstanceUID, got something else")]
    Nameless,
}
