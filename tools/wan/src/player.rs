//! Has a timeline happen.

use crate::{
    timeline::{Step, Timeline},
    wan::Pumps,
};
use std::{
    io,
    sync::{
        Weak,
        mpsc::{RecvTimeoutError, Sender, channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// Longer than any timeline: waiting for nothing.
const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);

/// A timeline that happens until this or its link is dropped. What it has changed by then stays.
#[derive(Debug)]
pub struct Player {
    /// Its end tells the thread to stop.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Player {
    pub(crate) fn start(
        pumps: Weak<Pumps>,
        mut timeline: Timeline,
        mut observer: impl FnMut(Duration, &Step) + Send + 'static,
    ) -> io::Result<Self> {
        let (stop, stopped) = channel();
        let start = Instant::now();
        let play = move || {
            loop {
                while let Some((_, step)) = timeline.take_due(start.elapsed()) {
                    let Some(pumps) = pumps.upgrade() else { return };
                    pumps.apply(&step);
                    observer(start.elapsed(), &step);
                }
                let wait = timeline.next_due().map_or(FOREVER, |due| due.saturating_sub(start.elapsed()));
                if stopped.recv_timeout(wait) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("wan-timeline".to_owned()).spawn(play)?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic has been printed.
            let _ = thread.join();
        }
    }
}
