//! What one host knows about one page, and what it does when the guest, the home or the driver says something.
//!
//! ```text
//!  what the guest may do        what is asked       name          granted, and Installed
//!   Invalid                      –                  I
//!   Invalid                      GetS               IS            ─▶ S
//!   Invalid                      GetM               IM            ─▶ M
//!   Shared                       –                  S
//!   Shared                       GetM               SM            ─▶ M
//!   Modified                     –                  M
//!   Invalid                      Put                P             PutAck ─▶ I
//!
//!  event            I, IS, IM          S, SM                       M                                    P
//!  fault, read      IS: ask            wake                        wake                                 wait for PutAck
//!  fault, write     IM: ask            SM: ask                     wake                                 wait for PutAck
//!  evict            –                  revoke, Put                 revoke, read, Put with bytes         –
//!  Inv              Ack                I, IM: revoke, Ack          error                                Ack
//!  Recall, Shared   Ack: late          error                       S: protect, read, AckData            Ack: the bytes are in the Put
//!  Recall, Invalid  Ack: late          error                       I: revoke, read, AckData             Ack: the bytes are in the Put
//!  Grant            fill, map          unprotect                   error                                error
//!  (GetS: maybe M)
//!  Redirect         ask again          ask again                   –                                    (read,) Put again
//!  Lost             poison             poison                      error                                error
//! ```
//! The two columns on the left are independent: an order changes what the guest may do and never what is asked, so a host
//! that waits answers like one that does not (rules 3 and 5). An order seen while a grant is awaited is about an older copy (rule 4).
//! A grant counts from the moment its system call has returned, and bytes are read when the revocation has: in between the
//! holder is at *work*, and the home waits. What an order would do is put off until the hold window is over (rule 7).
//!
//! `version` is that of the bytes in the memfd, also when the guest may not touch them; that of a page being written is the writer's.

use super::{
    Access, Answer, At, Content, Effect, Effects, Event, HostId, Left, Moment, Order, ProtocolError, Reply, Request,
    Rights, Txn, Version,
};
use vmotion_model::Epoch;

#[cfg(test)]
mod tests;

type Step<C> = Result<(Holder, Effects<C>), ProtocolError>;

/// The one request that a holder may have at its home.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Asked {
    Get(Access),
    /// The page was given up; `dirty`: with bytes that nobody else has. `wanted`: somebody waits to have it again.
    Put {
        dirty: bool,
        wanted: Option<Access>,
    },
}

/// An order and who gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Ordered {
    from: HostId,
    txn: Txn,
    order: Order,
}

/// What the driver was asked to do and has not reported yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Work {
    None,
    Installing { from: HostId, txn: Txn, access: Access, version: Version },
    ReadingToAnswer { from: HostId, txn: Txn },
    ReadingToPut,
}

/// One page on one host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Holder {
    rights: Rights,
    /// What is asked, and the epoch in which.
    asked: Option<(Epoch, Asked)>,
    work: Work,
    version: Option<Version>,
    /// The last transaction in which this holder was told something. What is not later is a repetition.
    seen: Txn,
    hold_until: Moment,
    deferred: Option<Ordered>,
}

impl Default for Holder {
    /// Invalid, and nothing in the memfd that anybody ever called a version of this page.
    fn default() -> Self {
        Self {
            rights: Rights::Invalid,
            asked: None,
            work: Work::None,
            version: None,
            seen: Txn::NONE,
            hold_until: Moment(0),
            deferred: None,
        }
    }
}

impl Holder {
    /// What the guest may do.
    #[must_use]
    pub const fn rights(&self) -> Rights {
        self.rights
    }

    /// The version of the bytes in the memfd, when there are any.
    #[must_use]
    pub const fn version(&self) -> Option<Version> {
        self.version
    }

    /// What is being installed, and which version of the page that is.
    #[must_use]
    pub const fn installing(&self) -> Option<(Access, Version)> {
        match self.work {
            Work::Installing { access, version, .. } => Some((access, version)),
            Work::None | Work::ReadingToAnswer { .. } | Work::ReadingToPut => None,
        }
    }

    /// Nothing is asked, awaited, put off or being done.
    #[must_use]
    pub const fn is_settled(&self) -> bool {
        self.asked.is_none() && matches!(self.work, Work::None) && self.deferred.is_none()
    }

