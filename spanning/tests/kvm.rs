//! Real vCPUs: virtual machines of KVM on two hosts run one program on one counter, and the page with the program is shared too. What
//! faults is KVM on their behalf.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "in a test a panic is the report")]

mod common;

use common::{Cluster, Guest, Options, Vcpu, relaxed, skipped, watched};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit};
use std::sync::atomic::Ordering;

const CODE_PAGE: u64 = 1;
const COUNTER_PAGE: u64 = 3;
/// How often each vCPU adds one; fits 16 bits.
const INCREMENTS: u16 = 60_000;
/// Times that each vCPU runs the program.
const RUNS: u64 = 10;

/// `mov cx, INCREMENTS; again: lock inc dword [0x3000]; loop again; hlt`, in real mode.
fn program() -> [u8; 16] {
    let [low, high] = INCREMENTS.to_le_bytes();
    [0xb9, low, high, 0xf0, 0x66, 0xff, 0x06, 0x00, 0x30, 0xe2, 0xf8, 0xf4, 0, 0, 0, 0]
}

fn run(kvm: &Kvm, guest: &Guest) {
    let machine = kvm.create_vm().unwrap();
    let (address, pages) = guest.mapped_at();
    let region = kvm_userspace_memory_region {
        slot: 0,
        guest_phys_addr: 0,
        memory_size: pages * 4096,
        userspace_addr: address as u64,
        flags: 0,
    };
    // SAFETY: the mapping outlives the machine, and nobody has a reference into it.
    unsafe { machine.set_user_memory_region(region) }.unwrap();
    machine.set_tss_address(0xfffb_d000).unwrap();
    let mut vcpu = machine.create_vcpu(0).unwrap();
    let mut sregs = vcpu.get_sregs().unwrap();
    for segment in [&mut sregs.cs, &mut sregs.ds, &mut sregs.es, &mut sregs.ss] {
        (segment.base, segment.selector) = (0, 0);
    }
    vcpu.set_sregs(&sregs).unwrap();
    for _ in 0..RUNS {
        let mut regs = vcpu.get_regs().unwrap();
        (regs.rip, regs.rflags) = (CODE_PAGE * 4096, 2);
        vcpu.set_regs(&regs).unwrap();
        loop {
            match vcpu.run() {
                Ok(VcpuExit::Hlt) => break,
                Ok(VcpuExit::Intr) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn vcpus_of_kvm_on_two_hosts_lose_no_increment() {
    if skipped("vcpus_of_kvm_on_two_hosts_lose_no_increment") {
        return;
    }
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) => return println!("SKIPPED vcpus_of_kvm_on_two_hosts_lose_no_increment: /dev/kvm: {error}"),
    };
    watched(move || {
        let cluster = Cluster::new(&Options { hosts: 2, ..Options::default() });
        for (word, bytes) in program().as_chunks::<8>().0.iter().enumerate() {
            cluster.guests[0].word(CODE_PAGE, word).store(u64::from_le_bytes(*bytes), Ordering::Relaxed);
        }
        let vcpu = |host: usize| {
            let kvm = &kvm;
            (host, Box::new(move |guest: &Guest| run(kvm, guest)) as Vcpu<'_, ()>)
        };
        cluster.run((0..2).map(vcpu).collect());
        let stats = [cluster.stats(0), cluster.stats(1)];
        for guest in &cluster.guests {
            assert_eq!(relaxed(guest.word(COUNTER_PAGE, 0)), 2 * RUNS * u64::from(INCREMENTS));
        }
        println!("{:?}", stats.map(|stats| stats.counts));
        cluster.assert_no_misfits();
    });
}
