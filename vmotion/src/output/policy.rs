//! Models, plans and explanations for people.

use super::{table, word};
use std::time::Duration;
use vmotion_api::{Applied, LeftAlone, PlanView, PolicyView, StepState};
use vmotion_model::{
    AddedHost, Blocked, ByteSize, Contradiction, Explanation, PlaceNote, Plan, PlannedStep, PolicySpec, RuleNote,
    Standing, Supposed,
};

pub(crate) fn applied(applied: &Applied, dry_run: bool) {
    contradictions(&applied.contradictions);
    if applied.changes.is_empty() {
        println!("Everything is as declared");
    }
    for change in &applied.changes {
        println!("{:8} {}: {}", word(&change.kind), change.what, change.detail);
    }
    if !applied.contradictions.is_empty() {
        println!("Nothing was applied: leave out one of the rules that contradict each other");
    } else if dry_run && !applied.changes.is_empty() {
        println!("Nothing was applied: this was a dry run");
    }
}

fn contradictions(contradictions: &[Contradiction]) {
    for Contradiction { rules, machines, why } in contradictions {
        let machines: Vec<String> = machines.iter().map(ToString::to_string).collect();
        println!("contradiction between {}: {why} ({})", rules.join(", "), machines.join(", "));
    }
}

/// What would be done, and why.
pub(crate) fn proposed(plan: &Plan) {
    let Plan { steps, blocked, contradictions: contradicting, before, after, ends_ms, cut_short } = plan;
    contradictions(contradicting);
    let seconds = |ms: u64| format!("{:.1} s", Duration::from_millis(ms).as_secs_f64());
    if !steps.is_empty() {
        let mut rows =
            table(&["STEP", "WHAT", "FROM", "TO", "WHY", "GAIN", "COST", "BEGINS", "TAKES", "BYTES", "PAUSE"]);
        for step in steps {
            rows.add_row([
                step.number.to_string(),
                step.subject.to_string(),
                step.from.to_string(),
                step.to.to_string(),
                word(&step.motive),
                format!("{:.2}", step.gain),
                format!("{:.2}", step.cost),
                seconds(step.begins_ms),
                seconds(step.takes_ms),
                ByteSize(step.bytes).to_string(),
                format!("{:.0} ms", step.downtime_ms),
            ]);
        }
        println!("{rows}");
        for step in steps {
            println!("{}: {}", step.number, step.reason);
            for rejected in &step.rejected {
                println!("   not {}: {}", rejected.host, rejected.why);
            }
        }
    }
    for Blocked { subject, motive, why } in blocked {
        println!("cannot {} {}: {why}", word(motive), subject);
    }
    if steps.is_empty() {
        println!("Nothing to move: {}", standing(before));
    } else {
        println!("now    {}", standing(before));
        println!("after  {}, in {}", standing(after), seconds(*ends_ms));
    }
    if *cut_short {
        println!("There may be something better: the search was ended by its limit");
    }
}

fn standing(standing: &Standing) -> String {
    format!(
        "{} hosts overloaded, {} rules broken, busiest {:.0} %, average {:.0} %",
        standing.hosts_overloaded,
        standing.rules_broken,
        standing.load_max * 100.0,
        standing.load_mean * 100.0
    )
}

/// What would be, and what would be done about it.
pub(crate) fn supposed(supposed: &Supposed) {
    let Supposed { now, added, grown, plan } = supposed;
    println!("As it is: {}", standing(now));
    for AddedHost { host, like } in added {
        println!("{host} would be a host like {like}");
    }
    if *grown > 0 {
        println!("{grown} machines would ask for another share of processors");
    }
    println!("What would be done then:");
    proposed(plan);
}

/// A step's progress in one line.
pub(crate) fn step_progress(step: &PlannedStep, state: &StepState) -> String {
    let step = format!("step {}: {} from {} to {}", step.number, step.subject, step.from, step.to);
    match state {
        StepState::Waiting => format!("{step} waits"),
        StepState::Moving { id } => format!("{step} begins ({id})"),
        StepState::Done { id } => format!("{step} is done ({id})"),
        StepState::Failed { why } => format!("{step} failed: {why}"),
        StepState::Dropped { why } => format!("{step} was dropped: {why}"),
    }
}

/// How far a plan is.
pub(crate) fn plan_view(view: &PlanView) {
    let PlanView { id, goal, asked_by, state, plan, progress, .. } = view;
    let done = progress.iter().filter(|step| matches!(step, StepState::Done { .. })).count();
    println!("{id} ({goal}, asked by {asked_by}) is {}: {done} of {} steps done", word(state), progress.len());
    for (step, state) in plan.steps.iter().zip(progress) {
        if matches!(state, StepState::Failed { .. } | StepState::Dropped { .. }) {
            println!("  {}", step_progress(step, state));
        }
    }
}

pub(crate) fn plans(plans: &[PlanView]) {
    let mut rows = table(&["PLAN", "GOAL", "ASKED BY", "STATE", "STEPS", "DONE", "BLOCKED"]);
    for PlanView { id, goal, asked_by, state, plan, progress, .. } in plans {
        let done = progress.iter().filter(|step| matches!(step, StepState::Done { .. })).count();
        rows.add_row([
            id.to_string(),
            goal.to_string(),
            asked_by.clone(),
            word(state),
            progress.len().to_string(),
            done.to_string(),
            plan.blocked.len().to_string(),
        ]);
    }
    println!("{rows}");
}

pub(crate) fn policy(view: &PolicyView) {
    let PolicyView { policy, moves_last_hour, last_look, left_alone } = view;
    let PolicySpec {
        mode,
        moves_per_hour_max,
        cpu_percent_content,
        downtime_ms_max,
        hold_s,
        cooldown_s,
        respect_s,
        moves_per_host_max,
        link_percent_max,
    } = policy;
    let time = |seconds: u32| humantime::format_duration(Duration::from_secs(u64::from(seconds)));
    println!("mode         {}", word(mode));
    println!(
        "moves        {moves_last_hour} in the last hour, {moves_per_hour_max} at most; {moves_per_host_max} at a time for each host"
    );
    println!("content      up to {cpu_percent_content} % of a host's processors");
    println!("pause        {downtime_ms_max} ms at most");
    println!("links        {link_percent_max} % at most");
    println!("hold         {}", time(*hold_s));
    println!("cool-down    {}", time(*cooldown_s));
    println!("respect      {}", time(*respect_s));
    if let Some(look) = last_look {
        println!("last look    {look}");
    }
    for LeftAlone { machine, why, for_s } in left_alone {
        let time = humantime::format_duration(Duration::from_secs(*for_s));
        println!("left alone   {machine} for {time}: {why}");
    }
}

pub(crate) fn explanation(explanation: &Explanation) {
    let Explanation { subject, host, satisfaction, here, rules, places, conclusion } = explanation;
    println!("{} is on {host} and gets {:.0} % of the processors it asks for", subject, satisfaction * 100.0);
    here.iter().for_each(|line| println!("  {line}"));
    for RuleNote { rule, kept, why } in rules {
        println!("rule {rule}: {}: {why}", if *kept { "kept" } else { "broken" });
    }
    for PlaceNote { host, possible, gain, cost, why } in places {
        if *possible {
            println!("{host}: would gain {gain:.2} for {cost:.2}: {}", why.join("; "));
        } else {
            println!("{host}: not possible: {}", why.join("; "));
        }
    }
    println!("{conclusion}");
}
