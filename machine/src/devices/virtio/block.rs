//! virtio-blk on a file or a block device.
//!
//! Requests are performed one at a time through a bounded buffer, with positioned reads and writes, so that nothing is
//! in flight once the worker pauses. [`Backend::settle`] brings writes to stable storage, because another host that
//! opens the same disk does not see this one's page cache.

use super::{Backend, BadRequest};
use crate::MachineError;
use crate::memory::DeviceMemory;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use virtio_queue::{DescriptorChain, Reader, Writer};
use vm_memory::bitmap::BS;
use vmotion_model::DiskSpec;

const DEVICE_ID: u32 = 2;
const SECTOR: u64 = 512;

const FEATURE_SEG_MAX: u64 = 1 << 2;
const FEATURE_READ_ONLY: u64 = 1 << 5;
const FEATURE_FLUSH: u64 = 1 << 9;

const REQUEST_READ: u32 = 0;
const REQUEST_WRITE: u32 = 1;
const REQUEST_FLUSH: u32 = 4;
const REQUEST_GET_ID: u32 = 8;

const STATUS_OK: u8 = 0;
const STATUS_IO_ERROR: u8 = 1;
const STATUS_UNSUPPORTED: u8 = 2;

const ID_BYTES: usize = 20;
/// Segments of one request: the queue less header and status.
const SEGMENTS_MAX: u32 = super::QUEUE_SIZE as u32 - 2;
/// Bytes moved between disk and guest at once.
const BUFFER_BYTES: usize = 64 << 10;

type GuestReader<'a> = Reader<'a, BS<'a, crate::memory::DeviceWrites>>;
type GuestWriter<'a> = Writer<'a, BS<'a, crate::memory::DeviceWrites>>;

/// A disk.
pub(crate) struct Block {
    index: usize,
    file: File,
    sectors: u64,
    read_only: bool,
    config: Vec<u8>,
    /// Written since the last flush.
    unsettled: AtomicBool,
    /// Held while flushing: who finds it taken waits for that flush.
    flushing: Mutex<()>,
}

impl Block {
    /// Opens disk number `index`.
    pub(crate) fn open(index: usize, spec: &DiskSpec) -> Result<Self, MachineError> {
        let failed = |source| MachineError::File { role: "Disk", path: spec.path.clone(), source };
        let mut file = File::options().read(true).write(!spec.read_only).open(&spec.path).map_err(failed)?;
        let kind = file.metadata().map_err(failed)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "it is neither a file nor a block device")));
        }
        let sectors = file.seek(SeekFrom::End(0)).map_err(failed)? / SECTOR;
        // capacity, size_max (unused), seg_max.
        let config = [&sectors.to_le_bytes()[..], &[0; 4], &SEGMENTS_MAX.to_le_bytes()].concat();
        let unsettled = AtomicBool::new(false);
        Ok(Self { index, file, sectors, read_only: spec.read_only, config, unsettled, flushing: Mutex::default() })
    }

    /// Byte offset of a request for `bytes` from `sector` on, if it is within the disk.
    fn offset_of(&self, sector: u64, bytes: usize) -> Option<u64> {
        let bytes = bytes as u64;
        let end = sector.checked_add(bytes.div_ceil(SECTOR))?;
        (bytes.is_multiple_of(SECTOR) && end <= self.sectors).then(|| sector * SECTOR)
    }

    fn read(&self, sector: u64, into: &mut GuestWriter<'_>) -> io::Result<()> {
        let mut left = into.available_bytes();
        let mut offset = self.offset_of(sector, left).ok_or(io::ErrorKind::InvalidInput)?;
        let mut buffer = vec![0; left.min(BUFFER_BYTES)];
        while left > 0 {
            let part = &mut buffer[..left.min(BUFFER_BYTES)];
            self.file.read_exact_at(part, offset)?;
            into.write_all(part)?;
            left -= part.len();
            offset += part.len() as u64;
        }
        Ok(())
    }

    fn write(&self, sector: u64, from: &mut GuestReader<'_>) -> io::Result<()> {
        if self.read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        let mut left = from.available_bytes();
        let mut offset = self.offset_of(sector, left).ok_or(io::ErrorKind::InvalidInput)?;
        let mut buffer = vec![0; left.min(BUFFER_BYTES)];
        self.unsettled.store(true, Ordering::SeqCst);
        while left > 0 {
            let part = &mut buffer[..left.min(BUFFER_BYTES)];
            from.read_exact(part)?;
            self.file.write_all_at(part, offset)?;
            left -= part.len();
            offset += part.len() as u64;
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        let _flushing = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        // Cleared first: a write that comes in between sets it again, and is flushed next time.
        if self.unsettled.swap(false, Ordering::SeqCst) {
            self.file.sync_data().inspect_err(|_| self.unsettled.store(true, Ordering::SeqCst))?;
        }
        Ok(())
    }

    fn get_id(&self, into: &mut GuestWriter<'_>) -> io::Result<()> {
        let mut id = [0; ID_BYTES];
        let text = format!("vmotion-disk{}", self.index);
        id.iter_mut().zip(text.bytes()).for_each(|(byte, letter)| *byte = letter);
        let length = into.available_bytes().min(ID_BYTES);
        into.write_all(&id[..length])
    }
}

