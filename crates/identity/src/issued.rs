//! The authority's register of what it has issued.

use crate::file::{FileError, read_public, write_public};
use crate::principal::Host;
use medinet_types::{Principal, UnixMillis};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::Path;
use std::str::FromStr;

const VERSION: u32 = 1;

/// A certificate's serial number: 16 random bytes, the first between 0x40 and 0x7f, so that every encoding has
/// the same length (RFC 5280, 4.1.2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Serial([u8; 16]);

/// The text is no serial number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected a serial number of 32 hexadecimal digits, got {got:?}")]
pub struct ParseSerialError {
    got: String,
}

impl Serial {
    /// The serial number made of 16 random bytes.
    pub(crate) fn from_random(mut bytes: [u8; 16]) -> Self {
        bytes[0] = (bytes[0] & 0x3f) | 0x40;
        Self(bytes)
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Serial {
    type Err = ParseSerialError;

    /// Reads 32 hexadecimal digits of either case; the colons that openssl puts in between are allowed.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseSerialError { got: text.chars().take(80).collect() };
        let mut bytes = [0u8; 16];
        let mut digits = text.chars().filter(|c| *c != ':').map(|c| c.to_digit(16));
        for byte in &mut bytes {
            let high = digits.next().flatten().ok_or_else(error)?;
            let low = digits.next().flatten().ok_or_else(error)?;
            *byte = u8::try_from(high * 16 + low).map_err(|_| error())?;
        }
        if digits.next().is_some() || !(0x40..=0x7f).contains(&bytes[0]) {
            return Err(error());
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Serial {
    type Error = ParseSerialError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Serial> for String {
    fn from(serial: Serial) -> Self {
        serial.to_string()
    }
}

/// A certificate in the register.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Issued {
    /// Its serial number.
    pub serial: Serial,
    /// Whose it is.
    pub principal: Principal,
    /// The server names in it; only a broker has some.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<Host>,
    /// When it was issued.
    pub issued_at: UnixMillis,
    /// Until when it is valid.
    pub not_after: UnixMillis,
    /// When it was revoked, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<UnixMillis>,
}

impl Issued {
    /// Whether it is neither revoked nor past its end.
    #[must_use]
    pub fn is_active(&self, now: UnixMillis) -> bool {
        self.revoked_at.is_none() && now <= self.not_after
    }
}

/// The whole register, one JSON file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Register {
    version: u32,
    /// Number of the newest revocation list (RFC 5280, 5.2.3).
    pub(crate) crl_number: u64,
    pub(crate) certificates: Vec<Issued>,
}

impl Register {
    pub(crate) fn new() -> Self {
        Self { version: VERSION, crl_number: 0, certificates: Vec::new() }
    }

    pub(crate) fn read(path: &Path) -> Result<Self, FileError> {
        let expected = "the authority's register";
        let text = read_public(path)?;
        let register: Self = serde_json::from_str(&text)
            .map_err(|error| FileError::content(path, expected, format!("JSON that is none: {error}")))?;
        if register.version != VERSION {
            return Err(FileError::content(
                path,
                "a register of version 1",
                format!(
                    "version {}: use the MediNet release that wrote it, or a newer one",
                    register.version
                ),
            ));
        }
        Ok(register)
    }

    pub(crate) fn write(&self, path: &Path) -> Result<(), FileError> {
        // Strings, numbers and vectors only: nothing in it can fail to encode.
        let text = serde_json::to_string_pretty(self).expect("a register always encodes");
        write_public(path, &(text + "\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serials_read_back_in_both_spellings() {
        let serial = Serial::from_random([0xff; 16]);
        assert_eq!(serial.to_string().len(), 32);
        assert_eq!(serial.to_string().parse(), Ok(serial));
        let with_colons: Vec<String> = serial.0.iter().map(|b| format!("{b:02X}")).collect();
        assert_eq!(with_colons.join(":").parse(), Ok(serial));
        for text in ["", "7f", &"f".repeat(32), &"4".repeat(33), &"g".repeat(32), &"é".repeat(32)] {
            assert!(text.parse::<Serial>().is_err(), "{text:?}");
        }
    }
}
