//! Cleaning of a data set by Table E.1-1, at any depth of its sequences.

use crate::dates::{keep_time, shift_date, shift_datetime};
use crate::identifiers::KnownIdentifiers;
use crate::keys::SiteKey;
use crate::quarantine::QuarantineReason;
use crate::report::ObjectReport;
use crate::settings::DeidentSettings;
use crate::table::{self, Action, Fallback};
use crate::text::{clean_descriptor, scrub};
use dicom_core::header::Header as _;
use dicom_core::value::{DataSetSequence, PrimitiveValue, Value};
use dicom_core::{DataElement, Length, Tag, VR};
use dicom_dictionary_std::tags;
use dicom_object::InMemDicomObject;
use dicom_object::mem::InMemElement;
use medinet_objects::{dictionary_vr, is_text};
use std::collections::HashMap;

/// Sequences deeper than this hold no medicine, only trouble.
pub(crate) const MAX_DEPTH: usize = 24;

/// Text that stands where a value is needed and nothing may be said.
const DUMMY_TEXT: &str = "REMOVED";

/// Attributes of type UI that name classes, syntaxes and vocabularies, not things of this patient.
const STRUCTURAL_UIDS: [Tag; 10] = [
    tags::SOP_CLASS_UID,
    tags::REFERENCED_SOP_CLASS_UID,
    tags::ORIGINAL_SPECIALIZED_SOP_CLASS_UID,
    tags::RELATED_GENERAL_SOP_CLASS_UID,
    tags::SOP_CLASSES_IN_STUDY,
    tags::CODING_SCHEME_UID,
    tags::CONTEXT_UID,
    tags::MAPPING_RESOURCE_UID,
    tags::AVAILABLE_TRANSFER_SYNTAX_UID,
    tags::ENCRYPTED_CONTENT_TRANSFER_SYNTAX_UID,
];

/// Where a data set stands.
#[derive(Clone, Copy)]
struct Place {
    depth: usize,
    /// The data set is an item of a structured report's content tree.
    content: bool,
    /// Everything said here is to be replaced: the data set is in a sequence whose action is D.
    dummy: bool,
}

/// One cleaning.
pub(crate) struct Cleaner<'a> {
    pub(crate) settings: &'a DeidentSettings,
    pub(crate) key: &'a SiteKey,
    pub(crate) shift_days: u32,
    pub(crate) known: &'a KnownIdentifiers,
    pub(crate) report: &'a mut ObjectReport,
}

type Outcome = Result<Option<InMemElement>, QuarantineReason>;

