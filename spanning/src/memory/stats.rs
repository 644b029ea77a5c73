//! What a node has done: faults and how long they took, pages and how they came, peers and what went to and from them.

use super::hot::HotPages;
use super::link::Traffic;
use super::recent::Recent;
use super::spot::Waiter;
use crate::directory::{Access, HostId};
use std::time::{Duration, Instant};
use vmotion_model::PageNumber;
use vmotion_pager::{Recorder, Stalls};

/// Faults of one kind by where the page's home is, from when their event was read to when the page was mapped and the thread woken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    /// Reads of pages whose home is this host.
    pub reads_here: Stalls,
    /// Reads of pages whose home is another one.
    pub reads_away: Stalls,
    /// Writes of pages whose home is this host.
    pub writes_here: Stalls,
    /// Writes of pages whose home is another one.
    pub writes_away: Stalls,
}

/// What was done to pages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Threads that were reported to wait.
    pub touches: u64,
    /// Those of them whose page was here by then.
    pub touches_late: u64,
    /// Pages mapped, or made writable.
    pub installed: u64,
    /// Those whose bytes came from the home.
    pub filled: u64,
    /// Those that the home called zero: no bytes travelled.
    pub zeroed: u64,
    /// Pages taken away.
    pub revoked: u64,
    /// Those that had come a moment before.
    pub bounced: u64,
    /// Pages read for the home.
    pub read: u64,
    /// Those that were zero: no bytes travelled.
    pub read_zero: u64,
    /// Orders put off for the hold window.
    pub held: u64,
    /// Pages given up by this host itself.
    pub evicted: u64,
    /// Pages lost with a host.
    pub lost: u64,
    /// Messages of peers that broke the protocol.
    pub misfits: u64,
    /// Times that a node was woken, or a message arrived.
    pub passes: u64,
    /// Hashes of copies that were compared by the auditor, if there is one.
    pub audited: u64,
    /// Those that were not as they should be.
    pub mismatched: u64,
}

/// Where the time of a node's thread goes; all zero unless [`super::NodeConfig::measures`] is set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Costs {
    /// Reading events.
    pub reading_faults: Cost,
    /// `Fill` and `Map` in one, where the page had no memory.
    pub placing: Cost,
    /// `Fill`: bytes into the memfd.
    pub filling: Cost,
    /// `Map` and `Unprotect`.
    pub installing: Cost,
    /// `Revoke`.
    pub revoking: Cost,
    /// `Read`: bytes out of the memfd.
    pub copying: Cost,
    /// Whole passes, all of the above included.
    pub passes: Cost,
}

/// How often something was done, and how long that took in all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    /// How often.
    pub times: u64,
    /// How long, in all.
    pub total: Duration,
}

impl Cost {
    /// How long on average.
    #[must_use]
    pub fn mean(&self) -> Duration {
        u32::try_from(self.times).ok().and_then(|times| self.total.checked_div(times)).unwrap_or_default()
    }

    pub(super) fn since(&mut self, start: Option<Instant>) {
        if let Some(start) = start {
            self.times += 1;
            self.total += start.elapsed();
        }
    }
}

/// A peer, and what went between it and this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerStats {
    /// Who.
    pub host: HostId,
    /// Is there a connection with it?
    pub connected: bool,
    /// What was sent and is not acknowledged, in messages.
    pub unacknowledged: usize,
    /// What went between the two.
    pub traffic: Traffic,
}

/// Everything a node tells about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeStats {
    /// How long threads waited.
    pub faults: Faults,
    /// What was done to pages.
    pub counts: Counts,
    /// Where the time went.
    pub costs: Costs,
    /// By peer.
    pub peers: Vec<PeerStats>,
    /// The pages that bounced most, most often first; see [`HotPages`].
    pub hot: Vec<(PageNumber, u64)>,
    /// Pages this host knows something about.
    pub pages_known: usize,
}

/// Counts as things happen.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// By access, then by whether the home is away.
    faults: [[Recorder; 2]; 2],
    pub(super) counts: Counts,
    pub(super) costs: Costs,
    pub(super) hot: HotPages,
    pub(super) recent: Recent,
}

impl Counters {
    /// A thread has waited for a page, whose home is here or away.
    pub(super) fn fault(&mut self, Waiter { thread, access, since }: Waiter, away: bool) {
        let waited = since.elapsed();
        self.faults[usize::from(access == Access::Write)][usize::from(away)].add(waited);
        self.recent.waited(thread, waited);
    }

    pub(super) fn faults(&self) -> Faults {
        let [[reads_here, reads_away], [writes_here, writes_away]] =
            self.faults.each_ref().map(|by_home| by_home.each_ref().map(Recorder::stalls));
        Faults { reads_here, reads_away, writes_here, writes_away }
    }
}
