//! One association, from the request to the release.

use super::Shared;
use super::dimse::{Operation, Request, Status, read_request, write_response};
use super::negotiate::{Agreement, Context, VERIFICATION, come_back_later, negotiate};
use crate::ledger::Arrival;
use crate::spool::Incoming;
use bytes::{Buf as _, BytesMut};
use dicom_object::FileMetaTableBuilder;
use dicom_ul::pdu::{AbortRQServiceProviderReason, AbortRQSource, PDataValue, PDataValueType};
use dicom_ul::{Pdu, read_pdu, write_pdu};
use medinet_deident::Origin;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// How long a peer may take to say what it wants (the ARTIM timer of PS3.8 9.1.4).
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest association request: 128 contexts with all transfer syntaxes stay below it.
const MAX_REQUEST_PDU: u32 = 256 << 10;
/// The longest command set.
const MAX_COMMAND_BYTES: usize = 16 << 10;

/// Why an association ended before its release.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    /// The network; environment.
    #[error("the connection broke")]
    Io(#[from] io::Error),
    /// Nothing came for too long; the peer's mistake.
    #[error("the peer was silent, or too slow, for too long")]
    TimedOut,
    /// Not the upper layer protocol; the peer's mistake.
    #[error("expected {expected}, got {got}")]
    Protocol {
        /// What PS3.8 asks for.
        expected: &'static str,
        /// What came, without anything that it says.
        got: String,
        /// What the peer is told.
        reason: AbortRQServiceProviderReason,
    },
    /// The peer was refused.
    #[error("the peer was refused: {0}")]
    Refused(String),
}

fn protocol(expected: &'static str, got: impl Into<String>, reason: AbortRQServiceProviderReason) -> Ended {
    Ended::Protocol { expected, got: got.into(), reason }
}

/// What a PDU is, without anything that it says.
fn kind(pdu: &Pdu) -> &'static str {
    match pdu {
        Pdu::Unknown { .. } => "a PDU of no known type",
        Pdu::AssociationRQ(_) => "an association request",
        Pdu::AssociationAC(_) => "an accepted association",
        Pdu::AssociationRJ(_) => "a rejected association",
        Pdu::PData { .. } => "data",
        Pdu::ReleaseRQ => "a release request",
        Pdu::ReleaseRP => "a release reply",
        Pdu::AbortRQ { .. } => "an abort",
    }
}

/// PDUs over TCP.
struct Pdus {
    stream: TcpStream,
    buffer: BytesMut,
    max_pdu_bytes: u32,
    timeout: Duration,
}

impl Pdus {
    /// The next PDU; none when the peer closed the connection between two.
    async fn receive(&mut self) -> Result<Option<Pdu>, Ended> {
        match tokio::time::timeout(self.timeout, self.receive_unlimited()).await {
            Ok(received) => received,
            Err(_) => Err(Ended::TimedOut),
        }
    }

    async fn receive_unlimited(&mut self) -> Result<Option<Pdu>, Ended> {
        let unrecognized = AbortRQServiceProviderReason::UnrecognizedPdu;
        let whole = loop {
            if let Some(header) = self.buffer.get(..6) {
                let length = u32::from_be_bytes([header[2], header[3], header[4], header[5]]);
                // Checked before anything of that length is kept.
                if length > self.max_pdu_bytes {
                    let got = format!("one of {length} bytes");
                    return Err(protocol("a PDU within the agreed length", got, unrecognized));
                }
                let whole = 6 + length as usize;
                if self.buffer.len() >= whole {
                    break whole;
                }
                self.buffer.reserve(whole - self.buffer.len());
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                let between = self.buffer.is_empty();
                return if between {
                    Ok(None)
                } else {
                    Err(io::Error::from(io::ErrorKind::UnexpectedEof).into())
                };
            }
        };
        let number = self.buffer[0];
        let pdu = read_pdu(&self.buffer[..whole], self.max_pdu_bytes.max(1024), false);
        self.buffer.advance(whole);
        match pdu {
            Ok(Some(pdu)) => Ok(Some(pdu)),
            _ => {
                let got = format!("one of type {number} that cannot be read");
                Err(protocol("a PDU of PS3.8 9.3", got, unrecognized))
            }
        }
    }

    async fn send(&mut self, pdu: &Pdu) -> Result<(), Ended> {
        let mut bytes = Vec::new();
        write_pdu(&mut bytes, pdu).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        match tokio::time::timeout(self.timeout, self.stream.write_all(&bytes)).await {
            Ok(sent) => Ok(sent?),
            Err(_) => Err(Ended::TimedOut),
        }
    }

    async fn abort(&mut self, reason: AbortRQServiceProviderReason) {
        // The peer may be gone already.
        let _ = self.send(&Pdu::AbortRQ { source: AbortRQSource::ServiceProvider(reason) }).await;
    }
}

