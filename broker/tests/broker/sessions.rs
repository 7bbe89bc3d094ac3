//! Retained messages, sessions, wills and quality of service through the front door.

use crate::fixture::{Fixture, topic};
use crate::raw::ConnectOptions;
use medinet_broker::packet;
use std::collections::BTreeSet;

#[tokio::test]
async fn each_quality_of_service_arrives_as_asked() {
    let fixture = Fixture::new();
    for wished in [0u8, 1, 2] {
        let mut site = fixture.client_as("site:north", &format!("q{wished}"), true).await;
        assert_eq!(site.subscribe(&topic("C/site/north/down/+"), wished).await, wished);
        let mut aggregator = fixture.client("aggregator:hub").await;
        let down = topic("C/site/north/down/msg");
        for sent in [0u8, 1, 2] {
            aggregator.send_publish(&down, &[sent], sent, 3, false).await;
            match sent {
                0 => {}
                1 => assert_eq!(aggregator.expect(4).await, [0, 3]),
                _ => {
                    assert_eq!(aggregator.expect(5).await, [0, 3]);
                    aggregator.send(&packet::pubrel(3)).await;
                    assert_eq!(aggregator.expect(7).await, [0, 3]);
                }
            }
            let message = site.message().await;
            assert_eq!((message.payload, message.qos), (vec![sent], wished));
        }
        site.ping().await;
    }
}

#[tokio::test]
async fn retained_messages_come_with_every_subscription() {
    let fixture = Fixture::new();
    let mut aggregator = fixture.client("aggregator:hub").await;
    let announce = topic("C/agg/announce");
    aggregator.publish_retained(&announce, b"old").await;
    aggregator.publish_retained(&announce, b"new").await;
    aggregator.publish_retained(&topic("C/agg/release"), b"model").await;

    let mut site = fixture.client_as("site:north", "keeps", false).await;
    for _ in 0..2 {
        site.subscribe(&topic("C/agg/+"), 1).await;
        let mut got = BTreeSet::new();
        for _ in 0..2 {
            let message = site.message().await;
            assert!(message.retain && message.qos == 1);
            got.insert((message.topic, message.payload));
        }
        let want = [(announce.clone(), b"new".to_vec()), (topic("C/agg/release"), b"model".to_vec())];
        assert_eq!(got, BTreeSet::from(want));
    }
    // To those who are subscribed already it is an ordinary message.
    aggregator.publish_retained(&announce, b"newest").await;
    let message = site.message().await;
    assert_eq!((message.payload, message.retain), (b"newest".to_vec(), false));
    // An empty one clears it; a message that is not retained, empty or not, leaves it.
    aggregator.publish(&announce, b"").await;
    aggregator.publish_retained(&topic("C/agg/release"), b"").await;
    site.message().await;
    site.message().await;
    let mut late = fixture.client("site:south").await;
    late.subscribe(&topic("C/agg/+"), 2).await;
    let message = late.message().await;
    assert_eq!((message.payload, message.qos), (b"newest".to_vec(), 1));
    late.ping().await;
}

#[tokio::test]
async fn retained_messages_that_were_not_acknowledged_come_again() {
    let fixture = Fixture::new();
    let mut aggregator = fixture.client("aggregator:hub").await;
    aggregator.publish_retained(&topic("C/agg/announce"), b"round 1").await;
    let mut site = fixture.client_as("site:north", "keeps", false).await;
    site.subscribe(&topic("C/agg/+"), 1).await;
    site.message_unacknowledged().await;
    drop(site);
    let mut site = fixture.raw("site:north").await;
    assert!(site.connect("keeps", false).await);
    assert_eq!(site.message().await.payload, b"round 1");
    site.ping().await;
    site.disconnect().await;
    let mut site = fixture.raw("site:north").await;
    assert!(site.connect("keeps", false).await);
    site.ping().await;
}

