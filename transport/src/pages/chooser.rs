//! Which codec for the next batch?
//!
//! Compression pays when the link, not the processor, is what a move waits for. The chooser measures both: what each
//! codec achieved lately (bytes left, time spent), and what a byte on the wire costs. It picks the codec with the least
//! predicted time per guest byte, and tries the others now and then, because content and links change during a move.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// How a batch's payload is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codec {
    /// As it is.
    Raw,
    /// LZ4 block.
    Lz4,
    /// Zstandard frame, level 1.
    Zstd,
}

impl Codec {
    pub(super) const ALL: [Self; 3] = [Self::Raw, Self::Lz4, Self::Zstd];

    pub(super) const fn to_wire(self) -> u8 {
        match self {
            Self::Raw => 0,
            Self::Lz4 => 1,
            Self::Zstd => 2,
        }
    }

    pub(super) const fn from_wire(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Raw),
            1 => Some(Self::Lz4),
            2 => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// What a byte costs on the wire, in picoseconds, as the flows of one move measure it together.
#[derive(Debug, Default)]
pub struct WireCost {
    ps_per_byte: AtomicU64,
    processors_busy: AtomicBool,
    /// What the link itself costs, once it is known to set the pace; 0 before.
    link_ps_per_byte: AtomicU64,
}

/// What encrypting and sending a byte costs when nothing but the processor limits it; measured on 2-core cloud hosts with
/// jumbo frames, both ends together. A host whose processors are all busy waits for them, not for the link.
const PROCESSOR_NS_PER_BYTE: f64 = 0.8;

impl WireCost {
    /// `bytes` were accepted by the transport in `nanoseconds` of waiting for it.
    pub fn record(&self, bytes: u64, nanoseconds: u64) {
        if bytes == 0 {
            return;
        }
        let sample = nanoseconds.saturating_mul(1000) / bytes;
        let before = self.ps_per_byte.load(Ordering::Relaxed);
        let after = if before == 0 { sample } else { (before * 7 + sample) / 8 };
        self.ps_per_byte.store(after.max(1), Ordering::Relaxed);
    }

    /// Notes whether this host's processors are all busy. Waiting for the transport then means waiting for them, and
    /// compressing would make it longer.
    pub fn set_processors_busy(&self, busy: bool) {
        self.processors_busy.store(busy, Ordering::Relaxed);
    }

    /// What the link carries for one flow, in bytes/s, where it is known to set the pace. Waiting alone would mislead: compression
    /// that works ends the waiting it was a remedy for.
    pub fn set_link_rate(&self, bytes_per_s: Option<u64>) {
        let cost = bytes_per_s.map_or(0, |rate| (1_000_000_000_000 / rate.max(1)).max(1));
        self.link_ps_per_byte.store(cost, Ordering::Relaxed);
    }

    /// Nanoseconds per byte; 0 before the first measurement.
    #[must_use]
    pub fn ns_per_byte(&self) -> f64 {
        let link = self.link_ps_per_byte.load(Ordering::Relaxed);
        if link > 0 {
            return link as f64 / 1000.0;
        }
        let waited = self.ps_per_byte.load(Ordering::Relaxed) as f64 / 1000.0;
        if self.processors_busy.load(Ordering::Relaxed) { waited.min(PROCESSOR_NS_PER_BYTE) } else { waited }
    }
}

#[derive(Debug, Clone, Copy)]
struct Record {
    /// Encoded bytes per guest byte.
    ratio: f64,
    /// Nanoseconds of processor time per guest byte spent encoding. Time on the clock would count what others did to the processor
    /// meanwhile, and a codec that was tried in such a moment would be avoided for long.
    cost_ns: f64,
    tried: bool,
}

/// Chooses for one flow.
#[derive(Debug)]
pub struct CodecChooser {
    records: [Record; Codec::ALL.len()],
    batches: u64,
    forced: Option<Codec>,
}

/// Every so many batches another codec is tried; one in 128 costs about a percent.
const EXPLORE_EVERY: u64 = 128;
/// Early on each compressor is tried once soon, at these batches: a slow link should not wait long to be helped.
const EXPLORE_FIRST: [u64; 2] = [4, 8];

impl CodecChooser {
    /// A chooser that measures; or one that always takes `forced`.
    #[must_use]
    pub const fn new(forced: Option<Codec>) -> Self {
        let untried = Record { ratio: 1.0, cost_ns: 0.0, tried: false };
        Self { records: [untried; Codec::ALL.len()], batches: 0, forced }
    }

