//! Eight hosts and a million random operations over streams that are delayed, lost and replayed: what the model checker's bounds leave out.
//! All that must always be so is checked at each step of each page.

use super::{
    Access, HostId, Moment,
    mutations::Mutation,
    replay::{Inbox, Numbered, Outbox},
    world::{Flying, Packet, World, host},
};
use std::collections::{BTreeMap, VecDeque};

const HOSTS: usize = 8;
/// Of them: they begin with no shard, and know nothing.
const NEWCOMERS: usize = 3;
const SHARDS: usize = 4;
/// Pages used of each shard: few, so that hosts meet.
const WIDTH: usize = 8;
/// Messages of a stream that may wait for their acknowledgement.
const UNACKNOWLEDGED_MAX: usize = 4096;

/// xorshift: a simulation's randomness needs to be repeatable, not good.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).unwrap()
    }

    fn chance(&mut self, one_in: usize) -> bool {
        self.below(one_in) == 0
    }
}

/// A stream between two hosts, both ends of it and what is on its way.
struct Stream {
    outbox: Outbox<Flying>,
    wire: VecDeque<Numbered<Flying>>,
    inbox: Inbox,
}

impl Default for Stream {
    fn default() -> Self {
        Self { outbox: Outbox::new(UNACKNOWLEDGED_MAX), wire: VecDeque::new(), inbox: Inbox::default() }
    }
}

/// What was done, for the report.
#[derive(Debug, Default)]
struct Counts {
    reads: u64,
    writes: u64,
    evictions: u64,
    relocations: u64,
    taken_back: u64,
    reconnects: u64,
    delivered: u64,
    repeated: u64,
}

struct Simulation {
    world: World,
    random: Random,
    streams: BTreeMap<(HostId, HostId, usize), Stream>,
    /// Streams with something on their way, each once.
    busy: Vec<(HostId, HostId, usize)>,
    /// Pages whose driver has something to do, maybe more than once.
    drivers: Vec<(usize, usize)>,
    counts: Counts,
}

impl Simulation {
    fn new(seed: u64, mutation: Option<Mutation>) -> Self {
        Self {
            world: World::new(HOSTS, NEWCOMERS, SHARDS, WIDTH, mutation),
            random: Random(seed | 1),
            streams: BTreeMap::new(),
            busy: Vec::new(),
            drivers: Vec::new(),
            counts: Counts::default(),
        }
    }

    /// Begins something at random; was there anything to begin?
    fn operate(&mut self) -> bool {
        let (at, page) = (self.random.below(HOSTS), self.random.below(SHARDS * WIDTH));
        self.world.hold = [0, 0, 20, 200][self.random.below(4)];
        let (begun, count) = match self.random.below(10_000) {
            0..10 => (self.reconnect(), &mut self.counts.reconnects),
            10..20 => (self.relocate(), &mut self.counts.relocations),
            20..40 => (self.world.take_back(self.random.below(SHARDS)), &mut self.counts.taken_back),
            40..1_000 => (self.world.evict(at, page), &mut self.counts.evictions),
            1_000..5_500 => (self.world.touch(at, page, Access::Read), &mut self.counts.reads),
            _ => (self.world.touch(at, page, Access::Write), &mut self.counts.writes),
        };
        *count += u64::from(begun);
        self.drivers.push((at, page));
        self.ship();
        begun
    }

    /// One relocation of a shard at a time, until all that ask have heard the store's word.
    fn relocate(&mut self) -> bool {
        let (shard, to) = (self.random.below(SHARDS), self.random.below(HOSTS));
        let mut flying = self.streams.values().flat_map(|stream| &stream.wire);
        let moves = flying.any(|numbered| match &numbered.message.packet {
            Packet::Handover(handover) => handover.shard.0 == shard as u64,
            Packet::Word(word, _) => word.0 == shard as u64,
            Packet::Page(..) => false,
        });
        !moves && self.world.relocate(shard, to)
    }

    /// The connection of two hosts is lost and made again.
    fn reconnect(&mut self) -> bool {
        let (a, b) = (host(self.random.below(HOSTS)), host(self.random.below(HOSTS)));
        for (lane, stream) in &mut self.streams {
            if (lane.0, lane.1) == (a, b) || (lane.0, lane.1) == (b, a) {
                stream.wire = stream.outbox.replay().collect();
                if !stream.wire.is_empty() && !self.busy.contains(lane) {
                    self.busy.push(*lane);
                }
            }
        }
        true
    }

