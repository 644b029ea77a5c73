//! Guest time across a pause, a move or a snapshot.
//!
//! Both guest clocks, kvmclock and the TSC, advance by the real time that passed, measured by the wall clock: it is the
//! only clock two hosts share. They never go backwards: a target whose wall clock is behind the source's adds nothing.
//! All vCPUs keep their TSC offsets relative to each other, so TSCs that were in step stay in step.
//! The method is the kernel's own (`Documentation/virt/kvm/devices/vcpu.rst`, `KVM_VCPU_TSC_OFFSET`), plus scaling.

use crate::MachineError;
use crate::state::ClockState;
use kvm_bindings::{KVM_CLOCK_HOST_TSC, KVM_CLOCK_REALTIME, kvm_clock_data};
use kvm_ioctls::VmFd;
use std::time::{SystemTime, UNIX_EPOCH};
use vmotion_sys::tsc::host_tsc;

/// The target side of a restored clock: how a TSC offset of the source translates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TscShift {
    source_host_tsc: u64,
    source_host_khz: u32,
    target_host_tsc: u64,
    target_host_khz: u32,
    elapsed_ns: u64,
    /// Only offsets will do: a TSC that is set by value would be late.
    exact: bool,
}

fn wall_clock_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

const BOTH: u32 = KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC;

/// Host TSC and wall clock that belong to `clock`: the kernel's own where it gives them (one atomic reading), else taken now.
fn moment_of(clock: &kvm_clock_data) -> (u64, u64) {
    if clock.flags & BOTH == BOTH { (clock.host_tsc, clock.realtime) } else { (host_tsc(), wall_clock_ns()) }
}

/// Reads the clock; all vCPUs are paused.
pub(crate) fn save(vm: &VmFd, host_tsc_khz: u32) -> Result<ClockState, MachineError> {
    let clock = vm.get_clock().map_err(MachineError::kvm("read the clock"))?;
    let (host_tsc, realtime_ns) = moment_of(&clock);
    Ok(ClockState { clock, host_tsc, realtime_ns, host_tsc_khz })
}

/// Sets the clock to what it would show now had it never stopped; how TSC offsets follow.
pub(crate) fn restore(vm: &VmFd, state: &ClockState, host_tsc_khz: u32) -> Result<TscShift, MachineError> {
    let ClockState { clock, host_tsc, realtime_ns, host_tsc_khz: source_host_khz } = state;
    // Elapsed time is added here and not by KVM_CLOCK_REALTIME, so that kvmclock and the TSC get the very same amount.
    let elapsed_ns = wall_clock_ns().saturating_sub(*realtime_ns);
    let shift = TscShift {
        source_host_tsc: *host_tsc,
        source_host_khz: *source_host_khz,
        target_host_tsc: vmotion_sys::tsc::host_tsc(),
        target_host_khz: host_tsc_khz,
        elapsed_ns,
        exact: false,
    };
    let clock = kvm_clock_data { clock: clock.clock.saturating_add(elapsed_ns), ..Default::default() };
    vm.set_clock(&clock).map_err(MachineError::kvm("set the clock"))?;
    Ok(shift)
}

#[expect(clippy::cast_possible_truncation, reason = "TSCs wrap at 64 bits by definition")]
fn scale(value: u64, numerator: u64, denominator: u64) -> u64 {
    if numerator == denominator || denominator == 0 {
        return value;
    }
    (u128::from(value) * u128::from(numerator) / u128::from(denominator)) as u64
}

impl TscShift {
    /// Of a vCPU that goes to another part of its machine, whose TSCs all show the same: `ticks` are what this host's TSC is behind the other's,
    /// in ticks of `host_khz`, at any one moment, by this host's time before it was set forward.
    pub(crate) const fn between_parts(ticks: u64, host_khz: u32) -> Self {
        let (source_host_khz, target_host_khz) = (host_khz, host_khz);
        Self {
            source_host_tsc: ticks,
            source_host_khz,
            target_host_tsc: 0,
            target_host_khz,
            elapsed_ns: 0,
            exact: true,
        }
    }

