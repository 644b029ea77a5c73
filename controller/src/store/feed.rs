//! Watches for stores that live in this process: a bounded history and a broadcast of what follows.

use super::{Change, Commit, Revision};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::broadcast;

/// Commits a watch may lag behind, and commits that are kept for watches that begin in the past.
const HISTORY_MAX: usize = 1024;

/// Why a watch ended or cannot begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// Commits between were forgotten: list again, and watch from there.
    #[error("Commits after revision {} are not kept any more", .0.0)]
    Compacted(Revision),
    /// The store was closed.
    #[error("Store was closed")]
    Closed,
}

/// The writing end.
#[derive(Debug)]
pub(crate) struct Feed {
    history: Mutex<History>,
    sender: broadcast::Sender<Arc<Commit>>,
}

#[derive(Debug)]
struct History {
    /// The revision before the first commit that is kept.
    base: Revision,
    commits: VecDeque<Arc<Commit>>,
}

impl Feed {
    /// A feed of what comes after `base`.
    pub(crate) fn new(base: Revision) -> Self {
        let history = Mutex::new(History { base, commits: VecDeque::new() });
        Self { history, sender: broadcast::Sender::new(HISTORY_MAX) }
    }

    /// Tells every watch. Callers must call in the order of revisions.
    pub(crate) fn publish(&self, commit: Commit) {
        let commit = Arc::new(commit);
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        if history.commits.len() == HISTORY_MAX
            && let Some(oldest) = history.commits.pop_front()
        {
            history.base = oldest.revision;
        }
        history.commits.push_back(Arc::clone(&commit));
        // Nobody watching is fine.
        let _ = self.sender.send(commit);
    }

    /// A watch of what comes after `after`.
    pub(crate) fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, WatchError> {
        let history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        if after < history.base {
            return Err(WatchError::Compacted(after));
        }
        let past = history.commits.iter().filter(|commit| commit.revision > after).cloned().collect();
        Ok(Watch { prefix: prefix.to_owned(), past, receiver: self.sender.subscribe(), seen: after })
    }
}

/// A watch. Dropping it ends it.
#[derive(Debug)]
pub struct Watch {
    prefix: String,
    past: VecDeque<Arc<Commit>>,
    receiver: broadcast::Receiver<Arc<Commit>>,
    seen: Revision,
}

impl Watch {
    /// The next commit that touches the prefix, with only those changes.
    ///
    /// # Errors
    /// [`WatchError::Compacted`] when this watch was too slow.
    pub async fn next(&mut self) -> Result<Commit, WatchError> {
        loop {
            let commit = match self.past.pop_front() {
                Some(commit) => commit,
                None => self.receiver.recv().await.map_err(|error| match error {
                    broadcast::error::RecvError::Lagged(_) => WatchError::Compacted(self.seen),
                    broadcast::error::RecvError::Closed => WatchError::Closed,
                })?,
            };
            self.seen = commit.revision;
            let ours = |change: &&Change| change.key().starts_with(&self.prefix);
            let changes: Vec<Change> = commit.changes.iter().filter(ours).cloned().collect();
            if !changes.is_empty() {
                return Ok(Commit { revision: commit.revision, changes });
            }
        }
    }
}
