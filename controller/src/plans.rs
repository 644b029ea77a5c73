//! Plans as operations: made by the policy, kept in the store, carried out step by step.
//!
//! A step is only ever begun by the same door as an operator's move, which looks at the inventory as it is then: a plan is a wish, not a
//! right. A step whose time has come and that the world no longer allows is dropped with the reason, and whoever wanted the plan plans
//! anew. Any controller goes on with a plan from what is in the store. The invariant: a step is begun once, and its move is known by name
//! before the next look.

use crate::{
    app::App,
    error::{conflict, not_found},
    inventory::unix_ms,
    moves::{self, Asked},
    once::Once,
    operations::MoveRecord,
    placed::POLICY_NAME,
    records::{LAST_PLAN, PLANS, Stored, load, load_all, load_move, load_owner, put},
    shape, site,
    store::{Compare, Outcome, Transaction},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, sync::Arc, time::Instant};
use vmotion_api::{MoveCommand, PlanGoal, PlanId, PlanState, PlanView, ShapeChange, StepState, TraceId, current_trace};
use vmotion_model::{
    ApiError, ErrorCode, HostName, MoveId, MoveOutcome, MoveRequest, Plan, PlannedStep, PolicySpec, Subject,
};
use vmotion_policy::{Effort, Goal, site::Site};

/// Finished plans that are remembered; the oldest are forgotten first.
const REMEMBERED_MAX: usize = 200;
/// Plans forgotten at once.
const FORGOTTEN_AT_ONCE: usize = 20;
/// The least time that a move is given, in ms, however near its plan's deadline is.
const DEADLINE_MS_MIN: u64 = 1000;

/// A plan in the store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct PlanRecord {
    pub(crate) view: PlanView,
    /// The pause that each of its moves may cost, in ms.
    pub(crate) downtime_ms_max: u32,
    /// When all of it is to be over, in ms since the epoch.
    #[serde(default)]
    pub(crate) by_unix_ms: Option<u64>,
    /// What logs name it and its moves by.
    #[serde(default)]
    pub(crate) trace: Option<TraceId>,
}

fn plan_key(id: &PlanId) -> String {
    // In the order of their numbers.
    let number: String = id.to_string().chars().filter(char::is_ascii_digit).collect();
    format!("{PLANS}{number:0>12}")
}

/// What the policy would do. It may think for seconds, beside everything else.
pub(crate) async fn think(app: &App, site: Site, goal: Goal) -> Result<Plan, ApiError> {
    considered(app, move || vmotion_policy::plan(&site, goal, Effort::default())).await
}

/// Lets the policy make a plan beside everything else, and counts how long it takes.
pub(crate) async fn considered(app: &App, make: impl FnOnce() -> Plan + Send + 'static) -> Result<Plan, ApiError> {
    let begun = Instant::now();
    let thought = tokio::task::spawn_blocking(make).await;
    app.metrics.thought(begun.elapsed());
    thought.map_err(|error| ApiError::new(ErrorCode::Internal, format!("The policy failed: {error}")))
}

/// What the policy would move where, and why.
pub(crate) async fn foresee_rebalance(app: &App) -> Result<Plan, ApiError> {
    think(app, site::now(app).await?, Goal::ALL).await
}

/// Moves everything where it belongs.
pub(crate) async fn rebalance(app: &App, asked_by: String) -> Result<PlanView, ApiError> {
    if let Some(running) = running(app).await?.into_iter().find(|plan| plan.value.view.goal == PlanGoal::Rebalance) {
        let PlanView { id, asked_by, .. } = running.value.view;
        return Err(conflict(format!("{id} of {asked_by} is being carried out"))
            .with_hint(format!("look at it: vmotion plans {id}; or end it: vmotion plans cancel {id}")));
    }
    let site = site::now(app).await?;
    let policy = site.policy.clone();
    let plan = think(app, site, Goal::ALL).await?;
    if plan.steps.is_empty() {
        let why = plan.blocked.iter().map(|blocked| format!("{}: {}", blocked.subject, blocked.why));
        let why: Vec<String> = why.collect();
        return Err(if why.is_empty() {
            conflict("Everything is where it belongs: no move would gain more than it costs")
        } else {
            crate::error::refused(format!("Nothing can be moved: {}", why.join("; ")))
        });
    }
    begin(app, PlanGoal::Rebalance, asked_by, plan, &policy, None).await
}

