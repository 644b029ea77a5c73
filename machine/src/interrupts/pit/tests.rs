#![allow(clippy::unwrap_used, reason = "a panic in a test is its report")]

use super::*;
use proptest::prelude::*;

const CONTROL: u64 = 3;
const MS: u64 = 1_000_000;

/// A counter in `mode`, with a count of 16 bits, begun at `now_ns`.
fn begin(pit: &mut Pit, counter: u8, mode: u8, count: u16, now_ns: u64) {
    pit.write(CONTROL, counter << 6 | 0x30 | mode << 1, now_ns);
    count.to_le_bytes().into_iter().for_each(|byte| pit.write(u64::from(counter), byte, now_ns));
}

fn value(pit: &mut Pit, counter: u8, now_ns: u64) -> u16 {
    pit.write(CONTROL, counter << 6, now_ns);
    u16::from_le_bytes([0, 0].map(|_: u8| pit.read(u64::from(counter), now_ns)))
}

#[test]
fn a_periodic_counter_interrupts_at_its_pace_and_what_was_missed_is_one() {
    for mode in [2, 3] {
        let mut pit = Pit::default();
        assert_eq!(pit.due_ns(), None);
        // 4 ms, as Linux has it.
        begin(&mut pit, 0, mode, 4773, 1000);
        let due = pit.due_ns().unwrap();
        assert!((4 * MS..4 * MS + 2000).contains(&due), "{due}");
        assert!(!pit.run(due - 1).0);
        let (interrupts, next) = pit.run(due);
        assert!(interrupts && (8 * MS..8 * MS + 2000).contains(&next.unwrap()), "{next:?}");
        assert!(!pit.run(due).0, "once each time");
        assert!(pit.run(403 * MS).0);
        assert!(!pit.run(403 * MS).0);
        assert!((404 * MS..405 * MS).contains(&pit.due_ns().unwrap()), "the pace is kept");
    }
}

#[test]
fn one_that_counts_once_interrupts_once() {
    for mode in [0, 4] {
        let mut pit = Pit::default();
        begin(&mut pit, 0, mode, 1193, 0);
        let due = pit.due_ns().unwrap();
        assert_eq!(pit.run(due), (true, None));
        assert_eq!(pit.run(due + MS), (false, None));
        begin(&mut pit, 0, mode, 0, due);
        let due = pit.due_ns().unwrap() - due;
        assert!((54 * MS..55 * MS).contains(&due), "a count of 0 is the longest");
    }
}

#[test]
fn a_guest_cannot_keep_its_host_busy_by_a_small_count() {
    let mut pit = Pit::default();
    begin(&mut pit, 0, 2, 1, 0);
    assert_eq!(pit.run(MS), (true, Some(MS + PERIOD_NS_MIN)));
}

#[test]
fn other_clocks_are_measured_by_the_third_as_linux_does() {
    let mut pit = Pit::default();
    pit.write_gate(GATE, 0);
    // 50 ms, once; its output is at the port.
    begin(&mut pit, 2, 0, 59659, 0);
    assert_eq!(pit.read_gate(49 * MS) & OUTPUT, 0);
    assert_eq!(pit.read_gate(50 * MS) & (OUTPUT | GATE), OUTPUT | GATE);
    // Linux's quick way reads how the high byte falls.
    begin(&mut pit, 2, 0, 0xffff, 60 * MS);
    assert_eq!(value(&mut pit, 2, 60 * MS), 0xffff);
    assert_eq!(value(&mut pit, 2, 61 * MS), 0xffff - 1193);
}

#[test]
fn a_gate_holds_a_count_or_begins_it_anew() {
    let mut pit = Pit::default();
    begin(&mut pit, 2, 0, 10_000, 0);
    assert_eq!(value(&mut pit, 2, 5 * MS), 10_000, "its gate is low");
    pit.write_gate(GATE, 5 * MS);
    assert_eq!(value(&mut pit, 2, 6 * MS), 10_000 - 1193);
    pit.write_gate(0, 6 * MS);
    assert!(value(&mut pit, 2, 60 * MS).abs_diff(10_000 - 1193) < 2);
    begin(&mut pit, 2, 1, 1193, 60 * MS);
    assert_eq!(pit.read_gate(70 * MS) & OUTPUT, OUTPUT, "it waits for its gate");
    pit.write_gate(GATE, 70 * MS);
    assert_eq!(pit.read_gate(70 * MS) & OUTPUT, 0);
    assert_eq!(pit.read_gate(71 * MS) & OUTPUT, OUTPUT);
}

