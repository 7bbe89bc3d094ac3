//! What the broker counts.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: Counter,)*
        }

        /// What was counted since the start.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct CounterValues {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            pub(crate) fn values(&self) -> CounterValues {
                CounterValues { $($name: self.$name.0.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Connections that were let in.
    connections,
    /// TCP connections closed at once because too many were in their handshake.
    handshakes_crowded,
    /// TLS handshakes that failed or took too long, no or a bad certificate among the reasons.
    handshakes_failed,
    /// Connections refused after a good handshake: no member, a bad will, no place, another protocol version.
    connects_refused,
    /// Publishes refused by the topic rules; each ends its connection.
    publishes_refused,
    /// Filters refused by the topic rules.
    subscriptions_refused,
    /// Connections ended for a malformed or oversized packet.
    malformed,
    /// Connections ended for silence, or for a packet or an answer that took too long.
    timeouts,
    /// Connections ended because the client took nothing of what waited for it.
    slow,
    /// Connections ended by another of the same client.
    superseded,
    /// Connections ended because the certificate was revoked or its time was over.
    revoked,
    /// Times that a client was read more slowly for its rate.
    throttled,
    /// Messages taken from clients.
    messages_in,
    /// Messages sent to clients.
    messages_out,
}

#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}
