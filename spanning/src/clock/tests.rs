//! Hosts whose TSCs begin anywhere and drift, and messages that take as long as they like: what [`Clock`] makes of it. The tests know the true
//! time, in ns; a TSC tick is about one.

#![allow(clippy::unwrap_used, reason = "a panic in a test is its report")]

use super::{Clock, Untimely, message::Message, peer::difference};
use crate::directory::HostId;
use proptest::prelude::*;
use std::{cmp::Reverse, collections::BTreeMap};

const KHZ: u32 = 1_000_000;
const US: u64 = 1000;
const MS: u64 = 1000 * US;
const SECOND: u64 = 1000 * MS;
const EVERY: u64 = 50 * MS;

fn host(number: usize) -> HostId {
    HostId::new(u8::try_from(number).unwrap()).unwrap()
}

struct Sim {
    clock: Clock,
    start: u64,
    ppm: i64,
    /// The machine's time less the TSC, when last looked at.
    anchor: Option<u64>,
    /// The true time when it got its first anchor, and how far its time was ahead of the hub's TSC without drift.
    anchored: Option<(u64, i64)>,
}

impl Sim {
    fn tsc(&self, now: u64) -> u64 {
        let drift = i128::from(now) * i128::from(self.ppm) / 1_000_000;
        self.start.wrapping_add(now).wrapping_add_signed(i64::try_from(drift).unwrap())
    }

    fn time(&self, now: u64) -> Option<u64> {
        self.clock.time(self.tsc(now))
    }
}

#[derive(Debug, Clone, Copy)]
enum Event {
    Ask,
    /// With the sender's time and anchor when it was sent.
    Arrive(Message, Option<u64>, Option<u64>),
    /// A page or an interrupt: it says nothing about time, and takes no less than a message about time can.
    Effect(Option<u64>),
    SendEffect,
}

struct World {
    hosts: Vec<Sim>,
    /// The least that the way from one to another takes, and what comes on top of it at most.
    least: Vec<Vec<u64>>,
    jitter: u64,
    random: u64,
    queue: BTreeMap<Reverse<(u64, u64)>, (usize, usize, Event)>,
    number: u64,
    now: u64,
}

impl World {
    fn new(hosts: &[(u64, i64)], least: &[u64], jitter: u64, seed: u64) -> Self {
        let sim = |(number, (start, ppm)): (usize, &(u64, i64))| {
            let clock = Clock::new(KHZ, number == 0, *start);
            Sim { clock, start: *start, ppm: *ppm, anchor: None, anchored: None }
        };
        let count = hosts.len();
        let mut world = Self {
            hosts: hosts.iter().enumerate().map(sim).collect(),
            least: (0..count).map(|from| (0..count).map(|to| least[from * count + to]).collect()).collect(),
            jitter,
            random: seed,
            queue: BTreeMap::new(),
            number: 0,
            now: 0,
        };
        for from in 0..count {
            for to in (0..count).filter(|to| *to != from) {
                let at = world.below(EVERY);
                world.put(at, from, to, Event::Ask);
                world.put(SECOND, from, to, Event::SendEffect);
            }
        }
        world
    }

