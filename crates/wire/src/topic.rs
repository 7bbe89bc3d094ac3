//! MQTT topics: built and parsed here and nowhere else.
//!
//! ```text
//! medinet/v1/<federation>/agg/<broadcast>            retained, aggregator to all
//! medinet/v1/<federation>/site/<site>/up/<lane>      site to aggregator
//! medinet/v1/<federation>/site/<site>/down/<lane>    aggregator to site
//! medinet/v1/<federation>/site/<site>/status         retained, site to operations; last will
//! ```

use medinet_types::{FederationId, SiteId};
use std::fmt;

const ROOT: &str = "medinet";
const VERSION: &str = "v1";

/// A concrete topic.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Topic {
    /// From the aggregator to everyone, retained.
    Broadcast(FederationId, Broadcast),
    /// From a site to the aggregator.
    Up(FederationId, SiteId, Lane),
    /// From the aggregator to one site.
    Down(FederationId, SiteId, Lane),
    /// A site's state, retained, in plain JSON that operators can read.
    SiteStatus(FederationId, SiteId),
}

/// What the aggregator tells everyone; each is one retained message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Broadcast {
    /// The open round's announcement.
    Announce,
    /// The newest released model.
    Release,
    /// The newest ledger checkpoint.
    Checkpoint,
    /// The aggregator's own state, in plain JSON; last will.
    Status,
}

/// The kinds of traffic between a site and the aggregator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Signed envelopes.
    Message,
    /// Chunks of blobs.
    Chunk,
}

impl Broadcast {
    const ALL: [Self; 4] = [Self::Announce, Self::Release, Self::Checkpoint, Self::Status];

    fn as_str(self) -> &'static str {
        match self {
            Self::Announce => "announce",
            Self::Release => "release",
            Self::Checkpoint => "checkpoint",
            Self::Status => "status",
        }
    }
}

impl Lane {
    fn as_str(self) -> &'static str {
        match self {
            Self::Message => "msg",
            Self::Chunk => "chunk",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        match text {
            "msg" => Some(Self::Message),
            "chunk" => Some(Self::Chunk),
            _ => None,
        }
    }
}

/// A topic that MediNet does not use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected a MediNet topic medinet/v1/<federation>/..., got {got:?}")]
pub struct ParseTopicError {
    got: String,
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broadcast(federation, kind) => {
                write!(f, "{ROOT}/{VERSION}/{federation}/agg/{}", kind.as_str())
            }
            Self::Up(federation, site, lane) => {
                write!(f, "{ROOT}/{VERSION}/{federation}/site/{site}/up/{}", lane.as_str())
            }
            Self::Down(federation, site, lane) => {
                write!(f, "{ROOT}/{VERSION}/{federation}/site/{site}/down/{}", lane.as_str())
            }
            Self::SiteStatus(federation, site) => {
                write!(f, "{ROOT}/{VERSION}/{federation}/site/{site}/status")
            }
        }
    }
}

impl std::str::FromStr for Topic {
    type Err = ParseTopicError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || -> Option<Self> {
            let rest = text.strip_prefix("medinet/v1/")?;
            let levels: Vec<&str> = rest.split('/').collect();
            let federation = FederationId::new(*levels.first()?).ok()?;
            match levels[1..] {
                ["agg", kind] => Broadcast::ALL
                    .into_iter()
                    .find(|b| b.as_str() == kind)
                    .map(|b| Self::Broadcast(federation, b)),
                ["site", site, "up", lane] => {
                    Some(Self::Up(federation, SiteId::new(site).ok()?, Lane::parse(lane)?))
                }
                ["site", site, "down", lane] => {
                    Some(Self::Down(federation, SiteId::new(site).ok()?, Lane::parse(lane)?))
                }
                ["site", site, "status"] => Some(Self::SiteStatus(federation, SiteId::new(site).ok()?)),
                _ => None,
            }
        };
        parse().ok_or_else(|| ParseTopicError { got: text.chars().take(120).collect() })
    }
}

/// Subscription filters, one per need of a role.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Filter {
    /// All broadcasts of the aggregator.
    Broadcasts(FederationId),
    /// What is meant for one site.
    Down(FederationId, SiteId),
    /// What all sites send to the aggregator.
    AllUp(FederationId),
    /// The state of all sites.
    AllSiteStatus(FederationId),
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broadcasts(federation) => write!(f, "{ROOT}/{VERSION}/{federation}/agg/+"),
            Self::Down(federation, site) => write!(f, "{ROOT}/{VERSION}/{federation}/site/{site}/down/+"),
            Self::AllUp(federation) => write!(f, "{ROOT}/{VERSION}/{federation}/site/+/up/+"),
            Self::AllSiteStatus(federation) => write!(f, "{ROOT}/{VERSION}/{federation}/site/+/status"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn federation() -> FederationId {
        FederationId::new("chest").unwrap()
    }

    fn site() -> SiteId {
        SiteId::new("north").unwrap()
    }

    #[test]
    fn every_topic_reads_back() {
        let mut topics = vec![Topic::SiteStatus(federation(), site())];
        topics.extend(Broadcast::ALL.map(|b| Topic::Broadcast(federation(), b)));
        for lane in [Lane::Message, Lane::Chunk] {
            topics.push(Topic::Up(federation(), site(), lane));
            topics.push(Topic::Down(federation(), site(), lane));
        }
        for topic in topics {
            assert_eq!(topic.to_string().parse::<Topic>().unwrap(), topic);
        }
    }

    #[test]
    fn foreign_topics_are_refused() {
        for text in [
            "",
            "medinet/v1/chest",
            "medinet/v2/chest/agg/announce",
            "medinet/v1/chest/agg/other",
            "medinet/v1/chest/site/north/up",
            "medinet/v1/chest/site/north/up/msg/more",
            "medinet/v1/chest/site/+/up/msg",
            "medinet/v1/#",
            "$SYS/broker",
        ] {
            assert!(text.parse::<Topic>().is_err(), "{text:?}");
        }
    }
}
