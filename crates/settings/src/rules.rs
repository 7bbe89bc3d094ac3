//! Rules between settings.

use crate::document::{Segment, join, segments};
use std::fmt::Display;

/// Settings that know which combinations make sense.
pub trait Check {
    /// States each rule to `rules`; the default has none.
    fn check(&self, rules: &mut Rules) {
        let _ = rules;
    }
}

/// A rule that does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The key at fault, dotted from the root, such as `sites[1].pacs.url`.
    pub key: String,
    /// What is wrong with it.
    pub message: String,
}

/// Collects the rules that do not hold. Keys are dotted and relative to the part that is being checked, such as
/// `min_sites`, `round.min_sites` or `sites[1].name`; the message is shown at the line of that key.
#[derive(Debug, Default)]
pub struct Rules {
    within: Vec<Segment>,
    violations: Vec<Violation>,
}

impl Rules {
    /// Every rule of `settings` that does not hold; for settings that come from elsewhere than a file.
    #[must_use]
    pub fn violations_of(settings: &impl Check) -> Vec<Violation> {
        let mut rules = Self::default();
        settings.check(&mut rules);
        rules.violations
    }

    /// Reports `key` unless the rule holds: "expected `expected`, got `got`".
    pub fn expect(&mut self, holds: bool, key: &str, expected: impl Display, got: impl Display) {
        if !holds {
            self.refuse(key, format!("expected {expected}, got {got}"));
        }
    }

    /// Reports `key` with a message of its own.
    pub fn refuse(&mut self, key: &str, message: impl Into<String>) {
        let mut path = self.within.clone();
        path.extend(segments(key));
        self.violations.push(Violation { key: join(&path), message: message.into() });
    }

    /// Checks the part of the settings that stands under `key`.
    pub fn within(&mut self, key: &str, part: &impl Check) {
        let depth = self.within.len();
        self.within.extend(segments(key));
        part.check(self);
        self.within.truncate(depth);
    }

    /// Checks each of the parts that stand under `key` as an array.
    pub fn within_each<'a, P: Check + 'a>(&mut self, key: &str, parts: impl IntoIterator<Item = &'a P>) {
        for (index, part) in parts.into_iter().enumerate() {
            self.within(&format!("{key}[{index}]"), part);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Inner(u32);
    struct Outer(Vec<Inner>);

    impl Check for Inner {
        fn check(&self, rules: &mut Rules) {
            rules.expect(self.0 < 10, "size", "less than 10", self.0);
        }
    }

    impl Check for Outer {
        fn check(&self, rules: &mut Rules) {
            rules.within_each("parts", &self.0);
            rules.expect(!self.0.is_empty(), "parts", "at least one", "none");
        }
    }

    #[test]
    fn every_violation_is_found_under_its_full_key() {
        let found = Rules::violations_of(&Outer(vec![Inner(11), Inner(1), Inner(12)]));
        let keys: Vec<&str> = found.iter().map(|violation| violation.key.as_str()).collect();
        assert_eq!(keys, ["parts[0].size", "parts[2].size"]);
        assert_eq!(found[1].message, "expected less than 10, got 12");
        assert_eq!(Rules::violations_of(&Outer(vec![]))[0].key, "parts");
        assert!(Rules::violations_of(&Outer(vec![Inner(1)])).is_empty());
    }
}
