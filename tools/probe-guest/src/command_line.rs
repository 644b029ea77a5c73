//! The guest's kernel command line. The guest side is `guest/src/options.rs`; what is left at its default is not
//! written, so that the guest's own defaults decide.

use std::fmt;

/// What pages are filled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Words and numbers, compressible like ordinary program memory.
    Text,
    /// Zeros behind the stamp.
    Zero,
    /// Zeros everywhere: no stamp, so a stale page goes unnoticed, a foreign one does not.
    AllZero,
    /// Incompressible.
    Random,
}

/// How much of a page that was written before a write changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// All of it.
    Page,
    /// The stamp and one line of content, two of its 64 lines; the page proves all of itself as ever.
    Line,
}

/// How pages to write are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// One after the other.
    Sequential,
    /// Each equally likely.
    Uniform,
    /// Few pages most of the time, scattered.
    Zipf,
    /// An eighth of the pages; nine verified reads of any page per write.
    ReadMostly,
}

/// What all vCPUs do together instead of stamping pages. Each proves its own results: an operation that came out wrong is told in a `V` line
/// and counted as an error; what was done is in a `P` line at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// Litmus tests of x86's memory order: SB, LB, MP, `CoRR`, IRIW.
    Litmus,
    /// `lock xadd` on one word.
    Count,
    /// Each its own word of one page.
    FalseSharing,
    /// A lock, and three words behind it.
    Mutex,
    /// A record that one writes now and then and all read all the time.
    ReadMostly,
    /// A ring from each vCPU to the next.
    Queue,
    /// Each adds up its part of the working set.
    Sum,
    /// All sort the working set.
    Sort,
    /// Each reads the whole working set.
    Scan,
}

impl Program {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Litmus,
        Self::Count,
        Self::FalseSharing,
        Self::Mutex,
        Self::ReadMostly,
        Self::Queue,
        Self::Sum,
        Self::Sort,
        Self::Scan,
    ];
}

impl fmt::Display for Program {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Litmus => "litmus",
            Self::Count => "count",
            Self::FalseSharing => "falsesharing",
            Self::Mutex => "mutex",
            Self::ReadMostly => "readmostly",
            Self::Queue => "queue",
            Self::Sum => "sum",
            Self::Sort => "sort",
            Self::Scan => "scan",
        })
    }
}

/// What a vCPU does when there is nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idle {
    /// Halts until its LAPIC timer fires.
    Halt,
    /// Spins with `pause`.
    Spin,
}

/// How heartbeats look on the console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beat {
    /// Bytes below an interval of 10 ms, lines from there.
    Auto,
    /// One byte, 0x80 | sequence modulo 128, anywhere in the stream.
    Byte,
    /// An `H` line.
    Line,
}

/// A limit in bytes per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rate {
    /// This many bytes per second; zero is never.
    BytesPerSecond(u64),
    /// As fast as it goes.
    Unlimited,
}

impl fmt::Display for Rate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BytesPerSecond(bytes) => write!(formatter, "{bytes}"),
            Self::Unlimited => formatter.write_str("max"),
        }
    }
}

/// Builds a command line; `to_string` gives it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommandLine {
    words: Vec<String>,
}

impl fmt::Display for CommandLine {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.words.join(" "))
    }
}

