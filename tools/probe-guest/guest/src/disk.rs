//! Virtio block devices: blocks are stamped, written, read back and verified, without ever waiting for the device, so
//! that a stalled disk does not stall the heartbeat.

use core::cell::UnsafeCell;
use core::fmt::Write;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};

use virtio_drivers::device::blk::{BlkReq, BlkResp, SECTOR_SIZE, VirtIOBlk};
use virtio_drivers::transport::mmio::{MmioTransport, VirtIOHeader};
use virtio_drivers::transport::{DeviceType, Transport};
use virtio_drivers::{BufferDirection, Hal, PhysAddr};

use crate::content::{self, Content};
use crate::memory::bytes_of;
use crate::options::{Device, Options};
use crate::pattern::Budget;
use crate::serial::Line;
use crate::stamp::{self, DISK_MAGIC, PAGE_WORDS, Stamp};

const DISKS_MAX: usize = 4;
const BLOCK_BYTES: u64 = 4096;
const BLOCKS_MAX: u64 = 4096;
const POOL_PAGES: usize = DISKS_MAX * 4;
/// How often a request under way is looked at, in µs.
const POLL_US: u64 = 1_000;
/// A request this old is reported, in µs.
const STALL_US: u64 = 5_000_000;

#[repr(C, align(4096))]
struct Pool(UnsafeCell<[[u8; 4096]; POOL_PAGES]>);

// SAFETY: `dma_alloc` hands every page out once, to one owner.
unsafe impl Sync for Pool {}

static POOL: Pool = Pool(UnsafeCell::new([[0; 4096]; POOL_PAGES]));
static POOL_USED: AtomicUsize = AtomicUsize::new(0);

/// Virtual addresses are physical ones, so sharing memory with a device is naming it.
struct IdentityMapped;

// SAFETY: pages come from a zeroed static, aligned, each given out once and never again; addresses are identity
// mapped, and x86 devices are cache coherent.
unsafe impl Hal for IdentityMapped {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let first = POOL_USED.fetch_add(pages, Ordering::Relaxed);
        assert!(first + pages <= POOL_PAGES, "the DMA pool is too small");
        let address = (&raw const POOL).addr() + first * 4096;
        let pointer = POOL.0.get().cast::<u8>().wrapping_add(first * 4096);
        (address as u64, NonNull::new(pointer).expect("statics are not at zero"))
    }

    unsafe fn dma_dealloc(_: PhysAddr, _: NonNull<u8>, _: usize) -> i32 {
        0
    }

    unsafe fn mmio_phys_to_virt(address: PhysAddr, _: usize) -> NonNull<u8> {
        NonNull::new(core::ptr::with_exposed_provenance_mut(address as usize)).expect("no device is at zero")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        buffer.as_ptr().expose_provenance() as u64
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}

#[derive(Clone, Copy)]
enum Request {
    Read,
    Write,
}

struct Pending {
    request: Request,
    token: u16,
    block: u64,
    since_us: u64,
    stall_reported: bool,
}

/// One disk. It lives in a static: the device writes to its buffers, which must not move.
struct Disk {
    driver: VirtIOBlk<IdentityMapped, MmioTransport<'static>>,
    number: usize,
    blocks: u64,
    read_only: bool,
    header: BlkReq,
    response: BlkResp,
    buffer: [u64; PAGE_WORDS],
    /// Generation of each block; zero is not written yet, or unknown after an error.
    ledger: [u32; BLOCKS_MAX as usize],
    generation: u32,
    pending: Option<Pending>,
    budget: Budget,
    operations: u64,
    random: u64,
    reads: u64,
    writes: u64,
    failed: u64,
    corrupt: u64,
}

struct Slots(UnsafeCell<[Option<Disk>; DISKS_MAX]>);

// SAFETY: only `Disks`, of which vCPU 0 makes one, looks inside.
unsafe impl Sync for Slots {}

static SLOTS: Slots = Slots(UnsafeCell::new([const { None }; DISKS_MAX]));

/// All disks.
pub struct Disks {
    disks: &'static mut [Option<Disk>; DISKS_MAX],
    message: Line,
}

