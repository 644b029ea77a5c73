//! Controllers: the pure machine with a driver of virtual time, and terms that go on with moves.

use super::{
    Harms,
    cluster::{SimCluster, WITNESS},
    world::{Owner, World},
};
use crate::{
    leader::{Elections, Event, Fenced, Leader, Lost, Moment, State, campaign},
    store::{Change, Entry, Outcome, Revision, SharedStore, Store, StoreError, Transaction, Watch, WatchError},
};
use futures::future::BoxFuture;
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

/// How many there are.
pub(super) const COUNT: usize = 3;
/// A driver looks at its clock this often.
const TICK: Duration = Duration::from_millis(100);

/// What a controller shows to the others in this simulation.
#[derive(Default)]
struct Shown {
    /// Times it was started.
    starts: u64,
    alive: bool,
    /// Its clock: how fast it is in millionths, and how far ahead.
    rate: i64,
    ahead: i64,
    /// The store of its term, while it answers requests.
    term: Option<(SharedStore, Lost)>,
}

/// What a term begins with.
type OnTerm = Box<dyn Fn(SharedStore, Owner) + Send>;

/// All controllers. Cheap to clone.
#[derive(Clone)]
pub(super) struct Controllers {
    world: World,
    pub(super) cluster: SimCluster,
    harms: Harms,
    all: Arc<[Mutex<Shown>; COUNT]>,
    healthy: Arc<Mutex<bool>>,
    on_term: Arc<Mutex<Option<OnTerm>>>,
}

impl Controllers {
    pub(super) fn begin(world: &World, harms: Harms) -> Self {
        let controllers = Self {
            world: world.clone(),
            cluster: SimCluster::new(world),
            harms,
            all: Arc::default(),
            healthy: Arc::default(),
            on_term: Arc::default(),
        };
        for number in 0..COUNT {
            // Good clocks are at most 1% apart from true time.
            let rate = i64::try_from(world.below(20_000)).unwrap() - 10_000;
            controllers.all[number].lock().unwrap().rate = rate;
            controllers.start(number);
        }
        world.spawn(Owner::World, controllers.clone().harm());
        controllers
    }

    /// What every term begins with from now on.
    pub(super) fn on_term(&self, begin: impl Fn(SharedStore, Owner) + Send + 'static) {
        *self.on_term.lock().unwrap() = Some(Box::new(begin));
    }

    /// Lets go of everything, for it all holds each other.
    pub(super) fn end(&self) {
        *self.on_term.lock().unwrap() = None;
        self.world.end_all();
    }

    /// No more harm comes, and what was lost is back.
    pub(super) fn heal(&self) {
        *self.healthy.lock().unwrap() = true;
        self.cluster.heal();
    }

    /// The store of whoever answers requests at this controller.
    pub(super) fn front(&self, number: usize) -> Option<SharedStore> {
        let shown = self.all[number].lock().unwrap();
        shown.term.as_ref().map(|(store, _)| Arc::clone(store))
    }

    /// Its monotonic clock, or what it takes for one.
    fn clock(&self, number: usize) -> Moment {
        let shown = self.all[number].lock().unwrap();
        let truth = i64::try_from(self.world.now().as_micros()).unwrap();
        let shows = truth + truth / 1_000_000 * shown.rate + shown.ahead + 3_600_000_000;
        Duration::from_micros(u64::try_from(shows).unwrap_or(0))
    }

    fn start(&self, number: usize) {
        let start = {
            let mut shown = self.all[number].lock().unwrap();
            shown.starts += 1;
            shown.alive = true;
            shown.starts
        };
        self.world.spawn(Owner::Process(number, start), self.clone().drive(number, start));
    }

    async fn harm(self) {
        loop {
            self.world.sleep(Duration::from_millis(500) + self.world.ms_below(4000)).await;
            if *self.healthy.lock().unwrap() {
                return;
            }
            let number = usize::try_from(self.world.below(COUNT as u64)).unwrap();
            match self.world.below(3) {
                0 => self.kill(number),
                1 if self.harms.clocks_jump => {
                    // Back as well: a clock that does not deserve its name.
                    let jump = i64::try_from(self.world.below(30_000_000)).unwrap() - 20_000_000;
                    self.all[number].lock().unwrap().ahead += jump;
                }
                2 if self.harms.pauses => self.world.stand_still(number, self.world.ms_below(15_000)),
                _ => {}
            }
        }
    }

    /// With everything it knew; it is started again.
    fn kill(&self, number: usize) {
        let start = {
            let mut shown = self.all[number].lock().unwrap();
            if !std::mem::replace(&mut shown.alive, false) {
                return;
            }
            if let Some((_, lost)) = shown.term.take() {
                // Nobody hears what a dead process would have answered.
                lost.set();
            }
            shown.starts
        };
        self.world.end(Owner::Process(number, start));
        self.world.end(Owner::Term(number, start));
        let controllers = self.clone();
        self.world.spawn(Owner::World, async move {
            controllers.world.sleep(controllers.world.ms_below(3000)).await;
            controllers.start(number);
        });
    }

