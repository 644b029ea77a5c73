//! The loop that keeps everything where it belongs: declared machines are created, plans are carried out, drains are gone on with, and, when
//! the policy may act by itself, it looks whether anything should be elsewhere.

use crate::{
    app::{App, lock},
    declared, drains,
    placed::POLICY_NAME,
    plans::{self, think},
    site,
};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;
use vmotion_api::{PlanGoal, PlanView, within};
use vmotion_model::{ApiError, Plan, PolicyMode, Standing};
use vmotion_policy::Goal;

/// Plans under way are looked at this often.
const TURN: Duration = Duration::from_millis(500);
/// Everything is looked at this often, and when something has ended.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Even when something ends all the time, there is so much between two looks.
const LOOK_AT_MOST_EVERY: Duration = Duration::from_secs(2);

/// Keeps until the controller stops.
pub(crate) fn begin(app: &Arc<App>) {
    let (keeping, creating) = (Arc::clone(app), Arc::clone(app));
    app.spawn(async move { keep(&keeping).await });
    app.spawn(async move {
        loop {
            if let Err(error) = declared::create_missing(&creating).await {
                tracing::error!(%error, "declared machines cannot be looked at for now");
            }
            tokio::time::sleep(LOOK_AT_MOST_EVERY).await;
        }
    });
}

async fn keep(app: &Arc<App>) {
    let mut looked = Instant::now();
    let mut trouble = None;
    loop {
        let asked = tokio::time::timeout(TURN, app.look.notified()).await.is_ok();
        let due = looked.elapsed() >= LOOK_EVERY || asked && looked.elapsed() >= LOOK_AT_MOST_EVERY;
        let turned = async {
            advance(app).await?;
            if due {
                look(app).await?;
            }
            Ok::<(), ApiError>(())
        };
        let error = turned.await.err().map(|error| error.to_string());
        if due {
            looked = Instant::now();
        }
        // Once per change: a store that is away for an hour is one line.
        if error != trouble {
            match &error {
                Some(error) => tracing::error!(%error, "plans cannot go on for now"),
                None => tracing::info!("plans go on"),
            }
            trouble = error;
        }
    }
}

async fn advance(app: &Arc<App>) -> Result<(), ApiError> {
    let running = plans::running(app).await?;
    if running.is_empty() {
        return Ok(());
    }
    let policy = declared::policy(app).await?;
    for plan in &running {
        within(plan.value.trace.clone(), plans::advance(app, plan, &policy)).await?;
    }
    Ok(())
}

async fn look(app: &Arc<App>) -> Result<(), ApiError> {
    drains::go_on(app).await?;
    let policy = declared::policy(app).await?;
    app.telemetry.hold(policy.hold_s);
    if policy.mode != PolicyMode::Auto {
        return Ok(());
    }
    if let Some(running) = plans::running(app).await?.first() {
        say(app, format!("{} is being carried out", running.value.view.id));
        return Ok(());
    }
    let plan = think(app, site::now(app).await?, Goal::ALL).await?;
    if plan.steps.is_empty() {
        say(app, nothing_to_do(&plan));
        return Ok(());
    }
    let PlanView { id, plan, .. } =
        plans::begin(app, PlanGoal::Rebalance, POLICY_NAME.to_owned(), plan, &policy, None).await?;
    say(app, format!("{id} moves {}", plan.steps.len()));
    Ok(())
}

fn say(app: &App, what: String) {
    *lock(&app.last_look) = Some(what);
}

fn nothing_to_do(plan: &Plan) -> String {
    let Standing { hosts_overloaded, rules_broken, load_max, load_mean, .. } = plan.before;
    let blocked = match plan.blocked.len() {
        0 => String::new(),
        blocked => format!("; {blocked} would be moved and cannot be: vmotion rebalance --dry-run says why"),
    };
    format!(
        "nothing to move: {hosts_overloaded} hosts overloaded, {rules_broken} rules broken, the busiest host at {:.0} %, the average at {:.0} \
         %{blocked}",
        load_max * 100.0,
        load_mean * 100.0,
    )
}
