use super::*;
use proptest::{collection::vec, prelude::*};
use std::collections::BTreeSet;

const fn at(register: usize) -> u64 {
    (register as u64) << 4
}

fn enabled(id: u8) -> LocalApic {
    let mut apic = LocalApic::new(id);
    assert_eq!(apic.write(at(register::SPURIOUS), 0x1ff, 0), None);
    apic
}

#[test]
fn the_highest_class_goes_first_and_its_own_class_waits() {
    let mut apic = enabled(0);
    for vector in [0x31, 0x45, 0x42] {
        apic.request(vector, Trigger::Edge);
    }
    assert_eq!(apic.take(), Some(0x45));
    assert_eq!(apic.take(), None, "0x42 is of the class in service");
    apic.request(0x50, Trigger::Edge);
    assert_eq!(apic.take(), Some(0x50));
    let _ = apic.write(at(register::END_OF_INTERRUPT), 0, 0);
    assert_eq!(apic.take(), None);
    let _ = apic.write(at(register::END_OF_INTERRUPT), 0, 0);
    assert_eq!((apic.take(), apic.processor_priority()), (Some(0x42), 0x40));
}

#[test]
fn a_task_keeps_off_what_is_not_above_it() {
    let mut apic = enabled(0);
    apic.set_task_class(4);
    apic.request(0x4f, Trigger::Edge);
    assert_eq!((apic.pending(), apic.task_class()), (None, 4));
    apic.request(0x50, Trigger::Edge);
    assert_eq!(apic.pending(), Some(0x50));
    let _ = apic.write(at(register::TASK_PRIORITY), 0, 0);
    assert_eq!((apic.task_class(), apic.take()), (0, Some(0x50)));
}

#[test]
fn the_end_of_a_level_is_told_and_that_of_an_edge_is_not() {
    let mut apic = enabled(0);
    apic.request(0x61, Trigger::Level);
    apic.request(0x71, Trigger::Edge);
    assert_eq!(apic.take(), Some(0x71));
    assert_eq!(apic.write(at(register::END_OF_INTERRUPT), 0, 0), None);
    assert_eq!(apic.take(), Some(0x61));
    assert_eq!(apic.write(at(register::END_OF_INTERRUPT), 0, 0), Some(Sent::EndOfInterrupt(0x61)));
    assert_eq!(apic.write(at(register::END_OF_INTERRUPT), 0, 0), None, "nothing is in service");
}

#[test]
fn one_that_is_disabled_takes_nothing_and_masks_its_own() {
    let mut apic = enabled(0);
    let _ = apic.write(at(register::LVT_TIMER), 0x40, 0);
    let _ = apic.write(at(register::SPURIOUS), 0xff, 0);
    apic.request(0x40, Trigger::Edge);
    assert_eq!(apic.pending(), None);
    let _ = apic.write(at(register::LVT_TIMER), 0x40, 0);
    assert_eq!(apic.read(at(register::LVT_TIMER), 0), LVT_MASKED | 0x40);
}

#[test]
fn commands_become_messages() {
    let mut apic = enabled(2);
    let mut sent = |high: u32, low: u32| {
        assert_eq!(apic.write(at(register::COMMAND_HIGH), high, 0), None);
        apic.write(at(register::COMMAND), low, 0)
    };
    let message = |destination, delivery, vector| {
        Some(Sent::Message(Message { destination, delivery, vector, trigger: Trigger::Edge }))
    };
    assert_eq!(sent(5 << 24, 0x40fd), message(Destination::Physical(5), Delivery::Fixed, 0xfd));
    assert_eq!(sent(3 << 24, 0x4900 | 0xfc), message(Destination::Logical(3), Delivery::LowestPriority, 0xfc));
    assert_eq!(sent(0, 0x4_40fb), message(Destination::Sender, Delivery::Fixed, 0xfb));
    assert_eq!(sent(0, 0xc_4400), message(Destination::Others, Delivery::NonMaskable, 0));
    // As Linux starts a processor: INIT, its de-assertion (which does nothing), and twice where to begin.
    assert_eq!(sent(1 << 24, 0xc500), message(Destination::Physical(1), Delivery::Init, 0));
    assert_eq!(sent(1 << 24, 0x8500), None);
    assert_eq!(sent(1 << 24, 0x0699), message(Destination::Physical(1), Delivery::StartUp, 0x99));
    // The status bit is never seen set: it has gone.
    assert_eq!(apic.read(at(register::COMMAND), 0) & 1 << 12, 0);
}

