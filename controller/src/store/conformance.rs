//! One suite, run against every store.

use super::{
    Change, Commit, Compare, Entry, Outcome, Revision, SharedStore, StoreError, Transaction, WatchError,
    cluster::{self, Cluster},
    etcd::{EtcdOptions, EtcdStore},
    memory::MemoryStore,
    redb::RedbStore,
};
use std::sync::Arc;

/// Every case on every store: on those of this process a test each, on a cluster of three members one after the other, each under a
/// prefix of its own.
macro_rules! suite {
    ($($case:ident),* $(,)?) => {
        mod on_redb {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
                async fn $case() {
                    let directory = tempfile::tempdir().unwrap();
                    super::$case(super::open_redb(directory.path())).await;
                }
            )*
        }

        mod in_memory {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
                async fn $case() {
                    super::$case(super::open_memory()).await;
                }
            )*
        }

        #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
        async fn on_etcd() {
            if cluster::is_missing("store::conformance::on_etcd") {
                return;
            }
            let cluster = Cluster::start(&[]).await;
            $(
                eprintln!("{}", stringify!($case));
                $case(open_etcd(&cluster, stringify!($case))).await;
            )*
        }
    };
}

suite!(
    entry_that_was_put_is_found_with_its_revision,
    compare_that_holds_commits_and_one_that_does_not_changes_nothing,
    transaction_changes_all_keys_or_none,
    last_change_of_a_key_counts,
    deleted_key_is_absent_again,
    list_has_exactly_the_prefix_in_order,
    list_of_many_entries_has_them_all,
    concurrent_compare_and_set_has_exactly_one_winner_each_turn,
    watch_sees_every_change_of_its_prefix_in_order_from_a_past_revision,
    oversized_keys_values_and_transactions_are_refused,
);

fn open_redb(directory: &std::path::Path) -> SharedStore {
    Arc::new(RedbStore::open(&directory.join("store")).unwrap())
}

fn open_memory() -> SharedStore {
    Arc::new(MemoryStore::default())
}

fn open_etcd(cluster: &Cluster, prefix: &str) -> SharedStore {
    let options = EtcdOptions { prefix: prefix.to_owned(), ..EtcdOptions::new(cluster.urls()) };
    Arc::new(EtcdStore::new(&options).unwrap())
}

fn put(key: &str, value: &str) -> Change {
    Change::Put(key.to_owned(), value.into())
}

async fn set(store: &SharedStore, key: &str, value: &str) -> Revision {
    match store.commit(Transaction::default().then(put(key, value))).await.unwrap() {
        Outcome::Committed(revision) => revision,
        Outcome::Refused => panic!("a transaction without compares was refused"),
    }
}

async fn text(store: &SharedStore, key: &str) -> Option<String> {
    store.get(key).await.unwrap().map(|entry| String::from_utf8(entry.value).unwrap())
}

async fn entry_that_was_put_is_found_with_its_revision(store: SharedStore) {
    assert_eq!(store.get("a").await.unwrap(), None);
    let revision = set(&store, "a", "1").await;
    assert_eq!(store.get("a").await.unwrap(), Some(Entry { key: "a".into(), value: b"1".into(), revision }));
    assert!(set(&store, "a", "2").await > revision);
}

async fn compare_that_holds_commits_and_one_that_does_not_changes_nothing(store: SharedStore) {
    let first = set(&store, "a", "1").await;
    let at = |revision| Transaction::default().when(Compare::At("a".into(), revision)).then(put("a", "2"));
    assert!(matches!(store.commit(at(first)).await.unwrap(), Outcome::Committed(_)));
    let stale = Transaction::default().when(Compare::At("a".into(), first)).then(put("a", "3"));
    assert_eq!(store.commit(stale).await.unwrap(), Outcome::Refused);
    let absent = |key: &str| Transaction::default().when(Compare::Absent(key.into())).then(put(key, "4"));
    assert_eq!(store.commit(absent("a")).await.unwrap(), Outcome::Refused);
    assert!(matches!(store.commit(absent("b")).await.unwrap(), Outcome::Committed(_)));
    assert_eq!(text(&store, "a").await.as_deref(), Some("2"));
}

