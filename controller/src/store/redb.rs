//! The embedded store: one redb file.
//!
//! A commit is one redb transaction with immediate durability, done on the calling thread: the owner record's
//! compare-and-set happens while a guest stands still, and a hop to another thread and back would cost as much as the
//! disk. On a runtime with several threads the others are told that this one blocks.

use super::{
    Change, Commit, Compare, Entry, Outcome, Revision, Store, StoreError, Transaction, Watch, WatchError, feed::Feed,
};
use futures::future::BoxFuture;
use redb::{
    Database, DatabaseError, Durability, ReadableDatabase as _, ReadableTable as _, StorageError, TableDefinition,
};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};
use tokio::runtime::{Handle, RuntimeFlavor};

/// Key → (revision, value).
const ENTRIES: TableDefinition<'_, &str, (u64, &[u8])> = TableDefinition::new("entries");
/// Numbers of the store itself.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const REVISION: &str = "revision";
const FORMAT: &str = "format";
/// Layout of the tables above.
const FORMAT_VERSION: u64 = 1;
/// Page cache: inventories are small.
const CACHE_BYTES: usize = 16 << 20;

/// A store in one file.
#[derive(Clone)]
pub struct RedbStore {
    inner: Arc<Inner>,
}

struct Inner {
    database: Database,
    feed: Feed,
    /// One writer at a time, from the first compare until watches were told: revisions reach watches in order.
    last: Mutex<Revision>,
}

impl RedbStore {
    /// Opens the store at `path`, or makes it.
    ///
    /// # Errors
    /// [`StoreError`] says whether it is locked, damaged, or cannot be written.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        // redb asserts on damaged files; a damaged file must become an error, not a crash.
        let opened = catch_unwind(AssertUnwindSafe(|| Inner::open(path)));
        let damaged = |_| corrupt(path, "its pages are inconsistent");
        Ok(Self { inner: Arc::new(opened.map_err(damaged)??) })
    }
}

impl Inner {
    fn open(path: &Path) -> Result<Self, StoreError> {
        let database =
            Database::builder().set_cache_size(CACHE_BYTES).create(path).map_err(|error| open_error(path, error))?;
        let failed = |error: redb::Error| StoreError::Open { path: path.to_owned(), reason: error.to_string() };
        let (revision, format) = prepare(&database).map_err(failed)?;
        if format != FORMAT_VERSION {
            let reason = format!("it has format {format}, this version reads format {FORMAT_VERSION}");
            return Err(corrupt(path, &reason));
        }
        Ok(Self { database, feed: Feed::new(revision), last: Mutex::new(revision) })
    }

    fn get(&self, key: &str) -> Result<Option<Entry>, redb::Error> {
        let table = self.database.begin_read()?.open_table(ENTRIES)?;
        Ok(table.get(key)?.map(|found| entry(key, found.value())))
    }

    fn list(&self, prefix: &str) -> Result<(Vec<Entry>, Revision), redb::Error> {
        let read = self.database.begin_read()?;
        let revision = read.open_table(META)?.get(REVISION)?.map_or(0, |found| found.value());
        let mut entries = Vec::new();
        for found in read.open_table(ENTRIES)?.range(prefix..)? {
            let (key, value) = found?;
            if !key.value().starts_with(prefix) {
                break;
            }
            entries.push(entry(key.value(), value.value()));
        }
        Ok((entries, Revision(revision)))
    }

    fn commit(&self, transaction: Transaction) -> Result<Outcome, redb::Error> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let revision = last.next();
        let mut write = self.database.begin_write()?;
        write.set_durability(Durability::Immediate).map_err(redb::Error::from)?;
        let held = {
            let mut entries = write.open_table(ENTRIES)?;
            let held = all_hold(&entries, &transaction.compares)?;
            if held {
                apply(&mut entries, &transaction.changes, revision)?;
                write.open_table(META)?.insert(REVISION, revision.0)?;
            }
            held
        };
        if !held {
            write.abort()?;
            return Ok(Outcome::Refused);
        }
        write.commit()?;
        *last = revision;
        self.feed.publish(Commit { revision, changes: transaction.changes });
        Ok(Outcome::Committed(revision))
    }
}

