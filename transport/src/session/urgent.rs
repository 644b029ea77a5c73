//! A thread of its own for what somebody waits for: its runtime has nothing else to do, and its priority is above that of bulk work.

use std::{io, thread};
use tokio::{
    runtime::{Builder, Handle},
    sync::oneshot,
};

/// Of the thread. Without the privilege it is as urgent as the rest.
const NICE: i32 = -10;

/// The thread and its runtime. Dropping it ends both; what was spawned there is dropped.
#[derive(Debug)]
pub struct Urgent {
    handle: Handle,
    _alive: oneshot::Sender<()>,
}

impl Urgent {
    pub(super) fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (alive, gone) = oneshot::channel::<()>();
        thread::Builder::new().name("demand".to_owned()).spawn(move || {
            let _ = rustix::process::setpriority_process(None, NICE);
            let _ = runtime.block_on(gone);
            runtime.shutdown_background();
        })?;
        Ok(Self { handle, _alive: alive })
    }

    /// Where to spawn what is urgent.
    #[must_use]
    pub const fn handle(&self) -> &Handle {
        &self.handle
    }
}
