//! The guest's console: a byte stream of ASCII lines in which single bytes with the high bit set are heartbeats. A
//! reader may join in the middle; what it cannot read is [`ConsoleLine::Unknown`], never an error.

use std::collections::HashMap;

/// A line longer than this is not the guest's.
const LINE_BYTES_MAX: usize = 4096;

/// The `PROBE` line: what the guest found and will do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// vCPUs in use.
    pub cpus: u32,
    /// RAM the memory map names.
    pub ram_bytes: u64,
    /// Working set, after cutting it to the RAM.
    pub ws_bytes: u64,
    /// Page writes per second; `None` is unlimited.
    pub rate_bytes: Option<u64>,
    /// TSC frequency the guest will use for good.
    pub tsc_khz: u64,
    /// Where that came from: `kvmclock`, `kvm-leaf`, `cpuid15`, `pit`, `cpuid16`, `option` or `assumed`.
    pub clock: String,
    /// Heartbeats are bytes.
    pub beat_bytes: bool,
    /// Block devices in use.
    pub disks: u32,
}

/// One vCPU's pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuCounters {
    /// Pages written.
    pub written: u64,
    /// Pages verified in the background.
    pub verified: u64,
}

/// One disk's requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskCounters {
    /// Blocks written.
    pub writes: u64,
    /// Blocks read.
    pub reads: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Blocks that came back wrong.
    pub corrupt: u64,
}

/// The `S` line of every second.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Second {
    /// The guest's clock, in µs since its start.
    pub time_us: u64,
    /// Unix time in ms by the same clock; zero if the guest found no wall clock at the start.
    pub wall_ms: u64,
    /// Pages written.
    pub written: u64,
    /// Pages verified in the background.
    pub verified: u64,
    /// Pages found lost, stale or damaged.
    pub corrupt: u64,
    /// Times the TSC went backwards.
    pub tsc_backwards: u64,
    /// Lines that could not be printed.
    pub dropped: u64,
    /// Longest time between two heartbeats in the last second.
    pub gap_us: u64,
    /// Longest time between two heartbeats ever.
    pub gap_max_us: u64,
    /// By vCPU.
    pub cpus: Vec<CpuCounters>,
    /// By disk.
    pub disks: Vec<DiskCounters>,
}

/// The `T` line of every second: a histogram since the guest's start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touches {
    /// The guest's clock, in µs since its start.
    pub time_us: u64,
    /// Shortest time of a bucket in µs, and its touches; ascending. Each reaches to a quarter of an octave above, the first to 4 µs.
    pub buckets: Vec<(u64, u64)>,
}

/// A `CORRUPT` line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CorruptPage {
    /// Number of the page in the working set.
    pub page: u64,
    /// Its guest-physical address.
    pub address: u64,
    /// vCPU that owns it.
    pub cpu: u32,
    /// Generation last written.
    pub expected_generation: u64,
    /// Generation found.
    pub found_generation: u64,
    /// Page number found.
    pub found_page: u64,
    /// The content fits its own checksum: a whole page, but the wrong one.
    pub checksum_fits: bool,
    /// The page is all zero.
    pub all_zero: bool,
}

/// One line of the console.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConsoleLine {
    /// `PROBE 1 …`
    Start(Start),
    /// `READY …`: the working set is filled.
    Ready {
        /// Pages filled.
        filled: u64,
        /// When, in µs since the start.
        at_us: u64,
    },
    /// `H …`: a heartbeat, or ten times a second the state when heartbeats are bytes.
    Heartbeat {
        /// Heartbeats before this one.
        sequence: u64,
        /// The guest's clock, in µs since its start.
        time_us: u64,
        /// Pages written.
        written: u64,
        /// Errors of all kinds.
        errors: u64,
    },
    /// `S …`
    Second(Second),
    /// `T …`: how long touching a page took, when that was asked for.
    Touches(Touches),
    /// `CORRUPT …`
    Corrupt(CorruptPage),
    /// `DISK-CORRUPT …`, in full.
    DiskCorrupt(String),
    /// `DISK-ERROR …`, in full.
    DiskError(String),
    /// `TSC-BACKWARDS …`
    TscBackwards {
        /// On which vCPU.
        cpu: u32,
        /// How often so far.
        count: u64,
        /// The largest jump, in ticks.
        worst_ticks: u64,
    },
    /// `pong …`
    Pong(String),
    /// `NOTE …`
    Note(String),
    /// `END …`: the guest verified everything and powers off.
    End {
        /// Pages written.
        written: u64,
        /// Errors of all kinds.
        errors: u64,
    },
    /// `EXCEPTION …` or `PANIC …`, in full: a bug in the guest, or memory it lives in was damaged.
    Crash(String),
    /// Anything else.
    Unknown(String),
}

