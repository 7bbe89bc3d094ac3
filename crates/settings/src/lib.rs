//! Settings files: TOML, read once at the start of a program, refused unless every line makes sense.
//!
//! [`load()`] refuses unknown keys, wrong types, wrong units and impossible combinations, and names for each the file,
//! line, column and key, what was expected and what came; all that can be found in one go, not only the first.
//!
//! A program declares its settings as plain structs (quantities as `medinet_types::HumanDuration` and `ByteCount`,
//! paths as [`FilePath`], passwords as [`SecretFile`], addresses as [`RedactedUrl`]) and states in [`Check`] which
//! combinations make sense:
//!
//! ```
//! use medinet_settings::{Check, Rules};
//!
//! #[derive(Debug, serde::Deserialize)]
//! struct Round {
//!     min_sites: u32,
//!     max_sites: u32,
//! }
//!
//! impl Check for Round {
//!     fn check(&self, rules: &mut Rules) {
//!         let Self { min_sites, max_sites } = self;
//!         rules.expect(min_sites <= max_sites, "min_sites", format!("at most max_sites ({max_sites})"), min_sites);
//!     }
//! }
//!
//! let error = medinet_settings::parse::<Round>("max_sites = 3\nmin_sites = 5\n", "round.toml").unwrap_err();
//! assert_eq!(error.to_string(), "round.toml:2:1: min_sites: expected at most max_sites (3), got 5");
//! ```

mod document;
mod load;
mod path;
mod rules;
mod secret;
mod url;

pub use load::{Problem, SettingsError, load, parse};
pub use path::{FilePath, resolved, resolved_all, resolved_option};
pub use rules::{Check, Rules, Violation};
pub use secret::{Secret, SecretError, SecretFile};
pub use url::{ParseUrlError, RedactedUrl};
