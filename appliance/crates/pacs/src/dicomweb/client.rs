//! The connection: credentials, time-outs, retries, limits on how much and how fast.

use super::retry::{RetryPolicy, Throttle, may_pass, retry_after};
use super::tls;
use crate::error::DicomWebError;
use crate::settings::{DicomWebAuth, DicomWebSettings};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{Bytes, BytesMut};
use medinet_settings::Secret;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, StatusCode, Url};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use time::OffsetDateTime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The largest answer to a search or for metadata, in bytes.
pub(super) const MAX_JSON_BYTES: u64 = 256 << 20;

/// A client for one PACS. Clones share its connections, its limit on open requests, and its rate.
#[derive(Clone)]
pub struct DicomWebClient {
    inner: Arc<Inner>,
}

struct Inner {
    http: reqwest::Client,
    base: Url,
    auth: DicomWebAuth,
    /// The header in use; read anew when the PACS refuses it.
    authorization: Mutex<Option<HeaderValue>>,
    retry: RetryPolicy,
    open: Arc<Semaphore>,
    throttle: Throttle,
    pub(super) page_size: u32,
    idle: Duration,
}

impl std::fmt::Debug for DicomWebClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DicomWebClient").finish_non_exhaustive()
    }
}

/// What to send; kept so that it can be sent again.
#[derive(Clone)]
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) accept: &'static str,
    pub(super) body: Option<(String, Bytes)>,
}

/// An answer whose body is still to come. As long as it lives, it counts as an open request.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    headers: HeaderMap,
    response: reqwest::Response,
    idle: Duration,
    _open: OwnedSemaphorePermit,
}

impl Answer {
    pub(super) fn content_type(&self) -> String {
        let header = self.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        header.unwrap_or_default().to_owned()
    }

    /// The next piece of the body; none at its end.
    pub(super) async fn piece(&mut self) -> Result<Option<Bytes>, DicomWebError> {
        match tokio::time::timeout(self.idle, self.response.chunk()).await {
            Ok(piece) => piece.map_err(|error| connection("reading the answer", error)),
            Err(_) => {
                let error = std::io::Error::from(std::io::ErrorKind::TimedOut);
                Err(DicomWebError::Connection { what: "reading the answer", source: error.into() })
            }
        }
    }

    /// The whole body, up to `limit_bytes`.
    pub(super) async fn body(mut self, limit_bytes: u64) -> Result<Bytes, DicomWebError> {
        let mut body = BytesMut::new();
        while let Some(piece) = self.piece().await? {
            if body.len() as u64 + piece.len() as u64 > limit_bytes {
                return Err(DicomWebError::AnswerTooLarge { limit_bytes });
            }
            body.extend_from_slice(&piece);
        }
        Ok(body.freeze())
    }
}

/// A transport error without the URL, which holds UIDs.
fn connection(what: &'static str, error: reqwest::Error) -> DicomWebError {
    DicomWebError::Connection { what, source: error.without_url().into() }
}

