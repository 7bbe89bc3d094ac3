//! Power cuts.

use crate::fixture::{PLAIN, ROUNDS, federation, members, released, run, undisturbed};
use anyhow::ensure;
use medinet_lab::BrokerKind;
use std::time::{Duration, Instant};

const KILLS: u32 = 50;

/// A small generator of the kills' moments and victims (xorshift64, Marsaglia 2003), printed with a failure.
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

#[test]
fn fifty_kills_of_any_process_change_nothing() {
    let seed = std::env::var("MEDINET_KILL_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(0x5EED);
    println!("MEDINET_KILL_SEED={seed}");
    let mut chance = Chance(seed);
    let mut federation = federation("kills", BrokerKind::Own, ROUNDS, PLAIN);
    let members = members();
    let mut kills = 0;
    let mut next = Instant::now() + Duration::from_secs(1);
    run(&mut federation, |federation, status| {
        if kills < KILLS && Instant::now() >= next {
            let finished = status.aggregator.as_ref().is_some_and(|aggregator| aggregator.finished);
            ensure!(!finished, "the rounds were over after {kills} kills: more rounds are needed");
            let victim = members[usize::try_from(chance.below(5))?];
            federation.kill(victim)?;
            federation.start(victim)?;
            kills += 1;
            // Spread over the rounds: faster where the rounds are ahead of the kills.
            let round = status.aggregator.as_ref().map_or(0, |aggregator| aggregator.round.0);
            let behind = u64::from(kills) * u64::from(ROUNDS) < u64::from(KILLS) * u64::from(round);
            next =
                Instant::now() + Duration::from_millis(100 + chance.below(if behind { 200 } else { 1500 }));
            println!(
                "kill {kills}: {victim:?}, {:?}",
                status.aggregator.as_ref().map(|a| (a.round, a.complete))
            );
        }
        federation.check_alive()
    })
    .unwrap();
    assert_eq!(kills, KILLS);
    assert_eq!(released(&federation).unwrap(), undisturbed());
}
