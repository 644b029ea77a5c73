//! The life of a machine process: start or receive, run, move away or stop.

use super::{
    Launch, ProcessState, Purpose, attach, checkpoint::checkpoint, control, memory_use::MemoryUse, outgoing::Outgoing,
    owner::ControllerStore, part::PartLife, snapshot,
};
use crate::{directory::MachineDirectory, supervisor::bind_first_free};
use std::{
    net::UdpSocket,
    os::fd::AsFd as _,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};
use tokio::{
    net::UnixListener,
    sync::{Notify, watch},
};
use vmotion_api::{ControllerClient, MoveReport, OutgoingRequest, PartAnswer, PartOrder};
use vmotion_machine::{ConsoleConfig, Machine, MachineConfig, MachineError, STATE_VERSION};
use vmotion_migrator::{
    KvmTarget,
    target::{TargetMove, TargetOptions, TargetOutcome},
};
use vmotion_model::{
    ApiError, Epoch, ErrorCode, MachineState, MemoryTelemetry, MoveId, MoveLimit, MoveOutcome, OwnerRecord, OwnerState,
    PartFigures, error_chain,
};
use vmotion_transport::{
    ExpectedPeer, Identity, Principal, Tuning,
    session::{TargetFacts, TargetListener},
};

/// How long answers on the control socket may take after the machine's end.
const LAST_ANSWERS: Duration = Duration::from_millis(200);
/// How long a prepared target waits for its source.
const SOURCE_PATIENCE: Duration = Duration::from_secs(60);

/// The machine and what is being done with it; shared by all tasks of the process.
pub(super) struct Life {
    pub(super) directory: MachineDirectory,
    pub(super) launch: Launch,
    pub(super) machine: Arc<Machine>,
    /// Of a machine that spans several hosts.
    part: Option<PartLife>,
    pub(super) identity: Arc<Identity>,
    pub(super) store: Arc<ControllerStore>,
    state: Mutex<ProcessState>,
    pub(super) outgoing: Mutex<Option<Arc<Outgoing>>>,
    /// Cancels an arrival.
    arrival: tokio_util::sync::CancellationToken,
    /// The state an arrival has entered.
    arrival_state: watch::Sender<&'static str>,
    /// The epoch that an arrival would be taken over from.
    arrives_from: watch::Sender<Epoch>,
    /// What the guest does to its memory, once that is watched.
    memory_use: OnceLock<MemoryUse>,
    /// Offset at which console output of this stay begins, once known.
    console_begins: watch::Sender<Option<u64>>,
    end: Notify,
}

pub(super) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change under these locks is a plain assignment; a panic cannot leave half of one.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lives until the machine stopped, left or failed.
pub(super) async fn live(directory: MachineDirectory, launch: Launch) -> Result<(), String> {
    let control = UnixListener::bind(directory.control_socket())
        .map_err(|error| format!("Cannot listen on {}: {error}", directory.control_socket().display()))?;
    let life = match build(&directory, &launch) {
        Ok(life) => Arc::new(life),
        Err(reason) => {
            let _ = directory.write_state(|| failed(&launch, reason.clone()));
            return Err(reason);
        }
    };
    // The listener must exist before the agent is told that the machine is prepared.
    let receiving = match life.launch.purpose.clone() {
        Purpose::Start { from } => {
            life.start(from).await?;
            None
        }
        Purpose::Receive { move_id, ticket, record } => Some(life.listen(move_id, ticket, record)?),
        Purpose::Part(_) => {
            life.console_begins_at(0);
            None
        }
    };
    life.save_state();
    tokio::spawn(control::serve(control, Arc::clone(&life)));
    if let Ok(listener) = UnixListener::bind(directory.console_socket()) {
        tokio::spawn(attach::serve(listener, life.machine.console(), life.console_begins.subscribe()));
    }
    life.watch_memory();
    let on_exit = Arc::clone(&life);
    life.machine.on_exit(move |reason| on_exit.guest_ended(&reason.to_string()));
    if let Some(arrival) = receiving {
        tokio::select! {
            () = vmotion_api::within(life.launch.trace.clone(), life.receive(arrival)) => life.end.notified().await,
            // A machine that runs may end before all its memory has followed it.
            () = life.end.notified() => {}
        }
    } else {
        life.end.notified().await;
    }
    let ProcessState { state, reason, .. } = life.state();
    if state == MachineState::Failed {
        // Its threads may wait for pages that will not come; they end with the process.
        return Err(reason.unwrap_or_else(|| "the machine failed".to_owned()));
    }
    if life.part.is_some() {
        life.save_state();
        tokio::time::sleep(LAST_ANSWERS).await;
        // The guest's last words; nobody else writes them down.
        life.machine.console().flush(LAST_ANSWERS);
        // vCPUs and devices may wait for pages of hosts that are gone: nothing ends these threads but this.
        std::process::exit(0);
    }
    life.machine.stop();
    life.save_state();
    // Whoever asked for the end waits for an answer, which another task writes.
    tokio::time::sleep(LAST_ANSWERS).await;
    Ok(())
}