async fn transaction_changes_all_keys_or_none(store: SharedStore) {
    set(&store, "taken", "1").await;
    let both =
        || Transaction::default().when(Compare::Absent("free".into())).then(put("free", "2")).then(put("c", "2"));
    let refused = both().when(Compare::Absent("taken".into()));
    assert_eq!(store.commit(refused).await.unwrap(), Outcome::Refused);
    assert_eq!((text(&store, "free").await, text(&store, "c").await), (None, None));
    let Outcome::Committed(revision) = store.commit(both()).await.unwrap() else { panic!("refused") };
    for key in ["free", "c"] {
        assert_eq!(store.get(key).await.unwrap().unwrap().revision, revision);
    }
}

async fn deleted_key_is_absent_again(store: SharedStore) {
    let revision = set(&store, "a", "1").await;
    let delete = Transaction::default().when(Compare::At("a".into(), revision)).then(Change::Delete("a".into()));
    assert!(matches!(store.commit(delete.clone()).await.unwrap(), Outcome::Committed(_)));
    assert_eq!(store.get("a").await.unwrap(), None);
    assert_eq!(store.commit(delete).await.unwrap(), Outcome::Refused);
}

async fn list_has_exactly_the_prefix_in_order(store: SharedStore) {
    let mut last = Revision::default();
    for key in ["b/2", "a/1", "b/1", "b", "b0", "c/1"] {
        last = set(&store, key, "x").await;
    }
    let (entries, revision) = store.list("b/").await.unwrap();
    assert_eq!(entries.iter().map(|entry| entry.key.as_str()).collect::<Vec<_>>(), ["b/1", "b/2"]);
    assert_eq!(revision, last);
    assert_eq!(store.list("").await.unwrap().0.len(), 6);
}

async fn list_of_many_entries_has_them_all(store: SharedStore) {
    let key = |n: usize| format!("many/{n:04}");
    for batch in 0..6 {
        let changes = (0..100).map(|n| put(&key(batch * 100 + n), "x")).collect();
        let transaction = Transaction { compares: Vec::new(), changes };
        assert!(matches!(store.commit(transaction).await.unwrap(), Outcome::Committed(_)));
    }
    let (entries, _) = store.list("many/").await.unwrap();
    let found: Vec<_> = entries.into_iter().map(|entry| entry.key).collect();
    assert_eq!(found, (0..600).map(key).collect::<Vec<_>>());
}

async fn last_change_of_a_key_counts(store: SharedStore) {
    let put_last = Transaction::default()
        .then(put("a", "1"))
        .then(Change::Delete("a".into()))
        .then(put("b", "1"))
        .then(put("a", "2"));
    assert!(matches!(store.commit(put_last).await.unwrap(), Outcome::Committed(_)));
    assert_eq!((text(&store, "a").await.as_deref(), text(&store, "b").await.as_deref()), (Some("2"), Some("1")));
    let delete_last = Transaction::default().then(put("a", "3")).then(Change::Delete("a".into()));
    assert!(matches!(store.commit(delete_last).await.unwrap(), Outcome::Committed(_)));
    assert_eq!(text(&store, "a").await, None);
}

async fn concurrent_compare_and_set_has_exactly_one_winner_each_turn(store: SharedStore) {
    let mut revision = set(&store, "owner", "nobody").await;
    for _ in 0..20 {
        let attempts = (0..8).map(|contender| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                let compare = Compare::At("owner".into(), revision);
                let wanted = put("owner", &contender.to_string());
                (contender, store.commit(Transaction::default().when(compare).then(wanted)).await.unwrap())
            })
        });
        let mut winners = Vec::new();
        for attempt in attempts.collect::<Vec<_>>() {
            if let (contender, Outcome::Committed(won)) = attempt.await.unwrap() {
                winners.push((contender, won));
            }
        }
        let [(winner, won)] = winners[..] else { panic!("{winners:?} won") };
        assert_eq!(text(&store, "owner").await, Some(winner.to_string()));
        revision = won;
    }
}

