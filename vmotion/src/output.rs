//! Tables and JSON on standard output.

mod audit;
mod policy;
mod shape;
mod simulation;

pub(crate) use audit::audit;
pub(crate) use policy::{applied, explanation, plan_view, plans, policy, proposed, step_progress, supposed};
pub(crate) use shape::{advice, plan, shape};
pub(crate) use simulation::{simulation, subject};

use comfy_table::{Table, presets};
use serde::Serialize;
use std::time::Duration;
use vmotion_agent::doctor::Finding;
use vmotion_api::{MachineView, Operation};
use vmotion_model::{
    Accuracy, ByteSize, Forecast, Host, HostName, MoveOutcome, MoveSummary, Outlook, Piece, PieceName, Placement,
    Verdict,
};

/// Prints `value` as JSON.
pub(crate) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    table
}

/// A value's name as serde writes it.
pub(crate) fn word(value: &impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

pub(crate) fn machines(machines: &[MachineView]) {
    let mut rows = table(&["NAME", "STATE", "HOST", "CPUS", "MEMORY", "EPOCH", "MOVE"]);
    for machine in machines {
        rows.add_row([
            machine.name.to_string(),
            word(&machine.state),
            machine.host.to_string(),
            machine.spec.cpus.to_string(),
            machine.spec.memory.to_string(),
            machine.epoch.0.to_string(),
            machine.move_id.as_ref().map(ToString::to_string).unwrap_or_default(),
        ]);
    }
    println!("{rows}");
}

pub(crate) fn machine(machine: &MachineView) {
    let MachineView { name, spec, host, epoch, state, reason, move_id, console_bytes, pid, pieces: at } = machine;
    println!("machine   {name}");
    println!("state     {}{}", word(state), reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default());
    println!("host      {host}");
    if !at.is_empty() {
        println!("pieces    {}", pieces(at));
    }
    println!("epoch     {}", epoch.0);
    println!("cpus      {}", spec.cpus);
    println!("memory    {} ({})", spec.memory, word(&spec.backing));
    println!("kernel    {}", spec.kernel.display());
    if let Some(initrd) = &spec.initrd {
        println!("initrd    {}", initrd.display());
    }
    println!("cmdline   {}", spec.cmdline);
    for disk in &spec.disks {
        println!("disk      {}{}", disk.path.display(), if disk.read_only { " (read-only)" } else { "" });
    }
    println!("dirty     {}", word(&spec.dirty_source));
    println!("irqs      {}", word(&spec.interrupts));
    println!("console   {}", ByteSize(*console_bytes));
    if let Some(pid) = pid {
        println!("process   {pid}");
    }
    if let Some(id) = move_id {
        println!("move      {id}");
    }
}

/// `vcpu0-1 h1, vcpu2 h2, mem0 h1`: neighbours on one host together.
pub(crate) fn pieces(pieces: &[Piece]) -> String {
    let kind = |name: PieceName| match name {
        PieceName::Vcpu(number) => ("vcpu", number),
        PieceName::Memory(number) => ("mem", number),
    };
    let mut groups: Vec<(&str, u8, u8, &HostName)> = Vec::new();
    for Piece { name, host, .. } in pieces {
        let (kind, number) = kind(*name);
        match groups.last_mut() {
            Some(last) if last.0 == kind && last.3 == host && last.2.checked_add(1) == Some(number) => last.2 = number,
            _ => groups.push((kind, number, number, host)),
        }
    }
    let group = |(kind, first, last, host): (&str, u8, u8, &HostName)| {
        if first == last { format!("{kind}{first} {host}") } else { format!("{kind}{first}-{last} {host}") }
    };
    groups.into_iter().map(group).collect::<Vec<_>>().join(", ")
}

pub(crate) fn findings(findings: &[Finding]) {
    for Finding { check, severity, found, advice } in findings {
        println!("{:8} {check}: {found}", word(severity));
        if let Some(advice) = advice {
            println!("         {advice}");
        }
    }
}

pub(crate) fn hosts(hosts: &[Host]) {
    let mut rows = table(&["HOST", "DATACENTER", "STATE", "CPUS", "MEMORY", "USED", "SEEN", "CPU"]);
    for host in hosts {
        let state = match (host.draining, host.cordoned) {
            (true, _) => format!("{} (draining)", word(&host.state)),
            (false, true) => format!("{} (cordoned)", word(&host.state)),
            (false, false) => word(&host.state),
        };
        rows.add_row([
            host.name.to_string(),
            host.datacenter.to_string(),
            state,
            host.capacity.cpus.to_string(),
            host.capacity.memory.to_string(),
            host.capacity.memory_used.to_string(),
            format!("{:.1} s ago", Duration::from_millis(host.seen_ms_ago).as_secs_f64()),
            format!("{} {}", host.cpu.vendor, host.cpu.signature),
        ]);
    }
    println!("{rows}");
}

pub(crate) fn moves(moves: &[Operation]) {
    let mut rows = table(&["MOVE", "MACHINE", "FROM", "TO", "STATE", "TOTAL", "DOWNTIME"]);
    for operation in moves {
        let state = match (&operation.outcome, &operation.progress) {
            (Some(outcome), _) => outcome_word(outcome).to_owned(),
            (None, Some(progress)) => word(&progress.phase),
            (None, None) => "preparing".to_owned(),
        };
        let ms = |value: Option<f64>| value.map(|ms| format!("{ms:.1} ms")).unwrap_or_default();
        rows.add_row([
            operation.id.to_string(),
            operation.machine.to_string(),
            operation.source.to_string(),
            operation.target.to_string(),
            state,
            ms(operation.summary.as_ref().map(|summary| summary.total_ms)),
            ms(operation.summary.as_ref().map(|summary| summary.downtime.source_ms)),
        ]);
    }
    println!("{rows}");
}

pub(crate) const fn outcome_word(outcome: &MoveOutcome) -> &'static str {
    match outcome {
        MoveOutcome::Moved => "moved",
        MoveOutcome::Cancelled => "cancelled",
        MoveOutcome::Surveyed => "surveyed",
        MoveOutcome::RolledBack { .. } => "rolled back",
        MoveOutcome::Partly { .. } => "partly moved",
        MoveOutcome::SourceLost { .. } => "source lost",
        MoveOutcome::Stranded { .. } => "stranded",
    }
}