/// Tells a peer that all places are taken.
pub(super) async fn reject(stream: TcpStream, max_pdu_bytes: u32) {
    let timeout = REQUEST_TIMEOUT / 2;
    let max_pdu_bytes = max_pdu_bytes.max(MAX_REQUEST_PDU);
    let mut pdus = Pdus { stream, buffer: BytesMut::new(), max_pdu_bytes, timeout };
    if let Ok(Some(Pdu::AssociationRQ(_))) = pdus.receive().await {
        let _ = pdus.send(&Pdu::AssociationRJ(come_back_later())).await;
        let _ = pdus.stream.shutdown().await;
    }
}

/// An object that is being received.
struct Receiving {
    request: Request,
    context_id: u8,
    /// None once it is known that the object will not be kept; the rest is read and dropped, for the peer listens
    /// for an answer only at the end.
    file: Option<Incoming>,
    refusal: Status,
}

/// Serves one peer until it releases the association.
pub(super) async fn serve(shared: &Shared, stream: TcpStream) -> Result<(), Ended> {
    let max_pdu_bytes = MAX_REQUEST_PDU;
    let mut pdus = Pdus { stream, buffer: BytesMut::new(), max_pdu_bytes, timeout: REQUEST_TIMEOUT };
    let unexpected = AbortRQServiceProviderReason::UnexpectedPdu;
    let request = match pdus.receive().await? {
        Some(Pdu::AssociationRQ(request)) => request,
        Some(other) => {
            pdus.abort(unexpected).await;
            let reason = AbortRQServiceProviderReason::UnexpectedPdu;
            return Err(protocol("an association request", kind(&other), reason));
        }
        None => return Ok(()),
    };
    let agreement = match negotiate(&shared.settings, request) {
        Ok((accepted, agreement)) => {
            pdus.send(&Pdu::AssociationAC(accepted)).await?;
            agreement
        }
        Err(rejection) => {
            let reason = rejection.source.to_string();
            tracing::warn!(%reason, "a C-STORE peer was refused");
            pdus.send(&Pdu::AssociationRJ(rejection)).await?;
            let _ = pdus.stream.shutdown().await;
            return Err(Ended::Refused(reason));
        }
    };
    // Some peers count the six bytes of the header in the agreed length, some do not.
    pdus.max_pdu_bytes = u32::try_from(shared.settings.max_pdu_bytes.0).unwrap_or(u32::MAX).saturating_add(6);
    pdus.timeout = shared.settings.idle_timeout.get();
    let ended = converse(shared, &mut pdus, &agreement).await;
    if let Err(Ended::Protocol { reason, .. }) = &ended {
        pdus.abort(reason.clone()).await;
    }
    ended
}

async fn converse(shared: &Shared, pdus: &mut Pdus, agreement: &Agreement) -> Result<(), Ended> {
    let mut command = Vec::new();
    let mut receiving: Option<Receiving> = None;
    loop {
        match pdus.receive().await? {
            Some(Pdu::PData { data }) => {
                for value in data {
                    let context =
                        agreement.contexts.get(&value.presentation_context_id).ok_or_else(|| {
                            let reason = AbortRQServiceProviderReason::UnexpectedPduParameter;
                            let got = format!("context {}", value.presentation_context_id);
                            protocol("a presentation context that was agreed", got, reason)
                        })?;
                    take(shared, pdus, agreement, context, value, &mut command, &mut receiving).await?;
                }
            }
            Some(Pdu::ReleaseRQ) => {
                pdus.send(&Pdu::ReleaseRP).await?;
                let _ = pdus.stream.shutdown().await;
                return Ok(());
            }
            Some(Pdu::AbortRQ { .. }) | None => return Ok(()),
            Some(other) => {
                let reason = AbortRQServiceProviderReason::UnexpectedPdu;
                return Err(protocol("data or a release", kind(&other), reason));
            }
        }
    }
}

