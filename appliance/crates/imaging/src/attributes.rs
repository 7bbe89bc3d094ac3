//! Reading attributes leniently: real objects hold the wrong VR, several values where one belongs, and padding.

use crate::ImagingError;
use dicom_core::dictionary::{DataDictionary, DataDictionaryEntry};
use dicom_core::value::{PrimitiveValue, Value};
use dicom_core::{Tag, VR};
use dicom_dictionary_std::StandardDataDictionary;
use dicom_object::InMemDicomObject;
use std::borrow::Cow;

/// The value of an element. Where a gateway lost the VR (UN), the bytes are read as the dictionary's VR says.
fn value(item: &InMemDicomObject, tag: Tag) -> Option<Cow<'_, PrimitiveValue>> {
    let element = item.get(tag)?;
    let Value::Primitive(primitive) = element.value() else { return None };
    let PrimitiveValue::U8(raw) = primitive else { return Some(Cow::Borrowed(primitive)) };
    if element.vr() != VR::UN {
        return Some(Cow::Borrowed(primitive));
    }
    let words = || raw.chunks_exact(2).map(|pair| [pair[0], pair[1]]);
    let quads = || raw.chunks_exact(4).map(|quad| [quad[0], quad[1], quad[2], quad[3]]);
    let vr = StandardDataDictionary.by_tag(tag).map(|entry| entry.vr().relaxed());
    Some(Cow::Owned(match vr {
        Some(VR::US | VR::OW) => PrimitiveValue::U16(words().map(u16::from_le_bytes).collect()),
        Some(VR::SS) => PrimitiveValue::I16(words().map(i16::from_le_bytes).collect()),
        Some(VR::UL) => PrimitiveValue::U32(quads().map(u32::from_le_bytes).collect()),
        Some(VR::FL) => PrimitiveValue::F32(quads().map(f32::from_le_bytes).collect()),
        Some(VR::DS | VR::IS | VR::CS | VR::LO | VR::SH | VR::UI) => {
            let text = String::from_utf8_lossy(raw);
            PrimitiveValue::Strs(text.split('\\').map(str::to_owned).collect())
        }
        _ => return Some(Cow::Borrowed(primitive)),
    }))
}

/// The attribute's values as floating point numbers; empty when absent or unreadable.
pub(crate) fn floats(item: &InMemDicomObject, tag: Tag) -> Vec<f64> {
    value(item, tag).and_then(|value| value.to_multi_float64().ok()).unwrap_or_default()
}

/// The attribute's first value as a finite number.
pub(crate) fn float(item: &InMemDicomObject, tag: Tag) -> Option<f64> {
    floats(item, tag).first().copied().filter(|value| value.is_finite())
}

/// The attribute's first value as an integer.
pub(crate) fn int(item: &InMemDicomObject, tag: Tag) -> Option<i64> {
    let value = value(item, tag)?;
    value.to_int::<i64>().ok().or_else(|| {
        // IS written as a decimal ("1.0") is common in converted objects.
        let value = value.to_float64().ok()?;
        (value.is_finite() && value.fract() == 0.0 && value.abs() < 9e15).then_some(value as i64)
    })
}

/// The attribute's first value as an unsigned 16-bit number.
pub(crate) fn uint16(item: &InMemDicomObject, tag: Tag) -> Option<u16> {
    int(item, tag).and_then(|value| u16::try_from(value).ok())
}

/// A required unsigned 16-bit attribute.
pub(crate) fn required(
    item: &InMemDicomObject,
    tag: Tag,
    keyword: &'static str,
) -> Result<u16, ImagingError> {
    uint16(item, tag).ok_or(ImagingError::MissingAttribute { keyword })
}

/// The attribute's text without padding; `None` when absent or empty.
pub(crate) fn text(item: &InMemDicomObject, tag: Tag) -> Option<String> {
    let value = value(item, tag)?;
    let text = value.to_str();
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
    (!text.is_empty()).then(|| text.to_owned())
}

/// The items of a sequence; empty when absent.
pub(crate) fn items(item: &InMemDicomObject, tag: Tag) -> &[InMemDicomObject] {
    item.get(tag).and_then(|element| element.items()).unwrap_or_default()
}

/// The bytes of a binary attribute in little endian, whatever its VR.
pub(crate) fn bytes(item: &InMemDicomObject, tag: Tag) -> Option<Vec<u8>> {
    match item.get(tag)?.value() {
        Value::Primitive(PrimitiveValue::Empty) => None,
        Value::Primitive(primitive) => Some(little_endian(primitive)),
        _ => None,
    }
}

/// A primitive value's bytes in little endian.
pub(crate) fn little_endian(primitive: &PrimitiveValue) -> Vec<u8> {
    match primitive {
        PrimitiveValue::U8(values) => values.to_vec(),
        PrimitiveValue::U16(values) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        PrimitiveValue::I16(values) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        PrimitiveValue::U32(values) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        PrimitiveValue::I32(values) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        PrimitiveValue::U64(values) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        PrimitiveValue::I64(values) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        PrimitiveValue::F32(values) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        PrimitiveValue::F64(values) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        other => other.to_bytes().into_owned(),
    }
}
