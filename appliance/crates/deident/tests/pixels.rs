//! What becomes of pictures: searched whatever their attributes say, blanked in every frame, or held back.

use dicom_core::value::DataSetSequence;
use dicom_core::value::PrimitiveValue;
use dicom_core::{DataElement, Length, Tag, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::{FileMetaTableBuilder, InMemDicomObject};
use medinet_deident::{
    DeidentSettings, Deidentified, Deidentifier, Identified, Origin, Quarantine, QuarantineReason, Suspicion,
};

const SIDE: u16 = 160;

/// A soft gradient, with bars like capital letters at row 20 when asked for.
fn picture(text: bool) -> Vec<u8> {
    let side = usize::from(SIDE);
    let mut pixels: Vec<u8> =
        (0..side * side).map(|i| (40 + (i / side) / 4 + (i % side) / 4) as u8).collect();
    if text {
        // "HHHHHHHH": two posts and a crossbar each.
        for letter in 0..8 {
            let left = 20 + letter * 10;
            for y in 20..32 {
                for x in [left, left + 1, left + 6, left + 7] {
                    pixels[y * side + x] = 255;
                }
                if y == 26 {
                    pixels[y * side + left..y * side + left + 8].fill(255);
                }
            }
        }
    }
    pixels
}

fn image(frames: &[Vec<u8>], extra: Vec<DataElement<InMemDicomObject>>) -> Identified {
    let mut object = InMemDicomObject::from_element_iter([
        DataElement::new(tags::SOP_CLASS_UID, VR::UI, uids::CT_IMAGE_STORAGE),
        DataElement::new(tags::SOP_INSTANCE_UID, VR::UI, "1.2.3.4"),
        DataElement::new(tags::STUDY_INSTANCE_UID, VR::UI, "1.2.3"),
        DataElement::new(tags::PATIENT_ID, VR::LO, "MRN-12345"),
        DataElement::new(tags::SAMPLES_PER_PIXEL, VR::US, PrimitiveValue::from(1u16)),
        DataElement::new(tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "MONOCHROME2"),
        DataElement::new(tags::ROWS, VR::US, PrimitiveValue::from(SIDE)),
        DataElement::new(tags::COLUMNS, VR::US, PrimitiveValue::from(SIDE)),
        DataElement::new(tags::BITS_ALLOCATED, VR::US, PrimitiveValue::from(8u16)),
        DataElement::new(tags::BITS_STORED, VR::US, PrimitiveValue::from(8u16)),
        DataElement::new(tags::HIGH_BIT, VR::US, PrimitiveValue::from(7u16)),
        DataElement::new(tags::PIXEL_REPRESENTATION, VR::US, PrimitiveValue::from(0u16)),
        DataElement::new(tags::NUMBER_OF_FRAMES, VR::IS, frames.len().to_string()),
        DataElement::new(tags::PIXEL_DATA, VR::OB, PrimitiveValue::U8(frames.concat().into())),
    ]);
    for element in extra {
        object.put(element);
    }
    let meta = FileMetaTableBuilder::new().transfer_syntax(uids::EXPLICIT_VR_LITTLE_ENDIAN);
    let mut bytes = Vec::new();
    object.with_meta(meta).expect("has UIDs").write_all(&mut bytes).expect("encodes");
    Identified::new(bytes, Origin::CStore)
}

fn apply(object: Identified) -> Result<Deidentified, Quarantine> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    Deidentifier::open(DeidentSettings::default(), folder.path()).expect("opens").apply(object)
}

fn cs(tag: Tag, value: &str) -> DataElement<InMemDicomObject> {
    DataElement::new(tag, VR::CS, value)
}

fn frames_of(object: &Deidentified) -> Vec<Vec<u8>> {
    let data =
        object.object().element(tags::PIXEL_DATA).expect("pixels").to_bytes().expect("bytes").into_owned();
    data.chunks(usize::from(SIDE) * usize::from(SIDE)).map(<[u8]>::to_vec).collect()
}

#[test]
fn a_picture_without_text_keeps_every_pixel() {
    let object = apply(image(&[picture(false)], vec![])).expect("passes");
    assert_eq!(frames_of(&object), [picture(false)]);
    let pixels = object.report().pixels.clone().expect("has pixels");
    assert_eq!((pixels.frames, pixels.blanked.len()), (1, 0));
    assert!(
        object.object().get(tags::BURNED_IN_ANNOTATION).is_none(),
        "nothing is claimed that was not done"
    );
}

