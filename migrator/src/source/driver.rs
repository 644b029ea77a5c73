//! Performs what the source's state machine decides.
//!
//! One loop owns the state. Effects that take time run as tasks and come back as events, so a cancellation or a lost
//! session is seen at once. Between pause and offer the loop itself works, against a deadline.

mod pause;
mod report;

use super::{
    follow::{self, Owing},
    foresight::Foresight,
    on_the_way::OnTheWay,
    pace::Pace,
    round::Round,
    state::{Abort, Effect, Event, Source, Verdict},
    survey::Around,
    tasks::{Message, RateMeter, ask_until_answered, fail_unless_over, listen, until},
    timeline::{Moments, ms_between},
};
use crate::{
    convergence::Convergence,
    copy::{Copier, Counters, Outlet, SharedTracker, Task, lock},
    guest::{FrozenGuest as _, SourceMachine},
    limit::BandwidthLimit,
    owed::{OwedPages, PushWindow},
    ownership::{CasOutcome, OwnerStore},
    plan::Plan,
    protocol::{FINAL_MARKS, TargetReport, ToSource, ToTarget},
};
use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use vmotion_dirty_tracking::{DirtyEstimator, PageBitmap};
use vmotion_model::{
    Accuracy, Epoch, FollowReport, HostName, MoveProgress, MoveRequest, MoveSummary, OwnerRecord, error_chain,
};
use vmotion_transport::{
    ExpectedPeer, Identity, Principal, Tuning,
    pages::PageHasher,
    session::{
        ConnectOptions, ControlSender, Copies, DemandServer, FEATURE_DELTA, Hello, MoveTicket, PathStats,
        SourceSession, WIRE_VERSION_COPIES, WIRE_VERSION_RENEWAL, WireError, WireErrorCode,
    },
};

/// How often progress is reported while pages are copied.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// What a leaving machine needs to know.
#[derive(Debug, Clone)]
pub struct SourceOptions {
    /// The record as it is: machine, epoch, and us.
    pub record: OwnerRecord,
    /// Hears of the epoch that is won when an offer is taken back and the move goes on: the machine runs here with that one then.
    pub renewals: watch::Sender<Epoch>,
    /// Where to.
    pub target: HostName,
    /// The target process's UDP address.
    pub address: SocketAddr,
    /// Local address to send from.
    pub local: Option<IpAddr>,
    /// Of this move.
    pub ticket: MoveTicket,
    /// What is said to the target first.
    pub hello: Hello,
    /// What the operator asked.
    pub request: MoveRequest,
    /// How to use the path.
    pub tuning: Tuning,
    /// How far forecasts were off before.
    pub accuracy: Accuracy,
    /// Begins with what the operator asked; may change while the move goes on.
    pub limit: Arc<BandwidthLimit>,
}

/// A move of `machine` away from here.
#[derive(Debug)]
pub struct SourceMove<M, O> {
    /// The machine.
    pub machine: Arc<M>,
    /// Where its record lives.
    pub store: Arc<O>,
    /// Our certificate.
    pub identity: Arc<Identity>,
    /// The rest.
    pub options: SourceOptions,
}

