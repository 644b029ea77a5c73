//! Undoing plans: what a plan, or one of its steps, has moved goes back to where it was. An undo is a plan itself, so it can be looked at
//! first, cancelled, gone on with by another controller, and undone.

use crate::{
    app::App,
    error::{conflict, invalid, refused},
    plans, site,
};
use vmotion_api::{PlanGoal, PlanId, PlanState, PlanView, StepState, UndoRequest};
use vmotion_model::{ApiError, Plan, PolicySpec};
use vmotion_policy::Return;

/// What would be moved back, and what cannot be.
pub(crate) async fn foresee(app: &App, id: &PlanId, request: &UndoRequest) -> Result<Plan, ApiError> {
    Ok(foreseen(app, id, request).await?.0)
}

/// Moves it back, beginning now.
pub(crate) async fn begin(
    app: &App,
    id: &PlanId,
    request: &UndoRequest,
    asked_by: String,
) -> Result<PlanView, ApiError> {
    let (plan, policy) = foreseen(app, id, request).await?;
    if plan.steps.is_empty() {
        let why: Vec<String> = plan.blocked.iter().map(|one| format!("{}: {}", one.subject, one.why)).collect();
        return Err(if why.is_empty() {
            conflict(format!("Everything that {id} has moved is back where it was"))
        } else {
            refused(format!("Nothing can be moved back: {}", why.join("; ")))
        });
    }
    let goal = PlanGoal::Undo { undoes: id.clone(), step: request.step };
    plans::begin(app, goal, asked_by, plan, &policy, None).await
}

async fn foreseen(app: &App, id: &PlanId, request: &UndoRequest) -> Result<(Plan, PolicySpec), ApiError> {
    for running in plans::running(app).await? {
        let PlanView { id: other, goal, .. } = running.value.view;
        if matches!(&goal, PlanGoal::Undo { undoes, .. } if undoes == id) {
            return Err(conflict(format!("{other} is undoing it: {goal}"))
                .with_hint(format!("look at it: vmotion plans {other}; or end it: vmotion plans cancel {other}")));
        }
    }
    let wanted = wanted(&plans::find_settled(app, id).await?, request.step)?;
    let site = site::now(app).await?;
    let policy = site.policy.clone();
    Ok((plans::considered(app, move || vmotion_policy::undo(&site, &wanted)).await?, policy))
}

/// Pure: from what a plan has done to what is to be where.
fn wanted(view: &PlanView, step: Option<u32>) -> Result<Vec<Return>, ApiError> {
    let id = &view.id;
    if view.state == PlanState::Running {
        return Err(conflict(format!("{id} is being carried out"))
            .with_hint(format!("end it first: vmotion plans cancel {id}; moves that have begun go on")));
    }
    let steps = || view.plan.steps.iter().zip(&view.progress);
    if let Some((moving, StepState::Moving { id: by })) = steps().find(|(_, at)| matches!(at, StepState::Moving { .. }))
    {
        return Err(conflict(format!("Step {} of {id} is still under way as {by}", moving.number))
            .with_hint(format!("wait for it: vmotion moves {by}; or end it: vmotion cancel {by}")));
    }
    let mut wanted: Vec<Return> = Vec::new();
    let done = steps().filter(|(_, state)| matches!(state, StepState::Done { .. })).map(|(step, _)| step);
    match step {
        None => {
            for step in done {
                match wanted.iter_mut().find(|one| one.subject == step.subject) {
                    Some(one) => one.from = step.to.clone(),
                    None => wanted.push(Return {
                        subject: step.subject.clone(),
                        from: step.to.clone(),
                        to: step.from.clone(),
                    }),
                }
            }
            if wanted.is_empty() {
                return Err(conflict(format!("{id} has moved nothing: there is nothing to undo")));
            }
        }
        Some(number) => {
            let (step, state) = steps().find(|(step, _)| step.number == number).ok_or_else(|| {
                invalid(format!("step {number} is not one of {id}: it has {} steps", view.plan.steps.len()))
                    .with_hint(format!("see them: vmotion plans {id}"))
            })?;
            if !matches!(state, StepState::Done { .. }) {
                return Err(conflict(format!("Step {number} of {id} has moved nothing: there is nothing to undo")));
            }
            let later = done.rev().find(|other| other.subject == step.subject).filter(|last| last.number != number);
            if let Some(later) = later {
                return Err(conflict(format!("Step {} of {id} has moved {} on since", later.number, step.subject))
                    .with_hint(format!("undo the whole plan: vmotion plans undo {id}")));
            }
            let (from, to) = (step.to.clone(), step.from.clone());
            wanted.push(Return { subject: step.subject.clone(), from, to });
        }
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests;
