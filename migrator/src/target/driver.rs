//! Performs what the target's state machine decides.

use super::state::{Effect, Event, Target};
use crate::{
    digest::memory_digest,
    guest::TargetMachine,
    ownership::{CasOutcome, OwnerStore},
    protocol::{FINAL_MARKS, STATE_PREFIX_BYTES, TargetReport, ToSource, ToTarget},
    source::{ask_until_answered, ms_between, process_cpu_s},
};
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::MissedTickBehavior,
};
use tokio_util::sync::CancellationToken;
use vmotion_model::{Epoch, FollowReport, HostName, OwnerRecord, error_chain};
use vmotion_transport::{
    pages::{FrameDecoder, PageHasher},
    session::{
        ControlReceiver, DemandLane, MoveTicket, StateReceiver, TargetFacts, TargetListener, TargetSession, WireError,
        WireErrorCode,
    },
};

/// A pause rarely takes so long. An offer that comes so long after the source has announced the pause was held up on its way, and
/// has probably been taken back.
const LATE: Duration = Duration::from_millis(500);
/// An offer that is late waits for word that it is off: for this part of how late it is, within these bounds. Both were sent long
/// ago and arrive together, or a round trip apart when packets have to be sent again.
const RENEWAL_SHARE: u32 = 10;
const RENEWAL_WAIT: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));
/// How often the connection to the store is used, so that it is there when the pause comes.
const KEEP_WARM: Duration = Duration::from_secs(3);

/// What an arriving machine needs to know.
#[derive(Debug, Clone)]
pub struct TargetOptions {
    /// The record as it must be when the machine is offered: the source's.
    pub expected: OwnerRecord,
    /// Hears of the epoch that the source has won when it takes an offer back and the move goes on: the machine would be taken over
    /// from that one then.
    pub renewals: watch::Sender<Epoch>,
    /// Us.
    pub host: HostName,
    /// Of this move.
    pub ticket: MoveTicket,
    /// What the source's hello is compared with.
    pub facts: TargetFacts,
    /// How long to wait for the source.
    pub patience: Duration,
}

/// How an arrival ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetOutcome {
    /// The guest runs here, under this record.
    Running(OwnerRecord),
    /// Nothing ran; what was received is to be destroyed.
    Discarded(String),
    /// The record names us, and the guest could not be let go. It runs nowhere; the source will learn from the record that
    /// it is no longer its own.
    Failed {
        /// The record.
        record: OwnerRecord,
        /// Why it does not run.
        reason: String,
    },
}

/// An arrival of `machine`.
#[derive(Debug)]
pub struct TargetMove<M, O> {
    /// The prepared machine.
    pub machine: Arc<M>,
    /// Where its record lives.
    pub store: Arc<O>,
    /// Where the source will call.
    pub listener: TargetListener,
    /// The rest.
    pub options: TargetOptions,
}

struct Driver<M, O> {
    machine: Arc<M>,
    store: Arc<O>,
    options: TargetOptions,
    session: Option<TargetSession>,
    /// The last saved state that came, and the final mark of the pause it belongs to.
    state: Option<(u64, Vec<u8>)>,
    report: TargetReport,
    pause_noticed: Option<Instant>,
    cpu_s_at_start: f64,
    /// What the tasks of the session say, once memory follows the guest.
    inbox: Option<mpsc::UnboundedReceiver<Arrival>>,
    /// The demand lane, once pages are asked for.
    lane: Option<DemandLane>,
    /// Told when no page is missing any more.
    all_here: Arc<Notify>,
}

/// What the tasks of a session tell the driver.
enum Arrival {
    Message(ToTarget),
    Mark { flow: usize, mark: u64 },
    State { mark: u64, state: Vec<u8> },
    Lost(String),
}

/// What the source offered.
#[derive(Clone, Copy)]
struct Offer {
    at: Instant,
    /// Not acted on before.
    due: Instant,
    digest: Option<[u8; 16]>,
    mark: u64,
    owes: bool,
}

