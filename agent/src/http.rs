//! The agent's HTTP API. Only controllers and operators are served; what they may ask is in `vmotion_api::AgentClient`.

use crate::{
    console,
    process::{Command, ControlClient},
    service::Shared,
};
use axum::{
    Router,
    body::{Body, Bytes},
    extract::{ConnectInfo, DefaultBodyLimit, Path, Query, Request, State},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
    routing::{delete, get, post, put},
};
use std::sync::Arc;
use vmotion_api::{
    Caller, ConsoleQuery, HostReport, IncomingReady, IncomingRequest, Json, MoveReport, OutgoingRequest, Problem,
    SnapshotRequest, StartRequest,
};
use vmotion_model::{ApiError, ErrorCode, MachineName, MachineStatus, MoveId};
use vmotion_transport::Principal;

type Answer<T> = Result<Json<T>, Problem>;
type App = State<Arc<Shared>>;

/// Longest request body, in bytes.
const BODY_BYTES_MAX: usize = 1 << 20;

pub(crate) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/v1/host", get(host))
        .route("/v1/machines", get(machines))
        .route("/v1/machines/{name}", get(machine).put(start).delete(remove))
        .route("/v1/machines/{name}/stop", post(stop))
        .route("/v1/machines/{name}/snapshot", post(snapshot))
        .route("/v1/machines/{name}/incoming", put(incoming))
        .route("/v1/machines/{name}/outgoing", put(outgoing))
        .route("/v1/machines/{name}/moves/{id}", get(report))
        .route("/v1/machines/{name}/moves/{id}", delete(cancel))
        .route("/v1/machines/{name}/console", get(console_output).post(console_input))
        .layer(middleware::from_fn(authorise))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(shared)
}

/// Hosts have no business with each other's agents: machine processes talk by ticket.
async fn authorise(ConnectInfo(caller): ConnectInfo<Caller>, request: Request, next: Next) -> Response {
    match &caller.principal {
        Some(Principal::Controller(_) | Principal::Operator(_)) => next.run(request).await,
        other => {
            let who = other.as_ref().map_or_else(|| "nobody known".to_owned(), ToString::to_string);
            let message = format!("The certificate is for {who}; an agent serves controllers and operators");
            Problem(ApiError::new(ErrorCode::Forbidden, message)).into_response()
        }
    }
}

fn name_of(text: &str) -> Result<MachineName, Problem> {
    text.parse()
        .map_err(|error: vmotion_model::NameError| Problem(ApiError::new(ErrorCode::Invalid, error.to_string())))
}

fn move_of(text: &str) -> Result<MoveId, Problem> {
    text.parse().map_err(|error: String| Problem(ApiError::new(ErrorCode::Invalid, error)))
}

fn same_name(path: &str, body: &MachineName) -> Result<(), Problem> {
    if path == body.as_str() {
        return Ok(());
    }
    let message = format!("name: the path says {path:?}, the body {:?}", body.as_str());
    Err(Problem(ApiError::new(ErrorCode::Invalid, message)))
}

async fn host(State(shared): App) -> Json<HostReport> {
    let machines = shared.supervisor.machines().await;
    Json(shared.report(&machines))
}

async fn machines(State(shared): App) -> Json<Vec<MachineStatus>> {
    Json(shared.supervisor.machines().await)
}

async fn machine(State(shared): App, Path(name): Path<String>) -> Answer<MachineStatus> {
    Ok(Json(shared.supervisor.known(&name_of(&name)?).await?))
}

async fn start(
    State(shared): App,
    Path(name): Path<String>,
    Json(request): Json<StartRequest>,
) -> Answer<MachineStatus> {
    same_name(&name, &request.spec.name)?;
    Ok(Json(shared.supervisor.start(request).await?))
}

async fn remove(State(shared): App, Path(name): Path<String>) -> Answer<()> {
    shared.supervisor.remove(&name_of(&name)?).await?;
    Ok(Json(()))
}

async fn stop(State(shared): App, Path(name): Path<String>) -> Answer<MachineStatus> {
    Ok(Json(shared.supervisor.stop(&name_of(&name)?).await?))
}

async fn snapshot(State(shared): App, Path(name): Path<String>, Json(request): Json<SnapshotRequest>) -> Answer<()> {
    let name = name_of(&name)?;
    if !request.directory.is_absolute() {
        let message = format!("directory {:?} is not valid: use an absolute path on the host", request.directory);
        return Err(Problem(ApiError::new(ErrorCode::Invalid, message)));
    }
    shared.supervisor.known(&name).await?;
    let client = ControlClient::new(&shared.supervisor.directory(&name));
    client.ask::<()>(&Command::Snapshot(request.directory)).await?;
    Ok(Json(()))
}

async fn incoming(
    State(shared): App,
    Path(name): Path<String>,
    Json(request): Json<IncomingRequest>,
) -> Answer<IncomingReady> {
    same_name(&name, &request.spec.name)?;
    Ok(Json(shared.supervisor.incoming(request).await?))
}

async fn outgoing(
    State(shared): App,
    Path(name): Path<String>,
    Json(request): Json<OutgoingRequest>,
) -> Answer<MoveReport> {
    same_name(&name, &request.record.machine)?;
    Ok(Json(shared.supervisor.outgoing(&name_of(&name)?, request).await?))
}

async fn report(State(shared): App, Path((name, id)): Path<(String, String)>) -> Answer<MoveReport> {
    Ok(Json(shared.supervisor.report(&name_of(&name)?, &move_of(&id)?).await?))
}

async fn cancel(State(shared): App, Path((name, id)): Path<(String, String)>) -> Answer<()> {
    shared.supervisor.cancel(&name_of(&name)?, &move_of(&id)?).await?;
    Ok(Json(()))
}

async fn console_output(
    State(shared): App,
    Path(name): Path<String>,
    Query(query): Query<ConsoleQuery>,
) -> Result<Response, Problem> {
    let directory = shared.supervisor.directory(&name_of(&name)?);
    let (offset, stream) = console::stream(directory, query).await?;
    let headers = [("x-offset", offset.to_string()), ("content-type", "application/octet-stream".to_owned())];
    Ok((headers, Body::from_stream(stream)).into_response())
}

async fn console_input(State(shared): App, Path(name): Path<String>, bytes: Bytes) -> Answer<()> {
    let name = name_of(&name)?;
    shared.supervisor.known(&name).await?;
    let client = ControlClient::new(&shared.supervisor.directory(&name));
    client.ask::<()>(&Command::Input(bytes.to_vec())).await?;
    Ok(Json(()))
}