#[test]
fn vectors_of_exceptions_are_errors_that_are_shown_when_asked() {
    let mut apic = enabled(0);
    let _ = apic.write(at(register::LVT_ERROR), 0xfe, 0);
    assert_eq!(apic.write(at(register::COMMAND), 0x4_400f, 0), None);
    apic.request(3, Trigger::Edge);
    assert_eq!(apic.take(), Some(0xfe));
    assert_eq!(apic.read(at(register::ERROR), 0), 0);
    let _ = apic.write(at(register::ERROR), 0, 0);
    assert_eq!(apic.read(at(register::ERROR), 0), SEND_ILLEGAL_VECTOR | RECEIVE_ILLEGAL_VECTOR);
    let _ = apic.write(at(register::ERROR), 0, 0);
    assert_eq!(apic.read(at(register::ERROR), 0), 0);
    assert_eq!(apic.read(0x3f0, 0), 0);
    assert_eq!(apic.read(u64::MAX, 0), 0);
}

#[test]
fn an_error_vector_that_is_an_error_does_not_go_round_in_circles() {
    let mut apic = enabled(0);
    let _ = apic.write(at(register::LVT_ERROR), 3, 0);
    apic.request(3, Trigger::Edge);
    assert_eq!(apic.pending(), None);
}

#[test]
fn ids_are_physical_or_a_bit_or_a_cluster() {
    let mut apic = enabled(2);
    assert!(apic.is_for(Destination::Physical(2), None) && apic.is_for(Destination::Physical(EVERYBODY), None));
    assert!(!apic.is_for(Destination::Physical(1), None));
    assert!(apic.is_for(Destination::Others, Some(1)) && !apic.is_for(Destination::Others, Some(2)));
    assert!(apic.is_for(Destination::Sender, Some(2)) && !apic.is_for(Destination::Sender, None));
    let _ = apic.write(at(register::LOGICAL_DESTINATION), 0x24 << 24, 0);
    assert!(apic.is_for(Destination::Logical(0x04), None) && !apic.is_for(Destination::Logical(0x01), None));
    let _ = apic.write(at(register::DESTINATION_FORMAT), 0, 0);
    assert!(apic.is_for(Destination::Logical(0x26), None) && apic.is_for(Destination::Logical(0xf4), None));
    assert!(!apic.is_for(Destination::Logical(0x14), None) && !apic.is_for(Destination::Logical(0x28), None));
}

#[test]
fn a_timer_runs_out_once_or_again_and_again() {
    let mut apic = enabled(0);
    let _ = apic.write(at(register::LVT_TIMER), 0x40, 0);
    // Divided by 16.
    let _ = apic.write(at(register::TIMER_DIVIDE), 0b0011, 0);
    let _ = apic.write(at(register::TIMER_INITIAL), 1000, 500);
    assert_eq!((apic.timer_due_ns(), apic.read(at(register::TIMER_CURRENT), 500 + 1600)), (Some(16_500), 900));
    apic.run_timer(16_499);
    assert_eq!(apic.pending(), None);
    apic.run_timer(16_500);
    assert_eq!((apic.take(), apic.timer_due_ns()), (Some(0x40), None));
    assert_eq!(apic.read(at(register::TIMER_CURRENT), 20_000), 0);

    let _ = apic.write(at(register::END_OF_INTERRUPT), 0, 0);
    let _ = apic.write(at(register::LVT_TIMER), TIMER_PERIODIC | 0x40, 0);
    let _ = apic.write(at(register::TIMER_INITIAL), 1000, 100_000);
    apic.run_timer(100_000 + 16_000 * 3 + 7);
    assert_eq!((apic.take(), apic.timer_due_ns()), (Some(0x40), Some(100_000 + 16_000 * 4)));
    let _ = apic.write(at(register::TIMER_INITIAL), 0, 200_000);
    assert_eq!(apic.timer_due_ns(), None);
}

#[test]
fn a_timer_whose_divider_changes_goes_on_from_where_it_is() {
    let mut apic = enabled(0);
    let _ = apic.write(at(register::TIMER_DIVIDE), 0b1011, 0);
    let _ = apic.write(at(register::TIMER_INITIAL), 1000, 0);
    let _ = apic.write(at(register::TIMER_DIVIDE), 0b0000, 400);
    assert_eq!(apic.read(at(register::TIMER_CURRENT), 400), 600);
    assert_eq!(apic.timer_due_ns(), Some(400 + 1200));
}

