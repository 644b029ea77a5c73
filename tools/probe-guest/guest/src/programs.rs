//! Programs that several vCPUs run together, on memory they share: each proves its own results, and counts what it did. They are for machines
//! whose vCPUs do not share a memory by nature.
//!
//! A vCPU works on a program in slices, so that vCPU 0 can do its duties in between. An operation that proves something wrong is counted as
//! corrupt and told in a `V` line; `P` tells at the end what was done.

mod bulk;
mod litmus;
mod sharing;

use core::fmt::Write;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::boot::MAX_CPUS;
use crate::serial::Line;
use crate::shared::{COUNTERS, Counters, MAILBOXES, Plan, STOP};
use bulk::{Scan, Sort, Sum};
use litmus::Litmus;
use sharing::{Count, FalseSharing, Mutex, Queue, ReadMostly};

/// Steps between two looks at whether to stop, and on vCPU 0 at its duties.
const SLICE: u64 = 64;

/// What vCPUs do, where it is not stamping pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Program {
    /// What one vCPU sees of the order in which others write: store buffering, message passing, load buffering, independent reads of
    /// independent writes, coherence of one word.
    Litmus,
    /// `lock xadd` on one word.
    Count,
    /// Each its own word of one page.
    FalseSharing,
    /// A lock, and three words behind it.
    Mutex,
    /// A record that one writes now and then and all read all the time.
    ReadMostly,
    /// A ring from each vCPU to the next.
    Queue,
    /// Each adds up its part of the working set.
    Sum,
    /// All sort the working set.
    Sort,
    /// Each reads the whole working set.
    Scan,
}

/// The words of a page.
pub type Words = [AtomicU64; 512];

/// A page that vCPUs share.
#[repr(C, align(4096))]
pub struct Shared(pub Words);

impl Shared {
    pub const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; 512])
    }
}

/// A page for each vCPU, which only it writes.
type Each = [Shared; MAX_CPUS];

const fn each() -> Each {
    [const { Shared::new() }; MAX_CPUS]
}

/// How far each vCPU has come, for those that wait for all.
static REACHED: Each = each();

/// All wait for all.
#[derive(Default)]
struct Barrier {
    phase: u64,
    arrived: bool,
}

impl Barrier {
    /// True once, when all have come here; until then it is to be called again.
    fn pass(&mut self, cpu: usize, cpus: usize) -> bool {
        if !self.arrived {
            self.phase += 1;
            self.arrived = true;
            REACHED[cpu].0[0].store(self.phase, Ordering::Release);
        }
        if REACHED[..cpus].iter().any(|page| page.0[0].load(Ordering::Acquire) < self.phase) {
            return false;
        }
        self.arrived = false;
        true
    }
}

/// What one operation of a program came to.
enum Outcome {
    /// So many operations, all right.
    Done(u64),
    /// Nothing: somebody else is not ready.
    Waits,
    /// It proved something wrong.
    Wrong(Violation),
}

/// What must not be.
struct Violation {
    what: &'static str,
    expected: u64,
    found: u64,
}

const fn violation(what: &'static str, expected: u64, found: u64) -> Outcome {
    Outcome::Wrong(Violation { what, expected, found })
}

enum Kind {
    Litmus(Litmus),
    Count(Count),
    FalseSharing(FalseSharing),
    Mutex(Mutex),
    ReadMostly(ReadMostly),
    Queue(Queue),
    Sum(Sum),
    Sort(Sort),
    Scan(Scan),
}

/// One vCPU at its program.
pub struct Runner {
    cpu: usize,
    ops_max: u64,
    kind: Kind,
    begun: Barrier,
    runs: bool,
    cpus: usize,
}

impl Runner {
    /// The runner of vCPU `cpu`.
    pub fn new(program: Program, plan: &Plan, cpu: usize) -> Self {
        let cpus = plan.cpus;
        let kind = match program {
            Program::Litmus => Kind::Litmus(Litmus::new(cpu, cpus)),
            Program::Count => Kind::Count(Count::default()),
            Program::FalseSharing => Kind::FalseSharing(FalseSharing::new(cpu)),
            Program::Mutex => Kind::Mutex(Mutex),
            Program::ReadMostly => Kind::ReadMostly(ReadMostly::new(cpu)),
            Program::Queue => Kind::Queue(Queue::new(cpu, cpus)),
            Program::Sum => Kind::Sum(Sum::new(plan, cpu)),
            Program::Sort => Kind::Sort(Sort::new(plan, cpu)),
            Program::Scan => Kind::Scan(Scan::new(plan, cpu)),
        };
        Self { cpu, ops_max: plan.options.ops, kind, begun: Barrier::default(), runs: false, cpus }
    }

    fn counters(&self) -> &'static Counters {
        &COUNTERS[self.cpu]
    }

    /// Works a little.
    pub fn work(&mut self) {
        if STOP.load(Ordering::Acquire) {
            self.counters().stopped.store(true, Ordering::Release);
            return;
        }
        let ready = match &mut self.kind {
            Kind::Sum(sum) => sum.fill(),
            Kind::Scan(scan) => scan.fill(),
            _ => true,
        };
        if !self.runs {
            if !ready || !self.begun.pass(self.cpu, self.cpus) {
                return;
            }
            self.runs = true;
            self.counters().filled.store(true, Ordering::Release);
        }
        let (mut done, mut steps) = (0, 0);
        let written = self.counters().written.load(Ordering::Relaxed);
        while steps < SLICE {
            steps += 1;
            let outcome = match &mut self.kind {
                Kind::Litmus(litmus) => litmus.step(),
                Kind::Count(count) => count.step(),
                Kind::FalseSharing(sharing) => sharing.step(),
                Kind::Mutex(mutex) => mutex.step(),
                Kind::ReadMostly(record) => record.step(),
                Kind::Queue(queue) => queue.step(),
                Kind::Sum(sum) => sum.step(),
                Kind::Sort(sort) => sort.step(),
                Kind::Scan(scan) => scan.step(),
            };
            match outcome {
                Outcome::Done(operations) => done += operations,
                Outcome::Waits => break,
                Outcome::Wrong(violation) => {
                    done += 1;
                    self.report(&violation);
                }
            }
        }
        self.counters().written.store(written + done, Ordering::Relaxed);
        // It goes on until all have done so much: others may wait for what it does.
        if self.ops_max > 0 && written + done >= self.ops_max {
            self.counters().finished.store(true, Ordering::Release);
        }
    }

    fn report(&self, violation: &Violation) {
        let counters = self.counters();
        crate::shared::count(&counters.corrupt);
        let mut line = Line::new();
        let Violation { what, expected, found } = violation;
        let _ = writeln!(line, "V cpu={} what={what} expected={expected:#x} found={found:#x}", self.cpu);
        if !MAILBOXES[self.cpu].post(line.as_bytes()) {
            crate::shared::count(&counters.dropped);
        }
    }
}

/// When all have stopped: what must hold of all they did together. The line to print, and how many operations are missing.
pub fn conclude(program: Program, cpus: usize, line: &mut Line) -> u64 {
    let done = crate::shared::total(cpus, |cpu| &cpu.written);
    let lost = match program {
        Program::Count => sharing::counted().abs_diff(done),
        Program::Mutex => sharing::guarded().abs_diff(done),
        _ => 0,
    };
    let _ = write!(line, "P program={program:?} operations={done} lost={lost}");
    if program == Program::Litmus {
        litmus::summary(cpus, line);
    }
    let _ = writeln!(line);
    lost
}
