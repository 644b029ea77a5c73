//! One move between two model guests: each end in a runtime of its own that can be killed, as a process would be.

use super::{
    arriving::ModelTarget,
    guest::ModelGuest,
    leaving::ModelSource,
    outcome::Outcome,
    path::{Path, socket_pair},
    schedule::{Harm, Schedule, When},
    store::{ModelStore, Record},
    witness::{Side, Witness},
};
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, OnceLock, mpsc},
    thread,
    time::{Duration, Instant},
};
use tokio::{runtime::Runtime, sync::watch};
use tokio_util::sync::CancellationToken;
use vmotion_migrator::{
    guest::GuestPages as _,
    source::{SourceMove, SourceOptions},
    target::{TargetMove, TargetOptions, TargetOutcome},
};
use vmotion_model::{CpuModel, Epoch, HostName, MoveId, MoveOutcome, MoveSummary, OwnerRecord, OwnerState, PAGE_SIZE};
use vmotion_transport::{
    ExpectedPeer, Identity, Principal, Tuning,
    pki::Authority,
    session::{FEATURE_DELTA, FEATURE_POST_COPY, Hello, MoveTicket, TargetFacts, TargetListener, WIRE_VERSION_MIN},
};

/// By then every schedule has ended, on a machine that does much else too.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long a target waits for its source.
const SOURCE_PATIENCE: Duration = Duration::from_millis(1500);

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

fn later(wait: Duration, what: impl FnOnce() + Send + 'static) {
    thread::spawn(move || {
        thread::sleep(wait);
        what();
    });
}

/// What can be done to a world while the move is under way.
#[derive(Clone)]
struct Levers {
    news: mpsc::Sender<News>,
    cancels: [CancellationToken; 2],
    weather: Arc<super::path::Weather>,
}

impl Harm {
    /// Is it done every time its state is entered?
    const fn again(self) -> bool {
        matches!(self, Self::Outages(_))
    }
}

impl Levers {
    /// A kill is carried out by whoever hears of it.
    fn pull(&self, harm: Harm) {
        match harm {
            Harm::Cancel(side) => self.cancels[side as usize].cancel(),
            Harm::CancelSoon(side) => {
                let cancel = self.cancels[side as usize].clone();
                later(Duration::from_millis(100), move || cancel.cancel());
            }
            Harm::Cut => self.weather.cut(true),
            Harm::CutDemand => self.weather.cut_demand(),
            Harm::Outage(time) | Harm::Outages(time) => {
                self.weather.cut(true);
                let weather = Arc::clone(&self.weather);
                later(time, move || weather.cut(false));
            }
            Harm::Kill(victim) => drop(self.news.send(News::Kill(victim))),
        }
    }

    /// What a side calls with the state it has just entered.
    fn hook(&self, side: Side, schedule: &Schedule) -> impl Fn(&'static str) + Send + Sync + use<> {
        let here = schedule.harm.iter().filter_map(|(when, harm)| match *when {
            When::Enters(at, state) if at == side => Some((state, *harm)),
            _ => None,
        });
        let here: Vec<(&str, Harm)> = here.collect();
        let shared = Mutex::new((self.clone(), here));
        move |state| {
            let (levers, now) = {
                let (levers, here) = &mut *shared.lock().unwrap();
                let now: Vec<Harm> = here.iter().filter(|(at, _)| *at == state).map(|(_, harm)| *harm).collect();
                here.retain(|(at, harm)| *at != state || harm.again());
                (levers.clone(), now)
            };
            drop(levers.news.send(News::Entered(side, state)));
            for harm in now {
                levers.pull(harm);
                if harm == Harm::Kill(side) {
                    stand_dead();
                }
            }
        }
    }
}

fn store(side: Side, record: &Arc<Record>, schedule: &Schedule) -> Arc<ModelStore> {
    let answers = if side == Side::Source { &schedule.source_answers } else { &schedule.target_answers };
    Arc::new(ModelStore {
        side,
        host: host(side),
        record: Arc::clone(record),
        answers: Mutex::new(answers.iter().copied().collect()),
        warm_up: schedule.warm_up,
    })
}

fn options(
    schedule: &Schedule,
    record: &OwnerRecord,
    path: &Path,
    guest: &ModelGuest,
    ticket: &MoveTicket,
) -> (SourceOptions, TargetOptions) {
    let tuning = Tuning { silence_max: schedule.silence, ..Tuning::default() };
    let layout = guest.layout().clone();
    let (machine, move_id) = (record.machine.clone(), MoveId::numbered(1));
    let features = |side: Side| -> BTreeSet<String> {
        let follows = schedule.follows.then_some(FEATURE_POST_COPY);
        let deltas = schedule.deltas[side as usize].then_some(FEATURE_DELTA);
        follows.into_iter().chain(deltas).map(str::to_owned).collect()
    };
    let facts = TargetFacts {
        features: features(Side::Target),
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
        version_max: schedule.wire_version,
        features: features(Side::Source),
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
        renewals: watch::Sender::new(record.epoch),
        target: host(Side::Target),
        address: path.address,
        local: None,
        ticket: ticket.clone(),
        hello,
        request: schedule.request.clone(),
        tuning,
        accuracy: vmotion_model::Accuracy::default(),
        limit: Arc::default(),
    };
    let target = TargetOptions {
        expected: record.clone(),
        renewals: watch::Sender::new(record.epoch),
        host: host(Side::Target),
        ticket: ticket.clone(),
        facts,
        patience: SOURCE_PATIENCE,
    };
    (source, target)
}