impl<M: TargetMachine, O: OwnerStore> TargetMove<M, O> {
    /// Runs the arrival to its end. `entered` hears the name of every state entered; `cancel` is honoured until every
    /// page has arrived. Needs a multi-threaded tokio runtime. The future must not be dropped half-way: a record that was
    /// asked for may have been given.
    pub async fn run(self, entered: impl Fn(&'static str) + Send + Sync, cancel: CancellationToken) -> TargetOutcome {
        let Self { machine, store, listener, options } = self;
        let mut driver = Driver {
            machine,
            store,
            options,
            session: None,
            state: None,
            report: TargetReport::default(),
            pause_noticed: None,
            cpu_s_at_start: process_cpu_s(),
            inbox: None,
            lane: None,
            all_here: Arc::default(),
        };
        let (mut state, mut effect) = Target::Empty.step(Event::Built);
        let mut listener = Some(listener);
        entered(state.name());
        while let Some(next) = effect.take() {
            let event = match next {
                Effect::Listen => until_cancelled(driver.listen(listener.take()), &cancel).await,
                Effect::Fill => until_cancelled(driver.fill(), &cancel).await,
                Effect::Load { owed } => driver.load(owed).await,
                Effect::Take => driver.take().await,
                Effect::Run => match driver.run().await {
                    Ok(()) => break,
                    Err(reason) => {
                        let record = driver.options.expected.handed_to(&driver.options.host);
                        return TargetOutcome::Failed { record, reason };
                    }
                },
                Effect::Pull => match driver.run().await {
                    Ok(()) => driver.pull().await,
                    Err(reason) => Event::Failed(reason),
                },
                Effect::Abandon => {
                    driver.machine.abandon();
                    break;
                }
                Effect::Destroy => break,
            };
            (state, effect) = state.step(event);
            tracing::info!(machine = %driver.options.expected.machine, to = state.name(), "arrival");
            entered(state.name());
        }
        driver.finish(state).await
    }
}

impl<M: TargetMachine, O: OwnerStore> Driver<M, O> {
    async fn listen(&mut self, listener: Option<TargetListener>) -> Event {
        let Some(listener) = listener else { return Event::Failed("there is no listener".to_owned()) };
        match listener.accept(&self.options.facts, self.options.patience).await {
            Ok(session) => {
                self.session = Some(session);
                Event::Opened
            }
            Err(error) => Event::Failed(error_chain(&error)),
        }
    }

    /// Takes pages, state and messages until the machine is complete.
    async fn fill(&mut self) -> Event {
        let Some(session) = &mut self.session else { return Event::Failed("there is no session".to_owned()) };
        let (arrivals, mut inbox) = mpsc::unbounded_channel();
        let flows = session.flows.len();
        for (flow, receiver) in session.flows.drain(..).enumerate() {
            let decoder = FrameDecoder::new(PageHasher::new(&self.options.ticket));
            let (machine, arrivals) = (Arc::clone(&self.machine), arrivals.clone());
            tokio::spawn(async move {
                let on_mark = |mark| drop(arrivals.send(Arrival::Mark { flow, mark }));
                let lost = match receiver.run(decoder, &*machine, on_mark).await {
                    Ok(_) => "the source ended a page flow".to_owned(),
                    Err(error) => error_chain(&error),
                };
                let _ = arrivals.send(Arrival::Lost(lost));
            });
        }
        let Some(mut control) = session.take_receiver() else {
            return Event::Failed("there is no control stream".to_owned());
        };
        tokio::spawn(take_states(control.state_receiver(), arrivals.clone()));
        tokio::spawn(async move { hear(&mut control, &arrivals).await });

        let mut keep_warm = tokio::time::interval(KEEP_WARM);
        keep_warm.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut marks = Marks::new(flows);
        let mut acknowledged = 0;
        let mut offer: Option<Offer> = None;
        loop {
            let whole = offer.filter(|offer| {
                let state_is_here = self.state.as_ref().is_some_and(|(of, _)| *of == offer.mark);
                state_is_here && marks.all_at(offer.mark)
            });
            let arrival = match whole {
                // What has been said already may be that the offer is off.
                Some(Offer { due, .. }) => match until_due(&mut inbox, due).await {
                    Some(arrival) => arrival,
                    None => break,
                },
                None => {
                    // Not in the pause: a connection that waits for one answer takes no second question, and the one that counts is next.
                    let pausing = self.pause_noticed.is_some_and(|noticed| noticed.elapsed() < LATE);
                    tokio::select! {
                        biased;
                        arrival = inbox.recv() => arrival,
                        _ = keep_warm.tick(), if !pausing => {
                            self.warm_up_store();
                            continue;
                        }
                    }
                }
            };
            let Some(arrival) = arrival else { return Event::Failed("the session ended".to_owned()) };
            match arrival {
                Arrival::Mark { flow, mark } => marks.reached(flow, mark),
                // One may come twice, and late: the state of a pause that was taken back replaces no later one.
                Arrival::State { mark, state } => {
                    if self.state.as_ref().is_none_or(|(of, _)| *of < mark) {
                        self.state = Some((mark, state));
                    }
                }
                Arrival::Message(ToTarget::PauseSoon) => self.pause_noticed = Some(Instant::now()),
                Arrival::Message(ToTarget::Offer { expected, digest, mark, owes }) => {
                    if expected != self.options.expected {
                        return Event::Failed("the offer names another owner record than this move's".to_owned());
                    }
                    let at = Instant::now();
                    offer = Some(Offer { at, due: at + self.wait_for_renewal(at), digest, mark, owes });
                }
                Arrival::Message(ToTarget::Renew { expected }) => {
                    if let Err(reason) = self.renew(expected) {
                        return Event::Failed(reason);
                    }
                    offer = None;
                }
                Arrival::Message(ToTarget::Abort(error)) => return Event::Failed(error.to_string()),
                Arrival::Lost(reason) => return Event::Failed(reason),
            }
            let round = marks.round_everywhere();
            if round > acknowledged {
                acknowledged = round;
                // A round after a pause means that the pause was taken back. The source declares nothing before it has heard of this.
                self.machine.forget_missing();
                let Some(session) = &mut self.session else { return Event::Failed("there is no session".to_owned()) };
                if let Err(error) = session.sender.send(&ToSource::RoundArrived { round }).await {
                    return Event::Failed(error_chain(&error));
                }
            }
        }
        let Some(Offer { at, digest, owes, .. }) = offer else {
            return Event::Failed("nothing was offered".to_owned());
        };
        self.report.fill_ms = ms_between(at, Instant::now());
        self.inbox = owes.then_some(inbox);
        self.verify(digest, owes)
    }

