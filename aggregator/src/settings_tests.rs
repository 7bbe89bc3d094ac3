#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use super::*;
use std::path::Path;

const SAMPLE: &str = include_str!("../../config/aggregator.toml");

fn sample_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/aggregator.toml")
}

fn parsed(text: &str) -> Result<AggregatorSettings, String> {
    medinet_settings::parse(text, sample_path()).map_err(|error| error.to_string())
}

#[test]
fn the_samples_are_good_and_paths_are_relative_to_them() {
    let settings: AggregatorSettings = medinet_settings::load(&sample_path()).unwrap();
    let plans = settings.plans().unwrap();
    let [plan] = &plans[..] else { panic!("expected one task, got {}", plans.len()) };
    assert_eq!(plan.spec.task.as_str(), "pneumonia");
    assert_eq!((plan.members.len(), plan.min_sites, plan.max_sites), (5, 3, 5));
    assert_eq!(plan.round_deadline, Duration::from_secs(7200));
    let secure = plan.aggregation.secure().unwrap();
    assert_eq!((secure.codec.bits, secure.message_seconds, secure.input_seconds), (2, 60, 600));
    assert_eq!((&secure.federation, secure.assumptions), (&settings.federation, Assumptions::default()));
    let folder = sample_path().parent().unwrap().to_owned();
    assert_eq!(settings.models_folder(), folder.join("aggregator-data/models"));
    assert_eq!(settings.ledger.key_file.as_path(), folder.join("ledger.key"));
}

#[test]
fn what_the_sample_calls_a_default_is_one() {
    let defaults = [
        "log",
        "log_format",
        "keep_alive",
        "max_inflight",
        "max_backoff",
        "round_deadline",
        "join_grace",
        "max_extensions",
        "max_repeats",
        "max_examples",
        "initial_seed",
        "final_learning_rate",
        "optimizer",
        "downlink_bits",
        "max_clip_norm",
        "error_feedback",
        "max_attempts",
        "message_deadline",
        "input_deadline",
        "adversary",
        "corrupt_permille",
        "dropout_permille",
        "security_bits",
        "correctness_bits",
        "grinding_bits",
    ];
    let key_of = |line: &str| line.split(" = ").next().unwrap_or_default().to_owned();
    let mut left_out = Vec::new();
    let shorter: String = SAMPLE
        .lines()
        .filter(|line| {
            let key = key_of(line);
            let dropped = defaults.contains(&key.as_str());
            left_out.extend(dropped.then_some(key));
            !dropped
        })
        .flat_map(|line| [line, "\n"])
        .collect();
    assert_eq!(left_out, defaults);
    assert_eq!(parsed(&shorter).unwrap(), parsed(SAMPLE).unwrap());
}

#[test]
fn mistakes_are_named_by_line_and_key() {
    let cases = [
        ("rounds = 20", "rounds = 0", "task[0].rounds: expected at least 1, got 0"),
        (
            "\nmin_sites = 3",
            "\nmin_sites = 6",
            "task[0].min_sites: expected 1 to the number of members (5), got 6",
        ),
        (
            "join_grace = \"1 min\"",
            "join_grace = \"3 h\"",
            "task[0].join_grace: expected at most round_deadline",
        ),
        ("\"south\"", "\"north\"", "task[0].members: expected each site once"),
        (
            "batch_size = 32",
            "batch_size = 0",
            "task[0].training: training plan: batch_size: expected 1 to 1024",
        ),
        ("\nlog = \"info\"", "\nlog = \"medinet=shout\"", "log: expected a log filter such as info"),
        ("\nbits = 2", "\nbits = 9", "task[0].aggregation.secure: codec plan: bits: expected 1 to 8"),
        ("input_deadline = \"10 min\"", "input_deadline = \"0 s\"", "input_seconds: expected at least 1"),
        ("adversary = \"malicious\"", "adversary = \"honest\"", "adversary"),
        ("task-pneumonia.toml\"", "no-such.toml\"", "task[0].spec_file: cannot read the settings file"),
        ("min_reporting_sites = 2", "min_reporting_sites = 7", "release"),
        ("max_sites = 5", "max_site = 5", "max_sites"),
    ];
    for (good, bad, expected) in cases {
        assert!(SAMPLE.contains(good), "{good}");
        let error = parsed(&SAMPLE.replace(good, bad)).unwrap_err();
        assert!(error.contains(expected), "{bad}: {error}");
    }
}

/// The table of the sample that begins so, turned on.
fn turned_on(table: &str) -> (std::ops::Range<usize>, String) {
    let start = SAMPLE.find(table).unwrap();
    let end = start + SAMPLE[start..].find("\n\n").unwrap();
    let settings = SAMPLE[start..end]
        .lines()
        .map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line))
        .flat_map(|line| [line, "\n"])
        .collect();
    (start..end, settings)
}

/// The sample with `[task.aggregation.plain]` in place of the secure table.
fn plain_sample() -> String {
    let secure = SAMPLE.find("[task.aggregation.secure]").unwrap();
    let (plain, settings) = turned_on("#[task.aggregation.plain]");
    format!("{}{settings}{}", &SAMPLE[..secure], &SAMPLE[plain.end..])
}