#[test]
fn pins_do_what_their_entry_says() {
    let mut apic = enabled(0);
    assert_eq!(apic.raise(Pin::Zero), None);
    let _ = apic.write(at(register::LVT_LINT0), 0x700, 0);
    let _ = apic.write(at(register::LVT_LINT1), 0x400, 0);
    assert_eq!((apic.raise(Pin::Zero), apic.raise(Pin::One)), (Some(Delivery::External), Some(Delivery::NonMaskable)));
    let _ = apic.write(at(register::LVT_LINT0), 0x45, 0);
    assert_eq!((apic.raise(Pin::Zero), apic.pending()), (None, Some(0x45)));
}

#[test]
fn a_reset_leaves_the_id() {
    let mut apic = enabled(7);
    apic.request(0x40, Trigger::Edge);
    let _ = apic.write(at(register::TIMER_INITIAL), 1000, 0);
    apic.reset();
    assert_eq!(apic, LocalApic::new(7));
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Request(u8, bool),
    Take,
    End,
    Task(u8),
    Write(u64, u32),
    Time(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (16u8.., any::<bool>()).prop_map(|(vector, level)| Step::Request(vector, level)),
        Just(Step::Take),
        Just(Step::End),
        (0u8..16).prop_map(Step::Task),
        (0u64..0x440, any::<u32>()).prop_map(|(offset, value)| Step::Write(offset, value)),
        (0u64..1 << 40).prop_map(Step::Time),
    ]
}

proptest! {
    /// The same as sets of vectors, which nobody can get wrong.
    #[test]
    fn vectors_are_taken_as_the_manual_says(steps in vec(step(), 1..200)) {
        let mut apic = enabled(0);
        let (mut requested, mut serving, mut levels) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let mut class = 0;
        for step in steps {
            match step {
                Step::Request(vector, level) => {
                    apic.request(vector, Trigger::from_bit(level));
                    requested.insert(vector);
                    if level { levels.insert(vector); } else { levels.remove(&vector); }
                }
                Step::Take => {
                    let floor = serving.last().map_or(0, |vector: &u8| vector >> 4).max(class);
                    let next = requested.last().copied().filter(|vector: &u8| vector >> 4 > floor);
                    prop_assert_eq!(apic.take(), next);
                    if let Some(vector) = next {
                        requested.remove(&vector);
                        serving.insert(vector);
                    }
                }
                Step::End => {
                    let told = serving.pop_last().filter(|vector| levels.contains(vector)).map(Sent::EndOfInterrupt);
                    prop_assert_eq!(apic.write(at(register::END_OF_INTERRUPT), 0, 0), told);
                }
                Step::Task(task) => {
                    apic.set_task_class(task);
                    class = task;
                }
                Step::Write(..) | Step::Time(_) => {}
            }
        }
    }

    /// Whatever a guest writes: no panic, and one that is saved goes on as the same.
    #[test]
    fn a_saved_one_goes_on(steps in vec(step(), 1..100), away in 0u64..1 << 40) {
        let (mut apic, mut now) = (enabled(3), 0);
        for step in steps {
            match step {
                Step::Request(vector, level) => apic.request(vector, Trigger::from_bit(level)),
                Step::Take => drop(apic.take()),
                Step::End => drop(apic.write(at(register::END_OF_INTERRUPT), 0, now)),
                Step::Task(class) => apic.set_task_class(class),
                Step::Write(offset, value) => drop(apic.write(offset, value, now)),
                Step::Time(ns) => {
                    now += ns;
                    apic.run_timer(now);
                }
            }
        }
        let page = apic.save(now);
        prop_assert_eq!(apic.save(now), page);
        let there = now + away;
        let mut copy = LocalApic::restore(&page, there);
        prop_assert_eq!(copy.save(there), page);
        prop_assert_eq!(copy.pending(), apic.pending());
        prop_assert_eq!(copy.take(), apic.take());
        // A timer goes on with what was left, to a count.
        match (apic.timer_due_ns(), copy.timer_due_ns()) {
            (Some(due), Some(due_there)) => {
                // What is left of a count is lost.
                let (left, left_there) = (due.saturating_sub(now), due_there.saturating_sub(there));
                prop_assert!(left.abs_diff(left_there) <= 128, "{left} {left_there}");
            }
            (None, None) => {}
            (due, due_there) => prop_assert!(false, "{due:?} {due_there:?} at {now}"),
        }
    }
}
