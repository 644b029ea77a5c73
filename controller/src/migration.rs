//! From the file of one controller to the cluster of several, in one go.
//!
//! The one invariant: no controller leads on half a copy. The copy holds the leader's key while it writes, so none is elected; and the first
//! thing it writes is that it is not finished, which no controller begins a term with.

use crate::{
    STORE_FILE,
    error::ControllerError,
    leader::{Campaign, Elections, Fenced, LEADER_KEY, Leader, Lost},
    store::{
        CHANGES_MAX, Change, Entry, Outcome, SharedStore, Store as _, StoreError, Transaction,
        etcd::{EtcdOptions, EtcdStore},
        redb::RedbStore,
    },
};
use std::{path::Path, sync::Arc, time::Duration};
use tokio::time::timeout;

/// Exists while a copy is not finished, and after one that never was.
pub(crate) const UNFINISHED: &str = "unfinished-copy";
/// Bytes of keys and values in one transaction; one entry may be larger.
const BATCH_BYTES: usize = 512 << 10;

/// Nobody leads where nothing is.
const ELECTED_WITHIN: Duration = Duration::from_secs(15);

/// What was copied, and read back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copied {
    /// Entries.
    pub entries: usize,
    /// Bytes of their keys and values.
    pub bytes: usize,
}

/// Copies the store in the directory `from` into a cluster in which there is nothing under the prefix yet.
///
/// # Errors
/// [`ControllerError`] when there is no such store, a controller has it open, the prefix is not empty, or what was written is not
/// what is read back.
pub async fn copy_store(from: &Path, to: &EtcdOptions) -> Result<Copied, ControllerError> {
    let file = from.join(STORE_FILE);
    if !file.is_file() {
        let reason = "there is no such file; name the directory that vmotion controller was given with --data";
        return Err(StoreError::Open { path: file, reason: reason.to_owned() }.into());
    }
    let source = RedbStore::open(&file)?;
    let (entries, _) = source.list("").await?;
    let cluster = EtcdStore::new(to)?;
    let place = cluster.describe();
    check_empty(&cluster, &place).await?;
    let elections: Arc<dyn Elections> = Arc::new(cluster.clone());
    let cluster: SharedStore = Arc::new(cluster);
    let me = Leader { name: "vmotion store copy".to_owned(), url: String::new() };
    let mut campaign = Campaign::new(elections, Arc::clone(&cluster), me);
    let elected = timeout(ELECTED_WITHIN, campaign.until_elected(|_| ())).await;
    let token =
        elected.map_err(|_| ControllerError::Copy(format!("A controller began to run on {place}: stop it first")))?;
    let lost = Lost::new();
    let fenced: SharedStore = Arc::new(Fenced::new(Arc::clone(&cluster), token, lost.clone()));
    let copied = tokio::select! {
        copied = copy(&entries, &fenced, &place) => copied,
        () = campaign.until_lost(&lost) => Err(StoreError::NotLeader.into()),
    };
    campaign.resign().await;
    copied
}

/// Nothing, and nobody who leads.
async fn check_empty(cluster: &EtcdStore, place: &str) -> Result<(), ControllerError> {
    let (found, _) = cluster.list("").await?;
    let Some(first) = found.first() else { return Ok(()) };
    if found.iter().any(|entry| entry.key == LEADER_KEY) {
        return Err(ControllerError::Copy(format!(
            "A controller runs on {place}: stop it first, or choose another prefix"
        )));
    }
    Err(ControllerError::Copy(format!(
        "There are {} entries under {place} already, such as {:?}: choose another prefix, or empty it with etcdctl del --prefix",
        found.len(),
        first.key
    )))
}

async fn copy(entries: &[Entry], to: &SharedStore, place: &str) -> Result<Copied, ControllerError> {
    let write = async |changes: Vec<Change>| match to.commit(Transaction { compares: Vec::new(), changes }).await? {
        Outcome::Committed(_) => Ok::<(), ControllerError>(()),
        Outcome::Refused => Err(ControllerError::Copy(format!("{place} was changed by somebody else"))),
    };
    // Nobody else is elected from here: what is there now stays.
    if to.list("").await?.0.iter().any(|entry| entry.key != LEADER_KEY) {
        return Err(ControllerError::Copy(format!("{place} was filled by somebody else at the same time")));
    }
    write(vec![Change::Put(UNFINISHED.to_owned(), Vec::new())]).await?;
    for batch in batches(entries) {
        write(batch.iter().map(|entry| Change::Put(entry.key.clone(), entry.value.clone())).collect()).await?;
    }
    let (found, _) = to.list("").await?;
    let ours = |entry: &&Entry| entry.key != LEADER_KEY && entry.key != UNFINISHED;
    let same = |(one, other): (&Entry, &Entry)| one.key == other.key && one.value == other.value;
    let found: Vec<&Entry> = found.iter().filter(ours).collect();
    if found.len() != entries.len() || !found.iter().copied().zip(entries).all(same) {
        return Err(ControllerError::Copy(format!("{place} does not hold what was written to it")));
    }
    write(vec![Change::Delete(UNFINISHED.to_owned())]).await?;
    Ok(Copied { entries: entries.len(), bytes: entries.iter().map(size).sum() })
}

fn size(entry: &Entry) -> usize {
    entry.key.len() + entry.value.len()
}

/// As many entries as one transaction takes, again and again.
fn batches(mut entries: &[Entry]) -> Vec<&[Entry]> {
    let mut batches = Vec::new();
    while !entries.is_empty() {
        let mut bytes = 0;
        let fits = |entry: &&Entry| {
            bytes += size(entry);
            bytes <= BATCH_BYTES
        };
        let count = entries.iter().take(CHANGES_MAX).take_while(fits).count().max(1);
        let (batch, rest) = entries.split_at(count);
        batches.push(batch);
        entries = rest;
    }
    batches
}

#[cfg(test)]
mod tests;
