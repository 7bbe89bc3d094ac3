//! The broker's settings: one TOML file, sample in `config/broker.toml`.

use crate::acl::QueueKind;
use medinet_identity::IdentityFiles;
use medinet_settings::{Check, Rules};
use medinet_telemetry::{LogFilter, LogFormat};
use medinet_types::{ByteCount, FederationId, HumanDuration, Role, SiteId};
use medinet_wire::MAX_MESSAGE_BYTES;
use medinet_wire::blob::{MAX_CHUNK_BYTES, MAX_WANTED_CHUNKS};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

/// Room for a packet's topic and MQTT header beside the largest message of the protocol, in bytes.
const PACKET_HEADROOM: u64 = 1024;
/// Twice what one receiver asks for at once: a request may be repeated before its answer is read.
const LEAST_LANE_QUEUE: u64 = 2 * MAX_WANTED_CHUNKS as u64 * MAX_CHUNK_BYTES as u64;
/// Room for the broadcasts of a day and more.
const LEAST_QUEUE: u64 = 2 * MAX_MESSAGE_BYTES as u64;

/// Everything that the broker can be told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BrokerSettings {
    /// Address and TCP port to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The broker's certificate and key, the authorities and their revocation lists.
    pub identity: IdentityFiles,
    /// The federations that are served, and who belongs to each.
    #[serde(rename = "federation")]
    pub federations: Vec<FederationMembers>,
    /// What holds for every connection.
    #[serde(default)]
    pub connections: ConnectionLimits,
    /// What holds for each principal, by role.
    #[serde(default)]
    pub limits: Limits,
    /// How much waits in memory for subscribers.
    #[serde(default)]
    pub queues: Queues,
    /// What the program logs.
    #[serde(default)]
    pub log: LogSettings,
}

/// What the program logs, on standard error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LogSettings {
    /// How lines look.
    pub format: LogFormat,
    /// Which lines.
    pub filter: LogFilter,
}

impl Default for LogSettings {
    fn default() -> Self {
        // The router calls it an error when a client reconnects or hangs up; the front door says what matters.
        Self { format: LogFormat::default(), filter: LogFilter::default().silencing("rumqttd") }
    }
}

/// One federation's entry in the membership table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FederationMembers {
    /// Its name, as it stands in topics.
    pub id: FederationId,
    /// The names of its sites, as they stand in their certificates.
    pub sites: Vec<SiteId>,
    /// The name of its aggregator.
    #[serde(default = "default_aggregator")]
    pub aggregator: SiteId,
    /// The names of its operators.
    #[serde(default)]
    pub operators: Vec<SiteId>,
}

fn default_aggregator() -> SiteId {
    SiteId::new("aggregator").expect("ten lower-case letters are a name")
}

/// What holds for every connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConnectionLimits {
    /// Connections of all principals together.
    pub max_connections: usize,
    /// Connections that have not finished their TLS handshake, all addresses together.
    pub max_handshakes: usize,
    /// The same for one address.
    pub max_handshakes_per_address: usize,
    /// How long a TLS handshake may take.
    pub handshake_timeout: HumanDuration,
    /// How long the CONNECT packet may take after that.
    pub connect_timeout: HumanDuration,
    /// How long a packet that has begun may take to arrive.
    pub packet_timeout: HumanDuration,
    /// How long a client may take no byte of what waits for it.
    pub write_timeout: HumanDuration,
    /// Silence after which a connection ends, however long a keep-alive the client asked for.
    pub max_silence: HumanDuration,
    /// The largest MQTT packet, fixed header not counted.
    pub max_packet: ByteCount,
    /// Publishes of one connection that the broker works on at a time; further ones wait unread.
    pub max_inflight: usize,
    /// How often the revocation list's file is looked at, and certificates of standing connections are checked again.
    pub revocation_check: HumanDuration,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        let seconds = |s| HumanDuration(Duration::from_secs(s));
        Self {
            max_connections: 1024,
            max_handshakes: 512,
            max_handshakes_per_address: 32,
            handshake_timeout: seconds(10),
            connect_timeout: seconds(10),
            packet_timeout: seconds(60),
            write_timeout: seconds(30),
            max_silence: seconds(600),
            max_packet: ByteCount(MAX_MESSAGE_BYTES as u64 + PACKET_HEADROOM),
            max_inflight: 32,
            revocation_check: seconds(5),
        }
    }
}

/// What holds for each principal, by role.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// For each site.
    pub site: SiteLimits,
    /// For each aggregator.
    pub aggregator: AggregatorLimits,
    /// For each operator.
    pub operator: OperatorLimits,
}

