//! Machines that span two hosts, each with a process, an agent and memory of its own: created, looked at, their pieces moved, stopped, removed, and
//! what happens when a host is lost.

#![allow(clippy::unwrap_used, reason = "a test's panic is its report")]

mod harness;

use harness::{World, key, kill, name, process_of, scenario};
use std::time::{Duration, Instant};
use vmotion_api::{ClientError, CreateRequest, MachineView, MoveCommand, MovePiece, SpreadRequest};
use vmotion_model::{
    ByteSize, ErrorCode, HostName, InterruptController, MachineName, MachineSpec, MachineState, MoveRequest, PieceMoved,
};
use vmotion_probe_guest::{CommandLine, Program};

const PATIENCE: Duration = Duration::from_secs(60);

struct Spanning {
    world: World,
    machine: MachineName,
}

fn hosts() -> Vec<HostName> {
    vec![name("h1"), name("h2")]
}

fn spec(world: &World, cmdline: &CommandLine) -> MachineSpec {
    let interrupts = InterruptController::User;
    let cmdline = cmdline.clone().poweroff(0x600, 0x34).heartbeat_ms(100).to_string();
    MachineSpec { cpus: 4, interrupts, ..world.spec("big1", ByteSize::mib(64), &cmdline) }
}

impl Spanning {
    /// Two vCPUs and half of the memory on each host.
    async fn create(peer_timeout: Duration, cmdline: &CommandLine) -> Self {
        let world = World::start(peer_timeout, None).await;
        let request =
            CreateRequest { spec: spec(&world, cmdline), on: None, from: None, span: hosts(), dry_run: false };
        let view = world.client.create(&request, &key()).await.unwrap();
        assert_eq!(view.state, MachineState::Running, "{view:?}");
        Self { world, machine: name("big1") }
    }

    async fn view(&self) -> MachineView {
        self.world.client.machine(&self.machine).await.unwrap()
    }

    async fn pieces(&self) -> Vec<String> {
        self.view().await.pieces.iter().map(|piece| format!("{} {}", piece.name, piece.host)).collect()
    }

    async fn give(&self, piece: &str, to: &str) -> Result<PieceMoved, ClientError> {
        let request = MovePiece { piece: piece.parse().unwrap(), to: name(to) };
        self.world.client.move_piece(&self.machine, &request).await
    }

    fn console(&self) -> String {
        let log = self.world.machine_directory("h1", &self.machine).join("console.log");
        String::from_utf8_lossy(&std::fs::read(log).unwrap_or_default()).into_owned()
    }