impl<M: SourceMachine, O: OwnerStore> SourceMove<M, O> {
    /// Runs the move to its end, whatever that is. `progress` hears every transition and a few reports a second, `entered`
    /// the name of every state entered; `cancel` is honoured until the offer. Needs a multi-threaded tokio runtime.
    pub async fn run(
        self,
        progress: impl Fn(MoveProgress) + Send + Sync,
        entered: impl Fn(&'static str) + Send + Sync,
        cancel: CancellationToken,
    ) -> MoveSummary {
        let Self { machine, store, identity, options } = self;
        let (events, inbox) = mpsc::unbounded_channel();
        let rule = Convergence::new(options.request.downtime_ms_max, options.request.rounds_max)
            .with_pause_fixed_ms(options.accuracy.pause_fixed_ms);
        options.limit.begin_with(options.request.bandwidth_max);
        let foresight = Foresight::new(Arc::clone(&machine), options.request.clone(), rule.pause_fixed_ms());
        let driver = Driver {
            hasher: PageHasher::new(&options.ticket),
            machine,
            store,
            identity,
            options,
            events,
            session: None,
            tracker: None,
            last: None,
            timeline: Moments::start(),
            rounds: 0,
            estimator: Arc::default(),
            target_report: TargetReport::default(),
            source_digest: None,
            counters: Arc::default(),
            rate: RateMeter::default(),
            pace: Pace::default(),
            foresight,
            remaining: 0,
            owed: None,
            owing: Owing::default(),
            final_mark: None,
            follow: None,
            deadline: None,
            cancel,
        };
        driver.open();
        let request = &driver.options.request;
        let plan = Plan::new(request.strategy, rule).by_deadline(request.deadline_ms).with_survey(request.has_intent());
        // Both ends hold all memory at one moment only where none of it follows.
        let plan = if driver.options.request.verify { plan.without_following() } else { plan };
        driver.drive(Source::new(plan), inbox, progress, entered).await
    }
}

/// An open session, split up for the loop.
struct Open<M> {
    sender: ControlSender,
    stats: PathStats,
    copier: Option<Arc<Copier<M>>>,
    flows: Option<Vec<vmotion_transport::session::FlowSender>>,
    demand: Option<DemandServer>,
    /// Both ends know deltas.
    deltas: bool,
    wire: Arc<vmotion_transport::pages::WireCost>,
    /// Of each flow, once memory follows the guest.
    windows: Arc<[PushWindow]>,
    /// Highest mark of a pass known to be in the target's memory.
    arrived: watch::Receiver<u64>,
    on_the_way: Arc<Mutex<OnTheWay>>,
    copies: Copies,
    /// Of the wire.
    version: u16,
}

impl<M> Open<M> {
    /// Of the last pass that was sent.
    fn last_mark(&self) -> u64 {
        lock(&self.on_the_way).last_mark()
    }
}

struct Driver<M: SourceMachine, O> {
    machine: Arc<M>,
    store: Arc<O>,
    identity: Arc<Identity>,
    options: SourceOptions,
    hasher: PageHasher,
    events: mpsc::UnboundedSender<Message<M>>,
    session: Option<Open<M>>,
    tracker: Option<SharedTracker>,
    /// What remains to be sent: dirtied since the last round began to be read.
    last: Option<Arc<PageBitmap>>,
    timeline: Moments,
    rounds: u32,
    estimator: Arc<Mutex<DirtyEstimator>>,
    target_report: TargetReport,
    source_digest: Option<[u8; 16]>,
    counters: Arc<Counters>,
    rate: RateMeter,
    pace: Pace,
    foresight: Foresight<M>,
    remaining: u64,
    /// What follows the guest.
    owed: Option<Arc<OwedPages>>,
    /// The same as far as the target may ask for it.
    owing: Owing,
    /// Of the last pause.
    final_mark: Option<u64>,
    follow: Option<FollowReport>,
    /// When a pause or an unanswered offer counts as failed.
    deadline: Option<Instant>,
    cancel: CancellationToken,
}

type Effects<M> = VecDeque<Effect<<M as SourceMachine>::Paused>>;

impl<M: SourceMachine, O: OwnerStore> Driver<M, O> {
    /// Connects in a task, so that cancelling does not wait for an unreachable target.
    fn open(&self) {
        let (options, identity, events) = (self.options.clone(), Arc::clone(&self.identity), self.events.clone());
        let cancel = self.cancel.clone();
        tokio::spawn(async move {
            let connect = ConnectOptions {
                address: options.address,
                local: options.local,
                identity: &identity,
                expected: ExpectedPeer::Exactly(Principal::Host(options.target.clone())),
                ticket: &options.ticket,
                tuning: options.tuning,
            };
            let message = tokio::select! {
                session = SourceSession::connect(connect, &options.hello) => match session {
                    Ok(session) => Message::Opened(Box::new(session)),
                    Err(error) => Message::Event(Event::Failed(error_chain(&error))),
                },
                () = cancel.cancelled() => return,
            };
            let _ = events.send(message);
        });
    }

