//! What only a cluster does: members are killed, cut off, full, unreachable, or forget.

use super::{EtcdOptions, EtcdStore};
use crate::store::{
    Change, Commit, Compare, Entry, Outcome, Revision, SharedStore, Store as _, StoreError, Transaction, Watch,
    WatchError,
    cluster::{self, Cluster},
};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::time::timeout;

/// Far beyond what anything here takes; only a failing test waits for it.
const DEADLINE: Duration = Duration::from_secs(60);

fn open(cluster: &Cluster) -> EtcdStore {
    EtcdStore::new(&EtcdOptions::new(cluster.urls())).unwrap()
}

fn put(key: &str, value: impl Into<Vec<u8>>) -> Transaction {
    Transaction::default().then(Change::Put(key.to_owned(), value.into()))
}

async fn next(watch: &mut Watch) -> Commit {
    timeout(DEADLINE, watch.next()).await.expect("the watch is silent").unwrap()
}

fn number(entry: &Entry) -> u64 {
    String::from_utf8(entry.value.clone()).unwrap().parse().unwrap()
}

/// What a writer knows of its counter.
#[derive(Debug, Default)]
struct Written {
    /// The last value.
    value: u64,
    /// Commits without an answer.
    doubts: u64,
}

/// Counts up by compare-and-set until `stop`; every commit without an answer is looked into before the next.
async fn count_up(store: SharedStore, key: String, stop: Arc<AtomicBool>) -> Written {
    let mut written = Written::default();
    while !stop.load(Ordering::Relaxed) {
        let Ok(found) = store.get(&key).await else { continue };
        let value = found.as_ref().map_or(0, number);
        // Nobody else writes here: less than was confirmed is a lost commit.
        assert!(value >= written.value, "{key} fell from {} to {value}", written.value);
        let compare = match &found {
            Some(entry) => Compare::At(key.clone(), entry.revision),
            None => Compare::Absent(key.clone()),
        };
        match store.commit(put(&key, (value + 1).to_string()).when(compare)).await {
            Ok(Outcome::Committed(_)) => written.value = value + 1,
            // One without an answer happened after the look.
            Ok(Outcome::Refused) => assert!(written.doubts > 0, "{key} was changed by nobody"),
            Err(error) => {
                written.doubts += u64::from(error.is_doubtful());
                written.value = value;
            }
        }
    }
    written
}

