use super::*;
use proptest::prelude::*;

type Bytes = u8;
type Seen = Vec<Effect<Bytes>>;

const NOW: At = At { now: Moment(100), epoch: Epoch(1) };

fn home() -> HostId {
    HostId::new(0).unwrap()
}

const fn txn(number: u64) -> Txn {
    Txn { epoch: Epoch(1), number }
}

const fn order(number: u64, order: Order) -> impl Fn() -> Event<Bytes> {
    move || Event::Order { from: HostId::new(0).unwrap(), txn: txn(number), order }
}

fn grant(number: u64, access: Access, version: u64, content: Option<Content<Bytes>>) -> Event<Bytes> {
    let reply = Reply::Grant { txn: txn(number), access, version: Version(version), content };
    Event::Reply { from: home(), reply }
}

fn installed() -> Event<Bytes> {
    Event::Installed { hold_until: Moment(0) }
}

fn answer(number: u64, answer: Answer<Bytes>) -> Effect<Bytes> {
    Effect::Answer { to: home(), txn: txn(number), answer }
}

fn get(access: Access, have: Option<u64>) -> Effect<Bytes> {
    Effect::Ask { epoch: NOW.epoch, request: Request::Get { access, have: have.map(Version) } }
}

fn put(content: Option<Content<Bytes>>) -> Effect<Bytes> {
    Effect::Ask { epoch: NOW.epoch, request: Request::Put(content) }
}

/// What the events do, one after the other; the last one's effects.
fn after(holder: Holder, events: impl IntoIterator<Item = Event<Bytes>>) -> (Holder, Seen) {
    events.into_iter().fold((holder, Vec::new()), |(holder, _), event| {
        let (next, effects) = holder.step(NOW, event).unwrap();
        (next, effects.into_iter().flatten().collect())
    })
}

fn holding(access: Access, version: u64) -> Holder {
    let events = [Event::Fault(access), grant(1, access, version, Some(Content::Bytes(7))), installed()];
    after(Holder::default(), events).0
}

#[test]
fn done_is_said_when_the_page_is_installed_and_not_before() {
    let (holder, effects) = after(Holder::default(), [Event::Fault(Access::Read)]);
    assert_eq!((holder.name(), effects), ("IS", vec![get(Access::Read, None)]));

    let (holder, effects) = after(holder, [grant(1, Access::Read, 4, Some(Content::Bytes(7)))]);
    assert_eq!((holder.name(), effects), ("IS", vec![Effect::Fill(Content::Bytes(7)), Effect::Map(Access::Read)]));

    let (holder, effects) = after(holder, [installed()]);
    assert_eq!((holder.name(), effects), ("S", vec![answer(1, Answer::Done)]));
    assert_eq!(holder.version(), Some(Version(4)));
}

#[test]
fn a_writer_is_revoked_first_and_read_second() {
    let (holder, effects) = after(holding(Access::Write, 3), [order(2, Order::Recall(Left::Shared))()]);
    assert_eq!(effects, [Effect::Revoke(Left::Shared), Effect::Read]);

    let (holder, effects) = after(holder, [Event::Read(Content::Bytes(9))]);
    assert_eq!((holder.name(), effects), ("S", vec![answer(2, Answer::AckData(Content::Bytes(9)))]));
}

#[test]
fn a_concurrent_upgrade_loses_its_copy_and_goes_on_asking() {
    let (holder, effects) = after(holding(Access::Read, 3), [Event::Fault(Access::Write)]);
    assert_eq!((holder.name(), effects), ("SM", vec![get(Access::Write, Some(3))]));

    let (holder, effects) = after(holder, [order(2, Order::Inv)()]);
    assert_eq!((holder.name(), effects), ("IM", vec![Effect::Revoke(Left::Invalid), answer(2, Answer::Ack)]));

    let (holder, effects) = after(holder, [grant(3, Access::Write, 5, Some(Content::Bytes(8)))]);
    assert_eq!(effects, [Effect::Fill(Content::Bytes(8)), Effect::Map(Access::Write)]);
    assert_eq!(after(holder, [installed()]).0.name(), "M");
}