fn failed(launch: &Launch, reason: String) -> ProcessState {
    ProcessState {
        spec: launch.spec.clone(),
        epoch: launch.epoch,
        state: MachineState::Failed,
        pid: std::process::id(),
        reason: Some(reason),
        console_base: 0,
        console_bytes: 0,
        move_id: None,
        left: false,
    }
}

fn build(directory: &MachineDirectory, launch: &Launch) -> Result<Life, String> {
    let identity = Arc::new(Identity::load(&launch.identity).map_err(|error| error_chain(&error))?);
    let client = ControllerClient::new(&launch.controller, &identity).map_err(|error| error_chain(&error))?;
    let store = Arc::new(ControllerStore::new(client, launch.spec.name.clone()));
    let config = MachineConfig {
        spec: launch.spec.clone(),
        console: ConsoleConfig { log: Some(directory.console_log()), start_offset: 0 },
        part: None,
    };
    let whole = |machine: Result<Machine, MachineError>| -> Result<(Arc<Machine>, Option<PartLife>), String> {
        Ok((Arc::new(machine.map_err(|error| error_chain(&error))?), None))
    };
    let (machine, part) = match &launch.purpose {
        Purpose::Start { from: None } => whole(Machine::boot(&config)),
        Purpose::Start { from: Some(_) } | Purpose::Receive { .. } => whole(Machine::prepare(&config)),
        Purpose::Part(share) => {
            let part = PartLife::build(launch, share, config, &identity, socket()?)?;
            Ok((Arc::clone(part.machine()), Some(part)))
        }
    }?;
    let (state, move_id) = match &launch.purpose {
        Purpose::Start { .. } | Purpose::Part(_) => (MachineState::Starting, None),
        Purpose::Receive { move_id, .. } => (MachineState::Incoming, Some(move_id.clone())),
    };
    let state = ProcessState { state, move_id, reason: None, ..failed(launch, String::new()) };
    Ok(Life {
        directory: directory.clone(),
        launch: launch.clone(),
        machine,
        part,
        identity,
        store,
        state: Mutex::new(state),
        outgoing: Mutex::new(None),
        arrival: tokio_util::sync::CancellationToken::new(),
        arrival_state: watch::Sender::new("empty"),
        arrives_from: watch::Sender::new(launch.epoch),
        memory_use: OnceLock::new(),
        console_begins: watch::Sender::new(None),
        end: Notify::new(),
    })
}

/// The agent bound it and passed it as our standard input.
fn socket() -> Result<UdpSocket, String> {
    let socket = std::io::stdin().as_fd().try_clone_to_owned().map(UdpSocket::from);
    socket.map_err(|error| format!("Cannot use the UDP socket: {error}"))
}

/// An arrival that listens.
struct Arrival {
    target: TargetMove<KvmTarget, ControllerStore>,
}

impl Life {
    pub(super) fn state(&self) -> ProcessState {
        let mut state = lock(&self.state).clone();
        state.console_bytes = self.machine.console().offset();
        state
    }

    fn change(&self, change: impl FnOnce(&mut ProcessState)) {
        change(&mut lock(&self.state));
        self.save_state();
    }

    fn save_state(&self) {
        if let Err(error) = self.directory.write_state(|| self.state()) {
            tracing::error!(%error, "state.json cannot be written");
        }
    }

    /// The owner record that this process believes in.
    pub(super) fn record(&self) -> OwnerRecord {
        OwnerRecord {
            machine: self.launch.spec.name.clone(),
            epoch: lock(&self.state).epoch,
            owner: self.launch.host.clone(),
            state: OwnerState::Running,
        }
    }

    async fn start(&self, from: Option<PathBuf>) -> Result<(), String> {
        let started = match from {
            Some(directory) => snapshot::load(&self.machine, &directory),
            None => Ok(()),
        };
        // A restored machine's log begins where the snapshot's console ended; a booted one's at 0.
        self.console_begins_at(self.machine.console().offset());
        let started = started.and_then(|()| self.machine.resume().map_err(|error| error_chain(&error)));
        if let Err(reason) = started {
            self.change(|state| {
                state.state = MachineState::Failed;
                state.reason = Some(reason.clone());
            });
            return Err(reason);
        }
        self.change(|state| state.state = MachineState::Running);
        Ok(())
    }