    /// The codec for the next batch, when a byte costs `wire_ns` nanoseconds on the wire.
    pub fn next(&mut self, wire_ns: f64) -> Codec {
        if let Some(forced) = self.forced {
            return forced;
        }
        self.batches += 1;
        let best = self.best(wire_ns);
        if !self.batches.is_multiple_of(EXPLORE_EVERY) && !EXPLORE_FIRST.contains(&self.batches) {
            return best;
        }
        // An untried codec first; else the two compressors in turn.
        let untried = Codec::ALL.into_iter().find(|codec| !self.record(*codec).tried);
        let turn = if (self.batches / EXPLORE_EVERY).is_multiple_of(2) { Codec::Lz4 } else { Codec::Zstd };
        untried.unwrap_or(turn)
    }

    /// The codec that pages get when a byte costs `wire_ns` nanoseconds on the wire, and what it leaves of each byte.
    pub(super) fn usual(&self, wire_ns: f64) -> (Codec, f64) {
        let codec = self.forced.unwrap_or_else(|| self.best(wire_ns));
        (codec, self.record(codec).ratio)
    }

    /// What a batch of `raw_bytes` became, and how much processor time that took.
    pub fn record_batch(&mut self, codec: Codec, raw_bytes: usize, encoded_bytes: usize, nanoseconds: u64) {
        if raw_bytes == 0 {
            return;
        }
        let ratio = encoded_bytes as f64 / raw_bytes as f64;
        let cost_ns = nanoseconds as f64 / raw_bytes as f64;
        let record = &mut self.records[usize::from(codec.to_wire())];
        if record.tried {
            record.ratio += (ratio - record.ratio) / 8.0;
            record.cost_ns += (cost_ns - record.cost_ns) / 8.0;
        } else {
            *record = Record { ratio, cost_ns, tried: true };
        }
    }

    fn record(&self, codec: Codec) -> Record {
        self.records[usize::from(codec.to_wire())]
    }

    fn best(&self, wire_ns: f64) -> Codec {
        let time = |codec: Codec| {
            let Record { ratio, cost_ns, tried } = self.record(codec);
            if codec != Codec::Raw && !tried {
                return f64::INFINITY;
            }
            // Encoding and sending overlap: the slower of the two sets the pace, the other still takes some of the
            // same processors.
            let wire = ratio * wire_ns;
            cost_ns.max(wire) + 0.25 * cost_ns.min(wire)
        };
        let mut best = Codec::Raw;
        for codec in Codec::ALL {
            if time(codec) < time(best) {
                best = codec;
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taught() -> CodecChooser {
        let mut chooser = CodecChooser::new(None);
        // ns per byte as measured for text-like pages: raw 0.1, lz4 1.7, zstd 3.6.
        for _ in 0..8 {
            chooser.record_batch(Codec::Raw, 1000, 1000, 100);
            chooser.record_batch(Codec::Lz4, 1000, 600, 1700);
            chooser.record_batch(Codec::Zstd, 1000, 400, 3600);
        }
        chooser
    }

    #[test]
    fn a_fast_link_gets_raw_pages() {
        assert_eq!(taught().best(0.8), Codec::Raw);
    }

    #[test]
    fn a_slow_link_gets_the_strongest_codec() {
        assert_eq!(taught().best(80.0), Codec::Zstd);
    }

    #[test]
    fn busy_processors_are_not_mistaken_for_a_slow_link() {
        let wire = WireCost::default();
        wire.record(1000, 8000);
        assert_eq!(taught().best(wire.ns_per_byte()), Codec::Zstd);
        wire.set_processors_busy(true);
        assert_eq!(taught().best(wire.ns_per_byte()), Codec::Raw);
    }

    #[test]
    fn a_congested_link_keeps_its_cost_when_compression_has_ended_the_waiting() {
        let wire = WireCost::default();
        wire.set_link_rate(Some(117_000_000));
        wire.set_processors_busy(true);
        for _ in 0..100 {
            wire.record(1000, 0);
        }
        assert_eq!(taught().best(wire.ns_per_byte()), Codec::Zstd);
    }

    #[test]
    fn content_that_does_not_compress_stays_raw_on_any_link() {
        let mut chooser = CodecChooser::new(None);
        for _ in 0..8 {
            chooser.record_batch(Codec::Raw, 1000, 1000, 100);
            chooser.record_batch(Codec::Lz4, 1000, 1000, 400);
            chooser.record_batch(Codec::Zstd, 1000, 1000, 900);
        }
        assert_eq!(chooser.best(80.0), Codec::Raw);
    }

    #[test]
    fn every_codec_is_tried_in_time() {
        let mut chooser = CodecChooser::new(None);
        let mut seen = std::collections::HashSet::new();
        for _ in 0..400 {
            let codec = chooser.next(1.0);
            seen.insert(codec);
            chooser.record_batch(codec, 1000, 900, 1000);
        }
        assert_eq!(seen.len(), Codec::ALL.len());
    }
}
