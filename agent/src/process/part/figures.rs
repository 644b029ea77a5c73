//! What a part did lately: the faults of the last seconds, and what the rest of it knows.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};
use vmotion_model::{HostName, PageFaults, PartFigures, PeerFigures, VcpuFigures};
use vmotion_spanning::{
    directory::HostId,
    memory::{Gone, NodeControl, NodeStats, Recent},
    part::SpanningPart,
};

/// A look at the faults every so often, and how many looks make up the last seconds.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const LOOKS: usize = 8;
/// Pages of a vCPU that are told.
const PAGES_MAX: usize = 16;

/// The faults of the last seconds, as a thread collects them.
pub(super) struct RecentFaults(Arc<Mutex<VecDeque<Recent>>>);

impl RecentFaults {
    /// Watches a part's memory until that is gone.
    pub(super) fn watch(memory: &NodeControl) -> io::Result<Self> {
        let looks = Arc::new(Mutex::new(VecDeque::with_capacity(LOOKS)));
        let (memory, seen) = (memory.clone(), Arc::clone(&looks));
        thread::Builder::new().name("faults".to_owned()).spawn(move || {
            while let Ok(recent) = memory.take_recent() {
                let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                if seen.len() == LOOKS {
                    seen.pop_front();
                }
                seen.push_back(recent);
                drop(seen);
                thread::sleep(LOOK_EVERY);
            }
        })?;
        Ok(Self(looks))
    }

    /// By thread, and since when.
    fn sum(&self) -> (BTreeMap<u32, VcpuFigures>, Option<Instant>) {
        let looks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut pages: BTreeMap<(u32, u64), u64> = BTreeMap::new();
        let mut threads: BTreeMap<u32, VcpuFigures> = BTreeMap::new();
        for (thread, visits) in looks.iter().flat_map(|look| &look.threads) {
            let figures = threads.entry(*thread).or_default();
            figures.faults += visits.faults;
            figures.waited_ms += visits.waited.as_secs_f64() * 1000.0;
            for (page, count) in visits.pages.hottest_first() {
                *pages.entry((*thread, page.0)).or_default() += count;
            }
        }
        for ((thread, page), faults) in pages {
            threads.entry(thread).or_default().pages.push(PageFaults { page, faults });
        }
        for figures in threads.values_mut() {
            figures.pages.sort_by_key(|hot| (std::cmp::Reverse(hot.faults), hot.page));
            figures.pages.truncate(PAGES_MAX);
        }
        (threads, looks.front().map(|look| look.since))
    }
}

/// What is to be told of a part.
pub(super) fn of(
    part: &SpanningPart,
    recent: &RecentFaults,
    members: &BTreeMap<HostName, HostId>,
) -> Result<PartFigures, Gone> {
    let NodeStats { faults, counts, peers, pages_known, .. } = part.memory().statistics()?;
    let (mut threads, since) = recent.sum();
    let vcpu = |(thread, vcpu): (u32, u8)| Some(VcpuFigures { vcpu, ..threads.remove(&thread)? });
    let vcpus: Vec<VcpuFigures> = part.machine().vcpu_threads().into_iter().filter_map(vcpu).collect();
    let clocks = part.clocks();
    let peers = peers.into_iter().filter_map(|peer| {
        let (host, _) = members.iter().find(|(_, id)| **id == peer.host)?;
        let clock = clocks.iter().find(|clock| clock.host == peer.host);
        Some(PeerFigures {
            host: host.clone(),
            connected: peer.connected,
            sent_bytes: peer.traffic.bytes_sent,
            received_bytes: peer.traffic.bytes_received,
            clock_bound_us: clock.map(|clock| clock.uncertain_ns as f64 / 1000.0),
        })
    });
    // Of reads and writes, the one that more wait for says how long.
    let away = if faults.reads_away.count >= faults.writes_away.count { faults.reads_away } else { faults.writes_away };
    let us = |time: Duration| time.as_secs_f64() * 1e6;
    Ok(PartFigures {
        window_ms: since.map_or(0.0, |since| since.elapsed().as_secs_f64() * 1000.0),
        vcpus,
        wait_p50_us: us(away.p50),
        wait_p99_us: us(away.p99),
        pages_known: pages_known as u64,
        bounced: counts.bounced,
        lost: counts.lost,
        audited: counts.audited,
        peers: peers.collect(),
    })
}
