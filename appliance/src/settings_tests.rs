#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use super::*;
use medinet_pacs::DicomWebAuth;
use std::collections::BTreeSet;
use std::path::Path;
use toml::Value;

const SAMPLE: &str = include_str!("../../config/appliance.toml");

fn sample_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/appliance.toml")
}

fn parsed(text: &str) -> Result<ApplianceSettings, String> {
    medinet_settings::parse(text, sample_path()).map_err(|error| error.to_string())
}

fn is_turned_off(line: &str) -> bool {
    line.strip_prefix('#').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '['))
}

fn turned_on(line: &str) -> &str {
    if is_turned_off(line) { &line[1..] } else { line }
}

fn is_table(line: &str) -> bool {
    turned_on(line).starts_with('[')
}

fn key_of(line: &str) -> &str {
    line.split(" = ").next().unwrap_or_default()
}

/// The sample once for each setting that is turned off in it, with that one on: a whole table, or a key that then takes the
/// place of the same key in its table.
fn alternatives() -> Vec<(String, String)> {
    let lines: Vec<&str> = SAMPLE.lines().collect();
    let mut found = Vec::new();
    let mut off_table = false;
    for (at, &line) in lines.iter().enumerate() {
        if line.is_empty() {
            off_table = false;
        }
        if !is_turned_off(line) || off_table {
            continue;
        }
        let mut text = String::new();
        if is_table(line) {
            off_table = true;
            let end =
                lines[at..].iter().position(|line| line.is_empty()).map_or(lines.len(), |length| at + length);
            for (index, &line) in lines.iter().enumerate() {
                text += if (at..end).contains(&index) { turned_on(line) } else { line };
                text.push('\n');
            }
        } else {
            let start = lines[..at].iter().rposition(|line| is_table(line)).unwrap_or(0);
            let end =
                lines[at..].iter().position(|line| is_table(line)).map_or(lines.len(), |length| at + length);
            let key = key_of(&line[1..]);
            for (index, &line) in lines.iter().enumerate() {
                let replaced = (start..end).contains(&index) && key_of(line) == key;
                if index == at {
                    text += turned_on(line);
                } else if !replaced {
                    text += line;
                }
                text.push('\n');
            }
        }
        found.push((line.to_owned(), text));
    }
    found
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

/// Steps to every table in `value`.
fn tables_of(value: &Value, at: &[String], found: &mut Vec<Vec<String>>) {
    let below = |step: String| {
        let mut steps = at.to_vec();
        steps.push(step);
        steps
    };
    match value {
        Value::Table(table) => {
            found.push(at.to_vec());
            table.iter().for_each(|(key, value)| tables_of(value, &below(key.clone()), found));
        }
        Value::Array(items) => {
            items
                .iter()
                .enumerate()
                .for_each(|(index, value)| tables_of(value, &below(index.to_string()), found));
        }
        _ => {}
    }
}

fn table_at<'a>(value: &'a mut Value, steps: &[String]) -> &'a mut toml::Table {
    let found = steps.iter().fold(value, |value, step| match value {
        Value::Table(table) => table.get_mut(step.as_str()).unwrap(),
        Value::Array(items) => &mut items[step.parse::<usize>().unwrap()],
        other => panic!("{step} in {other}"),
    });
    match found {
        Value::Table(table) => table,
        other => panic!("{other} is no table"),
    }
}

#[test]
fn the_sample_is_good_and_paths_are_relative_to_it() {
    let settings: ApplianceSettings = medinet_settings::load(&sample_path()).unwrap();
    let folder = sample_path().parent().unwrap().to_owned();
    assert_eq!(settings.data_dir, folder.join("appliance-data"));
    assert_eq!(settings.dataset.labels_csv, [folder.join("labels.csv")]);
    assert_eq!(settings.identity.key, folder.join("identity/key.pem"));
    let spec = settings.task_spec().unwrap();
    assert_eq!(settings.policy.tasks, [spec.task]);
    assert_eq!(settings.policy.warnings(), [""; 0]);
    assert!(matches!(settings.pacs.dicomweb.unwrap().auth, DicomWebAuth::Basic { .. }));
    assert_eq!(settings.training, TrainingSettings::default());
    assert_eq!(settings.deident, DeidentSettings::default());
}