impl Cleaner<'_> {
    /// Cleans the main data set. Pixel data is left as it is; see `pixels`.
    pub(crate) fn clean(&mut self, object: InMemDicomObject) -> Result<InMemDicomObject, QuarantineReason> {
        self.data_set(object, Place { depth: 0, content: false, dummy: false })
    }

    fn count(&mut self, action: &'static str) {
        *self.report.actions.entry(action.to_owned()).or_default() += 1;
    }

    fn data_set(
        &mut self,
        object: InMemDicomObject,
        place: Place,
    ) -> Result<InMemDicomObject, QuarantineReason> {
        if place.depth > MAX_DEPTH {
            return Err(QuarantineReason::TooDeep(MAX_DEPTH));
        }
        let creators = private_creators(&object);
        let mut out = Vec::new();
        let mut kept_blocks = Vec::new();
        for element in object {
            let tag = element.header().tag();
            if tag.group() % 2 == 1 {
                if let Some(element) = self.private(element, &creators) {
                    kept_blocks.push((tag.group(), tag.element() >> 8));
                    out.push(element);
                }
            } else if let Some(element) = self.element(element, place)? {
                out.push(element);
            }
        }
        kept_blocks.sort_unstable();
        kept_blocks.dedup();
        for (group, block) in kept_blocks {
            if let Some(creator) = creators.get(&(group, block)) {
                out.push(DataElement::new(Tag(group, block), VR::LO, creator.as_str()));
            }
        }
        Ok(InMemDicomObject::from_element_iter(out))
    }

    /// A private attribute stays where the safe list has it for this creator, in the value representation that the
    /// list gives.
    fn private(
        &mut self,
        element: InMemElement,
        creators: &HashMap<(u16, u16), String>,
    ) -> Option<InMemElement> {
        let tag = element.header().tag();
        if tag.element() < 0x0100 {
            return None; // Creators come back with what they reserve; group lengths do not.
        }
        let safe = self.settings.options.retain_safe_private;
        let listed = creators
            .get(&(tag.group(), tag.element() >> 8))
            .filter(|_| safe)
            .and_then(|creator| table::safe_private(creator, tag));
        let kept = listed.and_then(|vr| self.safe_private_value(tag, vr, &element));
        self.count(if kept.is_some() { "keep-private" } else { "remove-private" });
        kept
    }

    fn safe_private_value(&self, tag: Tag, vr: &str, element: &InMemElement) -> Option<InMemElement> {
        let vr: VR = vr.parse().ok()?;
        if element.vr() != vr {
            return None;
        }
        let primitive = element.value().primitive()?.clone();
        let value = match vr {
            VR::UI => self.remap(&strings(&primitive)),
            VR::DS | VR::IS => {
                let number = |text: &str| text.trim_matches(['\0', ' ']).parse::<f64>().is_ok();
                strings(&primitive).iter().all(|text| number(text)).then_some(primitive)?
            }
            VR::CS | VR::SH | VR::LO => {
                let safe = |text: &String| scrub(text, self.known) == *text;
                strings(&primitive).iter().all(safe).then_some(primitive)?
            }
            _ => primitive,
        };
        Some(DataElement::new(tag, vr, value))
    }

    fn element(&mut self, element: InMemElement, place: Place) -> Outcome {
        let tag = element.header().tag();
        if tag.element() == 0 || tag.group() < 0x0008 {
            return Ok(None); // Group lengths (retired), and what belongs to messages and files.
        }
        if [tags::PIXEL_DATA, tags::FLOAT_PIXEL_DATA, tags::DOUBLE_FLOAT_PIXEL_DATA].contains(&tag) {
            let main = place.depth == 0;
            if !main {
                self.count("remove");
            }
            return Ok(main.then_some(element));
        }
        if matches!(tag.group() & 0xff00, 0x5000 | 0x6000) {
            // Curves and overlays go whole: without their data, the labels and descriptions that the table does not list
            // would only be left to tell.
            return self.act(element, Action::Remove, place);
        }
        if tag == tags::SPECIFIC_CHARACTER_SET {
            return Ok(None); // Written anew as UTF-8.
        }
        if let Some(action) = content_value_action(tag).filter(|_| place.content) {
            return self.act(element, action, place);
        }
        match table::action(tag, &self.settings.options) {
            Some(action) => self.act(element, action, place),
            None => self.unlisted(element, place),
        }
    }

    fn act(&mut self, element: InMemElement, action: Action, place: Place) -> Outcome {
        let tag = element.header().tag();
        match action {
            Action::Remove => {
                self.count("remove");
                Ok(None)
            }
            Action::Empty => {
                self.count("empty");
                Ok(Some(DataElement::empty(tag, vr_of(&element))))
            }
            Action::Dummy => self.dummy(element, place),
            Action::Uid if element.vr() != VR::SQ => {
                self.count("remap-uid");
                let value = self.remap(&texts(&element));
                Ok(Some(DataElement::new(tag, VR::UI, value)))
            }
            Action::Uid | Action::Keep => self.unlisted(element, place),
            Action::Clean(fallback) => {
                let cleaned = self.cleaned(&element, place)?;
                match cleaned {
                    Some(cleaned) => Ok(Some(cleaned)),
                    None => match fallback {
                        Fallback::Remove => self.act(element, Action::Remove, place),
                        Fallback::Empty => self.act(element, Action::Empty, place),
                        Fallback::Dummy => self.act(element, Action::Dummy, place),
                    },
                }
            }
        }
    }

    /// C: what stays of an attribute; `None` where that is nothing.
    fn cleaned(&mut self, element: &InMemElement, place: Place) -> Outcome {
        let tag = element.header().tag();
        let vr = element.vr();
        let values = match vr {
            VR::SQ => {
                let sequence = self.sequence(element.clone(), place, tag == tags::CONTENT_SEQUENCE)?;
                self.count("clean-sequence");
                return Ok(sequence.items().is_some_and(|items| !items.is_empty()).then_some(sequence));
            }
            VR::DA | VR::DT | VR::TM => self.temporal(element),
            VR::UI => {
                self.count("remap-uid");
                return Ok(Some(DataElement::new(tag, VR::UI, self.remap(&texts(element)))));
            }
            VR::LO | VR::SH | VR::ST | VR::LT | VR::UT | VR::UC | VR::CS => {
                let limit = if vr == VR::CS { 16 } else { usize::MAX };
                let words: Vec<String> = texts(element)
                    .iter()
                    .map(|text| clean_descriptor(text, self.known))
                    .map(|text| if vr == VR::CS { text.to_uppercase() } else { text })
                    .map(|text| text.chars().take(limit).collect())
                    .collect();
                self.count("clean-text");
                words.iter().any(|text| !text.is_empty()).then_some(words)
            }
            _ => None,
        };
        Ok(values.map(|values| DataElement::new(tag, vr, PrimitiveValue::Strs(values.into()))))
    }

    fn temporal(&mut self, element: &InMemElement) -> Option<Vec<String>> {
        if !self.settings.options.retain_longitudinal_modified_dates {
            return None;
        }
        let days = self.shift_days;
        let shift = |text: &String| match element.vr() {
            VR::DA => shift_date(text, days),
            VR::DT => shift_datetime(text, days),
            _ => keep_time(text),
        };
        let moved: Option<Vec<String>> = texts(element).iter().map(shift).collect();
        if moved.is_some() && element.vr() != VR::TM {
            self.count("shift-date");
        }
        moved.filter(|values| !values.is_empty())
    }

    /// D: a value that says nothing.
    fn dummy(&mut self, element: InMemElement, place: Place) -> Outcome {
        let tag = element.header().tag();
        let vr = vr_of(&element);
        let value: PrimitiveValue = match vr {
            VR::SQ => {
                self.count("dummy");
                return Ok(Some(self.sequence(element, Place { dummy: true, ..place }, false)?));
            }
            VR::UI => return self.act(element, Action::Uid, place),
            VR::DA => "19000101".into(),
            VR::DT => "19000101000000".into(),
            VR::TM => "000000".into(),
            VR::AS => "000Y".into(),
            VR::DS | VR::IS => "0".into(),
            VR::UR => "urn:removed".into(),
            VR::PN | VR::LO | VR::SH | VR::ST | VR::LT | VR::UT | VR::UC | VR::AE | VR::CS => {
                DUMMY_TEXT.into()
            }
            VR::US => 0u16.into(),
            VR::SS => 0i16.into(),
            VR::UL => 0u32.into(),
            VR::SL => 0i32.into(),
            VR::FL => 0f32.into(),
            VR::FD => 0f64.into(),
            _ => return self.act(element, Action::Remove, place),
        };
        self.count("dummy");
        Ok(Some(DataElement::new(tag, vr, value)))
    }

    /// An attribute that the table does not list, or says to keep: it stays, except for what cannot be understood and for
    /// what is known to identify this patient.
    fn unlisted(&mut self, element: InMemElement, place: Place) -> Outcome {
        let tag = element.header().tag();
        if dictionary_vr(tag).is_none() {
            self.count("remove-unknown");
            return Ok(None);
        }
        let vr = element.vr();
        match vr {
            VR::SQ => Ok(Some(self.sequence(element, place, false)?)),
            VR::PN => self.act(element, if place.dummy { Action::Dummy } else { Action::Empty }, place),
            VR::DA | VR::DT | VR::TM => match self.temporal(&element) {
                Some(values) => Ok(Some(DataElement::new(tag, vr, PrimitiveValue::Strs(values.into())))),
                None if texts(&element).is_empty() => Ok(Some(element)),
                None => self.act(element, Action::Empty, place),
            },
            VR::UI if STRUCTURAL_UIDS.contains(&tag) => Ok(Some(element)),
            VR::UI => self.act(element, Action::Uid, place),
            VR::UR | VR::UN => self.act(element, Action::Remove, place),
            _ if place.dummy && is_text(vr) && vr != VR::CS => self.dummy(element, place),
            _ if is_text(vr) => Ok(Some(self.scrubbed(element))),
            _ => {
                let identifying =
                    element.value().to_bytes().is_ok_and(|bytes| self.known.is_in_bytes(&bytes));
                if identifying { self.act(element, Action::Remove, place) } else { Ok(Some(element)) }
            }
        }
    }

    fn scrubbed(&mut self, element: InMemElement) -> InMemElement {
        let (tag, vr) = (element.header().tag(), element.vr());
        let before = texts(&element);
        let after: Vec<String> = before
            .iter()
            .map(|text| match vr {
                VR::CS | VR::AS | VR::AE | VR::DS | VR::IS if self.known.without_ids(text) != *text => {
                    String::new()
                }
                VR::AS | VR::DS | VR::IS => text.clone(),
                // Coded words are everyday ones, also where a patient is called so.
                VR::CS
                    if crate::text::words(text)
                        .all(|word| crate::text::is_harmless(&word.to_lowercase())) =>
                {
                    text.clone()
                }
                _ => scrub(text, self.known),
            })
            .collect();
        if before == after {
            return element;
        }
        self.count("scrub");
        DataElement::new(tag, vr, PrimitiveValue::Strs(after.into()))
    }

    fn sequence(
        &mut self,
        element: InMemElement,
        place: Place,
        content: bool,
    ) -> Result<InMemElement, QuarantineReason> {
        let tag = element.header().tag();
        let inner = Place { depth: place.depth + 1, content, dummy: place.dummy };
        let mut out = Vec::new();
        for item in element.into_value().into_items().unwrap_or_default() {
            if content {
                out.extend(self.content_item(item, inner)?);
            } else {
                out.push(self.data_set(item, inner)?);
            }
        }
        Ok(DataElement::new(tag, VR::SQ, DataSetSequence::new(out, Length::UNDEFINED)))
    }

    /// A content item of a structured report (PS3.15 E.3.4): by its concept name where Table E.3.4-1 lists it, else by its value
    /// type. Names of persons go; text keeps harmless words; a text without any left goes.
    fn content_item(
        &mut self,
        item: InMemDicomObject,
        place: Place,
    ) -> Result<Option<InMemDicomObject>, QuarantineReason> {
        let value_type = text_of(&item, tags::VALUE_TYPE).unwrap_or_default();
        let concept = item
            .get(tags::CONCEPT_NAME_CODE_SEQUENCE)
            .and_then(|e| e.items())
            .and_then(|items| items.first());
        let action = concept.and_then(|concept| {
            let scheme = text_of(concept, tags::CODING_SCHEME_DESIGNATOR)?;
            let code = text_of(concept, tags::CODE_VALUE)?;
            table::content_action(&scheme, &code, &value_type, &self.settings.options)
        });
        if value_type == "PNAME" || matches!(action, Some(Action::Remove | Action::Empty)) {
            self.count("remove");
            return Ok(None);
        }
        let dummy = place.dummy || action == Some(Action::Dummy);
        let item = self.data_set(item, Place { dummy, ..place })?;
        let lost = |tag| item.get(tag).is_none_or(|element| texts(element).is_empty());
        let without_value = match value_type.as_str() {
            "TEXT" => lost(tags::TEXT_VALUE),
            "DATE" => lost(tags::DATE),
            "TIME" => lost(tags::TIME),
            "DATETIME" => lost(tags::DATE_TIME),
            _ => false,
        };
        Ok((!without_value).then_some(item))
    }

    fn remap(&self, uids: &[String]) -> PrimitiveValue {
        let remapped: Vec<String> = uids.iter().map(|uid| self.uid(uid)).collect();
        if remapped.is_empty() { PrimitiveValue::Empty } else { PrimitiveValue::Strs(remapped.into()) }
    }

    /// The new UID for one of this site; those that the standard defines stay.
    pub(crate) fn uid(&self, uid: &str) -> String {
        remapped_uid(self.key, &self.settings.uid_root, uid)
    }
}

