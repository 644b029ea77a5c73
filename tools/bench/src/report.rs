//! Tables: what was measured, and how ours stands against the best of QEMU.

use crate::{
    arguments::{Arguments, Table},
    columns::{self, MIB, Measure},
    host,
    link::Link,
    sample::{Contestant, Sample},
    stats::{median, quantile},
    table::Plan,
};
use std::fmt::Write as _;
use vmotion_probe_guest::Content;

/// One link and content.
#[derive(Debug)]
pub(crate) struct Section {
    pub(crate) link: String,
    pub(crate) link_bits_per_s: Option<f64>,
    pub(crate) content: Content,
    pub(crate) table: Table,
    pub(crate) memory_bytes: f64,
    pub(crate) working_set_bytes: f64,
    pub(crate) contestants: Vec<Contestant>,
    /// By contestant.
    pub(crate) samples: Vec<Vec<Sample>>,
    /// Moves that did not happen: which, and why.
    pub(crate) failures: Vec<(String, String)>,
}

impl Section {
    pub(crate) fn new(link: &Link, content: Content, plan: &Plan) -> Self {
        let contestants = &plan.contestants;
        let samples = contestants.iter().map(|_| Vec::new()).collect();
        Self {
            link: link.name(),
            link_bits_per_s: link.bits_per_s(),
            content,
            table: plan.table,
            memory_bytes: plan.memory.bytes() as f64,
            working_set_bytes: plan.working_set.bytes() as f64,
            contestants: contestants.clone(),
            samples,
            failures: Vec::new(),
        }
    }

    fn values(&self, index: usize, measure: &Measure) -> Vec<f64> {
        self.samples[index].iter().map(|sample| (measure.value)(sample, self)).collect()
    }
}

/// One line while the bench runs.
pub(crate) fn brief(sample: &Sample) -> String {
    format!(
        "{}total {:.0} ms (own {:.0}), gap {:.1} ms (own {:.1}; before p99 {:.1}, max {:.1}; copying max {:.1}), {:.0} MiB, CPU {:.2} s ({:.2} without vCPUs; others had {:.0} %), {} beats missing{}{}{}",
        sample.unfinished.as_ref().map(|why| format!("{why}; ")).unwrap_or_default(),
        sample.total_ms,
        sample.own_total_ms,
        sample.gap_ms,
        sample.own_downtime_ms,
        sample.before_p99_ms,
        sample.before_max_ms,
        sample.copying_max_ms,
        sample.wire_bytes / MIB,
        sample.cpu_s,
        sample.cpu_own_s,
        sample.disturbed * 100.0,
        sample.beats_missing,
        sample.link_drops.map(|drops| format!(", {drops} packets dropped")).unwrap_or_default(),
        sample.carried.as_ref().map(|carried| format!(", {carried:?}")).unwrap_or_default(),
        sample.waits.as_ref().map(|waits| format!(", {waits:?}")).unwrap_or_default(),
    )
}

/// Median, and the range it comes from.
fn cell(values: &[f64], decimals: usize) -> String {
    let values: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
    if values.is_empty() {
        return "–".to_owned();
    }
    let (low, middle, high) = (quantile(&values, 0.0), median(&values), quantile(&values, 1.0));
    format!("{middle:.decimals$} ({low:.decimals$}–{high:.decimals$})")
}

/// One link and content as a Markdown table, and the ratios below it.
pub(crate) fn section(section: &Section) -> String {
    let mut text = format!("## {}, {:?} pages\n\n", section.link, section.content);
    let measures = columns::of(section.table);
    let names: Vec<_> = measures.iter().map(|measure| measure.name).collect();
    let _ = writeln!(text, "| | {} |\n|---|{}", names.join(" | "), "---:|".repeat(measures.len()));
    for (index, contestant) in section.contestants.iter().enumerate() {
        let mut cells: Vec<_> =
            measures.iter().map(|measure| cell(&section.values(index, measure), measure.decimals)).collect();
        let mut unfinished = section.samples[index].iter().filter_map(|sample| sample.unfinished.as_ref());
        if let (Some(first), Some(why)) = (cells.first_mut(), unfinished.next()) {
            let (count, all) = (unfinished.count() + 1, section.samples[index].len());
            *first = if count == all { why.clone() } else { format!("{first}; {count} of {all} {why}") };
        }
        let _ = writeln!(text, "| {} | {} |", contestant.name(), cells.join(" | "));
    }
    text.push('\n');
    for (label, reason) in &section.failures {
        let _ = writeln!(text, "- did not move: {label}: {reason}");
    }
    if let Some(link) = section.link_bits_per_s {
        let seconds = section.working_set_bytes * 8.0 / link;
        let _ = writeln!(text, "The working set takes {seconds:.1} s at the link's rate.");
    }
    text.push_str(&emulator(section));
    text.push('\n');
    text.push_str(&ratios(section));
    text
}

/// How well the emulator kept up.
fn emulator(section: &Section) -> String {
    let carried: Vec<_> = section.samples.iter().flatten().filter_map(|sample| sample.carried.as_ref()).collect();
    if carried.is_empty() {
        return String::new();
    }
    let overrun: u64 = carried.iter().map(|carried| carried.overrun).sum();
    let late = carried.iter().map(|carried| carried.late_max_ms).fold(0.0, f64::max);
    format!("The emulator missed {overrun} packets in all moves together, and was at most {late:.1} ms late.\n")
}

