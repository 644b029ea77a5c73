//! A round: what is dirty is copied, and on a long path what is dirtied meanwhile follows at once.
//!
//! ```text
//! short path   pass ─▶ wait for the target's word ─▶ report
//! long path    pass ─▶ wait until it has left ─▶ much is dirty again: report, the next round follows at once
//!                                             └▶ little is: trickle (a pass now and then, sent twice over) ─▶ word of all but the
//!                                                last round trip has come ─▶ report
//! ```
//! A round trip of waiting is a round trip in which the link is idle and the guest writes on. So on a long path nobody waits for word of
//! a pass before the next begins. Before a pause somebody must, for a packet that is lost costs another round trip: the
//! trickle keeps what is dirty small until everything has arrived but what cannot have been answered yet. Its passes are small, so
//! that they can be sent again at once ([`Copies`]), and a lost packet of theirs delays nothing.

use super::{on_the_way::OnTheWay, tasks::Message};
use crate::{
    convergence::{PAGES_FOR_RATE, RoundReport, negligible_ms},
    copy::{Copier, SharedTracker, Task, lock},
    guest::SourceMachine,
};
use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::{sync::watch, time::timeout};
use vmotion_dirty_tracking::PageBitmap;
use vmotion_model::error_chain;
use vmotion_transport::session::{Copies, PathStats};

/// How often the counters are looked at while a pass leaves.
const LOOK: Duration = Duration::from_millis(2);
/// Passes of a trickle in a round trip, and their least distance: what is dirty at the pause is what was written in about one.
const PASSES_PER_TRIP: u32 = 8;
const PASS_MIN: Duration = Duration::from_millis(4);
/// What left so long ago must have been answered: a round trip, this part of one, and what hosts take to wake up.
const SLACK_PART: u32 = 8;
const SLACK_MIN: Duration = Duration::from_millis(5);
/// Round trips without word of the oldest pass after which a round waits for it after all: the path may be gone.
const TRIPS_AHEAD: u32 = 4;
/// A trickle that hears nothing of its beginning for so many round trips waits for word of all.
const TRICKLE_TRIPS: u32 = 8;

/// Does this path lose packets, and does that cost much?
pub(super) fn is_worth_copies(stats: &PathStats) -> bool {
    stats.is_long() && stats.packets_lost() > 0
}

/// What a round needs.
pub(super) struct Round<M: SourceMachine> {
    pub(super) copier: Arc<Copier<M>>,
    /// `None`: nothing is copied before the pause, the round only waits until the path carries its mark.
    pub(super) tracker: Option<SharedTracker>,
    pub(super) pages: Arc<PageBitmap>,
    pub(super) on_the_way: Arc<Mutex<OnTheWay>>,
    /// Highest mark known to be in the target's memory.
    pub(super) arrived: watch::Receiver<u64>,
    pub(super) stats: PathStats,
    pub(super) copies: Copies,
    /// The target takes marks in quick succession.
    pub(super) may_follow_at_once: bool,
    /// What a page took so far, in ms; `None` before the first round.
    pub(super) page_ms: Option<f64>,
}

/// Pages that are dirty, and since when they have been so.
struct Dirty {
    pages: PageBitmap,
    since: Instant,
}

impl<M: SourceMachine> Round<M> {
    /// Copies; ends when the rule can decide what follows.
    pub(super) async fn run(mut self) -> Result<Message<M>, String> {
        let start = Instant::now();
        let pages = Arc::clone(&self.pages);
        let count = pages.count();
        self.copies.want(false);
        let mark = self.way(OnTheWay::next_mark);
        self.copier.perform(Task::Copy(pages), mark).await.map_err(|error| error_chain(&error))?;
        let done = self.copier.counters().done();
        let hopeless = done < count;
        let ahead = self.may_follow_at_once && !hopeless && self.tracker.is_some() && self.stats.is_long();
        let (left, dirty) = if ahead {
            self.leave(mark).await?;
            let left = Instant::now();
            self.note_left(mark, left, false);
            let dirty = self.look(start)?;
            if self.is_little(&dirty, done, left - start) {
                (left, self.trickle(dirty).await?)
            } else {
                self.hear_within(self.stats.least_rtt() * TRIPS_AHEAD).await?;
                (left, self.look(start)?)
            }
        } else {
            self.hear(mark).await?;
            // The last page's way is not the path's pace.
            (Instant::now() - self.stats.least_rtt().min(start.elapsed()), self.look(start)?)
        };
        let now = Instant::now();
        let report = RoundReport {
            pages: done,
            duration: now - start,
            way: now.saturating_duration_since(left),
            dirtied_in: now - dirty.since,
            remaining_pages: dirty.pages.count(),
            rtt: self.stats.least_rtt(),
        };
        Ok(Message::RoundDone { report, hopeless, remaining: Arc::new(dirty.pages) })
    }

