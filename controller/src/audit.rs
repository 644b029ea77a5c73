//! The audit log in the store: entries with consecutive numbers, each sealed with the hash of the one before.
//!
//! The one invariant: the head names the last entry, and both change in one commit; so no number is given twice, whoever writes.

use crate::{
    app::lock,
    inventory::unix_ms,
    records::{Stored, load, load_all, put},
    store::{CHANGES_MAX, Change, Compare, Outcome, Store, Transaction},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    sync::Mutex,
    time::{Duration, Instant},
};
use vmotion_api::{AuditEntry, AuditEvent, AuditPage, Seal, current_trace};
use vmotion_model::{ApiError, ErrorCode};

const ENTRIES: &str = "audit/";
const HEAD: &str = "counters/audit";
/// Entries under one prefix, which is what one answer holds at most.
const PAGE: u64 = 256;
/// Entries that are kept; older ones are forgotten.
const KEPT: u64 = 100_000;
/// Entries forgotten at once.
const FORGOTTEN_AT_ONCE: u64 = 100;
const _: () =
    assert!(FORGOTTEN_AT_ONCE + 2 <= CHANGES_MAX as u64, "an entry with what is forgotten for it would be refused");
/// Tries against others who write at the same time: there should be none.
const TRIES: u32 = 8;
/// What somebody does all the time is written once in so long.
const SELDOM: Duration = Duration::from_secs(60);
/// Callers with their paths that are remembered for that.
const CALLERS_MAX: usize = 1000;

/// The ends of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Head {
    last: Seal,
    before: Seal,
}

/// Who does something, and what.
#[derive(Debug, Clone)]
pub(crate) struct Act {
    pub(crate) caller: String,
    pub(crate) address: Option<String>,
    pub(crate) event: AuditEvent,
}

/// The log.
#[derive(Debug, Default)]
pub(crate) struct AuditLog {
    /// As it was when we wrote last; one writes at a time.
    head: tokio::sync::Mutex<Option<Stored<Head>>>,
    /// When somebody did what is not written each time.
    seldom: Mutex<HashMap<(String, String), Instant>>,
}

fn entry_key(number: u64) -> String {
    format!("{}{number:020}", page_prefix(number))
}

fn page_prefix(number: u64) -> String {
    format!("{ENTRIES}{:017}/", number / PAGE)
}

impl AuditLog {
    /// Writes an entry; its number.
    pub(crate) async fn write(&self, store: &dyn Store, act: Act) -> Result<u64, ApiError> {
        let Act { caller, address, event } = act;
        let mut known = self.head.lock().await;
        let trace = current_trace();
        for _ in 0..TRIES {
            let stored = match known.take() {
                Some(stored) => Some(stored),
                None => load::<Head>(store, HEAD).await?,
            };
            let head = stored.as_ref().map_or_else(
                || Head { last: Seal::beginning(), before: Seal::beginning() },
                |stored| stored.value.clone(),
            );
            let mut entry = AuditEntry {
                number: head.last.number.saturating_add(1),
                unix_ms: unix_ms(),
                caller: caller.clone(),
                address: address.clone(),
                trace: trace.clone(),
                event: event.clone(),
                previous: head.last.hash.clone(),
                hash: String::new(),
            };
            entry.hash = entry.seal();
            let number = entry.number;
            let (before, forgotten) = forget(store, &head, number).await?;
            let next = Head { last: Seal { number, hash: entry.hash.clone() }, before };
            let unchanged = stored.as_ref().map_or_else(|| Compare::Absent(HEAD.to_owned()), Stored::unchanged);
            let mut transaction =
                Transaction::default().when(unchanged).then(put(HEAD, &next)?).then(put(entry_key(number), &entry)?);
            transaction.changes.extend(forgotten);
            // Whether or not an error means that it was written: the head is read again.
            if let Outcome::Committed(revision) = store.commit(transaction).await? {
                *known = Some(Stored { key: HEAD.to_owned(), value: next, revision });
                return Ok(number);
            }
        }
        Err(ApiError::new(ErrorCode::Unavailable, "The audit log is being written by others all the time"))
    }

    /// Is this the first time in a while that `who` does `what`?
    pub(crate) fn is_news(&self, who: &str, what: &str) -> bool {
        let mut seldom = lock(&self.seldom);
        seldom.retain(|_, when| when.elapsed() < SELDOM);
        let key = (who.to_owned(), what.to_owned());
        if seldom.contains_key(&key) {
            return false;
        }
        // A flood of callers is written in full.
        if seldom.len() < CALLERS_MAX {
            seldom.insert(key, Instant::now());
        }
        true
    }
}

