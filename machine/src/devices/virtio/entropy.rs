//! virtio-rng: random bytes from the host. It has no state of its own.

use super::{Backend, BadRequest};
use crate::MachineError;
use crate::memory::DeviceMemory;
use std::fs::File;
use std::io::{Read, Write};
use std::path::PathBuf;
use virtio_queue::DescriptorChain;

const DEVICE_ID: u32 = 4;
const SOURCE: &str = "/dev/urandom";
/// Most bytes given for one request; the guest asks again for more.
const BYTES_MAX: usize = 4096;

/// The device.
pub(crate) struct Entropy {
    source: File,
}

impl Entropy {
    pub(crate) fn open() -> Result<Self, MachineError> {
        let opened = File::open(SOURCE);
        let source = opened.map_err(|source| MachineError::File {
            role: "Entropy source",
            path: PathBuf::from(SOURCE),
            source,
        })?;
        Ok(Self { source })
    }
}

impl Backend for Entropy {
    fn name(&self) -> String {
        "rng0".to_owned()
    }

    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn features(&self) -> u64 {
        0
    }

    fn config(&self) -> &[u8] {
        &[]
    }

    fn perform(&self, memory: &DeviceMemory, chain: DescriptorChain<&DeviceMemory>) -> Result<u32, BadRequest> {
        let bad = |error: &dyn std::fmt::Display| BadRequest(error.to_string());
        let mut writer = chain.writer(memory).map_err(|error| bad(&error))?;
        let mut bytes = [0; BYTES_MAX];
        let bytes = &mut bytes[..writer.available_bytes().min(BYTES_MAX)];
        (&self.source).read_exact(bytes).map_err(|error| bad(&error))?;
        writer.write_all(bytes).map_err(|error| bad(&error))?;
        u32::try_from(bytes.len()).map_err(|error| bad(&error))
    }
}
