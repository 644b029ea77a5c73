//! The HTTP client under both typed clients.
//!
//! A service can have several places, which is how several controllers are called: whoever leads answers, the others say who does. The one
//! invariant: a request that must not happen twice is sent again only when nothing was done with it.

mod places;

use bytes::Bytes;
use futures::{Stream, TryStreamExt as _};
use places::Places;
use reqwest::{Method, RequestBuilder, Response};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use vmotion_model::{ApiError, ErrorCode, error_chain};
use vmotion_transport::{ExpectedPeer, Identity};

/// In an answer that says that nothing was done, because another controller leads: its URL, or nothing while there is none.
pub const LEADER_HEADER: &str = "x-leader";
/// A host that does not take a connection by then is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// The same, where another can be asked instead.
const CONNECT_TIMEOUT_OF_SEVERAL: Duration = Duration::from_millis(1500);
/// Until controllers that stand by have a leader, they are asked again for so long.
const LEADER_WITHIN: Duration = Duration::from_secs(15);
/// Rounds over all places while none of them answers.
const ROUNDS_MAX: usize = 2;
/// Between two rounds.
const ROUND_PAUSE: Duration = Duration::from_millis(200);
/// No answer of ours takes longer; streams have no limit.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a request has no good answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ClientError {
    /// The service answered with an error.
    #[error("{0}")]
    Answered(ApiError),
    /// No answer: not reachable, certificate refused, timed out, not understandable.
    #[error("{service} at {url} does not answer: {reason}")]
    NoAnswer {
        /// Which service, in words.
        service: &'static str,
        /// What was called.
        url: String,
        /// As the network put it.
        reason: String,
    },
}

impl ClientError {
    /// The same as an [`ApiError`], for passing on.
    #[must_use]
    pub fn into_api_error(self) -> ApiError {
        match self {
            Self::Answered(error) => error,
            Self::NoAnswer { .. } => ApiError::new(ErrorCode::Unavailable, self.to_string()),
        }
    }

    /// The service's error code, when it answered.
    #[must_use]
    pub const fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Answered(error) => Some(error.code),
            Self::NoAnswer { .. } => None,
        }
    }
}

/// A piece of console output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsoleChunk {
    /// Offset of its first byte in all the machine ever wrote.
    pub offset: u64,
    /// The bytes.
    pub bytes: Bytes,
}

/// JSON over mutually authenticated TLS to one service. Connections are kept open.
#[derive(Debug, Clone)]
pub struct HttpClient {
    http: reqwest::Client,
    base: String,
    places: Arc<Places>,
    service: &'static str,
}

/// A request that can be sent to any place.
struct Outgoing<'a> {
    method: Method,
    path: &'a str,
    /// Does it have one effect however often it is sent?
    repeatable: bool,
    /// Of one attempt, with its answer; streams have none.
    timeout: Option<Duration>,
    /// Of all attempts.
    patience: Duration,
}

/// How an attempt failed.
enum Miss {
    /// An error of the service's.
    Answered(ApiError),
    /// A controller that stands by; nothing was done.
    StandsBy { leader: String, error: ApiError },
    /// No connection; nothing was sent.
    Refused(String),
    /// No answer, or none that can be understood.
    Silent(String),
}

impl<'a> Outgoing<'a> {
    const fn new(method: Method, path: &'a str) -> Self {
        Self { method, path, repeatable: false, timeout: Some(ANSWER_TIMEOUT), patience: LEADER_WITHIN }
    }

    fn repeatable(self) -> Self {
        Self { repeatable: true, ..self }
    }
}

impl HttpClient {
    /// A client of the service at `base`, which must be `expected`: `https://host:port`, or several with commas between them.
    ///
    /// # Errors
    /// When a URL or the identity cannot be used.
    pub fn new(
        service: &'static str,
        base: &str,
        identity: &Identity,
        expected: ExpectedPeer,
    ) -> Result<Self, ClientError> {
        let base = base.trim_end_matches('/').to_owned();
        let failed = |reason: String| ClientError::NoAnswer { service, url: base.clone(), reason };
        let places = Places::parse(&base).map_err(|_| failed("the URL must begin with https://".to_owned()))?;
        let tls = identity.client_config(expected).map_err(|error| failed(error.to_string()))?;
        let connect = if places.count() > 1 { CONNECT_TIMEOUT_OF_SEVERAL } else { CONNECT_TIMEOUT };
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .connect_timeout(connect)
            .tcp_nodelay(true)
            .no_proxy()
            .build()
            .map_err(|error| failed(error_chain(&error)))?;
        Ok(Self { http, base, places: Arc::new(places), service })
    }

