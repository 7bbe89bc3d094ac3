//! Each way in which a settings file can be wrong, and what its writer is told.
#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use medinet_settings::{Check, FilePath, RedactedUrl, Rules, SecretFile, SettingsError, load, parse};
use medinet_types::{ByteCount, HumanDuration, SiteId};
use serde::Deserialize;
use std::path::{Path, PathBuf};

#[derive(Debug, Deserialize)]
struct Settings {
    name: SiteId,
    #[serde(default)]
    limits: Limits,
    round: Round,
    #[serde(default)]
    pacs: Vec<Pacs>,
    state: Option<FilePath>,
}

#[derive(Debug, Deserialize)]
#[serde(default)]
struct Limits {
    message: ByteCount,
    handshake: HumanDuration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { message: ByteCount(1 << 18), handshake: "10 s".parse().unwrap() }
    }
}

#[derive(Debug, Deserialize)]
struct Round {
    min_sites: u32,
    #[serde(default = "ten")]
    max_sites: u32,
    #[serde(default)]
    kind: Kind,
}

fn ten() -> u32 {
    10
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
enum Kind {
    #[default]
    Train,
    Evaluate,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pacs {
    url: RedactedUrl,
    password_file: Option<SecretFile>,
}

impl Check for Settings {
    fn check(&self, rules: &mut Rules) {
        rules.within("round", &self.round);
        rules.within_each("pacs", &self.pacs);
        let message = self.limits.message;
        rules.expect(message.0 >= 1024, "limits.message", "at least 1 KiB", message);
    }
}

impl Check for Round {
    fn check(&self, rules: &mut Rules) {
        let Self { min_sites, max_sites, .. } = self;
        rules.expect(
            min_sites <= max_sites,
            "min_sites",
            format!("at most max_sites ({max_sites})"),
            min_sites,
        );
    }
}

impl Check for Pacs {
    fn check(&self, rules: &mut Rules) {
        if self.url.has_credentials() {
            rules.refuse("url", "expected no user or password in the address: name a password_file");
        }
    }
}

const GOOD: &str = r#"name = "north"
state = "var/state"

[limits]
message = "256 KiB"
handshake = "10 s"

[round]
min_sites = 2
max_sites = 3
kind = "train"

[[pacs]]
url = "https://pacs.local/dicom-web"
password_file = "pacs.password"
"#;

/// What the writer of `GOOD` with `from` replaced by `to` is told.
fn told(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from));
    parse::<Settings>(&GOOD.replace(from, to), "etc/site.toml").unwrap_err().to_string()
}

#[test]
fn good_settings_are_read_and_paths_are_relative_to_the_file() {
    let settings: Settings = parse(GOOD, "etc/site.toml").unwrap();
    assert_eq!(settings.state.unwrap().as_path(), Path::new("etc/var/state"));
    assert!(matches!(settings.round.kind, Kind::Train));
    assert_eq!(settings.pacs[0].password_file.as_ref().unwrap().path(), Path::new("etc/pacs.password"));
    let absolute: Settings = parse(&GOOD.replace("var/state", "/var/state"), "etc/site.toml").unwrap();
    assert_eq!(absolute.state.unwrap().as_path(), Path::new("/var/state"));
}

#[test]
fn each_path_of_a_list_is_relative_to_the_file() {
    #[derive(Debug, Default, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Lists {
        #[serde(deserialize_with = "medinet_settings::resolved_all")]
        files: Vec<PathBuf>,
    }
    impl Check for Lists {}
    let lists: Lists = parse("files = [\"a.csv\", \"/b.csv\", \"../c.csv\"]\n", "etc/site.toml").unwrap();
    assert_eq!(lists.files, ["etc/a.csv", "/b.csv", "etc/../c.csv"].map(PathBuf::from));
    assert!(parse::<Lists>("", "etc/site.toml").unwrap().files.is_empty());
    let error = parse::<Lists>("\nfiles = [\"a.csv\", \"\"]\n", "etc/site.toml").unwrap_err().to_string();
    assert!(error.starts_with("etc/site.toml:2:"), "{error}");
    assert!(error.contains("expected a path, got an empty text"), "{error}");
}

#[test]
fn unknown_keys_are_refused_at_their_line_and_all_at_once() {
    assert_eq!(
        told("[limits]", "[limits]\nmesage = \"1 KiB\""),
        "etc/site.toml:5:1: limits.mesage: expected a key that this program knows, got another"
    );
    assert_eq!(
        told("min_sites = 2", "  minimum = 2\n  min_sites = 20"),
        "etc/site.toml:9:3: round.minimum: expected a key that this program knows, got another\n\
         etc/site.toml:10:3: round.min_sites: expected at most max_sites (3), got 20"
    );
    assert_eq!(
        told("password_file = ", "user = \"u\"\npassword_file = "),
        "etc/site.toml:15:1: pacs[0].user: expected the key `url` or `password_file`, got `user`"
    );
    let told = told("[round]", "[extra]\na = 1\n[round]");
    assert_eq!(told, "etc/site.toml:8:2: extra: expected a key that this program knows, got another");
}

