//! What a hospital decides about a data set.

use crate::DatasetError;
use medinet_model::ClassLabel;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Settings of a data set; the defaults suit single images such as chest X-rays.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DatasetSettings {
    /// Share of patients whose images validate, 0 to below 1.
    pub validation_fraction: f64,
    /// Share of patients whose images test, 0 to below 1; with the above below 1.
    pub test_fraction: f64,
    /// CSV files with labels by accession number. In a settings file the paths are relative to that file.
    #[serde(deserialize_with = "medinet_settings::resolved_all")]
    pub labels_csv: Vec<PathBuf>,
    /// Name of the CSV column with the accession number.
    pub accession_column: String,
    /// Name of the CSV column with the label.
    pub label_column: String,
    /// Other names of classes in label files, without regard to case: name to class.
    pub label_names: BTreeMap<String, ClassLabel>,
    /// Codes in structured reports that mean a class.
    pub sr_codes: Vec<SrCode>,
    /// Modalities (0008,0060) that are taken; empty takes all.
    pub modalities: Vec<String>,
    /// Most images of one series, evenly spaced along it; 0 takes all.
    pub max_images_per_series: u32,
    /// Most objects in the data set.
    pub max_objects: u64,
    /// Largest object, in bytes of its uncompressed file.
    pub max_object_bytes: u64,
}

/// A coded statement in a structured report (PS3.3 C.17.3, value type CODE) that means a class.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SrCode {
    /// The item's concept name, for example the finding whose presence is stated; `None` accepts any.
    #[serde(default)]
    pub concept: Option<CodePattern>,
    /// The item's value.
    pub value: CodePattern,
    /// The class that it means.
    pub class: ClassLabel,
}

/// A code by value and scheme, by meaning, or both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CodePattern {
    /// Coding Scheme Designator, such as `SCT`, `DCM` or `99LOCAL`.
    #[serde(default)]
    pub scheme: Option<String>,
    /// Code Value.
    #[serde(default)]
    pub value: Option<String>,
    /// Code Meaning, without regard to case.
    #[serde(default)]
    pub meaning: Option<String>,
}

impl Default for DatasetSettings {
    fn default() -> Self {
        Self {
            validation_fraction: 0.15,
            test_fraction: 0.15,
            labels_csv: Vec::new(),
            accession_column: "accession_number".into(),
            label_column: "label".into(),
            label_names: BTreeMap::new(),
            sr_codes: Vec::new(),
            modalities: Vec::new(),
            max_images_per_series: 0,
            max_objects: 1_000_000,
            max_object_bytes: 1 << 30,
        }
    }
}

impl DatasetSettings {
    /// Checks the settings against themselves and a task's classes.
    ///
    /// # Errors
    /// [`DatasetError::Settings`] names the setting by its key, what was expected and what it holds.
    pub fn check(&self, classes: &[ClassLabel]) -> Result<(), DatasetError> {
        let refuse =
            |setting, expected: String, got: String| Err(DatasetError::Settings { setting, expected, got });
        for (setting, fraction) in
            [("validation_fraction", self.validation_fraction), ("test_fraction", self.test_fraction)]
        {
            if !(0.0..1.0).contains(&fraction) {
                return refuse(setting, "0 to below 1".into(), fraction.to_string());
            }
        }
        if self.validation_fraction + self.test_fraction >= 1.0 {
            let expected = format!("below 1 together with test_fraction ({})", self.test_fraction);
            return refuse("validation_fraction", expected, self.validation_fraction.to_string());
        }
        for (setting, column) in
            [("accession_column", &self.accession_column), ("label_column", &self.label_column)]
        {
            if column.trim().is_empty() {
                return refuse(setting, "the name of a column".into(), format!("{column:?}"));
            }
        }
        if self.accession_column == self.label_column {
            let expected = "another column than accession_column".into();
            return refuse("label_column", expected, format!("{:?}", self.label_column));
        }
        let named = self.label_names.values().map(|class| ("label_names", class));
        let coded = self.sr_codes.iter().map(|code| ("sr_codes", &code.class));
        for (setting, class) in named.chain(coded) {
            if !classes.contains(class) {
                return refuse(
                    setting,
                    format!("one of the task's classes {classes:?}"),
                    format!("{class:?}"),
                );
            }
        }
        for code in &self.sr_codes {
            for pattern in std::iter::once(&code.value).chain(&code.concept) {
                if pattern.value.is_none() && pattern.meaning.is_none() {
                    let expected = "a value or a meaning in each code".into();
                    return refuse("sr_codes", expected, format!("{pattern:?}"));
                }
            }
        }
        for (setting, value) in
            [("max_objects", self.max_objects), ("max_object_bytes", self.max_object_bytes)]
        {
            if value == 0 {
                return refuse(setting, "at least 1".into(), "0".into());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classes() -> Vec<ClassLabel> {
        vec!["normal".into(), "pneumonia".into()]
    }

    #[test]
    fn impossible_settings_are_refused_by_their_key() {
        let good = DatasetSettings::default();
        good.check(&classes()).unwrap();
        let code = |value: Option<&str>, class: &str| SrCode {
            concept: None,
            value: CodePattern { scheme: Some("SCT".into()), value: value.map(str::to_owned), meaning: None },
            class: class.into(),
        };
        let bad = [
            ("validation_fraction", DatasetSettings { validation_fraction: 1.0, ..good.clone() }),
            (
                "validation_fraction",
                DatasetSettings { validation_fraction: 0.5, test_fraction: 0.5, ..good.clone() },
            ),
            ("test_fraction", DatasetSettings { test_fraction: f64::NAN, ..good.clone() }),
            ("test_fraction", DatasetSettings { test_fraction: -0.1, ..good.clone() }),
            ("accession_column", DatasetSettings { accession_column: " ".into(), ..good.clone() }),
            ("label_column", DatasetSettings { label_column: good.accession_column.clone(), ..good.clone() }),
            (
                "label_names",
                DatasetSettings { label_names: [("x".into(), "y".into())].into(), ..good.clone() },
            ),
            ("sr_codes", DatasetSettings { sr_codes: vec![code(Some("233604007"), "y")], ..good.clone() }),
            ("sr_codes", DatasetSettings { sr_codes: vec![code(None, "pneumonia")], ..good.clone() }),
            ("max_objects", DatasetSettings { max_objects: 0, ..good.clone() }),
            ("max_object_bytes", DatasetSettings { max_object_bytes: 0, ..good.clone() }),
        ];
        for (key, settings) in bad {
            match settings.check(&classes()) {
                Err(DatasetError::Settings { setting, .. }) => assert_eq!(setting, key),
                other => panic!("{key}: {other:?}"),
            }
        }
        let coded = DatasetSettings { sr_codes: vec![code(Some("233604007"), "pneumonia")], ..good };
        coded.check(&classes()).unwrap();
    }
}
