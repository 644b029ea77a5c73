//! `/v1/machines/{name}/console`: passed through from and to the agent of the owning host, piece by piece.

use super::access::{Named, Operator};
use crate::{app::App, machines};
use axum::{
    body::{Body, Bytes},
    extract::{Query, State, rejection::QueryRejection},
    http::header,
    response::{IntoResponse as _, Response},
};
use futures::StreamExt as _;
use std::sync::Arc;
use vmotion_api::{ClientError, ConsoleQuery, Json, Problem};
use vmotion_model::{ApiError, MachineName};

/// Console output from an offset; `x-offset` tells what the first byte is
#[utoipa::path(get, path = "/v1/machines/{name}/console", tag = "machines",
    params(("name" = String, Path, description = "Machine"),
        ("offset" = Option<u64>, Query, description = "First byte wanted; all that is kept without it"),
        ("follow" = Option<bool>, Query, description = "Go on with what comes, until the machine leaves its host or stops")),
    responses((status = 200, description = "Bytes as the machine wrote them", content_type = "application/octet-stream", body = Vec<u8>), (status = "default", description = "What went wrong", body = ApiError)))]
pub(super) async fn read(
    _: Operator,
    State(app): State<Arc<App>>,
    Named(name): Named<MachineName>,
    query: Result<Query<ConsoleQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(query) = query.map_err(|error| crate::error::invalid(error.body_text()))?;
    let host = machines::view(&app, &name).await?.host;
    let (offset, stream) = app.agent(&host)?.console(&name, query).await.map_err(ClientError::into_api_error)?;
    // The agent is read only as fast as the caller reads us.
    let body = Body::from_stream(stream.take_until(Box::pin(app.stopped())));
    let headers =
        [("x-offset", offset.to_string()), (header::CONTENT_TYPE.as_str(), "application/octet-stream".to_owned())];
    Ok((headers, body).into_response())
}

/// Types into the console
#[utoipa::path(post, path = "/v1/machines/{name}/console", tag = "machines", params(("name" = String, Path, description = "Machine")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, description = "Typed"), (status = "default", description = "What went wrong", body = ApiError)))]
pub(super) async fn write(
    _: Operator,
    State(app): State<Arc<App>>,
    Named(name): Named<MachineName>,
    bytes: Bytes,
) -> Result<Json<()>, Problem> {
    let host = machines::view(&app, &name).await?.host;
    app.agent(&host)?.console_input(&name, bytes).await.map_err(ClientError::into_api_error)?;
    Ok(Json(()))
}
