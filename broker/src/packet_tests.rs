use super::*;
use proptest::prelude::*;

const LIMIT: usize = 1000;

fn connect_body(flags: u8, fields: &[&[u8]]) -> Vec<u8> {
    let mut body = vec![0, 4, b'M', b'Q', b'T', b'T', 4, flags, 0, 30];
    for field in fields {
        body.extend((field.len() as u16).to_be_bytes());
        body.extend(*field);
    }
    body
}

#[test]
fn the_size_limit_is_checked_on_the_fixed_header_alone() {
    // 2.2.3, table 2.4: the largest value of two bytes is 16,383.
    assert_eq!(
        FixedHeader::parse(&[0x30, 0xff, 0x7f], LIMIT),
        Err(PacketError::TooLarge { limit: LIMIT, got: 16_383 })
    );
    assert_eq!(FixedHeader::parse(&[0x30, 0xff], LIMIT), Ok(None));
    let header = FixedHeader::parse(&[0x30, 0xe8, 0x07], LIMIT).unwrap().unwrap();
    assert_eq!((header.remaining, header.length), (1000, 3));
}

#[test]
fn lengths_of_more_than_four_bytes_are_malformed() {
    assert_eq!(FixedHeader::parse(&[0x30, 0xff, 0xff, 0xff, 0xff], LIMIT), Err(PacketError::RemainingLength));
    assert_eq!(FixedHeader::parse(&[0x30, 0xff, 0xff, 0xff], LIMIT), Ok(None));
}

#[test]
fn reserved_types_and_flags_are_refused() {
    for first in [0x00, 0x0f, 0x11, 0x20, 0x41, 0x60, 0x80, 0x90, 0xa0, 0xb0, 0xc1, 0xd0, 0xe1, 0xf0] {
        assert_eq!(FixedHeader::parse(&[first, 0], LIMIT), Err(PacketError::Type(first)), "{first:#x}");
    }
}

#[test]
fn a_connect_with_everything_reads_back() {
    let body =
        connect_body(0b1110_1110, &[b"north", b"medinet/v1/chest/site/north/status", b"{}", b"user", b"pw"]);
    let connect = Connect::parse(&body).unwrap();
    assert_eq!(connect.client_id, "north");
    assert!(connect.clean_session);
    assert_eq!(connect.keep_alive_seconds, 30);
    let will = connect.will.unwrap();
    assert_eq!(will.topic, "medinet/v1/chest/site/north/status");
    assert_eq!((will.qos, will.retain, &will.payload[..]), (QoS::AtLeastOnce, true, &b"{}"[..]));
}

#[test]
fn malformed_connects_are_refused() {
    let cases: &[(&str, Vec<u8>)] = &[
        ("empty", vec![]),
        ("reserved flag", connect_body(0b0000_0011, &[b"a"])),
        ("password without user", connect_body(0b0100_0010, &[b"a", b"pw"])),
        ("will QoS 3", connect_body(0b0001_1110, &[b"a", b"t", b""])),
        ("will QoS without a will", connect_body(0b0000_1010, &[b"a"])),
        ("will retain without a will", connect_body(0b0010_0010, &[b"a"])),
        ("will topic with a wildcard", connect_body(0b0000_0110, &[b"a", b"t/#", b""])),
        ("no will message", connect_body(0b0000_0110, &[b"a", b"t"])),
        ("client id not UTF-8", connect_body(2, &[&[0xff]])),
        ("client id with NUL", connect_body(2, &[b"a\0b"])),
        ("bytes left", connect_body(2, &[b"a", b"b"])),
        ("another protocol", b"\x00\x04HTTP\x04\x02\x00\x1e\x00\x00".to_vec()),
    ];
    for (name, body) in cases {
        assert!(Connect::parse(body).is_err(), "{name}");
    }
}

#[test]
fn other_protocol_versions_are_told_apart() {
    let five = [0, 4, b'M', b'Q', b'T', b'T', 5, 2, 0, 30, 0, 0, 1, b'a'];
    assert_eq!(Connect::parse(&five), Err(PacketError::ProtocolLevel(5)));
    let three = b"\x00\x06MQIsdp\x03\x02\x00\x1e\x00\x01a";
    assert_eq!(Connect::parse(three), Err(PacketError::ProtocolLevel(3)));
    assert_eq!(unacceptable_protocol(5)[..], [0x20, 3, 0, 0x84, 0]);
    assert_eq!(unacceptable_protocol(3)[..], [0x20, 2, 0, 1]);
}