#[test]
fn every_alternative_is_good() {
    let alternatives = alternatives();
    let turned_on: Vec<&str> = alternatives.iter().map(|(line, _)| line.as_str()).collect();
    for start in [
        "#auth = { kind = \"bearer\"",
        "#auth = { kind = \"none\"",
        "#client_identity = ",
        "#[pacs.cstore]",
        "#[pacs.folder]",
        "#[[dataset.sr_codes]]",
        "#device = { gpu",
    ] {
        assert!(turned_on.iter().any(|line| line.starts_with(start)), "{start}: {turned_on:?}");
    }
    let before = format!("{:?}", parsed(SAMPLE).unwrap());
    for (line, text) in &alternatives {
        match parsed(text) {
            Ok(settings) => assert_ne!(format!("{settings:?}"), before, "{line} changes nothing"),
            Err(error) => panic!("{line}: {error}"),
        }
    }
}

/// Asks the program itself, table by table, which keys it knows: that is what it says when it meets another.
#[test]
fn nothing_that_can_be_set_is_missing_from_the_sample() {
    let mut texts = vec![SAMPLE.to_owned()];
    texts.extend(alternatives().into_iter().map(|(_, text)| text));
    let mut named = BTreeSet::new();
    for text in &texts {
        keys_of(&toml::from_str(text).unwrap(), "", &mut named);
    }
    let mut known = BTreeSet::new();
    for text in &texts {
        let good: Value = toml::from_str(text).unwrap();
        let mut tables = Vec::new();
        tables_of(&good, &[], &mut tables);
        for steps in tables {
            let mut dotted = String::new();
            for step in &steps {
                match step.parse::<usize>() {
                    Ok(_) => dotted += "[]",
                    Err(_) if dotted.is_empty() => dotted += step,
                    Err(_) => dotted = format!("{dotted}.{step}"),
                }
            }
            // Names of the hospital's own choice, an enumeration, and a kind of authentication without settings.
            let is_none = dotted == "pacs.dicomweb.auth" && text.contains("\nauth = { kind = \"none\" }");
            if dotted == "dataset.label_names" || dotted.starts_with("training.device") || is_none {
                continue;
            }
            let mut bad = good.clone();
            table_at(&mut bad, &steps).insert("no-such-key".into(), Value::Integer(1));
            let error = parsed(&toml::to_string(&bad).unwrap()).unwrap_err();
            let expected = error.rsplit_once("expected the key ").map(|(_, rest)| rest);
            let expected = expected.unwrap_or_else(|| panic!("{dotted}: {error}"));
            let (expected, got) = expected.rsplit_once(", got ").unwrap();
            assert_eq!(got, "`no-such-key`");
            let lead = if dotted.is_empty() { String::new() } else { format!("{dotted}.") };
            known.extend(expected.split('`').skip(1).step_by(2).map(|key| format!("{lead}{key}")));
        }
    }
    assert!(
        known.contains("pacs.dicomweb.query.study_date_to")
            && known.contains("dataset.sr_codes[].value.meaning")
    );
    let missing: Vec<&String> = known.difference(&named).collect();
    assert!(missing.is_empty(), "not in the sample: {missing:?}");
}

#[test]
fn what_the_sample_calls_a_default_is_one() {
    let turn_on = ["#[pacs.cstore]", "#[pacs.folder]"];
    let mut on = false;
    let mut full = String::new();
    for line in SAMPLE.lines() {
        on = !line.is_empty() && (on || turn_on.contains(&line));
        full += if on { turned_on(line) } else { line };
        full.push('\n');
    }
    let mut shorter = String::new();
    let mut stated = Vec::new();
    let mut comment = "";
    for line in full.lines() {
        let value = line.split_once(" = ").filter(|_| !line.starts_with('#')).map(|(_, value)| value);
        match value {
            Some(value) if comment.ends_with(&format!("Default {value}.")) => stated.push(key_of(line)),
            _ => {
                let with_another = value.is_some() && comment.contains("Default ");
                assert!(!with_another, "the default of {line} is another: {comment}");
                shorter += line;
                shorter.push('\n');
            }
        }
        comment = if line.starts_with("# ") { line } else { "" };
    }
    assert!(stated.len() > 40, "{stated:?}");
    assert_eq!(format!("{:?}", parsed(&shorter).unwrap()), format!("{:?}", parsed(&full).unwrap()));
}

