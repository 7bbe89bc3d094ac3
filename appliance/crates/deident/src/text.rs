//! Text that may hold names: what is kept of it.
//!
//! Two rules, for two kinds of text. A *descriptor* (an attribute that Clean Descriptors cleans, a text item of a report) is free text
//! that people type into, so only words of a vocabulary and measures stay: what nobody thought of is lost
//! rather than leaked. Other text that the profile keeps (a manufacturer, a code meaning) has a meaning of
//! its own, so there only what is known to identify this patient, and what has the shape of a date, a telephone number or
//! an address, is taken out.

use crate::identifiers::KnownIdentifiers;
use std::collections::HashSet;
use std::sync::LazyLock;

static VOCABULARY: LazyLock<HashSet<&'static str>> = LazyLock::new(|| {
    include_str!("../data/vocabulary.txt")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .flat_map(str::split_whitespace)
        .collect()
});

const UNITS: [&str; 34] = [
    "mm", "cm", "m", "um", "kv", "kvp", "ma", "mas", "ms", "s", "sec", "min", "ml", "l", "mg", "g", "kg",
    "mgy", "gy", "t", "hz", "khz", "mhz", "hu", "x", "d", "percent", "view", "views", "slices", "frames",
    "phase", "phases", "week",
];

/// Whether a lower-case word is known to be harmless.
pub(crate) fn is_harmless(word: &str) -> bool {
    VOCABULARY.contains(word)
}

/// Runs of letters and digits, in order.
pub(crate) fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty())
}

/// A short number, or one with its unit attached, such as `5mm`.
fn number_and_unit(word: &str) -> Option<&str> {
    let digits = word.bytes().take_while(u8::is_ascii_digit).count();
    (1..=4).contains(&digits).then(|| &word[digits..])
}

/// What stays of a descriptor: harmless words that are no name of this object, and measures (a number of at
/// most four digits before a unit), separated by single spaces. Empty when nothing does.
pub(crate) fn clean_descriptor(text: &str, known: &KnownIdentifiers) -> String {
    let lower = text.to_lowercase();
    let words: Vec<&str> = words(&lower).collect();
    let mut kept = Vec::new();
    for (i, word) in words.iter().enumerate() {
        if known.is_name(word) {
            continue;
        }
        let keep = match number_and_unit(word) {
            Some("") => words.get(i + 1).is_some_and(|next| UNITS.contains(next) && !known.is_name(next)),
            Some(unit) => UNITS.contains(&unit),
            None => {
                is_harmless(word)
                    || (UNITS.contains(word) && i > 0 && number_and_unit(words[i - 1]) == Some(""))
            }
        };
        if keep || is_harmless(word) {
            kept.push(*word);
        }
    }
    kept.join(" ")
}

/// A date in one of the usual shapes, as digits: `19620413`, `1962-04-13`, `13.04.1962`, `04/13/62`.
fn is_date_like(run: &str) -> bool {
    let parts: Vec<&str> = run.split(['-', '.', '/']).collect();
    let number = |text: &str| text.parse::<u32>().ok();
    match parts.as_slice() {
        [whole] => {
            whole.len() == 8
                && number(&whole[..4]).is_some_and(|y| (1850..=2200).contains(&y))
                && number(&whole[4..6]).is_some_and(|m| (1..=12).contains(&m))
                && number(&whole[6..]).is_some_and(|d| (1..=31).contains(&d))
        }
        [a, b, c] => {
            let small = |text: &str| text.len() <= 2 && number(text).is_some_and(|n| (1..=31).contains(&n));
            let year =
                |text: &str| text.len() == 4 && number(text).is_some_and(|y| (1850..=2200).contains(&y));
            (year(a) && small(b) && small(c))
                || (small(a) && small(b) && (year(c) || small(c)) && run.contains(['/', '-']))
        }
        _ => false,
    }
}

/// Takes out what has the shape of a date, a telephone number, an e-mail or web address.
fn without_shapes(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for (i, field) in text.split(' ').enumerate() {
        if i > 0 {
            out.push(' ');
        }
        if field.contains('@') || field.contains("://") || field.to_ascii_lowercase().starts_with("www.") {
            continue;
        }
        let trimmed = field.trim_matches(|c: char| !c.is_alphanumeric());
        if trimmed.bytes().all(|c| c.is_ascii_digit() || b"-./".contains(&c)) && is_date_like(trimmed) {
            continue;
        }
        out.push_str(field);
    }
    without_telephone_numbers(&out)
}

