//! One move between two model guests: each end in a runtime of its own that can be killed, as a process would be.

use super::{
    guest::{GuestFaults, ModelGuest, ModelSource, ModelTarget, Side, Witness, Writing, eventually},
    path::Path,
    store::{Answer, ModelStore, Record},
};
use std::{
    collections::BTreeSet,
    net::UdpSocket,
    sync::{Arc, Mutex, OnceLock, mpsc},
    thread,
    time::{Duration, Instant},
};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use vmotion_migrator::{
    source::{SourceMove, SourceOptions},
    target::{TargetMove, TargetOptions, TargetOutcome},
};
use vmotion_model::{
    CpuModel, Epoch, HostName, MoveId, MoveOutcome, MoveRequest, MoveSummary, OwnerRecord, OwnerState, PAGE_SIZE,
};
use vmotion_transport::{
    ExpectedPeer, Identity, Principal, Tuning,
    pki::Authority,
    session::{Hello, MoveTicket, TargetFacts, TargetListener, WIRE_VERSION_MAX, WIRE_VERSION_MIN},
};

/// By then every schedule has ended.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is done to a world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Harm {
    /// `kill -9` of one end.
    Kill(Side),
    /// The operator cancels at one end.
    Cancel(Side),
    /// The operator cancels a little later.
    CancelSoon(Side),
    /// The network is cut.
    Cut,
    /// The network is cut for 100 ms, which no peer takes for the end.
    Blink,
}

/// Everything that happens in one world.
#[derive(Debug, Clone)]
pub(crate) struct Schedule {
    pub(crate) pages: u64,
    pub(crate) writing: Writing,
    pub(crate) request: MoveRequest,
    pub(crate) silence: Duration,
    /// Datagrams lost of a thousand.
    pub(crate) loss_per_mille: u32,
    pub(crate) source: GuestFaults,
    pub(crate) target: GuestFaults,
    pub(crate) source_answers: Vec<Answer>,
    pub(crate) target_answers: Vec<Answer>,
    pub(crate) warm_up: Duration,
    /// What happens as a side enters a state.
    pub(crate) harm: Vec<(Side, &'static str, Harm)>,
}

impl Default for Schedule {
    fn default() -> Self {
        Self {
            pages: 1024,
            writing: Writing { pages: 256, burst: 16, every: Duration::from_millis(2) },
            request: MoveRequest::default(),
            silence: Duration::from_secs(5),
            loss_per_mille: 0,
            source: GuestFaults::default(),
            target: GuestFaults::default(),
            source_answers: Vec::new(),
            target_answers: Vec::new(),
            warm_up: Duration::ZERO,
            harm: Vec::new(),
        }
    }
}

impl Schedule {
    /// The default, with one harm; lost peers are noticed soon.
    pub(crate) fn harmed(side: Side, state: &'static str, harm: Harm) -> Self {
        Self { silence: Duration::from_millis(400), harm: vec![(side, state, harm)], ..Self::default() }
    }
}

/// What became of it.
pub(crate) struct Outcome {
    /// Of the source; `None` when it was killed.
    pub(crate) summary: Option<MoveSummary>,
    /// Of the target; `None` when it was killed.
    pub(crate) arrival: Option<TargetOutcome>,
    pub(crate) record: Arc<Record>,
    pub(crate) witness: Arc<Witness>,
    /// Every state entered, in order.
    pub(crate) states: Vec<(Side, &'static str)>,
    guests: [Arc<ModelGuest>; 2],
}

enum News {
    Entered(Side, &'static str),
    Kill(Side),
    SourceEnded(Box<MoveSummary>),
    TargetEnded(TargetOutcome),
}

pub(crate) fn host(side: Side) -> HostName {
    match side {
        Side::Source => "h1".parse().unwrap(),
        Side::Target => "h2".parse().unwrap(),
    }
}

fn identity(side: Side) -> Arc<Identity> {
    static IDENTITIES: OnceLock<[Arc<Identity>; 2]> = OnceLock::new();
    let identities = IDENTITIES.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::create(&directory.path().join("ca")).unwrap();
        Side::BOTH.map(|side| {
            let path = directory.path().join(host(side).as_str());
            authority.issue(&Principal::Host(host(side)), &path).unwrap();
            Arc::new(Identity::load(&path).unwrap())
        })
    });
    Arc::clone(&identities[side as usize])
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Dead: not one instruction more.
fn stand_dead() -> ! {
    loop {
        thread::park();
    }
}

/// Does it 100 ms from now.
fn later(what: impl FnOnce() + Send + 'static) {
    thread::spawn(move || {
        thread::sleep(Duration::from_millis(100));
        what();
    });
}

/// The world while the move is under way.
struct World {
    schedule: Schedule,
    record: Arc<Record>,
    news: mpsc::Sender<News>,
    cancels: [CancellationToken; 2],
    path: Path,
}

impl World {
    /// What a side calls with the state it has just entered.
    fn hook(&self, side: Side) -> impl Fn(&'static str) + Send + Sync + use<> {
        let news = Mutex::new(self.news.clone());
        let harm: Vec<_> = self.schedule.harm.iter().filter(|(at, ..)| *at == side).copied().collect();
        let (cancels, weather) = (self.cancels.clone(), Arc::clone(&self.path.weather));
        move |state| {
            let tell = |what| drop(news.lock().unwrap().send(what));
            tell(News::Entered(side, state));
            for (_, _, harm) in harm.iter().filter(|(_, at, _)| *at == state) {
                match *harm {
                    Harm::Cancel(side) => cancels[side as usize].cancel(),
                    Harm::CancelSoon(side) => {
                        let cancel = cancels[side as usize].clone();
                        later(move || cancel.cancel());
                    }
                    Harm::Cut => weather.cut(true),
                    Harm::Blink => {
                        weather.cut(true);
                        let weather = Arc::clone(&weather);
                        later(move || weather.cut(false));
                    }
                    Harm::Kill(victim) => {
                        tell(News::Kill(victim));
                        if victim == side {
                            stand_dead();
                        }
                    }
                }
            }
        }
    }

