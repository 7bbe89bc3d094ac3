use super::*;
use crate::settings::ProfileOptions;

const NO_OPTIONS: ProfileOptions = ProfileOptions {
    clean_descriptors: false,
    retain_longitudinal_modified_dates: false,
    retain_safe_private: false,
    clean_structured_content: false,
};

fn element(tag: Tag, vr: VR, value: &str) -> InMemElement {
    DataElement::new(tag, vr, value)
}

fn sequence(tag: Tag, items: Vec<InMemDicomObject>) -> InMemElement {
    DataElement::new(tag, VR::SQ, DataSetSequence::new(items, Length::UNDEFINED))
}

fn object<const N: usize>(elements: [InMemElement; N]) -> InMemDicomObject {
    InMemDicomObject::from_element_iter(elements)
}

fn cleaned_with(options: ProfileOptions, object: InMemDicomObject) -> (InMemDicomObject, ObjectReport) {
    let settings = DeidentSettings { options, ..DeidentSettings::default() };
    let known = KnownIdentifiers::of(&object);
    let mut report = ObjectReport::default();
    let key = SiteKey::fixed(9);
    let mut cleaner =
        Cleaner { settings: &settings, key: &key, shift_days: 35, known: &known, report: &mut report };
    let out = cleaner.clean(object).unwrap();
    (out, report)
}

fn cleaned(object: InMemDicomObject) -> InMemDicomObject {
    cleaned_with(ProfileOptions::default(), object).0
}

fn value(object: &InMemDicomObject, tag: Tag) -> Option<String> {
    object.get(tag).map(|element| texts(element).join("\\"))
}

#[test]
fn x_removes_z_empties_d_replaces_u_remaps() {
    let (out, report) = cleaned_with(
        NO_OPTIONS,
        object([
            element(tags::PATIENT_ADDRESS, VR::LO, "Rosmaringasse 14"),
            element(tags::ACCESSION_NUMBER, VR::SH, "A4711"),
            element(tags::PERSON_NAME, VR::PN, "Szczepanski^B"),
            element(tags::SOP_INSTANCE_UID, VR::UI, "1.2.3.4"),
            element(tags::SOP_CLASS_UID, VR::UI, "1.2.840.10008.5.1.4.1.1.1"),
            element(tags::MODALITY, VR::CS, "CR"),
        ]),
    );
    assert_eq!(value(&out, tags::PATIENT_ADDRESS), None);
    assert_eq!(value(&out, tags::ACCESSION_NUMBER).as_deref(), Some(""));
    assert_eq!(value(&out, tags::PERSON_NAME).as_deref(), Some("REMOVED"));
    assert_eq!(value(&out, tags::SOP_INSTANCE_UID), Some(SiteKey::fixed(9).uid("2.25", "1.2.3.4")));
    assert_eq!(value(&out, tags::SOP_CLASS_UID).as_deref(), Some("1.2.840.10008.5.1.4.1.1.1"));
    assert_eq!(value(&out, tags::MODALITY).as_deref(), Some("CR"));
    assert_eq!(report.actions["remove"], 1);
    assert_eq!(report.actions["empty"], 1);
    assert_eq!(report.actions["dummy"], 1);
    assert_eq!(report.actions["remap-uid"], 1);
}

#[test]
fn descriptors_are_removed_without_the_option_and_cleaned_with_it() {
    let make = || {
        object([
            element(tags::PATIENT_NAME, VR::PN, "Okonkwo^Chidi"),
            element(tags::STUDY_DESCRIPTION, VR::LO, "CHEST PA Okonkwo ward 7"),
            element(tags::SERIES_DESCRIPTION, VR::LO, "Okonkwo"),
        ])
    };
    assert_eq!(value(&cleaned_with(NO_OPTIONS, make()).0, tags::STUDY_DESCRIPTION), None);
    let out = cleaned(make());
    assert_eq!(value(&out, tags::STUDY_DESCRIPTION).as_deref(), Some("chest pa"));
    assert_eq!(value(&out, tags::SERIES_DESCRIPTION), None, "nothing is left of it");
}