/// Writes a plan down; the keeper carries it out.
pub(crate) async fn begin(
    app: &App,
    goal: PlanGoal,
    asked_by: String,
    plan: Plan,
    policy: &PolicySpec,
    by_unix_ms: Option<u64>,
) -> Result<PlanView, ApiError> {
    loop {
        let last = load::<u64>(&*app.store, LAST_PLAN).await?;
        let number = last.as_ref().map_or(0, |stored| stored.value).saturating_add(1);
        let unchanged = last.map_or_else(|| Compare::Absent(LAST_PLAN.to_owned()), |stored| stored.unchanged());
        let id = PlanId::numbered(number);
        let state = if plan.steps.is_empty() { PlanState::Done } else { PlanState::Running };
        let progress = vec![StepState::Waiting; plan.steps.len()];
        let (goal, asked_by, plan) = (goal.clone(), asked_by.clone(), plan.clone());
        let view = PlanView { id: id.clone(), goal, asked_by, created_unix_ms: unix_ms(), state, plan, progress };
        let trace = Some(current_trace().unwrap_or_else(TraceId::random));
        let record = PlanRecord { view, downtime_ms_max: policy.downtime_ms_max, by_unix_ms, trace };
        let mut transaction =
            Transaction::default().when(unchanged).then(put(LAST_PLAN, &number)?).then(put(plan_key(&id), &record)?);
        transaction.changes.extend(forgettable(app).await?);
        if app.store.commit(transaction).await? == Outcome::Refused {
            continue;
        }
        let PlanView { goal, asked_by, plan, .. } = &record.view;
        tracing::info!(%id, %goal, %asked_by, steps = plan.steps.len(), blocked = plan.blocked.len(), "plan begins");
        app.look.notify_one();
        app.metrics.plan_begun(goal.word(), asked_by);
        if asked_by == POLICY_NAME {
            app.acted(format!("{id}: {goal}, {} moves", plan.steps.len())).await;
        }
        return Ok(record.view);
    }
}

async fn forgettable(app: &App) -> Result<Vec<crate::store::Change>, ApiError> {
    let all = load_all::<PlanRecord>(&*app.store, PLANS).await?;
    if all.len() < REMEMBERED_MAX {
        return Ok(Vec::new());
    }
    let over = all.iter().filter(|stored| stored.value.view.state != PlanState::Running);
    Ok(over.take(FORGOTTEN_AT_ONCE).map(Stored::deleted).collect())
}

/// All plans, oldest first.
pub(crate) async fn list(app: &App) -> Result<Vec<PlanView>, ApiError> {
    let all = load_all::<PlanRecord>(&*app.store, PLANS).await?;
    Ok(all.into_iter().map(|stored| stored.value.view).collect())
}

/// One plan.
pub(crate) async fn find(app: &App, id: &PlanId) -> Result<PlanView, ApiError> {
    Ok(stored(app, id).await?.value.view)
}

/// One plan, with what has become of moves that were under way when it was cancelled.
pub(crate) async fn find_settled(app: &App, id: &PlanId) -> Result<PlanView, ApiError> {
    let mut view = find(app, id).await?;
    for step in &mut view.progress {
        if let StepState::Moving { id } = step.clone() {
            *step = outcome_of(app, id).await?;
        }
    }
    Ok(view)
}

async fn stored(app: &App, id: &PlanId) -> Result<Stored<PlanRecord>, ApiError> {
    let found = load::<PlanRecord>(&*app.store, &plan_key(id)).await?;
    found.ok_or_else(|| not_found(format!("There is no plan {id}")).with_hint("list them: vmotion plans"))
}

