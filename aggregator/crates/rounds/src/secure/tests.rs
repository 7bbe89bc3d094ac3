//! The coordinator's rules for rounds with secure aggregation, one by one. Whole federations with real sites are simulated in the tests of
//! `medinet-secure`.

use crate::tests::{plan, site};
use crate::{
    Coordinator, Effect, GroupRule, Input, NormLimit, PauseReason, RoundRecord, Rule, Snapshot, Stage,
    TaskPlan,
};
use medinet_privacy::{Composition, Delta, DpSgdPlan, Epsilon, NoiseMultiplier, SamplingRate};
use medinet_secagg::{Assumptions, SessionId};
use medinet_types::{BlobDigest, Digest, FederationId, RoundNumber, SiteId, UnixMillis};
use medinet_update::SecureCodecPlan;
use medinet_wire::blob::BlobManifest;
use medinet_wire::message::{Aggregation, FromAggregatorToAll, FromSite, RoundPlan, ToSite, UpdateOffer};
use medinet_wire::privacy::PrivacyTotal;
use medinet_wire::secure::{Abandonment, AggregatorStep, SecurePlan, SiteStep, session_parameters};
use std::collections::BTreeMap;

fn secure_plan(sites: usize) -> TaskPlan {
    let codec = SecureCodecPlan {
        bits: 4,
        clip_norm: 10.0,
        error_feedback: false,
        kept_permille: 1000,
        reference_examples: 1000,
        noise: None,
    };
    TaskPlan {
        aggregation: Aggregation::Secure(SecurePlan {
            federation: FederationId::new("test").unwrap(),
            codec,
            assumptions: Assumptions::default(),
            group_sites: None,
            max_attempts: 2,
            message_seconds: 10,
            input_seconds: 20,
        }),
        ..plan(sites)
    }
}

struct Host {
    coordinator: Coordinator,
    now: UnixMillis,
    saved: Option<Snapshot>,
    records: Vec<RoundRecord>,
    round: Option<RoundPlan>,
    blobs: BTreeMap<BlobDigest, Vec<u8>>,
    last: Vec<Effect>,
}

impl Host {
    fn start(plan: TaskPlan) -> Self {
        Self::with(Coordinator::new(plan).unwrap().dealing([7; 32]))
    }

    fn with(coordinator: Coordinator) -> Self {
        let now = UnixMillis(1_000_000);
        let (records, blobs, last) = (Vec::new(), BTreeMap::new(), Vec::new());
        let mut host = Self { coordinator, now, saved: None, records, round: None, blobs, last };
        host.give(Input::Start);
        host
    }

    fn give(&mut self, input: Input<'_>) {
        self.last = self.coordinator.handle(self.now, input);
        for effect in &self.last {
            match effect {
                Effect::Persist(commit) => {
                    self.saved = Some(Snapshot::decode(&commit.snapshot.encode()).unwrap());
                    self.records.extend(commit.records.iter().cloned());
                }
                Effect::Broadcast(FromAggregatorToAll::Announce(plan)) => self.round = Some(plan.clone()),
                Effect::Broadcast(_) => self.round = None,
                Effect::StoreBlob { manifest, bytes } => {
                    self.blobs.insert(manifest.digest, bytes.clone());
                }
                _ => {}
            }
        }
    }

    fn say(&mut self, n: usize, step: SiteStep) {
        let plan = self.round.clone().expect("a round is open");
        let message = FromSite::Secure { task: plan.spec.task, round: plan.round, step };
        self.give(Input::Site { from: site(n), message });
    }

    fn ready(&mut self, n: usize, left: u32) {
        self.say(n, SiteStep::Ready { base_metrics: None, privacy: None, left, abandonments: vec![] });
    }

