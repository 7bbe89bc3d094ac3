//! What the site configures: where images come from and how gently they are taken.

use medinet_settings::{Check, FilePath, RedactedUrl, Rules, SecretFile};
use medinet_types::{ByteCount, HumanDuration};
use serde::Deserialize;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// The sources of images and the spool between them and the de-identifier; the `[pacs]` table of the appliance.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PacsSettings {
    /// A PACS to pull from over DICOMweb (PS3.18).
    #[serde(default)]
    pub dicomweb: Option<DicomWebSettings>,
    /// A C-STORE service that peers push to (PS3.4 annex B).
    #[serde(default)]
    pub cstore: Option<CStoreSettings>,
    /// A folder that files are put into.
    #[serde(default)]
    pub folder: Option<FolderSettings>,
    /// The largest object that is taken, in bytes as a file. One object at a time is held in memory.
    #[serde(default = "defaults::max_object_bytes")]
    pub max_object_bytes: ByteCount,
    /// How much may wait on the disk for the de-identifier. Above it pulls pause and pushes are answered "out of
    /// resources", which makes the peer try again later.
    #[serde(default = "defaults::max_spool_bytes")]
    pub max_spool_bytes: ByteCount,
}

/// How to pull from one PACS over DICOMweb.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DicomWebSettings {
    /// The root of the services, as in `https://pacs.example.org/dicom-web`.
    pub base_url: RedactedUrl,
    /// How the appliance says who it is, beside a client certificate.
    #[serde(default)]
    pub auth: DicomWebAuth,
    /// PEM file of the certificate authorities that sign the PACS's certificate; needed for `https`. On Debian the
    /// public ones stand in `/etc/ssl/certs/ca-certificates.crt`.
    #[serde(default)]
    pub ca_file: Option<FilePath>,
    /// The appliance's own certificate, where the PACS asks for one (mutual TLS).
    #[serde(default)]
    pub client_identity: Option<ClientIdentity>,
    /// Which studies to take; all when left out.
    #[serde(default)]
    pub query: StudyQuery,
    /// Matches asked for in one page of a search.
    #[serde(default = "defaults::page_size")]
    pub page_size: u32,
    /// Requests that are open at the same time.
    #[serde(default = "defaults::max_concurrent")]
    pub max_concurrent: u32,
    /// Requests started in a second, at most; none means no limit.
    #[serde(default)]
    pub max_requests_per_second: Option<f64>,
    /// How long to wait for a connection, for an answer to begin, and between two pieces of it.
    #[serde(default = "defaults::request_timeout")]
    pub request_timeout: HumanDuration,
    /// How often a request that failed for a passing reason is sent in all.
    #[serde(default = "defaults::max_attempts")]
    pub max_attempts: u32,
    /// The longest pause between two tries, also where the PACS asks for a longer one.
    #[serde(default = "defaults::max_backoff")]
    pub max_backoff: HumanDuration,
    /// How often to look for new studies.
    #[serde(default = "defaults::pull_interval")]
    pub poll_interval: HumanDuration,
    /// How far before the newest study date already seen each look begins, for studies that arrive late.
    #[serde(default = "defaults::late_arrivals")]
    pub late_arrivals: HumanDuration,
    /// How often all dates are looked through again, for studies that arrive later than that or bear no date. Where
    /// that takes few requests (20 pages), it is done each time.
    #[serde(default = "defaults::full_scan_interval")]
    pub full_scan_interval: HumanDuration,
}

/// Credentials in the `Authorization` header (RFC 7617, RFC 6750).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum DicomWebAuth {
    /// No header.
    #[default]
    None,
    /// User name and password.
    Basic {
        /// The user name.
        user: String,
        /// The file that holds the password.
        password_file: SecretFile,
    },
    /// A bearer token; its file is read anew when the PACS refuses the one in use.
    Bearer {
        /// The file that holds the token.
        token_file: SecretFile,
    },
}

/// A certificate and its private key, in PEM files.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientIdentity {
    /// The certificate, followed by those between it and the authority.
    pub certificate_file: FilePath,
    /// The private key (PKCS#8, SEC1 or PKCS#1).
    pub key_file: FilePath,
}

