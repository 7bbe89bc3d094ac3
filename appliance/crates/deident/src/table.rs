//! Table E.1-1 of PS3.15 and its companions, read from data files.

use crate::settings::ProfileOptions;
use dicom_core::Tag;
use std::collections::HashMap;
use std::sync::LazyLock;

/// The edition of the standard that the tables are taken from.
pub(crate) const EDITION: &str = "2026d";

const TABLE_E_1_1: &str = include_str!("../data/table_e_1_1.tsv");
const TABLE_E_3_4_1: &str = include_str!("../data/table_e_3_4_1.tsv");
const SAFE_PRIVATE: &str = include_str!("../data/safe_private.tsv");

/// What is done to an attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// X: removed.
    Remove,
    /// Z: left without a value.
    Empty,
    /// D: given a value that says nothing.
    Dummy,
    /// C: cleaned; where nothing is left, what the profile says without the option.
    Clean(Fallback),
    /// U: UIDs remapped; in a sequence, the items are kept and cleaned.
    Uid,
    /// K: kept; a sequence is cleaned recursively.
    Keep,
}

/// What becomes of an attribute that cleaning leaves without a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fallback {
    Remove,
    Empty,
    Dummy,
}

/// Resolves an action code of the profile.
///
/// Which type an attribute has in an IOD decides between the codes of a combination (PS3.15 Table E.1-1a). Rather than
/// carry all IODs, the choice here is valid whatever the type is and says nothing in any: a dummy value fits types
/// 1, 2 and 3, an empty one types 2 and 3.
fn profile_action(code: &str) -> Option<Action> {
    Some(match code {
        "X" => Action::Remove,
        "Z" | "X/Z" => Action::Empty,
        "D" | "Z/D" | "X/D" | "X/Z/D" => Action::Dummy,
        "U" | "X/Z/U*" => Action::Uid,
        "K" => Action::Keep,
        "C" => Action::Clean(Fallback::Remove),
        _ => return None,
    })
}

struct Rule {
    profile: Action,
    /// The option columns in the order of the file.
    options: [Option<char>; OPTION_COLUMNS.len()],
}

const OPTION_COLUMNS: [&str; 10] = [
    "retain_safe_private",
    "retain_uids",
    "retain_device_identity",
    "retain_institution_identity",
    "retain_patient_characteristics",
    "retain_longitudinal_full_dates",
    "retain_longitudinal_modified_dates",
    "clean_descriptors",
    "clean_structured_content",
    "clean_graphics",
];

fn is_on(column: &str, options: &ProfileOptions) -> bool {
    match column {
        "clean_descriptors" => options.clean_descriptors,
        "retain_longitudinal_modified_dates" => options.retain_longitudinal_modified_dates,
        "clean_structured_content" => options.clean_structured_content,
        "retain_safe_private" => options.retain_safe_private,
        _ => false,
    }
}