/// Takes out `+` or `0` followed by at least eight more digits that only blanks and `-/().` part.
fn without_telephone_numbers(text: &str) -> String {
    let bytes: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut i = 0;
    while i < bytes.len() {
        let starts = bytes[i] == '+' || bytes[i] == '0' || bytes[i] == '(';
        let fresh = i == 0 || !(bytes[i - 1].is_alphanumeric() || bytes[i - 1] == '.');
        if starts && fresh {
            let mut end = i;
            let mut digits = 0;
            let mut last_digit = i;
            while end < bytes.len() && (bytes[end].is_ascii_digit() || " -/()+".contains(bytes[end])) {
                if bytes[end].is_ascii_digit() {
                    digits += 1;
                    last_digit = end;
                }
                end += 1;
            }
            let ends = bytes.get(last_digit + 1).is_none_or(|c| !c.is_alphanumeric() && *c != '.');
            if digits >= 9 && ends {
                i = last_digit + 1;
                continue;
            }
        }
        out.push(bytes[i]);
        i += 1;
    }
    out
}

/// Text of an attribute that is otherwise kept, without what identifies; the same text when nothing does.
pub(crate) fn scrub(text: &str, known: &KnownIdentifiers) -> String {
    let shaped = without_shapes(text);
    let without_ids = known.without_ids(&shaped);
    let mut out = String::with_capacity(without_ids.len());
    let mut rest = without_ids.as_str();
    while !rest.is_empty() {
        let letters = rest.find(|c: char| !c.is_alphanumeric()).unwrap_or(rest.len());
        let (word, tail) = rest.split_at(letters);
        if !word.is_empty() && !known.is_name(&word.to_lowercase()) {
            out.push_str(word);
        }
        let gap = tail.find(char::is_alphanumeric).unwrap_or(tail.len());
        out.push_str(&tail[..gap]);
        rest = &tail[gap..];
    }
    if out == text { out } else { out.split_whitespace().collect::<Vec<_>>().join(" ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> KnownIdentifiers {
        let mut known = KnownIdentifiers::default();
        known.add_name("Müller^Grace^van der");
        known.add_id("MRN-00471234");
        known
    }

    #[test]
    fn descriptors_keep_only_harmless_words_and_measures() {
        let clean = |text| clean_descriptor(text, &known());
        assert_eq!(clean("CHEST PA/LAT 2 views"), "chest pa lat 2 views");
        assert_eq!(clean("Thorax Hr. MÜLLER geb. 13.04.1962, Tel 0621-383-5517"), "thorax");
        assert_eq!(clean("CT Lung 5mm B70s 120 kV room 12"), "ct lung 5mm 120 kv");
        assert_eq!(clean("MRN 00471234 ssn 123-45-6789"), "");
        assert_eq!(clean("山田 太郎 胸部"), "");
        assert_eq!(clean(""), "");
    }

    #[test]
    fn a_harmless_word_that_is_this_patients_name_goes() {
        let mut known = KnownIdentifiers::default();
        known.add_name("HAND^LINE");
        assert_eq!(clean_descriptor("Left hand line placement", &known), "left placement");
    }

    #[test]
    fn kept_text_loses_identifiers_and_shapes_only() {
        let scrubbed = |text| scrub(text, &known());
        assert_eq!(scrubbed("GE MEDICAL SYSTEMS"), "GE MEDICAL SYSTEMS");
        assert_eq!(scrubbed("Optima XR220amx  v1.0.4"), "Optima XR220amx  v1.0.4");
        assert_eq!(scrubbed("for Grace Müller (MRN-00471234)"), "for ()");
        assert_eq!(scrubbed("made 2019-03-12 or 12/03/2019 or 20190312"), "made or or");
        assert_eq!(scrubbed("call +49 621 383-5517 now"), "call now");
        assert_eq!(scrubbed("mail a.b@c.org"), "mail");
        assert_eq!(scrubbed("1.3.6.1.4.1.9590.100"), "1.3.6.1.4.1.9590.100");
    }
}
