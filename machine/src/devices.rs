//! Devices: what guests see at ports and MMIO addresses.
//!
//! Rules every device keeps: it saves itself completely or refuses ([`Device::save`] fails by default, so a forgotten device stops
//! a save instead of arriving empty); after [`Device::quiesce`] it touches neither guest memory nor the outside until
//! [`Device::resume`]; and restoring an unknown version is an error, never a guess.

mod legacy;
mod rtc;
mod serial;
mod shutdown;
pub(crate) mod virtio;

pub(crate) use legacy::LegacyPorts;
pub(crate) use rtc::Rtc;
pub(crate) use serial::SerialPort;
pub(crate) use shutdown::{ShutdownPorts, ShutdownSink};

use crate::MachineError;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A device's saved form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeviceState {
    pub(crate) version: u16,
    pub(crate) payload: Vec<u8>,
}

impl DeviceState {
    pub(crate) fn encode<T: Serialize>(device: &str, version: u16, state: &T) -> Result<Self, MachineError> {
        let payload = postcard::to_allocvec(state).map_err(|error| failed(device, error))?;
        Ok(Self { version, payload })
    }

    /// The state inside, when it is of `version` and nothing is left over.
    pub(crate) fn decode<T: DeserializeOwned>(&self, device: &str, version: u16) -> Result<T, MachineError> {
        if self.version != version {
            return Err(failed(device, format!("state version {} is not the supported {version}", self.version)));
        }
        let (state, rest) = postcard::take_from_bytes(&self.payload).map_err(|error| failed(device, error))?;
        if !rest.is_empty() {
            return Err(failed(device, format!("{} bytes of state are left over", rest.len())));
        }
        Ok(state)
    }
}

pub(crate) fn failed(device: &str, reason: impl ToString) -> MachineError {
    MachineError::Device { device: device.to_owned(), reason: reason.to_string() }
}

/// What every device can do. All methods take `&self`: a device is shared by vCPU threads and its own worker.
pub(crate) trait Device: Send + Sync {
    /// Unique within the machine; names its section in the saved state.
    fn name(&self) -> String;

    /// Reads `data.len()` bytes at `offset` from the start of the device's range.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// Writes `data` at `offset` from the start of the device's range.
    fn write(&self, offset: u64, data: &[u8]);

    /// Stops touching guest memory and the outside; requests in flight are finished or stay in the guest's queue.
    fn quiesce(&self) {}

    /// Goes on after [`Self::quiesce`], or starts after [`Self::restore`].
    fn resume(&self) {}

    /// Makes what the guest was told is done visible outside this host. May be called while it runs.
    fn settle(&self) -> Result<(), MachineError> {
        Ok(())
    }

    /// The complete state; only called while quiesced.
    fn save(&self) -> Result<DeviceState, MachineError> {
        Err(failed(&self.name(), "it cannot be saved"))
    }

    /// Takes over `state`; only called before anything ran.
    fn restore(&self, state: &DeviceState) -> Result<(), MachineError> {
        let _ = state;
        Err(failed(&self.name(), "it cannot be restored"))
    }
}
