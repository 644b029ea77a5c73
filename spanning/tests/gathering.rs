//! A machine is gathered on one host and spread again, over and over: its guest notices nothing, and its memory is the same, byte by byte.
//!
//! `VMOTION_GATHERS` says how often.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a panic in a test is its report")]

mod machines;

use machines::{LEASE, PATIENCE, Spanning, cmdline, host, kvm_or_skip, third};
use std::time::Duration;
use vmotion_machine::Machine;
use vmotion_model::PAGE_SIZE;
use vmotion_probe_guest::Program;
use vmotion_spanning::directory::ShardNumber;
use xxhash_rust::xxh3::Xxh3;

/// How long a machine is left alone.
const A_WHILE: Duration = Duration::from_millis(200);
/// Pages read at a time.
const RUN: u64 = 64;

/// What all memory holds, as the guest on this host sees it: pages that are elsewhere are fetched.
fn digest(machine: &Machine) -> u128 {
    let (mut digest, mut bytes) = (Xxh3::new(), vec![0; usize::try_from(RUN * PAGE_SIZE).unwrap()]);
    for first in (0..machine.memory().total_pages()).step_by(usize::try_from(RUN).unwrap()) {
        machine.memory().read_run(first, RUN, &mut bytes).unwrap();
        digest.update(&bytes);
    }
    digest.digest128()
}

/// Hosts 1 and 2 come, and get a third of the memory each, with its pages.
fn lend(machine: &mut Spanning, shards: &[ShardNumber]) {
    for number in [1, 2] {
        machine.join(number);
        machine.move_homes(&third(shards, number), number);
        machine.parts[&number].pull(third(shards, number), host(0), PATIENCE).unwrap();
    }
}

/// All memory comes to the hub, and the others leave.
fn gather(machine: &mut Spanning, shards: &[ShardNumber]) {
    machine.move_homes(shards, 0);
    for number in [1, 2] {
        machine.parts[&0].pull(shards.to_vec(), host(number), PATIENCE).unwrap();
    }
    for number in [1, 2] {
        machine.part_with(number);
    }
}

#[test]
fn gathered_and_spread_again_the_memory_is_the_same_byte_by_byte() {
    if !kvm_or_skip("gathered_and_spread_again_the_memory_is_the_same_byte_by_byte") {
        return;
    }
    let gathers = std::env::var("VMOTION_GATHERS").ok().and_then(|times| times.parse().ok()).unwrap_or(4);
    for program in [Program::Sort, Program::Mutex] {
        // It ends when it is told to: long after the last time.
        let line = cmdline(program, u64::MAX).seconds(gathers * 3 + 6);
        let mut machine = Spanning::boot_with(1, 4, 64, (LEASE, true), &line);
        let shards = machine.shards();
        let mut seen = Vec::new();
        for round in 0..gathers {
            lend(&mut machine, &shards);
            for (vcpu, to) in [(1, 1), (2, 2), (3, 2)] {
                machine.move_vcpu(vcpu, to);
            }
            assert_eq!(machine.hub().wait_exit(A_WHILE), None, "{program} in round {round}");
            (0..4).for_each(|vcpu| _ = machine.move_vcpu(vcpu, 0));
            gather(&mut machine, &shards);
            // Nobody writes while it stands; memory alone goes away and comes back.
            let hub = std::sync::Arc::clone(machine.hub());
            let standing = hub.pause().unwrap();
            let before = digest(&hub);
            lend(&mut machine, &shards);
            gather(&mut machine, &shards);
            assert_eq!(digest(&hub), before, "{program} in round {round}");
            drop(standing);
            seen.push(before);
        }
        seen.dedup();
        assert_eq!(seen.len() as u64, gathers, "the guest stood still");
        println!("{program}: {gathers} times; {}", machine.finish(program));
    }
}
