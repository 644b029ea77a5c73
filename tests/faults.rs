//! Something dies, or the network is cut, at every state of both ends of a move.
//!
//! A machine process is stopped just as it enters a state; then a process is killed with -9, or packets are dropped; then
//! it is let go. Afterwards exactly one copy runs, where the owner record says, or (only when the process that owned the
//! machine was the one killed) none; every byte of the console exists once, the guest found no page lost, and the
//! controller tells the truth.
//!
//! `VMOTION_FAULT_POINTS` sets how many points are tried, `VMOTION_FAULT_SEED` repeats a run.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test's panic is its report, its seed is for readers")]

mod harness;

use harness::{Checkpoints, Cut, World, kill, name, process_of, skipped};
use std::time::{Duration, Instant};
use vmotion_model::{ByteSize, MachineName, MachineState, MoveOutcome, MoveRequest, Strategy};

const PLACES: [&str; 10] = [
    "source negotiated",
    "source copying",
    "source paused",
    "source offered",
    "source released",
    "target prepared",
    "target filling",
    "target complete",
    "target armed",
    "target running",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Harm {
    SourceProcess,
    TargetProcess,
    SourceAgent,
    TargetAgent,
    Controller,
    /// Moves' packets are dropped, then pass again.
    Cut,
    /// The controller cannot be reached either.
    CutAll,
}

const HARMS: [Harm; 7] = [
    Harm::SourceProcess,
    Harm::TargetProcess,
    Harm::SourceAgent,
    Harm::TargetAgent,
    Harm::Controller,
    Harm::Cut,
    Harm::CutAll,
];

const PEER_TIMEOUT: Duration = Duration::from_millis(1000);
/// Everything must be settled by then.
const PATIENCE: Duration = Duration::from_secs(60);

/// xorshift: a test's randomness needs to be repeatable, not good.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

struct Run {
    world: World,
    checkpoints: Checkpoints,
    random: Random,
    machine: MachineName,
    machines: u32,
}

impl Run {
    async fn start(seed: u64) -> Self {
        let socket = tempfile::Builder::new().prefix("vmotion-checkpoints-").tempdir().unwrap().keep().join("sock");
        let checkpoints = Checkpoints::serve(&socket);
        let world = World::start(PEER_TIMEOUT, Some(socket)).await;
        let mut run = Self { world, checkpoints, random: Random(seed | 1), machine: name("vm0"), machines: 0 };
        run.fresh_machine().await;
        run
    }

    async fn fresh_machine(&mut self) {
        self.machines += 1;
        self.machine = name(&format!("vm{}", self.machines));
        let spec =
            self.world.spec(self.machine.as_str(), ByteSize::mib(64), "ws=16M rate=20M content=text hb=20 beat=line");
        self.world.create(spec, "h1").await;
        self.world.wait_for_console(&self.machine, "READY").await;
    }

    /// One point: stop at `place`, do `harm`, let go, and look.
    async fn point(&mut self, place: &str, harm: Harm) {
        let record = self.world.client.owner(&self.machine).await.unwrap();
        let (from, to) = if record.owner.as_str() == "h1" { ("h1", "h2") } else { ("h2", "h1") };
        self.checkpoints.set(place);
        // What is promised here is promised by pre-copy: whose memory follows depends on both hosts for a while.
        let request = MoveRequest { strategy: Strategy::Precopy, ..MoveRequest::default() };
        let operation = self.world.start_move(&self.machine, to, request).await;
        let held = tokio::select! {
            held = self.checkpoints.sprung() => held,
            // A move that ends before has refused what it should have done.
            over = self.world.wait_for_outcome(&operation, PATIENCE) => {
                panic!("{place:?} was never entered by {} from {from} to {to}: {:?}", self.machine, over.outcome)
            }
        };
        let early = self.random.below(2) == 0;
        let pause = Duration::from_millis(self.random.below(30));
        let victim = match harm {
            Harm::SourceProcess => process_of(&self.world.machine_directory(from, &self.machine)),
            Harm::TargetProcess => process_of(&self.world.machine_directory(to, &self.machine)),
            _ => None,
        };
        let mut cut = None;
        let mut held = Some(held);
        // Half of the time the harm comes just before the process goes on, half of the time just after.
        if !early {
            held.take().unwrap().let_go().await;
            tokio::time::sleep(pause).await;
        }
        match harm {
            Harm::SourceProcess | Harm::TargetProcess => victim.into_iter().for_each(kill),
            Harm::SourceAgent => self.world.kill_service(if from == "h1" { "h1" } else { "h2" }).await,
            Harm::TargetAgent => self.world.kill_service(if to == "h1" { "h1" } else { "h2" }).await,
            Harm::Controller => self.world.kill_service("controller").await,
            Harm::Cut => cut = Some(Cut::new(&self.world, false)),
            Harm::CutAll => cut = Some(Cut::new(&self.world, true)),
        }
        if let Some(held) = held {
            held.let_go().await;
        }
        // Some cuts are shorter than the time-out, some longer.
        let outage = if cut.is_some() { self.random.below(2500) } else { self.random.below(400) };
        tokio::time::sleep(Duration::from_millis(outage)).await;
        drop(cut);
        for service in ["controller", "h1", "h2"] {
            if !self.world.runs(service) {
                self.world.start_service(service);
            }
        }
        self.world.wait_until_up().await;
        self.checkpoints.clear();
        let operation = self.world.wait_for_outcome(&operation, PATIENCE).await;
        let outcome = operation.outcome.unwrap();
        self.check(place, harm, from, to, &outcome).await;
    }

    async fn check(&mut self, place: &str, harm: Harm, from: &str, to: &str, outcome: &MoveOutcome) {
        let about = format!("{harm:?} at {place:?}, {} {from} to {to}, {outcome:?}", self.machine);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let record = self.world.client.owner(&self.machine).await.unwrap();
            let copies = self.world.copies(&self.machine).await;
            assert!(copies.len() < 2, "{about}: two copies: {copies:?}");
            let owner_died = match harm {
                Harm::SourceProcess => record.owner.as_str() == from,
                Harm::TargetProcess => record.owner.as_str() == to,
                _ => false,
            };
            let view = self.world.client.machine(&self.machine).await.unwrap();
            assert_eq!(view.host, record.owner, "{about}");
            if let [(host, status)] = copies.as_slice() {
                let right = record.owner.as_str() == *host && status.epoch == record.epoch;
                // The state the controller shows is as old as the last heartbeat.
                if right && status.state == MachineState::Running && view.state == MachineState::Running {
                    break;
                }
            }
            if copies.is_empty() && owner_died && view.state == MachineState::Failed {
                break;
            }
            assert!(
                Instant::now() < deadline,
                "{about}: record {record:?}, copies {copies:?}, shown as {:?} {:?}",
                view.state,
                view.reason
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let before = self.world.console(&self.machine).len();
        let alive = !self.world.copies(&self.machine).await.is_empty();
        if alive {
            let deadline = Instant::now() + Duration::from_secs(10);
            while self.world.console(&self.machine).len() <= before {
                assert!(Instant::now() < deadline, "{about}: the guest is silent");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        // Where a stay's log begins is written to a file just after the guest goes on.
        let deadline = Instant::now() + Duration::from_secs(2);
        while !self.world.console(&self.machine).complaints().is_empty() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(self.world.console(&self.machine).complaints(), Vec::<String>::new(), "{about}");
        if !alive {
            let _ = self.world.client.stop(&self.machine).await;
            self.world.client.remove(&self.machine).await.unwrap();
            self.fresh_machine().await;
        }
    }
}

fn setting(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn harm_at_every_state_leaves_one_copy_where_the_record_says() {
    if skipped("harm_at_every_state_leaves_one_copy_where_the_record_says") {
        return;
    }
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let seed = setting("VMOTION_FAULT_SEED", u64::from(clock.subsec_nanos()));
    let points = setting("VMOTION_FAULT_POINTS", 210);
    println!("VMOTION_FAULT_SEED={seed} VMOTION_FAULT_POINTS={points}");
    let mut run = Run::start(seed).await;
    for point in 0..points {
        // Every state with every harm, in turn; what varies is when exactly, and for how long.
        let point = usize::try_from(point).unwrap();
        let (place, harm) = (PLACES[point % PLACES.len()], HARMS[(point / PLACES.len()) % HARMS.len()]);
        let start = Instant::now();
        run.point(place, harm).await;
        println!("{point}: {harm:?} at {place:?}: {:.1} s", start.elapsed().as_secs_f64());
    }
    run.world.stop().await;
}
