//! Data sets in the DICOM JSON model (PS3.18 annex F), read as servers send them: numbers where strings belong,
//! missing values, and UIDs that are none must not lose a whole list.

use crate::error::DicomWebError;
use dicom_core::Tag;
use dicom_object::InMemDicomObject;
use serde_json::{Map, Value};
use std::fmt;

/// One data set of an answer. It identifies a patient: `Debug` shows only how many attributes it has.
#[derive(Clone, PartialEq)]
pub struct JsonDataSet(Map<String, Value>);

impl fmt::Debug for JsonDataSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JsonDataSet({} attributes)", self.0.len())
    }
}

impl JsonDataSet {
    fn values(&self, tag: Tag) -> &[Value] {
        let key = format!("{:04X}{:04X}", tag.0, tag.1);
        let element = self.0.get(&key).or_else(|| self.0.get(&key.to_ascii_lowercase()));
        element.and_then(|element| element.get("Value")).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    /// All values of an attribute as texts; names of persons in their alphabetic form.
    pub fn texts(&self, tag: Tag) -> Vec<String> {
        let text = |value: &Value| match value {
            Value::String(text) => Some(text.trim_matches([' ', '\0']).to_owned()),
            Value::Number(number) => Some(number.to_string()),
            Value::Object(name) => name.get("Alphabetic").and_then(Value::as_str).map(str::to_owned),
            _ => None,
        };
        let texts = self.values(tag).iter().filter_map(text);
        // Several values in one string, as some servers send them.
        texts.flat_map(|text| text.split('\\').map(str::to_owned).collect::<Vec<_>>()).collect()
    }

    /// The first value of an attribute as a text, where it has one that is not empty.
    #[must_use]
    pub fn text(&self, tag: Tag) -> Option<String> {
        self.texts(tag).into_iter().find(|text| !text.is_empty())
    }

    /// The first value of an attribute as a whole number.
    #[must_use]
    pub fn number(&self, tag: Tag) -> Option<u64> {
        self.text(tag)?.trim().parse().ok()
    }

    /// The items of a sequence.
    #[must_use]
    pub fn items(&self, tag: Tag) -> Vec<Self> {
        self.values(tag).iter().filter_map(Value::as_object).cloned().map(Self).collect()
    }

    /// The data set as one that the rest of the DICOM libraries take.
    ///
    /// # Errors
    /// When a value does not fit its value representation.
    pub fn to_object(&self) -> Result<InMemDicomObject, DicomWebError> {
        dicom_json::from_value(Value::Object(self.0.clone())).map_err(|_| DicomWebError::Answer {
            expected: "values that fit their value representations (PS3.18 F.2.3)",
            got: "others".to_owned(),
        })
    }
}

/// Reads an answer: an array of data sets, or a single one. An empty answer is an empty list.
pub(crate) fn data_sets(answer: &[u8]) -> Result<Vec<JsonDataSet>, DicomWebError> {
    if answer.iter().all(u8::is_ascii_whitespace) {
        return Ok(Vec::new());
    }
    let bad =
        |got: &str| DicomWebError::Answer { expected: "DICOM JSON (PS3.18 annex F)", got: got.to_owned() };
    match serde_json::from_slice(answer).map_err(|_| bad("something else"))? {
        Value::Array(items) => {
            let object = |item| match item {
                Value::Object(attributes) => Ok(JsonDataSet(attributes)),
                _ => Err(bad("an array of other things")),
            };
            items.into_iter().map(object).collect()
        }
        Value::Object(attributes) => Ok(vec![JsonDataSet(attributes)]),
        _ => Err(bad("another kind of JSON")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dicom_dictionary_std::tags;

    #[test]
    fn values_are_read_as_servers_send_them() {
        let answer = br#"[{"0020000D": {"vr": "UI", "Value": ["1.2\u0000"]},
            "00080061": {"vr": "CS", "Value": ["CT\\MR", "PR"]}, "00201206": {"vr": "IS", "Value": ["3"]},
            "00201208": {"vr": "IS", "Value": [42]}, "00080020": {"vr": "DA"},
            "00100010": {"vr": "PN", "Value": [{"Alphabetic": "Doe^Jane"}]},
            "00081199": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": ["1.3"]}}, null]}}]"#;
        let sets = data_sets(answer).unwrap();
        let set = &sets[0];
        assert_eq!(set.text(tags::STUDY_INSTANCE_UID).as_deref(), Some("1.2"));
        assert_eq!(set.texts(tags::MODALITIES_IN_STUDY), ["CT", "MR", "PR"]);
        assert_eq!(set.number(tags::NUMBER_OF_STUDY_RELATED_SERIES), Some(3));
        assert_eq!(set.number(tags::NUMBER_OF_STUDY_RELATED_INSTANCES), Some(42));
        assert_eq!(set.text(tags::STUDY_DATE), None);
        assert_eq!(
            set.items(tags::REFERENCED_SOP_SEQUENCE)[0].text(tags::REFERENCED_SOP_INSTANCE_UID).as_deref(),
            Some("1.3")
        );
        assert!(!format!("{set:?}").contains("Jane"));
    }

    #[test]
    fn an_empty_answer_is_an_empty_list_and_html_is_refused() {
        assert!(data_sets(b"").unwrap().is_empty());
        assert!(data_sets(b" []\n").unwrap().is_empty());
        assert!(data_sets(b"<html>").is_err());
        assert!(data_sets(b"[1]").is_err());
        assert!(data_sets(b"3").is_err());
    }
}
