//! Machines that move between two hosts meanwhile: hosts that ask for the owner record, and terms that drive the moves' real phases.

use super::{
    controllers::{COUNT, Controllers},
    world::{Owner, World},
};
use crate::{
    operations::{Event, MoveRecord, Next, Phase, progress_before_copying},
    owners::swap,
    records::{MOVES, Stored, busy_key, load_all, load_move, load_owner, move_key, owner_key, put},
    store::{Change, SharedStore, Store, Transaction},
};
use futures::FutureExt as _;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};
use vmotion_api::{CasRequest, Operation};
use vmotion_migrator::ownership::{CasOutcome, decide};
use vmotion_model::{
    ApiError, Backing, ByteSize, DirtySource, Epoch, HostName, InterruptController, MachineName, MachineSpec, MoveId,
    MoveOutcome, MoveRequest, OwnerRecord, OwnerState,
};
use vmotion_transport::session::MoveTicket;

/// Machines, and so moves.
const MACHINES: u64 = 3;
/// The source is asked how it goes this often.
const POLL_EVERY: Duration = Duration::from_millis(200);
/// After an error, or a host that did not answer.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(500);

/// A copy of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Copy {
    /// None.
    None,
    /// It waits for its state, or for the record's word.
    Waits,
    /// The guest runs.
    Runs,
}

/// A machine on its two hosts, as they see it.
#[derive(Debug)]
struct Guest {
    source: Copy,
    target: Copy,
    /// The source was asked to move it, and still knows.
    known: bool,
    launched: bool,
    /// The source will refuse.
    refuses: bool,
}

/// The hosts of this world.
type Hosts = Arc<Mutex<BTreeMap<MoveId, Guest>>>;

/// All of it. Cheap to clone.
#[derive(Clone)]
pub(super) struct Moves {
    world: World,
    controllers: Controllers,
    hosts: Hosts,
}

fn name<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().unwrap()
}

fn spec(machine: &MachineName) -> MachineSpec {
    MachineSpec {
        name: machine.clone(),
        cpus: 1,
        memory: ByteSize::gib(1),
        kernel: "/boot/probe".into(),
        initrd: None,
        cmdline: String::new(),
        disks: Vec::new(),
        backing: Backing::Memfd,
        dirty_source: DirtySource::Auto,
        interrupts: InterruptController::Kernel,
    }
}

fn record(number: u64) -> MoveRecord {
    let machine: MachineName = name(&format!("vm{number}"));
    let (source, target): (HostName, HostName) = (name("h1"), name("h2"));
    let owner = OwnerRecord {
        machine: machine.clone(),
        epoch: Epoch::FIRST,
        owner: source.clone(),
        state: OwnerState::Running,
    };
    let operation = Operation {
        id: MoveId::numbered(number),
        machine: machine.clone(),
        source,
        target,
        request: MoveRequest::default(),
        created_unix_ms: 0,
        progress: Some(progress_before_copying(0)),
        outcome: None,
        summary: None,
        placement: None,
        note: None,
        asked_by: None,
        motive: None,
        reason: None,
        trace: None,
        steps: Vec::new(),
    };
    let ticket = MoveTicket::random();
    MoveRecord { operation, phase: Phase::Preparing, spec: spec(&machine), record: owner, ticket, cancel: false }
}

