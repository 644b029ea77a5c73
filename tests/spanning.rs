//! Machines that span hosts, each with a process, an agent and memory of its own: created, looked at, their pieces moved, stopped, removed.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test's panic is its report, and so are figures")]

mod harness;

use harness::{SpannedMachine, key, name, scenario};
use std::time::{Duration, Instant};
use vmotion_api::{ClientError, CreateRequest, MoveCommand, ShapeChange};
use vmotion_model::{
    ByteSize, ErrorCode, InterruptController, MachineSpec, MachineState, MoveOutcome, MoveRequest, Step, VcpuPause,
};
use vmotion_probe_guest::{CommandLine, ConsoleLine, Program, Rate};

const LEASE: Duration = Duration::from_secs(10);

/// Two vCPUs and half of the memory on each of two hosts.
async fn create(cmdline: &CommandLine) -> SpannedMachine {
    SpannedMachine::create(LEASE, &["h1", "h2"], None, 4, cmdline).await
}

fn words(steps: &[vmotion_model::StepReport]) -> Vec<String> {
    steps.iter().map(|step| step.step.to_string()).collect()
}

#[test]
fn pieces_of_a_running_machine_move_and_its_guest_finds_nothing_wrong() {
    scenario("pieces_of_a_running_machine_move_and_its_guest_finds_nothing_wrong", async {
        let cmdline = CommandLine::new().program(Program::Litmus).seconds(8);
        let spanning = create(&cmdline).await;
        assert_eq!(spanning.pieces().await, ["vcpu0 h1", "vcpu1 h1", "vcpu2 h2", "vcpu3 h2", "mem0 h1", "mem1 h2"]);
        let mut moved = 0;
        while spanning.view().await.state == MachineState::Running && moved < 24 {
            for (piece, to) in
                [("vcpu1", "h2"), ("mem0", "h2"), ("vcpu3", "h1"), ("vcpu1", "h1"), ("mem0", "h1"), ("vcpu3", "h2")]
            {
                if let Some(operation) = spanning.give(piece, to).await {
                    assert_eq!(operation.steps.len(), 1, "{:?}", words(&operation.steps));
                    let done = operation.steps[0].done.unwrap();
                    assert_eq!((operation.target, done.pause_ms > 0.0), (name(to), piece.starts_with("vcpu")));
                    moved += 1;
                }
            }
        }
        assert!(moved >= 12, "only {moved} pieces were moved");
        spanning.comes_to_a_good_end().await;
    });
}

#[test]
fn hosts_join_and_leave_with_the_pieces_that_they_get_and_lose() {
    scenario("hosts_join_and_leave_with_the_pieces_that_they_get_and_lose", async {
        let cmdline = CommandLine::new().program(Program::Sort).working_set_bytes(2 << 20).seconds(20);
        let spanning = SpannedMachine::create_over(LEASE, &["h1", "h2", "h3"], &["h1", "h2"], None, 4, &cmdline).await;
        let client = &spanning.world.client;
        let begun = Instant::now();
        let mut times = 0;
        while begun.elapsed() < Duration::from_secs(12) {
            let Some(joined) = spanning.give("vcpu3", "h3").await else { break };
            assert_eq!(words(&joined.steps), ["h3 joins", "vcpu3 goes from h2 to h3"]);
            let plan = client.reshape_dry_run(&spanning.machine, ShapeChange::Gather { to: "dc1".to_owned() }).await;
            let plan = plan.unwrap().steps;
            assert_eq!(plan.iter().filter(|step| matches!(step, Step::Leave { .. })).count(), 2, "{plan:?}");
            let gathered = spanning.change(ShapeChange::Gather { to: "h1".to_owned() }).await.unwrap();
            assert_eq!(gathered.outcome, Some(MoveOutcome::Moved), "{gathered:?}");
            assert!(spanning.pieces().await.iter().all(|piece| piece.ends_with(" h1")));
            let members = client.shape(&spanning.machine).await.unwrap().members;
            assert_eq!(members.len(), 1, "{members:?}");
            for host in ["h2", "h3"] {
                assert!(spanning.world.status(host, &spanning.machine).await.is_none(), "{host} has something left");
            }
            let over = vec![name("h1"), name("h2")];
            let spread = spanning.change(ShapeChange::Spread { over }).await.unwrap();
            assert_eq!(spread.outcome, Some(MoveOutcome::Moved), "{spread:?}");
            times += 1;
        }
        assert!(times >= 2, "only {times} times");
        spanning.comes_to_a_good_end().await;
    });
}

