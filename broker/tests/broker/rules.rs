//! Each topic rule, accepted and refused, through the whole broker.

use crate::fixture::{Fixture, topic};
use crate::raw::ConnectOptions;

#[tokio::test]
async fn publishing() {
    let fixture = Fixture::new();
    let mut site = fixture.client("site:north").await;
    for allowed in ["C/site/north/up/msg", "C/site/north/up/chunk", "C/site/north/status"] {
        site.publish(&topic(allowed), b"x").await;
    }
    let mut aggregator = fixture.client("aggregator:hub").await;
    for allowed in ["C/agg/announce", "C/agg/status", "C/site/north/down/msg", "C/site/south/down/chunk"] {
        aggregator.publish(&topic(allowed), b"x").await;
    }
    let refused = [
        ("site:north", "C/site/south/up/msg"),
        ("site:north", "C/site/south/status"),
        ("site:north", "C/site/north/down/msg"),
        ("site:north", "C/agg/announce"),
        ("site:north", "B/site/north/up/msg"),
        ("site:north", "C/site/north/up/other"),
        ("site:north", "$SYS/broker/clients"),
        ("site:north", "other"),
        ("aggregator:hub", "C/site/north/up/msg"),
        ("aggregator:hub", "C/site/north/status"),
        ("aggregator:hub", "C/site/west/down/msg"),
        ("aggregator:hub", "B/agg/announce"),
        ("operator:ops", "C/agg/status"),
        ("operator:ops", "C/site/north/status"),
    ];
    for (count, (principal, text)) in refused.iter().enumerate() {
        for qos in [0, 1, 2] {
            let mut client = fixture.client_as(principal, "refused", true).await;
            client.send_publish(&topic(text), b"x", qos, 1, false).await;
            client.closed().await;
            assert_eq!(
                fixture.broker.counters().publishes_refused,
                (3 * count + usize::from(qos) + 1) as u64,
                "{text}"
            );
        }
    }
    // Those who kept to the rules are still there.
    site.ping().await;
    aggregator.ping().await;
}

#[tokio::test]
async fn a_refused_publish_reaches_nobody_and_is_not_retained() {
    let fixture = Fixture::new();
    let mut operator = fixture.client("operator:ops").await;
    assert_eq!(operator.subscribe(&topic("C/site/+/status"), 1).await, 1);
    let mut north = fixture.client("site:north").await;
    north.send_publish(&topic("C/site/south/status"), b"forged", 1, 1, true).await;
    north.closed().await;
    let mut south = fixture.client("site:south").await;
    south.publish_retained(&topic("C/site/south/status"), b"true").await;
    assert_eq!(operator.message().await.payload, b"true");
    let mut late = fixture.client_as("operator:ops", "late", true).await;
    late.subscribe(&topic("C/site/+/status"), 1).await;
    assert_eq!(late.message().await.payload, b"true");
    late.ping().await;
}

#[tokio::test]
async fn lanes_take_no_retained_messages() {
    let fixture = Fixture::new();
    let mut site = fixture.client("site:north").await;
    site.send_publish(&topic("C/site/north/up/msg"), b"x", 1, 1, true).await;
    site.closed().await;
}

#[tokio::test]
async fn subscribing() {
    let fixture = Fixture::new();
    let table: &[(&str, &[&str], &[&str])] = &[
        (
            "site:north",
            &["C/agg/+", "C/agg/announce", "C/site/north/down/+", "C/site/north/down/msg"],
            &[
                "#",
                "+/#",
                "medinet/#",
                "C/#",
                "C/agg/#",
                "$SYS/#",
                "$SYS/broker/clients",
                "$share/group/medinet/v1/chest/agg/+",
                "medinet/v1/+/agg/+",
                "C/site/+/down/+",
                "C/site/south/down/+",
                "C/site/north/up/+",
                "C/site/+/status",
                "B/agg/+",
                "other",
            ],
        ),
        (
            "aggregator:hub",
            &["C/site/+/up/+", "C/site/north/up/msg", "C/site/+/status", "C/site/south/status"],
            &[
                "#",
                "C/agg/+",
                "B/site/+/up/+",
                "C/site/west/up/+",
                "C/site/+/down/+",
                "$share/g/medinet/v1/chest/site/+/up/+",
            ],
        ),
        (
            "operator:ops",
            &["C/agg/+", "C/agg/checkpoint", "C/site/+/status", "C/site/north/status"],
            &["#", "C/site/+/up/+", "C/site/north/down/msg", "B/agg/+", "C/site/west/status"],
        ),
    ];
    for (principal, allowed, refused) in table {
        let mut client = fixture.client(principal).await;
        for filter in *allowed {
            assert_eq!(client.subscribe(&topic(filter), 1).await, 1, "{principal} {filter}");
        }
        for filter in *refused {
            assert_eq!(client.subscribe(&topic(filter), 1).await, 0x80, "{principal} {filter}");
        }
        client.ping().await;
    }
    assert_eq!(fixture.broker.counters().subscriptions_refused, 15 + 6 + 5);
}