/// `key=value` words.
struct Fields<'line>(HashMap<&'line str, &'line str>);

impl<'line> Fields<'line> {
    fn of(words: &'line str) -> Self {
        Self(words.split_ascii_whitespace().filter_map(|word| word.split_once('=')).collect())
    }

    fn number(&self, key: &str) -> Option<u64> {
        let text = self.0.get(key)?;
        match text.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).ok(),
            None => text.parse().ok(),
        }
    }

    fn small(&self, key: &str) -> Option<u32> {
        self.number(key)?.try_into().ok()
    }

    /// `prefix0`, `prefix1`, … until one is missing, each `N` numbers apart by slashes.
    fn numbered<const N: usize>(&self, prefix: &str) -> Vec<[u64; N]> {
        let parse = |text: &str| {
            let numbers: Vec<u64> = text.split('/').map(str::parse).collect::<Result<_, _>>().ok()?;
            <[u64; N]>::try_from(numbers).ok()
        };
        (0..).map_while(|index| parse(self.0.get(format!("{prefix}{index}").as_str())?)).collect()
    }
}

impl ConsoleLine {
    /// Reads a line, its end left out.
    #[must_use]
    pub fn parse(line: &str) -> Self {
        Self::known(line).unwrap_or_else(|| Self::Unknown(line.to_owned()))
    }

    fn known(line: &str) -> Option<Self> {
        let (kind, rest) = line.split_once(' ')?;
        let fields = Fields::of(rest);
        Some(match kind {
            "PROBE" => Self::Start(start(rest, &fields)?),
            "READY" => Self::Ready { filled: fields.number("filled")?, at_us: fields.number("at_us")? },
            "H" => heartbeat(rest)?,
            "S" => Self::Second(second(rest, &fields)?),
            "T" => Self::Touches(touches(rest)?),
            "CORRUPT" => Self::Corrupt(corrupt(&fields)?),
            "DISK-CORRUPT" => Self::DiskCorrupt(line.to_owned()),
            "DISK-ERROR" => Self::DiskError(line.to_owned()),
            "TSC-BACKWARDS" => Self::TscBackwards {
                cpu: fields.small("cpu")?,
                count: fields.number("count")?,
                worst_ticks: fields.number("worst_ticks")?,
            },
            "pong" => Self::Pong(rest.to_owned()),
            "NOTE" => Self::Note(rest.to_owned()),
            "END" => Self::End { written: fields.number("written")?, errors: fields.number("errors")? },
            "EXCEPTION" | "PANIC" => Self::Crash(line.to_owned()),
            _ => return None,
        })
    }

    /// Whether the guest reports that something was done to it: lost memory, lost blocks, time running backwards.
    #[must_use]
    pub fn is_failure(&self) -> bool {
        match self {
            Self::Corrupt(_)
            | Self::DiskCorrupt(_)
            | Self::DiskError(_)
            | Self::TscBackwards { .. }
            | Self::Crash(_) => true,
            Self::End { errors, .. } | Self::Heartbeat { errors, .. } => *errors > 0,
            Self::Second(second) => second.corrupt > 0 || second.tsc_backwards > 0,
            Self::Start(_)
            | Self::Ready { .. }
            | Self::Touches(_)
            | Self::Pong(_)
            | Self::Note(_)
            | Self::Unknown(_) => false,
        }
    }
}

