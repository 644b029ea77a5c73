//! Starting machine processes and asking them.

use crate::{
    directory::MachineDirectory,
    process::{Command, ControlClient, Launch, ProcessState, Purpose, Share, read_snapshot_head},
    service::AgentOptions,
};
use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    ops::RangeInclusive,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};
use tokio::sync::Mutex;
use vmotion_api::{
    IncomingReady, IncomingRequest, MoveReport, OutgoingRequest, PartAnswer, PartOrder, PartReady, PartRequest,
    PartState, StartRequest,
};
use vmotion_model::{
    ApiError, ByteSize, Epoch, ErrorCode, HostName, MachineName, MachineSpec, MachineState, MachineStatus, MoveId,
    MoveLimit, PartFigures,
};

/// A machine process that is not ready by then has failed. Booting copies a kernel; huge pages take a while to clear.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
const READY_POLL: Duration = Duration::from_millis(5);
/// How long a stopped process may take to end.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// Starts, finds and asks the machine processes of one host.
#[derive(Debug)]
pub(crate) struct Supervisor {
    pub(crate) data: PathBuf,
    pub(crate) host: HostName,
    pub(crate) identity: PathBuf,
    pub(crate) controller: String,
    /// Address that sources of moves reach this host by.
    pub(crate) address: IpAddr,
    /// UDP ports for arrivals.
    pub(crate) ports: RangeInclusive<u16>,
    /// Silence after which the other end of a move counts as lost.
    pub(crate) peer_timeout: Duration,
    /// Held while a machine is added, so that two requests do not both find room for it.
    admission: Mutex<()>,
}

impl Supervisor {
    /// For a host with this data directory and identity (both absolute), reached by `address`.
    pub(crate) fn new(options: &AgentOptions, data: PathBuf, identity: PathBuf, address: IpAddr) -> Self {
        Self {
            data,
            host: options.name.clone(),
            identity,
            controller: options.controller.clone(),
            address,
            ports: options.move_ports.clone(),
            peer_timeout: options.peer_timeout,
            admission: Mutex::new(()),
        }
    }

    pub(crate) fn directory(&self, name: &MachineName) -> MachineDirectory {
        MachineDirectory::of(&self.data, name)
    }

    /// Every machine this host has, dead ones included; not those that left.
    pub(crate) async fn machines(&self) -> Vec<MachineStatus> {
        let names = MachineDirectory::all(&self.data).unwrap_or_else(|error| {
            tracing::error!(%error, "the data directory cannot be read");
            Vec::new()
        });
        let mut machines = Vec::new();
        for name in names {
            if let Some(status) = self.status(&name).await {
                machines.push(status);
            }
        }
        machines
    }

    /// One machine, when this host has it.
    pub(crate) async fn status(&self, name: &MachineName) -> Option<MachineStatus> {
        let directory = self.directory(name);
        let state = match ControlClient::new(&directory).status().await {
            Ok(state) => (state, true),
            Err(_) => (directory.read_state().ok()?, false),
        };
        let (mut state, alive) = state;
        if state.left {
            return None;
        }
        let ended = matches!(state.state, MachineState::Stopped | MachineState::Failed);
        if !alive && !ended {
            state.state = MachineState::Failed;
            state.reason = Some(format!("machine process {} is gone", state.pid));
        }
        Some(to_status(state, alive))
    }

    /// The status of a machine that must be here.
    pub(crate) async fn known(&self, name: &MachineName) -> Result<MachineStatus, ApiError> {
        self.status(name).await.ok_or_else(|| self.unknown(name))
    }

    fn unknown(&self, name: &MachineName) -> ApiError {
        ApiError::new(ErrorCode::NotFound, format!("Machine {name} is not on host {}", self.host))
    }

    /// Memory given to machines that live, in bytes.
    pub(crate) async fn memory_used(&self) -> ByteSize {
        let alive = self.machines().await.into_iter().filter(|machine| machine.pid.is_some());
        ByteSize(alive.map(|machine| machine.spec.memory.bytes()).sum())
    }

    /// Starts a machine; one that runs already with this epoch is left alone.
    pub(crate) async fn start(&self, request: StartRequest) -> Result<MachineStatus, ApiError> {
        let spec = match &request.from {
            Some(directory) => self.spec_of_snapshot(directory, &request.spec.name)?,
            None => request.spec,
        };
        spec.validate().map_err(|error| ApiError::new(ErrorCode::Invalid, error.to_string()))?;
        let _admission = self.admission.lock().await;
        if let Some(status) = self.status(&spec.name).await {
            if status.epoch == request.epoch && status.pid.is_some() {
                return Ok(status);
            }
            if status.pid.is_some() {
                return Err(self.busy(&status));
            }
        }
        self.check_room(&spec, 1).await?;
        let launch = self.launch(Purpose::Start { from: request.from }, spec, request.epoch);
        let state = self.spawn(&launch, None).await?;
        Ok(to_status(state, true))
    }

