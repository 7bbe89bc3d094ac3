//! How a site wants its studies cleaned.

use serde::{Deserialize, Serialize};

/// Options of the Basic Application Level Confidentiality Profile (PS3.15 E.3); each can be left out,
/// which removes more. Retaining UIDs, full dates, patient characteristics, device or institution
/// identity is not offered: a federation does not need them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProfileOptions {
    /// Clean Descriptors (E.3.5): descriptions keep the words that are known to be harmless.
    /// Without it they are removed.
    pub clean_descriptors: bool,
    /// Retain Longitudinal Temporal Information with Modified Dates (E.3.6): dates are shifted by a number of
    /// days that is the patient's own. Without it they are removed, emptied or replaced.
    pub retain_longitudinal_modified_dates: bool,
    /// Retain Safe Private (E.3.10): private attributes that the standard lists as safe stay.
    /// Without it all are removed.
    pub retain_safe_private: bool,
    /// Clean Structured Content (E.3.4): content items of structured reports are cleaned one by one by
    /// Table E.3.4-1. Without it content trees are emptied.
    pub clean_structured_content: bool,
}

impl Default for ProfileOptions {
    fn default() -> Self {
        Self {
            clean_descriptors: true,
            retain_longitudinal_modified_dates: true,
            retain_safe_private: true,
            clean_structured_content: true,
        }
    }
}

/// By how much a patient's dates move into the past; whole days, so that times of day stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DateShift {
    /// Least shift, in days; at least 1.
    pub min_days: u32,
    /// Largest shift, in days; not below `min_days`, at most 36,500.
    pub max_days: u32,
    /// Whether Mondays stay Mondays: the shift is then a multiple of seven days.
    pub keep_weekday: bool,
}

impl Default for DateShift {
    fn default() -> Self {
        Self { min_days: 30, max_days: 1095, keep_weekday: true }
    }
}

/// Settings of the de-identifier.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DeidentSettings {
    /// Options of the profile.
    pub options: ProfileOptions,
    /// By how much dates move.
    pub date_shift: DateShift,
    /// The root under which new UIDs are made (PS3.5 section 9), at most 24 characters, such as `1.2.826.0.1.3680043`;
    /// `2.25` (UUID-derived, PS3.5 B.2) unless the site has its own.
    pub uid_root: String,
    /// The largest part of a picture that may be blanked, in percent, before the object is held back instead.
    /// Ultrasound is exempt where it declares its regions.
    pub max_blanked_percent: u32,
}

impl Default for DeidentSettings {
    fn default() -> Self {
        Self {
            options: ProfileOptions::default(),
            date_shift: DateShift::default(),
            uid_root: "2.25".to_owned(),
            max_blanked_percent: 50,
        }
    }
}

/// A setting is out of its range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected} in the de-identifier's setting {key}, got {got}")]
pub struct SettingsError {
    key: &'static str,
    expected: &'static str,
    got: String,
}

impl DeidentSettings {
    /// Checks ranges and combinations.
    ///
    /// # Errors
    /// When a setting is out of its range.
    pub fn check(&self) -> Result<(), SettingsError> {
        let fail = |key, expected, got: String| Err(SettingsError { key, expected, got });
        let shift = self.date_shift;
        if shift.min_days == 0 {
            return fail("date_shift.min_days", "at least 1 day", "0".into());
        }
        if shift.max_days < shift.min_days || shift.max_days > 36_500 {
            return fail("date_shift.max_days", "min_days to 36500 days", shift.max_days.to_string());
        }
        if shift.keep_weekday && shift.max_days / 7 < shift.min_days.div_ceil(7) {
            return fail(
                "date_shift.keep_weekday",
                "a range of days that holds a multiple of 7",
                format!("{} to {}", shift.min_days, shift.max_days),
            );
        }
        if !is_uid(&self.uid_root) || self.uid_root.len() > 24 {
            return fail(
                "uid_root",
                "a UID of at most 24 characters (PS3.5 section 9)",
                self.uid_root.clone(),
            );
        }
        if !(1..=100).contains(&self.max_blanked_percent) {
            return fail("max_blanked_percent", "1 to 100", self.max_blanked_percent.to_string());
        }
        Ok(())
    }
}

/// Whether `text` is a UID by PS3.5 section 9.1.
pub(crate) fn is_uid(text: &str) -> bool {
    let component = |part: &str| {
        !part.is_empty()
            && part.bytes().all(|c| c.is_ascii_digit())
            && (part == "0" || !part.starts_with('0'))
    };
    text.len() <= 64 && text.contains('.') && text.split('.').all(component)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_in_range() {
        assert_eq!(DeidentSettings::default().check(), Ok(()));
    }

    #[test]
    fn what_is_out_of_range_is_refused() {
        let with = |change: fn(&mut DeidentSettings)| {
            let mut settings = DeidentSettings::default();
            change(&mut settings);
            settings.check()
        };
        assert!(with(|s| s.date_shift.min_days = 0).is_err());
        assert!(with(|s| s.date_shift.max_days = 1).is_err());
        assert!(
            with(|s| s.date_shift = DateShift { min_days: 30, max_days: 34, keep_weekday: true }).is_err()
        );
        assert!(with(|s| s.uid_root = "1.2.x".into()).is_err());
        assert!(with(|s| s.uid_root = "1.02".into()).is_err());
        assert!(with(|s| s.uid_root = "1.2.826.0.1.3680043.100000000".into()).is_err());
        assert!(with(|s| s.max_blanked_percent = 0).is_err());
    }

    #[test]
    fn unknown_keys_are_refused() {
        assert!(serde_json::from_str::<DeidentSettings>(r#"{"retain_uids": true}"#).is_err());
        assert!(serde_json::from_str::<DeidentSettings>(r#"{"uid_root": "1.2.3"}"#).is_ok());
    }
}
