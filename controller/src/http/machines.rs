//! `/v1/machines`

use super::{
    access::{CallingHost, Named, Operator, Viewer},
    to_the_end,
};
use crate::{app::App, machines, moves::Asked, once::Once, shape};
use axum::{
    extract::State,
    http::HeaderMap,
    response::{IntoResponse as _, Response},
};
use std::sync::Arc;
use vmotion_api::{
    ClaimRequest, Claimed, ClientError, CreateRequest, Json, MachineView, Operation, Problem, ShapeRequest,
    SnapshotRequest, SpanView,
};
use vmotion_model::{ApiError, MachineName};

/// All machines, by name
#[utoipa::path(get, path = "/v1/machines", tag = "machines",
    responses((status = 200, description = "All machines", body = Vec<MachineView>), (status = "default", description = "What went wrong", body = ApiError)))]
pub(super) async fn list(_: Viewer, State(app): State<Arc<App>>) -> Result<Json<Vec<MachineView>>, Problem> {
    Ok(Json(machines::list(&app).await?))
}

/// One machine
#[utoipa::path(get, path = "/v1/machines/{name}", tag = "machines", params(("name" = String, Path, description = "Machine")),
    responses((status = 200, description = "The machine", body = MachineView), (status = "default", description = "What went wrong", body = ApiError)))]
pub(super) async fn show(
    _: Viewer,
    State(app): State<Arc<App>>,
    Named(name): Named<MachineName>,
) -> Result<Json<MachineView>, Problem> {
    Ok(Json(machines::view(&app, &name).await?))
}

/// Creates a machine; with `dry_run`, answers only where it would go and why (a `Placement`)
#[utoipa::path(post, path = "/v1/machines", tag = "machines", request_body = CreateRequest,
    params(("idempotency-key" = Option<String>, Header, description = "The same key with the same request has one effect")),
    responses((status = 200, description = "The machine", body = MachineView), (status = "default", description = "What went wrong", body = ApiError)))]
pub(super) async fn create(
    _: Operator,
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    Json(request): Json<CreateRequest>,
) -> Result<Response, Problem> {
    if request.dry_run {
        return Ok(Json(machines::place(&app, &request).await?).into_response());
    }
    let once = Once::new(&headers, "once-create/", &request)?;
    let view = to_the_end(async move { machines::create(&app, request, once).await }).await?;
    Ok(Json(view).into_response())
}

/// Stops a machine
#[utoipa::path(post, path = "/v1/machines/{name}/stop", tag = "machines", params(("name" = String, Path, description = "Machine")),
    responses((status = 200, description = "The machine", body = MachineView), (status = "default", description = "What went wrong", body = ApiError)))]
pub(super) async fn stop(
    _: Operator,
    State(app): State<Arc<App>>,
    Named(name): Named<MachineName>,
) -> Result<Json<MachineView>, Problem> {
    Ok(Json(to_the_end(async move { machines::stop(&app, &name).await }).await?))
}

/// Removes a machine that is stopped or has failed
#[utoipa::path(delete, path = "/v1/machines/{name}", tag = "machines", params(("name" = String, Path, description = "Machine")),
    responses((status = 200, description = "Removed"), (status = "default", description = "What went wrong", body = ApiError)))]
pub(super) async fn remove(
    _: Operator,
    State(app): State<Arc<App>>,
    Named(name): Named<MachineName>,
) -> Result<Json<()>, Problem> {
    Ok(Json(to_the_end(async move { machines::remove(&app, &name).await }).await?))
}

/// Saves a machine to a directory on its host; it goes on running
#[utoipa::path(post, path = "/v1/machines/{name}/snapshot", tag = "machines", params(("name" = String, Path, description = "Machine")), request_body = SnapshotRequest,
    responses((status = 200, description = "Saved"), (status = "default", description = "What went wrong", body = ApiError)))]
pub(super) async fn snapshot(
    _: Operator,
    State(app): State<Arc<App>>,
    Named(name): Named<MachineName>,
    Json(request): Json<SnapshotRequest>,
) -> Result<Json<()>, Problem> {
    let host = machines::view(&app, &name).await?.host;
    app.agent(&host)?.snapshot(&name, &request).await.map_err(ClientError::into_api_error)?;
    Ok(Json(()))
}

/// How a machine that spans several hosts gets on: its hosts, who waits for what, and which pieces should be elsewhere
#[utoipa::path(get, path = "/v1/machines/{name}/shape", tag = "machines", params(("name" = String, Path, description = "Machine")),
    responses((status = 200, description = "How it gets on", body = SpanView), (status = "default", description = "What went wrong", body = ApiError)))]
pub(super) async fn shape(
    _: Viewer,
    State(app): State<Arc<App>>,
    Named(name): Named<MachineName>,
) -> Result<Json<SpanView>, Problem> {
    Ok(Json(shape::view(&app, &name).await?))
}

/// Begins to move pieces of a machine that spans several hosts; with `dry_run`, answers only the steps (a `ShapePlan`)
#[utoipa::path(post, path = "/v1/machines/{name}/shape", tag = "machines", request_body = ShapeRequest,
    params(("name" = String, Path, description = "Machine"),
        ("idempotency-key" = Option<String>, Header, description = "The same key with the same request has one effect")),
    responses((status = 200, description = "The move, begun", body = Operation), (status = "default", description = "What went wrong", body = ApiError)))]
pub(super) async fn reshape(
    Operator(caller): Operator,
    State(app): State<Arc<App>>,
    Named(name): Named<MachineName>,
    headers: HeaderMap,
    Json(request): Json<ShapeRequest>,
) -> Result<Response, Problem> {
    if request.dry_run {
        return Ok(Json(shape::foresee(&app, &name, &request.change).await?).into_response());
    }
    let once = Once::new(&headers, "once-shape/", &(&name, &request))?;
    let operation =
        to_the_end(async move { shape::start(&app, &name, request.change, Asked::by_operator(caller), once).await })
            .await?;
    Ok(Json(operation).into_response())
}

/// Claims a piece of a machine, by one of its hosts for itself; answered with who has it
#[utoipa::path(post, path = "/v1/machines/{name}/claims", tag = "machines", params(("name" = String, Path, description = "Machine")), request_body = ClaimRequest,
    responses((status = 200, description = "Who has it: compare it with what was claimed", body = Claimed), (status = "default", description = "What went wrong", body = ApiError)))]
pub(super) async fn claim(
    CallingHost(host): CallingHost,
    State(app): State<Arc<App>>,
    Named(name): Named<MachineName>,
    Json(request): Json<ClaimRequest>,
) -> Result<Json<Claimed>, Problem> {
    Ok(Json(machines::claim(&app, &host, &name, &request).await?))
}
