//! The site's secret key and everything that is derived from it.
//!
//! All pseudonyms are HMAC-SHA256 (RFC 2104) of the original under a key that exists only at the site, with a
//! label for each purpose, so that equal originals give equal pseudonyms, and nobody without the key
//! can test a guess: hospital numbers are short enough to try them all against a hash without a key.

use crate::deidentified::{AccessionKey, PatientKey, StudyKey};
use crate::settings::DateShift;
use hmac::{Hmac, KeyInit, Mac};
use rand::TryRng as _;
use sha2::Sha256;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use zeroize::Zeroizing;

const KEY_BYTES: usize = 32;

/// The site's secret.
pub(crate) struct SiteKey(Zeroizing<[u8; KEY_BYTES]>);

impl SiteKey {
    /// Reads the key, or makes it where there is none yet.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        match fs::File::open(path) {
            Ok(file) => Self::read(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::create(path),
            Err(error) => Err(error),
        }
    }

    fn read(mut file: fs::File) -> io::Result<Self> {
        if file.metadata()?.permissions().mode() & 0o077 != 0 {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "the site key can be read by others; it may have leaked, set its mode to 0600",
            ));
        }
        let mut bytes = Zeroizing::new([0u8; KEY_BYTES]);
        file.read_exact(bytes.as_mut())?;
        if file.read(&mut [0u8; 1])? != 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the site key is not 32 bytes long"));
        }
        Ok(Self(bytes))
    }

    /// The whole key is on the disk under a temporary name before it gets its own, and it never replaces one.
    fn create(path: &Path) -> io::Result<Self> {
        let mut bytes = Zeroizing::new([0u8; KEY_BYTES]);
        rand::rngs::SysRng.try_fill_bytes(bytes.as_mut()).map_err(io::Error::other)?;
        let temporary = path.with_extension(format!("new-{}", std::process::id()));
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes.as_ref())?;
        file.sync_all()?;
        let linked = fs::hard_link(&temporary, path);
        fs::remove_file(&temporary)?;
        match linked {
            Ok(()) => Ok(Self(bytes)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Self::read(fs::File::open(path)?),
            Err(error) => Err(error),
        }
    }

    #[cfg(test)]
    pub(crate) fn fixed(byte: u8) -> Self {
        Self(Zeroizing::new([byte; KEY_BYTES]))
    }

    /// The first 128 bits of HMAC-SHA256 over the label and the length-prefixed parts.
    fn derive(&self, label: &str, parts: &[&str]) -> u128 {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(self.0.as_ref()).expect("HMAC takes a key of any length");
        for part in std::iter::once(&label).chain(parts) {
            mac.update(&(part.len() as u64).to_le_bytes());
            mac.update(part.as_bytes());
        }
        let tag = mac.finalize().into_bytes();
        let mut first = [0u8; 16];
        first.copy_from_slice(&tag[..16]);
        u128::from_be_bytes(first)
    }

    /// The new UID for `original` under `root`.
    ///
    /// Under `2.25` the number is a UUID of version 8 (RFC 9562 5.8), as PS3.5 B.2 wants a UUID there.
    pub(crate) fn uid(&self, root: &str, original: &str) -> String {
        let bits = self.derive("uid", &[original]);
        let version = (bits & !(0xf << 76)) | (0x8 << 76);
        let uuid = (version & !(0x3 << 62)) | (0x2 << 62);
        format!("{root}.{uuid}")
    }

    pub(crate) fn patient(&self, issuer: &str, patient_id: &str) -> PatientKey {
        PatientKey(format!("{:032x}", self.derive("patient", &[issuer, patient_id])))
    }

    pub(crate) fn study(&self, study_instance_uid: &str) -> StudyKey {
        StudyKey(format!("{:032x}", self.derive("study", &[study_instance_uid])))
    }

    pub(crate) fn accession(&self, accession_number: &str) -> AccessionKey {
        AccessionKey(format!("{:032x}", self.derive("accession", &[accession_number.trim()])))
    }

    /// By how many days the patient's dates move into the past.
    pub(crate) fn shift_days(&self, patient: &PatientKey, range: &DateShift) -> u32 {
        let step = if range.keep_weekday { 7 } else { 1 };
        let low = range.min_days.div_ceil(step);
        let high = range.max_days / step;
        let choices = u128::from(high.saturating_sub(low)) + 1;
        let pick = self.derive("date-shift", &[patient.as_str()]) % choices;
        (low + u32::try_from(pick).expect("a remainder below 2^32")) * step
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uids_are_stable_valid_and_keyed() {
        let key = SiteKey::fixed(1);
        let uid = key.uid("2.25", "1.2.3");
        assert_eq!(uid, key.uid("2.25", "1.2.3"));
        assert_ne!(uid, key.uid("2.25", "1.2.4"));
        assert_ne!(uid, SiteKey::fixed(2).uid("2.25", "1.2.3"));
        assert!(crate::settings::is_uid(&uid), "{uid}");
        let long_root = "1.2.826.0.1.3680043.1234";
        assert!(key.uid(long_root, "1.2.3").len() <= 64);
    }

    #[test]
    fn shifts_stay_in_range_and_keep_weekdays_on_request() {
        let key = SiteKey::fixed(3);
        let mut seen = std::collections::BTreeSet::new();
        for n in 0..500 {
            let patient = key.patient("", &n.to_string());
            let weekly = DateShift { min_days: 30, max_days: 60, keep_weekday: true };
            let days = key.shift_days(&patient, &weekly);
            assert!((30..=60).contains(&days) && days.is_multiple_of(7), "{days}");
            let any = key.shift_days(&patient, &DateShift { keep_weekday: false, ..weekly });
            assert!((30..=60).contains(&any));
            seen.insert(any);
        }
        assert_eq!(seen.len(), 31, "every day of the range is used");
    }

    #[test]
    fn purposes_and_boundaries_do_not_mix() {
        let key = SiteKey::fixed(4);
        assert_ne!(key.patient("", "7").as_str(), key.study("7").as_str());
        assert_ne!(key.patient("a", "bc"), key.patient("ab", "c"));
        assert_eq!(key.accession(" A1 "), key.accession("A1"));
    }

    #[test]
    fn the_key_is_made_once_private_and_refused_when_others_can_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("site.key");
        let first = SiteKey::open(&path).unwrap().study("1.2");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(SiteKey::open(&path).unwrap().study("1.2"), first);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(SiteKey::open(&path).is_err());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, b"short").unwrap();
        assert!(SiteKey::open(&path).is_err());
        fs::write(&path, [0u8; 40]).unwrap();
        assert!(SiteKey::open(&path).is_err());
    }
}
