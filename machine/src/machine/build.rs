//! Putting a machine together. Everything a later restore does not have to do happens here.

use super::{Inner, Phase};
use crate::boot::{self, MmioPlace, map};
use crate::bus::{Bus, Buses};
use crate::console::{Console, ConsoleInput, NoInput};
use crate::devices::virtio::{Backend, Block, Entropy, MMIO_BYTES, NOTIFY_OFFSET, Transport};
use crate::devices::{Device, LegacyPorts, Rtc, SerialPort, ShutdownPorts, ShutdownSink};
use crate::host;
use crate::interrupts::Driver;
use crate::memory::GuestRam;
use crate::part::Elsewhere;
use crate::vcpu::{
    Advance, Command, Exits, MsrPlan, ParkedCount, RunContext, UserSide, Vcpu, VcpuParts, ask_all, cpuid,
};
use crate::vm::{Vm, open_kvm};
use crate::{ConsoleHandle, MachineConfig, MachineError, Part};
use kvm_bindings::CpuId;
use kvm_ioctls::{IoEventAddress, Kvm, NoDatamatch, VcpuFd};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, OnceLock};
use vmm_sys_util::eventfd::EventFd;
use vmotion_dirty_tracking::{DirtyBackend, RingCollector};
use vmotion_model::{InterruptController, MachineSpec, MemoryLayout};

/// Devices, and the buses they sit on.
struct Devices {
    all: Vec<Arc<dyn Device>>,
    buses: Buses,
    input: Arc<dyn ConsoleInput>,
    places: Vec<MmioPlace>,
}

/// Builds everything; no thread runs guest code yet.
pub(super) fn build(config: &MachineConfig) -> Result<Inner, MachineError> {
    let spec = config.spec.clone();
    spec.validate()?;
    vmotion_sys::signal::install_kick_handler().map_err(MachineError::Thread)?;
    let kvm = open_kvm(spec.dirty_source)?;
    let layout = MemoryLayout::for_ram(spec.memory.bytes())?;
    let ram = Arc::new(GuestRam::new(layout, spec.backing)?);
    let interrupts = match spec.interrupts {
        InterruptController::Kernel => None,
        InterruptController::User => Some(Driver::new(spec.cpus, config.part.as_ref())?),
    };
    if config.part.is_some() && interrupts.is_none() {
        return Err(MachineError::NotPartible { what: "interrupts", value: "kernel", hint: "use interrupts user" });
    }
    let vm = Arc::new(Vm::new(&kvm, Arc::clone(&ram), spec.dirty_source, interrupts.clone())?);
    let (console, flusher) = Console::start(&config.console)?;
    let exits = Arc::new(Exits::default());
    let sink: Arc<dyn ShutdownSink> = Arc::clone(&exits) as _;
    let devices = match &config.part {
        Some(Part { devices: false, elsewhere, .. }) => Devices::elsewhere(elsewhere),
        _ => build_devices(&vm, &ram, &spec, &console, &sink, interrupts.as_ref())?,
    };

    let supported = cpuid::supported(&kvm)?;
    let fds = create_vcpus(&kvm, &vm, &supported, config)?;
    let first = fds.first().ok_or(MachineError::VcpuSilent { vcpu: 0 })?;
    // Before anyone sets another frequency: that of the host.
    let host_tsc_khz = first.get_tsc_khz().map_err(MachineError::kvm("read the TSC frequency"))?;
    let msrs = Arc::new(MsrPlan::probe(&kvm, first)?);
    let rings = build_rings(&vm, &fds)?;
    let context = Arc::new(RunContext {
        buses: devices.buses,
        exits,
        parked: ParkedCount::default(),
        advance: Advance::default(),
        rings: rings.clone().map_or_else(OnceLock::new, OnceLock::from),
    });
    let mut vcpus = Vec::with_capacity(fds.len());
    for (id, fd) in (0..spec.cpus).zip(fds) {
        let (msrs, context) = (Arc::clone(&msrs), Arc::clone(&context));
        let user = interrupts.as_ref().map(|driver| UserSide::new(driver, id, &fd)).transpose()?;
        let here = config.part.as_ref().is_none_or(|part| part.vcpus.contains(id));
        vcpus.push(Vcpu::start(VcpuParts { id, fd, msrs, xsave: vm.xsave_area(), context, user, here })?);
    }
    let shared: Vec<_> = vcpus.iter().map(|vcpu| Arc::clone(vcpu.shared())).collect();
    context.exits.set_vcpus(shared.clone());
    if let Some(interrupts) = &interrupts {
        interrupts.controller().set_kick(Box::new(move |vcpu| shared[vcpu].kick()));
        // Last: nothing can fail any more and leave its thread behind.
        interrupts.start()?;
    }
    Ok(Inner {
        phase: Mutex::new(Phase::Prepared),
        fillers: Arc::new(AtomicUsize::new(0)),
        vcpus: Mutex::new(vcpus),
        context,
        devices: devices.all,
        places: devices.places,
        rings,
        cpu: host::cpu_model(&supported, host_tsc_khz),
        vm,
        ram,
        console_handle: ConsoleHandle::new(Arc::clone(&console), devices.input),
        console,
        flusher: Mutex::new(Some(flusher)),
        interrupts,
        is_part: config.part.is_some(),
        spec,
        host_tsc_khz,
    })
}

impl Devices {
    /// Those of a part of a machine that has none.
    fn elsewhere(elsewhere: &Arc<dyn Elsewhere>) -> Self {
        let buses = Buses { elsewhere: Some(Arc::clone(elsewhere)), ..Buses::default() };
        Self { all: Vec::new(), buses, input: Arc::new(NoInput), places: Vec::new() }
    }
}

