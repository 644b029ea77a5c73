//! The kernel command line.

use core::str::FromStr;

use crate::boot::MAX_CPUS;
use crate::content::Content;
use crate::memory::Extent;
use crate::pattern::Pattern;
use crate::programs::Program;

/// Virtio-mmio windows remembered.
pub const DEVICES_MAX: usize = 32;

/// Everything that can be said on the command line.
#[derive(Clone, Copy)]
pub struct Options {
    /// Bytes of working set.
    pub ws_bytes: u64,
    /// Bytes of page writes per second, all vCPUs together; `None` is unlimited.
    pub rate: Option<u64>,
    /// Bytes per second of background verification; `None` is unlimited.
    pub verify: Option<u64>,
    pub content: Content,
    /// How much of a page a write changes.
    pub extent: Extent,
    pub pattern: Pattern,
    /// Heartbeat interval in ms.
    pub hb_ms: u64,
    /// Heartbeats are single bytes rather than lines; `None` decides by the interval.
    pub beat: Option<bool>,
    pub cpus: usize,
    /// Halt when there is nothing to do, rather than spin.
    pub idle_halt: bool,
    pub fill: bool,
    /// Stop after writing the working set this often; zero is never.
    pub passes: u64,
    /// Stop after this many seconds; zero is never.
    pub seconds: u64,
    /// Disk blocks per second, per disk.
    pub disk_rate: u64,
    /// Bytes of each disk to use, from its start.
    pub disk_span: u64,
    /// What all vCPUs do together instead of stamping pages.
    pub program: Option<Program>,
    /// Stop after so many operations of it by each vCPU; zero is never.
    pub ops: u64,
    /// Time every touch of a page, and print a `T` line each second.
    pub touches: bool,
    pub tsc_khz: Option<u64>,
    /// Port and byte that power the machine off.
    pub poweroff: Option<(u16, u8)>,
    pub devices: [Device; DEVICES_MAX],
    pub device_count: usize,
}

/// A virtio-mmio window.
#[derive(Clone, Copy, Default)]
pub struct Device {
    pub address: u64,
    pub bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            ws_bytes: 512 << 20,
            rate: Some(100 << 20),
            verify: Some(50 << 20),
            content: Content::Text,
            extent: Extent::Page,
            pattern: Pattern::Sequential,
            hb_ms: 1000,
            beat: None,
            cpus: MAX_CPUS,
            idle_halt: true,
            fill: true,
            passes: 0,
            seconds: 0,
            disk_rate: 100,
            disk_span: 16 << 20,
            program: None,
            ops: 0,
            touches: false,
            tsc_khz: None,
            poweroff: None,
            devices: [Device::default(); DEVICES_MAX],
            device_count: 0,
        }
    }
}

/// `512M`: a number with an optional binary suffix.
/// A size as it is typed, such as `40M`.
pub fn size_of(text: &[u8]) -> Option<u64> {
    size(core::str::from_utf8(text).ok()?)
}

fn size(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'k' | b'K' => (&text[..text.len() - 1], 10),
        b'm' | b'M' => (&text[..text.len() - 1], 20),
        b'g' | b'G' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    number(digits)?.checked_mul(1 << shift)
}

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => u64::from_str(text).ok(),
    }
}

/// Like [`size`], where `max` is unlimited.
fn limit(text: &str) -> Option<Option<u64>> {
    if text == "max" { Some(None) } else { size(text).map(Some) }
}

fn choice<T: Copy>(text: &str, choices: &[(&str, T)]) -> Option<T> {
    choices.iter().find(|(name, _)| *name == text).map(|&(_, value)| value)
}

impl Options {
    /// Reads the command line; words it cannot use go to `ignored`.
    pub fn parse<'line>(line: &'line str, mut ignored: impl FnMut(&'line str)) -> Self {
        let mut options = Self::default();
        for word in line.split_ascii_whitespace() {
            let understood = word.split_once('=').and_then(|(key, value)| options.set(key, value));
            if understood.is_none() {
                ignored(word);
            }
        }
        options
    }

    /// Whether heartbeats are bytes. A line costs the host about 25 exits, too much for every millisecond.
    pub fn beat_bytes(&self) -> bool {
        self.beat.unwrap_or(self.hb_ms < 10)
    }

    fn set(&mut self, key: &str, value: &str) -> Option<()> {
        match key {
            "ws" => self.ws_bytes = size(value)?,
            "rate" => self.rate = limit(value)?,
            "verify" => self.verify = limit(value)?,
            "content" => {
                self.content = choice(
                    value,
                    &[
                        ("text", Content::Text),
                        ("zero", Content::Zero),
                        ("allzero", Content::AllZero),
                        ("random", Content::Random),
                    ],
                )?;
            }
            "pattern" => {
                self.pattern = choice(
                    value,
                    &[
                        ("sequential", Pattern::Sequential),
                        ("uniform", Pattern::Uniform),
                        ("zipf", Pattern::Zipf),
                        ("readmostly", Pattern::ReadMostly),
                    ],
                )?;
            }
            "extent" => self.extent = choice(value, &[("page", Extent::Page), ("line", Extent::Line)])?,
            "hb" => self.hb_ms = number(value)?.clamp(1, 3_600_000),
            "beat" => self.beat = choice(value, &[("byte", Some(true)), ("line", Some(false)), ("auto", None)])?,
            "cpus" => self.cpus = (number(value)? as usize).clamp(1, MAX_CPUS),
            "idle" => self.idle_halt = choice(value, &[("hlt", true), ("spin", false)])?,
            "fill" => self.fill = choice(value, &[("1", true), ("0", false)])?,
            "passes" => self.passes = number(value)?,
            "seconds" => self.seconds = number(value)?,
            "disk_rate" => self.disk_rate = number(value)?,
            "disk_span" => self.disk_span = size(value)?,
            "program" => {
                self.program = Some(choice(
                    value,
                    &[
                        ("litmus", Program::Litmus),
                        ("count", Program::Count),
                        ("falsesharing", Program::FalseSharing),
                        ("mutex", Program::Mutex),
                        ("readmostly", Program::ReadMostly),
                        ("queue", Program::Queue),
                        ("sum", Program::Sum),
                        ("sort", Program::Sort),
                        ("scan", Program::Scan),
                    ],
                )?);
            }
            "ops" => self.ops = number(value)?,
            "touches" => self.touches = choice(value, &[("1", true), ("0", false)])?,
            "tsc_khz" => self.tsc_khz = Some(number(value).filter(|khz| (1_000..=100_000_000).contains(khz))?),
            "poweroff" => {
                let (port, byte) = value.split_once(':')?;
                self.poweroff = Some((number(port)?.try_into().ok()?, number(byte)?.try_into().ok()?));
            }
            "virtio_mmio.device" => self.add_device(value)?,
            _ => return None,
        }
        Some(())
    }

    /// `SIZE@ADDRESS:IRQ[:ID]`, as Linux has it. The interrupt is not used: disks are polled.
    fn add_device(&mut self, value: &str) -> Option<()> {
        let (bytes, rest) = value.split_once('@')?;
        let address = number(rest.split(':').next()?)?;
        let device = Device { address, bytes: size(bytes)? };
        let fits = device.bytes >= 0x100 && address != 0 && address < 512 << 30;
        *self.devices.get_mut(self.device_count).filter(|_| fits)? = device;
        self.device_count += 1;
        Some(())
    }
}
