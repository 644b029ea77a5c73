//! The declared model, plans, and questions to the policy.

use crate::{
    arguments::{Global, Mode, PolicyCommand, PolicySetArguments, What, WhatIfArguments},
    context, output,
};
use anyhow::{Context as _, Result};
use std::{path::Path, time::Duration};
use vmotion_api::{
    ApplyRequest, ControllerClient, DrainRequest, Missing, PlanId, PlanState, PlanView, PolicyChange, StepState,
};
use vmotion_model::{ApiError, ErrorCode, Growth, HostName, PolicyMode, SiteSpec, Subject, WhatIf};

/// Plans and declared machines are looked at this often.
const LOOK_EVERY: Duration = Duration::from_millis(300);
/// Exit code when not everything that was asked for came about.
const EXIT_NOT_ALL: u8 = 8;
/// Exit code when the world does not allow all of it.
const EXIT_BLOCKED: u8 = 5;

fn exit(code: u8) -> ! {
    std::process::exit(i32::from(code))
}

pub(super) async fn apply(file: &Path, dry_run: bool, prune: bool, detach: bool, global: &Global) -> Result<()> {
    let text = std::fs::read_to_string(file).with_context(|| format!("Cannot read {}", file.display()))?;
    let site: SiteSpec = toml::from_str(&text).map_err(|error| {
        ApiError::new(
            ErrorCode::Invalid,
            format!("{} is not a model: {}", file.display(), error.to_string().trim_end()),
        )
    })?;
    let client = context::client(global)?;
    let applied = client.apply(&ApplyRequest { site: here(site, file)?, prune, dry_run }).await?;
    if global.json {
        output::json(&applied)?;
    } else {
        output::applied(&applied, dry_run);
    }
    if !applied.contradictions.is_empty() {
        exit(EXIT_BLOCKED);
    }
    if dry_run || detach {
        return Ok(());
    }
    let missing = until_there(&client, global).await?;
    if missing.is_empty() {
        return Ok(());
    }
    for Missing { machine, why } in &missing {
        eprintln!("{machine} is not there: {}", why.as_deref().unwrap_or("it is being created"));
    }
    exit(EXIT_NOT_ALL)
}

/// Relative paths mean the directory of the model.
fn here(mut site: SiteSpec, file: &Path) -> Result<SiteSpec> {
    let base = std::path::absolute(file).with_context(|| format!("Path {} cannot be used", file.display()))?;
    let base = base.parent().unwrap_or_else(|| Path::new("/")).to_owned();
    for machine in &mut site.machines {
        machine.kernel = base.join(&machine.kernel);
        machine.initrd = machine.initrd.take().map(|initrd| base.join(initrd));
        machine.disks.iter_mut().for_each(|disk| disk.path = base.join(&disk.path));
    }
    Ok(site)
}

