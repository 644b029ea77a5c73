//! Shards: the 2 MiB ranges in which homes are given to hosts, and the table that says to which.

use super::HostId;
use std::{collections::BTreeMap, fmt, ops::Range};
use vmotion_model::{Epoch, MemoryLayout, PageNumber};

/// Pages in a shard: 2 MiB.
pub const PAGES_PER_SHARD: u64 = 512;

/// A 2 MiB range of guest memory, whose pages have their homes on one host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardNumber(pub u64);

impl ShardNumber {
    /// The shard of `page`.
    #[must_use]
    pub const fn of(page: PageNumber) -> Self {
        Self(page.0 / PAGES_PER_SHARD)
    }
}

impl fmt::Display for ShardNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "shard {:#x}", self.0)
    }
}

/// The shards of a machine's memory, in ascending order.
pub fn shards(layout: &MemoryLayout) -> impl Iterator<Item = ShardNumber> {
    let mut next = 0;
    let of = move |range: Range<u64>| {
        let shards = (range.start / PAGES_PER_SHARD).max(next)..range.end.div_ceil(PAGES_PER_SHARD);
        next = shards.end.max(next);
        shards.map(ShardNumber)
    };
    let ranges: Vec<_> = layout.regions().iter().map(|region| region.start.0..region.end().0).collect();
    ranges.into_iter().flat_map(of)
}

/// Where a shard's home is, and since when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Route {
    /// The host.
    pub home: HostId,
    /// Grows with every relocation, in the store.
    pub epoch: Epoch,
}

impl Route {
    /// Nobody has said who has the shard: `host` is asked, who knows, or knows somebody who knows more. Whatever is said is newer than this.
    #[must_use]
    pub const fn ask(host: HostId) -> Self {
        Self { home: host, epoch: Epoch(0) }
    }
}

/// What one host knows of the replicated table `shard → (home, epoch)`. It may be late, it never goes back.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Table {
    routes: BTreeMap<ShardNumber, Route>,
}

impl Table {
    /// Where to send a request about `page`; `None`: it is not in the machine's memory.
    #[must_use]
    pub fn route(&self, page: PageNumber) -> Option<Route> {
        self.routes.get(&ShardNumber::of(page)).copied()
    }

    /// A shard whose pages are asked for at `host`.
    #[must_use]
    pub fn names(&self, host: HostId) -> Option<ShardNumber> {
        self.routes.iter().find(|(_, route)| route.home == host).map(|(shard, _)| *shard)
    }

    /// Shards whose homes are at `host`, as far as is known.
    #[must_use]
    pub fn homes_at(&self, host: HostId) -> usize {
        self.routes.values().filter(|route| route.home == host).count()
    }

    /// Takes what the store or a redirection says, if it is news. Two relocations may be heard of in the wrong order.
    pub fn learn(&mut self, shard: ShardNumber, route: Route) {
        let known = self.routes.entry(shard).or_insert(route);
        if route.epoch > known.epoch {
            *known = route;
        }
    }
}
