//! Names of the parties and things of a federation.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The longest name, in bytes: a DNS label, so that a name fits a certificate, a host and a topic level.
const MAX_NAME_BYTES: usize = 63;

/// A name breaks the rule for names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected a {kind} {rule}, got {got:?}")]
pub struct ParseNameError {
    kind: &'static str,
    rule: &'static str,
    got: String,
}

const NAME_RULE: &str = "of 1 to 63 characters a-z, 0-9 and '-', starting with a letter or digit";

fn check_name(kind: &'static str, text: &str) -> Result<(), ParseNameError> {
    let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let bytes = text.as_bytes();
    let good = (1..=MAX_NAME_BYTES).contains(&bytes.len())
        && plain(bytes[0])
        && bytes.iter().all(|&c| plain(c) || c == b'-');
    if good {
        Ok(())
    } else {
        Err(ParseNameError { kind, rule: NAME_RULE, got: text.chars().take(80).collect() })
    }
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        ///
        /// One to 63 characters `a-z`, `0-9` and `-`, starting with a letter or digit: the same text is
        /// a certificate name, an MQTT topic level and a folder, so nothing in it can be a wildcard or a path.
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Checks and takes a name.
            ///
            /// # Errors
            /// When the text breaks the rule for names.
            pub fn new(text: impl Into<String>) -> Result<Self, ParseNameError> {
                let text = text.into();
                check_name($kind, &text)?;
                Ok(Self(text))
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = ParseNameError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = ParseNameError;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }
    };
}

name_type! {
    /// A hospital or clinic that holds data and trains.
    SiteId, "site id"
}
name_type! {
    /// A group of sites that share tasks.
    FederationId, "federation id"
}
name_type! {
    /// What a model is trained for within a federation.
    TaskId, "task id"
}

/// The number of a round within a task, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Default)]
#[serde(transparent)]
pub struct RoundNumber(pub u32);

impl fmt::Display for RoundNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The version of a task's global model: 0 is the initial model, and each aggregated round adds one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Default)]
#[serde(transparent)]
pub struct ModelVersion(pub u32);

impl fmt::Display for ModelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a certificate holder is allowed to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// An appliance at a hospital.
    Site,
    /// The aggregator of a federation.
    Aggregator,
    /// The MQTT broker.
    Broker,
    /// Central operations: reads the fleet's topics.
    Operator,
}

impl Role {
    /// The word that stands for the role in certificates and configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Site => "site",
            Self::Aggregator => "aggregator",
            Self::Broker => "broker",
            Self::Operator => "operator",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = ParseNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "site" => Ok(Self::Site),
            "aggregator" => Ok(Self::Aggregator),
            "broker" => Ok(Self::Broker),
            "operator" => Ok(Self::Operator),
            other => Err(ParseNameError {
                kind: "role",
                rule: "that is one of site, aggregator, broker and operator",
                got: other.chars().take(80).collect(),
            }),
        }
    }
}

/// Who holds a certificate: a role and a name that is unique within it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Principal {
    /// What the holder may be.
    pub role: Role,
    /// The holder's name, by the same rule as a [`SiteId`].
    pub name: SiteId,
}

impl Principal {
    /// A principal of `role` called `name`.
    #[must_use]
    pub fn new(role: Role, name: SiteId) -> Self {
        Self { role, name }
    }

    /// The site, when the principal is one.
    #[must_use]
    pub fn site(&self) -> Option<&SiteId> {
        (self.role == Role::Site).then_some(&self.name)
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.role, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_be_a_wildcard_or_a_path_are_refused() {
        for text in ["", "+", "#", "a/b", "..", "-a", "A", "ä", "a b", "$sys", &"a".repeat(64)] {
            assert!(SiteId::new(text).is_err(), "{text:?}");
        }
        assert!(SiteId::new("st-marys-2").is_ok());
    }
}
