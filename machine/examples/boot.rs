//! Boots a kernel, prints its console, and tries pausing, saving and restoring on it.
//!
//! ```text
//! cargo run -p vmotion-machine --example boot -- --kernel vmlinux.elf [--initrd FILE] [--cmdline TEXT] [--memory 128M]
//!     [--cpus 1] [--disk PATH[,ro]]... [--ring] [--user]
//!     [--save-after SECONDS --save-to FILE]   pause, write state and memory to FILE, exit
//!     [--restore-from FILE]                   go on from such a file instead of booting
//!     [--pause-every MILLISECONDS]            pause, save and resume again and again, and print what it costs
//!     [--track-every MILLISECONDS]            track written pages and print their number and the costs
//!     [--until TEXT]                          end when the console says so
//!     [--seconds N]                           end after that time at the latest
//! ```
#![expect(clippy::print_stdout, reason = "the guest's console goes to standard output")]

use std::collections::HashMap;
use std::error::Error;
use std::io::{BufWriter, Read, Write};
use std::time::{Duration, Instant};
use vmotion_dirty_tracking::PageBitmap;
use vmotion_machine::{ConsoleConfig, Machine, MachineConfig};
use vmotion_model::{DirtySource, DiskSpec, InterruptController, MachineSpec};

type Outcome<T> = Result<T, Box<dyn Error>>;

const PAGE: usize = 4096;
const BATCH_PAGES: usize = 1024;

struct Arguments {
    one: HashMap<String, String>,
    disks: Vec<DiskSpec>,
}

impl Arguments {
    fn parse() -> Outcome<Self> {
        let mut parsed = Self { one: HashMap::new(), disks: Vec::new() };
        let mut arguments = std::env::args().skip(1);
        while let Some(name) = arguments.next() {
            let name = name.strip_prefix("--").ok_or_else(|| format!("{name:?} is not an option"))?.to_owned();
            let is_flag = name == "ring" || name == "user";
            let value = if is_flag { String::new() } else { arguments.next().ok_or("an option lacks its value")? };
            if name == "disk" {
                parsed.disks.push(value.parse()?);
            } else {
                parsed.one.insert(name, value);
            }
        }
        Ok(parsed)
    }

    fn get<T: std::str::FromStr<Err: Error + 'static>>(&self, name: &str) -> Outcome<Option<T>> {
        Ok(self.one.get(name).map(|text| text.parse()).transpose()?)
    }

    fn config(&self) -> Outcome<MachineConfig> {
        let spec = MachineSpec {
            name: "try".parse()?,
            cpus: self.get("cpus")?.unwrap_or(1),
            memory: self.one.get("memory").map_or("128M", String::as_str).parse()?,
            kernel: self.one.get("kernel").map(Into::into).unwrap_or_default(),
            initrd: self.one.get("initrd").map(Into::into),
            cmdline: self.one.get("cmdline").cloned().unwrap_or_default(),
            disks: self.disks.clone(),
            backing: vmotion_model::Backing::Memfd,
            dirty_source: if self.one.contains_key("ring") { DirtySource::Ring } else { DirtySource::Auto },
            interrupts: if self.one.contains_key("user") {
                InterruptController::User
            } else {
                InterruptController::Kernel
            },
        };
        let console = ConsoleConfig { log: self.one.get("log").map(Into::into), start_offset: 0 };
        Ok(MachineConfig { spec, console, part: None })
    }
}

fn main() -> Outcome<()> {
    let arguments = Arguments::parse()?;
    let began = Instant::now();
    let machine = match arguments.one.get("restore-from") {
        Some(file) => restore(&arguments.config()?, file)?,
        None => Machine::boot(&arguments.config()?)?,
    };
    println!("[built in {:?}]", began.elapsed());
    let console = machine.console();
    let mut offset = if arguments.one.contains_key("restore-from") { console.offset() } else { 0 };
    machine.resume()?;
    let seconds: u64 = arguments.get("seconds")?.unwrap_or(3600);
    let save_after: Option<u64> = arguments.get("save-after")?;
    let mut pauses = Every::new(arguments.get("pause-every")?);
    let mut tracking = Tracking::new(&machine, arguments.get("track-every")?)?;
    let mut seen = String::new();
    loop {
        if console.wait_beyond(offset, Duration::from_millis(5)) {
            let (from, bytes) = console.read(offset, 1 << 16);
            offset = from + bytes.len() as u64;
            std::io::stdout().write_all(&bytes)?;
            std::io::stdout().flush()?;
            seen.push_str(&String::from_utf8_lossy(&bytes));
        }
        if arguments.one.get("until").is_some_and(|text| seen.contains(text)) || began.elapsed().as_secs() >= seconds {
            println!("\n[ending after {:?}]", began.elapsed());
            return Ok(());
        }
        if let Some(reason) = machine.wait_exit(Duration::ZERO) {
            println!("\n[{reason} after {:?}]", began.elapsed());
            return Ok(());
        }
        if save_after.is_some_and(|after| began.elapsed().as_secs() >= after) {
            let file = arguments.one.get("save-to").ok_or("--save-after needs --save-to")?;
            return save(&machine, file);
        }
        if pauses.due() {
            pause_and_save(&machine)?;
        }
        tracking.step()?;
    }
}