    async fn drive(
        mut self,
        mut state: Source<M::Paused>,
        mut inbox: mpsc::UnboundedReceiver<Message<M>>,
        progress: impl Fn(MoveProgress) + Send + Sync,
        entered: impl Fn(&'static str) + Send + Sync,
    ) -> MoveSummary {
        let cancel = self.cancel.clone();
        let mut effects: Effects<M> = VecDeque::new();
        let mut ticks = tokio::time::interval(PROGRESS_EVERY);
        let mut cancelled = false;
        progress(self.progress(&state));
        loop {
            while let Some(effect) = effects.pop_front() {
                if let Some(event) = self.perform(&mut state, effect).await {
                    self.apply(&mut state, event, &mut effects, &entered);
                    progress(self.progress(&state));
                }
            }
            if state.is_final() {
                return self.summary(&state);
            }
            let deadline = self.deadline;
            let news = tokio::select! {
                biased;
                message = inbox.recv() => match message {
                    Some(message) => self.take(message),
                    // We hold a sender ourselves, so this cannot happen.
                    None => vec![Event::Failed("the move's tasks ended".to_owned())],
                },
                () = cancel.cancelled(), if !cancelled => {
                    cancelled = true;
                    vec![Event::Cancel]
                }
                () = until(deadline) => {
                    self.deadline = None;
                    vec![Event::Overdue]
                }
                _ = ticks.tick() => {
                    self.note_pace();
                    let surveyed = self.look_ahead();
                    let now = self.progress(&state);
                    self.timeline.look(&now);
                    progress(now);
                    surveyed.map(Event::Surveyed).into_iter().collect()
                }
            };
            for event in news {
                self.apply(&mut state, event, &mut effects, &entered);
                progress(self.progress(&state));
            }
        }
    }

    fn apply(
        &mut self,
        state: &mut Source<M::Paused>,
        event: Event<M::Paused>,
        effects: &mut Effects<M>,
        entered: &impl Fn(&'static str),
    ) {
        let before = state.name();
        // A placeholder that lasts for the length of a call; the transition table takes states by value.
        let current = std::mem::replace(state, Source::Released);
        let (next, more) = current.step(event);
        let name = next.name();
        if name != before {
            tracing::info!(machine = %self.options.record.machine, from = before, to = name, "move");
            self.timeline.event(name);
        }
        *state = next;
        effects.extend(more);
        if name != before {
            entered(name);
        }
    }

    /// Turns what a task said into events, keeping the numbers.
    fn take(&mut self, message: Message<M>) -> Vec<Event<M::Paused>> {
        let event = match message {
            Message::Event(event) => event,
            Message::Opened(session) => {
                let follows = session.demand.is_some();
                let renews = session.welcome.version >= WIRE_VERSION_RENEWAL;
                self.keep_session(*session);
                Event::Opened { follows, renews }
            }
            Message::RoundDone { mut report, hopeless, remaining } => {
                self.timeline.round(self.rounds, &report, self.counters.pages(), self.counters.bytes());
                let (counters, timeline) = (&self.counters, &mut self.timeline);
                let surveyed = self.foresight.round_done(&report, hopeless, counters, timeline);
                let remaining = self.foresight.with_unread(remaining);
                report.remaining_pages = remaining.count();
                if self.rounds > 1 {
                    self.foresight.slow_down_more(self.remaining, report.remaining_pages, timeline);
                }
                self.remaining = report.remaining_pages;
                lock(&self.estimator).feed(report.dirtied_in, report.remaining_pages);
                self.last = Some(remaining);
                let arrived = Event::RoundArrived { report, hopeless };
                return surveyed.map(Event::Surveyed).into_iter().chain([arrived]).collect();
            }
            Message::Paused { guard, remaining, asked, paused } => {
                self.timeline.pause_asked = Some(asked);
                self.timeline.paused = Some(paused);
                let remaining = self.foresight.with_unread(remaining);
                self.remaining = remaining.count();
                self.last = Some(remaining);
                let rtt = self.session.as_ref().map_or(Duration::ZERO, |session| session.stats.least_rtt());
                self.deadline = Some(asked + self.pause_patience());
                let spent_ms = ms_between(asked, paused);
                Event::GuestPaused { guard, spent_ms, remaining_pages: self.remaining, rtt }
            }
            Message::FromTarget(ToSource::Committed(report)) => {
                self.timeline.decided = Some(Instant::now());
                self.target_report = report;
                Event::Committed
            }
            Message::FromTarget(ToSource::AllHere(report)) => {
                self.timeline.all_there = Some(Instant::now());
                self.follow = Some(report);
                Event::AllServed
            }
            Message::FromTarget(ToSource::Refused(error)) => Event::Refused(format!("The target gave up: {error}")),
            // Rounds and pushed ranges are awaited where they are copied.
            Message::FromTarget(ToSource::RoundArrived { .. } | ToSource::Pushed { .. }) => return Vec::new(),
        };
        vec![event]
    }

    /// Tells the flows what they wait for: this host's processors, or the link and how fast that is.
    fn note_pace(&mut self) {
        let Some(session) = &self.session else { return };
        // Looked at now and then, so that a moment without a queue is not missed.
        let _ = session.stats.least_rtt();
        self.pace.look(&session.stats, &session.wire, self.options.tuning.flows, self.options.limit.get());
    }

    /// May memory follow the guest, if that is better?
    fn may_follow(&self) -> bool {
        let request = &self.options.request;
        let able = self.session.as_ref().is_some_and(|session| session.demand.is_some());
        able && Plan::may_hand_over(request.strategy) && !request.verify
    }

    /// In the middle of the first round: what does it show?
    fn look_ahead(&mut self) -> Option<Verdict> {
        let rtt = self.session.as_ref()?.stats.least_rtt();
        let verdict = self.foresight.look(self.tracker.as_ref(), &self.counters, rtt, &mut self.timeline)?;
        // Known from now on, and not only after the round.
        if let Some((ms, pages)) = self.foresight.outlook.as_ref().and_then(|outlook| outlook.survey.dirty_curve.last())
        {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of pages")]
            lock(&self.estimator).feed(Duration::from_secs_f64(ms / 1000.0), *pages as u64);
        }
        Some(verdict)
    }

    /// Starts listening to the target, and keeps the rest for when tracking starts.
    fn keep_session(&mut self, session: SourceSession) {
        let SourceSession { sender, receiver, flows, demand, welcome, wire, copies, stats } = session;
        let deltas = [&welcome.features, &self.options.hello.features].iter().all(|both| both.contains(FEATURE_DELTA));
        let (arrived_sender, arrived) = watch::channel(0);
        let windows: Arc<[PushWindow]> = flows.iter().map(|_| PushWindow::default()).collect();
        tokio::spawn(listen::<M>(receiver, arrived_sender, Arc::clone(&windows), self.events.clone()));
        let flows = Some(flows);
        let (on_the_way, version) = (Arc::default(), welcome.version);
        self.session = Some(Open {
            sender,
            stats,
            copier: None,
            flows,
            demand,
            deltas,
            wire,
            windows,
            arrived,
            on_the_way,
            copies,
            version,
        });
        self.note_pace();
    }

    /// Performs one effect; an event that follows at once is returned, later ones come through the inbox.
    async fn perform(&mut self, state: &mut Source<M::Paused>, effect: Effect<M::Paused>) -> Option<Event<M::Paused>> {
        match effect {
            Effect::StartTracking { track } => {
                Some(self.start_tracking(track).map_or_else(Event::Failed, |()| Event::Tracking))
            }
            Effect::CopyRound(round) => {
                self.rounds = round;
                if round == 1 {
                    self.survey();
                }
                self.start_round(state.page_ms());
                None
            }
            Effect::Pause { predicted_ms, quiet } => {
                self.foresight.predicted.downtime_ms = predicted_ms;
                self.pause(quiet).await;
                None
            }
            Effect::CutShort => {
                if let Some(copier) = self.session.as_ref().and_then(|session| session.copier.as_ref()) {
                    copier.cut_short();
                }
                None
            }
            Effect::SendLast => {
                let Source::Paused { guard, .. } = state else { return None };
                Some(self.send_last_in_time(guard).await)
            }
            Effect::HandOver => {
                let Source::Paused { guard, .. } = state else { return None };
                // A lane that nothing was sent on for long may have been lost without anybody having noticed but its connection.
                if self.session.as_ref().is_some_and(|session| !session.stats.is_whole()) {
                    return Some(Event::Failed("a connection that the guest would depend on is lost".to_owned()));
                }
                // Declared now, pages would be forgotten when a round arrives that is still on its way.
                if self.session.as_ref().is_some_and(|session| *session.arrived.borrow() < session.last_mark()) {
                    return Some(Event::Overran);
                }
                self.owed = self.last.as_deref().map(|missing| Arc::new(OwedPages::new(missing)));
                Some(self.send_last_in_time(guard).await)
            }
            Effect::Serve => {
                self.serve();
                None
            }
            Effect::PushRest => {
                self.deadline = None;
                self.push_rest();
                None
            }
            Effect::SendOffer => {
                let (expected, owes) = (self.options.record.clone(), self.owed.is_some());
                let mark = self.final_mark.unwrap_or(FINAL_MARKS);
                let offer = ToTarget::Offer { expected, digest: self.source_digest, mark, owes };
                let session = self.session.as_mut()?;
                session.sender.send(&offer).await.err().map(|error| Event::Failed(error_chain(&error)))
            }
            Effect::Resume(guard) => {
                drop(guard);
                self.deadline = None;
                None
            }
            Effect::Reclaim => {
                self.deadline = None;
                self.reclaim();
                None
            }
            Effect::Thaw(frozen) => {
                frozen.thaw();
                self.timeline.decided = Some(Instant::now());
                None
            }
            Effect::Renew => self.renew().await,
            // What is left of the machine goes with its process; it must only never run again.
            Effect::Destroy(frozen) => {
                drop(frozen);
                None
            }
            Effect::CleanUp => {
                self.clean_up(state).await;
                None
            }
        }
    }

    /// The copy threads, and the tracker where memory is copied before the pause.
    fn start_tracking(&mut self, track: bool) -> Result<(), String> {
        let session = self.session.as_mut().ok_or("there is no session")?;
        let strategy = self.options.request.strategy;
        self.options.request.validate()?;
        if Plan::needs_following(strategy) && session.demand.is_none() {
            return Err(format!(
                "the target cannot take pages after the hand-over, which strategy {strategy} needs (there, userfaultfd \
                 needs root or sysctl vm.unprivileged_userfaultfd=1); move with --strategy precopy"
            ));
        }
        let mut tracker = self.machine.tracker().map_err(|error| error_chain(&error))?;
        if track {
            tracker.start().map_err(|error| error_chain(&error))?;
        }
        let tracker: SharedTracker = Arc::new(Mutex::new(tracker));
        self.tracker = track.then(|| Arc::clone(&tracker));
        // Asked after tracking started: a page touched later is reported dirty.
        let touched = self.machine.touched().map_err(|error| error_chain(&error))?;
        let delta_bytes = self.options.request.delta_memory(self.machine.layout().total_bytes());
        let outlet = Outlet {
            flows: session.flows.take().unwrap_or_default(),
            wire: Arc::clone(&session.wire),
            limit: Arc::clone(&self.options.limit),
            delta_bytes: if session.deltas { delta_bytes } else { 0 },
        };
        let copier = Copier::start(Arc::clone(&self.machine), tracker, &self.hasher, outlet)
            .map_err(|error| error_chain(&error))?;
        self.counters = Arc::clone(copier.counters());
        self.counters.add_untouched(touched.pages() - touched.count());
        self.remaining = touched.count();
        self.last = Some(Arc::new(touched));
        session.copier = Some(Arc::new(copier));
        Ok(())
    }

    /// Begins to measure, before anything is copied.
    fn survey(&mut self) {
        let follows = self.may_follow();
        let (Some(tracker), Some(pages)) = (&self.tracker, &self.last) else { return };
        let SourceOptions { hello, request, accuracy, .. } = &self.options;
        let around = Around { cpus: u32::from(hello.cpus), follows, accuracy: *accuracy, intent: request.has_intent() };
        self.foresight.begin(tracker, pages, &self.counters, around);
    }

    /// Copies what is dirty in a task; ends in `RoundDone` or a failure. Of what was copied before, a page took `page_ms`.
    fn start_round(&mut self, page_ms: Option<f64>) {
        let (Some(session), Some(pages)) = (&self.session, &self.last) else { return };
        let Some(copier) = session.copier.clone() else { return };
        // Without tracking nothing is copied before the pause.
        let tracker = self.tracker.clone();
        let pages = if tracker.is_some() { Arc::clone(pages) } else { Arc::new(PageBitmap::new(pages.pages())) };
        self.owed = None;
        let round = Round {
            copier,
            tracker,
            pages,
            on_the_way: Arc::clone(&session.on_the_way),
            arrived: session.arrived.clone(),
            stats: session.stats.clone(),
            copies: session.copies.clone(),
            may_follow_at_once: session.version >= WIRE_VERSION_COPIES,
            page_ms,
        };
        let events = self.events.clone();
        tokio::spawn(async move {
            let _ = events.send(round.run().await.unwrap_or_else(|reason| Message::Event(Event::Failed(reason))));
        });
    }

    /// Answers demands from now on. The guest stands still, so any page can be sent at any time.
    fn serve(&mut self) {
        self.owing.set(self.owed.clone());
        let Some(session) = &mut self.session else { return };
        // Served already, since an earlier offer that was taken back.
        let (Some(server), Some(copier)) = (session.demand.take(), session.copier.clone()) else { return };
        let (owing, hasher, events) = (self.owing.clone(), self.hasher.clone(), self.events.clone());
        tokio::spawn(async move {
            if let Err(reason) = follow::serve(server, copier, owing, hasher).await {
                fail_unless_over(&events, reason).await;
            }
        });
    }

    /// Sends what nobody asks for. Its end is the target's word that nothing is missing.
    fn push_rest(&self) {
        let (Some(session), Some(owed)) = (&self.session, &self.owed) else { return };
        let Some(copier) = session.copier.clone() else { return };
        let task = Task::Push {
            owed: Arc::clone(owed),
            windows: Arc::clone(&session.windows),
            ahead: follow::batches_ahead(session.stats.least_rtt()),
        };
        let events = self.events.clone();
        tokio::spawn(async move {
            if let Err(error) = copier.perform(task, follow::LAST_MARK).await {
                fail_unless_over(&events, error_chain(&error)).await;
            }
        });
    }

    /// Asks the record to give the machine back, until it answers one way or the other.
    fn reclaim(&self) {
        let (store, events) = (Arc::clone(&self.store), self.events.clone());
        let expected = self.options.record.clone();
        let wanted = expected.handed_to(&expected.owner);
        tokio::spawn(async move {
            let event = match ask_until_answered(&*store, &expected, &wanted).await {
                CasOutcome::Won => Event::RecordOurs,
                CasOutcome::Lost(_) => Event::RecordTheirs,
            };
            let _ = events.send(Message::Event(event));
        });
    }

    /// The record was won back and the session is not known to be lost: the move goes on from what has arrived. The target hears of it
    /// when the path is back, in the order in which this was said: after the offer that is off, before the next one.
    async fn renew(&mut self) -> Option<Event<M::Paused>> {
        let record = &mut self.options.record;
        *record = record.handed_to(&record.owner);
        let expected = record.clone();
        self.options.renewals.send_replace(expected.epoch);
        // What the target asks for now it asks for by the offer that is off: it will find that it cannot have the machine.
        self.owing.set(None);
        self.remaining = self.last.as_ref().map_or(0, |pages| pages.count());
        self.timeline.decided = None;
        self.timeline.event("renewed");
        let session = self.session.as_mut()?;
        if let Err(error) = session.sender.send(&ToTarget::Renew { expected }).await {
            return Some(Event::Failed(error_chain(&error)));
        }
        // It came when nothing could be done about it.
        self.cancel.is_cancelled().then_some(Event::Cancel)
    }

    /// Tells the target why before anything it would take for a lost session happens; leaves no tracking.
    async fn clean_up(&mut self, state: &Source<M::Paused>) {
        self.foresight.let_go();
        if let (Source::Aborted { reason }, Some(session)) = (state, &mut self.session) {
            let error = match reason {
                Abort::Cancelled => WireError::new(WireErrorCode::Cancelled, "the move was cancelled"),
                Abort::Surveyed => WireError::new(WireErrorCode::Cancelled, "only a survey was asked for"),
                Abort::Failed(reason) => {
                    WireError::new(WireErrorCode::Failed, reason.chars().take(1000).collect::<String>())
                }
            };
            let patience = Duration::from_millis(200);
            let _ = tokio::time::timeout(patience, session.sender.send(&ToTarget::Abort(error))).await;
            session.sender.finish(patience).await;
        }
        if let Some(tracker) = self.tracker.take()
            && let Err(error) = tokio::task::block_in_place(|| lock(&tracker).stop())
        {
            tracing::warn!(error = %error_chain(&error), "dirty tracking was not stopped");
        }
        let Some(mut session) = self.session.take() else { return };
        drop(session.copier.take());
        self.rate.udp_bytes = session.stats.udp_bytes_sent();
        session.stats.close("the move is over");
    }
}