impl DicomWebClient {
    /// A client for the PACS of `settings`. Reads the certificate and credential files; does not connect yet.
    ///
    /// # Errors
    /// When a file cannot be read or does not hold what it should, or the address is none.
    pub fn new(settings: &DicomWebSettings) -> Result<Self, DicomWebError> {
        let refused = |reason: String| DicomWebError::Settings { reason };
        let mut base = Url::parse(settings.base_url.expose())
            .map_err(|error| refused(format!("base_url is no address: {error}")))?;
        if base.cannot_be_a_base() || !matches!(base.scheme(), "http" | "https") {
            return Err(refused("expected an http or https address in base_url".to_owned()));
        }
        if base.scheme() == "https" && settings.ca_file.is_none() {
            return Err(refused("ca_file is needed, for base_url is https".to_owned()));
        }
        if !base.path().ends_with('/') {
            base.set_path(&format!("{}/", base.path()));
        }
        let timeout = settings.request_timeout.get();
        let http = reqwest::Client::builder()
            .use_preconfigured_tls(tls::config(settings)?)
            // Credentials go to the address that the site named, and nowhere else.
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .connect_timeout(timeout)
            .pool_idle_timeout(Duration::from_secs(20))
            .user_agent(concat!("medinet-appliance/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| refused(format!("no HTTP client can be made: {error}")))?;
        let client = Self {
            inner: Arc::new(Inner {
                http,
                base,
                auth: settings.auth.clone(),
                authorization: Mutex::new(None),
                retry: RetryPolicy {
                    max_attempts: settings.max_attempts,
                    max_pause: settings.max_backoff.get(),
                },
                open: Arc::new(Semaphore::new(settings.max_concurrent.clamp(1, 1024) as usize)),
                throttle: Throttle::new(settings.max_requests_per_second),
                page_size: settings.page_size.max(1),
                idle: timeout,
            }),
        };
        client.read_credentials()?;
        Ok(client)
    }

    pub(super) fn page_size(&self) -> u32 {
        self.inner.page_size
    }

    fn read_credentials(&self) -> Result<(), DicomWebError> {
        let refused = |reason: String| DicomWebError::Settings { reason };
        let secret = |file: &medinet_settings::SecretFile| -> Result<Secret, DicomWebError> {
            file.read().map_err(|error| refused(error.to_string()))
        };
        let text = match &self.inner.auth {
            DicomWebAuth::None => None,
            DicomWebAuth::Basic { user, password_file } => {
                let pair = format!("{user}:{}", secret(password_file)?.expose());
                Some(format!("Basic {}", BASE64.encode(pair.as_bytes())))
            }
            DicomWebAuth::Bearer { token_file } => Some(format!("Bearer {}", secret(token_file)?.expose())),
        };
        let header = text.map(|text| {
            let mut header = HeaderValue::from_str(&text).map_err(|_| {
                refused("the password or token holds characters that a header cannot".to_owned())
            })?;
            header.set_sensitive(true);
            Ok::<_, DicomWebError>(header)
        });
        *self.inner.authorization.lock().unwrap_or_else(PoisonError::into_inner) = header.transpose()?;
        Ok(())
    }

    /// The address of a resource: `segments` are escaped, whatever a UID of real data holds.
    pub(super) fn url(&self, segments: &[&str], query: &[(&str, &str)]) -> Url {
        let mut url = self.inner.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }

    async fn send_once(&self, request: &Request) -> Result<Answer, DicomWebError> {
        let open = Arc::clone(&self.inner.open).acquire_owned().await;
        let open = open.map_err(|_| DicomWebError::Settings { reason: "the client is closed".to_owned() })?;
        self.inner.throttle.turn().await;
        let mut builder = self.inner.http.request(request.method.clone(), request.url.clone());
        builder = builder.header(ACCEPT, request.accept);
        let authorization = self.inner.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(authorization) = authorization {
            builder = builder.header(AUTHORIZATION, authorization);
        }
        if let Some((content_type, body)) = &request.body {
            builder = builder.header(CONTENT_TYPE, content_type).body(body.clone());
        }
        // Sending a body may take longer than an answer: at least 64 KiB a second are expected.
        let body_seconds = request.body.as_ref().map_or(0, |(_, body)| body.len() as u64 >> 16);
        let limit = self.inner.idle + Duration::from_secs(body_seconds);
        let response = match tokio::time::timeout(limit, builder.send()).await {
            Ok(response) => response.map_err(|error| connection("sending a request", error))?,
            Err(_) => {
                let error = std::io::Error::from(std::io::ErrorKind::TimedOut);
                return Err(DicomWebError::Connection {
                    what: "waiting for an answer",
                    source: error.into(),
                });
            }
        };
        let headers = response.headers().clone();
        Ok(Answer { status: response.status(), headers, response, idle: self.inner.idle, _open: open })
    }

    /// Sends a request, again where that may help. Answers of status 200 to 299 come back, and those that `accept`
    /// names; the rest are errors.
    pub(super) async fn send(
        &self,
        request: &Request,
        accept: fn(StatusCode) -> bool,
    ) -> Result<Answer, DicomWebError> {
        let mut refreshed = false;
        let mut attempt = 0;
        loop {
            attempt += 1;
            let (error, pause) = match self.send_once(request).await {
                Ok(answer) if answer.status.is_success() || accept(answer.status) => return Ok(answer),
                Ok(answer) => {
                    let status = answer.status;
                    if status == StatusCode::UNAUTHORIZED && !refreshed {
                        // Tokens run out, and somebody else writes the new one into the file.
                        refreshed = true;
                        self.read_credentials()?;
                        continue;
                    }
                    let pause = retry_after(&answer.headers, OffsetDateTime::now_utc());
                    (refusal(status, pause), may_pass(status).then_some(pause))
                }
                Err(error @ DicomWebError::Connection { .. }) => (error, Some(None)),
                Err(error) => return Err(error),
            };
            match pause {
                Some(pause) if self.inner.retry.wait(attempt, pause).await => {
                    tracing::debug!(attempt, cause = error.code(), "asking the PACS again");
                }
                _ => return Err(error),
            }
        }
    }

    /// A request without a body.
    pub(super) async fn get(&self, url: Url, accept: &'static str) -> Result<Answer, DicomWebError> {
        self.send(&Request { method: Method::GET, url, accept, body: None }, |_| false).await
    }

    /// Reading from the PACS: what comes is identifiable, and not sealed.
    ///
    /// Only this crate's intake, and tests, should need it: what goes on into the appliance goes through the intake,
    /// which hands objects on sealed.
    #[must_use]
    pub fn dangerous(&self) -> Dangerous<'_> {
        Dangerous { client: self }
    }
}

/// Access to identifiable data; see [`DicomWebClient::dangerous`].
#[derive(Debug, Clone, Copy)]
pub struct Dangerous<'a> {
    pub(super) client: &'a DicomWebClient,
}

