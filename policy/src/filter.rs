//! What a host must be to be considered at all. Each filter gives one reason, in plain words with its numbers, that
//! reads on after the host's name: "h2 needs 1 GiB, 512 MiB of 4 GiB free".

use crate::{PlacementRequest, Wanted};
use vmotion_model::{ByteSize, CpuModel, Host, HostState};

/// vCPUs of one machine per hardware thread beyond which it would only fight itself.
pub const VCPUS_PER_THREAD_MAX: u32 = 32;
/// Missing CPU features named one by one; the rest is counted.
const FEATURES_SHOWN_MAX: usize = 8;

/// Every reason why `host` cannot take the machine.
pub(crate) fn rejections(request: &PlacementRequest, host: &Host) -> Vec<String> {
    [
        not_wanted(request, host),
        is_current(request, host),
        not_up(host),
        is_cordoned(host),
        too_little_memory(request, host),
        too_many_vcpus(request, host),
        other_vendor(request, host),
        missing_features(request, host),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// RAM of `host` that no machine has.
pub(crate) const fn free_memory(host: &Host) -> ByteSize {
    ByteSize(host.capacity.memory.0.saturating_sub(host.capacity.memory_used.0))
}

fn not_wanted(request: &PlacementRequest, host: &Host) -> Option<String> {
    match &request.wanted {
        Wanted::Anywhere => None,
        Wanted::Host(name) => (host.name != *name).then(|| format!("is not {name}, which was asked for")),
        Wanted::Datacenter(name) => {
            (host.datacenter != *name).then(|| format!("is in {}, not in {name}, which was asked for", host.datacenter))
        }
    }
}

fn is_current(request: &PlacementRequest, host: &Host) -> Option<String> {
    let current = request.current.as_ref()?;
    (current.host == host.name).then(|| "is where the machine is now".to_owned())
}

fn not_up(host: &Host) -> Option<String> {
    match host.state {
        HostState::Up => None,
        HostState::Gone => Some(format!("is gone, last heard {} s ago", host.seen_ms_ago / 1000)),
    }
}

fn is_cordoned(host: &Host) -> Option<String> {
    host.cordoned.then(|| "is cordoned".to_owned())
}

fn too_little_memory(request: &PlacementRequest, host: &Host) -> Option<String> {
    let free = free_memory(host);
    let needed = host.capacity.memory_used.0.saturating_add(request.memory.0);
    (needed > host.capacity.memory.0)
        .then(|| format!("needs {}, {free} of {} free", request.memory, host.capacity.memory))
}

fn too_many_vcpus(request: &PlacementRequest, host: &Host) -> Option<String> {
    let threads = host.capacity.cpus;
    let most = threads.saturating_mul(VCPUS_PER_THREAD_MAX);
    (request.cpus > most).then(|| format!("needs {} vCPUs, {threads} threads take {most} at most", request.cpus))
}

fn other_vendor(request: &PlacementRequest, host: &Host) -> Option<String> {
    let current = request.current.as_ref()?;
    let (here, there) = (&current.cpu.vendor, &host.cpu.vendor);
    (here != there).then(|| format!("has a CPU of {there}, {} has one of {here}", current.host))
}

fn missing_features(request: &PlacementRequest, host: &Host) -> Option<String> {
    let current = request.current.as_ref()?;
    if current.cpu.vendor != host.cpu.vendor {
        return None;
    }
    let missing = CpuModel::missing_on(&current.cpu, &host.cpu);
    if missing.is_empty() {
        return None;
    }
    let shown = missing.iter().take(FEATURES_SHOWN_MAX).cloned().collect::<Vec<_>>().join(", ");
    let more = match missing.len().saturating_sub(FEATURES_SHOWN_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let features = if missing.len() == 1 { "CPU feature" } else { "CPU features" };
    Some(format!("lacks {} {features} of {}: {shown}{more}", missing.len(), current.host))
}
