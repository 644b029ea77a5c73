//! Several controllers on one etcd cluster, while machines move: whoever is needed most dies, or is cut off.
//!
//! In every round all machines move; meanwhile the controller that leads is killed with -9, or the member of etcd that leads, or one member is
//! cut off from everybody. Then all come back. Every move ends in one known state; each machine runs once, where its owner record says, with
//! epochs that only grow; and no guest has found a page lost or a byte of its console twice.
//!
//! `VMOTION_CLUSTER_MOVES` sets how many moves there are, `VMOTION_CLUSTER_SEED` repeats a run.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test's panic is its report, its seed is for readers")]

mod harness;

use harness::{Random, World, etcd, key, name, scenario, seed, setting};
use serde_json::Value;
use std::time::{Duration, Instant};
use vmotion_api::{HttpClient, MoveCommand, Operation};
use vmotion_model::{ByteSize, Epoch, MachineName, MachineState, MoveOutcome, MoveRequest};
use vmotion_transport::ExpectedPeer;

const CMDLINE: &str = "ws=16M rate=30M content=random hb=20 beat=line";
const MACHINES: u64 = 4;
/// Controllers and etcd are harmed here, not the path: it has to be silent for long to count as lost.
const PEER_TIMEOUT: Duration = Duration::from_secs(10);
/// Everything must be settled by then.
const PATIENCE: Duration = Duration::from_secs(90);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Harm {
    /// The controller that leads dies.
    Controller,
    /// The member of etcd that leads dies.
    EtcdLeader,
    /// One member of etcd is cut off.
    Minority,
    /// The controller that leads dies, and so does the member of etcd that leads.
    Both,
}

const HARMS: [Harm; 4] = [Harm::Controller, Harm::EtcdLeader, Harm::Minority, Harm::Both];

struct Run {
    world: World,
    cluster: etcd::Cluster,
    random: Random,
    machines: Vec<(MachineName, Epoch)>,
    moved: u64,
}

impl Run {
    async fn start(seed: u64) -> Self {
        let cluster = etcd::Cluster::start(&[]).await;
        let world = World::start_on_etcd(PEER_TIMEOUT, &cluster).await;
        let mut machines = Vec::new();
        for number in 1..=MACHINES {
            let machine: MachineName = name(&format!("vm{number}"));
            world.create(world.spec(machine.as_str(), ByteSize::mib(32), CMDLINE), "h1").await;
            world.wait_for_console(&machine, "READY").await;
            machines.push((machine, Epoch::FIRST));
        }
        Self { world, cluster, random: Random::new(seed), machines, moved: 0 }
    }

