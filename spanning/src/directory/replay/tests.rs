use super::*;
use proptest::prelude::*;

#[derive(Debug, Clone, Copy)]
enum Step {
    Push,
    Deliver,
    Acknowledge,
    Cut,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => Just(Step::Push), 4 => Just(Step::Deliver), 2 => Just(Step::Acknowledge), 1 => Just(Step::Cut)
    ];
    prop::collection::vec(step, 0..200)
}

proptest! {
    #[test]
    fn each_message_is_accepted_once_and_in_order(steps in steps()) {
        let (mut outbox, mut inbox) = (Outbox::new(16), Inbox::default());
        let (mut wire, mut pushed, mut accepted) = (VecDeque::new(), 0_u32, Vec::new());
        for step in steps {
            match step {
                Step::Push => if let Ok(numbered) = outbox.push(pushed) {
                    wire.push_back(numbered);
                    pushed += 1;
                },
                Step::Deliver => if let Some(numbered) = wire.pop_front() {
                    accepted.extend(inbox.accept(numbered).unwrap());
                },
                Step::Acknowledge => outbox.acknowledged(inbox.next()).unwrap(),
                Step::Cut => wire = outbox.replay().collect(),
            }
        }
        while let Some(numbered) = wire.pop_front() {
            accepted.extend(inbox.accept(numbered).unwrap());
        }
        prop_assert_eq!(accepted, (0..pushed).collect::<Vec<_>>());
    }
}

#[test]
fn a_stream_that_is_not_acknowledged_takes_no_more() {
    let mut outbox = Outbox::new(1);
    outbox.push('a').unwrap();
    assert_eq!(outbox.push('b'), Err(Full { limit: 1 }));
    outbox.acknowledged(1).unwrap();
    assert_eq!(outbox.push('b'), Ok(Numbered { number: 1, message: 'b' }));
}

#[test]
fn what_is_missing_and_what_was_never_sent_is_named() {
    let mut inbox = Inbox::default();
    assert_eq!(inbox.accept(Numbered { number: 2, message: () }), Err(Gap { expected: 0, got: 2 }));
    assert_eq!(Outbox::<()>::new(1).acknowledged(3), Err(Gap { expected: 0, got: 3 }));
}
