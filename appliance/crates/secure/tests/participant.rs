//! What a site refuses, whatever the aggregator says: each rule of the policy and of attempts by itself.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![allow(dead_code, reason = "shares helpers with the federation tests")]

#[path = "federation/identity.rs"]
mod identity;
#[path = "federation/plan.rs"]
mod plan;

use identity::{Authority, Identity};
use medinet_rounds::{Coordinator, Effect, Input as RoundInput};
use medinet_secagg::server::{Advertising, Agreeing, Collecting, Sharing};
use medinet_secagg::{Advertisement, Agreement, KeyList, KeyShares, Message, SitePolicy};
use medinet_secure::{Input, Memory, Output, Participant, Refusal, Setup, Standing};
use medinet_types::{Digest, FederationId, SiteId, UnixMillis};
use medinet_wire::envelope::Signer as _;
use medinet_wire::message::{Aggregation, FromAggregatorToAll, RoundPlan};
use medinet_wire::secure::{
    AbandonmentCertificate, AggregatorStep, EnrolledSites, SiteStep, abandonment_bytes, session_parameters,
};
use plan::{assumptions, federation, policy, site_id, update};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
use std::sync::Arc;
use std::time::Duration;

const SITES: usize = 5;
const TRUST: EnrolledSites<'static> = EnrolledSites { trust: &Authority, now: UnixMillis(0) };

/// A round as a real coordinator announces it.
fn announced() -> RoundPlan {
    let mut coordinator = Coordinator::new(plan::plan(SITES, 3, 1)).unwrap();
    let effects = coordinator.handle(UnixMillis(1000), RoundInput::Start);
    let plan = effects.into_iter().find_map(|effect| match effect {
        Effect::Broadcast(FromAggregatorToAll::Announce(plan)) => Some(plan),
        _ => None,
    });
    plan.unwrap()
}

fn setup(n: usize) -> Setup {
    Setup {
        plan: announced(),
        federation: federation(),
        site: site_id(n),
        policy: policy(),
        signer: Arc::new(Identity::of(&site_id(n))),
        trust: Arc::new(Authority),
        repeat_after: Duration::from_secs(3),
    }
}

struct Site {
    n: usize,
    participant: Participant,
    memory: Vec<u8>,
    rng: ChaCha20Rng,
    held: Vec<Vec<u8>>,
}

impl Site {
    fn new(n: usize) -> Self {
        let participant =
            Participant::new(setup(n), update(n, &announced()), None, Memory::default()).unwrap();
        let memory = Memory::default().to_bytes();
        Self { n, participant, memory, rng: ChaCha20Rng::seed_from_u64(n as u64), held: Vec::new() }
    }

    fn restart(&mut self) {
        let memory = Memory::from_bytes(&self.memory).unwrap();
        self.participant =
            Participant::new(setup(self.n), update(self.n, &announced()), None, memory).unwrap();
    }

    fn give(&mut self, input: Input) -> Vec<SiteStep> {
        let mut said = Vec::new();
        for output in self.participant.handle(UnixMillis(5000), input, &mut self.rng) {
            match output {
                Output::Persist(memory) => self.memory = memory,
                Output::Send(word) => said.push(word.into_step()),
                Output::Hold(masked) => self.held.push(masked.as_bytes().to_vec()),
                Output::Release(_) | Output::Counted | Output::Stopped { .. } => {}
            }
        }
        said
    }

    fn hear(&mut self, step: AggregatorStep) -> Vec<SiteStep> {
        self.give(Input::Heard(step))
    }

    fn begin(&mut self, attempt: u32, abandoned: Vec<AbandonmentCertificate>) -> Vec<SiteStep> {
        self.hear(AggregatorStep::Begin { attempt, group: 0, abandoned })
    }

    fn standing(&self) -> Standing {
        self.participant.standing()
    }
}

/// A session up to masked inputs, by a server that plays its part.
struct Masked {
    sites: Vec<Site>,
    list: KeyList,
    server: Collecting,
}

fn keys(list: &KeyList) -> AggregatorStep {
    AggregatorStep::Keys { session: list.session, part: 0, parts: 1, bytes: list.encode() }
}

