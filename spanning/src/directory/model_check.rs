//! Every interleaving of three hosts, with stated bounds: lanes that overtake each other, guests that touch pages while system calls
//! are under way, requests that cross evictions, a connection that is lost after something arrived and before that was known, a home that moves, a host that
//! is fenced.
//!
//! What is bounded is how often something is *begun*; the rest follows to the end. All that is begun takes finitely many steps, so the graph has
//! no circles and every path ends: that each request is granted in the end is checked where nothing is left to happen.

use super::{
    Access, HostId,
    mutations::Mutation,
    world::{Flying, Packet, World},
};
use stateright::{Checker, HasDiscoveries, Model, Property};

/// How often something is begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Bounds {
    pages: usize,
    /// Touches by guests, of any page on any host.
    touches: u8,
    evictions: u8,
    /// Moves of the shard's home.
    relocations: u8,
    /// Moves that the old home ends by winning the shard back.
    take_backs: u8,
    /// Messages that are sent again although they had arrived.
    replays: u8,
    fences: u8,
    /// Holders put their answers off.
    hold: bool,
    /// Hosts that know nothing, and ask the first one.
    newcomers: usize,
}

impl Bounds {
    const NONE: Self = Self {
        pages: 1,
        touches: 0,
        evictions: 0,
        relocations: 0,
        take_backs: 0,
        replays: 0,
        fences: 0,
        hold: false,
        newcomers: 0,
    };
    /// One page in depth.
    pub(super) const PAGE: Self = Self { touches: 4, evictions: 1, replays: 1, ..Self::NONE };
    /// One page whose home moves, or nearly.
    pub(super) const RELOCATION: Self = Self { touches: 3, evictions: 1, relocations: 1, take_backs: 1, ..Self::NONE };
    /// One page whose home moves, and moves on before all have heard.
    pub(super) const TWICE: Self = Self { touches: 2, evictions: 1, relocations: 2, take_backs: 1, ..Self::NONE };
    /// Two pages of a shard, whose home moves while a connection is lost.
    const PAGES: Self = Self { pages: 2, touches: 3, relocations: 1, replays: 1, ..Self::NONE };
    /// The same, while a page is given up.
    const PAGES_PUT: Self = Self { pages: 2, touches: 2, evictions: 1, relocations: 1, replays: 1, ..Self::NONE };
    /// A host dies.
    pub(super) const FENCE: Self = Self { touches: 4, evictions: 1, fences: 1, ..Self::NONE };
    /// Answers that are put off.
    const HOLD: Self = Self { touches: 4, evictions: 1, hold: true, ..Self::NONE };
    /// A host comes while the home that it asks first moves, or nearly, or goes to the newcomer itself.
    const NEWCOMER: Self = Self { newcomers: 1, ..Self::RELOCATION };
    const NEWCOMER_TWICE: Self = Self { newcomers: 1, ..Self::TWICE };
}

const HOSTS: usize = 3;

struct Checked {
    bounds: Bounds,
    mutation: Option<Mutation>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    world: World,
    /// In order within a lane; `true` if it arrived before. Sorted by lane, so that equal networks are equal.
    flight: Vec<(Flying, bool)>,
    left: Bounds,
}

#[derive(Debug, Clone, PartialEq)]
enum Action {
    Touch(usize, usize, Access),
    Evict(usize, usize),
    Relocate,
    TakeBack,
    Fence,
    Perform(usize, usize),
    PerformSlow(usize, usize),
    HoldOver(usize, usize),
    Deliver(usize),
    /// It arrives, the connection is lost before that is known, and it is sent again.
    DeliverAndReplay(usize),
}

impl State {
    /// The first of each lane, unless its host is at work on the page.
    fn deliverable(&self) -> impl Iterator<Item = usize> {
        (0..self.flight.len()).filter(|index| {
            let (flying, _) = &self.flight[*index];
            let first = *index == 0 || self.flight[index - 1].0.lane() != flying.lane();
            first && self.world.takes(flying)
        })
    }

    fn spots(&self) -> impl Iterator<Item = (usize, usize)> {
        let pages = self.world.pages();
        (0..HOSTS).flat_map(move |host| (0..pages).map(move |page| (host, page)))
    }

    /// What goes on by itself.
    fn progress(&self, actions: &mut Vec<Action>) {
        actions.extend(self.deliverable().map(Action::Deliver));
        for (host, page) in self.spots() {
            if self.world.is_busy(host, page) {
                actions.push(Action::Perform(host, page));
            } else if self.world.hosts[host].spots[page].timer {
                actions.push(Action::HoldOver(host, page));
            }
            if self.world.is_slow(host, page) {
                actions.push(Action::PerformSlow(host, page));
            }
        }
    }

    fn begin(&self, actions: &mut Vec<Action>) {
        // Pages are alike, so nothing is missed if the first that is touched is page 0.
        let all_untouched = self.world.is_untouched();
        for (host, page) in self.spots().filter(|(_, page)| *page == 0 || !all_untouched) {
            if self.left.touches > 0 {
                actions.extend([Action::Touch(host, page, Access::Read), Action::Touch(host, page, Access::Write)]);
            }
            if self.left.evictions > 0 {
                actions.push(Action::Evict(host, page));
            }
        }
        let mut more = |left: u8, action| {
            if left > 0 {
                actions.push(action);
            }
        };
        more(self.left.relocations, Action::Relocate);
        more(self.left.take_backs, Action::TakeBack);
        more(self.left.fences, Action::Fence);
        if self.left.replays > 0 {
            let pages = |index: &usize| matches!(self.flight[*index], (Flying { packet: Packet::Page(..), .. }, false));
            actions.extend(self.deliverable().filter(pages).map(Action::DeliverAndReplay));
        }
    }

