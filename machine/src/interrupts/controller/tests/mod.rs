#![allow(clippy::unwrap_used, reason = "a panic in a test is its report")]

use super::*;
use crate::interrupts::{Destination, Trigger};
use std::sync::{Arc, Mutex as TestMutex};

mod parts;

/// Registers of a local APIC.
const TASK_PRIORITY: u64 = 0x80;
const END: u64 = 0xb0;
const LOGICAL: u64 = 0xd0;
const SPURIOUS: u64 = 0xf0;
const COMMAND: u64 = 0x300;
const COMMAND_HIGH: u64 = 0x310;
const INIT: u32 = 0x4500;
const START_AT_8: u32 = 0x4608;
const OTHERS: u32 = 0xc_0000;

/// Controllers whose local APICs take interrupts, and who was kicked.
fn enabled(cpus: u8) -> (UserInterrupts, Arc<TestMutex<Vec<usize>>>) {
    let controller = UserInterrupts::new(cpus, None);
    for vcpu in 0..usize::from(cpus) {
        controller.write_local(vcpu, SPURIOUS, 0x1ff, 0);
        controller.write_local(vcpu, LOGICAL, 1 << (24 + vcpu), 0);
    }
    let kicked = Arc::new(TestMutex::new(Vec::new()));
    let sink = Arc::clone(&kicked);
    controller.set_kick(Box::new(move |vcpu| sink.lock().unwrap().push(vcpu)));
    (controller, kicked)
}

fn message(destination: Destination, delivery: Delivery, vector: u8) -> Message {
    Message { destination, delivery, vector, trigger: Trigger::Edge }
}

/// Who has what to take.
fn pending(controller: &UserInterrupts) -> Vec<Option<u8>> {
    (0..controller.slots.len()).map(|vcpu| controller.slot(vcpu).apic.pending()).collect()
}

fn send(controller: &UserInterrupts, from: usize, to: u8, command: u32) {
    controller.write_local(from, COMMAND_HIGH, u32::from(to) << 24, 0);
    controller.write_local(from, COMMAND, command, 0);
}

/// The guest sets an entry of the I/O APIC.
fn set_entry(controller: &UserInterrupts, pin: u32, value: u64) {
    for (half, bits) in [(1, value >> 32), (0, value & 0xffff_ffff)] {
        controller.write_io(0x00, 0x10 + pin * 2 + half);
        controller.write_io(0x10, u32::try_from(bits).unwrap());
    }
}

#[test]
fn messages_reach_whom_they_are_for_and_kick_everyone_but_the_sender() {
    let (controller, kicked) = enabled(3);
    send(&controller, 0, 2, 0x4031);
    assert_eq!(pending(&controller), [None, None, Some(0x31)]);
    assert_eq!(kicked.lock().unwrap().as_slice(), [2]);
    send(&controller, 1, 0, OTHERS | 0x4041);
    assert_eq!(pending(&controller), [Some(0x41), None, Some(0x41)]);
    send(&controller, 1, 0, 0x4_4051);
    assert_eq!(pending(&controller)[1], Some(0x51));
    assert_eq!(kicked.lock().unwrap().as_slice(), [2, 0, 2]);
    controller.deliver(message(Destination::Logical(0b101), Delivery::Fixed, 0x61), None, None);
    assert_eq!(pending(&controller), [Some(0x61), Some(0x51), Some(0x61)]);
    controller.deliver(message(Destination::Physical(0x20), Delivery::Fixed, 0x71), None, None);
    assert!(!pending(&controller).contains(&Some(0x71)), "nobody has that id");
}

#[test]
fn the_least_busy_takes_it_and_equals_take_turns() {
    let (controller, _) = enabled(4);
    controller.write_local(0, TASK_PRIORITY, 0x80, 0);
    controller.write_local(3, SPURIOUS, 0xff, 0);
    let lowest = |vector| message(Destination::Logical(0xff), Delivery::LowestPriority, vector);
    for vector in 0x31..0x39 {
        controller.deliver(lowest(vector), None, None);
    }
    let taken = (0..4).map(|vcpu| {
        std::iter::from_fn(|| {
            let vector = controller.slot(vcpu).apic.take();
            controller.write_local(vcpu, END, 0, 0);
            vector
        })
        .count()
    });
    let taken: Vec<usize> = taken.collect();
    assert_eq!((taken[0], taken[3]), (0, 0), "one is busy, one is not enabled");
    assert_eq!(taken[1] + taken[2], 8);
    assert!(taken[1] >= 2 && taken[2] >= 2, "{taken:?}");
}

