//! Every interleaving of the two state machines, a store and a hostile world: messages lost (session cut), the store's
//! answers lost, either process killed, cancel at any time, offers taken back. Exhaustive, by breadth-first search.
//!
//! Checked: never two running copies; a machine is never without a runner for ever while its owner's process lives; nobody runs or
//! asks for a machine by an epoch that was not won.

use crate::{
    convergence::{Convergence, RoundReport},
    model_guest::Token,
    plan::Plan,
    source::state::{Abort, Effect as SourceEffect, Event as SourceEvent, Source, Verdict},
    target::state::{Effect as TargetEffect, Event as TargetEvent, Target},
};
use stateright::{Checker, Model, Property};
use std::{
    hash::{Hash, Hasher},
    time::Duration,
};
use vmotion_model::Strategy;

/// The store's record, reduced to what matters: whose the machine is, and changes of the record so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Record {
    target: bool,
    epoch: u8,
}

impl Record {
    /// `(source, epoch)` is replaced by the next epoch of `target`, or of the source. Is it that now?
    fn compare_and_set(&mut self, epoch: u8, target: bool) -> bool {
        let wanted = Self { target, epoch: epoch + 1 };
        if *self == (Self { target: false, epoch }) {
            *self = wanted;
        }
        *self == wanted
    }
}

/// What the source says on the control stream, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum ToTarget {
    Offer { epoch: u8, owed: bool },
    Renew(u8),
}

#[derive(Debug, Clone, PartialEq)]
struct World {
    /// `None`: its process was killed.
    source: Option<Source<Token>>,
    target: Option<Target>,
    record: Record,
    /// The epoch that the source has, and the one that the target would take the machine over from.
    source_epoch: u8,
    target_epoch: u8,
    session: bool,
    /// An effect of the source that waits to be done; at most one is ever outstanding.
    source_todo: Vec<SourceEffect<Token>>,
    target_todo: Option<TargetEffect>,
    /// Messages in flight.
    to_target: Vec<ToTarget>,
    commit: bool,
    refusal: bool,
    all_here: bool,
    /// The guest runs at the source / the target.
    runs_source: bool,
    runs_target: bool,
    /// The target has heard an offer, and waits for the last pages; with pages missing or not.
    heard: Option<bool>,
    /// The first round was judged.
    surveyed: bool,
    /// The target was told what does not fit together.
    confused: bool,
    /// Kills and cuts left.
    faults: u8,
}

impl Eq for World {}

