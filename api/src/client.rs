//! The HTTP client under both typed clients.

use bytes::Bytes;
use futures::{Stream, TryStreamExt as _};
use reqwest::{Method, RequestBuilder, Response};
use serde::{Serialize, de::DeserializeOwned};
use std::time::Duration;
use vmotion_model::{ApiError, ErrorCode, error_chain};
use vmotion_transport::{ExpectedPeer, Identity};

/// A host that does not take a connection by then is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
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
    service: &'static str,
}

impl HttpClient {
    /// A client of the service at `base` (`https://host:port`), which must be `expected`.
    ///
    /// # Errors
    /// When the identity cannot be used.
    pub fn new(
        service: &'static str,
        base: &str,
        identity: &Identity,
        expected: ExpectedPeer,
    ) -> Result<Self, ClientError> {
        let base = base.trim_end_matches('/').to_owned();
        let failed = |reason: String| ClientError::NoAnswer { service, url: base.clone(), reason };
        if !base.starts_with("https://") {
            return Err(failed("the URL must begin with https://".to_owned()));
        }
        let tls = identity.client_config(expected).map_err(|error| failed(error.to_string()))?;
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .no_proxy()
            .build()
            .map_err(|error| failed(error_chain(&error)))?;
        Ok(Self { http, base, service })
    }

    /// The service's base URL.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    fn request(&self, method: Method, path: &str) -> (RequestBuilder, String) {
        let url = format!("{}{path}", self.base);
        (self.http.request(method, &url), url)
    }

    async fn send(&self, request: RequestBuilder, url: &str) -> Result<Response, ClientError> {
        let response = request.send().await.map_err(|error| self.no_answer(url, &error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = response.bytes().await.map_err(|error| self.no_answer(url, &error))?;
        Err(match serde_json::from_slice::<ApiError>(&body) {
            Ok(error) => ClientError::Answered(error),
            Err(_) => ClientError::NoAnswer {
                service: self.service,
                url: url.to_owned(),
                reason: format!("HTTP status {status} without an explanation"),
            },
        })
    }

    fn no_answer(&self, url: &str, error: &reqwest::Error) -> ClientError {
        ClientError::NoAnswer { service: self.service, url: url.to_owned(), reason: error_chain(error) }
    }

    async fn json<T: DeserializeOwned>(&self, response: Response, url: &str) -> Result<T, ClientError> {
        response.json().await.map_err(|error| self.no_answer(url, &error))
    }

    /// GET.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let (request, url) = self.request(Method::GET, path);
        let response = self.send(request.timeout(ANSWER_TIMEOUT), &url).await?;
        self.json(response, &url).await
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
        let (request, url) = self.request(method, path);
        let response = self.send(request.timeout(ANSWER_TIMEOUT).json(body), &url).await?;
        self.json(response, &url).await
    }

    /// POST with a deadline of its own and an idempotency key.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn post_once<B: Serialize + ?Sized + Sync, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
        idempotency_key: &str,
    ) -> Result<T, ClientError> {
        let (request, url) = self.request(Method::POST, path);
        let request = request.timeout(ANSWER_TIMEOUT).header("idempotency-key", idempotency_key).json(body);
        let response = self.send(request, &url).await?;
        self.json(response, &url).await
    }

    /// POST that must be answered within `patience`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn post_within<B: Serialize + ?Sized + Sync, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
        patience: Duration,
    ) -> Result<T, ClientError> {
        let (request, url) = self.request(Method::POST, path);
        let response = self.send(request.timeout(patience).json(body), &url).await?;
        self.json(response, &url).await
    }

    /// DELETE with a JSON answer.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let (request, url) = self.request(Method::DELETE, path);
        let response = self.send(request.timeout(ANSWER_TIMEOUT), &url).await?;
        self.json(response, &url).await
    }

    /// POST of raw bytes.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn post_bytes(&self, path: &str, bytes: Bytes) -> Result<(), ClientError> {
        let (request, url) = self.request(Method::POST, path);
        self.send(request.timeout(ANSWER_TIMEOUT).body(bytes), &url).await?;
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
        let (request, url) = self.request(Method::GET, path);
        let response = self.send(request, &url).await?;
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
