//! What a connection has under way: messages and requests that wait for an answer.

use crate::packet::{self, QoS};
use crate::sessions::{Granted, SessionState};
use bytes::Bytes;
use std::collections::VecDeque;

/// Packet identifiers of retained messages begin here; the router uses 1 to 100 for its own.
const FIRST_RETAINED_ID: u16 = 1000;

/// A SUBSCRIBE that the router has not answered yet; `None` where nobody waits for the answer.
pub(crate) type PendingSubscription = Option<Subscribed>;

/// A SUBSCRIBE that has been decided.
#[derive(Debug)]
pub(crate) struct Subscribed {
    pub(crate) packet_id: u16,
    pub(crate) granted: Vec<Option<QoS>>,
    /// The granted ones: what the router was asked for in their place, and with which QoS.
    pub(crate) filters: Vec<Granted>,
}

/// What an acknowledgement of the client leads to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Acknowledged {
    /// Messages to acknowledge at the router, in this order.
    pub(crate) at_router: Vec<(u16, QoS)>,
    /// What the client is to be sent.
    pub(crate) answer: Option<Bytes>,
}

#[derive(Debug)]
struct Sent {
    packet_id: u16,
    qos: QoS,
    acknowledged: bool,
}

/// The state of one connection, and of its session while it lasts.
#[derive(Debug, Default)]
pub(crate) struct Flow {
    pub(crate) session: SessionState,
    /// Publishes of the client that the router has not acknowledged, in order.
    publishes: VecDeque<(u16, QoS)>,
    pub(crate) subscriptions: VecDeque<PendingSubscription>,
    /// Messages to the client, in the order in which the router expects their acknowledgements.
    sent: VecDeque<Sent>,
    /// PUBRELs to the client, likewise.
    released: VecDeque<(u16, bool)>,
    next_retained_id: u16,
}

impl Flow {
    pub(crate) fn new(session: SessionState) -> Self {
        Self { session, next_retained_id: FIRST_RETAINED_ID, ..Self::default() }
    }

    /// How many publishes of the client the router has not acknowledged.
    pub(crate) fn inflight(&self) -> usize {
        self.publishes.len()
    }

    /// A publish goes to the router.
    pub(crate) fn publish_forwarded(&mut self, packet_id: u16, qos: QoS) {
        if qos != QoS::AtMostOnce {
            self.publishes.push_back((packet_id, qos));
        }
    }

    /// The router has a publish; the answer to the client.
    pub(crate) fn publish_taken(&mut self, packet_id: u16) -> Option<Bytes> {
        let at = self.publishes.iter().position(|(id, _)| *id == packet_id)?;
        let (_, qos) = self.publishes.remove(at)?;
        Some(if qos == QoS::ExactlyOnce { packet::pubrec(packet_id) } else { packet::puback(packet_id) })
    }

    /// A message goes to the client.
    pub(crate) fn message_sent(&mut self, packet_id: u16, qos: QoS) {
        if qos != QoS::AtMostOnce {
            self.sent.push_back(Sent { packet_id, qos, acknowledged: false });
        }
    }

    /// A retained message goes to the client: with the lower of the two QoS, and an identifier of its own.
    pub(crate) fn retained_sent(&mut self, topic: &str, qos: QoS) -> u16 {
        if qos == QoS::AtMostOnce {
            return 0;
        }
        let retained = &mut self.session.retained;
        // An earlier one of the same topic is out of date; so there are never more than topics.
        retained.retain(|_, (of, _)| of != topic);
        let after = |id: u16| id.checked_add(1).unwrap_or(FIRST_RETAINED_ID);
        while retained.contains_key(&self.next_retained_id) {
            self.next_retained_id = after(self.next_retained_id);
        }
        let packet_id = self.next_retained_id;
        self.next_retained_id = after(packet_id);
        retained.insert(packet_id, (topic.to_owned(), qos));
        packet_id
    }

    /// The client acknowledges with PUBACK (`qos` 1) or PUBREC (`qos` 2). The router wants acknowledgements in the
    /// order of the messages; they are held back until that is so. Those of an earlier connection are let pass.
    pub(crate) fn acknowledged(&mut self, packet_id: u16, qos: QoS) -> Acknowledged {
        let release = || (qos == QoS::ExactlyOnce).then(|| packet::pubrel(packet_id));
        if packet_id >= FIRST_RETAINED_ID {
            self.session.retained.remove(&packet_id);
            return Acknowledged { at_router: Vec::new(), answer: release() };
        }
        let found = self
            .sent
            .iter_mut()
            .find(|sent| sent.packet_id == packet_id && sent.qos == qos && !sent.acknowledged);
        let Some(found) = found else {
            return Acknowledged { at_router: Vec::new(), answer: release() };
        };
        found.acknowledged = true;
        let mut at_router = Vec::new();
        while let Some(first) = self.sent.front().filter(|first| first.acknowledged) {
            at_router.push((first.packet_id, first.qos));
            self.sent.pop_front();
        }
        Acknowledged { at_router, answer: None }
    }

