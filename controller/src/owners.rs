//! Owner records, and the compare-and-set that decides a move.
//!
//! The set happens while a guest stands still: one read, one transaction, nothing else.

use crate::{
    app::{App, lock},
    error::{forbidden, invalid, not_found, unavailable},
    records::{load_owner, put},
    store::{Outcome, Store, Transaction},
};
use vmotion_api::CasRequest;
use vmotion_migrator::ownership::{CasOutcome, decide};
use vmotion_model::{ApiError, HostName, MachineName, OwnerRecord};

/// Turns before a record that changes all the time is given up; each lost turn means that somebody else won.
const TURNS_MAX: usize = 16;

/// A machine's owner record.
pub(crate) async fn find(app: &App, name: &MachineName) -> Result<OwnerRecord, ApiError> {
    let stored = load_owner(&*app.store, name).await?;
    Ok(stored.ok_or_else(|| not_found(format!("There is no machine {name}")))?.value)
}

/// May `host` ask for this? Only for itself, one epoch on, and nothing else about the machine.
fn check(host: &HostName, name: &MachineName, request: &CasRequest) -> Result<(), ApiError> {
    let CasRequest { expected, wanted } = request;
    if expected.machine != *name || wanted.machine != *name {
        return Err(invalid(format!(
            "The records are of {} and {}, the request is about {name}",
            expected.machine, wanted.machine
        )));
    }
    if wanted.owner != *host {
        return Err(forbidden(format!("Host {host} may make only itself the owner, not {}", wanted.owner)));
    }
    if wanted.epoch != expected.epoch.next() || wanted.state != expected.state {
        return Err(invalid(format!(
            "The wanted record must be of {} and change nothing but the owner, it is of {}",
            expected.epoch.next(),
            wanted.epoch
        )));
    }
    Ok(())
}

/// A valid certificate alone does not make a host the owner: it must be the owner, or the target of a move under way.
fn check_takes_part(app: &App, host: &HostName, current: &OwnerRecord) -> Result<(), ApiError> {
    let is_target = || {
        let live = lock(&app.live);
        let mut operations = live.values().map(|sender| sender.borrow());
        operations.any(|operation| operation.machine == current.machine && operation.target == *host)
    };
    if current.owner == *host || is_target() {
        return Ok(());
    }
    Err(forbidden(format!("Host {host} neither owns {} nor is the target of a move of it", current.machine)))
}

/// Replaces `expected` by `wanted`, if the record is `expected`; the record as it is afterwards.
pub(crate) async fn compare_and_set(
    app: &App,
    host: &HostName,
    name: &MachineName,
    request: &CasRequest,
) -> Result<OwnerRecord, ApiError> {
    check(host, name, request)?;
    swap(&*app.store, request, |current| check_takes_part(app, host, current)).await
}

/// The same for a request that is in order; `may` is asked about the record as it is before it is changed.
pub(crate) async fn swap(
    store: &dyn Store,
    request: &CasRequest,
    may: impl Fn(&OwnerRecord) -> Result<(), ApiError> + Send,
) -> Result<OwnerRecord, ApiError> {
    let CasRequest { expected, wanted } = request;
    let name = &wanted.machine;
    for _ in 0..TURNS_MAX {
        let stored = load_owner(store, name).await?;
        let stored = stored.ok_or_else(|| not_found(format!("There is no machine {name}")))?;
        let current = &stored.value;
        match decide(current, expected, wanted) {
            CasOutcome::Lost(current) => {
                let loser = &wanted.owner;
                tracing::info!(machine = %name, %loser, owner = %current.owner, epoch = current.epoch.0, "ownership lost");
                return Ok(current);
            }
            CasOutcome::Won if current == wanted => return Ok(stored.value),
            CasOutcome::Won => may(&stored.value)?,
        }
        let transaction = Transaction::default().when(stored.unchanged()).then(put(stored.key.as_str(), wanted)?);
        if let Outcome::Committed(_) = store.commit(transaction).await? {
            tracing::info!(machine = %name, owner = %wanted.owner, epoch = wanted.epoch.0, "ownership won");
            return Ok(wanted.clone());
        }
    }
    Err(unavailable(format!("The owner record of {name} changes faster than it can be compared")))
}