#[test]
fn counts_and_states_are_latched_until_they_are_read() {
    let mut pit = Pit::default();
    begin(&mut pit, 0, 2, 1193, 0);
    // Both, of the first.
    pit.write(CONTROL, 0xc2, MS / 2);
    assert_eq!(pit.read(0, MS), 0xb4, "output high, loaded, two bytes, mode 2");
    let first = u16::from_le_bytes([0, 0].map(|_: u8| pit.read(0, 2 * MS)));
    assert_eq!(first, 1193 - 596);
    // One byte only.
    pit.write(CONTROL, 0x54, 0);
    pit.write(1, 100, 0);
    assert_eq!((pit.read(1, 0), pit.read(1, 0)), (100, 100));
    assert_eq!(pit.read(CONTROL, 0), 0);
}

#[derive(Debug, Clone)]
enum Step {
    Write(u64, u8),
    Read(u64),
    Gate(u8),
    ReadGate,
    Run,
}

fn steps() -> impl Strategy<Value = Vec<(Step, u64)>> {
    let step = prop_oneof![
        4 => (0u64..5, any::<u8>()).prop_map(|(port, value)| Step::Write(port, value)),
        2 => (0u64..5).prop_map(Step::Read),
        1 => any::<u8>().prop_map(Step::Gate),
        1 => Just(Step::ReadGate),
        2 => Just(Step::Run),
    ];
    prop::collection::vec((step, 0u64..20 * MS), 0..100)
}

/// What it shows, in nanoseconds from when it was saved.
fn take(pit: &mut Pit, step: &Step, now_ns: u64, zero_ns: u64) -> Option<u64> {
    match step {
        Step::Write(port, value) => pit.write(*port, *value, now_ns),
        Step::Read(port) => return Some(u64::from(pit.read(*port, now_ns))),
        Step::Gate(value) => pit.write_gate(*value, now_ns),
        Step::ReadGate => return Some(u64::from(pit.read_gate(now_ns) & !REFRESH)),
        Step::Run => {
            let (interrupts, due_ns) = pit.run(now_ns);
            assert!(!interrupts || due_ns.is_none_or(|due_ns| due_ns >= now_ns + PERIOD_NS_MIN));
            return Some((due_ns.unwrap_or(zero_ns) - zero_ns) << 1 | u64::from(interrupts));
        }
    }
    None
}

proptest! {
    #[test]
    fn whatever_a_guest_does_a_saved_one_goes_on_as_it_would_have(before in steps(), after in steps(), there in 0u64..1 << 50) {
        let mut pit = Pit::default();
        let mut now_ns = 1 << 40;
        for (step, pause) in &before {
            now_ns += pause;
            take(&mut pit, step, now_ns, 0);
        }
        let bytes = postcard::to_allocvec(&pit.saved(now_ns)).unwrap();
        // The other host has been up for as long at least.
        let there = there + (1 << 41);
        let mut restored = postcard::from_bytes::<Pit>(&bytes).unwrap().restored(there);
        let (zero, mut passed) = (now_ns, 0);
        for (step, pause) in &after {
            passed += pause;
            let here = take(&mut pit, step, zero + passed, zero);
            prop_assert_eq!(here, take(&mut restored, step, there + passed, there));
        }
    }

    #[test]
    fn a_hostile_state_is_put_right(bytes in prop::collection::vec(any::<u8>(), 80), after in steps(), now_ns in any::<u32>()) {
        if let Ok(pit) = postcard::from_bytes::<Pit>(&bytes) {
            let mut now_ns = u64::from(now_ns);
            let mut pit = pit.restored(now_ns);
            for (step, pause) in &after {
                now_ns += pause;
                take(&mut pit, step, now_ns, 0);
            }
            let _ = pit.saved(now_ns);
        }
    }
}
