//! Who moves the guest, and what came of it once.

use crate::{carried::Carried, touches::Waits};
use serde::Serialize;

/// A way for vmotion to move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OurMode {
    pub(crate) name: &'static str,
    /// For `--strategy`; its default where nothing is said.
    pub(crate) strategy: Option<&'static str>,
    /// For `--delta-memory`, likewise.
    pub(crate) delta_memory: Option<&'static str>,
}

impl OurMode {
    pub(crate) const DEFAULT: Self = Self { name: "vmotion", strategy: None, delta_memory: None };
    pub(crate) const AUTO: Self = Self { name: "vmotion auto", strategy: Some("auto"), ..Self::DEFAULT };
    pub(crate) const POST_COPY: Self = Self { name: "vmotion post-copy", strategy: Some("postcopy"), ..Self::DEFAULT };
    const PRE_COPY: Self = Self { name: "vmotion pre-copy", strategy: Some("precopy"), ..Self::DEFAULT };

    /// With and without deltas, and what is done with such a guest unless pre-copy is asked for.
    pub(crate) const DELTAS: [Self; 3] = [
        Self::PRE_COPY,
        Self { name: "vmotion pre-copy, no deltas", delta_memory: Some("0"), ..Self::PRE_COPY },
        Self::AUTO,
    ];
}

/// A way for QEMU to migrate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct QemuMode {
    pub(crate) name: &'static str,
    /// Channels of multifd; 0 is without.
    pub(crate) channels: u32,
    pub(crate) zstd: bool,
    pub(crate) tls: bool,
    /// Its deltas, with a cache of this many bytes; 0 is without.
    pub(crate) xbzrle_bytes: u64,
    pub(crate) post_copy: PostCopy,
    pub(crate) downtime_ms_max: u32,
}

/// Whether QEMU's memory follows the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PostCopy {
    No,
    /// From the beginning: the guest is handed over at once.
    Yes,
    /// Pages the guest waits for have a channel of their own.
    Preempt,
}

/// The limit an operator of either gets by default.
pub(crate) const DOWNTIME_MS_MAX: u32 = 300;
/// A limit at which QEMU still converges on both links, for its best downtime.
const DOWNTIME_MS_LOW: u32 = 20;

impl QemuMode {
    const PLAIN: Self = Self {
        name: "QEMU",
        channels: 0,
        zstd: false,
        tls: false,
        xbzrle_bytes: 0,
        post_copy: PostCopy::No,
        downtime_ms_max: DOWNTIME_MS_MAX,
    };
    const LOW: Self = Self { name: "QEMU, limit 20 ms", downtime_ms_max: DOWNTIME_MS_LOW, ..Self::PLAIN };
    const MULTIFD: Self = Self { name: "QEMU multifd", channels: 2, ..Self::PLAIN };
    const TLS: Self = Self { name: "QEMU TLS", tls: true, ..Self::PLAIN };

    /// All that are compared in ordinary moves.
    pub(crate) const ALL: [Self; 8] = [
        Self::PLAIN,
        Self::LOW,
        Self::MULTIFD,
        Self { name: "QEMU multifd, limit 20 ms", downtime_ms_max: DOWNTIME_MS_LOW, ..Self::MULTIFD },
        Self { name: "QEMU multifd+zstd", zstd: true, ..Self::MULTIFD },
        Self::TLS,
        Self { name: "QEMU TLS, limit 20 ms", downtime_ms_max: DOWNTIME_MS_LOW, ..Self::TLS },
        Self { name: "QEMU multifd+TLS", tls: true, ..Self::MULTIFD },
    ];

    /// The most telling.
    pub(crate) const QUICK: [Self; 2] = [Self::PLAIN, Self::TLS];

    /// Memory follows the guest.
    pub(crate) const POST_COPY: [Self; 2] = [
        Self { name: "QEMU post-copy", post_copy: PostCopy::Yes, ..Self::PLAIN },
        Self { name: "QEMU post-copy, preempt", post_copy: PostCopy::Preempt, ..Self::PLAIN },
    ];

    /// For a guest that writes faster than the link carries.
    pub(crate) const NON_CONVERGENT: [Self; 3] = [Self::PLAIN, Self::POST_COPY[0], Self::POST_COPY[1]];

    /// For a guest that changes a little of many pages. The cache is as large as ours by default.
    pub(crate) const LINES: [Self; 2] =
        [Self::PLAIN, Self { name: "QEMU xbzrle", xbzrle_bytes: 64 << 20, ..Self::PLAIN }];

    /// For a long link: one connection, and several.
    pub(crate) const WAN: [Self; 4] = [
        Self::PLAIN,
        Self::LOW,
        Self { name: "QEMU multifd 8", channels: 8, ..Self::PLAIN },
        Self { name: "QEMU multifd 8, limit 20 ms", channels: 8, ..Self::LOW },
    ];
}

/// Who moves the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Contestant {
    Ours(OurMode),
    Qemu(QemuMode),
}

impl Contestant {
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Ours(mode) => mode.name,
            Self::Qemu(mode) => mode.name,
        }
    }

    pub(crate) const fn is_encrypted(&self) -> bool {
        match self {
            Self::Ours(_) => true,
            Self::Qemu(mode) => mode.tls,
        }
    }
}

/// One move, measured. What is not known is not a number.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Sample {
    /// Why it did not come to its end; the numbers are then those until it was given up.
    pub(crate) unfinished: Option<String>,
    /// From the command until it says that the move is over and the target runs.
    pub(crate) total_ms: f64,
    /// The same, as the tool itself counts.
    pub(crate) own_total_ms: f64,
    /// Between the last heartbeat at the source and the first at the target.
    pub(crate) gap_ms: f64,
    /// The pause, as the tool itself counts.
    pub(crate) own_downtime_ms: f64,
    /// Gaps between heartbeats in the quiet seconds before.
    pub(crate) before_p99_ms: f64,
    /// See `before_p99_ms`.
    pub(crate) before_max_ms: f64,
    /// Longest gap between heartbeats while pages were copied.
    pub(crate) copying_max_ms: f64,
    /// From the command until the first heartbeat at the target.
    pub(crate) handover_ms: f64,
    /// Gaps between heartbeats at the target, until the move was over.
    pub(crate) after_p99_ms: f64,
    /// Longest gap between heartbeats at the target.
    pub(crate) after_max_ms: f64,
    /// Heartbeats that never came.
    pub(crate) beats_missing: u64,
    /// On the wire, as the tool counts.
    pub(crate) wire_bytes: f64,
    /// On the link in both directions, headers included.
    pub(crate) link_bytes: Option<u64>,
    /// Packets the link dropped.
    pub(crate) link_drops: Option<u64>,
    /// What an emulated link carried.
    pub(crate) carried: Option<Carried>,
    /// How long the guest waited for pages, where it was asked to tell.
    pub(crate) waits: Option<Waits>,
    /// Processor time of all processes at both ends.
    pub(crate) cpu_s: f64,
    /// Without the threads that run the guest.
    pub(crate) cpu_own_s: f64,
    /// Part of the processors that others used during the move, or the hypervisor took away.
    pub(crate) disturbed: f64,
    /// Part of the processors that was busy just before the guest was started.
    pub(crate) busy_before: f64,
    /// Which attempt this is; earlier ones were disturbed.
    pub(crate) attempts: u32,
    /// What else the tool said.
    pub(crate) detail: serde_json::Value,
}
