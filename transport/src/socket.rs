//! A UDP socket that never asks the kernel for a datagram train it must refuse.
//!
//! quinn batches up to ten segments by count. Ten jumbo packets are more than the 65,507 bytes one `sendmsg` with UDP_SEGMENT
//! may carry: the kernel answers EMSGSIZE, the error is swallowed below quinn, and everything is retransmitted: 9 Gbit/s
//! become 60 Mbit/s. So trains that are too long are sent in two.

use quinn::{
    AsyncUdpSocket, Runtime, TokioRuntime, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use std::{
    fmt,
    io::{self, IoSliceMut},
    net::{SocketAddr, UdpSocket},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

/// Most payload bytes of one send: 65,535 less IP and UDP headers.
pub(crate) const TRAIN_BYTES_MAX: usize = 65_507;

struct SplittingSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    /// Bytes of a segment in the last train: the path's packet size, once it is known.
    segment: AtomicUsize,
}

/// Gives `socket` buffers for bulk data, as far as it may have them.
pub(crate) fn enlarge_buffers(socket: &UdpSocket) {
    use rustix::net::sockopt;
    let bytes = crate::Tuning::SOCKET_BUFFER_BYTES;
    // With CAP_NET_ADMIN the administrator's limit does not apply; without, what the limit gives must do.
    if sockopt::set_socket_recv_buffer_size_force(socket, bytes).is_err() {
        let _ = sockopt::set_socket_recv_buffer_size(socket, bytes);
    }
    let _ = sockopt::set_socket_send_buffer_size(socket, bytes);
}

/// Wraps `socket` for quinn, with buffers for bulk data.
pub(crate) fn wrap(socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
    enlarge_buffers(&socket);
    let inner = TokioRuntime.wrap_udp_socket(socket)?;
    Ok(Arc::new(SplittingSocket { inner, segment: AtomicUsize::new(1) }))
}

impl fmt::Debug for SplittingSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl AsyncUdpSocket for SplittingSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.inner).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if let Some(segment) = transmit.segment_size {
            self.segment.store(segment.max(1), Ordering::Relaxed);
        }
        let Some(segment) = transmit.segment_size.filter(|_| transmit.contents.len() > TRAIN_BYTES_MAX) else {
            return self.inner.try_send(transmit);
        };
        // When the second part must wait, quinn sends both again; duplicates are harmless in QUIC and rare.
        let train = (TRAIN_BYTES_MAX / segment.max(1)).max(1) * segment;
        for contents in transmit.contents.chunks(train) {
            self.inner.try_send(&Transmit {
                destination: transmit.destination,
                ecn: transmit.ecn,
                contents,
                segment_size: (contents.len() > segment).then_some(segment),
                src_ip: transmit.src_ip,
            })?;
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.inner.poll_recv(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    /// As many as fit into one send at the packet size last seen, so that a train is not cut in two each time.
    fn max_transmit_segments(&self) -> usize {
        let fit = TRAIN_BYTES_MAX / self.segment.load(Ordering::Relaxed);
        self.inner.max_transmit_segments().min(fit.max(1))
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}
