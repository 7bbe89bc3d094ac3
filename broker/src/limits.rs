//! Rates, and places that are taken and given back.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A token bucket that holds one second's worth. It goes into debt for a packet that is larger than what is left, and
/// says how long to wait until the debt is paid, so a packet of any size passes.
#[derive(Debug)]
pub struct Bucket {
    per_second: f64,
    tokens: f64,
    filled_at: Instant,
}

impl Bucket {
    /// A full bucket.
    #[must_use]
    pub fn new(per_second: u64, now: Instant) -> Self {
        // Rates stay far below 2^53, where f64 counts exactly.
        let per_second = per_second as f64;
        Self { per_second, tokens: per_second, filled_at: now }
    }

    /// Takes `amount` tokens; returns how long to wait before going on.
    pub fn take(&mut self, amount: u64, now: Instant) -> Duration {
        let passed = now.saturating_duration_since(self.filled_at).as_secs_f64();
        self.filled_at = now;
        self.tokens = (self.tokens + passed * self.per_second).min(self.per_second) - amount as f64;
        if self.tokens >= 0.0 {
            Duration::ZERO
        } else {
            Duration::from_secs_f64((-self.tokens / self.per_second).min(3600.0))
        }
    }
}

/// The rates of one principal, shared by its connections.
#[derive(Debug)]
pub struct Rates(Mutex<(Bucket, Bucket)>);

impl Rates {
    /// Full buckets.
    #[must_use]
    pub fn new(packets_per_second: u32, bytes_per_second: u64, now: Instant) -> Self {
        Self(Mutex::new((Bucket::new(packets_per_second.into(), now), Bucket::new(bytes_per_second, now))))
    }

    /// Counts one packet of `bytes`; returns how long to wait before reading on.
    pub fn packet(&self, bytes: u64, now: Instant) -> Duration {
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (packets, volume) = &mut *buckets;
        packets.take(1, now).max(volume.take(bytes, now))
    }
}

/// Places, so many in all and so many for each key.
#[derive(Debug)]
pub struct Places<K: Eq + Hash> {
    total: usize,
    taken: Mutex<(usize, HashMap<K, usize>)>,
}

/// Why no place is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// All are taken.
    #[error("all {0} places are taken")]
    Total(usize),
    /// The key has all of its own.
    #[error("all {0} places of this party are taken")]
    Own(usize),
}

/// A place that is given back when dropped.
#[derive(Debug)]
pub struct Place<K: Eq + Hash> {
    places: Arc<Places<K>>,
    key: K,
}

impl<K: Eq + Hash + Clone> Places<K> {
    /// `total` free places.
    #[must_use]
    pub fn new(total: usize) -> Arc<Self> {
        Arc::new(Self { total, taken: Mutex::new((0, HashMap::new())) })
    }

    /// Takes a place for `key`, which may have `own` of them.
    ///
    /// # Errors
    /// When all, or all of its own, are taken.
    pub fn take(self: &Arc<Self>, key: &K, own: usize) -> Result<Place<K>, Full> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let (count, by_key) = &mut *taken;
        if *count >= self.total {
            return Err(Full::Total(self.total));
        }
        let of_key = by_key.get(key).copied().unwrap_or(0);
        if of_key >= own {
            return Err(Full::Own(own));
        }
        by_key.insert(key.clone(), of_key + 1);
        *count += 1;
        Ok(Place { places: Arc::clone(self), key: key.clone() })
    }

    /// How many are taken.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).0
    }
}

impl<K: Eq + Hash> Drop for Place<K> {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let (count, by_key) = &mut *taken;
        *count -= 1;
        if let Some(of_key) = by_key.get_mut(&self.key) {
            *of_key -= 1;
            if *of_key == 0 {
                by_key.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_lets_one_seconds_worth_pass_and_then_the_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(10, start);
        for _ in 0..10 {
            assert_eq!(bucket.take(1, start), Duration::ZERO);
        }
        assert_eq!(bucket.take(1, start), Duration::from_millis(100));
        assert_eq!(bucket.take(1, start + Duration::from_millis(200)), Duration::ZERO);
        // A long pause fills it once, not more.
        let later = start + Duration::from_secs(60);
        assert_eq!(bucket.take(10, later), Duration::ZERO);
        assert_eq!(bucket.take(5, later), Duration::from_millis(500));
    }

    #[test]
    fn a_packet_larger_than_the_bucket_passes_and_is_paid_for() {
        let start = Instant::now();
        let mut bucket = Bucket::new(100, start);
        assert_eq!(bucket.take(300, start), Duration::from_secs(2));
        assert_eq!(bucket.take(100, start + Duration::from_secs(3)), Duration::ZERO);
    }

    #[test]
    fn rates_wait_for_the_slower_of_packets_and_bytes() {
        let start = Instant::now();
        let rates = Rates::new(1000, 100, start);
        assert_eq!(rates.packet(150, start), Duration::from_millis(500));
        let rates = Rates::new(1, 1_000_000, start);
        assert_eq!(rates.packet(1, start), Duration::ZERO);
        assert_eq!(rates.packet(1, start), Duration::from_secs(1));
    }

    #[test]
    fn places_are_counted_in_all_and_by_key() {
        let places = Places::new(3);
        let first = places.take(&"a", 2).unwrap();
        let _second = places.take(&"a", 2).unwrap();
        assert_eq!(places.take(&"a", 2).unwrap_err(), Full::Own(2));
        let _third = places.take(&"b", 2).unwrap();
        assert_eq!(places.take(&"c", 2).unwrap_err(), Full::Total(3));
        drop(first);
        assert_eq!(places.taken(), 2);
        assert!(places.take(&"a", 2).is_ok());
    }
}