    /// A PUBREL goes to the client.
    pub(crate) fn release_sent(&mut self, packet_id: u16) {
        self.released.push_back((packet_id, false));
    }

    /// The client answers a PUBREL; what to tell the router, in this order.
    pub(crate) fn completed(&mut self, packet_id: u16) -> Vec<u16> {
        if let Some(released) = self.released.iter_mut().find(|(id, done)| *id == packet_id && !done) {
            released.1 = true;
        }
        let mut at_router = Vec::new();
        while let Some(&(id, true)) = self.released.front() {
            at_router.push(id);
            self.released.pop_front();
        }
        at_router
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow() -> Flow {
        Flow::new(SessionState::default())
    }

    #[test]
    fn acknowledgements_reach_the_router_in_order() {
        const Q: QoS = QoS::AtLeastOnce;
        let mut flow = flow();
        for id in [1, 2, 3] {
            flow.message_sent(id, Q);
        }
        assert!(flow.acknowledged(3, Q).at_router.is_empty());
        assert!(flow.acknowledged(2, Q).at_router.is_empty());
        assert_eq!(flow.acknowledged(1, Q).at_router, [(1, Q), (2, Q), (3, Q)]);
    }

    #[test]
    fn unknown_and_repeated_acknowledgements_do_not_reach_the_router() {
        let mut flow = flow();
        assert_eq!(flow.acknowledged(7, QoS::AtLeastOnce), Acknowledged::default());
        flow.message_sent(1, QoS::AtLeastOnce);
        assert_eq!(flow.acknowledged(1, QoS::ExactlyOnce).at_router, []);
        assert_eq!(flow.acknowledged(1, QoS::AtLeastOnce).at_router, [(1, QoS::AtLeastOnce)]);
        assert_eq!(flow.acknowledged(1, QoS::AtLeastOnce).at_router, []);
        // A PUBREC of an earlier connection is answered, so that the client can forget the message.
        assert_eq!(flow.acknowledged(9, QoS::ExactlyOnce).answer, Some(packet::pubrel(9)));
        assert!(flow.completed(9).is_empty());
    }

    #[test]
    fn mixed_qualities_of_service_keep_their_order() {
        let mut flow = flow();
        flow.message_sent(1, QoS::AtLeastOnce);
        flow.message_sent(2, QoS::ExactlyOnce);
        assert!(flow.acknowledged(2, QoS::ExactlyOnce).at_router.is_empty());
        let both = [(1, QoS::AtLeastOnce), (2, QoS::ExactlyOnce)];
        assert_eq!(flow.acknowledged(1, QoS::AtLeastOnce).at_router, both);
    }

    #[test]
    fn releases_complete_in_order() {
        let mut flow = flow();
        flow.release_sent(1);
        flow.release_sent(2);
        assert!(flow.completed(2).is_empty());
        assert_eq!(flow.completed(1), [1, 2]);
    }

    #[test]
    fn publishes_are_answered_by_their_quality_of_service() {
        let mut flow = flow();
        flow.publish_forwarded(0, QoS::AtMostOnce);
        flow.publish_forwarded(5, QoS::AtLeastOnce);
        flow.publish_forwarded(6, QoS::ExactlyOnce);
        assert_eq!(flow.inflight(), 2);
        assert_eq!(flow.publish_taken(5), Some(packet::puback(5)));
        assert_eq!(flow.publish_taken(6), Some(packet::pubrec(6)));
        assert_eq!(flow.publish_taken(6), None);
    }

    #[test]
    fn retained_messages_have_identifiers_of_their_own() {
        let mut flow = flow();
        assert_eq!(flow.retained_sent("t", QoS::AtMostOnce), 0);
        let first = flow.retained_sent("t", QoS::AtLeastOnce);
        let second = flow.retained_sent("u", QoS::ExactlyOnce);
        assert!(first >= FIRST_RETAINED_ID && first != second);
        assert_eq!(flow.session.retained.len(), 2);
        assert_eq!(flow.acknowledged(first, QoS::AtLeastOnce), Acknowledged::default());
        assert_eq!(flow.acknowledged(second, QoS::ExactlyOnce).answer, Some(packet::pubrel(second)));
        assert!(flow.session.retained.is_empty());
    }
}
