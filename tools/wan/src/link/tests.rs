//! What a link promises, for whatever it is offered.

use super::*;
use crate::{BitRate, BurstLoss, Distribution, Probability, Reorder};
use proptest::{collection::vec, prelude::*};

const SEED: u64 = 42;

/// Gap before a packet in µs, and its length.
type Offers = Vec<(u64, u32)>;

fn offers() -> impl Strategy<Value = Offers> {
    vec((0..200u64, 20..9000u32), 1..200)
}

fn micros(n: u64) -> Duration {
    Duration::from_micros(n)
}

fn rate() -> impl Strategy<Value = BitRate> {
    (1_000_000..2_000_000_000u64).prop_map(|bits| BitRate::new(bits).unwrap())
}

fn probability() -> impl Strategy<Value = Probability> {
    (0.0..=1.0).prop_map(|fraction| Probability::new(fraction).unwrap())
}

prop_compose! {
    fn anything()(
        rate in proptest::option::of(rate()),
        queue in proptest::option::of(0..100_000u64),
        delay in 0..3000u64,
        jitter in 0..3000u64,
        normal: bool,
        jitter_reorder: bool,
        (loss, enter, leave, burst, reorder, duplicate) in
            (probability(), probability(), probability(), probability(), probability(), probability()),
        by in 0..1000u64,
        some_burst: bool,
        some_reorder: bool,
    ) -> Impairments {
        Impairments {
            rate,
            queue,
            delay: micros(delay),
            jitter: micros(jitter),
            jitter_distribution: if normal { Distribution::Normal } else { Distribution::Uniform },
            jitter_reorder,
            loss: Probability::new(loss.fraction() / 2.0).unwrap(),
            burst_loss: some_burst.then_some(BurstLoss { enter, leave, loss: burst }),
            reorder: some_reorder.then_some(Reorder { probability: reorder, by: micros(by) }),
            duplicate,
            cut: false,
        }
    }
}

/// Everything that comes out, when: the link is asked exactly when it wants to be.
fn run(link: &mut Link<u64>, offers: &Offers) -> Vec<Delivery<u64>> {
    let mut out = Vec::new();
    let mut now = link.now;
    for (index, (gap, bytes)) in (0..).zip(offers) {
        now += micros(*gap);
        drain(link, now, &mut out);
        let _ = link.offer(now, *bytes, index);
    }
    drain(link, Duration::from_secs(1_000_000), &mut out);
    out
}

fn drain(link: &mut Link<u64>, until: Duration, out: &mut Vec<Delivery<u64>>) {
    while let Some(due) = link.next_due().filter(|due| *due <= until) {
        while let Some(delivery) = link.deliver(due) {
            assert_eq!(delivery.due, due.max(delivery.due), "nothing arrives before next_due()");
            out.push(delivery);
        }
    }
}

fn adds_up(counters: &LinkCounters) -> bool {
    let mut came = counters.offered;
    came += counters.duplicated;
    came == [counters.delivered, counters.dropped.all(), counters.held].into_iter().sum()
}

