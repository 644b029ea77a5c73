//! quinn's knobs for small messages that somebody waits for.

use super::STREAMS_MAX;
use crate::{
    congestion::{Farewell, MeasuredConfig},
    tuning::{MTU_LOOPBACK, MTU_SAFE},
};
use quinn_proto::{AckFrequencyConfig, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};
use std::{net::IpAddr, sync::Arc, time::Duration};

/// How a mesh uses its paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MeshTuning {
    /// Bytes a stream may have on the way. 8 MiB fill 1 Gbit/s up to 64 ms.
    pub window_bytes: u32,
    /// Largest UDP payload to look for, in bytes.
    pub mtu_max: u16,
    /// Silence after which a peer counts as lost. vCPUs may wait for it.
    pub silence_max: Duration,
    /// Silence after which a peer is asked whether it is there.
    pub keep_alive: Duration,
    /// How long the mesh's thread looks for what its user awaits, before it sleeps. To wake up a thread on an idle processor may take tens of
    /// microseconds; looking costs a processor's time.
    pub linger: Duration,
}

impl Default for MeshTuning {
    fn default() -> Self {
        Self {
            window_bytes: 8 << 20,
            mtu_max: 8952,
            silence_max: Duration::from_secs(3),
            keep_alive: Duration::from_millis(500),
            linger: Duration::from_micros(100),
        }
    }
}

/// Packets that are acknowledged together, unless they stand alone for [`ACK_DELAY`]. Where requests and answers go to and fro their
/// packets carry the acknowledgements; a packet that does nothing else costs both ends as much as one with a page.
const ACK_PACKETS: u32 = 16;
/// The least that quinn takes. A packet lost behind which nothing comes is sent again after a round trip and this.
const ACK_DELAY: Duration = Duration::from_millis(1);
/// Until a path is measured. A handshake whose first packet is lost asks again after three times this; on a longer path it asks twice.
const INITIAL_RTT: Duration = Duration::from_millis(20);
/// In bytes: a burst of 64 pages needs no round trip first.
const INITIAL_WINDOW_BYTES: u64 = 512 << 10;

impl MeshTuning {
    /// For one connection, with `address`.
    pub(super) fn transport(&self, address: IpAddr, farewell: &Farewell) -> Arc<TransportConfig> {
        // Nothing needs to be discovered on loopback.
        let (initial_mtu, mtu_max) =
            if address.is_loopback() { (MTU_LOOPBACK, MTU_LOOPBACK) } else { (MTU_SAFE, self.mtu_max) };
        let mut discovery = MtuDiscoveryConfig::default();
        discovery.upper_bound(mtu_max);
        let mut acks = AckFrequencyConfig::default();
        acks.ack_eliciting_threshold(VarInt::from_u32(ACK_PACKETS)).max_ack_delay(Some(ACK_DELAY));
        let window = u64::from(self.window_bytes);
        // Of the connection's windows no stream can take another's share: what is urgent is never kept back by what is not.
        let windows = window.saturating_mul(u64::from(STREAMS_MAX)).min(1 << 40);
        let mut config = TransportConfig::default();
        config
            .stream_receive_window(VarInt::from_u32(self.window_bytes))
            .receive_window(VarInt::from_u64(windows).unwrap_or(VarInt::MAX))
            .send_window(windows)
            .max_concurrent_bidi_streams(VarInt::from_u32(1))
            .max_concurrent_uni_streams(VarInt::from_u32(STREAMS_MAX.into()))
            .datagram_receive_buffer_size(None)
            .max_idle_timeout(IdleTimeout::try_from(self.silence_max).ok())
            .keep_alive_interval(Some(self.keep_alive))
            .initial_rtt(INITIAL_RTT)
            .initial_mtu(initial_mtu)
            .mtu_discovery_config(Some(discovery))
            .ack_frequency_config(Some(acks))
            .congestion_controller_factory(Arc::new(
                MeasuredConfig::new(INITIAL_WINDOW_BYTES).with_farewell(farewell.clone()),
            ));
        Arc::new(config)
    }

    pub(super) fn endpoint(&self) -> EndpointConfig {
        let mut config = EndpointConfig::default();
        // What a peer may send to us at most, whichever path it comes by. The value is a constant within quinn's limits.
        let _ = config.max_udp_payload_size(self.mtu_max.max(MTU_LOOPBACK));
        config
    }
}