#[tokio::test]
async fn a_session_keeps_what_came_while_its_client_was_away() {
    let fixture = Fixture::new();
    let mut aggregator = fixture.client_as("aggregator:hub", "hub", false).await;
    aggregator.subscribe(&topic("C/site/+/up/+"), 1).await;
    aggregator.disconnect().await;
    // More than the protocol lets wait for one site: sixteen chunks of 256 KiB, half as much again, and every one of
    // another site between them.
    let mut north = fixture.client("site:north").await;
    let mut south = fixture.client("site:south").await;
    let chunk = |index: u8| vec![index; 256 * 1024];
    for index in 0..24 {
        north.publish(&topic("C/site/north/up/chunk"), &chunk(index)).await;
        south.publish(&topic("C/site/south/up/msg"), &[index]).await;
    }
    let mut aggregator = fixture.raw("aggregator:hub").await;
    assert!(aggregator.connect("hub", false).await);
    let (mut chunks, mut messages) = (Vec::new(), Vec::new());
    for _ in 0..48 {
        let message = aggregator.message().await;
        if message.topic == topic("C/site/north/up/chunk") {
            assert_eq!(message.payload, chunk(message.payload[0]));
            chunks.push(message.payload[0]);
        } else {
            messages.push(message.payload[0]);
        }
    }
    assert_eq!(chunks, (0..24).collect::<Vec<u8>>());
    assert_eq!(messages, (0..24).collect::<Vec<u8>>());
    aggregator.ping().await;
}

#[tokio::test]
async fn messages_that_were_not_acknowledged_come_again() {
    let fixture = Fixture::new();
    let mut site = fixture.client_as("site:north", "keeps", false).await;
    site.subscribe(&topic("C/site/north/down/+"), 1).await;
    let mut aggregator = fixture.client("aggregator:hub").await;
    for payload in [b"1", b"2", b"3"] {
        aggregator.publish(&topic("C/site/north/down/msg"), payload).await;
    }
    assert_eq!(site.message().await.payload, b"1");
    assert_eq!(site.message_unacknowledged().await.payload, b"2");
    assert_eq!(site.message_unacknowledged().await.payload, b"3");
    site.ping().await;
    drop(site);
    let mut site = fixture.raw("site:north").await;
    assert!(site.connect("keeps", false).await);
    assert_eq!(site.message().await.payload, b"2");
    assert_eq!(site.message().await.payload, b"3");
    // Subscribing again, as clients do after each connect, loses nothing and repeats nothing.
    assert_eq!(site.subscribe(&topic("C/site/north/down/+"), 1).await, 1);
    aggregator.publish(&topic("C/site/north/down/msg"), b"4").await;
    assert_eq!(site.message().await.payload, b"4");
}

#[tokio::test]
async fn a_clean_session_forgets() {
    let fixture = Fixture::new();
    let mut site = fixture.client_as("site:north", "same", false).await;
    site.subscribe(&topic("C/site/north/down/+"), 1).await;
    site.disconnect().await;
    let mut site = fixture.raw("site:north").await;
    assert!(!site.connect("same", true).await);
    let mut aggregator = fixture.client("aggregator:hub").await;
    aggregator.publish(&topic("C/site/north/down/msg"), b"lost").await;
    site.ping().await;
    site.disconnect().await;
    let mut site = fixture.raw("site:north").await;
    assert!(!site.connect("same", false).await);
    site.ping().await;
}

#[tokio::test]
async fn a_qos_2_publish_that_is_sent_twice_arrives_once() {
    let fixture = Fixture::new();
    let mut aggregator = fixture.client("aggregator:hub").await;
    aggregator.subscribe(&topic("C/site/+/up/+"), 1).await;
    let up = topic("C/site/north/up/msg");
    let mut site = fixture.client_as("site:north", "keeps", false).await;
    site.send_publish(&up, b"once", 2, 5, false).await;
    assert_eq!(site.expect(5).await, [0, 5]);
    drop(site);
    let mut site = fixture.raw("site:north").await;
    assert!(site.connect("keeps", false).await);
    let mut again = packet::publish(&up, b"once", packet::QoS::ExactlyOnce, 5, false).to_vec();
    again[0] |= 8;
    site.send(&again).await;
    assert_eq!(site.expect(5).await, [0, 5]);
    site.send(&packet::pubrel(5)).await;
    assert_eq!(site.expect(7).await, [0, 5]);
    // Repeating the last step is allowed, and the identifier is free again.
    site.send(&packet::pubrel(5)).await;
    assert_eq!(site.expect(7).await, [0, 5]);
    site.send_publish(&up, b"another", 2, 5, false).await;
    assert_eq!(site.expect(5).await, [0, 5]);
    assert_eq!(aggregator.message().await.payload, b"once");
    assert_eq!(aggregator.message().await.payload, b"another");
}

