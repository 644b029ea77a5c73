use super::*;
use proptest::prelude::*;

fn known() -> Known {
    let hosts = (0..3).filter_map(HostId::new).fold(HostSet::EMPTY, HostSet::with);
    Known { layout: MemoryLayout::for_ram(64 << 20).unwrap(), hosts }
}

fn host() -> impl Strategy<Value = HostId> {
    (0_u8..3).prop_map(|number| HostId::new(number).unwrap())
}

fn counter() -> impl Strategy<Value = u64> {
    prop_oneof![0_u64..5, 0..=COUNTER_MAX, Just(COUNTER_MAX)]
}

fn txn() -> impl Strategy<Value = Txn> {
    (counter(), counter()).prop_map(|(epoch, number)| Txn { epoch: Epoch(epoch), number })
}

fn access() -> impl Strategy<Value = Access> {
    prop_oneof![Just(Access::Read), Just(Access::Write)]
}

fn page() -> impl Strategy<Value = PageNumber> {
    (0_u64..16384).prop_map(PageNumber)
}

fn content() -> impl Strategy<Value = Content<PageBytes>> {
    let bytes = |seed: u8| {
        let bytes: Vec<u8> = (0..=250_u8).cycle().take(PAGE_BYTES).map(|at| seed.wrapping_add(at)).collect();
        Content::Bytes(PageBytes::copy_of(&bytes).unwrap())
    };
    prop_oneof![Just(Content::Zero), any::<u8>().prop_map(bytes)]
}

fn message() -> impl Strategy<Value = Message<PageBytes>> {
    let order = prop_oneof![Just(Order::Inv), Just(Order::Recall(Left::Invalid)), Just(Order::Recall(Left::Shared))];
    let get = (counter(), access(), proptest::option::of(counter())).prop_map(|(epoch, access, have)| {
        Message::Request { epoch: Epoch(epoch), request: Request::Get { access, have: have.map(Version) } }
    });
    let put = (counter(), proptest::option::of(content()))
        .prop_map(|(epoch, content)| Message::Request { epoch: Epoch(epoch), request: Request::Put(content) });
    let answer = prop_oneof![Just(Answer::Ack), Just(Answer::Done), content().prop_map(Answer::AckData)];
    let grant =
        (txn(), access(), counter(), proptest::option::of(content())).prop_map(|(txn, access, version, content)| {
            Message::Reply(Reply::Grant { txn, access, version: Version(version), content })
        });
    let redirect = (counter(), host(), counter())
        .prop_map(|(of, home, epoch)| Message::Reply(Reply::Redirect { of: Epoch(of), home, epoch: Epoch(epoch) }));
    prop_oneof![
        get,
        put,
        (txn(), order).prop_map(|(txn, order)| Message::Order { txn, order }),
        (txn(), answer).prop_map(|(txn, answer)| Message::Answer { txn, answer }),
        grant,
        Just(Message::Reply(Reply::PutAck)),
        redirect,
        Just(Message::Reply(Reply::Lost)),
    ]
}

fn entry() -> impl Strategy<Value = Entry<PageBytes>> {
    let shared =
        (0_u64..8, content()).prop_map(|(bits, content)| Copies::Shared { sharers: HostSet::from_bits(bits), content });
    let copies = prop_oneof![host().prop_map(Copies::Owned), shared, Just(Copies::Lost)];
    (copies, counter(), counter()).prop_map(|(copies, version, transactions)| Entry {
        copies,
        version: Version(version),
        transactions,
    })
}