/// Which studies to take. The appliance checks each match again itself, for many PACS ignore what they do not know.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StudyQuery {
    /// Modality codes (PS3.3 C.7.3.1.1.1) such as `CR`, `DX` or `CT`; empty means all.
    #[serde(default)]
    pub modalities: Vec<String>,
    /// The first study date to take.
    #[serde(default)]
    pub study_date_from: Option<StudyDate>,
    /// The last study date to take.
    #[serde(default)]
    pub study_date_to: Option<StudyDate>,
}

/// A calendar day, `YYYY-MM-DD` in settings and `YYYYMMDD` in DICOM (PS3.5 6.2, DA).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct StudyDate(time::Date);

/// A date's text could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected a date such as \"2026-11-21\"")]
pub struct ParseDateError;

impl StudyDate {
    /// Reads a DICOM date: `YYYYMMDD`, and `YYYY.MM.DD` and `YYYY-MM-DD`, which real data hold as well.
    #[must_use]
    pub fn from_dicom(text: &str) -> Option<Self> {
        let text = text.trim_matches([' ', '\0']);
        let digits: Vec<u8> = match text.len() {
            8 => text.bytes().collect(),
            10 if [4, 7].iter().all(|&at| matches!(text.as_bytes()[at], b'.' | b'-' | b'/')) => text
                .bytes()
                .enumerate()
                .filter(|(at, _)| ![4, 7].contains(at))
                .map(|(_, byte)| byte)
                .collect(),
            _ => return None,
        };
        if !digits.iter().all(u8::is_ascii_digit) {
            return None;
        }
        let number = |range: std::ops::Range<usize>| {
            digits[range].iter().fold(0u16, |number, digit| number * 10 + u16::from(digit - b'0'))
        };
        let month = time::Month::try_from(u8::try_from(number(4..6)).ok()?).ok()?;
        let day = u8::try_from(number(6..8)).ok()?;
        time::Date::from_calendar_date(i32::from(number(0..4)), month, day).ok().map(Self)
    }

    /// The day as DICOM writes it, `YYYYMMDD`.
    #[must_use]
    pub fn to_dicom(self) -> String {
        format!("{:04}{:02}{:02}", self.0.year(), u8::from(self.0.month()), self.0.day())
    }

    /// The day of a moment, in UTC.
    #[must_use]
    pub fn from_unix(moment: medinet_types::UnixMillis) -> Self {
        let seconds = i64::try_from(moment.0 / 1000).unwrap_or(i64::MAX);
        Self(
            time::OffsetDateTime::from_unix_timestamp(seconds)
                .map_or(time::Date::MAX, time::OffsetDateTime::date),
        )
    }

    /// The day `duration` before, to whole days.
    #[must_use]
    pub fn before(self, duration: Duration) -> Self {
        // No date is further from another than this.
        let days = (duration.as_secs() / 86_400).min(10_000_000) as i64;
        Self(self.0.checked_sub(time::Duration::days(days)).unwrap_or(time::Date::MIN))
    }
}

impl TryFrom<String> for StudyDate {
    type Error = ParseDateError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::from_dicom(&text).ok_or(ParseDateError)
    }
}

/// A C-STORE service: who may push, and within which limits.
///
/// An application entity title is a name and no proof. Where the network between PACS and appliance is not the
/// appliance's alone, set `allowed_addresses` too.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CStoreSettings {
    /// Address and port to listen on, as in `"10.0.0.5:11112"`.
    pub listen: SocketAddr,
    /// The appliance's own application entity title: 1 to 16 characters. Peers that call another name are refused.
    pub ae_title: String,
    /// Titles of the peers that may push; all others are refused, so an empty list refuses everyone.
    pub allowed_calling_ae_titles: Vec<String>,
    /// Addresses that peers may come from; empty means any.
    #[serde(default)]
    pub allowed_addresses: Vec<IpAddr>,
    /// Associations open at the same time; further peers are told to come back later.
    #[serde(default = "defaults::max_associations")]
    pub max_associations: u32,
    /// The longest PDU that is accepted, 4 KiB to 1 MiB.
    #[serde(default = "defaults::max_pdu_bytes")]
    pub max_pdu_bytes: ByteCount,
    /// How long a peer may take to deliver one PDU, or stay silent, before it is cut off.
    #[serde(default = "defaults::idle_timeout")]
    pub idle_timeout: HumanDuration,
}