#[test]
fn an_upgrade_that_wins_moves_no_bytes() {
    let events = [Event::Fault(Access::Write), grant(2, Access::Write, 4, None)];
    assert_eq!(after(holding(Access::Read, 3), events).1, [Effect::Unprotect]);
}

#[test]
fn bytes_may_be_left_out_only_for_the_version_that_is_here() {
    let (holder, _) = after(holding(Access::Read, 3), [order(2, Order::Inv)(), Event::Fault(Access::Write)]);
    let good = holder.step(NOW, grant(3, Access::Write, 4, None)).unwrap();
    assert_eq!(good.1[0], Some(Effect::Map(Access::Write)));
    let stale = holder.step(NOW, grant(3, Access::Write, 5, None));
    assert_eq!(stale, Err(ProtocolError::GrantWithoutBytes(txn(3))));
}

#[test]
fn inv_while_a_grant_is_awaited_is_acknowledged_at_once() {
    let events = [Event::Fault(Access::Write), order(1, Order::Inv)()];
    let (holder, effects) = after(Holder::default(), events);
    assert_eq!((holder.name(), effects), ("IM", vec![answer(1, Answer::Ack)]));
}

#[test]
fn an_order_between_grant_and_done_is_the_homes_mistake() {
    let events = [Event::Fault(Access::Read), grant(1, Access::Read, 0, Some(Content::Zero))];
    let (holder, _) = after(Holder::default(), events);
    assert_eq!(holder.step(NOW, order(2, Order::Inv)()), Err(ProtocolError::OrderBeforeDone(txn(2))));
}

#[test]
fn a_put_that_crosses_a_recall_carries_the_bytes_once() {
    let (holder, effects) = after(holding(Access::Write, 3), [Event::Evict]);
    assert_eq!((holder.name(), effects), ("P", vec![Effect::Revoke(Left::Invalid), Effect::Read]));
    let (holder, effects) = after(holder, [Event::Read(Content::Bytes(9))]);
    assert_eq!(effects, [put(Some(Content::Bytes(9)))]);

    let (holder, effects) = after(holder, [order(2, Order::Recall(Left::Shared))()]);
    assert_eq!((holder.name(), effects), ("P", vec![answer(2, Answer::Ack)]));

    let acknowledged = Event::Reply { from: home(), reply: Reply::PutAck };
    let (holder, effects) = after(holder, [acknowledged]);
    assert_eq!((holder.name(), holder.version(), effects), ("I", None, vec![Effect::Free]));
}

#[test]
fn a_recall_that_its_put_ack_overtook_is_late_and_still_answered() {
    let acknowledged = Event::Reply { from: home(), reply: Reply::PutAck };
    let events = [Event::Evict, Event::Read(Content::Zero), acknowledged, order(2, Order::Recall(Left::Invalid))()];
    let (holder, effects) = after(holding(Access::Write, 3), events);
    assert_eq!((holder.name(), effects), ("I", vec![answer(2, Answer::Ack)]));
}

#[test]
fn who_touches_a_page_that_is_being_put_waits_and_then_asks() {
    let acknowledged = Event::Reply { from: home(), reply: Reply::PutAck };
    let (holder, effects) = after(holding(Access::Read, 3), [Event::Evict]);
    assert_eq!((holder.name(), effects), ("P", vec![Effect::Revoke(Left::Invalid), put(None)]));
    let events = [Event::Fault(Access::Read), Event::Fault(Access::Write), acknowledged];
    let (holder, effects) = after(holder, events);
    assert_eq!((holder.name(), effects), ("IM", vec![Effect::Free, get(Access::Write, None)]));
}