    fn way<T>(&self, look: impl FnOnce(&mut OnTheWay) -> T) -> T {
        look(&mut lock(&self.on_the_way))
    }

    /// What was sent `again` is sure to arrive, and what is sent on a path that has not lost anything so far.
    fn note_left(&self, mark: u64, at: Instant, again: bool) {
        let sure = again || self.stats.packets_lost() == 0;
        self.way(|way| way.left(mark, at, sure));
    }

    /// What is on the way, as far as the target has said by now.
    fn on_the_way<T>(&self, look: impl FnOnce(&OnTheWay) -> T) -> T {
        let arrived = *self.arrived.borrow();
        self.way(|way| {
            way.arrived(arrived);
            look(way)
        })
    }

    /// What is dirty now, of what was clean at `since`.
    fn look(&self, since: Instant) -> Result<Dirty, String> {
        let mut pages = PageBitmap::new(self.pages.pages());
        if let Some(tracker) = &self.tracker {
            let fetched = tokio::task::block_in_place(|| lock(tracker).fetch(&mut pages));
            fetched.map_err(|error| error_chain(&error))?;
        }
        Ok(Dirty { pages, since })
    }

    /// Until the target says that `mark` has arrived, or the listener, which reports a lost session itself, is gone.
    async fn hear(&mut self, mark: u64) -> Result<(), String> {
        self.arrived.wait_for(|at| *at >= mark).await.map(drop).map_err(|_| "the session was lost".to_owned())
    }

    /// Until nothing has been on its way for longer than `time`.
    async fn hear_within(&mut self, time: Duration) -> Result<(), String> {
        while self.on_the_way(|way| way.longest(Instant::now())) > time {
            self.arrived.changed().await.map_err(|_| "the session was lost".to_owned())?;
        }
        Ok(())
    }

    /// Until what was handed to the transport has left this host, as far as its counters say. They may be off a little; word that all
    /// has arrived is beyond doubt.
    async fn leave(&mut self, mark: u64) -> Result<(), String> {
        let handed = self.copier.counters().bytes() + self.copies.bytes();
        while self.stats.payload_bytes_delivered() < handed {
            match timeout(LOOK, self.arrived.wait_for(|at| *at >= mark)).await {
                Ok(heard) => return heard.map(drop).map_err(|_| "the session was lost".to_owned()),
                Err(_) => continue,
            }
        }
        Ok(())
    }

    /// Is what is dirty not worth another round? `done` pages took `time`.
    fn is_little(&self, dirty: &Dirty, done: u64, time: Duration) -> bool {
        let measured = (done >= PAGES_FOR_RATE).then(|| time.as_secs_f64() * 1000.0 / done as f64);
        let page_ms = measured.or(self.page_ms).unwrap_or(0.0);
        dirty.pages.count() as f64 * page_ms < negligible_ms(self.stats.least_rtt())
    }

    /// Keeps what is dirty small until all has arrived but what left within the last round trip and was sent again; what is dirty then.
    async fn trickle(&mut self, mut dirty: Dirty) -> Result<Dirty, String> {
        let rtt = self.stats.least_rtt();
        let (young, distance) = (rtt + rtt / SLACK_PART + SLACK_MIN, (rtt / PASSES_PER_TRIP).max(PASS_MIN));
        let began = Instant::now();
        while dirty.since < began || !self.on_the_way(|way| way.is_calm(Instant::now(), young)) {
            if began.elapsed() > rtt * TRICKLE_TRIPS {
                let last = self.way(|way| way.last_mark());
                self.hear(last).await?;
                return self.look(dirty.since);
            }
            let again = is_worth_copies(&self.stats);
            self.copies.want(again);
            let since = Instant::now();
            let mark = self.way(OnTheWay::next_mark);
            let pass = Task::Copy(Arc::new(dirty.pages));
            self.copier.go_on(pass, mark).await.map_err(|error| error_chain(&error))?;
            self.note_left(mark, Instant::now(), again);
            tokio::time::sleep((since + distance).saturating_duration_since(Instant::now())).await;
            dirty = self.look(since)?;
            if !self.is_little(&dirty, 0, Duration::ZERO) {
                break;
            }
        }
        Ok(dirty)
    }
}
