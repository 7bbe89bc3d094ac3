//! Installing what the demo and the tests need: Debian packages, and Python packages in a private environment.

use crate::shell::{cargo, output, root, run, say};
use anyhow::{Context as _, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Debian packages of the demo.
const DEMO_PACKAGES: &[&str] = &["orthanc", "orthanc-dicomweb", "dcmtk", "python3-venv", "cmake", "g++"];
/// Debian packages that a GPU needs beside those: the Vulkan loader, and drivers of most GPUs. NVIDIA's comes with its own
/// driver. Among Mesa's is a software adapter, on which the tests compute.
const GPU_PACKAGES: &[&str] = &["libvulkan1", "mesa-vulkan-drivers"];
/// Debian packages that tests need beside those.
const TEST_PACKAGES: &[&str] =
    &["nginx-light", "mosquitto", "mosquitto-clients", "chromium", "tesseract-ocr", "openssl"];
/// Debian packages of the foreign programs that `medinet bench` compares with.
const BENCH_PACKAGES: &[&str] = &["python3-venv"];
/// The version of cargo-deny that `deny.toml` is written for.
const CARGO_DENY: &str = "0.20.2";

/// What the demo needs, on a GPU if it is to compute there.
pub(crate) fn demo(gpu: bool) -> Result<()> {
    debian_packages(&demo_packages(gpu))?;
    python_packages(&venv(), &["requirements-demo.txt"])
}

fn demo_packages(gpu: bool) -> Vec<&'static str> {
    if gpu { [DEMO_PACKAGES, GPU_PACKAGES].concat() } else { DEMO_PACKAGES.to_vec() }
}

/// What the demo and the tests need.
pub(crate) fn everything() -> Result<()> {
    let packages = [DEMO_PACKAGES, GPU_PACKAGES, TEST_PACKAGES].concat();
    debian_packages(&packages)?;
    python_packages(&venv(), &["requirements-demo.txt", "requirements-test.txt"])?;
    cargo_deny()
}

/// What `medinet bench` compares with. In an environment of its own: these packages are large, and no test needs them.
pub(crate) fn bench() -> Result<()> {
    debian_packages(BENCH_PACKAGES)?;
    python_packages(&bench_venv(), &["requirements-bench.txt"])
}

/// The private Python environment.
pub(crate) fn venv() -> PathBuf {
    std::env::var_os("MEDINET_VENV").map_or_else(|| root().join(".venv"), PathBuf::from)
}

/// The private Python environment of the foreign programs that `medinet bench` compares with.
fn bench_venv() -> PathBuf {
    std::env::var_os("MEDINET_BENCH_VENV").map_or_else(|| root().join(".venv-bench"), PathBuf::from)
}

fn debian_packages(packages: &[&str]) -> Result<()> {
    let missing: Vec<&str> = packages.iter().copied().filter(|p| !is_installed(p)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    say(format!("installing Debian packages: {}", missing.join(" ")));
    // Installed as tools: none of these packages' own services is to start on this machine.
    let script = "export DEBIAN_FRONTEND=noninteractive; \
        if [ ! -e /usr/sbin/policy-rc.d ]; then trap 'rm -f /usr/sbin/policy-rc.d' EXIT; \
        printf '#!/bin/sh\\nexit 101\\n' >/usr/sbin/policy-rc.d; chmod +x /usr/sbin/policy-rc.d; fi; \
        apt-get update -qq && apt-get install -y -qq --no-install-recommends \"$@\"";
    let am_root = output(Command::new("id").arg("-u"))?.trim() == "0";
    let mut command = if am_root { Command::new("sh") } else { Command::new("sudo") };
    if !am_root {
        command.arg("sh");
    }
    command.args(["-c", script, "apt"]).args(&missing);
    run(&mut command)
        .context("the Debian packages could not be installed: check the network and apt's sources")
}

fn is_installed(package: &str) -> bool {
    output(Command::new("dpkg-query").args(["-W", "-f=${Status}", package]))
        .is_ok_and(|status| status == "install ok installed")
}

fn python_packages(venv: &Path, files: &[&str]) -> Result<()> {
    let wanted: String = files
        .iter()
        .map(|file| fs::read_to_string(root().join(file)).with_context(|| format!("cannot read {file}")))
        .collect::<Result<_>>()?;
    let stamp = venv.join(format!("installed-{}", files.join("+")));
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    say(format!("installing Python packages of {} into {}", files.join(" and "), venv.display()));
    if !venv.join("bin/python").exists() {
        run(Command::new("python3").args(["-m", "venv"]).arg(venv))?;
    }
    let mut pip = Command::new(venv.join("bin/pip"));
    pip.args(["install", "--quiet", "--disable-pip-version-check"]);
    for file in files {
        pip.args(["-r", file]);
    }
    run(&mut pip)?;
    fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))
}

fn cargo_deny() -> Result<()> {
    let installed = output(&mut cargo(&["deny", "--version"])).unwrap_or_default();
    if installed.trim() == format!("cargo-deny {CARGO_DENY}") {
        return Ok(());
    }
    say(format!("installing cargo-deny {CARGO_DENY}"));
    // A tool that only reads manifests: compiled fast rather than optimised.
    run(cargo(&["install", "--quiet", "--locked", "--version", CARGO_DENY, "cargo-deny"])
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0")
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "false"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_demo_on_a_gpu_gets_what_finds_one() {
        let missing = |gpu| GPU_PACKAGES.iter().any(|package| !demo_packages(gpu).contains(package));
        assert!(missing(false) && !missing(true));
        assert!(DEMO_PACKAGES.iter().all(|package| demo_packages(true).contains(package)));
    }
}
