//! A certificate authority, parties, and a broker that runs.

use crate::raw::Raw;
use medinet_broker::settings::{ConnectionLimits, FederationMembers, Limits, LogSettings, Queues};
use medinet_broker::{BrokerSettings, CounterValues, RunningBroker};
use medinet_identity::{
    Authority, Host, Identity, IdentityFiles, Issue, Target, new_key_and_csr, write_private, write_public,
};
use medinet_types::{FederationId, HumanDuration, Principal, Role, SiteId, UnixMillis};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tempfile::TempDir;

/// Longer than anything takes that works; a test that waits this long has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn now() -> UnixMillis {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    UnixMillis(since.as_millis() as u64)
}

pub(crate) fn name(text: &str) -> SiteId {
    SiteId::new(text).unwrap()
}

/// `site:north` and the like.
pub(crate) fn who(text: &str) -> Principal {
    let (role, holder) = text.split_once(':').unwrap();
    Principal::new(role.parse().unwrap(), name(holder))
}

/// `C/...` below federation chest, `B/...` below federation brain.
pub(crate) fn topic(text: &str) -> String {
    text.replacen("C/", "medinet/v1/chest/", 1).replacen("B/", "medinet/v1/brain/", 1)
}

/// A certificate authority and the files of its parties.
pub(crate) struct Parties {
    dir: TempDir,
    pub(crate) authority: Authority,
}

impl Parties {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let year = Duration::from_secs(365 * 86_400);
        let authority = Authority::create(&dir.path().join("ca"), "Test", year, now()).unwrap();
        Self { dir, authority }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The files of `principal`, made when they are first asked for.
    pub(crate) fn files(&self, principal: &str) -> IdentityFiles {
        self.files_valid(principal, Duration::from_secs(86_400))
    }

    pub(crate) fn files_valid(&self, principal: &str, validity: Duration) -> IdentityFiles {
        let dir = self.path().join(principal.replace(':', "-"));
        let files = IdentityFiles {
            certificate: dir.join("certificate.pem"),
            key: dir.join("key.pem"),
            ca: self.authority.certificate_path(),
            crl: Some(self.authority.crl_path()),
        };
        if !dir.exists() {
            std::fs::create_dir(&dir).unwrap();
            let principal = who(principal);
            let (key, csr_pem) = new_key_and_csr(&principal).unwrap();
            let hosts: Vec<Host> = match principal.role {
                Role::Broker => ["127.0.0.1", "localhost"].map(|h| h.parse().unwrap()).into(),
                _ => Vec::new(),
            };
            let issue = Issue { csr_pem: &csr_pem, principal: &principal, hosts: &hosts, validity };
            let (certificate, _) = self.authority.issue(&issue, now()).unwrap();
            write_private(&files.key, &key).unwrap();
            write_public(&files.certificate, &certificate).unwrap();
        }
        files
    }

    pub(crate) fn identity(&self, principal: &str) -> Arc<Identity> {
        Arc::new(Identity::load(&self.files(principal)).unwrap())
    }

    pub(crate) fn revoke(&self, principal: &str) {
        self.authority.revoke(&Target::Principal(who(principal)), now()).unwrap();
    }
}

/// A broker with two federations: chest (north, south, hub, ops) and brain (south, west, hub-two).
pub(crate) struct Fixture {
    pub(crate) parties: Parties,
    pub(crate) broker: RunningBroker,
}

pub(crate) fn federations() -> Vec<FederationMembers> {
    let entry = |id: &str, sites: &[&str], aggregator: &str, operators: &[&str]| FederationMembers {
        id: FederationId::new(id).unwrap(),
        sites: sites.iter().map(|s| name(s)).collect(),
        aggregator: name(aggregator),
        operators: operators.iter().map(|s| name(s)).collect(),
    };
    vec![
        entry("chest", &["north", "south"], "hub", &["ops"]),
        entry("brain", &["south", "west"], "hub-two", &[]),
    ]
}

pub(crate) fn settings(parties: &Parties) -> BrokerSettings {
    BrokerSettings {
        listen: "127.0.0.1:0".parse().unwrap(),
        identity: parties.files("broker:broker"),
        federations: federations(),
        connections: ConnectionLimits {
            revocation_check: HumanDuration(Duration::from_millis(100)),
            ..ConnectionLimits::default()
        },
        limits: Limits::default(),
        queues: Queues::default(),
        log: LogSettings::default(),
    }
}

impl Fixture {
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    pub(crate) fn with(change: impl FnOnce(&mut BrokerSettings)) -> Self {
        let parties = Parties::new();
        let mut settings = settings(&parties);
        change(&mut settings);
        let broker = medinet_broker::start(settings).unwrap();
        Self { parties, broker }
    }

    /// Waits until the broker has counted that.
    pub(crate) async fn until(&self, counted: impl Fn(CounterValues) -> bool) {
        self.until_broker(|broker| counted(broker.counters())).await;
    }

    pub(crate) async fn until_broker(&self, holds: impl Fn(&RunningBroker) -> bool) {
        let holds = async {
            while !holds(&self.broker) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let outcome = tokio::time::timeout(PATIENCE, holds).await;
        assert!(outcome.is_ok(), "{:?}", self.broker.counters());
    }

    pub(crate) fn port(&self) -> u16 {
        self.broker.local_addr().port()
    }

    /// A TLS connection of `principal`.
    pub(crate) async fn raw(&self, principal: &str) -> Raw {
        Raw::open(self.broker.local_addr(), &self.parties.identity(principal)).await.unwrap()
    }

    /// A connection with a clean session.
    pub(crate) async fn client(&self, principal: &str) -> Raw {
        self.client_as(principal, "client", true).await
    }

    pub(crate) async fn client_as(&self, principal: &str, client_id: &str, clean: bool) -> Raw {
        let mut raw = self.raw(principal).await;
        raw.connect(client_id, clean).await;
        raw
    }
}
