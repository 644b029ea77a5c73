//! Moving a vCPU, at both ends. The messages and who decides are in [`super`].

use super::{
    desk::{Desk, Heard, To},
    letter::{Letter, Took},
};
use crate::{
    clock::{Departure, Timekeeper, Untimely},
    directory::HostId,
    registry::{Piece, Placement, Registry},
};
use std::{
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};
use thiserror::Error;
use vmotion_machine::{ExitReason, Machine, MachineError, Released};
use vmotion_model::{Epoch, VcpuPause, error_chain};
use vmotion_transport::mesh::MESSAGE_BYTES_MAX;

/// How long to wait before the store is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// How long a target waits to know the machine's time: longer than the first exchanges take on any path.
const TIME_KNOWN: Duration = Duration::from_secs(2);
/// Why no vCPU comes to a host that leaves.
const LEAVING: &str = "it is leaving the machine";
/// What a letter with a state has beside it, in bytes.
const AROUND_STATE: usize = 256;

/// A vCPU that moved.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Given {
    /// Where it is now, and since when.
    pub placement: Placement,
    /// How long it stood still: from the order to stop until its new host said that it runs.
    pub pause: Duration,
    /// What of. Of a move whose target was not heard only what this host did.
    pub parts: VcpuPause,
    /// Its state, in bytes.
    pub state_bytes: usize,
}

/// Why a vCPU did not move.
#[derive(Debug, Error)]
pub enum MoveError {
    /// The machine has none of this number.
    #[error("The machine has no vCPU {0}")]
    None(u8),
    /// It is not here.
    #[error("vCPU {vcpu} is on {at}: only that host can give it away")]
    Elsewhere {
        /// Which.
        vcpu: u8,
        /// Where it is.
        at: HostId,
    },
    /// It is where it is to go.
    #[error("vCPU {vcpu} is on {at} already")]
    There {
        /// Which.
        vcpu: u8,
        /// Where it is.
        at: HostId,
    },
    /// One move at a time.
    #[error("vCPU {0} is being moved already")]
    Moving(u8),
    /// The target does not answer. The vCPU was not stopped.
    #[error("{to} does not answer within {patience:?}; vCPU {vcpu} runs on")]
    Silent {
        /// Which.
        vcpu: u8,
        /// Where it was to go.
        to: HostId,
        /// How long was waited.
        patience: Duration,
    },
    /// The hosts do not have one time. The vCPU was not stopped.
    #[error("vCPU {vcpu} cannot take its time along to {to}, and runs on")]
    Time {
        /// Which.
        vcpu: u8,
        /// Where it was to go.
        to: HostId,
        /// Why.
        source: Untimely,
    },
    /// It could not be stopped or saved, and runs on.
    #[error("vCPU {vcpu} cannot be released, and runs on")]
    Release {
        /// Which.
        vcpu: u8,
        /// Why.
        source: MachineError,
    },
    /// It was stopped, and runs here again.
    #[error("{to} did not take vCPU {vcpu}, which runs here again: {reason}")]
    TakenBack {
        /// Which.
        vcpu: u8,
        /// Where it was to go.
        to: HostId,
        /// Why.
        reason: String,
    },
    /// It could not even be restored where it came from: the machine has ended.
    #[error("vCPU {vcpu} is lost, and the machine has ended")]
    Lost {
        /// Which.
        vcpu: u8,
        /// Why.
        source: MachineError,
    },
}

pub(super) struct Carrier {
    pub(super) desk: Arc<Desk>,
    pub(super) machine: Arc<Machine>,
    pub(super) registry: Arc<dyn Registry>,
    pub(super) time: Arc<Timekeeper>,
}

impl Carrier {
    pub(super) fn give(&self, vcpu: u8, to: HostId, patience: Duration) -> Result<Given, MoveError> {
        let at = self.desk.placement(vcpu).ok_or(MoveError::None(vcpu))?;
        if at.host == to {
            return Err(MoveError::There { vcpu, at: to });
        }
        if at.host != self.desk.me {
            return Err(MoveError::Elsewhere { vcpu, at: at.host });
        }
        let heard = self.desk.listen(vcpu).ok_or(MoveError::Moving(vcpu))?;
        let given = self.give_heard(vcpu, Placement { host: to, epoch: at.epoch.next() }, patience, &heard);
        self.desk.forget(vcpu);
        given
    }