proptest! {
    #[test]
    fn never_faster_than_the_rate(offers in offers(), rate in rate(), delay in 0..1000u64) {
        let mut link = Link::new(
            Impairments { rate: Some(rate), delay: micros(delay), queue: Some(200_000), ..Default::default() }, SEED);
        let out = run(&mut link, &offers);
        // Over every window from just after one arrival to another: what arrived in it took its time.
        for (index, first) in out.iter().enumerate() {
            let mut bits = 0;
            for last in &out[index + 1..] {
                bits += u128::from(last.bytes) * 8;
                let window = (last.due - first.due).as_nanos();
                // Arrivals are whole nanoseconds: one may be missing from the window.
                prop_assert!((window + 1) * u128::from(rate.bits_per_s()) >= bits * 1_000_000_000);
            }
        }
    }

    #[test]
    fn a_busy_line_loses_no_time(packets in vec(20..9000u32, 1..100), rate in rate()) {
        let mut link = Link::new(
            Impairments { rate: Some(rate), queue: Some(u64::MAX), ..Default::default() }, SEED);
        let out = run(&mut link, &packets.iter().map(|bytes| (0, *bytes)).collect());
        let bits = u128::from(packets.iter().sum::<u32>()) * 8;
        let expected = (bits * 1_000_000_000).div_ceil(u128::from(rate.bits_per_s()));
        prop_assert_eq!(out.last().unwrap().due.as_nanos(), expected);
    }

    #[test]
    fn delay_is_exact(offers in offers(), delay in 0..1_000_000u64) {
        let mut link = Link::new(Impairments { delay: micros(delay), ..Default::default() }, SEED);
        let out = run(&mut link, &offers);
        let mut sent = Duration::ZERO;
        for ((gap, _), delivery) in offers.iter().zip(&out) {
            sent += micros(*gap);
            prop_assert_eq!(delivery.due, sent + micros(delay));
        }
        prop_assert_eq!(out.len(), offers.len());
    }

    #[test]
    fn order_is_kept_unless_changing_it_was_asked(offers in offers(), mut impairments in anything()) {
        (impairments.jitter_reorder, impairments.reorder) = (false, None);
        let mut link = Link::new(impairments, SEED);
        let out = run(&mut link, &offers);
        prop_assert!(out.is_sorted_by_key(|delivery| (delivery.due, delivery.packet)));
        prop_assert_eq!(link.counters().reordered, 0);
    }

    #[test]
    fn every_packet_is_accounted_for(
        offers in offers(),
        first in anything(),
        second in anything(),
        cut in 0..3u8,
    ) {
        let mut link = Link::new(first, SEED);
        let (before, after) = offers.split_at(offers.len() / 2);
        let mut now = Duration::ZERO;
        for (index, (gap, bytes)) in (0..).zip(before) {
            now += micros(*gap);
            let _ = link.offer(now, *bytes, index);
            prop_assert!(adds_up(link.counters()));
        }
        link.set(now, Impairments { cut: cut == 0, ..second });
        prop_assert!(adds_up(link.counters()));
        prop_assert!(cut != 0 || link.next_due().is_none());
        let out = run(&mut link, &after.to_vec());
        prop_assert!(adds_up(link.counters()));
        prop_assert_eq!(link.counters().held, Count::default());
        prop_assert!(cut != 0 || out.is_empty());
    }

    #[test]
    fn the_queue_is_bounded(offers in offers(), mut impairments in anything(), queue in 0..50_000u64) {
        impairments.queue = Some(queue);
        let mut link = Link::new(impairments, SEED);
        run(&mut link, &offers);
        prop_assert!(link.counters().queue_max <= queue);
    }

    #[test]
    fn the_same_seed_has_the_same_fate(offers in offers(), impairments in anything(), seed: u64) {
        let outs = [(); 2].map(|()| run(&mut Link::new(impairments, seed), &offers));
        prop_assert_eq!(&outs[0], &outs[1]);
    }

    #[test]
    fn how_often_it_is_asked_changes_nothing(offers in offers(), impairments in anything()) {
        let eager = run(&mut Link::new(impairments, SEED), &offers);
        let mut link = Link::new(impairments, SEED);
        let mut now = Duration::ZERO;
        for (index, (gap, bytes)) in (0..).zip(&offers) {
            now += micros(*gap);
            let _ = link.offer(now, *bytes, index);
        }
        let mut late = Vec::new();
        while let Some(delivery) = link.deliver(Duration::from_secs(1_000_000)) {
            late.push(delivery);
        }
        prop_assert_eq!(eager, late);
    }

    #[test]
    fn jitter_stays_within_its_spread(offers in offers(), normal: bool, jitter in 1..5000u64) {
        let distribution = if normal { Distribution::Normal } else { Distribution::Uniform };
        let impairments = Impairments {
            delay: micros(20_000),
            jitter: micros(jitter),
            jitter_distribution: distribution,
            jitter_reorder: true,
            ..Default::default()
        };
        let furthest = if normal { micros(3 * jitter) } else { micros(jitter) };
        let mut sent = Vec::new();
        for (gap, _) in &offers {
            sent.push(sent.last().copied().unwrap_or_default() + micros(*gap));
        }
        for delivery in run(&mut Link::new(impairments, SEED), &offers) {
            let sent = sent[usize::try_from(delivery.packet).unwrap()];
            prop_assert!((delivery.due - sent).abs_diff(impairments.delay) <= furthest);
        }
    }
}