impl Disks {
    /// Finds the block devices among the windows the command line named.
    ///
    /// # Safety
    /// To be called once.
    pub unsafe fn find(options: &Options, seed: u64) -> Self {
        // SAFETY: called once, so this is the only reference there will ever be.
        let disks = unsafe { &mut *SLOTS.0.get() };
        let mut found = Self { disks, message: Line::new() };
        let mut number = 0;
        for device in &options.devices[..options.device_count] {
            let Some(transport) = block_transport(*device) else { continue };
            if number == DISKS_MAX {
                let _ = writeln!(found.message, "NOTE disks beyond {DISKS_MAX} are not used");
                break;
            }
            match VirtIOBlk::new(transport) {
                Ok(driver) => found.disks[number] = Some(Disk::new(driver, number, options, seed)),
                Err(error) => {
                    let _ = writeln!(found.message, "DISK-ERROR disk={number} op=init error={error:?}");
                }
            }
            number += 1;
        }
        found
    }

    /// How many disks are in use.
    pub fn count(&self) -> usize {
        self.disks.iter().flatten().count()
    }

    /// Reads, writes and verifies what is due; returns µs until more is.
    pub fn work(&mut self, now_us: u64, seed: u64) -> u64 {
        let message = &mut self.message;
        self.disks.iter_mut().flatten().map(|disk| disk.work(now_us, seed, message)).min().unwrap_or(u64::MAX)
    }

    /// Errors of all kinds.
    pub fn errors(&self) -> u64 {
        self.disks.iter().flatten().map(|disk| disk.corrupt + disk.failed).sum()
    }

    /// Adds ` diskN=writes/reads/failed/corrupt` for each disk.
    pub fn summary(&self, line: &mut Line) {
        for Disk { number, writes, reads, failed, corrupt, .. } in self.disks.iter().flatten() {
            let _ = write!(line, " disk{number}={writes}/{reads}/{failed}/{corrupt}");
        }
    }

    /// Lines to print.
    pub fn message(&self) -> Option<&[u8]> {
        Some(self.message.as_bytes()).filter(|bytes| !bytes.is_empty())
    }

    /// They are printed.
    pub fn message_printed(&mut self) {
        self.message.clear();
    }
}

fn block_transport(device: Device) -> Option<MmioTransport<'static>> {
    let header: *mut VirtIOHeader = core::ptr::with_exposed_provenance_mut(device.address as usize);
    // SAFETY: the command line says there is a virtio-mmio window of that size, it is mapped, and nobody else uses it.
    let transport = unsafe { MmioTransport::new(NonNull::new(header)?, device.bytes as usize) }.ok()?;
    (transport.device_type() == DeviceType::Block).then_some(transport)
}

impl Disk {
    fn new(
        driver: VirtIOBlk<IdentityMapped, MmioTransport<'static>>,
        number: usize,
        options: &Options,
        seed: u64,
    ) -> Self {
        let blocks = driver.capacity() * SECTOR_SIZE as u64 / BLOCK_BYTES;
        Self {
            number,
            blocks: blocks.min(options.disk_span / BLOCK_BYTES).min(BLOCKS_MAX),
            read_only: driver.readonly(),
            driver,
            header: BlkReq::default(),
            response: BlkResp::default(),
            buffer: [0; PAGE_WORDS],
            ledger: [0; BLOCKS_MAX as usize],
            generation: 0,
            pending: None,
            budget: Budget::new(Some(options.disk_rate)),
            operations: 0,
            random: seed ^ number as u64,
            reads: 0,
            writes: 0,
            failed: 0,
            corrupt: 0,
        }
    }

    fn work(&mut self, now_us: u64, seed: u64, message: &mut Line) -> u64 {
        if self.blocks == 0 {
            return u64::MAX;
        }
        if let Some(pending) = self.pending.take() {
            self.pending = self.advance(pending, now_us, message);
        }
        if self.pending.is_none() && self.budget.take(now_us) {
            self.start(now_us, seed, message);
        }
        if self.pending.is_some() { POLL_US } else { self.budget.wait_us().max(POLL_US) }
    }

