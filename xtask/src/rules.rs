//! The architecture's rules that no compiler checks: who may depend on what, who may name what.
//!
//! "What may never be" of ARCHITECTURE.md, as far as it can be read off manifests and sources.

use crate::shell::{cargo, output, root};
use anyhow::{Context as _, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Crates that must stay free of I/O, clocks and system randomness.
const CORE: &[&str] = &[
    "medinet-types",
    "medinet-wire",
    "medinet-model",
    "medinet-update",
    "medinet-privacy",
    "medinet-secagg",
    "medinet-ledger",
    "medinet-metrics",
    "medinet-rounds",
    "medinet-robust",
    "medinet-secure",
];
/// What core crates may not depend on directly, whatever for.
const NOT_IN_CORE: &[&str] =
    &["tokio", "rusqlite", "reqwest", "rumqttc", "rumqttd", "rand", "getrandom", "rustls"];
/// Words that core sources may not use outside tests.
const NOT_IN_CORE_SOURCES: &[&str] =
    &["SystemTime", "Instant::now", "std::net", "std::process", "thread::sleep", "OsRng", "SystemRandom"];
/// A sensitive dependency and the only crates that may depend on it directly.
const OWNERS: &[(&str, &[&str])] = &[
    ("burn", &["medinet-model", "medinet-training"]),
    ("tract-onnx", &["medinet-inference"]),
    ("rumqttc", &["medinet-link"]),
    ("rumqttd", &["medinet-broker"]),
    ("reqwest", &["medinet-pacs"]),
    ("near-jsonrpc-client", &["medinet-anchor"]),
    // Fixtures are for tests, whose dependencies are not looked at here.
    ("medinet-fixtures", &[]),
];
/// What opens DICOM bytes and reserves whatever length they state; only the crate with the limits may use it, and tests.
const UNBOUNDED_READERS: &[&str] = &[
    "dicom_object::open_file",
    "dicom_object::from_reader",
    "OpenFileOptions",
    "DicomCollector",
    "read_dataset_with_ts",
    "FileMetaTable::from_reader",
];
/// Crates that offer a way around one of their rules, always named `dangerous`: reading identifiable data from the PACS unsealed,
/// running a model that no ledger vouches for, and training privately with noise that can be foretold. Outside them only tests
/// may use it.
const WITH_ESCAPE: &[&str] = &["medinet-pacs", "medinet-inference", "medinet-training"];

/// Checks all rules and reports every violation at once.
pub(crate) fn check() -> Result<()> {
    let metadata: serde_json::Value = serde_json::from_str(&output(&mut cargo(&[
        "metadata",
        "--format-version",
        "1",
        "--locked",
        "--no-deps",
    ]))?)
    .context("cargo metadata printed something else than JSON")?;
    let packages = metadata["packages"].as_array().context("cargo metadata has no packages")?;
    let graph = direct_dependencies(packages);
    let mut violations = Vec::new();
    sensitive_dependencies(&graph, &mut violations);
    hospital_and_centre(&graph, &mut violations);
    core_is_pure(packages, &graph, &mut violations)?;
    identified_stays(&mut violations)?;
    dicom_is_opened_with_limits(&mut violations)?;
    escapes_are_not_used(packages, &graph, &mut violations)?;
    hooks_are_for_tests(&mut violations)?;
    if !violations.is_empty() {
        bail!("the architecture's rules are broken:\n  {}", violations.join("\n  "));
    }
    Ok(())
}

type Graph = BTreeMap<String, BTreeSet<String>>;

fn direct_dependencies(packages: &[serde_json::Value]) -> Graph {
    packages
        .iter()
        .filter_map(|package| {
            let name = package["name"].as_str()?.to_owned();
            let normal = package["dependencies"].as_array()?.iter().filter(|d| d["kind"].is_null());
            Some((name, normal.filter_map(|d| d["name"].as_str().map(str::to_owned)).collect()))
        })
        .collect()
}

fn sensitive_dependencies(graph: &Graph, violations: &mut Vec<String>) {
    for (dependency, owners) in OWNERS {
        for (name, dependencies) in graph {
            if dependencies.contains(*dependency) && !owners.contains(&name.as_str()) {
                violations.push(format!("{name} depends on {dependency}; only {owners:?} may"));
            }
        }
    }
}

/// All workspace crates that `from` reaches, itself included.
fn reach(graph: &Graph, from: &str) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    let mut open = vec![from.to_owned()];
    while let Some(name) = open.pop() {
        if let Some(dependencies) = graph.get(&name)
            && seen.insert(name)
        {
            open.extend(dependencies.iter().cloned());
        }
    }
    seen
}

