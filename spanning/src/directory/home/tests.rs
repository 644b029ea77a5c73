use super::*;
use proptest::prelude::*;

type Bytes = u8;

const OPEN: Place = Place { page: PageNumber(9), epoch: Epoch(1), open: true };

fn host(number: u8) -> HostId {
    HostId::new(number).unwrap()
}

const fn txn(number: u64) -> Txn {
    Txn { epoch: Epoch(1), number }
}

const fn get(access: Access, have: Option<Version>) -> Request<Bytes> {
    Request::Get { access, have }
}

fn order(to: &[u8], number: u64, order: Order) -> Outgoing<Bytes> {
    let to = to.iter().fold(HostSet::EMPTY, |set, number| set.with(host(*number)));
    Outgoing { to, page: OPEN.page, message: Message::Order { txn: txn(number), order } }
}

fn grant(to: u8, number: u64, access: Access, version: u64, content: Option<Content<Bytes>>) -> Outgoing<Bytes> {
    reply(host(to), OPEN.page, Reply::Grant { txn: txn(number), access, version: Version(version), content })
}

fn put_ack(to: u8) -> Outgoing<Bytes> {
    reply(host(to), OPEN.page, Reply::PutAck)
}

/// A home and what it was told; messages of one call at a time.
#[derive(Default)]
struct Told {
    home: Home<Bytes>,
}

impl Told {
    fn request(&mut self, from: u8, request: Request<Bytes>) -> Vec<Outgoing<Bytes>> {
        let mut out = Vec::new();
        self.home.request(OPEN, host(from), Epoch(1), request, &mut out).unwrap();
        out
    }

    fn answer(&mut self, from: u8, number: u64, answer: Answer<Bytes>) -> Vec<Outgoing<Bytes>> {
        let mut out = Vec::new();
        self.home.answer(OPEN, host(from), txn(number), answer, &mut out).unwrap();
        out
    }

    fn refusal(&mut self, from: u8, request: Request<Bytes>) -> ProtocolError {
        self.home.request(OPEN, host(from), Epoch(1), request, &mut Vec::new()).unwrap_err()
    }

    /// Host 0 and host 1 read a page that nobody wrote.
    fn shared() -> Self {
        let mut told = Self::default();
        for (reader, number) in [(0, 1), (1, 2)] {
            told.request(reader, get(Access::Read, None));
            told.answer(reader, number, Answer::Done);
        }
        told
    }

    /// Host 0 writes the page.
    fn owned() -> Self {
        let mut told = Self::default();
        told.request(0, get(Access::Write, None));
        told.answer(0, 1, Answer::Done);
        told
    }
}

#[test]
fn first_touch_is_answered_without_bytes() {
    let mut told = Told::default();
    let out = told.request(3, get(Access::Read, None));
    assert_eq!(out, [grant(3, 1, Access::Read, 0, Some(Content::Zero))]);
}

#[test]
fn a_writer_waits_until_all_sharers_have_answered() {
    let mut told = Told::shared();
    assert_eq!(told.request(2, get(Access::Write, None)), [order(&[0, 1], 3, Order::Inv)]);
    assert_eq!(told.answer(1, 3, Answer::Ack), []);
    assert_eq!(told.answer(0, 3, Answer::Ack), [grant(2, 3, Access::Write, 1, Some(Content::Zero))]);
    assert_eq!(told.answer(2, 3, Answer::Done), []);
    assert_eq!(told.home.entry().copies, Copies::Owned(host(2)));
}

#[test]
fn the_loser_of_a_concurrent_upgrade_is_served_with_bytes() {
    let mut told = Told::shared();
    assert_eq!(told.request(0, get(Access::Write, Some(Version(0)))), [order(&[1], 3, Order::Inv)]);
    assert_eq!(told.request(1, get(Access::Write, Some(Version(0)))), []);
    assert_eq!(told.answer(1, 3, Answer::Ack), [grant(0, 3, Access::Write, 1, None)]);
    assert_eq!(told.answer(0, 3, Answer::Done), [order(&[0], 4, Order::Recall(Left::Invalid))]);
    let bytes = Content::Bytes(5);
    assert_eq!(told.answer(0, 4, Answer::AckData(bytes.clone())), [grant(1, 4, Access::Write, 2, Some(bytes))]);
}

#[test]
fn a_put_that_crosses_a_recall_is_the_answer() {
    for put_first in [true, false] {
        let mut told = Told::owned();
        assert_eq!(told.request(1, get(Access::Read, None)), [order(&[0], 2, Order::Recall(Left::Shared))]);
        if !put_first {
            assert_eq!(told.answer(0, 2, Answer::Ack), []);
        }
        let granted = grant(1, 2, Access::Read, 1, Some(Content::Bytes(5)));
        assert_eq!(told.request(0, Request::Put(Some(Content::Bytes(5)))), [put_ack(0), granted]);
        assert_eq!(told.answer(0, 2, Answer::Ack), []);
        told.answer(1, 2, Answer::Done);
        let copies = Copies::Shared { sharers: HostSet::only(host(1)), content: Content::Bytes(5) };
        assert_eq!(told.home.entry().copies, copies);
    }
}

#[test]
fn a_put_that_overtakes_its_done_waits_for_it() {
    let mut told = Told::default();
    told.request(0, get(Access::Write, None));
    assert_eq!(told.request(0, Request::Put(Some(Content::Bytes(5)))), []);
    assert_eq!(told.answer(0, 1, Answer::Done), [put_ack(0)]);
}

