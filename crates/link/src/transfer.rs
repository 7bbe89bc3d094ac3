//! What to ask for next and what to send next; no I/O, time is an argument.

use medinet_types::{BlobDigest, SiteId, UnixMillis};
use medinet_wire::blob::{BlobWant, MAX_WANTED_CHUNKS};
use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

/// Fetches that ask for chunks at the same time; further ones wait, so that memory and the broker's queues stay
/// bounded however many sites offer at once.
const ACTIVE_FETCHES: usize = 8;
/// Silence after which a fetch asks again; doubled up to the longest.
const FIRST_PATIENCE: Duration = Duration::from_secs(2);
const LONGEST_PATIENCE: Duration = Duration::from_secs(30);

/// The other side: a site, or the aggregator when `None`.
pub(crate) type Peer = Option<SiteId>;

/// Fetches under way, in the order in which they were asked for.
#[derive(Debug)]
pub(crate) struct Fetches<T> {
    order: VecDeque<BlobDigest>,
    by_blob: HashMap<BlobDigest, Fetch<T>>,
}

#[derive(Debug)]
struct Fetch<T> {
    peer: Peer,
    state: T,
    outstanding: HashSet<u32>,
    asked_at: Option<UnixMillis>,
    patience: Duration,
}

impl<T> Default for Fetches<T> {
    fn default() -> Self {
        Self { order: VecDeque::new(), by_blob: HashMap::new() }
    }
}

impl<T> Fetches<T> {
    /// Adds a fetch; an existing one of the same blob stays, and only its peer changes.
    pub(crate) fn add(&mut self, blob: BlobDigest, peer: Peer, state: T) {
        if let Some(fetch) = self.by_blob.get_mut(&blob) {
            fetch.peer = peer;
            return;
        }
        let fetch =
            Fetch { peer, state, outstanding: HashSet::new(), asked_at: None, patience: FIRST_PATIENCE };
        self.by_blob.insert(blob, fetch);
        self.order.push_back(blob);
    }

    /// All blobs being fetched, with their states.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (BlobDigest, &T)> {
        self.by_blob.iter().map(|(blob, fetch)| (*blob, &fetch.state))
    }

    pub(crate) fn contains(&self, blob: BlobDigest) -> bool {
        self.by_blob.contains_key(&blob)
    }

    /// The state of a fetch from `peer`; chunks from anyone else find nothing.
    pub(crate) fn state_mut(&mut self, blob: BlobDigest, peer: &Peer) -> Option<&mut T> {
        self.by_blob.get_mut(&blob).filter(|f| f.peer == *peer).map(|f| &mut f.state)
    }

    /// Notes that a chunk arrived.
    pub(crate) fn arrived(&mut self, blob: BlobDigest, index: u32, now: UnixMillis) {
        if let Some(fetch) = self.by_blob.get_mut(&blob) {
            fetch.outstanding.remove(&index);
            fetch.patience = FIRST_PATIENCE;
            fetch.asked_at = if fetch.outstanding.is_empty() { None } else { Some(now) };
        }
    }

    pub(crate) fn remove(&mut self, blob: BlobDigest) {
        self.by_blob.remove(&blob);
        self.order.retain(|b| *b != blob);
    }

    /// After a reconnect nothing that was asked for can be counted on.
    pub(crate) fn forget_outstanding(&mut self) {
        for fetch in self.by_blob.values_mut() {
            fetch.outstanding.clear();
            fetch.asked_at = None;
            fetch.patience = FIRST_PATIENCE;
        }
    }

    /// What to ask for now; `want` reads a fetch's next missing chunks.
    pub(crate) fn due(
        &mut self,
        now: UnixMillis,
        want: impl Fn(&T) -> Option<BlobWant>,
    ) -> Vec<(Peer, BlobWant)> {
        let mut due = Vec::new();
        for blob in self.order.iter().take(ACTIVE_FETCHES) {
            let Some(fetch) = self.by_blob.get_mut(blob) else { continue };
            match fetch.asked_at {
                None => {}
                Some(at) if now.since(at) >= fetch.patience => {
                    fetch.patience = (fetch.patience * 2).min(LONGEST_PATIENCE);
                }
                Some(_) => continue,
            }
            if let Some(message) = want(&fetch.state) {
                fetch.outstanding = message.chunks.iter().copied().collect();
                fetch.asked_at = Some(now);
                due.push((fetch.peer.clone(), message));
            }
        }
        // A peer that never answers must not keep the others waiting: it goes to the end of the line.
        let slow: Vec<BlobDigest> = self
            .order
            .iter()
            .take(ACTIVE_FETCHES)
            .filter(|b| self.by_blob.get(b).is_some_and(|f| f.patience >= LONGEST_PATIENCE))
            .copied()
            .collect();
        if self.order.len() > ACTIVE_FETCHES {
            for blob in slow {
                self.order.retain(|b| *b != blob);
                self.order.push_back(blob);
            }
        }
        due
    }
}

