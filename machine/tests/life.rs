//! A machine's life: what is allowed when, what is refused, and that nothing is left behind.

#![allow(clippy::unwrap_used, reason = "a panic in a test is its report")]

mod common;

use common::{Probe, Watcher, kvm_or_skip};
use std::time::Duration;
use vmotion_machine::{ExitReason, Machine, MachineError, StateError, inspect_state};
use vmotion_model::{ByteSize, DirtySource, DiskSpec};

const SOON: Duration = Duration::from_secs(20);
const BUSY: &str = "ws=16777216 rate=50000000 hb=10 beat=line";

fn wrong_state<T: std::fmt::Debug>(result: Result<T, MachineError>) -> &'static str {
    match result {
        Err(MachineError::WrongState { state, .. }) => state,
        other => panic!("expected a wrong state, got {other:?}"),
    }
}

fn advances(watcher: &mut Watcher, machine: &Machine) {
    watcher.wait_for(machine, "\nH ", SOON);
}

fn stands_still(watcher: &mut Watcher, machine: &Machine) {
    watcher.read(machine);
    let before = watcher.text.len();
    std::thread::sleep(Duration::from_millis(100));
    watcher.read(machine);
    assert_eq!(watcher.text.len(), before, "a paused guest printed something");
}

#[test]
fn pauses_end_as_their_types_say() {
    if !kvm_or_skip("pauses_end_as_their_types_say") {
        return;
    }
    let probe = Probe::new(2, 64, DirtySource::Log, BUSY);
    let machine = Machine::boot(&probe.config).unwrap();
    assert_eq!(wrong_state(machine.pause()), "not started");
    machine.resume().unwrap();
    assert_eq!(wrong_state(machine.resume()), "running");
    let mut watcher = Watcher::default();
    watcher.wait_for(&machine, "READY", SOON);

    let guard = machine.pause().unwrap();
    assert_eq!(wrong_state(machine.pause()), "paused");
    assert_eq!(wrong_state(machine.resume()), "paused");
    assert_eq!(wrong_state(machine.fill()), "paused");
    stands_still(&mut watcher, &machine);
    drop(guard);
    advances(&mut watcher, &machine);

    machine.pause().unwrap().freeze().thaw();
    advances(&mut watcher, &machine);
    drop(machine.pause().unwrap().freeze());
    stands_still(&mut watcher, &machine);
    assert_eq!(wrong_state(machine.resume()), "frozen");

    machine.stop();
    machine.stop();
    assert_eq!(wrong_state(machine.pause()), "stopped");
}

#[test]
fn a_machine_does_not_run_while_its_memory_is_filled() {
    if !kvm_or_skip("a_machine_does_not_run_while_its_memory_is_filled") {
        return;
    }
    let probe = Probe::new(1, 64, DirtySource::Log, BUSY);
    let machine = Machine::boot(&probe.config).unwrap();
    let filling = machine.fill().unwrap();
    filling.with_run_mut(0x3000, 2, |bytes| bytes.fill(0xa5)).unwrap();
    assert_eq!(wrong_state(machine.resume()), "being filled");
    drop(filling);
    let mut page = [0; 4096];
    machine.memory().read_page(0x3001, &mut page).unwrap();
    assert!(page.iter().all(|byte| *byte == 0xa5));
    machine.resume().unwrap();
    Watcher::default().wait_for(&machine, "READY", SOON);
    assert_eq!(wrong_state(machine.fill()), "running");
}

#[test]
fn a_restored_machine_goes_on_and_is_restored_once() {
    if !kvm_or_skip("a_restored_machine_goes_on_and_is_restored_once") {
        return;
    }
    let probe = Probe::new(2, 64, DirtySource::Log, BUSY).disk(1 << 20, false);
    let machine = probe.boot();
    Watcher::default().wait_for(&machine, "READY", SOON);
    let guard = machine.pause().unwrap();
    let state = guard.save().unwrap();
    let target = Machine::prepare(&probe.config).unwrap();
    let memory = machine.memory();
    let mut page = [0; 4096];
    for index in memory.allocated().unwrap().runs().flatten() {
        memory.read_page(index, &mut page).unwrap();
        target.memory().write_run(index, &page).unwrap();
    }
    target.restore(&state).unwrap();
    assert_eq!(wrong_state(target.restore(&state)), "not started");
    target.resume().unwrap();
    drop(guard.freeze());
    drop(machine);
    let mut watcher = Watcher::starting_at(&target);
    advances(&mut watcher, &target);
    watcher.assert_sound();
}