fn masked() -> Masked {
    let mut sites: Vec<Site> = (0..SITES).map(Site::new).collect();
    let mut server = Advertising::new(session_parameters(&announced(), 1, 0).unwrap()).unwrap();
    for site in &mut sites {
        let said = site.begin(1, vec![]);
        let [SiteStep::Advertisement(bytes)] = &said[..] else { panic!("{said:?}") };
        server.receive(&site_id(site.n), Advertisement::decode(bytes).unwrap(), &TRUST).unwrap();
    }
    let (list, mut server): (KeyList, Sharing) = server.close(&assumptions()).unwrap();
    for site in &mut sites {
        let said = site.hear(keys(&list));
        let [SiteStep::KeyShares(bytes)] = &said[..] else { panic!("{said:?}") };
        server.receive(&site_id(site.n), KeyShares::decode(bytes).unwrap()).unwrap();
    }
    let (deliveries, mut server) = server.close().unwrap();
    for (site, (_, delivery)) in sites.iter_mut().zip(deliveries) {
        let said = site.hear(AggregatorStep::Shares(delivery.encode()));
        assert!(matches!(&said[..], [SiteStep::MaskedInput { .. }]), "{said:?}");
        server.receive(&site_id(site.n), &site.held[0]).unwrap();
    }
    Masked { sites, list, server }
}

/// Everyone's signature under an abandonment, true or not.
fn certificate(list: &KeyList, members: &[u16]) -> AbandonmentCertificate {
    let key_list = list.digest();
    let bytes = abandonment_bytes(list.session, &key_list);
    let sign = |member: &u16| {
        let site: &SiteId = &list.members[usize::from(*member)].site;
        (*member, Identity::of(site).sign(&bytes).unwrap())
    };
    AbandonmentCertificate {
        session: list.session,
        key_list,
        abandonments: members.iter().map(sign).collect(),
    }
}

#[test]
fn a_second_session_needs_proof_that_the_first_is_dead() {
    // Five sites, of which one may lie (a tenth, at least one), quorum 4: 5 + 1 - 4 + 1 = 3 must have given up.
    let enough = [0, 2, 4];
    let mut forged = certificate(&masked().list, &enough);
    forged.abandonments[1].1[0] ^= 1;
    let fine = certificate(&masked().list, &enough);
    let cases: [(&str, Vec<AbandonmentCertificate>, bool); 7] = [
        ("none", vec![], false),
        ("too few", vec![certificate(&masked().list, &enough[..2])], false),
        ("one of them three times", vec![certificate(&masked().list, &[1, 1, 1])], false),
        ("one forged", vec![forged], false),
        ("another list", vec![AbandonmentCertificate { key_list: Digest::of(b"x"), ..fine.clone() }], false),
        (
            "beyond the list",
            vec![
                certificate(&masked().list, &enough[..2]),
                AbandonmentCertificate { abandonments: vec![(900, vec![1; 32])], ..fine.clone() },
            ],
            false,
        ),
        ("enough", vec![fine], true),
    ];
    for (what, abandoned, enters) in cases {
        for restart in [false, true] {
            let mut site = masked().sites.swap_remove(1);
            if restart {
                site.restart();
            } else {
                let said = site.hear(AggregatorStep::Abandon { attempt: 1 });
                assert!(
                    matches!(&said[..], [SiteStep::Ready { left: 1, abandonments, .. }] if abandonments.len() == 1)
                );
            }
            let said = site.begin(2, abandoned.clone());
            let entered = matches!(&said[..], [SiteStep::Advertisement(_)]);
            assert_eq!(entered, enters, "{what}, restart {restart}: {said:?}");
            assert_eq!(site.standing() == Standing::InSession { attempt: 2 }, enters, "{what}");
        }
    }
}

#[test]
fn who_has_sent_no_input_needs_no_proof_but_a_higher_attempt() {
    let mut site = Site::new(0);
    assert!(matches!(&site.begin(2, vec![])[..], [SiteStep::Advertisement(_)]));
    assert!(site.begin(1, vec![]).is_empty(), "an older call is a late one");
    for step in [AggregatorStep::Abandon { attempt: 1 }, AggregatorStep::Survivors(vec![1, 2])] {
        assert!(site.hear(step).is_empty());
    }
    assert_eq!(site.standing(), Standing::InSession { attempt: 2 });
    // Keys are made once for a session, restarts or not.
    site.restart();
    assert!(matches!(&site.begin(2, vec![])[..], [SiteStep::Ready { left: 2, .. }]));
    assert!(matches!(&site.begin(3, vec![])[..], [SiteStep::Advertisement(_)]));
    assert!(site.begin(5, vec![]).iter().all(|step| matches!(step, SiteStep::Ready { .. })));
    assert!(matches!(&site.begin(5, vec![])[..], [SiteStep::Ready { .. }]), "four attempts are planned");
}