/// Waits for declared machines; those that cannot be created now are what is left.
async fn until_there(client: &ControllerClient, global: &Global) -> Result<Vec<Missing>> {
    let mut told = None;
    loop {
        let missing = client.site().await?.missing;
        if missing.iter().all(|missing| missing.why.is_some()) {
            return Ok(missing);
        }
        if !global.json && told != Some(missing.len()) {
            eprintln!("{} declared machines are not there yet", missing.len());
            told = Some(missing.len());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

pub(super) async fn site(global: &Global) -> Result<()> {
    let view = context::client(global)?.site().await?;
    if global.json {
        return output::json(&view);
    }
    print!("{}", toml::to_string(&view.site).context("The model cannot be written")?);
    for Missing { machine, why } in &view.missing {
        println!("# {machine} is not there: {}", why.as_deref().unwrap_or("it is being created"));
    }
    Ok(())
}

pub(super) async fn rebalance(dry_run: bool, detach: bool, global: &Global) -> Result<()> {
    let client = context::client(global)?;
    if dry_run {
        let plan = client.rebalance_dry_run().await?;
        if global.json {
            return output::json(&plan);
        }
        output::proposed(&plan);
        return Ok(());
    }
    let view = client.rebalance().await?;
    to_its_end(&client, view, detach, global).await
}

pub(super) async fn drain(host: &HostName, request: &DrainRequest, detach: bool, global: &Global) -> Result<()> {
    let client = context::client(global)?;
    if request.dry_run {
        let plan = client.drain_dry_run(host, request).await?;
        if global.json {
            output::json(&plan)?;
        } else {
            output::proposed(&plan);
        }
        if !plan.blocked.is_empty() {
            exit(EXIT_BLOCKED);
        }
        return Ok(());
    }
    let view = client.drain(host, request).await?;
    if view.plan.steps.is_empty() && view.plan.blocked.is_empty() && !global.json {
        println!("{host} is empty; nothing comes to it until `vmotion host uncordon {host}`");
        return Ok(());
    }
    to_its_end(&client, view, detach, global).await
}

/// Follows a plan; Ctrl-C leaves it going on.
async fn to_its_end(client: &ControllerClient, view: PlanView, detach: bool, global: &Global) -> Result<()> {
    if !global.json {
        output::proposed(&view.plan);
    }
    let view = if detach || view.state != PlanState::Running { view } else { follow(client, view, global).await? };
    if global.json {
        output::json(&view)?;
    } else {
        output::plan_view(&view);
    }
    let blocked = !view.plan.blocked.is_empty();
    match view.state {
        PlanState::Superseded | PlanState::Cancelled => exit(EXIT_NOT_ALL),
        PlanState::Running | PlanState::Done if blocked => exit(EXIT_BLOCKED),
        PlanState::Running | PlanState::Done => Ok(()),
    }
}

async fn follow(client: &ControllerClient, mut view: PlanView, global: &Global) -> Result<PlanView> {
    let mut shown = view.progress.iter().map(|_| StepState::Waiting).collect::<Vec<_>>();
    loop {
        if !global.json {
            for ((step, now), before) in view.plan.steps.iter().zip(&view.progress).zip(&mut shown) {
                if now != before {
                    eprintln!("{}", output::step_progress(step, now));
                    before.clone_from(now);
                }
            }
        }
        if view.state != PlanState::Running {
            return Ok(view);
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            _ = tokio::signal::ctrl_c() => {
                eprintln!("{} goes on; vmotion plans cancel {} ends it", view.id, view.id);
                return Ok(view);
            }
        }
        view = client.plan(&view.id).await?;
    }
}

pub(super) async fn plans(id: Option<PlanId>, global: &Global) -> Result<()> {
    let client = context::client(global)?;
    if let Some(id) = id {
        let view = client.plan(&id).await?;
        if global.json {
            return output::json(&view);
        }
        output::proposed(&view.plan);
        output::plan_view(&view);
        return Ok(());
    }
    let plans = client.plans().await?;
    if global.json {
        return output::json(&plans);
    }
    output::plans(&plans);
    Ok(())
}

pub(super) async fn cancel(id: &PlanId, global: &Global) -> Result<()> {
    let view = context::client(global)?.cancel_plan(id).await?;
    if global.json {
        return output::json(&view);
    }
    output::plan_view(&view);
    Ok(())
}

pub(super) async fn undo(id: &PlanId, step: Option<u32>, dry_run: bool, detach: bool, global: &Global) -> Result<()> {
    let client = context::client(global)?;
    if !dry_run {
        return to_its_end(&client, client.undo_plan(id, step).await?, detach, global).await;
    }
    let plan = client.undo_plan_dry_run(id, step).await?;
    if global.json {
        output::json(&plan)?;
    } else {
        output::proposed(&plan);
    }
    if plan.blocked.is_empty() { Ok(()) } else { exit(EXIT_BLOCKED) }
}

pub(super) async fn policy(command: PolicyCommand, global: &Global) -> Result<()> {
    let client = context::client(global)?;
    let view = match command {
        PolicyCommand::Show => client.policy().await?,
        PolicyCommand::Set(arguments) => client.set_policy(&change(&arguments)).await?,
    };
    if global.json {
        return output::json(&view);
    }
    output::policy(&view);
    Ok(())
}

fn change(arguments: &PolicySetArguments) -> PolicyChange {
    let PolicySetArguments { mode, max_moves, content, max_downtime, hold, cooldown, respect } = *arguments;
    PolicyChange {
        mode: mode.map(|mode| match mode {
            Mode::Manual => PolicyMode::Manual,
            Mode::Auto => PolicyMode::Auto,
        }),
        moves_per_hour_max: max_moves,
        cpu_percent_content: content,
        downtime_ms_max: max_downtime,
        hold_s: hold,
        cooldown_s: cooldown,
        respect_s: respect,
    }
}

pub(super) async fn why(what: What, host: Option<&HostName>, global: &Global) -> Result<()> {
    let about = Subject { machine: what.machine, piece: what.piece };
    let explanation = context::client(global)?.why(&about, host).await?;
    if global.json {
        return output::json(&explanation);
    }
    output::explanation(&explanation);
    Ok(())
}

pub(super) async fn what_if(arguments: WhatIfArguments, global: &Global) -> Result<()> {
    let WhatIfArguments { remove, add, grow } = arguments;
    let grow = grow.chunks(2).map(growth).collect::<Result<_, _>>()?;
    let supposed = context::client(global)?.what_if(&WhatIf { remove, add, grow }).await?;
    if global.json {
        output::json(&supposed)?;
    } else {
        output::supposed(&supposed);
    }
    if !supposed.plan.blocked.is_empty() {
        exit(EXIT_BLOCKED);
    }
    Ok(())
}

/// Machines, and how much more they ask for.
fn growth(pair: &[String]) -> Result<Growth, ApiError> {
    let invalid = |why: String| ApiError::new(ErrorCode::Invalid, format!("--grow {}: {why}", pair.join(" ")));
    let [machines, percent] = pair else {
        return Err(invalid("name machines and by how much, such as web-* 20%".to_owned()));
    };
    let machines = machines.parse().map_err(|error| invalid(format!("{error}")))?;
    let number = percent.strip_suffix('%').unwrap_or(percent).trim();
    let percent = number.parse().map_err(|_| invalid(format!("{percent:?} is no percentage, such as 20% or -20%")))?;
    Ok(Growth { machines, percent })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic in a test is its report")]

    use super::*;

    #[test]
    fn growth_is_read_with_its_sign_and_errors_say_what_was_typed() {
        let read = |machines: &str, percent: &str| growth(&[machines.to_owned(), percent.to_owned()]);
        assert_eq!(read("web-*", "20%").unwrap().percent, 20);
        assert_eq!(read("web-*", "-20").unwrap().percent, -20);
        let error = read("web-*", "much").unwrap_err().to_string();
        assert!(error.contains("--grow web-* much") && error.contains("20%"), "{error}");
        assert!(read("web ?", "20%").is_err());
    }
}
