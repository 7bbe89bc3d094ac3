//! Whole packets from a byte stream, within limits of size and time.

use crate::packet::{FixedHeader, PacketError};
use bytes::{BufMut as _, Bytes};
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, BufReader};
use tokio::time::{Instant, timeout, timeout_at};

/// How much is reserved for a packet before any of it has come.
const FIRST_STEP: usize = 4096;

/// No packet came.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// The client hung up between packets.
    #[error("the client hung up")]
    Closed,
    /// The network failed, or the client hung up within a packet.
    #[error("the connection broke")]
    Io(#[from] io::Error),
    /// The client broke the standard.
    #[error(transparent)]
    Packet(#[from] PacketError),
    /// Nothing came for too long.
    #[error("nothing came for {} s", .0.as_secs())]
    Silence(Duration),
    /// A packet began and did not end.
    #[error("a packet that had begun did not end within {} s", .0.as_secs())]
    Unfinished(Duration),
}

pub(crate) struct PacketReader<R> {
    stream: BufReader<R>,
    limit: usize,
    packet_timeout: Duration,
}

impl<R: AsyncRead + Unpin> PacketReader<R> {
    pub(crate) fn new(stream: R, limit: usize, packet_timeout: Duration) -> Self {
        Self { stream: BufReader::new(stream), limit, packet_timeout }
    }

    /// The next packet, fixed header included. Memory grows with what arrives, at most to twice that, and never beyond
    /// the packet's own length, so that announcing a large packet costs us nothing.
    pub(crate) async fn next(&mut self, silence: Duration) -> Result<(FixedHeader, Bytes), ReadError> {
        let first = match timeout(silence, self.stream.read_u8()).await {
            Err(_) => return Err(ReadError::Silence(silence)),
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(ReadError::Closed),
            Ok(first) => first?,
        };
        let deadline = Instant::now() + self.packet_timeout;
        match timeout_at(deadline, self.rest(first)).await {
            Ok(packet) => packet,
            Err(_) => Err(ReadError::Unfinished(self.packet_timeout)),
        }
    }

    async fn rest(&mut self, first: u8) -> Result<(FixedHeader, Bytes), ReadError> {
        let mut packet = vec![first];
        let header = loop {
            if let Some(header) = FixedHeader::parse(&packet, self.limit)? {
                break header;
            }
            packet.push(self.stream.read_u8().await?);
        };
        let total = header.length + header.remaining;
        while packet.len() < total {
            if packet.len() == packet.capacity() {
                packet.reserve_exact(packet.len().max(FIRST_STEP).min(total - packet.len()));
            }
            let room = packet.capacity().min(total) - packet.len();
            if self.stream.read_buf(&mut (&mut packet).limit(room)).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
        Ok((header, packet.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{Kind, QoS};
    use tokio::io::AsyncWriteExt as _;

    const LIMIT: usize = 100_000;

    fn reader(stream: tokio::io::DuplexStream) -> PacketReader<tokio::io::DuplexStream> {
        PacketReader::new(stream, LIMIT, Duration::from_secs(5))
    }

    #[tokio::test]
    async fn packets_of_any_size_arrive_whole_however_they_are_cut() {
        let (mut client, server) = tokio::io::duplex(64);
        let mut reader = reader(server);
        let sizes = [0usize, 1, 100, 4090, 5000, 90_000];
        let writing = tokio::spawn(async move {
            for size in sizes {
                let frame = crate::packet::publish("t", &vec![7; size], QoS::AtMostOnce, 0, false);
                for piece in frame.chunks(13) {
                    client.write_all(piece).await.unwrap();
                }
            }
        });
        for size in sizes {
            let (header, frame) = reader.next(Duration::from_secs(5)).await.unwrap();
            assert_eq!(header.kind, Kind::Publish);
            assert_eq!(frame.len(), header.length + 3 + size);
        }
        writing.await.unwrap();
        assert!(matches!(reader.next(Duration::from_secs(5)).await, Err(ReadError::Closed)));
    }

    #[tokio::test]
    async fn silence_and_half_packets_end() {
        let (mut client, server) = tokio::io::duplex(64);
        let short = Duration::from_millis(20);
        let mut reader = PacketReader::new(server, LIMIT, short);
        let result = reader.next(short).await;
        assert!(matches!(result, Err(ReadError::Silence(_))), "{result:?}");
        client.write_all(&[0x30, 0x90, 0x4e, 0]).await.unwrap();
        let result = reader.next(Duration::from_secs(60)).await;
        assert!(matches!(result, Err(ReadError::Unfinished(_))), "{result:?}");
    }

    #[tokio::test]
    async fn an_oversized_packet_is_refused_by_its_header() {
        let (mut client, server) = tokio::io::duplex(64);
        let mut reader = reader(server);
        client.write_all(&[0x30, 0xff, 0xff, 0x7f]).await.unwrap();
        let result = reader.next(Duration::from_secs(5)).await;
        assert!(
            matches!(result, Err(ReadError::Packet(PacketError::TooLarge { got: 2_097_151, .. }))),
            "{result:?}"
        );
    }
}