    /// How long an offer that came `now` waits for word that it is off.
    fn wait_for_renewal(&self, now: Instant) -> Duration {
        let since_announced = self.pause_noticed.map_or(Duration::ZERO, |noticed| now.duration_since(noticed));
        if since_announced < LATE {
            return Duration::ZERO;
        }
        (since_announced / RENEWAL_SHARE).clamp(RENEWAL_WAIT.0, RENEWAL_WAIT.1)
    }

    /// The source has won the record back and goes on; the machine is to be taken over from `expected`. What was declared missing is
    /// forgotten with the round that follows, not here: this may come after pages that are declared missing for the next offer.
    fn renew(&mut self, expected: OwnerRecord) -> Result<(), String> {
        let before = &self.options.expected;
        if expected != before.handed_to(&before.owner) {
            return Err("the source goes on from a record that it cannot have won".to_owned());
        }
        tracing::info!(machine = %expected.machine, epoch = expected.epoch.0, "the offer was taken back, the move goes on");
        self.options.renewals.send_replace(expected.epoch);
        self.options.expected = expected;
        Ok(())
    }

    /// Opens, or keeps open, the connection that the record will be asked for by: over a long path that takes longer than the pause may,
    /// so it begins with the first page and not with the pause.
    fn warm_up_store(&self) {
        let store = Arc::clone(&self.store);
        tokio::spawn(async move { store.warm_up().await });
    }

    /// Compares all memory with the source's digest, when there is one.
    fn verify(&mut self, digest: Option<[u8; 16]>, owed: bool) -> Event {
        let Some(wanted) = digest else { return Event::AllArrived { owed } };
        let start = Instant::now();
        let found = match tokio::task::block_in_place(|| memory_digest(&*self.machine)) {
            Ok(found) => found,
            Err(error) => return Event::Failed(error_chain(&error)),
        };
        self.report.digest_ms = ms_between(start, Instant::now());
        self.report.digest = Some(found);
        if found == wanted { Event::AllArrived { owed } } else { Event::Failed("memory digests differ".to_owned()) }
    }

    async fn load(&mut self, owed: bool) -> Event {
        let Some((_, state)) = self.state.take() else { return Event::Failed("there is no state".to_owned()) };
        let start = Instant::now();
        // Devices touch guest memory when they are loaded: it must be clear by then what they have to wait for.
        if owed && let Err(reason) = self.follow() {
            return Event::Failed(reason);
        }
        let loaded = if owed {
            self.restore_while_fed(state).await
        } else {
            tokio::task::block_in_place(|| self.machine.restore(&state)).map_err(|error| error_chain(&error))
        };
        self.report.load_ms = ms_between(start, Instant::now());
        loaded.map_or_else(Event::Failed, |()| Event::Loaded)
    }

