//! From a client to the router: each packet judged, then passed on, answered or refused.

use crate::connection::{End, Half, Reader, shown};
use crate::engine::ToRouter;
use crate::flow::Subscribed;
use crate::packet::{self, FixedHeader, Kind, PacketError, Publish, QoS, Subscribe, Unsubscribe};
use crate::sessions::{Claim, Granted};
use bytes::{Bytes, BytesMut};
use std::time::{Duration, Instant};

/// Client to router.
pub(crate) struct Inbound<'a, 'b> {
    pub(crate) half: &'a Half<'b>,
    pub(crate) to: ToRouter,
}

impl Inbound<'_, '_> {
    pub(crate) async fn run(&mut self, reader: &mut Reader, silence: Duration, claim: &Claim) -> End {
        loop {
            match self.step(reader, silence, claim).await {
                Ok(()) => {}
                Err(end) => return end,
            }
        }
    }

    async fn step(&mut self, reader: &mut Reader, silence: Duration, claim: &Claim) -> Result<(), End> {
        let (header, frame) = reader.next(silence).await?;
        let bytes = frame.len() as u64;
        self.packet(header, frame).await?;
        // A client above its rate is read more slowly; the network holds it back, and nobody else notices.
        let pause = claim.rates.packet(bytes, Instant::now());
        if !pause.is_zero() {
            self.half.connection.shared.counters.throttled.add();
            tokio::time::sleep(pause).await;
        }
        Ok(())
    }

    async fn packet(&mut self, header: FixedHeader, frame: Bytes) -> Result<(), End> {
        let body = &frame[header.length..];
        match header.kind {
            Kind::Connect => return Err(End::SecondConnect),
            Kind::Publish => {
                let publish = Publish::parse(header.first, body)?;
                self.publish(header, publish, frame).await?;
            }
            Kind::PubAck => self.acknowledged(packet::parse_packet_id(body)?, QoS::AtLeastOnce).await?,
            Kind::PubRec => self.acknowledged(packet::parse_packet_id(body)?, QoS::ExactlyOnce).await?,
            Kind::PubRel => {
                let packet_id = packet::parse_packet_id(body)?;
                self.half.flow().session.received.remove(&packet_id);
                self.half.send(packet::pubcomp(packet_id)).await;
            }
            Kind::PubComp => {
                let completed = self.half.flow().completed(packet::parse_packet_id(body)?);
                for packet_id in completed {
                    self.to.pubcomp(packet_id).await?;
                }
            }
            Kind::Subscribe => self.subscribe(Subscribe::parse(body)?).await?,
            Kind::Unsubscribe => self.unsubscribe(Unsubscribe::parse(body)?).await?,
            Kind::PingReq => {
                empty(body, "PINGREQ")?;
                self.half.send(packet::pingresp()).await;
            }
            Kind::Disconnect => {
                empty(body, "DISCONNECT")?;
                return Err(End::Goodbye);
            }
        }
        Ok(())
    }

    async fn acknowledged(&mut self, packet_id: u16, qos: QoS) -> Result<(), End> {
        let acknowledged = self.half.flow().acknowledged(packet_id, qos);
        for (packet_id, qos) in acknowledged.at_router {
            match qos {
                QoS::ExactlyOnce => self.to.pubrec(packet_id).await?,
                QoS::AtLeastOnce | QoS::AtMostOnce => self.to.puback(packet_id).await?,
            }
        }
        if let Some(answer) = acknowledged.answer {
            self.half.send(answer).await;
        }
        Ok(())
    }

    async fn publish(&mut self, header: FixedHeader, publish: Publish, frame: Bytes) -> Result<(), End> {
        let shared = &self.half.connection.shared;
        let Publish { topic, qos, packet_id, retain, payload_at } = publish;
        shared
            .membership
            .publish(&self.half.connection.principal, &topic, retain)
            .map_err(|refusal| End::Refused { topic: shown(&topic, &refusal), refusal })?;
        if qos == QoS::ExactlyOnce && !self.half.flow().session.received.insert(packet_id) {
            // Sent again after a lost connection: it has been passed on already (4.3.3).
            self.half.send(packet::pubrec(packet_id)).await;
            return Ok(());
        }
        self.room().await;
        let payload = frame.slice(header.length + payload_at..);
        if retain {
            // Before it is passed on: whoever subscribes now finds it here or receives it.
            shared.retained.set(&topic, payload, qos);
        }
        shared.counters.messages_in.add();
        self.half.flow().publish_forwarded(packet_id, qos);
        let first = 0x30 | (qos.min(QoS::AtLeastOnce) as u8) << 1;
        self.to.publish(with_first(frame, first)).await?;
        Ok(())
    }