    /// The controller that says that it leads.
    async fn active(&self) -> Option<&'static str> {
        for controller in self.world.controllers() {
            let url = self.world.controller_url(controller);
            let client =
                HttpClient::new("Controller", &url, &self.world.operator, ExpectedPeer::AnyController).unwrap();
            if client.get::<Value>("/v1/health").await.is_ok_and(|health| health["leads"] == true) {
                return Some(controller);
            }
        }
        None
    }

    /// Asked with the same key until somebody answers.
    async fn start_move(&self, machine: &MachineName) -> Operation {
        let deadline = Instant::now() + PATIENCE;
        let key = key();
        loop {
            let asked = async {
                let owner = self.world.client.owner(machine).await?.owner;
                let to = if owner.as_str() == "h1" { "h2" } else { "h1" }.to_owned();
                let request = MoveRequest { bandwidth_max: Some(24 << 20), ..MoveRequest::default() };
                let command = MoveCommand { machine: machine.clone(), to, request, dry_run: false };
                self.world.client.start_move(&command, &key).await
            };
            match asked.await {
                Ok(operation) => return operation,
                Err(error) => assert!(Instant::now() < deadline, "{machine} cannot be moved: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn harm(&mut self, harm: Harm) {
        let pause = Duration::from_millis(self.random.below(800));
        tokio::time::sleep(pause).await;
        let outage = Duration::from_millis(500 + self.random.below(3000));
        let leader = self.cluster.leader().await;
        let mut frozen = None;
        if matches!(harm, Harm::Controller | Harm::Both)
            && let Some(active) = self.active().await
        {
            println!("  {active} is killed after {pause:?}");
            self.world.kill_service(active).await;
        }
        if let (Harm::EtcdLeader | Harm::Both, Some(leader)) = (harm, leader) {
            println!("  etcd member {leader}, which leads, is killed after {pause:?}");
            self.cluster.kill_member(leader);
        }
        if harm == Harm::Minority {
            let member = usize::try_from(self.random.below(3)).unwrap();
            println!("  etcd member {member} is cut off after {pause:?} for {outage:?}; {leader:?} leads");
            frozen = self.cluster.freeze(member);
        }
        tokio::time::sleep(outage).await;
        drop(frozen);
        (0..3).for_each(|member| self.cluster.start_member(member));
        for controller in self.world.controllers() {
            // One that is started while etcd has no leader ends, as a service manager would see.
            if !self.world.runs(controller) {
                self.cluster.wait_until_healthy().await;
                self.world.start_service(controller);
            }
        }
    }

    async fn round(&mut self, harm: Harm, count: usize) {
        let mut operations = Vec::new();
        for (machine, _) in &self.machines[..count] {
            operations.push(self.start_move(machine).await);
        }
        self.harm(harm).await;
        for (at, operation) in operations.into_iter().enumerate() {
            let operation = self.world.wait_for_outcome(&operation, PATIENCE).await;
            let outcome = operation.outcome.clone().unwrap();
            println!("  {}: {} {outcome:?}", operation.id, operation.machine);
            assert!(matches!(outcome, MoveOutcome::Moved | MoveOutcome::RolledBack { .. }), "{operation:?}");
            self.moved += u64::from(outcome == MoveOutcome::Moved);
            self.check(at, &operation).await;
        }
    }

    /// One copy, where the record says; the record as the outcome says.
    async fn check(&mut self, at: usize, operation: &Operation) {
        let (machine, before) = self.machines[at].clone();
        let about = format!("{} of {machine}: {:?}", operation.id, operation.outcome);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let copies = self.world.copies(&machine).await;
            assert!(copies.len() < 2, "{about}: two copies: {copies:?}");
            let (record, view) =
                (self.world.client.owner(&machine).await.unwrap(), self.world.client.machine(&machine).await.unwrap());
            assert!(record.epoch >= before, "{about}: the epoch fell from {before:?}: {record:?}");
            let is_at_target = record.owner == operation.target;
            assert_eq!(is_at_target, operation.outcome == Some(MoveOutcome::Moved), "{about}: {record:?}");
            if let [(host, status)] = copies.as_slice()
                && *host == record.owner.as_str()
                && status.epoch == record.epoch
                && (status.state, view.state) == (MachineState::Running, MachineState::Running)
            {
                self.machines[at].1 = record.epoch;
                break;
            }
            assert!(Instant::now() < deadline, "{about}: {record:?}, {copies:?}, shown as {:?}", view.state);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let bytes = self.world.console(&machine).len();
        while self.world.console(&machine).len() <= bytes {
            assert!(Instant::now() < deadline, "{about}: the guest is silent");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // Where a stay's log begins is written to a file just after the guest goes on.
        let deadline = Instant::now() + Duration::from_secs(2);
        while !self.world.console(&machine).complaints().is_empty() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(self.world.console(&machine).complaints(), Vec::<String>::new(), "{about}");
    }
}

#[test]
fn machines_move_while_controllers_and_members_of_etcd_die_and_are_cut_off() {
    const TEST: &str = "machines_move_while_controllers_and_members_of_etcd_die_and_are_cut_off";
    if etcd::is_missing(TEST) {
        return;
    }
    scenario(TEST, async {
        let (seed, moves) = (seed("VMOTION_CLUSTER_SEED"), setting("VMOTION_CLUSTER_MOVES", 12));
        println!("VMOTION_CLUSTER_SEED={seed} VMOTION_CLUSTER_MOVES={moves}");
        let mut run = Run::start(seed).await;
        let mut left = moves;
        for number in 0.. {
            let count = left.min(MACHINES);
            if count == 0 {
                break;
            }
            let start = Instant::now();
            let harm = HARMS[(number + usize::try_from(seed % 4).unwrap()) % HARMS.len()];
            println!("round {number}: {harm:?}");
            run.round(harm, usize::try_from(count).unwrap()).await;
            println!("round {number}: {harm:?}, {:.1} s", start.elapsed().as_secs_f64());
            left -= count;
        }
        println!("{} of {moves} moves moved their machine", run.moved);
        assert!(run.moved > 0);
        run.world.stop().await;
    });
}
