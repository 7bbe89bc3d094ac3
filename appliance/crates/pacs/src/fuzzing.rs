//! The decoders of a peer's bytes that are private otherwise, for `tests/decoders` and so for the targets in `fuzz/`. Nothing else
//! may use it.

use crate::dicomweb::JsonDataSet;

/// The data sets of a server's answer (PS3.18 annex F); none where it is refused.
#[must_use]
pub fn data_sets(answer: &[u8]) -> Option<Vec<JsonDataSet>> {
    crate::dicomweb::data_sets(answer).ok()
}

/// The answer "success" to a DIMSE command set; none where that is no request.
#[must_use]
pub fn answer(command: &[u8]) -> Option<Vec<u8>> {
    crate::scp::answer(command)
}

/// The SOPInstanceUID of the object in a file; none where it is refused.
#[must_use]
pub fn sop_instance_uid(file: &[u8]) -> Option<String> {
    crate::identify::identify(file).ok()
}
