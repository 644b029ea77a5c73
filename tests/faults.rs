//! Something dies, or the network is cut, at every state of both ends of a move, by every strategy.
//!
//! A machine process is stopped just as it enters a state; then a process is killed with -9, or packets are dropped; then
//! it is let go. Afterwards exactly one copy runs, where the owner record says, and the guest found no page lost or wrong; or none,
//! which is promised to happen in two cases only: the process that owned the machine was killed; or the guest had been handed over,
//! and the other process or the path was lost before all of its memory was there. Then the machine is shown as failed, with the
//! reason. Always every byte of the console exists once, and the controller tells the truth.
//!
//! `VMOTION_FAULT_POINTS` sets how many points are tried, `VMOTION_FAULT_SEED` repeats a run.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test's panic is its report, its seed is for readers")]

mod harness;

use harness::{Checkpoints, Cut, Held, Random, World, kill, name, process_of, scenario, seed, setting};
use std::time::{Duration, Instant};
use vmotion_api::Operation;
use vmotion_model::{ByteSize, MachineName, MachineState, MoveOutcome, MoveRequest, Strategy};

/// States that every move goes through.
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

/// Those of a move whose memory follows; the last two only when the path is lost before.
const FOLLOWING_PLACES: [&str; 4] = ["source serving", "target pulling", "source stranded", "target stranded"];

/// Every strategy with every state it has.
fn places() -> Vec<(Strategy, &'static str)> {
    let of = |strategy| {
        let following = FOLLOWING_PLACES.into_iter().filter(move |_| strategy != Strategy::Precopy);
        PLACES.into_iter().chain(following).map(move |place| (strategy, place))
    };
    [Strategy::Precopy, Strategy::Postcopy, Strategy::Hybrid, Strategy::Auto].into_iter().flat_map(of).collect()
}

/// The guest writes half of its memory over and over. With this strategy it is handed over, or copied to the end.
fn request(strategy: Strategy) -> MoveRequest {
    let bandwidth_max = match strategy {
        Strategy::Precopy => None,
        // A while in which harm can be done.
        Strategy::Postcopy => Some(48 << 20),
        // Slower than the guest writes.
        Strategy::Hybrid | Strategy::Auto => Some(32 << 20),
    };
    MoveRequest { strategy, bandwidth_max, ..MoveRequest::default() }
}

const CMDLINE: &str = "ws=24M rate=60M content=random hb=20 beat=line";

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

/// What is tried: a state of a strategy, and what is done to it.
#[derive(Debug, Clone, Copy)]
struct Point {
    strategy: Strategy,
    place: &'static str,
    harm: Harm,
}

impl Point {
    /// Every state is tried with one harm, then every state with another; which is first differs from seed to seed.
    fn of_run(seed: u64, number: usize) -> Self {
        let places = places();
        let (strategy, place) = places[number % places.len()];
        let first = usize::try_from(seed % HARMS.len() as u64).unwrap();
        Self { strategy, place, harm: HARMS[(first + number % places.len() + number / places.len()) % HARMS.len()] }
    }

    /// Where the path must be lost for the state to be entered.
    fn stranded_by_cut_at(&self) -> Option<&'static str> {
        match self.place {
            "source stranded" => Some("source serving"),
            "target stranded" => Some("target pulling"),
            _ => None,
        }
    }

    /// May this lose a guest whose memory follows? The harm may come a little later than the state was entered.
    fn may_strand(&self) -> bool {
        let harms_path = matches!(self.harm, Harm::SourceProcess | Harm::TargetProcess | Harm::Cut | Harm::CutAll);
        self.strategy != Strategy::Precopy && (harms_path || self.stranded_by_cut_at().is_some())
    }

    /// Must it?
    fn must_strand(&self) -> bool {
        let follows = matches!(self.place, "source serving" | "target pulling");
        let killed = matches!(self.harm, Harm::SourceProcess | Harm::TargetProcess);
        follows && killed || self.stranded_by_cut_at().is_some()
    }
}