impl Moves {
    /// As if they had been asked for before anybody was elected.
    pub(super) fn begin(world: &World, controllers: &Controllers) -> Self {
        let mut hosts = BTreeMap::new();
        for number in 1..=MACHINES {
            let record = record(number);
            let Operation { id, machine, .. } = &record.operation;
            let begun = Transaction::default()
                .then(put(move_key(id), &record).unwrap())
                .then(put(owner_key(machine), &record.record).unwrap())
                .then(put(busy_key(machine), id).unwrap());
            controllers.cluster.store.commit(begun).now_or_never().unwrap().unwrap();
            let refuses = world.percent(10);
            let guest = Guest { source: Copy::Runs, target: Copy::None, known: false, launched: false, refuses };
            hosts.insert(id.clone(), guest);
        }
        let moves = Self { world: world.clone(), controllers: controllers.clone(), hosts: Arc::new(Mutex::new(hosts)) };
        let resumed = moves.clone();
        controllers.on_term(move |store, term| {
            let moves = resumed.clone();
            moves.world.clone().spawn(term, moves.resume(store, term));
        });
        moves
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<MoveId, Guest>> {
        self.hosts.lock().unwrap()
    }

    fn change(&self, id: &MoveId, change: impl FnOnce(&mut Guest)) {
        let mut hosts = self.lock();
        let guest = hosts.get_mut(id).unwrap();
        change(guest);
        if guest.source == Copy::Runs && guest.target == Copy::Runs {
            let what = format!("two copies run: {guest:?}");
            drop(hosts);
            self.world.violation(what);
        }
    }

    fn read<T: Send + 'static>(
        &self,
        read: impl for<'a> FnOnce(&'a dyn Store) -> futures::future::BoxFuture<'a, Result<T, ApiError>>,
    ) -> T {
        read(&*self.controllers.cluster.store).now_or_never().unwrap().unwrap()
    }

    pub(super) fn are_over(&self) -> bool {
        let all = self.read(|store| load_all::<MoveRecord>(store, MOVES).boxed());
        all.iter().all(|stored| stored.value.phase == Phase::Finished)
            && self.lock().values().all(|guest| guest.source != Copy::Waits && guest.target != Copy::Waits)
    }

    /// Every move has ended, as the record says, with one copy where it says.
    pub(super) fn check(&self) {
        for stored in self.read(|store| load_all::<MoveRecord>(store, MOVES).boxed()) {
            let Operation { id, machine, outcome, target, .. } = stored.value.operation.clone();
            let owner = self.read(|store| async move { load_owner(store, &machine).await }.boxed()).unwrap().value;
            let guest = format!("{:?}", self.lock()[&id]);
            let about = format!("{id}: {outcome:?}, {owner:?}, {guest}");
            let (source_runs, target_runs) = {
                let hosts = self.lock();
                (hosts[&id].source == Copy::Runs, hosts[&id].target == Copy::Runs)
            };
            let moved = outcome == Some(MoveOutcome::Moved);
            if outcome.is_none() {
                self.world.violation(format!("{about}: it has not ended"));
            } else if moved != (owner.owner == target) || moved && owner.epoch <= Epoch::FIRST {
                self.world.violation(format!("{about}: the record says something else"));
            } else if (source_runs, target_runs) != (!moved, moved) {
                self.world.violation(format!("{about}: the copy that runs is another"));
            } else if self
                .controllers
                .cluster
                .store
                .get(&busy_key(&owner.machine))
                .now_or_never()
                .unwrap()
                .unwrap()
                .is_some()
            {
                self.world.violation(format!("{about}: it is over, and the machine is busy with it"));
            }
            self.world.show(|shown| shown.moved += usize::from(moved));
        }
    }

    /// A host is asked; does it answer?
    async fn answers(&self) -> bool {
        self.world.sleep(self.world.ms_below(20)).await;
        !self.world.percent(5)
    }

    /// The source copies, and offers; then both ask for the record, each until it has an answer.
    fn launch(&self, record: &MoveRecord) {
        let id = record.operation.id.clone();
        let (moves, record) = (self.clone(), record.clone());
        self.world.spawn(Owner::World, async move {
            moves.world.sleep(moves.world.ms_below(8000)).await;
            if moves.lock()[&id].target != Copy::Waits {
                // The target has let go meanwhile.
                return moves.change(&id, |guest| guest.known = false);
            }
            moves.change(&id, |guest| guest.source = Copy::Waits);
            let (target, source) = (moves.clone(), moves);
            let of_target = record.clone();
            target.world.clone().spawn(Owner::World, async move { target.ask_for(&of_target, true).await });
            // Most often it hears from the target first.
            source.world.sleep(source.world.ms_below(6000)).await;
            source.ask_for(&record, false).await;
        });
    }

    /// Asks one controller after the other until the record has decided.
    async fn ask_for(&self, record: &MoveRecord, is_target: bool) {
        let Operation { id, source, target, .. } = &record.operation;
        let wanted = record.record.handed_to(if is_target { target } else { source });
        let request = CasRequest { expected: record.record.clone(), wanted: wanted.clone() };
        let mut number = 0;
        let owner = loop {
            number = (number + 1) % COUNT;
            if let Some(store) = self.controllers.front(number) {
                let answer = swap(&*store, &request, |_| Ok(())).await;
                // Half of what goes wrong goes wrong on the way back.
                if let Ok(owner) = answer
                    && self.answers().await
                {
                    break owner;
                }
            }
            self.world.sleep(Duration::from_millis(100) + self.world.ms_below(400)).await;
        };
        let won = decide(&owner, &request.expected, &wanted) == CasOutcome::Won;
        self.change(id, |guest| match (is_target, won) {
            (true, true) => guest.target = Copy::Runs,
            (true, false) => guest.target = Copy::None,
            (false, true) => (guest.source, guest.known) = (Copy::Runs, false),
            (false, false) => (guest.source, guest.known) = (Copy::None, false),
        });
    }

    /// The question of the phase, as the reconciler asks it.
    async fn ask(&self, store: &dyn Store, record: &MoveRecord) -> Result<Event, ApiError> {
        let id = &record.operation.id;
        if !self.answers().await {
            return match record.phase {
                Phase::Preparing | Phase::Settling { .. } => {
                    Ok(Event::TargetSilent { reason: "no answer".to_owned(), patience_left: true })
                }
                _ if names_target(store, record).await? => Ok(Event::RecordNamesTarget),
                _ => Ok(Event::SourceSilent("no answer".to_owned())),
            };
        }
        match &record.phase {
            Phase::Preparing => {
                self.change(id, |guest| {
                    if guest.target == Copy::None {
                        guest.target = Copy::Waits;
                    }
                });
                Ok(Event::TargetReady("127.0.0.1:1".parse().unwrap()))
            }
            Phase::Launching { .. } if self.lock()[id].refuses => Ok(Event::SourceRefused("it is busy".to_owned())),
            Phase::Launching { .. } => {
                let fresh = !std::mem::replace(&mut self.lock().get_mut(id).unwrap().launched, true);
                if fresh {
                    self.change(id, |guest| guest.known = true);
                    self.launch(record);
                }
                Ok(Event::Launched)
            }
            Phase::Copying if self.lock()[id].known => Ok(Event::GoingOn),
            Phase::Copying if names_target(store, record).await? => Ok(Event::RecordNamesTarget),
            Phase::Copying => {
                Ok(Event::SourceForgot { alive: true, reason: "it does not know the move any more".to_owned() })
            }
            Phase::Settling { .. } => self.release(store, record).await,
            Phase::Reshaping { .. } | Phase::Finished => Ok(Event::GoingOn),
        }
    }

    async fn release(&self, store: &dyn Store, record: &MoveRecord) -> Result<Event, ApiError> {
        let id = &record.operation.id;
        // One that has been offered the machine asks the record; it cannot be told to forget it.
        let offered = self.lock()[id].launched;
        if !offered {
            self.change(id, |guest| guest.target = Copy::None);
        }
        let let_go = self.lock()[id].target == Copy::None;
        if names_target(store, record).await? {
            return Ok(Event::RecordNamesTarget);
        }
        Ok(if let_go { Event::TargetLetGo } else { Event::TargetCommitting("it asks the record".to_owned()) })
    }
}

