//! The machine's time on one host, as the sum of what was heard.

use super::{
    PeerClock, Untimely,
    message::{Message, Times},
    peer::{Exchange, Peer, difference},
};
use crate::directory::HostId;
use std::collections::BTreeMap;

/// The most by which frequencies of TSCs may differ, in millionths. KVM takes 250 for the same, and scales the guest's TSC beyond.
const FREQUENCIES_PPM_MAX: u32 = 100;
/// Of so many exchanges a host's first anchor is the best.
const FIRST_EXCHANGES: u32 = 4;
/// How far a host may be set forward, in milliseconds, and beside that in thousandths of the time since it has an anchor: twenty times what
/// drift explains.
const ADVANCE_MS_MAX: u64 = 1000;
/// vCPUs are set forward by so much or more, and so often at most unless it is [`MUCH_US`].
const LITTLE_US: u64 = 1;
const MUCH_US: u64 = 20;
const TELL_MS: u64 = 50;

/// What makes the machine's time of a host's TSC, in ticks.
#[derive(Debug, Clone, Copy)]
struct Anchor {
    /// At first.
    first: u64,
    /// How far the time was set forward.
    advanced: u64,
    /// What the TSC showed at first.
    since: u64,
}

impl Anchor {
    const fn time(&self, now: u64) -> u64 {
        now.wrapping_add(self.first).wrapping_add(self.advanced)
    }
}

/// The machine's time on one host. `now` is what its TSC shows.
#[derive(Debug)]
pub(super) struct Clock {
    khz: u32,
    anchor: Option<Anchor>,
    /// The best exchange while there is no anchor, and how many there were.
    first: Option<Exchange>,
    firsts: u32,
    /// How much of `advanced` vCPUs have been told, and when.
    told: u64,
    told_at: u64,
    peers: BTreeMap<HostId, Peer>,
}

impl Clock {
    /// On a host whose TSC runs at `khz`. The hub's time is the machine's from the beginning.
    pub(super) fn new(khz: u32, is_hub: bool, now: u64) -> Self {
        let anchor = is_hub.then_some(Anchor { first: 0, advanced: 0, since: now });
        Self { khz, anchor, first: None, firsts: 0, told: 0, told_at: now, peers: BTreeMap::new() }
    }

    /// The machine's time.
    pub(super) fn time(&self, now: u64) -> Option<u64> {
        self.anchor.map(|anchor| anchor.time(now))
    }

    /// The anchor before it was set forward.
    pub(super) fn first_anchor(&self) -> Option<u64> {
        self.anchor.map(|anchor| anchor.first)
    }

    #[cfg(test)]
    pub(super) fn advanced(&self) -> Option<u64> {
        self.anchor.map(|anchor| anchor.advanced)
    }

    /// Is `host` one whose times are good here?
    pub(super) fn fits(&self, host: HostId) -> Result<(), Untimely> {
        let its_khz = self.peers.get(&host).and_then(|peer| peer.khz).ok_or(Untimely::Unheard { host })?;
        let tolerated = u64::from(self.khz) * u64::from(FREQUENCIES_PPM_MAX) / 1_000_000;
        if u64::from(its_khz.abs_diff(self.khz)) > tolerated {
            return Err(Untimely::Frequency { host, its_khz, khz: self.khz, ppm_max: FREQUENCIES_PPM_MAX });
        }
        Ok(())
    }

    /// The same, and this host knows the time.
    pub(super) fn shares_time_with(&self, host: HostId) -> Result<(), Untimely> {
        self.fits(host)?;
        self.anchor.map(drop).ok_or(Untimely::NotYet)
    }

    /// There is a new connection: what was asked on the last one is not answered any more.
    pub(super) fn connected(&mut self, host: HostId) {
        self.peers.entry(host).or_default().asked = None;
    }

    /// `host` is no host of the machine any more; who has its number next begins anew.
    pub(super) fn forget(&mut self, host: HostId) {
        self.peers.remove(&host);
    }

    /// Asks `host`. Until it has answered, it is not to be asked again.
    pub(super) fn ask(&mut self, host: HostId, now: u64) -> Message {
        let time = self.time(now);
        self.peers.entry(host).or_default().asked = Some(now);
        Message::Ping { asked: now, khz: self.khz, time }
    }

    /// A question of `host` has come.
    pub(super) fn asked(&mut self, host: HostId, its_khz: u32, time: Option<u64>, now: u64) -> Result<(), Untimely> {
        self.peers.entry(host).or_default().khz = Some(its_khz);
        self.fits(host)?;
        time.map_or(Ok(()), |time| self.hear(host, time, now))
    }

