//! Tasks on virtual time: whoever is due is polled, in an order that the seed chooses.

use super::{Random, Shown, choices};
use futures::future::BoxFuture;
use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, Waker},
    time::Duration,
};

/// Whose task it is: what dies together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    /// Nobody stops it: the network, the cluster, hosts.
    World,
    /// A controller's process, by number and how often it was started.
    Process(usize, u64),
    /// A term of it.
    Term(usize, u64),
}

impl Owner {
    const fn controller(self) -> Option<usize> {
        match self {
            Self::World => None,
            Self::Process(controller, _) | Self::Term(controller, _) => Some(controller),
        }
    }
}

struct Task {
    owner: Owner,
    due: Duration,
    future: BoxFuture<'static, ()>,
}

struct Inner {
    now: Duration,
    random: Random,
    /// When the task that is being polled wants to go on.
    due: Duration,
    born: Vec<Task>,
    dead: Vec<Owner>,
    /// Controllers that stand still, and until when.
    still: Vec<(usize, Duration)>,
    shown: Shown,
}

/// The world. Cheap to clone.
#[derive(Clone)]
pub(super) struct World {
    inner: Arc<Mutex<Inner>>,
    tasks: Arc<Mutex<Vec<Task>>>,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let inner = Inner {
            now: Duration::ZERO,
            random: choices(seed),
            due: Duration::MAX,
            born: Vec::new(),
            dead: Vec::new(),
            still: Vec::new(),
            shown: Shown::default(),
        };
        Self { inner: Arc::new(Mutex::new(inner)), tasks: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    pub(super) fn now(&self) -> Duration {
        self.lock().now
    }

    pub(super) fn below(&self, limit: u64) -> u64 {
        self.lock().random.below(limit)
    }

    /// True that often of a hundred times.
    pub(super) fn percent(&self, chance: u64) -> bool {
        self.below(100) < chance
    }

    /// A time below so many ms.
    pub(super) fn ms_below(&self, limit: u64) -> Duration {
        Duration::from_millis(self.below(limit))
    }

    pub(super) fn show(&self, change: impl FnOnce(&mut Shown)) {
        change(&mut self.lock().shown);
    }

    pub(super) fn violation(&self, what: String) {
        let now = self.now();
        self.show(|shown| shown.violations.push(format!("at {now:?}: {what}")));
    }

    pub(super) fn shown(&self) -> Shown {
        std::mem::take(&mut self.lock().shown)
    }

    pub(super) fn spawn(&self, owner: Owner, future: impl Future<Output = ()> + Send + 'static) {
        let mut inner = self.lock();
        let due = inner.now;
        inner.born.push(Task { owner, due, future: Box::pin(future) });
    }

    /// Ends all tasks of `owner`.
    pub(super) fn end(&self, owner: Owner) {
        self.lock().dead.push(owner);
    }

    /// Ends all tasks, which hold the world.
    pub(super) fn end_all(&self) {
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap());
        let born = std::mem::take(&mut self.lock().born);
        drop((tasks, born));
    }

    /// A controller's tasks are not polled until then.
    pub(super) fn stand_still(&self, controller: usize, pause: Duration) {
        let mut inner = self.lock();
        let until = inner.now + pause;
        inner.still.push((controller, until));
    }

    pub(super) fn sleep(&self, time: Duration) -> Sleep {
        Sleep { world: self.clone(), until: self.now() + time }
    }

    /// Runs until that time, or until `over`.
    pub(super) fn run(&self, until: Duration, over: impl Fn() -> bool) {
        let mut tasks = self.tasks.lock().unwrap();
        while !over() {
            self.take_changes(&mut tasks);
            let Some(at) = self.next(&tasks) else { return };
            if self.lock().now > until {
                return;
            }
            self.poll(&mut tasks, at);
        }
    }

    fn take_changes(&self, tasks: &mut Vec<Task>) {
        let mut inner = self.lock();
        tasks.append(&mut inner.born);
        let dead = std::mem::take(&mut inner.dead);
        let now = inner.now;
        inner.still.retain(|(_, until)| *until > now);
        drop(inner);
        // A future that is dropped may look at the world.
        tasks.retain(|task| !dead.contains(&task.owner));
    }

    /// The task to poll next, with the time set to when it is due.
    fn next(&self, tasks: &[Task]) -> Option<usize> {
        let mut inner = self.lock();
        let still = |task: &Task| {
            let controller = task.owner.controller();
            let times = inner.still.iter().filter(|(still, _)| Some(*still) == controller);
            times.map(|(_, until)| *until).max().unwrap_or(Duration::ZERO)
        };
        let times: Vec<Duration> = tasks.iter().map(|task| task.due.max(still(task)).max(inner.now)).collect();
        let first = *times.iter().min()?;
        if first == Duration::MAX {
            return None;
        }
        let due: Vec<usize> = (0..tasks.len()).filter(|at| times[*at] == first).collect();
        inner.now = first;
        let count = due.len() as u64;
        let chosen = usize::try_from(inner.random.below(count)).unwrap();
        Some(due[chosen])
    }

    fn poll(&self, tasks: &mut Vec<Task>, at: usize) {
        self.lock().due = Duration::MAX;
        let polled = tasks[at].future.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        match polled {
            Poll::Ready(()) => drop(tasks.swap_remove(at)),
            Poll::Pending => tasks[at].due = self.lock().due,
        }
    }
}

/// Waits on virtual time.
pub(super) struct Sleep {
    world: World,
    until: Duration,
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        let mut inner = self.world.lock();
        if inner.now >= self.until {
            return Poll::Ready(());
        }
        inner.due = inner.due.min(self.until);
        Poll::Pending
    }
}
