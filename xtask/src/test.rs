//! Everything that CI runs, in the order of what fails fastest.

use crate::shell::{self, cargo, say};
use crate::{rules, setup};
use anyhow::Result;
use std::time::Instant;

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
    run_step("tests", || run_cargo(&["test", "--workspace", "--locked", "--no-fail-fast"]))?;
    run_step("lints", || {
        run_cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"])
    })?;
    run_step("documentation", || {
        shell::run(
            cargo(&["doc", "--workspace", "--no-deps", "--locked", "--document-private-items"])
                .env("RUSTDOCFLAGS", "-D warnings"),
        )
    })?;
    run_step("dependencies", || run_cargo(&["deny", "--workspace", "check", "bans", "licenses", "sources"]))
}

fn run_cargo(arguments: &[&str]) -> Result<()> {
    let venv = setup::venv();
    shell::run(cargo(arguments).env("MEDINET_VENV", venv))
}
