//! Machines: what the operator wants of each, and asking its host until that is so.
//!
//! A request first changes the intent in the store and then asks the host. A host that refuses ends it; a host that
//! does not answer is asked again, also after a restart of the controller, until it answers or the operator changes the
//! intent. One question at a time for each machine, so that a removal never overtakes a start.

mod drive;
mod span;
mod view;

pub(crate) use drive::{drive, resume};
pub(crate) use span::{claim, give, join, leave, pieces};
pub(crate) use view::{in_words, list, view};

use crate::{
    app::App,
    error::{conflict, invalid, not_found},
    once::Once,
    placement::{Snapshot, chosen, heed_rules},
    records::{Intent, MachineRecord, Stored, busy_key, load, load_machine, load_owner, machine_key, owner_key, put},
    store::{Compare, Outcome, Transaction},
};
use std::{sync::Arc, time::Duration};
use tokio::time::timeout;
use vmotion_api::{CreateRequest, MachineView};
use vmotion_model::{
    ApiError, ByteSize, Epoch, HostName, MachineName, MachineState, MoveId, OwnerRecord, OwnerState, Placement,
};
use vmotion_policy::{PlacementRequest, Wanted};

/// An answer is given by then, also when the machine's host has not answered yet.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// Where a machine would be created.
pub(crate) async fn place(app: &App, request: &CreateRequest) -> Result<Placement, ApiError> {
    check(request)?;
    let snapshot = Snapshot::take(app).await?;
    if !request.span.is_empty() {
        return span::place(&snapshot, request);
    }
    let wanted = match &request.on {
        Some(name) => snapshot.wanted(name)?,
        None => Wanted::Anywhere,
    };
    if request.from.is_some() && !matches!(wanted, Wanted::Host(_)) {
        return Err(invalid("A snapshot is started on the host that has it: name the host")
            .with_hint("add --on HOST, the host the snapshot was written on"));
    }
    // What a snapshot needs only its host knows; the agent checks it.
    let (memory, cpus) = match request.from {
        Some(_) => (ByteSize(0), 0),
        None => (request.spec.memory, u32::from(request.spec.cpus)),
    };
    let named = matches!(wanted, Wanted::Host(_));
    let placement = snapshot.place(PlacementRequest { memory, cpus, wanted, ..PlacementRequest::default() });
    heed_rules(app, placement, &request.spec, named).await
}

fn check(request: &CreateRequest) -> Result<(), ApiError> {
    if !request.span.is_empty() {
        span::check(request)?;
    }
    match request.from {
        Some(_) => Ok(()),
        None => request.spec.validate().map_err(|error| invalid(error.to_string())),
    }
}

/// Creates a machine and asks its host to start it.
pub(crate) async fn create(app: &Arc<App>, request: CreateRequest, once: Once) -> Result<MachineView, ApiError> {
    let name = request.spec.name.clone();
    {
        let _admission = app.admission.lock().await;
        if let Some(made) = once.made_before(&*app.store).await? {
            return view(app, &name).await.map_err(|_| {
                conflict(format!("Idempotency-Key was used to create {made}, which has been removed since"))
            });
        }
        admit(app, &request, &once).await?;
    }
    settle_within(app, &name).await?;
    view(app, &name).await
}

/// Chooses a host and writes machine and owner record together.
async fn admit(app: &App, request: &CreateRequest, once: &Once) -> Result<(), ApiError> {
    let name = &request.spec.name;
    let exists = |owner: &HostName| {
        conflict(format!("Machine {name} exists already, on {owner}")).with_hint("choose another name, or remove it")
    };
    if let Some(owner) = load_owner(&*app.store, name).await? {
        return Err(exists(&owner.value.owner));
    }
    let placement = place(app, request).await?;
    let host = chosen(&placement, name)?;
    let machine = MachineRecord {
        spec: request.spec.clone(),
        intent: Intent::Starting,
        from: request.from.clone(),
        once: once.store_key().map(str::to_owned),
    };
    let owner =
        OwnerRecord { machine: name.clone(), epoch: Epoch::FIRST, owner: host.clone(), state: OwnerState::Running };
    let mut transaction = Transaction::default()
        .when(Compare::Absent(machine_key(name)))
        .when(Compare::Absent(owner_key(name)))
        .then(put(machine_key(name), &machine)?)
        .then(put(owner_key(name), &owner)?);
    transaction.changes.extend(span::records(request)?);
    transaction.compares.extend(once.compare());
    transaction.changes.extend(once.remember(&*app.store, name.as_str()).await?);
    match app.store.commit(transaction).await? {
        Outcome::Committed(_) => {
            tracing::info!(machine = %name, %host, "created");
            Ok(())
        }
        Outcome::Refused => Err(exists(&host)),
    }
}