pub(in crate::memory) fn packet() -> impl Strategy<Value = Packet> {
    let part =
        (0_u64..32, counter(), any::<bool>(), proptest::collection::vec((page(), entry()), 0..=PART_ENTRIES_MAX))
            .prop_map(|(shard, epoch, last, entries)| {
                Packet::Part(Part { shard: ShardNumber(shard), epoch: Epoch(epoch), last, entries })
            });
    let word = (0_u64..32, host(), counter())
        .prop_map(|(shard, home, epoch)| Packet::Word(ShardNumber(shard), Route { home, epoch: Epoch(epoch) }));
    let gone = (0_u64..32, host(), counter())
        .prop_map(|(shard, home, epoch)| Packet::Gone(ShardNumber(shard), Route { home, epoch: Epoch(epoch) }));
    let leaves = (counter(), any::<bool>())
        .prop_map(|(attempt, says)| if says { Packet::Leaving(attempt) } else { Packet::Farewell(attempt) });
    prop_oneof![
        6 => (page(), message()).prop_map(|(page, message)| Packet::Page(page, message)),
        1 => part,
        1 => word,
        1 => gone,
        1 => leaves,
        1 => (page(), counter(), any::<u64>())
            .prop_map(|(page, version, hash)| Packet::Print(page, Print { version: Version(version), hash })),
        1 => Just(Packet::Left),
    ]
}

fn frame() -> impl Strategy<Value = Frame> {
    (0_usize..4, counter(), proptest::option::weighted(0.9, (counter(), packet())))
        .prop_map(|(lane, next, packet)| Frame { acknowledges: (Lane::ALL[lane], next), packet })
}

fn bytes_of(frame: &Frame) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(&mut bytes, frame.acknowledges, frame.packet.as_ref().map(|(number, packet)| (*number, packet)));
    bytes
}

proptest! {
    #[test]
    fn what_is_written_is_read(frame in frame()) {
        let bytes = bytes_of(&frame);
        prop_assert!(bytes.len() <= vmotion_transport::mesh::MESSAGE_BYTES_MAX);
        prop_assert_eq!(decode(&bytes, &known()), Ok(frame));
    }

    #[test]
    fn what_is_cut_or_goes_on_is_refused(frame in frame(), cut in any::<proptest::sample::Index>()) {
        let mut bytes = bytes_of(&frame);
        let cut = cut.index(bytes.len());
        prop_assert!(decode(&bytes[..cut], &known()).is_err());
        bytes.push(0);
        prop_assert_eq!(decode(&bytes, &known()), Err(WireError::Long(1)));
    }

    /// Changed bytes are another message or none; what is read is what writing it again gives.
    #[test]
    fn what_is_changed_means_what_it_says(
        frame in frame(), places in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut bytes = bytes_of(&frame);
        for (at, byte) in places {
            let at = at.index(bytes.len().min(64));
            bytes[at] = byte;
        }
        if let Ok(other) = decode(&bytes, &known()) {
            prop_assert_eq!(decode(&bytes_of(&other), &known()), Ok(other));
        }
    }

    #[test]
    fn garbage_is_refused_or_harmless(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(&bytes, &known());
    }
}

#[test]
fn what_the_machine_does_not_have_is_refused() {
    let lost = |page| Frame {
        acknowledges: (Lane::Reply, 0),
        packet: Some((0, Packet::Page(PageNumber(page), Message::Reply(Reply::Lost)))),
    };
    assert!(decode(&bytes_of(&lost(16383)), &known()).is_ok());
    assert_eq!(decode(&bytes_of(&lost(16384)), &known()), Err(WireError::OutsideMemory(PageNumber(16384))));
    let word = |shard, host| Frame {
        acknowledges: (Lane::Reply, 0),
        packet: Some((
            0,
            Packet::Word(ShardNumber(shard), Route { home: HostId::new(host).unwrap(), epoch: Epoch(1) }),
        )),
    };
    assert!(decode(&bytes_of(&word(31, 2)), &known()).is_ok());
    assert!(decode(&bytes_of(&word(32, 2)), &known()).is_err());
    assert!(decode(&bytes_of(&word(u64::MAX, 2)), &known()).is_err());
    assert!(decode(&bytes_of(&word(31, 3)), &known()).is_err());
    let far = Frame { acknowledges: (Lane::Reply, COUNTER_MAX + 1), packet: None };
    assert!(decode(&bytes_of(&far), &known()).is_err());
}