#[test]
fn a_change_that_is_cancelled_leaves_a_machine_that_runs_and_no_empty_host() {
    scenario("a_change_that_is_cancelled_leaves_a_machine_that_runs_and_no_empty_host", async {
        let cmdline = CommandLine::new().program(Program::Litmus).seconds(10);
        let spanning = SpannedMachine::create_over(LEASE, &["h1", "h2", "h3"], &["h1", "h2"], None, 4, &cmdline).await;
        let client = &spanning.world.client;
        let over = vec![name("h3"), name("h2")];
        let operation = client.reshape(&spanning.machine, ShapeChange::Spread { over }, &key()).await.unwrap();
        let busy = spanning.change(ShapeChange::Gather { to: "h1".to_owned() }).await.unwrap_err().into_api_error();
        assert!(busy.message.contains("is being moved by"), "{busy}");
        client.cancel(&operation.id).await.unwrap();
        let over = spanning.world.wait_for_outcome(&operation, Duration::from_secs(30)).await;
        assert_eq!(over.outcome, Some(MoveOutcome::Cancelled), "{over:?}");
        // What had moved by then stays there, and who has nothing leaves.
        let members = client.shape(&spanning.machine).await.unwrap().members;
        for member in &members {
            assert!(member.devices || !member.pieces.is_empty(), "{members:?}");
        }
        assert_eq!(members.iter().map(|member| member.pieces.len()).sum::<usize>(), 6);
        spanning.comes_to_a_good_end().await;
    });
}

#[test]
fn a_change_goes_on_when_the_controller_is_back() {
    scenario("a_change_goes_on_when_the_controller_is_back", async {
        let cmdline = CommandLine::new().program(Program::Queue).seconds(20);
        let mut spanning =
            SpannedMachine::create_over(LEASE, &["h1", "h2", "h3"], &["h1", "h2"], None, 4, &cmdline).await;
        for (round, after_ms) in [20, 120, 400].into_iter().enumerate() {
            let over = if round % 2 == 0 { vec![name("h3"), name("h1")] } else { vec![name("h1"), name("h2")] };
            let client = &spanning.world.client;
            let operation =
                client.reshape(&spanning.machine, ShapeChange::Spread { over: over.clone() }, &key()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(after_ms)).await;
            spanning.world.kill_service("controller").await;
            spanning.world.start_service("controller");
            spanning.world.wait_until_up().await;
            let over_now = spanning.world.wait_for_outcome(&operation, Duration::from_secs(60)).await;
            assert_eq!(over_now.outcome, Some(MoveOutcome::Moved), "{over_now:?}");
            let pieces = spanning.pieces().await;
            let there = |piece: &String| over.iter().any(|host| piece.ends_with(&format!(" {host}")));
            assert!(pieces.iter().all(there), "{pieces:?} over {over:?}");
        }
        spanning.comes_to_a_good_end().await;
    });
}

#[test]
fn a_disk_is_used_by_a_vcpu_on_another_host() {
    scenario("a_disk_is_used_by_a_vcpu_on_another_host", async {
        let cmdline = CommandLine::new()
            .working_set_bytes(8 << 20)
            .rate(Rate::BytesPerSecond(4 << 20))
            .disk_rate(1000)
            .seconds(8);
        let spanning = SpannedMachine::create_with(LEASE, &["h1", "h2"], 2, 16 << 20, &cmdline).await;
        // The vCPU that drives the disk goes away from it and comes back.
        let mut moved = 0;
        let deadline = Instant::now() + Duration::from_secs(60);
        while spanning.view().await.state == MachineState::Running {
            if Instant::now() > deadline {
                let shape = spanning.world.client.shape(&spanning.machine).await;
                panic!("no end after {moved} moves: {}\n{shape:?}", spanning.console());
            }
            for to in ["h2", "h1"] {
                moved += usize::from(spanning.give("vcpu0", to).await.is_some());
                tokio::time::sleep(Duration::from_millis(700)).await;
            }
        }
        spanning.stands_powered_off(Duration::from_secs(5)).await;
        let console = spanning.console();
        let mut seconds = console.lines().filter_map(|line| match ConsoleLine::parse(line) {
            ConsoleLine::Second(second) => Some(second),
            _ => None,
        });
        let last = seconds.next_back().unwrap();
        assert!(last.corrupt == 0 && last.tsc_backwards == 0 && console.contains("errors=0"), "{console}");
        let [disk] = last.disks.as_slice() else { panic!("{console}") };
        assert!(disk.failed == 0 && disk.corrupt == 0 && disk.writes > 100 && disk.reads > 100, "{disk:?}");
        assert!(moved > 2, "{moved} moves");
        println!("{moved} moves, {disk:?}");
        spanning.end().await;
    });
}