    fn spec_of_snapshot(&self, directory: &Path, name: &MachineName) -> Result<MachineSpec, ApiError> {
        let head = read_snapshot_head(directory).map_err(|reason| ApiError::new(ErrorCode::Refused, reason))?;
        if head.spec.name == *name {
            return Ok(head.spec);
        }
        let message = format!("The snapshot is of machine {}, not {name}", head.spec.name);
        Err(ApiError::new(ErrorCode::Refused, message).with_hint(format!("create it as {}", head.spec.name)))
    }

    /// Prepares to receive a machine; the same move again finds the process that is prepared already.
    pub(crate) async fn incoming(&self, request: IncomingRequest) -> Result<IncomingReady, ApiError> {
        request.spec.validate().map_err(|error| ApiError::new(ErrorCode::Invalid, error.to_string()))?;
        let _admission = self.admission.lock().await;
        let name = &request.spec.name;
        let directory = self.directory(name);
        if let Some(status) = self.status(name).await {
            if status.pid.is_some() && status.move_id.as_ref() == Some(&request.move_id) {
                return self.prepared_address(&directory);
            }
            // The controller begins a move only when the one before is over, and a move that is over without an owner here
            // cannot be won here any more: what waits for its source is left of such a move, and has not noticed yet.
            let outdated = status.state == MachineState::Incoming && status.epoch <= request.record.epoch;
            if status.pid.is_some() && outdated {
                self.stop(name).await?;
            } else if status.pid.is_some() {
                return Err(self.busy(&status));
            }
        }
        self.check_room(&request.spec, 1).await?;
        let socket = self.bind()?;
        let port = socket.local_addr().map_err(|error| internal(&error))?.port();
        let IncomingRequest { move_id, spec, record, ticket, give_up_after_ms, trace } = request;
        let epoch = record.epoch;
        let mut launch = self.launch(Purpose::Receive { move_id, ticket, record }, spec, epoch);
        launch.arrival_timeout_ms = give_up_after_ms;
        launch.trace = trace;
        self.spawn(&launch, Some(socket.into())).await?;
        let ready = IncomingReady { address: SocketAddr::new(self.address, port) };
        directory.write_ready(&ready).map_err(|error| internal(&error))?;
        Ok(ready)
    }

    /// Prepares a part of a machine; the same request again finds the process that is prepared already.
    pub(crate) async fn part(&self, request: PartRequest) -> Result<PartReady, ApiError> {
        let PartRequest { spec, epoch, members, slices, ticket, audit, vcpus } = request;
        spec.validate().map_err(|error| ApiError::new(ErrorCode::Invalid, error.to_string()))?;
        let hosts: Vec<HostName> = members.iter().map(|member| member.host.clone()).collect();
        spec.validate_span(&hosts).map_err(|error| ApiError::new(ErrorCode::Invalid, error))?;
        let _admission = self.admission.lock().await;
        let directory = self.directory(&spec.name);
        if let Some(status) = self.status(&spec.name).await {
            if status.pid.is_some() && status.epoch == epoch {
                let IncomingReady { address } = self.prepared_address(&directory)?;
                return Ok(PartReady { address });
            }
            if status.pid.is_some() {
                return Err(self.busy(&status));
            }
        }
        // Who joins a machine that runs has nothing of it yet: whoever gives it pieces has looked.
        let parts = if vcpus.is_some() { u64::MAX } else { hosts.len().max(1) as u64 };
        self.check_room(&spec, parts).await?;
        let socket = self.bind()?;
        let port = socket.local_addr().map_err(|error| internal(&error))?.port();
        let launch = self.launch(Purpose::Part(Share { members, slices, ticket, audit, vcpus }), spec, epoch);
        self.spawn(&launch, Some(socket.into())).await?;
        let address = SocketAddr::new(self.address, port);
        directory.write_ready(&IncomingReady { address }).map_err(|error| internal(&error))?;
        Ok(PartReady { address })
    }

    /// The part of a machine that is here.
    pub(crate) async fn part_state(&self, name: &MachineName) -> Result<PartState, ApiError> {
        let figures: PartFigures = self.ask_living(name, &Command::PartFigures).await?;
        let IncomingReady { address } = self.prepared_address(&self.directory(name))?;
        Ok(PartState { address, figures })
    }

