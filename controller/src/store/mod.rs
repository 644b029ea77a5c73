//! Where the controller keeps what must survive it.
//!
//! A small ordered key-value store with revisions, atomic transactions of compares and changes, and watches: the part of
//! etcd's model that owner records need. One controller keeps it in a file ([`redb`]), several in a cluster ([`etcd`]).
//! The one invariant: a commit that was reported as done is durable, and its revision is higher than those of all commits
//! before.

pub mod etcd;
pub mod memory;
pub mod redb;

mod feed;
mod watch;

#[cfg(test)]
#[path = "../../../tests/harness/etcd.rs"]
pub(crate) mod cluster;
#[cfg(test)]
mod conformance;

pub use watch::{Watch, WatchError};

use futures::future::BoxFuture;
use std::{path::PathBuf, sync::Arc};

/// Longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 512;
/// Largest value, in bytes.
pub const VALUE_BYTES_MAX: usize = 1 << 20;
/// Most changes in one transaction.
pub const CHANGES_MAX: usize = 128;

/// Number of a commit; grows with each. Between two there may be commits of others who use the same cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Revision(pub u64);

impl Revision {
    /// The one after this.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// A key with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Vec<u8>,
    /// The commit that set it.
    pub revision: Revision,
}

/// What must hold for a transaction to commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compare {
    /// The key does not exist.
    Absent(String),
    /// The key was last set by this commit.
    At(String, Revision),
}

impl Compare {
    /// The key that is compared.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::Absent(key) | Self::At(key, _) => key,
        }
    }

    /// Does it hold for a key last set at `found`?
    #[must_use]
    pub fn holds(&self, found: Option<Revision>) -> bool {
        match self {
            Self::Absent(_) => found.is_none(),
            Self::At(_, expected) => found == Some(*expected),
        }
    }
}

/// One change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The key has this value now.
    Put(String, Vec<u8>),
    /// The key is gone.
    Delete(String),
}

impl Change {
    /// The key that changes.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::Put(key, _) | Self::Delete(key) => key,
        }
    }
}

/// Changes that happen together, or not at all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Transaction {
    /// All must hold.
    pub compares: Vec<Compare>,
    /// What then changes, in order. Of several changes of one key only the last counts.
    pub changes: Vec<Change>,
}

impl Transaction {
    /// Also compares.
    #[must_use]
    pub fn when(mut self, compare: Compare) -> Self {
        self.compares.push(compare);
        self
    }

    /// Also changes.
    #[must_use]
    pub fn then(mut self, change: Change) -> Self {
        self.changes.push(change);
        self
    }

    fn check_limits(&self) -> Result<(), StoreError> {
        let large = |what: &str, found: usize, most: usize| {
            Err(StoreError::TooLarge(format!("{what} of {found}, at most {most} are accepted")))
        };
        if self.changes.len() > CHANGES_MAX {
            return large("a transaction", self.changes.len(), CHANGES_MAX);
        }
        for change in &self.changes {
            if change.key().len() > KEY_BYTES_MAX {
                return large("a key", change.key().len(), KEY_BYTES_MAX);
            }
            if let Change::Put(_, value) = change
                && value.len() > VALUE_BYTES_MAX
            {
                return large("a value", value.len(), VALUE_BYTES_MAX);
            }
        }
        Ok(())
    }
}

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Everything changed, durably, as this commit.
    Committed(Revision),
    /// A compare did not hold; nothing changed.
    Refused,
}

/// A commit, as watches see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// Its number.
    pub revision: Revision,
    /// What changed, in order.
    pub changes: Vec<Change>,
}

/// Why the store cannot answer. [`StoreError::is_doubtful`] says whether what was asked may have happened all the same.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Another process has it open.
    #[error("{0} is open in another process: stop the other controller, or use another data directory")]
    Locked(PathBuf),
    /// It is not a store, or a damaged one.
    #[error("{path} is not a readable store: {reason}")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// It cannot be made or opened.
    #[error("Cannot open {path}: {reason}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// An option of it cannot be used.
    #[error("{0}")]
    Setting(String),
    /// A limit is exceeded.
    #[error("Store refuses {0}")]
    TooLarge(String),
    /// No member of the cluster takes a connection. Nothing happened.
    #[error("No etcd member answers at {endpoints}: {reason}; are they running?")]
    Unreachable {
        /// All that were tried.
        endpoints: String,
        /// As the network put it.
        reason: String,
    },
    /// Members answer, but not enough of them reach each other to decide anything.
    #[error("etcd cannot decide: {reason}; more than half of its members must run and reach each other")]
    NoQuorum {
        /// In etcd's words.
        reason: String,
    },
    /// The cluster takes no writes any more. What made it full is answered like this, and has happened all the same.
    #[error("etcd is full: {reason}; compact and defragment it, then `etcdctl alarm disarm`")]
    Full {
        /// In etcd's words.
        reason: String,
    },
    /// The cluster does not let us. Nothing happened.
    #[error("etcd refuses this controller: {reason}; check --etcd-cert, --etcd-key and what they may do")]
    Denied {
        /// In etcd's words.
        reason: String,
    },
    /// Another controller leads, or none; whoever asked must not act any more. Nothing happened.
    #[error("This controller does not lead any more; ask again, and the one that does will answer")]
    NotLeader,
    /// Reading or writing failed: disk full, input/output error, no answer.
    #[error("Store failed: {0}")]
    Failed(String),
}

impl StoreError {
    /// May a commit that ended like this have happened, or still happen? Whoever needs to know reads again.
    #[must_use]
    pub const fn is_doubtful(&self) -> bool {
        matches!(self, Self::NoQuorum { .. } | Self::Full { .. } | Self::Failed(_))
    }
}

/// A store. Calls are cheap enough to wait for; a commit waits for the disk.
pub trait Store: Send + Sync + 'static {
    /// The entry of a key.
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, StoreError>>;

    /// All entries whose keys begin with `prefix`, by key, and the revision they are of.
    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<(Vec<Entry>, Revision), StoreError>>;

    /// Commits durably, if every compare holds.
    fn commit(&self, transaction: Transaction) -> BoxFuture<'_, Result<Outcome, StoreError>>;

    /// Every commit after `after` that touches a key with `prefix`, in order, without gaps.
    ///
    /// # Errors
    /// [`WatchError::Compacted`] when `after` lies too far back: list, and watch from there. A store that is not in this
    /// process says so with the first [`Watch::next`].
    fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, WatchError>;
}

/// A store anyone can hold.
pub type SharedStore = Arc<dyn Store>;