#[test]
fn a_redirection_is_followed_once_and_a_put_is_read_again() {
    let redirect = |of| Event::<Bytes>::Reply {
        from: home(),
        reply: Reply::Redirect { of: Epoch(of), home: HostId::new(1).unwrap(), epoch: Epoch(2) },
    };
    let later = At { epoch: Epoch(2), ..NOW };
    let (holder, _) = after(holding(Access::Write, 3), [Event::Evict, Event::Read(Content::Bytes(9))]);

    let (holder, effects) = holder.step(later, redirect(1)).unwrap();
    assert_eq!(effects, [Some(Effect::Read), None]);
    let (holder, effects) = holder.step(later, Event::Read(Content::Bytes(9))).unwrap();
    let again = Effect::Ask { epoch: Epoch(2), request: Request::Put(Some(Content::Bytes(9))) };
    assert_eq!(effects, [Some(again), None]);
    assert_eq!(holder.step(later, redirect(1)).unwrap(), (holder, [None, None]));
}

#[test]
fn an_answer_is_put_off_until_the_hold_window_is_over() {
    let events = [Event::Fault(Access::Write), grant(1, Access::Write, 1, Some(Content::Zero))];
    let (holder, _) = after(Holder::default(), events);
    let (holder, _) = after(holder, [Event::Installed { hold_until: Moment(300) }]);

    let (holder, effects) = after(holder, [order(2, Order::Recall(Left::Invalid))()]);
    assert_eq!((holder.name(), effects), ("M", vec![Effect::HoldUntil(Moment(300))]));
    assert_eq!(after(holder, [Event::HoldOver]).1, [Effect::HoldUntil(Moment(300))]);
    let (holder, effects) = holder.step::<Bytes>(At { now: Moment(300), ..NOW }, Event::HoldOver).unwrap();
    assert_eq!((holder.name(), effects), ("I", [Some(Effect::Revoke(Left::Invalid)), Some(Effect::Read)]));
}

#[test]
fn a_lost_page_is_poisoned() {
    let lost = Event::Reply { from: home(), reply: Reply::Lost };
    assert_eq!(after(Holder::default(), [Event::Fault(Access::Read), lost]).1, [Effect::Poison]);
}

fn anything() -> impl Strategy<Value = Event<Bytes>> {
    let access = || prop_oneof![Just(Access::Read), Just(Access::Write)];
    let content = || prop_oneof![Just(Content::Zero), any::<u8>().prop_map(Content::Bytes)];
    let orders = prop_oneof![Just(Order::Inv), Just(Order::Recall(Left::Invalid)), Just(Order::Recall(Left::Shared))];
    prop_oneof![
        access().prop_map(Event::Fault),
        Just(Event::Evict),
        (1..20_u64, orders).prop_map(|(number, given)| order(number, given)()),
        (1..20_u64, access(), 0..4_u64, prop::option::of(content()))
            .prop_map(|(number, access, version, content)| grant(number, access, version, content)),
        Just(Event::Reply { from: home(), reply: Reply::PutAck }),
        Just(Event::Reply { from: home(), reply: Reply::Lost }),
        (0..3_u64).prop_map(|of| Event::Reply {
            from: home(),
            reply: Reply::Redirect { of: Epoch(of), home: home(), epoch: Epoch(3) },
        }),
        Just(installed()),
        content().prop_map(Event::Read),
        Just(Event::HoldOver),
    ]
}

proptest! {
    /// Whatever a home says, in whatever order: nobody panics, bytes are read only after a revocation, rights come only from a
    /// grant that was installed, and a version never goes back while the frame is kept.
    #[test]
    fn a_hostile_home_gets_refusals(events in prop::collection::vec(anything(), 0..60)) {
        let mut holder = Holder::default();
        for event in events {
            let is_installation = matches!(event, Event::Installed { .. });
            let Ok((next, effects)) = holder.step(NOW, event) else { continue };
            prop_assert!(next.rights() <= holder.rights() || is_installation);
            if let [Some(Effect::Read), _] | [_, Some(Effect::Read)] = effects {
                prop_assert!(next.rights() < Rights::Modified);
            }
            let freed = effects.contains(&Some(Effect::Free));
            prop_assert!(freed || next.version() >= holder.version() || is_installation);
            holder = next;
        }
    }
}
