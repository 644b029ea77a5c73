//! What local APICs, I/O APICs and whoever stands between them say to each other. One message is one interrupt; who has the processor it
//! is for delivers it, on this host or on another.

use serde::{Deserialize, Serialize};

/// An interrupt on its way. SDM volume 3, "Local and I/O APIC", calls it an interrupt message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Message {
    /// For whom.
    pub destination: Destination,
    /// What it does there.
    pub delivery: Delivery,
    /// Of [`Delivery::Fixed`] and [`Delivery::LowestPriority`] the vector, of [`Delivery::StartUp`] the page to start at; of no
    /// meaning otherwise.
    pub vector: u8,
    /// Whether its end is to be told to the I/O APICs.
    pub trigger: Trigger,
}

/// Processors that a message is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Destination {
    /// The processor whose APIC has this id; [`EVERYBODY`] means all.
    Physical(u8),
    /// Every processor whose logical id matches.
    Logical(u8),
    /// The sender.
    Sender,
    /// All, the sender too.
    All,
    /// All but the sender.
    Others,
}

/// The physical id that no processor has, and that all answer to.
pub const EVERYBODY: u8 = 0xff;

/// What a message does to the processor it reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Delivery {
    /// Raises the vector at all destinations.
    Fixed,
    /// Raises the vector at the one destination that is least busy.
    LowestPriority,
    /// A system management interrupt. No guest of ours has a handler.
    SystemManagement,
    /// A non-maskable interrupt.
    NonMaskable,
    /// Back to the state after reset, waiting for [`Delivery::StartUp`].
    Init,
    /// Begin to execute, if waiting for that.
    StartUp,
    /// The vector is to be asked of the old interrupt controller.
    External,
}

/// How a line says that there is something to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Trigger {
    /// By changing: once.
    Edge,
    /// By being high: as long as it is.
    Level,
}

impl Delivery {
    /// As the three bits of a register name it; `None` for one that is reserved.
    pub(super) const fn from_bits(bits: u32) -> Option<Self> {
        Some(match bits & 7 {
            0 => Self::Fixed,
            1 => Self::LowestPriority,
            2 => Self::SystemManagement,
            4 => Self::NonMaskable,
            5 => Self::Init,
            6 => Self::StartUp,
            7 => Self::External,
            _ => return None,
        })
    }
}

impl Trigger {
    pub(super) const fn from_bit(level: bool) -> Self {
        if level { Self::Level } else { Self::Edge }
    }
}
