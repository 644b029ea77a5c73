//! What a TUN device hands over: a packet, or one that stands for many.
//!
//! With offloads on, a host's TCP and UDP hand down up to 64 KiB at once, to be cut into packets by the device, as they do
//! to a real card. The link must see those packets one by one; the host at the other end is best handed those that arrive
//! together in one piece again, as a real card does. So a frame is never copied apart: packets are ranges of it, and
//! ranges that follow each other can be joined.
//!
//! Layouts are those of `struct virtio_net_hdr`, RFC 791 (IPv4), 8200 (IPv6), 9293 (TCP) and 768 (UDP).

use std::sync::Arc;

/// Length of `struct virtio_net_hdr`, which precedes each packet.
pub(crate) const PREFIX: usize = 10;
/// The longest headers that are rewritten: IPv4 with options and TCP with options, 60 bytes each.
const HEADERS_MAX: usize = 120;

const NEEDS_CHECKSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCP4: u8 = 1;
const GSO_TCP6: u8 = 4;
const GSO_UDP: u8 = 5;

const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const UDP_HEADER: usize = 8;
const TCP_HEADER: usize = 20;
const TCP_FLAGS: usize = 13;
const TCP_FIN_PSH: u8 = 0x09;
const TCP_CWR: u8 = 0x80;

/// Some packets of a frame that follow each other. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Packets {
    /// Prefix, headers, payload.
    frame: Arc<[u8]>,
    /// `None`: the frame is one packet.
    cut: Option<Cut>,
    first: u16,
    count: u16,
}

/// How a frame is cut into packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cut {
    /// Where the TCP or UDP header begins, from the IP header.
    transport: u16,
    /// Where the payload begins.
    payload: u16,
    /// Payload of each packet but the last.
    payload_each: u16,
    tcp: bool,
}

/// What to write to a device, in this order.
#[derive(Debug)]
pub(crate) struct Parts<'a> {
    headers: [u8; PREFIX + HEADERS_MAX],
    headers_length: usize,
    payload: &'a [u8],
}

impl Parts<'_> {
    pub(crate) fn slices(&self) -> [&[u8]; 2] {
        [&self.headers[..self.headers_length], self.payload]
    }
}

impl Packets {
    /// The packets of a frame, as read from the device with its prefix.
    pub(crate) fn of(frame: &[u8]) -> Self {
        let cut = Cut::of(frame).filter(|cut| cut.packets(frame) > 1);
        let count = cut.map_or(1, |cut| u16::try_from(cut.packets(frame)).expect("a frame is 64 KiB at most"));
        Self { frame: Arc::from(frame), cut, first: 0, count }
    }

    /// Each by itself, with its length.
    pub(crate) fn each(&self) -> impl Iterator<Item = (u32, Self)> {
        (self.first..self.first + self.count).map(|first| {
            let packet = Self { first, count: 1, ..self.clone() };
            (u32::try_from(packet.length()).expect("a frame is 64 KiB at most"), packet)
        })
    }

    pub(crate) const fn count(&self) -> u16 {
        self.count
    }

    /// Takes `next` along, if it follows in the same frame.
    pub(crate) fn join(&mut self, next: &Self) -> bool {
        let follows = Arc::ptr_eq(&self.frame, &next.frame) && self.first + self.count == next.first;
        if follows {
            self.count += next.count;
        }
        follows
    }

    /// From the IP header on. Of several, as if they were one.
    fn length(&self) -> usize {
        self.cut.map_or(self.frame.len() - PREFIX, |cut| usize::from(cut.payload) + self.payload(cut).len())
    }

    fn payload(&self, cut: Cut) -> &[u8] {
        let all = &self.frame[PREFIX + usize::from(cut.payload)..];
        let each = usize::from(cut.payload_each);
        let first = usize::from(self.first) * each;
        &all[first..(first + usize::from(self.count) * each).min(all.len())]
    }

    fn has_last(&self, cut: Cut) -> bool {
        usize::from(self.first + self.count) == cut.packets(&self.frame)
    }

