use super::*;

fn settling(outcome: MoveOutcome) -> Phase {
    Phase::Settling { outcome }
}

fn lost() -> MoveOutcome {
    MoveOutcome::SourceLost { reason: "it died".to_owned() }
}

fn launching() -> Phase {
    Phase::Launching { address: "127.0.0.1:1".parse().unwrap() }
}

fn silent(patience_left: bool) -> Event {
    Event::TargetSilent { reason: "no answer".to_owned(), patience_left }
}

#[test]
fn record_that_names_the_target_ends_every_phase_as_moved() {
    for phase in [Phase::Preparing, launching(), Phase::Copying, settling(lost())] {
        assert_eq!(phase.clone().step(Event::RecordNamesTarget), Next::Finish(MoveOutcome::Moved, None));
        let reason = "pages are missing".to_owned();
        let stranded = Next::Finish(MoveOutcome::Stranded { reason: reason.clone() }, None);
        assert_eq!(phase.step(Event::Stranded(reason)), stranded);
    }
}

#[test]
fn silence_of_the_source_concludes_nothing() {
    for phase in [launching(), Phase::Copying] {
        let next = phase.step(Event::SourceSilent("no answer".to_owned()));
        assert_eq!(next, Next::Again(Some("no answer".to_owned())));
    }
}

#[test]
fn lost_source_is_concluded_only_after_the_target_has_let_go() {
    let forgot = Event::SourceForgot { alive: false, reason: "it died".to_owned() };
    assert_eq!(Phase::Copying.step(forgot), Next::Go(settling(lost())));
    assert_eq!(settling(lost()).step(silent(false)), Next::Again(Some("no answer".to_owned())));
    let late = Event::TargetCommitting("deciding".to_owned());
    assert_eq!(settling(lost()).step(late), Next::Again(Some("deciding".to_owned())));
    assert_eq!(settling(lost()).step(Event::TargetLetGo), Next::Finish(lost(), None));
}

#[test]
fn silent_target_is_given_up_after_patience_while_the_source_lives() {
    assert_eq!(Phase::Preparing.step(silent(true)), Next::Again(Some("no answer".to_owned())));
    let rolled_back = MoveOutcome::RolledBack { reason: "no answer".to_owned() };
    assert_eq!(Phase::Preparing.step(silent(false)), Next::Finish(rolled_back, None));
    let cancelled = settling(MoveOutcome::Cancelled);
    assert_eq!(cancelled.step(silent(false)), Next::Finish(MoveOutcome::Cancelled, None));
}

#[test]
fn finished_move_stays_finished() {
    for event in [Event::Cancelled, Event::RecordNamesTarget, Event::TargetLetGo, Event::SourceRefused(String::new())] {
        assert_eq!(Phase::Finished.step(event), Next::Again(None));
    }
}
