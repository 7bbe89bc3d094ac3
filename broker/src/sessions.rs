//! Sessions: whose they are, who uses them, and what they remember.
//!
//! A session belongs to a principal and a client identifier, so nobody can take over another's by choosing its
//! identifier. Inside the router it has a number instead of the client's own text, and each principal has few numbers:
//! a client that invents a new identifier every time leaves nothing behind but its own oldest sessions' places.

use crate::limits::Rates;
use crate::packet::QoS;
use crate::settings::PrincipalLimits;
use medinet_types::Principal;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::{OwnedMutexGuard, watch};

/// What a session remembers beside what the router does.
#[derive(Debug, Default)]
pub(crate) struct SessionState {
    /// Whether anything of an earlier user of the number may be left in the router.
    pub(crate) started: bool,
    /// Filters as the client wrote them.
    pub(crate) subscriptions: BTreeMap<String, Granted>,
    /// QoS 2 publishes that were taken and not yet released (4.3.3, method B).
    pub(crate) received: HashSet<u16>,
    /// Retained messages that were sent and not yet acknowledged.
    pub(crate) retained: BTreeMap<u16, (String, QoS)>,
}

/// A subscription that was granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Granted {
    pub(crate) qos: QoS,
    pub(crate) expanded: Vec<String>,
}

#[derive(Debug)]
struct Session {
    number: usize,
    /// Counts those who came for the session; whoever is not the last gives way.
    arrivals: watch::Sender<u64>,
    state: Arc<tokio::sync::Mutex<SessionState>>,
    users: usize,
    left_at: Instant,
}

struct Party {
    rates: Arc<Rates>,
    sessions: HashMap<String, Session>,
}

/// All sessions.
#[derive(Default)]
pub(crate) struct Sessions {
    parties: Mutex<HashMap<Principal, Party>>,
}

/// A wish to use a session; others who use it are asked to give way. Given back when dropped.
pub(crate) struct Claim {
    sessions: Arc<Sessions>,
    principal: Principal,
    client_id: String,
    arrival: u64,
    arrivals: watch::Receiver<u64>,
    state: Arc<tokio::sync::Mutex<SessionState>>,
    /// The session's name in the router.
    pub(crate) router_id: String,
    pub(crate) rates: Arc<Rates>,
    /// Whether the session outlives its user.
    pub(crate) keep: bool,
}

impl Sessions {
    fn parties(&self) -> MutexGuard<'_, HashMap<Principal, Party>> {
        self.parties.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Claims the session of `principal` and `client_id`.
    pub(crate) fn claim(
        self: &Arc<Self>,
        principal: &Principal,
        client_id: &str,
        limits: PrincipalLimits,
        now: Instant,
    ) -> Claim {
        let mut parties = self.parties();
        let party = parties.entry(principal.clone()).or_insert_with(|| Party {
            rates: Arc::new(Rates::new(limits.packets_per_second, limits.bytes_per_second.0, now)),
            sessions: HashMap::new(),
        });
        if !party.sessions.contains_key(client_id) {
            let away = party.sessions.iter().filter(|(_, session)| session.users == 0);
            if away.clone().count() >= limits.max_connections
                && let Some((oldest, _)) = away.min_by_key(|(_, session)| session.left_at)
            {
                let oldest = oldest.clone();
                party.sessions.remove(&oldest);
            }
            let taken: HashSet<usize> = party.sessions.values().map(|session| session.number).collect();
            let number = (0..).find(|number| !taken.contains(number)).unwrap_or(usize::MAX);
            let session = Session {
                number,
                arrivals: watch::Sender::new(0),
                state: Arc::default(),
                users: 0,
                left_at: now,
            };
            party.sessions.insert(client_id.to_owned(), session);
        }
        let session = party.sessions.get_mut(client_id).expect("found or put there above");
        session.users += 1;
        session.arrivals.send_modify(|count| *count += 1);
        let arrivals = session.arrivals.subscribe();
        let arrival = *arrivals.borrow();
        Claim {
            sessions: Arc::clone(self),
            principal: principal.clone(),
            client_id: client_id.to_owned(),
            arrival,
            arrivals,
            state: Arc::clone(&session.state),
            router_id: format!("{principal}:{}", session.number),
            rates: Arc::clone(&party.rates),
            keep: false,
        }
    }
}

impl Claim {
    /// Waits until whoever used the session before has left it.
    pub(crate) async fn enter(&self) -> OwnedMutexGuard<SessionState> {
        Arc::clone(&self.state).lock_owned().await
    }

    /// Returns when somebody else claims the session.
    pub(crate) async fn superseded(&self) {
        let mut arrivals = self.arrivals.clone();
        let arrival = self.arrival;
        // An error means that the session is gone, and with it whoever could claim it.
        if arrivals.wait_for(|count| *count > arrival).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut parties = self.sessions.parties();
        let Some(party) = parties.get_mut(&self.principal) else { return };
        let Some(session) = party.sessions.get_mut(&self.client_id) else { return };
        session.users -= 1;
        session.left_at = Instant::now();
        if session.users == 0 && !self.keep {
            party.sessions.remove(&self.client_id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use medinet_types::{ByteCount, Role, SiteId};

    const LIMITS: PrincipalLimits =
        PrincipalLimits { max_connections: 2, packets_per_second: 10, bytes_per_second: ByteCount(1024) };

    fn site(name: &str) -> Principal {
        Principal::new(Role::Site, SiteId::new(name).unwrap())
    }

    fn claim(sessions: &Arc<Sessions>, name: &str, client_id: &str) -> Claim {
        sessions.claim(&site(name), client_id, LIMITS, Instant::now())
    }

    #[tokio::test]
    async fn the_newcomer_waits_and_the_user_is_told() {
        let sessions = Arc::new(Sessions::default());
        let first = claim(&sessions, "north", "a");
        let state = first.enter().await;
        let second = claim(&sessions, "north", "a");
        assert_eq!(first.router_id, second.router_id);
        first.superseded().await;
        assert!(second.state.try_lock().is_err());
        drop(state);
        drop(first);
        second.enter().await;
    }

    #[tokio::test]
    async fn the_same_identifier_of_another_principal_is_another_session() {
        let sessions = Arc::new(Sessions::default());
        let north = claim(&sessions, "north", "a");
        let _inside = north.enter().await;
        let south = claim(&sessions, "south", "a");
        assert_ne!(north.router_id, south.router_id);
        south.enter().await;
        let told = tokio::time::timeout(std::time::Duration::from_millis(10), north.superseded()).await;
        assert!(told.is_err());
    }

    #[test]
    fn clean_sessions_leave_nothing_and_numbers_are_used_again() {
        let sessions = Arc::new(Sessions::default());
        for index in 0..100 {
            let claim = claim(&sessions, "north", &format!("random-{index}"));
            assert_eq!(claim.router_id, "site:north:0");
        }
        assert!(sessions.parties()[&site("north")].sessions.is_empty());
    }

    #[test]
    fn kept_sessions_are_few_and_the_longest_away_makes_room() {
        let sessions = Arc::new(Sessions::default());
        for client_id in ["a", "b", "c"] {
            claim(&sessions, "north", client_id).keep = true;
        }
        let parties = sessions.parties();
        let mut left: Vec<&str> = parties[&site("north")].sessions.keys().map(String::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["b", "c"]);
    }
}