impl Moves {
    /// What a term begins with: every move that is not finished goes on.
    async fn resume(self, store: SharedStore, term: Owner) {
        let all = loop {
            match load_all::<MoveRecord>(&*store, MOVES).await {
                Ok(all) => break all,
                Err(_) => self.world.sleep(ASK_AGAIN_AFTER).await,
            }
        };
        for stored in all.into_iter().filter(|stored| stored.value.phase != Phase::Finished) {
            let (id, store, moves) = (stored.value.operation.id, Arc::clone(&store), self.clone());
            self.world.spawn(term, async move {
                while let Some(pause) = turn(&moves, &*store, &id).await.unwrap_or(Some(ASK_AGAIN_AFTER)) {
                    moves.world.sleep(pause).await;
                }
            });
        }
    }
}

async fn names_target(store: &dyn Store, record: &MoveRecord) -> Result<bool, ApiError> {
    let owner = load_owner(store, &record.operation.machine).await?;
    Ok(owner.is_some_and(|owner| record.decided_by(&owner.value)))
}

/// As in the reconciler: ask, step, persist.
async fn turn(moves: &Moves, store: &dyn Store, id: &MoveId) -> Result<Option<Duration>, ApiError> {
    let Some(stored) = load_move(store, id).await? else { return Ok(None) };
    if stored.value.phase == Phase::Finished {
        return Ok(None);
    }
    let event = moves.ask(store, &stored.value).await?;
    match stored.value.phase.clone().step(event) {
        Next::Go(phase) => {
            let record = MoveRecord { phase, ..stored.value.clone() };
            save(store, &stored, &record, Vec::new()).await?;
            Ok(Some(Duration::ZERO))
        }
        Next::Again(note) => Ok(Some(if note.is_some() { ASK_AGAIN_AFTER } else { POLL_EVERY })),
        Next::Finish(outcome, summary) => {
            let busy = Change::Delete(busy_key(&stored.value.operation.machine));
            let record = stored.value.clone().finished(outcome, summary.map(|summary| *summary));
            save(store, &stored, &record, vec![busy]).await?;
            Ok(Some(Duration::ZERO))
        }
    }
}

async fn save(
    store: &dyn Store,
    stored: &Stored<MoveRecord>,
    record: &MoveRecord,
    also: Vec<Change>,
) -> Result<(), ApiError> {
    let mut transaction = Transaction::default().when(stored.unchanged()).then(put(stored.key.as_str(), record)?);
    transaction.changes.extend(also);
    // Refused means that somebody else was quicker: the next turn reads what there is.
    store.commit(transaction).await?;
    Ok(())
}