/// A process that gets no processor for so long is taken for lost, and a guest whose memory follows is lost with it: not too short.
const PEER_TIMEOUT: Duration = Duration::from_millis(1500);
/// Everything must be settled by then.
const PATIENCE: Duration = Duration::from_secs(60);

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
        let mut run = Self { world, checkpoints, random: Random::new(seed), machine: name("vm0"), machines: 0 };
        run.fresh_machine().await;
        run
    }

    async fn fresh_machine(&mut self) {
        self.machines += 1;
        self.machine = name(&format!("vm{}", self.machines));
        let spec = self.world.spec(self.machine.as_str(), ByteSize::mib(64), CMDLINE);
        self.world.create(spec, "h1").await;
        self.world.wait_for_console(&self.machine, "READY").await;
    }

    /// Waits until a process stands at `place`, where it was to be stopped.
    async fn stopped_at(&mut self, place: &str, operation: &Operation, point: &Point) -> Held {
        tokio::select! {
            held = self.checkpoints.sprung() => held,
            // The other end may know how it ends a moment before this one enters its state. Otherwise the move has refused what it
            // should have done.
            over = self.world.wait_for_outcome(operation, PATIENCE) => {
                let late = tokio::time::timeout(PEER_TIMEOUT * 4, self.checkpoints.sprung()).await;
                late.unwrap_or_else(|_| panic!("{point:?}: {place:?} was never entered by {}: {over:?}", self.machine))
            }
        }
    }

    /// One point: stop at a state, do harm, let go, and look.
    async fn point(&mut self, point: Point) {
        let Point { strategy, place, harm } = point;
        let record = self.world.client.owner(&self.machine).await.unwrap();
        let (from, to) = if record.owner.as_str() == "h1" { ("h1", "h2") } else { ("h2", "h1") };
        self.checkpoints.set(point.stranded_by_cut_at().unwrap_or(place));
        let operation = self.world.start_move(&self.machine, to, request(strategy)).await;
        let held = if let Some(before) = point.stranded_by_cut_at() {
            let held = self.stopped_at(before, &operation, &point).await;
            let lost = Cut::new(&self.world, false);
            self.checkpoints.set(place);
            held.let_go().await;
            let held = self.stopped_at(place, &operation, &point).await;
            drop(lost);
            held
        } else {
            self.stopped_at(place, &operation, &point).await
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
        let outage = if cut.is_some() { self.random.below(3000) } else { self.random.below(400) };
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
        self.check(point, from, to, &operation.outcome.unwrap()).await;
    }

    async fn check(&mut self, point: Point, from: &str, to: &str, outcome: &MoveOutcome) {
        let Point { harm, .. } = point;
        let about = format!("{point:?}, {} {from} to {to}, {outcome:?}", self.machine);
        let stranded = matches!(outcome, MoveOutcome::Stranded { .. });
        assert!(!stranded || point.may_strand(), "{about}");
        assert!(stranded || !point.must_strand(), "{about}: a guest that is lost is not said to be");
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
                    assert!(!stranded, "{about}: a guest that runs is said to be lost");
                    break;
                }
            }
            let lost = owner_died || stranded && record.owner.as_str() == to;
            if copies.is_empty() && lost && view.state == MachineState::Failed && view.reason.is_some() {
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

#[test]
fn harm_at_every_state_leaves_one_copy_where_the_record_says() {
    scenario("harm_at_every_state_leaves_one_copy_where_the_record_says", async {
        let seed = seed("VMOTION_FAULT_SEED");
        let points = setting("VMOTION_FAULT_POINTS", 200);
        println!("VMOTION_FAULT_SEED={seed} VMOTION_FAULT_POINTS={points}");
        let mut run = Run::start(seed).await;
        for number in 0..points {
            let number = usize::try_from(number).unwrap();
            let point = Point::of_run(seed, number);
            let start = Instant::now();
            run.point(point).await;
            let Point { strategy, place, harm } = point;
            println!("{number}: {strategy}, {harm:?} at {place:?}: {:.1} s", start.elapsed().as_secs_f64());
        }
        run.world.stop().await;
    });
}
