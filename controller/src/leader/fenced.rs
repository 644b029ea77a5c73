//! The store as a leader uses it: every commit proves that it still leads.

use super::LEADER_KEY;
use crate::store::{Compare, Entry, Outcome, Revision, SharedStore, Store, StoreError, Transaction, Watch, WatchError};
use futures::future::BoxFuture;
use std::sync::Arc;
use tokio::sync::watch;

/// Whether a term is over; shared by all that act in it.
#[derive(Debug, Clone)]
pub(crate) struct Lost {
    lost: Arc<watch::Sender<bool>>,
}

impl Lost {
    pub(crate) fn new() -> Self {
        Self { lost: Arc::new(watch::Sender::new(false)) }
    }

    /// From here nothing is asked of the store any more.
    pub(crate) fn set(&self) {
        let _ = self.lost.send_replace(true);
    }

    pub(crate) fn is_set(&self) -> bool {
        *self.lost.borrow()
    }

    /// Completes when the term is over.
    pub(crate) fn wait(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut receiver = self.lost.subscribe();
        async move {
            // An error means that nobody can say it any more.
            let _ = receiver.wait_for(|lost| *lost).await;
        }
    }
}

/// A store in which only the leader of one token can change anything.
pub(crate) struct Fenced {
    store: SharedStore,
    token: Revision,
    lost: Lost,
}

impl Fenced {
    pub(crate) const fn new(store: SharedStore, token: Revision, lost: Lost) -> Self {
        Self { store, token, lost }
    }

    fn check(&self) -> Result<(), StoreError> {
        if self.lost.is_set() { Err(StoreError::NotLeader) } else { Ok(()) }
    }

    /// Was it the token? Its revision never comes back: if the key has it now, it had it then.
    async fn refused(&self) -> Result<Outcome, StoreError> {
        if self.store.get(LEADER_KEY).await?.is_some_and(|entry| entry.revision == self.token) {
            return Ok(Outcome::Refused);
        }
        self.lost.set();
        Err(StoreError::NotLeader)
    }
}

impl Store for Fenced {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, StoreError>> {
        Box::pin(async move {
            self.check()?;
            self.store.get(key).await
        })
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<(Vec<Entry>, Revision), StoreError>> {
        Box::pin(async move {
            self.check()?;
            self.store.list(prefix).await
        })
    }

    fn commit(&self, transaction: Transaction) -> BoxFuture<'_, Result<Outcome, StoreError>> {
        Box::pin(async move {
            self.check()?;
            let fenced = transaction.when(Compare::At(LEADER_KEY.to_owned(), self.token));
            match self.store.commit(fenced).await? {
                Outcome::Refused => self.refused().await,
                committed @ Outcome::Committed(_) => Ok(committed),
            }
        })
    }

    fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, WatchError> {
        self.store.watch(prefix, after)
    }
}
