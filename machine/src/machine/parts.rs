//! What a part of a machine does for the others: takes interrupts, has its devices accessed, and gives and takes vCPUs.
//!
//! ```text
//!   here ── release_vcpu: parked, saved ──▶ its state ──▶ adopt_vcpu at the other part: Arrived ── run ──▶ there
//!                                                     └─▶ or here again
//! ```
//! A vCPU is in one place: who has released it has nothing left of it, and of those who have its state only one may run it. Who that is is
//! decided elsewhere, between [`Machine::adopt_vcpu`], which may fail, and [`Arrived::run`], which does not.

use super::{ExitReason, Inner, Machine, Phase};
use crate::MachineError;
use crate::clock::TscShift;
use crate::devices::ShutdownSink;
use crate::interrupts::{Addressing, Driver, Message};
use crate::part::{Space, VcpuSet};
use crate::state::{SECTION_VERSION, SectionReader, SectionWriter, vcpu_section};
use crate::vcpu::{Command, Vcpu, VcpuState, ask_all};
use std::slice;
use std::sync::Arc;
use std::time::{Duration, Instant};

impl Inner {
    /// What only a part has.
    fn driver(&self, action: &'static str) -> Result<&Arc<Driver>, MachineError> {
        let driver = self.interrupts.as_ref().filter(|_| self.is_part);
        driver.ok_or(MachineError::WrongState { state: "all on one host", action })
    }

    fn has(&self, vcpu: u8) -> bool {
        vcpu < self.spec.cpus
    }
}

fn one<'a>(vcpus: &'a [Vcpu], vcpu: u8, here: bool, action: &'static str) -> Result<&'a Vcpu, MachineError> {
    let wrong = |place| MachineError::WrongVcpu { vcpu, place, action };
    let found = vcpus.get(usize::from(vcpu)).ok_or_else(|| wrong("none of this machine's"))?;
    if found.shared().is_here() == here { Ok(found) } else { Err(wrong(if here { "elsewhere" } else { "here" })) }
}

impl Machine {
    /// Makes a part without contents ready: its memory and its vCPUs come from the others.
    ///
    /// # Errors
    /// [`MachineError::WrongState`] when it is not a part, or has contents.
    pub fn stand_by(&self) -> Result<(), MachineError> {
        let action = "stand by";
        self.inner.driver(action)?;
        let mut phase = self.inner.phase();
        if *phase != Phase::Prepared {
            return Err(MachineError::WrongState { state: phase.name(), action });
        }
        self.inner.ram.decline_huge_pages();
        *phase = Phase::Ready;
        Ok(())
    }

    /// The vCPUs that are here.
    #[must_use]
    pub fn vcpus_here(&self) -> VcpuSet {
        let vcpus = self.inner.vcpus();
        let here = (0u8..).zip(&*vcpus).filter(|(_, vcpu)| vcpu.shared().is_here());
        here.map(|(id, _)| id).collect()
    }

    /// The threads of all vCPUs, as this process's PID namespace names them, and the vCPU of each.
    #[must_use]
    pub fn vcpu_threads(&self) -> Vec<(u32, u8)> {
        let vcpus = self.inner.vcpus();
        (0u8..).zip(&*vcpus).filter_map(|(id, vcpu)| Some((vcpu.shared().thread()?, id))).collect()
    }

    /// An interrupt for `vcpu` comes from another part. If the vCPU has gone on, it is sent after it. Never blocks.
    pub fn interrupt(&self, vcpu: u8, message: Message) {
        if let Some(driver) = self.inner.interrupts.as_ref().filter(|_| self.inner.has(vcpu)) {
            driver.controller().arrive(usize::from(vcpu), message);
        }
    }

    /// Another part says what interrupts find `vcpu` by. Never blocks.
    pub fn set_addressing(&self, vcpu: u8, addressing: Addressing) {
        if let Some(driver) = self.inner.interrupts.as_ref().filter(|_| self.inner.has(vcpu)) {
            driver.controller().set_addressing(usize::from(vcpu), addressing);
        }
    }

    /// A level-triggered interrupt is over in another part. Never blocks.
    pub fn end_of_interrupt(&self, vector: u8) {
        self.inner.interrupts.iter().for_each(|driver| driver.controller().end_of_interrupt(vector));
    }

