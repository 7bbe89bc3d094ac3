//! The same rules for Mosquitto 2, for a fleet that wants it in the broker's place.
//!
//! Mosquitto takes the common name of a client's certificate as its user name (`use_identity_as_username`), which the
//! authority keeps unique over all roles; each party gets rules of its own, made from the same membership table.
//!
//! Three things differ, because Mosquitto 2 has no setting for them: a publish that is refused is acknowledged and
//! dropped, a filter that is too wide is accepted and delivers only what the rules allow, and rates are not limited.

use crate::settings::BrokerSettings;
use medinet_types::{FederationId, SiteId};
use medinet_wire::MAX_MESSAGE_BYTES;
use medinet_wire::topic::{Filter, Lane, Topic};
use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};

/// The two files that Mosquitto reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MosquittoFiles {
    /// `mosquitto.conf`. Its paths are those of the settings, relative to the folder that Mosquitto is started in.
    pub conf: String,
    /// The rules, `acl`.
    pub acl: String,
}

/// Mosquitto's files for `settings`; `acl_path` is where it will find the rules.
#[must_use]
pub fn files(settings: &BrokerSettings, acl_path: &str) -> MosquittoFiles {
    MosquittoFiles { conf: conf(settings, acl_path), acl: acl(settings) }
}

fn conf(settings: &BrokerSettings, acl_path: &str) -> String {
    let identity = &settings.identity;
    let limits = &settings.connections;
    let queue = settings.queues.up_per_site.0.max(settings.queues.down_per_site.0);
    let crl = match &identity.crl {
        Some(crl) => format!("crlfile {}\n", crl.display()),
        None => String::new(),
    };
    format!(
        "# Mosquitto 2 in the place of MediNet's broker: the same parties, certificates and topic rules.\n\
         # Made from broker.toml by `medinet-broker --config broker.toml --mosquitto <folder>`; paths are relative to\n\
         # the folder in which `mosquitto -c mosquitto.conf` is started. Started by root it becomes the user mosquitto, who has\n\
         # to be able to read them, the key too. Tell it of a new revocation list with SIGHUP.\n\
         \n\
         listener {port} {address}\n\
         cafile {ca}\n\
         certfile {certificate}\n\
         keyfile {key}\n\
         {crl}\
         tls_version tlsv1.2\n\
         require_certificate true\n\
         use_identity_as_username true\n\
         allow_anonymous false\n\
         acl_file {acl_path}\n\
         \n\
         # Bytes of payload: the protocol's largest message.\n\
         message_size_limit {MAX_MESSAGE_BYTES}\n\
         max_connections {max_connections}\n\
         # Seconds.\n\
         max_keepalive {max_keepalive}\n\
         max_inflight_messages {max_inflight}\n\
         # Rounds are made of short messages: none waits for the receipt of the one before.\n\
         set_tcp_nodelay true\n\
         # Bytes and messages that wait for one client.\n\
         max_queued_bytes {queue}\n\
         max_queued_messages 1000\n\
         # What is retained is published again by its owner; sessions are clean.\n\
         persistence false\n\
         sys_interval 0\n\
         log_type error\n\
         log_type warning\n\
         log_type notice\n",
        port = settings.listen.port(),
        address = settings.listen.ip(),
        ca = identity.ca.display(),
        certificate = identity.certificate.display(),
        key = identity.key.display(),
        max_connections = limits.max_connections,
        max_keepalive = limits.max_silence.get().as_secs().clamp(10, 65_535),
        max_inflight = limits.max_inflight,
    )
}

fn acl(settings: &BrokerSettings) -> String {
    let mut rules: BTreeMap<&SiteId, Vec<String>> = BTreeMap::new();
    for federation in &settings.federations {
        let id = || federation.id.clone();
        for site in &federation.sites {
            let party = rules.entry(site).or_default();
            party.push(write(&open_last(&Topic::Up(id(), site.clone(), Lane::Message))));
            party.push(write(&Topic::SiteStatus(id(), site.clone())));
            party.push(read(&Filter::Broadcasts(id())));
            party.push(read(&Filter::Down(id(), site.clone())));
        }
        let party = rules.entry(&federation.aggregator).or_default();
        party.push(write(&Filter::Broadcasts(id())));
        party.extend(federation.sites.iter().map(|site| write(&Filter::Down(id(), site.clone()))));
        party.extend(fleet(id(), [Filter::AllUp, Filter::AllSiteStatus]));
        for operator in &federation.operators {
            let party = rules.entry(operator).or_default();
            party.extend(fleet(id(), [Filter::Broadcasts, Filter::AllSiteStatus]));
        }
    }
    let mut text = String::from(
        "# Who may publish (write) and hear (read) what; made from broker.toml with mosquitto.conf beside it.\n",
    );
    for (name, rules) in rules {
        // Writing to a String cannot fail.
        let _ = write!(text, "\nuser {name}\n{}", rules.concat());
    }
    text
}

fn fleet(federation: FederationId, filters: [fn(FederationId) -> Filter; 2]) -> Vec<String> {
    filters.iter().map(|filter| read(&filter(federation.clone()))).collect()
}

/// A topic with its last level open.
fn open_last(topic: &Topic) -> String {
    let text = topic.to_string();
    text.rsplit_once('/').map_or_else(String::new, |(front, _)| format!("{front}/+"))
}

fn write(filter: &impl Display) -> String {
    format!("topic write {filter}\n")
}

fn read(filter: &Filter) -> String {
    format!("topic read {filter}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The files in config/mosquitto belong to the sample settings.
    #[test]
    fn the_samples_are_up_to_date() {
        let settings: BrokerSettings =
            medinet_settings::parse(include_str!("../../config/broker.toml"), "broker.toml").unwrap();
        let files = files(&settings, "acl");
        assert_eq!(files.conf, include_str!("../../config/mosquitto/mosquitto.conf"));
        assert_eq!(files.acl, include_str!("../../config/mosquitto/acl"));
    }
}
