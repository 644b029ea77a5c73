//! An agent without machines: it answers as its state says, and remembers what it was asked.

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Path, Query, State},
    response::{IntoResponse as _, Response},
    routing::{get, post, put},
};
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{net::TcpListener, task::JoinHandle};
use vmotion_api::{
    ConsoleQuery, ControllerClient, Heartbeat, HostReport, IncomingReady, IncomingRequest, Json, MoveReport,
    OutgoingRequest, Problem, SnapshotRequest, StartRequest, TlsListener,
};
use vmotion_model::{
    ApiError, ByteSize, CpuModel, ErrorCode, HostCapacity, HostName, MachineName, MachineState, MachineStatus, MoveId,
    MoveOutcome, MoveSummary, Timeline, TimelineEvent,
};
use vmotion_transport::Identity;

const ADDRESS: &str = "127.0.0.1:4433";

/// What the agent has, and what it was asked.
#[derive(Default)]
pub(crate) struct Book {
    pub(crate) machines: BTreeMap<MachineName, MachineStatus>,
    pub(crate) refuse_start: Option<ApiError>,
    pub(crate) refuse_incoming: Option<ApiError>,
    pub(crate) refuse_cancel: Option<ApiError>,
    pub(crate) incoming: BTreeMap<MoveId, IncomingRequest>,
    pub(crate) outgoing: BTreeMap<MoveId, OutgoingRequest>,
    pub(crate) reports: BTreeMap<MoveId, MoveReport>,
    pub(crate) cancelled: Vec<MoveId>,
    pub(crate) starts: u32,
    pub(crate) typed: Vec<u8>,
}

pub(crate) type Shared = Arc<Mutex<Book>>;

pub(crate) struct FakeAgent {
    pub(crate) report: HostReport,
    pub(crate) book: Shared,
    pub(crate) identity: Arc<Identity>,
    serving: Option<JoinHandle<()>>,
    beating: Option<JoinHandle<()>>,
}

impl FakeAgent {
    pub(crate) async fn start(name: &str, datacenter: &str, identity: Arc<Identity>) -> Self {
        let book = Shared::default();
        let (address, serving) = serve("127.0.0.1:0".parse().unwrap(), &identity, &book).await;
        let report = HostReport {
            name: name.parse().unwrap(),
            datacenter: datacenter.parse().unwrap(),
            url: format!("https://{address}"),
            capacity: HostCapacity { cpus: 4, memory: ByteSize::gib(4), memory_used: ByteSize(0) },
            cpu: CpuModel { vendor: "GenuineIntel".to_owned(), ..CpuModel::default() },
            version: "test".to_owned(),
        };
        Self { report, book, identity, serving: Some(serving), beating: None }
    }

    pub(crate) fn name(&self) -> HostName {
        self.report.name.clone()
    }

    pub(crate) fn book<T>(&self, look: impl FnOnce(&mut Book) -> T) -> T {
        look(&mut self.book.lock().unwrap())
    }

    pub(crate) fn heartbeat(&self) -> Heartbeat {
        let machines = self.book(|book| book.machines.values().cloned().collect());
        Heartbeat { host: self.report.clone(), machines, telemetry: None, used: [].into() }
    }

    /// Sends heartbeats from now on; the first has arrived when this returns.
    pub(crate) async fn beat(&mut self, controller: ControllerClient) {
        controller.heartbeat(&self.heartbeat()).await.unwrap();
        let (report, book) = (self.report.clone(), Arc::clone(&self.book));
        self.stop_beating();
        self.beating = Some(tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(100)).await;
                let machines = book.lock().unwrap().machines.values().cloned().collect();
                let _ = controller
                    .heartbeat(&Heartbeat { host: report.clone(), machines, telemetry: None, used: [].into() })
                    .await;
            }
        }));
    }

    pub(crate) fn stop_beating(&mut self) {
        if let Some(task) = self.beating.take() {
            task.abort();
        }
    }

    /// Neither answers nor sends heartbeats from now on.
    pub(crate) async fn die(&mut self) {
        self.stop_beating();
        if let Some(task) = self.serving.take() {
            task.abort();
            let _ = task.await;
        }
    }

    /// Answers again, at the same address; what it knew is in its book.
    pub(crate) async fn revive(&mut self) {
        let address = self.report.url.trim_start_matches("https://").parse().unwrap();
        self.serving = Some(serve(address, &self.identity, &self.book).await.1);
    }

    /// Sets the state of a machine.
    pub(crate) fn set_state(&self, machine: &MachineName, state: MachineState) {
        self.book(|book| book.machines.get_mut(machine).unwrap().state = state);
    }

    /// Ends a move away from here.
    pub(crate) fn report_outcome(&self, id: &MoveId, outcome: MoveOutcome) {
        self.book(|book| {
            let request = book.outgoing[id].clone();
            let summary = MoveSummary {
                machine: request.record.machine.clone(),
                source: request.record.owner.clone(),
                target: request.target,
                outcome,
                epoch: request.record.epoch.next(),
                total_ms: 1000.0,
                downtime: Default::default(),
                predicted: Default::default(),
                rounds: 3,
                pages: Default::default(),
                wire_bytes: 1,
                udp_bytes: 2,
                source_cpu_s: 0.1,
                target_cpu_s: 0.1,
                digests: None,
                follow: None,
                outlook: None,
                slowdown_percent: 0.0,
                timeline: Timeline {
                    events: vec![TimelineEvent { at_ms: 1.0, what: "paused".to_owned() }],
                    ..Timeline::default()
                },
            };
            book.reports.entry(id.clone()).or_default().summary = Some(summary);
        });
    }
}