    fn told(&self, n: usize) -> Vec<&AggregatorStep> {
        let to = |effect: &'_ Effect| match effect {
            Effect::Send { site: to, .. } => *to == site(n),
            Effect::SendAll { sites, .. } => sites.contains(&site(n)),
            _ => false,
        };
        let steps = self.last.iter().filter(|effect| to(effect)).filter_map(|effect| match effect {
            Effect::Send { message: ToSite::Secure { step, .. }, .. }
            | Effect::SendAll { message: ToSite::Secure { step, .. }, .. } => Some(step),
            _ => None,
        });
        steps.collect()
    }

    fn pass(&mut self, seconds: u64) {
        self.now = UnixMillis(self.now.0 + seconds * 1000);
        self.give(Input::Tick);
    }

    fn restart(&mut self, plan: TaskPlan) {
        let snapshot = self.saved.clone().expect("something was persisted");
        let resumed = Coordinator::resume(plan, snapshot, |blob| self.blobs.get(&blob).cloned()).unwrap();
        self.coordinator = resumed.dealing([8; 32]);
        self.give(Input::Restarted);
    }

    fn stage(&self) -> Stage {
        self.coordinator.progress().stage
    }
}

#[test]
fn a_session_begins_when_all_members_are_ready_and_its_attempt_is_durable_first() {
    let mut host = Host::start(secure_plan(3));
    host.ready(0, 0);
    host.ready(1, 0);
    assert_eq!(host.stage(), Stage::Training);
    host.ready(2, 0);
    assert_eq!(host.stage(), Stage::Aggregating);
    for n in 0..3 {
        assert!(matches!(host.told(n)[..], [AggregatorStep::Begin { attempt: 1, .. }]));
    }
    let persisted = host.last.iter().position(|effect| matches!(effect, Effect::Persist(_)));
    let begun = host.last.iter().position(|effect| matches!(effect, Effect::Send { .. }));
    assert!(persisted.is_some() && persisted < begun, "{:?}", host.last);
}

#[test]
fn the_ready_at_the_end_of_the_grace_are_enough_if_they_are_the_minimum() {
    let mut host = Host::start(secure_plan(4));
    host.ready(0, 0);
    host.pass(101);
    assert_eq!(host.stage(), Stage::Training, "one is not the minimum");
    host.ready(1, 0);
    assert_eq!(host.stage(), Stage::Aggregating);
    assert!(host.told(2).is_empty());
}

#[test]
fn plain_updates_are_refused_unread() {
    let mut host = Host::start(secure_plan(2));
    let plan = host.round.clone().unwrap();
    let offer = UpdateOffer {
        task: plan.spec.task.clone(),
        round: plan.round,
        base: plan.base.digest,
        update: BlobManifest::of(&[1; 200]),
        examples: 10,
        base_metrics: None,
        privacy: None,
    };
    host.give(Input::Site { from: site(0), message: FromSite::OfferUpdate(offer) });
    assert!(host.last.iter().any(|e| matches!(e, Effect::Send { message: ToSite::Refused { .. }, .. })));
    assert!(!host.last.iter().any(|e| matches!(e, Effect::Fetch { .. })));
}

/// Silence at every attempt: the round ends without a model, says why, and the operator's start opens another one.
#[test]
fn a_round_without_a_sum_ends_cleanly_after_its_attempts() {
    let mut host = Host::start(secure_plan(3));
    (0..3).for_each(|n| host.ready(n, 0));
    host.pass(11);
    assert!(matches!(host.told(1)[..], [AggregatorStep::Abandon { attempt: 1 }]));
    (0..3).for_each(|n| host.ready(n, 1));
    assert!(matches!(host.told(1)[..], [AggregatorStep::Begin { attempt: 2, .. }]));
    host.pass(11);
    let Stage::Paused(PauseReason::NoSum { attempts: 2, why, .. }) = host.stage() else {
        panic!("{:?}", host.stage())
    };
    assert!(why.contains("sites that advertised keys"), "{why}");
    let abandoned = |record: &RoundRecord| matches!(record, RoundRecord::RoundAbandoned { .. });
    assert_eq!(host.records.iter().filter(|record| abandoned(record)).count(), 1);
    assert!(host.round.is_none(), "no round is announced");
    host.restart(secure_plan(3));
    host.give(Input::Start);
    assert_eq!(host.round.as_ref().map(|plan| plan.round), Some(RoundNumber(2)));
    assert_eq!(host.stage(), Stage::Training);
}

