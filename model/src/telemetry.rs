//! What hosts and machines use, as agents measure it. Every figure is of the time since the one before it.

use serde::{Deserialize, Serialize};

/// Part of the time in which somebody waited for something there was too little of, in percent, over the last ten seconds (PSI, `some
/// avg10`; see the kernel's accounting/psi).
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Pressure {
    /// For a processor.
    pub cpu_percent: f32,
    /// For memory.
    pub memory_percent: f32,
    /// For disks.
    pub io_percent: f32,
}

/// What a host uses.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HostTelemetry {
    /// Processors that machines may use: those of the host, or what its control group leaves them; may be a fraction.
    pub cpus: f32,
    /// Processors that were busy: of the control group where it is limited, else of the host.
    pub cpus_busy: f32,
    /// Who waited; `None` where the kernel does not say.
    #[serde(default)]
    pub pressure: Option<Pressure>,
    /// Received over its network, in bytes/s.
    pub received_bytes_per_s: f64,
    /// Sent over its network, in bytes/s.
    pub sent_bytes_per_s: f64,
    /// What its fastest network carries, in bytes/s; `None` where the kernel does not say.
    #[serde(default)]
    pub network_bytes_per_s: Option<f64>,
}

/// What a machine does to its memory, by samples of its pages.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MemoryTelemetry {
    /// Different pages written, each second.
    pub dirty_pages_per_s: f64,
    /// Pages among which it writes: different pages written in half a minute.
    pub working_set_pages: f64,
    /// Part of its pages that hold only zeros, or were never touched; from 0 to 1.
    pub zero_share: f64,
}

/// What a vCPU used.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VcpuTelemetry {
    /// Which.
    pub vcpu: u8,
    /// Processors it was busy on: 1 at most.
    pub cpus: f32,
}

/// What a machine uses on a host.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MachineTelemetry {
    /// Processors that its process was busy on.
    pub cpus: f32,
    /// Processors that it could have used and did not get (steal): time its threads were ready and did not run.
    pub cpus_waited: f32,
    /// Processors that it would have been busy on, had it got all it was ready for: of threads that never slept what they waited counts, of
    /// those that slept it does not, for they got everything done.
    #[serde(default)]
    pub cpus_wanted: f32,
    /// The vCPUs of it that are on this host.
    #[serde(default)]
    pub vcpus: Vec<VcpuTelemetry>,
    /// What it does to its memory, where that was looked at.
    #[serde(default)]
    pub memory: Option<MemoryTelemetry>,
    /// What all this is of, in ms.
    pub over_ms: u32,
}
