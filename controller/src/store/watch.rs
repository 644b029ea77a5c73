//! Watches: the commits of a store as they happen, wherever the store is.

use super::{Change, Commit, Revision, feed::Follower};
use tokio::sync::mpsc;

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

/// A watch. Dropping it ends it.
#[derive(Debug)]
pub struct Watch {
    source: Source,
}

#[derive(Debug)]
enum Source {
    /// A store in this process: all commits, of which those of the prefix are wanted.
    Feed { prefix: String, follower: Follower },
    /// A store elsewhere, whose reader sends what touches the prefix and ends when this is dropped.
    Reader(mpsc::Receiver<Result<Commit, WatchError>>),
}

impl Watch {
    pub(super) fn of_feed(prefix: &str, follower: Follower) -> Self {
        Self { source: Source::Feed { prefix: prefix.to_owned(), follower } }
    }

    pub(super) const fn of_reader(commits: mpsc::Receiver<Result<Commit, WatchError>>) -> Self {
        Self { source: Source::Reader(commits) }
    }

    /// The next commit that touches the prefix, with only those changes.
    ///
    /// # Errors
    /// [`WatchError::Compacted`] when this watch was too slow.
    pub async fn next(&mut self) -> Result<Commit, WatchError> {
        match &mut self.source {
            Source::Reader(commits) => commits.recv().await.unwrap_or(Err(WatchError::Closed)),
            Source::Feed { prefix, follower } => loop {
                let commit = follower.next().await?;
                let ours = |change: &&Change| change.key().starts_with(prefix.as_str());
                let changes: Vec<Change> = commit.changes.iter().filter(ours).cloned().collect();
                if !changes.is_empty() {
                    return Ok(Commit { revision: commit.revision, changes });
                }
            },
        }
    }
}
