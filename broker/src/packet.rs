//! The MQTT 3.1.1 control packets that a server reads and writes (OASIS standard of 29 October 2014).
//!
//! This is the only place that looks at bytes of a client. The fixed header is checked against the size limit
//! before anything is buffered ([`FixedHeader::parse`]); a body is then parsed as a whole, strictly: a packet that the
//! standard calls malformed is an error, and the connection is closed. Nothing here allocates more than the body is
//! long.

use bytes::{BufMut, Bytes, BytesMut};

/// The most filters that one SUBSCRIBE or UNSUBSCRIBE may carry.
pub const MAX_FILTERS: usize = 256;

/// A packet breaks the standard or a limit; the client misbehaved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// The remaining length has more than four bytes (2.2.3).
    #[error("remaining length: expected at most four bytes, got a fifth")]
    RemainingLength,
    /// The packet is larger than the broker takes.
    #[error("packet size: expected at most {limit} bytes, got {got}")]
    TooLarge {
        /// The limit in bytes, fixed header not counted.
        limit: usize,
        /// The announced size in bytes.
        got: usize,
    },
    /// A type that a server never receives, or flags that the standard reserves (2.2.1, 2.2.2).
    #[error("first byte {0:#04x}: expected a packet type that clients send, with its flags")]
    Type(u8),
    /// The body ends before a field does.
    #[error("{0}: the packet ends before the field does")]
    Short(&'static str),
    /// Bytes are left after the last field.
    #[error("{0}: bytes are left after the last field")]
    Trailing(&'static str),
    /// Text is not UTF-8, or holds U+0000 (1.5.3).
    #[error("{0}: expected UTF-8 text without U+0000")]
    Text(&'static str),
    /// A field holds a value that the standard forbids.
    #[error("{field}: expected {expected}")]
    Value {
        /// The field.
        field: &'static str,
        /// What may stand there.
        expected: &'static str,
    },
    /// The client speaks another version of the protocol.
    #[error("protocol level: expected 4 (MQTT 3.1.1), got {0}")]
    ProtocolLevel(u8),
}

/// Quality of service (4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum QoS {
    /// At most once.
    AtMostOnce = 0,
    /// At least once.
    AtLeastOnce = 1,
    /// Exactly once.
    ExactlyOnce = 2,
}

impl QoS {
    fn from_bits(bits: u8, field: &'static str) -> Result<Self, PacketError> {
        match bits {
            0 => Ok(Self::AtMostOnce),
            1 => Ok(Self::AtLeastOnce),
            2 => Ok(Self::ExactlyOnce),
            _ => Err(PacketError::Value { field, expected: "a quality of service of 0, 1 or 2" }),
        }
    }
}

/// Packet types that clients send (2.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Asks for a session.
    Connect,
    /// Carries a message.
    Publish,
    /// Answers a QoS 1 message.
    PubAck,
    /// First answer to a QoS 2 message.
    PubRec,
    /// Second step of a QoS 2 message.
    PubRel,
    /// Last step of a QoS 2 message.
    PubComp,
    /// Asks for messages.
    Subscribe,
    /// No longer asks for messages.
    Unsubscribe,
    /// Asks for a sign of life.
    PingReq,
    /// Says goodbye.
    Disconnect,
}

/// The fixed header (2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FixedHeader {
    /// What the packet is.
    pub kind: Kind,
    /// The packet's first byte.
    pub first: u8,
    /// Bytes that follow the fixed header.
    pub remaining: usize,
    /// Bytes of the fixed header itself: 2 to 5.
    pub length: usize,
}

impl FixedHeader {
    /// Reads the fixed header at the start of `bytes`; `None` when more bytes are needed. `limit` is the most bytes
    /// that may follow the fixed header.
    ///
    /// # Errors
    /// When the type, the flags or the length are not allowed.
    pub fn parse(bytes: &[u8], limit: usize) -> Result<Option<Self>, PacketError> {
        let Some(&first) = bytes.first() else { return Ok(None) };
        let kind = match (first >> 4, first & 0x0f) {
            (1, 0) => Kind::Connect,
            (3, _) => Kind::Publish,
            (4, 0) => Kind::PubAck,
            (5, 0) => Kind::PubRec,
            (6, 2) => Kind::PubRel,
            (7, 0) => Kind::PubComp,
            (8, 2) => Kind::Subscribe,
            (10, 2) => Kind::Unsubscribe,
            (12, 0) => Kind::PingReq,
            (14, 0) => Kind::Disconnect,
            _ => return Err(PacketError::Type(first)),
        };
        let mut remaining = 0usize;
        for (index, &byte) in bytes[1..].iter().take(4).enumerate() {
            remaining |= usize::from(byte & 0x7f) << (7 * index);
            if byte & 0x80 == 0 {
                if remaining > limit {
                    return Err(PacketError::TooLarge { limit, got: remaining });
                }
                return Ok(Some(Self { kind, first, remaining, length: index + 2 }));
            }
        }
        if bytes.len() > 4 { Err(PacketError::RemainingLength) } else { Ok(None) }
    }
}

