//! Which part of the data a patient belongs to.

use crate::DatasetSettings;
use hmac::{Hmac, KeyInit, Mac};
use medinet_types::TaskId;
use serde::{Deserialize, Serialize};
use sha2::Sha256;

/// A part of the data. A patient belongs to exactly one, whatever else arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Split {
    /// Trains.
    Training,
    /// Stops training early and measures candidates.
    Validation,
    /// Touched for final figures only.
    Test,
}

impl Split {
    /// All parts, in order.
    pub const ALL: [Self; 3] = [Self::Training, Self::Validation, Self::Test];

    /// The part of a patient: HMAC-SHA256 of the patient's pseudonym under the task's name, as a fraction of its
    /// range; the lowest fractions test, the next ones validate, the rest trains. It depends on nothing else, so it
    /// is stable as data arrive, and patients do not meet in the same part again in every task.
    #[must_use]
    pub fn of_patient(patient_key: &str, task: &TaskId, settings: &DatasetSettings) -> Self {
        let mut mac = Hmac::<Sha256>::new_from_slice(b"medinet split by patient 1")
            .expect("HMAC takes a key of any length");
        mac.update(task.as_str().as_bytes());
        mac.update(&[0]);
        mac.update(patient_key.as_bytes());
        let digest = mac.finalize().into_bytes();
        let mut head = [0; 8];
        head.copy_from_slice(&digest[..8]);
        // 53 bits, which a double holds exactly.
        let fraction = (u64::from_be_bytes(head) >> 11) as f64 / (1u64 << 53) as f64;
        if fraction < settings.test_fraction {
            Self::Test
        } else if fraction < settings.test_fraction + settings.validation_fraction {
            Self::Validation
        } else {
            Self::Training
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_come_out_as_asked_and_differ_by_task() {
        let settings = DatasetSettings::default();
        let tasks = [TaskId::new("a").unwrap(), TaskId::new("b").unwrap()];
        let mut counts = [0; 3];
        let mut same = 0;
        for patient in 0..20_000 {
            let parts = tasks.each_ref().map(|task| Split::of_patient(&patient.to_string(), task, &settings));
            counts[parts[0] as usize] += 1;
            same += u32::from(parts[0] == parts[1]);
        }
        // Binomial standard deviations of 50 (for 0.15) and 65 (for 0.7): five of them.
        assert!((i32::abs(counts[0] - 14_000)) < 325, "{counts:?}");
        assert!((i32::abs(counts[1] - 3_000)) < 252 && (i32::abs(counts[2] - 3_000)) < 252, "{counts:?}");
        // Independent parts agree with probability 0.7^2 + 2 * 0.15^2 = 0.535.
        assert!((10_350..11_050).contains(&same), "{same}");
    }

    #[test]
    fn more_held_out_patients_keep_those_that_were_held_out() {
        let task = TaskId::new("a").unwrap();
        let few = DatasetSettings { test_fraction: 0.1, ..DatasetSettings::default() };
        let many = DatasetSettings { test_fraction: 0.2, ..DatasetSettings::default() };
        for patient in 0..1000 {
            let patient = patient.to_string();
            if Split::of_patient(&patient, &task, &few) == Split::Test {
                assert_eq!(Split::of_patient(&patient, &task, &many), Split::Test);
            }
        }
    }
}