/// A folder that files are put into, by hand or by another program.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FolderSettings {
    /// The folder. Files are moved into its `done` and `quarantine` subfolders once they are dealt with, and are
    /// never deleted.
    pub path: FilePath,
    /// How often to look.
    #[serde(default = "defaults::folder_interval")]
    pub poll_interval: HumanDuration,
    /// How long size and time of a file must stay the same before it counts as wholly written.
    #[serde(default = "defaults::settle")]
    pub settle: HumanDuration,
}

mod defaults {
    use super::{ByteCount, HumanDuration};
    use std::time::Duration;

    fn seconds(seconds: u64) -> HumanDuration {
        HumanDuration(Duration::from_secs(seconds))
    }
    pub(super) fn max_object_bytes() -> ByteCount {
        ByteCount(1 << 30)
    }
    pub(super) fn max_spool_bytes() -> ByteCount {
        ByteCount(4 << 30)
    }
    pub(super) fn page_size() -> u32 {
        100
    }
    pub(super) fn max_concurrent() -> u32 {
        2
    }
    pub(super) fn request_timeout() -> HumanDuration {
        seconds(60)
    }
    pub(super) fn max_attempts() -> u32 {
        6
    }
    pub(super) fn max_backoff() -> HumanDuration {
        seconds(60)
    }
    pub(super) fn pull_interval() -> HumanDuration {
        seconds(300)
    }
    pub(super) fn late_arrivals() -> HumanDuration {
        seconds(14 * 86_400)
    }
    pub(super) fn full_scan_interval() -> HumanDuration {
        seconds(7 * 86_400)
    }
    pub(super) fn max_associations() -> u32 {
        8
    }
    pub(super) fn max_pdu_bytes() -> ByteCount {
        ByteCount(128 << 10)
    }
    pub(super) fn idle_timeout() -> HumanDuration {
        seconds(60)
    }
    pub(super) fn folder_interval() -> HumanDuration {
        seconds(10)
    }
    pub(super) fn settle() -> HumanDuration {
        seconds(5)
    }
}

/// Whether a text is an application entity title (PS3.5 6.2, AE): 1 to 16 printable characters without backslash.
fn is_ae_title(title: &str) -> bool {
    (1..=16).contains(&title.len())
        && title.trim() == title
        && title.bytes().all(|byte| (0x20..0x7f).contains(&byte) && byte != b'\\')
}

impl Check for PacsSettings {
    fn check(&self, rules: &mut Rules) {
        let some_source = self.dicomweb.is_some() || self.cstore.is_some() || self.folder.is_some();
        rules.expect(some_source, "dicomweb", "one of dicomweb, cstore and folder", "none of them");
        rules.expect(self.max_object_bytes.0 > 0, "max_object_bytes", "more than 0 B", self.max_object_bytes);
        rules.expect(
            self.max_spool_bytes >= self.max_object_bytes,
            "max_spool_bytes",
            format!("at least max_object_bytes ({})", self.max_object_bytes),
            self.max_spool_bytes,
        );
        if let Some(web) = &self.dicomweb {
            rules.within("dicomweb", web);
        }
        if let Some(cstore) = &self.cstore {
            rules.within("cstore", cstore);
        }
        if let Some(folder) = &self.folder {
            let positive = !folder.poll_interval.get().is_zero();
            rules.expect(positive, "folder.poll_interval", "more than 0 s", folder.poll_interval);
        }
    }
}

impl Check for DicomWebSettings {
    fn check(&self, rules: &mut Rules) {
        let scheme = self.base_url.scheme();
        rules.expect(matches!(scheme.as_str(), "http" | "https"), "base_url", "http:// or https://", &scheme);
        let plain = !self.base_url.has_credentials();
        rules.expect(plain, "base_url", "no user or password in the address; use auth", "some");
        if scheme == "https" {
            rules.expect(self.ca_file.is_some(), "ca_file", "a file, for the address is https", "none");
        } else {
            let identity = self.client_identity.is_none();
            rules.expect(identity, "client_identity", "an https address beside it", &scheme);
        }
        for (value, key) in [
            (self.page_size, "page_size"),
            (self.max_concurrent, "max_concurrent"),
            (self.max_attempts, "max_attempts"),
        ] {
            rules.expect(value > 0, key, "at least 1", value);
        }
        if let Some(rate) = self.max_requests_per_second {
            let good = rate.is_finite() && rate > 0.0;
            rules.expect(good, "max_requests_per_second", "a number above 0", rate);
        }
        for (value, key) in [(self.request_timeout, "request_timeout"), (self.poll_interval, "poll_interval")]
        {
            rules.expect(!value.get().is_zero(), key, "more than 0 s", value);
        }
        if let (Some(from), Some(to)) = (self.query.study_date_from, self.query.study_date_to) {
            rules.expect(from <= to, "query.study_date_to", "no earlier than study_date_from", to.to_dicom());
        }
        let code = |modality: &String| {
            (1..=16).contains(&modality.len())
                && modality.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit())
        };
        for modality in self.query.modalities.iter().filter(|modality| !code(modality)) {
            rules.expect(false, "query.modalities", "codes such as CR or CT", modality);
        }
    }
}