/// Chunks that peers asked for, served one at a time in turn, so that no peer waits for another's whole blob.
#[derive(Debug, Default)]
pub(crate) struct Serving {
    allowed: HashSet<BlobDigest>,
    turns: VecDeque<(Peer, BlobDigest)>,
    wanted: HashMap<(Peer, BlobDigest), VecDeque<u32>>,
}

impl Serving {
    pub(crate) fn allow(&mut self, blob: BlobDigest) {
        self.allowed.insert(blob);
    }

    pub(crate) fn disallow(&mut self, blob: BlobDigest) {
        self.allowed.remove(&blob);
        self.turns.retain(|(_, b)| *b != blob);
        self.wanted.retain(|(_, b), _| *b != blob);
    }

    /// Takes a request; a newer one of the same peer for the same blob replaces the older. False when the blob is
    /// not one that is offered.
    pub(crate) fn want(&mut self, peer: Peer, want: &BlobWant) -> bool {
        if !self.allowed.contains(&want.blob) {
            return false;
        }
        let chunks = want.chunks.iter().copied().take(MAX_WANTED_CHUNKS as usize).collect();
        let key = (peer, want.blob);
        if self.wanted.insert(key.clone(), chunks).is_none() {
            self.turns.push_back(key);
        }
        true
    }

    /// The next chunk to send.
    pub(crate) fn next(&mut self) -> Option<(Peer, BlobDigest, u32)> {
        loop {
            let key = self.turns.pop_front()?;
            let Some(chunks) = self.wanted.get_mut(&key) else { continue };
            let Some(index) = chunks.pop_front() else {
                self.wanted.remove(&key);
                continue;
            };
            let (peer, blob) = key.clone();
            if chunks.is_empty() {
                self.wanted.remove(&key);
            } else {
                self.turns.push_back(key);
            }
            return Some((peer, blob, index));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use medinet_types::Digest;

    fn blob(n: u8) -> BlobDigest {
        BlobDigest(Digest([n; 32]))
    }

    fn peer(name: &str) -> Peer {
        Some(SiteId::new(name).unwrap())
    }

    fn want_first(n: u8) -> impl Fn(&u32) -> Option<BlobWant> {
        move |left| (*left > 0).then(|| BlobWant { blob: blob(n), chunks: vec![0, 1] })
    }

    #[test]
    fn a_silent_peer_is_asked_again_with_growing_patience() {
        let mut fetches = Fetches::default();
        fetches.add(blob(1), peer("a"), 2);
        let at = |s: u64| UnixMillis(s * 1000);
        assert_eq!(fetches.due(at(0), want_first(1)).len(), 1);
        assert_eq!(fetches.due(at(1), want_first(1)).len(), 0);
        assert_eq!(fetches.due(at(2), want_first(1)).len(), 1);
        assert_eq!(fetches.due(at(5), want_first(1)).len(), 0);
        assert_eq!(fetches.due(at(6), want_first(1)).len(), 1);
        fetches.forget_outstanding();
        assert_eq!(fetches.due(at(7), want_first(1)).len(), 1);
    }

    #[test]
    fn the_next_window_is_asked_for_when_the_last_has_arrived() {
        let mut fetches = Fetches::default();
        fetches.add(blob(1), None, 4);
        assert_eq!(fetches.due(UnixMillis(0), want_first(1)).len(), 1);
        fetches.arrived(blob(1), 0, UnixMillis(1));
        assert!(fetches.due(UnixMillis(2), want_first(1)).is_empty());
        fetches.arrived(blob(1), 1, UnixMillis(3));
        assert_eq!(fetches.due(UnixMillis(4), want_first(1)).len(), 1);
    }

    #[test]
    fn chunks_from_another_peer_find_nothing() {
        let mut fetches = Fetches::default();
        fetches.add(blob(1), peer("a"), 2);
        assert!(fetches.state_mut(blob(1), &peer("b")).is_none());
        assert!(fetches.state_mut(blob(1), &peer("a")).is_some());
    }

    #[test]
    fn peers_are_served_in_turn_and_only_what_is_offered() {
        let mut serving = Serving::default();
        let ask = |n| BlobWant { blob: blob(n), chunks: vec![0, 1] };
        assert!(!serving.want(peer("a"), &ask(1)));
        serving.allow(blob(1));
        assert!(serving.want(peer("a"), &ask(1)));
        assert!(serving.want(peer("b"), &ask(1)));
        assert!(serving.want(peer("a"), &ask(1)), "a repeat replaces");
        let order: Vec<_> = std::iter::from_fn(|| serving.next()).collect();
        assert_eq!(
            order,
            [
                (peer("a"), blob(1), 0),
                (peer("b"), blob(1), 0),
                (peer("a"), blob(1), 1),
                (peer("b"), blob(1), 1)
            ]
        );
    }
}