/// CONNECT (3.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connect {
    /// The client identifier; may be empty with a clean session.
    pub client_id: String,
    /// Whether the session starts anew and ends with the connection.
    pub clean_session: bool,
    /// Seconds of silence that the client promises not to exceed; 0 for none.
    pub keep_alive_seconds: u16,
    /// The last will.
    pub will: Option<Will>,
}

/// A last will (3.1.2.5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Will {
    /// Where it is published.
    pub topic: String,
    /// What is published.
    pub payload: Bytes,
    /// With which quality of service.
    pub qos: QoS,
    /// Whether it is retained.
    pub retain: bool,
}

/// The head of a PUBLISH (3.3); the payload stays where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    /// The topic name, free of wildcards.
    pub topic: String,
    /// Quality of service.
    pub qos: QoS,
    /// Packet identifier; 0 with QoS 0.
    pub packet_id: u16,
    /// Whether the message is to be retained.
    pub retain: bool,
    /// Where the payload begins in the body.
    pub payload_at: usize,
}

/// SUBSCRIBE (3.8).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscribe {
    /// Packet identifier.
    pub packet_id: u16,
    /// Topic filters with the highest QoS wished for.
    pub filters: Vec<(String, QoS)>,
}

/// UNSUBSCRIBE (3.10).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsubscribe {
    /// Packet identifier.
    pub packet_id: u16,
    /// Topic filters.
    pub filters: Vec<String>,
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize, field: &'static str) -> Result<&'a [u8], PacketError> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(PacketError::Short(field))?;
        self.rest = rest;
        Ok(taken)
    }

    fn byte(&mut self, field: &'static str) -> Result<u8, PacketError> {
        Ok(self.take(1, field)?[0])
    }

    fn number(&mut self, field: &'static str) -> Result<u16, PacketError> {
        let bytes = self.take(2, field)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn binary(&mut self, field: &'static str) -> Result<&'a [u8], PacketError> {
        let length = self.number(field)?;
        self.take(length.into(), field)
    }

    fn text(&mut self, field: &'static str) -> Result<&'a str, PacketError> {
        let text = std::str::from_utf8(self.binary(field)?).map_err(|_| PacketError::Text(field))?;
        if text.contains('\0') { Err(PacketError::Text(field)) } else { Ok(text) }
    }

    fn packet_id(&mut self) -> Result<u16, PacketError> {
        let field = "packet identifier";
        match self.number(field)? {
            0 => Err(PacketError::Value { field, expected: "1 to 65535" }),
            id => Ok(id),
        }
    }

    fn end(self, packet: &'static str) -> Result<(), PacketError> {
        if self.rest.is_empty() { Ok(()) } else { Err(PacketError::Trailing(packet)) }
    }
}

fn topic_name(reader: &mut Reader<'_>, field: &'static str) -> Result<String, PacketError> {
    let topic = reader.text(field)?;
    if topic.is_empty() || topic.contains(['+', '#']) {
        return Err(PacketError::Value { field, expected: "at least one character and no wildcard" });
    }
    Ok(topic.to_owned())
}

fn topic_filter(reader: &mut Reader<'_>) -> Result<String, PacketError> {
    let field = "topic filter";
    let filter = reader.text(field)?;
    if filter.is_empty() {
        return Err(PacketError::Value { field, expected: "at least one character" });
    }
    Ok(filter.to_owned())
}

impl Connect {
    /// Reads the body of a CONNECT.
    ///
    /// # Errors
    /// When it is malformed, or of another protocol version ([`PacketError::ProtocolLevel`], to which a client
    /// deserves the answer [`unacceptable_protocol`]).
    pub fn parse(body: &[u8]) -> Result<Self, PacketError> {
        let mut reader = Reader { rest: body };
        let name = reader.binary("protocol name")?;
        let level = reader.byte("protocol level")?;
        match (name, level) {
            (b"MQTT", 4) => {}
            (b"MQTT" | b"MQIsdp", _) => return Err(PacketError::ProtocolLevel(level)),
            _ => return Err(PacketError::Value { field: "protocol name", expected: "MQTT" }),
        }
        let flags = reader.byte("connect flags")?;
        let flag = |bit: u8| flags & (1 << bit) != 0;
        let malformed = |expected| PacketError::Value { field: "connect flags", expected };
        if flag(0) {
            return Err(malformed("the reserved bit to be 0"));
        }
        if flag(6) && !flag(7) {
            return Err(malformed("no password without a user name"));
        }
        let keep_alive_seconds = reader.number("keep alive")?;
        let client_id = reader.text("client identifier")?.to_owned();
        let qos = QoS::from_bits((flags >> 3) & 3, "will")?;
        let will = if flag(2) {
            let topic = topic_name(&mut reader, "will topic")?;
            let payload = Bytes::copy_from_slice(reader.binary("will message")?);
            Some(Will { topic, payload, qos, retain: flag(5) })
        } else if flag(5) || qos != QoS::AtMostOnce {
            return Err(malformed("no will options without a will"));
        } else {
            None
        };
        // The certificate says who the client is; a user name and a password are read and not looked at.
        if flag(7) {
            reader.text("user name")?;
        }
        if flag(6) {
            reader.binary("password")?;
        }
        reader.end("CONNECT")?;
        Ok(Self { client_id, clean_session: flag(1), keep_alive_seconds, will })
    }
}

impl Publish {
    /// Reads the body of a PUBLISH whose first byte was `first`.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn parse(first: u8, body: &[u8]) -> Result<Self, PacketError> {
        let qos = QoS::from_bits((first >> 1) & 3, "PUBLISH")?;
        if qos == QoS::AtMostOnce && first & 8 != 0 {
            return Err(PacketError::Value { field: "PUBLISH", expected: "no DUP flag with QoS 0" });
        }
        let mut reader = Reader { rest: body };
        let topic = topic_name(&mut reader, "topic name")?;
        let packet_id = if qos == QoS::AtMostOnce { 0 } else { reader.packet_id()? };
        let payload_at = body.len() - reader.rest.len();
        Ok(Self { topic, qos, packet_id, retain: first & 1 != 0, payload_at })
    }
}

impl Subscribe {
    /// Reads the body of a SUBSCRIBE.
    ///
    /// # Errors
    /// When it is malformed or has more than [`MAX_FILTERS`] filters.
    pub fn parse(body: &[u8]) -> Result<Self, PacketError> {
        let mut reader = Reader { rest: body };
        let packet_id = reader.packet_id()?;
        let mut filters = Vec::new();
        while !reader.rest.is_empty() {
            let filter = topic_filter(&mut reader)?;
            let options = reader.byte("requested QoS")?;
            filters.push((filter, QoS::from_bits(options, "requested QoS")?));
            count_filters(filters.len())?;
        }
        count_filters(filters.len())?;
        Ok(Self { packet_id, filters })
    }
}

impl Unsubscribe {
    /// Reads the body of an UNSUBSCRIBE.
    ///
    /// # Errors
    /// When it is malformed or has more than [`MAX_FILTERS`] filters.
    pub fn parse(body: &[u8]) -> Result<Self, PacketError> {
        let mut reader = Reader { rest: body };
        let packet_id = reader.packet_id()?;
        let mut filters = Vec::new();
        while !reader.rest.is_empty() {
            filters.push(topic_filter(&mut reader)?);
            count_filters(filters.len())?;
        }
        count_filters(filters.len())?;
        Ok(Self { packet_id, filters })
    }
}

fn count_filters(count: usize) -> Result<(), PacketError> {
    if (1..=MAX_FILTERS).contains(&count) {
        Ok(())
    } else {
        Err(PacketError::Value { field: "topic filters", expected: "1 to 256 of them" })
    }
}

/// Reads the body of a PUBACK, PUBREC, PUBREL or PUBCOMP: its packet identifier.
///
/// # Errors
/// When it is malformed.
pub fn parse_packet_id(body: &[u8]) -> Result<u16, PacketError> {
    let mut reader = Reader { rest: body };
    let id = reader.packet_id()?;
    reader.end("acknowledgement")?;
    Ok(id)
}

/// Answers to CONNECT (3.2.2.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectReturn {
    /// Accepted.
    Accepted = 0,
    /// The server does not speak that version.
    UnacceptableProtocol = 1,
    /// The client identifier is not allowed.
    IdentifierRejected = 2,
    /// The server cannot serve now.
    ServerUnavailable = 3,
    /// The client is not allowed to connect.
    NotAuthorized = 5,
}

