//! Who may say and hear what: a pure function of the membership table, a principal and a topic.
//!
//! | role | publishes | subscribes to | last will |
//! | --- | --- | --- | --- |
//! | site X | `site/X/up/<lane>`, `site/X/status` | `agg/+` or one broadcast, `site/X/down/+` or one lane | `site/X/status` |
//! | aggregator | `agg/<broadcast>`, `site/<member>/down/<lane>` | `site/+/up/+`, `site/+/status`, or those of one member | `agg/status` |
//! | operator | nothing | `agg/+` or one broadcast, `site/+/status` or that of one member | none |
//! | broker | nothing | nothing | none |
//!
//! All below `medinet/v1/<federation>/`, and only in federations whose entry names the principal. No other wildcard
//! exists: `#`, `$SYS/...` and `$share/...` are refused because they parse as no MediNet topic. Retained messages are
//! for `agg/...` and `status` alone, so that nothing on a lane is kept for later readers.

use crate::settings::FederationMembers;
use medinet_types::{FederationId, Principal, Role, SiteId};
use medinet_wire::topic::{Broadcast, Lane, Topic};
use std::collections::{BTreeSet, HashMap};

/// Why something is refused; the client misbehaved, or the membership table lacks it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not a topic of MediNet.
    #[error("expected a MediNet topic without wildcards but the single levels that the role may leave open")]
    NotATopic,
    /// The federation's entry does not name the principal, or the topic names a site that is no member.
    #[error(
        "expected a member of federation {0}: add it to [[federation]] in the broker's settings if it should be"
    )]
    NotAMember(FederationId),
    /// Outside what the role may do.
    #[error(
        "the role {0} does not allow this on that topic: check the client's certificate, and the table in broker/src/acl.rs of what each role may do"
    )]
    Role(Role),
    /// A retained message on a lane.
    #[error("expected a message that is not retained: only agg/... and status are")]
    Retained,
}

struct Members {
    sites: BTreeSet<SiteId>,
    aggregator: SiteId,
    operators: BTreeSet<SiteId>,
}

/// The federations that the broker serves, and who belongs to each.
pub struct Membership {
    federations: HashMap<FederationId, Members>,
}

/// A subscription that is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    /// The filters to subscribe to on the principal's behalf: `site/+` stands as one filter per member, so that each
    /// site's messages wait in a queue of their own and a site that floods pushes out nobody else's.
    pub expanded: Vec<String>,
}

impl Membership {
    /// The table that `federations` describes.
    #[must_use]
    pub fn new(federations: &[FederationMembers]) -> Self {
        let members = |f: &FederationMembers| Members {
            sites: f.sites.iter().cloned().collect(),
            aggregator: f.aggregator.clone(),
            operators: f.operators.iter().cloned().collect(),
        };
        Self { federations: federations.iter().map(|f| (f.id.clone(), members(f))).collect() }
    }

    /// Whether any federation names the principal; one that none names has no business here.
    #[must_use]
    pub fn knows(&self, principal: &Principal) -> bool {
        self.federations.values().any(|members| members.names(principal))
    }

    /// May `principal` publish to `topic`?
    ///
    /// # Errors
    /// Says why not.
    pub fn publish(&self, principal: &Principal, topic: &str, retain: bool) -> Result<(), Refusal> {
        let topic: Topic = topic.parse().map_err(|_| Refusal::NotATopic)?;
        let members = self.members(principal, federation_of(&topic))?;
        let (allowed, may_retain) = match (principal.role, &topic) {
            (Role::Site, Topic::Up(_, site, _)) => (*site == principal.name, false),
            (Role::Site, Topic::SiteStatus(_, site)) => (*site == principal.name, true),
            (Role::Aggregator, Topic::Broadcast(..)) => (true, true),
            (Role::Aggregator, Topic::Down(federation, site, _)) => {
                members.site(federation, site)?;
                (true, false)
            }
            _ => (false, false),
        };
        match (allowed, retain && !may_retain) {
            (true, false) => Ok(()),
            (true, true) => Err(Refusal::Retained),
            (false, _) => Err(Refusal::Role(principal.role)),
        }
    }

