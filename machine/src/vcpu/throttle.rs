//! Slowing a machine down: those of its vCPUs that write take naps.
//!
//! With dirty rings it is known how many pages each vCPU writes: each may write so many in a period as its slowed share of what it wrote
//! before, and naps when it has written more. Who does not write runs at full speed, and a guest that would catch up between two naps
//! cannot. What a vCPU writes by itself is measured once, before the first nap: a guest that is let go for a moment writes what it has
//! missed, which says nothing about it. Without rings all vCPUs lose the same part of their time.

use super::VcpuShared;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use vmotion_dirty_tracking::RingCollector;

/// A vCPU naps once in this time, in milliseconds: often enough that nobody at a console feels it, seldom enough that kicking costs
/// little.
const PERIOD_MS: u64 = 20;
/// How long is watched what each vCPU writes by itself, in periods.
const PERIODS_WATCHED: u32 = 5;
/// Longest nap, in milliseconds: a guest that hears nothing for longer complains.
const NAP_MS_MAX: u64 = 200;

/// A machine that is slowed down until this is dropped.
#[derive(Debug)]
#[must_use = "dropping it ends the slowdown"]
pub struct Throttle {
    percent: Arc<AtomicU8>,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Throttle {
    /// From now on takes `percent` (1 to 99), of what each vCPU had before it was slowed down at all.
    pub fn change(&self, percent: u8) {
        self.percent.store(percent, Ordering::Relaxed);
    }

    /// Takes `percent` (1 to 99) of their time from `vcpus` that write.
    pub(crate) fn start(
        vcpus: Vec<Arc<VcpuShared>>,
        rings: Option<Arc<RingCollector>>,
        percent: u8,
    ) -> io::Result<Self> {
        let (stop, stopped) = std::sync::mpsc::channel();
        let percent = Arc::new(AtomicU8::new(percent));
        let wanted = Arc::clone(&percent);
        let body = move || match rings {
            Some(rings) => slow_writers(&vcpus, &rings, &wanted, &stopped),
            None => slow_all(&vcpus, &wanted, &stopped),
        };
        let thread = std::thread::Builder::new().name("throttle".to_owned()).spawn(body)?;
        Ok(Self { percent, stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // It has nothing left to say.
            let _ = thread.join();
        }
    }
}

/// Until the next period; `false` when it is to end.
fn goes_on(stopped: &Receiver<()>) -> bool {
    stopped.recv_timeout(Duration::from_millis(PERIOD_MS)) == Err(RecvTimeoutError::Timeout)
}

fn slow_all(vcpus: &[Arc<VcpuShared>], percent: &AtomicU8, stopped: &Receiver<()>) {
    while goes_on(stopped) {
        let nap = Duration::from_millis(PERIOD_MS) * u32::from(percent.load(Ordering::Relaxed).min(99)) / 100;
        vcpus.iter().for_each(|vcpu| vcpu.nap(nap));
    }
}

fn slow_writers(vcpus: &[Arc<VcpuShared>], rings: &RingCollector, percent: &AtomicU8, stopped: &Receiver<()>) {
    let start = rings.written();
    for _ in 0..PERIODS_WATCHED {
        if !goes_on(stopped) {
            return;
        }
    }
    let mut before = rings.written();
    let periods = f64::from(PERIODS_WATCHED);
    let mut quotas: Vec<Quota> =
        before.iter().zip(&start).map(|(now, then)| Quota::new((now - then) as f64 / periods)).collect();
    while goes_on(stopped) {
        let share = f64::from(100 - percent.load(Ordering::Relaxed).min(99)) / 100.0;
        let now = rings.written();
        let at = Instant::now();
        for (index, vcpu) in vcpus.iter().enumerate() {
            let written = now.get(index).zip(before.get(index)).map_or(0, |(now, before)| now - before);
            if let Some(nap) = quotas.get_mut(index).and_then(|quota| quota.spend(written as f64, share, at)) {
                vcpu.nap(nap);
            }
        }
        before = now;
    }
}

/// What one vCPU may write.
#[derive(Debug)]
struct Quota {
    /// Pages it writes in a period by itself.
    own: f64,
    /// Written beyond its share of that, in pages.
    debt: f64,
    naps_until: Option<Instant>,
}

impl Quota {
    const fn new(own: f64) -> Self {
        Self { own, debt: 0.0, naps_until: None }
    }

    /// `written` pages were written in the period that ends `now`, where `share` of its own is allowed; the nap to take for it.
    fn spend(&mut self, written: f64, share: f64, now: Instant) -> Option<Duration> {
        // Less than a page in a period is nobody's working set.
        if self.own < 1.0 {
            return None;
        }
        let allowed = self.own * share;
        self.debt = (self.debt + written - allowed).max(0.0);
        if self.naps_until.is_some_and(|until| now < until) || self.debt < allowed {
            return None;
        }
        let periods = (self.debt / allowed).min((NAP_MS_MAX / PERIOD_MS) as f64);
        let nap = Duration::from_millis(PERIOD_MS).mul_f64(periods);
        self.naps_until = Some(now + nap);
        Some(nap)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A vCPU that by itself writes `own` pages in a period, up to `rate` while it catches up; what it writes in 100 periods of each share.
    fn written(own: f64, rate: f64, shares: &[f64]) -> Vec<f64> {
        let mut quota = Quota::new(own);
        let (mut now, mut owed, mut naps_until) = (Instant::now(), 0.0, None::<Instant>);
        let mut in_periods_of = |share: f64| {
            let mut all = 0.0;
            for _ in 0..100 {
                now += Duration::from_millis(PERIOD_MS);
                owed += own;
                let napping = naps_until.is_some_and(|until| now <= until);
                let written = if napping { 0.0 } else { f64::min(owed, rate) };
                owed -= written;
                all += written;
                if let Some(nap) = quota.spend(written, share, now) {
                    naps_until = Some(now + nap);
                }
            }
            all
        };
        shares.iter().map(|share| in_periods_of(*share)).collect()
    }

    #[test]
    fn a_writer_is_held_to_its_share_even_when_it_catches_up() {
        let all = written(100.0, 500.0, &[0.2])[0];
        assert!((1500.0..4500.0).contains(&all), "{all} of 10,000 pages, where 2,000 are allowed");
    }

    #[test]
    fn a_writer_that_is_slowed_down_more_has_its_share_of_what_it_wrote_at_first() {
        let all = written(400.0, 2000.0, &[0.2, 0.05]);
        assert!((6000.0..18_000.0).contains(&all[0]), "{} of 40,000 pages, where 8,000 are allowed", all[0]);
        assert!((1000.0..4500.0).contains(&all[1]), "{} of 40,000 pages, where 2,000 are allowed", all[1]);
    }

    #[test]
    fn who_stays_below_its_share_is_left_alone() {
        let mut quota = Quota::new(100.0);
        assert!((0..100).all(|_| quota.spend(50.0, 0.6, Instant::now()).is_none()));
    }

    #[test]
    fn who_hardly_writes_is_no_writer() {
        assert!(Quota::new(0.5).spend(1000.0, 0.1, Instant::now()).is_none());
    }
}