/// Neither the broker nor the aggregator may reach anything of the hospital side, or a DICOM crate; nor the reverse.
fn hospital_and_centre(graph: &Graph, violations: &mut Vec<String>) {
    let hospital = [
        "medinet-appliance",
        "medinet-pacs",
        "medinet-objects",
        "medinet-deident",
        "medinet-imaging",
        "medinet-dataset",
        "medinet-training",
        "medinet-uplink",
        "medinet-secure",
    ];
    let centre =
        ["medinet-broker", "medinet-aggregator", "medinet-rounds", "medinet-robust", "medinet-store"];
    for (side, other) in [(&centre[..], &hospital[..]), (&hospital[..], &centre[..])] {
        for name in side {
            for reached in reach(graph, name) {
                if other.contains(&reached.as_str()) {
                    violations.push(format!("{name} reaches {reached} across the hospital's wall"));
                }
            }
        }
    }
    for name in centre {
        for reached in reach(graph, name) {
            let dicom = graph.get(&reached).into_iter().flatten().find(|d| d.starts_with("dicom-"));
            if let Some(dicom) = dicom {
                violations.push(format!("{name} reaches {dicom} through {reached}"));
            }
        }
    }
}

fn core_is_pure(packages: &[serde_json::Value], graph: &Graph, violations: &mut Vec<String>) -> Result<()> {
    for name in CORE {
        for forbidden in NOT_IN_CORE {
            if graph.get(*name).is_some_and(|d| d.contains(*forbidden)) {
                violations.push(format!("{name} is a core crate and depends on {forbidden}"));
            }
        }
        for_each_source(&sources_of(packages, name)?, &mut |path, text| {
            for word in NOT_IN_CORE_SOURCES {
                if production(path, text).contains(word) {
                    violations.push(format!("{}: a core crate uses {word}", path.display()));
                }
            }
        })?;
    }
    Ok(())
}

/// Only pacs and deident may name `Identified`, and tests.
fn identified_stays(violations: &mut Vec<String>) -> Result<()> {
    for folder in ["crates", "appliance", "aggregator", "broker", "cli", "lab", "study", "e2e"] {
        for_each_source(&root().join(folder), &mut |path, text| {
            let text_path = path.to_string_lossy();
            let allowed = text_path.contains("/crates/pacs/") || text_path.contains("/crates/deident/");
            if !allowed && names(production(path, text), &["Identified"]) {
                violations.push(format!("{}: names Identified; only pacs and deident may", path.display()));
            }
        })?;
    }
    Ok(())
}

/// Only `medinet-objects` may open DICOM bytes by the library's own readers, and tests.
fn dicom_is_opened_with_limits(violations: &mut Vec<String>) -> Result<()> {
    for folder in ["crates", "appliance", "aggregator", "broker", "cli", "lab", "study", "e2e"] {
        for_each_source(&root().join(folder), &mut |path, text| {
            let allowed = path.to_string_lossy().contains("/crates/objects/");
            if !allowed && let Some(reader) = unbounded_reader(production(path, text)) {
                violations.push(format!("{}: uses {reader}; use medinet_objects::read", path.display()));
            }
        })?;
    }
    Ok(())
}

/// The first of [`UNBOUNDED_READERS`] that stands in `text` outside whole-line comments.
fn unbounded_reader(text: &str) -> Option<&'static str> {
    let code: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    UNBOUNDED_READERS.iter().copied().find(|reader| code.iter().any(|line| line.contains(reader)))
}

/// Modules called `fuzzing` show private decoders to tests and to the targets in `fuzz/`, and to nobody else.
fn hooks_are_for_tests(violations: &mut Vec<String>) -> Result<()> {
    for folder in ["crates", "appliance", "aggregator", "broker", "cli", "lab", "study", "e2e"] {
        for_each_source(&root().join(folder), &mut |path, text| {
            if uses_hook(production(path, text)) {
                violations.push(format!("{}: uses a crate's `fuzzing`; only tests may", path.display()));
            }
        })?;
    }
    Ok(())
}

/// Whether `text` names a module `fuzzing`, other than to declare it.
fn uses_hook(text: &str) -> bool {
    let lines: Vec<&str> = text.lines().filter(|line| line.trim() != "pub mod fuzzing;").collect();
    names(&lines.join("\n"), &["fuzzing"])
}

/// The ways around a rule are for tests: no source that can reach one may name it.
fn escapes_are_not_used(
    packages: &[serde_json::Value],
    graph: &Graph,
    violations: &mut Vec<String>,
) -> Result<()> {
    for name in graph.keys().filter(|name| is_near_escape(graph, name)) {
        for_each_source(&sources_of(packages, name)?, &mut |path, text| {
            if names(production(path, text), &["dangerous", "Dangerous"]) {
                violations.push(format!("{}: uses a dangerous interface; only tests may", path.display()));
            }
        })?;
    }
    Ok(())
}

/// Whether a crate can reach one with an escape and is none itself.
fn is_near_escape(graph: &Graph, name: &str) -> bool {
    !WITH_ESCAPE.contains(&name)
        && reach(graph, name).iter().any(|reached| WITH_ESCAPE.contains(&reached.as_str()))
}

/// Whether one of `words` stands in `text` outside whole-line comments.
fn names(text: &str, words: &[&str]) -> bool {
    text.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .flat_map(|line| line.split(|c: char| !c.is_alphanumeric() && c != '_'))
        .any(|word| words.contains(&word))
}

