//! What would a long, slow or lossy link do to this? A WAN in user space, between two network namespaces.
//!
//! ```text
//! namespace a               this process                namespace b
//!  ┌──────┐        ┌──────────────────────────┐          ┌──────┐
//!  │ wan0 │──TUN──▶│ Link a→b   rate … jitter │──TUN────▶│ wan0 │
//!  │      │◀───────│ Link b→a   rate … jitter │◀─────────│      │
//!  └──────┘        └──────────────────────────┘          └──────┘
//! ```
//! Each end is a network namespace with a TUN device; every IP packet between them, whatever its protocol, crosses a
//! [`Link`]. A link is a state machine without clock or I/O; [`Wan`] gives it both.

mod counters;
mod direction;
mod error;
mod frame;
mod impairments;
mod link;
mod namespace;
mod player;
mod pump;
mod punctual;
mod random;
mod setting;
mod timeline;
mod tun;
mod units;
mod wan;

pub use counters::{Count, Counters, Dropped, LinkCounters};
pub use direction::{Direction, End};
pub use error::WanError;
pub use impairments::{BurstLoss, Distribution, Impairments, Reorder};
pub use link::{Delivery, Fate, Link};
pub use namespace::Namespace;
pub use player::Player;
pub use setting::{FIELDS, Field, Setting, SettingError};
pub use timeline::{Change, StatementError, Step, Timeline, TimelineError};
pub use units::{BitRate, Probability, UnitError, parse_duration};
pub use wan::{Wan, WanOptions};