    /// Loads the state; what it touches may be missing, and comes only while there is a source. Without one the guest could not go on
    /// for long, and nobody has been asked for it yet.
    async fn restore_while_fed(&mut self, state: Vec<u8>) -> Result<(), String> {
        let machine = Arc::clone(&self.machine);
        let mut loading = tokio::task::spawn_blocking(move || machine.restore(&state));
        let inbox = self.inbox.as_mut().ok_or("there is no session")?;
        let lost = loop {
            tokio::select! {
                biased;
                arrival = inbox.recv() => match arrival {
                    Some(Arrival::Lost(reason)) => break reason,
                    // Nobody answers what is asked for by an offer that is off.
                    Some(Arrival::Message(ToTarget::Renew { .. })) => {
                        break "the source took its offer back while the state was loaded".to_owned();
                    }
                    Some(Arrival::Message(ToTarget::Abort(error))) => break error.to_string(),
                    Some(_) => {}
                    None => break "the session ended".to_owned(),
                },
                loaded = &mut loading => {
                    let loaded = loaded.map_err(|error| error.to_string())?;
                    return loaded.map_err(|error| error_chain(&error));
                }
            }
        };
        // Loading may wait for a page that will not come; its thread ends with the process.
        self.machine.abandon();
        Err(lost)
    }

    /// From here on a missing page is asked for when it is touched.
    fn follow(&mut self) -> Result<(), String> {
        let lane = self.session.as_mut().and_then(|session| session.demand.take());
        let lane = lane.ok_or("pages are missing and there is no way to ask for them")?;
        let source = self.machine.follow(Arc::clone(&self.all_here)).map_err(|error| error_chain(&error))?;
        let decoder = FrameDecoder::new(PageHasher::new(&self.options.ticket));
        lane.follow(source, decoder, Arc::clone(&self.machine) as _);
        self.lane = Some(lane);
        Ok(())
    }

    /// The guest runs here; its memory follows.
    async fn pull(&mut self) -> Event {
        let began = Instant::now();
        let Some(mut inbox) = self.inbox.take() else { return Event::Failed("there is no session".to_owned()) };
        loop {
            let arrival = tokio::select! {
                biased;
                () = self.all_here.notified() => break,
                arrival = inbox.recv() => arrival,
            };
            let Some(arrival) = arrival else { return Event::Failed("the session ended".to_owned()) };
            let mut placed = BTreeMap::new();
            let more = std::iter::from_fn(|| inbox.try_recv().ok());
            for arrival in std::iter::once(arrival).chain(more) {
                match arrival {
                    // Only the last of each flow: it says everything about those before it.
                    Arrival::Mark { flow, mark } => drop(placed.insert(flow, mark)),
                    Arrival::Message(ToTarget::Abort(error)) => return Event::Failed(error.to_string()),
                    Arrival::Lost(reason) => return Event::Failed(reason),
                    Arrival::Message(_) | Arrival::State { .. } => {}
                }
            }
            let Some(session) = &mut self.session else { return Event::Failed("there is no session".to_owned()) };
            for (flow, mark) in placed {
                let pushed = ToSource::Pushed { flow: u8::try_from(flow).unwrap_or(u8::MAX), mark };
                if let Err(error) = session.sender.send(&pushed).await {
                    return Event::Failed(error_chain(&error));
                }
            }
        }
        let report = FollowReport { duration_ms: ms_between(began, Instant::now()), ..self.machine.followed() };
        if let Some(session) = &mut self.session {
            // Unheard, the source learns of it when the session ends: it has nothing more to give.
            let _ = session.sender.send(&ToSource::AllHere(report)).await;
        }
        Event::AllHere
    }

    /// Asks the record for the machine until it answers. The session no longer matters.
    async fn take(&mut self) -> Event {
        let start = Instant::now();
        let expected = &self.options.expected;
        let wanted = expected.handed_to(&self.options.host);
        let outcome = ask_until_answered(&*self.store, expected, &wanted).await;
        self.report.commit_ms = ms_between(start, Instant::now());
        match outcome {
            CasOutcome::Won => Event::RecordOurs,
            CasOutcome::Lost(_) => Event::RecordTheirs,
        }
    }