/// Begins no more steps of a plan; moves that have begun go on.
pub(crate) async fn cancel(app: &App, id: &PlanId) -> Result<PlanView, ApiError> {
    loop {
        let stored = stored(app, id).await?;
        if stored.value.view.state != PlanState::Running {
            return Err(conflict(format!("{id} is over already")));
        }
        let mut record = stored.value.clone();
        record.view.state = PlanState::Cancelled;
        if save(app, &stored, &record).await? {
            tracing::info!(%id, "plan cancelled");
            return Ok(record.view);
        }
    }
}

/// Plans that are being carried out.
pub(crate) async fn running(app: &App) -> Result<Vec<Stored<PlanRecord>>, ApiError> {
    let mut all = load_all::<PlanRecord>(&*app.store, PLANS).await?;
    all.retain(|stored| stored.value.view.state == PlanState::Running);
    Ok(all)
}

async fn save(app: &App, stored: &Stored<PlanRecord>, record: &PlanRecord) -> Result<bool, ApiError> {
    if stored.value == *record {
        return Ok(true);
    }
    let transaction = Transaction::default().when(stored.unchanged()).then(put(stored.key.as_str(), record)?);
    Ok(app.store.commit(transaction).await? != Outcome::Refused)
}

/// Goes on with a plan: looks how the moves under way went, and begins the steps whose turn it is.
pub(crate) async fn advance(app: &Arc<App>, stored: &Stored<PlanRecord>, policy: &PolicySpec) -> Result<(), ApiError> {
    let mut record = stored.value.clone();
    for at in 0..record.view.progress.len() {
        if let StepState::Moving { id } = record.view.progress[at].clone() {
            record.view.progress[at] = outcome_of(app, id).await?;
        }
    }
    let mut last = stored.clone();
    for at in 0..record.view.progress.len() {
        let turn = turn(&record.view.plan.steps, &record.view.progress, at, policy);
        let next = match turn {
            Turn::NotYet => continue,
            Turn::Never(why) => StepState::Dropped { why },
            Turn::Now => match step_begins(app, &record, &record.view.plan.steps[at]).await? {
                Some(state) => state,
                None => continue,
            },
        };
        record.view.progress[at] = next;
        // Its move is known by name before anything else happens; who cancelled meanwhile is heard.
        if !save(app, &last, &record).await? {
            return Ok(());
        }
        last = match load::<PlanRecord>(&*app.store, &stored.key).await? {
            Some(saved) => saved,
            None => return Ok(()),
        };
    }
    record.view.state = state_of(&record.view.progress);
    if record.view.state != PlanState::Running {
        tracing::info!(id = %record.view.id, state = ?record.view.state, "plan is over");
        app.look.notify_one();
    }
    save(app, &last, &record).await?;
    Ok(())
}

fn state_of(progress: &[StepState]) -> PlanState {
    if progress.iter().any(|step| matches!(step, StepState::Waiting | StepState::Moving { .. })) {
        return PlanState::Running;
    }
    match progress.iter().all(|step| matches!(step, StepState::Done { .. })) {
        true => PlanState::Done,
        false => PlanState::Superseded,
    }
}

async fn outcome_of(app: &App, id: MoveId) -> Result<StepState, ApiError> {
    let Some(Stored { value: MoveRecord { operation, .. }, .. }) = load_move(&*app.store, &id).await? else {
        return Ok(StepState::Failed { why: format!("its move {id} is not remembered any more") });
    };
    Ok(match operation.outcome {
        None => StepState::Moving { id },
        Some(MoveOutcome::Moved) => StepState::Done { id },
        Some(outcome) => StepState::Failed { why: format!("{id}: {}", moves::outcome_in_words(&outcome)) },
    })
}

/// Is it a step's turn?
#[derive(Debug, Clone, PartialEq, Eq)]
enum Turn {
    Now,
    NotYet,
    Never(String),
}

