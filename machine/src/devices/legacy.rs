//! Ports of the old interrupt controllers and the old timer, where these are in user space.
//!
//! What they are is in `interrupts`, and is saved with the controllers.

use super::{Device, DeviceState};
use crate::MachineError;
use crate::interrupts::{ACKNOWLEDGE_PORT, Driver, PicRegister};
use std::sync::Arc;

const NAME: &str = "legacy-ports";
const VERSION: u16 = 1;
/// Ports of the two PICs, of their levels, and of the PIT.
const PICS: [u64; 2] = [0x20, 0xa0];
const LEVELS: u64 = 0x4d0;
const PIT: u64 = 0x40;
const GATE: u64 = 0x61;

/// All of them. Offsets are the ports themselves.
pub(crate) struct LegacyPorts {
    driver: Arc<Driver>,
}

/// What is behind a port.
enum Behind {
    Pic(PicRegister),
    Pit(u64),
    Gate,
    Nothing,
}

impl LegacyPorts {
    /// Stretches of ports: the first, and how many.
    pub(crate) const PORTS: [(u64, u64); 6] =
        [(PICS[0], 2), (PICS[1], 2), (PIT, 4), (GATE, 1), (LEVELS, 2), (ACKNOWLEDGE_PORT, 2)];

    pub(crate) const fn new(driver: Arc<Driver>) -> Self {
        Self { driver }
    }
}

const fn behind(port: u64) -> Behind {
    match port {
        0x20 => Behind::Pic(PicRegister::Command(0)),
        0x21 => Behind::Pic(PicRegister::Data(0)),
        0xa0 => Behind::Pic(PicRegister::Command(1)),
        0xa1 => Behind::Pic(PicRegister::Data(1)),
        0x4d0 => Behind::Pic(PicRegister::Levels(0)),
        0x4d1 => Behind::Pic(PicRegister::Levels(1)),
        PIT..=0x43 => Behind::Pit(port - PIT),
        GATE => Behind::Gate,
        _ => Behind::Nothing,
    }
}

impl Device for LegacyPorts {
    fn name(&self) -> String {
        NAME.to_owned()
    }

    fn read(&self, port: u64, data: &mut [u8]) {
        if port == ACKNOWLEDGE_PORT {
            let vector = self.driver.controller().acknowledge(0);
            data.iter_mut()
                .zip([vector.unwrap_or(0), u8::from(vector.is_some())])
                .for_each(|(byte, value)| *byte = value);
            return;
        }
        // Registers are a byte each: wider accesses are several.
        for (port, byte) in (port..).zip(data) {
            *byte = match behind(port) {
                Behind::Pic(register) => self.driver.controller().read_pic(register),
                Behind::Pit(offset) => self.driver.with_pit(|pit, now_ns| pit.read(offset, now_ns)),
                Behind::Gate => self.driver.with_pit(|pit, now_ns| pit.read_gate(now_ns)),
                Behind::Nothing => 0xff,
            };
        }
    }

    fn write(&self, port: u64, data: &[u8]) {
        for (port, value) in (port..).zip(data) {
            match behind(port) {
                Behind::Pic(register) => self.driver.controller().write_pic(register, *value),
                Behind::Pit(offset) => self.driver.with_pit(|pit, now_ns| pit.write(offset, *value, now_ns)),
                Behind::Gate => self.driver.with_pit(|pit, now_ns| pit.write_gate(*value, now_ns)),
                Behind::Nothing => {}
            }
        }
    }

    fn quiesce(&self) {
        self.driver.set_pit_running(false);
    }

    fn resume(&self) {
        self.driver.set_pit_running(true);
    }

    // The controllers' sections have it: the empty payload says that this is known, not forgotten.
    fn save(&self) -> Result<DeviceState, MachineError> {
        DeviceState::encode(NAME, VERSION, &())
    }

    fn restore(&self, state: &DeviceState) -> Result<(), MachineError> {
        state.decode(NAME, VERSION)
    }
}
