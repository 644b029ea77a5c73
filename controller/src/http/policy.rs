//! `/v1/site`, `/v1/policy`, `/v1/plans` and what makes plans.

use super::{
    access::{Admin, Named, Operator, Viewer},
    to_the_end,
};
use crate::{app::App, declared, drains, plans, questions, undo as undoing};
use axum::{
    extract::{Query, State},
    response::{IntoResponse as _, Response},
};
use serde::Deserialize;
use std::sync::Arc;
use vmotion_api::{
    Applied, ApplyRequest, DrainRequest, HostUse, Json, PlanId, PlanView, PolicyChange, PolicyView, Problem,
    RebalanceRequest, SiteView, UndoRequest,
};
use vmotion_model::{ApiError, Explanation, HostName, MachineName, PieceName, Subject, Supposed, WhatIf};

/// What is declared, and what of it is not so yet
#[utoipa::path(get, path = "/v1/site", tag = "site",
    responses((status = 200, description = "The model", body = SiteView), (status = "default", description = "What went wrong", body = ApiError)))]
pub(super) async fn site(_: Viewer, State(app): State<Arc<App>>) -> Result<Json<SiteView>, Problem> {
    Ok(Json(declared::view(&app).await?))
}

/// Declares a model; with `dry_run`, or with rules that contradict each other, answers only what would change
#[utoipa::path(put, path = "/v1/site", tag = "site", request_body = ApplyRequest,
    responses((status = 200, description = "What changed", body = Applied), (status = "default", description = "What went wrong", body = ApiError)))]
pub(super) async fn apply(
    _: Admin,
    State(app): State<Arc<App>>,
    Json(request): Json<ApplyRequest>,
) -> Result<Json<Applied>, Problem> {
    Ok(Json(to_the_end(async move { declared::apply(&app, request).await }).await?))
}

/// The policy, and what it is doing
#[utoipa::path(get, path = "/v1/policy", tag = "policy",
    responses((status = 200, description = "The policy", body = PolicyView), (status = "default", description = "What went wrong", body = ApiError)))]
pub(super) async fn show(_: Viewer, State(app): State<Arc<App>>) -> Result<Json<PolicyView>, Problem> {
    Ok(Json(questions::policy(&app).await?))
}

/// Changes how the policy is to act; what is absent stays
#[utoipa::path(patch, path = "/v1/policy", tag = "policy", request_body = PolicyChange,
    responses((status = 200, description = "The policy", body = PolicyView), (status = "default", description = "What went wrong", body = ApiError)))]
pub(super) async fn set(
    _: Admin,
    State(app): State<Arc<App>>,
    Json(change): Json<PolicyChange>,
) -> Result<Json<PolicyView>, Problem> {
    declared::set_policy(&app, change).await?;
    app.look.notify_one();
    Ok(Json(questions::policy(&app).await?))
}

/// Moves everything where it belongs; with `dry_run`, answers only what would be moved and why (a `Plan`)
#[utoipa::path(post, path = "/v1/rebalance", tag = "policy", request_body = RebalanceRequest,
    responses((status = 200, description = "The plan, begun", body = PlanView), (status = "default", description = "What went wrong", body = ApiError)))]
pub(super) async fn rebalance(
    Operator(caller): Operator,
    State(app): State<Arc<App>>,
    Json(request): Json<RebalanceRequest>,
) -> Result<Response, Problem> {
    if request.dry_run {
        return Ok(Json(plans::foresee_rebalance(&app).await?).into_response());
    }
    let view = to_the_end(async move { plans::rebalance(&app, caller).await }).await?;
    Ok(Json(view).into_response())
}

/// What the policy would do with other hosts and other demand; nothing is done
#[utoipa::path(post, path = "/v1/what-if", tag = "policy", request_body = WhatIf,
    responses((status = 200, description = "What would be", body = Supposed), (status = "default", description = "What went wrong", body = ApiError)))]
pub(super) async fn what_if(
    _: Viewer,
    State(app): State<Arc<App>>,
    Json(request): Json<WhatIf>,
) -> Result<Json<Supposed>, Problem> {
    Ok(Json(questions::what_if(&app, request).await?))
}

/// Empties a host; with `dry_run`, answers only what would be moved and until when (a `Plan`)
#[utoipa::path(post, path = "/v1/hosts/{name}/drain", tag = "hosts", request_body = DrainRequest, params(("name" = String, Path, description = "Host")),
    responses((status = 200, description = "The plan, begun", body = PlanView), (status = "default", description = "What went wrong", body = ApiError)))]