#[test]
fn mistakes_are_refused_with_their_line() {
    for (from, to, expected) in [
        (
            "\nthreads = 2",
            "\nthread = 2",
            "training.thread: expected the key `device` or `threads`, got `thread`",
        ),
        ("\nlog = \"info\"", "\nlog = \"medinet=shout\"", "log: expected a log filter such as info"),
        ("\nlog = \"info\"", "\nlogs = \"info\"", "logs: expected the key one of"),
        ("\nclean_descriptors = true", "\nclean_descriptor = true", "deident.options.clean_descriptor: "),
        ("\npage_size = 100", "\npage_sise = 100", "pacs.dicomweb.page_sise: "),
        (
            "\nmax_backoff = \"30 s\"",
            "\nmax_backoff = 30",
            "broker.max_backoff: expected a string, got integer `30`",
        ),
        (
            "\nmax_backoff = \"30 s\"",
            "\nmax_backoff = \"30 MiB\"",
            "broker.max_backoff: expected a duration such as",
        ),
        ("\nmax_backoff = \"30 s\"", "\nmax_backoff = \"0 s\"", "broker.max_backoff: expected more than 0 s"),
        (
            "\nmax_spool_bytes = \"4 GiB\"",
            "\nmax_spool_bytes = \"4 GB\"",
            "pacs.max_spool_bytes: expected a size",
        ),
        (
            "\nmax_spool_bytes = \"4 GiB\"",
            "\nmax_spool_bytes = \"4 MiB\"",
            "pacs.max_spool_bytes: expected at least",
        ),
        ("\nkeep_alive = \"20 s\"", "\nkeep_alive = \"200 ms\"", "broker.keep_alive: expected 1 s to 18 h"),
        ("\nmax_inflight = 16", "\nmax_inflight = 0", "broker.max_inflight: expected 1 to 65535, got 0"),
        ("\nport = 8883", "\nport = 0", "broker.port: expected 1 to 65535, got 0"),
        (
            "\nca_file = \"pacs-ca.pem\"",
            "\n",
            "pacs.dicomweb.ca_file: expected a file, for the address is https",
        ),
        ("\nmin_days = 30", "\nmin_days = 3000", "deident: expected min_days to 36500 days"),
        (
            "\nvalidation_fraction = 0.15",
            "\nvalidation_fraction = 0.9",
            "dataset.validation_fraction: expected below 1 together with test_fraction (0.15), got 0.9",
        ),
        (
            "\ntest_fraction = 0.15",
            "\ntest_fraction = nan",
            "dataset.test_fraction: expected 0 to below 1, got NaN",
        ),
        (
            "\nlabel_names = {}",
            "\nlabel_names = { \"no finding\" = \"norml\" }",
            "dataset.label_names: expected one of the task's classes [\"normal\", \"pneumonia\"], got \"norml\"",
        ),
        // What an input holds of a series is the task's to say, not a site's.
        (
            "\nmax_images_per_series = 0",
            "\nslices = \"neighbours\"\nmax_images_per_series = 0",
            "dataset.slices: expected the key one of",
        ),
        ("\ntasks = [\"pneumonia\"]", "\ntasks = []", "policy.tasks: expected at least one task"),
        (
            "\ntasks = [\"pneumonia\"]",
            "\ntasks = [\"fracture\"]",
            "policy.tasks: expected the task of task_file (pneumonia) among them, got fracture",
        ),
        ("\nmin_sites = 3", "\nmin_sites = 0", "policy.min_sites: expected at least 1, got 0"),
        (
            "\nmax_local_epochs = 5",
            "\nmax_local_epochs = 0",
            "policy.max_local_epochs: expected at least 1, got 0",
        ),
        (
            "\nmax_update_norm = 20.0",
            "\nmax_update_norm = inf",
            "policy.max_update_norm: expected a number above 0",
        ),
        (
            "\ncorrupt_permille = 100",
            "\ncorrupt_permille = 1000",
            "policy.secure_aggregation.corrupt_permille: expected 0 to 999, got 1000",
        ),
        (
            "\nmax_rounds_per_base = 8",
            "\nmax_rounds_per_base = 0",
            "policy.secure_aggregation.max_rounds_per_base: expected at least 1, got 0",
        ),
        ("\nmin_auroc = 0.5", "\nmin_auroc = 1.5", "policy.vote.min_auroc: expected 0 to 1, got 1.5"),
        (
            "\nmax_auroc_drop = 0.05",
            "\nmax_auroc_drop = nan",
            "policy.vote.max_auroc_drop: expected 0 to 1, got NaN",
        ),
        (
            "\nmin_validation_images = 20",
            "\nmin_validation_images = 0",
            "policy.vote.min_validation_images: expected at least 1, got 0",
        ),
        (
            "\nmin_accepting = 2",
            "\nmin_accepting = 0",
            "policy.release.min_accepting: expected at least 1, got 0",
        ),
        (
            "\nmin_accept_permille = 500",
            "\nmin_accept_permille = 1001",
            "policy.release.min_accept_permille: expected 0 to 1000, got 1001",
        ),
        ("\ntraining_hours = []", "\ntraining_hours = [\"22:00\"]", "policy.training_hours"),
        ("\nthreads = 2", "\nthreads = 0", "training.threads: expected 1 to 256, got 0"),
        (
            "\ntask_file = \"task-pneumonia.toml\"",
            "\ntask_file = \"none.toml\"",
            "task_file: cannot read the settings file",
        ),
    ] {
        assert_eq!(SAMPLE.matches(from).count(), 1, "{from:?}");
        let error = parsed(&SAMPLE.replacen(from, to, 1)).unwrap_err();
        let line_of = |table: &str| SAMPLE.lines().position(|line| line == table).unwrap() + 1;
        // A rule about a key that is not in the file, or about a whole part, points at the part's table.
        let line = match expected.split(':').next() {
            Some("deident") => line_of("[deident]"),
            Some("pacs.dicomweb.ca_file") => line_of("[pacs.dicomweb]"),
            // The pattern begins with the end of the line before.
            _ => SAMPLE[..SAMPLE.find(from).unwrap()].matches('\n').count() + 2,
        };
        let at = format!("{}:{line}:", sample_path().display());
        assert!(error.starts_with(&at), "{to}: expected {at}, got {error}");
        assert!(error.contains(expected), "{to}: {error}");
    }
}

