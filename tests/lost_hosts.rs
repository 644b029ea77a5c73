//! Hosts of spanning machines that die: the machine stops everywhere, and says what was lost.

#![allow(clippy::unwrap_used, reason = "a test's panic is its report")]

mod harness;

use harness::{Random, SpannedMachine, key, kill, process_of, scenario, seed, setting};
use std::time::Duration;
use vmotion_api::ShapeChange;
use vmotion_model::MachineState;
use vmotion_probe_guest::{CommandLine, Program};

/// Silence after which a host counts as lost.
const LEASE: Duration = Duration::from_secs(2);
/// By then everybody has noticed, on a machine that has other things to do.
const NOTICED: Duration = Duration::from_secs(20);
const HOSTS: &[&str] = &["h1", "h2", "h3"];

#[test]
fn a_host_that_dies_at_any_moment_stops_the_machine_and_no_page_is_wrong() {
    scenario("a_host_that_dies_at_any_moment_stops_the_machine_and_no_page_is_wrong", async {
        let (kills, mut random) = (setting("VMOTION_KILLS", 5), Random::new(seed("VMOTION_KILL_SEED")));
        let programs = [Program::Litmus, Program::Mutex, Program::Sort, Program::ReadMostly, Program::Queue];
        let line = |number: u64| {
            let program = programs[usize::try_from(number).unwrap() % programs.len()];
            CommandLine::new().program(program).working_set_bytes(2 << 20)
        };
        let mut spanning = SpannedMachine::create(LEASE, HOSTS, None, 3, &line(0)).await;
        for number in 0..kills {
            if number > 0 {
                spanning.begin(HOSTS, &line(number)).await;
            }
            tokio::time::sleep(Duration::from_millis(random.below(1500))).await;
            // Every other time in the middle of a change.
            let gather = ShapeChange::Gather { to: "h1".to_owned() };
            if number % 2 == 1 {
                spanning.world.client.reshape(&spanning.machine, gather, &key()).await.unwrap();
                tokio::time::sleep(Duration::from_millis(random.below(300))).await;
            }
            let victim = random.one_of(HOSTS);
            let directory = spanning.world.machine_directory(victim, &spanning.machine);
            let Some(pid) = process_of(&directory) else {
                assert_ne!(victim, "h1", "the host with the devices does not leave");
                println!("{number}: {victim} had left already");
                spanning.world.client.stop(&spanning.machine).await.ok();
                settle(&spanning).await;
                continue;
            };
            kill(pid);
            if !is_member(&spanning, victim).await {
                println!("{number}: {victim} had left, and its process was ending");
                settle(&spanning).await;
                continue;
            }
            let mut said = Vec::new();
            for host in HOSTS {
                let status = stands_on(&spanning, host).await;
                said.extend(status.and_then(|status| status.reason).map(|reason| format!("{host}: {reason}")));
            }
            let console = spanning.console();
            assert!(!console.contains("V cpu=") && !console.contains("PANIC"), "{number}, {victim}: {console}");
            let survivors: Vec<_> = said.iter().filter(|said| !said.starts_with(victim)).collect();
            let truthful = |said: &&&String| said.contains(&format!("lost its host {victim}"));
            assert!(survivors.iter().any(|said| truthful(&said)), "{number}, {victim}: {said:?}");
            println!("{number}: {victim}: {survivors:?}");
            settle(&spanning).await;
        }
        spanning.world.stop().await;
    });
}

/// Is it a host of the machine, once what was under way is over?
async fn is_member(spanning: &SpannedMachine, host: &str) -> bool {
    for operation in spanning.world.client.moves().await.unwrap() {
        spanning.world.wait_for_outcome(&operation, Duration::from_secs(60)).await;
    }
    let shape = spanning.world.client.shape(&spanning.machine).await.unwrap();
    shape.members.iter().any(|member| member.host.as_str() == host)
}

/// Waits until what is on a host of the machine runs no more.
async fn stands_on(spanning: &SpannedMachine, host: &str) -> Option<vmotion_model::MachineStatus> {
    let deadline = std::time::Instant::now() + NOTICED;
    loop {
        let status = spanning.world.status(host, &spanning.machine).await?;
        if status.pid.is_none() || matches!(status.state, MachineState::Stopped | MachineState::Failed) {
            return Some(status);
        }
        assert!(std::time::Instant::now() < deadline, "it runs on at {host}: {status:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits for what is under way, and removes the machine.
async fn settle(spanning: &SpannedMachine) {
    for operation in spanning.world.client.moves().await.unwrap() {
        spanning.world.wait_for_outcome(&operation, Duration::from_secs(60)).await;
    }
    spanning.world.client.stop(&spanning.machine).await.ok();
    spanning.remove().await;
}
