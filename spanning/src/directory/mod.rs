//! The page directory: which host may read a page, which one may write it, and where its newest bytes are. So far: what its parties say
//! to each other, over what streams, and where they find each other.

mod error;
mod hosts;
mod message;
pub mod replay;
mod shard;

pub use error::{Misfit, ProtocolError};
pub use hosts::{HOSTS_MAX, HostId, HostSet};
pub use message::{Access, Answer, Class, Content, Left, Message, Order, Outgoing, Reply, Request, Txn, Version};
pub use shard::{PAGES_PER_SHARD, Route, ShardNumber, Table};