impl Check for CStoreSettings {
    fn check(&self, rules: &mut Rules) {
        let title = "1 to 16 printable characters";
        rules.expect(is_ae_title(&self.ae_title), "ae_title", title, &self.ae_title);
        let titles = &self.allowed_calling_ae_titles;
        rules.expect(!titles.is_empty(), "allowed_calling_ae_titles", "at least one title", "none");
        for refused in titles.iter().filter(|title| !is_ae_title(title)) {
            rules.expect(false, "allowed_calling_ae_titles", title, refused);
        }
        rules.expect(self.max_associations > 0, "max_associations", "at least 1", self.max_associations);
        let pdu = (4 << 10..=1 << 20).contains(&self.max_pdu_bytes.0);
        rules.expect(pdu, "max_pdu_bytes", "4 KiB to 1 MiB", self.max_pdu_bytes);
        let idle = !self.idle_timeout.get().is_zero();
        rules.expect(idle, "idle_timeout", "more than 0 s", self.idle_timeout);
    }
}

impl PacsSettings {
    /// Settings without any source, with the defaults; for building settings in code.
    #[must_use]
    pub fn empty() -> Self {
        Self {
            dicomweb: None,
            cstore: None,
            folder: None,
            max_object_bytes: defaults::max_object_bytes(),
            max_spool_bytes: defaults::max_spool_bytes(),
        }
    }
}

impl DicomWebSettings {
    /// Settings for `base_url` with the defaults; for building settings in code.
    #[must_use]
    pub fn new(base_url: RedactedUrl) -> Self {
        Self {
            base_url,
            auth: DicomWebAuth::None,
            ca_file: None,
            client_identity: None,
            query: StudyQuery::default(),
            page_size: defaults::page_size(),
            max_concurrent: defaults::max_concurrent(),
            max_requests_per_second: None,
            request_timeout: defaults::request_timeout(),
            max_attempts: defaults::max_attempts(),
            max_backoff: defaults::max_backoff(),
            poll_interval: defaults::pull_interval(),
            late_arrivals: defaults::late_arrivals(),
            full_scan_interval: defaults::full_scan_interval(),
        }
    }
}

impl CStoreSettings {
    /// Settings with the defaults; for building settings in code.
    #[must_use]
    pub fn new(listen: SocketAddr, ae_title: impl Into<String>, allowed: Vec<String>) -> Self {
        Self {
            listen,
            ae_title: ae_title.into(),
            allowed_calling_ae_titles: allowed,
            allowed_addresses: Vec::new(),
            max_associations: defaults::max_associations(),
            max_pdu_bytes: defaults::max_pdu_bytes(),
            idle_timeout: defaults::idle_timeout(),
        }
    }
}

