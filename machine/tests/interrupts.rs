//! Machines whose interrupt controllers are in their process: they start all their vCPUs, sleep and wake, and stand still and move at any
//! moment of that.

#![allow(clippy::unwrap_used, reason = "a panic in a test is its report")]

mod common;

use common::{Probe, Watcher, hop, kvm_or_skip};
use std::time::Duration;
use vmotion_machine::{ExitReason, Machine, MachineError, StateError};
use vmotion_model::DirtySource;

const SOON: Duration = Duration::from_secs(20);
/// Sleeps most of the time.
const IDLE: &str = "ws=4194304 rate=2000000 hb=10 beat=line idle=hlt";
/// Never sleeps.
const BUSY: &str = "ws=16777216 rate=50000000 hb=10 beat=line idle=spin";

fn boots(test: &str, cpus: u8, source: DirtySource) {
    if !kvm_or_skip(test) {
        return;
    }
    let cmdline = "ws=16777216 rate=50000000 hb=10 beat=line disk_rate=200 seconds=3 poweroff=0x600:0x34";
    let machine = Probe::new(cpus, 64, source, cmdline).user_interrupts().disk(16 << 20, false);
    let machine = machine.boot();
    let mut watcher = Watcher::default();
    watcher.wait_for(&machine, "READY", SOON);
    assert!(watcher.text.contains(&format!("cpus={cpus} ")), "{}", watcher.text);
    assert!(watcher.text.contains("idle=hlt"), "its timer does not count: {}", watcher.text);
    assert_eq!(machine.wait_exit(SOON), Some(ExitReason::PowerOff));
    watcher.read(&machine);
    watcher.assert_sound();
    assert!(watcher.text.contains("errors=0"), "{}", watcher.text);
}

#[test]
fn one_vcpu_boots() {
    boots("one_vcpu_boots", 1, DirtySource::Log);
}

#[test]
fn two_vcpus_boot() {
    boots("two_vcpus_boot", 2, DirtySource::Ring);
}

#[test]
fn four_vcpus_boot() {
    boots("four_vcpus_boot", 4, DirtySource::Log);
}

fn stands_still_and_goes_on(test: &str, cmdline: &str) {
    if !kvm_or_skip(test) {
        return;
    }
    let probe = Probe::new(2, 64, DirtySource::Log, cmdline).user_interrupts();
    let machine = probe.boot();
    let mut watcher = Watcher::default();
    watcher.wait_for(&machine, "READY", SOON);
    for _ in 0..50 {
        let guard = machine.pause().unwrap();
        watcher.read(&machine);
        let before = watcher.text.len();
        guard.save().unwrap();
        watcher.read(&machine);
        assert_eq!(watcher.text.len(), before, "a paused guest printed something");
        drop(guard);
        watcher.wait_for(&machine, "H ", SOON);
    }
    watcher.assert_sound();
}

#[test]
fn pauses_while_halted_end() {
    stands_still_and_goes_on("pauses_while_halted_end", IDLE);
}

#[test]
fn pauses_while_running_end() {
    stands_still_and_goes_on("pauses_while_running_end", BUSY);
}

fn survives(test: &str, cpus: u8, source: DirtySource, load: &str, hops: usize) {
    if !kvm_or_skip(test) {
        return;
    }
    let cmdline = format!("{load} disk_rate=200");
    let probe = Probe::new(cpus, 64, source, &cmdline).user_interrupts().disk(16 << 20, false);
    let mut machine = probe.boot();
    let mut watcher = Watcher::default();
    watcher.wait_for(&machine, "READY", SOON);
    for _ in 0..hops {
        watcher.wait_for(&machine, "H ", SOON);
        machine = hop(machine, &probe.config);
    }
    watcher.wait_for(&machine, " corrupt=", SOON);
    watcher.wait_for(&machine, "\n", SOON);
    watcher.assert_sound();
}

#[test]
fn moves_while_halted_lose_nothing() {
    survives("moves_while_halted_lose_nothing", 2, DirtySource::Log, IDLE, 10);
}

#[test]
fn moves_while_running_lose_nothing() {
    survives("moves_while_running_lose_nothing", 4, DirtySource::Ring, BUSY, 10);
}

#[test]
fn vcpus_that_wait_to_be_started_move_and_are_started_there() {
    let test = "vcpus_that_wait_to_be_started_move_and_are_started_there";
    if !kvm_or_skip(test) {
        return;
    }
    let probe = Probe::new(4, 64, DirtySource::Log, BUSY).user_interrupts();
    // Whatever it has come to by then: nothing is printed before all have started.
    let machine = hop(hop(probe.boot(), &probe.config), &probe.config);
    let mut watcher = Watcher::default();
    watcher.wait_for(&machine, "READY", SOON);
    assert!(watcher.text.contains("cpus=4 "), "{}", watcher.text);
    watcher.wait_for(&machine, "H ", SOON);
    watcher.assert_sound();
}

#[test]
fn states_of_the_other_controllers_are_refused() {
    if !kvm_or_skip("states_of_the_other_controllers_are_refused") {
        return;
    }
    let kernel = Probe::new(1, 64, DirtySource::Log, IDLE);
    let user = Probe::new(1, 64, DirtySource::Log, IDLE).user_interrupts();
    for (from, to) in [(&kernel, &user), (&user, &kernel)] {
        let machine = from.boot();
        Watcher::default().wait_for(&machine, "READY", SOON);
        let state = machine.pause().unwrap().save().unwrap();
        let refused = Machine::prepare(&to.config).unwrap().restore(&state);
        let Err(MachineError::State(StateError::Mismatch(text))) = refused else { panic!("{refused:?}") };
        assert!(text.contains("interrupt controllers"), "{text}");
        Machine::prepare(&from.config).unwrap().restore(&state).unwrap();
    }
}