/// `count` packets of 1000 bytes, 10 µs apart.
fn steady(count: usize) -> Offers {
    vec![(10, 1000); count]
}

/// Within `sigmas` standard deviations of what was asked, of `count` independent packets.
fn near(packets: u64, count: u64, probability: f64, sigmas: f64) -> bool {
    let count = count as f64;
    let deviation = (count * probability * (1.0 - probability)).sqrt();
    (packets as f64 - count * probability).abs() <= sigmas * deviation
}

#[test]
fn loss_is_as_frequent_as_asked() {
    for percent in [0.1, 1.0, 30.0] {
        let mut link = Link::new(Impairments { loss: Probability::percent(percent), ..Default::default() }, SEED);
        run(&mut link, &steady(200_000));
        let lost = link.counters().dropped.loss.packets;
        assert!(near(lost, 200_000, percent / 100.0, 4.0), "{lost} of 200000 at {percent} %");
    }
}

#[test]
fn bursts_are_as_long_and_as_frequent_as_asked() {
    let burst_loss = Some(BurstLoss {
        enter: Probability::percent(0.5),
        leave: Probability::percent(20.0),
        loss: Probability::ALWAYS,
    });
    let mut link = Link::new(Impairments { burst_loss, ..Default::default() }, SEED);
    let out = run(&mut link, &steady(400_000));
    let gaps: Vec<u64> =
        out.windows(2).map(|pair| pair[1].packet - pair[0].packet - 1).filter(|gap| *gap > 0).collect();
    let mean = gaps.iter().sum::<u64>() as f64 / gaps.len() as f64;
    assert!((4.7..5.3).contains(&mean), "bursts of {mean} packets, 1 / 20 % asked");
    let share = link.counters().dropped.burst_loss.packets as f64 / 400_000.0;
    // enter / (enter + leave)
    assert!((0.0225..0.0263).contains(&share), "{share} lost, 2.44 % asked");
}

#[test]
fn a_lost_packet_has_used_its_share_of_the_rate() {
    let impairments = Impairments { rate: Some(BitRate::mbit(8)), loss: Probability::ALWAYS, ..Default::default() };
    let mut link = Link::new(impairments, SEED);
    let _ = link.offer(Duration::ZERO, 1000, 0);
    link.set(micros(500), Impairments { loss: Probability::ALWAYS, ..impairments });
    let _ = link.offer(micros(500), 1000, 1);
    link.set(micros(1500), Impairments { loss: Probability::NEVER, ..impairments });
    let mut out = Vec::new();
    drain(&mut link, Duration::from_secs(1), &mut out);
    assert_eq!(out, [Delivery { packet: 1, bytes: 1000, due: micros(2000) }]);
}

#[test]
fn a_packet_held_back_is_overtaken_by_those_within_its_time() {
    let reorder = Some(Reorder { probability: Probability::ALWAYS, by: micros(25) });
    let mut link = Link::new(Impairments { reorder, ..Default::default() }, SEED);
    let _ = link.offer(Duration::ZERO, 100, 0);
    link.set(micros(5), Impairments::default());
    for index in 1..4 {
        let _ = link.offer(micros(index * 10), 100, index);
    }
    let mut out = Vec::new();
    drain(&mut link, Duration::from_secs(1), &mut out);
    assert_eq!(out.iter().map(|delivery| delivery.packet).collect::<Vec<_>>(), [1, 2, 0, 3]);
    assert_eq!(link.counters().reordered, 1);
}

