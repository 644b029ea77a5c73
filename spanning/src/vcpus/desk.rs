//! Where the machine's threads leave what other hosts are to hear, and wait for what they say.

use super::letter::{ACCESS_BYTES_MAX, Access, Letter, Took};
use crate::{
    directory::{HostId, HostSet},
    registry::Placement,
};
use rustix::{
    event::{EventfdFlags, eventfd},
    fd::OwnedFd,
};
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fmt, io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
};
use vmotion_machine::{
    Elsewhere, ExitReason, Machine, Space,
    interrupts::{Addressing, Message},
};
use vmotion_model::Epoch;

/// For whom a letter is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum To {
    Host(HostId),
    /// All hosts but this one.
    Others,
}

/// An access that a vCPU of another host makes.
#[derive(Debug)]
pub(super) struct Accessing {
    pub(super) from: HostId,
    pub(super) number: u64,
    pub(super) vcpu: u8,
    pub(super) space: Space,
    pub(super) address: u64,
    pub(super) access: Access,
}

/// What the target of a move says to its source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Heard {
    Ready(Epoch),
    Taken(Epoch, Result<Took, String>),
}

pub(super) struct Desk {
    pub(super) me: HostId,
    hub: HostId,
    /// Readable when there is something to send.
    pub(super) wake: OwnedFd,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    placements: Vec<Placement>,
    /// Who is sent what comes for a vCPU that is on its way from here.
    going: HashMap<u8, HostId>,
    /// Who waits for what a vCPU's target says.
    moves: HashMap<u8, SyncSender<Heard>>,
    outgoing: VecDeque<(To, Letter)>,
    accesses: HashMap<u64, SyncSender<Vec<u8>>>,
    next_access: u64,
    /// What this host has said that interrupts find its vCPUs by, and in which epoch: for hosts that come later.
    addressings: BTreeMap<u8, (Epoch, Addressing)>,
    /// A vCPU that is being taken over.
    arriving: Option<u8>,
    leaving: Option<Leaving>,
    /// How often this host wanted to leave.
    attempts: u64,
    ended: bool,
    closed: bool,
}

/// An attempt to leave.
struct Leaving {
    attempt: u64,
    /// Who has not said farewell.
    awaited: HostSet,
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desk").field("me", &self.me).field("hub", &self.hub).finish_non_exhaustive()
    }
}

