//! Clients that stall, flood or break the standard disturb nobody but themselves.

use crate::fixture::{Fixture, PATIENCE, topic};
use crate::raw::{ConnectOptions, connect_packet, framed};
use medinet_broker::packet;
use medinet_types::{ByteCount, HumanDuration};
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;

fn millis(count: u64) -> HumanDuration {
    HumanDuration(Duration::from_millis(count))
}

#[tokio::test]
async fn malformed_packets_end_their_own_connection() {
    let fixture = Fixture::new();
    let mut bystander = fixture.client("site:south").await;
    let after_connect: &[(&str, Vec<u8>)] = &[
        ("reserved type 0", vec![0x00, 0]),
        ("reserved type 15", vec![0xf0, 0]),
        ("a server's packet", vec![0x20, 2, 0, 0]),
        ("reserved flags", vec![0x83, 0]),
        ("length of five bytes", vec![0x30, 0xff, 0xff, 0xff, 0xff, 0x7f]),
        ("QoS 3", framed(0x36, b"\0\x01t\0\x01x")),
        ("topic longer than the packet", framed(0x30, b"\0\xfft")),
        ("topic not UTF-8", framed(0x30, b"\0\x02\xff\xfe")),
        ("publish to a wildcard", framed(0x30, b"\0\x03a/+x")),
        ("packet identifier 0", framed(0x32, b"\0\x01t\0\0x")),
        ("subscribe without a filter", framed(0x82, b"\0\x01")),
        ("subscribe with QoS 3", framed(0x82, b"\0\x01\0\x01t\x03")),
        ("unsubscribe without a filter", framed(0xa2, b"\0\x01")),
        ("unsubscribe shorter than its field", framed(0xa2, b"\0")),
        ("puback too long", framed(0x40, b"\0\x01\0")),
        ("puback too short", framed(0x40, b"\0")),
        ("ping with a body", framed(0xc0, b"x")),
        (
            "a second connect",
            connect_packet(&ConnectOptions { client_id: "c", clean: true, ..Default::default() }),
        ),
        ("nothing but noise", (0..=255).rev().collect()),
    ];
    for (count, (name, bytes)) in after_connect.iter().enumerate() {
        let mut client = fixture.client("site:north").await;
        client.send(bytes).await;
        client.closed().await;
        assert_eq!(fixture.broker.counters().malformed, count as u64 + 1, "{name}");
    }
    let first: &[(&str, Vec<u8>)] = &[
        ("publish before connect", framed(0x30, b"\0\x01tx")),
        ("ping before connect", vec![0xc0, 0]),
        ("connect cut short", framed(0x10, b"\0\x04MQTT")),
        ("connect of another protocol", framed(0x10, b"\0\x04HTTP\x04\x02\0\x1e\0\x01c")),
        ("connect with the reserved flag", framed(0x10, b"\0\x04MQTT\x04\x03\0\x1e\0\x01c")),
        ("an HTTP request", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
    ];
    for (name, bytes) in first {
        let mut raw = fixture.raw("site:north").await;
        raw.send(bytes).await;
        raw.closed().await;
        bystander.ping().await;
        let _ = name;
    }
    assert_eq!(fixture.broker.counters().malformed, (after_connect.len() + first.len()) as u64);
    bystander.publish(&topic("C/site/south/up/msg"), b"fine").await;
}

#[tokio::test]
async fn other_protocol_versions_are_refused_in_their_own_words() {
    let fixture = Fixture::new();
    let mut five = fixture.raw("site:north").await;
    five.send(&framed(0x10, b"\0\x04MQTT\x05\x02\0\x1e\0\0\x01c")).await;
    assert_eq!(five.expect(2).await, [0, 0x84, 0]);
    five.closed().await;
    let mut three = fixture.raw("site:north").await;
    three.send(&framed(0x10, b"\0\x06MQIsdp\x03\x02\0\x1e\0\x01c")).await;
    assert_eq!(three.expect(2).await, [0, 1]);
    three.closed().await;
}

#[tokio::test]
async fn oversized_packets_are_refused_before_they_are_sent() {
    let fixture = Fixture::new();
    let mut client = fixture.client("site:north").await;
    // The fixed header alone: 321 KiB and one byte.
    client.send(&[0x30, 0x81, 0x88, 0x14]).await;
    client.closed().await;
    // The largest message of the protocol passes.
    let mut client = fixture.client("site:north").await;
    client.publish(&topic("C/site/north/up/chunk"), &vec![1; 320 * 1024]).await;
}

#[tokio::test]
async fn silence_ends_a_connection_after_one_and_a_half_keep_alives() {
    let fixture = Fixture::new();
    let mut raw = fixture.raw("site:north").await;
    let options = ConnectOptions { client_id: "c", clean: true, keep_alive: 1, will: None };
    raw.try_connect(&options).await;
    raw.closed().await;
    assert_eq!(fixture.broker.counters().timeouts, 1);
}

#[tokio::test]
async fn without_a_keep_alive_the_brokers_own_limit_holds() {
    let fixture = Fixture::with(|settings| settings.connections.max_silence = millis(300));
    let mut raw = fixture.raw("site:north").await;
    raw.try_connect(&ConnectOptions { client_id: "c", clean: true, ..Default::default() }).await;
    raw.closed().await;
    assert_eq!(fixture.broker.counters().timeouts, 1);
}

#[tokio::test]
async fn half_packets_end() {
    let fixture = Fixture::with(|settings| {
        settings.connections.packet_timeout = millis(500);
        settings.connections.connect_timeout = millis(2000);
    });
    let mut bystander = fixture.client("site:south").await;
    let mut client = fixture.client("site:north").await;
    let frame = packet::publish(&topic("C/site/north/up/msg"), &[0; 1000], packet::QoS::AtMostOnce, 0, false);
    client.send(&frame[..20]).await;
    client.closed().await;
    // The same within CONNECT, and with no CONNECT at all.
    let connect = connect_packet(&ConnectOptions { client_id: "c", clean: true, ..Default::default() });
    let mut half = fixture.raw("site:north").await;
    let mut none = fixture.raw("site:north").await;
    half.send(&connect[..5]).await;
    half.closed().await;
    none.closed().await;
    fixture.until(|counted| counted.timeouts == 3).await;
    bystander.ping().await;
}

#[tokio::test]
async fn a_packet_that_trickles_in_is_taken() {
    let fixture = Fixture::new();
    let mut client = fixture.client("site:north").await;
    let frame = packet::publish(&topic("C/site/north/up/msg"), b"slowly", packet::QoS::AtLeastOnce, 4, false);
    for byte in frame {
        client.send(&[byte]).await;
    }
    assert_eq!(client.expect(4).await, [0, 4]);
}

#[tokio::test]
async fn a_flood_delays_nobody_elses_messages() {
    let fixture = Fixture::with(|settings| {
        settings.limits.site.packets_per_second = 200;
        settings.limits.site.bytes_per_second = ByteCount(64 << 20);
    });
    let mut aggregator = fixture.client("aggregator:hub").await;
    aggregator.subscribe(&topic("C/site/+/up/+"), 1).await;
    // North sends as fast as the network takes it, far above its rate, and never reads.
    let north = fixture.client("site:north").await;
    let frame = packet::publish(
        &topic("C/site/north/up/chunk"),
        &vec![0; 64 * 1024],
        packet::QoS::AtMostOnce,
        0,
        false,
    );
    let flood = tokio::spawn(async move {
        let mut north = north;
        while north.stream.write_all(&frame).await.is_ok() {}
    });
    let mut south = fixture.client("site:south").await;
    let publishing = tokio::spawn(async move {
        for index in 0..50u8 {
            south.publish(&topic("C/site/south/up/msg"), &[index]).await;
        }
        south
    });
    let mut got = Vec::new();
    let mut of_north = 0;
    let receive = async {
        while got.len() < 50 || fixture.broker.counters().throttled == 0 {
            let message = aggregator.message().await;
            if message.topic == topic("C/site/south/up/msg") {
                got.push(message.payload[0]);
            } else {
                of_north += 1;
            }
        }
    };
    tokio::time::timeout(PATIENCE, receive).await.expect("the flood drowned the others");
    assert_eq!(got, (0..50).collect::<Vec<u8>>());
    assert!(of_north > 0);
    publishing.await.unwrap().ping().await;
    flood.abort();
}

#[tokio::test]
async fn a_flood_while_the_aggregator_is_away_pushes_out_nobody_elses_messages() {
    let fixture = Fixture::with(|settings| {
        settings.queues.up_per_site = ByteCount(8 << 20);
        settings.limits.site.packets_per_second = 100_000;
        settings.limits.site.bytes_per_second = ByteCount(1 << 30);
    });
    let mut aggregator = fixture.client_as("aggregator:hub", "hub", false).await;
    aggregator.subscribe(&topic("C/site/+/up/+"), 1).await;
    aggregator.disconnect().await;
    let mut south = fixture.client("site:south").await;
    for index in 0..10u8 {
        south.publish(&topic("C/site/south/up/msg"), &[index]).await;
    }
    // Four times what its own queue holds.
    let mut north = fixture.client("site:north").await;
    for _ in 0..128 {
        north.publish(&topic("C/site/north/up/chunk"), &vec![0; 256 * 1024]).await;
    }
    let mut aggregator = fixture.raw("aggregator:hub").await;
    assert!(aggregator.connect("hub", false).await);
    let mut got = Vec::new();
    while got.len() < 10 {
        let message = aggregator.message().await;
        if message.topic == topic("C/site/south/up/msg") {
            got.push(message.payload[0]);
        }
    }
    assert_eq!(got, (0..10).collect::<Vec<u8>>());
}

#[tokio::test]
async fn a_subscriber_that_does_not_read_is_disconnected_and_delays_nobody() {
    let fixture = Fixture::with(|settings| settings.connections.write_timeout = millis(1000));
    let mut slow = fixture.client("site:north").await;
    slow.subscribe(&topic("C/agg/+"), 0).await;
    let mut quick = fixture.client("site:south").await;
    quick.subscribe(&topic("C/agg/+"), 1).await;
    let mut aggregator = fixture.client("aggregator:hub").await;
    let send = async {
        let mut sent = 0u32;
        while fixture.broker.counters().slow == 0 {
            aggregator.publish(&topic("C/agg/announce"), &vec![7; 300 * 1024]).await;
            assert_eq!(quick.message().await.payload.len(), 300 * 1024);
            sent += 1;
        }
        sent
    };
    tokio::time::timeout(PATIENCE, send).await.expect("the slow subscriber is still there");
    aggregator.publish(&topic("C/agg/announce"), b"last").await;
    assert_eq!(quick.message().await.payload, b"last");
    // `slow` was connected all the while, and has not read.
    drop(slow);
}

#[tokio::test]
async fn acknowledgements_in_any_order_or_of_nothing_harm_nobody() {
    let fixture = Fixture::new();
    let mut site = fixture.client("site:north").await;
    site.subscribe(&topic("C/site/north/down/+"), 1).await;
    let mut aggregator = fixture.client("aggregator:hub").await;
    let down = topic("C/site/north/down/msg");
    for payload in [b"1", b"2", b"3"] {
        aggregator.publish(&down, payload).await;
    }
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(site.message_unacknowledged().await.packet_id);
    }
    ids.reverse();
    for id in ids {
        site.send(&packet::puback(id)).await;
        site.send(&packet::puback(id)).await;
    }
    for stray in [7, 99, 1000, 65535] {
        site.send(&packet::puback(stray)).await;
        site.send(&packet::pubcomp(stray)).await;
        site.send(&packet::pubrec(stray)).await;
        assert_eq!(site.expect(6).await, u16::to_be_bytes(stray));
    }
    for index in 0..150u8 {
        aggregator.publish(&down, &[index]).await;
        assert_eq!(site.message().await.payload, [index]);
    }
}