/// The aggregator is killed when all sites have agreed to a sum, so that none may enter another session of this round.
#[test]
fn a_round_whose_sum_is_lost_is_followed_by_another_at_once() {
    let plan = || TaskPlan { max_repeats: 2, ..secure_plan(3) };
    let mut host = Host::start(plan());
    for round in 1..=3 {
        assert_eq!(host.round.as_ref().map(|plan| plan.round), Some(RoundNumber(round)));
        assert_eq!(host.stage(), Stage::Training);
        (0..3).for_each(|n| host.ready(n, 0));
        host.restart(plan());
        (0..3).for_each(|n| host.say(n, SiteStep::Spent));
        host.pass(200);
    }
    assert!(matches!(host.stage(), Stage::Paused(PauseReason::NoSum { .. })), "{:?}", host.stage());
    let rounds = host.records.iter().filter(|r| matches!(r, RoundRecord::RoundAbandoned { .. })).count();
    assert_eq!(rounds, 3);
    // The operator's start begins the count anew.
    host.give(Input::Start);
    (0..3).for_each(|n| host.ready(n, 0));
    host.restart(plan());
    (0..3).for_each(|n| host.say(n, SiteStep::Spent));
    host.pass(200);
    assert_eq!(host.round.as_ref().map(|plan| plan.round), Some(RoundNumber(5)));
}

/// Sites are charged for each, so each counts in what is announced.
#[test]
fn a_private_round_that_is_followed_by_another_counts_twice() {
    let delta = Delta::new(1e-5).unwrap();
    let mut plan = TaskPlan { max_repeats: 2, ..secure_plan(3) };
    let privacy = DpSgdPlan {
        epsilon: Epsilon::new(8.0).unwrap(),
        delta,
        noise_multiplier: NoiseMultiplier::new(1.5).unwrap(),
        clip_norm: 1.0,
        sampling_rate: SamplingRate::new(0.05).unwrap(),
        steps: 20,
    };
    plan.training.privacy = Some(privacy);
    let mut host = Host::start(plan.clone());
    for round in 1..=2 {
        let announced = host.round.as_ref().unwrap();
        let all = Composition::new().with(&privacy.event().with_count(20 * u64::from(round)));
        assert_eq!(announced.round, RoundNumber(round));
        assert_eq!(announced.privacy_total, Some(PrivacyTotal::of(round, &all, delta)));
        (0..3).for_each(|n| host.ready(n, 0));
        host.restart(plan.clone());
        (0..3).for_each(|n| host.say(n, SiteStep::Spent));
        host.pass(200);
    }
}

#[test]
fn sites_that_have_not_left_the_last_attempt_do_not_enter_the_next() {
    let mut host = Host::start(secure_plan(3));
    (0..3).for_each(|n| host.ready(n, 0));
    host.pass(11);
    // Site 1 repeats a word from before the first attempt; site 2 is spent.
    host.ready(0, 1);
    host.ready(1, 0);
    host.say(2, SiteStep::Spent);
    assert_eq!(host.stage(), Stage::Training);
    host.ready(1, 1);
    assert_eq!(host.stage(), Stage::Aggregating);
    assert!(host.told(2).is_empty());
}

/// A site that was not in the first attempt is told how far the round is, and enters the second.
#[test]
fn a_site_that_is_ready_late_enters_the_next_attempt() {
    let mut host = Host::start(secure_plan(3));
    host.ready(0, 0);
    host.ready(1, 0);
    host.pass(101);
    assert_eq!(host.stage(), Stage::Aggregating);
    host.pass(11);
    host.ready(2, 0);
    assert!(matches!(host.told(2)[..], [AggregatorStep::Abandon { attempt: 1 }]));
    (0..3).for_each(|n| host.ready(n, 1));
    assert!(matches!(host.told(2)[..], [AggregatorStep::Begin { attempt: 2, .. }]), "{:?}", host.last);
}

#[test]
fn a_restart_ends_the_session_and_goes_on_with_the_next_attempt() {
    let mut host = Host::start(secure_plan(3));
    (0..3).for_each(|n| host.ready(n, 0));
    host.restart(secure_plan(3));
    let failed = |record: &RoundRecord| matches!(record, RoundRecord::SessionFailed { attempt: 1, .. });
    assert!(host.records.iter().any(failed));
    for n in 0..3 {
        assert!(host.told(n).iter().all(|step| matches!(step, AggregatorStep::Abandon { attempt: 1 })));
        assert!(!host.told(n).is_empty());
    }
    (0..3).for_each(|n| host.ready(n, 1));
    assert!(matches!(host.told(0)[..], [AggregatorStep::Begin { attempt: 2, .. }]));
}

