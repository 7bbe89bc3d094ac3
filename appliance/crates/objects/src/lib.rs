//! DICOM objects, read safely: the one place where bytes from outside become a data set.
//!
//! The DICOM library reserves whatever length an element states, so 80 bytes can ask for 4 GiB. Here each header is
//! looked at before the library sees its value ([`read()`]): what states more than is left of its container, nests too
//! deep, inflates or multiplies beyond [`Limits`] is refused, and memory stays a small multiple of the bytes at hand.
//! The check is not a second parser that could understand a file differently: it sits inside the library's own
//! decoder, on the headers that the library itself goes by.
//!
//! What real archives send is borne: no preamble, no or malformed file meta information, a transfer syntax that the
//! data set contradicts, odd lengths, sequences and names stored as UN.
//!
//! Nothing here says whose object it is, and no error repeats anything of its content.

mod error;
mod guard;
mod head;
mod read;
mod unknown;

pub use error::ObjectError;
pub use head::{Encoding, FileHead, has_short_length};
pub use read::{Limits, read, read_within};
pub use unknown::{dictionary_vr, is_text};

/// Explicit VR Big Endian (PS3.5 A.3), retired from the standard in 2006 and still in archives.
pub const EXPLICIT_VR_BIG_ENDIAN: &str = "1.2.840.10008.1.2.2";
/// Deflated Explicit VR Little Endian (PS3.5 A.5).
pub const DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN: &str = "1.2.840.10008.1.2.1.99";