    /// Carries out a read by a vCPU of another part. A device may touch guest memory: not for a thread that brings pages.
    pub fn read_device(&self, vcpu: u8, space: Space, address: u64, data: &mut [u8]) {
        let controllers = self.inner.interrupts.as_ref().filter(|_| space == Space::Memory);
        if !controllers.is_some_and(|driver| driver.controller().read_io_at(address, data)) {
            self.inner.context.buses.read(vcpu, space, address, data);
        }
    }

    /// Carries out a write by a vCPU of another part; see [`Self::read_device`].
    pub fn write_device(&self, vcpu: u8, space: Space, address: u64, data: &[u8]) {
        let controllers = self.inner.interrupts.as_ref().filter(|_| space == Space::Memory);
        if !controllers.is_some_and(|driver| driver.controller().write_io_at(address, data)) {
            self.inner.context.buses.write(vcpu, space, address, data);
        }
    }

    /// Stops `vcpu`, which runs here no more, and gives its state. Interrupts that come for it are sent after it from now on.
    ///
    /// # Errors
    /// [`MachineError::WrongVcpu`] when it is not here; [`MachineError::VcpuSilent`] and others when it cannot be stopped or saved: it runs
    /// on here then.
    pub fn release_vcpu(&self, vcpu: u8) -> Result<Released, MachineError> {
        let action = "give it away";
        let driver = self.inner.driver(action)?;
        // Nobody pauses, resumes or stops the machine meanwhile.
        let phase = self.inner.phase();
        let vcpus = self.inner.vcpus();
        let leaving = one(&vcpus, vcpu, true, action)?;
        let stays = |error| {
            if *phase == Phase::Running {
                self.inner.context.parked.start(&vcpus);
            }
            error
        };
        let begun = Instant::now();
        leaving.shared().request_stop();
        if !self.inner.context.parked.wait_for(leaving.shared(), || leaving.shared().request_stop()) {
            return Err(stays(MachineError::VcpuSilent { vcpu }));
        }
        let stopped = Instant::now();
        let index = usize::from(vcpu);
        // Before it is saved: what arrives now would be in nobody's state.
        driver.controller().leave(index);
        leaving.shared().set_here(false);
        driver.arm(index, None);
        let released = ask_all(slice::from_ref(leaving), |_, answer| Command::Release(answer)).and_then(|states| {
            let mut writer = SectionWriter::default();
            states.iter().try_for_each(|(state, _)| writer.put(&vcpu_section(vcpu), SECTION_VERSION, state))?;
            let tsc_advanced = states.first().map_or(0, |(_, advanced)| *advanced);
            let (stop, save) = (stopped - begun, stopped.elapsed());
            Ok(Released { state: writer.finish(), tsc_advanced, stop, save })
        });
        released.map_err(|error| {
            leaving.shared().set_here(true);
            driver.controller().expect(index);
            driver.controller().come(index);
            stays(error)
        })
    }

    /// From now on interrupts that come for `vcpu` wait for it here. For whoever is about to adopt it, before others hear of that.
    ///
    /// # Errors
    /// [`MachineError::WrongVcpu`] when it is here.
    pub fn expect_vcpu(&self, vcpu: u8) -> Result<(), MachineError> {
        let action = "expect it";
        let driver = self.inner.driver(action)?;
        one(&self.inner.vcpus(), vcpu, false, action)?;
        driver.controller().expect(usize::from(vcpu));
        Ok(())
    }

    /// Takes back [`Self::expect_vcpu`]: what has come for `vcpu` is sent after it. Nothing happens when it is here.
    pub fn forget_vcpu(&self, vcpu: u8) {
        if let Some(driver) = self.inner.interrupts.as_ref().filter(|_| self.inner.has(vcpu)) {
            driver.controller().forget(usize::from(vcpu));
        }
    }

