//! Hosts that are to be empty. A drain is a wish that stays until the host is uncordoned: whatever is left on the host, or comes back to it,
//! is planned away from it again.

use crate::{
    app::App,
    error::{invalid, not_found},
    inventory::unix_ms,
    plans::{self, think},
    records::{DRAINS, DrainRecord, drain_key, host_key, load, load_all, put},
    site,
    store::{Change, Transaction},
};
use std::collections::BTreeSet;
use vmotion_api::{DrainRequest, PlanGoal, PlanState, PlanView};
use vmotion_model::{ApiError, HostName, Plan, PolicySpec};
use vmotion_policy::{
    Goal,
    site::{Duty, Site},
};

/// What emptying a host would do.
pub(crate) async fn foresee(app: &App, host: &HostName, request: &DrainRequest) -> Result<Plan, ApiError> {
    check(app, host, request)?;
    let mut site = site::now(app).await?;
    let draining = Duty::Draining(request.by_unix_ms.map(|by| by.saturating_sub(unix_ms())));
    site.hosts.iter_mut().filter(|known| known.name == *host).for_each(|known| known.duty = draining);
    site.policy.downtime_ms_max = request.downtime_ms_max.unwrap_or(site.policy.downtime_ms_max);
    think(app, only(site, host), Goal::DRAIN).await
}

fn check(app: &App, host: &HostName, request: &DrainRequest) -> Result<(), ApiError> {
    if app.inventory.host(host).is_none() {
        return Err(not_found(format!("There is no host {host}")));
    }
    if request.by_unix_ms.is_some_and(|by| by <= unix_ms()) {
        return Err(invalid("by is in the past: name a time that is to come"));
    }
    if request.downtime_ms_max == Some(0) {
        return Err(invalid("downtime_ms_max 0 is not valid: no move is without a pause; use 1 or more"));
    }
    Ok(())
}

/// Of several hosts that are to be empty, this one: each has a plan of its own.
fn only(mut site: Site, host: &HostName) -> Site {
    let others = site.hosts.iter_mut().filter(|known| known.name != *host);
    others.filter(|known| matches!(known.duty, Duty::Draining(_))).for_each(|known| known.duty = Duty::Cordoned);
    site
}

/// Empties a host, beginning now.
pub(crate) async fn begin(
    app: &App,
    host: &HostName,
    request: &DrainRequest,
    asked_by: String,
) -> Result<PlanView, ApiError> {
    check(app, host, request)?;
    let drain = DrainRecord {
        host: host.clone(),
        by_unix_ms: request.by_unix_ms,
        downtime_ms_max: request.downtime_ms_max,
        asked_by,
    };
    {
        let _admission = app.admission.lock().await;
        let record = app.inventory.record(host, true).ok_or_else(|| not_found(format!("There is no host {host}")))?;
        let transaction =
            Transaction::default().then(put(host_key(host), &record)?).then(put(drain_key(host), &drain)?);
        app.store.commit(transaction).await?;
        app.inventory.set_cordoned(host, true);
    }
    tracing::info!(%host, by_unix_ms = ?drain.by_unix_ms, "drain begins");
    // A plan for the same host that is under way was for other wishes.
    cancel_plans(app, host).await?;
    let (plan, policy) = foreseen(app, &drain).await?;
    write_down(app, &drain, plan, &policy).await
}

/// What there is to be done about a drain, and the policy with the pause that it allows.
async fn foreseen(app: &App, drain: &DrainRecord) -> Result<(Plan, PolicySpec), ApiError> {
    let mut site = site::now(app).await?;
    site.policy.downtime_ms_max = drain.downtime_ms_max.unwrap_or(site.policy.downtime_ms_max);
    let policy = site.policy.clone();
    Ok((think(app, only(site, &drain.host), Goal::DRAIN).await?, policy))
}

async fn write_down(app: &App, drain: &DrainRecord, plan: Plan, policy: &PolicySpec) -> Result<PlanView, ApiError> {
    let goal = PlanGoal::Drain { host: drain.host.clone() };
    plans::begin(app, goal, drain.asked_by.clone(), plan, policy, drain.by_unix_ms).await
}

/// Hosts that are to be empty.
pub(crate) async fn hosts(app: &App) -> Result<BTreeSet<HostName>, ApiError> {
    let drains = load_all::<DrainRecord>(&*app.store, DRAINS).await?;
    Ok(drains.into_iter().map(|stored| stored.value.host).collect())
}

/// Goes on with drains whose plan is over and whose host is not empty.
pub(crate) async fn go_on(app: &App) -> Result<(), ApiError> {
    let drains = load_all::<DrainRecord>(&*app.store, DRAINS).await?;
    if drains.is_empty() {
        return Ok(());
    }
    let all = plans::list(app).await?;
    for drain in drains.into_iter().map(|stored| stored.value) {
        let goal = PlanGoal::Drain { host: drain.host.clone() };
        let of_this: Vec<&PlanView> = all.iter().filter(|plan| plan.goal == goal).collect();
        if of_this.iter().any(|plan| plan.state == PlanState::Running) {
            continue;
        }
        let (plan, policy) = foreseen(app, &drain).await?;
        // The same obstacles as before are not written down again and again.
        if plan.steps.is_empty() && (plan.blocked.is_empty() || !of_this.is_empty()) {
            continue;
        }
        write_down(app, &drain, plan, &policy).await?;
    }
    Ok(())
}

/// A host takes machines again.
pub(crate) async fn end(app: &App, host: &HostName) -> Result<(), ApiError> {
    if load::<DrainRecord>(&*app.store, &drain_key(host)).await?.is_none() {
        return Ok(());
    }
    app.store.commit(Transaction::default().then(Change::Delete(drain_key(host)))).await?;
    cancel_plans(app, host).await?;
    tracing::info!(%host, "drain ends");
    Ok(())
}

async fn cancel_plans(app: &App, host: &HostName) -> Result<(), ApiError> {
    for plan in plans::running(app).await? {
        if plan.value.view.goal == (PlanGoal::Drain { host: host.clone() }) {
            // It may have ended by itself.
            let _ = plans::cancel(app, &plan.value.view.id).await;
        }
    }
    Ok(())
}
