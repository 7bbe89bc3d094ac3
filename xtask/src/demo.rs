//! The demo: sets up, builds, and hands over to `medinet demo`.

use crate::setup;
use crate::shell::{self, cargo, say};
use anyhow::{Context as _, Result};
use std::process::Command;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Arguments of `medinet demo`, such as --sites, --rounds, --seed, --gpu, --keep; `cargo xtask demo -- --help` lists them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

pub(crate) fn run_demo_binary(arguments: &[String]) -> Result<()> {
    // Beside this program, wherever the target folder is.
    let own = std::env::current_exe().context("this program's own file is gone")?;
    let mut command = Command::new(own.with_file_name("medinet"));
    command.arg("demo").args(arguments).env("MEDINET_VENV", setup::venv());
    shell::run(&mut command)
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    setup::demo(arguments.rest.iter().any(|argument| argument == "--gpu"))?;
    say("building (the first time takes a while: a deep-learning framework and a GPU compiler are in it)");
    shell::run(&mut cargo(&["build", "--workspace", "--bins", "--locked"]))?;
    run_demo_binary(&arguments.rest)
}