impl FolderSettings {
    /// Settings with the defaults; for building settings in code.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: FilePath::from(path.into()),
            poll_interval: defaults::folder_interval(),
            settle: defaults::settle(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERYTHING: &str = r#"
        max_object_bytes = "512 MiB"
        max_spool_bytes = "2 GiB"
        [dicomweb]
        base_url = "https://pacs.example.org/dicom-web"
        auth = { kind = "basic", user = "medinet", password_file = "pacs.password" }
        ca_file = "pacs-ca.pem"
        client_identity = { certificate_file = "client.pem", key_file = "client.key" }
        query = { modalities = ["CR", "DX"], study_date_from = "2020-01-01", study_date_to = "2026-12-31" }
        page_size = 100
        max_concurrent = 2
        max_requests_per_second = 4.5
        request_timeout = "60 s"
        max_attempts = 6
        max_backoff = "60 s"
        poll_interval = "5 min"
        late_arrivals = "14 d"
        full_scan_interval = "7 d"
        [cstore]
        listen = "10.0.0.5:11112"
        ae_title = "MEDINET"
        allowed_calling_ae_titles = ["PACS", "CT 1"]
        allowed_addresses = ["10.0.0.2"]
        max_associations = 8
        max_pdu_bytes = "128 KiB"
        idle_timeout = "60 s"
        [folder]
        path = "incoming"
        poll_interval = "10 s"
        settle = "5 s"
    "#;

    fn violations(text: &str) -> Vec<String> {
        let settings: PacsSettings = toml::from_str(text).unwrap();
        Rules::violations_of(&settings).into_iter().map(|violation| violation.key).collect()
    }

    #[test]
    fn every_setting_is_read_and_unknown_ones_are_refused() {
        assert_eq!(violations(EVERYTHING), [""; 0]);
        let settings: PacsSettings = toml::from_str(EVERYTHING).unwrap();
        let web = settings.dicomweb.unwrap();
        assert_eq!(web.query.study_date_from.map(StudyDate::to_dicom).as_deref(), Some("20200101"));
        assert!(matches!(web.auth, DicomWebAuth::Basic { .. }));
        for (from, to) in [
            ("page_size = 100", "page_sise = 100"),
            ("user = \"medinet\"", "usr = \"medinet\""),
            ("listen =", "listen_on ="),
            ("settle = \"5 s\"", "settle = 5"),
            ("study_date_from = \"2020-01-01\"", "study_date_from = \"01/02/2020\""),
            ("kind = \"basic\"", "kind = \"digest\""),
        ] {
            assert!(EVERYTHING.contains(from));
            assert!(toml::from_str::<PacsSettings>(&EVERYTHING.replace(from, to)).is_err(), "{to}");
        }
    }

    #[test]
    fn combinations_that_make_no_sense_are_refused_by_their_key() {
        for (from, to, key) in [
            ("ca_file = \"pacs-ca.pem\"", "", "dicomweb.ca_file"),
            ("https://", "http://", "dicomweb.client_identity"),
            ("https://pacs", "https://user:word@pacs", "dicomweb.base_url"),
            ("2026-12-31", "2019-12-31", "dicomweb.query.study_date_to"),
            ("[\"CR\", \"DX\"]", "[\"cr\"]", "dicomweb.query.modalities"),
            ("= 4.5", "= 0.0", "dicomweb.max_requests_per_second"),
            ("max_concurrent = 2", "max_concurrent = 0", "dicomweb.max_concurrent"),
            ("[\"PACS\", \"CT 1\"]", "[]", "cstore.allowed_calling_ae_titles"),
            ("ae_title = \"MEDINET\"", "ae_title = \"MEDINET-APPLIANCE-1\"", "cstore.ae_title"),
            ("\"128 KiB\"", "\"2 GiB\"", "cstore.max_pdu_bytes"),
            ("\"2 GiB\"", "\"2 MiB\"", "max_spool_bytes"),
            ("poll_interval = \"10 s\"", "poll_interval = \"0 s\"", "folder.poll_interval"),
        ] {
            assert!(EVERYTHING.contains(from), "{from}");
            assert_eq!(violations(&EVERYTHING.replacen(from, to, 1)), [key], "{to}");
        }
        assert_eq!(violations(""), ["dicomweb"], "an intake without a source takes nothing");
    }

    #[test]
    fn dates_as_real_data_hold_them() {
        for (text, date) in [
            ("20261121", Some("20261121")),
            ("1997.04.24", Some("19970424")),
            ("2026-11-21 ", Some("20261121")),
            ("20260230", None),
            ("", None),
            ("1997.4.24", None),
            ("ÄÖÜß", None),
            ("12345678901234", None),
        ] {
            assert_eq!(StudyDate::from_dicom(text).map(StudyDate::to_dicom).as_deref(), date, "{text}");
        }
        let day = StudyDate::from_dicom("20260101").unwrap();
        assert_eq!(day.before(Duration::from_secs(86_400)).to_dicom(), "20251231");
        assert_eq!(StudyDate::from_unix(medinet_types::UnixMillis(1_795_219_200_000)).to_dicom(), "20261121");
        assert!(day.before(Duration::MAX) < day);
    }
}