macro_rules! role_limits {
    ($(#[$doc:meta])* $name:ident: $connections:literal, $messages:literal, $bytes:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default)]
        pub struct $name {
            /// Connections at a time; also how many sessions are kept while their client is away.
            pub max_connections: usize,
            /// Packets a second over all its connections; up to one second's worth may come at once.
            pub packets_per_second: u32,
            /// Bytes a second over all its connections, likewise.
            pub bytes_per_second: ByteCount,
        }

        impl Default for $name {
            fn default() -> Self {
                Self {
                    max_connections: $connections,
                    packets_per_second: $messages,
                    bytes_per_second: ByteCount($bytes),
                }
            }
        }

        impl From<$name> for PrincipalLimits {
            fn from(limits: $name) -> Self {
                let $name { max_connections, packets_per_second, bytes_per_second } = limits;
                Self { max_connections, packets_per_second, bytes_per_second }
            }
        }
    };
}

role_limits! {
    /// Limits of one site.
    SiteLimits: 4, 500, 32 << 20
}
role_limits! {
    /// Limits of one aggregator.
    AggregatorLimits: 4, 10_000, 512 << 20
}
role_limits! {
    /// Limits of one operator.
    OperatorLimits: 16, 50, 256 << 10
}

/// Limits of one principal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrincipalLimits {
    /// Connections at a time; also how many sessions are kept while their client is away.
    pub max_connections: usize,
    /// Packets a second.
    pub packets_per_second: u32,
    /// Bytes a second.
    pub bytes_per_second: ByteCount,
}

impl Limits {
    /// The limits of a principal of `role`; a broker has no business here and gets an operator's.
    #[must_use]
    pub fn of(&self, role: Role) -> PrincipalLimits {
        match role {
            Role::Site => self.site.into(),
            Role::Aggregator => self.aggregator.into(),
            Role::Operator | Role::Broker => self.operator.into(),
        }
    }
}

/// How much waits in memory for subscribers. A queue keeps its newest messages, delivered or not; a subscriber that
/// falls further behind than its queue is long loses the oldest, with any quality of service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Queues {
    /// What one site sends to its aggregator.
    pub up_per_site: ByteCount,
    /// What the aggregator sends to one site.
    pub down_per_site: ByteCount,
    /// What the aggregator sends to everyone, per federation.
    pub broadcast: ByteCount,
    /// The states of one site.
    pub status_per_site: ByteCount,
}

impl Default for Queues {
    fn default() -> Self {
        Self {
            up_per_site: ByteCount(16 << 20),
            down_per_site: ByteCount(16 << 20),
            broadcast: ByteCount(4 << 20),
            status_per_site: ByteCount(1 << 20),
        }
    }
}

impl Queues {
    /// The length of a queue.
    #[must_use]
    pub fn of(&self, kind: QueueKind) -> ByteCount {
        match kind {
            QueueKind::Up => self.up_per_site,
            QueueKind::Down => self.down_per_site,
            QueueKind::Broadcast => self.broadcast,
            QueueKind::Status => self.status_per_site,
        }
    }
}

impl BrokerSettings {
    /// What full queues hold in payloads and topics, in bytes, when each principal subscribes with the filters that
    /// leave the last level open, as MediNet's own programs do. Small messages cost several times their size.
    #[must_use]
    pub fn queue_memory(&self) -> ByteCount {
        let Queues { up_per_site, down_per_site, broadcast, status_per_site } = self.queues;
        let per_site = up_per_site.0 + down_per_site.0 + status_per_site.0;
        let federation = |f: &FederationMembers| broadcast.0 + f.sites.len() as u64 * per_site;
        ByteCount(self.federations.iter().map(federation).sum())
    }
}

impl Check for BrokerSettings {
    fn check(&self, rules: &mut Rules) {
        rules.expect(!self.federations.is_empty(), "federation", "at least one [[federation]]", "none");
        let mut seen = HashSet::new();
        for (index, federation) in self.federations.iter().enumerate() {
            let key = format!("federation[{index}].id");
            rules.expect(seen.insert(&federation.id), &key, "a name of its own", &federation.id);
        }
        rules.within_each("federation", &self.federations);
        rules.within("connections", &self.connections);
        rules.within("queues", &self.queues);
        for (key, limits) in [
            ("limits.site", self.limits.of(Role::Site)),
            ("limits.aggregator", self.limits.of(Role::Aggregator)),
            ("limits.operator", self.limits.of(Role::Operator)),
        ] {
            rules.within(key, &limits);
        }
    }
}

impl Check for FederationMembers {
    fn check(&self, rules: &mut Rules) {
        rules.expect(!self.sites.is_empty(), "sites", "at least one site", "none");
        for (key, names) in [("sites", &self.sites), ("operators", &self.operators)] {
            let mut seen = HashSet::new();
            for (index, name) in names.iter().enumerate() {
                rules.expect(seen.insert(name), &format!("{key}[{index}]"), "each name once", name);
            }
        }
    }
}

impl Check for ConnectionLimits {
    fn check(&self, rules: &mut Rules) {
        for (key, value) in [
            ("max_connections", self.max_connections),
            ("max_handshakes", self.max_handshakes),
            ("max_handshakes_per_address", self.max_handshakes_per_address),
        ] {
            rules.expect((1..=100_000).contains(&value), key, "1 to 100000", value);
        }
        rules.expect((1..=1000).contains(&self.max_inflight), "max_inflight", "1 to 1000", self.max_inflight);
        let (shortest, longest) = (Duration::from_millis(100), Duration::from_secs(86_400));
        for (key, value) in [
            ("handshake_timeout", self.handshake_timeout),
            ("connect_timeout", self.connect_timeout),
            ("packet_timeout", self.packet_timeout),
            ("write_timeout", self.write_timeout),
            ("max_silence", self.max_silence),
            ("revocation_check", self.revocation_check),
        ] {
            rules.expect((shortest..=longest).contains(&value.get()), key, "100 ms to 1 d", value);
        }
        let least = ByteCount(MAX_MESSAGE_BYTES as u64 + PACKET_HEADROOM);
        let most = ByteCount(16 << 20);
        rules.expect(
            (least..=most).contains(&self.max_packet),
            "max_packet",
            format!("{least} (the protocol's largest message) to {most}"),
            self.max_packet,
        );
    }
}

