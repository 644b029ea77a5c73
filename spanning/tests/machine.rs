//! A real machine on real KVM that spans several parts: what its vCPUs prove together.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a panic in a test is its report")]

mod machines;

use machines::{Random, SOON, Spanning, cmdline, host, kvm_or_skip};
use std::time::{Duration, Instant};
use vmotion_machine::ExitReason;
use vmotion_pager::Stalls;
use vmotion_probe_guest::Program;
use vmotion_spanning::{directory::shards, part::SpanningPart};
use vmotion_sys::kvm::{set_tsc_offset, tsc_offset};

#[test]
fn every_program_proves_itself_on_three_hosts() {
    if !kvm_or_skip("every_program_proves_itself_on_three_hosts") {
        return;
    }
    for program in Program::ALL {
        let begun = Instant::now();
        let operations = if program == Program::Litmus { 4096 } else { 1000 };
        let machine = Spanning::boot(3, 3, 64, &cmdline(program, operations));
        println!("{} in {:?}", machine.finish(program), begun.elapsed());
    }
}

/// Moves vCPUs and homes about until the guest has ended; how often each, and the pauses of vCPUs.
fn stir(machine: &Spanning, seed: u64, every: Duration) -> (Vec<Duration>, u32) {
    let mut random = Random(seed);
    let (mut pauses, mut homes) = (Vec::new(), 0);
    let all: Vec<_> = shards(machine.hub().memory().layout()).collect();
    while machine.hub().wait_exit(every).is_none() {
        let to = random.below(machine.parts.len());
        if random.below(2) == 0 {
            let vcpu = u8::try_from(random.below(usize::from(machine.hub().spec().cpus))).unwrap();
            pauses.extend(machine.move_vcpu(vcpu, to));
        } else {
            // Whoever has it gives it; the others refuse.
            let shard = all[random.below(all.len())];
            let given = machine.parts.values().filter(|part| part.give_home(shard, host(to)).is_ok()).count();
            homes += u32::try_from(given).unwrap();
        }
    }
    (pauses, homes)
}

#[test]
fn pieces_move_while_programs_run() {
    if !kvm_or_skip("pieces_move_while_programs_run") {
        return;
    }
    for (program, seed) in
        [Program::Litmus, Program::Count, Program::Mutex, Program::Queue, Program::Scan].into_iter().zip(1..)
    {
        let machine = Spanning::boot(3, 4, 64, &cmdline(program, u64::MAX).seconds(6));
        let (mut pauses, homes) = stir(&machine, seed, Duration::from_millis(50));
        pauses.sort_unstable();
        let (longest, count) = (pauses.last().copied(), pauses.len());
        println!("{} {count} vCPUs moved, at most {longest:?}, {homes} homes", machine.finish(program));
        assert!(count > 10 && homes > 10, "{count} vCPUs and {homes} homes were moved");
    }
}

#[test]
fn parts_have_one_time() {
    if !kvm_or_skip("parts_have_one_time") {
        return;
    }
    let machine = Spanning::boot(3, 3, 64, &cmdline(Program::Mutex, u64::MAX).seconds(6));
    let mut random = Random(7);
    for _ in 0..20 {
        assert_eq!(machine.hub().wait_exit(Duration::from_millis(100)), None);
        let vcpu = u8::try_from(random.below(3)).unwrap();
        machine.move_vcpu(vcpu, random.below(3));
    }
    let clocks: Vec<_> = machine.parts.values().map(SpanningPart::clocks).collect();
    for (here, rows) in clocks.iter().enumerate() {
        assert_eq!(rows.len(), 2, "{rows:?}");
        for row in rows {
            println!("{} at h{here}: {row:?}", row.host);
            assert!(row.exchanges > 10 && row.uncertain_ns < 20_000_000, "{row:?}");
            // They have one TSC, so one is ahead by as much as the other is behind.
            let back = clocks[row.host.index()].iter().find(|back| back.host == host(here)).unwrap();
            let apart = (row.ahead_ns + back.ahead_ns).unsigned_abs();
            assert!(apart <= row.uncertain_ns + back.uncertain_ns, "{row:?} {back:?}");
        }
    }
    println!("{}", machine.finish(Program::Mutex));
}

/// Without hardware virtualisation KVM takes offsets and keeps its own.
fn keeps_tsc_offsets() -> bool {
    let vcpu = kvm_ioctls::Kvm::new().unwrap().create_vm().unwrap().create_vcpu(0).unwrap();
    let offset = tsc_offset(&vcpu).unwrap().wrapping_add(1);
    set_tsc_offset(&vcpu, offset).unwrap();
    tsc_offset(&vcpu).unwrap() == offset
}