    /// The driver.
    async fn drive(self, number: usize, start: u64) {
        let me = Leader { name: format!("c{number}"), url: String::new() };
        let mut state = State::new();
        let mut answered = true;
        loop {
            let pause = state.pause(answered);
            self.wait(number, &state, pause).await;
            let asked = self.clock(number);
            let answer: Arc<Mutex<Option<Result<Event, StoreError>>>> = Arc::default();
            let (cluster, question, leader) = (self.cluster.clone(), state.question(), me.clone());
            let slot = Arc::clone(&answer);
            self.world.spawn(Owner::Process(number, start), async move {
                let event = campaign::ask(&cluster, question, &leader).await;
                *slot.lock().unwrap() = Some(event);
            });
            let event = loop {
                if self.is_late(number, &state) {
                    answered = false;
                    break Event::Nothing;
                }
                if let Some(event) = answer.lock().unwrap().take() {
                    answered = event.is_ok();
                    break event.unwrap_or(Event::Nothing);
                }
                self.world.sleep(TICK / 5).await;
            };
            let event = if self.is_lost(number) { Event::Fenced } else { event };
            let before = state.token();
            let (next, effects) = state.step(event, asked, self.clock(number));
            state = next;
            match (before, state.token()) {
                (None, Some(token)) => self.lead(number, start, token),
                (Some(_), None) => self.end_term(number, start),
                _ => {}
            }
            self.check_alone(number);
            if let Some(lease) = effects.revoke {
                // As bad as any question.
                let _ = self.cluster.revoke(lease).await;
            }
        }
    }

    /// Until the next question, or until something must happen before.
    async fn wait(&self, number: usize, state: &State, pause: Duration) {
        let until = self.world.now() + pause;
        while self.world.now() < until && !self.is_late(number, state) && !self.is_lost(number) {
            self.world.sleep(TICK.min(until - self.world.now())).await;
        }
    }

    fn is_late(&self, number: usize, state: &State) -> bool {
        state.deadline().is_some_and(|deadline| self.clock(number) >= deadline)
    }

    fn is_lost(&self, number: usize) -> bool {
        self.all[number].lock().unwrap().term.as_ref().is_some_and(|(_, lost)| lost.is_set())
    }

    fn lead(&self, number: usize, start: u64, token: Revision) {
        self.world.show(|shown| shown.terms += 1);
        let lost = Lost::new();
        let cluster: SharedStore = Arc::new(self.cluster.clone());
        let store = if self.harms.unfenced { cluster } else { Arc::new(Fenced::new(cluster, token, lost.clone())) };
        let store: SharedStore = Arc::new(Marked { store, token });
        self.all[number].lock().unwrap().term = Some((Arc::clone(&store), lost));
        self.world.spawn(Owner::Term(number, start), heartbeats(self.world.clone(), Arc::clone(&store)));
        if let Some(begin) = &*self.on_term.lock().unwrap() {
            begin(store, Owner::Term(number, start));
        }
    }

    fn end_term(&self, number: usize, start: u64) {
        if let Some((_, lost)) = self.all[number].lock().unwrap().term.take() {
            lost.set();
        }
        self.world.end(Owner::Term(number, start));
    }

    /// With clocks that are good, nobody stands still and leads: at most one leads at any time.
    fn check_alone(&self, number: usize) {
        if self.harms.clocks_jump || self.harms.pauses {
            return;
        }
        let leads = |other: &usize| self.all[*other].lock().unwrap().term.is_some();
        let others: Vec<usize> = (0..COUNT).filter(|other| *other != number).filter(leads).collect();
        if leads(&number) && !others.is_empty() {
            self.world.violation(format!("c{number} leads beside {others:?}"));
        }
    }
}

/// What hosts say is written as it comes: a commit that compares nothing of its own.
async fn heartbeats(world: World, store: SharedStore) {
    loop {
        let heard = Change::Put("hosts/h1".to_owned(), world.now().as_millis().to_string().into_bytes());
        // The next one says more.
        let _ = store.commit(Transaction::default().then(heard)).await;
        world.sleep(Duration::from_millis(200)).await;
    }
}

/// A term's store that writes down under which token each commit was made.
struct Marked {
    store: SharedStore,
    token: Revision,
}

impl Store for Marked {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, StoreError>> {
        self.store.get(key)
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<(Vec<Entry>, Revision), StoreError>> {
        self.store.list(prefix)
    }

    fn commit(&self, transaction: Transaction) -> BoxFuture<'_, Result<Outcome, StoreError>> {
        let witness = Change::Put(WITNESS.to_owned(), self.token.0.to_string().into_bytes());
        self.store.commit(transaction.then(witness))
    }

    fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, WatchError> {
        self.store.watch(prefix, after)
    }
}
