//! Performs what the target's state machine decides.

use super::state::{Effect, Event, Target};
use crate::{
    digest::memory_digest,
    guest::TargetMachine,
    ownership::{CasOutcome, OwnerStore},
    protocol::{FINAL_MARK, TargetReport, ToSource, ToTarget},
    source::{ask_until_answered, ms_between, process_cpu_s},
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use vmotion_model::{HostName, OwnerRecord, error_chain};
use vmotion_transport::{
    pages::{FrameDecoder, PageHasher},
    session::{ControlReceiver, MoveTicket, TargetFacts, TargetListener, TargetSession, WireError, WireErrorCode},
};

/// What an arriving machine needs to know.
#[derive(Debug, Clone)]
pub struct TargetOptions {
    /// The record as it must be when the machine is offered: the source's.
    pub expected: OwnerRecord,
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
    state: Option<Vec<u8>>,
    report: TargetReport,
    pause_noticed: Option<Instant>,
    cpu_s_at_start: f64,
}

/// What the tasks of a session tell the driver.
enum Arrival {
    Message(ToTarget),
    Mark { flow: usize, mark: u64 },
    State(Vec<u8>),
    Lost(String),
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
        };
        let (mut state, mut effect) = Target::Empty.step(Event::Built);
        let mut listener = Some(listener);
        entered(state.name());
        while let Some(next) = effect.take() {
            let event = match next {
                Effect::Listen => until_cancelled(driver.listen(listener.take()), &cancel).await,
                Effect::Fill => until_cancelled(driver.fill(), &cancel).await,
                Effect::Load => driver.load().await,
                Effect::Take => driver.take().await,
                Effect::Run => match driver.run().await {
                    Ok(()) => break,
                    Err(reason) => {
                        let record = driver.options.expected.handed_to(&driver.options.host);
                        return TargetOutcome::Failed { record, reason };
                    }
                },
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
        let states = control.state_receiver();
        let state_arrivals = arrivals.clone();
        tokio::spawn(async move {
            let arrival = match states.receive().await {
                Ok(state) => Arrival::State(state),
                Err(error) => Arrival::Lost(error_chain(&error)),
            };
            let _ = state_arrivals.send(arrival);
        });
        tokio::spawn(async move { hear(&mut control, &arrivals).await });

        let mut marks = vec![0; flows];
        let mut acknowledged = 0;
        let mut offer: Option<(Instant, Option<[u8; 16]>)> = None;
        while let Some(arrival) = inbox.recv().await {
            match arrival {
                Arrival::Mark { flow, mark } => marks[flow] = mark,
                Arrival::State(state) => self.state = Some(state),
                Arrival::Message(ToTarget::PauseSoon) => {
                    self.pause_noticed = Some(Instant::now());
                    let store = Arc::clone(&self.store);
                    tokio::spawn(async move { store.warm_up().await });
                }
                Arrival::Message(ToTarget::Offer { expected, digest }) => {
                    if expected != self.options.expected {
                        return Event::Failed("the offer names another owner record than this move's".to_owned());
                    }
                    offer = Some((Instant::now(), digest));
                }
                Arrival::Message(ToTarget::Abort(error)) => return Event::Failed(error.to_string()),
                Arrival::Lost(reason) => return Event::Failed(reason),
            }
            let everywhere = marks.iter().copied().min().unwrap_or(0);
            if everywhere > acknowledged && everywhere != FINAL_MARK {
                acknowledged = everywhere;
                let Some(session) = &mut self.session else { break };
                if let Err(error) = session.sender.send(&ToSource::RoundArrived { round: everywhere }).await {
                    return Event::Failed(error_chain(&error));
                }
            }
            if let Some((offered, digest)) = offer
                && everywhere == FINAL_MARK
                && self.state.is_some()
            {
                self.report.fill_ms = ms_between(offered, Instant::now());
                return self.verify(digest);
            }
        }
        Event::Failed("the session ended".to_owned())
    }

    /// Compares all memory with the source's digest, when there is one.
    fn verify(&mut self, digest: Option<[u8; 16]>) -> Event {
        let Some(wanted) = digest else { return Event::AllArrived };
        let start = Instant::now();
        let found = match tokio::task::block_in_place(|| memory_digest(&*self.machine)) {
            Ok(found) => found,
            Err(error) => return Event::Failed(error_chain(&error)),
        };
        self.report.digest_ms = ms_between(start, Instant::now());
        self.report.digest = Some(found);
        if found == wanted { Event::AllArrived } else { Event::Failed("memory digests differ".to_owned()) }
    }

    async fn load(&mut self) -> Event {
        let Some(state) = self.state.take() else { return Event::Failed("there is no state".to_owned()) };
        let start = Instant::now();
        let loaded = tokio::task::block_in_place(|| self.machine.restore(&state));
        self.report.load_ms = ms_between(start, Instant::now());
        loaded.map_or_else(|error| Event::Failed(error_chain(&error)), |()| Event::Loaded)
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
