#![allow(clippy::unwrap_used, reason = "a panic in a test is its report")]

use super::*;
use proptest::prelude::*;

const FIRST: PicRegister = PicRegister::Command(0);
const FIRST_MASK: PicRegister = PicRegister::Data(0);
const SECOND: PicRegister = PicRegister::Command(1);
const SECOND_MASK: PicRegister = PicRegister::Data(1);
/// End of the interrupt that is served.
const END: u8 = 0x20;

/// Set up as Linux does: vectors from 0x30 and 0x38, everything masked but `lines`.
fn set_up(lines: u16) -> Pics {
    let mut pics = Pics::default();
    for (command, data, base, cascade) in
        [(FIRST, FIRST_MASK, 0x30, 1 << CASCADE), (SECOND, SECOND_MASK, 0x38, CASCADE)]
    {
        pics.write(command, 0x11);
        [base, cascade, 1].into_iter().for_each(|value| pics.write(data, value));
    }
    let [low, high] = (!lines).to_le_bytes();
    pics.write(FIRST_MASK, low & !(1 << CASCADE));
    pics.write(SECOND_MASK, high);
    pics
}

fn pulse(pics: &mut Pics, line: usize) {
    pics.set_line(line, true);
    pics.set_line(line, false);
}

#[test]
fn what_kernels_look_for_is_there() {
    let mut pics = Pics::default();
    // Linux: the mask of the first reads as it was written, while that of the second was written too.
    pics.write(SECOND_MASK, 0xff);
    pics.write(FIRST_MASK, 0xfb);
    assert_eq!((pics.read(FIRST_MASK), pics.read(SECOND_MASK)), (0xfb, 0xff));
}

#[test]
fn a_line_is_told_once_taken_once_and_told_again_after_its_end() {
    let mut pics = set_up(0xffff);
    assert!(!pics.take_news());
    pulse(&mut pics, 0);
    assert!(pics.take_news() && !pics.take_news());
    assert_eq!(pics.acknowledge(), Some(0x30));
    pulse(&mut pics, 0);
    assert!(!pics.take_news(), "it is served");
    pics.write(FIRST, END);
    assert!(pics.take_news());
    assert_eq!((pics.acknowledge(), pics.acknowledge()), (Some(0x30), None));
}

#[test]
fn lines_of_the_second_come_through_the_first() {
    let mut pics = set_up(0xffff);
    pulse(&mut pics, 12);
    pulse(&mut pics, 8);
    assert!(pics.take_news());
    assert_eq!(pics.acknowledge(), Some(0x38));
    assert!(!pics.take_news(), "the first serves the second");
    pics.write(SECOND, END);
    pics.write(FIRST, END);
    assert!(pics.take_news());
    assert_eq!(pics.acknowledge(), Some(0x3c));
}

#[test]
fn a_more_important_line_interrupts_a_less_important_one() {
    let mut pics = set_up(0xffff);
    pulse(&mut pics, 4);
    assert_eq!(pics.acknowledge(), Some(0x34));
    pulse(&mut pics, 5);
    assert!(!pics.output());
    pulse(&mut pics, 1);
    assert_eq!(pics.acknowledge(), Some(0x31));
    pics.write(FIRST, END);
    assert!(!pics.output());
    pics.write(FIRST, END);
    assert_eq!(pics.acknowledge(), Some(0x35));
}

#[test]
fn a_masked_line_waits_and_a_level_goes_with_its_line() {
    let mut pics = set_up(0);
    pulse(&mut pics, 3);
    assert!(!pics.output());
    pics.write(FIRST_MASK, 0xf3);
    assert!(pics.output());
    let mut pics = set_up(0xffff);
    pics.write(PicRegister::Levels(1), 0xff);
    assert_eq!(pics.read(PicRegister::Levels(1)), 0xde);
    pics.set_line(9, true);
    assert!(pics.take_news());
    pics.set_line(9, false);
    assert!(!pics.output());
    assert_eq!(pics.acknowledge(), None, "nothing is made up");
}

#[test]
fn a_poll_takes_and_an_automatic_end_needs_none() {
    let mut pics = set_up(0xffff);
    pulse(&mut pics, 6);
    pics.write(FIRST, 0x0c);
    assert_eq!(pics.read(FIRST), 0x86);
    pics.write(FIRST, 0x0b);
    assert_eq!(pics.read(FIRST), 0x40, "in service");
    pics.write(FIRST, 0x11);
    [0x20, 4, 3].into_iter().for_each(|value| pics.write(FIRST_MASK, value));
    for _ in 0..2 {
        pulse(&mut pics, 1);
        assert_eq!((pics.acknowledge(), pics.output()), (Some(0x21), false));
    }
}

#[test]
fn lines_that_do_not_exist_do_nothing() {
    let mut pics = set_up(0xffff);
    [2, 16, 23, usize::MAX].into_iter().for_each(|line| pulse(&mut pics, line));
    assert!(!pics.output());
}

#[derive(Debug, Clone)]
enum Step {
    Write(PicRegister, u8),
    Read(PicRegister),
    Line(usize, bool),
    Acknowledge,
    News,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let register = || {
        (0usize..3, 0usize..2).prop_map(|(kind, which)| match kind {
            0 => PicRegister::Command(which),
            1 => PicRegister::Data(which),
            _ => PicRegister::Levels(which),
        })
    };
    let step = prop_oneof![
        4 => (register(), any::<u8>()).prop_map(|(register, value)| Step::Write(register, value)),
        1 => register().prop_map(Step::Read),
        4 => (0usize..24, any::<bool>()).prop_map(|(line, high)| Step::Line(line, high)),
        2 => Just(Step::Acknowledge),
        1 => Just(Step::News),
    ];
    prop::collection::vec(step, 0..200)
}

fn take(pics: &mut Pics, step: &Step) -> Option<u8> {
    match step {
        Step::Write(register, value) => pics.write(*register, *value),
        Step::Read(register) => return Some(pics.read(*register)),
        Step::Line(line, high) => pics.set_line(*line, *high),
        Step::Acknowledge => {
            let was_high = pics.output();
            let vector = pics.acknowledge();
            assert_eq!(vector.is_some(), was_high, "what is told can be taken, and nothing else");
            return vector;
        }
        Step::News => drop(pics.take_news()),
    }
    None
}

proptest! {
    #[test]
    fn whatever_a_guest_does_a_saved_pair_goes_on_as_it_would_have(before in steps(), after in steps()) {
        let mut pics = Pics::default();
        before.iter().for_each(|step| {
            let _ = take(&mut pics, step);
        });
        let bytes = postcard::to_allocvec(&pics).unwrap();
        let mut restored = postcard::from_bytes::<Pics>(&bytes).unwrap().restored();
        for step in &after {
            prop_assert_eq!(take(&mut pics, step), take(&mut restored, step));
        }
    }

    #[test]
    fn a_hostile_state_is_put_right(bytes in prop::collection::vec(any::<u8>(), 40), after in steps()) {
        if let Ok(pics) = postcard::from_bytes::<Pics>(&bytes) {
            let mut pics = pics.restored();
            after.iter().for_each(|step| {
                let _ = take(&mut pics, step);
            });
        }
    }
}