#[tokio::test]
async fn unsubscribing_is_answered_and_holds_also_in_a_resumed_session() {
    let fixture = Fixture::new();
    let mut site = fixture.client_as("site:north", "keeps", false).await;
    // Never subscribed, and refused ones: answered all the same.
    site.unsubscribe(&[&topic("C/agg/+"), "#"]).await;
    site.subscribe(&topic("C/site/north/down/+"), 1).await;
    site.subscribe(&topic("C/agg/+"), 1).await;
    site.disconnect().await;
    let mut site = fixture.raw("site:north").await;
    assert!(site.connect("keeps", false).await);
    site.unsubscribe(&[&topic("C/site/north/down/+")]).await;
    let mut aggregator = fixture.client("aggregator:hub").await;
    aggregator.publish(&topic("C/site/north/down/msg"), b"unwanted").await;
    aggregator.publish(&topic("C/agg/announce"), b"wanted").await;
    assert_eq!(site.message().await.payload, b"wanted");
    site.ping().await;
}

#[tokio::test]
async fn overlapping_subscriptions_of_the_aggregator_end_one_by_one() {
    let fixture = Fixture::new();
    let mut aggregator = fixture.client("aggregator:hub").await;
    aggregator.subscribe(&topic("C/site/+/up/+"), 1).await;
    aggregator.subscribe(&topic("C/site/north/up/+"), 1).await;
    aggregator.unsubscribe(&[&topic("C/site/+/up/+")]).await;
    let mut north = fixture.client("site:north").await;
    let mut south = fixture.client("site:south").await;
    south.publish(&topic("C/site/south/up/msg"), b"unwanted").await;
    north.publish(&topic("C/site/north/up/msg"), b"wanted").await;
    assert_eq!(aggregator.message().await.payload, b"wanted");
    aggregator.unsubscribe(&[&topic("C/site/north/up/+")]).await;
    north.publish(&topic("C/site/north/up/msg"), b"unwanted").await;
    aggregator.ping().await;
}

#[tokio::test]
async fn a_will_is_published_when_the_client_vanishes_and_not_when_it_says_goodbye() {
    let fixture = Fixture::new();
    let mut operator = fixture.client("operator:ops").await;
    operator.subscribe(&topic("C/site/+/status"), 1).await;
    let status = topic("C/site/north/status");
    let options = ConnectOptions {
        client_id: "c",
        clean: true,
        keep_alive: 60,
        will: Some((&status, "gone", 1, true)),
    };
    let mut site = fixture.raw("site:north").await;
    site.try_connect(&options).await;
    site.publish_retained(&status, b"here").await;
    assert_eq!(operator.message().await.payload, b"here");
    site.disconnect().await;
    let mut site = fixture.raw("site:north").await;
    site.try_connect(&options).await;
    site.publish_retained(&status, b"here again").await;
    assert_eq!(operator.message().await.payload, b"here again");
    drop(site);
    assert_eq!(operator.message().await.payload, b"gone");
    let mut late = fixture.client_as("operator:ops", "late", true).await;
    late.subscribe(&topic("C/site/+/status"), 1).await;
    let message = late.message().await;
    assert_eq!((message.payload, message.retain), (b"gone".to_vec(), true));
}

