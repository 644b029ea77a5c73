//! Calls of a cluster by any of its members, each attempt bounded in time.
//!
//! The one invariant: a change is sent a second time only when the first cannot have happened. Reads, and what can be
//! repeated, go from member to member until one answers.

use super::{
    super::StoreError,
    EtcdOptions,
    wire::{ErrorAnswer, Line},
};
use reqwest::Response;
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use vmotion_model::error_chain;

/// A member that does not take a connection by then is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Between two rounds over all members.
const PAUSE: Duration = Duration::from_millis(100);
/// Longest answer, or line of a stream.
pub(super) const ANSWER_BYTES_MAX: usize = 64 << 20;

/// How long to go on, and whether what was sent may be sent again.
#[derive(Debug, Clone, Copy)]
pub(super) struct Manner {
    attempt: Duration,
    total: Duration,
    repeatable: bool,
}

impl Manner {
    /// Looks, and what may happen twice.
    pub(super) const READ: Self =
        Self { attempt: Duration::from_secs(2), total: Duration::from_secs(8), repeatable: true };
    /// Changes. A slow disk is waited for.
    pub(super) const WRITE: Self =
        Self { attempt: Duration::from_secs(5), total: Duration::from_secs(8), repeatable: false };
    /// What is of no use when it comes late.
    pub(super) const QUICK: Self =
        Self { attempt: Duration::from_millis(800), total: Duration::from_secs(2), repeatable: true };
}

/// Why one attempt brought nothing.
#[derive(Debug)]
pub(super) enum Failure {
    /// No connection: nothing was sent.
    Refused(String),
    /// Sent, and no answer.
    Silent(String),
    /// An error of etcd's.
    Answered { code: u32, message: String },
    /// All members were tried; none took a connection.
    AllRefused { endpoints: String, reason: String },
}

impl Failure {
    /// Can what was asked not have happened, and might another member answer?
    fn did_nothing(&self) -> bool {
        match self {
            Self::Refused(_) => true,
            Self::Answered { message, .. } => {
                ["no leader", "too many requests", "proposal dropped", "server stopped", "not capable"]
                    .iter()
                    .any(|words| message.contains(words))
            }
            Self::Silent(_) | Self::AllRefused { .. } => false,
        }
    }

    /// Might another member, or this one a little later, answer better?
    fn may_pass(&self) -> bool {
        match self {
            Self::Refused(_) | Self::Silent(_) => true,
            // Unavailable, deadline exceeded, unknown: elections, lost connections between members.
            Self::Answered { code, .. } => matches!(code, 2 | 4 | 14) || self.did_nothing(),
            Self::AllRefused { .. } => false,
        }
    }

    /// Has the revision that was asked for been forgotten?
    pub(super) fn is_compacted(&self) -> bool {
        matches!(self, Self::Answered { message, .. } if message.contains("has been compacted"))
    }

    /// Does the lease that was named not exist?
    pub(super) fn is_lease_gone(&self) -> bool {
        matches!(self, Self::Answered { message, .. } if message.contains("lease not found"))
    }
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        let (code, message) = match failure {
            Failure::AllRefused { endpoints, reason } => return Self::Unreachable { endpoints, reason },
            Failure::Refused(reason) | Failure::Silent(reason) => return Self::Failed(reason),
            Failure::Answered { code, message } => (code, message),
        };
        let says = |words: &str| message.contains(words);
        if says("database space exceeded") {
            return Self::Full { reason: message };
        }
        if says("too large") || says("larger than max") || says("too many operations") {
            return Self::TooLarge(format!("what etcd calls {message:?}"));
        }
        match code {
            7 | 16 => Self::Denied { reason: message },
            3 if says("user name") || says("auth") => Self::Denied { reason: message },
            4 | 14 => Self::NoQuorum { reason: message },
            _ => Self::Failed(format!("etcd answered {message:?}")),
        }
    }
}

/// The members of a cluster.
#[derive(Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    endpoints: Vec<String>,
    /// The member that answered last.
    preferred: AtomicUsize,
}

