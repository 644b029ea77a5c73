//! `/v1/owners`

use super::access::{Anybody, CallingHost, Named};
use crate::{app::App, owners};
use axum::extract::State;
use std::sync::Arc;
use vmotion_api::{CasRequest, Json, Problem};
use vmotion_model::{MachineName, OwnerRecord};

/// A machine's owner record
#[utoipa::path(get, path = "/v1/owners/{name}", tag = "owners", params(("name" = String, Path, description = "Machine")),
    responses((status = 200, description = "The record", body = OwnerRecord), (status = "default", description = "What went wrong", body = vmotion_model::ApiError)))]
pub(super) async fn show(
    _: Anybody,
    State(app): State<Arc<App>>,
    Named(name): Named<MachineName>,
) -> Result<Json<OwnerRecord>, Problem> {
    Ok(Json(owners::find(&app, &name).await?))
}

/// Compare-and-set of an owner record, by a host for itself; answered with the record as it is afterwards
#[utoipa::path(post, path = "/v1/owners/{name}/cas", tag = "owners", params(("name" = String, Path, description = "Machine")), request_body = CasRequest,
    responses((status = 200, description = "The record as it is afterwards: compare it with the wanted one", body = OwnerRecord), (status = "default", description = "What went wrong", body = vmotion_model::ApiError)))]
pub(super) async fn compare_and_set(
    CallingHost(host): CallingHost,
    State(app): State<Arc<App>>,
    Named(name): Named<MachineName>,
    Json(request): Json<CasRequest>,
) -> Result<Json<OwnerRecord>, Problem> {
    Ok(Json(owners::compare_and_set(&app, &host, &name, &request).await?))
}
