//! How good a host that passed every filter is, from 0 to 100, and what that is made of.

use crate::{PlacementRequest, filter::free_memory};
use vmotion_model::{ByteSize, Host, Verdict};

/// Points for memory left after placement: what is left can take the next machine.
const MEMORY_POINTS: f64 = 50.0;
/// Points for hardware threads per vCPU after placement.
const CPU_POINTS: f64 = 30.0;
/// Points for carrying few machines: fewer fall with one host.
const SPREAD_POINTS: f64 = 20.0;

/// The verdict on a host that passed every filter.
pub(crate) fn score(request: &PlacementRequest, host: &Host) -> Verdict {
    let load = request.load.get(&host.name).copied().unwrap_or_default();

    let left = ByteSize(free_memory(host).0.saturating_sub(request.memory.0));
    let memory = MEMORY_POINTS * share(left.0 as f64, host.capacity.memory.0 as f64);

    let (threads, vcpus) = (host.capacity.cpus, load.vcpus.saturating_add(request.cpus));
    let cpu = CPU_POINTS * share(f64::from(threads), f64::from(vcpus));

    let spread = SPREAD_POINTS / (1.0 + f64::from(load.machines));

    Verdict::Fits {
        score: memory + cpu + spread,
        reasons: vec![
            format!("{left} of {} stays free ({memory:.0} of {MEMORY_POINTS} points)", host.capacity.memory),
            format!("{vcpus} vCPUs on {threads} threads ({cpu:.0} of {CPU_POINTS} points)"),
            format!("{} other machines ({spread:.0} of {SPREAD_POINTS} points)", load.machines),
        ],
    }
}

/// `part` of `whole`, from 0 to 1; all of nothing is 1.
fn share(part: f64, whole: f64) -> f64 {
    if whole <= 0.0 { 1.0 } else { (part / whole).clamp(0.0, 1.0) }
}
