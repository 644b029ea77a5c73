//! quinn's knobs for moving gigabytes, in one place.

use crate::congestion::{LONG, MeasuredConfig};
use quinn::{AckFrequencyConfig, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};
use std::{net::IpAddr, num::NonZero, sync::Arc, time::Duration};

/// How a session uses its path.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tuning {
    /// Page flows: streams, each with an encoding thread at the source and a decoding task at the target. More than one pays
    /// when compressing is the limit.
    pub flows: u8,
    /// Bulk connections that carry the flows, each with a socket of its own. More than one pays when one processor's encrypting
    /// and sending is the limit.
    pub connections: u8,
    /// Bytes a connection may have in flight: twice bandwidth × round-trip time, or memory lies idle. 32 MiB fills 10 Gbit/s
    /// up to 12 ms, 1 Gbit/s up to 120 ms.
    pub window_bytes: u32,
    /// Largest UDP payload to look for, in bytes. Jumbo frames halve the cost of a byte where the path has them; path
    /// MTU discovery finds out, and falls back.
    pub mtu_max: u16,
    /// Silence after which a peer counts as lost.
    pub silence_max: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            flows: flows_for(processors()),
            connections: connections_for(processors()),
            window_bytes: 32 << 20,
            mtu_max: 8952,
            silence_max: Duration::from_secs(10),
        }
    }
}

/// Parts of flows that were sent again and wait to be sent, or to be read. What is more is dropped.
const COPIES_BYTES: usize = 4 << 20;

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get)
}

/// Compressing keeps a processor busy for each flow.
fn flows_for(processors: usize) -> u8 {
    u8::try_from(processors).unwrap_or(u8::MAX).clamp(1, Tuning::FLOWS_MAX)
}

/// Encrypting and sending keeps less than one processor busy for each connection, reading and encoding another. Measured with two
/// processors: one connection is as fast as two and loses no packets to its neighbour.
fn connections_for(processors: usize) -> u8 {
    u8::try_from(processors / 2).unwrap_or(u8::MAX).clamp(1, 4)
}

/// Payload bytes of a packet that stays on this machine, whose interface takes 64 KiB. Two fill one send.
pub(crate) const MTU_LOOPBACK: u16 = 32_000;
/// Every path must carry this: RFC 9000, section 14.
pub(crate) const MTU_SAFE: u16 = 1200;

impl Tuning {
    /// Buffers of a UDP socket, in bytes. Bulk data comes in bursts of a whole window; a small one would drop them.
    pub const SOCKET_BUFFER_BYTES: usize = 16 << 20;

    /// Most flows a peer may ask for.
    pub const FLOWS_MAX: u8 = 8;

    /// The same, for a path that ends at `address`.
    pub(crate) fn toward(self, address: IpAddr) -> Self {
        if address.is_loopback() { Self { mtu_max: MTU_LOOPBACK, ..self } } else { self }
    }

    /// Bytes that a connection keeps until they are acknowledged, on a path of `rtt`. What lies behind a lost packet is kept until that has
    /// been sent again and acknowledged: two round trips and a half, in which 1 Gbit/s carries 36 MB at 100 ms. With less a long path that
    /// loses packets stands still now and then.
    pub(crate) fn send_window(&self, rtt: Duration) -> u64 {
        let kept = u64::from(self.window_bytes);
        if rtt >= LONG { kept * 2 } else { kept }
    }

    pub(crate) fn transport(&self) -> Arc<TransportConfig> {
        let mut discovery = MtuDiscoveryConfig::default();
        discovery.upper_bound(self.mtu_max);
        // Nothing needs to be discovered on loopback.
        let initial_mtu = if self.mtu_max == MTU_LOOPBACK { MTU_LOOPBACK } else { MTU_SAFE };
        // Fewer acknowledgements: each costs both ends a packet, and bulk data needs only a few per round trip.
        let mut acks = AckFrequencyConfig::default();
        acks.ack_eliciting_threshold(VarInt::from_u32(10)).max_ack_delay(Some(Duration::from_millis(5)));
        let mut config = TransportConfig::default();
        config
            .stream_receive_window(VarInt::from_u32(self.window_bytes))
            .receive_window(VarInt::from_u32(self.window_bytes.saturating_mul(2).min(1 << 30)))
            .send_window(u64::from(self.window_bytes))
            .max_concurrent_bidi_streams(VarInt::from_u32(4))
            .max_concurrent_uni_streams(VarInt::from_u32(16))
            .datagram_receive_buffer_size(Some(COPIES_BYTES))
            .datagram_send_buffer_size(COPIES_BYTES)
            .max_idle_timeout(IdleTimeout::try_from(self.silence_max).ok())
            .keep_alive_interval(Some(self.silence_max / 10))
            .initial_rtt(Duration::from_millis(100))
            .initial_mtu(initial_mtu)
            .mtu_discovery_config(Some(discovery))
            .ack_frequency_config(Some(acks))
            .congestion_controller_factory(Arc::new(MeasuredConfig::new(256 << 10)));
        Arc::new(config)
    }

    pub(crate) fn endpoint(&self) -> EndpointConfig {
        let mut config = EndpointConfig::default();
        // Without this a peer may never send more than 1472 bytes to us. The value is a constant within quinn's limits.
        let _ = config.max_udp_payload_size(self.mtu_max.max(1472));
        config
    }
}
