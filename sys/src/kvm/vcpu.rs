//! vCPU state that `kvm-ioctls` cannot reach safely or at all.

use super::{Direction, borrow, ioctl_pointer, kvm_ioctl};
use kvm_bindings::{
    KVM_CAP_XSAVE2, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, kvm_device_attr, kvm_interrupt, kvm_sregs2, kvm_xsave,
};
use std::ffi::c_ulong;
use std::io;
use std::os::fd::AsRawFd;

const KVM_CHECK_EXTENSION: c_ulong = kvm_ioctl(Direction::None, 0x03, 0);
const KVM_GET_SREGS2: c_ulong = kvm_ioctl(Direction::Read, 0xcc, size_of::<kvm_sregs2>());
const KVM_SET_SREGS2: c_ulong = kvm_ioctl(Direction::Write, 0xcd, size_of::<kvm_sregs2>());
const KVM_GET_XSAVE: c_ulong = kvm_ioctl(Direction::Read, 0xa4, XSAVE_BYTES_MIN);
const KVM_GET_XSAVE2: c_ulong = kvm_ioctl(Direction::Read, 0xcf, XSAVE_BYTES_MIN);
const KVM_SET_XSAVE: c_ulong = kvm_ioctl(Direction::Write, 0xa5, XSAVE_BYTES_MIN);
const KVM_SET_DEVICE_ATTR: c_ulong = kvm_ioctl(Direction::Write, 0xe1, size_of::<kvm_device_attr>());
const KVM_GET_DEVICE_ATTR: c_ulong = kvm_ioctl(Direction::Write, 0xe2, size_of::<kvm_device_attr>());
const KVM_INTERRUPT: c_ulong = kvm_ioctl(Direction::Write, 0x86, size_of::<kvm_interrupt>());
const _: () = assert!(KVM_CHECK_EXTENSION == 0xae03);
const _: () = assert!(KVM_GET_SREGS2 == 0x8140_aecc);
const _: () = assert!(KVM_SET_SREGS2 == 0x4140_aecd);
const _: () = assert!(KVM_GET_XSAVE == 0x9000_aea4);
const _: () = assert!(KVM_GET_XSAVE2 == 0x9000_aecf);
const _: () = assert!(KVM_SET_XSAVE == 0x5000_aea5);
const _: () = assert!(KVM_SET_DEVICE_ATTR == 0x4018_aee1);
const _: () = assert!(KVM_GET_DEVICE_ATTR == 0x4018_aee2);
const _: () = assert!(KVM_INTERRUPT == 0x4004_ae86);

/// Least bytes of an XSAVE area at KVM's interface.
const XSAVE_BYTES_MIN: usize = 4096;
const _: () = assert!(size_of::<kvm_xsave>() == XSAVE_BYTES_MIN);

/// Segment, control and table registers with the PAE page-directory pointers.
///
/// # Errors
/// What the kernel says (`ENOTTY`: older than 5.14).
pub fn get_sregs2(vcpu: &impl AsRawFd) -> io::Result<kvm_sregs2> {
    let mut registers = kvm_sregs2::default();
    // SAFETY: the kernel fills one `kvm_sregs2`.
    unsafe { ioctl_pointer(borrow(vcpu), KVM_GET_SREGS2, &raw mut registers) }?;
    Ok(registers)
}

/// Sets what [`get_sregs2`] reads.
///
/// # Errors
/// What the kernel says (`EINVAL`: the values contradict each other).
pub fn set_sregs2(vcpu: &impl AsRawFd, registers: &kvm_sregs2) -> io::Result<()> {
    let mut registers = *registers;
    // SAFETY: the kernel reads one `kvm_sregs2`.
    unsafe { ioctl_pointer(borrow(vcpu), KVM_SET_SREGS2, &raw mut registers) }.map(drop)
}