#[test]
fn states_of_other_machines_and_damaged_ones_change_nothing() {
    if !kvm_or_skip("states_of_other_machines_and_damaged_ones_change_nothing") {
        return;
    }
    let probe = Probe::new(1, 64, DirtySource::Log, BUSY);
    let machine = probe.boot();
    Watcher::default().wait_for(&machine, "READY", SOON);
    let state = machine.pause().unwrap().save().unwrap();

    let mut other = probe.config.clone();
    other.spec.cpus = 2;
    let refused = Machine::prepare(&other).unwrap().restore(&state);
    assert!(matches!(refused, Err(MachineError::State(StateError::Mismatch(_)))), "{refused:?}");

    let mut other = probe.config.clone();
    other.spec.memory = ByteSize::mib(128);
    let refused = Machine::prepare(&other).unwrap().restore(&state);
    assert!(matches!(refused, Err(MachineError::State(StateError::Mismatch(_)))), "{refused:?}");

    let mut other = probe.config.clone();
    let disk = probe.directory.path().join("other.img");
    std::fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    other.spec.disks.push(DiskSpec { path: disk, read_only: true });
    let refused = Machine::prepare(&other).unwrap().restore(&state);
    assert!(matches!(refused, Err(MachineError::State(StateError::Missing(_)))), "{refused:?}");

    let target = Machine::prepare(&probe.config).unwrap();
    for length in [0, 7, 100, state.len() - 1] {
        assert!(matches!(target.restore(&state[..length]), Err(MachineError::State(_))));
    }
    let mut damaged = state.clone();
    damaged[state.len() / 2] ^= 1;
    assert!(matches!(target.restore(&damaged), Err(MachineError::State(StateError::Checksum))));
    target.restore(&state).unwrap();

    let summary = inspect_state(&state).unwrap();
    assert_eq!((summary.cpus, summary.layout.total_bytes()), (1, 64 << 20));
    assert!(summary.devices.contains(&"serial0".to_owned()), "{:?}", summary.devices);
}

#[test]
fn bad_files_are_named() {
    if !kvm_or_skip("bad_files_are_named") {
        return;
    }
    let probe = Probe::new(1, 64, DirtySource::Log, "");
    let text = |change: &dyn Fn(&mut vmotion_model::MachineSpec)| {
        let mut config = probe.config.clone();
        change(&mut config.spec);
        Machine::boot(&config).unwrap_err().to_string()
    };
    assert!(text(&|spec| spec.kernel = "/nonexistent/kernel".into()).contains("/nonexistent/kernel"));
    assert!(text(&|spec| spec.kernel = "/tmp".into()).contains("Kernel \"/tmp\" cannot be used"));
    assert!(text(&|spec| spec.kernel = "/etc/passwd".into()).contains("neither an ELF file nor a Linux bzImage"));
    assert!(text(&|spec| spec.kernel = "/bin/true".into()).contains("cannot be booted"));
    assert!(text(&|spec| spec.initrd = Some("/nonexistent/initrd".into())).contains("/nonexistent/initrd"));
    let missing = DiskSpec { path: "/nonexistent/disk".into(), read_only: false };
    assert!(text(&|spec| spec.disks.push(missing.clone())).contains("/nonexistent/disk"));
    let huge = probe.directory.path().join("huge.initrd");
    std::fs::File::create(&huge).unwrap().set_len(100 << 20).unwrap();
    assert!(text(&|spec| spec.initrd = Some(huge.clone())).contains("does not fit"));
    assert!(text(&|spec| spec.cpus = 65).contains("not valid"));
}

#[test]
fn power_off_is_reported_and_nothing_is_left_behind() {
    if !kvm_or_skip("power_off_is_reported_and_nothing_is_left_behind") {
        return;
    }
    let probe = Probe::new(4, 64, DirtySource::Ring, "ws=4194304 seconds=1 poweroff=0x600:0x34").disk(1 << 20, true);
    let machine = probe.boot();
    let (told, tell) = std::sync::mpsc::channel();
    machine.on_exit(move |reason| told.send(reason.clone()).unwrap());
    assert_eq!(tell.recv_timeout(SOON), Ok(ExitReason::PowerOff));
    assert_eq!(machine.wait_exit(Duration::ZERO), Some(ExitReason::PowerOff));
    let console = machine.console();
    drop(machine);
    let (_, output) = console.read(0, 1 << 16);
    assert!(String::from_utf8_lossy(&output).contains("END "), "output can be read after the machine is gone");
    assert!(!console.wait_beyond(console.offset(), Duration::from_secs(5)), "and waiting ends at once");
}
