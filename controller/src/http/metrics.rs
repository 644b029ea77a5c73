//! `/metrics`

use super::access::Viewer;
use crate::{app::App, metrics};
use axum::{
    extract::State,
    http::header::CONTENT_TYPE,
    response::{IntoResponse as _, Response},
};
use std::sync::Arc;
use vmotion_api::Problem;
use vmotion_model::ApiError;

/// What a monitoring system reads, in the OpenMetrics text format
#[utoipa::path(get, path = "/metrics", tag = "about",
    responses((status = 200, description = "Metrics", content_type = "application/openmetrics-text", body = String), (status = "default", description = "What went wrong", body = ApiError)))]
pub(super) async fn read(_: Viewer, State(app): State<Arc<App>>) -> Result<Response, Problem> {
    Ok(([(CONTENT_TYPE, metrics::CONTENT)], metrics::text(&app).await?).into_response())
}