    /// The same on a host whose time was set forward by `ticks`.
    ///
    /// With anchors (`vcpu/time.rs`) a vCPU's offset at its source is `first + advanced + constant`, of the source. It comes with `ticks = first
    /// here - first there - advanced there`, so its offset here becomes `first here + constant`, and with this `first here + advanced here +
    /// constant`.
    pub(crate) const fn advanced(self, ticks: u64) -> Self {
        // A machine that is all here begins anew.
        if self.exact { Self { source_host_tsc: self.source_host_tsc.wrapping_add(ticks), ..self } } else { self }
    }

    pub(crate) const fn is_exact(&self) -> bool {
        self.exact
    }

    /// Guest TSC ticks of `guest_khz` that passed since the save.
    fn elapsed_ticks(&self, guest_khz: u32) -> u64 {
        scale(self.elapsed_ns, u64::from(guest_khz), 1_000_000)
    }

    /// What a guest TSC of `guest_khz` with `source_offset` there must show here, and the offset that makes it so.
    pub(crate) fn target(&self, source_offset: u64, guest_khz: u32) -> TargetTsc {
        let guest_khz_64 = u64::from(guest_khz);
        let source_scaled = scale(self.source_host_tsc, guest_khz_64, u64::from(self.source_host_khz));
        let target_scaled = scale(self.target_host_tsc, guest_khz_64, u64::from(self.target_host_khz));
        let value = source_scaled.wrapping_add(source_offset).wrapping_add(self.elapsed_ticks(guest_khz));
        TargetTsc { value, offset: value.wrapping_sub(target_scaled) }
    }

    /// The same for a TSC that was saved by value, on hosts without the offset attribute.
    pub(crate) fn target_of_value(&self, source_value: u64, guest_khz: u32) -> u64 {
        source_value.wrapping_add(self.elapsed_ticks(guest_khz))
    }
}

/// A guest TSC as it should be at the moment the shift was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TargetTsc {
    pub(crate) value: u64,
    pub(crate) offset: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHIFT: TscShift = TscShift {
        source_host_tsc: 5_000_000_000_000,
        source_host_khz: 2_000_000,
        target_host_tsc: 900,
        target_host_khz: 2_000_000,
        elapsed_ns: 1_500,
        exact: false,
    };

    #[test]
    fn guest_tsc_advances_by_the_time_that_passed() {
        let offset = 0u64.wrapping_sub(4_000_000_000_000);
        let target = SHIFT.target(offset, 2_000_000);
        assert_eq!(target.value, 1_000_000_000_000 + 3_000);
        assert_eq!(target.offset.wrapping_add(900), target.value);
    }

    #[test]
    fn offsets_between_vcpus_are_kept() {
        let (one, two) = (SHIFT.target(1_000, 2_000_000), SHIFT.target(1_700, 2_000_000));
        assert_eq!(two.offset - one.offset, 700);
    }

    #[test]
    fn a_vcpu_on_another_part_shows_the_same() {
        // At one moment this host's TSC shows 300 where the other's shows 1,000.
        let target = TscShift::between_parts(700, 2_000_000).target(50, 2_000_000);
        assert_eq!(target.offset + 300, 50 + 1_000);
    }

    #[test]
    fn a_vcpu_that_moves_between_hosts_that_were_set_forward_keeps_its_constant() {
        const CONSTANT: u64 = 77_000;
        const KHZ: u32 = 2_000_000;
        // Of each host: its first anchor, and what its time was set forward by when the vCPU came and when it left.
        let hosts = [
            (0u64, 0u64, 9_000u64),
            (0u64.wrapping_sub(5_000_000), 40, 7_777),
            (u64::MAX / 3, 3, 3),
            (0, 9_500, 9_501),
        ];
        let mut offset = CONSTANT;
        let mut left_with = None;
        for (first, came, left) in hosts {
            if let Some(anchor) = left_with {
                let shift = TscShift::between_parts(first.wrapping_sub(anchor), KHZ).advanced(came);
                offset = shift.target(offset, KHZ).offset;
            }
            assert_eq!(offset, first.wrapping_add(came).wrapping_add(CONSTANT));
            offset = offset.wrapping_add(left - came);
            left_with = Some(first.wrapping_add(left));
        }
    }

    #[test]
    fn slower_target_host_is_scaled() {
        let slow = TscShift { target_host_khz: 1_000_000, ..SHIFT };
        let target = slow.target(0, 2_000_000);
        assert_eq!(target.offset.wrapping_add(1_800), target.value);
    }
}