fn build_devices(
    vm: &Arc<Vm>,
    ram: &Arc<GuestRam>,
    spec: &MachineSpec,
    console: &Arc<Console>,
    sink: &Arc<dyn ShutdownSink>,
    interrupts: Option<&Arc<Driver>>,
) -> Result<Devices, MachineError> {
    let serial = Arc::new(SerialPort::new(vm.interrupt(map::SERIAL_IRQ)?, Arc::clone(console))?);
    let rtc: Arc<dyn Device> = Arc::new(Rtc::new());
    let mut all: Vec<Arc<dyn Device>> = vec![Arc::clone(&serial) as _, Arc::clone(&rtc)];
    let (mut ports, mut memory) = (Bus::default(), Bus::default());
    ports.insert(map::SERIAL_PORT, map::SERIAL_PORTS, Arc::clone(&serial) as _);
    ports.insert(map::RTC_PORT, 2, rtc);
    for (stretches, device) in ShutdownPorts::all(sink) {
        let device: Arc<dyn Device> = Arc::new(device);
        let first = stretches.iter().map(|(port, _)| *port).min().unwrap_or(0);
        for (port, length) in stretches {
            ports.insert_at(*port, *length, port - first, Arc::clone(&device));
        }
        all.push(device);
    }
    if let Some(driver) = interrupts {
        let device: Arc<dyn Device> = Arc::new(LegacyPorts::new(Arc::clone(driver)));
        for (port, length) in LegacyPorts::PORTS {
            ports.insert_at(port, length, port, Arc::clone(&device));
        }
        all.push(device);
    }
    let mut places = Vec::new();
    for (backend, place) in virtio_backends(spec)?.into_iter().zip(map::virtio_places()) {
        let device = connect_virtio(vm, ram, backend, place)?;
        memory.insert(place.address, MMIO_BYTES, Arc::clone(&device));
        all.push(device);
        places.push(place);
    }
    let buses = Buses { ports, memory, elsewhere: None };
    Ok(Devices { all, buses, input: serial, places })
}

/// The machine's virtio devices, in the order of their places: disks first, so that the first is the first the guest finds.
fn virtio_backends(spec: &MachineSpec) -> Result<Vec<Box<dyn Backend>>, MachineError> {
    let mut backends: Vec<Box<dyn Backend>> = Vec::with_capacity(spec.disks.len() + 1);
    for (index, disk) in spec.disks.iter().enumerate() {
        backends.push(Box::new(Block::open(index, disk)?));
    }
    backends.push(Box::new(Entropy::open()?));
    debug_assert!(backends.len() <= map::VIRTIO_IRQS.len(), "spec limits keep devices within their places");
    Ok(backends)
}

fn connect_virtio(
    vm: &Vm,
    ram: &Arc<GuestRam>,
    backend: Box<dyn Backend>,
    place: MmioPlace,
) -> Result<Arc<dyn Device>, MachineError> {
    // Blocking: the worker sleeps in it.
    let notify = EventFd::new(libc::EFD_CLOEXEC).map_err(MachineError::sys("create an eventfd"))?;
    let address = IoEventAddress::Mmio(place.address + NOTIFY_OFFSET);
    vm.fd().register_ioevent(&notify, &address, NoDatamatch).map_err(MachineError::kvm("connect a notification"))?;
    Ok(Arc::new(Transport::start(backend, Arc::clone(ram), notify, vm.interrupt(place.irq)?)?))
}

fn create_vcpus(kvm: &Kvm, vm: &Vm, supported: &CpuId, config: &MachineConfig) -> Result<Vec<VcpuFd>, MachineError> {
    let MachineConfig { spec, part, .. } = config;
    let cpus = spec.cpus;
    let deadline_timer = cpuid::has_deadline_timer(kvm);
    let mut fds = Vec::with_capacity(usize::from(cpus));
    for id in 0..cpus {
        let fd = vm.fd().create_vcpu(u64::from(id)).map_err(MachineError::kvm("create a vCPU"))?;
        let cpuid = cpuid::for_vcpu(supported, deadline_timer, id, cpus);
        let cpuid = match spec.interrupts {
            InterruptController::Kernel => cpuid,
            InterruptController::User => cpuid::without_kernel_lapic(cpuid),
        };
        let cpuid = if part.is_some() { cpuid::without_host_time(cpuid) } else { cpuid };
        fd.set_cpuid2(&cpuid).map_err(MachineError::kvm("set CPUID"))?;
        fds.push(fd);
    }
    Ok(fds)
}

fn build_rings(vm: &Arc<Vm>, fds: &[VcpuFd]) -> Result<Option<Arc<RingCollector>>, MachineError> {
    let mut rings = Vec::with_capacity(fds.len());
    for fd in fds {
        match vm.ring_of(fd)? {
            Some(ring) => rings.push(ring),
            None => return Ok(None),
        }
    }
    Ok(Some(Arc::new(RingCollector::new(vm.duplicate_fd()?, vm.slots().to_vec(), rings))))
}

/// Loads kernel, initrd, command line and tables, and points the first vCPU at the entry.
pub(super) fn load(inner: &Inner) -> Result<(), MachineError> {
    // Where it has no clock of KVM's, which would tell it.
    let tsc_khz = inner.is_part.then_some(inner.host_tsc_khz);
    let entry = boot::load(&inner.ram, &inner.spec, &inner.places, tsc_khz)?;
    let vcpus = inner.vcpus();
    ask_all(vcpus.get(..1).unwrap_or(&[]), |_, answer| Command::Boot(entry, answer))?;
    Ok(())
}
