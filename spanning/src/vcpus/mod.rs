//! vCPUs on several hosts: their interrupts and their accesses to devices find each other, and they move while the machine runs.
//!
//! ```text
//!  vCPU thread, interrupt controllers ── Elsewhere ──▶ Desk ── wakes ──▶ VcpuUser, on the mesh's thread ──▶ letters to other hosts
//!  letters from other hosts ──▶ VcpuUser ─┬─ interrupts ──▶ Machine::interrupt
//!                                         ├─ accesses ────▶ the service thread ──▶ Machine::read_device ──▶ Desk
//!                                         └─ vCPUs ───────▶ the carrier thread ──▶ Machine::adopt_vcpu
//! ```
//! The mesh's thread brings pages, so it never waits for a vCPU or a device: either may wait for a page.
//!
//! **A vCPU moves** like a machine does, and as there one compare-and-set decides. The host that has it in epoch `e`:
//!
//! ```text
//!  source                                   target
//!    Expect ───────────────────────────────▶  interrupts for it wait here; asks the store once, which
//!                                             is known to answer then, over a connection that is warm
//!    ◀────────────────────────────── Ready
//!    stops and saves it; its interrupts
//!    go to the target from now on
//!    State ────────────────────────────────▶  restores it, and claims (vCPU, e + 1) for itself
//!    ◀────────────────────────────── Taken    won: it runs, and everybody hears Placed
//!    hears nothing in time, or a refusal:     lost: drops it; what waits for it goes back
//!    claims (vCPU, e + 1) for itself
//!    won: it runs here again; lost: it is there
//! ```
//! Before a vCPU is stopped for it, both hosts must have one time ([`crate::clock`]), which goes with its state.
//! Whoever cannot reach the store waits and asks again; the vCPU stands still meanwhile, the others run.

mod carry;
mod desk;
mod letter;
mod post;
mod user;

pub use carry::{Given, MoveError};
pub use user::VcpuUser;

use crate::{
    clock::Timekeeper,
    directory::HostId,
    registry::{Placement, Registry},
};
use carry::Carrier;
use desk::Desk;
use std::{
    fmt, io,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};
use vmotion_machine::{Elsewhere, Machine};

/// The vCPUs of a machine, as one of its hosts has them.
#[derive(Clone)]
pub struct Vcpus {
    desk: Arc<Desk>,
}

impl fmt::Debug for Vcpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vcpus").field("placements", &self.placements()).finish_non_exhaustive()
    }
}

impl Vcpus {
    /// On the host `me`, of a machine whose devices are on `hub` and whose vCPUs are where `placements` says, in the order of their numbers.
    ///
    /// # Errors
    /// When this process may not have another eventfd.
    pub fn new(me: HostId, hub: HostId, placements: Vec<Placement>) -> io::Result<Self> {
        Ok(Self { desk: Arc::new(Desk::new(me, hub, placements)?) })
    }

    /// What the machine's part on this host is built with.
    #[must_use]
    pub fn elsewhere(&self) -> Arc<dyn Elsewhere> {
        Arc::clone(&self.desk) as _
    }

    /// What brings letters between `machine` and the mesh.
    ///
    /// # Errors
    /// When this process may not have more threads.
    pub fn serve(
        &self,
        machine: &Arc<Machine>,
        registry: &Arc<dyn Registry>,
        time: &Arc<Timekeeper>,
    ) -> io::Result<VcpuUser> {
        let (accesses, to_serve) = mpsc::channel();
        let (pieces, to_carry) = mpsc::channel();
        let (desk, served) = (Arc::clone(&self.desk), Arc::clone(machine));
        thread::Builder::new().name("devices".to_owned()).spawn(move || desk::serve(&desk, &served, &to_serve))?;
        let carrier = self.carrier(machine, registry, time);
        thread::Builder::new().name("vcpu-moves".to_owned()).spawn(move || carrier.take_all(&to_carry))?;
        let desk = Arc::downgrade(&self.desk);
        machine.on_exit(move |reason| {
            if let Some(desk) = desk.upgrade() {
                desk.end(reason);
            }
        });
        Ok(VcpuUser::new(Arc::clone(&self.desk), Arc::clone(machine), accesses, pieces))
    }

    /// Moves `vcpu` from this host to `to`, while the others run. Waits for `patience` at most, unless the store cannot be heard.
    ///
    /// # Errors
    /// [`MoveError`]: the vCPU runs here as before, or is where it was.
    pub fn give(
        &self,
        machine: &Arc<Machine>,
        registry: &Arc<dyn Registry>,
        time: &Arc<Timekeeper>,
        vcpu: u8,
        to: HostId,
        patience: Duration,
    ) -> Result<Given, MoveError> {
        self.carrier(machine, registry, time).give(vcpu, to, patience)
    }

    fn carrier(&self, machine: &Arc<Machine>, registry: &Arc<dyn Registry>, time: &Arc<Timekeeper>) -> Carrier {
        let (machine, registry, time) = (Arc::clone(machine), Arc::clone(registry), Arc::clone(time));
        Carrier { desk: Arc::clone(&self.desk), machine, registry, time }
    }

    /// Where each vCPU is, as far as this host knows.
    #[must_use]
    pub fn placements(&self) -> Vec<Placement> {
        self.desk.placements()
    }

    /// This host does not leave after all: vCPUs may come again.
    pub fn stay(&self) {
        self.desk.stay();
    }

    /// This host has left the machine: nobody hears from it how its part ends.
    pub fn left(&self) {
        self.desk.left();
    }

    /// Nobody waits for another host any more: what devices elsewhere would have said is all ones. To be called before the machine is
    /// stopped.
    pub fn close(&self) {
        self.desk.close();
    }
}
