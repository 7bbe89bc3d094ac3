//! Addresses that hide their credentials when shown.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A URL as it stands in a settings file. Shown, it hides user and password and the values of its query.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RedactedUrl(String);

/// The text is no URL; it is not repeated, for it may hold a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected a URL such as https://pacs.example.org/dicom-web, got a text without scheme or host, or with spaces"
)]
pub struct ParseUrlError;

/// The parts of a URL (RFC 3986, 3): scheme, user information, host with port, path, query.
struct Parts<'a> {
    scheme: &'a str,
    user: Option<&'a str>,
    host: &'a str,
    path: &'a str,
    query: Option<&'a str>,
}

fn parts(text: &str) -> Option<Parts<'_>> {
    let (scheme, rest) = text.split_once("://")?;
    let (authority, rest) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    // The last at sign: a password may hold one that was not escaped.
    let (user, host) = match authority.rsplit_once('@') {
        Some((user, host)) => (Some(user), host),
        None => (None, authority),
    };
    let rest = rest.split('#').next().unwrap_or_default();
    let (path, query) = match rest.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (rest, None),
    };
    Some(Parts { scheme, user, host, path, query })
}

impl RedactedUrl {
    /// The whole URL, credentials included.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The scheme, in lower case.
    #[must_use]
    pub fn scheme(&self) -> String {
        parts(&self.0).map(|parts| parts.scheme.to_ascii_lowercase()).unwrap_or_default()
    }

    /// Whether user or password stand in the URL itself, where a settings file should name a file of its own.
    #[must_use]
    pub fn has_credentials(&self) -> bool {
        parts(&self.0).is_some_and(|parts| parts.user.is_some())
    }
}

impl FromStr for RedactedUrl {
    type Err = ParseUrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let scheme_character = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
        let good = parts(text).is_some_and(|parts| {
            parts.scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                && parts.scheme.chars().all(scheme_character)
                && !parts.host.is_empty()
                && !parts.host.starts_with(':')
        });
        if good && !text.contains(|c: char| c.is_whitespace() || c.is_control()) {
            Ok(Self(text.to_owned()))
        } else {
            Err(ParseUrlError)
        }
    }
}

impl fmt::Display for RedactedUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Only text that splits was taken.
        let Some(Parts { scheme, user, host, path, query }) = parts(&self.0) else { return Ok(()) };
        let hidden = if user.is_some() { "***@" } else { "" };
        write!(f, "{scheme}://{hidden}{host}{path}")?;
        for (index, pair) in query.into_iter().flat_map(|query| query.split('&')).enumerate() {
            let lead = if index == 0 { '?' } else { '&' };
            match pair.split_once('=') {
                Some((name, _)) => write!(f, "{lead}{name}=***")?,
                None => write!(f, "{lead}***")?,
            }
        }
        Ok(())
    }
}

impl fmt::Debug for RedactedUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedactedUrl({self})")
    }
}

impl TryFrom<String> for RedactedUrl {
    type Error = ParseUrlError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<RedactedUrl> for String {
    fn from(url: RedactedUrl) -> Self {
        url.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_holds_no_credentials() {
        for (url, shown) in [
            ("https://pacs.local/dicom-web", "https://pacs.local/dicom-web"),
            ("https://bob:hunter2@pacs:8042/a?b=hunter2&c#hunter2", "https://***@pacs:8042/a?b=***&***"),
            ("http://bob:hun@ter2@pacs", "http://***@pacs"),
            ("mqtts://127.0.0.1:8883", "mqtts://127.0.0.1:8883"),
            ("https://[::1]:8042/", "https://[::1]:8042/"),
        ] {
            let url: RedactedUrl = url.parse().unwrap();
            assert_eq!(url.to_string(), shown);
            assert!(!format!("{url:?}").contains("hunter2"));
            assert_eq!(url.has_credentials(), shown.contains("***@"));
        }
    }

    #[test]
    fn text_that_is_no_url_is_refused_without_repeating_it() {
        for text in [
            "",
            "pacs",
            "//pacs",
            "https://",
            "https:// pacs",
            "1http://x",
            "https://:80",
            "bob:hunter2@pacs",
        ] {
            let error = text.parse::<RedactedUrl>().unwrap_err();
            assert!(!error.to_string().contains("hunter2"), "{text:?}");
        }
    }
}