#[test]
fn text_in_one_frame_is_blanked_in_all_whatever_the_attribute_says() {
    for says in [None, Some("NO"), Some("YES")] {
        let extra = says.map(|value| cs(tags::BURNED_IN_ANNOTATION, value)).into_iter().collect();
        let object = apply(image(&[picture(false), picture(true), picture(false)], extra)).expect("passes");
        for frame in frames_of(&object) {
            assert!(frame.iter().all(|&pixel| pixel < 200), "no ink is left");
            let row = 26 * usize::from(SIDE);
            assert!(
                frame[row + 20..row + 100].windows(2).all(|pair| pair[0] == pair[1]),
                "one shade, in every frame"
            );
            assert_eq!(
                frame[100 * usize::from(SIDE)..],
                picture(false)[100 * usize::from(SIDE)..],
                "the rest stays"
            );
        }
        let burned_in =
            object.object().element(tags::BURNED_IN_ANNOTATION).expect("set").to_str().expect("text");
        assert_eq!(burned_in, "NO");
    }
}

#[test]
fn an_announced_text_that_is_not_found_holds_the_object_back() {
    let held =
        apply(image(&[picture(false)], vec![cs(tags::BURNED_IN_ANNOTATION, "YES")])).expect_err("held back");
    assert_eq!(held.reason, QuarantineReason::BurnedInTextNotFound);
}

#[test]
fn outside_of_ultrasound_regions_nothing_stays() {
    let side = |tag, value: u32| DataElement::new(tag, VR::UL, PrimitiveValue::from(value));
    let region = InMemDicomObject::from_element_iter([
        side(tags::REGION_LOCATION_MIN_X0, 50),
        side(tags::REGION_LOCATION_MIN_Y0, 60),
        side(tags::REGION_LOCATION_MAX_X1, 99),
        side(tags::REGION_LOCATION_MAX_Y1, 109),
    ]);
    let regions = DataSetSequence::new(vec![region], Length::UNDEFINED);
    let object = apply(image(
        &[picture(false)],
        vec![
            cs(tags::MODALITY, "US"),
            DataElement::new(tags::SEQUENCE_OF_ULTRASOUND_REGIONS, VR::SQ, regions),
        ],
    ))
    .expect("passes");
    let frame = &frames_of(&object)[0];
    for (i, (&after, before)) in frame.iter().zip(picture(false)).enumerate() {
        let (x, y) = (i % usize::from(SIDE), i / usize::from(SIDE));
        let inside = (50..=99).contains(&x) && (60..=109).contains(&y);
        assert_eq!(after, if inside { before } else { 40 }, "{x},{y}");
    }
    assert_eq!(object.report().pixels.clone().expect("has pixels").suspicions, [Suspicion::Modality]);
}

#[test]
fn what_cannot_be_cleaned_is_held_back_with_its_reason() {
    let reason = |extra| apply(image(&[picture(false)], extra)).expect_err("held back").reason;
    assert_eq!(
        reason(vec![cs(tags::RECOGNIZABLE_VISUAL_FEATURES, "YES")]),
        QuarantineReason::RecognizableVisualFeatures
    );
    let document =
        DataElement::new(tags::ENCAPSULATED_DOCUMENT, VR::OB, PrimitiveValue::U8([1, 2].as_slice().into()));
    assert_eq!(reason(vec![document]), QuarantineReason::EncapsulatedDocument);
    let raw = DataElement::new(tags::SOP_CLASS_UID, VR::UI, uids::RAW_DATA_STORAGE);
    assert!(matches!(reason(vec![raw]), QuarantineReason::UncleanableContent(_)));
    let short = DataElement::new(tags::PIXEL_DATA, VR::OB, PrimitiveValue::U8([1, 2].as_slice().into()));
    assert!(matches!(reason(vec![short]), QuarantineReason::PixelsUndecodable(_)));
    let nameless = DataElement::new(tags::STUDY_INSTANCE_UID, VR::UI, "");
    assert_eq!(reason(vec![nameless]), QuarantineReason::MissingAttribute("StudyInstanceUID"));
}

#[test]
fn what_was_held_back_is_listed_for_staff_and_counted_until_it_passes() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let deidentifier = Deidentifier::open(DeidentSettings::default(), folder.path()).expect("opens");
    let held = image(&[picture(false)], vec![cs(tags::BURNED_IN_ANNOTATION, "YES")]);
    deidentifier.apply(held).expect_err("held back");
    let study = deidentifier.study_key("1.2.3");
    let listed = deidentifier.quarantined(&study).expect("readable");
    assert_eq!(listed.len(), 1);
    assert_eq!(
        (listed[0].sop_instance_uid.as_str(), listed[0].code.as_str()),
        ("1.2.3.4", "burned-in-text-not-found")
    );
    let report = deidentifier.study_report(&study).expect("readable").expect("seen");
    assert_eq!((report.deidentified, report.quarantined["burned-in-text-not-found"]), (0, 1));

    let passed = deidentifier.apply(image(&[picture(false)], vec![])).expect("passes");
    let report = deidentifier.study_report(passed.study_key()).expect("readable").expect("seen");
    assert_eq!((report.deidentified, report.quarantined.len()), (1, 0));
    assert!(passed.study_key() == &study && deidentifier.quarantined(&study).expect("readable").is_empty());
    let text = serde_json::to_string(&report).expect("plain values");
    assert!(!text.contains("1.2.3") && !text.contains("MRN"), "{text}");
}
