//! When to ask again, how long to wait before, and how fast to ask at all.

use rand::RngExt as _;
use reqwest::StatusCode;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use std::time::Duration;
use time::OffsetDateTime;
use time::macros::format_description;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// The pause before the second try; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// How often, and after how long at most.
#[derive(Debug, Clone, Copy)]
pub(super) struct RetryPolicy {
    pub(super) max_attempts: u32,
    pub(super) max_pause: Duration,
}

impl RetryPolicy {
    /// How long to wait after the failed try number `attempt`, from 1: exponential with full jitter (so that many
    /// appliances do not come back at once), and no sooner than the server asked for.
    pub(super) fn pause(&self, attempt: u32, retry_after: Option<Duration>, jitter: f64) -> Duration {
        let doubled =
            FIRST_PAUSE.saturating_mul(1u32.checked_shl(attempt.saturating_sub(1)).unwrap_or(u32::MAX));
        let jittered = doubled.min(self.max_pause).mul_f64(jitter.clamp(0.0, 1.0) / 2.0 + 0.5);
        jittered.max(retry_after.unwrap_or_default()).min(self.max_pause)
    }

    /// Waits after the failed try number `attempt`; false when there is none left.
    pub(super) async fn wait(&self, attempt: u32, retry_after: Option<Duration>) -> bool {
        if attempt >= self.max_attempts {
            return false;
        }
        let jitter = rand::rng().random_range(0.0..1.0);
        tokio::time::sleep(self.pause(attempt, retry_after, jitter)).await;
        true
    }
}

/// Whether a status may be another one when asked again (RFC 9110 15.5.9, 15.6; RFC 6585 4).
pub(super) fn may_pass(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 425 | 429 | 500 | 502 | 503 | 504)
}

/// How long the server asks to wait: seconds, or a date (RFC 9110 10.2.3).
pub(super) fn retry_after(headers: &HeaderMap, now: OffsetDateTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let format = format_description!(
        "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
    );
    let date = time::PrimitiveDateTime::parse(text, &format).ok()?.assume_utc();
    Some(Duration::try_from(date - now).unwrap_or_default())
}

/// Spaces the starts of requests out.
#[derive(Debug)]
pub(super) struct Throttle {
    gap: Duration,
    next: Mutex<Instant>,
}

impl Throttle {
    pub(super) fn new(max_requests_per_second: Option<f64>) -> Self {
        let gap = max_requests_per_second
            .map_or(Duration::ZERO, |rate| Duration::from_secs_f64(1.0 / rate.max(1e-3)));
        Self { gap, next: Mutex::new(Instant::now()) }
    }

    /// Waits for this request's turn.
    pub(super) async fn turn(&self) {
        if !self.gap.is_zero() {
            let turn = self.reserve(Instant::now()).await;
            tokio::time::sleep_until(turn).await;
        }
    }

    /// Takes the next turn.
    async fn reserve(&self, now: Instant) -> Instant {
        let mut next = self.next.lock().await;
        let turn = (*next).max(now);
        *next = turn + self.gap;
        turn
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    #[test]
    fn pauses_double_up_to_the_limit_and_honour_the_server() {
        let policy = RetryPolicy { max_attempts: 9, max_pause: Duration::from_secs(10) };
        let pauses: Vec<u128> = (1..=8).map(|attempt| policy.pause(attempt, None, 1.0).as_millis()).collect();
        assert_eq!(pauses, [250, 500, 1000, 2000, 4000, 8000, 10_000, 10_000]);
        assert_eq!(policy.pause(3, None, 0.0).as_millis(), 500);
        assert_eq!(policy.pause(1, Some(Duration::from_secs(3)), 1.0).as_secs(), 3);
        assert_eq!(policy.pause(1, Some(Duration::from_secs(3000)), 1.0).as_secs(), 10);
        assert_eq!(policy.pause(u32::MAX, None, 1.0).as_secs(), 10);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = datetime!(2026-11-21 10:00:00 UTC);
        let read = |text: &str| {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, text.parse().unwrap())]);
            retry_after(&headers, now)
        };
        assert_eq!(read("7"), Some(Duration::from_secs(7)));
        assert_eq!(read("Sat, 21 Nov 2026 10:00:30 GMT"), Some(Duration::from_secs(30)));
        assert_eq!(read("Sat, 21 Nov 2026 09:00:30 GMT"), Some(Duration::ZERO));
        assert_eq!(read("soon"), None);
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }

    #[tokio::test]
    async fn requests_are_spaced_out() {
        let throttle = Throttle::new(Some(10.0));
        let now = Instant::now() + Duration::from_secs(1);
        for index in 0..5 {
            assert_eq!(throttle.reserve(now).await, now + Duration::from_millis(100) * index);
        }
        let later = now + Duration::from_secs(60);
        assert_eq!(throttle.reserve(later).await, later, "idle time is not saved up");
    }
}
