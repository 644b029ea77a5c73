//! What operators ask about the policy: why something is where it is, why not elsewhere, and what it leaves alone.

use crate::{
    app::{App, lock},
    declared,
    error::{invalid, not_found},
    site,
};
use vmotion_api::{LeftAlone, PolicyView};
use vmotion_model::{ApiError, ErrorCode, Explanation, HostName, Subject, Supposed, WhatIf};
use vmotion_policy::{Changed, Effort, Goal, WhatIfError};

/// The policy, and what it is doing.
pub(crate) async fn policy(app: &App) -> Result<PolicyView, ApiError> {
    let policy = declared::policy(app).await?;
    let site = site::now(app).await?;
    let alone = site.machines.into_iter().filter_map(|machine| {
        let stay = machine.stays?;
        Some(LeftAlone { machine: machine.name, why: stay.why, for_s: stay.for_ms / 1000 })
    });
    let last_look = lock(&app.last_look).clone();
    Ok(PolicyView { left_alone: alone.collect(), moves_last_hour: site.moves_last_hour, last_look, policy })
}

/// Why a machine, or a piece of one, is where it is; or why it is not on `host`.
pub(crate) async fn why(app: &App, about: Subject, host: Option<HostName>) -> Result<Explanation, ApiError> {
    let site = site::now(app).await?;
    if let Some(host) = host.as_ref().filter(|host| !site.hosts.iter().any(|known| known.name == **host)) {
        return Err(not_found(format!("There is no host {host}")));
    }
    let unknown = not_found(match about.piece {
        Some(piece) => format!("There is no machine {} that runs and has a piece {piece}", about.machine),
        None => format!("There is no machine {} that runs", about.machine),
    });
    let explained = tokio::task::spawn_blocking(move || match host {
        Some(host) => vmotion_policy::why_not(&site, &about, &host),
        None => vmotion_policy::why(&site, &about),
    });
    explained.await.map_err(failed)?.ok_or(unknown)
}

/// What the policy would do if: other hosts, other demand. Nothing is done.
pub(crate) async fn what_if(app: &App, what_if: WhatIf) -> Result<Supposed, ApiError> {
    let site = site::now(app).await?;
    let thought = tokio::task::spawn_blocking(move || {
        let now = vmotion_policy::standing(&site);
        let Changed { site, added, grown } = vmotion_policy::suppose(site, &what_if)?;
        let plan = vmotion_policy::plan(&site, Goal::ALL, Effort::default());
        Ok(Supposed { now, added, grown: u32::try_from(grown).unwrap_or(u32::MAX), plan })
    });
    thought.await.map_err(failed)?.map_err(|error: WhatIfError| match error {
        WhatIfError::NoHost { .. } | WhatIfError::NoMachine(_) => not_found(error.to_string()),
        error => invalid(error.to_string()),
    })
}

fn failed(error: tokio::task::JoinError) -> ApiError {
    ApiError::new(ErrorCode::Internal, format!("The policy failed: {error}"))
}