#[test]
fn what_came_before_an_init_is_forgotten_and_what_came_after_is_not() {
    let (controller, kicked) = enabled(2);
    send(&controller, 0, 1, 0x4031);
    send(&controller, 0, 1, 0x4400);
    send(&controller, 0, 1, START_AT_8);
    send(&controller, 0, 1, INIT);
    let mut slot = controller.slot(1);
    assert!(slot.has_restart() && !slot.non_maskable && !slot.apic.is_enabled());
    assert_eq!(slot.take_restart(), Restart { init: true, start: None });
    drop(slot);
    send(&controller, 0, 1, INIT);
    send(&controller, 0, 1, START_AT_8);
    send(&controller, 0, 1, START_AT_8);
    assert_eq!(controller.slot(1).take_restart(), Restart { init: true, start: Some(8) });
    assert!(!controller.slot(1).has_restart());
    assert_eq!(kicked.lock().unwrap().as_slice(), [1; 7]);
    assert!(!controller.slot(0).has_restart());
}

#[test]
fn levels_that_are_high_come_again_after_their_end_and_pulses_do_not() {
    const LEVEL: u64 = 1 << 15;
    let (controller, _) = enabled(2);
    set_entry(&controller, 5, 1 << 56 | LEVEL | 0x41);
    controller.pulse(5);
    assert_eq!(pending(&controller), [None, Some(0x41)]);
    assert_eq!(controller.slot(1).apic.take(), Some(0x41));
    controller.write_local(1, END, 0, 0);
    assert_eq!(pending(&controller), [None, None]);
    let sent = controller.io_apic().set_line(5, true).unwrap();
    controller.deliver(sent, None, None);
    assert_eq!(controller.slot(1).apic.take(), Some(0x41));
    controller.write_local(1, END, 0, 0);
    assert_eq!(pending(&controller), [None, Some(0x41)], "its line is high still");
}

#[test]
fn an_edge_of_a_device_comes_once_for_each_pulse() {
    let (controller, kicked) = enabled(2);
    set_entry(&controller, 4, 0x51);
    controller.pulse(4);
    assert_eq!(controller.slot(0).apic.take(), Some(0x51));
    controller.pulse(4);
    assert_eq!(pending(&controller), [None, None], "one is being served");
    controller.write_local(0, END, 0, 0);
    assert_eq!(pending(&controller), [Some(0x51), None]);
    controller.pulse(9);
    assert_eq!(kicked.lock().unwrap().as_slice(), [0, 0], "a masked line says nothing");
}

/// Sets the first PIC up for vectors from 0x30, with its line 4 open.
fn begin_old_controllers(controller: &UserInterrupts) {
    controller.write_pic(PicRegister::Command(0), 0x11);
    [0x30, 4, 1, 0xef].into_iter().for_each(|value| controller.write_pic(PicRegister::Data(0), value));
}

#[test]
fn old_interrupts_reach_the_first_vcpu_through_its_pin() {
    let (controller, kicked) = enabled(2);
    controller.pulse(4);
    assert!(!controller.slot(0).has_interrupt(), "masked, as firmware leaves it");
    begin_old_controllers(&controller);
    controller.pulse(4);
    controller.pulse(4);
    assert_eq!(kicked.lock().unwrap().as_slice(), [0]);
    assert!(!controller.slot(1).has_interrupt());
    assert!(controller.slot(0).take_external());
    assert_eq!((controller.acknowledge(0), controller.acknowledge(0)), (Some(0x34), None));
    // LINT0 masked: it waits until it is not.
    controller.write_local(0, 0x350, 0x1_0700, 0);
    controller.write_pic(PicRegister::Command(0), 0x20);
    controller.pulse(4);
    assert!(!controller.slot(0).has_interrupt());
    controller.write_local(0, 0x350, 0x700, 0);
    assert!(controller.slot(0).has_interrupt());
    // Restored elsewhere: told again there.
    let restored = UserInterrupts::new(2, None);
    restored.restore_pics(controller.save_pics());
    assert!(restored.slot(0).take_external());
    assert_eq!(restored.acknowledge(0), Some(0x34));
}