    /// The answer to what `host` asked at `asked` by its TSC. `received` by this host's.
    pub(super) fn answer(&self, host: HostId, asked: u64, received: u64, now: u64) -> Message {
        let anchor = self.anchor.filter(|_| self.fits(host).is_ok());
        let times = anchor.map(|anchor| Times {
            received: anchor.time(received),
            answered: anchor.time(now),
            advanced: anchor.advanced,
        });
        Message::Pong { asked, khz: self.khz, times }
    }

    /// `host` has answered.
    pub(super) fn answered(
        &mut self,
        host: HostId,
        asked: u64,
        its_khz: u32,
        times: Option<Times>,
        now: u64,
    ) -> Result<(), Untimely> {
        let peer = self.peers.entry(host).or_default();
        if peer.asked.take_if(|wanted| *wanted == asked).is_none() {
            // Nobody has asked that.
            return Ok(());
        }
        peer.khz = Some(its_khz);
        self.fits(host)?;
        let Some((times, exchange)) = times.and_then(|times| Some((times, Exchange::new(asked, times, now)?))) else {
            return Ok(());
        };
        self.peers.entry(host).or_default().remember(exchange);
        if self.anchor.is_none() {
            let best = self.first.filter(|best| best.uncertain <= exchange.uncertain).unwrap_or(exchange);
            (self.first, self.firsts) = (Some(best), self.firsts + 1);
            if self.firsts < FIRST_EXCHANGES {
                return Ok(());
            }
            self.anchor = Some(Anchor { first: best.ahead, advanced: 0, since: now });
        }
        self.hear(host, times.answered, now)
    }

    /// `host` knew this time before `now`: it is not earlier here.
    pub(super) fn hear(&mut self, host: HostId, time: u64, now: u64) -> Result<(), Untimely> {
        let Some(anchor) = &mut self.anchor else { return Ok(()) };
        let Ok(ahead) = u64::try_from(difference(time, anchor.time(now))) else { return Ok(()) };
        let lived = u64::try_from(difference(now, anchor.since)).unwrap_or(0);
        let most = u64::from(self.khz) * ADVANCE_MS_MAX + lived / 1000;
        let allowed = most.saturating_sub(anchor.advanced);
        if ahead > allowed {
            let (ahead_ns, allowed_ns) = (self.ns(ahead), self.ns(allowed));
            return Err(Untimely::Runaway { host, ahead_ns, allowed_ns });
        }
        anchor.advanced += ahead;
        Ok(())
    }

    /// By how many ticks to set vCPUs forward now, if `all` with whatever is known. They are taken for told.
    pub(super) fn tell(&mut self, all: bool, now: u64) -> u64 {
        let pending = self.anchor.map_or(0, |anchor| anchor.advanced - self.told);
        let us = u64::from(self.khz) / 1000;
        let is_time = now.wrapping_sub(self.told_at) >= u64::from(self.khz) * TELL_MS;
        if !all && (pending < LITTLE_US * us || pending < MUCH_US * us && !is_time) {
            return 0;
        }
        (self.told, self.told_at) = (self.told + pending, now);
        pending
    }

    /// Exchanges of times with `host`.
    pub(super) fn exchanges(&self, host: HostId) -> u64 {
        self.peers.get(&host).map_or(0, |peer| peer.exchanges)
    }

    /// How the others' times compare, as far as is known.
    pub(super) fn report(&self, now: u64) -> Vec<PeerClock> {
        let Some(anchor) = self.anchor else { return Vec::new() };
        let row = |(host, peer): (&HostId, &Peer)| {
            let (ahead, uncertain) = peer.ahead(now)?;
            let ahead = difference(ahead, anchor.first.wrapping_add(anchor.advanced));
            let size = i64::try_from(self.ns(ahead.unsigned_abs())).unwrap_or(i64::MAX);
            Some(PeerClock {
                host: *host,
                ahead_ns: if ahead < 0 { -size } else { size },
                // Both were rounded down.
                uncertain_ns: self.ns(uncertain).saturating_add(2),
                exchanges: peer.exchanges,
                advanced_ns: self.ns(anchor.advanced),
            })
        };
        self.peers.iter().filter_map(row).collect()
    }

    fn ns(&self, ticks: u64) -> u64 {
        u64::try_from(u128::from(ticks) * 1_000_000 / u128::from(self.khz.max(1))).unwrap_or(u64::MAX)
    }
}