#[test]
fn dates_are_emptied_without_the_option_and_shifted_with_it() {
    let make = || {
        object([
            element(tags::STUDY_DATE, VR::DA, "20240315"),
            element(tags::STUDY_TIME, VR::TM, "101112"),
            element(tags::ACQUISITION_DATE_TIME, VR::DT, "20240315101112.5+0100"),
            element(tags::PATIENT_BIRTH_DATE, VR::DA, "20190315"),
            element(tags::CONTENT_DATE, VR::DA, "15 March"),
        ])
    };
    let out = cleaned_with(NO_OPTIONS, make()).0;
    assert_eq!(value(&out, tags::STUDY_DATE).as_deref(), Some(""));
    let out = cleaned(make());
    assert_eq!(value(&out, tags::STUDY_DATE).as_deref(), Some("20240209"));
    assert_eq!(value(&out, tags::STUDY_TIME).as_deref(), Some("101112"));
    assert_eq!(value(&out, tags::ACQUISITION_DATE_TIME).as_deref(), Some("20240209101112.5"));
    assert_eq!(value(&out, tags::PATIENT_BIRTH_DATE).as_deref(), Some(""));
    assert!(!value(&out, tags::CONTENT_DATE).unwrap_or_default().contains("March"));
}

#[test]
fn private_attributes_go_unless_listed_for_their_creator() {
    let make = || {
        object([
            element(Tag(0x7053, 0x0010), VR::LO, "Philips PET Private Group"),
            element(Tag(0x7053, 0x1000), VR::DS, "1.25"),
            element(Tag(0x7053, 0x1003), VR::LO, "Okonkwo"),
            element(Tag(0x0009, 0x0010), VR::LO, "ACME"),
            element(Tag(0x0009, 0x1000), VR::DS, "1.25"),
        ])
    };
    let out = cleaned(make());
    assert_eq!(value(&out, Tag(0x7053, 0x1000)).as_deref(), Some("1.25"));
    assert_eq!(value(&out, Tag(0x7053, 0x0010)).as_deref(), Some("Philips PET Private Group"));
    assert_eq!(out.iter().count(), 2);
    assert_eq!(cleaned_with(NO_OPTIONS, make()).0.iter().count(), 0);
    let named = cleaned(object([
        element(Tag(0x7053, 0x0010), VR::LO, "Philips PET Private Group"),
        element(Tag(0x7053, 0x1000), VR::DS, "Okonkwo"),
    ]));
    assert_eq!(named.iter().count(), 0, "a listed attribute that holds no number");
}

#[test]
fn sequences_are_cleaned_to_any_depth_and_refused_beyond_reason() {
    let mut inner = object([
        element(tags::PATIENT_NAME, VR::PN, "Okonkwo^Chidi"),
        element(tags::REFERENCED_SOP_INSTANCE_UID, VR::UI, "1.2.3"),
    ]);
    for _ in 0..5 {
        inner = object([sequence(tags::REFERENCED_SERIES_SEQUENCE, vec![inner])]);
    }
    let mut out = cleaned(inner);
    for _ in 0..5 {
        let items = out.take(tags::REFERENCED_SERIES_SEQUENCE).unwrap().into_value().into_items().unwrap();
        out = items.into_iter().next().unwrap();
    }
    assert_ne!(value(&out, tags::PATIENT_NAME).as_deref(), Some("Okonkwo^Chidi"));
    assert_eq!(value(&out, tags::REFERENCED_SOP_INSTANCE_UID), Some(SiteKey::fixed(9).uid("2.25", "1.2.3")));

    let mut deep = InMemDicomObject::new_empty();
    for _ in 0..=MAX_DEPTH {
        deep = object([sequence(tags::REFERENCED_SERIES_SEQUENCE, vec![deep])]);
    }
    let (settings, key, known) = (DeidentSettings::default(), SiteKey::fixed(9), KnownIdentifiers::default());
    let mut report = ObjectReport::default();
    let mut cleaner =
        Cleaner { settings: &settings, key: &key, shift_days: 1, known: &known, report: &mut report };
    assert_eq!(cleaner.clean(deep).err(), Some(QuarantineReason::TooDeep(MAX_DEPTH)));
}

#[test]
fn overlays_unknown_attributes_and_nested_pixels_go() {
    let out = cleaned(object([
        DataElement::new(Tag(0x6000, 0x3000), VR::OW, PrimitiveValue::U16([1, 2].as_slice().into())),
        element(Tag(0x6000, 0x0022), VR::LO, "drawn for Okonkwo"),
        element(Tag(0x0010, 0x0999), VR::LO, "anything"),
        sequence(
            tags::REFERENCED_SERIES_SEQUENCE,
            vec![object([DataElement::new(
                tags::PIXEL_DATA,
                VR::OB,
                PrimitiveValue::U8([1, 2].as_slice().into()),
            )])],
        ),
    ]));
    assert_eq!(out.iter().count(), 1);
    let items = out.get(tags::REFERENCED_SERIES_SEQUENCE).unwrap().items().unwrap();
    assert_eq!(items[0].iter().count(), 0);
}

