//! Watches for stores that live in this process: a bounded history and a broadcast of what follows.

use super::{Commit, Revision, Watch, WatchError};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::broadcast;

/// Commits a watch may lag behind, and commits that are kept for watches that begin in the past.
const HISTORY_MAX: usize = 1024;

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
        let follower = Follower { past, receiver: self.sender.subscribe(), seen: after };
        Ok(Watch::of_feed(prefix, follower))
    }
}

/// The reading end.
#[derive(Debug)]
pub(super) struct Follower {
    past: VecDeque<Arc<Commit>>,
    receiver: broadcast::Receiver<Arc<Commit>>,
    seen: Revision,
}

impl Follower {
    /// The next commit, whatever it touches.
    pub(super) async fn next(&mut self) -> Result<Arc<Commit>, WatchError> {
        let commit = match self.past.pop_front() {
            Some(commit) => commit,
            None => self.receiver.recv().await.map_err(|error| match error {
                broadcast::error::RecvError::Lagged(_) => WatchError::Compacted(self.seen),
                broadcast::error::RecvError::Closed => WatchError::Closed,
            })?,
        };
        self.seen = commit.revision;
        Ok(commit)
    }
}