/// Makes the vCPU take interrupt `vector` when it is entered next. Only for machines without an interrupt controller in KVM, and only when
/// the guest takes interrupts then.
///
/// # Errors
/// What the kernel says (`ENXIO`: the machine's interrupt controller is KVM's).
pub fn queue_interrupt(vcpu: &impl AsRawFd, vector: u8) -> io::Result<()> {
    let mut interrupt = kvm_interrupt { irq: u32::from(vector) };
    // SAFETY: the kernel reads one `kvm_interrupt`.
    unsafe { ioctl_pointer(borrow(vcpu), KVM_INTERRUPT, &raw mut interrupt) }.map(drop)
}

/// FPU and vector state of a vCPU, in a buffer as large as the machine's KVM may write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct XsaveArea {
    words: Vec<u64>,
}

impl XsaveArea {
    /// A zeroed area for vCPUs of `vm`: of the size `KVM_CAP_XSAVE2` reports, or 4096 bytes on kernels before 5.17.
    #[must_use]
    pub fn for_machine(vm: &impl AsRawFd) -> Self {
        // SAFETY: the ioctl takes a number.
        let reported = unsafe { libc::ioctl(vm.as_raw_fd(), KVM_CHECK_EXTENSION, c_ulong::from(KVM_CAP_XSAVE2)) };
        let bytes = usize::try_from(reported).unwrap_or(0).max(XSAVE_BYTES_MIN);
        Self { words: vec![0; bytes.div_ceil(size_of::<u64>())] }
    }

    /// Its length in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        size_of_val(self.words.as_slice())
    }

    /// Its contents.
    #[must_use]
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// Its contents, to be overwritten; the length cannot change.
    pub fn words_mut(&mut self) -> &mut [u64] {
        &mut self.words
    }

    /// Reads the state of `vcpu`, a vCPU of the machine the area was made for.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn read(&mut self, vcpu: &impl AsRawFd) -> io::Result<()> {
        let request = if self.bytes() == XSAVE_BYTES_MIN { KVM_GET_XSAVE } else { KVM_GET_XSAVE2 };
        // SAFETY: the old call writes 4096 bytes, the new one what KVM_CAP_XSAVE2 reported; the area has that length.
        unsafe { ioctl_pointer(borrow(vcpu), request, self.words.as_mut_ptr()) }.map(drop)
    }

    /// Gives the state to `vcpu`, a vCPU of the machine the area was made for.
    ///
    /// # Errors
    /// What the kernel says (`EINVAL`: features this host lacks).
    pub fn write(&self, vcpu: &impl AsRawFd) -> io::Result<()> {
        // SAFETY: the kernel reads as many bytes as KVM_CAP_XSAVE2 reported, which the area has.
        unsafe { ioctl_pointer(borrow(vcpu), KVM_SET_XSAVE, self.words.as_ptr().cast_mut()) }.map(drop)
    }
}

/// What is added to the host's TSC to give the guest's.
///
/// # Errors
/// What the kernel says (`ENXIO`: no such attribute, before 5.16).
pub fn tsc_offset(vcpu: &impl AsRawFd) -> io::Result<u64> {
    let mut offset = 0u64;
    let mut attribute = tsc_offset_attribute(&raw mut offset);
    // SAFETY: the attribute points at one u64, which the kernel fills.
    unsafe { ioctl_pointer(borrow(vcpu), KVM_GET_DEVICE_ATTR, &raw mut attribute) }?;
    Ok(offset)
}

/// Sets what [`tsc_offset`] reads.
///
/// # Errors
/// What the kernel says.
pub fn set_tsc_offset(vcpu: &impl AsRawFd, offset: u64) -> io::Result<()> {
    let mut offset = offset;
    let mut attribute = tsc_offset_attribute(&raw mut offset);
    // SAFETY: the attribute points at one u64, which the kernel reads.
    unsafe { ioctl_pointer(borrow(vcpu), KVM_SET_DEVICE_ATTR, &raw mut attribute) }.map(drop)
}

fn tsc_offset_attribute(value: *mut u64) -> kvm_device_attr {
    kvm_device_attr { group: KVM_VCPU_TSC_CTRL, attr: u64::from(KVM_VCPU_TSC_OFFSET), addr: value as u64, flags: 0 }
}
