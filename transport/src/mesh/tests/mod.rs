//! Meshes on loopback, sometimes with a relay between them that loses datagrams.

mod hosts;
mod paths;
mod round_trips;
mod strangers;
mod traffic;

use super::*;
use crate::{ExpectedPeer, Identity, Principal, direct, pki::Authority};
use rustix::{
    event::{EventfdFlags, eventfd},
    fd::{AsFd, OwnedFd},
};
use std::{
    net::{SocketAddr, UdpSocket},
    sync::{Arc, Mutex},
    time::Duration,
};

/// What a user has heard, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Heard {
    Connected(u8),
    Lost(u8, String),
    Message(u8, u8, Vec<u8>),
}

type Command = Box<dyn FnOnce(&mut dyn Outgoing) + Send>;

/// A user that notes what it hears, and does what it is told.
struct Recorder {
    state: Arc<State>,
}

struct State {
    wake: OwnedFd,
    /// Looks for messages rather than to sleep.
    awaits: bool,
    commands: Mutex<Vec<Command>>,
    heard: Mutex<Vec<Heard>>,
}

impl State {
    fn note(&self, heard: Heard) {
        self.heard.lock().unwrap().push(heard);
    }
}

impl MeshUser for Recorder {
    fn wakes<'a>(&'a self, into: &mut Vec<BorrowedFd<'a>>) {
        into.push(self.state.wake.as_fd());
    }

    fn deadline(&self) -> Option<Instant> {
        None
    }

    fn awaits(&self) -> bool {
        self.state.awaits
    }

    fn woken(&mut self, out: &mut dyn Outgoing) {
        direct::slept(&self.state.wake);
        let commands = std::mem::take(&mut *self.state.commands.lock().unwrap());
        commands.into_iter().for_each(|command| command(out));
    }

    fn connected(&mut self, peer: Peer, _: &mut dyn Outgoing) {
        self.state.note(Heard::Connected(peer.0));
    }

    fn lost(&mut self, peer: Peer, why: &SessionError, _: &mut dyn Outgoing) {
        self.state.note(Heard::Lost(peer.0, why.to_string()));
    }

    fn received(
        &mut self,
        from: Peer,
        stream: StreamNumber,
        message: &[u8],
        out: &mut dyn Outgoing,
    ) -> Result<(), SessionError> {
        match message {
            b"nonsense" => return Err(SessionError::Protocol("this is nonsense".to_owned())),
            b"echo" => out.send(from, stream, &mut |into| into.extend_from_slice(b"echoed")),
            _ => {}
        }
        self.state.note(Heard::Message(from.0, stream.0, message.to_vec()));
        Ok(())
    }
}

/// The hosts' certificates, and what they have in common.
struct World {
    _directory: tempfile::TempDir,
    identities: Vec<Arc<Identity>>,
    ticket: MeshTicket,
}

fn host(number: u8) -> Principal {
    Principal::Host(format!("h{number}").parse().unwrap())
}

fn expected(number: u8) -> ExpectedPeer {
    ExpectedPeer::Exactly(host(number))
}

fn world(hosts: u8) -> World {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::create(&directory.path().join("ca")).unwrap();
    let identity = |number: u8| {
        let path = directory.path().join(format!("h{number}"));
        authority.issue(&host(number), &path).unwrap();
        Arc::new(Identity::load(&path).unwrap())
    };
    let identities = (0..hosts).map(identity).collect();
    World { _directory: directory, identities, ticket: MeshTicket::random() }
}

/// A mesh, its user, and where it is.
struct Node {
    mesh: Mesh,
    state: Arc<State>,
    address: SocketAddr,
}

/// Loss is noticed soon, so that tests are short.
fn tuning() -> MeshTuning {
    let (silence_max, keep_alive) = (Duration::from_millis(600), Duration::from_millis(100));
    MeshTuning { silence_max, keep_alive, ..MeshTuning::default() }
}

fn options(world: &World, number: u8) -> MeshOptions {
    MeshOptions {
        socket: UdpSocket::bind("127.0.0.1:0").unwrap(),
        identity: Arc::clone(&world.identities[usize::from(number)]),
        me: Peer(number),
        incarnation: 100,
        machine: "vm1".parse().unwrap(),
        ticket: world.ticket.clone(),
        tuning: tuning(),
    }
}

fn node(options: MeshOptions) -> Node {
    let address = options.socket.local_addr().unwrap();
    let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
    // One way or the other.
    let awaits = options.me.0.is_multiple_of(2);
    let state = Arc::new(State { wake, awaits, commands: Mutex::default(), heard: Mutex::default() });
    let mesh = Mesh::start(options, Box::new(Recorder { state: Arc::clone(&state) })).unwrap();
    Node { mesh, state, address }
}

impl Node {
    /// Has it know another host.
    fn knows(&self, number: u8, address: SocketAddr) {
        self.mesh.add_peer(Peer(number), address, expected(number));
    }

    /// Has its user do something.
    fn act(&self, command: impl FnOnce(&mut dyn Outgoing) + Send + 'static) {
        self.state.commands.lock().unwrap().push(Box::new(command));
        direct::wake(&self.state.wake);
    }

    fn send(&self, to: u8, stream: u8, message: &[u8]) {
        let message = message.to_vec();
        self.act(move |out| out.send(Peer(to), StreamNumber(stream), &mut |into| into.extend_from_slice(&message)));
    }

    fn heard(&self) -> Vec<Heard> {
        self.state.heard.lock().unwrap().clone()
    }

    /// What it has heard, messages by their lengths; the last of it.
    fn brief(&self) -> Vec<String> {
        let heard = self.state.heard.lock().unwrap();
        let brief = heard.iter().rev().take(20).map(|heard| match heard {
            Heard::Message(from, stream, message) => format!("{} bytes of {from} on {stream}", message.len()),
            other => format!("{other:?}"),
        });
        brief.collect()
    }

    /// Comings and goings of a host, in order.
    fn ways(&self, number: u8) -> Vec<bool> {
        let ways = self.heard().into_iter().filter_map(|heard| match heard {
            Heard::Connected(from) if from == number => Some(true),
            Heard::Lost(from, _) if from == number => Some(false),
            _ => None,
        });
        ways.collect()
    }

    fn trouble(&self, number: u8) -> String {
        let figures = self.mesh.figures();
        figures.peers.get(&Peer(number)).and_then(|figures| figures.trouble.clone()).unwrap_or_default()
    }

    /// Waits until it has heard what is wanted.
    fn hears(&self, wanted: impl Fn(&[Heard]) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !wanted(&self.state.heard.lock().unwrap()) {
            let figures = self.mesh.figures();
            assert!(Instant::now() < deadline, "it is not heard; {:?}; {figures:?}", self.brief());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn hears_message(&self, from: u8, stream: u8, message: &[u8]) {
        let wanted = Heard::Message(from, stream, message.to_vec());
        self.hears(|heard| heard.contains(&wanted));
    }

    fn is_connected(&self, number: u8) -> bool {
        self.ways(number).last() == Some(&true)
    }
}

/// Until a test has failed.
const PATIENCE: Duration = Duration::from_secs(20);

#[track_caller]
fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Two hosts that know each other, and are connected.
fn pair(world: &World) -> (Node, Node) {
    let (first, second) = (node(options(world, 0)), node(options(world, 1)));
    first.knows(1, second.address);
    second.knows(0, first.address);
    eventually("connected", || first.is_connected(1) && second.is_connected(0));
    (first, second)
}
