//! The newest retained message of each topic.
//!
//! In memory: what is lost with the process is published again by its owner when it reconnects. The topic rules bound
//! how many there are.

use crate::packet::QoS;
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RetainedMessage {
    pub(crate) topic: String,
    pub(crate) payload: Bytes,
    pub(crate) qos: QoS,
}

#[derive(Debug, Default)]
pub(crate) struct Retained {
    by_topic: RwLock<HashMap<String, RetainedMessage>>,
}

impl Retained {
    /// Takes a message in its topic's place; an empty one clears it (3.3.1.3).
    pub(crate) fn set(&self, topic: &str, payload: Bytes, qos: QoS) {
        let mut by_topic = self.by_topic.write().unwrap_or_else(PoisonError::into_inner);
        if payload.is_empty() {
            by_topic.remove(topic);
        } else {
            let message = RetainedMessage { topic: topic.to_owned(), payload, qos };
            by_topic.insert(topic.to_owned(), message);
        }
    }

    pub(crate) fn get(&self, topic: &str) -> Option<RetainedMessage> {
        self.by_topic.read().unwrap_or_else(PoisonError::into_inner).get(topic).cloned()
    }

    /// What matches any of `filters`, each topic once.
    pub(crate) fn matching(&self, filters: &[String]) -> Vec<RetainedMessage> {
        let by_topic = self.by_topic.read().unwrap_or_else(PoisonError::into_inner);
        let matches = |topic: &str| filters.iter().any(|filter| rumqttd::protocol::matches(topic, filter));
        by_topic.values().filter(|message| matches(&message.topic)).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_stays_and_an_empty_one_clears() {
        let retained = Retained::default();
        let set = |topic: &str, payload: &'static str| {
            retained.set(topic, Bytes::from_static(payload.as_bytes()), QoS::AtLeastOnce);
        };
        set("a/b", "1");
        set("a/b", "2");
        set("a/c", "3");
        let payloads = |filters: &[&str]| {
            let filters: Vec<String> = filters.iter().map(|f| (*f).to_owned()).collect();
            let mut found: Vec<Bytes> = retained.matching(&filters).into_iter().map(|m| m.payload).collect();
            found.sort();
            found
        };
        assert_eq!(payloads(&["a/+"]), ["2", "3"]);
        assert_eq!(payloads(&["a/b", "a/+"]), ["2", "3"]);
        assert_eq!(payloads(&["a/b"]), ["2"]);
        set("a/b", "");
        assert_eq!(payloads(&["a/+"]), ["3"]);
        assert_eq!(retained.get("a/b"), None);
    }
}
