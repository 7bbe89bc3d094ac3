//! `medinet ca`: the federation's certificate authority.

use crate::common::{Party, Terms, day, days, now, role};
use anyhow::Context as _;
use clap::{Args, Subcommand};
use medinet_identity::{Authority, DEFAULT_CRL_VALIDITY, Issue, Issued, Serial, Target, write_public};
use medinet_types::{Role, SiteId, UnixMillis};
use std::io::Write;
use std::path::{Path, PathBuf};

/// See the variants.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Makes a new authority: its key, its certificate and an empty revocation list.
    Init(Init),
    /// Signs a party's request, when it is of whom you approve.
    Sign(Sign),
    /// Revokes one certificate, or all of a party, and renews the revocation list.
    Revoke(Revoke),
    /// Lists every certificate that was issued.
    List(List),
    /// Renews the revocation list without a change, before it ends.
    Crl(Crl),
}

/// Makes a new authority.
#[derive(Args)]
pub(crate) struct Init {
    /// The folder to make it in.
    dir: PathBuf,
    /// The authority's name, as it stands in its certificate.
    #[arg(long)]
    name: String,
    /// For how many days its certificate is valid.
    #[arg(long, default_value_t = 3650, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    days: u32,
}

/// Signs a request.
#[derive(Args)]
pub(crate) struct Sign {
    /// The authority's folder.
    #[arg(long)]
    ca: PathBuf,
    /// The request, as `medinet identity new` made it.
    #[arg(long)]
    csr: PathBuf,
    #[command(flatten)]
    party: Party,
    #[command(flatten)]
    terms: Terms,
    /// Where to write the certificate; beside the request, as certificate.pem, when not given.
    #[arg(long)]
    out: Option<PathBuf>,
}

/// Revokes certificates.
#[derive(Args)]
#[command(group = clap::ArgGroup::new("target").required(true).args(["serial", "name"]))]
pub(crate) struct Revoke {
    /// The authority's folder.
    #[arg(long)]
    ca: PathBuf,
    /// The certificate's serial number.
    #[arg(long)]
    serial: Option<Serial>,
    /// The party's role; every valid certificate of the party is revoked.
    #[arg(long, requires = "name", value_parser = role)]
    role: Option<Role>,
    /// The party's name.
    #[arg(long, requires = "role")]
    name: Option<SiteId>,
}

/// Lists certificates.
#[derive(Args)]
pub(crate) struct List {
    /// The authority's folder.
    #[arg(long)]
    ca: PathBuf,
    /// As JSON, for programs; times in milliseconds since 1970.
    #[arg(long)]
    json: bool,
}

/// Renews the revocation list.
#[derive(Args)]
pub(crate) struct Crl {
    /// The authority's folder.
    #[arg(long)]
    ca: PathBuf,
    /// For how many days the new list may be relied on.
    #[arg(long, default_value_t = default_crl_days(), value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,
}

fn default_crl_days() -> u32 {
    u32::try_from(DEFAULT_CRL_VALIDITY.as_secs() / 86_400).unwrap_or(u32::MAX)
}

pub(crate) fn run(command: Command, out: &mut dyn Write) -> anyhow::Result<()> {
    match command {
        Command::Init(args) => init(&args, out),
        Command::Sign(args) => sign(&args, out),
        Command::Revoke(args) => revoke(&args, out),
        Command::List(args) => list(&args, out),
        Command::Crl(args) => crl(&args, out),
    }
}

pub(crate) fn open(dir: &Path) -> anyhow::Result<Authority> {
    Authority::open(dir).with_context(|| {
        format!("there is no usable certificate authority in {} (`medinet ca init` makes one)", dir.display())
    })
}

fn init(args: &Init, out: &mut dyn Write) -> anyhow::Result<()> {
    let now = now()?;
    let authority = Authority::create(&args.dir, &args.name, days(args.days), now)?;
    writeln!(
        out,
        "made the certificate authority {:?}, valid until {}\n  \
         trusted by every party:  {}\n  \
         revocation list:         {}, to be renewed before {}\n  \
         keep secret and back up: {}",
        args.name,
        day(now.after(days(args.days))),
        authority.certificate_path().display(),
        authority.crl_path().display(),
        day(now.after(DEFAULT_CRL_VALIDITY)),
        args.dir.join("ca.key").display(),
    )?;
    Ok(())
}