#[test]
fn the_private_way_of_the_sample_is_good_too() {
    let (at, settings) = turned_on("#[task.training.privacy]");
    let private = format!("{}{settings}{}", &SAMPLE[..at.start], &SAMPLE[at.end..]);
    let error = parsed(&private).unwrap_err();
    assert!(error.contains("task[0].training: training plan: class_balance"), "{error}");
    let private = private.replace("class_balance = \"weighted-loss\"", "class_balance = \"none\"");
    let plans = parsed(&private).unwrap().plans().unwrap();
    assert_eq!(plans[0].training.privacy.map(|privacy| privacy.steps), Some(20));
    let error = parsed(&private.replace("noise_multiplier = 1.5", "noise_multiplier = 0.5")).unwrap_err();
    assert!(error.contains("task[0].training: training plan: privacy"), "{error}");
    let error = parsed(&private.replace("sampling_rate = 0.05", "sampling_rate = 1.5")).unwrap_err();
    assert!(error.contains("sampling rate"), "{error}");
}

#[test]
fn the_noise_of_the_sample_is_good_too() {
    let (at, settings) = turned_on("#[task.aggregation.secure.noise]");
    let noisy = format!("{}{settings}{}", &SAMPLE[..at.start], &SAMPLE[at.end..]);
    let error = parsed(&noisy).unwrap_err();
    assert!(
        error.contains("task[0].aggregation.secure: codec plan: reference_examples: expected 1"),
        "{error}"
    );
    let noisy = noisy.replace("reference_examples = 1000", "reference_examples = 1");
    let plans = parsed(&noisy).unwrap().plans().unwrap();
    let codec = plans[0].aggregation.secure().unwrap().codec;
    assert_eq!(codec.noise.map(|noise| noise.honest_survivors), Some(2));
    // The clip norm has nothing to follow.
    assert_eq!(plans[0].max_clip_norm, None);
    let refused = |good: &str, bad: &str, expected: &str| {
        assert!(noisy.contains(good), "{good}");
        let error = parsed(&noisy.replace(good, bad)).unwrap_err();
        assert!(error.contains(expected), "{bad}: {error}");
    };
    let claims = "task[0].aggregation.secure.noise: noise inside the sum: expected an epsilon of at least";
    refused("noise_multiplier = 0.7", "noise_multiplier = 0.5", claims);
    refused("noise_multiplier = 0.7", "noise_multiplier = 0.0", "noise multiplier");
    refused("honest_survivors = 2", "honest_survivors = 3", "honest_survivors: expected at most 2");
    refused("error_feedback = false", "error_feedback = true", "error_feedback");
    let private = {
        let (at, settings) = turned_on("#[task.training.privacy]");
        let both = noisy.replace(&SAMPLE[at], &settings);
        both.replace("class_balance = \"weighted-loss\"", "class_balance = \"none\"")
    };
    let error = parsed(&private).unwrap_err();
    assert!(error.contains("either training.privacy or aggregation.secure.noise"), "{error}");
}

#[test]
fn the_plain_way_of_the_sample_is_good_too() {
    let plans = parsed(&plain_sample()).unwrap().plans().unwrap();
    assert_eq!(plans[0].aggregation.plain().map(|codec| codec.bits), Some(8));
    let error = parsed(&plain_sample().replace("bits = 8", "bits = 9")).unwrap_err();
    assert!(error.contains("task[0].aggregation.plain: codec plan: bits"), "{error}");
}

#[test]
fn the_groups_of_the_sample_are_good_too() {
    let (at, settings) = turned_on("#[task.aggregation.secure.groups]");
    let with = |settings: &str| format!("{}{settings}{}", &SAMPLE[..at.start], &SAMPLE[at.end..]);
    let grouped = with(&settings);
    let error = parsed(&with(&settings.replace("min_sites = 3", "min_sites = 4"))).unwrap_err();
    assert!(error.contains("task[0].aggregation.secure.groups.min_sites: expected 2 to"), "{error}");
    let more = |min_sites: u32| {
        let names: Vec<String> = (1..=9).map(|n| format!("\"site-{n}\"")).collect();
        let members = format!("members = [{}]", names.join(", "));
        grouped
            .replace("members = [\"north\", \"south\", \"west\", \"east\", \"centre\"]", &members)
            .replacen("min_sites = 3", &format!("min_sites = {min_sites}"), 1)
            .replace("max_sites = 5", "max_sites = 9")
    };
    let plans = parsed(&more(9)).unwrap().plans().unwrap();
    assert_eq!(plans[0].aggregation.secure().unwrap().group_sites, Some(3));
    let expected = GroupRule { rule: Rule::Median, norm_limit: NormLimit::MedianTimes(1.5), faulty: 1 };
    assert_eq!(plans[0].groups, expected);
    // Three groups of three are nine sites.
    let error = parsed(&more(8)).unwrap_err();
    assert!(error.contains("task[0].min_sites: expected sites for 3 groups of 3"), "{error}");
    let error = parsed(&more(9).replace("rule = \"median\"", "rule = \"mean\"")).unwrap_err();
    assert!(error.contains("groups.faulty"), "{error}");
    let error = parsed(&more(9).replace("median-times = 1.5", "median-times = 0.0")).unwrap_err();
    assert!(error.contains("groups.norm_limit"), "{error}");
    assert!(parsed(&more(9).replace("faulty = 1\n", "faults = 1\n")).is_err());
}

#[test]
fn no_task_stands_there_twice() {
    let task = &SAMPLE[SAMPLE.find("[[task]]").unwrap()..];
    let error = parsed(&format!("{SAMPLE}\n{task}")).unwrap_err();
    assert!(
        error.contains("task[1].spec_file: expected another task than [[task]] 0 has, got pneumonia"),
        "{error}"
    );
}
