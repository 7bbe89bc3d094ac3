//! A client's packet; tests and the target in `fuzz/` both call this. Panics only when the parser breaks its contract.

use medinet_broker::packet::{
    Connect, FixedHeader, Kind, MAX_FILTERS, Publish, QoS, Subscribe, Unsubscribe, parse_packet_id, publish,
};

/// Small enough that a breach shows at once.
pub(crate) const LIMIT: usize = 4000;

pub(crate) fn packets(bytes: &[u8]) {
    let Ok(Some(header)) = FixedHeader::parse(bytes, LIMIT) else { return };
    assert!(header.remaining <= LIMIT && (2..=5).contains(&header.length), "{header:?}");
    // The broker reads this many bytes and hands over no others.
    let Some(body) = bytes.get(header.length..header.length + header.remaining) else { return };
    match header.kind {
        Kind::Connect => {
            if let Ok(connect) = Connect::parse(body) {
                let will = connect.will.map_or(0, |will| will.topic.len() + will.payload.len());
                assert!(connect.client_id.len() + will < body.len(), "more than the packet holds");
            }
        }
        Kind::Publish => {
            let Ok(read) = Publish::parse(header.first, body) else { return };
            assert!(!read.topic.is_empty() && !read.topic.contains(['+', '#', '\0']), "{:?}", read.topic);
            assert_eq!(read.packet_id == 0, read.qos == QoS::AtMostOnce);
            // What is passed on to others says the same.
            let payload = &body[read.payload_at..];
            let written = publish(&read.topic, payload, read.qos, read.packet_id, read.retain);
            let again = FixedHeader::parse(&written, LIMIT).ok().flatten().expect("a packet of ours");
            let again_body = &written[again.length..];
            assert_eq!(again.remaining, again_body.len());
            assert_eq!(Publish::parse(again.first, again_body).as_ref(), Ok(&read));
            assert_eq!(&again_body[read.payload_at..], payload);
        }
        Kind::Subscribe => {
            if let Ok(read) = Subscribe::parse(body) {
                assert!((1..=MAX_FILTERS).contains(&read.filters.len()));
                assert!(read.filters.iter().map(|(filter, _)| filter.len()).sum::<usize>() < body.len());
            }
        }
        Kind::Unsubscribe => {
            if let Ok(read) = Unsubscribe::parse(body) {
                assert!((1..=MAX_FILTERS).contains(&read.filters.len()));
                assert!(read.filters.iter().map(String::len).sum::<usize>() < body.len());
            }
        }
        Kind::PubAck | Kind::PubRec | Kind::PubRel | Kind::PubComp => {
            assert!(parse_packet_id(body) != Ok(0) && (parse_packet_id(body).is_err() || body.len() == 2));
        }
        Kind::PingReq | Kind::Disconnect => {}
    }
}