    fn deliver(&mut self, index: usize, replay: bool) {
        let (flying, again) = self.flight[index].clone();
        if replay {
            self.flight[index].1 = true;
        } else {
            self.flight.remove(index);
        }
        // What has a transaction is handed over twice, and must be known by that. The rest is known by its number in the stream.
        let known = matches!(&flying.packet, Packet::Page(_, message) if again && message.txn().is_none());
        if !known || self.world.mutated(Mutation::NumbersIgnored) {
            self.world.deliver(flying);
        }
    }

    fn take(&mut self, action: &Action) -> bool {
        let (world, left) = (&mut self.world, &mut self.left);
        match *action {
            Action::Touch(host, page, access) => {
                left.touches -= 1;
                return world.touch(host, page, access);
            }
            Action::Evict(host, page) => {
                left.evictions -= 1;
                return world.evict(host, page);
            }
            Action::Relocate => {
                left.relocations -= 1;
                let (home, moves) =
                    (world.store[0].home.index(), |packet: &Packet| !matches!(packet, Packet::Page(..)));
                let moving = self.flight.iter().any(|(flying, _)| moves(&flying.packet));
                return !moving && world.relocate(0, (home + 1) % HOSTS);
            }
            Action::TakeBack => {
                left.take_backs -= 1;
                return world.take_back(0);
            }
            Action::Fence => {
                left.fences -= 1;
                world.fence(HOSTS - 1);
            }
            Action::Perform(host, page) => world.perform(host, page),
            Action::PerformSlow(host, page) => world.perform_slow(host, page),
            Action::HoldOver(host, page) => world.hold_over(host, page, super::Moment(1)),
            Action::Deliver(index) => self.deliver(index, false),
            Action::DeliverAndReplay(index) => {
                left.replays -= 1;
                self.deliver(index, true);
            }
        }
        true
    }
}

impl Model for Checked {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let mut world = World::new(HOSTS, self.bounds.newcomers, 1, self.bounds.pages, self.mutation);
        world.hold = u64::from(self.bounds.hold);
        vec![State { world, flight: Vec::new(), left: self.bounds }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.world.wrong.is_none() {
            state.progress(actions);
            state.begin(actions);
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        if !next.take(&action) {
            return None;
        }
        next.flight.extend(next.world.sent.drain(..).map(|flying| (flying, false)));
        next.flight.sort_by_key(|(flying, _)| -> (HostId, HostId, usize) { flying.lane() });
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("no rule is broken and no guest sees old bytes", |_, state: &State| {
                state.world.wrong.is_none()
            }),
            Property::always("each request is granted in the end", |_, state: &State| {
                let mut progress = Vec::new();
                state.progress(&mut progress);
                let ended = progress.is_empty() && state.world.wrong.is_none();
                !ended || (state.flight.is_empty() && state.world.is_satisfied())
            }),
        ]
    }
}

impl Bounds {
    /// What goes wrong, if anything does, on one of the shortest ways to it.
    pub(super) fn first_failure(self, mutation: Option<Mutation>) -> Option<String> {
        let checker = Checked { bounds: self, mutation }
            .checker()
            .threads(1)
            .finish_when(HasDiscoveries::AnyFailures)
            .spawn_bfs()
            .join();
        let (name, path) = checker.discoveries().into_iter().next()?;
        let steps = path.clone().into_actions().len();
        let wrong = path.last_state().world.wrong.clone().unwrap_or_else(|| format!("not so: {name}"));
        Some(format!("{wrong}, after {steps} steps"))
    }

    fn check(self) {
        let begun = std::time::Instant::now();
        let checker = Checked { bounds: self, mutation: None }.checker().threads(1).spawn_bfs().join();
        let (states, depth) = (checker.unique_state_count(), checker.max_depth());
        println!("{self:?}: {states} states, depth {depth}, to the end, {:.1} s", begun.elapsed().as_secs_f64());
        if let Some((name, path)) = checker.discoveries().into_iter().next() {
            let wrong = path.last_state().world.wrong.clone();
            panic!("not so: {name} ({wrong:?}) after {:?}", path.into_actions());
        }
        // A model that explores nothing proves nothing.
        assert!(states > 1_000, "{states} states");
    }
}

#[test]
fn one_page_on_three_hosts() {
    Bounds::PAGE.check();
}

#[test]
fn two_pages_whose_home_moves() {
    Bounds::PAGES.check();
}

#[test]
fn two_pages_of_which_one_is_given_up() {
    Bounds::PAGES_PUT.check();
}

#[test]
fn a_page_whose_home_moves_or_nearly() {
    Bounds::RELOCATION.check();
}

#[test]
fn a_page_whose_home_moves_twice() {
    Bounds::TWICE.check();
}

#[test]
fn a_host_dies() {
    Bounds::FENCE.check();
}

#[test]
fn a_host_comes_that_knows_nothing() {
    Bounds::NEWCOMER.check();
    Bounds::NEWCOMER_TWICE.check();
}

#[test]
fn answers_are_put_off() {
    Bounds::HOLD.check();
}