    /// May `principal` leave a last will on `topic`?
    ///
    /// # Errors
    /// Says why not.
    pub fn will(&self, principal: &Principal, topic: &str) -> Result<(), Refusal> {
        let parsed: Topic = topic.parse().map_err(|_| Refusal::NotATopic)?;
        match parsed {
            Topic::SiteStatus(..) | Topic::Broadcast(_, Broadcast::Status) => {
                self.publish(principal, topic, true)
            }
            Topic::Broadcast(..) | Topic::Up(..) | Topic::Down(..) => {
                self.members(principal, federation_of(&parsed))?;
                Err(Refusal::Role(principal.role))
            }
        }
    }

    /// May `principal` subscribe to `filter`?
    ///
    /// # Errors
    /// Says why not.
    pub fn subscribe(&self, principal: &Principal, filter: &str) -> Result<Subscription, Refusal> {
        let open = OpenTopic::parse(filter).ok_or(Refusal::NotATopic)?;
        let federation = federation_of(&open.topic);
        let members = self.members(principal, federation)?;
        let fixed_site = |site: &SiteId| {
            if open.any_site { Ok(()) } else { members.site(federation, site) }
        };
        let allowed = match (principal.role, &open.topic) {
            (Role::Site | Role::Operator, Topic::Broadcast(..)) => true,
            (Role::Site, Topic::Down(_, site, _)) => !open.any_site && *site == principal.name,
            (Role::Aggregator, Topic::Up(_, site, _))
            | (Role::Aggregator | Role::Operator, Topic::SiteStatus(_, site)) => {
                fixed_site(site)?;
                true
            }
            _ => false,
        };
        if !allowed {
            return Err(Refusal::Role(principal.role));
        }
        let expanded = match open.any_site {
            true => members.sites.iter().map(|site| open.filter(Some(site))).collect(),
            false => vec![open.filter(None)],
        };
        Ok(Subscription { expanded })
    }

    fn members(&self, principal: &Principal, federation: &FederationId) -> Result<&Members, Refusal> {
        self.federations
            .get(federation)
            .filter(|members| members.names(principal))
            .ok_or_else(|| Refusal::NotAMember(federation.clone()))
    }
}

impl Members {
    fn names(&self, principal: &Principal) -> bool {
        match principal.role {
            Role::Site => self.sites.contains(&principal.name),
            Role::Aggregator => self.aggregator == principal.name,
            Role::Operator => self.operators.contains(&principal.name),
            Role::Broker => false,
        }
    }

    fn site(&self, federation: &FederationId, site: &SiteId) -> Result<(), Refusal> {
        if self.sites.contains(site) { Ok(()) } else { Err(Refusal::NotAMember(federation.clone())) }
    }
}

fn federation_of(topic: &Topic) -> &FederationId {
    match topic {
        Topic::Broadcast(federation, _)
        | Topic::Up(federation, ..)
        | Topic::Down(federation, ..)
        | Topic::SiteStatus(federation, _) => federation,
    }
}

/// A filter as a concrete topic and what is left open in it.
struct OpenTopic {
    topic: Topic,
    any_site: bool,
    any_last: bool,
}

impl OpenTopic {
    /// Puts a sample where a single-level wildcard may stand and lets [`Topic`] judge the rest.
    fn parse(filter: &str) -> Option<Self> {
        let mut levels: Vec<&str> = filter.split('/').take(9).collect();
        let (mut any_site, mut any_last) = (false, false);
        let last = levels.len().checked_sub(1)?;
        match (levels.get(3).copied(), last) {
            (Some("agg"), 4) if levels[4] == "+" => {
                any_last = true;
                levels[4] = "status";
            }
            (Some("site"), 5 | 6) => {
                if levels[4] == "+" {
                    any_site = true;
                    levels[4] = "any";
                }
                if last == 6 && levels[6] == "+" {
                    any_last = true;
                    levels[6] = "msg";
                }
            }
            _ => {}
        }
        let topic = levels.join("/").parse().ok()?;
        Some(Self { topic, any_site, any_last })
    }

