use super::*;
use crate::store::{
    Store,
    cluster::{self, Cluster},
};

fn options(cluster: &Cluster, prefix: &str) -> EtcdOptions {
    EtcdOptions { prefix: prefix.to_owned(), ..EtcdOptions::new(cluster.urls()) }
}

/// A controller's directory with as many entries, one of them large.
async fn file(entries: usize) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let store = RedbStore::open(&directory.path().join(STORE_FILE)).unwrap();
    for n in 0..entries {
        let value = vec![b'v'; if n == 0 { 700 << 10 } else { 1 + n }];
        store.commit(Transaction::default().then(Change::Put(format!("k/{n:04}"), value))).await.unwrap();
    }
    directory
}

async fn contents(store: &dyn Store) -> Vec<(String, Vec<u8>)> {
    let (entries, _) = store.list("").await.unwrap();
    entries.into_iter().map(|entry| (entry.key, entry.value)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn file_is_copied_whole_and_only_to_where_nothing_is_and_nobody_leads() {
    if cluster::is_missing("file_is_copied_whole_and_only_to_where_nothing_is_and_nobody_leads") {
        return;
    }
    let cluster = Cluster::start(&[]).await;
    let directory = file(300).await;
    let to = options(&cluster, "copied");
    let copied = copy_store(directory.path(), &to).await.unwrap();
    let there = EtcdStore::new(&to).unwrap();
    let source = RedbStore::open(&directory.path().join(STORE_FILE)).unwrap();
    assert_eq!(copied.entries, 300);
    // The leader's key is gone with its lease, and so is the mark.
    assert_eq!(contents(&there).await, contents(&source).await);

    let open = copy_store(directory.path(), &options(&cluster, "other")).await;
    assert!(matches!(open, Err(ControllerError::Store(StoreError::Locked(_)))), "{open:?}");
    drop(source);
    let words = |copied: Result<Copied, ControllerError>| copied.unwrap_err().to_string();
    let twice = words(copy_store(directory.path(), &to).await);
    assert!(twice.starts_with("There are 300 entries under copied/ at "), "{twice}");

    let led = options(&cluster, "led");
    let store = EtcdStore::new(&led).unwrap();
    let me = Leader { name: "c1".to_owned(), url: "https://c1:1".to_owned() };
    let mut campaign = Campaign::new(Arc::new(store.clone()), Arc::new(store), me);
    campaign.until_elected(|_| ()).await;
    let led = words(copy_store(directory.path(), &led).await);
    assert!(led.starts_with("A controller runs on led/ at "), "{led}");
}

#[tokio::test]
async fn directory_without_a_store_is_named_and_stays_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let to = EtcdOptions::new(vec!["http://127.0.0.1:1".to_owned()]);
    let error = copy_store(directory.path(), &to).await.unwrap_err().to_string();
    assert!(error.contains(STORE_FILE) && error.contains("--data"), "{error}");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn batches_hold_what_a_transaction_takes() {
    let entry = |bytes: usize| Entry { key: "k".to_owned(), value: vec![0; bytes], revision: Default::default() };
    let small: Vec<_> = (0..300).map(|_| entry(1)).collect();
    assert_eq!(batches(&small).iter().map(|batch| batch.len()).collect::<Vec<_>>(), [128, 128, 44]);
    let large = [entry(1 << 20), entry(300 << 10), entry(300 << 10), entry(1)];
    assert_eq!(batches(&large).iter().map(|batch| batch.len()).collect::<Vec<_>>(), [1, 1, 2]);
}