    async fn wait_until_it_stands(&self) -> MachineView {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let view = self.view().await;
            if matches!(view.state, MachineState::Stopped | MachineState::Failed) {
                return view;
            }
            assert!(Instant::now() < deadline, "{view:?}: {}", self.console());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The guest powers itself off, and has found nothing wrong.
    async fn comes_to_a_good_end(self) {
        let view = self.wait_until_it_stands().await;
        assert!(view.reason.unwrap().contains("powered off"));
        let console = self.console();
        assert!(console.contains("errors=0") && console.contains("lost=0"), "{console}");
        self.end().await;
    }

    async fn end(self) {
        self.world.client.remove(&self.machine).await.unwrap();
        for host in ["h1", "h2"] {
            assert!(self.world.status(host, &self.machine).await.is_none(), "{host} has something left");
        }
        assert!(self.world.client.machines().await.unwrap().is_empty());
        self.world.stop().await;
    }
}

#[test]
fn pieces_of_a_running_machine_move_and_its_guest_finds_nothing_wrong() {
    scenario("pieces_of_a_running_machine_move_and_its_guest_finds_nothing_wrong", async {
        let cmdline = CommandLine::new().program(Program::Litmus).seconds(8);
        let spanning = Spanning::create(Duration::from_secs(10), &cmdline).await;
        assert_eq!(spanning.pieces().await, ["vcpu0 h1", "vcpu1 h1", "vcpu2 h2", "vcpu3 h2", "mem0 h1", "mem1 h2"]);
        let mut moved = 0;
        while spanning.view().await.state == MachineState::Running && moved < 24 {
            for (piece, to) in
                [("vcpu1", "h2"), ("mem0", "h2"), ("vcpu3", "h1"), ("vcpu1", "h1"), ("mem0", "h1"), ("vcpu3", "h2")]
            {
                match spanning.give(piece, to).await {
                    Ok(answer) => {
                        assert_eq!((answer.piece.host, answer.pause_ms > 0.0), (name(to), piece.starts_with("vcpu")));
                        moved += 1;
                    }
                    // The guest has ended meanwhile.
                    Err(error) => {
                        assert_ne!(spanning.view().await.state, MachineState::Running, "{piece} {to}: {error}")
                    }
                }
            }
        }
        assert!(moved >= 12, "only {moved} pieces were moved");
        spanning.comes_to_a_good_end().await;
    });
}

#[test]
fn a_machine_is_gathered_and_spread_again() {
    scenario("a_machine_is_gathered_and_spread_again", async {
        let cmdline = CommandLine::new().program(Program::Sort).working_set_bytes(2 << 20).seconds(10);
        let spanning = Spanning::create(Duration::from_secs(10), &cmdline).await;
        let begun = Instant::now();
        let mut times = 0;
        while begun.elapsed() < Duration::from_secs(6) {
            let client = &spanning.world.client;
            let gathered = client.spread(&spanning.machine, &SpreadRequest { over: vec![name("h1")] }).await.unwrap();
            assert_eq!(gathered.len(), 3);
            assert!(spanning.pieces().await.iter().all(|piece| piece.ends_with(" h1")));
            let spread = client.spread(&spanning.machine, &SpreadRequest { over: hosts() }).await.unwrap();
            assert_eq!(spread.len(), 3);
            times += 1;
        }
        assert!(times >= 3, "only {times} times");
        spanning.comes_to_a_good_end().await;
    });
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    scenario("what_cannot_be_is_refused_by_name", async {
        let cmdline = CommandLine::new().program(Program::Count);
        let spanning = Spanning::create(Duration::from_secs(10), &cmdline).await;
        let refusal = |error: ClientError| error.into_api_error();
        let unknown = refusal(spanning.give("vcpu9", "h2").await.unwrap_err());
        assert_eq!((unknown.code, unknown.message.contains("vcpu9")), (ErrorCode::NotFound, true), "{unknown}");
        let there = refusal(spanning.give("vcpu0", "h1").await.unwrap_err());
        assert_eq!((there.code, there.message.contains("is on h1 already")), (ErrorCode::Conflict, true), "{there}");
        let elsewhere = refusal(spanning.give("mem0", "h3").await.unwrap_err());
        assert!(elsewhere.message.contains("these are h1, h2"), "{elsewhere}");
        let whole = MoveCommand {
            machine: spanning.machine.clone(),
            to: "h2".to_owned(),
            request: MoveRequest::default(),
            dry_run: false,
        };
        let whole = refusal(spanning.world.client.start_move(&whole, &key()).await.unwrap_err());
        assert!(whole.message.contains("spans several hosts"), "{whole}");
        let client = &spanning.world.client;
        let of = |change: fn(&mut CreateRequest)| {
            let spec = MachineSpec { name: name("big2"), ..spec(&spanning.world, &CommandLine::new()) };
            let mut request = CreateRequest { spec, on: None, from: None, span: hosts(), dry_run: false };
            change(&mut request);
            request
        };
        for (request, wanted) in [
            (of(|request| request.span.push(name("h1"))), "span names h1 twice"),
            (of(|request| request.span.push(name("h7"))), "there is no such host"),
            (of(|request| request.spec.interrupts = InterruptController::Kernel), "use interrupts user"),
            (of(|request| request.on = Some("h1".to_owned())), "contradict each other"),
        ] {
            let error = refusal(client.create(&request, &key()).await.unwrap_err());
            assert!(error.message.contains(wanted), "{error}");
        }
        assert_eq!(client.machines().await.unwrap().len(), 1);
        assert_eq!(client.stop(&spanning.machine).await.unwrap().state, MachineState::Stopped);
        spanning.end().await;
    });
}

#[test]
fn a_machine_that_loses_a_host_stops_on_the_others_and_says_why() {
    scenario("a_machine_that_loses_a_host_stops_on_the_others_and_says_why", async {
        let cmdline = CommandLine::new().program(Program::Mutex);
        let spanning = Spanning::create(Duration::from_secs(2), &cmdline).await;
        spanning.world.wait_for_console(&spanning.machine, "READY").await;
        kill(process_of(&spanning.world.machine_directory("h2", &spanning.machine)).unwrap());
        let view = spanning.wait_until_it_stands().await;
        let reason = view.reason.unwrap();
        assert!(reason.contains("host 1 of this machine has been silent for 2s"), "{reason}");
        let console = spanning.console();
        assert!(!console.contains("V cpu=") && !console.contains("PANIC"), "{console}");
        spanning.end().await;
    });
}