#[tokio::test]
async fn unread_acknowledgements_hold_only_their_own_client_back() {
    let fixture = Fixture::new();
    let mut site = fixture.client("site:north").await;
    site.subscribe(&topic("C/site/north/down/+"), 1).await;
    let mut aggregator = fixture.client("aggregator:hub").await;
    let mut south = fixture.client("site:south").await;
    south.subscribe(&topic("C/site/south/down/+"), 1).await;
    // More than the router sends without an acknowledgement.
    for index in 0..250u8 {
        aggregator.publish(&topic("C/site/north/down/msg"), &[index]).await;
    }
    aggregator.publish(&topic("C/site/south/down/msg"), b"south").await;
    assert_eq!(south.message().await.payload, b"south");
    for index in 0..250u8 {
        assert_eq!(site.message().await.payload, [index]);
    }
}

#[tokio::test]
async fn places_are_limited_for_each_party_and_in_all() {
    let fixture = Fixture::with(|settings| {
        settings.connections.max_connections = 3;
        settings.limits.site.max_connections = 2;
    });
    let refused = async |principal: &str| {
        let mut raw = fixture.raw(principal).await;
        let options = ConnectOptions { client_id: "one more", clean: true, ..Default::default() };
        assert_eq!(raw.try_connect(&options).await.0, 3, "{principal}");
        raw.closed().await;
    };
    let first = fixture.client_as("site:north", "a", true).await;
    let mut second = fixture.client_as("site:north", "b", true).await;
    refused("site:north").await;
    let _third = fixture.client_as("site:south", "a", true).await;
    refused("site:south").await;
    refused("aggregator:hub").await;
    first.disconnect().await;
    fixture.client("aggregator:hub").await.ping().await;
    second.ping().await;
}