fn refusal(status: StatusCode, retry_after: Option<Duration>) -> DicomWebError {
    let number = status.as_u16();
    match number {
        401 | 403 => DicomWebError::Unauthorized { status: number },
        404 | 410 => DicomWebError::NotFound { status: number },
        413 => DicomWebError::TooLarge,
        429 | 503 => DicomWebError::Busy { status: number, retry_after },
        500.. => DicomWebError::Server { status: number },
        _ => DicomWebError::Refused { status: number },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(url: &str) -> Result<DicomWebClient, DicomWebError> {
        DicomWebClient::new(&DicomWebSettings::new(url.parse().unwrap()))
    }

    #[tokio::test]
    async fn uids_of_real_data_cannot_leave_their_place_in_the_address() {
        let client = client("http://pacs/dicom-web").unwrap();
        let url = client.url(&["studies", "../..?x=1#", "a/b", "1.2"], &[("limit", "3"), ("a", "b&c")]);
        assert_eq!(url.as_str(), "http://pacs/dicom-web/studies/..%2F..%3Fx=1%23/a%2Fb/1.2?limit=3&a=b%26c");
        // ".." as a whole is no name that any address can carry; the request then asks for something else, and
        // the intake compares what comes with what was asked for.
        assert_eq!(client.url(&["studies", ".."], &[]).path(), "/dicom-web/studies");
    }

    #[tokio::test]
    async fn settings_that_make_no_client_say_why() {
        let error = client("https://pacs/dicom-web").unwrap_err().to_string();
        assert!(error.contains("ca_file"), "{error}");
        assert!(client("mqtt://pacs/dicom-web").is_err());
        let mut settings = DicomWebSettings::new("http://pacs".parse().unwrap());
        settings.auth =
            DicomWebAuth::Bearer { token_file: medinet_settings::SecretFile::new("/nonexistent/token") };
        let error = DicomWebClient::new(&settings).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/token"), "{error}");
    }
}
