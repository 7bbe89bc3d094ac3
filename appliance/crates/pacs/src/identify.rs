//! Which object a file holds: its SOPInstanceUID, read from its beginning without parsing the rest.

use dicom_core::Tag;
use dicom_dictionary_std::tags;
use dicom_encoding::transfer_syntax::{Codec, TransferSyntaxIndex as _};
use dicom_transfer_syntax_registry::TransferSyntaxRegistry;
use medinet_objects::{DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN, Encoding, FileHead, has_short_length};
use std::io::Read as _;

/// Media Storage Directory Storage (PS3.4 annex B.5): a DICOMDIR, an index of other files.
const MEDIA_DIRECTORY: &str = "1.2.840.10008.1.3.10";

/// The longest UID that is taken as one; PS3.5 9.1 allows 64 bytes, real data are less strict.
const MAX_UID_BYTES: usize = 128;

/// How much of a deflated data set is inflated to look for the UID, in bytes.
const MAX_INFLATED_BYTES: u64 = 1 << 20;
/// The deepest nesting of sequences before the UID.
const MAX_DEPTH: usize = 32;
/// The length that means "to the delimiter" (PS3.5 7.1).
const UNDEFINED: u32 = u32::MAX;

/// Why a file is not an object that can be taken in. The text never repeats what the file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unidentified {
    #[error("the file is empty")]
    Empty,
    #[error("the file does not begin as DICOM does, with or without the header of PS3.10")]
    NotDicom,
    #[error("the file begins as DICOM and cannot be read up to its SOPInstanceUID")]
    Unreadable,
    #[error("the file is a DICOMDIR, an index of other files")]
    MediaDirectory,
    #[error("expected a value of at most 128 bytes in SOPInstanceUID, the object has none")]
    NoSopInstanceUid,
}

impl Unidentified {
    /// A short, stable name for counting and filtering.
    pub(crate) fn code(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::NotDicom => "not-dicom",
            Self::Unreadable => "unreadable",
            Self::MediaDirectory => "media-directory",
            Self::NoSopInstanceUid => "no-sop-instance-uid",
        }
    }
}

/// Takes a text as a UID: padding removed, not empty, not endless, no control characters. Real data hold UIDs that
/// break the rules of PS3.5 9.1; as names of objects they still serve.
pub(crate) fn uid(text: &str) -> Option<&str> {
    let text = text.trim_matches(|c: char| c == '\0' || c.is_whitespace());
    let good = !text.is_empty() && text.len() <= MAX_UID_BYTES && !text.contains(char::is_control);
    good.then_some(text)
}

/// Reads the SOPInstanceUID of the object in `file`: a DICOM file (PS3.10), or a bare data set as some media hold them.
///
/// Done by hand rather than by the DICOM library, which reserves whatever length an element states: four bytes from a
/// peer would be four gigabytes here. This walk allocates nothing but the UID.
pub(crate) fn identify(file: &[u8]) -> Result<String, Unidentified> {
    if file.is_empty() {
        return Err(Unidentified::Empty);
    }
    // Only what begins as a file can be broken before its data set.
    let head = FileHead::of(file).map_err(|_| Unidentified::Unreadable)?;
    let broken = if head.begins_as_file { Unidentified::Unreadable } else { Unidentified::NotDicom };
    if head.sop_class == Some(MEDIA_DIRECTORY) {
        return Err(Unidentified::MediaDirectory);
    }
    let inflated;
    let data_set = if head.transfer_syntax == Some(DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN) {
        inflated = inflate_head(head.data_set).ok_or(broken)?;
        &inflated[..]
    } else {
        head.data_set
    };
    // What begins as a file is taken for one, also where it names no transfer syntax.
    let transfer_syntax = head.transfer_syntax.or(head.begins_as_file.then_some(""));
    let mut walk = Walk::of(data_set, transfer_syntax).ok_or(broken)?;
    let Uids { sop_instance, sop_class, is_directory } = walk.uids().ok_or(Unidentified::Unreadable)?;
    if is_directory || sop_class == MEDIA_DIRECTORY {
        return Err(Unidentified::MediaDirectory);
    }
    let in_meta = || head.sop_instance.and_then(uid).map(str::to_owned);
    Some(sop_instance).filter(|uid| !uid.is_empty()).or_else(in_meta).ok_or(Unidentified::NoSopInstanceUid)
}

/// The data set of a file: what follows preamble and file meta information, which differ with the way that a file
/// came. The whole file where it has none.
pub(crate) fn data_set(file: &[u8]) -> &[u8] {
    FileHead::of(file).map_or(file, |head| head.data_set)
}

