//! What a long path carries, by what it has delivered. Pure: it is told times and bytes.

use std::time::{Duration, Instant};

/// A path with a shorter round trip is Cubic's, and nobody minds waiting for one.
pub(crate) const LONG: Duration = Duration::from_millis(10);
/// What a long path is taken to carry at least: startup begins with it instead of with what would fit any path, which takes two
/// rounds less at 100 ms. A slower path shows at once that it is.
const RATE_MIN: f64 = 100e6 / 8.0;
/// Rounds whose best delivery rate counts.
const ROUNDS_KEPT: usize = 10;
/// Rounds that are held after startup: a rate needs two, see [`Model::sample`].
const HOLD_ROUNDS: u32 = 2;
/// More than this part lost in a round is a full queue, not an imperfect path.
const LOSS_MAX: f64 = 0.02;
/// Fewer lost bytes in a round say nothing.
const LOSS_MIN: u64 = 16 << 10;
/// Startup ends when the round trip has grown by this part of the least, or by `QUEUE_MIN`, whichever is more.
const QUEUE_PART: u32 = 6;
/// More than acknowledgements are delayed and hosts take to wake up.
const QUEUE_MIN: Duration = Duration::from_millis(10);
/// Or when it no longer delivers this much more than a round before, so many times in a row.
const GROWTH: f64 = 1.25;
const FLAT_ROUNDS: u32 = 3;
/// What is on the way beyond the least, at most: this part of the least round trip, and some time that hosts and acknowledgements
/// take. It is the rate by which a path that carries more is found: a quarter each round.
const HEADROOM_PART: u32 = 4;
const HEADROOM_MIN: Duration = Duration::from_millis(10);
/// After a full queue, headroom comes back in so many rounds.
const HEADROOM_STEPS: f64 = 10.0;
/// The least round trip is looked for again after this time: our own queue hides it.
const RTT_FRESH: Duration = Duration::from_secs(10);
/// Rounds with too little on the way, the first to empty the queue, the second to look.
const DRAIN_ROUNDS: u32 = 2;
const DRAIN_PART: f64 = 0.75;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    /// Twice as much each round.
    Startup {
        window: u64,
        best: f64,
        flat: u32,
    },
    /// As much as at the end of the startup, to see what is delivered.
    Hold {
        window: u64,
        rounds: u32,
    },
    Steady,
    Drain {
        rounds: u32,
    },
}

/// From one packet's sending to its acknowledgement.
#[derive(Debug, Clone, Copy)]
struct Round {
    began: Instant,
    delivered: u64,
    lost: u64,
    /// There was nothing to send at some moment.
    idle: bool,
    least_rtt: Duration,
    over: bool,
}

impl Round {
    const fn new(now: Instant) -> Self {
        Self { began: now, delivered: 0, lost: 0, idle: false, least_rtt: Duration::MAX, over: false }
    }
}

/// A path, measured.
#[derive(Debug, Clone)]
pub(super) struct Model {
    phase: Phase,
    round: Round,
    least_rtt: Duration,
    /// When it was seen or looked for last.
    least_rtt_at: Instant,
    /// Of the acknowledgements at hand: was there nothing to send?
    now_idle: bool,
    /// Their round trip, and that smoothed.
    now_rtt: Duration,
    smooth_rtt: Option<Duration>,
    /// Bytes and seconds of the round before.
    before: Option<(u64, f64)>,
    /// Bytes per second of the last rounds, the newest at the end.
    rates: Vec<f64>,
    /// Part of the headroom in use.
    headroom: f64,
}

impl Model {
    pub(super) fn new(now: Instant, window: u64) -> Self {
        Self {
            phase: Phase::Startup { window, best: 0.0, flat: 0 },
            round: Round::new(now),
            least_rtt: Duration::MAX,
            least_rtt_at: now,
            now_idle: true,
            now_rtt: Duration::MAX,
            smooth_rtt: None,
            before: None,
            rates: Vec::new(),
            headroom: 1.0,
        }
    }

    /// A packet arrived. Was there nothing to send before?
    pub(super) fn acked(&mut self, now: Instant, sent: Instant, bytes: u64, idle: bool) {
        self.now_rtt = self.now_rtt.min(now.saturating_duration_since(sent));
        self.now_idle = idle;
        self.round.delivered += bytes;
        self.round.idle |= idle;
        self.round.over |= sent >= self.round.began;
        if let Phase::Startup { window, .. } = &mut self.phase
            && !idle
        {
            *window += bytes;
        }
    }

    pub(super) fn lost(&mut self, bytes: u64) {
        self.round.lost += bytes;
    }

