//! `docs/cli.md` says what the program does: every command, every exit code, every JSON field, and nothing else.

#![allow(clippy::unwrap_used, reason = "a test's panic is its report")]

use serde_json::Value;
use std::{collections::BTreeSet, process::Command};
use vmotion_agent::doctor::Finding;
use vmotion_api::{
    Applied, AuditEntry, AuditEvent, MachineView, MemberView, Operation, PlanGoal, PlanId, PlanState, PlanView,
    PolicyView, ShapePlan, SiteView, SpanView,
};
use vmotion_model::{
    Accuracy, Advice, ApiError, Backing, Blocked, ByteSize, ChangeKind, Contradiction, CpuModel, Deviation,
    DigestReport, DirtySource, DiskSpec, DowntimeReport, Epoch, ErrorCode, Expected, Explanation, FollowReport,
    Forecast, Host, HostCapacity, HostState, HotPage, InterruptController, Judgement, MachineSpec, MachineState,
    Motive, MoveId, MoveOutcome, MovePhase, MoveProgress, MoveRequest, MoveSummary, Outlook, PageCounts, PageFaults,
    PartFigures, PeerFigures, Piece, PieceName, Placement, Plan, PlannedStep, PolicySpec, Prediction, RoundRecord,
    Sharing, SiteChange, SiteSpec, Standing, Step, StepDone, StepReport, Strategy, Subject, Supposed, Survey, Timeline,
    TimelineEvent, TimelineSample, VcpuFigures, VcpuPause, Verdict,
};
use vmotion_policy::simulator::{Policy, Replay, Simulation, generate, replay};

const PAGE: &str = include_str!("../../docs/cli.md");

