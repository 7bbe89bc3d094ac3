//! Where each key of a TOML document stands.

use std::fmt::Write as _;
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// One step from the root of a document to a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Segment {
    Key(String),
    Index(usize),
}

/// Splits a dotted key such as `sites[1].name`.
pub(crate) fn segments(dotted: &str) -> Vec<Segment> {
    let mut path = Vec::new();
    for part in dotted.split('.').filter(|part| !part.is_empty()) {
        let (key, indices) = part.split_once('[').unwrap_or((part, ""));
        if !key.is_empty() {
            path.push(Segment::Key(key.to_owned()));
        }
        let numbers = indices.split(['[', ']']).filter_map(|number| number.parse().ok());
        path.extend(numbers.map(Segment::Index));
    }
    path
}

/// The dotted spelling of a path.
pub(crate) fn join(path: &[Segment]) -> String {
    let mut dotted = String::new();
    for segment in path {
        // Writing to a string cannot fail.
        let _ = match segment {
            Segment::Key(key) if dotted.is_empty() => write!(dotted, "{key}"),
            Segment::Key(key) => write!(dotted, ".{key}"),
            Segment::Index(index) => write!(dotted, "[{index}]"),
        };
    }
    dotted
}

struct Entry {
    path: Vec<Segment>,
    /// Where the key stands; the element itself in an array.
    key: Range<usize>,
    value: Range<usize>,
}

/// All keys of a document with their places, in byte offsets.
pub(crate) struct Document {
    entries: Vec<Entry>,
}

impl Document {
    pub(crate) fn of(root: &DeTable<'_>) -> Self {
        let mut document = Self { entries: Vec::new() };
        document.add_table(&[], root);
        document
    }

    fn add_table(&mut self, parent: &[Segment], table: &DeTable<'_>) {
        for (key, value) in table {
            let mut path = parent.to_vec();
            path.push(Segment::Key(key.get_ref().to_string()));
            self.add(path, key.span(), value);
        }
    }

    fn add(&mut self, path: Vec<Segment>, key: Range<usize>, value: &Spanned<DeValue<'_>>) {
        match value.get_ref() {
            DeValue::Table(table) => self.add_table(&path, table),
            DeValue::Array(elements) => {
                for (index, element) in elements.iter().enumerate() {
                    let mut path = path.clone();
                    path.push(Segment::Index(index));
                    self.add(path, element.span(), element);
                }
            }
            _ => {}
        }
        self.entries.push(Entry { path, key, value: value.span() });
    }

    /// Where the key `path` stands; where it is not written, the nearest part around it that is. The flag says
    /// whether the key itself was found.
    pub(crate) fn place_of(&self, path: &[Segment]) -> (usize, bool) {
        for length in (1..=path.len()).rev() {
            if let Some(entry) = self.entries.iter().find(|entry| entry.path == path[..length]) {
                return (entry.key.start, length == path.len());
            }
        }
        (0, path.is_empty())
    }

    /// The key that stands at `offset` or whose value spans it, the innermost.
    pub(crate) fn key_at(&self, offset: usize) -> Option<&[Segment]> {
        let at =
            |range: &Range<usize>| range.contains(&offset) || (range.start == offset && range.is_empty());
        let on_key = self.entries.iter().filter(|entry| at(&entry.key));
        let on_value = self.entries.iter().filter(|entry| at(&entry.value));
        let innermost = |entry: &&Entry| entry.path.len();
        on_key
            .max_by_key(innermost)
            .into_iter()
            .chain(on_value.max_by_key(innermost))
            .max_by_key(innermost)
            .map(|entry| entry.path.as_slice())
    }
}

/// Line and column of a byte offset, both from 1; the column counts characters.
pub(crate) fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
    let mut offset = offset.min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    let before = &text[..offset];
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dotted_keys_read_back() {
        for key in ["a", "a.b", "a[0]", "a[0][12].b.c[3]"] {
            assert_eq!(join(&segments(key)), key);
        }
    }

    #[test]
    fn each_key_has_its_line() {
        let text = "a = 1\n[b]\nc = { d = 2, e = [3, 4] }\n[[f]]\ng = 5\n[[f]]\ng = 6\n[h.i]\nj = 7\n";
        let table = DeTable::parse(text).unwrap();
        let document = Document::of(table.get_ref());
        for (key, line) in [
            ("a", 1),
            ("b", 2),
            ("b.c", 3),
            ("b.c.d", 3),
            ("b.c.e[1]", 3),
            ("f[0].g", 5),
            ("f[1].g", 7),
            ("h.i", 8),
            ("h.i.j", 9),
        ] {
            let (offset, found) = document.place_of(&segments(key));
            assert_eq!((line_and_column(text, offset).0, found), (line, true), "{key}");
            let at = join(document.key_at(offset).unwrap());
            assert!(at.starts_with(key), "{key}: {at}");
        }
        let (offset, found) = document.place_of(&segments("f[1].missing"));
        assert_eq!((line_and_column(text, offset).0, found), (6, false));
    }

    #[test]
    fn columns_count_characters() {
        assert_eq!(line_and_column("ä = 1\nöö = 2", 11), (2, 3));
        assert_eq!(line_and_column("", 99), (1, 1));
    }
}
