//! `/v1/moves`

use super::{
    access::{Named, Operator, Viewer},
    to_the_end,
};
use crate::{
    app::App,
    moves::{self, Asked},
    once::Once,
};
use axum::{
    extract::State,
    http::HeaderMap,
    response::{
        IntoResponse as _, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures::{Stream, StreamExt as _, stream};
use std::sync::Arc;
use tokio::sync::watch;
use vmotion_api::{Json, MoveCommand, Operation, Problem};
use vmotion_model::{Accuracy, ApiError, MoveId, MoveLimit};

/// All moves, oldest first
#[utoipa::path(get, path = "/v1/moves", tag = "moves",
    responses((status = 200, description = "All moves", body = Vec<Operation>), (status = "default", description = "What went wrong", body = ApiError)))]
pub(super) async fn list(_: Viewer, State(app): State<Arc<App>>) -> Result<Json<Vec<Operation>>, Problem> {
    Ok(Json(moves::list(&app).await?))
}

/// One move
#[utoipa::path(get, path = "/v1/moves/{id}", tag = "moves", params(("id" = String, Path, description = "Move")),
    responses((status = 200, description = "The move", body = Operation), (status = "default", description = "What went wrong", body = ApiError)))]
pub(super) async fn show(
    _: Viewer,
    State(app): State<Arc<App>>,
    Named(id): Named<MoveId>,
) -> Result<Json<Operation>, Problem> {
    Ok(Json(moves::find(&app, &id).await?))
}

/// Begins a move; with `dry_run`, answers only where it would go and why (a `Placement`)
#[utoipa::path(post, path = "/v1/moves", tag = "moves", request_body = MoveCommand,
    params(("idempotency-key" = Option<String>, Header, description = "The same key with the same request has one effect")),
    responses((status = 200, description = "The move, begun", body = Operation), (status = "default", description = "What went wrong", body = ApiError)))]
pub(super) async fn start(
    Operator(caller): Operator,
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    Json(command): Json<MoveCommand>,
) -> Result<Response, Problem> {
    if command.dry_run {
        return Ok(Json(moves::place(&app, &command).await?).into_response());
    }
    let once = Once::new(&headers, "once-move/", &command)?;
    let operation =
        to_the_end(async move { moves::start(&app, command, Asked::by_operator(caller), once).await }).await?;
    Ok(Json(operation).into_response())
}

/// How far forecasts were off, in the moves that are remembered
#[utoipa::path(get, path = "/v1/moves/accuracy", tag = "moves",
    responses((status = 200, description = "Relative errors", body = Accuracy), (status = "default", description = "What went wrong", body = ApiError)))]
pub(super) async fn accuracy(_: Viewer, State(app): State<Arc<App>>) -> Result<Json<Accuracy>, Problem> {
    Ok(Json(moves::accuracy(&app).await?))
}

/// Changes the limits of a move that goes on
#[utoipa::path(patch, path = "/v1/moves/{id}", tag = "moves", request_body = MoveLimit, params(("id" = String, Path, description = "Move")),
    responses((status = 200, description = "The move, with its new limits", body = Operation), (status = "default", description = "What went wrong", body = ApiError)))]
pub(super) async fn limit(
    _: Operator,
    State(app): State<Arc<App>>,
    Named(id): Named<MoveId>,
    Json(limit): Json<MoveLimit>,
) -> Result<Json<Operation>, Problem> {
    Ok(Json(to_the_end(async move { moves::limit(&app, &id, limit).await }).await?))
}

/// Cancels a move; one that is deciding already can no longer be cancelled
#[utoipa::path(delete, path = "/v1/moves/{id}", tag = "moves", params(("id" = String, Path, description = "Move")),
    responses((status = 200, description = "The move, cancelled or on its way to be", body = Operation), (status = "default", description = "What went wrong", body = ApiError)))]
pub(super) async fn cancel(
    _: Operator,
    State(app): State<Arc<App>>,
    Named(id): Named<MoveId>,
) -> Result<Json<Operation>, Problem> {
    Ok(Json(to_the_end(async move { moves::cancel(&app, &id).await }).await?))
}

/// A move's events: each `data:` is the whole move as it is then; the last one has an outcome
#[utoipa::path(get, path = "/v1/moves/{id}/events", tag = "moves", params(("id" = String, Path, description = "Move")),
    responses((status = 200, description = "Server-sent events", content_type = "text/event-stream", body = Operation), (status = "default", description = "What went wrong", body = ApiError)))]
pub(super) async fn events(
    _: Viewer,
    State(app): State<Arc<App>>,
    Named(id): Named<MoveId>,
) -> Result<Response, Problem> {
    let operations = match moves::follow(&app, &id) {
        Some(live) => following(live).left_stream(),
        None => {
            let finished = moves::find(&app, &id).await?;
            stream::once(async move { finished }).right_stream()
        }
    };
    let events = operations.map(|operation| Event::default().json_data(operation));
    let until_stopped = events.take_until(Box::pin(app.stopped()));
    Ok(Sse::new(until_stopped).keep_alive(KeepAlive::default()).into_response())
}

/// The current one, and then the latest whenever the reader is ready for it: a slow reader skips, and costs no memory.
fn following(mut live: watch::Receiver<Operation>) -> impl Stream<Item = Operation> + Send {
    live.mark_changed();
    stream::unfold(Some(live), |live| async move {
        let mut live = live?;
        live.changed().await.ok()?;
        let operation = live.borrow_and_update().clone();
        let rest = operation.outcome.is_none().then_some(live);
        Some((operation, rest))
    })
}
