//! What happened to the packets of one direction.

use serde::Serialize;
use std::{iter::Sum, ops::AddAssign, time::Duration};

/// Packets and their bytes (IP packets, headers included).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Count {
    /// How many.
    pub packets: u64,
    /// How long all together.
    pub bytes: u64,
}

impl Count {
    pub(crate) fn add(&mut self, bytes: u32) {
        *self += Self { packets: 1, bytes: u64::from(bytes) };
    }

    pub(crate) fn remove(&mut self, bytes: u32) {
        self.packets -= 1;
        self.bytes -= u64::from(bytes);
    }
}

impl AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
    }
}

impl Sum for Count {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), |mut sum, count| {
            sum += count;
            sum
        })
    }
}

/// Packets that were dropped, by cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Dropped {
    /// The queue of the bottleneck was full.
    pub queue: Count,
    /// Lost by itself.
    pub loss: Count,
    /// Lost in a burst.
    pub burst_loss: Count,
    /// The link was cut, or was while the packet was on the way.
    pub cut: Count,
}

impl Dropped {
    /// For whatever cause.
    #[must_use]
    pub fn all(&self) -> Count {
        [self.queue, self.loss, self.burst_loss, self.cut].into_iter().sum()
    }
}

/// What happened to the packets of one direction.
///
/// At any moment: `offered + duplicated = delivered + dropped.all() + held`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct LinkCounters {
    /// What the sender sent.
    pub offered: Count,
    /// What came out at the other end, duplicates included.
    pub delivered: Count,
    /// What did not.
    pub dropped: Dropped,
    /// Copies made.
    pub duplicated: Count,
    /// Waiting, being sent, or on the wire now.
    pub held: Count,
    /// Delivered after a packet that was sent later.
    pub reordered: u64,
    /// The fullest the queue ever was, in bytes.
    pub queue_max: u64,
}

/// What happened to the packets of one direction of a running emulator, and how well the emulator kept up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Counters {
    /// What the link did.
    #[serde(flatten)]
    pub link: LinkCounters,
    /// Packets (or many handed down as one) that never reached the link: the emulator was not scheduled in time and the
    /// sender's device overflowed. Anything above 0 is loss nobody asked for.
    pub overrun: u64,
    /// Packets delivered that the receiving device refused, because it is down or the packet is malformed.
    pub refused: u64,
    /// How late a packet was delivered, at worst: the emulator's own error, in ns.
    #[serde(rename = "late_max_ns", serialize_with = "nanos")]
    pub late_max: Duration,
    /// How late packets were delivered, on average, in ns.
    #[serde(rename = "late_mean_ns", serialize_with = "nanos")]
    pub late_mean: Duration,
    /// Processor time this direction took, in ns; the receiving network stack runs on it too.
    #[serde(rename = "cpu_ns", serialize_with = "nanos")]
    pub cpu: Duration,
}

fn nanos<S: serde::Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}