impl Desk {
    pub(super) fn new(me: HostId, hub: HostId, placements: Vec<Placement>) -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { me, hub, wake, state: Mutex::new(State { placements, ..State::default() }) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn post(&self, mut state: MutexGuard<'_, State>, to: To, letter: Letter) {
        let first = state.outgoing.is_empty();
        state.outgoing.push_back((to, letter));
        drop(state);
        if first {
            // Fails only when the counter is full, which is as good as written.
            let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        }
    }

    pub(super) fn send(&self, to: To, letter: Letter) {
        self.post(self.state(), to, letter);
    }

    /// All that waits to be sent, in order.
    pub(super) fn outgoing(&self) -> VecDeque<(To, Letter)> {
        // Before the look: what comes after it wakes again.
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        std::mem::take(&mut self.state().outgoing)
    }

    pub(super) fn placements(&self) -> Vec<Placement> {
        self.state().placements.clone()
    }

    pub(super) fn placement(&self, vcpu: u8) -> Option<Placement> {
        self.state().placements.get(usize::from(vcpu)).copied()
    }

    /// Takes what the store or the vCPU's host says, if it is news.
    pub(super) fn learn(&self, vcpu: u8, placement: Placement) {
        let mut state = self.state();
        if let Some(known) = state.placements.get_mut(usize::from(vcpu))
            && placement.epoch > known.epoch
        {
            *known = placement;
            state.going.remove(&vcpu);
        }
    }

    /// What a host that comes to the machine has to know of the vCPUs here.
    pub(super) fn introduction(&self) -> Vec<Letter> {
        let state = self.state();
        let here = (0u8..).zip(&state.placements).filter(|(_, at)| at.host == self.me);
        let mut letters = Vec::new();
        for (vcpu, Placement { epoch, .. }) in here {
            letters.push(Letter::Placed { vcpu, epoch: *epoch });
            if let Some((epoch, addressing)) = state.addressings.get(&vcpu) {
                letters.push(Letter::Addressing { vcpu, epoch: *epoch, addressing: *addressing });
            }
        }
        letters
    }

    /// A vCPU comes; not to a host that leaves.
    pub(super) fn arrives(&self, vcpu: u8) -> bool {
        let mut state = self.state();
        if state.leaving.is_some() {
            return false;
        }
        state.arriving = Some(vcpu);
        true
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.state().leaving.is_some()
    }

    /// It is here, or somewhere else.
    pub(super) fn has_arrived(&self) {
        self.state().arriving = None;
    }

    /// No vCPU comes here any more; the hosts among `others` that may still send something for one. The error names a vCPU that is here.
    pub(super) fn leave(&self, others: HostSet) -> Result<HostSet, u8> {
        let mut state = self.state();
        let here = (0u8..).zip(&state.placements).find(|(_, at)| at.host == self.me);
        if let Some(vcpu) = here.map(|(vcpu, _)| vcpu).or(state.arriving) {
            return Err(vcpu);
        }
        if let Some(leaving) = &state.leaving {
            return Ok(leaving.awaited);
        }
        state.attempts += 1;
        let attempt = state.attempts;
        state.leaving = Some(Leaving { attempt, awaited: others });
        let letter = Self::leave_taking(&state, attempt);
        self.post(state, To::Others, letter);
        Ok(others)
    }

    fn leave_taking(state: &State, attempt: u64) -> Letter {
        let placements = (0u8..).zip(&state.placements);
        let placements = placements.map(|(vcpu, at)| (vcpu, at.host.number(), at.epoch)).collect();
        Letter::Leaving { attempt, placements }
    }

    /// A host comes while this one leaves.
    pub(super) fn take_leave_of(&self, host: HostId) {
        let mut state = self.state();
        if let Some(leaving) = &mut state.leaving {
            leaving.awaited = leaving.awaited.with(host);
            let letter = Self::leave_taking(&state, state.attempts);
            self.post(state, To::Host(host), letter);
        }
    }

    pub(super) fn farewell(&self, from: HostId, attempt: u64) {
        if let Some(leaving) = self.state().leaving.as_mut().filter(|leaving| leaving.attempt == attempt) {
            leaving.awaited = leaving.awaited.without(from);
        }
    }

    /// This host does not leave after all.
    pub(super) fn stay(&self) {
        self.state().leaving = None;
    }

    /// This host has left: how its process ends is nobody's business.
    pub(super) fn left(&self) {
        self.state().ended = true;
    }

    /// From now on what comes for `vcpu` is sent to `host`, until a placement is learned or it stays.
    pub(super) fn goes(&self, vcpu: u8, host: HostId) {
        self.state().going.insert(vcpu, host);
    }

    pub(super) fn stays(&self, vcpu: u8) {
        self.state().going.remove(&vcpu);
    }

    /// What the target of `vcpu`'s move says from now on; `None` while another move of it is under way.
    pub(super) fn listen(&self, vcpu: u8) -> Option<Receiver<Heard>> {
        // As much as a target says in one move.
        let (tell, heard) = sync_channel(2);
        let mut state = self.state();
        if state.moves.contains_key(&vcpu) {
            return None;
        }
        state.moves.insert(vcpu, tell);
        Some(heard)
    }

    pub(super) fn forget(&self, vcpu: u8) {
        self.state().moves.remove(&vcpu);
    }

    /// A target says something; nobody may be listening any more.
    pub(super) fn heard(&self, vcpu: u8, heard: Heard) {
        if let Some(tell) = self.state().moves.get(&vcpu) {
            let _ = tell.try_send(heard);
        }
    }

    /// What a device elsewhere has answered.
    pub(super) fn accessed(&self, number: u64, data: Vec<u8>) {
        if let Some(tell) = self.state().accesses.remove(&number) {
            // There is room for one, and who waited may be gone.
            let _ = tell.try_send(data);
        }
    }

    fn access(&self, vcpu: u8, space: Space, address: u64, access: Access) -> Option<Vec<u8>> {
        let (tell, answered) = sync_channel(1);
        let mut state = self.state();
        if state.closed {
            return None;
        }
        let number = state.next_access;
        state.next_access += 1;
        state.accesses.insert(number, tell);
        self.post(state, To::Host(self.hub), Letter::Access { number, vcpu, space, address, access });
        answered.recv().ok()
    }

    /// The guest has ended, here or elsewhere: everybody hears so once.
    pub(super) fn end(&self, reason: &ExitReason) {
        let mut state = self.state();
        if !std::mem::replace(&mut state.ended, true) {
            self.post(state, To::Others, Letter::Ended(reason.clone()));
        }
    }

    pub(super) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        // Whoever waits hears that nobody will answer.
        state.accesses.clear();
        state.moves.clear();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state().closed
    }
}