fn text(value: &[u8]) -> String {
    std::str::from_utf8(value).ok().and_then(uid).unwrap_or_default().to_owned()
}

/// The first part of a deflated data set (PS3.5 A.5).
fn inflate_head(bytes: &[u8]) -> Option<Vec<u8>> {
    let syntax = TransferSyntaxRegistry.get(DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN)?;
    let Codec::Dataset(Some(adapter)) = syntax.codec() else { return None };
    let mut head = Vec::new();
    let read = adapter.adapt_reader(Box::new(bytes)).take(MAX_INFLATED_BYTES).read_to_end(&mut head);
    (read.is_ok() || !head.is_empty()).then_some(head)
}

#[derive(Default)]
struct Uids {
    sop_instance: String,
    sop_class: String,
    is_directory: bool,
}

struct Element {
    tag: Tag,
    vr: [u8; 2],
    length: u32,
}

/// A walk over the elements of a data set (PS3.5 7). Every step goes forward and none beyond the end.
struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
    explicit: bool,
    big_endian: bool,
}

impl<'a> Walk<'a> {
    /// A walk over a data set of an instance.
    fn of(bytes: &'a [u8], transfer_syntax: Option<&str>) -> Option<Self> {
        let Encoding { explicit, big_endian } = Encoding::of(bytes, transfer_syntax)?;
        Some(Self { bytes, at: 0, explicit, big_endian })
    }

    fn u16_at(&self, at: usize) -> Option<u16> {
        let pair: [u8; 2] = self.bytes.get(at..)?.get(..2)?.try_into().ok()?;
        Some(if self.big_endian { u16::from_be_bytes(pair) } else { u16::from_le_bytes(pair) })
    }

    fn u32_at(&self, at: usize) -> Option<u32> {
        let four: [u8; 4] = self.bytes.get(at..)?.get(..4)?.try_into().ok()?;
        Some(if self.big_endian { u32::from_be_bytes(four) } else { u32::from_le_bytes(four) })
    }

    fn header(&mut self) -> Option<Element> {
        let tag = Tag(self.u16_at(self.at)?, self.u16_at(self.at + 2)?);
        // Items and delimiters have no value representation in any encoding (PS3.5 7.5).
        if !self.explicit || tag.0 == 0xFFFE {
            let length = self.u32_at(self.at + 4)?;
            self.at += 8;
            return Some(Element { tag, vr: *b"UN", length });
        }
        let vr: [u8; 2] = self.bytes.get(self.at + 4..self.at + 6)?.try_into().ok()?;
        if has_short_length(vr) {
            let length = u32::from(self.u16_at(self.at + 6)?);
            self.at += 8;
            return Some(Element { tag, vr, length });
        }
        let length = self.u32_at(self.at + 8)?;
        self.at += 12;
        Some(Element { tag, vr, length })
    }