    fn give_heard(
        &self,
        vcpu: u8,
        wanted: Placement,
        patience: Duration,
        heard: &Receiver<Heard>,
    ) -> Result<Given, MoveError> {
        let Placement { host: to, epoch } = wanted;
        let until = Instant::now() + patience;
        self.time.wait_for(to, until).map_err(|source| match source {
            Untimely::Unheard { .. } => MoveError::Silent { vcpu, to, patience },
            source => MoveError::Time { vcpu, to, source },
        })?;
        self.desk.send(To::Host(to), Letter::Expect { vcpu, epoch });
        let ready = hear(heard, until, |heard| match heard {
            Heard::Ready(of) => (of == epoch).then_some(None),
            Heard::Taken(of, taken) => (of == epoch).then(|| taken.err()),
        });
        match ready {
            Some(None) => {}
            Some(Some(reason)) => return Err(MoveError::TakenBack { vcpu, to, reason }),
            None => {
                self.desk.send(To::Host(to), Letter::Forget { vcpu, epoch });
                return Err(MoveError::Silent { vcpu, to, patience });
            }
        }
        let stopped = Instant::now();
        self.desk.goes(vcpu, to);
        let released = match self.machine.release_vcpu(vcpu) {
            Ok(released) => released,
            Err(source) => {
                self.desk.stays(vcpu);
                self.desk.send(To::Host(to), Letter::Forget { vcpu, epoch });
                return Err(MoveError::Release { vcpu, source });
            }
        };
        let state_bytes = released.state.len();
        if state_bytes + AROUND_STATE > MESSAGE_BYTES_MAX {
            let reason = format!("its state has {state_bytes} bytes, and no message more than {MESSAGE_BYTES_MAX}");
            return self.take_back(vcpu, wanted, &released, reason, stopped);
        }
        let departure = match self.time.departure(released.tsc_advanced) {
            Ok(departure) => departure,
            Err(error) => return self.take_back(vcpu, wanted, &released, error_chain(&error), stopped),
        };
        self.desk.send(To::Host(to), Letter::State { vcpu, epoch, departure, state: released.state.clone() });
        let taken = hear(heard, stopped + patience, |heard| match heard {
            Heard::Taken(of, taken) => (of == epoch).then_some(taken),
            Heard::Ready(_) => None,
        });
        match taken {
            Some(Ok(took)) => {
                self.desk.learn(vcpu, wanted);
                let pause = stopped.elapsed();
                Ok(Given { placement: wanted, pause, parts: parts_of(pause, &released, Some(took)), state_bytes })
            }
            Some(Err(reason)) => self.take_back(vcpu, wanted, &released, reason, stopped),
            None => {
                let reason = format!("it does not say within {patience:?} that it has it");
                self.take_back(vcpu, wanted, &released, reason, stopped)
            }
        }
    }

    /// The store says who has it: the target, or this host again.
    fn take_back(
        &self,
        vcpu: u8,
        wanted: Placement,
        released: &Released,
        reason: String,
        stopped: Instant,
    ) -> Result<Given, MoveError> {
        let Placement { host: to, epoch } = wanted;
        let mine = Placement { host: self.desk.me, epoch };
        let Some(owner) = self.claim(vcpu, mine) else {
            return Err(MoveError::TakenBack {
                vcpu,
                to,
                reason: "this host's part of the machine was closed".to_owned(),
            });
        };
        if owner != mine {
            self.desk.learn(vcpu, owner);
            let pause = stopped.elapsed();
            let (parts, state_bytes) = (parts_of(pause, released, None), released.state.len());
            return Ok(Given { placement: owner, pause, parts, state_bytes });
        }
        // This host's TSC is behind itself by what it is set forward by and the vCPU shows already.
        let tsc_ahead = 0u64.wrapping_sub(released.tsc_advanced);
        let arrived = match self.machine.adopt_vcpu(vcpu, &released.state, tsc_ahead) {
            Ok(arrived) => arrived,
            Err(source) => {
                let text = format!("vCPU {vcpu} is lost: {}", error_chain(&source));
                self.machine.end(ExitReason::InternalError { text });
                return Err(MoveError::Lost { vcpu, source });
            }
        };
        self.desk.learn(vcpu, mine);
        arrived.run();
        self.desk.send(To::Others, Letter::Placed { vcpu, epoch });
        self.desk.send(To::Host(to), Letter::Forget { vcpu, epoch });
        Err(MoveError::TakenBack { vcpu, to, reason })
    }

    /// Who has it, asked until the store says so; `None` when this part was closed.
    fn claim(&self, vcpu: u8, wanted: Placement) -> Option<Placement> {
        loop {
            match self.registry.claim(Piece::Vcpu(vcpu), wanted) {
                Ok(owner) => return Some(owner),
                Err(error) => tracing::warn!(%error, "a vCPU stands still until the store says who has it"),
            }
            if self.desk.is_closed() {
                return None;
            }
            thread::sleep(ASK_AGAIN);
        }
    }