/// The new UID for one of this site; those that the standard defines (PS3.6 annex A) stay.
pub(crate) fn remapped_uid(key: &SiteKey, root: &str, uid: &str) -> String {
    if uid.is_empty() || uid.starts_with("1.2.840.10008.") { uid.to_owned() } else { key.uid(root, uid) }
}

/// What Clean Structured Content does to the values of a content item.
fn content_value_action(tag: Tag) -> Option<Action> {
    match tag {
        tags::TEXT_VALUE | tags::DATE | tags::TIME | tags::DATE_TIME => Some(Action::Clean(Fallback::Remove)),
        tags::UID => Some(Action::Uid),
        tags::PERSON_NAME => Some(Action::Remove),
        tags::CONTENT_SEQUENCE => Some(Action::Clean(Fallback::Remove)),
        _ => None,
    }
}

fn private_creators(object: &InMemDicomObject) -> HashMap<(u16, u16), String> {
    object
        .iter()
        .filter(|element| {
            let tag = element.header().tag();
            tag.group() % 2 == 1 && (0x0010..=0x00ff).contains(&tag.element())
        })
        .filter_map(|element| {
            let tag = element.header().tag();
            let name = element.value().to_str().ok()?;
            Some(((tag.group(), tag.element()), name.trim_matches(['\0', ' ']).to_owned()))
        })
        .collect()
}

fn vr_of(element: &InMemElement) -> VR {
    match element.vr() {
        VR::UN => dictionary_vr(element.header().tag()).unwrap_or(VR::UN),
        vr => vr,
    }
}

fn strings(value: &PrimitiveValue) -> Vec<String> {
    value.to_multi_str().iter().map(|text| text.trim_matches(['\0', ' ']).to_owned()).collect()
}

/// The values of an attribute as text, without padding; none where all are empty.
pub(crate) fn texts(element: &InMemElement) -> Vec<String> {
    let values = element.value().primitive().map(strings).unwrap_or_default();
    if values.iter().all(String::is_empty) { Vec::new() } else { values }
}

/// The first value of an attribute as text; `None` where it has none.
pub(crate) fn text_of(object: &InMemDicomObject, tag: Tag) -> Option<String> {
    let element = object.get(tag)?;
    if let Value::Sequence(_) | Value::PixelSequence(_) = element.value() {
        return None;
    }
    texts(element).into_iter().next().filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests;
