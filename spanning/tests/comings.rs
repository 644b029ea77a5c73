//! Hosts come to a running machine on real KVM, are given pieces of it, and leave it, while its guest verifies itself.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a panic in a test is its report")]

mod machines;

use machines::{PATIENCE, Spanning, cmdline, host, kvm_or_skip, third};
use std::time::{Duration, Instant};
use vmotion_probe_guest::Program;

/// How long a machine is left alone.
const A_WHILE: Duration = Duration::from_millis(300);
/// Far longer than a connection is silent that is there.
const SHORT_LEASE: Duration = Duration::from_secs(3);

fn gather(machine: &Spanning) {
    (0..4).for_each(|vcpu| _ = machine.move_vcpu(vcpu, 0));
    machine.move_homes(&machine.shards(), 0);
}

#[test]
fn hosts_come_to_a_running_machine_and_leave_it() {
    if !kvm_or_skip("hosts_come_to_a_running_machine_and_leave_it") {
        return;
    }
    for (program, rounds) in [(Program::Litmus, 4), (Program::Mutex, 2)] {
        let seconds = 2 * rounds + 6;
        let line = cmdline(program, u64::MAX).seconds(seconds);
        let mut machine = Spanning::boot_with(2, 4, 64, (SHORT_LEASE, true), &line);
        let shards = machine.shards();
        for round in 0..rounds {
            let begun = Instant::now();
            if round > 0 {
                machine.join(1);
            }
            machine.join(2);
            let joined = begun.elapsed();
            for (vcpu, to) in [(1, 1), (2, 2), (3, 2)] {
                machine.move_vcpu(vcpu, to);
            }
            let homes: usize = [1, 2].map(|number| machine.move_homes(&third(&shards, number), number)).iter().sum();
            assert_eq!(machine.hub().wait_exit(A_WHILE), None, "{program} in round {round}");
            gather(&machine);
            let pulled = [1, 2].map(|number| machine.parts[&0].pull(shards.clone(), host(number), PATIENCE).unwrap());
            // Now one, now the other first.
            let order = if round % 2 == 0 { [1, 2] } else { [2, 1] };
            let left = order.map(|number| machine.part_with(number));
            println!("{program}: two came in {joined:?}, had {homes} homes, and left: {pulled:?}, {left:?}");
            // What nobody runs there any more cannot have been written again.
            assert_eq!(left.map(|left| left.pages <= 64), [true; 2], "pages were left behind");
        }
        // Whoever is gone is not missed.
        assert_eq!(machine.hub().wait_exit(SHORT_LEASE + A_WHILE), None);
        println!("{}", machine.finish(program));
    }
}

#[test]
fn a_host_with_a_piece_of_the_machine_stays() {
    if !kvm_or_skip("a_host_with_a_piece_of_the_machine_stays") {
        return;
    }
    let mut machine = Spanning::boot(2, 4, 64, &cmdline(Program::Count, u64::MAX).seconds(4));
    machine.join(2);
    let why = |machine: &Spanning, number: usize| machine.parts[&number].leave(PATIENCE).unwrap_err().to_string();
    let dismissed = |machine: &Spanning, from: usize, number: usize| {
        machine.parts[&from].dismiss(host(number), A_WHILE / 10).unwrap_err().to_string()
    };
    assert_eq!(why(&machine, 0), "host 0 cannot leave the machine: it has its devices");
    assert_eq!(dismissed(&machine, 1, 0), "host 0 cannot be dismissed: the machine is not without it here");
    machine.move_vcpu(3, 2);
    assert_eq!(why(&machine, 2), "host 2 cannot leave the machine: vCPU 3 is here, give it to another host first");
    assert_eq!(
        dismissed(&machine, 1, 2),
        "host 2 cannot be dismissed: after 30ms, vCPU 3 is still there; it must leave first"
    );
    let shards = machine.shards();
    let first = third(&shards, 1);
    machine.move_homes(&first, 2);
    machine.move_vcpu(3, 1);
    let homes = format!(
        "host 2 cannot leave the machine: the homes of {} shards are here, give them to another host first",
        first.len()
    );
    assert_eq!(why(&machine, 2), homes);
    let named = dismissed(&machine, 0, 2);
    assert!(named.contains("it has the home of shard") || named.contains("it has, or wants, page"), "{named}");
    // After being refused it is as before.
    machine.move_vcpu(2, 2);
    machine.move_vcpu(2, 0);
    machine.move_homes(&shards, 0);
    println!("{:?}", machine.part_with(2));
    println!("{}", machine.finish(Program::Count));
}