    /// Waits until fewer publishes are under way than may be.
    async fn room(&mut self) {
        let most = self.half.connection.shared.settings.connections.max_inflight;
        while self.half.flow().inflight() >= most {
            self.half.progress.notified().await;
        }
        // Publishes with QoS 0 are not answered. This waits for the router's thread, when it is very busy.
        while self.to.backlog() >= most {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn subscribe(&mut self, subscribe: Subscribe) -> Result<(), End> {
        let connection = self.half.connection;
        let mut subscribed =
            Subscribed { packet_id: subscribe.packet_id, granted: Vec::new(), filters: Vec::new() };
        let (mut added, mut removed) = (Vec::new(), Vec::new());
        for (filter, wished) in subscribe.filters {
            let allowed = match connection.shared.membership.subscribe(&connection.principal, &filter) {
                Ok(allowed) => allowed,
                Err(refusal) => {
                    connection.shared.counters.subscriptions_refused.add();
                    let (principal, filter) = (&connection.principal, shown(&filter, &refusal));
                    tracing::warn!(%principal, filter, reason = %refusal, "subscription refused");
                    subscribed.granted.push(None);
                    continue;
                }
            };
            let mut flow = self.half.flow();
            let subscriptions = &mut flow.session.subscriptions;
            let before = subscriptions.get(&filter).cloned();
            let granted = match before {
                // As it is: repeating it must lose nothing of what waits. A higher QoS than before is not granted.
                Some(before) if before.qos <= wished => before,
                before => {
                    subscriptions.remove(&filter);
                    let expanded = not_in(&allowed.expanded, subscriptions.values());
                    if before.is_some() {
                        removed.extend(expanded.iter().map(|path| (path.clone(), wished)));
                    }
                    added.extend(expanded.into_iter().map(|path| (path, wished)));
                    let granted = Granted { qos: wished, expanded: allowed.expanded };
                    subscriptions.insert(filter, granted.clone());
                    granted
                }
            };
            subscribed.granted.push(Some(granted.qos));
            subscribed.filters.push(granted);
        }
        self.unsubscribe_at_router(removed).await?;
        if added.is_empty() {
            self.half.subscribed(subscribed).await;
        } else {
            self.half.flow().subscriptions.push_back(Some(subscribed));
            self.to.subscribe(added).await?;
        }
        Ok(())
    }

    async fn unsubscribe(&mut self, unsubscribe: Unsubscribe) -> Result<(), End> {
        let mut removed = Vec::new();
        {
            let mut flow = self.half.flow();
            let subscriptions = &mut flow.session.subscriptions;
            for filter in &unsubscribe.filters {
                if let Some(before) = subscriptions.remove(filter) {
                    let paths = not_in(&before.expanded, subscriptions.values());
                    removed.extend(paths.into_iter().map(|path| (path, before.qos)));
                }
            }
        }
        self.unsubscribe_at_router(removed).await?;
        self.half.send(packet::unsuback(unsubscribe.packet_id)).await;
        Ok(())
    }

    async fn unsubscribe_at_router(&mut self, filters: Vec<(String, QoS)>) -> Result<(), End> {
        if !filters.is_empty() {
            self.half.flow().subscriptions.push_back(None);
            self.to.unsubscribe(filters).await?;
        }
        Ok(())
    }
}

/// Those of `paths` that none of `others` holds.
fn not_in<'a>(paths: &[String], others: impl Iterator<Item = &'a Granted>) -> Vec<String> {
    let held: std::collections::HashSet<&String> = others.flat_map(|granted| &granted.expanded).collect();
    paths.iter().filter(|path| !held.contains(path)).cloned().collect()
}

fn empty(body: &[u8], packet: &'static str) -> Result<(), PacketError> {
    if body.is_empty() { Ok(()) } else { Err(PacketError::Trailing(packet)) }
}

/// `frame` with another first byte; copied only where a part of it is kept elsewhere.
fn with_first(frame: Bytes, first: u8) -> Bytes {
    if frame.first() == Some(&first) {
        return frame;
    }
    let mut frame = frame.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
    if let Some(byte) = frame.first_mut() {
        *byte = first;
    }
    frame.freeze()
}
