//! A mesh without a network: threads, queues and eventfds. Connections are cut and made again, and what was on its way is lost then.

use super::Random;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fd::{AsFd, OwnedFd};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;
use vmotion_transport::mesh::{MESSAGE_BYTES_MAX, MeshUser, Outgoing, Peer, StreamNumber};
use vmotion_transport::session::SessionError;

enum Arrival {
    Connected { from: usize, generation: u64 },
    Lost { from: usize },
    Message { from: usize, generation: u64, stream: StreamNumber, bytes: Vec<u8> },
}

struct Mailbox {
    arrivals: Mutex<VecDeque<Arrival>>,
    bell: OwnedFd,
}

/// Everything between the hosts.
pub(crate) struct Fabric {
    mailboxes: Vec<Mailbox>,
    /// By pair: odd when it is connected.
    generations: Vec<AtomicU64>,
    jumble: Option<u64>,
    pub(crate) messages: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) refused: AtomicU64,
    /// Time spent in waking up whoever a message is for.
    pub(crate) sending_ns: AtomicU64,
}

impl Fabric {
    pub(crate) fn new(hosts: usize, jumble: Option<u64>) -> Self {
        let mailbox = |_| Mailbox {
            arrivals: Mutex::default(),
            bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap(),
        };
        Self {
            mailboxes: (0..hosts).map(mailbox).collect(),
            generations: (0..hosts * hosts).map(|_| AtomicU64::new(0)).collect(),
            jumble,
            messages: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            sending_ns: AtomicU64::new(0),
        }
    }

    fn generation(&self, one: usize, other: usize) -> &AtomicU64 {
        &self.generations[one.min(other) * self.mailboxes.len() + one.max(other)]
    }

    fn deliver(&self, to: usize, arrival: Arrival) {
        let mailbox = &self.mailboxes[to];
        let mut arrivals = mailbox.arrivals.lock().unwrap();
        let quiet = arrivals.is_empty();
        arrivals.push_back(arrival);
        drop(arrivals);
        if quiet {
            rustix::io::write(&mailbox.bell, &1_u64.to_ne_bytes()).unwrap();
        }
    }

    /// Both hear of it before either can say anything about it.
    fn deliver_both(&self, (one, other): (usize, usize), arrival: impl Fn(usize) -> Arrival) {
        let (low, high) = (one.min(other), one.max(other));
        let mut of_low = self.mailboxes[low].arrivals.lock().unwrap();
        let mut of_high = self.mailboxes[high].arrivals.lock().unwrap();
        of_low.push_back(arrival(high));
        of_high.push_back(arrival(low));
        drop((of_low, of_high));
        for mailbox in [&self.mailboxes[low], &self.mailboxes[high]] {
            rustix::io::write(&mailbox.bell, &1_u64.to_ne_bytes()).unwrap();
        }
    }

    /// Makes a connection, unless there is one.
    pub(crate) fn connect(&self, one: usize, other: usize) {
        let generation = self.generation(one, other);
        let now = generation.load(Ordering::Acquire);
        if !now.is_multiple_of(2)
            || generation.compare_exchange(now, now + 1, Ordering::AcqRel, Ordering::Acquire).is_err()
        {
            return;
        }
        self.deliver_both((one, other), |from| Arrival::Connected { from, generation: now + 1 });
    }

    /// Ends a connection, if there is one: what is on its way is lost.
    pub(crate) fn cut(&self, one: usize, other: usize) {
        let generation = self.generation(one, other);
        let now = generation.load(Ordering::Acquire);
        if now.is_multiple_of(2)
            || generation.compare_exchange(now, now + 1, Ordering::AcqRel, Ordering::Acquire).is_err()
        {
            return;
        }
        self.deliver_both((one, other), |from| Arrival::Lost { from });
    }

    /// Says something in the name of a host.
    pub(crate) fn forge(&self, from: usize, to: usize, stream: u8, bytes: Vec<u8>) {
        let generation = self.generation(from, to).load(Ordering::Acquire);
        self.deliver(to, Arrival::Message { from, generation, stream: StreamNumber(stream), bytes });
    }

    /// Drives `user` as the mesh of host `number` until it is stopped.
    pub(crate) fn run(self: &Arc<Self>, number: usize, user: Box<dyn MeshUser>) -> Running {
        let stopped = Arc::new(AtomicBool::new(false));
        let driver = Driver {
            fabric: Arc::clone(self),
            number,
            user,
            random: Random(self.jumble.unwrap_or(0) + number as u64),
            connections: vec![0; self.mailboxes.len()],
        };
        let (fabric, stop) = (Arc::clone(self), Arc::clone(&stopped));
        let thread = std::thread::Builder::new().name(format!("host-{number}"));
        let thread = thread.spawn(move || driver.run(&stop)).unwrap();
        Running { fabric, number, stopped, thread: Some(thread) }
    }
}