pub(crate) fn placement(placement: &Placement) {
    match &placement.chosen {
        Some(host) => println!("It would go to {host}"),
        None => println!("No host fits"),
    }
    for judgement in &placement.judgements {
        match &judgement.verdict {
            Verdict::Fits { score, reasons } => {
                println!("  {}: fits, score {score:.0}: {}", judgement.host, reasons.join("; "))
            }
            Verdict::Rejected { reasons } => println!("  {}: rejected: {}", judgement.host, reasons.join("; ")),
        }
    }
}

/// What each strategy would come to.
pub(crate) fn outlook(outlook: &Outlook) {
    let Outlook { survey, forecasts, chosen } = outlook;
    println!(
        "Measured: {:.0} MiB to copy, {}/s of memory at {:.0} bytes a page, round trip {:.1} ms; the guest writes {:.0} MiB/s over {:.0} MiB",
        mib(survey.pages_left as f64),
        ByteSize(rounded(survey.pages_per_s * 4096.0)),
        survey.bytes_per_page,
        survey.rtt_ms,
        mib(survey.dirty_pages_per_s),
        mib(survey.working_set_pages),
    );
    let mut rows = table(&["STRATEGY", "TOTAL", "DOWNTIME", "BYTES", "SLOWDOWN", ""]);
    for forecast in forecasts {
        let Forecast { strategy, total_ms, downtime_ms, wire_bytes, slowdown_percent, refused, .. } = forecast;
        let note = match refused {
            Some(why) => format!("impossible: {why}"),
            None if Some(*strategy) == *chosen => "would be taken".to_owned(),
            None => String::new(),
        };
        let s = |ms: f64| format!("{:.1}", ms / 1000.0);
        let size = |bytes: f64| ByteSize(rounded(bytes)).to_string();
        // One that has no end has no numbers.
        if total_ms.likely <= 0.0 {
            rows.add_row([strategy.as_str(), "–", "–", "–", "–", &note]);
            continue;
        }
        rows.add_row([
            strategy.to_string(),
            format!("{} s ({} to {})", s(total_ms.likely), s(total_ms.low), s(total_ms.high)),
            format!("{:.0} ms ({:.0} to {:.0})", downtime_ms.likely, downtime_ms.low, downtime_ms.high),
            format!("{} ({} to {})", size(wire_bytes.likely), size(wire_bytes.low), size(wire_bytes.high)),
            format!("{:.0} %", slowdown_percent.likely),
            note,
        ]);
    }
    println!("{rows}");
    if chosen.is_none() {
        println!("Nothing does what was asked: allow a longer pause, deadline or slowdown, or more bandwidth");
    }
}

