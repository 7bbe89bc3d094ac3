//! The architecture's rules that no compiler checks: who may depend on what, who may name what.
//!
//! DESIGN's "never" list, as far as it can be read off manifests and sources.

use crate::shell::{cargo, output, root};
use anyhow::{Context as _, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Crates that must stay free of I/O, clocks and system randomness.
const CORE: &[&str] = &[
    "medinet-types",
    "medinet-wire",
    "medinet-model",
    "medinet-update",
    "medinet-secagg",
    "medinet-ledger",
    "medinet-metrics",
    "medinet-rounds",
];
/// What core crates may not depend on directly, whatever for.
const NOT_IN_CORE: &[&str] = &["tokio", "rusqlite", "reqwest", "rumqttc", "rumqttd", "rand", "getrandom", "rustls"];
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
];

/// Checks all rules and reports every violation at once.
pub(crate) fn check() -> Result<()> {
    let metadata: serde_json::Value =
        serde_json::from_str(&output(&mut cargo(&["metadata", "--format-version", "1", "--locked", "--no-deps"]))?)
            .context("cargo metadata printed something else than JSON")?;
    let packages = metadata["packages"].as_array().context("cargo metadata has no packages")?;
    let graph = direct_dependencies(packages);
    let mut violations = Vec::new();
    sensitive_dependencies(&graph, &mut violations);
    hospital_and_centre(&graph, &mut violations);
    core_is_pure(packages, &graph, &mut violations)?;
    identified_stays(&mut violations)?;
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
        "medinet-deident",
        "medinet-imaging",
        "medinet-dataset",
        "medinet-training",
        "medinet-uplink",
    ];
    let centre = ["medinet-broker", "medinet-aggregator", "medinet-rounds", "medinet-store"];
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
        let manifest = packages
            .iter()
            .find(|p| p["name"] == *name)
            .and_then(|p| p["manifest_path"].as_str())
            .with_context(|| format!("no package {name}"))?;
        let sources = Path::new(manifest).parent().context("a manifest lies in a folder")?.join("src");
        for_each_source(&sources, &mut |path, text| {
            let production = text.split("#[cfg(test)]").next().unwrap_or_default();
            for word in NOT_IN_CORE_SOURCES {
                if production.contains(word) {
                    violations.push(format!("{}: a core crate uses {word}", path.display()));
                }
            }
        })?;
    }
    Ok(())
}

/// Only pacs and deident may name `Identified`.
fn identified_stays(violations: &mut Vec<String>) -> Result<()> {
    for folder in ["crates", "appliance", "aggregator", "broker", "cli"] {
        for_each_source(&root().join(folder), &mut |path, text| {
            let text_path = path.to_string_lossy();
            let allowed = text_path.contains("/crates/pacs/") || text_path.contains("/crates/deident/");
            let names_it = text
                .split(|c: char| !c.is_alphanumeric() && c != '_')
                .any(|word| word == "Identified");
            let commented_only = text
                .lines()
                .filter(|l| l.split(|c: char| !c.is_alphanumeric() && c != '_').any(|w| w == "Identified"))
                .all(|l| l.trim_start().starts_with("//"));
            if names_it && !commented_only && !allowed {
                violations.push(format!("{}: names Identified; only pacs and deident may", path.display()));
            }
        })?;
    }
    Ok(())
}

fn for_each_source(folder: &Path, visit: &mut dyn FnMut(&Path, &str)) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            if path.file_name().is_some_and(|n| n != "target") {
                for_each_source(&path, visit)?;
            }
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
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
}