    fn store(&self, side: Side) -> Arc<ModelStore> {
        let answers = match side {
            Side::Source => &self.schedule.source_answers,
            Side::Target => &self.schedule.target_answers,
        };
        Arc::new(ModelStore {
            side,
            host: host(side),
            record: Arc::clone(&self.record),
            answers: Mutex::new(answers.iter().copied().collect()),
            warm_up: self.schedule.warm_up,
        })
    }
}

fn options(
    schedule: &Schedule,
    record: &OwnerRecord,
    path: &Path,
    guest: &ModelGuest,
    ticket: &MoveTicket,
) -> (SourceOptions, TargetOptions) {
    use vmotion_migrator::guest::GuestPages as _;
    let tuning = Tuning { silence_max: schedule.silence, ..Tuning::default() };
    let layout = guest.layout().clone();
    let (machine, move_id) = (record.machine.clone(), MoveId::numbered(1));
    let facts = TargetFacts {
        features: BTreeSet::new(),
        layout: layout.clone(),
        cpu: CpuModel::default(),
        cpus: 1,
        state_version_max: 1,
        machine: machine.clone(),
        move_id: move_id.clone(),
        flows_max: 8,
    };
    let hello = Hello {
        version_min: WIRE_VERSION_MIN,
        version_max: WIRE_VERSION_MAX,
        features: BTreeSet::new(),
        page_size: PAGE_SIZE,
        layout,
        cpu: CpuModel::default(),
        cpus: 1,
        state_version: 1,
        machine,
        move_id,
        epoch: record.epoch,
        flows: tuning.flows,
    };
    let source = SourceOptions {
        record: record.clone(),
        target: host(Side::Target),
        address: path.address,
        local: None,
        ticket: ticket.clone(),
        hello,
        request: schedule.request.clone(),
        tuning,
    };
    // A source that never calls is given up a little after it would have been lost.
    let patience = schedule.silence + Duration::from_secs(1);
    let target =
        TargetOptions { expected: record.clone(), host: host(Side::Target), ticket: ticket.clone(), facts, patience };
    (source, target)
}

/// Lets `schedule` happen.
pub(crate) fn run(schedule: Schedule) -> Outcome {
    let first = OwnerRecord {
        machine: "vm1".parse().unwrap(),
        epoch: Epoch::FIRST,
        owner: host(Side::Source),
        state: OwnerState::Running,
    };
    let witness = Arc::new(Witness::default());
    let Schedule { pages, writing, .. } = schedule;
    let guests = Side::BOTH.map(|side| {
        let faults = if side == Side::Source { &schedule.source } else { &schedule.target };
        ModelGuest::new(side, pages, writing, faults.clone(), &witness)
    });
    guests[0].let_go();

    let [at_source, at_target] = [runtime(), runtime()];
    let ticket = MoveTicket::random();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let path = Path::open(socket.local_addr().unwrap(), schedule.loss_per_mille);
    let (source_options, target_options) = options(&schedule, &first, &path, &guests[0], &ticket);
    let tuning = source_options.tuning;
    let listener = {
        let _inside = at_target.enter();
        let expected = ExpectedPeer::Exactly(Principal::Host(host(Side::Source)));
        TargetListener::new(socket, &identity(Side::Target), expected, ticket, tuning).unwrap()
    };
    let (news, heard) = mpsc::channel();
    let record = Record::new(first);
    let world = World { schedule, record: Arc::clone(&record), news: news.clone(), cancels: Default::default(), path };
    let source = SourceMove {
        machine: Arc::new(ModelSource(Arc::clone(&guests[0]))),
        store: world.store(Side::Source),
        identity: identity(Side::Source),
        options: source_options,
    };
    let target = TargetMove {
        machine: Arc::new(ModelTarget(Arc::clone(&guests[1]))),
        store: world.store(Side::Target),
        listener,
        options: target_options,
    };
    let (hook, cancel, tell) = (world.hook(Side::Target), world.cancels[1].clone(), news.clone());
    at_target.spawn(async move {
        let _ = tell.send(News::TargetEnded(target.run(hook, cancel).await));
    });
    let (hook, cancel) = (world.hook(Side::Source), world.cancels[0].clone());
    at_source.spawn(async move {
        let _ = news.send(News::SourceEnded(Box::new(source.run(|_| (), hook, cancel).await)));
    });

    let mut runtimes = [Some(at_source), Some(at_target)];
    let mut outcome = Outcome { summary: None, arrival: None, record, witness, states: Vec::new(), guests };
    outcome.follow(&heard, &mut runtimes, &world.schedule);
    runtimes.into_iter().flatten().for_each(Runtime::shutdown_background);
    outcome
}

impl Drop for Outcome {
    fn drop(&mut self) {
        // Ends their threads.
        self.guests.iter().for_each(|guest| guest.kill());
    }
}

fn is_killed(side: Side, runtimes: &[Option<Runtime>; 2]) -> bool {
    runtimes[side as usize].is_none()
}

impl Outcome {
    /// Until both ends have ended or were killed.
    fn follow(&mut self, heard: &mpsc::Receiver<News>, runtimes: &mut [Option<Runtime>; 2], schedule: &Schedule) {
        let deadline = Instant::now() + PATIENCE;
        let mut over = [false; 2];
        while over != [true; 2] {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(news) = heard.recv_timeout(left) else {
                panic!("the move does not end: {over:?} after {:?} in {schedule:?}", self.states);
            };
            match news {
                News::Entered(side, state) => self.states.push((side, state)),
                News::SourceEnded(summary) if !is_killed(Side::Source, runtimes) => {
                    self.summary = Some(*summary);
                    over[0] = true;
                }
                News::TargetEnded(arrival) if !is_killed(Side::Target, runtimes) => {
                    self.arrival = Some(arrival);
                    over[1] = true;
                }
                News::SourceEnded(_) | News::TargetEnded(_) => {}
                News::Kill(side) => {
                    if let Some(runtime) = runtimes[side as usize].take() {
                        self.guests[side as usize].kill();
                        runtime.shutdown_background();
                        over[side as usize] = true;
                    }
                }
            }
        }
        // A process that was killed may have ended just before.
        if is_killed(Side::Source, runtimes) {
            self.summary = None;
        }
        if is_killed(Side::Target, runtimes) {
            self.arrival = None;
        }
    }

