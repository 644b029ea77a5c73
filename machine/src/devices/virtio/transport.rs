//! The registers of virtio-mmio version 2 (virtio 1.2, section 4.2.2), and saving and restoring what is behind them.

use super::worker::Shared;
use super::{Backend, QUEUE_SIZE};
use crate::MachineError;
use crate::devices::{Device, DeviceState, failed};
use crate::memory::GuestRam;
use serde::{Deserialize, Serialize};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use virtio_queue::{Queue, QueueState, QueueT};
use vmm_sys_util::eventfd::EventFd;

const VERSION: u16 = 1;

/// "virt".
const MAGIC: u32 = 0x7472_6976;
const TRANSPORT_VERSION: u32 = 2;
/// "VMOT".
const VENDOR: u32 = 0x544f_4d56;
const CONFIG_SPACE: u64 = 0x100;

const STATUS_DRIVER_OK: u32 = 4;
const STATUS_FEATURES_OK: u32 = 8;
const STATUS_NEEDS_RESET: u32 = 0x40;

const FEATURE_INDIRECT: u64 = 1 << 28;
const FEATURE_EVENT_IDX: u64 = 1 << 29;
const FEATURE_VERSION_1: u64 = 1 << 32;
const TRANSPORT_FEATURES: u64 = FEATURE_INDIRECT | FEATURE_EVENT_IDX | FEATURE_VERSION_1;

