//! The model against a path of which everything is known.

use super::*;
use std::collections::VecDeque;

const PACKET: u64 = 1400;
/// Acknowledgements come in batches this far apart.
const STEP: Duration = Duration::from_micros(200);

/// A path with a queue that drops what it cannot hold.
#[derive(Clone, Copy)]
struct Path {
    bytes_per_s: f64,
    rtt: Duration,
    /// As a part of what the path carries in a round trip.
    queue: f64,
    /// One in so many packets is lost.
    loses: u64,
}

const GIGABIT: Path = Path { bytes_per_s: 125e6, rtt: Duration::from_millis(100), queue: 1.0, loses: 1000 };

struct Sender {
    path: Path,
    model: Model,
    now: Instant,
    /// When the last packet leaves the queue.
    busy_until: Instant,
    /// When it is acknowledged or found lost, when it was sent, and which.
    on_the_way: VecDeque<(Instant, Instant, bool)>,
    random: u64,
    tokens: f64,
    sent: u64,
    dropped: u64,
    arrived: u64,
}

impl Sender {
    fn new(path: Path) -> Self {
        let now = Instant::now();
        Self {
            path,
            model: Model::new(now, 256 << 10),
            now,
            busy_until: now,
            on_the_way: VecDeque::new(),
            random: 7,
            tokens: 0.0,
            sent: 0,
            dropped: 0,
            arrived: 0,
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += STEP;
            self.acknowledge();
            // As quinn does: a quarter faster than a window each round trip, at most 2 ms or ten packets at once.
            let window = self.model.window(10 * PACKET);
            let rtt = self.path.rtt + self.busy_until.saturating_duration_since(self.now);
            let pace = 1.25 * window as f64 / rtt.as_secs_f64();
            self.tokens = (self.tokens + pace * STEP.as_secs_f64()).min((pace * 0.002).max(10.0 * PACKET as f64));
            while (self.on_the_way.len() as u64 + 1) * PACKET <= window && self.tokens >= PACKET as f64 {
                self.tokens -= PACKET as f64;
                self.send();
            }
        }
    }

    fn send(&mut self) {
        let waiting = self.busy_until.saturating_duration_since(self.now).as_secs_f64();
        let dropped = waiting > self.path.queue * self.path.rtt.as_secs_f64();
        if !dropped {
            self.busy_until =
                self.busy_until.max(self.now) + Duration::from_secs_f64(PACKET as f64 / self.path.bytes_per_s);
        }
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let lost = dropped || (self.random >> 33).is_multiple_of(self.path.loses);
        self.sent += 1;
        self.dropped += u64::from(dropped);
        self.arrived += u64::from(!lost);
        self.on_the_way.push_back((self.busy_until + self.path.rtt, self.now, lost));
    }

    fn acknowledge(&mut self) {
        let mut any = false;
        while let Some(&(_, sent, lost)) = self.on_the_way.front().filter(|(at, ..)| *at <= self.now) {
            self.on_the_way.pop_front();
            if lost {
                self.model.lost(PACKET);
            } else {
                self.model.acked(self.now, sent, PACKET, false);
                any = true;
            }
        }
        if any {
            let _ = self.model.acks_over(self.now);
        }
    }

    /// Part of the path's rate used in the next `time`, and part of the packets its queue dropped.
    fn measure(&mut self, time: Duration) -> (f64, f64) {
        let (arrived, sent, dropped) = (self.arrived, self.sent, self.dropped);
        self.run(time);
        let bytes = ((self.arrived - arrived) * PACKET) as f64;
        let sent = (self.sent - sent).max(1) as f64;
        (bytes / self.path.bytes_per_s / time.as_secs_f64(), (self.dropped - dropped) as f64 / sent)
    }
}

#[test]
fn a_long_path_that_loses_packets_is_filled() {
    for loses in [100, 1000, u64::MAX] {
        let (used, dropped) = Sender::new(Path { loses, ..GIGABIT }).measure(Duration::from_secs(5));
        assert!(used > 0.85 && dropped < 0.03, "1 in {loses} lost: {used} used, {dropped} dropped");
    }
}

#[test]
fn the_queue_stays_short() {
    let mut sender = Sender::new(GIGABIT);
    sender.run(Duration::from_secs(5));
    let queue = sender.busy_until - sender.now;
    assert!(queue < GIGABIT.rtt / 2, "{queue:?}");
}

#[test]
fn a_short_queue_is_not_flooded() {
    for queue in [0.05, 0.1, 0.3] {
        let mut sender = Sender::new(Path { queue, ..GIGABIT });
        sender.run(Duration::from_secs(3));
        let (used, dropped) = sender.measure(Duration::from_secs(10));
        assert!(used > 0.85 && dropped < 0.05, "queue {queue}: {used} used, {dropped} dropped");
    }
}

#[test]
fn a_path_that_changes_its_rate_is_followed_both_ways() {
    let mut sender = Sender::new(GIGABIT);
    sender.run(Duration::from_secs(3));
    sender.path.bytes_per_s /= 4.0;
    sender.run(Duration::from_secs(3));
    let (used, dropped) = sender.measure(Duration::from_secs(3));
    assert!(used > 0.85 && dropped < 0.05, "slower: {used} used, {dropped} dropped");
    sender.path.bytes_per_s *= 4.0;
    sender.run(Duration::from_secs(3));
    let (used, _) = sender.measure(Duration::from_secs(3));
    assert!(used > 0.85, "faster: {used} used");
}

#[test]
fn the_least_round_trip_is_found_again_when_the_path_becomes_longer() {
    let mut sender = Sender::new(GIGABIT);
    sender.run(Duration::from_secs(3));
    sender.path.rtt *= 2;
    sender.run(Duration::from_secs(30));
    let (used, dropped) = sender.measure(Duration::from_secs(5));
    assert!(used > 0.85 && dropped < 0.05, "{used} used, {dropped} dropped");
    assert!(sender.model.least_rtt >= Duration::from_millis(200), "{:?}", sender.model.least_rtt);
}

#[test]
fn a_short_path_is_left_to_cubic() {
    let mut sender = Sender::new(Path { rtt: Duration::from_millis(1), ..GIGABIT });
    sender.run(Duration::from_secs(1));
    assert_eq!(sender.model.window(12_345), 12_345);
}