#[test]
fn who_has_agreed_is_spent_and_never_abandons() {
    for restart in [false, true] {
        let Masked { mut sites, list, server } = masked();
        let (survivors, mut server): (_, Agreeing) = server.close().unwrap();
        let said = sites[1].hear(AggregatorStep::Survivors(survivors.encode()));
        let [SiteStep::Agreement(bytes)] = &said[..] else { panic!("{said:?}") };
        server.receive(&site_id(1), Agreement::decode(bytes).unwrap(), &TRUST).unwrap();
        if restart {
            sites[1].restart();
        }
        assert_eq!(sites[1].hear(AggregatorStep::Abandon { attempt: 1 }), [SiteStep::Spent]);
        assert_eq!(sites[1].standing(), Standing::Spent);
        let proof = certificate(&list, &[0, 1, 2, 3, 4]);
        assert_eq!(sites[1].begin(2, vec![proof]), [SiteStep::Spent], "not even with proof");
        // It may still be counted.
        assert!(sites[1].give(Input::Accepted).is_empty());
        assert_eq!(sites[1].standing(), Standing::Counted);
    }
}

#[test]
fn a_site_without_an_input_in_any_session_is_not_counted_by_a_word() {
    let mut site = Site::new(0);
    site.give(Input::Accepted);
    assert_eq!(site.standing(), Standing::Ready);
    site.begin(1, vec![]);
    site.give(Input::Accepted);
    assert_eq!(site.standing(), Standing::InSession { attempt: 1 });
}

#[test]
fn an_aggregator_that_breaks_the_protocol_is_not_spoken_to_again() {
    // A list that lacks a signature, or too short a one, is the aggregator's doing.
    let list = masked().list;
    type Change = fn(&mut KeyList);
    let changes: [Change; 3] = [
        |list| list.members[3].signature[0] ^= 1,
        |list| list.members.truncate(2),
        |list| list.topology.threshold = 1,
    ];
    for change in changes {
        let mut site = Site::new(1);
        let SiteStep::Advertisement(own) = site.begin(1, vec![]).remove(0) else { panic!() };
        let mut list = list.clone();
        list.members[1] = Advertisement::decode(&own).unwrap();
        change(&mut list);
        let said = site.hear(keys(&list));
        assert!(matches!(&said[..], [SiteStep::Failed { attempt: 1, blames: None, .. }]), "{said:?}");
        for restart in [false, true] {
            if restart {
                assert!(Memory::from_bytes(&site.memory).unwrap().is_stopped());
                site.restart();
            }
            assert_eq!(site.standing(), Standing::Stopped, "restart {restart}");
            assert!(site.begin(2, vec![]).is_empty() && site.give(Input::Tick).is_empty());
            assert!(site.hear(AggregatorStep::Abandon { attempt: 1 }).is_empty());
        }
    }
}

/// It is on disk before a word of it is said, also where the site had agreed: what it then says in the round is nothing, not even that it is spent.
#[test]
fn that_a_site_has_stopped_is_on_disk_before_it_is_said() {
    let Masked { mut sites, server, .. } = masked();
    let (survivors, _): (_, Agreeing) = server.close().unwrap();
    let site = &mut sites[1];
    assert!(matches!(
        &site.hear(AggregatorStep::Survivors(survivors.encode()))[..],
        [SiteStep::Agreement(_)]
    ));
    // No list of agreements.
    let wrong = Input::Heard(AggregatorStep::Agreements(vec![1, 0xff]));
    let outputs = site.participant.handle(UnixMillis(5000), wrong, &mut site.rng);
    let persisted = outputs.iter().position(|output| matches!(output, Output::Persist(_)));
    let said = outputs.iter().position(|output| matches!(output, Output::Send(_)));
    assert!(persisted.is_some() && persisted < said, "{outputs:?}");
    let Some(Output::Persist(bytes)) = persisted.map(|at| &outputs[at]) else { unreachable!("just found") };
    let memory = Memory::from_bytes(bytes).unwrap();
    assert!(memory.is_stopped() && memory.is_spent());
    site.memory.clone_from(bytes);
    site.restart();
    assert_eq!(site.standing(), Standing::Stopped);
    assert!(site.give(Input::Tick).is_empty());
}

#[test]
fn a_session_of_more_sites_than_were_announced_is_refused() {
    let plan = RoundPlan { max_sites: SITES as u32 - 1, ..announced() };
    let mut server = Advertising::new(session_parameters(&plan, 1, 0).unwrap()).unwrap();
    let mut sites: Vec<Site> = (0..SITES).map(Site::new).collect();
    for site in &mut sites {
        let setup = Setup { plan: plan.clone(), ..setup(site.n) };
        let update = update(site.n, &plan);
        site.participant = Participant::new(setup, update, None, Memory::default()).unwrap();
        let said = site.begin(1, vec![]);
        let [SiteStep::Advertisement(bytes)] = &said[..] else { panic!("{said:?}") };
        server.receive(&site_id(site.n), Advertisement::decode(bytes).unwrap(), &TRUST).unwrap();
    }
    let (list, _) = server.close(&assumptions()).unwrap();
    let said = sites[2].hear(keys(&list));
    assert!(
        matches!(&said[..], [SiteStep::Failed { blames: None, reason, .. }] if reason.contains("at most 4 sites")),
        "{said:?}"
    );
    assert_eq!(sites[2].standing(), Standing::Stopped);
}

