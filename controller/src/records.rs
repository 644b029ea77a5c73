//! What the store holds, and under which keys. Values are JSON: small, readable in a crash, and tolerant of new fields.

use crate::{
    operations::MoveRecord,
    store::{Change, Compare, Entry, Revision, Store},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{collections::BTreeMap, path::PathBuf};
use vmotion_api::HostReport;
use vmotion_model::{ApiError, ErrorCode, HostName, MachineName, MachineSpec, MoveId, OwnerRecord};
use vmotion_transport::mesh::MeshTicket;

pub(crate) const MACHINES: &str = "machines/";
pub(crate) const OWNERS: &str = "owners/";
pub(crate) const HOSTS: &str = "hosts/";
pub(crate) const MOVES: &str = "moves/";
/// Machines that span several hosts.
const SPANS: &str = "spans/";
pub(crate) const PIECES: &str = "pieces/";
/// What the operator declared; the policy has a key of its own.
pub(crate) const SITE: &str = "site/model";
pub(crate) const POLICY: &str = "site/policy";
/// Hosts that are to be empty.
pub(crate) const DRAINS: &str = "drains/";
/// Who put a machine where it is.
pub(crate) const PLACED: &str = "placed/";
pub(crate) const PLANS: &str = "plans/";
/// The number of the last plan.
pub(crate) const LAST_PLAN: &str = "counters/plans";
/// The number of the last move.
pub(crate) const LAST_MOVE: &str = "counters/moves";

pub(crate) fn machine_key(name: &MachineName) -> String {
    format!("{MACHINES}{name}")
}

pub(crate) fn span_key(name: &MachineName) -> String {
    format!("{SPANS}{name}")
}

/// What pieces of a machine are called in the store: `vcpuN`, `memN`.
pub(crate) fn pieces_key(name: &MachineName) -> String {
    format!("{PIECES}{name}/")
}

pub(crate) fn piece_key(name: &MachineName, piece: &str) -> String {
    format!("{}{piece}", pieces_key(name))
}

/// Shards of its memory, which slices are made of: `shardN`. Too many to be read with every look at the machine.
pub(crate) fn shards_key(name: &MachineName) -> String {
    format!("shards/{name}/")
}

pub(crate) fn shard_key(name: &MachineName, shard: &str) -> String {
    format!("{}{shard}", shards_key(name))
}

pub(crate) fn owner_key(name: &MachineName) -> String {
    format!("{OWNERS}{name}")
}

pub(crate) fn host_key(name: &HostName) -> String {
    format!("{HOSTS}{name}")
}

/// What happened when in a finished move: hundreds of times the size of its record, and read only by whoever asks about this one.
pub(crate) fn timeline_key(id: &MoveId) -> String {
    format!("timelines/{id}")
}

pub(crate) fn move_key(id: &MoveId) -> String {
    format!("{MOVES}{id}")
}

/// Exists while a move of the machine is unfinished: one move at a time, and neither stop nor removal meanwhile.
pub(crate) fn busy_key(name: &MachineName) -> String {
    format!("busy/{name}")
}

/// What is to become of a machine. The settled ones need nobody to do anything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "intent")]
pub(crate) enum Intent {
    /// Its host is asked to start it until it answers.
    Starting,
    /// Settled: its host has it.
    Running,
    /// Its host is asked to stop it until it answers.
    Stopping,
    /// Settled: its host said that it stands.
    Stopped,
    /// Its host is asked to remove it until it answers.
    Removing,
    /// Settled: its host refused.
    Failed {
        /// In the host's words.
        reason: String,
    },
}

impl Intent {
    pub(crate) const fn is_settled(&self) -> bool {
        match self {
            Self::Running | Self::Stopped | Self::Failed { .. } => true,
            Self::Starting | Self::Stopping | Self::Removing => false,
        }
    }
}

/// A machine in the store. Who owns it is in its owner record, not here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MachineRecord {
    pub(crate) spec: MachineSpec,
    #[serde(flatten)]
    pub(crate) intent: Intent,
    /// The snapshot it starts from.
    #[serde(default)]
    pub(crate) from: Option<PathBuf>,
    /// The idempotency record of its creation, removed when its host refuses it.
    #[serde(default)]
    pub(crate) once: Option<String>,
}