/// Lets `schedule` happen.
pub(crate) fn run(schedule: &Schedule) -> Outcome {
    let first = OwnerRecord {
        machine: "vm1".parse().unwrap(),
        epoch: Epoch::FIRST,
        owner: host(Side::Source),
        state: OwnerState::Running,
    };
    let witness = Arc::new(Witness::default());
    let guests = Side::BOTH.map(|side| {
        let faults = if side == Side::Source { &schedule.source } else { &schedule.target };
        ModelGuest::new(side, schedule.pages, schedule.writing, faults.clone(), &witness)
    });
    guests[0].let_go();

    let [at_source, at_target] = [runtime(), runtime()];
    let ticket = MoveTicket::random();
    let [(main, main_front), (demand, demand_front)] = [socket_pair(), socket_pair()];
    let path = Path::open(main_front, demand_front, schedule.climate, schedule.seed);
    let (source_options, target_options) = options(schedule, &first, &path, &guests[0], &ticket);
    let tuning = source_options.tuning;
    let listener = {
        let _inside = at_target.enter();
        let expected = ExpectedPeer::Exactly(Principal::Host(host(Side::Source)));
        let listener = TargetListener::new(main, &identity(Side::Target), expected, ticket, tuning).unwrap();
        listener.with_demand_lane(demand).unwrap()
    };
    let (news, heard) = mpsc::channel();
    let record = Record::new(first);
    let weather = Arc::clone(&path.weather);
    let levers = Levers { news: news.clone(), cancels: Default::default(), weather };
    let source = SourceMove {
        machine: Arc::new(ModelSource(Arc::clone(&guests[0]))),
        store: store(Side::Source, &record, schedule),
        identity: identity(Side::Source),
        options: source_options,
    };
    let target = TargetMove {
        machine: Arc::new(ModelTarget(Arc::clone(&guests[1]))),
        store: store(Side::Target, &record, schedule),
        listener,
        options: target_options,
    };
    let (hook, cancel, tell) = (levers.hook(Side::Target, schedule), levers.cancels[1].clone(), news.clone());
    let guest = Arc::clone(&guests[1]);
    at_target.spawn(async move {
        let arrival = target.run(hook, cancel).await;
        if !matches!(arrival, TargetOutcome::Running(_)) {
            // As its process does.
            guest.kill();
        }
        let _ = tell.send(News::TargetEnded(arrival));
    });
    let (hook, cancel, guest) =
        (levers.hook(Side::Source, schedule), levers.cancels[0].clone(), Arc::clone(&guests[0]));
    at_source.spawn(async move {
        let summary = source.run(|_| (), hook, cancel).await;
        if matches!(summary.outcome, MoveOutcome::Moved | MoveOutcome::Stranded { .. }) {
            if guest.witness.runs(Side::Source) {
                guest.witness.complain("the source runs on after it was released".to_owned());
            }
            guest.kill();
        }
        let _ = news.send(News::SourceEnded(Box::new(summary)));
    });

    let mut outcome = Outcome::new(record, witness, guests);
    let runtimes = follow(&mut outcome, &heard, &levers, [Some(at_source), Some(at_target)], schedule);
    runtimes.into_iter().flatten().for_each(Runtime::shutdown_background);
    outcome
}

/// Until both ends have ended or were killed.
fn follow(
    outcome: &mut Outcome,
    heard: &mpsc::Receiver<News>,
    levers: &Levers,
    mut runtimes: [Option<Runtime>; 2],
    schedule: &Schedule,
) -> [Option<Runtime>; 2] {
    let begun = Instant::now();
    let timed = schedule.harm.iter().filter_map(|(when, harm)| match *when {
        When::After(time) => Some((begun + time, *harm)),
        When::Enters(..) => None,
    });
    let mut timed: Vec<(Instant, Harm)> = timed.collect();
    timed.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
    let mut over = [false; 2];
    while over != [true; 2] {
        let next = timed.last().map_or(begun + PATIENCE, |(at, _)| *at);
        let Ok(news) = heard.recv_timeout(next.saturating_duration_since(Instant::now())) else {
            let Some((_, harm)) = timed.pop() else {
                Side::BOTH.iter().for_each(|side| outcome.kill(*side));
                runtimes.into_iter().flatten().for_each(Runtime::shutdown_background);
                panic!("the move does not end: {over:?} after {:?}", outcome.states);
            };
            levers.pull(harm);
            continue;
        };
        match news {
            News::Entered(side, state) => outcome.states.push((side, state)),
            News::SourceEnded(summary) if runtimes[0].is_some() => {
                outcome.summary = Some(*summary);
                over[0] = true;
            }
            News::TargetEnded(arrival) if runtimes[1].is_some() => {
                outcome.arrival = Some(arrival);
                over[1] = true;
            }
            News::SourceEnded(_) | News::TargetEnded(_) => {}
            News::Kill(side) => {
                if let Some(runtime) = runtimes[side as usize].take() {
                    // Threads that are not the runtime's live on; nobody hears them.
                    levers.weather.end();
                    outcome.kill(side);
                    runtime.shutdown_background();
                    over[side as usize] = true;
                }
            }
        }
    }
    // A process that was killed may have ended just before.
    if runtimes[0].is_none() {
        outcome.summary = None;
    }
    if runtimes[1].is_none() {
        outcome.arrival = None;
    }
    runtimes
}
