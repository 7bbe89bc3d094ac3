//! Everything that CI runs, in the order of what fails fastest.

use crate::shell::{self, cargo, root, say};
use crate::{rules, setup};
use anyhow::Result;
use std::time::Instant;

/// A folder with real DICOM files beside those that pydicom brings along; where it is not set, the folder shared/data/dicom beside the
/// checkout if there is one. `none` says that there are none.
const REAL_FILES: &str = "MEDINET_REAL_DICOM";

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Skips installing; for repeated runs on a machine that has everything.
    #[arg(long)]
    no_setup: bool,
}

pub(crate) fn run_step(name: &str, step: impl FnOnce() -> Result<()>) -> Result<()> {
    say(name);
    let start = Instant::now();
    step()?;
    say(format!("{name}: ok after {} s", start.elapsed().as_secs()));
    Ok(())
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if !arguments.no_setup {
        run_step("setup", setup::everything)?;
    }
    run_step("format", || run_cargo(&["fmt", "--all", "--check"]))?;
    run_step("architecture rules", rules::check)?;
    if is_without_real_files() {
        say(format!("no folder with further real DICOM files: those of pydicom alone ({REAL_FILES}=none)"));
    }
    run_step("dependencies", || run_cargo(&["deny", "--workspace", "check", "bans", "licenses", "sources"]))?;
    run_step("lints", || {
        run_cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"])
    })?;
    run_step("documentation", || {
        shell::run(
            cargo(&["doc", "--workspace", "--no-deps", "--locked", "--document-private-items"])
                .env("RUSTDOCFLAGS", "-D warnings"),
        )
    })?;
    run_step("tests", || run_cargo(&["test", "--workspace", "--locked", "--no-fail-fast"]))
}

fn run_cargo(arguments: &[&str]) -> Result<()> {
    let mut command = cargo(arguments);
    command.env("MEDINET_VENV", setup::venv());
    if is_without_real_files() {
        command.env(REAL_FILES, "none");
    }
    shell::run(&mut command)
}

/// Whether nobody named real files and no folder shared/data/dicom is beside the checkout, as in a fresh clone.
fn is_without_real_files() -> bool {
    std::env::var_os(REAL_FILES).is_none() && !root().join("../shared/data/dicom").is_dir()
}
