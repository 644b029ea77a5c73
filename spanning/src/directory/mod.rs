//! The page directory: which host may read a page, which one may write it, and where its newest bytes are.
//!
//! ```text
//!            requests: GetS, GetM, Put                 orders: Inv, Recall
//!   Holder ──────────────────────────────▶  Home  ───────────────────────────▶ Holder
//!   one per host and page                   one per page                       the hosts that have the page
//!     ▲                                       │  ▲                                    │
//!     └───── replies: Grant, PutAck, ─────────┘  └───── answers: Ack, AckData, Done ──┘
//!            Redirect, Lost
//! ```
//! A [`Holder`] is what one host knows about one page; it faces the guest. A [`Home`] is what the one host that is in charge of the page
//! knows about all copies; it runs one transaction at a time. [`Homes`] keeps the homes of a host in 2 MiB [`Shard`](ShardNumber)s and moves
//! them; [`Table`] says where a shard's home is. Home and holder of the same host talk by messages too, so no case is special.
//!
//! The one invariant: either one host may write a page and nobody else may touch it, or nobody may write it and every copy holds the same
//! bytes, which the home has as well.
//!
//! **What the streams must do.** Between two hosts there is one ordered stream per [`Class`] and group of shards; between classes nothing is
//! ordered. Streams survive a lost connection: [`replay`] sends again what was not acknowledged and drops what comes twice.
//!
//! **What the driver must do.** Carry out the effects of one step in their order, before the next step of that page; answer `Installed` and
//! `Read` only when the system calls have returned; never read before the revocation has.
//!
//! From: Li and Hudak, *Memory coherence in shared virtual memory systems* (1989), the fixed distributed manager; Nagarajan, Sorin, Hill
//! and Wood, *A primer on memory consistency and cache coherence*, the directory protocol with a blocking home; Fleisch and Popek,
//! *Mirage* (1989), the hold window.

mod error;
mod event;
mod habit;
mod holder;
mod home;
mod homes;
mod hosts;
mod message;
pub mod replay;
mod shard;

#[cfg(test)]
mod model_check;
#[cfg(test)]
mod mutations;
#[cfg(test)]
mod simulator;
#[cfg(test)]
mod world;

pub use error::{Misfit, ProtocolError};
pub use event::{At, Effect, Effects, Event, Moment, Rights};
pub use holder::Holder;
pub use home::{Copies, Entry, Home};
pub use homes::{Handover, Here, Homes, ShardError};
pub use hosts::{HOSTS_MAX, HostId, HostSet};
pub use message::{Access, Answer, Class, Content, Left, Message, Order, Outgoing, Reply, Request, Txn, Version};
pub use shard::{PAGES_PER_SHARD, Route, ShardNumber, Table, shards};