/// Pure: what the plan says, and how far its steps are.
fn turn(steps: &[PlannedStep], progress: &[StepState], at: usize, policy: &PolicySpec) -> Turn {
    if progress[at] != StepState::Waiting {
        return Turn::NotYet;
    }
    let step = &steps[at];
    let hosts = [&step.from, &step.to];
    let shares = |other: &PlannedStep| hosts.contains(&&other.from) || hosts.contains(&&other.to);
    let mut busy: BTreeMap<&HostName, u32> = BTreeMap::new();
    for (other, state) in steps.iter().zip(progress) {
        let open = matches!(state, StepState::Waiting | StepState::Moving { .. });
        if step.after.contains(&other.number) && !matches!(state, StepState::Done { .. }) {
            return if open {
                Turn::NotYet
            } else {
                Turn::Never(format!("step {}, which it depends on, did not happen", other.number))
            };
        }
        // The same moves side by side as were foreseen, however long each really takes.
        if open && other.number != step.number && other.begins_ms + other.takes_ms <= step.begins_ms && shares(other) {
            return Turn::NotYet;
        }
        if matches!(state, StepState::Moving { .. }) {
            [&other.from, &other.to].into_iter().for_each(|host| *busy.entry(host).or_default() += 1);
        }
    }
    let full = hosts.iter().any(|host| busy.get(*host).is_some_and(|moves| *moves >= policy.moves_per_host_max));
    if full { Turn::NotYet } else { Turn::Now }
}

/// Begins a step; `None` when it has to wait for somebody.
async fn step_begins(app: &Arc<App>, plan: &PlanRecord, step: &PlannedStep) -> Result<Option<StepState>, ApiError> {
    let Subject { machine, piece } = &step.subject;
    let dropped = |why: String| Ok(Some(StepState::Dropped { why }));
    let Some(owner) = load_owner(&*app.store, machine).await? else {
        return dropped(format!("there is no machine {machine} any more"));
    };
    if piece.is_none() && owner.value.owner != step.from {
        return dropped(format!("{machine} is on {} now", owner.value.owner));
    }
    // What goes back is where a person wants it: the policy leaves it there for a while, as whatever a person has moved.
    let undoes = matches!(plan.view.goal, PlanGoal::Undo { .. });
    let asked = Asked {
        by: Some(if undoes { plan.view.asked_by.clone() } else { POLICY_NAME.to_owned() }),
        motive: Some(step.motive),
        reason: Some(format!("{}, step {}: {}", plan.view.id, step.number, step.reason)),
    };
    let begun = match piece {
        Some(piece) => {
            let change = ShapeChange::Piece { piece: *piece, to: step.to.to_string() };
            shape::start(app, machine, change, asked, Once::without_key()).await
        }
        None => {
            let deadline = plan.by_unix_ms.map(|by| by.saturating_sub(unix_ms()).max(DEADLINE_MS_MIN));
            let request = MoveRequest {
                downtime_ms_max: plan.downtime_ms_max,
                deadline_ms: deadline.filter(|deadline| *deadline > u64::from(plan.downtime_ms_max)),
                ..MoveRequest::default()
            };
            let command = MoveCommand { machine: machine.clone(), to: step.to.to_string(), request, dry_run: false };
            moves::start(app, command, asked, Once::without_key()).await
        }
    };
    match begun {
        Ok(operation) => {
            tracing::info!(plan = %plan.view.id, step = step.number, id = %operation.id, "step begins");
            let Subject { machine, .. } = &step.subject;
            app.acted(format!(
                "{}: {} moves {} from {} to {}: {}",
                operation.id,
                plan.view.id,
                piece.map_or_else(|| machine.to_string(), |piece| format!("{machine}/{piece}")),
                step.from,
                step.to,
                step.reason
            ))
            .await;
            Ok(Some(StepState::Moving { id: operation.id }))
        }
        // Somebody else is moving it, or has just changed something about it.
        Err(error) if error.code == ErrorCode::Conflict => Ok(None),
        Err(error) if error.code == ErrorCode::Unavailable => Ok(None),
        Err(error) => dropped(error.to_string()),
    }
}

#[cfg(test)]
mod tests;
