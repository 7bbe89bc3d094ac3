//! `medinet identity`: this machine's key and request.

use crate::common::{Party, private_folder};
use clap::{Args, Subcommand};
use medinet_identity::{new_key_and_csr, write_private, write_public};
use std::io::Write;
use std::path::PathBuf;

/// See the variants.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Makes a new key, which never leaves this machine, and a request to send to the federation's authority.
    New(New),
}

/// Makes a key and a request.
#[derive(Args)]
pub(crate) struct New {
    #[command(flatten)]
    party: Party,
    /// The folder for key.pem and request.csr.
    #[arg(long)]
    out: PathBuf,
}

pub(crate) fn run(command: Command, out: &mut dyn Write) -> anyhow::Result<()> {
    match command {
        Command::New(args) => new(&args, out),
    }
}

fn new(args: &New, out: &mut dyn Write) -> anyhow::Result<()> {
    let key_path = args.out.join("key.pem");
    let request_path = args.out.join("request.csr");
    anyhow::ensure!(
        !key_path.exists(),
        "expected no key in {}, got one: a party keeps its key; move it away to make a new one",
        args.out.display()
    );
    let principal = args.party.principal();
    let (key, request) = new_key_and_csr(&principal)?;
    private_folder(&args.out)?;
    write_private(&key_path, &key)?;
    write_public(&request_path, &request)?;
    writeln!(
        out,
        "made a key and a request for {principal}\n  \
         stays on this machine:     {}\n  \
         send to the authority:     {}\n  \
         the authority then runs:   medinet ca sign --ca DIR --csr request.csr --role {} --name {}{}",
        key_path.display(),
        request_path.display(),
        principal.role,
        principal.name,
        if principal.role == medinet_types::Role::Broker { " --dns HOST" } else { "" },
    )?;
    Ok(())
}
