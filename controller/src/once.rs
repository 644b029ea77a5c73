//! Requests that may be repeated: the same `Idempotency-Key` with the same request has one effect.

use crate::{
    error::{conflict, invalid},
    inventory::unix_ms,
    records::{OnceRecord, Stored, load, load_all, put},
    store::{Change, Compare, Store},
};
use axum::http::HeaderMap;
use serde::Serialize;
use vmotion_model::{ApiError, ErrorCode};

/// Longest accepted key, in bytes.
const KEY_BYTES_MAX: usize = 128;
/// Keys remembered of each kind; the oldest are forgotten first.
const REMEMBERED_MAX: usize = 1000;
/// Keys forgotten at once, so that it happens rarely; they go in the transaction of what the request makes.
pub(crate) const FORGOTTEN_AT_ONCE: usize = 20;

/// A request with its key, or without one.
#[derive(Debug, Clone)]
pub(crate) struct Once {
    prefix: &'static str,
    key: Option<String>,
    request: String,
}

impl Once {
    /// Reads the `Idempotency-Key` of a request of `kind`, which ends in a slash.
    pub(crate) fn new(headers: &HeaderMap, kind: &'static str, request: &impl Serialize) -> Result<Self, ApiError> {
        let request = serde_json::to_string(request)
            .map_err(|error| ApiError::new(ErrorCode::Internal, format!("The request cannot be kept: {error}")))?;
        let Some(value) = headers.get("idempotency-key") else {
            return Ok(Self { prefix: kind, key: None, request });
        };
        let valid =
            |key: &&str| (1..=KEY_BYTES_MAX).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic());
        let key = value.to_str().ok().filter(valid).ok_or_else(|| {
            invalid(format!("Idempotency-Key is not valid: use 1 to {KEY_BYTES_MAX} printable ASCII characters"))
        })?;
        Ok(Self { prefix: kind, key: Some(format!("{kind}{key}")), request })
    }

    /// One that this controller makes itself, and repeats only after having looked.
    pub(crate) const fn without_key() -> Self {
        Self { prefix: "", key: None, request: String::new() }
    }

    /// What the first request with this key made.
    pub(crate) async fn made_before(&self, store: &dyn Store) -> Result<Option<String>, ApiError> {
        let Some(key) = &self.key else { return Ok(None) };
        let Some(Stored { value, .. }) = load::<OnceRecord>(store, key).await? else { return Ok(None) };
        if value.request == self.request {
            return Ok(Some(value.made));
        }
        Err(conflict(format!("Idempotency-Key was used for another request, which made {}", value.made))
            .with_hint("use a new key for each new request"))
    }

    /// Where it is remembered.
    pub(crate) fn store_key(&self) -> Option<&str> {
        self.key.as_deref()
    }

    /// What must hold when it takes effect.
    pub(crate) fn compare(&self) -> Option<Compare> {
        self.key.clone().map(Compare::Absent)
    }

    /// Remembers what it made, and forgets the oldest of its kind when there are too many.
    pub(crate) async fn remember(&self, store: &dyn Store, made: &str) -> Result<Vec<Change>, ApiError> {
        let Some(key) = &self.key else { return Ok(Vec::new()) };
        let record = OnceRecord { request: self.request.clone(), made: made.to_owned(), unix_ms: unix_ms() };
        let mut changes = vec![put(key.as_str(), &record)?];
        let mut known = load_all::<OnceRecord>(store, self.prefix).await?;
        if known.len() >= REMEMBERED_MAX {
            known.sort_by_key(|stored| stored.value.unix_ms);
            changes.extend(known.iter().take(FORGOTTEN_AT_ONCE).map(Stored::deleted));
        }
        Ok(changes)
    }
}
