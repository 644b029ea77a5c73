//! Everything of one vCPU, out and in again, and the registers a new machine begins with.
//!
//! Order of a restore, and why:
//! 1. CPUID, when it differs: it decides what the rest may contain.
//! 2. Segment and control registers: the LAPIC's base and mode are in them, and must be there before its registers.
//! 3. XCR0 and XSAVE, general and debug registers.
//! 4. TSC, then MSRs: kvmclock's MSRs are computed from the TSC.
//! 5. LAPIC, then the TSC deadline: the deadline only arms a LAPIC timer that is in that mode.
//! 6. Events and the MP state last: earlier calls reset pending exceptions and wake a halted processor.

use super::msrs::{self, IA32_TSC, IA32_TSC_DEADLINE, MSRS_MAX};
use super::{BootEntry, VcpuParts, VcpuShared};
use crate::MachineError;
use crate::clock::TscShift;
use crate::state::StateError;
use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2, kvm_debugregs, kvm_dtable, kvm_lapic_state, kvm_mp_state, kvm_regs,
    kvm_segment, kvm_sregs2, kvm_vcpu_events, kvm_xcrs,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};
use std::io;
use vmotion_sys::kvm::{get_sregs2, set_sregs2, set_tsc_offset, tsc_offset};

/// One vCPU, complete.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct VcpuState {
    cpuid: Vec<kvm_cpuid_entry2>,
    registers: kvm_regs,
    system: SystemRegisters,
    xcrs: kvm_xcrs,
    xsave: Vec<u64>,
    debug: kvm_debugregs,
    lapic: kvm_lapic_state,
    events: kvm_vcpu_events,
    mp_state: kvm_mp_state,
    msrs: Vec<(u32, u64)>,
    tsc: TscState,
}

/// The guest's TSC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct TscState {
    khz: u32,
    /// Where the host has the attribute; else the value counts, which is among the MSRs.
    offset: Option<u64>,
}

/// `kvm_sregs2`, which kvm-bindings does not serialise.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct SystemRegisters {
    /// cs, ds, es, fs, gs, ss, tr, ldt.
    segments: [kvm_segment; 8],
    gdt: kvm_dtable,
    idt: kvm_dtable,
    /// cr0, cr2, cr3, cr4, cr8.
    control: [u64; 5],
    efer: u64,
    apic_base: u64,
    flags: u64,
    pdptrs: [u64; 4],
}

impl From<kvm_sregs2> for SystemRegisters {
    fn from(registers: kvm_sregs2) -> Self {
        let kvm_sregs2 {
            cs,
            ds,
            es,
            fs,
            gs,
            ss,
            tr,
            ldt,
            gdt,
            idt,
            cr0,
            cr2,
            cr3,
            cr4,
            cr8,
            efer,
            apic_base,
            flags,
            pdptrs,
        } = registers;
        let segments = [cs, ds, es, fs, gs, ss, tr, ldt];
        Self { segments, gdt, idt, control: [cr0, cr2, cr3, cr4, cr8], efer, apic_base, flags, pdptrs }
    }
}

impl From<SystemRegisters> for kvm_sregs2 {
    fn from(registers: SystemRegisters) -> Self {
        let SystemRegisters { segments, gdt, idt, control, efer, apic_base, flags, pdptrs } = registers;
        let [cs, ds, es, fs, gs, ss, tr, ldt] = segments;
        let [cr0, cr2, cr3, cr4, cr8] = control;
        Self { cs, ds, es, fs, gs, ss, tr, ldt, gdt, idt, cr0, cr2, cr3, cr4, cr8, efer, apic_base, flags, pdptrs }
    }
}

impl VcpuState {
    /// Limits that must hold before anything is applied.
    pub(crate) fn check(&self) -> Result<(), StateError> {
        if self.cpuid.len() > KVM_MAX_CPUID_ENTRIES {
            return Err(StateError::Limit("CPUID entries"));
        }
        if self.msrs.len() > MSRS_MAX {
            return Err(StateError::Limit("MSRs"));
        }
        Ok(())
    }
}

