//! What the emulator carries on this host, and what that costs: UDP datagram by datagram, UDP many at once as QUIC sends
//! it, then TCP, from a to b.
//!
//! `cargo run -p vmotion-wan --example throughput [RATE [DELAY [SECONDS]]]`, as root. Sender and receiver run on the same
//! processors; the processor time shown is that of the emulator's two threads, with the receiving network stack in it.

#![expect(clippy::print_stdout, reason = "it prints what it measures")]

#[path = "../tests/common/mod.rs"]
mod common;

use anyhow::{Context as _, Result};
use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
    thread,
    time::{Duration, Instant},
};
use vmotion_wan::{BitRate, Direction, End, Impairments, Wan, WanOptions, parse_duration};

const PORT: u16 = 5001;
/// Fills a packet of 1500 bytes behind IP and UDP headers.
const DATAGRAM: usize = 1472;
/// The UDP sender's share of the rate: a little too much, so that the bottleneck is busy all the time.
const OVERLOAD: f64 = 1.05;
/// Datagrams are sent in bursts this far apart.
const TICK: Duration = Duration::from_micros(500);
/// Datagrams sent at once.
const TRAIN: usize = 16;

fn main() -> Result<()> {
    let mut words = std::env::args().skip(1);
    let rate: BitRate = words.next().as_deref().unwrap_or("1Gbit").parse()?;
    let delay = parse_duration(words.next().as_deref().unwrap_or("5ms"))?;
    let seconds = words.next().as_deref().unwrap_or("3").parse().context("SECONDS is a number")?;
    let options = WanOptions::symmetric(Impairments { rate: Some(rate), delay, ..Default::default() });
    println!("{rate} with {delay:?} each way, MTU {}, {seconds} s", options.mtu);

    let wan = Wan::start(&options)?;
    show("UDP", &wan, udp(&wan, rate, 1, Duration::from_secs(seconds))?);
    let wan = Wan::start(&options)?;
    show("UDP in trains", &wan, udp(&wan, rate, TRAIN, Duration::from_secs(seconds))?);
    let wan = Wan::start(&options)?;
    show("TCP", &wan, tcp(&wan, Duration::from_secs(seconds))?);
    Ok(())
}

/// By the program, until the last byte.
#[derive(Debug, Clone, Copy, Default)]
struct Received {
    bytes: u64,
    time: Duration,
}

fn udp(wan: &Wan, rate: BitRate, at_once: usize, time: Duration) -> Result<Received> {
    let receiver = wan.namespace(End::B).run(|| UdpSocket::bind((wan.address(End::B), PORT)))??;
    let sender = wan.namespace(End::A).run(|| UdpSocket::bind((wan.address(End::A), 0)))??;
    if at_once > 1 {
        common::send_trains(&sender, u16::try_from(DATAGRAM)?);
        common::receive_trains(&receiver);
    }
    sender.connect(receiver.local_addr()?)?;
    receiver.set_read_timeout(Some(Duration::from_millis(500)))?;
    let reading = thread::spawn(move || {
        let (mut buffer, mut received, start, mut last) = ([0; 1 << 16], 0, Instant::now(), Duration::ZERO);
        while let Ok(bytes) = receiver.recv(&mut buffer) {
            received += bytes as u64;
            last = start.elapsed();
        }
        Received { bytes: received, time: last }
    });
    let train = vec![0x5a; DATAGRAM * at_once];
    let (start, mut sent) = (Instant::now(), 0.0);
    while start.elapsed() < time {
        let due = start.elapsed().as_secs_f64() * rate.bits_per_s() as f64 / 8.0 * OVERLOAD;
        while sent < due {
            sender.send(&train)?;
            sent += 1500.0 * at_once as f64;
        }
        thread::sleep(TICK);
    }
    Ok(reading.join().unwrap_or_default())
}

fn tcp(wan: &Wan, time: Duration) -> Result<Received> {
    let listener = wan.namespace(End::B).run(|| TcpListener::bind((wan.address(End::B), PORT)))??;
    let reading = thread::spawn(move || -> Result<Received> {
        let (mut stream, _) = listener.accept()?;
        let start = Instant::now();
        let (mut buffer, mut received) = (vec![0; 256 * 1024], 0);
        loop {
            match stream.read(&mut buffer)? {
                0 => return Ok(Received { bytes: received, time: start.elapsed() }),
                bytes => received += bytes as u64,
            }
        }
    });
    let mut stream = wan.namespace(End::A).run(|| TcpStream::connect((wan.address(End::B), PORT)))??;
    let (start, chunk) = (Instant::now(), vec![0x5a; 256 * 1024]);
    while start.elapsed() < time {
        stream.write_all(&chunk)?;
    }
    drop(stream);
    reading.join().unwrap_or_else(|_| Ok(Received::default()))
}

fn show(name: &str, wan: &Wan, received: Received) {
    let seconds = received.time.as_secs_f64();
    println!("{name}: {:.0} Mbit/s received by the program", received.bytes as f64 * 8.0 / seconds / 1e6);
    for direction in Direction::BOTH {
        let counters = wan.counters(direction);
        let link = counters.link;
        println!(
            "  {direction}: {:.0} packets/s, {:.0} % of a core, late {:.0} µs, at most {:.0}; dropped by the queue {}, overrun {}",
            link.delivered.packets as f64 / seconds,
            counters.cpu.as_secs_f64() / seconds * 100.0,
            counters.late_mean.as_secs_f64() * 1e6,
            counters.late_max.as_secs_f64() * 1e6,
            link.dropped.queue.packets,
            counters.overrun,
        );
    }
}