    /// The service's URL, or all of them, as they were given.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    fn no_answer(&self, url: &str, reason: String) -> ClientError {
        ClientError::NoAnswer { service: self.service, url: url.to_owned(), reason }
    }

    /// Sends it to one place after the other until one does what is asked, or may have; its answer, and where that came from.
    async fn send(
        &self,
        outgoing: Outgoing<'_>,
        fill: impl Fn(RequestBuilder) -> RequestBuilder + Send + Sync,
    ) -> Result<(Response, String), ClientError> {
        let begun = Instant::now();
        let (mut tried, mut silent) = (0, 0);
        loop {
            let base = self.places.current();
            let url = format!("{base}{}", outgoing.path);
            let miss = match self.attempt(&outgoing, &url, &fill).await {
                Ok(response) => return Ok((response, url)),
                Err(miss) => miss,
            };
            let count = self.places.count();
            let (again, error) = match miss {
                Miss::Answered(error) => return Err(ClientError::Answered(error)),
                Miss::StandsBy { leader, error } => {
                    silent = 0;
                    self.places.go_to(&base, &leader);
                    (true, ClientError::Answered(error))
                }
                Miss::Refused(reason) => (true, self.no_answer(&url, reason)),
                Miss::Silent(reason) => (outgoing.repeatable, self.no_answer(&url, reason)),
            };
            if matches!(error, ClientError::NoAnswer { .. }) {
                silent += 1;
                self.places.turn_from(&base);
            }
            let hopeless = silent >= if count > 1 { ROUNDS_MAX * count } else { 1 };
            if !again || hopeless || begun.elapsed() >= outgoing.patience {
                return Err(error);
            }
            tried += 1;
            if tried % count == 0 {
                tokio::time::sleep(ROUND_PAUSE).await;
            }
        }
    }

    async fn attempt(
        &self,
        outgoing: &Outgoing<'_>,
        url: &str,
        fill: &(impl Fn(RequestBuilder) -> RequestBuilder + Send + Sync),
    ) -> Result<Response, Miss> {
        let request = fill(self.http.request(outgoing.method.clone(), url));
        let request = match crate::trace::current_trace() {
            Some(trace) => request.header(crate::trace::TRACE_HEADER, trace.header()),
            None => request,
        };
        let request = match outgoing.timeout {
            Some(timeout) => request.timeout(timeout),
            None => request,
        };
        let miss = |error: reqwest::Error| {
            let reason = error_chain(&error);
            if error.is_connect() { Miss::Refused(reason) } else { Miss::Silent(reason) }
        };
        let response = request.send().await.map_err(miss)?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let leader = response.headers().get(LEADER_HEADER).map(|url| url.to_str().unwrap_or_default().to_owned());
        let body = response.bytes().await.map_err(miss)?;
        Err(match (serde_json::from_slice::<ApiError>(&body), leader) {
            (Ok(error), Some(leader)) => Miss::StandsBy { leader, error },
            (Ok(error), None) => Miss::Answered(error),
            (Err(_), _) => Miss::Silent(format!("HTTP status {status} without an explanation")),
        })
    }

    async fn json<T: DeserializeOwned>(&self, (response, url): (Response, String)) -> Result<T, ClientError> {
        response.json().await.map_err(|error| self.no_answer(&url, error_chain(&error)))
    }

    /// GET.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let answer = self.send(Outgoing::new(Method::GET, path).repeatable(), |request| request).await?;
        self.json(answer).await
    }

    /// A request with a JSON body and a JSON answer.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn call<B: Serialize + ?Sized + Sync, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &B,
    ) -> Result<T, ClientError> {
        let answer = self.send(Outgoing::new(method, path), |request| request.json(body)).await?;
        self.json(answer).await
    }

    /// POST with an idempotency key.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn post_once<B: Serialize + ?Sized + Sync, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
        idempotency_key: &str,
    ) -> Result<T, ClientError> {
        let fill = |request: RequestBuilder| request.header("idempotency-key", idempotency_key).json(body);
        let answer = self.send(Outgoing::new(Method::POST, path).repeatable(), fill).await?;
        self.json(answer).await
    }

    /// POST that must be answered within `patience`, and has one effect however often it is sent.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn post_within<B: Serialize + ?Sized + Sync, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
        patience: Duration,
    ) -> Result<T, ClientError> {
        // Of several one may hang: the others are to be asked in that time as well.
        let attempt = if self.places.count() > 1 { patience / 2 } else { patience };
        let outgoing = Outgoing { timeout: Some(attempt), patience, ..Outgoing::new(Method::POST, path).repeatable() };
        let answer = self.send(outgoing, |request| request.json(body)).await?;
        self.json(answer).await
    }

    /// DELETE with a JSON answer.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let answer = self.send(Outgoing::new(Method::DELETE, path), |request| request).await?;
        self.json(answer).await
    }

    /// POST of raw bytes.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn post_bytes(&self, path: &str, bytes: Bytes) -> Result<(), ClientError> {
        self.send(Outgoing::new(Method::POST, path), |request| request.body(bytes.clone())).await?;
        Ok(())
    }

    /// GET of a byte stream, and the value of its `x-offset` header (0 without one).
    ///
    /// # Errors
    /// [`ClientError`]; the stream ends with an error when the connection breaks.
    pub async fn get_stream(
        &self,
        path: &str,
    ) -> Result<(u64, impl Stream<Item = Result<Bytes, ClientError>> + Send + Unpin + use<>), ClientError> {
        let outgoing = Outgoing { timeout: None, ..Outgoing::new(Method::GET, path).repeatable() };
        let (response, url) = self.send(outgoing, |request| request).await?;
        let offset = response.headers().get("x-offset").and_then(|value| value.to_str().ok()?.parse().ok());
        let service = self.service;
        let stream = response.bytes_stream().map_err(move |error| ClientError::NoAnswer {
            service,
            url: url.clone(),
            reason: error_chain(&error),
        });
        Ok((offset.unwrap_or(0), Box::pin(stream)))
    }
}
