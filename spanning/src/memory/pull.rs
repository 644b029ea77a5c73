//! Pages that follow their home: what another host has of them is fetched, as if it were written here.
//!
//! A home that moves takes entries along and leaves pages where they are. Whoever moves memory to free a host, or to have it near, wants the
//! bytes as well.

use super::control::Gone;
use super::error::Outcome;
use super::node::MemoryNode;
use super::{Command, NodeControl};
use crate::directory::{Access, Copies, Event, HostId, PAGES_PER_SHARD, Rights, ShardNumber};
use std::collections::{HashSet, VecDeque};
use std::sync::mpsc::SyncSender;
use std::thread;
use std::time::{Duration, Instant};
use thiserror::Error;
use vmotion_model::PageNumber;
use vmotion_transport::mesh::Outgoing;

/// Pages that are being fetched at a time.
const PULLING_MAX: usize = 64;
/// How often a page is looked at whose home is busy with it: whoever it is busy for needs it more.
const TURNS: u8 = 2;
/// How long until it is looked whether a shard's pages have come.
const LOOK_AGAIN: Duration = Duration::from_micros(300);

/// Pages that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pulled {
    /// Their number: of them this host has the only copy, or had it.
    pub pages: u64,
    /// Pages that were left where they were, for somebody was at them.
    pub busy: u64,
}

/// Why pages do not come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PullError {
    /// Only who has the home knows where pages are.
    #[error("Pages of {0} cannot be fetched: its home is not here")]
    Elsewhere(ShardNumber),
    /// From nobody else.
    #[error("Pages cannot be fetched from {0}, which is this host, or none of the machine")]
    From(HostId),
    /// It takes too long.
    #[error("Pages of {shard} are still not all here after {patience:?}: {came} came; it can be asked again")]
    Late {
        /// The first that is not done.
        shard: ShardNumber,
        /// Pages that came, of all shards.
        came: u64,
        /// How long was waited.
        patience: Duration,
    },
    /// The node has ended.
    #[error("Pages cannot be fetched")]
    Gone(#[from] Gone),
}

/// What is being fetched.
#[derive(Debug, Default)]
pub(super) struct Pulls {
    /// From whom, and how often it was looked at.
    queue: VecDeque<(PageNumber, HostId, u8)>,
    under_way: HashSet<PageNumber>,
    counts: Pulled,
}

impl Pulls {
    /// A page has come, or will not.
    pub(super) fn ended(&mut self, page: PageNumber, came: bool) {
        if self.under_way.remove(&page) && came {
            self.counts.pages += 1;
        }
    }
}

/// What is left to do, and what was done so far since the node began.
pub(super) type Progress = (usize, Pulled);

/// One of the questions of [`NodeControl::pull`].
#[derive(Debug)]
pub(super) enum Pull {
    Begin { shard: ShardNumber, from: HostId, reply: SyncSender<Result<Progress, PullError>> },
    Look(SyncSender<Progress>),
    Cease(SyncSender<()>),
}

impl NodeControl {
    /// Fetches every page of `shards`, whose homes are here, that is only with `from`: as if it were written here. Pages that `from` only reads
    /// stay with it as they are: their bytes are with their homes. One call at a time.
    ///
    /// # Errors
    /// [`PullError`]; pages that came are here.
    pub fn pull(
        &self,
        shards: impl IntoIterator<Item = ShardNumber>,
        from: HostId,
        patience: Duration,
    ) -> Result<Pulled, PullError> {
        let until = Instant::now() + patience;
        let mut sum = Pulled::default();
        for shard in shards {
            let (mut left, before) = self.ask(|reply| Command::Pull(Pull::Begin { shard, from, reply }))??;
            let mut now = before;
            while left > 0 {
                if Instant::now() > until {
                    self.ask(|reply| Command::Pull(Pull::Cease(reply)))?;
                    return Err(PullError::Late { shard, came: sum.pages + now.pages - before.pages, patience });
                }
                thread::sleep(LOOK_AGAIN);
                (left, now) = self.ask(|reply| Command::Pull(Pull::Look(reply)))?;
            }
            sum.pages += now.pages - before.pages;
            sum.busy += now.busy - before.busy;
        }
        Ok(sum)
    }
}

impl MemoryNode {
    pub(super) fn obey_pull(&mut self, pull: Pull) {
        // Who asked may have gone; so may the reply.
        match pull {
            Pull::Begin { shard, from, reply } => _ = reply.try_send(self.begin_pull(shard, from)),
            Pull::Look(reply) => _ = reply.try_send(self.progress()),
            Pull::Cease(reply) => {
                self.pulls.queue.clear();
                let _ = reply.try_send(());
            }
        }
    }

    fn begin_pull(&mut self, shard: ShardNumber, from: HostId) -> Result<Progress, PullError> {
        if from == self.host || !self.known.hosts.contains(from) {
            return Err(PullError::From(from));
        }
        if self.homes.serves(shard).is_none() {
            return Err(PullError::Elsewhere(shard));
        }
        let before = self.pulls.counts;
        let first = shard.0 * PAGES_PER_SHARD;
        for page in (first..first + PAGES_PER_SHARD).map(PageNumber) {
            if self.homes.home(page).is_some_and(|home| home.entry().copies == Copies::Owned(from)) {
                self.pulls.queue.push_back((page, from, 0));
            }
        }
        Ok((self.progress().0, before))
    }

    fn progress(&self) -> Progress {
        (self.pulls.queue.len() + self.pulls.under_way.len(), self.pulls.counts)
    }

    /// Fetches pages, a few at a time.
    pub(super) fn pull(&mut self, out: &mut dyn Outgoing) -> Outcome {
        while self.pulls.under_way.len() < PULLING_MAX {
            let Some((page, from, turns)) = self.pulls.queue.pop_front() else { break };
            let Some(home) = self.homes.home(page).filter(|home| home.entry().copies == Copies::Owned(from)) else {
                continue;
            };
            let holder = self.spots.get_mut(page).holder;
            let is_free = home.is_idle() && home.queued() == 0;
            if is_free && holder.is_settled() && holder.rights() == Rights::Invalid {
                self.pulls.under_way.insert(page);
                self.step(self.host, page, Event::Fault(Access::Write), out)?;
                self.listen(out)?;
            } else if turns + 1 < TURNS {
                self.pulls.queue.push_back((page, from, turns + 1));
            } else {
                self.pulls.counts.busy += 1;
            }
        }
        Ok(())
    }
}