/// A CONNACK.
#[must_use]
pub fn connack(session_present: bool, code: ConnectReturn) -> Bytes {
    Bytes::copy_from_slice(&[0x20, 2, u8::from(session_present), code as u8])
}

/// The refusal that a client of another protocol version understands: 3.1 and 3.1.1 read return code 1; MQTT 5 reads
/// reason code 0x84, "Unsupported Protocol Version" (MQTT 5.0, 3.2.2.2), with no properties.
#[must_use]
pub fn unacceptable_protocol(level: u8) -> Bytes {
    if level >= 5 {
        Bytes::from_static(&[0x20, 3, 0, 0x84, 0])
    } else {
        connack(false, ConnectReturn::UnacceptableProtocol)
    }
}

/// A SUBACK (3.9); `None` stands for a refused filter.
#[must_use]
pub fn suback(packet_id: u16, granted: &[Option<QoS>]) -> Bytes {
    let mut out = BytesMut::with_capacity(granted.len() + 7);
    out.put_u8(0x90);
    put_remaining_length(&mut out, 2 + granted.len());
    out.put_u16(packet_id);
    out.extend(granted.iter().map(|granted| granted.map_or(0x80, |qos| qos as u8)));
    out.freeze()
}

/// A packet that consists of a first byte and a packet identifier.
fn acknowledgement(first: u8, packet_id: u16) -> Bytes {
    let [high, low] = packet_id.to_be_bytes();
    Bytes::copy_from_slice(&[first, 2, high, low])
}

