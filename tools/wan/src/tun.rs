//! A TUN device: what a host sends into it can be read here, what is written here the host receives.

use crate::{
    error::WanError,
    namespace::{Namespace, ip},
};
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
    ioctl::{IntegerSetter, Opcode, Updater, ioctl, opcode},
};
use std::{
    ffi::{c_int, c_short, c_uint},
    fs::File,
    io::{self, IoSlice},
    net::IpAddr,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::FileExt as _,
    },
};

/// Longest name of a network device, in bytes.
pub(crate) const NAME_MAX: usize = 15;
/// Packets the device holds until the emulator reads them. The kernel's default, 500, is 6 ms at 1 Gbit/s: less than a busy
/// host may keep a thread waiting.
const QUEUE_PACKETS: &str = "10000";

const TUNSETIFF: Opcode = opcode::write::<c_int>(b'T', 202);
const IFF_TUN: c_short = 0x0001;
const IFF_NO_PI: c_short = 0x1000;
const IFF_VNET_HDR: c_short = 0x4000;
const _: () = assert!(TUNSETIFF == 0x4004_54ca);

const TUNSETOFFLOAD: Opcode = opcode::write::<c_uint>(b'T', 208);
const TUN_F_CSUM: usize = 0x01;
const TUN_F_TSO: usize = 0x02 | 0x04;
/// Since Linux 6.2.
const TUN_F_USO: usize = 0x20 | 0x40;
const _: () = assert!(TUNSETOFFLOAD == 0x4004_54d0);

/// The kernel's `struct ifreq`, as far as `TUNSETIFF` is concerned.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; NAME_MAX + 1],
    flags: c_short,
    rest: [u8; 22],
}

const _: () = assert!(size_of::<InterfaceRequest>() == 40);

/// A device that exists until this is dropped.
#[derive(Debug)]
pub(crate) struct Tun {
    file: OwnedFd,
    /// `/proc/thread-self/net/dev` of its namespace.
    statistics: File,
    device: String,
}

/// How a device is set up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TunOptions<'a> {
    pub(crate) device: &'a str,
    pub(crate) mtu: u16,
    pub(crate) address: IpAddr,
    pub(crate) peer: IpAddr,
    /// Whether the host may hand down, and take, many packets in one.
    pub(crate) offloads: bool,
}

impl Tun {
    /// Makes a device in `namespace`, with its address, up.
    pub(crate) fn create(namespace: &Namespace, options: TunOptions<'_>) -> Result<Self, WanError> {
        let TunOptions { device, mtu, address, peer, offloads } = options;
        let (file, statistics) = namespace.run(|| {
            let file = open(device, offloads).map_err(|failure| match failure {
                Failure::Open(error) => WanError::OpenTun(error),
                Failure::Make(error) => {
                    WanError::MakeTun { device: device.to_owned(), namespace: namespace.name().to_owned(), error }
                }
            })?;
            let statistics = File::open("/proc/thread-self/net/dev").map_err(WanError::host("/proc/net/dev"))?;
            Ok((file, statistics))
        })??;
        let in_namespace = |words: &[&str]| ip(&[&["-n", namespace.name()], words].concat());
        // Without addresses of its own making IPv6 stays silent: only what the hosts send crosses the link.
        in_namespace(&["link", "set", "dev", device, "addrgenmode", "none"])?;
        in_namespace(&["link", "set", "dev", device, "mtu", &mtu.to_string(), "txqueuelen", QUEUE_PACKETS])?;
        in_namespace(&["link", "set", "dev", device, "up"])?;
        // IPv6 makes the route to the peer only when the device is up.
        let (address, peer) = (address.to_string(), peer.to_string());
        in_namespace(&["address", "add", &address, "peer", &peer, "dev", device])?;
        Ok(Self { file, statistics, device: device.to_owned() })
    }

    /// Takes the next frame the host sent, with what precedes it; `None` when there is none now.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> Result<Option<usize>, Errno> {
        match rustix::io::read(&self.file, buffer) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Has the host receive packets, with what precedes them.
    pub(crate) fn write(&self, parts: [&[u8]; 2]) -> Result<(), Errno> {
        rustix::io::writev(&self.file, &parts.map(IoSlice::new))?;
        Ok(())
    }

    /// Packets the host sent that were dropped because nobody read them in time.
    pub(crate) fn overrun(&self) -> u64 {
        let mut text = [0; 16 * 1024];
        // A device that is gone drops nothing.
        let bytes = self.statistics.read_at(&mut text, 0).unwrap_or_default();
        dropped(&String::from_utf8_lossy(&text[..bytes]), &self.device).unwrap_or_default()
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

enum Failure {
    Open(io::Error),
    Make(io::Error),
}

/// A device in the namespace of the calling thread.
fn open(device: &str, offloads: bool) -> Result<OwnedFd, Failure> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::open("/dev/net/tun", flags, Mode::empty()).map_err(|error| Failure::Open(error.into()))?;
    let mut request =
        InterfaceRequest { name: [0; NAME_MAX + 1], flags: IFF_TUN | IFF_NO_PI | IFF_VNET_HDR, rest: [0; 22] };
    // The caller has checked the length; a longer name would be cut off, still with its final zero.
    for (to, from) in request.name[..NAME_MAX].iter_mut().zip(device.bytes()) {
        *to = from;
    }
    // SAFETY: TUNSETIFF takes one `struct ifreq`: `InterfaceRequest` has its size, and the layout of the members this request
    // uses. It holds plain bytes only, so that whatever the kernel writes back is valid.
    let set_interface = unsafe { Updater::<TUNSETIFF, InterfaceRequest>::new(&mut request) };
    // SAFETY: the request outlives the call, and `file` is a TUN device's, for which this number has this meaning alone.
    unsafe { ioctl(&file, set_interface) }.map_err(|error| Failure::Make(error.into()))?;
    if offloads {
        // An older kernel cuts UDP itself.
        set_offloads(&file, TUN_F_CSUM | TUN_F_TSO | TUN_F_USO)
            .or_else(|_| set_offloads(&file, TUN_F_CSUM | TUN_F_TSO))
            .map_err(|error| Failure::Make(error.into()))?;
    }
    Ok(file)
}

fn set_offloads(file: &OwnedFd, offloads: usize) -> Result<(), Errno> {
    // SAFETY: TUNSETOFFLOAD takes flags in place of a pointer.
    let set = unsafe { IntegerSetter::<TUNSETOFFLOAD>::new_usize(offloads) };
    // SAFETY: `file` is a TUN device's, for which this number has this meaning alone; no memory is handed over.
    unsafe { ioctl(file, set) }
}

/// What `/proc/net/dev` says of packets the device could not send: the twelfth number after the name.
fn dropped(text: &str, device: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix(device)?.strip_prefix(':'))?;
    line.split_ascii_whitespace().nth(11)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_are_found_in_the_kernels_table() {
        let text = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:       0       0    0    1    0     0          0         0        0       0    0    2    0     0       0          0
  wan0:     100       1    0    3    0     0          0         0      200       2    0    4    0     0       0          0
";
        assert_eq!(dropped(text, "wan0"), Some(4));
        assert_eq!(dropped(text, "wan"), None);
    }
}
