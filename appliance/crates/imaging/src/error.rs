//! What can be wrong with an image, and whose fault it is.

/// An image object that could not be read, or settings that ask for the impossible.
///
/// No text here carries a pixel value or an attribute value of a person; sizes, attribute names and transfer syntax
/// UIDs only.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ImagingError {
    /// The object is no image. Nobody's fault: structured reports and plans have no pixels.
    #[error("expected an image, but the object has no pixel data; skip it or treat it as a document")]
    NoPixelData,
    /// The sender left out an attribute that PS3.3 C.7.6.3 requires.
    #[error(
        "expected the attribute {keyword} with a usable value, found none; the sender's object is malformed"
    )]
    MissingAttribute {
        /// DICOM keyword.
        keyword: &'static str,
    },
    /// The sender's attributes contradict each other or the pixel data.
    #[error("{what}: expected {expected}, got {got}; the sender's object is malformed")]
    Inconsistent {
        /// What was compared.
        what: &'static str,
        /// What the rest of the object asks for.
        expected: String,
        /// What it holds.
        got: String,
    },
    /// Fewer bytes than the attributes declare.
    #[error(
        "expected {expected} bytes of pixel data, got {got}; the object was cut short on its way or at its source"
    )]
    Truncated {
        /// Bytes that the attributes ask for.
        expected: u64,
        /// Bytes that are there.
        got: u64,
    },
    /// The image would need more memory than this site allows.
    #[error(
        "the image declares {declared} bytes of decoded pixels, the limit is {limit}; raise the limit if the image is genuine"
    )]
    TooLarge {
        /// Decoded size in bytes that the attributes declare.
        declared: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// No decoder for the transfer syntax.
    #[error("no decoder for transfer syntax {uid}; ask the PACS for an uncompressed copy")]
    UnsupportedTransferSyntax {
        /// UID of the transfer syntax.
        uid: String,
    },
    /// A feature of the image that no decoder here supports.
    #[error("{what} {got} is not supported; ask the PACS for another encoding")]
    Unsupported {
        /// The feature.
        what: &'static str,
        /// Its value.
        got: String,
    },
    /// The compressed stream is broken.
    #[error(
        "the {codec} stream of frame {frame} could not be decoded ({reason}); the sender's object is malformed"
    )]
    Codec {
        /// The codec.
        codec: &'static str,
        /// Index of the frame, from 0.
        frame: usize,
        /// What the decoder says.
        reason: String,
    },
    /// Our caller asked for a frame that is not there.
    #[error("frame {frame} was asked for, the image has {frames}")]
    FrameOutOfRange {
        /// The index asked for, from 0.
        frame: usize,
        /// How many there are.
        frames: usize,
    },
    /// A preprocessing setting or a shape from the task that cannot be carried out.
    #[error("preprocessing {setting}: expected {expected}, got {got}; correct the task")]
    Preprocessing {
        /// The setting.
        setting: &'static str,
        /// What it may be.
        expected: &'static str,
        /// What it is.
        got: String,
    },
    /// A frame was to be prepared alone, and the task takes it with its neighbours; our API misused.
    #[error(
        "the task takes each slice with its neighbours, and one frame was to be prepared alone; prepare it with its series"
    )]
    NeedsSeries,
    /// Slices that cannot form one volume.
    #[error("volume: {reason}")]
    Volume {
        /// Why.
        reason: String,
    },
}