#[test]
fn vcpus_that_share_a_page_are_advised_to_come_together() {
    scenario("vcpus_that_share_a_page_are_advised_to_come_together", async {
        let cmdline = CommandLine::new().program(Program::Mutex);
        let spanning = SpannedMachine::create(LEASE, &["h1", "h2"], None, 2, &cmdline).await;
        let client = &spanning.world.client;
        let deadline = Instant::now() + Duration::from_secs(30);
        let seen = loop {
            let seen = client.shape(&spanning.machine).await.unwrap();
            if !seen.advice.is_empty() {
                break seen;
            }
            assert!(Instant::now() < deadline, "{seen:?}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        };
        assert!(seen.remote_faults_per_s > 0.0 && !seen.hottest.is_empty(), "{seen:?}");
        assert_eq!(seen.sharing[0].one.to_string(), "vcpu0");
        let advised = spanning.change(ShapeChange::Advised).await.unwrap();
        assert_eq!(advised.outcome, Some(MoveOutcome::Moved), "{advised:?}");
        let pieces = spanning.pieces().await;
        let host = |piece: &str| pieces.iter().find_map(|at| at.strip_prefix(piece).map(str::to_owned));
        assert_eq!(host("vcpu0 "), host("vcpu1 "), "{pieces:?}");
        client.stop(&spanning.machine).await.unwrap();
        spanning.end().await;
    });
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    scenario("what_cannot_be_is_refused_by_name", async {
        let cmdline = CommandLine::new().program(Program::Count);
        let spanning = create(&cmdline).await;
        let refusal = |error: ClientError| error.into_api_error();
        let piece = |piece: &str, to: &str| ShapeChange::Piece { piece: piece.parse().unwrap(), to: to.to_owned() };
        let unknown = refusal(spanning.change(piece("vcpu9", "h2")).await.unwrap_err());
        assert_eq!((unknown.code, unknown.message.contains("vcpu9")), (ErrorCode::NotFound, true), "{unknown}");
        let there = refusal(spanning.change(piece("vcpu0", "h1")).await.unwrap_err());
        assert_eq!((there.code, there.message.contains("is on h1 already")), (ErrorCode::Conflict, true), "{there}");
        let elsewhere = refusal(spanning.change(piece("mem0", "h3")).await.unwrap_err());
        assert!(elsewhere.message.contains("No host or datacenter is named"), "{elsewhere}");
        let nowhere = refusal(spanning.change(ShapeChange::Spread { over: Vec::new() }).await.unwrap_err());
        assert!(nowhere.message.contains("over names no host"), "{nowhere}");
        let whole = MoveCommand {
            machine: spanning.machine.clone(),
            to: "h2".to_owned(),
            request: MoveRequest::default(),
            dry_run: false,
        };
        let client = &spanning.world.client;
        let whole = refusal(client.start_move(&whole, &key()).await.unwrap_err());
        assert!(whole.message.contains("spans several hosts"), "{whole}");
        let of = |change: fn(&mut CreateRequest)| {
            let spec = MachineSpec { name: name("big2"), ..spanning.spec(&CommandLine::new()) };
            let span = vec![name("h1"), name("h2")];
            let mut request = CreateRequest { spec, on: None, from: None, span, audit: false, dry_run: false };
            change(&mut request);
            request
        };
        for (request, wanted) in [
            (of(|request| request.span.push(name("h1"))), "span names h1 twice"),
            (of(|request| request.span.push(name("h7"))), "there is no such host"),
            (of(|request| request.spec.interrupts = InterruptController::Kernel), "use interrupts user"),
            (of(|request| request.on = Some("h1".to_owned())), "contradict each other"),
            (of(|request| request.spec.memory = ByteSize::gib(1000)), "bytes of memory free, its share is"),
        ] {
            let error = refusal(client.create(&request, &key()).await.unwrap_err());
            assert!(error.message.contains(wanted), "{error}");
        }
        assert_eq!(client.machines().await.unwrap().len(), 1);
        assert_eq!(client.stop(&spanning.machine).await.unwrap().state, MachineState::Stopped);
        let stopped = refusal(spanning.change(piece("vcpu0", "h2")).await.unwrap_err());
        assert!(stopped.message.contains("only pieces of a running machine"), "{stopped}");
        spanning.end().await;
    });
}

/// `cargo nextest run -p vmotion --test spanning --run-ignored only measure --no-capture`
#[test]
#[ignore = "measures"]
fn measure_pauses_of_vcpus_under_load() {
    scenario("measure_pauses_of_vcpus_under_load", async {
        const MOVES: usize = 60;
        let cmdline = CommandLine::new().program(Program::Litmus).seconds(600);
        let spanning = create(&cmdline).await;
        let mut pauses: Vec<(f64, VcpuPause)> = Vec::new();
        let there_and_back = [("vcpu1", "h2"), ("vcpu3", "h1"), ("vcpu1", "h1"), ("vcpu3", "h2")];
        for (piece, to) in there_and_back.into_iter().cycle().take(MOVES) {
            let done = spanning.give(piece, to).await.unwrap().steps[0].done.unwrap();
            pauses.push((done.pause_ms, done.pause.unwrap()));
        }
        let print = |what: &str, of: fn(&(f64, VcpuPause)) -> f64| {
            let mut all: Vec<f64> = pauses.iter().map(of).collect();
            all.sort_unstable_by(f64::total_cmp);
            let at = |percent: usize| all[(all.len() - 1) * percent / 100];
            println!("  {what:8} p50 {:6.2}   p90 {:6.2}   worst {:6.2} ms", at(50), at(90), at(100));
        };
        println!("{MOVES} moves of vCPUs of a guest that keeps 4 busy:");
        print("pause", |(all, _)| *all);
        print("stop", |(_, pause)| pause.stop_ms);
        print("save", |(_, pause)| pause.save_ms);
        print("transfer", |(_, pause)| pause.transfer_ms);
        print("restore", |(_, pause)| pause.restore_ms);
        print("claim", |(_, pause)| pause.claim_ms);
        spanning.world.client.stop(&spanning.machine).await.unwrap();
    });
}