/// Reads everything; the vCPU is parked.
pub(super) fn save(parts: &mut VcpuParts, shared: &VcpuShared) -> Result<VcpuState, MachineError> {
    let VcpuParts { fd, xsave, msrs, user, .. } = parts;
    if let Some(user) = user {
        user.settle(fd, shared)?;
    }
    xsave.read(fd).map_err(MachineError::sys("read vector state"))?;
    let khz = fd.get_tsc_khz().map_err(MachineError::kvm("read the TSC frequency"))?;
    // The MP state first: reading it lets KVM take in a pending INIT or SIPI, which changes the rest.
    let (lapic, mp_state) = if let Some(user) = user {
        user.save()
    } else {
        let mp_state = fd.get_mp_state().map_err(MachineError::kvm("read the MP state"))?;
        (fd.get_lapic().map_err(MachineError::kvm("read the LAPIC"))?, mp_state)
    };
    let cpuid = fd.get_cpuid2(KVM_MAX_CPUID_ENTRIES).map_err(MachineError::kvm("read CPUID"))?;
    Ok(VcpuState {
        cpuid: cpuid.as_slice().to_vec(),
        mp_state,
        registers: fd.get_regs().map_err(MachineError::kvm("read registers"))?,
        system: get_sregs2(fd).map_err(MachineError::sys("read system registers"))?.into(),
        xcrs: fd.get_xcrs().map_err(MachineError::kvm("read XCRs"))?,
        xsave: xsave.words().to_vec(),
        debug: fd.get_debug_regs().map_err(MachineError::kvm("read debug registers"))?,
        lapic,
        events: fd.get_vcpu_events().map_err(MachineError::kvm("read pending events"))?,
        msrs: msrs.read(fd)?,
        tsc: TscState { khz, offset: tsc_offset(fd).ok() },
    })
}

/// Sets everything; the vCPU never ran.
pub(super) fn restore(parts: &mut VcpuParts, state: VcpuState, shift: &TscShift) -> Result<(), MachineError> {
    let VcpuState { cpuid, registers, system, xcrs, xsave, debug, lapic, events, mp_state, msrs, tsc } = state;
    let VcpuParts { id, fd, xsave: area, user, .. } = parts;
    restore_cpuid(fd, &cpuid)?;
    set_sregs2(fd, &system.into()).map_err(MachineError::sys("set system registers"))?;
    fd.set_xcrs(&xcrs).map_err(MachineError::kvm("set XCRs"))?;
    restore_xsave(area, &xsave)?;
    area.write(fd).map_err(MachineError::sys("set vector state"))?;
    fd.set_regs(&registers).map_err(MachineError::kvm("set registers"))?;
    fd.set_debug_regs(&debug).map_err(MachineError::kvm("set debug registers"))?;
    let tsc_value = msrs.iter().find(|(msr, _)| *msr == IA32_TSC).map_or(0, |(_, value)| *value);
    restore_tsc(fd, *id, tsc, tsc_value, shift)?;
    let (late, early): (Vec<_>, Vec<_>) =
        msrs.into_iter().filter(|(msr, _)| *msr != IA32_TSC).partition(|(msr, _)| *msr == IA32_TSC_DEADLINE);
    msrs::write(fd, *id, &early)?;
    if user.is_none() {
        fd.set_lapic(&lapic).map_err(MachineError::kvm("set the LAPIC"))?;
    }
    msrs::write(fd, *id, &late)?;
    fd.set_vcpu_events(&events).map_err(MachineError::kvm("set pending events"))?;
    match user {
        Some(user) => user.restore(fd, &lapic, mp_state, &registers)?,
        None => fd.set_mp_state(mp_state).map_err(MachineError::kvm("set the MP state"))?,
    }
    // Tells a guest with kvmclock that it was stopped, so that its watchdogs do not blame it; others refuse.
    let _ = fd.kvmclock_ctrl();
    Ok(())
}

/// A machine prepared on a host like the source's has the right CPUID already: setting it again would cost more than
/// all the rest.
fn restore_cpuid(fd: &VcpuFd, wanted: &[kvm_cpuid_entry2]) -> Result<(), MachineError> {
    let current = fd.get_cpuid2(KVM_MAX_CPUID_ENTRIES).map_err(MachineError::kvm("read CPUID"))?;
    if current.as_slice() == wanted {
        return Ok(());
    }
    let wanted = CpuId::from_entries(wanted).map_err(|_| StateError::Limit("CPUID entries"))?;
    fd.set_cpuid2(&wanted).map_err(MachineError::kvm("set CPUID"))
}