    fn console_begins_at(&self, offset: u64) {
        lock(&self.state).console_base = offset;
        self.console_begins.send_replace(Some(offset));
    }

    fn listen(
        &self,
        move_id: MoveId,
        ticket: vmotion_transport::session::MoveTicket,
        record: OwnerRecord,
    ) -> Result<Arrival, String> {
        let socket = socket()?;
        let mut tuning = self.launch.tuning();
        if let Some(ms) = self.launch.arrival_timeout_ms {
            tuning.silence_max = Duration::from_millis(ms);
        }
        let expected = ExpectedPeer::Exactly(Principal::Host(record.owner.clone()));
        let address = socket.local_addr().map_err(|error| format!("Cannot use the UDP socket: {error}"))?.ip();
        let mut listener = TargetListener::new(socket, &self.identity, expected, ticket.clone(), tuning)
            .map_err(|error| error_chain(&error))?;
        // Without a second port memory cannot follow a guest here; everything else works.
        let (first, last) = self.launch.move_ports;
        if let Some(demand) = bind_first_free(address, first..=last) {
            listener = listener.with_demand_lane(demand).map_err(|error| error_chain(&error))?;
        }
        let target = KvmTarget::new(Arc::clone(&self.machine)).map_err(|error| error_chain(&error))?;
        let facts = TargetFacts {
            features: KvmTarget::features(),
            layout: self.machine.memory().layout().clone(),
            cpu: self.machine.cpu_model().clone(),
            cpus: self.launch.spec.cpus,
            state_version_max: STATE_VERSION,
            machine: self.launch.spec.name.clone(),
            move_id,
            flows_max: Tuning::FLOWS_MAX,
        };
        let options = TargetOptions {
            expected: record,
            renewals: self.arrives_from.clone(),
            host: self.launch.host.clone(),
            ticket,
            facts,
            patience: SOURCE_PATIENCE,
        };
        let store = Arc::clone(&self.store);
        Ok(Arrival { target: TargetMove { machine: Arc::new(target), store, listener, options } })
    }

    /// Receives the machine; the process ends when nothing came of it.
    async fn receive(self: &Arc<Self>, arrival: Arrival) {
        let entered = Arc::clone(self);
        let entered = move |state| {
            entered.arrival_entered(state);
            if matches!(state, "running" | "pulling") {
                // Beside the guest's going on, not before it.
                let life = Arc::clone(&entered);
                tokio::spawn(async move { life.save_state() });
            }
        };
        let outcome = arrival.target.run(entered, self.arrival.clone()).await;
        match outcome {
            TargetOutcome::Running(record) => {
                self.change(|state| {
                    // Its guest may have ended since it began to run, or somebody has asked for its end before.
                    if state.state == MachineState::Incoming {
                        state.state = MachineState::Running;
                    }
                    state.epoch = record.epoch;
                    state.move_id = None;
                });
                if self.state().state == MachineState::Stopped {
                    self.end.notify_one();
                }
            }
            TargetOutcome::Failed { record, reason } => {
                tracing::error!(%reason, "the machine is this host's, and cannot run");
                self.change(|state| {
                    state.state = MachineState::Failed;
                    state.epoch = record.epoch;
                    state.reason = Some(reason);
                    state.move_id = None;
                });
                self.end.notify_one();
            }
            TargetOutcome::Discarded(reason) => {
                tracing::info!(%reason, "arrival discarded");
                self.change(|state| {
                    state.state = MachineState::Failed;
                    state.reason = Some(reason);
                    state.left = true;
                });
                self.end.notify_one();
            }
        }
    }

    /// From `armed` on the console's offset is the source's, and an arrival can no longer be called off.
    fn arrival_entered(&self, entered: &'static str) {
        self.arrival_state.send_replace(entered);
        checkpoint("target", entered);
        if entered == "armed" {
            self.console_begins_at(self.machine.console().offset());
        }
        if matches!(entered, "running" | "pulling") {
            // Only in memory: the guest still stands, and must not wait for a file.
            let mut state = lock(&self.state);
            if state.state == MachineState::Incoming {
                state.state = MachineState::Running;
            }
            state.epoch = self.arrives_from.borrow().next();
        }
    }