impl Elsewhere for Desk {
    fn interrupt(&self, vcpu: u8, message: Message) {
        let state = self.state();
        let known = state.placements.get(usize::from(vcpu)).map(|placement| placement.host);
        // To this host itself when it is about to be here.
        if let Some(host) = state.going.get(&vcpu).copied().or(known) {
            self.post(state, To::Host(host), Letter::Interrupt { vcpu, message });
        }
    }

    fn addressing(&self, vcpu: u8, addressing: Addressing) {
        let mut state = self.state();
        let epoch = state.placements.get(usize::from(vcpu)).map_or(Epoch(0), |placement| placement.epoch);
        state.addressings.insert(vcpu, (epoch, addressing));
        self.post(state, To::Others, Letter::Addressing { vcpu, epoch, addressing });
    }

    fn end_of_interrupt(&self, vector: u8) {
        self.send(To::Host(self.hub), Letter::EndOfInterrupt { vector });
    }

    fn read(&self, vcpu: u8, space: Space, address: u64, data: &mut [u8]) {
        for (at, part) in (0u64..).step_by(ACCESS_BYTES_MAX).zip(data.chunks_mut(ACCESS_BYTES_MAX)) {
            let bytes = u16::try_from(part.len()).unwrap_or(u16::MAX);
            let from = if space == Space::Ports { address } else { address + at };
            match self.access(vcpu, space, from, Access::Read { bytes }) {
                Some(read) if read.len() == part.len() => part.copy_from_slice(&read),
                _ => part.fill(0xff),
            }
        }
    }

    fn write(&self, vcpu: u8, space: Space, address: u64, data: &[u8]) {
        for (at, part) in (0u64..).step_by(ACCESS_BYTES_MAX).zip(data.chunks(ACCESS_BYTES_MAX)) {
            let to = if space == Space::Ports { address } else { address + at };
            let _ = self.access(vcpu, space, to, Access::Write(part.to_vec()));
        }
    }
}

/// Carries out what vCPUs of other hosts do to devices here, until there is no mesh any more.
pub(super) fn serve(desk: &Desk, machine: &Arc<Machine>, accesses: &Receiver<Accessing>) {
    while let Ok(Accessing { from, number, vcpu, space, address, access }) = accesses.recv() {
        let data = match access {
            Access::Read { bytes } => {
                let mut data = vec![0; usize::from(bytes)];
                machine.read_device(vcpu, space, address, &mut data);
                data
            }
            Access::Write(data) => {
                machine.write_device(vcpu, space, address, &data);
                Vec::new()
            }
        };
        desk.send(To::Host(from), Letter::Accessed { number, data });
    }
}