async fn watch_sees_every_change_of_its_prefix_in_order_from_a_past_revision(store: SharedStore) {
    let before = set(&store, "a/1", "old").await;
    let second = set(&store, "a/2", "x").await;
    set(&store, "b/1", "other").await;
    let mut watch = store.watch("a/", before).unwrap();
    let third = {
        let changes = Transaction::default().then(put("a/1", "new")).then(put("b/2", "other"));
        let Outcome::Committed(revision) = store.commit(changes).await.unwrap() else { panic!("refused") };
        revision
    };
    let delete = Transaction::default().then(Change::Delete("a/2".into()));
    let Outcome::Committed(fourth) = store.commit(delete).await.unwrap() else { panic!("refused") };

    for (revision, change) in
        [(second, put("a/2", "x")), (third, put("a/1", "new")), (fourth, Change::Delete("a/2".into()))]
    {
        assert_eq!(watch.next().await.unwrap(), Commit { revision, changes: vec![change] });
    }

    let writers = (0..4).map(|writer| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            for n in 0..25 {
                set(&store, &format!("a/{writer}"), &n.to_string()).await;
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    for expected in 1..=100 {
        assert_eq!(watch.next().await.unwrap().revision, Revision(fourth.0 + expected));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_from_a_revision_that_redb_has_forgotten_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    watch_from_a_forgotten_revision_is_refused(open_redb(directory.path())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_from_a_revision_that_memory_has_forgotten_is_refused() {
    watch_from_a_forgotten_revision_is_refused(open_memory()).await;
}

/// Of stores that keep a bounded history; etcd forgets when it is told to.
async fn watch_from_a_forgotten_revision_is_refused(store: SharedStore) {
    let first = set(&store, "a", "0").await;
    let mut slow = store.watch("a", first).unwrap();
    for n in 0..1100 {
        set(&store, "a", &n.to_string()).await;
    }
    assert_eq!(store.watch("a", first).unwrap_err(), WatchError::Compacted(first));
    assert_eq!(slow.next().await, Err(WatchError::Compacted(first)));
    let (_, now) = store.list("a").await.unwrap();
    let mut fresh = store.watch("a", now).unwrap();
    set(&store, "a", "last").await;
    assert_eq!(fresh.next().await.unwrap().changes, [put("a", "last")]);
}

async fn oversized_keys_values_and_transactions_are_refused(store: SharedStore) {
    let large = [
        Transaction::default().then(put(&"k".repeat(super::KEY_BYTES_MAX + 1), "v")),
        Transaction::default().then(Change::Put("k".into(), vec![0; super::VALUE_BYTES_MAX + 1])),
        Transaction { compares: vec![], changes: vec![Change::Delete("k".into()); super::CHANGES_MAX + 1] },
    ];
    for transaction in large {
        assert!(matches!(store.commit(transaction).await, Err(StoreError::TooLarge(_))));
    }
}

#[tokio::test]
async fn redb_keeps_values_and_revisions_over_a_reopen() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let revision = {
        let store: SharedStore = Arc::new(RedbStore::open(&path).unwrap());
        set(&store, "a", "1").await
    };
    let store: SharedStore = Arc::new(RedbStore::open(&path).unwrap());
    assert_eq!(store.get("a").await.unwrap().map(|entry| entry.revision), Some(revision));
    assert_eq!(set(&store, "a", "2").await, revision.next());
    assert_eq!(store.watch("a", Revision(0)).unwrap_err(), WatchError::Compacted(Revision(0)));
}

#[test]
fn redb_that_is_open_elsewhere_is_refused_as_locked() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let _open = RedbStore::open(&path).unwrap();
    assert!(matches!(RedbStore::open(&path).err(), Some(StoreError::Locked(_))));
}

#[test]
fn file_that_is_not_a_store_is_refused_as_corrupt_and_left_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let text = "this is not a store\n".repeat(1000);
    std::fs::write(&path, &text).unwrap();
    let error = RedbStore::open(&path).err().unwrap();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
}

#[test]
fn directory_that_does_not_exist_is_named() {
    let error = RedbStore::open(std::path::Path::new("/nonexistent/store")).err().unwrap();
    assert!(error.to_string().starts_with("Cannot open /nonexistent/store: "), "{error}");
}
