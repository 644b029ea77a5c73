//! etcd's JSON gateway as messages: keys and values are base64, 64-bit numbers are text, and what is zero is left out.

use super::super::{Change, Compare, Transaction};
use data_encoding::BASE64;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use std::collections::HashMap;

/// Bytes, as base64.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Blob(pub(super) Vec<u8>);

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        BASE64.decode(text.as_bytes()).map(Self).map_err(D::Error::custom)
    }
}

/// A number that is never negative, as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Number(pub(super) u64);

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.to_string())
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Self).map_err(|_| D::Error::custom(format!("{text:?} is not a number of etcd's")))
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Header {
    #[serde(default)]
    pub(super) revision: Number,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct KeyValue {
    #[serde(default)]
    pub(super) key: Blob,
    #[serde(default)]
    pub(super) value: Blob,
    #[serde(default)]
    pub(super) mod_revision: Number,
    #[serde(default)]
    pub(super) lease: Number,
}

#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct RangeRequest {
    pub(super) key: Blob,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) range_end: Option<Blob>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) limit: Option<Number>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) revision: Option<Number>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct RangeResponse {
    #[serde(default)]
    pub(super) header: Header,
    #[serde(default)]
    pub(super) kvs: Vec<KeyValue>,
    #[serde(default)]
    pub(super) more: bool,
}

#[derive(Debug, Serialize)]
pub(super) struct WireCompare {
    key: Blob,
    result: &'static str,
    target: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    create_revision: Option<Number>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mod_revision: Option<Number>,
}

#[derive(Debug, Serialize)]
pub(super) enum Request {
    #[serde(rename = "request_range")]
    Range(RangeRequest),
    #[serde(rename = "request_put")]
    Put(PutRequest),
    #[serde(rename = "request_delete_range")]
    Delete(DeleteRequest),
}

#[derive(Debug, Serialize)]
pub(super) struct PutRequest {
    pub(super) key: Blob,
    pub(super) value: Blob,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) lease: Option<Number>,
}

#[derive(Debug, Serialize)]
pub(super) struct DeleteRequest {
    key: Blob,
}

#[derive(Debug, Serialize)]
pub(super) struct TxnRequest {
    pub(super) compare: Vec<WireCompare>,
    pub(super) success: Vec<Request>,
    pub(super) failure: Vec<Request>,
}

impl TxnRequest {
    /// etcd takes one change of each key: of several the last, in its place.
    pub(super) fn new(prefix: &str, transaction: Transaction) -> Self {
        let Transaction { compares, changes } = transaction;
        let last: HashMap<String, usize> =
            changes.iter().enumerate().map(|(at, change)| (change.key().to_owned(), at)).collect();
        let counts = |(at, change): &(usize, Change)| last.get(change.key()) == Some(at);
        let changes = changes.into_iter().enumerate().filter(counts);
        Self {
            compare: compares.into_iter().map(|compare| WireCompare::new(prefix, compare)).collect(),
            success: changes.map(|(_, change)| Request::of(prefix, change)).collect(),
            failure: Vec::new(),
        }
    }
}

impl WireCompare {
    pub(super) fn new(prefix: &str, compare: Compare) -> Self {
        let blob = |key: &str| Blob(format!("{prefix}{key}").into_bytes());
        let (key, target, create_revision, mod_revision) = match &compare {
            Compare::Absent(key) => (blob(key), "CREATE", Some(Number(0)), None),
            Compare::At(key, revision) => (blob(key), "MOD", None, Some(Number(revision.0))),
        };
        Self { key, result: "EQUAL", target, create_revision, mod_revision }
    }
}

impl Request {
    fn of(prefix: &str, change: Change) -> Self {
        let blob = |key: String| Blob(format!("{prefix}{key}").into_bytes());
        match change {
            Change::Put(key, value) => Self::Put(PutRequest { key: blob(key), value: Blob(value), lease: None }),
            Change::Delete(key) => Self::Delete(DeleteRequest { key: blob(key) }),
        }
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct TxnResponse {
    #[serde(default)]
    pub(super) header: Header,
    #[serde(default)]
    pub(super) succeeded: bool,
    #[serde(default)]
    pub(super) responses: Vec<TxnAnswer>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct TxnAnswer {
    pub(super) response_range: Option<RangeResponse>,
}

#[derive(Debug, Serialize)]
pub(super) struct WatchRequest {
    pub(super) create_request: WatchCreate,
}

#[derive(Debug, Serialize)]
pub(super) struct WatchCreate {
    pub(super) key: Blob,
    pub(super) range_end: Blob,
    pub(super) start_revision: Number,
}

/// A line of a stream.
#[derive(Debug, Deserialize)]
pub(super) struct Line<T> {
    pub(super) result: Option<T>,
    pub(super) error: Option<StreamError>,
}

#[derive(Debug, Deserialize)]
pub(super) struct StreamError {
    #[serde(default)]
    pub(super) message: String,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct WatchResponse {
    #[serde(default)]
    pub(super) canceled: bool,
    #[serde(default)]
    pub(super) cancel_reason: String,
    #[serde(default)]
    pub(super) compact_revision: Number,
    #[serde(default)]
    pub(super) events: Vec<WireEvent>,
}

#[derive(Debug, Deserialize)]
pub(super) struct WireEvent {
    #[serde(default, rename = "type")]
    pub(super) kind: Option<String>,
    #[serde(default)]
    pub(super) kv: KeyValue,
}

#[derive(Debug, Serialize)]
pub(super) struct LeaseGrant {
    #[serde(rename = "TTL")]
    pub(super) ttl: Number,
}

#[derive(Debug, Serialize)]
pub(super) struct LeaseName {
    #[serde(rename = "ID")]
    pub(super) id: Number,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct LeaseAnswer {
    #[serde(default, rename = "ID")]
    pub(super) id: Number,
    #[serde(default, rename = "TTL")]
    pub(super) ttl: Number,
}

/// What comes instead of an answer.
#[derive(Debug, Default, Deserialize)]
pub(super) struct ErrorAnswer {
    #[serde(default)]
    pub(super) message: String,
    #[serde(default)]
    pub(super) error: String,
    #[serde(default)]
    pub(super) code: u32,
}

/// The first key after all that begin with `prefix`, which ends in an ASCII character.
pub(super) fn end_of(prefix: &str) -> Blob {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last = last.saturating_add(1);
    }
    Blob(end)
}
