//! The transition function against the obvious model of a page: is it here, was it asked for, is somebody writing it.

use super::*;
use proptest::prelude::*;

#[derive(Debug, Clone, Copy)]
enum Event {
    Fault,
    Ask,
    Begin,
    Finish,
    GiveBack,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![Just(Event::Fault), Just(Event::Ask), Just(Event::Begin), Just(Event::Finish), Just(Event::GiveBack)]
}

#[derive(Debug, Default)]
struct Model {
    here: bool,
    asked: bool,
    filling: bool,
}

proptest! {
    #[test]
    fn a_missing_page_behaves_like_the_model(events in prop::collection::vec(event(), 0..40)) {
        let states = PageStates::new(1).unwrap();
        states.set_missing(0..1);
        let mut model = Model::default();
        for event in events {
            match event {
                Event::Fault => {
                    let means = states.change(0, |state| Some(state.fault())).unwrap();
                    let expected = match model {
                        Model { here: true, .. } => FaultMeans::Local,
                        Model { asked: false, filling: false, .. } => FaultMeans::Demand,
                        _ => FaultMeans::Wait,
                    };
                    prop_assert_eq!(means, expected);
                    model.asked |= !model.here;
                }
                Event::Ask => {
                    let asked = states.change(0, |state| state.ask().map(|next| (next, ()))).is_some();
                    let expected = !model.here && !model.asked && !model.filling;
                    prop_assert_eq!(asked, expected);
                    model.asked |= expected;
                }
                Event::Begin => {
                    let began = states.change(0, |state| state.begin().map(|next| (next, ()))).is_some();
                    prop_assert_eq!(began, !model.here && !model.filling);
                    model.filling |= began;
                }
                Event::Finish => {
                    let finished = states.change(0, PageState::finish);
                    prop_assert_eq!(finished, model.filling.then_some(model.asked));
                    model.here |= model.filling;
                    model.filling = false;
                }
                Event::GiveBack => {
                    let given = states.change(0, PageState::give_back);
                    prop_assert_eq!(given, model.filling.then_some(model.asked));
                    // Whoever waits is woken, and asks again with its next fault.
                    model.asked &= !model.filling;
                    model.filling = false;
                }
            }
            prop_assert_eq!(states.get(0).is_here(), model.here);
        }
    }
}

#[test]
fn a_present_page_stays_so() {
    let states = PageStates::new(1).unwrap();
    assert_eq!(states.change(0, |state| Some(state.fault())), Some(FaultMeans::Local));
    assert_eq!(states.change(0, PageState::finish), None);
    assert_eq!(states.change(0, |state| state.begin().map(|next| (next, ()))), None);
    assert_eq!(states.get(0), PageState::Present);
    assert_eq!(states.get(1), PageState::Present, "beyond the end");
}

#[test]
fn one_of_many_threads_begins_and_one_fault_demands() {
    let states = PageStates::new(64).unwrap();
    states.set_missing(0..64);
    let count = |transition: fn(PageState) -> Option<(PageState, bool)>| {
        let won = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let here = (0..64).filter(|page| states.change(*page, transition) == Some(true)).count();
                    won.fetch_add(here, Ordering::Relaxed);
                });
            }
        });
        won.into_inner()
    };
    let fault = |state: PageState| {
        let (next, means) = state.fault();
        Some((next, means == FaultMeans::Demand))
    };
    assert_eq!(count(fault), 64);
    assert_eq!(count(|state| state.begin().map(|next| (next, true))), 64);
    assert_eq!(count(PageState::finish), 64, "each was asked for");
}
