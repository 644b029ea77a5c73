//! The owner record, as both ends of a move see it.

use std::future::Future;
use vmotion_model::OwnerRecord;

/// The answer to a compare-and-set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CasOutcome {
    /// The record is now what was wanted (also when an earlier attempt, whose answer was lost, had set it).
    Won,
    /// The record is something else: this.
    Lost(OwnerRecord),
}

/// The store did not answer, or not with a decision. The attempt may or may not have happened; asking again is safe.
#[derive(Debug, Clone, thiserror::Error)]
#[error("Owner store does not answer: {0}")]
pub struct StoreUnreachable(pub String);

/// Where owner records live.
pub trait OwnerStore: Send + Sync + 'static {
    /// Opens connections and whatever else a first request would wait for. Called before the guest is paused.
    fn warm_up(&self) -> impl Future<Output = ()> + Send;
    /// Replaces `expected` by `wanted`, if the record is `expected`.
    fn compare_and_set(
        &self,
        expected: &OwnerRecord,
        wanted: &OwnerRecord,
    ) -> impl Future<Output = Result<CasOutcome, StoreUnreachable>> + Send;
}

/// What a store should answer given the record it has: one place for the rule, used by stores and models.
#[must_use]
pub fn decide(current: &OwnerRecord, expected: &OwnerRecord, wanted: &OwnerRecord) -> CasOutcome {
    if current == expected || current == wanted { CasOutcome::Won } else { CasOutcome::Lost(current.clone()) }
}