    fn below(&mut self, end: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let value = (self.random ^ self.random >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (value >> 20) % end.max(1)
    }

    fn put(&mut self, at: u64, from: usize, to: usize, event: Event) {
        self.number += 1;
        self.queue.insert(Reverse((at, self.number)), (from, to, event));
    }

    fn send(&mut self, from: usize, to: usize, message: Message) {
        let arrives = self.now + self.least[from][to] + self.below(self.jitter + 1);
        let time = self.hosts[from].time(self.now);
        let anchor = time.map(|time| time.wrapping_sub(self.hosts[from].tsc(self.now)));
        self.put(arrives, from, to, Event::Arrive(message, time, anchor));
    }

    /// Anchors are looked at after whatever happened: none has stepped back.
    fn look(&mut self) {
        let hub = self.hosts[0].start;
        for sim in &mut self.hosts {
            let Some(time) = sim.time(self.now) else { continue };
            let anchor = time.wrapping_sub(sim.tsc(self.now));
            assert!(sim.anchor.is_none_or(|before| difference(anchor, before) >= 0), "an anchor stepped back");
            sim.anchor = Some(anchor);
            let error = difference(time, hub.wrapping_add(self.now));
            sim.anchored.get_or_insert((self.now, error));
        }
    }

    fn step(&mut self) {
        let (Reverse((at, _)), (from, to, event)) = self.queue.pop_last().unwrap();
        self.now = at;
        match event {
            Event::Ask => {
                let tsc = self.hosts[from].tsc(at);
                let ping = self.hosts[from].clock.ask(host(to), tsc);
                self.send(from, to, ping);
            }
            Event::SendEffect => {
                let longest = self.least[from][to] + self.jitter;
                let arrives = at + longest + self.below(self.jitter + 1);
                let time = self.hosts[from].time(at);
                self.put(arrives, from, to, Event::Effect(time));
                let next = at + 1 + self.below(EVERY);
                self.put(next, from, to, Event::SendEffect);
            }
            Event::Effect(sent) => {
                // Heard of each other at least so often, and drifted since.
                let round = self.least[from][to] + self.least[to][from] + 2 * self.jitter;
                let drifted = i64::try_from((2 * EVERY + 2 * round) / 10_000).unwrap() + 2;
                let here = self.hosts[to].time(at).zip(sent).map(|(here, sent)| difference(here, sent));
                assert!(here.is_none_or(|later| later >= -drifted), "time went back by {here:?} ns");
            }
            Event::Arrive(message, sent, sender) => self.arrive(from, to, message, (sent, sender)),
        }
        self.look();
    }

    fn arrive(&mut self, from: usize, to: usize, message: Message, (sent, sender): (Option<u64>, Option<u64>)) {
        let now = self.now;
        let tsc = self.hosts[to].tsc(now);
        match message {
            Message::Ping { asked, khz, time } => {
                self.hosts[to].clock.asked(host(from), khz, time, tsc).unwrap();
                let pong = self.hosts[to].clock.answer(host(from), asked, tsc, tsc);
                self.send(to, from, pong);
            }
            Message::Pong { asked, khz, times } => {
                self.hosts[to].clock.answered(host(from), asked, khz, times, tsc).unwrap();
                let next = if self.hosts[to].clock.exchanges(host(from)) < 8 { 2 * MS } else { EVERY };
                self.put(now + next, to, from, Event::Ask);
                if let Some(sender) = sender {
                    self.check_report(from, to, sender);
                }
            }
        }
        if let (Some(sent), Some(here)) = (sent, self.hosts[to].time(now)) {
            assert!(difference(here, sent) >= 0, "time went back along a message");
        }
    }

    /// What `to` says of `from` is true, give or take what it says.
    fn check_report(&self, from: usize, to: usize, sender: u64) {
        let me = &self.hosts[to];
        let tsc = me.tsc(self.now);
        let Some(row) = me.clock.report(tsc).into_iter().find(|row| row.host == host(from)) else { return };
        let there = self.hosts[from].tsc(self.now).wrapping_add(sender);
        let truth = difference(there, me.time(self.now).unwrap());
        assert!(truth.abs_diff(row.ahead_ns) <= row.uncertain_ns, "{truth} ns ahead, and not as in {row:?}");
    }

    fn run(&mut self, until: u64) {
        while self.queue.last_key_value().is_some_and(|(Reverse((at, _)), _)| *at < until) {
            self.step();
        }
        self.now = until;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn time_is_one_and_never_goes_back_and_never_runs_away(
        hosts in prop::collection::vec((any::<u64>(), -50i64..=50), 2..5),
        least in prop::collection::vec(5 * US..5 * MS, 16),
        jitter in prop_oneof![Just(0), 0..20 * US, 0..10 * MS],
        seed in any::<u64>(),
    ) {
        let count = hosts.len();
        let mut world = World::new(&hosts, &least, jitter, seed);
        let seconds = 5;
        world.run(seconds * SECOND);
        // The time on the way there and back, at most.
        let round = 2 * (least.iter().max().unwrap() + jitter);
        for sim in &world.hosts {
            let (_, error) = sim.anchored.expect("no anchor in all that time");
            // Through each host that it may have learned of the hub's time from.
            prop_assert!(error.unsigned_abs() <= round / 2 * count as u64 + 50 * US * seconds + 2, "{error} ns wrong at first");
        }
        // No ratchet: nobody's time goes faster than the fastest TSC, from where it was first.
        let end = world.hosts[0].start.wrapping_add(world.now);
        let first = world.hosts.iter().map(|sim| sim.anchored.unwrap()).map(|(at, error)| error + i64::try_from((seconds * SECOND - at) / 20_000).unwrap());
        let most = first.max().unwrap() + 8;
        for sim in &world.hosts {
            let error = difference(sim.time(world.now).unwrap(), end);
            prop_assert!(error <= most, "{error} ns ahead, where {most} are explained");
            let advanced = sim.clock.advanced().unwrap();
            // What it was behind at first, and drift.
            let explained = 2 * round * count as u64 + 100 * US * seconds + 8;
            prop_assert!(advanced <= explained, "set forward by {advanced} ns, where {explained} are explained");
        }
    }
}

fn anchored() -> Clock {
    Clock::new(KHZ, true, 0)
}

fn heard(clock: &mut Clock, time: u64, now: u64) -> Result<(), Untimely> {
    clock.asked(host(1), KHZ, Some(time), now)
}

#[test]
fn a_time_that_no_drift_explains_is_not_followed() {
    let mut clock = anchored();
    assert!(
        matches!(heard(&mut clock, 3 * SECOND, SECOND), Err(Untimely::Runaway { ahead_ns, .. }) if ahead_ns == 2 * SECOND)
    );
    assert_eq!(clock.time(SECOND), Some(SECOND));
    // Nor in many steps.
    let refused = (0..100).filter(|_| {
        let time = clock.time(SECOND).unwrap();
        heard(&mut clock, time + 30 * MS, SECOND).is_err()
    });
    assert_eq!(refused.count(), 67);
    assert!(clock.advanced().unwrap() <= SECOND + SECOND / 1000);
}

#[test]
fn a_time_that_is_behind_changes_nothing() {
    let mut clock = anchored();
    heard(&mut clock, 5, SECOND).unwrap();
    heard(&mut clock, u64::MAX, SECOND).unwrap();
    assert_eq!(clock.time(SECOND), Some(SECOND));
}

#[test]
fn another_frequency_gives_no_time_and_is_named() {
    let (mut hub, mut other) = (anchored(), Clock::new(KHZ + 101, false, 0));
    for round in 0..20 {
        let Message::Ping { asked, khz, time } = other.ask(host(0), round) else { unreachable!() };
        assert!(matches!(hub.asked(host(1), khz, time, round), Err(Untimely::Frequency { .. })));
        let Message::Pong { asked, khz, times } = hub.answer(host(1), asked, round, round) else { unreachable!() };
        assert_eq!(times, None);
        assert!(other.answered(host(0), asked, khz, times, round + 1).is_err());
    }
    let error = other.shares_time_with(host(0)).unwrap_err().to_string();
    assert!(error.contains("1000000 kHz") && error.contains("1000101 kHz"), "{error}");
    assert_eq!(other.shares_time_with(host(2)), Err(Untimely::Unheard { host: host(2) }));
    assert_eq!(other.time(0), None);
}

#[test]
fn an_answer_to_what_was_not_asked_counts_nothing() {
    let (mut hub, mut other) = (anchored(), Clock::new(KHZ, false, 0));
    hub.asked(host(1), KHZ, None, 0).unwrap();
    let Message::Pong { khz, times, .. } = hub.answer(host(1), 0, 0, 0) else { unreachable!() };
    for _ in 0..20 {
        other.ask(host(0), 5);
        other.answered(host(0), 4, khz, times, 9).unwrap();
    }
    assert_eq!((other.time(9), other.exchanges(host(0))), (None, 0));
}

#[test]
fn vcpus_are_told_little_by_little_and_not_too_often() {
    let mut clock = anchored();
    let mut now = SECOND;
    let mut ahead = |clock: &mut Clock, ns: u64, later: u64| {
        now += later;
        heard(clock, clock.time(now).unwrap() + ns, now).unwrap();
        clock.tell(false, now)
    };
    assert_eq!(ahead(&mut clock, 900, 0), 0);
    assert_eq!(ahead(&mut clock, 200, 0), 1100);
    assert_eq!(ahead(&mut clock, 2000, MS), 0);
    assert_eq!(ahead(&mut clock, 2000, 50 * MS), 4000);
    assert_eq!(ahead(&mut clock, 30_000, MS), 30_000);
    assert_eq!(ahead(&mut clock, 10, MS), 0);
    assert_eq!((clock.tell(true, SECOND), clock.tell(true, SECOND)), (10, 0));
}