impl Client {
    pub(super) fn new(options: &EtcdOptions) -> Result<Self, StoreError> {
        let endpoints: Vec<String> =
            options.endpoints.iter().map(|url| url.trim().trim_end_matches('/').to_owned()).collect();
        let invalid = |reason: String| Err(StoreError::Setting(reason));
        if endpoints.is_empty() {
            return invalid("--etcd names no member: use http://HOST:PORT or https://HOST:PORT".to_owned());
        }
        for url in &endpoints {
            if url.starts_with("https://") && options.ca.is_none() {
                return invalid(format!("--etcd {url} needs --etcd-ca FILE, the CA of etcd's certificates"));
            }
            if !(url.starts_with("https://") || url.starts_with("http://")) {
                return invalid(format!("--etcd {url} is not a URL: use http://HOST:PORT or https://HOST:PORT"));
            }
        }
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls(options)?)
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .no_proxy()
            .build()
            .map_err(|error| StoreError::Setting(format!("etcd cannot be called: {}", error_chain(&error))))?;
        Ok(Self { http, endpoints, preferred: AtomicUsize::new(0) })
    }

    /// All members, for people.
    pub(super) fn members(&self) -> String {
        self.endpoints.join(", ")
    }

    /// The member that answered last.
    pub(super) fn preferred(&self) -> usize {
        self.preferred.load(Ordering::Relaxed)
    }

    /// Asks the next member from now on, unless somebody has seen to that already.
    fn turn_from(&self, at: usize) {
        let next = (at + 1) % self.endpoints.len();
        let _ = self.preferred.compare_exchange(at, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// POST, and the one answer.
    pub(super) async fn call<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
        manner: Manner,
    ) -> Result<T, Failure> {
        let begun = Instant::now();
        let mut refusals = 0;
        loop {
            let at = self.preferred();
            let failure = match self.attempt(at, path, body, manner.attempt).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            if !failure.may_pass() {
                return Err(failure);
            }
            tracing::debug!(endpoint = %self.endpoints[at], ?failure, "etcd member");
            self.turn_from(at);
            refusals = if matches!(failure, Failure::Refused(_)) { refusals + 1 } else { 0 };
            if let Failure::Refused(reason) = &failure
                && refusals >= self.endpoints.len()
            {
                return Err(Failure::AllRefused { endpoints: self.members(), reason: reason.clone() });
            }
            if !(manner.repeatable || failure.did_nothing()) || begun.elapsed() >= manner.total {
                return Err(failure);
            }
            if refusals == 0 {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    async fn attempt<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        at: usize,
        path: &str,
        body: &B,
        patience: Duration,
    ) -> Result<T, Failure> {
        let endpoint = &self.endpoints[at];
        let answered = async {
            let response = self.post(at, path, body).await?;
            let bytes = whole(response).await?;
            serde_json::from_slice(&bytes)
                .map_err(|error| Failure::Silent(format!("its answer cannot be read: {error}")))
        };
        match tokio::time::timeout(patience, answered).await {
            Ok(Err(Failure::Silent(reason))) => Err(Failure::Silent(format!("etcd at {endpoint}: {reason}"))),
            Ok(answer) => answer,
            Err(_) => Err(Failure::Silent(format!("etcd at {endpoint} has not answered for {patience:?}"))),
        }
    }

    /// POST to one member; the answer has begun, and is not an error.
    pub(super) async fn post<B: Serialize + Sync>(&self, at: usize, path: &str, body: &B) -> Result<Response, Failure> {
        let url = format!("{}{path}", self.endpoints[at % self.endpoints.len()]);
        // A member that has lost the others is to say so.
        let request = self.http.post(&url).header("grpc-metadata-hasleader", "true").json(body);
        let response = request.send().await.map_err(|error| {
            let reason = error_chain(&error);
            if error.is_connect() { Failure::Refused(reason) } else { Failure::Silent(reason) }
        })?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let bytes = whole(response).await?;
        Err(match serde_json::from_slice::<ErrorAnswer>(&bytes) {
            Ok(ErrorAnswer { message, error, code }) => {
                Failure::Answered { code, message: if message.is_empty() { error } else { message } }
            }
            Err(_) => Failure::Silent(format!("HTTP status {status} without an explanation; is it etcd 3.4 or later?")),
        })
    }

    /// The one answer of a call that streams its answers.
    pub(super) async fn call_stream<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
        manner: Manner,
    ) -> Result<T, Failure> {
        let line: Line<T> = self.call(path, body, manner).await?;
        let error = line.error.map(|error| error.message).unwrap_or_default();
        line.result.ok_or(Failure::Answered { code: 2, message: error })
    }
}

/// A whole answer, within the limit.
async fn whole(mut response: Response) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| Failure::Silent(error_chain(&error)))? {
        if bytes.len() + chunk.len() > ANSWER_BYTES_MAX {
            return Err(Failure::Silent(format!("its answer is longer than {ANSWER_BYTES_MAX} bytes")));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// etcd's servers are known by their CA, and by the name in their URL.
fn tls(options: &EtcdOptions) -> Result<ClientConfig, StoreError> {
    let unusable = |option: &str, path: &Path, reason: &dyn std::fmt::Display| {
        StoreError::Setting(format!("{option} {} cannot be used: {reason}", path.display()))
    };
    let certificates = |option: &str, path: &Path| -> Result<Vec<CertificateDer<'static>>, StoreError> {
        let found: Vec<_> = CertificateDer::pem_file_iter(path)
            .and_then(|found| found.collect())
            .map_err(|error| unusable(option, path, &error))?;
        if found.is_empty() { Err(unusable(option, path, &"it holds no certificate")) } else { Ok(found) }
    };
    let mut roots = RootCertStore::empty();
    if let Some(path) = &options.ca {
        for certificate in certificates("--etcd-ca", path)? {
            roots.add(certificate).map_err(|error| unusable("--etcd-ca", path, &error))?;
        }
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| StoreError::Setting(format!("TLS cannot be used: {error}")))?
        .with_root_certificates(roots);
    match (&options.certificate, &options.key) {
        (Some(certificate), Some(key)) => {
            let chain = certificates("--etcd-cert", certificate)?;
            let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| unusable("--etcd-key", key, &error))?;
            builder.with_client_auth_cert(chain, secret).map_err(|error| unusable("--etcd-cert", certificate, &error))
        }
        (None, None) => Ok(builder.with_no_client_auth()),
        _ => Err(StoreError::Setting("--etcd-cert and --etcd-key are given together, or not at all".to_owned())),
    }
}
