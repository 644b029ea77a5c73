//! What a migration needs from a machine, and no more.

use std::sync::Arc;
use tokio::sync::Notify;
use vmotion_dirty_tracking::{DirtyTracker, PageBitmap};
use vmotion_model::{FollowReport, MemoryLayout};
use vmotion_transport::session::DemandSource;

/// Why a machine did not do what a migration asked; the text is for the operator.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct GuestError(pub String);

/// Reading pages while the guest runs or stands still.
pub trait GuestPages: Send + Sync {
    /// The RAM.
    fn layout(&self) -> &MemoryLayout;
    /// Copies page `index` (4096 bytes) out. The guest may be writing it; the copy is then some mixture, and the page
    /// is reported dirty.
    fn read_page(&self, index: u64, into: &mut [u8]);
    /// Pages that may hold anything but zeros. All others need not be read, and reading them would cost memory.
    ///
    /// # Errors
    /// When the host cannot tell.
    fn touched(&self) -> Result<PageBitmap, GuestError>;
}

/// A machine that runs here and may leave.
pub trait SourceMachine: GuestPages + 'static {
    /// What [`Self::pause`] gives.
    type Paused: PausedGuest;
    /// A tracker of what the guest and its devices write.
    ///
    /// # Errors
    /// When the host has none that works.
    fn tracker(&self) -> Result<Box<dyn DirtyTracker>, GuestError>;
    /// Stops every vCPU and device. Blocks until they stand still.
    ///
    /// # Errors
    /// When one does not; the others run on.
    fn pause(&self) -> Result<Self::Paused, GuestError>;
    /// Slows the guest down by `percent`, where it writes, until what is returned is dropped.
    ///
    /// # Errors
    /// When this machine cannot be slowed down.
    fn throttle(&self, percent: u8) -> Result<Box<dyn Slowdown>, GuestError> {
        Err(GuestError(format!("this machine cannot be slowed down by {percent} %")))
    }
}

/// A guest that is slowed down until this is dropped.
pub trait Slowdown: Send {
    /// From now on by `percent`, of what the guest did before it was slowed down at all.
    fn change(&self, percent: u8);
}

/// A guest that stands still. Dropping it lets the guest go on: whatever fails before the point of no return ends so.
pub trait PausedGuest: Send + 'static {
    /// What [`Self::freeze`] gives.
    type Frozen: FrozenGuest;
    /// The complete state of vCPUs and devices.
    ///
    /// # Errors
    /// When a device cannot be saved; the move is refused then.
    fn save(&self) -> Result<Vec<u8>, GuestError>;
    /// Waits until what the guest wrote to its disks is where another host sees it. Meant to run beside the sending of the
    /// last pages.
    ///
    /// # Errors
    /// When a disk cannot be flushed; the guest may not leave then.
    fn settle(&self) -> Result<(), GuestError>;
    /// From here on only a decision by the owner record lets the guest go on. [`Self::settle`] has succeeded before.
    fn freeze(self) -> Self::Frozen;
}

/// A guest past the point of no return. Dropping it does *not* resume it.
pub trait FrozenGuest: Send + 'static {
    /// The owner record says that the guest is still ours: it goes on.
    fn thaw(self);
}

/// A machine that is being received: prepared, filled, and not running.
pub trait TargetMachine: GuestPages + vmotion_transport::pages::PageSink + 'static {
    /// Loads vCPUs and devices. Memory is complete.
    ///
    /// # Errors
    /// When the state is damaged or does not fit; nothing ran.
    fn restore(&self, state: &[u8]) -> Result<(), GuestError>;
    /// Lets the vCPUs go.
    ///
    /// # Errors
    /// When the machine cannot run.
    fn resume(&self) -> Result<(), GuestError>;
    /// From now on whoever touches a page that was declared missing waits for it, and what is returned says which. `all_here` is told when
    /// the last missing page is there. Comes before [`Self::restore`].
    ///
    /// # Errors
    /// When the host cannot do that; nothing is lost, for the guest still is the source's.
    fn follow(&self, all_here: Arc<Notify>) -> Result<Box<dyn DemandSource>, GuestError> {
        drop(all_here);
        Err(GuestError("this machine cannot run before all its memory is there".to_owned()))
    }
    /// Nothing is missing any more: the pause in which pages were declared missing was taken back.
    fn forget_missing(&self) {}
    /// What following came to, its duration aside.
    fn followed(&self) -> FollowReport {
        FollowReport::default()
    }
    /// Missing pages will not come: whoever waits for one waits until the process ends, and sees nothing else instead.
    fn abandon(&self) {}
}