    fn filter(&self, site: Option<&SiteId>) -> String {
        let mut topic = self.topic.clone();
        if let (Some(site), Topic::Up(_, at, _) | Topic::Down(_, at, _) | Topic::SiteStatus(_, at)) =
            (site, &mut topic)
        {
            *at = site.clone();
        }
        let mut text = topic.to_string();
        if self.any_last
            && let Some(cut) = text.rfind('/')
        {
            text.replace_range(cut + 1.., "+");
        }
        text
    }
}

/// Every filter that a principal could be subscribed to after expansion, by kind; the queues are sized from these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueKind {
    /// From one site to the aggregator.
    Up,
    /// From the aggregator to one site.
    Down,
    /// From the aggregator to everyone.
    Broadcast,
    /// The state of one site.
    Status,
}

impl QueueKind {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::Up, Self::Down, Self::Broadcast, Self::Status];

    /// A filter, with federation, site and last level open, that covers every expanded filter of this kind.
    #[must_use]
    pub fn pattern(self) -> String {
        let federation = FederationId::new("any").expect("three lower-case letters are a name");
        let site = SiteId::new("any").expect("three lower-case letters are a name");
        let topic = match self {
            Self::Up => Topic::Up(federation, site, Lane::Message),
            Self::Down => Topic::Down(federation, site, Lane::Message),
            Self::Broadcast => Topic::Broadcast(federation, Broadcast::Status),
            Self::Status => Topic::SiteStatus(federation, site),
        };
        let text = topic.to_string();
        let mut levels: Vec<&str> = text.split('/').collect();
        levels[2] = "+";
        match self {
            Self::Up | Self::Down => (levels[4], levels[6]) = ("+", "+"),
            Self::Broadcast => levels[4] = "+",
            Self::Status => levels[4] = "+",
        }
        levels.join("/")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> SiteId {
        SiteId::new(text).unwrap()
    }

    fn membership() -> Membership {
        let entry = |id: &str, sites: &[&str], aggregator: &str, operators: &[&str]| FederationMembers {
            id: FederationId::new(id).unwrap(),
            sites: sites.iter().map(|s| name(s)).collect(),
            aggregator: name(aggregator),
            operators: operators.iter().map(|s| name(s)).collect(),
        };
        Membership::new(&[
            entry("chest", &["north", "south"], "hub", &["ops"]),
            entry("brain", &["south", "west"], "hub-two", &[]),
        ])
    }

    fn who(text: &str) -> Principal {
        let (role, holder) = text.split_once(':').unwrap();
        Principal::new(role.parse().unwrap(), name(holder))
    }

    fn topic(text: &str) -> String {
        text.replace("C/", "medinet/v1/chest/").replace("B/", "medinet/v1/brain/")
    }

    #[test]
    fn publishing_table() {
        let table: &[(&str, &str, bool, bool)] = &[
            // who, topic, retained, allowed
            ("site:north", "C/site/north/up/msg", false, true),
            ("site:north", "C/site/north/up/chunk", false, true),
            ("site:north", "C/site/north/status", true, true),
            ("site:north", "C/site/north/status", false, true),
            ("site:north", "C/site/north/up/msg", true, false),
            ("site:north", "C/site/north/up/other", false, false),
            ("site:north", "C/site/south/up/msg", false, false),
            ("site:north", "C/site/south/status", false, false),
            ("site:north", "C/site/north/down/msg", false, false),
            ("site:north", "C/agg/announce", false, false),
            ("site:north", "C/agg/status", false, false),
            ("site:north", "B/site/north/up/msg", false, false),
            ("site:south", "B/site/south/up/msg", false, true),
            ("site:west", "C/site/west/up/msg", false, false),
            ("site:north", "$SYS/broker/version", false, false),
            ("site:north", "other/topic", false, false),
            ("site:hub", "C/agg/announce", false, false),
            ("aggregator:hub", "C/agg/announce", true, true),
            ("aggregator:hub", "C/agg/release", true, true),
            ("aggregator:hub", "C/agg/checkpoint", true, true),
            ("aggregator:hub", "C/agg/status", true, true),
            ("aggregator:hub", "C/agg/other", true, false),
            ("aggregator:hub", "C/site/north/down/msg", false, true),
            ("aggregator:hub", "C/site/south/down/chunk", false, true),
            ("aggregator:hub", "C/site/south/down/chunk", true, false),
            ("aggregator:hub", "C/site/west/down/msg", false, false),
            ("aggregator:hub", "C/site/north/up/msg", false, false),
            ("aggregator:hub", "C/site/north/status", false, false),
            ("aggregator:hub", "B/agg/announce", true, false),
            ("aggregator:hub-two", "B/agg/announce", true, true),
            ("aggregator:north", "C/site/north/up/msg", false, false),
            ("operator:ops", "C/agg/status", false, false),
            ("operator:ops", "C/site/north/status", false, false),
            ("operator:ops", "C/site/ops/up/msg", false, false),
            ("broker:north", "C/site/north/up/msg", false, false),
            ("broker:hub", "C/agg/announce", false, false),
        ];
        for (principal, text, retain, allowed) in table {
            let got = membership().publish(&who(principal), &topic(text), *retain);
            assert_eq!(got.is_ok(), *allowed, "{principal} {text} retain={retain}: {got:?}");
        }
    }

    #[test]
    fn will_table() {
        let table: &[(&str, &str, bool)] = &[
            ("site:north", "C/site/north/status", true),
            ("site:north", "C/site/south/status", false),
            ("site:north", "C/site/north/up/msg", false),
            ("site:north", "C/agg/status", false),
            ("site:north", "B/site/north/status", false),
            ("aggregator:hub", "C/agg/status", true),
            ("aggregator:hub", "C/agg/announce", false),
            ("aggregator:hub", "C/site/north/down/msg", false),
            ("aggregator:hub", "B/agg/status", false),
            ("operator:ops", "C/agg/status", false),
            ("broker:hub", "C/agg/status", false),
            ("site:north", "anything", false),
        ];
        for (principal, text, allowed) in table {
            let got = membership().will(&who(principal), &topic(text));
            assert_eq!(got.is_ok(), *allowed, "{principal} {text}: {got:?}");
        }
    }

    #[test]
    fn subscribing_table() {
        let table: &[(&str, &str, bool)] = &[
            ("site:north", "C/agg/+", true),
            ("site:north", "C/agg/announce", true),
            ("site:north", "C/agg/release", true),
            ("site:north", "C/agg/checkpoint", true),
            ("site:north", "C/agg/status", true),
            ("site:north", "C/site/north/down/+", true),
            ("site:north", "C/site/north/down/msg", true),
            ("site:north", "C/site/north/down/chunk", true),
            ("site:north", "C/site/+/down/+", false),
            ("site:north", "C/site/south/down/+", false),
            ("site:north", "C/site/north/up/+", false),
            ("site:north", "C/site/north/status", false),
            ("site:north", "C/site/+/status", false),
            ("site:north", "B/agg/+", false),
            ("site:north", "medinet/v1/+/agg/+", false),
            ("site:north", "#", false),
            ("site:north", "+/#", false),
            ("site:north", "medinet/#", false),
            ("site:north", "C/#", false),
            ("site:north", "C/agg/#", false),
            ("site:north", "C/site/north/+/+", false),
            ("site:north", "C/site/north/+", false),
            ("site:north", "C/+/+", false),
            ("site:north", "$SYS/#", false),
            ("site:north", "$SYS/broker/clients", false),
            ("site:north", "$share/group/medinet/v1/chest/agg/+", false),
            ("site:north", "C/agg/+/", false),
            ("site:north", "/medinet/v1/chest/agg/+", false),
            ("aggregator:hub", "C/site/+/up/+", true),
            ("aggregator:hub", "C/site/+/up/msg", true),
            ("aggregator:hub", "C/site/north/up/+", true),
            ("aggregator:hub", "C/site/north/up/chunk", true),
            ("aggregator:hub", "C/site/+/status", true),
            ("aggregator:hub", "C/site/south/status", true),
            ("aggregator:hub", "C/site/west/up/+", false),
            ("aggregator:hub", "C/site/+/down/+", false),
            ("aggregator:hub", "C/agg/+", false),
            ("aggregator:hub", "B/site/+/up/+", false),
            ("aggregator:hub", "C/site/+/#", false),
            ("aggregator:hub", "$share/g/medinet/v1/chest/site/+/up/+", false),
            ("operator:ops", "C/agg/+", true),
            ("operator:ops", "C/agg/status", true),
            ("operator:ops", "C/site/+/status", true),
            ("operator:ops", "C/site/north/status", true),
            ("operator:ops", "C/site/west/status", false),
            ("operator:ops", "C/site/+/up/+", false),
            ("operator:ops", "C/site/north/down/+", false),
            ("operator:ops", "B/agg/+", false),
            ("broker:north", "C/agg/+", false),
            ("broker:north", "C/site/north/down/+", false),
        ];
        for (principal, text, allowed) in table {
            let got = membership().subscribe(&who(principal), &topic(text));
            assert_eq!(got.is_ok(), *allowed, "{principal} {text}: {got:?}");
        }
    }

    #[test]
    fn an_open_site_stands_for_each_member() {
        let expanded = |principal: &str, text: &str| {
            membership().subscribe(&who(principal), &topic(text)).unwrap().expanded
        };
        assert_eq!(
            expanded("aggregator:hub", "C/site/+/up/+"),
            [topic("C/site/north/up/+"), topic("C/site/south/up/+")]
        );
        assert_eq!(
            expanded("operator:ops", "C/site/+/status"),
            [topic("C/site/north/status"), topic("C/site/south/status")]
        );
        assert_eq!(expanded("site:north", "C/agg/+"), [topic("C/agg/+")]);
        assert_eq!(expanded("site:north", "C/site/north/down/msg"), [topic("C/site/north/down/msg")]);
    }

    #[test]
    fn only_principals_of_some_federation_are_known() {
        for (principal, known) in [
            ("site:north", true),
            ("site:west", true),
            ("aggregator:hub-two", true),
            ("operator:ops", true),
            ("site:ops", false),
            ("aggregator:north", false),
            ("operator:north", false),
            ("broker:hub", false),
        ] {
            assert_eq!(membership().knows(&who(principal)), known, "{principal}");
        }
    }

    #[test]
    fn queue_patterns_cover_the_filters_of_their_kind() {
        let covers =
            |kind: QueueKind, filter: &str| rumqttd::protocol::matches(&topic(filter), &kind.pattern());
        assert!(covers(QueueKind::Up, "C/site/north/up/+"));
        assert!(covers(QueueKind::Up, "B/site/south/up/chunk"));
        assert!(covers(QueueKind::Down, "C/site/north/down/+"));
        assert!(covers(QueueKind::Broadcast, "C/agg/+"));
        assert!(covers(QueueKind::Status, "C/site/north/status"));
        assert!(!covers(QueueKind::Up, "C/site/north/down/+"));
        assert!(!covers(QueueKind::Broadcast, "C/site/north/status"));
    }
}