impl Backend for Block {
    fn name(&self) -> String {
        format!("disk{}", self.index)
    }

    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn features(&self) -> u64 {
        FEATURE_SEG_MAX | FEATURE_FLUSH | if self.read_only { FEATURE_READ_ONLY } else { 0 }
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn perform(&self, memory: &DeviceMemory, chain: DescriptorChain<&DeviceMemory>) -> Result<u32, BadRequest> {
        let bad = |error: &dyn std::fmt::Display| BadRequest(error.to_string());
        let mut reader: GuestReader<'_> = chain.clone().reader(memory).map_err(|error| bad(&error))?;
        let mut writer: GuestWriter<'_> = chain.writer(memory).map_err(|error| bad(&error))?;
        let [kind, _reserved]: [u32; 2] = [read_u32(&mut reader)?, read_u32(&mut reader)?];
        let sector = u64::from(read_u32(&mut reader)?) | u64::from(read_u32(&mut reader)?) << 32;
        // The last byte the device may write is the status.
        let data_bytes = writer.available_bytes().checked_sub(1).ok_or_else(|| bad(&"no room for the status"))?;
        let mut status = writer.split_at(data_bytes).map_err(|error| bad(&error))?;
        let outcome = match kind {
            REQUEST_READ => self.read(sector, &mut writer),
            REQUEST_WRITE => self.write(sector, &mut reader),
            REQUEST_FLUSH => self.flush(),
            REQUEST_GET_ID => self.get_id(&mut writer),
            _ => Err(io::ErrorKind::Unsupported.into()),
        };
        let code = match &outcome {
            Ok(()) => STATUS_OK,
            Err(error) if error.kind() == io::ErrorKind::Unsupported => STATUS_UNSUPPORTED,
            Err(error) => {
                tracing::warn!(%error, device = self.name(), sector, "disk request failed");
                STATUS_IO_ERROR
            }
        };
        status.write_all(&[code]).map_err(|error| bad(&error))?;
        u32::try_from(writer.bytes_written() + 1).map_err(|error| bad(&error))
    }

    fn settle(&self) -> Result<(), MachineError> {
        self.flush().map_err(|error| crate::devices::failed(&self.name(), error))
    }

    fn forget_cache(&self) {
        // Best effort: pages of the file that this host cached while the machine was elsewhere may be old.
        let advice = rustix::fs::Advice::DontNeed;
        let _ = rustix::fs::fadvise(self.file.as_fd(), 0, None, advice);
    }
}

fn read_u32(reader: &mut GuestReader<'_>) -> Result<u32, BadRequest> {
    let mut word = [0; 4];
    reader.read_exact(&mut word).map_err(|_| BadRequest("header is cut off".to_owned()))?;
    Ok(u32::from_le_bytes(word))
}
