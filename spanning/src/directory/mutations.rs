//! Every rule is there because of an accident. Here each rule is broken, and the checks must notice: what they do not notice broken,
//! they do not prove.
//!
//! The protocol's own code is not touched. A mutation distorts, around it, what it is told, what it says, or the order of what is done; the places
//! are in `world.rs`.

use super::{model_check::Bounds, simulator};

/// A broken rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Mutation {
    /// The page is read while the guest can still write it.
    ReadBeforeRevoke,
    /// `Done` is sent when the system call begins.
    DoneBeforeInstalled,
    /// Rule 2: the home grants when `Inv` is sent.
    GrantBeforeAcks,
    /// Rule 2: one sharer gets no `Inv`.
    OneSharerSkipped,
    /// Rule 2: a new writer's version is that of the bytes it began with.
    VersionNotBumped,
    /// Rule 2: the home takes `Done` for granted.
    NotBusyUntilDone,
    /// Rule 4: `Inv` is acknowledged and forgotten while a grant is awaited.
    InvIgnoredWhileWaiting,
    /// Rule 5: who once had the page gets no bytes.
    UpgradeTrusted,
    /// Rule 6: the frame is freed before `PutAck`.
    FrameFreedAtPut,
    /// Rule 6: a `Put` waits while its host is being recalled.
    PutIsNoAnswer,
    /// Rule 10: what comes twice in a stream is obeyed twice.
    NumbersIgnored,
    /// Rule 11: a table believes whatever redirection came last.
    OldRedirectObeyed,
    /// Rule 11: a request is sent with the epoch that the table has by then, and its redirection names an epoch that nobody asked in.
    EpochOfSending,
    /// Rule 11: the old home goes on as if the store had named it.
    OldHomeGoesOn,
    /// Rule 11: entries arrive without their sharers.
    SharersLostInRelocation,
    /// Rule 11: the new home begins with no entries.
    EntriesLostInRelocation,
    /// Rule 1: a request that comes while the page is busy is dropped.
    QueueDropsOne,
    /// Rule 13: a page whose only copy died is served as zero.
    LostPageServed,
}

/// The mutation, and who must catch it: the model checker within these bounds, or with `None` the simulator.
const MUTATIONS: [(Mutation, Option<Bounds>); 18] = [
    (Mutation::ReadBeforeRevoke, Some(Bounds::PAGE)),
    (Mutation::DoneBeforeInstalled, Some(Bounds::PAGE)),
    (Mutation::GrantBeforeAcks, Some(Bounds::PAGE)),
    (Mutation::OneSharerSkipped, Some(Bounds::PAGE)),
    (Mutation::VersionNotBumped, Some(Bounds::PAGE)),
    (Mutation::NotBusyUntilDone, Some(Bounds::PAGE)),
    (Mutation::InvIgnoredWhileWaiting, Some(Bounds::PAGE)),
    (Mutation::UpgradeTrusted, Some(Bounds::PAGE)),
    (Mutation::FrameFreedAtPut, Some(Bounds::RELOCATION)),
    (Mutation::PutIsNoAnswer, Some(Bounds::PAGE)),
    (Mutation::NumbersIgnored, Some(Bounds::PAGE)),
    (Mutation::OldRedirectObeyed, None),
    (Mutation::EpochOfSending, Some(Bounds::TWICE)),
    (Mutation::OldHomeGoesOn, Some(Bounds::RELOCATION)),
    (Mutation::SharersLostInRelocation, Some(Bounds::RELOCATION)),
    (Mutation::EntriesLostInRelocation, Some(Bounds::RELOCATION)),
    (Mutation::QueueDropsOne, Some(Bounds::PAGE)),
    (Mutation::LostPageServed, Some(Bounds::FENCE)),
];

#[test]
fn each_broken_rule_is_noticed() {
    for (mutation, bounds) in MUTATIONS {
        let caught = match bounds {
            Some(bounds) => bounds.first_failure(Some(mutation)),
            None => simulator::run(1, 1_000_000, Some(mutation)).err(),
        };
        let caught = caught.unwrap_or_else(|| panic!("{mutation:?} goes unnoticed"));
        println!("{mutation:?}: {caught}");
    }
}