struct Every {
    period: Option<Duration>,
    last: Instant,
}

impl Every {
    fn new(milliseconds: Option<u64>) -> Self {
        Self { period: milliseconds.map(Duration::from_millis), last: Instant::now() }
    }

    fn due(&mut self) -> bool {
        let due = self.period.is_some_and(|period| self.last.elapsed() >= period);
        if due {
            self.last = Instant::now();
        }
        due
    }
}

fn pause_and_save(machine: &Machine) -> Outcome<()> {
    let began = Instant::now();
    let guard = machine.pause()?;
    let paused = began.elapsed();
    let state = guard.save()?;
    let saved = began.elapsed() - paused;
    drop(guard);
    println!(
        "[pause {paused:?}, save {saved:?}, {} bytes, resume {:?}]",
        state.len(),
        began.elapsed() - paused - saved
    );
    Ok(())
}

struct Tracking {
    every: Every,
    tracker: Option<Box<dyn vmotion_dirty_tracking::DirtyTracker>>,
    started: bool,
    pages: PageBitmap,
}

impl Tracking {
    fn new(machine: &Machine, milliseconds: Option<u64>) -> Outcome<Self> {
        let tracker = milliseconds.map(|_| machine.dirty_tracker(DirtySource::Auto)).transpose()?;
        let pages = PageBitmap::new(machine.memory().total_pages());
        Ok(Self { every: Every::new(milliseconds), tracker, started: false, pages })
    }

    fn step(&mut self) -> Outcome<()> {
        let Some(tracker) = self.tracker.as_mut().filter(|_| self.every.due()) else { return Ok(()) };
        if !self.started {
            self.started = true;
            let began = Instant::now();
            tracker.start()?;
            println!("[tracking by {:?} started in {:?}]", tracker.source(), began.elapsed());
            return Ok(());
        }
        self.pages.clear_all();
        let began = Instant::now();
        let count = tracker.fetch(&mut self.pages)?;
        let fetched = began.elapsed();
        // In batches, as a copy does.
        for first in (0..self.pages.pages()).step_by(BATCH_PAGES) {
            tracker.clear(&self.pages, first..first + BATCH_PAGES as u64)?;
        }
        let runs = self.pages.runs().count();
        println!("[{count} pages in {runs} runs, fetch {fetched:?}, clear {:?}]", began.elapsed() - fetched);
        Ok(())
    }
}

/// File: length of the state, the state, then (index, page) for every page that was ever touched.
fn save(machine: &Machine, file: &str) -> Outcome<()> {
    let began = Instant::now();
    let frozen = machine.pause()?.freeze();
    let paused = began.elapsed();
    let state = frozen.save()?;
    println!("\n[paused in {paused:?}, saved {} bytes in {:?}]", state.len(), began.elapsed() - paused);
    let mut out = BufWriter::new(std::fs::File::create(file)?);
    out.write_all(&(state.len() as u64).to_le_bytes())?;
    out.write_all(&state)?;
    let mut page = [0; PAGE];
    for index in machine.memory().allocated()?.runs().flatten() {
        machine.memory().read_page(index, &mut page)?;
        out.write_all(&index.to_le_bytes())?;
        out.write_all(&page)?;
    }
    out.flush()?;
    Ok(())
}

fn restore(config: &MachineConfig, file: &str) -> Outcome<Machine> {
    let machine = Machine::prepare(config)?;
    let mut bytes = Vec::new();
    std::fs::File::open(file)?.read_to_end(&mut bytes)?;
    let (length, rest) = bytes.split_at(8);
    let (state, pages) = rest.split_at(usize::try_from(u64::from_le_bytes(length.try_into()?))?);
    for record in pages.chunks_exact(8 + PAGE) {
        let (index, page) = record.split_at(8);
        machine.memory().write_run(u64::from_le_bytes(index.try_into()?), page)?;
    }
    let began = Instant::now();
    machine.restore(state)?;
    println!("[restored in {:?}]", began.elapsed());
    Ok(machine)
}