fn mib(pages: f64) -> f64 {
    pages / 256.0
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, and is for people")]
const fn rounded(bytes: f64) -> u64 {
    bytes as u64
}

/// The rounds of a move, and what was foreseen of it.
pub(crate) fn details(operation: &Operation) {
    let Some(summary) = &operation.summary else { return };
    let mut rows = table(&["ROUND", "BEGAN", "TOOK", "PAGES", "WIRE", "DIRTIED"]);
    for round in &summary.timeline.rounds {
        rows.add_row([
            round.round.to_string(),
            format!("{:.0} ms", round.began_ms),
            format!("{:.1} ms", round.duration_ms),
            round.pages.total().to_string(),
            ByteSize(round.wire_bytes).to_string(),
            round.dirtied_pages.to_string(),
        ]);
    }
    println!("{rows}");
    for event in &summary.timeline.events {
        println!("{:>9.1} ms  {}", event.at_ms, event.what);
    }
    if let Some(outlook) = &summary.outlook {
        self::outlook(outlook);
    }
}

/// How far forecasts were off.
pub(crate) fn accuracy(accuracy: &Accuracy) {
    let Accuracy { moves, total, downtime, wire_bytes, pause_fixed_ms } = accuracy;
    println!("{moves} moves were foreseen and carried through");
    let mut rows = table(&["", "MEDIAN ERROR", "8 OF 10 WITHIN"]);
    for (what, deviation) in [("total time", total), ("downtime", downtime), ("bytes", wire_bytes)] {
        let percent = |share: f64| format!("{:.0} %", share * 100.0);
        rows.add_row([what.to_owned(), percent(deviation.median), percent(deviation.p80)]);
    }
    println!("{rows}");
    if let Some(ms) = pause_fixed_ms {
        println!("a pause takes {ms:.1} ms besides pages and round trips");
    }
}

/// The report of a move: one line of result, then the numbers.
pub(crate) fn operation(operation: &Operation) {
    let Operation { id, machine, source, target, outcome, summary, progress, note, steps, .. } = operation;
    match outcome {
        _ if !steps.is_empty() => shape::operation(operation),
        Some(MoveOutcome::Moved) => println!("{machine} moved from {source} to {target} ({id})"),
        Some(MoveOutcome::Cancelled) => println!("{id} was cancelled; {machine} runs on at {source}"),
        Some(MoveOutcome::Surveyed) => println!("{id} only measured; {machine} runs on at {source}"),
        Some(MoveOutcome::RolledBack { reason } | MoveOutcome::Partly { reason }) => {
            println!("{id} was rolled back; {machine} runs on at {source}");
            println!("  reason     {reason}");
        }
        Some(MoveOutcome::SourceLost { reason }) => {
            println!("{id} lost its source; {machine} runs nowhere");
            println!("  reason     {reason}");
        }
        Some(MoveOutcome::Stranded { reason }) => {
            println!(
                "{id} stranded {machine}: it had been handed over to {target}, and the rest of its memory is lost"
            );
            println!("  reason     {reason}");
        }
        None => {
            println!("{id}: {machine} from {source} to {target} is under way");
            if let Some(progress) = progress {
                println!("  now        {}", crate::progress::numbers(progress));
            }
        }
    }
    if let Some(note) = note {
        println!("  waiting    {note}");
    }
    if let Some(summary) = summary {
        self::summary(summary);
    }
}

fn summary(summary: &MoveSummary) {
    let MoveSummary {
        total_ms,
        downtime,
        predicted,
        rounds,
        pages,
        wire_bytes,
        udp_bytes,
        source_cpu_s,
        target_cpu_s,
        digests,
        follow,
        slowdown_percent,
        ..
    } = summary;
    let foreseen = match predicted.total_ms {
        ms if ms > 0.0 => format!("predicted {ms:.0} ms"),
        _ => "not predicted: nothing was copied before the pause".to_owned(),
    };
    println!("  total      {total_ms:.0} ms ({foreseen}), {rounds} rounds");
    if downtime.source_ms > 0.0 {
        println!(
            "  downtime   {:.1} ms at the source, {:.1} ms at the target (predicted {:.1} ms)",
            downtime.source_ms, downtime.target_ms, predicted.downtime_ms
        );
        println!(
            "             pause {:.2}, save {:.2}, last pages {:.2}, on the way {:.2}, digest {:.2}, load {:.2}, commit {:.2}, resume {:.2} ms",
            downtime.pause_ms,
            downtime.save_ms,
            downtime.last_pages_ms,
            downtime.transfer_ms,
            downtime.digest_ms,
            downtime.load_ms,
            downtime.commit_ms,
            downtime.resume_ms
        );
    }
    println!(
        "  pages      {} zero, {} raw, {} lz4, {} zstd, {} delta, {} unchanged",
        pages.zero, pages.raw, pages.lz4, pages.zstd, pages.delta, pages.unchanged
    );
    println!("  wire       {} of pages, {} in UDP datagrams", ByteSize(*wire_bytes), ByteSize(*udp_bytes));
    println!("  cpu        {source_cpu_s:.2} s source, {target_cpu_s:.2} s target (guest included)");
    if let Some(follow) = follow {
        println!(
            "  followed   {} pages in {:.0} ms after the guest; it waited for {} of them: p50 {:.0}, p99 {:.0}, p99.9 {:.0}, at most {:.0} µs",
            follow.missing_pages,
            follow.duration_ms,
            follow.demanded_pages,
            follow.stall_p50_us,
            follow.stall_p99_us,
            follow.stall_p999_us,
            follow.stall_max_us
        );
    }
    if *slowdown_percent > 0.0 {
        println!("  slowdown   {slowdown_percent:.1} % of the guest's speed while it was moved");
    }
    if let Some(digests) = digests {
        let verdict = if digests.equal() { "equal" } else { "DIFFERENT" };
        println!("  digests    {verdict}: {} {}", digests.source, digests.target);
    }
}