    fn guest_ended(&self, reason: &str) {
        self.change(|state| {
            state.state = MachineState::Stopped;
            state.reason = Some(reason.to_owned());
        });
        self.end.notify_one();
    }

    /// Ends the machine; the process follows. An arrival that asks the owner record hears its answer first.
    pub(super) fn stop(&self, reason: &str) -> ProcessState {
        let arriving = self.state().state == MachineState::Incoming;
        self.change(|state| {
            state.state = MachineState::Stopped;
            state.reason = Some(reason.to_owned());
        });
        if arriving {
            self.arrival.cancel();
        } else {
            self.end.notify_one();
        }
        self.state()
    }

    /// Refuses what needs a machine that runs and has all of its memory here.
    fn is_whole_and_runs(&self) -> Result<(), ApiError> {
        let ProcessState { state, move_id, .. } = self.state();
        let name = &self.launch.spec.name;
        if self.part.is_some() {
            let message = format!("Machine {name} spans several hosts, and only a part of it is here");
            return Err(
                ApiError::new(ErrorCode::Refused, message).with_hint("move its pieces: vmotion show lists them")
            );
        }
        if state != MachineState::Running {
            return Err(ApiError::new(ErrorCode::Refused, format!("Machine {name} does not run")));
        }
        // An arrival that only has its last words to say does not hinder.
        let Some(arriving) = move_id.filter(|_| *self.arrival_state.borrow() == "pulling") else { return Ok(()) };
        let message = format!("Machine {name} runs here, but its memory still follows ({arriving})");
        Err(ApiError::new(ErrorCode::Conflict, message).with_hint("wait until that move is over"))
    }

    /// Samples what the guest writes whenever all its memory is here and nothing else reads it.
    fn watch_memory(self: &Arc<Self>) {
        if self.part.is_some() {
            return;
        }
        let life = Arc::downgrade(self);
        let may_look = move || {
            life.upgrade().is_some_and(|life| life.state().move_id.is_none() && life.is_whole_and_runs().is_ok())
        };
        match MemoryUse::watch(&self.machine, may_look) {
            Ok(watched) => drop(self.memory_use.set(watched)),
            Err(error) => tracing::warn!(%error, "nobody samples what the guest writes"),
        }
    }

    /// What the guest does to its memory; `None` until that is known.
    pub(super) fn memory_use(&self) -> Option<MemoryTelemetry> {
        self.memory_use.get()?.get()
    }

    /// Starts a move away; the same move again reports how it goes.
    pub(super) fn move_away(self: &Arc<Self>, request: OutgoingRequest) -> Result<MoveReport, ApiError> {
        let mut outgoing = lock(&self.outgoing);
        if let Some(current) = outgoing.as_ref() {
            if *current.id() == request.move_id {
                return Ok(current.report());
            }
            if !current.is_over() {
                let message = format!("Machine {} is being moved by {}", self.launch.spec.name, current.id());
                return Err(ApiError::new(ErrorCode::Conflict, message));
            }
        }
        if let Ok(report) = self.directory.read_report(&request.move_id) {
            return Ok(report);
        }
        let record = self.record();
        if request.record != record {
            let message =
                format!("The owner record is of {}, the machine runs with {}", request.record.epoch, record.epoch);
            return Err(ApiError::new(ErrorCode::Conflict, message));
        }
        self.is_whole_and_runs()?;
        let started = Outgoing::start(Arc::clone(self), request);
        let report = started.report();
        *outgoing = Some(started);
        drop(outgoing);
        Ok(report)
    }

    pub(super) fn move_began(&self, id: &MoveId) {
        self.change(|state| {
            state.state = MachineState::Moving;
            state.move_id = Some(id.clone());
        });
    }

    /// A move away goes on with an epoch that was won on the way.
    pub(super) fn move_renewed(&self, epoch: Epoch) {
        // The move may have ended meanwhile, with another.
        self.change(|state| state.epoch = state.epoch.max(epoch));
    }

    /// A move away ended: the machine is gone, or runs on here.
    pub(super) fn move_ended(&self, id: &MoveId, report: &MoveReport) {
        if let Err(error) = self.directory.write_report(id, report) {
            tracing::error!(%error, "the report of {id} cannot be written");
        }
        let Some(summary) = &report.summary else { return };
        // Stranded or not, it was handed over.
        let moved = matches!(summary.outcome, MoveOutcome::Moved | MoveOutcome::Stranded { .. });
        self.change(|state| {
            state.move_id = None;
            if moved {
                state.left = true;
                state.state = MachineState::Stopped;
                state.reason = Some(format!("moved to {}", summary.target));
            } else if state.state == MachineState::Moving {
                state.epoch = summary.epoch;
                state.state = MachineState::Running;
            }
        });
        if moved {
            self.end.notify_one();
        }
    }