#[test]
fn kept_text_loses_the_name_wherever_the_object_says_it() {
    let out = cleaned(object([
        sequence(
            tags::OTHER_PATIENT_I_DS_SEQUENCE,
            vec![object([element(tags::PATIENT_ID, VR::LO, "MRN-55512")])],
        ),
        element(tags::OPERATORS_NAME, VR::PN, "Winterbottom^Agatha"),
        element(tags::MANUFACTURER_MODEL_NAME, VR::LO, "DRX (mrn-55512) for Winterbottom"),
        element(tags::BODY_PART_EXAMINED, VR::CS, "CHEST"),
    ]));
    assert_eq!(value(&out, tags::MANUFACTURER_MODEL_NAME).as_deref(), Some("DRX () for"));
    assert_eq!(value(&out, tags::BODY_PART_EXAMINED).as_deref(), Some("CHEST"));
}

fn content_item(value_type: &str, concept: (&str, &str), value: InMemElement) -> InMemDicomObject {
    let code = object([
        element(tags::CODE_VALUE, VR::SH, concept.1),
        element(tags::CODING_SCHEME_DESIGNATOR, VR::SH, concept.0),
    ]);
    object([
        element(tags::VALUE_TYPE, VR::CS, value_type),
        sequence(tags::CONCEPT_NAME_CODE_SEQUENCE, vec![code]),
        value,
    ])
}

#[test]
fn structured_reports_keep_findings_and_lose_people() {
    let make = || {
        object([sequence(
            tags::CONTENT_SEQUENCE,
            vec![
                content_item(
                    "TEXT",
                    ("DCM", "121071"),
                    element(tags::TEXT_VALUE, VR::UT, "Pneumonia left lower lobe, Chidi Okonkwo"),
                ),
                content_item("TEXT", ("DCM", "121071"), element(tags::TEXT_VALUE, VR::UT, "Okonkwo")),
                content_item("PNAME", ("DCM", "121008"), element(tags::PERSON_NAME, VR::PN, "Okonkwo^Chidi")),
                content_item("TEXT", ("DCM", "121022"), element(tags::TEXT_VALUE, VR::UT, "A4711")),
                content_item("DATE", ("99X", "1"), element(tags::DATE, VR::DA, "20240315")),
                content_item("UIDREF", ("99X", "2"), element(tags::UID, VR::UI, "1.2.3")),
            ],
        )])
    };
    let out = cleaned(make());
    let items = out.get(tags::CONTENT_SEQUENCE).unwrap().items().unwrap();
    assert_eq!(items.len(), 3);
    assert_eq!(value(&items[0], tags::TEXT_VALUE).as_deref(), Some("pneumonia left lower lobe"));
    assert_eq!(value(&items[1], tags::DATE).as_deref(), Some("20240209"));
    assert_eq!(value(&items[2], tags::UID), Some(SiteKey::fixed(9).uid("2.25", "1.2.3")));

    let bare = cleaned_with(NO_OPTIONS, make()).0;
    let text = format!("{bare:?}");
    assert!(!text.contains("neumonia") && !text.contains("Okonkwo") && !text.contains("20240315"), "{text}");
}

#[test]
fn dirty_values_do_no_harm() {
    let out = cleaned(object([
        element(tags::PATIENT_NAME, VR::PN, "^^^=="),
        element(tags::STUDY_INSTANCE_UID, VR::UI, "not a uid"),
        element(tags::STUDY_DATE, VR::DA, "1997.04.24"),
        element(tags::KVP, VR::DS, "about 70"),
        DataElement::new(tags::STUDY_TIME, VR::US, PrimitiveValue::from(7u16)),
        DataElement::new(tags::REFERENCED_SERIES_SEQUENCE, VR::LO, PrimitiveValue::from("no sequence")),
    ]));
    assert!(crate::settings::is_uid(&value(&out, tags::STUDY_INSTANCE_UID).unwrap()));
    assert_eq!(value(&out, tags::STUDY_DATE).as_deref(), Some("19970320"));
}
