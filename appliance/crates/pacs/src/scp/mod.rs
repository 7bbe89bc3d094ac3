//! A C-STORE service (PS3.4 annex B) for the peers that know nothing else, with C-ECHO (annex A).
//!
//! A peer is told "success" only after its object is on the disk (synced, renamed, folder synced) and in the ledger.
//! Everything that a peer can make large or slow is bounded: associations, PDU length, object size, silence.

mod association;
mod dimse;
mod negotiate;

use crate::ledger::Ledger;
use crate::progress::Reporter;
use crate::settings::CStoreSettings;
use crate::spool::Spool;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Peers that are told to come back later, at the same time; more are cut off without a word.
const MAX_REJECTIONS: usize = 16;

/// The answer "success" to a command set; none where that is no request.
pub(crate) fn answer(command: &[u8]) -> Option<Vec<u8>> {
    dimse::read_request(command).map(|request| dimse::write_response(&request, dimse::Status::Success))
}

/// What an association works with.
#[derive(Clone)]
pub(crate) struct StoreService {
    shared: Arc<Shared>,
}

struct Shared {
    settings: CStoreSettings,
    ledger: Ledger,
    spool: Spool,
    reporter: Reporter,
    max_object_bytes: u64,
}

impl StoreService {
    pub(crate) fn new(
        settings: CStoreSettings,
        ledger: Ledger,
        spool: Spool,
        reporter: Reporter,
        max_object_bytes: u64,
    ) -> Self {
        Self { shared: Arc::new(Shared { settings, ledger, spool, reporter, max_object_bytes }) }
    }

    /// Serves peers until `shutdown`; associations that are open then are cut off, and their peers send again.
    pub(crate) async fn serve(self, listener: TcpListener, shutdown: CancellationToken) {
        let settings = &self.shared.settings;
        let places = Arc::new(Semaphore::new(settings.max_associations.max(1) as usize));
        let rejections = Arc::new(Semaphore::new(MAX_REJECTIONS));
        let mut tasks = JoinSet::new();
        loop {
            while tasks.try_join_next().is_some() {}
            let accepted = tokio::select! {
                () = shutdown.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, mostly: give others time to end.
                    tracing::warn!(kind = %error.kind(), "a C-STORE peer could not be accepted");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    continue;
                }
            };
            let allowed = &settings.allowed_addresses;
            if !allowed.is_empty() && !allowed.contains(&peer.ip().to_canonical()) {
                tracing::warn!(peer = %peer.ip(), "a C-STORE peer from an address that is not allowed was cut off");
                continue;
            }
            let _ = stream.set_nodelay(true);
            if let Ok(place) = Arc::clone(&places).try_acquire_owned() {
                let service = self.clone();
                tasks.spawn(async move {
                    let outcome = association::serve(&service.shared, stream).await;
                    if let Err(error) = outcome {
                        tracing::debug!(peer = %peer.ip(), %error, "a C-STORE association ended early");
                    }
                    drop(place);
                });
            } else if let Ok(place) = Arc::clone(&rejections).try_acquire_owned() {
                tracing::warn!(peer = %peer.ip(), "all C-STORE associations are taken; a peer has to come back later");
                let limit = u32::try_from(settings.max_pdu_bytes.0).unwrap_or(128 << 10);
                tasks.spawn(async move {
                    association::reject(stream, limit).await;
                    drop(place);
                });
            }
        }
    }
}