    /// Has a part of a machine do something.
    pub(crate) async fn order(&self, name: &MachineName, order: PartOrder) -> Result<PartAnswer, ApiError> {
        self.ask_living(name, &Command::Part(order)).await
    }

    fn prepared_address(&self, directory: &MachineDirectory) -> Result<IncomingReady, ApiError> {
        directory.read_ready().map_err(|error| internal(&error))
    }

    fn busy(&self, status: &MachineStatus) -> ApiError {
        let message = format!("Machine {} is already on host {} with {}", status.name, self.host, status.epoch);
        ApiError::new(ErrorCode::Conflict, message)
    }

    /// Is there room for one of `parts` parts of the machine's memory?
    async fn check_room(&self, spec: &MachineSpec, parts: u64) -> Result<(), ApiError> {
        let capacity = crate::host::capacity(self.memory_used().await);
        let free = capacity.memory.bytes().saturating_sub(capacity.memory_used.bytes());
        let needed = spec.memory.bytes() / parts;
        if needed <= free {
            return Ok(());
        }
        let message = format!(
            "memory: machine {} needs {}, host {} has {} free",
            spec.name,
            ByteSize(needed),
            self.host,
            ByteSize(free)
        );
        Err(ApiError::new(ErrorCode::Refused, message))
    }

    fn launch(&self, purpose: Purpose, spec: MachineSpec, epoch: Epoch) -> Launch {
        Launch {
            purpose,
            spec,
            epoch,
            host: self.host.clone(),
            identity: self.identity.clone(),
            controller: self.controller.clone(),
            arrival_timeout_ms: None,
            trace: None,
            peer_timeout_ms: u64::try_from(self.peer_timeout.as_millis()).unwrap_or(u64::MAX),
            move_ports: (*self.ports.start(), *self.ports.end()),
        }
    }

    /// The first free port of the range.
    fn bind(&self) -> Result<UdpSocket, ApiError> {
        if let Some(socket) = bind_first_free(self.address, self.ports.clone()) {
            return Ok(socket);
        }
        let (first, last) = (self.ports.start(), self.ports.end());
        let message = format!("No UDP port from {first} to {last} is free on {}", self.address);
        Err(ApiError::new(ErrorCode::Unavailable, message).with_hint("give the agent a larger --move-ports"))
    }

    /// Starts a process for `launch` and waits until it serves its control socket, or has failed.
    async fn spawn(&self, launch: &Launch, socket: Option<OwnedFd>) -> Result<ProcessState, ApiError> {
        let directory = self.directory(&launch.spec.name);
        directory.prepare().map_err(|error| internal(&error))?;
        directory.write_launch(launch).map_err(|error| internal(&error))?;
        let result = self.spawn_in(&directory, socket).await;
        if result.is_err() {
            // Nothing of a machine that never ran is worth keeping; older console logs are.
            directory.forget_attempt();
        }
        result
    }

    async fn spawn_in(&self, directory: &MachineDirectory, socket: Option<OwnedFd>) -> Result<ProcessState, ApiError> {
        let log = std::fs::File::options().create(true).append(true).open(directory.process_log());
        let log = log.map_err(|error| internal(&error))?;
        let program = std::env::current_exe().map_err(|error| internal(&error))?;
        let mut child = tokio::process::Command::new(program)
            .arg("machine")
            .arg(directory.path())
            .stdin(socket.map_or_else(Stdio::null, Stdio::from))
            .stdout(Stdio::null())
            .stderr(log)
            .process_group(0)
            .kill_on_drop(false)
            .spawn()
            .map_err(|error| internal(&error))?;
        let client = ControlClient::new(directory);
        let start = Instant::now();
        loop {
            if let Ok(state) = client.status().await {
                // Reaped by tokio when it ends while this agent lives; by init otherwise.
                tokio::spawn(async move { child.wait().await });
                return Ok(state);
            }
            if let Ok(Some(status)) = child.try_wait() {
                let state = directory.read_state().ok().and_then(|state| state.reason);
                let reason = state.unwrap_or_else(|| format!("its process ended with {status}"));
                return Err(ApiError::new(
                    ErrorCode::Refused,
                    format!("Machine cannot run on host {}: {reason}", self.host),
                ));
            }
            if start.elapsed() > READY_TIMEOUT {
                let _ = child.kill().await;
                let message = format!("The machine process was not ready within {READY_TIMEOUT:?}");
                return Err(ApiError::new(ErrorCode::Unavailable, message));
            }
            tokio::time::sleep(READY_POLL).await;
        }
    }

