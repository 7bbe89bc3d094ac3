//! What several subcommands share.

use anyhow::Context as _;
use clap::Args;
use medinet_identity::Host;
use medinet_ledger::{LedgerPublicKey, origin_of};
use medinet_types::{FederationId, Principal, Role, SiteId, UnixMillis};
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use time::OffsetDateTime;
use time::macros::format_description;

/// Whose certificate it is about.
#[derive(Args)]
pub(crate) struct Party {
    /// What the party is: site, aggregator, broker or operator.
    #[arg(long, value_parser = role)]
    role: Role,
    /// Its name: 1 to 63 characters a-z, 0-9 and '-'.
    #[arg(long)]
    name: SiteId,
}

impl Party {
    pub(crate) fn principal(&self) -> Principal {
        Principal::new(self.role, self.name.clone())
    }
}

/// What a certificate says beside the party's name.
#[derive(Args)]
pub(crate) struct Terms {
    /// A DNS name under which the broker is reached; repeat for several.
    #[arg(long, value_parser = dns)]
    dns: Vec<Host>,
    /// An IP address under which the broker is reached; repeat for several.
    #[arg(long)]
    ip: Vec<IpAddr>,
    /// For how many days the certificate is valid.
    #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    days: u32,
}

impl Terms {
    pub(crate) fn hosts(&self) -> Vec<Host> {
        self.dns.iter().cloned().chain(self.ip.iter().copied().map(Host::Ip)).collect()
    }

    pub(crate) fn validity(&self) -> Duration {
        days(self.days)
    }
}

pub(crate) fn role(text: &str) -> Result<Role, String> {
    text.parse().map_err(|_| format!("expected site, aggregator, broker or operator, got {text:?}"))
}

fn dns(text: &str) -> Result<Host, String> {
    match text.parse() {
        Ok(Host::Dns(name)) => Ok(Host::Dns(name)),
        Ok(Host::Ip(_)) => Err("expected a DNS name, got an address: use --ip".into()),
        Err(error) => Err(error.to_string()),
    }
}

pub(crate) fn days(days: u32) -> Duration {
    Duration::from_secs(u64::from(days) * 86_400)
}

/// The system's clock.
pub(crate) fn now() -> anyhow::Result<UnixMillis> {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let since = since.context("this machine's clock is before 1970: set it")?;
    Ok(UnixMillis(0).after(since))
}

/// A moment as a day in UTC.
pub(crate) fn day(at: UnixMillis) -> String {
    i64::try_from(at.0 / 1000)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .and_then(|moment| moment.format(format_description!("[year]-[month]-[day]")).ok())
        .unwrap_or_else(|| "never".into())
}

/// Makes a folder that only its owner may enter, where it does not exist.
pub(crate) fn private_folder(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("cannot create the folder {}", path.display()))
}

/// A model that must not run: the exit status is 2, so that scripts tell it from a file that cannot be read.
#[derive(Debug)]
pub(crate) struct Refused {
    /// Its bundle.
    pub(crate) bundle: PathBuf,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the model in {} is refused, nothing was run", self.bundle.display())
    }
}

/// Reads a ledger's public key: 64 hexadecimal digits, as the aggregator writes it, or a signed-note verifier key.
pub(crate) fn ledger_key(path: &Path, federation: &FederationId) -> anyhow::Result<LedgerPublicKey> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let text = text.trim();
    let mut key = [0; 32];
    if hex::decode_to_slice(text, &mut key).is_ok() {
        return Ok(LedgerPublicKey::new(federation, key));
    }
    let key: Option<LedgerPublicKey> = text.parse().ok();
    let key = key.with_context(|| {
        format!("expected a ledger's public key of 64 hexadecimal digits in {}", path.display())
    })?;
    anyhow::ensure!(
        key.origin() == origin_of(federation),
        "expected the ledger key of {}, got that of {}: check --federation",
        origin_of(federation),
        key.origin()
    );
    Ok(key)
}
