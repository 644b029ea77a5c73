//! A machine as the API shows it: the record says whose it is, its host says what it does.

use super::span;
use crate::{
    app::{App, lock},
    error::not_found,
    records::{Intent, MACHINES, MachineRecord, OWNERS, load_all, load_machine, load_owner},
};
use std::collections::BTreeMap;
use vmotion_api::MachineView;
use vmotion_model::{ApiError, HostState, MachineName, MachineState, MoveId, OwnerRecord};

/// A state as a word in a sentence.
pub(crate) const fn in_words(state: MachineState) -> &'static str {
    match state {
        MachineState::Starting => "starting",
        MachineState::Running => "running",
        MachineState::Moving => "moving",
        MachineState::Incoming => "incoming",
        MachineState::Paused => "paused",
        MachineState::Stopped => "stopped",
        MachineState::Failed => "failed",
        MachineState::Unknown => "unknown",
    }
}

/// One machine.
pub(crate) async fn view(app: &App, name: &MachineName) -> Result<MachineView, ApiError> {
    let unknown = || not_found(format!("There is no machine {name}"));
    let machine = load_machine(&*app.store, name).await?.ok_or_else(unknown)?;
    let owner = load_owner(&*app.store, name).await?.ok_or_else(unknown)?;
    let pieces = span::pieces(app, name).await?;
    Ok(MachineView { pieces, ..compose(app, machine.value, owner.value) })
}

/// All machines, by name.
pub(crate) async fn list(app: &App) -> Result<Vec<MachineView>, ApiError> {
    let machines = load_all::<MachineRecord>(&*app.store, MACHINES).await?;
    let owners = load_all::<OwnerRecord>(&*app.store, OWNERS).await?;
    let mut owners: BTreeMap<MachineName, OwnerRecord> =
        owners.into_iter().map(|stored| (stored.value.machine.clone(), stored.value)).collect();
    let composed = machines.into_iter().filter_map(|stored| {
        let owner = owners.remove(&stored.value.spec.name)?;
        Some(compose(app, stored.value, owner))
    });
    let mut views: Vec<MachineView> = composed.collect();
    for view in &mut views {
        view.pieces = span::pieces(app, &view.name).await?;
    }
    Ok(views)
}

fn compose(app: &App, machine: MachineRecord, owner: OwnerRecord) -> MachineView {
    let MachineRecord { spec, intent, .. } = machine;
    let name = spec.name.clone();
    let status = app.inventory.status(&owner.owner, &name);
    let (state, reason) = state(app, &name, &intent, &owner);
    let move_id = move_of(app, &name);
    let console_bytes = status.as_ref().map_or(0, |status| status.console_bytes);
    let alive = matches!(state, MachineState::Running | MachineState::Moving | MachineState::Paused);
    let pid = status.filter(|_| alive).and_then(|status| status.pid);
    let (host, epoch, pieces) = (owner.owner, owner.epoch, Vec::new());
    MachineView { name, spec, host, epoch, state, reason, move_id, console_bytes, pid, pieces }
}

/// The unfinished move of a machine.
pub(crate) fn move_of(app: &App, name: &MachineName) -> Option<MoveId> {
    let live = lock(&app.live);
    live.values()
        .map(|sender| sender.borrow())
        .find(|operation| operation.machine == *name)
        .map(|found| found.id.clone())
}

fn state(app: &App, name: &MachineName, intent: &Intent, owner: &OwnerRecord) -> (MachineState, Option<String>) {
    let waits = lock(&app.waits).get(name).cloned();
    match intent {
        Intent::Starting => return (MachineState::Starting, waits),
        Intent::Failed { reason } => return (MachineState::Failed, Some(reason.clone())),
        Intent::Running | Intent::Stopping | Intent::Stopped | Intent::Removing => {}
    }
    let asked = match intent {
        Intent::Stopping => Some("it is being stopped"),
        Intent::Removing => Some("it is being removed"),
        _ => None,
    };
    let asked = asked.map(|asked| waits.map_or_else(|| asked.to_owned(), |waits| format!("{asked}: {waits}")));
    let host = &owner.owner;
    let Some(known) = app.inventory.host(host) else {
        return (MachineState::Unknown, Some(format!("host {host} has never been heard of")));
    };
    if known.state == HostState::Gone {
        let gone = format!("host {host} is gone, last heard {} s ago", known.seen_ms_ago / 1000);
        return (MachineState::Unknown, Some(gone));
    }
    match app.inventory.status(host, name) {
        Some(status) => (status.state, asked.or(status.reason)),
        None => (MachineState::Unknown, Some(asked.unwrap_or_else(|| format!("host {host} does not report it")))),
    }
}
