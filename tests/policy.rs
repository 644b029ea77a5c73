//! The policy on real agents and real guests: hosts with networks and processors of their own, and what keeps machines where they belong.

#![allow(clippy::unwrap_used, reason = "a test's panic is its report")]

mod harness;

use harness::{Apart, Processors, SpannedMachine, World, key, name, scenario};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};
use vmotion_api::{ApplyRequest, DrainRequest, Operation, PlanGoal, PlanId, PlanState, PolicyChange, StepState};
use vmotion_model::{
    ByteSize, Demand, Domain, HostName, MachineDeclaration, MachineName, Motive, PieceName, PlannedStep, PolicyMode,
    Rule, SiteSpec, Subject, WhatIf,
};
use vmotion_probe_guest::{CommandLine, Program};

const HOSTS: &[&str] = &["h1", "h2", "h3", "h4", "h5", "h6"];
/// Of each host: together less than the two that a small test machine has.
const PROCESSORS: f64 = 0.25;
const MACHINES: u32 = 30;
const PATIENCE: Duration = Duration::from_secs(120);

fn declared(machines: &str, count: u32, on: Option<&str>, kernel: std::path::PathBuf) -> MachineDeclaration {
    MachineDeclaration {
        name: name(machines),
        count: Some(count),
        kernel,
        initrd: None,
        cmdline: "ws=4M rate=64K verify=64K hb=1000 beat=line".to_owned(),
        memory: ByteSize::mib(32),
        cpus: 1,
        disks: Vec::new(),
        huge_pages: false,
        on: on.map(str::to_owned),
        span: Vec::new(),
    }
}

/// Six hosts with a quarter of a processor each, in networks of their own; none where that cannot be had.
async fn world(test: &str) -> Option<(World, Vec<Processors>)> {
    let groups: Option<Vec<Processors>> = HOSTS.iter().map(|host| Processors::new(host, PROCESSORS)).collect();
    let Some(groups) = groups else {
        eprintln!("SKIPPED {test}: this machine lets nobody make control groups with a limit");
        return None;
    };
    let world = World::start_with(Duration::from_secs(10), None, HOSTS, Some(Apart::new())).await;
    for (host, group) in HOSTS.iter().zip(&groups) {
        group.enter(world.pid(host));
    }
    Some((world, groups))
}

