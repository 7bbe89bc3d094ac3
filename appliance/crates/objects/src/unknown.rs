//! Attributes that came without a value representation.

use dicom_core::dictionary::{DataDictionary as _, DataDictionaryEntry as _};
use dicom_core::header::Header as _;
use dicom_core::value::{DataSetSequence, PrimitiveValue};
use dicom_core::{DataElement, Length, Tag, VR};
use dicom_dictionary_std::{StandardDataDictionary, tags};
use dicom_object::InMemDicomObject;
use dicom_object::mem::InMemElement;

/// The value representation that the standard's dictionary (PS3.6) gives an attribute; `None` where it does not know it.
#[must_use]
pub fn dictionary_vr(tag: Tag) -> Option<VR> {
    StandardDataDictionary.by_tag(tag).map(|entry| entry.vr().relaxed())
}

/// Whether values of a representation are text (PS3.5 6.2).
#[must_use]
pub fn is_text(vr: VR) -> bool {
    matches!(
        vr,
        VR::AE
            | VR::AS
            | VR::CS
            | VR::DA
            | VR::DS
            | VR::DT
            | VR::IS
            | VR::LO
            | VR::LT
            | VR::PN
            | VR::SH
            | VR::ST
            | VR::TM
            | VR::UC
            | VR::UI
            | VR::UR
            | VR::UT
    )
}

/// Gives attributes that came as UN (some archives forget what they store) the value representation of the dictionary,
/// so that what follows sees names as names. Sequences in UN of stated length stay as they are.
pub(crate) fn name_unknowns(object: InMemDicomObject) -> InMemDicomObject {
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

/// The value of UN is in little endian in every transfer syntax (PS3.5 6.2.2).
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stored_as_unknown_are_names() {
        let element = DataElement::new(tags::PATIENT_NAME, VR::UN, PrimitiveValue::from(b"A^B ".to_vec()));
        let named = name_unknowns(InMemDicomObject::from_element_iter([element]));
        assert_eq!(named.element(tags::PATIENT_NAME).unwrap().vr(), VR::PN);
    }

    #[test]
    fn numbers_stored_as_unknown_are_numbers() {
        let element = DataElement::new(tags::ROWS, VR::UN, PrimitiveValue::from(vec![0x10, 0x02]));
        let named = name_unknowns(InMemDicomObject::from_element_iter([element]));
        assert_eq!(named.element(tags::ROWS).unwrap().to_int::<u16>().unwrap(), 0x210);
    }
}