fn start(rest: &str, fields: &Fields<'_>) -> Option<Start> {
    if !rest.starts_with("1 ") {
        return None;
    }
    let rate = *fields.0.get("rate")?;
    Some(Start {
        cpus: fields.small("cpus")?,
        ram_bytes: fields.number("ram")?,
        ws_bytes: fields.number("ws")?,
        rate_bytes: if rate == "max" { None } else { Some(rate.parse().ok()?) },
        tsc_khz: fields.number("tsc_khz")?,
        clock: (*fields.0.get("clock")?).to_owned(),
        beat_bytes: *fields.0.get("beat")? == "byte",
        disks: fields.small("disks")?,
    })
}

fn heartbeat(rest: &str) -> Option<ConsoleLine> {
    let numbers: Vec<u64> = rest.split(' ').map(str::parse).collect::<Result<_, _>>().ok()?;
    let [sequence, time_us, written, errors] = numbers.try_into().ok()?;
    Some(ConsoleLine::Heartbeat { sequence, time_us, written, errors })
}

fn second(rest: &str, fields: &Fields<'_>) -> Option<Second> {
    Some(Second {
        time_us: rest.split(' ').next()?.parse().ok()?,
        wall_ms: fields.number("wall_ms")?,
        written: fields.number("written")?,
        verified: fields.number("verified")?,
        corrupt: fields.number("corrupt")?,
        tsc_backwards: fields.number("tsc_back")?,
        dropped: fields.number("dropped")?,
        gap_us: fields.number("gap_us")?,
        gap_max_us: fields.number("gap_max_us")?,
        cpus: fields.numbered("cpu").into_iter().map(|[written, verified]| CpuCounters { written, verified }).collect(),
        disks: fields
            .numbered("disk")
            .into_iter()
            .map(|[writes, reads, failed, corrupt]| DiskCounters { writes, reads, failed, corrupt })
            .collect(),
    })
}

fn touches(rest: &str) -> Option<Touches> {
    let mut words = rest.split(' ');
    let time_us = words.next()?.parse().ok()?;
    let bucket = |word: &str| {
        let (lower, count) = word.split_once(':')?;
        Some((lower.parse().ok()?, count.parse().ok()?))
    };
    Some(Touches { time_us, buckets: words.map(bucket).collect::<Option<_>>()? })
}

fn corrupt(fields: &Fields<'_>) -> Option<CorruptPage> {
    Some(CorruptPage {
        page: fields.number("page")?,
        address: fields.number("address")?,
        cpu: fields.small("cpu")?,
        expected_generation: fields.number("expected_gen")?,
        found_generation: fields.number("found_gen")?,
        found_page: fields.number("found_page")?,
        checksum_fits: *fields.0.get("sum")? == "ok",
        all_zero: fields.number("zero")? == 1,
    })
}

/// What the console said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConsoleEvent {
    /// A heartbeat byte: the sequence number modulo 128.
    Beat(u8),
    /// A whole line.
    Line(ConsoleLine),
}

/// Turns the byte stream into events.
#[derive(Debug, Default)]
pub struct ConsoleReader {
    line: Vec<u8>,
}

impl ConsoleReader {
    /// A reader that has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes as they arrive, in pieces of any size.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<ConsoleEvent> {
        bytes.iter().filter_map(|&byte| self.take(byte)).collect()
    }

    fn take(&mut self, byte: u8) -> Option<ConsoleEvent> {
        match byte {
            0x80.. => return Some(ConsoleEvent::Beat(byte & 0x7f)),
            b'\n' => {
                let line = String::from_utf8_lossy(&self.line).into_owned();
                self.line.clear();
                return (!line.is_empty()).then(|| ConsoleEvent::Line(ConsoleLine::parse(&line)));
            }
            b'\r' => {}
            _ if self.line.len() < LINE_BYTES_MAX => self.line.push(byte),
            _ => {}
        }
        None
    }
}

/// Counts heartbeat bytes that never came, as far as seven bits can tell.
#[derive(Clone, Copy, Debug, Default)]
pub struct BeatTracker {
    next: Option<u8>,
}

impl BeatTracker {
    /// Takes the next heartbeat byte; returns how many are missing before it, modulo 128.
    pub fn observe(&mut self, beat: u8) -> u8 {
        let missing = self.next.map_or(0, |next| beat.wrapping_sub(next) & 0x7f);
        self.next = Some(beat.wrapping_add(1) & 0x7f);
        missing
    }
}

#[cfg(test)]
mod tests;