#[test]
fn without_an_authority_nobodys_keys_are_taken() {
    let mut host = Host::start(secure_plan(2));
    host.ready(0, 0);
    host.ready(1, 0);
    let round = host.round.clone().unwrap();
    let session = session_parameters(&round, 1, 0).unwrap().id();
    let keys = medinet_secagg::Advertisement {
        session,
        site: site(0),
        cipher_key: [1; 32],
        mask_key: [2; 32],
        self_mask: Digest::of(b"x"),
        credential: vec![],
        signature: vec![],
    };
    host.say(0, SiteStep::Advertisement(medinet_secagg::Message::encode(&keys)));
    let refused = |record: &RoundRecord| matches!(record, RoundRecord::ContributionRefused { .. });
    assert!(host.records.iter().any(refused));
}

/// Whatever sites say, in whatever order: no panic, and never a second commit in one turn.
#[test]
fn no_sequence_of_words_panics() {
    let session =
        |attempt, plan: &RoundPlan| -> SessionId { session_parameters(plan, attempt, 0).unwrap().id() };
    for seed in 0..400u64 {
        let mut host = Host::start(secure_plan(3));
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut draw = |limit: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % limit
        };
        for _ in 0..60 {
            let Some(plan) = host.round.clone() else {
                host.give(Input::Start);
                continue;
            };
            let (n, attempt) = (draw(4) as usize, draw(3) as u32);
            let bytes = |length: u64| vec![1; length as usize];
            let abandonment = Abandonment {
                session: session(attempt, &plan),
                key_list: Digest::of(b"x"),
                sites: draw(5) as u16,
                member: draw(5) as u16,
                committed: draw(2) == 0,
                credential: bytes(3),
                signature: bytes(3),
            };
            let input = BlobManifest::of(&bytes(1 + draw(100)));
            let blob = input.digest;
            let step = match draw(9) {
                0..=2 => SiteStep::Ready {
                    base_metrics: None,
                    privacy: None,
                    left: attempt,
                    abandonments: vec![abandonment],
                },
                3 => SiteStep::Advertisement(bytes(draw(40))),
                4 => SiteStep::MaskedInput { session: session(attempt, &plan), input },
                5 => SiteStep::Failed { attempt, blames: Some(site(0)), reason: String::new() },
                6 => SiteStep::Agreement(vec![1, 6]),
                7 => SiteStep::Unmasking(bytes(draw(9))),
                _ => SiteStep::Spent,
            };
            host.say(n, step);
            let commits = host.last.iter().filter(|effect| matches!(effect, Effect::Persist(_))).count();
            assert!(commits <= 1);
            match draw(12) {
                0 => host.pass(draw(40)),
                1 => host.restart(secure_plan(3)),
                2 => host.give(Input::UpdateArrived { blob, bytes: &bytes(9) }),
                3 => host.give(Input::UpdateFailed { blob }),
                _ => {}
            }
        }
    }
}

#[test]
fn a_cohort_is_no_larger_than_the_members_so_that_no_bit_is_spent_on_more() {
    let mut plan = secure_plan(3);
    plan.max_sites = 4000;
    let host = Host::start(plan);
    let announced = host.round.unwrap();
    assert_eq!(announced.max_sites, 3);
    // 3 sites of at most 15.
    assert_eq!(session_parameters(&announced, 1, 0).unwrap().width.bits(), 6);
}

#[test]
fn plans_that_cannot_work_are_refused_by_name() {
    for (field, change) in [
        ("min_sites", (|p: &mut TaskPlan| p.min_sites = 1) as fn(&mut TaskPlan)),
        ("max_attempts", |p| secure(p).max_attempts = 0),
        ("message_seconds", |p| secure(p).message_seconds = 0),
        ("bits", |p| secure(p).codec.bits = 32),
    ] {
        let mut plan = secure_plan(3);
        change(&mut plan);
        let error = plan.check().unwrap_err().to_string();
        assert!(error.contains(field), "{field}: {error}");
    }
}