pub(super) async fn drain(
    Operator(caller): Operator,
    State(app): State<Arc<App>>,
    Named(name): Named<HostName>,
    Json(request): Json<DrainRequest>,
) -> Result<Response, Problem> {
    if request.dry_run {
        return Ok(Json(drains::foresee(&app, &name, &request).await?).into_response());
    }
    let view = to_the_end(async move { drains::begin(&app, &name, &request, caller).await }).await?;
    Ok(Json(view).into_response())
}

/// Plans, oldest first
#[utoipa::path(get, path = "/v1/plans", tag = "policy",
    responses((status = 200, description = "All that are remembered", body = Vec<PlanView>), (status = "default", description = "What went wrong", body = ApiError)))]
pub(super) async fn plans(_: Viewer, State(app): State<Arc<App>>) -> Result<Json<Vec<PlanView>>, Problem> {
    Ok(Json(plans::list(&app).await?))
}

/// One plan
#[utoipa::path(get, path = "/v1/plans/{id}", tag = "policy", params(("id" = String, Path, description = "Plan")),
    responses((status = 200, description = "The plan", body = PlanView), (status = "default", description = "What went wrong", body = ApiError)))]
pub(super) async fn plan(
    _: Viewer,
    State(app): State<Arc<App>>,
    Named(id): Named<PlanId>,
) -> Result<Json<PlanView>, Problem> {
    Ok(Json(plans::find(&app, &id).await?))
}

/// Begins no more steps of a plan; moves that have begun go on
#[utoipa::path(delete, path = "/v1/plans/{id}", tag = "policy", params(("id" = String, Path, description = "Plan")),
    responses((status = 200, description = "The plan", body = PlanView), (status = "default", description = "What went wrong", body = ApiError)))]
pub(super) async fn cancel(
    _: Operator,
    State(app): State<Arc<App>>,
    Named(id): Named<PlanId>,
) -> Result<Json<PlanView>, Problem> {
    Ok(Json(plans::cancel(&app, &id).await?))
}

/// Moves what a plan has moved back to where it was; with `dry_run`, answers only what would be moved back and what cannot be (a `Plan`)
#[utoipa::path(post, path = "/v1/plans/{id}/undo", tag = "policy", request_body = UndoRequest, params(("id" = String, Path, description = "Plan")),
    responses((status = 200, description = "The plan, begun", body = PlanView), (status = "default", description = "What went wrong", body = ApiError)))]
pub(super) async fn undo(
    Operator(caller): Operator,
    State(app): State<Arc<App>>,
    Named(id): Named<PlanId>,
    Json(request): Json<UndoRequest>,
) -> Result<Response, Problem> {
    if request.dry_run {
        return Ok(Json(undoing::foresee(&app, &id, &request).await?).into_response());
    }
    let view = to_the_end(async move { undoing::begin(&app, &id, &request, caller).await }).await?;
    Ok(Json(view).into_response())
}

/// What hosts and machines use, as their agents measured it last
#[utoipa::path(get, path = "/v1/usage", tag = "hosts",
    responses((status = 200, description = "By host", body = Vec<HostUse>), (status = "default", description = "What went wrong", body = ApiError)))]
pub(super) async fn usage(_: Viewer, State(app): State<Arc<App>>) -> Json<Vec<HostUse>> {
    Json(app.telemetry.all())
}

/// Which host is asked about.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct About {
    /// `None` for the one it is on.
    host: Option<HostName>,
    /// Of a machine that spans several hosts.
    piece: Option<PieceName>,
}

/// Why a machine is where it is; with `host`, why it is not there
#[utoipa::path(get, path = "/v1/machines/{name}/why", tag = "machines",
    params(("name" = String, Path, description = "Machine"), ("host" = Option<String>, Query, description = "Why not there"),
        ("piece" = Option<String>, Query, description = "Of a machine that spans several hosts")),
    responses((status = 200, description = "In numbers, rule by rule", body = Explanation), (status = "default", description = "What went wrong", body = ApiError)))]
pub(super) async fn why(
    _: Viewer,
    State(app): State<Arc<App>>,
    Named(name): Named<MachineName>,
    Query(About { host, piece }): Query<About>,
) -> Result<Json<Explanation>, Problem> {
    Ok(Json(questions::why(&app, Subject { machine: name, piece }, host).await?))
}