impl Hash for World {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // The convergence rule holds floats; its text stands for it.
        format!("{self:?}").hash(state);
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Action {
    SourceDoes,
    SourceEvent(&'static str),
    TargetDoes,
    /// The store applied the request, but the answer was lost: it will be asked again.
    TargetTakesAnswerLost,
    SourceReclaimsAnswerLost,
    TargetHears,
    /// All that comes before the offer has arrived.
    LastPagesArrive,
    DeliverCommit,
    DeliverRefusal,
    /// The last missing page arrives.
    LastPageArrives,
    DeliverAllHere,
    TargetLosesSession,
    TargetFails,
    Cut,
    KillSource,
    KillTarget,
}

struct Moves {
    strategy: Strategy,
}

impl World {
    fn source_event(&mut self, event: SourceEvent<Token>) {
        if let Some(source) = self.source.take() {
            let (next, effects) = source.step(event);
            self.source = Some(next);
            self.source_todo.extend(effects);
        }
    }

    fn target_event(&mut self, event: TargetEvent) {
        if let Some(target) = self.target.take() {
            let (next, effect) = target.step(event);
            self.target = Some(next);
            if effect.is_some() {
                self.target_todo = effect;
            }
        }
    }

    fn source_does(&mut self) {
        let report = |remaining_pages| RoundReport {
            pages: 10_000,
            duration: Duration::from_millis(10),
            way: Duration::ZERO,
            dirtied_in: Duration::from_millis(10),
            remaining_pages,
            rtt: Duration::ZERO,
        };
        match self.source_todo.remove(0) {
            SourceEffect::StartTracking { .. } => self.source_event(SourceEvent::Tracking),
            SourceEffect::CopyRound(1) => self.round_arrived(report(9000)),
            SourceEffect::CopyRound(_) => self.round_arrived(report(0)),
            SourceEffect::Pause { .. } => {
                self.runs_source = false;
                self.source_event(SourceEvent::GuestPaused {
                    guard: Token,
                    spent_ms: 1.0,
                    remaining_pages: 10,
                    rtt: Duration::ZERO,
                });
            }
            SourceEffect::SendLast | SourceEffect::HandOver => self.source_event(SourceEvent::LastSent),
            SourceEffect::Serve | SourceEffect::PushRest | SourceEffect::CutShort => {}
            SourceEffect::SendOffer => {
                let owed = matches!(self.source, Some(Source::Offered { owes: true, .. }));
                self.tell(ToTarget::Offer { epoch: self.source_epoch, owed });
            }
            SourceEffect::Renew => {
                self.source_epoch += 1;
                self.tell(ToTarget::Renew(self.source_epoch));
            }
            SourceEffect::Resume(_) | SourceEffect::Thaw(_) => self.runs_source = true,
            SourceEffect::Reclaim => {
                let ours = self.record.compare_and_set(self.source_epoch, false);
                self.source_event(if ours { SourceEvent::RecordOurs } else { SourceEvent::RecordTheirs });
            }
            SourceEffect::Destroy(_) => {}
            SourceEffect::CleanUp => self.session = false,
        }
    }

    fn tell(&mut self, message: ToTarget) {
        if self.session {
            self.to_target.push(message);
        }
    }

    fn target_hears(&mut self, message: ToTarget) {
        if self.target != Some(Target::Filling) {
            return;
        }
        match message {
            ToTarget::Offer { epoch, owed } if epoch == self.target_epoch => self.heard = Some(owed),
            ToTarget::Renew(epoch) if epoch == self.target_epoch + 1 => {
                self.target_epoch = epoch;
                self.heard = None;
            }
            // Does not happen; the property about what is discarded would not hold.
            ToTarget::Offer { .. } | ToTarget::Renew(_) => self.confused = true,
        }
    }

    fn round_arrived(&mut self, report: RoundReport) {
        self.source_event(SourceEvent::RoundArrived { report, hopeless: false });
    }

    fn target_does(&mut self) {
        match self.target_todo.take() {
            Some(TargetEffect::Load { .. }) => self.target_event(TargetEvent::Loaded),
            Some(TargetEffect::Take) => {
                let ours = self.record.compare_and_set(self.target_epoch, true);
                self.target_event(if ours { TargetEvent::RecordOurs } else { TargetEvent::RecordTheirs });
            }
            Some(TargetEffect::Run | TargetEffect::Pull) => {
                self.runs_target = true;
                self.commit = self.session;
            }
            Some(TargetEffect::Abandon) => self.runs_target = false,
            Some(TargetEffect::Destroy) => self.refusal = self.session,
            Some(TargetEffect::Listen | TargetEffect::Fill) | None => {}
        }
    }
}

impl Model for Moves {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let mut world = World {
            source: Some(Source::new(Plan::new(self.strategy, Convergence::new(300, 60)))),
            target: Some(Target::Empty),
            record: Record { target: false, epoch: 0 },
            source_epoch: 0,
            target_epoch: 0,
            session: true,
            source_todo: Vec::new(),
            target_todo: None,
            to_target: Vec::new(),
            commit: false,
            refusal: false,
            all_here: false,
            runs_source: true,
            runs_target: false,
            heard: None,
            surveyed: false,
            confused: false,
            faults: 2,
        };
        world.target_event(TargetEvent::Built);
        world.target_event(TargetEvent::Opened);
        world.source_event(SourceEvent::Opened { follows: true, renews: true });
        vec![world]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        if world.source.is_some() {
            if let Some(next) = world.source_todo.first() {
                actions.push(Action::SourceDoes);
                if matches!(next, SourceEffect::Reclaim) {
                    actions.push(Action::SourceReclaimsAnswerLost);
                }
            }
            actions.extend(["cancel", "overdue", "does not get through"].map(Action::SourceEvent));
            // Once, in the first round.
            let surveys = matches!(world.source, Some(Source::Copying { round: 1, take_backs: 0, .. }));
            if surveys && !world.surveyed {
                actions.push(Action::SourceEvent("surveyed: end"));
                if self.strategy != Strategy::Precopy {
                    actions.push(Action::SourceEvent("surveyed: hand over"));
                }
            }
            if !world.session {
                actions.push(Action::SourceEvent("session lost"));
            }
        }
        if world.target.is_some() {
            if let Some(next) = world.target_todo {
                actions.push(Action::TargetDoes);
                if next == TargetEffect::Take {
                    actions.push(Action::TargetTakesAnswerLost);
                }
            }
            // Before the guest runs here; what happens to a guest that runs is not this model's business.
            if world.target != Some(Target::Pulling) {
                actions.push(Action::TargetFails);
            }
        }
        let pulls = world.target == Some(Target::Pulling) && world.target_todo.is_none();
        if pulls && world.session && matches!(world.source, Some(Source::Serving { .. })) {
            actions.push(Action::LastPageArrives);
        }
        if pulls && !world.session {
            actions.push(Action::TargetLosesSession);
        }
        if world.all_here {
            actions.push(Action::DeliverAllHere);
        }
        if !world.to_target.is_empty() {
            actions.push(Action::TargetHears);
        }
        if world.heard.is_some() && world.target == Some(Target::Filling) {
            actions.push(Action::LastPagesArrive);
        }
        if world.commit {
            actions.push(Action::DeliverCommit);
        }
        if world.refusal {
            actions.push(Action::DeliverRefusal);
        }
        if world.faults > 0 {
            actions.extend([Action::Cut, Action::KillSource, Action::KillTarget]);
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        match action {
            Action::SourceDoes => next.source_does(),
            Action::SourceEvent("cancel") => next.source_event(SourceEvent::Cancel),
            Action::SourceEvent("surveyed: end") => {
                next.source_event(SourceEvent::Surveyed(Verdict::End(Abort::Surveyed)));
            }
            Action::SourceEvent("surveyed: hand over") => {
                next.surveyed = true;
                next.source_event(SourceEvent::Surveyed(Verdict::HandOver(Strategy::Postcopy)));
            }
            Action::SourceEvent("does not get through") => next.source_event(SourceEvent::Overran),
            Action::SourceEvent("overdue") => next.source_event(SourceEvent::Overdue),
            Action::SourceEvent(reason) => next.source_event(SourceEvent::Failed(reason.to_owned())),
            Action::TargetDoes => next.target_does(),
            Action::TargetTakesAnswerLost => {
                next.record.compare_and_set(next.target_epoch, true);
            }
            Action::SourceReclaimsAnswerLost => {
                next.record.compare_and_set(next.source_epoch, false);
            }
            Action::TargetHears => {
                let message = next.to_target.remove(0);
                next.target_hears(message);
            }
            Action::LastPagesArrive => {
                let owed = next.heard.take()?;
                next.target_event(TargetEvent::AllArrived { owed });
            }
            Action::DeliverCommit => {
                next.commit = false;
                next.source_event(SourceEvent::Committed);
            }
            Action::DeliverRefusal => {
                next.refusal = false;
                next.source_event(SourceEvent::Refused("refused".to_owned()));
            }
            Action::LastPageArrives => {
                next.target_event(TargetEvent::AllHere);
                next.all_here = next.session;
            }
            Action::DeliverAllHere => {
                next.all_here = false;
                next.source_event(SourceEvent::AllServed);
            }
            Action::TargetLosesSession => next.target_event(TargetEvent::Failed("session lost".to_owned())),
            Action::TargetFails => next.target_event(TargetEvent::Failed("failed".to_owned())),
            Action::Cut => {
                next.faults -= 1;
                next.session = false;
                next.to_target.clear();
                (next.commit, next.refusal, next.all_here) = (false, false, false);
            }
            Action::KillSource => {
                next.faults -= 1;
                next.source = None;
                next.source_todo.clear();
                next.runs_source = false;
                next.session = false;
            }
            Action::KillTarget => {
                next.faults -= 1;
                next.target = None;
                next.target_todo = None;
                next.runs_target = false;
                next.session = false;
            }
        }
        (next != *world).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("never two running copies", |_, world: &World| !(world.runs_source && world.runs_target)),
            Property::always("a copy runs only where the record says", |_, world: &World| {
                (!world.runs_source || !world.record.target) && (!world.runs_target || world.record.target)
            }),
            Property::always("whoever runs has won the epoch it believes in", |_, world: &World| {
                let Record { target, epoch } = world.record;
                // The source may have won without having heard of it.
                let at_source = target || (world.source_epoch..=world.source_epoch + 1).contains(&epoch);
                let at_target = !world.runs_target || epoch == world.target_epoch + 1;
                at_source && at_target && world.target_epoch <= world.source_epoch && !world.confused
            }),
            Property::always(
                "a settled world has its guest running at the owner, if its process lives",
                |_, world: &World| {
                    let source_settled = world.source_todo.is_empty();
                    let target_settled = world.target_todo.is_none();
                    let nothing_in_flight =
                        world.to_target.is_empty() && world.heard.is_none() && !world.commit && !world.refusal;
                    if !(source_settled && target_settled && nothing_in_flight) {
                        return true;
                    }
                    if world.record.target {
                        // Stranded: the pages that were missing died with the source or the path. Only then, and never silently.
                        return match &world.target {
                            None => true,
                            Some(Target::Stranded { .. } | Target::Pulling) if !world.session => true,
                            Some(_) => world.runs_target,
                        };
                    }
                    match &world.source {
                        // An offered source without an answer still has its deadline ("overdue"), so it is not settled.
                        None | Some(Source::Offered { .. }) => true,
                        Some(_) => world.runs_source,
                    }
                },
            ),
            Property::always("whoever ends released or discarded does not run", |_, world: &World| {
                let released = matches!(world.source, Some(Source::Released));
                let discarded = matches!(world.target, Some(Target::Discarded { .. }));
                !(released && world.runs_source || discarded && world.runs_target)
            }),
            Property::sometimes("a move succeeds", |_, world: &World| {
                world.runs_target && matches!(world.source, Some(Source::Released))
            }),
            Property::sometimes("a move succeeds after a renewal", |_, world: &World| {
                world.runs_target && matches!(world.source, Some(Source::Released)) && world.record.epoch > 1
            }),
            Property::always("a machine is stranded only when something was lost", |_, world: &World| {
                let at_source = matches!(world.source, Some(Source::Stranded { .. }));
                let at_target = matches!(world.target, Some(Target::Stranded { .. }));
                !(at_source || at_target) || world.faults < 2
            }),
            Property::sometimes("a machine is reclaimed after its offer", |_, world: &World| {
                world.runs_source && matches!(world.source, Some(Source::Reclaimed { .. }))
            }),
        ]
    }
}

fn check(strategy: Strategy) {
    let checker = Moves { strategy }.checker().threads(2).spawn_bfs().join();
    checker.assert_properties();
    // A model that explores nothing proves nothing.
    assert!(checker.unique_state_count() > 400, "{strategy}: {} states", checker.unique_state_count());
}

#[test]
fn one_copy_runs_whatever_is_lost_or_killed() {
    check(Strategy::Precopy);
}

#[test]
fn one_copy_runs_when_memory_follows_from_the_start() {
    check(Strategy::Postcopy);
}

#[test]
fn one_copy_runs_when_memory_follows_after_a_round() {
    check(Strategy::Hybrid);
}
