//! The agent's HTTP API: one table of routes. Only controllers and admins are served: orders go through a controller, which writes down whose they are; what they may ask is in
//! `vmotion_api::AgentClient`.

mod openapi;

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
    routing::{MethodRouter, get, post, put},
};
use std::sync::Arc;
use vmotion_api::{
    Caller, ConsoleQuery, HostReport, IncomingReady, IncomingRequest, Json, MoveReport, OutgoingRequest, PartAnswer,
    PartOrder, PartReady, PartRequest, PartState, Problem, SnapshotRequest, StartRequest,
};
use vmotion_model::{ApiError, ErrorCode, MachineName, MachineStatus, MoveId, MoveLimit};
use vmotion_transport::Principal;

type Answer<T> = Result<Json<T>, Problem>;
type App = State<Arc<Shared>>;

/// Longest request body, in bytes.
const BODY_BYTES_MAX: usize = 1 << 20;

/// A path, the methods it has, and their handlers.
type Route = (&'static str, &'static [&'static str], MethodRouter<Arc<Shared>>);

/// Every route.
fn routes() -> Vec<Route> {
    vec![
        ("/v1/host", &["get"], get(host)),
        ("/v1/machines", &["get"], get(machines)),
        ("/v1/machines/{name}", &["get", "put", "delete"], get(machine).put(start).delete(remove)),
        ("/v1/machines/{name}/stop", &["post"], post(stop)),
        ("/v1/machines/{name}/snapshot", &["post"], post(snapshot)),
        ("/v1/machines/{name}/part", &["get", "put"], get(part_state).put(part)),
        ("/v1/machines/{name}/part/orders", &["post"], post(order)),
        ("/v1/machines/{name}/incoming", &["put"], put(incoming)),
        ("/v1/machines/{name}/outgoing", &["put"], put(outgoing)),
        ("/v1/machines/{name}/moves/{id}", &["get", "patch", "delete"], get(report).patch(limit).delete(cancel)),
        ("/v1/machines/{name}/console", &["get", "post"], get(console_output).post(console_input)),
        ("/v1/openapi.json", &["get"], get(openapi::document)),
    ]
}

/// The whole API.
pub(crate) fn router(shared: Arc<Shared>) -> Router {
    let add = |router: Router<Arc<Shared>>, (path, _, handlers): Route| router.route(path, handlers);
    routes()
        .into_iter()
        .fold(Router::new(), add)
        .layer(middleware::from_fn(authorise))
        .layer(middleware::from_fn(vmotion_api::adopt_trace))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(shared)
}

/// Hosts have no business with each other's agents: machine processes talk by ticket.
async fn authorise(ConnectInfo(caller): ConnectInfo<Caller>, request: Request, next: Next) -> Response {
    match &caller.principal {
        Some(Principal::Controller(_) | Principal::Admin(_)) => next.run(request).await,
        other => {
            let who = other.as_ref().map_or_else(|| "nobody known".to_owned(), ToString::to_string);
            let message =
                format!("The certificate is for {who}; an agent serves controllers, and admins where there is none");
            Problem(ApiError::new(ErrorCode::Forbidden, message)).into_response()
        }
    }
}

/// Runs what must not stop half-way when the caller hangs up: a controller that restarts asks again, and finds all of it or nothing.
async fn to_the_end<T: Send + 'static>(work: impl Future<Output = Result<T, ApiError>> + Send + 'static) -> Answer<T> {
    match vmotion_api::spawn_traced(work).await {
        Ok(answer) => Ok(Json(answer?)),
        Err(error) => {
            Err(Problem(ApiError::new(ErrorCode::Internal, format!("The request was not finished: {error}"))))
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

/// What this host is
#[utoipa::path(get, path = "/v1/host", tag = "host",
    responses((status = 200, description = "The host", body = HostReport), (status = "default", description = "What went wrong", body = ApiError)))]
async fn host(State(shared): App) -> Json<HostReport> {
    let machines = shared.supervisor.machines().await;
    Json(shared.report(&machines))
}

/// Every machine this host knows
#[utoipa::path(get, path = "/v1/machines", tag = "machines",
    responses((status = 200, description = "All machines", body = Vec<MachineStatus>), (status = "default", description = "What went wrong", body = ApiError)))]
