#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use super::*;
use std::path::Path;

#[path = "sample_tests.rs"]
mod sample;

const SAMPLE: &str = include_str!("../../config/aggregator.toml");
const TASK_SAMPLE: &str = include_str!("../../config/task-pneumonia.toml");

fn sample_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/aggregator.toml")
}

fn task_path() -> PathBuf {
    sample_path().with_file_name("task-pneumonia.toml")
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
    let (stated, others, shorter) = sample::without_defaults(SAMPLE);
    assert!(stated.len() > 24, "{stated:?}");
    // In three hospitals a sixteenth of float32 is the better sample.
    assert_eq!(others, ["kept_permille"]);
    assert_eq!(parsed(&shorter).unwrap(), parsed(SAMPLE).unwrap());
}

#[test]
fn nothing_that_can_be_set_is_missing_from_the_sample() {
    let mut texts = vec![SAMPLE.to_owned(), plain_sample()];
    let mut off = Vec::new();
    for (line, at) in sample::turned_off(SAMPLE) {
        off.push(line);
        // The plain way is no addition to the secure one: the second text has it.
        if line != "#[task.aggregation.plain]" {
            let (at, settings) = sample::turned_on(SAMPLE, at);
            texts.push(format!("{}{settings}{}", &SAMPLE[..at.start], &SAMPLE[at.end..]));
        }
    }
    assert_eq!(
        off,
        [
            "#[task.training.privacy]",
            "#[task.aggregation.secure.groups]",
            "#[task.aggregation.secure.noise]",
            "#[task.aggregation.plain]"
        ]
    );
    let choices = ["task[].aggregation", "task[].aggregation.secure.groups.norm_limit"];
    let missing = sample::missing_from::<AggregatorSettings>(&texts, &sample_path(), &choices);
    assert!(missing.is_empty(), "not in the sample: {missing:?}");

    // The test itself sees what is missing, at every depth and in what is turned off.
    let hide = |key: &str| {
        let lines = |text: &String| -> String {
            text.lines().filter(|line| !line.starts_with(key)).flat_map(|line| [line, "\n"]).collect()
        };
        let texts: Vec<String> = texts.iter().map(lines).collect();
        sample::missing_from::<AggregatorSettings>(&texts, &sample_path(), &choices)
    };
    assert_eq!(hide("log_format = "), ["log_format"]);
    assert_eq!(hide("grinding_bits = "), ["task[].aggregation.secure.assumptions.grinding_bits"]);
    assert_eq!(hide("norm_limit = "), ["task[].aggregation.secure.groups.norm_limit"]);
}

#[test]
fn nothing_that_can_be_set_is_missing_from_the_sample_of_a_task() {
    let mut texts = vec![TASK_SAMPLE.to_owned()];
    for (line, at) in sample::turned_off(TASK_SAMPLE) {
        let end = at + line.len();
        texts.push(format!("{}{}{}", &TASK_SAMPLE[..at], &line[1..], &TASK_SAMPLE[end..]));
    }
    assert_eq!(texts.len(), 2, "with and without spacing_mm");
    for text in &texts {
        medinet_settings::parse::<SpecFile>(text, task_path()).unwrap();
    }
    let missing = |texts: &[String]| sample::missing_from::<SpecFile>(texts, &task_path(), &["network.body"]);
    assert_eq!(missing(&texts), Vec::<String>::new(), "not in the sample");
    assert_eq!(missing(&texts[..1]), ["preprocessing.spacing_mm"]);
}

/// The number of the line that begins so.
fn line_of(sample: &str, start: &str) -> usize {
    sample.lines().position(|line| line.starts_with(start)).unwrap() + 1
}

