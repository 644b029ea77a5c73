//! Messages that fit no rule. The peer is broken or hostile: whoever hears one ends the session and says which rule it broke.

use super::{HostId, Txn};
use thiserror::Error;
use vmotion_model::{Epoch, PageNumber};

/// Which rule a message, or an event of the driver, broke. The state it met has not changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
pub enum ProtocolError {
    /// Rule 4: the home waits for `Done` before it does anything else with the page.
    #[error("An order of {0} came before what was granted is installed")]
    OrderBeforeDone(Txn),
    /// Rule 1: the home waits for `AckData` before it does anything else with the page.
    #[error("An order of {0} came before the last one was answered")]
    OrderBeforeAnswer(Txn),
    /// A writer is recalled, for its bytes are the only ones.
    #[error("Inv of {0} to the page's writer")]
    InvOfWriter(Txn),
    /// Only a writer has bytes that the home does not have.
    #[error("Recall of {0} to a reader of the page")]
    RecallOfReader(Txn),
    /// A grant, put acknowledgement or loss that answers nothing.
    #[error("An answer to a request that was not made")]
    Unasked,
    /// Rule 5: bytes may be left out only when the very version asked from is there.
    #[error("A grant of {0} without bytes, and those here are of another version")]
    GrantWithoutBytes(Txn),
    /// A redirection that the table of shards does not reflect.
    #[error("A redirection away from {0}, which is still the newest known here")]
    RedirectNotTaken(Epoch),
    /// The driver reports what it was not asked to do.
    #[error("The driver reports what it was not asked to do")]
    NotAtWork,
    /// One request a page and host.
    #[error("A second request for the page while the first one waits")]
    SecondRequest,
    /// The host that may write asks for less than it has.
    #[error("The page's writer asks for it")]
    WriterAsks,
    /// Bytes from a host that was not the writer, or none from the one that was.
    #[error("Put by a host that does not have what it puts")]
    PutOfOther,
    /// An answer to what was not begun.
    #[error("An answer to {0}, which has not begun")]
    AnswerFromFuture(Txn),
    /// Bytes from a host that had nothing to write.
    #[error("Bytes of {0} from a host that is not the page's writer")]
    BytesFromNonWriter(Txn),
    /// Rule 13: what a fenced host says counts no more.
    #[error("The host is fenced")]
    Fenced,
    /// Nobody ever said who has this shard.
    #[error("The page is in no shard that this machine has")]
    UnknownShard,
    /// This host is not the home any more and does not know it yet; it must ask the store.
    #[error("The sender knows the shard's {0}, which is newer than the one known here")]
    Superseded(Epoch),
}

/// A message that fits no rule, where it was met, and from whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
#[error("{from} broke the page protocol at {page}")]
pub struct Misfit {
    /// Who said it.
    pub from: HostId,
    /// About which page.
    pub page: PageNumber,
    /// Which rule it broke.
    #[source]
    pub error: ProtocolError,
}