fn ratios(section: &Section) -> String {
    let mut text = String::new();
    let ours = |contestant: &Contestant| matches!(contestant, Contestant::Ours(_));
    let Some(ours) = section.contestants.iter().position(ours) else {
        return text;
    };
    let measures: Vec<_> = columns::of(section.table).iter().filter(|measure| measure.ratio.is_some()).collect();
    let _ = writeln!(text, "| ours / QEMU | best of all modes | best mode with TLS |\n|---|---|---|");
    for measure in measures {
        let own = median(&section.values(ours, measure));
        let ratio = |encrypted: bool| match best(section, measure, encrypted) {
            Some((name, value)) if value > 0.0 && own > 0.0 => format!("{:.2} (of {name})", own / value),
            _ => "–".to_owned(),
        };
        let _ = writeln!(text, "| {} | {} | {} |", measure.ratio.unwrap_or_default(), ratio(false), ratio(true));
    }
    text
}

/// QEMU's best mode by median, and its value.
fn best(section: &Section, measure: &Measure, encrypted: bool) -> Option<(&'static str, f64)> {
    let modes = section.contestants.iter().enumerate();
    modes
        .filter(|(index, contestant)| {
            let fits = matches!(contestant, Contestant::Qemu(_)) && (!encrypted || contestant.is_encrypted());
            let samples = &section.samples[*index];
            fits && !samples.is_empty() && samples.iter().all(|sample| sample.unfinished.is_none())
        })
        .map(|(index, contestant)| (contestant.name(), median(&section.values(index, measure))))
        .min_by(|(_, left), (_, right)| left.total_cmp(right))
}

const NOTES: &str = "\
## How to read this

- One run of the bench moves the guest with every contestant in turn, in an order that changes from round to round. Cells
  are medians, with the smallest and the largest value behind them. \"Best\" is taken for each column by itself, so that
  QEMU's best total and its best downtime may come from different modes.
- *Total*: from the command until the source says that the move is over and the target runs. Ours begins with starting
  `vmotion move` and includes the choice of the host, starting the target's process and preparing its machine; QEMU's
  target process was started and prepared before.
- *Downtime from outside*: between the last heartbeat on the old console and the first on the new, both read by one
  observer on one clock. The guest beats every millisecond; the column `heartbeat gap p99 before` says how regular that is on this
  machine when nothing moves. What QEMU calls downtime leaves out the target's part.
- *Link used*: bytes that crossed the emulator towards the target, IP headers and retransmissions included, of those that fit.
  `packets dropped` counts what the queue dropped and what was lost on the way.
- *Processor time of others* during a move on the WAN includes the emulator's, which is the bench's own.
- *On the wire*: QEMU's `ram.transferred`; ours is all UDP payload of the source, state and retransmissions included.
- *CPU*: user and system time of every process at both ends, for ours also controller, agents and command line. Work that
  the kernel does in soft interrupts on behalf of others is in neither.
- Every connection of vmotion is encrypted and authenticated; QEMU's only where it says TLS.
- QEMU's bandwidth limit is lifted, and its downtime limit is that of ours (300 ms) unless the row says otherwise.
- Every QEMU and every service is in a session of its own, as a machine's process of ours is, so that the kernel's grouping of
  work by session favours nobody.
- Just before each move the bench touches and frees as much memory as the guest has: a cloud machine's free memory may have been
  given back to the machine below, and the first to touch it would pay for that, whoever it is.
- A `CORRUPT` line, or any other complaint of the guest, ends the bench with an error.
";

/// The report.
pub(crate) fn markdown(sections: &[Section], arguments: &Arguments, plan: &Plan) -> String {
    let runs = sections.iter().flat_map(|section| section.samples.iter().map(Vec::len)).max().unwrap_or(0);
    let mut text =
        "# Benchmarks\n\nThe same guest moved live through vmotion and through QEMU, side by side.\n\n".to_owned();
    let _ = writeln!(
        text,
        "Guest: 2 vCPUs, {} memory, {} of it written over and over at {}/s and verified, a heartbeat every millisecond. {runs} runs.\n",
        plan.memory, plan.working_set, plan.rate
    );
    for fact in host::facts() {
        let _ = writeln!(text, "- {fact}");
    }
    let busy = sections.iter().flat_map(|section| section.samples.iter().flatten()).map(|sample| sample.busy_before);
    let busy: Vec<f64> = busy.map(|part| part * 100.0).collect();
    let _ = writeln!(text, "- processors busy with other work before each guest was started: {} %", cell(&busy, 0));
    let samples = sections.iter().flat_map(|section| section.samples.iter().flatten());
    let disturbed: Vec<f64> = samples.clone().map(|sample| sample.disturbed * 100.0).collect();
    let again: u32 = samples.map(|sample| sample.attempts - 1).sum();
    let _ = writeln!(
        text,
        "- processor time that others had, or the hypervisor took, during the moves shown: {} %; {again} more moves were measured and left out for too much of it",
        cell(&disturbed, 0)
    );
    let _ = writeln!(
        text,
        "- the 1 Gbit/s link: two network namespaces, veth, MTU 1500, `tbf rate 1gbit burst 128kb latency {}ms` at both ends; the controller stands at the source's end",
        arguments.queue_ms
    );
    let _ = writeln!(
        text,
        "\nAgain: `cargo build -p vmotion && cargo run -p vmotion-bench -- {}` (as root)\n",
        std::env::args().skip(1).collect::<Vec<_>>().join(" ")
    );
    for part in sections {
        text.push_str(&section(part));
        text.push('\n');
    }
    text.push_str(NOTES);
    text
}
