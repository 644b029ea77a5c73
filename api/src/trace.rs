//! One name for everything that follows from one request, in the logs of controllers, agents and machine processes.
//!
//! The name travels in the `traceparent` header (W3C Trace Context, level 1) and, where an operation outlives the request that began it,
//! with the operation. The one invariant: what is done within a trace logs its name and asks others in its name.

use axum::{
    extract::Request,
    http::{HeaderMap, HeaderName, HeaderValue},
    middleware::Next,
    response::Response,
};
use serde::{Deserialize, Serialize};
use std::{fmt, future::Future, str::FromStr};
use tokio::task::JoinHandle;
use tracing::Instrument as _;

/// The header that names a trace.
pub const TRACE_HEADER: HeaderName = HeaderName::from_static("traceparent");

/// A trace's name: 32 hexadecimal digits, not all zero.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(try_from = "String", into = "String")]
pub struct TraceId(String);

/// Why a text names no trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a trace is named by 32 hexadecimal digits, not all of them zero")]
pub struct TraceIdError;

tokio::task_local! {
    static CURRENT: TraceId;
}

impl TraceId {
    /// A new one.
    #[must_use]
    pub fn random() -> Self {
        Self(hexadecimal::<16>())
    }

    /// The one that a request carries; `None` for one without, or with what is none.
    #[must_use]
    pub fn of_headers(headers: &HeaderMap) -> Option<Self> {
        // version "-" trace-id "-" parent-id "-" flags
        let text = headers.get(TRACE_HEADER)?.to_str().ok()?;
        text.split('-').nth(1)?.parse().ok()
    }

    /// The header of a request in its name, with a parent of its own: nobody here draws trees of spans.
    #[must_use]
    pub fn header(&self) -> HeaderValue {
        let text = format!("00-{}-{}-01", self.0, hexadecimal::<8>());
        HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static(""))
    }
}

/// So many random bytes, as digits.
fn hexadecimal<const BYTES: usize>() -> String {
    let mut bytes = [0; BYTES];
    // The generator does not fail on Linux after start-up; if it did, the name would be a poor one and nothing worse.
    let _ = rustls::crypto::aws_lc_rs::default_provider().secure_random.fill(&mut bytes);
    // All zero is no name.
    bytes[0] |= 1;
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl FromStr for TraceId {
    type Err = TraceIdError;

    fn from_str(text: &str) -> Result<Self, TraceIdError> {
        let digits =
            text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        if digits && text.bytes().any(|byte| byte != b'0') { Ok(Self(text.to_owned())) } else { Err(TraceIdError) }
    }
}

impl TryFrom<String> for TraceId {
    type Error = TraceIdError;

    fn try_from(text: String) -> Result<Self, TraceIdError> {
        text.parse()
    }
}

impl From<TraceId> for String {
    fn from(trace: TraceId) -> Self {
        trace.0
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The trace that the calling task works in.
#[must_use]
pub fn current_trace() -> Option<TraceId> {
    CURRENT.try_with(Clone::clone).ok()
}

/// Works in a trace; in none where there is none.
pub async fn within<F: Future>(trace: Option<TraceId>, work: F) -> F::Output {
    match trace {
        Some(trace) => {
            let span = tracing::error_span!("request", %trace);
            CURRENT.scope(trace, work.instrument(span)).await
        }
        None => work.await,
    }
}

/// Begins a task that works in the trace of the caller.
pub fn spawn_traced<F>(work: F) -> JoinHandle<F::Output>
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    tokio::spawn(within(current_trace(), work))
}

/// For a service: each request is worked on in the trace that it names, or in a new one; the answer names it too.
pub async fn adopt_trace(request: Request, next: Next) -> Response {
    let trace = TraceId::of_headers(request.headers()).unwrap_or_else(TraceId::random);
    let header = trace.header();
    let mut response = within(Some(trace), next.run(request)).await;
    response.headers_mut().insert(TRACE_HEADER, header);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_and_name_are_inverse_and_nonsense_is_no_name() {
        let trace = TraceId::random();
        assert_ne!(trace, TraceId::random());
        let headers = |value: HeaderValue| HeaderMap::from_iter([(TRACE_HEADER, value)]);
        assert_eq!(TraceId::of_headers(&headers(trace.header())), Some(trace));
        for nonsense in ["", "00", "00-xyz-1-01", "00-00000000000000000000000000000000-0000000000000001-01", "00--"] {
            assert_eq!(TraceId::of_headers(&headers(HeaderValue::from_static(nonsense))), None, "{nonsense}");
        }
    }

    #[tokio::test]
    async fn tasks_that_are_begun_within_a_trace_are_in_it() {
        let trace = TraceId::random();
        let (here, there) =
            within(Some(trace.clone()), async { (current_trace(), spawn_traced(async { current_trace() }).await) })
                .await;
        assert_eq!((here, there.unwrap()), (Some(trace.clone()), Some(trace)));
        assert_eq!(current_trace(), None);
    }
}