    /// Did the source's driver, or the target's, enter `state`?
    pub(crate) fn entered(&self, side: Side, state: &str) -> bool {
        self.states.iter().any(|(at, name)| (*at, *name) == (side, state))
    }

    /// How the source says it ended.
    pub(crate) fn result(&self) -> &MoveOutcome {
        &self.summary.as_ref().expect("the source lives").outcome
    }

    /// What must hold after every schedule.
    pub(crate) fn check(&self) -> Result<(), String> {
        let record = self.record.read();
        let owner = if record.owner == host(Side::Source) { Side::Source } else { Side::Target };
        let other = if owner == Side::Source { Side::Target } else { Side::Source };
        let lives = [self.summary.is_some(), self.arrival.is_some()];
        let fail = |what: String| Err(format!("{what}; states {:?}, record {record:?}", self.states));

        if self.witness.saw_both() {
            return fail("two copies ran at once".to_owned());
        }
        if lives[owner as usize] {
            // A pause that was asked for just before the end is taken back a moment later.
            if !eventually(|| self.witness.runs(owner)) {
                return fail(format!("the {owner:?} owns the machine, and it does not run there"));
            }
        }
        if self.witness.runs(other) {
            return fail(format!("the machine runs at the {other:?}, which does not own it"));
        }
        let history = self.record.history();
        if history.len() > 2 || !history.windows(2).all(|pair| pair[1].epoch == pair[0].epoch.next()) {
            return fail(format!("the record went through {history:?}"));
        }
        if lives[0] && self.guests[0].is_tracked() {
            return fail("the source is still tracked".to_owned());
        }
        if self.witness.starts(Side::Target) > 0 && self.guests[0].snapshot() != self.guests[1].snapshot() {
            return fail("what runs at the target is not what stood still at the source".to_owned());
        }
        if let Some(summary) = &self.summary {
            let moved = summary.outcome == MoveOutcome::Moved;
            if moved != (owner == Side::Target) || summary.epoch != record.epoch {
                return fail(format!("the source reports {:?} with {:?}", summary.outcome, summary.epoch));
            }
        }
        match &self.arrival {
            Some(TargetOutcome::Running(running)) if *running != record => {
                fail(format!("the target runs under {running:?}"))
            }
            Some(TargetOutcome::Discarded(reason)) if owner == Side::Target => {
                fail(format!("the target owns the machine and discarded it: {reason}"))
            }
            _ => Ok(()),
        }
    }
}