/// That a machine spans several hosts, and which these are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SpanRecord {
    /// Its hosts by their numbers, which are nobody else's meanwhile. Number 0 has the devices and stays.
    pub(crate) members: BTreeMap<u8, HostName>,
    /// The hosts it was created over: a slice that was never claimed has its homes on the host of its place.
    pub(crate) began_on: Vec<HostName>,
    /// Slices its memory is divided into.
    pub(crate) slices: u8,
    /// The secret of its hosts.
    pub(crate) ticket: MeshTicket,
    /// Its parts compare the bytes of copies with those of their versions.
    #[serde(default)]
    pub(crate) audit: bool,
}

impl SpanRecord {
    pub(crate) fn has(&self, host: &HostName) -> bool {
        self.members.values().any(|member| member == host)
    }

    /// All its hosts but this one.
    pub(crate) fn others(&self, host: &HostName) -> impl Iterator<Item = &HostName> {
        self.members.values().filter(move |member| *member != host)
    }
}

/// That a host is to be empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DrainRecord {
    pub(crate) host: HostName,
    /// By when, in ms since the epoch.
    #[serde(default)]
    pub(crate) by_unix_ms: Option<u64>,
    /// The pause that each move may cost, in ms.
    #[serde(default)]
    pub(crate) downtime_ms_max: Option<u32>,
    /// Who asked.
    pub(crate) asked_by: String,
}

pub(crate) fn drain_key(host: &HostName) -> String {
    format!("{DRAINS}{host}")
}

/// A host in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HostRecord {
    pub(crate) report: HostReport,
    #[serde(default)]
    pub(crate) cordoned: bool,
    /// When it was heard last, as of the last time this record was written.
    #[serde(default)]
    pub(crate) seen_unix_ms: u64,
}

/// The answer to a request with an idempotency key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OnceRecord {
    /// The request, as JSON.
    pub(crate) request: String,
    /// What it made: the name of a machine or a move.
    pub(crate) made: String,
    /// When, for forgetting the oldest.
    pub(crate) unix_ms: u64,
}

/// A value with the commit that set it.
#[derive(Debug, Clone)]
pub(crate) struct Stored<T> {
    pub(crate) key: String,
    pub(crate) value: T,
    pub(crate) revision: Revision,
}

impl<T> Stored<T> {
    /// The compare that holds while nobody has changed it.
    pub(crate) fn unchanged(&self) -> Compare {
        Compare::At(self.key.clone(), self.revision)
    }

    pub(crate) fn deleted(&self) -> Change {
        Change::Delete(self.key.clone())
    }
}

fn parse<T: DeserializeOwned>(entry: Entry) -> Result<Stored<T>, ApiError> {
    let Entry { key, value, revision } = entry;
    match serde_json::from_slice(&value) {
        Ok(value) => Ok(Stored { key, value, revision }),
        Err(error) => Err(ApiError::new(ErrorCode::Internal, format!("Stored {key} cannot be read: {error}"))),
    }
}

/// The change that sets `key` to `value`.
pub(crate) fn put<T: Serialize>(key: impl Into<String>, value: &T) -> Result<Change, ApiError> {
    let json = serde_json::to_vec(value)
        .map_err(|error| ApiError::new(ErrorCode::Internal, format!("A record cannot be written: {error}")))?;
    Ok(Change::Put(key.into(), json))
}

/// The value of `key`.
pub(crate) async fn load<T: DeserializeOwned>(store: &dyn Store, key: &str) -> Result<Option<Stored<T>>, ApiError> {
    store.get(key).await?.map(parse).transpose()
}

/// All values whose keys begin with `prefix`, by key.
pub(crate) async fn load_all<T: DeserializeOwned>(store: &dyn Store, prefix: &str) -> Result<Vec<Stored<T>>, ApiError> {
    let (entries, _) = store.list(prefix).await?;
    entries.into_iter().map(parse).collect()
}

pub(crate) async fn load_machine(
    store: &dyn Store,
    name: &MachineName,
) -> Result<Option<Stored<MachineRecord>>, ApiError> {
    load(store, &machine_key(name)).await
}

pub(crate) async fn load_owner(store: &dyn Store, name: &MachineName) -> Result<Option<Stored<OwnerRecord>>, ApiError> {
    load(store, &owner_key(name)).await
}

pub(crate) async fn load_span(store: &dyn Store, name: &MachineName) -> Result<Option<Stored<SpanRecord>>, ApiError> {
    load(store, &span_key(name)).await
}

pub(crate) async fn load_move(store: &dyn Store, id: &MoveId) -> Result<Option<Stored<MoveRecord>>, ApiError> {
    load(store, &move_key(id)).await
}