#[tokio::test]
async fn new_client_identifiers_every_time_leave_nothing_behind() {
    let fixture = Fixture::new();
    for index in 0..60 {
        let mut client = fixture.client_as("site:north", &format!("random-{index}"), index % 2 == 0).await;
        client.subscribe(&topic("C/site/north/down/+"), 1).await;
    }
    // An old one has made room for newer ones; the newest is still there.
    let mut old = fixture.raw("site:north").await;
    assert!(!old.connect("random-1", false).await);
    let mut new = fixture.raw("site:north").await;
    assert!(new.connect("random-59", false).await);
}

#[tokio::test]
async fn too_many_inflight_publishes_wait_and_all_arrive() {
    let fixture = Fixture::with(|settings| settings.connections.max_inflight = 2);
    let mut aggregator = fixture.client("aggregator:hub").await;
    aggregator.subscribe(&topic("C/site/+/up/+"), 1).await;
    let mut site = fixture.client("site:north").await;
    let up = topic("C/site/north/up/msg");
    for id in 1..=80u16 {
        site.send_publish(&up, &[id as u8], 1, id, false).await;
    }
    for id in 1..=80u16 {
        assert_eq!(site.expect(4).await, id.to_be_bytes());
        assert_eq!(aggregator.message().await.payload, [id as u8]);
    }
}
