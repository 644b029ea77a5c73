//! One time for all hosts of a machine. Their TSCs begin anywhere and drift apart by up to 50 µs in a second.
//!
//! *The machine's time* on a host is its TSC and an *anchor*, which is the host's own; on the hub the anchor begins with 0. What a vCPU shows
//! is the machine's time and a constant that never changes, wherever the vCPU is.
//!
//! ```text
//!   me, by my TSC      t1 ── Ping: t1, my time ──▶                        ┌──▶ t4
//!   peer, by its time            t2 (it has heard my time) … t3 ── Pong: t2, t3 ──┘
//!
//!   its time is ahead of my TSC by    ((t2 - t1) + (t3 - t4)) / 2
//!   give or take                      ((t4 - t1) - (t3 - t2)) / 2        half of what was spent on the way
//! ```
//! A host without an anchor takes the middle of the best of its first exchanges. **From then on its time only ever goes forward**, by Lamport's
//! rule: who hears of a time that is later than its own has its own set forward by the difference.
//!
//! **It does not run away.** A time that is heard was true when it was sent, so the peer's is later still: who follows stays behind the
//! peer, however long or unevenly the message took. The host that is furthest ahead hears of nothing later than its own and is never set forward, so all
//! together go as fast as the fastest TSC, and noise adds nothing.
//!
//! **Nobody sees it go back.** A host that heard a time after `d` on the way is at most `d` behind its sender. What vCPUs do to each other
//! passes between hosts as such messages do, and has more done to it at both ends, so whoever learns of something that happened at a time, and then
//! looks, sees a later one; and so along every chain of such. What is left out of this is small against the shortest way: drift until the
//! next time is heard, 2.5 µs in 50 ms, and 1 µs, which is the least that vCPUs are set forward by. A vCPU that moves takes the time along.
//!
//! TSCs of different frequencies are not scaled: hosts with such have no times for each other, and no vCPU moves between them.
//!
//! [`Clock`] is pure: what a TSC shows is an argument.

mod message;
mod peer;
mod state;
mod timekeeper;
mod user;

#[cfg(test)]
mod tests;

use state::Clock;
pub(crate) use timekeeper::Departure;
pub use timekeeper::Timekeeper;
pub use user::ClockUser;

use crate::directory::HostId;
use thiserror::Error;

/// How the time of another host compares with this host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerClock {
    /// Which host.
    pub host: HostId,
    /// How far the machine's time there is ahead of the one here, in nanoseconds; negative when it is behind. By the best of the last exchanges: what
    /// the other host was set forward by since its last answer is not in it.
    pub ahead_ns: i64,
    /// How wrong that can be, in nanoseconds: half of the time on the way, and the drift since.
    pub uncertain_ns: u64,
    /// Exchanges of times with it so far.
    pub exchanges: u64,
    /// How far this host was set forward so far, whoever it was for, in nanoseconds.
    pub advanced_ns: u64,
}

/// Why a host's time is not good for this host.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Untimely {
    /// Nobody who knows it was heard.
    #[error("The machine's time is not known on this host yet")]
    NotYet,
    /// It was not heard.
    #[error("Times of {host} were not heard yet")]
    Unheard {
        /// Which.
        host: HostId,
    },
    /// Times run at different speeds.
    #[error(
        "TSC of {host} runs at {its_khz} kHz and this host's at {khz} kHz: on the hosts of one machine they may differ by {ppm_max} ppm at most"
    )]
    Frequency {
        /// Which.
        host: HostId,
        /// Its frequency, in kHz.
        its_khz: u32,
        /// This host's, in kHz.
        khz: u32,
        /// The most that is taken, in millionths.
        ppm_max: u32,
    },
    /// No drift explains it.
    #[error("Time of {host} is {ahead_ns} ns ahead, where no more than {allowed_ns} ns can be drift: not followed")]
    Runaway {
        /// Which.
        host: HostId,
        /// How far it is ahead, in nanoseconds.
        ahead_ns: u64,
        /// How far this host may still be set forward, in nanoseconds.
        allowed_ns: u64,
    },
}