    /// Takes vCPUs that other hosts give, until there is no mesh any more.
    pub(super) fn take_all(&self, letters: &Receiver<(HostId, Letter)>) {
        while let Ok((from, letter)) = letters.recv() {
            let answer = match letter {
                Letter::Expect { vcpu, epoch } => Some(match self.expect(vcpu, epoch, from) {
                    Ok(()) => Letter::Ready { vcpu, epoch },
                    Err(reason) => Letter::Taken { vcpu, epoch, taken: Err(reason) },
                }),
                Letter::State { vcpu, epoch, departure, state } => {
                    let taken = self.take(vcpu, epoch, &state, (from, departure));
                    Some(Letter::Taken { vcpu, epoch, taken })
                }
                Letter::Forget { vcpu, .. } => {
                    self.machine.forget_vcpu(vcpu);
                    None
                }
                _ => None,
            };
            if let Some(answer) = answer {
                self.desk.send(To::Host(from), answer);
            }
        }
    }

    fn expect(&self, vcpu: u8, epoch: Epoch, from: HostId) -> Result<(), String> {
        if self.desk.is_leaving() {
            return Err(LEAVING.to_owned());
        }
        self.time.wait_for(from, Instant::now() + TIME_KNOWN).map_err(|error| error_chain(&error))?;
        // Who has it now is known. But a store that does not answer is better found out before the vCPU stands still for it, and what has
        // just answered once answers sooner.
        let current = Placement { host: from, epoch: Epoch(epoch.0.saturating_sub(1)) };
        self.registry.claim(Piece::Vcpu(vcpu), current).map_err(|error| error_chain(&error))?;
        self.machine.expect_vcpu(vcpu).map_err(|error| error_chain(&error))
    }

    fn take(&self, vcpu: u8, epoch: Epoch, state: &[u8], left: (HostId, Departure)) -> Result<Took, String> {
        if !self.desk.arrives(vcpu) {
            return Err(LEAVING.to_owned());
        }
        let taken = self.adopt(vcpu, epoch, state, left);
        self.desk.has_arrived();
        taken
    }

    fn adopt(&self, vcpu: u8, epoch: Epoch, state: &[u8], left: (HostId, Departure)) -> Result<Took, String> {
        let (from, departure) = left;
        let begun = Instant::now();
        let tsc_ahead = self.time.arrival(from, departure).map_err(|error| error_chain(&error))?;
        let arrived = self.machine.adopt_vcpu(vcpu, state, tsc_ahead).map_err(|error| error_chain(&error))?;
        let mine = Placement { host: self.desk.me, epoch };
        let restored = Instant::now();
        match self.claim(vcpu, mine) {
            Some(owner) if owner == mine => {
                let took = Took { restore_ns: ns(restored - begun), claim_ns: ns(restored.elapsed()) };
                self.desk.learn(vcpu, mine);
                arrived.run();
                self.desk.send(To::Others, Letter::Placed { vcpu, epoch });
                Ok(took)
            }
            Some(owner) => {
                self.desk.learn(vcpu, owner);
                Err(format!("{} has it", owner.host))
            }
            None => Err("the target's part of the machine was closed".to_owned()),
        }
    }
}

fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// What the `pause` of a vCPU that was `released` was spent on.
fn parts_of(pause: Duration, released: &Released, took: Option<Took>) -> VcpuPause {
    let ms = |duration: Duration| duration.as_secs_f64() * 1000.0;
    let there = |ns: fn(Took) -> u64| ms(Duration::from_nanos(took.map_or(0, ns)));
    let (restore_ms, claim_ms) = (there(|took| took.restore_ns), there(|took| took.claim_ns));
    let (stop_ms, save_ms) = (ms(released.stop), ms(released.save));
    // Clocks of two hosts are not compared: what is left was spent between them.
    let transfer_ms = (ms(pause) - stop_ms - save_ms - restore_ms - claim_ms).max(0.0);
    VcpuPause { stop_ms, save_ms, transfer_ms, restore_ms, claim_ms }
}

/// The first thing heard that `wanted` takes, until then.
fn hear<T>(heard: &Receiver<Heard>, until: Instant, mut wanted: impl FnMut(Heard) -> Option<T>) -> Option<T> {
    loop {
        match heard.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(heard) => {
                if let Some(found) = wanted(heard) {
                    return Some(found);
                }
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return None,
        }
    }
}