/// What `vmotion ARGUMENTS --help` prints.
fn help(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_vmotion")).args(arguments).arg("--help").output().unwrap();
    assert!(output.status.success(), "vmotion {arguments:?} --help: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The commands a help text lists.
fn commands(help: &str) -> Vec<String> {
    let after = help.split_once("\nCommands:\n").map_or("", |(_, rest)| rest);
    let listed = after.lines().take_while(|line| !line.is_empty()).filter(|line| !line.starts_with("   "));
    listed.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

/// The fields that the page documents under `### name`.
fn documented(name: &str) -> BTreeSet<String> {
    let heading = format!("\n### {name}\n");
    let (_, section) = PAGE.split_once(&heading).unwrap_or_else(|| panic!("the page has no {heading:?}"));
    let section = section.split("\n### ").next().unwrap();
    let cells = section.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    cells.map(|(field, _)| field.to_owned()).collect()
}

fn fields(value: &impl serde::Serialize) -> BTreeSet<String> {
    match serde_json::to_value(value).unwrap() {
        Value::Object(fields) => fields.into_iter().map(|(field, _)| field).collect(),
        other => panic!("{other} is not an object"),
    }
}

fn spec() -> MachineSpec {
    MachineSpec {
        name: "vm1".parse().unwrap(),
        cpus: 2,
        memory: ByteSize::gib(1),
        kernel: "/srv/vmlinux".into(),
        initrd: Some("/srv/initrd".into()),
        cmdline: String::new(),
        disks: vec![DiskSpec { path: "/srv/vm1.img".into(), read_only: false }],
        backing: Backing::Memfd,
        dirty_source: DirtySource::Auto,
        interrupts: InterruptController::Kernel,
    }
}

fn host() -> Host {
    Host {
        name: "h1".parse().unwrap(),
        datacenter: "dc1".parse().unwrap(),
        url: "https://127.0.0.1:1".to_owned(),
        capacity: HostCapacity::default(),
        cpu: CpuModel::default(),
        cordoned: false,
        draining: false,
        state: HostState::Up,
        seen_ms_ago: 0,
    }
}

fn piece() -> Piece {
    Piece { name: PieceName::Vcpu(0), host: "h1".parse().unwrap(), epoch: Epoch::FIRST }
}

fn hot() -> HotPage {
    HotPage { page: 1, slice: PieceName::Memory(0), faults_per_s: 1.0, vcpus: vec![0] }
}

fn sharing() -> Sharing {
    Sharing { one: PieceName::Vcpu(0), other: PieceName::Vcpu(1), faults_per_s: 1.0 }
}

fn advice() -> Advice {
    let (from, to) = ("h1".parse().unwrap(), "h2".parse().unwrap());
    Advice { piece: PieceName::Vcpu(0), from, to, saves_per_s: 1.0, why: String::new() }
}

fn peer_figures() -> PeerFigures {
    let host = "h2".parse().unwrap();
    PeerFigures { host, connected: true, sent_bytes: 1, received_bytes: 1, clock_bound_us: Some(1.0) }
}

fn member() -> MemberView {
    let (host, pieces) = ("h1".parse().unwrap(), vec![PieceName::Vcpu(0)]);
    MemberView { host, devices: true, pieces, figures: Some(PartFigures::default()), reason: None }
}

fn span() -> SpanView {
    SpanView {
        machine: "big1".parse().unwrap(),
        members: vec![member()],
        remote_faults_per_s: 1.0,
        hottest: vec![hot()],
        sharing: vec![sharing()],
        advice: vec![advice()],
    }
}

/// The fields of every kind of step.
fn step_fields() -> BTreeSet<String> {
    let host = || "h1".parse().unwrap();
    let steps = [Step::Join { host: host() }, Step::Move { piece: PieceName::Vcpu(0), from: host(), to: host() }]
        .map(StepReport::new);
    steps.iter().flat_map(fields).collect()
}

fn machine() -> MachineView {
    MachineView {
        name: "vm1".parse().unwrap(),
        spec: spec(),
        host: "h1".parse().unwrap(),
        epoch: Epoch::FIRST,
        state: MachineState::Running,
        reason: None,
        move_id: None,
        console_bytes: 0,
        pid: Some(1),
        pieces: vec![piece()],
    }
}

fn summary() -> MoveSummary {
    MoveSummary {
        machine: "vm1".parse().unwrap(),
        source: "h1".parse().unwrap(),
        target: "h2".parse().unwrap(),
        outcome: MoveOutcome::RolledBack { reason: "because".to_owned() },
        epoch: Epoch::FIRST,
        total_ms: 1.0,
        downtime: DowntimeReport::default(),
        predicted: Prediction::default(),
        rounds: 1,
        pages: PageCounts::default(),
        wire_bytes: 1,
        udp_bytes: 1,
        source_cpu_s: 0.1,
        target_cpu_s: 0.1,
        digests: Some(DigestReport { source: String::new(), target: String::new() }),
        follow: Some(FollowReport::default()),
        outlook: Some(Outlook::default()),
        slowdown_percent: 0.0,
        timeline: Timeline::default(),
    }
}

fn forecast() -> Forecast {
    Forecast {
        strategy: Strategy::Auto,
        total_ms: Expected::default(),
        downtime_ms: Expected::default(),
        wire_bytes: Expected::default(),
        slowdown_percent: Expected::default(),
        throttle_percent: 0,
        refused: None,
    }
}

fn round() -> RoundRecord {
    RoundRecord {
        round: 1,
        began_ms: 0.0,
        duration_ms: 1.0,
        pages: PageCounts::default(),
        wire_bytes: 1,
        dirtied_pages: 1,
    }
}

fn sample() -> TimelineSample {
    TimelineSample {
        at_ms: 0.0,
        phase: MovePhase::Copying,
        wire_bytes: 1,
        rate_bytes_per_s: 1,
        dirty_pages_per_s: 1,
        remaining_pages: 1,
    }
}

fn placement() -> Placement {
    let verdict = Verdict::Fits { score: 1.0, reasons: Vec::new() };
    Placement {
        chosen: Some("h2".parse().unwrap()),
        judgements: vec![Judgement { host: "h2".parse().unwrap(), verdict }],
    }
}

fn operation() -> Operation {
    let progress = MoveProgress {
        phase: MovePhase::Copying,
        round: 1,
        pages: PageCounts::default(),
        wire_bytes: 1,
        remaining_pages: 1,
        rate_bytes_per_s: 1,
        dirty_pages_per_s: 1,
        eta_ms: None,
        elapsed_ms: 1,
    };
    Operation {
        id: MoveId::numbered(1),
        machine: "vm1".parse().unwrap(),
        source: "h1".parse().unwrap(),
        target: "h2".parse().unwrap(),
        request: MoveRequest::default(),
        created_unix_ms: 1,
        progress: Some(progress),
        outcome: Some(summary().outcome),
        summary: Some(summary()),
        placement: Some(placement()),
        note: None,
        asked_by: None,
        motive: None,
        reason: None,
        trace: None,
        steps: Vec::new(),
    }
}

fn change() -> SiteChange {
    SiteChange { kind: ChangeKind::Add, what: String::new(), detail: String::new() }
}

fn policy() -> PolicyView {
    PolicyView { policy: PolicySpec::default(), moves_last_hour: 0, last_look: None, left_alone: Vec::new() }
}

fn subject() -> Subject {
    Subject { machine: "vm1".parse().unwrap(), piece: None }
}

fn planned() -> PlannedStep {
    PlannedStep {
        number: 1,
        subject: subject(),
        from: "h1".parse().unwrap(),
        to: "h2".parse().unwrap(),
        motive: Motive::Balance,
        reason: String::new(),
        gain: 1.0,
        cost: 1.0,
        after: Vec::new(),
        together: None,
        begins_ms: 0,
        takes_ms: 0,
        bytes: 0,
        downtime_ms: 0.0,
        rejected: Vec::new(),
    }
}

fn plan_view() -> PlanView {
    PlanView {
        id: PlanId::numbered(1),
        goal: PlanGoal::Rebalance,
        asked_by: String::new(),
        created_unix_ms: 0,
        state: PlanState::Done,
        plan: Plan::default(),
        progress: Vec::new(),
    }
}

fn audit_entry() -> AuditEntry {
    let event = AuditEvent::Acted { what: String::new() };
    let (caller, previous, hash) = (String::new(), String::new(), String::new());
    AuditEntry { number: 1, unix_ms: 1, caller, address: None, trace: None, event, previous, hash }
}

fn explanation() -> Explanation {
    Explanation {
        subject: subject(),
        host: "h1".parse().unwrap(),
        satisfaction: 1.0,
        here: Vec::new(),
        rules: Vec::new(),
        places: Vec::new(),
        conclusion: String::new(),
    }
}

fn simulation() -> Simulation {
    let fleet = generate(2, 2, 2, 1);
    let outcome =
        replay(&fleet, &Replay { policy: Policy::None, replayed: fleet.last_day(), spec: PolicySpec::default() });
    Simulation::new(&fleet, None, 1, PolicySpec::default(), vec![outcome])
}

#[test]
fn every_command_is_documented() {
    let all = commands(&help(&[]));
    assert!(all.len() > 10, "{all:?}");
    for command in &all {
        let group = if command == "help" { Vec::new() } else { commands(&help(&[command])) };
        let names = if group.is_empty() { vec![command.clone()] } else { group };
        for name in names.into_iter().filter(|name| name != "help" || command == "help") {
            let words = if name == *command { name } else { format!("{command} {name}") };
            let row = |end| PAGE.contains(&format!("\n| `vmotion {words}{end}"));
            assert!(row("`") || row(" "), "the table of commands has no `vmotion {words}`");
        }
    }
}

#[test]
fn every_documented_command_exists() {
    let rows = PAGE.lines().filter_map(|line| line.strip_prefix("| `vmotion ")?.split_once('`'));
    for (command, _) in rows.filter(|(command, _)| !command.starts_with("help")) {
        // Words in lower case are commands; what stands in capitals is to be filled in.
        let words = command.split(' ').take_while(|word| word.chars().all(|c| c.is_ascii_lowercase()));
        help(&words.collect::<Vec<_>>());
    }
}

#[test]
fn every_variable_of_the_help_is_documented() {
    let help = help(&[]);
    let variables: Vec<_> = help.split("[env: ").skip(1).filter_map(|rest| rest.split('=').next()).collect();
    assert!(!variables.is_empty(), "{help}");
    for variable in variables {
        assert!(PAGE.contains(&format!("| `{variable}` |")), "{variable} is not documented");
    }
}

#[test]
fn every_exit_code_is_documented_with_its_kind() {
    use ErrorCode::{Conflict, Forbidden, Internal, Invalid, NotFound, Refused, Unavailable};
    for code in [Invalid, NotFound, Conflict, Refused, Forbidden, Unavailable, Internal] {
        let kind = serde_json::to_value(code).unwrap();
        let row = format!("\n| {} | `{}` |", code.exit_code(), kind.as_str().unwrap());
        assert!(PAGE.contains(&row), "the page has no {row:?}");
    }
}

#[test]
fn the_fields_of_every_object_are_those_documented() {
    let Operation { request, progress, outcome, .. } = operation();
    let MoveSummary { downtime, predicted, pages, digests, .. } = summary();
    let judgement = placement().judgements.remove(0);
    let error = ApiError::new(ErrorCode::Invalid, "message").with_hint("hint");
    let objects = [
        ("MachineView", fields(&machine())),
        ("Piece", fields(&piece())),
        ("SpanView", fields(&span())),
        ("MemberView", fields(&member())),
        ("PartFigures", fields(&PartFigures::default())),
        ("VcpuFigures", fields(&VcpuFigures::default())),
        ("PageFaults", fields(&PageFaults::default())),
        ("PeerFigures", fields(&peer_figures())),
        ("HotPage", fields(&hot())),
        ("Sharing", fields(&sharing())),
        ("Advice", fields(&advice())),
        ("ShapePlan", fields(&ShapePlan { machine: "big1".parse().unwrap(), steps: Vec::new() })),
        ("StepReport", step_fields()),
        ("StepDone", fields(&StepDone::default())),
        ("VcpuPause", fields(&VcpuPause::default())),
        ("MachineSpec", fields(&spec())),
        ("DiskSpec", fields(&spec().disks[0])),
        ("Operation", fields(&operation())),
        ("MoveRequest", fields(&request)),
        ("MoveProgress", fields(&progress)),
        ("MoveOutcome", fields(&outcome)),
        ("MoveSummary", fields(&summary())),
        ("DowntimeReport", fields(&downtime)),
        ("FollowReport", fields(&FollowReport::default())),
        ("Prediction", fields(&predicted)),
        ("Outlook", fields(&Outlook::default())),
        ("Survey", fields(&Survey::default())),
        ("Forecast", fields(&forecast())),
        ("Expected", fields(&Expected::default())),
        ("Accuracy", fields(&Accuracy::default())),
        ("Deviation", fields(&Deviation::default())),
        ("Timeline", fields(&Timeline::default())),
        ("RoundRecord", fields(&round())),
        ("TimelineSample", fields(&sample())),
        ("TimelineEvent", fields(&TimelineEvent { at_ms: 0.0, what: String::new() })),
        ("PageCounts", fields(&pages)),
        ("DigestReport", fields(&digests)),
        ("Placement", fields(&placement())),
        ("Judgement", fields(&judgement)),
        ("Verdict", fields(&judgement.verdict)),
        ("Host", fields(&host())),
        ("HostCapacity", fields(&host().capacity)),
        ("CpuModel", fields(&host().cpu)),
        ("Applied", fields(&Applied::default())),
        ("SiteChange", fields(&change())),
        ("SiteView", fields(&SiteView { site: SiteSpec::default(), missing: Vec::new() })),
        ("PolicyView", fields(&policy())),
        ("Plan", fields(&Plan::default())),
        ("PlannedStep", fields(&planned())),
        ("Blocked", fields(&Blocked { subject: subject(), motive: Motive::Balance, why: String::new() })),
        ("Contradiction", fields(&Contradiction { rules: Vec::new(), machines: Vec::new(), why: String::new() })),
        ("Standing", fields(&Standing::default())),
        ("PlanView", fields(&plan_view())),
        ("AuditEntry", fields(&audit_entry())),
        ("Explanation", fields(&explanation())),
        ("Supposed", fields(&Supposed::default())),
        ("Simulation", fields(&simulation())),
        ("Compared", fields(&simulation().outcomes[0])),
        ("Finding", fields(&Finding::ok("kvm", "there"))),
        ("Error", fields(&error)),
    ];
    for (name, fields) in objects {
        assert_eq!(documented(name), fields, "{name}: documented on the left, serialised on the right");
    }
}

#[test]
fn every_word_that_a_field_can_hold_is_documented() {
    use MachineState::{Failed, Incoming, Moving, Paused, Running, Starting, Stopped, Unknown};
    let reason = String::new;
    let words = [
        [Starting, Running, Moving, Incoming, Paused, Stopped, Failed, Unknown].map(word).to_vec(),
        [HostState::Up, HostState::Gone].map(word).to_vec(),
        [Backing::Memfd, Backing::Huge2m].map(word).to_vec(),
        [DirtySource::Auto, DirtySource::Log, DirtySource::Ring].map(word).to_vec(),
        [InterruptController::Kernel, InterruptController::User].map(word).to_vec(),
        [MovePhase::Preparing, MovePhase::Copying, MovePhase::SwitchingOver, MovePhase::Following, MovePhase::Finished]
            .map(word)
            .to_vec(),
        Strategy::ALL.map(word).to_vec(),
        [
            MoveOutcome::Moved,
            MoveOutcome::Cancelled,
            MoveOutcome::Surveyed,
            MoveOutcome::RolledBack { reason: reason() },
            MoveOutcome::Partly { reason: reason() },
            MoveOutcome::SourceLost { reason: reason() },
            MoveOutcome::Stranded { reason: reason() },
        ]
        .map(|outcome| word(&serde_json::to_value(outcome).unwrap()["result"]))
        .to_vec(),
        [Verdict::Fits { score: 0.0, reasons: Vec::new() }, Verdict::Rejected { reasons: Vec::new() }]
            .map(|verdict| word(&serde_json::to_value(verdict).unwrap()["verdict"]))
            .to_vec(),
    ];
    for word in words.concat() {
        assert!(PAGE.contains(&format!("`{word}`")), "{word} is not documented");
    }
}

fn word(value: impl serde::Serialize) -> String {
    serde_json::to_value(value).unwrap().as_str().unwrap().to_owned()
}