    /// Restores `vcpu` from the `state` that a part gave. `tsc_ahead` is how far that host's TSC was ahead of this one's, in ticks, by what the
    /// vCPU showed there and by this host's time before it was first set forward ([`Self::advance_tsc`]); what it was behind wraps around. In
    /// terms of anchors, which make the machine's time of a host's TSC: this host's first, minus the other's as it is in the vCPU, which is
    /// the other's first plus [`Released::tsc_advanced`].
    ///
    /// # Errors
    /// [`MachineError::WrongVcpu`] when it is here; [`MachineError::HostTsc`] when it would see another time; [`MachineError::State`] when the
    /// state is damaged, or of another vCPU; others when KVM refuses it. It is not here then.
    pub fn adopt_vcpu(&self, vcpu: u8, state: &[u8], tsc_ahead: u64) -> Result<Arrived<'_>, MachineError> {
        let action = "take it over";
        let driver = self.inner.driver(action)?;
        let phase = self.inner.phase();
        if matches!(*phase, Phase::Prepared | Phase::Frozen | Phase::Stopped) {
            return Err(MachineError::WrongState { state: phase.name(), action });
        }
        let mut reader = SectionReader::open(state)?;
        let saved: VcpuState = reader.take(&vcpu_section(vcpu), SECTION_VERSION)?;
        reader.finish()?;
        saved.check()?;
        let vcpus = self.inner.vcpus();
        let coming = one(&vcpus, vcpu, false, action)?;
        let (index, mut saved) = (usize::from(vcpu), Some(Box::new(saved)));
        driver.controller().expect(index);
        let shift = TscShift::between_parts(tsc_ahead, self.inner.host_tsc_khz);
        let restored = ask_all(slice::from_ref(coming), |_, answer| match saved.take() {
            Some(saved) => Command::Restore(saved, shift, answer),
            None => unreachable!("one vCPU is asked once"),
        });
        if let Err(error) = restored {
            driver.controller().leave(index);
            return Err(error);
        }
        Ok(Arrived { machine: self, vcpu, runs: false })
    }

    /// Sets the time that vCPUs here show forward by `ticks` of this host's TSC. Those that run follow before they enter the guest again, and
    /// are made to leave it; those that come later show it too. Never blocks.
    pub fn advance_tsc(&self, ticks: u64) {
        // Others do not take a kick back before they enter the guest.
        if ticks > 0 && self.inner.is_part {
            self.inner.context.advance.add(ticks);
            self.inner.context.exits.kick_all();
        }
    }

    /// The frequency of this host's TSC, in kHz.
    #[must_use]
    pub fn host_tsc_khz(&self) -> u32 {
        self.inner.host_tsc_khz
    }

    /// Ends the guest here for a `reason` that another part has: all vCPUs stop.
    pub fn end(&self, reason: ExitReason) {
        self.inner.context.exits.shut_down(reason);
    }
}

/// A vCPU that was stopped, and is not here any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Released {
    /// Everything of it.
    pub state: Vec<u8>,
    /// How far its TSC was set forward by [`Machine::advance_tsc`] here, in ticks of this host's TSC, all in all.
    pub tsc_advanced: u64,
    /// How long it took to leave the guest.
    pub stop: Duration,
    /// How long it took to save it.
    pub save: Duration,
}

/// A vCPU that was restored and belongs to nobody yet. Dropped, it is not here, and what has come for it is sent after it.
#[derive(Debug)]
#[must_use = "dropping it gives the vCPU up"]
pub struct Arrived<'a> {
    machine: &'a Machine,
    vcpu: u8,
    runs: bool,
}

impl Arrived<'_> {
    /// The vCPU is here from now on, and runs if the machine does: whoever calls this knows that it is nowhere else.
    pub fn run(mut self) {
        self.runs = true;
        let inner = &self.machine.inner;
        let phase = inner.phase();
        let vcpus = inner.vcpus();
        let index = usize::from(self.vcpu);
        // All threads have ended when the machine was stopped meanwhile.
        let Some(arrived) = vcpus.get(index) else { return };
        arrived.shared().set_here(true);
        inner.interrupts.iter().for_each(|driver| driver.controller().come(index));
        if *phase == Phase::Running && inner.context.exits.reason().is_none() {
            inner.context.parked.start(&vcpus);
        }
    }
}

impl Drop for Arrived<'_> {
    fn drop(&mut self) {
        if !self.runs {
            let index = usize::from(self.vcpu);
            self.machine.inner.interrupts.iter().for_each(|driver| driver.controller().leave(index));
        }
    }
}
