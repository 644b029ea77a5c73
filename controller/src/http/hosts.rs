//! `/v1/hosts`

use super::access::{CallingHost, Named, Operator, Viewer};
use crate::{
    app::App,
    drains,
    error::{forbidden, invalid, not_found},
    records::{host_key, put},
    store::Transaction,
};
use axum::extract::State;
use std::sync::Arc;
use vmotion_api::{Heartbeat, Json, Problem};
use vmotion_model::{ApiError, Host, HostName};

/// Most machines one host may report.
const MACHINES_MAX: usize = 1024;

/// All hosts, by name
#[utoipa::path(get, path = "/v1/hosts", tag = "hosts",
    responses((status = 200, description = "All hosts", body = Vec<Host>), (status = "default", description = "What went wrong", body = ApiError)))]
pub(super) async fn list(_: Viewer, State(app): State<Arc<App>>) -> Result<Json<Vec<Host>>, Problem> {
    let draining = drains::hosts(&app).await?;
    let mut hosts = app.inventory.hosts();
    hosts.iter_mut().for_each(|host| host.draining = draining.contains(&host.name));
    Ok(Json(hosts))
}

/// A host's sign of life, by the host itself
#[utoipa::path(post, path = "/v1/hosts/{name}/heartbeat", tag = "hosts", params(("name" = String, Path, description = "Host")), request_body = Heartbeat,
    responses((status = 200, description = "Heard"), (status = "default", description = "What went wrong", body = ApiError)))]
pub(super) async fn heartbeat(
    CallingHost(caller): CallingHost,
    State(app): State<Arc<App>>,
    Named(name): Named<HostName>,
    Json(heartbeat): Json<Heartbeat>,
) -> Result<Json<()>, Problem> {
    if caller != name || heartbeat.host.name != name {
        let spoken_for = if caller == name { &heartbeat.host.name } else { &name };
        return Err(forbidden(format!("Host {caller} may speak only for itself, not for {spoken_for}")).into());
    }
    if heartbeat.machines.len() > MACHINES_MAX {
        let found = heartbeat.machines.len();
        return Err(
            invalid(format!("Host {name} reports {found} machines, at most {MACHINES_MAX} are accepted")).into()
        );
    }
    app.telemetry.heard(&name, heartbeat.telemetry, heartbeat.used.clone());
    if let Some(record) = app.inventory.heartbeat(heartbeat) {
        app.store.commit(Transaction::default().then(put(host_key(&name), &record)?)).await.map_err(ApiError::from)?;
    }
    Ok(Json(()))
}

/// Lets no new machine onto a host
#[utoipa::path(post, path = "/v1/hosts/{name}/cordon", tag = "hosts", params(("name" = String, Path, description = "Host")),
    responses((status = 200, description = "The host", body = Host), (status = "default", description = "What went wrong", body = ApiError)))]
pub(super) async fn cordon(
    _: Operator,
    State(app): State<Arc<App>>,
    Named(name): Named<HostName>,
) -> Result<Json<Host>, Problem> {
    set_cordoned(&app, &name, true).await
}

/// Lets new machines onto a host again
#[utoipa::path(post, path = "/v1/hosts/{name}/uncordon", tag = "hosts", params(("name" = String, Path, description = "Host")),
    responses((status = 200, description = "The host", body = Host), (status = "default", description = "What went wrong", body = ApiError)))]
pub(super) async fn uncordon(
    _: Operator,
    State(app): State<Arc<App>>,
    Named(name): Named<HostName>,
) -> Result<Json<Host>, Problem> {
    drains::end(&app, &name).await?;
    set_cordoned(&app, &name, false).await
}

async fn set_cordoned(app: &App, name: &HostName, cordoned: bool) -> Result<Json<Host>, Problem> {
    // Whoever is choosing a host now chooses before this.
    let _admission = app.admission.lock().await;
    let unknown = || not_found(format!("There is no host {name}"));
    let record = app.inventory.record(name, cordoned).ok_or_else(unknown)?;
    app.store.commit(Transaction::default().then(put(host_key(name), &record)?)).await.map_err(ApiError::from)?;
    let host = app.inventory.set_cordoned(name, cordoned).ok_or_else(unknown)?;
    tracing::info!(host = %name, cordoned, "host");
    Ok(Json(host))
}
