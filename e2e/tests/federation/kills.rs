//! Power cuts.

use crate::fixture::{
    PLAIN, ROUNDS, SECURE, SECURE_ROUNDS, SITES, Undisturbed, federation, records, released, run, trained,
};
use anyhow::{Result, ensure};
use medinet_lab::{BrokerKind, Federation, FleetStatus, Updates};
use medinet_ledger::RecordBody;
use std::time::{Duration, Instant};

/// A small generator of the kills' moments and victims (xorshift64, Marsaglia 2003).
struct Chance(u64);

impl Chance {
    /// Starts from `MEDINET_KILL_SEED`, which is printed with a failure.
    fn start() -> Self {
        let seed =
            std::env::var("MEDINET_KILL_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(0x5EED);
        println!("MEDINET_KILL_SEED={seed}");
        Self(seed)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// Kills of any member, each of which is started again at once.
struct Kills<P> {
    chance: Chance,
    /// How many there are to be.
    total: u32,
    done: u32,
    /// The longest pause in milliseconds before the next kill, from how many there were and the round; `None` while it is not to come yet.
    longest_pause: P,
    /// When the next one was drawn, and what its pause follows from: rounds may come ahead of it while it waits.
    next: Option<(Instant, u64)>,
}

impl<P: Fn(u32, u32) -> Option<u64>> Kills<P> {
    fn new(total: u32, longest_pause: P) -> Self {
        Self { chance: Chance::start(), total, done: 0, longest_pause, next: None }
    }

    /// Kills a member if the moment has come.
    fn strike(&mut self, federation: &mut Federation, status: &FleetStatus) -> Result<()> {
        if self.done == self.total {
            return Ok(());
        }
        let aggregator = status.aggregator.as_ref();
        let finished = aggregator.is_some_and(|aggregator| aggregator.finished);
        ensure!(!finished, "the rounds were over after {} kills: more rounds are needed", self.done);
        let round = aggregator.map_or(0, |aggregator| aggregator.round.0);
        let Some(longest) = (self.longest_pause)(self.done, round) else { return Ok(()) };
        let Some((drawn_at, draw)) = self.next else {
            self.next = Some((Instant::now(), self.chance.below(u64::MAX)));
            return Ok(());
        };
        if drawn_at.elapsed() >= Duration::from_millis(20 + draw % longest) {
            let members = federation.members();
            let victim = members[usize::try_from(self.chance.below(members.len() as u64))?];
            federation.kill(victim)?;
            federation.start(victim)?;
            self.done += 1;
            self.next = None;
            let at = aggregator.map(|aggregator| (aggregator.round, aggregator.stage, aggregator.complete));
            println!("kill {}: {victim:?}, {at:?}", self.done);
        }
        Ok(())
    }
}

/// Runs a federation under `kills` to its end.
fn killed<P: Fn(u32, u32) -> Option<u64>>(
    name: &str,
    rounds: u32,
    updates: Updates,
    mut kills: Kills<P>,
) -> Federation {
    let mut federation = federation(name, BrokerKind::Own, rounds, updates);
    run(&mut federation, |federation, status| kills.strike(federation, status)).unwrap();
    assert_eq!(kills.done, kills.total);
    federation
}

#[test]
fn fifty_kills_of_any_process_change_nothing() {
    const KILLS: u32 = 50;
    // Spread over the first three quarters of the rounds: faster where the rounds are ahead of the kills, as on a fast machine, where a round takes
    // a tenth of a second.
    let kills =
        Kills::new(KILLS, |done, round| Some(if done * ROUNDS * 3 < KILLS * round * 4 { 80 } else { 1500 }));
    let federation = killed("kills", ROUNDS, PLAIN, kills);
    assert_eq!(released(&federation).unwrap(), Undisturbed::plain().model);
}

/// What must hold with secure aggregation: all rounds are trained; each sums all three hospitals, since no fewer would do; and each round has the
/// model of the undisturbed run, down to the last bit, up to the first that is given up. For a kill ends the session that it falls into, the next session of
/// the round sums the very same updates, and the sum under masks is exact.
///
/// A round is given up when a kill falls between a hospital's consent to a sum and the sum: the hospital then enters no other session of that
/// round (ADR 0014). Another round follows on the same model, and with its number shuffling and rounding are others. From there on the
/// models differ from the undisturbed run's by right, and that every round sums all three is all that is left to ask.
#[test]
fn a_dozen_kills_of_any_process_leave_every_secure_sum_whole() {
    const KILLS: u32 = 12;
    // At any moment of a round, whose sessions take most of its time; not before one model stands, and not all in one round, which has
    // three sessions at most. Without delay where the rounds are ahead of the kills: each holds them up, so the kills catch up on any machine.
    let kills = Kills::new(KILLS, |done, round| {
        let due = 2 + done * (SECURE_ROUNDS - 4) / KILLS;
        (round >= due).then_some(if round > due { 1 } else { 400 })
    });
    let federation = killed("kills-secure", SECURE_ROUNDS, SECURE, kills);
    let released = released(&federation).unwrap();
    let trained = trained(&federation);
    assert_eq!(trained.len(), SECURE_ROUNDS as usize);
    assert!(trained.iter().all(|round| round.sites.len() == SITES), "{trained:?}");
    assert_eq!(trained.last().unwrap().model, released);
    let given_up = records(&federation).into_iter().find_map(|record| match record {
        RecordBody::RoundAbandoned { round, .. } => Some(round.0),
        _ => None,
    });
    let comparable = given_up.map_or(trained.len(), |round| round as usize - 1);
    println!("given up first: {given_up:?}; models compared with the undisturbed run: {comparable}");
    assert!(comparable >= 1, "the first round is over before the first kill");
    assert_eq!(trained[..comparable], Undisturbed::secure().rounds[..comparable]);
}