    /// Starts a move away.
    pub(crate) async fn outgoing(&self, name: &MachineName, request: OutgoingRequest) -> Result<MoveReport, ApiError> {
        let directory = self.directory(name);
        // A move that is over may have taken its process with it.
        if let Ok(report) = directory.read_report(&request.move_id) {
            return Ok(report);
        }
        self.ask_living(name, &Command::Outgoing(Box::new(request))).await
    }

    /// Asks a machine's process; one that is dead is not found, which is an answer, and not merely silent.
    async fn ask_living<T: serde::de::DeserializeOwned>(
        &self,
        name: &MachineName,
        command: &Command,
    ) -> Result<T, ApiError> {
        let answer = ControlClient::new(&self.directory(name)).ask(command).await;
        let Err(error) = &answer else { return answer };
        if error.code != ErrorCode::Unavailable {
            return answer;
        }
        match self.status(name).await {
            None => Err(self.unknown(name)),
            Some(MachineStatus { pid: None, reason, .. }) => {
                let reason = reason.unwrap_or_else(|| "it does not run".to_owned());
                Err(ApiError::new(
                    ErrorCode::NotFound,
                    format!("Machine {name} has no process on {}: {reason}", self.host),
                ))
            }
            Some(_) => answer,
        }
    }

    /// How a move away goes or went.
    pub(crate) async fn report(&self, name: &MachineName, id: &MoveId) -> Result<MoveReport, ApiError> {
        let directory = self.directory(name);
        if let Ok(report) = directory.read_report(id) {
            return Ok(report);
        }
        match ControlClient::new(&directory).report(id).await {
            Ok(report) => Ok(report),
            // The process may have ended between the two questions.
            Err(error) => directory.read_report(id).map_err(|_| match error.code {
                ErrorCode::Unavailable => {
                    ApiError::new(ErrorCode::NotFound, format!("Move {id} is not known here: {error}"))
                }
                _ => error,
            }),
        }
    }

    /// Calls a move off.
    pub(crate) async fn cancel(&self, name: &MachineName, id: &MoveId) -> Result<(), ApiError> {
        self.ask_living(name, &Command::Cancel(id.clone())).await
    }

    /// Changes the limits of a move away.
    pub(crate) async fn limit(&self, name: &MachineName, id: &MoveId, limit: MoveLimit) -> Result<(), ApiError> {
        limit.validate().map_err(|error| ApiError::new(ErrorCode::Invalid, error))?;
        self.ask_living(name, &Command::Limit(id.clone(), limit)).await
    }

    /// Ends a machine.
    pub(crate) async fn stop(&self, name: &MachineName) -> Result<MachineStatus, ApiError> {
        let status = self.known(name).await?;
        let directory = self.directory(name);
        if status.pid.is_none() {
            return Ok(status);
        }
        let client = ControlClient::new(&directory);
        let _: ProcessState = client.ask(&Command::Stop).await?;
        let start = Instant::now();
        while client.status().await.is_ok() {
            if start.elapsed() > END_TIMEOUT {
                return Err(ApiError::new(ErrorCode::Unavailable, format!("Machine {name} does not end")));
            }
            tokio::time::sleep(READY_POLL).await;
        }
        // An arrival that was ended has left; what it was is the answer then.
        Ok(self.status(name).await.unwrap_or(status))
    }

    /// Forgets a machine that does not run.
    pub(crate) async fn remove(&self, name: &MachineName) -> Result<(), ApiError> {
        let directory = self.directory(name);
        if !directory.exists() {
            return Err(self.unknown(name));
        }
        if ControlClient::new(&directory).status().await.is_ok() {
            let message = format!("Machine {name} runs on host {}", self.host);
            return Err(
                ApiError::new(ErrorCode::Conflict, message).with_hint(format!("stop it first: vmotion stop {name}"))
            );
        }
        directory.remove().map_err(|error| internal(&error))
    }
}

fn to_status(state: ProcessState, alive: bool) -> MachineStatus {
    let ProcessState { spec, epoch, state, pid, reason, console_base: _, console_bytes, move_id, left: _ } = state;
    MachineStatus {
        name: spec.name.clone(),
        spec,
        state,
        epoch,
        pid: alive.then_some(pid),
        reason,
        console_bytes,
        move_id,
    }
}

pub(crate) fn internal(error: &dyn std::fmt::Display) -> ApiError {
    ApiError::new(ErrorCode::Internal, error.to_string())
}

/// A UDP socket on the first free port of `ports`.
pub(crate) fn bind_first_free(address: IpAddr, mut ports: RangeInclusive<u16>) -> Option<UdpSocket> {
    ports.find_map(|port| UdpSocket::bind((address, port)).ok())
}