#[test]
fn malformed_publishes_are_refused() {
    let cases: &[(&str, u8, &[u8])] = &[
        ("QoS 3", 0x36, b"\x00\x01t\x00\x01"),
        ("DUP with QoS 0", 0x38, b"\x00\x01t"),
        ("no topic", 0x30, b""),
        ("empty topic", 0x30, b"\x00\x00"),
        ("topic longer than the packet", 0x30, b"\x00\x09t"),
        ("wildcard", 0x30, b"\x00\x03t/#"),
        ("NUL", 0x30, b"\x00\x01\x00"),
        ("packet identifier 0", 0x32, b"\x00\x01t\x00\x00"),
        ("no packet identifier", 0x32, b"\x00\x01t\x00"),
    ];
    for (name, first, body) in cases {
        assert!(Publish::parse(*first, body).is_err(), "{name}");
    }
}

#[test]
fn malformed_subscriptions_are_refused() {
    let cases: &[(&str, &[u8])] = &[
        ("no filter", b"\x00\x01"),
        ("packet identifier 0", b"\x00\x00\x00\x01t\x00"),
        ("no QoS", b"\x00\x01\x00\x01t"),
        ("QoS 3", b"\x00\x01\x00\x01t\x03"),
        ("reserved option bits", b"\x00\x01\x00\x01t\x04"),
        ("empty filter", b"\x00\x01\x00\x00\x00"),
    ];
    for (name, body) in cases {
        assert!(Subscribe::parse(body).is_err(), "{name}");
    }
    let mut many = vec![0, 1];
    for _ in 0..=MAX_FILTERS {
        many.extend(b"\x00\x01t\x00");
    }
    assert!(Subscribe::parse(&many).is_err());
    assert!(Unsubscribe::parse(b"\x00\x01").is_err());
}

#[test]
fn acknowledgements_have_two_bytes_and_no_zero_identifier() {
    assert_eq!(parse_packet_id(&[1, 2]), Ok(0x0102));
    for body in [&[][..], &[1], &[0, 0], &[0, 1, 0]] {
        assert!(parse_packet_id(body).is_err(), "{body:?}");
    }
}

#[test]
fn subacks_follow_the_standards_table() {
    // 3.9.3, figure 3.27: 0x80 is Failure.
    assert_eq!(
        suback(10, &[Some(QoS::AtMostOnce), None, Some(QoS::ExactlyOnce)])[..],
        [0x90, 5, 0, 10, 0, 0x80, 2]
    );
}

proptest! {
    #[test]
    fn no_bytes_make_the_parsers_panic_or_grow(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        if let Ok(Some(header)) = FixedHeader::parse(&bytes, LIMIT) {
            prop_assert!(header.remaining <= LIMIT);
            prop_assert!((2..=5).contains(&header.length));
        }
        if let Ok(connect) = Connect::parse(&bytes) {
            let will = connect.will.as_ref().map_or(0, |w| w.topic.len() + w.payload.len());
            prop_assert!(connect.client_id.len() + will <= bytes.len());
        }
        let first = bytes.first().copied().unwrap_or(0x30);
        if let Ok(publish) = Publish::parse(first, &bytes) {
            prop_assert!(publish.payload_at <= bytes.len());
            prop_assert!(publish.topic.len() < bytes.len());
        }
        if let Ok(subscribe) = Subscribe::parse(&bytes) {
            let text: usize = subscribe.filters.iter().map(|(filter, _)| filter.len()).sum();
            prop_assert!(text <= bytes.len() && subscribe.filters.len() <= MAX_FILTERS);
        }
        let _ = Unsubscribe::parse(&bytes);
        let _ = parse_packet_id(&bytes);
    }

    #[test]
    fn connects_that_are_nearly_right_never_panic(
        flags in any::<u8>(),
        fields in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..20), 0..6),
        cut in 0usize..200,
    ) {
        let fields: Vec<&[u8]> = fields.iter().map(Vec::as_slice).collect();
        let mut body = connect_body(flags, &fields);
        body.truncate(body.len().saturating_sub(cut % 7));
        let _ = Connect::parse(&body);
    }

    #[test]
    fn what_is_written_reads_back(
        topic in "[a-z/]{1,40}",
        payload in proptest::collection::vec(any::<u8>(), 0..400),
        qos in 0u8..3,
        id in 1u16..,
        retain in any::<bool>(),
    ) {
        let qos = QoS::from_bits(qos, "").unwrap();
        let bytes = publish(&topic, &payload, qos, id, retain);
        let header = FixedHeader::parse(&bytes, LIMIT).unwrap().unwrap();
        let body = &bytes[header.length..];
        prop_assert_eq!(header.remaining, body.len());
        let read = Publish::parse(header.first, body).unwrap();
        prop_assert_eq!(&body[read.payload_at..], &payload[..]);
        let packet_id = if qos == QoS::AtMostOnce { 0 } else { id };
        prop_assert_eq!(read, Publish { topic, qos, packet_id, retain, payload_at: body.len() - payload.len() });
    }
}