#[test]
fn an_appliance_without_a_source_is_refused() {
    let from = SAMPLE.find("\n[pacs.dicomweb]").unwrap();
    let to = SAMPLE.find("\n[deident]").unwrap();
    let error = parsed(&format!("{}{}", &SAMPLE[..from], &SAMPLE[to..])).unwrap_err();
    let line = SAMPLE.lines().position(|line| line == "[pacs]").unwrap() + 1;
    assert!(error.starts_with(&format!("{}:{line}:", sample_path().display())), "{error}");
    assert!(
        error.contains("pacs.dicomweb: expected one of dicomweb, cstore and folder, got none of them"),
        "{error}"
    );
}

#[test]
fn all_mistakes_are_named_at_once() {
    let bad = SAMPLE.replace("\nmin_sites = 3", "\nmin_sites = 0").replace("\nthreads = 2", "\nthreads = 0");
    let error = parsed(&bad).unwrap_err();
    assert_eq!(error.lines().count(), 2, "{error}");
}

#[test]
fn a_task_of_neighbouring_slices_needs_three_channels() {
    let folder = tempfile::tempdir().unwrap();
    let task = folder.path().join("task.toml");
    let text = std::fs::read_to_string(sample_path().with_file_name("task-pneumonia.toml")).unwrap();
    assert!(text.contains("\nslices = \"single\"") && text.contains("\nchannels = 1"));
    let settings = SAMPLE
        .replace("\ntask_file = \"task-pneumonia.toml\"", &format!("\ntask_file = \"{}\"", task.display()));
    let neighbours = text.replace("\nslices = \"single\"", "\nslices = \"neighbours\"");
    std::fs::write(&task, &neighbours).unwrap();
    let error = parsed(&settings).unwrap_err();
    assert!(error.contains("preprocessing.slices: ") && error.contains("needs 3 input channels"), "{error}");
    std::fs::write(&task, neighbours.replace("\nchannels = 1", "\nchannels = 3")).unwrap();
    parsed(&settings).unwrap();
    // Nothing is assumed: sites that read a file differently would train different inputs.
    std::fs::write(&task, text.replace("\nslices = \"single\"", "")).unwrap();
    assert!(parsed(&settings).unwrap_err().contains("slices"));
}