#[test]
fn a_vcpu_that_is_set_forward_keeps_that_wherever_it_goes() {
    if !kvm_or_skip("a_vcpu_that_is_set_forward_keeps_that_wherever_it_goes") {
        return;
    }
    let begun = Instant::now();
    let (guest, ahead, rounds) = (Duration::from_secs(8), Duration::from_millis(400), 10);
    let machine = Spanning::boot(1, 2, 64, &cmdline(Program::Mutex, u64::MAX).seconds(guest.as_secs()));
    let hub = machine.hub();
    let ticks = u64::from(hub.host_tsc_khz()) * u64::try_from(ahead.as_millis()).unwrap();
    for round in 1..=rounds {
        assert_eq!(hub.wait_exit(Duration::from_millis(20)), None);
        hub.advance_tsc(ticks);
        // The other vCPU follows while it runs.
        let vcpu = u8::from(round % 4 == 0);
        if round % 2 == 0 {
            let released = hub.release_vcpu(vcpu).unwrap();
            assert_eq!(released.tsc_advanced, ticks * u64::from(round));
            hub.adopt_vcpu(vcpu, &released.state, 0u64.wrapping_sub(released.tsc_advanced)).unwrap().run();
        }
    }
    println!("{}", machine.finish(Program::Mutex));
    let (took, most) = (begun.elapsed(), guest - ahead * (rounds - 1));
    if !keeps_tsc_offsets() {
        println!("SKIPPED what the guest sees of it: it sees this host's TSC; took {took:?}");
        return;
    }
    assert!(took < most, "a guest that was set forward by {:?} took {took:?} for {guest:?}", ahead * rounds);
}

/// What remote faults cost, and what local work loses: nothing is asserted.
#[test]
#[ignore = "a measurement: cargo nextest run -p vmotion-spanning --test machine --run-ignored only --no-capture measure"]
fn measure() {
    if !kvm_or_skip("measure") {
        return;
    }
    let line = |program| cmdline(program, u64::MAX).working_set_bytes(128 << 20).seconds(5);
    for program in
        [Program::Scan, Program::Count, Program::FalseSharing, Program::Mutex, Program::Queue, Program::Litmus]
    {
        let machine = Spanning::boot(2, 2, 256, &line(program));
        let exit = machine.hub().wait_exit(SOON);
        assert_eq!(exit, Some(ExitReason::PowerOff));
        for (number, part) in &machine.parts {
            let faults = part.memory().statistics().unwrap().faults;
            let rows = [
                ("reads, home here", faults.reads_here),
                ("reads, home elsewhere", faults.reads_away),
                ("writes, home here", faults.writes_here),
                ("writes, home elsewhere", faults.writes_away),
            ];
            for (what, Stalls { count, p50, p99, p999, .. }) in rows {
                println!("h{number} {what:24} {count:8}   p50 {p50:>10.1?}   p99 {p99:>10.1?}   p999 {p999:>10.1?}");
            }
        }
        println!("{}", machine.finish(program));
    }
}

/// What a machine loses by being on two hosts when each vCPU works on what is on its own: all parts and meshes are in this process, so its processor
/// time has all that they cost.
#[test]
#[ignore = "a measurement: cargo nextest run -p vmotion-spanning --test machine --run-ignored only --no-capture local_work"]
fn measure_local_work() {
    const RUNS: usize = 4;
    if !kvm_or_skip("measure_local_work") {
        return;
    }
    let processor_s = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        // A thread may have ended meanwhile.
        let of = |task: std::io::Result<std::fs::DirEntry>| {
            let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<f64>().ok()
        };
        tasks.filter_map(of).sum::<f64>() / 1e9
    };
    let median = |mut all: Vec<f64>| {
        all.sort_unstable_by(f64::total_cmp);
        all[all.len() / 2]
    };
    for program in [Program::Sum] {
        let mut figures = [Vec::new(), Vec::new()];
        for number in 0..RUNS {
            // One host, two, two, one: whatever drifts is in both.
            let two = number % 4 == 1 || number % 4 == 2;
            let line = cmdline(program, u64::MAX).working_set_bytes(128 << 20).seconds(20);
            let mut machine = Spanning::boot(if two { 2 } else { 1 }, 2, 256, &line);
            // What is read first comes from where it was written, some thousand pages a second: of no interest here.
            let begun = Instant::now();
            let pages = |machine: &mut Spanning| {
                machine.read_console();
                // The last line may not be complete yet, and then its number is another.
                let whole = machine.console.0.rfind('\n').map_or("", |end| &machine.console.0[..end]);
                let last = whole.lines().rev().find_map(|line| line.strip_prefix("S ")?.split("written=").nth(1));
                last.and_then(|rest| rest.split(' ').next()?.parse::<f64>().ok())
            };
            let mut first = None;
            while begun.elapsed() < Duration::from_secs(14) {
                std::thread::sleep(Duration::from_millis(20));
                first = pages(&mut machine).or(first);
            }
            // At a line, of which there is one a second.
            let next = |machine: &mut Spanning, than: Option<f64>| loop {
                let now = pages(machine);
                if let Some(now) = now.filter(|now| than != Some(*now)) {
                    return (now, processor_s(), Instant::now());
                }
                assert!(machine.hub().wait_exit(Duration::from_millis(1)).is_none());
            };
            let before = next(&mut machine, first);
            let middle = next(&mut machine, Some(before.0));
            let after = next(&mut machine, Some(middle.0));
            let work = after.0 - before.0;
            figures[usize::from(two)].push((work / (after.2 - before.2).as_secs_f64(), work / (after.1 - before.1)));
            assert_eq!(machine.hub().wait_exit(SOON), Some(ExitReason::PowerOff));
            machine.finish(program);
        }
        for (what, is_rate) in [("in a second", true), ("in a second of processor time", false)] {
            let [one, two] = [0, 1].map(|which: usize| {
                median(figures[which].iter().map(|run| if is_rate { run.0 } else { run.1 }).collect())
            });
            println!(
                "{:8} {what:34} one host {one:12.0}   two {two:12.0}   {:6.1} %",
                program.to_string(),
                two / one * 100.0
            );
        }
    }
}
