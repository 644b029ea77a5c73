//! The cluster: a real [`MemoryStore`] with leases, behind a network that loses and delays.
//!
//! It is the referee as well: every commit that it accepts says under which token it was made.

use super::world::{Owner, World};
use crate::{
    leader::{Elections, LEADER_KEY, Leader, LeaseId, Seat},
    operations::{MoveRecord, Phase},
    records::MOVES,
    store::{Change, Entry, Outcome, Revision, Store, StoreError, Transaction, Watch, WatchError, memory::MemoryStore},
};
use futures::{FutureExt as _, future::BoxFuture};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

/// What a commit was made under; every commit of a term puts it.
pub(super) const WITNESS: &str = "witness";
/// A question without an answer is given up after this.
const GIVE_UP: Duration = Duration::from_secs(2);

#[derive(Default)]
struct Leases {
    last: u64,
    /// When each ends.
    ends: BTreeMap<LeaseId, Duration>,
    seat: Option<Seat>,
    /// The newest token that there ever was.
    newest: Revision,
}

#[derive(Clone)]
pub(super) struct SimCluster {
    world: World,
    pub(super) store: Arc<MemoryStore>,
    leases: Arc<Mutex<Leases>>,
    healthy: Arc<Mutex<bool>>,
}

/// The memory store answers at once.
fn now<T>(future: BoxFuture<'_, T>) -> T {
    future.now_or_never().expect("a store in memory does not wait")
}

impl SimCluster {
    pub(super) fn new(world: &World) -> Self {
        Self { world: world.clone(), store: Arc::default(), leases: Arc::default(), healthy: Arc::default() }
    }

    /// From now on nothing is lost.
    pub(super) fn heal(&self) {
        *self.healthy.lock().unwrap() = true;
    }

    /// Sends `work` through the network: done once, soon, late or never; answered, or not.
    async fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let unhealthy = !*self.healthy.lock().unwrap();
        let harmed = unhealthy && self.world.percent(12);
        let lost = || StoreError::Failed("no answer".to_owned());
        if harmed && self.world.percent(40) {
            self.world.sleep(GIVE_UP).await;
            return Err(lost());
        }
        let is_late = harmed && self.world.percent(40);
        let way = if is_late { self.world.ms_below(20_000) } else { self.world.ms_below(30) };
        let slot = Arc::new(Mutex::new(None));
        let (there, filled) = (self.clone(), Arc::clone(&slot));
        // Once it is on its way it arrives, whatever becomes of its sender.
        self.world.spawn(Owner::World, async move {
            there.world.sleep(way).await;
            there.expire();
            let done = work(&there);
            *filled.lock().unwrap() = Some(done);
        });
        if harmed {
            self.world.sleep(GIVE_UP).await;
            return Err(lost());
        }
        self.world.sleep(way + self.world.ms_below(30)).await;
        slot.lock().unwrap().take().unwrap_or_else(|| Err(lost()))
    }

    /// Ends what is over.
    fn expire(&self) {
        let now = self.world.now();
        let mut leases = self.leases.lock().unwrap();
        leases.ends.retain(|_, end| *end > now);
        if leases.seat.as_ref().is_some_and(|seat| !leases.ends.contains_key(&seat.lease)) {
            leases.seat = None;
            drop(leases);
            self.apply(Transaction::default().then(Change::Delete(LEADER_KEY.to_owned())));
        }
    }

    fn apply(&self, transaction: Transaction) -> Outcome {
        now(self.store.commit(transaction)).unwrap()
    }

    fn referee(&self, transaction: Transaction) -> Result<Outcome, StoreError> {
        let witness = transaction.changes.iter().find_map(|change| match change {
            Change::Put(key, value) if key == WITNESS => String::from_utf8(value.clone()).unwrap().parse().ok(),
            Change::Put(..) | Change::Delete(_) => None,
        });
        let finished = self.finished(&transaction);
        let outcome = now(self.store.commit(transaction))?;
        let newest = self.leases.lock().unwrap().newest;
        let is_old = witness.map(Revision).is_some_and(|token| token < newest);
        match outcome {
            Outcome::Refused if is_old => self.world.show(|shown| shown.fenced += 1),
            Outcome::Refused => {}
            Outcome::Committed(_) => {
                if is_old {
                    self.world.violation(format!("a commit under the old token {witness:?}, {newest:?} is newer"));
                }
                if let Some(key) = finished {
                    self.world.violation(format!("{key} was finished, and changes"));
                }
            }
        }
        Ok(outcome)
    }

    /// A finished move that would change.
    fn finished(&self, transaction: &Transaction) -> Option<String> {
        let changed = transaction.changes.iter().filter(|change| change.key().starts_with(MOVES));
        changed.map(|change| change.key().to_owned()).find(|key| {
            let before = now(self.store.get(key)).unwrap();
            let record = before.map(|entry| serde_json::from_slice::<MoveRecord>(&entry.value).unwrap());
            record.is_some_and(|record| record.phase == Phase::Finished)
        })
    }

    fn take_now(&self, lease: LeaseId, leader: &Leader) -> Option<Seat> {
        let seat = self.leases.lock().unwrap().seat.clone();
        if seat.is_some() || !self.leases.lock().unwrap().ends.contains_key(&lease) {
            return seat;
        }
        let made = self.apply(Transaction::default().then(Change::Put(LEADER_KEY.to_owned(), Vec::new())));
        let Outcome::Committed(token) = made else { panic!("the key was not made") };
        let mut leases = self.leases.lock().unwrap();
        leases.newest = token;
        leases.seat = Some(Seat { leader: leader.clone(), lease, token });
        leases.seat.clone()
    }
}

