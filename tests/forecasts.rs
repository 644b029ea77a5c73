//! Moves of all kinds, each foreseen, and what became of them.
//!
//! What is asserted is that nothing is lost, that every move has a forecast, and that a move which cannot be as asked is refused while its
//! machine runs on. How far forecasts are off is printed, not asserted: it is a measurement.
//! `VMOTION_FORECASTS` sets how many moves are made, `VMOTION_FORECAST_SEED` repeats a choice of them.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test's panic is its report, its table is for readers")]

mod harness;

use harness::{Random, World, name, scenario, seed, setting};
use std::time::Duration;
use vmotion_model::{ByteSize, Deviation, MachineName, MoveOutcome, MoveRequest, MoveSummary, Strategy};

const PEER_TIMEOUT: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(180);
/// Moves of one machine, there and back.
const MOVES_OF_ONE: u64 = 5;

/// A guest, as the probe is told.
fn guest(random: &mut Random) -> (u64, String) {
    let memory = random.one_of(&[128, 256, 512, 768]);
    let set = memory * random.one_of(&[20, 40, 60, 75]) / 100;
    let rate = random.one_of(&[1, 5, 20, 60, 150]);
    let content = random.one_of(&["text", "random"]);
    let pattern = random.one_of(&["uniform", "zipf", "sequential", "readmostly"]);
    (memory, format!("ws={set}M rate={rate}M content={content} pattern={pattern} hb=20 beat=line"))
}

fn request(random: &mut Random) -> MoveRequest {
    let bandwidth_max = random.one_of(&[None, Some(40 << 20), Some(80 << 20), Some(160 << 20)]);
    let strategy = random.one_of(&[Strategy::Auto, Strategy::Auto, Strategy::Precopy, Strategy::Hybrid]);
    // Every second move has a deadline, some of them none that can be kept.
    let deadline_ms = (random.below(2) == 0).then(|| random.one_of(&[1500, 3000, 6000, 12_000, 25_000]));
    let downtime_ms_max = random.one_of(&[30, 100, 300]);
    MoveRequest { bandwidth_max, strategy, deadline_ms, downtime_ms_max, ..MoveRequest::default() }
}

/// Relative errors, and intents that were accepted and not kept.
#[derive(Default)]
struct Tally {
    total: Vec<f64>,
    downtime: Vec<f64>,
    /// As foreseen just before it.
    late_downtime: Vec<f64>,
    bytes: Vec<f64>,
    accepted: u32,
    missed: u32,
    refused: u32,
}

impl Tally {
    fn note(&mut self, request: &MoveRequest, summary: &MoveSummary) -> String {
        let expected = summary.outlook.as_ref().and_then(|outlook| outlook.expected()).expect("a move is foreseen");
        let off = |actual: f64, foreseen: f64| (actual - foreseen).abs() / actual.max(1e-9);
        let (total, downtime) = (summary.total_ms, summary.downtime.source_ms);
        self.total.push(off(total, expected.total_ms.likely));
        self.downtime.push(off(downtime, expected.downtime_ms.likely));
        self.late_downtime.push(off(downtime, summary.predicted.downtime_ms));
        self.bytes.push(off(summary.wire_bytes as f64, expected.wire_bytes.likely));
        self.accepted += 1;
        let late = request.deadline_ms.is_some_and(|deadline| total > deadline as f64 * 1.2);
        let long = downtime > f64::from(request.downtime_ms_max) * 1.2;
        self.missed += u32::from(late || long);
        format!(
            "{}: total {total:.0} ms, foreseen {:.0}; downtime {downtime:.1}, foreseen {:.1}, just before it {:.1}; {:.0} MiB, foreseen {:.0}{}",
            expected.strategy,
            expected.total_ms.likely,
            expected.downtime_ms.likely,
            summary.predicted.downtime_ms,
            summary.wire_bytes as f64 / 1_048_576.0,
            expected.wire_bytes.likely / 1_048_576.0,
            if late || long { "; NOT AS ASKED" } else { "" }
        )
    }

    fn print(&self) {
        let show = |what, errors: &[f64]| {
            if let Some(Deviation { median, p80 }) = Deviation::of(errors.to_vec()) {
                println!("{what}: median error {:.1} %, 8 of 10 within {:.1} %", median * 100.0, p80 * 100.0);
            }
        };
        show("total time", &self.total);
        show("downtime", &self.downtime);
        show("downtime, foreseen just before it", &self.late_downtime);
        show("bytes", &self.bytes);
        println!(
            "{} moves, {} of them not as asked by over 20 %; {} refused",
            self.accepted, self.missed, self.refused
        );
    }
}

#[test]
fn moves_are_foreseen() {
    scenario("moves_are_foreseen", async {
        let seed = seed("VMOTION_FORECAST_SEED");
        let moves = setting("VMOTION_FORECASTS", 6);
        println!("VMOTION_FORECAST_SEED={seed} VMOTION_FORECASTS={moves}");
        let mut random = Random::new(seed);
        let world = World::start(PEER_TIMEOUT, None).await;
        let mut tally = Tally::default();
        let mut made = 0;
        while made < moves {
            let machine: MachineName = name(&format!("vm{made}"));
            let (memory, cmdline) = guest(&mut random);
            println!("{machine}: {memory} MiB, {cmdline}");
            world.create(world.spec(machine.as_str(), ByteSize::mib(memory), &cmdline), "h1").await;
            world.wait_for_console(&machine, "READY").await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            for _ in 0..MOVES_OF_ONE.min(moves - made) {
                made += 1;
                let owner = world.client.owner(&machine).await.unwrap().owner;
                let to = if owner.as_str() == "h1" { "h2" } else { "h1" };
                let request = request(&mut random);
                let operation = world.start_move(&machine, to, request.clone()).await;
                let operation = world.wait_for_outcome(&operation, PATIENCE).await;
                let asked = format!(
                    "{made}: {} at {:?} MiB/s, deadline {:?} ms, downtime {} ms",
                    request.strategy,
                    request.bandwidth_max.map(|limit| limit >> 20),
                    request.deadline_ms,
                    request.downtime_ms_max
                );
                match operation.outcome.unwrap() {
                    MoveOutcome::Moved => {
                        println!("{asked}: {}", tally.note(&request, &operation.summary.expect("the source lived")));
                    }
                    MoveOutcome::RolledBack { reason } => {
                        let refused = reason.contains("impossible: ") || reason.contains("does not converge");
                        assert!(refused, "{asked}: {reason}");
                        tally.refused += 1;
                        println!("{asked}: {reason}");
                    }
                    other => panic!("{asked}: {other:?}"),
                }
                assert_eq!(world.copies(&machine).await.len(), 1);
                // Refused or moved, the guest writes on; what it touches anew is touched by now.
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            assert_eq!(world.console(&machine).complaints(), Vec::<String>::new());
            world.client.stop(&machine).await.unwrap();
            world.client.remove(&machine).await.unwrap();
        }
        tally.print();
        world.stop().await;
    });
}