#[test]
fn wrong_types_are_refused_at_their_line() {
    assert_eq!(
        told("min_sites = 2", "min_sites = \"two\""),
        "etc/site.toml:9:13: round.min_sites: expected u32, got string \"two\""
    );
    assert_eq!(
        told("min_sites = 2", "min_sites = -1"),
        "etc/site.toml:9:13: round.min_sites: expected u32, got integer `-1`"
    );
    assert_eq!(
        told("\"train\"", "\"dance\""),
        "etc/site.toml:11:8: round.kind: expected `train` or `evaluate`, got `dance`"
    );
    assert!(
        told("name = \"north\"", "name = \"No th\"")
            .starts_with("etc/site.toml:1:8: name: expected a site id")
    );
}

#[test]
fn wrong_units_are_refused_at_their_line() {
    assert_eq!(
        told("\"10 s\"", "\"10 sec\""),
        "etc/site.toml:6:13: limits.handshake: expected a duration such as \"250 ms\", \"30 s\", \"5 min\", \"2 h\" \
         or \"14 d\", got \"10 sec\""
    );
    let bare = told("\"10 s\"", "10");
    assert!(
        bare.starts_with("etc/site.toml:6:13: limits.handshake: expected a string, got integer `10`"),
        "{bare}"
    );
    assert!(bare.contains("with its unit"), "{bare}");
    assert!(
        told("\"256 KiB\"", "\"256 KB\"").starts_with("etc/site.toml:5:11: limits.message: expected a size")
    );
}

#[test]
fn impossible_combinations_are_refused_at_the_line_of_the_key() {
    assert_eq!(
        told("\"256 KiB\"", "\"12 B\""),
        "etc/site.toml:5:1: limits.message: expected at least 1 KiB, got 12 B"
    );
    let told = told("min_sites = 2\nmax_sites = 3", "min_sites = 11");
    assert_eq!(told, "etc/site.toml:9:1: round.min_sites: expected at most max_sites (10), got 11");
}

#[test]
fn a_rule_about_a_key_that_is_not_written_points_at_its_table() {
    struct Always(Round);
    impl<'de> Deserialize<'de> for Always {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            #[derive(Deserialize)]
            struct Outer {
                round: Round,
            }
            Outer::deserialize(deserializer).map(|outer| Self(outer.round))
        }
    }
    impl Check for Always {
        fn check(&self, rules: &mut Rules) {
            rules.expect(self.0.max_sites < 10, "round.max_sites", "less than 10", self.0.max_sites);
        }
    }
    let error = parse::<Always>("\n[round]\nmin_sites = 1\n", "a.toml").err().unwrap().to_string();
    assert_eq!(
        error,
        "a.toml:2:2: round.max_sites: expected less than 10, got 10 (the key is not in the file)"
    );
}

#[test]
fn missing_keys_are_named_with_their_table() {
    let told_round = told("min_sites = 2\n", "");
    assert_eq!(
        told_round,
        "etc/site.toml:8:1: round.min_sites: expected a value, got none: the key is required"
    );
    let told_root = told("name = \"north\"\n", "");
    assert_eq!(told_root, "etc/site.toml:1:1: name: expected a value, got none: the key is required");
    let told_array = told("url = \"https://pacs.local/dicom-web\"\n", "");
    assert!(told_array.starts_with("etc/site.toml:13:1: pacs[0].url: expected a value"), "{told_array}");
}

#[test]
fn text_that_is_not_toml_is_refused_at_its_line_without_repeating_it() {
    let error = told("min_sites = 2", "min_sites = = hunter2");
    assert!(error.starts_with("etc/site.toml:9:"), "{error}");
    assert!(!error.contains("hunter2"), "{error}");
    let twice = told("max_sites = 3", "min_sites = 3");
    assert!(twice.starts_with("etc/site.toml:10:1: "), "{twice}");
}

#[test]
fn credentials_in_an_address_are_neither_taken_nor_shown() {
    let error = told("https://pacs", "https://bob:hunter2@pacs");
    assert_eq!(
        error,
        "etc/site.toml:14:1: pacs[0].url: expected no user or password in the address: name a password_file"
    );
    let error = told("https://pacs.local/dicom-web", "bob:hunter2@pacs");
    assert!(error.starts_with("etc/site.toml:14:7: pacs[0].url: expected a URL"), "{error}");
    assert!(!error.contains("hunter2"));
}

#[test]
fn files_are_read_and_refused_with_their_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("site.toml");
    std::fs::write(&path, GOOD).unwrap();
    let settings: Settings = load(&path).unwrap();
    assert_eq!(settings.state.unwrap().as_path(), dir.path().join("var/state"));
    assert_eq!(settings.name.as_str(), "north");

    std::fs::write(&path, [GOOD.as_bytes(), b"\nx = \xff"].concat()).unwrap();
    let error = load::<Settings>(&path).unwrap_err().to_string();
    assert_eq!(error, format!("{}:17:5: expected UTF-8 text, got other bytes", path.display()));

    std::fs::write(&path, vec![b'#'; (1 << 20) + 1]).unwrap();
    assert!(load::<Settings>(&path).unwrap_err().to_string().contains("at most 1 MiB"));

    let missing = load::<Settings>(&dir.path().join("none.toml")).unwrap_err();
    assert!(matches!(missing, SettingsError::Read { .. }) && missing.to_string().contains("none.toml"));
}