/// A thread that drives a node.
pub(crate) struct Running {
    fabric: Arc<Fabric>,
    number: usize,
    stopped: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Running {
    /// Stops the thread and drops the node.
    pub(crate) fn stop(&mut self) {
        self.stopped.store(true, Ordering::Release);
        let _ = rustix::io::write(&self.fabric.mailboxes[self.number].bell, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

struct Driver {
    fabric: Arc<Fabric>,
    number: usize,
    user: Box<dyn MeshUser>,
    random: Random,
    /// The generation of the connection with each host, as this one knows it; 0: none.
    connections: Vec<u64>,
}

struct Sender<'a> {
    fabric: &'a Fabric,
    number: usize,
    connections: &'a [u64],
}

impl Outgoing for Sender<'_> {
    fn send(&mut self, to: Peer, stream: StreamNumber, write: &mut dyn FnMut(&mut Vec<u8>)) {
        let to = usize::from(to.0);
        let generation = self.connections[to];
        if generation == 0 {
            return;
        }
        let mut bytes = Vec::with_capacity(128);
        write(&mut bytes);
        assert!(bytes.len() <= MESSAGE_BYTES_MAX && stream.0 < 16);
        self.fabric.messages.fetch_add(1, Ordering::Relaxed);
        self.fabric.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let start = Instant::now();
        self.fabric.deliver(to, Arrival::Message { from: self.number, generation, stream, bytes });
        let took = u64::try_from(start.elapsed().as_nanos()).unwrap_or(0);
        self.fabric.sending_ns.fetch_add(took, Ordering::Relaxed);
    }

    fn waiting(&self, _: Peer, _: StreamNumber) -> usize {
        0
    }
}

impl Driver {
    fn run(mut self, stopped: &AtomicBool) {
        loop {
            let woken = self.wait();
            if stopped.load(Ordering::Acquire) {
                return;
            }
            if woken {
                let mut out = Sender { fabric: &self.fabric, number: self.number, connections: &self.connections };
                self.user.woken(&mut out);
            }
            let mut arrivals = std::mem::take(&mut *self.fabric.mailboxes[self.number].arrivals.lock().unwrap());
            while let Some(arrival) = self.next(&mut arrivals) {
                self.arrive(arrival);
            }
        }
    }

    /// Whether the user is to be woken.
    fn wait(&self) -> bool {
        let deadline = self.user.deadline();
        let timeout = deadline.map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            rustix::event::Timespec { tv_sec: left.as_secs().try_into().unwrap(), tv_nsec: left.subsec_nanos().into() }
        });
        let bell = &self.fabric.mailboxes[self.number].bell;
        let mut wakes = Vec::new();
        self.user.wakes(&mut wakes);
        let mut polled = vec![PollFd::new(bell, PollFlags::IN)];
        polled.extend(wakes.iter().map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)));
        while poll(&mut polled, timeout.as_ref()) == Err(rustix::io::Errno::INTR) {}
        let readable = |fd: &PollFd<'_>| fd.revents().contains(PollFlags::IN);
        if readable(&polled[0]) {
            let _ = rustix::io::read(bell, &mut [0; 8]);
        }
        polled[1..].iter().any(readable) || deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// The next arrival. Messages of different streams overtake each other, if they are to.
    fn next(&mut self, arrivals: &mut VecDeque<Arrival>) -> Option<Arrival> {
        if self.fabric.jumble.is_none() || arrivals.len() < 2 {
            return arrivals.pop_front();
        }
        let chosen = usize::try_from(self.random.below(arrivals.len() as u64)).unwrap();
        let stream = |arrival: &Arrival| match arrival {
            Arrival::Message { from, stream, .. } => Some((*from, *stream)),
            Arrival::Connected { .. } | Arrival::Lost { .. } => None,
        };
        let wanted = stream(&arrivals[chosen]);
        // The first of its stream, as long as no connection is made or lost before it.
        let first = arrivals
            .iter()
            .take_while(|arrival| stream(arrival).is_some())
            .position(|arrival| stream(arrival) == wanted);
        arrivals.remove(first.unwrap_or(0))
    }

    fn arrive(&mut self, arrival: Arrival) {
        let fabric = Arc::clone(&self.fabric);
        match arrival {
            Arrival::Connected { from, generation } => {
                self.connections[from] = generation;
                let mut out = Sender { fabric: &fabric, number: self.number, connections: &self.connections };
                self.user.connected(Peer(from.try_into().unwrap()), &mut out);
            }
            Arrival::Lost { from } => {
                self.connections[from] = 0;
                let mut out = Sender { fabric: &fabric, number: self.number, connections: &self.connections };
                let why = SessionError::Lost("cut by the test".to_owned());
                self.user.lost(Peer(from.try_into().unwrap()), &why, &mut out);
            }
            Arrival::Message { from, generation, stream, bytes } => {
                // What was sent over a connection that is cut is lost, though it may be here.
                let lost = fabric.generation(from, self.number).load(Ordering::Acquire) != generation;
                if lost || self.connections[from] != generation {
                    return;
                }
                let mut out = Sender { fabric: &fabric, number: self.number, connections: &self.connections };
                let peer = Peer(from.try_into().unwrap());
                if let Err(error) = self.user.received(peer, stream, &bytes, &mut out) {
                    assert!(matches!(error, SessionError::Protocol(_)), "{error}");
                    fabric.refused.fetch_add(1, Ordering::Relaxed);
                    fabric.cut(from, self.number);
                    fabric.connect(from, self.number);
                }
            }
        }
    }
}
