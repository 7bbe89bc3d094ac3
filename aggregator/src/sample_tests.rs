//! What a sample in `config/` leaves out: the program itself is asked, table by table, which keys it knows.

use medinet_settings::Check;
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;
use std::path::Path;
use toml::Value;

/// Whether a line is a setting or a table that the sample has turned off: no space between the sign and what it says.
fn is_turned_off(line: &str) -> bool {
    line.strip_prefix('#').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '['))
}

/// The lines of `sample` from `start` to the next empty one, turned on.
pub(super) fn turned_on(sample: &str, start: usize) -> (std::ops::Range<usize>, String) {
    let end = sample[start..].find("\n\n").map_or(sample.len(), |length| start + length);
    let lines = sample[start..end].lines().map(|line| if is_turned_off(line) { &line[1..] } else { line });
    (start..end, lines.flat_map(|line| [line, "\n"]).collect())
}

/// Everything that the sample has turned off: a table by its head, a setting that stands for itself by its line; and where
/// it begins.
pub(super) fn turned_off(sample: &str) -> Vec<(&str, usize)> {
    let mut found = Vec::new();
    let (mut at, mut in_table) = (0, false);
    for line in sample.lines() {
        in_table &= !line.is_empty();
        if is_turned_off(line) && !in_table {
            found.push((line, at));
            in_table = line.starts_with("#[");
        }
        at += line.len() + 1;
    }
    found
}

/// The settings of a sample whose comment says that they hold the default, those whose comment names another, and the sample
/// without the first.
pub(super) fn without_defaults(sample: &str) -> (Vec<&str>, Vec<&str>, String) {
    let (mut stated, mut others, mut shorter) = (Vec::new(), Vec::new(), String::new());
    let mut comment = String::new();
    for line in sample.lines() {
        let setting = line.split_once(" = ").filter(|_| !line.starts_with('#'));
        match setting {
            Some((key, value)) if comment.ends_with(&format!("Default {value}.")) => stated.push(key),
            _ => {
                others.extend(setting.filter(|_| comment.contains("Default ")).map(|(key, _)| key));
                shorter += line;
                shorter.push('\n');
            }
        }
        match line.strip_prefix('#').filter(|rest| rest.starts_with(' ')) {
            Some(more) => comment += more,
            None => comment.clear(),
        }
    }
    (stated, others, shorter)
}

/// The keys of every table in `value`, as dotted paths; elements of an array all under `[]`.
fn keys_of(value: &Value, at: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Table(table) => {
            for (key, value) in table {
                let path = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
                keys_of(value, &path, found);
                found.insert(path);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| keys_of(item, &format!("{at}[]"), found)),
        _ => {}
    }
}

/// Calls `visit` with the dotted path of each table in `value` and a copy of all in which that table holds one key more.
fn with_a_foreign_key(value: &Value, visit: &mut dyn FnMut(&str, &Value)) {
    fn walk(all: &Value, steps: &mut Vec<String>, at: &Value, visit: &mut dyn FnMut(&str, &Value)) {
        let mut below = |step: String, value: &Value| {
            steps.push(step);
            walk(all, steps, value, visit);
            steps.pop();
        };
        match at {
            Value::Array(items) => {
                items.iter().enumerate().for_each(|(index, item)| below(index.to_string(), item));
            }
            Value::Table(table) => {
                table.iter().for_each(|(key, value)| below(key.clone(), value));
                let mut copy = all.clone();
                let found = steps.iter().fold(&mut copy, |value, step| match value {
                    Value::Array(items) => &mut items[step.parse::<usize>().unwrap()],
                    other => &mut other[step.as_str()],
                });
                found.as_table_mut().unwrap().insert("no-such-key".into(), Value::Integer(1));
                let dotted = steps.iter().map(|step| match step.parse::<usize>() {
                    Ok(_) => "[]".to_owned(),
                    Err(_) => format!(".{step}"),
                });
                visit(dotted.collect::<String>().trim_start_matches('.'), &copy);
            }
            _ => {}
        }
    }
    walk(value, &mut Vec::new(), value, visit);
}

/// The keys that the program says it knows when it meets another, in any table of `texts`, less those that the texts name.
/// Tables under `choices` are a choice between kinds, and know no keys.
pub(super) fn missing_from<T: DeserializeOwned + Check>(
    texts: &[String],
    path: &Path,
    choices: &[&str],
) -> Vec<String> {
    let (mut named, mut known) = (BTreeSet::new(), BTreeSet::new());
    for text in texts {
        let good: Value = toml::from_str(text).unwrap();
        keys_of(&good, "", &mut named);
        with_a_foreign_key(&good, &mut |table, bad| {
            if choices.contains(&table) {
                return;
            }
            let text = toml::to_string(bad).unwrap();
            let Err(error) = medinet_settings::parse::<T>(&text, path) else {
                panic!("{table}: another key was taken")
            };
            let error = error.to_string();
            let lead = if table.is_empty() { String::new() } else { format!("{table}.") };
            let keys: Vec<&str> = match error.split_once("no-such-key, available keys: ") {
                // The reader's own words, in a variant of an enumeration.
                Some((_, keys)) => keys.split(", ").collect(),
                None => {
                    let said = error.rsplit_once("expected the key ");
                    let said = said.and_then(|(_, rest)| rest.strip_suffix(", got `no-such-key`"));
                    let keys = said.unwrap_or_else(|| panic!("{table}: {error}"));
                    keys.split('`').skip(1).step_by(2).collect()
                }
            };
            known.extend(keys.iter().map(|key| format!("{lead}{key}")));
        });
    }
    known.difference(&named).cloned().collect()
}
