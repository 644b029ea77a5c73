//! Machines over three hosts that have networks of their own: every program proves itself, while pieces move.
//!
//! How long and how much is set by `VMOTION_SPAN_SECONDS` (all programs together), `VMOTION_SPAN_LITMUS` (times that each litmus test is done at least) and
//! `VMOTION_SPAN_COUNT` (increments of one word, by all vCPUs together).

#![allow(clippy::unwrap_used, reason = "a test's panic is its report")]

mod harness;

use harness::{Apart, Random, SpannedMachine, scenario, seed, setting};
use std::time::{Duration, Instant};
use vmotion_model::MachineState;
use vmotion_probe_guest::{CommandLine, Program};

const LEASE: Duration = Duration::from_secs(10);
const HOSTS: &[&str] = &["h1", "h2", "h3"];
/// Of which two share a host; one of the litmus tests needs four.
const CPUS: u8 = 4;
const LITMUS: [&str; 5] = ["SB=", "LB=", "MP=", "CoRR=", "IRIW="];
/// Longest that a program of a given number of operations may take.
const PATIENCE: Duration = Duration::from_secs(1800);

async fn spanning(cmdline: &CommandLine) -> SpannedMachine {
    SpannedMachine::create(LEASE, HOSTS, Some(Apart::new()), CPUS, cmdline).await
}

#[test]
fn every_program_proves_itself_while_pieces_move() {
    scenario("every_program_proves_itself_while_pieces_move", async {
        let seconds = setting("VMOTION_SPAN_SECONDS", 27);
        let each = (seconds / Program::ALL.len() as u64).max(2);
        // Often enough for the short run to have some.
        let every = Duration::from_millis(if seconds >= 100 { 2000 } else { 400 });
        let mut random = Random::new(seed("VMOTION_SPAN_SEED"));
        let line = |program| CommandLine::new().program(program).working_set_bytes(2 << 20).seconds(each);
        let mut machine = spanning(&line(Program::ALL[0])).await;
        for (number, program) in Program::ALL.into_iter().enumerate() {
            if number > 0 {
                machine.begin(HOSTS, &line(program)).await;
            }
            let mut moved = 0;
            while machine.view().await.state == MachineState::Running {
                let begun = Instant::now();
                let pieces = machine.pieces().await;
                let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
                let (piece, from) = random.one_of(&pieces).split_once(' ').unwrap();
                let elsewhere: Vec<&str> = HOSTS.iter().copied().filter(|host| *host != from).collect();
                let to = random.one_of(&elsewhere);
                moved += usize::from(machine.give(piece, to).await.is_some());
                tokio::time::sleep(every.saturating_sub(begun.elapsed())).await;
            }
            println!("{} with {moved} moves of pieces", machine.finds_nothing_wrong(Duration::from_secs(5)).await);
            assert!(moved > 0, "{program:?}: no piece moved");
            machine.remove().await;
        }
        machine.world.stop().await;
    });
}

#[test]
fn no_order_of_memory_is_broken_and_no_increment_lost() {
    scenario("no_order_of_memory_is_broken_and_no_increment_lost", async {
        let litmus = setting("VMOTION_SPAN_LITMUS", 2000);
        let count = setting("VMOTION_SPAN_COUNT", 300_000);
        let seconds = if litmus >= 10_000 { 60 } else { 3 };
        let line = CommandLine::new().program(Program::Litmus).seconds(seconds);
        let mut machine = spanning(&line).await;
        let mut done = [0; LITMUS.len()];
        loop {
            let proof = machine.finds_nothing_wrong(PATIENCE).await;
            println!("{proof}");
            machine.remove().await;
            for (done, test) in done.iter_mut().zip(LITMUS) {
                let count = proof.split(' ').find_map(|word| word.strip_prefix(test)).unwrap();
                *done += count.parse::<u64>().unwrap();
            }
            if done.iter().all(|done| *done >= litmus) {
                break;
            }
            machine.begin(HOSTS, &line).await;
        }
        let each = count.div_ceil(u64::from(CPUS));
        machine.begin(HOSTS, &CommandLine::new().program(Program::Count).operations(each)).await;
        println!("{}", machine.finds_nothing_wrong(PATIENCE).await);
        machine.end().await;
    });
}

/// What a program does in a second, on one host and on two: prints a table. Both hosts are this machine, so two add no processors; what is
/// seen is what it costs that memory is not in one place.
#[test]
#[ignore = "it measures"]
fn measure_programs_on_one_host_and_on_two() {
    scenario("measure_programs_on_one_host_and_on_two", async {
        let seconds = setting("VMOTION_MEASURE_SECONDS", 5);
        let rounds = setting("VMOTION_MEASURE_ROUNDS", 3);
        let line = |program| CommandLine::new().program(program).working_set_bytes(32 << 20).seconds(seconds);
        let over: [&[&str]; 2] = [&["h1"], &["h1", "h2"]];
        let mut machine =
            SpannedMachine::create_over(LEASE, &["h1", "h2"], over[0], None, 2, &line(Program::ALL[0])).await;
        machine.audit = false;
        println!("| program | one host, operations a second | two hosts | ratio |\n|---|---:|---:|---:|");
        let mut is_first = true;
        for program in Program::ALL {
            let mut rates = [Vec::new(), Vec::new()];
            for round in 0..rounds {
                for at in [round % 2, 1 - round % 2] {
                    let at = usize::try_from(at).unwrap();
                    if !std::mem::take(&mut is_first) {
                        machine.begin(over[at], &line(program)).await;
                    }
                    let proof = machine.finds_nothing_wrong(PATIENCE).await;
                    let done = proof.split(' ').find_map(|word| word.strip_prefix("operations=")).unwrap();
                    rates[at].push(done.parse::<u64>().unwrap() / seconds);
                    machine.remove().await;
                }
            }
            let [one, two] = rates.map(|mut rates| {
                rates.sort_unstable();
                rates[rates.len() / 2]
            });
            println!("| {program} | {one} | {two} | {:.2} |", two as f64 / one as f64);
        }
        machine.world.stop().await;
    });
}
