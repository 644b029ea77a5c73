//! Packets of real sockets through real devices. Needs root and /dev/net/tun.

#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

mod common;

use common::{Echo, receive_trains, send_trains, skipped};
use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
    process::Command,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};
use vmotion_wan::{BitRate, Counters, Direction, End, Impairments, Probability, Timeline, Wan, WanError, WanOptions};

fn adds_up(counters: &Counters) -> bool {
    let link = &counters.link;
    let dropped = link.dropped.all();
    link.offered.packets + link.duplicated.packets == link.delivered.packets + dropped.packets + link.held.packets
        && link.offered.bytes + link.duplicated.bytes == link.delivered.bytes + dropped.bytes + link.held.bytes
}

#[test]
fn a_round_trip_takes_at_least_twice_the_delay() {
    if skipped("a_round_trip_takes_at_least_twice_the_delay") {
        return;
    }
    let delay = Duration::from_millis(20);
    let wan = Wan::start(&WanOptions::symmetric(Impairments { delay, ..Default::default() })).unwrap();
    let echo = Echo::start(&wan);
    for _ in 0..20 {
        let round_trip = echo.ask(b"ping").expect("nothing is lost");
        assert!(round_trip >= 2 * delay, "{round_trip:?}");
    }
    for direction in Direction::BOTH {
        let counters = wan.counters(direction);
        assert_eq!((counters.link.delivered.packets, counters.overrun, counters.refused), (20, 0, 0));
        assert!(adds_up(&counters));
    }
}

#[test]
fn a_tcp_transfer_survives_loss_with_its_content() {
    if skipped("a_tcp_transfer_survives_loss_with_its_content") {
        return;
    }
    let impairments = Impairments {
        rate: Some(BitRate::mbit(400)),
        delay: Duration::from_millis(1),
        loss: Probability::percent(1.0),
        duplicate: Probability::percent(1.0),
        ..Default::default()
    };
    for (offloads, addresses) in
        [(true, ["10.98.0.1", "10.98.0.2"]), (true, ["fd98::1", "fd98::2"]), (false, ["10.98.0.1", "10.98.0.2"])]
    {
        let addresses = addresses.map(|address| address.parse().unwrap());
        let options = WanOptions { seed: 1, offloads, addresses, ..WanOptions::symmetric(impairments) };
        transfer(&Wan::start(&options).unwrap());
    }
}

fn transfer(wan: &Wan) {
    let sent: Vec<u8> = (0..4u32 << 20).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let listener = wan.namespace(End::B).run(|| TcpListener::bind((wan.address(End::B), 0))).unwrap().unwrap();
    let address = listener.local_addr().unwrap();
    let receiver = thread::spawn(move || {
        let mut received = Vec::new();
        listener.accept().unwrap().0.read_to_end(&mut received).unwrap();
        received
    });
    let mut stream = wan.namespace(End::A).run(|| TcpStream::connect(address)).unwrap().unwrap();
    stream.write_all(&sent).unwrap();
    drop(stream);
    assert!(receiver.join().unwrap() == sent, "content differs");
    let counters = wan.counters(Direction::AToB);
    assert!(counters.link.dropped.loss.packets > 0 && counters.link.duplicated.packets > 0, "{counters:?}");
    assert!(Direction::BOTH.iter().all(|direction| adds_up(&wan.counters(*direction))));
}

/// Sends 20 trains of 20 datagrams of 1000 bytes, each with its number in all places; what b receives at once.
fn trains_received(wan: &Wan, receive_at_once: bool) -> Vec<Vec<u8>> {
    let bind = |end| wan.namespace(end).run(|| UdpSocket::bind((wan.address(end), 0))).unwrap().unwrap();
    let [sender, receiver] = End::BOTH.map(bind);
    send_trains(&sender, 1000);
    if receive_at_once {
        receive_trains(&receiver);
    }
    let mut received = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    for train in 0..20u32 {
        let datagrams = (0..20).flat_map(|index| (train * 20 + index).to_be_bytes().repeat(250));
        sender.send_to(&datagrams.collect::<Vec<u8>>(), receiver.local_addr().unwrap()).unwrap();
        // The receiving socket has room for a few trains, not for all.
        let patience = if train < 19 { 10 } else { 500 };
        receiver.set_read_timeout(Some(Duration::from_millis(patience))).unwrap();
        while let Ok(bytes) = receiver.recv(&mut buffer) {
            received.push(buffer[..bytes].to_vec());
        }
    }
    received
}