    /// Starts the next operation: writes and reads in turn, of random blocks.
    fn start(&mut self, now_us: u64, seed: u64, message: &mut Line) {
        self.operations += 1;
        let block = content::next_random(&mut self.random) % self.blocks;
        let sector = (block * BLOCK_BYTES) as usize / SECTOR_SIZE;
        let request = if self.read_only || self.operations & 1 == 0 { Request::Read } else { Request::Write };
        let result = match request {
            Request::Read => {
                let buffer = bytes_of(&mut self.buffer);
                // SAFETY: the disk is in a static and `pending` keeps everybody from its buffers until completion.
                unsafe { self.driver.read_blocks_nb(sector, &mut self.header, buffer, &mut self.response) }
            }
            Request::Write => {
                self.compose(block, now_us, seed);
                let buffer = bytes_of(&mut self.buffer);
                // SAFETY: as for reading.
                unsafe { self.driver.write_blocks_nb(sector, &mut self.header, buffer, &mut self.response) }
            }
        };
        match result {
            Ok(token) => {
                self.pending = Some(Pending { request, token, block, since_us: now_us, stall_reported: false });
            }
            Err(error) => self.fail("submit", block, error, message),
        }
    }

    fn compose(&mut self, block: u64, now_us: u64, seed: u64) {
        self.generation += 1;
        let seed = seed ^ block.rotate_left(40) ^ u64::from(self.generation);
        content::fill(Content::Text, bytes_of(&mut self.buffer), seed);
        let stamp = Stamp {
            magic: DISK_MAGIC,
            index: block,
            generation: u64::from(self.generation),
            cpu: 0,
            seed,
            written_us: now_us,
            disk: self.number as u64,
        };
        stamp.apply(&mut self.buffer);
    }

    fn advance(&mut self, mut pending: Pending, now_us: u64, message: &mut Line) -> Option<Pending> {
        if self.driver.peek_used() != Some(pending.token) {
            if !pending.stall_reported && now_us.saturating_sub(pending.since_us) > STALL_US {
                pending.stall_reported = true;
                let _ = writeln!(message, "NOTE disk={} block={} stalls", self.number, pending.block);
            }
            return Some(pending);
        }
        let buffer = bytes_of(&mut self.buffer);
        match pending.request {
            Request::Read => {
                // SAFETY: the same buffers as when the request was submitted.
                let result = unsafe {
                    self.driver.complete_read_blocks(pending.token, &self.header, buffer, &mut self.response)
                };
                match result {
                    Ok(()) => self.check(pending.block, message),
                    Err(error) => self.fail("read", pending.block, error, message),
                }
            }
            Request::Write => {
                // SAFETY: the same buffers as when the request was submitted.
                let result = unsafe {
                    self.driver.complete_write_blocks(pending.token, &self.header, buffer, &mut self.response)
                };
                match result {
                    Ok(()) => {
                        self.writes += 1;
                        self.ledger[pending.block as usize] = self.generation;
                    }
                    Err(error) => self.fail("write", pending.block, error, message),
                }
            }
        }
        None
    }

    fn fail(&mut self, operation: &str, block: u64, error: virtio_drivers::Error, message: &mut Line) {
        self.failed += 1;
        self.ledger[block as usize] = 0;
        let number = self.number;
        let _ = writeln!(message, "DISK-ERROR disk={number} op={operation} block={block} error={error:?}");
    }

    fn check(&mut self, block: u64, message: &mut Line) {
        self.reads += 1;
        let generation = self.ledger[block as usize];
        if generation == 0 {
            return;
        }
        let number = self.number;
        if let Err(mismatch) = stamp::verify(&self.buffer, DISK_MAGIC, number as u64, block, u64::from(generation)) {
            self.corrupt += 1;
            self.ledger[block as usize] = 0;
            let _ = writeln!(
                message,
                "DISK-CORRUPT disk={number} block={block} expected_gen={generation} found_gen={} found_block={} sum={}",
                mismatch.found.generation,
                mismatch.found.index,
                if mismatch.checksum_fits { "ok" } else { "bad" },
            );
        }
    }
}