/// A virtio device as the guest sees it.
pub(crate) struct Transport {
    shared: Arc<Shared>,
    registers: Mutex<Registers>,
    worker: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Registers {
    status: u32,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Saved {
    registers: Registers,
    interrupt_status: u32,
    broken: bool,
    queue: SavedQueue,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SavedQueue {
    max_size: u16,
    next_avail: u16,
    next_used: u16,
    event_idx_enabled: bool,
    size: u16,
    ready: bool,
    desc_table: u64,
    avail_ring: u64,
    used_ring: u64,
}

impl From<QueueState> for SavedQueue {
    fn from(state: QueueState) -> Self {
        let QueueState {
            max_size,
            next_avail,
            next_used,
            event_idx_enabled,
            size,
            ready,
            desc_table,
            avail_ring,
            used_ring,
        } = state;
        Self { max_size, next_avail, next_used, event_idx_enabled, size, ready, desc_table, avail_ring, used_ring }
    }
}

impl From<SavedQueue> for QueueState {
    fn from(saved: SavedQueue) -> Self {
        let SavedQueue {
            max_size,
            next_avail,
            next_used,
            event_idx_enabled,
            size,
            ready,
            desc_table,
            avail_ring,
            used_ring,
        } = saved;
        Self { max_size, next_avail, next_used, event_idx_enabled, size, ready, desc_table, avail_ring, used_ring }
    }
}

/// Half of a 64-bit value, as a pair of 32-bit registers shows it.
fn half(value: u64, select: u32) -> u32 {
    let shifted = match select {
        0 => value,
        1 => value >> 32,
        _ => 0,
    };
    u32::try_from(shifted & 0xffff_ffff).unwrap_or(0)
}

impl Transport {
    /// Starts the device's worker; it does nothing until [`Device::resume`]. `notify` is what the guest's notifications
    /// reach through an ioeventfd, `irq` raises the interrupt.
    pub(crate) fn start(
        backend: Box<dyn Backend>,
        ram: Arc<GuestRam>,
        notify: EventFd,
        irq: EventFd,
    ) -> Result<Self, MachineError> {
        let name = backend.name();
        let queue = Queue::new(QUEUE_SIZE).map_err(|error| failed(&name, error))?;
        let shared = Arc::new(Shared::new(backend, ram, notify, irq, queue));
        let for_worker = Arc::clone(&shared);
        let worker = std::thread::Builder::new().name(name).spawn(move || for_worker.work());
        let worker = Mutex::new(Some(worker.map_err(MachineError::Thread)?));
        Ok(Self { shared, registers: Mutex::default(), worker })
    }

    fn registers(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn features(&self) -> u64 {
        self.shared.backend.features() | TRANSPORT_FEATURES
    }

    fn read_register(&self, offset: u64) -> u32 {
        let registers = *self.registers();
        let first_queue = registers.queue_select == 0;
        match offset {
            0x00 => MAGIC,
            0x04 => TRANSPORT_VERSION,
            0x08 => self.shared.backend.device_id(),
            0x0c => VENDOR,
            0x10 => half(self.features(), registers.device_features_select),
            0x34 if first_queue => u32::from(QUEUE_SIZE),
            0x44 if first_queue => u32::from(self.shared.queue().ready()),
            0x60 => self.shared.interrupt_status.load(Ordering::SeqCst),
            0x70 => {
                let broken = self.shared.broken.load(Ordering::SeqCst);
                registers.status | if broken { STATUS_NEEDS_RESET } else { 0 }
            }
            // Shared memory regions: there are none, which is said by a length of all ones.
            0xb0..=0xbc => u32::MAX,
            // The configuration never changes.
            0xfc => 0,
            _ => 0,
        }
    }

    fn write_register(&self, offset: u64, value: u32) {
        let mut registers = self.registers();
        let first_queue = registers.queue_select == 0;
        let setting_up = registers.status & STATUS_DRIVER_OK == 0;
        match offset {
            0x14 => registers.device_features_select = value,
            0x20 if registers.status & STATUS_FEATURES_OK == 0 => {
                let (value, kept) = match registers.driver_features_select {
                    0 => (u64::from(value), !0xffff_ffff),
                    1 => (u64::from(value) << 32, 0xffff_ffff),
                    _ => return,
                };
                registers.driver_features = registers.driver_features & kept | value;
            }
            0x24 => registers.driver_features_select = value,
            0x30 => registers.queue_select = value,
            0x64 => drop(self.shared.interrupt_status.fetch_and(!value, Ordering::SeqCst)),
            0x70 => self.write_status(&mut registers, value),
            // Only reached where the ioeventfd is not.
            0x50 => self.shared.wake(),
            0x38..=0xa4 if first_queue && setting_up => self.write_queue(offset, value),
            _ => {}
        }
    }

    fn write_queue(&self, offset: u64, value: u32) {
        let mut queue = self.shared.queue();
        match offset {
            0x38 => queue.set_size(u16::try_from(value).unwrap_or(0)),
            0x44 => queue.set_ready(value == 1),
            0x80 => queue.set_desc_table_address(Some(value), None),
            0x84 => queue.set_desc_table_address(None, Some(value)),
            0x90 => queue.set_avail_ring_address(Some(value), None),
            0x94 => queue.set_avail_ring_address(None, Some(value)),
            0xa0 => queue.set_used_ring_address(Some(value), None),
            0xa4 => queue.set_used_ring_address(None, Some(value)),
            _ => {}
        }
    }

    fn write_status(&self, registers: &mut Registers, value: u32) {
        if value == 0 {
            self.reset(registers);
            return;
        }
        let mut value = value & 0xff & !STATUS_NEEDS_RESET;
        let new = value & !registers.status;
        let accepted = registers.driver_features;
        if new & STATUS_FEATURES_OK != 0 && (accepted & !self.features() != 0 || accepted & FEATURE_VERSION_1 == 0) {
            // The driver reads the bit back to see that we do not agree.
            value &= !STATUS_FEATURES_OK;
        }
        registers.status = value;
        if new & STATUS_DRIVER_OK != 0 && value & STATUS_FEATURES_OK != 0 {
            let mut queue = self.shared.queue();
            queue.set_event_idx(accepted & FEATURE_EVENT_IDX != 0);
            let valid = queue.is_valid(self.shared.ram.devices());
            drop(queue);
            if valid {
                self.shared.live.store(true, Ordering::SeqCst);
                self.shared.wake();
            } else {
                self.shared.give_up(&"its queue is not valid");
            }
        }
    }

    fn reset(&self, registers: &mut Registers) {
        self.shared.live.store(false, Ordering::SeqCst);
        // Waits for the request being performed.
        self.shared.queue().reset();
        self.shared.broken.store(false, Ordering::SeqCst);
        self.shared.interrupt_status.store(0, Ordering::SeqCst);
        *registers = Registers::default();
    }
}

impl Device for Transport {
    fn name(&self) -> String {
        self.shared.backend.name()
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = offset.checked_sub(CONFIG_SPACE) {
            let config = self.shared.backend.config();
            let from = usize::try_from(offset).unwrap_or(usize::MAX).min(config.len());
            data.iter_mut().zip(&config[from..]).for_each(|(byte, value)| *byte = *value);
        } else if let Ok(word) = <&mut [u8; 4]>::try_from(data) {
            // Registers are 32 bits wide; any other access reads as zero.
            *word = self.read_register(offset).to_le_bytes();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Ok(word) = data.try_into()
            && offset < CONFIG_SPACE
        {
            self.write_register(offset, u32::from_le_bytes(word));
        }
    }

    fn quiesce(&self) {
        self.shared.running.store(false, Ordering::SeqCst);
        // Whoever works holds the lock for one request and looks at the flag before the next.
        drop(self.shared.queue());
        // Idle now, the worker brings writes to stable storage, so that whoever settles finds it done or under way.
        self.shared.wake();
    }

    fn resume(&self) {
        self.shared.running.store(true, Ordering::SeqCst);
        // An interrupt or a notification may have been under way when the state was saved; a spurious one harms nobody.
        self.shared.raise_pending();
        self.shared.wake();
    }

    fn settle(&self) -> Result<(), MachineError> {
        self.shared.backend.settle()
    }

    fn save(&self) -> Result<DeviceState, MachineError> {
        let saved = Saved {
            registers: *self.registers(),
            interrupt_status: self.shared.interrupt_status.load(Ordering::SeqCst),
            broken: self.shared.broken.load(Ordering::SeqCst),
            queue: self.shared.queue().state().into(),
        };
        DeviceState::encode(&self.name(), VERSION, &saved)
    }

    fn restore(&self, state: &DeviceState) -> Result<(), MachineError> {
        let name = self.name();
        let Saved { registers, interrupt_status, broken, queue } = state.decode(&name, VERSION)?;
        if registers.driver_features & !self.features() != 0 {
            return Err(failed(&name, "its driver uses features this device does not have"));
        }
        if queue.max_size != QUEUE_SIZE {
            return Err(failed(&name, format!("its queue has {} entries, this one {QUEUE_SIZE}", queue.max_size)));
        }
        let queue = Queue::try_from(QueueState::from(queue)).map_err(|error| failed(&name, error))?;
        let live = registers.status & STATUS_DRIVER_OK != 0 && registers.status & STATUS_FEATURES_OK != 0 && !broken;
        if live && !queue.is_valid(self.shared.ram.devices()) {
            return Err(failed(&name, "its queue is not within guest memory"));
        }
        *self.shared.queue() = queue;
        *self.registers() = registers;
        self.shared.interrupt_status.store(interrupt_status, Ordering::SeqCst);
        self.shared.broken.store(broken, Ordering::SeqCst);
        self.shared.live.store(live, Ordering::SeqCst);
        self.shared.backend.forget_cache();
        Ok(())
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        self.shared.end.store(true, Ordering::SeqCst);
        self.shared.wake();
        if let Some(worker) = self.worker.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // A worker that panicked has printed why.
            let _ = worker.join();
        }
    }
}
