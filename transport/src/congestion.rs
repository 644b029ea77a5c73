//! How much may be on the way: what Cubic allows, and on a long path what the path has shown to carry.
//!
//! Cubic takes every loss for a full queue, and needs many round trips to come back. A path of 100 ms that loses one packet in a
//! thousand for reasons of its own is then all but idle. So a long path is measured: what it delivers in a second, times its least
//! round-trip time, is what must be on the way to keep it busy. A little more finds out whether it carries more. Loss counts only
//! where it is more than a few packets in a hundred.
//!
//! ```text
//! Startup (twice as much each round) ─▶ Hold (one round, to measure) ─▶ Steady ⇄ Drain (now and then, for the least round trip)
//! ```
//! Short paths are Cubic's alone: it recovers there within milliseconds, and what is measured is this host's scheduling.

mod model;

pub(crate) use model::LONG;
use model::Model;
use quinn::congestion::{Controller, ControllerFactory, CubicConfig};
use quinn_proto::RttEstimator;
use std::{
    any::Any,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

/// Makes a controller for each path.
#[derive(Debug)]
pub(crate) struct MeasuredConfig {
    cubic: Arc<CubicConfig>,
    farewell: Farewell,
}

/// Says that a connection is about to be closed. quinn keeps back even that until there is room for it, and hears of no room any more: the
/// peer would wait for whom is gone. So then there is always room, of which nothing else makes use.
#[derive(Debug, Clone, Default)]
pub(crate) struct Farewell(Arc<AtomicBool>);

impl Farewell {
    pub(crate) fn say(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl MeasuredConfig {
    pub(crate) fn new(initial_window: u64) -> Self {
        let mut cubic = CubicConfig::default();
        cubic.initial_window(initial_window);
        Self { cubic: Arc::new(cubic), farewell: Farewell::default() }
    }

    /// For one connection, which may have something to say when it is closed.
    pub(crate) fn with_farewell(self, farewell: Farewell) -> Self {
        Self { farewell, ..self }
    }
}

impl ControllerFactory for MeasuredConfig {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let cubic = Arc::clone(&self.cubic).build(now, current_mtu);
        let model = Model::new(now, cubic.initial_window());
        Box::new(Measured { cubic, model, farewell: self.farewell.clone() })
    }
}

struct Measured {
    cubic: Box<dyn Controller>,
    model: Model,
    farewell: Farewell,
}

impl Controller for Measured {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.cubic.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.cubic.on_ack(now, sent, bytes, app_limited, rtt);
        self.model.acked(now, sent, bytes, app_limited);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest: Option<u64>) {
        self.cubic.on_end_acks(now, in_flight, app_limited, largest);
        if self.model.acks_over(now) {
            // Cubic would double on, into a queue that has begun to fill.
            self.cubic.on_congestion_event(now, now, false, 0);
        }
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent_congestion: bool, lost_bytes: u64) {
        self.cubic.on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
        if is_persistent_congestion {
            // Nothing came through for a while: what was measured is history.
            self.model = Model::new(now, self.cubic.window());
        } else {
            self.model.lost(lost_bytes);
        }
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.cubic.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        if self.farewell.0.load(Ordering::Relaxed) {
            return u64::MAX;
        }
        self.model.window(self.cubic.window())
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self { cubic: self.cubic.clone_box(), model: self.model.clone(), farewell: self.farewell.clone() })
    }

    fn initial_window(&self) -> u64 {
        self.cubic.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