impl Elections for SimCluster {
    fn seat(&self) -> BoxFuture<'_, Result<Option<Seat>, StoreError>> {
        Box::pin(self.ask(|cluster| Ok(cluster.leases.lock().unwrap().seat.clone())))
    }

    fn grant(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseId, StoreError>> {
        Box::pin(self.ask(move |cluster| {
            let end = cluster.world.now() + ttl;
            let mut leases = cluster.leases.lock().unwrap();
            leases.last += 1;
            let id = LeaseId(leases.last);
            leases.ends.insert(id, end);
            Ok(id)
        }))
    }

    fn take<'a>(&'a self, lease: LeaseId, leader: &'a Leader) -> BoxFuture<'a, Result<Option<Seat>, StoreError>> {
        let leader = leader.clone();
        Box::pin(self.ask(move |cluster| match cluster.take_now(lease, &leader) {
            Some(seat) => Ok(Some(seat)),
            None => Err(StoreError::Failed("requested lease not found".to_owned())),
        }))
    }

    fn renew(&self, lease: LeaseId) -> BoxFuture<'_, Result<bool, StoreError>> {
        Box::pin(self.ask(move |cluster| {
            let end = cluster.world.now() + crate::leader::TTL;
            let mut leases = cluster.leases.lock().unwrap();
            Ok(leases.ends.get_mut(&lease).map(|known| *known = end).is_some())
        }))
    }

    fn revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.ask(move |cluster| {
            cluster.leases.lock().unwrap().ends.remove(&lease);
            cluster.expire();
            Ok(())
        }))
    }
}

impl Store for SimCluster {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, StoreError>> {
        let key = key.to_owned();
        Box::pin(self.ask(move |cluster| now(cluster.store.get(&key))))
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<(Vec<Entry>, Revision), StoreError>> {
        let prefix = prefix.to_owned();
        Box::pin(self.ask(move |cluster| now(cluster.store.list(&prefix))))
    }

    fn commit(&self, transaction: Transaction) -> BoxFuture<'_, Result<Outcome, StoreError>> {
        Box::pin(self.ask(move |cluster| cluster.referee(transaction)))
    }

    fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, WatchError> {
        self.store.watch(prefix, after)
    }
}