#[test]
fn a_put_that_overtakes_the_bytes_of_a_recall_waits_for_them() {
    let mut told = Told::owned();
    told.request(1, get(Access::Read, None));
    assert_eq!(told.request(0, Request::Put(None)), []);
    let out = told.answer(0, 2, Answer::AckData(Content::Bytes(5)));
    assert_eq!(out, [grant(1, 2, Access::Read, 1, Some(Content::Bytes(5)))]);
    assert_eq!(told.answer(1, 2, Answer::Done), [put_ack(0)]);
}

#[test]
fn a_put_goes_before_what_would_recall_its_host() {
    let mut told = Told::default();
    told.request(0, get(Access::Write, None));
    told.request(1, get(Access::Read, None));
    told.request(0, Request::Put(Some(Content::Bytes(5))));
    let granted = grant(1, 2, Access::Read, 1, Some(Content::Bytes(5)));
    assert_eq!(told.answer(0, 1, Answer::Done), [put_ack(0), granted]);
}

#[test]
fn late_answers_change_nothing_and_early_ones_are_refused() {
    let mut told = Told::owned();
    let before = told.home.clone();
    assert_eq!(told.answer(0, 1, Answer::Done), []);
    assert_eq!(told.answer(3, 1, Answer::Ack), []);
    assert_eq!(told.home, before);
    let early = told.home.answer(OPEN, host(0), txn(2), Answer::Ack, &mut Vec::new());
    assert_eq!(early, Err(ProtocolError::AnswerFromFuture(txn(2))));
}

#[test]
fn what_a_host_cannot_want_is_refused() {
    assert_eq!(Told::owned().refusal(0, get(Access::Read, None)), ProtocolError::WriterAsks);
    assert_eq!(Told::owned().refusal(0, Request::Put(None)), ProtocolError::PutOfOther);
    assert_eq!(Told::owned().refusal(1, Request::Put(Some(Content::Zero))), ProtocolError::PutOfOther);
    assert_eq!(Told::shared().refusal(0, Request::Put(Some(Content::Zero))), ProtocolError::PutOfOther);
    let mut told = Told::owned();
    told.request(1, get(Access::Read, None));
    assert_eq!(told.refusal(1, get(Access::Write, None)), ProtocolError::SecondRequest);
}

#[test]
fn a_page_dies_with_its_writer_and_not_with_a_reader() {
    let mut out = Vec::new();
    let mut owned = Told::owned();
    owned.request(1, get(Access::Read, None));
    assert!(owned.home.fence(OPEN, host(0), &mut out));
    assert_eq!(out, [reply(host(1), OPEN.page, Reply::Lost)]);

    let mut shared = Told::shared();
    assert!(!shared.home.fence(OPEN, host(0), &mut Vec::new()));
    assert_eq!(shared.request(2, get(Access::Write, None)), [order(&[1], 3, Order::Inv)]);
}

#[test]
fn a_writer_that_dies_before_done_may_have_written() {
    let mut told = Told::default();
    told.request(0, get(Access::Write, None));
    assert!(told.home.fence(OPEN, host(0), &mut Vec::new()));
    assert_eq!(told.home.entry().copies, Copies::Lost);
}

#[test]
fn a_dead_sharer_is_not_waited_for() {
    let mut told = Told::shared();
    told.request(2, get(Access::Write, None));
    told.answer(0, 3, Answer::Ack);
    let mut out = Vec::new();
    told.home.fence(OPEN, host(1), &mut out);
    assert_eq!(out, [grant(2, 3, Access::Write, 1, Some(Content::Zero))]);
}

#[derive(Debug, Clone)]
enum Said {
    Request(Request<Bytes>),
    Answer(u64, Answer<Bytes>),
    Fenced,
}

fn anything() -> impl Strategy<Value = Said> {
    let content = || prop_oneof![Just(Content::Zero), any::<u8>().prop_map(Content::Bytes)];
    let access = prop_oneof![Just(Access::Read), Just(Access::Write)];
    let answers =
        prop_oneof![4 => Just(Answer::Ack), 4 => content().prop_map(Answer::AckData), 6 => Just(Answer::Done)];
    prop_oneof![
        8 => (access, prop::option::of((0..4_u64).prop_map(Version))).prop_map(|(access, have)| {
            Said::Request(Request::Get { access, have })
        }),
        4 => prop::option::of(content()).prop_map(|content| Said::Request(Request::Put(content))),
        16 => (0..3_u64, answers).prop_map(|(ago, answer)| Said::Answer(ago, answer)),
        1 => Just(Said::Fenced),
    ]
}

proptest! {
    /// Whatever holders say, in whatever order: nobody panics, a refusal changes nothing, nothing is ordered while a grant is not
    /// done, versions never go back, and at most one request a host waits.
    #[test]
    fn hostile_holders_get_refusals(said in prop::collection::vec((0..4_u8, anything()), 0..120)) {
        let mut home = Home::<Bytes>::default();
        for (from, said) in said {
            let (before, mut out) = (home.clone(), Vec::new());
            let heard = match said {
                Said::Request(request) => home.request(OPEN, host(from), Epoch(1), request, &mut out),
                Said::Answer(ago, answer) => {
                    let number = home.entry.transactions.saturating_sub(ago) + u64::from(ago == 2);
                    home.answer(OPEN, host(from), txn(number), answer, &mut out)
                }
                Said::Fenced => {
                    home.fence(OPEN, host(from), &mut out);
                    Ok(())
                }
            };
            if heard.is_err() {
                prop_assert_eq!((&home, out.len()), (&before, 0));
            }
            let orders = out.iter().any(|outgoing| matches!(outgoing.message, Message::Order { .. }));
            let granting = |home: &Home<Bytes>| matches!(home.phase, Phase::Granting { .. });
            prop_assert!(!orders || !granting(&home));
            prop_assert!(home.entry.version >= before.entry.version);
            prop_assert!(home.queued() <= 4);
        }
    }
}
