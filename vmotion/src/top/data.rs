//! What there is to show, as the controller tells it, and as rows of each section.

use crate::arguments::Section;
use serde::Serialize;
use std::collections::BTreeMap;
use vmotion_api::{
    ClientError, ControllerClient, HostUse, MachineView, Operation, PlanState, PlanView, PolicyView, StepState,
};
use vmotion_model::{ByteSize, Host, HostTelemetry, MachineName, MachineTelemetry, MoveOutcome, PAGE_SIZE};

/// Ended moves and plans that are shown.
const ENDED_SHOWN: usize = 20;
/// Figures of a host that has not said any for so long are not of now, in ms.
const OLD_MS: u64 = 15_000;

/// Everything, at one time.
#[derive(Debug, Default, Serialize)]
pub(super) struct Data {
    pub(super) hosts: Vec<Host>,
    pub(super) usage: Vec<HostUse>,
    pub(super) machines: Vec<MachineView>,
    /// Those under way, and the last that ended.
    pub(super) moves: Vec<Operation>,
    /// The same.
    pub(super) plans: Vec<PlanView>,
    pub(super) policy: Option<PolicyView>,
}

impl Data {
    pub(super) async fn fetch(client: &ControllerClient) -> Result<Self, ClientError> {
        let (hosts, usage, machines, moves, plans, policy) = tokio::try_join!(
            client.hosts(),
            client.usage(),
            client.machines(),
            client.moves(),
            client.plans(),
            client.policy()
        )?;
        let moves = latest(moves, |operation| operation.outcome.is_none());
        let plans = latest(plans, |plan| plan.state == PlanState::Running);
        Ok(Self { hosts, usage, machines, moves, plans, policy: Some(policy) })
    }
}

/// Those that go on, then the last that ended; of a list with the oldest first.
fn latest<T>(all: Vec<T>, goes_on: impl Fn(&T) -> bool) -> Vec<T> {
    let (mut shown, ended): (Vec<T>, Vec<T>) = all.into_iter().rev().partition(goes_on);
    shown.extend(ended.into_iter().take(ENDED_SHOWN));
    shown
}

/// One field: what is shown, and what it is sorted by.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Cell {
    pub(super) text: String,
    pub(super) number: Option<f64>,
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self { text, number: None }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

/// A figure; `-` for what nobody has said.
fn figure(number: Option<f64>, show: impl Fn(f64) -> String) -> Cell {
    Cell { text: number.map_or_else(|| "-".to_owned(), show), number }
}

fn cpus(number: f64) -> String {
    format!("{number:.2}")
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bytes, shown with a unit")]
fn bytes(number: f64) -> String {
    ByteSize(number.max(0.0) as u64).to_string()
}

/// A table of one section.
#[derive(Debug, Default)]
pub(super) struct Rows {
    pub(super) header: &'static [&'static str],
    pub(super) rows: Vec<Vec<Cell>>,
}

