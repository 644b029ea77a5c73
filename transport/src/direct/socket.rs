//! A UDP socket that never blocks, keeps ECN marks, and takes and gives trains of datagrams as the kernel offers them.

use bytes::BytesMut;
use quinn::udp::{self, RecvMeta, UdpSocketState};
use quinn_proto::{EcnCodepoint, Transmit};
use rustix::fd::{AsFd, BorrowedFd};
use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr, UdpSocket},
};

/// Messages taken in one system call; those that wait beyond that are taken in the next.
const MESSAGES: usize = 8;
/// Longest message the kernel gives: a train is as long as one packet may be.
const MESSAGE_BYTES: usize = 1 << 16;
/// Most datagrams of one send, as many as quinn's own driver sends.
const TRAIN_DATAGRAMS_MAX: usize = 10;

/// A datagram that came.
pub(crate) struct Arrived {
    pub(crate) from: SocketAddr,
    pub(crate) to: Option<IpAddr>,
    pub(crate) ecn: Option<EcnCodepoint>,
    pub(crate) bytes: BytesMut,
}

pub(crate) struct DirectSocket {
    socket: UdpSocket,
    state: UdpSocketState,
    buffer: Box<[u8]>,
}

impl DirectSocket {
    pub(crate) fn new(socket: UdpSocket) -> io::Result<Self> {
        crate::socket::enlarge_buffers(&socket);
        let state = UdpSocketState::new((&socket).into())?;
        Ok(Self { socket, state, buffer: vec![0; MESSAGES * MESSAGE_BYTES].into() })
    }

    pub(crate) fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }

    /// Datagrams of `mtu` bytes that one send may carry.
    pub(crate) fn train(&self, mtu: u16) -> usize {
        let fit = crate::socket::TRAIN_BYTES_MAX / usize::from(mtu).max(1);
        self.state.max_gso_segments().min(TRAIN_DATAGRAMS_MAX).min(fit).max(1)
    }

    /// Takes what has come, not all of it if that is much; whether there may be more.
    pub(crate) fn receive(&mut self, mut each: impl FnMut(Arrived)) -> io::Result<bool> {
        let Self { socket, state, buffer } = self;
        let mut metas = [RecvMeta::default(); MESSAGES];
        let mut parts = buffer.chunks_mut(MESSAGE_BYTES).map(IoSliceMut::new);
        let mut slices: [IoSliceMut<'_>; MESSAGES] =
            std::array::from_fn(|_| parts.next().unwrap_or_else(|| IoSliceMut::new(&mut [])));
        let count = match state.recv((&*socket).into(), &mut slices, &mut metas) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            // Says that a datagram of ours found nobody; anybody can send that.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(true),
            Err(error) => return Err(error),
        };
        for (meta, slice) in metas.iter().zip(&slices).take(count) {
            for bytes in slice[..meta.len.min(slice.len())].chunks(meta.stride.max(1)) {
                each(Arrived {
                    from: meta.addr,
                    to: meta.dst_ip,
                    ecn: meta.ecn.and_then(|ecn| EcnCodepoint::from_bits(ecn as u8)),
                    bytes: bytes.into(),
                });
            }
        }
        Ok(count == MESSAGES)
    }

    /// Hands a train to the kernel; false when it has no room now. What it refuses counts as lost on the way.
    pub(crate) fn send(&self, transmit: &Transmit, bytes: &[u8]) -> bool {
        let transmit = udp::Transmit {
            destination: transmit.destination,
            ecn: transmit.ecn.and_then(|ecn| udp::EcnCodepoint::from_bits(ecn as u8)),
            contents: bytes,
            segment_size: transmit.segment_size,
            src_ip: transmit.src_ip,
        };
        self.state.send((&self.socket).into(), &transmit).is_ok()
    }
}

impl AsFd for DirectSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
