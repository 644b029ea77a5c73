//! Saving and restoring everything but memory.

use super::Inner;
use crate::MachineError;
use crate::clock;
use crate::devices::DeviceState;
use crate::state::{
    MachineFacts, ParsedState, SECTION_VERSION, SectionWriter, StateError, device_section, vcpu_section,
};
use crate::vcpu::{Command, ask_all};

impl Inner {
    fn facts(&self) -> MachineFacts {
        MachineFacts { layout: self.ram.layout().clone(), cpus: self.spec.cpus }
    }

    /// The state, while paused. vCPUs save themselves in parallel.
    pub(super) fn save(&self) -> Result<Vec<u8>, MachineError> {
        self.vm.settle_interrupts();
        let vcpus = ask_all(&self.vcpus(), |_, answer| Command::Save(answer))?;
        let mut writer = SectionWriter::default();
        writer.put("machine", SECTION_VERSION, &self.facts())?;
        writer.put("clock", SECTION_VERSION, &clock::save(self.vm.fd(), self.host_tsc_khz)?)?;
        self.vm.save_controllers()?.write(&mut writer)?;
        for (id, vcpu) in (0u8..).zip(&vcpus) {
            writer.put(&vcpu_section(id), SECTION_VERSION, vcpu)?;
        }
        for device in &self.devices {
            let DeviceState { version, payload } = device.save()?;
            writer.put_bytes(&device_section(&device.name()), version, &payload)?;
        }
        Ok(writer.finish())
    }

    /// Parses everything, then applies it: a damaged state changes nothing.
    pub(super) fn restore(&self, state: &[u8]) -> Result<(), MachineError> {
        let ParsedState { facts, clock, controllers, vcpus, devices: mut saved } = ParsedState::parse(state)?;
        self.check_facts(&facts)?;
        self.vm.check_controllers(&controllers)?;
        let mut vcpus: Vec<_> = vcpus.into_iter().map(|vcpu| Some(Box::new(vcpu))).collect();
        let mut devices = Vec::with_capacity(self.devices.len());
        for device in &self.devices {
            let section = device_section(&device.name());
            let (version, payload) = saved.take_bytes(&section)?;
            devices.push(DeviceState { version, payload: payload.to_vec() });
        }
        saved.finish()?;

        self.vm.restore_controllers(controllers)?;
        let shift = clock::restore(self.vm.fd(), &clock, self.host_tsc_khz)?;
        ask_all(&self.vcpus(), |id, answer| match vcpus[id].take() {
            Some(vcpu) => Command::Restore(vcpu, shift, answer),
            None => unreachable!("every vCPU is asked once"),
        })?;
        for (device, state) in self.devices.iter().zip(&devices) {
            device.restore(state)?;
        }
        Ok(())
    }

    fn check_facts(&self, saved: &MachineFacts) -> Result<(), StateError> {
        let MachineFacts { layout, cpus } = saved;
        if *cpus != self.spec.cpus {
            return Err(StateError::Mismatch(format!("it has {cpus} vCPUs, this machine has {}", self.spec.cpus)));
        }
        if layout != self.ram.layout() {
            let (theirs, ours) = (layout.total_bytes(), self.ram.layout().total_bytes());
            return Err(StateError::Mismatch(format!("it has {theirs} bytes of RAM in its layout, this one {ours}")));
        }
        Ok(())
    }
}