#[test]
fn of_datagrams_sent_at_once_each_has_its_own_fate() {
    if skipped("of_datagrams_sent_at_once_each_has_its_own_fate") {
        return;
    }
    let loss = Probability::percent(20.0);
    let impairments = Impairments { delay: Duration::from_millis(1), loss, ..Default::default() };
    let mut first_arrived = None;
    for (offloads, receive_at_once) in [(true, true), (true, false), (false, true), (false, false)] {
        let wan = Wan::start(&WanOptions { seed: 1, offloads, ..WanOptions::symmetric(impairments) }).unwrap();
        let received = trains_received(&wan, receive_at_once);
        assert_eq!(received.iter().any(|train| train.len() > 1000), offloads && receive_at_once);
        let arrived = received.concat();
        assert!(arrived.chunks(1000).all(|datagram| datagram == datagram[..4].repeat(250)));
        let link = wan.counters(Direction::AToB).link;
        assert_eq!((link.offered.packets, link.offered.bytes), (400, 400 * 1028));
        assert_eq!((arrived.len() / 1000) as u64, link.delivered.packets);
        assert_eq!(link.delivered.packets + link.dropped.loss.packets, 400);
        // The seed decides which are lost, not how they are handed over.
        let first_arrived = first_arrived.get_or_insert_with(|| arrived.clone());
        assert!(*first_arrived == arrived, "others were lost, or the order is another");
    }
}

#[test]
fn a_burst_leaves_no_faster_than_the_rate() {
    if skipped("a_burst_leaves_no_faster_than_the_rate") {
        return;
    }
    const PACKETS: u32 = 40;
    let rate = Some(BitRate::mbit(2));
    let wan = Wan::start(&WanOptions::symmetric(Impairments { rate, ..Default::default() })).unwrap();
    let echo = Echo::start(&wan);
    let start = Instant::now();
    for _ in 0..PACKETS {
        // 1000 bytes with IP and UDP headers: 4 ms at 2 Mbit/s.
        echo.send(&[0; 972]);
    }
    for _ in 0..PACKETS {
        echo.receive().expect("the queue has room for all");
    }
    // There, and the last one back.
    let line_time = Duration::from_millis(4) * (PACKETS + 1);
    assert!(start.elapsed() >= line_time, "{:?}, {line_time:?} on the line", start.elapsed());
    assert!(wan.counters(Direction::AToB).link.queue_max > 30_000);
}

#[test]
fn a_cut_link_carries_nothing_and_a_restored_one_does() {
    if skipped("a_cut_link_carries_nothing_and_a_restored_one_does") {
        return;
    }
    let delay = Duration::from_millis(5);
    let wan = Wan::start(&WanOptions::symmetric(Impairments { delay, ..Default::default() })).unwrap();
    let echo = Echo::start(&wan);
    assert!(echo.ask(b"before").is_some());
    // What is on the way is lost, too.
    echo.send(b"on the way");
    wan.cut();
    echo.send(b"while cut");
    assert_eq!(echo.receive(), None);
    assert_eq!(wan.counters(Direction::AToB).link.dropped.cut.packets, 2);
    wan.restore();
    assert!(echo.ask(b"after").is_some());
    // One direction: it arrives there, the answer does not.
    wan.cut_direction(Direction::BToA, true);
    assert_eq!(echo.ask(b"one way"), None);
    assert_eq!(wan.counters(Direction::AToB).link.dropped.cut.packets, 2);
    assert_eq!(wan.counters(Direction::BToA).link.dropped.cut.packets, 1);
    assert!(Direction::BOTH.iter().all(|direction| adds_up(&wan.counters(*direction))));
}

#[test]
fn impairments_change_while_it_runs() {
    if skipped("impairments_change_while_it_runs") {
        return;
    }
    let wan = Wan::start(&WanOptions::default()).unwrap();
    let echo = Echo::start(&wan);
    assert!(echo.ask(b"fast").is_some());
    let delay = Duration::from_millis(30);
    wan.set(Direction::BToA, Impairments { delay, ..Default::default() });
    assert!(echo.ask(b"slow").unwrap() >= delay);
    assert_eq!(wan.impairments(Direction::BToA).delay, delay);
    assert_eq!(wan.impairments(Direction::AToB), Impairments::default());
}

#[test]
fn a_timeline_happens_and_says_so() {
    if skipped("a_timeline_happens_and_says_so") {
        return;
    }
    let wan = Wan::start(&WanOptions::default()).unwrap();
    let (tell, told) = mpsc::channel();
    let timeline: Timeline = "at 20ms a-to-b delay=7ms\nat 40ms cut for 20ms".parse().unwrap();
    let player = wan.play(timeline, move |after, step| tell.send((after, step.to_string())).unwrap()).unwrap();
    for (at, expected) in [(20, "a-to-b delay=7ms"), (40, "both cut"), (60, "both restore")] {
        let (after, step) = told.recv_timeout(Duration::from_secs(10)).unwrap();
        assert!(step == expected && after >= Duration::from_millis(at), "{after:?} {step}");
    }
    assert_eq!(wan.impairments(Direction::AToB).delay, Duration::from_millis(7));
    assert!(!wan.impairments(Direction::BToA).cut);
    drop(player);
    assert!(told.recv_timeout(Duration::from_secs(10)).is_err(), "the observer is gone with its player");
}

#[test]
fn long_packets_cross_where_the_mtu_allows_them() {
    if skipped("long_packets_cross_where_the_mtu_allows_them") {
        return;
    }
    let wan = Wan::start(&WanOptions { mtu: 9000, ..WanOptions::default() }).unwrap();
    let echo = Echo::start(&wan);
    assert!(echo.ask(&[7; 8972]).is_some());
    assert_eq!(wan.counters(Direction::AToB).link.delivered.bytes, 9000);
}