    /// What the other device is to be given.
    pub(crate) fn parts(&self) -> Parts<'_> {
        let mut headers = [0; PREFIX + HEADERS_MAX];
        let Some(cut) = self.cut else {
            return Parts { headers, headers_length: 0, payload: &self.frame };
        };
        let headers_length = PREFIX + usize::from(cut.payload);
        let payload = self.payload(cut);
        headers[..headers_length].copy_from_slice(&self.frame[..headers_length]);
        let (prefix, packet) = headers[..headers_length].split_at_mut(PREFIX);
        if self.count == 1 {
            prefix[1] = GSO_NONE;
            // Length of headers and of a packet's payload: there is nothing to be cut.
            prefix[2..6].fill(0);
        } else {
            prefix[2..4].copy_from_slice(&cut.payload.to_ne_bytes());
        }
        let length = u16::try_from(packet.len() + payload.len()).expect("a frame is 64 KiB at most");
        let (ip, transport) = packet.split_at_mut(usize::from(cut.transport));
        let transport_length = length - cut.transport;
        rewrite_ip(ip, length, self.first);
        if cut.tcp {
            self.rewrite_tcp(cut, transport);
        } else {
            transport[4..6].copy_from_slice(&transport_length.to_be_bytes());
        }
        // Whoever cuts this further, or sends it on, completes the checksum; the receiving host need not check it.
        let checksum_at = if cut.tcp { 16 } else { 6 };
        let sum = pseudo_header_sum(ip, transport_length, cut.tcp);
        transport[checksum_at..checksum_at + 2].copy_from_slice(&sum.to_be_bytes());
        Parts { headers, headers_length, payload }
    }

    fn rewrite_tcp(&self, cut: Cut, header: &mut [u8]) {
        let sequence = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
        let sequence = sequence.wrapping_add(u32::from(self.first) * u32::from(cut.payload_each));
        header[4..8].copy_from_slice(&sequence.to_be_bytes());
        if !self.has_last(cut) {
            header[TCP_FLAGS] &= !TCP_FIN_PSH;
        }
        if self.first > 0 {
            header[TCP_FLAGS] &= !TCP_CWR;
        }
    }
}

impl Cut {
    /// `None` when the frame is one packet.
    fn of(frame: &[u8]) -> Option<Self> {
        let (prefix, packet) = frame.split_at_checked(PREFIX)?;
        let tcp = match prefix[1] {
            GSO_TCP4 | GSO_TCP6 => true,
            GSO_UDP => false,
            _ => return None,
        };
        // The kernel's own length of headers is a hint; where the checksum begins is where the transport header does.
        let number = |at: usize| u16::from_ne_bytes([prefix[at], prefix[at + 1]]);
        let (payload_each, transport) = (number(4), number(6));
        let header = packet.get(usize::from(transport)..)?;
        let header_length = if tcp { usize::from(*header.get(12)? >> 4) * 4 } else { UDP_HEADER };
        let payload = usize::from(transport) + header_length;
        let ip_header = match packet.first()? >> 4 {
            4 => IPV4_HEADER,
            6 => IPV6_HEADER,
            _ => return None,
        };
        let sound = prefix[0] & NEEDS_CHECKSUM != 0
            && payload_each > 0
            && usize::from(transport) >= ip_header
            && header_length >= if tcp { TCP_HEADER } else { UDP_HEADER }
            && payload <= HEADERS_MAX.min(packet.len());
        let payload = u16::try_from(payload).ok()?;
        sound.then_some(Self { transport, payload, payload_each, tcp })
    }

    fn packets(self, frame: &[u8]) -> usize {
        (frame.len() - PREFIX - usize::from(self.payload)).div_ceil(usize::from(self.payload_each))
    }
}

/// Length, and for IPv4 identification and checksum.
fn rewrite_ip(header: &mut [u8], length: u16, index: u16) {
    if header[0] >> 4 == 6 {
        let payload = length - u16::try_from(IPV6_HEADER).expect("40 fits");
        header[4..6].copy_from_slice(&payload.to_be_bytes());
        return;
    }
    header[2..4].copy_from_slice(&length.to_be_bytes());
    let identification = u16::from_be_bytes([header[4], header[5]]).wrapping_add(index);
    header[4..6].copy_from_slice(&identification.to_be_bytes());
    header[10..12].fill(0);
    let checksum = !fold(sum(header));
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
}

/// The part of the checksum that the sender of an unfinished one has to supply.
fn pseudo_header_sum(ip: &[u8], transport_length: u16, tcp: bool) -> u16 {
    let addresses = if ip[0] >> 4 == 6 { &ip[8..40] } else { &ip[12..20] };
    let protocol = if tcp { 6 } else { 17 };
    fold(sum(addresses) + u32::from(transport_length) + protocol)
}

/// Of 16-bit words in network order; `bytes` is of even length and a header's, too short to overflow.
fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum()
}

fn fold(sum: u32) -> u16 {
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    u16::try_from(folded).expect("a carry of at most one has been added")
}

#[cfg(test)]
mod tests;