/// "A requirement for an option overrides any requirement for the profile" (PS3.15 E.1.1).
fn resolve(
    profile: Action,
    columns: impl Iterator<Item = (&'static str, char)>,
    options: &ProfileOptions,
) -> Action {
    let fallback = match profile {
        Action::Empty => Fallback::Empty,
        Action::Dummy => Fallback::Dummy,
        _ => Fallback::Remove,
    };
    columns
        .filter(|(column, _)| is_on(column, options))
        .map(|(_, code)| if code == 'K' { Action::Keep } else { Action::Clean(fallback) })
        .next()
        .unwrap_or(profile)
}

fn lines(file: &'static str) -> impl Iterator<Item = Vec<&'static str>> {
    file.lines().filter(|line| !line.starts_with('#')).map(|line| line.split('\t').collect())
}

/// A tag pattern such as `60XX3000` as a mask of its fixed bits and their value.
fn pattern(text: &str) -> Option<(u32, u32)> {
    let (mut mask, mut value) = (0u32, 0u32);
    if text.len() != 8 {
        return None;
    }
    for digit in text.chars() {
        let (bits, fixed) = if digit == 'X' { (0, 0) } else { (digit.to_digit(16)?, 0xf) };
        mask = mask << 4 | fixed;
        value = value << 4 | bits;
    }
    Some((mask, value))
}

fn tag_number(tag: Tag) -> u32 {
    u32::from(tag.group()) << 16 | u32::from(tag.element())
}

struct Table {
    exact: HashMap<u32, Rule>,
    patterns: Vec<(u32, u32, Rule)>,
}

static TABLE: LazyLock<Table> = LazyLock::new(|| {
    let mut table = Table { exact: HashMap::new(), patterns: Vec::new() };
    for row in lines(TABLE_E_1_1).skip(1) {
        let [tag, _name, basic, columns @ ..] = row.as_slice() else { continue };
        let Some(profile) = profile_action(basic) else { continue };
        let mut options = [None; OPTION_COLUMNS.len()];
        for (slot, column) in options.iter_mut().zip(columns) {
            *slot = column.chars().next().filter(|&c| c != '-');
        }
        let rule = Rule { profile, options };
        match pattern(tag) {
            Some((u32::MAX, value)) => {
                table.exact.insert(value, rule);
            }
            Some((mask, value)) => table.patterns.push((mask, value, rule)),
            None => {} // "PRIVATE", which `private` sees to.
        }
    }
    table
});

/// What the profile with these options does to a standard attribute; `None` where the table does not list it.
pub(crate) fn action(tag: Tag, options: &ProfileOptions) -> Option<Action> {
    let number = tag_number(tag);
    let rule = TABLE.exact.get(&number).or_else(|| {
        TABLE.patterns.iter().find(|(mask, value, _)| number & mask == *value).map(|(_, _, rule)| rule)
    })?;
    let columns =
        OPTION_COLUMNS.iter().zip(&rule.options).filter_map(|(column, code)| Some((*column, (*code)?)));
    Some(resolve(rule.profile, columns, options))
}

struct ContentRule {
    value_type: &'static str,
    profile: Action,
    options: Vec<(&'static str, char)>,
}

static CONTENT: LazyLock<HashMap<(&'static str, &'static str), Vec<ContentRule>>> = LazyLock::new(|| {
    let mut rows = lines(TABLE_E_3_4_1);
    let header = rows.next().unwrap_or_default();
    let mut table: HashMap<_, Vec<ContentRule>> = HashMap::new();
    for row in rows {
        let [scheme, code, value_type, _meaning, basic, columns @ ..] = row.as_slice() else { continue };
        let Some(profile) = profile_action(basic) else { continue };
        let options = header
            .iter()
            .skip(5)
            .zip(columns)
            .filter_map(|(name, code)| Some((*name, code.chars().next().filter(|&c| c != '-')?)))
            .collect();
        table.entry((*scheme, *code)).or_default().push(ContentRule { value_type, profile, options });
    }
    table
});

/// What Clean Structured Content does to a content item of this concept name and value type
/// (PS3.15 Table E.3.4-1); `None` where the table does not list it.
pub(crate) fn content_action(
    scheme: &str,
    code: &str,
    value_type: &str,
    options: &ProfileOptions,
) -> Option<Action> {
    let rules = CONTENT.get(&(scheme, code))?;
    let rule = rules.iter().find(|rule| rule.value_type == value_type).or_else(|| rules.first())?;
    Some(resolve(rule.profile, rule.options.iter().copied(), options))
}

/// Creators and value representations by group and the last two digits of the element.
type SafePrivate = HashMap<(u16, u8), Vec<(&'static str, &'static str)>>;

static SAFE: LazyLock<SafePrivate> = LazyLock::new(|| {
    let mut table: HashMap<_, Vec<_>> = HashMap::new();
    for row in lines(SAFE_PRIVATE).skip(1) {
        let [tag, creator, vr, ..] = row.as_slice() else { continue };
        let Some((_, value)) = pattern(tag) else { continue };
        let element = u8::try_from(value & 0xff).unwrap_or_default();
        let group = u16::try_from(value >> 16).unwrap_or_default();
        table.entry((group, element)).or_default().push((*creator, *vr));
    }
    table
});

/// The value representation that the safe list (PS3.15 Table E.3.10-1) gives a private attribute of this
/// creator; `None` where it is not on the list.
pub(crate) fn safe_private(creator: &str, tag: Tag) -> Option<&'static str> {
    let element = u8::try_from(tag.element() & 0xff).unwrap_or_default();
    let known = SAFE.get(&(tag.group(), element))?;
    known.iter().find(|(name, _)| *name == creator.trim()).map(|(_, vr)| *vr)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: ProfileOptions = ProfileOptions {
        clean_descriptors: true,
        retain_longitudinal_modified_dates: true,
        retain_safe_private: true,
        clean_structured_content: true,
    };
    const NONE: ProfileOptions = ProfileOptions {
        clean_descriptors: false,
        retain_longitudinal_modified_dates: false,
        retain_safe_private: false,
        clean_structured_content: false,
    };

    #[test]
    fn the_whole_table_is_read() {
        let rows = lines(TABLE_E_1_1).skip(1).count();
        assert_eq!(rows, 657);
        assert_eq!(
            TABLE.exact.len() + TABLE.patterns.len(),
            rows - 1,
            "all but the row on private attributes"
        );
        assert_eq!(CONTENT.values().map(Vec::len).sum::<usize>(), 214);
        assert_eq!(SAFE.values().map(Vec::len).sum::<usize>(), lines(SAFE_PRIVATE).skip(1).count());
    }

    #[test]
    fn single_and_combined_codes_resolve() {
        for (tag, code, want) in [
            (Tag(0x0008, 0x0050), "Z", Action::Empty),
            (Tag(0x0010, 0x0020), "Z/D", Action::Dummy),
            (Tag(0x0010, 0x1040), "X", Action::Remove),
            (Tag(0x0008, 0x0018), "U", Action::Uid),
            (Tag(0x0008, 0x1140), "X/Z/U*", Action::Uid),
            (Tag(0x0008, 0x1030), "X", Action::Remove),
            (Tag(0x0008, 0x0020), "Z", Action::Empty),
        ] {
            assert_eq!(action(tag, &NONE), Some(want), "{tag} {code}");
        }
        assert_eq!(action(Tag(0x0028, 0x0010), &ALL), None);
        for code in ["X/Z", "X/D", "X/Z/D", "Z/D", "D", "K", "C"] {
            assert!(profile_action(code).is_some(), "{code}");
        }
        assert_eq!(profile_action("Q"), None);
    }

    #[test]
    fn options_override_the_profile() {
        assert_eq!(action(Tag(0x0008, 0x1030), &ALL), Some(Action::Clean(Fallback::Remove)));
        assert_eq!(action(Tag(0x0008, 0x0020), &ALL), Some(Action::Clean(Fallback::Empty)));
        assert_eq!(action(Tag(0x0040, 0xA730), &ALL), Some(Action::Clean(Fallback::Dummy)));
    }

    #[test]
    fn repeating_groups_match() {
        for tag in [Tag(0x6000, 0x3000), Tag(0x601E, 0x3000), Tag(0x6002, 0x4000), Tag(0x5002, 0x0010)] {
            assert_eq!(action(tag, &NONE), Some(Action::Remove), "{tag}");
        }
    }

    #[test]
    fn the_safe_list_goes_by_creator() {
        let tag = Tag(0x7053, 0x1000);
        assert_eq!(safe_private("Philips PET Private Group", tag), Some("DS"));
        assert_eq!(safe_private("SOMEONE ELSE", tag), None);
        assert_eq!(safe_private("Philips PET Private Group", Tag(0x7053, 0x1001)), None);
    }
}