fn sign(args: &Sign, out: &mut dyn Write) -> anyhow::Result<()> {
    let request = std::fs::read_to_string(&args.csr)
        .with_context(|| format!("cannot read the request {}", args.csr.display()))?;
    let target = match &args.out {
        Some(path) => path.clone(),
        None => args.csr.with_file_name("certificate.pem"),
    };
    let authority = open(&args.ca)?;
    let principal = args.party.principal();
    let issue = Issue {
        csr_pem: &request,
        principal: &principal,
        hosts: &args.terms.hosts(),
        validity: args.terms.validity(),
    };
    let (certificate, entry) = authority.issue(&issue, now()?)?;
    write_public(&target, &certificate)?;
    writeln!(out, "{}\n  certificate: {}", issued_line(&entry), target.display())?;
    writeln!(
        out,
        "  the party also needs {} and {}",
        authority.certificate_path().display(),
        authority.crl_path().display()
    )?;
    Ok(())
}

pub(crate) fn issued_line(entry: &Issued) -> String {
    let hosts: Vec<String> = entry.hosts.iter().map(ToString::to_string).collect();
    let at = if hosts.is_empty() { String::new() } else { format!(" at {}", hosts.join(", ")) };
    format!(
        "issued a certificate to {}{at}, valid until {}, serial {}",
        entry.principal,
        day(entry.not_after),
        entry.serial
    )
}

fn revoke(args: &Revoke, out: &mut dyn Write) -> anyhow::Result<()> {
    let target = match (args.serial, args.role, &args.name) {
        (Some(serial), _, _) => Target::Serial(serial),
        (None, Some(role), Some(name)) => {
            Target::Principal(medinet_types::Principal::new(role, name.clone()))
        }
        _ => anyhow::bail!("expected --serial, or --role and --name"),
    };
    let authority = open(&args.ca)?;
    for entry in authority.revoke(&target, now()?)? {
        writeln!(out, "revoked the certificate of {}, serial {}", entry.principal, entry.serial)?;
    }
    writeln!(out, "  give the new revocation list to every party: {}", authority.crl_path().display())?;
    Ok(())
}

fn state(entry: &Issued, now: UnixMillis) -> String {
    match entry.revoked_at {
        Some(at) => format!("revoked {}", day(at)),
        None if now > entry.not_after => "ended".into(),
        None => "valid".into(),
    }
}

fn list(args: &List, out: &mut dyn Write) -> anyhow::Result<()> {
    let issued = open(&args.ca)?.issued()?;
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&issued)?)?;
        return Ok(());
    }
    let now = now()?;
    let rows: Vec<[String; 5]> = issued
        .iter()
        .map(|entry| {
            let hosts: Vec<String> = entry.hosts.iter().map(ToString::to_string).collect();
            let serial = entry.serial.to_string();
            [entry.principal.to_string(), state(entry, now), day(entry.not_after), serial, hosts.join(" ")]
        })
        .collect();
    let header = ["PARTY", "STATE", "UNTIL", "SERIAL", "SERVER NAMES"].map(str::to_owned);
    let table: Vec<&[String; 5]> = std::iter::once(&header).chain(&rows).collect();
    let width = |column: usize| table.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths = [width(0), width(1), width(2), width(3)];
    for [party, state, until, serial, hosts] in table {
        let line = format!(
            "{party:0$}  {state:1$}  {until:2$}  {serial:3$}  {hosts}",
            widths[0], widths[1], widths[2], widths[3]
        );
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

fn crl(args: &Crl, out: &mut dyn Write) -> anyhow::Result<()> {
    let validity = days(args.days);
    let authority = open(&args.ca)?.with_crl_validity(validity);
    let now = now()?;
    authority.renew_crl(now)?;
    writeln!(
        out,
        "renewed the revocation list until {}\n  give it to every party: {}",
        day(now.after(validity)),
        authority.crl_path().display()
    )?;
    Ok(())
}
