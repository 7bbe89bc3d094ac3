//! What an object itself says that identifies its patient, gathered before anything is cleaned, so that the same words
//! are found again where they do not belong.

use crate::settings::ProfileOptions;
use crate::table::{self, Action};
use crate::text::{is_harmless, words};
use dicom_core::VR;
use dicom_core::header::Header as _;
use dicom_dictionary_std::tags;
use dicom_object::InMemDicomObject;
use dicom_object::mem::InMemElement;
use std::collections::HashSet;

/// The shortest number or code that is searched for inside other text: shorter ones stand everywhere by chance.
const MIN_ID_CHARS: usize = 5;
/// Values longer than this are texts, not identifiers.
const MAX_ID_CHARS: usize = 64;

/// Names, numbers and addresses of one object. Prints nothing of itself.
#[derive(Default)]
pub(crate) struct KnownIdentifiers {
    /// Words of names, lower case.
    names: HashSet<String>,
    /// Whole values, lower case, longest first once sealed.
    ids: Vec<String>,
}

impl KnownIdentifiers {
    /// Gathers from every level of `object`.
    pub(crate) fn of(object: &InMemDicomObject) -> Self {
        let mut known = Self::default();
        known.gather(object, 0);
        known.ids.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        known.ids.dedup();
        known
    }

    fn gather(&mut self, object: &InMemDicomObject, depth: usize) {
        if depth > crate::clean::MAX_DEPTH {
            return;
        }
        for element in object {
            match element.items() {
                Some(items) => items.iter().for_each(|item| self.gather(item, depth + 1)),
                None => self.gather_element(element),
            }
        }
    }

    fn gather_element(&mut self, element: &InMemElement) {
        const PROFILE: ProfileOptions = ProfileOptions {
            clean_descriptors: true,
            retain_longitudinal_modified_dates: true,
            retain_safe_private: false,
            clean_structured_content: true,
        };
        let tag = element.header().tag();
        let Ok(values) = element.value().to_multi_str() else { return };
        let is_person = element.vr() == VR::PN;
        let identifies =
            matches!(table::action(tag, &PROFILE), Some(Action::Remove | Action::Empty | Action::Dummy));
        for value in
            values.iter().map(|value| value.trim_matches(['\0', ' '])).filter(|value| !value.is_empty())
        {
            match element.vr() {
                _ if is_person => self.add_name(value),
                VR::UI
                    if !value.starts_with("1.2.840.10008.")
                        && table::action(tag, &PROFILE) == Some(Action::Uid) =>
                {
                    self.add_id(value);
                }
                VR::LO | VR::SH | VR::ST | VR::UC if identifies => {
                    self.add_id(value);
                    // Addresses and institutions: their unusual words.
                    words(value)
                        .map(str::to_lowercase)
                        .filter(|word| word.chars().count() >= 4 && !is_harmless(word))
                        .filter(|word| word.chars().any(char::is_alphabetic) && !is_everyday(word))
                        .for_each(|word| {
                            self.names.insert(word);
                        });
                }
                VR::DA if tag == tags::PATIENT_BIRTH_DATE => self.add_id(value),
                VR::AE | VR::UN if identifies => self.add_id(value),
                _ => {}
            }
        }
    }

    /// Adds every word of a person's name, in all its component groups.
    pub(crate) fn add_name(&mut self, name: &str) {
        for word in words(name) {
            let word = word.to_lowercase();
            let ideographic = !word.is_ascii();
            if word.chars().count() >= if ideographic { 1 } else { 2 } {
                self.names.insert(word);
            }
        }
    }

    /// Adds a number or code.
    pub(crate) fn add_id(&mut self, id: &str) {
        let id = id.trim().to_lowercase();
        if (MIN_ID_CHARS..=MAX_ID_CHARS).contains(&id.chars().count())
            && !words(&id).all(|w| is_harmless(w) || is_everyday(w))
        {
            self.ids.push(id);
        }
    }

    /// Whether a lower-case word is part of a name.
    pub(crate) fn is_name(&self, word: &str) -> bool {
        self.names.contains(word)
    }

    /// `text` without the known numbers and codes, in whatever case they stand.
    pub(crate) fn without_ids(&self, text: &str) -> String {
        let mut out = text.to_owned();
        for id in &self.ids {
            // Lower-casing can change a text's length, so positions hold only where it does not.
            loop {
                let lower = out.to_lowercase();
                let Some(at) = lower.find(id.as_str()) else { break };
                if lower.len() != out.len()
                    || !out.is_char_boundary(at)
                    || !out.is_char_boundary(at + id.len())
                {
                    return String::new();
                }
                out.replace_range(at..at + id.len(), "");
            }
        }
        out
    }

    /// Whether `text` holds a known number or code, or a word of a name with at least four letters.
    pub(crate) fn is_in(&self, text: &str) -> bool {
        let lower = text.to_lowercase();
        self.ids.iter().any(|id| lower.contains(id.as_str()))
            || words(&lower).any(|word| word.chars().count() >= 4 && self.is_name(word))
    }

    /// Whether raw bytes hold a known number, code or word of a name, of at least five bytes.
    pub(crate) fn is_in_bytes(&self, bytes: &[u8]) -> bool {
        let lower = bytes.to_ascii_lowercase();
        let found = |needle: &str| {
            needle.len() >= MIN_ID_CHARS
                && lower.windows(needle.len()).any(|window| window == needle.as_bytes())
        };
        self.ids.iter().any(|id| found(id)) || self.names.iter().any(|name| found(name))
    }
}

/// Words that stand in names of institutions, makers and codes alike and identify nobody.
fn is_everyday(word: &str) -> bool {
    const EVERYDAY: [&str; 36] = [
        "hospital",
        "clinic",
        "klinik",
        "medical",
        "center",
        "centre",
        "university",
        "general",
        "radiology",
        "department",
        "imaging",
        "health",
        "street",
        "road",
        "avenue",
        "city",
        "state",
        "systems",
        "healthcare",
        "institute",
        "community",
        "regional",
        "national",
        "anonymous",
        "removed",
        "none",
        "unknown",
        "null",
        "group",
        "unit",
        "north",
        "south",
        "east",
        "west",
        "dicom",
        "format",
    ];
    EVERYDAY.contains(&word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_parts_and_scripts_of_a_name_are_known() {
        let mut known = KnownIdentifiers::default();
        known.add_name("Yamada^Tarou=山田^太郎=やまだ^たろう");
        for word in ["yamada", "tarou", "山田", "太郎", "やまだ"] {
            assert!(known.is_name(word), "{word}");
        }
        assert!(known.is_in("Dr. YAMADA"));
        assert!(!known.is_in("yam"));
    }

    #[test]
    fn ids_are_found_in_any_case_and_taken_out() {
        let mut known = KnownIdentifiers::default();
        known.add_id("Ab-12345");
        assert_eq!(known.without_ids("x AB-12345 y ab-12345"), "x  y ");
        assert!(known.is_in_bytes(b"\0\0aB-12345\0"));
        known.add_id("12");
        assert!(!known.is_in("12"));
    }
}
