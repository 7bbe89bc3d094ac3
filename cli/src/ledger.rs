//! `medinet ledger`: a copy of the ledger, verified and read without any server.

use crate::common::{day, ledger_key};
use anyhow::Context as _;
use clap::Subcommand;
use medinet_ledger::directory::read_log;
use medinet_ledger::{Checkpoint, LedgerPublicKey, LogFiles, Record, verify_log};
use medinet_types::FederationId;
use std::io::Write;
use std::path::{Path, PathBuf};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Recomputes everything in a copy of the ledger and says what is proven, or exactly what was altered.
    ///
    /// Exit status: 0 when all holds, 1 when something was altered or the copy cannot be read.
    Verify(VerifyArgs),
    /// One line for each record, as it stands in the file; `verify` tells whether that is what was signed.
    Show(ShowArgs),
    /// Prints a ledger key as the verifier key of C2SP signed notes, for other tools that verify checkpoints.
    Key(KeyArgs),
}

#[derive(clap::Args)]
pub(crate) struct KeyArgs {
    /// The public key of the federation's ledger, as the aggregator writes it to ledger.pub.
    #[arg(long)]
    key: PathBuf,
    /// The federation's name.
    #[arg(long)]
    federation: FederationId,
}

impl KeyArgs {
    fn load(&self) -> anyhow::Result<LedgerPublicKey> {
        ledger_key(&self.key, &self.federation)
    }
}

#[derive(clap::Args)]
pub(crate) struct VerifyArgs {
    /// The folder with entries.log, leaves, checkpoint and checkpoints/.
    folder: PathBuf,
    #[command(flatten)]
    key: KeyArgs,
    /// A checkpoint that was kept from an earlier time: proves that nothing before it was rewritten since.
    #[arg(long)]
    older: Option<PathBuf>,
}

#[derive(clap::Args)]
pub(crate) struct ShowArgs {
    /// The folder with entries.log.
    folder: PathBuf,
}

pub(crate) fn run(command: Command, out: &mut dyn Write) -> anyhow::Result<()> {
    match command {
        Command::Verify(args) => verify(&args, out),
        Command::Show(args) => show(&args, out),
        Command::Key(args) => Ok(writeln!(out, "{}", args.load()?)?),
    }
}

fn verify(args: &VerifyArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let key = args.key.load()?;
    let older = args.older.as_deref().map(|path| older_checkpoint(path, &key)).transpose()?;
    let report = verify_log(&read(&args.folder)?, &key, older.as_ref());
    writeln!(out, "{report}")?;
    if report.is_verified() {
        if let Some(older) = older {
            writeln!(out, "continues the checkpoint at {} entries in --older", older.size)?;
        }
        return Ok(());
    }
    out.flush()?;
    let folder = args.folder.display();
    match report.findings.len() {
        0 => anyhow::bail!("nothing in {folder} is signed by this key: is it the ledger's key?"),
        1 => anyhow::bail!("the ledger in {folder} was altered, see the line above"),
        n => anyhow::bail!("the ledger in {folder} was altered in {n} places, see the lines above"),
    }
}

fn older_checkpoint(path: &Path, key: &LedgerPublicKey) -> anyhow::Result<Checkpoint> {
    let note = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let signed = key.verify(&note).with_context(|| {
        format!("expected an older checkpoint signed by this ledger in {}", path.display())
    })?;
    Ok(signed.checkpoint().clone())
}

fn read(folder: &Path) -> anyhow::Result<LogFiles> {
    read_log(folder).with_context(|| {
        format!("expected a ledger (entries.log, leaves, checkpoint) in {}, cannot read it", folder.display())
    })
}

fn show(args: &ShowArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let files = read(&args.folder)?;
    let (mut index, mut shown) = (0u64, 0);
    for entry in files.iter() {
        match Record::decode(entry) {
            Ok(record) => writeln!(out, "{index:>6}  {}  {}", day(record.at), record.summary())?,
            Err(error) => writeln!(out, "{index:>6}  unreadable: {error}")?,
        }
        index += 1;
        // Each stands behind its length.
        shown += 4 + entry.len();
    }
    anyhow::ensure!(
        shown == files.entries.len(),
        "entry {index} is cut short or damaged: run `medinet ledger verify`"
    );
    Ok(())
}
