//! A watch of a cluster: one stream after the other, each going on where the last ended.
//!
//! The one invariant: nothing is left out. Every stream begins with the revision after the last that was passed on,
//! whichever member it is of. A stream that is silent is not believed for long: a member that hangs or has lost the others says nothing
//! either.

use super::{
    super::{Change, Commit, Revision, Watch, WatchError},
    client::{ANSWER_BYTES_MAX, Client, Failure},
    wire::{Blob, Line, Number, WatchCreate, WatchRequest, WatchResponse, WireEvent, end_of},
};
use std::{sync::Arc, time::Duration};
use tokio::{sync::mpsc, time::timeout};
use vmotion_model::error_chain;

/// Commits that are read before they are asked for.
const AHEAD_MAX: usize = 64;
/// A stream must begin by then.
const BEGIN_WITHIN: Duration = Duration::from_secs(2);
/// A stream that has said nothing for so long is opened again, with another member.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// Before the next stream, when one was broken.
const PAUSE: Duration = Duration::from_millis(100);

type Commits = mpsc::Sender<Result<Commit, WatchError>>;

/// How a stream ended.
enum End {
    /// Nobody watches any more.
    Unwanted,
    /// What comes next was forgotten.
    Compacted,
    /// It was silent.
    Silent,
    /// It broke.
    Broken(String),
}

/// Begins a watch; `prefix` is that of the store, `keys` that of the watch.
pub(super) fn begin(client: Arc<Client>, prefix: &str, keys: &str, after: Revision) -> Watch {
    let (sender, receiver) = mpsc::channel(AHEAD_MAX);
    let reader = Reader { client, prefix: prefix.to_owned(), keys: format!("{prefix}{keys}"), seen: after };
    tokio::spawn(reader.read(sender));
    Watch::of_reader(receiver)
}

struct Reader {
    client: Arc<Client>,
    prefix: String,
    keys: String,
    /// Everything up to this was passed on.
    seen: Revision,
}

impl Reader {
    async fn read(mut self, commits: Commits) {
        let mut member = self.client.preferred();
        loop {
            let end = tokio::select! {
                end = self.stream(member, &commits) => end,
                () = commits.closed() => End::Unwanted,
            };
            match end {
                End::Unwanted => return,
                End::Compacted => {
                    // Nobody there to hear it is fine.
                    let _ = commits.send(Err(WatchError::Compacted(self.seen))).await;
                    return;
                }
                End::Silent => {}
                End::Broken(reason) => {
                    tracing::debug!(%reason, seen = self.seen.0, "watch of etcd goes on with another member");
                    tokio::time::sleep(PAUSE).await;
                }
            }
            member = member.wrapping_add(1);
        }
    }

    async fn stream(&mut self, member: usize, commits: &Commits) -> End {
        let create_request = WatchCreate {
            key: Blob(self.keys.clone().into_bytes()),
            range_end: end_of(&self.keys),
            start_revision: Number(self.seen.next().0),
        };
        let request = WatchRequest { create_request };
        let mut response = match timeout(BEGIN_WITHIN, self.client.post(member, "/v3/watch", &request)).await {
            Ok(Ok(response)) => response,
            Ok(Err(Failure::Refused(reason) | Failure::Silent(reason))) => return End::Broken(reason),
            Ok(Err(failure)) if failure.is_compacted() => return End::Compacted,
            Ok(Err(failure)) => return End::Broken(format!("{failure:?}")),
            Err(_) => return End::Broken(format!("no answer for {BEGIN_WITHIN:?}")),
        };
        let mut buffer: Vec<u8> = Vec::new();
        loop {
            let chunk = match timeout(SILENCE_MAX, response.chunk()).await {
                Ok(Ok(Some(chunk))) => chunk,
                Ok(Ok(None)) => return End::Broken("the member ended it".to_owned()),
                Ok(Err(error)) => return End::Broken(error_chain(&error)),
                Err(_) => return End::Silent,
            };
            buffer.extend_from_slice(&chunk);
            while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = buffer.drain(..=end).collect();
                if let Err(end) = self.line(&line, commits).await {
                    return end;
                }
            }
            if buffer.len() > ANSWER_BYTES_MAX {
                return End::Broken(format!("a line is longer than {ANSWER_BYTES_MAX} bytes"));
            }
        }
    }

    async fn line(&mut self, line: &[u8], commits: &Commits) -> Result<(), End> {
        let line: Line<WatchResponse> =
            serde_json::from_slice(line).map_err(|error| End::Broken(format!("a line cannot be read: {error}")))?;
        if let Some(error) = line.error {
            return Err(End::Broken(error.message));
        }
        let response = line.result.unwrap_or_default();
        if response.compact_revision.0 > self.seen.0 {
            return Err(End::Compacted);
        }
        for commit in self.commits(response.events)? {
            let revision = commit.revision;
            commits.send(Ok(commit)).await.map_err(|_| End::Unwanted)?;
            self.seen = revision;
        }
        if response.canceled {
            return Err(End::Broken(format!("the member cancelled it: {}", response.cancel_reason)));
        }
        Ok(())
    }

    /// Events by their revision: etcd never divides those of one over two messages.
    fn commits(&self, events: Vec<WireEvent>) -> Result<Vec<Commit>, End> {
        let mut commits: Vec<Commit> = Vec::new();
        for event in events {
            let revision = Revision(event.kv.mod_revision.0);
            if revision <= self.seen {
                continue;
            }
            let key = key_of(&self.prefix, event.kv.key).map_err(End::Broken)?;
            let change = match event.kind.as_deref() {
                Some("DELETE") => Change::Delete(key),
                _ => Change::Put(key, event.kv.value.0),
            };
            match commits.last_mut() {
                Some(last) if last.revision == revision => last.changes.push(change),
                _ => commits.push(Commit { revision, changes: vec![change] }),
            }
        }
        Ok(commits)
    }
}

/// A key without the store's prefix.
pub(super) fn key_of(prefix: &str, key: Blob) -> Result<String, String> {
    let key = String::from_utf8(key.0).map_err(|error| format!("a key under {prefix:?} is not text: {error}"))?;
    match key.strip_prefix(prefix) {
        Some(rest) => Ok(rest.to_owned()),
        None => Err(format!("key {key:?} is not under {prefix:?}")),
    }
}