impl CommandLine {
    /// All defaults: 512 MiB of text, 100 MiB/s sequentially, a heartbeat each second, filled at the start.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn with(mut self, key: &str, value: impl fmt::Display) -> Self {
        let prefix = format!("{key}=");
        self.words.retain(|word| !word.starts_with(&prefix));
        self.words.push(format!("{prefix}{value}"));
        self
    }

    /// Size of the working set, spread over the vCPUs; cut to what RAM there is. Default 512 MiB.
    #[must_use]
    pub fn working_set_bytes(self, bytes: u64) -> Self {
        self.with("ws", bytes)
    }

    /// Page writes of all vCPUs together. Default 100 MiB/s.
    #[must_use]
    pub fn rate(self, rate: Rate) -> Self {
        self.with("rate", rate)
    }

    /// Background verification of all vCPUs together. Default 50 MiB/s.
    #[must_use]
    pub fn verify_rate(self, rate: Rate) -> Self {
        self.with("verify", rate)
    }

    /// What pages are filled with. Default text.
    #[must_use]
    pub fn content(self, content: Content) -> Self {
        let name = match content {
            Content::Text => "text",
            Content::Zero => "zero",
            Content::AllZero => "allzero",
            Content::Random => "random",
        };
        self.with("content", name)
    }

    /// How much of a page a write changes. Default all of it.
    #[must_use]
    pub fn extent(self, extent: Extent) -> Self {
        self.with("extent", if extent == Extent::Line { "line" } else { "page" })
    }

    /// How pages to write are chosen. Default sequential.
    #[must_use]
    pub fn pattern(self, pattern: Pattern) -> Self {
        let name = match pattern {
            Pattern::Sequential => "sequential",
            Pattern::Uniform => "uniform",
            Pattern::Zipf => "zipf",
            Pattern::ReadMostly => "readmostly",
        };
        self.with("pattern", name)
    }

    /// Heartbeat interval, at least 1. Default 1000.
    #[must_use]
    pub fn heartbeat_ms(self, interval_ms: u64) -> Self {
        self.with("hb", interval_ms)
    }

    /// How heartbeats look. Default by interval.
    #[must_use]
    pub fn beat(self, beat: Beat) -> Self {
        let name = match beat {
            Beat::Auto => "auto",
            Beat::Byte => "byte",
            Beat::Line => "line",
        };
        self.with("beat", name)
    }

    /// vCPUs to use at most. Default all, up to 32.
    #[must_use]
    pub fn cpus(self, cpus: u32) -> Self {
        self.with("cpus", cpus)
    }

    /// What idle vCPUs do. Default halt.
    #[must_use]
    pub fn idle(self, idle: Idle) -> Self {
        self.with("idle", if idle == Idle::Halt { "hlt" } else { "spin" })
    }

    /// Whether the whole working set is written once before `READY`. Default yes.
    #[must_use]
    pub fn fill(self, fill: bool) -> Self {
        self.with("fill", u8::from(fill))
    }

    /// Verify everything, say `END` and power off after writing the working set this often (the filling counts).
    #[must_use]
    pub fn passes(self, passes: u64) -> Self {
        self.with("passes", passes)
    }

    /// Verify everything, say `END` and power off after this time.
    #[must_use]
    pub fn seconds(self, seconds: u64) -> Self {
        self.with("seconds", seconds)
    }

    /// Disk requests (4 KiB, writes and reads in turn) per second and disk. Default 100.
    #[must_use]
    pub fn disk_rate(self, blocks_per_second: u64) -> Self {
        self.with("disk_rate", blocks_per_second)
    }

    /// Bytes used at the start of each disk, at most 16 MiB. Default 16 MiB.
    #[must_use]
    pub fn disk_span_bytes(self, bytes: u64) -> Self {
        self.with("disk_span", bytes)
    }

    /// What all vCPUs do together instead of stamping pages. Default nothing.
    #[must_use]
    pub fn program(self, program: Program) -> Self {
        self.with("program", program)
    }

    /// Say `END` and power off when each vCPU has done so many operations of the program.
    #[must_use]
    pub fn operations(self, each: u64) -> Self {
        self.with("ops", each)
    }

    /// Whether every touch of a page is timed and a `T` line printed each second. Default no.
    #[must_use]
    pub fn touches(self, touches: bool) -> Self {
        self.with("touches", u8::from(touches))
    }

    /// TSC frequency, where the guest cannot find out by itself.
    #[must_use]
    pub fn tsc_khz(self, khz: u64) -> Self {
        self.with("tsc_khz", khz)
    }

    /// Port and byte that power the machine off; without, the guest resets it.
    #[must_use]
    pub fn poweroff(self, port: u16, byte: u8) -> Self {
        self.with("poweroff", format_args!("{port:#x}:{byte:#x}"))
    }

    /// Announces a virtio-mmio device, as a VMM does; may be repeated.
    #[must_use]
    pub fn virtio_mmio(mut self, bytes: u64, address: u64, irq: u32) -> Self {
        self.words.push(format!("virtio_mmio.device={bytes}@{address:#x}:{irq}"));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_say_nothing() {
        assert_eq!(CommandLine::new().to_string(), "");
    }

    #[test]
    fn every_option_is_written_once_and_the_last_wins() {
        let line = CommandLine::new()
            .working_set_bytes(1)
            .working_set_bytes(1 << 20)
            .rate(Rate::Unlimited)
            .verify_rate(Rate::BytesPerSecond(5))
            .content(Content::AllZero)
            .extent(Extent::Line)
            .pattern(Pattern::ReadMostly)
            .heartbeat_ms(1)
            .beat(Beat::Byte)
            .cpus(2)
            .idle(Idle::Spin)
            .program(Program::FalseSharing)
            .operations(1000)
            .fill(false)
            .passes(3)
            .seconds(4)
            .disk_rate(6)
            .disk_span_bytes(4096)
            .touches(true)
            .tsc_khz(2_000_000)
            .poweroff(0x600, 0x34);
        assert_eq!(
            line.to_string(),
            "ws=1048576 rate=max verify=5 content=allzero extent=line pattern=readmostly hb=1 beat=byte cpus=2 idle=spin \
             program=falsesharing ops=1000 fill=0 passes=3 seconds=4 disk_rate=6 disk_span=4096 touches=1 tsc_khz=2000000 poweroff=0x600:0x34"
        );
    }

    #[test]
    fn devices_may_be_repeated() {
        let line = CommandLine::new().virtio_mmio(4096, 0xd000_0000, 5).virtio_mmio(4096, 0xd000_1000, 6);
        assert_eq!(line.to_string(), "virtio_mmio.device=4096@0xd0000000:5 virtio_mmio.device=4096@0xd0001000:6");
    }
}