/// Nine sites in three groups, of which the median withstands one.
fn grouped_plan() -> TaskPlan {
    let mut plan = secure_plan(9);
    plan.min_sites = 9;
    secure(&mut plan).group_sites = Some(3);
    plan.groups = GroupRule { rule: Rule::Median, norm_limit: NormLimit::Unlimited, faulty: 1 };
    plan
}

#[test]
fn an_attempt_is_a_session_in_each_of_the_groups_dealt_out() {
    let mut host = Host::start(grouped_plan());
    (0..8).for_each(|n| host.ready(n, 0));
    assert_eq!(host.stage(), Stage::Training);
    host.ready(8, 0);
    let group = |n: usize| match host.told(n)[..] {
        [AggregatorStep::Begin { attempt: 1, group, .. }] => *group,
        ref other => panic!("{other:?}"),
    };
    let mut sizes = [0; 3];
    (0..9).for_each(|n| sizes[usize::from(group(n))] += 1);
    assert_eq!(sizes, [3; 3]);
    let recorded: Vec<(Option<u16>, usize)> = host
        .records
        .iter()
        .filter_map(|record| match record {
            RoundRecord::SessionBegan { group, sites, .. } => Some((*group, sites.len())),
            _ => None,
        })
        .collect();
    assert_eq!(recorded, [(Some(0), 3), (Some(1), 3), (Some(2), 3)]);
    // All groups end, each with its own record, before the next attempt.
    host.pass(11);
    let failed = host.records.iter().filter(|r| matches!(r, RoundRecord::SessionFailed { .. })).count();
    assert_eq!(failed, 3);
    (0..9).for_each(|n| host.ready(n, 1));
    assert!(matches!(host.told(0)[..], [AggregatorStep::Begin { attempt: 2, .. }]));
}

#[test]
fn too_few_for_the_groups_that_the_rule_needs_end_the_round() {
    let mut host = Host::start(grouped_plan());
    (0..9).for_each(|n| host.ready(n, 0));
    host.pass(11);
    (0..8).for_each(|n| host.ready(n, 1));
    host.say(8, SiteStep::Spent);
    host.pass(60);
    let Stage::Paused(PauseReason::NoSum { attempts: 1, why, .. }) = host.stage() else {
        panic!("{:?}", host.stage())
    };
    assert!(why.contains("8 sites can enter an attempt"), "{why}");
}

#[test]
fn without_a_secret_nobody_is_dealt_out() {
    let mut host = Host::with(Coordinator::new(grouped_plan()).unwrap());
    (0..9).for_each(|n| host.ready(n, 0));
    let Stage::Paused(PauseReason::NoSum { attempts: 0, why, .. }) = host.stage() else {
        panic!("{:?}", host.stage())
    };
    assert!(why.contains("no secret"), "{why}");
}

#[test]
fn groups_that_cannot_work_are_refused_by_name() {
    type Change = fn(&mut TaskPlan);
    let cases: [(&str, Change); 6] = [
        ("groups.min_sites", |p| secure(p).group_sites = Some(1)),
        ("groups.min_sites", |p| secure(p).group_sites = Some(10)),
        ("min_sites: expected sites for 3 groups of 4", |p| secure(p).group_sites = Some(4)),
        ("min_sites: expected sites for 5 groups of 3", |p| p.groups.rule = Rule::Krum { faulty: 1 }),
        ("groups.faulty", |p| p.groups.rule = Rule::Mean),
        ("groups.norm_limit", |p| p.groups.norm_limit = NormLimit::Fixed(0.0)),
    ];
    grouped_plan().check().unwrap();
    for (field, change) in cases {
        let mut plan = grouped_plan();
        change(&mut plan);
        let error = plan.check().unwrap_err().to_string();
        assert!(error.contains(field), "{field}: {error}");
    }
}

fn secure(plan: &mut TaskPlan) -> &mut SecurePlan {
    match &mut plan.aggregation {
        Aggregation::Secure(secure) => secure,
        Aggregation::Plain(_) => unreachable!("a plan for secure aggregation"),
    }
}

#[test]
fn only_members_take_part() {
    let mut host = Host::start(secure_plan(2));
    host.ready(7, 0);
    let stranger: SiteId = site(7);
    let refused = |effect: &Effect| matches!(effect, Effect::Send { site, message: ToSite::Refused { .. } } if *site == stranger);
    assert!(host.last.iter().any(refused));
}
