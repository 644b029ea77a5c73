//! The ways out: ports a guest writes to reset or power off its machine.
//!
//! | port | value | outcome | who uses it |
//! |---|---|---|---|
//! | 0x64 | 0xfe | reset | the keyboard controller's reset line: Linux without ACPI |
//! | 0x600 | 0x34 | power off | Cloud Hypervisor's shutdown port |
//! | 0x600 | 0x01 | reset | the same |
//! | 0x604 | 0x2000 | power off | QEMU's ACPI PM1a control, as bare-metal guests use it |
//! | 0xcf9 | bit 2 | reset | the chipset's reset control register |
//!
//! The keyboard controller also answers the few commands that keep Linux's driver from waiting for it.

use super::{Device, DeviceState};
use crate::{ExitReason, MachineError};
use std::sync::Arc;

/// Who is told that the guest wants out.
pub(crate) trait ShutdownSink: Send + Sync {
    fn shut_down(&self, reason: ExitReason);
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ShutdownPort {
    KeyboardController,
    CloudHypervisor,
    QemuPm1a,
    ResetControl,
}

/// One of the ports above.
pub(crate) struct ShutdownPorts {
    port: ShutdownPort,
    sink: Arc<dyn ShutdownSink>,
}

impl ShutdownPorts {
    /// All of them, each with its stretches of ports: the first, and how many.
    pub(crate) fn all(sink: &Arc<dyn ShutdownSink>) -> Vec<(&'static [(u64, u64)], Self)> {
        use ShutdownPort::{CloudHypervisor, KeyboardController, QemuPm1a, ResetControl};
        let places: [(&[_], _); 4] = [
            // Port 0x61 is the timer's.
            (&[(0x60, 1), (0x62, 3)], KeyboardController),
            (&[(0x600, 1)], CloudHypervisor),
            (&[(0x604, 2)], QemuPm1a),
            (&[(0xcf9, 1)], ResetControl),
        ];
        places.into_iter().map(|(ports, port)| (ports, Self { port, sink: Arc::clone(sink) })).collect()
    }
}

impl Device for ShutdownPorts {
    fn name(&self) -> String {
        match self.port {
            ShutdownPort::KeyboardController => "i8042",
            ShutdownPort::CloudHypervisor => "shutdown-0x600",
            ShutdownPort::QemuPm1a => "shutdown-0x604",
            ShutdownPort::ResetControl => "reset-0xcf9",
        }
        .to_owned()
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        // Keyboard data and status: both buffers empty.
        let _ = offset;
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let value = data.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
        let reason = match (self.port, offset, value) {
            (ShutdownPort::KeyboardController, 4, 0xfe) | (ShutdownPort::CloudHypervisor, 0, 1) => ExitReason::Reset,
            (ShutdownPort::ResetControl, 0, value) if value & 4 != 0 => ExitReason::Reset,
            (ShutdownPort::CloudHypervisor, 0, 0x34) | (ShutdownPort::QemuPm1a, 0, 0x2000) => ExitReason::PowerOff,
            _ => return,
        };
        self.sink.shut_down(reason);
    }

    // No registers: the empty payload says that this is known, not forgotten.
    fn save(&self) -> Result<DeviceState, MachineError> {
        DeviceState::encode(&self.name(), 1, &())
    }

    fn restore(&self, state: &DeviceState) -> Result<(), MachineError> {
        state.decode(&self.name(), 1)
    }
}