    /// The machine is ours: it runs, then the source hears of it.
    async fn run(&mut self) -> Result<(), String> {
        let start = Instant::now();
        tokio::task::block_in_place(|| self.machine.resume()).map_err(|error| error_chain(&error))?;
        let now = Instant::now();
        self.report.resume_ms = ms_between(start, now);
        self.report.since_pause_ms = self.pause_noticed.map_or(0.0, |noticed| ms_between(noticed, now));
        self.report.cpu_s = process_cpu_s() - self.cpu_s_at_start;
        if let Some(session) = &mut self.session {
            // When this does not arrive, the source asks the record.
            let _ = session.sender.send(&ToSource::Committed(self.report)).await;
        }
        Ok(())
    }

    async fn finish(mut self, state: Target) -> TargetOutcome {
        let outcome = match state {
            Target::Running => TargetOutcome::Running(self.options.expected.handed_to(&self.options.host)),
            Target::Stranded { reason } => TargetOutcome::Failed {
                record: self.options.expected.handed_to(&self.options.host),
                reason: format!("pages are missing that cannot be fetched any more: {reason}"),
            },
            Target::Discarded { reason } => {
                if let Some(session) = &mut self.session {
                    let detail: String = reason.chars().take(1000).collect();
                    let refusal = ToSource::Refused(WireError::new(WireErrorCode::Failed, detail));
                    let patience = Duration::from_millis(500);
                    let _ = tokio::time::timeout(patience, session.sender.send(&refusal)).await;
                }
                TargetOutcome::Discarded(reason)
            }
            other => TargetOutcome::Discarded(format!("ended in state {}", other.name())),
        };
        if let Some(mut session) = self.session {
            session.sender.finish(Duration::from_secs(2)).await;
            session.close("the move is over");
        }
        outcome
    }
}

async fn until_cancelled(step: impl Future<Output = Event>, cancel: &CancellationToken) -> Event {
    tokio::select! {
        event = step => event,
        () = cancel.cancelled() => Event::Failed("the move was cancelled".to_owned()),
    }
}

/// How far each flow is: the last round whose pages have passed, and the last mark of any kind.
struct Marks {
    rounds: Vec<u64>,
    last: Vec<u64>,
}

impl Marks {
    fn new(flows: usize) -> Self {
        Self { rounds: vec![0; flows], last: vec![0; flows] }
    }

    fn reached(&mut self, flow: usize, mark: u64) {
        self.last[flow] = mark;
        if mark < FINAL_MARKS {
            self.rounds[flow] = mark;
        }
    }

    /// Has every flow just passed this mark, and nothing after it?
    fn all_at(&self, mark: u64) -> bool {
        self.last.iter().all(|at| *at == mark)
    }

    /// The round that every flow has passed. A flow that is at the end of a pause which was taken back has not passed the next one.
    fn round_everywhere(&self) -> u64 {
        self.rounds.iter().copied().min().unwrap_or(0)
    }
}

/// What arrives next; what has arrived already even if `due` is over; `None` when nothing has by then.
async fn until_due(inbox: &mut mpsc::UnboundedReceiver<Arrival>, due: Instant) -> Option<Option<Arrival>> {
    if let Ok(arrival) = inbox.try_recv() {
        return Some(Some(arrival));
    }
    // Not even asked: a timer has its own idea of how long no time is.
    if due <= Instant::now() {
        return None;
    }
    tokio::time::timeout_at(due.into(), inbox.recv()).await.ok()
}

async fn hear(control: &mut ControlReceiver, arrivals: &mpsc::UnboundedSender<Arrival>) {
    loop {
        let arrival = match control.receive().await {
            Ok(Some(message)) => Arrival::Message(message),
            Ok(None) => Arrival::Lost("the source ended the session".to_owned()),
            Err(error) => Arrival::Lost(error_chain(&error)),
        };
        let last = matches!(arrival, Arrival::Lost(_));
        if arrivals.send(arrival).is_err() || last {
            return;
        }
    }
}

/// Saved states, one for each pause: that of a pause which was taken back is followed by another.
async fn take_states(states: StateReceiver, arrivals: mpsc::UnboundedSender<Arrival>) {
    loop {
        let arrival = match states.receive().await {
            Ok(mut state) if state.len() > STATE_PREFIX_BYTES => {
                let body = state.split_off(STATE_PREFIX_BYTES);
                let mark = state.try_into().map_or(0, u64::from_le_bytes);
                Arrival::State { mark, state: body }
            }
            Ok(_) => Arrival::Lost("the saved state is empty".to_owned()),
            Err(error) => Arrival::Lost(error_chain(&error)),
        };
        let last = matches!(arrival, Arrival::Lost(_));
        if arrivals.send(arrival).is_err() || last {
            return;
        }
    }
}