    /// Puts what was sent on its streams.
    fn ship(&mut self) {
        for flying in std::mem::take(&mut self.world.sent) {
            let lane = flying.lane();
            let stream = self.streams.entry(lane).or_default();
            if stream.wire.is_empty() {
                self.busy.push(lane);
            }
            match stream.outbox.push(flying) {
                Ok(numbered) => stream.wire.push_back(numbered),
                Err(full) => self.world.fail(|| full.to_string()),
            }
        }
    }

    /// One message arrives, or one system call returns.
    fn advance(&mut self) {
        self.world.now = Moment(self.world.now.0 + 1);
        if !self.drivers.is_empty() && (self.busy.is_empty() || self.random.chance(2)) {
            let chosen = self.random.below(self.drivers.len());
            let (at, page) = self.drivers.swap_remove(chosen);
            self.drive(at, page);
        } else if !self.busy.is_empty() {
            let chosen = self.random.below(self.busy.len());
            self.deliver(chosen);
        }
        self.ship();
    }

    fn drive(&mut self, at: usize, page: usize) {
        if self.world.is_busy(at, page) {
            self.world.perform(at, page);
            self.drivers.push((at, page));
        } else if self.world.hosts[at].spots[page].timer {
            self.world.hold_over(at, page, self.world.now);
            self.drivers.push((at, page));
        }
    }

    fn deliver(&mut self, chosen: usize) {
        let lane = self.busy[chosen];
        let Some(stream) = self.streams.get_mut(&lane) else { return };
        let Some(first) = stream.wire.front() else {
            self.busy.swap_remove(chosen);
            return;
        };
        if let Packet::Page(page, _) = first.message.packet {
            self.drivers.push((lane.1.index(), self.world.index(page)));
        }
        if !self.world.takes(&first.message) {
            return;
        }
        let Some(numbered) = stream.wire.pop_front() else { return };
        if stream.wire.is_empty() {
            self.busy.swap_remove(chosen);
        }
        self.counts.delivered += 1;
        match stream.inbox.accept(numbered) {
            Ok(Some(flying)) => self.world.deliver(flying),
            Ok(None) => self.counts.repeated += 1,
            Err(gap) => self.world.fail(|| gap.to_string()),
        }
        // An acknowledgement is late by some messages.
        if self.random.chance(8)
            && let Err(gap) = stream.outbox.acknowledged(stream.inbox.next())
        {
            self.world.fail(|| gap.to_string());
        }
    }

    /// Lets everything that was begun come to its end.
    fn finish(&mut self) -> Result<(), String> {
        for _ in 0..1_000_000 {
            if self.world.wrong.is_some() || (self.busy.is_empty() && self.drivers.is_empty()) {
                break;
            }
            self.advance();
        }
        match self.world.wrong.take() {
            Some(wrong) => Err(wrong),
            None if !self.world.is_satisfied() => Err("a request is never granted".to_owned()),
            None => Ok(()),
        }
    }
}

/// Begins `operations` things at random; what goes wrong first, if anything does.
pub(super) fn run(seed: u64, operations: u64, mutation: Option<Mutation>) -> Result<String, String> {
    let mut simulation = Simulation::new(seed, mutation);
    let mut begun = 0;
    while begun < operations && simulation.world.wrong.is_none() {
        begun += u64::from(simulation.operate());
        // Sometimes much is under way, sometimes little.
        let calm = [2, 4, 8, 16][usize::try_from(begun / 1_000 % 4).unwrap()];
        for _ in 0..simulation.random.below(calm) {
            simulation.advance();
        }
    }
    simulation.finish().map_err(|wrong| format!("{wrong}, after {begun} operations"))?;
    Ok(format!("{:?}", simulation.counts))
}

fn setting(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn a_million_operations_on_eight_hosts() {
    let (seed, operations) = (setting("VMOTION_DIRECTORY_SEED", 1), setting("VMOTION_DIRECTORY_OPERATIONS", 1_000_000));
    let begun = std::time::Instant::now();
    println!("VMOTION_DIRECTORY_SEED={seed} VMOTION_DIRECTORY_OPERATIONS={operations}");
    let counts = run(seed, operations, None).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
    println!("{counts}, {:.1} s", begun.elapsed().as_secs_f64());
}
