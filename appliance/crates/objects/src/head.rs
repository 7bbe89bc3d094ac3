//! Where a data set begins, and how it says it is encoded.

use crate::{EXPLICIT_VR_BIG_ENDIAN, ObjectError};
use dicom_core::Tag;
use dicom_dictionary_std::tags;

/// What comes before the data set of a file (PS3.10 7.1), as far as it is of use, and the data set.
#[derive(Debug, Clone, Copy)]
pub struct FileHead<'a> {
    /// MediaStorageSOPClassUID (0002,0002), without padding; empty counts as none.
    pub sop_class: Option<&'a str>,
    /// MediaStorageSOPInstanceUID (0002,0003), without padding; empty counts as none.
    pub sop_instance: Option<&'a str>,
    /// TransferSyntaxUID (0002,0010), without padding; empty counts as none.
    pub transfer_syntax: Option<&'a str>,
    /// Whether there is a preamble or file meta information; without, this is a bare data set or nothing of DICOM.
    pub begins_as_file: bool,
    /// What follows: the data set, perhaps deflated.
    pub data_set: &'a [u8],
}

impl<'a> FileHead<'a> {
    /// Reads preamble and file meta information, each of which may be missing. Goes by the elements of group 0002
    /// themselves, for the group's stated length is wrong or missing in real files. Allocates nothing.
    ///
    /// # Errors
    /// [`ObjectError::Meta`] where an element of group 0002 breaks off.
    pub fn of(file: &'a [u8]) -> Result<Self, ObjectError> {
        let preamble = match file {
            _ if file.get(128..132) == Some(b"DICM") => 132,
            _ if file.starts_with(b"DICM") => 4,
            _ => 0,
        };
        let mut rest = file.get(preamble..).unwrap_or_default();
        let mut head = Self {
            sop_class: None,
            sop_instance: None,
            transfer_syntax: None,
            begins_as_file: preamble > 0 || rest.starts_with(&[2, 0]),
            data_set: rest,
        };
        while rest.starts_with(&[2, 0]) {
            let (tag, value, behind) = meta_element(rest).ok_or(ObjectError::Meta)?;
            match tag {
                tags::MEDIA_STORAGE_SOP_CLASS_UID => head.sop_class = uid(value),
                tags::MEDIA_STORAGE_SOP_INSTANCE_UID => head.sop_instance = uid(value),
                tags::TRANSFER_SYNTAX_UID => head.transfer_syntax = uid(value),
                _ => {}
            }
            rest = behind;
        }
        head.data_set = rest;
        Ok(head)
    }
}

/// Whether the explicit form of a value representation has a length of 16 bits (PS3.5 table 7.1-2). All others, also
/// those that are to come, have two reserved bytes and one of 32 (7.1.2).
#[must_use]
pub fn has_short_length(vr: [u8; 2]) -> bool {
    const SHORT: [&[u8; 2]; 21] = [
        b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FL", b"FD", b"IS", b"LO", b"LT", b"PN", b"SH",
        b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US",
    ];
    SHORT.contains(&&vr)
}

/// Splits the first element off: tag, value, and what follows. Explicit little endian as it must be (PS3.10 7.1), or
/// implicit as some writers have it.
fn meta_element(bytes: &[u8]) -> Option<(Tag, &[u8], &[u8])> {
    let &[a, b, c, d, v, r, e, f] = bytes.first_chunk()?;
    let tag = Tag(u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
    let vr = [v, r];
    let (length, behind) = if has_short_length(vr) {
        (u32::from(u16::from_le_bytes([e, f])), bytes.get(8..)?)
    } else if vr.iter().all(u8::is_ascii_uppercase) {
        let four: &[u8; 4] = bytes.get(8..)?.first_chunk()?;
        (u32::from_le_bytes(*four), bytes.get(12..)?)
    } else {
        (u32::from_le_bytes([v, r, e, f]), bytes.get(8..)?)
    };
    let (value, behind) = behind.split_at_checked(usize::try_from(length).ok()?)?;
    Some((tag, value, behind))
}

fn uid(value: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(value).ok()?;
    Some(text.trim_matches(|c: char| c == '\0' || c.is_whitespace())).filter(|uid| !uid.is_empty())
}

/// How the elements of a data set are written (PS3.5 7.1, 7.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encoding {
    /// Whether headers hold value representations.
    pub explicit: bool,
    /// Whether the high byte comes first.
    pub big_endian: bool,
}