    pub(super) fn report(&self, id: &MoveId) -> Result<MoveReport, ApiError> {
        let current = lock(&self.outgoing).clone();
        match current {
            Some(current) if current.id() == id => Ok(current.report()),
            _ => self.directory.read_report(id).map_err(|_| unknown_move(id)),
        }
    }

    /// Calls a move off. At a target this answers only when the arrival has let go for good, or can no longer be stopped.
    pub(super) async fn cancel(&self, id: &MoveId) -> Result<(), ApiError> {
        if let Some(current) = lock(&self.outgoing).as_ref().filter(|current| current.id() == id) {
            current.cancel();
            return Ok(());
        }
        let arriving = lock(&self.state).clone();
        if arriving.move_id.as_ref() != Some(id) || arriving.state != MachineState::Incoming {
            return Err(unknown_move(id));
        }
        self.arrival.cancel();
        let mut state = self.arrival_state.subscribe();
        let decided = |state: &&'static str| matches!(*state, "armed" | "pulling" | "running" | "discarded");
        match state.wait_for(decided).await.map(|state| *state) {
            Ok("discarded") => Ok(()),
            _ => Err(ApiError::new(
                ErrorCode::Conflict,
                format!("Move {id} asks the owner record: it can no longer be cancelled"),
            )),
        }
    }

    /// Changes the limits of a move away that goes on.
    pub(super) fn limit(&self, id: &MoveId, limit: MoveLimit) -> Result<(), ApiError> {
        match lock(&self.outgoing).as_ref().filter(|current| current.id() == id && !current.is_over()) {
            Some(current) => {
                current.limit(limit);
                Ok(())
            }
            None => Err(unknown_move(id)),
        }
    }

    /// What this part of a machine did lately.
    pub(super) async fn part_figures(self: &Arc<Self>) -> Result<PartFigures, ApiError> {
        self.with_part(PartLife::figures).await?
    }

    /// Does something with the part, which may wait.
    async fn with_part<T: Send + 'static>(
        self: &Arc<Self>,
        act: impl FnOnce(&PartLife) -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let life = Arc::clone(self);
        let acted = move || {
            life.part.as_ref().map(act).ok_or_else(|| {
                let message = format!("Machine {} is all on host {}", life.launch.spec.name, life.launch.host);
                ApiError::new(ErrorCode::Refused, message)
            })
        };
        let done = tokio::task::spawn_blocking(acted).await;
        done.map_err(|error| ApiError::new(ErrorCode::Internal, error.to_string()))?
    }

    /// Has this part of a machine do something.
    pub(super) async fn obey(self: &Arc<Self>, order: PartOrder) -> Result<PartAnswer, ApiError> {
        let (runs, leaves) = (order == PartOrder::Run, order == PartOrder::Leave);
        let answer = self.with_part(move |part| part.obey(order)).await??;
        if runs {
            self.change(|state| {
                // The guest may have ended already.
                if state.state == MachineState::Starting {
                    state.state = MachineState::Running;
                }
            });
        }
        if leaves && !answer.more {
            // Nothing of the guest is here any more; the process is ended when all others know.
            self.change(|state| {
                state.state = MachineState::Stopped;
                state.reason = Some("this host has left the machine".to_owned());
            });
        }
        Ok(answer)
    }

    pub(super) async fn snapshot(self: &Arc<Self>, directory: PathBuf) -> Result<(), ApiError> {
        self.is_whole_and_runs()?;
        let machine = Arc::clone(&self.machine);
        tokio::task::spawn_blocking(move || snapshot::save(&machine, &directory))
            .await
            .map_err(|error| ApiError::new(ErrorCode::Internal, error.to_string()))?
            .map_err(|reason| ApiError::new(ErrorCode::Refused, reason))
    }

    pub(super) fn input(&self, bytes: &[u8]) -> Result<(), ApiError> {
        let taken = self.machine.console().input(bytes);
        if taken < bytes.len() {
            let message = format!("The console took {taken} of {} bytes: the guest does not read", bytes.len());
            return Err(ApiError::new(ErrorCode::Refused, message));
        }
        Ok(())
    }
}

fn unknown_move(id: &MoveId) -> ApiError {
    ApiError::new(ErrorCode::NotFound, format!("Move {id} is not known here"))
}