/// Asks the machine's host for what is intended. A refusal is an error; no answer in time is not, the asking goes on.
async fn settle_within(app: &Arc<App>, name: &MachineName) -> Result<(), ApiError> {
    match timeout(ANSWER_WITHIN, drive(app, name, true)).await {
        Ok(Ok(answer)) => answer,
        // The controller stops, or the host takes its time: the intent is in the store.
        Ok(Err(_)) | Err(_) => Ok(()),
    }
}

/// The machine, its owner record, and no move in its way.
async fn load_idle(
    app: &App,
    name: &MachineName,
) -> Result<(Stored<MachineRecord>, Stored<OwnerRecord>, Compare), ApiError> {
    let unknown = || not_found(format!("There is no machine {name}"));
    let machine = load_machine(&*app.store, name).await?.ok_or_else(unknown)?;
    let owner = load_owner(&*app.store, name).await?.ok_or_else(unknown)?;
    if let Some(id) = load::<MoveId>(&*app.store, &busy_key(name)).await? {
        return Err(conflict(format!("Machine {name} is being moved by {}", id.value))
            .with_hint(format!("wait for it, or cancel it: vmotion cancel {}", id.value)));
    }
    Ok((machine, owner, Compare::Absent(busy_key(name))))
}

fn changed_meanwhile(name: &MachineName) -> ApiError {
    conflict(format!("Machine {name} was changed by another request at the same time")).with_hint("try again")
}

/// Stops a machine.
pub(crate) async fn stop(app: &Arc<App>, name: &MachineName) -> Result<MachineView, ApiError> {
    let (machine, owner, idle) = load_idle(app, name).await?;
    match machine.value.intent {
        Intent::Stopped | Intent::Failed { .. } => return view(app, name).await,
        Intent::Removing => return Err(conflict(format!("Machine {name} is being removed"))),
        Intent::Starting => {
            return Err(conflict(format!(
                "Machine {name} has not been started yet: its host {} does not answer",
                owner.value.owner
            ))
            .with_hint(format!("remove it instead: vmotion rm {name}")));
        }
        Intent::Running | Intent::Stopping => {}
    }
    let transaction = Transaction::default()
        .when(machine.unchanged())
        .when(owner.unchanged())
        .when(idle)
        .then(put(machine_key(name), &MachineRecord { intent: Intent::Stopping, ..machine.value })?)
        .then(put(owner_key(name), &OwnerRecord { state: OwnerState::Stopped, ..owner.value })?);
    if app.store.commit(transaction).await? == Outcome::Refused {
        return Err(changed_meanwhile(name));
    }
    settle_within(app, name).await?;
    view(app, name).await
}

/// Removes a machine that stands.
pub(crate) async fn remove(app: &Arc<App>, name: &MachineName) -> Result<(), ApiError> {
    let (machine, owner, idle) = load_idle(app, name).await?;
    if matches!(machine.value.intent, Intent::Running | Intent::Stopping | Intent::Stopped) {
        check_stands(app, name, &owner.value.owner).await?;
    }
    let transaction = Transaction::default()
        .when(machine.unchanged())
        .when(owner.unchanged())
        .when(idle)
        .then(put(machine_key(name), &MachineRecord { intent: Intent::Removing, ..machine.value })?);
    if app.store.commit(transaction).await? == Outcome::Refused {
        return Err(changed_meanwhile(name));
    }
    settle_within(app, name).await?;
    if load_machine(&*app.store, name).await?.is_some() {
        return Err(crate::error::unavailable(format!(
            "Host {} does not answer: {name} is removed as soon as it does",
            owner.value.owner
        )));
    }
    Ok(())
}

/// Asks the host itself: a heartbeat may be a second old.
async fn check_stands(app: &App, name: &MachineName, host: &HostName) -> Result<(), ApiError> {
    let state = match app.agent(host)?.machine(name).await {
        Ok(status) => {
            let state = status.state;
            app.inventory.answered(host, status);
            state
        }
        Err(error) if error.code() == Some(vmotion_model::ErrorCode::NotFound) => MachineState::Stopped,
        Err(error) => return Err(error.into_api_error()),
    };
    if matches!(state, MachineState::Stopped | MachineState::Failed) {
        return Ok(());
    }
    Err(conflict(format!("Machine {name} is {} on {host}", view::in_words(state)))
        .with_hint(format!("stop it first: vmotion stop {name}")))
}