async fn machines(State(shared): App) -> Json<Vec<MachineStatus>> {
    Json(shared.supervisor.machines().await)
}

/// One machine
#[utoipa::path(get, path = "/v1/machines/{name}", tag = "machines", params(("name" = String, Path, description = "Machine")),
    responses((status = 200, description = "The machine", body = MachineStatus), (status = "default", description = "What went wrong", body = ApiError)))]
async fn machine(State(shared): App, Path(name): Path<String>) -> Answer<MachineStatus> {
    Ok(Json(shared.supervisor.known(&name_of(&name)?).await?))
}

/// Runs a machine here; the same request again changes nothing
#[utoipa::path(put, path = "/v1/machines/{name}", tag = "machines", params(("name" = String, Path, description = "Machine")), request_body = StartRequest,
    responses((status = 200, description = "The machine", body = MachineStatus), (status = "default", description = "What went wrong", body = ApiError)))]
async fn start(
    State(shared): App,
    Path(name): Path<String>,
    Json(request): Json<StartRequest>,
) -> Answer<MachineStatus> {
    same_name(&name, &request.spec.name)?;
    to_the_end(async move { shared.supervisor.start(request).await }).await
}

/// Removes what is here of a machine that does not run here
#[utoipa::path(delete, path = "/v1/machines/{name}", tag = "machines", params(("name" = String, Path, description = "Machine")),
    responses((status = 200, description = "Removed"), (status = "default", description = "What went wrong", body = ApiError)))]
async fn remove(State(shared): App, Path(name): Path<String>) -> Answer<()> {
    let name = name_of(&name)?;
    to_the_end(async move { shared.supervisor.remove(&name).await }).await
}

/// Stops a machine; its files stay
#[utoipa::path(post, path = "/v1/machines/{name}/stop", tag = "machines", params(("name" = String, Path, description = "Machine")),
    responses((status = 200, description = "The machine", body = MachineStatus), (status = "default", description = "What went wrong", body = ApiError)))]
async fn stop(State(shared): App, Path(name): Path<String>) -> Answer<MachineStatus> {
    Ok(Json(shared.supervisor.stop(&name_of(&name)?).await?))
}

/// Saves a machine to a directory on this host; it goes on running
#[utoipa::path(post, path = "/v1/machines/{name}/snapshot", tag = "machines", params(("name" = String, Path, description = "Machine")), request_body = SnapshotRequest,
    responses((status = 200, description = "Saved"), (status = "default", description = "What went wrong", body = ApiError)))]
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

/// Prepares a part of a machine that spans several hosts; the same request again changes nothing
#[utoipa::path(put, path = "/v1/machines/{name}/part", tag = "machines", params(("name" = String, Path, description = "Machine")), request_body = PartRequest,
    responses((status = 200, description = "Prepared", body = PartReady), (status = "default", description = "What went wrong", body = ApiError)))]
async fn part(State(shared): App, Path(name): Path<String>, Json(request): Json<PartRequest>) -> Answer<PartReady> {
    same_name(&name, &request.spec.name)?;
    to_the_end(async move { shared.supervisor.part(request).await }).await
}

/// The part of a machine that is here, and what it did lately
#[utoipa::path(get, path = "/v1/machines/{name}/part", tag = "machines", params(("name" = String, Path, description = "Machine")),
    responses((status = 200, description = "The part", body = PartState), (status = "default", description = "What went wrong", body = ApiError)))]
async fn part_state(State(shared): App, Path(name): Path<String>) -> Answer<PartState> {
    Ok(Json(shared.supervisor.part_state(&name_of(&name)?).await?))
}

/// Has the part of a machine that is here do something: join the others, run, give a piece away
#[utoipa::path(post, path = "/v1/machines/{name}/part/orders", tag = "machines", params(("name" = String, Path, description = "Machine")), request_body = PartOrder,
    responses((status = 200, description = "Done", body = PartAnswer), (status = "default", description = "What went wrong", body = ApiError)))]
async fn order(State(shared): App, Path(name): Path<String>, Json(order): Json<PartOrder>) -> Answer<PartAnswer> {
    Ok(Json(shared.supervisor.order(&name_of(&name)?, order).await?))
}