#[tokio::test(flavor = "multi_thread")]
async fn members_are_killed_and_cut_off_and_no_commit_is_lost_and_no_watch_has_a_gap() {
    if cluster::is_missing("members_are_killed_and_cut_off_and_no_commit_is_lost_and_no_watch_has_a_gap") {
        return;
    }
    let mut cluster = Cluster::start(&[]).await;
    let store: SharedStore = Arc::new(open(&cluster));
    let mut watch = store.watch("count/", Revision(0)).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let count = |n| tokio::spawn(count_up(Arc::clone(&store), format!("count/{n}"), Arc::clone(&stop)));
    let writers: Vec<_> = (0..4).map(count).collect();

    let while_they_count = || tokio::time::sleep(Duration::from_secs(1));
    while_they_count().await;
    let leader = cluster.leader().await.expect("somebody leads");
    cluster.kill_member(leader);
    while_they_count().await;
    while_they_count().await;
    cluster.start_member(leader);
    cluster.wait_until_healthy().await;
    let leader = cluster.leader().await.expect("somebody leads");
    for cut_off in [leader, (leader + 1) % 3] {
        let frozen = cluster.freeze(cut_off);
        while_they_count().await;
        while_they_count().await;
        drop(frozen);
        cluster.wait_until_healthy().await;
    }
    while_they_count().await;
    stop.store(true, Ordering::Relaxed);

    let mut last = BTreeMap::new();
    for (n, writer) in writers.into_iter().enumerate() {
        let written = timeout(DEADLINE, writer).await.unwrap().unwrap();
        let found = number(&store.get(&format!("count/{n}")).await.unwrap().unwrap());
        eprintln!("count/{n}: {written:?}, found {found}");
        assert!(found >= written.value && found <= written.value + written.doubts);
        last.insert(format!("count/{n}"), found);
    }
    // The watch has every value of every counter, each once.
    let mut seen: BTreeMap<String, u64> = BTreeMap::new();
    let mut revision = Revision(0);
    while seen != last {
        let commit = next(&mut watch).await;
        assert!(commit.revision > revision);
        revision = commit.revision;
        for change in commit.changes {
            let Change::Put(key, value) = change else { panic!("{change:?}") };
            let value: u64 = String::from_utf8(value).unwrap().parse().unwrap();
            let before = seen.insert(key.clone(), value).unwrap_or(0);
            assert_eq!(value, before + 1, "{key}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_more_than_half_of_the_members_nothing_is_decided_and_with_them_it_goes_on() {
    if cluster::is_missing("without_more_than_half_of_the_members_nothing_is_decided_and_with_them_it_goes_on") {
        return;
    }
    let mut cluster = Cluster::start(&[]).await;
    let store = open(&cluster);
    assert!(matches!(store.commit(put("a", "1")).await.unwrap(), Outcome::Committed(_)));
    cluster.kill_member(0);
    cluster.kill_member(1);
    let error = store.commit(put("a", "2")).await.unwrap_err();
    assert!(error.is_doubtful() || matches!(error, StoreError::Unreachable { .. }), "{error}");
    assert!(store.get("a").await.is_err(), "a minority answers reads");
    cluster.start_member(0);
    cluster.wait_until_healthy().await;
    let value = store.get("a").await.unwrap().unwrap().value;
    assert!(value == b"1" || value == b"2", "{value:?}");
    assert!(matches!(store.commit(put("a", "3")).await.unwrap(), Outcome::Committed(_)));
    assert_eq!(store.get("a").await.unwrap().unwrap().value, b"3");
}

#[tokio::test(flavor = "multi_thread")]
async fn full_cluster_says_so_still_answers_reads_and_goes_on_when_it_has_room() {
    if cluster::is_missing("full_cluster_says_so_still_answers_reads_and_goes_on_when_it_has_room") {
        return;
    }
    let cluster = Cluster::start(&["--quota-backend-bytes", "2097152"]).await;
    let store = open(&cluster);
    let mut written = 0_u8;
    let error = loop {
        match store.commit(put("big", vec![written; 256 << 10])).await {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 100, "it takes more than it may");
    };
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    assert!(error.to_string().contains("etcdctl alarm disarm"), "{error}");
    let (entries, revision) = store.list("").await.unwrap();
    // The write that etcd refuses first has happened, or not: it is in doubt.
    assert!(error.is_doubtful() && (written - 1..=written).contains(&entries[0].value[0]), "{}", entries[0].value[0]);
    // What the error says: compact, defragment, disarm.
    cluster
        .ask(0, "/v3/kv/compaction", &format!("{{\"revision\":\"{}\",\"physical\":true}}", revision.0))
        .await
        .unwrap();
    for member in 0..3 {
        cluster.ask(member, "/v3/maintenance/defragment", "{}").await.unwrap();
    }
    let alarms = cluster.ask(0, "/v3/maintenance/alarm", "{\"action\":\"GET\"}").await.unwrap();
    for alarm in alarms["alarms"].as_array().unwrap() {
        let disarm = format!("{{\"action\":\"DEACTIVATE\",\"alarm\":\"NOSPACE\",\"memberID\":{}}}", alarm["memberID"]);
        cluster.ask(0, "/v3/maintenance/alarm", &disarm).await.unwrap();
    }
    assert!(matches!(store.commit(put("big", "small")).await.unwrap(), Outcome::Committed(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_from_a_compacted_revision_says_so_and_one_from_now_goes_on() {
    if cluster::is_missing("watch_from_a_compacted_revision_says_so_and_one_from_now_goes_on") {
        return;
    }
    let cluster = Cluster::start(&[]).await;
    let store = open(&cluster);
    let Outcome::Committed(first) = store.commit(put("a", "0")).await.unwrap() else { panic!("refused") };
    for n in 1..5 {
        store.commit(put("a", n.to_string())).await.unwrap();
    }
    let (_, now) = store.list("a").await.unwrap();
    cluster.ask(0, "/v3/kv/compaction", &format!("{{\"revision\":\"{}\",\"physical\":true}}", now.0)).await.unwrap();
    let mut forgotten = store.watch("a", first).unwrap();
    assert_eq!(timeout(DEADLINE, forgotten.next()).await.unwrap(), Err(WatchError::Compacted(first)));
    let mut fresh = store.watch("a", now).unwrap();
    let Outcome::Committed(last) = store.commit(put("a", "last")).await.unwrap() else { panic!("refused") };
    assert_eq!(
        next(&mut fresh).await,
        Commit { revision: last, changes: vec![Change::Put("a".into(), b"last".into())] }
    );
}

#[tokio::test]
async fn cluster_that_is_not_there_is_named_with_all_its_members() {
    let nowhere: Vec<String> = (0..2)
        .map(|_| format!("http://{}", std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()))
        .collect();
    let store = EtcdStore::new(&EtcdOptions::new(nowhere.clone())).unwrap();
    let error = store.commit(put("a", "1")).await.unwrap_err();
    assert!(!error.is_doubtful(), "{error}");
    assert!(error.to_string().starts_with(&format!("No etcd member answers at {}: ", nowhere.join(", "))), "{error}");
}

#[test]
fn options_that_cannot_be_used_are_named() {
    let options = |url: &str| EtcdOptions::new(vec![url.to_owned()]);
    let prefix = |prefix: &str| EtcdOptions { prefix: prefix.to_owned(), ..options("http://127.0.0.1:1") };
    let certificate = EtcdOptions { certificate: Some("/nonexistent".into()), ..options("http://127.0.0.1:1") };
    let ca = EtcdOptions { ca: Some("/nonexistent".into()), ..options("https://127.0.0.1:1") };
    for (options, words) in [
        (options("https://127.0.0.1:1"), "needs --etcd-ca"),
        (options("127.0.0.1:1"), "is not a URL"),
        (prefix("/"), "--etcd-prefix \"/\" is not valid"),
        (prefix("two words"), "is not valid"),
        (certificate, "--etcd-key"),
        (ca, "--etcd-ca /nonexistent cannot be used"),
    ] {
        let error = EtcdStore::new(&options).unwrap_err();
        assert!(matches!(error, StoreError::Setting(_)) && error.to_string().contains(words), "{error}");
    }
}
