//! Reading a settings file, with everything that can be wrong with it.

use crate::document::{Document, Segment, join, line_and_column, segments};
use crate::path::with_base;
use crate::rules::{Check, Rules};
use serde::de::DeserializeOwned;
use std::fmt;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use toml::de::DeTable;

/// The largest settings file, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// One thing that is wrong with a settings file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// The key, dotted from the root; `None` where the file is not TOML at all.
    pub key: Option<String>,
    /// What was expected and what came.
    pub message: String,
}

/// A settings file was refused.
#[derive(Debug)]
pub enum SettingsError {
    /// It could not be read; environment.
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It does not say what it should; the writer's mistake.
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong, in the order of lines; at least one.
        problems: Vec<Problem>,
    },
}

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read { path, .. } => write!(f, "cannot read the settings file {}", path.display()),
            Self::Invalid { path, problems } => {
                for (index, problem) in problems.iter().enumerate() {
                    let Problem { line, column, key, message } = problem;
                    let lead = if index == 0 { "" } else { "\n" };
                    write!(f, "{lead}{}:{line}:{column}: ", path.display())?;
                    match key {
                        Some(key) => write!(f, "{key}: {message}")?,
                        None => f.write_str(message)?,
                    }
                }
                Ok(())
            }
        }
    }
}

impl std::error::Error for SettingsError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Read { source, .. } => Some(source),
            Self::Invalid { .. } => None,
        }
    }
}

/// Reads and checks the settings file at `path`. Paths in it are relative to its folder.
///
/// # Errors
/// When it cannot be read, or with everything that is wrong with it.
pub fn load<T: DeserializeOwned + Check>(path: &Path) -> Result<T, SettingsError> {
    let read = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        std::fs::File::open(path)?.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().map_err(|source| SettingsError::Read { path: path.to_owned(), source })?;
    let refused = |valid: &[u8], message: &str| {
        let valid = String::from_utf8_lossy(valid);
        let (line, column) = line_and_column(&valid, valid.len());
        let problem = Problem { line, column, key: None, message: message.to_owned() };
        SettingsError::Invalid { path: path.to_owned(), problems: vec![problem] }
    };
    if bytes.len() as u64 > MAX_BYTES {
        return Err(refused(&[], "expected a settings file of at most 1 MiB, got more"));
    }
    let text = std::str::from_utf8(&bytes)
        .map_err(|error| refused(&bytes[..error.valid_up_to()], "expected UTF-8 text, got other bytes"))?;
    parse(text, path)
}

/// Reads and checks settings from text; `name` is shown in messages, and paths in the text are relative to its folder.
///
/// # Errors
/// Everything that is wrong with the text.
pub fn parse<T: DeserializeOwned + Check>(text: &str, name: impl AsRef<Path>) -> Result<T, SettingsError> {
    let name = name.as_ref();
    check(text, name).map_err(|mut problems| {
        problems.sort_by_key(|problem| (problem.line, problem.column));
        SettingsError::Invalid { path: name.to_owned(), problems }
    })
}

fn check<T: DeserializeOwned + Check>(text: &str, name: &Path) -> Result<T, Vec<Problem>> {
    let (root, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        return Err(errors.iter().map(|error| syntax_problem(text, error)).collect());
    }
    let document = Document::of(root.get_ref());
    let problem_at = |path: &[Segment], message: String| {
        let (offset, written) = document.place_of(path);
        let (line, column) = line_and_column(text, offset);
        let message = if written { message } else { format!("{message} (the key is not in the file)") };
        Problem { line, column, key: Some(join(path)), message }
    };

    let mut unknown = Vec::new();
    let folder = name.parent().unwrap_or(Path::new(""));
    let settings = with_base(folder, || {
        serde_ignored::deserialize(toml::Deserializer::from(root), |path| unknown.push(path_of(&path)))
    });
    let mut problems: Vec<Problem> = unknown
        .iter()
        .map(|path: &Vec<Segment>| {
            problem_at(path, "expected a key that this program knows, got another".into())
        })
        .collect();
    let settings: T = match settings {
        Ok(settings) => settings,
        Err(error) => {
            problems.push(value_problem(text, &document, &error));
            return Err(problems);
        }
    };
    let violations = Rules::violations_of(&settings);
    problems.extend(violations.into_iter().map(|v| problem_at(&segments(&v.key), v.message)));
    if problems.is_empty() { Ok(settings) } else { Err(problems) }
}

fn path_of(path: &serde_ignored::Path<'_>) -> Vec<Segment> {
    use serde_ignored::Path as P;
    let (parent, segment) = match path {
        P::Root => return Vec::new(),
        P::Seq { parent, index } => (parent, Some(Segment::Index(*index))),
        P::Map { parent, key } => (parent, Some(Segment::Key(key.clone()))),
        P::Some { parent } | P::NewtypeStruct { parent } | P::NewtypeVariant { parent } => (parent, None),
    };
    let mut path = path_of(parent);
    path.extend(segment);
    path
}

fn syntax_problem(text: &str, error: &toml::de::Error) -> Problem {
    let (line, column) = line_and_column(text, error.span().map_or(0, |span| span.start));
    Problem { line, column, key: None, message: format!("expected TOML: {}", error.message()) }
}

/// The place and the words of an error that came while values were read.
fn value_problem(text: &str, document: &Document, error: &toml::de::Error) -> Problem {
    let offset = error.span().map_or(0, |span| span.start);
    let (line, column) = line_and_column(text, offset);
    // A span at the very start is the whole document, unless the first key stands there.
    let whole = error.span().is_none_or(|span| span == (0..text.len()) || span.is_empty());
    let mut path = if whole { Vec::new() } else { document.key_at(offset).unwrap_or_default().to_vec() };
    let message = error.message().trim_end();
    let message =
        if let Some(field) = message.strip_prefix("missing field `").and_then(|m| m.strip_suffix('`')) {
            path.push(Segment::Key(field.to_owned()));
            "expected a value, got none: the key is required".to_owned()
        } else {
            expected_and_got(message)
        };
    let key = (!path.is_empty()).then(|| join(&path));
    Problem { line, column, key, message }
}

/// Serde's own sentences in the order of ours: what was expected, then what came.
fn expected_and_got(message: &str) -> String {
    let reordered = || {
        let (got, expected) = message.rsplit_once(", expected ")?;
        if let Some(got) = got.strip_prefix("unknown field ") {
            return Some(format!("expected the key {expected}, got {got}"));
        }
        let got = ["invalid type: ", "invalid value: ", "invalid length ", "unknown variant "]
            .iter()
            .find_map(|prefix| got.strip_prefix(prefix))?;
        // The usual cause is a quantity without its unit.
        let is_number = got.starts_with("integer ") || got.starts_with("floating point ");
        let hint = if is_number && expected == "a string" {
            ": write text in quotes, and a quantity with its unit, such as \"30 s\" or \"16 MiB\""
        } else {
            ""
        };
        Some(format!("expected {expected}, got {got}{hint}"))
    };
    reordered().unwrap_or_else(|| message.to_owned())
}
