use super::*;
use vmotion_model::MoveId;

/// Steps as (machine, from, to, state).
fn view(state: PlanState, steps: &[(&str, &str, &str, StepState)]) -> PlanView {
    let step = |(number, (machine, from, to, _)): (u32, &(&str, &str, &str, StepState))| {
        serde_json::json!({
            "number": number, "machine": machine, "from": from, "to": to, "motive": "balance", "reason": "", "gain": 1.0, "cost": 0.1,
            "begins_ms": 0, "takes_ms": 1, "bytes": 1, "downtime_ms": 1.0,
        })
    };
    let planned: Vec<_> = (1..).zip(steps).map(step).collect();
    let plan = Plan { steps: serde_json::from_value(planned.into()).unwrap(), ..Plan::default() };
    PlanView {
        id: PlanId::numbered(7),
        goal: PlanGoal::Rebalance,
        asked_by: "policy".to_owned(),
        created_unix_ms: 0,
        state,
        plan,
        progress: steps.iter().map(|(.., state)| state.clone()).collect(),
    }
}

fn done() -> StepState {
    StepState::Done { id: MoveId::numbered(1) }
}

fn told(wanted: Result<Vec<Return>, ApiError>) -> Result<Vec<String>, String> {
    let one = |one: &Return| format!("{} {} {}", one.subject, one.from, one.to);
    wanted.map(|all| all.iter().map(one).collect()).map_err(|error| error.to_string())
}

#[test]
fn what_was_moved_twice_goes_back_to_where_it_was_first() {
    let failed = StepState::Failed { why: "x".to_owned() };
    let view = view(
        PlanState::Superseded,
        &[("a", "h1", "h3", done()), ("b", "h2", "h1", done()), ("a", "h3", "h2", done()), ("c", "h1", "h2", failed)],
    );
    assert_eq!(told(wanted(&view, None)).unwrap(), ["a h2 h1", "b h1 h2"]);
    assert_eq!(told(wanted(&view, Some(2))).unwrap(), ["b h1 h2"]);
    assert_eq!(told(wanted(&view, Some(3))).unwrap(), ["a h2 h3"]);
}

#[test]
fn what_cannot_be_undone_is_refused_with_the_reason() {
    let dropped = StepState::Dropped { why: "x".to_owned() };
    let moving = StepState::Moving { id: MoveId::numbered(3) };
    let ended = view(
        PlanState::Superseded,
        &[("a", "h1", "h3", done()), ("a", "h3", "h2", done()), ("b", "h1", "h2", dropped.clone())],
    );
    for (view, step, why) in [
        (view(PlanState::Running, &[("a", "h1", "h2", done())]), None, "is being carried out"),
        (view(PlanState::Cancelled, &[("a", "h1", "h2", moving)]), None, "is still under way as"),
        (view(PlanState::Superseded, &[("a", "h1", "h2", dropped)]), None, "has moved nothing"),
        (ended.clone(), Some(4), "it has 3 steps"),
        (ended.clone(), Some(3), "has moved nothing"),
        (ended, Some(1), "has moved a on since"),
    ] {
        let error = told(wanted(&view, step)).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn a_goal_says_what_is_undone() {
    let goal = PlanGoal::Undo { undoes: PlanId::numbered(7), step: Some(2) };
    assert_eq!(goal.to_string(), format!("undo step 2 of {}", PlanId::numbered(7)));
}