#[test]
fn duplicates_arrive_twice_and_are_counted() {
    let mut link = Link::new(Impairments { duplicate: Probability::percent(10.0), ..Default::default() }, SEED);
    let out = run(&mut link, &steady(10_000));
    let counters = link.counters();
    assert_eq!(out.len() as u64, 10_000 + counters.duplicated.packets);
    assert!(near(counters.duplicated.packets, 10_000, 0.1, 4.0), "{}", counters.duplicated.packets);
    assert_eq!(counters.reordered, 0);
}

#[test]
fn a_full_queue_drops_the_newest() {
    let mut link =
        Link::new(Impairments { rate: Some(BitRate::mbit(8)), queue: Some(2000), ..Default::default() }, SEED);
    // One on the line, two wait; a packet takes 1 ms.
    let fates: Vec<Fate> = (0..4).map(|index| link.offer(Duration::ZERO, 1000, index)).collect();
    assert_eq!(fates, [Fate::Accepted, Fate::Accepted, Fate::Accepted, Fate::DroppedByQueue]);
    assert_eq!(link.offer(micros(1000), 1000, 4), Fate::Accepted);
    assert_eq!(link.counters().queue_max, 2000);
}

#[test]
fn an_unlimited_link_still_holds_a_bounded_number() {
    let mut link = Link::new(Impairments { delay: Duration::from_secs(60), ..Default::default() }, SEED);
    let offered = HELD_BYTES_MAX / u64::from(u32::MAX / 64) + 10;
    for index in 0..offered {
        let _ = link.offer(Duration::ZERO, u32::MAX / 64, index);
    }
    assert!(link.counters().held.bytes <= HELD_BYTES_MAX);
    assert!(link.counters().dropped.queue.packets > 0);
}

#[test]
fn jitter_does_not_change_which_packets_are_lost() {
    let lossy = Impairments { loss: Probability::percent(5.0), ..Default::default() };
    let arrived = |impairments| -> Vec<u64> {
        let mut link = Link::new(impairments, SEED);
        let mut arrived: Vec<u64> = run(&mut link, &steady(1000)).iter().map(|delivery| delivery.packet).collect();
        arrived.sort_unstable();
        arrived
    };
    let jittery = Impairments { jitter: micros(500), jitter_reorder: true, delay: micros(500), ..lossy };
    assert_eq!(arrived(lossy), arrived(jittery));
}

#[test]
fn a_cut_loses_what_is_on_the_way_and_a_restored_link_carries_again() {
    let delayed = Impairments { delay: micros(1000), ..Default::default() };
    let mut link = Link::new(delayed, SEED);
    let _ = link.offer(Duration::ZERO, 100, 0);
    link.set(micros(500), Impairments { cut: true, ..delayed });
    assert_eq!(link.offer(micros(600), 100, 1), Fate::DroppedByCut);
    link.set(micros(700), delayed);
    let _ = link.offer(micros(700), 100, 2);
    let mut out = Vec::new();
    drain(&mut link, Duration::from_secs(1), &mut out);
    assert_eq!(out, [Delivery { packet: 2, bytes: 100, due: micros(1700) }]);
    assert_eq!(link.counters().dropped.cut.packets, 2);
}

#[test]
fn a_new_rate_holds_for_what_already_waits() {
    let slow = Impairments { rate: Some(BitRate::mbit(8)), ..Default::default() };
    let mut link = Link::new(slow, SEED);
    for index in 0..3 {
        let _ = link.offer(Duration::ZERO, 1000, index);
    }
    link.set(micros(500), Impairments { rate: Some(BitRate::mbit(80)), ..slow });
    let mut out = Vec::new();
    drain(&mut link, Duration::from_secs(1), &mut out);
    // Half of the first at 8 Mbit/s, the rest of it and the others at 80.
    assert_eq!(out.iter().map(|delivery| delivery.due).collect::<Vec<_>>(), [micros(550), micros(650), micros(750)]);
}