fn restore_xsave(area: &mut vmotion_sys::kvm::XsaveArea, saved: &[u64]) -> Result<(), MachineError> {
    let target = area.words_mut();
    let (common, beyond) = saved.split_at(saved.len().min(target.len()));
    if beyond.iter().any(|word| *word != 0) {
        return Err(StateError::Mismatch("vector state is larger than this host's".to_owned()).into());
    }
    target.fill(0);
    target[..common.len()].copy_from_slice(common);
    Ok(())
}

fn has_tsc_offset(fd: &VcpuFd) -> bool {
    tsc_offset(fd).is_ok()
}

/// Without hardware virtualisation (kvm-pvm) KVM takes an offset and keeps its own: a guest's `rdtsc` is the processor's.
fn check_offset(fd: &VcpuFd, id: u8, wanted: u64) -> Result<(), MachineError> {
    let found = tsc_offset(fd).map_err(MachineError::sys("read a TSC's offset"))?;
    let khz = fd.get_tsc_khz().map_err(MachineError::kvm("read the TSC frequency"))?;
    // What is less than a millisecond was measured between parts on one host, which have one TSC.
    match wanted.wrapping_sub(found).cast_signed().unsigned_abs() / u64::from(khz.max(1)) {
        0 => Ok(()),
        apart_ms => Err(MachineError::HostTsc { vcpu: id, apart_ms }),
    }
}

fn restore_tsc(fd: &VcpuFd, id: u8, tsc: TscState, value: u64, shift: &TscShift) -> Result<(), MachineError> {
    let TscState { khz, offset } = tsc;
    if fd.get_tsc_khz().map_err(MachineError::kvm("read the TSC frequency"))? != khz {
        fd.set_tsc_khz(khz).map_err(MachineError::kvm("set the TSC frequency"))?;
    }
    let Some(offset) = offset.filter(|_| !shift.is_exact() || has_tsc_offset(fd)) else {
        if shift.is_exact() {
            let reason = io::Error::other("this host cannot set a TSC's offset");
            return Err(MachineError::sys("keep the TSCs of a machine's parts in step")(reason));
        }
        return msrs::write(fd, id, &[(IA32_TSC, shift.target_of_value(value, khz))]);
    };
    let target = shift.target(offset, khz);
    if set_tsc_offset(fd, target.offset).is_ok() {
        return if shift.is_exact() { check_offset(fd, id, target.offset) } else { Ok(()) };
    }
    // A host without the attribute: by value, and a little late.
    msrs::write(fd, id, &[(IA32_TSC, target.value)])
}

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Bit 1 is always set.
const RFLAGS: u64 = 2;

fn flat_segment(selector: u16, kind: u8, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_: kind,
        present: 1,
        dpl: 0,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        ..Default::default()
    }
}

/// Sets the boot processor's registers as the boot protocol wants them.
pub(super) fn boot(fd: &VcpuFd, entry: BootEntry) -> Result<(), MachineError> {
    const CODE: u8 = 0xb;
    const DATA: u8 = 0x3;
    const BUSY_TSS: u8 = 0xb;
    let mut system = fd.get_sregs().map_err(MachineError::kvm("read system registers"))?;
    let long = matches!(entry, BootEntry::Linux64 { .. });
    system.cs = flat_segment(0x10, CODE, long);
    let data = flat_segment(0x18, DATA, false);
    (system.ds, system.es, system.fs, system.gs, system.ss) = (data, data, data, data, data);
    system.tr = kvm_segment { limit: 0x67, selector: 0x20, type_: BUSY_TSS, present: 1, ..Default::default() };
    system.cr0 = CR0_PE | CR0_ET;
    system.cr4 = 0;
    system.efer = 0;
    let mut registers = kvm_regs { rflags: RFLAGS, ..Default::default() };
    match entry {
        BootEntry::Pvh { entry, start_info } => {
            registers.rip = entry;
            registers.rbx = start_info;
        }
        BootEntry::Linux64 { entry, zero_page, page_tables, gdt } => {
            system.gdt.base = gdt;
            system.gdt.limit = 8 * 5 - 1;
            system.cr3 = page_tables;
            system.cr4 = CR4_PAE;
            system.cr0 |= CR0_PG;
            system.efer = EFER_LME | EFER_LMA;
            registers.rip = entry;
            registers.rsi = zero_page;
        }
    }
    fd.set_sregs(&system).map_err(MachineError::kvm("set system registers"))?;
    fd.set_regs(&registers).map_err(MachineError::kvm("set registers"))
}