fn all_hold(
    entries: &impl redb::ReadableTable<&'static str, (u64, &'static [u8])>,
    compares: &[Compare],
) -> Result<bool, redb::Error> {
    for compare in compares {
        let found = entries.get(compare.key())?.map(|found| Revision(found.value().0));
        if !compare.holds(found) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn apply(
    entries: &mut redb::Table<'_, &'static str, (u64, &'static [u8])>,
    changes: &[Change],
    revision: Revision,
) -> Result<(), redb::Error> {
    for change in changes {
        match change {
            Change::Put(key, value) => drop(entries.insert(key.as_str(), (revision.0, value.as_slice()))?),
            Change::Delete(key) => drop(entries.remove(key.as_str())?),
        }
    }
    Ok(())
}

fn entry(key: &str, (revision, value): (u64, &[u8])) -> Entry {
    Entry { key: key.to_owned(), value: value.to_vec(), revision: Revision(revision) }
}

/// Makes the tables of a new file; revision and format of the file.
fn prepare(database: &Database) -> Result<(Revision, u64), redb::Error> {
    let write = database.begin_write()?;
    let found = {
        write.open_table(ENTRIES)?;
        let mut meta = write.open_table(META)?;
        let format = meta.get(FORMAT)?.map(|found| found.value());
        if format.is_none() {
            meta.insert(FORMAT, FORMAT_VERSION)?;
        }
        let revision = meta.get(REVISION)?.map_or(0, |found| found.value());
        (Revision(revision), format.unwrap_or(FORMAT_VERSION))
    };
    write.commit()?;
    Ok(found)
}

fn corrupt(path: &Path, reason: &str) -> StoreError {
    StoreError::Corrupt { path: path.to_owned(), reason: reason.to_owned() }
}

fn open_error(path: &Path, error: DatabaseError) -> StoreError {
    let path: PathBuf = path.to_owned();
    match error {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => StoreError::Locked(path),
        DatabaseError::Storage(StorageError::Corrupted(reason)) => StoreError::Corrupt { path, reason },
        DatabaseError::UpgradeRequired(version) => {
            StoreError::Corrupt { path, reason: format!("its file format {version} is too old") }
        }
        // redb answers "invalid data" for a file that does not begin like one of its own.
        DatabaseError::Storage(StorageError::Io(error)) if error.kind() == std::io::ErrorKind::InvalidData => {
            StoreError::Corrupt { path, reason: error.to_string() }
        }
        error => StoreError::Open { path, reason: error.to_string() },
    }
}

/// Runs `work` on this thread where the runtime has others, on a thread for blocking work where not.
async fn blocking<T: Send + 'static>(
    inner: &Arc<Inner>,
    work: impl FnOnce(&Inner) -> Result<T, redb::Error> + Send + 'static,
) -> Result<T, StoreError> {
    let failed = |error: redb::Error| StoreError::Failed(error.to_string());
    if Handle::current().runtime_flavor() == RuntimeFlavor::MultiThread {
        return tokio::task::block_in_place(|| work(inner)).map_err(failed);
    }
    let inner = Arc::clone(inner);
    let joined = tokio::task::spawn_blocking(move || work(&inner)).await;
    joined.map_err(|error| StoreError::Failed(error.to_string()))?.map_err(failed)
}

impl Store for RedbStore {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, StoreError>> {
        // A read touches cached pages and never waits for a writer.
        Box::pin(async move { self.inner.get(key).map_err(|error| StoreError::Failed(error.to_string())) })
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<(Vec<Entry>, Revision), StoreError>> {
        Box::pin(async move { self.inner.list(prefix).map_err(|error| StoreError::Failed(error.to_string())) })
    }

    fn commit(&self, transaction: Transaction) -> BoxFuture<'_, Result<Outcome, StoreError>> {
        Box::pin(async move {
            transaction.check_limits()?;
            blocking(&self.inner, move |inner| inner.commit(transaction)).await
        })
    }

    fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, WatchError> {
        self.inner.feed.watch(prefix, after)
    }
}