#[test]
fn rounds_that_fall_short_of_the_policy_are_refused() {
    let secure = |change: fn(&mut medinet_wire::secure::SecurePlan)| {
        let mut setup = setup(0);
        let Aggregation::Secure(plan) = &mut setup.plan.aggregation else { unreachable!() };
        change(plan);
        setup.check()
    };
    setup(0).check().unwrap();
    assert!(matches!(secure(|p| p.assumptions.corrupt_permille = 0), Err(Refusal::Assumptions(_))));
    assert!(matches!(secure(|p| p.assumptions.security_bits = 10), Err(Refusal::Assumptions(_))));
    assert!(matches!(secure(|p| p.assumptions.grinding_bits = 0), Err(Refusal::Assumptions(_))));
    assert!(matches!(
        secure(|p| p.assumptions.adversary = medinet_secagg::Adversary::HonestButCurious),
        Err(Refusal::Assumptions(_))
    ));
    // A number of colluders however few sites are named.
    let mut careful = setup(0);
    careful.policy.assumptions.colluders = 1;
    assert!(matches!(careful.check(), Err(Refusal::Assumptions("colluders"))));
    let plan = |setup: &mut Setup, colluders| {
        let Aggregation::Secure(plan) = &mut setup.plan.aggregation else { unreachable!() };
        plan.assumptions.colluders = colluders;
        // Three sites bear a colluder or a loss, not both.
        plan.assumptions.dropout_permille = 0;
    };
    plan(&mut careful, 1);
    careful.check().unwrap();
    let most = u16::try_from(careful.plan.min_sites).unwrap() - 2;
    plan(&mut careful, most + 1);
    let refused = careful.check().unwrap_err().to_string();
    assert!(refused.contains(&format!("expected at most {most}")), "{refused}");
    assert!(matches!(
        secure(|p| p.federation = FederationId::new("other").unwrap()),
        Err(Refusal::Federation { .. })
    ));
    assert!(matches!(secure(|p| p.codec.bits = 0), Err(Refusal::Plan(_))));
    // Five sites, of which one may collude, at least three in the sum: the noise of two can be counted on.
    let noisy = |honest_survivors, permille| {
        let mut setup = setup(0);
        setup.plan.aggregation = plan::noisy_plan(SITES, 3, 1).aggregation;
        let Aggregation::Secure(plan) = &mut setup.plan.aggregation else { unreachable!() };
        plan.codec.noise.as_mut().unwrap().honest_survivors = honest_survivors;
        plan.assumptions.corrupt_permille = permille;
        plan.assumptions.dropout_permille = 0;
        setup.check().map_err(|error| error.to_string())
    };
    noisy(2, 100).unwrap();
    assert!(noisy(3, 100).unwrap_err().contains("honest_survivors: expected at most 2"));
    // Two of five may collude: both may be among the three.
    assert!(noisy(2, 400).unwrap_err().contains("honest_survivors: expected at most 1"));
    // Fewer sites make less noise than the plan claims.
    assert!(noisy(1, 400).unwrap_err().contains("expected an epsilon of at least"));
    let policy = SitePolicy { minimum_cohort: 4, ..policy() };
    assert!(matches!(Setup { policy, ..setup(0) }.check(), Err(Refusal::Cohort { asked: 3, least: 4 })));
    let mut plain = setup(0);
    plain.plan.aggregation =
        Aggregation::Plain(medinet_update::CodecPlan { bits: 4, clip_norm: 1.0, error_feedback: false });
    assert!(matches!(plain.check(), Err(Refusal::Plan(_))));
}

#[test]
fn memory_reads_back_and_damage_is_noticed() {
    let site = masked().sites.swap_remove(2);
    let memory = Memory::from_bytes(&site.memory).unwrap();
    assert!(memory.is_committed() && !memory.is_spent());
    assert_eq!(memory.to_bytes(), site.memory);
    for cut in 0..site.memory.len() {
        assert!(Memory::from_bytes(&site.memory[..cut]).is_err());
    }
}

#[test]
fn nothing_secret_is_printed() {
    let site = masked().sites.swap_remove(0);
    let text = format!("{:?}", site.participant);
    assert_eq!(text, "Participant { standing: InSession { attempt: 1 }, .. }");
}