async fn apply(world: &World, site: SiteSpec) {
    let applied = world.client.apply(&ApplyRequest { site, prune: false, dry_run: false }).await.unwrap();
    assert!(applied.contradictions.is_empty(), "{applied:?}");
    let deadline = Instant::now() + PATIENCE;
    loop {
        let missing = world.client.site().await.unwrap().missing;
        if missing.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "declared machines do not come: {missing:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn hosts_of(world: &World) -> BTreeMap<MachineName, HostName> {
    let machines = world.client.machines().await.unwrap();
    machines.into_iter().map(|machine| (machine.name, machine.host)).collect()
}

/// Every machine runs, on one host, and none has found a page that it did not write.
async fn all_is_well(world: &World) {
    for machine in world.client.machines().await.unwrap() {
        let copies = world.copies(&machine.name).await;
        assert_eq!(copies.len(), 1, "{}: {copies:?}", machine.name);
        let console = world.console(&machine.name);
        assert!(!console.text().contains("CORRUPT"), "{}: {}", machine.name, console.text());
    }
}

async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited longer than allowed for {what}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Machines of a declaration begin where their numbers say: five on each host.
fn spread_evenly(kernel: &std::path::Path) -> Vec<MachineDeclaration> {
    let each = MACHINES / u32::try_from(HOSTS.len()).unwrap();
    HOSTS.iter().map(|host| declared(&format!("on{host}"), each, Some(host), kernel.to_owned())).collect()
}

#[test]
fn load_rises_on_one_host_and_auto_moves_the_right_machines() {
    const TEST: &str = "load_rises_on_one_host_and_auto_moves_the_right_machines";
    scenario(TEST, async {
        let Some((world, _groups)) = world(TEST).await else { return };
        let kernel = world.path("probe.elf");
        // Two of those that will be busy must not meet again.
        let rule = Rule {
            name: "apart".to_owned(),
            machines: vec!["onh1-1".parse().unwrap(), "onh2-1".parse().unwrap()],
            demand: Demand::AntiAffinity { across: Domain::Host },
        };
        let site = SiteSpec { rules: vec![rule], machines: spread_evenly(&kernel), ..SiteSpec::default() };
        apply(&world, site).await;
        let before = hosts_of(&world).await;
        assert_eq!(before.len(), MACHINES as usize);

        let change = PolicyChange { mode: Some(PolicyMode::Auto), hold_s: Some(10), ..PolicyChange::default() };
        world.client.set_policy(&change).await.unwrap();
        // Everybody idles: nothing is moved.
        tokio::time::sleep(Duration::from_secs(15)).await;
        assert_eq!(world.client.plans().await.unwrap().len(), 0);

        let busy: Vec<MachineName> = (1..=3).map(|number| name(&format!("onh1-{number}"))).collect();
        for machine in &busy {
            world.client.console_input(machine, "rate 80M\n".into()).await.unwrap();
        }
        let plan = until("a plan", async || world.client.plans().await.unwrap().into_iter().next()).await;
        assert_eq!((plan.asked_by.as_str(), &plan.goal), ("policy", &PlanGoal::Rebalance));
        for step in &plan.plan.steps {
            assert!(
                busy.contains(&step.subject.machine),
                "{} is not what is busy: {}",
                step.subject.machine,
                step.reason
            );
            assert_eq!((step.from.as_str(), step.motive), ("h1", Motive::Balance));
            assert!(step.gain > step.cost, "{step:?}");
        }
        until("its end", async || {
            let plan = world.client.plan(&plan.id).await.unwrap();
            (plan.state != PlanState::Running).then_some(plan)
        })
        .await;
        // It may need a second look; in the end there is nothing that would be better.
        until("an end to it", async || {
            let thought = world.client.rebalance_dry_run().await.unwrap();
            let running = world.client.plans().await.unwrap().iter().any(|plan| plan.state == PlanState::Running);
            let better = thought.before.load_max < plan.plan.before.load_max;
            (!running && better && thought.steps.is_empty()).then_some(())
        })
        .await;
        let after = hosts_of(&world).await;
        for (machine, host) in &after {
            if !busy.contains(machine) {
                assert_eq!(host, &before[machine], "{machine} was moved and is not busy");
            }
        }
        assert_ne!(after[&name::<MachineName>("onh1-1")], after[&name::<MachineName>("onh2-1")]);
        let moved: Vec<Operation> = world.client.moves().await.unwrap();
        let reason = moved.iter().find_map(|operation| operation.reason.clone()).unwrap();
        assert!(reason.contains("h1"), "{reason}");
        let moved = busy.iter().find(|machine| after[machine].as_str() != "h1").unwrap();
        let about = Subject { machine: (*moved).clone(), piece: None };
        let why = world.client.why(&about, None).await.unwrap();
        assert_eq!(why.host, after[moved]);
        assert!(!why.conclusion.is_empty() && !why.places.is_empty(), "{why:?}");
        println!("{moved}: {reason}\n{}", serde_json::to_string_pretty(&why).unwrap());
        all_is_well(&world).await;
        world.stop().await;
    });
}

#[test]
fn a_drain_with_a_deadline_meets_it_and_its_downtime_limit() {
    const TEST: &str = "a_drain_with_a_deadline_meets_it_and_its_downtime_limit";
    scenario(TEST, async {
        const DOWNTIME_MS: u32 = 300;
        let Some((world, _groups)) = world(TEST).await else { return };
        let kernel = world.path("probe.elf");
        apply(&world, SiteSpec { machines: spread_evenly(&kernel), ..SiteSpec::default() }).await;
        let h3: HostName = name("h3");
        let unix_ms = || u64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap();
        let by_unix_ms = unix_ms() + 60_000;
        let request = DrainRequest { by_unix_ms: Some(by_unix_ms), downtime_ms_max: Some(DOWNTIME_MS), dry_run: false };
        let gone = WhatIf { remove: vec![h3.clone()], ..WhatIf::default() };
        let supposed = world.client.what_if(&gone).await.unwrap();
        assert_eq!((supposed.plan.steps.len(), supposed.plan.blocked.len()), (5, 0), "{supposed:?}");
        let unknown = WhatIf { remove: vec![name("h9")], ..WhatIf::default() };
        assert!(world.client.what_if(&unknown).await.unwrap_err().to_string().contains("no such host"));
        let foreseen = world.client.drain_dry_run(&h3, &request).await.unwrap();
        assert_eq!((foreseen.steps.len(), foreseen.blocked.len()), (5, 0), "{foreseen:?}");
        assert!(hosts_of(&world).await.values().filter(|host| **host == h3).count() == 5, "a dry run moves nothing");
        let plan = world.client.drain(&h3, &request).await.unwrap();
        assert_eq!(plan.progress.len(), 5);
        let draining = world.client.hosts().await.unwrap().into_iter().filter(|host| host.draining);
        assert!(draining.map(|host| host.name).eq([h3.clone()]));
        // What fails on the way is planned anew.
        until("an empty host", async || {
            let now = hosts_of(&world).await;
            let running = world.client.plans().await.unwrap().iter().any(|plan| plan.state == PlanState::Running);
            (!running && now.values().all(|host| *host != h3)).then_some(())
        })
        .await;
        assert!(unix_ms() < by_unix_ms);
        assert!(hosts_of(&world).await.values().all(|host| *host != h3));
        for operation in world.client.moves().await.unwrap() {
            let summary = operation.summary.unwrap();
            assert!(summary.downtime.source_ms <= f64::from(DOWNTIME_MS), "{}: {:?}", operation.id, summary.downtime);
            assert_eq!(operation.motive, Some(Motive::Evacuate));
        }
        // Nothing comes back, by anybody's hand, until it may.
        let machine: MachineName = name("onh1-1");
        let request = vmotion_api::MoveCommand {
            machine: machine.clone(),
            to: "h3".to_owned(),
            request: vmotion_model::MoveRequest::default(),
            dry_run: false,
        };
        let refused = world.client.start_move(&request, &key()).await.unwrap_err();
        assert!(refused.to_string().contains("cordoned"), "{refused}");
        world.client.cordon(&h3, false).await.unwrap();
        assert!(world.client.hosts().await.unwrap().iter().all(|host| !host.draining));
        drain_is_undone(&world, &plan.id, &h3).await;
        let moved = world.client.start_move(&request, &key()).await.unwrap();
        world.wait_for_outcome(&moved, PATIENCE).await;
        assert_eq!(hosts_of(&world).await[&machine], h3);
        all_is_well(&world).await;
        world.stop().await;
    });
}

/// What a drain has moved goes back, but for what a person has moved since; and then there is nothing more to undo.
async fn drain_is_undone(world: &World, id: &PlanId, h3: &HostName) {
    let drained = world.client.plan(id).await.unwrap();
    let done = |(step, state): (&PlannedStep, &StepState)| match state {
        StepState::Done { .. } => Some((step.subject.machine.clone(), step.to.clone())),
        _ => None,
    };
    let mut left: Vec<(MachineName, HostName)> =
        drained.plan.steps.iter().zip(&drained.progress).filter_map(done).collect();
    assert!(left.len() > 1, "{drained:?}");
    let (taken, was_brought_to) = left.pop().unwrap();
    let elsewhere: HostName =
        HOSTS.iter().map(|host| name(host)).find(|host| host != h3 && *host != was_brought_to).unwrap();
    let command = vmotion_api::MoveCommand {
        machine: taken.clone(),
        to: elsewhere.to_string(),
        request: vmotion_model::MoveRequest::default(),
        dry_run: false,
    };
    let moved = world.client.start_move(&command, &key()).await.unwrap();
    world.wait_for_outcome(&moved, PATIENCE).await;

    let foreseen = world.client.undo_plan_dry_run(id, None).await.unwrap();
    assert_eq!((foreseen.steps.len(), foreseen.blocked.len()), (left.len(), 1), "{foreseen:?}");
    assert!(foreseen.blocked[0].why.contains("somebody has moved it since"), "{foreseen:?}");
    let undo = world.client.undo_plan(id, None).await.unwrap();
    assert_eq!(undo.goal, PlanGoal::Undo { undoes: id.clone(), step: None });
    until("its end", async || {
        let plan = world.client.plan(&undo.id).await.unwrap();
        (plan.state == PlanState::Done).then_some(())
    })
    .await;
    let now = hosts_of(world).await;
    assert!(left.iter().all(|(machine, _)| now[machine] == *h3), "{now:?}");
    assert_eq!(now[&taken], elsewhere);
    let again = world.client.undo_plan(id, None).await.unwrap_err();
    assert!(again.to_string().contains(taken.as_str()), "{again}");
    // The policy has heard who wanted it.
    let alone = world.client.policy().await.unwrap().left_alone;
    assert!(left.iter().all(|(machine, _)| alone.iter().any(|one| one.machine == *machine)), "{alone:?}");
}

#[test]
fn a_piece_is_moved_because_of_what_it_shares() {
    const TEST: &str = "a_piece_is_moved_because_of_what_it_shares";
    const TWO: &[&str] = &["h1", "h2"];
    scenario(TEST, async {
        let groups: Option<Vec<Processors>> = TWO.iter().map(|host| Processors::new(host, 0.9)).collect();
        let Some(groups) = groups else {
            eprintln!("SKIPPED {TEST}: this machine lets nobody make control groups with a limit");
            return;
        };
        let world = World::start_with(Duration::from_secs(10), None, TWO, None).await;
        for (host, group) in TWO.iter().zip(&groups) {
            group.enter(world.pid(host));
        }
        let change = PolicyChange { hold_s: Some(10), ..PolicyChange::default() };
        world.client.set_policy(&change).await.unwrap();
        let mut spanning = SpannedMachine::to_be(world, 2);
        spanning.begin(TWO, &CommandLine::new().program(Program::Mutex)).await;
        assert_eq!(spanning.pieces().await[..2], ["vcpu0 h1", "vcpu1 h2"]);
        let client = &spanning.world.client;
        let plan = until("a plan for the pieces", async || {
            let plan = client.rebalance_dry_run().await.unwrap();
            plan.steps.iter().any(|step| step.motive == Motive::Gather).then_some(plan)
        })
        .await;
        let step = plan.steps.iter().find(|step| step.motive == Motive::Gather).unwrap();
        assert!(matches!(step.subject.piece, Some(PieceName::Vcpu(_))) && step.gain > step.cost, "{step:?}");
        println!("{}: {}", step.subject, step.reason);
        let begun = client.rebalance().await.unwrap();
        until("its end", async || {
            let plan = client.plan(&begun.id).await.unwrap();
            (plan.state == PlanState::Done).then_some(())
        })
        .await;
        let pieces = spanning.pieces().await;
        let host = |piece: &str| pieces.iter().find_map(|at| at.strip_prefix(piece).map(str::to_owned));
        assert_eq!(host("vcpu0 "), host("vcpu1 "), "{pieces:?}");
        let moved = client.moves().await.unwrap().into_iter().find(|moved| moved.motive == Some(Motive::Gather));
        assert!(moved.is_some_and(|moved| moved.asked_by.as_deref() == Some("policy") && moved.reason.is_some()));
        let why = client.why(&step.subject, None).await.unwrap();
        println!("{}", why.conclusion);
        client.stop(&spanning.machine).await.unwrap();
        spanning.end().await;
    });
}