/// Prepares to receive a machine; the same move again changes nothing
#[utoipa::path(put, path = "/v1/machines/{name}/incoming", tag = "machines", params(("name" = String, Path, description = "Machine")), request_body = IncomingRequest,
    responses((status = 200, description = "Prepared", body = IncomingReady), (status = "default", description = "What went wrong", body = ApiError)))]
async fn incoming(
    State(shared): App,
    Path(name): Path<String>,
    Json(request): Json<IncomingRequest>,
) -> Answer<IncomingReady> {
    same_name(&name, &request.spec.name)?;
    to_the_end(async move { shared.supervisor.incoming(request).await }).await
}

/// Moves a machine away; the same move again changes nothing
#[utoipa::path(put, path = "/v1/machines/{name}/outgoing", tag = "machines", params(("name" = String, Path, description = "Machine")), request_body = OutgoingRequest,
    responses((status = 200, description = "How it goes", body = MoveReport), (status = "default", description = "What went wrong", body = ApiError)))]
async fn outgoing(
    State(shared): App,
    Path(name): Path<String>,
    Json(request): Json<OutgoingRequest>,
) -> Answer<MoveReport> {
    same_name(&name, &request.record.machine)?;
    Ok(Json(shared.supervisor.outgoing(&name_of(&name)?, request).await?))
}

/// How a move away from here goes or went
#[utoipa::path(get, path = "/v1/machines/{name}/moves/{id}", tag = "machines", params(("name" = String, Path, description = "Machine"), ("id" = String, Path, description = "Move")),
    responses((status = 200, description = "How it goes", body = MoveReport), (status = "default", description = "What went wrong", body = ApiError)))]
async fn report(State(shared): App, Path((name, id)): Path<(String, String)>) -> Answer<MoveReport> {
    Ok(Json(shared.supervisor.report(&name_of(&name)?, &move_of(&id)?).await?))
}

/// Changes the limits of a move away from here that goes on
#[utoipa::path(patch, path = "/v1/machines/{name}/moves/{id}", tag = "machines", request_body = MoveLimit, params(("name" = String, Path, description = "Machine"), ("id" = String, Path, description = "Move")),
    responses((status = 200, description = "Changed"), (status = "default", description = "What went wrong", body = ApiError)))]
async fn limit(
    State(shared): App,
    Path((name, id)): Path<(String, String)>,
    Json(limit): Json<MoveLimit>,
) -> Answer<()> {
    shared.supervisor.limit(&name_of(&name)?, &move_of(&id)?, limit).await?;
    Ok(Json(()))
}

/// Cancels a move away from or to here; one that is deciding already can no longer be cancelled
#[utoipa::path(delete, path = "/v1/machines/{name}/moves/{id}", tag = "machines", params(("name" = String, Path, description = "Machine"), ("id" = String, Path, description = "Move")),
    responses((status = 200, description = "Asked to stop"), (status = "default", description = "What went wrong", body = ApiError)))]
async fn cancel(State(shared): App, Path((name, id)): Path<(String, String)>) -> Answer<()> {
    shared.supervisor.cancel(&name_of(&name)?, &move_of(&id)?).await?;
    Ok(Json(()))
}

/// Console output from an offset; `x-offset` tells what the first byte is
#[utoipa::path(get, path = "/v1/machines/{name}/console", tag = "machines", params(("name" = String, Path, description = "Machine"), 
        ("offset" = Option<u64>, Query, description = "First byte wanted; all that is kept without it"), 
        ("follow" = Option<bool>, Query, description = "Go on with what comes, until the machine leaves or stops")),
    responses((status = 200, description = "Bytes as the machine wrote them", content_type = "application/octet-stream", body = Vec<u8>), (status = "default", description = "What went wrong", body = ApiError)))]
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

/// Types into the console
#[utoipa::path(post, path = "/v1/machines/{name}/console", tag = "machines", params(("name" = String, Path, description = "Machine")), 
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, description = "Typed"), (status = "default", description = "What went wrong", body = ApiError)))]
async fn console_input(State(shared): App, Path(name): Path<String>, bytes: Bytes) -> Answer<()> {
    let name = name_of(&name)?;
    shared.supervisor.known(&name).await?;
    let client = ControlClient::new(&shared.supervisor.directory(&name));
    client.ask::<()>(&Command::Input(bytes.to_vec())).await?;
    Ok(Json(()))
}
