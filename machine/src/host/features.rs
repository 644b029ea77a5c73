//! CPUID feature bits by name, so that an operator can read what a host lacks.

use kvm_bindings::CpuId;
use std::collections::BTreeSet;
use vmotion_model::CpuModel;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// One CPUID register full of feature bits. Names in bit order, separated by spaces; `-` is a bit without a name.
struct Word {
    leaf: u32,
    subleaf: u32,
    register: Register,
    names: &'static str,
    /// Bits that are not features of the processor: set by KVM or the operating system.
    ignored: u32,
}

const WORDS: [Word; 9] = [
    Word {
        leaf: 1,
        subleaf: 0,
        register: Register::Edx,
        names: "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - dts acpi mmx fxsr sse sse2 ss ht tm ia64 pbe",
        ignored: 0,
    },
    Word {
        leaf: 1,
        subleaf: 0,
        register: Register::Ecx,
        names: "sse3 pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm - pcid dca sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave osxsave avx f16c rdrand hypervisor",
        // osxsave follows the running kernel, hypervisor is ours.
        ignored: 1 << 27 | 1 << 31,
    },
    Word {
        leaf: 7,
        subleaf: 0,
        register: Register::Ebx,
        names: "fsgsbase tsc_adjust sgx bmi1 hle avx2 fdp_excptn_only smep bmi2 erms invpcid rtm cqm zero_fcs_fds mpx rdt_a avx512f avx512dq rdseed adx smap avx512ifma - clflushopt clwb intel_pt avx512pf avx512er avx512cd sha_ni avx512bw avx512vl",
        ignored: 0,
    },
    Word {
        leaf: 7,
        subleaf: 0,
        register: Register::Ecx,
        names: "prefetchwt1 avx512vbmi umip pku ospke waitpkg avx512_vbmi2 cet_ss gfni vaes vpclmulqdq avx512_vnni avx512_bitalg tme avx512_vpopcntdq - la57 - - - - - rdpid - bus_lock_detect cldemote - movdiri movdir64b enqcmd sgx_lc pks",
        // ospke follows the running kernel.
        ignored: 1 << 4,
    },
    Word {
        leaf: 7,
        subleaf: 0,
        register: Register::Edx,
        names: "- - avx512_4vnniw avx512_4fmaps fsrm uintr - - avx512_vp2intersect srbds_ctrl md_clear rtm_always_abort - tsx_force_abort serialize hybrid tsxldtrk - pconfig arch_lbr cet_ibt - amx_bf16 avx512_fp16 amx_tile amx_int8 ibrs stibp flush_l1d arch_capabilities core_capabilities ssbd",
        ignored: 0,
    },
    Word {
        leaf: 7,
        subleaf: 1,
        register: Register::Eax,
        names: "sha512 sm3 sm4 rao_int avx_vnni avx512_bf16 lass cmpccxadd archperfmonext - fzrm fsrs fsrc - - - - fred lkgs wrmsrns nmi_src amx_fp16 hreset avx_ifma - - lam",
        ignored: 0,
    },
    Word { leaf: 0xd, subleaf: 1, register: Register::Eax, names: "xsaveopt xsavec xgetbv1 xsaves xfd", ignored: 0 },
    Word {
        leaf: 0x8000_0001,
        subleaf: 0,
        register: Register::Ecx,
        names: "lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit wdt - lwp fma4 tce - nodeid_msr - tbm topoext perfctr_core perfctr_nb - - ptsc perfctr_llc mwaitx",
        ignored: 0,
    },
    Word {
        leaf: 0x8000_0001,
        subleaf: 0,
        register: Register::Edx,
        // Bits 0-17 repeat leaf 1 on AMD.
        names: "- - - - - - - - - - - syscall - - - - - - - - nx - mmxext - - fxsr_opt pdpe1gb rdtscp - lm 3dnowext 3dnow",
        ignored: 0x0183_f7ff,
    },
];

impl Register {
    const fn name(self) -> &'static str {
        match self {
            Self::Eax => "eax",
            Self::Ebx => "ebx",
            Self::Ecx => "ecx",
            Self::Edx => "edx",
        }
    }
}

fn register(cpuid: &CpuId, leaf: u32, subleaf: u32, register: Register) -> u32 {
    let entry = cpuid.as_slice().iter().find(|entry| entry.function == leaf && entry.index == subleaf);
    entry.map_or(0, |entry| match register {
        Register::Eax => entry.eax,
        Register::Ebx => entry.ebx,
        Register::Ecx => entry.ecx,
        Register::Edx => entry.edx,
    })
}

fn vendor(cpuid: &CpuId) -> String {
    let parts = [Register::Ebx, Register::Edx, Register::Ecx].map(|part| register(cpuid, 0, 0, part).to_le_bytes());
    String::from_utf8_lossy(&parts.concat()).into_owned()
}

fn signature(cpuid: &CpuId) -> String {
    let eax = register(cpuid, 1, 0, Register::Eax);
    let (base_family, base_model) = (eax >> 8 & 0xf, eax >> 4 & 0xf);
    let family = if base_family == 0xf { base_family + (eax >> 20 & 0xff) } else { base_family };
    let model = if matches!(base_family, 6 | 0xf) { base_model + (eax >> 16 & 0xf) * 16 } else { base_model };
    format!("{family}.{model}.{}", eax & 0xf)
}

/// The comparable description of processors that offer `cpuid` to guests.
pub(crate) fn cpu_model(cpuid: &CpuId, tsc_khz: u32) -> CpuModel {
    let mut features = BTreeSet::new();
    for word in &WORDS {
        let bits = register(cpuid, word.leaf, word.subleaf, word.register) & !word.ignored;
        let mut names = word.names.split(' ');
        for bit in 0..32 {
            let name = names.next().unwrap_or("-");
            if bits & 1 << bit == 0 {
                continue;
            }
            let unnamed = || format!("cpuid.{:#x}.{}.{}.{bit}", word.leaf, word.subleaf, word.register.name());
            features.insert(if name == "-" { unnamed() } else { name.to_owned() });
        }
    }
    // XCR0 decides which vector state a guest may enable: a target without a component refuses the XSAVE area.
    let components = register(cpuid, 0xd, 0, Register::Eax);
    features.extend((0..32).filter(|bit| components & 1 << bit != 0).map(|bit| format!("xcr0.{bit}")));
    CpuModel { vendor: vendor(cpuid), signature: signature(cpuid), features, tsc_khz }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_bindings::kvm_cpuid_entry2;

    fn entry(function: u32, index: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = registers;
        kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() }
    }

    #[test]
    fn names_vendor_signature_and_bits() {
        let entries = [
            entry(
                0,
                0,
                [0x16, u32::from_le_bytes(*b"Genu"), u32::from_le_bytes(*b"ntel"), u32::from_le_bytes(*b"ineI")],
            ),
            entry(1, 0, [0x000a_06a4, 0, 1 << 31 | 1 << 16 | 1 << 23, 1]),
            entry(7, 0, [1, 1 << 5, 0, 0]),
        ];
        let model = cpu_model(&CpuId::from_entries(&entries).unwrap(), 2_000_000);
        assert_eq!(model.vendor, "GenuineIntel");
        assert_eq!(model.signature, "6.170.4");
        let features: Vec<_> = model.features.iter().map(String::as_str).collect();
        assert_eq!(features, ["avx2", "cpuid.0x1.0.ecx.16", "fpu", "popcnt"]);
    }
}