#[test]
fn mistakes_are_named_by_line_and_key() {
    let cases = [
        ("\nrounds = 20", "\nrounds = 0", "task[0].rounds: expected at least 1, got 0"),
        (
            "\nmin_sites = 3",
            "\nmin_sites = 6",
            "task[0].min_sites: expected 1 to the number of members (5), got 6",
        ),
        (
            "\njoin_grace = \"1 min\"",
            "\njoin_grace = \"3 h\"",
            "task[0].join_grace: expected at most round_deadline",
        ),
        (
            "\nmembers = [\"north\", \"south\"",
            "\nmembers = [\"north\", \"north\"",
            "task[0].members: expected each site once",
        ),
        (
            "\nbatch_size = 32",
            "\nbatch_size = 0",
            "task[0].training: training plan: batch_size: expected 1 to 1024",
        ),
        ("\nlog = \"info\"", "\nlog = \"medinet=shout\"", "log: expected a log filter such as info"),
        ("\nport = 8883", "\nport = 0", "broker.port: expected 1 to 65535, got 0"),
        ("\nbits = 2", "\nbits = 9", "task[0].aggregation.secure: codec plan: bits: expected 1 to 8"),
        (
            "\nmax_attempts = 3",
            "\nmax_attempts = 0",
            "task[0].aggregation.secure.max_attempts: expected at least 1, got 0",
        ),
        (
            "\nmessage_deadline = \"1 min\"",
            "\nmessage_deadline = \"0 s\"",
            "task[0].aggregation.secure.message_deadline: expected at least 1 s, got 0 s",
        ),
        (
            "\ninput_deadline = \"10 min\"",
            "\ninput_deadline = \"0 s\"",
            "task[0].aggregation.secure.input_deadline: expected at least 1 s, got 0 s",
        ),
        (
            "\nmax_clip_norm = 16.0",
            "\nmax_clip_norm = 1.0",
            "task[0].aggregation.secure.max_clip_norm: expected a number of at least clip_norm (2), got 1",
        ),
        (
            "\nadversary = \"malicious\"",
            "\nadversary = \"honest\"",
            "task[0].aggregation.secure.assumptions.adversary: expected ",
        ),
        (
            "\nspec_file = \"task-pneumonia.toml\"",
            "\nspec_file = \"no-such.toml\"",
            "task[0].spec_file: cannot read the settings file",
        ),
        (
            "\nmin_reporting_sites = 2",
            "\nmin_reporting_sites = 7",
            "task[0].release.min_reporting_sites: expected 1 to the number of members (5), got 7",
        ),
        (
            "\nmin_accepting = 2",
            "\nmin_accepting = 6",
            "task[0].release.votes.min_accepting: expected 1 to the number of members (5), got 6",
        ),
        (
            "\ndropout_permille = 200",
            "\ndropout_permille = 900",
            "task[0].aggregation: expected a plan that makes a session of secure aggregation, got for 3 sites: ",
        ),
        ("\nmax_sites = 5", "\nmax_site = 5", "task[0].max_site: expected the key one of `spec_file`, "),
        (
            "\nkept_permille = 495",
            "\nkept_per_mille = 495",
            "task[0].aggregation.secure.kept_per_mille: expected the key one of `bits`, ",
        ),
        ("\nkey_file = ", "\nkeyfile = ", "ledger.keyfile: expected the key `key_file`, got `keyfile`"),
    ];
    for (good, bad, expected) in cases {
        assert_eq!(SAMPLE.matches(good).count(), 1, "{good:?}");
        let error = parsed(&SAMPLE.replacen(good, bad, 1)).unwrap_err();
        // A rule about a whole part points at the part's table.
        let line = match expected.split(": ").next() {
            Some("task[0].training") => line_of(SAMPLE, "[task.training]"),
            Some("task[0].aggregation.secure" | "task[0].aggregation") => {
                line_of(SAMPLE, "[task.aggregation.secure]")
            }
            _ => line_of(SAMPLE, good.trim_start()),
        };
        let at = format!("{}:{line}:", sample_path().display());
        assert!(error.starts_with(&at), "{bad}: expected {at}, got {error}");
        assert!(error.contains(&format!(": {expected}")), "{bad}: {error}");
    }
}