impl Data {
    pub(super) fn rows(&self, section: Section) -> Rows {
        let (header, rows): (&'static [&'static str], _) = match section {
            Section::Hosts => (
                &["HOST", "DC", "STATE", "CPU", "OF", "MEMORY", "OF", "WAITS %", "IN/s", "OUT/s", "MACHINES"],
                self.hosts(),
            ),
            Section::Machines => (
                &[
                    "MACHINE",
                    "STATE",
                    "HOST",
                    "VCPUS",
                    "CPU",
                    "WAITED",
                    "MEMORY",
                    "DIRTY/s",
                    "WORKING SET",
                    "EPOCH",
                    "MOVE",
                ],
                self.machines(),
            ),
            Section::Pieces => (&["MACHINE", "PIECE", "HOST", "CPU", "EPOCH"], self.pieces()),
            Section::Moves => (&["MOVE", "MACHINE", "FROM", "TO", "ASKED BY", "HOW"], self.moves()),
            Section::Plans => (&["PLAN", "GOAL", "ASKED BY", "STATE", "STEPS", "DONE", "BLOCKED"], self.plans()),
        };
        Rows { header, rows }
    }

    /// What each machine uses where, as far as that is of now.
    fn used(&self) -> BTreeMap<&MachineName, Vec<(&HostUse, &MachineTelemetry)>> {
        let mut used: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for host in self.usage.iter().filter(|host| host.age_ms < OLD_MS) {
            for machine in &host.machines {
                used.entry(&machine.machine).or_default().push((host, &machine.telemetry));
            }
        }
        used
    }

    #[expect(clippy::cast_precision_loss, reason = "bytes and counts, to be sorted by")]
    fn hosts(&self) -> Vec<Vec<Cell>> {
        let row = |host: &Host| {
            let told = self
                .usage
                .iter()
                .find(|usage| usage.host == host.name && usage.age_ms < OLD_MS)
                .and_then(|usage| usage.telemetry);
            let of = |pick: fn(&HostTelemetry) -> f64| told.as_ref().map(pick);
            let waits = told
                .and_then(|told| told.pressure)
                .map(|pressure| f64::from(pressure.cpu_percent.max(pressure.memory_percent).max(pressure.io_percent)));
            let mut state = vec![crate::output::word(&host.state)];
            state.extend(host.draining.then(|| "draining".to_owned()));
            state.extend((host.cordoned && !host.draining).then(|| "cordoned".to_owned()));
            let machines = self.machines.iter().filter(|machine| machine.host == host.name).count() as f64;
            vec![
                host.name.to_string().into(),
                host.datacenter.to_string().into(),
                state.join(", ").into(),
                figure(of(|told| f64::from(told.cpus_busy)), cpus),
                figure(of(|told| f64::from(told.cpus)), |number| format!("{number}")),
                figure(Some(host.capacity.memory_used.0 as f64), bytes),
                figure(Some(host.capacity.memory.0 as f64), bytes),
                figure(waits, |number| format!("{number:.0}")),
                figure(of(|told| told.received_bytes_per_s), bytes),
                figure(of(|told| told.sent_bytes_per_s), bytes),
                figure(Some(machines), |number| format!("{number}")),
            ]
        };
        self.hosts.iter().map(row).collect()
    }

    #[expect(clippy::cast_precision_loss, reason = "bytes and counts, to be sorted by")]
    fn machines(&self) -> Vec<Vec<Cell>> {
        let used = self.used();
        let row = |machine: &MachineView| {
            // One that is being moved has a process on both hosts, of which one runs it.
            let runs_on = |host: &HostUse| !machine.pieces.is_empty() || host.host == machine.host;
            let parts = used.get(&machine.name).map(Vec::as_slice).unwrap_or_default();
            let parts: Vec<_> = parts.iter().filter(|(host, _)| runs_on(host)).collect();
            let sum = |pick: fn(&MachineTelemetry) -> f64| {
                (!parts.is_empty()).then(|| parts.iter().map(|(_, told)| pick(told)).sum::<f64>())
            };
            let memory = parts.iter().find_map(|(_, told)| told.memory);
            vec![
                machine.name.to_string().into(),
                crate::output::word(&machine.state).into(),
                if machine.pieces.is_empty() { machine.host.to_string() } else { "several".to_owned() }.into(),
                figure(Some(f64::from(machine.spec.cpus)), |number| format!("{number}")),
                figure(sum(|told| f64::from(told.cpus)), cpus),
                figure(sum(|told| f64::from(told.cpus_waited)), cpus),
                figure(Some(machine.spec.memory.0 as f64), bytes),
                figure(memory.map(|memory| memory.dirty_pages_per_s * PAGE_SIZE as f64), bytes),
                figure(memory.map(|memory| memory.working_set_pages * PAGE_SIZE as f64), bytes),
                figure(Some(machine.epoch.0 as f64), |number| format!("{number}")),
                machine.move_id.as_ref().map(ToString::to_string).unwrap_or_default().into(),
            ]
        };
        self.machines.iter().map(row).collect()
    }

    #[expect(clippy::cast_precision_loss, reason = "epochs, to be sorted by")]
    fn pieces(&self) -> Vec<Vec<Cell>> {
        let used = self.used();
        let mut rows = Vec::new();
        for machine in &self.machines {
            for piece in &machine.pieces {
                let on =
                    used.get(&machine.name).and_then(|parts| parts.iter().find(|(host, _)| host.host == piece.host));
                let busy = on.and_then(|(_, told)| {
                    told.vcpus.iter().find(|vcpu| vmotion_model::PieceName::Vcpu(vcpu.vcpu) == piece.name)
                });
                rows.push(vec![
                    machine.name.to_string().into(),
                    piece.name.to_string().into(),
                    piece.host.to_string().into(),
                    figure(busy.map(|vcpu| f64::from(vcpu.cpus)), cpus),
                    figure(Some(piece.epoch.0 as f64), |number| format!("{number}")),
                ]);
            }
        }
        rows
    }

    fn moves(&self) -> Vec<Vec<Cell>> {
        let row = |operation: &Operation| {
            let how = match (&operation.outcome, &operation.progress) {
                (Some(outcome), _) => ended(outcome, operation),
                (None, Some(progress)) => crate::progress::numbers(progress),
                (None, None) => "preparing".to_owned(),
            };
            let waits = operation.note.as_ref().map(|note| format!("; waiting: {note}")).unwrap_or_default();
            vec![
                operation.id.to_string().into(),
                operation.machine.to_string().into(),
                operation.source.to_string().into(),
                operation.target.to_string().into(),
                operation.asked_by.clone().unwrap_or_default().into(),
                format!("{how}{waits}").into(),
            ]
        };
        self.moves.iter().map(row).collect()
    }

    #[expect(clippy::cast_precision_loss, reason = "counts, to be sorted by")]
    fn plans(&self) -> Vec<Vec<Cell>> {
        let count = |number: usize| figure(Some(number as f64), |number| format!("{number}"));
        let row = |plan: &PlanView| {
            let done = plan.progress.iter().filter(|step| matches!(step, StepState::Done { .. })).count();
            vec![
                plan.id.to_string().into(),
                plan.goal.to_string().into(),
                plan.asked_by.clone().into(),
                crate::output::word(&plan.state).into(),
                count(plan.progress.len()),
                count(done),
                count(plan.plan.blocked.len()),
            ]
        };
        self.plans.iter().map(row).collect()
    }
}

fn ended(outcome: &MoveOutcome, operation: &Operation) -> String {
    let word = serde_json::to_value(outcome).ok();
    let word = word.as_ref().and_then(|value| value["result"].as_str()).unwrap_or("over").to_owned();
    match &operation.summary {
        Some(summary) if *outcome == MoveOutcome::Moved => format!(
            "{word} in {:.1} s, stood still {:.1} ms, sent {}",
            summary.total_ms / 1000.0,
            summary.downtime.source_ms,
            ByteSize(summary.wire_bytes)
        ),
        _ => word,
    }
}
