//! CT slices that no patient lay for: files of one series, and multi-frame objects.
#![allow(dead_code, reason = "each test file uses its part")]

use dicom_core::value::{DataSetSequence, PrimitiveValue};
use dicom_core::{DataElement, Length, Tag, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::{FileMetaTableBuilder, InMemDicomObject};
use std::path::Path;

/// An object of a series: one frame, or several.
pub(crate) struct Object<'a> {
    /// Last part of its UID; also what its frames look like.
    pub(crate) number: u32,
    /// Of the series.
    pub(crate) series: u32,
    /// Instance Number.
    pub(crate) instance: u32,
    /// Position of each frame along the patient in millimetres; none where it states none.
    pub(crate) depths: &'a [Option<f64>],
    /// Rows; there are 40 columns.
    pub(crate) rows: u16,
}

fn texts(text: &str) -> PrimitiveValue {
    PrimitiveValue::Strs(text.split('\\').map(str::to_owned).collect())
}

fn sequence(tag: Tag, items: Vec<InMemDicomObject>) -> DataElement<InMemDicomObject> {
    DataElement::new(tag, VR::SQ, DataSetSequence::new(items, Length::UNDEFINED))
}

/// What a single slice has at its top, and a frame of several in its functional groups (PS3.3 C.7.6.16).
fn plane(depth: f64) -> [DataElement<InMemDicomObject>; 2] {
    [
        DataElement::new(tags::IMAGE_POSITION_PATIENT, VR::DS, texts(&format!("-20\\-20\\{depth}"))),
        DataElement::new(tags::IMAGE_ORIENTATION_PATIENT, VR::DS, texts("1\\0\\0\\0\\1\\0")),
    ]
}

/// Writes an object. Each frame holds a smooth bump of its own, so that no two are alike and none looks like letters.
pub(crate) fn write(path: &Path, of: &Object<'_>) {
    let Object { number, series, instance, depths, rows } = of;
    let class = if depths.len() > 1 { uids::ENHANCED_CT_IMAGE_STORAGE } else { uids::CT_IMAGE_STORAGE };
    let mut object = InMemDicomObject::new_empty();
    let mut put = |tag, vr, value: PrimitiveValue| {
        object.put(DataElement::new(tag, vr, value));
    };
    let uid = format!("2.25.77{number:03}");
    put(tags::SOP_CLASS_UID, VR::UI, class.into());
    put(tags::SOP_INSTANCE_UID, VR::UI, uid.as_str().into());
    put(tags::STUDY_INSTANCE_UID, VR::UI, "2.25.4711".into());
    put(tags::SERIES_INSTANCE_UID, VR::UI, format!("2.25.88{series:03}").into());
    put(tags::MODALITY, VR::CS, "CT".into());
    put(tags::PATIENT_ID, VR::LO, "PID-0815".into());
    put(tags::ACCESSION_NUMBER, VR::SH, "A1".into());
    put(tags::STUDY_DATE, VR::DA, "20240101".into());
    put(tags::INSTANCE_NUMBER, VR::IS, instance.to_string().into());
    put(tags::ROWS, VR::US, (*rows).into());
    put(tags::COLUMNS, VR::US, 40u16.into());
    put(tags::NUMBER_OF_FRAMES, VR::IS, depths.len().to_string().into());
    put(tags::SAMPLES_PER_PIXEL, VR::US, 1u16.into());
    put(tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "MONOCHROME2".into());
    put(tags::BITS_ALLOCATED, VR::US, 16u16.into());
    put(tags::BITS_STORED, VR::US, 12u16.into());
    put(tags::HIGH_BIT, VR::US, 11u16.into());
    put(tags::PIXEL_REPRESENTATION, VR::US, 0u16.into());
    let samples: Vec<u16> = (0..depths.len())
        .flat_map(|frame| {
            let seen = f64::from(*number) + 0.31 * frame as f64;
            let (at_x, at_y) = (20.0 + 8.0 * seen.sin(), f64::from(*rows) / 2.0 + 6.0 * (1.7 * seen).cos());
            (0..u32::from(*rows) * 40).map(move |pixel| {
                let (x, y) = (f64::from(pixel % 40), f64::from(pixel / 40));
                let distance = (x - at_x).powi(2) + (y - at_y).powi(2);
                (500.0 + 12.0 * y + (900.0 + 40.0 * seen) * (-distance / 60.0).exp()) as u16
            })
        })
        .collect();
    put(tags::PIXEL_DATA, VR::OW, PrimitiveValue::U16(samples.into()));
    match **depths {
        [Some(depth)] => plane(depth).into_iter().for_each(|element| {
            object.put(element);
        }),
        [_] => {}
        _ => {
            let groups = depths.iter().map(|depth| {
                let items = depth.map(plane).into_iter().flatten().map(|element| {
                    let tag = match element.header().tag {
                        tags::IMAGE_POSITION_PATIENT => tags::PLANE_POSITION_SEQUENCE,
                        _ => tags::PLANE_ORIENTATION_SEQUENCE,
                    };
                    sequence(tag, vec![InMemDicomObject::from_element_iter([element])])
                });
                InMemDicomObject::from_element_iter(items)
            });
            object.put(sequence(tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE, groups.collect()));
        }
    }
    let meta = FileMetaTableBuilder::new()
        .transfer_syntax(uids::EXPLICIT_VR_LITTLE_ENDIAN)
        .media_storage_sop_class_uid(class)
        .media_storage_sop_instance_uid(uid.as_str());
    object.with_meta(meta).unwrap().write_to_file(path).unwrap();
}
