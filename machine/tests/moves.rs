//! A guest that checks itself survives being moved between machines, again and again.

#![allow(clippy::unwrap_used, reason = "a panic in a test is its report")]

mod common;

use common::{Probe, Watcher, hop, kvm_or_skip};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use vmotion_machine::{ExitReason, Machine, MachineError};
use vmotion_model::{Backing, DirtySource};

const SOON: Duration = Duration::from_secs(20);

/// How far the guest's clock may be behind after all moves: what a pause lasts would add up to far more.
const CLOCK_BEHIND_MS_MAX: i128 = 20;

/// Boots `cpus` vCPUs, moves the guest `hops` times under load, and lets it check everything at the end.
fn survives(test: &str, cpus: u8, source: DirtySource, hops: usize) {
    if !kvm_or_skip(test) {
        return;
    }
    let seconds = hops / 2 + 5;
    let cmdline =
        format!("ws=67108864 rate=100000000 verify=50000000 hb=10 beat=line seconds={seconds} poweroff=0x600:0x34");
    let probe = Probe::new(cpus, 128, source, &cmdline);
    let mut machine = probe.boot();
    let mut watcher = Watcher::default();
    watcher.wait_for(&machine, "READY", SOON);
    for _ in 0..hops {
        watcher.wait_for(&machine, "H ", SOON);
        machine = hop(machine, &probe.config);
    }
    // The guest says what time it is; reading that takes a while, so the least difference counts.
    let behind_ms = (0..3).map(|_| {
        watcher.wait_for(&machine, " corrupt=", SOON);
        let host_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
        i128::try_from(host_ms).unwrap() - i128::from(watcher.guest_wall_ms())
    });
    let behind_ms = behind_ms.min().unwrap();
    assert!((-2..=CLOCK_BEHIND_MS_MAX).contains(&behind_ms), "the guest's clock is {behind_ms} ms behind");
    assert_eq!(machine.wait_exit(Duration::from_secs(60)), Some(ExitReason::PowerOff));
    watcher.read(&machine);
    watcher.assert_sound();
    assert!(watcher.text.contains("errors=0"), "{}", watcher.text);
}

#[test]
fn one_vcpu_with_the_dirty_log() {
    survives("one_vcpu_with_the_dirty_log", 1, DirtySource::Log, 10);
}

#[test]
fn two_vcpus_with_the_dirty_ring() {
    survives("two_vcpus_with_the_dirty_ring", 2, DirtySource::Ring, 10);
}

#[test]
fn four_vcpus_with_the_dirty_log() {
    survives("four_vcpus_with_the_dirty_log", 4, DirtySource::Log, 10);
}

#[test]
fn four_vcpus_with_the_dirty_ring() {
    survives("four_vcpus_with_the_dirty_ring", 4, DirtySource::Ring, 10);
}

#[test]
fn disk_requests_in_flight_move_along() {
    if !kvm_or_skip("disk_requests_in_flight_move_along") {
        return;
    }
    let cmdline = "ws=33554432 rate=50000000 disk_rate=2000 hb=10 beat=line seconds=8 poweroff=0x600:0x34";
    let probe = Probe::new(2, 128, DirtySource::Log, cmdline).disk(32 << 20, false).disk(1 << 20, false);
    let mut machine = probe.boot();
    let mut watcher = Watcher::default();
    watcher.wait_for(&machine, "READY", SOON);
    assert!(watcher.text.contains("disks=2"), "{}", watcher.text);
    for _ in 0..10 {
        watcher.wait_for(&machine, "H ", SOON);
        machine = hop(machine, &probe.config);
    }
    assert_eq!(machine.wait_exit(Duration::from_secs(60)), Some(ExitReason::PowerOff));
    watcher.read(&machine);
    watcher.assert_sound();
    assert!(watcher.text.contains("errors=0"), "{}", watcher.text);
}

#[test]
fn huge_pages_work_or_are_refused_by_number() {
    if !kvm_or_skip("huge_pages_work_or_are_refused_by_number") {
        return;
    }
    let mut probe = Probe::new(2, 64, DirtySource::Log, "ws=16777216 rate=50000000 hb=10 beat=line");
    probe.config.spec.backing = Backing::Huge2m;
    let mut machine = match Machine::boot(&probe.config) {
        Ok(machine) => machine,
        Err(MachineError::HugePages { needed_pages, free_pages }) => {
            assert!(needed_pages == 32 && free_pages < 32, "{needed_pages} needed, {free_pages} free");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    machine.resume().unwrap();
    let mut watcher = Watcher::default();
    watcher.wait_for(&machine, "READY", SOON);
    // Both ends need their own pages; where there are not enough for two, a boot is all that can be tried.
    if Machine::prepare(&probe.config).is_ok() {
        for _ in 0..3 {
            watcher.wait_for(&machine, "H ", SOON);
            machine = hop(machine, &probe.config);
        }
    }
    watcher.wait_for(&machine, "S ", SOON);
    watcher.assert_sound();
}