    /// The state's name, for events and logs.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match (self.rights, self.asked) {
            (_, Some((_, Asked::Put { .. }))) => "P",
            (Rights::Invalid, None) => "I",
            (Rights::Invalid, Some((_, Asked::Get(Access::Read)))) => "IS",
            (Rights::Invalid, Some((_, Asked::Get(Access::Write)))) => "IM",
            (Rights::Shared, None) => "S",
            (Rights::Shared, Some(_)) => "SM",
            (Rights::Modified, _) => "M",
        }
    }

    /// The transition table.
    ///
    /// # Errors
    /// The event fits no rule. The caller still has the holder as it was.
    pub fn step<C>(self, at: At, event: Event<C>) -> Step<C> {
        match event {
            Event::Fault(access) => Ok(self.fault(at, access)),
            Event::Evict => Ok(self.evict(at)),
            // A repetition: it was answered, and the stream brings the answer.
            Event::Order { txn, .. } if txn <= self.seen => Ok((self, none())),
            Event::Order { from, txn, order } => self.order(at, Ordered { from, txn, order }),
            Event::HoldOver => self.hold_over(at),
            Event::Reply { from, reply } => self.reply(at, from, reply),
            Event::Installed { hold_until } => self.installed(hold_until),
            Event::Read(content) => self.read(content),
            Event::Fenced => Ok((Self::default(), one(Effect::Revoke(Left::Invalid)))),
        }
    }

    fn fault<C>(mut self, at: At, access: Access) -> (Self, Effects<C>) {
        if self.rights >= Rights::from(access) {
            return (self, one(Effect::Wake));
        }
        match &mut self.asked {
            None => self.ask(at, access),
            // One request a page: who still lacks a right after the grant faults again.
            Some((_, Asked::Get(_))) => (self, none()),
            Some((_, Asked::Put { wanted, .. })) => {
                *wanted = (*wanted).max(Some(access));
                (self, none())
            }
        }
    }

    fn ask<C>(mut self, at: At, access: Access) -> (Self, Effects<C>) {
        self.asked = Some((at.epoch, Asked::Get(access)));
        let request = Request::Get { access, have: self.version };
        (self, one(Effect::Ask { epoch: at.epoch, request }))
    }

    /// Only from rest: a page that is ordered away, or asked for, needs no eviction.
    fn evict<C>(mut self, at: At) -> (Self, Effects<C>) {
        if self.rights == Rights::Invalid || !self.is_settled() {
            return (self, none());
        }
        let dirty = self.rights == Rights::Modified;
        self.rights = Rights::Invalid;
        self.asked = Some((at.epoch, Asked::Put { dirty, wanted: None }));
        let next = if dirty { Effect::Read } else { Effect::Ask { epoch: at.epoch, request: Request::Put(None) } };
        self.work = if dirty { Work::ReadingToPut } else { Work::None };
        (self, two(Effect::Revoke(Left::Invalid), next))
    }

    fn order<C>(mut self, at: At, ordered: Ordered) -> Step<C> {
        match self.work {
            Work::Installing { .. } => return Err(ProtocolError::OrderBeforeDone(ordered.txn)),
            Work::ReadingToAnswer { .. } => return Err(ProtocolError::OrderBeforeAnswer(ordered.txn)),
            Work::None | Work::ReadingToPut => {}
        }
        if self.deferred.is_some() {
            return Err(ProtocolError::OrderBeforeAnswer(ordered.txn));
        }
        if self.rights == Rights::Invalid || at.now >= self.hold_until {
            return self.obey(ordered);
        }
        self.seen = ordered.txn;
        self.deferred = Some(ordered);
        Ok((self, one(Effect::HoldUntil(self.hold_until))))
    }

    fn hold_over<C>(mut self, at: At) -> Step<C> {
        let Some(ordered) = self.deferred else { return Ok((self, none())) };
        if at.now < self.hold_until {
            return Ok((self, one(Effect::HoldUntil(self.hold_until))));
        }
        self.deferred = None;
        self.obey(ordered)
    }

    /// Never waits: not for a vCPU, not for another page, not for what this host has asked.
    fn obey<C>(mut self, Ordered { from, txn, order }: Ordered) -> Step<C> {
        self.seen = txn;
        let ack = Effect::Answer { to: from, txn, answer: Answer::Ack };
        match (order, self.rights) {
            (Order::Inv, Rights::Invalid) => Ok((self, one(ack))),
            (Order::Inv, Rights::Shared) => {
                self.rights = Rights::Invalid;
                Ok((self, two(Effect::Revoke(Left::Invalid), ack)))
            }
            (Order::Inv, Rights::Modified) => Err(ProtocolError::InvOfWriter(txn)),
            (Order::Recall(left), Rights::Modified) => {
                self.rights = left.into();
                self.work = Work::ReadingToAnswer { from, txn };
                Ok((self, two(Effect::Revoke(left), Effect::Read)))
            }
            // The bytes are in a Put, and travel once. The home may have taken it, and PutAck may have overtaken the order.
            (Order::Recall(_), Rights::Invalid) => Ok((self, one(ack))),
            (Order::Recall(_), Rights::Shared) => Err(ProtocolError::RecallOfReader(txn)),
        }
    }

    fn reply<C>(mut self, at: At, from: HostId, reply: Reply<C>) -> Step<C> {
        match (reply, self.asked) {
            // A repetition.
            (Reply::Grant { txn, .. }, _) if txn <= self.seen => Ok((self, none())),
            (Reply::Grant { txn, access, version, content }, Some((_, Asked::Get(asked))))
                if access >= asked && self.work == Work::None =>
            {
                self.install(from, txn, access, version, content)
            }
            (Reply::PutAck, Some((_, Asked::Put { wanted, .. }))) if self.work == Work::None => {
                self.asked = None;
                self.version = None;
                let Some(access) = wanted else { return Ok((self, one(Effect::Free))) };
                let (next, [ask, _]) = self.ask(at, access);
                Ok((next, [Some(Effect::Free), ask]))
            }
            (Reply::Redirect { of, .. }, Some((sent, asked))) if of == sent && self.waits() => {
                self.ask_again(at, sent, asked)
            }
            // Of a request that was sent again since, or granted.
            (Reply::Redirect { .. }, _) => Ok((self, none())),
            (Reply::Lost, Some((_, Asked::Get(_)))) if self.work == Work::None => {
                self.asked = None;
                Ok((self, one(Effect::Poison)))
            }
            (Reply::Grant { .. } | Reply::PutAck | Reply::Lost, _) => Err(ProtocolError::Unasked),
        }
    }

    /// The request is on its way or at its home, and nothing has come of it.
    const fn waits(&self) -> bool {
        matches!(self.work, Work::None | Work::ReadingToAnswer { .. })
    }

    fn install<C>(
        mut self,
        from: HostId,
        txn: Txn,
        access: Access,
        version: Version,
        content: Option<Content<C>>,
    ) -> Step<C> {
        // The home counts a version for each writer; the bytes it leaves out are those before that.
        let base = self.version.map(|version| if access == Access::Write { version.next() } else { version });
        if content.is_none() && base != Some(version) {
            return Err(ProtocolError::GrantWithoutBytes(txn));
        }
        self.seen = txn;
        self.work = Work::Installing { from, txn, access, version };
        Ok(match (self.rights, content) {
            // A reader has the newest bytes, and others on this host are reading them.
            (Rights::Shared | Rights::Modified, _) => (self, one(Effect::Unprotect)),
            (Rights::Invalid, Some(content)) => (self, two(Effect::Fill(content), Effect::Map(access))),
            (Rights::Invalid, None) => (self, one(Effect::Map(access))),
        })
    }

    /// Nothing was begun at the old home, so the new one is asked as if for the first time. The bytes of a Put are still here.
    fn ask_again<C>(mut self, at: At, sent: Epoch, asked: Asked) -> Step<C> {
        if at.epoch <= sent {
            return Err(ProtocolError::RedirectNotTaken(sent));
        }
        self.asked = Some((at.epoch, asked));
        match asked {
            Asked::Get(access) => Ok(self.ask(at, access)),
            Asked::Put { dirty: false, .. } => {
                Ok((self, one(Effect::Ask { epoch: at.epoch, request: Request::Put(None) })))
            }
            Asked::Put { dirty: true, .. } => {
                self.work = Work::ReadingToPut;
                Ok((self, one(Effect::Read)))
            }
        }
    }

    fn installed<C>(mut self, hold_until: Moment) -> Step<C> {
        let Work::Installing { from, txn, access, version } = self.work else { return Err(ProtocolError::NotAtWork) };
        self.work = Work::None;
        self.asked = None;
        self.rights = access.into();
        self.version = Some(version);
        self.hold_until = hold_until;
        Ok((self, one(Effect::Answer { to: from, txn, answer: Answer::Done })))
    }

    fn read<C>(mut self, content: Content<C>) -> Step<C> {
        let effect = match (self.work, self.asked) {
            (Work::ReadingToAnswer { from, txn }, _) => {
                Effect::Answer { to: from, txn, answer: Answer::AckData(content) }
            }
            (Work::ReadingToPut, Some((epoch, _))) => Effect::Ask { epoch, request: Request::Put(Some(content)) },
            (Work::ReadingToPut | Work::None | Work::Installing { .. }, _) => return Err(ProtocolError::NotAtWork),
        };
        self.work = Work::None;
        Ok((self, one(effect)))
    }
}

const fn none<C>() -> Effects<C> {
    [None, None]
}

const fn one<C>(effect: Effect<C>) -> Effects<C> {
    [Some(effect), None]
}

const fn two<C>(first: Effect<C>, second: Effect<C>) -> Effects<C> {
    [Some(first), Some(second)]
}
