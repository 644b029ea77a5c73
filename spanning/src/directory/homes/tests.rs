use super::*;
use crate::directory::{Access, Answer, Content, Copies, Request, Txn, Version};

type Bytes = u8;

const SHARD: ShardNumber = ShardNumber(2);
const PAGE: PageNumber = PageNumber(2 * PAGES_PER_SHARD + 5);
const FIRST: Epoch = Epoch::FIRST;
const SECOND: Epoch = Epoch(2);

fn host(number: u8) -> HostId {
    HostId::new(number).unwrap()
}

fn route(home: u8, epoch: Epoch) -> Route {
    Route { home: host(home), epoch }
}

/// The homes of hosts 0 and 1; host 0 serves the shard.
fn two() -> [Homes<Bytes>; 2] {
    [0, 1].map(|number| {
        let mut homes = Homes::new(host(number));
        homes.settle(SHARD, route(0, FIRST), &mut Vec::new()).unwrap();
        homes
    })
}

fn get(homes: &mut Homes<Bytes>, from: u8, epoch: Epoch) -> Vec<Outgoing<Bytes>> {
    let mut out = Vec::new();
    let request = Request::Get { access: Access::Write, have: None };
    homes.receive(host(from), PAGE, Message::Request { epoch, request }, &mut out).unwrap();
    out
}

fn done(homes: &mut Homes<Bytes>, from: u8, epoch: Epoch, number: u64) {
    let message = Message::Answer { txn: Txn { epoch, number }, answer: Answer::Done };
    homes.receive(host(from), PAGE, message, &mut Vec::new()).unwrap();
}

fn redirect(to: u8, of: Epoch) -> Outgoing<Bytes> {
    let message = Message::Reply(Reply::Redirect { of, home: host(1), epoch: SECOND });
    Outgoing { to: HostSet::only(host(to)), page: PAGE, message }
}

#[test]
fn a_shard_moves_with_a_transaction_and_a_request_under_way() {
    let [mut old, mut new] = two();
    get(&mut old, 2, FIRST);
    old.freeze(SHARD).unwrap();
    assert_eq!(old.hand_over(SHARD), None, "a transaction is under way");
    assert_eq!(get(&mut old, 3, FIRST), []);
    done(&mut old, 2, FIRST, 1);

    let handover = old.hand_over(SHARD).unwrap();
    assert_eq!(handover.epoch, SECOND);
    assert_eq!(handover.entries[0].1.copies, Copies::Owned(host(2)));
    assert_eq!(new.take_over(handover), Ok(Vec::new()));
    assert_eq!((old.serves(SHARD), new.serves(SHARD)), (None, None), "only the store decides");
    assert_eq!(get(&mut new, 3, SECOND), []);

    let mut out = Vec::new();
    old.settle(SHARD, route(1, SECOND), &mut out).unwrap();
    assert_eq!(out, [redirect(3, FIRST)]);
    assert_eq!(get(&mut old, 4, FIRST), [redirect(4, FIRST)]);
    out.clear();
    new.settle(SHARD, route(1, SECOND), &mut out).unwrap();
    assert_eq!(out.len(), 1, "the recall for host 3: {out:?}");
    assert_eq!((old.serves(SHARD), new.serves(SHARD)), (None, Some(SECOND)));
}

#[test]
fn a_shard_that_is_won_back_is_served_where_it_was() {
    let [mut old, mut new] = two();
    get(&mut old, 2, FIRST);
    done(&mut old, 2, FIRST, 1);
    old.freeze(SHARD).unwrap();
    new.take_over(old.hand_over(SHARD).unwrap()).unwrap();
    get(&mut old, 3, FIRST);

    let mut out = Vec::new();
    old.settle(SHARD, route(0, SECOND), &mut out).unwrap();
    assert_eq!(out.len(), 1, "the recall for host 3: {out:?}");
    new.settle(SHARD, route(0, SECOND), &mut Vec::new()).unwrap();
    assert_eq!((old.serves(SHARD), new.serves(SHARD)), (Some(SECOND), None));
}

#[test]
fn a_shard_without_its_entries_is_never_served() {
    let [_, mut new] = two();
    let named = new.settle(SHARD, route(1, SECOND), &mut Vec::new());
    assert_eq!(named, Err(ShardError::WithoutEntries(SHARD)));
    let mut stranger = Homes::<Bytes>::new(host(5));
    let named = stranger.settle(SHARD, route(5, SECOND), &mut Vec::new());
    assert_eq!(named, Err(ShardError::WithoutEntries(SHARD)));
}

#[test]
fn a_home_that_was_passed_over_says_so() {
    let [mut old, _] = two();
    assert_eq!(old.settle(SHARD, route(1, SECOND), &mut Vec::new()), Err(ShardError::ServedHere(SHARD)));
    let request = Request::Get { access: Access::Read, have: None };
    let misfit = old.receive(host(2), PAGE, Message::Request { epoch: SECOND, request }, &mut Vec::new()).unwrap_err();
    assert_eq!(misfit, Misfit { from: host(2), page: PAGE, error: ProtocolError::Superseded(SECOND) });
    assert_eq!(misfit.to_string(), "host 2 broke the page protocol at page 0x405");
}