#[test]
fn both_ends_may_have_ipv6_addresses() {
    if skipped("both_ends_may_have_ipv6_addresses") {
        return;
    }
    let addresses = ["fd98::1", "fd98::2"].map(|address| address.parse().unwrap());
    let wan = Wan::start(&WanOptions { addresses, ..WanOptions::default() }).unwrap();
    assert!(Echo::start(&wan).ask(b"ping").is_some());
}

#[test]
fn links_do_not_meet_and_leave_nothing_behind() {
    if skipped("links_do_not_meet_and_leave_nothing_behind") {
        return;
    }
    // The same addresses and device names, at the same time.
    let wans = [(); 3].map(|()| Wan::start(&WanOptions::default()).unwrap());
    for wan in &wans {
        assert!(Echo::start(wan).ask(b"ping").is_some());
    }
    let names = || wans.iter().flat_map(|wan| End::BOTH.map(|end| wan.namespace(end).name().to_owned()));
    let names: Vec<String> = names().collect();
    let there = || names.iter().filter(|name| std::path::Path::new("/run/netns").join(name).exists()).count();
    assert_eq!(there(), 6);
    drop(wans);
    assert_eq!(there(), 0);
}

/// A namespace a caller has made.
struct Theirs(String);

impl Theirs {
    fn new(end: &str) -> Self {
        let name = format!("vmwan-test-{}-{end}", std::process::id());
        assert!(Command::new("ip").args(["netns", "add", &name]).status().unwrap().success());
        Self(name)
    }

    fn exists(&self) -> bool {
        Command::new("ip").args(["netns", "exec", &self.0, "true"]).status().unwrap().success()
    }
}

impl Drop for Theirs {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.0]).status();
    }
}

#[test]
fn namespaces_of_others_are_used_and_stay() {
    if skipped("namespaces_of_others_are_used_and_stay") {
        return;
    }
    let theirs = ["a", "b"].map(Theirs::new);
    let options = WanOptions { namespaces: [0, 1].map(|index| Some(theirs[index].0.clone())), ..WanOptions::default() };
    let wan = Wan::start(&options).unwrap();
    assert!(Echo::start(&wan).ask(b"ping").is_some());
    // The device's name is taken.
    let error = Wan::start(&options).unwrap_err();
    assert!(matches!(&error, WanError::MakeTun { device, .. } if device == "wan0"), "{error}");
    drop(wan);
    assert!(theirs.iter().all(Theirs::exists));
    // Their devices are gone: it starts again.
    drop(Wan::start(&options).unwrap());
    let missing = WanOptions { namespaces: [Some("vmwan-no-such".to_owned()), None], ..WanOptions::default() };
    assert!(matches!(Wan::start(&missing), Err(WanError::Namespace { name, .. }) if name == "vmwan-no-such"));
}

#[test]
fn a_device_that_somebody_removes_is_reported() {
    if skipped("a_device_that_somebody_removes_is_reported") {
        return;
    }
    let wan = Wan::start(&WanOptions::default()).unwrap();
    wan.check().unwrap();
    let name = wan.namespace(End::A).name();
    assert!(Command::new("ip").args(["-n", name, "link", "delete", "wan0"]).status().unwrap().success());
    let deadline = Instant::now() + Duration::from_secs(10);
    while wan.check().is_ok() {
        assert!(Instant::now() < deadline, "not noticed");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn options_that_cannot_be_are_refused_before_anything_is_made() {
    let addresses = ["10.0.0.1", "fd98::1"].map(|address| address.parse().unwrap());
    for (options, word) in [
        (WanOptions { mtu: 500, ..WanOptions::default() }, "576 to 65535"),
        (WanOptions { device: "a/b".to_owned(), ..WanOptions::default() }, "letters"),
        (WanOptions { addresses, ..WanOptions::default() }, "both IPv4"),
        (WanOptions { namespaces: [Some("x".to_owned()), Some("x".to_owned())], ..WanOptions::default() }, "two"),
    ] {
        let error = Wan::start(&options).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn a_dropped_packet_of_a_full_queue_is_counted_as_such() {
    if skipped("a_dropped_packet_of_a_full_queue_is_counted_as_such") {
        return;
    }
    // One second for each packet: one on the line, two wait.
    let impairments = Impairments { rate: BitRate::new(8_000), queue: Some(2_000), ..Default::default() };
    let wan = Wan::start(&WanOptions::symmetric(impairments)).unwrap();
    let sender = wan.namespace(End::A).run(|| UdpSocket::bind((wan.address(End::A), 0))).unwrap().unwrap();
    for _ in 0..10 {
        let sent = sender.send_to(&[0; 972], (wan.address(End::B), 9));
        assert!(sent.is_ok() || sent.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused));
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    while wan.counters(Direction::AToB).link.offered.packets < 10 {
        assert!(Instant::now() < deadline);
        thread::sleep(Duration::from_millis(1));
    }
    let link = wan.counters(Direction::AToB).link;
    assert_eq!((link.queue_max, link.dropped.queue.packets + link.delivered.packets + link.held.packets), (2_000, 10));
    assert!(link.dropped.queue.packets > 0);
}
