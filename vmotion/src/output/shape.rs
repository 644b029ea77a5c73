//! Machines that span several hosts.

use super::table;
use vmotion_api::{MemberView, Operation, ShapePlan, SpanView};
use vmotion_model::{Advice, HotPage, MoveOutcome, PAGE_SIZE, PartFigures, Sharing, StepDone, VcpuPause};

/// What the hosts of a machine do, and who waits for whom.
pub(crate) fn shape(view: &SpanView) {
    let SpanView { members, remote_faults_per_s, hottest, sharing, .. } = view;
    println!("waits     {remote_faults_per_s:.0} remote faults a second");
    let mut rows = table(&["HOST", "PIECES", "FAULTS/S", "WAIT P50", "WAIT P99", "PAGES", "BOUNCED", "CLOCK"]);
    for MemberView { host, devices, pieces: here, figures, reason } in members {
        let mut here: Vec<String> = here.iter().map(ToString::to_string).collect();
        if *devices {
            here.push("devices".to_owned());
        }
        let Some(figures) = figures else {
            rows.add_row([host.to_string(), here.join(" "), reason.clone().unwrap_or_default()]);
            continue;
        };
        let PartFigures { window_ms, vcpus, wait_p50_us, wait_p99_us, pages_known, bounced, peers, .. } = figures;
        let faults: u64 = vcpus.iter().map(|vcpu| vcpu.faults).sum();
        let bound = peers.iter().filter_map(|peer| peer.clock_bound_us).reduce(f64::max);
        rows.add_row([
            host.to_string(),
            here.join(" "),
            format!("{:.0}", faults as f64 * 1000.0 / window_ms.max(1.0)),
            format!("{wait_p50_us:.0} µs"),
            format!("{wait_p99_us:.0} µs"),
            pages_known.to_string(),
            bounced.to_string(),
            bound.map_or_else(String::new, |us| format!("± {us:.0} µs")),
        ]);
    }
    println!("{rows}");
    for Sharing { one, other, faults_per_s } in sharing {
        println!("shared    {one} and {other}: {faults_per_s:.0} waits a second for the same pages");
    }
    for HotPage { page, slice, faults_per_s, vcpus } in hottest {
        let who = vcpus.iter().map(|vcpu| format!("vcpu{vcpu}")).collect::<Vec<_>>().join(", ");
        println!("hot       {:#x} in {slice}: {faults_per_s:.0} waits a second of {who}", page * PAGE_SIZE);
    }
}

/// Which pieces should be elsewhere, and why.
pub(crate) fn advice(advice: &[Advice]) {
    if advice.is_empty() {
        println!("Every piece is where it should be");
    }
    for Advice { piece, from, to, saves_per_s, why } in advice {
        println!("{piece} should go from {from} to {to}, which saves about {saves_per_s:.0} waits a second: {why}");
    }
}

/// What a change would do.
pub(crate) fn plan(plan: &ShapePlan) {
    if plan.steps.is_empty() {
        println!("The pieces of {} are there already", plan.machine);
    }
    for (number, step) in plan.steps.iter().enumerate() {
        println!("{:>3}  {step}", number + 1);
    }
}

/// The change of a machine's shape: how it ended, and its steps.
pub(super) fn operation(operation: &Operation) {
    let Operation { id, machine, outcome, steps, .. } = operation;
    let done = steps.iter().filter(|step| step.done.is_some()).count();
    match outcome {
        None => println!("{id}: {machine} is at step {} of {}", (done + 1).min(steps.len()), steps.len()),
        Some(MoveOutcome::Moved) => println!("{machine} has its pieces where they were wanted ({id})"),
        Some(MoveOutcome::Cancelled) => {
            println!("{id} was cancelled; {machine} runs on with its pieces where they are")
        }
        Some(MoveOutcome::RolledBack { reason }) => println!("{id} failed, and no piece of {machine} moved: {reason}"),
        Some(MoveOutcome::Partly { reason }) => println!("{id} was not completed; {machine} runs on: {reason}"),
        Some(other) => println!("{id} ended: {}", super::outcome_word(other)),
    }
    for step in steps {
        let began = step.began_ms.map_or_else(|| "          ".to_owned(), |ms| format!("{ms:>7.0} ms"));
        let came = match (&step.done, &step.failed) {
            (Some(StepDone { total_ms, pause_ms, pause, pages }), _) => {
                let mut paused = if *pause_ms > 0.0 { format!(", paused {pause_ms:.1} ms") } else { String::new() };
                if let Some(VcpuPause { stop_ms, save_ms, transfer_ms, restore_ms, claim_ms }) = pause {
                    paused += &format!(
                        " (stop {stop_ms:.1}, save {save_ms:.1}, transfer {transfer_ms:.1}, restore {restore_ms:.1}, claim {claim_ms:.1})"
                    );
                }
                let pages = if *pages > 0 { format!(", {pages} pages") } else { String::new() };
                format!("{total_ms:.1} ms{paused}{pages}")
            }
            (None, Some(_)) => "failed".to_owned(),
            (None, None) => "not done".to_owned(),
        };
        println!("  {began}  {}: {came}", step.step);
    }
}