impl Drop for FakeAgent {
    fn drop(&mut self) {
        self.stop_beating();
        if let Some(task) = self.serving.take() {
            task.abort();
        }
    }
}

/// Aborting the task closes every connection too: a dead agent answers nobody.
async fn serve(address: SocketAddr, identity: &Arc<Identity>, book: &Shared) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    let listener = TlsListener::new(listener, identity).unwrap();
    let alive = Arc::new(());
    let watched = Arc::downgrade(&alive);
    let router = Router::new()
        .route("/v1/machines/{name}", put(start).get(show).delete(remove))
        .route("/v1/machines/{name}/stop", post(stop))
        .route("/v1/machines/{name}/snapshot", post(snapshot))
        .route("/v1/machines/{name}/console", get(console).post(console_input))
        .route("/v1/machines/{name}/incoming", put(incoming))
        .route("/v1/machines/{name}/outgoing", put(outgoing))
        .route("/v1/machines/{name}/moves/{id}", get(report).delete(cancel))
        .layer(axum::middleware::from_fn(move |request, next: axum::middleware::Next| {
            let watched = watched.clone();
            async move {
                if watched.upgrade().is_none() {
                    // Connections outlive the listener; what a dead agent's port answers is not an agent's answer.
                    return (axum::http::StatusCode::BAD_GATEWAY, [("connection", "close")]).into_response();
                }
                next.run(request).await
            }
        }))
        .with_state(Arc::clone(book));
    let serving = tokio::spawn(async move {
        let _alive = alive;
        vmotion_api::serve(listener, router, std::future::pending()).await.unwrap();
    });
    (address, serving)
}

type Answer<T> = Result<Json<T>, Problem>;

fn unknown(what: impl std::fmt::Display) -> Problem {
    Problem(ApiError::new(ErrorCode::NotFound, format!("No {what} here")))
}

async fn start(State(book): State<Shared>, Json(request): Json<StartRequest>) -> Answer<MachineStatus> {
    let mut book = book.lock().unwrap();
    book.starts += 1;
    if let Some(error) = &book.refuse_start {
        return Err(Problem(error.clone()));
    }
    let StartRequest { mut spec, epoch, from } = request;
    if from.is_some() {
        spec.memory = ByteSize::mib(64);
    }
    let status = MachineStatus {
        name: spec.name.clone(),
        spec,
        state: MachineState::Running,
        epoch,
        pid: Some(42),
        reason: None,
        console_bytes: 7,
        move_id: None,
    };
    Ok(Json(book.machines.entry(status.name.clone()).or_insert(status).clone()))
}

async fn show(State(book): State<Shared>, Path(name): Path<MachineName>) -> Answer<MachineStatus> {
    book.lock().unwrap().machines.get(&name).cloned().map(Json).ok_or_else(|| unknown(name))
}

async fn stop(State(book): State<Shared>, Path(name): Path<MachineName>) -> Answer<MachineStatus> {
    let mut book = book.lock().unwrap();
    let status = book.machines.get_mut(&name).ok_or_else(|| unknown(name))?;
    status.state = MachineState::Stopped;
    Ok(Json(status.clone()))
}

async fn remove(State(book): State<Shared>, Path(name): Path<MachineName>) -> Answer<()> {
    book.lock().unwrap().machines.remove(&name).map(|_| Json(())).ok_or_else(|| unknown(name))
}

async fn snapshot(
    State(book): State<Shared>,
    Path(name): Path<MachineName>,
    Json(_): Json<SnapshotRequest>,
) -> Answer<()> {
    book.lock().unwrap().machines.contains_key(&name).then_some(Json(())).ok_or_else(|| unknown(name))
}

async fn console(Query(query): Query<ConsoleQuery>) -> Response {
    let offset = query.offset.unwrap_or(0);
    let text = b"0123456789";
    let rest = text[usize::try_from(offset).unwrap().min(text.len())..].to_vec();
    ([("x-offset", offset.to_string())], Body::from(rest)).into_response()
}

async fn console_input(State(book): State<Shared>, bytes: Bytes) -> Json<()> {
    book.lock().unwrap().typed.extend_from_slice(&bytes);
    Json(())
}

async fn incoming(State(book): State<Shared>, Json(request): Json<IncomingRequest>) -> Answer<IncomingReady> {
    let mut book = book.lock().unwrap();
    if let Some(error) = &book.refuse_incoming {
        return Err(Problem(error.clone()));
    }
    book.incoming.insert(request.move_id.clone(), request);
    Ok(Json(IncomingReady { address: ADDRESS.parse().unwrap() }))
}

async fn outgoing(State(book): State<Shared>, Json(request): Json<OutgoingRequest>) -> Answer<MoveReport> {
    assert_eq!(request.address, ADDRESS.parse().unwrap());
    let mut book = book.lock().unwrap();
    let report = book.reports.entry(request.move_id.clone()).or_default().clone();
    book.outgoing.insert(request.move_id.clone(), request);
    Ok(Json(report))
}

async fn report(State(book): State<Shared>, Path((_, id)): Path<(MachineName, MoveId)>) -> Answer<MoveReport> {
    book.lock().unwrap().reports.get(&id).cloned().map(Json).ok_or_else(|| unknown(id))
}

async fn cancel(State(book): State<Shared>, Path((_, id)): Path<(MachineName, MoveId)>) -> Answer<()> {
    let mut book = book.lock().unwrap();
    if let Some(error) = &book.refuse_cancel {
        return Err(Problem(error.clone()));
    }
    book.cancelled.push(id.clone());
    if book.outgoing.contains_key(&id) || book.incoming.contains_key(&id) { Ok(Json(())) } else { Err(unknown(id)) }
}
