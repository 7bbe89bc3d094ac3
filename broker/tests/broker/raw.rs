//! A client that sends exactly the bytes that a test wants.

use crate::fixture::PATIENCE;
use medinet_broker::packet::{self, QoS};
use medinet_identity::Identity;
use std::io;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

pub(crate) struct Raw {
    pub(crate) stream: TlsStream<TcpStream>,
}

/// A PUBLISH as a client sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) topic: String,
    pub(crate) payload: Vec<u8>,
    pub(crate) qos: u8,
    pub(crate) packet_id: u16,
    pub(crate) retain: bool,
}

#[derive(Default, Clone)]
pub(crate) struct ConnectOptions<'a> {
    pub(crate) client_id: &'a str,
    pub(crate) clean: bool,
    pub(crate) keep_alive: u16,
    /// Topic, payload, QoS, retained.
    pub(crate) will: Option<(&'a str, &'a str, u8, bool)>,
}

fn field(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as u16).to_be_bytes());
    out.extend(bytes);
}

pub(crate) fn framed(first: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    let mut length = body.len();
    loop {
        let low = (length & 0x7f) as u8;
        length >>= 7;
        out.push(if length == 0 { low } else { low | 0x80 });
        if length == 0 {
            break;
        }
    }
    out.extend(body);
    out
}

pub(crate) fn connect_packet(options: &ConnectOptions<'_>) -> Vec<u8> {
    let mut flags = u8::from(options.clean) << 1;
    if let Some((_, _, qos, retain)) = options.will {
        flags |= 4 | qos << 3 | u8::from(retain) << 5;
    }
    let mut body = vec![0, 4, b'M', b'Q', b'T', b'T', 4, flags];
    body.extend(options.keep_alive.to_be_bytes());
    field(&mut body, options.client_id.as_bytes());
    if let Some((topic, payload, ..)) = options.will {
        field(&mut body, topic.as_bytes());
        field(&mut body, payload.as_bytes());
    }
    framed(0x10, &body)
}

impl Raw {
    pub(crate) async fn open(address: SocketAddr, identity: &Identity) -> io::Result<Self> {
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        let connector = TlsConnector::from(identity.client_config());
        let host = "127.0.0.1".try_into().unwrap();
        Ok(Self { stream: timeout(PATIENCE, connector.connect(host, tcp)).await?? })
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// The next packet's first byte and body.
    pub(crate) async fn packet(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let read = async {
            let first = self.stream.read_u8().await?;
            let (mut length, mut shift) = (0usize, 0);
            loop {
                let byte = self.stream.read_u8().await?;
                length |= usize::from(byte & 0x7f) << shift;
                shift += 7;
                if byte & 0x80 == 0 {
                    break;
                }
            }
            let mut body = vec![0; length];
            self.stream.read_exact(&mut body).await?;
            Ok((first, body))
        };
        timeout(PATIENCE, read).await.expect("no packet in time")
    }

    /// The next packet, which must be of this type.
    pub(crate) async fn expect(&mut self, kind: u8) -> Vec<u8> {
        let (first, body) = self.packet().await.unwrap();
        assert_eq!(first >> 4, kind, "{first:#x} {body:?}");
        body
    }

    /// The broker must hang up, without another packet.
    pub(crate) async fn closed(&mut self) {
        let outcome = self.packet().await;
        assert!(outcome.is_err(), "expected the end, got {outcome:?}");
    }

    /// Sends CONNECT; the CONNACK's return code and whether a session was there.
    pub(crate) async fn try_connect(&mut self, options: &ConnectOptions<'_>) -> (u8, bool) {
        self.send(&connect_packet(options)).await;
        let body = self.expect(2).await;
        (body[1], body[0] == 1)
    }

    /// Connects; whether a session was there.
    pub(crate) async fn connect(&mut self, client_id: &str, clean: bool) -> bool {
        let (code, present) =
            self.try_connect(&ConnectOptions { client_id, clean, keep_alive: 60, will: None }).await;
        assert_eq!(code, 0);
        present
    }

    /// Subscribes to one filter; the SUBACK's code.
    pub(crate) async fn subscribe(&mut self, filter: &str, qos: u8) -> u8 {
        self.send_subscribe(&[(filter, qos)]).await;
        let body = self.expect(9).await;
        assert_eq!(body.len(), 3);
        body[2]
    }

    pub(crate) async fn send_subscribe(&mut self, filters: &[(&str, u8)]) {
        let mut body = vec![0, 7];
        for (filter, qos) in filters {
            field(&mut body, filter.as_bytes());
            body.push(*qos);
        }
        self.send(&framed(0x82, &body)).await;
    }

    pub(crate) async fn unsubscribe(&mut self, filters: &[&str]) {
        let mut body = vec![0, 8];
        for filter in filters {
            field(&mut body, filter.as_bytes());
        }
        self.send(&framed(0xa2, &body)).await;
        assert_eq!(self.expect(11).await, [0, 8]);
    }

    pub(crate) async fn send_publish(&mut self, topic: &str, payload: &[u8], qos: u8, id: u16, retain: bool) {
        let qos = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce][usize::from(qos)];
        self.send(&packet::publish(topic, payload, qos, id, retain)).await;
    }

    /// Publishes with QoS 1 and waits for the PUBACK.
    pub(crate) async fn publish(&mut self, topic: &str, payload: &[u8]) {
        self.send_publish(topic, payload, 1, 9, false).await;
        assert_eq!(self.expect(4).await, [0, 9]);
    }

    /// Publishes a retained message with QoS 1 and waits for the PUBACK.
    pub(crate) async fn publish_retained(&mut self, topic: &str, payload: &[u8]) {
        self.send_publish(topic, payload, 1, 9, true).await;
        assert_eq!(self.expect(4).await, [0, 9]);
    }

    /// The next message, which is not acknowledged.
    pub(crate) async fn message_unacknowledged(&mut self) -> Message {
        let (first, body) = self.packet().await.unwrap();
        assert_eq!(first >> 4, 3, "{first:#x} {body:?}");
        let length = usize::from(u16::from_be_bytes([body[0], body[1]]));
        let topic = String::from_utf8(body[2..2 + length].to_vec()).unwrap();
        let qos = first >> 1 & 3;
        let rest = &body[2 + length..];
        let (packet_id, payload) =
            if qos == 0 { (0, rest) } else { (u16::from_be_bytes([rest[0], rest[1]]), &rest[2..]) };
        Message { topic, payload: payload.to_vec(), qos, packet_id, retain: first & 1 == 1 }
    }

    /// The next message; QoS 1 is acknowledged, and the whole exchange of QoS 2 done.
    pub(crate) async fn message(&mut self) -> Message {
        let message = self.message_unacknowledged().await;
        match message.qos {
            0 => {}
            1 => self.send(&packet::puback(message.packet_id)).await,
            _ => {
                self.send(&packet::pubrec(message.packet_id)).await;
                assert_eq!(self.expect(6).await, message.packet_id.to_be_bytes());
                self.send(&packet::pubcomp(message.packet_id)).await;
            }
        }
        message
    }

    /// Nothing of earlier requests is under way any more.
    pub(crate) async fn ping(&mut self) {
        self.send(&[0xc0, 0]).await;
        assert!(self.expect(13).await.is_empty());
    }

    pub(crate) async fn disconnect(mut self) {
        self.send(&[0xe0, 0]).await;
        self.closed().await;
    }
}
