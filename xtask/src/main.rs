//! The two commands of the README: `cargo xtask demo` and `cargo xtask test`.
//!
//! Each says what it is about to install, installs it, and runs. Nothing else is needed on a fresh Debian 12
//! machine with Rust (rustfmt and clippy too), root or sudo, and the package registries.

mod demo;
mod rules;
mod setup;
mod shell;
mod test;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Runs MediNet's demo and its tests, installing what they need")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Three hospitals train one model on real chest X-rays, end to end.
    Demo(demo::Arguments),
    /// Everything that CI runs: format, lints, docs, dependency rules, all tests.
    Test(test::Arguments),
    /// Installs what the demo and the tests need, and nothing else.
    Setup {
        /// Installs what `medinet bench` compares with instead: PyTorch, Opacus and Flower, into .venv-bench.
        #[arg(long)]
        bench: bool,
    },
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Test(arguments) => test::run(&arguments),
        Command::Setup { bench: false } => setup::everything(),
        Command::Setup { bench: true } => setup::bench(),
    }
}