    /// All that were acknowledged together have been told. Has startup ended?
    pub(super) fn acks_over(&mut self, now: Instant) -> bool {
        let rtt = std::mem::replace(&mut self.now_rtt, Duration::MAX);
        if rtt == Duration::MAX {
            return false;
        }
        if rtt <= self.least_rtt {
            (self.least_rtt, self.least_rtt_at) = (rtt, now);
        }
        self.round.least_rtt = self.round.least_rtt.min(rtt);
        if let Phase::Startup { window, .. } = &mut self.phase
            && self.smooth_rtt.is_none()
            && rtt >= LONG
        {
            *window = (*window).max(bytes_in(RATE_MIN, rtt));
        }
        let smooth = self.smooth_rtt.map_or(rtt, |smooth| (smooth * 7 + rtt) / 8);
        self.smooth_rtt = Some(smooth);
        let queue = smooth.saturating_sub(self.least_rtt);
        if let Phase::Startup { window, .. } = self.phase
            // A round trip that grows although little is on the way is this host's doing.
            && !self.now_idle
            && queue > (self.least_rtt / QUEUE_PART).max(QUEUE_MIN)
        {
            self.hold(now, window);
            return self.is_long();
        }
        if self.round.over { self.end_round(now) } else { false }
    }

    fn hold(&mut self, now: Instant, window: u64) {
        self.phase = Phase::Hold { window, rounds: 0 };
        self.round = Round::new(now);
        self.before = None;
    }

    /// Has startup ended?
    fn end_round(&mut self, now: Instant) -> bool {
        let round = std::mem::replace(&mut self.round, Round::new(now));
        let rate = self.sample(round.delivered, now.saturating_duration_since(round.began));
        let lost = round.lost as f64 / (round.lost + round.delivered).max(1) as f64;
        let full = round.lost > LOSS_MIN && lost > LOSS_MAX;
        if self.is_long() {
            tracing::debug!(
                phase = ?self.phase,
                mbit = rate * 8e-6,
                lost,
                idle = round.idle,
                rtt_ms = round.least_rtt.as_secs_f64() * 1e3,
                least_rtt_ms = self.least_rtt.as_secs_f64() * 1e3,
                window = self.window(0),
                "round"
            );
        }
        let draining = matches!(self.phase, Phase::Drain { .. });
        // A round with idle moments says what it carries at least.
        if !draining && (!round.idle || rate > self.rate()) {
            if self.rates.len() >= ROUNDS_KEPT {
                self.rates.remove(0);
            }
            self.rates.push(rate);
        }
        match self.phase {
            Phase::Startup { window, best, flat } => {
                let grows = round.idle || rate > best * GROWTH;
                let flat = if grows { 0 } else { flat + 1 };
                if full || flat >= FLAT_ROUNDS {
                    self.hold(now, window);
                    return self.is_long();
                }
                self.phase = Phase::Startup { window, best: best.max(rate), flat };
            }
            Phase::Hold { window, rounds } if rounds + 1 < HOLD_ROUNDS && !full => {
                self.phase = Phase::Hold { window, rounds: rounds + 1 };
            }
            Phase::Hold { .. } => self.phase = Phase::Steady,
            Phase::Steady => {
                if full {
                    // What was delivered before the queue was full may be no longer true.
                    self.rates = vec![rate];
                    self.headroom = 0.0;
                } else {
                    self.headroom = (self.headroom + 1.0 / HEADROOM_STEPS).min(1.0);
                }
                if !round.idle && now.saturating_duration_since(self.least_rtt_at) > RTT_FRESH {
                    self.phase = Phase::Drain { rounds: 0 };
                }
            }
            Phase::Drain { rounds } if rounds + 1 < DRAIN_ROUNDS => self.phase = Phase::Drain { rounds: rounds + 1 },
            Phase::Drain { .. } => {
                (self.least_rtt, self.least_rtt_at) = (round.least_rtt, now);
                self.phase = Phase::Steady;
            }
        }
        false
    }

    /// What a round and the one before it delivered. A host that is busy hears of packets late, and then of many at once: of two
    /// such rounds one looks too slow, the other too fast.
    fn sample(&mut self, delivered: u64, time: Duration) -> f64 {
        let seconds = time.as_secs_f64().max(1e-6);
        let (bytes_before, seconds_before) = self.before.replace((delivered, seconds)).unwrap_or_default();
        (delivered + bytes_before) as f64 / (seconds + seconds_before)
    }

    fn rate(&self) -> f64 {
        self.rates.iter().copied().fold(0.0, f64::max)
    }

    fn is_long(&self) -> bool {
        (LONG..Duration::MAX).contains(&self.least_rtt)
    }

    /// Bytes that may be on the way, where Cubic allows `cubic`.
    pub(super) fn window(&self, cubic: u64) -> u64 {
        if !self.is_long() {
            return cubic;
        }
        match self.phase {
            Phase::Startup { window, .. } | Phase::Hold { window, .. } => window.max(cubic),
            Phase::Steady => {
                let headroom = (self.least_rtt / HEADROOM_PART + HEADROOM_MIN).mul_f64(self.headroom);
                bytes_in(self.rate(), self.least_rtt + headroom).max(cubic)
            }
            // Whatever Cubic allows would hide what is looked for; a little is always allowed.
            Phase::Drain { .. } => bytes_in(self.rate() * DRAIN_PART, self.least_rtt).max(LOSS_MIN),
        }
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive, and saturates")]
fn bytes_in(bytes_per_s: f64, time: Duration) -> u64 {
    (bytes_per_s * time.as_secs_f64()) as u64
}

#[cfg(test)]
mod tests;
