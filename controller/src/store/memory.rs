//! A store that forgets everything with its process: for tests and simulations.

use super::{Change, Commit, Entry, Outcome, Revision, Store, StoreError, Transaction, Watch, WatchError, feed::Feed};
use futures::future::{BoxFuture, ready};
use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// A store in memory.
#[derive(Debug)]
pub struct MemoryStore {
    feed: Feed,
    data: Mutex<Data>,
}

#[derive(Debug, Default)]
struct Data {
    last: Revision,
    entries: BTreeMap<String, (Revision, Vec<u8>)>,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self { feed: Feed::new(Revision::default()), data: Mutex::default() }
    }
}

impl MemoryStore {
    fn lock(&self) -> MutexGuard<'_, Data> {
        self.data.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn commit_now(&self, transaction: Transaction) -> Result<Outcome, StoreError> {
        transaction.check_limits()?;
        let mut data = self.lock();
        let found = |key: &str| data.entries.get(key).map(|(revision, _)| *revision);
        if !transaction.compares.iter().all(|compare| compare.holds(found(compare.key()))) {
            return Ok(Outcome::Refused);
        }
        let revision = data.last.next();
        for change in &transaction.changes {
            match change {
                Change::Put(key, value) => drop(data.entries.insert(key.clone(), (revision, value.clone()))),
                Change::Delete(key) => drop(data.entries.remove(key)),
            }
        }
        data.last = revision;
        // Still locked: watches see commits in order.
        self.feed.publish(Commit { revision, changes: transaction.changes });
        Ok(Outcome::Committed(revision))
    }
}

fn entry((key, (revision, value)): (&String, &(Revision, Vec<u8>))) -> Entry {
    Entry { key: key.clone(), value: value.clone(), revision: *revision }
}

impl Store for MemoryStore {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, StoreError>> {
        Box::pin(ready(Ok(self.lock().entries.get_key_value(key).map(entry))))
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<(Vec<Entry>, Revision), StoreError>> {
        let data = self.lock();
        let ours = data.entries.range(prefix.to_owned()..).take_while(|(key, _)| key.starts_with(prefix));
        Box::pin(ready(Ok((ours.map(entry).collect(), data.last))))
    }

    fn commit(&self, transaction: Transaction) -> BoxFuture<'_, Result<Outcome, StoreError>> {
        Box::pin(ready(self.commit_now(transaction)))
    }

    fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, WatchError> {
        self.feed.watch(prefix, after)
    }
}