#[test]
fn the_sites_votes_decide_unless_that_is_written_off() {
    let table = SAMPLE.find("[task.release.votes]").unwrap();
    let release = |text: &str| {
        let task = &parsed(text).unwrap().tasks[0];
        task.release.rule(task.members.len(), task.max_sites).unwrap().votes
    };
    let written_off = |text: &str| text.replacen("\nvotes_decide = true", "\nvotes_decide = false", 1);
    assert_eq!(release(SAMPLE), Some(Quorum { min_accepting: 2, min_accept_permille: 667 }));
    // Of five members.
    assert_eq!(release(&SAMPLE[..table]), Some(Quorum { min_accepting: 3, min_accept_permille: 500 }));
    assert_eq!(release(&written_off(&SAMPLE[..table])), None);
    let error = parsed(&written_off(SAMPLE)).unwrap_err();
    let at = format!("{}:{}:", sample_path().display(), line_of(SAMPLE, "[task.release.votes]"));
    assert!(
        error.starts_with(&at) && error.contains("task[0].release.votes: expected no such table"),
        "{error}"
    );
}

#[test]
fn by_default_more_than_half_of_the_members_must_accept_and_a_round_must_take_as_many() {
    for (members, least) in [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (10, 6)] {
        assert_eq!(default_votes(members, least).unwrap().min_accepting, least, "{members}");
        assert_eq!(default_votes(members, least - 1).unwrap_err().key, "max_sites", "{members}");
    }
    let table = SAMPLE.find("[task.release.votes]").unwrap();
    let few = |text: &str| {
        let text = text.replacen(r#"members = ["north", "#, r#"members = ["first", "second", "north", "#, 1);
        parsed(&text.replacen("\nmax_sites = 5", "\nmax_sites = 3", 1))
    };
    let error = few(&SAMPLE[..table]).unwrap_err();
    assert!(
        error.contains("task[0].max_sites: expected at least 4, the majority of the 7 members"),
        "{error}"
    );
    few(SAMPLE).unwrap();
}

#[test]
fn mistakes_in_a_task_are_named_by_line_and_key() {
    let cases = [
        ("\ntask = \"pneumonia\"", "\ntask = \"Lung disease\"", "task: "),
        ("\nclasses = [\"normal\", \"pneumonia\"]", "\nclasses = [\"normal\"]", "network: "),
        ("\nheight = 64", "\nheigth = 64", "network.input.heigth: expected the key one of `channels`, "),
        ("\nstem = \"stride2\"", "\nstem = \"stride3\"", "network.body.res-net.stem: expected "),
        (
            "\nstage_blocks = [1, 1, 1]",
            "\nblocks = [1, 1, 1]",
            "network.body.res-net.blocks: unexpected keys in table: blocks, available keys: stem, stage_channels",
        ),
        ("\ndenoise = false", "\ndenoise = 0", "preprocessing.denoise: expected a boolean, got integer `0`"),
    ];
    for (good, bad, expected) in cases {
        assert_eq!(TASK_SAMPLE.matches(good).count(), 1, "{good:?}");
        let text = TASK_SAMPLE.replacen(good, bad, 1);
        let error = medinet_settings::parse::<SpecFile>(&text, task_path()).unwrap_err().to_string();
        let start = if expected == "network: " { "[network]" } else { good.trim_start() };
        let at = format!("{}:{}:", task_path().display(), line_of(TASK_SAMPLE, start));
        assert!(error.starts_with(&at), "{bad}: expected {at}, got {error}");
        assert!(error.contains(&format!(": {expected}")), "{bad}: {error}");
    }
}

/// The table of the sample that begins so, turned on.
fn turned_on(table: &str) -> (std::ops::Range<usize>, String) {
    sample::turned_on(SAMPLE, SAMPLE.find(table).unwrap())
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