/// When there are too many: what the first of the kept follows then, and what goes.
async fn forget(store: &dyn Store, head: &Head, number: u64) -> Result<(Seal, Vec<Change>), ApiError> {
    let oldest = head.before.number + 1;
    if number - oldest < KEPT + FORGOTTEN_AT_ONCE {
        return Ok((head.before.clone(), Vec::new()));
    }
    let last = head.before.number + FORGOTTEN_AT_ONCE;
    let missing = || ApiError::new(ErrorCode::Internal, format!("Entry {last} of the audit log is missing"));
    let entry = load::<AuditEntry>(store, &entry_key(last)).await?.ok_or_else(missing)?.value;
    let gone = (oldest..=last).map(|number| Change::Delete(entry_key(number))).collect();
    Ok((Seal { number: entry.number, hash: entry.hash }, gone))
}

/// Entries from `from` on, to the end of their page; without it, the last one.
pub(crate) async fn read(store: &dyn Store, from: Option<u64>) -> Result<AuditPage, ApiError> {
    let Some(Head { last, before }) = load::<Head>(store, HEAD).await?.map(|stored| stored.value) else {
        return Ok(AuditPage { entries: Vec::new(), last: Seal::beginning(), before: Seal::beginning() });
    };
    let from = from.unwrap_or(last.number).max(before.number + 1);
    if from > last.number {
        return Ok(AuditPage { entries: Vec::new(), last, before });
    }
    let page = load_all::<AuditEntry>(store, &page_prefix(from)).await?;
    // What was written since the head was read is for the next question.
    let wanted =
        page.into_iter().map(|stored| stored.value).filter(|entry| (from..=last.number).contains(&entry.number));
    Ok(AuditPage { entries: wanted.collect(), last, before })
}

/// What is answered when an order cannot be written down.
pub(crate) fn unwritten(error: &ApiError) -> ApiError {
    let why = format!("Nothing was done: the audit log cannot be written: {}", error.message);
    ApiError::new(error.code, why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::MemoryStore;
    use std::sync::Arc;
    use vmotion_api::Chain;

    fn act(what: &str) -> Act {
        Act { caller: "me".into(), address: None, event: AuditEvent::Acted { what: what.into() } }
    }

    async fn all(store: &dyn Store) -> (Seal, Vec<AuditEntry>) {
        let page = read(store, Some(0)).await.unwrap();
        let mut entries = page.entries;
        while let Some(next) = entries.last().map(|entry| entry.number + 1).filter(|next| *next <= page.last.number) {
            entries.extend(read(store, Some(next)).await.unwrap().entries);
        }
        (page.before, entries)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_two_write_at_once_is_one_chain() {
        let store = Arc::new(MemoryStore::default());
        let logs = [Arc::new(AuditLog::default()), Arc::new(AuditLog::default())];
        let write = |log: &Arc<AuditLog>| {
            let (store, log) = (Arc::clone(&store), Arc::clone(log));
            tokio::spawn(async move {
                for number in 0..300 {
                    // The other one may be faster eight times in a row.
                    while log.write(&*store, act(&number.to_string())).await.is_err() {}
                }
            })
        };
        let writers = logs.each_ref().map(write);
        for writer in writers {
            writer.await.unwrap();
        }
        let (before, entries) = all(&*store).await;
        assert_eq!((before, entries.len()), (Seal::beginning(), 600));
        let mut chain = Chain::after(Seal::beginning());
        entries.iter().for_each(|entry| chain.follow(entry).unwrap());
        assert_eq!(*chain.last(), read(&*store, None).await.unwrap().last);
    }

    #[tokio::test]
    async fn the_oldest_are_forgotten_and_what_is_kept_still_follows() {
        let (store, log) = (MemoryStore::default(), AuditLog::default());
        let last = KEPT + 2 * FORGOTTEN_AT_ONCE + 10;
        for number in 1..=last {
            assert_eq!(log.write(&store, act("it")).await.unwrap(), number);
        }
        let (before, entries) = all(&store).await;
        assert_eq!((before.number, entries.len() as u64), (2 * FORGOTTEN_AT_ONCE, KEPT + 10));
        let mut chain = Chain::after(before);
        entries.iter().for_each(|entry| chain.follow(entry).unwrap());
    }

    #[test]
    fn what_is_done_all_the_time_is_written_once() {
        let log = AuditLog::default();
        assert_eq!(
            [log.is_news("a", "x"), log.is_news("a", "x"), log.is_news("b", "x"), log.is_news("a", "y")],
            [true, false, true, true]
        );
    }
}
