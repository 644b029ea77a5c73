//! The store of several controllers: an etcd cluster, over its own JSON gateway.
//!
//! Every key is under one prefix, so that a cluster can have other users. Reads are linearisable: they never show a past
//! that somebody has already seen the end of. The one invariant is the house's: a commit that was reported as done is
//! durable on more than half of the members; one without an answer may have happened, or may still, and is reported so.

mod client;
mod elections;
mod watch;
mod wire;

#[cfg(test)]
mod tests;

use super::{
    CHANGES_MAX, Entry, KEY_BYTES_MAX, Outcome, Revision, Store, StoreError, Transaction, VALUE_BYTES_MAX, Watch,
    WatchError,
};
use client::{Client, Failure, Manner};
use futures::future::BoxFuture;
use std::{path::PathBuf, sync::Arc};
use watch::key_of;
use wire::{Blob, KeyValue, Number, RangeRequest, RangeResponse, TxnRequest, TxnResponse, end_of};

/// Prefix of all keys, unless another is chosen.
pub const DEFAULT_PREFIX: &str = "vmotion/";
/// Longest prefix, in bytes.
pub const PREFIX_BYTES_MAX: usize = 128;
/// Entries asked for at once.
const PAGE: u64 = 250;

/// How to reach a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdOptions {
    /// `http://HOST:PORT` or `https://HOST:PORT` of its members.
    pub endpoints: Vec<String>,
    /// All keys begin with it.
    pub prefix: String,
    /// PEM file with the CA of its members' certificates; needed for `https`.
    pub ca: Option<PathBuf>,
    /// PEM file with our certificate, where the members want one.
    pub certificate: Option<PathBuf>,
    /// PEM file with its key.
    pub key: Option<PathBuf>,
}

impl EtcdOptions {
    /// Members without TLS, and the usual prefix.
    #[must_use]
    pub fn new(endpoints: Vec<String>) -> Self {
        Self { endpoints, prefix: DEFAULT_PREFIX.to_owned(), ca: None, certificate: None, key: None }
    }

    /// The prefix as it is used: it ends in a slash, so that no two can be prefixes of each other by accident.
    fn checked_prefix(&self) -> Result<String, StoreError> {
        let prefix = self.prefix.trim_end_matches('/');
        let valid = (1..PREFIX_BYTES_MAX).contains(&prefix.len()) && prefix.bytes().all(|byte| byte.is_ascii_graphic());
        if !valid {
            return Err(StoreError::Setting(format!(
                "--etcd-prefix {:?} is not valid: use 1 to {PREFIX_BYTES_MAX} printable ASCII characters",
                self.prefix
            )));
        }
        Ok(format!("{prefix}/"))
    }
}

/// A store in a cluster.
#[derive(Debug, Clone)]
pub struct EtcdStore {
    client: Arc<Client>,
    prefix: String,
}

impl EtcdStore {
    /// A store; no member is called yet.
    ///
    /// # Errors
    /// [`StoreError::Setting`] names the option that cannot be used.
    pub fn new(options: &EtcdOptions) -> Result<Self, StoreError> {
        Ok(Self { prefix: options.checked_prefix()?, client: Arc::new(Client::new(options)?) })
    }

    /// Where it is, for people.
    #[must_use]
    pub fn describe(&self) -> String {
        format!("{} at {}", self.prefix, self.client.members())
    }

    fn full(&self, key: &str) -> Blob {
        Blob(format!("{}{key}", self.prefix).into_bytes())
    }

    fn entry(&self, found: KeyValue) -> Result<Entry, StoreError> {
        let key = key_of(&self.prefix, found.key).map_err(StoreError::Failed)?;
        Ok(Entry { key, value: found.value.0, revision: Revision(found.mod_revision.0) })
    }

    async fn range(&self, request: &RangeRequest) -> Result<RangeResponse, Failure> {
        self.client.call("/v3/kv/range", request, Manner::READ).await
    }

    async fn find(&self, key: &str) -> Result<Option<KeyValue>, StoreError> {
        let request = RangeRequest { key: self.full(key), ..RangeRequest::default() };
        Ok(self.range(&request).await?.kvs.pop())
    }

    /// All entries of one revision, page by page; `None` when it was forgotten before the last page.
    async fn pages(&self, prefix: &str) -> Result<Option<(Vec<Entry>, Revision)>, StoreError> {
        let mut request = RangeRequest {
            key: self.full(prefix),
            range_end: Some(end_of(&format!("{}{prefix}", self.prefix))),
            limit: Some(Number(PAGE)),
            revision: None,
        };
        let mut entries = Vec::new();
        loop {
            let page = match self.range(&request).await {
                Ok(page) => page,
                Err(failure) if failure.is_compacted() => return Ok(None),
                Err(failure) => return Err(failure.into()),
            };
            let revision = *request.revision.get_or_insert(page.header.revision);
            if let Some(last) = page.kvs.last() {
                request.key = Blob([last.key.0.as_slice(), &[0]].concat());
            }
            let is_last = !page.more || page.kvs.is_empty();
            for found in page.kvs {
                entries.push(self.entry(found)?);
            }
            if is_last {
                return Ok(Some((entries, Revision(revision.0))));
            }
        }
    }
}

impl Store for EtcdStore {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, StoreError>> {
        Box::pin(async move { self.find(key).await?.map(|found| self.entry(found)).transpose() })
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<(Vec<Entry>, Revision), StoreError>> {
        Box::pin(async move {
            loop {
                // Forgotten in the middle: what is now is wanted anyway.
                if let Some(listed) = self.pages(prefix).await? {
                    return Ok(listed);
                }
            }
        })
    }

    fn commit(&self, transaction: Transaction) -> BoxFuture<'_, Result<Outcome, StoreError>> {
        Box::pin(async move {
            transaction.check_limits()?;
            if transaction.compares.len() > CHANGES_MAX {
                let found = transaction.compares.len();
                return Err(StoreError::TooLarge(format!("{found} compares, at most {CHANGES_MAX} are accepted")));
            }
            let request = TxnRequest::new(&self.prefix, transaction);
            let answer: TxnResponse = self.client.call("/v3/kv/txn", &request, Manner::WRITE).await?;
            if !answer.succeeded {
                return Ok(Outcome::Refused);
            }
            Ok(Outcome::Committed(Revision(answer.header.revision.0)))
        })
    }

    fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, WatchError> {
        Ok(watch::begin(Arc::clone(&self.client), &self.prefix, prefix, after))
    }
}

// What is allowed above fits what etcd takes unless told otherwise: 1.5 MiB a request, 128 operations a transaction.
const _: () = assert!(VALUE_BYTES_MAX + KEY_BYTES_MAX + PREFIX_BYTES_MAX < (3 << 20) / 2 && CHANGES_MAX <= 128);
