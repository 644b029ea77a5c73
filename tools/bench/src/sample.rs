//! Who moves the guest, and what came of it once.

use serde::Serialize;

/// A way for QEMU to migrate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct QemuMode {
    pub(crate) name: &'static str,
    pub(crate) multifd: bool,
    pub(crate) zstd: bool,
    pub(crate) tls: bool,
    pub(crate) downtime_ms_max: u32,
}

/// The limit an operator of either gets by default.
pub(crate) const DOWNTIME_MS_MAX: u32 = 300;
/// A limit at which QEMU still converges on both links, for its best downtime.
const DOWNTIME_MS_LOW: u32 = 20;

impl QemuMode {
    const PLAIN: Self =
        Self { name: "QEMU", multifd: false, zstd: false, tls: false, downtime_ms_max: DOWNTIME_MS_MAX };

    /// All that are compared.
    pub(crate) const ALL: [Self; 8] = [
        Self::PLAIN,
        Self { name: "QEMU, limit 20 ms", downtime_ms_max: DOWNTIME_MS_LOW, ..Self::PLAIN },
        Self { name: "QEMU multifd", multifd: true, ..Self::PLAIN },
        Self { name: "QEMU multifd, limit 20 ms", multifd: true, downtime_ms_max: DOWNTIME_MS_LOW, ..Self::PLAIN },
        Self { name: "QEMU multifd+zstd", multifd: true, zstd: true, ..Self::PLAIN },
        Self { name: "QEMU TLS", tls: true, ..Self::PLAIN },
        Self { name: "QEMU TLS, limit 20 ms", tls: true, downtime_ms_max: DOWNTIME_MS_LOW, ..Self::PLAIN },
        Self { name: "QEMU multifd+TLS", multifd: true, tls: true, ..Self::PLAIN },
    ];

    /// The most telling.
    pub(crate) const QUICK: [Self; 2] = [Self::PLAIN, Self { name: "QEMU TLS", tls: true, ..Self::PLAIN }];
}

/// Who moves the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Contestant {
    Ours,
    Qemu(QemuMode),
}

impl Contestant {
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Ours => "vmotion",
            Self::Qemu(mode) => mode.name,
        }
    }

    pub(crate) const fn is_encrypted(&self) -> bool {
        match self {
            Self::Ours => true,
            Self::Qemu(mode) => mode.tls,
        }
    }
}

/// One move, measured.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Sample {
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
    /// Heartbeats that never came.
    pub(crate) beats_missing: u64,
    /// On the wire, as the tool counts.
    pub(crate) wire_bytes: f64,
    /// On the link in both directions, headers included.
    pub(crate) link_bytes: Option<u64>,
    /// Packets the link dropped.
    pub(crate) link_drops: Option<u64>,
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