/// A PUBREC (3.5).
#[must_use]
pub fn pubrec(packet_id: u16) -> Bytes {
    acknowledgement(0x50, packet_id)
}

/// A PUBREL (3.6).
#[must_use]
pub fn pubrel(packet_id: u16) -> Bytes {
    acknowledgement(0x62, packet_id)
}

/// A PUBCOMP (3.7).
#[must_use]
pub fn pubcomp(packet_id: u16) -> Bytes {
    acknowledgement(0x70, packet_id)
}

/// A PUBACK (3.4).
#[must_use]
pub fn puback(packet_id: u16) -> Bytes {
    acknowledgement(0x40, packet_id)
}

/// An UNSUBACK (3.11).
#[must_use]
pub fn unsuback(packet_id: u16) -> Bytes {
    acknowledgement(0xb0, packet_id)
}

/// A PINGRESP (3.13).
#[must_use]
pub fn pingresp() -> Bytes {
    Bytes::from_static(&[0xd0, 0])
}

/// A PUBLISH (3.3). `packet_id` is written with QoS 1 and 2.
#[must_use]
pub fn publish(topic: &str, payload: &[u8], qos: QoS, packet_id: u16, retain: bool) -> Bytes {
    let id_bytes = if qos == QoS::AtMostOnce { 0 } else { 2 };
    let remaining = 2 + topic.len() + id_bytes + payload.len();
    let mut out = BytesMut::with_capacity(remaining + 5);
    out.put_u8(0x30 | (qos as u8) << 1 | u8::from(retain));
    put_remaining_length(&mut out, remaining);
    // Topics come from `Publish::parse` or `Will`, whose length field had two bytes.
    out.put_u16(topic.len() as u16);
    out.put_slice(topic.as_bytes());
    if qos != QoS::AtMostOnce {
        out.put_u16(packet_id);
    }
    out.put_slice(payload);
    out.freeze()
}

fn put_remaining_length(out: &mut BytesMut, mut length: usize) {
    loop {
        let low = (length & 0x7f) as u8;
        length >>= 7;
        out.put_u8(if length == 0 { low } else { low | 0x80 });
        if length == 0 {
            return;
        }
    }
}

#[cfg(test)]
#[path = "packet_tests.rs"]
mod tests;