impl Check for PrincipalLimits {
    fn check(&self, rules: &mut Rules) {
        let Self { max_connections, packets_per_second, bytes_per_second } = *self;
        rules.expect((1..=1000).contains(&max_connections), "max_connections", "1 to 1000", max_connections);
        rules.expect(packets_per_second > 0, "packets_per_second", "at least 1", packets_per_second);
        rules.expect(bytes_per_second.0 >= 1024, "bytes_per_second", "at least 1 KiB", bytes_per_second);
    }
}

impl Check for Queues {
    fn check(&self, rules: &mut Rules) {
        let most = ByteCount(16 << 30);
        for (key, value, least) in [
            ("up_per_site", self.up_per_site, LEAST_LANE_QUEUE),
            ("down_per_site", self.down_per_site, LEAST_LANE_QUEUE),
            ("broadcast", self.broadcast, LEAST_QUEUE),
            ("status_per_site", self.status_per_site, LEAST_QUEUE),
        ] {
            let least = ByteCount(least);
            rules.expect((least..=most).contains(&value), key, format!("{least} to {most}"), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = include_str!("../../config/broker.toml");

    fn parse(text: &str) -> Result<BrokerSettings, String> {
        medinet_settings::parse(text, "broker.toml").map_err(|error| error.to_string())
    }

    #[test]
    fn the_sample_states_every_default() {
        let sample = parse(SAMPLE).unwrap();
        assert_eq!(sample.connections, ConnectionLimits::default());
        assert_eq!(sample.limits, Limits::default());
        assert_eq!(sample.queues, Queues::default());
        assert_eq!(sample.log, LogSettings::default());
        // Nothing that can be set is missing from it.
        let written = toml::Value::try_from(&sample).unwrap();
        let read: toml::Value = toml::from_str(SAMPLE).unwrap();
        fn keys(value: &toml::Value, at: &str, found: &mut Vec<String>) {
            match value {
                toml::Value::Table(table) => {
                    for (key, value) in table {
                        keys(value, &format!("{at}.{key}"), found);
                    }
                }
                toml::Value::Array(items) if items.iter().all(toml::Value::is_table) && !items.is_empty() => {
                    keys(&items[0], at, found);
                }
                _ => found.push(at.to_owned()),
            }
        }
        let (mut of_written, mut of_read) = (Vec::new(), Vec::new());
        keys(&written, "", &mut of_written);
        keys(&read, "", &mut of_read);
        of_written.sort();
        of_read.sort();
        assert_eq!(of_written, of_read);
    }

    #[test]
    fn mistakes_are_refused_with_their_line() {
        let change = |from: &str, to: &str| {
            let text = SAMPLE.replacen(from, to, 1);
            assert_ne!(text, SAMPLE, "{from:?} is not in the sample");
            parse(&text).unwrap_err()
        };
        let line = |needle: &str| 1 + SAMPLE.lines().position(|l| l.starts_with(needle)).unwrap();

        let error = change("max_connections = 1024", "max_connection = 1024");
        assert!(error.starts_with(&format!("broker.toml:{}:", line("max_connections = 1024"))), "{error}");
        let error = change("write_timeout = \"30 s\"", "write_timeout = \"30 KiB\"");
        assert!(error.starts_with(&format!("broker.toml:{}:", line("write_timeout"))), "{error}");
        let error = change("filter = \"info,rumqttd=off\"", "filter = \"medinet=shout\"");
        assert!(error.starts_with(&format!("broker.toml:{}:", line("filter = "))), "{error}");
        let error = change("up_per_site = \"16 MiB\"", "up_per_site = \"1 MiB\"");
        assert!(error.contains("queues.up_per_site: expected 8 MiB to 16 GiB, got 1 MiB"), "{error}");
        let error = change("max_packet = \"321 KiB\"", "max_packet = \"64 KiB\"");
        assert!(error.starts_with(&format!("broker.toml:{}:", line("max_packet"))), "{error}");
        let error = change("\"south\", ", "\"north\", ");
        assert!(error.contains("federation[0].sites[1]: expected each name once"), "{error}");
        change("sites = [", "sites = [] # ");
    }

    #[test]
    fn full_queues_are_counted() {
        let mut settings = parse(SAMPLE).unwrap();
        settings.federations.truncate(1);
        settings.federations[0].sites.truncate(2);
        assert_eq!(settings.queue_memory(), ByteCount((4 + 2 * (16 + 16 + 1)) << 20));
    }
}