    fn value(&mut self, length: u32) -> Option<&'a [u8]> {
        let value = self.bytes.get(self.at..)?.get(..usize::try_from(length).ok()?)?;
        self.at += value.len();
        Some(value)
    }

    /// Steps over a value of undefined length: a sequence, to its end.
    fn skip_sequence(&mut self, vr: [u8; 2], depth: usize) -> Option<()> {
        if depth > MAX_DEPTH {
            return None;
        }
        // An unknown element of undefined length is a sequence in implicit little endian (PS3.5 6.2.2).
        let outside = (self.explicit, self.big_endian);
        if self.explicit && vr == *b"UN" {
            (self.explicit, self.big_endian) = (false, false);
        }
        loop {
            let item = self.header()?;
            match (item.tag.0, item.tag.1) {
                (0xFFFE, 0xE0DD) => break,
                (0xFFFE, 0xE000) if item.length == UNDEFINED => loop {
                    let Element { tag, vr, length } = self.header()?;
                    if tag == Tag(0xFFFE, 0xE00D) {
                        break;
                    }
                    self.skip(vr, length, depth)?;
                },
                (0xFFFE, 0xE000) => {
                    self.value(item.length)?;
                }
                _ => return None,
            }
        }
        (self.explicit, self.big_endian) = outside;
        Some(())
    }

    fn skip(&mut self, vr: [u8; 2], length: u32, depth: usize) -> Option<()> {
        if length == UNDEFINED { self.skip_sequence(vr, depth + 1) } else { self.value(length).map(|_| ()) }
    }

    /// Reads up to the UIDs; none where the data set breaks off or breaks its rules before.
    fn uids(&mut self) -> Option<Uids> {
        let mut uids = Uids::default();
        while self.at < self.bytes.len() {
            let Element { tag, vr, length } = self.header()?;
            if tag > tags::SOP_INSTANCE_UID {
                break;
            }
            if length == UNDEFINED {
                self.skip_sequence(vr, 0)?;
                continue;
            }
            let value = self.value(length)?;
            match tag {
                tags::SOP_CLASS_UID => uids.sop_class = text(value),
                tags::SOP_INSTANCE_UID => uids.sop_instance = text(value),
                tags::FILE_SET_ID | tags::DIRECTORY_RECORD_SEQUENCE => uids.is_directory = true,
                _ => {}
            }
        }
        Some(uids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn element(tag: (u16, u16), vr: &[u8; 2], value: &str) -> Vec<u8> {
        let mut value = value.as_bytes().to_vec();
        if value.len() % 2 == 1 {
            value.push(0);
        }
        let mut bytes = [tag.0.to_le_bytes(), tag.1.to_le_bytes()].concat();
        bytes.extend(vr);
        bytes.extend(u16::try_from(value.len()).unwrap().to_le_bytes());
        bytes.extend(value);
        bytes
    }

    fn data_set() -> Vec<u8> {
        [
            element((8, 0x16), b"UI", "1.2.840.10008.5.1.4.1.1.1"),
            element((8, 0x18), b"UI", "1.2.3"),
            element((0x20, 0xD), b"UI", "1.2"),
            element((0x20, 0xE), b"UI", "1.2.1"),
            element((0x28, 2), b"US", "\u{1}"),
        ]
        .concat()
    }

    #[test]
    fn a_bare_data_set_and_a_meta_without_transfer_syntax_are_identified() {
        let bare = data_set();
        assert_eq!(identify(&bare).unwrap(), "1.2.3");
        let with_meta = [element((2, 3), b"UI", "9.9"), bare].concat();
        assert_eq!(identify(&with_meta).unwrap(), "1.2.3");
    }

    #[test]
    fn sequences_before_the_uids_are_stepped_over() {
        let undefined = [0xFF; 4];
        let inner = element((8, 0x18), b"UI", "6.6.6");
        let mut sequence = [8u16.to_le_bytes(), 6u16.to_le_bytes()].concat();
        sequence.extend(b"SQ\0\0");
        sequence.extend(undefined);
        sequence.extend([0xFE, 0xFF, 0x00, 0xE0]);
        sequence.extend(undefined);
        sequence.extend(&inner);
        sequence.extend([0xFE, 0xFF, 0x0D, 0xE0, 0, 0, 0, 0, 0xFE, 0xFF, 0xDD, 0xE0, 0, 0, 0, 0]);
        let file = [sequence.clone(), data_set()].concat();
        assert_eq!(identify(&file).unwrap(), "1.2.3");
        assert_eq!(identify(&sequence[..30]).unwrap_err(), Unidentified::Unreadable);
    }

    #[test]
    fn a_length_beyond_the_end_is_refused_and_not_reserved() {
        let mut file = data_set();
        // "AI" is no known representation, so four bytes of text become its length: 775 MB.
        file[4] = b'A';
        assert_eq!(identify(&file).unwrap_err(), Unidentified::Unreadable);
    }

    #[test]
    fn what_is_no_object_is_told_apart() {
        assert_eq!(identify(b""), Err(Unidentified::Empty));
        assert_eq!(identify(b"hello, this is a text file"), Err(Unidentified::NotDicom));
        let nameless = element((8, 0x16), b"UI", "1.2.840.10008.5.1.4.1.1.1");
        assert_eq!(identify(&nameless), Err(Unidentified::NoSopInstanceUid));
        let mut cut = vec![0; 128];
        cut.extend(b"DICM\x02\x00\x10");
        assert_eq!(identify(&cut), Err(Unidentified::Unreadable));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600), kind in 0..3) {
            let mut file = bytes;
            match kind {
                0 => file.splice(0..0, [8, 0]).for_each(drop),
                1 if file.len() > 132 => file[128..132].copy_from_slice(b"DICM"),
                _ => {}
            }
            let _ = identify(&file);
        }

        #[test]
        fn a_changed_byte_never_makes_it_panic(at in 0usize..100, byte: u8) {
            let mut file = data_set();
            let at = at % file.len();
            file[at] = byte;
            let _ = identify(&file);
        }
    }
}
