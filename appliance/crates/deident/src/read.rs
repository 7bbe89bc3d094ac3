//! Reading of DICOM files as they come.

use crate::clean::{dictionary_vr, is_text};
use crate::quarantine::QuarantineReason;
use dicom_core::header::Header as _;
use dicom_core::value::{DataSetSequence, PrimitiveValue};
use dicom_core::{DataElement, Length, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_encoding::transfer_syntax::TransferSyntaxIndex as _;
use dicom_object::file::{OddLengthStrategy, OpenFileOptions};
use dicom_object::mem::InMemElement;
use dicom_object::{FileDicomObject, FileMetaTableBuilder, InMemDicomObject};
use dicom_transfer_syntax_registry::TransferSyntaxRegistry;

/// Retired from PS3.6 in 2006, still in archives.
const EXPLICIT_VR_BIG_ENDIAN: &str = "1.2.840.10008.1.2.2";

/// Reads a Part 10 file, or a bare data set in one of the two uncompressed little-endian encodings.
pub(crate) fn read_object(bytes: &[u8]) -> Result<FileDicomObject<InMemDicomObject>, QuarantineReason> {
    let mut object = read_encoded(bytes)?;
    let data_set = std::mem::replace(&mut *object, InMemDicomObject::new_empty());
    *object = name_unknowns(data_set);
    Ok(object)
}

/// Gives attributes that came as UN (some archives forget what they store) the value representation of the dictionary,
/// so that what follows sees names as names. Sequences in UN stay as they are, and are removed later.
fn name_unknowns(object: InMemDicomObject) -> InMemDicomObject {
    let named = object.into_iter().map(|element| {
        let tag = element.header().tag();
        match element.vr() {
            VR::SQ => {
                let items = element.into_value().into_items().unwrap_or_default();
                let items: Vec<_> = items.into_iter().map(name_unknowns).collect();
                DataElement::new(tag, VR::SQ, DataSetSequence::new(items, Length::UNDEFINED))
            }
            VR::UN => named(element),
            _ => element,
        }
    });
    InMemDicomObject::from_element_iter(named)
}

fn named(element: InMemElement) -> InMemElement {
    let tag = element.header().tag();
    let Some(vr) = dictionary_vr(tag) else { return element };
    let Ok(bytes) = element.value().to_bytes() else { return element };
    let words = || bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect::<Vec<_>>();
    match vr {
        _ if is_text(vr) => {
            let text = match std::str::from_utf8(&bytes) {
                Ok(text) => text.to_owned(),
                Err(_) => bytes.iter().map(|&byte| char::from(byte)).collect(),
            };
            let values: Vec<String> = text.split('\\').map(str::to_owned).collect();
            DataElement::new(tag, vr, PrimitiveValue::Strs(values.into()))
        }
        VR::US => DataElement::new(tag, vr, PrimitiveValue::U16(words().into())),
        VR::OW | VR::OB if tag == tags::PIXEL_DATA => {
            DataElement::new(tag, VR::OW, PrimitiveValue::U16(words().into()))
        }
        _ => element,
    }
}

fn read_encoded(bytes: &[u8]) -> Result<FileDicomObject<InMemDicomObject>, QuarantineReason> {
    if bytes.len() < 8 {
        return Err(QuarantineReason::Unreadable("it is too short"));
    }
    let magic = bytes.get(128..132) == Some(b"DICM") || bytes.starts_with(b"DICM");
    let meta_first = bytes.starts_with(&[0x02, 0x00]);
    if magic || meta_first {
        return OpenFileOptions::new()
            .odd_length_strategy(OddLengthStrategy::Accept)
            .from_reader(bytes)
            .or_else(|_| read_around_meta(bytes));
    }
    read_bare(bytes, 0, None)
}

/// Reads a file whose file meta information is malformed (a wrong group length, a missing UID): only the transfer syntax is
/// taken from it, the rest is made anew anyway.
fn read_around_meta(bytes: &[u8]) -> Result<FileDicomObject<InMemDicomObject>, QuarantineReason> {
    let mut at = if bytes.get(128..132) == Some(b"DICM") { 132 } else { 0 };
    let mut syntax = None;
    while let Some([2, 0, low, high, v, r, a, b]) = bytes.get(at..at + 8) {
        let long = matches!(&[*v, *r], b"OB" | b"OW" | b"UN" | b"UT" | b"SQ");
        let (start, length) = if long {
            let Some(&[a, b, c, d]) = bytes.get(at + 8..at + 12) else { break };
            (at + 12, u32::from_le_bytes([a, b, c, d]) as usize)
        } else {
            (at + 8, usize::from(u16::from_le_bytes([*a, *b])))
        };
        let Some(value) = start.checked_add(length).and_then(|end| bytes.get(start..end)) else { break };
        if (*low, *high) == (0x10, 0x00) {
            syntax = std::str::from_utf8(value).ok().map(|uid| uid.trim_matches(['\0', ' ']));
        }
        at = start + length;
    }
    read_bare(bytes, at, syntax)
}

fn read_bare(
    bytes: &[u8],
    at: usize,
    syntax: Option<&str>,
) -> Result<FileDicomObject<InMemDicomObject>, QuarantineReason> {
    let parse = || QuarantineReason::Unreadable("its elements do not parse");
    let body = bytes.get(at..).filter(|body| body.len() >= 8).ok_or_else(parse)?;
    let uid = match syntax {
        Some(uid) => uid,
        None if body[4..6].iter().all(u8::is_ascii_uppercase) => match body[..2] {
            [8, 0] => uids::EXPLICIT_VR_LITTLE_ENDIAN,
            [0, 8] => EXPLICIT_VR_BIG_ENDIAN,
            _ => return Err(QuarantineReason::Unreadable("it starts neither as a file nor as a data set")),
        },
        None if body[..2] == [8, 0] => uids::IMPLICIT_VR_LITTLE_ENDIAN,
        None => return Err(QuarantineReason::Unreadable("it starts neither as a file nor as a data set")),
    };
    let known = TransferSyntaxRegistry
        .get(uid)
        .ok_or(QuarantineReason::Unreadable("its transfer syntax is unknown"))?;
    let data_set = InMemDicomObject::read_dataset_with_ts(body, known).map_err(|_| parse())?;
    data_set
        .with_meta(FileMetaTableBuilder::new().transfer_syntax(uid))
        .map_err(|_| QuarantineReason::Unreadable("it names no SOP class or instance"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_dicom_is_told_without_its_content() {
        for bytes in
            [&b""[..], b"Mueller^Juergen is no DICOM file at all", &[0u8; 300], b"\x02\x00\x10\x00UI\xff\xff"]
        {
            let Err(reason) = read_object(bytes) else { panic!("held back") };
            let reason = reason.to_string();
            assert!(!reason.contains("Mueller"), "{reason}");
        }
    }

    #[test]
    fn a_wrong_group_length_does_not_lose_the_object() {
        let object = InMemDicomObject::from_element_iter([
            DataElement::new(tags::SOP_CLASS_UID, VR::UI, uids::CT_IMAGE_STORAGE),
            DataElement::new(tags::SOP_INSTANCE_UID, VR::UI, "1.2.3"),
            DataElement::new(tags::PATIENT_NAME, VR::PN, "A^B"),
        ]);
        let meta = FileMetaTableBuilder::new().transfer_syntax(uids::EXPLICIT_VR_LITTLE_ENDIAN);
        let mut bytes = Vec::new();
        object.with_meta(meta).unwrap().write_all(&mut bytes).unwrap();
        bytes[140] = bytes[140].wrapping_add(30); // (0002,0000), behind preamble, magic and header
        let read = read_object(&bytes).unwrap();
        assert_eq!(read.element(tags::PATIENT_NAME).unwrap().to_str().unwrap(), "A^B");
    }

    #[test]
    fn names_stored_as_unknown_are_names() {
        let element = DataElement::new(tags::PATIENT_NAME, VR::UN, PrimitiveValue::from(b"A^B ".to_vec()));
        let named = name_unknowns(InMemDicomObject::from_element_iter([element]));
        assert_eq!(named.element(tags::PATIENT_NAME).unwrap().vr(), VR::PN);
    }
}
