//! `medinet enrol`: request and signature in one step, where the authority is on the same machine.

use crate::ca;
use crate::common::{Party, Terms, now, private_folder};
use anyhow::Context as _;
use medinet_identity::{Issue, new_key_and_csr, write_private, write_public};
use std::io::Write;
use std::path::PathBuf;

/// Makes key and certificate of a party at once.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The authority's folder.
    #[arg(long)]
    ca: PathBuf,
    #[command(flatten)]
    party: Party,
    #[command(flatten)]
    terms: Terms,
    /// The folder for key.pem, certificate.pem, ca.pem and crl.pem.
    #[arg(long)]
    out: PathBuf,
}

pub(crate) fn run(args: &Args, out: &mut dyn Write) -> anyhow::Result<()> {
    let authority = ca::open(&args.ca)?;
    let principal = args.party.principal();
    let key_path = args.out.join("key.pem");
    anyhow::ensure!(
        !key_path.exists(),
        "expected no key in {}, got one: choose an empty folder, or move the old identity away",
        args.out.display()
    );
    let (key, request) = new_key_and_csr(&principal)?;
    let hosts = args.terms.hosts();
    let issue =
        Issue { csr_pem: &request, principal: &principal, hosts: &hosts, validity: args.terms.validity() };
    let (certificate, entry) = authority.issue(&issue, now()?)?;
    private_folder(&args.out)?;
    write_private(&key_path, &key)?;
    write_public(&args.out.join("certificate.pem"), &certificate)?;
    write_public(&args.out.join("ca.pem"), authority.certificate_pem())?;
    let list = std::fs::read_to_string(authority.crl_path())
        .with_context(|| format!("cannot read {}", authority.crl_path().display()))?;
    write_public(&args.out.join("crl.pem"), &list)?;
    writeln!(
        out,
        "{}\n  key.pem, certificate.pem, ca.pem and crl.pem are in {}",
        ca::issued_line(&entry),
        args.out.display()
    )?;
    Ok(())
}
