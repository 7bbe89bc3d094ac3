//! What can be wrong with groups, rules and partitions.

/// Why groups cannot be combined, or sites not be partitioned. Nothing here is a site's fault that a check of its update
/// would not have found: lengths and finite values are checked where updates are opened.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RobustError {
    /// There is nothing to combine.
    #[error("expected the mean of at least one group, got none")]
    NoGroups,
    /// Vectors of different lengths.
    #[error("group {group}: expected {expected} values, as in group 0, got {got}")]
    Length {
        /// Index of the group, as given.
        group: usize,
        /// Values of group 0.
        expected: usize,
        /// Values of this group.
        got: usize,
    },
    /// A weight for each group is expected.
    #[error("expected {groups} weights, one a group, got {weights}")]
    Weights {
        /// Number of groups.
        groups: usize,
        /// Number of weights.
        weights: usize,
    },
    /// NaN or infinity, which no rule can order.
    #[error("group {group}, value {index}: expected a finite number, got {got}")]
    NotFinite {
        /// Index of the group, as given.
        group: usize,
        /// Index of the value.
        index: usize,
        /// The value.
        got: f32,
    },
    /// A weight that no number of examples can be.
    #[error("group {group}: expected a finite weight above 0, got {got}")]
    Weight {
        /// Index of the group, as given.
        group: usize,
        /// The weight.
        got: f64,
    },
    /// The rule's guarantee needs more groups.
    #[error(
        "{rule} against {faulty} bad groups: expected at least {needed} groups, got {got}; make groups smaller or wait for more sites"
    )]
    TooFewGroups {
        /// The rule.
        rule: &'static str,
        /// Bad groups that the rule is to withstand.
        faulty: usize,
        /// The least number of groups for it.
        needed: usize,
        /// The number of groups.
        got: usize,
    },
    /// A setting of a rule outside its range.
    #[error("{setting}: expected {expected}, got {got}")]
    Setting {
        /// Which.
        setting: &'static str,
        /// Its range.
        expected: &'static str,
        /// What it was.
        got: f64,
    },
    /// No group can have the least number of sites.
    #[error("expected at least {least} sites for one group, got {got}")]
    TooFewSites {
        /// The least number of sites in a group.
        least: usize,
        /// The number of sites.
        got: usize,
    },
}
