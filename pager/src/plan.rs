//! What arming will do, worked out before a system call is made: it happens while no vCPU runs, so calls are few.

use crate::space::Space;
use std::ops::Range;
use vmotion_dirty_tracking::PageBitmap;

#[cfg(test)]
mod tests;

/// Most ranges that are registered: each splits a mapping in up to three, and a process may have 65,530 (`vm.max_map_count`).
const REGISTRATIONS_MAX: usize = 16_384;
/// Up to so many runs of missing pages in a block, only their translations are dropped (about 1 µs a run), and the pages beside
/// them stay mapped. With more, those of the whole block are (about 140 µs), and the pages beside them fault once more.
const DROPS_PER_BLOCK_MAX: usize = 128;
/// Pieces that each shard's part of the memory is cut into, so that a guest busy in one place keeps more than one shard busy.
const STRIPES_PER_SHARD: u64 = 16;

/// Which shard serves which block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shards {
    count: u64,
    stripe_blocks: u64,
}

impl Shards {
    /// Most shards.
    pub(crate) const MAX: usize = 64;

    /// Spreads `blocks` blocks over `count` shards (1 to [`Self::MAX`]).
    pub(crate) fn new(count: usize, blocks: u64) -> Self {
        let count = count.clamp(1, Self::MAX) as u64;
        Self { count, stripe_blocks: blocks.div_ceil(count * STRIPES_PER_SHARD).max(1) }
    }

    /// How many there are.
    pub(crate) const fn count(&self) -> u64 {
        self.count
    }

    /// The shard of a block.
    pub(crate) const fn of(&self, block: u64) -> usize {
        #[expect(clippy::cast_possible_truncation, reason = "at most MAX")]
        let shard = (block / self.stripe_blocks % self.count) as usize;
        shard
    }

    const fn stripe_of(&self, block: u64) -> Range<u64> {
        let start = block / self.stripe_blocks * self.stripe_blocks;
        start..start + self.stripe_blocks
    }
}

/// Pages that one userfaultfd watches, in one region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Registration {
    /// Which one.
    pub(crate) shard: usize,
    /// Its pages: whole blocks.
    pub(crate) pages: Range<u64>,
}

/// What arming will do.
#[derive(Debug)]
pub(crate) struct Plan {
    /// What is registered, ascending.
    pub(crate) registrations: Vec<Registration>,
    /// Whose translations are dropped, ascending, each within one region.
    pub(crate) drops: Vec<Range<u64>>,
}

/// Plans for `missing`. `whole_blocks`: the memory is made of 2 MiB pages.
pub(crate) fn plan(space: &Space, missing: &PageBitmap, shards: Shards, whole_blocks: bool) -> Plan {
    let mut blocks: Vec<(u64, Vec<Range<u64>>)> = Vec::new();
    for (block, part) in missing.runs().flat_map(|run| space.parts(run)) {
        match blocks.last_mut() {
            Some((last, parts)) if *last == block => parts.push(part),
            _ => blocks.push((block, vec![part])),
        }
    }
    let mut drops: Vec<Range<u64>> = Vec::new();
    for (block, parts) in &blocks {
        if whole_blocks || parts.len() > DROPS_PER_BLOCK_MAX {
            append(&mut drops, space, space.block_pages(*block));
        } else {
            parts.iter().for_each(|part| append(&mut drops, space, part.clone()));
        }
    }
    let blocks: Vec<u64> = blocks.into_iter().map(|(block, _)| block).collect();
    Plan { registrations: register(space, &blocks, shards, REGISTRATIONS_MAX), drops }
}

/// Appends `run`, joined to the last one when it follows that in the same region.
fn append(runs: &mut Vec<Range<u64>>, space: &Space, run: Range<u64>) {
    match runs.last_mut() {
        Some(last) if last.end == run.start && space.within_region(last).0 == space.within_region(&run).0 => {
            last.end = run.end;
        }
        _ => runs.push(run),
    }
}

/// Joins `blocks` to at most about `max` registrations: when they are scattered too widely, blocks between them are registered too.
fn register(space: &Space, blocks: &[u64], shards: Shards, max: usize) -> Vec<Registration> {
    let mut group = 1;
    loop {
        let registrations = register_groups(space, blocks, shards, group);
        if registrations.len() <= max || group >= space.blocks() {
            return registrations;
        }
        group *= 2;
    }
}

/// Registers, for each of `blocks`, the `group` blocks it belongs to: those of its region, and of its shard.
fn register_groups(space: &Space, blocks: &[u64], shards: Shards, group: u64) -> Vec<Registration> {
    let mut registrations: Vec<Registration> = Vec::new();
    for block in blocks {
        let (region, stripe) = (space.blocks_beside(*block), shards.stripe_of(*block));
        let start = region.start + (block - region.start) / group * group;
        let first = start.max(stripe.start);
        let last = (start + group).min(region.end).min(stripe.end) - 1;
        let pages = space.block_pages(first).start..space.block_pages(last).end;
        let shard = shards.of(*block);
        match registrations.last_mut() {
            Some(previous) if previous.pages.end > pages.start => {
                previous.pages.end = previous.pages.end.max(pages.end)
            }
            Some(previous) if previous.pages.end == pages.start && previous.shard == shard && region.start < first => {
                previous.pages.end = pages.end;
            }
            _ => registrations.push(Registration { shard, pages }),
        }
    }
    registrations
}
