//! What is printed: for people, or one JSON object a line.

use serde_json::{Value, json};
use std::{io::Write as _, sync::Mutex, time::Duration};
use vmotion_model::ByteSize;
use vmotion_wan::{Counters, Direction, End, Step, Wan};

/// Where lines go. Standard output, unless a command runs that has a use for it.
#[derive(Debug)]
pub(crate) struct Output {
    json: bool,
    to_stderr: bool,
    /// What was counted when it was last shown: rates are between then and now.
    last: Mutex<(Duration, [Counters; 2])>,
}

impl Output {
    pub(crate) fn new(json: bool, to_stderr: bool) -> Self {
        Self { json, to_stderr, last: Mutex::default() }
    }

    pub(crate) fn started(&self, wan: &Wan) {
        let end = |end| json!({ "namespace": wan.namespace(end).name(), "address": wan.address(end) });
        let event = json!({ "event": "started", "seed": wan.seed(), "a": end(End::A), "b": end(End::B) });
        self.print(&event, || {
            let [a, b] = End::BOTH.map(|end| {
                format!("{end}: {:<15}  ip netns exec {} bash", wan.address(end), wan.namespace(end).name())
            });
            format!("{a}\n{b}\nseed {}", wan.seed())
        });
    }

    pub(crate) fn changed(&self, after: Duration, step: &Step) {
        let event = json!({ "event": "changed", "after_s": after.as_secs_f64(), "change": step.to_string() });
        self.print(&event, || format!("{:9.3} s  {step}", after.as_secs_f64()));
    }

    /// `event` is what the counters are for.
    pub(crate) fn counters(&self, event: &str, wan: &Wan) {
        let now = (wan.elapsed(), Direction::BOTH.map(|direction| wan.counters(direction)));
        let Ok(mut last) = self.last.lock() else { return };
        let seconds = now.0.saturating_sub(last.0).as_secs_f64().max(1e-9);
        let event = json!({ "event": event, "after_s": now.0.as_secs_f64(), "a_to_b": now.1[0], "b_to_a": now.1[1] });
        self.print(&event, || {
            let lines = Direction::BOTH.map(|direction| {
                let index = usize::from(direction == Direction::BToA);
                format!("{:9.3} s  {direction}  {}", now.0.as_secs_f64(), line(&last.1[index], &now.1[index], seconds))
            });
            lines.join("\n")
        });
        *last = now;
    }

    fn print(&self, event: &Value, text: impl FnOnce() -> String) {
        let text = if self.json { event.to_string() } else { text() };
        // A reader that is gone is no reason to end the link.
        let _ = if self.to_stderr {
            writeln!(std::io::stderr().lock(), "{text}")
        } else {
            writeln!(std::io::stdout().lock(), "{text}")
        };
    }
}

/// Rates since `last`, everything else since the start.
fn line(last: &Counters, now: &Counters, seconds: f64) -> String {
    let (before, link) = (&last.link, &now.link);
    let bits = (link.delivered.bytes - before.delivered.bytes) as f64 * 8.0;
    let packets = (link.delivered.packets - before.delivered.packets) as f64;
    let dropped = link.dropped;
    let cpu = now.cpu.saturating_sub(last.cpu).as_secs_f64() / seconds;
    let mut text = format!(
        "{:8.2} Mbit/s {:7.0} packets/s  held {} (queue at most {})  dropped: queue {} loss {} burst {} cut {}",
        bits / seconds / 1e6,
        packets / seconds,
        ByteSize(link.held.bytes),
        ByteSize(link.queue_max),
        dropped.queue.packets,
        dropped.loss.packets,
        dropped.burst_loss.packets,
        dropped.cut.packets,
    );
    for (name, count) in [
        ("duplicated", link.duplicated.packets),
        ("reordered", link.reordered),
        ("OVERRUN", now.overrun),
        ("refused", now.refused),
    ] {
        if count > 0 {
            text += &format!("  {name} {count}");
        }
    }
    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    text += &format!("  late {:.0} µs, at most {:.0}", micros(now.late_mean), micros(now.late_max));
    text + &format!("  cpu {:.0} %", cpu * 100.0)
}