#[test]
fn entries_of_other_shards_are_refused() {
    let [_, mut new] = two();
    let entries = vec![(PageNumber(0), Entry::default())];
    let taken = new.take_over(Handover { shard: SHARD, epoch: SECOND, entries });
    assert_eq!(taken, Err(ShardError::ForeignPages(SHARD)));
}

#[test]
fn a_fenced_host_is_not_heard_and_what_only_it_had_is_named() {
    let [mut homes, mut other] = two();
    get(&mut homes, 2, FIRST);
    done(&mut homes, 2, FIRST, 1);
    homes.freeze(SHARD).unwrap();
    let handover = homes.hand_over(SHARD).unwrap();

    assert_eq!(homes.fence(host(2), &mut Vec::new()), [PAGE]);
    other.fence(host(2), &mut Vec::new());
    assert_eq!(other.take_over(handover), Ok(vec![PAGE]), "it died while the entries were on their way");
    let request = Request::Put(Some(Content::Zero));
    let heard = homes.receive(host(2), PAGE, Message::Request { epoch: FIRST, request }, &mut Vec::new());
    assert_eq!(heard.unwrap_err().error, ProtocolError::Fenced);
}

#[test]
fn an_entry_keeps_its_version_when_it_moves() {
    let [mut old, _] = two();
    get(&mut old, 2, FIRST);
    done(&mut old, 2, FIRST, 1);
    old.freeze(SHARD).unwrap();
    let entry = old.hand_over(SHARD).unwrap().entries.remove(0).1;
    assert_eq!((entry.version, entry.transactions), (Version(1), 1));
}

#[test]
fn who_knows_nothing_is_sent_on_by_the_hub_whatever_that_is_doing() {
    let [mut hub, mut new] = two();
    let mut newcomer = Homes::<Bytes>::new(host(5));
    newcomer.settle(SHARD, Route::ask(host(0)), &mut Vec::new()).unwrap();
    let nothing = Route::ask(host(0)).epoch;
    // Served there.
    assert_eq!(get(&mut hub, 5, nothing).len(), 1, "a grant");
    done(&mut hub, 5, FIRST, 1);
    hub.freeze(SHARD).unwrap();
    let handover = hub.hand_over(SHARD).unwrap();
    new.take_over(handover).unwrap();
    // On its way.
    assert_eq!(get(&mut hub, 6, nothing), []);
    let mut out = Vec::new();
    hub.settle(SHARD, route(1, SECOND), &mut out).unwrap();
    assert_eq!(out, [redirect(6, nothing)]);
    // Gone.
    assert_eq!(get(&mut hub, 7, nothing), [redirect(7, nothing)]);
    // The newcomer itself sends nobody anywhere, until it is told something; then it may have the shard.
    let request = Message::Request { epoch: FIRST, request: Request::Put(None) };
    let misfit = newcomer.receive(host(3), PAGE, request, &mut Vec::new()).unwrap_err();
    assert_eq!(misfit.error, ProtocolError::Superseded(FIRST));
    new.settle(SHARD, route(1, SECOND), &mut Vec::new()).unwrap();
    new.freeze(SHARD).unwrap();
    assert_eq!(newcomer.take_over(new.hand_over(SHARD).unwrap()), Ok(Vec::new()));
    newcomer.settle(SHARD, route(5, Epoch(3)), &mut Vec::new()).unwrap();
    assert_eq!(newcomer.serves(SHARD), Some(Epoch(3)));
}

#[test]
fn a_home_knows_whom_its_pages_concern() {
    let [mut homes, _] = two();
    let concerns = |homes: &Homes<Bytes>, number: u8| homes.find(host(number), ShardNumber(0), 9).0;
    assert_eq!(concerns(&homes, 2), None);
    get(&mut homes, 2, FIRST);
    assert_eq!(concerns(&homes, 2), Some(PAGE), "it is granted");
    get(&mut homes, 3, FIRST);
    assert_eq!(concerns(&homes, 3), Some(PAGE), "it waits");
    done(&mut homes, 2, FIRST, 1);
    assert_eq!(concerns(&homes, 2), Some(PAGE), "it has it, and is recalled");
    let message = Message::Answer { txn: Txn { epoch: FIRST, number: 2 }, answer: Answer::AckData(Content::Zero) };
    homes.receive(host(2), PAGE, message, &mut Vec::new()).unwrap();
    assert_eq!(concerns(&homes, 2), None);
    assert_eq!(homes.find(host(3), ShardNumber(0), 0), (None, Some(SHARD)), "there is more to look through");
    assert_eq!(homes.here(), Here { served: 1, waiting: 0 });
    homes.fence(host(3), &mut Vec::new());
    assert_eq!(concerns(&homes, 3), None);
    homes.admit(host(3));
    assert_eq!(get(&mut homes, 3, FIRST).len(), 1, "another host of this number: {homes:?}");
}
