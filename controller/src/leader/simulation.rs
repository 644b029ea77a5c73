//! Randomised schedules of several controllers on a cluster that loses answers, delays requests and ends leases, while clocks jump and
//! controllers die: the real state machine, the real [`Fenced`] store, the real owner records and phases of moves, on virtual time.
//!
//! `VMOTION_LEADER_SCHEDULES` sets how many there are, `VMOTION_LEADER_SEED` which.

mod cluster;
mod controllers;
mod moves;
#[allow(dead_code, unreachable_pub, missing_docs, reason = "shared with the scenarios, which use other parts")]
#[path = "../../../tests/harness/random.rs"]
mod random;
mod world;

use controllers::Controllers;
use moves::Moves;
use random::{Random, seed, setting};
use std::time::Duration;
use world::World;

/// Faults come until then.
const HARM_UNTIL: Duration = Duration::from_secs(40);
/// Everything has ended by then.
const SETTLED_BY: Duration = Duration::from_secs(400);

/// What a schedule does to controllers.
#[derive(Debug, Clone, Copy)]
struct Harms {
    /// Monotonic clocks jump, back as well: no controller's idea of its lease can be trusted.
    clocks_jump: bool,
    /// Controllers stand still for a while, and go on.
    pauses: bool,
    /// Commits do not carry the token: what must be found out.
    unfenced: bool,
}

/// What a schedule showed.
#[derive(Debug, Default)]
struct Shown {
    /// Terms that began.
    terms: usize,
    /// Commits that were refused for their token.
    fenced: usize,
    /// Moves that ended as moved.
    moved: usize,
    /// Rules that were broken, in words.
    violations: Vec<String>,
}

fn run(seed: u64, harms: Harms) -> Shown {
    let world = World::new(seed);
    let controllers = Controllers::begin(&world, harms);
    let moves = Moves::begin(&world, &controllers);
    world.run(HARM_UNTIL, || false);
    controllers.heal();
    world.run(SETTLED_BY, || moves.are_over());
    moves.check();
    controllers.end();
    world.shown()
}

#[test]
fn no_commit_is_accepted_under_an_old_token_and_every_move_ends_in_one_known_state() {
    let (seed, schedules) = (seed("VMOTION_LEADER_SEED"), setting("VMOTION_LEADER_SCHEDULES", 1000));
    let mut total = Shown::default();
    for number in 0..schedules {
        let harms = Harms { clocks_jump: number % 3 == 1, pauses: number % 3 == 2, unfenced: false };
        let shown = run(seed.wrapping_mul(1_000_003).wrapping_add(number), harms);
        let about = format!("VMOTION_LEADER_SEED={seed}, schedule {number}, {harms:?}");
        assert!(shown.violations.is_empty(), "{about}: {:#?}", shown.violations);
        total.terms += shown.terms;
        total.fenced += shown.fenced;
        total.moved += shown.moved;
    }
    let Shown { terms, fenced, moved, .. } = total;
    eprintln!("{schedules} schedules: {terms} terms, {fenced} commits fenced off, {moved} machines moved");
    // The schedules do what they are for.
    let expected = usize::try_from(schedules).unwrap();
    assert!(terms > 2 * expected && fenced > expected / 20 && moved > expected);
}

#[test]
fn without_the_token_the_same_schedules_break_the_rule() {
    let broken = (0..60).filter(|number| {
        let harms = Harms { clocks_jump: number % 2 == 0, pauses: number % 2 == 1, unfenced: true };
        run(*number, harms).violations.iter().any(|violation| violation.contains("old token"))
    });
    assert!(broken.count() > 0);
}

/// A new stream of choices for each schedule: neighbouring seeds begin alike otherwise.
fn choices(seed: u64) -> Random {
    let mut random = Random::new(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x5DEE_CE66);
    (0..8).for_each(|_| {
        random.below(2);
    });
    random
}