impl Encoding {
    /// The encoding of a data set that is not deflated (any more). A data set tells it by its first element, in
    /// group 0008, or 0004 in a directory: what the file meta information says is wrong in some files, and missing
    /// in a bare data set. `transfer_syntax` decides where the first element is of another group; none then, the
    /// bytes are no data set.
    #[must_use]
    pub fn of(data_set: &[u8], transfer_syntax: Option<&str>) -> Option<Self> {
        let &[first, second, _, _, v, r, _, _] = data_set.first_chunk()?;
        let explicit = v.is_ascii_uppercase() && r.is_ascii_uppercase();
        let big_endian = match (first, second) {
            (4 | 8, 0) => false,
            (0, 4 | 8) => true,
            // Objects without group 0008 exist among test files; what comes of them shows in what they lack.
            _ => transfer_syntax? == EXPLICIT_VR_BIG_ENDIAN,
        };
        Some(Self { explicit, big_endian })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn element(element: u8, vr: &[u8; 2], value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(value.len()).unwrap().to_le_bytes();
        [&[2, 0, element, 0][..], vr, &length, value].concat()
    }

    #[test]
    fn a_preamble_is_no_condition_and_the_group_length_is_not_believed() {
        let meta = [
            element(0, b"UL", &[200, 0, 0, 0]),
            element(2, b"UI", b"1.2\0"),
            element(3, b"UI", b"\0\0"),
            element(0x10, b"UI", b"1.2.840.10008.1.2 "),
            b"\x08\0\x16\0UI\0\0".to_vec(),
        ]
        .concat();
        for before in [vec![], b"DICM".to_vec(), [&[0; 128][..], b"DICM"].concat()] {
            let file = [before, meta.clone()].concat();
            let head = FileHead::of(&file).unwrap();
            assert_eq!((head.sop_class, head.sop_instance), (Some("1.2"), None));
            assert_eq!(head.transfer_syntax, Some("1.2.840.10008.1.2"));
            assert!(head.begins_as_file);
            assert_eq!(head.data_set, b"\x08\0\x16\0UI\0\0");
        }
        let bare = FileHead::of(b"\x08\0\x16\0UI\0\0").unwrap();
        assert!(!bare.begins_as_file && bare.data_set.len() == 8);
        assert!(!FileHead::of(b"").unwrap().begins_as_file);
    }

    #[test]
    fn an_implicit_meta_is_read_and_a_broken_one_refused() {
        let mut meta = b"\x02\0\x10\0\x12\0\0\0".to_vec();
        meta.extend(b"1.2.840.10008.1.2\0");
        assert_eq!(FileHead::of(&meta).unwrap().transfer_syntax, Some("1.2.840.10008.1.2"));
        for cut in 2..meta.len() {
            assert_eq!(FileHead::of(&meta[..cut]).err(), Some(ObjectError::Meta), "{cut}");
        }
        for vr in [b"OB", b"UN", b"UT"] {
            let endless = [b"\x02\0\x02\0", &vr[..], &[0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 1, 2]].concat();
            assert_eq!(FileHead::of(&endless).err(), Some(ObjectError::Meta));
        }
    }

    #[test]
    fn a_data_set_tells_its_own_encoding() {
        let of = |bytes: &[u8], syntax| Encoding::of(bytes, syntax).map(|e| (e.explicit, e.big_endian));
        assert_eq!(of(b"\x08\0\x16\0UI\0\0", Some(EXPLICIT_VR_BIG_ENDIAN)), Some((true, false)));
        assert_eq!(of(b"\x08\0\x16\0\x04\0\0\0", None), Some((false, false)));
        assert_eq!(of(b"\0\x08\0\x16UI\0\0", None), Some((true, true)));
        assert_eq!(of(b"\0\x10\0\x10PN\0\0", Some(EXPLICIT_VR_BIG_ENDIAN)), Some((true, true)));
        assert_eq!(of(b"\x10\0\x10\0PN\0\0", None), None);
        assert_eq!(of(b"\x08\0\x16\0UI\0", Some("")), None);
    }
}