#[tokio::test]
async fn a_client_that_breaks_the_rules_leaves_its_will() {
    let fixture = Fixture::new();
    let mut operator = fixture.client("operator:ops").await;
    operator.subscribe(&topic("C/site/+/status"), 1).await;
    let status = topic("C/site/north/status");
    let mut site = fixture.raw("site:north").await;
    let will = Some((status.as_str(), "gone", 0, false));
    site.try_connect(&ConnectOptions { client_id: "c", clean: true, keep_alive: 60, will }).await;
    site.send_publish("forbidden", b"x", 0, 0, false).await;
    site.closed().await;
    assert_eq!(operator.message().await.payload, b"gone");
}

#[tokio::test]
async fn the_same_client_takes_its_place_again() {
    let fixture = Fixture::with(|settings| settings.limits.site.max_connections = 1);
    let mut operator = fixture.client("operator:ops").await;
    operator.subscribe(&topic("C/site/+/status"), 1).await;
    let status = topic("C/site/north/status");
    let mut first = fixture.raw("site:north").await;
    let will = Some((status.as_str(), "gone", 1, false));
    first.try_connect(&ConnectOptions { client_id: "c", clean: false, keep_alive: 60, will }).await;
    first.subscribe(&topic("C/site/north/down/+"), 1).await;
    let mut second = fixture.raw("site:north").await;
    assert!(second.connect("c", false).await);
    first.closed().await;
    assert_eq!(operator.message().await.payload, b"gone");
    assert_eq!(fixture.broker.counters().superseded, 1);
    let mut aggregator = fixture.client("aggregator:hub").await;
    aggregator.publish(&topic("C/site/north/down/msg"), b"to the second").await;
    assert_eq!(second.message().await.payload, b"to the second");
}

#[tokio::test]
async fn many_reconnects_at_once_leave_one_that_works() {
    let fixture = Fixture::new();
    let mut others = Vec::new();
    for _ in 0..10 {
        let mut raw = fixture.raw("site:north").await;
        raw.send(&crate::raw::connect_packet(&ConnectOptions {
            client_id: "c",
            clean: false,
            ..Default::default()
        }))
        .await;
        others.push(raw);
    }
    // Each is let in or gives way.
    for raw in &mut others {
        let _ = raw.packet().await;
    }
    let mut last = fixture.raw("site:north").await;
    last.connect("c", false).await;
    last.subscribe(&topic("C/site/north/down/+"), 1).await;
    let mut aggregator = fixture.client("aggregator:hub").await;
    aggregator.publish(&topic("C/site/north/down/msg"), b"here").await;
    assert_eq!(last.message().await.payload, b"here");
    assert_eq!(fixture.broker.connections(), 2);
}

#[tokio::test]
async fn nobody_takes_the_session_of_another_principal() {
    let fixture = Fixture::new();
    let mut north = fixture.client_as("site:north", "appliance", false).await;
    north.subscribe(&topic("C/site/north/down/+"), 1).await;
    for principal in ["site:south", "operator:ops", "aggregator:hub"] {
        for client_id in ["appliance", "site:north:0", "site:north"] {
            let mut other = fixture.raw(principal).await;
            assert!(!other.connect(client_id, false).await, "{principal} as {client_id}");
            other.ping().await;
        }
    }
    let mut aggregator = fixture.client("aggregator:hub").await;
    aggregator.publish(&topic("C/site/north/down/msg"), b"for north").await;
    assert_eq!(north.message().await.payload, b"for north");
    assert_eq!(fixture.broker.counters().superseded, 0);
}

#[tokio::test]
async fn client_identifiers_follow_the_standard() {
    let fixture = Fixture::new();
    let mut anonymous = [fixture.raw("site:north").await, fixture.raw("site:north").await];
    for raw in &mut anonymous {
        raw.connect("", true).await;
    }
    for raw in &mut anonymous {
        raw.ping().await;
    }
    let long = "x".repeat(257);
    for (client_id, clean) in [("", false), (long.as_str(), true)] {
        let mut raw = fixture.raw("site:south").await;
        let (code, _) = raw.try_connect(&ConnectOptions { client_id, clean, ..Default::default() }).await;
        assert_eq!(code, 2);
        raw.closed().await;
    }
}
