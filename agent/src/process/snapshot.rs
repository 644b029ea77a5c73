//! A machine in a directory, and back.
//!
//! ```text
//! DIR/snapshot.json   version, spec
//! DIR/memory.bin      page i of the layout at byte 4096 × i; holes are zero pages
//! DIR/state.bin       vCPUs and devices, as a move sends them
//! ```
//! Most of memory is copied while the guest runs; the pause lasts for what it dirtied meanwhile.

use rustix::fs::SeekFrom;
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    io::{Read as _, Seek as _, Write as _},
    os::unix::fs::FileExt as _,
    path::Path,
};
use vmotion_dirty_tracking::{DirtyTracker, PageBitmap};
use vmotion_machine::Machine;
use vmotion_model::{DirtySource, MachineSpec, PAGE_SIZE, error_chain};
use vmotion_transport::session::STATE_BYTES_MAX;

const VERSION: u32 = 1;
/// Pages copied at a time: 1 MiB.
const CHUNK_PAGES: u64 = 256;

/// `snapshot.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SnapshotHead {
    version: u32,
    /// The machine that was saved.
    pub(crate) spec: MachineSpec,
}

/// Reads and checks `snapshot.json` of `directory`.
pub(crate) fn read_head(directory: &Path) -> Result<SnapshotHead, String> {
    let path = directory.join("snapshot.json");
    let text = fs::read(&path).map_err(|error| format!("Cannot read snapshot {}: {error}", path.display()))?;
    let head: SnapshotHead =
        serde_json::from_slice(&text).map_err(|error| format!("{} is not a snapshot: {error}", path.display()))?;
    if head.version != VERSION {
        return Err(format!("{} has version {}, this program reads {VERSION}", path.display(), head.version));
    }
    Ok(head)
}

/// Saves `machine`, which goes on running. The directory must be new; what was written is removed when saving fails.
pub(super) fn save(machine: &Machine, directory: &Path) -> Result<(), String> {
    fs::create_dir(directory).map_err(|error| format!("Cannot create directory {}: {error}", directory.display()))?;
    let result = write(machine, directory);
    if result.is_err() {
        let _ = fs::remove_dir_all(directory);
    }
    result
}

fn write(machine: &Machine, directory: &Path) -> Result<(), String> {
    let describe = |what: &'static str| move |error: std::io::Error| format!("Cannot write {what}: {error}");
    let ram = machine.memory();
    let memory = File::create_new(directory.join("memory.bin")).map_err(describe("memory.bin"))?;
    memory.set_len(ram.total_pages() * PAGE_SIZE).map_err(describe("memory.bin"))?;
    let mut tracker = machine.dirty_tracker(DirtySource::Auto).map_err(|error| error_chain(&error))?;
    tracker.start().map_err(|error| error_chain(&error))?;
    let copied = copy_all(machine, &mut *tracker, &memory);
    let stopped = tracker.stop().map_err(|error| error_chain(&error));
    let state = copied?;
    stopped?;
    memory.sync_all().map_err(describe("memory.bin"))?;
    fs::write(directory.join("state.bin"), state).map_err(describe("state.bin"))?;
    let head = SnapshotHead { version: VERSION, spec: machine.spec().clone() };
    let text = serde_json::to_vec_pretty(&head).map_err(|error| error.to_string())?;
    // Last: a directory without it is not a snapshot.
    let mut file = File::create_new(directory.join("snapshot.json")).map_err(describe("snapshot.json"))?;
    file.write_all(&text).and_then(|()| file.sync_all()).map_err(describe("snapshot.json"))
}

/// Everything while the guest runs, then the rest and the state while it stands still.
fn copy_all(machine: &Machine, tracker: &mut dyn DirtyTracker, memory: &File) -> Result<Vec<u8>, String> {
    let total = machine.memory().total_pages();
    let touched = machine.memory().allocated().map_err(|error| error_chain(&error))?;
    tracker.clear(&touched, 0..total).map_err(|error| error_chain(&error))?;
    copy_pages(machine, &touched, memory)?;
    let guard = machine.pause().map_err(|error| error_chain(&error))?;
    let mut rest = PageBitmap::new(total);
    tracker.fetch(&mut rest).map_err(|error| error_chain(&error))?;
    copy_pages(machine, &rest, memory)?;
    guard.save().map_err(|error| error_chain(&error))
}

fn copy_pages(machine: &Machine, pages: &PageBitmap, memory: &File) -> Result<(), String> {
    let mut buffer = Vec::new();
    for run in pages.runs() {
        let mut at = run.start;
        while at < run.end {
            let count = CHUNK_PAGES.min(run.end - at);
            buffer.resize(bytes_of(count)?, 0);
            machine.memory().read_run(at, count, &mut buffer).map_err(|error| error.to_string())?;
            memory
                .write_all_at(&buffer, at * PAGE_SIZE)
                .map_err(|error| format!("Cannot write memory.bin: {error}"))?;
            at += count;
        }
    }
    Ok(())
}

/// Loads the snapshot in `directory` into a prepared machine.
pub(super) fn load(machine: &Machine, directory: &Path) -> Result<(), String> {
    let describe = |what: &'static str| move |error: std::io::Error| format!("Cannot read {what}: {error}");
    let ram = machine.memory();
    let mut memory = File::open(directory.join("memory.bin")).map_err(describe("memory.bin"))?;
    let length = memory.metadata().map_err(describe("memory.bin"))?.len();
    if length != ram.total_pages() * PAGE_SIZE {
        return Err(format!("memory.bin has {length} bytes, the machine {}", ram.total_pages() * PAGE_SIZE));
    }
    let mut at = 0;
    let mut buffer = Vec::new();
    // Holes stay holes: a page never written costs nothing here either.
    while let Ok(data) = rustix::fs::seek(&memory, SeekFrom::Data(at)) {
        let end = rustix::fs::seek(&memory, SeekFrom::Hole(data)).unwrap_or(length);
        let (first, last) = (data / PAGE_SIZE, end.div_ceil(PAGE_SIZE));
        let mut page = first;
        while page < last {
            let count = CHUNK_PAGES.min(last - page);
            buffer.resize(bytes_of(count)?, 0);
            memory.seek(std::io::SeekFrom::Start(page * PAGE_SIZE)).map_err(describe("memory.bin"))?;
            memory.read_exact(&mut buffer).map_err(describe("memory.bin"))?;
            ram.write_run(page, &buffer).map_err(|error| error.to_string())?;
            page += count;
        }
        at = last * PAGE_SIZE;
        if at >= length {
            break;
        }
    }
    let file = File::open(directory.join("state.bin")).map_err(describe("state.bin"))?;
    let mut state = Vec::new();
    file.take(STATE_BYTES_MAX as u64 + 1).read_to_end(&mut state).map_err(describe("state.bin"))?;
    if state.len() > STATE_BYTES_MAX {
        return Err(format!("state.bin is longer than {STATE_BYTES_MAX} bytes"));
    }
    machine.restore(&state).map_err(|error| error_chain(&error))
}

fn bytes_of(pages: u64) -> Result<usize, String> {
    usize::try_from(pages * PAGE_SIZE).map_err(|error| error.to_string())
}