#[tokio::test]
async fn one_subscribe_may_hold_allowed_and_refused_filters() {
    let fixture = Fixture::new();
    let mut site = fixture.client("site:north").await;
    let filters = [topic("C/agg/+"), "#".to_owned(), topic("C/site/north/down/+")];
    site.send_subscribe(&[(&filters[0], 2), (&filters[1], 1), (&filters[2], 0)]).await;
    assert_eq!(site.expect(9).await, [0, 7, 2, 0x80, 0]);
    let mut aggregator = fixture.client("aggregator:hub").await;
    aggregator.publish(&topic("C/site/north/down/msg"), b"down").await;
    assert_eq!((site.message().await.payload, true), (b"down".to_vec(), true));
}

#[tokio::test]
async fn wills() {
    let fixture = Fixture::new();
    for (principal, text, allowed) in [
        ("site:north", "C/site/north/status", true),
        ("site:north", "C/site/south/status", false),
        ("site:north", "C/agg/status", false),
        ("site:north", "C/site/north/up/msg", false),
        ("site:north", "B/site/north/status", false),
        ("site:north", "anything", false),
        ("aggregator:hub", "C/agg/status", true),
        ("aggregator:hub", "C/agg/announce", false),
        ("aggregator:hub", "B/agg/status", false),
        ("operator:ops", "C/agg/status", false),
    ] {
        let mut raw = fixture.raw(principal).await;
        let will = topic(text);
        let (code, _) = raw
            .try_connect(&ConnectOptions {
                client_id: "c",
                clean: true,
                keep_alive: 60,
                will: Some((&will, "gone", 1, true)),
            })
            .await;
        assert_eq!(code, if allowed { 0 } else { 5 }, "{principal} {text}");
        if !allowed {
            raw.closed().await;
        }
    }
}

#[tokio::test]
async fn parties_of_no_federation_cannot_connect() {
    let fixture = Fixture::new();
    for principal in ["site:stranger", "aggregator:other", "operator:nobody", "broker:second"] {
        let mut raw = fixture.raw(principal).await;
        let (code, _) = raw
            .try_connect(&ConnectOptions { client_id: "c", clean: true, ..ConnectOptions::default() })
            .await;
        assert_eq!(code, 5, "{principal}");
        raw.closed().await;
    }
}

#[tokio::test]
async fn federations_on_one_broker_do_not_hear_each_other() {
    let fixture = Fixture::new();
    let mut both = fixture.client("site:south").await;
    both.subscribe(&topic("C/agg/+"), 1).await;
    both.subscribe(&topic("B/agg/+"), 1).await;
    let mut chest = fixture.client("aggregator:hub").await;
    let mut brain = fixture.client("aggregator:hub-two").await;
    chest.subscribe(&topic("C/site/+/up/+"), 1).await;
    brain.subscribe(&topic("B/site/+/up/+"), 1).await;
    both.publish(&topic("B/site/south/up/msg"), b"for brain").await;
    both.publish(&topic("C/site/south/up/msg"), b"for chest").await;
    assert_eq!(chest.message().await.payload, b"for chest");
    assert_eq!(brain.message().await.payload, b"for brain");
    chest.ping().await;
    brain.ping().await;
    brain.publish(&topic("B/agg/announce"), b"brain's").await;
    assert_eq!(both.message().await.topic, topic("B/agg/announce"));
}