/// Takes one fragment of a command or of a data set (PS3.7 annex E).
async fn take(
    shared: &Shared,
    pdus: &mut Pdus,
    agreement: &Agreement,
    context: &Context,
    value: PDataValue,
    command: &mut Vec<u8>,
    receiving: &mut Option<Receiving>,
) -> Result<(), Ended> {
    let invalid = AbortRQServiceProviderReason::UnexpectedPduParameter;
    let context_id = value.presentation_context_id;
    match (value.value_type, receiving.as_mut()) {
        (PDataValueType::Command, None) => {
            if command.len() + value.data.len() > MAX_COMMAND_BYTES {
                return Err(protocol("a command set of at most 16 KiB", "a longer one", invalid));
            }
            command.extend_from_slice(&value.data);
            if !value.is_last {
                return Ok(());
            }
            let request = read_request(&std::mem::take(command)).ok_or_else(|| {
                let reason = AbortRQServiceProviderReason::UnexpectedPduParameter;
                protocol("a request of PS3.7 9.3", "another command set", reason)
            })?;
            if request.operation == Operation::Cancel {
                return Ok(());
            }
            let opened = open(shared, context, &request).await;
            if request.has_data_set {
                let (file, refusal) = match opened {
                    Ok(file) => (file, Status::Success),
                    Err(refusal) => (None, refusal),
                };
                *receiving = Some(Receiving { request, context_id, file, refusal });
                return Ok(());
            }
            let status = match opened {
                // A C-STORE without a data set stores nothing.
                Ok(_) if request.operation == Operation::Store => Status::CannotUnderstand,
                Ok(_) => Status::Success,
                Err(refusal) => refusal,
            };
            respond(pdus, agreement, context_id, &request, status).await
        }
        (PDataValueType::Data, Some(open)) if open.context_id == context_id => {
            if let Some(file) = &mut open.file {
                let too_large = file.len() + value.data.len() as u64 > shared.max_object_bytes;
                // A full disk, mostly.
                let failed = too_large || file.write(&value.data).await.is_err();
                if failed {
                    tracing::warn!(too_large, "an object that a C-STORE peer sends cannot be kept");
                    open.file = None;
                    open.refusal = Status::OutOfResources;
                }
            }
            if !value.is_last {
                return Ok(());
            }
            let Some(Receiving { request, file, refusal, .. }) = receiving.take() else { return Ok(()) };
            let status = match file {
                Some(file) => keep(shared, file).await,
                None => refusal,
            };
            respond(pdus, agreement, context_id, &request, status).await
        }
        _ => Err(protocol("a command, then its data set", "them in another order", invalid)),
    }
}

/// Prepares for a request's data set: a file with its header, or none where nothing is stored.
async fn open(shared: &Shared, context: &Context, request: &Request) -> Result<Option<Incoming>, Status> {
    match request.operation {
        Operation::Echo => return Ok(None),
        Operation::Store => {}
        Operation::Cancel | Operation::Other => return Err(Status::UnrecognizedOperation),
    }
    if context.abstract_syntax == VERIFICATION {
        return Err(Status::SopClassNotSupported);
    }
    if request.sop_class != context.abstract_syntax {
        return Err(Status::DataSetMismatch);
    }
    if request.sop_instance.is_empty() {
        return Err(Status::CannotUnderstand);
    }
    if !shared.spool.has_room() {
        tracing::warn!("the spool is full; a C-STORE peer has to send again later");
        return Err(Status::OutOfResources);
    }
    let header = file_header(context, request).ok_or(Status::CannotUnderstand)?;
    let mut file = shared.spool.begin().await.map_err(|_| Status::OutOfResources)?;
    file.write(&header).await.map_err(|_| Status::OutOfResources)?;
    Ok(Some(file))
}

/// Preamble and file meta information (PS3.10 7.1). Nothing in it depends on who sends or when, so that an object
/// that is sent again is the same file.
fn file_header(context: &Context, request: &Request) -> Option<Vec<u8>> {
    let meta = FileMetaTableBuilder::new()
        .media_storage_sop_class_uid(&request.sop_class)
        .media_storage_sop_instance_uid(&request.sop_instance)
        .transfer_syntax(&context.transfer_syntax)
        .build()
        .ok()?;
    let mut header = vec![0; 128];
    header.extend_from_slice(b"DICM");
    meta.write(&mut header).ok()?;
    Some(header)
}

/// Makes an object durable, and known to the ledger.
async fn keep(shared: &Shared, file: Incoming) -> Status {
    let Ok(stored) = file.finish("c", true).await else { return Status::OutOfResources };
    let key = hex::encode(stored.sha256);
    match shared.ledger.arrived(Origin::CStore, &key, &stored.location, &stored.sha256, stored.bytes) {
        Ok(Arrival::New) => {
            shared.reporter.change(|progress| progress.discovered += 1);
            shared.reporter.file_waits();
            Status::Success
        }
        Ok(Arrival::Waiting) => Status::Success,
        Ok(Arrival::Ingested | Arrival::Quarantined) => {
            // The same bytes were dealt with before; the verdict stands. A copy of a quarantined one is kept already.
            if shared.spool.remove_ready(&stored.location).is_err() {
                tracing::warn!("a repeated object could not be removed from the spool");
            }
            Status::Success
        }
        Err(error) => {
            // The file stays: the next start finds it. The peer sends again, which is harmless.
            tracing::error!(%error, "an object that came over C-STORE could not be written down");
            Status::OutOfResources
        }
    }
}

async fn respond(
    pdus: &mut Pdus,
    agreement: &Agreement,
    context_id: u8,
    request: &Request,
    status: Status,
) -> Result<(), Ended> {
    let response = write_response(request, status);
    // 12 bytes: the header of the PDU and of the value in it.
    let room = agreement.peer_pdu_bytes.saturating_sub(12).max(512) as usize;
    let mut pieces = response.chunks(room).peekable();
    while let Some(piece) = pieces.next() {
        let value = PDataValue {
            presentation_context_id: context_id,
            value_type: PDataValueType::Command,
            is_last: pieces.peek().is_none(),
            data: piece.to_vec(),
        };
        pdus.send(&Pdu::PData { data: vec![value] }).await?;
    }
    Ok(())
}