/// What of a source file goes into the product: nothing of tests, and of others what stands before their tests, which are last.
fn production<'a>(path: &Path, text: &'a str) -> &'a str {
    let inside = path.strip_prefix(root()).unwrap_or(path);
    let is_test = inside.components().any(|part| part.as_os_str() == "tests")
        || inside
            .file_stem()
            .is_some_and(|stem| stem == "tests" || stem.to_string_lossy().ends_with("_tests"));
    if is_test {
        return "";
    }
    text.find("#[cfg(test)]\nmod tests {").map_or(text, |tests| &text[..tests])
}

/// The folder of a package's sources.
fn sources_of(packages: &[serde_json::Value], name: &str) -> Result<PathBuf> {
    let manifest = packages
        .iter()
        .find(|package| package["name"] == *name)
        .and_then(|package| package["manifest_path"].as_str())
        .with_context(|| format!("no package {name}"))?;
    Ok(Path::new(manifest).parent().context("a manifest lies in a folder")?.join("src"))
}

fn for_each_source(folder: &Path, visit: &mut dyn FnMut(&Path, &str)) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            if path.file_name().is_some_and(|n| n != "target") {
                for_each_source(&path, visit)?;
            }
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text =
                fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            visit(&path, &text);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(edges: &[(&str, &[&str])]) -> Graph {
        edges
            .iter()
            .map(|(name, deps)| ((*name).to_owned(), deps.iter().map(|d| (*d).to_owned()).collect()))
            .collect()
    }

    #[test]
    fn a_foreign_owner_is_found() {
        let mut violations = Vec::new();
        sensitive_dependencies(&graph(&[("medinet-cli", &["burn"])]), &mut violations);
        assert_eq!(violations.len(), 1);
    }

    #[test]
    fn a_hole_in_the_wall_is_found_through_others() {
        let mut violations = Vec::new();
        let edges = graph(&[
            ("medinet-aggregator", &["medinet-model"]),
            ("medinet-model", &["medinet-imaging"]),
            ("medinet-imaging", &["dicom-object"]),
        ]);
        hospital_and_centre(&edges, &mut violations);
        assert_eq!(violations.len(), 2, "{violations:?}");
    }

    #[test]
    fn a_dangerous_call_is_found_wherever_it_stands() {
        for code in [
            "let reader = client.dangerous();",
            "client\n    .dangerous()\n    .search_studies(&[])",
            "DicomWebClient::dangerous(&client)",
            "use medinet_inference::{Model, dangerous};",
            "fn read(reader: Dangerous<'_>) {}",
        ] {
            assert!(names(code, &["dangerous", "Dangerous"]), "{code}");
        }
        for code in
            ["// never call dangerous()", "    /// As [`Dangerous::search_studies`].", "fn dangerously() {}"]
        {
            assert!(!names(code, &["dangerous", "Dangerous"]), "{code}");
        }
    }

    #[test]
    fn a_reader_without_limits_is_found() {
        let code = "fn open() {\n    let object = dicom_object::open_file(path)?;\n}\n";
        assert_eq!(unbounded_reader(code), Some("dicom_object::open_file"));
        assert_eq!(unbounded_reader("/// Not as `dicom_object::open_file` does.\n"), None);
    }

    #[test]
    fn a_used_hook_is_found() {
        for code in [
            "let uid = medinet_pacs::fuzzing::sop_instance_uid(file);",
            "use medinet_pacs::{fuzzing, Intake};",
        ] {
            assert!(uses_hook(code), "{code}");
        }
        assert!(!uses_hook("#[doc(hidden)]\npub mod fuzzing;\n// For fuzzing.\n"));
    }

    #[test]
    fn only_who_can_reach_an_escape_is_asked_about_it() {
        let edges = graph(&[
            ("medinet-pacs", &["medinet-deident", "reqwest"]),
            ("medinet-deident", &[]),
            ("medinet-identity", &["rustls"]),
            ("medinet-appliance", &["medinet-pacs", "medinet-identity"]),
            ("medinet-hub", &["medinet-appliance"]),
        ]);
        let near: Vec<&str> =
            edges.keys().map(String::as_str).filter(|name| is_near_escape(&edges, name)).collect();
        assert_eq!(near, ["medinet-appliance", "medinet-hub"]);
    }

    #[test]
    fn tests_are_not_production() {
        let file = |name: &str| root().join("appliance/src").join(name);
        let text =
            "fn a() {}\n#[cfg(test)]\nmod tests;\nfn b() {}\n#[cfg(test)]\nmod tests {\nfn c() {}\n}\n";
        let kept = production(&file("lib.rs"), text);
        assert!(kept.contains("fn b") && !kept.contains("fn c"), "{kept}");
        for test in ["tests.rs", "settings_tests.rs", "../tests/intake.rs"] {
            assert_eq!(production(&file(test), text), "", "{test}");
        }
        assert_eq!(production(&file("attests.rs"), "x"), "x");
    }
}
